"""The notebooks to keep: all pages that JupyterLab can show, with and without the solutions.

They are the copies that the build makes in ``_build/lab``. An archive holds beside them what they
need to run without a connection: the library as a wheel, and the measurements that some read.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

import nbformat
from nbformat import NotebookNode

from formats.epub import zipped
from formats.pages import ROOT, Book, FormatError

FOLDER = "stochastic-binary-networks"
HEADING = re.compile(r"#{1,4} ")
SOLUTION = "#### Solution to"
CELL_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s#]*)#cell-id=([\w-]+)\)")
README = """# {title}: the notebooks{kind}

Version {version}, {date}. Text and figures CC BY 4.0, code MIT.

These are the pages of the book as notebooks, with their outputs{without}.
To run them, with Python 3.11 or newer, once:

    python -m venv env
    env/bin/pip install jupyterlab "./{wheel}[figures,data,experiments,export,packed]"

and then

    env/bin/jupyter lab notebooks/index.ipynb

On Windows it is `env\\Scripts\\pip` and `env\\Scripts\\jupyter`. After the installation nothing
needs a connection. The folder `book/measurements` has to stay where it is: some notebooks read it.
"""


def archives(book: Book, lab: Path, root: Path = ROOT) -> dict[str, bytes]:
    """Both archives, by the names of their files.

    Raises:
        FormatError: there are no copies; a copy without solutions would not run, or still has one.
    """
    found = read(lab)
    wheel = wheel_of(root, book.date)
    shared = {f"book/measurements/{path.name}": path.read_bytes()
              for path in sorted((root / "book" / "measurements").iterdir())}  # fmt: skip
    shared |= {name: (root / name).read_bytes() for name in ("LICENSE", "LICENSE-TEXT")}
    shared |= {wheel.name: wheel.data}
    with_them = packed(found, shared, readme(book, wheel.name, with_solutions=True))
    without = packed(
        without_solutions(found), shared, readme(book, wheel.name, with_solutions=False)
    )
    return {f"{FOLDER}-notebooks.zip": with_them,
            f"{FOLDER}-notebooks-without-solutions.zip": without}  # fmt: skip


def readme(book: Book, wheel: str, *, with_solutions: bool) -> str:
    return README.format(
        title=book.title,
        version=book.version,
        date=book.date,
        wheel=wheel,
        kind="" if with_solutions else ", without solutions",
        without="" if with_solutions else ", and without the solutions of the exercises",
    )


def read(lab: Path) -> dict[str, NotebookNode]:
    """The copies that the build has made."""
    paths = sorted(lab.rglob("*.ipynb"))
    if not paths:
        raise FormatError(f"notebooks: there are no copies in {lab}; run `make book`")
    return {p.relative_to(lab).as_posix(): nbformat.read(p, as_version=4) for p in paths}


def packed(found: Mapping[str, NotebookNode], shared: Mapping[str, bytes], about: str) -> bytes:
    files = {"README.md": about.encode(), **shared}
    for name, notebook in found.items():
        nbformat.validate(notebook)
        files[f"notebooks/{name}"] = (nbformat.writes(notebook, indent=1) + "\n").encode()
    return zipped({f"{FOLDER}/{name}": data for name, data in files.items()})


# ---- without solutions -------------------------------------------------------------------------


def without_solutions(found: Mapping[str, NotebookNode]) -> dict[str, NotebookNode]:
    """The same notebooks; exercises and their checkers stay, their solutions do not.

    Raises:
        FormatError: a cell that stays needs a name that only a solution gave; says which.
    """
    made = {name: nbformat.from_dict({**notebook, "cells": list(kept(notebook.cells))})
            for name, notebook in found.items()}  # fmt: skip
    places = {name: {cell.id for cell in notebook.cells} for name, notebook in made.items()}
    for name, notebook in made.items():
        if missing := sorted(unbound(notebook.cells)):
            raise FormatError(f"notebooks without solutions: {name} needs {', '.join(missing)}")
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = _unlinked(cell.source, name, places)
    return made


def kept(cells: Iterable[NotebookNode]) -> Iterator[NotebookNode]:
    """The cells outside solutions: one ends where the next heading or exercise begins."""
    inside = False
    for cell in cells:
        if cell.cell_type == "markdown" and HEADING.match(cell.source):
            inside = cell.source.startswith(SOLUTION)
        if not inside:
            yield nbformat.from_dict(cell)


def _unlinked(text: str, name: str, places: Mapping[str, set[str]]) -> str:
    """Text without its links to cells that went with a solution."""

    def link(found: re.Match[str]) -> str:
        other = (
            os.path.normpath(os.path.join(os.path.dirname(name), found[2])) if found[2] else name
        )
        return found[0] if found[3] in places.get(other, ()) else found[1]

    return CELL_LINK.sub(link, text)


def unbound(cells: Iterable[NotebookNode]) -> set[str]:
    """Names that the code of a notebook uses and nothing in it gives."""
    given, used = set(dir(builtins)) | {"display", "get_ipython"}, set()
    for cell in cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(_without_magics(cell.source))):
                given |= _given(node)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                    used.add(node.id)
    return used - given


def _without_magics(source: str) -> str:
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)


def _given(node: ast.AST) -> set[str]:
    """The names that a piece of code binds."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()):
            return {name}
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
            return {name}
        case ast.ExceptHandler(name=str(name)):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {(n.asname or n.name).partition(".")[0] for n in names}
    return set()


# ---- the library -------------------------------------------------------------------------------


class Wheel:
    """A wheel: its file name, which installers read, and its bytes."""

    def __init__(self, path: Path) -> None:
        self.name, self.data = path.name, path.read_bytes()


def wheel_of(root: Path, date: str) -> Wheel:
    """The library as a wheel, built aside so that nothing is left in the tree.

    Raises:
        FormatError: pip cannot build it; with pip's last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        copytree(root / "sbnlib", tree / "sbnlib", ignore=ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-TEXT"):
            copyfile(root / name, tree / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
                   "--no-build-isolation", "--wheel-dir", folder, str(tree)]  # fmt: skip
        epoch = os.environ.get("SOURCE_DATE_EPOCH") or _epoch(date)
        done = subprocess.run(command, capture_output=True, text=True,
                              env={**os.environ, "SOURCE_DATE_EPOCH": epoch})  # fmt: skip
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise FormatError(
                f"notebooks: pip cannot build the wheel: {done.stderr.strip()[-600:]}"
            )
        return Wheel(wheels[0])


def _epoch(date: str) -> str:
    import calendar
    import time

    return str(calendar.timegm(time.strptime(date or "2000-01-01", "%Y-%m-%d")))
