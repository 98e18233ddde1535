"""Chapter 18, stochastic autoencoders: both sides of every formula, the notebook's own code, and
every number of its tables and sentences, computed from the four files and the stored outputs.

Expected values are sums over all codes, finite differences and numpy; sbnlib appears only where a
function of sbnlib, or one of the notebook, is what is tested.
"""

from __future__ import annotations

import inspect
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
from scipy import optimize, special, stats

from sbnlib.experiments import code_gradients, coders, measurement, retrieval
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
    $\ell_i=\ln2-H(F(a_i))$ with the entropy $H$ of a coin, in natural logarithms. Then
    {eq-18-bound} and the difference of the two sides is the Kullback–Leibler divergence of $P$ from
    the law of the code given the picture, {eq-18-gap}
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
    for law, own in LAWS.values():
        a = np.linspace(-30, 30, 121)
        found = rate(law, a)
        assert found.min() == pytest.approx(0, abs=1e-12) == found[60]
        assert found[[0, -1]] == pytest.approx(math.log(2))
        closed = chapters.define(PATH)["kl_bits"](torch.from_numpy(a)[:, None], own)
        assert closed.numpy() == pytest.approx(found, abs=1e-9)
    says(r"$\ell_i$ is 0 for a coin and $\ln2$ for a decided bit.")
    says(f"A decided bit costs {short(math.log(2))} nats and must earn them in misfit.")
    says(f"the unit is the *nat*, which is {1 / math.log(2):.2f} bits.")


def test_the_mean_rate_bounds_what_a_bit_tells() -> None:
    """The mutual information of a bit and the picture, for some chances of a bit to be +1."""
    says(r"The mean of $\ell_i$ over the pictures bounds what bit $i$ tells about them.")
    law = stats.logistic
    for seed in range(5):
        a = random(seed).normal(seed - 2, 2, size=20)
        p = law.cdf(a)
        told = stats.bernoulli.entropy(p.mean()) - stats.bernoulli.entropy(p).mean()
        assert 0 < told <= rate(law, a).mean()


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


@pytest.mark.slow
def test_the_table_of_three_networks() -> None:
    head, *said = lines_of(containing(PATH, "NETS = {name: trained("))
    assert head.split()[:3] == ["bound", "-ln", "p(y)"]
    found = {name: judged(net) for name, net in trained().items()}
    assert list(found) == ["exact", "ZGR", "straight-through"]
    for line, (name, expected) in zip(said, found.items(), strict=True):
        assert line.startswith(name)
        *losses, variance = (float(v) for v in line[18:].split())
        assert losses == pytest.approx(expected[:2], abs=0.051)
        assert variance == pytest.approx(expected[2], abs=0.0051)
    losses = [v[0] for v in found.values()]
    assert losses == sorted(losses)
    says("The order of the bounds is as one would wish: the exact gradient, then ZGR, then "
         "straight-through.")  # fmt: skip
    exact, zgr, st = (v[2] for v in found.values())
    says(f"The exact gradient leaves a variance of {short(exact)} in a unit, and ZGR of "
         f"{short(zgr)}; straight-through leaves {short(st)}.")  # fmt: skip


@pytest.mark.slow
def test_another_seed_orders_the_likelihoods_otherwise() -> None:
    says("It is one seed, and the middle column changes its order with another.")
    space = chapters.drawing(PATH, "trained").__globals__
    again = {}
    for name in ("ZGR", "straight-through"):
        nets = space["trained"](space["RULES"][name], seed=1)
        again[name] = judged(tuple(p.detach().numpy() for net in nets for p in net.parameters()))
    first = {name: judged(trained()[name]) for name in again}
    for likelihoods, least in ((first, "straight-through"), (again, "ZGR")):
        assert min(likelihoods, key=lambda n, of=likelihoods: of[n][1]) == least
    assert all(v["ZGR"][0] < v["straight-through"][0] for v in (first, again))


@pytest.mark.slow
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
    with $0<F(a_i)<1$, $F$ differentiable at $a_i$, {eq-18-spread} For fixed $W$ and $b$, the
    expectation of straight-through's estimate is the gradient, in $a$, of the first term alone.
    ZGR's is that of both.
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
    Let $W_i^\top W_j=0$ for $i\ne j$, let the noise be logistic, and let $t=W_i^\top(y-b)$, how
    much the picture asks for the unit. The bound {eq}`eq-18-bound` with
    $L=\tfrac12\|y-Wx-b\|^2$ is least, in $a$, at $a_i=2t$, where $\mu_i=\tanh t$. The expectation
    of straight-through's estimate, with the exact gradient of the rate, vanishes at the one $a_i$
    with {eq-18-undecided}
    """,
)
@pin("eq-18-undecided", r"\frac{a_i}2+\|W_i\|^2\,\mu_i=t .")
def test_eq_18_undecided() -> None:
    law, G, line = stats.logistic, random(4), np.linspace(-200, 200, 4001)
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
        left = line[:, None] / 2 + square * np.tanh(line[:, None] / 2)
        assert (np.diff(left, axis=0) > 0).all()  # so that there is one such a, and it exists
        assert (left[0] < -abs(asked)).all() and (left[-1] > abs(asked)).all()
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
    straight = abs(30 * mu / t.clip(1e-9) - 1)[1:]
    assert straight[t[1:] <= 25].max() < 0.05 < straight[t[1:] >= 28].min()
    assert "nearly a straight line to about $|t|=25$," in answer
    assert abs(mu[t > 40] - 1).max() < 1e-3
    over = cost(rest(30, t), t) - cost(2 * t, t)
    assert over.min() > -1e-9
    assert (f"up to {over.max():.1f} nats above the least one, at $t={t[over.argmax()]:.0f}$, and "
            "level with it at 0 and far out.") in answer  # fmt: skip
    assert abs(over[0]) < 1e-9 and over[t > 40].max() < 0.01
    says(r"The first frame has $\|W_i\|^2=1$. Set it to 30: over which $t$ is straight-through "
         "still undecided?")  # fmt: skip
    says(r"for $|t|$ well below a large $\|W_i\|^2$ {eq}`eq-18-undecided` says "
         r"$\mu_i\approx t/\|W_i\|^2$")  # fmt: skip
    for square in (100, 1000):
        asked = np.linspace(-0.6, 0.6, 25) * square
        assert np.tanh(rest(square, asked) / 2) == pytest.approx(asked / square, rel=2 / square)


def along_both(net: tuple[Array, ...]) -> dict[str, Array]:
    """In the encoder's matrix: straight-through's expectation, and two gradients by differences."""
    pictures, (*_, W, b) = digits()[1], net
    a, misfit, x, h = activations(net, pictures), misfit_of(net, pictures), states(8), 1e-5
    slope = (special.expit(x @ W.T + b)[None] - pictures[:, None]) @ W  # in x, of each code
    own = np.stack([chances(stats.logistic, each) for each in a])
    st = 2 * stats.logistic.pdf(a) * (own[:, :, None] * slope).sum(1)

    def at_mean(v: Array) -> Array:
        z = np.tanh(v / 2) @ W.T + b
        return -np.where(pictures == 1, special.log_expit(z), special.log_expit(-z)).sum(1)

    def drawn(v: Array) -> Array:
        return (np.stack([chances(stats.logistic, each) for each in v]) * misfit).sum(1)

    found = {"st": st} | {
        of.__name__: np.stack([(of(a + h * e) - of(a - h * e)) / (2 * h) for e in np.eye(8)], 1)
        for of in (at_mean, drawn)
    }
    inputs = pictures - digits()[0].mean(0)
    return {name: (g.T @ inputs / len(inputs)).ravel() for name, g in found.items()}


def cosine(one: Array, two: Array) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


@pytest.mark.slow
def test_the_table_of_two_losses() -> None:
    _, head, *said = lines_of(containing(PATH, "def two_losses("))
    assert head.split() == ["in", "the", "net", "of", "the", "loss", "at", "mu", "the", "misfit"]
    found = {}
    for line, (name, net) in zip(said, trained().items(), strict=True):
        assert line.startswith(name)
        g = along_both(net)
        found[name] = [cosine(g["st"], g[other]) for other in ("at_mean", "drawn")]
        assert [float(v) for v in line[18:].split()] == pytest.approx(found[name], abs=0.051)
    says("with a cosine above 0.95 in its own network and of about 0.9 in the others.")
    own, *others = (found[n][0] for n in ("straight-through", "exact", "ZGR"))
    assert own > 0.95 and others == pytest.approx([0.9, 0.9], abs=0.05)
    assert max(found["exact"][1], found["ZGR"][1]) < 0
    says("the gradient of the misfit points elsewhere altogether")
    g = along_both(trained()["straight-through"])
    assert min(*found["straight-through"], cosine(g["at_mean"], g["drawn"])) > 0.97
    says("in straight-through's own network the two losses agree on the direction.")


# ---------------------------------------------------------------------------------- the rate


@pin(
    "prop-18-rate",
    r"""
    Let the code's units be independent with $0<F(a_i)<1$, $F$ differentiable at $a_i$, and let
    $\ln P(x)=\sum_i\ln P(x_i)$ be part of the loss. It depends on $a$ twice, through $x$ and
    directly. Directly its derivative is a score, of expectation 0, and may be left out: below, the
    $a$ in it is a constant. (a) With the extension
    $\ln P(x_i)=\tfrac{1+x_i}2\ln F(a_i)+\tfrac{1-x_i}2\ln F(-a_i)$ straight-through's estimate of
    this part has the expectation {eq-18-rate} for every such noise. (b) With the extension
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
    says(r"weaker by $1-\mu^2$: at $\mu=0.99$ it is a fiftieth of what the objective asks for.")
    assert round(1 / (1 - 0.99**2)) == 50


