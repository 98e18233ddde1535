"""Put the formats under the site, whole or not at all.

Everything is written beside the site first, checked against its own list, and then takes its place
by a rename; what was there before stays until then, and stays for good if anything goes wrong. The
front page names the files; a name becomes a link when its file is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path

from formats.pages import LINKED, FormatError

FOLDER = "downloads"
PARTS = "downloads.part-"
LIST = "list.json"  # in the folder of the downloads: what they were made from, and each file's hash
FRONT = "book/index.html"
NAME = '<code class="docutils literal notranslate"><span class="pre">{}</span></code>'


def publish(files: Mapping[str, bytes], site: Path, digest: str) -> None:
    """Replace the downloads of a site.

    Args:
        files: names below the folder of downloads, or below the site for those that begin with "/".
        site: the built site.
        digest: of what they were made from.

    Raises:
        FormatError: what was written is not what was made (a full disk); nothing is replaced.
    """
    sweep(site)
    part = site.parent / f"{PARTS}{os.getpid()}"
    try:
        _write(files, part, digest)
        if faults := broken(part / FOLDER):
            raise FormatError(f"the downloads were not written whole: {', '.join(faults)}")
        _put(part / FOLDER, site / FOLDER)
        for name in (n for n in files if n.startswith("/")):
            os.replace(part / name[1:], site / name[1:])
    except OSError as error:
        raise FormatError(f"the downloads cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    link(site)


def sweep(site: Path) -> None:
    """Take away what a run that was killed has left half done; none of it is on the site."""
    for rest in site.parent.glob(f"{PARTS}*"):
        shutil.rmtree(rest, ignore_errors=True)


def _write(files: Mapping[str, bytes], part: Path, digest: str) -> None:
    hashes = {}
    for name, data in files.items():
        path = part / name[1:] if name.startswith("/") else part / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if not name.startswith("/"):
            hashes[name] = hashlib.sha256(data).hexdigest()
    text = json.dumps({"made_from": digest, "files": hashes}, indent=1) + "\n"
    (part / FOLDER / LIST).write_text(text, "utf-8")


def _put(new: Path, place: Path) -> None:
    """A folder in the place of another, by renames."""
    old = new.with_name("old")
    if place.exists():
        os.rename(place, old)
    os.rename(new, place)


def broken(folder: Path) -> list[str]:
    """The files of a folder of downloads that are not what its list says; or the list itself."""
    try:
        hashes = json.loads((folder / LIST).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return [LIST]
    return [name for name, given in hashes.items() if _hash(folder / name) != given]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def made_from(site: Path) -> str:
    """What the downloads of a site were made from; "" if there are none, or not whole."""
    folder = site / FOLDER
    if broken(folder):
        return ""
    return str(json.loads((folder / LIST).read_text("utf-8"))["made_from"])


# ---- the front page ----------------------------------------------------------------------------


def unlinked(front: bytes) -> bytes:
    """The front page as the build makes it."""
    return LINKED.sub(rb"\1", front)


def link(site: Path) -> None:
    """Make the names of files that are there links to them, with their size."""
    path = site / FRONT
    text = unlinked(path.read_bytes()).decode()
    for file in sorted(p for p in (site / FOLDER).iterdir() if p.name != LIST and p.is_file()):
        text = _linked(text, file.name, f"../{FOLDER}/{file.name}", file)
    for name in ("llms.txt", "llms-full.txt"):
        if (site / name).exists():
            text = _linked(text, name, f"../{name}", site / name)
    part = path.with_suffix(".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)


def _linked(text: str, name: str, href: str, file: Path) -> str:
    size = f'<span class="sbn-size"> ({megabytes(file.stat().st_size)})</span>'
    shown = NAME.format(escape(name))
    return text.replace(shown, f'<a class="sbn-download" href="{href}">{shown}</a>{size}')


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
