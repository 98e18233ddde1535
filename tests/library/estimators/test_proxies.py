"""Every proxy that sbnlib lists: its slope, its integral, its noise, its formula."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from bridge import reference_of
from discovered import PROXIES
from formulas import PROXY_FORMULAS
from reference import Array, finite_difference, multilinear_loss, states
from rows import panels, seeded
from slopes import SLOPES
from torch import Tensor, nn

import sbnlib
from sbnlib import proxy, straight_through

proxies = pytest.mark.parametrize("name", PROXIES)
MAGNITUDES = np.geomspace(1e-3, 300, 60)
GRID = np.concatenate([-MAGNITUDES[::-1], [-1.0, 0.0, 1.0], MAGNITUDES])


def slope(name: str, a: Array) -> Array:
    return PROXIES[name].h(torch.tensor(a)).numpy()


def whole_integral(name: str) -> float:
    """int h over the line in theta where the point is 5 tan(theta); corners and jumps are stops."""
    kinks = [math.atan(k / 5) for k in (-1.5, -1, -0.1, 0, 0.1, 1, 1.5)]
    theta, weight = panels(sorted({*np.linspace(-math.pi / 2, math.pi / 2, 61), *kinks}))
    return float(weight @ (5 * slope(name, 5 * np.tan(theta)) / np.cos(theta) ** 2))


@proxies
def test_the_slope_is_the_published_one(name: str) -> None:
    assert PROXIES[name].name == name
    np.testing.assert_allclose(slope(name, GRID), SLOPES[name].slope(GRID), rtol=1e-11, atol=1e-15)


@proxies
def test_a_proxy_is_even_and_its_gradient_is_the_slope(name: str) -> None:
    assert np.array_equal(slope(name, GRID), slope(name, -GRID))
    a = torch.tensor(GRID, requires_grad=True)
    proxy(a, torch.ones_like(a), None, name=name).sum().backward()
    np.testing.assert_allclose(a.grad, SLOPES[name].slope(GRID), rtol=1e-11, atol=1e-15)


@proxies
def test_the_integral_is_the_one_that_it_states(name: str) -> None:
    stated = PROXIES[name].integral
    assert whole_integral(name) == pytest.approx(stated, rel=1e-10)
    assert stated == pytest.approx(SLOPES[name].rise, rel=1e-12)


@proxies
def test_the_noise_is_the_law_of_which_the_slope_is_twice_the_density(name: str) -> None:
    noise = PROXIES[name].noise
    if noise is None:  # and none is left out: no density is negative, or integrates to another mass
        assert whole_integral(name) != pytest.approx(2, rel=1e-10) or slope(name, GRID).min() < 0
        return
    law = reference_of(noise)
    assert (law.name, law.scale) == SLOPES[name].noise
    np.testing.assert_allclose(slope(name, GRID), 2 * law.pdf(GRID), rtol=1e-11, atol=1e-15)


@proxies
def test_the_formula_is_the_slope(name: str) -> None:
    """The LaTeX of the table in the reference, looked up as it is printed."""
    printed = PROXY_FORMULAS[PROXIES[name].formula](GRID)
    np.testing.assert_allclose(printed, SLOPES[name].slope(GRID), rtol=1e-10, atol=1e-12)
    assert PROXIES[name].source.strip()


def test_no_two_proxies_have_one_formula() -> None:
    assert len({p.formula for p in PROXIES.values()}) == len(PROXIES)


def test_swish_sign_is_negative_beyond_2_40() -> None:
    # The sign of beta (2 - z tanh(z/2)) / (1 + cosh z), z = beta a and h(0) = beta
    z = np.array([0.0, 1.0, 2.39, 2.41, 4.0, 30.0])
    h = slope("swish_sign", z / slope("swish_sign", np.zeros(1)))
    assert np.array_equal(h > 0, z < 2.4)


def test_mismatched_noise_and_proxy_are_twice_the_exact_gradient() -> None:
    # Logistic sampling, hardtanh slope at a = 0: 1 where 2 f(0) = 0.5 is exact
    a, x = torch.zeros(1, requires_grad=True), torch.ones(1)
    proxy(a, x, sbnlib.Logistic(), name="hardtanh").backward()
    assert a.grad.item() == 1.0
    a.grad = None
    straight_through(a, x, sbnlib.Logistic()).backward()
    assert a.grad.item() == 0.5


def test_an_unknown_proxy_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(ValueError, match="softsign") as caught:
        proxy(torch.zeros(1), torch.ones(1), name="softsign")
    assert all(name in str(caught.value) for name in PROXIES)


# ----------------------------------------------------------------------- slopes of the user's

A = torch.linspace(-2, 2, 9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_slope_and_a_function_of_the_users(dtype: torch.dtype) -> None:
    # 1/(1 + a^2) and its integral, in float32 whatever the dtype of a
    leaf = A.to(dtype).requires_grad_()
    x = 2 * (torch.rand(4, 9, generator=seeded()) < 0.5).to(dtype) - 1
    a = leaf.detach().double().numpy()
    seen = []

    def h(a: torch.Tensor) -> torch.Tensor:
        seen.append(a.dtype)
        return 1 / (1 + a.square())

    def function(a: torch.Tensor) -> torch.Tensor:
        seen.append(a.dtype)
        return torch.atan(a)

    for options in ({"h": h}, {"function": function}):
        out = proxy(leaf, x, None, **options)
        assert torch.equal(out, x) and out.dtype == dtype
        weight = torch.tensor([[1.0], [0.5], [2.0], [-1.0]], dtype=dtype)
        (g,) = torch.autograd.grad((weight * out).sum(), leaf)
        rounding = max(1e-6, torch.finfo(dtype).eps)  # of 2.5 in the end
        np.testing.assert_allclose(g.double().numpy(), 2.5 / (1 + a**2), rtol=rounding)
    assert set(seen) == {torch.promote_types(dtype, torch.float32)}


def mean(a: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """A learned mean with two parameters, one of which bends it."""
    return torch.tanh(beta[0] * a + beta[1] * torch.sin(a))


def test_a_learned_function_gets_its_own_derivative_at_the_states() -> None:
    # dL/dbeta = sum_i dL/dx_i dm(a_i)/dbeta, with L' by hand and m by central differences
    a = torch.tensor([-0.7, 0.2, 1.1], dtype=torch.float64)
    x = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    beta = torch.tensor([0.8, 0.3], dtype=torch.float64, requires_grad=True)
    out = proxy(a, x, function=lambda a: mean(a, beta))
    (g,) = torch.autograd.grad((out**3 + 2 * out).sum() + out.prod(), beta)
    slope = (3 * x**2 + 2 + x.prod() / x).numpy()
    for k in range(2):
        step = 1e-6 * torch.eye(2, dtype=torch.float64)[k]
        up, down = (mean(a, beta.detach() + s * step).numpy() for s in (1, -1))
        assert g[k].item() == pytest.approx(float(slope @ (up - down)) / 2e-6, rel=1e-8)


def test_where_the_function_is_the_mean_of_the_state_its_parameters_are_straight_through() -> None:
    # P(x = 1) = (1 + m(a))/2 and a multilinear loss: the mean over all states is dE L/dbeta, here
    # by central differences of the sum over states
    loss, a = multilinear_loss(3, 1), np.array([-0.7, 0.2, 1.1])
    all_states = states(3)

    def expectation(beta: Array) -> float:
        m = np.tanh(beta[0] * a + beta[1] * np.sin(a))
        return float(((1 + all_states * m) / 2).prod(1) @ loss.value(all_states, 0))

    start = np.array([0.8, 0.3])
    beta = torch.tensor(start, requires_grad=True)
    leaf = torch.tensor(a, requires_grad=True)
    m = np.tanh(start[0] * a + start[1] * np.sin(a))
    prob = torch.tensor(((1 + all_states * m) / 2).prod(1))
    out = proxy(leaf, torch.tensor(all_states), function=lambda a: mean(a, beta))
    by_beta, by_a = torch.autograd.grad(prob @ loss.torch(out), [beta, leaf])
    np.testing.assert_allclose(by_beta, finite_difference(expectation, start), rtol=1e-7)
    # and in a, with f = m'/2
    slope = (1 - m**2) * (start[0] + start[1] * np.cos(a))
    exact = []
    for i in range(3):
        up, down = all_states.copy(), all_states.copy()
        up[:, i], down[:, i] = 1, -1
        exact.append(slope[i] / 2 * (prob.numpy() @ (loss.value(up, 0) - loss.value(down, 0))))
    np.testing.assert_allclose(by_a, exact, rtol=1e-10)


class Learned(nn.Module):
    """A chain-rule estimator with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(2.0))

    def forward(self, a: Tensor, x: Tensor, noise: sbnlib.Noise) -> Tensor:
        return proxy(a, x, function=lambda a: torch.tanh(self.alpha * a))


