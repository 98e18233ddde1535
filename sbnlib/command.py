"""What command lines share: options with their defaults in the help, and refusals in a sentence."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["add_option", "as_typed", "refusing"]


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
