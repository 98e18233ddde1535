"""The imports of sbnlib, read from its sources: one way, at any depth, without a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sbnlib

PACKAGE = Path(sbnlib.__file__).parent

#: From the ground up; a module may import from its own line and from those above it. A folder
#: stands for all that is in it.
LINES = (
    ("noise", "extras", "coding", "command", "files"),
    ("contracts",),
    ("losses", "kernels"),
    ("units",),
    ("estimators", "levels"),
    ("registry", "categories"),
    ("nn",),
    ("network",),
    ("inference",),
    ("costs",),
    ("guards",),
    ("exact",),
    ("accuracy",),
    ("figures", "data", "exercises"),
    ("depth", "map"),
    ("diagnose",),
    ("checks",),
    ("optim", "packed"),
    ("hashing",),
    ("experiments", "new"),
    ("gpu_evidence",),
)
LINE = {name: k for k, line in enumerate(LINES) for name in line}
MODULES = {
    ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in PACKAGE.rglob("*.py")
}


def imports(module: str, source: str) -> set[str]:
    """The modules of sbnlib that a source imports, inside functions and for types only too."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *base.split(".")] if base else up)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {n if n in MODULES else base for n in names}
    return {name for name in found if name.split(".")[0] == "sbnlib"} - {module}


GRAPH = {name: imports(name, path.read_text("utf-8")) for name, path in MODULES.items()}
INNER = [name for name in MODULES if name != "sbnlib"]


def line(module: str) -> int:
    part = module.split(".")[1]
    assert part in LINE, f"{module}: on which line of LINES does it stand?"
    return LINE[part]


@pytest.mark.parametrize("module", INNER)
def test_no_arrow_points_up(module: str) -> None:
    assert "sbnlib" not in GRAPH[module], "it imports the package that imports it"
    assert [other for other in sorted(GRAPH[module]) if line(other) > line(module)] == []


def test_there_is_no_circle() -> None:
    # A package runs its __init__ before any of its modules, but that arrow is Python's, not ours
    TopologicalSorter({name: GRAPH[name] for name in INNER}).prepare()


def test_an_arrow_is_seen_at_any_depth() -> None:
    source = """
from sbnlib import exact, zgr
from .explore import explore
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from sbnlib.network import SBN
def late():
    import sbnlib.optim
    from sbnlib.experiments import bench
"""
    assert imports("sbnlib.figures", source) == {
        "sbnlib",
        "sbnlib.exact",
        "sbnlib.figures.explore",
        "sbnlib.network",
        "sbnlib.optim",
        "sbnlib.experiments.bench",
    }
