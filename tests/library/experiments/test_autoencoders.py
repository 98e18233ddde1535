"""Stochastic autoencoders: the models by enumeration, directions, retrieval, the command."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

from sbnlib import data as datasets
from sbnlib import registry
from sbnlib.data import Dataset, Split
from sbnlib.experiments import autoencoders, code_gradients, coders, measurement, retrieval
from sbnlib.experiments.coders import SETTINGS, Autoencoder, fresh, numbers, pictures, recipe_of
from sbnlib.experiments.training import generator
from sbnlib.network import network_estimator

RECIPE = recipe_of("zgr", 3, 0, 1)


def few(bits: int = 3, pixels: int = 4, images: int = 6) -> Dataset:
    """A data set of a few pictures with a few pixels, in float64."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(images, pixels, generator=draw, dtype=torch.float64)
    split = Split(inputs, (torch.rand(images, pixels, generator=draw) < 0.5).double())
    return Dataset("few", (2, 2), 10, split, split, split)


def model(name: str, bits: int = 3, scale: float = 3.0) -> Autoencoder:
    """One that has not been trained, with larger weights: its units are neither sure nor fair."""
    training = fresh(name, bits, few(), 0.1, recipe_of(name, bits, 0, 1))
    with torch.no_grad():
        for p in training.model.parameters():
            p.mul_(scale)
    return training.model


def weights(of: Autoencoder) -> tuple[np.ndarray, ...]:
    (encoder,) = of.net.layers
    return tuple(p.detach().numpy().copy() for m in (encoder, of.head) for p in m.parameters())


def by_hand(parts: tuple[np.ndarray, ...], inputs: Any, bits: Any) -> dict[str, np.ndarray]:
    """The numbers of each picture, by a sum over all codes."""
    A, b, D, c = parts
    found: dict[str, list[float]] = {}
    for y, picture in zip(inputs.numpy(), bits.numpy(), strict=True):
        a = A @ y + b
        p = 1 / (1 + np.exp(-a))

        def misfit(x: np.ndarray, picture: np.ndarray = picture) -> float:
            z = D @ x + c
            on = 1 / (1 + np.exp(-z))
            return -np.log(np.where(picture == 1, on, 1 - on)).sum()

        codes = [np.array(x) for x in itertools.product((-1.0, 1.0), repeat=len(a))]
        law = [np.where(x > 0, p, 1 - p).prod() for x in codes]
        each = [misfit(x) for x in codes]
        own = {
            "misfit": float(np.dot(law, each)),
            "kl": float(sum(q * math.log(2 ** len(a) * q) for q in law)),
            "nll": -math.log(np.mean(np.exp(-np.array(each)))),
            "sign": misfit(np.where(a >= 0, 1.0, -1.0)),
            "real": misfit(2 * p - 1),
            "undecided": float((1 - (2 * p - 1) ** 2).mean()),
        }
        for name, value in (own | {"loss": own["misfit"] + own["kl"]}).items():
            found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


# The pictures ------------------------------------------------------------------------------------


def test_the_pictures_are_centred_and_their_bits_are_above_half_of_the_range() -> None:
    raw, found = datasets.load("digits"), pictures("digits", torch.float64)
    for name in ("train", "validation", "test"):
        split, own = getattr(raw, name), getattr(found, name)
        assert torch.equal(own.labels, (split.inputs * 8 + 8 > 8).double())
        assert own.inputs.dtype == own.labels.dtype == torch.float64
    pixels = load_digits().data  # 0 to 16
    assert set(np.unique(pixels)) <= set(range(17))
    share = torch.cat([getattr(found, n).labels for n in ("train", "validation", "test")]).mean()
    assert share.item() == pytest.approx((pixels > 8).mean(), rel=1e-12)
    assert found.train.inputs.mean(0).abs().max() < 1e-6
    assert found.train.inputs.square().mean().item() == pytest.approx(1, rel=1e-5)


# The models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zgr", "exact", "twin"])
def test_the_numbers_of_a_short_code_are_exact(name: str) -> None:
    made, split = model(name), few().train
    expected = by_hand(weights(made), split.inputs, split.labels)
    found = numbers(made, split, torch.Generator())
    if name == "twin":
        expected |= {"misfit": expected["real"], "loss": expected["real"], "kl": np.zeros(6)}
        del expected["nll"]
    se = expected["loss"].std(ddof=1) / math.sqrt(6)
    expected = {k: v.mean() for k, v in expected.items() if k != "real"}
    assert found == pytest.approx(expected | {"loss_se": se}, rel=1e-9)
    assert "nll" not in found or found["nll"] < found["loss"]


