"""Chapter 6, straight-through: both sides of every formula, and the notebook's own code.

Expected values are sums over states, quadrature and finite differences in numpy; sbnlib appears
only where a function of sbnlib is what the notebook's own function is compared with. "Any symmetric
noise" means the six laws of the library and one with two humps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference as ref
import torch
from chapters import (
    as_in_the_book,
    chapter,
    checker,
    containing,
    curves,
    define,
    lines,
    naming,
    printed,
    prose,
    says_to,
    still,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.polynomial import Polynomial
from pins import pin
from scipy import integrate, special, stats

import sbnlib
from sbnlib import data
from sbnlib.experiments import classify, measurement

Array = np.ndarray
Loss = Callable[[Array], Array]
PATH = chapter(6)


class TwoHumps:
    """Half N(-2, 1/4), half N(2, 1/4): symmetric, and its density has a valley at zero."""

    name, scale = "TwoHumps", 3.0

    def cdf(self, a: Array | float) -> Array:
        return (stats.norm.cdf(a, -2, 0.5) + stats.norm.cdf(a, 2, 0.5)) / 2

    def pdf(self, a: Array | float) -> Array:
        return (stats.norm.pdf(a, -2, 0.5) + stats.norm.pdf(a, 2, 0.5)) / 2


LOGISTIC = ref.RefNoise("Logistic")
NOISES = [ref.RefNoise(n, s) for n, s in zip(ref.NOISES, (1, 1, 1, 2, 0.5, 1), strict=True)]
NOISES.append(TwoHumps())
noises = pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.name)
examples = settings(max_examples=25, deadline=None)
# Triangular and FastSigmoid densities have a kink at 0, where a central difference is second best.
logits = st.floats(-4, 4).filter(lambda a: abs(a) > 1e-3)
numbers = st.floats(-5, 5).map(lambda v: round(v, 6))


def vectors(n: int, elements: st.SearchStrategy = numbers) -> st.SearchStrategy:
    return arrays(float, n, elements=elements)


# Both quadratic and point are drawn together: a, A (symmetric), c.
quadratics = st.integers(1, 4).flatmap(
    lambda n: st.tuples(vectors(n, logits), vectors((n, n)).map(lambda m: m + m.T), vectors(n))
)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


def inside(noise: object, n: int, seed: int) -> Array:
    """Pre-activations where F is smooth, between the ends of a bounded support."""
    return noise.scale * np.random.default_rng(seed).uniform(-0.95, 0.95, n)


def probabilities(noise: object, a: Array) -> Array:
    """P(x | a) of all states, from P(x = +1) = F(a) alone."""
    p, x = noise.cdf(np.asarray(a)), ref.states(len(a))
    return np.where(x > 0, p, 1 - p).prod(1)


def mu_of(noise: object, a: Array) -> Array:
    return 2 * noise.cdf(np.asarray(a)) - 1


def expectation(noise: object, loss: Loss, a: Array) -> float:
    return float(probabilities(noise, a) @ loss(ref.states(len(a))))


def gradient(noise: object, loss: Loss, a: Array) -> Array:
    """d E L / da by central differences of the enumerated sum."""
    return ref.finite_difference(lambda b: expectation(noise, loss, b), np.array(a, float))


def estimates(noise: object, slopes: Loss, a: Array) -> Array:
    """2 f(a_i) d_i L(x) in every state, (2^n, n)."""
    return 2 * noise.pdf(np.asarray(a)) * slopes(ref.states(len(a)))


def moments(noise: object, slopes: Loss, a: Array) -> tuple[Array, Array]:
    """Mean and variance of straight-through, by enumeration."""
    g, p = estimates(noise, slopes, a), probabilities(noise, a)
    return p @ g, p @ (g - p @ g) ** 2


def bias(noise: object, loss: Loss, slopes: Loss, a: Array) -> Array:
    return moments(noise, slopes, a)[0] - gradient(noise, loss, a)


def quadratic(A: Array, c: Array) -> tuple[Loss, Loss]:
    """x'Ax/2 + c'x and its slopes."""
    return lambda x: 0.5 * ((x @ A) * x).sum(-1) + x @ c, lambda x: x @ A + c


def one_bit(value: Polynomial) -> tuple[Loss, Loss]:
    slope = value.deriv()
    return lambda x: value(x[..., 0]), lambda x: slope(x)


def quad(function: Callable[[float], float], lo: float, hi: float, *kinks: float) -> float:
    edges = [lo, *sorted(k for k in kinks if lo < k < hi), hi]
    pairs = zip(edges, edges[1:], strict=False)
    options = {"limit": 200, "epsabs": 1e-12}
    return sum(integrate.quad(function, *pair, **options)[0] for pair in pairs)


def close(left: Array | float, right: Array | float, size: float = 1.0) -> bool:
    """Equal to the accuracy of central differences of a function of this size."""
    return bool(np.allclose(left, right, rtol=0, atol=2e-9 * (1 + size)))


# ------------------------------------------------------------------------------- one coin


@noises
@pytest.mark.parametrize("part", [-0.9, -0.3, 0.0, 0.6])
def test_the_unit_that_is_recalled(noise: object, part: float) -> None:
    """P(x | a) = F(xa) for x = sign(a - Z), by integrals of the density."""
    a, kinks = part * noise.scale, (-2, -noise.scale, 0, noise.scale, 2)
    up = quad(noise.pdf, -np.inf, -5) + quad(noise.pdf, -5, a, *kinks)  # sign(a - z) = +1
    down = quad(noise.pdf, a, 5, *kinks) + quad(noise.pdf, 5, np.inf)
    assert up == pytest.approx(noise.cdf(a), abs=1e-9)
    assert down == pytest.approx(noise.cdf(-a), abs=1e-9)
    assert noise.cdf(-a) == pytest.approx(1 - noise.cdf(a), abs=1e-15)
    assert "with the probabilities $P(x\\mid a)=F(xa)$" in prose(PATH)


@pin(
    "eq-06-one",
    r"""
    \begin{gathered} \mathbb{E}\,L(x)=F(a)\,L(1)+F(-a)\,L(-1),\\ \frac{\partial}{\partial
    a}\,\mathbb{E}\,L(x)=f(a)\,\bigl[L(1)-L(-1)\bigr]. \end{gathered}
    """,
)
@noises
def test_eq_06_one(noise: object) -> None:
    a, lo, hi = float(inside(noise, 1, 1)[0]), *np.random.default_rng(2).normal(size=2)

    def mean(b: float) -> float:
        """E L(sign(b - Z)), an integral over the threshold."""
        body = quad(lambda z: noise.pdf(z) * (hi if z <= b else lo), -5, 5, b, 0, -1, 1, -2, 2)
        return body + hi * noise.cdf(-5) + lo * noise.cdf(-5)

    assert mean(a) == pytest.approx(noise.cdf(a) * hi + noise.cdf(-a) * lo, abs=1e-9)
    slope = (mean(a + 1e-3) - mean(a - 1e-3)) / 2e-3  # of a smooth function: error 1e-6
    assert slope == pytest.approx(noise.pdf(a) * (hi - lo), abs=1e-5)


@pin(
    "def-straight-through",
    r"""
    Let $x\in\{-1,1\}^n$ be sampled units with pre-activations $a$, and let $L$ be
    differentiable at $x$. The straight-through estimate of $\partial_{a_i}\mathbb{E}L$ is
    {eq-06-st} In a backward pass: sample in the forward direction, and let $\partial x/\partial
    a:=2f(a)$ in the backward direction.
    """,
)
@pin("eq-06-st", r"\widehat{\partial_{a_i}\mathbb{E}L}=2f(a_i)\;\partial_iL(x).")
@pytest.mark.parametrize("name", ref.NOISES)
def test_eq_06_st(name: str) -> None:
    """What a backward pass delivers, for the library's function and for the one by hand."""
    noise, loss = ref.RefNoise(name), ref.smooth_loss(3, seed=1)
    a, library = inside(noise, 3, 0), getattr(sbnlib, name)()
    expected = 2 * noise.pdf(a) * loss.gradient(ref.states(3), 0)
    by_hand = define(PATH, "straight_through")["straight_through"]
    for function in (sbnlib.straight_through, by_hand):
        at = torch.tensor(a).expand(8, 3).clone().requires_grad_()
        loss.torch(function(at, torch.tensor(ref.states(3)), library)).sum().backward()
        assert np.allclose(at.grad.numpy(), expected, rtol=1e-13, atol=1e-15)