class LearnedThatDraws(Learned):
    def forward(
        self, a: Tensor, x: Tensor, noise: sbnlib.Noise, generator: torch.Generator | None = None
    ) -> Tensor:
        return super().forward(a, x, noise) + 0 * torch.rand(1, generator=generator)


@pytest.mark.parametrize("module", [Learned, LearnedThatDraws])
def test_an_estimator_that_is_a_module_brings_its_parameters(module: type[Learned]) -> None:
    assigned = sbnlib.nn.Sign()
    assigned.estimator = module()
    for unit in (sbnlib.nn.Sign(estimator=module()), assigned, sbnlib.SBN(
        nn.Linear(4, 4), estimator=module()).sign, copy.deepcopy(assigned)):  # fmt: skip
        assert [p.shape for p in unit.parameters()] == [()] and len(unit.state_dict()) == 1
        net = nn.Sequential(nn.Linear(3, 4), unit)
        out = net(torch.ones(5, 3))
        out.sum().backward()
        assert unit.estimator.alpha.grad != 0 and (out.abs() == 1).all()
    assigned.estimator = "zgr"
    assert assigned.estimator is sbnlib.zgr and not list(assigned.parameters())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "one of name, h and function must be given, got none"),
        ({"name": "tanh", "h": torch.cos}, r"must be given, got \['name', 'h'\]"),
        ({"h": torch.cos, "function": torch.tanh}, r"got \['h', 'function'\]"),
        ({"h": lambda a: a.sum()}, r"h must return a tensor of a's shape \(9,\), got \(\)"),
        ({"h": lambda a: 1.0}, "h must return a tensor of a's shape .*, got float"),
        ({"function": lambda a: a[:2]}, r"function must return a tensor .*, got \(2,\)"),
        ({"h": lambda a: a.abs() ** -0.5}, "h must be finite at every a"),
        ({"function": lambda a: torch.log(a)}, "function must be finite at every a"),
    ],
)
def test_a_bad_slope_is_refused(options: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        proxy(A, torch.ones(9), **options)
