"""Set an estimator on the map.

    python -m sbnlib.map my_module:my_estimator [--kind KIND] [--name NAME] [--out DIR]
    python -m sbnlib.map --list
    python -m sbnlib.map --all

The first imports ``my_module`` from the current directory, measures ``my_estimator`` on the
problems of sbn-map-1 and writes a report as JSON and as a page. ``--all`` measures the registry's
estimators, whose results come with the package, again.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from sbnlib import registry
from sbnlib.command import imported, refusing
from sbnlib.data import DataError
from sbnlib.extras import extra
from sbnlib.files import check_writable, write_whole
from sbnlib.map import stored
from sbnlib.map.placing import SAMPLES, place, versions
from sbnlib.map.problem_set import NAME, problems

__all__ = ["load", "main"]

REFUSED = (ValueError, TypeError, ImportError, AttributeError, DataError)


def load(text: str) -> str | Callable[..., Any]:
    """What ``MODULE:NAME`` names, imported from the current directory; or a registry's name.

    Raises:
        ValueError: it is of another form, or no such name is in the registry.
        ImportError: the module is not there, or raises an error when it is imported.
        AttributeError: the module has no such name.
    """
    module, colon, name = text.partition(":")
    if not colon and text in registry.ESTIMATORS:
        return text
    if not (module and name):
        known = ", ".join(registry.ESTIMATORS)
        raise ValueError(f"estimator must be MODULE:NAME, or a name of the registry, one of "
                         f"{known}; got {text!r}")  # fmt: skip
    function: Callable[..., Any] = imported(module, name)
    return function


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.map", description="Set an estimator on the map."
    )
    parser.add_argument(
        "estimator",
        nargs="?",
        metavar="MODULE:NAME",
        help="the estimator, imported from the current directory; or its name in the registry",
    )
    parser.add_argument(
        "--kind",
        choices=registry.KINDS,
        help="the form of the function (default: told from the names of its arguments)",
    )
    parser.add_argument("--name", help="the name in the report (default: that of the function)")
    parser.add_argument(
        "--problems",
        nargs="+",
        metavar="PROBLEM",
        help="names of the problems to measure on (default: all)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the folder for the files that are written (default: the current directory; for "
        "--all the folder of the package)",
    )
    parser.add_argument("--list", action="store_true", help="list the problems and the registry")
    parser.add_argument(
        "--all",
        action="store_true",
        help="measure the registry's estimators again and store their results, some minutes",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; or list."""
    parser = _parser()
    options = parser.parse_args(argv)
    chosen = [bool(options.estimator), options.list, options.all]
    if sum(chosen) != 1:
        parser.error("give MODULE:NAME, --list or --all, one of the three")
    own = {"kind": options.kind, "name": options.name, "problems": options.problems}
    if not options.estimator and any(own.values()):
        given = next(name for name, value in own.items() if value)
        parser.error(f"--{given} belongs to an estimator, MODULE:NAME")
    if options.list:
        _list()
    elif options.all:
        _all(parser, options.out)
    else:
        _one(parser, options)
    return 0


def _one(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    with refusing(parser, *REFUSED):
        with extra("figures"):
            importlib.import_module("sbnlib.figures")
        estimator = load(options.estimator)
        name = options.name or options.estimator.rpartition(":")[2]
        slug = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "estimator"
        paths = [(options.out or Path()) / f"{NAME}-{slug}.{end}" for end in ("json", "html")]
        for path in paths:
            check_writable(path)
        stored.results()
        report = place(
            estimator,
            kind=options.kind,
            name=name,
            problems=options.problems,
            command=_command(options),
        )
    print(report)
    print(f"\ncite: {report.citation}")
    for path, text in zip(paths, (report.json(), report.html()), strict=True):
        write_whole(path, text)
        print(f"wrote {path}")


def _command(options: argparse.Namespace) -> str:
    """What makes the report again, wherever it is written."""
    words = ["python", "-m", "sbnlib.map", options.estimator]
    for option in ("kind", "name"):
        if value := getattr(options, option):
            words += [f"--{option}", value]
    if options.problems:
        words += ["--problems", *options.problems]
    return shlex.join(words)


def _list() -> None:
    print(f"{NAME}:")
    for problem in problems().values():
        print(f"  {problem.name:26} {problem.words}")
    print("\nthe registry:")
    for entry in registry.ESTIMATORS.values():
        print(f"  {entry.name:26} {entry.kind}")


def _all(parser: argparse.ArgumentParser, out: Path | None) -> None:
    path = (out or Path(str(files("sbnlib.map")))) / stored.FILE
    with refusing(parser, *REFUSED):
        check_writable(path)
        problems()
    found = {}
    for name in registry.ESTIMATORS:
        report = place(name)
        found[name] = {"moments": "sampled" if report.sampled else "exact", "rows": report.rows}
        print(f"{name}: done", flush=True)
    write_whole(path, stored.text(found, versions(), SAMPLES))
    print(f"wrote {path}")


if __name__ == "__main__":
    raise SystemExit(main())
