"""The pages of the built site, as trees that the formats rewrite.

A page is its article without what needs a browser at work: scripts, sliders, the stored frames of a
live figure but the one that it starts with. Pictures are taken out first, as they are written: a
parser of HTML would lose the capital letters that SVG needs.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path

import yaml
from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString

ROOT = Path(__file__).resolve().parents[3]
SITE = ROOT / "_build" / "html"

ARTICLE = re.compile(r'<article class="bd-article">(.*?)</article>', re.S)
NOTE = re.compile(r'<noscript><p class="sbn-note">(Shown: .*?)\. The sliders.*?</noscript>', re.S)
LEFT_OUT = re.compile(r"<(script|style|noscript)\b.*?</\1>", re.S)
SVG = re.compile(r"<svg\b(?P<attributes>[^>]*)>.*?</svg>", re.S)
LABEL = re.compile(r'aria-label="([^"]*)"')
FORMULA = re.compile(r"\\\((.*?)\\\)", re.S)
#: What ``publish`` puts around the name of a download on the front page.
LINKED = re.compile(
    rb'<a class="sbn-download" href="[^"]*">(.*?)</a><span class="sbn-size">[^<]*</span>', re.S
)
#: What Sphinx puts behind the name of a script whose file is in the site already: a first build
#: makes some files only after the pages, and the same pages come out without it.
VERSION = re.compile(rb"\?v=[0-9a-f]+")
CHAPTER = re.compile(r"/(\d\d)-[^/]+$")
#: Only of use on a screen: links to a heading itself, sliders, fields for an answer, ways to fold.
FOR_THE_SCREEN = (
    "a.headerlink, .sbn-panel, .sbn-check, details.hide > summary, .sd-summary-state-marker,"
    " .toctree-wrapper, .sbn-swatch, p.sbn-without"
)
#: The look of the map on the front page, which the site has in its own style sheet.
MAP_STYLE = (
    "<style>.sbn-paths-map text{font:15px sans-serif}.sbn-node text{text-anchor:middle}"
    ".sbn-edges path{stroke:#666;fill:none;marker-end:url(#sbn-arrow)}marker path{fill:#666}"
    "circle{fill:#f2f2f2;stroke:#666}.sbn-written circle{fill:#0072b2}.sbn-written text{fill:#fff}"
    "</style>"
)


class FormatError(Exception):
    """A format cannot be made; says which, on which page, and why."""


@dataclass(frozen=True)
class Picture:
    """A picture of a page: SVG as text, or the name of a file of the site or its data."""

    alt: str
    svg: str = ""
    source: str = ""


@dataclass
class Page:
    """One page of the book.

    ``name`` is its path on the site without the ending, ``part`` the caption of its part,
    ``number`` that of its chapter or "", ``body`` its outermost section.
    """

    name: str
    part: str
    title: str
    number: str
    body: Tag
    pictures: list[Picture] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The name as one word, for files and for ids."""
        return self.name.removeprefix("book/").replace("/", "-")

    @property
    def heading(self) -> str:
        return f"{self.number}. {self.title}" if self.number else self.title


@dataclass
class Book:
    """All pages, in the order of the table of contents."""

    title: str
    subtitle: str
    version: str
    date: str
    authors: str
    pages: list[Page]

    @property
    def colophon(self) -> tuple[str, str]:
        """The version and the licences, and what a copy on paper leaves out and where that is."""
        day = f", {self.date}" if self.date else ""
        return (
            f"Version {self.version}{day}. Text and figures under CC BY 4.0, code under the MIT "
            "licence.",
            "Each live figure stands here as it opens; on the site its sliders move. Folded proofs "
            "are open, solutions stand behind the last chapter, and the code of figures and "
            "checkers is in the notebooks.",
        )

    def page(self, name: str) -> Page | None:
        return next((p for p in self.pages if p.name == name), None)


# ---- reading -----------------------------------------------------------------------------------


