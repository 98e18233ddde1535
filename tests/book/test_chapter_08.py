"""Chapter 8, the empirical rules: both sides of every formula, and the notebook's own code.

Slopes are those of ``slopes.py``, integrals scipy's, derivatives central differences; states are
enumerated, and fields are integrated along paths.
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
    chapter,
    checker,
    containing,
    curves,
    define,
    lines,
    printed,
    prose,
    run,
    says_to,
    still,
    under,
)
from formulas import list_table
from pins import pin
from scipy import integrate, optimize
from slopes import SLOPES

import sbnlib

Array = np.ndarray
Slope = Callable[[Array], Array]
PATH = chapter(8)
LOGISTIC = ref.RefNoise("Logistic")

#: The names of the page, and what they are called in ``slopes.py``.
KEYS = {
    "hardtanh": "hardtanh", "ApproxSign": "approx_sign", "tanh(a)": "tanh",
    "tanh(a/2)": "half_tanh", "erf": "erf", "arctan": "arctan", "fast sigmoid": "fast_sigmoid",
    "SuperSpike": "superspike", "EDE, start": "ede", "EDE, end": "ede_late", "ReSTE": "reste",
    "SwishSign": "swish_sign",
}  # fmt: skip
OTHERS: dict[str, Slope] = {
    "identity": lambda a: np.ones_like(a),
    "leaky tanh": lambda a: 1.001 - np.tanh(a) ** 2,
    "step": lambda a: np.where(a < 0, 1.0, -1.0),
}
NAMES = [*KEYS, *OTHERS]
EXACT = {k for k, v in KEYS.items() if SLOPES[v].noise is not None}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


def slope_of(name: str) -> Slope:
    return SLOPES[KEYS[name]].slope if name in KEYS else OTHERS[name]


def integral(h: Slope, start: float, end: float) -> float:
    """By scipy, on pieces that end at corners and jumps and grow away from zero."""
    inner = [*(s * e for s in (-1, 1) for e in (0.1, 0.3, 1, 1.5, 4, 12, 40, 400, 1e4, 1e6)), 0.0]
    edges = [start, *sorted(e for e in inner if start < e < end), end]
    value = lambda a: float(h(np.array([a]))[0])  # noqa: E731
    parts = [
        integrate.quad(value, lo, hi, limit=200, epsabs=1e-12, epsrel=1e-11)[0]
        for lo, hi in itertools.pairwise(edges)
    ]
    return float(sum(parts))


def whole(h: Slope) -> float:
    return integral(h, -1e9, 1e9)


def difference(f: Callable[[float], float], at: float, step: float = 1e-5) -> float:
    return (f(at + step) - f(at - step)) / (2 * step)


# -------------------------------------------------------------------------- the four conditions


@pin(
    "eq-08-pair",
    r"""
    \begin{gathered} P(x{=}1\mid a)=F(a)\ \text{forward},\\
    \partial x/\partial a:=h(a)\ \text{backward}. \end{gathered}
    """,
)
def test_eq_08_pair() -> None:
    """What the library draws and what it passes back, by a grid of uniforms."""
    u = (torch.arange(20_000) + 0.5) / 20_000
    for value in (-0.8, 0.3):
        a = torch.full((20_000,), value, requires_grad=True)
        x = sbnlib.sample_sign(a.detach(), sbnlib.Uniform(), u=u)
        assert (x > 0).double().mean().item() == pytest.approx((1 + value) / 2, abs=1e-4)
        sbnlib.proxy(a, x, name="arctan").sum().backward()
        assert a.grad.numpy() == pytest.approx(2 / np.pi / (1 + value**2))


#: Pairs of a distribution function and a slope, and the conditions that fail, in their order.
PAIRS: dict[str, tuple[Slope, Slope, set[str]]] = {
    **{
        k: (ref.RefNoise(*SLOPES[v].noise).cdf, SLOPES[v].slope, set())
        for k, v in KEYS.items()
        if SLOPES[v].noise
    },
    "not even": (
        lambda a: np.clip((1 + a) / 2, 0, 1) ** 2,
        lambda a: (1 + a) * (np.abs(a) < 1),
        {"even"},
    ),
    "too high": (ref.RefNoise("Uniform").cdf, lambda a: 3.0 * (np.abs(a) < 1), {"2", "forward"}),
    "another law": (LOGISTIC.cdf, SLOPES["hardtanh"].slope, {"forward"}),
    "negative": (LOGISTIC.cdf, SLOPES["swish_sign"].slope, {">= 0", "forward"}),
}
AT = np.array([-3.1, -0.93, -0.41, -0.07, 0.03, 0.22, 0.61, 0.97, 2.3])


def failing(F: Slope, h: Slope) -> set[str]:
    """Of the conditions of the theorem, those that do not hold."""
    found = set()
    if (h(np.linspace(-4, 4, 4001)) < 0).any():
        found.add(">= 0")
    if np.abs(h(AT) - h(-AT)).max() > 1e-12:
        found.add("even")
    if abs(whole(h) - 2) > 1e-6:
        found.add("2")
    if max(abs(float(F(a)) - integral(h, -1e9, a) / 2) for a in AT) > 1e-6:
        found.add("forward")
    return found


def is_straight_through(F: Slope, h: Slope) -> bool:
    """The left side of the theorem: F symmetric, and h twice its derivative."""
    symmetric = np.abs(F(-AT) - 1 + F(AT)).max() < 1e-12
    density = np.array([difference(lambda a: float(F(np.array(a))), a) for a in AT])
    return bool(symmetric and np.abs(h(AT) - 2 * density).max() < 1e-6)


@pin(
    "thm-08-noise",
    r"""
    Let $h$ be integrable on bounded intervals, and let the forward pass draw $x$ with
    $P(x{=}1\mid a)=F(a)$ for a distribution function $F$. The pair is straight-through for a
    symmetric noise with a density, that is $F(-a)=1-F(a)$, and $F$ has a density $f$ with
    $h=2f$ almost everywhere, if and only if $h\ge0$ and $h(-a)=h(a)$ almost everywhere, $\int
    h=2$, and {eq-08-forward}
    """,
)
@pin(
    "eq-08-forward",
    r"""
    F(a)=\tfrac12\int_{-\infty}^{a}h(t)\,dt .
    """,
)
@pytest.mark.parametrize("name", PAIRS)
def test_thm_08_noise(name: str) -> None:
    F, h, missing = PAIRS[name]
    assert failing(F, h) == missing
    assert is_straight_through(F, h) == (not missing)


def test_the_not_even_pair_is_straight_through_for_its_noise() -> None:
    """Its mean is exact on a multilinear loss, as the page says."""
    F, h, _ = PAIRS["not even"]
    loss = ref.multilinear_loss(3, 4)
    a = np.array([-0.5, 0.2, 0.7])
    exact, st = gradient(F, loss, a), mean_estimate(F, h, loss, a)
    assert st == pytest.approx(exact, abs=1e-8)
    assert "not symmetric, nothing else changes" in prose(PATH)


@pin(
    "eq-08-factor",
    r"""
    r=\tfrac12\int h ,
    """,
)
@pytest.mark.parametrize(
    ("name", "r", "law"),
    [
        ("SuperSpike", 0.1, ("FastSigmoid", 0.1)),
        ("EDE, start", 10.0, ("Logistic", 5.0)),
        ("erf", 1.0, ("Gaussian", 1.0)),
    ],
)
def test_eq_08_factor(name: str, r: float, law: tuple[str, float]) -> None:
    h, noise = slope_of(name), ref.RefNoise(*law)
    assert whole(h) / 2 == pytest.approx(r, rel=1e-6)
    assert h(AT) / (2 * r) == pytest.approx(noise.pdf(AT), abs=1e-12)
    loss, a = ref.multilinear_loss(3, 4), np.array([-0.5, 0.2, 0.7])
    exact = gradient(noise.cdf, loss, a)
    assert mean_estimate(noise.cdf, h, loss, a) == pytest.approx(r * exact, abs=1e-6 * r)


# ---------------------------------------------------------------------- enumeration of a layer


def gradient(F: Slope, loss: ref.RefLoss, a: Array) -> Array:
    """The exact gradient in a, by central differences of the sum over states."""
    x = ref.states(len(a))

    def mean(b: Array) -> float:
        p = F(b)
        return float(np.prod(np.where(x > 0, p, 1 - p), 1) @ loss.value(x, 0))

    return ref.finite_difference(mean, a)


def mean_estimate(F: Slope, h: Slope, loss: ref.RefLoss, a: Array) -> Array:
    """The mean of h(a_i) dL/dx_i, slopes by differences of the loss."""
    x, p = ref.states(len(a)), F(a)
    law = np.prod(np.where(x > 0, p, 1 - p), 1)
    step, out = 1e-5, []
    for i in range(len(a)):
        e = step * np.eye(len(a))[i]
        out.append(law @ (loss.value(x + e, 0) - loss.value(x - e, 0)) / (2 * step))
    return h(a) * np.array(out)


@pin(
    "prop-08-mismatch",
    r"""
    Let the units be independent with the forward distribution $F$, differentiable at $a_i$ with
    $f(a_i)=F'(a_i)>0$. In the last binary layer the estimate with the slope $h$ has the mean of
    straight-through for $F$, times {eq-08-ratio} On losses multilinear in the states that is
    $r(a_i)$ times the exact gradient; where $h>0$ it has the right sign in each coordinate of
    $a$, and for one input it is a direction of descent in $a$ unless the gradient is zero.
    """,
)
@pin(
    "eq-08-ratio",
    r"""
    r(a_i)=\frac{h(a_i)}{2f(a_i)} .
    """,
)
@pytest.mark.parametrize("name", ["hardtanh", "SuperSpike", "identity", "arctan"])
def test_prop_08_mismatch(name: str) -> None:
    h, a = slope_of(name), np.array([-0.6, 0.3, 0.8])
    r = h(a) / (2 * LOGISTIC.pdf(a))
    for loss, exact_too in ((ref.smooth_loss(3, 1), False), (ref.multilinear_loss(3, 2), True)):
        mean = mean_estimate(LOGISTIC.cdf, h, loss, a)
        st = mean_estimate(LOGISTIC.cdf, lambda v: 2 * LOGISTIC.pdf(v), loss, a)
        assert mean == pytest.approx(r * st, abs=1e-12)
        exact = gradient(LOGISTIC.cdf, loss, a)
        assert (np.abs(mean - r * exact).max() < 1e-8) == exact_too
        if exact_too:
            assert mean @ exact > 0 and np.array_equal(np.sign(mean), np.sign(exact))


def test_logistic_sampling_with_the_hardtanh_slope() -> None:
    assert "the estimate is 1 where the exact slope of the mean is $2f(0)=\\tfrac12$" in prose(PATH)
    assert slope_of("hardtanh")(np.zeros(1))[0] == 1 and 2 * LOGISTIC.pdf(0.0) == 0.5


def test_the_pairs_of_public_code() -> None:
    """Each rule in our own words: its forward distribution, its slope, and the ratio printed."""
    words = prose(PATH)
    assert r"wrong by the factor $\frac1{1+a}$" in words and r"by $\frac1{F(a)F(-a)}\ge4$" in words
    assert "wrong by the factor $p$" in words
    for a in (-0.9, 0.0, 0.6):
        squared = difference(lambda v: 2 * ((1 + v) / 2) ** 2, a)  # signs: the mean is 2F - 1
        assert 1 / squared == pytest.approx(1 / (1 + a))
        bits = difference(lambda v: float(LOGISTIC.cdf(v)), a)
        assert 1 / bits == pytest.approx(1 / (LOGISTIC.cdf(a) * LOGISTIC.cdf(-a)))
        assert 1 / bits >= 4 - 1e-6
    assert "at $a=-0.9$ its gradient is ten times too large" in prose(PATH)
    assert pytest.approx(10) == 1 / (1 - 0.9)
    # a bit of probability p has the mean p, with slope 1; the rule has p


def test_over_several_inputs_even_the_sign_of_a_weight_goes_wrong() -> None:
    """One unit a = 0.8 v, losses x at v = 1 and -x at v = 2, by differences in the weight."""
    exact = sum(
        sign * difference(lambda w, v=v: 2 * float(LOGISTIC.cdf(w * v)) - 1, 0.8)
        for v, sign in ((1.0, 1.0), (2.0, -1.0))
    )
    mean = sum(sign * v * (abs(0.8 * v) < 1) for v, sign in ((1.0, 1.0), (2.0, -1.0)))
    assert f"the summed mean loss in the weight is ${exact:.2f}$" in prose(PATH)
    assert exact < 0 < mean == 1 and "at the second input, has $1$" in prose(PATH)


@pytest.mark.slow
def test_what_the_words_say_of_the_cosines() -> None:
    cosines = define(PATH, "logistic", "PAIRED", "cosines")["cosines"]
    found = np.mean([cosines(seed) for seed in range(20)], axis=0)
    own, *others = found
    lost = np.array([own - row for row in others])
    _, head, *rows = printed(containing(PATH, "found = np.array([cosines")).splitlines()
    shown = [[float(v) for v in re.findall(r"(\S+) ±", row)] for row in rows[:6]]
    assert np.array(shown) == pytest.approx(found, abs=6e-4)
    columns = [m.start() for m in re.finditer("layer", head)]
    assert all([m.start() for m in re.finditer(r"\d\.\d+ ±", r)] == columns for r in rows[:6])
    assert round(lost[:2].min(), 2) == 0.03 and round(lost[:2].max(), 2) == 0.09
    assert prose(PATH).count("three to nine hundredths") == 2 and lost[2:].min() > 0.1


def test_what_the_answer_under_the_slopes_says() -> None:
    answer = " ".join(under(containing(PATH, "def proxy("))["answer"].split())
    assert ref.RefNoise("FastSigmoid").cdf(-4.0) == pytest.approx(0.1)
    assert "a tenth of the probability then lies beyond each edge" in answer
    collected = define(PATH, "SHAPES", "collected", "chord", "chord_slope", "sech2", "swish",
                       "swish_slope")["collected"]  # fmt: skip
    for width in (0.1, 1.0, 10.0):
        up = width * collected("SwishSign", np.linspace(-20, 20, 4001))
        assert up[:2000].min() < -0.09 * width and up[-1] < up.max() - 0.09 * width
    assert "starts below 0 and falls at its end, at every width" in answer


# ------------------------------------------------------------------------------- the atlas


def test_the_atlas_has_the_slopes_of_the_figure() -> None:
    rows = list_table(prose(PATH), "tab-08-atlas")[1:]
    shapes = define(PATH, "chord", "chord_slope", "sech2", "swish", "swish_slope", "SHAPES")
    assert list(shapes["SHAPES"]) == [re.findall(r"\*\*(.+?)\*\*", row[0])[0] for row in rows]
    assert set(shapes["SHAPES"]) == set(NAMES) and len(rows) == 15
    for row in rows:
        name = re.findall(r"\*\*(.+?)\*\*", row[0])[0]
        h, m, total = shapes["SHAPES"][name]
        assert h(AT) == pytest.approx(slope_of(name)(AT), abs=1e-12)
        for a in (-0.8, 0.05, 2.0):
            assert m(np.array(a)) == pytest.approx(
                integral(slope_of(name), 0, a) if a > 0 else -integral(slope_of(name), a, 0),
                abs=1e-9,
            )
        if row[1] in (r"$\infty$", "none"):
            assert not np.isfinite(total)
            assert abs(integral(slope_of(name), 0, 2e4)) > 20
        else:
            assert whole(slope_of(name)) == pytest.approx(total, rel=1e-5)
            assert float(row[1]) == pytest.approx(total, abs=0.005)


LAWS = {
    "uniform noise on $[-1,1]$": ("Uniform", 1.0, 1.0),
    "triangular noise on $[-1,1]$": ("Triangular", 1.0, 1.0),
    r"logistic noise of scale $\tfrac12$": ("Logistic", 0.5, 1.0),
    "logistic noise": ("Logistic", 1.0, 1.0),
    "Gaussian noise": ("Gaussian", 1.0, 1.0),
    "Cauchy noise": ("Cauchy", 1.0, 1.0),
    "fast-sigmoid noise": ("FastSigmoid", 1.0, 1.0),
    r"0.1 times: fast-sigmoid noise of scale $\tfrac1{10}$": ("FastSigmoid", 0.1, 0.1),
    "10 times: logistic noise of scale 5": ("Logistic", 5.0, 10.0),
    r"logistic noise of scale $\tfrac1{20}$": ("Logistic", 0.05, 1.0),
}


def test_what_each_slope_of_the_atlas_is() -> None:
    known = 0
    for row in list_table(prose(PATH), "tab-08-atlas")[1:]:
        name, h = re.findall(r"\*\*(.+?)\*\*", row[0])[0], None
        h = slope_of(name)
        if row[2] in LAWS:
            law, scale, r = LAWS[row[2]]
            assert h(AT) == pytest.approx(2 * r * ref.RefNoise(law, scale).pdf(AT), abs=1e-12)
            known += 1
        elif name == "ReSTE":
            assert "1.14 times" in row[2]
            assert f"{whole(h) / 2:.2f}" == "1.14" and h(np.array([1.51])) == 0
        else:
            assert "no noise" in row[2]
            a = np.linspace(-30, 30, 3001)
            assert (h(a) < 0).any() or integral(h, 0, 2e4) > 10
    assert known == 10
    words = prose(PATH)
    assert "Eight of fifteen slopes in use are such a noise" in words and len(EXACT) == 8


def test_the_doctor_reads_the_atlas() -> None:
    """What the cell prints, against the words of the table."""
    lines = printed(containing(PATH, "def behind_a_sign")).splitlines()[1:]
    rows = list_table(prose(PATH), "tab-08-atlas")[1:]
    for line, row in zip(lines, rows, strict=True):
        name, what = re.findall(r"\*\*(.+?)\*\*", row[0])[0], row[2]
        whole, factor, found = re.split(r" {2,}", line[len(name) :].strip())
        assert line.startswith(name)
        if what in LAWS:
            law, scale, r = LAWS[what]
            assert (found, float(factor)) == (f"{law}({scale:g})", r)
            assert float(whole) == 2 * r
        elif name == "ReSTE":
            assert (found, factor, whole) == ("a noise of its own", "1.14", row[1])
        else:
            why = {"identity": "infinite", "leaky tanh": "infinite", "SwishSign": "negative",
                   "step": "infinite, negative"}[name]  # fmt: skip
            assert found == f"no noise: {why}" and "no noise" in what


def test_the_identity_is_a_uniform_noise_in_a_range() -> None:
    for q in (0.5, 3.0):
        a = np.linspace(-q, q, 11)[1:-1]
        assert np.ones(9) == pytest.approx(q * 2 * ref.RefNoise("Uniform", q).pdf(a))


def test_reste_without_its_constant_is_a_cube_of_a_uniform() -> None:
    """P(1.5 (2u - 1)^3 <= a), and the slope |a|^(-2/3)/3 is r 2f of it."""
    r = 1.5 ** (1 / 3)
    u = (np.arange(200_000) + 0.5) / 200_000
    z = 1.5 * (2 * u - 1) ** 3
    for a in (-1.2, 0.05, 0.7):
        F = lambda v: (1 + np.cbrt(v / 1.5)) / 2  # noqa: E731
        assert (z <= a).mean() == pytest.approx(F(a), abs=1e-5)
        assert abs(a) ** (-2 / 3) / 3 == pytest.approx(2 * r * difference(F, a), rel=1e-6)


def test_swish_sign_in_numbers() -> None:
    h = SLOPES["swish_sign"].slope
    root = optimize.brentq(lambda z: h(np.array([z / 5]))[0], 2, 3)
    assert f"{root:.2f}" == "2.40" and f"{root / 5:.2f}" == "0.48"
    assert "negative where $|5a|>2.40$" in prose(PATH) and "from $a=0.48$ on" in prose(PATH)
    assert h(np.array([0.47]))[0] > 0 > h(np.array([0.49]))[0]
    top = max(integral(h, -1e9, a) / 2 for a in np.linspace(0.3, 0.7, 41))
    assert f"{top:.2f}" == "1.10" and "reaches 1.10" in prose(PATH)


def test_ede_has_twice_its_k() -> None:
    for t in (1e-3, 0.1, 1.0, 10.0):
        k = max(1 / t, 1.0)
        total = k * (np.tanh(t * 1e9) - np.tanh(-t * 1e9))
        assert total == pytest.approx(2 * k)
        if t >= 1:
            a = np.array([0.03, 0.4])
            law = ref.RefNoise("Logistic", 1 / (2 * t))
            assert k * t / np.cosh(t * a) ** 2 == pytest.approx(2 * law.pdf(a))
    assert r"so that $\int h=2k$" in prose(PATH) and "a thousand times too large" in prose(PATH)


def test_the_slopes_for_bits() -> None:
    """As read in snnTorch: for bits the integral has to be 1."""
    atan = lambda a: 1 / (1 + (np.pi * a) ** 2)  # noqa: E731
    assert atan(AT) == pytest.approx(ref.RefNoise("Cauchy", 1 / np.pi).pdf(AT))
    sigmoid = lambda a: 25 / (4 * np.cosh(25 * a / 2) ** 2)  # noqa: E731
    assert sigmoid(AT) == pytest.approx(ref.RefNoise("Logistic", 1 / 25).pdf(AT), abs=1e-12)
    assert whole(lambda a: 1 / (1 + 25 * np.abs(a)) ** 2) == pytest.approx(0.08, rel=1e-5)
    assert "`fast_sigmoid` with slope 25, whose integral is 0.08" in prose(PATH)


def test_the_cell_of_pairs() -> None:
    """Two bits by hand: x1 x2 + 2 x1 at (-0.4, 0.3)."""
    text = printed(containing(PATH, "box = SHAPES"))
    rows = {r[:18].strip(): [float(v) for v in r[18:].split()] for r in text.splitlines()[1:5]}
    F, Q = lambda a: (1 + a) / 2, lambda a: ((1 + a) / 2) ** 2  # noqa: E731
    mu = {"u": 0.3, "q": 2 * Q(0.3) - 1, "l": np.tanh(0.15)}
    want = {
        "all four, uniform": (2 * 0.5 * (2 + mu["u"]), 2 + mu["u"]),
        "not even": (2 * difference(Q, -0.4) * (2 + mu["q"]), 0.6 * (2 + mu["q"])),
        "integral 6": (2 * difference(F, -0.4) * (2 + mu["u"]), 3 * (2 + mu["u"])),
        "logistic forward": (2 * LOGISTIC.pdf(0.4) * (2 + mu["l"]), 2 + mu["l"]),
    }
    for name, (exact, mean) in want.items():
        assert rows[name][:2] == pytest.approx([exact, mean], abs=6e-5)
        assert rows[name][2] == pytest.approx(mean / exact, abs=6e-4)
    assert text.rstrip().endswith("1.100")


# -------------------------------------------------------------------------- depth and Adam


def backward(W: list[Array], a: list[Array], x: list[Array], top: Array, h: Slope) -> tuple:
    """Estimates in the pre-activations and in the weights, from the top down; numpy."""
    d, in_a, in_W = top, [], []
    for k in reversed(range(len(W))):
        d = d * h(a[k])
        in_a.append(d)
        in_W.append(np.outer(d, x[k]))
        d = W[k].T @ d
    return in_a[::-1], in_W[::-1]


@pin(
    "prop-08-depth",
    r"""
    In a layered network of $K$ binary layers let every unit have the slope $h=r\cdot2f$, with
    $f$ the density of its forward noise and $r$ a constant. On the same sample, the estimate of
    the derivative in $a_k$, and in the weights and biases of layer $k$, is that of
    straight-through times {eq-08-depth}
    """,
)
@pin(
    "eq-08-depth",
    r"""
    r^{\,K-k+1}.
    """,
)
@pytest.mark.parametrize(("name", "r", "law"), [
    ("SuperSpike", 0.1, ("FastSigmoid", 0.1)), ("EDE, start", 10.0, ("Logistic", 5.0)),
])  # fmt: skip
def test_prop_08_depth(name: str, r: float, law: tuple[str, float]) -> None:
    g, noise, K = np.random.default_rng(0), ref.RefNoise(*law), 4
    W, x, a = [g.normal(size=(3, 3)) for _ in range(K)], [g.choice([-1.0, 1.0], 3)], []
    for w in W:
        a.append(w @ x[-1])
        x.append(np.where(g.uniform(size=3) < noise.cdf(a[-1]), 1.0, -1.0))
    top = g.normal(size=3)
    ours = backward(W, a, x, top, slope_of(name))
    st = backward(W, a, x, top, lambda v: 2 * noise.pdf(v))
    for k in range(1, K + 1):
        for mine, right in zip(ours, st, strict=True):
            assert mine[k - 1] == pytest.approx(r ** (K - k + 1) * right[k - 1], rel=1e-9)


def test_the_library_compounds_the_same_factor() -> None:
    """On the same uniforms: SuperSpike against straight-through, weights and biases."""
    g = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(4, 4) for _ in range(3)]
    net = sbnlib.SBN(*layers, noise=sbnlib.FastSigmoid(0.1))
    v, u = torch.sign(torch.randn(6, 4, generator=g)), torch.rand(3, 6, 4, generator=g).unbind()
    found = []
    for rule in (sbnlib.straight_through, lambda a, x, n: sbnlib.proxy(a, x, name="superspike")):
        out = net(v, u=u, estimator=rule)
        found.append(torch.autograd.grad((out**2 * 0.3 + out).sum(), [*net.parameters()]))
    for k, (st, ours) in enumerate(zip(*found, strict=True)):
        assert ours.numpy() == pytest.approx(0.1 ** (3 - k // 2) * st.numpy(), rel=1e-9)


def adam(grads: Array, zeta: float, eps: float = 0.01) -> Array:
    """Kingma and Ba's steps for a sequence of gradients."""
    m = v = 0.0
    out = []
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        out.append(eps * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + zeta))
    return np.array(out)


