"""Chapter 16, how deep can it go: both sides of every formula, and the notebook's own code.

Expected values are quadrature, enumeration and networks of numpy; sbnlib appears only where a
function of sbnlib, or one of the notebook, is what is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import reference as ref
from chapters import as_in_the_book, chapter, define
from pins import pin
from scipy import integrate, optimize

import sbnlib

Array = np.ndarray
PATH = chapter(16)
noises = pytest.mark.parametrize("name", ref.NOISES)
TRAINABLE = ("Logistic", "Gaussian", "Triangular", "Uniform", "Cauchy", "FastSigmoid")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


def phi(a: Array | float) -> Array:
    return np.exp(-np.square(a) / 2) / math.sqrt(2 * math.pi)


def normal(function: Callable[[float], float], noise: ref.RefNoise) -> float:
    """E function(a), a ~ N(0, 1), for an even function: quad between the noise's landmarks."""
    stops = sorted({0.0, *(noise.scale * 4.0 ** np.arange(-2, 4)), 1.0, 2.0, 4.0, 12.0,
                    noise.half_width})  # fmt: skip
    inside = [s for s in stops if s <= 12]
    return 2 * sum(
        integrate.quad(lambda a: float(function(a) * phi(a)), lo, hi, epsabs=1e-13)[0]
        for lo, hi in zip(inside[:-1], inside[1:], strict=True)
    )


def factor(noise: ref.RefNoise, a: Array, x: Array, s: float) -> Array:
    """The member s of the line, from its formula in chapter 10; 0 for a state that cannot occur."""
    p = noise.cdf(x * a)
    mu = noise.cdf(a) - noise.cdf(-a)
    return noise.pdf(a) * (1 + s * x * mu) / np.where(p > 0, p, np.inf)


def mean_square(noise: ref.RefNoise, s: float) -> float:
    """E c^2, a sum over both states under the integral."""
    return normal(
        lambda a: sum(float(noise.cdf(x * a) * factor(noise, a, x, s) ** 2) for x in (1, -1)), noise
    )


GRID = np.polynomial.hermite_e.hermegauss(120)


def paired(function: Callable[[Array], Array], r: float) -> float:
    """E function(a) function(a') of two normal numbers with correlation r, by Gauss-Hermite."""
    z, w = GRID[0], GRID[1] / GRID[1].sum()
    inner = function(r * z[:, None] + math.sqrt(max(1 - r * r, 0.0)) * z)
    return float(w @ (function(z) * (inner @ w)))


# ---------------------------------------------------------------------------------- networks


class Net:
    """A network that is wide at its start, in numpy: two passes of one input, and back."""

    def __init__(self, noise: ref.RefNoise, depth: int, width: int, seed: int) -> None:
        self.noise, self.g = noise, np.random.default_rng(seed)
        self.weights = self.g.normal(size=(depth, width, width)) / math.sqrt(width)
        self.start = self.g.choice([-1.0, 1.0], width)
        self.top = self.g.normal(size=width)

    def sampled(self) -> tuple[list[Array], list[Array]]:
        """States and pre-activations."""
        states, pre = [self.start], []
        for W in self.weights:
            pre.append(W @ states[-1])
            u = self.g.random(len(pre[-1]))
            states.append(np.where(u < self.noise.cdf(pre[-1]), 1.0, -1.0))
        return states, pre

    def back(self, states: list[Array], pre: list[Array], s: float) -> list[Array]:
        """The gradients at the pre-activations, from the first layer up."""
        g, out = self.top, []
        for k in reversed(range(len(pre))):
            out.append(factor(self.noise, pre[k], states[k + 1], s) * g)
            g = self.weights[k].T @ out[-1]
        return out[::-1]