@pin(
    "eq-06-replace",
    r"""
    \Delta_iL(x)=\int_{-1}^{1}\partial_iL(x_i{=}t)\,dt\;\approx\;2\,\partial_iL(x).
    """,
)
@pytest.mark.parametrize("make", [ref.smooth_loss, ref.quadratic_loss, ref.multilinear_loss])
def test_eq_06_replace(make: Callable) -> None:
    loss, x = make(3, seed=5), ref.states(3)
    for i, state in ((i, s) for i in range(3) for s in x):
        at = [np.where(np.arange(3) == i, t, state) for t in (-1.0, 1.0)]
        flip = loss.value(at[1], 0) - loss.value(at[0], 0)

        def slope(t: float, i: int = i, state: Array = state) -> float:
            return loss.gradient(np.where(np.arange(3) == i, t, state), 0)[i]

        assert quad(slope, -1, 1) == pytest.approx(flip, abs=1e-9)
        replaced = 2 * slope(state[i])
        assert (abs(replaced - flip) < 1e-12) == (loss.name == "multilinear")


# --------------------------------------------------------------------------- exact gradient


def flips(table: Array, n: int) -> Array:
    """Delta_i L(x) for a loss given as a table of its 2^n values, (2^n, n)."""
    cube = table.reshape((2,) * n)
    pairs = [np.take(cube, [1], i) - np.take(cube, [0], i) for i in range(n)]
    return np.stack([np.broadcast_to(d, cube.shape).ravel() for d in pairs], 1)


@pin(
    "nota-exact-gradient",
    r"""
    \frac{\partial}{\partial a_i}\,\mathbb{E}L \;=\; f(a_i)\,\mathbb{E}\,\Delta_iL(x).
    """,
)
@pin(
    "eq-06-exact",
    r"""
    \frac{\partial}{\partial a_i}\mathbb{E}\,L(x)=f(a_i)\;\mathbb{E}\,\Delta_iL(x).
    """,
)
@noises
@examples
@given(table=vectors(8), seed=st.integers(0, 99))
def test_eq_06_exact(noise: object, table: Array, seed: int) -> None:
    a = inside(noise, 3, seed)
    right = noise.pdf(a) * (probabilities(noise, a) @ flips(table, 3))
    assert close(gradient(noise, lambda x: table, a), right, np.abs(table).max())


class Gumbel:
    """A law that is not symmetric."""

    name, scale = "Gumbel", 2.0
    cdf, pdf = staticmethod(stats.gumbel_r.cdf), staticmethod(stats.gumbel_r.pdf)


@pin(
    "thm-06-exact",
    r"""
    Let $x_1,\dots,x_n$ be independent given $a$, with $P(x_i=1\mid a)=F(a_i)$ and $F$
    differentiable at $a_i$ with derivative $f(a_i)$; $F$ need not be symmetric. For every
    function $L$ on $\{-1,1\}^n$, differentiable or not, {eq-06-exact}
    """,
)
@examples
@given(table=vectors(8), seed=st.integers(0, 99))
def test_thm_06_exact_needs_no_symmetry(table: Array, seed: int) -> None:
    a = inside(Gumbel, 3, seed)
    right = Gumbel.pdf(a) * (probabilities(Gumbel, a) @ flips(table, 3))
    assert close(gradient(Gumbel, lambda x: table, a), right, np.abs(table).max())


def shared_threshold(noise: object, a: Array) -> float:
    """E x_1 x_2 when both units compare with one Z: an integral over Z."""
    a1, a2 = a
    return quad(lambda z: noise.pdf(z) * np.sign((a1 - z) * (a2 - z)), -60, 60, a1, a2, 0, -5, 5)


def test_thm_06_exact_needs_independence() -> None:
    noise, a = LOGISTIC, np.array([0.9, -0.4])
    mean = 1 - 2 * (noise.cdf(a[0]) - noise.cdf(a[1]))
    assert shared_threshold(noise, a) == pytest.approx(mean, abs=1e-9)
    step = np.array([1e-3, 0])
    slope = (shared_threshold(noise, a + step) - shared_threshold(noise, a - step)) / 2e-3
    assert slope == pytest.approx(-2 * noise.pdf(a[0]), abs=1e-6)
    # what the theorem would say: f(a_1) E[Delta_1 L] = f(a_1) E[2 x_2]
    assert abs(slope - noise.pdf(a[0]) * 2 * mu_of(noise, a)[1]) > 0.2


def test_thm_06_exact_needs_a_slope_of_F() -> None:
    """Uniform noise: 1/2 from the left of the kink, 0 from the right; the library says 0."""
    noise, h, flip = ref.RefNoise("Uniform"), 2.0**-20, 3.0

    def mean(a: float) -> float:
        return expectation(noise, lambda x: flip * (x[:, 0] > 0), np.array([a]))

    assert (mean(1) - mean(1 - h)) / h == pytest.approx(flip / 2)
    assert (mean(1 + h) - mean(1)) / h == 0
    assert sbnlib.Uniform().pdf(torch.tensor([-1.0, 1.0])).tolist() == [0, 0]


# -------------------------------------------------------------------------------- multilinear


def walsh(coefficients: Array) -> tuple[Loss, Loss]:
    """sum_S w_S prod_{i in S} x_i over the subsets of three bits, and its slopes."""
    subsets = (ref.states(3) > 0).astype(int)

    def value(x: Array) -> Array:
        return (x[..., None, :] ** subsets).prod(-1) @ coefficients

    def slope(x: Array, i: int) -> Array:
        rest = np.where(np.arange(3) == i, 0, subsets)
        return (x[..., None, :] ** rest).prod(-1) @ (coefficients * subsets[:, i])

    return value, lambda x: np.stack([slope(x, i) for i in range(3)], -1)


@pin(
    "thm-06-multilinear",
    r"""
    If $L$ is affine in each coordinate $x_i$ separately (multilinear), then, under the
    assumptions of {prf:ref}`thm-06-exact`, the straight-through estimate is unbiased in the
    last binary layer, whose states enter $L$ directly:
    $\mathbb{E}\,2f(a_i)\,\partial_iL(x)=\partial_{a_i}\mathbb{E}L$. Conversely, if it is
    unbiased for all $a$ in an open set on which $f>0$, then $2\,\partial_iL(x)=\Delta_iL(x)$ at
    every state: the slopes at the states are those of the multilinear function with the same
    values at the states.
    """,
)
@pytest.mark.parametrize("noise", [*NOISES, Gumbel()], ids=lambda n: n.name)
@examples
@given(coefficients=vectors(8), seed=st.integers(0, 99))
def test_thm_06_multilinear(noise: object, coefficients: Array, seed: int) -> None:
    a, (value, slopes) = inside(noise, 3, seed), walsh(coefficients)
    assert close(bias(noise, value, slopes, a), 0, np.abs(coefficients).sum())


@noises
def test_thm_06_multilinear_needs_a_straight_line(noise: object) -> None:
    a = inside(noise, 1, 3)
    value, slopes = one_bit(Polynomial([0, 0, 1]))
    assert np.allclose(gradient(noise, value, a), 0)
    each = estimates(noise, slopes, a)
    assert np.allclose(each, 4 * noise.pdf(a) * ref.states(1))
    assert abs(moments(noise, slopes, a)[0]) > 1e-3


