"""Reports of the probes, each made once for all tests of a process."""

from __future__ import annotations

from functools import cache
from typing import Any

from probes import PROBES

from sbnlib import diagnose_unit


@cache
def report_of(name: str) -> Any:
    return diagnose_unit(PROBES[name].make(), name=name)
