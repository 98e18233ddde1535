"""Chapter 11, control variates: both sides of every formula, and the notebook's own code.

Means over states are sums in numpy, gradients are central differences of them; means over
thresholds are integrals over uniform numbers, where the page integrates over z.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import reference as ref
import torch
from chapters import (
    as_in_the_book,
    axes,
    chapter,
    containing,
    curves,
    define,
    figures,
    lines,
    printed,
    prose,
    run,
    states,
    still,
    tagged,
    under,
)
from pins import pin
from scipy import optimize

import sbnlib
from sbnlib.experiments import random_nets

Array = np.ndarray
PATH = chapter(11)
LOGISTIC = ref.RefNoise("Logistic")
NOISES = [LOGISTIC, ref.RefNoise("Gaussian"), ref.RefNoise("Uniform", 3.0)]
each_noise = pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.name)
POINT = np.array([0.7, -0.3, 1.2])
PAIR = np.array([0.7, -0.3])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


def law(noise: object, x: Array, a: Array) -> Array:
    return np.prod(noise.cdf(x * a), axis=-1)


def score(noise: object, x: Array, a: Array) -> Array:
    """Derivatives of log P, as differences."""
    h = 1e-6
    return (np.log(noise.cdf(x * (a + h))) - np.log(noise.cdf(x * (a - h)))) / (2 * h)


def gradient(noise: object, loss: Callable, a: Array) -> Array:
    """Central differences of E L, of fourth order."""
    x, h = states(len(a)), 1e-3
    value = lambda b: law(noise, x, b) @ loss(x)  # noqa: E731
    rows = []
    for e in np.eye(len(a)):
        f = [value(a + k * h * e) for k in (-2, -1, 1, 2)]
        rows.append((f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h))
    return np.array(rows)


def softplus(t: Array) -> Array:
    return np.logaddexp(0, t)


def smooth(x: Array) -> Array:
    """The two-unit problem of the page."""
    return softplus(1.5 * x[..., 0] + x[..., 1] - 0.5)


def rough(x: Array) -> Array:
    """Three bits, no structure; its slopes at a point by differences."""
    return np.sin(3 * x[..., 0] + x[..., 1]) * np.exp(x[..., 2])


def slopes(loss: Callable, at: Array) -> Array:
    h = 1e-5
    e = np.eye(len(at)) * h
    return np.array([(loss(at + d) - loss(at - d)) / (2 * h) for d in e])


def mean_and_variance(P: Array, rows: Array) -> tuple[Array, Array]:
    mean = P @ rows
    return mean, P @ (rows - mean) ** 2


# ------------------------------------------------------------------------ control variates


@pin(
    "prop-11-control",
    r"""
    Let $\hat g$ and $d$ be random numbers of finite variance on the same draw,
    $\mathbb{E}\hat g=g$, $\mathbb{E}d=0$, $\operatorname{Var}d>0$, and let $r$ be their
    correlation. For every number $\omega$ that does not depend on the draw, $\hat g-\omega d$
    has the mean $g$ and the variance {eq-11-control} It is less than $\operatorname{Var}\hat
    g$ if and only if $\omega$ lies strictly between $0$ and $2\omega^*$.
    """,
)
@pin(
    "eq-11-control",
    r"""
    \begin{gathered} \operatorname{Var}\hat g-2\omega\operatorname{Cov}(\hat
    g,d)+\omega^2\operatorname{Var}d,\\ \text{least at
    }\;\omega^*=\frac{\operatorname{Cov}(\hat g,d)}{\operatorname{Var}d},\\ \text{where it is
    }\;(1-r^2)\operatorname{Var}\hat g. \end{gathered}
    """,
)
def test_eq_11_control() -> None:
    """Two correlated numbers on eight outcomes, the minimum by scipy."""
    rng = np.random.default_rng(0)
    P, g, d = rng.dirichlet(np.ones(8)), rng.normal(size=8), rng.normal(size=8)
    d = d + 0.7 * g
    d -= P @ d
    var = lambda w: mean_and_variance(P, g - w * d)[1]  # noqa: E731
    cov, var_d = P @ (g * d), P @ d**2
    for w in (-1.3, 0.0, 0.4, 2.0):
        assert var(w) == pytest.approx(var(0) - 2 * w * cov + w**2 * var_d)
        assert P @ (g - w * d) == pytest.approx(P @ g)
    found = optimize.minimize_scalar(var)
    r = cov / np.sqrt(var(0) * var_d)
    assert found.x == pytest.approx(cov / var_d, rel=1e-6)
    assert found.fun == pytest.approx((1 - r**2) * var(0))
    for w, less in ((-0.01, False), (0.01, True), (1.99, True), (2.01, False)):
        assert (var(w * cov / var_d) < var(0)) == less
    shifted = P @ (g - 0.4 * (d + 0.3)) - P @ g
    assert shifted == pytest.approx(-0.4 * 0.3)  # "the bias -omega E d"


def test_the_baseline_is_a_control() -> None:
    """d = s_i has mean zero, and its best weight is the best constant of chapter 4."""
    x = states(2)
    P, s = law(LOGISTIC, x, PAIR), score(LOGISTIC, x, PAIR)
    assert P @ s == pytest.approx(np.zeros(2), abs=1e-9)
    best = (P @ (smooth(x)[:, None] * s * s)) / (P @ s**2)
    p = LOGISTIC.cdf(PAIR)
    for i in range(2):
        mean = [P[x[:, i] == v] @ smooth(x)[x[:, i] == v] / P[x[:, i] == v].sum() for v in (-1, 1)]
        assert best[i] == pytest.approx((1 - p[i]) * mean[1] + p[i] * mean[0], rel=1e-6)


def copies(loss: Callable, a: Array) -> tuple[Array, Array, Array]:
    """P, L s and the estimate from the flat copy minus its mean, by state."""
    x, mu = states(len(a)), 2 * LOGISTIC.cdf(a) - 1
    t, s = slopes(loss, mu), score(LOGISTIC, x, a)
    flat = loss(mu) + (x - mu) @ t
    return law(LOGISTIC, x, a), loss(x)[:, None] * s, flat[:, None] * s - 2 * LOGISTIC.pdf(a) * t


def bent(t: float) -> Callable:
    return lambda x: softplus(t * (x @ np.array([1.2, -0.8, 0.6, 0.5]) + 0.4)) / t


FOUR = np.array([0.5, -0.3, 0.8, 0.1])


def left_over(t: float, w: float) -> float:
    P, g, d = copies(bent(t), FOUR)
    return mean_and_variance(P, (g - w * d)[:, 0])[1] / mean_and_variance(P, g[:, 0])[1]


def test_the_table_of_correlations() -> None:
    text = printed(containing(PATH, "best weight   variance left"))
    for row in text.splitlines()[1:]:
        t, r, rest, best, left = map(float, row.split())
        P, g, d = copies(bent(t), FOUR)
        cov = np.cov(g[:, 0], d[:, 0], aweights=P, ddof=0)
        true = cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])
        assert (r, rest) == pytest.approx((true, 1 - true**2), abs=6e-4)
        assert best == pytest.approx(cov[0, 1] / cov[1, 1], abs=6e-4)
        assert left == pytest.approx(1 - true**2, abs=6e-4)
    words = prose(PATH)
    assert "correlation of $0.95$ takes away nine tenths of the variance" in words
    assert "one of $0.8$ not two thirds" in words and 1 - 0.8**2 > 1 / 3


# ------------------------------------------------------------------------------ fitting


def draws(M: int) -> Iterator[tuple[float, Array]]:
    """Every sequence of M draws of four outcomes, by its counts, with its probability."""
    P = copies(smooth, PAIR)[0]
    for k in itertools.product(range(M + 1), repeat=4):
        if sum(k) == M:
            ways = np.prod(range(1, M + 1)) / np.prod([np.prod(range(1, c + 1)) for c in k])
            yield ways * np.prod(P ** np.array(k)), np.repeat(np.arange(4), k)


def regress(g: Array, d: Array) -> float:
    return 0.0 if len(set(d)) < 2 else np.polyfit(d, g, 1)[0]


def fits(M: int) -> tuple[float, float, float, float, float]:
    """Biases and variances with the slope of the same and of the other samples; g."""
    _, g, d = copies(smooth, PAIR)
    g, d, rows = g[:, 0], d[:, 0], []
    for w, draw in draws(M):
        gs, ds = g[draw], d[draw]
        all_ = np.mean(gs - regress(gs, ds) * ds)
        kept = [np.arange(M) != m for m in range(M)]
        slope = {v: regress(gs[k], ds[k]) for v, k in zip(draw, kept, strict=True)}
        rows.append((w, all_, np.mean([gs[m] - slope[draw[m]] * ds[m] for m in range(M)])))
    w, same, other = np.array(rows).T
    assert w.sum() == pytest.approx(1)
    mean = w @ same, w @ other
    exact = copies(smooth, PAIR)[0] @ g
    return (
        *(m - exact for m in mean),
        w @ (same - mean[0]) ** 2,
        w @ (other - mean[1]) ** 2,
        exact,
    )


@pin(
    "prop-11-fitted",
    r"""
    Let $(\hat g_m,d_m)$, $m=1,\dots,M$, be independent copies of $(\hat g,d)$ of
    {prf:ref}`prop-11-control`, which take finitely many values; let $\hat\omega$ be the slope
    of the regression line of the $\hat g_m$ on the $d_m$, and $0$ where all $d_m$ are equal.
    With the residual $e=\hat g-g-\omega^*d$, {eq-11-fitted} If sample $m$ is given the slope
    that the other $M-1\ge1$ samples have, there is no bias, for any $M$.
    """,
)
@pin(
    "eq-11-fitted",
    r"""
    \begin{gathered} \mathbb{E}\,\frac1M\sum_m(\hat g_m-\hat\omega\,d_m)\\
    =g-\frac{\mathbb{E}[d^2e]}{M\operatorname{Var}d}+o\Bigl(\frac1M\Bigr). \end{gathered}
    """,
)
def test_eq_11_fitted() -> None:
    """All counts of the draws; the first order is approached as 1/M."""
    P, g, d = copies(smooth, PAIR)
    g, d = g[:, 0], d[:, 0]
    cov = np.cov(g, d, aweights=P, ddof=0)
    e = g - P @ g - cov[0, 1] / cov[1, 1] * d
    first = -(P @ (d**2 * e)) / cov[1, 1]
    space = define(PATH, "states", "probability", "score", "flat", "both_estimates", "noise",
                   "A2", "L", "P2", "G", "exact2", "counts", "fitted", "same")  # fmt: skip
    off = []
    for M in (12, 24, 40):
        k, w = space["counts"](M)
        off.append(float(w @ space["same"](k, M)) - P @ g)
    scaled = [b * M / first for b, M in zip(off, (12, 24, 40), strict=True)]
    assert scaled[2] == pytest.approx(1, abs=0.04) and abs(scaled[2] - 1) < abs(scaled[0] - 1)
    for M in (2, 5, 8):
        same, other, *_ = fits(M)
        assert abs(other) < 1e-9 and abs(same) > 1e-4
        k, w = space["counts"](M)
        assert float(w @ space["same"](k, M)) - P @ g == pytest.approx(same, abs=1e-7)


def the_rare_draw() -> tuple[float, float, float]:
    """Share in the bias at M = 4 of draws that show only (-1, -1) and (1, 1); odds, slope ratio."""
    P, g, d = copies(smooth, PAIR)
    g, d = g[:, 0], d[:, 0]
    weight = (P @ (g * d) - P @ g * (P @ d)) / (P @ d**2 - (P @ d) ** 2)
    total = rare = odds = 0.0
    for w, draw in draws(4):
        part = w * (np.mean(g[draw] - regress(g[draw], d[draw]) * d[draw]) - P @ g)
        total += part
        if set(draw) == {0, 3}:
            rare, odds = rare + part, odds + w
    fit = regress(g[[0, 3]], d[[0, 3]])
    assert abs(d[3] - d[0]) < 0.1 * np.ptp(d)
    return rare / total, odds, fit / weight


def test_the_table_of_fitted_weights() -> None:
    text = printed(containing(PATH, "bias / g, same samples")).splitlines()
    rows = {int(r.split()[0]): [float(v) for v in r.split()[1:]] for r in text[2:6]}
    for M in (4, 8):
        same, other, v_same, v_other, g = fits(M)
        sd = np.sqrt(v_same) / g
        assert rows[M][0] == pytest.approx(same / g, abs=6e-5)
        assert rows[M][2] == 0 and abs(other) < 1e-9
        assert rows[M][3] == pytest.approx(sd, abs=6e-4)
        assert rows[M][4:] == pytest.approx([M * v_same, M * v_other], abs=6e-5)
    words = prose(PATH)
    assert (
        rows[4][0] == pytest.approx(-1 / 3, abs=0.02) and "it is a third of the gradient" in words
    )
    share, odds, slope = the_rare_draw()
    assert share > 0.9 and round(1 / odds) == 23 and round(slope) == 11
    assert "once in 23 times the four draws show only two states" in words
    assert round(100 * (rows[8][5] / rows[8][4] - 1)) == 15
    assert round(100 * (rows[32][5] / rows[32][4] - 1)) == 2
    assert "fitted weight, 15 percent of the variance at 8 samples and 2 percent at 32" in words
    best, one = re.findall(r"\d\.\d{4}", text[6] + text[7]) if len(text) > 7 else re.findall(
        r"\d\.\d{4}", text[6])  # fmt: skip
    P, g, d = copies(smooth, PAIR)
    assert float(one) == pytest.approx(mean_and_variance(P, (g - d)[:, 0])[1], abs=6e-5)
    assert float(one) == pytest.approx(float(best), rel=1.5e-3)
    assert "the variance of the best one to three digits" in words


# ------------------------------------------------------------------------------- MuProp


@pin(
    "thm-11-affine",
    r"""
    Let $x_1,\dots,x_n$ be independent given $a$ with $0<P(x_i\mid a_i)<1$ and $F$
    differentiable at $a_i$. For every function $L$ on $\{-1,1\}^n$, every number $l$ and
    every vector $t$ that do not depend on the draw $x$, {eq-11-affine} *MuProp* is the choice
    $l=L(\mu)$, $t=\nabla L(\mu)$ for a loss that is differentiable at $\mu$: with the
    remainder $e(x)=L(x)-L(\mu)-\nabla L(\mu)^\top(x-\mu)$, {eq-11-muprop}
    """,
)
@pin(
    "eq-11-affine",
    r"""
    \begin{gathered} \mathbb{E}\bigl[(L(x)-l-t^\top(x-\mu))\,s_i(x)\bigr]\\
    +\,2f(a_i)\,t_i=\partial_{a_i}\mathbb{E}L. \end{gathered}
    """,
)
@each_noise
def test_eq_11_affine(noise: object) -> None:
    """Any number and any vector, for a loss without structure, also a table of numbers."""
    rng = np.random.default_rng(1)
    x, mu = states(3), 2 * noise.cdf(POINT) - 1
    P, s = law(noise, x, POINT), score(noise, x, POINT)
    table = rng.normal(size=8)
    for values, loss in ((rough(x), rough), (table, lambda _: table)):
        for _ in range(3):
            level, t = rng.normal(), rng.normal(size=3)
            left = P @ ((values - level - (x - mu) @ t)[:, None] * s) + 2 * noise.pdf(POINT) * t
            assert left == pytest.approx(gradient(noise, loss, POINT), abs=1e-7)


@pin(
    "eq-11-muprop",
    r"""
    \hat g_i=2f(a_i)\,\partial_iL(\mu)+e(x)\,s_i(x).
    """,
)
@each_noise
def test_eq_11_muprop(noise: object) -> None:
    """The library draw by draw, and its mean."""
    x, mu = states(3), 2 * noise.cdf(POINT) - 1
    t = slopes(rough, mu)
    e = rough(x) - rough(mu) - (x - mu) @ t
    rows = 2 * noise.pdf(POINT) * t + e[:, None] * score(noise, x, POINT)
    assert law(noise, x, POINT) @ rows == pytest.approx(gradient(noise, rough, POINT), abs=1e-7)
    scale = getattr(noise, "scale", 1.0)
    ours = getattr(sbnlib.noise, noise.name)(scale)
    tensor = lambda y: torch.sin(3 * y[..., 0] + y[..., 1]) * y[..., 2].exp()  # noqa: E731
    for seed in range(4):
        a = torch.tensor(POINT, requires_grad=True)
        g = torch.Generator().manual_seed(seed)
        sbnlib.muprop(tensor, a, ours, generator=g).backward()
        assert min(np.abs(rows - a.grad.numpy()).max(axis=1)) < 1e-5


def test_linearized_at_the_drawn_state_it_is_straight_through() -> None:
    x = states(2)
    for row in x:
        t = slopes(smooth, row)
        e = smooth(row) - smooth(row) - (row - row) @ t
        assert e == 0  # what is left is 2 f times the slope at the state
    assert "what is left is $2f(a_i)\\,\\partial_iL(x)$, straight-through" in prose(PATH)


def test_units_that_share_a_threshold_break_it() -> None:
    """a_1 > a_2 and one Z: states (1, 1), (1, -1), (-1, -1)."""
    p1, p2 = LOGISTIC.cdf(PAIR)
    P = np.array([p2, p1 - p2, 1 - p1])
    x = np.array([[1, 1], [1, -1], [-1, -1]])
    mu = 2 * np.array([p1, p2]) - 1
    s = score(LOGISTIC, x, PAIR)
    assert abs(P @ ((x[:, 1] - mu[1]) * s[:, 0])) > 0.05


def quadratic(A: Array, c: Array) -> Callable:
    return lambda x: ((x @ A) * x).sum(-1) / 2 + x @ c


def muprop_rows(noise: object, A: Array, c: Array, a: Array) -> Array:
    x, mu, loss = states(len(a)), 2 * noise.cdf(a) - 1, quadratic(A, c)
    t = A @ mu + c
    e = loss(x) - loss(mu) - (x - mu) @ t
    return 2 * noise.pdf(a) * t + e[:, None] * score(noise, x, a)


@pin(
    "prop-11-quadratic",
    r"""
    Under the assumptions of {prf:ref}`thm-11-affine` let $L=\frac12x^\top Ax+c^\top x$ with
    symmetric $A$, and let $q_j=1-\mu_j^2$ and $l=\frac12\sum_jA_{jj}q_j$. Then
    $\mathbb{E}[e\,s_i]=-2f(a_i)A_{ii}\mu_i$, the bias of straight-through with the opposite
    sign, and $\operatorname{Var}\hat g_i$ is $4f(a_i)^2$ times {eq-11-quadratic}
    """,
)
@pin(
    "eq-11-quadratic",
    r"""
    \begin{gathered} \frac{(l+2A_{ii}\mu_i^2)^2}{q_i}+\sum_{j\ne i}A_{ij}^2\,q_j\\
    +\frac1{q_i}\sum_{j\ne i}(A_{jj}\mu_j+2\mu_iA_{ij})^2\,q_j\\
    +\frac1{q_i}\sum_{j<k;\;j,k\ne i}A_{jk}^2\,q_jq_k . \end{gathered}
    """,
)
@each_noise
def test_eq_11_quadratic(noise: object) -> None:
    rng = np.random.default_rng(2)
    for n in (1, 2, 4):
        A, c, a = rng.normal(size=(n, n)), rng.normal(size=n), rng.uniform(-1.2, 1.2, size=n)
        A = A + A.T
        mu, f = 2 * noise.cdf(a) - 1, noise.pdf(a)
        q, level, P = 1 - mu**2, (np.diag(A) * (1 - mu**2)).sum() / 2, law(noise, states(n), a)
        rows = muprop_rows(noise, A, c, a)
        _, variance = mean_and_variance(P, rows)
        rest = P @ (rows - 2 * f * (A @ mu + c))
        assert rest == pytest.approx(-2 * f * np.diag(A) * mu, abs=1e-8)
        for i in range(n):
            others = [j for j in range(n) if j != i]
            total = (level + 2 * A[i, i] * mu[i] ** 2) ** 2 / q[i]
            for j in others:
                mixed = (A[j, j] * mu[j] + 2 * mu[i] * A[i, j]) ** 2 / q[i]
                total += (A[i, j] ** 2 + mixed) * q[j]
            for j, k in itertools.combinations(others, 2):
                total += A[j, k] ** 2 * q[j] * q[k] / q[i]
            assert variance[i] == pytest.approx(4 * f[i] ** 2 * total, rel=1e-6, abs=1e-12)


def test_beside_straight_through_without_a_diagonal() -> None:
    """ "never better": each unit of 200 random losses."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        A, a = rng.normal(size=(4, 4)), rng.uniform(-2, 2, size=4)
        A = A + A.T
        np.fill_diagonal(A, 0)
        P, mu = law(LOGISTIC, states(4), a), 2 * LOGISTIC.cdf(a) - 1
        st = 4 * LOGISTIC.pdf(a) ** 2 * (A**2 @ (1 - mu**2))
        assert np.all(mean_and_variance(P, muprop_rows(LOGISTIC, A, 0 * a, a))[1] > st)


