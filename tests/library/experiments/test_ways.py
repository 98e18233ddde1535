"""Sixteen ways: the table, the networks, how they are tested, one training of each kind."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special
from torch import nn

from sbnlib import data as datasets
from sbnlib.data import Dataset
from sbnlib.experiments import ways
from sbnlib.experiments.training import Recipe, Training
from sbnlib.experiments.ways import WAYS, Way, calibration_error

DIGITS = datasets.load("digits")
DENSE = [way.name for way in WAYS.values() if not way.convolutional]


def tiny(name: str, **own: Any) -> Way:
    """The way with narrow layers."""
    way = WAYS[name]
    hidden = (6,) * 8 if len(way.hidden) == 8 else (9, 7) if way.hidden else ()
    return replace(way, hidden=hidden, **own)


def fresh(way: Way, seed: int = 0, lr: float = 0.01) -> Training:
    return ways.fresh(way, DIGITS, lr, Recipe(seed, 1, 100, contender=way.name))


# The table ---------------------------------------------------------------------------------------


def test_the_table_is_the_sixteen_ways_in_order() -> None:
    assert list(WAYS) == [
        "twin", "st-logistic", "st-gaussian", "st-uniform", "zgr-logistic", "zgr-gaussian",
        "zgr-uniform", "sign-hardtanh", "weights-mirror", "weights-bc", "deep-gain-1",
        "deep-scale-1", "deep-zgr", "conv-tanh", "conv-st", "conv-psa",
    ]  # fmt: skip
    assert [way.seeds for way in WAYS.values()] == [10] * 10 + [5] * 6
    assert all(len(set(way.rates)) == 6 for way in WAYS.values())
    assert len({way.label for way in WAYS.values()}) == 16
    conv = list(WAYS.values())[13:]
    assert {way.twin for way in conv} == {"conv-tanh"} and len({way.images for way in conv}) == 1
    assert {way.twin for way in list(WAYS.values())[:13]} == {"twin"}


@pytest.mark.parametrize("name", WAYS)
def test_a_way_is_chosen_by_the_prediction_it_is_used_with(name: str) -> None:
    way = WAYS[name]
    binary_weights = name.startswith("weights")
    wanted = {"twin": "tanh", "conv-tanh": "tanh", "sign-hardtanh": "sign"}
    assert way.chosen_by == wanted.get(name, "sign" if binary_weights else "ten")
    assert way.predictions == (
        (wanted[name],) if name in wanted else ("sign", "one", "ten", "mean")
    )


def gain(name: str, scale: float) -> float:
    """E (2f)^2 for N(0, 1), by scipy's quadrature of densities written down here."""

    def density(a: float) -> float:
        z = a / scale
        if name == "Logistic":
            return special.expit(z) * special.expit(-z) / scale
        if name == "Gaussian":
            return math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / scale
        return 0.5 / scale if abs(z) <= 1 else 0.0

    def term(a: float) -> float:
        return (2 * density(a)) ** 2 * math.exp(-a * a / 2) / math.sqrt(2 * math.pi)

    return 2 * sum(integrate.quad(term, *ends)[0] for ends in ((0, scale), (scale, 12)))


@pytest.mark.parametrize("name", WAYS)
def test_the_noise_has_gain_1_but_where_its_scale_is_said(name: str) -> None:
    way = WAYS[name]
    one = optimize.brentq(lambda scale: gain(way.noise, scale) - 1, 0.1, 2)
    wanted = 1.0 if name == "deep-scale-1" else one
    assert way.law.scale == pytest.approx(wanted, rel=1e-6)
    assert type(way.law).__name__ == way.noise
    if "-logistic" in name or "-gaussian" in name or "-uniform" in name:
        assert name.endswith(way.noise.lower())


# Networks ----------------------------------------------------------------------------------------


def parts(module: nn.Module) -> list[str]:
    return [type(m).__name__ for m in module.modules() if not list(m.children())]


