"""What bits are worth: all sides of a row compute the same, and its numbers are what they say.

No test here looks at how long anything took.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sbnlib import data, packed
from sbnlib.experiments import measurement, packing
from sbnlib.experiments.binary_net import load_net
from sbnlib.packed import runtime

NET = Path(__file__).resolve().parents[3] / "book" / "measurements" / packing.NET
SIZES = packing.Sizes(((70, 9),), (1, 5), 1e3, 3, 1 << 16)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return load_net(NET)


@pytest.fixture(scope="module")
def images() -> data.Dataset:
    return data.load("fashion-mnist-4000")


# Sides -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4, 5])
def test_all_sides_of_a_product_give_its_integers(batch: int) -> None:
    x, w = packing._signs(batch, 70), packing._signs(9, 70)
    assert set(x.unique().tolist()) == {-1, 1} and x.shape == (batch, 70)
    expected = [[sum(int(a) * int(b) for a, b in zip(r, v, strict=True)) for v in w] for r in x]
    sides = packing._product_sides(x, w)
    assert {"float32", "int8", "numpy"} <= set(sides)
    for side in sides.values():
        assert np.asarray(side()).tolist() == expected


@pytest.mark.slow
def test_a_product_whose_sides_differ_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(row["same"] for row in packing.product_rows(SIZES))
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()) + 2)
    assert not any(row["same"] for row in packing.product_rows(SIZES))


@torch.no_grad()
def test_the_layers_in_float32_are_the_network(net: nn.Module, images: data.Dataset) -> None:
    steps = packing.float_steps(net)
    kinds = ["Linear", "BatchNorm1d", "PlainSign", "Linear", "BatchNorm1d", "PlainSign", "Linear"]
    assert [name for name, _ in steps] == kinds
    x = images.test.inputs
    assert (nn.Sequential(*(step for _, step in steps))(x) == net(x)).all()


@pytest.mark.slow
@torch.no_grad()
def test_with_bytes_the_network_gives_the_scores_of_bits(
    net: nn.Module, images: data.Dataset
) -> None:
    model, x = packed.convert(net), images.test.inputs
    found = packing.int8_network(model)(x)
    assert found.numpy() == pytest.approx(model(x.numpy()), abs=1e-4)


def test_a_layer_without_a_form_in_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="net: a layer of kind flatten has no form in bytes"):
        packing.int8_network(runtime.Model([runtime.Layer("flatten")]))


# Rows --------------------------------------------------------------------------------------------


def test_rounds_are_bounded_by_patience() -> None:
    sizes = packing.Sizes(patience=100, rounds=20)
    assert [sizes.turns(m) for m in (1, 5, 10, 1000)] == [20, 20, 10, 3]


@pytest.mark.slow
def test_the_profile_has_every_layer_of_both_sides(net: nn.Module, images: data.Dataset) -> None:
    rows = list(packing.network_rows(net, images.test.inputs[:5], SIZES))
    whole = [row for row in rows if row["part"] == "network"]
    assert [row["batch"] for row in whole] == [1, 5]
    assert {"float32", "int8", "packed, int8", "packed, numpy"} <= set(whole[0]["seconds"])
    for batch in (1, 5):
        for side in ("float32", packed.best()):
            own = [r for r in rows if r.get("side") == side and r["batch"] == batch]
            assert [r["layer"] for r in own] == list(range(7))
    best = [r["kind"] for r in rows if r.get("side") == packed.best() and r["batch"] == 1]
    assert best == ["linear", "norm", "sign", "linear", "threshold", "linear", "bias"]


@pytest.mark.slow
def test_memory_is_that_of_arrays_and_files(net: nn.Module, images: data.Dataset) -> None:
    rows = {row["form"]: row for row in packing.memory_rows(NET, net, images.test.inputs[:1])}
    signs, others = 784 * 512 + 512 * 512, 4 * 512 * 2 + 512 * 10 + 10
    assert rows["float32"]["arrays"] == 4 * (signs + others)
    assert rows["int8"]["arrays"] == signs + 4 * others
    # rows of 784 bits end in a word that is a quarter full; 5 bytes a threshold, 8 a norm
    bits = (832 * 512 + 512 * 512) // 8
    assert rows["packed"]["arrays"] == bits + 512 * 8 + 512 * 5 + 4 * (512 * 10 + 10)
    layers = rows["packed, by layer"]["layers"]
    assert sum(layers.values()) == rows["packed"]["arrays"]
    assert layers["0 linear"] == 832 * 512 // 8
    assert rows["float32"]["file"] > rows["float32"]["arrays"] > rows["packed"]["file"]
    assert rows["packed"]["peak_mib"] < rows["float32"]["peak_mib"]


def test_predictions_are_counted(
    net: nn.Module, images: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = packing.prediction_row(net, images)
    with torch.no_grad():
        right = int((net(images.test.inputs).argmax(-1) == images.test.labels).sum())
    assert row == {"part": "prediction", "data": "fashion-mnist-4000", "images": 1000,
                   "same": 1000, "same_int8": 1000, "right": right}  # fmt: skip
    monkeypatch.setattr(runtime.Model, "__call__", lambda _, x: np.zeros((len(x), 10)))
    assert packing.prediction_row(net, images)["same"] < 1000
    assert not packing._checks([packing.prediction_row(net, images)])["packed: same predictions"]


def test_the_array_that_is_read_has_the_size_that_is_told() -> None:
    row = packing.bandwidth_row(1 << 16)
    assert row["bytes"] == 1 << 16 and 0 < row["seconds"][0] <= row["seconds"][1]


# The command -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_a_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(packing, "QUICK", SIZES)
    out = tmp_path / "packing.json"
    words = ["--quick", "--data", "fashion-mnist-4000", "--net", str(NET), "--out", str(out)]
    assert packing.main(words) == 0
    found = measurement.read(out)
    assert found["kind"] == "packing" and all(found["checks"].values())
    printed = capsys.readouterr().out.splitlines()[:-1]
    assert [json.loads(line) for line in printed] == found["rows"]


def test_what_is_no_network_is_refused(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    other = tmp_path / "x.npz"
    other.write_bytes(b"x")
    for words, said in (
        (["--net", str(other)], "x.npz: damaged"),
        (["--net", str(tmp_path / "y.npz")], "y.npz"),
        (["--threads", "0"], "threads must be an integer >= 1, got 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            packing.main([*words, "--data", "fashion-mnist-4000"])
        assert stop.value.code == 2 and said in capsys.readouterr().err
