"""What this book asks of Sphinx beyond its themes: nothing is fetched, chapters keep their numbers.

1. MathJax is copied from a Python wheel into the built site.
2. A file named NN-name is chapter NN, whichever chapters exist; its sections, equations,
   theorems, exercises and figures are numbered NN.k.
3. The data files of the hover previews get a fixed name and a fixed order, so that the same
   sources give the same bytes.
4. Buttons that lead to the repository are there only when SBN_REPOSITORY_URL is set.
5. The word that opens a proof can be styled, and ids that sphinx-proof and sphinx-exercise give
   to every box alike are dropped: an id must be unique on its page. A formula keeps the
   punctuation after it, a number its thousands, and the link in the title of a solution begins
   with a word. Thebe, which would need a server, is not loaded.
6. The map on the front page links the chapters that exist, from the list and from its circles.
7. The search finds the chapter on a thing first and shows no TeX (search.js).
8. Two files that the themes ship among their scripts look like pages but are only pieces of
   their templates; they are taken out of the built site.
"""

import json
import os
import re
import shutil
from importlib.resources import files
from itertools import count
from pathlib import Path

import sphinx_tippy
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinx.transforms import SphinxTransform

MATHJAX_FILES = ["tex-chtml.js", "output/chtml/fonts/woff-v2"]
TEMPLATE_PIECES = ["webpack-macros.html", "sbt-webpack-macros.html"]
CHAPTER_FILE = re.compile(r"(?:^|/)(\d\d)-[^/]+$")
MAP_LIST = re.compile(r'<ol class="arabic simple"(?: start="(?P<start>\d+)")?>.*?</ol>', re.S)
MAP_ENTRY = re.compile(r"<li><p>(.*?)</p>", re.S)
MAP_NODE = re.compile(r'<g class="sbn-node"><title>(?P<number>\d+) .*?</g>', re.S)
TIPS_NAME = "tips"
SCRIPT = re.compile(r"<script.*?</script>", re.S)
REPEATED_IDS = re.compile(r' id="(?:proof|exercise|solution)-content"')
PUNCTUATED = re.compile(r'(<span class="math notranslate nohighlight">[^<]*</span>[,.;:!?)’”]+)')
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
PROOF = re.compile(r'<div class="proof admonition" id="proof">\s*<p>Proof\. ?')
SOLUTION = re.compile(r"(Solution to)(<a [^>]*>) ")  # the space would be underlined


def chapter_of(docname: str) -> int | None:
    """The chapter number in a document's name: `2-activations/06-straight-through` is 6."""
    found = CHAPTER_FILE.search(docname)
    return int(found.group(1)) if found else None


def renumber(env: BuildEnvironment, docname: str, chapter: int) -> None:
    """Make `chapter` the first number of every section of one document."""
    numbers = env.toc_secnumbers[docname]
    for anchor, number in numbers.items():
        if number:
            numbers[anchor] = (chapter, *number[1:])
    for node in [env.titles[docname], *env.tocs[docname].findall(nodes.reference)]:
        if node.get("secnumber"):
            node["secnumber"] = [chapter, *node["secnumber"][1:]]


def number_chapters_by_name() -> None:
    """After Sphinx has counted sections, before it counts equations, theorems and figures."""
    count = TocTreeCollector.assign_figure_numbers

    def assign(self: TocTreeCollector, env: BuildEnvironment) -> list[str]:
        for docname in env.toc_secnumbers:
            chapter = chapter_of(docname)
            if chapter is not None:
                renumber(env, docname, chapter)
        return count(self, env)

    TocTreeCollector.assign_figure_numbers = assign


def repository_options(url: str) -> dict[str, object]:
    """Theme options that need the repository's address; none without it."""
    if not url:
        return {}
    launch = {"notebook_interface": "jupyterlab"}
    if url.startswith("https://github.com/"):
        launch |= {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        }
    return {
        "repository_url": url.rstrip("/"),
        "repository_branch": os.environ.get("SBN_REPOSITORY_BRANCH", "main"),
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": launch,
    }


def set_search(app: Sphinx, config: Config) -> None:
    config.html_search_scorer = str(Path(__file__).with_name("search.js"))


def set_theme_options(app: Sphinx, config: Config) -> None:
    config.html_theme_options.update(
        {
            "search_bar_text": "Search the book",
            "show_toc_level": 2,
            "show_navbar_depth": 1,
            "logo": {"text": "Stochastic Binary Networks", "alt_text": ""},
            "pygments_light_style": "a11y-high-contrast-light",
            "pygments_dark_style": "a11y-high-contrast-dark",
            "footer_content_items": ["copyright.html", "extra-footer.html"],
            "extra_footer": "Text CC BY 4.0, code MIT.",
            **repository_options(os.environ.get("SBN_REPOSITORY_URL", "")),
        }
    )


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    source = Path(str(files("mathjax"))) / "static" / "mathjax" / "es5"
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in MATHJAX_FILES:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
        if not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            copy(source / name, target / name)


