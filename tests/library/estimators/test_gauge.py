"""Straight-through in a fixed gauge: mean and variance over states and probes, enumerated."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_net, make_noise, random_inputs, random_logits, z_limit

import sbnlib
from sbnlib import gauge_fixed
from sbnlib.estimators import gauge as module

two_noises = pytest.mark.parametrize("noise_name", ["Cauchy", "Uniform"])
self_terms = pytest.mark.parametrize("self_term", module.SELF_TERMS)


def exact(noise: ref.RefNoise, a: np.ndarray, loss: ref.RefLoss) -> np.ndarray:
    """f(a_i) E Delta_i L(x), by enumeration."""
    x = ref.states(len(a))
    prob = noise.prob(x, a).prod(1)
    out = []
    for i in range(len(a)):
        up, down = x.copy(), x.copy()
        up[:, i], down[:, i] = 1, -1
        out.append(noise.pdf(a[i]) * prob @ (loss.value(up, 0) - loss.value(down, 0)))
    return np.array(out)


def enumerated(
    monkeypatch: pytest.MonkeyPatch,
    noise: ref.RefNoise,
    a: np.ndarray,
    loss: Callable[[torch.Tensor], torch.Tensor],
    **options: object,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of one sample over all states and all probes of the units."""
    x = torch.tensor(ref.states(len(a)))
    every, probes = x.repeat_interleave(len(x), 0), x.repeat(len(x), 1)
    monkeypatch.setattr(module, "draw", lambda *_: every[None])
    monkeypatch.setattr(module, "_fair_signs", lambda *_: probes[None])
    leaf = torch.tensor(a).expand(len(every), -1).clone().requires_grad_()
    value = gauge_fixed(loss, leaf, make_noise(noise.name, noise.scale), **options)
    (g,) = torch.autograd.grad(value.sum(), leaf)
    weight = noise.prob(every.numpy(), a).prod(1) / len(x)
    mean = weight @ g.numpy()
    return mean, weight @ (g.numpy() - mean) ** 2


def quadratic(n: int, seed: int) -> tuple[np.ndarray, ref.RefLoss]:
    rng = np.random.default_rng(seed)
    square, c = rng.normal(size=(n, n)), rng.normal(size=n)
    square = square + square.T
    return square, ref.RefLoss(
        "quadratic",
        lambda x, b: 0.5 * np.einsum("si,ij,sj->s", x, square, x) + x @ c,
        lambda x, b: x @ square + c,
        lambda x: 0.5 * (x @ torch.tensor(square) * x).sum(-1) + x @ torch.tensor(c),
    )


