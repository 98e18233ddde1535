"""Chapter 5, flip one unit: both sides of every formula, and the notebook's own code.

Expected values are integrals over the uniforms, with Gauss nodes between the points where a state
changes (so exact for what is piecewise a polynomial), sums over states, and finite differences, in
numpy. sbnlib appears only where one of its functions is what is compared. "Any symmetric noise"
means the six laws of the library and one with two humps.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import reference as ref
import torch
from chapters import (
    as_in_the_book,
    axes,
    chapter,
    checker,
    containing,
    curves,
    define,
    figures,
    lines,
    lines_of,
    naming,
    printed,
    prose,
    run,
    says_to,
    still,
    under,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pins import pin
from pins import printed as statement
from scipy import optimize, special, stats

import sbnlib

Array = np.ndarray
Table = Callable[[Array], Array]
PATH = chapter(5)
NAMES = ("REINFORCE", "LOO", "ARM", "DisARM", "local")


class TwoHumps:
    """Half N(-2, 1/4), half N(2, 1/4): symmetric, and its density has a valley at zero."""

    name, scale = "TwoHumps", 3.0

    def cdf(self, a: Array | float) -> Array:
        return (stats.norm.cdf(a, -2, 0.5) + stats.norm.cdf(a, 2, 0.5)) / 2

    def pdf(self, a: Array | float) -> Array:
        return (stats.norm.pdf(a, -2, 0.5) + stats.norm.pdf(a, 2, 0.5)) / 2


class Gumbel:
    """A law that is not symmetric."""

    def cdf(self, a: Array) -> Array:
        return np.exp(-np.exp(-np.asarray(a)))

    def pdf(self, a: Array) -> Array:
        return np.exp(-np.asarray(a) - np.exp(-np.asarray(a)))


LOGISTIC, GAUSSIAN = ref.RefNoise("Logistic"), ref.RefNoise("Gaussian")
NOISES = [ref.RefNoise(n, s) for n, s in zip(ref.NOISES, (1, 1, 1, 2, 0.5, 1), strict=True)]
NOISES.append(TwoHumps())
noises = pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.name)
examples = settings(max_examples=20, deadline=None)
tables = arrays(float, 8, elements=st.floats(-5, 5).map(lambda v: round(v, 6)))


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


def inside(noise: object, n: int, seed: int) -> Array:
    """Pre-activations where F is smooth, between the ends of a bounded support."""
    a = noise.scale * np.random.default_rng(seed).uniform(-0.95, 0.95, n)
    return np.where(np.abs(a) < 1e-2, 0.1 * noise.scale, a)


def rows(x: Array) -> Array:
    """The row of a state in the table of all states."""
    return ((x > 0) * 2 ** np.arange(x.shape[-1] - 1, -1, -1)).sum(-1)


def at(table: Array) -> Table:
    return lambda x: table[rows(x)]


def probabilities(noise: object, a: Array) -> Array:
    x = ref.states(len(a))
    return np.where(x > 0, noise.cdf(a), 1 - noise.cdf(a)).prod(1)


def gradient(noise: object, loss: Table, a: Array) -> Array:
    """d E L / da by central differences of the enumerated sum."""

    def mean(b: Array) -> float:
        return float(probabilities(noise, b) @ loss(ref.states(len(a))))

    return ref.finite_difference(mean, np.array(a, float))


def flips(loss: Table, x: Array) -> Array:
    """Delta_i L(x), one column for each i."""
    n = x.shape[-1]
    sides = [[np.where(np.arange(n) == i, s, x) for i in range(n)] for s in (1.0, -1.0)]
    return np.stack([loss(p) - loss(m) for p, m in zip(*sides, strict=True)], -1)


def nodes(noise: object, a: Array) -> tuple[Array, Array]:
    """Uniforms (N, n) and weights (N,), two Gauss nodes on each piece: exact up to cubes of u."""
    units = []
    for v in a:
        cuts = np.sort([0, noise.cdf(-v), noise.cdf(v), 1])
        half = np.diff(cuts)[:, None] / 2
        u = cuts[:-1, None] + half * (1 + np.array([-1, 1]) / np.sqrt(3))
        units.append((u.ravel(), np.repeat(half.ravel(), 2)))
    u = np.array(list(itertools.product(*(u for u, _ in units))))
    return u, np.array(list(itertools.product(*(w for _, w in units)))).prod(1)


def pair_of(noise: object, a: Array, u: Array) -> tuple[Array, Array]:
    return np.where(u > noise.cdf(-a), 1, -1), np.where(u < noise.cdf(a), 1, -1)


def arm_of(noise: object, a: Array, loss: Table, u: Array) -> Array:
    x, partner = pair_of(noise, a, u)
    weight = noise.pdf(a) / (noise.cdf(a) * noise.cdf(-a))
    return (loss(x) - loss(partner))[:, None] * (u - 0.5) * weight


def disarm_of(noise: object, a: Array, loss: Table, u: Array) -> Array:
    x, partner = pair_of(noise, a, u)
    weight = noise.pdf(a) / noise.cdf(-np.abs(a))
    return 0.5 * (loss(x) - loss(partner))[:, None] * x * (x != partner) * weight


def moments(values: Array, weights: Array) -> tuple[Array, Array]:
    mean = weights @ values
    return mean, weights @ (values - mean) ** 2


def two_samples(noise: object, a: Array, loss: Table) -> tuple[Array, Array]:
    """All pairs of independent states, the leave-one-out estimate on each, and its weight."""
    x, p = ref.states(len(a)), probabilities(noise, a)
    s = x * noise.pdf(a) / np.where(x > 0, noise.cdf(a), 1 - noise.cdf(a))
    first, second = np.divmod(np.arange(len(x) ** 2), len(x))
    half = (loss(x[first]) - loss(x[second])) / 2
    return half[:, None] * (s[first] - s[second]), p[first] * p[second]


def estimates(noise: object, a: Array, loss: Table) -> dict[str, tuple[Array, Array]]:
    """Values and weights of one estimate of each kind."""
    x, p = ref.states(len(a)), probabilities(noise, a)
    s = x * noise.pdf(a) / np.where(x > 0, noise.cdf(a), 1 - noise.cdf(a))
    u, weights = nodes(noise, a)
    return {
        "REINFORCE": (loss(x)[:, None] * s, p),
        "LOO": two_samples(noise, a, loss),
        "ARM": (arm_of(noise, a, loss, u), weights),
        "DisARM": (disarm_of(noise, a, loss, u), weights),
        "local": (noise.pdf(a) * flips(loss, x), p),
    }


def variances(noise: object, a: Array, loss: Table) -> dict[str, Array]:
    return {name: moments(*pair)[1] for name, pair in estimates(noise, a, loss).items()}


def close(left: Array | float, right: Array | float, size: float = 1.0) -> bool:
    """Equal to the accuracy of central differences of a function of this size."""
    return bool(np.allclose(left, right, rtol=0, atol=5e-9 * (1 + size)))


# ------------------------------------------------------------------------- local expectation


@pin(
    "eq-05-reinforce",
    r"""
    \hat g_i^{\mathrm{R}}=\bigl(L(x)-\kappa\bigr)\,\frac{x_i\,f(a_i)}{P(x_i)},\qquad
    P(x_i)=F(x_ia_i).
    """,
)
@noises
@examples
@given(table=tables, b=tables, seed=st.integers(0, 99))
def test_eq_05_reinforce(noise: object, table: Array, b: Array, seed: int) -> None:
    """Unbiased with a baseline that is a function of the other units; not with b = L(x)."""
    a, loss, x = inside(noise, 3, seed), at(table), ref.states(3)
    p, exact = probabilities(noise, a), gradient(noise, loss, a)
    for i in range(3):
        weight = x[:, i] * noise.pdf(a[i]) / noise.cdf(x[:, i] * a[i])
        others = at(b)(np.where(np.arange(3) == i, 1, x))
        assert close(p @ ((loss(x) - others) * weight), exact[i], 10)
        assert p @ weight == pytest.approx(0, abs=1e-12)
    assert "no variance and the wrong mean" in prose(PATH)


@pin("eq-05-local", r"\hat g_i^{\mathrm{LE}}=f(a_i)\,\Delta_iL(x),")
@noises
@examples
@given(table=tables, seed=st.integers(0, 99))
def test_eq_05_local(noise: object, table: Array, seed: int) -> None:
    a, loss = inside(noise, 3, seed), at(table)
    mean = probabilities(noise, a) @ (noise.pdf(a) * flips(loss, ref.states(3)))
    assert close(mean, gradient(noise, loss, a), 10)


@pin(
    "thm-05-local",
    r"""
    Let the units be independent given $a$, $0<p_i<1$, and let the baseline $\kappa$ be a function
    of $x_{-i}$, of constants and of random numbers that are independent of $x$, with finite
    second moment. Then
    {eq-05-conditional} and, with $\kappa_i^*(x_{-i})=(1-p_i)\,L(x_i{=}{+}1)+p_i\,L(x_i{=}{-}1)$,
    {eq-05-excess}
    """,
)
@pin(
    "eq-05-conditional",
    r"""
    \mathbb{E}\bigl[\hat g_i^{\mathrm{R}}\bigm|x_{-i},\kappa\bigr]=\hat g_i^{\mathrm{LE}},
    """,
)
@pin(
    "eq-05-excess",
    r"""\mathrm{Var}\,\hat g_i^{\mathrm{R}}=\mathrm{Var}\,\hat
