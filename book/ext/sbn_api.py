"""The library reference: docstrings as a page, and the estimators as a table from the registry.

1. autodoc reads signatures and docstrings from the library itself, so the page cannot lag behind.
   The sections of a docstring (Args, Returns, Raises, Source, ...) become field lists.
2. ``{sbn-estimators}`` and ``{sbn-proxies}`` put the registry and the proxies in a table.
3. A type in a signature links to the class if it is ours and is plain text if it is not; every
   other reference must lead somewhere, or the build fails.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import partial

from docutils import nodes
from docutils.statemachine import StringList
from sbn_site import chapter_of
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from sbnlib.registry import Entry

PAGE = "book/back/api"
THEIRS = {"collections", "torch"}
LABELS = {"Args": "Arguments"}
WORDS = r"Args|Attributes|Cost|Raises|Returns|Source"
SECTION = re.compile(rf"(?P<words>(?:{WORDS})(?:, (?:{WORDS}))*):(?: (?P<text>.*))?$")
ITEM = re.compile(r"    (?P<names>\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (?P<text>.*)$")
LONG_SIGNATURE = re.compile(r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>")
WITH_ITEMS = {"Args", "Attributes", "Raises"}

# ---- docstrings ------------------------------------------------------------------------------


def sections_to_fields(lines: list[str]) -> list[str]:
    """Google-style sections as reStructuredText field lists; the rest as it is."""
    out: list[str] = []
    rest = list(lines)
    while rest:
        found = SECTION.match(rest[0])
        if not found:
            out.append(rest.pop(0))
            continue
        rest.pop(0)
        words, text = found["words"].split(", "), [found["text"] or ""]
        while found["text"] and rest and rest[0].strip() and not rest[0].startswith(" "):
            text.append(rest.pop(0))
        body: list[str] = []
        while rest and (not rest[0].strip() or rest[0].startswith("    ")):
            body.append(rest.pop(0))
        out += _field(words, " ".join(text), body)
    return out


def _field(words: list[str], text: str, body: list[str]) -> list[str]:
    label = ", ".join(LABELS.get(w, w) if k == 0 else w.lower() for k, w in enumerate(words))
    label = label.replace("args", "arguments")
    items = _items(body) if WITH_ITEMS & set(words) else [line[4:] for line in body]
    inner = [text, "", *items] if text else items
    return ["", f":{label}:", *(f"    {line}".rstrip() for line in inner), ""]


def _items(body: list[str]) -> list[str]:
    """``name: what it is`` as a definition list; a line without a name goes on with the last."""
    out: list[str] = []
    for line in body:
        found = ITEM.match(line)
        if found:
            names = ", ".join(f"``{name}``" for name in found["names"].split(", "))
            out += ["", names, f"    {found['text']}"]
        else:
            out.append(f"    {line.strip()}" if out else line.strip())
    return out


def mend_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    lines[:] = sections_to_fields(lines)


# ---- tables ----------------------------------------------------------------------------------


def estimator_table(links: Mapping[int, str]) -> list[str]:
    """The registry as a MyST table; ``links`` leads from chapters that exist to their pages."""
    from sbnlib import registry

    head = ["Estimator, formula, source", "Unbiased for", "State only", "Evaluations", "Chapter"]
    rows = []
    for entry in registry.ESTIMATORS.values():
        chapter = f"{entry.chapter}"
        rows.append([
            f'<span class="sbn-swatch" style="background:{entry.colour}"></span> '
            f"{{py:func}}`{entry.label} <{target_of(entry)}>` `{entry.name}`<br>"
            f"${entry.formula}$<br><small>{{cite:t}}`{','.join(entry.papers)}`</small>",
            entry.unbiased_for,
            "yes" if entry.state_only else "no",
            f"${cost_of(entry)}$",
            f"[{chapter}]({links[entry.chapter]})" if entry.chapter in links else chapter,
        ])  # fmt: skip
    return _table("tab-registry", "The estimators of the registry.", head, rows)


def cost_of(entry: Entry) -> str:
    """Evaluations in a layer of n units as a formula: a number, or one that grows with n."""
    if isinstance(entry.evaluations, int):
        return str(entry.evaluations)
    slope, constant = entry.cost(1) - entry.cost(0), entry.cost(0)
    if entry.cost(10) != constant + 10 * slope:
        raise ValueError(f"{entry.name}: a cost that is no multiple of n plus a constant")
    return f"{slope if slope > 1 else ''}n" + (f" + {constant}" if constant else "")


def target_of(entry: Entry) -> str:
    """The documented function behind a registry entry."""
    import sbnlib

    function = entry.function.func if isinstance(entry.function, partial) else entry.function
    return f"sbnlib.{entry.name if hasattr(sbnlib, entry.name) else function.__name__}"


def proxy_table() -> list[str]:
    """The proxies as a MyST table."""
    from sbnlib.estimators import PROXIES

    head = ["Name, source", "Slope $h(a)$", r"$\int h$", "Is $2f$ of"]
    rows = [
        [f"`{p.name}`<br><small>{p.source}</small>", f"${p.formula}$", f"{p.integral:g}",
         f"`{p.noise!r}`" if p.noise else "no noise"]
        for p in PROXIES.values()
    ]  # fmt: skip
    return _table("tab-proxies", "The proxy derivatives.", head, rows)


def _table(
    name: str, caption: str, head: Iterable[str], rows: Iterable[Iterable[str]]
) -> list[str]:
    lines = [f"```{{list-table}} {caption}", f":name: {name}", ":header-rows: 1", ""]
    for row in [head, *rows]:
        lines += [f"{'*' if k == 0 else ' '} - {cell}" for k, cell in enumerate(row)]
    return [*lines, "```"]


class _Table(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        box = nodes.container(classes=["sbn-wide-table"])
        self.state.nested_parse(StringList(self.lines(), source=__name__), 0, box)
        return [box]

    def lines(self) -> list[str]:
        raise NotImplementedError


class Estimators(_Table):
    def lines(self) -> list[str]:
        here = os.path.dirname(self.env.doc2path(self.env.docname))
        paths = {chapter_of(doc): self.env.doc2path(doc) for doc in self.env.found_docs}
        return estimator_table({
            chapter: os.path.relpath(path, here) for chapter, path in paths.items() if chapter
        })  # fmt: skip


class Proxies(_Table):
    def lines(self) -> list[str]:
        return proxy_table()


# ---- references and looks --------------------------------------------------------------------


def resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contnode: nodes.Element
) -> nodes.Node | None:
    """sbnlib.noise.Noise is documented as sbnlib.Noise; torch.Tensor is not ours to document."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    if target.partition(".")[0] in THEIRS:
        return contnode
    if not _in_signature(node):
        return None
    found = [(name, obj) for name, obj in env.get_domain("py").objects.items()
             if name.rpartition(".")[2] == target.rpartition(".")[2]]  # fmt: skip
    if target.startswith("sbnlib.") and found:
        name, obj = found[0]
        return make_refnode(app.builder, env.docname, obj.docname, obj.node_id, contnode, name)
    return contnode