@pin(
    "prop-08-adam",
    r"""
    Multiply the gradients of a parameter by the same $r>0$ at every step. The step of Adam,
    without weight decay, is then that of the unscaled gradients with $\zeta/r$ in the place of
    $\zeta$, {eq-08-adam} If $\zeta=0$ and no $s$ is zero, two trainings from the same start with
    the same draws, which differ by a constant positive factor for each parameter, take the same
    path.
    """,
)
@pin(
    "eq-08-adam",
    r"""
    \frac{\varepsilon\,r\,\bar g}{r\,s+\zeta}=\frac{\varepsilon\,\bar g}{s+\zeta/r}.
    """,
)
@pytest.mark.parametrize("r", [10.0, 0.1, 1e-6])
def test_prop_08_adam(r: float) -> None:
    grads = np.random.default_rng(0).normal(size=30)
    for zeta in (0.0, 1e-8, 0.3):
        scaled, same = adam(r * grads, zeta), adam(grads, zeta / r)
        assert scaled == pytest.approx(same, rel=1e-12)
        weight = torch.zeros(1, requires_grad=True)
        step = torch.optim.Adam([weight], lr=0.01, eps=zeta)
        for g in grads:
            weight.grad = torch.tensor([r * g])
            step.step()
        assert weight.item() == pytest.approx(-scaled.sum(), rel=1e-9)
    assert adam(grads * np.linspace(1, 10, 30), 0.0) != pytest.approx(adam(grads, 0.0), rel=1e-3)


