"""Chapter 21, more than two levels: both sides of every formula, the notebook's own code, and every
number of its tables and sentences.

Expected values are sums over states, quadrature and numpy with scipy's distributions; sbnlib
appears only where a function of sbnlib, or one of the notebook, is what is tested.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from functools import cache, partial
from statistics import fmean, stdev
from typing import Any

import chapters
import numpy as np
import pytest
import torch
from chapters import (
    as_in_the_book,
    axes,
    chapter,
    containing,
    figures,
    lean,
    lines,
    lines_of,
    numbers,
    run,
    says_to,
    still,
    tagged,
    under,
)
from pins import pin
from scipy import integrate, optimize, stats

import sbnlib
from sbnlib import levels
from sbnlib.experiments import measurement

Array = np.ndarray
PATH = chapter(21)
says = partial(chapters.says, PATH)
G = np.random.default_rng(21)

LAWS: dict[str, Any] = {
    "Triangular": lambda scale=1.0: stats.triang(0.5, -scale, 2 * scale),
    "Uniform": lambda scale=1.0: stats.uniform(-scale, 2 * scale),
    "Logistic": lambda scale=1.0: stats.logistic(0, scale),
    "Gaussian": lambda scale=1.0: stats.norm(0, scale),
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


def law_of(a: float, marks: Any, law: Any) -> tuple[Array, Array]:
    """P(x = k) and the densities f_0 ... f_C, of one unit."""
    t = a - np.asarray(marks, float)
    p = np.concatenate([[1.0], law.cdf(t), [0.0]])
    return p[:-1] - p[1:], np.concatenate([[0.0], law.pdf(t), [0.0]])


def moments(a: float, marks: Any, law: Any) -> tuple[float, float, float, float]:
    """Mean, its slope, variance, its slope."""
    P, f = law_of(a, marks, law)
    k = np.arange(len(P))
    up = f[:-1] - f[1:]
    mean, slope = P @ k, up @ k
    return mean, slope, P @ k**2 - mean**2, up @ k**2 - 2 * mean * slope


def factors(a: float, marks: Any, law: Any) -> dict[str, Array]:
    """By rule the factor at each level, each from its definition."""
    P, f = law_of(a, marks, law)
    k = np.arange(len(P))
    mean, slope, variance, tilt = moments(a, marks, law)
    P = np.where(P > 0, P, np.inf)  # a level that does not occur
    return {
        "straight-through": np.full(len(P), slope),
        "least variance": slope + (tilt / 2 / variance if variance > 1e-14 else 0) * (k - mean),
        "trapezoid": (f[:-1] + f[1:]) / 2 / P,
        "half": (slope + (k - mean) * (f[:-1] - f[1:]) / P) / 2,
    }


def expected_loss(a: Array, marks: Any, law: Any, loss: Any) -> float:
    """Sum over the states of several units."""
    chances = [law_of(v, marks, law)[0] for v in a]
    states = itertools.product(range(len(chances[0])), repeat=len(a))
    return sum(
        loss(np.array(x, float)) * math.prod(P[k] for P, k in zip(chances, x, strict=True))
        for x in states
    )


def slope_of(function: Any, a: float, step: float = 1e-4) -> float:
    """Central difference of order four."""
    one, two = (function(a + h) - function(a - h) for h in (step, 2 * step))
    return float((8 * one - two) / (12 * step))


UNEQUAL = (-0.8, 0.1, 0.7)
SMOOTH = {"Logistic": 0.4, "Gaussian": 0.5}


# ------------------------------------------------------------------------------ the definition


@pin(
    "def-21-levels",
    r"""
    Let $\vartheta_1<\dots<\vartheta_{C-1}$ be thresholds. The unit draws one $Z\sim F$ and is in
    the state {eq-21-levels} where a bracket is 1 if what it says is true and 0 otherwise.
    """,
)
@pin(
    "eq-21-levels",
    r"""
    x=\sum_{k=1}^{C-1}\,[\,a-\vartheta_k\ge Z\,]\in\{0,\dots,C-1\},
    """,
)
def test_eq_21_levels() -> None:
    """Counted over a fine grid of quantiles of the one noise that all thresholds share."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for name, scale in (*SMOOTH.items(), ("Triangular", 1.0)):
        law = LAWS[name](scale)
        z = law.ppf(u)
        for a in (-1.3, 0.2, 0.9):
            x = (a - np.array(UNEQUAL)[:, None] >= z).sum(0)
            counts = np.bincount(x, minlength=4) / len(u)
            assert counts == pytest.approx(law_of(a, UNEQUAL, law)[0], abs=1e-5)
            own = levels.sample_levels(
                torch.full((2000,), a), UNEQUAL, getattr(sbnlib.noise, name)(scale),
                u=torch.tensor(u[::100]),
            )  # fmt: skip
            assert own.numpy() == pytest.approx(x[::100])
    says("p_k=P(x\\ge k\\mid a)=F(a-\\vartheta_k),\\qquad P(x{=}k\\mid a)=p_k-p_{k+1},")


@pin(
    "thm-21-exact",
    r"""
    Let the units of a layer have independent noises, and let $F$ be differentiable at
    $a_i-\vartheta_k$ for every $k$. Then for every loss $L$ of the states {eq-21-exact}
    """,
)
@pin(
    "eq-21-exact",
    r"""
    \frac{\partial}{\partial a_i}\,\mathbb EL=\sum_{k=1}^{C-1}f(a_i-\vartheta_k)\;\mathbb
    E\bigl[L(x_i{=}k)-L(x_i{=}k{-}1)\bigr].
    """,
)
def test_eq_21_exact() -> None:
    table = G.normal(size=(4, 4))

    def loss(x: Array) -> float:
        return float(table[int(x[0]), int(x[1])])

    for name, scale in SMOOTH.items():
        law, a = LAWS[name](scale), np.array([0.3, -0.4])
        found = slope_of(
            lambda v, law=law, a=a: expected_loss(np.array([v, a[1]]), UNEQUAL, law, loss), a[0]
        )
        _, f = law_of(a[0], UNEQUAL, law)
        P, _ = law_of(a[1], UNEQUAL, law)
        formula = sum(f[k] * (P @ (table[k] - table[k - 1])) for k in (1, 2, 3))
        assert found == pytest.approx(formula, rel=1e-8)
        _, gradient = levels.exact_gradient(
            lambda x: torch.tensor(table)[x[..., 0].long(), x[..., 1].long()],
            torch.tensor(a), UNEQUAL, getattr(sbnlib.noise, name)(scale),
        )  # fmt: skip
        assert gradient[0].item() == pytest.approx(formula, rel=1e-10)


def test_the_table_of_exact_gradients() -> None:
    space = chapters.define(PATH, "MARKS", "draw", "table", "spot")
    table, spot = space["table"].numpy(), space["spot"].numpy()
    scales = {"Logistic": 0.4, "Gaussian": 0.5, "Triangular": 1.0}
    for line, (name, scale) in zip(lines_of(containing(PATH, "MARKS =")), scales.items(),
                                   strict=True):  # fmt: skip
        law = LAWS[name](scale)
        _, f = law_of(spot[0], UNEQUAL, law)
        P, R = (law_of(v, UNEQUAL, law)[0] for v in spot[1:])
        value = float(f[1:-1] @ np.einsum("ijk,j,k->i", np.diff(table, axis=0), P, R))
        assert line.startswith(name)
        assert numbers(line) == pytest.approx([value, value], abs=2e-6)
    says("for three units with four levels and a random loss")
    assert 4**3 == 64


@pytest.mark.parametrize(("count", "scale"), [(5, 0.5), (2, 1.0), (11, 1.75)])
def test_fig_staircase_figure(count: int, scale: float) -> None:
    top, low = axes(PATH, "staircase_figure", count=count, scale=scale)
    law, marks = LAWS["Triangular"](scale), np.arange(1, count) - count / 2
    stairs, mean = lines(top)
    slope, variance = lines(low)
    for j in range(0, 241, 12):
        a = mean[0][j]
        expected = moments(a, marks, law)
        assert mean[1][j] == pytest.approx(expected[0], abs=1e-9)
        assert stairs[1][j] == (a >= marks).sum()
        assert slope[1][j] == pytest.approx(expected[1], abs=1e-9)
        assert variance[1][j] == pytest.approx(expected[2], abs=1e-9)
    assert top.get_ylim()[1] > mean[1].max() and low.get_ylim()[1] >= slope[1].max()
    band = top.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx((mean[1] + np.sqrt(np.maximum(variance[1], 0))).max())


@pytest.mark.slow
def test_fig_staircase_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-21-staircase"])["answer"])
    marks = np.arange(1, 11) - 5.5

    def spread(scale: float, which: int, within: float) -> tuple[float, float]:
        found = [moments(a, marks, LAWS["Triangular"](scale))[which]
                 for a in np.linspace(-within, within, 101)]  # fmt: skip
        return min(found), max(found)

    for which, value in ((1, 1), (2, 0.25)):
        assert spread(1, which, 4.5) == pytest.approx((value, value))
    for which, value in ((1, 1), (2, 0.75)):
        assert spread(2, which, 3.5) == pytest.approx((value, value))
    assert "the slope 1 and the variance 1/4" in answer and "the variance is 3/4" in answer
    ripples = [[high / low - 1 for scale in (1.25, 1.5, 1.75)
                for low, high in [spread(scale, which, 0.5)]] for which in (1, 2)]  # fmt: skip
    assert min(map(min, ripples)) > 0.05 and max(ripples[0]) == ripples[0][1]
    assert f"1.5 the slope by {100 * ripples[0][1]:.0f} percent" in answer
    assert f"the variance by {100 * max(ripples[1]):.0f} percent at most" in answer
    for count, flat in ((4, False), (5, True)):
        slopes = [moments(a, np.arange(1, count) - count / 2, LAWS["Triangular"](2))[1]
                  for a in np.linspace(-0.4, 0.4, 21)]  # fmt: skip
        assert (np.ptp(slopes) < 1e-12) == flat


