"""Copies of the pages for JupyterLab, and for download: plain notebooks with the book's numbers.

When the site is built, ``_build/lab`` gets a copy of every page but those of ``ONLY_ON_THE_SITE``,
with links between them; ``make lab`` takes them from there. What the site offers for download are
the same copies, without links to pages that are not beside them. How a page becomes a copy is in
sbn_cells; the words of its references are asked from Sphinx here, so that they are those of the
site.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nbformat
from docutils import nodes
from nbformat import NotebookNode
from pybtex.plugin import find_plugin
from sbn_back import expand
from sbn_cells import Book, Draft, Unknown, Words, draft, svg_address, wanted
from sbn_site import MAP_NODE, chapter_of
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

#: What Sphinx draws from the library and from measurements, and the lab, a program in its page.
ONLY_ON_THE_SITE = {"book/back/api", "book/back/measurements", "book/lab/lab"}
ROOT = "book/"
BIBLIOGRAPHY = re.compile(r"^```\{bibliography\}.*?^```$", re.S | re.M)
MAP = re.compile(r'<svg(?= )(?P<rest>.*?aria-label="(?P<alt>[^"]*)".*?</svg>)', re.S)
MAP_LINE = re.compile(r"^(?P<number>\d+)\. (?P<title>.+)$", re.M)
MAP_STYLE = (
    "<style>svg{background:#fff;font-family:sans-serif}text{font-size:15px}"
    ".sbn-edges path{stroke:#666;fill:none;marker-end:url(#sbn-arrow)}marker path{fill:#666}"
    "circle{fill:#f2f2f2;stroke:#666}.sbn-node text{text-anchor:middle}"
    ".sbn-written circle{fill:#0072b2}.sbn-written text{fill:#fff}</style>"
)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
logger = logging.getLogger(__name__)


# ---- reading -----------------------------------------------------------------------------------


def pages(env: BuildEnvironment) -> list[str]:
    return sorted(env.found_docs - ONLY_ON_THE_SITE)


def cells(env: BuildEnvironment, page: str) -> list[NotebookNode]:
    """The cells of a page; a page without code is one of them."""
    path = Path(env.doc2path(page))
    if path.suffix == ".ipynb":
        found = nbformat.read(path, as_version=4).cells
        for cell in found if page == env.config.root_doc else ():
            cell.source = map_of(env, page, cell.source)
        return found
    text = BIBLIOGRAPHY.sub(lambda _: bibliography(env), path.read_text("utf-8"))
    text = expand(text, Path(env.srcdir))
    return [nbformat.v4.new_markdown_cell(text, id=path.name.partition(".")[0])]


def map_of(env: BuildEnvironment, page: str, text: str) -> str:
    """The front page with links from the list of chapters, and the map as an image."""
    written = {chapter_of(doc): doc for doc in env.found_docs if chapter_of(doc)}

    def line(found: re.Match[str]) -> str:
        doc = written.get(int(found["number"]))
        path = f"{os.path.relpath(doc, os.path.dirname(page))}.ipynb" if doc else ""
        return f"{found['number']}. [{found['title']}]({path})" if doc else found[0]

    def node(found: re.Match[str]) -> str:
        filled = int(found["number"]) in written
        return found[0].replace("sbn-node", "sbn-node sbn-written", 1) if filled else found[0]

    def image(found: re.Match[str]) -> str:
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"{found["rest"]}'
        svg = svg.replace('"0 0 580 312"', '"-8 -8 596 328"', 1)  # with a margin
        svg = MAP_NODE.sub(node, svg.replace(">", f">{MAP_STYLE}", 1))
        return f'<img alt="{found["alt"]}" width="700" src="{svg_address(svg)}">'

    return MAP.sub(image, MAP_LINE.sub(line, text))


def bibliography(env: BuildEnvironment) -> str:
    """The works, each with its key as label."""
    markdown = find_plugin("pybtex.backends", "markdown")()
    works = env.get_domain("cite").citations
    return "\n\n".join(
        f"({work.key})=\n{work.formatted_entry.text.render(markdown)}" for work in works
    )


def sections(env: BuildEnvironment, page: str) -> list[str]:
    """The number of every heading of a page, in order; "" for one without."""
    numbers = env.toc_secnumbers.get(page, {})
    found = []
    for section in env.get_doctree(page).findall(nodes.section):
        if isinstance(section.parent, nodes.document | nodes.section) and section["ids"]:
            number = numbers.get(f"#{section['ids'][0]}")
            if isinstance(section.parent, nodes.document) and number is None:
                number = numbers.get("")
            found.append(".".join(map(str, number or ())))
    return found


# ---- words -------------------------------------------------------------------------------------


def words(app: Sphinx, role: str, target: str) -> Words:
    """What the site shows for a role. The library reference has no copy: its names are code."""
    if role.startswith("py:"):
        return Words(((f"`{target}`", ""),))
    env = app.env
    domain, kind = {"eq": ("math", "eq"), "prf:ref": ("prf", "ref"), "cite:t": ("cite", "t"),
                    "cite:p": ("cite", "p")}.get(role, ("std", role))  # fmt: skip
    if target in getattr(env, "sphinx_exercise_registry", {}):
        kind = "numref"
    node = addnodes.pending_xref(
        "", refdomain=domain, reftype=kind, reftarget=target, refexplicit=False
    )
    inner = nodes.inline("", target)
    page = app.config.root_doc
    found = env.get_domain(domain).resolve_xref(env, page, app.builder, kind, target, node, inner)
    if found is None:
        raise Unknown(f"{{{role}}}`{target}` leads nowhere")
    if domain == "cite":
        return Words(tuple(_citations(env, found)))
    return Words(((found.astext(), target),))


def _citations(env: BuildEnvironment, found: nodes.Element) -> list[tuple[str, str]]:
    keys = {c.citation_id: c.key for c in env.get_domain("cite").citations}
    pieces = []
    for text in found.findall(nodes.Text):
        link = text.parent
        while link is not found and not isinstance(link, nodes.reference):
            link = link.parent
        key = keys.get(link["refuri"].partition("#")[2], "") if link is not found else ""
        pieces.append((text.astext(), key))
    return pieces


# ---- writing -----------------------------------------------------------------------------------


def write_copies(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    drafts = list(filter(None, (_draft(app.env, page) for page in pages(app.env))))
    said = {want: words(app, *want) for want in wanted(drafts)}
    lab = Path(app.outdir).parent / "lab"
    shutil.rmtree(lab, ignore_errors=True)
    beside, alone = Book(drafts, said), Book(drafts, said, beside=False)
    for page in beside.drafts:
        _write(beside.finish(page), lab / f"{page.removeprefix(ROOT)}.ipynb")
        download = Path(app.outdir, "_sources", f"{page}.ipynb")
        if download.exists():
            _write(alone.finish(page), download)


def _draft(env: BuildEnvironment, page: str) -> Draft | None:
    try:
        return draft(page, cells(env, page), sections(env, page))
    except Unknown as error:
        logger.warning("no copy for JupyterLab: %s", error, location=page)
        return None


def _write(cells: list[NotebookNode], path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook, indent=1) + "\n", "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write_copies)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
