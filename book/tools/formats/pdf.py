"""The whole book as one PDF: title page, contents with page numbers, chapters, solutions.

The browser prints one file, so that its page numbers run through, links between chapters are links
of the PDF, and the tags for screen readers are of one piece. What it cannot know beforehand, on
which page something is, is written onto the contents page afterwards.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup

from formats import packing, pages
from formats.copies import Copy
from formats.pages import Book, FormatError, Page, text_of

HERE = Path(__file__).parent
MATHJAX = (
    '{"options": {"enableMenu": false, "enableAssistiveMml": false, "ignoreHtmlClass": "plain", '
    '"processHtmlClass": "math", "renderActions": {"assistiveMml": []}}, '
    '"chtml": {"displayAlign": "center", "matchFontHeight": false}}'
)


# ---- the file that is printed ------------------------------------------------------------------


def html(copy: Copy, site: Path) -> str:
    """The book as one page for the browser."""
    static = (site / "_static").as_uri()
    styles = "\n".join([fonts(static), pygments(site), *(css(n) for n in ("book", "print"))])
    body = "\n".join([title_page(copy.book), contents(copy.book), *articles(copy, site)])
    heads = "".join(_running_head(page) for page in copy.book.pages)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(copy.book.title)}</title><style>{styles}\n{heads}</style>"
        f"<script>window.MathJax = {MATHJAX}</script>"
        f'<script defer src="{static}/mathjax/tex-chtml.js"></script></head>'
        f'<body class="plain">{body}</body></html>'
    )


def css(name: str) -> str:
    return (HERE / f"{name}.css").read_text("utf-8")


def pygments(site: Path) -> str:
    """The colours of code, of the light theme."""
    text = (site / "_static" / "pygments.css").read_text("utf-8")
    light = re.findall(r'^html\[data-theme="light"\] (\.highlight \..*)$', text, re.M)
    return "\n".join(light)


def fonts(static: str) -> str:
    """The site's own fonts, by their address."""
    text = (pages.ROOT / "book" / "assets" / "sbn.css").read_text("utf-8")
    faces = re.findall(r"^@font-face .*$", text, re.M)
    return "\n".join(face.replace("fonts/", f"{static}/fonts/") for face in faces)


def _running_head(page: Page) -> str:
    words = page.heading.replace("\\", "").replace('"', "'")
    return (
        f"@page {_page_name(page)} {{ @top-left {{ content: \"{words}\"; "
        "font: 8.5pt Inter, sans-serif; color: #565f69; } }\n"
        f".{_page_name(page)} {{ page: {_page_name(page)}; }}\n"
    )  # fmt: skip


def _page_name(page: Page) -> str:
    return f"page-{text_of(page.body, 'id')}"


def title_page(book: Book) -> str:
    logo = (pages.ROOT / "book" / "assets" / "logo.svg").read_text("utf-8")
    small = "".join(f'<p class="small">{escape(line)}</p>' for line in book.colophon)
    return (
        f'<section id="title-page">{logo[logo.index("<svg") :]}<h1>{escape(book.title)}</h1>'
        f'<p class="subtitle">{escape(book.subtitle)}</p><p>{escape(book.authors)}</p>'
        f"{small}</section>"
    )


def contents(book: Book) -> str:
    lines, part = [], ""
    for page in book.pages:
        if page.part != part:
            part = page.part
            lines.append(f'<li class="part" style="border:0">{escape(part)}</li>')
        to = text_of(page.body, "id")
        lines.append(f'<li><a href="#{to}">{escape(page.heading)}</a></li>')
    return f'<article id="contents"><h1>Contents</h1><ol>{"".join(lines)}</ol></article>'


def articles(copy: Copy, site: Path) -> Iterator[str]:
    part = ""
    for page in copy.book.pages:
        above = f'<p class="part">{escape(page.part)}</p>' if page.part != part else ""
        part = page.part
        yield (
            f'<article class="{_page_name(page)}" data-page="{escape(page.name)}">{above}'
            f"{with_pictures(page, site)}</article>"
        )


