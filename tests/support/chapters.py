"""Chapters as data: their cells, their own definitions run here, the labels that they use.

``define`` takes single statements out of a notebook, and only those asked for; ``curves`` gives the
data of a figure without the picture.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import re
import symtable
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from places import BOOK

import sbnlib.figures

CHAPTERS = sorted(
    p for p in BOOK.glob("*/[0-9][0-9]-*.ipynb") if ".ipynb_checkpoints" not in p.parts
)

NOTEBOOKS = sorted(p for p in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)

PAGES = sorted([*BOOK.rglob("*.md"), *NOTEBOOKS])

DIRECTIVE = re.compile(
    r"^[ ]*(?:`{3,}|:{3,})\{(?P<name>[\w:-]+)\}(?P<argument>[^\n]*)\n"
    r"(?P<options>(?:[ ]*:[\w-]+:[^\n]*\n)*)",
    re.MULTILINE,
)
OPTION = re.compile(r"^[ ]*:(?:label|name):[ ]*(\S+)", re.MULTILINE)
DOLLARS = re.compile(r"\$\$ \(([\w-]+)\)")
TARGET = re.compile(r"^[ *-]*\(([\w-]+)\)=[ ]*$", re.MULTILINE)
ROLE = r"\{%s\}`(?:[^`<]*<)?([^`<>]+)>?`"


def chapter(number: int) -> Path:
    """The notebook of a chapter."""
    (path,) = (p for p in CHAPTERS if p.name.startswith(f"{number:02d}-"))
    return path


def cells(path: Path, kind: str = "code") -> list[Any]:
    """The cells of a notebook: of one kind, and read again only if the file has changed."""
    return [c for c in _read(path, path.stat().st_mtime_ns).cells if c.cell_type == kind]


@cache
def _read(path: Path, when: int) -> Any:
    return nbformat.read(path, as_version=4)


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def tagged(path: Path, tag: str) -> list[Any]:
    return [c for c in cells(path) if tag in tags(c)]


def containing(path: Path, text: str) -> Any:
    """The one code cell with this text in its source."""
    (cell,) = (c for c in cells(path) if text in c.source)
    return cell


def printed(cell: Any) -> str:
    """What the stored outputs of a cell print."""
    return "".join(o.text for o in cell.outputs if o.get("name") == "stdout")


def lines_of(cell: Any) -> list[str]:
    """What a cell prints, without its empty lines."""
    return [line for line in printed(cell).splitlines() if line.strip()]


def numbers(text: str) -> list[float]:
    """All numbers of a line, whole ones too where they stand alone."""
    return [float(v) for v in re.findall(r"[-+]?\d*\.\d+|[-+]?\b\d+\b", text)]


def short(value: float, digits: int = 2) -> str:
    """As the prose has it: 0.52"""
    return f"{value:.{digits}f}"


def states(n: int) -> np.ndarray:
    """All states of n units, a row each, (2^n, n)."""
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n)))


def prose(path: Path) -> str:
    """The words of a page of the book, a notebook or Markdown."""
    return _prose(path, path.stat().st_mtime_ns)


@cache
def _prose(path: Path, when: int) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(c.source for c in cells(path, "markdown"))


def lean(text: str) -> str:
    """A text in one line."""
    return " ".join(text.split())


def says(path: Path, words: str) -> None:
    """The page has these words."""
    assert lean(words) in lean(prose(path)), words


# -------------------------------------------------------------------------------- running


@contextmanager
def as_in_the_book() -> Iterator[None]:
    """float64 and one thread, as the first cell of a chapter has it; undone afterwards."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _names(statement: ast.stmt) -> set[str]:
    """What a statement defines at the top level."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return set()
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and _stored(n)}


def _stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def define(path: Path, *names: str) -> dict[str, Any]:
    """The imports of a notebook and its first definition of every name, run in its order."""
    space: dict[str, Any] = {"__name__": path.stem}
    missing = set(names)
    for statement in (s for c in cells(path) for s in ast.parse(c.source).body):
        wanted = _names(statement) & missing
        if wanted or isinstance(statement, ast.Import | ast.ImportFrom):
            code = compile(ast.Module([statement], []), str(path), "exec")
            exec(code, space)
            missing -= wanted
    if missing:
        raise NameError(f"{path.name} does not define {sorted(missing)}")
    return space


def missing(source: str) -> set[str]:
    """The names that a piece of code takes from elsewhere, those of Python left out."""
    table = symtable.symtable(source, "cell", "exec")
    return _globals(table) - _bound(table)


def _bound(table: symtable.SymbolTable) -> set[str]:
    return {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}


def _globals(table: symtable.SymbolTable) -> set[str]:
    own = {s.get_name() for s in table.get_symbols() if s.is_global()}
    return own.union(*(_globals(t) for t in table.get_children())) - set(dir(builtins))


def run(path: Path, cell: Any, space: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one cell, before it only what it names: the definitions of the notebook."""
    if space is None:
        imports = define(path)
        space = define(path, *(missing(cell.source) - set(imports)))
    exec(compile(cell.source, cell.id, "exec"), space)
    return space


def naming(path: Path, tag: str, name: str = "check") -> Any:
    """The one cell with this tag that has this name: a checker, or the solution handed to it."""
    (cell,) = (c for c in tagged(path, tag) if re.search(rf"\b{name}\b", c.source))
    return cell