g_i^{\mathrm{LE}}+\frac{f(a_i)^2}{p_i(1-p_i)}\,\mathbb{E}\,\bigl(\kappa-\kappa_i^*(x_{-i})\bigr)^2 .
    """,
)
@noises
@examples
@given(table=tables, b=tables, seed=st.integers(0, 99))
def test_thm_05_local(noise: object, table: Array, b: Array, seed: int) -> None:
    a, loss, x = inside(noise, 3, seed), at(table), ref.states(3)
    p = probabilities(noise, a)
    for i in range(3):
        up, down = (np.where(np.arange(3) == i, s, x) for s in (1.0, -1.0))
        F, f = noise.cdf(a[i]), noise.pdf(a[i])
        best = (1 - F) * loss(up) + F * loss(down)
        _, v_local = moments(f * (loss(up) - loss(down)), p)
        for baseline in (at(b)(up), best):
            score = x[:, i] * f / np.where(x[:, i] > 0, F, 1 - F)
            value = (loss(x) - baseline) * score
            given_rest = F * (loss(up) - baseline) * f / F - (loss(down) - baseline) * f
            assert np.allclose(given_rest, f * (loss(up) - loss(down)), atol=1e-9)
            _, v = moments(value, p)
            excess = f**2 / (F * (1 - F)) * (p @ (baseline - best) ** 2)
            assert v == pytest.approx(v_local + excess, rel=1e-9, abs=1e-9)
            assert v >= v_local - 1e-9
        assert excess == 0  # at b = b*


def test_a_baseline_may_be_random() -> None:
    """Leave-one-out's is: the loss at an independent state."""
    noise, a, loss = LOGISTIC, np.array([0.7, -0.3, 1.2]), at(np.arange(8.0) ** 2)
    x, p = ref.states(3), probabilities(LOGISTIC, a)
    i, k = np.divmod(np.arange(64), 8)
    s = x * noise.pdf(a) / noise.cdf(x * a)
    mean, v = moments((loss(x[i]) - loss(x[k]))[:, None] * s[i], p[i] * p[k])
    _, v_local = moments(noise.pdf(a) * flips(loss, x), p)
    for c in range(3):
        up, down = (np.where(np.arange(3) == c, t, x) for t in (1.0, -1.0))
        F = noise.cdf(a[c])
        best = (1 - F) * loss(up) + F * loss(down)
        gap = (p[:, None] * p * (loss(x) - best[:, None]) ** 2).sum()
        assert v[c] == pytest.approx(v_local[c] + noise.pdf(a[c]) ** 2 / (F * (1 - F)) * gap)
    assert close(mean, gradient(noise, loss, a), 100)


def rough(x: Array) -> Array:
    return np.sin(3 * x[..., 0] + x[..., 1]) * np.exp(x[..., 2])


def test_the_first_numbers() -> None:
    out = printed(containing(PATH, "score3 = L3"))
    first, second, third = (np.array(re.findall(r"-?\d\.\d+", r), float) for r in
                            out.strip().split("\n"))  # fmt: skip
    v = variances(LOGISTIC, np.array([0.7, -0.3, 1.2]), rough)
    assert np.allclose(first, v["REINFORCE"], atol=1e-6) and np.allclose(first, second)
    assert np.allclose(third, v["local"], atol=1e-6)
    gone = 1 - third / first
    assert gone[0] > 0.99 and 0.4 < gone[2] < 0.6 and 0.05 < gone[1] < 0.15


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_interaction_no_variance(n: int) -> None:
    rng = np.random.default_rng(n)
    c, rest = rng.normal(size=n), rng.normal(size=2**n)

    def loss(x: Array) -> Array:
        return x @ c + at(rest)(np.where(np.arange(n) == 0, 1, x))

    assert variances(LOGISTIC, rng.normal(size=n), loss)["local"][0] < 1e-24


# ------------------------------------------------------------------------------ in depth


def runs_above(p: Array, q: Array, values: Table) -> tuple[Array, Array, Array]:
    """Losses of two runs with the same uniforms, p and q the probabilities above; weights."""
    units = []
    for pair in zip(p, q, strict=True):
        cuts = np.sort([0, *pair, 1])
        units.append((cuts[:-1] / 2 + cuts[1:] / 2, np.diff(cuts)))
    u = np.array(list(itertools.product(*(u for u, _ in units))))
    w = np.array(list(itertools.product(*(w for _, w in units)))).prod(1)
    return values(np.where(u < p, 1, -1)), values(np.where(u < q, 1, -1)), w


def covariance(p: Array, q: Array, values: Table) -> float:
    one, other, w = runs_above(p, q, values)
    return float(w @ (one * other) - (w @ one) * (w @ other))


@pin(
    "prop-05-common",
    r"""
    Let $u$ be the [uniform numbers](nota-uniform) that the units above draw, and $u'$ an
    independent copy. For a fixed state $x_{-i}$ let $\ell_\pm(u)$ be the loss of the run from
    $x_i=\pm1$. Then {eq-05-common} If there is one binary layer above, and the loss is monotone
    in each of its units, in a direction that may differ from unit to unit but does not depend
    on the other units, then the covariance is not negative.
    """,
)
@pin(
    "eq-05-common",
    r"""
    \begin{aligned} \mathrm{Var}\bigl[\ell_+(u)-\ell_-(u)\bigr]=\
    &\mathrm{Var}\bigl[\ell_+(u)-\ell_-(u')\bigr]\\
    &-2\,\mathrm{Cov}\bigl[\ell_+(u),\ell_-(u)\bigr]. \end{aligned}
    """,
)
@examples
@given(
    p=arrays(float, 3, elements=st.floats(0.01, 0.99)),
    q=arrays(float, 3, elements=st.floats(0.01, 0.99)),
    steps=arrays(float, 8, elements=st.floats(0, 3)),
    directions=st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3),
)
def test_prop_05_common(p: Array, q: Array, steps: Array, directions: list[int]) -> None:
    """A monotone loss is a sum of steps of which each starts at some state and stays."""

    def values(x: Array) -> Array:
        y = np.asarray(x) * directions
        return sum(s * (y >= t).all(-1) for s, t in zip(steps, ref.states(3), strict=True))

    one, other, w = runs_above(p, q, values)
    cov = covariance(p, q, values)
    assert cov >= -1e-9
    var = moments(one - other, w)[1]
    fresh = moments(one, w)[1] + moments(other, w)[1]  # of independent runs
    assert var == pytest.approx(fresh - 2 * cov, abs=1e-9)


def test_exclusive_or_is_the_counterexample() -> None:
    def values(x: Array) -> Array:
        return x[..., 0] * x[..., 1]

    p, q = np.array([0.5, 1.0]), np.array([0.5, 0.0])
    one, other, w = runs_above(p, q, values)
    shared, apart = moments(one - other, w)[1], moments(one, w)[1] + moments(other, w)[1]
    assert (shared, apart) == (4, 2)
    assert "the difference is $\\pm2$, of variance 4, and with fresh ones its variance is 2" in (
        prose(PATH)
    )


W1, B1 = np.array([[2.0, 2], [-2, -2], [2, -2]]), np.array([-2.0, -2, -2])
W2, B2 = np.array([[2.0, 2, -2], [2, 2, 0]]), np.array([0.0, 2])
INPUTS = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])


