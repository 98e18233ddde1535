"""Check a release: all of it, or what is named.

    python book/tools/release                  after `make formats`; `make release` does both
    python book/tools/release package road     only these checks
    python book/tools/release --cuda           also with builds of PyTorch that bring CUDA

TORCH_INDEX is the index from which PyTorch comes, as for `make book`. What cannot be tried here,
such as a Python that this machine does not have, is said in a line that begins with "left out".
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from formats.pages import ROOT

from release import downloads, package, road, tools, versions


@dataclass(frozen=True)
class Release:
    """What the checks are told: the checkout, where PyTorch comes from, how to speak."""

    root: Path = ROOT
    torch_index: str = field(default_factory=lambda: os.environ.get("TORCH_INDEX", ""))
    cuda: bool = False
    say: Callable[[str], None] = lambda line: print(line, flush=True)


CHECKS: dict[str, Callable[[Release], Iterator[str]]] = {
    module.__name__.rpartition(".")[2]: module.check
    for module in (tools, versions, downloads, package, road)
}


def carry_out(names: list[str], release: Release) -> list[str]:
    """The faults that these checks find, in the order of ``CHECKS``; none hides those after it."""
    found = []
    for name in (n for n in CHECKS if n in names):
        begin = time.perf_counter()
        faults = [f"{name}: {fault}" for fault in CHECKS[name](release)]
        state = "in order" if not faults else f"{len(faults)} faults"
        release.say(f"{time.perf_counter() - begin:7.1f} s  {name}: {state}")
        found += faults
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="release", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--cuda", action="store_true", help="also builds of PyTorch of several GB")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.checks) - set(CHECKS)):
        parser.error(f"no check is called {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    faults = carry_out(given.checks or list(CHECKS), Release(cuda=given.cuda))
    if faults:
        print("\n".join(faults), file=sys.stderr)
        return 1
    print("Everything is in order.")
    return 0
