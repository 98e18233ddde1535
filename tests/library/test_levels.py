"""Units with more than two levels, against sums over states that are written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise, z_limit
from torch import Tensor

import sbnlib
from sbnlib import Logistic, Triangular, Uniform, categories, levels
from sbnlib.units import uniforms

Array = np.ndarray
noises = pytest.mark.parametrize("noise_name", ref.NOISES)
counts = pytest.mark.parametrize("count", [2, 3, 4, 6])
QUADRATIC = ("least_variance", "trapezoid", "half")
LINEAR = ("straight_through", "darn", *QUADRATIC)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def thresholds(count: int, seed: int = 0) -> tuple[float, ...]:
    """Unevenly spaced, about 0."""
    steps = np.random.default_rng(seed).uniform(0.3, 0.9, size=count - 1)
    t = np.cumsum(steps)
    return tuple(t - t.mean())


class Unit:
    """One unit at a, in numpy: p, f, law, mean and the factors, from their definitions."""

    def __init__(self, noise: ref.RefNoise, a: float, t: tuple[float, ...]) -> None:
        z = a - np.array(t)
        self.p = np.concatenate([[1.0], noise.cdf(z), [0.0]])
        self.f = np.concatenate([[0.0], noise.pdf(z), [0.0]])
        self.k = np.arange(len(t) + 1)
        self.law, self.slopes = -np.diff(self.p), -np.diff(self.f)
        self.mean, self.slope = self.law @ self.k, self.slopes @ self.k
        self.variance = self.law @ (self.k - self.mean) ** 2
        self.variance_slope = self.slopes @ self.k**2 - 2 * self.mean * self.slope

    def factors(self, name: str, s: float = 0.0) -> Array:
        off = self.k - self.mean
        score = off * self.slopes / self.law
        line = self.slope + (1 - s) * self.variance_slope / (2 * self.variance) * off
        return {
            "straight_through": np.full(len(self.k), self.slope),
            "chain_rule": line,
            "least_variance": line,
            "trapezoid": (self.f[:-1] + self.f[1:]) / (2 * self.law),
            "half": (self.slope + score) / 2,
            "darn": score,
        }[name]


def units(noise_name: str, count: int) -> tuple[ref.RefNoise, Array, tuple[float, ...]]:
    """A noise wide enough that every level occurs at each of three pre-activations."""
    noise = ref.RefNoise(noise_name, 2.1)
    return noise, np.array([-0.31, 0.07, 0.42]), thresholds(count)


def factors(
    function: Callable[..., Tensor], a: Array, t: tuple[float, ...], noise: ref.RefNoise
) -> Array:
    """The library's c(k) at each a: (n, C)."""
    law, count = make_noise(noise.name, noise.scale), len(t) + 1
    leaf = torch.tensor(a)[:, None].repeat(1, count).requires_grad_()
    x = torch.arange(count, dtype=torch.float64).expand(len(a), count)
    out = function(leaf, x, t, law)
    assert torch.equal(out, x), "the value is the state, bit for bit"
    (c,) = torch.autograd.grad(out.sum(), leaf)
    return c.numpy()


# -------------------------------------------------------------------------------- the law


@counts
@noises
def test_probabilities_mean_and_variance_are_those_of_the_definition(
    noise_name: str, count: int
) -> None:
    noise, a, t = units(noise_name, count)
    law, at = make_noise(noise_name, 2.1), torch.tensor(a, requires_grad=True)
    p, mu, v = (f(at, t, law) for f in (levels.probabilities, levels.mean, levels.variance))
    (slope,) = torch.autograd.grad(mu.sum(), at, retain_graph=True)
    (v_slope,) = torch.autograd.grad(v.sum(), at)
    for i, one in enumerate(Unit(noise, x, t) for x in a):
        np.testing.assert_allclose(p[i].detach(), one.law, rtol=1e-13)
        got = [mu[i].item(), v[i].item(), slope[i].item(), v_slope[i].item()]
        expected = [one.mean, one.variance, one.slope, one.variance_slope]
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(p.detach().sum(-1), 1, rtol=1e-15 * count)


def decimal_cdf(z: Decimal) -> Decimal:
    return 1 / (1 + (-z).exp())