def test_thm_06_multilinear_needs_the_last_layer() -> None:
    """A linear loss above two layers, with the weights of the notebook and its printed number."""
    torch.manual_seed(3)
    layers = [torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)]
    numpy = [(k.weight.detach().numpy(), k.bias.detach().numpy()) for k in layers]
    net = ref.RefNet(*zip(*numpy, strict=True), LOGISTIC)
    loss = ref.RefLoss("first bit", lambda x, b: x[..., 0], lambda x, b: np.ones_like(x), None)
    inputs = np.array([[1.0, -0.5]])
    exact = ref.gradient(net, inputs, loss)
    found = ref.moments(net, inputs, loss, "straight_through")
    off = [np.linalg.norm(found[k, "weight"][0] - exact[k, "weight"]) for k in (0, 1)]
    off = [v / np.linalg.norm(exact[k, "weight"]) for k, v in enumerate(off)]
    assert off[1] < 1e-14
    text = printed(containing(PATH, "exact_moments(deep"))
    said = re.search(r"1 +([\d.]+)\n +2 +([\d.]+)\n", text).groups()
    assert said == (f"{off[0]:.4f}", f"{off[1]:.4f}")


def test_thm_06_multilinear_in_two_layers_of_uniform_noise() -> None:
    """The exception: F is linear while no unit is saturated, so the loss stays multilinear."""
    linear = ref.linear_loss(2)
    for gain, unbiased in ((0.1, True), (2.0, False)):
        net = ref.random_net((2, 2, 2), ref.RefNoise("Uniform"), seed=1, gain=gain)
        inputs = np.array([[0.3, -0.5]])
        exact = ref.gradient(net, inputs, linear)
        off = [
            mean - exact[key]
            for key, (mean, _) in ref.moments(net, inputs, linear, "straight_through").items()
        ]
        assert (max(np.abs(v).max() for v in off) < 1e-14) == unbiased


@noises
def test_thm_06_multilinear_converse(noise: object) -> None:
    """The 2^n probabilities, as functions of a near one point, are linearly independent.

    So E[2 d_i L - Delta_i L] = sum_x P(x | a) [...] vanishes there for a zero bracket only.
    """
    near = np.random.default_rng(0).uniform(-0.3, 0.3, (60, 3)) * noise.scale
    rows = np.stack([probabilities(noise, a) for a in inside(noise, 3, 1) / 2 + near])
    assert np.linalg.cond(rows) < 1e5


def test_every_function_of_bits_has_one_multilinear_extension() -> None:
    """The 2^n products of different bits are a basis of the functions on 2^n states."""
    products = np.stack([walsh(unit)[0](ref.states(3)) for unit in np.eye(8)])
    assert np.allclose(products @ products.T, 8 * np.eye(8))


# ---------------------------------------------------------------------------------- quadratic


@pin(
    "eq-06-mean-field",
    r"""
    \mathbb{E}\,\widehat{\partial_{a}\mathbb{E}L}=2f(a)\circ(A\mu+c)=\nabla_a\,L\bigl(\mu(a)\bigr),
    """,
)
@noises
@examples
@given(problem=quadratics)
def test_eq_06_mean_field(noise: object, problem: tuple) -> None:
    a, A, c = problem
    a = a * noise.scale * 0.24  # inside a bounded support
    value, slopes = quadratic(A, c)
    mean, size = moments(noise, slopes, a)[0], np.abs(A).sum() + np.abs(c).sum()
    assert np.allclose(mean, 2 * noise.pdf(a) * (A @ mu_of(noise, a) + c), atol=1e-13 * (1 + size))
    mean_field = ref.finite_difference(lambda b: float(value(mu_of(noise, b))), a)
    assert close(mean, mean_field, size)


@pin(
    "eq-06-bias",
    r"""
    \mathbb{E}\,\widehat{\partial_{a_i}\mathbb{E}L}-\partial_{a_i}\mathbb{E}L=2f(a_i)\,A_{ii}\,\mu_i
    .
    """,
)
@noises
@examples
@given(problem=quadratics)
def test_eq_06_bias(noise: object, problem: tuple) -> None:
    a, A, c = problem
    a = a * noise.scale * 0.24
    right = 2 * noise.pdf(a) * np.diag(A) * mu_of(noise, a)
    assert close(bias(noise, *quadratic(A, c), a), right, np.abs(A).sum() + np.abs(c).sum())


@pytest.mark.slow
@pin("eq-06-gap", r"L(\mu)-\mathbb{E}\,L(x)=-\tfrac12\sum_iA_{ii}\,(1-\mu_i^2),")
@noises
@examples
@given(problem=quadratics)
def test_eq_06_gap(noise: object, problem: tuple) -> None:
    a, A, c = problem
    value, mu = quadratic(A, c)[0], mu_of(noise, a)
    left = float(value(mu)) - expectation(noise, value, a)
    right = -0.5 * (np.diag(A) * (1 - mu**2)).sum()
    assert left == pytest.approx(right, abs=1e-12 * (1 + np.abs(A).sum()))


@pin(
    "thm-06-quadratic",
    r"""
    Let $L(x)=\tfrac12x^\top Ax+c^\top x$ with $A$ symmetric, let $\mu=2F(a)-1$ be the mean of
    $x$, and let the units be independent. In the last binary layer {eq-06-mean-field} and the
    bias is, exactly, {eq-06-bias}
    """,
)
def test_thm_06_quadratic_for_a_matrix_that_is_not_symmetric() -> None:
    """Its symmetric part is the same loss with the same diagonal."""
    rng = np.random.default_rng(0)
    M, c, a, x = rng.normal(size=(3, 3)), rng.normal(size=3), rng.normal(size=3), ref.states(3)
    S = (M + M.T) / 2
    assert np.allclose(quadratic(M, c)[0](x), quadratic(S, c)[0](x))
    slopes = np.stack([x @ row for row in S], 1) + c
    by_parts = 0.5 * (x @ M.T + x @ M) + c  # the gradient of x'Mx/2 + c'x
    assert np.allclose(slopes, by_parts)
    mean = probabilities(LOGISTIC, a) @ (2 * LOGISTIC.pdf(a) * by_parts)
    off = mean - gradient(LOGISTIC, quadratic(M, c)[0], a)
    assert close(off, 2 * LOGISTIC.pdf(a) * np.diag(M) * mu_of(LOGISTIC, a), 10)


@pytest.mark.parametrize(("b", "rest"), [(0.1, -0.1), (0.4, -0.4), (0.9, -0.9)])
def test_straight_through_stalls_at_minus_b(b: float, rest: float) -> None:
    """x^2/2 + bx: the exact gradient is positive everywhere, the mean is zero at mu = -b only."""
    value, slopes = one_bit(Polynomial([0, b, 0.5]))
    grid = np.linspace(-6, 6, 41)
    exact = np.array([gradient(LOGISTIC, value, np.array([a]))[0] for a in grid])
    mean = np.array([moments(LOGISTIC, slopes, np.array([a]))[0][0] for a in grid])
    assert np.allclose(exact, 2 * LOGISTIC.pdf(grid) * b, atol=1e-8)
    assert (np.sign(mean) == np.sign(mu_of(LOGISTIC, grid) - rest)).all()


# --------------------------------------------------------------------------- when the sign is wrong


@pin(
    "prop-06-sign",
    r"""
    For the quadratic of {prf:ref}`thm-06-quadratic` and $f(a_i)>0$, write $r_i=c_i+\sum_{j\ne
    i}A_{ij}\mu_j$, so that the exact gradient is $2f(a_i)\,r_i$ and the mean of
    straight-through is $2f(a_i)\,(r_i+A_{ii}\mu_i)$. Their signs are opposite if and only if
    $A_{ii}\mu_i$ and $r_i$ have opposite signs and $|A_{ii}\mu_i|>|r_i|$. A step of
    $-\varepsilon$ times the mean of straight-through changes $\mathbb{E}L$ by
    $-4\varepsilon\sum_if(a_i)^2\,r_i\,(r_i+A_{ii}\mu_i)+o(\varepsilon)$: if the sum is
    positive, every small enough step lowers the expected loss, and if it is negative, every
    small enough step raises it.
    """,
)
@examples
@given(problem=quadratics)
def test_prop_06_sign(problem: tuple) -> None:
    """Both halves; the second to first order in the step."""
    a, A, c = problem
    value, slopes = quadratic(A, c)
    f, mu, n = LOGISTIC.pdf(a), mu_of(LOGISTIC, a), len(a)
    r = c + np.array([sum(A[i, j] * mu[j] for j in range(n) if j != i) for i in range(n)])
    d, size = np.diag(A) * mu, 10 * (np.abs(A).sum() + np.abs(c).sum()) ** 2
    exact, mean = gradient(LOGISTIC, value, a), moments(LOGISTIC, slopes, a)[0]
    assert close(exact, 2 * f * r, np.sqrt(size))
    assert np.allclose(mean, 2 * f * (r + d), atol=1e-11)
    clear = (np.abs(r) > 1e-4) & (np.abs(r + d) > 1e-4)  # no sign is decided by rounding
    opposite = np.sign(exact) != np.sign(mean)
    said = (np.sign(d) == -np.sign(r)) & (np.abs(d) > np.abs(r))
    assert (opposite == said)[clear].all()
    along = (
        expectation(LOGISTIC, value, a - 1e-5 * mean)
        - expectation(LOGISTIC, value, a + 1e-5 * mean)
    ) / 2e-5
    assert close(along, -4 * (f**2 * r * (r + d)).sum(), size)


