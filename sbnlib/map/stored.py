"""The results of every estimator of the registry on sbn-map-1, which come with the package.

``python -m sbnlib.map --all`` measures them again. They are of one problem set: its hash stands in
the file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from sbnlib.data import DataError
from sbnlib.map.problem_set import NAME, SHA256

__all__ = ["FILE", "results", "text"]

FILE = f"{NAME}-results.json"

Row = dict[str, Any]


def results() -> dict[str, list[Row]]:
    """The rows of every estimator of the registry, by its name; rows are as in :class:`Report`.

    Raises:
        DataError: the file is missing, damaged or of another problem set.
    """
    return dict(_results())


@functools.lru_cache(maxsize=1)
def _results() -> dict[str, list[Row]]:
    cure = "python -m sbnlib.map --all measures them again"
    try:
        content = json.loads(files("sbnlib.map").joinpath(FILE).read_bytes())
        sha256, estimators = content["sha256"], content["estimators"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{FILE}: not the registry's results ({error}); {cure}") from error
    if sha256 != SHA256:
        raise DataError(f"{FILE}: of a problem set with sha256 {sha256}, not {SHA256}; {cure}")
    return {name: entry["rows"] for name, entry in estimators.items()}


def text(found: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str], samples: int) -> str:
    """The text of the file, one row a line.

    Args:
        found: of each estimator ``moments`` ("exact" or "sampled") and ``rows``.
        versions: in use.
        samples: a problem, where moments are sampled.
    """
    head = {
        "problems": NAME,
        "sha256": SHA256,
        "command": "python -m sbnlib.map --all",
        "versions": dict(versions),
        "samples": samples,
    }
    entries = []
    for name, entry in found.items():
        rows = ",\n   ".join(map(json.dumps, entry["rows"]))
        entries.append(f'"{name}": {{"moments": "{entry["moments"]}", "rows": [\n   {rows}]}}')
    body = ",\n  ".join(entries)
    return f'{json.dumps(head, indent=1)[:-2]},\n "estimators": {{\n  {body}\n }}\n}}\n'