# --------------------------------------------------------------------------------- the bias


@pin(
    "thm-21-bias",
    r"""
    Let $F$ be as in {prf:ref}`thm-21-exact`, and $L=\tfrac12x^\top Ax+l^\top x$ with a symmetric
    $A$, in the last layer, with independent units. Then the mean of straight-through in
    coordinate $i$ differs from the exact gradient by {eq-21-bias}
    """,
)
@pin(
    "eq-21-bias",
    r"""
    \mathbb E\bigl[\mu'(a_i)\,\partial_iL(x)\bigr]-\frac{\partial}{\partial a_i}\mathbb
    EL=-\tfrac12A_{ii}\,V'(a_i).
    """,
)
def test_eq_21_bias() -> None:
    A = np.array([[1.3, -0.4], [-0.4, 0.7]])
    c = np.array([0.2, -0.5])

    def loss(x: Array) -> float:
        return float(x @ A @ x / 2 + c @ x)

    for name, scale in SMOOTH.items():
        law, a = LAWS[name](scale), np.array([0.3, -0.6])
        exact = slope_of(
            lambda v, law=law, a=a: expected_loss(np.array([v, a[1]]), UNEQUAL, law, loss), a[0]
        )
        mean = moments(a[0], UNEQUAL, law)[1] * expected_loss(
            a, UNEQUAL, law, lambda x: float((A @ x + c)[0])
        )
        tilt = slope_of(lambda v, law=law: moments(v, UNEQUAL, law)[2], a[0])
        assert mean - exact == pytest.approx(-A[0, 0] * tilt / 2, rel=1e-7)
        own = levels.exact_moments(
            lambda x: (x @ torch.tensor(A) * x).sum(-1) / 2 + x @ torch.tensor(c),
            torch.tensor(a), UNEQUAL, getattr(sbnlib.noise, name)(scale), levels.straight_through,
        )[0]  # fmt: skip
        assert own[0].item() == pytest.approx(mean, rel=1e-10)
    # signs: V = 1 - mu^2, and the bias is 2 f mu A
    law = LAWS["Logistic"]()
    mu, f = 2 * law.cdf(0.7) - 1, law.pdf(0.7)
    assert -slope_of(lambda v: 1 - (2 * law.cdf(v) - 1) ** 2, 0.7) / 2 == pytest.approx(2 * f * mu)
    says("half of its slope is $-2f\\mu$, and the bias is $2f\\mu A_{ii}$")


def dithered(m: int, a: float, count: int) -> tuple[Array, Array]:
    """P and f of a unit with steps 1 around 0, under the sum of m uniform numbers."""

    def cdf(t: Array) -> Array:
        t = np.clip(t + m / 2, 0, m)
        total = sum((-1) ** j * math.comb(m, j) * np.maximum(t - j, 0) ** m for j in range(m + 1))
        return np.asarray(total) / math.factorial(m)

    def pdf(t: Array) -> Array:
        t = t + m / 2
        if m == 1:
            return ((t > 0) & (t < 1)).astype(float)
        total = sum(
            (-1) ** j * math.comb(m, j) * np.maximum(t - j, 0) ** (m - 1) for j in range(m + 1)
        )
        return np.where((t > 0) & (t < m), np.asarray(total) / math.factorial(m - 1), 0)

    t = a - (np.arange(1, count) - count / 2)
    p = np.concatenate([[1.0], cdf(t), [0.0]])
    return p[:-1] - p[1:], np.concatenate([[0.0], pdf(t), [0.0]])


@pin(
    "prop-21-dither",
    r"""
    Let $L$ be a polynomial of degree at most $m$ in $x_i$, in the last layer, with independent
    units. Let the thresholds have distance 1, and let $Z$ be the sum of $m\ge1$ independent
    uniform numbers on $[-\tfrac12,\tfrac12]$. If $\vartheta_1-1+\tfrac
    m2<a_i<\vartheta_{C-1}+1-\tfrac m2$, which needs $C>m$, then $\mu'=1$ and straight-through is
    unbiased in coordinate $i$ (for $m=1$ wherever $F$ is differentiable at all
    $a_i-\vartheta_k$), and for $m\ge2$ {eq-21-dither}
    """,
)
@pin(
    "eq-21-dither",
    r"""
    V=\frac{m+1}{12} .
    """,
)
def test_eq_21_dither() -> None:
    count = 9
    k = np.arange(count)
    for m in (1, 2, 3, 4):
        end = (count - 2) / 2 + 1 - m / 2
        biases, outside = [], []
        for a in np.linspace(-end, end, 61)[1:-1] + 1e-3:
            P, f = dithered(m, a, count)
            for degree in range(1, m + 2):
                loss = np.polynomial.Polynomial(G.normal(size=degree) / 4 ** np.arange(degree))
                loss = loss + np.polynomial.Polynomial([0] * degree + [4.0**-degree])
                gap = (P * f.sum()) @ loss.deriv()(k - 4.0) - f[1:-1] @ np.diff(loss(k - 4.0))
                if degree <= m:
                    assert abs(gap) < 1e-12
                else:
                    biases.append(abs(gap))
            assert f.sum() == pytest.approx(1)
            variance = P @ k**2 - (P @ k) ** 2
            if m > 1:
                assert variance == pytest.approx((m + 1) / 12)
            else:
                r = (a + 4.5 - 0.5) % 1
                assert variance == pytest.approx(r * (1 - r))
        assert max(biases) > 1e-4  # one degree more is too much
        for a in (end + 0.1, end + 0.4):  # and so is a place nearer to the end
            P, f = dithered(m, a, count)
            outside.append(abs(f.sum() - 1))
        assert max(outside) > 1e-4
    # uniform noise of half a step: a bias of up to half of the curvature
    assert max(abs(1 - 2 * r) / 2 for r in np.linspace(0, 1, 101)) == 0.5


ROWS = [
    ("Uniform", 0.5, 0, False), ("Triangular", 1, 0, False), ("Triangular", 0.9, 0, False),
    ("Triangular", 2, 0, False), ("Gaussian", 0.5, 0, False), ("Triangular", 1, 0, True),
    ("Triangular", 1, 5, False),
]  # fmt: skip


@pytest.mark.slow
def test_the_table_of_dithers() -> None:
    marks = np.arange(1, 12) - 6.0
    inside = np.linspace(-0.5, 0.5, 402)[:-1] + 1e-4
    found = []
    for line, (name, scale, at, uneven) in zip(
        lines_of(containing(PATH, "uneven =")), ROWS, strict=True
    ):
        m = marks * np.linspace(1, 1.3, 11) if uneven else marks
        largest = max(abs(moments(at + a, m, LAWS[name](scale))[3]) / 2 for a in inside)
        found.append(largest)
        assert float(line.split()[-1]) == pytest.approx(largest, abs=6e-5)
    assert found[1] < 1e-12 > found[3] and found[6] > 0.1 < found[5]
    assert found[2] / found[0] == pytest.approx(1 / 5, abs=0.01)
    assert found[4] / found[0] == pytest.approx(1 / 20, abs=0.001)
    says("at 0.9 steps a fifth of the bias of stochastic rounding is left, and Gaussian noise of "
         "half a step leaves a twentieth")  # fmt: skip
    for a in (-0.45, 0.0, 0.3):  # three levels: constant between the two thresholds
        assert moments(a, (-0.5, 0.5), LAWS["Triangular"]())[2] == pytest.approx(0.25)
    assert moments(0.7, (-0.5, 0.5), LAWS["Triangular"]())[2] < 0.24
    assert moments(1.5, (-0.5, 0.5), LAWS["Triangular"]())[2] == 0
    says("its variance constant between its two thresholds, and on both sides it falls to 0")
    # a coin beside a uniform number of one step is a uniform number of two
    two, one = LAWS["Uniform"](1.0), LAWS["Uniform"](0.5)
    t = np.linspace(-1.2, 1.2, 25)
    assert two.cdf(t) == pytest.approx((one.cdf(t - 0.5) + one.cdf(t + 0.5)) / 2)


# ------------------------------------------------------------------------------ three members