def test_a_dense_layer_is_linear_without_biases_and_batch_norm() -> None:
    for name in DENSE:
        way, model = tiny(name), fresh(tiny(name)).model
        matrix = "Linear" if way.weights == "real" else "BernoulliLinear"
        assert all(parts(layer) == [matrix, "BatchNorm1d"] for layer in model.net.layers)
        assert len(model.net.layers) == len(way.hidden)
        sizes = [64, *way.hidden]
        weights = sum(m * n for m, n in zip(sizes, sizes[1:], strict=False))
        head = 10 * sizes[-1] + 10
        count = sum(p.numel() for p in model.parameters())
        assert count == weights + 2 * sum(way.hidden) + head
        assert all(p.dtype == torch.float32 for p in model.parameters())


def test_the_sizes_are_those_of_the_title() -> None:
    assert {WAYS[name].hidden for name in DENSE[:10]} == {(512, 512)}
    assert {WAYS[name].hidden for name in DENSE[10:]} == {(256,) * 8}
    assert [w.estimator for w in WAYS.values()][1:7] == ["straight_through"] * 3 + ["zgr"] * 3
    assert [WAYS[f"deep-{k}"].estimator for k in ("gain-1", "scale-1", "zgr")] == [
        "straight_through", "straight_through", "zgr"]  # fmt: skip
    assert WAYS["conv-psa"].estimator == "psa"


@pytest.mark.parametrize("name", ["conv-tanh", "conv-st", "conv-psa"])
def test_convolutions_start_with_pre_activations_of_variance_1(name: str) -> None:
    """Mean squares of normal weights, within 4.5 of their standard errors sqrt(2/count)."""
    model = fresh(WAYS[name]).model
    mean_square = DIGITS.train.inputs.square().mean().item()
    convs = [m for m in model.net.modules() if isinstance(m, nn.Conv2d)]
    for conv, inputs, square in zip(convs, (1, 16), (mean_square, 1.0), strict=True):
        assert conv.kernel_size == (3, 3) and conv.stride == (2, 2) and conv.in_channels == inputs
        found = conv.weight.square().mean().item() * 9 * inputs * square
        assert abs(found - 1) < 4.5 * math.sqrt(2 / conv.weight.numel())
    assert "BatchNorm" not in str(model)
    assert model.head.in_features == 8 * 2 * 2  # 8 x 8 pixels, twice at stride 2


def test_two_ways_and_two_seeds_share_no_weights_and_a_seed_repeats_them() -> None:
    def first(name: str, seed: int) -> torch.Tensor:
        return next(fresh(tiny(name), seed).model.parameters()).detach()

    assert torch.equal(first("st-logistic", 3), first("st-logistic", 3))
    assert not torch.equal(first("st-logistic", 3), first("st-logistic", 4))
    assert not torch.equal(first("st-logistic", 3), first("zgr-logistic", 3))
    assert not torch.equal(first("twin", 3), first("sign-hardtanh", 3))


def test_the_deterministic_rule_is_its_chain_rule() -> None:
    """Gradients of both matrices by hand: sign forward, [|a| < 1] backward."""
    g = np.random.default_rng(0)
    W, V, U = g.normal(size=(5, 4)), g.normal(size=(3, 5)), g.normal(size=3)
    x = g.normal(size=(6, 4))
    a = x @ W.T
    h = np.where(a >= 0, 1.0, -1.0)
    b = h @ V.T
    db = U * (np.abs(b) < 1)
    da = db @ V * (np.abs(a) < 1)
    assert 0 < np.mean(np.abs(a) < 1) < 1 and 0 < np.mean(np.abs(b) < 1) < 1
    layers = [nn.Linear(4, 5, bias=False).double(), nn.Linear(5, 3, bias=False).double()]
    for layer, value in zip(layers, (W, V), strict=True):
        layer.weight.data = torch.tensor(value)
    net = ways._net(WAYS["sign-hardtanh"], layers)
    top = torch.tensor(U)
    value = ways.deterministic(net, torch.tensor(x), lambda s: s @ top)
    assert value.tolist() == pytest.approx((np.where(b >= 0, 1.0, -1.0) @ U).tolist())
    value.sum().backward()
    assert np.allclose(layers[0].weight.grad, da.T @ x)
    assert np.allclose(layers[1].weight.grad, db.T @ h)


