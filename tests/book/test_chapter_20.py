"""Chapter 20, further improvements: both sides of every formula, the notebook's own code, and every
number of its tables and sentences, computed from the four files and the stored outputs.

Expected values are enumeration, quadrature and numpy; sbnlib appears only where a function of
sbnlib, or one of the notebook, is what is tested.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from statistics import fmean, median, stdev
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
    drawing,
    figures,
    lean,
    lines,
    lines_of,
    numbers,
    printed,
    run,
    short,
    states,
    still,
    tagged,
    under,
)
from pins import pin
from scipy import integrate, optimize, special, stats

from sbnlib.experiments import improvements, measurement

Array = np.ndarray
Row = dict[str, Any]
PATH = chapter(20)
says = partial(chapters.says, PATH)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


@cache
def rows(part: str) -> list[Row]:
    file = PATH.parents[1] / "measurements" / f"improvements-{part}.json"
    return measurement.read(file)["rows"]


def se(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


def logistic(a: Array) -> tuple[Array, Array]:
    """Density and mean state."""
    p = 1 / (1 + np.exp(-a))
    return p * (1 - p), 2 * p - 1


# -------------------------------------------------------------------------------- the weight

#: Of each noise, the density and distribution, by hand.
LAWS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "Uniform": (lambda a: 0.5 * (abs(a) < 1), lambda a: min(max((1 + a) / 2, 0), 1)),
    "Triangular": (
        lambda a: max(1 - abs(a), 0.0),
        lambda a: 1 - max(1 - a, 0) ** 2 / 2 if a > 0 else max(1 + a, 0) ** 2 / 2,
    ),
    "Logistic": (
        lambda a: float(special.expit(a) * special.expit(-a)),
        lambda a: float(special.expit(a)),
    ),
}


def factor(name: str, scale: float, a: float, x: int, omega: float) -> float:
    """The member of the line with this weight, by its definition."""
    f, cdf = LAWS[name]
    density, p, q = f(a / scale) / scale, cdf(x * a / scale), cdf(-x * a / scale)
    mu = x * (p - q)
    s = 1 / (1 + omega * (1 - mu**2))
    return density * (1 + s * x * mu) / p if p > 0 else 0.0


@cache
def gain(name: str, scale: float, omega: float) -> float:
    """E c^2 over a ~ N(0, 1) and the state."""

    def second(a: float) -> float:
        return sum(
            LAWS[name][1](x * a / scale) * factor(name, scale, a, x, omega) ** 2 for x in (-1, 1)
        )

    end = 12 if name == "Logistic" else scale * (1 - 1e-13)
    found = integrate.quad(lambda a: stats.norm.pdf(a) * second(a), 0, end, limit=400)
    return 2 * float(found[0])


@pin(
    "prop-20-shrinkage",
    r"""
    Let $\omega\ge0$. Where $0<F(a)<1$, the member $s=1/(1+\omega(1-\mu^2))$ of the line has the
    factor {eq-20-factor} It is exact for linear losses, it lies between $0$ and
    $2f(a)(1+2\omega)$, and its gain, in a wide network at the start of its training, is
    {eq-20-gain}
    """,
)
@pin(
    "eq-20-factor",
    r"c(x)=2f(a)\,\frac{1+2\omega\,P(-x)}{1+4\omega\,P(x)P(-x)} .",
)
def test_eq_20_factor() -> None:
    shrinkage = chapters.define(PATH, "delivered")
    for name, omega, a in itertools.product(LAWS, (0, 0.3, 5, 100), (-0.97, -0.4, 0.0, 0.7)):
        f, cdf = LAWS[name]
        mean = 0.0
        for x in (-1, 1):
            p, q = cdf(x * a), cdf(-x * a)
            formula = 2 * f(a) * (1 + 2 * omega * q) / (1 + 4 * omega * p * q)
            assert factor(name, 1, a, x, omega) == pytest.approx(formula, rel=1e-9)
            assert 0 <= formula <= 2 * f(a) * (1 + 2 * omega) * (1 + 1e-12)
            mean += p * formula
            rule = partial(shrinkage["sbnlib"].shrinkage, omega=float(omega))
            law = getattr(shrinkage["sbnlib"].noise, name)()
            found = shrinkage["delivered"](rule, torch.tensor([a]), torch.tensor([float(x)]), law)
            assert found.item() == pytest.approx(formula, rel=1e-9)
        assert mean == pytest.approx(2 * f(a), rel=1e-9)  # exact where the loss is linear


@pin(
    "eq-20-gain",
    r"\Gamma_\omega=\mathbb E\Bigl[4f^2+\frac{4\omega\mu^2f^2\,r}{(1+r)^2}\Bigr]"
    r"\le\Bigl(1+\frac\omega4\Bigr)\Gamma_{\mathrm{ST}},\qquad r=\omega(1-\mu^2).",
)
def test_eq_20_gain() -> None:
    for (name, scale), omega in itertools.product(SCALES.items(), (0, 1, 9, 100)):
        f, cdf = LAWS[name]

        def term(a: float, omega: float = omega, scale: float = scale, f: Any = f,
                 cdf: Any = cdf) -> float:  # fmt: skip
            mu, density = 2 * cdf(a / scale) - 1, f(a / scale) / scale
            r = omega * (1 - mu**2)
            more = 4 * omega * mu**2 * density**2 * r / (1 + r) ** 2
            return stats.norm.pdf(a) * (4 * density**2 + more)

        end = 12 if name == "Logistic" else scale
        right = 2 * integrate.quad(term, 0, end, limit=400)[0]
        assert gain(name, scale, omega) == pytest.approx(right, rel=1e-7)
        assert right <= (1 + omega / 4) * gain(name, scale, 0) * (1 + 1e-9)


SCALES = {"Uniform": 0.732, "Triangular": 1.013, "Logistic": 0.2555}


def test_the_table_of_factors() -> None:
    said = lines_of(containing(PATH, "rare = torch.tensor"))
    points = numbers(said[0])
    assert points == [-0.999, -0.5, 0, 0.5, 0.999]
    for line, omega in zip(said[1:4], (0, 5, 1e15), strict=True):
        expected = [factor("Uniform", 1, a, 1, omega) for a in points]
        assert numbers(line[22:]) == pytest.approx(expected, abs=6e-4)
    assert said[4] == "shrinkage is the member of the line: True"


def test_the_table_of_gains() -> None:
    head, *said = lines_of(containing(PATH, "gain at omega ="))
    weights = numbers(head.split("=")[1])
    assert weights == [0, 1, 4, 9, 30, 100]
    for line, (name, scale) in zip(said, SCALES.items(), strict=True):
        assert line.startswith(name)
        found = numbers(line[16:].replace("inf", ""))
        expected = [gain(name, scale, w) for w in weights]
        expected += [] if name == "Uniform" else [gain(name, scale, 1e9)]
        assert found == pytest.approx(expected, abs=6e-4 if name != "Triangular" else 2e-3)
        assert line.endswith("inf") == (name == "Uniform")


OMEGAS = [0, 0.3, 1, 2, 4, 9, 20, 50, 100, 300, 1000]


@pytest.mark.slow
@pytest.mark.parametrize(("omega", "scale"), [(0, 0.3), (9, 0.732), (1000, 1.5)])
def test_fig_factors_figure(omega: float, scale: float) -> None:
    top, low = axes(PATH, "factors_figure", omega=omega, scale=scale)
    zgr, st, own = lines(top)
    for line, weight in ((zgr, 1e15), (st, 0), (own, omega)):
        expected = [factor("Uniform", scale, a, 1, weight) for a in line[0]]
        assert line[1] == pytest.approx(expected, rel=1e-6)
        assert abs(line[0]).max() == pytest.approx(0.9995 * scale)
        assert top.get_xlim()[0] < line[0].min() and line[0].max() < top.get_xlim()[1]
        assert line[1].max() < top.get_ylim()[1]
    gains, bound, point, level = lines(low)
    expected = [gain("Uniform", scale, w) for w in OMEGAS]
    assert gains == pytest.approx(np.array([1 + np.array(OMEGAS), expected]), rel=1e-5)
    assert bound[1] == pytest.approx([expected[0] * (1 + w / 4) for w in OMEGAS], rel=1e-5)
    assert point.T.tolist() == [[1 + omega, pytest.approx(gain("Uniform", scale, omega), rel=1e-5)]]
    assert level[1] == pytest.approx([expected[0]] * 2, rel=1e-6)
    assert low.get_ylim()[0] < min(expected) and max(expected) < low.get_ylim()[1]


def test_fig_factors_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-20-factor"])["answer"])
    a = -0.9995 * 0.732
    ratio = factor("Uniform", 0.732, a, 1, 9) / factor("Uniform", 0.732, a, 1, 0)
    assert f"at weight 9 it ends at {ratio:.0f} times that of straight-through" in answer
    assert ratio < 1 + 2 * 9 and round(ratio) == 19
    scales = drawing(PATH, "factors_figure").__globals__
    assert scales["OMEGAS"] == OMEGAS
    rise = [gain("Uniform", s, 100) / gain("Uniform", s, 0) for s in (0.3, 0.732, 1.5)]
    words = "by a factor of {:.1f} at scale 0.3, of {:.1f} at 0.732 and of {:.1f} at 1.5"
    assert words.format(*rise) in answer
    certain = factor("Uniform", 1, 0.9999, 1, 100)
    assert certain == pytest.approx(factor("Uniform", 1, 0.9999, 1, 0), rel=0.03)
    assert certain == pytest.approx(2 * factor("Uniform", 1, 0.9999, 1, 1e15), rel=0.03)
    # that of a weight is half of ZGR's where P = 1 / 4 omega, and near it where P is larger
    for omega in (20, 100, 1000):
        rare, near = (
            factor("Uniform", 1, 2 * p - 1, 1, omega) / factor("Uniform", 1, 2 * p - 1, 1, 1e15)
            for p in (0.25 / omega, 2.5 / omega)
        )
        assert rare == pytest.approx(0.5, abs=0.02) and 0.9 < near < 1
    assert answer.startswith("On the left, where the state gets rare")


# ------------------------------------------------------------------------- the weight, in depth


def error(depth: int, inputs: int, samples: int, name: str) -> Row:
    (row,) = (
        r
        for r in rows("optimal-s")
        if (r["depth"], r["inputs"], r["samples"], r["estimator"]) == (depth, inputs, samples, name)
    )
    return row


AT = list(itertools.product((1, 2, 3), (1, 16), (1, 10, 100, 1000)))


def test_the_table_of_weights() -> None:
    head, *said = lines_of(containing(PATH, "def error_of("))
    assert head.split() == [
        "layers", "inputs", "M", "ST", "ZGR", "estimated", "(weight)", "best", "(weight)",
    ]  # fmt: skip
    assert len(said) == 18
    for line in said:
        depth, inputs, samples = (int(v) for v in line.split()[:3])
        found = re.findall(r"(\S+)±(\S+)(?: \( *(\S+)\))?", line)
        names = ("straight_through", "zgr", "estimated", "best")
        for (value, spread, weight), name in zip(found, names, strict=True):
            row = error(depth, inputs, samples, name)
            assert float(value) == pytest.approx(row["error"] * samples, rel=6e-3)
            assert spread == f"{row['se'] * samples:.1g}"
            if name in ("estimated", "best"):
                omega = math.inf if row["omega"] is None else row["omega"]
                assert float(weight) == pytest.approx(omega, abs=0.51)
            else:
                assert not weight
    says("and 1 or 16 inputs")


def test_what_is_said_of_the_weights() -> None:
    def ratio(at: tuple[int, int, int], other: str, own: str = "estimated") -> float:
        return error(*at, own)["error"] / error(*at, other)["error"]

    worst = max(ratio(at, "best") for at in AT)
    says(f"its error is at most {100 * (worst - 1):.0f} percent larger than that of the best of "
         "eleven weights and ZGR")  # fmt: skip
    says(f"is within {100 * (worst - 1):.0f} percent of the best in one to three layers")
    ahead = {d: 1 - max(ratio((d, 16, 10), n) for n in ("straight_through", "zgr"))
             for d in (1, 2, 3)}  # fmt: skip
    says("With 16 inputs and $M=10$ it is ahead of both ends, by {:.0f} to {:.0f} percent, and "
         "least so with three layers.".format(*(100 * f(ahead.values())
                                                for f in (min, max))))  # fmt: skip
    assert min(ahead, key=lambda d: ahead[d]) == 3
    for depth in (2, 3):
        at = (depth, 1, 10)
        saved = (1 - ratio(at, "straight_through")) * error(*at, "straight_through")["error"]
        assert saved < 0.1 * error(*at, "straight_through")["se"]
    says("With one input and two or three layers nothing is gained at $M=10$")
    thousand = [ratio((d, i, 1000), "zgr") for d in (1, 2, 3) for i in (1, 16)]
    assert min(thousand) > 0.96 and max(thousand) < 1.01
    says("at $M=1000$ the rule is ZGR to within four percent")
    for depth, inputs in itertools.product((1, 2, 3), (1, 16)):
        own, st = (error(depth, inputs, 1, n) for n in ("estimated", "straight_through"))
        assert own["error"] == pytest.approx(st["error"]) and own["omega"] == 0
    for inputs in (1, 16):
        assert ratio((3, inputs, 1000), "zgr", "best") > 0.998
    says("with three layers at $M=1000$ the best weight is as good as ZGR")
    batch = [100 * (ratio((d, 16, 10), "best", "batch") - 1) for d in (1, 2, 3)]
    says(f"the error at $M=10$ is {min(batch):.0f} to {max(batch):.0f} percent above the best")
    assert improvements.DRAWS == 2048
    says("is estimated from two pairs at each of 2048 draws")


# ------------------------------------------------------------------------------ the diagonal


def smooth(x: Array) -> Array:
    """A loss of three units with derivatives of every order, and those of unit 0."""
    return np.exp(0.8 * x[..., 0] + 0.3 * x[..., 1]) + np.sin(x[..., 0] * x[..., 2] + x[..., 1])


@pin(
    "prop-20-gauge",
    r"""
    Let the units be independent, in the last binary layer. (a) Let $L$ be three times continuously
    differentiable along coordinate $i$. Then $2f\,[\partial_iL(x)-x_i\,\partial_{ii}L(x)]$ is the
    second-order Taylor polynomial of the local expectation $f\,\Delta_iL(x)$ at $x$. They differ by
    at most $\tfrac43f\sup|\partial_{iii}L|$, and are equal if $L$ is at most quadratic in $x_i$.
    (b) Let $L=\tfrac12x^\top Ax+c^\top x$ with a symmetric $A$, let $d_i$ be the mean of
    $z_i(Az)_i$ over $m$ independent vectors of fair signs, independent of $x$, and
    $o_i=\sum_{j\ne i}A_{ij}^2$, the squares of row $i$ beside the diagonal. Then
    $2f\,[\partial_iL(x)-d_ix_i]$ and $2f\,[\partial_iL(x)-d_i\mu_i]$ are unbiased. In units of
    $4f(a_i)^2$ straight-through has the variance $\sum_jA_{ij}^2(1-\mu_j^2)$, and the two have in
    addition {eq-20-probes} (c) Let $f(a_i)>0$. The mean of $M$ independent estimates, each with
    probes of its own, has in coordinate $i$ a smaller mean squared error than that of
    straight-through if and only if {eq-20-pays}
    """,
)
def test_prop_20_gauge_a() -> None:
    for x in states(3):
        u, v, w = x
        first = 0.8 * math.exp(0.8 * u + 0.3 * v) + w * math.cos(u * w + v)
        second = 0.64 * math.exp(0.8 * u + 0.3 * v) - w**2 * math.sin(u * w + v)
        t = np.linspace(-1, 1, 2001)
        third = 0.512 * np.exp(0.8 * t + 0.3 * v) - w**3 * np.cos(t * w + v)
        flipped = x * np.array([-1, 1, 1])
        difference = u * (smooth(x) - smooth(flipped))
        gap = abs(difference - 2 * (first - u * second))
        assert 1e-3 < gap <= 4 / 3 * abs(third).max()
        # the Taylor polynomial of L at x, taken at the other state
        polynomial = smooth(x) - 2 * u * first + 2 * second
        assert 2 * (first - u * second) == pytest.approx(u * (smooth(x) - polynomial))
    A, c = 1.7, -0.4  # quadratic in the unit
    for u in (-1.0, 1.0):
        L = lambda t: A * t**2 / 2 + c * t  # noqa: E731
        assert 2 * (A * u + c - u * A) == pytest.approx(u * (L(u) - L(-u)))


def quadratic(n: int, seed: int) -> tuple[Array, Array, Array]:
    g = np.random.default_rng(seed)
    A = g.normal(size=(n, n))
    return A + A.T, g.normal(size=n), g.normal(size=n)


def of_probes(A: Array, c: Array, a: Array, count: int, subtract: str) -> tuple[Array, Array]:
    """Bias and variance over all states and all tuples of probes; ``"none"`` is the slope."""
    n = len(a)
    f, mu = logistic(a)
    x, z = states(n), states(n)
    chance = ((1 + x * mu) / 2).prod(1)
    diagonals = z * (z @ A)
    d = np.array([
        diagonals[list(which)].mean(0)
        for which in itertools.product(range(len(z)), repeat=count)
    ])  # fmt: skip
    y = {"sample": x, "mean": np.broadcast_to(mu, x.shape), "none": 0 * x}[subtract]
    g = 2 * f * ((x @ A + c)[:, None] - d * y[:, None])
    mean = chance @ g.mean(1)
    flips = np.array([
        sum(
            p * u[i] * (value(u, A, c) - value(u * (1 - 2 * np.eye(n)[i]), A, c))
            for p, u in zip(chance, x, strict=True)
        )
        for i in range(n)
    ])  # fmt: skip
    return mean - f * flips, chance @ (g**2).mean(1) - mean**2


def value(x: Array, A: Array, c: Array) -> float:
    return float(x @ A @ x / 2 + c @ x)


@pin(
    "eq-20-probes",
    r"\frac{o_i}m-A_{ii}^2(1-\mu_i^2)\qquad\text{and}\qquad\mu_i^2\,\frac{o_i}m .",
)
def test_eq_20_probes() -> None:
    for n, count in ((3, 1), (3, 2), (4, 1)):
        A, c, a = quadratic(n, n + count)
        f, mu = logistic(a)
        own = np.diag(A) ** 2
        off = (A**2).sum(1) - own
        bias, plain = of_probes(A, c, a, 1, "none")
        assert plain == pytest.approx(4 * f**2 * (A**2 @ (1 - mu**2)))
        assert bias == pytest.approx(2 * f * np.diag(A) * mu)
        for subtract, more in (
            ("sample", off / count - own * (1 - mu**2)),
            ("mean", mu**2 * off / count),
        ):
            bias, variance = of_probes(A, c, a, count, subtract)
            assert bias == pytest.approx(np.zeros(n), abs=1e-12)
            assert variance == pytest.approx(plain + 4 * f**2 * more)


@pin(
    "eq-20-pays",
    r"\begin{aligned} \text{subtracting at the sample:}\quad&"
    r"\frac{o_i}m<A_{ii}^2\bigl(1+(M-1)\mu_i^2\bigr),\\ "
    r"\text{at the mean, where }\mu_i\ne0:\quad&\frac{o_i}m<M\,A_{ii}^2 . \end{aligned}",
)
def test_eq_20_pays() -> None:
    """On both sides of the condition, from the enumerated bias and variance."""
    seen: dict[str, set[bool]] = {"sample": set(), "mean": set()}
    for seed, count, M in itertools.product(range(12), (1, 2), (1, 2, 7)):
        A, c, a = quadratic(3, 100 + seed)
        _, mu = logistic(a)
        own = np.diag(A) ** 2
        off = (A**2).sum(1) - own
        bias, variance = of_probes(A, c, a, 1, "none")
        st = bias**2 + variance / M
        for subtract, limit in (("sample", own * (1 + (M - 1) * mu**2)), ("mean", M * own)):
            better = of_probes(A, c, a, count, subtract)[1] / M < st
            assert better.tolist() == (off / count < limit).tolist()
            seen[subtract] |= set(better.tolist())
    assert seen == {"sample": {True, False}, "mean": {True, False}}


def test_the_cell_of_the_gauge() -> None:
    space = run(PATH, containing(PATH, "def enumerated("))
    A, c, a = (space[k].numpy() for k in ("A4", "c4", "a4"))
    said = lines_of(containing(PATH, "def enumerated("))
    for line, subtract in zip(said, ("sample", "mean"), strict=True):
        _, variance = of_probes(A, c, a, 1, subtract)
        assert line.startswith(f"{subtract:7s}bias below 1e-12: True")
        assert numbers(line)[-2:] == [pytest.approx(variance.sum(), abs=6e-5)] * 2


COUNTS = np.array([2**k for k in range(11)])


@cache
def random_quadratics(n: int) -> dict[str, Any]:
    """The 100 of the figure; squared bias and variance over |g|^2 by sums over all states."""
    g = torch.Generator().manual_seed(n)
    A = torch.randn(100, n, n, generator=g).numpy() / n**0.5
    A = (A + A.transpose(0, 2, 1)) / 2**0.5
    c, a = (v.numpy() for v in torch.randn(2, 100, n, generator=g))
    x, (f, mu) = states(n), logistic(1.5 * a)
    chance = ((1 + x * mu[:, None]) / 2).prod(-1)  # (100, S)
    slope = x @ A + c[:, None]
    own = np.diagonal(A, axis1=1, axis2=2)[:, None]
    flips = 2 * (slope - own * x)
    exact = np.einsum("bs,bsi->bi", chance, f[:, None] * flips)
    probe = (x * (x @ A)).var(1)  # z_i (Az)_i over all z
    given = ((1 + x * mu[:, None]) / 2) / f[:, None]
    of = {
        "st": 2 * f[:, None] * slope,
        "zgr": slope / given,
        "mean": 2 * f[:, None] * (slope - own * mu[:, None]),
        "exact": f[:, None] * flips,
    }
    found: dict[str, Any] = {}
    for name, values in of.items():
        mean = np.einsum("bs,bsi->bi", chance, values)
        second = np.einsum("bs,bsi->bi", chance, values**2)
        found[name] = np.array([((mean - exact) ** 2).sum(), (second - mean**2).sum()])
    found["probe"] = (4 * f**2 * mu**2 * probe).sum()
    size = (exact**2).sum()
    return {name: v / size for name, v in found.items()}


@pytest.mark.parametrize(("n", "m"), [(2, 1), (3, 4), (8, 1), (8, 64)])
def test_fig_probes_figure(n: int, m: int) -> None:
    e = random_quadratics(n)
    of = [(*e["st"], 1), (*e["zgr"], 1), (e["mean"][0], e["mean"][1] + e["probe"] / m, 1 + 2 * m),
          (*e["exact"], 1)]  # fmt: skip
    for ax, equal in zip(axes(PATH, "probes_figure", n=n, m=m), (False, True), strict=True):
        drawn = lines(ax)
        assert len(drawn) == 4
        for line, (bias2, variance, cost) in zip(drawn, of, strict=True):
            assert line[0].tolist() == COUNTS.tolist()
            assert line[1] == pytest.approx(
                COUNTS * bias2 + variance * (cost if equal else 1), rel=1e-6, abs=1e-12
            )
            if cost < 10:
                assert ax.get_ylim()[0] < min(line[1]) and max(line[1]) < ax.get_ylim()[1]


def test_fig_probes_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-20-probes"])["answer"])
    parts = drawing(PATH, "probes_figure").__globals__["quadratic_parts"]
    for n in (2, 3, 8):  # the closed forms of the figure are the sums
        own, e = parts(n), random_quadratics(n)
        assert own["st"] == pytest.approx(e["st"]) and own["exact"][1] == pytest.approx(
            e["exact"][1]
        )
        assert own["zgr"][1] == pytest.approx(e["zgr"][1])
        assert own["probe"] == pytest.approx(e["probe"])
    wide = parts(32)
    assert answer.startswith("About 16")
    assert 16 < wide["probe"] / wide["st"][0] < 18 and (32 - 1) / 2 == 15.5
    for n in (2, 3, 8, 16, 32, 64):
        e = parts(n)
        one = e["straight"] + e["probe"]
        assert one < e["zgr"][1] < 3 * one
    e = parts(8)
    assert 3 * (e["straight"] + e["probe"]) / e["zgr"][1] == pytest.approx(2.1, abs=0.05)
    assert "at equal cost it is behind, with 8 units by a factor of two" in answer
    for ax in axes(PATH, "probes_figure", n=8, m=1):  # each has an axis of its own, with numbers
        assert any(t.label1.get_visible() for t in ax.xaxis.get_major_ticks())
    for seed in (0, 1):  # an entry of the diagonal has twice the mean square
        A = np.random.default_rng(seed).normal(size=(400, 9, 9))
        A = (A + A.transpose(0, 2, 1)) / 2**0.5
        own = (np.diagonal(A, axis1=1, axis2=2) ** 2).mean()
        off = (A**2).sum() / 400 / 72 - own * 9 / 72
        assert own / off == pytest.approx(2, abs=0.15)


@pin(
    "eq-20-head",
    r"\partial_{ij}L=\sum_k\psi_kW_{ki}W_{kj}-\Bigl(\sum_k\psi_kW_{ki}\Bigr)"
    r"\Bigl(\sum_k\psi_kW_{kj}\Bigr),",
)
def test_eq_20_head() -> None:
    """By second differences of the cross-entropy."""
    g = np.random.default_rng(3)
    W, b, x = g.normal(size=(5, 4)), g.normal(size=5), g.normal(size=4)

    def L(x: Array) -> float:
        scores = W @ x + b
        return float(special.logsumexp(scores) - scores[2])

    psi = special.softmax(W @ x + b)
    steps = 1e-4 * np.eye(4)
    for i, j in itertools.product(range(4), repeat=2):
        h, k = steps[i], steps[j]
        found = (L(x + h + k) - L(x + h - k) - L(x - h + k) + L(x - h - k)) / 4e-8
        expected = psi @ (W[:, i] * W[:, j]) - (psi @ W[:, i]) * (psi @ W[:, j])
        assert found == pytest.approx(expected, abs=1e-6)


GAUGES = {
    "ST": "straight_through", "ZGR": "zgr", "diagonal": "gauge_exact",
    "1 probe, x": "gauge_1_sample", "1 probe, mu": "gauge_1_mean",
    "10 probes, mu": "gauge_10_mean", "local exp.": "local_expectation",
}  # fmt: skip


@cache
def middle(name: str, epoch: int, number: str) -> float:
    found = [r[number] for r in rows("gauge") if (r["epoch"], r["estimator"]) == (epoch, name)]
    assert len(found) == 5
    return median(found)


def test_the_table_of_the_diagonal() -> None:
    _, _, *said = lines_of(containing(PATH, '"gauge_1_sample", "1 probe, x"'))
    assert [line[:13].strip() for line in said] == [*GAUGES]
    for line, name in zip(said, GAUGES.values(), strict=True):
        expected = [middle(name, e, k) for e in (0, 10, 25) for k in ("bias2", "variance")]
        assert numbers(line[13:]) == pytest.approx(expected, abs=6e-4)
    says("(Medians of five networks, relative to $\\|g\\|^2$.)")


def test_what_is_said_of_the_diagonal() -> None:
    def ratio(name: str, epoch: int, number: str) -> float:
        return middle(name, epoch, number) / middle("straight_through", epoch, number)

    assert ratio("gauge_exact", 0, "bias2") < 0.03
    assert ratio("gauge_exact", 0, "variance") == pytest.approx(1 / 8, abs=0.01)
    says("At the start the exact diagonal takes the bias away and seven eighths of the variance")
    local = middle("local_expectation", 0, "variance")
    assert middle("gauge_exact", 0, "variance") == pytest.approx(local, rel=0.15)
    taken = [1 - ratio("gauge_exact", e, "bias2") for e in (10, 25)]
    assert min(taken) > 0.48 and max(taken) < 0.6
    taken = [1 - ratio("gauge_exact", e, "variance") for e in (10, 25)]
    assert round(min(taken), 2) == 0.46 and round(max(taken), 2) == 0.76
    says("it takes half of the squared bias or a little more, and about half to three quarters of "
         "the variance")  # fmt: skip
    more = [ratio("zgr", e, "variance") for e in (0, 10, 25)]
    says(f"ZGR has less bias than that, and {min(more):.0f} to {max(more):.0f} times the variance")
    by_seed = {(r["estimator"], r["epoch"], r["seed"]): r["variance"] for r in rows("gauge")}
    wide = {seed for e in (10, 25) for seed in range(5)
            if by_seed["zgr", e, seed] > 1000 * by_seed["straight_through", e, seed]}  # fmt: skip
    assert len(wide) == 1
    says("(in one of the five networks, thousands of times)")
    for e in (0, 10, 25):
        assert middle("zgr", e, "bias2") < middle("gauge_exact", e, "bias2")
    errors = {(n, e): middle(n, e, "bias2") + middle(n, e, "variance")
              for n in ("gauge_1_sample", "straight_through") for e in (0, 25)}  # fmt: skip
    half = errors["gauge_1_sample", 0] / errors["straight_through", 0]
    assert half == pytest.approx(0.5, abs=0.02)
    says("one probe halves the error of a single draw at the start")
    assert errors["gauge_1_sample", 25] > errors["straight_through", 25]
    own, st = ([short(middle(n, 25, k)) for k in ("variance", "bias2")]
               for n in ("gauge_1_sample", "straight_through"))  # fmt: skip
    says(f"({own[0]} + {own[1]} against {st[0]} + {st[1]})")


# ---------------------------------------------------------------------------------- training

WIDTHS = (4, 8, 16, 32, 64)


@cache
def trained(name: str, width: int, number: str = "loss", depth: int = 2) -> list[float]:
    (row,) = (
        r for r in rows("widths")
        if (r["estimator"], r["width"], r["depth"]) == (name, width, depth)
    )  # fmt: skip
    assert len(row[number]) == 10
    return row[number]


def mean(name: str, width: int, number: str = "loss", depth: int = 2) -> float:
    return fmean(trained(name, width, number, depth))


def over(
    name: str, width: int, number: str = "loss", depth: int = 2, other: str = "straight_through"
) -> tuple[float, float]:
    """The ratio of the means, and Welch's two-sided p by his formula."""
    x, y = (np.array(trained(n, width, number, depth)) for n in (name, other))
    v, w = x.var(ddof=1) / 10, y.var(ddof=1) / 10
    t = (x.mean() - y.mean()) / math.sqrt(v + w)
    df = (v + w) ** 2 / (v**2 / 9 + w**2 / 9)
    return float(x.mean() / y.mean()), float(2 * stats.t.sf(abs(t), df))