@pin(
    "prop-21-members",
    r"""
    Let $F$ be as in {prf:ref}`thm-21-exact`, and $V>0$ at $a$. A factor $c(x)$ is exact for every
    loss that is at most quadratic in $x_i$, in the last layer with independent units, if and only
    if {eq-21-quadratic} These are two equations for $C$ numbers, of which those of impossible
    levels do not matter. Three solutions are {eq-21-members} The first has the least $\mathbb
    E\,c^2$ of all solutions, $\mu'^2+V'^2/(4V)$. The trapezoid is exact for every loss that has a
    continuous derivative in $x_i$ and is quadratic in $x_i$ between any two neighbouring levels.
    For $C=2$ all three are ZGR.
    """,
)
@pin(
    "eq-21-members",
    r"""
    \begin{aligned} \text{least variance:}\quad&c=\mu'+\frac{V'}{2V}\,(x-\mu),\\
    \text{trapezoid:}\quad&c(k)=\frac{f_k+f_{k+1}}{2\,P(k)},\\
    \text{half:}\quad&c=\tfrac12\bigl[\mu'+(x-\mu)\,\partial_a\log P(x)\bigr]. \end{aligned}
    """,
)
def test_eq_21_members() -> None:
    for name, scale in (*SMOOTH.items(), ("Triangular", 1.6)):
        law = LAWS[name](scale)
        for a in (-0.3, 0.2, 0.55):
            P, f = law_of(a, UNEQUAL, law)
            assert min(P) > 0
            k = np.arange(4)
            _, slope, variance, tilt = moments(a, UNEQUAL, law)
            rules = factors(a, UNEQUAL, law)
            least = (P * rules["least variance"] ** 2).sum()
            assert least == pytest.approx(slope**2 + tilt**2 / 4 / variance)
            for rule in ("least variance", "trapezoid", "half"):
                c = rules[rule]
                for loss in (k**2 / 2, 1.0 * k):
                    rise = np.gradient(loss) if loss[1] == 1 else 1.0 * k
                    assert (P * c) @ rise == pytest.approx(f[1:-1] @ np.diff(loss))
                assert (P * c**2).sum() >= least - 1e-12
            # a spline with a continuous derivative: trapezoid only
            rise = G.normal(size=4)
            steps = (rise[1:] + rise[:-1]) / 2
            right = f[1:-1] @ steps
            assert (P * rules["trapezoid"]) @ rise == pytest.approx(right)
            for rule in ("least variance", "half"):
                assert abs((P * rules[rule]) @ rise - right) > 1e-4
            own = torch.tensor([a] * 4, requires_grad=True)
            for rule in ("least_variance", "trapezoid", "half"):
                function = getattr(levels, rule)
                x = torch.arange(4.0)
                got = torch.autograd.grad(
                    function(own, x, UNEQUAL, getattr(sbnlib.noise, name)(scale)).sum(), own
                )[0]
                assert got.numpy() == pytest.approx(rules[rule.replace("_", " ")])
    law = LAWS["Logistic"]()  # two levels: ZGR, f / P(x) in the coding 0 and 1, over 2
    for a in (-1.2, 0.4):
        P, f = law_of(a, (0.0,), law)
        rules = factors(a, (0.0,), law)
        for rule in ("least variance", "trapezoid", "half"):
            assert rules[rule] == pytest.approx(f[1] / 2 / P)
    says("for signs one factor is exact for all quadratics".capitalize())


@pin(
    "eq-21-quadratic",
    r"""
    \mathbb E\,c=\mu',\qquad \mathbb E\,c\,x=\tfrac12\,(\mathbb E\,x^2)' .
    """,
)
def test_eq_21_quadratic() -> None:
    """A factor is exact for every quadratic if it meets the two equations, and only then."""
    law, a, k = LAWS["Logistic"](0.4), 0.3, np.arange(4)
    P, f = law_of(a, UNEQUAL, law)
    second = slope_of(lambda v: law_of(v, UNEQUAL, law)[0] @ k**2, a) / 2
    slope = slope_of(lambda v: law_of(v, UNEQUAL, law)[0] @ k, a)
    system = np.array([P, P * k])
    start = np.linalg.lstsq(system, np.array([slope, second]), rcond=None)[0]
    free = np.linalg.svd(system)[2][2:]  # C - 2 directions are left
    assert len(free) == 2
    for _ in range(5):
        c = start + G.normal(size=2) @ free
        A, r = G.normal(size=2)
        exact = f[1:-1] @ np.diff(A * k**2 / 2 + r * k)
        assert (P * c) @ (A * k + r) == pytest.approx(exact)
        bad = c + 0.1
        assert abs((P * bad) @ (A * k + r) - exact) > 1e-6


def test_the_line_goes_on() -> None:
    """c = mu' + (1 - s) V'/2V (x - mu) has the bias -s A V'/2."""
    law, a, k = LAWS["Gaussian"](0.5), 0.35, np.arange(4)
    P, f = law_of(a, UNEQUAL, law)
    mean, slope, variance, tilt = moments(a, UNEQUAL, law)
    for s in (-1, 0, 0.4, 1):
        c = slope + (1 - s) * tilt / 2 / variance * (k - mean)
        gap = (P * c) @ (1.0 * k) - f[1:-1] @ np.diff(k**2 / 2)
        assert gap == pytest.approx(-s * tilt / 2)
    says("has the bias $-\\tfrac s2A_{ii}V'$")


@pytest.mark.parametrize(("knot", "scale"), [(1.5, 1.0), (0.25, 1.0), (2.0, 1.0)])
def test_fig_members_figure(knot: float, scale: float) -> None:
    top, low = axes(PATH, "members_figure", knot=knot)
    law, marks, k = LAWS["Triangular"](scale), np.arange(1, 4) - 2.0, np.arange(4)
    rise, loss = 2 * np.maximum(k - knot, 0), np.maximum(k - knot, 0) ** 2
    names = ["straight-through", "least variance", "trapezoid", "half"]
    for j in range(3, 200, 20):
        a = lines(top)[0][0][j]
        P, f = law_of(a, marks, law)
        rules = factors(a, marks, law)
        for name, square, bias in zip(names, lines(top), lines(low), strict=True):
            assert square[1][j] == pytest.approx((P * rules[name] ** 2).sum(), rel=1e-9)
            gap = (P * rules[name]) @ rise - f[1:-1] @ np.diff(loss)
            assert bias[1][j] == pytest.approx(gap, abs=1e-9)
    for ax in (top, low):
        bottom, edge = ax.get_ylim()
        shown = np.concatenate([line[1] for line in lines(ax)])
        assert bottom <= shown.min() and shown.max() < edge


def test_fig_members_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-21-members"])["answer"])
    names = ["straight-through", "least variance", "trapezoid", "half"]

    def biases(knot: float) -> dict[str, Array]:
        _, low = axes(PATH, "members_figure", knot=knot)
        return {n: abs(v[1]) for n, v in zip(names, lines(low), strict=True)}

    def largest(knot: float) -> dict[str, float]:
        return {n: v.max() for n, v in biases(knot).items()}

    start = largest(0)
    assert max(start[n] for n in names[1:]) < 1e-9 < 0.1 < start["straight-through"]
    inside = abs(np.linspace(-2.6, 2.6, 200)) < 0.99
    assert biases(0)["straight-through"][inside].max() < 1e-9  # "at the ends"
    for knot in (1, 2):
        found = largest(knot)
        assert found["trapezoid"] < 1e-9
        assert min(found[n] for n in names if n != "trapezoid") > 1e-3
    assert max(largest(3).values()) == 0
    for knot in (0.25, 0.5, 0.75, 1.25, 1.5, 1.75, 2.25, 2.5, 2.75):
        assert min(largest(knot).values()) > 1e-3
    assert "the trapezoid is exact again at the knots 1 and 2".lower() in answer.lower()
    _, low = axes(PATH, "members_figure", knot=1.5)
    order = {tuple(np.argsort([abs(v[1][j]) for v in lines(low)])) for j in range(200)}
    assert len(order) > 2  # the order of the biases changes with a


# ------------------------------------------------------------------------------- categories


@pin(
    "prop-21-categories",
    r"""
    For every $C$, ReinMax at temperature 1, twice the straight-through of the probabilities
    $\tfrac12(p+x)$ less half that of $p$, is ZGR, the mean of straight-through and DARN:
    {eq-21-zgr} It is exact for quadratic [extensions](gloss-extension) of a loss of one-hot
    states. If the logits are $\log P(k)$ for a unit with ordered levels, all of positive
    probability, the estimate that the chain rule makes of it for the unit's pre-activation is the
    rule *half* of {prf:ref}`prop-21-members`.
    """,
)
@pin(
    "eq-21-zgr",
    r"""
    \tfrac12\bigl[\operatorname{diag}p-pp^\top\bigr]+\tfrac12\,(x-p)(x-p)^\top .
    """,
)
def test_eq_21_zgr() -> None:
    def J(p: Array) -> Array:
        return np.diag(p) - np.outer(p, p)

    for count in (2, 3, 5):
        p = G.dirichlet(np.ones(count))
        A = G.normal(size=(count, count))
        A, b, mean = A + A.T, G.normal(size=count), np.zeros(count)
        for x, chance in zip(np.eye(count), p, strict=True):
            rule = J(p) / 2 + np.outer(x - p, x - p) / 2
            assert 2 * J((p + x) / 2) - J(p) / 2 == pytest.approx(rule)
            mean += chance * rule @ (A @ x + b)
        exact = J(p) @ (np.diag(A) / 2 + b)  # the loss of a one-hot state is linear
        assert mean == pytest.approx(exact)
    law, a, k = LAWS["Logistic"](0.4), 0.3, np.arange(4)
    P, f = law_of(a, UNEQUAL, law)
    score = (f[:-1] - f[1:]) / P
    pulled = [score @ (J(P) + np.outer(x - P, x - P)) @ k / 2 for x in np.eye(4)]
    rules = factors(a, UNEQUAL, law)
    assert pulled == pytest.approx(rules["half"])
    assert pulled != pytest.approx(rules["least variance"], rel=1e-3)
    assert pulled != pytest.approx(rules["trapezoid"], rel=1e-3)
    assert lines_of(containing(PATH, "from sbnlib import categories")) == [
        "library = formula: True | ReinMax is the same object: True"
    ]


