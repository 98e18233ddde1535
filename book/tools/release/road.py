"""The road without ``make``, as the README gives it, in a fresh clone and a fresh environment."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from release.environments import Environment, Missing, torch_options
from release.package import clone, each_pin

if TYPE_CHECKING:
    from release.command import Release

ROAD = re.compile(r"^### Without make$.*?^```bash\n(.*?)^```", re.M | re.S)


def check(release: Release) -> Iterator[str]:
    with TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        try:
            clone(release.root, tree)
            made = Environment(Path(folder, "env"))
            if release.torch_index:  # what is there already is not fetched again
                made.pip("install", *each_pin(tree, "torch"), *torch_options(release.torch_index))
        except Missing as error:
            yield str(error)
            return
        for command in commands((tree / "README.md").read_text("utf-8")):
            if fault := walk(release, command, tree, Path(made.python).parent):
                yield fault
                return


def commands(readme: str) -> list[str]:
    """What the README says to type, a command a line; none if it no longer says it."""
    found = ROAD.search(readme)
    return [line.partition("  #")[0].strip() for line in found[1].splitlines()] if found else []


def walk(release: Release, command: str, tree: Path, programs: Path) -> str:
    """One step of the road; returns what stops it."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["PATH"] = f"{programs}{os.pathsep}{env['PATH']}"
    begin = time.perf_counter()
    done = subprocess.run(command.split(), cwd=tree, env=env, capture_output=True, text=True)
    release.say(f"{time.perf_counter() - begin:7.1f} s  {command}")
    if not done.returncode:
        return ""
    return f"{command}: {(done.stdout + done.stderr).strip()[-800:]}"
