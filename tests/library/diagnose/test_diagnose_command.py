"""python -m sbnlib.diagnose: from a module in the current directory to the report and its files."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from traces import strict

import sbnlib
from sbnlib.diagnose import __main__ as command
from sbnlib.diagnose import diagnose_unit

MODULE = '''
import functools
import torch

def right(a):
    """tanh(a/2) and its noise."""
    m = torch.tanh(a / 2)
    x = torch.where(torch.rand_like(a) < torch.sigmoid(a), 1.0, -1.0).to(a.dtype)
    return x.detach() + (m - m.detach())

def steep(a):
    m = 2 * torch.tanh(a)
    return torch.where(a >= 0, 1.0, -1.0).to(a) + (m - m.detach())

class Bin(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return torch.where(a >= 0, 1.0, -1.0).to(a)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        return grad * (a.abs() < 1)

class Layer(torch.nn.Module):
    def forward(self, a):
        return Bin.apply(a)

class Needy(Layer):
    def __init__(self, width):
        super().__init__()

made = Layer()
short = functools.partial(torch.softmax, dim=0)
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
    return subprocess.run([sys.executable, "-m", "sbnlib.diagnose", *arguments], cwd=folder,
                          capture_output=True, text=True, env=environment)  # fmt: skip


@pytest.mark.slow
def test_the_command_gives_the_same_bytes_in_another_process_and_folder(tmp_path: Path) -> None:
    said = []
    for seed, folder in (("1", tmp_path / "one"), ("2", tmp_path / "two" / "deep")):
        folder.mkdir(parents=True)
        (folder / "theirs.py").write_text(MODULE)
        done = run(["theirs:right", "--out", "out"], folder, seed)
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout)
    assert said[0] == said[1]
    for end in ("json", "svg"):
        one = (tmp_path / "one" / "out" / f"diagnosis-right.{end}").read_bytes()
        assert one == (tmp_path / "two/deep/out" / f"diagnosis-right.{end}").read_bytes()


def test_what_the_command_writes_is_the_report(here: str, tmp_path: Path, capsys) -> None:
    assert command.main([f"{here}:steep", "--out", "a/b"]) == 1
    said = capsys.readouterr().out
    report = diagnose_unit(sys.modules[here].steep)
    folder = tmp_path / "a" / "b"
    assert [f.name for f in sorted(folder.iterdir())] == ["diagnosis-steep.json",
                                                          "diagnosis-steep.svg"]  # fmt: skip
    assert said.startswith(f"{report}\n") and "wrote a/b/diagnosis-steep.svg" in said
    text = (folder / "diagnosis-steep.json").read_text("utf-8")
    assert text == report.json() and strict(text)["mismatch"] == pytest.approx(2.0, rel=1e-3)
    picture = ElementTree.fromstring((folder / "diagnosis-steep.svg").read_text("utf-8"))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    words = " ".join("".join(picture.itertext()).split())
    assert "steep" in words and "factor 2" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status", "verdict"),
    [
        ("right", 0, "right: Straight-through for Logistic(scale=1)."),
        ("steep", 1, "steep: No noise in the forward pass; the slope is 2 times straight-through "
         "for Logistic(scale=0.5)."),
        ("Bin", 0, "Bin: No noise in the forward pass; the slope is straight-through for "
         "Uniform(scale=1)."),
        ("Layer", 0, "Layer: No noise in the forward pass; the slope is straight-through for "
         "Uniform(scale=1)."),
        ("made", 0, "made: No noise in the forward pass; the slope is straight-through for "
         "Uniform(scale=1)."),
        ("short", 1, "short: It could not be examined as a binary unit."),
        ("Needy", 1, "Needy: It could not be examined."),
    ],
)  # fmt: skip
def test_the_status_says_whether_something_is_wrong(
    name: str, status: int, verdict: str, here: str, tmp_path: Path, capsys
) -> None:
    """A function, an autograd Function, a class of modules, a module, and what is no unit."""
    before = sorted(p.name for p in tmp_path.iterdir())
    assert command.main([f"{here}:{name}"]) == status
    said = capsys.readouterr()
    assert " ".join(said.out.split()).startswith(verdict) and said.err == ""
    after = sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__")
    assert after == before  # nothing is written without --out


def test_a_refused_unit_is_written_too(here: str, tmp_path: Path) -> None:
    assert command.main([f"{here}:Needy", "--out", "."]) == 1
    found = strict((tmp_path / "diagnosis-Needy.json").read_text("utf-8"))
    assert found["findings"][0]["code"] == "raises" and found["mismatch"] is None
    assert "not examined" in " ".join(
        "".join(ElementTree.parse(tmp_path / "diagnosis-Needy.svg").getroot().itertext()).split()
    )


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["right"], "unit must be MODULE:NAME, got 'right'"),
        (["{0}:"], "unit must be MODULE:NAME, got '{0}:'"),
        ([":right"], "unit must be MODULE:NAME, got ':right'"),
        (["nowhere_at_all:right"], "nowhere_at_all cannot be imported: there is no "
         "nowhere_at_all.py in the current directory, and no such module is installed"),
        (["broken:f"], "broken cannot be imported: it raised ZeroDivisionError: division by zero"),
        (["leaves:f"], "leaves cannot be imported: it raised SystemExit: 7"),
        (["{0}:theirs"], "{0} has no theirs; it has right, steep, Bin, Layer"),
        (["{0}:number"], "unit must be a function, an autograd.Function or a module, got 3"),
        (["{0}:right", "--out", "{0}.py"], "cannot be written: {0}.py is no folder"),
        (["nowhere_at_all:right", "--out", "{0}.py"], "cannot be written: {0}.py is no folder"),
    ],
)  # fmt: skip
def test_a_command_is_refused_in_one_sentence_before_any_work(
    arguments: list[str], words: str, here: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    for name, text in {"broken": "1 / 0", "leaves": "raise SystemExit(7)"}.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    if "number" not in arguments[0]:  # that it is no unit is said by what examines units
        monkeypatch.setattr(command, "diagnose_unit", lambda *_, **__: pytest.fail("it worked"))
    before = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts)
    with pytest.raises(SystemExit) as stop:
        command.main([a.format(here) for a in arguments])
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    *_, sentence = said.err.strip().splitlines()
    assert sentence.startswith("python -m sbnlib.diagnose: error: ")
    assert words.format(here) in sentence
    after = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts)
    assert after == before


def test_a_missing_extra_is_told_before_any_work(here, tmp_path, monkeypatch, capsys) -> None:
    for name in [m for m in sys.modules if m.startswith("sbnlib.figures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(command, "diagnose_unit", lambda *_, **__: pytest.fail("it worked"))
    with pytest.raises(SystemExit) as stop:
        command.main([f"{here}:right", "--out", "a"])
    assert stop.value.code == 2 and not (tmp_path / "a").exists()
    assert "pip install 'sbnlib[figures]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_without_files_needs_no_extra(here: str, tmp_path: Path) -> None:
    extras = ["matplotlib", "sklearn", "scipy", "IPython"]
    code = f"""
import sys
from sbnlib.diagnose.__main__ import main
main(["{here}:Bin"])
print([n for n in {extras} if n in sys.modules])
"""
    root = Path(sbnlib.__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)})  # fmt: skip
    assert out.stdout.splitlines()[-1] == "[]"


def test_help_says_what_each_option_does(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for action in command._parser()._actions[1:]:
        assert len((action.help or "").split()) >= 3
        assert all(option in said for option in action.option_strings)
    assert "MODULE:NAME" in said