def test_by_hand_is_the_library() -> None:
    assert lines_of(containing(PATH, "NAMES = {")) == ["by hand = library, to 1e-12: True"]
    own = chapters.define(PATH, "law_of", "moments_by_hand", "factors_by_hand")["factors_by_hand"]
    for name, scale in SMOOTH.items():
        law = getattr(sbnlib.noise, name)(scale)
        for a in (-0.4, 0.9):
            found = own(torch.tensor([a]), UNEQUAL, law)
            for rule, c in factors(a, UNEQUAL, LAWS[name](scale)).items():
                assert found[rule][0].numpy() == pytest.approx(c, rel=1e-9)


# ------------------------------------------------------------------------------ in depth


@cache
def lloyd(count: int) -> float:
    """1 - d_C by minimizing the distortion over the edges of the cells."""

    def kept(edges: Array) -> float:
        e = np.concatenate([[-np.inf], np.sort(edges), [np.inf]])
        mass = np.diff(stats.norm.cdf(e))
        first = -np.diff(stats.norm.pdf(e))
        return -float((first**2 / np.maximum(mass, 1e-300)).sum())

    start = stats.norm.ppf(np.arange(1, count) / count)
    return -float(optimize.minimize(kept, start, tol=1e-12).fun)


@cache
def equal_steps(count: int) -> float:
    k = np.arange(1, count)

    def rate(step: float) -> float:
        t = step * (k - count / 2)
        up = stats.norm.sf(t)
        return float(stats.norm.pdf(t).sum() ** 2 / (up @ (2 * k - 1) - up.sum() ** 2))

    return -float(optimize.minimize_scalar(lambda s: -rate(s), (0.2, 1.0), tol=1e-12).fun)


def over_normal(function: Any) -> float:
    found = integrate.quad(lambda a: stats.norm.pdf(a) * function(a), -9, 9, limit=400,
                           points=np.arange(-8, 8.5, 0.5))  # fmt: skip
    return float(found[0])


@cache
def numbers_of(name: str, scale: float) -> tuple[float, float, dict[str, float]]:
    """Var x, the rate and the gains of three levels with thresholds +-0.5."""
    law, marks = LAWS[name](scale), (-0.5, 0.5)
    first = over_normal(lambda a: moments(a, marks, law)[0])
    square = over_normal(lambda a: law_of(a, marks, law)[0] @ np.arange(3) ** 2)
    variance = square - first**2
    rate = over_normal(lambda a: moments(a, marks, law)[1]) ** 2 / variance

    def second(a: float, rule: str) -> float:
        P, f = law_of(a, marks, law)
        k, (mean, slope, spread, tilt) = np.arange(3), moments(a, marks, law)
        if rule == "straight-through":
            return slope**2
        if rule == "least variance":
            return slope**2 + (tilt**2 / 4 / spread if spread > 1e-300 else 0.0)
        safe = np.where(P > 0, P, np.inf)
        if rule == "trapezoid":
            return float(((f[:-1] + f[1:]) ** 2 / 4 / safe).sum())
        return 0.75 * slope**2 + float(((k - mean) ** 2 * (f[:-1] - f[1:]) ** 2 / safe).sum()) / 4

    rules = ("straight-through", "least variance", "trapezoid", "half")
    gains = {r: over_normal(lambda a, r=r: second(a, r)) / variance for r in rules}
    return variance, rate, gains


@pytest.mark.slow
@pin(
    "prop-21-rate",
    r"""
    Let $a\sim\mathcal N(0,1)$ over the units of a wide layer, and let the states be centred and
    scaled to variance 1 over $a$ and the noise. Let $F$ have a density. Then a small overlap is
    multiplied by $\varrho$, in the limit, and if $\mathbb E[(1+a^2)\,c^2]$ is finite the mean
    square of the gradient by $\Gamma$, where {eq-21-rate} and $d_C$ is the least mean squared
    error of a quantizer with $C$ values for a normal number of variance 1.
    """,
)
@pin(
    "eq-21-rate",
    r"""
    \Gamma=\frac{\mathbb E\,c^2}{\operatorname{Var}x},\qquad\varrho=\frac{(\mathbb
    E\,\mu')^2}{\operatorname{Var}x}\le1-d_C,
    """,
)
def test_eq_21_rate() -> None:
    for name, scale in (("Logistic", 0.25), ("Gaussian", 0.4)):
        law, noise = LAWS[name](scale), getattr(sbnlib.noise, name)(scale)
        for marks in ((-0.5, 0.5), (-1.1, -0.2, 0.9), (0.3,)):
            first = over_normal(lambda a, m=marks, law=law: moments(a, m, law)[0])
            k = np.arange(len(marks) + 1)
            square = over_normal(lambda a, m=marks, law=law, k=k: law_of(a, m, law)[0] @ k**2)
            variance = square - first**2
            along = over_normal(lambda a, m=marks, law=law: a * moments(a, m, law)[0])
            slope = over_normal(lambda a, m=marks, law=law: moments(a, m, law)[1])
            assert along == pytest.approx(slope, rel=1e-7)
            rate = slope**2 / variance
            assert rate <= lloyd(len(marks) + 1)
            assert sbnlib.overlap(noise, thresholds=marks) == pytest.approx(rate, rel=1e-6)
            # the slope of the overlap of the scaled states at 0, by Gauss-Hermite sums
            z, w = np.polynomial.hermite_e.hermegauss(80)
            w = w / w.sum()
            r = 1e-3
            mean = np.array([moments(a, marks, law)[0] for a in z])
            other = np.array([[moments(r * a + math.sqrt(1 - r * r) * b, marks, law)[0]
                               for b in z] for a in z])  # fmt: skip
            overlap = (w @ (mean * (other @ w)) - (w @ mean) ** 2) / variance
            assert overlap / r == pytest.approx(rate, rel=5e-3)
    for (name, scale), rule in itertools.product(
        (("Triangular", 1.0), ("Logistic", 0.25)),
        (("straight-through", levels.straight_through), ("trapezoid", levels.trapezoid)),
    ):
        _, _, gains = numbers_of(name, scale)
        own = sbnlib.gain(getattr(sbnlib.noise, name)(scale), rule[1], thresholds=(-0.5, 0.5))
        assert own == pytest.approx(gains[rule[0]], rel=1e-5)


def test_the_table_of_levels() -> None:
    _, *said = lines_of(containing(PATH, "def lloyd_max("))
    for line, count in zip(said, (2, 3, 4, 8, 16), strict=True):
        equal = equal_steps(count)
        depth = math.log(10) / -math.log(equal)
        assert numbers(line) == pytest.approx([count, lloyd(count), equal, depth], abs=0.06)
        assert numbers(line)[1:3] == pytest.approx([lloyd(count), equal], abs=6e-5)
        assert (lloyd(count) - equal < 1e-6) == (count < 4)
    kept = math.log(10) / -math.log(equal_steps(16))
    says(f"with 16 levels a tenth of a small overlap is left after {kept:.0f} layers, with two "
         "after five")  # fmt: skip
    depths = [-1 / math.log(equal_steps(count)) for count in (4, 8, 16)]
    assert [round(math.log2(b / a), 1) for a, b in itertools.pairwise(depths)] == [1.7, 1.7]
    says("From 4 to 16 levels the layers grow like $C^{1.7}$")
    assert lloyd(2) == pytest.approx(2 / math.pi)
    assert math.log(10) / -math.log(2 / math.pi) == pytest.approx(5.1, abs=0.05)
    says("From four on the best quantizer has unequal steps between its *values*")


@pytest.mark.slow
def test_the_table_of_gains_with_levels() -> None:
    head, *said = lines_of(containing(PATH, "THREE = "))
    ends = [[m.end() for m in re.finditer(r"\S+", line)][-4:] for line in (head, *said)]
    assert all(end == ends[0] for end in ends)  # a head stands over its column
    laws = [("Triangular", 1.0), ("Triangular", 0.5), ("Uniform", 1.0)]
    for line, (name, scale) in zip(said, laws, strict=True):
        _, rate, gains = numbers_of(name, scale) if name != "Uniform" else uniform_numbers()
        found = line[21:].split()
        assert line.startswith(f"{name} {scale:g}")
        assert float(found[0]) == pytest.approx(rate, abs=6e-4)
        assert float(found[1]) == pytest.approx(gains["straight-through"], abs=6e-3)
        for text, rule in zip(found[2:], ("least variance", "trapezoid", "half"), strict=True):
            if name == "Uniform":
                assert text == "inf"
            else:
                assert float(text) == pytest.approx(gains[rule], abs=6e-3)
                least = gains["least variance"]
                assert gains[rule] > least * (1 - 1e-6) > gains["straight-through"]
                assert scale != 0.5 or gains[rule] == pytest.approx(least, rel=1e-5)
    _, _, gains = numbers_of("Triangular", 1.0)
    over = [gains[rule] / gains["straight-through"] for rule in ("least variance", "half")]
    assert [f"{v:.1f}" for v in over] == ["1.2", "1.8"]
    says("with triangular noise of one step exactness costs a factor of 1.2 a layer, with *half* "
         "1.8")  # fmt: skip


def uniform_numbers() -> tuple[float, float, dict[str, float]]:
    law, marks = LAWS["Uniform"](1.0), (-0.5, 0.5)
    square = over_normal(lambda a: law_of(a, marks, law)[0] @ np.arange(3) ** 2)
    variance = square - 1
    slope = over_normal(lambda a: moments(a, marks, law)[1])
    gain = over_normal(lambda a: moments(a, marks, law)[1] ** 2)
    return variance, slope**2 / variance, {"straight-through": gain / variance}