def decimal_unit(a: float, t: tuple[float, ...]) -> dict[str, list[Decimal]]:
    """P(k), V and the factors of the logistic unit at 60 digits and the floats' own values."""
    getcontext().prec = 400
    p = [Decimal(1), *(decimal_cdf(Decimal(a) - Decimal(x)) for x in t), Decimal(0)]
    f = [x * (1 - x) for x in p]
    law = [x - y for x, y in zip(p, p[1:], strict=False)]
    mean, slope = sum(p[1:]), sum(f)
    off = [k - mean for k in range(len(law))]
    v = sum(w * o * o for w, o in zip(law, off, strict=True))
    steps = [x - y for x, y in zip(f, f[1:], strict=False)]
    v_slope = sum(s * o * o for s, o in zip(steps, off, strict=True))
    score = [o * s / w for o, s, w in zip(off, steps, law, strict=True)]
    return {
        "law": law,
        "variance": [v],
        "straight_through": [slope for _ in law],
        "least_variance": [slope + v_slope / (2 * v) * o for o in off],
        "trapezoid": [(f[k] + f[k + 1]) / (2 * w) for k, w in enumerate(law)],
        "half": [(slope + s) / 2 for s in score],
        "darn": score,
    }


@pytest.mark.parametrize(
    ("a", "dtype"),
    [
        *product([-40.0, -3.0, 0.2, 3.0, 40.0], [torch.float32, torch.float64]),
        *product([-300.0, 300.0], [torch.float64]),  # below the smallest float32
    ],
)
def test_both_tails_keep_their_digits(a: float, dtype: torch.dtype) -> None:
    """P(k), V and every factor, where the states are decided to 1e-130, against 400 digits.

    An error of one rounding of a - t moves F by the relative error eps |a|: the tolerance is ten
    such errors and ten roundings, for a sum and a quotient of a handful of terms.
    """
    t = (-1.25, 0.5, 0.75)
    exact = decimal_unit(a, t)
    eps = torch.finfo(dtype).eps
    at, k = torch.full((4,), a, dtype=dtype, requires_grad=True), torch.arange(4, dtype=dtype)

    def close(got: Tensor, name: str, cancels: float = 1.0) -> None:
        expected = np.array([float(x) for x in exact[name]])
        bound = 10 * eps * (1 + abs(a)) * cancels
        np.testing.assert_allclose(got.detach().double().numpy(), expected, rtol=bound, atol=0)

    close(levels.probabilities(at[0], t, Logistic()), "law", 4)  # the step of 0.25: 1/(1 - e^-0.25)
    close(levels.variance(at[:1], t, Logistic()), "variance")
    for name, function in levels.ESTIMATORS.items():
        (c,) = torch.autograd.grad(function(at, k, t, Logistic()).sum(), at)
        slope = float(exact["straight_through"][0])
        least = min(abs(float(x)) for x in exact[name])  # what is left of terms of mu''s size
        close(c, name, max(4.0, 4 * slope / least))


@noises
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_factors_are_finite_everywhere(noise_name: str, dtype: torch.dtype) -> None:
    noise, t = make_noise(noise_name), (-0.7, 0.0, 0.7)
    ends = [s * w + x for s in (-1, 1) for x in t for w in (1.0, 1 - 1e-7, 1 - 1e-3)]
    near = torch.tensor([*np.linspace(-30, 30, 241), *ends, -200.0, 200.0, -6e4, 6e4])
    for k in range(4):
        a = near.to(dtype).requires_grad_()
        for function in (*levels.ESTIMATORS.values(), partial(levels.chain_rule, s=-1.0)):
            x = torch.full_like(a, k).detach()
            (c,) = torch.autograd.grad(function(a, x, t, noise).sum(), a)
            assert bool(c.isfinite().all()), (function, k)


@noises
def test_half_precision_has_the_factors_of_double_rounded_once(noise_name: str) -> None:
    noise, t = make_noise(noise_name, 2.0), thresholds(4)
    a = torch.linspace(-1, 1, 21).bfloat16()
    for function in levels.ESTIMATORS.values():
        for k in range(4):
            half, full = a.clone().requires_grad_(), a.double().requires_grad_()
            x = torch.full_like(a, k)
            (c,) = torch.autograd.grad(function(half, x, t, noise).sum(), half)
            (d,) = torch.autograd.grad(function(full, x.double(), t, noise).sum(), full)
            # half a unit of bfloat16's last place, and what float32 leaves
            torch.testing.assert_close(c.double(), d, rtol=2**-8, atol=1e-5)


# ------------------------------------------------------------------------------- sampling


