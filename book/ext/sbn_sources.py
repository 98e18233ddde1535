"""The sources of the book as data: what the pages of the back matter are made of.

Chapters with their labels, exercises, statements and code; the tables of the notation page, the
glossary, the changes; and which test carries which label. Nothing here knows Sphinx.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from pybtex.richtext import Text

EXERCISE = re.compile(
    r"^[:`]{3,}\{exercise\} ?(?P<title>[^\n]*)\n:label: (?P<label>\S+)\n"
    r"(?::[^\n]*\n)*\*(?P<kind>[^*]+)\*(?P<text>.*?)^[:`]{3,}$",
    re.M | re.S,
)
STATEMENT = re.compile(
    r"^[ ]*(?P<fence>[:`]{3,})\{prf:(?P<kind>definition|theorem|proposition|lemma|corollary)\}"
    r" ?(?P<title>[^\n]*)\n[ ]*:label: (?P<label>\S+)\n(?P<text>.*?)^[ ]*(?P=fence)$",
    re.M | re.S,
)
EQUATION = re.compile(
    r"\$\$\n(?P<dollars>(?:(?!\$\$).)*?)\n[ ]*\$\$ \((?P<label>[\w-]+)\)"
    r"|```\{math\}\n:label: (?P<named>\S+)\n(?P<block>.*?)\n[ ]*```",
    re.S,
)
TABLE = re.compile(r"^```\{list-table\}[^\n]*\n(?P<options>(?::[^\n]*\n)*)\n(?P<rows>.*?)^```",
                   re.M | re.S)  # fmt: skip
HEADING = re.compile(r"^# (.+)$", re.M)
TERM = re.compile(r"^\((?P<label>gloss-[\w-]+)\)=\n\*\*(?P<name>[^*]+)\.\*\*", re.M)
APART = re.compile(r"\s*([:`]{3,})\{(prf:proof|exercise|solution(?:-start)?|dropdown)[\s}]")
GREEK = re.findall(
    r"\w+",
    "alpha beta gamma delta varepsilon zeta eta theta vartheta kappa lambda mu nu xi pi rho varrho "
    "sigma tau phi varphi chi psi omega Gamma Delta Phi Psi Pi Omega ell",
)
FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\$])\$([^$]+?)\$|```\{math\}\n(?::label:[^\n]*\n)?(.*?)```", re.S
)
#: A letter under an accent or in a script of its own; a word, which is none; a command; letters.
TOKEN = re.compile(
    r"\\(?:mathrm|operatorname\*?|text|begin|end)\s*\{[\w*. ]*\}"
    r"|\\(?P<accent>mathcal|mathbb|mathbf|hat|bar|tilde)(?![A-Za-z])\s*\{?\s*"
    rf"(?P<under>[A-Za-z]|\\(?:{'|'.join(GREEK)})(?![A-Za-z]))"
    r"|\\(?P<command>[A-Za-z]+)|(?P<letters>[A-Za-z]+)"
)


# ---- chapters ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exercise:
    label: str
    title: str
    kind: str
    level: str


@dataclass(frozen=True)
class Statement:
    label: str
    title: str
    kind: str
    text: str


@dataclass(frozen=True)
class Chapter:
    """One chapter: its number, its file relative to ``book``, its words and its code."""

    number: int
    file: str
    words: str
    code: tuple[str, ...]
    figures: tuple[str, ...]

    @cached_property
    def title(self) -> str:
        return HEADING.search(self.words)[1]

    @cached_property
    def exercises(self) -> list[Exercise]:
        return [_exercise(m) for m in EXERCISE.finditer(self.words)]

    @cached_property
    def statements(self) -> list[Statement]:
        return [Statement(m["label"], m["title"].strip(), m["kind"], m["text"])
                for m in STATEMENT.finditer(self.words)]  # fmt: skip

    @cached_property
    def equations(self) -> dict[str, str]:
        """The labelled equations, in their order, with their TeX."""
        return {m["label"] or m["named"]: m["dollars"] or m["block"]
                for m in EQUATION.finditer(self.words)}  # fmt: skip

    @cached_property
    def symbols(self) -> frozenset[str]:
        """What stands in formulas outside proofs, exercises and solutions."""
        return frozenset(symbols(outside(self.words)))


def _exercise(found: re.Match[str]) -> Exercise:
    """A kind reads ``Predict, then run; medium.``: what it asks for, and how hard it is."""
    said = " ".join(found["kind"].split()).rstrip(".")
    (level,) = (word for word in ("easy", "medium", "hard") if said.endswith(word))
    kind = said.removesuffix(level).rstrip(" ,;")
    return Exercise(found["label"], found["title"].strip(), kind, level)


@cache
def _chapter(path: Path, changed: int) -> Chapter:
    found = json.loads(path.read_text("utf-8"))["cells"]
    of = {kind: ["".join(c["source"]) for c in found if c["cell_type"] == kind]
          for kind in ("markdown", "code")}  # fmt: skip
    under = (c["metadata"].get("mystnb", {}).get("figure", {}) for c in found)
    figures = tuple(figure["name"] for figure in under if "name" in figure)
    file = path.relative_to(path.parents[1]).as_posix()
    words = "\n\n".join(of["markdown"])
    return Chapter(int(path.name[:2]), file, words, tuple(of["code"]), figures)


def chapters(root: Path) -> list[Chapter]:
    """The chapters that there are, in their order."""
    paths = sorted((root / "book").glob("*/[0-9][0-9]-*.ipynb"), key=lambda path: path.name)
    return [_chapter(path, path.stat().st_mtime_ns) for path in paths]


def labels(root: Path) -> dict[str, str]:
    """Every label of the chapters and of the appendices with the role that refers to it."""
    found: dict[str, str] = {}
    for chapter in chapters(root):
        found |= dict.fromkeys(chapter.equations, "eq")
        found |= {s.label: "prf:ref" for s in chapter.statements}
        found |= {e.label: "ref" for e in chapter.exercises}
        found |= dict.fromkeys(chapter.figures, "numref")
        tables = re.findall(r"^:name: (tab-[\w-]+)$", chapter.words, re.M)
        found |= dict.fromkeys(tables, "numref")
    return found


# ---- symbols -----------------------------------------------------------------------------------


def outside(text: str) -> str:
    """The words of a page without its proofs, exercises and solutions."""
    kept: list[str] = []
    until = ""
    for line in text.split("\n"):
        opens = APART.match(line)
        if not until and opens:
            until = "{solution-end}" if opens[2] == "solution-start" else opens[1]
        elif not until:
            kept.append(line)
        elif line.strip() == until or (until == "{solution-end}" and until in line):
            until = ""
    return "\n".join(kept)


def symbols(text: str) -> list[str]:
    """The symbols in the formulas of a text, in their order: letters, Greek by name, ``hat g``."""
    formulas = ("".join(filter(None, m.groups())) for m in FORMULA.finditer(text))
    return [symbol for formula in formulas for symbol in tokens(formula)]


def tokens(formula: str) -> Iterator[str]:
    for token in TOKEN.finditer(formula):
        if token["accent"]:
            yield f"{token['accent']} {token['under'].lstrip(chr(92))}"
        elif token["command"] in GREEK:
            yield token["command"]
        elif token["letters"]:
            yield from token["letters"]


def table(text: str, name: str) -> list[list[str]]:
    """The rows of the list-table of this name, its head left out, cell by cell."""
    (rows,) = (m["rows"] for m in TABLE.finditer(text) if f":name: {name}\n" in m["options"])
    found = re.split(r"^\* - ", rows, flags=re.M)[2:]
    return [[" ".join(c.split()) for c in re.split(r"^  -", row, flags=re.M)] for row in found]


# ---- what the code uses ------------------------------------------------------------------------


def used(code: str) -> set[str]:
    """The full names of what a chapter takes from sbnlib: ``sbnlib.optim.Bop``."""
    tree = ast.parse(code)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {(a.asname or a.name): a.name for a in node.names if _ours(a.name)}
        elif isinstance(node, ast.ImportFrom) and _ours(node.module or ""):
            known |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    chains = (_chain(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    through = {known[head] + rest for head, rest in chains if head in known}
    return set(known.values()) | through


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "sbnlib"


def _chain(node: ast.Attribute) -> tuple[str, str]:
    """``a.b.c`` as ``a`` and ``.b.c``."""
    rest, inner = f".{node.attr}", node.value
    while isinstance(inner, ast.Attribute):
        rest, inner = f".{inner.attr}{rest}", inner.value
    return (inner.id if isinstance(inner, ast.Name) else ""), rest


def documented(root: Path) -> dict[str, str]:
    """The names of the library reference, each with the role that links to its entry."""
    text = (root / "book" / "back" / "api.md").read_text("utf-8")
    found = re.findall(
        r"^\.\. (?:auto|py:)(class|function|exception|data):: ([\w.]+)[^\n]*"
        r"(?:\n   :module: (\S+))?", text, re.M)  # fmt: skip
    roles = {"class": "py:class", "function": "py:func", "exception": "py:exc", "data": "py:data"}
    return {f"{module}.{name}" if module else name: roles[kind] for kind, name, module in found}


# ---- tests, papers, changes --------------------------------------------------------------------


def pins(root: Path) -> dict[str, list[str]]:
    """For each label the tests that carry it, as pytest names them from ``tests/book``."""
    found: dict[str, list[str]] = {}
    for file in sorted((root / "tests" / "book").glob("test_*.py")):
        for label, name in _pins(file, file.stat().st_mtime_ns):
            found.setdefault(label, []).append(f"{file.name}::{name}")
    return found


@cache
def _pins(file: Path, changed: int) -> list[tuple[str, str]]:
    body = ast.parse(file.read_text("utf-8")).body
    return [(label, node.name) for node in body for label in _pinned(node)]


def _pinned(node: ast.stmt) -> Iterator[str]:
    for decorator in getattr(node, "decorator_list", ()):
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pin":
            yield ast.literal_eval(decorator.args[0])


def names_of_papers(root: Path) -> dict[str, str]:
    """For each key of the bibliography its authors and its year, as a heading has them."""
    text = (root / "book" / "references.bib").read_text("utf-8")
    return {m[1]: _cited(m[0]) for m in re.finditer(r"^@\w+\{([^,\s]+),.*?^\}", text, re.M | re.S)}


def _cited(entry: str) -> str:
    (authors,) = re.findall(r"^\s*author\s*=\s*\{(.*?)\},?$", entry, re.M | re.S)
    (year,) = re.findall(r"^\s*year\s*=\s*\{(\d+)\}", entry, re.M)
    people = [str(Text.from_latex(a.partition(",")[0])) for a in re.split(r"\s+and\s+", authors)]
    if len(people) > 2:
        people = [people[0], "others"]
    return f"{' and '.join(people)} ({year})"


@dataclass(frozen=True)
class Change:
    """An entry of the changes or of the errata."""

    version: str
    text: str


def changes(root: Path) -> tuple[list[Change], list[Change]]:
    """The changes and the errata of CHANGELOG.md, in their order."""
    text = (root / "CHANGELOG.md").read_text("utf-8")
    before, _, after = text.partition("\n# Errata\n")
    return list(_entries(before)), list(_entries(after))


def _entries(text: str) -> Iterator[Change]:
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        version = heading.strip().removeprefix("In ")
        for entry in re.findall(r"^- (.*(?:\n  .*)*)", body, re.M):
            yield Change(version, " ".join(entry.split()))