# ---------------------------------------------------------------------------- eighteen ways

Values = Callable[..., list[float]]


def finals(file: str, name: str, number: str = "loss", split: str = "test",
           data: str = "fashion-mnist") -> list[float]:  # fmt: skip
    """A number of the final runs, one a seed."""
    found = [r for r in rows(file, "final") if (r["name"], r["data"]) == (name, data)]
    assert [r["seed"] for r in found] == list(range(5))
    return [r[split][number] for r in found]


ways = partial(finals, "train")


def names_of(file: str) -> list[str]:
    return list(dict.fromkeys(r["name"] for r in rows(file, "final")))


def order(values: Values, names: list[str], **which: Any) -> list[str]:
    return sorted(names, key=lambda n: fmean(values(n, **which)))


def less(values: Values, one: str, two: str, **which: Any) -> tuple[float, float]:
    """By how much the first is below the second, and Welch's p."""
    a, b = values(one, **which), values(two, **which)
    return fmean(b) - fmean(a), float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def se(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


BIASED = ["straight_through", "zgr", "darn", "identity", "hardtanh", "concrete", "st_gumbel",
          "gumbel_rao", "foust"]  # fmt: skip
UNBIASED = ["local_expectation", "reinforce", "reinforce_loo", "arm", "disarm", "muprop", "rebar",
            "relax"]  # fmt: skip


#: What a sample costs in evaluations of the loss, where it is not one.
EVALUATIONS = {"local_expectation": 1 + 64, "relax": 3, "rebar": 3, "disarm": 2, "arm": 2,
               "reinforce_loo": 2, "muprop": 2}  # fmt: skip


def chosen(file: str, name: str, data: str = "fashion-mnist") -> float:
    """The learning rate of the least validation bound."""
    tried = {r["lr"]: r["validation"] for r in rows(file, "search") if r["validation"] is not None
             and (r["data"], r["name"]) == (data, name)}  # fmt: skip
    return min(tried, key=lambda lr: tried[lr])


def test_the_table_of_eighteen_ways() -> None:
    _, head, *said, star = lines_of(containing(PATH, "ROWS = [r for r in rows"))
    assert head.split() == ["lr", "ev.", "train", "test", "drawn", "signs", "rate", "1-mu^2"]
    assert star == "*: without bias for every loss"
    names = order(ways, names_of("train"))
    assert len(names) == len(said) == 18 and set(names) == {*BIASED, *UNBIASED, "twin"}
    for line, name in zip(said, names, strict=True):
        assert line[:17].strip() == name and (line[17] == "*") == (name in UNBIASED)
        lr, evaluations, *found = (float(v) for v in line[18:].replace("±", "").split())
        assert (lr, evaluations) == (chosen("train", name), EVALUATIONS.get(name, 1))
        values = [ways(name, "loss", "train"), ways(name, "loss")]
        expected = [fmean(v) for v in values] + [se(values[1])]
        expected += [fmean(ways(name, key)) for key in ("misfit", "sign", "kl", "undecided")]
        assert found[:-1] == pytest.approx(expected[:-1], abs=0.051)
        assert found[-1] == pytest.approx(expected[-1], abs=0.0051)
        parts = [a + b for a, b in zip(ways(name, "misfit"), ways(name, "kl"), strict=True)]
        assert parts == pytest.approx(ways(name))
    assert not any(ways("twin", "kl"))  # no rate
    errors = [fmean(ways(n, "loss_se")) for n in names if n != "twin"]
    assert 0.75 <= median(errors) < 0.85
    says(f"That there are 10 000 test pictures adds one of {short(median(errors), 1)} nats to each "
         "bound")  # fmt: skip


def test_the_protocol() -> None:
    for file in ("train", "small"):
        search: dict[tuple[str, str], dict[float, float]] = {}
        for row in rows(file, "search"):
            value = math.inf if row["validation"] is None else row["validation"]
            search.setdefault((row["data"], row["name"]), {})[row["lr"]] = value
        for (data, name), tried in search.items():
            assert len(tried) >= 5
            final = {r["lr"] for r in rows(file, "final") if (r["data"], r["name"]) ==
                     (data, name)}  # fmt: skip
            assert final == {chosen(file, name, data)} == {min(tried, key=lambda v: tried[v])}
            assert min(tried) < min(final) < max(tried)
    says("gets a search of five learning rates or more, of two epochs each, and takes the one of "
         "the lowest validation bound; then five fresh seeds of six epochs.")  # fmt: skip
    assert max(r["epoch"] for r in rows("train", "curve")) == 6
    assert max(r["epoch"] for r in rows("small", "curve")) == 40
    says("with searches of 20 epochs and final runs of 40")
    settings = {k: (s.bits, s.search_epochs, s.epochs) for k, s in coders.SETTINGS.items()}
    assert settings == {"train": (64, 2, 6), "small": (8, 20, 40)}
    for part in ("train", "small", "gradients", "retrieval"):  # with nothing but the defaults
        command = measurement.stored(f"autoencoders-{part}")["command"]
        assert command == f"python -m sbnlib.experiments.autoencoders --part {part}"
    assert (coders.SHOWN, code_gradients.IMAGES, retrieval.NEAREST) == (5000, 50, 100)
    caption = lean(under(figures(PATH)["fig-18-curves"])["caption"])
    assert "on 5 000 of the training pictures" in caption
    says("of the misfit of 50 training pictures")
    says("*nearest* is that of the first 100")
    registry = chapters.define(PATH)["ESTIMATORS"]
    given = {n: registry[n].function.keywords for n in ("concrete", "st_gumbel", "gumbel_rao")}
    assert given == {"concrete": {"tau": 0.5}, "st_gumbel": {"tau": 0.5},
                     "gumbel_rao": {"tau": 0.5, "num_inner": 10}}  # fmt: skip
    says("have the temperature 0.5, and Gumbel-Rao ten inner draws")
    assert "psa" in registry and "psa" not in names_of("train")
    says("(PSA is left out: with one layer it is local expectation.")


def test_the_opening() -> None:
    names = [n for n in order(ways, names_of("train")) if n != "twin"]
    assert len(names) == 17
    assert names[:3] == ["gumbel_rao", "local_expectation", "straight_through"]
    assert less(ways, "local_expectation", "straight_through")[1] > 0.5
    others = [less(ways, "straight_through", n) for n in UNBIASED if n != "local_expectation"]
    assert all(by > 1 and p < 0.001 for by, p in others)
    says("straight-through is among the three of seventeen estimators with the best bound on the "
         "likelihood, level with local expectation and ahead of every other one without bias."
         )  # fmt: skip
    st, flips = (fmean(ways(n, "undecided")) for n in ("straight_through", "local_expectation"))
    says(f"is {short(st)} on average, where local expectation, which evaluates every flip, ends at "
         f"{short(flips)}.")  # fmt: skip
    assert max(r["epoch"] for r in rows("train", "curve")) == 6
    says("Trained on Fashion-MNIST for six epochs")
    says("A picture of 784 pixels is to be kept in 64 bits")


def test_the_levels_of_the_first_table() -> None:
    said = lines_of(containing(PATH, "def told_apart("))
    assert len(said) == 4
    for line in said:
        one, two, split, *number = line.split()[3:]
        p = less(ways, one, two, split=split, number=(number or ["loss"])[0])[1]
        assert numbers(line)[0] == pytest.approx(p, abs=6e-4)


def test_what_is_said_of_the_order() -> None:
    train = {n: fmean(ways(n, "loss", "train")) for n in names_of("train")}
    test = {n: fmean(ways(n)) for n in names_of("train")}
    on_train = [n for n in sorted(train, key=lambda n: train[n]) if n != "twin"]
    assert on_train[:3] == ["local_expectation", "gumbel_rao", "straight_through"]
    says("are level, at {:.1f} and {:.1f} nats, and straight-through follows at "
         "{:.1f}.".format(*(train[n] for n in on_train[:3])))  # fmt: skip
    assert less(ways, *on_train[:2], split="train")[1] > 0.5
    says(f"On the test pictures Gumbel-Rao is first, at {test['gumbel_rao']:.1f};")
    for name in ("local_expectation", "straight_through"):
        assert round(less(ways, "gumbel_rao", name)[0]) == 1
    assert less(ways, "local_expectation", "straight_through")[1] > 0.5
    says("local expectation, which evaluates all 64 flips, and straight-through, which takes one "
         "evaluation and its gradient, are a nat behind it, and level.")  # fmt: skip
    by = less(ways, "straight_through", "zgr")[0]
    free = order(ways, [n for n in UNBIASED if n != "local_expectation"])
    assert free[0] == "relax"
    says(f"ZGR is {by:.1f} nats behind straight-through, and the unbiased estimators of one or two "
         f"draws are further behind, from RELAX at {test['relax']:.1f} on.")  # fmt: skip
    names = [n for n in sorted(test, key=lambda n: test[n]) if n != "twin"]
    level = [pair for pair in itertools.pairwise(names) if less(ways, *pair)[1] > 0.05]
    assert level == [
        ("local_expectation", "straight_through"),
        ("st_gumbel", "concrete"),
        ("zgr", "hardtanh"),
        ("relax", "rebar"),
        ("reinforce_loo", "muprop"),
        ("muprop", "darn"),
        ("identity", "arm"),
        ("reinforce", "foust"),
    ]
    assert [round(test[n]) for n in names[10:13]] == [177, 178, 178]
    assert less(ways, "reinforce_loo", "darn")[1] > 0.05
    says("on test not local expectation and straight-through, Concrete and ST-Gumbel, ZGR "
         "and hardtanh, RELAX and REBAR, the three at 177 and 178, and the last two "
         "pairs.")  # fmt: skip
    flips, st = (less(ways, "gumbel_rao", n)[1] for n in ("local_expectation", "straight_through"))
    says(f"Gumbel-Rao's lead has p = {short(flips)} over local expectation, which is little in a "
         f"table of this size, and p = {short(st, 3)} over straight-through.")  # fmt: skip


def test_what_the_table_takes_apart() -> None:
    def by(key: str) -> float:
        return fmean(ways("straight_through", key)) - fmean(ways("zgr", key))

    says(f"worse by {by('misfit'):.0f} nats of misfit, and its rate is lower by {-by('kl'):.0f}: "
         "its bits")  # fmt: skip
    says("{} against {}.".format(*(short(fmean(ways(n, "undecided")))
                                   for n in ("straight_through", "zgr"))))  # fmt: skip
    names = [n for n in names_of("train") if n != "twin"]
    drawn, signs = (order(ways, names, number=key) for key in ("misfit", "sign"))
    assert drawn[0] == "local_expectation"
    says("best by local expectation")
    assert set(signs[:2]) == {"gumbel_rao", "local_expectation"} and signs[2] == "straight_through"
    fall = {n: fmean(ways(n, "misfit")) - fmean(ways(n, "sign"))
            for n in ("zgr", "straight_through")}  # fmt: skip
    assert round(fall["zgr"]) == 1
    own, zgr = (fmean(ways(n, "sign")) for n in ("straight_through", "zgr"))
    p = less(ways, "straight_through", "zgr", number="sign")[1]
    says(f"ZGR's misfit falls by one nat, and straight-through's by {fall['straight_through']:.0f},"
         f" to {own:.1f}, below ZGR's {zgr:.1f} (p = {short(p, 3)})")  # fmt: skip
    says("Ahead are again local expectation and Gumbel-Rao, at {:.1f} and {:.1f}.".format(
        *(fmean(ways(n, "sign")) for n in ("local_expectation", "gumbel_rao"))))  # fmt: skip
    assert less(ways, "local_expectation", "gumbel_rao", number="sign")[1] > 0.5
    by = {key: fmean(ways("straight_through", key)) - fmean(ways("local_expectation", key))
          for key in ("misfit", "sign")}  # fmt: skip
    assert round(by["sign"]) == 2
    says(f"So of straight-through's {by['misfit']:.0f} nats behind local expectation, as drawn, "
         "all but two are gone at the signs")  # fmt: skip
    twin = [fmean(ways("twin", key)) for key in ("misfit", "sign")]
    says("has the misfit {:.1f}, and {:.1f} with each unit at its sign.".format(*twin))


def test_the_table_of_the_search() -> None:
    head, *said = lines_of(containing(PATH, "validation bound at"))
    rates = numbers(head)
    assert rates == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    tried = {(r["name"], r["lr"]): r["validation"] for r in rows("train", "search")}
    for line in said:
        name, *found = line.split()
        expected = [tried[name, lr] for lr in rates]
        assert [float(v) for v in found] == pytest.approx(expected, abs=0.051)
    by = [tried["straight_through", lr] - tried["zgr", lr] for lr in rates]
    assert [v > 0 for v in by] == [False, True, True, False, False]
    says("At the chosen learning rate, 0.01, and on both ends, straight-through is ahead of ZGR; "
         f"at 0.003 it is behind, by {by[2]:.1f} nats, and at 0.001 by "
         f"{short(by[1], 1)}.")  # fmt: skip
    for name in ("straight_through", "zgr"):
        assert {r["lr"] for r in rows("train", "final") if r["name"] == name} == {0.01}


def along(name: str, split: str) -> list[float]:
    """The mean over the seeds after each epoch from the first."""
    own = [r for r in rows("train", "curve") if r["name"] == name]
    return [fmean(r[split] for r in own if r["epoch"] == e) for e in range(1, 7)]


def test_fig_18_curves() -> None:
    names = ["straight_through", "zgr", "local_expectation", "gumbel_rao", "disarm",
             "reinforce_loo"]  # fmt: skip
    for ax, split in zip(still(PATH, "fig-18-curves"), ("train", "test"), strict=True):
        assert len(lines(ax)) == 6
        for line, name in zip(lines(ax), names, strict=True):
            expected = np.array([range(1, 7), along(name, split)])
            assert pytest.approx(expected) == line
            assert ax.get_ylim()[0] < line[1].min()
            assert (line[1] < ax.get_ylim()[1])[-4:].all()
            assert np.diff(line[1])[-1] < -0.3  # all still fall at the end
        registry = chapters.define(PATH)["ESTIMATORS"]
        for drawn, name in zip(ax.lines, names, strict=True):
            assert drawn.get_label() == registry[name].label
    estimators = [n for n in names_of("train") if n != "twin"]
    first = sorted(estimators, key=lambda n: along(n, "test")[0])
    assert first[0] == "local_expectation" and first[2] == "gumbel_rao"
    says("after one epoch local expectation is first and Gumbel-Rao third ({numref}`fig-18-curves`)"
         ", and no curve has come to rest.")  # fmt: skip
    assert all(np.diff(along(n, "test"))[-1] < 0 for n in estimators)
    assert min(names, key=lambda n: along(n, "test")[-1]) == "gumbel_rao"


# ------------------------------------------------------------------------------- eight bits

DIGITS, CLOTHING = "digits", "fashion-mnist-4000"
SMALL = {d: partial(finals, "small", data=d) for d in (DIGITS, CLOTHING)}


def test_the_table_of_eight_bits() -> None:
    over, head, *said = lines_of(containing(PATH, "def summary(name, images)"))
    assert over.split() == ["bound", "gap"]
    assert head.split() == ["lr", "train", "test", "-ln", "p", "train", "test", "1-mu^2"]
    says(r"$-\ln p$ is that of the test pictures.")
    names = ["exact", "local_expectation", "disarm", "reinforce_loo", "gumbel_rao",
             "straight_through", "zgr"]  # fmt: skip
    for k, data in enumerate(SMALL):
        assert said[8 * k] == data
        for line, name in zip(said[8 * k + 1 : 8 * k + 8], names, strict=True):
            assert line.split()[0] == name
            values = [SMALL[data](name, "loss", s) for s in ("train", "test")]
            likelihoods = [SMALL[data](name, "nll", s) for s in ("train", "test")]
            expected = [chosen("small", name, data)]
            expected += [f(v) for v in values for f in (fmean, se)] + [fmean(likelihoods[1])]
            expected += [fmean(v) - fmean(n) for v, n in zip(values, likelihoods, strict=True)]
            expected += [fmean(SMALL[data](name, "undecided"))]
            found = [float(v) for v in re.findall(r"\d+\.\d+", line)]
            assert found == pytest.approx(expected, abs=0.0051)
    levels = [line for line in said[16:] if line.startswith("p = ")]
    search = [line for line in said[16:] if line not in levels]
    assert (len(levels), len(search)) == (6, 4)
    tried = searched(DIGITS)
    for line in search:
        (name, lr) = re.fullmatch(r"search, digits, (\w+) +lr ([\d.]+): .*", line).groups()
        assert float(line.split(":")[1]) == pytest.approx(tried[name, float(lr)], abs=0.0051)
    for line in levels:
        *_, data, one, two, split = line.split()
        p = less(SMALL[data], one, two, split=split)[1]
        assert numbers(line)[0] == pytest.approx(p, abs=6e-4)


def searched(data: str) -> dict[tuple[str, float], float]:
    return {(r["name"], r["lr"]): r["validation"] for r in rows("small", "search")
            if r["data"] == data}  # fmt: skip


def test_what_is_said_of_clothing() -> None:
    values, names = SMALL[CLOTHING], names_of("small")
    spread = [fmean(values(n, "undecided", s)) for n in names for s in ("train", "test")]
    assert max(spread) < 0.03
    rates = [fmean(values(n, "kl", s)) for n in names for s in ("train", "test")]
    says(f"$1-\\mu^2$ is below 0.03, and the rate is {min(rates):.1f} to {max(rates):.1f} nats, "
         f"where a code without chance has $8\\ln2={8 * math.log(2):.2f}$.")  # fmt: skip
    contenders = ("local_expectation", "disarm", "straight_through", "zgr")
    assert {chosen("small", n, CLOTHING) for n in contenders} == {0.09}
    ahead = [less(values, one, two, split="train") for one in contenders[:2]
             for two in contenders[2:]]  # fmt: skip
    assert all(p < 0.01 for _, p in ahead)
    low, high = (f(by for by, _ in ahead) for f in (min, max))
    by, p = less(values, "local_expectation", "straight_through")
    says("At one learning rate, 0.09, local expectation and DisARM train better than "
         f"straight-through and ZGR, by {low:.0f} to {high:.0f} nats, and local expectation is "
         f"ahead on the test pictures too, by {by:.1f} nats (p = {short(p)}).")  # fmt: skip
    by, p = less(values, "local_expectation", "exact", split="train")
    says(f"The exact gradient is behind local expectation, by {by:.1f} nats in training (p = "
         f"{short(p, 3)})")  # fmt: skip
    one = [r["one"] for r in looked(8, "exact", "local_expectation")]
    says(f"a single sample of local expectation has the cosine {short(min(one))} with it")
    tried = searched(CLOTHING)
    assert min(lr for (n, lr), v in tried.items() if n == "exact"
               and v == min(tried[m] for m in tried if m[0] == "exact")) == 0.27  # fmt: skip
    says(
        "preferred 0.27 for the exact gradient, by "
        f"{short(tried['exact', 0.09] - tried['exact', 0.27], 1)} nats, to 0.09"
    )
    # with eight bits on clothing the two are level
    assert all(less(values, "zgr", "straight_through", split=s)[1] > 0.3 for s in ("train", "test"))


def test_what_is_said_of_digits() -> None:
    values, names, tried = SMALL[DIGITS], names_of("small"), searched(DIGITS)
    assert order(values, names, split="train")[:2] == ["exact", "local_expectation"]
    assert less(values, "exact", "local_expectation", split="train")[1] > 0.1
    by, p = less(values, "exact", "straight_through", split="train")
    says("In training the exact gradient is first, level with local expectation, and "
         f"straight-through is {short(by, 1)} nats behind it (p = {short(p, 3)}); all three have "
         "the learning rate 0.27.")  # fmt: skip
    both = ("exact", "straight_through")
    assert {chosen("small", n, DIGITS) for n in (*both, "local_expectation")} == {0.27}
    assert order(values, names)[0] == "straight_through"
    by, p = less(values, "straight_through", "exact")
    says(f"straight-through has the lowest bound, {short(by, 1)} nats below the exact gradient (p "
         f"= {short(p, 3)}).")  # fmt: skip
    nll = [fmean(values(n, "nll")) for n in both]
    says("the two decoders give test pictures the same likelihood, {:.2f} and {:.2f}".format(*nll))
    assert less(values, "straight_through", "exact", number="nll")[1] > 0.1
    gap = {(n, s): fmean(values(n, "loss", s)) - fmean(values(n, "nll", s))
           for n in both for s in ("train", "test")}  # fmt: skip
    spread = [short(fmean(values(n, "undecided"))) for n in reversed(both)]
    says("From training to test it grows from {} to {} for the exact gradient, and from {} to {} "
         "for straight-through, whose units are undecided ({} against {}).".format(
             short(gap["exact", "train"]), f"{gap['exact', 'test']:.2f}",
             short(gap["straight_through", "train"]), f"{gap['straight_through', 'test']:.2f}",
             *spread))  # fmt: skip
    by = tried["straight_through", 0.09] - tried["exact", 0.09]
    says(f"at a third of the learning rate the search has straight-through {by:.1f} nats behind")


def drawn_from(net: tuple[Array, ...], codes: Array) -> Array:
    *_, W, b = net
    return special.expit(codes @ W.T + b)


@pytest.mark.slow
def test_fig_18_pictures() -> None:
    data = chapters.define(PATH)["data"].load("digits").test
    labels = data.labels.numpy()
    shown = [int(np.flatnonzero(labels == k)[0]) for k in range(8)]
    pictures = digits()[1][shown]
    largest = max(abs(net[2]).max() for net in trained().values())
    drawing_of = still(PATH, "fig-18-pictures")
    assert [ax.get_title() + ax.get_title(loc="left") for ax in drawing_of] == [
        "exact", "straight-through"]  # fmt: skip
    for ax, name in zip(drawing_of, ("exact", "straight-through"), strict=True):
        assert [t.get_text() for t in ax.get_yticklabels()] == [
            "picture", "chances", "drawn code", "signs", "fair code", "columns"]  # fmt: skip
        wall = ax.images[0].get_array()
        assert wall.shape[1] == 8 * 9 and ax.images[0].get_clim() == (0, 1)
        net = trained()[name]
        a = activations(net, pictures)
        for k in range(8):
            column = np.asarray(wall)[:, 9 * k : 9 * k + 8]
            assert column[:8].ravel() == pytest.approx(pictures[k])
            assert column[9:11] == pytest.approx(np.stack([special.expit(a[k])] * 2))
            picture_of_signs = drawn_from(net, np.where(a[k] >= 0, 1, -1)).reshape(8, 8)
            assert column[21:29] == pytest.approx(picture_of_signs)
            possible = drawn_from(net, states(8)).reshape(-1, 8, 8)
            for top in (12, 30):  # drawn codes, which may be any
                assert abs(possible - column[top : top + 8]).max((1, 2)).min() < 1e-9
            assert column[39:47].ravel() == pytest.approx(0.5 + net[2][:, k] / (2 * largest))
    grey = {n: abs(special.expit(activations(trained()[n], pictures)) - 0.5).mean()
            for n in ("exact", "straight-through")}  # fmt: skip
    assert grey["straight-through"] < grey["exact"]  # the squares below are greyer
    columns = {n: abs(trained()[n][2]).mean() for n in grey}
    assert columns["straight-through"] < columns["exact"]


def misfits_of(net: tuple[Array, ...]) -> tuple[float, float]:
    """Of the test pictures from drawn codes and from signs."""
    test = digits()[1]
    a, misfit = activations(net, test), misfit_of(net, test)
    own = np.stack([chances(stats.logistic, each) for each in a])
    signs = np.array([m[(states(8) == np.where(v >= 0, 1, -1)).all(1)][0]
                      for v, m in zip(a, misfit, strict=True)])  # fmt: skip
    return (own * misfit).sum(1).mean(), signs.mean()


def curvature(net: tuple[Array, ...]) -> float:
    """Mean second difference of the misfit along a unit, over units, codes and test pictures."""
    *_, W, b = net
    x, h = states(8), 1e-3

    def loss(x: Array) -> Array:  # the picture adds what is linear in x
        return np.logaddexp(0, x @ W.T + b).sum(1)

    second = np.stack([(loss(x + h * e) + loss(x - h * e) - 2 * loss(x)) / h**2 for e in np.eye(8)])
    own = [chances(stats.logistic, a) for a in activations(net, digits()[1])]
    return float((second @ np.mean(own, 0)).mean())


@pytest.mark.slow
def test_the_table_of_what_the_nets_draw() -> None:
    head, *said = lines_of(containing(PATH, "def taken_apart("))
    squares = {}
    for line, (name, net) in zip(said, trained().items(), strict=True):
        assert line.startswith(name)
        rates = rate(stats.logistic, activations(net, digits()[1])).sum(1)
        squares[name] = (net[2] ** 2).sum(0).mean()
        expected = [*misfits_of(net), rates.mean(), curvature(net)]
        *found, square, curved = (float(v) for v in line[18:].split())
        assert [*found, curved] == pytest.approx(expected, abs=0.051)
        assert square == pytest.approx(squares[name], abs=0.51)
        assert curvature(net) < squares[name] / 4
    assert head.split()[-2:] == ["|W_i|^2", "A_ii"]
    says("divide the square of a column by four, at least, before you look it up")
    assert squares["straight-through"] < min(squares["exact"], squares["ZGR"])
    says("in the networks above straight-through's has smaller columns")
    bound = {name: judged(net)[0] for name, net in trained().items()}
    assert max(bound, key=lambda n: bound[n]) == "straight-through"
    assert inspect.signature(drawing(PATH, "trained")).parameters["lr"].default == 0.1
    says("in the first section, at the learning rate 0.1, with other batches and pictures in black "
         "and white, it is last.")  # fmt: skip


# ---------------------------------------------------------------------------------- gradients


def looked(bits: int, by: str, name: str) -> list[Row]:
    found = [r for r in rows("gradients", "gradients") if (r["bits"], r["trained"],
             r["estimator"]) == (bits, by, name)]  # fmt: skip
    return sorted(found, key=lambda r: r["epoch"])


POINTS = ["straight_through", "zgr", "gumbel_rao", "hardtanh", "foust", "disarm", "reinforce_loo",
          "local_expectation"]  # fmt: skip
SHOWN = [(8, "exact"), (64, "straight_through")]


def test_the_table_of_cosines() -> None:
    head, *said = lines_of(containing(PATH, "def looked(size, trained_by, name)"))
    assert numbers(head) == [0, 1, 3, 6]
    for bits, by in SHOWN:
        assert said.pop(0) == f"{bits} bits: cosine of the mean / of one sample"
        for name in POINTS:
            own = looked(bits, by, name)
            if not own:
                assert (bits, name) == (64, "local_expectation")  # it is the reference
                continue
            assert [r["epoch"] for r in own] == [0, 1, 3, 6]
            line = said.pop(0)
            assert line.split()[0] == name
            expected = [r[kind] for r in own for kind in ("many", "one")]
            assert [float(v) for v in re.findall(r"-?\d*\.\d+", line)] == pytest.approx(
                expected, abs=0.0051
            )
    assert not said
    errors = {
        bits: max(r[k] for n in POINTS for r in looked(bits, by, n) for k in ("many_se", "one_se")
                  if (bits, n, r["epoch"]) != (8, "hardtanh", 6))
        for bits, by in SHOWN
    }  # fmt: skip
    last = looked(8, "exact", "hardtanh")[-1]["many_se"]
    assert 0.002 < errors[64] < 0.003 and 0.01 < errors[8] < 0.02
    says("The errors of the cosines, by the jackknife, are at most 0.02 with 8 bits (but "
         f"{short(last)} for hardtanh's last mean) and 0.003 with 64.")  # fmt: skip
    reference = rows("gradients", "reference")
    assert {r["samples"] for r in reference if r["bits"] == 64} == {1000}
    says("against the mean of a thousand samples of local expectation")


def test_what_is_said_of_cosines() -> None:
    st = {bits: looked(bits, by, "straight_through") for bits, by in SHOWN}
    says("Straight-through's mean is further from the gradient after the training than before it, "
         "at a cosine of {} with 64 bits and {} with 8".format(
             *(short(st[bits][-1]["many"]) for bits in (64, 8))))  # fmt: skip
    assert all(own[-1]["many"] == min(r["many"] for r in own) for own in st.values())
    assert min(r["many"] for bits, by in SHOWN for r in looked(bits, by, "zgr")) > 0.975
    says("ZGR's stays at 0.98 or more.")
    for k in (1, 2, 3):
        own = {r["estimator"]: r["one"] for r in rows("gradients", "gradients")
               if (r["bits"], r["trained"], r["epoch"]) == (64, "straight_through", (0, 1, 3, 6)[k])
               }  # fmt: skip
        assert len(own) == 16 and max(own, key=lambda n, of=own: of[n]) == "straight_through"
    says("With 64 bits, from the first epoch on, straight-through's is the nearest of all that "
         "were compared")  # fmt: skip
    says("{} in the end against {} of ZGR and {} of DisARM.".format(
        *(short(looked(64, "straight_through", n)[-1]["one"])
          for n in ("straight_through", "zgr", "disarm"))))  # fmt: skip
    two = sorted(looked(8, "exact", n)[-1]["one"] for n in ("disarm", "reinforce_loo"))
    says("With 8 bits it is {} there, behind the unbiased ones of two draws with {} and {}".format(
        short(st[8][-1]["one"]), *map(short, two)))  # fmt: skip
    assert looked(8, "exact", "local_expectation")[-1]["one"] > 0.9


RUNS = [(64, "straight_through"), (64, "zgr"), (8, "straight_through"), (8, "exact")]


def ranked(bits: int, by: str, kind: str, group: list[str]) -> tuple[Any, int]:
    """Spearman's correlation and its p; the mean of an estimator without bias has the cosine 1."""
    values = ways if bits == 64 else SMALL[CLOTHING]
    names = [n for n in group if looked(bits, by, n)]
    cosines = [fmean(r[kind] for r in looked(bits, by, n) if r["epoch"]) for n in names]
    if kind == "many":
        cosines = [1.0 if n in UNBIASED else v for n, v in zip(names, cosines, strict=True)]
    bound = [-fmean(values(n, "loss", "train")) for n in names]
    return stats.spearmanr(cosines, bound), len(names)


def test_the_table_of_ranks() -> None:
    _, head, *said = lines_of(containing(PATH, "rank correlation of a low training bound"))
    assert head.split() == ["all:", "one", "sample", "mean", "biased:", "one", "mean"]
    groups = {"all": [*BIASED, *UNBIASED], "biased": BIASED}
    found = {(which, kind): [ranked(*run, kind, group) for run in RUNS]
             for which, group in groups.items() for kind in ("one", "many")}  # fmt: skip
    for k, (line, (bits, by)) in enumerate(zip(said, RUNS, strict=True)):
        assert re.match(rf" ?{bits} bits, by {by} ", line)
        assert [float(v) for v in re.findall(r"-?\d+\.\d+", line)] == pytest.approx(
            [own[k][0].statistic for own in found.values()], abs=0.0051
        )
        counts = [int(v) for v in re.findall(r"\((\d+)\)", line)]
        assert counts == [16 if bits == 64 else 17, 9]
        assert [own[k][1] for own in found.values()] == [n for n in counts for _ in range(2)]
    one, mean, own, own_mean = ([v.statistic for v, _ in each] for each in found.values())
    says("Over all estimators the cosine of a single sample goes with the bound, {} to {}, and "
         "that of the mean, which is 1 for all without bias, less or not at all".format(
             *map(short, (min(one), max(one)))))  # fmt: skip
    assert max(mean) < 0.5 < min(one) and min(mean) < 0
    says("Among the nine with a bias it is {} to {} for the mean in all four trainings, and for a "
         "single sample {} to {} with 64 bits and {} to {} with 8.".format(
             *(short(v, 1) for v in (min(own_mean), max(own_mean), *own))))  # fmt: skip
    says("among the biased ones that of the mean does, at {} to {}.".format(
        *(short(v, 1) for v in (min(own_mean), max(own_mean)))))  # fmt: skip
    p = [v.pvalue for v, _ in found["biased", "many"] if round(v.statistic, 2) == 0.58]
    assert len(p) == 3
    for each in p:
        says(f"Nine are few: 0.58 has a p of {short(each, 1)}.")
    names = sorted(
        (n for n in names_of("train") if looked(64, "straight_through", n)),
        key=lambda n: -looked(64, "straight_through", n)[-1]["one"],
    )
    assert names.index("foust") == 4
    assert set(order(ways, [*BIASED, *UNBIASED], split="train")[-2:]) == {"foust", "reinforce"}
    assert [n for n in names[:4] if n not in POINTS] == ["concrete"]
    says("with 64 bits, along straight-through's training, FouST's samples are the fifth best in "
         "the end (with Concrete's, which are not printed), and it is one of the two that train "
         "worst.")  # fmt: skip


# --------------------------------------------------------------------------- random hyperplanes


@pin(
    "prop-18-lsh",
    r"""
    Let the rows of $R$ be independent standard normal vectors, and let an input $v$ have the code
    $\operatorname{sign}(Rv)$. For two inputs at the angle $d$, in radians, each bit differs with
    probability $d/\pi$, independently of the others, so that $\pi/n$ times their Hamming distance
    has the mean $d$ and the standard deviation {eq-18-lsh}
    """,
)
@pin("eq-18-lsh", r"\sqrt{\frac{d\,(\pi-d)}n} .")
def test_eq_18_lsh() -> None:
    """The probability by quadrature, and the library's codes; a false alarm in 10^6 draws of R."""
    n, draws = 64, 4000
    lsh = chapters.define(PATH)["hashing"].lsh
    for d in (0.2, 1.0, 2.5):
        one, two = np.array([1.0, 0, 0]), np.array([math.cos(d), 0, math.sin(d)])
        both = stats.multivariate_normal([0, 0], [[1, one @ two], [one @ two, 1]])
        assert 1 - 2 * both.cdf([0, 0]) == pytest.approx(d / math.pi, abs=1e-6)
        distance = stats.binom(n, d / math.pi)
        spread = math.sqrt(d * (math.pi - d) / n)
        assert [math.pi / n * distance.mean(), math.pi / n * distance.std()] == pytest.approx(
            [d, spread]
        )
        codes = lsh(3, n * draws, torch.Generator().manual_seed(3))(
            torch.from_numpy(np.stack([3 * one, 0.1 * two])))  # fmt: skip
        found = (codes[0] != codes[1]).reshape(draws, n).sum(1).double().numpy() * math.pi / n
        assert found.mean() == pytest.approx(d, abs=4.9 * spread / math.sqrt(draws))
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

    says(f"With 64 bits there are {math.comb(64, 3) + math.comb(64, 2) + 65:,} look-ups within a "
         "distance of 3".replace(",", " "))  # fmt: skip
    says("nearly as many as there are pictures to compare with.")  # 50 000


COUNTS = [2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 256, 512]


def band(angle: Any, n: int) -> Any:
    return 2 * np.degrees(np.sqrt(np.radians(angle) * (math.pi - np.radians(angle)) / n))


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 8, 512])
def test_fig_lsh_figure(n: int) -> None:
    (ax,) = axes(PATH, "lsh_figure", n=n)
    points, *strips = lines(ax)
    angle, distance = points
    assert len(angle) > 100 and all(np.diff(angle) > 0)
    data = chapters.define(PATH)["data"].load("digits")
    grey = (data.test.inputs - data.train.inputs.mean(0))[:100].double().numpy()
    unit = grey / np.linalg.norm(grey, axis=1, keepdims=True)
    every = np.degrees(np.arccos(np.clip(unit @ unit.T, -1, 1)))[np.triu_indices(100, 1)]
    nearest = abs(every[:, None] - angle).min(0)
    assert nearest.max() < 1e-6
    # the codes again, and their distances entry by entry
    draw = chapters.define(PATH)["hashing"].lsh(64, 512, torch.Generator().manual_seed(0))
    signs = draw(torch.from_numpy(grey)).numpy()[:, :n]
    apart = (signs[:, None] != signs[None]).sum(-1)[np.triu_indices(100, 1)] * 180 / n
    pairs = {round(a, 9): d for a, d in zip(every, apart, strict=True)}
    assert distance == pytest.approx([pairs[round(a, 9)] for a in angle])
    for strip, theta in zip(strips, (60, 90), strict=True):
        assert strip[0].tolist() == [theta, theta]
        assert strip[1] == pytest.approx([theta - band(theta, n), theta + band(theta, n)])
    inside = (abs(distance - angle) <= band(angle, n) + 1e-9).mean()
    title = ax.get_title() + ax.get_title(loc="left")
    assert title == f"{inside:.0%} of the pairs in the band"
    assert ax.get_xlim()[0] < angle.min() and angle.max() < ax.get_xlim()[1]