# ------------------------------------------------------------------------------ the simplex


W3 = np.array([-1.0, 0.0, 1.0])


@pin(
    "prop-21-ratio",
    r"""
    Let the weight make mirror descent steps on the simplex with the Kullback–Leibler divergence,
    from positive probabilities, with $g=(-1,0,1)\,g_w$ for whatever numbers $g_w$. Then
    {eq-21-ratio} does not change. If it is $r$, then $p_0\le1/(1+2\sqrt r)$ at all times, with
    equality where $p_+=p_-$; from the uniform law, $p_0\le\tfrac13$. Let the other weights be
    independent of $w$, $m=p_+-p_-$ and $V=p_++p_--m^2$. The estimate
    $(-c_-,0,c_+)\,\partial_wL(w)$ with {eq-21-simplex} is straight-through for $s=1$. It is
    unbiased for every $s$ if $L$ is linear in $w$, and for $s=0$ if $L$ is quadratic in $w$. Of
    all pairs $c_\pm$ that are exact for quadratics it has, at $s=0$, the least mean squares.
    """,
)
@pin(
    "eq-21-ratio",
    r"""
    \frac{p_+\,p_-}{p_0^2}
    """,
)
def test_eq_21_ratio() -> None:
    for start in (np.full(3, 1 / 3), np.array([0.2, 0.5, 0.3])):
        p, ratio = start, start[0] * start[2] / start[1] ** 2
        for _ in range(200):
            p = p * np.exp(-0.3 * W3 * G.normal())
            p = p / p.sum()
            assert p[0] * p[2] / p[1] ** 2 == pytest.approx(ratio, rel=1e-9)
            assert p[1] <= 1 / (1 + 2 * math.sqrt(ratio)) + 1e-12
    # the bound is reached at mean 0, from below, by a loss that pulls the mean there
    for start in (np.array([0.1, 0.3, 0.6]), np.array([1e-6, 0.1, 1 - 0.1 - 1e-6])):
        p, ratio = start, start[0] * start[2] / start[1] ** 2
        for _ in range(4000):
            p = p * np.exp(-0.05 * W3 * 2 * (p @ W3))
            p = p / p.sum()
        assert p[1] == pytest.approx(1 / (1 + 2 * math.sqrt(ratio))) and p[1] > start[1]
    assert 1 / (1 + 2 * math.sqrt(1.0)) == pytest.approx(1 / 3)
    for pull in (0.3, -0.2):  # "no curvature moves the weight" whose mean is -l/A
        p = np.array([0.3, 0.4, 0.3]) - np.array([-1, 0, 1]) * pull / 4
        assert p @ W3 == pytest.approx(-pull / 2) and 2 * (p @ W3) + pull == pytest.approx(0)
    # the quadratic-exact gradient of w^2 / 2 drives it to its zero, straight-through nowhere
    p = np.full(3, 1 / 3)
    for _ in range(400):
        p = p * np.exp(-0.1 * W3**2 / 2)
        p = p / p.sum()
    assert p[1] > 0.999


@pin(
    "eq-21-simplex",
    r"""
    c_\pm=1+(1-s)\,\frac{(\pm\frac12-m)(w-m)}{V}
    """,
)
def test_eq_21_simplex() -> None:
    for _ in range(4):
        p = G.dirichlet(np.ones(3))
        m = p[2] - p[0]
        V = p[0] + p[2] - m**2
        A, line = G.normal(size=2)
        for s in (1.0, 0.4, 0.0):
            up, down = (1 + (1 - s) * (sign * 0.5 - m) * (W3 - m) / V for sign in (1, -1))
            assert p @ up == pytest.approx(1) == p @ down
            if s == 0:
                assert p @ (up * (A * W3 + line)) == pytest.approx(A / 2 + line)
                assert p @ (-down * (A * W3 + line)) == pytest.approx(A / 2 - line)
            layer = sbnlib.nn.TernaryLinear(1, 1, bias=False, s=s, dtype=torch.float64)
            layer.theta.data.copy_(torch.tensor(np.log(p)))
            seen = set()
            for u in (0.5 * p[2], p[2] + 0.5 * p[1], 1 - 0.5 * p[0]):
                layer.theta.grad = None
                w = layer.weight(u=torch.tensor([[u]]))
                (A * w**2 / 2 + line * w).sum().backward()
                state = int(w.item())
                seen.add(state)
                push = A * state + line
                expected = [-down[state + 1] * push, 0, up[state + 1] * push]
                assert layer.theta.grad.reshape(3).numpy() == pytest.approx(expected)
            assert seen == {-1, 0, 1}
        # any factor with the same two means has a larger square
        best = 1 + (0.5 - m) * (W3 - m) / V
        free = np.cross(p, p * W3)
        assert p @ (best + 0.3 * free / np.abs(free).max()) ** 2 > p @ best**2


STARTS = (0.1, 1 / 3, 0.7)


@pytest.mark.parametrize("pull", [0.3, 0.0, 1.0])
def test_fig_simplex_figure(pull: float) -> None:
    top, low = axes(PATH, "simplex_figure", pull=pull)
    falls, rises, best = lines(low)
    loss = W3**2 / 2 + pull * W3
    drawn = lines(top)
    assert len(drawn) == 12
    for n, (zero, exact) in enumerate(itertools.product(STARTS, (False, True))):
        curve, last = drawn[2 * n], drawn[2 * n + 1]
        p = np.array([(1 - zero) / 2, zero, (1 - zero) / 2])
        for j in range(201):
            if j % 50 == 0:
                assert curve[:, j] == pytest.approx([p @ W3, p[1]], abs=1e-9)
                if zero == 1 / 3:
                    assert (rises if exact else falls)[1][j] == pytest.approx(p @ loss, abs=1e-9)
            g = loss if exact else W3 * (p @ W3 + pull)
            p = p * np.exp(-0.2 * g)
            p = p / p.sum()
        assert last[:, 0] == pytest.approx(curve[:, -1])
    assert best[1] == pytest.approx([min(loss)] * 2)


@pytest.mark.slow
def test_fig_simplex_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-21-simplex"])["answer"])
    for pull in (0.0, 0.2, 0.5, 0.8):
        top, low = axes(PATH, "simplex_figure", pull=pull)
        ends = [curve[:, 0] for curve in lines(top)[1::2]]
        for zero, st, end in zip(STARTS, ends[::2], ends[1::2], strict=True):
            assert st[0] == pytest.approx(-pull, abs=0.02)
            arc = ((1 - zero) / zero) ** 2 / 4
            assert ((1 - st[1]) ** 2 - st[0] ** 2) / 4 == pytest.approx(arc * st[1] ** 2)
            if pull < 0.5:
                assert end == pytest.approx([0, 1], abs=0.03)
            if pull > 0.5:
                assert end == pytest.approx([-1, 0], abs=0.03)
            if pull == 0.5:  # the other end is gone, and the ratio of these two is the first one
                assert end[1] / (1 - end[1]) == pytest.approx(zero / (1 - zero) * 2, rel=1e-6)
        assert lines(low)[0][1][-1] > lines(low)[2][1][0] + 0.02  # a loss above the least
    top, _ = axes(PATH, "simplex_figure", pull=0.0)
    assert max(np.ptp(curve) for curve in lines(top)[0][:1]) < 1e-12
    assert np.ptp(lines(top)[0][1]) < 1e-12
    assert "is minus the pull, each time on the arc of its start" in answer
    says("With $l=0.3$ and a uniform start the exact gradient ends at a zero")


def test_the_table_of_sampled_ternary_weights() -> None:
    one, zero = lines_of(containing(PATH, "nn.TernaryLinear(50"))
    assert one.endswith("the ratio moved: False") and zero.endswith("the ratio moved: True")
    st, st_most = numbers(one)[-2:]
    exact, _ = numbers(zero)[-2:]
    # on the arc of the uniform law a mean of -0.3 has this p_0; samples move around it
    arc = optimize.brentq(lambda q: ((1 - q) ** 2 - 0.09) / 4 - q**2, 0, 1)
    assert abs(st - arc) < 0.03 and st_most <= 1 / 3 + 5e-4
    assert exact > 0.9


# ------------------------------------------------------------------------------ the dead zone