def table_of_contents(root: Path = ROOT) -> list[tuple[str, str]]:
    """The name of every page and the caption of its part, in order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    parts = [(c["file"], part["caption"]) for part in toc["parts"] for c in part["chapters"]]
    return [(toc["root"], ""), *parts]


def read(site: Path = SITE, root: Path = ROOT) -> Book:
    """The book as it was built.

    Raises:
        FormatError: there is no built book, or a page of it is missing or is no page.
    """
    if not (site / "index.html").exists():
        raise FormatError(f"there is no built book in {site}: run `make book`, which makes it")
    citation = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    title, _, subtitle = citation["title"].partition(": ")
    pages = [page(site, name, part) for name, part in table_of_contents(root)]
    authors = ", ".join(_author(a) for a in citation["authors"])
    subtitle = subtitle[:1].upper() + subtitle[1:]
    return Book(title, subtitle, str(citation["version"]), date_of(root), authors, pages)


def _author(entry: dict[str, str]) -> str:
    return entry.get("name") or f"{entry['given-names']} {entry['family-names']}"


def date_of(root: Path = ROOT) -> str:
    """The day of the sources as YYYY-MM-DD: the same sources give the same book.

    SOURCE_DATE_EPOCH decides if it is set, then the last commit; "" where there is neither.
    """
    if epoch := os.environ.get("SOURCE_DATE_EPOCH", ""):
        return time.strftime("%Y-%m-%d", time.gmtime(int(epoch)))
    command = ["git", "-C", str(root), "log", "-1", "--format=%cs"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def page(site: Path, name: str, part: str = "") -> Page:
    """One page of the site, made ready."""
    path = site / f"{name}.html"
    found = ARTICLE.search(path.read_text("utf-8")) if path.exists() else None
    if found is None:
        raise FormatError(f"{name}: the built site has no such page; run `make book`")
    pictures: list[Picture] = []
    html = NOTE.sub(r'<p class="sbn-shown">\1.</p>', found[1])
    html = _lift_pictures(LEFT_OUT.sub("", html), pictures)
    body = BeautifulSoup(html, "html.parser").find("section")
    if not isinstance(body, Tag) or body.h1 is None:
        raise FormatError(f"{name}: the page has no heading")
    tidy(body)
    _number_images(body, pictures)
    number = CHAPTER.search(name)
    title = re.sub(r"^[\d.]+ ", "", " ".join(body.h1.get_text().split()))
    return Page(name, part, title, str(int(number[1])) if number else "", body, pictures)


def _lift_pictures(html: str, pictures: list[Picture]) -> str:
    """Every SVG noted down, and an image in its place."""

    def lift(found: re.Match[str]) -> str:
        own = LABEL.search(found["attributes"])
        around = LABEL.findall(html[max(0, found.start() - 1500) : found.start()])
        alt = unescape(own[1] if own else around[-1] if around else "")
        pictures.append(Picture(alt, svg=standing_alone(found[0])))
        return f'<img data-picture="{len(pictures) - 1}" alt="{escape(alt)}">'

    return SVG.sub(lift, html)


def standing_alone(svg: str) -> str:
    """An SVG that needs nothing of the page: its name space, no links, the look of the map."""
    if "xmlns=" not in svg[: svg.index(">")]:
        svg = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    if "sbn-edges" in svg:
        svg = svg.replace("<svg", '<svg class="sbn-paths-map"', 1).replace(">", f">{MAP_STYLE}", 1)
    svg = re.sub(r'<a class="sbn-written"[^>]*>', '<g class="sbn-written">', svg)
    return svg.replace("</a>", "</g>").replace('role="group"', 'role="img"', 1)


def _number_images(body: Tag, pictures: list[Picture]) -> None:
    """The images that are no SVG of the page join its pictures."""
    for image in body.select("img:not([data-picture])"):
        image["data-picture"] = str(len(pictures))
        pictures.append(Picture(text_of(image, "alt"), source=text_of(image, "src")))


def tidy(body: Tag) -> None:
    """Leave out what is for the screen, and mark formulas that only MathJax would have found."""
    for tag in body.select(FOR_THE_SCREEN):
        tag.decompose()
    for frame in body.select(".sbn-frame"):
        for image in frame.find_all("img"):
            image["alt"] = text_of(image, "alt") or text_of(frame, "aria-label")
        frame.unwrap()
    for text in body.find_all(string=FORMULA):
        if not text.find_parent(class_="math") and not text.find_parent(["pre", "code"]):
            text.replace_with(*list(_formulas(str(text))))


def _formulas(text: str) -> Iterator[Tag | NavigableString]:
    soup = BeautifulSoup("", "html.parser")
    for k, part in enumerate(FORMULA.split(text)):
        if k % 2:
            yield soup.new_tag("span", attrs={"class": "math"}, string=rf"\({part}\)")
        elif part:
            yield NavigableString(part)


# ---- small questions to a tag ------------------------------------------------------------------


def text_of(tag: Tag, attribute: str) -> str:
    """An attribute as one text; "" if the tag has none."""
    value = tag.get(attribute)
    return value if isinstance(value, str) else " ".join(value or ())


def classes(tag: Tag) -> list[str]:
    return text_of(tag, "class").split()


def is_a(tag: Tag, *names: str) -> bool:
    """Whether the tag has one of the classes."""
    return not set(names).isdisjoint(classes(tag))


def words(tag: Tag) -> str:
    """The text of a tag on one line."""
    return " ".join(tag.get_text().split())


def title_of(tag: Tag) -> str:
    """The text of a heading where no formula can be set: a letter for its TeX."""
    return re.sub(r"\\(?:[()]|mathbb|mathrm|operatorname)|[{}$]", "", words(tag))


def tex_of(tag: Tag) -> str:
    """The TeX of a formula, without its delimiters and its number."""
    text = "".join(str(s) for s in tag.find_all(string=True) if not s.find_parent(class_="eqno"))
    return re.sub(r"^\\[\[(]|\\[\])]$", "", text.strip()).strip()


def link_of(page: Page, href: str) -> tuple[str, str]:
    """Where a link of a page leads: the name of a page and an id in it, or the link and "".

    A name begins with the folder of the book; whatever else is returned is an address outside.
    """
    if re.match(r"[a-z]+:", href):
        return href, ""
    path, _, anchor = href.partition("#")
    if not path:
        return page.name, anchor
    folder = os.path.dirname(page.name)
    return os.path.normpath(os.path.join(folder, path)).removesuffix(".html"), anchor


def digest(site: Path = SITE, root: Path = ROOT) -> str:
    """What the formats are made from, as one number: the site, the copies, the tools, the day."""
    made = hashlib.sha256(date_of(root).encode())
    static = (p for p in (site / "_static").rglob("*") if "tippy" not in p.parts)
    copies, tools = (site.parent / "lab").rglob("*.ipynb"), Path(__file__).parent.glob("*.*")
    found = [root / "_toc.yml", root / "CITATION.cff", *site.glob("book/**/*.html"), *static]
    found += [*copies, *tools]
    for path in sorted(p for p in found if p.is_file()):
        data = path.read_bytes()
        data = VERSION.sub(b"", data) if path.suffix == ".html" else data
        made.update(f"{path.name}\0".encode())
        made.update(LINKED.sub(rb"\1", data) if path.name == "index.html" else data)
    return made.hexdigest()