def test_the_path_of_adam_is_the_same_with_zeta_zero_only() -> None:
    """Gradients that depend on where it is: two parameters, two factors."""

    def path(r: Array, zeta: float) -> Array:
        w, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
        g = np.random.default_rng(1)
        for t in range(1, 60):
            d = r * (np.sin(w[::-1]) + w + g.normal(size=2))
            m, v = 0.9 * m + 0.1 * d, 0.999 * v + 0.001 * d**2
            w = w - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + zeta)
        return w

    r, one = np.array([10.0, 1e-4]), np.ones(2)
    assert path(r, 0.0) == pytest.approx(path(one, 0.0), abs=1e-11)
    assert path(r, 1e-3) != pytest.approx(path(one, 1e-3), abs=1e-2)


@cache
def table(text: str) -> dict[str, list[float]]:
    """The rows of what a cell prints: words, then numbers."""
    found = {}
    for row in printed(containing(PATH, text)).splitlines():
        words = re.match(r"(.*?)((?:\s+-?\d[\d.e+-]*)+)$", row)
        if words:
            found[words[1].strip()] = [float(v) for v in words[2].split()]
    return found


def test_what_the_page_says_of_adam() -> None:
    text = printed(containing(PATH, "adam, sgd ="))
    rows = {r[:18].strip(): [float(v) for v in r[18:].split()] for r in text.splitlines()[2:]}
    one, ten, tenth = rows["SGD, step 0.1"]
    assert 7.5e4 < ten / one < 8.5e4 and tenth < 1e-5 * one
    assert len(set(rows["Adam, zeta = 0"])) == 1
    small = rows["Adam, zeta = 1e-8"]
    assert small[0] == small[1] and small[2] < 0.3 * small[0]
    assert rows["Adam, zeta = 1e-5"][2] < 1e-3
    share = small[2] / small[0]  # s / (s + 0.01) for a constant gradient s
    assert 0.002 < 0.01 * share / (1 - share) < 0.005  # "a few thousandths"
    words = prose(PATH)
    assert "eighty thousand times as far" in words and r"so that $\zeta/r^6=0.01$" in words
    assert pytest.approx(0.01) == 1e-8 / 0.1**6