@pin(
    "prop-21-zone",
    r"""
    Let the mean of the weight be $m(\eta)=m_0\bigl(\operatorname{sign}\eta\,(|\eta|-d)_+\bigr)$,
    a soft threshold $d\ge0$ before an odd $m_0$ with
    $m_0(t)\in\operatorname{arg\,max}_{|q|\le1}\,[tq-\Phi_0(q)]$ for a convex even $\Phi_0$. Then
    {eq-21-zone} (a) Steps $\eta\leftarrow\eta-\varepsilon g$ from 0 are [dual
    averaging](gloss-dual-averaging) with an $\ell_1$ term: $m$ minimizes $q\sum\varepsilon
    g+\Phi_0(q)+d\,|q|$, and 0 is a minimum as long as $|\sum\varepsilon g|\le d$. (b) With decay,
    $\eta\leftarrow(1-\varepsilon\lambda)\,\eta-\varepsilon g$ with $0<\varepsilon\lambda<2$, and
    a constant $g$, $\eta\to-g/\lambda$, where $m$ minimizes $g\,q+\lambda\,\Phi_0(q)+\lambda
    d\,|q|$. If $\Phi_0$ is differentiable at 0, then 0 is a minimum if and only if $|g|\le\lambda
    d$.
    """,
)
@pin(
    "eq-21-zone",
    r"""
    \begin{gathered} m(\eta)\in\operatorname*{arg\,max}_{|q|\le1}\ \bigl[\eta\,q-\Phi(q)\bigr],\\
    \Phi(q)=\Phi_0(q)+d\,|q| . \end{gathered}
    """,
)
def test_eq_21_zone() -> None:
    q = np.linspace(-1, 1, 40001)
    for r, zone in ((0.2, 0.3), (0.4, 0.1), (0.5, 0.0)):
        law, edge = stats.uniform(-r, 2 * r), zone + r
        for eta in (-1.3, -0.35, -0.05, 0.0, 0.2, 0.31, 0.47, 0.8):
            mean = law.cdf(eta - edge) - law.cdf(-eta - edge)
            grid = q[np.argmax(eta * q - r * q**2 - zone * abs(q))]
            assert mean == pytest.approx(grid, abs=1e-4)
            soft = np.sign(eta) * max(abs(eta) - zone, 0)
            assert mean == pytest.approx(np.clip(soft / (2 * r), -1, 1))
    # (b): with decay, zero if and only if |g| <= decay times zone; (a): the sum against d
    for g in (0.1, 0.149, 0.151, 0.4):
        eta = 0.0
        for _ in range(2000):
            eta = (1 - 0.1 * 0.5) * eta + 0.1 * g
        assert eta == pytest.approx(g / 0.5)
        law = stats.uniform(-0.2, 0.4)
        mean = law.cdf(eta - 0.5) - law.cdf(-eta - 0.5)
        assert (abs(mean) < 1e-12) == (g <= 0.5 * 0.3)
    deterministic = [q[np.argmin(s * q + 0.3 * abs(q))] for s in (-0.2, -0.31, 0.5)]
    assert deterministic == [0, 1, -1]


def test_fig_zone_figure() -> None:
    """The inverse of the mean, from the law of the weight; below, its integral."""
    top, low = still(PATH, "fig-21-zone")
    for r, inverse, mirror in zip((0.1, 0.3, 0.5), lines(top), lines(low), strict=False):
        law = stats.uniform(-r, 2 * r)
        q, eta = inverse
        mean = law.cdf(eta - 0.5) - law.cdf(-eta - 0.5)
        assert mean == pytest.approx(q, abs=1e-9)
        jump = np.ptp(eta[abs(q) < 1e-12])
        assert jump == pytest.approx(2 * (0.5 - r))
        whole = np.concatenate([[0.0], np.cumsum(np.diff(q) * (eta[1:] + eta[:-1]) / 2)])
        middle = len(q) // 2
        assert mirror[1] - mirror[1][middle] == pytest.approx(whole - whole[middle], abs=1e-12)
    says("the inverse *jumps* by $2d$ at 0")
    # differentiable or not, the claim holds; (b) needs it: with a kink in Phi_0, 0 is best further
    q = np.linspace(-1, 1, 4001)
    for eta in (-1.2, -0.7, 0.2, 0.5, 0.79, 0.81):
        t = math.copysign(max(abs(eta) - 0.3, 0), eta)
        m = 0.0 if abs(t) <= 0.5 else math.copysign(1, t)
        gain = eta * q - abs(q) / 2 - 0.3 * abs(q)
        assert gain.max() == pytest.approx(eta * m - 0.8 * abs(m), abs=1e-12)
        assert (abs(gain.max()) < 1e-12) == (abs(eta) < 0.8)


def test_the_table_of_the_dead_zone() -> None:
    head, *said = lines_of(containing(PATH, "def settled("))
    pulls = numbers(head)
    q = np.linspace(-1, 1, 200001)
    for line, (r, _) in zip(said, itertools.product((0.1, 0.3, 0.5), "ab"), strict=True):
        penalty = 0.5 * (r * q**2 + (0.5 - r) * abs(q))
        expected = [q[np.argmin(-g * q + penalty)] for g in pulls]
        assert numbers(line)[-6:] == pytest.approx(expected, abs=6e-3)
        assert numbers(line)[0] == r
    assert math.isclose(0.5 * (0.5 - 0.1), 0.2)
    says(r"With narrow noise all weights whose gradient is below $\lambda d=0.2$ are zero")


# ---------------------------------------------------------------------------------- BitNet


def nearest(eta: Array, gamma: float) -> Array:
    return gamma * np.clip(np.round(eta / gamma), -1, 1)


@pytest.mark.slow
@pin(
    "prop-21-bitnet",
    r"""
    Let $\gamma>0$ be fixed, and let the loss of one weight be $\tfrac12Aw^2+lw$. (a) If the
    rounding has uniform noise of half-width $\frac\gamma2$, the mean of $w$ is $\eta$ for
    $|\eta|\le\gamma$ and constant beyond: the slope is 1 inside and 0 outside. No noise has the
    slope 1 everywhere. (b) For $0<|\eta|<\gamma$, $|\eta|\ne\frac\gamma2$, the slope 1 has,
    against the exact gradient of (a), the bias {eq-21-bitnet} (c) Let $A>0$, let $-l/A$ lie
    strictly between two neighbouring levels, and $\varepsilon\le1/(2A)$. Rounded to the nearest,
    $\eta$ comes within $\varepsilon A\gamma$ of the threshold between the two levels in a finite
    number of steps and stays there, and {eq-21-average}
    """,
)
@pin(
    "eq-21-bitnet",
    r"""
    \begin{aligned} \text{rounded at
    random:}\quad&A\bigl(|\eta|-\tfrac\gamma2\bigr)\operatorname{sign}\eta,\\ \text{rounded to the
    nearest:}\quad&A\,\tfrac\gamma2\,\operatorname{sign}\bigl(|\eta|-\tfrac\gamma2\bigr)\operatorname{sign}\eta
    . \end{aligned}
    """,
)
def test_eq_21_bitnet() -> None:
    gamma, A, line = 0.8, 1.3, -0.4
    law = LAWS["Uniform"](gamma / 2)

    def loss(w: Array) -> Array:
        return A * w**2 / 2 + line * w

    def mean_of(function: Any, eta: float) -> float:
        P, _ = law_of(eta, (-gamma / 2, gamma / 2), law)
        return float(P @ function(gamma * W3))

    for eta in (-1.4, -0.7, -0.5, -0.2, 0.1, 0.35, 0.45, 0.75, 1.3):
        slope = slope_of(lambda v: mean_of(lambda w: w, v), eta)
        assert slope == pytest.approx(1.0 if abs(eta) < gamma else 0.0, abs=1e-8)
        if abs(eta) >= gamma:
            continue
        exact = slope_of(lambda v: mean_of(loss, v), eta)
        drawn = mean_of(lambda w: A * w + line, eta)
        rounded = A * nearest(np.array(eta), gamma) + line
        sign = np.sign(eta)
        assert drawn - exact == pytest.approx(A * (abs(eta) - gamma / 2) * sign)
        assert rounded - exact == pytest.approx(
            A * gamma / 2 * np.sign(abs(eta) - gamma / 2) * sign
        )
    # the integral of the slope of the mean is 2 gamma for any noise, so it is not 1 everywhere
    for name, scale in SMOOTH.items():
        smooth = LAWS[name](scale)
        grid = np.linspace(-30, 30, 6001)
        total = sum(gamma * moments(e, (-0.4, 0.4), smooth)[1] for e in grid) * 0.01
        assert total == pytest.approx(2 * gamma)


@pin(
    "eq-21-average",
    r"""
    \Bigl|\frac1T\sum_{t=1}^{T}w_t+\frac lA\Bigr|=\frac{|\eta_{T+1}-\eta_1|}{\varepsilon AT} .
    """,
)
def test_eq_21_average() -> None:
    gamma, A = 0.8, 1.3
    for goal, start, lr in ((0.3, -1.2, 0.38), (-0.55, 0.9, 0.1), (0.7, 2.0, 0.01)):
        line, eta, total, band = -A * goal, start, 0.0, []
        threshold = math.copysign(gamma / 2, goal)
        for _ in range(3000):
            w = float(nearest(np.array(eta), gamma))
            total += w
            eta -= lr * (A * w + line)
            band.append(abs(eta - threshold) <= lr * A * gamma + 1e-12)
        assert abs(total / 3000 + line / A) == pytest.approx(abs(eta - start) / (lr * A * 3000))
        first = band.index(True)
        assert first < 2000 and all(band[first:])


@pin(
    "eq-21-scale",
    r"""
    dw_i=d\eta_i+\Bigl(\frac{w_i}\gamma-\frac{\eta_i}\gamma\Bigr)\,d\gamma,\qquad
    d\gamma=\frac1n\sum_j\operatorname{sign}(\eta_j)\,d\eta_j .
    """,
)
def test_eq_21_scale() -> None:
    """By automatic differentiation, with the slope 1 for the rounding."""
    eta = torch.tensor(G.normal(size=7), requires_grad=True)
    gamma = eta.abs().mean()
    r = eta / gamma
    w = gamma * (r + (r.round().clamp(-1, 1) - r).detach())
    push = torch.tensor(G.normal(size=7))
    own = torch.autograd.grad((w * push).sum(), eta)[0]
    e, gam = eta.detach(), gamma.detach()
    error = (gam * (e / gam).round().clamp(-1, 1) - e) / gam
    formula = push + (push * error).sum() * e.sign() / 7
    assert own.numpy() == pytest.approx(formula.numpy())