@pytest.mark.parametrize(("name", "moved"), [("weights-mirror", 3e3), ("weights-bc", 3e2)])
def test_binary_weights_have_their_own_rate_and_the_rest_adam(name: str, moved: float) -> None:
    training = fresh(tiny(name), lr=moved)
    latent, rest = training.optimizers
    assert [g["lr"] for g in latent.param_groups] == [moved]
    assert isinstance(rest, torch.optim.Adam) and [g["lr"] for g in rest.param_groups] == [0.01]
    own = [p for g in latent.param_groups for p in g["params"]]
    assert [tuple(p.shape) for p in own] == [(9, 64), (7, 9)]
    others = [p for g in rest.param_groups for p in g["params"]]
    assert len(others) + 2 == len(list(training.model.parameters()))
    mode = {m.mode for m in training.model.modules() if hasattr(m, "eta")}
    assert mode == ({"sample"} if name == "weights-mirror" else {"sign"})


# The error of calibration ------------------------------------------------------------------------


def ece(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    """By the definition, bin by bin."""
    confidence, guess = p.max(1), p.argmax(1)
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            gap = abs((guess == y)[inside].mean() - confidence[inside].mean())
            total += inside.sum() / len(y) * gap
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_calibration_error_is_the_sum_over_bins(bins: int) -> None:
    g = np.random.default_rng(1)
    p = g.dirichlet(np.full(5, 0.4), 300)
    y = np.where(g.random(300) < 0.6, p.argmax(1), g.integers(0, 5, 300))
    found = calibration_error(torch.tensor(p), torch.tensor(y), bins)
    assert found == pytest.approx(ece(p, y, bins), abs=1e-12)
    assert found > 0.01


def test_a_confidence_at_the_end_of_a_bin_belongs_to_it() -> None:
    """In halves: 0.5 is in the lower bin, 1 in the upper one; by hand."""
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], dtype=torch.float64)
    right = torch.tensor([1, 0, 0])  # wrong, right, right
    assert calibration_error(p, right, 2) == pytest.approx((0.5 + abs(2 - 1.75)) / 3)
    assert calibration_error(p, right, 1) == pytest.approx(abs(2 - 2.25) / 3)
    certain = torch.tensor([[0.0, 1.0]])
    assert calibration_error(certain, torch.tensor([1])) == 0
    assert calibration_error(certain, torch.tensor([0])) == 1


