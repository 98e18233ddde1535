"""The pages as plain Markdown, with nothing folded and nothing left to look up.

For a reader of text alone, a person or a program: numbers and references as the site has them,
theorems, proofs, exercises and solutions as quoted blocks under their titles, formulas as TeX, code
and what it printed, figures in words. ``llms.txt`` lists the pages with a line on each;
``llms-full.txt`` is all of them in one file.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable
from itertools import groupby

from bs4 import Tag
from bs4.element import NavigableString, PageElement

from formats.pages import (
    Book,
    FormatError,
    Page,
    classes,
    is_a,
    link_of,
    tex_of,
    text_of,
    title_of,
    words,
)

LANGUAGES = {"ipython3": "python", "python": "python", "bash": "bash", "default": "python"}
BOXES = ("admonition", "sd-dropdown", "sd-card")
TITLES = (".admonition-title", ".sd-summary-text", ".sd-card-title", "summary")
NO_MARKDOWN = re.compile(r"([\\`*_\[\]<>$])")
LABELLED = ("proof", "exercise", "math")  # their ids are the labels of the sources
INLINE = {"a", "b", "br", "code", "em", "i", "small", "span", "strong", "sub", "sup"}
SENTENCE = re.compile(r"^(.*?[.?!])(?= [A-Z]|$)")


def pages(book: Book) -> dict[str, str]:
    """Every page as Markdown, by the name of its file.

    Raises:
        FormatError: a page has something that no rule here writes; with its name.
    """
    wanted = {link_of(page, text_of(link, "href"))
              for page in book.pages for link in page.body.find_all("a", href=True)}  # fmt: skip
    return {f"{page.name}.md": _page(page, book, wanted) for page in book.pages}


def _page(page: Page, book: Book, wanted: set[tuple[str, str]]) -> str:
    anchors = {anchor for name, anchor in wanted if name == page.name}
    writer = _Writer(page, book, anchors)
    text = re.sub(r"\n{3,}", "\n\n", writer.one(page.body)).strip() + "\n"
    for anchor in anchors - {""}:
        if f'<a id="{anchor}"></a>' not in text:
            raise FormatError(f"{page.name}: the Markdown has no place #{anchor} to lead to")
    return text


class _Writer:
    """Writes the tags of one page; an id becomes an anchor if it is in ``anchors``, or a label."""

    def __init__(self, page: Page, book: Book, anchors: set[str]) -> None:
        self.page, self.book, self.anchors = page, book, anchors
        self.titles: set[int] = set()  # of boxes, which are written already

    def anchor(self, tag: Tag) -> str:
        name = text_of(tag, "id")
        wanted = name and (name in self.anchors or is_a(tag, *LABELLED) or tag.name == "figure")
        return f'<a id="{name}"></a>' if wanted else ""

    # ---- blocks ----

    def block(self, tag: Tag) -> str:
        """What a tag holds, as blocks with an empty line between them."""
        parts, line = [], ""
        for child in tag.children:
            if not isinstance(child, Tag) or child.name in INLINE:
                line += self.inline(child)
            elif id(child) not in self.titles:
                parts += [line.strip(), self.one(child)]
                line = ""
        return "\n\n".join(part for part in [*parts, line.strip()] if part)

    def one(self, tag: Tag) -> str:
        """One block."""
        write = getattr(self, f"_{tag.name}", None)
        if write is None:
            raise FormatError(f"{self.page.name}: no rule writes <{tag.name}> as Markdown")
        return "\n\n".join(filter(None, [self.anchor(tag), write(tag)]))

    def _section(self, tag: Tag) -> str:
        return self.block(tag)

    def _div(self, tag: Tag) -> str:
        if is_a(tag, "math"):
            return self.display(tag)
        if is_a(tag, *BOXES):
            return self.box(tag)
        if is_a(tag, "tag_checker"):
            return "*The notebook checks your answer here.*"
        if is_a(tag, "highlight") and tag.pre:
            return self.code(tag)
        return self.block(tag)

    _details = _div

    def _figure(self, tag: Tag) -> str:
        return quoted(self.block(tag))

    _figcaption = _section

    def _summary(self, tag: Tag) -> str:
        return f"**{self.line(tag)}**"

    def heading(self, tag: Tag) -> str:
        return f"{'#' * int(tag.name[1])} {self.line(tag)}"

    _h1 = _h2 = _h3 = _h4 = heading

    def _p(self, tag: Tag) -> str:
        text = self.line(tag)
        return f"**{text}**" if is_a(tag, "rubric", "admonition-title") and text else text

    def _img(self, tag: Tag) -> str:
        alt = text_of(tag, "alt")
        return f"*Picture:* {escape(alt)}" if alt else ""

    def _hr(self, tag: Tag) -> str:
        return "---"

    def _blockquote(self, tag: Tag) -> str:
        return quoted(self.block(tag))

    def _pre(self, tag: Tag) -> str:
        return self.code(tag)

    def display(self, tag: Tag) -> str:
        number = tag.find(class_="eqno")
        name = f"\n\\tag{{{words(number).strip('()')}}}" if isinstance(number, Tag) else ""
        return f"$$\n{tex_of(tag)}{name}\n$$"

    def code(self, tag: Tag) -> str:
        around = [c for t in (tag, *tag.parents) for c in classes(t) if c.startswith("highlight-")]
        kind = around[0].removeprefix("highlight-") if around else "text"
        text = tag.get_text().strip("\n")
        fence = "````" if "```" in text else "```"
        return f"{fence}{LANGUAGES.get(kind, 'text')}\n{text}\n{fence}"

    def box(self, tag: Tag) -> str:
        """A theorem, a proof, an exercise, a solution or a remark: quoted, under its title."""
        if is_a(tag, "hide"):  # folded code is code
            return self.block(tag)
        title = next(filter(None, map(tag.select_one, TITLES)), None)
        if title is None:
            return quoted(self.block(tag))
        self.titles.add(id(title.find_parent("summary") or title))
        return quoted(f"**{self.line(title)}**\n\n{self.block(tag)}")

    # ---- lists and tables ----

    def _ul(self, tag: Tag) -> str:
        return self.items(tag, lambda k: "-")

    def _ol(self, tag: Tag) -> str:
        first = int(text_of(tag, "start") or 1)
        return self.items(tag, lambda k: f"{first + k}.")

    def items(self, tag: Tag, mark: Callable[[int], str]) -> str:
        found = tag.find_all("li", recursive=False)
        loose = any(li.find(["pre", "div", "ul", "ol"]) for li in found)
        lines = [listed(mark(k), self.anchor(li) + self.block(li)) for k, li in enumerate(found)]
        return ("\n\n" if loose else "\n").join(lines)

    def _dl(self, tag: Tag) -> str:
        lines, terms = [], []
        for child in tag.find_all(["dt", "dd"], recursive=False):
            if child.name == "dt":
                terms.append(self.term(child))
            else:
                body = self.block(child)
                lines.append(listed("-", "\n\n".join(filter(None, [", ".join(terms), body]))))
                terms = []
        lines += [listed("-", term) for term in terms]
        return "\n\n".join(lines)

    def term(self, tag: Tag) -> str:
        if not is_a(tag, "sig"):
            return f"{self.anchor(tag)}**{self.line(tag)}**"
        text = re.sub(r",\s*\)", ")", re.sub(r"\(\s+", "(", words(tag)))
        return f"{self.anchor(tag)}**`{text}`**"

    def _table(self, tag: Tag) -> str:
        rows = [[self.cell(c) for c in row.find_all(["td", "th"])] for row in tag.find_all("tr")]
        width = max(map(len, rows))
        head = rows.pop(0) if tag.thead else [""] * width
        lines = [head, ["---"] * width, *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        caption = f"**{self.line(tag.caption)}**\n\n" if tag.caption else ""
        return caption + table

    def cell(self, tag: Tag) -> str:
        row = self.anchor(tag.parent) if tag.parent and not tag.find_previous_sibling() else ""
        text = re.sub(r"\s*\n\s*", "<br>", self.block(tag).strip()).replace("|", "\\|")
        return row + self.anchor(tag) + text

    # ---- lines ----

    def line(self, tag: Tag) -> str:
        text = "".join(self.inline(child) for child in tag.children).strip()
        return re.sub(r"[ \t]+", " ", text)

    def inline(self, node: PageElement) -> str:
        if not isinstance(node, Tag):
            return escape(str(node)) if type(node) is NavigableString else ""
        write = getattr(self, f"_inline_{node.name}", None)
        return self.anchor(node) + (write(node) if write else self._children(node))

    def _children(self, tag: Tag) -> str:
        return "".join(self.inline(child) for child in tag.children)

    def _inline_span(self, tag: Tag) -> str:
        if is_a(tag, "math"):
            return f"${tex_of(tag)}$"
        if is_a(tag, "eqno"):
            return ""
        if is_a(tag, "caption-number") and tag.find_parent("figcaption"):
            return f"**{words(tag)}.** "
        return self._children(tag)

    def _inline_em(self, tag: Tag) -> str:
        return _around("*", self._children(tag))

    def _inline_strong(self, tag: Tag) -> str:
        return _around("**", self._children(tag))

    def _inline_code(self, tag: Tag) -> str:
        text = tag.get_text()
        return f"`` {text} ``" if "`" in text else f"`{text}`"

    def _inline_br(self, tag: Tag) -> str:
        return "<br>"

    def _inline_img(self, tag: Tag) -> str:
        return self._img(tag)

    def _inline_a(self, tag: Tag) -> str:
        text, href = self._children(tag), text_of(tag, "href")
        if not href:
            return text
        before = text[: len(text) - len(text.lstrip())]  # a space belongs before the bracket
        text = text.strip()
        name, anchor = link_of(self.page, href)
        if self.book.page(name) is None and not re.match(r"[a-z]+:", name):
            return before + text  # a file of the site, which is not here
        if self.book.page(name) is not None:
            folder = os.path.dirname(self.page.name)
            name = "" if name == self.page.name else f"{os.path.relpath(name, folder)}.md"
        return f"{before}[{text}]({name}{f'#{anchor}' if anchor else ''})"


def _around(mark: str, text: str) -> str:
    """Emphasis, which may not begin or end with a space."""
    inner = text.strip()
    return text.replace(inner, f"{mark}{inner}{mark}", 1) if inner else text


def escape(text: str) -> str:
    """Text whose signs are signs."""
    return NO_MARKDOWN.sub(r"\\\1", text)


def quoted(text: str) -> str:
    return textwrap.indent(text, "> ", lambda line: True)


def listed(mark: str, text: str) -> str:
    """An item of a list: what follows its first line stands under it."""
    first, *rest = text.split("\n")
    lines = (f"{' ' * (len(mark) + 1)}{line}" if line else "" for line in rest)
    return "\n".join([f"{mark} {first}", *lines])


# ---- for language models -----------------------------------------------------------------------


def index(book: Book, folder: str) -> str:
    """``llms.txt``: the pages, in their parts, with a line on each."""
    lines = [f"# {book.title}", f"> {_about(book)}",
             f"Version {book.version}, {book.date}. Text CC BY 4.0, code MIT. The whole book in "
             "one file: [llms-full.txt](llms-full.txt)."]  # fmt: skip
    for part, found in groupby(book.pages, key=lambda page: page.part):
        entries = (f"- [{p.heading}]({folder}{p.name}.md): {description(p)}" for p in found)
        lines += [f"## {part or 'The book'}", "\n".join(entries)]
    return "\n\n".join(lines) + "\n"


def _about(book: Book) -> str:
    lead = book.pages[0].body.select_one(".sbn-lead")
    return words(lead) if lead else book.subtitle


def description(page: Page) -> str:
    """The first sentence of a page, and what its sections are called."""
    first = re.sub(r"\\[()]", "$", words(page.body.p) if page.body.p else "")
    sentence = SENTENCE.match(first)
    said = sentence[1] if sentence else f"{first}." if first else ""
    heads = (title_of(h) for h in page.body.find_all("h2"))
    sections = "; ".join(re.sub(r"^[\d.]+ ", "", h) for h in heads)
    return f"{said} Sections: {sections}." if sections else said


def whole(book: Book, found: dict[str, str]) -> str:
    """``llms-full.txt``: every page, in the order of the book."""
    return "\n\n---\n\n".join(found[f"{page.name}.md"].strip() for page in book.pages) + "\n"