def test_the_table_of_quadratics() -> None:
    rows = {r[:13].strip(): [float(v) for v in r[13:].split()] for r in printed(
        containing(PATH, '"pairs only"')).splitlines()[1:]}  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    half = torch.rand(4, 4, generator=draw).numpy() - 0.5
    full, c = half + half.T, torch.rand(4, generator=draw).numpy() - 0.5
    x, f = states(4), LOGISTIC.pdf(FOUR)
    P, s = law(LOGISTIC, x, FOUR), score(LOGISTIC, x, FOUR)
    cases = {"linear": 0 * full, "pairs only": full - np.diag(np.diag(full)), "with squares": full}
    for name, A in cases.items():
        loss = quadratic(A, c)(x)
        st, st_v = mean_and_variance(P, 2 * f * (x @ A + c))
        v = mean_and_variance(P, (loss - P @ loss)[:, None] * s)[1].sum()
        m = mean_and_variance(P, muprop_rows(LOGISTIC, A, c, FOUR))[1].sum()
        off = ((st - gradient(LOGISTIC, quadratic(A, c), FOUR)) ** 2).sum()
        assert rows[name] == pytest.approx([v, m, m, st_v.sum(), off], abs=6e-5)
    score_, mu_, *_ = rows["with squares"]
    assert 3.5 < mu_ / score_ < 4 and "nearly four times noisier" in prose(PATH)
    assert rows["pairs only"][1] < rows["pairs only"][0]


