"""Packages that only a part of the library needs: a missing one is named, with what brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["extra"]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports inside come with ``sbnlib[name]``.

    Raises:
        ModuleNotFoundError: a package is not installed; the message names it and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "sbnlib"):
            raise
        raise ModuleNotFoundError(
            f"{package} is not installed; it comes with an extra: pip install 'sbnlib[{name}]'",
            name=package,
        ) from error
