"""Chapter 18, stochastic autoencoders: both sides of every formula, the notebook's own code, and
every number of its tables and sentences, computed from the four files and the stored outputs.

Expected values are sums over all codes, finite differences and numpy; sbnlib appears only where a
function of sbnlib, or one of the notebook, is what is tested.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
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
    drawing,
    figures,
    lean,
    lines,
    printed,
    run,
    still,
    tagged,
    under,
)
from pins import pin
from scipy import optimize, special, stats

from sbnlib.experiments import measurement
from sbnlib.noise import Gaussian, Logistic

Array = np.ndarray
Row = dict[str, Any]
PATH = chapter(18)
says = partial(chapters.says, PATH)

#: Of each noise, density and distribution by scipy, and the library's own.
LAWS: dict[str, tuple[Any, Any]] = {
    "logistic": (stats.logistic, Logistic()),
    "normal": (stats.norm, Gaussian()),
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


@cache
def rows(file: str, part: str) -> list[Row]:
    return [r for r in measurement.stored(f"autoencoders-{file}")["rows"] if r["part"] == part]


def numbers(text: str) -> list[float]:
    return [float(v) for v in re.findall(r"[-+]?\d*\.\d+|[-+]?\b\d+\b", text)]


def lines_of(cell: Any) -> list[str]:
    return [line for line in printed(cell).splitlines() if line.strip()]


def short(value: float, digits: int = 2) -> str:
    """As the prose has it: .52"""
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def states(n: int) -> Array:
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n)))


def chances(law: Any, a: Array) -> Array:
    """The probability of each code, (2^n,)."""
    return law.cdf(states(len(a)) * a).prod(1)


def rate(law: Any, a: Array) -> Array:
    p = law.cdf(a)
    return math.log(2) + special.xlogy(p, p) + special.xlogy(1 - p, 1 - p)


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng([18, seed])


def slopes(function: Callable[[Array], float], a: Array, step: float = 1e-5) -> Array:
    """By central differences."""
    return np.array([
        (function(a + step * e) - function(a - step * e)) / (2 * step) for e in np.eye(len(a))
    ])  # fmt: skip


# --------------------------------------------------------------------------------- the bound


@pin(
    "prop-18-bound",
    r"""
    Let $L(x)=-\ln p(y\mid x)$, let the code have the law $P(x)=\prod_iF(x_ia_i)$, and let
    $\ell_i=\ln2-H(F(a_i))$ with the entropy $H$ of a coin. Then {eq-18-bound} and the difference of
    the two sides is the divergence of $P$ from the law of the code given the picture, {eq-18-gap}
    """,
)
@pin("eq-18-bound", r"-\ln p(y)\ \le\ \mathbb E\,L(x)+\sum_i\ell_i ,")
@pin(
    "eq-18-gap",
    r"\sum_xP(x)\ln\frac{P(x)}{P(x\mid y)},\qquad P(x\mid y)=\frac{2^{-n}e^{-L(x)}}{p(y)} .",
)
@pytest.mark.parametrize("name", LAWS)
def test_eq_18_bound_and_gap(name: str) -> None:
    """Of a picture of seven pixels and codes of four bits, its probability pixel by pixel."""
    (law, _), G = LAWS[name], random(1)
    x = states(4)
    for scale in (0.3, 1, 3):
        W, b, a = G.normal(size=(7, 4)), G.normal(size=7), scale * G.normal(size=4)
        picture = G.integers(0, 2, 7)
        white = special.expit(x @ W.T + b)
        given = np.where(picture == 1, white, 1 - white).prod(1)  # p(y | x)
        own, whole = chances(law, a), given.mean()
        coin = [stats.bernoulli.entropy(p) for p in law.cdf(a)]
        bound = own @ -np.log(given) + sum(math.log(2) - h for h in coin)
        assert rate(law, a).sum() == pytest.approx(4 * math.log(2) - sum(coin))
        posterior = given / given.sum()
        assert posterior == pytest.approx(2**-4 * given / whole)
        gap = stats.entropy(own, posterior)
        assert gap > 1e-3
        assert bound == pytest.approx(-math.log(whole) + gap)


def test_the_rate_is_between_nothing_and_ln_2() -> None:
    says(r"$\ell_i$ is how many nats, at most $\ln2$, the code knows")
    for law, own in LAWS.values():
        a = np.linspace(-30, 30, 121)
        found = rate(law, a)
        assert found.min() == pytest.approx(0, abs=1e-12) == found[60]
        assert found[[0, -1]] == pytest.approx(math.log(2))
        closed = chapters.define(PATH)["kl_bits"](torch.from_numpy(a)[:, None], own)
        assert closed.numpy() == pytest.approx(found, abs=1e-9)


@cache
def trained() -> dict[str, tuple[Array, Array, Array, Array]]:
    """The three networks of the notebook: weights and biases of encoder and decoder."""
    cell = containing(PATH, "NETS = {name: trained(")
    space: dict[str, Any] = {"__name__": PATH.stem}
    for each in chapters.needed(PATH, cell):
        exec(compile(each.source, each.id, "exec"), space)
    return {
        name: tuple(p.detach().numpy() for net in nets for p in net.parameters())
        for name, nets in space["NETS"].items()
    }  # type: ignore[return-value]


@cache
def digits() -> tuple[Array, Array]:
    """Black and white: those to train with and those of the test."""
    data = chapters.define(PATH)["data"].load("digits")
    found = [(split.inputs.numpy() > 0).astype(float) for split in (data.train, data.test)]
    return found[0], found[1]


def misfit_of(net: tuple[Array, ...], pictures: Array) -> Array:
    """-ln p(y | x), (pictures, codes), pixel by pixel."""
    *_, W, b = net
    z = states(8) @ W.T + b
    return np.stack([-np.where(y == 1, special.log_expit(z), special.log_expit(-z)).sum(1)
                     for y in pictures])  # fmt: skip


def bounds(a: Array, misfit: Array) -> Array:
    """Of each picture."""
    own = np.stack([chances(stats.logistic, each) for each in a])
    return (own * misfit).sum(1) + rate(stats.logistic, a).sum(1)


def activations(net: tuple[Array, ...], pictures: Array) -> Array:
    V, c, *_ = net
    return (pictures - digits()[0].mean(0)) @ V.T + c


def undecided(a: Array) -> float:
    return float((1 - np.tanh(a / 2) ** 2).mean())


def judged(net: tuple[Array, ...]) -> tuple[float, float, float]:
    _, test = digits()
    a, misfit = activations(net, test), misfit_of(net, test)
    exact = 8 * math.log(2) - special.logsumexp(-misfit, axis=1)
    return bounds(a, misfit).mean(), exact.mean(), undecided(a)


def test_the_table_of_three_networks() -> None:
    head, *said = lines_of(containing(PATH, "NETS = {name: trained("))
    assert head.split()[:3] == ["bound", "-ln", "p(y)"]
    found = {name: judged(net) for name, net in trained().items()}
    assert list(found) == ["exact", "ZGR", "straight-through"]
    for line, (name, expected) in zip(said, found.items(), strict=True):
        assert line.startswith(name)
        assert [float(v) for v in line[18:].split()] == pytest.approx(expected, abs=0.0051)
    losses = [v[0] for v in found.values()]
    assert losses == sorted(losses)
    says("The order is as one would wish: the exact gradient, then ZGR, then straight-through.")
    exact, zgr, st = (v[2] for v in found.values())
    assert 0 < exact - zgr < 0.06
    says(f"The exact gradient leaves a variance of {short(exact)} in a unit, and so does ZGR, a "
         f"little less; straight-through leaves {short(st)}.")  # fmt: skip


def test_the_exact_gradient_is_that_of_the_bound() -> None:
    """Of the notebook's sum over all codes, against differences of a sum pixel by pixel."""
    space = chapters.define(PATH, "digits", "y", "bits", "CODES", "misfits", "chances", "law")
    net = trained()["straight-through"]
    picture = digits()[1][:1]
    misfit = misfit_of(net, picture)[0]
    decoder = torch.nn.Linear(8, 64)
    for p, v in zip(decoder.parameters(), net[2:], strict=True):
        p.data = torch.from_numpy(v)
    a = torch.linspace(-2, 3, 8).requires_grad_()
    values = (space["chances"](a[None]) * space["misfits"](decoder, torch.from_numpy(picture)))[0]
    assert sorted(space["misfits"](decoder, torch.from_numpy(picture))[0].tolist()) == (
        pytest.approx(sorted(misfit))
    )
    (found,) = torch.autograd.grad(values.sum(), a)

    def value(v: Array) -> float:
        return float(chances(stats.logistic, v) @ misfit)

    assert found.numpy() == pytest.approx(slopes(value, a.detach().numpy()), rel=1e-6)