def test_a_wiggle_that_no_state_shows() -> None:
    text = printed(containing(PATH, "def rough(t)")).splitlines()
    P, g, _ = copies(smooth, PAIR)
    found = [float(v) for v in text[1].split()[1:]]
    for t, v in zip((-4, -1, 0, 1, 4), found, strict=True):
        d = copies(lambda x, t=t: smooth(x) + t * (1 - x**2).sum(-1) / 2, PAIR)[2]
        mean, variance = mean_and_variance(P, g - d)
        assert v == pytest.approx(variance.sum(), abs=6e-4)
        assert mean == pytest.approx(gradient(LOGISTIC, smooth, PAIR), abs=1e-6)
    nothing, constants = (float(v) for v in re.findall(r"\d\.\d{3}", text[2]))
    assert nothing == pytest.approx(mean_and_variance(P, g)[1].sum(), abs=6e-4)
    s = score(LOGISTIC, states(2), PAIR)
    kappa = (P @ (g * s)) / (P @ s**2)
    assert constants == pytest.approx(mean_and_variance(P, g - kappa * s)[1].sum(), abs=6e-4)
    assert found[3] > constants > found[2]
    assert "at $t=1$ it has already lost to a constant" in prose(PATH)


# -------------------------------------------------------------------------------- REBAR


def given_state(noise: object, x: Array, a: Array, u: Array) -> Array:
    """z' = a - Z' from a uniform number."""
    return a - x * noise.icdf(u * noise.cdf(x * a))


@pin(
    "eq-11-slope",
    r"""
    \frac{\partial z'_i}{\partial a_i}=1-\frac{f(a_i)\,F(x_iZ'_i)}{f(Z'_i)\,F(x_ia_i)} .
    """,
)
@pytest.mark.parametrize("noise", [*NOISES, ref.RefNoise("Cauchy")], ids=lambda n: n.name)
def test_eq_11_slope(noise: object) -> None:
    """Differences at a fixed uniform number; given x, z' has the law of z."""
    u, h = np.linspace(0.02, 0.98, 25), 1e-5
    for a, x in itertools.product((-0.8, 0.3, 1.4), (-1.0, 1.0)):
        z = given_state(noise, x, a, u)
        assert np.all(np.sign(z) == x)
        change = (given_state(noise, x, a + h, u) - given_state(noise, x, a - h, u)) / (2 * h)
        Z = a - z
        formula = 1 - noise.pdf(a) * noise.cdf(x * Z) / (noise.pdf(Z) * noise.cdf(x * a))
        assert change == pytest.approx(formula, abs=1e-5)
        assert noise.cdf(x * Z) / noise.cdf(x * a) == pytest.approx(u)  # P(xZ < t | x)
        if noise.name == "Logistic":
            F, G = noise.cdf(x * a), noise.cdf(x * Z)
            assert formula == pytest.approx((F - G) / (1 - G))
            assert np.all((formula >= 0) & (formula <= 1))


@cache
def uniform(count: int) -> tuple[Array, Array]:
    """Gauss-Legendre on (0, 1), in a variable that is fine at both ends."""
    t, w = np.polynomial.legendre.leggauss(count)
    s = (t + 1) / 2
    u = s**4 * (35 - 84 * s + 70 * s**2 - 20 * s**3)
    return u, w / 2 * 140 * s**3 * (1 - s) ** 3


def steps(noise: object, x: Array, a: float, u: Array) -> tuple[Array, Array]:
    """z' and its change with a, by differences."""
    h = 1e-5
    low, high = given_state(noise, x, a - h, u), given_state(noise, x, a + h, u)
    return given_state(noise, x, a, u), (high - low) / (2 * h)


