"""A folder to begin with: ``python -m sbnlib.new DIR``."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from sbnlib.files import CannotWriteError, write_whole

__all__ = ["FILES", "write"]


def __dir__() -> list[str]:  # what completion offers
    return __all__


#: What is written: a script, its test, and a page on both.
FILES = ("train.py", "test_train.py", "README.md")


def write(folder: str | os.PathLike[str]) -> list[Path]:
    """Write the files of :data:`FILES` into a folder, which is made where it does not exist.

    Args:
        folder: a new folder, or an empty one; the folder that it lies in exists.

    Returns:
        The files.

    Raises:
        CannotWriteError: ``folder`` holds something, is no folder, or cannot be made. Then nothing
            is written.
    """
    folder = Path(folder)
    _check(folder)
    try:
        folder.mkdir(exist_ok=True)
        paths = [folder / name for name in FILES]
        for path in paths:
            write_whole(path, template(path.name))
    except OSError as error:
        raise CannotWriteError(f"DIR {folder} cannot be written: {error.strerror}") from error
    return paths


def template(name: str) -> str:
    """The text of one of the files. In the package they are texts, which no tool takes for ours."""
    return (resources.files(__name__) / "templates" / f"{name}.txt").read_text("utf-8")


def _check(folder: Path) -> None:
    """Refuse a folder that is not new and not empty, before anything is written."""
    if folder.is_dir():
        if there := sorted(path.name for path in folder.iterdir()):
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise CannotWriteError(f"DIR must be new or empty, {folder} holds {there[0]}{more}")
    elif folder.exists() or folder.is_symlink():
        raise CannotWriteError(f"DIR must be a folder, {folder} is none")
    elif not folder.parent.is_dir():
        raise CannotWriteError(f"DIR must lie in a folder that is there, {folder.parent} is none")