@cache
def measured(name: str, scale: float, s: float, depth: int = 4, nets: int = 60) -> dict[str, Array]:
    """Means over networks of squared lengths, products and overlaps, with standard errors."""
    rows: dict[str, list[Array]] = {"square": [], "product": [], "overlap": []}
    for seed in range(nets):
        net = Net(ref.RefNoise(name, scale), depth, 300, seed)
        (x, a), (y, b) = net.sampled(), net.sampled()
        d, e = net.back(x, a, s), net.back(y, b, s)
        rows["square"].append(np.array([v @ v + w @ w for v, w in zip(d, e, strict=True)]) / 600)
        rows["product"].append(np.array([v @ w for v, w in zip(d, e, strict=True)]) / 300)
        rows["overlap"].append(np.array([np.mean(v * w) for v, w in zip(x, y, strict=True)]))
    return {key: np.array(v) for key, v in rows.items()}


def ratio(top: Array, bottom: Array) -> tuple[float, float]:
    """A ratio of means, and its error by the delta method."""
    value = top.mean() / bottom.mean()
    rest = top - value * bottom
    return value, rest.std(ddof=1) / math.sqrt(len(rest)) / bottom.mean()


# ---------------------------------------------------------------------------------- the gain


@pin(
    "thm-16-gain",
    r"""
    Let a network be wide at its start, and let the factor $c$ have $\mathbb E[(1+a^2)c^2]<\infty$,
    where $a\sim\mathcal N(0,1)$ and $P(x\mid a)=F(xa)$. Then the squared length of the gradient at
    the pre-activations of layer $l$ is, in the limit, multiplied from layer to layer by the *gain*
    {eq-16-gain} Of all factors that are exact for linear losses, straight-through has the least
    gain, and the member $s$ of the line has {eq-16-line}
    """,
)
@pin(
    "eq-16-gain",
    r"\frac{\mathbb E\|\delta_l\|^2}{\mathbb E\|\delta_{l+1}\|^2}\to G,"
    r"\qquad G=\mathbb E\,c(a,x)^2 .",
)
@pytest.mark.parametrize(
    ("name", "scale", "s"),
    [("Logistic", 0.5, 1.0), ("Logistic", 0.25, 0.0), ("Triangular", 1.2, 0.5), ("Uniform", 1, 1)],
)
def test_eq_16_gain(name: str, scale: float, s: float) -> None:
    """Networks of 300 units: within five errors and the 1/n that the proof leaves."""
    found = measured(name, float(scale), float(s))["square"]
    G = mean_square(ref.RefNoise(name, scale), s)
    for k in range(3):
        value, se = ratio(found[:, k], found[:, k + 1])
        assert abs(value - G) < 5 * se + 5 * G / 300, (k, value, G, se)


@pin(
    "eq-16-line",
    r"G(s)=\mathbb E\Bigl[4f(a)^2+(1-s)^2\,\frac{\mu(a)^2f(a)^2}{F(a)\,F(-a)}\Bigr],"
    r"\qquad G_{\mathrm{ST}}=\mathbb E\,4f(a)^2 .",
)
@pytest.mark.parametrize("s", [1.0, 0.3, 0.0, -1.0])
@pytest.mark.parametrize("name", ["Logistic", "Gaussian", "Triangular", "Cauchy", "FastSigmoid"])
def test_eq_16_line(name: str, s: float) -> None:
    """The formula, the sum over both states, and the library's gain."""
    noise = ref.RefNoise(name, 0.7)

    def formula(a: float) -> float:
        f, p, q = noise.pdf(a), noise.cdf(a), noise.cdf(-a)
        fisher = f * f / (p * q) if q > 0 else 0.0
        return 4 * f * f + (1 - s) ** 2 * (p - q) ** 2 * fisher

    expected = normal(formula, noise)
    assert mean_square(noise, s) == pytest.approx(expected, rel=1e-6)
    law = getattr(sbnlib, name)(0.7)
    library = sbnlib.gain(law, lambda a, x, noise: sbnlib.chain_rule(a, x, noise, s=s))
    assert library == pytest.approx(expected, rel=1e-6)


