"""Directions along a training: the folded network, the cosines and their errors, the rows."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn

from sbnlib import data as datasets
from sbnlib.experiments import directions, ways
from sbnlib.experiments.directions import cosines, folded, moments
from sbnlib.experiments.models import Classifier
from sbnlib.experiments.training import Recipe
from sbnlib.network import SBN, network_estimator
from sbnlib.noise import Logistic

DIGITS = datasets.load("digits")


def normed_net(sizes: list[int], seed: int) -> SBN:
    """Layers with batch norm whose statistics, scales and shifts are arbitrary."""
    torch.manual_seed(seed)
    layers = []
    for m, n in itertools.pairwise(sizes):
        norm = nn.BatchNorm1d(n)
        for values, least in ((norm.running_mean, -1), (norm.running_var, 0.5)):
            values.copy_(torch.rand(n) * 2 + least)
        norm.weight.data, norm.bias.data = torch.rand(n) + 0.5, torch.rand(n) - 0.5
        layers.append(nn.Sequential(nn.Linear(m, n, bias=False), norm))
    return SBN(*layers, noise=Logistic(0.4)).eval()


# The network -------------------------------------------------------------------------------------


def test_the_folded_network_computes_the_same_one_image_at_a_time() -> None:
    net = normed_net([6, 5, 4], 0)
    plain, x = folded(net), torch.randn(3, 7, 6)
    for mode in ("sign", "mean"):
        wanted = torch.stack([net(each, mode=mode) for each in x])
        assert torch.allclose(plain(x, mode=mode), wanted, atol=1e-5)
    assert [tuple(p.shape) for p in plain.parameters()] == [(5, 6), (4, 5)]
    linear, norm = net.layers[0]
    a = plain.layers[0](x[0]).detach().numpy()
    mean, var = norm.running_mean.numpy(), norm.running_var.numpy()
    by_hand = x[0].numpy() @ linear.weight.detach().numpy().T
    by_hand = (by_hand - mean) / np.sqrt(var + norm.eps)
    assert np.allclose(a, by_hand * norm.weight.detach().numpy() + norm.bias.detach().numpy(),
                       atol=1e-5)  # fmt: skip


def test_the_folded_network_is_a_copy() -> None:
    net = normed_net([6, 5], 0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    next(folded(net).parameters()).data.zero_()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def expected_loss(weights: list[np.ndarray], layers: Any, x: np.ndarray, U: np.ndarray, y: Any):
    """Mean over the images of E L, by a sum over all states of two layers."""
    total = 0.0
    for image, label in zip(x, y, strict=True):
        for states in itertools.product((-1.0, 1.0), repeat=5):
            first, second = np.array(states[:3]), np.array(states[3:])
            p, below = 1.0, image
            for W, (s, b), state in zip(weights, layers, (first, second), strict=True):
                p *= special.expit(state * (s * (W @ below) + b) / 0.4).prod()
                below = state
            total -= p * special.log_softmax(U @ second)[label]
    return total / len(x)


def test_the_reference_is_unbiased_for_the_weights_behind_batch_norm() -> None:
    """Its mean against finite differences of the enumerated loss, within 4.5 standard errors (21
    numbers: one false alarm in 7 000)."""
    net = normed_net([4, 3, 2], 2)
    head = nn.Linear(2, 3, bias=False)
    model = Classifier(net, head, network_estimator("straight_through"))
    data = replace(DIGITS, train=replace(DIGITS.train, inputs=DIGITS.train.inputs[:, 20:24]))
    draw = torch.Generator().manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directions, "IMAGES", 2)
        patch.setattr(directions, "settled_for", lambda net, *_: net)
        labels = data.train.labels % 3
        problem = directions._Problem(
            model, replace(data, train=replace(data.train, labels=labels)), draw
        )  # noqa: E501
        groups = directions._groups(lambda: problem.gradient(directions.REFERENCE, 2000), 20)
    plain = folded(net)
    weights = [layer.weight.detach().double().numpy() for layer in plain.layers]
    layers = [(m.scale.double().numpy()[:, 0], m.shift.double().numpy()) for m in plain.layers]
    x, y = data.train.inputs[:2].double().numpy(), labels[:2].tolist()
    U, exact = head.weight.detach().double().numpy(), []
    for k, W in enumerate(weights):
        for at in np.ndindex(W.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [w.copy() for w in weights]
                moved[k][at] += step
                values.append(expected_loss(moved, layers, x, U, y))
            exact.append((values[0] - values[1]) / 2e-5)
    found = groups["all"].numpy()
    z = (found.mean(0) - exact) / (found.std(0, ddof=1) / math.sqrt(20))
    moving = np.abs(exact) > 1e-9
    assert moving.sum() >= 12 and np.abs(z[moving]).max() < 4.5
    parts = torch.cat([groups["1"], groups["2"]], dim=1)
    assert torch.equal(parts, groups["all"])


# Cosines -----------------------------------------------------------------------------------------


def by_loops(means: np.ndarray, units: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    R = len(means)
    pairs = [(i, j) for i in range(R) for j in range(R)]
    others = [(i, j) for i, j in pairs if i != j]
    gh = np.mean([means[i] @ reference[j] for i, j in pairs])
    uh = np.mean([units[i] @ reference[j] for i, j in pairs])
    hh = np.mean([reference[i] @ reference[j] for i, j in others])
    gg = np.mean([means[i] @ means[j] for i, j in others])
    return {"many": gh / math.sqrt(gg * hh), "one": uh / math.sqrt(hh)}


def test_the_cosines_and_their_errors_are_those_of_their_definition() -> None:
    g = np.random.default_rng(0)
    truth = g.normal(size=30)
    means, units, reference = (truth + 0.5 * g.normal(size=(6, 30)) for _ in range(3))
    found = cosines(*(torch.tensor(v) for v in (means, units, reference)))
    whole = by_loops(means, units, reference)
    keep = [np.arange(6) != j for j in range(6)]
    left = [by_loops(means[k], units[k], reference[k]) for k in keep]
    for name, value in whole.items():
        values = np.array([each[name] for each in left])
        se = math.sqrt(5 / 6 * ((values - values.mean()) ** 2).sum())
        assert found[name] == pytest.approx(value, rel=1e-9)
        assert found[f"{name}_se"] == pytest.approx(se, rel=1e-6)


@pytest.mark.slow
def test_noise_does_not_shorten_the_cosines() -> None:
    """600 times with noise as long as the mean, where the cosine of the two means would be a tenth
    less: their average within 4.5 of its standard errors and a hundredth (a ratio has a bias of its
    own), and the error that is told is the one that is found, within a fifth."""
    g = torch.Generator().manual_seed(1)
    h = torch.nn.functional.normalize(torch.randn(40, generator=g, dtype=torch.float64), dim=0)
    across = torch.randn(40, generator=g, dtype=torch.float64)
    across = torch.nn.functional.normalize(across - across @ h * h, dim=0)
    mean = 0.8 * h + 0.6 * across  # cosine 0.8
    found, plain = [], []
    for _ in range(600):
        noise = [
            torch.randn(20, 40, generator=g, dtype=torch.float64) / math.sqrt(20) for _ in "gh"
        ]
        G, H = mean + noise[0] * 1.0, h + noise[1] * 1.0
        found.append(cosines(G, G, H))
        plain.append(torch.cosine_similarity(G.mean(0), H.mean(0), dim=0).item())
    many = np.array([each["many"] for each in found])
    error = many.std(ddof=1)
    assert np.mean(plain) < 0.75
    assert abs(many.mean() - 0.8) < 4.5 * error / math.sqrt(600) + 0.01
    told = math.sqrt(np.mean([each["many_se"] ** 2 for each in found]))
    assert abs(told / error - 1) < 0.2


def test_a_length_that_is_not_told_from_0_gives_no_cosine() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = cosines(rows, rows, rows)
    assert found == {"many": None, "many_se": None, "one": None, "one_se": None}


# The rows ----------------------------------------------------------------------------------------


def test_the_moments_are_those_of_one_training() -> None:
    """After no epoch the start, after the last what the final run of the way is."""
    way = replace(ways.WAYS["twin"], hidden=(5,), images=200)
    data = ways.cut(DIGITS, 200)
    recipe = Recipe(0, 3, 100, contender="twin")
    seen = moments(ways.fresh(way, data, 0.01, recipe), data, (0, 2, 3))
    start = ways.fresh(way, data, 0.01, recipe).model
    again = moments(ways.fresh(way, data, 0.01, recipe), data, (3,))
    assert list(seen) == [0, 2, 3]
    heads = {epoch: model.head.weight for epoch, model in seen.items()}
    assert torch.equal(heads[0], start.head.weight) and torch.equal(heads[3], again[3].head.weight)
    assert not torch.equal(heads[2], heads[3]) and not torch.equal(heads[0], heads[2])


@pytest.mark.slow
def test_the_rows_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"EPOCHS": (0, 1), "IMAGES": 5, "GROUPS": 4, "SAMPLES": 20, "REFERENCE_SAMPLES": 200}
    for name, value in small.items():
        monkeypatch.setattr(directions, name, value)
    way = replace(ways.WAYS["st-logistic"], hidden=(6, 4))
    monkeypatch.setitem(ways.WAYS, "st-logistic", way)
    rows = directions.looked_at({"seed": 1}, data="digits", lr=0.01)
    layers = ["1", "2", "all"]
    for part, names in (("gradients", directions.ESTIMATORS), ("candidate", directions.CANDIDATES),
                        ("reference", ("muprop",))):  # fmt: skip
        own = [r for r in rows if r["part"] == part]
        wanted = [(e, n, k) for e in (0, 1) for n in names for k in layers]
        assert [(r["epoch"], r["estimator"], r["layer"]) for r in own] == wanted
    assert {r["seed"] for r in rows} == {1}
    st = next(r for r in rows if r["part"] == "gradients" and r["layer"] == "all")
    assert st["many"] > st["one"] > 0
    reference = next(r for r in rows if r["part"] == "reference" and r["layer"] == "all")
    assert reference["samples"] == 800 and reference["length"] > 0 and 0 < reference["se"] < 1
    costs = {r["estimator"]: r["evaluations"] for r in rows if r["part"] == "candidate"}
    assert costs["local_expectation"] == 7 and costs["muprop"] == 2 and costs["rebar"] == 3
    assert rows == directions.looked_at({"seed": 1}, data="digits", lr=0.01)