def balance(noise: object, C: Callable, dC: Callable, a: float) -> tuple[float, float, float]:
    """E[C(z') s], E[C'(z') dz'/da] and E C'(z) for one unit."""
    u, w = uniform(200)
    z = a - noise.icdf(u)
    kink = noise.cdf(np.array(a))  # where z = 0; C is smooth there
    first = second = 0.0
    for x in (-1.0, 1.0):
        again, change = steps(noise, x, a, u)
        P = noise.cdf(x * a)
        first += P * (w @ C(again)) * score(noise, np.array(x), np.array(a))
        second += P * (w @ (dC(again) * change))
    assert 0 < kink < 1
    return first, second, w @ dC(z)


@pin(
    "thm-11-rebar",
    r"""
    Let the units be independent with noise of bounded density $f$, continuous up to finitely
    many points and positive where $F$ is neither 0 nor 1; let $0<F(a_i)<1$ and $F$ be
    differentiable at $a_i$. Let $C$ be bounded and continuously differentiable, with
    $|\partial_iC(z)|\le o(z_i)$ for an integrable function $o$. Then {eq-11-balance} so that
    for every function $L$ on the states and every number $\omega$ the estimate {eq-11-rebar}
    has the mean $\partial_{a_i}\mathbb{E}L$.
    """,
)
@pin(
    "eq-11-balance",
    r"""
    \begin{gathered}
    \mathbb{E}\bigl[C(z')\,s_i(x)\bigr]+\mathbb{E}\Bigl[\partial_iC(z')\,\frac{\partial
    z'_i}{\partial a_i}\Bigr]\\ =\mathbb{E}\bigl[\partial_iC(z)\bigr], \end{gathered}
    """,
)
@each_noise
def test_eq_11_balance(noise: object) -> None:
    """For controls that have nothing to do with any loss."""
    controls = [
        (lambda z: np.exp(-(z**2)), lambda z: -2 * z * np.exp(-(z**2))),
        (lambda z: np.tanh(z - 0.4), lambda z: 1 / np.cosh(z - 0.4) ** 2),
    ]
    for (C, dC), a in itertools.product(controls, (-0.5, 0.9)):
        first, second, third = balance(noise, C, dC, a)
        assert first + second == pytest.approx(third, abs=2e-5)
        assert abs(first) > 1e-3  # so that 1 in the place of the factor would not balance


def test_a_jump_breaks_the_balance() -> None:
    """C = L(sign z): no slopes, and E[C s] is the gradient."""
    loss = lambda x: softplus(1.5 * x - 0.5)  # noqa: E731
    first, second, third = balance(LOGISTIC, lambda z: loss(np.sign(z)), lambda z: 0 * z, 0.7)
    assert second == third == 0
    exact = gradient(LOGISTIC, lambda x: loss(x[..., 0]), np.array([0.7]))[0]
    assert first == pytest.approx(exact, rel=1e-6)
    assert "the mean would be $(1-\\omega)\\,g_i$" in prose(PATH)


def two_units(weight: float, tau: float, *, detached: bool = False, count: int = 60) -> tuple:
    """Mean and variance of REBAR, of each term too, over four uniform numbers.

    Given x the pair z' and the pair z are independent.
    """
    u, w = uniform(count)
    W = w[:, None] * w
    C = lambda z: weight * smooth(np.tanh(z / (2 * tau)))  # noqa: E731
    h = 1e-5
    slope = lambda z, e: (C(z + h * e) - C(z - h * e)) / (2 * h)  # noqa: E731
    total = {
        k: 0.0 for k in ("mean", "square", "first", "first2", "plus", "plus2", "minus", "minus2")
    }
    for x in states(2):
        parts = [steps(LOGISTIC, x[i], PAIR[i], u) for i in (0, 1)]
        z = np.stack(np.meshgrid(parts[0][0], parts[1][0], indexing="ij"), -1)
        k = np.stack(np.meshgrid(parts[0][1], parts[1][1], indexing="ij"), -1)
        d = np.stack([slope(z, e) for e in np.eye(2)], -1)
        t = d * (1 if detached else k)
        first = (smooth(x) - C(z))[..., None] * score(LOGISTIC, x, PAIR)
        P, m = law(LOGISTIC, x, PAIR), lambda v: np.einsum("ij,ijk->k", W, v)  # noqa: B023
        total["mean"] += P * m(first - t + d)
        total["square"] += P * (m((first - t) ** 2) + m(d**2) + 2 * m(first - t) * m(d))
        for name, v in (("first", first), ("plus", d), ("minus", -t)):
            total[name] += P * m(v)
            total[name + "2"] += P * m(v**2)
    return total, total["square"] - total["mean"] ** 2


@pin(
    "eq-11-rebar",
    r"""
    \begin{gathered} \hat g_i=\bigl[L(x)-\omega C(z')\bigr]s_i(x)\\
    +\,\omega\,\partial_iC(z)-\omega\,\partial_iC(z')\,\frac{\partial z'_i}{\partial a_i}
    \end{gathered}
    """,
)
def test_eq_11_rebar() -> None:
    exact = gradient(LOGISTIC, smooth, PAIR)
    for weight, tau in ((0.7, 0.5), (1.4, 2.0)):
        total, _ = two_units(weight, tau)
        assert total["mean"] == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("name", ["Logistic", "Gaussian", "Uniform"])
def test_the_library_is_the_formula_draw_by_draw(name: str) -> None:
    noise, ours = ref.RefNoise(name, 2.0), getattr(sbnlib.noise, name)(2.0)
    u = torch.rand(2, 1, 2, generator=torch.Generator().manual_seed(3)).numpy()[:, 0]
    a = torch.tensor(PAIR, requires_grad=True)
    loss = lambda x: torch.nn.functional.softplus(1.5 * x[..., 0] + x[..., 1] - 0.5)  # noqa: E731
    generator = torch.Generator().manual_seed(3)
    sbnlib.rebar(loss, a, ours, generator=generator, tau=0.8, eta=1.3).backward()
    C = lambda z: smooth(np.tanh(z / 1.6))  # noqa: E731
    z = PAIR - noise.icdf(u[0])
    x = np.sign(z)
    again = given_state(noise, x, PAIR, u[1])
    Z = PAIR - again
    k = 1 - noise.pdf(PAIR) * noise.cdf(x * Z) / (noise.pdf(Z) * noise.cdf(x * PAIR))
    g = (smooth(x) - 1.3 * C(again)) * score(noise, x, PAIR)
    g = g + 1.3 * slopes(C, z) - 1.3 * slopes(C, again) * k
    assert a.grad.numpy() == pytest.approx(g, abs=1e-6)


def test_the_table_of_rebar() -> None:
    text = printed(containing(PATH, '"   tau             mean         variance"')).splitlines()
    exact = gradient(LOGISTIC, smooth, PAIR)
    for row in text[2:]:
        tau, first, second, variance = map(float, re.findall(r"\d+\.\d+", row))
        assert (first, second) == pytest.approx(exact, abs=2e-6)
        if tau in (1.0, 3.0):
            assert variance == pytest.approx(two_units(1.0, tau)[1].sum(), abs=1e-3)


def test_at_a_low_temperature_the_variance_grows_as_one_over_it() -> None:
    """Of chapter 9; at a high one the estimate is the score function with omega L(0)."""
    space = rebar_space()
    L, A2 = space["L"], space["A2"]
    cold = []
    for tau in (0.02, 0.01):
        table = space["tables"](space["relaxed"](L, 1.0, tau), A2)
        cold.append(tau * float(space["assembled"](table, L, A2)[1].sum()))
    assert cold[0] == pytest.approx(cold[1], rel=0.1)
    table = space["tables"](space["relaxed"](L, 1.0, 2000.0), A2)
    hot = float(space["assembled"](table, L, A2, 0.6)[1].sum())
    x = states(2)
    rows = (smooth(x) - 0.6 * smooth(np.zeros(2)))[:, None] * score(LOGISTIC, x, PAIR)
    want = mean_and_variance(law(LOGISTIC, x, PAIR), rows)[1].sum()
    assert hot == pytest.approx(want, rel=1e-3)


@cache
def _space() -> dict:
    return define(
        PATH, "states", "probability", "score", "noise", "g_nodes", "edges", "width", "nodes",
        "weights", "given", "grid2", "tables", "assembled", "relaxed", "A2", "L",
    )  # fmt: skip


def rebar_space() -> dict:
    return _space()


# ------------------------------------------------------------------------------ detached


