"""The folder of an experiment: whose it is, what is broken in it, who works in it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch

from sbnlib import data
from sbnlib.experiments import cache, classify, measurement, training, weights
from sbnlib.experiments.cache import Cache, CacheError, Checkpoint, make_key
from sbnlib.experiments.classify import Config

CONFIG = Config(hidden=(4,), seeds=1, epochs=2, lr=(0.03,), init_gain=(3.0,))
RUN = {"model": "sbn", "lr": 0.03, "seed": 0}
ROW = {"accuracy": 0.1 + 0.2, "none": None}


@pytest.fixture(scope="module")
def fabric() -> Any:
    return weights.launch()


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


def keep(fabric: Any, folder: Path, key: dict, row: dict | None = ROW) -> dict:
    """The row of RUN in this folder; it is a failure to compute it if ``row`` is None."""
    with Cache(fabric, key, folder) as known:
        return known.row(RUN, lambda file: row or pytest.fail("computed again"))


# Whose it is -------------------------------------------------------------------------------------


def test_a_row_is_computed_once_and_comes_back_bit_for_bit(fabric: Any, tmp_path: Path) -> None:
    key = {"experiment": "e", "lr": [0.1]}
    assert keep(fabric, tmp_path / "new" / "folder", key) == ROW
    assert keep(fabric, tmp_path / "new" / "folder", key, row=None) == ROW
    names = {p.name for p in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"key.json", "sbn-0.03-0.json", "lock"}
    written = json.loads((tmp_path / "new" / "folder" / "key.json").read_text())
    assert written == {"key": key}


def test_without_a_folder_nothing_is_kept(
    fabric: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Cache(fabric, {}) as known:
        assert known.row(RUN, lambda file: ROW | {"file": file}) == ROW | {"file": None}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "there, difference",
    [
        ({"lr": [0.1]}, r"lr: \[0.1\] there, \[0.2\] here"),
        ({"experiment": "weights"}, "experiment: 'weights' there, 'classify' here"),
        ({"torch": "2.0"}, "torch: '2.0' there, '2.1' here"),
        ({"norm": "batch"}, "norm: 'batch' there, None here"),
    ],
)
def test_the_folder_of_another_key_is_refused_by_name(
    fabric: Any, tmp_path: Path, there: dict, difference: str
) -> None:
    key = {"experiment": "classify", "lr": [0.2], "torch": "2.1"}
    keep(fabric, tmp_path, key | there)
    with pytest.raises(CacheError, match=f"{tmp_path}/key.json belongs .*{difference}"):
        keep(fabric, tmp_path, key)
    (tmp_path / "key.json").unlink()  # each row says whose it is, too
    with pytest.raises(CacheError, match=f"{tmp_path}/sbn-0.03-0.json belongs .*{difference}"):
        keep(fabric, tmp_path, key)
    keep(fabric, tmp_path, key | there, row=None)  # and the refusals changed nothing


def test_a_row_under_the_name_of_another_run_is_refused(fabric: Any, tmp_path: Path) -> None:
    keep(fabric, tmp_path, {"experiment": "e"})
    with Cache(fabric, {"experiment": "e"}, tmp_path) as known:
        shutil.copy(tmp_path / "sbn-0.03-0.json", tmp_path / "sbn-0.03-1.json")
        with pytest.raises(CacheError, match=r"sbn-0.03-1.json .*\(run seed: 0 there, 1 here\)"):
            known.row(RUN | {"seed": 1}, lambda file: pytest.fail("computed"))


@pytest.mark.parametrize("content", ['{"model": "sbn", "lr": 0.03, "test": 0.9}', "[1]", "3"])
def test_a_row_that_does_not_say_whose_it_is_is_refused(
    fabric: Any, tmp_path: Path, content: str
) -> None:
    """Such as a row of 0.1.0; a file of another name is left alone."""
    (tmp_path / "other.json").write_text(content)
    (tmp_path / "sbn-0.03-0.json").write_text(content)
    with pytest.raises(CacheError, match=r"experiment: None there, 'e' here"):
        keep(fabric, tmp_path, {"experiment": "e"})
    assert (tmp_path / "other.json").read_text() == content


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Config)
                                   if f.name != "stack"])  # fmt: skip
def test_every_field_of_a_configuration_is_in_its_key(field: str, digits: data.Dataset) -> None:
    other = {
        "data": "fashion-mnist", "estimator": "zgr", "noise": "Uniform", "hidden": (5,),
        "seeds": 2, "epochs": 3, "batch_size": 25, "lr": (0.1,), "init_gain": (1.0,),
        "schedule": "constant", "dtype": "float32", "accelerator": "auto", "devices": 2,
        "threads": 2, "noise_scale": 0.5, "norm": "batch", "draws": "example",
    }  # fmt: skip
    changed = dataclasses.replace(CONFIG, **{field: other[field]})
    here, there = (classify._key(config, digits) for config in (CONFIG, changed))
    assert cache._difference(there, here).startswith(f"{field}: ")
    assert cache._difference(here, there).startswith(f"{field}: ")


@pytest.mark.parametrize(("accelerator", "same"), [("cpu", True), ("cuda", False)])
def test_how_many_are_computed_as_one_is_in_the_key_where_it_may_round(
    accelerator: str, same: bool, digits: data.Dataset
) -> None:
    one, other = (
        classify._key(dataclasses.replace(CONFIG, accelerator=accelerator, stack=n), digits)
        for n in (1, 9)
    )
    assert (one == other) == same


def test_the_key_follows_the_content_of_the_data(digits: data.Dataset) -> None:
    def content(**changes: Any) -> str:
        return make_key("e", {}, dataclasses.replace(digits, **changes))["data_sha256"]

    copy = data.Split(digits.test.inputs.clone(), digits.test.labels.clone())
    assert content() == content(test=copy)
    one_pixel = digits.test.inputs.clone()
    one_pixel[-1, -1] = torch.nextafter(one_pixel[-1, -1], torch.tensor(9.0))
    one_label = digits.train.labels.clone()
    one_label[0] = (one_label[0] + 1) % 10
    found = {
        content(),
        content(name="other"),
        content(num_classes=11),
        content(image_shape=(4, 16)),
        content(test=data.Split(one_pixel, digits.test.labels)),
        content(test=data.Split(digits.test.inputs.double(), digits.test.labels)),
        content(test=data.Split(digits.test.inputs.reshape(-1, 8), digits.test.labels)),
        content(train=data.Split(digits.train.inputs, one_label)),
        content(train=digits.validation, validation=digits.train),
    }
    assert len(found) == 9


def test_the_key_follows_the_code(
    digits: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its commit, by its content where that is not committed; and torch by its version."""
    package = tmp_path / "sbnlib" / "experiments"
    package.mkdir(parents=True)
    monkeypatch.setattr(cache, "__file__", str(package / "cache.py"))

    def code(commit: str, source: str) -> str:
        (tmp_path / "sbnlib" / "units.py").write_text(source)
        monkeypatch.setattr(cache, "commit", lambda: commit)
        return make_key("e", {}, digits)["code"]

    assert code("abc", "a") == code("abc", "b") == "abc"
    for known in ("abc-dirty", "unknown"):
        assert code(known, "a") == code(known, "a") != code(known, "b")
        assert code(known, "a").startswith(known)
    assert make_key("e", {}, digits)["torch"] == torch.__version__


