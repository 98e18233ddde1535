"""The programs that a release calls. One that is missing is named, with the way to get it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from formats import browser
from formats.pages import FormatError

if TYPE_CHECKING:
    from release.command import Release

GIT = "git is not there: `apt-get install git`, or https://git-scm.com"
VENV = "Python's venv cannot make an environment here: on Debian `apt-get install python3-venv`"
EPUBCHECK = (
    "epubcheck is not there. On Debian and Ubuntu: `apt-get install epubcheck "
    "default-jre-headless`; elsewhere Java and the jar of "
    "https://www.w3.org/publishing/epubcheck, with EPUBCHECK=/its/path"
)
JARS = ("/usr/share/java/epubcheck.jar",)


def check(release: Release) -> Iterator[str]:
    if not shutil.which("git"):
        yield GIT
    if not importlib.util.find_spec("ensurepip"):
        yield VENV
    if not epubcheck():
        yield EPUBCHECK
    try:
        browser.executable()
    except FormatError as error:
        yield str(error)


def epubcheck() -> list[str]:
    """How epubcheck is called here; nothing if it is not there."""
    java = shutil.which("java")
    jar = next((j for j in (os.environ.get("EPUBCHECK", ""), *JARS) if j and Path(j).exists()), "")
    return [java, "-jar", jar] if java and jar else []
