"""The comparison of the sixteen ways: the command, its jobs, the file as it grows, other parts."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sbnlib.experiments import binary_net, contenders, directions, measurement, small_nets, ways
from sbnlib.experiments.ways import WAYS

#: Of Welch's test, where two accuracies are equal.
pytestmark = pytest.mark.filterwarnings("ignore:Precision loss occurred")

#: A few of each kind, in the order of the table.
FEW = ("twin", "st-logistic", "weights-mirror", "weights-bc", "conv-tanh", "conv-st")
SHORT = ["--data", "digits", "--search-epochs", "1", "--epochs", "2"]


def narrow(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Six ways, narrow, of three rates and two seeds."""
    patch.chdir(folder)
    few = {
        name: replace(
            way, hidden=(9, 7) if way.hidden else (), rates=way.rates[1:4], seeds=2, images=300
        )
        for name, way in WAYS.items()
        if name in FEW
    }
    for module in (ways, contenders, directions, sys.modules[__name__]):
        patch.setattr(module, "WAYS", few)


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command writes, which has little to do."""
    narrow(monkeypatch, tmp_path)
    return tmp_path / "x.json"


def train(*options: str) -> int:
    return contenders.main(["--part", "train", *SHORT, *options])


def of(rows: list[dict], part: str, name: str | None = None) -> list[dict]:
    return [r for r in rows if r["part"] == part and name in (None, r["name"])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> dict[str, Any]:
    """What the command writes."""
    folder = tmp_path_factory.mktemp("contenders")
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch, folder)
        assert train("--out", "x.json") == 0
        assert not list(Path("runs").glob("contenders-*"))  # what was kept is in the file
    return measurement.read(folder / "x.json")


@pytest.fixture
def trained(whole: dict[str, Any]) -> list[dict]:
    return whole["rows"]


# The part train ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_every_way(whole: dict[str, Any], short: Path) -> None:
    assert whole["kind"] == "contenders" and whole["seeds"] == [0, 1]
    assert whole["command"] == (
        "python -m sbnlib.experiments.contenders --part train --data digits --epochs 2 "
        "--search-epochs 1"
    )
    rows = whole["rows"]
    assert [r["name"] for r in of(rows, "contender")] == list(FEW)
    for name in FEW:
        search, final = of(rows, "search", name), of(rows, "final", name)
        assert [r["lr"] for r in search[:3]] == list(WAYS[name].rates)
        assert {r["seed"] for r in search} == {1_000_000}
        assert [r["seed"] for r in final] == [0, 1]


@pytest.mark.slow
def test_the_search_never_sees_the_test_images_and_chooses_by_validation(
    trained: list[dict],
) -> None:
    for row in of(trained, "search"):
        assert not {"test", "nll", "ece"} & set(row)
    for name in FEW:
        search = of(trained, "search", name)
        best = max(search, key=lambda r: (r["validation"], -r["validation_loss"]))
        assert {r["lr"] for r in of(trained, "final", name)} == {best["lr"]}


def test_among_equals_the_smaller_loss_is_chosen() -> None:
    rows = [
        {"validation": v, "validation_loss": loss, "lr": lr}
        for v, loss, lr in ((0.5, 1.0, 0.1), (0.6, 2.0, 0.2), (0.6, 1.5, 0.3), (0.6, 1.5, 0.4))
    ]
    assert [j["lr"] for j in contenders.final_jobs(WAYS["twin"], rows)] == [0.3] * 10


def as_tried(found: dict[float, float]) -> list[dict]:
    """Trials of a search: learning rate -> validation accuracy."""
    return [{"lr": lr, "validation": v, "validation_loss": 1.0} for lr, v in found.items()]


def test_a_search_goes_on_beyond_an_end_that_is_the_best() -> None:
    way = replace(WAYS["twin"], rates=(0.003, 0.01, 0.03))

    def due(*validation: float) -> list[float]:
        tried = (0.003, 0.01, 0.03, 0.0009, 0.00027, 0.000081)
        rows = as_tried(dict(zip(tried, validation, strict=False)))
        jobs = contenders.search_jobs(way, rows)
        assert {j["part"] for j in jobs} <= {"search"} and len({j["seed"] for j in jobs}) <= 1
        return [j["lr"] for j in jobs]

    assert due() == [0.003, 0.01, 0.03]
    assert due(0.1, 0.2, 0.1) == []
    assert due(0.1, 0.2, 0.3) == [0.09] and due(0.3, 0.2, 0.1) == [0.0009]
    assert due(0.3, 0.2, 0.1, 0.3) == []  # the first of equals
    assert due(0.3, 0.2, 0.1, 0.4) == [0.00027] and due(0.3, 0.2, 0.1, 0.4, 0.5) == [0.000081]
    assert due(0.3, 0.2, 0.1, 0.4, 0.5, 0.6) == []  # three are the most
    rows = as_tried({0.003: 0.1, 0.01: 0.2, 0.03: 0.3, 0.09: 0.2})
    assert {j["lr"] for j in contenders.final_jobs(way, rows)} == {0.03}


@pytest.mark.slow
def test_the_summary_is_means_errors_and_the_difference_to_the_twin(trained: list[dict]) -> None:
    for row in of(trained, "summary"):
        name, prediction = row["name"], row["prediction"]
        own = [r["test"][prediction] for r in of(trained, "final", name)]
        mean = np.mean(own)
        assert row["mean"] == pytest.approx(mean)
        assert row["se"] == pytest.approx(np.std(own, ddof=1) / math.sqrt(2))
        assert row["images"] == 359
        assert row["image_se"] == pytest.approx(math.sqrt(mean * (1 - mean) / 359))
        twin = "conv-tanh" if name.startswith("conv") else "twin"
        if name == twin:
            assert "minus_twin" not in row
            continue
        other = [r["test"]["tanh"] for r in of(trained, "final", twin)]
        assert row["minus_twin"] == pytest.approx(mean - np.mean(other))
        if "minus_twin_p" in row and row["minus_twin_p"] is not None:
            test = stats.ttest_ind(own, other, equal_var=False)
            assert row["minus_twin_p"] == pytest.approx(test.pvalue)
    names = {(r["name"], p) for r in of(trained, "final") for p in r["test"]}
    assert {(r["name"], r["prediction"]) for r in of(trained, "summary")} == names


@pytest.mark.slow
def test_a_way_without_its_twin_has_no_difference(short: Path) -> None:
    assert train("--out", str(short), "--only", "conv-st", "st-logistic") == 0
    found = measurement.read(short)
    assert found["command"].endswith("--only st-logistic conv-st")  # in the table's order
    assert not any("minus_twin" in r for r in of(found["rows"], "summary"))
    assert [r["name"] for r in of(found["rows"], "contender")] == ["st-logistic", "conv-st"]
    assert list(Path("runs").glob("contenders-train-*"))  # others of the same key may be there


@pytest.mark.slow
def test_a_row_says_how_the_way_is_made(trained: list[dict]) -> None:
    (row,) = of(trained, "contender", "st-logistic")
    assert row["hidden"] == [9, 7] and row["images"] == 300 and row["label"] == "ST, logistic"
    assert row["noise_scale"] == pytest.approx(0.25553, abs=1e-5)
    (row,) = of(trained, "contender", "twin")
    assert row["noise_scale"] is None


@pytest.mark.slow
def test_the_checks_say_whether_the_rate_is_inside_the_grid(
    whole: dict[str, Any], short: Path
) -> None:
    inside = []
    for name in FEW:
        rates = [r["lr"] for r in of(whole["rows"], "search", name)]
        chosen = of(whole["rows"], "final", name)[0]["lr"]
        inside.append(min(rates) < chosen < max(rates))
        assert whole["checks"][f"{name}_inside_grid"] == inside[-1]
        assert rates[:3] == list(WAYS[name].rates) and (inside[-1] or len(rates) == 6)
    assert any(inside) and any(len(of(whole["rows"], "search", name)) > 3 for name in FEW)


# As it comes -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_file_holds_the_ways_that_are_complete(
    short: Path, trained: list[dict], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A kill in the third way leaves two; then nothing that is known is trained again."""
    done: list[tuple] = []
    real = contenders.trained

    def until(third: bool) -> Callable[..., list[dict]]:
        def compute(job: Any, **how: Any) -> list[dict]:
            if third and job["name"] == "weights-mirror" and job["part"] == "final":
                raise KeyboardInterrupt
            done.append((job["part"], job["name"], job["lr"], job["seed"]))
            return real(job, **how)

        return compute

    monkeypatch.setattr(contenders, "trained", until(True))
    with pytest.raises(KeyboardInterrupt):
        train("--out", str(short))
    names = [r["name"] for r in of(measurement.read(short)["rows"], "contender")]
    assert names == ["twin", "st-logistic"]
    trainings = {name: len(of(trained, "search", name)) + 2 for name in FEW}
    before = len(done)
    assert before == sum(trainings[name] for name in FEW[:3]) - 2
    monkeypatch.setattr(contenders, "trained", until(False))
    assert train("--out", str(short)) == 0
    assert len(done) == len(set(done)) == sum(trainings.values())
    assert measurement.read(short)["rows"] == trained
    said = capsys.readouterr().out
    assert all(f"\n{name:14} lr " in said for name in FEW) and f"written to {short}" in said


