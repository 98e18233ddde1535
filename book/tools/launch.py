"""Put a first cell that installs sbnlib into every notebook: for Colab and Binder.

    python book/tools/launch.py https://github.com/OWNER/REPOSITORY

The Pages workflow runs it on a branch of its own; the notebooks of the main branch have no such
cell, because there the library is installed already.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

CELL_ID = "install-sbnlib"


def add_install_cell(path: Path, url: str) -> None:
    """Prepend `%pip install sbnlib from url` to one notebook, once."""
    notebook = nbformat.read(path, as_version=4)
    if notebook.cells and notebook.cells[0].id == CELL_ID:
        return
    source = f'%pip install --quiet "sbnlib[figures,experiments] @ git+{url}"'
    notebook.cells.insert(0, nbformat.v4.new_code_cell(source, id=CELL_ID))
    nbformat.write(notebook, path)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or not arguments[0].startswith("https://"):
        raise SystemExit(__doc__)
    for path in sorted(Path(__file__).parents[1].rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            add_install_cell(path, arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