def test_prop_06_sign_in_the_square_of_means() -> None:
    """The flow of the figure: exact to the best corner, straight-through to A mu + c = 0."""
    A, c = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([0.3, -0.5])
    values = quadratic(A, c)[0](ref.states(2))
    assert ref.states(2)[values.argmin()].tolist() == [-1, 1]
    space = define(PATH, "noise", "A2", "c2", "flow")
    starts = [(2.2, -2.2), (-2.2, -2.2), (2.2, 2.2)]
    ends = [space["flow"](False, s, steps=400, lr=2.0)[-1] for s in starts]
    assert np.allclose(ends, [-1, 1], atol=0.05)
    rest = np.linalg.solve(A, -c)
    assert str(rest.round(3)) in printed(containing(PATH, "minimum of L(mu)"))
    ends = [space["flow"](True, s, steps=1000, lr=2.0)[-1] for s in starts]
    assert np.allclose(ends, rest, atol=1e-6)


# ------------------------------------------------------------------------- any smooth loss


@pin(
    "eq-06-peano",
    r"""
    \mathrm{bias}_i=f(a_i)\;\mathbb{E}\int_{-1}^{1}(\mu_i+t)\;\partial_{ii}L(x_i{=}t)\,dt,
    """,
)
@noises
@pytest.mark.parametrize("seed", range(3))
def test_eq_06_peano(noise: object, seed: int) -> None:
    """softplus(u'x) + exp(v'x/2)/2 of three bits, its curvature written out."""
    loss, a = ref.smooth_loss(3, seed), inside(noise, 3, seed)
    u, v, _ = ref._coefficients(3, seed)
    mu, p = mu_of(noise, a), probabilities(noise, a)

    def curvature(x: Array, i: int) -> float:
        s = 1 / (1 + np.exp(-x @ u))
        return s * (1 - s) * u[i] ** 2 + np.exp(x @ v / 2) * v[i] ** 2 / 8

    def inner(i: int, state: Array) -> float:
        moved = np.arange(3) == i
        return quad(lambda t: (mu[i] + t) * curvature(np.where(moved, t, state), i), -1, 1)

    right = [
        noise.pdf(a[i]) * sum(w * inner(i, s) for w, s in zip(p, ref.states(3), strict=True))
        for i in range(3)
    ]
    left = bias(noise, lambda x: loss.value(x, 0), lambda x: loss.gradient(x, 0), a)
    assert close(left, right, 20)


@pin(
    "thm-06-peano",
    r"""
    Let $\partial_iL$ be absolutely continuous along coordinate $i$ on the segment between the
    states, and let the units be independent. In the last binary layer the bias of
    straight-through is {eq-06-peano} where the expectation is over the other units.
    Consequently {eq-06-bound} and the constant is the best possible.
    """,
)
@noises
@examples
@given(kink=st.floats(-0.9, 0.9), jump=numbers, seed=st.integers(0, 99))
def test_thm_06_peano_with_a_relu(noise: object, kink: float, jump: float, seed: int) -> None:
    """A kink of the loss adds its jump of slope times mu + t."""
    a = inside(noise, 1, seed)
    left = bias(
        noise, lambda x: jump * np.maximum(x[..., 0] - kink, 0), lambda x: jump * (x > kink), a
    )
    assert close(left, noise.pdf(a) * jump * (mu_of(noise, a) + kink), 4 * abs(jump))


@noises
@examples
@given(kink=st.floats(-0.9, 0.9), jump=numbers, seed=st.integers(0, 99))
def test_thm_06_peano_allows_a_kink_in_the_slope(
    noise: object, kink: float, jump: float, seed: int
) -> None:
    """L = jump (x - kink)_+^2 / 2 has a second derivative that jumps: integrable is enough."""
    a = inside(noise, 1, seed)
    left = bias(
        noise,
        lambda x: jump * np.maximum(x[..., 0] - kink, 0) ** 2 / 2,
        lambda x: jump * np.maximum(x - kink, 0),
        a,
    )
    right = noise.pdf(a) * jump * quad(lambda t: float(mu_of(noise, a)[0]) + t, kink, 1)
    assert close(left, right, 4 * abs(jump))


def test_thm_06_peano_is_the_trapezoid_rule_at_zero() -> None:
    """mu = 0: nodes -1 and 1 with weights 1 and 1, exact for quadratics."""
    for noise in NOISES:
        _, slopes = one_bit(Polynomial([0.3, -1.2, 0.7]))
        mean = moments(noise, slopes, np.zeros(1))[0]
        trapezoid = slopes(np.array([-1.0])) + slopes(np.array([1.0]))
        assert np.allclose(mean, noise.pdf(0.0) * trapezoid)
        off = bias(noise, *one_bit(Polynomial([0.3, -1.2, 0.7])), np.zeros(1))
        assert np.allclose(off, 0, atol=1e-4)  # a difference across the kink of some densities


@pin("eq-06-bound", r"|\mathrm{bias}_i|\le f(a_i)\,(1+\mu_i^2)\,\sup|\partial_{ii}L| ,")
@noises
@examples
@given(coefficients=vectors(7), seed=st.integers(0, 99))
def test_eq_06_bound(noise: object, coefficients: Array, seed: int) -> None:
    a, poly = inside(noise, 1, seed), Polynomial(coefficients)
    # the supremum over [-1, 1]: at an end or at a zero of the third derivative
    inner = [z.real for z in poly.deriv(3).roots() if abs(z.imag) < 1e-6 and abs(z.real) < 1]
    sup = np.abs(poly.deriv(2)(np.array([-1, 1, *inner]))).max()
    bound = noise.pdf(a) * (1 + mu_of(noise, a) ** 2) * sup
    assert abs(bias(noise, *one_bit(poly), a)) <= bound + 2e-9 * (1 + np.abs(coefficients).sum())


@noises
@examples
@given(seed=st.integers(0, 999))
def test_eq_06_bound_is_attained(noise: object, seed: int) -> None:
    """The curvature sign(mu + t), of size 1: L = (mu + t)|mu + t|/2, a fixed loss."""
    a = inside(noise, 1, seed)
    at = float(mu_of(noise, a)[0])
    off = bias(
        noise, lambda x: (at + x[..., 0]) * np.abs(at + x[..., 0]) / 2, lambda x: np.abs(at + x), a
    )
    assert close(off, noise.pdf(a) * (1 + at**2), 2)


@pin(
    "eq-06-powers",
    r"""
    \mathrm{bias}=2f(a)\Bigl[\;\mu\sum_{k\ \mathrm{even}}k\,\ell_k\;+\sum_{k\
    \mathrm{odd}}(k-1)\,\ell_k\Bigr].
    """,
)
@noises
@examples
@given(coefficients=vectors(9), seed=st.integers(0, 99))
def test_eq_06_powers(noise: object, coefficients: Array, seed: int) -> None:
    a, k = inside(noise, 1, seed), np.arange(9)
    even, odd = k % 2 == 0, k % 2 == 1
    terms = mu_of(noise, a) * (k * coefficients)[even].sum() + ((k - 1) * coefficients)[odd].sum()
    left = bias(noise, *one_bit(Polynomial(coefficients)), a)
    assert close(left, 2 * noise.pdf(a) * terms, 10 * np.abs(coefficients).sum())