@noises
def test_levels_come_as_often_as_they_should(noise_name: str) -> None:
    """False-alarm rate 1e-6 for each noise."""
    noise, a, t = units(noise_name, 5)
    drawn = levels.sample_levels(
        torch.tensor(a).expand(40_000, 3), t, make_noise(noise_name, 2.1), generator=seeded(1)
    )
    p = np.array([Unit(noise, x, t).law for x in a])
    share = np.array([[(drawn[:, i] == k).double().mean() for k in range(5)] for i in range(3)])
    z = (share - p) / np.sqrt(p * (1 - p) / 40_000)
    assert np.abs(z).max() < z_limit(z.size)


def test_a_level_is_the_number_of_probabilities_above_u() -> None:
    t, noise = thresholds(5), Logistic()
    a = torch.linspace(-3, 3, 13, dtype=torch.float64)
    u = torch.rand(200, 13, generator=seeded(2), dtype=torch.float64)
    x = levels.sample_levels(a, t, noise, u=u)
    p = 1 / (1 + np.exp(-(a.numpy()[:, None] - np.array(t))))
    assert np.array_equal(x.numpy(), (u.numpy()[..., None] < p).sum(-1))
    assert bool((x.diff(dim=-1) >= 0).sum() > 0) and not x.requires_grad
    same = levels.sample_levels(a, t, noise, u=u[:, :1].expand(-1, 13))
    assert bool((same.diff(dim=-1) >= 0).all()), "a larger a never has a lower level"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rare_highest_and_a_rare_lowest_level_come_alike(dtype: torch.dtype) -> None:
    """Probability 1e-12, of which F near 1 in float32 knows nothing."""
    t, far = (-1.0, 1.0), math.log(1e12)
    for a, rare, common in ((-far + 1, 2, 0), (far - 1, 0, 2)):
        at = torch.full((4,), a, dtype=dtype)
        share = torch.tensor([0.5, 0.99, 1.01, 2.0], dtype=torch.float64) * 1e-12
        u = share if rare else 1 - share
        x = levels.sample_levels(at, t, Logistic(), u=u).tolist()
        assert x[:2] == [rare, rare] and rare not in x[2:] and common not in x[:2]


def test_the_own_uniforms_are_of_double_precision() -> None:
    a = torch.linspace(-2, 2, 500)
    x = levels.sample_levels(a, (-1, 1), "logistic", generator=seeded(3))
    u = uniforms(a.shape, a, seeded(3))
    assert u.dtype is torch.float64
    assert torch.equal(x, levels.sample_levels(a, (-1, 1), "logistic", u=u))
    before = torch.get_rng_state()
    levels.sample_levels(a, (-1, 1), "logistic", generator=seeded(3))
    assert torch.equal(before, torch.get_rng_state())
    other = levels.sample_levels(a, (-1, 1), "logistic", generator=seeded(4))
    assert not torch.equal(x, other)


def test_one_threshold_at_0_is_the_binary_unit() -> None:
    a, u = torch.linspace(-4, 4, 999).double(), torch.rand(999, generator=seeded()).double()
    chi = levels.sample_levels(a, (0,), "gaussian", u=u)
    assert torch.equal(2 * chi - 1, sbnlib.sample_sign(a, "gaussian", u=u))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_states_keep_the_dtype_and_thresholds_may_be_a_tensor(dtype: torch.dtype) -> None:
    a = torch.linspace(-2, 2, 9, dtype=dtype)
    x = levels.sample_levels(a, torch.tensor([-0.5, 0.5]), Uniform(0.5), generator=seeded())
    y = levels.sample_levels(a, [-0.5, 0.5], Uniform(0.5), generator=seeded())
    assert x.dtype is dtype and torch.equal(x, y) and set(x.tolist()) <= {0, 1, 2}
    assert levels.deterministic_levels(a, (-0.5, 0.5)).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


# --------------------------------------------------------------------------------- factors


@counts
@noises
@pytest.mark.parametrize("name", LINEAR)
def test_each_factor_is_its_formula(name: str, noise_name: str, count: int) -> None:
    noise, a, t = units(noise_name, count)
    expected = np.array([Unit(noise, x, t).factors(name) for x in a])
    got = factors(levels.ESTIMATORS[name], a, t, noise)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("s", [-1.0, 0.0, 0.3, 1.0])