@pytest.mark.slow
def test_fig_lsh_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-18-lsh"])["answer"])
    found = drawing(PATH, "lsh_figure").__globals__
    assert found["COUNTS"] == COUNTS

    def meet(n: int) -> bool:
        return 60 + band(60, n) >= 90 - band(90, n)

    last, first = max(n for n in COUNTS if meet(n)), min(n for n in COUNTS if not meet(n))
    formula = next(n for n in range(1, 1000) if not meet(n))
    assert (f"At {last} bits the two strips still touch, at {first} they do not; the formula says "
            f"{formula}.") in answer  # fmt: skip
    assert band(70, 400) == pytest.approx(band(70, 100) / 2)
    shares = []
    for n in COUNTS:
        (ax,) = axes(PATH, "lsh_figure", n=n)
        shares.append(float(re.match(r"(\d+)%", ax.get_title() + ax.get_title(loc="left"))[1]))
    assert f"it is between {min(shares):.0f} and {max(shares):.0f} of 100 pairs" in answer
    says("Two pairs of pictures have angles of 60 and of 90 degrees")
    low, high = 90 - band(90, 8), 60 + band(60, 8)
    assert 60 - band(60, 8) < low < high < 90 + band(90, 8)
    says(f"In the first frame, with 8 bits, the bands overlap from {low:.0f} to {high:.0f} degrees."
         )  # fmt: skip
    assert "Four times as many bits halve a band." in answer