def softplus_loss(y: float) -> Table:
    return lambda x: np.logaddexp(0, -y * np.sum(x, -1))


def flip_variance(values: Table, v: Array, common: bool) -> float:
    """Local expectation at the first layer of the running network, by runs with nodes."""
    a, x = W1 @ v + B1, ref.states(3)
    f, p, total = LOGISTIC.pdf(a), probabilities(LOGISTIC, a), 0.0
    for i in range(3):
        mean = square = 0.0
        for state, weight in zip(x, p, strict=True):
            up, down = (np.where(np.arange(3) == i, s, state) for s in (1.0, -1.0))
            probs = (LOGISTIC.cdf(W2 @ t + B2) for t in (up, down))
            one, other, w = runs_above(*probs, values)
            gap = w @ one - w @ other
            var = moments(one - other, w)[1]
            if not common:
                var = moments(one, w)[1] + moments(other, w)[1]
            mean, square = mean + weight * gap, square + weight * (var + gap**2)
        total += f[i] ** 2 * (square - mean**2)
    return total


def test_fresh_runs_add_a_term_to_what_local_expectation_removes() -> None:
    """REINFORCE and local expectation at the first layer of 3-2, by enumeration of their runs."""
    y, v, x = 1.0, INPUTS[1], ref.states(3)
    values, a = softplus_loss(y), W1 @ INPUTS[1] + B1
    p, f, F, top = probabilities(LOGISTIC, a), LOGISTIC.pdf(a), LOGISTIC.cdf(a), ref.states(2)
    law = np.array([probabilities(LOGISTIC, W2 @ t + B2) for t in x])  # (8, 4)
    mean, square = law @ values(top), law @ values(top) ** 2
    spread = square - mean**2
    for i in range(3):
        up, down = (at(t)(np.where(np.arange(3) == i, s, x)) for t, s in ((mean, 1), (mean, -1)))
        v_up, v_down = (at(spread)(np.where(np.arange(3) == i, s, x)) for s in (1, -1))
        score = x[:, i] * f[i] / np.where(x[:, i] > 0, F[i], 1 - F[i])
        g = p @ (mean * score)
        reinforce = p @ (square * score**2) - g**2
        local = f[i] ** 2 * (p @ (v_up + v_down + (up - down) ** 2)) - g**2
        best = (1 - F[i]) * up + F[i] * down
        excess = f[i] ** 2 / (F[i] * (1 - F[i])) * (p @ best**2)
        odds = (1 - F[i]) / F[i]
        further = f[i] ** 2 * (p @ (odds * v_up + v_down / odds))
        assert reinforce == pytest.approx(local + excess + further, rel=1e-12)
        assert further > 0.001 * excess
    fresh = flip_variance(values, v, False)
    assert fresh == pytest.approx(sum_of_local(a, mean, spread), rel=1e-9)


def sum_of_local(a: Array, mean: Array, spread: Array) -> float:
    p, f, x, total = probabilities(LOGISTIC, a), LOGISTIC.pdf(a), ref.states(3), 0.0
    for i in range(3):
        (up, v_up), (down, v_down) = (
            [at(t)(np.where(np.arange(3) == i, s, x)) for t in (mean, spread)] for s in (1, -1)
        )
        g = f[i] * (p @ (up - down))
        total += f[i] ** 2 * (p @ (v_up + v_down + (up - down) ** 2)) - g**2
    return total


def test_what_sharing_does_on_the_running_network() -> None:
    out = printed(containing(PATH, 'f"{label:24s} fresh'))
    (one, two) = [np.array(re.findall(r"\d\.\d{4}", r), float) for r in out.strip().split("\n")]
    y = INPUTS.prod(1)
    for got, values in ((one, [softplus_loss(t) for t in y]), (two, [lambda x: x.prod(-1)] * 4)):
        want = [np.mean([flip_variance(values[b], INPUTS[b], c) for b in range(4)])
                for c in (False, True)]  # fmt: skip
        assert np.allclose(got, want, atol=6e-5)
    assert one[1] / one[0] == pytest.approx(0.8, abs=0.02), "a fifth off"
    assert two[1] / two[0] == pytest.approx(1.03, abs=0.005), "three percent"
    assert "take a fifth off the variance" in prose(PATH) and "add three percent" in prose(PATH)


# -------------------------------------------------------------------------------- the pair


@pin(
    "eq-05-pair",
    r"""
    \begin{aligned} x_i&=+1\ \text{ where }\ u_i>F(-a_i),\\ \tilde x_i&=+1\ \text{ where }\
    u_i<F(a_i), \end{aligned}
    """,
)
@noises
def test_eq_05_pair(noise: object) -> None:
    """Right margins, a disagreement that no coupling exceeds, and the partner is x at 1 - u."""
    u = (np.arange(100_000) + 0.5) / 100_000
    for a in inside(noise, 6, 3):
        x, partner = pair_of(noise, a, u)
        assert (x > 0).mean() == pytest.approx(noise.cdf(a), abs=2e-5)
        assert (partner > 0).mean() == pytest.approx(noise.cdf(a), abs=2e-5)
        assert (x != partner).mean() == pytest.approx(2 * noise.cdf(-abs(a)), abs=4e-5)
        assert (partner == pair_of(noise, a, 1 - u)[0]).all()


@pytest.mark.slow
@pin(
    "thm-05-arm",
    r"""
    Let $u$ be uniform on $[0,1]^n$ and $x,\tilde x$ as in {eq}`eq-05-pair`, with symmetric $F$
    that has the derivative $f(a_i)$ at $a_i$, and $0<F(a_i)<1$. For every loss, {eq-05-arm} is
    unbiased.
    """,
)
@pin(
    "eq-05-arm",
    r"""
    \hat g_i^{\mathrm{ARM}}=\bigl(L(x)-L(\tilde
    x)\bigr)\,\bigl(u_i-\tfrac12\bigr)\,\frac{f(a_i)}{F(a_i)\,F(-a_i)}
    """,
)
@noises
@examples
@given(table=tables, seed=st.integers(0, 99))
def test_thm_05_arm(noise: object, table: Array, seed: int) -> None:
    a, loss = inside(noise, 3, seed), at(table)
    u, w = nodes(noise, a)
    assert close(w @ arm_of(noise, a, loss, u), gradient(noise, loss, a), 10)


def test_symmetry_is_needed() -> None:
    noise, a, loss = Gumbel(), np.array([0.4, -0.3]), at(np.array([1.0, -2, 0.5, 3]))
    u, w = nodes(noise, a)
    exact = noise.pdf(a) * (probabilities(noise, a) @ flips(loss, ref.states(2)))
    assert np.abs(w @ arm_of(noise, a, loss, u) - exact).max() > 0.05


def test_logistic_noise_has_the_published_form() -> None:
    a = np.linspace(-4, 4, 9)
    assert np.allclose(LOGISTIC.pdf(a) / (LOGISTIC.cdf(a) * LOGISTIC.cdf(-a)), 1)


@pin(
    "thm-05-disarm",
    r"""
    Under the assumptions of {prf:ref}`thm-05-arm`, and with $[\,\cdot\,]=1$ if the statement in
    it holds and 0 otherwise, {eq-05-disarm} It is unbiased, and with $d_i$ for the length of
    the piece of the unit interval in which $u_i$ fell, $F(-|a_i|)$ at the two ends and
    $1-2F(-|a_i|)$ between them, {eq-05-gap}
    """,
)
@pin(
    "eq-05-disarm",
    r"""
    \mathbb{E}\bigl[\hat g_i^{\mathrm{ARM}}\bigm|x,\tilde x\bigr]=\tfrac12\bigl(L(x)-L(\tilde
    x)\bigr)\,x_i\,[x_i\ne\tilde x_i]\,\frac{f(a_i)}{F(-|a_i|)}=:\hat g_i^{\mathrm{DisARM}} .
    """,
)
@pin(
    "eq-05-gap",
    r"""
    \mathrm{Var}\,\hat g_i^{\mathrm{ARM}}=\mathrm{Var}\,\hat
    g_i^{\mathrm{DisARM}}+\frac{f(a_i)^2}{12\,F(a_i)^2F(-a_i)^2}\,\mathbb{E}\bigl[(L(x)-L(\tilde
    x))^2\,d_i^2\bigr].
    """,
)
@noises
@examples
@given(table=tables, seed=st.integers(0, 99))
def test_thm_05_disarm(noise: object, table: Array, seed: int) -> None:
    a, loss = inside(noise, 3, seed), at(table)
    u, w = nodes(noise, a)
    arm, disarm = arm_of(noise, a, loss, u), disarm_of(noise, a, loss, u)
    x, partner = pair_of(noise, a, u)
    pairs = rows(x) * 8 + rows(partner)
    for k in np.unique(pairs):  # the conditional mean, pair by pair
        inside_ = pairs == k
        mean = w[inside_] @ arm[inside_] / w[inside_].sum()
        assert np.allclose(mean, disarm[inside_], atol=1e-9)
    assert close(w @ disarm, gradient(noise, loss, a), 10)
    q = noise.cdf(-np.abs(a))
    d = np.where(x != partner, q, 1 - 2 * q)
    square = (loss(x) - loss(partner))[:, None] ** 2
    factor = noise.pdf(a) ** 2 / (12 * noise.cdf(a) ** 2 * noise.cdf(-a) ** 2)
    added = factor * (w @ (square * d**2))
    v_arm, v_disarm = moments(arm, w)[1], moments(disarm, w)[1]
    assert np.allclose(v_arm, v_disarm + added, rtol=1e-8, atol=1e-8)
    assert (v_disarm <= v_arm + 1e-9).all()


