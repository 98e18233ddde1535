"""The command lines: what --help says, what is refused before any work, what is kept of them."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sbnlib.experiments import bench, classify, command, exact_cost, gpu, measurement, weights
from sbnlib.experiments.classify import Config

#: Each experiment, with options that make its work short should a test let it begin.
SHORT = {
    "classify": ["--hidden", "4", "--seeds", "1", "--epochs", "1", "--lr", "0.1"],
    "weights": ["--seeds", "1", "--epochs", "1", "--methods", "bop"],
    "bench": ["--quick", "--only", "cost-samples"],
    "exact_cost": ["--most", "16"],
    "gpu": ["--device", "cpu", "--tiny"],
    "how_deep": ["--part", "predictions"],
    "contenders": ["--part", "train", "--only", "conv-st", "--epochs", "1", "--data", "digits"],
    "packing": ["--quick", "--data", "fashion-mnist-4000"],
    "autoencoders": ["--part", "small", "--only", "zgr", "--epochs", "1", "--data", "digits"],
    "improvements": ["--part", "gauge"],
    "characters": ["--steps", "2", "--seeds", "1", "--only", "real"],
}
#: The function of each in which its work begins.
WORK = {"classify": "_run", "weights": "_run", "bench": "make", "exact_cost": "run", "gpu": "run"}
WORK |= {"how_deep": "predictions", "contenders": "budget", "packing": "measured"}
WORK |= {"autoencoders": "search_jobs"}
WORK |= {"improvements": "_rows", "characters": "_Run"}
every_experiment = pytest.mark.parametrize("name", SHORT)
RESUMES = ("classify", "weights")


def module(name: str) -> Any:
    return importlib.import_module(f"sbnlib.experiments.{name}")


def refused(
    name: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str:
    """What the command says when it refuses the options with status 2, before any work."""
    monkeypatch.setattr(module(name), WORK[name], lambda *_, **__: pytest.fail("it worked"))
    with pytest.raises(SystemExit) as stop:
        module(name).main(options)
    assert stop.value.code == 2
    return capsys.readouterr().err


# --out -------------------------------------------------------------------------------------------


def beside_a_file(folder: Path) -> tuple[Path, str]:
    (folder / "file").write_text("kept")
    return folder / "file" / "deeper" / "x.json", f"{folder / 'file'} is no folder"


def a_folder(folder: Path) -> tuple[Path, str]:
    return folder, "it is no file"


def a_device(folder: Path) -> tuple[Path, str]:
    """Renaming a file to this name would take the device away."""
    return Path(os.devnull), "it is no file"


def too_long(folder: Path) -> tuple[Path, str]:
    return folder / "new" / ("x" * 255), "File name too long"


@every_experiment
@pytest.mark.parametrize("place", [beside_a_file, a_folder, a_device, too_long])
def test_an_out_that_cannot_be_written_is_refused_before_any_work(
    name: str, place: Callable, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    out, reason = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    said = refused(name, [*SHORT[name], "--out", str(out)], monkeypatch, capsys)
    assert f"{out} cannot be written: {reason}" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", RESUMES)
def test_a_resume_dir_that_cannot_be_written_is_refused_before_any_work(
    name: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("kept")
    out = ["--out", str(tmp_path / "x.json")]
    said = refused(name, [*SHORT[name], *out], monkeypatch, capsys)
    assert re.search(rf"runs/{name}-\w+/key.json cannot be written: runs is no folder", said)
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_the_default_out_of_a_command_is_tried_too(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "classify-digits.json").mkdir(parents=True)
    said = refused("classify", SHORT["classify"], monkeypatch, capsys)
    assert "runs/classify-digits.json cannot be written: it is no file" in said
    monkeypatch.setenv("OUT", str(tmp_path / "runs" / "classify-digits.json" / "x"))
    (tmp_path / "runs" / "classify-digits.json" / "x").write_text("")
    assert "digits.json/x is no folder" in refused("gpu", SHORT["gpu"], monkeypatch, capsys)


def test_trying_a_file_leaves_it_and_its_folder_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("kept")
    (tmp_path / "old.json.part").write_text("being written")
    for path in ("old.json", "new.json", "a/b/c/new.json"):
        measurement.check_writable(tmp_path / path)
    kept = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*")}
    assert kept == {"old.json": "kept", "old.json.part": "being written"}


def test_what_the_system_forbids_is_said_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(measurement.MeasurementError, match="x.json cannot .*: Permission denied"):
        measurement.check_writable(tmp_path / "a" / "x.json")
    assert not list(tmp_path.iterdir())


# --help ------------------------------------------------------------------------------------------


def options_of(name: str) -> list[argparse.Action]:
    shown = [a for a in module(name)._parser()._actions if a.help is not argparse.SUPPRESS]
    return [a for a in shown if not isinstance(a, argparse._HelpAction)]


#: What a number counts, by the option.
UNITS = {
    "budget": "seconds", "batch_size": "images", "epochs": "passes through the training images",
    "seeds": "number of runs", "threads": "number of CPU threads", "most": "number of terms",
    "devices": "number of devices", "hidden": "number of units", "lr": "learning rates",
    "init_gain": "factors on", "stack": "number of trainings",
    "noise_scale": "units of the pre-activations", "workers": "number of processes",
    "steps": "number of steps",
}  # fmt: skip


@every_experiment
def test_help_says_what_each_option_does_its_default_and_its_unit(name: str) -> None:
    for action in options_of(name):
        words, _, default = action.help.partition(" (default: ")
        assert len(words.split()) >= 3 and default.endswith(")"), action.dest
        if isinstance(action.default, tuple):
            assert default == f"{' '.join(map(str, action.default))})"
        elif action.default not in (None, "", False):
            assert default == f"{action.default})"
        one = action.default[0] if isinstance(action.default, tuple) else action.default
        if isinstance(one, (int, float)) and not isinstance(one, bool):
            assert UNITS[action.dest] in words


@every_experiment
def test_help_is_printed(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        module(name).main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for action in options_of(name):
        assert action.option_strings[0] in said
        assert (action.help % vars(action))[:30] in said.replace("- ", "-")


# The command that is kept ------------------------------------------------------------------------


def parsed(module_: Any, line: str) -> dict[str, Any]:
    """The options in a stored command line, as the shell and the parser read it."""
    words = shlex.split(line)
    name = module_.__name__.rpartition(".")[2]
    assert words[:3] == ["python", "-m", f"sbnlib.experiments.{name}"]
    return vars(module_._parser().parse_args(words[3:]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden": (7, 5), "lr": (0.02,), "schedule": "constant"},
        {"lr": (1e-7, 1 / 3, 30), "init_gain": (1, 2.5), "seeds": 3, "threads": 2},
        {"data": "fashion-mnist", "noise": "gAuSSian", "estimator": "zgr", "dtype": "float32"},
        {"accelerator": "cuda", "devices": 2, "batch_size": 10, "epochs": 7, "stack": 1},
    ],
)
def test_the_stored_command_of_classify_repeats_its_settings(changes: dict) -> None:
    config = Config(**changes)
    options = parsed(classify, config.command)
    del options["out"], options["resume_dir"]
    assert Config(**options) == config


@pytest.mark.parametrize(
    "settings",
    [
        ("digits", 5, list(weights.METHODS), 20),
        ("fashion-mnist", 1, ["real", "bop"], 3),
        ("digits", 10, ["mirror"], 20),
    ],
)
def test_the_stored_command_of_weights_repeats_its_settings(settings: tuple) -> None:
    options = parsed(weights, weights._command(*settings))
    del options["out"], options["resume_dir"]
    assert weights._checked(**options) == weights._checked(*settings)


STORED = {
    bench: [
        [],
        ["--quick", "--only", "cost-samples", "peer-reinmax", "--out", "a b/it's.json"],
        ["--threads", "2", "--only", "step"],
    ],
    exact_cost: [["--most", "16"]],
    gpu: [["--device", "cpu", "--tiny"], ["--budget", "1e2", "--commit", "x y", "--device", "cpu"]],
}


@pytest.mark.parametrize(
    "module_, argv", [(m, argv) for m, every in STORED.items() for argv in every]
)
def test_the_stored_command_of_the_others_repeats_their_options(
    module_: Any, argv: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    stored: list[str] = []

    def written(path: Path, found: dict) -> None:
        stored.append(found["command"])

    monkeypatch.setattr(measurement, "write", written)
    monkeypatch.setattr(bench, "make", lambda row, _: bench.Row(row, "ours", "other"))
    monkeypatch.setattr(gpu, "SECTIONS", ())
    asked = argv if "--out" in argv else [*argv, "--out", "x.json"]
    module_.main(asked)
    again, first = (parsed(module_, line) for line in (stored[-1], command.repeat(
        module_.__name__.rpartition(".")[2], asked)))  # fmt: skip
    if module_ is exact_cost:  # it keeps what decides its numbers
        again["out"] = first["out"]
    assert again == first == vars(module_._parser().parse_args(asked))


def test_a_row_asked_for_twice_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made: list[str] = []
    monkeypatch.setattr(
        bench, "make", lambda row, _: made.append(row) or bench.Row(row, "ours", "other")
    )
    bench.main(["--only", "step", "exact", "step"])
    assert made == ["step", "exact"]