@pin(
    "eq-16-finite",
    r"\mathbb E g_i^2=\frac{n_K}{n}\Bigl[G+\frac1n\,\mathbb E(a^2-1)c^2\Bigr],",
)
@pytest.mark.parametrize("s", [1.0, 0.0])
def test_eq_16_finite(s: float) -> None:
    """Tiny layers, where the term 1/n counts: 4 units below 7. |z| < 4.5: one in 100 000."""
    noise, n, top, count = ref.RefNoise("Logistic", 0.4), 4, 7, 400_000
    g = np.random.default_rng(int(s))
    W = g.normal(size=(count, top, n)) / math.sqrt(n)
    below = g.choice([-1.0, 1.0], n)
    a = W @ below
    x = np.where(g.random(a.shape) < noise.cdf(a), 1.0, -1.0)
    delta = factor(noise, a, x, s) * g.normal(size=a.shape)
    square = np.einsum("cji,cj->ci", W, delta)[:, 0] ** 2
    G = mean_square(noise, s)
    wide = normal(
        lambda v: (v * v - 1) * sum(
            float(noise.cdf(y * v) * factor(noise, v, y, s) ** 2) for y in (1, -1)), noise
    )  # fmt: skip
    expected = top / n * (G + wide / n)
    z = (square.mean() - expected) / (square.std() / math.sqrt(count))
    assert abs(z) < 4.5
    assert abs(square.mean() - top / n * G) > 10 * square.std() / math.sqrt(count)


@pin(
    "prop-16-finite",
    r"""
    Let $s\ne1$ be fixed. With $\theta=2\arcsin\sqrt{F}$ the second term of {eq}`eq-16-line` is
    $(1-s)^2\,\mathbb E[\mu^2\theta'^2]$, so that it is finite where $\theta$ is smooth. Let the
    support end at $t$, and let $F(-a)=C(t-a)^\alpha$ near it, with $C,\alpha>0$. Then
    straight-through has a finite gain exactly if $\alpha>\tfrac12$, and the member $s$ exactly if
    $\alpha>1$. For uniform noise on $[-\sigma,\sigma]$, $\alpha=1$, and the part of the integral
    where both states have a probability above $\epsilon$ is {eq-16-log} with the density $\varphi$
    of $\mathcal N(0,1)$.
    """,
)
@pytest.mark.parametrize("alpha", [0.3, 0.45, 0.55, 0.9, 1.0, 1.1, 2.0])
def test_prop_16_finite(alpha: float) -> None:
    """Decades of the distance o to the end add less and less, or do not."""
    C, end = 0.3, 1.0

    def part(second: bool, decade: int) -> float:
        lo, hi = 10.0 ** -(decade + 1), 10.0**-decade

        def term(o: float) -> float:
            f, q = C * alpha * o ** (alpha - 1), C * o**alpha
            value = (1 - 2 * q) ** 2 * f * f / (q * (1 - q)) if second else 4 * f * f
            return value * float(phi(end - o))

        # in log o, so that a decade is as smooth as the next
        return integrate.quad(
            lambda v: term(math.exp(v)) * math.exp(v), math.log(lo), math.log(hi)
        )[0]

    for second, least in ((False, 0.5), (True, 1.0)):
        falls = part(second, 8) / part(second, 6)
        assert (falls < 0.95) == (alpha > least), (second, falls)
        if alpha == least:
            assert falls == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["Logistic", "Triangular", "Cauchy"])
def test_prop_16_finite_theta(name: str) -> None:
    noise = ref.RefNoise(name)
    for a in (-0.7, 0.2, 0.9):
        theta = [2 * math.asin(math.sqrt(noise.cdf(a + h))) for h in (1e-6, -1e-6)]
        fisher = noise.pdf(a) ** 2 / (noise.cdf(a) * noise.cdf(-a))
        assert ((theta[0] - theta[1]) / 2e-6) ** 2 == pytest.approx(fisher, rel=1e-6)


