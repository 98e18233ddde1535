"""The checks of a release: those of every run, and those that take minutes or another program.

The EPUB passes epubcheck, every notebook of both archives runs from the first cell to the last in a
folder of its own with no network, and the places that name the version name the same one.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from formats import notebooks, publish

EPUBCHECK = (
    "epubcheck is not there. On Debian and Ubuntu: `apt-get install epubcheck "
    "default-jre-headless`; elsewhere Java and the jar of "
    "https://www.w3.org/publishing/epubcheck, with EPUBCHECK=/its/path"
)
JARS = ("/usr/share/java/epubcheck.jar",)
#: Where a program of a release must not reach: no host has this address.
NO_NETWORK = {
    f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "HTTP", "HTTPS")
} | {"no_proxy": "127.0.0.1,localhost"}


def check(site: Path, root: Path, say: Callable[[str], None]) -> list[str]:
    """Everything that is wrong with the published formats."""
    folder = site / publish.FOLDER
    faults = [f"{name} is not what was published" for name in publish.broken(folder)]
    for what, found in (("versions", versions(root)), ("epubcheck", epubcheck(folder))):
        new = list(found)
        say(f"{what}: {'in order' if not new else f'{len(new)} faults'}")
        faults += new
    for name in ("notebooks", "notebooks-without-solutions"):
        faults += list(_run(folder / f"{notebooks.FOLDER}-{name}.zip", say))
    return faults


def versions(root: Path) -> Iterator[str]:
    """The places that do not name the version of the package."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    version = project["project"]["version"]
    cited = str(yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))["version"])
    changes = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text("utf-8"), re.M)
    if cited != version:
        yield f"CITATION.cff names version {cited}, pyproject.toml {version}"
    if not changes or changes[1] != version:
        yield f"CHANGELOG.md begins with {changes[1] if changes else 'none'}, not with {version}"


def command() -> list[str]:
    """How epubcheck is called here; nothing if it is not there."""
    java = shutil.which("java")
    jar = next((j for j in (os.environ.get("EPUBCHECK", ""), *JARS) if j and Path(j).exists()), "")
    return [java, "-jar", jar] if java and jar else []


def epubcheck(folder: Path) -> Iterator[str]:
    """What epubcheck has against the EPUB."""
    call = command()
    if not call:
        yield EPUBCHECK
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


def run(path: Path, library: Path | None = None) -> str:
    """What stops a notebook from running to its end, with this library; "" if nothing does."""
    if not any(c["cell_type"] == "code" for c in json.loads(path.read_text("utf-8"))["cells"]):
        return ""
    call = [sys.executable, "-m", "jupyter", "execute", "--timeout=900", str(path)]
    env = {**os.environ, **NO_NETWORK} | ({"PYTHONPATH": str(library)} if library else {})
    done = subprocess.run(call, capture_output=True, text=True, cwd=path.parent, env=env)
    return "" if done.returncode == 0 else done.stderr.strip()[-800:]