# The experiments ---------------------------------------------------------------------------------


def test_a_configuration_does_not_take_the_rows_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch in a folder of two: the rows of the other run were reported as its own."""
    classify.run(CONFIG, folder=tmp_path)
    monkeypatch.setattr(classify, "_train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(CacheError, match=f"{tmp_path}/key.json .*epochs: 2 there, 1 here"):
        classify.run(dataclasses.replace(CONFIG, epochs=1), folder=tmp_path)
    digits = data.load("digits")
    fewer = dataclasses.replace(digits, test=digits.validation)
    with pytest.raises(CacheError, match="data_sha256: '.*' there, '.*' here"):
        classify.run(CONFIG, data=fewer, folder=tmp_path)


def test_weights_does_not_take_the_rows_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"method": "bop", "validation": 0.5, "test": 0.5, "lr": 1, "other": 1, "seed": 0}
    row |= {"validation_loss": 1.0}
    monkeypatch.setattr(weights, "_train", lambda *given, **__: [row] * len(given[2]))
    weights.run(seeds=1, methods=["bop"], epochs=2, folder=tmp_path)
    monkeypatch.setattr(weights, "_train", lambda *_, **__: pytest.fail("trained"))
    for change, difference in (
        ({"epochs": 3}, "epochs: 2 there, 3 here"),
        ({"seeds": 2}, "seeds: 1 there, 2 here"),
        ({"methods": ["bop", "real"]}, r"methods: \['bop'\] there, \['bop', 'real'\] here"),
    ):
        with pytest.raises(CacheError, match=difference):
            weights.run(folder=tmp_path, **{"seeds": 1, "methods": ["bop"], "epochs": 2} | change)
    with pytest.raises(CacheError, match="experiment: 'weights' there, 'classify' here"):
        classify.run(CONFIG, folder=tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a finished run."""
    file = tmp_path_factory.mktemp("trained") / "a.ckpt"
    classify.train(CONFIG, "sbn", 0.03, 3.0, 0, checkpoint=file)
    return file