@pytest.mark.parametrize("name", ref.NOISES)
def test_by_hand_and_library_are_the_formulas(name: str) -> None:
    noise, loss = ref.RefNoise(name), ref.smooth_loss(3, seed=1)
    a, law = inside(noise, 3, 0), getattr(sbnlib, name)()
    u = np.random.default_rng(0).uniform(size=(50, 3))
    by_hand = define(PATH, "arm_and_disarm")["arm_and_disarm"]
    hand = by_hand(loss.torch, torch.tensor(a), torch.tensor(u), law)
    for k, formula in enumerate((arm_of, disarm_of)):
        want = formula(noise, a, lambda x: loss.value(x, 0), u)
        assert np.allclose(hand[k].numpy(), want, atol=1e-12)
        leaf = torch.tensor(a).requires_grad_()
        function = (sbnlib.arm, sbnlib.disarm)[k]
        function(loss.torch, leaf, law, generator=torch.Generator().manual_seed(3)).backward()
        drawn = torch.rand(1, 3, generator=torch.Generator().manual_seed(3)).numpy()
        want = formula(noise, a, lambda x: loss.value(x, 0), drawn)
        assert np.allclose(leaf.grad.numpy(), want[0], atol=1e-12)


def test_what_the_cells_about_the_pair_print() -> None:
    assert "by hand = library in 200 of 200" in printed(containing(PATH, "by hand = library"))
    table = printed(containing(PATH, "cube_of_u = ")).strip().split("\n")[1:]
    for row in table:
        name, *numbers = row.split()
        exact, *means = np.array(numbers, float).reshape(3, 3)
        noise, p = ref.RefNoise(name), np.array([0.7, 0.4, 0.55])
        a = ref.LAWS[name].icdf(p)
        assert np.allclose(exact, gradient(noise, rough, a), atol=6e-4)
        assert np.allclose(means, exact, atol=1e-12), name


# ------------------------------------------------------------------------ units that decide


@pin(
    "prop-05-decided",
    r"""
    With $q_i=F(-|a_i|)$, the second moment of DisARM is {eq-05-decided} At scale 1, as $q\to0$,
    the weight and this factor behave as follows for the six [noise models](nota-noise-models).
    | noise | $f/q$ | limit of $f/q$ | limit of $f^2/2q$ | |---|---|---|---| | logistic | $1-q$
    | 1 | 0 | | Gaussian | $\sim\lvert a\rvert$ | $\infty$ | 0 | | Cauchy | $\sim1/\lvert
    a\rvert$ | 0 | 0 | | fast sigmoid | $1/(1+\lvert a\rvert)$ | 0 | 0 | | triangular |
    $2/(1-\lvert a\rvert)$ | $\infty$ | 1 | | uniform | $1/(1-\lvert a\rvert)$ | $\infty$ |
    $\infty$ |
    """,
)
@pin(
    "eq-05-decided",
    r"""
    \mathbb{E}\bigl(\hat
    g_i^{\mathrm{DisARM}}\bigr)^2=\frac{f(a_i)^2}{2q_i}\;\mathbb{E}\bigl[(L(x)-L(\tilde
    x))^2\bigm|x_i\ne\tilde x_i\bigr].
    """,
)
@noises
@examples
@given(table=tables, seed=st.integers(0, 99))
def test_eq_05_decided(noise: object, table: Array, seed: int) -> None:
    a, loss = inside(noise, 3, seed), at(table)
    u, w = nodes(noise, a)
    x, partner = pair_of(noise, a, u)
    square = (loss(x) - loss(partner)) ** 2
    second = w @ disarm_of(noise, a, loss, u) ** 2
    for i in range(3):
        differ = w * (x[:, i] != partner[:, i])
        factor = noise.pdf(a[i]) ** 2 / (2 * noise.cdf(-abs(a[i])))
        assert second[i] == pytest.approx(factor * (differ @ square) / differ.sum(), abs=1e-9)


LIMITS = {
    "logistic": ("Logistic", lambda a, q: 1 - q),
    "Gaussian": ("Gaussian", lambda a, q: a),
    "Cauchy": ("Cauchy", lambda a, q: 1 / a),
    "fast sigmoid": ("FastSigmoid", lambda a, q: 1 / (1 + a)),
    "triangular": ("Triangular", lambda a, q: 2 / (1 - a)),
    "uniform": ("Uniform", lambda a, q: 1 / (1 - a)),
}


def test_the_table_of_the_price() -> None:
    """Each formula at small q (relative error of the asymptotic ones below 1 %), each limit."""
    rows_ = re.findall(r"^\| (.+) \|$", prose(PATH).partition("limit of $f/q$")[2], re.M)[:6]
    assert len(rows_) == 6
    for row in rows_:
        label, _, ratio_limit, factor_limit = (c.strip(" $") for c in row.split(" | "))
        name, formula = LIMITS[label]
        ratios, factors = [], []
        for q in (1e-3, 1e-8, 1e-13):
            a = abs(float(ref.LAWS[name].icdf(np.array(q))))
            if label in ("triangular", "uniform"):  # 1 - a without cancellation
                rest = np.sqrt(2 * q) if label == "triangular" else 2 * q
                f = rest if label == "triangular" else 0.5
            else:
                f = ref.RefNoise(name).pdf(a)
            ratios.append(f / q)
            factors.append(f**2 / (2 * q))
            assert f / q == pytest.approx(formula(a, q), rel=0.1 if q > 1e-4 else 0.03), label
        for got, limit in ((ratios, ratio_limit), (factors, factor_limit)):
            if limit == "\\infty":
                assert got[2] > 1.2 * got[1] > 1.4 * got[0]
            elif limit == "0":
                assert got[2] < got[1] / 5 < got[0] / 25
            else:
                assert got[2] == pytest.approx(float(limit), rel=1e-3)
    for q in (0.5, 0.1, 1e-6):
        assert 2 <= (1 / (q * (1 - q))) / (1 / (2 * q)) <= 4  # REINFORCE's score


# ------------------------------------------------------------------------ what is a theorem


@pin(
    "thm-05-order",
    r"""
    Let one estimate of each of REINFORCE, leave-one-out with two samples, ARM, DisARM and local
    expectation be drawn for a layer of independent units with symmetric noise, $f$ the
    derivative of $F$ at $a$, $0<F(a_i)<1$. For all $n$, $a$ and $L$, and in every coordinate,
    {eq-05-order} For each of the other seventeen ordered pairs there is a loss and a point $a$,
    with logistic noise, where the first estimator has the larger total variance.
    """,
)
@pin(
    "eq-05-order",
    r"""
    \begin{gathered} \mathrm{Var}\,\hat g^{\mathrm{LE}}\le\mathrm{Var}\,\hat
    g^{\mathrm{R}},\qquad\mathrm{Var}\,\hat g^{\mathrm{LE}}\le\mathrm{Var}\,\hat
    g^{\mathrm{LOO}},\\ \mathrm{Var}\,\hat g^{\mathrm{DisARM}}\le\mathrm{Var}\,\hat
    g^{\mathrm{ARM}} . \end{gathered}
    """,
)
@noises
@examples
@given(table=tables, seed=st.integers(0, 99))
def test_eq_05_order(noise: object, table: Array, seed: int) -> None:
    v = variances(noise, inside(noise, 3, seed), at(table))
    assert (v["local"] <= v["REINFORCE"] + 1e-9).all()
    assert (v["local"] <= v["LOO"] + 1e-9).all()
    assert (v["DisARM"] <= v["ARM"] + 1e-9).all()


