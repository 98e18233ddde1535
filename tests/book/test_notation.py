"""One meaning a symbol, and each on the notation page; each word of the glossary is led to."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from chapters import BOOK, CHAPTERS, prose
from symbols import everywhere, free, local, outside, symbols

NOTATION = (BOOK / "notation.md").read_text("utf-8")
GLOSSARY = (BOOK / "back" / "glossary.md").read_text("utf-8")
ENTRY = re.compile(r"^\((gloss-[\w-]+)\)=\n\*\*([^*]+)\.\*\* ", re.M)

each = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


@each
def test_every_symbol_of_a_chapter_is_on_the_notation_page(path: Path) -> None:
    """Those of its proofs, exercises and solutions apart, which say themselves what they mean."""
    own = {s for numbers, row in local(NOTATION) if path.name[:2] in numbers for s in row}
    used = symbols(outside(prose(path)))
    assert used - everywhere(NOTATION) - own - free(NOTATION) == set()


def test_a_symbol_has_one_meaning() -> None:
    """It stands in one row of one table, or is free."""
    of_chapters = Counter(s for _, row in local(NOTATION) for s in row)
    taken = everywhere(NOTATION) | free(NOTATION)
    assert [s for s, n in of_chapters.items() if n > 1 or s in taken] == []


@each
def test_a_symbol_of_one_chapter_is_used_there(path: Path) -> None:
    used = symbols(outside(prose(path)))
    assert [r for ns, r in local(NOTATION) if path.name[:2] in ns and not r <= used] == []


def test_the_glossary_is_in_order_and_each_entry_is_a_sentence() -> None:
    names = [name for _, name in ENTRY.findall(GLOSSARY)]
    assert names == sorted(names, key=str.lower)
    assert len(names) == len(re.findall(r"^\(", GLOSSARY, re.M))


def test_every_entry_of_the_glossary_is_led_to_from_a_chapter() -> None:
    words = "\n".join(prose(path) for path in CHAPTERS)
    assert [label for label, _ in ENTRY.findall(GLOSSARY) if f"({label})" not in words] == []
