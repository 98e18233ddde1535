"""What was done and found, written as it comes, so that a run that was stopped can go on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
#: What decides what a notebook prints and what a page links to.
SOURCES = ("book", "sbnlib", "tests/support", "_toc.yml", "_config.yml", "requirements.txt")
MADE = {"__pycache__", ".ipynb_checkpoints"}


@dataclass
class Found:
    """What one step has found: what is wrong, and what is only said; and what it took.

    ``load`` is the mean number of running processes of the last minute when the step ended, or
    nothing where the system does not count them; ``computing`` the seconds of processors in the
    programs that the step has started and ended.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    computing: float = 0.0
    load: float | None = None


Step = tuple[str, Callable[[], Found]]


def clipped(text: str, length: int = 300) -> str:
    """The beginning of a text that is too long to be told."""
    return text if len(text) <= length else f"{text[:length]} …"


def load() -> float | None:
    """The load average of the last minute; nothing where there is none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def timed(step: Callable[[], Found]) -> Found:
    """Do a step, and note what it took."""
    begin, before = time.perf_counter(), _computing()
    found = step()
    found.seconds = round(time.perf_counter() - begin, 1)
    found.computing, found.load = round(_computing() - before, 1), load()
    return found


def _computing() -> float:
    times = os.times()
    return times.children_user + times.children_system


def digest(chosen: Iterable[Path], root: Path = ROOT) -> str:
    """The sources and the choice of notebooks as one number: what was found holds for these."""
    made = hashlib.sha256("\n".join(map(str, chosen)).encode())
    for path in sorted(_files(root)):
        made.update(path.relative_to(root).as_posix().encode() + b"\0")
        made.update(hashlib.sha256(path.read_bytes()).digest())
    return made.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for name in SOURCES:
        found = (root / name).rglob("*") if (root / name).is_dir() else [root / name]
        yield from (p for p in found if p.is_file() and not MADE & set(p.parts))


class Record:
    """The steps that are done, in a file."""

    def __init__(self, path: Path, sources: str, seed: int, *, resume: bool) -> None:
        """Begin anew, or with what is in the file if it was found in the same sources."""
        self.path, self.sources, self.seed = path, sources, seed
        self.done: dict[str, Found] = {}
        if resume and path.exists():
            before = json.loads(path.read_text("utf-8"))
            if before["sources"] == sources:
                self.seed = before["seed"]
                self.done = {name: Found(**found) for name, found in before["done"].items()}

    def add(self, name: str, found: Found) -> None:
        """Note a step, and write everything."""
        self.done[name] = found
        done = {name: asdict(found) for name, found in self.done.items()}
        text = json.dumps({"sources": self.sources, "seed": self.seed, "done": done}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(text + "\n", "utf-8")
        os.replace(part, self.path)
