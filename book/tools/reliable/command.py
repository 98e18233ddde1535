"""Hold the whole book to what a release promises: the same everywhere, whole, and quick.

    python book/tools/reliable                     all four parts, after `make book`
    python book/tools/reliable --part links        one part; again for more
    python book/tools/reliable --resume            go on where a run of the same sources stopped

notebooks   what is stored against what is printed: nbval three times, with the files in random
            orders, on one thread, on two, and without the instructions of newer processors
execution   each notebook executed in a copy, which must be the file byte for byte
links       pages, documents and other forms: every link and anchor; other hosts if they answer
times       a build from nothing, and what the executions took, beside the times to reach

The report at the end says of each part what was run and what was found. The exit status is 1 if
there is a fault; a time is none. The orders come from --seed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import execute

from reliable import execution, links, printing, times
from reliable.record import ROOT, Found, Record, Step, digest, timed

PARTS = ("links", "notebooks", "execution", "times")
SITE = ROOT / "_build" / "html"
RECORD = ROOT / "_build" / "reliable.json"
LISTED = ROOT / "_build" / "other-hosts.txt"


def steps(part: str, seed: int, jobs: int, chosen: list[Path]) -> Iterator[Step]:
    """The steps of a part, in order."""
    if part == "notebooks":
        return printing.steps(chosen, seed, jobs)
    if part == "execution":
        return execution.steps(chosen)
    return links.steps(SITE, listed=LISTED) if part == "links" else times.steps(SITE)


def go(parts: Iterable[str], record: Record, jobs: int, chosen: list[Path]) -> None:
    """Do every step that the record does not have yet, and tell it."""
    for part in parts:
        for name, step in steps(part, record.seed, jobs, chosen):
            key = f"{part}: {name}"
            if key not in record.done:
                record.add(key, timed(step))
            print(*lines(key, record.done[key]), sep="\n", flush=True)


def lines(key: str, found: Found) -> Iterator[str]:
    """One step as text."""
    state = f"{len(found.faults)} at fault" if found.faults else "in order"
    if not found.faults and any(note.startswith("not tried") for note in found.notes):
        state = "not tried"
    load = "" if found.load is None else f", load {found.load}"
    yield f"{key}: {state}   ({found.seconds} s{load})"
    yield from (f"    {note}" for note in found.notes)
    yield from (f"    FAULT  {fault}" for fault in found.faults)


def report(parts: Iterable[str], record: Record) -> Iterator[str]:
    """What each part has run and found, and the times."""
    yield f"\nThe report (seed {record.seed})"
    for part in parts:
        mine = {k: f for k, f in record.done.items() if k.startswith(f"{part}: ")}
        faults = [fault for f in mine.values() for fault in f.faults]
        missed = [f"{k.partition(': ')[2]}, {note}" for k, f in mine.items()
                  for note in f.notes if note.startswith("not tried")]  # fmt: skip
        yield f"{part}: {len(mine)} steps, {len(faults)} faults"
        yield from (f"    {text}" for text in [*missed, *faults])
    done = {k.partition(": ")[2]: f for k, f in record.done.items() if k.startswith("execution: ")}
    yield from times.table(done, record.done.get(f"times: {times.BUILT}"))


def whole(number: str) -> int:
    """A number of processes from the command line."""
    if (count := int(number)) < 1:
        raise argparse.ArgumentTypeError("one process at least")
    return count


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    made = argparse.ArgumentParser(
        prog="reliable", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("notebook", nargs="*", type=Path, help="default: all of _toc.yml")
    made.add_argument("--part", action="append", choices=PARTS, help="default: all")
    made.add_argument("--seed", type=int, help="of the orders; one is drawn if not given")
    made.add_argument("--jobs", type=whole, default=min(os.cpu_count() or 1, 8),
                      help="processes of nbval; default: one for each core")  # fmt: skip
    made.add_argument("--resume", action="store_true", help="keep what these sources have done")
    return made


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    given = made.parse_args(arguments)
    chosen = [p.resolve() for p in given.notebook] or execute.notebooks()
    if missing := [str(p) for p in chosen if not p.is_file()]:
        made.error(f"no such notebook: {', '.join(missing)}")
    # The library beside these tools, whatever is installed: kernels inherit the path.
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    record = Record(RECORD, digest(chosen), seed, resume=given.resume)
    parts = [part for part in PARTS if part in (given.part or PARTS)]
    print(f"Sources {record.sources[:12]}, seed {record.seed}, {given.jobs} processes", flush=True)
    go(parts, record, given.jobs, chosen)
    print(*report(parts, record), sep="\n")
    return int(any(f.faults for k, f in record.done.items() if k.partition(": ")[0] in parts))


if __name__ == "__main__":
    sys.exit(main())
