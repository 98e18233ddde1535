"""Files that are written whole, and tried before any work."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

__all__ = ["CannotWriteError", "check_writable", "write_whole"]


class CannotWriteError(ValueError):
    """A file cannot be written; the message names it and says why."""


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Put ``content`` in ``path`` at one stroke: whoever looks sees the old file or the new one.

    Several processes may do so at once: the last one's is there in the end, whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    try:
        with part.open("wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Try what :func:`write_whole` will do with ``path``, before any work; leaves nothing behind.

    Raises:
        CannotWriteError: there is something else than a file, or it cannot be made there.
    """
    path = Path(path)
    missing: list[Path] = []
    try:
        if path.exists() and not path.is_file():
            raise CannotWriteError(f"{path} cannot be written: it is no file")
        if files := [p for p in path.parents if p.is_file()]:
            raise CannotWriteError(f"{path} cannot be written: {files[0]} is no folder")
        missing += [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        part.open("ab").close()
        part.unlink()
    except OSError as error:
        raise CannotWriteError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        for folder in missing:  # the innermost first
            with suppress(OSError):
                folder.rmdir()


def _part(path: Path) -> Path:
    """Where a file is written before it is put in its place, by one writer alone."""
    return path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")
