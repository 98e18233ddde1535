"""What the command lines of the experiments share."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sbnlib.command import add_option, as_typed, refusing

__all__ = ["add_option", "add_out", "add_resume_dir", "as_typed", "refusing", "repeat"]


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
        help="where finished runs, and after each epoch those under way, are kept until the "
        "measurement is written (default: runs)",
    )


def repeat(module: str, argv: Sequence[str] | None) -> str:
    """The command line that was given, or its arguments ``argv`` in a call from Python."""
    arguments = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", "-m", f"sbnlib.experiments.{module}", *arguments])