@pytest.mark.parametrize(
    ("p", "labels", "bins", "said"),
    [
        (torch.ones(3), torch.zeros(3), 15, r"probabilities must be .*, got \(3,\)"),
        (torch.ones(0, 2), torch.zeros(0), 15, r"with N >= 1, got \(0, 2\)"),
        (torch.ones(3, 2), torch.zeros(2), 15, r"labels must be \(3,\), .*, got \(2,\)"),
        (torch.ones(3, 2), torch.zeros(3), 0, "bins must be"),
    ],
)
def test_what_has_no_calibration_is_refused(p: Any, labels: Any, bins: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        calibration_error(p, labels, bins)


# How they are tested -----------------------------------------------------------------------------


def normed(a: np.ndarray, of: np.ndarray, norm: Any) -> np.ndarray:
    scale, shift = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    return (a - of.mean(0)) / np.sqrt(of.var(0, ddof=1) + norm.eps) * scale + shift


def running(a: np.ndarray, norm: Any) -> np.ndarray:
    scale, shift = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    mean, var = norm.running_mean.numpy(), norm.running_var.numpy()
    return (a - mean) / np.sqrt(var + norm.eps) * scale + shift


def by_numpy(model: Any, way: Way, images: np.ndarray, statistics: np.ndarray) -> tuple:
    """Scores with statistics taken anew, and with those of training."""
    unit = np.tanh if way.kind == "tanh" else lambda a: np.where(a >= 0, 1.0, -1.0)
    x, v, r = images, statistics, images
    for layer in model.net.layers:
        matrix, norm = list(layer.children())
        W = matrix.weight if way.weights == "real" else matrix.eta
        W = W.detach().double().numpy()
        W = W if way.weights == "real" else np.where(W >= 0, 1.0, -1.0)
        x, v = unit(normed(x @ W.T, v @ W.T, norm)), unit(normed(v @ W.T, v @ W.T, norm))
        r = unit(running(r @ W.T, norm))
    head = model.head
    U, c = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    return x @ U.T + c, r @ U.T + c


@pytest.mark.parametrize("name", ["twin", "sign-hardtanh", "weights-bc", "weights-mirror"])
def test_the_numbers_are_those_of_the_network_with_statistics_taken_anew(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy, likelihood and calibration by numpy, in float64 here: signs may differ at 0."""
    monkeypatch.setattr(ways, "STATISTICS", 300)
    way = tiny(name)
    training = fresh(way)
    step = torch.Generator().manual_seed(0)
    for k in range(0, 1000, 100):
        x, y = DIGITS.train.inputs[k : k + 100], DIGITS.train.labels[k : k + 100]
        for optimizer in training.optimizers:
            optimizer.zero_grad()
        training.model(x, y, step).mean().backward()
        for optimizer in training.optimizers:
            optimizer.step()
    found = ways.scores(way, training.model, DIGITS, training.recipe)
    few = DIGITS.train.inputs[:300].double().numpy()
    for split in ("validation", "test"):
        images, labels = (
            getattr(DIGITS, split).inputs.double().numpy(),
            getattr(DIGITS, split).labels,
        )
        anew, old = by_numpy(training.model, way, images, few)
        wanted = {way.chosen_by: anew}
        if split == "test" and way.weights == "real":
            wanted[f"{way.chosen_by} running"] = old
        for prediction, logits in wanted.items():
            logs, y = special.log_softmax(logits, axis=1), labels.numpy()
            numbers = {n: of[prediction] for n, of in found[split].items()}
            assert numbers["accuracy"] == pytest.approx((logs.argmax(1) == y).mean(), abs=0.003)
            assert numbers["nll"] == pytest.approx(-logs[np.arange(len(y)), y].mean(), abs=0.003)
            assert numbers["ece"] == pytest.approx(ece(np.exp(logs), y, 15), abs=0.006)


def test_the_predictions_of_drawn_units_are_samples_and_their_mean() -> None:
    way = tiny("st-logistic")
    training = fresh(way)
    nets = {mode: training.model.net.eval() for mode in ("sample", "sign", "mean")}
    draw = torch.Generator().manual_seed(1)
    logs = ways._predicted(training.model.head, nets, DIGITS.test.inputs, draw)
    samples = np.exp([each.numpy().astype(np.float64) for each in logs["one"]])
    assert samples.shape == (10, 359, 10) and np.allclose(samples.sum(-1), 1)
    assert np.allclose(np.exp(logs["ten"][0].numpy()), samples.mean(0), atol=1e-6)
    assert len({each.sum() for each in samples[:, :, 0]}) == 10  # ten different draws
    numbers = ways._numbers(logs, DIGITS.test.labels)
    y = DIGITS.test.labels.numpy()
    hits = [(each.argmax(-1) == y).mean() for each in samples]
    nll = [-np.log(each[np.arange(359), y]).mean() for each in samples]
    assert numbers["accuracy"]["one"] == pytest.approx(np.mean(hits))
    assert numbers["nll"]["one"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert numbers["ece"]["one"] == pytest.approx(
        np.mean([ece(s, y, 15) for s in samples]), rel=1e-4
    )


@pytest.mark.parametrize("name", ["st-logistic", "weights-mirror", "twin", "conv-st"])
def test_the_predictions_have_names_and_testing_changes_nothing(name: str) -> None:
    way = tiny(name)
    training = fresh(way)
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    found = ways.scores(way, training.model, DIGITS, training.recipe)
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())
    extra = {"twin": ["tanh running"], "conv-st": []}.get(name, ["ten running"])
    assert list(found["validation"]["accuracy"]) == list(way.predictions)
    for number in ("accuracy", "nll", "ece"):
        assert list(found["test"][number]) == [*way.predictions, *extra]
    again = ways.scores(
        way, training.model, DIGITS, training.recipe, ["validation"], ["sign", "tanh"]
    )
    own = "tanh" if name == "twin" else "sign"
    assert again == {"validation": {n: {own: of[own]} for n, of in found["validation"].items()}}


# One training ------------------------------------------------------------------------------------


def small_data() -> Dataset:
    return ways.cut(DIGITS, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_every_way_is_trained_and_repeats_itself(name: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(WAYS, name, tiny(name, images=300))
    way = WAYS[name]
    how: dict[str, Any] = {"data": "digits", "epochs": {"search": 1, "final": 2}}
    job = {"part": "search", "name": name, "lr": way.rates[2], "seed": 1_000_000}
    [row] = ways.trained(job, **how)
    assert {k: row[k] for k in job} == job
    assert list(row) == [*job, "validation", "validation_loss"]
    assert 0 <= row["validation"] <= 1 and row["validation_loss"] > 0
    job |= {"part": "final", "seed": 4}
    [row], [again] = ways.trained(job, **how), ways.trained(job, **how)
    assert row == again and {k: row[k] for k in job} == job
    assert list(row) == [*job, "validation", "test", "nll", "ece"]
    assert list(row["nll"]) == list(row["ece"]) == list(row["test"])
    assert all(0 <= v <= 1 for name in ("validation", "test", "ece") for v in row[name].values())


def test_two_ways_that_differ_in_name_alone_share_no_random_number(monkeypatch: Any) -> None:
    """Nor do two seeds: neither of the weights, the order of the images nor the draws."""
    way = tiny("st-logistic", images=300)
    for name in ("st-logistic", "st-gaussian"):
        monkeypatch.setitem(WAYS, name, replace(way, name=name))
    rows = []
    for name, seed in (("st-logistic", 0), ("st-gaussian", 0), ("st-logistic", 1)):
        job = {"part": "final", "name": name, "lr": 0.01, "seed": seed}
        rows += ways.trained(job, data="digits", epochs={"final": 1})
    for prediction in way.predictions:
        assert len({row["nll"][prediction] for row in rows}) == 3


@pytest.mark.slow
def test_training_helps(monkeypatch: Any) -> None:
    """Eight epochs, against chance (0.1): each kind of unit and of weight learns."""
    for name in ("twin", "st-logistic", "zgr-uniform", "sign-hardtanh", "weights-mirror"):
        monkeypatch.setitem(WAYS, name, replace(WAYS[name], hidden=(32, 32)))
        job = {"part": "final", "name": name, "lr": WAYS[name].rates[3], "seed": 0}
        [row] = ways.trained(job, data="digits", epochs={"final": 8})
        assert row["test"][WAYS[name].chosen_by] > 0.75, name


def test_the_first_images_are_kept() -> None:
    few = ways.cut(DIGITS, 7)
    assert torch.equal(few.train.inputs, DIGITS.train.inputs[:7]) and len(few.train.labels) == 7
    assert few.test is DIGITS.test and few.validation is DIGITS.validation
    assert len(ways.cut(DIGITS, None).train) == len(ways.cut(DIGITS, 10**6).train) == 1078
