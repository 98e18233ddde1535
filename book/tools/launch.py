"""Make the notebooks of Colab and Binder: the copies for download, and first a cell that installs.

    python book/tools/launch.py https://github.com/OWNER/REPOSITORY [FOLDER]      after `make book`

They take the place of the sources, whose directives Colab would show as text. So the Pages workflow
runs this in a checkout of its own and pushes a branch of its own. With a folder they go there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
COPIES = ROOT / "_build" / "html" / "_sources"
CELL_ID = "install-sbnlib"


def write(copy: Path, path: Path, url: str) -> None:
    """One copy, behind ``%pip install`` of sbnlib from ``url``, in the place of its source."""
    notebook = nbformat.read(copy, as_version=4)
    source = f'%pip install --quiet "sbnlib[figures,experiments] @ git+{url}"'
    notebook.cells.insert(0, nbformat.v4.new_code_cell(source, id=CELL_ID))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def main(arguments: list[str]) -> None:
    if len(arguments) not in (1, 2) or not arguments[0].startswith("https://"):
        raise SystemExit(__doc__)
    place = Path(arguments[1]) if len(arguments) == 2 else ROOT
    copies = sorted(COPIES.glob("book/**/*.ipynb"))
    if not copies:
        raise SystemExit("There are no copies yet: run `make book`, which makes them.")
    for copy in copies:
        write(copy, place / copy.relative_to(COPIES), arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