@noises
def test_the_line_is_its_formula_and_s_may_be_a_tensor(noise_name: str, s: float) -> None:
    noise, a, t = units(noise_name, 4)
    expected = np.array([Unit(noise, x, t).factors("chain_rule", s) for x in a])
    for given in (s, torch.full((3, 4), s, dtype=torch.float64)):
        got = factors(partial(levels.chain_rule, s=given), a, t, noise)
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


@noises
def test_for_two_levels_they_are_the_binary_estimators(noise_name: str) -> None:
    """x = 2 chi - 1 halves the factor."""
    noise, a, _ = units(noise_name, 2)
    law = make_noise(noise_name, 2.1)
    binary = {
        "straight_through": sbnlib.straight_through,
        "darn": sbnlib.darn,
        **dict.fromkeys(QUADRATIC, sbnlib.zgr),
    }
    for name, function in binary.items():
        leaf = torch.tensor(a)[:, None].repeat(1, 2).requires_grad_()
        x = torch.tensor([-1.0, 1.0]).double().expand(3, 2)
        (c,) = torch.autograd.grad(function(leaf, x, law).sum(), leaf)
        got = factors(levels.ESTIMATORS[name], a, (0.0,), noise)
        np.testing.assert_allclose(2 * got, c.numpy(), rtol=1e-13, err_msg=name)


@pytest.mark.parametrize("count", [3, 4, 6])
@noises
def test_for_more_levels_the_three_exact_ones_are_three(noise_name: str, count: int) -> None:
    noise, a, t = units(noise_name, count)
    one, two, three = (factors(levels.ESTIMATORS[n], a, t, noise) for n in QUADRATIC)
    for x, y in ((one, two), (one, three), (two, three)):
        assert np.abs(x - y).max() > 1e-3


@counts
@noises
def test_the_least_second_moment_is_that_of_the_quadratic_program(
    noise_name: str, count: int
) -> None:
    """min sum P c^2 with sum P c = mu' and sum P c k = (E x^2)'/2, solved by its KKT system."""
    noise, a, t = units(noise_name, count)
    got = factors(levels.least_variance, a, t, noise)
    for i, one in enumerate(Unit(noise, x, t) for x in a):
        rows = np.stack([one.law, one.law * one.k])
        system = np.block([[2 * np.diag(one.law), rows.T], [rows, np.zeros((2, 2))]])
        right = [*np.zeros(count), one.slope, one.slopes @ one.k**2 / 2]
        best = np.linalg.solve(system, right)[:count]
        np.testing.assert_allclose(got[i], best, rtol=1e-10)
        for name in QUADRATIC:
            assert one.law @ one.factors(name) ** 2 >= one.law @ best**2 - 1e-14


def test_half_is_reinmax_on_the_logits_of_the_levels_carried_back() -> None:
    noise, a, t = units("Logistic", 5)
    got = factors(levels.half, a, t, noise)
    value = torch.arange(5, dtype=torch.float64)
    for i, k in product(range(3), range(5)):
        leaf = torch.tensor(a[i], requires_grad=True)
        logits = levels.probabilities(leaf, t, Logistic(2.1)).log()
        x = categories.zgr(logits, torch.eye(5, dtype=torch.float64)[k])
        (c,) = torch.autograd.grad(x @ value, leaf)
        assert c.item() == pytest.approx(got[i, k], rel=1e-12)


def test_what_cannot_happen_has_no_factor_and_a_decided_unit_has_the_slope() -> None:
    t, noise = (-2.0, 0.0, 2.0), Uniform(0.5)
    a = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    slope = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    for k, (name, function) in product(range(4), levels.ESTIMATORS.items()):
        leaf = a.clone().requires_grad_()
        x = torch.full_like(a, k)
        (c,) = torch.autograd.grad(function(leaf, x, t, noise).sum(), leaf)
        possible = levels.probabilities(a, t, noise)[:, k] > 0
        assert bool((c[slope == 0] == 0).all()), name
        if name in ("trapezoid", "half", "darn"):
            assert bool((c[~possible] == 0).all()), name


# ------------------------------------------------------------------------ exactness classes


def exact(units: list[Unit], loss: Callable[[Array], float]) -> Array:
    """sum_k f_k E[L(k) - L(k-1)], the others drawn: one layer, all states."""
    out = np.zeros(len(units))
    for i, one in enumerate(units):
        others = [u.k for j, u in enumerate(units) if j != i]
        chance = [u.law for j, u in enumerate(units) if j != i]
        for states, weights in zip(product(*others), product(*chance), strict=True):
            at = [loss(np.insert(np.array(states, float), i, k)) for k in one.k]
            out[i] += np.prod(weights) * (one.f[1:-1] @ np.diff(at))
    return out