@pytest.mark.parametrize(
    "arguments, difference",
    [
        ((CONFIG, "tanh", 0.03, 3.0, 0), "run model: 'sbn' there, 'tanh' here"),
        ((CONFIG, "sbn", 0.1, 3.0, 0), "run lr: 0.03 there, 0.1 here"),
        ((CONFIG, "sbn", 0.03, 1.0, 0), "run init_gain: 3.0 there, 1.0 here"),
        ((CONFIG, "sbn", 0.03, 3.0, 1), "run seed: 0 there, 1 here"),
        ((dataclasses.replace(CONFIG, epochs=1), "sbn", 0.03, 3.0, 0), "epochs: 2 there, 1 here"),
        ((dataclasses.replace(CONFIG, hidden=(5,)), "sbn", 0.03, 3.0, 0), "hidden: .4. there"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_by_name(
    trained: Path, tmp_path: Path, arguments: tuple, difference: str
) -> None:
    file = Path(shutil.copy(trained, tmp_path / "a.ckpt"))
    before = file.read_bytes()
    with pytest.raises(CacheError, match=f"{file} belongs to another run .*{difference}"):
        classify.train(*arguments, checkpoint=file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_of_other_code_or_data_is_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch, digits: data.Dataset
) -> None:
    same = (CONFIG, "sbn", 0.03, 3.0, 0)
    with pytest.raises(CacheError, match="data_sha256: "):
        other = dataclasses.replace(digits, test=digits.validation)
        classify.train(*same, checkpoint=trained, data=other)
    monkeypatch.setattr(cache, "commit", lambda: "another")
    with pytest.raises(CacheError, match="code: '.*' there, 'another' here"):
        classify.train(*same, checkpoint=trained)


def test_weights_refuses_the_checkpoint_of_another_run(
    digits: data.Dataset, tmp_path: Path
) -> None:
    file, small = str(tmp_path / "a.ckpt"), {"hidden": (4,), "epochs": 1, "batch_size": 200}
    row = weights.train("bop", (0.01, 1e-5), 0, digits, checkpoint=file, **small)
    assert weights.train("bop", (0.01, 1e-5), np.int64(0), digits, checkpoint=file, **small) == row
    for arguments, changed, difference in (
        (("bop", (0.03, 1e-5), 0), {}, "run lr: 0.01 there, 0.03 here"),
        (("bop", (0.01, 1e-4), 0), {}, "run other: 1e-05 there, 0.0001 here"),
        (("real", (0.01, 1e-5), 0), {}, "run method: 'bop' there, 'real' here"),
        (("bop", (0.01, 1e-5), 1), {}, "run seed: 0 there, 1 here"),
        (("bop", (0.01, 1e-5), 0), {"epochs": 2}, "epochs: 1 there, 2 here"),
    ):
        with pytest.raises(CacheError, match=difference):
            weights.train(*arguments, digits, checkpoint=file, **small | changed)


# Killed and resumed ------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def small_classify(folder: Path | None) -> list[dict]:
    config = dataclasses.replace(CONFIG, seeds=2, lr=(0.03, 0.1))
    return classify.run(config, folder=folder)["rows"]


def small_weights(folder: Path | None) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        size = {"hidden": (4,), "batch_size": 100, "epochs": 2}
        patch.setattr(weights, "_train", partial(weights._train, **size))
        for name in ("bop", "adam_prox", "bayesbinn"):
            method = weights.METHODS[name]
            less = dataclasses.replace(method, trials=method.trials[:2])
            patch.setitem(weights.METHODS, name, less)
        methods = ["bop", "adam_prox", "bayesbinn"]
        return weights.run(seeds=2, methods=methods, epochs=2, folder=folder)["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [small_classify, small_weights])
def test_killed_at_twenty_random_points_an_experiment_ends_with_the_same_rows(
    experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after any file is put in its place; an epoch that was kept is not repeated, and of
    those that were not, each run loses the one it was at."""
    rng, kills, kept, trained, lost = random.Random(0), 0, 0, 0, 0
    replace, epoch = os.replace, training._train_epoch

    def count(fabric: Any, runs: list, *others: Any) -> None:
        nonlocal trained
        epoch(fabric, runs, *others)
        trained += len(runs)

    def replace_and_die(part: Path, path: Path) -> None:
        nonlocal kills, kept
        before, after = (kills < 20 and rng.random() < 0.4 for _ in range(2))
        kills += before or after
        if before:
            raise Killed
        replace(part, path)
        kept += path.suffix == ".ckpt"
        if after:
            raise Killed

    monkeypatch.setattr(training, "_train_epoch", count)
    whole, needed = experiment(None), trained
    monkeypatch.setattr(os, "replace", replace_and_die)
    rows, trained = None, 0
    while rows is None:
        with suppress(Killed):
            rows = experiment(tmp_path)
        lost = trained - kept
    assert rows == whole and kills == 20
    assert kept == needed and 0 < lost <= 2 * kills


# What is broken ----------------------------------------------------------------------------------


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scramble(path: Path) -> None:
    path.write_bytes(b"\x80\xff" * 500)


def flip_a_bit(path: Path) -> None:
    """In the middle of the weights: torch reads such a file without a word."""
    content = bytearray(path.read_bytes())
    where = content.index(torch.load(path, weights_only=True)["model"]["head.weight"].numpy()[3])
    content[where] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["sbn-0.03-0.json", "key.json"])
@pytest.mark.parametrize("damage", [halve, empty, scramble])
def test_a_broken_row_is_set_aside_and_made_again(
    fabric: Any, tmp_path: Path, damage: Any, name: str
) -> None:
    keep(fabric, tmp_path, {"experiment": "e"})
    whole = (tmp_path / name).read_bytes()
    damage(tmp_path / name)
    broken = (tmp_path / name).read_bytes()
    with pytest.warns(UserWarning, match=f"{tmp_path}/{name} cannot be read .* now {name}.corrupt"):
        assert keep(fabric, tmp_path, {"experiment": "e"}) == ROW
    assert (tmp_path / f"{name}.corrupt").read_bytes() == broken
    assert (tmp_path / name).read_bytes() == whole
    assert keep(fabric, tmp_path, {"experiment": "e"}, row=None) == ROW


@pytest.mark.slow
@pytest.mark.parametrize("damage", [halve, empty, scramble, flip_a_bit])
def test_a_broken_checkpoint_is_set_aside_and_the_run_begins_anew(
    trained: Path, tmp_path: Path, damage: Any
) -> None:
    file = Path(shutil.copy(trained, tmp_path / "a.ckpt"))
    damage(file)
    broken, run = file.read_bytes(), (CONFIG, "sbn", 0.03, 3.0, 0)
    with pytest.warns(UserWarning, match=f"{file} cannot be read .*it is now a.ckpt.corrupt"):
        row = classify.train(*run, checkpoint=file)
    assert row == classify.train(*run)
    assert (tmp_path / "a.ckpt.corrupt").read_bytes() == broken
    assert torch.load(file, weights_only=True)["epoch"] == 2


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_is_run(trained: Path, tmp_path: Path) -> None:
    file, sprung = tmp_path / "a.ckpt", tmp_path / "sprung"
    torch.save(torch.load(trained, weights_only=True) | {"epoch": Trap(sprung)}, file)
    with pytest.warns(UserWarning, match="cannot be read"):
        classify.train(CONFIG, "sbn", 0.03, 3.0, 0, checkpoint=file)
    assert not sprung.exists()


def test_every_reading_of_a_checkpoint_is_of_weights_only(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, load, given = Path(shutil.copy(trained, tmp_path)), torch.load, []

    def spy(*args: Any, **options: Any) -> Any:
        given.append(options["weights_only"])
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", spy)
    classify.train(CONFIG, "sbn", 0.03, 3.0, 0, checkpoint=file)
    assert given and all(given)


def test_someone_elses_file_is_no_checkpoint_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(CacheError, match="experiment: None there, 'classify' here"):
        classify.train(CONFIG, "sbn", 0.03, 3.0, 0, checkpoint=file)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_checkpoint_that_could_not_be_written_is_refused_before_the_first_epoch(
    tmp_path: Path,
) -> None:
    def after_epoch() -> None:
        pytest.fail("trained")

    for file in (tmp_path, Path(__file__) / "a.ckpt"):
        with pytest.raises(measurement.MeasurementError, match=f"{file} cannot be written: "):
            classify.train(CONFIG, "sbn", 0.03, 3.0, 0, checkpoint=file, after_epoch=after_epoch)


# Who works in it ---------------------------------------------------------------------------------


def test_a_second_run_is_told_who_works_in_the_folder(fabric: Any, tmp_path: Path) -> None:
    key = {"experiment": "e"}
    with Cache(fabric, key, tmp_path):
        words = rf"{tmp_path} is in use by process {os.getpid()} on \S+ since 20\S+: .*python"
        with pytest.raises(CacheError, match=words):
            keep(fabric, tmp_path, key)
        assert (tmp_path / "held-by.txt").exists()  # the one that was refused took nothing away
    keep(fabric, tmp_path, key)
    assert not (tmp_path / "held-by.txt").exists()


def test_a_refused_folder_is_free_again(fabric: Any, tmp_path: Path) -> None:
    keep(fabric, tmp_path, {"experiment": "e"})
    refused = Cache(fabric, {"experiment": "f"}, tmp_path)
    with pytest.raises(CacheError, match="experiment: 'e' there"):
        refused.__enter__()
    keep(fabric, tmp_path, {"experiment": "e"}, row=None)


def test_a_folder_is_free_after_an_error_in_a_run(fabric: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Cache(fabric, {}, tmp_path) as known:
        known.row(RUN, lambda file: {"x": 1 / 0})
    keep(fabric, tmp_path, {})


@pytest.mark.parametrize("command", [
    (classify, ["--hidden", "4", "--seeds", "1", "--epochs", "1", "--lr", ".1"]),
    (weights, ["--seeds", "1", "--methods", "bop", "--epochs", "1"]),
], ids=["classify", "weights"])  # fmt: skip
def test_a_command_in_a_folder_in_use_ends_with_2(
    command: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module, options = command
    monkeypatch.setattr(module, "_train", lambda *_, **__: pytest.fail("trained"))
    held: list[filelock.FileLock] = []
    named = cache.folder_of

    def hold(parent: Path, key: dict) -> Path:
        """Another process comes first, and has not said yet who it is."""
        folder = named(parent, key)
        folder.mkdir(parents=True)
        held.append(filelock.FileLock(folder / "lock"))
        held[0].acquire()
        return folder

    monkeypatch.setattr(module, "folder_of", hold)
    with pytest.raises(SystemExit) as stop:
        module.main([*options, "--resume-dir", str(tmp_path / "r"), "--out", str(tmp_path / "x")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "is in use by another process; wait until" in said
    held[0].release()
    assert not (tmp_path / "x").exists()


HOLD = """
import sys
from sbnlib.experiments import weights
from sbnlib.experiments.cache import Cache
with Cache(weights.launch(), {}, sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_the_system_frees_the_folder_of_a_killed_process(fabric: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(CacheError, match=f"in use by process {other.pid} on"):
            keep(fabric, tmp_path, {})
        other.kill()
    assert (tmp_path / "held-by.txt").exists()
    keep(fabric, tmp_path, {})


def test_clearing_takes_the_folder_away_while_it_is_held(fabric: Any, tmp_path: Path) -> None:
    with Cache(fabric, {}, tmp_path / "f") as known:
        known.clear()
        assert not (tmp_path / "f").exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused(fabric: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "f"):
        with pytest.raises(measurement.MeasurementError, match=f"{folder}/key.json cannot be wri"):
            keep(fabric, folder, {})


class Several:
    """Stands for Fabric on the second of two devices, to which the first sends what it found."""

    is_global_zero = False

    def __init__(self, sent: Any) -> None:
        self.sent = sent

    def broadcast(self, value: Any) -> Any:
        assert value == (None, None)
        return self.sent


def test_all_devices_hear_what_the_first_found() -> None:
    assert cache.on_first(Several((3, None)), lambda: pytest.fail("here")) == 3
    with pytest.raises(CacheError, match="in use"):
        cache.on_first(Several((None, CacheError("in use"))), lambda: pytest.fail("here"))


def test_a_checkpoint_is_of_its_run_only(fabric: Any, tmp_path: Path) -> None:
    here = Checkpoint(tmp_path / "a.ckpt", {"run": {"seed": 0}})
    assert here.restore(fabric, {}) == 0
    here.save(fabric, {"epoch": 3})
    assert here.restore(fabric, {}) == 3 and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    with pytest.raises(CacheError, match="run seed: 0 there, 1 here"):
        Checkpoint(here.path, {"run": {"seed": 1}}).restore(fabric, {})