@pytest.mark.slow
def test_the_misfit_of_a_longer_code_is_a_mean_over_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4000 draws of all pictures: within 4.5 standard errors, a false alarm in 1e5."""
    made, split = model("zgr"), few().train
    expected = by_hand(weights(made), split.inputs, split.labels)
    monkeypatch.setattr(coders, "EXACT_BITS", 2)
    draw = torch.Generator().manual_seed(0)
    found = [numbers(made, split, draw, 10) for _ in range(400)]
    assert "nll" not in found[0]
    each = np.array([row["misfit"] for row in found])
    assert len(set(each)) > 300
    z = (each.mean() - expected["misfit"].mean()) / (each.std(ddof=1) / 20)
    assert abs(z) < 4.5
    assert found[0]["loss"] == pytest.approx(found[0]["misfit"] + expected["kl"].mean(), rel=1e-9)


def test_the_sum_over_all_codes_is_the_bound_with_its_gradient() -> None:
    made, split = model("exact"), few().train
    parts = weights(made)
    value = made(split.inputs, split.labels, torch.Generator())
    loss = by_hand(parts, split.inputs, split.labels)["loss"]
    assert np.allclose(value.detach().numpy(), loss, rtol=1e-10)
    value.sum().backward()
    for k, p in enumerate(made.parameters()):
        for at in itertools.product(*map(range, p.shape)):
            moved = []
            for step in (1e-5, -1e-5):
                other = [part.copy() for part in parts]
                other[k][at] += step
                moved.append(by_hand(tuple(other), split.inputs, split.labels)["loss"].sum())
            assert p.grad[at].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, abs=1e-6)


def test_the_twin_has_a_real_code_and_neither_noise_nor_divergence() -> None:
    made, split = model("twin"), few().train
    value = made(split.inputs, split.labels, torch.Generator())
    real = by_hand(weights(made), split.inputs, split.labels)["real"]
    assert np.allclose(value.detach().numpy(), real, rtol=1e-10)


@pytest.mark.parametrize("name", coders.ESTIMATORS)
def test_an_estimator_gives_the_misfit_and_the_divergence_comes_exact(name: str) -> None:
    """The value is that of the misfit alone, with the same draw, and the divergence by hand."""
    made, split = model(name), few().train
    value = made(split.inputs, split.labels, torch.Generator().manual_seed(3))
    kl = by_hand(weights(made), split.inputs, split.labels)["kl"]
    loss = coders.autoencoding_loss(made.head, split.labels)
    alone = network_estimator(name)(
        made.net, split.inputs, loss, generator=torch.Generator().manual_seed(3)
    )
    assert np.allclose((value - alone).detach().numpy(), kl, rtol=1e-8)


def test_the_estimators_are_those_that_differ_in_one_layer() -> None:
    """PSA is the same as local expectation there, bit for bit."""
    kinds = {name: registry.get(name).kind for name in registry.ESTIMATORS}
    assert set(coders.ESTIMATORS) == {name for name, kind in kinds.items() if kind != "network"}
    made, split = model("zgr"), few().train
    loss = coders.autoencoding_loss(made.head, split.labels)

    def gradient(name: str) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(1)
        value = network_estimator(name)(made.net, split.inputs, loss, generator=draw)
        return list(torch.autograd.grad(value.sum(), list(made.net.parameters())))

    for name in set(kinds) - set(coders.ESTIMATORS):
        assert all(map(torch.equal, gradient(name), gradient("local_expectation")))


def test_no_two_contenders_share_a_random_number() -> None:
    """The first number that is drawn for the weights of each."""
    starts = {
        fresh(name, bits, few(), 0.1, recipe_of(name, bits, seed, 1)).model.net.layers[0].weight[
            0, 0].item()
        for name in ("zgr", "arm", "twin", "exact") for bits in (2, 3) for seed in (0, 1)
    }  # fmt: skip
    assert len(starts) == 16


# One training ------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a training takes: few pictures of digits, codes of three bits."""
    whole = pictures("digits", torch.float64)

    def cut(name: str, dtype: torch.dtype) -> Dataset:
        parts = {
            k: Split(getattr(whole, k).inputs[:200].to(dtype), getattr(whole, k).labels[:200].to(
                dtype)) for k in ("train", "validation", "test")
        }  # fmt: skip
        return replace(whole, **parts)

    for module in (coders, code_gradients, retrieval):
        monkeypatch.setattr(module, "pictures", cut)
    monkeypatch.setattr(coders, "SHOWN", 150)
    return {"bits": 3, "double": True, "epochs": {"search": 1, "final": 10}}