# --------------------------------------------------------------- what straight-through minimizes


def expectation(factor: Callable[[Array, Array], Array], law: Any, a: Array, W: Array,
                r: Array) -> Array:  # fmt: skip
    """Of factor(x_i, a_i) times the derivative of half the squared error in x, over all codes."""
    x = states(len(a))
    gradient = -(r - x @ W.T) @ W
    return chances(law, a) @ (factor(x, a) * gradient)


def squared(W: Array, r: Array, x: Array) -> Array:
    """Half the squared error of r = y - b."""
    return ((r - x @ W.T) ** 2).sum(-1) / 2


@pin(
    "prop-18-real",
    r"""
    Let $L(x)=\tfrac12\|y-Wx-b\|^2$ and let $W_i$ be the column of unit $i$. For independent units
    {eq-18-spread} For fixed $W$ and $b$, the expectation of straight-through's estimate is the
    gradient, in $a$, of the first term alone. ZGR's is that of both.
    """,
)
@pin(
    "eq-18-spread",
    r"\mathbb E\,L=\tfrac12\|y-W\mu-b\|^2+\tfrac12\sum_i\|W_i\|^2(1-\mu_i^2) .",
)
@pytest.mark.parametrize("name", LAWS)
def test_eq_18_spread(name: str) -> None:
    (law, own), G = LAWS[name], random(2)
    W, r, a = G.normal(size=(6, 4)), G.normal(size=6), G.normal(size=4)

    def mean(v: Array) -> Array:
        return 2 * law.cdf(v) - 1

    def first(v: Array) -> float:
        return float(squared(W, r, mean(v)))

    def spread(v: Array) -> float:
        return float((W**2).sum(0) @ (1 - mean(v) ** 2) / 2)

    whole = chances(law, a) @ squared(W, r, states(4))
    assert whole == pytest.approx(first(a) + spread(a))
    st = expectation(lambda x, a: 2 * law.pdf(a) + 0 * x, law, a, W, r)
    assert st == pytest.approx(slopes(first, a), rel=1e-7)
    zgr = expectation(lambda x, a: law.pdf(a) / law.cdf(x * a), law, a, W, r)
    both = slopes(lambda v: first(v) + spread(v), a)
    assert zgr == pytest.approx(both, rel=1e-7)
    assert abs(st - both).min() > 1e-3
    # and what the library's rules deliver
    sbnlib = chapters.define(PATH)["sbnlib"]
    for rule, expected in ((sbnlib.straight_through, st), (sbnlib.zgr, zgr)):
        total = 0
        for x, p in zip(states(4), chances(law, a), strict=True):
            leaf = torch.from_numpy(a).requires_grad_()
            drawn = rule(leaf, torch.from_numpy(x), own)
            error = torch.from_numpy(r) - torch.from_numpy(W) @ drawn
            (g,) = torch.autograd.grad(error.square().sum() / 2, leaf)
            total = total + p * g.numpy()
        assert total == pytest.approx(expected)