# ---------------------------------------------------------------------------------- retrieval


def retrieved(number: Callable[[Row], float], name: str, code: str, bits: int) -> list[float]:
    return [number(r) for r in rows("retrieval", "retrieval")
            if (r["name"], r["code"], r["bits"]) == (name, code, bits)]  # fmt: skip


def nearest(row: Row) -> float:
    return row["nearest"]


def average(row: Row) -> float:
    return row["map"]


def within(row: Row) -> float:
    return row["within"][2]


def empty(row: Row) -> float:
    return row["empty"][2]


ROUTES = {"twin, real code": ("twin", "real"), "twin, its signs": ("twin", "sign"),
          "ZGR": ("zgr", "sign"), "Gumbel-Rao": ("gumbel_rao", "sign"),
          "straight-through": ("straight_through", "sign"), "principal axes": ("pca", "sign"),
          "hyperplanes": ("lsh", "sign")}  # fmt: skip
LENGTHS = (16, 32, 64)


def found(number: Callable[[Row], float], label: str, bits: int) -> float:
    return fmean(retrieved(number, *ROUTES[label], bits))


def test_the_table_of_retrieval() -> None:
    said = lines_of(containing(PATH, "ROUTES = {"))
    assert said[0].split() == ["nearest", "average"]
    assert numbers(said[1]) == [*LENGTHS, *LENGTHS]
    for line, label in zip(said[2:9], ROUTES, strict=True):
        assert line.startswith(label)
        kinds = [nearest, average] if label != "twin, real code" else [nearest]
        expected = [found(kind, label, bits) for kind in kinds for bits in LENGTHS]
        assert [float(v) for v in re.findall(r"\d\.\d+", line)] == pytest.approx(expected, abs=6e-4)
    assert said[9].split() == ["within", "2", "(empty)", "16", "32", "64", "right,", "if", "any"]
    for line, label in zip(said[10:], list(ROUTES)[1:], strict=True):
        assert line.startswith(label)
        expected = [found(kind, label, bits) for bits in LENGTHS for kind in (within, empty)]
        *got, right = (float(v) for v in re.findall(r"\d\.\d+", line))
        assert right == pytest.approx(expected[4] / (1 - expected[5]), abs=0.0051)
        assert got[::2] == pytest.approx(expected[::2], abs=6e-4)
        assert got[1::2] == pytest.approx(expected[1::2], abs=0.0051)
    seeds = {r["seed"] for r in rows("retrieval", "retrieval")}
    assert seeds == set(range(5))


