"""What readers who do not see a page, or have no mouse, need of it beyond its themes.

1. Tables: the cells of the head and the first cell of each row are headers and say of what; a table
   without a caption has the name of its section and of its columns.
2. An entry of the bibliography is an item of the list that it stands in, and what opens folded code
   is called what it shows.
3. Templates: a button that sends the search off, names that hold the words that are shown, the logo
   within a landmark, the two indices as lists and not as tables (templates/).
"""

import re
from collections import Counter
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

# Templates that a theme asks for beside its own pages lie beside ours.
TEMPLATES = Path(__file__).with_name("templates") / "pages"
REPLACED = {
    'role="doc-biblioentry"': 'role="listitem"',
    '<summary aria-label="Toggle hidden content">': "<summary>",
}
HEAD_CELL = re.compile(r'<th(?= class="(?P<classes>[^"]*)")')
TITLE_OR_TABLE = re.compile(
    r"<h[1-6][^>]*>(?P<title>.*?)</h[1-6]>"
    r"|<table\b(?P<own>[^>]*)>(?P<caption>\s*<caption)?(?:(?P<head>.*?)</thead>)?",
    re.S,
)
COLUMN = re.compile(r"<th\b[^>]*>(.*?)</th>", re.S)
UNSPOKEN = re.compile(
    r'<a class="headerlink".*?</a>|<span class="(?:section-number|math[ "]).*?</span>|<[^>]+>', re.S
)


def set_templates(app: Sphinx, config: Config) -> None:
    config.templates_path = [*config.templates_path, str(TEMPLATES)]


def name_rows(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """The first column holds the headers of the rows, where each row has something there."""
    if app.builder.format != "html":
        return
    for group in doctree.findall(nodes.tgroup):
        columns = list(group.findall(nodes.colspec))
        firsts = [row[0] for body in group.findall(nodes.tbody) for row in body]
        spans = any("morerows" in entry for entry in group.findall(nodes.entry))
        if len(columns) > 1 and not spans and all(cell.astext().strip() for cell in firsts):
            columns[0]["stub"] = 1


def mend_lists_and_tables(
    app: Sphinx, page: str, template: str, context: dict, doctree: object
) -> None:
    # The frame prints a title, and an index that Sphinx makes has none yet.
    context.setdefault("pagetitle", context.get("indextitle", "Index"))
    body = context.get("body", "")
    for theirs, ours in REPLACED.items():
        body = body.replace(theirs, ours)
    context["body"] = name_tables(HEAD_CELL.sub(scoped, body))


def scoped(cell: re.Match[str]) -> str:
    scope = "col" if "head" in cell["classes"].split() else "row"
    return f'<th scope="{scope}"'


def name_tables(body: str) -> str:
    """The same page, in which each table without a caption has a name, and no two have the same."""
    title, given = "", Counter[str]()

    def named(found: re.Match[str]) -> str:
        nonlocal title
        if found["title"] is not None:
            title = spoken(found["title"])
        elif not found["caption"] and "aria-label" not in found["own"]:
            name = ": ".join(filter(None, [title, ", ".join(columns(found["head"] or ""))]))
            given[name] += 1
            again = f" ({given[name]})" if given[name] > 1 else ""
            return found[0].replace("<table", f'<table aria-label="{escape(name + again)}"', 1)
        return found[0]

    return TITLE_OR_TABLE.sub(named, body)


def columns(head: str) -> Iterator[str]:
    """The columns that have words for a name."""
    return filter(None, map(spoken, COLUMN.findall(head)))


def spoken(html: str) -> str:
    """The words of a piece of a page, without its number, its formulas and its marks."""
    return " ".join(unescape(UNSPOKEN.sub("", html)).split())


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", set_templates)
    app.connect("doctree-resolved", name_rows, priority=900)  # when every table is there
    app.connect("html-page-context", mend_lists_and_tables, priority=400)  # as in sbn_site
    return {"parallel_read_safe": True, "parallel_write_safe": True}