def test_the_bias_is_that_of_chapter_6() -> None:
    """2 f A_ii mu_i, with the squares of the columns on the diagonal."""
    law, G = stats.logistic, random(3)
    W, r, a = G.normal(size=(6, 3)), G.normal(size=6), G.normal(size=3)
    mu = 2 * law.cdf(a) - 1
    st = expectation(lambda x, a: 2 * law.pdf(a) + 0 * x, law, a, W, r)
    exact = slopes(lambda v: float(chances(law, v) @ squared(W, r, states(3))), a)
    assert st - exact == pytest.approx(2 * law.pdf(a) * np.diag(W.T @ W) * mu, rel=1e-6)
    says(r"this was the bias $2f\,A_{ii}\,\mu_i$; here $A_{ii}=\|W_i\|^2$")
    text = chapters.prose(chapter(6))
    assert re.search(r"2f.{0,9}A_\{ii\}", text)


@pin(
    "prop-18-undecided",
    r"""
    Let $W_i^\top W_j=0$ for $i\ne j$, and let the noise be logistic. The bound {eq}`eq-18-bound`
    with $L=\tfrac12\|y-Wx-b\|^2$ is least, in $a$, at $a_i=2t$, where $\mu_i=\tanh t$. The
    expectation of straight-through's estimate, with the exact gradient of the rate, vanishes where
    {eq-18-undecided}
    """,
)
@pin("eq-18-undecided", r"\frac{a_i}2+\|W_i\|^2\,\mu_i=t .")
def test_eq_18_undecided() -> None:
    law, G = stats.logistic, random(4)
    for _ in range(3):
        W = np.linalg.qr(G.normal(size=(6, 3)))[0] * G.uniform(0.5, 2, 3)
        assert pytest.approx(np.diag((W**2).sum(0))) == W.T @ W
        r = 2 * G.normal(size=6)
        asked = W.T @ r

        def bound(a: Array, W: Array = W, r: Array = r) -> float:
            return float(chances(law, a) @ squared(W, r, states(3)) + rate(law, a).sum())

        assert slopes(bound, 2 * asked) == pytest.approx(np.zeros(3), abs=1e-6)
        best = optimize.minimize(bound, np.zeros(3), tol=1e-12).x
        assert bound(best) == pytest.approx(bound(2 * asked), abs=1e-8)
        assert 2 * law.cdf(2 * asked) - 1 == pytest.approx(np.tanh(asked))

        def drift(a: Array, W: Array = W, r: Array = r) -> Array:
            st = expectation(lambda x, a: 2 * law.pdf(a) + 0 * x, law, a, W, r)
            return st + slopes(lambda v: float(rate(law, v).sum()), a)

        square = (W**2).sum(0)
        for a in (np.zeros(3), G.normal(size=3)):
            apart = a / 2 + square * np.tanh(a / 2) - asked
            assert drift(a) == pytest.approx(2 * law.pdf(a) * apart, abs=1e-7)
        at = np.array([rest(s, np.array([t]))[0] for s, t in zip(square, asked, strict=True)])
        assert drift(at) == pytest.approx(np.zeros(3), abs=1e-7)
        # the derivative of the rate in mu
        slope = slopes(lambda v: float(rate(law, v).sum()), a) / (2 * law.pdf(a))
        assert slope == pytest.approx(a / 2, abs=1e-6)