TRAINED = ["ZGR", "Gumbel-Rao", "twin, its signs", "straight-through"]


def test_what_is_said_of_retrieval() -> None:
    for bits in LENGTHS:
        real = found(nearest, "twin, real code", bits)
        assert real > max(found(nearest, label, bits) for label in list(ROUTES)[1:])
    by = sorted(list(ROUTES)[1:], key=lambda v: -found(nearest, v, 64))
    assert by[:4] == TRAINED
    errors = [se(retrieved(nearest, *ROUTES[label], 64)) for label in TRAINED]
    says("Of the bits, with 64 of them, ZGR's are first, {}, then Gumbel-Rao's and the twin's "
         "signs, {} and {}, which are level, and straight-through's, {}, with errors of {} to "
         "{};".format(
             *(short(found(nearest, label, 64), 3) for label in TRAINED),
             short(min(errors), 3), short(max(errors), 3)))  # fmt: skip
    for pair, level in (((0, 1), False), ((1, 2), True), ((2, 3), False)):
        one, two = (retrieved(nearest, *ROUTES[TRAINED[k]], 64) for k in pair)
        assert (stats.ttest_ind(one, two, equal_var=False).pvalue > 0.05) == level
    for one, two in itertools.combinations(TRAINED, 2):
        pair = [retrieved(nearest, *ROUTES[v], 16) for v in (one, two)]
        assert stats.ttest_ind(*pair, equal_var=False).pvalue > 0.2
    says("with 16 bits the four cannot be told apart.")
    st, zgr = ([found(average, label, bits) for bits in LENGTHS]
               for label in ("straight-through", "ZGR"))  # fmt: skip
    planes = found(average, "hyperplanes", 64)
    says("straight-through's codes fall from {} with 16 bits and {} with 32 to {} with 64, behind "
         "random hyperplanes at {}, where ZGR's have {}, {} and {}.".format(
             *(short(v, 3) for v in (*st, planes, *zgr))))  # fmt: skip
    better = {
        (label, kind.__name__, bits): found(kind, label, bits) > found(kind, "hyperplanes", bits)
        for label in ("ZGR", "straight-through") for kind in (nearest, average, within)
        for bits in LENGTHS
    }  # fmt: skip
    assert [k for k, v in better.items() if not v] == [
        ("straight-through", "average", 64), ("straight-through", "within", 64)]  # fmt: skip
    says("Against hyperplanes training was worth it: for ZGR's codes in every column, for "
         "straight-through's with 16 and 32 bits, and with 64 among the first 100, but neither in "
         "the average precision nor within 2.")  # fmt: skip
    own = {label: found(within, label, 16) for label in list(ROUTES)[1:]}
    assert max(own, key=lambda label: own[label]) == "principal axes"
    says("Principal axes, which take no training either, are ahead of all within 2 at 16 bits.")