def test_training_with_another_factor_is_the_same_path_to_rounding() -> None:
    space = run(PATH, containing(PATH, "def train(r, optimizer"))
    _, one = space["train"](1.0, torch.optim.Adam, steps=8, lr=0.01, eps=0.0)
    _, ten = space["train"](10.0, torch.optim.Adam, steps=8, lr=0.01, eps=0.0)
    assert ten.numpy() == pytest.approx(one.numpy(), abs=1e-10)


# ------------------------------------------------------------------- measured: cosines, snippet


def test_what_the_page_says_of_cosines() -> None:
    text = printed(containing(PATH, "found = np.array([cosines"))
    rows = {r[:15].strip(): [float(v) for v in re.findall(r"(-?\d\.\d+) ±", r)]
            for r in text.splitlines() if "±" in r}  # fmt: skip
    own = np.array(rows["tanh(a/2), own"])
    assert (own < 0.99).all() and (own > 0.9).all()
    for wide in ("identity", "EDE, start"):
        assert (own - rows[wide] >= 0.02).all() and (own - rows[wide] <= 0.09).all()
    for narrow in ("hardtanh", "SuperSpike", "SwishSign"):
        assert (own - rows[narrow] > 0.1).all()
    assert text.rstrip().endswith("layer 1: 3") and "In three of the twenty networks" in prose(PATH)