@pin(
    "eq-16-log",
    r"\frac{(1-s)^2}{\sigma}\,\varphi(\sigma)\,\ln\frac1\epsilon+O(1)\qquad(\epsilon\to0),",
)
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("s", [0.0, 0.5, -1.0])
def test_eq_16_log(sigma: float, s: float) -> None:
    """The growth between two cuts, over the growth of the logarithm."""

    def cut(epsilon: float) -> float:
        """In log o, the distance to the end, from where q = epsilon to the middle; both ends."""

        def term(v: float) -> float:
            o = math.exp(v)
            q = o / (2 * sigma)
            second = (1 - 2 * q) ** 2 / (4 * sigma**2) / (q * (1 - q))
            return (1 - s) ** 2 * second * float(phi(sigma - o)) * o

        return (
            2 * integrate.quad(term, math.log(2 * sigma * epsilon), math.log(sigma), limit=200)[0]
        )

    slope = (cut(1e-9) - cut(1e-6)) / math.log(1e3)
    assert slope == pytest.approx((1 - s) ** 2 / sigma * float(phi(sigma)), rel=1e-4)


# ------------------------------------------------------------------------------- the overlap


@pin(
    "thm-16-overlap",
    r"""
    In a network that is wide at its start, the overlap $r$ of two states becomes in the next layer,
    in the limit, {eq-16-map} On $[0,1]$ the map $h$ is convex, $h(0)=0$ and
    $h(1)=\mathbb E\mu^2<1$, so that $0$ is its only fixed point and the overlap of any two passes
    tends to $0$. Its slopes are {eq-16-slopes} if $F$ has a density with $G_{\mathrm{ST}}<\infty$,
    and $h'(0)<2/\pi$.
    """,
)
@pin(
    "eq-16-map",
    r"h(r)=\mathbb E\,\mu(a)\,\mu(a'),\qquad\operatorname{corr}(a,a')=r .",
)
@pytest.mark.parametrize("r", [0.0, 0.4, 0.9])
def test_eq_16_map(r: float) -> None:
    """One layer of 200 000 units over 40 states; |z| < 4.5."""
    noise, n, count = ref.RefNoise("Logistic", 0.25), 40, 200_000
    g = np.random.default_rng(int(10 * r))
    x = g.choice([-1.0, 1.0], n)
    y = x.copy()
    y[: round(n * (1 - r) / 2)] *= -1
    assert np.mean(x * y) == pytest.approx(r)
    W = g.normal(size=(count, n)) / math.sqrt(n)
    new = [np.where(g.random(count) < noise.cdf(W @ v), 1.0, -1.0) for v in (x, y)]
    found = new[0] * new[1]
    expected = paired(lambda a: 2 * noise.cdf(a) - 1, r)
    assert abs(found.mean() - expected) < 4.5 * found.std() / math.sqrt(count)


@pin(
    "eq-16-slopes",
    r"""
    h'(0)=(\mathbb E\,2f)^2\ \le\ \mathbb E\,\mu^2\ \le\ \mathbb E\,(2f)^2=h'(1)=G_{\mathrm{ST}},
    """,
)
@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
@noises
def test_eq_16_slopes(name: str, scale: float) -> None:
    noise = ref.RefNoise(name, scale)
    first = normal(lambda a: 2 * noise.pdf(a), noise) ** 2
    middle = normal(lambda a: (2 * noise.cdf(a) - 1) ** 2, noise)
    last = normal(lambda a: 4 * noise.pdf(a) ** 2, noise)
    assert first < middle < last
    assert first < 2 / math.pi
    assert middle < 1
    law = getattr(sbnlib, name)(scale)
    assert sbnlib.overlap(law) == pytest.approx(first, rel=1e-6)
    assert sbnlib.gain(law) == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize("name", ["Logistic", "Gaussian", "Cauchy"])