def test_fig_bitnet_figure() -> None:
    top, low = still(PATH, "fig-21-bitnet")
    stairs, mean, line = lines(top)
    exact, drawn, rule = lines(low)
    eta = mean[0]
    assert stairs[1] == pytest.approx(np.where(abs(eta) < 0.5, 0, np.sign(eta)))
    law = LAWS["Uniform"](0.5)
    for j in range(0, 641, 32):
        P, f = law_of(eta[j], (-0.5, 0.5), law)
        assert mean[1][j] == pytest.approx(P @ W3, abs=1e-12)
        if 0.01 < abs(eta[j]) < 0.99:
            assert exact[1][j] == pytest.approx(f[1:-1] @ np.diff(W3**2 / 2 - 0.4 * W3))
            assert drawn[1][j] == pytest.approx(f.sum() * (P @ (W3 - 0.4)))
        assert rule[1][j] == pytest.approx(stairs[1][j] - 0.4)
    assert line[1] == pytest.approx(eta)


def test_the_table_of_trained_ternary_weights() -> None:
    _, *said = lines_of(containing(PATH, "def train_ternary("))
    g = torch.Generator().manual_seed(0)
    goal = (2 * torch.rand(400, generator=g) - 1).numpy()
    begin = (torch.rand(400, generator=g) - 0.5).numpy()
    rows = {}
    for line, rule in zip(said, ("fixed", "exact", "moving", "whole"), strict=True):
        eta, flips, old, late = begin.copy(), 0.0, None, np.zeros(400)
        for t in range(4000):
            gamma = abs(eta).mean() if rule in ("moving", "whole") else 0.8
            w = nearest(eta, gamma)
            if t >= 3000:
                flips += (np.sign(w) != np.sign(old)).mean() / 1000
                late += w / 1000
            push = (gamma * np.sign(eta) / 2 if rule == "exact" else w) - goal
            if rule == "whole":
                push = push + np.sign(eta) / gamma * (push * (w - eta)).mean()
            old, eta = w, eta - 0.01 * push
        near = (abs(abs(eta) - gamma / 2) < 0.02).mean()
        if rule == "fixed":  # "those whose goals lie between two levels"
            at = abs(abs(eta) - gamma / 2) < 0.02
            assert (abs(goal[at]) < 0.8).all() and at.sum() > 0.97 * (abs(goal) < 0.8).sum()
        rows[rule] = [gamma, near, flips, ((w - goal) ** 2).mean(), ((late - goal) ** 2).mean()]
        assert numbers(line) == pytest.approx(rows[rule], abs=0.0051)
        assert numbers(line)[3:] == pytest.approx(rows[rule][3:], abs=6e-5)
    assert 0.45 < rows["fixed"][2] / rows["fixed"][1] < 0.55
    says("At the fixed scale eight in ten sit within 0.02 of a threshold")
    best = ((nearest(goal, 0.8) - goal) ** 2).mean()
    assert 1 <= rows["exact"][3] / best < 1.01 and 1.8 < rows["fixed"][3] / best < 2
    assert rows["fixed"][4] < 0.01 * 0.5 and rows["exact"][2] < 0.005
    assert rows["whole"][0] < rows["moving"][0] and rows["whole"][3] < rows["moving"][3]
    says("ends with a smaller scale and a smaller loss")


def test_the_whole_rule_keeps_the_part_through_the_scale() -> None:
    """The notebook's one step of *whole* beside automatic differentiation."""
    eta = torch.tensor(G.normal(size=9), requires_grad=True)
    goal = torch.tensor(G.normal(size=9))
    gamma = eta.abs().mean()
    r = eta / gamma
    w = gamma * (r + (r.round().clamp(-1, 1) - r).detach())
    ((w - goal) ** 2).sum().div(2).backward()
    e, gam = eta.detach(), gamma.detach()
    push = gam * (e / gam).round().clamp(-1, 1) - goal
    error = (gam * (e / gam).round().clamp(-1, 1) - e) / gam
    assert (push + e.sign() * (push * error).mean()).numpy() == pytest.approx(eta.grad.numpy())


def test_the_table_of_levels_on_the_digits() -> None:
    """Read against the errors of the five seeds that it prints."""
    _, *said = lines_of(containing(PATH, "def percent_right("))
    two, four, bare = (numbers(line.split("noise")[-1].replace("+-", "")) for line in said)
    assert all(len(v) == 4 for v in (two, four, bare))
    for column in (0, 2):
        assert four[column] - two[column] > 1
        assert abs(four[column] - bare[column]) < 3 * math.hypot(
            four[column + 1], bare[column + 1])  # fmt: skip
    assert min(v[2] - v[0] for v in (two, four, bare)) > 0
    says("Four levels are worth a good point of accuracy here")
    says("in these networks the accuracy is not lower for it")


def test_the_shares_of_zeros() -> None:
    said = lines_of(containing(PATH, "eta0 = torch.randn"))
    normal = 2 * stats.norm.cdf(math.sqrt(2 / math.pi) / 2) - 1
    spread = math.sqrt(normal * (1 - normal) / 100_000)
    found = [float(line.split()[-1]) for line in said]
    for value, exact in zip(found, (normal, 0.25, normal), strict=True):
        assert abs(value - exact) < 4 * spread + 6e-4
    assert found[0] == found[2] and round(normal, 3) == 0.310
    says(f"starts with {100 * normal:.0f} percent zeros")
    assert round(spread, 4) == 0.0015
    # decay alone changes no state
    eta = G.normal(size=1000)
    for factor in (0.9, 0.3):
        q = [np.round(v / abs(v).mean()) for v in (eta, factor * eta)]
        assert (q[0] == q[1]).all()


# ------------------------------------------------------------------------------- characters


@cache
def characters() -> list[dict[str, Any]]:
    file = PATH.parents[1] / "measurements" / "characters.json"
    return measurement.read(file)["rows"]


def test_the_table_of_characters() -> None:
    _, *said = lines_of(containing(PATH, "FOUND = measurement.stored"))
    finals: dict[str, list[dict[str, Any]]] = {}
    for row in characters():
        if row["part"] == "final":
            finals.setdefault(row["name"], []).append(row)
    assert [line.split()[0] for line in said] == list(finals)
    twin = [r["test"] for r in finals["real"]]
    for line, own in zip(said, finals.values(), strict=True):
        values = [r["test"] for r in own]
        assert len(values) == 8
        expected = [fmean(values), stdev(values) / math.sqrt(len(values))]
        expected += [fmean(r[k] for r in own) for k in ("drawn", "mean", "zeros", "moved")
                     if own[0][k] is not None]  # fmt: skip
        expected += [fmean(values) - fmean(twin)] if own[0]["name"] != "real" else []
        found = [float(v) for v in re.findall(r"-?\d+\.\d+", line)]
        assert found == pytest.approx(expected, abs=6e-4)


def test_what_is_said_of_the_characters() -> None:
    finals = {n: [r for r in characters() if r["part"] == "final" and r["name"] == n]
              for n in ("real", "absmean", "fixed", "uniform", "triangular", "simplex",
                        "simplex_st")}  # fmt: skip
    test = {n: [r["test"] for r in own] for n, own in finals.items()}
    behind = {n: fmean(v) - fmean(test["real"]) for n, v in test.items() if n != "real"}
    assert [f"{v:.2f}" for v in (min(behind.values()), max(behind.values()))] == ["0.38", "0.76"]

    def error(values: list[float]) -> float:
        return stdev(values) / math.sqrt(len(values))

    def by_block(name: str) -> Array:
        return np.mean([r["blocks"] for r in finals[name]], axis=0)

    for name in behind:
        assert math.hypot(error(test[name]), error(test["real"])) < 0.01
        assert error(list(by_block(name) - by_block("real"))) < 0.0115
    assert max(behind["absmean"], behind["fixed"]) < min(
        v for n, v in behind.items() if n not in ("absmean", "fixed"))  # fmt: skip
    assert behind["absmean"] - behind["fixed"] == pytest.approx(0.012, abs=5e-4)
    p = stats.ttest_ind(test["absmean"], test["fixed"], equal_var=False).pvalue
    assert round(float(p), 2) == 0.03
    assert behind["uniform"] - behind["absmean"] == pytest.approx(0.2, abs=0.05)
    assert fmean(r["mean"] for r in finals["uniform"]) == pytest.approx(2.56, abs=5e-3)
    assert behind["triangular"] - behind["uniform"] == pytest.approx(0.05, abs=5e-3)
    zeros = {n: fmean(r["zeros"] for r in own) for n, own in finals.items() if n != "real"}
    assert min(zeros, key=lambda n: zeros[n]) == "simplex_st"
    assert zeros["simplex_st"] == pytest.approx(0.004, abs=5e-4)
    assert zeros["simplex"] == pytest.approx(0.21, abs=5e-3)
    says("*simplex_st* has 0.4 percent zeros and $s=0$ has 21")
    (text,) = (r for r in characters() if r["part"] == "text")
    assert round(1200 * 256 / text["characters"]["train"], 1) == 0.7
    layer = sbnlib.nn.TernaryLinear(40, 30, bias=False)  # the start
    p_minus, p_zero, p_plus = layer.p.detach().reshape(-1, 3).T
    assert (p_zero - 1 / 3).abs().max() < 1e-6
    assert (1 / (1 + 2 * (p_minus * p_plus).sqrt() / p_zero)).max() < 0.37