@self_terms
@two_noises
@pytest.mark.parametrize("kind", ["linear", "multilinear", "quadratic", "coordinatewise quadratic"])
def test_unbiased_for_losses_quadratic_in_each_unit(
    noise_name: str, kind: str, self_term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, loss = ref.RefNoise(noise_name, 1.2), ref.LOSSES[kind](3, 2)
    a = random_logits(noise, 3, 1)
    mean, _ = enumerated(monkeypatch, noise, a, loss.torch, self_term=self_term)
    np.testing.assert_allclose(mean, exact(noise, a, loss), atol=1e-12)


@self_terms
@two_noises
def test_the_variance_is_that_of_its_statement(
    noise_name: str, self_term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # beside straight-through's sum_j A_ij^2 (1 - mu_j^2), in units of 4 f^2:
    # v_i - A_ii^2 (1 - mu_i^2) for the sample, mu_i^2 v_i for the mean; v_i = sum_{j != i} A_ij^2
    square, loss = quadratic(3, 7)
    noise = ref.RefNoise(noise_name, 0.9)
    a = random_logits(noise, 3, 3)
    mu, own = noise.cdf(a) - noise.cdf(-a), np.diag(square)
    v = (square**2).sum(1) - own**2
    straight = square**2 @ (1 - mu**2)
    beside = {"sample": v - own**2 * (1 - mu**2), "mean": mu**2 * v}[self_term]
    _, variance = enumerated(monkeypatch, noise, a, loss.torch, self_term=self_term)
    np.testing.assert_allclose(variance, 4 * noise.pdf(a) ** 2 * (straight + beside), rtol=1e-11)


def test_it_is_the_second_order_taylor_polynomial_of_a_flip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One unit: x (L(x) - L(-x)) = 2 L' - 2x L'' + 4/3 L''' in size. L = sin 0.9x is odd, so that
    # straight-through and ZGR are one and the same, and this is another
    def loss(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(0.9 * x[..., 0])

    noise, a = ref.RefNoise("Logistic"), 0.6
    f = float(noise.pdf(a))
    taylor = 2 * f * (0.9 * math.cos(0.9) + 0.81 * math.sin(0.9))  # the same at x = 1 and x = -1
    mean, variance = enumerated(monkeypatch, noise, np.array([a]), loss)
    assert mean == pytest.approx([taylor], rel=1e-12) and variance == pytest.approx([0], abs=1e-20)
    flip = 2 * f * math.sin(0.9)
    assert abs(taylor - flip) <= 4 / 3 * f * 0.9**3


@self_terms
def test_probes_and_samples_are_drawn_and_averaged(self_term: str) -> None:
    """Against the closed form: false alarm 1e-6 for all means; the variances to 5 %."""
    square, loss = quadratic(4, 1)
    noise, count = ref.RefNoise("Logistic"), 40_000
    a = random_logits(noise, 4, 9)
    mu, own = noise.cdf(a) - noise.cdf(-a), np.diag(square)
    v = ((square**2).sum(1) - own**2) / 3  # of three probes
    straight = square**2 @ (1 - mu**2)
    beside = {"sample": v - own**2 * (1 - mu**2), "mean": mu**2 * v}[self_term]
    expected = 4 * noise.pdf(a) ** 2 * (straight + beside) / 2  # of two samples
    leaf = torch.tensor(a).expand(count, -1).clone().requires_grad_()
    draw = torch.Generator().manual_seed(5)
    how = {"num_samples": 2, "num_probes": 3, "self_term": self_term, "generator": draw}
    value = gauge_fixed(loss.torch, leaf, "logistic", **how)
    assert value.shape == (count,)
    (g,) = torch.autograd.grad(value.sum(), leaf)
    z = (g.numpy().mean(0) - exact(noise, a, loss)) / np.sqrt(expected / count)
    assert np.abs(z).max() < z_limit(4)
    np.testing.assert_allclose(g.numpy().var(0), expected, rtol=0.05)


def test_the_value_is_the_mean_loss_and_its_parameters_have_their_ordinary_gradient() -> None:
    head, seen = torch.tensor([0.7, -0.2], requires_grad=True), []

    def loss(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return torch.tanh(x) @ head

    a = torch.tensor([[0.4, -0.3], [0.0, 1.0], [0.2, 0.1]], requires_grad=True)
    value = gauge_fixed(loss, a, "logistic", num_samples=3)
    value.sum().backward()
    (x,) = seen  # one evaluation
    assert x.shape == (3, 3, 2)
    torch.testing.assert_close(value, (torch.tanh(x) @ head).mean(0))
    torch.testing.assert_close(head.grad, torch.tanh(x).mean(0).sum(0))
    with torch.no_grad():
        assert not gauge_fixed(loss, a, "logistic").requires_grad


def test_a_surrogate_stands_in_for_a_black_box() -> None:
    def black_box(x: torch.Tensor) -> torch.Tensor:
        return (x.detach() ** 2).sum(-1) + 5

    a = torch.zeros(2, 3, dtype=torch.float64).requires_grad_()
    slope = torch.tensor([1.0, 2.0, -1.0]).double()
    value = gauge_fixed(black_box, a, "logistic", surrogate=lambda x: x @ slope)
    assert value.tolist() == [8, 8]
    value.sum().backward()
    torch.testing.assert_close(a.grad, 0.5 * slope.expand(2, 3))  # 2 f(0) = 1/2; no curvature


def test_in_a_network_the_last_layer_is_unbiased_and_the_first_is_not() -> None:
    # The first takes the mean-field rest. False alarm of the last: 1e-6
    net = make_net(ref.random_net((3, 3, 2), ref.RefNoise("Logistic"), 3, 1.5))
    given, count = torch.tensor(random_inputs(1, 3)), 20_000
    square = torch.tensor([[1.0, 0.4], [0.4, -0.7]]).double()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (x @ square * x).sum(-1)

    _, wanted = sbnlib.exact_gradient(net, given, loss)
    estimator = sbnlib.layerwise(partial(gauge_fixed, self_term="mean"))
    z = {}
    for k in (0, 1):
        moved = torch.zeros(count, 1, net.layers[k].out_features).double().requires_grad_()
        hook = net.layers[k].register_forward_hook(lambda _, __, out, moved=moved: out + moved)
        value = estimator(net, given.expand(count, 1, 3), loss,
                          generator=torch.Generator().manual_seed(2))  # fmt: skip
        (g,) = torch.autograd.grad(value.sum(), moved)
        hook.remove()
        off = g[:, 0].mean(0) - wanted[f"layers.{k}.bias"]
        z[k] = (off / (g[:, 0].std(0) / count**0.5)).abs().max().item()
    assert z[1] < z_limit(2) < z[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_probes": 0}, "num_probes must be an integer >= 1, got 0"),
        ({"self_term": "x"}, "self_term must be one of .'sample', 'mean'., got 'x'"),
        ({"num_samples": 0}, "num_samples must be an integer >= 1"),
    ],
)
def test_options_are_refused_before_any_work(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gauge_fixed(lambda x: pytest.fail("it worked"), torch.zeros(2), "logistic", **options)


def test_a_loss_without_derivatives_is_refused_and_so_is_one_that_has_only_first_ones() -> None:
    a = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="must be differentiable in the states"):
        gauge_fixed(lambda x: x.detach().sum(-1), a, "logistic")

    def with_estimator(x: torch.Tensor) -> torch.Tensor:
        state = torch.ones_like(x)
        return sbnlib.straight_through(2 * x, state, sbnlib.Logistic()).square().sum(-1)

    with pytest.raises(RuntimeError):
        gauge_fixed(with_estimator, a, "logistic")