def test_the_slopes_of_the_map_are_these(name: str) -> None:
    """Smooth laws at scale 1, where Gauss-Hermite is good: differences of h, and its shape."""
    noise = ref.RefNoise(name)

    def h(r: float) -> float:
        return paired(lambda a: 2 * noise.cdf(a) - 1, r)

    assert h(0) == pytest.approx(0, abs=1e-12)
    assert h(1e-4) / 1e-4 == pytest.approx(normal(lambda a: 2 * noise.pdf(a), noise) ** 2, rel=1e-3)
    above = (h(1.0) - h(1 - 1e-3)) / 1e-3
    assert above == pytest.approx(normal(lambda a: 4 * noise.pdf(a) ** 2, noise), rel=3e-3)
    values = np.array([h(r) for r in np.linspace(0, 1, 21)])
    assert (np.diff(values, 2) > 0).all()
    assert (values[1:] < np.linspace(0, 1, 21)[1:]).all()


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_notebook_s_pairs(name: str) -> None:
    """The trapezoid of the page against scipy's double integral."""
    page = define(PATH, "grid_of_normal", "Z", "paired", "mean_of", "slope_of")
    noise, law = ref.RefNoise(name, 0.6), getattr(sbnlib, name)(0.6)
    for r in (0.1, 0.7):
        for by_page, by_hand in (
            (page["mean_of"], lambda a: 2 * noise.cdf(a) - 1),
            (page["slope_of"], lambda a: 2 * noise.pdf(a)),
        ):
            if name == "Uniform" and by_page is page["slope_of"]:
                continue  # a step, for which the page has no use
            z = np.linspace(-9, 9, 4001)
            w = phi(z) / phi(z).sum()
            rows = np.array([
                w @ by_hand(r * v + math.sqrt(1 - r * r) * z) for v in z[::4]
            ])  # fmt: skip
            u = phi(z[::4]) / phi(z[::4]).sum()
            expected = float(u @ (by_hand(z[::4]) * rows))
            assert page["paired"](by_page(law), r) == pytest.approx(expected, abs=3e-3)


# ------------------------------------------------------------------------------- the ceiling


def bound(v: float) -> float:
    end = math.sqrt(max(-2 * math.log(v * math.sqrt(2 * math.pi)), 0.0))
    part = 2 * integrate.quad(lambda a: float((phi(a) - v) ** 2 / phi(a)), 0, end)[0]
    return (2 * v + math.sqrt(part)) ** 2


@pin(
    "thm-16-ceiling",
    r"""
    Let $s=(\mathbb E\,2f)^2$ be the overlap rate of a noise with a density. Then {eq-16-ceiling}
    and the bound is attained, by a density proportional to $\bigl(1-e^{(a^2-A^2)/2}\bigr)_+$ with
    $A=0.885$.
    """,
)
@pin(
    "eq-16-ceiling",
    r"""
    \frac{s}{\max(G_{\mathrm{ST}},1)}\ \le\
    \min_{v>0}\Bigl(2v+\Bigl[\int\frac{(\varphi-v)_+^2}{\varphi}\,da\Bigr]^{1/2}\Bigr)^2=0.5444\ldots
    """,
)
def test_eq_16_ceiling() -> None:
    """The minimum, the law that attains it, and a thousand others that do not."""
    least = optimize.minimize_scalar(bound, bounds=(0.05, 0.39), method="bounded",
                                     options={"xatol": 1e-10})  # fmt: skip
    assert least.fun == pytest.approx(0.54449, abs=1e-5)
    assert math.floor(least.fun * 1e4) == 5444

    def moments(A: float) -> tuple[float, float]:
        """E g and E g^2 of g = 2f, f the density that is named."""

        def g(a: float) -> float:
            return 1 - math.exp((a * a - A * A) / 2)

        mass = 2 * integrate.quad(g, 0, A)[0]
        one = 2 * integrate.quad(lambda a: 2 * g(a) / mass * float(phi(a)), 0, A)[0]
        two = 2 * integrate.quad(lambda a: (2 * g(a) / mass) ** 2 * float(phi(a)), 0, A)[0]
        return one, two

    A = optimize.brentq(lambda A: moments(A)[1] - 1, 0.5, 2)
    assert pytest.approx(0.885, abs=5e-4) == A
    assert moments(A)[0] ** 2 == pytest.approx(least.fun, abs=1e-7)
    g, a = np.random.default_rng(0), np.linspace(0, 6, 3001)
    w = np.where((a == 0) | (a == 6), 0.5, 1.0) * (a[1] - a[0]) * 2
    for _ in range(1000):
        f = np.interp(a, np.linspace(0, g.uniform(0.3, 6), 7), g.exponential(size=7) ** 2, right=0)
        f = f / (w @ f)
        rate, G = (w @ (2 * f * phi(a))) ** 2, w @ (4 * f * f * phi(a))
        assert rate / max(G, 1) < least.fun