def rest(square: float, asked: Array) -> Array:
    """Where straight-through comes to rest, coordinate by coordinate."""
    return np.array([
        optimize.brentq(lambda a, t=t: a / 2 + square * math.tanh(a / 2) - t,
                        -2 * abs(t) - 1, 2 * abs(t) + 1, xtol=1e-13)
        for t in asked
    ])  # fmt: skip


def cost(a: Array, t: Array) -> Array:
    """The bound of a unit, 0 for a decided one without a rate."""
    return rate(stats.logistic, a) - np.tanh(a / 2) * t + abs(t)


@pytest.mark.parametrize("square", [0, 1, 30])
def test_fig_undecided_figure(square: float) -> None:
    top, low = axes(PATH, "undecided_figure", square=square)
    asked = lines(top)[0][0]
    assert asked[[0, -1]].tolist() == [-40, 40] and 0 in asked
    for k, a in enumerate((2 * asked, rest(square, asked))):
        assert lines(top)[k] == pytest.approx(np.stack([asked, np.tanh(a / 2)]), abs=1e-9)
        assert lines(low)[k] == pytest.approx(np.stack([asked, cost(a, asked)]), abs=1e-9)
        assert low.get_ylim()[0] < cost(a, asked).min() and cost(a, asked).max() < low.get_ylim()[1]
    labels = [t.get_text() for t in top.get_legend().get_texts()]
    assert labels == ["least bound", "straight-through"]
    assert (abs(lines(top)[0][1] - lines(top)[1][1]).max() < 1e-9) == (square == 0)


