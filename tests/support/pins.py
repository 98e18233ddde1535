r"""What the page prints, next to the code that evaluates it.

A test of a labelled equation or statement carries the words of the page; it fails when the page
says something else. Whoever changes one reads the other. Nothing is parsed: a wrong sign or
factor, a dropped condition, a name that is spelt differently, each is another text.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from chapters import DIRECTIVE, PAGES, equations, prose, statements, tex

Test = TypeVar("Test", bound=Callable[..., Any])

#: A displayed equation with a label, in either of its two forms.
DISPLAYED = re.compile(
    r"\$\$\n(?:(?!\$\$).)*?\n\$\$ \((?P<dollars>[\w-]+)\)"
    r"|```\{math\}\n:label: (?P<block>\S+)\n.*?\n```",
    re.DOTALL,
)


def pin(label: str, words: str) -> Callable[[Test], Test]:
    """The test under it evaluates what the page prints under this label, to the character.

    Line breaks do not count. A statement has the labels of its displayed equations in place of
    them, ``{eq-01-tight}``: these have pins of their own.
    """

    def bind(test: Test) -> Test:
        @functools.wraps(test)
        def bound(*args: Any, **kwargs: Any) -> Any:
            assert " ".join(words.split()) == printed(label), f"the page has another {label}"
            return test(*args, **kwargs)

        return bound  # type: ignore[return-value]

    return bind


def printed(label: str) -> str:
    """What the book prints under the label of an equation or a statement, in one line."""
    (path,) = (p for p in PAGES if label in to_be_pinned(p))
    return tex(path, label) if label in equations(prose(path)) else statement(path, label)


def to_be_pinned(page: Path) -> list[str]:
    """The labels of a page that a test has to carry: its equations, theorems and definitions."""
    return equations(prose(page)) + statements(prose(page))


def statement(path: Path, label: str) -> str:
    """The words of a definition, theorem or the like, in one line."""
    text = prose(path)
    (found,) = (m for m in DIRECTIVE.finditer(text) if f":label: {label}\n" in m["options"])
    fence = re.match(r"\s*([:`]+)", found[0])[1]  # type: ignore[index]
    body, _, _ = text[found.end() :].partition(f"\n{fence}\n")
    return " ".join(DISPLAYED.sub(_name, body).split())


def _name(equation: re.Match[str]) -> str:
    return "{%s}" % (equation["dollars"] or equation["block"])


def pinned(file: Path) -> list[str]:
    """The labels that a file of tests has pins of."""
    calls = [
        decorator
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pin"
    ]
    return [ast.literal_eval(call.args[0]) for call in calls]
