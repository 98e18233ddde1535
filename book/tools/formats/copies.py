"""The pages as a book on paper has them: nothing folded, solutions at the end, links that hold.

What the site folds and is a part of the text, a proof or a remark, stands open. The code of a
figure and of a checker, folded there too, is left out: it is in the notebooks. Every id becomes one
that no other page has, since the pages will share a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bs4 import BeautifulSoup, Tag

from formats.pages import (
    Book,
    FormatError,
    Page,
    classes,
    link_of,
    tex_of,
    text_of,
    words,
)

SOLUTIONS = "Solutions"
#: Spans that no style knows, or whose colour is that of the text: each would be an element of the
#: PDF for screen readers, and there are a hundred thousand.
WITHOUT_LOOK = {"", "n", "p", "w", "nn", "nx", "pm", "pre", "std std-ref", "std std-doc",
                "std std-numref", "bibtex-citation", "caption-text"}  # fmt: skip
NO_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Formula:
    """A formula, and where it stands."""

    tex: str
    display: bool
    page: str


@dataclass
class Copy:
    """The book for paper.

    ``places`` says of every id on which page it is, ``formulas`` are those of all pages in order;
    the tag of the k-th has the attribute ``data-formula="k"``.
    """

    book: Book
    places: Mapping[str, Page]
    formulas: list[Formula] = field(default_factory=list)


def for_paper(book: Book) -> Copy:
    """The book rewritten, in place: its pages are no longer those of the site.

    Raises:
        FormatError: a link leads to a place of the book that is not there.
    """
    for page in book.pages:
        _name_places(page)
        _open(page.body)
    book.pages = list(_with_solutions(book.pages))
    places = {text_of(tag, "id"): page for page in book.pages for tag in _with_ids(page.body)}
    for page in book.pages:
        _lead(page, book, places)
    copy = Copy(book, places)
    for page in book.pages:
        _count_formulas(page, copy.formulas)
    return copy


def _with_ids(body: Tag) -> Iterator[Tag]:
    yield from (tag for tag in [body, *body.find_all(True)] if tag.get("id"))


# ---- places ------------------------------------------------------------------------------------


def place(page: Page, anchor: str) -> str:
    """The id that a place of a page has in the copy: a name of XML, and no other page's."""
    return f"{_name(page.key)}--{NO_NAME.sub('-', anchor)}" if anchor else _name(page.key)


def _name(key: str) -> str:
    return key if key[0].isalpha() else f"p-{key}"


def _name_places(page: Page) -> None:
    """The new ids; links get the place that they lead to, in the book, as ``data-to``."""
    seen = set()
    for tag in list(_with_ids(page.body)):
        anchor = text_of(tag, "id")
        if anchor in seen:
            del tag["id"]
        seen.add(anchor)
        tag["id"] = place(page, anchor)
    first = BeautifulSoup("", "html.parser").new_tag("span", attrs={"id": text_of(page.body, "id")})
    page.body.insert(0, first)
    page.body["id"] = place(page, "")
    for link in page.body.select("a[href]"):
        name, anchor = link_of(page, text_of(link, "href"))
        link["data-to"], link["data-at"] = name, anchor
        del link["title"]


def _lead(page: Page, book: Book, places: Mapping[str, Page]) -> None:
    """Links within the book lead to a place, those to a file of the site are none here."""
    for link in page.body.select("a[data-to]"):
        name, anchor = text_of(link, "data-to"), text_of(link, "data-at")
        del link["data-to"], link["data-at"]
        target = book.page(name)
        if target is not None:
            link["href"] = f"#{place(target, anchor)}"
            if text_of(link, "href")[1:] not in places:
                where = f"{name}#{anchor}" if anchor else name
                raise FormatError(f"{page.name}: no {where} for the link “{words(link)}”")
        elif not re.match(r"[a-z]+:", name):
            link.unwrap()


# ---- what was folded ---------------------------------------------------------------------------


def _open(body: Tag) -> None:
    for cell in body.select("div.tag_checker, details.hide.above-input"):
        cell.decompose()
    for cell in body.select("div.cell"):
        if not words(cell) and not cell.find("img"):
            cell.decompose()
    for fold in body.select("details"):
        fold.name = "div"
        fold["class"] = " ".join([*classes(fold), "fold"])
        if fold.summary:
            fold.summary.name = "p"
            fold.select_one("p")["class"] = "fold-title"  # type: ignore[index]
    for title in body.select("p.fold-title > p, p.fold-title > span"):
        title.unwrap()
    for tag in body.find_all("span"):
        if text_of(tag, "class") in WITHOUT_LOOK and not tag.get("id"):
            tag.unwrap()
    body.smooth()
    for short in body.select("pre"):
        if short.get_text().count("\n") <= 14:
            short["class"] = " ".join([*classes(short), "short"])


def _with_solutions(pages: list[Page]) -> Iterator[Page]:
    """The pages, and after the last chapter one of solutions for each chapter that has some."""
    last = max((k for k, page in enumerate(pages) if page.number), default=len(pages) - 1)
    for k, page in enumerate(pages):
        yield page
        if k == last:
            yield from filter(None, map(_solutions, pages))


def _solutions(page: Page) -> Page | None:
    """The solutions of a page, taken out of it; its exercises lead to them."""
    found = page.body.select("div.solution")
    if not found:
        return None
    title = f"Solutions to chapter {page.number}" if page.number else f"Solutions: {page.title}"
    soup = BeautifulSoup("", "html.parser")
    body = soup.new_tag("section", attrs={"id": f"solutions-{_name(page.key)}"})
    body.append(soup.new_tag("h1", string=title))
    for solution in found:
        body.append(solution.extract())
        _link_from_exercise(page, solution, soup)
    return Page(f"solutions/{page.key}", SOLUTIONS, title, "", body, page.pictures)


def _link_from_exercise(page: Page, solution: Tag, soup: BeautifulSoup) -> None:
    to = solution.select_one(".admonition-title a[data-to]")
    if to is None or not solution.get("id"):
        return
    exercise = page.body.find(id=place(page, text_of(to, "data-at")))
    if isinstance(exercise, Tag):
        href = f"#{text_of(solution, 'id')}"
        link = soup.new_tag("a", attrs={"href": href}, string="Solution")
        line = soup.new_tag("p", attrs={"class": "to-solution"})
        line.append(link)
        exercise.append(line)


# ---- formulas ----------------------------------------------------------------------------------


def _count_formulas(page: Page, formulas: list[Formula]) -> None:
    for tag in page.body.select(".math"):
        tag["data-formula"] = str(len(formulas))
        formulas.append(Formula(tex_of(tag), tag.name == "div", page.name))