def test_one_network_of_the_cosines_by_enumeration() -> None:
    """The first network, all paths summed in numpy; the slope of the hardtanh and of SuperSpike."""
    g = torch.Generator().manual_seed(0)
    W = [torch.randn(4, 4, generator=g).numpy() for _ in range(3)]
    v, read = torch.sign(torch.randn(2, 4, generator=g)).numpy()
    x = ref.states(4)
    law = [np.prod(LOGISTIC.cdf(x * (W[0] @ v)), 1)]
    step = [np.prod(LOGISTIC.cdf(x[None] * (x @ w.T)[:, None]), 2) for w in W[1:]]
    loss = lambda s: np.log1p(np.exp(s))  # noqa: E731

    def value(first: Array) -> float:
        start = np.prod(LOGISTIC.cdf(x * (first.reshape(4, 4) @ v)), 1)
        return float(start @ step[0] @ step[1] @ loss(x @ read))

    exact = ref.finite_difference(value, W[0].ravel())
    found = run(PATH, containing(PATH, "def cosines"))["cosines"](0)
    for row, name in ((3, "hardtanh"), (4, "SuperSpike")):
        h = slope_of(name)
        top = read / (1 + np.exp(-(x @ read)))[:, None]  # dL/dx3
        at3 = (step[1][..., None] * h(x @ W[2].T)[:, None] * top[None]).sum(1) @ W[2]
        at2 = (step[0][..., None] * h(x @ W[1].T)[:, None] * at3[None]).sum(1) @ W[1]
        mean = np.outer(h(W[0] @ v) * (law[0] @ at2), v).ravel()
        size = np.linalg.norm(mean)
        cosine = exact @ mean / np.linalg.norm(exact) / size if size else 0
        assert found[row][0] == pytest.approx(cosine, abs=1e-7)


def test_the_snippet_clips_gradients() -> None:
    text = printed(containing(PATH, "def with_slope"))
    assert re.findall(r"clipped +(\d+) of (\d+)", text) == 2 * [("0", "60000")]
    assert re.findall(r"identity +(\w+)", text) == ["True", "True"]
    sizes = re.findall(r"gradient ([\d.]+); hardtanh of the input ([\d.]+)", text)
    assert all(6 < float(a) / float(b) < 7 for a, b in sizes)
    assert "It is six times the size" in prose(PATH)
    space = define(PATH, "ClipsTheGradient", "seen")
    a = torch.tensor([-3.0, 0.2, 0.5], requires_grad=True)
    (space["ClipsTheGradient"].apply(a) * torch.tensor([0.7, -0.3, 5.0])).sum().backward()
    assert a.grad.tolist() == [0.7, -0.3, 1.0]  # whatever a is


def test_three_lines_that_go_wrong() -> None:
    text = printed(containing(PATH, "a32 = (torch.arange"))
    a = (np.arange(-500, 501) / 100).astype(np.float32)  # divisions are rounded alike everywhere
    bad, good = (int(v) for v in re.findall(r"(\d+) (?:of 1001 as|by the)", text))
    limit = np.log(np.finfo(np.float32).max / 25)
    assert good == 0 and abs(bad - (-25 * a > limit).sum()) <= 1
    assert f"{-limit / 25:.2f}" == "-3.42"
    assert re.findall(r"sign: ([\d.-]+)", text) == ["0.0"]
    rounded, exact = (int(v) for v in re.findall(r"±1: (\d+)", text))
    m = a / (1 + np.abs(a))
    assert (
        exact == 0 and rounded == (np.abs(np.where(a >= 0, 1, -1).astype("f") + m - m) != 1).sum()
    )


# ------------------------------------------------------------------------ the deterministic pass


def field(h: Slope, slopes: Callable[[Array], Array], a: Array) -> Array:
    return h(a) * slopes(np.where(a >= 0, 1.0, -1.0))


def numeric_slopes(value: Callable[[Array], float]) -> Callable[[Array], Array]:
    return lambda x: ref.finite_difference(value, x)


def expected(value: Callable[[Array], float], noise: ref.RefNoise, a: Array) -> float:
    x = ref.states(len(a))
    return float(np.prod(noise.cdf(x * a), 1) @ np.array([value(s) for s in x]))


LINEAR = {
    "linear": (lambda x: 0.7 * x[0] - 0.4 * x[1] + 2, True),
    "linear, its extension bent": (
        lambda x: 0.7 * x[0] - 0.4 * x[1] + (x[0] ** 2 - 1) ** 2 * x[1],
        True,
    ),
    "linear on states, other slopes": (lambda x: 0.7 * x[0] ** 3 - 0.4 * x[1], False),
    "a square": (lambda x: 0.7 * x[0] + x[0] ** 2, False),
    "a product": (lambda x: x[0] * x[1], False),
}


@pin(
    "eq-08-field",
    r"""
    q_i(a)=h(a_i)\;\partial_iL(\operatorname{sign}a).
    """,
)
@pin(
    "prop-08-exact",
    r"""
    Let $f$ be continuous and symmetric, $f(0)>0$, and $h=2f$. The field {eq}`eq-08-field` is
    the exact gradient of $\mathbb{E}L$, over units with the noise of density $f$, at every $a$
    with all $a_i\ne0$, if and only if there are numbers $c_i$ with
    $\partial_iL(x)=\tfrac12\Delta_iL(x)=c_i$ at every state $x$: $L$ is linear on the states,
    up to a constant, and has the slopes of that linear function there.
    """,
)
@pytest.mark.parametrize("name", LINEAR)
def test_prop_08_exact(name: str) -> None:
    value, exact = LINEAR[name]
    off = 0.0
    for noise in (LOGISTIC, ref.RefNoise("Gaussian", 0.7)):
        for a in itertools.product((-0.9, 0.4), (-0.2, 1.1)):
            at = np.array(a)
            q = field(lambda v: 2 * noise.pdf(v), numeric_slopes(value), at)  # noqa: B023
            g = ref.finite_difference(lambda b: expected(value, noise, b), at)  # noqa: B023
            off = max(off, np.abs(q - g).max())
    assert (off < 1e-7) == exact


