"""The book as an EPUB 3: a file a page, formulas as MathML, figures as SVG with their words.

The container is written by hand, since it is small: a list of files, the order to read them in, a
table of contents, and what a reader who does not see needs to know about the book.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import unicodedata
import uuid
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from bs4 import Tag

from formats.copies import Copy
from formats.pages import Book, FormatError, Page, text_of, title_of
from formats.pdf import css, file_of, pygments

LEFT_BY_MATHJAX = re.compile(r' (?:class|data-[\w-]+|aria-[\w-]+)="[^"]*"')
VARIANT = re.compile(r' mathvariant="(double-struck|script|fraktur|bold|monospace)">(\w+)')
LONE_PATH = re.compile(r"<path(?![^>]*\sd=)[^>]*/>|<path(?![^>]*\sd=)[^>]*></path>")
TYPES = {"svg": "image/svg+xml", "png": "image/png", "jpeg": "image/jpeg", "css": "text/css"}
CONTAINER = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="EPUB/book.opf" media-type="application/oebps-package+xml"/>'
    "</rootfiles></container>\n"
)
#: What the book offers to readers who do not see, hear or point; in the words of schema.org.
ACCESSIBILITY = [
    ("accessMode", "textual"),
    ("accessMode", "visual"),
    ("accessModeSufficient", "textual"),
    ("accessModeSufficient", "textual,visual"),
    *(("accessibilityFeature", name) for name in (
        "alternativeText", "MathML", "structuralNavigation", "tableOfContents", "readingOrder",
        "displayTransformability",
    )),
    ("accessibilityHazard", "none"),
    ("accessibilitySummary", "Formulas are MathML with their TeX as alternative text, every figure "
     "is described in words, and headings and the table of contents follow the structure."),
]  # fmt: skip


@dataclass(frozen=True)
class File:
    """A file of the container."""

    name: str
    data: bytes
    properties: str = ""

    @property
    def type(self) -> str:
        return TYPES.get(self.name.rpartition(".")[2], "application/xhtml+xml")


# ---- pages -------------------------------------------------------------------------------------


def file_name(page: Page) -> str:
    return f"{text_of(page.body, 'id')}.xhtml"


def files(copy: Copy, mathml: list[str], site: Path, cover: bytes) -> Iterator[File]:
    """Everything in the container but the list of it.

    Raises:
        FormatError: a page that is no XML, TeX that was not set; with its name.
    """
    style = "\n".join([css("book"), css("epub"), pygments(site)])
    yield File("style.css", style.encode())
    yield File("cover.png", cover, "cover-image")
    yield File("title.xhtml", wrapped(copy.book.title, _title(copy.book)).encode())
    yield File("nav.xhtml", navigation(copy.book).encode(), "nav")
    pictures: dict[str, File] = {}
    for page in copy.book.pages:
        yield _page(page, copy, mathml, site, pictures)
    yield from (pictures[name] for name in sorted(pictures))


def _page(page: Page, copy: Copy, mathml: list[str], site: Path, pictures: dict[str, File]) -> File:
    for image in page.body.select("img[data-picture]"):
        picture = picture_of(page, image, site)
        pictures[picture.name] = picture
        image["src"] = picture.name
        for name in ("data-picture", "class", "style", "width", "height"):
            del image[name]
    for link in page.body.select('a[href^="#"]'):
        target = text_of(link, "href")[1:]
        link["href"] = f"{file_name(copy.places[target])}#{target}"
    text = wrapped(page.heading, with_formulas(page, copy, mathml))
    check(page.name, text)
    return File(file_name(page), text.encode(), "mathml" if "<math" in text else "")


def with_formulas(page: Page, copy: Copy, mathml: list[str]) -> str:
    """A page as XHTML, with MathML in the place of its TeX."""
    for tag in page.body.select("[data-formula]"):
        k = int(text_of(tag, "data-formula"))
        for child in list(tag.children):
            if not (isinstance(child, Tag) and text_of(child, "class") == "eqno"):
                child.extract()
        tag.append(f"@@{k}@@")
        del tag["data-formula"]
    return re.sub(
        "@@(\\d+)@@",
        lambda m: formula(mathml[int(m[1])], copy.formulas[int(m[1])].tex),
        str(page.body),
    )


def formula(mathml: str, tex: str) -> str:
    """A formula without what MathJax notes for itself, and with its TeX as words."""
    text = VARIANT.sub(_lettered, LEFT_BY_MATHJAX.sub("", mathml))
    text = re.sub(r">\s+<", "><", text)
    return text.replace("<math ", f'<math alttext="{escape(tex)}" ', 1)


def _lettered(found: re.Match[str]) -> str:
    """Letters of another alphabet as the signs that Unicode has for them.

    Of ``mathvariant`` browsers, and the e-readers built on them, know "normal" only.
    """
    kind = found[1].upper()
    made = [_sign(kind, letter) for letter in found[2]]
    return f">{''.join(made)}" if all(made) else found[0]


def _sign(kind: str, letter: str) -> str:
    """The letter in an alphabet of mathematics; "" if there is none."""
    case = "CAPITAL" if letter.isupper() else "SMALL"
    name = unicodedata.name(letter).rpartition(" ")[2] if letter.isdigit() else letter.upper()
    for full in (f"MATHEMATICAL {kind} {case} {name}", f"{kind} {case} {name}",
                 f"MATHEMATICAL {kind} DIGIT {name}"):  # fmt: skip
        try:
            return unicodedata.lookup(full)
        except KeyError:
            continue
    return ""


def picture_of(page: Page, image: Tag, site: Path) -> File:
    """A picture of a page as a file, named by what is in it."""
    shown = page.pictures[int(text_of(image, "data-picture"))]
    if shown.svg:
        data, kind = LONE_PATH.sub("", shown.svg).encode(), "svg"
        check(f"{page.name}, a figure", data.decode())
    elif shown.source.startswith("data:image/"):
        head, _, packed = shown.source.partition(";base64,")
        data, kind = base64.b64decode(packed), head.removeprefix("data:image/")
    else:
        path = file_of(page, shown.source, site)
        data, kind = path.read_bytes(), path.suffix[1:]
    return File(f"pictures/{hashlib.sha256(data).hexdigest()[:12]}.{kind}", data)


def wrapped(title: str, body: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html>\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" '
        f'lang="en" xml:lang="en"><head><title>{escape(title)}</title>'
        '<link rel="stylesheet" type="text/css" href="style.css"/></head>'
        f"<body>{body}</body></html>\n"
    )


def check(name: str, text: str) -> None:
    """Refuse what is no XML."""
    try:
        ET.fromstring(text)
    except ET.ParseError as error:
        line = text.splitlines()[error.position[0] - 1]
        near = line[max(0, error.position[1] - 60) : error.position[1] + 20]
        raise FormatError(f"{name}: no XML ({error}): {near}") from error


# ---- the book around the pages -----------------------------------------------------------------


def _title(book: Book) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in (book.authors, *book.colophon))
    return (
        f'<section epub:type="titlepage"><h1>{escape(book.title)}</h1>'
        f"<p>{escape(book.subtitle)}</p>{lines}</section>"
    )


def navigation(book: Book) -> str:
    """The table of contents: parts, pages and their sections."""
    lines = ['<li><a href="title.xhtml">Title page</a></li>']
    for part, found in groupby(book.pages, key=lambda page: page.part):
        inside = "".join(map(_entry, found))
        lines.append(f"<li><span>{escape(part)}</span><ol>{inside}</ol></li>" if part else inside)
    first = file_name(next((p for p in book.pages if p.number), book.pages[0]))
    return wrapped(
        "Contents",
        f'<nav epub:type="toc" id="toc"><h1>Contents</h1><ol>{"".join(lines)}</ol></nav>'
        '<nav epub:type="landmarks" id="landmarks" hidden=""><h2>Landmarks</h2><ol>'
        '<li><a epub:type="toc" href="nav.xhtml#toc">Contents</a></li>'
        f'<li><a epub:type="bodymatter" href="{first}">First chapter</a></li></ol></nav>',
    )


def _entry(page: Page) -> str:
    file = file_name(page)
    sections = [
        f'<li><a href="{file}#{text_of(s, "id")}">{escape(title_of(s.h2))}</a></li>'
        for s in page.body.find_all("section", recursive=False) if s.h2 and s.get("id")
    ]  # fmt: skip
    inside = f"<ol>{''.join(sections)}</ol>" if sections else ""
    return f'<li><a href="{file}">{escape(page.heading)}</a>{inside}</li>'


def package(book: Book, found: Iterable[File]) -> str:
    """The list of files, the order to read them in, and what the book is."""
    found = list(found)
    about = uuid.uuid5(uuid.NAMESPACE_URL, f"{book.title} {book.version} {book.date}")
    names = {file.name: f"i{k}" for k, file in enumerate(found)}
    items = "\n".join(_item(file, names[file.name]) for file in found)
    order = ["title.xhtml", "nav.xhtml", *map(file_name, book.pages)]
    spine = "".join(f'<itemref idref="{names[name]}"/>' for name in order)
    schema = "\n".join(f'<meta property="schema:{k}">{escape(v)}</meta>' for k, v in ACCESSIBILITY)
    day = book.date or "2000-01-01"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id" xml:lang="en"
 prefix="schema: http://schema.org/">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:identifier id="id">urn:uuid:{about}</dc:identifier>
<dc:title>{escape(book.title)}: {escape(book.subtitle)}</dc:title>
<dc:creator>{escape(book.authors)}</dc:creator>
<dc:language>en</dc:language>
<dc:date>{day}</dc:date>
<dc:rights>Text and figures CC BY 4.0, code MIT</dc:rights>
<meta property="dcterms:modified">{day}T00:00:00Z</meta>
<meta name="cover" content="{names["cover.png"]}"/>
{schema}
</metadata>
<manifest>
{items}
</manifest>
<spine>{spine}</spine>
</package>
"""


def _item(file: File, name: str) -> str:
    properties = f' properties="{file.properties}"' if file.properties else ""
    return f'<item id="{name}" href="{file.name}" media-type="{file.type}"{properties}/>'


def epub(copy: Copy, mathml: list[str], site: Path, cover: bytes) -> bytes:
    """The whole container. The pages of ``copy`` are rewritten.

    Raises:
        FormatError: as ``files``.
    """
    found = list(files(copy, mathml, site, cover))
    made = {"META-INF/container.xml": CONTAINER.encode(),
            "EPUB/book.opf": package(copy.book, found).encode(),
            **{f"EPUB/{file.name}": file.data for file in found}}  # fmt: skip
    return zipped({"mimetype": b"application/epub+zip", **made})


def zipped(found: dict[str, bytes]) -> bytes:
    """A zip archive that knows no day; the type of an EPUB, its first file, is not compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in found.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    return out.getvalue()
