"""The downloads are what was published, the EPUB passes epubcheck, every notebook runs.

Each notebook of both archives runs from the first cell to the last in a folder of its own, with
the library of the archive and no network.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from formats import notebooks, publish

from release import tools

if TYPE_CHECKING:
    from release.command import Release

ARCHIVES = [f"{notebooks.FOLDER}-{name}.zip"
            for name in ("notebooks", "notebooks-without-solutions")]  # fmt: skip
#: Where a program of a release must not reach: no host has this address.
NO_NETWORK = {
    f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "HTTP", "HTTPS")
} | {"no_proxy": "127.0.0.1,localhost"}


def folder_of(root: Path) -> Path:
    return root / "_build" / "html" / publish.FOLDER


def check(release: Release) -> Iterator[str]:
    folder = folder_of(release.root)
    if not folder.is_dir():
        yield "there are no downloads: run `make formats`, which makes them"
        return
    yield from (f"{name} is not what was published" for name in publish.broken(folder))
    yield from epubcheck(folder)
    for name in ARCHIVES:
        yield from _run(folder / name, release.say)


def epubcheck(folder: Path) -> Iterator[str]:
    """What epubcheck has against the EPUB."""
    call = tools.epubcheck()
    if not call:
        yield tools.EPUBCHECK
        return
    book = folder / f"{notebooks.FOLDER}.epub"
    done = subprocess.run([*call, str(book)], capture_output=True, text=True)
    for line in (done.stdout + done.stderr).splitlines():
        if re.match(r"(FATAL|ERROR|WARNING)\(", line):
            yield f"epubcheck: {line.replace(str(folder), '')}"
    if done.returncode and "Messages:" not in done.stdout + done.stderr:
        yield f"epubcheck did not run: {done.stderr.strip()[-300:]}"


def _run(archive: Path, say: Callable[[str], None]) -> Iterator[str]:
    """Run every notebook of an archive, in a folder that has nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(io.BytesIO(archive.read_bytes())).extractall(folder)
        library = Path(folder, "library")  # the one of the archive, not that of this environment
        for wheel in Path(folder).rglob("*.whl"):
            zipfile.ZipFile(wheel).extractall(library)
        for path in sorted(Path(folder).rglob("*.ipynb")):
            fault = run(path, library)
            say(f"{archive.name}: {path.name} {'runs' if not fault else 'fails'}")
            if fault:
                yield f"{archive.name}: {path.name}: {fault}"


def run(path: Path, library: Path | None = None, python: str = sys.executable) -> str:
    """What stops a notebook from running to its end, with this library; "" if nothing does."""
    if not any(c["cell_type"] == "code" for c in json.loads(path.read_text("utf-8"))["cells"]):
        return ""
    call = [python, "-m", "jupyter", "execute", "--timeout=900", str(path)]
    env = {**os.environ, **NO_NETWORK, "PYTHONPATH": str(library or "")}
    done = subprocess.run(call, capture_output=True, text=True, cwd=path.parent, env=env)
    return "" if done.returncode == 0 else done.stderr.strip()[-800:]