# ------------------------------------------------------------------------------------- signal


@pin(
    "eq-16-snr",
    r"\mathrm{SNR}_l:=\frac{\mathbb E\langle\delta_lx_{l-1}^\top,\delta_l'x_{l-1}'^{\top}\rangle}"
    r"{\mathbb E\|\delta_lx_{l-1}^\top\|^2}\to r_{l-1}\prod_{k=l}^{K}\frac{\chi(r_{k-1})}{G} .",
)
@pytest.mark.parametrize(("s", "scale"), [(1.0, 0.5), (0.0, 0.5), (1.0, 0.3)])
def test_eq_16_snr(s: float, scale: float) -> None:
    """Networks of 300 units and four layers, within five errors and one part in thirty."""
    noise = ref.RefNoise("Logistic", scale)
    found = measured("Logistic", scale, s, nets=150)
    G, r, chi = mean_square(noise, s), [1.0], []
    for _ in range(4):
        chi.append(paired(lambda a: 2 * noise.pdf(a), r[-1]))
        r.append(paired(lambda a: 2 * noise.cdf(a) - 1, r[-1]))
    for k in range(4):
        signal = found["product"][:, k] * found["overlap"][:, k]
        value, se = ratio(signal, found["square"][:, k])
        expected = r[k] * math.prod(chi[k:]) / G ** (4 - k)
        assert abs(value - expected) < 5 * se + expected / 30, (k, value, expected, se)


@pin(
    "prop-16-snr",
    r"""
    In a network that is wide at its start let $r_0=1$, $r_l=h(r_{l-1})$ and
    $\chi(r)=\mathbb E[2f(a)\,2f(a')]$ with $\operatorname{corr}(a,a')=r$. For every factor that is
    exact for linear losses, in the limit, {eq-16-snr} Between two constants that do not depend on
    $K$ and $l$ this is $s^K/G^{K-l+1}$, with the overlap rate $s=\chi(0)$. So the smallest SNR is
    near the last layer if $G<1$ and near the first one if $G>1$, and with each further layer it
    falls by a factor that tends to {eq-16-worst}
    """,
)
@pin("eq-16-worst", r"\frac{s}{\max(G,1)} .")
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_eq_16_worst(scale: float) -> None:
    """The worst layer of 30 and of 31, from the maps themselves."""
    noise = ref.RefNoise("Gaussian", scale)
    G = normal(lambda a: 4 * noise.pdf(a) ** 2, noise)
    rate = normal(lambda a: 2 * noise.pdf(a), noise) ** 2
    worst = []
    for K in (30, 31):
        r, chi = [1.0], []
        for _ in range(K):
            chi.append(paired(lambda a: 2 * noise.pdf(a), r[-1]))
            r.append(paired(lambda a: 2 * noise.cdf(a) - 1, r[-1]))
        snr = [r[k] * math.prod(chi[k:]) / G ** (K - k) for k in range(K)]
        worst.append(min(snr))
        at = int(np.argmin(snr))
        assert at > K - 3 if G < 1 else at < 3
        shape = np.array([rate**K / G ** (K - k) for k in range(K)])
        assert (np.array(snr) / shape).max() < 12 * (np.array(snr) / shape).min()
    assert worst[1] / worst[0] == pytest.approx(rate / max(G, 1), rel=2e-3)