def plus(name: str, width: int, number: str = "loss", digits: int = 2) -> str:
    values = trained(name, width, number)
    return f"{short(fmean(values), digits)} ± {short(se(values), digits)}"


def test_the_opening_of_the_chapter() -> None:
    says(f"ends with a training loss of {short(mean('straight_through', 4))}, at the best of its")
    says(f"instead of one, it ends with {short(mean('psa', 4))}, and with the *exact* gradient "
         f"with {short(mean('exact', 4))}.")  # fmt: skip
    assert 0.64 < 1 - over("psa", 8, depth=4)[0] < 0.72
    says("as much as the exact gradient does; with four layers of eight units it takes away two "
         "thirds.")  # fmt: skip
    third = over("straight_through_10", 64, other="psa")[0]
    assert 0.3 < third < 0.34
    says("reach a third of PSA's training loss, with ten evaluations instead of 65")
    assert over("straight_through_10", 64, "test_loss", other="psa")[1] > 0.1
    assert 0.4 < 1 - over("psa", 4)[0] < 0.5
    assert evaluations("psa", 4) == 5 and evaluations("psa", 64) == 65
    says("PSA is as good as the exact gradient and straight-through has nearly twice the loss")
    assert 1.75 < 1 / over("psa", 4)[0] < 1.95 and over("psa", 4, other="exact")[1] > 0.5