@pin(
    "prop-11-detached",
    r"""
    Under the assumptions of {prf:ref}`thm-11-rebar`, with the factor $\partial z'_i/\partial
    a_i$ replaced by $1$ the estimate has the mean {eq-11-detached} If $C(z)=L(\tanh\frac
    z{2\tau})$ with continuous $L$, it tends to $(1-\omega)\,\partial_{a_i}\mathbb{E}L$ as
    $\tau\to0$.
    """,
)
@pin(
    "eq-11-detached",
    r"""
    \partial_{a_i}\mathbb{E}L-\omega\,\mathbb{E}\bigl[C(z')\,s_i(x)\bigr].
    """,
)
def test_eq_11_detached() -> None:
    exact = gradient(LOGISTIC, smooth, PAIR)
    u, w = uniform(60)
    W = w[:, None] * w
    for weight, tau in ((0.8, 0.5), (1.0, 2.0)):
        first = 0.0
        for x in states(2):
            z = np.stack(np.meshgrid(*(steps(LOGISTIC, x[i], PAIR[i], u)[0] for i in (0, 1)),
                                     indexing="ij"), -1)  # fmt: skip
            mean = (W * smooth(np.tanh(z / (2 * tau)))).sum()
            first = first + law(LOGISTIC, x, PAIR) * mean * score(LOGISTIC, x, PAIR)
        total, _ = two_units(weight, tau, detached=True)
        assert total["mean"] == pytest.approx(exact - weight * first, abs=1e-5)
    text = printed(containing(PATH, "mean with dz'/da = 1")).splitlines()
    rows = {float(r.split()[0]): [float(v) for v in re.findall(r"\d\.\d{4}", r)] for r in text[2:]}
    assert rows[0.5][:2] == pytest.approx(two_units(0.8, 0.5, detached=True)[0]["mean"], abs=6e-5)
    assert rows[0.02][2:] == pytest.approx(0.2 * exact, abs=6e-5)
    gaps = [abs(r[0] - r[2]) for r in rows.values()]
    assert all(np.diff(gaps) < 0) and gaps[-1] < 0.01 * exact[0] * 1.1
    assert all(r[0] > 0 and r[1] > 0 for r in rows.values())  # "points the right way"


def test_the_test_that_finds_it() -> None:
    text = printed(containing(PATH, "def three_bits")).splitlines()[1:]
    rows = {r.split()[0]: [float(v) for v in re.findall(r"-?\d+\.\d+", r)] for r in text}
    for m, se, zero, zero_se in rows.values():
        assert se < 0.01 and zero_se < 0.01
        assert m - 1 == pytest.approx(zero, abs=4 * (se + zero_se))  # linear in the loss
    for how, biased in (("right", False), ("detached", True), ("dropped", True), ("fresh", False)):
        m, se, zero, zero_se = rows[how]
        assert (abs(zero) > 5 * zero_se) == biased and (abs(m - 1) > 5 * se) == biased
    assert rows["detached"][0] == pytest.approx(1 / 4, abs=0.02)
    assert rows["dropped"][0] == pytest.approx(5 / 4, abs=0.01)
    assert rows["fresh"][1] > 1.5 * rows["right"][1]
    words = prose(PATH)
    assert '"Detached" loses three quarters of the gradient and "dropped" adds a quarter' in words


def test_the_case_is_cited_with_file_and_commit() -> None:
    words = prose(PATH)
    commit = "39dd0e82e340779eada11be0b9afffa7137c2c43"
    assert f"https://github.com/duvenaud/relax/blob/{commit}/pytorch_toy.py" in words
    for place in ("issues/6", "pull/8"):
        assert f"https://github.com/duvenaud/relax/{place}" in words
    assert "We did not run the file" in words


# --------------------------------------------------------------------------------- RELAX


@pin(
    "prop-11-relax",
    r"""
    Let $\hat g$ depend on $\theta$ and on a random number whose law does not, let its mean
    $g$ not depend on $\theta$, and let $\|\hat g\|^2$ be differentiable in $\theta$ with a
    derivative that is locally dominated by an integrable function. Then {eq-11-moment} where
    $\operatorname{Var}$ is summed over the coordinates.
    """,
)
@pin(
    "eq-11-moment",
    r"""
    \nabla_\theta\operatorname{Var}\hat g=\mathbb{E}\,\nabla_\theta\|\hat g\|^2,
    """,
)
def test_eq_11_moment() -> None:
    """REBAR's weight as the parameter: differences of the variance and of the second moment."""
    h = 1e-3
    variance, square = [], []
    for w in (0.9 - h, 0.9 + h):
        total, var = two_units(w, 1.0, count=40)
        variance.append(var.sum())
        square.append(total["square"].sum())
    assert np.diff(variance) == pytest.approx(np.diff(square), rel=1e-3)
    assert abs(np.diff(square)[0]) > 1e-5
    detached = [two_units(w, 1.0, detached=True, count=40) for w in (0.9 - h, 0.9 + h)]
    moved = np.diff([v.sum() for _, v in detached])
    assert moved != pytest.approx(np.diff([t["square"].sum() for t, _ in detached]), rel=0.1)


def test_the_librarys_objective_is_the_one_of_the_page() -> None:
    space = define(PATH, "noise", "score", "rebar_draws", "Control", "L", "A2")
    with torch.random.fork_rng():
        control = space["Control"](torch.Generator().manual_seed(0))
    u = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(5))
    draws = space["rebar_draws"](space["L"], control, space["A2"], u)
    by_hand = torch.autograd.grad(draws.square().sum(-1).mean(), list(control.parameters()))
    free = lambda z: control.net(torch.tanh(z / 2))[..., 0]  # noqa: E731
    moment = sbnlib.control_variate_loss(
        space["L"], space["A2"], "logistic", list(control.parameters()), num_samples=50,
        generator=torch.Generator().manual_seed(5), tau=control.log_tau.exp(),
        eta=control.weight, control=free,
    )  # fmt: skip
    assert moment.item() == pytest.approx(draws.square().sum(-1).mean().item())
    moment.backward()
    for p, g in zip(control.parameters(), by_hand, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-10)


def learned() -> dict[str, list[float]]:
    text = printed(containing(PATH, "def trained(how")).splitlines()[2:]
    return {r.split()[0]: [float(v) for v in r.split()[1:]] for r in text}


def test_what_is_said_of_the_learned_control() -> None:
    rows, words = learned(), prose(PATH)
    v0, v1, m0, m1 = rows["right"]
    assert m0 == m1 == 1 and v1 / v0 == pytest.approx(2 / 3, abs=0.05)
    assert "brings the variance down by a third" in words
    P, g, d = copies(smooth, PAIR)
    muprop = mean_and_variance(P, g - d)[1].sum()
    assert f"{muprop:.3f}" == "0.097" and "MuProp on this problem, $0.097$" in words
    assert v1 == pytest.approx(muprop, abs=0.01)
    d0, d1, n0, n1 = rows["detached"]
    assert d1 < v1 and d1 < d0 and 0.2 < n1 < 0.3 and n1 < n0
    assert "has traded nearly four fifths of the gradient for it, half of it before" in words
    assert 0.45 < n0 < 0.52


# --------------------------------------------------------------------------------- depth


def paths(p: random_nets.Problem) -> tuple[Array, Array, Array]:
    """Of every path: its probability, the states of layer 1, the loss; for small networks."""
    x = states(p.width)
    readout = p.unit * p.signs.numpy()
    P, first, last = [1.0], [None], [p.start.numpy()]
    for k, W in enumerate(p.weights):
        rows = [(w, f, y) for w, f, y in zip(P, first, last, strict=True)]
        P, first, last = [], [], []
        for w, f, y in rows:
            for z, prob in zip(x, law(LOGISTIC, x, W.numpy() @ y), strict=True):
                P.append(w * prob)
                first.append(z if k == 0 else f)
                last.append(z)
    return np.array(P), np.array(first), softplus(np.array(last) @ readout)


def tangent(p: random_nets.Problem) -> tuple[Array, Array, Array]:
    """The mean of the first layer, and the mean-field loss and its slopes there."""

    def field(x: Array) -> Array:
        for W in p.weights[1:]:
            x = np.tanh(W.numpy() @ x / 2)
        return softplus(p.unit * (p.signs.numpy() @ x))

    mu = np.tanh(p.weights[0].numpy() @ p.start.numpy() / 2)
    return mu, field(mu), slopes(field, mu)


def by_paths(p: random_nets.Problem) -> list[float]:
    """What `first_layer` returns, over every path."""
    a = p.weights[0].numpy() @ p.start.numpy()
    P, x, loss = paths(p)
    s = score(LOGISTIC, x, a)
    mu, centre, t = tangent(p)
    g = P @ (loss[:, None] * s)
    mean = P @ loss
    about = mean_and_variance(P, (loss - mean)[:, None] * s)[1].sum()
    muprop, around_mean = (
        mean_and_variance(P, (loss - c - (x - mu) @ t)[:, None] * s)[1].sum()
        for c in (centre, mean)
    )
    floor = 0.0
    for z in states(p.width):
        at = (x == z).all(axis=1)
        w = P[at] / P[at].sum()
        inner = w @ loss[at] ** 2 - (w @ loss[at]) ** 2
        floor += P[at].sum() * inner * (score(LOGISTIC, z, a) ** 2).sum()
    fisher = (LOGISTIC.pdf(a) ** 2 / (LOGISTIC.cdf(a) * LOGISTIC.cdf(-a))).sum()
    return [g @ g, about, muprop, floor, fisher * (P @ loss**2 - mean**2), around_mean]