def test_fig_undecided_figure_answer() -> None:
    found = under(figures(PATH)["fig-18-undecided"])
    caption, answer = lean(found["caption"]), lean(found["answer"])
    squares = drawing(PATH, "undecided_figure").__globals__["SQUARES"]
    assert len(squares) >= 10 and 30 in squares and squares[0] == 0
    assert "At 0 the two agree." in caption
    t = np.linspace(0, 60, 6001)
    mu = np.tanh(rest(30, t) / 2)
    assert abs(mu - np.minimum(t / 30, 1)).max() < 0.06
    assert abs(mu[t > 40] - 1).max() < 1e-3
    over = cost(rest(30, t), t) - cost(2 * t, t)
    assert f"up to {over.max():.0f} nats above the least one" in answer
    assert abs(t[over.argmax()] - 15) < 1
    assert "at half of that t" in answer
    says(r"The first frame has $\|W_i\|^2=1$. What will straight-through's mean look like at 30?")
    says(r"says $\mu_i\approx t/\|W_i\|^2$")


# ---------------------------------------------------------------------------------- the rate


@pin(
    "prop-18-rate",
    r"""
    Let the code's units be independent, and let $\ln P(x)=\sum_i\ln P(x_i)$ be part of the loss. In
    it $a$ is held fixed where the estimator differentiates in $x$; what differentiating it in $a$
    at a fixed $x$ adds has the expectation 0. (a) With the extension
    $\ln P(x_i)=\tfrac{1+x_i}2\ln F(a_i)+\tfrac{1-x_i}2\ln F(-a_i)$ straight-through's estimate of
    this part has the expectation {eq-18-rate} for every noise. (b) With the extension
    $\ln P(x_i)=\ln F(x_ia_i)$, which has the same values on states, it has the expectation
    $4a_if(a_i)^2$. For logistic noise this is $1-\mu_i^2$ times {eq}`eq-18-rate`.
    """,
)
@pin("eq-18-rate", r"f(a_i)\ln\frac{F(a_i)}{F(-a_i)}=\frac{\partial\ell_i}{\partial a_i} ,")
@pytest.mark.parametrize("name", LAWS)
def test_eq_18_rate(name: str) -> None:
    law, _ = LAWS[name]
    for a in (-2.3, -0.4, 0.6, 1.9):
        p, f, h = law.cdf(a), law.pdf(a), 1e-6

        def linear(x: float, a: float = a) -> float:
            return (1 + x) / 2 * math.log(law.cdf(a)) + (1 - x) / 2 * math.log(law.cdf(-a))

        def along(x: float, a: float = a) -> float:
            return math.log(law.cdf(x * a))

        found = []
        for extension in (linear, along):
            assert extension(1) == pytest.approx(math.log(p))
            assert extension(-1) == pytest.approx(math.log(1 - p))
            slope = {x: (extension(x + h) - extension(x - h)) / (2 * h) for x in (-1, 1)}
            found.append(2 * f * (p * slope[1] + (1 - p) * slope[-1]))
        exact = slopes(lambda v: float(rate(law, v).sum()), np.array([a]))[0]
        assert exact == pytest.approx(f * math.log(p / (1 - p)), rel=1e-6)
        assert found == pytest.approx([exact, 4 * a * f**2], rel=1e-5)
        if name == "logistic":
            assert found[1] == pytest.approx((1 - (2 * p - 1) ** 2) * exact, rel=1e-5)
        score = sum(law.cdf(x * a) * (along(x, a + h) - along(x, a - h)) / (2 * h) for x in (-1, 1))
        assert score == pytest.approx(0, abs=1e-8)


def test_the_cell_of_two_extensions() -> None:
    said = lines_of(containing(PATH, "def mean_slope("))
    assert len(said) == 2 and all(line.endswith("True") for line in said)


# --------------------------------------------------------------------------- random hyperplanes