def row_of(name: str, width: int, depth: int = 2) -> Row:
    (row,) = (r for r in rows("widths") if (r["estimator"], r["width"], r["depth"]) ==
              (name, width, depth))  # fmt: skip
    return row


def evaluations(name: str, width: int) -> int:
    return row_of(name, width)["evaluations"]


def test_the_searches_end_inside_their_grids() -> None:
    for row in rows("widths") + rows("latent"):
        tried = [rate for rate, _ in row["searched"]]
        assert min(tried) < row["lr"] < max(tried)
        best = min if "loss" in row else max
        assert row["lr"] == best(row["searched"], key=lambda v: v[1])[0]
        assert len(tried) >= (3 if "loss" in row else 4)
    says("Each contender gets three learning rates, and further ones where the best is at an end")
    says("at the best of four learning rates or more by validation accuracy")


def test_the_table_of_trainings() -> None:
    said = lines_of(containing(PATH, "def against("))
    assert numbers(said[0]) == list(WIDTHS) and said[1].startswith("straight-through")
    assert numbers(said[1][22:]) == pytest.approx(
        [mean("straight_through", w) for w in WIDTHS], abs=6e-5
    )
    assert said[-1] == "*: p between 0.0008 and 0.05; ?: p above 0.05"
    one = ("exact", "psa", "psa_symmetric", "local_expectation", "disarm", "zgr", "shrinkage",
           "gauge_head", "gauge_fixed", "straight_through_10")  # fmt: skip
    ten = ("psa", "zgr_10", "shrinkage_10")
    places = [(3, name, "straight_through") for name in one]
    places += [(4, name, "straight_through_10") for name in ten]
    labels = chapters.define(PATH, "LABELS")["LABELS"]
    compared = 0
    for row, (skip, name, other) in enumerate(places):
        line = said[row + skip]
        assert line.startswith(labels[name] + " ")
        cells = [line[22 + 11 * k : 33 + 11 * k] for k in range(5)]
        for cell, width in zip(cells, WIDTHS, strict=True):
            if name == "exact" and width > 8:
                assert not cell.strip()
                continue
            compared += 1
            ratio, p = over(name, width, other=other)
            assert numbers(cell) == [pytest.approx(ratio, abs=6e-3)]
            assert cell[8:].strip() == ("" if p < 0.05 / 62 else "*" if p < 0.05 else "?")
    assert compared == 62 and round(0.05 / 62, 4) == 0.0008
    says("The table makes sixty-two comparisons: those without a mark have $p<0.05/62$")