WITNESS: dict[str, tuple[Array, Table]] = {
    "1": (np.zeros(4), lambda x: np.ones(len(x))),
    "x_4": (np.array([1.3, 1.3, 1.3, 0]), lambda x: x[:, 3] * 1.0),
    "x_1x_2": (np.zeros(4), lambda x: x[:, 0] * x[:, 1] * 1.0),
}


def test_every_cell_of_the_table_of_orders() -> None:
    text = prose(PATH)
    head, *body = re.findall(r"^\| .+ \|$", text[text.index("| row $\\le$ column") :], re.M)[:6]
    short = {"R": "REINFORCE", "LE": "local"}  # heads fit a phone, rows explain them
    heads = [c.strip() for c in head.strip("|").split("|")][1:]
    columns = [short.get(c, c) for c in heads]
    assert tuple(columns) == NAMES
    theorems, refuted = set(), 0
    v = {k: variances(LOGISTIC, *w) for k, w in WITNESS.items()}
    for line in body:
        row, *entries = (c.strip() for c in re.split(r"(?<!\\)\|", line.strip("|")))
        row, _, code = row.partition(" ")
        assert code.strip("()") == (heads[columns.index(row)] if row in short.values() else "")
        for column, entry in zip(columns, entries, strict=True):
            if row == column:
                assert entry == ""
            elif entry == "**theorem**":
                theorems.add((row, column))
            else:
                total = {k: x.sum() for k, x in v[entry.strip("$")].items()}
                assert total[row] > total[column] + 1e-3, (row, column)
                refuted += 1
    assert theorems == {("local", "REINFORCE"), ("local", "LOO"), ("DisARM", "ARM")}
    assert refuted == 17
    out = printed(containing(PATH, "lonely = ")).strip().split("\n")[1:]
    for line, w in zip(out, v.values(), strict=True):
        got = [float(t) for t in line.split()[-5:]]
        assert np.allclose(got, [w[k].sum() for k in NAMES], atol=6e-5)


@pin(
    "prop-05-loo",
    r"""
    Under the assumptions of {prf:ref}`thm-05-order`, in every coordinate, {eq-05-loo} and for
    no smaller factor that depends on $a_i$ only is this true for every loss.
    """,
)
@pin(
    "eq-05-loo",
    r"""
    \mathrm{Var}\,\hat
    g_i^{\mathrm{DisARM}}\le2\max\bigl(F(a_i),F(-a_i)\bigr)\,\mathrm{Var}\,\hat
    g_i^{\mathrm{LOO}},
    """,
)
@noises
@examples
@given(table=tables, seed=st.integers(0, 99))
def test_eq_05_loo(noise: object, table: Array, seed: int) -> None:
    a = inside(noise, 3, seed)
    v, factor = variances(noise, a, at(table)), 2 * np.maximum(noise.cdf(a), noise.cdf(-a))
    assert (v["DisARM"] <= factor * v["LOO"] + 1e-9).all()
    a[1] = 0.0  # the loss x_2 attains it in unit 1
    v = variances(noise, a, lambda x: x[:, 1] * 1.0)
    assert v["DisARM"][0] == pytest.approx(factor[0] * v["LOO"][0], rel=1e-9)


def test_disarm_is_worse_than_leave_one_out_in_single_coordinates() -> None:
    g, worse, x = torch.Generator().manual_seed(0), 0, ref.states(4)
    for _ in range(400):
        A, c = torch.randn(4, 4, generator=g).numpy(), torch.randn(4, generator=g).numpy()
        a = 4 * torch.rand(4, generator=g).numpy() - 2
        v = variances(LOGISTIC, a, at(np.einsum("si,ij,sj->s", x, A, x) / 2 + x @ c))
        worse += bool((v["DisARM"] > v["LOO"]).any())
    assert worse == 105
    assert "in every case, though not in every coordinate" in prose(PATH)


def ensemble(linear: float) -> tuple[Array, Array]:
    g, comparisons, relative = torch.Generator().manual_seed(0), np.zeros((5, 5), int), []
    x = ref.states(4)
    for _ in range(400):
        A = torch.randn(4, 4, generator=g).numpy()
        c = linear * torch.randn(4, generator=g).numpy()
        a = 4 * torch.rand(4, generator=g).numpy() - 2
        table = np.einsum("si,ij,sj->s", x, A, x) / 2 + x @ c
        v = np.array([t.sum() for t in variances(LOGISTIC, a, at(table)).values()])
        exact = LOGISTIC.pdf(a) * (probabilities(LOGISTIC, a) @ flips(at(table), x))
        comparisons += v[:, None] <= v + 1e-12
        relative.append(v / (exact @ exact))
    return comparisons, np.sort(relative, 0)[199]  # as torch has it


@pytest.mark.slow
def test_the_ensemble() -> None:
    out = printed(containing(PATH, "of 400:")).strip().split("\n")
    counts, middle = ensemble(1.0)
    assert [[int(v) for v in line.split()[-5:]] for line in out[1:6]] == counts.tolist()
    calls = np.array([1, 2, 2, 2, 5])
    for line, want in ((out[6], middle), (out[7], middle * calls)):
        assert np.allclose([float(v) for v in line.split()[-5:]], want, atol=6e-3)
    R, LOO, ARM, DIS, LE = range(5)
    assert 400 - counts[ARM, R] == 127 and 400 - counts[DIS, R] == 27
    assert 400 - counts[LE, DIS] == 4 and counts[DIS, LOO] == 400
    text = prose(PATH)
    assert "loses to REINFORCE on 127 of the 400 losses, and DisARM on 27" in text
    assert "loses to DisARM on 4." in text and "ARM loses on 48 only" in text
    even, _ = ensemble(0.0)
    assert even[ARM, R] == 352 == int(out[8].split()[-1])
    by_call = middle * calls
    assert by_call[LE] < by_call[R] < min(by_call[[LOO, ARM, DIS]])


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_product_of_all_bits(n: int) -> None:
    """Local expectation, REINFORCE and leave-one-out have one variance there, in each unit."""
    v = variances(LOGISTIC, np.zeros(n), lambda x: x.prod(-1) * 1.0)
    for name in ("local", "REINFORCE", "LOO"):
        assert np.allclose(v[name], 4 / 16), name


# ------------------------------------------------------------------------------ fair coins


@pin(
    "prop-05-fair",
    r"""
    At $a=0$, with $g_i$ for the exact gradient and $f=f(0)$, for every loss {eq-05-fair} So
    DisARM's variance is at most REINFORCE's, and ARM's is larger than REINFORCE's exactly where
    $\mathbb{E}L_{\mathrm{even}}^2<\tfrac13\,\mathbb{E}L_{\mathrm{odd}}^2$.
    """,
)
@pin(
    "eq-05-fair",
    r"""
    \begin{aligned} \mathrm{Var}\,\hat
    g_i^{\mathrm{R}}&=4f^2\bigl(\mathbb{E}L_{\mathrm{odd}}^2+\mathbb{E}L_{\mathrm{even}}^2\bigr)-g_i^2,\\
    \mathrm{Var}\,\hat g_i^{\mathrm{DisARM}}&=4f^2\,\mathbb{E}L_{\mathrm{odd}}^2-g_i^2,\\
    \mathrm{Var}\,\hat g_i^{\mathrm{ARM}}&=\tfrac{16}3f^2\,\mathbb{E}L_{\mathrm{odd}}^2-g_i^2 .
    \end{aligned}
    """,
)
@noises
@examples
@given(table=tables)
def test_eq_05_fair(noise: object, table: Array) -> None:
    a, loss, x = np.zeros(3), at(table), ref.states(3)
    f = noise.pdf(0.0)
    odd, even = (loss(x) - loss(-x)) / 2, (loss(x) + loss(-x)) / 2
    o, e = (odd**2).mean(), (even**2).mean()
    g = f * flips(loss, x).mean(0)
    v = variances(noise, a, loss)
    assert np.allclose(v["REINFORCE"], 4 * f**2 * (o + e) - g**2, atol=1e-9)
    assert np.allclose(v["DisARM"], 4 * f**2 * o - g**2, atol=1e-9)
    assert np.allclose(v["ARM"], 16 / 3 * f**2 * o - g**2, atol=1e-9)
    if abs(e - o / 3) > 1e-6:
        assert ((v["ARM"] > v["REINFORCE"]) == (e < o / 3)).all()


