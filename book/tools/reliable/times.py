"""What the book takes, beside what it should take. A time is told and is never a fault."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from reliable.record import ROOT, Found, Step

#: The seconds to reach, on two cores with nothing else to do.
BUILD, ALL, CHAPTER, TYPICAL = 60, 720, 60, 20
PAGE = 1_000_000  # bytes of a page, compressed
BUILT = "the book from its stored outputs"
BOOK = "from jupyter_book.cli.main import main; main()"  # with this Python, whatever is on the path
ELSEWHERE = "not measured here: make test (900 s to reach), make quick (120 s)"


def steps(site: Path, root: Path = ROOT) -> Iterator[Step]:
    """One step each for a build from nothing and for the size of the pages."""
    yield BUILT, partial(build, root)
    yield "size", partial(size, site)


def build(root: Path = ROOT) -> Found:
    """Build the book in a folder of its own, warnings as errors."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-c", BOOK, "build", str(root), "--path-output", folder]
        done = subprocess.run(
            [*call, "-W", "-n", "--keep-going", "-q"], cwd=root, capture_output=True, text=True
        )
    if done.returncode:
        return Found([f"the book is not built: {(done.stdout + done.stderr).strip()[-800:]}"])
    return Found()


def size(site: Path) -> Found:
    """The largest page, compressed as a server sends it."""
    sizes = {p: len(gzip.compress(p.read_bytes())) for p in site.rglob("*.html")}
    if not sizes:
        return Found(["there is no built book: run `make book`, which makes it"])
    largest = max(sizes, key=lambda p: sizes[p])
    told = f"{sizes[largest] / 1000:.0f} kB of at most {PAGE // 1000}: {largest.stem}"
    over = [f"{p.stem}: {n / 1000:.0f} kB" for p, n in sizes.items() if n > PAGE]
    return Found(over, [f"the largest page, compressed: {told}"])


def table(executed: Mapping[str, Found], built: Found | None) -> Iterator[str]:
    """Every time that was taken, with its target: of all, and of each notebook, slowest first."""
    yield "  seconds  computing  target  load"
    if built:
        yield _row(BUILT, built, BUILD)
    if executed:
        whole = Found(
            seconds=sum(f.seconds for f in executed.values()),
            computing=sum(f.computing for f in executed.values()),
        )
        yield _row(f"{len(executed)} notebooks executed", whole, ALL)
    for name, found in sorted(executed.items(), key=lambda item: -item[1].seconds):
        yield _row(name, found, CHAPTER)
    typical = sorted(f.seconds for f in executed.values())[len(executed) // 2 :][:1]
    yield from (f"{t:9.1f} {'':10}  {TYPICAL:6} {'':5}  the one in the middle" for t in typical)
    yield ELSEWHERE


def _row(what: str, found: Found, target: int) -> str:
    load = "" if found.load is None else f"{found.load:.1f}"
    over = "  over" if found.seconds > target else ""
    return f"{found.seconds:9.1f} {found.computing:10.1f}  {target:6} {load:>5}  {what}{over}"
