"""Measurement files: the evidence behind a number in the book, one JSON file a run.

    {"kind", "command", "commit", "date", "device", "versions", "seeds",
     "checks": {name: bool}, "ratios": {name: number}, "rows": [...]}

A file is written whole (to a temporary file, which is then renamed) and read by one function, so a
file cut off by a kill cannot be taken for a result. Numbers are finite: what Python's own reader
takes for NaN or an infinity is refused.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import torch

from sbnlib import files

__all__ = [
    "SCHEMA",
    "MeasurementError",
    "check_writable",
    "commit",
    "describe_device",
    "kept",
    "read",
    "record",
    "stored",
    "write",
    "write_whole",
]


def __dir__() -> list[str]:  # what completion offers
    return __all__


#: The form of a measurement file, a JSON schema in the few keywords that ``problems`` reads.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": [
        "kind",
        "command",
        "commit",
        "date",
        "device",
        "versions",
        "seeds",
        "checks",
        "ratios",
        "rows",
    ],
    "additionalProperties": False,
    "properties": {
        "kind": {"type": "string"},
        "command": {"type": "string"},
        "commit": {"type": "string"},
        "date": {"type": "string"},
        "device": {"type": "string"},
        "versions": {"type": "object", "additionalProperties": {"type": "string"}},
        "seeds": {"type": "array", "items": {"type": "integer"}},
        "checks": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "ratios": {"type": "object", "additionalProperties": {"type": "number"}},
        "rows": {"type": "array", "items": {"type": "object"}},
    },
}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


#: Fields of rows that older files call otherwise: kind -> the old name -> the name they have now.
RENAMED = {"classify": {"gain": "init_gain"}}


class MeasurementError(ValueError):
    """A measurement file is cut off, not JSON, not finite, or not of the form of ``SCHEMA``; or a
    file could not be written."""


class _NotFinite(Exception):
    """A number in the text that JSON has not, or that no float64 holds."""


def problems(value: Any, schema: Any = SCHEMA, where: str = "file") -> list[str]:
    """Every place where ``value`` departs from ``schema``; an empty list if there is none."""
    if not _has_type(value, schema["type"]):
        return [f"{where}: expected {schema['type']}, got {type(value).__name__}"]
    if schema["type"] == "array":
        return [
            p
            for i, item in enumerate(value)
            for p in problems(item, schema["items"], f"{where}[{i}]")
        ]
    if schema["type"] == "object":
        return _object_problems(value, schema, where)
    return []


def _has_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):  # bool is an int in Python, but not a number in JSON
        return name == "boolean"
    return isinstance(value, _TYPES[name])


def _object_problems(value: dict[str, Any], schema: Any, where: str) -> list[str]:
    found = [
        f"{where}: {key!r} is missing" for key in schema.get("required", ()) if key not in value
    ]
    for key, item in value.items():
        rule = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
        if rule is False:
            found.append(f"{where}: {key!r} is not a known field")
        elif rule is not True:
            found += problems(item, rule, f"{where}.{key}")
    return found


def stored(name: str) -> dict[str, Any]:
    """The measurement that the book keeps under ``name``, looked for from where one works upwards.

    Looks for ``book/measurements/NAME.json`` in the working directory and each directory above it:
    a notebook finds it from anywhere inside a checkout.

    Raises:
        FileNotFoundError: there is none; the message says where the file has to stand.
        MeasurementError: as :func:`read`.
    """
    return read(kept(f"{name}.json"))


def kept(name: str) -> Path:
    """Where the book keeps the file of this name, looked for as :func:`stored` does.

    Raises:
        FileNotFoundError: there is none; the message says where the file has to stand.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (path := folder / "book" / "measurements" / name).is_file():
            return path
    raise FileNotFoundError(
        f"no book/measurements/{name} in {here} or a directory above it: work inside a copy "
        "of the whole book, which holds its measurements"
    )


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The measurement in ``path``, the fields of its rows under the names they have now.

    Raises:
        FileNotFoundError: there is no such file.
        MeasurementError: it is cut off, holds NaN or an infinity, or is not of the form of
            ``SCHEMA``; the message names it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_refused, parse_float=_finite)
    except _NotFinite as error:
        raise MeasurementError(
            f"{path}: not a measurement file: it holds {error}, which is not a number of JSON"
        ) from error
    except ValueError as error:
        raise MeasurementError(
            f"{path}: not a whole JSON file, probably cut off ({error}). "
            "Delete it and run the command that makes it again."
        ) from error
    found = problems(content)
    if found:
        raise MeasurementError(f"{path}: not a measurement file: {'; '.join(found)}")
    names = RENAMED.get(content["kind"], {})
    rows = [{names.get(name, name): v for name, v in row.items()} for row in content["rows"]]
    return content | {"rows": rows}


def _refused(constant: str) -> NoReturn:
    raise _NotFinite(constant)


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refused(digits)


def record(
    *,
    kind: str,
    command: str,
    device: str,
    seeds: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    checks: Mapping[str, bool] | None = None,
    ratios: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A measurement of this moment: adds the commit, the date (UTC) and the versions in use.

    Args:
        kind: what was measured, one word.
        command: the command line that measures it again.
        device: see :func:`describe_device`.
        seeds: the seeds used.
        rows: what was found, one dict each.
        checks: what had to hold, and whether it did.
        ratios: the numbers that the text may quote.
    """
    return {
        "kind": kind,
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "versions": _versions(),
        "seeds": list(seeds),
        "checks": dict(checks or {}),
        "ratios": dict(ratios or {}),
        "rows": [dict(row) for row in rows],
    }


def write(path: str | os.PathLike[str], measurement: Mapping[str, Any]) -> None:
    """Write ``measurement`` (see :func:`record`) to ``path``, whole, one row a line.

    Raises:
        MeasurementError: before anything is written, if it is not of the form of ``SCHEMA`` or
            holds a number that JSON has not (NaN, infinity).
    """
    found = problems(dict(measurement))
    if found:
        raise MeasurementError(f"not a measurement: {'; '.join(found)}")
    head = {key: measurement[key] for key in SCHEMA["required"] if key != "rows"}
    try:
        lines = [json.dumps(row, allow_nan=False) for row in measurement["rows"]]
        text = json.dumps(head, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise MeasurementError(f"not a measurement: {error}") from error
    rows = ",\n  ".join(lines)
    write_whole(path, f'{text[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n')


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Put ``text`` in ``path`` at one stroke: whoever looks sees the old file or the new one."""
    files.write_whole(path, text)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Try what :func:`write_whole` will do with ``path``, before any work; leaves nothing behind.

    Raises:
        MeasurementError: there is something else than a file, or it cannot be made there.
    """
    try:
        files.check_writable(path)
    except files.CannotWriteError as error:
        raise MeasurementError(str(error)) from error


def commit() -> str:
    """The commit that last changed sbnlib, with ``-dirty`` if files of sbnlib differ from it.

    "unknown" where sbnlib is not under git. A commit of text alone changes no measurement, so it
    does not count.
    """
    found = _git("log", "-1", "--format=%H", "--", ".")
    if not found:
        return "unknown"
    return f"{found}-dirty" if _git("status", "--porcelain", "--", ".") else found


def _git(*arguments: str) -> str:
    """What git says about the folder of the package; nothing if it cannot."""
    package = Path(__file__).parent.parent
    try:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def describe_device(device: torch.device | str = "cpu") -> str:
    """``device`` in words: the name of the processor or GPU, and the number of threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s'[: threads > 1]}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "lightning-fabric", "sbnlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