@pytest.mark.parametrize("row", range(5))
def test_the_printed_biases_are_the_integrals(row: int) -> None:
    lines = printed(containing(PATH, "integral(a).item()")).splitlines()
    a, enumerated, integral, bound = map(float, lines[1 + row].split())
    mu, f = float(mu_of(LOGISTIC, a)), LOGISTIC.pdf(a)
    s = lambda t: 1 / (1 + np.exp(0.5 - 1.5 * t))  # noqa: E731
    value = f * quad(lambda t: (mu + t) * 2.25 * s(t) * (1 - s(t)), -1, 1)
    assert enumerated == integral == pytest.approx(value, abs=5.1e-7)
    assert bound == pytest.approx(f * (1 + mu**2) * 2.25 / 4, abs=5.1e-7)


def test_the_first_table_is_right() -> None:
    """Exact and mean for three losses of one bit, by the formulas of this file."""
    softplus = (
        lambda x: np.logaddexp(0, 1.5 * x[..., 0] - 0.5),
        lambda x: 1.5 / (1 + np.exp(0.5 - 1.5 * x)),
    )
    losses = [one_bit(Polynomial([0, 3])), one_bit(Polynomial([0, 0.4, 0.5])), softplus]
    lines = printed(containing(PATH, "losses = {")).splitlines()[1:]
    for line, (value, slopes) in zip(lines, losses, strict=True):
        exact = gradient(LOGISTIC, value, np.array([0.7]))[0]
        mean = moments(LOGISTIC, slopes, np.array([0.7]))[0][0]
        assert [float(v) for v in line.split()[-3:]] == pytest.approx(
            [exact, mean, mean - exact], abs=5.1e-5
        )


def test_what_the_words_say_of_the_first_table() -> None:
    rows = printed(containing(PATH, "losses = {")).splitlines()[1:]
    ratios = [float(r.split()[-2]) / float(r.split()[-3]) for r in rows]
    assert ratios == pytest.approx([1, 1.84, 4 / 3], abs=0.005)
    assert "is exact, for the quadratic one it is nearly twice the exact value" in prose(PATH)
    assert "for the softplus it is off by a third" in prose(PATH)


def test_the_sampled_moments_are_as_near_as_the_words_say() -> None:
    for row in printed(containing(PATH, "sampled = sbnlib.measure")).splitlines()[1:]:
        exact, value, error = (float(v) for v in re.findall(r"\d\.?\d*e-\d+", row))
        assert abs(value - exact) <= 1.5 * error
    assert "within one and a half of their standard errors" in prose(PATH)


# ------------------------------------------------------------------------------------- gauge


@pin(
    "eq-06-gauge",
    r"""
    \begin{gathered} L_d(x)=L(x)+\tfrac12\sum_id_i\,(1-x_i^2),\\
    2f(a_i)\,\partial_iL_d(x)=2f(a_i)\,\bigl[\partial_iL(x)-d_i\,x_i\bigr]. \end{gathered}
    """,
)
@noises
@examples
@given(d=vectors(3), seed=st.integers(0, 99))
def test_eq_06_gauge(noise: object, d: Array, seed: int) -> None:
    loss, a, x = ref.smooth_loss(3, seed), inside(noise, 3, seed), ref.states(3)

    def gauged(y: Array) -> Array:
        return loss.value(y, 0) + 0.5 * (d * (1 - y**2)).sum(-1)

    assert np.array_equal(gauged(x), loss.value(x, 0))
    slopes = np.stack([ref.finite_difference(lambda y: float(gauged(y)), s) for s in x])
    right = 2 * noise.pdf(a) * (loss.gradient(x, 0) - d * x)
    assert close(2 * noise.pdf(a) * slopes, right, 100 + np.abs(d).sum())


@pin(
    "prop-06-gauge",
    r"""
    The choice $d=\operatorname{diag}A$ makes straight-through unbiased on the quadratic of
    {prf:ref}`thm-06-quadratic`, and lowers its variance in coordinate $i$ by exactly
    $4f(a_i)^2A_{ii}^2(1-\mu_i^2)$.
    """,
)
@noises
@examples
@given(problem=quadratics)
def test_prop_06_gauge(noise: object, problem: tuple) -> None:
    """d = diag A: no bias, and the variance lower by exactly 4 f^2 A_ii^2 (1 - mu_i^2)."""
    a, A, c = problem
    a = a * noise.scale * 0.24
    value, slopes = quadratic(A, c)
    mean, variance = moments(noise, lambda x: slopes(x) - np.diag(A) * x, a)
    size = np.abs(A).sum() + np.abs(c).sum()
    assert close(mean, gradient(noise, value, a), size)
    drop = 4 * noise.pdf(a) ** 2 * np.diag(A) ** 2 * (1 - mu_of(noise, a) ** 2)
    before = moments(noise, slopes, a)[1]
    assert np.allclose(before - variance, drop, rtol=0, atol=1e-13 * (1 + size) ** 2)


@noises
@pytest.mark.parametrize("seed", range(3))
def test_a_gauge_at_the_sampled_state_leaves_third_derivatives(noise: object, seed: int) -> None:
    """d_i = d_ii L(x): the bias is -f E int (1 + 2 mu t + t^2)/2 d_iii L dt along the segment."""
    a, poly = inside(noise, 1, seed), Polynomial(np.random.default_rng(seed).normal(size=7))
    mu = float(mu_of(noise, a)[0])
    off = bias(noise, one_bit(poly)[0], lambda x: poly.deriv()(x) - poly.deriv(2)(x) * x, a)
    kernel = Polynomial([0.5, mu, 0.5]) * poly.deriv(3)
    whole = kernel.integ()(1) - kernel.integ()(-1)
    assert close(off, -noise.pdf(a) * whole, 100)


def test_a_gauge_at_the_sampled_state_can_be_worse() -> None:
    """x^3: 4f becomes -8f."""
    a, f = np.array([0.8]), LOGISTIC.pdf(0.8)
    value, slopes = one_bit(Polynomial([0, 0, 0, 1]))
    assert close(bias(LOGISTIC, value, slopes, a), 4 * f)
    assert close(bias(LOGISTIC, value, lambda x: slopes(x) - 6 * x * x, a), -8 * f)


@noises
@pytest.mark.parametrize("seed", range(3))
def test_a_gauge_of_the_mean_curvature_removes_the_part_with_mu(noise: object, seed: int) -> None:
    """d_i = E[d_i L(x_i=1) - d_i L(x_i=-1)]/2 leaves f E int t d_ii L dt, here of three bits.

    By parts the integral is the sum of the slopes at both ends minus the flip difference.
    """
    loss, a, x = ref.smooth_loss(3, seed), inside(noise, 3, seed), ref.states(3)
    p, flip = probabilities(noise, a), flips(loss.value(x, 0), 3)
    ends = np.empty((2, 8, 3))
    for k, i in np.ndindex(2, 3):
        ends[k, :, i] = loss.gradient(np.where(np.arange(3) == i, 2 * k - 1, x), 0)[:, i]
    d = p @ (ends[1] - ends[0]) / 2
    off = bias(noise, lambda y: loss.value(y, 0), lambda y: loss.gradient(y, 0) - d * y, a)
    assert close(off, noise.pdf(a) * (p @ (ends[1] + ends[0] - flip)), 20)


# ---------------------------------------------------------------------------------- variance


