"""What command lines share: options with their defaults in the help, and refusals in a sentence."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["add_option", "as_typed", "imported", "refusing"]


def as_typed(value: Any) -> str:
    """A value, or each of a tuple, as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def add_option(
    parser: argparse.ArgumentParser, name: str, default: Any, words: str, **more: Any
) -> None:
    """An option of the type of its default, or a list of that if the default is a tuple.

    Args:
        parser: gets the option.
        name: as in Python; the option has dashes.
        default: what it is if it is not given; the help tells.
        words: what it does, and its unit.
        **more: for ``add_argument``.
    """
    many = isinstance(default, tuple)
    kind = {"type": type(default[0] if many else default), "nargs": "+" if many else None}
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        default=default,
        help=f"{words} (default: {as_typed(default) or 'none'})",
        **kind | {"metavar": name.upper()} | more,
    )


@contextmanager
def refusing(parser: argparse.ArgumentParser, *errors: type[Exception]) -> Iterator[None]:
    """One of these errors ends the command with its sentence and exit status 2."""
    try:
        yield
    except errors as error:
        parser.error(str(error))


def imported(module: str, name: str) -> Any:
    """What a module of this name, also one in the current directory, has under ``name``.

    Raises:
        ImportError: the module is not there, or raises an error when it is imported.
        AttributeError: the module has no such name.
    """
    found = _module(module)
    if not hasattr(found, name):
        there = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
        has = f"it has {', '.join(there)}" if there else "it has no function"
        raise AttributeError(f"{module} has no {name}; {has}")
    return getattr(found, name)


def _module(name: str) -> Any:
    if name.endswith(".py"):
        module = name.removesuffix(".py").replace("/", ".")
        raise ImportError(f"{name} is a file: give the module's name, {module}")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in (
            name, name.partition(".")[0])  # fmt: skip
        why = (
            f"there is no {name.replace('.', '/')}.py in the current directory, and no such module "
            "is installed"
            if missing
            else f"it raised {type(error).__name__}: {error}"
        )
        raise ImportError(f"{name} cannot be imported: {why}") from error
