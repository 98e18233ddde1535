"""The book's prose as plain text: what sbnlib/datasets/prose.bz2 was made from, once.

    python book/tools/prose.py OUT.bz2

It is not run when the book is built: the file is frozen, so that a measurement on it stays one.
Taken are the front page, how to read the book, and the Markdown cells of chapters 1 to 20. Code,
tables and displayed formulas are left out; an inline formula becomes X, inline code Y, a number of
a figure or an equation N. Letters lose their accents, dashes and quotation marks become those of
ASCII, and whatever else is not in ALPHABET is dropped. A paragraph is a line.

Paragraphs are gathered, in order, into blocks of at least 2000 characters. Of ten blocks the fifth
goes to validation and the tenth to test, the other eight to train; within each part they keep their
order.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import re
import string
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
ALPHABET = string.ascii_letters + string.digits + " \n.,;:!?'\"()-/%+="
BLOCK, OF_TEN = 2000, {4: "validation", 9: "test"}
LAST = 20  # the chapters that were there
#: Directives whose text is prose; of all others nothing is taken.
PROSE = {"admonition", "dropdown", "exercise", "exercise-start", "hint", "important", "note",
         "solution", "solution-start", "tip", "warning", "seealso", "margin"}  # fmt: skip
DASHES = str.maketrans({"–": "-", "—": "-", "−": "-", "‑": "-", "“": '"', "”": '"', "’": "'",
                        "‘": "'", "×": "x", "…": "...", "\u00a0": " ", "\u202f": " "})  # fmt: skip
#: What is written -> what it becomes, in this order.
RULES = [
    (r"<!--.*?-->", ""),
    (r"\$\$.*?\$\$(\s*\([\w-]+\))?", " "),
    (r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", " "),
    (r"\{(?:cite|footcite)[:\w]*\}`[^`]*`", ""),
    (r"\{(?:numref|eq|prf:ref)\}`[^`]*`", "N"),
    (r"\{[\w:-]+\}`([^`<]*?)\s*<[^`]*>`", r"\1"),
    (r"\{(?:ref|doc)\}`[^`]*`", "N"),
    (r"\{[\w:-]+\}`([^`]*)`", r"\1"),
    (r"`[^`\n]+`", "Y"),
    (r"\$[^$]+\$", "X"),
    (r"!\[[^\]]*\]\([^)]*\)", ""),
    (r"\[([^\]]*)\]\([^)]*\)", r"\1"),
    (r"<[^>]+>", ""),
    (r"^\([\w-]+\)=$", ""),
    (r"^\s*(#+|[*+-]|\d+\.|>)\s+", ""),
    (r"[*_]{1,3}", ""),
]


def sources() -> list[Path]:
    """The pages, in the order of the book."""
    book = ROOT / "book"
    chapters = sorted(book.glob("[1-9]-*/[0-9][0-9]-*.ipynb"), key=lambda path: path.name)
    chapters = [path for path in chapters if int(path.name[:2]) <= LAST]
    return [book / "index.ipynb", book / "how-to.md", *chapters]


def markdown(path: Path) -> str:
    if path.suffix == ".md":
        return re.sub(r"\A---\n.*?\n---\n", "", path.read_text("utf-8"), flags=re.S)
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def without_directives(text: str) -> Iterator[str]:
    """The lines but for fences, options, and what stands in a directive that is no prose."""
    inside: list[tuple[str, bool]] = []
    options = False
    for line in text.split("\n"):
        fence = re.match(r"\s*(`{3,}|:{3,}|~{3,})\s*(?:\{([\w:-]+)\})?(.*)$", line)
        if fence and inside and fence[2] is None and fence[1][0] == inside[-1][0][0]:
            inside.pop()
        elif fence:
            inside.append((fence[1], fence[2] in PROSE or (fence[2] or "").startswith("prf:")))
            options = True
        elif options and re.match(r"\s*(:[\w-]+:.*|---)$", line):
            continue
        elif all(prose for _, prose in inside) and not line.lstrip().startswith("|"):
            options = False
            yield line


def paragraphs(path: Path) -> Iterator[str]:
    """The page's prose, a paragraph at a time, in the characters of ALPHABET."""
    text = "\n".join(without_directives(markdown(path)))
    for pattern, by in RULES:
        text = re.sub(pattern, by, text, flags=re.S | re.M)
    for paragraph in re.split(r"\n\s*\n", text):
        plain = unicodedata.normalize("NFKD", paragraph.translate(DASHES))
        words = "".join(c for c in plain if c in ALPHABET).split()
        line = re.sub(r"\s+([.,;:!?)])", r"\1", " ".join(words))
        if len(line) >= 20:  # what is shorter was a formula's rest
            yield line


def blocks(lines: Iterator[str]) -> Iterator[str]:
    held = ""
    for line in lines:
        held += f"{line}\n"
        if len(held) >= BLOCK:
            yield held
            held = ""
    if held:
        yield held


def parts() -> dict[str, str]:
    found = {"train": "", "validation": "", "test": ""}
    for k, block in enumerate(blocks(line for path in sources() for line in paragraphs(path))):
        found[OF_TEN.get(k % 10, "train")] += block
    return found


def main() -> None:
    content = json.dumps(parts(), indent=0).encode("ascii")
    Path(sys.argv[1]).write_bytes(bz2.compress(content))
    print({name: len(text) for name, text in json.loads(content).items()})
    print("sha256 of the content:", hashlib.sha256(content).hexdigest())


if __name__ == "__main__":
    main()