def test_jobs_of_both_phases_may_be_done_one_by_one(short: Path, capsys: Any) -> None:
    def listed() -> list[list[str]]:
        capsys.readouterr()
        assert train("--only", "twin", "--list") == 0
        return [line.split()[3:] for line in capsys.readouterr().out.splitlines()]

    search = listed()
    assert len(search) == 3 and all("--job" in line for line in search)
    assert all(line[-1].startswith("search-twin-") for line in search)
    contenders.main(search[0])
    assert len(listed()) == 2
    for line in search[1:]:
        contenders.main(line)
    beyond = 0
    while len(due := listed()) == 1:  # the rate beyond an end that is the best
        assert due[0][-1].startswith("search-twin-")
        contenders.main(due[0])
        beyond += 1
    assert 1 <= beyond <= contenders.BEYOND
    final = due
    assert [line[-1].rpartition("-")[2] for line in final] == ["0", "1"]
    assert all(line[-1].startswith("final-twin-") for line in final)
    for line in final:
        contenders.main(line)
    assert listed() == [] and not short.exists()
    with pytest.raises(SystemExit):
        train("--only", "twin", "--job", "final-twin-0.5-0")
    assert "there is none of this name" in capsys.readouterr().err
    assert train("--only", "twin", "--out", str(short)) == 0
    again = short.with_name("again.json")
    assert train("--only", "twin", "--out", str(again), "--resume-dir", "elsewhere") == 0
    assert measurement.read(short)["rows"] == measurement.read(again)["rows"]