# --------------------------------------------------------------------- the notebook's sums


@pytest.mark.parametrize("noise", NOISES[:6], ids=lambda n: n.name)
def test_the_enumeration_of_the_notebook(noise: object) -> None:
    """second_moments, with and without noise of the loss itself."""
    space = define(PATH, "states", "up_down", "second_moments")
    law = getattr(sbnlib, noise.name)(noise.scale)
    rng = np.random.default_rng(1)
    for n in (1, 2, 3):
        a, L = inside(noise, n, n), rng.normal(size=2**n)
        got = space["second_moments"](torch.tensor(a), torch.tensor(L**2),
                                      torch.tensor(np.outer(L, L)), law)  # fmt: skip
        for name, (values, w) in estimates(noise, a, at(L)).items():
            assert np.allclose(got[name].numpy(), w @ values**2, atol=1e-12), name


def noisy_second_moments(a: Array, m: Array, s: Array) -> dict[str, Array]:
    """The same for a loss of mean m and mean square s at each state, its runs independent."""
    noise, x, p = LOGISTIC, ref.states(len(a)), probabilities(LOGISTIC, a)
    f, q = noise.pdf(a), noise.cdf(-np.abs(a))

    def gap2(i: Array, j: Array) -> Array:
        return s[i] + s[j] - 2 * m[i] * m[j]

    score = x * f / noise.cdf(x * a)
    i, j = np.divmod(np.arange(len(x) ** 2), len(x))
    u, w = nodes(noise, a)
    pair = [rows(t) for t in pair_of(noise, a, u)]
    turned = (pair_of(noise, a, u)[0] != pair_of(noise, a, u)[1]) * f / q / 2
    sides = [[rows(np.where(np.arange(len(a)) == k, t, x)) for k in range(len(a))]
             for t in (1, -1)]  # fmt: skip
    return {
        "REINFORCE": (p * s) @ score**2,
        "LOO": (p[i] * p[j] * gap2(i, j)) @ (score[i] - score[j]) ** 2 / 4,
        "ARM": (w * gap2(*pair)) @ ((u - 0.5) * f / (q * (1 - q))) ** 2,
        "DisARM": (w * gap2(*pair)) @ turned**2,
        "local": f**2 * np.array([p @ gap2(*k) for k in zip(*sides, strict=True)]),
    }


def test_the_heads_stand_over_their_columns() -> None:
    head, *body = lines_of(containing(PATH, "def network_variances"))
    for line in body:
        columns = re.match(r"\S+ +(\d|n \+ 1) +(\d+\.\d)", line)
        for k, name in ((1, " runs a layer"), (2, " exact")):
            assert head[: columns.end(k)].endswith(name)


def test_the_running_network() -> None:
    """The column "exact", by sums of our own, and the library's samples beside it."""
    total, whole = dict.fromkeys(NAMES, 0.0), np.zeros(17)
    for v in INPUTS:
        values = softplus_loss(v.prod())(ref.states(2))
        a1, below = W1 @ v + B1, ref.states(3)
        p1 = probabilities(LOGISTIC, a1)
        top = [W2 @ x + B2 for x in below]
        law = np.array([probabilities(LOGISTIC, a) for a in top])
        m, s = law @ values, law @ values**2
        first = noisy_second_moments(a1, m, s)
        d1 = LOGISTIC.pdf(a1) * (p1 @ flips(at(m), below))
        d2 = np.array([LOGISTIC.pdf(a) * (w @ flips(at(values), ref.states(2)))
                       for a, w in zip(top, law, strict=True)])  # fmt: skip
        g = np.concatenate([np.outer(d1, v).ravel(), d1, (p1 * d2.T @ below).ravel(), p1 @ d2])
        whole += g / 4
        for name in NAMES:
            up = [noisy_second_moments(a, values, values**2)[name].sum() for a in top]
            total[name] += (3 * first[name].sum() + 4 * (p1 @ up) - g @ g) / 16
    out = printed(containing(PATH, "def network_variances")).strip().split("\n")[1:]
    for line, name in zip(out, NAMES, strict=True):
        numbers = [float(t) for t in re.findall(r"\d+\.\d", line)]
        exact = total[name] / (whole @ whole)
        assert numbers[0] == pytest.approx(exact, abs=0.06), name
        assert numbers[1] == pytest.approx(exact, abs=4 * numbers[2] + 0.06), name
    ratio = {k: v / (whole @ whole) for k, v in total.items()}
    assert ratio["local"] < 2 and min(v for k, v in ratio.items() if k != "local") > 20
    two = ratio["REINFORCE"] / 2
    assert round(two) == 28 and ratio["LOO"] < two < ratio["ARM"]
    assert ratio["DisARM"] < two


# ---------------------------------------------------------------------------------- figures


def test_fig_cube() -> None:
    looks = define(PATH, "looks")["looks"]
    drawn = np.array([1, 1, -1])
    assert np.array(looks("one state")).tolist() == [drawn.tolist()]
    edges = np.array(looks("state and neighbours"))
    assert (np.abs(edges[1:] - drawn).sum(1) == 2).all() and len({*map(tuple, edges)}) == 4
    (_, partner) = looks("antithetic pair")
    assert (partner != drawn).sum() == 2, "the caption: two of three differ"
    flat = np.array([[1.0, 0.1], [0.45, 0.35], [0.0, 1.0]])
    for ax in still(PATH, "fig-05-cube"):
        seen = np.array(looks(ax.get_title(loc="left"))) @ flat
        dots = lines(ax)[-2:]  # all that are seen, and the one that was drawn
        assert np.allclose(dots[0].T, seen) and np.allclose(dots[1][:, 0], seen[0])


@pytest.mark.parametrize("a", [0.0, 1.5, -3.0])
def test_fig_pair(a: float) -> None:
    top, low = axes(PATH, "pair", a=a)
    p, q, f = LOGISTIC.cdf(a), LOGISTIC.cdf(-abs(a)), LOGISTIC.pdf(a)
    zero, reinforce, arm, disarm = lines(low)[:4]
    u = np.array([0.01, 0.03, 0.3, 0.52, 0.77, 0.99])
    x, partner = pair_of(LOGISTIC, a, u)
    want = (x * f / np.where(x > 0, p, 1 - p), 2 * (u - 0.5) * f / (p * (1 - p)),
            x * (x != partner) * f / q)  # fmt: skip
    for line, y in zip((reinforce, arm, disarm), want, strict=True):
        assert np.allclose(np.interp(u, *line), y, atol=1e-9)
    assert top.get_title(loc="left") == f"differ in {200 * q:.0f} % of draws"
    filled = [c.get_paths()[0].vertices[:, 0] for c in top.collections]
    assert (filled[0].min(), filled[0].max()) == pytest.approx((0, p))  # the partner
    assert (filled[1].min(), filled[1].max()) == pytest.approx((1 - p, 1))


def test_the_answer_under_the_pair() -> None:
    assert 200 * LOGISTIC.cdf(-3.0) == pytest.approx(9, abs=0.5)
    assert LOGISTIC.pdf(3.0) / LOGISTIC.cdf(-3.0) == pytest.approx(0.95, abs=5e-3)


def test_fig_hazard() -> None:
    panels = still(PATH, "fig-05-hazard")
    order = ["Uniform", "Triangular", "Gaussian", "Logistic", "FastSigmoid", "Cauchy"]
    for k, name in enumerate(order):
        noise = ref.RefNoise(name)
        for panel, formula in ((0, lambda f, q: f / q), (1, lambda f, q: f**2 / (2 * q))):
            q, y = lines(panels[panel])[k]
            for j in (5, 30):
                f = noise.pdf(ref.LAWS[name].icdf(np.array(q[j])))
                assert y[j] == pytest.approx(formula(f, q[j]), rel=1e-8)


def mixture(even: float) -> Array:
    x = ref.states(4)
    odd = 0.8 * x[:, 0] - 0.5 * x[:, 1] + 0.3 * x[:, 2] + 0.1 * x[:, 3]
    odd = odd + x[:, 0] * x[:, 1] * x[:, 2] / 2
    pairs = x[:, 0] * x[:, 1] - 0.7 * x[:, 1] * x[:, 2] + 0.5 * x[:, 0] * x[:, 3]
    odd, pairs = odd / np.sqrt((odd**2).mean()), pairs / np.sqrt((pairs**2).mean())
    return np.sqrt(1 - even) * odd + np.sqrt(even) * pairs