@pin(
    "prop-18-lsh",
    r"""
    Let the rows of $R$ be independent standard normal vectors, and let an input $v$ have the code
    $\operatorname{sign}(Rv)$. For two inputs at the angle $\theta$ each bit differs with
    probability $\theta/\pi$, independently of the others, so that $\pi/n$ times their Hamming
    distance has the mean $\theta$ and the standard deviation {eq-18-lsh}
    """,
)
@pin("eq-18-lsh", r"\sqrt{\frac{\theta(\pi-\theta)}n} .")
def test_eq_18_lsh() -> None:
    """The probability by quadrature, and the library's codes; a false alarm in 10^6 draws of R."""
    n, draws = 64, 4000
    lsh = chapters.define(PATH)["hashing"].lsh
    for theta in (0.2, 1.0, 2.5):
        one, two = np.array([1.0, 0, 0]), np.array([math.cos(theta), 0, math.sin(theta)])
        both = stats.multivariate_normal([0, 0], [[1, one @ two], [one @ two, 1]])
        assert 1 - 2 * both.cdf([0, 0]) == pytest.approx(theta / math.pi, abs=1e-6)
        distance = stats.binom(n, theta / math.pi)
        spread = math.sqrt(theta * (math.pi - theta) / n)
        assert [math.pi / n * distance.mean(), math.pi / n * distance.std()] == pytest.approx(
            [theta, spread]
        )
        codes = lsh(3, n * draws, torch.Generator().manual_seed(3))(
            torch.from_numpy(np.stack([3 * one, 0.1 * two])))  # fmt: skip
        found = (codes[0] != codes[1]).reshape(draws, n).sum(1).double().numpy() * math.pi / n
        assert found.mean() == pytest.approx(theta, abs=4.9 * spread / math.sqrt(draws))
        assert found.std() == pytest.approx(spread, rel=4.9 / math.sqrt(2 * draws) * 1.1)


def test_the_look_ups() -> None:
    said = lines_of(containing(PATH, "sum(math.comb(n, k) for k in range(r + 1))"))
    for line, n in zip(said, (16, 32, 64), strict=True):
        found = [int(v) for v in re.findall(r"\d+", line)]
        balls = [sum(1 for word in range(1 << 16) if word.bit_count() <= r) for r in range(5)]
        assert found[0] == n
        assert found[1:] == (
            balls if n == 16 else [sum(math.comb(n, k) for k in range(r + 1)) for r in range(5)]
        )


# --------------------------------------------------------------------------------- exercises


def answer(name: str) -> Any:
    """The checker of this name."""
    return run(PATH, containing(PATH, f"{name} = exercises."))[name]


CHECKERS = ["check_gap", "check_square", "check_factor", "check_bits", "check_parts"]


def test_solutions_are_right() -> None:
    for cell in tagged(PATH, "solution"):
        assert "right" in printed(cell), cell.source
    assert len(tagged(PATH, "solution")) == len(CHECKERS)


@pytest.mark.parametrize("name", CHECKERS)
def test_the_checkers_know_their_wrong_answers(name: str, capsys: pytest.CaptureFixture) -> None:
    check = answer(name)
    assert len(check.wrong) >= 3
    for wrong, words in check.wrong:
        capsys.readouterr()
        assert not check(wrong)
        assert words in lean(capsys.readouterr().out)
    assert check(check.value)


def settled(net: tuple[Array, ...], rounds: int) -> tuple[float, float, float, float]:
    """Mean bound, gap and gap afterwards, and 1 - mu^2; bit by bit, the bit at both its values."""
    _, test = digits()
    x, a, misfit = states(8), activations(net, test), misfit_of(net, test)
    exact = 8 * math.log(2) - special.logsumexp(-misfit, axis=1)
    first = bounds(a, misfit)
    for i in list(range(8)) * rounds:
        p = special.expit(x[None] * a[:, None])
        others = np.delete(p, i, axis=2).prod(2)
        mean = {s: (others * misfit)[:, x[:, i] == s].sum(1) for s in (-1, 1)}
        a[:, i] = mean[-1] - mean[1]
    last = bounds(a, misfit)
    assert (last <= first + 1e-9).all()
    gaps = [float((v - exact).mean()) for v in (first, last)]
    return float(first.mean()), *gaps, undecided(a)


