"""A network of binary weights in a file: what it holds, what is refused, how it is made."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sbnlib import data as datasets
from sbnlib.data import DataError
from sbnlib.experiments import ways
from sbnlib.experiments.binary_net import about_net, load_net, make_net, save_net
from sbnlib.network import SBN
from sbnlib.noise import Logistic
from sbnlib.packed import runtime

DIGITS = datasets.load("digits")


def network(sizes: tuple[int, ...] = (13, 6, 9), seed: int = 0) -> tuple[SBN, nn.Linear]:
    torch.manual_seed(seed)
    layers = []
    for m, n in zip(sizes, sizes[1:], strict=False):
        linear, norm = nn.Linear(m, n, bias=False), nn.BatchNorm1d(n)
        linear.weight.data = 2.0 * torch.randint(0, 2, (n, m)) - 1
        norm.running_mean, norm.running_var = torch.randn(n), torch.rand(n) + 0.5
        norm.weight.data, norm.bias.data = torch.randn(n), torch.randn(n)
        layers.append(nn.Sequential(linear, norm))
    return SBN(*layers, noise=Logistic(0.3)).eval(), nn.Linear(sizes[-1], 4)


def written(path: Path, **own: Any) -> Path:
    save_net(path, *network(**own), {"name": "x"})
    return path


def by_numpy(path: Path, x: np.ndarray) -> np.ndarray:
    """Scores from the arrays of the file, without torch."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    for k in range(1, sum(name.startswith("bits") for name in arrays) + 1):
        rows, columns = arrays[f"shape{k}"]
        W = np.unpackbits(arrays[f"bits{k}"], axis=1)[:rows, :columns] * 2.0 - 1
        a = (x @ W.T - arrays[f"mean{k}"]) / np.sqrt(arrays[f"var{k}"] + arrays["eps"])
        x = np.where(a * arrays[f"scale{k}"] + arrays[f"shift{k}"] >= 0, 1.0, -1.0)
    return x @ arrays["head_weight"].T + arrays["head_bias"]


# There and back ----------------------------------------------------------------------------------


def test_the_network_comes_back(tmp_path: Path) -> None:
    net, head = network()
    found = save_net(tmp_path / "n.npz", net, head, {"name": "x", "lr": 0.1})
    assert found == hashlib.sha256((tmp_path / "n.npz").read_bytes()).hexdigest()
    loaded = load_net(tmp_path / "n.npz")
    x = torch.randn(20, 13)
    assert torch.equal(loaded(x), head(net(x, mode="sign")))
    assert np.allclose(
        loaded(x).detach().numpy(), by_numpy(tmp_path / "n.npz", x.numpy()), atol=1e-5
    )
    assert isinstance(loaded[0], SBN) and loaded[0].mode == "sign" and not loaded.training
    assert [[type(m) for m in layer] for layer in loaded[0].layers] == [
        [nn.Linear, nn.BatchNorm1d]] * 2  # fmt: skip
    assert loaded[0].noise == Logistic(0.3)
    draw = [torch.Generator().manual_seed(1) for _ in "ab"]
    sampled = loaded[0](x, mode="sample", generator=draw[0])
    assert torch.equal(sampled, net(x, mode="sample", generator=draw[1]))
    assert about_net(tmp_path / "n.npz") == {"name": "x", "lr": 0.1}