def walk(h: Slope, slopes: Callable, corners: list[Array]) -> float:
    """Work of the field along a closed polygon, by quadrature between the walls."""
    total = 0.0
    x, w = np.polynomial.legendre.leggauss(30)
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        way = end - start
        walls = [-s / d for s, d in zip(start, way, strict=True) if d != 0 and 0 < -s / d < 1]
        for lo, hi in itertools.pairwise([0.0, *sorted(walls), 1.0]):
            t = lo + (hi - lo) * (x + 1) / 2
            q = np.array([field(h, slopes, start + s * way) for s in t])
            total += (hi - lo) / 2 * float(w @ (q @ way))
    return total


MIXED = {
    "product": lambda x: 1.3 * x[0] * x[1] - 0.4 * x[2],
    "wild": lambda x: np.sin(x[0] + 2 * x[1]) + x[0] ** 2 * x[1] * x[2] / 3,
    "circle": lambda x: x[0] * x[1] * (x[0] ** 2 - x[1] ** 2) / 2 + 0.1 * x[2],
}
ALONE = {
    "linear": lambda x: x[0] - 2 * x[1],
    "sum of curved ones": lambda x: np.exp(x[0]) + x[1] ** 2 + np.sin(3 * x[2]),
    "hidden mixed terms": lambda x: x[1] ** 3 + (x[0] ** 2 - 1) ** 2 * (x[1] + x[2]),
}


def flips(slopes: Callable, i: int, j: int, x: Array) -> float:
    """The flip difference in x_j of the slope in x_i."""
    up, down = x.copy(), x.copy()
    up[j], down[j] = 1.0, -1.0
    return float(slopes(up)[i] - slopes(down)[i])


@pin(
    "thm-08-circulation",
    r"""
    Let $h\ge0$ be integrable on bounded intervals, $m(a)=\int_0^ah(t)\,dt$, let $L$ be
    differentiable and $i\ne j$. In the plane of $a_j$ (to the right) and $a_i$ (upwards), the
    other pre-activations fixed, take a rectangle with one vertical side at a negative $a_j$ and
    the other at a positive one, and with the heights $a_i=d$ and $a_i=e$ where $d<e$ have the
    same sign and are not zero. The work of the field {eq}`eq-08-field` once round it,
    counter-clockwise, is {eq-08-circulation} where $x$ is a state of the rectangle. If $h>0$ on
    an interval around zero, the work round every closed polygon is zero if and only if
    $\Delta_j\partial_iL(x)=0$ for all $i\ne j$ and all states $x$.
    """,
)
@pin(
    "eq-08-circulation",
    r"""
    \Delta_j\partial_iL(x)\,\bigl[m(e)-m(d)\bigr],
    """,
)
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize(("i", "j"), [(0, 1), (1, 0)])
def test_thm_08_circulation(name: str, i: int, j: int) -> None:
    slopes, third = numeric_slopes(MIXED[name]), 0.6
    for h, m in ((SLOPES["half_tanh"].slope, lambda a: np.tanh(a / 2)), (np.exp, np.expm1)):
        for d, e in ((0.3, 1.7), (-1.2, -0.1)):
            corners = []
            for across, up in ((-0.5, d), (0.8, d), (0.8, e), (-0.5, e)):
                at = np.full(3, third)
                at[j], at[i] = across, up
                corners.append(at)
            x = np.sign(corners[0])
            right = flips(slopes, i, j, x) * (m(e) - m(d))
            assert walk(h, slopes, corners) == pytest.approx(right, abs=1e-8)
            assert abs(right) > 1e-3


@pytest.mark.parametrize("name", [*ALONE, *MIXED])
def test_a_gradient_exactly_where_all_mixed_terms_vanish(name: str) -> None:
    slopes = numeric_slopes((ALONE | MIXED)[name])
    terms = [
        abs(flips(slopes, i, j, x))
        for x in ref.states(3) for i in range(3) for j in range(3) if i != j
    ]  # fmt: skip
    g = np.random.default_rng(3)
    work = [
        abs(walk(SLOPES["half_tanh"].slope, slopes, list(g.normal(size=(5, 3))))) for _ in range(6)
    ]
    assert (max(terms) < 1e-8) == (name in ALONE)
    assert (max(work) < 1e-8) == (name in ALONE)


def test_the_mean_of_the_sampled_estimate_has_no_work_for_the_product() -> None:
    mean = lambda a: np.array(  # noqa: E731
        [2 * LOGISTIC.pdf(a[0]) * np.tanh(a[1] / 2), 2 * LOGISTIC.pdf(a[1]) * np.tanh(a[0] / 2)]
    )
    x, w = np.polynomial.legendre.leggauss(30)
    corners = [np.array(c) for c in ((-0.7, 0.4), (0.9, 0.4), (0.9, 1.6), (-0.7, 1.6))]
    total = 0.0
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        q = np.array([mean(start + (s + 1) / 2 * (end - start)) for s in x])
        total += float(w @ (q @ (end - start))) / 2
    assert total == pytest.approx(0, abs=1e-12)


def test_the_cell_of_the_work() -> None:
    numbers = re.findall(r"-?\d\.\d{6}", printed(containing(PATH, "def wild_slopes")))
    value = lambda x: np.sin(x[0] + 2 * x[1]) + x[0] ** 2 * x[1] / 3  # noqa: E731
    corners = [np.array(c) for c in ((-0.7, 0.4), (0.9, 0.4), (0.9, 1.6), (-0.7, 1.6))]
    found = walk(SLOPES["half_tanh"].slope, numeric_slopes(value), corners)
    assert [float(v) for v in numbers] == pytest.approx([found, found], abs=2e-6)


# ------------------------------------------------------------------------------ chattering


def chatter(b: float, eps: float, h: Callable[[float], float], T: int, a: float) -> tuple:
    xs, path = [], [a]
    for _ in range(T):
        x = 1.0 if a >= 0 else -1.0
        a -= eps * h(a) * (x + b)
        xs.append(x)
        path.append(a)
    return np.array(xs), np.array(path)


CHATTER = {
    "constant": (lambda a: 1.0, 1.0, 0.0),
    "logistic": (lambda a: 0.5 / np.cosh(a / 2) ** 2, 0.5, 0.2),
    "tilted": (lambda a: 1 + 8 * a, 1.45, 8.0),
}


@pin(
    "prop-08-chatter",
    r"""
    Let $L=\tfrac12x^2+bx$ with $|b|<1$, and let $a_{t+1}=a_t-\varepsilon\,h(a_t)(x_t+b)$ with
    $x_t=\operatorname{sign}a_t$. Suppose that $0<h(a)\le l$ and $|h(a)-h(0)|\le C|a|$ where
    $|a|\le2\varepsilon l$. From a start with $|a_0|\le2\varepsilon l$, the pre-activation keeps
    $|a_t|\le2\varepsilon l$ for ever, and after $T$ steps {eq-08-chatter}
    """,
)
@pin(
    "eq-08-chatter",
    r"""
    \Bigl|\frac1T\sum_{t<T}x_t+b\Bigr|\le\frac{4l}{h(0)}\Bigl(\frac1T+\varepsilon C\Bigr).
    """,
)
@pytest.mark.parametrize("name", CHATTER)
@pytest.mark.parametrize("b", [0.4, -0.2, 0.9])
def test_prop_08_chatter(name: str, b: float) -> None:
    h, bound, C = CHATTER[name]
    eps, T = 0.015, 5000
    grid = np.linspace(-2 * eps * bound, 2 * eps * bound, 501)
    values = np.array([h(a) for a in grid])
    assert (values > 0).all() and (values <= bound).all()
    assert (np.abs(values - h(0)) <= C * np.abs(grid) + 1e-15).all()
    for start in (0.0, 2 * eps * bound, -2 * eps * bound):
        xs, path = chatter(b, eps, h, T, start)
        assert np.abs(path).max() <= 2 * eps * bound
        for t in (10, 300, T):
            assert abs(xs[:t].mean() + b) <= 4 * bound / h(0) * (1 / t + eps * C)