def test_ex_18_gap() -> None:
    check = answer("check_gap")
    found = {name: settled(net, 30) for name, net in trained().items()}
    closed = {name: 1 - last / first for name, (_, first, last, _) in found.items()}
    assert check.value == pytest.approx(closed["straight-through"], abs=check.tolerance / 2)
    whole, first, last, variance = found["straight-through"]
    _, once, after_one, _ = settled(trained()["straight-through"], 1)
    expected = [last / first, (first - last) / whole, closed["exact"], closed["ZGR"],
                1 - after_one / once]  # fmt: skip
    assert [w for w, _ in check.wrong] == pytest.approx(expected, abs=check.tolerance / 2)
    for line, (name, (_, *own)) in zip(lines_of(containing(PATH, "def refined("))[1:],
                                       found.items(), strict=False):  # fmt: skip
        assert line.startswith(name) and numbers(line[16:]) == pytest.approx(own, abs=0.0051)
    says(f"Independent bits cost {short(last)} nats with this decoder. The other "
         f"{short(first - last)} are the encoder's, where that of the exact gradient loses "
         f"{short(found['exact'][1] - found['exact'][2])}.")  # fmt: skip
    before = undecided(activations(trained()["straight-through"], digits()[1]))
    says(f"The mean of $1-\\mu^2$ falls from {short(before)} to {short(variance)} on the way, and "
         f"not to {short(found['exact'][3])}, where")  # fmt: skip
    # gradient descent from the same start ends at the same gap, so that both may be handed in
    misfit = torch.from_numpy(misfit_of(trained()["straight-through"], digits()[1]))
    x = torch.from_numpy(states(8))
    a = torch.from_numpy(activations(trained()["straight-through"], digits()[1])).requires_grad_()
    adam = torch.optim.Adam([a], 0.3)
    for _ in range(150):
        own = torch.sigmoid(x * a[:, None]).prod(-1)
        p = torch.sigmoid(a)
        nats = p * (2 * p).log() + (1 - p) * (2 - 2 * p).log()
        adam.zero_grad()
        ((own * misfit).sum() + nats.sum()).backward()
        adam.step()
    exact = 8 * math.log(2) - special.logsumexp(-misfit.numpy(), axis=1)
    gap = float((bounds(a.detach().numpy(), misfit.numpy()) - exact).mean())
    assert 1 - gap / first == pytest.approx(check.value, abs=check.tolerance)


def above(square: float, t: Array) -> Array:
    """Nats by which a unit's bound is above the least one, from the bound itself."""
    return cost(rest(square, t), t) - cost(2 * t, t)


def test_ex_18_undecided() -> None:
    check = answer("check_square")
    t = np.linspace(0, 25, 51)
    for square in (0.5, 5, 20):
        u = rest(square, t) / 2
        formula = np.log(np.cosh(t)) - np.log(np.cosh(u)) - square * np.tanh(u) ** 2
        assert formula == pytest.approx(above(square, t), abs=1e-9)

    def worst(square: float) -> float:
        found = optimize.minimize_scalar(lambda t: -above(square, np.array([t]))[0],
                                         bounds=(0, square + 2), method="bounded")  # fmt: skip
        return -float(found.fun)

    def solved(function: Callable[[float], float], nats: float) -> float:
        return optimize.brentq(lambda s: function(s) - nats, 0.5, 30)

    assert check.value == pytest.approx(solved(worst, 1), abs=check.tolerance / 4)
    at_half = solved(lambda s: above(s, np.array([s / 2]))[0], 1)
    expected = [
        solved(lambda s: s / 4 - math.log(2), 1),  # t - ln 2 - t^2 / s, at t = s / 2
        solved(lambda s: s / 4, 1),
        at_half,
        solved(worst, math.log(2)),
    ]
    assert [w for w, _ in check.wrong] == pytest.approx(expected, abs=check.tolerance / 2)
    assert worst(40) > 9.5  # the approximation is right where columns are large
    assert worst(40) == pytest.approx(40 / 4 - math.log(2), rel=0.06)
    said = lines_of(containing(PATH, "def square_for("))[0]
    pairs = [float(v) for v in re.findall(r"[\d.]+", said)]
    for nats, square in zip(pairs[::2], pairs[1::2], strict=True):
        assert square == pytest.approx(solved(worst, nats), abs=0.006)


def test_ex_18_kl() -> None:
    check, mu = answer("check_factor"), np.array([0.1, 0.5, 0.9, 0.99])
    h = 1e-6

    def slope(x: Array) -> Array:
        return (np.log((1 + (x + h) * mu) / 2) - np.log((1 + (x - h) * mu) / 2)) / (2 * h)

    given = [torch.from_numpy(mu)]
    for law, _ in LAWS.values():
        a = law.ppf((1 + mu) / 2)
        f, p = law.pdf(a), law.cdf(a)
        exact = f * np.log(p / (1 - p))
        mean = p * slope(1) + (1 - p) * slope(-1)
        assert check.value(*given).numpy() == pytest.approx(2 * f * mean / exact, rel=1e-6)
        wrong = [
            4 * a * f**2 / exact,
            2 * f * (slope(1) + slope(-1)) / 2 / exact,
            2 * f * slope(mu) / exact,
            f * mean / exact,
            exact / (2 * f * mean),
        ]
        for k, ((function, _), expected) in enumerate(zip(check.wrong, wrong, strict=True)):
            if k or law is stats.logistic:  # ln F(x a) has another factor at other noises
                assert function(*given).numpy() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(check.cases[0][0], given[0])
    last = mu[-1] / np.arctanh(mu[-1])
    says(f"At $\\mu=.99$ the factor is {short(last)}, where $\\ln F(xa)$ leaves "
         f"{short(1 - mu[-1] ** 2)}.")  # fmt: skip
    first, *said = lines_of(containing(PATH, "def factor(mu):"))
    assert first.endswith("True")
    for line, m in zip(said, mu[1:], strict=False):
        assert numbers(line) == pytest.approx([m, m / np.arctanh(m), 1 - m**2], abs=6e-4)