def test_fig_20_widths() -> None:
    for ax, number in zip(still(PATH, "fig-20-widths"), ("loss", "test_loss"), strict=True):
        base = np.array([mean("straight_through", w, number) for w in WIDTHS])
        names = ("straight_through", "zgr", "psa", "psa_symmetric", "disarm", "local_expectation")
        drawn = {c.get_label(): c for c in ax.containers}
        assert len(drawn) == 6
        for found, name in zip(ax.containers, names, strict=True):
            line, _, (bars,) = found.lines
            expected = np.array([mean(name, w, number) for w in WIDTHS]) / base
            assert pytest.approx(np.array([WIDTHS, expected])) == np.array(line.get_xydata()).T
            spread = np.array([se(trained(name, w, number)) for w in WIDTHS]) / base
            ends = np.array([s[:, 1] for s in bars.get_segments()])
            assert ends == pytest.approx(np.stack([expected - spread, expected + spread], 1))
            assert ax.get_ylim()[0] < ends.min() and ends.max() < ax.get_ylim()[1]
        ten = lines(ax)[-1]
        ratios = [over("straight_through_10", w, number)[0] for w in WIDTHS]
        assert ten == pytest.approx(np.array([WIDTHS, ratios]))
    found = figures(PATH)["fig-20-widths"].source
    for name in ("psa", "psa_symmetric", "local_expectation"):
        values = [over(name, w)[0] for w in WIDTHS]
        assert min(values[:2]) > 0.45 and max(values[:2]) < 0.6 < values[-1]
    disarm = [over("disarm", w)[0] for w in WIDTHS]
    assert disarm[1] < 1 < disarm[2] and "crosses 1 between 8 and 16 units" in lean(
        found.replace('"', "")
    )
    assert all(over("zgr", w)[0] > 1 for w in WIDTHS)