def test_prop_08_chatter_needs_what_it_says() -> None:
    """Without the term of C a tilted slope breaks the bound, and so does a half of the interval."""
    h, bound, _ = CHATTER["tilted"]
    xs, _ = chatter(0.4, 0.015, h, 200_000, 0.0)
    assert abs(xs.mean() + 0.4) > 10 * 4 * bound / h(0) / 200_000
    _, path = chatter(0.9, 0.015, CHATTER["constant"][0], 5000, 0.0)
    assert np.abs(path).max() > 1.5 * 0.015


def test_the_table_of_chattering() -> None:
    text = printed(containing(PATH, "def logistic_slope"))
    rows = [r.split() for r in text.splitlines()[2:-1]]
    assert len(rows) == 6
    for b, name, mean, changes, limit in rows:
        h = CHATTER["logistic"][0] if name == "tanh(a/2)" else (lambda a: float(abs(a) < 1))
        xs, _ = chatter(float(b), 0.02, h, 6000, 0.3)
        xs = xs[2000:]
        assert (
            float(mean) == pytest.approx(xs.mean(), abs=6e-4) == pytest.approx(-float(b), abs=2e-3)
        )
        assert int(changes) == pytest.approx((np.diff(xs) != 0).sum(), abs=2)
        assert int(limit) == round((1 - abs(float(b))) * 4000)
        assert abs(int(changes) - int(limit)) <= 2
    last = float(text.rstrip().split()[-1])
    assert last == pytest.approx(-0.4, abs=0.02)
    assert "three steps out of ten" in prose(PATH)


def test_visits_of_the_upper_state_are_single_steps() -> None:
    for b in (0.0, 0.3, 0.7):
        xs, _ = chatter(b, 0.01, lambda a: 1.0, 3000, 0.005)
        assert not ((xs[1:] > 0) & (xs[:-1] > 0))[5:].any()
        assert (xs > 0).mean() == pytest.approx((1 - b) / 2, abs=2e-3)


def test_sampled_straight_through_rests_at_minus_b() -> None:
    mean = lambda mu, b: mu + b  # noqa: E731  # of 2f (x + b), up to 2f
    assert mean(-0.4, 0.4) == 0 and mean(-0.3, 0.4) > 0 > mean(-0.5, 0.4)


# ------------------------------------------------------------------------------ figures


@pytest.mark.parametrize(
    ("name", "width"), [("SuperSpike", 10.0), ("EDE, start", 0.2), ("leaky tanh", 1.0)]
)
def test_fig_proxy(name: str, width: float) -> None:
    top, bottom = curves(PATH, "proxy", shape=name, width=width)
    h = slope_of(name)
    a, drawn = top[0]
    assert drawn == pytest.approx(h(a / width), abs=1e-12)
    a, up = bottom[2]
    start = -4.0 / width if name == "leaky tanh" else -1e9
    for k in (3, 25, 40, len(a) - 4):
        assert up[k] == pytest.approx(width * integral(h, start, a[k] / width) / 2, abs=1e-5)