def _in_signature(node: nodes.Node | None) -> bool:
    while node is not None and not isinstance(node, addnodes.desc_signature):
        node = node.parent
    return node is not None


def set_options(app: Sphinx, config: Config) -> None:
    config.autodoc_typehints_format = "short"
    config.autodoc_preserve_defaults = True
    config.autodoc_member_order = "bysource"
    aliases = (
        "ChainRule",
        "Draw",
        "Loss",
        "LossBased",
        "Network",
        "NetworkEstimator",
        "Params",
        "Row",
    )
    config.autodoc_type_aliases = {name: name for name in aliases}
    config.autodoc_inherit_docstrings = False
    config.python_maximum_signature_line_length = 60
    config.add_module_names = True


def add_style(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    if page == PAGE:
        app.add_css_file("api.css")
        context["body"] = LONG_SIGNATURE.sub(_as_spans, context["body"])


def _as_spans(found: re.Match[str]) -> str:
    """Sphinx lists parameters as <dd> without <dt>, which is no definition list."""
    lines = found[1].replace("<dd>", '<span class="sbn-parameter">').replace("</dd>", "</span>")
    return f'<span class="sbn-parameters">{lines}</span>'


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.add_directive("sbn-estimators", Estimators)
    app.add_directive("sbn-proxies", Proxies)
    app.connect("config-inited", set_options)
    app.connect("autodoc-process-docstring", mend_docstring)
    app.connect("missing-reference", resolve)
    app.connect("html-page-context", add_style, priority=400)  # before the tips are collected
    return {"parallel_read_safe": True, "parallel_write_safe": True}
