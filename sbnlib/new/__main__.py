"""Write a training script to begin with.

    python -m sbnlib.new DIR

writes ``train.py``, ``test_train.py`` and ``README.md`` into the folder DIR, a new one or an empty
one, and says what to run next.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sbnlib.command import refusing
from sbnlib.files import CannotWriteError
from sbnlib.new import write

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.new",
        description="Write a script that trains a binary network on digits, its test and a page.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder, or an empty one")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files and say what to run next."""
    parser = _parser()
    options = parser.parse_args(argv)
    with refusing(parser, CannotWriteError):
        paths = write(options.folder)
    print("".join(f"wrote {path}\n" for path in paths), end="")
    print(f"next: cd {options.folder}; python train.py  (needs scikit-learn: sbnlib[data])")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
