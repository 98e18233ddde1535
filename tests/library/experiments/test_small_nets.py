"""Exact bias in a small network: its images, and the numbers by an enumeration of all states."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sbnlib import data as datasets
from sbnlib.experiments import small_nets
from sbnlib.experiments.models import Classifier
from sbnlib.experiments.small_nets import pooled
from sbnlib.experiments.training import Recipe, Training

DIGITS = datasets.load("digits")


def test_the_images_are_block_means_centred() -> None:
    found = pooled(DIGITS)
    raw = DIGITS.train.inputs.double().numpy().reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    mean = raw.mean(0)
    scale = math.sqrt(((raw - mean) ** 2).mean())
    assert np.allclose(found.train.inputs.numpy(), (raw - mean) / scale)
    test = DIGITS.test.inputs.double().numpy().reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    assert np.allclose(found.test.inputs.numpy(), (test - mean) / scale)
    assert found.image_shape == (4, 4) and torch.equal(found.train.labels, DIGITS.train.labels)


def test_colours_are_averaged_and_other_sides_refused() -> None:
    coloured = replace(DIGITS, image_shape=(4, 4, 4))
    raw = DIGITS.train.inputs.double().numpy().reshape(-1, 4, 16).mean(1)
    raw -= raw.mean(0)
    wanted = raw / math.sqrt((raw**2).mean())
    assert np.allclose(pooled(coloured).train.inputs.numpy(), wanted)
    with pytest.raises(ValueError, match=r"data: got images of 2 x 32, sides must be multiples"):
        pooled(replace(DIGITS, image_shape=(2, 32)))


# The numbers -------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Training:
    """Two layers of two units, and two images."""
    for name, value in {"HIDDEN": (2, 2), "IMAGES": 2, "SAMPLES": 20_000, "EPOCHS": (0, 1)}.items():
        monkeypatch.setattr(small_nets, name, value)
    return small_nets._fresh(pooled(DIGITS), Recipe(0, 1, 50, contender="small net"))


def enumerated(model: Classifier, x: Any, y: Any, factor: Any) -> tuple[np.ndarray, ...]:
    """Exact gradient; mean and variance of a chain-rule estimator with this factor c(p, state)."""
    (W, b), (V, d) = (
        (m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model.net.layers
    )
    U, c = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()

    def logistic(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    states = [np.array(s) for s in itertools.product((-1.0, 1.0), repeat=2)]
    exact, mean, square = [], [], []
    for image, label in zip(x, y, strict=True):
        g_exact, g_mean, g_square = 0.0, 0.0, 0.0
        for s, t in itertools.product(states, states):
            a1, a2 = W @ image + b, V @ s + d
            p1, p2 = logistic(s * a1), logistic(t * a2)
            scores = U @ t + c
            softmax = np.exp(scores - scores.max())
            softmax /= softmax.sum()
            loss, top = -np.log(softmax[label]), U.T @ (softmax - np.eye(10)[label])
            probability = p1.prod() * p2.prod()
            # the score function: d log P / da = state (1 - P(state))
            e2, e1 = loss * t * (1 - p2), loss * s * (1 - p1)
            d2 = top * factor(logistic(a2), p2)
            d1 = V.T @ d2 * factor(logistic(a1), p1)
            sample, score = (
                np.concatenate([np.outer(u1, image).ravel(), u1, np.outer(u2, s).ravel(), u2])
                for u1, u2 in ((d1, d2), (e1, e2))
            )
            g_exact = g_exact + probability * score
            g_mean, g_square = g_mean + probability * sample, g_square + probability * sample**2
        exact.append(g_exact), mean.append(g_mean), square.append(g_square)
    variance = sum(s - m**2 for s, m in zip(square, mean, strict=True)) / len(x) ** 2
    return np.mean(exact, axis=0), np.mean(mean, axis=0), variance


FACTORS = {
    "straight_through": lambda p, own: 2 * p * (1 - p),
    "zgr": lambda p, own: p * (1 - p) / own,
}
#: Where the numbers of each part stand: weights of 16 inputs, biases, weights of two, biases.
PLACES = {"1": slice(0, 32), "2": slice(34, 38), "all": slice(0, 40)}


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORS)
def test_bias_variance_and_cosine_by_enumeration(small: Training, name: str) -> None:
    data = pooled(DIGITS)
    x, y = data.train.inputs[:2].numpy(), data.train.labels[:2].tolist()
    g, mean, variance = enumerated(small.model, x, y, FACTORS[name])
    rows = small_nets._compared(small.model, data, torch.Generator().manual_seed(0))
    for row in (r for r in rows if r["estimator"] == name):
        own = PLACES[row["layer"]]
        norm2 = (g[own] ** 2).sum()
        assert row["length"] == pytest.approx(math.sqrt(norm2))
        assert row["bias2"] == pytest.approx(((mean - g)[own] ** 2).sum() / norm2, abs=1e-12)
        assert row["variance"] == pytest.approx(variance[own].sum() / norm2)
        angle = mean[own] @ g[own] / math.sqrt((mean[own] ** 2).sum() * norm2)
        assert row["cosine"] == pytest.approx(angle)
        assert row["samples"] == 0
        assert row["bias2_se"] == row["variance_se"] == row["cosine_se"] == 0.0


def test_sampled_numbers_agree_with_the_enumerated_ones(small: Training) -> None:
    """Straight-through as if it had to be sampled: within 5 of its errors, nine numbers."""
    data = pooled(DIGITS)
    x, y = data.train.inputs[:2].numpy(), data.train.labels[:2].tolist()
    g, mean, variance = enumerated(small.model, x, y, FACTORS["straight_through"])
    net, inputs = small.model.net, data.train.inputs[:2]
    loss = small_nets.classification_loss(small.model.head, data.train.labels[:2])
    exact = small_nets.exact_gradient(net, inputs, loss)[1]
    draw = torch.Generator().manual_seed(1)
    found = small_nets._by_samples(net, inputs, loss, "straight_through", exact, draw)
    for layer, row in found.items():
        own = PLACES[layer]
        norm2 = (g[own] ** 2).sum()
        wanted = {
            "bias2": ((mean - g)[own] ** 2).sum() / norm2,
            "variance": variance[own].sum() / norm2,
            "cosine": mean[own] @ g[own] / math.sqrt((mean[own] ** 2).sum() * norm2),
        }
        assert row["samples"] == 20_000 and row["length"] == pytest.approx(math.sqrt(norm2))
        for number, value in wanted.items():
            assert row[f"{number}_se"] > 0
            assert abs(row[number] - value) < 5 * row[f"{number}_se"]


@pytest.mark.slow
def test_the_rows_of_a_seed(small: Training) -> None:
    rows = small_nets.small_net({"seed": 3}, data="digits")
    wanted = [(e, n, k) for e in (0, 1) for n in small_nets.ESTIMATORS for k in ("1", "2", "all")]
    assert [(r["epoch"], r["estimator"], r["layer"]) for r in rows] == wanted
    assert {r["part"] for r in rows} == {"exact"} and {r["seed"] for r in rows} == {3}
    unbiased = [r for r in rows if r["estimator"] in ("arm", "reinforce_loo")]
    assert all(abs(r["bias2"]) < 5 * r["bias2_se"] for r in unbiased)