def estimated(
    units: list[Unit], slope: Callable[[Array], Array], name: str, s: float = 0.0
) -> tuple[Array, Array]:
    """Mean and variance of c(x_i) d_i L(x), by the sum over all states."""
    total, square = np.zeros(len(units)), np.zeros(len(units))
    c = [u.factors(name, s) for u in units]
    for state in product(*(u.k for u in units)):
        weight = np.prod([u.law[k] for u, k in zip(units, state, strict=True)])
        g = np.array([c[i][k] for i, k in enumerate(state)]) * slope(np.array(state, float))
        total, square = total + weight * g, square + weight * g**2
    return total, square - total**2


def quadratic(n: int, seed: int = 0) -> tuple[Callable, Callable, Array]:
    rng = np.random.default_rng(seed)
    m, b = rng.normal(size=(n, n)), rng.normal(size=n)
    m = m + m.T
    return lambda x: x @ m @ x / 2 + x @ b, lambda x: x @ m + b, np.diag(m)


def in_torch(seed: int = 0) -> Callable[[Tensor], Tensor]:
    rng = np.random.default_rng(seed)
    m, b = rng.normal(size=(3, 3)), rng.normal(size=3)
    m, b = torch.tensor(m + m.T), torch.tensor(b)
    return lambda x: torch.einsum("...i,ij,...j->...", x, m, x) / 2 + x @ b


@counts
@noises
def test_the_exact_gradient_is_the_sum_over_all_states(noise_name: str, count: int) -> None:
    noise, a, t = units(noise_name, count)
    law, own = make_noise(noise_name, 2.1), [Unit(noise, x, t) for x in a]
    loss, _, _ = quadratic(3)
    cubed = lambda x: loss(x) + np.prod(x + 0.3) + np.sum(x**3)  # noqa: E731
    both = lambda x: in_torch()(x) + (x + 0.3).prod(-1) + (x**3).sum(-1)  # noqa: E731
    value, gradient = levels.exact_gradient(both, torch.tensor(a), t, law)
    np.testing.assert_allclose(gradient, exact(own, cubed), rtol=1e-11)

    def expectation(at: Array) -> float:
        laws = [Unit(noise, x, t).law for x in at]
        return sum(np.prod([p[k] for p, k in zip(laws, x, strict=True)]) * cubed(np.array(x, float))
                   for x in product(range(count), repeat=3))  # fmt: skip

    assert value.item() == pytest.approx(expectation(a), rel=1e-12)
    np.testing.assert_allclose(gradient, ref.finite_difference(expectation, a.copy()), rtol=1e-7)