@pytest.mark.slow
@pin(
    "eq-06-variance",
    r"""
    \begin{gathered}
    \operatorname{Var}\bigl[2f(a_i)\,\partial_iL(x)\bigr]=4f(a_i)^2\;\operatorname{Var}\bigl[\partial_iL(x)\bigr]\\
    \Bigl(=4f(a_i)^2\sum_jA_{ij}^2(1-\mu_j^2)\text{ on quadratics}\Bigr). \end{gathered}
    """,
)
@noises
@examples
@given(problem=quadratics)
def test_eq_06_variance(noise: object, problem: tuple) -> None:
    a, A, c = problem
    slopes, p = quadratic(A, c)[1], probabilities(noise, a)
    left, mu, size = moments(noise, slopes, a)[1], mu_of(noise, a), np.abs(A).sum() + 1
    at = slopes(ref.states(len(a)))
    middle = 4 * noise.pdf(a) ** 2 * (p @ at**2 - (p @ at) ** 2)
    right = 4 * noise.pdf(a) ** 2 * (A**2 @ (1 - mu**2))
    assert np.allclose(left, middle, rtol=0, atol=1e-12 * (size + np.abs(c).sum()) ** 2)
    assert np.allclose(left, right, rtol=0, atol=1e-13 * (size + np.abs(c).sum()) ** 2)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_a_linear_loss_costs_the_score_function_more_with_every_unit(n: int) -> None:
    """Variances of L(x) d log P for L = sum_i x_i / sqrt(n), a = 0.5, against the stored table."""
    a, x, c = np.full(n, 0.5), ref.states(n), np.ones(n) / np.sqrt(n)
    assert np.allclose(moments(LOGISTIC, lambda x: 0 * x + c, a)[1], 0, atol=1e-28)
    p, P = LOGISTIC.cdf(0.5), probabilities(LOGISTIC, a)
    score = np.where(x > 0, LOGISTIC.pdf(0.5) / p, -LOGISTIC.pdf(0.5) / (1 - p)) * (x @ c)[:, None]
    spread = (P @ (score - P @ score) ** 2).sum()
    rows = printed(containing(PATH, "Var score function")).splitlines()[1:]
    rows = {int(r.split()[0]): [float(v) for v in r.split()[1:]] for r in rows}
    square = ((2 * LOGISTIC.pdf(a) * c) ** 2).sum()
    assert rows[n] == pytest.approx([square, 0, spread], abs=5.1e-4)
    assert sorted(v[2] for v in rows.values()) == [v[2] for v in rows.values()]


# ------------------------------------------------------------------- by hand and the library


@pytest.fixture(scope="module")
def hand() -> SimpleNamespace:
    names = (
        "noise",
        "states",
        "probability",
        "exact_gradient",
        "straight_through_mean",
        "straight_through",
    )
    return SimpleNamespace(**{k: v for k, v in define(PATH, *names).items() if k in names})


def one_layer(a: torch.Tensor) -> sbnlib.SBN:
    """A layer whose pre-activations are `a`, whatever the input: a is its bias."""
    layer = torch.nn.Linear(1, len(a))
    layer.weight.data.zero_()
    layer.bias.data.copy_(a)
    return sbnlib.SBN(layer)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_states_and_probabilities_by_hand(hand: SimpleNamespace, n: int) -> None:
    a = torch.tensor(inside(LOGISTIC, n, n))
    assert np.array_equal(hand.states(n).numpy(), ref.states(n))
    assert torch.equal(hand.states(n), sbnlib.exact.all_states(n, dtype=torch.float64))
    found = hand.probability(hand.states(n), a)
    assert np.allclose(found.numpy(), probabilities(LOGISTIC, a.numpy()), rtol=1e-13)


@pytest.mark.parametrize("name", ref.LOSSES)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_exact_gradient_by_hand_is_the_library_s(
    hand: SimpleNamespace, name: str, n: int
) -> None:
    loss, a = ref.LOSSES[name](n, seed=n), torch.tensor(3 * inside(LOGISTIC, n, n))
    by_hand = hand.exact_gradient(loss.torch, a)
    _, library = sbnlib.exact_gradient(one_layer(a), torch.zeros(1, 1), loss.torch)
    assert torch.allclose(by_hand, library["layers.0.bias"], rtol=1e-12, atol=1e-13)
    differences = gradient(LOGISTIC, lambda x: loss.value(x, 0), a.numpy())
    assert close(by_hand.numpy(), differences, 50)