def test_what_is_said_of_narrow_networks() -> None:
    near = [mean(n, 4) for n in ("psa", "psa_symmetric", "local_expectation")]
    says(f"end at {short(min(near))} to {short(max(near))}, where the exact gradient ends "
         f"({plus('exact', 4)}), and straight-through at "
         f"{plus('straight_through', 4)}.")  # fmt: skip
    names = {r["estimator"] for r in rows("widths") if (r["width"], r["depth"]) == (8, 2)}
    assert min(names, key=lambda n: mean(n, 8)) == "exact"
    says(f"the exact gradient is ahead of all ({plus('exact', 8, digits=3)})")
    assert short(mean("psa", 8)) == short(mean("local_expectation", 8)) == "0.13"
    sure = [over("exact", 8, other=n)[1] for n in ("psa", "local_expectation")]
    says(f"follow with 0.13 (p = {short(sure[0], 3)} and {short(sure[1])}), and straight-through "
         f"has {short(mean('straight_through', 8))}.")  # fmt: skip
    behind = [over("disarm", w)[0] for w in (16, 32, 64)]
    assert all(over("disarm", w)[0] < 1 and over("disarm", w)[1] < 0.01 for w in (4, 8))
    says("DisARM, without bias and with much variance, is ahead of straight-through up to 8 units, "
         f"and from 16 units on it is behind, by factors from {min(behind):.1f} to "
         f"{max(behind):.0f}.")  # fmt: skip


def test_what_is_said_of_ten_draws() -> None:
    ratio, p = over("straight_through_10", 4)
    saved = mean("straight_through", 4) * (1 - ratio)
    says(f"it lowers straight-through's loss by {short(saved)}, which may be chance (p = "
         f"{short(p)}), with 64 it divides it by four")  # fmt: skip
    assert 1 / over("straight_through_10", 64)[0] == pytest.approx(4, abs=0.3)
    ahead = {w: over("psa", w, other="straight_through_10") for w in WIDTHS}
    assert [ratio < 1 for ratio, _ in ahead.values()] == [True, True, False, False, False]
    assert all(p < 0.001 for _, p in ahead.values())
    says(f"it costs {evaluations('psa', 4)} and {evaluations('psa', 8)} evaluations, and behind "
         f"from 16 units on, where it costs {evaluations('psa', 16)} and more")  # fmt: skip
    one = [over("psa", w) for w in WIDTHS]
    says(f"({short(min(r for r, _ in one))} to {short(max(r for r, _ in one))} of it, all p below")
    assert all(p < 0.001 for _, p in one)
    test = [over("psa", w, "test_loss") for w in (16, 32, 64)]
    narrow = [over("psa", w, "test_loss") for w in (4, 8)]
    says("({} and {} of it)".format(*(f"{ratio:.2f}" for ratio, _ in narrow)))
    assert all(p < 0.002 for _, p in narrow)
    says(f"the ratio is {short(min(r for r, _ in test))} to {short(max(r for r, _ in test))} and no"
         " p is below 0.1")  # fmt: skip
    assert min(p for _, p in test) > 0.1
    flips = [over("local_expectation", w, other="psa") for w in (16, 32, 64)]
    low, high = (f"{f(v for v, _ in flips):.2f}" for f in (min, max))
    says(f"is *behind* PSA there, with {low} to {high} times its training loss (p = "
         f"{short(flips[0][1], 3)} with 16 units, below 0.001 with 32 and 64)")  # fmt: skip
    assert all(p < 0.001 for _, p in flips[1:])
    assert all(evaluations("local_expectation", w) == 2 * evaluations("psa", w) for w in WIDTHS)
    own, st = (plus(n, 4, "ten", 3) for n in ("psa", "straight_through"))
    says(f"the test accuracy of ten samples is {own} with PSA and {st} with straight-through")
    own, st = (plus(n, 8, "ten", 3) for n in ("psa", "straight_through"))
    p = over("psa", 8, "ten")[1]
    says(f"with 8 units {own} and {st} (p = {short(p)}).")


def test_what_failed_in_training() -> None:
    zgr = [over("zgr", w)[0] for w in WIDTHS]
    assert zgr == sorted(zgr) and zgr[0] > 1
    ten = [over("zgr_10", w, other="straight_through_10")[0] for w in WIDTHS]
    assert all(abs(v - 1) < 0.13 for v in ten[2:]) and all(v > 1.25 for v in ten[:2])
    says("with ten draws it is within 13 percent of straight-through with ten from 16 units on")
    alone = {r["estimator"] for r in rows("widths") if (r["width"], r["depth"]) == (64, 2)}
    alone = {n for n in alone if not n.endswith("_10")}
    assert min(alone, key=lambda n: mean(n, 64, "test_loss")) == "zgr"
    own, st = (plus(n, 64, "test_loss", 3) for n in ("zgr", "straight_through"))
    says(f"{own} against {st}, p = {short(over('zgr', 64, 'test_loss')[1], 3)}.")
    rates = {n: row_of(n, 64)["lr"] for n in ("zgr", "straight_through", "zgr_10",
                                              "straight_through_10")}  # fmt: skip
    assert list(rates.values()) == [0.01, 0.03, 0.03, 0.03]
    says("which is 0.01 for it and 0.03 for straight-through")
    for name in ("zgr_10", "straight_through_10"):
        assert short(mean(name, 64, "test_loss")) == "0.12"
    says("with ten draws, and 0.03 for both, both have 0.12.")
    one = [over("shrinkage", w) for w in WIDTHS]
    many = [over("shrinkage_10", w, other="straight_through_10") for w in WIDTHS]
    own = [r for r, _ in one]
    says(f"(ratios of {short(min(own))} to {max(own):.2f}, the smallest p of five "
         f"{short(min(p for _, p in one))})")  # fmt: skip
    ratios = [r for r, _ in many]
    says(f"(ratios of {short(min(ratios))} to {max(ratios):.2f}, on both sides of 1, the "
         f"smallest p of five {short(min(p for _, p in many))})")  # fmt: skip
    assert min(r for r, _ in many) < 1 < max(r for r, _ in many)
    head = [over("gauge_head", w)[0] for w in WIDTHS]
    says(f"*The diagonal of the head*: between {short(min(head))} and {short(max(head))}")
    assert all(over("gauge_head", w)[1] > 0.4 for w in WIDTHS)
    probed = [over("gauge_fixed", w) for w in WIDTHS]
    assert probed[0][1] > 0.2 and all(p < 0.001 for _, p in probed[1:])
    behind = [r for r, _ in probed[1:]]
    says(f"behind from 8 units on, by factors from {min(behind):.1f} to {max(behind):.1f}")
    both = [over("psa_symmetric", w, other="psa") for w in WIDTHS]
    assert both[0][1] > 0.5 and all(r > 1 and p < 0.02 for r, p in both[1:])
    says("level with PSA at 4 units and behind from 8 units on")
    assert mean("straight_through_10", 16) < mean("psa", 16)
    assert all(mean("straight_through_10", w) < mean("psa", w) for w in (16, 32, 64))
    says("from 16 units on, ten draws of straight-through are ahead of PSA at fewer evaluations")


def test_four_layers() -> None:
    _, *said = lines_of(containing(PATH, "four layers: training loss"))
    names = ("straight_through", "zgr", "shrinkage", "psa", "psa_symmetric", "disarm",
             "local_expectation")  # fmt: skip
    for line, name in zip(said, names, strict=True):
        expected = []
        for width in (8, 32):
            values = trained(name, width, depth=4)
            expected += [fmean(values), se(values)]
        assert numbers(line[22:]) == pytest.approx(expected, abs=6e-4)
    third = over("psa", 8, depth=4)[0]
    assert 0.3 < third < 0.34 and third < over("psa", 8)[0]
    loss, test = ([short(mean(n, 8, k, 4)) for n in ("psa", "straight_through")]
                  for k in ("loss", "test_loss"))  # fmt: skip
    says(f"PSA ends at a third of its loss, {loss[0]} against {loss[1]}, and on test images at "
         f"{test[0]} against {test[1]}.")  # fmt: skip
    says(f"PSA from both sides is in between, with {short(mean('psa_symmetric', 8, 'loss', 4))}.")
    ratio, p = over("psa", 32, "test_loss", 4)
    trained_to = short(over("psa", 32, depth=4)[0])
    says(f"With 32 units PSA's training loss is still lower, {trained_to} of "
         "straight-through's, and its *test* loss is higher, by a factor of "
         f"{ratio:.2f} (p = {short(p)})")  # fmt: skip
    for name in ("zgr", "psa_symmetric"):
        assert over(name, 32, depth=4)[0] > 1.7 and over(name, 32, "test_loss", 4)[0] > 1.1
    says("So is that of ZGR and of PSA from both sides, which fit the training images worse")
    fit, (test, p) = (over("local_expectation", 32, k, 4) for k in ("loss", "test_loss"))
    assert fit[0] < 0.7
    says(f"and of local expectation, which fits them better ({test:.2f}, p = {short(p)})")
    slow = [row_of(n, 32, 4)["lr"] for n in ("straight_through", "zgr", "psa_symmetric")]
    fast = [row_of(n, 32, 4)["lr"] for n in ("psa", "local_expectation")]
    assert slow == [0.01] * 3 and fast == [0.03] * 2
    says("0.01 for straight-through, ZGR and both sides and 0.03 for the other two.")