def test_ex_18_lsh() -> None:
    """The moments from the shares of the sphere in which three signs are so (Girard)."""
    check = answer("check_bits")
    angle = {(0, 1): math.radians(30), (0, 2): math.radians(45), (1, 2): math.radians(45)}

    def share(s: tuple[int, ...]) -> float:
        apart = [v if s[i] == s[j] else math.pi - v for (i, j), v in angle.items()]
        return (2 * math.pi - sum(apart)) / (4 * math.pi)

    octant = {s: share(s) for s in itertools.product((-1, 1), repeat=3)}
    assert sum(octant.values()) == pytest.approx(1) and min(octant.values()) > 0
    gain = {s: int(s[0] != s[2]) - int(s[0] != s[1]) for s in octant}
    mean = sum(octant[s] * gain[s] for s in octant)
    square = sum(octant[s] * gain[s] ** 2 for s in octant)
    assert [mean, square] == pytest.approx([1 / 12, 1 / 4])
    assert 4 * (square - mean**2) / mean**2 == pytest.approx(check.value)
    one, two = 1 / 6, 1 / 4
    variances = [one * (1 - one), two * (1 - two)]
    expected = [
        math.ceil(4 * sum(variances) * 144 - 1e-9),
        math.ceil(4 * sum(math.sqrt(v) for v in variances) ** 2 * 144),
        4 * 1 / 4 * 144,
        (1 / 4 - 1 / 144) * 144,
    ]
    assert [w for w, _ in check.wrong] == pytest.approx(expected)
    planar = 4 * (15 / 180 - 1 / 144) * 144
    says(f"all three in one plane, no bit could speak for the wrong one, and {planar:.0f} would be "
         "enough.")  # fmt: skip
    # the share of the last line, from the law of the sum of 140 such bits
    up, down = (sum(octant[s] for s in octant if gain[s] == k) for k in (1, -1))
    law = np.array([1.0])
    for _ in range(140):
        law = np.convolve(law, [down, 1 - up - down, up])
    ahead = law[141:].sum()
    ratio, found = numbers(lines_of(containing(PATH, "def bits_for("))[0])
    assert ratio == pytest.approx(2, abs=4.9 * math.sqrt(3 / 10_000))
    assert found == pytest.approx(ahead, abs=4.9 * math.sqrt(ahead * (1 - ahead) / 10_000))


def test_ex_18_parts() -> None:
    check = answer("check_parts")
    # how many bits can differ in the part that differs least
    least = max(min(parts) for parts in itertools.product(range(8), repeat=4) if sum(parts) <= 7)
    words = sum(1 for word in range(1 << 16) if word.bit_count() <= least)
    assert (least, words) == (1, 17) and check.value == 4 * words
    three = max(min(parts) for parts in itertools.product(range(8), repeat=4) if sum(parts) <= 3)
    pairs = sum(1 for word in range(1 << 16) if word.bit_count() <= 2)
    whole = sum(math.comb(64, k) for k in range(8))
    assert three == 0
    assert [w for w, _ in check.wrong] == [4, words, 4 * pairs, 4 * 16, whole]
    assert f"{whole / 1e6:.0f} million" in check.right
    # each single look-up is needed: the other parts differ in two bits
    assert 1 + 3 * 2 <= 7
    (said,) = (line for line in lines_of(containing(PATH, "def parts_for(")) if "pairs" in line)
    found, lost, share = numbers(said.replace("within 7", ""))
    assert found > 50 and lost == 0 and share < 0.05