def test_fig_atlas() -> None:
    """fig-08-atlas: the curve of each picture, at three points."""
    axes = still(PATH, "fig-08-atlas")
    titles = [ax.get_title(loc="left") for ax in axes]
    assert [re.sub(r", [\d.]+ ×", "", t) for t in titles] == list(
        define(PATH, "chord", "chord_slope", "sech2", "swish", "swish_slope", "SHAPES")["SHAPES"]
    )
    assert [t for t in titles if "×" in t] == [
        "SuperSpike, 0.1 ×", "EDE, start, 10 ×", "ReSTE, 1.1 ×"
    ]  # fmt: skip
    styles = {}
    for ax, title in zip(axes, titles, strict=True):
        name = re.sub(r", [\d.]+ ×", "", title)
        h, span = slope_of(name), ax.get_xlim()[1]
        a, law = lines(ax)[0]
        styles.setdefault(ax.lines[0].get_linestyle(), set()).add(name)
        off = whole(h) / 2 if "×" in title else 1.0
        start = -1e9 if name in KEYS else -span
        for k in (5, len(a) // 2, len(a) - 9):
            assert law[k] == pytest.approx(integral(h, start, a[k]) / 2 / off, abs=2e-5)
    assert styles["-"] == EXACT
    assert styles[":"] == {"identity", "SwishSign", "leaky tanh", "step"}


def test_fig_depth() -> None:
    """fig-08-depth shows the printed ratios; two of its lines are powers of ten."""
    (axis,) = still(PATH, "fig-08-depth")
    rows = table("def against_its_noise")
    for (name, row), drawn in zip(rows.items(), lines(axis), strict=False):
        assert drawn[1] == pytest.approx(row, rel=6e-3), name
    assert rows["EDE, start"] == pytest.approx(10.0 ** np.arange(1, 7))
    assert rows["SuperSpike"] == pytest.approx(10.0 ** -np.arange(1, 7))
    growth = np.array(rows["identity"]) ** (1 / np.arange(1, 7))
    assert (growth > 2.8).all() and (growth < 3.1).all()  # "about three a layer"
    assert rows["hardtanh"][0] < 2


@pytest.mark.parametrize(("left", "top"), [(0.25, 1.75), (-0.75, 3.0), (-1.25, 0.75)])
def test_fig_loop(left: float, top: float) -> None:
    _, work = curves(PATH, "loop", left=left, top=top)
    right, h = left + 1.5, SLOPES["half_tanh"].slope
    slopes = lambda x: x[::-1]  # noqa: E731  # of x1 x2
    corners = [np.array(c) for c in ((left, 0.3), (right, 0.3), (right, top), (left, top))]
    over = left < 0 < right
    whole_round = 2 * (np.tanh(top / 2) - np.tanh(0.15)) if over else 0.0
    assert walk(h, slopes, corners) == pytest.approx(whole_round, abs=1e-9)
    assert work[1][1, -1] == pytest.approx(whole_round, abs=1e-9)
    assert work[2][1, -1] == pytest.approx(0, abs=1e-12)
    up = np.tanh(right / 2) - np.tanh(left / 2)  # after the lower side
    assert work[1][1, 12] == pytest.approx(up)
    assert work[2][1, 12] == pytest.approx(up * np.tanh(0.15))
    rise = np.sign(right) * (np.tanh(top / 2) - np.tanh(0.15))
    assert work[1][1, 24] == pytest.approx(up + rise)
    assert work[1][0, [12, 24, 36, 48]] == pytest.approx([0.25, 0.5, 0.75, 1])  # a corner once


def test_fig_chatter() -> None:
    """fig-08-chatter: the deterministic path again, the exact one, and the running means."""
    top, bottom = still(PATH, "fig-08-chatter")
    xs, path = chatter(0.4, 0.02, lambda a: float(abs(a) < 1), 600, 0.8)
    assert lines(top)[0][1] == pytest.approx(path[:600], abs=1e-12)
    assert lines(bottom)[0][1] == pytest.approx(np.cumsum(xs) / np.arange(1, 601), abs=1e-12)
    assert lines(top)[2][1] == pytest.approx(np.maximum(0.8 - 0.008 * np.arange(600), -1))
    sampled = lines(top)[1][1]
    steps = np.diff(sampled) / -0.02  # x + b
    assert set(np.round(steps, 9)) == {1.4, -0.6}
    states = np.round(steps - 0.4)
    running = lines(bottom)[1][1]
    assert running[:599] == pytest.approx(np.cumsum(states) / np.arange(1, 600), abs=1e-12)
    assert sampled[200:].mean() == pytest.approx(-0.4, abs=0.1)
    assert running[-1] == pytest.approx(-0.4, abs=0.15)


# ------------------------------------------------------------------------------ exercises


def quartile_law(h: Callable) -> torch.Tensor:
    """r and q by scipy."""
    value = lambda a: h(torch.tensor([a])).item()  # noqa: E731
    reach = lambda q: integrate.quad(value, 0, q, points=[0.3, 1, 2, 3], limit=300)[0]  # noqa: E731
    r = sum(integrate.quad(value, lo, hi, limit=300)[0] for lo, hi in
            ((0, 1), (1, 2), (2, 3), (3, 8), (8, 40)))  # fmt: skip
    q = optimize.brentq(lambda a: reach(a) - r / 2, 1e-6, 8)
    return torch.tensor([r, q])


@pytest.fixture(scope="module")
def checkers() -> list:
    with as_in_the_book():
        return [checker(PATH, name) for name in ("check", "check_hidden")]


def test_the_checker_accepts_another_solution(checkers: list, capsys: object) -> None:
    assert checkers[0](quartile_law) is True
    assert checkers[1]("(b)") is True and checkers[1]("ab") is False


@pytest.mark.parametrize(("wrong", "says"), [
    (lambda h: quartile_law(h) * torch.tensor([2.0, 1.0]), "half the integral"),
    (lambda h: quartile_law(h) ** torch.tensor([-1.0, 1.0]), "multiplied by"),
    (lambda h: quartile_law(h) * 0, "not yet"),
])  # fmt: skip
def test_the_checker_names_what_is_wrong(
    checkers: list, wrong: Callable, says: str, capsys: pytest.CaptureFixture
) -> None:
    assert checkers[0](wrong) is False
    assert says in capsys.readouterr().out


def test_the_leak() -> None:
    h, words = OTHERS["leaky tanh"], prose(PATH)
    for q in (1.0, 30.0):
        assert integral(h, -q, q) == pytest.approx(2 * np.tanh(q) + 0.002 * q, abs=1e-8)
    assert r"$2\tanh q+0.002\,q$" in words and "at $q=1000$" in words
    assert pytest.approx(np.tanh(1000.0)) == 0.001 * 1000
    a = np.linspace(-0.9, 0.9, 7)
    r = np.tanh(1.0) + 0.001
    parts = ref.RefNoise("Logistic", 0.5).pdf(a) + 0.001 * ref.RefNoise("Uniform", 1.0).pdf(a)
    assert h(a) / (2 * r) == pytest.approx(parts / r)


def test_the_leak_mistakes() -> None:
    """The multiple is half of the integral over [-q, q]."""
    check, h = checker(PATH, "check_leak"), OTHERS["leaky tanh"]
    for q in (0.7, 25.0):
        value = eval(check.value, {"tanh": np.tanh, "q": q})
        assert integral(h, -q, q) == pytest.approx(2 * value, abs=1e-8)
    assert check("(exp(q) - exp(-q))/(exp(q) + exp(-q)) + q/1000")
    says_to(
        check,
        {
            "2*tanh(q) + 0.002*q": "2 r",
            "tanh(q)": "the leak has",
            "tanh(q) + q/2000": "both sides",
            "1.001 - tanh(q)*tanh(q)": "at q",
        },
    )


@pytest.mark.parametrize("change", "abcde")
def test_what_adam_hides(change: str) -> None:
    """A net of three layers in numpy, trained with and without the change."""

    def train(changed: bool) -> list[Array]:
        g = np.random.default_rng(0)
        W = [g.normal(size=(3, 3)) for _ in range(3)]
        v = g.choice([-1.0, 1.0], (8, 3))
        m, s = [np.zeros((3, 3)) for _ in W], [np.zeros((3, 3)) for _ in W]
        for t in range(1, 16):
            x, a = [v], []
            for w in W:
                a.append(x[-1] @ w.T)
                x.append(np.where(g.uniform(size=(8, 3)) < LOGISTIC.cdf(a[-1]), 1.0, -1.0))
            d = 1 / (1 + np.exp(-x[-1].sum(1)))[:, None] * np.ones(3) / 8
            for k in (2, 1, 0):
                h = 2 * LOGISTIC.pdf(a[k])
                if changed and change == "c":
                    h = np.where(np.abs(a[k]) < 1, 1.0, 1e-9)
                if changed and k == 1:
                    h = h * {"b": 10, "e": 10, "d": 10 - 9 * t / 15}.get(change, 1)
                    h = h * np.array([10, 1, 1]) if change == "a" else h
                d = d * h
                grad = d.T @ x[k] + (0.01 * W[k] if change == "e" else 0)
                m[k], s[k] = 0.9 * m[k] + 0.1 * grad, 0.999 * s[k] + 0.001 * grad**2
                step = m[k] / (1 - 0.9**t) / np.sqrt(s[k] / (1 - 0.999**t))
                d = d @ W[k]
                W[k] = W[k] - 0.01 * step
        return W

    same = all(np.allclose(p, q, atol=1e-9) for p, q in zip(train(False), train(True), strict=True))
    assert same == (change == "b")


def test_the_loss_that_goes_round() -> None:
    value = lambda x: x[0] * x[1] * (x[0] ** 2 - x[1] ** 2) / 2  # noqa: E731
    slopes = numeric_slopes(value)
    for x in ref.states(2):
        assert value(x) == 0 and slopes(x) == pytest.approx([x[1], -x[0]], abs=1e-8)
    assert flips(slopes, 1, 0, np.ones(2)) == pytest.approx(-2)
    at, angle, sizes = np.array([0.5, 0.13]), [], []
    for _ in range(2000):
        x = np.where(at >= 0, 1.0, -1.0)
        at = at - 0.01 * np.array([x[1], -x[0]])
        angle.append(np.arctan2(at[1], at[0]))
        sizes.append(np.abs(at).sum())
    turns = np.unwrap(angle)
    assert (np.diff(turns) > 0).all()
    text = printed(containing(PATH, "quadrants.append"))
    crossed, rounds = (int(v) for v in re.findall(r"(\d+) (?:walls|rounds)", text))
    assert rounds == crossed // 4 == int((turns[-1] - turns[0]) / (2 * np.pi))
    assert [float(v) for v in re.findall(r"\d\.\d\d", text)] == pytest.approx(
        [sizes[0], sizes[-1]], abs=0.006
    )
    grown = (sizes[-1] - sizes[0]) / 0.01 / crossed
    assert grown == pytest.approx(1, abs=0.1)  # a step a wall, four a round
    # and the mean of the sampled estimate turns as well, by the condition of chapter 6
    assert flips(slopes, 1, 0, np.ones(2)) != pytest.approx(flips(slopes, 0, 1, np.ones(2)))