@pytest.mark.parametrize("name", [k for k in ref.LOSSES if k != "constant"])
def test_the_mean_of_straight_through_by_hand_is_the_library_s(
    hand: SimpleNamespace, name: str
) -> None:
    loss, a = ref.LOSSES[name](4, seed=2), torch.tensor(3 * inside(LOGISTIC, 4, 2))
    by_hand = hand.straight_through_mean(loss.torch, a)
    found = sbnlib.exact_moments(one_layer(a), torch.zeros(1, 1), loss.torch, "straight_through")
    assert torch.allclose(by_hand, found["layers.0.bias"][0], rtol=1e-12, atol=1e-13)
    enumerated = moments(LOGISTIC, lambda x: loss.gradient(x, 0), a.numpy())[0]
    assert np.allclose(by_hand.numpy(), enumerated, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ref.NOISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_straight_through_by_hand_is_the_library_s_bit_for_bit(
    hand: SimpleNamespace, name: str, dtype: torch.dtype
) -> None:
    generator, noise = torch.Generator().manual_seed(7), getattr(sbnlib, name)()
    a = (8 * torch.rand(2000, generator=generator) - 4).to(dtype).requires_grad_()
    x = sbnlib.sample_sign(a, noise, generator=generator)
    upstream = torch.randn(2000, generator=generator).to(dtype)
    found = [function(a, x, noise) for function in (hand.straight_through, sbnlib.straight_through)]
    assert all(torch.equal(out, x) for out in found)
    grads = [torch.autograd.grad(out, a, upstream)[0] for out in found]
    assert torch.equal(*grads)


# -------------------------------------------------------------------------------- exercises


def test_ex_06_coding() -> None:
    """y = (x + 1)/2: the factor is f(a) and every single estimate is the same number."""
    loss, a = ref.smooth_loss(1, 4), 0.6
    for x in (-1.0, 1.0):
        h = 1e-6
        coded = lambda y: float(loss.value(np.array([2 * y - 1]), 0))  # noqa: E731
        y = (x + 1) / 2
        slope = (coded(y + h) - coded(y - h)) / (2 * h)
        here = 2 * LOGISTIC.pdf(a) * loss.gradient(np.array([x]), 0)[0]
        assert LOGISTIC.pdf(a) * slope == pytest.approx(here, abs=1e-8)
    assert 1 / ref.RefNoise("Uniform").pdf(0.3) == 2


def test_ex_06_coding_mistakes() -> None:
    """Slope 1 in the place of the density 1/2, at each of three units that a gradient passes."""
    check, wrong_by = checker(PATH, "check_coding"), 1 / stats.uniform(-1, 2).pdf(0.3)
    assert check(wrong_by**3) and check("2*2*2")
    says_to(check, {wrong_by: "one layer", wrong_by**2: "layers above", 3 * wrong_by: "multiplies",
                    wrong_by**-3: "too large"})  # fmt: skip


def test_ex_06_predict() -> None:
    """The stored answers: exact where the solution says so, the printed bias elsewhere."""
    generic, zero = np.array([0.9, -0.6, 0.4]), np.zeros(3)
    e = np.eye(3)
    cases = {
        "a": (lambda x: x.prod(-1), generic),
        "b": (lambda x: x[..., 0] ** 2 * x[..., 1], generic),
        "c": (lambda x: (x[..., 0] + x[..., 1]) ** 2, generic),
        "d": (lambda x: np.exp(x[..., 2]), generic),
        "e": (lambda x: x[..., 0] ** 3, zero),
        "f": (lambda x: x[..., 0] ** 2 + x[..., 1] ** 4, zero),
    }
    lines = dict(line.split(" ", 1) for line in printed(containing(PATH, "cases = {")).splitlines())
    for name, (value, a) in cases.items():
        slopes = lambda x, v=value: np.stack(  # noqa: E731
            [(v(x + 1e-5 * k) - v(x - 1e-5 * k)) / 2e-5 for k in e], -1
        )
        off = bias(LOGISTIC, value, slopes, a)
        said = ["exact" if abs(v) < 1e-7 else f"{v:+.3f}" for v in off]
        assert lines[name] == str(said)
    f, mu = LOGISTIC.pdf(generic[0]), mu_of(LOGISTIC, generic)
    assert f"{f * 4 * mu[0] * mu[1]:+.3f}" in lines["b"]


def test_ex_06_predict_mistakes() -> None:
    """The letters are those whose printed biases are all exact."""
    check, lines_ = checker(PATH, "check_exact"), printed(containing(PATH, "for name, (loss, at)"))
    exact = [line[0] for line in lines_.splitlines() if line.count("exact") == 3]
    assert check(exact)
    says_to(check, {"f": "a: ", "abf": "b: ", "acf": "c: ", "adf": "d: ", "aef": "e: ", "a": "f: "})


@examples
@given(delta=st.floats(1e-3, 0.95), excess=st.floats(1.05, 3))
def test_ex_06_break_there_is_no_smallest_curvature(delta: float, excess: float) -> None:
    """Any gamma > delta goes uphill where unit 1 is rightly decided and unit 2 silent."""
    gamma, c = delta * excess, np.array([delta, np.sqrt(1 - delta**2)])
    value, slopes = quadratic(gamma * np.eye(2), c)
    first = -float(np.log((excess + 1) / (excess - 1))) - 1  # |mu_1| above 1/excess
    a = np.array([first, 40.0])  # f(40) is about 1e-17
    p = probabilities(LOGISTIC, a)
    exact = LOGISTIC.pdf(a) * (p @ flips(value(ref.states(2)), 2))
    assert exact @ moments(LOGISTIC, slopes, a)[0] < 0


def test_ex_06_break_as_printed() -> None:
    delta, a = 0.05, np.array([-3.0, 14.0])
    value, slopes = quadratic(2 * delta * np.eye(2), np.array([delta, np.sqrt(1 - delta**2)]))
    product = gradient(LOGISTIC, value, a) @ moments(LOGISTIC, slopes, a)[0]
    text = printed(containing(PATH, "def uphill"))
    assert f"{product:.1e}" in text and product < 0
    assert "curvature 0.1\n" in text


@noises
def test_ex_06_curl(noise: object) -> None:
    """x_1^2 x_2: dv_1/da_2 - dv_2/da_1 = 8 f(a_1) f(a_2) mu_1, by differences of enumeration."""
    a = np.abs(inside(noise, 2, 11)) + 0.02

    def field(b: Array) -> Array:
        return moments(noise, lambda x: np.stack([2 * x[:, 0] * x[:, 1], x[:, 0] ** 2], -1), b)[0]

    jacobian = np.stack([(field(a + h) - field(a - h)) / 2e-5 for h in 1e-5 * np.eye(2)], 1)
    mu1 = mu_of(noise, a)[0]
    assert close(jacobian[0, 1], 4 * noise.pdf(a[0]) * mu1 * 2 * noise.pdf(a[1]), 10)
    assert close(jacobian[1, 0], 0, 10)
    assert abs(jacobian[0, 1] - jacobian[1, 0]) > 1e-4


@pytest.mark.parametrize(
    ("name", "function", "conservative"),
    [
        ("x1^2 x2", lambda u, v: u**2 * v, False),
        ("x1^2 x2^2", lambda u, v: u**2 * v**2, True),
        ("x1 x2 + x1^2", lambda u, v: u * v + u**2, True),
        ("exp(x1) + x2^3", lambda u, v: np.exp(u) + v**3, True),
        ("exp(x1 x2)", lambda u, v: np.exp(u * v), True),
        ("exp(x1 + 2 x2)", lambda u, v: np.exp(u + 2 * v), False),
    ],
)
def test_ex_06_curl_for_which_losses(name: str, function: Callable, conservative: bool) -> None:
    """A gradient exactly where Delta_2 d_1 L = Delta_1 d_2 L at every state; by differences."""
    h = 1e-5

    def slopes(x: Array) -> Array:
        u, v = x[..., 0], x[..., 1]
        return np.stack(
            [function(u + h, v) - function(u - h, v), function(u, v + h) - function(u, v - h)], -1
        ) / (2 * h)

    at = slopes(ref.states(2))
    condition = flips(at[:, 0], 2)[:, 1] - flips(at[:, 1], 2)[:, 0]
    for a in np.random.default_rng(3).normal(size=(4, 2)):
        steps = 1e-4 * np.eye(2)
        fields = [[moments(LOGISTIC, slopes, a + s * k)[0] for s in (-1, 1)] for k in steps]
        curl = (fields[1][1] - fields[1][0])[0] - (fields[0][1] - fields[0][0])[1]
        expected = 2 * LOGISTIC.pdf(a).prod() * (probabilities(LOGISTIC, a) @ condition)
        assert curl / 2e-4 == pytest.approx(expected, abs=1e-5)
        assert (abs(expected) < 1e-6) == conservative
    assert (np.abs(condition).max() < 1e-6) == conservative


def test_ex_06_curl_as_printed() -> None:
    value = -8 * LOGISTIC.pdf(1.0) * LOGISTIC.pdf(0.5) * mu_of(LOGISTIC, 1.0)
    assert printed(containing(PATH, "def field")).count(f"{value:.6f}") == 2


# ---------------------------------------------------------------------------- the checker


@pytest.fixture
def space() -> dict:
    """The notebook's checker and its solution, run as they stand."""
    out = define(PATH, "noise", "states")
    for tag in ("checker", "solution"):
        exec(compile(naming(PATH, tag).source, tag, "exec"), out)
    return out


def variance(a: torch.Tensor, A: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The right answer, written here from {eq}`eq-06-variance` with exp alone."""
    p = 1 / (1 + torch.exp(-a))
    return 4 * (p * (1 - p)) ** 2 * ((A * A) * (4 * p * (1 - p))).sum(1)


def off_diagonal(a: torch.Tensor, A: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return variance(a, A - torch.diag(A.diagonal()), c)


def not_squared(a: torch.Tensor, A: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    p = 1 / (1 + torch.exp(-a))
    return 4 * (p * (1 - p)) ** 2 * (A * (4 * p * (1 - p))).sum(1)


def test_the_checker_accepts_the_solution(space: dict, capsys: pytest.CaptureFixture) -> None:
    assert space["ok"] is True
    assert space["check"](variance) is True
    assert "right" in capsys.readouterr().out


WRONG = {
    "no factor 4": (lambda *v: variance(*v) / 4, "a quarter of the truth"),
    "no own term": (off_diagonal, "j = i is missing"),
    "A not squared": (not_squared, "squared"),
    "second moment": (lambda a, A, c: variance(a, A, c) + 1, "not the variance"),
    "a standard deviation": (lambda *v: variance(*v).sqrt(), "standard deviation"),
    "variance one": (
        lambda a, A, c: 4 * torch.sigmoid(a) ** 2 * torch.sigmoid(-a) ** 2 * (A * A).sum(1),
        "not 1",
    ),
    "summed": (lambda *v: variance(*v).sum(), "shape ()"),
    "zeros": (lambda a, A, c: 0 * a, "not the variance"),
    "not a number": (lambda a, A, c: a * torch.nan, "not the variance"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_checker_names_what_is_wrong(
    space: dict, name: str, capsys: pytest.CaptureFixture
) -> None:
    answer, hint = WRONG[name]
    capsys.readouterr()
    assert space["check"](answer) is False
    assert hint in capsys.readouterr().out


# ------------------------------------------------------------------------------ real data


STORED: Path = PATH.parents[1] / "measurements" / "classify-digits.json"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return measurement.read(STORED)["rows"]


def summary(rows: list[dict]) -> dict[str, tuple[float, ...]]:
    """Mean, standard error and, but for the twin, difference, its error and p by Welch.

    From the final rows alone; the test by scipy.
    """
    final = [r for r in rows if r["part"] == "final"]
    twin = np.array([r["test"]["tanh"] for r in final if r["model"] == "tanh"])

    def mean(v: Array) -> tuple[float, float]:
        return v.mean(), v.std(ddof=1) / np.sqrt(len(v))

    out = {}
    for name in ("sign", "one", "ten", "mean"):
        v = np.array([r["test"][name] for r in final if r["model"] == "sbn"])
        p = stats.ttest_ind(v, twin, equal_var=False).pvalue
        se = np.hypot(mean(v)[1], mean(twin)[1])
        out[name] = (*mean(v), v.mean() - twin.mean(), se, p)
    return out | {"tanh": mean(twin)}


def test_the_table_of_the_digits_is_the_stored_measurement(rows: list[dict]) -> None:
    text = printed(containing(PATH, "classify-digits"))
    words = text.replace("\\\n", " ").split()
    assert measurement.read(STORED)["command"] in " ".join(words)
    assert max(map(len, text.splitlines())) <= 71
    names = {
        "sign": "deterministic",
        "one": "one sample",
        "ten": "ten samples",
        "mean": "mean-field",
        "tanh": "tanh twin",
    }
    number = r"([+-]?\d\.\d{3,4})"
    for key, expected in summary(rows).items():
        line = re.search(rf"^{names[key]} .*$", text, re.M)[0]
        shown = [float(v) for v in re.findall(number, line)]
        assert shown == pytest.approx(expected, abs=5.1e-4)


def test_what_the_words_say_about_the_digits(rows: list[dict]) -> None:
    table, words = summary(rows), prose(PATH)
    assert "by $1.1\\pm0.3$ points" in words
    assert [round(100 * v, 1) for v in table["one"][2:4]] == [-1.1, 0.3]
    for name in ("sign", "ten", "mean"):
        assert -0.01 < table[name][2] < 0  # "to within a percentage point"
    assert min(table["ten"][2], table["mean"][2]) > -0.005  # "to within half a point"
    p = sorted(table[name][4] for name in ("sign", "one", "ten", "mean"))
    assert p[0] == table["one"][4] and p[0] * 4 < 0.05
    assert f"{p[1]:.2f}" == "0.05" and f"{3 * p[1]:.2f}" == "0.15"  # Holm's second of four
    assert "the smallest $p$ of the three is $0.05$" in words and "it is $0.15$" in words
    errors = [100 * np.sqrt(v[0] * (1 - v[0]) / 359) for v in table.values()]
    assert (round(min(errors), 1), round(max(errors), 1)) == (0.8, 1.0)  # "by 0.8 to 1.0 points"
    for words_said in (
        "six learning rates times six",
        "36 trials",
        "ten fresh seeds",
        "40 epochs",
        "359 other images",
        "1797 handwritten digits",
    ):
        assert words_said in words
    for model, name in (("sbn", "ten"), ("tanh", "tanh")):  # "within three images of the best"
        search = [r for r in rows if r["part"] == "search" and r["model"] == model]
        right = sorted(round(360 * r["validation"][name]) for r in search)[::-1]
        assert right[2] >= right[0] - 3


def test_the_search_was_as_told(rows: list[dict]) -> None:
    for model in ("sbn", "tanh"):
        search = [r for r in rows if r["part"] == "search" and r["model"] == model]
        final = [r for r in rows if r["part"] == "final" and r["model"] == model]
        assert len(search) == 36 and len({r["seed"] for r in search}) == 1
        assert len({r["lr"] for r in search}) == len({r["init_gain"] for r in search}) == 6
        assert len({r["seed"] for r in final}) == 10
        assert not {r["seed"] for r in final} & {r["seed"] for r in search}
        key = "ten" if model == "sbn" else "tanh"
        best = max(search, key=lambda r: (r["validation"][key], -r["validation_loss"]))
        assert {(r["lr"], r["init_gain"]) for r in final} == {(best["lr"], best["init_gain"])}
        right = [round(360 * r["validation"][key]) for r in search]
        assert right.count(max(right)) == (1 if model == "sbn" else 2)
        assert model == "sbn" or max(right) == 352
    assert "two settings of the twin were equal, with 352 of 360 images" in prose(PATH)
    digits, config = data.load("digits"), classify.Config()
    assert (config.epochs, config.schedule) == (40, "cosine")
    sizes = [len(part.labels) for part in (digits.train, digits.validation, digits.test)]
    assert sum(sizes) == 1797 and sizes[2] == 359


# ------------------------------------------------------------------- what the figures draw


@pytest.mark.slow
@pytest.mark.parametrize(("a", "A"), [(1.2, 0.8), (-0.6, -2.0)])
def test_fig_extension(a: float, A: float) -> None:
    left, right = curves(PATH, "extension", a=a, A=A)
    t, loss = left[0]
    assert loss == pytest.approx(0.5 * t + A * t**2 / 2 - A / 2, abs=1e-12)
    for tangent, x in ((left[2], -1.0), (left[4], 1.0)):
        rise = np.diff(tangent[1]) / np.diff(tangent[0])
        assert rise == pytest.approx(0.5 + A * x) and tangent.mean(1) == pytest.approx([x, 0.5 * x])
    value, slopes = quadratic(np.array([[A]]), np.array([0.5]))
    for k in range(0, 49, 6):
        at = right[1][0][k : k + 1]
        assert right[1][1][k] == pytest.approx(gradient(LOGISTIC, value, at)[0], abs=1e-7)
        assert right[2][1][k] == pytest.approx(moments(LOGISTIC, slopes, at)[0][0], abs=1e-12)
    ends = [
        gradient(LOGISTIC, value, np.array([a]))[0],
        moments(LOGISTIC, slopes, np.array([a]))[0][0],
    ]
    assert right[3].tolist() == [[a, a], pytest.approx(ends, abs=1e-7)]


@pytest.mark.parametrize(("b", "m"), [(0.4, 4), (1.1, 512)])
def test_fig_stall(b: float, m: int) -> None:
    left, right = curves(PATH, "stall", b=b, M=m)
    mu, mean = left[0]
    at = [np.array([[(1 + v) / 2, (1 - v) / 2]]) @ [1 / 2 + b, 1 / 2 - b] for v in mu]
    assert mean == pytest.approx(np.ravel(at), abs=1e-12)  # E[x^2/2 + b x]
    assert left[1][1] == pytest.approx(mu**2 / 2 + b * mu)
    assert left[2][0, 0] == pytest.approx(mu[left[1][1].argmin()], abs=0.026)
    u = torch.rand(240, m, generator=torch.Generator().manual_seed(1)).numpy()
    exact = sampled = 1.5
    for t in range(240):
        if t % 3 == 0:
            assert right[1][1][t // 3] == pytest.approx(np.tanh(exact / 2), abs=1e-9)
            assert right[2][1][t // 3] == pytest.approx(np.tanh(sampled / 2), abs=1e-9)
        x = np.where(u[t] < LOGISTIC.cdf(sampled), 1, -1)
        exact = exact - 2 * LOGISTIC.pdf(exact) * b
        sampled = sampled - (2 * LOGISTIC.pdf(sampled) * (x + b)).mean()


# ------------------------------------------------------------------- figures without sliders


@pytest.mark.slow
@pytest.mark.parametrize(("panel", "k", "start"), [(0, 0, (-2.2, -2.2)), (1, 8, (0.7, 2.2))])
def test_fig_flow(panel: int, k: int, start: tuple[float, float]) -> None:
    """Descent of E L by enumeration and differences, and of L at the mean."""
    A, c, h = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([0.3, -0.5]), 1e-5
    x = ref.states(2)
    values = 0.5 * np.einsum("si,ij,sj->s", x, A, x) + x @ c

    def loss(a: Array) -> float:
        mu = np.tanh(a / 2)
        return 0.5 * mu @ A @ mu + c @ mu if panel else special.expit(x * a).prod(1) @ values

    a, path = np.array(start), []
    for _ in range(200):
        path.append(np.tanh(a / 2))
        a = a - 0.5 * np.array([(loss(a + h * e) - loss(a - h * e)) / (2 * h) for e in np.eye(2)])
    drawn = lines(still(PATH, "fig-06-flow")[panel])[3 * k][:, :200]
    np.testing.assert_allclose(drawn, np.array(path).T, atol=1e-5)


def test_fig_accuracy_shows_the_stored_runs(rows: list[dict]) -> None:
    (axis,) = still(PATH, "fig-06-accuracy")
    final = [r for r in rows if r["part"] == "final"]
    circles = [line for line in lines(axis) if line.shape == (2, 4)][::2]
    ours = [[r["test"][n] for n in ("one", "ten", "mean", "sign")] for r in final
            if r["model"] == "sbn"]  # fmt: skip
    assert sorted(map(tuple, (line[1] for line in circles))) == sorted(map(tuple, ours))
    twins = sorted(line[1, 0] for line in lines(axis) if line.shape == (2, 1))
    assert twins == sorted(r["test"]["tanh"] for r in final if r["model"] != "sbn")
