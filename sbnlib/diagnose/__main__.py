"""Diagnose a unit of one's own.

    python -m sbnlib.diagnose my_module:MyUnit [--out DIR]

imports ``my_module`` from the current directory, examines ``MyUnit`` (a function, an
``autograd.Function``, a module) and prints the report.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from sbnlib.command import imported, refusing
from sbnlib.diagnose.doctor import diagnose_unit
from sbnlib.extras import extra
from sbnlib.files import check_writable, write_whole

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.diagnose", description="Say what a binarization really does."
    )
    parser.add_argument(
        "unit",
        metavar="MODULE:NAME",
        help="a function, an autograd.Function or a module, imported from the current directory",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a folder for the report as JSON and its chart as SVG (default: they are not written)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Examine and print. The status is 1 if something is wrong with the unit."""
    parser = _parser()
    options = parser.parse_args(argv)
    with refusing(parser, ValueError, TypeError, ImportError, AttributeError):
        module, _, name = options.unit.partition(":")
        if not (module and name):
            raise ValueError(f"unit must be MODULE:NAME, got {options.unit!r}")
        paths = _paths(options.out, name)
        report = diagnose_unit(imported(module, name), name=name)
    print(report)
    if paths:
        write_whole(paths[0], report.json())
        from sbnlib.figures import style

        write_whole(paths[1], style.still(report.chart(), "svg")[0])
        print("".join(f"\nwrote {path}" for path in paths))
    return int(any(f.wrong for f in report.findings))


def _paths(out: Path | None, name: str) -> list[Path]:
    """The files, tried before any work, and what draws."""
    if out is None:
        return []
    with extra("figures"):
        import sbnlib.figures  # noqa: F401
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "unit"
    paths = [out / f"diagnosis-{slug}.{end}" for end in ("json", "svg")]
    for path in paths:
        check_writable(path)
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