def test_the_table_of_what_is_left() -> None:
    assert [round(over("psa", w)[0], 1) for w in (4, 8)] == [0.5, 0.5]
    assert over("psa", 8, depth=4)[0] < 0.35 and over("psa", 64, "test_loss")[1] > 0.1
    says("halves the loss at 4 and 8 units, and more in four layers of 8")
    assert over("straight_through_10", 64)[0] == pytest.approx(0.25, abs=0.02)
    says("nothing that can be told at 4 units, a quarter of the training loss at 64")
    says("three to four points of accuracy; nothing that can be told from four bits on")
    full = fmean(grid("none", 0)["sign"])
    lost = [100 * (full - fmean(grid(r, 1)["sign"])) for r in ("random", "nearest")]
    assert 3 < lost[1] < lost[0] < 4.8
    ratio, p = over("straight_through_10", 64, "test_loss")
    assert ratio == pytest.approx(0.8, abs=0.01)
    says(f"(with 64 units the test loss falls as well, by a fifth, p = {short(p)})")


# --------------------------------------------------------------------------------- no memory


def to_sign(v: Array) -> Array:
    return np.where(v >= 0, 1.0, -1.0)


def by_latent(
    rounding: Any, slope: Any, eta: Array, lr: float, j: float, steps: int
) -> list[Array]:
    """The weights of heavy ball on latent weights."""
    k, found = np.zeros_like(eta), [rounding(eta)]
    for _ in range(steps):
        k = j * k + slope(found[-1])
        eta = eta - lr * k
        found.append(rounding(eta))
    return found


@pin(
    "prop-20-feedback",
    r"""
    Let $w=\operatorname{round}(r)$, where $\operatorname{round}$ is any map, and may depend on the
    step and on random numbers of the step. (a) The rule that keeps $w_t$ and $e_t=r_t-w_t$, with
    $r_{t+1}=w_t+e_t-\varepsilon\hat g(w_t)$, has $r_t=\eta_t$ for the latent weight
    $\eta_{t+1}=\eta_t-\varepsilon\hat g(\operatorname{round}\eta_t)$, if this holds at the start.
    (b) Let the latent weight have heavy-ball momentum, $z_{t+1}=\beta_1z_t+\hat g(w_t)$ with
    $0<\beta_1<1$ and $\eta_{t+1}=\eta_t-\varepsilon z_{t+1}$. The rule that keeps $w_t$,
    $e_t$ and $m_t=z_t-e_t/\varepsilon\beta_1$ produces the same weights, by {eq-20-momentum}
    """,
)
def test_prop_20_feedback_a() -> None:
    """In multiples of 2^-40, where sums have no rounding: the same to the last bit."""
    g = np.random.default_rng(8)

    def exact(v: Array) -> Array:
        return np.round(v * 2.0**30) / 2.0**30

    eta = exact(g.normal(size=9))
    M = g.normal(size=(9, 9))
    w = to_sign(eta)
    e = eta - w
    for _ in range(300):
        step = exact(0.05 * np.sin(30 * M @ w))
        eta = eta - step
        r = w + e - step
        assert (r == eta).all()
        u = g.random(9)
        w = to_sign((1 + np.clip(r, -1, 1)) / 2 - u)
        e = r - w


@pin(
    "eq-20-momentum",
    r"\begin{gathered} m'=\beta_1m_t+\hat g(w_t),\qquad r_{t+1}=w_t-\varepsilon m',"
    r"\qquad w_{t+1}=\operatorname{round}(r_{t+1}),\\ "
    r"m_{t+1}=m'+\frac{e_t}\varepsilon-\frac{e_{t+1}}{\varepsilon\beta_1},"
    r"\qquad e_{t+1}=r_{t+1}-w_{t+1}. \end{gathered}",
)
def test_eq_20_momentum() -> None:
    g = np.random.default_rng(9)
    M, eta, lr = g.normal(size=(9, 9)), g.normal(size=9), 0.07
    for j, rounding in itertools.product((0.3, 0.9), (to_sign, lambda v: np.round(4 * v) / 4)):
        slope = lambda w: np.sin(30 * M @ w)  # noqa: E731
        latent = by_latent(rounding, slope, eta, lr, j, 400)
        w = rounding(eta)
        e = eta - w
        m = -e / (lr * j)
        for expected in latent[1:]:
            new = j * m + slope(w)
            r = w - lr * new
            w, old = rounding(r), e
            e = r - w
            m = new + old / lr - e / (lr * j)
            assert (w == expected).all()


def test_the_cells_of_error_feedback() -> None:
    assert lines_of(containing(PATH, "def fed_back(")) == [
        f"{name:12s} error feedback = latent weight: True"
        for name in ("sign", "random sign", "grid of 1/4")
    ]
    (said,) = lines_of(containing(PATH, "p by its own rule = F(eta)"))
    assert said.endswith("True")
    p, grad = np.linspace(0.05, 0.95, 19), np.linspace(-4, 4, 19)
    odds = p / (1 - p) * np.exp(-0.3 * grad)
    latent = special.logit(p) - 0.3 * grad
    assert odds / (1 + odds) == pytest.approx(special.expit(latent), rel=1e-12)


@cache
def problems() -> tuple[Array, Array, Array, Array]:
    g = torch.Generator().manual_seed(0)
    R, S = torch.randn(2, 20, 20, generator=g)
    b = torch.randn(20, generator=g)
    eta = torch.randn(20, generator=torch.Generator().manual_seed(2)) / 2
    return tuple(v.numpy() for v in (R, torch.eye(20) + S @ S.T / 20, b, eta))  # type: ignore


def other_rules(
    rounding: Any, slope: Any, steps: int = 2000, lr: float = 0.01, j: float = 0.9
) -> tuple[list[Array], list[Array], list[Array], Array]:
    """Weights by latent weights, by the new error alone, and without feedback; steps of those."""
    *_, eta = problems()
    latent = by_latent(rounding, slope, eta, lr, j, steps)
    w = bare = latent[0]
    m, n = -(eta - w) / (lr * j), np.zeros(20)
    alone, none, sizes = [w], [bare], []
    for _ in range(steps):
        m = j * m + slope(w)
        r = w - lr * m
        w = rounding(r)
        m = m + (r - w) / lr - (r - w) / (lr * j)
        n = j * n + slope(bare)
        sizes.append(lr * abs(n))
        bare = rounding(bare - lr * n)
        alone.append(w)
        none.append(bare)
    return latent, alone, none, np.array(sizes)


def test_the_new_error_alone_is_another_rule() -> None:
    R, *_ = problems()
    said = lines_of(containing(PATH, "def with_momentum("))
    assert said[0].endswith("True")
    latent, alone, *_ = other_rules(to_sign, lambda w: np.sin(50 * (R @ w)))
    differ = np.mean([x != y for x, y in zip(latent[1:], alone[1:], strict=True)])
    assert 0.4 < differ < 0.6 and 40 < numbers(said[1].replace("%", ""))[-1] < 60
    says("half of the signs that they have at a step differ, as many as those of two coins")


def test_losses_on_the_convex_quadratic() -> None:
    _, A, b, _ = problems()
    said = lines_of(containing(PATH, "def with_momentum("))[3:]
    best = -b @ np.linalg.solve(A, b) / 2
    for line, spacing in zip(said, (1, 1 / 4, 1 / 16), strict=True):
        *found, sizes = other_rules(lambda v, s=spacing: s * np.round(v / s), lambda w: A @ w - b)
        losses = [fmean(w @ A @ w / 2 - b @ w - best for w in own[1:]) for own in found]
        assert numbers(line)[-3:] == pytest.approx(losses, rel=0.02, abs=6e-4)
        nearer = 100 * (1 - losses[1] / losses[0])
        assert abs(nearer) < 0.2 if spacing == 1 else 6.5 < nearer < 9.5
        assert losses[2] > 3.5 * losses[0]
        assert np.mean(sizes < spacing / 2) > 0.99
        still_there = np.mean(found[2][-1] == found[2][0])
        assert (still_there == 1) == (spacing == 1)
        halves = [fmean(w @ A @ w / 2 - b @ w for w in part)
                  for part in (found[2][-500:], found[2][-1000:-500])]  # fmt: skip
        assert abs(halves[0] - halves[1]) < 0.02  # it has stopped
    says("level on the coarsest grid, and 7 to 9 percent nearer on the finer ones.")
    says("the weights stay where they began on the coarsest grid and stop too early on the finer")
    says("as nearly all steps are smaller than half of the spacing")


def one_step(levels: int, lr: float, atoms: list[tuple[float, float]]) -> Array:
    """The matrix of the chain, from the rule: clip, then to a neighbour with the mean kept."""
    grid = np.linspace(-1, 1, levels)
    found = np.zeros((levels, levels))
    for k, w in enumerate(grid):
        for chance, g in atoms:
            place = (min(max(w - lr * g, -1), 1) + 1) * (levels - 1) / 2
            low = min(math.floor(place + 1e-12), levels - 2)
            found[k, low] += chance * (1 - (place - low))
            found[k, low + 1] += chance * (place - low)
    return found