@pin(
    "thm-11-depth",
    r"""
    In a layered network let $L$ be a function of $x_K$ of finite second moment, $s_k$ the
    score of layer $k<K$, and $d$ a random number of finite second moment that is independent
    of $L$ given $x_{k-1}$ and $x_k$. Then {eq-11-depth} with equality if and only if
    $\mathbb{E}[L\mid x_k]\,s_{k,i}+d$ is constant with probability one.
    """,
)
@pin(
    "eq-11-depth",
    r"""
    \operatorname{Var}\bigl(L\,s_{k,i}+d\bigr)\;\ge\;\mathbb{E}\bigl[\operatorname{Var}(L\mid
    x_k)\,s_{k,i}^2\bigr],
    """,
)
def test_eq_11_depth() -> None:
    """Controls of the state of layer 1 and a coin of their own; the best one reaches the floor."""
    p = random_nets.problem(3, 2, 0)
    a = p.weights[0].numpy() @ p.start.numpy()
    P, x, loss = paths(p)
    s = score(LOGISTIC, x, a)
    floor = by_paths(p)[3]
    rng = np.random.default_rng(0)
    index = ((x + 1) / 2 @ [2, 1]).astype(int)
    coin = np.repeat([[-1.0], [1.0]], len(P), axis=0)
    twice, P2 = np.concatenate([loss, loss]), np.concatenate([P, P]) / 2
    given = np.array([P[index == k] @ loss[index == k] / P[index == k].sum() for k in range(4)])
    for _ in range(20):
        d = np.tile(rng.normal(size=(4, 2))[index], (2, 1)) * (1 + rng.normal() * coin)
        rows = twice[:, None] * np.tile(s, (2, 1)) + d
        assert mean_and_variance(P2, rows)[1].sum() > floor
    best = mean_and_variance(P, (loss - given[index])[:, None] * s)[1].sum()
    assert best == pytest.approx(floor, rel=1e-6)
    # a control that sees the layers above goes below it
    assert mean_and_variance(P, (loss - 0.9 * loss)[:, None] * s)[1].sum() < floor


@pytest.mark.parametrize(("layers", "width"), [(1, 3), (2, 3), (3, 2)])
def test_first_layer_is_a_sum_over_paths(layers: int, width: int) -> None:
    space = define(PATH, "noise", "states", "probability", "score", "flat", "law", "mean_field",
                   "first_layer")  # fmt: skip
    for index in range(2):
        p = random_nets.problem(layers, width, index)
        found = space["first_layer"](p).tolist()
        assert found == pytest.approx(by_paths(p), rel=1e-5, abs=1e-9)


def recursion(layers: int, width: int, nets: int = 40) -> Array:
    """Sums over networks of |g|^2, with the mean loss, MuProp, the floor, MuProp with E L."""
    total = np.zeros(5)
    for index in range(nets):
        p = random_nets.problem(layers, width, index)
        a, x = p.weights[0].numpy() @ p.start.numpy(), states(width)
        P, s = law(LOGISTIC, x, a), x * LOGISTIC.cdf(-x * a)  # f / F(xa) = F(-xa)
        one = softplus(p.unit * (x @ p.signs.numpy()))
        two = one**2
        for W in reversed(p.weights[1:]):
            move = np.stack([law(LOGISTIC, x, W.numpy() @ y) for y in x])
            one, two = move @ one, move @ two
        mu, centre, t = tangent(p)
        g = (P * one) @ s
        row = [g @ g]
        for c in (P @ one, centre + (x - mu) @ t, P @ one + (x - mu) @ t):
            left = (P * (one - c)) @ s
            row.append(((P * (two - 2 * one * c + c**2)) @ s**2 - left**2).sum())
        total += [*row[:3], ((P * (two - one**2)) @ s**2).sum(), row[3]]
    return total


def test_the_table_of_depths() -> None:
    text = printed(containing(PATH, "def several(")).splitlines()[2:]
    rows = {int(r.split()[0]): [float(v) for v in r.split()[1:]] for r in text}
    for layers in (1, 2, 3, 4):
        g2, about, mu, floor, own = recursion(layers, 6)
        want = [about / g2, mu / g2, floor / g2]
        assert rows[layers][:3] == pytest.approx(want, abs=0.06)
        want = [mu / about, own / about, floor / about]
        assert rows[layers][3:] == pytest.approx(want, abs=6e-3)
    words = prose(PATH)
    assert rows[1][3] == 0.24 and "takes away three quarters of what the mean loss" in words
    assert rows[2][3] == 0.96 and "With two it takes away 4 percent" in words
    assert min(rows[3][3], rows[4][3]) > 1.1 and "it is *worse* than subtracting" in words
    assert rows[2][4] < 0.9 and 1 < min(rows[3][4], rows[4][4]) < 1.1
    assert "it is better with two layers and still no gain with three and four" in words
    assert rows[4][5] == 0.97 and "97 percent of the variance is out of reach" in words
    floors = [recursion(2, n)[3] / recursion(2, n)[1] for n in (2, 4)] + [rows[2][5]]
    assert all(0.7 < v < 0.8 for v in floors) and min(rows[3][5], rows[4][5]) >= 0.9
    assert "about three quarters of the variance with one layer above and nine tenths" in words
    assert 1 - rows[2][5] < 2 / 5  # in the solution of "Does it pay?"


def shared(p: random_nets.Problem, draws: int, rng: np.random.Generator) -> dict[str, Array]:
    """Estimates with the mean loss, and of REBAR and MuProp told the thresholds above, by formula.

    The slopes of the copy are carried down by hand: no graph.
    """
    weights, n = [W.numpy() for W in p.weights], p.width
    a, F, pdf = weights[0] @ p.start.numpy(), LOGISTIC.cdf, LOGISTIC.pdf
    above = [rng.logistic(size=(draws, n)) for _ in weights[1:]]
    Z, u = rng.logistic(size=(draws, n)), rng.uniform(size=(draws, n))
    x = np.where(a > Z, 1.0, -1.0)
    rank = u * F(x * a)
    Z2 = x * np.log(rank / (1 - rank))
    s = x * pdf(a) / F(x * a)

    def copy(y: Array) -> tuple[Array, Array]:
        """The relaxed loss of states y of layer 1, and its slopes in them."""
        slopes = []
        for W, T in zip(weights[1:], above, strict=True):
            y = np.tanh((y @ W.T - T) / 2)
            slopes.append((1 - y**2) / 2)
        score = p.unit * y @ p.signs.numpy()
        back = (F(score) * p.unit)[:, None] * p.signs.numpy()
        for W, t in zip(weights[:0:-1], reversed(slopes), strict=True):
            back = (back * t) @ W
        return softplus(score), back

    def at(z: Array) -> tuple[Array, Array]:
        value, slopes = copy(np.tanh(z / 2))
        return value, slopes * (1 - np.tanh(z / 2) ** 2) / 2

    y = x
    for W, T in zip(weights[1:], above, strict=True):
        y = np.where(y @ W.T > T, 1.0, -1.0)
    loss = softplus(p.unit * y @ p.signs.numpy())
    (_, slope), (again, slope2) = at(a - Z), at(a - Z2)
    moved = 1 - pdf(a) * F(x * Z2) / (pdf(Z2) * F(x * a))
    mu = np.tanh(a / 2)
    flat, t = copy(np.broadcast_to(mu, x.shape))
    return {
        "mean": (loss - loss.mean())[:, None] * s,
        "rebar": (loss - again)[:, None] * s + slope - slope2 * moved,
        "muprop": (loss - flat - ((x - mu) * t).sum(1))[:, None] * s + 2 * pdf(a) * t,
    }


def test_told_the_thresholds_above_they_are_unbiased_and_below_the_floor() -> None:
    p = random_nets.problem(3, 2, 0)
    P, x, loss = paths(p)
    exact = P @ (loss[:, None] * score(LOGISTIC, x, p.weights[0].numpy() @ p.start.numpy()))
    found = shared(p, 400_000, np.random.default_rng(0))
    floor = by_paths(p)[3]
    for name in ("rebar", "muprop"):
        error = found[name].mean(axis=0) - exact
        assert (abs(error) < 4 * found[name].std(axis=0) / 400_000**0.5).all()
        assert found[name].var(axis=0).sum() < floor


def test_the_table_of_those_told_the_thresholds() -> None:
    text = printed(containing(PATH, "REBAR, of those above")).splitlines()[2:]
    table = [[float(v) for v in re.findall(r"\d+\.\d+", r)] for r in text]
    rng = np.random.default_rng(1)
    for layers, row in enumerate(table, 1):
        values, errors = row[::2], row[1::2]
        sums = {"mean": 0.0, "rebar": 0.0, "muprop": 0.0}
        for index in range(40):
            for name, rows in shared(random_nets.problem(layers, 6, index), 1000, rng).items():
                sums[name] += rows.var(axis=0).sum()
        for k, name in ((1, "rebar"), (3, "muprop")):
            assert abs(values[k] - sums[name] / sums["mean"]) < 6 * max(errors[k], 0.01)
        _, about, mu, floor, _ = recursion(layers, 6)
        assert abs(values[2] - mu / about) < 4 * max(errors[2], 0.005)
        if layers > 1:
            assert 0.45 < values[1] < 0.6 and 0.45 < values[3] < 0.6
            assert max(values[1], values[3]) < floor / about
    words = prose(PATH)
    assert "a little more than half is left from two layers on where the thresholds" in words
    assert "such a control would have to leave a seventh, or a quarter" in words


