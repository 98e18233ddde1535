"""Environments with PyTorch and NumPy and nothing else, of the versions that are supported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

#: The Pythons that are looked for, beside the oldest, which pyproject.toml names.
MINORS = range(11, 20)
CUDA = re.compile(r"nvidia|cuda")
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


class Missing(Exception):
    """An environment cannot be had on this machine; the text says why."""


@dataclass(frozen=True)
class Wanted:
    """An environment to try: a Python, and what PyTorch and NumPy have to be."""

    name: str
    python: str
    torch: str
    numpy: str

    def __str__(self) -> str:
        return f"{self.name} ({self.torch}, {self.numpy}, Python {self.python})"


def wanted(root: Path) -> Iterator[Wanted]:
    """The pinned versions, the oldest that are supported, and the newest."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    lowest = dict(need.split(">=") for need in project["dependencies"])
    pinned = dict(
        re.findall(r"^(torch|numpy)==(\S+)", (root / "requirements.txt").read_text(), re.M)
    )
    found = pythons()
    oldest = project["requires-python"].removeprefix(">=")
    here = "{}.{}".format(*sys.version_info)
    yield Wanted("pinned", here, f"torch=={pinned['torch']}", f"numpy=={pinned['numpy']}")
    yield Wanted("oldest", oldest, f"torch=={lowest['torch']}", f"numpy=={lowest['numpy']}")
    yield Wanted("newest", max(found, key=_number), "torch", "numpy")


def _number(python: str) -> tuple[int, ...]:
    return tuple(map(int, python.split(".")))


def pythons() -> dict[str, str]:
    """The Pythons of this machine, by "3.11": this one, those on the path, those of pyenv."""
    found = {}
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for minor in MINORS:
        beside = sorted(str(p) for p in kept.glob(f"3.{minor}.*/bin/python"))
        for place in filter(None, [shutil.which(f"python3.{minor}"), *beside]):
            if _runs(place):
                found[f"3.{minor}"] = place
                break
    return found | {"{}.{}".format(*sys.version_info): sys.executable}


def _runs(python: str) -> bool:
    """Not so what pyenv puts on the path for a Python that is installed and not chosen."""
    return not subprocess.run([python, "-c", ""], capture_output=True).returncode


def run(python: str, *arguments: str, folder: Path | None = None) -> str:
    """What a Python prints, with nothing of ours on its path.

    Raises:
        Missing: it failed; with its last words.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([python, *arguments], capture_output=True, text=True, env=env, cwd=folder)
    if done.returncode:
        raise Missing(_last((done.stderr + done.stdout).strip()))
    return done.stdout


def _last(text: str) -> str:
    """The end of what a program said; of pip, what it calls an error."""
    errors = [line for line in text.splitlines() if line.startswith("ERROR: ")]
    return " ".join(errors)[:600] if errors else text[-600:]


class Environment:
    """A fresh environment in a folder of its own."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        run(python, "-m", "venv", str(folder))
        self.folder = folder
        self.python = str(next(p for p in (folder / "bin/python", folder / "Scripts/python.exe")
                               if p.exists()))  # fmt: skip

    def pip(self, *arguments: str) -> str:
        return run(self.python, *PIP, *arguments)

    def run(self, *arguments: str, folder: Path | None = None) -> str:
        return run(self.python, *arguments, folder=folder)

    def packages(self) -> dict[str, str]:
        return {p["name"]: p["version"] for p in json.loads(self.pip("list", "--format", "json"))}


def torch_options(index: str) -> list[str]:
    return ["--index-url", index] if index else []


def refuse_cuda(environment: Environment, torch: str, index: str) -> None:
    """Look before several GB are fetched.

    Raises:
        Missing: the build of PyTorch to be had here brings CUDA, or there is none.
    """
    ask = ("install", "--dry-run", "--quiet", "--report", "-", torch, *torch_options(index))
    plan = environment.pip(*ask)  # quiet, so that the report stands alone
    parts = {p["metadata"]["name"]: p["metadata"]["version"] for p in json.loads(plan)["install"]}
    if any(CUDA.search(name) for name in parts):
        raise Missing(
            f"torch {parts['torch']} comes from here as the build for CUDA, of several GB: set "
            "TORCH_INDEX=https://download.pytorch.org/whl/cpu, or give --cuda"
        )


@contextmanager
def environment(wish: Wanted, index: str, *, cuda: bool) -> Iterator[Environment]:
    """What is wanted, as long as it is needed.

    Raises:
        Missing: this machine has not that Python, or pip cannot have those versions for it.
    """
    python = pythons().get(wish.python)
    if python is None:
        raise Missing(f"Python {wish.python} is not on this machine")
    with TemporaryDirectory() as folder:
        made = Environment(Path(folder, "env"), python)
        if not cuda:
            refuse_cuda(made, wish.torch, index)
        made.pip("install", wish.torch, *torch_options(index))
        made.pip("install", wish.numpy)
        yield made


def each(
    root: Path, index: str, say: Callable[[str], None], *, cuda: bool
) -> Iterator[tuple[Wanted, Environment]]:
    """The environments that can be had, one after the other; of the others it is said why not."""
    for wish in wanted(root):
        try:
            with environment(wish, index, cuda=cuda) as made:
                yield wish, made
        except Missing as reason:
            say(f"left out: {wish}: {reason}")
