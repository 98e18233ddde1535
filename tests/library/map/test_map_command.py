"""python -m sbnlib.map: from a module in the current directory to the two files."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import sbnlib
from sbnlib import map as sbn_map
from sbnlib import registry
from sbnlib.map import __main__ as command
from sbnlib.map import placing, stored

MODULE = '''
import torch
import sbnlib
from sbnlib.estimators import attach

def mine(a, x, noise):
    """Straight-through, three quarters of it."""
    return attach(x, a, 1.5 * noise.pdf(a.detach()))

def flips(loss, a, noise, *, num_samples=1, generator=None):
    return sbnlib.disarm(loss, a, noise, num_samples=num_samples, generator=generator)

def short(u, v, w):
    return attach(v, u, w.pdf(u.detach()))

def changes(a, x, noise):
    return x + a - a.detach()

number = 3
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A directory with a module, whose name no other test has."""
    name = f"own_{abs(hash(tmp_path.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return name


def run(arguments: list[str], folder: Path, seed: str) -> subprocess.CompletedProcess:
    root = Path(sbnlib.__file__).parents[1]
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-m", "sbnlib.map", *arguments], cwd=folder,
                          capture_output=True, text=True, env=environment)  # fmt: skip


@pytest.mark.slow
def test_the_command_gives_the_same_bytes_in_another_process_and_folder(tmp_path: Path) -> None:
    problems = ["xor-1x5-logistic-1", "digits-2x5-logistic-1"]
    for seed, folder in (("1", tmp_path / "one"), ("2", tmp_path / "two" / "deep")):
        folder.mkdir(parents=True)
        (folder / "theirs.py").write_text(MODULE)
        for name in ("mine", "flips"):
            done = run([f"theirs:{name}", "--out", f"out{seed}", "--problems", *problems],
                       folder, seed)  # fmt: skip
            assert done.returncode == 0 and done.stderr == ""
    for name in ("mine", "flips"):
        for end in ("json", "html"):
            one = (tmp_path / "one" / "out1" / f"sbn-map-1-{name}.{end}").read_bytes()
            assert one == (tmp_path / "two/deep/out2" / f"sbn-map-1-{name}.{end}").read_bytes()
    found = json.loads((tmp_path / "one/out1/sbn-map-1-mine.json").read_text())
    assert found["command"] == f"python -m sbnlib.map theirs:mine --problems {' '.join(problems)}"


def test_what_the_command_writes_is_the_report(here: str, tmp_path: Path, capsys) -> None:
    options = ["--kind", "chain rule", "--name", "my own/½", "--problems", "xor-1x5-logistic-1"]
    assert command.main([f"{here}:short", *options, "--out", "a/b"]) == 0
    said = capsys.readouterr().out
    files = sorted((tmp_path / "a" / "b").iterdir())
    assert [f.name for f in files] == ["sbn-map-1-my-own.html", "sbn-map-1-my-own.json"]
    report = sbn_map.place(sys.modules[here].short, kind="chain rule", name="my own/½",
                           problems=["xor-1x5-logistic-1"])  # fmt: skip
    found = json.loads(files[1].read_text("utf-8"))
    again = json.loads(report.json())
    assert found["rows"] == again["rows"] and found["estimator"] == "my own/½"
    assert str(report) in said and "wrote a/b/sbn-map-1-my-own.html" in said
    words = shlex.split(found["command"])
    assert words == ["python", "-m", "sbnlib.map", f"{here}:short", *options]
    assert found["cite"] in said and found["cite"].endswith(found["command"])


