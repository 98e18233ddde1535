"""What is whole: each format is opened and held to the pages before it is published.

These are the checks of every run. ``release`` has those that take longer or need another program.
"""

from __future__ import annotations

import io
import json
import os
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from formats.notebooks import SOLUTION
from formats.pages import Book, FormatError, is_a, text_of, words
from formats.pdf import places

XHTML = "{http://www.w3.org/1999/xhtml}"
OPF = "{http://www.idpf.org/2007/opf}"
MATH = "{http://www.w3.org/1998/Math/MathML}math"
RAW_TEX = re.compile(r"\\[(\[]|\$\$|\\(?:frac|mathbb|begin)\b")
MARKDOWN_LINK = re.compile(r"(?<!\\)\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Contents:
    """What every format has to hold: of each page its heading and the labels of its boxes."""

    headings: Mapping[str, str]
    labels: Mapping[str, list[str]]
    exercises: int
    chapters: int

    @classmethod
    def of(cls, book: Book) -> Contents:
        """Read off the pages as they are on the site."""
        boxes = {page.name: [tag for tag in page.body.find_all("div", id=True)
                             if is_a(tag, "proof", "exercise")] for page in book.pages}  # fmt: skip
        return cls(
            {page.name: words(page.body.h1) for page in book.pages if page.body.h1},
            {name: [text_of(tag, "id") for tag in found] for name, found in boxes.items()},
            sum(is_a(tag, "exercise") for found in boxes.values() for tag in found),
            sum(bool(page.number) for page in book.pages),
        )


def refuse(format: str, faults: Iterator[str]) -> None:
    """Raise what is wrong with a format, the first ten.

    Raises:
        FormatError: if there is any fault.
    """
    found = list(faults)
    if found:
        more = f"\n… and {len(found) - 10} more" if len(found) > 10 else ""
        raise FormatError(f"{format}: " + f"\n{format}: ".join(found[:10]) + more)


# ---- PDF ---------------------------------------------------------------------------------------


def pdf(data: bytes, contents: Contents) -> Iterator[str]:
    """Faults of a PDF: pages, chapters, the outline, links."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data))
    if len(reader.pages) < 10 * contents.chapters:
        yield f"{len(reader.pages)} pages are too few for {contents.chapters} chapters"
    outline = {" ".join(title.split()) for title in _titles(reader.outline)}
    number = places(reader)
    for name, heading in contents.headings.items():
        if heading not in outline:
            yield f"{name}: its heading “{heading}” is not in the outline"
    for k, page in enumerate(reader.pages, 1):
        for link in (reference.get_object() for reference in page.get("/Annots", ())):
            target = str(link.get("/Dest", "")).lstrip("/")
            if target and target not in number:
                yield f"page {k}: a link leads to {target}, which is not there"
            if str(link.get("/A", {}).get("/URI", "")).startswith("file:"):
                yield f"page {k}: a link leads to a file of the machine that made it"


def _titles(outline: Any) -> Iterator[str]:
    for entry in outline:
        if isinstance(entry, list):
            yield from _titles(entry)
        else:
            yield str(entry.title)


# ---- EPUB --------------------------------------------------------------------------------------


def epub(data: bytes, contents: Contents) -> Iterator[str]:
    """Faults of an EPUB: its container, its pages, links, pictures and formulas."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    names = archive.namelist()
    if names[0] != "mimetype" or archive.read("mimetype") != b"application/epub+zip":
        yield "the container does not begin with its type"
    package = ET.fromstring(archive.read("EPUB/book.opf"))
    listed = {f"EPUB/{item.get('href')}" for item in package.iter(f"{OPF}item")}
    here = {name for name in names if name.startswith("EPUB/")} - {"EPUB/book.opf"}
    yield from (f"{name} is listed and not there" for name in sorted(listed - here))
    yield from (f"{name} is there and not listed" for name in sorted(here - listed))
    trees = {n: ET.fromstring(archive.read(n)) for n in sorted(here) if n.endswith(".xhtml")}
    ids = {n: {tag.get("id") for tag in tree.iter()} for n, tree in trees.items()}
    for name, tree in trees.items():
        yield from (f"{name}: {fault}" for fault in _faults_of_page(name, tree, ids, here))
    headings = {" ".join("".join(h.itertext()).split()) for tree in trees.values()
                for h in tree.iter(f"{XHTML}h1")}  # fmt: skip
    yield from (f"{n}: no “{h}”" for n, h in contents.headings.items() if h not in headings)
    if not any(True for tree in trees.values() for _ in tree.iter(MATH)):
        yield "no formula is MathML"


def _faults_of_page(
    name: str, tree: ET.Element, ids: Mapping[str, set[str | None]], here: set[str]
) -> Iterator[str]:
    for tag in tree.iter():
        href = tag.get("href", "")
        if tag.tag == f"{XHTML}a" and href and not re.match(r"[a-z]+:", href):
            path, _, anchor = href.partition("#")
            target = f"EPUB/{path}" if path else name
            if target not in here or anchor and anchor not in ids[target]:
                yield f"a link leads to {href}, which is not there"
        if tag.tag == f"{XHTML}img":
            if f"EPUB/{tag.get('src')}" not in here:
                yield f"the picture {tag.get('src')} is not there"
            if not tag.get("alt"):
                yield f"the picture {tag.get('src')} has no words"
    yield from (f"raw TeX: {text[:60]}" for text in prose(tree) if RAW_TEX.search(text))


def prose(tag: ET.Element) -> Iterator[str]:
    """The text of a tree outside code and formulas."""
    if tag.tag in (f"{XHTML}code", f"{XHTML}pre", f"{XHTML}head", MATH):
        return
    for child in tag:
        yield from prose(child)
        if child.tail:
            yield child.tail
    if tag.text:
        yield tag.text


# ---- Markdown ----------------------------------------------------------------------------------


def markdown(found: Mapping[str, str], contents: Contents) -> Iterator[str]:
    """Faults of the Markdown: pages, labels, links."""
    for name, labels in contents.labels.items():
        text = found.get(f"{name}.md", "")
        if not text.startswith("# ") and not text.startswith("<a id="):
            yield f"{name}: the page does not begin with its heading"
        yield from (
            f"{name}: no {label}" for label in labels if f'<a id="{label}"></a>' not in text
        )
    for name, text in found.items():
        for target in MARKDOWN_LINK.findall(_without_code(text)):
            path, _, anchor = unquote(target).partition("#")
            other = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
            if re.match(r"[a-z]+:", target):
                continue
            if other not in found or anchor and f'<a id="{anchor}"></a>' not in found[other]:
                yield f"{name}: a link leads to {target}, which is not there"


def _without_code(text: str) -> str:
    text = re.sub(r"^[> ]*(`{3,}).*?^[> ]*\1", "", text, flags=re.S | re.M)
    text = re.sub(r"\$\$.*?\$\$|(`+).+?\1", "", text, flags=re.S)
    return re.sub(r"(?<!\\)\$[^$]+\$", "", text)


# ---- notebooks ---------------------------------------------------------------------------------


def notebooks(with_them: bytes, without: bytes, contents: Contents) -> Iterator[str]:
    """Faults of the two archives: exercises in both, solutions in one."""
    for data, solutions in ((with_them, True), (without, False)):
        sources = list(cells(data))
        exercises = sum(bool(re.match(r"### Exercise \d", source)) for source, _ in sources)
        solved = sum(source.startswith(SOLUTION) for source, _ in sources)
        which = "with" if solutions else "without"
        if exercises != contents.exercises:
            yield f"{exercises} exercises {which} solutions, the book has {contents.exercises}"
        if solved != (contents.exercises if solutions else 0):
            yield f"{solved} solutions in the notebooks {which} solutions"
        if not solutions and any("solution" in tags for _, tags in sources):
            yield "a cell of a solution is left in the notebooks without solutions"


def cells(archive: bytes) -> Iterator[tuple[str, list[str]]]:
    """Source and tags of every cell of an archive."""
    opened = zipfile.ZipFile(io.BytesIO(archive))
    for name in opened.namelist():
        if name.endswith(".ipynb"):
            for cell in json.loads(opened.read(name))["cells"]:
                yield "".join(cell["source"]), cell["metadata"].get("tags", [])
