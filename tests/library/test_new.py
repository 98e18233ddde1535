"""The folder to begin with: what is written runs, resumes, is good, and is in good form."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT

import sbnlib
from sbnlib.files import CannotWriteError
from sbnlib.new import FILES, template, write
from sbnlib.new.__main__ import main

HERE = Path(sbnlib.__file__).parents[1]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


# ---- what is written -----------------------------------------------------------------------------


def test_the_command_writes_the_templates_and_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    assert main([str(folder)]) == 0
    assert {p.name for p in folder.iterdir()} == set(FILES)
    for name in FILES:
        assert (folder / name).read_text("utf-8") == template(name)
    said = capsys.readouterr().out
    assert all(f"wrote {folder / name}" in said for name in FILES)
    assert f"cd {folder}; python train.py" in said


@pytest.mark.slow
def test_the_module_runs_from_the_command_line(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "sbnlib.new", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "mine" / "train.py").is_file()


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    assert [p.name for p in write(tmp_path)] == list(FILES)


def test_the_script_has_at_most_seventy_lines() -> None:
    assert len(template("train.py").splitlines()) <= 70


@pytest.mark.parametrize("name", FILES)
def test_lines_fit_where_no_tool_is_configured(name: str) -> None:
    """88 columns, the default of ruff and black; a table of a page cannot be broken."""
    lines = template(name).splitlines()
    prose = [line for line in lines if not line.startswith("|")]
    assert max(map(len, prose)) <= (88 if name.endswith(".py") else 100)


def test_the_scripts_are_clean_where_no_tool_is_configured(tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.is_file():
        pytest.skip("ruff is not installed")
    write(tmp_path)
    for what in (["check", "--select", "E,F,I,B,UP,SIM,RET,W"], ["format", "--check"]):
        done = subprocess.run([ruff, what[0], "--isolated", "--no-cache", *what[1:], "."],
                              cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_the_page_names_what_is_there() -> None:
    """Each name in its columns is one of the script, or one of sbnlib."""
    page, script = template("README.md"), template("train.py")
    names = {n.name for n in ast.walk(ast.parse(script)) if isinstance(n, ast.FunctionDef)}
    names |= {n.id for n in ast.walk(ast.parse(script)) if isinstance(n, ast.Name)}
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    for row in rows:
        for name in re.findall(r"`(\w+)`", row[2]):
            assert name in names, name
    import sbnlib.packed  # noqa: F401

    for path in re.findall(r"sbnlib\.([\w.]+)", page):
        found = sbnlib
        for part in path.rstrip(".").split("."):
            found = getattr(found, part)


def test_the_page_names_chapters_by_their_titles() -> None:
    titles = set()
    for path in (ROOT / "book").glob("*/[0-9][0-9]-*.ipynb"):
        source = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
        titles.add(re.search(r"^# (.*)$", source, re.MULTILINE)[1])
    page = (ROOT / "book" / "how-to.md").read_text("utf-8")
    titles.add(re.search(r"^# (.*)$", page, re.MULTILINE)[1])
    titles.add("A practitioner's guide")  # the last chapter
    cited = [t for line in template("README.md").splitlines() if line.startswith("| ")
             for t in re.findall(r'"([^"]+)"', line.split("|")[3])]  # fmt: skip
    assert len(cited) >= 8
    assert [t for t in cited if t not in titles] == []


def test_the_templates_are_in_the_package_that_is_installed() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (pattern,) = settings["tool"]["setuptools"]["package-data"]["sbnlib.new"]
    there = {p.name for p in (ROOT / "sbnlib" / "new").glob(pattern)}
    assert there == {f"{name}.txt" for name in FILES}


@pytest.mark.slow
def test_it_is_written_from_a_package_in_an_archive(tmp_path: Path) -> None:
    """The templates are read as package data, not as files beside the source."""
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in (ROOT / "sbnlib").rglob("*"):
            if path.suffix in {".py", ".txt", ".json"}:
                out.write(path, path.relative_to(ROOT))
    code = "from sbnlib.new import template; print(len(template('train.py').splitlines()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(archive)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(template("train.py").splitlines())


# ---- what it does --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_trains_goes_on_and_saves_a_network_of_torch(tmp_path: Path) -> None:
    write(tmp_path)
    first = run(tmp_path, "train.py")
    assert first.returncode == 0, first.stderr
    told = re.search(r"deterministic, test (0\.\d+)", first.stdout)
    # Other processors round otherwise and train another network: 0.93 is 4 standard errors of 359
    # images below the 0.969 of this one
    assert float(told[1]) > 0.93
    again = run(tmp_path, "train.py")
    assert "epoch" not in again.stdout  # it was done
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    code = """
import torch
from torch import nn
from sbnlib.data import load
class Step(nn.Module):
    def forward(self, a):
        return torch.where(a >= 0, 1.0, -1.0)
layers = [m for n in (64, 128) for m in (nn.Linear(n, 128), nn.BatchNorm1d(128), Step())]
net = nn.Sequential(*layers, nn.Linear(128, 10)).eval()
net.load_state_dict(torch.load("digits.pt"))
test = load("digits").test
print(f"{(net(test.inputs).argmax(1) == test.labels).float().mean():.3f}")
"""
    assert run(tmp_path, "-c", code).stdout.strip() == told[1]


@pytest.mark.slow
def test_its_own_test_passes(tmp_path: Path) -> None:
    write(tmp_path)
    done = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout


# ---- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_a_folder_that_holds_something_is_left_alone(full: Path) -> None:
    with pytest.raises(CannotWriteError, match="DIR must be new or empty, .* holds notes.txt"):
        write(full)
    assert [p.name for p in full.iterdir()] == ["notes.txt"]


def test_a_second_time_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(CannotWriteError, match=r"holds README.md and 2 more"):
        write(tmp_path)


def test_a_file_in_its_place_is_refused(full: Path) -> None:
    with pytest.raises(CannotWriteError, match="DIR must be a folder, .*notes.txt is none"):
        write(full / "notes.txt")
    (full / "broken").symlink_to(full / "nowhere")
    with pytest.raises(CannotWriteError, match="DIR must be a folder"):
        write(full / "broken")


@pytest.mark.parametrize("inner", ["nowhere/mine", "notes.txt/mine"])
def test_a_folder_that_would_lie_nowhere_is_refused(full: Path, inner: str) -> None:
    with pytest.raises(CannotWriteError, match="DIR must lie in a folder that is there"):
        write(full / inner)
    assert [p.name for p in full.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_is_closed_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CannotWriteError, match=r"DIR .* cannot be written: Permission denied"):
            write(tmp_path / "mine")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--force", "a"]])
def test_the_command_takes_one_folder(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_the_command_refuses_in_a_sentence(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(full)])
    assert stopped.value.code == 2
    assert "DIR must be new or empty" in capsys.readouterr().err
