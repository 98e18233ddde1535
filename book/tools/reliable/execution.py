"""Every notebook executed again, in a copy: the file comes out as it is stored, byte for byte."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import execute

from reliable.record import ROOT, Found, Step, clipped

#: How much of a line is told before and after the place where it differs.
BEFORE, AFTER = 30, 60
#: A line of an output; one of the code is preceded by more than the quotation mark.
MEASURED = re.compile(rb'^( *")on this machine: (?:[^"\\]|\\.)*', re.M)


def steps(paths: Iterable[Path], root: Path = ROOT) -> Iterator[Step]:
    """One step for each notebook."""
    for path in paths:
        yield path.relative_to(root).as_posix(), lambda p=path: compare(p, root)  # type: ignore[misc]


def compare(path: Path, root: Path = ROOT) -> Found:
    """Execute a copy of a notebook, and say where it differs from the file.

    The copy stands inside the book's own folder: a notebook looks for measurements from where it
    stands upwards.
    """
    name, made = path.relative_to(root).as_posix(), root / "_build"
    made.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="executed-", dir=made) as folder:
        copy = Path(folder, path.name)
        shutil.copy(path, copy)
        try:
            execute.execute(copy)
        except execute.NotebookError as error:
            return Found([f"{name}: {clipped(str(error), 600)}"])
        told = difference(path.read_bytes(), copy.read_bytes())
    return Found([f"{name}, {told}"] if told else [])


def difference(stored: bytes, now: bytes) -> str:
    """The first place where two files of a notebook differ; "" if they are the same.

    What a cell measures of its machine, lines that begin so, is not compared: nbval.cfg has the
    same rule.
    """
    stored, now = (MEASURED.sub(rb"\1", data) for data in (stored, now))
    if stored == now:
        return ""
    cells = (json.loads(data)["cells"] for data in (stored, now))
    for k, (old, new) in enumerate(zip_longest(*cells, fillvalue={})):
        if old != new:
            return (
                f"cell {k} ({old.get('id') or new.get('id')}): {_first(_lines(old), _lines(new))}"
            )
    old_lines, new_lines = (data.decode("utf-8").splitlines() for data in (stored, now))
    told = _first(old_lines, new_lines) if old_lines != new_lines else "it ends otherwise"
    return f"no cell, but the file: {told}"


def _lines(cell: dict[str, Any]) -> list[str]:
    return json.dumps(cell, indent=1, ensure_ascii=False).splitlines()


def _first(old: list[str], new: list[str]) -> str:
    """The first lines that differ, around the first letter that does."""
    pairs = zip_longest(old, new, fillvalue="")
    before, after = next(((a, b) for a, b in pairs if a != b), ("", ""))
    place = next((k for k, (a, b) in enumerate(zip_longest(before, after)) if a != b), 0)
    part = slice(max(0, place - BEFORE), place + AFTER)
    return f"stored {before[part].strip()!r}, now {after[part].strip()!r}"