@pin(
    "prop-20-memory",
    r"""
    Let $\hat g_1,\hat g_2,\dots$ be independent with one law, $\mathbb E|\hat g|>0$, and
    independent of the weights. At each step $w-\varepsilon\hat g$ is clipped to $[-1,1]$ and
    rounded at random, with its mean kept, to one of the two neighbours among $l$ equally spaced
    levels from $-1$ to $1$. (a) With $l=2$ and $\varepsilon|\hat g|\le2$ the mean
    $\mu_t=\mathbb E\,w_t$ obeys {eq-20-forgets} (b) Let $\hat g=\pm C$, both with a positive
    probability, let $q$ be the ratio of the probability of $-C$ to that of $+C$, and
    $0<\varepsilon C<2/(l-1)$, and let the weight begin on a level. Then in the stationary law the
    level number $k=0,\dots,l-1$ has a probability proportional to $q^k$, whatever $\varepsilon$ is,
    and for $q>1$ the mean of the
    weight is {eq-20-levels}
    """,
)
@pin(
    "eq-20-forgets",
    r"\mu_{t+1}=\mu_t-\tfrac\varepsilon2\bigl(\mathbb E\,\hat g+\mu_t\,\mathbb E|\hat g|\bigr),"
    r"\qquad\mu_t\to-\frac{\mathbb E\,\hat g}{\mathbb E|\hat g|}\,.",
)
def test_eq_20_forgets() -> None:
    for lr, atoms in (
        (0.3, [(0.2, -1.0), (0.5, 0.4), (0.3, 2.0)]),
        (1.0, [(0.7, -2.0), (0.3, 1.5)]),
        (1.9, [(0.5, 0.0), (0.5, 1.0)]),
    ):
        T, law = one_step(2, lr, atoms), np.array([0.9, 0.1])
        drift, size = (sum(c * v for c, v in zip([a[0] for a in atoms], f, strict=True))
                       for f in ([a[1] for a in atoms], [abs(a[1]) for a in atoms]))  # fmt: skip
        for _ in range(200):
            before = law[1] - law[0]
            law = law @ T
            assert law[1] - law[0] == pytest.approx(before - lr / 2 * (drift + before * size))
        assert law[1] - law[0] == pytest.approx(-drift / size)


def geometric(levels: int, q: float) -> float:
    chance = q ** (np.arange(levels) - levels + 1.0)
    return float(np.linspace(-1, 1, levels) @ chance / chance.sum())


@pin(
    "eq-20-levels",
    r"\mu_\infty=1-\frac2{l-1}\Bigl(\frac1{q-1}-\frac l{q^l-1}\Bigr).",
)
def test_eq_20_levels() -> None:
    for levels, right, share in itertools.product((2, 3, 4, 16), (0.55, 0.8), (0.2, 0.9)):
        C, q = 1.7, right / (1 - right)
        lr = share * 2 / (levels - 1) / C
        T = one_step(levels, lr, [(right, -C), (1 - right, C)])
        values, vectors = np.linalg.eig(T.T)
        law = np.real(vectors[:, np.argmax(np.real(values))])
        law = law / law.sum()
        assert law[1:] / law[:-1] == pytest.approx(np.full(levels - 1, q))
        formula = 1 - 2 / (levels - 1) * (1 / (q - 1) - levels / (q**levels - 1))
        assert np.linspace(-1, 1, levels) @ law == pytest.approx(formula)
    for wrong in (0.3, 0.45):  # each further bit halves the distance, once there are many
        q = (1 - wrong) / wrong
        ratios = [(1 - geometric(2 ** (b + 1), q)) / (1 - geometric(2**b, q)) for b in (2, 5, 9)]
        assert ratios[2] == pytest.approx(0.5, abs=0.005) and ratios[0] > ratios[2]


def test_the_table_of_memoryless_weights() -> None:
    """Means of 5 000 weights over 500 steps: deviations below 0.003, held at 4.5 of them."""
    _, *said = lines_of(containing(PATH, "def memoryless("))
    for line, shift in zip(said, (0.1, 0.4, 1.0), strict=True):
        size = integrate.quad(lambda g, s=shift: abs(g) * stats.norm.pdf(g, s), -12, 12,
                              points=[0])[0]  # fmt: skip
        given, found, formula = numbers(line)
        assert given == shift and formula == pytest.approx(-shift / size, abs=6e-4)
        # by lr |g| <= 2 the law would be exact; larger steps are rare and clipped
        # steps are correlated over 2 / (lr E|g|) of them
        deviation = math.sqrt((1 - formula**2) / 5000 * 4 / (0.2 * size) / 500)
        assert abs(found - formula) < 4.5 * deviation + 6e-4


KEPT = range(1, 11)


@pytest.mark.parametrize(("bits", "wrong"), [(2, 0.45), (1, 0.1), (7, 0.495), (10, 0.3)])
def test_fig_bits_figure(bits: int, wrong: float) -> None:
    top, low = axes(PATH, "bits_figure", bits=bits, wrong=wrong)
    q = (1 - wrong) / wrong
    means, point, line = lines(low)
    seen = KEPT[:bits]
    assert means == pytest.approx(np.array([seen, [geometric(2**b, q) for b in seen]]))
    assert point.T.tolist() == [[bits, pytest.approx(geometric(2**bits, q))]]
    assert line[1].tolist() == [1, 1] and max(means[1]) < low.get_ylim()[1]
    levels = 2**bits
    chance = q ** (np.arange(levels) - levels + 1.0)
    chance /= chance.sum()
    drawn = np.array([[s[0, 0], s[1, 1]] for s in top.collections[0].get_segments()])
    at = np.round((drawn[:, 0] + 1) * (levels - 1) / 2).astype(int)
    assert drawn[:, 0] == pytest.approx(2 * at / (levels - 1) - 1)
    assert drawn[:, 1] == pytest.approx(chance[at])
    assert len(drawn) == min(levels, 64) and levels - 1 in at


def test_fig_bits_figure_keeps_its_margin() -> None:
    """Layout is that of the first frame: ticks of one width, none at the upper edge."""
    for bits, wrong in itertools.product((1, 2, 4, 6, 8, 10), (0.1, 0.3, 0.4, 0.45, 0.495)):
        top, _ = axes(PATH, "bits_figure", bits=bits, wrong=wrong)
        top.figure.canvas.draw()
        edge = top.get_ylim()[1]
        ticks = {t: k.get_text() for t, k in zip(top.get_yticks(), top.get_yticklabels(),
                                                 strict=True) if t <= edge}  # fmt: skip
        assert {len(text) for text in ticks.values()} == {5}
        assert all(float(text) == pytest.approx(t, abs=1e-9) for t, text in ticks.items())
        assert max(ticks) < 0.99 * edge
        drawn = np.array([s[1, 1] for s in top.collections[0].get_segments()])
        assert drawn.max() < 0.95 * edge


def test_fig_bits_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-20-bits"])["answer"])

    def of(bits: int, wrong: float) -> float:
        return geometric(2**bits, (1 - wrong) / wrong)

    assert of(1, 0.45) == pytest.approx(0.1) and round(of(7, 0.45), 2) == 0.93
    assert next(b for b in KEPT if of(b, 0.45) >= 0.9) == 7
    assert "7 bits have 0.93" in answer and "One bit has a mean of 0.1" in answer
    assert of(1, 0.49) == pytest.approx(0.02)
    assert next(b for b in KEPT if of(b, 0.49) >= 0.9) == 9 == 7 + 2
    assert "it takes 9 bits to 0.9: five times less signal, two bits more" in answer
    assert of(1, 0.45) / of(1, 0.49) == pytest.approx(5)


# ------------------------------------------------------------------------------ latent weights


@cache
def grid(rounding: str, bits: int) -> Row:
    (row,) = (r for r in rows("latent") if (r["rounding"], r["bits"]) == (rounding, bits))
    assert len(row["sign"]) == 10
    return row


def accuracy(rounding: str, bits: int) -> str:
    values = grid(rounding, bits)["sign"]
    return f"{short(fmean(values), 3)} ± {short(se(values), 3)}"


def p_of(one: tuple[str, int], two: tuple[str, int]) -> float:
    return float(stats.ttest_ind(grid(*one)["sign"], grid(*two)["sign"], equal_var=False).pvalue)


def test_the_table_of_bits() -> None:
    _, *said, last = lines_of(containing(PATH, "def accuracy_at("))
    assert len({line.rindex("±") for line in said}) == 1  # a column
    for line, bits in zip(said, (1, 2, 4, 8), strict=True):
        expected: list[float] = [bits]
        for rounding in ("random", "nearest"):
            row = grid(rounding, bits)
            expected += [fmean(row["sign"]), se(row["sign"]), row["lr"]]
        assert numbers(line) == pytest.approx(expected, abs=6e-4)
    row = grid("none", 0)
    assert numbers(last) == pytest.approx(
        [fmean(row["sign"]), se(row["sign"]), row["lr"]], abs=6e-4
    )


