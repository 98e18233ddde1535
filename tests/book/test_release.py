"""The checks of `make release`: what they find, and what they say where a thing is missing."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import nbformat
import pytest
import yaml
from places import ROOT

sys.path.insert(0, str(ROOT / "book" / "tools"))

from formats import browser  # noqa: E402
from formats.pages import FormatError  # noqa: E402
from release import (  # noqa: E402
    command,
    downloads,
    environments,
    package,
    road,
    tools,
    trial,
    versions,
)
from release.environments import Environment, Missing  # noqa: E402

README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def git(folder, *arguments):
    given = ["-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    subprocess.run(["git", *given], cwd=folder, check=True, capture_output=True)


def told(**given):
    """A release that notes what it says in `lines`."""
    lines = []
    return command.Release(say=lines.append, **given), lines


# ---- the command -------------------------------------------------------------------------------


def test_every_check_is_carried_out_and_none_hides_those_after_it(monkeypatch):
    asked = []

    def check(name):
        return lambda release: (asked.append(name), iter([f"no {name}"]))[1]

    monkeypatch.setattr(command, "CHECKS", {name: check(name) for name in command.CHECKS})
    release, lines = told()
    faults = command.carry_out(list(command.CHECKS), release)
    assert asked == ["tools", "versions", "downloads", "package", "road"]
    assert faults == [f"{name}: no {name}" for name in asked]
    assert all(re.search(r" s  \w+: 1 faults$", line) for line in lines)


def test_a_check_that_is_not_there_is_refused_with_those_that_are(capsys):
    with pytest.raises(SystemExit):
        command.main(["wheels"])
    assert "no check is called wheels; there are tools, versions," in capsys.readouterr().err


def test_a_missing_program_is_named_with_the_way_to_get_it(monkeypatch):
    def none(*_):
        raise FormatError("no browser")

    monkeypatch.setattr(browser, "executable", none)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda _: None)
    faults = list(tools.check(told()[0]))
    assert faults == [tools.GIT, tools.VENV, tools.EPUBCHECK, "no browser"]
    assert all("apt-get install" in fault for fault in faults[:3])


# ---- versions ----------------------------------------------------------------------------------


def test_versions_that_differ_are_named(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.1"\n', "utf-8")
    (tmp_path / "CITATION.cff").write_text("version: 1.0\n", "utf-8")
    (tmp_path / ".zenodo.json").write_text('{"version": "1.0"}', "utf-8")
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 0.9\n", "utf-8")
    (tmp_path / "sbnlib").mkdir()
    (tmp_path / "sbnlib" / "__init__.py").write_text('__version__ = "1.1"\n', "utf-8")
    assert list(versions.versions(tmp_path)) == [
        "CITATION.cff names version 1.0, pyproject.toml 1.1",
        ".zenodo.json names version 1.0, pyproject.toml 1.1",
        "CHANGELOG.md names version 0.9, pyproject.toml 1.1",
    ]


def test_the_sources_name_one_version():
    assert list(versions.versions(ROOT)) == []


def test_what_is_not_committed_is_named_and_is_not_in_a_clone(tmp_path):
    (fault,) = versions.uncommitted(tmp_path)
    assert "no git checkout" in fault
    source, tree = tmp_path / "source", tmp_path / "tree"
    source.mkdir()
    git(source, "init", "--quiet")
    (source / "kept").write_text("1", "utf-8")
    git(source, "add", "kept")
    git(source, "commit", "--quiet", "--message", "one")
    (source / "kept").write_text("2", "utf-8")
    (source / "untracked").write_text("", "utf-8")
    assert list(versions.uncommitted(source)) == ["not committed: kept"]
    package.clone(source, tree)
    assert (tree / "kept").read_text() == "1" and not (tree / "untracked").exists()
    with pytest.raises(Missing, match="cannot clone"):
        package.clone(tmp_path / "nowhere", tmp_path / "other")


# ---- downloads ---------------------------------------------------------------------------------


def test_downloads_that_are_not_there_are_asked_for(tmp_path):
    (fault,) = downloads.check(told(root=tmp_path)[0])
    assert "run `make formats`" in fault


def test_epubcheck_that_is_not_there_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert list(downloads.epubcheck(tmp_path)) == [tools.EPUBCHECK]


@pytest.mark.slow
def test_a_notebook_that_fails_says_where(tmp_path):
    path = tmp_path / "n.ipynb"
    cell = nbformat.v4.new_code_cell("raise ValueError('at the end')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    assert "at the end" in downloads.run(path)


# ---- the package -------------------------------------------------------------------------------

PYPROJECT = '[project]\nversion = "1.0"\ndependencies = ["torch>=2"]\n'
METADATA = (
    'Version: 1.0\nRequires-Dist: torch>=2\nRequires-Dist: x; extra == "y"\n\nRequires-Dist: n'
)


@pytest.fixture
def tree(tmp_path):
    """A clone of a package of two files, and archives that hold them."""
    tree = tmp_path / "tree"
    (tree / "sbnlib").mkdir(parents=True)
    (tree / "pyproject.toml").write_text(PYPROJECT, "utf-8")
    for name in ("__init__.py", "py.typed"):
        (tree / "sbnlib" / name).write_text("", "utf-8")
    git(tree, "init", "--quiet")
    git(tree, "add", "sbnlib")
    return tree


def archives(folder, files, metadata=METADATA):
    wheel, sdist = folder / "s.whl", folder / "s.tar.gz"
    licences = [f"s.dist-info/licenses/{name}" for name in package.LICENCES]
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr("s.dist-info/METADATA", metadata)
        for name in (*files, *licences):
            opened.writestr(name, "")
    beside = (*package.BESIDE, "PKG-INFO", "sbnlib.egg-info/SOURCES.txt")
    with tarfile.open(sdist, "w:gz") as packed:
        for name in (*files, *beside):
            packed.addfile(tarfile.TarInfo(f"sbnlib-1.0/{name}"), io.BytesIO())
    return wheel, sdist


@pytest.mark.parametrize(
    ("files", "faults"),
    [
        (["sbnlib/__init__.py", "sbnlib/py.typed"], []),
        (["sbnlib/__init__.py"], ["the wheel lacks sbnlib/py.typed",
                                  "the sdist lacks sbnlib/py.typed"]),
        (["sbnlib/__init__.py", "sbnlib/py.typed", "tests/t.py"],
         ["the wheel has tests/t.py, which does not belong there",
          "the sdist has tests/t.py, which does not belong there"]),
    ],
)  # fmt: skip
def test_an_archive_has_what_is_committed_and_nothing_else(tree, tmp_path, files, faults):
    assert list(package.contents(tree, *archives(tmp_path, files))) == faults


def test_a_wheel_that_asks_for_more_is_named(tree):
    more = METADATA.replace("\n\n", "\nRequires-Dist: scipy\n\n").replace("1.0", "0.9")
    assert list(package.described_as(METADATA, tree)) == []
    assert list(package.described_as(more, tree)) == [
        "what the wheel needs without extras has scipy, which does not belong there",
        "the wheel is not of version 1.0",
    ]


@pytest.mark.slow
def test_the_sdist_of_this_checkout_has_the_package_alone(tmp_path):
    """As `make release` builds it but for the index: the installed setuptools takes the part."""
    tree = tmp_path / "tree"
    try:
        package.clone(ROOT, tree)
    except Missing as reason:
        pytest.skip(str(reason))
    for hook in ("sdist", "wheel"):
        code = f"import setuptools.build_meta as b; b.build_{hook}({str(tmp_path)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert list(package.contents(tree, wheel, sdist)) == []


# ---- where it is tried -------------------------------------------------------------------------


def test_the_environments_are_those_of_pyproject_and_of_the_pins(monkeypatch):
    monkeypatch.setattr(environments, "pythons", lambda: {"3.9": "a", "3.13": "b", "3.11": "c"})
    pinned, oldest, newest = environments.wanted(ROOT)
    assert (oldest.python, oldest.torch, oldest.numpy) == ("3.11", "torch==2.11", "numpy==1.26")
    assert (newest.python, newest.torch, newest.numpy) == ("3.13", "torch", "numpy")
    assert re.fullmatch(r"torch==[\d.]+", pinned.torch)


def test_what_cannot_be_had_is_said_and_the_others_are_tried(monkeypatch):
    class Made:
        def __init__(self, folder, python):
            self.python = python

        def pip(self, *arguments):
            if "torch==2.11" in arguments:
                raise Missing("no matching distribution")
            brings = "nvidia-cublas" if arguments[-1] == "torch" else "sympy"
            parts = [{"metadata": {"name": name, "version": "2"}} for name in ("torch", brings)]
            return json.dumps({"install": parts})

    monkeypatch.setattr(environments, "Environment", Made)
    monkeypatch.setattr(environments, "pythons", lambda: dict.fromkeys(("3.11", "3.13"), "p"))
    monkeypatch.setattr(environments.sys, "version_info", (3, 11))
    lines = []
    found = environments.each(ROOT, "", lines.append, cuda=False)
    assert [wish.name for wish, _ in found] == ["pinned"]
    assert [line.partition(": ")[0] for line in lines] == ["left out"] * 2
    assert "oldest (torch==2.11, numpy==1.26, Python 3.11): no matching" in lines[0]
    assert "build for CUDA" in lines[1] and "TORCH_INDEX=" in lines[1]


@pytest.mark.slow
def test_a_python_that_is_on_the_path_and_does_not_run_is_none(tmp_path, monkeypatch):
    shim, kept = (
        tmp_path / "bin" / "python3.19",
        tmp_path / "versions" / "3.19.0" / "bin" / "python",
    )
    for place, does in ((shim, "exit 127"), (kept, "exit 0")):
        place.parent.mkdir(parents=True)
        place.write_text(f"#!/bin/sh\n{does}\n", "utf-8")
        place.chmod(0o755)
    monkeypatch.setenv("PATH", str(shim.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert environments.pythons()["3.19"] == str(kept)
    kept.unlink()
    assert "3.19" not in environments.pythons()


@pytest.mark.slow
def test_an_environment_has_a_python_of_its_own(tmp_path):
    made = Environment(tmp_path / "env")
    assert made.run("-c", "import sys; print(sys.prefix)").strip() == str(tmp_path / "env")
    assert "pip" in made.packages() and "torch" not in made.packages()


def test_what_a_python_says_when_it_fails_is_the_reason(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "of-this-checkout")
    assert environments.run(sys.executable, "-c", "import os; print(os.getenv('PYTHONPATH'))") == (
        "None\n"
    )
    with pytest.raises(Missing, match="at the end"):
        environments.run(sys.executable, "-c", "raise ValueError('at the end')")
    assert environments._last("x\nERROR: no torch\ny") == "ERROR: no torch"


# ---- what is tried -----------------------------------------------------------------------------


def test_the_examples_of_the_readme_are_found_with_their_extras():
    found = list(trial.examples(README))
    assert len(found) == README.count("```python")
    assert [extras for _, extras, _ in found] == [set(), set(), {"data", "export"}, set()]


def test_an_example_that_fails_is_named():
    text = "## One\n```python\n1 / 0\n```\n## Two\n(extra `data`)\n```python\n1 / 0\n```\n"
    fault, said = trial.run_examples(text, set())
    assert fault.startswith("fault: the example of 'One' fails:") and "ZeroDivision" in fault
    assert said == "example of 'One': fails"


def test_a_module_that_cannot_be_imported_has_to_name_its_extra(monkeypatch):
    def load(name):
        raise {"sbnlib.nn": ModuleNotFoundError("x is not installed; it comes with an extra: pip "
                                                "install 'sbnlib[data]'"),
               "sbnlib.optim": ModuleNotFoundError("No module named 'x'"),
               "sbnlib.noise": ModuleNotFoundError("it comes with an extra: pip install "
                                                   "'sbnlib[nothing]'")}[name]  # fmt: skip

    monkeypatch.setattr(
        trial, "modules", lambda: dict.fromkeys(("sbnlib.nn", "sbnlib.noise", "sbnlib.optim"))
    )
    monkeypatch.setattr(trial.importlib, "import_module", load)
    *faults, said = trial.imports()
    assert [fault.split()[1] for fault in faults] == ["sbnlib.noise", "sbnlib.optim"]
    assert said.startswith("3 modules, ") and "sbnlib.nn [data]" in said


def test_every_module_of_the_package_is_tried():
    folder = ROOT / "sbnlib"
    files = {p for p in folder.rglob("*.py") if "templates" not in p.parts}
    assert len(trial.modules()) == len(files) and "sbnlib.map.__main__" in trial.modules()


# ---- the road without make, and the list ------------------------------------------------------


def test_the_readme_gives_the_road_without_make():
    assert road.commands(README) == [
        "pip install -r requirements.txt",
        "jupyter-book build .",
        "pytest --nbval book",
    ]
    assert road.commands("# Nothing") == []


def test_the_road_ends_where_a_step_fails(tmp_path):
    release, lines = told()
    assert road.walk(release, "git --version", tmp_path, tmp_path) == ""
    fault = road.walk(release, "git nonsense", tmp_path, tmp_path)
    assert fault.startswith("git nonsense: ") and len(lines) == 2


def release_list():
    """The section of CONTRIBUTING.md on releases."""
    return re.search(r"^## A release$.*?(?=^## )", CONTRIBUTING, re.M | re.S)[0]


def test_the_release_list_names_what_there_is():
    text = release_list()
    targets = {"execute", "test", "formats", "reliable", "release"}
    assert set(re.findall(r"`make (\w+)`", text)) == targets
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    places = (
        "pyproject.toml",
        "CITATION.cff",
        ".zenodo.json",
        "CHANGELOG.md",
        "sbnlib/__init__.py",
    )
    assert all(place in text and (ROOT / place).exists() for place in places)
    assert {name for name, _ in versions._places(ROOT)} | {"pyproject.toml"} == set(places)
    rows = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert rows == list(command.CHECKS)


def test_the_weekly_workflow_tries_the_package():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))
    job = workflow["jobs"]["package"]
    (step,) = (s["run"] for s in job["steps"] if "book/tools/release" in s.get("run", ""))
    checks = step.split("book/tools/release")[1].split()
    assert checks and set(checks) <= set(command.CHECKS)
    assert job["if"] == "github.event_name == 'schedule'"
