"""What the command lines of the experiments share."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["add_option", "add_out", "add_resume_dir", "as_typed", "refusing", "repeat"]


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


def add_out(parser: argparse.ArgumentParser, default: str = "no file") -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the measurement file to write, a JSON file (default: {default})",
    )


def add_resume_dir(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Killed? Give the same command again: it goes on where it was."
    parser.add_argument(
        "--resume-dir",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="where finished runs, and after each epoch the one under way, are kept until the "
        "measurement is written (default: runs)",
    )


@contextmanager
def refusing(parser: argparse.ArgumentParser, *errors: type[Exception]) -> Iterator[None]:
    """One of these errors ends the command with its sentence and exit status 2."""
    try:
        yield
    except errors as error:
        parser.error(str(error))


def repeat(module: str, argv: Sequence[str] | None) -> str:
    """The command line that was given, or its arguments ``argv`` in a call from Python."""
    arguments = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", "-m", f"sbnlib.experiments.{module}", *arguments])
