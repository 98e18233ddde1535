"""The places that name the version name the same one, and what is released is committed."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from release.command import Release


def check(release: Release) -> Iterator[str]:
    yield from versions(release.root)
    yield from uncommitted(release.root)


def versions(root: Path) -> Iterator[str]:
    """The places that do not name the version of the package."""
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for place, named in _places(root):
        if named != version:
            yield f"{place} names version {named}, pyproject.toml {version}"


def _places(root: Path) -> Iterator[tuple[str, str]]:
    """Each place with the version that it names."""
    yield "CITATION.cff", str(yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))["version"])
    yield ".zenodo.json", json.loads((root / ".zenodo.json").read_text("utf-8"))["version"]
    for place, pattern in (
        ("CHANGELOG.md", r"^## (\S+)"),
        ("sbnlib/__init__.py", r'^__version__ = "(.*)"'),
    ):
        found = re.search(pattern, (root / place).read_text("utf-8"), re.M)
        yield place, found[1] if found else "none"


def uncommitted(root: Path) -> Iterator[str]:
    """What a clone of the checkout would not have; the checks beside this one look at a clone."""
    done = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        yield f"this is no git checkout: {done.stderr.strip()}"
    for line in done.stdout.splitlines():
        yield f"not committed: {line[3:]}"