# The budget --------------------------------------------------------------------------------------


def test_the_plan_is_printed_and_nothing_trained(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(contenders, "trained", lambda *_, **__: pytest.fail("it trained"))
    assert train("--plan", "--out", str(short), "--workers", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["trainings", "epochs", "images", "minutes"]
    assert [line.split()[:4] for line in lines[1:7]] == [
        [name, "5", str(3 * 1 + 2 * 2), "300"] for name in FEW
    ]
    assert lines[7].split()[:4] == ["in", "all", "30", "42"] and "2 workers" in lines[8]
    assert not short.exists()


@pytest.mark.parametrize("name", ["twin", "st-logistic", "sign-hardtanh", "weights-bc", "conv-st"])
def test_the_tests_of_a_budget_look_at_as_many_images_as_they_do(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where the first layer of each pass is run, against the sum of the plan."""
    hidden = (4, 4) if WAYS[name].hidden else ()
    way = replace(WAYS[name], hidden=hidden, rates=(1.0,), seeds=1, images=200)
    data = ways.cut(ways.data_of("digits"), 200)
    training = ways.fresh(way, data, 0.01, ways.Recipe(0, 1, 100, contender=name))
    seen = [0]
    calls = {"TanhNet": ways.TanhNet, "SBN": ways.SBN}
    for kind in calls.values():
        real = kind.forward

        def counted(self: Any, inputs: Any, real: Any = real, **how: Any) -> Any:
            seen[0] += len(inputs)
            return real(self, inputs, **how)

        monkeypatch.setattr(kind, "forward", counted)
    ways._of_validation(way, training, data)
    ways.scores(way, training.model, data, training.recipe)
    assert seen[0] == contenders._looks(way, training, data)


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--part", "nothing"], "invalid choice: 'nothing'"),
        (["--part", "train", "--data", "mnist"], "invalid choice: 'mnist'"),
        (["--part", "train", "--only", "st"], "invalid choice: 'st'"),
        (["--part", "train", "--epochs", "0"], "epochs must be"),
        (["--part", "train", "--search-epochs", "-1"], "search_epochs must be"),
        (["--part", "train", "--workers", "0"], "workers must be"),
        (["--part", "exact", "--plan"], "--plan: has no part in --part exact"),
        (["--part", "gradients", "--epochs", "3"], "--epochs: has no part in --part gradients"),
        (["--part", "train", "--chosen", "x"], "--chosen: has no part in --part train"),
        (["--part", "gradients"], "--chosen: runs/contenders-train.json is not there"),
        (["--part", "weights-net", "--list"], "--list and --job have no part in weights-net"),
        (["--part", "exact", "--data", "fashion-mnist"], "-ubyte.gz is not there"),
        (["--part", "train"], "train-.*-ubyte.gz is not there"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SBN_DATA", str(tmp_path / "empty"))
    ways.data_of.cache_clear()
    monkeypatch.setattr(contenders, "budget", lambda *_: pytest.fail("it worked"))
    with pytest.raises(SystemExit) as stop:
        contenders.main(options)
    ways.data_of.cache_clear()
    assert stop.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


# The choices of the part train -------------------------------------------------------------------


def file_of(path: Path, *final: dict) -> Path:
    rows = [{"part": "final", "seed": 0} | row for row in final]
    record = measurement.record(kind="contenders", command="", device="", seeds=[], rows=rows)
    measurement.write(path, record)
    return path


def test_the_better_binary_weights_are_those_of_the_higher_validation(tmp_path: Path) -> None:
    def row(name: str, lr: float, validation: float, test: float) -> dict:
        return {"name": name, "lr": lr, "validation": {"sign": validation}, "test": {"sign": test}}

    mirror = [row("weights-mirror", 10.0, v, 0.1) for v in (0.9, 0.5)]
    path = file_of(tmp_path / "x.json", *mirror, row("weights-bc", 3.0, 0.6, 0.9))
    assert contenders.better(path) is WAYS["weights-mirror"]
    assert contenders.chosen_rate(path, "weights-mirror") == 10.0
    path = file_of(tmp_path / "x.json", *mirror, row("weights-bc", 3.0, 0.8, 0.1))
    assert contenders.better(path) is WAYS["weights-bc"]
    with pytest.raises(ValueError, match="--chosen: .*x.json holds no final run of st-logistic"):
        contenders.chosen_rate(path, "st-logistic")
    path.write_text("{")
    with pytest.raises(ValueError, match="not a whole JSON file"):
        contenders.better(path)


# The other parts ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_part_exact_writes_what_a_seed_gives(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in {"EPOCHS": (0, 1), "IMAGES": 5, "SAMPLES": 64, "SEEDS": 2}.items():
        monkeypatch.setattr(small_nets, name, value)
    assert contenders.main(["--part", "exact", "--data", "digits", "--out", str(short)]) == 0
    found = measurement.read(short)
    assert found["kind"] == "contenders" and found["seeds"] == [0, 1]
    assert found["command"] == (
        "python -m sbnlib.experiments.contenders --part exact --data digits"
    )
    own = [r for seed in (0, 1) for r in small_nets.small_net({"seed": seed}, data="digits")]
    assert found["rows"] == json.loads(json.dumps(own))
    assert "epoch  1, exact" in capsys.readouterr().out


@pytest.mark.slow
def test_the_part_gradients_takes_the_rate_that_was_chosen(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"EPOCHS": (0, 1), "IMAGES": 4, "GROUPS": 3, "SAMPLES": 4, "REFERENCE_SAMPLES": 4}
    for name, value in small.items():
        monkeypatch.setattr(directions, name, value)
    rates: list[float] = []
    real = directions.looked_at
    monkeypatch.setattr(
        directions, "looked_at", lambda job, *, data, lr: rates.append(lr) or real(
            job, data=data, lr=lr))  # fmt: skip
    chosen = file_of(short.with_name("chosen file.json"), {"name": "st-logistic", "lr": 0.02})
    argv = ["--part", "gradients", "--data", "digits", "--chosen", str(chosen), "--out", str(short)]
    assert contenders.main(argv) == 0
    found = measurement.read(short)
    assert rates == [0.02] and {r["epoch"] for r in found["rows"]} == {0, 1}
    assert found["command"].endswith(f"--chosen '{chosen}'")
    assert {r["part"] for r in found["rows"]} == {"gradients", "reference", "candidate"}


def test_the_part_weights_net_keeps_the_better_network(short: Path, capsys: Any) -> None:
    rows = [{"name": f"weights-{k}", "lr": lr, "validation": {"sign": v}}
            for k, lr, v in (("mirror", 1e4, 0.5), ("bc", 1e2, 0.7))]  # fmt: skip
    chosen, out = file_of(short, *rows), short.with_name("net.npz")
    argv = ["--part", "weights-net", "--data", "digits", "--epochs", "2", "--chosen", str(chosen)]
    assert contenders.main([*argv, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    about = binary_net.about_net(out)
    assert "weights-bc at lr 100, 2 epochs" in said and "sha256 " in said
    assert (about["name"], about["lr"], about["epochs"]) == ("weights-bc", 100.0, 2)
    assert contenders.load_net is binary_net.load_net
    content = out.read_bytes()
    assert contenders.main([*argv, "--out", str(out)]) == 0
    assert out.read_bytes() == content
