"""Wheel and sdist as others get them: what is in them, and that it works where nothing else is.

Both are built from a fresh clone, so what is not committed is not in them.
"""

from __future__ import annotations

import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from formats import notebooks

from release import downloads
from release.environments import Environment, Missing, each, torch_options

if TYPE_CHECKING:
    from release.command import Release

TRIAL = Path(__file__).with_name("trial.py")
#: What an sdist holds beside the package: its own description.
BESIDE = {"LICENSE", "LICENSE-TEXT", "README.md", "pyproject.toml"}
LICENCES = ("LICENSE", "LICENSE-TEXT", "sbnlib/datasets/LICENSE-fashion-mnist",
            "sbnlib/datasets/LICENSE-prose")  # fmt: skip
CHAPTER = "01-"


def check(release: Release) -> Iterator[str]:
    with TemporaryDirectory() as folder:
        tree, made = Path(folder, "tree"), Path(folder, "dist")
        try:
            clone(release.root, tree)
            build(tree, made, Path(folder, "builder"))
            (wheel,), (sdist,) = made.glob("*.whl"), made.glob("*.tar.gz")
            yield from contents(tree, wheel, sdist)
            yield from installed(release, tree, wheel, sdist)
            yield from chapter(release, tree, wheel)
        except Missing as error:
            yield str(error)


def clone(root: Path, tree: Path) -> None:
    """A fresh clone of what is committed.

    Raises:
        Missing: there is no git, or no repository.
    """
    call = ["git", "clone", "--quiet", "--no-hardlinks", str(root), str(tree)]
    try:
        done = subprocess.run(call, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Missing("git is not there, so there is nothing clean to build from") from error
    if done.returncode:
        raise Missing(f"git cannot clone {root}: {done.stderr.strip()}")


def build(tree: Path, made: Path, folder: Path) -> None:
    """The sdist, and the wheel out of the sdist; an index would take both.

    Raises:
        Missing: pip cannot have `build` and `twine`, or they refuse; with their last words.
    """
    builder = Environment(folder)
    builder.pip("install", "build", "twine")
    builder.run("-m", "build", "--outdir", str(made), str(tree))
    builder.run("-m", "twine", "check", "--strict", *map(str, made.iterdir()))


# ---- what is in them ---------------------------------------------------------------------------


def contents(tree: Path, wheel: Path, sdist: Path) -> Iterator[str]:
    """What one of them lacks, and what it has that it should not have."""
    tracked = subprocess.run(["git", "ls-files", "sbnlib"], cwd=tree, capture_output=True,
                             text=True, check=True).stdout.split()  # fmt: skip
    with zipfile.ZipFile(wheel) as opened:
        named = opened.namelist()
        about = next(n for n in named if n.endswith(".dist-info/METADATA"))
        described = opened.read(about).decode()
    licences = {f"{PurePosixPath(about).parent}/licenses/{name}" for name in LICENCES}
    inside = {n for n in named if ".dist-info/" not in n} | licences & set(named)
    yield from differ("the wheel", inside, {*tracked, *licences})
    with tarfile.open(sdist) as packed:
        files = {m.name.partition("/")[2] for m in packed.getmembers() if m.isfile()}
    made = {n for n in files if n in ("PKG-INFO", "setup.cfg") or ".egg-info/" in n}
    yield from differ("the sdist", files - made, {*tracked, *BESIDE})
    yield from described_as(described, tree)


def differ(name: str, has: Iterable[str], wants: Iterable[str]) -> Iterator[str]:
    there, due = set(has), set(wants)
    yield from (f"{name} lacks {file}" for file in sorted(due - there))
    yield from (f"{name} has {file}, which does not belong there" for file in sorted(there - due))


def described_as(metadata: str, tree: Path) -> Iterator[str]:
    """Whether the wheel asks for what pyproject.toml says, and for nothing else unasked."""
    project = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))["project"]
    lines = metadata.partition("\n\n")[0].splitlines()
    needs = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    always = [need for need in needs if "extra ==" not in need]
    yield from differ("what the wheel needs without extras", always, project["dependencies"])
    if f"Version: {project['version']}" not in lines:
        yield f"the wheel is not of version {project['version']}"


# ---- where they work ---------------------------------------------------------------------------


def installed(release: Release, tree: Path, wheel: Path, sdist: Path) -> Iterator[str]:
    """Faults of both where PyTorch and NumPy are alone, of each version that can be had."""
    environments = each(release.root, release.torch_index, release.say, cuda=release.cuda)
    tried = 0
    for wish, made in environments:
        before = made.packages()
        for archive in (wheel, sdist):
            made.pip("install", str(archive))
            brought = sorted(set(made.packages()) - set(before) - {"sbnlib"})
            if brought:
                yield f"{wish.name}: {archive.name} brings {', '.join(brought)}"
            versions = f"Python {wish.python}, torch {before['torch']}, numpy {before['numpy']}"
            release.say(f"{wish.name}: {versions}, {archive.name}")
            yield from trial(release, made, tree, f"{wish.name}, {archive.name}")
            made.pip("uninstall", "--yes", "sbnlib")
            tried += 1
    if not tried:
        yield "the package was tried nowhere"


def trial(
    release: Release, made: Environment, tree: Path, name: str, *extras: str
) -> Iterator[str]:
    """What ``trial.py`` finds in an environment."""
    call = [made.python, "-I", str(TRIAL), str(tree / "README.md"), *extras]
    done = subprocess.run(call, capture_output=True, text=True, cwd=made.folder)
    for line in done.stdout.splitlines():
        if line.startswith("fault: "):
            yield f"{name}: {line.removeprefix('fault: ')}"
        else:
            release.say(f"    {line}")
    if done.returncode and "fault: " not in done.stdout:
        yield f"{name}: {done.stderr.strip()[-600:]}"


def chapter(release: Release, tree: Path, wheel: Path) -> Iterator[str]:
    """A chapter runs where `figures` and a Jupyter kernel are; then the longer example."""
    with TemporaryDirectory() as folder:
        made = Environment(Path(folder, "env"))
        pinned = next(each_pin(tree, "torch"))
        made.pip("install", pinned, *torch_options(release.torch_index))
        made.pip("install", f"{wheel}[figures]", "ipykernel", "nbclient", "jupyter-core")
        path = notebook(release, tree, Path(folder))
        fault = downloads.run(path, python=made.python)
        release.say(f"sbnlib[figures]: {path.name} {'fails' if fault else 'runs'}")
        if fault:
            yield f"sbnlib[figures]: {path.name}: {fault}"
        made.pip("install", f"{wheel}[data,export]")
        extras = ("figures", "data", "export")
        yield from trial(release, made, tree, f"sbnlib[{','.join(extras)}]", *extras)


def each_pin(tree: Path, name: str) -> Iterator[str]:
    lines = (tree / "requirements.txt").read_text("utf-8").splitlines()
    return (line.partition(" ")[0] for line in lines if line.startswith(f"{name}=="))


def notebook(release: Release, tree: Path, folder: Path) -> Path:
    """A chapter of the archive, if there is one yet, and else of the book's sources."""
    archive = downloads.folder_of(release.root) / downloads.ARCHIVES[0]
    if archive.exists():
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder / "archive")
        return next((folder / "archive" / notebooks.FOLDER).rglob(f"{CHAPTER}*.ipynb"))
    release.say(f"left out: the archive, which `make formats` makes; {CHAPTER} is of the sources")
    return next((tree / "book").rglob(f"{CHAPTER}*.ipynb"))
