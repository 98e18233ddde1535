"""Chapter 4, the score function: both sides of every formula, and the notebook's own code.

Expected values are sums over states, over tuples of draws or over paths, in numpy; derivatives are
central differences of such sums. sbnlib appears only where the notebook's code is compared with it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

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
    lines,
    printed,
    prose,
    run,
    says_to,
    still,
    under,
)
from chapters import cells as cells_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pins import pin
from scipy import optimize, special

import sbnlib
from sbnlib.experiments import measurement, random_nets

Array = np.ndarray
PATH = chapter(4)
LOGISTIC = ref.RefNoise("Logistic")
NOISES = [ref.RefNoise(n, s) for n, s in zip(ref.NOISES, (1, 1, 1, 2, 0.5, 1), strict=True)]
noises = pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.name)
examples = settings(max_examples=40, deadline=None)
numbers = st.floats(-3, 3).map(lambda v: round(v, 4))


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


def vectors(n: int, elements: st.SearchStrategy = numbers) -> st.SearchStrategy:
    return arrays(float, n, elements=elements)


# A layer of logistic units and the losses of its states: a, L.
layers = st.integers(1, 3).flatmap(lambda n: st.tuples(vectors(n), vectors(2**n)))


def inside(noise: ref.RefNoise, n: int, seed: int) -> Array:
    """Pre-activations where F is smooth, between the ends of a bounded support."""
    return noise.scale * np.random.default_rng(seed).uniform(-0.95, 0.95, n)


def up(noise: ref.RefNoise, a: Array) -> Array:
    return noise.cdf(np.asarray(a, float))


def law(noise: ref.RefNoise, a: Array) -> Array:
    """P(x | a) of all states, from P(x = +1) = F(a) alone."""
    p, x = up(noise, a), ref.states(len(a))
    return np.where(x > 0, p, 1 - p).prod(1)


def scores(noise: ref.RefNoise, a: Array) -> Array:
    """f/p at +1 and -f/(1 - p) at -1, (2^n, n)."""
    p, f, x = up(noise, a), noise.pdf(np.asarray(a, float)), ref.states(len(a))
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.where(x > 0, f / p, -f / (1 - p))
    return np.where(np.where(x > 0, p, 1 - p) > 0, s, 0.0)


def gradient(noise: ref.RefNoise, L: Array, a: Array) -> Array:
    return ref.finite_difference(lambda b: float(law(noise, b) @ L), np.array(a, float))


def flips(noise: ref.RefNoise, L: Array, a: Array) -> Array:
    """E Delta_i L, from the two halves of the table of losses."""
    n, p = len(a), up(noise, a)
    table = L.reshape((2,) * n)
    out = []
    for i in range(n):
        d = np.take(table, 1, i) - np.take(table, 0, i)
        for q in np.delete(p, i):
            d = (1 - q) * d[0] + q * d[1]
        out.append(float(d))
    return np.array(out)


def exact(noise: ref.RefNoise, L: Array, a: Array) -> Array:
    """f E Delta L, the exact gradient of one layer."""
    return noise.pdf(np.asarray(a, float)) * flips(noise, L, a)


def variance(P: Array, rows: Array) -> Array:
    return P @ (rows - P @ rows) ** 2


def given_state(L: Array, P: Array, n: int, i: int, sign: int) -> tuple[float, float]:
    """Mean and variance of the loss given x_i."""
    on = ref.states(n)[:, i] == sign
    w = P[on] / P[on].sum()
    return float(w @ L[on]), float(w @ (L[on] - w @ L[on]) ** 2)


def tuples(P: Array, M: int) -> Iterator[tuple[float, list[int]]]:
    """All samples of M draws, with their probabilities."""
    for k in itertools.product(range(len(P)), repeat=M):
        yield float(np.prod(P[list(k)])), list(k)


def over_tuples(P: Array, M: int, estimate: object) -> tuple[Array, Array]:
    """Exact mean and variance of a function of M draws."""
    weight, value = zip(*[(w, estimate(k)) for w, k in tuples(P, M)], strict=True)
    weight, value = np.array(weight), np.array(value)
    return weight @ value, variance(weight, value)


# ------------------------------------------------------------------ the log-derivative trick


@pin(
    "thm-04-score",
    r"""
    Let $x_1,\dots,x_n$ be independent given $a$ with $P(x_i\mid a)=F(x_ia_i)$, let $F$ be
    differentiable at $a_i$, and let $s_i(x)=x_i\,f(a_i)/F(x_ia_i)$, read as 0 where
    $F(x_ia_i)=0$. For every function $L$ on $\{-1,1\}^n$ that does not itself depend on $a$,
    {eq-04-unbiased} If $0<p_i<1$ for all units, then {eq-04-fisher}
    """,
)
@pytest.mark.parametrize("seed", range(3))
@noises
def test_thm_04_score(noise: ref.RefNoise, seed: int) -> None:
    """Any table of losses, inside a bounded support and beyond its end."""
    L = np.random.default_rng(seed).normal(size=8)
    a = inside(noise, 3, seed)
    assert np.allclose(law(noise, a) * L @ scores(noise, a), gradient(noise, L, a), atol=1e-8)
    beyond = np.array([1.5 * noise.scale, a[1], -1.2 * noise.scale])
    found = (law(noise, beyond) * L) @ scores(noise, beyond)
    assert np.allclose(found, gradient(noise, L, beyond), atol=1e-8)
    x = torch.tensor(ref.states(3))
    ours = sbnlib.estimators.score.score(torch.tensor(beyond), x, getattr(sbnlib, noise.name)(
        noise.scale))  # fmt: skip
    assert np.allclose(ours.numpy(), scores(noise, beyond), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pin(
    "eq-04-unbiased",
    r"""
    \frac{\partial}{\partial a_i}\,\mathbb{E}\,L(x)=\mathbb{E}\bigl[L(x)\,s_i(x)\bigr].
    """,
)
@examples
@given(layer=layers)
def test_eq_04_unbiased(layer: tuple) -> None:
    a, L = layer
    left = gradient(LOGISTIC, L, a)
    assert np.allclose(left, (law(LOGISTIC, a) * L) @ scores(LOGISTIC, a), atol=1e-8)
    assert np.allclose(left, exact(LOGISTIC, L, a), atol=1e-8)


@pin(
    "eq-04-fisher",
    r"""
    \mathbb{E}\,s_i=0,\qquad \mathbb{E}\,s_is_j=0\;\;(i\ne j),\qquad
    \mathbb{E}\,s_i^2=\frac{f(a_i)^2}{p_i(1-p_i)}=:I_i .
    """,
)
@noises
def test_eq_04_fisher(noise: ref.RefNoise) -> None:
    a = inside(noise, 3, 5)
    P, s, p, f = law(noise, a), scores(noise, a), up(noise, a), noise.pdf(a)
    assert np.allclose(P @ s, 0, atol=1e-12)
    information = np.diag(f**2 / (p * (1 - p)))
    assert np.allclose((P[:, None] * s).T @ s, information, rtol=1e-12, atol=1e-12)
    # the scores are derivatives of log P
    for k, x in enumerate(ref.states(3)):
        slope = ref.finite_difference(
            lambda b, x=x: float(np.log(np.where(x > 0, up(noise, b), 1 - up(noise, b))).sum()), a
        )
        assert np.allclose(slope, s[k], rtol=1e-5, atol=1e-6)


def test_the_fisher_information_of_a_logistic_unit_is_f_at_most_a_quarter() -> None:
    a = np.linspace(-6, 6, 49)
    p, f = LOGISTIC.cdf(a), LOGISTIC.pdf(a)
    assert np.allclose(f**2 / (p * (1 - p)), f) and f.max() == 0.25
    assert "$f=p(1-p)$, and $I_i=f(a_i)\\le\\frac14$" in prose(PATH)


def test_conditions_of_the_score_function() -> None:
    """A loss that depends on a; a shared threshold; a kink."""
    a, P, s = np.array([0.4]), law(LOGISTIC, np.array([0.4])), scores(LOGISTIC, np.array([0.4]))
    moving = lambda b: float(law(LOGISTIC, b) @ (ref.states(1)[:, 0] * b[0] ** 2))  # noqa: E731
    L = ref.states(1)[:, 0] * a[0] ** 2
    further = P @ (ref.states(1)[:, 0] * 2 * a[0])
    assert ref.finite_difference(moving, a)[0] == pytest.approx((P * L) @ s[:, 0] + further)

    def shared(b: Array) -> float:  # E x_1 x_2, one threshold, b_1 > b_2
        F = LOGISTIC.cdf
        return float(F(b[1]) + (1 - F(b[0])) - (F(b[0]) - F(b[1])))

    b = np.array([0.9, -0.2])
    mu2 = np.tanh(b[1] / 2)
    product = gradient(LOGISTIC, ref.states(2).prod(1), b)[0]
    assert product == pytest.approx(2 * LOGISTIC.pdf(b[0]) * mu2, abs=1e-8)
    slope = ref.finite_difference(shared, b)[0]
    assert slope == pytest.approx(-2 * LOGISTIC.pdf(b[0]), abs=1e-8)
    assert "for $a_1>a_2$ the state $(-1,1)$ never occurs" in prose(PATH)
    uniform, h = ref.RefNoise("Uniform"), 1e-6
    sides = [(uniform.cdf(1 + d) - uniform.cdf(1.0)) / d for d in (-h, h)]
    assert sides == pytest.approx([0.5, 0], abs=1e-9)


def test_the_table_of_two_units_as_printed() -> None:
    a, L = np.array([0.7, -0.3]), np.array([1.8, 0, 2.6, 2.4])
    text = printed(containing(PATH, "mean of loss x score"))
    g = gradient(LOGISTIC, L, a)
    rows = [[float(v) for v in re.findall(r"-?\d\.\d+", row)] for row in text.splitlines()]
    assert rows[0] == rows[1] == pytest.approx(g, abs=5.1e-5)
    sd = np.sqrt(variance(law(LOGISTIC, a), L[:, None] * scores(LOGISTIC, a)))
    assert rows[2][2:] == pytest.approx(sd / np.sqrt(100_000), abs=5.1e-4)
    assert (np.abs(np.array(rows[2][:2]) - g) < 2 * sd / np.sqrt(100_000) + 5e-4).all()


def test_rare_states_as_printed() -> None:
    rows = printed(containing(PATH, "edge = law.icdf")).splitlines()
    q = np.array([0.1, 0.001, 1e-5])
    for row, name in zip(rows[1:], ("Logistic", "Triangular", "Uniform"), strict=True):
        noise = ref.RefNoise(name)
        f = noise.pdf(noise.icdf(1 - q))
        assert row.split()[0] == name
        found = [float(v) for v in row.split()[1:]]
        assert found == pytest.approx(f**2 / (q * (1 - q)), rel=6e-4)
    edge = 0.99998
    assert 1 - ref.RefNoise("Uniform").cdf(edge) == pytest.approx(1e-5)
    f2 = ref.RefNoise("Uniform").pdf(edge) ** 2 / (1e-5 * (1 - 1e-5))
    assert f2 == pytest.approx(1 / (1 - edge**2))
    assert 1 - (1 - 1e-5) ** 100_000 > 0.5 > 1 - (1 - 1e-5) ** 50_000  # "likely to have been seen"
    for words in ("that of a triangular one tends to 2", "$1/(1-a^2)$ inside the support"):
        assert words in prose(PATH)


# -------------------------------------------------------------------- where the noise is from


@pin(
    "prop-04-moment",
    r"""
    Under the assumptions of {prf:ref}`thm-04-score` with $0<p_i<1$, for every number $\kappa$,
    {eq-04-moment} and this lies between the least and the largest value of $(L-\kappa)^2$, each
    times $\sum_iI_i$.
    """,
)
@pin(
    "eq-04-moment",
    r"""
    \mathbb{E}\,\bigl\|(L-\kappa)\,s\bigr\|^2=\mathbb{E}\Bigl[(L(x)-\kappa)^2\sum_i\frac{f(a_i)^2}{P(x_i)^2}\Bigr],
    """,
)
@examples
@given(layer=layers, kappa=numbers)
def test_prop_04_moment(layer: tuple, kappa: float) -> None:
    a, L = layer
    P, s, x = law(LOGISTIC, a), scores(LOGISTIC, a), ref.states(len(a))
    left = P @ (((L - kappa)[:, None] * s) ** 2).sum(1)
    p, f = up(LOGISTIC, a), LOGISTIC.pdf(a)
    right = P @ ((L - kappa) ** 2 * (f**2 / np.where(x > 0, p, 1 - p) ** 2).sum(1))
    assert left == pytest.approx(right, rel=1e-12)
    total = (f**2 / (p * (1 - p))).sum()
    squares = (L - kappa) ** 2
    assert squares.min() * total <= left + 1e-12
    assert left <= squares.max() * total * (1 + 1e-12) + 1e-12


# ----------------------------------------------------------------------------- baselines


def best(L: Array, a: Array) -> Array:
    """The mean loss of a unit with its two probabilities exchanged."""
    p, P, n = up(LOGISTIC, a), law(LOGISTIC, a), len(a)
    ends = [[given_state(L, P, n, i, sign)[0] for i in range(n)] for sign in (1, -1)]
    return (1 - p) * ends[0] + p * ends[1]


@pin(
    "prop-04-baseline",
    r"""
    Under the assumptions of {prf:ref}`thm-04-score` with $0<p_i<1$ and $f(a_i)>0$, let $\kappa$
    be a random number with finite second moment, independent of $x$ given $a$. Then
    $(L-\kappa)\,s_i$ has the mean $g_i=\partial_{a_i}\mathbb{E}L$, and its variance is
    {eq-04-baseline}
    """,
)
@pin(
    "eq-04-baseline",
    r"""
    \begin{gathered} f(a_i)^2\Bigl[\frac{\operatorname{Var}(L\mid
    x_i{=}1)}{p_i}+\frac{\operatorname{Var}(L\mid
    x_i{=}{-}1)}{1-p_i}\Bigr]+I_i\,\mathbb{E}\,(\kappa-\kappa_i^*)^2,\\
    \kappa_i^*=\frac{\mathbb{E}[L\,s_i^2]}{\mathbb{E}[s_i^2]}=(1-p_i)\,\mathbb{E}[L\mid
    x_i{=}1]+p_i\,\mathbb{E}[L\mid x_i{=}{-}1]. \end{gathered}
    """,
)
@examples
@given(layer=layers, kappas=vectors(3))
def test_prop_04_baseline(layer: tuple, kappas: Array) -> None:
    """A baseline with three values, independent of the draw: the joint law is enumerated."""
    a, L = layer
    n, P, s = len(a), law(LOGISTIC, a), scores(LOGISTIC, a)
    p, f, chances = up(LOGISTIC, a), LOGISTIC.pdf(a), np.array([0.5, 0.2, 0.3])
    joint = np.outer(P, chances).ravel()
    rows = ((L[:, None] - kappas)[..., None] * s[:, None]).reshape(-1, n)
    assert np.allclose(joint @ rows, exact(LOGISTIC, L, a), atol=1e-12)
    spread = np.array([[given_state(L, P, n, i, sign)[1] for i in range(n)] for sign in (1, -1)])
    first = f**2 * (spread[0] / p + spread[1] / (1 - p))
    star = (P * L) @ s**2 / (P @ s**2)
    assert np.allclose(star, best(L, a), rtol=1e-9, atol=1e-9)
    information = f**2 / (p * (1 - p))
    away = ((kappas[:, None] - star) ** 2 * chances[:, None]).sum(0)
    assert np.allclose(variance(joint, rows), first + information * away, rtol=1e-9, atol=1e-10)


def test_a_baseline_has_to_be_independent_of_the_draw() -> None:
    a, L = np.array([0.7, -0.3]), np.array([1.8, 0, 2.6, 2.4])
    P, s = law(LOGISTIC, a), scores(LOGISTIC, a)
    cheat = (L + L.mean()) / 2  # half of its own loss
    mean = P @ ((L - cheat)[:, None] * s)
    assert np.allclose(mean, exact(LOGISTIC, L, a) / 2)
    assert "That $\\kappa$ does not depend on $x_i$ is needed" in prose(PATH)


def test_one_unit_has_no_variance_with_its_best_baseline() -> None:
    for a in (-2.0, 0.3, 3.0):
        L, at = np.array([0.4, 1.7]), np.array([a])
        rows = (L - best(L, at))[:, None] * scores(LOGISTIC, at)
        assert np.allclose(rows, exact(LOGISTIC, L, at), rtol=1e-12)


@pin(
    "prop-04-mean",
    r"""
    Under the assumptions of {prf:ref}`prop-04-baseline` the baseline $\mathbb{E}L$ exceeds the
    best one by $\mathbb{E}L-\kappa_i^*=\mu_i\,\mathbb{E}\Delta_iL$, and the variance with it
    exceeds the least one by {eq-04-mean} Subtracting nothing has a smaller variance than
    subtracting the mean loss if and only if $|\kappa_i^*|<|\mu_i\,\mathbb{E}\Delta_iL|$.
    """,
)
@pin(
    "eq-04-mean",
    r"""
    \frac{4\mu_i^2}{1-\mu_i^2}\;g_i^2 .
    """,
)
@examples
@given(layer=layers)
def test_prop_04_mean(layer: tuple) -> None:
    a, L = layer
    P, s, mu = law(LOGISTIC, a), scores(LOGISTIC, a), np.tanh(a / 2)
    delta, star = flips(LOGISTIC, L, a), best(L, a)
    assert np.allclose(P @ L - star, mu * delta, atol=1e-9)
    with_mean, least, none = (variance(P, (L[:, None] - k) * s) for k in (P @ L, star, 0.0))
    g = exact(LOGISTIC, L, a)
    assert np.allclose(with_mean - least, 4 * mu**2 / (1 - mu**2) * g**2, atol=1e-10)
    gap = np.abs(mu * delta) - np.abs(star)
    clear = np.abs(gap) > 1e-6
    assert ((none < with_mean) == (gap > 0))[clear].all()


def test_the_price_of_the_mean_loss_in_words() -> None:
    assert round(4 * 0.81 / (1 - 0.81)) == 17
    assert "nothing at $\\mu=0$, but 17 at $\\mu=0.9$" in prose(PATH)
    rows = printed(containing(PATH, "bit = torch.tensor")).splitlines()
    a, L = np.array([np.log(9)]), np.array([0.0, 1.0])
    for row, k in zip(rows, (0.0, 0.1, 0.9), strict=True):
        v = variance(law(LOGISTIC, a), (L - k)[:, None] * scores(LOGISTIC, a))[0]
        assert float(row.split()[1][:-1]) == k
        assert float(row.split()[-1]) == pytest.approx(v / exact(LOGISTIC, L, a)[0] ** 2, abs=5e-4)
    assert best(L, a)[0] == pytest.approx(0.1)


def test_the_table_of_baselines_as_printed() -> None:
    L = np.array([1.8, 0, 2.6, 2.4])
    rows = printed(containing(PATH, "for a1 in (0.5, 2.5)")).splitlines()
    ratios = {}
    for k, a1 in ((0, 0.5), (4, 2.5)):
        a = np.array([a1, -0.3])
        P, s = law(LOGISTIC, a), scores(LOGISTIC, a)
        subtracted = {"nothing": np.zeros(2), "mean loss": np.full(2, P @ L), "best": best(L, a)}
        for row, (name, value) in zip(rows[k + 1 : k + 4], subtracted.items(), strict=True):
            v = variance(P, (L[:, None] - value) * s)
            found = [float(t) for t in re.findall(r"\d\.\d+", row)]
            ends = [t.end() for t in re.finditer(r"\d\.\d+", row)][1::2] + [len(row)]
            heads = ("subtracted", "variances", "sum")  # each ends with its last number
            assert ends == [rows[k].index(t) + len(t) for t in heads]
            assert row.strip().startswith(name)
            assert found == pytest.approx([*value, *v, v.sum()], abs=5.1e-4)
            ratios[a1, name] = v
    # "Most of the gain is had with the mean loss"; the first block nearly all; the second not
    gain = {a1: (ratios[a1, "nothing"] - ratios[a1, "mean loss"]).sum()
            / (ratios[a1, "nothing"] - ratios[a1, "best"]).sum() for a1 in (0.5, 2.5)}  # fmt: skip
    assert gain[0.5] > 0.97 and gain[2.5] > 0.9
    assert ratios[2.5, "mean loss"][0] > ratios[2.5, "nothing"][0] > ratios[2.5, "best"][0]


# ------------------------------------------------------------------------- leave-one-out


def loo(L: Array, s: Array) -> Array:
    M = len(L)
    return np.mean([(L[m] - np.delete(L, m).mean()) * s[m] for m in range(M)], 0)


@pin(
    "prop-04-loo",
    r"""
    Under the assumptions of {prf:ref}`thm-04-score` let $x_1,\dots,x_M$ be independent draws of
    the layer, $M\ge2$, with losses $L_m$ and scores $s_m$, and let $\bar L=\frac1M\sum_mL_m$.
    The estimate with leave-one-out baselines is {eq-04-loo} It is unbiased, and it does not
    change when a constant is added to the loss. With the mean of *all* losses as baseline,
    $\frac1M\sum_m(L_m-\bar L)\,s_m=\frac{M-1}M\,\hat g$.
    """,
)
@pin(
    "eq-04-loo",
    r"""
    \begin{gathered} \hat g=\frac1M\sum_m\Bigl(L_m-\frac1{M-1}\sum_{m'\ne m}L_{m'}\Bigr)s_m\\
    =\frac1{M(M-1)}\sum_{m<m'}(L_m-L_{m'})(s_m-s_{m'}). \end{gathered}
    """,
)
@pytest.mark.parametrize("M", [2, 3, 4])
def test_prop_04_loo(M: int) -> None:
    """All M-tuples of draws of two units."""
    rng = np.random.default_rng(M)
    a, L = rng.normal(size=2), rng.normal(size=4)
    P, s = law(LOGISTIC, a), scores(LOGISTIC, a)
    for _, k in tuples(P, M):
        Lk, sk = L[k], s[k]
        pairs = sum(
            (Lk[m] - Lk[o]) * (sk[m] - sk[o]) for m in range(M) for o in range(m + 1, M)
        ) / (M * (M - 1))
        assert np.allclose(loo(Lk, sk), pairs, atol=1e-12)
        assert np.allclose(loo(Lk + 100, sk), pairs, atol=1e-10)
        trap = np.mean((Lk - Lk.mean())[:, None] * sk, 0)
        assert np.allclose(trap, (M - 1) / M * pairs, atol=1e-12)
        covariance = np.cov(Lk, sk.T)[0, 1:]
        assert np.allclose(covariance, pairs, atol=1e-12)
    mean, _ = over_tuples(P, M, lambda k: loo(L[k], s[k]))
    assert np.allclose(mean, exact(LOGISTIC, L, a), atol=1e-12)


def loo_variance(L: Array, a: Array, M: int) -> Array:
    P, s, g = law(LOGISTIC, a), scores(LOGISTIC, a), exact(LOGISTIC, L, a)
    z = L - P @ L
    p, f = up(LOGISTIC, a), LOGISTIC.pdf(a)
    information = f**2 / (p * (1 - p))
    return ((P * z**2) @ s**2 - g**2) / M + (information * (P @ z**2) + g**2) / (M * (M - 1))


@pin(
    "prop-04-loovar",
    r"""
    Under the assumptions of {prf:ref}`prop-04-loo` with $0<p_i<1$ and $f(a_i)>0$, the
    leave-one-out estimate of $g_i$ has the variance {eq-04-loovar} It is less than the variance
    $(\mathbb{E}[L^2s_i^2]-g_i^2)/M$ of the mean of $M$ samples without a baseline if and only
    if {eq-04-when}
    """,
)
@pin(
    "eq-04-loovar",
    r"""
    \frac{\mathbb{E}\bigl[(L-\mathbb{E}L)^2s_i^2\bigr]-g_i^2}{M}+\frac{I_i\operatorname{Var}L+g_i^2}{M(M-1)}
    .
    """,
)
@pytest.mark.parametrize("M", [2, 3, 4])
def test_eq_04_loovar(M: int) -> None:
    for seed in range(4):
        rng = np.random.default_rng(10 * M + seed)
        a, L = rng.normal(size=2), rng.normal(size=4) + seed
        P, s = law(LOGISTIC, a), scores(LOGISTIC, a)
        _, found = over_tuples(P, M, lambda k, L=L, s=s: loo(L[k], s[k]))
        assert np.allclose(found, loo_variance(L, a, M), rtol=1e-10, atol=1e-12)


@pin(
    "eq-04-when",
    r"""
    \mathbb{E}L\,\bigl(2\kappa_i^*-\mathbb{E}L\bigr)>\frac{\operatorname{Var}L+g_i^2/I_i}{M-1} .
    """,
)
@examples
@given(layer=layers, M=st.integers(2, 6), shift=numbers)
def test_eq_04_when(layer: tuple, M: int, shift: float) -> None:
    a, L = layer[0], layer[1] + shift
    P, s, g = law(LOGISTIC, a), scores(LOGISTIC, a), exact(LOGISTIC, L, a)
    plain = ((P * L**2) @ s**2 - g**2) / M
    p, f = up(LOGISTIC, a), LOGISTIC.pdf(a)
    mean = P @ L
    left = mean * (2 * best(L, a) - mean)
    right = (P @ (L - mean) ** 2 + g**2 / (f**2 / (p * (1 - p)))) / (M - 1)
    clear = np.abs(left - right) > 1e-6
    assert ((loo_variance(L, a, M) < plain) == (left > right))[clear].all()


def test_a_loss_with_mean_zero_is_worse_off_at_every_number_of_samples() -> None:
    a, L = np.array([0.6, -1.0]), np.array([1.8, 0, 2.6, 2.4])
    L = L - law(LOGISTIC, a) @ L
    P, s, g = law(LOGISTIC, a), scores(LOGISTIC, a), exact(LOGISTIC, L, a)
    for M in (2, 10, 1000):
        assert (loo_variance(L, a, M) > ((P * L**2) @ s**2 - g**2) / M).all()


@pytest.mark.parametrize("a", [0.5, 1.25, 2.25])
def test_where_leave_one_out_loses_at_every_number_of_samples(a: float) -> None:
    """For a mean loss from 0 to 2 mu; and it never gets below the true mean loss."""
    x, at = ref.states(4), np.full(4, a)
    P, s, mu = law(LOGISTIC, at), scores(LOGISTIC, at), np.tanh(a / 2)
    for m in np.linspace(-0.5, 2.5, 13) + 0.01:
        L = (x - mu).sum(1) / 2 + m
        nothing, known = (variance(P, (L - k)[:, None] * s).sum() for k in (0.0, m))
        assert (known > nothing) == (0 < m < 2 * mu)
        for M in (2, 100):
            ours = loo_variance(L, at, M).sum()
            assert ours > known / M and (not 0 < m < 2 * mu or ours > nothing / M)
    answer = under(containing(PATH, "def baselines"))["answer"]
    assert "for each mean from 0 to $2\\mu$" in " ".join(answer.split())


def test_running_baselines() -> None:
    """Unbiased with the losses before; biased if the draw's own is averaged in first."""
    a, L = np.array([0.7, -0.3]), np.array([1.8, 0, 2.6, 2.4])
    P, s, g = law(LOGISTIC, a), scores(LOGISTIC, a), exact(LOGISTIC, L, a)

    def running(k: list[int], own: bool) -> Array:
        Lk = L[k]
        kappa = [Lk[: m + own].mean() if m + own else 0.0 for m in range(3)]
        return np.mean([(Lk[m] - kappa[m]) * s[k[m]] for m in range(3)], 0)

    assert np.allclose(over_tuples(P, 3, lambda k: running(k, False))[0], g, atol=1e-12)
    assert not np.allclose(over_tuples(P, 3, lambda k: running(k, True))[0], g, atol=1e-2)
    draws = torch.tensor(a).expand(2, 2).clone().requires_grad_()
    shifted = [
        torch.autograd.grad(
            sbnlib.reinforce(
                lambda x, c=c: x.sum(-1) + c, draws, "logistic", num_samples=3, baseline="running",
                generator=torch.Generator().manual_seed(0)).sum(), draws)[0]
        for c in (0.0, 5.0)
    ]  # fmt: skip
    assert not torch.allclose(*shifted)


# ------------------------------------------------------------------------------- networks


def small_net(seed: int) -> tuple[list[Array], list[Array], Array]:
    rng = np.random.default_rng(seed)
    widths = (2, 2, 3, 2)
    W = [rng.normal(size=(m, n)) for n, m in itertools.pairwise(widths)]
    return W, [rng.normal(size=m) for m in widths[1:]], rng.normal(size=2)


def forward(W: list[Array], b: list[Array], v: Array, path: tuple[Array, ...]) -> list[Array]:
    """Pre-activations along a path."""
    return [w @ x + c for w, c, x in zip(W, b, (v, *path[:-1]), strict=True)]


def path_law(W: list[Array], b: list[Array], v: Array, path: tuple[Array, ...]) -> float:
    p = [special.expit(a) for a in forward(W, b, v, path)]
    return float(np.prod([np.where(x > 0, q, 1 - q).prod() for x, q in zip(path, p, strict=True)]))


def all_paths() -> list[tuple[Array, ...]]:
    return list(itertools.product(ref.states(2), ref.states(3), ref.states(2)))


@pin(
    "thm-04-network",
    r"""
    In a layered network let every pre-activation be differentiable in the parameters $\theta$
    at a fixed state below, let $F$ be differentiable at every pre-activation that occurs, and
    let $L$ be any function of the states of all layers that does not itself depend on
    $\theta$. Then {eq-04-path} where $a_{k,i}$ is a function of $\theta$ and of the
    state $x_{k-1}$ that was drawn, and $\nabla_\theta$ holds that state fixed.
    """,
)
@pin(
    "eq-04-path",
    r"""
    \nabla_\theta\,\mathbb{E}L=\mathbb{E}\Bigl[L\sum_{k=1}^K\sum_i\frac{x_{k,i}\,f(a_{k,i})}{P(x_{k,i}\mid
    a_{k,i})}\,\nabla_\theta a_{k,i}\Bigr],
    """,
)
@pytest.mark.parametrize("seed", range(2))
def test_thm_04_network(seed: int) -> None:
    """Three layers, a loss of all their states; every weight and bias by central differences."""
    W, b, v = small_net(seed)
    paths = all_paths()
    L = np.random.default_rng(seed + 9).normal(size=len(paths))
    means_W, means_b = [0 * w for w in W], [0 * c for c in b]
    for path, value in zip(paths, L, strict=True):
        P = path_law(W, b, v, path)
        for k, (a, x) in enumerate(zip(forward(W, b, v, path), path, strict=True)):
            below = (v, *path)[k]
            f, p = special.expit(a) * special.expit(-a), np.where(
                x > 0, special.expit(a), special.expit(-a))  # fmt: skip
            d = value * x * f / p
            means_W[k] += P * np.outer(d, below)
            means_b[k] += P * d

    def mean(k: int, w: Array, c: Array) -> float:
        Ws, bs = [*W], [*b]
        Ws[k], bs[k] = w, c
        return sum(path_law(Ws, bs, v, q) * value for q, value in zip(paths, L, strict=True))

    for k in range(3):
        by_w = ref.finite_difference(lambda w, k=k: mean(k, w, b[k]), W[k])
        by_b = ref.finite_difference(lambda c, k=k: mean(k, W[k], c), b[k])
        assert np.allclose(by_w, means_W[k], atol=1e-7)
        assert np.allclose(by_b, means_b[k], atol=1e-7)


@pin(
    "prop-04-sum",
    r"""
    In a layered network let $d_k=L\,s_k$ be the estimate for the pre-activations of layer $k$,
    where $L$ is a function of $x_K$. Then $\mathbb{E}[L\mid x_k]\,s_k$ has the same mean, and
    its variance is smaller in coordinate $i$ by exactly {eq-04-sum}
    """,
)
@pin(
    "eq-04-sum",
    r"""
    \mathbb{E}\bigl[\operatorname{Var}(L\mid x_k)\,s_{k,i}^2\bigr].
    """,
)
@pytest.mark.parametrize("k", [0, 1])
def test_prop_04_sum(k: int) -> None:
    """Three layers; the layers above layer k + 1 summed, against all paths."""
    W, b, v = small_net(4)
    paths = all_paths()
    top = np.random.default_rng(3).normal(size=4)  # a function of the last state
    key = lambda x: int("".join("1" if t > 0 else "0" for t in x), 2)  # noqa: E731
    P = np.array([path_law(W, b, v, q) for q in paths])
    L = np.array([top[key(q[-1])] for q in paths])
    s = np.array([
        np.where(q[k] > 0, special.expit(-a), -special.expit(a))
        for q in paths for a in [forward(W, b, v, q)[k]]])  # fmt: skip
    state = np.array([key(q[k]) for q in paths])
    mean, spread = np.zeros(len(P)), np.zeros(len(P))
    for j in set(state):
        on = state == j
        w = P[on] / P[on].sum()
        mean[on] = w @ L[on]
        spread[on] = w @ (L[on] - w @ L[on]) ** 2
    drawn, above = (variance(P, u[:, None] * s) for u in (L, mean))
    assert np.allclose(P @ (L[:, None] * s), P @ (mean[:, None] * s), atol=1e-12)
    assert np.allclose(drawn - above, P @ (spread[:, None] * s**2), atol=1e-12)
    assert (drawn > above).all()


def test_summing_with_a_skip_connection_needs_both_states() -> None:
    """The loss x_1 x_2 reads both layers: E[L | x_2] in its place has another mean."""
    F = special.expit
    w = {(x, y): F(0.5 * x) * F(y * (0.3 + 1.2 * x)) for x in (-1, 1) for y in (-1, 1)}
    s2 = {(x, y): y * F(-y * (0.3 + 1.2 * x)) for x, y in w}
    right = sum(P * x * y * s2[x, y] for (x, y), P in w.items())
    wrong = 0.0
    for y in (-1, 1):
        mean = sum(w[x, y] * x * y for x in (-1, 1)) / sum(w[x, y] for x in (-1, 1))
        wrong += sum(w[x, y] * mean * s2[x, y] for x in (-1, 1))
    assert abs(right - wrong) > 0.01


def running() -> tuple[list[Array], list[Array]]:
    W = [np.array([[2.0, 2], [-2, -2], [2, -2]]), np.array([[2.0, 2, -2], [2, 2, 0]])]
    return W, [np.array([-2.0, -2, -2]), np.array([0.0, 2])]


def test_what_summing_saves_in_the_running_network_as_printed() -> None:
    (W1, W2), (b1, b2) = running()
    x1, x2, F = ref.states(3), ref.states(2), special.expit
    totals = np.zeros(4)
    for v in ref.states(2):
        y = v.prod()
        at = np.logaddexp(0, -y * x2.sum(1))
        P1 = F(x1 * (W1 @ v + b1)).prod(1)
        T = F(x2[None] * (x1 @ W2.T + b2)[:, None]).prod(2)
        s = x1 * F(-x1 * (W1 @ v + b1))
        g = (P1 * (T @ at)) @ s
        joint, rows = (P1[:, None] * T).ravel(), (at[None, :, None] * s[:, None]).reshape(-1, 3)
        guess = np.logaddexp(0, -y * np.tanh((x1 @ W2.T + b2) / 2).sum(1))
        totals += [(g**2).sum(), variance(joint, rows).sum(),
                   variance(P1, (T @ at)[:, None] * s).sum(),
                   (((P1 * guess) @ s - g) ** 2).sum()]  # fmt: skip
    text = printed(containing(PATH, "mean_field = 2")).splitlines()[1:]
    found = [float(row.split()[-1]) for row in text]
    assert found == pytest.approx(totals[1:] / totals[0], rel=6e-3)
    assert round((found[0] - found[1]) / found[0], 3) == pytest.approx(1 / 8, abs=0.01)
    assert "makes an eighth of the noise" in prose(PATH) and found[2] > 0


def test_one_path_and_a_draw_for_each_layer_differ_in_the_cosine_alone() -> None:
    rows = printed(containing(PATH, 'mean cosine")')).splitlines()[1:]
    (v, ve, c, ce), (w, we, d, de) = (
        [float(t) for t in re.findall(r"\d+\.\d+", row)] for row in rows
    )
    assert abs(v - w) < 3 * np.hypot(ve, we) + 0.1 and d - c > 10 * np.hypot(ce, de)
    assert abs(v - 56.6) < 0.6  # chapter 3 has the exact one, 57 rounded
    assert "variance was 57 times the squared length" in prose(PATH)


# ------------------------------------------------------------------------------- the floor


@pin(
    "prop-04-width",
    r"""
    Under the assumptions of {prf:ref}`thm-04-score` with $0<p_i<1$, let $L$ be a random number
    with finite second moment whose law given $x$ does not depend on $a$, and let $g\ne0$. For
    every constant $\kappa$, with $m(x)=\mathbb{E}[L\mid x]$, {eq-04-floor} If all units are
    undecided, $p_i=\frac12$, the first fraction is $n$, and equality holds if and only if
    $\kappa=\mathbb{E}L$ and $m$ is affine in $x$.
    """,
)
@pin(
    "eq-04-floor",
    r"""
    \frac{\mathbb{E}\,\|(L-\kappa)\,s\|^2}{\|g\|^2}\;\ge\;\frac{\sum_if(a_i)^2/\max(p_i,1-p_i)^2}{\max_iI_i}\;\cdot\;\frac{\operatorname{Var}L}{\operatorname{Var}m(x)}
    .
    """,
)
@examples
@given(layer=layers, kappa=numbers, noise=vectors(8, st.floats(0, 2)))
def test_prop_04_width(layer: tuple, kappa: float, noise: Array) -> None:
    """A loss m(x) +- noise(x), each sign with probability one half."""
    a, m = layer
    n, spread = len(a), noise[: 2 ** len(a)]
    P, s, p, f = law(LOGISTIC, a), scores(LOGISTIC, a), up(LOGISTIC, a), LOGISTIC.pdf(a)
    g = exact(LOGISTIC, m, a)
    if g @ g < 1e-10:
        return
    second = P @ (((m - kappa) ** 2 + spread**2) * (s**2).sum(1))
    var_m = P @ (m - P @ m) ** 2
    var_L = var_m + P @ spread**2
    information = f**2 / (p * (1 - p))
    floor = (f**2 / np.maximum(p, 1 - p) ** 2).sum() / information.max() * var_L / var_m
    assert second / (g @ g) >= floor * (1 - 1e-9)
    assert (g**2 / information).sum() <= var_m * (1 + 1e-9)  # Bessel, in the proof
    assert floor <= n * var_L / var_m * (1 + 1e-12)


@noises
def test_when_the_floor_is_reached(noise: ref.RefNoise) -> None:
    a, c = np.zeros(3), np.array([0.7, -1.1, 0.4])
    P, s, x = law(noise, a), scores(noise, a), ref.states(3)

    def over(m: Array, kappa: float, spread: float) -> float:
        """The left side of the floor over the right."""
        second = P @ (((m - kappa) ** 2 + spread**2) * (s**2).sum(1))
        g, var = exact(noise, m, a), P @ (m - P @ m) ** 2
        return float(second / (g @ g) / (3 * (var + spread**2) / var))

    affine = x @ c + 2
    assert over(affine, 2.0, 0.0) == pytest.approx(1) == over(affine, 2.0, 1.3)
    assert over(affine, 2.1, 0.0) > 1.001
    assert over(affine + 0.3 * x[:, 0] * x[:, 1], 2.0, 0.0) > 1.001


def test_the_table_of_widths_as_printed() -> None:
    rows = printed(containing(PATH, "softplus, nothing subtracted")).splitlines()[1:]
    for row in rows:
        n, *found = (float(v) for v in row.split())
        x = ref.states(int(n))
        linear = x.sum(1) / np.sqrt(n)
        soft = np.logaddexp(0, linear)
        expected = []
        for L, k in ((linear, 0.0), (soft, soft.mean()), (soft, 0.0)):
            g = (L[:, None] * x).mean(0) / 2
            expected.append(n / 4 * np.mean((L - k) ** 2) / (g @ g))
        assert found == pytest.approx(expected, abs=5.1e-3)
        assert found[0] == n <= found[1] < found[2]


# ----------------------------------------------------------------------------------- depth


def transitions(W: list[Array], v: Array) -> tuple[list[Array], list[Array]]:
    """Laws of the layers and matrices between them, from F alone."""
    x = ref.states(len(v))
    laws = [special.expit(x * (W[0] @ v)).prod(1)]
    moves = []
    for w in W[1:]:
        moves.append(special.expit(x[None] * (x @ w.T)[:, None]).prod(2))
        laws.append(laws[-1] @ moves[-1])
    return laws, moves


def largest_correlation(below: Array, move: Array, above: Array, seed: int = 0) -> float:
    """By alternating conditional expectations, from a random start."""
    v = np.random.default_rng(seed).normal(size=len(above))
    for _ in range(3000):
        u = move @ (v - above @ v)
        u = u / np.sqrt(below @ u**2)
        v = (below * u) @ move / above
        size = np.sqrt(above @ (v - above @ v) ** 2)
        v = v / size
    return float(size)


@pin(
    "prop-04-depth",
    r"""
    In a layered network, at one fixed input, let $L$ be a function of $x_K$, and let $r_k$ be
    the largest correlation that a function of $x_{k-1}$ and a function of $x_k$ can have, for
    $k=2,\dots,K$. Then {eq-04-depth} and $r_k<1$ if every state of layer $k$ has positive
    probability given every state of layer $k-1$ that occurs.
    """,
)
@pin(
    "eq-04-depth",
    r"""
    \operatorname{Var}\mathbb{E}[L\mid
    x_1]\;\le\;\Bigl(\prod_{k=2}^Kr_k^2\Bigr)\operatorname{Var}L ,
    """,
)
@pytest.mark.parametrize("seed", range(4))
def test_prop_04_depth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    W, v = [rng.normal(size=(3, 3)) for _ in range(4)], rng.choice([-1.0, 1.0], 3)
    laws, moves = transitions(W, v)
    L = rng.normal(size=8)
    r2 = [largest_correlation(p, T, q) ** 2 for p, T, q in zip(laws, moves, laws[1:], strict=False)]
    m = L
    for T in reversed(moves):
        m = T @ m
    decided = laws[0] @ (m - laws[0] @ m) ** 2
    whole = laws[-1] @ (L - laws[-1] @ L) ** 2
    assert decided <= np.prod(r2) * whole * (1 + 1e-9)
    assert max(r2) < 1
    # the second singular value that the page names, and the loss for which one step is an equality
    for p, T, q, r in zip(laws, moves, laws[1:], r2, strict=False):
        U, D, V = np.linalg.svd(np.sqrt(p[:, None] / q) * T)
        assert D[0] == pytest.approx(1) and D[1] ** 2 == pytest.approx(r, rel=1e-6)
        tight = V[1] / np.sqrt(q)
        assert p @ (T @ tight) ** 2 == pytest.approx(r * (q @ tight**2), rel=1e-6)


def test_a_copy_loses_nothing() -> None:
    """Without noise a layer that copies has correlation 1, and zeros in its matrix."""
    p = np.array([0.2, 0.3, 0.1, 0.4])
    assert largest_correlation(p, np.eye(4), p) == pytest.approx(1)


def recursion(p: random_nets.Problem) -> Array:
    """What `first_layer` of the page returns, in numpy."""
    W, v = [w.numpy() for w in p.weights], p.start.numpy()
    laws, moves = transitions(W, v)
    x = ref.states(len(v))
    L = np.logaddexp(0, 2 / np.sqrt(len(v)) * (x @ p.signs.numpy()))
    path = np.diag(laws[0])  # (x_1, x_k), the joint law
    r2 = 1.0
    for below, T, above in zip(laws, moves, laws[1:], strict=False):
        path = path @ T
        r2 *= np.linalg.svd(np.sqrt(below[:, None] / above) * T)[1][1] ** 2
    s = np.where(x > 0, special.expit(-W[0] @ v), -special.expit(W[0] @ v))
    mean = path.sum(0) @ L
    g = (path @ L) @ s
    size = (s**2).sum(1)
    m = path @ L / laws[0]
    whole = path.sum(0) @ (L - mean) ** 2
    return np.array([g @ g, (path @ L**2) @ size, (path @ (L - mean) ** 2) @ size, whole,
                     laws[0] @ (m - mean) ** 2, r2 * whole])  # fmt: skip


@pytest.fixture(scope="module")
def by_depth() -> dict[int, Array]:
    return {K: sum(recursion(random_nets.problem(K, 6, k)) for k in range(40)) for K in range(1, 5)}


def test_the_recursion_of_the_page_is_enumeration() -> None:
    first_layer = define(PATH, "noise", "states", "probability", "score", "first_layer")[
        "first_layer"
    ]
    for K, n in ((1, 3), (2, 4), (3, 3)):
        p = random_nets.problem(K, n, 7)
        found = first_layer(p.weights, p.start, p.unit * p.signs).numpy()
        assert np.allclose(found, recursion(p), rtol=1e-10)


def test_depth_as_printed(by_depth: dict[int, Array]) -> None:
    rows = printed(containing(PATH, "def summed")).splitlines()[2:]
    shares, ratios = [], []
    for row in rows:
        K, *found = (float(v) for v in row.split())
        g2, none, about, whole, decided, bound = by_depth[int(K)]
        expected = [none / g2 - 1, about / g2 - 1, 6 * whole / decided - 1, decided / whole,
                    bound / whole]  # fmt: skip
        assert found == pytest.approx(expected, abs=0.051)
        assert found[3:] == pytest.approx(expected[3:], abs=5.1e-4)
        assert abs(found[2] / found[1] - 1) < 0.2  # "right to within a fifth"
        assert decided <= bound * (1 + 1e-12)
        shares.append(decided / whole)
        ratios.append(found[0] / found[1])
    steps = np.array(shares[1:]) / shares[:-1]
    assert (steps < 0.41).all() and (steps > 0.2).all()  # a fifth to two fifths
    assert ratios[0] == pytest.approx(3, abs=0.2) and 1.8 < min(ratios[1:]) <= max(ratios[1:]) < 2.2
    assert prose(PATH).count("two thirds") == 1 and "a fifth and two fifths" in prose(PATH)
    assert "The prediction is right to within a fifth" in prose(PATH)


# ------------------------------------------------------------------------ growth, measured


STORED = PATH.parents[1] / "measurements" / "variance-law.json"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return measurement.read(STORED)["rows"]


def points(rows: list[dict], estimator: str, layers: int) -> Array:
    """Width, relative variance, error; the exact one where both methods were used."""
    own = [r for r in rows if r["part"] == "width"
           and (r["estimator"], r["layers"]) == (estimator, layers)]  # fmt: skip
    found: dict[int, tuple] = {}
    for r in sorted(own, key=lambda r: r["method"] == "exact"):
        found[r["width"]] = (r["width"], r["relative_variance"], r["se"])
    return np.array([found[n] for n in sorted(found)])


def test_one_stored_number_is_repeated_here_and_in_the_page(rows: list[dict]) -> None:
    (row,) = (r for r in rows if r["part"] == "width" and r["estimator"] == "reinforce_mean"
              and (r["layers"], r["width"], r["method"]) == (2, 5, "exact"))  # fmt: skip
    total = sum(recursion(random_nets.problem(2, 5, k)) for k in range(row["nets"]))
    assert total[2] / total[0] - 1 == pytest.approx(row["relative_variance"], rel=1e-9)
    shown = printed(containing(PATH, "stored {there")).splitlines()
    assert f"{row['nets']} networks of two layers of five units" == shown[0]
    assert shown[1].count(f"{row['relative_variance']:.4f}") == 2


def test_the_exponents_as_printed(rows: list[dict]) -> None:
    """Those of the file, and near an unweighted fit of logarithms."""
    shown = printed(containing(PATH, "stored {there")).splitlines()[4:]
    for layers, line in zip((1, 2, 3), shown, strict=True):
        found = [float(v) for v in re.findall(r"-?\d\.\d+", line)]
        for k, name in enumerate(("reinforce", "reinforce_mean", "straight_through")):
            (row,) = (r for r in rows if r["part"] == "fit"
                      and (r["estimator"], r["layers"]) == (name, layers))  # fmt: skip
            assert found[2 * k : 2 * k + 2] == pytest.approx(
                [row["exponent"], row["se"]], abs=5.1e-3
            )
            n, v, _ = points(rows, name, layers).T
            if name != "straight_through":
                slope = np.polyfit(np.log(n[n >= 4]), np.log(v[n >= 4]), 1)[0]
                assert slope == pytest.approx(row["exponent"], abs=4 * row["se"] + 0.02)


def test_what_the_words_say_about_the_growth(rows: list[dict]) -> None:
    words = prose(PATH)
    fits = [r for r in rows if r["part"] == "fit" and r["layers"] <= 3
            and r["estimator"] in ("reinforce", "reinforce_mean")]  # fmt: skip
    assert min(r["exponent"] for r in fits) >= 0.925 and max(r["exponent"] for r in fits) < 1.065
    assert "for up to three layers the fitted exponents lie between 0.93 and 1.06" in words

    def at(name: str, layers: int, width: int = 10) -> Array:
        table = points(rows, name, layers)
        return table[table[:, 0] == width][0]

    deep = [at("reinforce_mean", K) for K in range(1, 6)]
    assert [round(r[1]) for r in deep] == [9, 33, 100, 281, 701] and round(deep[4][2]) == 31
    assert "from 9 for one layer to 33, 100, 281 and 701" in words
    ratios = [f"{after[1] / before[1]:.1f}" for before, after in itertools.pairwise(deep)]
    assert f"by factors of {', '.join(ratios[:3])} and {ratios[3]} from layer to layer" in words
    factors = np.diff(np.log([r[1] for r in deep]))
    assert (np.exp(factors) > 2).all() and (np.exp(factors) < 4).all()
    cheap = [at("straight_through", K)[1] for K in range(1, 6)]
    assert [round(cheap[0], 1), round(cheap[-1], 1)] == [0.2, 1.7]
    one = next(r for r in fits if r["layers"] == 1 and r["estimator"] == "reinforce_mean")
    assert round(one["exponent"], 2) == 0.93 and one["most"] == 10
    first = points(rows, "reinforce", 1)[:, 1] / points(rows, "reinforce_mean", 1)[:, 1]
    assert first[-1] == pytest.approx(3, abs=0.25)  # two thirds taken away
    for layers in (1, 2, 3):
        plain, mean = (
            next(r["exponent"] for r in rows if r["part"] == "fit"
                 and (r["estimator"], r["layers"]) == (k, layers))
            for k in ("reinforce", "reinforce_mean"))  # fmt: skip
        assert abs(plain - mean) < 0.15
    for layers in (2, 3):
        n, v, _ = points(rows, "straight_through", layers).T
        assert v[n >= 4].max() / v[n >= 4].min() < 1.5 and n[-1] == 64
    for layers in (2, 3):  # the thin lines, through width 8
        n, v, se = points(rows, "reinforce_mean", layers).T
        assert n[-1] == 64 and (np.abs(v[n == 8] * n / 8 / v - 1) < 0.2)[n >= 4].all()
        half = points(rows, "reinforce", layers)[:, 1] / v
        assert (half > 1.9).all() and (half < 2.4).all()


@pytest.mark.slow
def test_fig_growth(rows: list[dict]) -> None:
    left, right = still(PATH, "fig-04-growth")
    drawn = lines(left)
    for k, layers in enumerate((1, 2, 3)):
        n, v, _ = points(rows, "reinforce_mean", layers).T
        assert drawn[2 * k] == pytest.approx(np.array([n, v]))
        slope = np.diff(np.log(drawn[2 * k + 1])) / 1
        assert slope[1] == pytest.approx(slope[0])  # proportional to the width
        assert drawn[2 * k + 1][1][n == 8] == pytest.approx(v[n == 8])
    assert drawn[6] == pytest.approx(points(rows, "straight_through", 3).T[:2])
    widest = max(r["width"] for r in rows if r["part"] == "width" and r["method"] == "exact")
    for line, name in zip(
        lines(right), ("reinforce", "reinforce_mean", "straight_through"), strict=True
    ):
        at = [points(rows, name, K)[points(rows, name, K)[:, 0] == widest][0, 1]
              for K in range(1, 6)]  # fmt: skip
        assert line == pytest.approx(np.array([range(1, 6), at]))


# ---------------------------------------------------------------- by hand and the library


@pytest.fixture(scope="module")
def hand() -> dict:
    names = ("noise", "states", "probability", "score", "moments", "exchanged", "leave_one_out",
             "errors")  # fmt: skip
    with as_in_the_book():
        return define(PATH, *names)


@pytest.mark.parametrize("n", [1, 3])
def test_moments_by_hand(hand: dict, n: int) -> None:
    rng = np.random.default_rng(n)
    a, L = rng.normal(size=n), rng.normal(size=2**n)
    ta, tL = torch.tensor(a), torch.tensor(L)
    P, s = law(LOGISTIC, a), scores(LOGISTIC, a)
    assert np.allclose(hand["score"](hand["states"](n), ta).numpy(), s)
    assert np.allclose(hand["exchanged"](tL, ta).numpy(), best(L, a))
    for k in (0.0, 0.7):
        mean, spread = hand["moments"](tL, ta, k)
        assert np.allclose(mean.numpy(), exact(LOGISTIC, L, a))
        assert np.allclose(spread.numpy(), variance(P, (L - k)[:, None] * s))


def test_leave_one_out_by_hand_is_the_library_s(hand: dict) -> None:
    for seed in range(3):
        a = torch.randn(3, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        loss = lambda x: torch.sin(x @ torch.tensor([1.0, 2.0, 3.0])) + 4  # noqa: E731
        value = sbnlib.reinforce(loss, a, "logistic", num_samples=6, baseline="loo",
                                 generator=torch.Generator().manual_seed(seed))  # fmt: skip
        (library,) = torch.autograd.grad(value, a)
        x = sbnlib.sample_sign(a.detach().expand(6, 3), hand["noise"],
                               generator=torch.Generator().manual_seed(seed))  # fmt: skip
        by_hand = hand["leave_one_out"](loss(x), hand["score"](x, a.detach()))
        assert torch.allclose(by_hand, library, rtol=1e-12)
    rows = printed(containing(PATH, 'sample covariance"')).splitlines()
    assert len({row.split("[")[1] for row in rows}) == 1


@pytest.mark.parametrize("M", [2, 3])
def test_errors_by_hand_are_those_of_all_tuples(hand: dict, M: int) -> None:
    rng = np.random.default_rng(M)
    a, L = rng.normal(size=2), rng.normal(size=4) + 1
    P, s, g = law(LOGISTIC, a), scores(LOGISTIC, a), exact(LOGISTIC, L, a)
    ways = {
        "nothing": lambda k: (L[k][:, None] * s[k]).mean(0),
        "leave-one-out": lambda k: loo(L[k], s[k]),
        "mean loss": lambda k: ((L[k] - P @ L)[:, None] * s[k]).mean(0),
        "mean of all": lambda k: ((L[k] - L[k].mean())[:, None] * s[k]).mean(0),
        "best constants": lambda k: ((L[k][:, None] - best(L, a)) * s[k]).mean(0),
    }
    found = hand["errors"](torch.tensor(L), torch.tensor(a), M)
    assert list(found) == list(ways)
    for name, way in ways.items():
        mean, spread = over_tuples(P, M, way)
        error = (spread.sum() + ((mean - g) ** 2).sum()) / (g @ g)
        assert found[name] == pytest.approx(error, rel=1e-10)


def test_all_pairs_as_printed() -> None:
    rows = printed(containing(PATH, "by_pairs")).splitlines()
    a, L = np.array([0.7, -0.3]), np.array([1.8, 0, 2.6, 2.4])
    g = exact(LOGISTIC, L, a)
    assert rows[0].split("[")[1] == rows[1].split("[")[1]
    value = loo_variance(L, a, 2).sum() / (g @ g)
    assert rows[2].count(f"{value:.6f}") == 2


# --------------------------------------------------------------------------------- figures


def heads(axis: object) -> list[tuple[Array, Array]]:
    """Start and end of every arrow."""
    return [(np.array(t.xyann), np.array(t.xy)) for t in axis.texts if t.get_text() == ""]


def test_fig_corners() -> None:
    left, right = still(PATH, "fig-04-corners")
    a, L = np.array([0.7, -0.3]), np.array([1.8, 0, 2.6, 2.4])
    P, s, x = law(LOGISTIC, a), scores(LOGISTIC, a), ref.states(2)
    for axis, weight in ((left, np.ones(4)), (right, L)):
        drawn = heads(axis)
        for k in range(4):
            assert drawn[k][0] == pytest.approx(x[k])
            assert drawn[k][1] - drawn[k][0] == pytest.approx(0.8 * weight[k] * s[k])
        total = 3 * 0.8 * (P * weight) @ s
        assert drawn[4][1] == pytest.approx(total, abs=1e-9)
        areas = np.array([line.get_markersize() ** 2 for line in axis.lines[:4]])
        assert areas / areas.sum() == pytest.approx(P)
    assert heads(left)[4][1] == pytest.approx([0, 0], abs=1e-12)
    losses = [t.get_text() for t in right.texts if t.get_text()]
    assert losses == [f"{v:.1f}" for v in L]


@pytest.mark.parametrize(("C", "a1"), [(0.0, 0.5), (-2.0, 1.5)])
def test_fig_arrows(C: float, a1: float) -> None:
    left, right = curves(PATH, "arrows", C=C, a=a1)
    a, L = np.array([a1, -0.3]), np.array([1.8, 0, 2.6, 2.4])
    P, s = law(LOGISTIC, a), scores(LOGISTIC, a)
    rows = (L + C)[:, None] * s
    tips = np.array([line[:, -1] for line in left if line.shape == (2, 1)])
    assert tips[:4] == pytest.approx(rows)
    assert tips[4] == pytest.approx(exact(LOGISTIC, L, a))
    for c, v in right[0].T[::9]:
        assert v == pytest.approx(variance(P, (L + c)[:, None] * s).sum())
    assert right[1][0] == pytest.approx([-(P @ L)] * 2)
    assert right[2][:, 0] == pytest.approx([C, variance(P, rows).sum()])


def test_what_the_answer_under_the_arrows_says() -> None:
    L = np.array([1.8, 0, 2.6, 2.4])

    def least(a1: float) -> tuple[float, float]:
        a = np.array([a1, -0.3])
        P, w = law(LOGISTIC, a), (scores(LOGISTIC, a) ** 2).sum(1)
        return -(P * L) @ w / (P @ w), -(P @ L)

    answer = under(containing(PATH, "def arrows"))["answer"]
    assert [f"{v:.2f}" for v in least(1.5)] == ["-1.84", "-2.24"]
    assert "$C=-1.84$ and not at $-2.24$" in answer
    assert abs(least(0.0)[0] - least(0.0)[1]) < 0.1


@pytest.mark.parametrize(("mean", "a1"), [(1.0, 0.5), (0.0, 2.25)])
def test_fig_baselines(mean: float, a1: float) -> None:
    left, right = curves(PATH, "baselines", mean=mean, a=a1)
    a = np.full(4, a1)
    P, s = law(LOGISTIC, a), scores(LOGISTIC, a)

    def expected(m: float, M: int) -> list[float]:
        L = (ref.states(4) - np.tanh(a / 2)).sum(1) / 2 + m
        g = exact(LOGISTIC, L, a)
        plain, known, star = (
            variance(P, (L[:, None] - k) * s).sum() / M for k in (0.0, P @ L, best(L, a))
        )
        one = loo_variance(L, a, M).sum()
        trap = ((M - 1) / M) ** 2 * one + (g @ g) / M**2
        return list(np.array([plain, one, known, trap, star]) / (g @ g))

    for k in range(5):
        for j in (0, 3, 6):
            assert left[k][0, j] == j + 1
            assert 10 ** left[k][1, j] == pytest.approx(expected(mean, 2 ** (j + 1))[k], rel=1e-9)
        for j in (0, 13, 30):
            assert 10 ** right[k][1, j] == pytest.approx(expected(right[k][0, j], 4)[k], rel=1e-9)
    assert right[5][0] == pytest.approx([mean, mean])
    legend = [
        t.get_text() for t in axes(PATH, "baselines", mean=mean, a=a1)[0].figure.legends[0].texts
    ]
    assert legend == ["nothing", "leave-one-out", "mean loss", "mean of all", "best constants"]


def test_what_the_answer_under_the_baselines_says() -> None:
    """Leave-one-out loses at every M where E L (2 kappa* - E L) is not positive."""
    answer = under(containing(PATH, "def baselines"))["answer"]
    grid = np.arange(-0.75, 1.51, 0.25)

    def product(m: float, a1: float) -> float:
        a = np.full(4, a1)
        L = (ref.states(4) - np.tanh(a / 2)).sum(1) / 2 + m
        return float(m * (2 * best(L, a)[0] - m))

    assert [m for m in grid if product(m, 0.0) <= 1e-12] == [0]
    loses = [m for m in grid if product(m, 2.25) <= 1e-12]
    assert (min(loses), max(loses)) == (0, 1.5) and "for all means from 0 to 1.5" in answer
    a = np.zeros(4)
    L = ref.states(4).sum(1) / 2 + 0.75
    P, s = law(LOGISTIC, a), scores(LOGISTIC, a)
    assert loo_variance(L, a, 4).sum() < variance(P, L[:, None] * s).sum() / 4
    assert "0.75 is enough for leave-one-out to win with 4 samples" in answer


# ---------------------------------------------------------------------- training on errors


@pytest.mark.slow
def test_expected_errors_and_the_estimates_in_training() -> None:
    """The exact expected number of errors, and the mean of a step against its derivative."""
    W, b = running()
    space = run(PATH, containing(PATH, "def expected"), define(PATH, "noise", "states", "score"))

    def errors(W1: Array, b1: Array, W2: Array, b2: Array) -> float:
        total = 0.0
        for v in ref.states(2):
            for x1 in ref.states(3):
                for x2 in ref.states(2):
                    P = special.expit(x1 * (W1 @ v + b1)).prod()
                    P *= special.expit(x2 * (W2 @ x1 + b2)).prod()
                    total += P * (v.prod() * x2.sum() <= 0) / 4
        return total

    start = (W[0], b[0], W[1], b[1])
    nets = [torch.tensor(p)[None] for p in start]
    assert space["expected"](*nets).item() == pytest.approx(errors(*start), rel=1e-12)
    shown = printed(containing(PATH, "def expected"))
    assert f"{errors(*start):.4f}" in shown.splitlines()[0]
    many = [p.expand(20_000, *p.shape[1:]) for p in nets]
    for loo_or_not in (False, True):
        d = space["step"](*many, loo_or_not, torch.Generator().manual_seed(5))
        for k, each in enumerate(d):

            def at(p: Array, k: int = k) -> float:
                return errors(*[p if j == k else q for j, q in enumerate(start)])

            se = each.std(0).numpy() / np.sqrt(20_000)
            off = each.mean(0).numpy() - ref.finite_difference(at, start[k])
            assert (np.abs(off) < 4.5 * se + 1e-12).all()


def test_training_on_errors_as_printed() -> None:
    rows = printed(containing(PATH, "def expected")).splitlines()[1:]
    found = [[float(v) for v in re.findall(r"\d+\.?\d*", row.split("size")[1])] for row in rows]
    (rate, plain, plain_se), (faster, with_loo, loo_se) = found
    assert plain - with_loo > 10 * np.hypot(plain_se, loo_se)
    assert 0.4 < with_loo / plain < 0.6 and faster == 2 * rate  # "half", "twice as long"
    assert rate > 0.5 and faster < 128  # not at the ends of the grid
    assert "with half the errors" in prose(PATH)


@pytest.mark.slow
def test_fig_without_slopes() -> None:
    (axis,) = still(PATH, "fig-04-errors")
    shown = printed(containing(PATH, "def expected")).splitlines()[1:]
    for line, row in zip(lines(axis), shown, strict=True):
        assert line[0, 0] == 1 and line[0, -1] == 300
        last = float(re.search(r"errors (\d\.\d+)", row)[1])
        assert line[1, -1] == pytest.approx(last, abs=5.1e-5)
        start = float(printed(containing(PATH, "def expected")).splitlines()[0].split()[-1])
        assert line[1, 0] < start + 0.05


# -------------------------------------------------------------------------------- exercises


def test_ex_04_trap() -> None:
    """E[mean of all x score] = g/M, and when the shortened estimate has the smaller error."""
    a, L = np.array([0.7, -0.3]), np.array([1.8, 0, 2.6, 2.4])
    P, s, g = law(LOGISTIC, a), scores(LOGISTIC, a), exact(LOGISTIC, L, a)
    for M in (2, 3):
        mean, _ = over_tuples(P, M, lambda k: L[k].mean() * s[k[0]])
        assert np.allclose(mean, g / M, atol=1e-12)
    for V in (0.1, 0.3, 0.35, 2.0):  # |g| = 1, M = 2: threshold 1/3
        t = 0.5
        assert ((1 - t) ** 2 + t**2 * V < V) == (V > 1 / 3)


def test_ex_04_trap_mistakes() -> None:
    """Where the two errors meet, and where they would with each mistake in one of them."""
    check = checker(PATH, "check_trap")

    def meeting(M: int, bias2: float, factor: float) -> float:
        return optimize.brentq(lambda V: bias2 + factor * V - V, 0, 1e3)

    for M in (2, 7):
        t = (M - 1) / M
        assert meeting(M, (1 - t) ** 2, t**2) == pytest.approx(eval(check.value))
        assert meeting(M, (1 - t) ** 2, t) == pytest.approx(1 / M)
        assert meeting(M, 1 - t, t**2) == pytest.approx(M / (2 * M - 1))
        assert meeting(M, (1 - t) ** 2, 0) == pytest.approx(1 / M**2)
    assert check("1/(M + M - 1)")
    says_to(check, {"1/M": "t^2", "M/(2*M - 1)": "bias is squared", "M^-2": "it saves",
                    "2*M - 1": "upside down"})  # fmt: skip


def test_ex_04_worse() -> None:
    a, L = np.full(2, np.log(9)), np.array([0.01, 0.01, 0.01, 1.0])
    P, s, g = law(LOGISTIC, a), scores(LOGISTIC, a), exact(LOGISTIC, L, a)
    assert (2 * best(L, a) < P @ L).all()
    rows = printed(containing(PATH, "rare = torch.tensor")).splitlines()
    for row in rows:
        M, plain, one = (float(v) for v in re.findall(r"\d+\.?\d*", row))
        v = ((P * L**2) @ s**2 - g**2).sum() / M / (g @ g)
        assert [plain, one] == pytest.approx([v, loo_variance(L, a, int(M)).sum() / (g @ g)],
                                             abs=1e-6)  # fmt: skip
        assert one > plain
    assert abs(P @ L - 0.81) < 0.01 and abs(best(L, a)[0] - 0.09) < 0.02


def test_ex_04_others() -> None:
    """(L - kappa(x_-i)) s_i = f Delta_i L, and any such baseline is unbiased."""
    rng = np.random.default_rng(2)
    a, L = rng.normal(size=3), rng.normal(size=8)
    P, s, x, p = law(LOGISTIC, a), scores(LOGISTIC, a), ref.states(3), up(LOGISTIC, a)
    for i in range(3):
        flip = np.where(np.arange(3) == i, -1, 1)
        other = [int(np.flatnonzero((x == row * flip).all(1))[0]) for row in x]
        high, low = np.where(x[:, i] > 0, L, L[other]), np.where(x[:, i] > 0, L[other], L)
        kappa = (1 - p[i]) * high + p[i] * low
        assert np.allclose((L - kappa) * s[:, i], LOGISTIC.pdf(a[i]) * (high - low))
        anything = np.sin(3 * high + low)
        assert P @ ((L - anything) * s[:, i]) == pytest.approx(exact(LOGISTIC, L, a)[i])
    assert printed(containing(PATH, "rough = torch")).count("True") == 3


def test_ex_04_samples() -> None:
    """64 undecided units, here by the moments of a sum: E L^2 and Var L alone matter."""
    for n, mean in ((3, 3.0), (5, 3.0)):
        x = ref.states(n)
        L = x.sum(1) / np.sqrt(n) + mean
        g = (L[:, None] * x).mean(0) / 2
        assert n / 4 * np.mean((L - mean) ** 2) / (g @ g) == pytest.approx(n)
        assert n / 4 * np.mean(L**2) / (g @ g) == pytest.approx(10 * n)
    assert 4 * (64 - 1) == 252 and 4 * (64 * 10 - 1) == 2556 and 4 * (6400 - 1) == 25596
    assert 10 * 252 + 36 == 2556
    text = printed(containing(PATH, "ok_samples ="))
    assert "relative variance 7.0" in text and "relative variance 79.0" in text


def test_the_checkers_name_what_is_wrong(capsys: pytest.CaptureFixture) -> None:
    """The right answers are written here with exp alone."""
    check = checker(PATH)
    x = torch.tensor(ref.states(3))

    def length2(a: torch.Tensor) -> torch.Tensor:
        p = 1 / (1 + torch.exp(-a))
        return torch.where(x > 0, (1 - p) ** 2, p**2).sum(1)

    def chance(a: torch.Tensor) -> torch.Tensor:
        p = 1 / (1 + torch.exp(-a))
        return torch.where(x > 0, p, 1 - p).prod(1)

    def right(a: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (chance(a) * v * length2(a)).sum() / (chance(a) * length2(a)).sum()

    wrong = {
        "mean loss": lambda a, v: (chance(a) * v).sum(),
        "all units at once": lambda a, v: (chance(-a) * v).sum(),
        "divide by": lambda a, v: (chance(a) * v * length2(a)).sum(),
        "not the best": lambda a, v: right(a, v) + 1,
        "shape": lambda a, v: right(a, v) * torch.ones(3),
    }
    capsys.readouterr()
    assert check(right) is True and "right" in capsys.readouterr().out
    for hint, answer in wrong.items():
        assert check(answer) is False
        assert hint in capsys.readouterr().out
    check_samples = checker(PATH, "check_samples")
    assert check_samples(2556) is True
    for value, hint in ((2560, "nearly"), (252, "with the mean loss"), (639, "equals"),
                        (2304, "plus the variance"), (1278, "1/M")):  # fmt: skip
        capsys.readouterr()
        assert check_samples(value) is False and hint in capsys.readouterr().out


def test_the_common_baseline_is_best() -> None:
    """Against a parabola through three other baselines."""
    common = define(PATH, "noise", "states", "probability", "score", "common_baseline")[
        "common_baseline"
    ]
    rng = np.random.default_rng(6)
    a, L = rng.normal(size=3), rng.normal(size=8)
    P, s = law(LOGISTIC, a), scores(LOGISTIC, a)
    total = [variance(P, (L - k)[:, None] * s).sum() for k in (-1.0, 0.0, 1.0)]
    curve = np.polyfit([-1, 0, 1], total, 2)
    found = common(torch.tensor(a), torch.tensor(L)).item()
    assert found == pytest.approx(-curve[1] / (2 * curve[0]), rel=1e-9)


def test_counts_that_the_page_names() -> None:
    words = prose(PATH)
    source = containing(PATH, "def expected").source
    assert "forty copies for 300 steps of $M=4$ samples" in words and "nine step sizes" in words
    assert "runs=40" in source and "M=4" in source and "torch.arange(-1, 8)" in source
    assert "two draws of two units have sixteen outcomes" in words
    assert len(cells_of(PATH)) > 20