def test_the_bytes_are_the_same_at_any_time_and_hold_no_pickle(tmp_path: Path) -> None:
    one, two = (written(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(one, allow_pickle=False) as file:
        assert all(not file[name].dtype.hasobject for name in file.files)
    assert written(tmp_path / "c.npz", seed=1).read_bytes() != one.read_bytes()


def test_a_weight_takes_a_bit(tmp_path: Path) -> None:
    path = written(tmp_path / "n.npz", sizes=(784, 512, 512))
    packed = (784 * 512 + 512 * 512) / 8
    with np.load(path) as file:
        assert file["bits1"].nbytes + file["bits2"].nbytes == packed
    assert packed < path.stat().st_size < 200_000


# Refusals ----------------------------------------------------------------------------------------


def changed(path: Path, **arrays: Any) -> Path:
    """The file with other arrays, and the hash that fits them."""
    with np.load(path) as file:
        own = {name: file[name] for name in file.files if name != "sha256"} | arrays
    own = {name: value for name, value in own.items() if value is not None}
    np.savez(path, **own, sha256=np.array(runtime.content_hash(own)))
    return path


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"bits1": np.zeros((6, 3), np.uint8)}, r"bits1 has rows of \(6, 24\)"),
        ({"shape1": np.array([6, 5])}, r"bits1 has rows of \(6, 16\), must fit \(6, 5\)"),
        ({"shape2": np.array([9, 8])}, "6 units stand below a layer of 8 inputs"),
        ({"mean2": np.zeros(8, np.float32)}, r"an array of \(8,\) stands where \(9,\) is due"),
        ({"head_weight": np.zeros((4, 8), np.float32)}, "9 units stand below a layer of 8"),
        ({"head_bias": np.zeros(3, np.float32)}, r"an array of \(3,\) stands where \(4,\) is due"),
        ({"unit": np.array("Student")}, "student"),
        ({"scale1": None}, "scale1"),
        ({"eps": None}, "eps"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_the_files_name(
    tmp_path: Path, arrays: dict, said: str
) -> None:
    path = changed(written(tmp_path / "net.npz"), **arrays)
    with pytest.raises(DataError, match=rf"net\.npz: holds no network of binary weights .*{said}"):
        load_net(path)


def test_every_damage_is_refused_by_the_files_name(tmp_path: Path) -> None:
    """A bit flipped in each of 60 places, and the file cut off; names and dates are no content."""
    path = written(tmp_path / "net.npz")
    content, sound = path.read_bytes(), load_net(path)
    x = torch.randn(50, 13)
    refused = 0
    for at in np.linspace(0, len(content) - 1, 60).astype(int):
        broken = bytearray(content)
        broken[at] ^= 4
        path.write_bytes(bytes(broken))
        try:
            assert torch.equal(load_net(path)(x), sound(x))
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 30
    for end in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(DataError, match=r"net\.npz: damaged, cut off or no network file"):
            load_net(path)


def test_a_weight_changed_in_a_whole_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "net.npz")
    with np.load(path) as file:
        arrays = dict(file)
    arrays["bits1"][0, 0] ^= 1
    np.savez_compressed(path, **arrays)
    with pytest.raises(DataError, match=r"net\.npz: expected content with sha256 \w+, found"):
        load_net(path)
    np.savez_compressed(path, x=np.zeros(3))
    with pytest.raises(DataError, match=r"net\.npz: .*no network file"):
        about_net(path)
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    path.write_bytes(stream.getvalue())
    with pytest.raises(DataError, match=r"net\.npz: .*no network file"):
        load_net(path)
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        load_net(tmp_path / "none.npz")


def test_other_layers_are_not_written(tmp_path: Path) -> None:
    net, head = network()
    net.layers[1][0].weight.data[0, 0] = 0.5
    with pytest.raises(ValueError, match="weights of .1 and -1 and no biases, layer 2 has others"):
        save_net(tmp_path / "n.npz", net, head, {})
    net = SBN(nn.Sequential(nn.Linear(3, 2, bias=False)))
    with pytest.raises(ValueError, match="Linear and BatchNorm1d, layer 1 has Linear"):
        save_net(tmp_path / "n.npz", net, head, {})
    with pytest.raises(ValueError, match="Linear and BatchNorm1d, layer 1 has Linear"):
        save_net(tmp_path / "n.npz", SBN(nn.Linear(3, 2)), head, {})
    assert not list(tmp_path.iterdir())


# A training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights-mirror", "weights-bc"])
def test_a_trained_network_is_kept_with_its_accuracy(name: str, tmp_path: Path) -> None:
    way = replace(ways.WAYS[name], hidden=(32, 24))
    path = tmp_path / "n.npz"
    row = make_net(path, way, DIGITS, way.rates[2], 6)
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert row["bytes"] == path.stat().st_size
    about = about_net(path)
    assert {k: row[k] for k in about} == about and about == json.loads(json.dumps(about))
    assert (about["name"], about["epochs"], about["seed"], about["data"]) == (name, 6, 0, "digits")
    scores = by_numpy(path, DIGITS.test.inputs.double().numpy())
    hits = (scores.argmax(1) == DIGITS.test.labels.numpy()).mean()
    assert hits == pytest.approx(row["test"], abs=0.006) and hits > 0.7
    guess = load_net(path)(DIGITS.test.inputs).argmax(-1)
    assert (guess == DIGITS.test.labels).double().mean().item() == row["test"]
    with np.load(path) as file:
        arrays = dict(file)
    assert arrays["shape1"].tolist() == [32, 64] and arrays["shape2"].tolist() == [24, 32]
    assert 0.3 < np.unpackbits(arrays["bits1"]).mean() < 0.7
    check_statistics(arrays, DIGITS.train.inputs.double().numpy())


def check_statistics(arrays: dict[str, np.ndarray], x: np.ndarray) -> None:
    """They are those of units at their signs; float32 may turn a few signs near 0."""
    for k in (1, 2):
        W = np.unpackbits(arrays[f"bits{k}"], axis=1)[:, : x.shape[1]] * 2.0 - 1
        a = x @ W.T
        assert np.allclose(arrays[f"mean{k}"], a.mean(0), atol=0.02)
        assert np.allclose(arrays[f"var{k}"], a.var(0, ddof=1), rtol=0.02)
        normed = (a - a.mean(0)) / np.sqrt(a.var(0, ddof=1) + arrays["eps"])
        x = np.where(normed * arrays[f"scale{k}"] + arrays[f"shift{k}"] >= 0, 1.0, -1.0)