def with_pictures(page: Page, site: Path) -> str:
    """A page as HTML, with its pictures in it."""
    text = str(page.body)

    def picture(found: re.Match[str]) -> str:
        tag = BeautifulSoup(found[0], "html.parser").img
        shown = page.pictures[int(text_of(tag, "data-picture"))] if tag else None
        if shown is None:
            return found[0]
        if shown.svg:
            label = f'<svg role="img" aria-label="{escape(shown.alt)}"'
            return re.sub(
                r"<svg\b",
                label,
                re.sub(r' (role|aria-label)="[^"]*"', "", shown.svg, count=2),
                count=1,
            )
        source = (
            shown.source
            if shown.source.startswith("data:")
            else file_of(page, shown.source, site).as_uri()
        )
        return f'<img src="{source}" alt="{escape(shown.alt)}">'

    return re.sub(r"<img\b[^>]*data-picture[^>]*>", picture, text)


def file_of(page: Page, source: str, site: Path) -> Path:
    """A file of the site that a page shows."""
    path = (site / page.name).parent / source
    if not path.exists():
        raise FormatError(f"{page.name}: its picture {source} is not there")
    return path.resolve()


# ---- what is printed ---------------------------------------------------------------------------

GREY = 0.34
SIZE = 9.5
DIGIT = 0.556  # the width of a digit of Helvetica


def finished(printed: bytes, copy: Copy) -> bytes:
    """The PDF with the page numbers in its contents, and nothing of the day in it."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(printed))
    objects = packing.objects(printed)
    number = places(reader)
    info, font = max(objects) + 1, max(objects) + 2
    objects[info] = _about(copy.book)
    objects[font] = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    for page in contents_pages(reader, copy.book, number):
        _number(objects, page, number, font)
    del objects[reader.trailer.raw_get("/Info").idnum]
    return packing.pack(objects, packing.root_of(printed), info)


def places(document: Any) -> dict[str, int]:
    """Every place that links lead to, and the page that it is on, counted from 1."""
    index = {page.indirect_reference.idnum: k for k, page in enumerate(document.pages, 1)}
    return {
        name.lstrip("/"): index[target.dest_array[0].idnum]
        for name, target in document.named_destinations.items()
    }


def contents_pages(document: Any, book: Book, number: Mapping[str, int]) -> list[Any]:
    """The pages of the contents: those between the title and the first page."""
    first = number[text_of(book.pages[0].body, "id")]
    return list(document.pages[1 : first - 1])


def _number(objects: dict[int, bytes], page: Any, number: Mapping[str, int], font: int) -> None:
    """Write the number of its page beside every line of a page of contents."""
    from pypdf.generic import ArrayObject, IndirectObject, NameObject

    drawn = f"Q /Artifact BMC BT /Numbers {SIZE} Tf {GREY} g {_numbers(page, number)} ET EMC"
    before, after = max(objects) + 1, max(objects) + 2
    objects[before] = packing.stream(b"q")
    objects[after] = packing.stream(drawn.encode("ascii"))
    raw = page.raw_get("/Contents")
    parts = list(raw) if isinstance(raw, list) else [raw]
    around = [IndirectObject(n, 0, page.pdf) for n in (before, after)]
    page[NameObject("/Contents")] = ArrayObject([around[0], *parts, around[1]])
    fonts = page["/Resources"]["/Font"]
    fonts[NameObject("/Numbers")] = IndirectObject(font, 0, page.pdf)
    out = io.BytesIO()
    page.write_to_stream(out)
    objects[page.indirect_reference.idnum] = out.getvalue()


def _numbers(page: Any, number: Mapping[str, int]) -> str:
    lines = []
    for link in (reference.get_object() for reference in page.get("/Annots", ())):
        found = number[str(link["/Dest"]).lstrip("/")]
        right, bottom = float(link["/Rect"][2]), float(link["/Rect"][1])
        x = right - DIGIT * SIZE * len(str(found))
        lines.append(f"1 0 0 1 {x:.2f} {bottom + 3.4:.2f} Tm ({found}) Tj")
    return " ".join(lines)


def _about(book: Book) -> bytes:
    """What a reader of PDF shows of the document; the date is that of the sources."""
    day = f"(D:{book.date.replace('-', '')}000000Z)".encode()
    said = {
        "Title": f"{book.title}: {book.subtitle}",
        "Author": book.authors,
        "Subject": f"Version {book.version}",
        "Creator": "make formats",
        "Producer": "Chromium",
    }
    lines = [b"/%s <FEFF%s>" % (k.encode(), v.encode("utf-16-be").hex().encode())
             for k, v in said.items()]  # fmt: skip
    if book.date:
        lines += [b"/CreationDate " + day, b"/ModDate " + day]
    return b"<< " + b" ".join(lines) + b" >>"