def test_what_failed_in_retrieval() -> None:
    own = [round(100 * found(empty, label, 64)) for label in ("ZGR", "straight-through")]
    says("most queries find nothing, {} of 100 with ZGR's codes and {} with "
         "straight-through's.".format(*own))  # fmt: skip
    answered = [100 * (1 - found(empty, v, 64)) for v in ("straight-through", "ZGR")]
    says("The last column is of different queries, {:.0f} of 100 with straight-through's codes and "
         "{:.0f} of 100 with ZGR's, and so does not compare them.".format(*answered))  # fmt: skip
    says("with straight-through's nine in ten.")
    says(f"With 32 bits the same search works: {short(found(within, 'ZGR', 32))} with ZGR's codes, "
         f"at {100 * found(empty, 'ZGR', 32):.0f} empty queries in 100.")  # fmt: skip
    best = {label: [found(within, label, bits) for bits in LENGTHS] for label in TRAINED}
    assert all(max(v) == v[1] and min(v) == v[2] for v in best.values())
    axes_ = [found(within, "principal axes", bits) for bits in LENGTHS]
    assert axes_ == sorted(axes_, reverse=True)
    assert all(axes_[k] < found(within, "hyperplanes", LENGTHS[k]) for k in (1, 2))
    says("| 32 bits | 64 bits; principal axes with more than 16 |")


