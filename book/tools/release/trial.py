"""What a reader does with the package, done inside an environment that has it.

    python -I trial.py README.md [EXTRA ...]

imports every module, asks every command for its help and runs the examples of the README that need
no other extras than those named. It knows nothing of the checkout and imports nothing of it. A line
that begins with "fault: " is one; the others say what was done.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

STARTS = 'if __name__ == "__main__":'
SECTION = re.compile(r"^#+ ", re.M)
EXAMPLE = re.compile(r"```python\n(.*?)```", re.S)
NEEDS = re.compile(r"\(extras? (`\w+`(?:(?:, | and )`\w+`)*)\)")
COMMAND = re.compile(r"python -m (sbnlib[\w.]*)")
EXTRA = re.compile(r"comes with an extra: pip install 'sbnlib\[(\w+)\]'")


def modules() -> dict[str, Path]:
    """The file of every module of the installed package; none is imported for it."""
    import sbnlib

    (folder,) = map(Path, sbnlib.__path__)
    files = sorted(p for p in folder.rglob("*.py") if "templates" not in p.parts)
    names = (".".join(p.relative_to(folder.parent).with_suffix("").parts) for p in files)
    return {n.removesuffix(".__init__"): p for n, p in zip(names, files, strict=True)}


def extra_of(text: str) -> str:
    """The extra that an error message names; "" if it names none that the package has."""
    found = EXTRA.search(text)
    known = metadata("sbnlib").get_all("Provides-Extra") or []
    return found[1] if found and found[1] in known else ""


def imports() -> Iterator[str]:
    """Every module can be imported, or says which extra it needs."""
    names, waiting = list(modules()), {}
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            waiting[name] = extra_of(str(error))
            if not waiting[name]:
                yield f"fault: {name} cannot be imported and names no extra: {error}"
    yield f"{len(names)} modules, of which these name an extra: {_listed(waiting)}"


def _listed(waiting: dict[str, str]) -> str:
    return ", ".join(f"{name} [{extra}]" for name, extra in waiting.items()) or "none"


def commands(readme: str) -> Iterator[str]:
    """Every command of the package, and every one that the README shows, has a help."""
    here = {name.removesuffix(".__main__") for name, file in modules().items()
            if name.endswith(".__main__") or STARTS in file.read_text("utf-8")}  # fmt: skip
    shown = {name.rstrip(".") for name in COMMAND.findall(readme)}
    waiting = {}
    for name in sorted(here | shown):
        done = _python("-m", name, "--help")
        if done.returncode or "usage" not in done.stdout.lower():
            waiting[name] = extra_of(done.stderr)
            if not waiting[name]:
                yield f"fault: python -m {name} --help: {done.stderr.strip()[-300:]}"
    yield f"{len(here | shown)} commands, of which these name an extra: {_listed(waiting)}"


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-I", *arguments]
        return subprocess.run(call, capture_output=True, text=True, cwd=folder)


def examples(readme: str) -> Iterator[tuple[str, set[str], str]]:
    """Each example: the heading over it, the extras that its section names, the code."""
    for section in SECTION.split(readme):
        for found in EXAMPLE.finditer(section):
            said = " ".join(NEEDS.findall(section[: found.start()]))
            yield section.partition("\n")[0], set(re.findall(r"`(\w+)`", said)), found[1]


def run_examples(readme: str, extras: set[str]) -> Iterator[str]:
    for heading, needed, code in examples(readme):
        if needed <= extras:
            done = _python("-c", code)
            if done.returncode:
                yield f"fault: the example of {heading!r} fails: {done.stderr.strip()[-600:]}"
            yield f"example of {heading!r}: {'fails' if done.returncode else 'runs'}"


def main(arguments: list[str]) -> int:
    readme = Path(arguments[0]).read_text("utf-8")
    lines = [*imports(), *commands(readme), *run_examples(readme, set(arguments[1:]))]
    print("\n".join(lines))
    return int(any(line.startswith("fault: ") for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