@pytest.mark.parametrize(("even", "size"), [(0.5, 0.9), (0.2, 0.0), (0.8, 2.4)])
def test_fig_constant(even: float, size: float) -> None:
    (drawn,) = curves(PATH, "constant", even=even, size=size)
    a = size * np.array([1.0, -0.6, 0.8, -1.2])
    for name, (c, y) in zip(NAMES, drawn, strict=True):
        for k in (0, 7):
            want = variances(LOGISTIC, a, at(mixture(even) + c[k]))[name].sum()
            assert y[k] == pytest.approx(want, abs=1e-9), name
        assert (np.ptp(y) > 0.1) == (name == "REINFORCE"), "only REINFORCE sees the constant"
    assert (mixture(even) ** 2).mean() == pytest.approx(1)


def test_the_answer_under_the_constant() -> None:
    """ARM crosses REINFORCE's lowest point at a quarter; at size 0 the pair falls with 1 - even."""
    for even in (0.2, 0.3):
        v = {k: t.sum() for k, t in variances(LOGISTIC, np.zeros(4), at(mixture(even))).items()}
        assert (v["ARM"] > v["REINFORCE"]) == (even < 0.25)
    zero, some, all_ = (variances(LOGISTIC, np.zeros(4), at(mixture(e))) for e in (0, 0.4, 1))
    for name in ("ARM", "DisARM"):
        assert np.allclose(some[name], 0.6 * zero[name])
        assert all_[name].sum() < 1e-12 < all_["local"].sum()
    a = 2.7 * np.array([1.0, -0.6, 0.8, -1.2])  # not there: the even loss has its noise too
    assert min(variances(LOGISTIC, a, at(mixture(1)))[k].sum() for k in ("ARM", "DisARM")) > 0.2
    answer = under(figures(PATH)["fig-05-constant"])["answer"]
    assert answer.startswith("At size 0 ARM and DisARM fall in proportion to one minus")


@pytest.mark.slow
def test_fig_width() -> None:
    (axis,) = still(PATH, "fig-05-width")
    drawn = lines(axis)
    for k, name in enumerate(NAMES):
        widths, exact = drawn[2 * k]
        for n in (2, 5):
            g, total, norm2 = torch.Generator().manual_seed(n), 0.0, 0.0
            for _ in range(40):
                a = torch.randn(n, generator=g).numpy()
                w = 2 / n**0.5 * torch.randn(n, generator=g).numpy()
                table = np.logaddexp(0, -(ref.states(n) @ w))
                if name == "local" or n == 2:
                    total += estimates_total(a, table, name)
                else:
                    total = np.nan
                exact_g = LOGISTIC.pdf(a) * (
                    probabilities(LOGISTIC, a) @ flips(at(table), ref.states(n)))  # fmt: skip
                norm2 += exact_g @ exact_g
            cost = {"REINFORCE": 1, "local": n + 1}.get(name, 2)
            if np.isfinite(total):
                assert exact[list(widths).index(n)] == pytest.approx(cost * total / norm2, rel=1e-9)
        beside = np.array([16, 32, 64]) * 1.07 ** (k - 2)  # the marks stand side by side
        assert widths.tolist() == list(range(1, 9)) and np.allclose(drawn[2 * k + 1][0], beside)


def estimates_total(a: Array, table: Array, name: str) -> float:
    if name == "local":
        x, p = ref.states(len(a)), probabilities(LOGISTIC, a)
        return moments(LOGISTIC.pdf(a) * flips(at(table), x), p)[1].sum()
    return variances(LOGISTIC, a, at(table))[name].sum()


def test_the_words_about_width() -> None:
    rows_ = {n: dict(zip(NAMES, v, strict=True)) for n, v in printed_widths().items()}
    assert sorted(rows_) == [2, 4, 8, 16, 32, 64]
    for n, row in rows_.items():
        ahead = min(v for k, v in row.items() if k != "local") / row["local"]
        assert 5 < ahead < 9, n
        assert 0.1 < row["local"] / (n + 1) < 0.4, n
    for name in NAMES[:4]:
        assert rows_[64][name] / rows_[8][name] == pytest.approx(8, rel=0.15)
    table = printed(containing(PATH, "def sampled")).strip("\n").split("\n")
    assert len({len(row) for row in table}) == 1, "the heads stand over their columns"
    last = table[-1]
    pairs = re.findall(r"([\d.]+) \+- ?([\d.]+)", last)
    value = {k: (float(v), float(e)) for k, (v, e) in zip(NAMES, pairs, strict=True)}
    gap = value["ARM"][0] - value["REINFORCE"][0]
    assert abs(gap) < 2 * np.hypot(value["ARM"][1], value["REINFORCE"][1])
    assert value["DisARM"][0] / value["LOO"][0] == pytest.approx(0.94, abs=0.005)
    both = value["DisARM"][1] + value["LOO"][1]
    assert both < value["LOO"][0] - value["DisARM"][0] < 1.5 * both
    assert "with 64 about six percent less, hardly more than the errors of" in prose(PATH)
    assert rows_[2]["DisARM"] / rows_[2]["LOO"] < 0.65


def test_the_sampled_widths_agree_with_the_exact_ones() -> None:
    space = run(PATH, containing(PATH, "def sampled"))
    value, se = space["sampled"](8)
    exact = np.array(printed_widths()[8])
    assert (abs(value.numpy() - exact) < 4 * se.numpy() + 0.4 * exact).all()
    assert (se > 0).all()


def printed_widths() -> dict[int, list[float]]:
    found = {}
    for cell in ("def by_width", "def sampled"):
        for line in printed(containing(PATH, cell)).strip("\n").split("\n")[1:]:
            n, rest = re.match(r"n = (\d+)\s+(.*)", line).groups()
            found[int(n)] = [float(v.split("+-")[0]) for v in
                             re.findall(r"[\d.]+(?: \+- ?[\d.]+)?", rest)]  # fmt: skip
    return found


# ---------------------------------------------------------------------------------- exercises


