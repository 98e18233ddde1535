"""Put the copies of the pages for JupyterLab where the reader works; keep what the reader wrote.

    python book/tools/lab.py        after `make book`; `make lab` does both, and opens JupyterLab

The build makes the copies in ``_build/lab``. Here they go to ``notebooks/``, which git ignores, and
are marked as trusted. A copy that the reader has changed stays as it is, whatever the book has new.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat.sign import NotebookNotary

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / "_build" / "lab"
COPIES = ROOT / "notebooks"
LIST = ".made.json"  # in the folder of the copies: what each was when it was put there


def refresh(made: Path = MADE, copies: Path = COPIES) -> Iterator[Path]:
    """Bring the copies up to date; yields those of the reader that are older than the book's."""
    before = _read(copies / LIST)
    now = {}
    for source in sorted(made.rglob("*.ipynb")):
        name = source.relative_to(made).as_posix()
        copy, new = copies / name, _digest(source)
        old = before.get(name, "")
        if copy.exists() and _digest(copy) not in (old, new):
            now[name] = old
            if old != new:
                yield copy
            continue
        now[name] = new
        if not copy.exists() or old != new:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
        NotebookNotary().sign(nbformat.read(copy, as_version=4))
    for name in before.keys() - now.keys():
        if (copies / name).exists() and _digest(copies / name) == before[name]:
            (copies / name).unlink()
    (copies / LIST).write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # none yet, or broken: then every copy counts as the reader's
        return {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    if not (MADE / "index.ipynb").exists():
        print("There are no copies yet: run `make book`, which makes them.", file=sys.stderr)
        return 1
    for copy in refresh():
        print(f"{copy.relative_to(ROOT)} has your changes and stays as it is. The book has a newer "
              "one: to get it, rename yours and run this again.")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