def test_the_codes_of_the_doctor() -> None:
    said = lines_of(containing(PATH, 'found("doctor")'))
    own = [r for r in characters() if r["part"] == "doctor"]
    for line, row in zip(said, own, strict=True):
        assert line.split()[0] == row["name"] and line.endswith(", ".join(row["codes"]))
    codes = {r["name"]: r["codes"] for r in own}
    assert "infinite" in codes["fixed"] and codes["absmean"] == ["not-elementwise"]
    assert codes["simplex"] == ["no-units"] and "levels" in codes["uniform"]


# -------------------------------------------------------------------------------- exercises


def checker(name: str) -> Any:
    (cell,) = (c for c in tagged(PATH, "checker") if f"{name} = " in c.source)
    return run(PATH, cell)[name]


CHECKS = ["check_noises", "check_dither", "check_middle", "check_rate", "check_ratio",
          "check_laplace"]  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_the_checkers_know_their_wrong_answers(name: str, capsys: pytest.CaptureFixture) -> None:
    check = checker(name)
    assert len(check.wrong) >= 3
    if name != "check_noises":
        for answer, words in check.wrong:
            capsys.readouterr()
            assert not check(answer)
            assert words in lean(capsys.readouterr().out)
    assert check(check.value)


def test_ex_21_noises_and_its_wrong_answers() -> None:
    """Independent noises: the mean stays, the variance and the law do not."""
    law, marks, k = LAWS["Logistic"](0.5), (-0.5, 0.5), np.arange(3)

    def apart(a: float) -> Array:
        up = law.cdf(a - np.array(marks))
        return np.array([(1 - up).prod(), up[0] + up[1] - 2 * up.prod(), up.prod()])

    a = 0.4
    shared = law_of(a, marks, law)[0]
    mean, slope = apart(a) @ k, slope_of(lambda v: apart(v) @ k, a)
    assert mean == pytest.approx(shared @ k)
    assert slope == pytest.approx(law_of(a, marks, law)[1].sum())
    spread = [P @ k**2 - (P @ k) ** 2 for P in (apart(a), shared)]
    assert abs(spread[0] - spread[1]) > 0.01
    loss = np.array([0.0, 0.0, 1.0])
    exact = slope_of(lambda v: apart(v) @ loss, a)
    assert abs(exact - law_of(a, marks, law)[1][1:-1] @ np.diff(loss)) > 0.01
    tilt = slope_of(lambda v: apart(v) @ k**2 - (apart(v) @ k) ** 2, a)
    gap = slope * mean - slope_of(lambda v: apart(v) @ k**2 / 2, a)
    assert gap == pytest.approx(-tilt / 2)
    says_to(checker("check_noises"), {
        "ab": "the proof uses", "abcde": "covariances", "abde": "skipped", "be": "dependence",
    })  # fmt: skip
    one, two = lines_of(next(c for c in tagged(PATH, "solution") if "check_noises" in c.source))[:2]
    assert numbers(one) == pytest.approx([14 / 64, 0.25], abs=6e-5)
    tri = LAWS["Triangular"]()
    up, f = (getattr(tri, n)(np.array([0.8, -0.2])) for n in ("cdf", "pdf"))
    assert numbers(two)[-2:] == pytest.approx([f @ up[::-1], f[1]], abs=6e-5)
    assert tri.cdf(-0.5) == pytest.approx(1 / 8)


def test_ex_21_dither_and_its_wrong_answers() -> None:
    P, _ = dithered(3, 0.37, 9)
    k = np.arange(9)
    value = P @ k**2 - (P @ k) ** 2
    assert value == pytest.approx(1 / 3) and checker("check_dither")(value)
    two, four = (d[0] @ k**2 - (d[0] @ k) ** 2 for d in (dithered(2, 0.37, 9), dithered(4, 0.3, 9)))
    says_to(checker("check_dither"), {two: "noise alone", four: "enough", 1 / 12: "rounding"})
    says_to(checker("check_dither"), {4 / 6 + 1 / 12: "two steps"})
    says("is not empty from four levels on")
    said = lines_of(next(c for c in tagged(PATH, "solution") if "check_dither" in c.source))[0]
    assert len(said) <= 72
    assert numbers(said) == pytest.approx([1.0, *[1 / 3] * 5], abs=6e-5)


def test_ex_21_middle_and_its_wrong_answers() -> None:
    at = {}
    for spread in (0.2, 0.5):
        law = LAWS["Triangular"]()
        P, f = law_of(0.0, (-spread, spread), law)
        c = factors(0.0, (-spread, spread), law)
        q = P[0]
        at[q] = {n: (P * v**2).sum() / f[1] ** 2 for n, v in c.items()}
        assert at[q]["trapezoid"] == pytest.approx(1 / (2 * q) + 1 / (1 - 2 * q))
        assert at[q]["half"] == pytest.approx(3 + 1 / (2 * q))
        assert at[q]["least variance"] == pytest.approx(4) == at[q]["straight-through"]
    assert checker("check_middle")("f^2/(2*q) + f^2/(1 - 2*q)")
    says_to(checker("check_middle"), {"4*f^2": "straight-through", "3*f^2 + f^2/(2*q)": "half"})
    said = lines_of(next(c for c in tagged(PATH, "solution") if "check_middle" in c.source))
    for line, (q, found) in zip(said, at.items(), strict=False):
        given, *both = numbers(line.replace("^2", ""))
        assert given == pytest.approx(q, abs=6e-4)
        assert both == pytest.approx([found["trapezoid"]] * 2, abs=6e-5)
    assert 1 / 0.5 + 1 / 0.5 == 4  # equality at q = 1/4
    says_to(checker("check_middle"), {"f^2*(2/q + 4/(1 - 2*q))": "half of the two"})


def test_ex_21_rate_and_its_wrong_answers() -> None:
    def rate(t: float, sigma: float) -> float:
        wide = math.sqrt(1 + sigma**2)
        slope = 2 * stats.norm.pdf(t, scale=wide)
        return float(slope**2 / (2 * stats.norm.sf(t, scale=wide)))

    best = [optimize.minimize_scalar(lambda t, s=s: -rate(t, s), (0.4, 0.9), tol=1e-10)
            for s in (0.0, 0.5)]  # fmt: skip
    assert best[0].x == pytest.approx(0.612, abs=5e-4) and -best[0].fun == pytest.approx(lloyd(3))
    assert -best[1].fun == pytest.approx(lloyd(3) / 1.25)
    assert checker("check_rate")(best[1].x)
    equal = stats.norm.ppf(2 / 3) * math.sqrt(1.25)
    first = best[0].x
    says_to(checker("check_rate"), {first: "without noise", equal: "equally likely"})
    says_to(checker("check_rate"), {first * 1.25: "root", first / 2: "noise scales"})
    said = lines_of(next(c for c in tagged(PATH, "solution") if "check_rate" in c.source))[0]
    assert numbers(said) == pytest.approx([best[1].x, -best[1].fun, lloyd(3) / 1.25], abs=6e-4)
    says("the rate is divided by $1+\\sigma^2$: 0.648 at $\\vartheta=0.684$")


def test_ex_21_ratio_and_its_wrong_answers() -> None:
    def zero_at(m: float, start: Array) -> float:
        """Follow the curve by steps of mirror descent until the mean is m."""
        p = optimize.brentq(
            lambda t: (start[2] * math.exp(t) - start[0] * math.exp(-t))
            / (start[1] + start[2] * math.exp(t) + start[0] * math.exp(-t)) - m, 0, 50)  # fmt: skip
        total = start[1] + start[2] * math.exp(p) + start[0] * math.exp(-p)
        return float(start[1] / total)

    value = zero_at(0.5, np.array([0.05, 0.9, 0.05]))
    third = zero_at(0.5, np.full(3, 1 / 3))
    assert checker("check_ratio")(value) and value < 0.5
    says_to(checker("check_ratio"), {0.5: "largest", 0.9: "conserved", 0.45: "proportion"})
    says(f"From the uniform law the same mean has $p_0={third:.4f}$")
    said = lines_of(next(c for c in tagged(PATH, "solution") if "check_ratio" in c.source))[0]
    assert numbers(said.split("=", 1)[1]) == pytest.approx([value, third], abs=6e-5)


def test_ex_21_laplace_and_its_wrong_answers() -> None:
    law = stats.laplace()
    value = 2 * law.cdf(0.5 * law.expect(abs)) - 1
    assert value == pytest.approx(1 - math.exp(-0.5)) and checker("check_laplace")(value)
    normal = 2 * stats.norm.cdf(0.5 * math.sqrt(2 / math.pi)) - 1
    says_to(checker("check_laplace"), {normal: "normal", 0.25: "uniform", 1 - math.exp(-1): "half",
                                       math.exp(-0.5): "not zero"})  # fmt: skip
    said = lines_of(next(c for c in tagged(PATH, "solution") if "check_laplace" in c.source))[0]
    drawn, formula = numbers(said)[:2]
    assert abs(drawn - value) < 4.5 * math.sqrt(value * (1 - value) / 1e5) + 6e-4
    assert formula == pytest.approx(value, abs=6e-4)
    assert re.search(r"=0\.393\$", chapters.prose(PATH))
    over = [1 / math.log(2), math.sqrt(2 / math.pi) / stats.norm.ppf(0.75)]
    assert [f"{v:.2f}" for v in over] == ["1.44", "1.18"]
    says("to 1.44 medians, where normal weights have 1.18")
    sizes = stats.pareto(3)
    assert sizes.mean() / 2 < sizes.support()[0]  # no zeros at all