def remove_template_pieces(app: Sphinx, exception: Exception | None) -> None:
    if exception:
        return
    for name in TEMPLATE_PIECES:
        Path(app.outdir, "_static", name).unlink(missing_ok=True)


def write_every_page(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """A preview shows a piece of another page, and sphinx-tippy knows only pages just written."""
    return sorted(env.found_docs)


def tidy_tips(app: Sphinx, exception: Exception | None) -> None:
    """Sort the keys of `selector_to_html = {…}`, since sets have no order; drop empty caches.

    A preview does not move, so the frames of a live figure stay out of it.
    """
    if exception:
        return
    for path in sorted(Path(app.outdir, "_static", "tippy").rglob(f"*.{TIPS_NAME}.js")):
        first, newline, rest = path.read_text("utf-8").partition("\n")
        name, equals, data = first.partition(" = ")
        if data:
            shown = {k: SCRIPT.sub("", html) for k, html in json.loads(data).items()}
            tips = json.dumps(shown, sort_keys=True)
            path.write_text(name + equals + tips + newline + rest, "utf-8")
    for cache in Path(app.outdir).glob("tippy_*_cache.json"):
        cache.unlink()


class KeepThousands(SphinxTransform):
    """10 000 is one number: no line ends in it."""

    default_priority = 800  # after figures have their captions

    def apply(self) -> None:
        verbatim = nodes.FixedTextElement, nodes.literal, nodes.math
        for owner in self.document.findall(nodes.Element):  # some texts do not know theirs
            answer = isinstance(owner.parent, nodes.legend)  # of a figure, in HTML
            if answer or not isinstance(owner, verbatim):
                for at, text in enumerate(owner.children):
                    if isinstance(text, nodes.Text) and THOUSANDS.search(text):
                        owner[at] = nodes.Text(thousands(text))


def thousands(text: str) -> str:
    """The text with a narrow space that does not break in each number such as 10 000."""
    return THOUSANDS.sub(lambda number: number[0].replace(" ", "\u202f"), text)


def mend_boxes(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    body = REPEATED_IDS.sub("", context.get("body", ""))
    word = '<span class="sbn-proof-word">Proof.</span> '
    body = SOLUTION.sub(r"\1 \2", body)
    body = PROOF.sub('<div class="proof admonition sbn-proof"><p>' + word, body)
    context["body"] = PUNCTUATED.sub(r'<span class="sbn-together">\1</span>', body)


def link_map(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Entries of written chapters become links; what is not written stays plain text."""
    if page != app.config.root_doc:
        return
    written = {chapter_of(doc): doc for doc in app.env.found_docs if chapter_of(doc)}

    def entries(match: re.Match[str]) -> str:
        number = count(int(match["start"] or 1))
        return MAP_ENTRY.sub(lambda entry: linked(entry, next(number)), match[0])

    def linked(entry: re.Match[str], number: int) -> str:
        if number not in written:
            return entry[0]
        href = context["pathto"](written[number])
        return f'<li><p><a class="reference internal" href="{href}">{entry[1]}</a></p>'

    def node(match: re.Match[str]) -> str:
        if int(match["number"]) not in written:
            return match[0]
        href = context["pathto"](written[int(match["number"])])
        return f'<a class="sbn-written" href="{href}">{match[0]}</a>'

    context["body"] = MAP_NODE.sub(node, MAP_LIST.sub(entries, context["body"]))


def unload_thebe(app: Sphinx, config: Config) -> None:
    for listeners in app.events.listeners.values():
        for listener in list(listeners):
            if listener.handler.__module__.startswith("sphinx_thebe"):
                app.disconnect(listener.id)
    app.registry.css_files[:] = [f for f in app.registry.css_files if "thebe" not in f[0]]


def setup(app: Sphinx) -> dict[str, bool]:
    sphinx_tippy.uuid4 = lambda: TIPS_NAME
    number_chapters_by_name()
    app.add_transform(KeepThousands)
    app.connect("config-inited", set_theme_options)
    app.connect("config-inited", set_search)
    app.connect("config-inited", unload_thebe)
    app.connect("html-page-context", mend_boxes, priority=400)  # before the tips are collected
    app.connect("html-page-context", link_map, priority=400)
    app.connect("env-updated", write_every_page)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", remove_template_pieces)
    app.connect("build-finished", tidy_tips, priority=900)  # after sphinx_tippy has written
    return {"parallel_read_safe": True, "parallel_write_safe": True}