def test_the_cell_of_equally_many_answers() -> None:
    said = lines_of(containing(PATH, 'for label, radius in (("ZGR", 1)'))
    rights = []
    for line, (label, radius) in zip(said, (("ZGR", 1), ("straight-through", 3)), strict=True):
        share, none = (found(lambda r, key=key, k=radius: r[key][k], label, 64)
                       for key in ("within", "empty"))  # fmt: skip
        assert line.startswith(label)
        expected = [radius, 1 - none, share / (1 - none)]
        assert numbers(line[17:]) == pytest.approx(expected, abs=0.0051)
        rights.append(share / (1 - none))
    assert rights[0] == pytest.approx(rights[1], abs=0.01)
    says("Where as many are answered, they are equally right")


# ------------------------------------------------------------------------ what eight bits find


def both_digits() -> tuple[Any, Any]:
    data = chapters.define(PATH)["data"].load("digits")
    return data.train.labels.numpy(), data.test.labels.numpy()


def signs_of(name: str, pictures: Array) -> Array:
    return np.where(activations(trained()[name], pictures) >= 0, 1, -1)


def planes(n: int, seed: int) -> Callable[[Array], Array]:
    """The library's hyperplanes, on the pictures less their mean."""
    draw = chapters.define(PATH)["hashing"].lsh(64, n, torch.Generator().manual_seed(seed))
    return lambda pictures: draw(torch.from_numpy(pictures - digits()[0].mean(0))).numpy()


def distances(code: Callable[[Array], Array]) -> Array:
    """Of the test pictures from those to train with."""
    train, test = (code(pictures).astype(float) for pictures in digits())
    return (train.shape[1] - test @ train.T).round().astype(int) // 2