def test_ex_05_order() -> None:
    """(a) and (c) hold on random losses; (b), (d) and (e) fail where the solution says."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, L = rng.normal(size=3), rng.normal(size=8)
        v = variances(LOGISTIC, a, at(L - probabilities(LOGISTIC, a) @ L))
        assert (v["local"] <= v["REINFORCE"] + 1e-12).all()
        assert (v["local"] / 2 <= v["LOO"] + 1e-12).all()
    v = {k: t.sum() for k, t in variances(LOGISTIC, *WITNESS["x_4"]).items()}
    assert v["DisARM"] > v["REINFORCE"]
    v = variances(LOGISTIC, np.zeros(1), lambda x: x[:, 0] * 1.0)
    assert v["DisARM"][0] < 1e-12 < v["ARM"][0]
    for n in (2, 3, 4):
        v = variances(LOGISTIC, np.zeros(n), lambda x: x.prod(-1) * 1.0)
        assert (v["local"] * (n + 1) > v["LOO"] * 2).all()
    assert 'check_order("ac")' in naming(PATH, "solution", "check_order").source


@pytest.mark.parametrize("a", [-1.1, 0.0, 0.8])
@pytest.mark.parametrize("power", [1, 3, 5])
def test_ex_05_family(a: float, power: int) -> None:
    """Odd powers of u - 1/2, scaled: unbiased, and DisARM is their conditional mean."""
    grid = (np.arange(200_000) + 0.5) / 200_000
    x, partner = pair_of(GAUSSIAN, a, grid)
    p, f, q = GAUSSIAN.cdf(a), GAUSSIAN.pdf(a), GAUSSIAN.cdf(-abs(a))
    w = (2 * grid - 1) ** power
    w = w * f / (w * (grid > 1 - p)).mean()
    delta, other = 1.7, -0.4  # L(+1) - L(-1), and the loss at -1
    L, M = (np.where(s > 0, delta + other, other) for s in (x, partner))
    assert (0.5 * (L - M) * w).mean() == pytest.approx(f * delta, rel=1e-4)
    for sign in (-1, 1):
        piece = (x == sign) & (x != partner)
        assert w[piece].mean() == pytest.approx(sign * f / q, rel=1e-3)
    if (x == partner).any():
        assert w[x == partner].mean() == pytest.approx(0, abs=1e-4)


@pytest.fixture(scope="module")
def space() -> dict:
    with as_in_the_book():
        return run(PATH, naming(PATH, "checker"))


def test_ex_05_linear(space: dict) -> None:
    solution = define(PATH, "disarm_variance")["disarm_variance"]
    rng = np.random.default_rng(8)
    for n in (1, 3):
        a, c = rng.normal(size=n), rng.normal(size=n)
        want = variances(GAUSSIAN, a, lambda x, c=c: x @ c)["DisARM"]
        assert np.allclose(solution(torch.tensor(a), torch.tensor(c)).numpy(), want, atol=1e-12)
    assert solution(torch.zeros(1000), torch.ones(1000)).shape == (1000,)


def disarm_linear(a: torch.Tensor, c: torch.Tensor, **change: object) -> torch.Tensor:
    """The mistakes of the checker, written anew."""
    normal = torch.distributions.Normal(0.0, 1.0)
    f, q = normal.log_prob(a).exp(), normal.cdf(-a.abs())
    weight = change.get("weight", f / q / 2)
    turned = change.get("turned", 8 * q) * c**2
    out = 2 * q * weight**2 * (4 * c**2 + turned.sum() - turned)
    return out - 4 * f**2 * c**2 * change.get("less", 1)


def tail(a: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(0.0, 1.0).cdf(-a.abs())


def density(a: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(a).exp()


WRONG = {
    "no half": (
        lambda a, c: disarm_linear(a, c, weight=density(a) / tail(a)),
        "the factor 1/2 of DisARM is missing",
    ),
    "logistic": (
        lambda a, c: disarm_linear(a, c, weight=(1 - tail(a)) / 2),
        "the weight of logistic noise",
    ),
    "independent": (
        lambda a, c: disarm_linear(a, c, turned=8 * tail(a) * (1 - tail(a))),
        "the partner is antithetic",
    ),
    "second moment": (lambda a, c: disarm_linear(a, c, less=0), "too large by 4 f^2 c_i^2"),
    "alone": (lambda a, c: disarm_linear(a, c, turned=0 * a), "the other units are turned over"),
    "zeros": (lambda a, c: 0 * a, "not the variance"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_checker_names_what_is_wrong(
    space: dict, name: str, capsys: pytest.CaptureFixture
) -> None:
    answer, hint = WRONG[name]
    capsys.readouterr()
    assert space["check"](answer) is False
    assert hint in capsys.readouterr().out


def test_the_checker_takes_what_is_right(space: dict) -> None:
    assert space["check"](disarm_linear) is True


@pytest.mark.parametrize("a", [3.01, 5.0])
def test_ex_05_break(a: float) -> None:
    v = variances(LOGISTIC, np.array([a]), lambda x: 1.0 + x[:, 0])
    p, f = LOGISTIC.cdf(a), LOGISTIC.pdf(a)
    assert v["REINFORCE"][0] == pytest.approx(4 * f**2 * (1 - p) / p, rel=1e-6)
    assert v["DisARM"][0] == pytest.approx(f**2 / (2 * (1 - p)) * 4 - 4 * f**2, rel=1e-6)
    assert v["ARM"][0] / v["REINFORCE"][0] > 100
    assert v["DisARM"][0] / v["REINFORCE"][0] == pytest.approx(1 / (2 * (1 - p) ** 2), rel=0.2)
    out = printed(containing(PATH, "lucky = "))
    v = variances(LOGISTIC, np.array([3.0]), lambda x: 1.0 + x[:, 0])
    want = [v[k][0] / v["REINFORCE"][0] for k in ("ARM", "DisARM")]
    assert np.allclose([float(k) for k in re.findall(r"\d+\n", out)], want, atol=0.6)


def test_ex_05_common() -> None:
    def values(x: Array) -> Array:
        return x[..., 0] * x[..., 1]

    for w in itertools.product([-3.0, -0.8, 0.0, 0.4, 1.0, 1.2, 2.5], repeat=2):
        p = special.expit(np.array(w))
        m1, m2 = np.abs(2 * p - 1)
        want = (1 - 2 * m1) * (1 - 2 * m2) - m1**2 * m2**2
        assert covariance(p, 1 - p, values) == pytest.approx(want, abs=1e-12)
        strong = [m > 0.5 for m in (m1, m2)]
        if any(strong):
            assert want <= 0
    for m, helps in ((2**0.5 - 1.01, True), (2**0.5 - 0.99, False)):  # equal shares
        assert ((1 - 2 * m) ** 2 > m**4) == helps and m < 0.5
    assert 2 * special.expit(np.log(3)) - 1 == pytest.approx(0.5)
    out = printed(containing(PATH, "def covariance"))
    for row in out.strip().split("\n"):
        w1, w2, got, formula = map(float, re.findall(r"-?\d+\.\d+", row))
        p = special.expit(np.array([w1, w2]))
        assert got == formula == pytest.approx(covariance(p, 1 - p, values), abs=6e-5)


def test_ex_05_common_mistakes() -> None:
    """Where the covariance changes its sign, by sums over both runs of one unit each."""
    check = checker(PATH, "check_common")

    def covariance(w: float) -> float:
        u = (np.arange(100_000) + 0.5) / 100_000
        up, down = (np.where(u < special.expit(s * w), 1.0, -1.0) for s in (1, -1))
        return (up * down).mean() ** 2 - (up.mean() * down.mean()) ** 2

    at = optimize.brentq(covariance, 0.5, 1.0, xtol=1e-5)
    assert check(at) and check("2*log(1 + sqrt(2)) - log(1 + sqrt(2))")
    mu = np.tanh(at / 2)
    third = optimize.brentq(lambda w: (1 - 2 * np.tanh(w / 2)) - np.tanh(w / 2), 0.1, 1)
    says_to(check, {mu: "which w", np.arctanh(mu): "not tanh(w)", np.log(3): "is zero",
                    third: "mu^4"})  # fmt: skip


def test_with_common_numbers_the_theorem_stands() -> None:
    """Given u the loss is a table L_u; a baseline may see u and the other units."""
    g, a = np.random.default_rng(4), np.array([0.8, -0.4])
    x, P = ref.states(2), probabilities(LOGISTIC, a)
    tables, kappas, weights = g.normal(size=(3, 4)), g.normal(size=3), np.array([0.2, 0.5, 0.3])
    p, f = float(LOGISTIC.cdf(a[0])), float(LOGISTIC.pdf(a[0]))
    s = x[:, 0] * f / np.where(x[:, 0] > 0, p, 1 - p)
    up, down = (np.array([rows(np.array([[sign, b]]))[0] for b in x[:, 1]]) for sign in (1.0, -1.0))
    score = [(L - k) * s for L, k in zip(tables, kappas, strict=True)]
    local = [f * (L[up] - L[down]) for L in tables]
    excess = [
        f**2 / (p * (1 - p)) * P @ (k - (1 - p) * L[up] - p * L[down]) ** 2
        for L, k in zip(tables, kappas, strict=True)
    ]
    law = np.outer(weights, P).ravel()
    var = [moments(np.concatenate(v)[:, None], law)[1][0] for v in (score, local)]
    assert var[0] == pytest.approx(var[1] + weights @ excess)
    assert "given $u$ the loss is a function of $x$, and the theorem holds as it stands" in prose(
        PATH
    )


def test_the_random_losses_have_means_small_beside_their_spread() -> None:
    problem = define(PATH, "random_quadratic", "states")["random_quadratic"]
    g, parts = torch.Generator().manual_seed(0), []
    for _ in range(400):
        a, L = (v.numpy() for v in problem(g, 1.0))
        P = probabilities(LOGISTIC, a)
        parts.append([(P @ L) ** 2, P @ (L - P @ L) ** 2])
    square, spread = np.mean(parts, axis=0)
    assert square / spread == pytest.approx(1 / 3, abs=0.01)
    assert "whose squared mean is on average a third of their variance" in prose(PATH)


def test_what_the_introduction_promises() -> None:
    """The table has the three and the seventeen, see above; four bits are enough."""
    words = "three are theorems, and three losses of at most four bits, with logistic noise, refute"
    assert words in prose(PATH)
    assert {len(a) for a, _ in WITNESS.values()} == {4}
    assert "exactly" not in statement("thm-05-order")