def checker(path: Path, name: str = "check") -> Any:
    """The checker of this name, its cell run as it stands."""
    return run(path, naming(path, "checker", name))[name]


def says_to(check: Any, answers: dict[Any, str]) -> None:
    """A checker refuses each of these answers with a sentence that has these words."""
    for answer, words in answers.items():
        out = StringIO()
        with redirect_stdout(out):
            assert check(answer) is False, answer
        assert words in out.getvalue(), (answer, out.getvalue())


# -------------------------------------------------------------------------------- figures


def needed(path: Path, cell: Any) -> list[Any]:
    """The cell and those before it that bind what it takes, at any remove, in their order."""
    before = cells(path)
    before = before[: [c.id for c in before].index(cell.id)]
    found, wanted = [cell], missing(cell.source)
    for earlier in reversed(before):
        if _bound(symtable.symtable(earlier.source, "cell", "exec")) & wanted:
            found.insert(0, earlier)
            wanted |= missing(earlier.source)
    return found


@cache
def drawing(path: Path, name: str) -> Callable[..., Any]:
    """The function of this name that draws a figure, its cell run without drawing a frame."""
    (cell,) = (c for c in cells(path) if f"def {name}(" in c.source)
    space: dict[str, Any] = {"__name__": path.stem}
    with as_in_the_book(), redirect_stdout(StringIO()), pytest.MonkeyPatch.context() as patch:
        for function in ("show", "explore"):
            patch.setattr(sbnlib.figures, function, lambda *given, **more: None)
        for each in needed(path, cell):
            exec(compile(each.source, each.id, "exec"), space)
    plt.close("all")
    return space[name]


def curves(path: Path, name: str, **params: Any) -> list[list[np.ndarray]]:
    """The lines that a figure draws at some setting: for each of its axes, each line as (x, y)."""
    return [
        [np.array(k.get_xydata(), float).T for k in ax.lines] for ax in axes(path, name, **params)
    ]


def axes(path: Path, name: str, **params: Any) -> list[Any]:
    """The axes that a figure draws at some setting."""
    draw = drawing(path, name)
    with as_in_the_book():
        fig = draw(**params)
    plt.close(fig)
    return fig.axes


@cache
def still(path: Path, name: str) -> list[Any]:
    """The axes of a figure without sliders, by its name: its cell run, and what that needs."""
    shown: list[Any] = []
    space: dict[str, Any] = {"__name__": path.stem}
    with as_in_the_book(), redirect_stdout(StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sbnlib.figures, "show", lambda fig, *given, **more: shown.append(fig))
        patch.setattr(sbnlib.figures, "explore", lambda *given, **more: None)
        for each in needed(path, figures(path)[name]):
            exec(compile(each.source, each.id, "exec"), space)
    plt.close("all")
    return shown[-1].axes


def lines(axis: Any) -> list[np.ndarray]:
    """The lines of an axis, each as (x, y)."""
    return [np.array(k.get_xydata(), float).T for k in axis.lines]


# --------------------------------------------------------------------------------- labels


def directives(text: str, name: str) -> list[str]:
    """The options of every directive whose name begins so, one string each."""
    return [options for found, options in _directives(text) if found.startswith(name)]


@cache
def _directives(text: str) -> list[tuple[str, str]]:
    found = DIRECTIVE.finditer(text)
    return [(m["name"], m["argument"] + "\n" + m["options"]) for m in found]


def _labelled(text: str, name: str) -> list[str]:
    return [label for options in directives(text, name) for label in OPTION.findall(options)]


def equations(text: str) -> list[str]:
    return _labelled(text, "math") + DOLLARS.findall(text)


def tex(path: Path, label: str) -> str:
    """The TeX of the labelled equation of a page, as it is printed, in one line."""
    dollars = rf"\$\$\n((?:(?!\$\$).)*?)\n\$\$ \({label}\)"
    block = rf"```\{{math\}}\n:label: {label}\n(.*?)\n```"
    (found,) = re.findall(f"{dollars}|{block}", prose(path), re.DOTALL)
    return " ".join("".join(found).split())


def statements(text: str) -> list[str]:
    """Labels of definitions, theorems and the like."""
    return _labelled(text, "prf:")


def exercises(text: str) -> list[str]:
    return _labelled(text, "exercise")


def labels(text: str) -> list[str]:
    """Every label of a page, whatever it names."""
    return _labelled(text, "") + DOLLARS.findall(text) + TARGET.findall(text)


def figures(path: Path) -> dict[str, Any]:
    """The cells of a notebook that draw a figure, by the name that the figure has."""
    drawing = [c for c in cells(path) if re.search(r"\bfigures\.(show|explore)\(", c.source)]
    return {c.metadata.get("mystnb", {}).get("figure", {}).get("name"): c for c in drawing}


def under(cell: Any) -> dict[str, str]:
    """What stands under the figure of a cell: its ``caption`` and its ``answer``."""
    calls = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call)]
    (call,) = (c for c in calls if ast.unparse(c.func) in ("figures.show", "figures.explore"))
    words = {k.arg: k.value for k in call.keywords}
    return {k: ast.literal_eval(words[k]) for k in ("caption", "answer") if k in words}


def roles(text: str, name: str) -> list[str]:
    """The targets of a role: {eq}`label`, {ref}`words <label>`, {cite:t}`key,key`."""
    return [t.strip() for found in re.findall(ROLE % name, text) for t in found.split(",")]