def test_what_is_said_of_bits() -> None:
    one, full = accuracy("random", 1), accuracy("none", 0)
    says(
        f"With one bit, rounded at random, the network is at {one}, more than four points below "
        f"the latent weights of full precision, {full}, and two bits hardly change that."
    )
    lost = fmean(grid("none", 0)["sign"]) - fmean(grid("random", 1)["sign"])
    assert 4 < 100 * lost < 4.8 and p_of(("random", 2), ("random", 1)) > 0.1
    says(f"With four bits ten seeds cannot tell a loss from none: {accuracy('random', 4)} and "
         f"{accuracy('nearest', 4)}")  # fmt: skip
    for rounding in ("random", "nearest"):
        assert p_of((rounding, 4), ("none", 0)) > 0.05 < p_of((rounding, 8), ("none", 0))
        assert p_of((rounding, 8), (rounding, 4)) > 0.3
    assert all(grid("nearest", b)["lr"] > grid("random", b)["lr"] for b in (1, 2, 4, 8))
    means = [short(fmean(grid(rounding, 1)["sign"]), 3) for rounding in ("nearest", "random")]
    p = p_of(("nearest", 1), ("random", 1))
    says(
        "and it is better than the random one ({} against {}, p = {}).".format(*means, short(p, 3))
    )
    assert fmean(grid("random", 1)["sign"]) > 0.9
    says("even the forgetful weight gets nine digits in ten right")


# -------------------------------------------------------------------------------- exercises


def checker(name: str) -> Any:
    (cell,) = (c for c in tagged(PATH, "checker") if f"{name} = " in c.source)
    return run(PATH, cell)[name]


CHECKS = ["check_omega", "check_probes", "check_mix", "check_width", "check_bits"]


@pytest.mark.parametrize("name", CHECKS)
def test_the_checkers_know_their_wrong_answers(name: str, capsys: pytest.CaptureFixture) -> None:
    check = checker(name)
    assert len(check.wrong) >= 3
    for answer, words in check.wrong:
        capsys.readouterr()
        assert not check(answer)
        assert words in lean(capsys.readouterr().out)
    assert check(check.value)


def named(name: str, answer: Any, capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert not checker(name)(answer)
    return lean(capsys.readouterr().out)


def test_ex_20_omega_and_its_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    scale = optimize.brentq(lambda s: gain("Uniform", s, 0) - 1, 0.5, 1)

    def weight(target: float) -> float:
        return float(optimize.brentq(lambda w: gain("Uniform", scale, w) - target, 0, 1000))

    assert checker("check_omega")(weight(2 ** (1 / 8)))
    said = printed(next(c for c in tagged(PATH, "solution") if "check_omega" in c.source))
    assert numbers(said)[0] == pytest.approx(weight(2 ** (1 / 8)), abs=2e-3)
    says(r"The gain of a layer must be at most $2^{1/8}=1.0905$")
    assert round(2 ** (1 / 8), 4) == 1.0905
    bound = 4 * (2 ** (1 / 8) - 1)
    says(rf"would allow $4\,(2^{{1/8}}-1)={bound:.2f}$")
    assert weight(2 ** (1 / 8)) / bound == pytest.approx(4, abs=0.1)
    assert "allows" in named("check_omega", bound, capsys)
    assert "one layer" in named("check_omega", weight(2), capsys)
    assert "growth of a length" in named("check_omega", weight(2 ** (1 / 16)), capsys)
    assert "doubles the length" in named("check_omega", weight(4 ** (1 / 8)), capsys)


def test_ex_20_probes_and_its_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    """Mean squares of covariances over ten classes, of 4 000 heads by numpy."""
    W = np.random.default_rng(5).normal(size=(4000, 10, 64))
    W = W - W.mean(1, keepdims=True)
    own = ((W**2).mean(1) ** 2).mean()
    pairs = ((W[:, :, ::2] * W[:, :, 1::2]).mean(1) ** 2).mean()
    assert own == pytest.approx(9 * 11 / 100, rel=0.02)
    assert pairs == pytest.approx(9 / 100, rel=0.02)
    assert 63 * pairs / own == pytest.approx(63 / 11, rel=0.03)
    assert checker("check_probes")(math.ceil(63 / 11))
    said = lines_of(next(c for c in tagged(PATH, "solution") if "check_probes" in c.source))
    assert numbers(said[0])[0] == pytest.approx(63 / 11, abs=0.1)
    assert "random symmetric" in named("check_probes", math.ceil(63 / 2), capsys)
    assert "count the classes" in named("check_probes", 63 / 9, capsys)
    assert "below 63/11" in named("check_probes", math.floor(63 / 11), capsys)


def beside(k: float, A: float, o: float, m: int, mu: float) -> float:
    """Var of 2f(slope - d y) in units of 4f^2, less the part of the other units, by a sum.

    d has the mean A and the variance o / m: two values, A +- sqrt(o / m), are such a law.
    """
    values = [
        (chance / 2, A * x - d * (mu + k * (x - mu)))
        for x, chance in ((1, (1 + mu) / 2), (-1, (1 - mu) / 2))
        for d in (A - math.sqrt(o / m), A + math.sqrt(o / m))
    ]
    first = sum(p * v for p, v in values)
    return sum(p * v**2 for p, v in values) - first**2


def test_ex_20_mix_and_its_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    def least(A: float, o: float, m: int) -> torch.Tensor:
        found = optimize.minimize_scalar(lambda k: beside(k, A, o, m, 0.6), (0, 1), tol=1e-12)
        return torch.tensor(float(found.x))

    for A, o, m in ((0.5, 1.0, 1), (-1.2, 0.3, 4), (2.0, 5.0, 2)):
        assert float(least(A, o, m)) == pytest.approx(A**2 / (A**2 + o / m), abs=1e-6)
    assert checker("check_mix")(lambda A, o, m: torch.as_tensor(A**2 / (A**2 + o / m)))
    said = lines_of(next(c for c in tagged(PATH, "solution") if "check_mix" in c.source))
    best = 0.25 / (0.25 + 0.5)
    expected = [best, *(beside(k, 0.5, 1.0, 2, 0.6) for k in (1, best, 0))]
    assert numbers(said[0]) == pytest.approx(expected, abs=6e-4)
    assert "1 - k" in named(
        "check_mix", lambda A, o, m: 1 - torch.as_tensor(A**2 / (A**2 + o / m)), capsys
    )


@pytest.mark.slow
def test_ex_20_width_and_its_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    def crossing(number: str = "loss", other: str = "straight_through_10") -> float:
        low, high = (math.log(over("psa", w, number, other=other)[0]) for w in (8, 16))
        return float(8 * 2 ** np.interp(0, [low, high], [0, 1])) if low < 0 < high else float(
            8 * 2 ** (low / (low - high))
        )  # fmt: skip

    value = crossing()
    assert 8 < value < 16 and checker("check_width")(value)
    assert lines_of(next(c for c in tagged(PATH, "solution") if "check_width" in c.source))[2] == (
        f"{value:.2f} units"
    )
    g = np.random.default_rng(7)  # another bootstrap, within its noise of that of the page
    picks = g.integers(10, size=(2, 2, 4000, 10))
    means = [[np.array(trained(n, w))[picks[i, k]].mean(1) for k, n in enumerate(
        ("psa", "straight_through_10"))] for i, w in enumerate((8, 16))]  # fmt: skip
    logs = [np.log(one / ten) for one, ten in means]
    ends = np.quantile(8 * 2 ** (logs[0] / (logs[0] - logs[1])), [0.025, 0.975])
    solution = lines_of(next(c for c in tagged(PATH, "solution") if "check_width" in c.source))
    assert numbers(solution[0]) == pytest.approx(ends, abs=0.3)
    says("give {} to {}.".format(*re.findall(r"\d+\.\d", solution[0])))
    tests = [over("psa", w, "test_loss", other="straight_through_10") for w in WIDTHS[1:]]
    assert numbers(solution[1]) == [pytest.approx(ratio, abs=6e-3) for ratio, _ in tests]
    assert [ratio < 1 for ratio, _ in tests] == [True, True, True, False]
    assert min(p for _, p in tests[1:]) > 0.05
    low, high = (math.log(over("psa", w, other="straight_through_10")[0]) for w in (8, 16))
    linear = 8 + 8 * low / (low - high)
    assert "linear in the width" in named("check_width", linear, capsys)
    assert "by the test loss" in named("check_width", crossing("test_loss"), capsys)
    assert "one draw" in named("check_width", crossing(other="straight_through"), capsys)
    assert evaluations("psa", 8) == 9 and 9 + 1 == 10
    says("Ten draws of straight-through cost about as much as PSA with nine units.")


def test_ex_20_bits_and_its_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    q = 1.05 / 0.95
    found = {b: geometric(2**b, q) for b in range(1, 10)}
    first = next(b for b, v in found.items() if v >= 0.9)
    assert checker("check_bits")(first) and first == 8
    said = lines_of(next(c for c in tagged(PATH, "solution") if "check_bits" in c.source))[0]
    assert said == ", ".join(f"{b}: {v:.2f}" for b, v in found.items() if b >= 5)
    says(f"The ratio is $q=1.05/0.95={q:.3f}$.")
    assert 2 / (q - 1) == pytest.approx(19) and pytest.approx(0.1) == 19 / 190
    assert f"{found[7]:.2f}" == "0.85" and "7 bits give 0.85" in named("check_bits", 7, capsys)
    assert "8 are enough: 0.93" in named("check_bits", 9, capsys) and round(found[8], 2) == 0.93
    assert found[1] == pytest.approx(0.05)
    says("Without memory its mean is 0.05.")