@counts
@pytest.mark.parametrize("name", LINEAR)
def test_the_moments_are_the_sums_over_all_states(name: str, count: int) -> None:
    noise, a, t = units("Gaussian", count)
    _, slope, _ = quadratic(3)
    mean, variance = estimated([Unit(noise, x, t) for x in a], slope, name)
    got = levels.exact_moments(in_torch(), torch.tensor(a), t, make_noise("Gaussian", 2.1), name)
    np.testing.assert_allclose(got[0], mean, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(got[1], variance, rtol=1e-10, atol=1e-13)


def test_sums_in_blocks_and_with_axes_in_front_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, t = torch.randn(2, 4, 3, generator=seeded(), dtype=torch.float64), thresholds(4)
    whole = (
        *levels.exact_gradient(in_torch(), a, t, "logistic"),
        *levels.exact_moments(in_torch(), a, t, "logistic", levels.half),
    )
    one = levels.exact_gradient(in_torch(), a[1, 2], t, "logistic")
    torch.testing.assert_close(whole[0][1, 2], one[0])
    torch.testing.assert_close(whole[1][1, 2], one[1])
    monkeypatch.setattr(levels, "BLOCK", 500)
    blocks = (
        *levels.exact_gradient(in_torch(), a, t, "logistic"),
        *levels.exact_moments(in_torch(), a, t, "logistic", "half"),
    )
    torch.testing.assert_close(blocks, whole)


@counts
@noises
def test_three_are_exact_for_quadratics(noise_name: str, count: int) -> None:
    noise, a, t = units(noise_name, count)
    law, at = make_noise(noise_name, 2.1), torch.tensor(a)
    expected = exact([Unit(noise, x, t) for x in a], quadratic(3)[0])
    for name in QUADRATIC:
        mean, _ = levels.exact_moments(in_torch(), at, t, law, name)
        np.testing.assert_allclose(mean, expected, rtol=1e-10, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("s", [1.0, 0.4, -1.0])
@counts
@noises
def test_the_bias_of_the_line_is_minus_half_of_s_times_the_curvature_times_the_slope_of_v(
    noise_name: str, count: int, s: float
) -> None:
    noise, a, t = units(noise_name, count)
    own = [Unit(noise, x, t) for x in a]
    loss, _, curvature = quadratic(3)
    estimator = partial(levels.chain_rule, s=s) if s != 1 else levels.straight_through
    mean, _ = levels.exact_moments(
        in_torch(), torch.tensor(a), t, make_noise(noise_name, 2.1), estimator
    )
    bias = -s / 2 * curvature * np.array([u.variance_slope for u in own])
    np.testing.assert_allclose(mean.numpy() - exact(own, loss), bias, rtol=1e-9, atol=1e-12)
    assert np.abs(bias).max() > 1e-3


@pytest.mark.slow
@counts
@noises
def test_all_are_exact_for_losses_that_are_linear_in_each_unit(noise_name: str, count: int) -> None:
    noise, a, t = units(noise_name, count)
    law, at = make_noise(noise_name, 2.1), torch.tensor(a)
    expected = exact([Unit(noise, x, t) for x in a], lambda x: np.prod(x - 0.7) + x[0])
    for name in LINEAR:
        mean, _ = levels.exact_moments(lambda x: (x - 0.7).prod(-1) + x[..., 0], at, t, law, name)
        np.testing.assert_allclose(mean, expected, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("count", [3, 4, 6])
@noises
def test_the_trapezoid_alone_is_exact_for_another_quadratic_on_every_step(
    noise_name: str, count: int
) -> None:
    """Slopes at the levels chosen freely, linear between them, so L rises by their mean."""
    noise, a, t = units(noise_name, count)
    own = Unit(noise, a[2], t)
    slopes = np.random.default_rng(1).normal(size=count)
    expected = own.f[1:-1] @ ((slopes[:-1] + slopes[1:]) / 2)
    off = {}
    for name in QUADRATIC:
        c = factors(levels.ESTIMATORS[name], a[2:], t, noise)[0]
        off[name] = abs(own.law @ (c * slopes) - expected)
    assert off["trapezoid"] < 1e-14
    assert min(off["half"], off["least_variance"]) > 1e-3


@counts
@noises
def test_a_third_derivative_leaves_the_trapezoid_a_twelfth_of_it(
    noise_name: str, count: int
) -> None:
    noise, a, t = units(noise_name, count)
    own = Unit(noise, a[0], t)
    third = 1.7
    c = factors(levels.trapezoid, a[:1], t, noise)[0]
    mean = own.law @ (c * third * own.k**2 / 2)
    error = mean - own.f[1:-1] @ np.diff(third * own.k**3 / 6)
    assert error == pytest.approx(own.f.sum() * third / 12, rel=1e-10)


# -------------------------------------------------------------- steps and noise of equal width


def test_triangular_noise_of_a_step_has_variance_a_quarter_inside() -> None:
    """There straight-through is exact for quadratics, and at the ends it is not."""
    t, noise = tuple(np.arange(7) - 3.0), Triangular(1.0)
    a = torch.linspace(-2, 2, 41, dtype=torch.float64)
    v = levels.variance(a, t, noise)
    torch.testing.assert_close(v, torch.full_like(v, 0.25), rtol=1e-14, atol=0)
    curvature, loss = 1.3, lambda x: 0.65 * x[..., 0] ** 2 - 0.4 * x[..., 0]
    for at, is_exact in ((a, True), (torch.tensor([-3.4, -2.6, 2.6, 3.4]).double(), False)):
        _, exact_ = levels.exact_gradient(loss, at[:, None], t, noise)
        mean, _ = levels.exact_moments(loss, at[:, None], t, noise, "straight_through")
        assert bool(((mean - exact_).abs() < 1e-13).all()) == is_exact
        assert float((mean - exact_).abs().max()) <= curvature / 2


def test_uniform_noise_of_half_a_step_has_slope_1_and_a_bias_up_to_half_the_curvature() -> None:
    """Stochastic rounding: V = r(1 - r) of the distance r to the level below."""
    t, noise = tuple(np.arange(7) - 3.0), Uniform(0.5)
    a = torch.linspace(-2.99, 2.99, 300, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(levels.mean(a, t, noise).sum(), a)
    torch.testing.assert_close(slope, torch.ones_like(slope))
    loss = lambda x: 0.65 * x[..., 0] ** 2  # noqa: E731
    _, exact_ = levels.exact_gradient(loss, a[:, None], t, noise)
    mean, _ = levels.exact_moments(loss, a[:, None], t, noise, "straight_through")
    r = (a.detach().numpy() + 0.5) % 1
    bias = (mean - exact_)[:, 0].numpy()
    np.testing.assert_allclose(bias, -1.3 / 2 * (1 - 2 * r), atol=1e-12)
    assert 0.6 < np.abs(bias).max() <= 0.65


# ------------------------------------------------------------------------- refusals, transforms

REFUSED: dict[str, Any] = {
    "out of order": (0.5, -0.5),
    "equal": (0.1, 0.1),
    "none": (),
    "an empty tensor": torch.tensor([]),
    "nan": (0.0, math.nan),
    "infinite": (0.0, math.inf),
    "2-d": torch.zeros(2, 2),
    "nested": [[0.0, 1.0]],
    "a number": 0.5,
    "words": "01",
    "bools": (False, True),
}


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED)
def test_thresholds_that_are_none_are_refused(given: Any) -> None:
    a = torch.zeros(2)
    calls: list[Callable[[], object]] = [
        lambda: levels.sample_levels(a, given, "logistic"),
        lambda: levels.probabilities(a, given, "logistic"),
        lambda: levels.mean(a, given, "logistic"),
        lambda: levels.variance(a, given, "logistic"),
        lambda: levels.deterministic_levels(a, given),
        lambda: levels.exact_gradient(lambda x: x.sum(-1), a, given, "logistic"),
        *(
            partial(f, a, torch.zeros(2), given, "logistic")
            for f in levels.ESTIMATORS.values()
        ),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="^thresholds must be finite, strictly increasing"):
            call()


def test_thresholds_that_would_learn_are_refused() -> None:
    with pytest.raises(ValueError, match="thresholds must be constants"):
        levels.mean(torch.zeros(2), torch.zeros(1, requires_grad=True), "logistic")


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.tensor([0.0, 0.5]), ValueError, "levels 0 to 2, got 0.5"),
        (torch.tensor([-1.0, 1.0]), ValueError, "levels 0 to 2, got -1"),
        (torch.tensor([0.0, 3.0]), ValueError, "levels 0 to 2, got 3"),
        (torch.tensor([0.0, math.nan]), ValueError, "levels 0 to 2, got nan"),
        (torch.tensor([True, False]), TypeError, "real numbers from 0 to 2, got torch.bool"),
        (torch.zeros(3), ValueError, "x must have shape"),
    ],
)
def test_what_is_no_level_is_refused(x: Tensor, error: type[Exception], words: str) -> None:
    for function in levels.ESTIMATORS.values():
        with pytest.raises(error, match=words):
            function(torch.zeros(2), x, (-1, 1), Logistic())