# --------------------------------------------------------------------------- at equal cost


def test_the_count_of_passes() -> None:
    count = define(PATH, "passes")["passes"]
    assert count(5, 6) == {"straight_through": 15, "reinforce_loo": 5, "muprop": 8,
                           "local_expectation": 35, "rebar": 35}  # fmt: skip


def spent(name: str, layers: int, width: int, passes: float) -> float:
    """The error when so many passes are spent, from this file's own recursion."""
    own = recursion(layers, width, 30)
    own = own / own[0]
    nets = [random_nets.problem(layers, width, k) for k in range(30)]
    g2 = sum(random_nets.exact(p, "variance").gradient2 for p in nets)
    sums = lambda what, who: sum(random_nets.exact(p, what).values[who] for p in nets) / g2  # noqa: E731
    if name == "muprop":
        return own[2] / (passes - 3)
    if name == "straight_through":
        return sums("bias", name) + sums("variance", name) * 3 / passes
    if name == "local_expectation":
        return sums("variance", name) * (width + 1) / passes
    cross = 1.0
    for p in nets:
        a = p.weights[0].numpy() @ p.start.numpy()
        x = states(width)
        one = softplus(p.unit * (x @ p.signs.numpy()))
        two = one**2
        for W in reversed(p.weights[1:]):
            move = np.stack([law(LOGISTIC, x, W.numpy() @ y) for y in x])
            one, two = move @ one, move @ two
        P = law(LOGISTIC, x, a)
        cross += LOGISTIC.pdf(a).sum() * (P @ two - (P @ one) ** 2) / g2
    return own[1] / passes + cross / (passes * (passes - 1))


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 3])
def test_fig_budget(layers: int) -> None:
    (ax,) = curves(PATH, "budget", layers=layers)
    names = ("straight_through", "muprop", "reinforce_loo", "rebar", "local_expectation")
    for name, (x, y) in zip(names, ax, strict=True):
        if name == "rebar":
            assert y * x == pytest.approx([y[0] * x[0]] * len(x))
            variance = y[0] * x[0] / 7
            own = recursion(layers, 4, 30)
            assert own[3] / own[0] * 0.9 < variance < 1.3 * own[1] / own[0]
            continue
        for k in (2, 8):
            assert y[k] == pytest.approx(spent(name, layers, 4, x[k]), rel=1e-5)


@pytest.mark.slow
def test_fig_budget_answers() -> None:
    said = under(figures(PATH)["fig-11-budget"])["answer"]
    names = ("st", "muprop", "loo", "rebar", "local")
    at = {
        layers: dict(zip(names, curves(PATH, "budget", layers=layers)[0], strict=True))
        for layers in range(1, 11)
    }
    passes = list(at[1]["st"][0])
    many = passes.index(1024)
    order = lambda layers, k: sorted(names, key=lambda n: at[layers][n][1][k])  # noqa: E731
    assert passes[0] == 8 and order(1, 0)[0] == "st"
    assert order(1, many)[:2] == ["local", "muprop"] and order(1, many)[3] == "st"
    for layers, k in itertools.product(range(3, 11), range(len(passes))):
        assert [n for n in order(layers, k) if n != "st"][0] == "loo"
    for layers, last in ((3, 128), (10, 65536)):
        ahead = at[layers]["loo"][1] < at[layers]["st"][1]
        assert not ahead[passes.index(last)] and ahead[passes.index(last) + 1]
    assert "more than 128 passes" in said and "more than 65 000" in said
    flat = []
    for layers in (1, 10):
        found = [random_nets.exact(random_nets.problem(layers, 4, k), "bias") for k in range(30)]
        off = sum(v.values["straight_through"] for v in found)
        flat.append(off / sum(v.gradient2 for v in found))
    assert (f"{flat[0]:.3f}", f"{flat[1]:.2f}") == ("0.012", "0.64")
    assert "from $0.012$ to $0.64$" in said
    words = prose(PATH)
    assert "At each of these depths REBAR, here with the weight and the temperature 1" in words
    assert "from three layers on MuProp does not return its passes either, although" in words
    for layers, drawn in at.items():
        assert np.all(drawn["rebar"][1] > drawn["loo"][1])
        assert np.all(drawn["muprop"][1] > drawn["loo"][1]) == (layers > 2)  # not at each depth
        floor = recursion(layers, 4, 30)
        assert layers == 1 or floor[3] / floor[1] > 1 / 7
    ratio = at[1]["muprop"][1][-1] / at[1]["local"][1][-1]
    assert ratio == pytest.approx(4 / 3, abs=0.05)
    assert "at width 4 a third more passes than local expectation" in prose(PATH)


# -------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(("weight", "t"), [(0.5, 0.25), (1.75, 4.0)])
def test_fig_control(weight: float, t: float) -> None:
    left, right = axes(PATH, "control", weight=weight, t=t)
    P, g, d = copies(bent(t), FOUR)
    (discs,) = left.collections
    order = np.lexsort(np.stack([d[:, 0], g[:, 0]]).round(6))
    drawn = np.array(discs.get_offsets())
    drawn_order = np.lexsort(drawn.T.round(6))
    assert drawn[drawn_order] == pytest.approx(np.stack([d[:, 0], g[:, 0]], 1)[order], abs=1e-5)
    assert discs.get_sizes()[drawn_order] == pytest.approx(900 * P[order], rel=1e-6)
    line, exact = lines(left)
    assert np.diff(line[1]) / np.diff(line[0]) == pytest.approx(weight)
    assert line[1].mean() == pytest.approx(P @ g[:, 0]) and exact[1][0] == pytest.approx(
        P @ g[:, 0]
    )
    curve, mark, _ = lines(right)
    assert curve[1] == pytest.approx([left_over(t, w) for w in curve[0]], abs=1e-5)
    assert mark.ravel() == pytest.approx([weight, left_over(t, weight)], abs=1e-5)


@pytest.mark.parametrize("t", [0.25, 1.0, 5.6])
def test_fig_control_has_all_discs_and_the_parabola_within_the_axes(t: float) -> None:
    top, low = axes(PATH, "control", weight=2.25, t=t)
    (discs,) = top.collections
    top.figure.draw_without_rendering()
    width, height = top.get_window_extent().size * 72 / top.figure.dpi  # in points
    where, radius = np.array(discs.get_offsets()), np.sqrt(discs.get_sizes() / np.pi)
    for k, limits, points in ((0, top.get_xlim(), width), (1, top.get_ylim(), height)):
        room = radius * np.ptp(limits) / points
        assert limits[0] < (where[:, k] - room).min() and (where[:, k] + room).max() < limits[1]
    curve, mark, _ = lines(low)
    assert max(curve[1].max(), mark[1, 0]) < low.get_ylim()[1]


def test_fig_control_answers() -> None:
    said = under(figures(PATH)["fig-11-control"])["answer"]
    grid = np.linspace(0, 2.25, 10)
    assert grid[np.argmin([left_over(1.0, w) for w in grid])] == 1.0
    assert left_over(1.0, 1.0) == pytest.approx(0.1, abs=0.005)
    last = [left_over(4.0, w) for w in grid]
    assert grid[np.argmin(last)] == 0.75 and f"{min(last):.2f}" == "0.37"
    assert [w for w, v in zip(grid, last, strict=True) if v > 1] == [1.75, 2.0, 2.25]
    assert "$0.37$" in said and "from $1.75$ on the copy does harm" in said


@pytest.mark.parametrize(("weight", "tau"), [(0.5, 0.6), (1.5, 2.5)])
def test_fig_terms(weight: float, tau: float) -> None:
    left, right = curves(PATH, "terms", weight=weight, tau=tau)
    total, variance = two_units(weight, tau)
    exact = gradient(LOGISTIC, smooth, PAIR)[0]
    assert left[0][0] == pytest.approx([exact, exact], abs=1e-6)
    rows = [(total[k][0], total[k + "2"][0] - total[k][0] ** 2) for k in ("first", "plus", "minus")]
    rows.append((exact, variance[0]))
    for k, (m, v) in enumerate(rows):
        bar, mark = left[1 + 2 * k], left[2 + 2 * k]
        assert mark.ravel() == pytest.approx([m, -k], abs=2e-4)
        assert bar[0] == pytest.approx([m - v**0.5, m + v**0.5], abs=1e-3)
    assert right[1].ravel() == pytest.approx([tau, variance.sum()], abs=1e-3)
    other = list(right[0][0]).index(1.5)
    assert right[0][1][other] == pytest.approx(two_units(weight, 1.5)[1].sum(), abs=1e-3)
    P, g, _ = copies(smooth, PAIR)
    assert right[2][1][0] == pytest.approx(mean_and_variance(P, g)[1].sum(), abs=1e-6)
    s = score(LOGISTIC, states(2), PAIR)
    best = g - (P @ (g * s)) / (P @ s**2) * s
    assert right[3][1][0] == pytest.approx(mean_and_variance(P, best)[1].sum(), abs=1e-6)


