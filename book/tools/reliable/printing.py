"""The stored outputs against new ones, three times: nbval, with the files in random orders.

The three runs differ in the order of the files, so that no notebook leans on what another has left,
and in what may not decide a printed number: the threads, and the instructions of the processor that
PyTorch uses. A kernel inherits the environment of its run.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import nbformat
from execute import ENVIRONMENT

from reliable.record import ROOT, Found, Step, clipped


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}


RUNS = {
    "one thread": _threads(1),
    "two threads": _threads(2),
    "plain instructions": _threads(1) | {"ATEN_CPU_CAPABILITY": "default"},
}
SUPPORT = ROOT / "tests" / "support"
COLOUR = re.compile(r"(?:\x1b|#x1B)\[\d*m")


def steps(paths: Iterable[Path], seed: int, jobs: int, root: Path = ROOT) -> Iterator[Step]:
    """One step for each run."""
    files = [p for p in paths if _has_code(p)]
    for name, environment in RUNS.items():
        shuffled = order(files, seed, name)
        yield name, lambda s=shuffled, e=environment: compare(s, e, jobs, root)  # type: ignore[misc]


def order(paths: Iterable[Path], seed: int, run: str) -> list[Path]:
    """The files in an order that the seed and the name of the run decide, and nothing else."""
    shuffled = sorted(paths)
    random.Random(f"{seed}, {run}").shuffle(shuffled)
    return shuffled


def _has_code(path: Path) -> bool:
    cells = nbformat.read(path, as_version=4).cells
    return any(c.cell_type == "code" and c.source.strip() for c in cells)


def compare(paths: Sequence[Path], given: dict[str, str], jobs: int, root: Path = ROOT) -> Found:
    """Run all cells of the files in this order, each twice, and name those that print other things.

    Args:
        paths: the notebooks; all cells of one run in one process.
        given: what the run has in its environment.
        jobs: how many processes; one runs the files one after another.
        root: where the paths that are told begin.
    """
    names = [p.relative_to(root).as_posix() for p in paths]
    told = ["the order: " + ", ".join(Path(name).stem for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        # What pytest says of its progress is not kept: a run takes minutes, and shows where it is.
        call = [*_command(report, jobs, root), *names]
        status = subprocess.run(call, cwd=root, env=environment(given)).returncode
        if status not in (0, 1) or not report.exists():
            return Found([f"nbval did not run: pytest ended with {status}"], told)
        ran, faults = read(report, root)
    faults += [f"{name}: none of its cells has run" for name in names if name not in ran]
    return Found(faults, [*told, f"{sum(ran.values())} cells, each once more from the last"])


def environment(given: dict[str, str]) -> dict[str, str]:
    """The book's environment, the library beside these tools first, and what the run is given."""
    book = {**os.environ, **ENVIRONMENT, "SBN_FIGURES": "ends"}
    book.pop("ATEN_CPU_CAPABILITY", None)
    first = [str(SUPPORT), str(ROOT)]
    path = os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH", "")])])
    return book | given | {"PYTHONPATH": path}


def _command(report: Path, jobs: int, root: Path) -> list[str]:
    """pytest as the project's settings call it, but without the conftest, which sets one thread."""
    call = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--noconftest"]
    call += ["-c", os.devnull, "--rootdir", str(root), "-p", "again", "--nbval"]
    call += ["--nbval-current-env", "--nbval-sanitize-with", str(SUPPORT / "nbval.cfg")]
    call += ["--junitxml", str(report), "--tb=no", "-rN", "-o", "junit_family=xunit1"]
    if jobs > 1:  # a notebook stays with its process, and the files keep their order
        call += ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"]
    return call


def read(report: Path, root: Path) -> tuple[dict[str, int], list[str]]:
    """How many cells of each file have run, and which of them are at fault, by number and id."""
    ran: dict[str, int] = {}
    faults = []
    for case in ET.parse(report).iter("testcase"):
        name = case.get("file", "")
        ran[name] = ran.get(name, 0) + (not case.get("name", "").endswith(", again"))
        problem = next((tag for tag in case if tag.tag in ("failure", "error")), None)
        if problem is not None:
            cell = _named(case.get("name", ""), root / name)
            faults.append(f"{name}, {cell}: {_told(problem)}")
    return ran, faults


def _named(cell: str, path: Path) -> str:
    """A cell as nbval calls it, "Cell 3, again", with its id: nbval counts cells of code alone."""
    number = re.match(r"Cell (\d+)", cell)
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    if not number or int(number[1]) >= len(cells):
        return cell
    return f"code {cell[:1].lower()}{cell[1:]} ({cells[int(number[1])].id})"


def _told(problem: ET.Element) -> str:
    """What nbval says of a cell without the cell and the colours: the first lines that differ."""
    text = COLOUR.sub("", problem.text or problem.get("message") or "")
    lines = [line.strip() for line in text.partition("Traceback:")[2].splitlines()]
    lines = [line for line in lines if line] or text.strip().splitlines()
    stored, now = ([x[2:] for x in lines if x.startswith(sign)] for sign in ("+ ", "- "))
    if not stored and not now:
        return clipped(" ".join(lines[:3]))
    return f"stored {clipped(' '.join(stored[:1]))!r}, now {clipped(' '.join(now[:1]))!r}"