def test_other_bad_input_is_refused() -> None:
    a, loss = torch.zeros(2), lambda x: x.sum(-1)  # noqa: E731
    with pytest.raises(TypeError, match="a must be a floating-point tensor"):
        levels.sample_levels(torch.zeros(2, dtype=torch.int64), (0,), "logistic")
    with pytest.raises(ValueError, match="a must be finite"):
        levels.mean(torch.tensor([math.inf]), (0,), "logistic")
    with pytest.raises(ValueError, match="u must be on"):
        levels.sample_levels(a, (0,), "logistic", u=torch.ones(2))
    with pytest.raises(ValueError, match="s must be a finite number"):
        levels.chain_rule(a, torch.zeros(2), (0,), "logistic", s=math.nan)
    with pytest.raises(ValueError, match="holds the levels 0 to 300, got torch.bfloat16"):
        levels.mean(a.bfloat16(), range(300), "logistic")
    with pytest.raises(ValueError, match="at most 2\\^20 states C\\^n .* 11 units of 4 levels"):
        levels.exact_gradient(loss, torch.zeros(11), (-1, 0, 1), "logistic")
    with pytest.raises(ValueError, match="a must have a last axis"):
        levels.exact_moments(loss, torch.tensor(0.0), (0,), "logistic", "half")
    with pytest.raises(ValueError, match="loss must be finite at every state"):
        levels.exact_gradient(lambda x: x.sum(-1).log(), a, (0,), "logistic")
    with pytest.raises(ValueError, match="loss must return one value an input"):
        levels.exact_gradient(lambda x: x, a, (0,), "logistic")
    with pytest.raises(ValueError, match="loss must have a gradient in x"):
        levels.exact_moments(lambda x: loss(x).detach(), a, (0,), "logistic", "half")
    with pytest.raises(ValueError, match="estimator must be one of .*'half'.* got 'zgr'"):
        levels.exact_moments(loss, a, (0,), "logistic", "zgr")
    with pytest.raises(ValueError, match="thresholds, noise.* got straight_through \\(a, x, noise"):
        levels.exact_moments(loss, a, (0,), "logistic", sbnlib.straight_through)
    with pytest.raises(TypeError, match="estimator must be a function"):
        levels.exact_moments(loss, a, (0,), "logistic", 3)  # type: ignore[arg-type]


