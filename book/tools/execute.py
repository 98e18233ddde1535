"""Execute notebooks in place, so that an unchanged notebook keeps its bytes.

    python book/tools/execute.py [notebook ...]      all notebooks of _toc.yml if none is named

The book is built from the stored outputs: nothing in them may depend on the day or the machine. So
no timestamps, fixed metadata, hash seed and threads, sliders as stored frames. A notebook with a
cell that fails stays as it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "SBN_FIGURES": "static",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}
FAILURES = (CellExecutionError, CellTimeoutError, DeadKernelError)


class NotebookError(Exception):
    """A cell did not finish; says which."""


def notebooks(root: Path = ROOT) -> list[Path]:
    """The notebooks of the book, in the order of its table of contents."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    paths = (root / name for name in _files(toc))
    paths = (p if p.suffix == ".ipynb" else Path(f"{p}.ipynb") for p in paths)
    return [p for p in paths if p.exists()]


def _files(node: object) -> list[str]:
    """Every ``root`` and ``file`` of the table of contents, in order."""
    if isinstance(node, list):
        return [name for item in node for name in _files(item)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in ("root", "file") if key in node]
    return own + [name for value in node.values() for name in _files(value)]


def execute(path: Path, timeout: int = 600) -> float:
    """Run one notebook and write it back; returns the seconds it took.

    Raises:
        NotebookError: a cell raised, took too long or lost its kernel; the file is left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    begin = time.perf_counter()
    _run_cells(client, _where(path))
    seconds = time.perf_counter() - begin
    write(settle(notebook), path)
    return seconds


def _run_cells(client: NotebookClient, name: str) -> None:
    with client.setup_kernel(env={**os.environ, **ENVIRONMENT}):
        for index, cell in enumerate(client.nb.cells):
            try:
                client.execute_cell(cell, index)
            except FAILURES as error:
                raise NotebookError(f"{name}, cell {index} ({cell.id}): {error}") from error


def settle(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what changes between two runs of the same notebook."""
    kept = {k: v for k, v in notebook.metadata.items() if k not in ("widgets", *METADATA)}
    notebook.metadata = nbformat.from_dict({**kept, **METADATA})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write the whole file, then put it in place: a kill leaves the old one."""
    nbformat.validate(notebook)
    text = nbformat.writes(notebook, indent=1)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, suffix=".part", delete=False
    ) as part:
        part.write(text.rstrip("\n") + "\n")
    os.chmod(part.name, path.stat().st_mode)
    os.replace(part.name, path)


def _where(notebook: Path) -> str:
    return os.path.relpath(notebook)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="*", type=Path, help="default: all of _toc.yml")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a cell may take")
    given = parser.parse_args(arguments)
    paths = [p.resolve() for p in given.notebook] or notebooks()
    missing = [str(p) for p in paths if not p.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    failed = 0
    for path in paths:
        try:
            print(f"{execute(path, given.timeout):7.1f} s  {_where(path)}", flush=True)
        except NotebookError as error:
            failed += 1
            print(f"   FAILED  {error}\nThe file is left as it was.", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