@pytest.mark.parametrize(("weight", "tau"), [(0.0, 0.1), (2.25, 0.1), (0.0, 6.0), (2.25, 6.0)])
def test_fig_terms_lie_within_the_axes(weight: float, tau: float) -> None:
    top, low = axes(PATH, "terms", weight=weight, tau=tau)
    ends = np.concatenate([k[0] for k in lines(top)])
    assert top.get_xlim()[0] < ends.min() and ends.max() < top.get_xlim()[1]
    heights = np.concatenate([k[1] for k in lines(low)])
    assert low.get_ylim()[0] < heights.min() and heights.max() < low.get_ylim()[1]


@pytest.mark.slow
def test_fig_terms_answers() -> None:
    said = under(figures(PATH)["fig-11-terms"])["answer"].replace("\\\\", "\\")
    left, _ = curves(PATH, "terms", weight=1.0, tau=0.1)
    exact = left[0][0][0]
    spread = [np.diff(left[1 + 2 * k][0])[0] / 2 for k in range(4)]
    assert abs(left[2][0][0]) < 0.1 * exact and left[4][0][0] == pytest.approx(exact, rel=0.05)
    assert spread[1] / exact == pytest.approx(3, abs=0.1)
    hot, _ = curves(PATH, "terms", weight=1.0, tau=6.0)
    assert max(abs(hot[k][0][0]) for k in (4, 6)) < 0.2 * exact
    found = {}
    for w in np.linspace(0, 2.25, 10):
        _, right = curves(PATH, "terms", weight=w, tau=1.5)
        found |= {(w, t): v for t, v in zip(*right[0], strict=True)}
        level = right[3][1][0]
    best = min(found, key=found.get)
    assert best == (1.5, 1.5) and f"{found[best]:.3f}" == "0.126" and f"{level:.3f}" == "0.152"
    assert "$\\omega=\\tau=1.5$, with the variance $0.126$ against $0.152$" in said


@pytest.mark.slow
def test_fig_learning() -> None:
    """fig-11-trained: the printed numbers at both ends."""
    left, right = (lines(ax) for ax in still(PATH, "fig-11-trained"))
    for k, (v0, v1, m0, m1) in enumerate(learned().values()):
        assert left[k][1][[0, -1]] == pytest.approx([v0, v1], abs=6e-4)
        assert right[k][1][[0, -1]] == pytest.approx([m0, m1], abs=6e-4)
    assert np.all(np.abs(right[0][1] - 1) < 1e-6)


@pytest.mark.slow
def test_fig_deep() -> None:
    """fig-11-depth: exact points by this file's recursion, sampled ones within their errors."""
    left, right = still(PATH, "fig-11-depth")
    sums = np.array([recursion(K, 6) for K in (1, 2, 3, 4)]).T
    about, mu, floor = lines(left)
    assert about[1] == pytest.approx(sums[1] / sums[0], rel=1e-5)
    assert mu[1] == pytest.approx(sums[2] / sums[0], rel=1e-4)
    assert floor[1] == pytest.approx((sums[3] / sums[0])[1:], rel=1e-5)
    drawn = [k for k in lines(right) if len(k[0]) == 6]
    for K, curve in zip((1, 2, 3), drawn, strict=True):
        for k, width in ((0, 2), (1, 4)):
            total = recursion(K, width)
            assert curve[1][k] == pytest.approx(total[2] / total[1], rel=1e-4)
    one, two, three = (c[1] for c in drawn)
    assert one[3:].min() > 0.1 and one[3:].max() < 0.21
    assert np.ptp(two) < 0.1 and np.ptp(three) < 0.1
    words = prose(PATH)
    assert "changes by less than a tenth from 2 to 64 units" in words
    assert "between a tenth and a fifth from width 16 on" in words


# ------------------------------------------------------------------------------ exercises


def test_the_wrong_answers_are_told_apart(capsys: pytest.CaptureFixture) -> None:
    """Those listed, and a weight that was not subtracted."""
    for cell in tagged(PATH, "checker"):
        space = run(PATH, cell)
        for name in ("check", "check_share", "check_pays"):
            if name in space:
                for wrong, says in space[name].wrong:
                    assert not space[name](wrong)
                    assert says in capsys.readouterr().out


def test_the_best_affine_control() -> None:
    """By a search over l and t, and its share of MuProp's variance in the solution."""
    a, rng = POINT, np.random.default_rng(4)
    x = states(3)
    P, s, mu, f = (
        law(LOGISTIC, x, a),
        score(LOGISTIC, x, a),
        2 * LOGISTIC.cdf(a) - 1,
        LOGISTIC.pdf(a),
    )
    values = rng.uniform(size=8)
    cell = tagged(PATH, "solution")
    (cell,) = (c for c in cell if "def affine_variance" in c.source)
    space = define(PATH, "states", "probability", "score", "noise", "affine_variance")
    found = space["affine_variance"](torch.tensor(a), torch.tensor(values))
    for i in range(3):

        def left(v: Array, i: int = i) -> float:
            e = (values - v[0] - (x - mu) @ v[1:]) * s[:, i] + 2 * f[i] * v[1 + i]
            return mean_and_variance(P, e)[1]

        least = optimize.minimize(left, np.zeros(4), tol=1e-12).fun
        assert found[i].item() == pytest.approx(least, rel=1e-4)
    text = printed(cell)
    muprop, best = (float(v) for v in re.findall(r"\d\.\d{4}", text))
    assert best / muprop == pytest.approx(1 / 3, abs=0.04)
    assert "about a third of MuProp's variance" in prose(PATH)


def test_one_draw_for_both() -> None:
    """The solution's estimate: given x the pair z has the law of z', one uniform number a unit."""
    exact = gradient(LOGISTIC, smooth, PAIR)
    u, w = uniform(60)
    C, h, W = lambda z: smooth(np.tanh(z / 2)), 1e-5, w[:, None] * w
    mean = square = 0.0
    for x in states(2):
        places = (given_state(LOGISTIC, x[i], PAIR[i], u) for i in (0, 1))
        z = np.stack(np.meshgrid(*places, indexing="ij"), -1)
        Z = PAIR - z
        d = np.stack([(C(z + h * e) - C(z - h * e)) / (2 * h) for e in np.eye(2)], -1)
        k = LOGISTIC.pdf(PAIR) * LOGISTIC.cdf(x * Z) / (LOGISTIC.pdf(Z) * LOGISTIC.cdf(x * PAIR))
        rows = (smooth(x) - C(z))[..., None] * score(LOGISTIC, x, PAIR) + d * k
        mean = mean + law(LOGISTIC, x, PAIR) * np.einsum("ij,ijk->k", W, rows)
        square = square + law(LOGISTIC, x, PAIR) * np.einsum("ij,ijk->k", W, rows**2)
    assert mean == pytest.approx(exact, abs=1e-5)
    var = (square - mean**2).sum()
    text = printed(containing(PATH, "def same_draw")).splitlines()
    for row in text[1:4]:
        tau, first, second, se, one, two = map(float, re.findall(r"\d+\.\d+", row))
        assert (first, second) == pytest.approx(exact, abs=4 * se + 6e-4)
        assert two <= one < 7 / 4 * two
        if tau == 1.0:
            assert one == pytest.approx(var, abs=2e-3)
    assert "for the same passes one draw gives the smaller error" in prose(PATH)


def test_not_smooth_enough() -> None:
    """The two variances of the solution, and the condition."""
    for A, b, a in ((0.7, 0.5, 0.8), (-0.2, 1.0, -1.1), (0.3, 1.0, 0.0)):
        at = np.array([a])
        mu, f = 2 * LOGISTIC.cdf(a) - 1, LOGISTIC.pdf(a)
        P, x = law(LOGISTIC, states(1), at), states(1)
        muprop = mean_and_variance(P, muprop_rows(LOGISTIC, np.array([[A]]), np.array([b]), at))[1][
            0
        ]
        plain = mean_and_variance(P, b * x * score(LOGISTIC, x, at))[1][0]
        q = 1 - mu**2
        assert muprop == pytest.approx(f**2 * A**2 * (1 + 3 * mu**2) ** 2 / q, rel=1e-6)
        assert plain == pytest.approx(4 * f**2 * b**2 * mu**2 / q, rel=1e-6, abs=1e-12)
        assert (muprop > plain) == (abs(A) * (1 + 3 * mu**2) > 2 * abs(b * mu))