def test_2_to_the_20_states_are_not_too_many() -> None:
    value, _ = levels.exact_gradient(lambda x: x.sum(-1), torch.zeros(10), (-1, 0, 1), "logistic")
    assert value.item() == pytest.approx(15, rel=1e-5)


def test_it_is_not_differentiated_twice() -> None:
    a = torch.zeros(3, requires_grad=True)
    for function in levels.ESTIMATORS.values():
        x = function(a, torch.ones(3), (-1, 1), Logistic())
        with pytest.raises(RuntimeError, match="create_graph must be False"):
            torch.autograd.grad(x.sum(), a, create_graph=True)


@pytest.mark.parametrize("name", LINEAR)
def test_vmap_over_units_is_the_loop(name: str) -> None:
    t, function = thresholds(4), levels.ESTIMATORS[name]
    a = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
    u = torch.rand(5, 3, generator=seeded(1), dtype=torch.float64)

    def total(a: Tensor, u: Tensor) -> Tensor:
        x = levels.sample_levels(a, t, Logistic(), u=u)
        return function(a, x, t, Logistic()).square().sum()

    mapped = torch.func.vmap(torch.func.grad(total))(a, u)
    loop = torch.stack([torch.func.grad(total)(*row) for row in zip(a, u, strict=True)])
    torch.testing.assert_close(mapped, loop, rtol=1e-14, atol=0)
    leaf = a.clone().requires_grad_()
    (plain,) = torch.autograd.grad(total(leaf, u), leaf)
    torch.testing.assert_close(mapped, plain, rtol=1e-14, atol=0)


def test_where_nobody_looks_nan_stays_nan_and_infinity_is_decided() -> None:
    a = torch.tensor([math.nan, math.inf, -math.inf, 0.3])
    x = torch.func.vmap(lambda a: levels.sample_levels(a, (-1, 1), Logistic(), u=torch.tensor(0.5)))
    assert x(a).isnan().tolist() == [True, False, False, False]
    assert x(a)[1:].tolist() == [2, 0, 1]
    for function in levels.ESTIMATORS.values():
        one = torch.func.grad(lambda a, x, f=function: f(a, x, (-1, 1), Logistic()))
        c = torch.func.vmap(one)(a[1:], torch.tensor([2.0, 0.0, 1.0]))
        assert c[:2].tolist() == [0, 0] and bool(c[2] != 0)


@pytest.mark.slow
def test_compiled_without_a_break_it_gives_the_same() -> None:
    t, noise = (-1.0, 0.2), Triangular(2.0)

    def run(a: Tensor, u: Tensor) -> Tensor:
        x = levels.sample_levels(a, t, noise, u=u)
        return levels.trapezoid(a, x, t, noise) + levels.half(a, x, t, noise)

    a, u = torch.linspace(-2, 2, 9), torch.rand(9, generator=seeded())
    first, second = a.clone().requires_grad_(), a.clone().requires_grad_()
    plain, compiled = run(first, u), torch.compile(run, backend="eager", fullgraph=True)(second, u)
    assert torch.equal(plain, compiled)
    plain.sum().backward()
    compiled.sum().backward()
    torch.testing.assert_close(first.grad, second.grad)