def test_a_name_of_the_registry_will_do(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command.main(["zgr", "--problems", "xor-1x5-logistic-1"])
    found = json.loads((tmp_path / "sbn-map-1-zgr.json").read_text())
    assert found["entry"] == "zgr" and found["rows"][0]["rank_by_efficiency"]["all"][1] == 19


def test_the_list_has_every_problem_and_every_estimator(capsys) -> None:
    assert command.main(["--list"]) == 0
    said = capsys.readouterr().out
    for name in (*sbn_map.problems(), *registry.ESTIMATORS):
        assert f"  {name} " in said


@pytest.mark.slow
def test_all_writes_what_results_reads(tmp_path: Path, monkeypatch, capsys) -> None:
    few = {name: registry.ESTIMATORS[name] for name in ("zgr", "disarm")}
    monkeypatch.setattr(registry, "ESTIMATORS", few)
    monkeypatch.setattr(placing, "SAMPLES", 64)
    assert command.main(["--all", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(stored, "files", lambda _: tmp_path)
    old = sbn_map.results()
    stored._results.cache_clear()
    try:
        found = sbn_map.results()
        content = json.loads((tmp_path / stored.FILE).read_text())
    finally:
        stored._results.cache_clear()
    assert list(found) == ["zgr", "disarm"] and found["zgr"] == old["zgr"]
    assert [e["moments"] for e in content["estimators"].values()] == ["exact", "sampled"]
    assert content["command"] == "python -m sbnlib.map --all"


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give MODULE:NAME, --list or --all, one of the three"),
        (["{0}:mine", "--all"], "one of the three"),
        (["--list", "--kind", "network"], "--kind belongs to an estimator, MODULE:NAME"),
        (["mine"], "estimator must be MODULE:NAME, or a name of the registry, one of straight_thr"),
        (["{0}:"], "estimator must be MODULE:NAME"),
        (["nowhere_at_all:mine"], "nowhere_at_all cannot be imported: there is no "
         "nowhere_at_all.py in the current directory, and no such module is installed"),
        (["{0}:theirs"], "{0} has no theirs; it has attach, mine, flips, short, changes"),
        (["{0}:number"], "estimator must be a registry name or a function, got 3"),
        (["{0}:short"], "kind of short(u, v, w) cannot be told"),
        (["{0}:mine", "--kind", "network"], "kind must be 'chain rule' for mine(a, x, noise, ...)"),
        (["{0}:changes"], "estimator must return the state x with its value unchanged"),
        (["{0}:mine", "--problems", "xor"], "problems must be names of sbn-map-1"),
        (["{0}:mine", "--out", "{0}.py"], "cannot be written: {0}.py is no folder"),
        (["broken:f"], "broken cannot be imported: it raised ZeroDivisionError: division by zero"),
        (["leaves:f"], "leaves cannot be imported: it raised SystemExit: 7"),
        (["needs:f"], "needs cannot be imported: it raised ModuleNotFoundError: No module "),
        (["empty:f"], "empty has no f; it has no function"),
    ],
)  # fmt: skip
def test_a_command_is_refused_in_one_sentence_before_any_work(
    arguments: list[str], words: str, here: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    for name, text in {"broken": "1 / 0", "leaves": "raise SystemExit(7)", "empty": "",
                       "needs": "import not_there"}.items():  # fmt: skip
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(placing, "_row", lambda *_: pytest.fail("it worked"))
    before = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts)
    with pytest.raises(SystemExit) as stop:
        command.main([a.format(here) for a in arguments])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    *_, sentence = said.strip().splitlines()
    assert words.format(here) in sentence and sentence.startswith("python -m sbnlib.map: error: ")
    after = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts)
    assert after == before


def test_results_that_are_not_there_are_told_before_any_work(here, monkeypatch, capsys) -> None:
    monkeypatch.setattr(placing, "_row", lambda *_: pytest.fail("it worked"))
    monkeypatch.setattr(stored, "FILE", "nowhere.json")
    stored._results.cache_clear()
    try:
        with pytest.raises(SystemExit):
            command.main([f"{here}:mine"])
    finally:
        stored._results.cache_clear()
    assert "python -m sbnlib.map --all measures them again" in capsys.readouterr().err


def test_a_missing_extra_is_told_before_any_work(here, monkeypatch, capsys) -> None:
    monkeypatch.setattr(placing, "_row", lambda *_: pytest.fail("it worked"))
    for name in [m for m in sys.modules if m.startswith("sbnlib.figures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        command.main([f"{here}:mine"])
    assert "pip install 'sbnlib[figures]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_package_needs_no_extra_and_stays_off_the_list() -> None:
    extras = ["matplotlib", "sklearn", "scipy", "IPython"]
    code = f"""
import sys, sbnlib, sbnlib.map.__main__ as m
m.main(["--list"])
print([n for n in {extras} if n in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
    assert "map" not in sbnlib.__all__


def test_help_says_what_each_option_does(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for action in command._parser()._actions[1:]:
        assert len((action.help or "").split()) >= 3
        assert all(option in said for option in action.option_strings)