def job(part: str = "final", name: str = "zgr", **own: Any) -> dict[str, Any]:
    return {"part": part, "data": "digits", "name": name, "lr": 0.03, "seed": 0} | own


def test_a_trial_of_the_search_sees_the_validation_images_alone(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = coders.trained(job("search"), **small)
    assert set(row) == {*job(), "validation"}
    data = coders.pictures("digits", torch.float64)
    for name, same in (("test", True), ("validation", False)):
        split = getattr(data, name)
        other = replace(data, **{name: Split(split.inputs, 1 - split.labels)})
        monkeypatch.setattr(coders, "pictures", lambda *_, other=other: other)
        assert (coders.trained(job("search"), **small) == [row]) is same


@pytest.mark.parametrize("name", ["zgr", "exact"])  # a unit refuses NaN, a sum puts it out
def test_a_training_that_breaks_up_is_null(name: str, small: dict[str, Any]) -> None:
    (row,) = coders.trained(job("search", name, lr=1e308), **small)
    assert row["validation"] is None


def test_another_error_of_a_training_is_one(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("something else")

    monkeypatch.setattr(coders, "carried_out", broken)
    with pytest.raises(ValueError, match="something else"):
        coders.trained(job("search"), **small)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zgr", "exact", "twin", "disarm"])
def test_the_rows_of_a_final_run(name: str, small: dict[str, Any]) -> None:
    row, *curve = coders.trained(job(name=name), **small)
    assert set(row) == {*job(), "train", "test"} and row["test"]["loss"] < curve[0]["test"]
    assert [r["epoch"] for r in curve] == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # of ten, then every eighth
    assert all(r["part"] == "curve" and r["name"] == name for r in curve)
    assert curve[0]["train"] > curve[-1]["train"]
    assert coders.trained(job(name=name), **small) == [row, *curve]
    assert coders.trained(job(name=name, seed=1), **small)[0]["test"] != row["test"]


def test_the_curve_ends_with_the_loss_of_the_model(small: dict[str, Any]) -> None:
    """Exact for a short code: after the last epoch it is the run's own loss, and of 150 images."""
    row, *curve = coders.trained(job(name="exact"), **small | {"epochs": {"final": 8}})
    assert curve[-1]["epoch"] == 8
    for split in ("train", "test"):
        assert curve[-1][split] == pytest.approx(row[split]["loss"], rel=1e-12)


# Directions --------------------------------------------------------------------------------------


class Tiny(code_gradients._Problem):
    """A problem of codes of three bits and six pictures."""

    def __init__(self, name: str = "zgr") -> None:
        super().__init__(model(name), few(), torch.Generator().manual_seed(5))


def misfit_gradient(parts: tuple[np.ndarray, ...], split: Split) -> np.ndarray:
    """Of the mean misfit in the encoder's weights, by differences."""
    out = np.empty_like(parts[0])
    for at in np.ndindex(out.shape):
        moved = []
        for step in (1e-5, -1e-5):
            A = parts[0].copy()
            A[at] += step
            moved.append(by_hand((A, *parts[1:]), split.inputs, split.labels)["misfit"].mean())
        out[at] = (moved[0] - moved[1]) / 2e-5
    return out.ravel()


def test_the_exact_gradient_is_that_of_the_mean_misfit() -> None:
    problem = Tiny()
    expected = misfit_gradient(weights(model("zgr")), few().train)
    reference = problem.reference()
    assert reference.shape == (code_gradients.GROUPS, 12)
    assert np.allclose(reference.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["straight_through", "reinforce_loo", "concrete"])
def test_a_sample_is_the_gradient_in_the_weights_of_one_draw_a_picture(name: str) -> None:
    made, split = model("zgr"), few().train
    found = Tiny().samples(name, 1)
    loss = coders.autoencoding_loss(made.head, split.labels)
    draw = torch.Generator().manual_seed(5)
    value = network_estimator(name)(made.net, split.inputs[None], loss, generator=draw).mean()
    (wanted,) = torch.autograd.grad(value, [made.net.layers[0].weight])
    torch.testing.assert_close(found, wanted.flatten()[None], rtol=1e-9, atol=1e-12)


def test_the_reference_of_a_long_code_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve coordinates, each within 5 of its standard errors by t of 19 degrees: a false alarm in
    a thousand."""
    monkeypatch.setattr(code_gradients, "EXACT_BITS", 2)
    means = Tiny().reference().numpy()
    expected = misfit_gradient(weights(model("zgr")), few().train)
    assert means.shape == (20, 12) and len(np.unique(means[:, 0])) == 20
    t = (means.mean(0) - expected) / (means.std(0, ddof=1) / math.sqrt(20))
    assert 2 * 12 * stats.t.sf(5, 19) < 1.1e-3
    assert np.abs(t).max() < 5


def test_the_rows_of_a_moment() -> None:
    """Unbiased ones at cosine 1 within 5 of their errors, straight-through below; deviations by the
    samples of a second run with the same numbers."""
    rows = code_gradients._rows(Tiny())
    reference, *others = rows
    exact = misfit_gradient(weights(model("zgr")), few().train)
    assert reference["estimator"] == "exact" and reference["samples"] == reference["se"] == 0
    assert reference["length"] == pytest.approx(np.linalg.norm(exact), rel=1e-6)
    by_name = {row["estimator"]: row for row in others}
    assert list(by_name) == list(coders.ESTIMATORS)
    for name in ("local_expectation", "arm", "disarm", "reinforce_loo", "muprop"):
        row = by_name[name]
        assert abs(row["many"] - 1) < 5 * row["many_se"] + 1e-3
    st = by_name["straight_through"]
    assert st["many"] < 1 - 10 * st["many_se"] and st["one"] < st["many"]
    again = Tiny()
    g = np.stack([again.samples("straight_through", 50).numpy() for _ in range(20)])
    deviation = math.sqrt(g.var(1, ddof=1).mean(0).sum()) / np.linalg.norm(exact)
    assert st["deviation"] == pytest.approx(deviation, rel=1e-6)
    one = (g @ exact / np.linalg.norm(g, axis=-1)).mean() / np.linalg.norm(exact)
    assert st["one"] == pytest.approx(one, rel=1e-5)


def test_a_training_is_looked_at_at_each_moment(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"EPOCHS": (0, 1), "IMAGES": 4, "GROUPS": 4, "SAMPLES": 10}.items():
        monkeypatch.setattr(code_gradients, name, value)
    monkeypatch.setattr(code_gradients, "EXACT_BITS", 3)
    rates = {"exact": 0.03, "zgr": 0.03}
    for bits, who in ((3, "exact"), (4, "zgr")):
        own = {"bits": bits, "trained": who, "seed": 0}
        rows = code_gradients.looked_at(own, data="digits", rates=rates)
        assert {r["epoch"] for r in rows} == {0, 1} and all(own.items() <= r.items() for r in rows)
        names = [r["estimator"] for r in rows if r["part"] == "gradients" and r["epoch"] == 1]
        left_out = set() if bits == 3 else {"local_expectation"}
        assert set(names) == set(coders.ESTIMATORS) - left_out
        (reference,) = [r for r in rows if r["part"] == "reference" and r["epoch"] == 1]
        assert reference["samples"] == (0 if bits == 3 else 40)


# Retrieval ---------------------------------------------------------------------------------------


def test_principal_axes_are_those_of_the_largest_variance() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 7)
    found = retrieval.principal_axes(x + 3, 2).numpy()
    _, _, rows = np.linalg.svd(x.numpy() - x.numpy().mean(0))
    assert np.allclose(np.abs(rows[:2] @ found), np.eye(2), atol=1e-9)


def labelled(items: int, queries: int) -> Dataset:
    draw = torch.Generator().manual_seed(7)
    splits = [Split(torch.zeros(n, 1), torch.randint(3, (n,), generator=draw))
              for n in (items, 1, queries)]  # fmt: skip
    return Dataset("labelled", (1, 1), 3, *splits)


def test_the_nearest_by_euclidean_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "NEAREST", 5)
    monkeypatch.setattr(retrieval, "TOGETHER", 4)
    data, draw = labelled(40, 9), torch.Generator().manual_seed(1)
    items, queries = torch.randn(40, 3, generator=draw), 3 * torch.randn(9, 3, generator=draw)
    row = retrieval._by_distance(items, queries, data)
    d = np.linalg.norm(queries.numpy()[:, None] - items.numpy()[None], axis=-1)
    near = np.argsort(d, axis=1)[:, :5]
    right = data.train.labels.numpy()[near] == data.test.labels.numpy()[:, None]
    assert row["nearest"] == pytest.approx(right.mean(), rel=1e-12)
    assert row["within"] is row["empty"] is row["map"] is None


@pytest.mark.slow
def test_the_numbers_of_codes_of_bits() -> None:
    data, draw = labelled(40, 9), torch.Generator().manual_seed(1)
    items, queries = (torch.randint(2, (n, 6), generator=draw) * 2.0 - 1 for n in (40, 9))
    row = retrieval._by_bits(items, queries, data)
    d = (queries.numpy()[:, None] != items.numpy()[None]).sum(-1)
    same = data.train.labels.numpy()[None] == data.test.labels.numpy()[:, None]
    for radius in range(4):
        near = d <= radius
        precision = (near & same).sum(1) / np.maximum(near.sum(1), 1)
        assert row["within"][radius] == pytest.approx(precision.mean(), rel=1e-12)
        assert row["empty"][radius] == pytest.approx((near.sum(1) == 0).mean(), rel=1e-12)
    assert row["nearest"] == pytest.approx(same.mean(), rel=1e-12)  # all 40 of them
    assert 0 < row["map"] < 1


def test_every_code_length_and_seed_is_a_job() -> None:
    found = retrieval.jobs(["straight_through", "zgr", "arm"])
    assert len(found) == 3 + 5 * 3 * 5
    assert [j["seed"] for j in found if j["name"] == "pca"] == [0, 0, 0]
    assert {j["bits"] for j in found if j["name"] == "lsh"} == {16, 32, 64}


@pytest.mark.slow
def test_each_code_is_retrieved_by(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = datasets.load("digits")
    monkeypatch.setattr(retrieval, "NEAREST", 10)
    parts = {
        k: Split(getattr(whole, k).inputs[:200], getattr(whole, k).labels[:200])
        for k in ("train", "test")
    }
    monkeypatch.setattr(retrieval, "data_of", lambda _: replace(whole, **parts))
    how = {"data": "digits", "rates": {"zgr": 0.03, "twin": 0.03}, "epochs": 2}
    kinds = {}
    for name in ("pca", "lsh", "zgr", "twin"):
        rows = retrieval.retrieved({"name": name, "bits": 5, "seed": 0}, **how)
        kinds[name] = [row["code"] for row in rows]
        assert all(row["nearest"] > 0.15 for row in rows)  # chance is a tenth
    assert kinds == {"pca": ["sign"], "lsh": ["sign"], "zgr": ["sign"], "twin": ["sign", "real"]}
    a, b = (retrieval.retrieved({"name": "lsh", "bits": 5, "seed": s}, **how) for s in (0, 1))
    assert a[0]["map"] != b[0]["map"]


def test_the_code_is_the_signs_and_the_means() -> None:
    made, inputs = model("zgr"), few().train.inputs
    A, b, *_ = weights(made)
    a = inputs.numpy() @ A.T + b
    code, real = coders.coded(made, inputs)
    assert np.array_equal(code.numpy(), np.where(a >= 0, 1, -1))
    assert np.allclose(real.numpy(), np.tanh(a / 2), rtol=1e-9)


# The command -------------------------------------------------------------------------------------

NAMES = ["zgr", "twin", "arm", "straight_through", "darn"]
SHORT = ["--data", "digits", "--search-epochs", "1", "--epochs", "2"]


def narrow(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Short codes, three rates, two seeds."""
    patch.chdir(folder)
    for part in SETTINGS:
        patch.setitem(SETTINGS, part, replace(SETTINGS[part], bits=3))
    for module in (autoencoders, retrieval):
        patch.setattr(module, "SEEDS", 2)
    patch.setattr(autoencoders, "RATES", (0.003, 0.01, 0.03))
    patch.setattr(retrieval, "BITS", (3, 4))


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    narrow(monkeypatch, tmp_path)
    return tmp_path / "x.json"


def run(part: str, *options: str) -> int:
    return autoencoders.main(["--part", part, *(SHORT if part in SETTINGS else ()), *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> dict[str, Any]:
    """What the command writes, and where it was."""
    folder = tmp_path_factory.mktemp("autoencoders")
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch, folder)
        assert run("train", "--only", *NAMES) == 0
        return measurement.read(Path("runs/autoencoders-train.json")) | {"folder": folder}


def of(rows: list[dict], part: str, name: str | None = None) -> list[dict]:
    return [r for r in rows if r["part"] == part and name in (None, r["name"])]


@pytest.mark.slow
def test_the_command_writes_every_contender(whole: dict[str, Any]) -> None:
    assert whole["kind"] == "autoencoders" and whole["seeds"] == [0, 1]
    assert set(whole["command"].split()) == {
        "python", "-m", "sbnlib.experiments.autoencoders", "--part", "train", *SHORT, "--only",
        *NAMES,
    }  # fmt: skip
    names = list(dict.fromkeys(r["name"] for r in whole["rows"]))
    assert names == [n for n in SETTINGS["train"].names if n in NAMES]
    for name in NAMES:
        search, final = of(whole["rows"], "search", name), of(whole["rows"], "final", name)
        assert [r["lr"] for r in search[:3]] == [0.003, 0.01, 0.03]
        assert {r["seed"] for r in search} == {1_000_000} and "test" not in search[0]
        best = min(search, key=lambda r: r["validation"])
        assert [(r["lr"], r["seed"]) for r in final] == [(best["lr"], 0), (best["lr"], 1)]
        rates = [r["lr"] for r in search]
        inside = min(rates) < best["lr"] < max(rates)
        assert whole["checks"][f"{name}_inside_grid"] == inside and (inside or len(rates) == 6)
        assert [r["epoch"] for r in of(whole["rows"], "curve", name)] == [0, 1, 2] * 2


@pytest.mark.slow
def test_the_summary_is_means_with_errors(whole: dict[str, Any]) -> None:
    for row in of(whole["rows"], "summary"):
        final = of(whole["rows"], "final", row["name"])
        assert row["seeds"] == len(final) == 2
        for split in ("train", "test"):
            for key in final[0][split]:
                values = [r[split][key] for r in final]
                assert row[split][key] == pytest.approx(np.mean(values))
                assert row[f"{split}_se"][key] == pytest.approx(stats.sem(values), abs=1e-12)


OPTIONS = {"part": "train", "epochs": 2, "search_epochs": 1, "only": (), "data": ("digits",)}


def as_tried(found: dict[float, float | None]) -> list[dict]:
    return [{"lr": lr, "validation": v} for lr, v in found.items()]


def test_a_search_goes_on_beyond_an_end_that_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoders, "RATES", (0.003, 0.01, 0.03))

    def due(*validation: float | None) -> list[float]:
        tried = (0.003, 0.01, 0.03, 0.09, 0.27, 0.81)
        rows = as_tried(dict(zip(tried, validation, strict=False)))
        return [j["lr"] for j in autoencoders.search_jobs("digits", "zgr", rows)]

    assert due() == [0.003, 0.01, 0.03]
    assert due(3.0, 2.0, 2.5) == [] and due(3.0, 2.0, 1.0) == [0.09]
    assert due(1.0, 2.0, 3.0) == [0.0009]
    assert due(3.0, 2.0, 1.0, None) == []  # what is not finite is the worst
    assert due(3.0, 2.0, 1.0, 0.5) == [0.27] and due(3.0, 2.0, 1.0, 0.5, 0.4, 0.3) == []
    own = {"part": "search", "data": "digits", "name": "zgr"}
    for validation, inside in (((3.0, 2.0, 2.5), True), ((3.0, 2.0, 1.0), False)):
        rows = as_tried(dict(zip((0.003, 0.01, 0.03), validation, strict=True)))
        found = autoencoders._trained(OPTIONS, [row | own for row in rows])
        assert found["checks"] == {"zgr_inside_grid": inside}
    rows = as_tried({0.003: 3.0, 0.01: None, 0.03: 2.0, 0.09: 2.5})
    assert {j["lr"] for j in autoencoders.final_jobs("digits", "zgr", rows)} == {0.03}


@pytest.mark.slow
def test_the_file_holds_the_contenders_that_are_complete(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the second leaves one; then nothing that is known is trained again."""
    done: list[tuple] = []
    real = autoencoders.trained

    def until(second: bool) -> Callable[..., list[dict]]:
        def compute(job: Any, **how: Any) -> list[dict]:
            if second and job["name"] == "twin" and job["part"] == "final":
                raise KeyboardInterrupt
            done.append(tuple(job.values()))
            return real(job, **how)

        return compute

    monkeypatch.setattr(autoencoders, "trained", until(True))
    with pytest.raises(KeyboardInterrupt):
        run("train", "--only", "zgr", "twin", "--out", str(short))
    assert {r["name"] for r in measurement.read(short)["rows"]} == {"zgr"}
    before = len(done)
    monkeypatch.setattr(autoencoders, "trained", until(False))
    assert run("train", "--only", "zgr", "twin", "--out", str(short)) == 0
    assert len(done) == len(set(done)) == before + 2
    assert {r["name"] for r in measurement.read(short)["rows"]} == {"zgr", "twin"}


def test_jobs_of_both_phases_may_be_done_one_by_one(short: Path, capsys: Any) -> None:
    def listed() -> list[list[str]]:
        capsys.readouterr()
        assert run("train", "--only", "zgr", "--list") == 0
        return [line.split()[3:] for line in capsys.readouterr().out.splitlines()]

    seen = []
    while due := listed():
        seen.append([line[-1].split("-")[0] for line in due])
        for line in due:
            autoencoders.main(line)
    assert seen[0] == ["search"] * 3 and seen[-1] == ["final"] * 2
    assert all(phase == ["search"] for phase in seen[1:-1]) and not short.exists()
    assert run("train", "--only", "zgr", "--out", str(short)) == 0
    assert [r["seed"] for r in of(measurement.read(short)["rows"], "final")] == [0, 1]


def test_what_is_kept_goes_when_all_contenders_are_in_the_file(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "train", replace(SETTINGS["train"], names=("zgr",)))
    assert run("train", "--only", "zgr", "--out", str(short)) == 0
    assert len(list(Path("runs").glob("autoencoders-train-*/final-*.json"))) == 2
    assert run("train", "--out", str(short)) == 0
    assert not list(Path("runs").glob("autoencoders-train-*"))


@pytest.mark.slow
def test_the_small_part_has_two_data_sets_and_the_exact_sum(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SETTINGS["small"].data == ("digits", "fashion-mnist-4000")
    assert SETTINGS["small"].names == ("exact", *coders.ESTIMATORS)
    options = ["--only", "exact", "--out", str(short), "--data", "digits", "fashion-mnist-4000"]
    monkeypatch.setattr(autoencoders, "SEEDS", 1)
    assert run("small", *options) == 0
    found = measurement.read(short)
    rows = of(found["rows"], "summary")
    assert [r["data"] for r in rows] == ["digits", "fashion-mnist-4000"]
    assert all(r["test"]["nll"] < r["test"]["loss"] for r in rows)
    assert rows[0]["test_se"]["loss"] is None
    assert set(found["checks"]) == {
        "digits_exact_inside_grid", "fashion-mnist-4000_exact_inside_grid"}  # fmt: skip
    assert found["command"].endswith("--only exact") or "--only exact --data" in found["command"]


@pytest.mark.slow
def test_the_rates_of_a_file_are_used_and_its_best_estimator(whole: dict[str, Any]) -> None:
    path = whole["folder"] / "runs" / "autoencoders-train.json"
    final = {r["name"]: r["lr"] for r in of(whole["rows"], "final")}
    assert autoencoders.chosen_rates(path, ["zgr", "twin"]) == {
        k: final[k] for k in ("zgr", "twin")
    }
    assert autoencoders.epochs_of(path) == 2
    least = {
        name: min(r["validation"] for r in of(whole["rows"], "search", name))
        for name in ("arm", "darn")
    }
    assert autoencoders.best_other(path) == min(least, key=lambda name: least[name])


def test_the_best_other_is_cheap_and_no_twin(tmp_path: Path) -> None:
    rows = [
        {"part": "search", "name": name, "lr": 0.1, "validation": v}
        for name, v in [("zgr", 1.0), ("twin", 0.5), ("local_expectation", 2.0), ("arm", 3.0),
                        ("rebar", 2.5), ("concrete", None)]
    ]  # fmt: skip
    path = tmp_path / "x.json"
    record = measurement.record(kind="autoencoders", command="", device="", seeds=[], rows=rows)
    measurement.write(path, record)
    assert autoencoders.best_other(path) == "rebar"
    with pytest.raises(ValueError, match="holds no final run of zgr; run --part train"):
        autoencoders.chosen_rates(path, ["zgr"])
    measurement.write(path, record | {"rows": rows[:3]})
    with pytest.raises(ValueError, match="holds no estimator beside"):
        autoencoders.best_other(path)
    measurement.write(path, record | {"kind": "contenders"})
    with pytest.raises(ValueError, match="is of kind 'contenders', must be autoencoders"):
        autoencoders.best_other(path)


@pytest.mark.slow
def test_the_other_parts_write_their_rows(
    whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole["folder"])
    narrow(monkeypatch, whole["folder"])
    for name, value in {"EPOCHS": (0, 1), "IMAGES": 4, "GROUPS": 3, "SAMPLES": 10}.items():
        monkeypatch.setattr(code_gradients, name, value)
    monkeypatch.setattr(code_gradients, "RUNS", ((3, "exact"), (9, "zgr")))
    rates = {"straight_through": 0.02, "zgr": 0.01}
    monkeypatch.setattr(
        autoencoders, "chosen_rates", lambda _, names: {n: rates.get(n, 0.03) for n in names}
    )
    seen: dict[str, Any] = {}
    real = code_gradients.fresh
    monkeypatch.setattr(code_gradients, "fresh", lambda name, bits, data, lr, recipe: (
        seen.update({name: lr}) or real(name, bits, data, lr, recipe)))  # fmt: skip
    assert run("gradients", "--data", "digits") == 0
    assert seen == {"exact": 0.01, "zgr": 0.01}
    found = measurement.read(Path("runs/autoencoders-gradients.json"))
    assert {(r["bits"], r["trained"]) for r in found["rows"]} == {(3, "exact"), (9, "zgr")}
    assert found["command"].endswith("--part gradients --data digits") and found["seeds"] == [0]
    assert run("retrieval", "--data", "digits") == 0
    found = measurement.read(Path("runs/autoencoders-retrieval.json"))
    other = autoencoders.best_other(Path("runs/autoencoders-train.json"))
    names = {"pca", "lsh", "twin", "zgr", "straight_through", other}
    assert {r["name"] for r in found["rows"]} == names and found["seeds"] == [0, 1]
    assert len(found["rows"]) == 2 + 2 * 2 * 5 + 4  # the twin's codes twice


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--part", "nothing"], "invalid choice: 'nothing'"),
        (["--part", "train", "--data", "mnist"], "invalid choice: 'mnist'"),
        (["--part", "train", "--only", "st"], "invalid choice: 'st'"),
        (["--part", "train", "--only", "exact"], "--only: exact has no part in --part train"),
        (["--part", "small", "--only", "twin"], "--only: twin has no part in --part small"),
        (["--part", "train", "--epochs", "0"], "epochs must be"),
        (["--part", "small", "--search-epochs", "-1"], "search_epochs must be"),
        (["--part", "train", "--chosen", "x"], "--chosen: has no part in --part train"),
        (["--part", "gradients", "--epochs", "3"], "--epochs: has no part in --part gradients"),
        (["--part", "gradients"], "--chosen: runs/autoencoders-train.json is not there"),
        (["--part", "retrieval", "--data", "digits", "cifar-10"], "--data: .*takes one data set"),
        (["--part", "train"], "train-.*-ubyte.gz is not there"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SBN_DATA", str(tmp_path / "empty"))
    autoencoders.data_of.cache_clear()
    monkeypatch.setattr(autoencoders, "trained", lambda *_, **__: pytest.fail("it worked"))
    with pytest.raises(SystemExit) as stop:
        autoencoders.main(options)
    autoencoders.data_of.cache_clear()
    assert stop.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_hyperplanes_of_two_lengths_share_no_number() -> None:
    one, two = (torch.rand(4, generator=generator("cpu", "lsh", seed=0, bits=n)) for n in (16, 32))
    assert not torch.equal(one, two)