@pytest.mark.slow
def test_fig_18_found() -> None:
    (train, test), (y, y_test) = both_digits(), digits()
    queries = [int(np.flatnonzero(test == k)[1]) for k in range(10)]
    (ax,) = still(PATH, "fig-18-found")
    labels = ["query", "exact", "straight-through", "hyperplanes"]
    assert [t.get_text() for t in ax.get_yticklabels()] == labels
    wall = np.asarray(ax.images[0].get_array())
    starts = [0, *(14 + k * (3 * 9 + 5) for k in range(3))]  # of the four blocks
    for tick, start, height in zip(ax.get_yticks(), starts, (8, 26, 26, 26), strict=True):
        assert tick == start + (height - 1) / 2
    for k in range(10):
        assert wall[:8, 9 * k : 9 * k + 8].ravel() == pytest.approx(y_test[queries[k]])
    expected, wrong = set(), {}
    codes = (partial(signs_of, "exact"), partial(signs_of, "straight-through"), planes(8, 0))
    for name, start, code in zip(labels[1:], starts[1:], codes, strict=True):
        first = np.argsort(distances(code)[queries], axis=1, kind="stable")[:, :3]
        for k, rank in itertools.product(range(10), range(3)):
            row, column = start + 9 * rank, 9 * k
            tile = wall[row : row + 8, column : column + 8]
            assert tile.ravel() == pytest.approx(y[first[k, rank]])
            if train[first[k, rank]] != test[queries[k]]:
                expected.add((column + 3.5, row + 3.5))
                wrong[name] = wrong.get(name, 0) + 1
    frames = [tuple(np.array(v.get_xy()) + np.array([v.get_width(), v.get_height()]) / 2)
              for v in ax.patches]  # fmt: skip
    assert len(frames) == len(expected)
    assert np.array(sorted(frames)) == pytest.approx(np.array(sorted(expected)))
    assert ax.get_xlim()[0] < -0.7 and ax.get_xlim()[1] > 89.1  # no frame is cut
    orange = pytest.approx((213 / 255, 94 / 255, 0))
    assert all(v.get_edgecolor()[:3] == orange for v in ax.patches)
    assert wrong["hyperplanes"] > 15 > max(wrong["exact"], wrong["straight-through"])
    assert "Orange frames: another digit." in lean(under(figures(PATH)["fig-18-found"])["caption"])


def first_ten(code: Callable[[Array], Array]) -> float:
    """Precision of the first ten; among equal distances each picture is as likely as another."""
    (train, test), far = both_digits(), distances(code)
    right = test[:, None] == train
    last = np.sort(far, axis=1)[:, 9:10]
    nearer, tied = far < last, far == last
    share = (10 - nearer.sum(1)) / tied.sum(1)
    return float((((right & nearer).sum(1) + share * (right & tied).sum(1)) / 10).mean())


@pytest.mark.slow
def test_ex_18_found() -> None:
    check = answer("check_found")
    aim = first_ten(partial(signs_of, "exact"))
    says(f"The trained bits are right in {100 * aim:.0f} of 100 cases.")
    own = {n: fmean(first_ten(planes(n, seed)) for seed in range(10))
           for n in (8, 16, 32, 38, 40, 42, 44, 48, 64)}  # fmt: skip
    first, counts, shares, _ = lines_of(containing(PATH, "def hyperplanes(n, draws=10)"))
    assert numbers(first) == pytest.approx([aim], abs=6e-4)
    assert numbers(counts) == list(own)
    assert numbers(shares) == pytest.approx(list(own.values()), abs=6e-4)
    assert own[40] < aim < own[44]
    says("Hyperplanes come to that between 40 and 44 bits.")
    # whichever draws a reader takes, the crossing is within the tolerance
    again = {n: [first_ten(planes(n, seed)) for seed in range(100, 130)]
             for n in (check.value - check.tolerance, check.value + check.tolerance)}  # fmt: skip
    low, high = again.values()
    assert fmean(low) + 2 * stdev(low) / 10**0.5 < aim < fmean(high) - 2 * stdev(high) / 10**0.5
    assert [w for w, _ in check.wrong] == [8, 32, 64, 16]
    for n, words in check.wrong:
        assert short(own[n]) in words
    assert own[8] == pytest.approx(aim / 2, rel=0.04)
    assert round(check.value / 8) == 5 and "five times as many bits" in check.right


@pytest.mark.slow
def test_what_is_left_and_the_summary() -> None:
    bound, drawn, signs = (
        fmean(ways("zgr", key)) - fmean(ways("straight_through", key))
        for key in ("loss", "misfit", "sign")
    )
    assert round(signs) == 1
    says(f"With 64 bits and six epochs straight-through's bound is {bound:.1f} nats better than "
         f"ZGR's, its drawn pictures are {-drawn:.0f} nats worse, and its pictures from signs one "
         "nat better.")  # fmt: skip
    for key, other in (
        ("misfit", "straight-through, by"),
        ("sign", "a real code put at its signs, by"),
    ):
        name = "straight_through" if key == "misfit" else "twin"
        by = fmean(ways(name, key)) - fmean(ways("local_expectation", key))
        says(f"| {other} {by:.0f} nats |")
    net = {name: trained()[name] for name in ("exact", "straight-through")}
    cost_of = {name: misfits_of(each) for name, each in net.items()}
    drawn, signs = (b - a for a, b in zip(*cost_of.values(), strict=True))
    assert round(drawn) == 3 and 0.4 < signs < 0.6
    says("Drawn, straight-through's codes cost three nats more than the exact gradient's; at the "
         "signs, half a nat.")  # fmt: skip


# --------------------------------------------------------------------------------- exercises


def answer(name: str) -> Any:
    """The checker of this name."""
    return run(PATH, containing(PATH, f"{name} = exercises."))[name]


CHECKERS = ["check_gap", "check_square", "check_factor", "check_bits", "check_parts",
            "check_found"]  # fmt: skip


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


@pytest.mark.slow
def test_ex_18_gap() -> None:
    check = answer("check_gap")
    found = {name: settled(net, 30) for name, net in trained().items()}
    closed = {name: 1 - last / first for name, (_, first, last, _) in found.items()}
    assert check.value == pytest.approx(closed["straight-through"], abs=check.tolerance / 2)
    whole, first, last, variance = found["straight-through"]
    _, once, after_one, _ = settled(trained()["straight-through"], 1)
    expected = [last / first, (first - last) / whole, closed["exact"], closed["ZGR"],
                1 - after_one / once]  # fmt: skip
    assert [w for w, _ in check.wrong] == pytest.approx(expected, abs=check.tolerance)
    _, *lines, verdict = lines_of(containing(PATH, "def refined("))
    for line, name in zip(lines, ("exact", "straight-through"), strict=True):
        own = found[name][1:]
        assert line.startswith(name) and numbers(line[16:]) == pytest.approx(own, abs=0.0051)
    losses = short(first - last), short(found["exact"][1] - found["exact"][2])
    says(f"Independent bits cost {short(last)} nats with this decoder, or less if the rounds have "
         "ended in a local minimum. The other {} are the encoder's, where that of the exact "
         "gradient loses {}.".format(*losses))  # fmt: skip
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
    t = np.linspace(0, 15, 15_001)

    def approximate(of: Callable[[Array], Array]) -> float:
        """The square where ln cosh t - ln cosh(a/2) - s mu^2 is 1 at most, with mu = t / s."""

        def most(s: float) -> float:
            mu = t[t < s] / s
            return float((np.log(np.cosh(mu * s)) - of(mu) - s * mu**2).max())

        return solved(most, 1)

    expected = [
        approximate(lambda mu: 0 * mu),
        approximate(lambda mu: np.log(np.cosh(np.arctanh(mu)))),
        solved(lambda s: (t - t**2 / s).max(), 1),  # a unit that is decided, and no rate
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
            2 * f * mean / (f * np.arctanh(mu)),
            exact / (2 * f * mean),
        ]
        for k, ((function, _), expected) in enumerate(zip(check.wrong, wrong, strict=True)):
            if k or law is stats.logistic:  # ln F(x a) has another factor at other noises
                assert function(*given).numpy() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(check.cases[0][0], given[0])
    last = mu[-1] / np.arctanh(mu[-1])
    says(f"At $\\mu=0.99$ the factor is {short(last)}, where $\\ln F(xa)$ leaves "
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
