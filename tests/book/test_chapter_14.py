"""Chapter 14, mirror descent: both sides of every formula, and the notebook's own code.

Expected values are quadrature of scipy's quantile functions, enumeration, numeric minimization and
fine integration of flows; sbnlib appears only where it is compared with the notebook's own code.
"""

from __future__ import annotations

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
    naming,
    printed,
    prose,
    says_to,
    under,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pins import pin
from scipy import integrate, optimize, special, stats

import sbnlib
from sbnlib.nn import BernoulliLinear
from sbnlib.optim import MirrorDescent

Array = np.ndarray
PATH = chapter(14)
NAMES = ("Logistic", "Gaussian", "Cauchy", "Triangular", "Uniform")
LAWS = {n: ref.RefNoise(n).scipy() for n in NAMES}
WIDE = ("Logistic", "Gaussian", "Cauchy")
every_law = pytest.mark.parametrize("name", NAMES)
examples = settings(max_examples=25, deadline=None)
C = np.array([0.5, -0.2])
CORNERS = ref.states(2)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


def icdf(name: str, p: Array | float) -> Array:
    return LAWS[name].ppf(p)


def end(name: str) -> float:
    """The half-width of the support."""
    return float(LAWS[name].support()[1])


def phi(name: str, p: float) -> float:
    """The mirror function, by quadrature of the quantile function."""
    return integrate.quad(lambda s: float(icdf(name, s)), 0.5, p, limit=200)[0]


def divergence(name: str, q: float, p: float) -> float:
    """Phi(q) - Phi(p) - Phi'(p)(q - p): not the integral form of the chapter."""
    return phi(name, q) - phi(name, p) - float(icdf(name, p)) * (q - p)


def argmin(objective: Callable[[float], float]) -> float:
    """The minimum over [0, 1] of a convex function, by bounded search."""
    options = {"xatol": 1e-10}
    found = optimize.minimize_scalar(objective, bounds=(0, 1), method="bounded", options=options)
    return float(found.x)


def value(w: Array) -> Array:
    """The chapter's loss."""
    return w[..., 0] * w[..., 1] + w @ C


def mean_loss(p: Array, table: Array | None = None) -> float:
    """E L by enumeration."""
    w = ref.states(len(p))
    law = np.where(w > 0, p, 1 - np.asarray(p)).prod(1)
    return float(law @ (value(w) if table is None else table))


def flips(table: Array, p: Array) -> Array:
    """E Delta_i L by enumeration: the mean of differences, each over all states."""
    n, w = len(p), ref.states(len(p))
    law, cube = np.where(w > 0, p, 1 - np.asarray(p)).prod(1), table.reshape((2,) * n)
    pairs = [np.take(cube, [1], i) - np.take(cube, [0], i) for i in range(n)]
    return np.array([law @ np.broadcast_to(d, cube.shape).ravel() for d in pairs])


def gradient(p: Array) -> Array:
    return flips(value(CORNERS), p)


def hand(*names: str) -> dict:
    return define(PATH, *names)


# ------------------------------------------------------------------------ the problem, the map


@pin(
    "eq-14-problem",
    r"""
    \begin{gathered} \min_{p\in[0,1]^n}\mathcal{L}(p),\qquad \mathcal{L}(p)=\mathbb{E}\,L(w),\\
    g_i:=\frac{\partial\mathcal{L}}{\partial p_i}=\mathbb{E}\,\Delta_iL(w). \end{gathered}
    """,
)
@pytest.mark.parametrize("seed", range(4))
def test_eq_14_problem(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, p = rng.normal(size=8), rng.uniform(0.05, 0.95, 3)
    differences = ref.finite_difference(lambda q: mean_loss(q, table), p)
    assert np.allclose(flips(table, p), differences, atol=1e-8)
    best = optimize.minimize(
        lambda q: mean_loss(q, table), p, jac=lambda q: flips(table, q), bounds=[(0, 1)] * 3
    )
    assert best.fun >= table.min() - 1e-12  # nothing inside is better than the best corner
    on_corners = [mean_loss((w + 1) / 2, table) for w in ref.states(3)]
    assert min(on_corners) == pytest.approx(table.min(), abs=1e-12)


def test_the_gradient_by_hand() -> None:
    by_hand = hand("own", "gradient")["gradient"]
    for p in np.random.default_rng(0).uniform(size=(5, 2)):
        assert np.allclose(by_hand(torch.tensor(p)).numpy(), gradient(p), atol=1e-14)
    assert "[ 1.4 -1.2]" in printed(containing(PATH, "def gradient"))
    assert np.allclose(gradient(np.array([0.3, 0.6])), [1.4, -1.2])
    assert np.allclose(value(CORNERS), [0.7, -1.7, -0.3, 1.3])


@pytest.mark.slow
@pin(
    "eq-14-map",
    r"""
    \begin{aligned} \Phi(p)&=\sum_i\int_{1/2}^{p_i}F^{-1}(r)\,dr,\\
    D_\Phi(q,p)&=\Phi(q)-\Phi(p)-\langle\nabla\Phi(p),q-p\rangle\\
    &=\sum_i\int_{p_i}^{q_i}\bigl[F^{-1}(r)-F^{-1}(p_i)\bigr]dr . \end{aligned}
    """,
)
@every_law
def test_eq_14_map(name: str) -> None:
    by_hand = hand("nodes", "divergence")["divergence"]
    noise = getattr(sbnlib, name)()
    for p, q in ((0.5, 0.9), (0.3, 0.35), (0.8, 0.1), (0.1, 0.97)):
        tangent = divergence(name, q, p)
        integral = integrate.quad(lambda s, p=p: icdf(name, s) - icdf(name, p), p, q)[0]
        assert integral == pytest.approx(tangent, abs=1e-9)
        found = by_hand(torch.tensor([q]), torch.tensor([p]), noise).item()
        assert found == pytest.approx(tangent, abs=1e-6)  # a kink for Triangular
        slope = (phi(name, p + 1e-5) - phi(name, p - 1e-5)) / 2e-5
        assert slope == pytest.approx(float(icdf(name, p)), abs=1e-6)
        second = (icdf(name, p + 1e-6) - icdf(name, p - 1e-6)) / 2e-6
        if p != 0.5:  # the triangular density has a kink at 0
            assert second == pytest.approx(1 / LAWS[name].pdf(icdf(name, p)), rel=1e-5)


# ------------------------------------------------------------------------------------ the step


def step(name: str, p: float, push: float, eps: float = 1.0) -> float:
    rho = end(name)
    return float(LAWS[name].cdf(np.clip(icdf(name, p) - eps * push, -rho, rho)))


@pytest.mark.slow
@pin(
    "eq-14-step",
    r"""
    p_{t+1}=\operatorname*{arg\,min}_{q\in[0,1]^n}\ \langle
    g,q\rangle+\tfrac1\varepsilon\,D_\Phi(q,p_t)
    """,
)
@every_law
@pytest.mark.parametrize("push", [0.3, -0.9, 2.5, -4.0])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.85])
def test_eq_14_step(name: str, push: float, p: float) -> None:
    found = argmin(lambda q: push * q + divergence(name, q, p) / 0.7)
    assert found == pytest.approx(step(name, p, push, 0.7), abs=2e-6)


@pin(
    "thm-14-step",
    r"""
    Let $F$ be continuous, and strictly increasing on its support $(-\eta_{\max},\eta_{\max})$,
    $0<\eta_{\max}\le\infty$. Let $p_t=F(\eta_t)$ with finite
    $\eta_t\in[-\eta_{\max},\eta_{\max}]$. Then {eq-14-step} has exactly one solution, and it is
    $p_{t+1}=F(\eta_{t+1})$ with $\eta_{t+1}=\Pi(\eta_t-\varepsilon g)$.
    """,
)
@every_law
def test_thm_14_step(name: str) -> None:
    """The derivative of the objective increases, so the minimizer is unique; and from an end."""
    q = np.linspace(0.001, 0.999, 500)
    assert (np.diff(0.7 + icdf(name, q) - icdf(name, 0.4)) > 0).all()
    if np.isfinite(end(name)):  # p_t = 1 with eta = rho
        for push in (0.4, -0.4):
            found = argmin(lambda q, g=push: g * q + phi(name, q) - end(name) * q)
            rho = end(name)
            expected = LAWS[name].cdf(np.clip(rho - push, -rho, rho))
            assert found == pytest.approx(float(expected), abs=2e-5)


def test_thm_14_step_fails_for_a_noise_with_a_hole() -> None:
    def F(eta: float) -> float:  # uniform on [-2, -1] and [1, 2]
        return (np.clip(eta, -2, -1) + 2) / 2 + (np.clip(eta, 1, 2) - 1) / 2

    assert F(-0.9) == F(0.9) == 0.5
    assert F(-0.9 + 0.2) == 0.5 and F(0.9 + 0.2) == pytest.approx(0.55)


@pin(
    "def-14-mirror",
    r"""
    With $g$ from {eq}`eq-14-problem`, a step size $\varepsilon>0$ and the projection $\Pi$ that
    clips to $[-\eta_{\max},\eta_{\max}]$, {eq-14-latent}
    """,
)
@pin("eq-14-latent", r"\eta\leftarrow\Pi\bigl(\eta-\varepsilon\,g\bigr),\qquad p=F(\eta).")
def test_eq_14_latent() -> None:
    by_hand = hand("mirror_step")["mirror_step"]
    for name in NAMES:
        noise, eta = getattr(sbnlib, name)(), torch.tensor([-0.8, 0.1, 0.9])
        g = torch.tensor([2.0, -0.3, -1.5])
        expected = np.clip(eta.numpy() - 0.4 * g.numpy(), -end(name), end(name))
        after = by_hand(eta, g, noise, 0.4)
        assert np.allclose(after.numpy(), expected, atol=1e-15)
        assert np.allclose(noise.cdf(after).numpy(), LAWS[name].cdf(expected), atol=1e-12)
        free = by_hand(eta, g, noise, 0.4, lazy=True).numpy()
        assert np.allclose(free, eta.numpy() - 0.4 * g.numpy(), atol=1e-15)


@every_law
def test_scale_is_step_size(name: str) -> None:
    law, wide, rho = LAWS[name], ref.RefNoise(name, 3.0).scipy(), end(name)
    eta, other = 0.2, 0.6
    for g in (0.5, -0.2, 0.9, -1.0):
        eta = np.clip(eta - 0.1 * g, -rho, rho)
        other = np.clip(other - 0.3 * g, -3 * rho, 3 * rho)
        assert law.cdf(eta) == pytest.approx(wide.cdf(other), abs=1e-14)


def test_the_table_of_minima_is_as_printed() -> None:
    text = printed(containing(PATH, "by the latent weight"))
    for line in text.splitlines()[1:]:
        name, push, search, latent = line.split()
        expected = step(name, 0.4, float(push))
        assert [float(search), float(latent)] == pytest.approx([expected] * 2, abs=6e-5)


# ------------------------------------------------------------------------- identity and factor 2


@pin(
    "eq-14-identity",
    r"""
    \begin{gathered}
    \eta\leftarrow\eta-\alpha\,\partial_wL(w)=\eta-\varepsilon\cdot2\,\partial_wL(w),\\
    \alpha=2\varepsilon . \end{gathered}
    """,
)
def test_eq_14_identity() -> None:
    """Identity ST of the library under torch's SGD(alpha) is the step with eps = alpha/2."""
    eta = torch.nn.Parameter(torch.tensor([0.3, -0.4]))
    optimizer, own = torch.optim.SGD([eta], lr=0.2), np.array([0.3, -0.4])
    rng = np.random.default_rng(1)
    for _ in range(100):
        u = rng.uniform(size=2)
        w = np.where(u < special.expit(own), 1.0, -1.0)
        own = own - 0.1 * 2 * (w[::-1] + C)
        optimizer.zero_grad()
        drawn = sbnlib.identity(eta, torch.tensor(w), sbnlib.Logistic())
        (drawn[0] * drawn[1] + drawn @ torch.tensor(C)).backward()
        optimizer.step()
        assert np.allclose(eta.detach().numpy(), own, atol=1e-12)


@pin(
    "cor-14-identity",
    r"""
    Let the weights be sampled, $w=\operatorname{sign}(\eta-Z)$, let $L$ be affine in each
    weight, and let the support of the noise be all of $\mathbb{R}$, or clip $\eta$ to it at
    every step. Then identity straight-through with the learning rate $\alpha$ is stochastic
    mirror descent {eq}`eq-14-latent` with $\varepsilon=\alpha/2$ and an unbiased estimate of
    $g$.
    """,
)
@pytest.mark.parametrize("n", [1, 3])
def test_cor_14_identity(n: int) -> None:
    """2 dL/dw has the mean g for a multilinear loss, and not for a curved one."""
    p, w = np.random.default_rng(n).uniform(0.1, 0.9, n), ref.states(n)
    law = np.where(w > 0, p, 1 - p).prod(1)
    for make, exact in ((ref.multilinear_loss, True), (ref.quadratic_loss, False)):
        loss = make(n, seed=3)
        off = law @ (2 * loss.gradient(w, 0)) - flips(loss.value(w, 0), p)
        assert (np.abs(off).max() < 1e-12) == exact


def test_the_identity_walk_as_printed() -> None:
    text = printed(containing(PATH, "streams = "))
    walks = re.findall(r"(?:through|hand) +(\[.*\])", text)
    assert len(walks) == 2 and walks[0] == walks[1]


# --------------------------------------------------------------------------------- geometries


@pin(
    "eq-14-kl",
    r"""
    \begin{gathered} D_\Phi(q,p)=\sum_i q_i\ln\frac{q_i}{p_i}+(1-q_i)\ln\frac{1-q_i}{1-p_i},\\
    \frac{p_{t+1}}{1-p_{t+1}}=e^{-\varepsilon g}\,\frac{p_t}{1-p_t}. \end{gathered}
    """,
)
@examples
@given(q=st.floats(0.01, 0.99), p=st.floats(0.01, 0.99), g=st.floats(-3, 3))
def test_eq_14_kl(q: float, p: float, g: float) -> None:
    kl = stats.entropy([q, 1 - q], [p, 1 - p])
    assert divergence("Logistic", q, p) == pytest.approx(kl, abs=1e-7)
    after = step("Logistic", p, g)
    assert after / (1 - after) == pytest.approx(np.exp(-g) * p / (1 - p), rel=1e-9)


@pin(
    "eq-14-euclid",
    r"""
    \begin{gathered} D_\Phi(q,p)=\|q-p\|^2,\\
    p_{t+1}=\Pi_{[0,1]}\bigl(p_t-\tfrac\varepsilon2\,g\bigr). \end{gathered}
    """,
)
@examples
@given(q=st.floats(0, 1), p=st.floats(0, 1), g=st.floats(-3, 3))
def test_eq_14_euclid(q: float, p: float, g: float) -> None:
    assert divergence("Uniform", q, p) == pytest.approx((q - p) ** 2, abs=1e-12)
    assert step("Uniform", p, g, 0.6) == pytest.approx(np.clip(p - 0.3 * g, 0, 1), abs=1e-12)


@pin(
    "prop-14-two",
    r"""
    For logistic noise of scale 1, $\Phi$ is the negative entropy up to a constant, $D_\Phi$ is
    the Kullback–Leibler divergence between Bernoulli distributions, and the step multiplies the
    odds: {eq-14-kl} For uniform noise on $[-1,1]$ the divergence is the squared Euclidean distance,
    and the step is projected gradient descent with half the step size: {eq-14-euclid}
    """,
)
def test_prop_14_two() -> None:
    p = np.linspace(0.05, 0.95, 7)
    entropy = special.xlogy(p, p) + special.xlogy(1 - p, 1 - p)
    off = np.array([phi("Logistic", v) for v in p]) - entropy
    assert np.ptp(off) < 1e-9
    assert special.expit(1.3) / special.expit(-1.3) == pytest.approx(np.exp(1.3))


@pytest.mark.parametrize(("name", "late"), [("Logistic", 12.0), ("Gaussian", 5.0), ("Cauchy", 80)])
def test_the_tail_is_the_learning_curve(name: str, late: float) -> None:
    model = {
        "Logistic": np.exp(-late),
        "Cauchy": 1 / (np.pi * late),
        "Gaussian": stats.norm.pdf(late) / late,
    }[name]
    assert LAWS[name].sf(late) == pytest.approx(model, rel=0.05)


def descend(name: str, start: Array, eps: float, steps: int, c: Array = C) -> Array:
    """Mirror descent with f(0) = 1/4, by scipy."""
    scale = 4 * LAWS[name].pdf(0.0)
    law, rho, path = ref.RefNoise(name, scale).scipy(), scale * end(name), []
    eta = law.ppf(np.array(start))
    for _ in range(steps + 1):
        path.append(law.cdf(eta))
        eta = np.clip(eta - eps * 2 * ((2 * path[-1] - 1)[::-1] + c), -rho, rho)
    return np.array(path)


def test_where_the_three_laws_end_is_as_the_caption_says() -> None:
    ends = {n: descend(n, [0.22, 0.05], 0.1, 140)[-1] for n in ("Logistic", "Cauchy", "Uniform")}
    assert np.allclose(ends["Cauchy"], [1, 0], atol=0.05)
    for name in ("Logistic", "Uniform"):
        assert np.allclose(ends[name], [0, 1], atol=1e-3)
    for name in ("Logistic", "Cauchy", "Uniform"):
        assert np.allclose(descend(name, [0.52, 0.05], 0.1, 140)[-1], [1, 0], atol=0.05)
    assert (descend("Uniform", [0.52, 0.05], 0.1, 140)[-1] == [1, 0]).all()
    scales = {n: float(4 * LAWS[n].pdf(0.0)) for n in ("Logistic", "Cauchy", "Uniform")}
    at_edge = {n: float(LAWS[n].pdf(icdf(n, 0.05)) / s) for n, s in scales.items()}
    assert at_edge["Cauchy"] < at_edge["Logistic"] < at_edge["Uniform"]


def test_the_live_figure_runs_the_same_walk() -> None:
    space = hand("own", "gradient", "mirror_step", "NOISES", "descend")
    for key, name in (("logistic", "Logistic"), ("Cauchy", "Cauchy"), ("uniform", "Uniform")):
        found = space["descend"](space["NOISES"][key], [0.22, 0.05], 0.1, 50)
        assert np.allclose(found, descend(name, [0.22, 0.05], 0.1, 50), atol=1e-10)


def test_uniform_noise_alone_misses_the_better_corner_elsewhere() -> None:
    c = np.array([-0.2, -0.6])
    ends = {n: descend(n, [0.65, 0.45], 0.1, 2000, c)[-1] for n in NAMES if n != "Triangular"}
    losses = {n: (2 * p[0] - 1) * (2 * p[1] - 1) + (2 * p - 1) @ c for n, p in ends.items()}
    assert losses["Uniform"] == pytest.approx(-0.6, abs=1e-9)
    assert all(v < -1.3 for n, v in losses.items() if n != "Uniform")


# ------------------------------------------------------------------------------------- Fisher


@pin(
    "eq-14-fisher",
    r"""
    \begin{gathered}
    \eta_{t+1}=\eta_t-\varepsilon\,\frac{1}{f(\eta_t)}\,\frac{\partial\mathcal{L}}{\partial\eta},\\
    \frac{\text{Fisher metric}}{\text{mirror metric}}=\frac{f(\eta)}{F(\eta)\,F(-\eta)} .
    \end{gathered}
    """,
)
@every_law
def test_eq_14_fisher(name: str) -> None:
    law, eta = LAWS[name], 0.37
    p, f = law.cdf(eta), law.pdf(eta)
    score2 = p * (f / p) ** 2 + (1 - p) * (f / (1 - p)) ** 2  # E (d log P / d eta)^2
    curvature = (icdf(name, p + 1e-6) - icdf(name, p - 1e-6)) / 2e-6  # of Phi, in p
    ratio = score2 / (curvature * f**2)  # both metrics in eta
    assert ratio == pytest.approx(f / (law.cdf(eta) * law.cdf(-eta)), rel=1e-6)
    slope = (3 * law.cdf(eta + 1e-6) - 3 * law.cdf(eta - 1e-6)) / 2e-6  # L = 3 p, g = 3
    assert eta - 0.1 * slope / f == pytest.approx(eta - 0.1 * 3, abs=1e-7)


@pin(
    "thm-14-fisher",
    r"""
    Let $F$ be symmetric and differentiable with $f>0$ on its support. The mirror metric is
    proportional to the Fisher metric at all $p\in(0,1)$ if and only if the noise is logistic,
    with any scale.
    """,
)
def test_thm_14_fisher() -> None:
    eta = np.linspace(-0.9, 0.9, 13)
    for name in ref.NOISES:
        noise = ref.RefNoise(name, 1.3)
        ratio = noise.pdf(eta) / (noise.cdf(eta) * noise.cdf(-eta))
        assert (np.ptp(ratio) < 1e-12) == (name == "Logistic")


def test_the_table_of_metrics_is_as_printed() -> None:
    text = printed(containing(PATH, "mirror metric / Fisher"))
    for name in WIDE:
        row = re.search(rf"{name} +(.*)", text)[1].split()
        eta, law = np.array([0.0, 1, 3]), LAWS[name]
        expected = law.cdf(eta) * law.sf(eta) / law.pdf(eta)
        assert [float(v) for v in row] == pytest.approx(expected, abs=5.1e-4)
    gaussian = LAWS["Gaussian"]
    assert gaussian.cdf(3) * gaussian.sf(3) / gaussian.pdf(3) == pytest.approx(0.30, abs=0.005)


# ---------------------------------------------------------------------------- eager and lazy


@pytest.mark.slow
@pin(
    "eq-14-lazy",
    r"""
    \begin{aligned} \eta_{t+1}&=\eta_t-\varepsilon g_t,\\ p_{t+1}&=F(\eta_{t+1})\\
    &=\operatorname*{arg\,min}_{q\in[0,1]^n}\ \Bigl\langle\sum_{j\le
    t}g_j,\,q\Bigr\rangle+\tfrac1\varepsilon\,D_\Phi(q,p_1). \end{aligned}
    """,
)
@every_law
def test_eq_14_lazy(name: str) -> None:
    pushes = np.random.default_rng(4).normal(size=6)
    eta = float(icdf(name, 0.4))
    for t, g in enumerate(pushes):
        eta -= 0.5 * g
        total = pushes[: t + 1].sum()
        found = argmin(lambda q, s=total: s * q + divergence(name, q, 0.4) / 0.5)
        assert found == pytest.approx(float(LAWS[name].cdf(eta)), abs=2e-6)


@pin(
    "prop-14-lazy",
    r"""
    Under the assumptions of {prf:ref}`thm-14-step`, with finite
    $\eta_1\in[-\eta_{\max},\eta_{\max}]$, both forms of $p_{t+1}$ in {eq}`eq-14-lazy` are
    equal: each step minimizes the linear function that has the sum of all gradients so far for
    its slope, plus the divergence from the start and not from the last iterate; this is called
    dual averaging. If the support of the noise is $\mathbb{R}$, lazy and eager are the same
    algorithm. If it is bounded they agree until a step leaves the support, and need not agree
    after that.
    """,
)
@every_law
def test_prop_14_lazy(name: str) -> None:
    rho, eager, lazy, gaps = end(name), 0.0, 0.0, []
    for g in [1.0] * 30 + [-1.0] * 10:
        eager, lazy = np.clip(eager - 0.1 * g, -rho, rho), lazy - 0.1 * g
        gaps.append(abs(LAWS[name].cdf(eager) - LAWS[name].cdf(lazy)))
    if name in WIDE:
        assert max(gaps) == 0
    else:
        assert max(gaps[:30]) < 1e-12  # p is at the end either way; the latent weights differ
        assert gaps[-1] == pytest.approx(0.5)


def test_eager_and_lazy_as_printed() -> None:
    text = printed(containing(PATH, "[1.0] * 30"))
    assert "eager eta =  0.0, p = 0.5" in text and "lazy  eta = -2.0, p = 0.0" in text
    assert max(0.1 * n for n in (30,)) == pytest.approx(3)  # scale 3 is just wide enough


# -------------------------------------------------------------------------------------- decay


@pytest.mark.slow
@pin("eq-14-decay", r"\eta\leftarrow\Pi\bigl(\eta-\varepsilon\,(g+\lambda\eta)\bigr).")
@every_law
def test_eq_14_decay(name: str) -> None:
    """The gradient of the divergence from 1/2 is eta; and the step with it, by search."""
    for p in (0.2, 0.6, 0.9):
        h = 1e-5
        up, down = divergence(name, p + h, 0.5), divergence(name, p - h, 0.5)
        assert (up - down) / (2 * h) == pytest.approx(float(icdf(name, p)), abs=1e-5)
        for g in (-2.0, 0.8):
            total = g + 0.7 * (up - down) / (2 * h)  # of the loss and of 0.7 times the penalty
            found = argmin(lambda q, t=total, p=p: t * q + divergence(name, q, p) / 0.4)
            eta = float(icdf(name, p))
            moved = np.clip(eta - 0.4 * (g + 0.7 * eta), -end(name), end(name))
            assert found == pytest.approx(float(LAWS[name].cdf(moved)), abs=5e-6)


@pytest.mark.slow
@pin(
    "eq-14-proximal",
    r"""
    \begin{aligned} p_{t+1}&=\operatorname*{arg\,min}_{q\in[0,1]^n}\langle g,q\rangle+\lambda
    D_\Phi(q,\tfrac12)\\ &\hphantom{{}=\operatorname*{arg\,min}_{q\in[0,1]^n}\langle
    g,q\rangle}+\tfrac1\varepsilon D_\Phi(q,p_t),\\ \text{that
    is}\qquad\eta&\leftarrow\Pi\Bigl(\frac{\eta-\varepsilon g}{1+\varepsilon\lambda}\Bigr).
    \end{aligned}
    """,
)
@every_law
@pytest.mark.parametrize("push", [0.6, -3.0])
def test_eq_14_proximal(name: str, push: float) -> None:
    eps, lam, p, rho = 0.8, 0.7, 0.35, end(name)
    found = argmin(
        lambda q: push * q + lam * divergence(name, q, 0.5) + divergence(name, q, p) / eps
    )
    eta = np.clip((icdf(name, p) - eps * push) / (1 + eps * lam), -rho, rho)
    assert found == pytest.approx(float(LAWS[name].cdf(eta)), abs=2e-6)


@pytest.mark.slow
@pin(
    "thm-14-decay",
    r"""
    Let $F$ be as in {prf:ref}`thm-14-step`, with median zero (symmetric noise has it), and
    $\lambda\ge0$. Then $\nabla_pD_\Phi(p,\tfrac12)=\eta$. So mirror descent on
    $\mathcal{L}(p)+\lambda D_\Phi(p,\tfrac12)$ is weight decay of the latent weights, the
    *explicit* step, {eq-14-decay} If only $\mathcal{L}$ is linearized and the penalty is kept
    as it is, the step, called *proximal*, is {eq-14-proximal} The two have the same rest
    points. $D_\Phi(\cdot,\tfrac12)$ is a multiple of the Kullback–Leibler divergence to the
    uniform prior if and only if the noise is logistic.
    """,
)
@every_law
def test_thm_14_decay(name: str) -> None:
    """Both steps rest at the minimum of the penalized loss; KL for logistic noise only."""
    g, lam, rho = 0.9, 0.5, end(name)
    best = argmin(lambda q: g * q + lam * divergence(name, q, 0.5))
    explicit = proximal = 0.2
    for _ in range(2000):
        explicit = np.clip(explicit - 0.3 * (g + lam * explicit), -rho, rho)
        proximal = np.clip((proximal - 0.3 * g) / (1 + 0.3 * lam), -rho, rho)
    assert explicit == pytest.approx(proximal, abs=1e-12)
    assert best == pytest.approx(float(LAWS[name].cdf(explicit)), abs=2e-6)
    p = np.array([0.6, 0.75, 0.9])
    kl = np.array([stats.entropy([v, 1 - v], [0.5, 0.5]) for v in p])
    ratio = np.array([divergence(name, v, 0.5) for v in p]) / kl
    assert (np.ptp(ratio) < 1e-6) == (name == "Logistic")


def test_the_explicit_decay_is_unstable_beyond_two() -> None:
    text = printed(containing(PATH, 'for name in ("explicit"'))
    rows = {k: v.split() for k, v in re.findall(r"steps, (\w+) +(.*)", text)}
    rest = f"{special.expit(-4):.4f}"
    assert rows["proximal"] == [rest] * 4 and rows["explicit"] == [rest] * 3 + ["1.0000"]
    assert rest in text.splitlines()[0]


@pin(
    "eq-14-pull",
    r"""
    \begin{gathered} D_\Phi(p,\tfrac12)=\sum_i\int_0^{\eta_i}z\,f(z)\,dz,\\
    D_\Phi(\text{corner},\tfrac12)=\tfrac n2\,\mathbb{E}|Z| . \end{gathered}
    """,
)
@every_law
def test_eq_14_pull(name: str) -> None:
    law = LAWS[name]
    for eta in (0.3, -0.8):
        integral = integrate.quad(lambda z: z * law.pdf(z), 0, eta)[0]
        assert divergence(name, float(law.cdf(eta)), 0.5) == pytest.approx(integral, abs=1e-8)
    closed = {
        "Uniform": lambda e: (law.cdf(e) - 0.5) ** 2,
        "Gaussian": lambda e: law.pdf(0.0) - law.pdf(e),
        "Cauchy": lambda e: np.log1p(e * e) / (2 * np.pi),
    }
    if name in closed:
        eta, p = 0.7, float(law.cdf(0.7))
        assert divergence(name, p, 0.5) == pytest.approx(float(closed[name](eta)), abs=1e-8)
    if name == "Cauchy":  # no mean: the divergence to the corner grows like a logarithm
        far = [divergence(name, 1 - 10.0**-k, 0.5) for k in (3, 5)]
        assert far[1] - far[0] == pytest.approx(2 * np.log(10) / np.pi, rel=0.01)
    else:
        half = integrate.quad(lambda z: z * law.pdf(z), 0, min(end(name), 60))[0]
        assert phi(name, 1.0) == pytest.approx(half, abs=1e-6)


# ------------------------------------------------------------------------------ the library


@pytest.mark.slow
@every_law
@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_the_step_by_hand_is_the_library_s(name: str, proximal: bool, lazy: bool) -> None:
    by_hand, noise = hand("by_hand")["by_hand"], getattr(sbnlib, name)()
    start = icdf(name, np.array([0.2, 0.5, 0.7]))
    eta, own, outside = torch.nn.Parameter(torch.tensor(start)), start.copy(), start.copy()
    optimizer = MirrorDescent([eta], lr=0.2, noise=noise, kl=0.3, proximal=proximal, lazy=lazy)
    mine, rng = torch.tensor(own), np.random.default_rng(6)
    for _ in range(100):
        g = rng.normal(size=3)
        eta.grad = torch.tensor(g)
        optimizer.step()
        mine = by_hand(mine, eta.grad, noise, 0.2, 0.3, proximal, lazy)
        outside = (outside - 0.2 * g) / 1.06 if proximal else 0.94 * outside - 0.2 * g
        if not lazy:
            outside = np.clip(outside, -end(name), end(name))
        assert np.allclose(eta.detach().numpy(), outside, rtol=0, atol=1e-12)
        assert np.allclose(mine.numpy(), outside, rtol=0, atol=1e-12)


def test_hand_and_library_as_printed() -> None:
    assert "below 1e-12: True" in printed(containing(PATH, "5 noises, 8 settings"))


def test_the_gradient_of_a_bernoulli_layer_is_two_dL_dw() -> None:
    layer = BernoulliLinear(2, 1, bias=False).double()
    w = layer.weight()
    value = w[0, 0] * w[0, 1] + w[0] @ torch.tensor(C)
    value.backward()
    expected = 2 * (w.detach().numpy()[0, ::-1] + C)
    assert np.allclose(layer.eta.grad.numpy()[0], expected)


def test_fading_memory_of_a_lazy_decay() -> None:
    g, lam, eps = np.random.default_rng(2).normal(size=20), 0.4, 0.3
    y = 0.0
    for v in g:
        y = y - eps * (v + lam * y)
    weights = (1 - eps * lam) ** np.arange(19, -1, -1)
    assert y == pytest.approx(-eps * weights @ g, abs=1e-12)


def test_the_teacher_is_found() -> None:
    text = printed(containing(PATH, "teacher = "))
    rows = re.findall(r"^(\w+) +((?:[\d.]+ +){4}[\d.]+) *$", text, re.M)
    counts = np.array([[float(v) for v in row.split()] for _, row in rows])
    assert counts.shape == (3, 5)
    assert (counts[:, -1] < 2).all() and (counts[:, 0] > 45).all()  # "about one in a hundred"
    assert np.ptp(counts, axis=0).max() < 3.5  # "differ by a weight or two"
    gaps = {
        k: (float(v), float(e)) for k, v, e in re.findall(r"^(\w+) +(\S+) \+- (\S+)$", text, re.M)
    }
    assert set(gaps) == {"Cauchy", "uniform"}
    assert gaps["Cauchy"][0] > 3 * gaps["Cauchy"][1]  # "Cauchy noise ... is behind"


# ---------------------------------------------------------------------- the geometry theorem


def proxy(k: float) -> Callable[[Array], Array]:
    return lambda e: np.cosh(e / 2) ** (-2 * k)


def flow(h: Callable[[Array], Array], start: Array, time: float) -> Array:
    """eta after the flow, by scipy to high accuracy."""
    field = lambda t, e: -h(e) * gradient(special.expit(e))  # noqa: E731
    return integrate.solve_ivp(field, (0, time), start, rtol=1e-10, atol=1e-12).y[:, -1]


@pin(
    "eq-14-geometry",
    r"""
    \begin{gathered} \Phi(p)=\sum_i\varphi(p_i),\\
    \varphi''(p)=\frac1{f(\eta)\,h(\eta)}\quad\text{at}\ \eta=F^{-1}(p). \end{gathered}
    """,
)
@pytest.mark.parametrize("k", [0.0, 0.4, 1.0])
def test_eq_14_geometry(k: float) -> None:
    """d/dt phi'(p) = -g along the flow, with phi' integrated from phi'' = 1/(f h)."""
    h, start = proxy(k), np.array([-0.6, -1.5])
    slope = lambda p: 1 / (p * (1 - p) * h(special.logit(p)))  # noqa: E731
    before, after = (special.expit(flow(h, start, t)) for t in (1 - 1e-3, 1 + 1e-3))
    change = [integrate.quad(slope, a, b)[0] for a, b in zip(before, after, strict=True)]
    now = gradient(special.expit(flow(h, start, 1.0)))
    assert np.allclose(np.array(change) / 2e-3, -now, rtol=1e-4)


@pin(
    "eq-14-disguise",
    r"""
    \begin{gathered} \tilde\eta=\int_0^\eta\frac{dz}{h(z)},\\
    P(w=1)=F(\eta)=:\tilde F(\tilde\eta),\\
    \tilde F'(\tilde\eta)=f(\eta)\,h(\eta). \end{gathered}
    """,
)
@pytest.mark.parametrize("k", [0.4, 1.0])
def test_eq_14_disguise(k: float) -> None:
    """Identity ST in the new coordinate, with the density f h, follows the flow of the proxy."""
    h, start = proxy(k), np.array([-0.6, -1.5])
    u_of = lambda e: integrate.quad(lambda z: 1 / h(z), 0, e)[0]  # noqa: E731
    e, d = 0.8, 1e-5
    G_slope = (special.expit(e + d) - special.expit(e - d)) / (u_of(e + d) - u_of(e - d))
    assert G_slope == pytest.approx(LAWS["Logistic"].pdf(e) * h(e), rel=1e-8)
    if k == 1.0:  # scaled by f(0) = 1/4: u = 1/4 (2 eta + 2 sinh eta)
        assert u_of(e) == pytest.approx((2 * e + 2 * np.sinh(e)) / 4, rel=1e-10)

    def field(t: float, u: Array) -> Array:
        eta = [optimize.brentq(lambda e, v=v: u_of(e) - v, -20, 20) for v in u]
        return -gradient(special.expit(np.array(eta)))

    u = integrate.solve_ivp(field, (0, 1), [u_of(v) for v in start], rtol=1e-6).y[:, -1]
    assert np.allclose(u, [u_of(v) for v in flow(h, start, 1.0)], atol=1e-4)


def euler(h: Callable[[Array], Array], start: Array, time: float, eps: float) -> float:
    """The largest distance in p of the proxy steps from the flow."""
    eta, worst = start, 0.0
    grid = np.arange(round(time / eps) + 1) * eps
    field = lambda t, e: -h(e) * gradient(special.expit(e))  # noqa: E731
    exact = integrate.solve_ivp(field, (0, time + 1), start, t_eval=grid, rtol=1e-10, atol=1e-12).y
    for true in exact.T:
        worst = max(worst, np.abs(special.expit(eta) - special.expit(true)).max())
        eta = eta - eps * h(eta) * gradient(special.expit(eta))
    return worst


@pin(
    "thm-14-geometry",
    r"""
    Let the noise have the support $\mathbb{R}$ and a continuous density $f>0$; let $f$ and
    $h>0$ be bounded, and $h$ Lipschitz. Let $\Phi$ be a function on $(0,1)^n$, unique up to
    an affine function, with {eq-14-geometry} 1. *Flow.* Along $\dot\eta=-h(\eta)\,g(F(\eta))$ the
    probabilities follow the mirror flow of $\Phi$: $\frac{d}{dt}\nabla\Phi(p)=-g(p)$. 2.
    *Steps.* For every $T$ there is a constant $C$ such that the steps
    $\eta\leftarrow\eta-\varepsilon h(\eta)g$ with the exact $g$, and the mirror descent steps
    of $\Phi$ with the same $\varepsilon$ from the same start, both stay within $C\varepsilon$
    of the flow up to time $\varepsilon t\le T$. 3. *Sampled gradients.* If $\hat g=g+e$ with
    $\mathbb{E}[e\mid\text{past}]=0$ and $\|e\|$ bounded, the largest distance from the flow
    up to time $T$ has a root mean square of at most $C\sqrt\varepsilon$.
    """,
)
@pytest.mark.parametrize("k", [0.0, 0.5, 1.0])
def test_thm_14_geometry(k: float) -> None:
    gaps = [euler(proxy(k), np.array([-0.6, -1.5]), 3.0, eps) for eps in (0.1, 0.05, 0.025)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.15)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


def test_thm_14_geometry_with_sampled_gradients() -> None:
    """Root mean square of the largest distance: halved where the step is a quarter."""
    rng, h, start = np.random.default_rng(0), proxy(1.0), np.array([-0.6, -1.5])
    field = lambda t, e: -h(e) * gradient(special.expit(e))  # noqa: E731
    rms = []
    for eps in (0.08, 0.02, 0.005):
        grid = np.arange(round(3 / eps) + 1) * eps
        exact = integrate.solve_ivp(field, (0, 4), start, t_eval=grid, rtol=1e-9, atol=1e-11).y
        eta, worst = np.tile(start, (400, 1)), np.zeros(400)
        for true in exact.T:
            p = special.expit(eta)
            worst = np.maximum(worst, np.abs(p - special.expit(true)).max(1))
            w = np.where(rng.uniform(size=p.shape) < p, 1.0, -1.0)
            eta = eta - eps * h(eta) * 2 * (w[:, ::-1] + C)
        rms.append(np.sqrt((worst**2).mean()))
    assert 1.6 < rms[0] / rms[1] < 2.4 and 1.6 < rms[1] / rms[2] < 2.4


def test_the_gap_falls_with_the_step_as_printed() -> None:
    text = printed(containing(PATH, "def gap"))
    gaps = [float(v) for v in re.findall(r"\d\.\d\de-\d\d", text)]
    assert len(gaps) == 3
    assert np.allclose(np.array(gaps[:-1]) / gaps[1:], 10, rtol=0.1)
    assert hand("own", "newton", "field", "gap")["gap"](0.4) == pytest.approx(gaps[0], rel=5e-3)


def test_thm_14_geometry_needs_a_positive_proxy() -> None:
    text = printed(containing(PATH, "frozen = "))
    assert text.count(f"{special.expit(1.1):.3f}") == 2
    assert special.expit([-1, 1]) == pytest.approx([0.27, 0.73], abs=0.002)


def test_thm_14_geometry_needs_a_continuous_density() -> None:
    """Half logistic, half uniform: the speed f h of p jumps where the density does."""
    F = lambda e: (special.expit(e) + np.clip((1 + e) / 2, 0, 1)) / 2  # noqa: E731
    left, right = (F(1.0) - F(1 - 1e-6)) / 1e-6, (F(1 + 1e-6) - F(1.0)) / 1e-6
    assert left - right == pytest.approx(0.25, abs=1e-5)


def test_the_paths_of_the_proxies_end_as_the_caption_says() -> None:
    start = special.logit(np.array([0.22, 0.05]))
    ends = {k: special.expit(flow(proxy(k), start, 24.0)) for k in (0.0, 1.0)}
    assert np.allclose(ends[0.0], [0, 1], atol=0.02)
    assert np.allclose(ends[1.0], [1, 0], atol=0.02)


# -------------------------------------------------------------------------------- convergence


def regrets(name: str, g: Array, eps: float, start: Array) -> tuple[Array, Array]:
    """sum <g_t, p_t> of the eager and the lazy iterates."""
    rho, totals = end(name), []
    for lazy in (False, True):
        eta, total = icdf(name, start), 0.0
        for row in g:
            total += row @ LAWS[name].cdf(eta)
            eta = eta - eps * row if lazy else np.clip(eta - eps * row, -rho, rho)
        totals.append(total)
    return totals[0], totals[1]


@pytest.mark.slow
@pin(
    "eq-14-regret",
    r"""
    \begin{aligned} &\sum_{t=1}^T\langle g_t,p_t-q\rangle\\ &\qquad\le\
    \frac{D_\Phi(q,p_1)}{\varepsilon}+\frac{\varepsilon f_{\max}}2\sum_{t=1}^T\|g_t\|^2 .
    \end{aligned}
    """,
)
@every_law
@pytest.mark.parametrize("seed", range(6))
def test_eq_14_regret(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(60, 3)) + rng.normal(size=3)
    eps, p1 = rng.uniform(0.05, 0.8), rng.uniform(0.1, 0.9, 3)
    f_max = float(LAWS[name].pdf(0.0))
    q = rng.uniform(0.02, 0.98, 3) if name == "Cauchy" else (g.sum(0) < 0).astype(float)
    far = sum(divergence(name, a, b) for a, b in zip(q, p1, strict=True))
    bound = far / eps + eps * f_max / 2 * (g**2).sum()
    for total in regrets(name, g, eps, p1):
        assert total - g.sum(0) @ q <= bound + 1e-9


@pytest.mark.parametrize("g", [0.7, -1.3])
def test_the_bound_on_the_regret_is_attained(g: float) -> None:
    """One step with uniform noise against q = p - eps f g, inside: both terms are needed."""
    eps, f, p = 0.3, 0.5, 0.45
    q = p - eps * f * g
    right = divergence("Uniform", q, p) / eps + eps * f / 2 * g**2
    assert g * (p - q) == pytest.approx(right, abs=1e-12)


@pin(
    "thm-14-regret",
    r"""
    Let $F$ be as in {prf:ref}`thm-14-step`, with a density bounded by $f_{\max}$. Let
    $g_1,\dots,g_T$ be any vectors, also such that $g_t$ depends on $p_1,\dots,p_t$. Both the
    eager {eq}`eq-14-latent` and the lazy {eq}`eq-14-lazy` iterates satisfy, for every
    $q\in[0,1]^n$, {eq-14-regret}
    """,
)
def test_thm_14_regret() -> None:
    """Gradients that answer the iterates: g_t = sign(p_t - q), the worst that can be done."""
    for name in NAMES:
        rho, q, eps = end(name), 0.8, 0.1
        for lazy in (False, True):
            eta, total = 0.0, 0.0
            for _ in range(300):
                p = float(LAWS[name].cdf(eta))
                g = 1.0 if p > q else -1.0
                total += g * (p - q)
                eta = eta - eps * g if lazy else float(np.clip(eta - eps * g, -rho, rho))
            bound = divergence(name, q, 0.5) / eps + 150 * eps * float(LAWS[name].pdf(0.0))
            assert 0 < total <= bound


def test_the_table_of_regrets_is_as_printed() -> None:
    text = printed(containing(PATH, "regret against q = 1"))
    for name in ("Logistic", "Gaussian", "Triangular", "Uniform"):
        eager, lazy, bound = (float(v) for v in re.search(rf"{name} +(.*)", text)[1].split())
        assert max(eager, lazy) < bound < 3 * min(eager, lazy)
    pushes = 2 * torch.rand(200, generator=torch.Generator().manual_seed(5)).numpy() - 1.2
    found = regrets("Uniform", pushes[:, None], 0.1, np.array([0.5]))
    row = [float(v) for v in re.search(r"Uniform +(.*)", text)[1].split()]
    assert [v - pushes.sum() for v in found] == pytest.approx(row[:2], abs=6e-3)
    assert 0.25 / 0.1 + 0.05 * 0.5 * (pushes**2).sum() == pytest.approx(row[2], abs=6e-3)


def test_what_a_decision_costs_as_printed() -> None:
    text = printed(containing(PATH, "eps x regret"))
    for name in ("Logistic", "Gaussian", "Uniform", "Cauchy"):
        row = [float(v) for v in re.search(rf"{name} +(.*)", text)[1].split()]
        tail = LAWS[name].sf(0.1 * np.arange(100_000))
        cost = [0.1 * tail[:T].sum() for T in (100, 1000, 10_000, 100_000)]
        assert row[1:] == pytest.approx(cost, abs=6e-4)
        if name == "Cauchy":
            assert row[0] == np.inf and np.diff(row[1:]) == pytest.approx(
                [np.log(10) / np.pi] * 3, rel=0.01
            )
        else:
            assert row[0] == pytest.approx(LAWS[name].expect(abs) / 2, abs=6e-4)
            assert row[-1] - row[0] == pytest.approx(0.025, abs=1e-3)  # half of the first term


def hessian(table: Array, p: Array) -> Array:
    """Of the mean loss, column by column: its gradient is affine in each coordinate."""
    columns = []
    for j in range(len(p)):
        low, up = np.array(p), np.array(p)
        low[j], up[j] = 0, 1
        columns.append(flips(table, up) - flips(table, low))
    return np.stack(columns, axis=1)


def largest_curvature(table: Array) -> float:
    """beta: the norm is convex and the Hessian affine in each p_i, so a corner attains it."""
    corners = (ref.states(int(np.log2(len(table)))) + 1) / 2
    return max(float(np.linalg.norm(hessian(table, p), 2)) for p in corners)


def moved(name: str, eta: Array, g: Array, eps: float, lazy: bool) -> Array:
    return eta - eps * g if lazy else np.clip(eta - eps * g, -end(name), end(name))


@pytest.mark.slow
@pin(
    "eq-14-descent",
    r"""
    \begin{aligned} \mathcal{L}(p_{t+1})&\le\mathcal{L}(p_t)\\
    &\quad-\Bigl(\tfrac1\varepsilon-\tfrac{\beta
    f_{\max}}2\Bigr)\langle\eta_{t+1}-\eta_t,\,p_{t+1}-p_t\rangle,\\ \|p_{t+1}-p_t\|^2&\le
    f_{\max}\,\langle\eta_{t+1}-\eta_t,\,p_{t+1}-p_t\rangle, \end{aligned}
    """,
)
@every_law
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("part", [0.4, 0.995])
def test_eq_14_descent(name: str, lazy: bool, part: float) -> None:
    """Both lines along walks on random losses of three weights, at a part of the bound."""
    law, rng = LAWS[name], np.random.default_rng(8)
    f_max = float(law.pdf(0.0))
    for _ in range(6):
        table = rng.normal(size=8) ** int(rng.integers(1, 4))
        beta, eta = largest_curvature(table), law.ppf(rng.uniform(0.02, 0.98, 3))
        eps = part * 2 / (beta * f_max)
        for _ in range(25):
            p = law.cdf(eta)
            after = moved(name, eta, flips(table, p), eps, lazy)
            d, e = law.cdf(after) - p, after - eta
            promised = (1 / eps - beta * f_max / 2) * (e @ d)
            assert mean_loss(p + d, table) <= mean_loss(p, table) - promised + 1e-12 * beta
            assert d @ d <= f_max * (e @ d) + 1e-14
            eta = after


@pytest.mark.parametrize("part", [0.4, 0.995, 1.3])
def test_the_two_lines_of_the_descent_are_attained(part: float) -> None:
    """Equality with uniform noise on the diagonal of a saddle, where nothing is clipped."""
    beta, f, m = 4.0, 0.5, 0.07  # L = w1 w2 = beta m^2 at p = 1/2 + m
    eps = part * 2 / (beta * f)
    e = -eps * beta * m * np.ones(2)
    d = np.array([step("Uniform", 0.5 + m, beta * m, eps)] * 2) - 0.5 - m
    change = beta * ((m + d[0]) ** 2 - m**2)
    assert change == pytest.approx(-(1 / eps - beta * f / 2) * (e @ d), abs=1e-12)
    assert d @ d == pytest.approx(f * (e @ d), abs=1e-12)


@pytest.mark.slow
@pin(
    "thm-14-descent",
    r"""
    Let $F$ be nondecreasing and Lipschitz with the constant $f_{\max}$, as it is if $Z$ has a
    density bounded by $f_{\max}$; and if $\eta$ is clipped, let $F(-\eta_{\max})=0$ and
    $F(\eta_{\max})=1$. Let $\beta$ be the largest spectral norm of the Hessian of $\mathcal{L}$
    in $p$ over $[0,1]^n$; $\mathcal{L}$ need not be convex. With the exact gradient and
    $0<\varepsilon<2/(\beta f_{\max})$ both the eager {eq}`eq-14-latent` and the lazy
    {eq}`eq-14-lazy` iterates satisfy {eq-14-descent} so the loss falls at every step that
    changes $p$. The bound on $\varepsilon$ is tight: for every noise with a density that is
    continuous at its maximum $f_{\max}$, and every $\varepsilon>2/(\beta f_{\max})$, there is a
    loss of two weights and a start from which the first step raises it.
    """,
)
@every_law
@pytest.mark.parametrize("lazy", [False, True])
def test_thm_14_descent(name: str, lazy: bool) -> None:
    """A search for a rise over losses and starts finds none below; a step beyond it rises."""
    law = LAWS[name]
    f_max, width = float(law.pdf(0.0)), min(end(name) * (1.3 if lazy else 1), 4.0)

    def change(z: Array, part: float) -> float:
        table, eta = z[:4], width * z[4:]
        beta = abs(table[0] - table[1] - table[2] + table[3])  # the one second difference
        if beta < 1e-6:
            return 0.0
        eps, p = part * 2 / (beta * f_max), law.cdf(eta)
        after = law.cdf(moved(name, eta, flips(table, p), eps, lazy))
        return (mean_loss(after, table) - mean_loss(p, table)) / beta

    options = {"bounds": [(-1, 1)] * 6, "maxiter": 12, "popsize": 8, "rng": 1, "polish": False}
    found = optimize.differential_evolution(lambda z: -change(z, 0.995), **options)
    assert -found.fun <= 1e-12
    saddle = np.array([1.0, -1, -1, 1])
    near = np.concatenate([saddle, np.full(2, 1e-3 / width)])
    assert change(near, 0.995) < 0 < change(near, 1.005)


def test_the_descent_needs_no_inverse() -> None:
    """A noise with a hole has no mirror map; its lazy steps descend all the same."""
    F = lambda eta: (np.clip(eta, -2, -1) + np.clip(eta, 1, 2) + 1) / 2 + 0.0  # noqa: E731
    assert np.allclose(F(np.array([-3, -1.5, 0.3, 1.5, 3])), [0, 0.25, 0.5, 0.75, 1])
    for seed in range(40):
        rng = np.random.default_rng(seed)
        table, eta = rng.normal(size=4), rng.uniform(-2.5, 2.5, 2)
        eps = 0.995 * 2 / (largest_curvature(table) * 0.5)
        for _ in range(20):
            after = eta - eps * flips(table, F(eta))
            assert mean_loss(F(after), table) <= mean_loss(F(eta), table) + 1e-12
            eta = after


def test_beta_of_the_chapter_s_loss_and_in_the_means() -> None:
    for table in (value(CORNERS), CORNERS.prod(1)):
        assert largest_curvature(table) == pytest.approx(4, abs=1e-12)
        h, p = 1e-4, np.array([0.3, 0.6])
        e = h * np.eye(2)
        numeric = [(flips(table, p + k) - flips(table, p - k)) / (2 * h) for k in e]
        assert np.allclose(numeric, hessian(table, p), atol=1e-7)


@pytest.mark.slow
@every_law
def test_what_follows_for_the_walk_as_a_whole(name: str) -> None:
    """The smallest step; and below half of the bound a fall of D(p_t, p_{t+1}) / eps."""
    f_max, start = float(LAWS[name].pdf(0.0)), np.array([0.3, 0.35])
    for part in (0.5, 0.9):
        eps, eta = part * 2 / (4 * f_max), icdf(name, start)
        steps = []
        for _ in range(12):
            p = LAWS[name].cdf(eta)
            after = moved(name, eta, gradient(p), eps, lazy=False)
            q = LAWS[name].cdf(after)
            there, back = (
                sum(divergence(name, a, b) for a, b in zip(u, v, strict=True))
                for u, v in ((p, q), (q, p))
            )
            assert (after - eta) @ (q - p) == pytest.approx(there + back, abs=1e-6)
            if part <= 0.5:
                assert mean_loss(q) <= mean_loss(p) - there / eps + 1e-6
            steps.append(((q - p) ** 2).sum())
            eta = after
            if np.minimum(q, 1 - q).min() < 1e-4:
                break  # too near a corner for the quadrature
        room = mean_loss(start) - value(CORNERS).min()
        assert min(steps) <= room / len(steps) * eps * f_max / (1 - eps * 2 * f_max) + 1e-12
    eps, p = 1e-3, np.array([0.3, 0.35])
    q = LAWS[name].cdf(icdf(name, p) - eps * gradient(p))
    there = sum(divergence(name, a, b) for a, b in zip(p, q, strict=True)) / eps
    square = LAWS[name].pdf(icdf(name, p)) @ gradient(p) ** 2
    assert there == pytest.approx(eps / 2 * square, rel=0.01)


def test_descent_as_printed() -> None:
    assert "eager and lazy: True" in printed(containing(PATH, "def largest_change"))
    text = printed(containing(PATH, "def first_change"))
    for name in NAMES:
        f, eta = float(LAWS[name].pdf(0.0)), float(icdf(name, 0.501))
        shown = [float(v) for v in re.search(rf"{name} +(\S+) +(\S+)", text).groups()]
        for part, number in zip((0.99, 1.01), shown, strict=True):
            after = LAWS[name].cdf(eta - part / (2 * f) * 2 * 0.002)
            change = (2 * after - 1) ** 2 - 0.002**2
            assert number == pytest.approx(1e6 * change, abs=6e-4)
        assert shown[0] < 0 < shown[1]


# ---------------------------------------------------------------------------------- exercises


def test_ex_14_odds() -> None:
    text = printed(containing(PATH, "for order in"))
    value = round(float(special.expit(2.0)), 4)
    assert f"Logistic [{value}, {value}]" in text and "Uniform [0.0, 1.0]" in text


def test_ex_14_which() -> None:
    eta = np.linspace(-0.95, 0.95, 9)
    F = {
        n: ref.RefNoise(n, s)
        for n, s in (("Logistic", 2.0), ("Gaussian", 1.0), ("Uniform", 1.0), ("Cauchy", 1.0))
    }
    plain = ref.RefNoise("Logistic")
    h = {
        "a": (F["Logistic"], 1),
        "b": (plain, plain.pdf(eta)),
        "c": (F["Gaussian"], 1),
        "d": (F["Uniform"], 1 - eta**2),
        "e": (F["Cauchy"], (1 + eta**2) * F["Cauchy"].cdf(eta) * F["Cauchy"].cdf(-eta)),
    }
    text = printed(containing(PATH, "cases = {"))
    for key, (noise, slope) in h.items():
        ratio = noise.pdf(eta) * slope / (noise.cdf(eta) * noise.cdf(-eta))
        said = "Fisher" if np.ptp(ratio) < 1e-12 else "not Fisher"
        assert f"{key} {said}\n" in text


def test_ex_14_which_mistakes() -> None:
    """The letters are those printed as Fisher's; f is inside as a, and frozen outside."""
    check, text = checker(PATH, "check_fisher"), printed(containing(PATH, "not Fisher"))
    assert check(re.findall(r"^(\w) Fisher$", text, re.M))
    says_to(check, {"de": "a: ", "abde": "b: ", "acde": "c: ", "ae": "d: ", "ad": "e: ",
                    "adef": "f: "})  # fmt: skip


def test_ex_14_cycle() -> None:
    def tail(mean: Callable[[float], float], clip: float, eps: float) -> float:
        eta = special.logit(0.6) if clip == np.inf else 0.2
        for _ in range(4000):
            eta = float(np.clip(eta - 2 * eps * mean(eta), -clip, clip))
        return abs(eta)

    uniform, logistic = (lambda e: e, 1.0), (lambda e: np.tanh(e / 2), np.inf)
    assert tail(*uniform, 0.95) < 1e-9 and tail(*uniform, 1.05) == 1.0
    # the cycle of the worst corners: from 1 on, that is from 2 / (beta f_max)
    for eps in (0.99, 1.0, 1.5):
        corner = [1.0]
        for _ in range(4):
            corner.append(float(np.clip(corner[-1] - 2 * eps * corner[-1], -1, 1)))
        assert (corner == [1, -1, 1, -1, 1]) == (eps >= 1)
    beta = largest_curvature(CORNERS.prod(1))
    bounds = [2 / (beta * float(LAWS[n].pdf(0.0))) for n in ("Uniform", "Logistic")]
    assert bounds == pytest.approx([1, 2], abs=1e-12)
    assert tail(*logistic, 1.95) < 1e-9 and tail(*logistic, 2.05) > 0.3
    text = printed(containing(PATH, "def diagonal"))
    assert text.count("[0.5, 0.5]") == 2 and "[1.0, 0.0]" in text


def test_ex_14_cycle_mistakes() -> None:
    """From which step size on the saddle repels: the slope of the step there is -1."""
    check, h = checker(PATH, "check_cycle"), 1e-6

    def slope(lr: float, law: ref.RefNoise, both: float = 2.0) -> float:
        mean = 2 * law.cdf(h) - 1
        return 1 - lr * both * mean / h

    def limit(law: str, both: float = 2.0) -> float:
        return optimize.brentq(lambda lr: slope(lr, ref.RefNoise(law), both) + 1, 0.1, 20)

    assert check(limit("Logistic"))
    says_to(check, {
        limit("Uniform"): "for uniform noise",
        limit("Logistic", both=1.0): "2 mu",
        2 / 4: "2 over beta",
        2 / 4 / 0.25**2: "once",
    })  # fmt: skip


def test_ex_14_sine() -> None:
    eta = np.linspace(-1.4, 1.4, 9)
    F, f = np.sin(eta / 2 + np.pi / 4) ** 2, np.cos(eta) / 2
    assert np.allclose(F, (1 + np.sin(eta)) / 2, atol=1e-15)
    assert np.allclose(f**2 / (F * (1 - F)), 1)
    p = np.linspace(0.1, 0.9, 5)
    inverse = np.arcsin(2 * p - 1)
    assert np.allclose((1 + np.sin(inverse)) / 2, p)
    far = integrate.solve_ivp(lambda t, e: np.cos(e) / 2, (0, 20), [0.0], rtol=1e-9).y[0, -1]
    assert far < np.pi / 2  # with h = f the wall is not reached


def test_ex_14_constant() -> None:
    text, mixtures = printed(containing(PATH, "C1 = 0.5")), np.random.default_rng(3)
    for name in ("Uniform", "Gaussian", "Triangular", "Logistic"):
        K = LAWS[name].expect(abs) / 2 * LAWS[name].pdf(0.0)
        assert f"{K:.4f}" in re.search(rf"{name} .*", text)[0]
        assert K >= 1 / 8 - 1e-9
    for _ in range(50):  # random symmetric step densities
        heights, z = mixtures.uniform(size=8), np.linspace(0, 1, 9)
        heights /= 2 * (heights * np.diff(z)).sum()
        K = (heights * np.diff(z**2)).sum() / 2 * heights.max()  # E|Z| = 2 int z f
        assert K > 1 / 8


# -------------------------------------------------------------------------------- the checker


@pytest.fixture
def space() -> dict:
    out = define(PATH, "mirror_step")
    for tag in ("checker", "solution"):
        exec(compile(naming(PATH, tag).source, tag, "exec"), out)
    return out


def clip(eta: torch.Tensor, noise: sbnlib.Noise) -> torch.Tensor:
    return torch.minimum(
        torch.maximum(eta, torch.tensor(noise.support[0])), torch.tensor(noise.support[1])
    )


def right(eta, g, noise, lr, lam, prior):  # noqa: ANN001, ANN201
    """Written as a weighted mean of two latent weights."""
    a = lr * lam / (1 + lr * lam)
    return clip((1 - a) * (eta - lr * g) + a * noise.icdf(prior), noise)


def explicit(eta, g, noise, lr, lam, prior):  # noqa: ANN001, ANN201
    return clip(eta - lr * (g + lam * (eta - noise.icdf(prior))), noise)


def fair(eta, g, noise, lr, lam, prior):  # noqa: ANN001, ANN201
    return clip((eta - lr * g) / (1 + lr * lam), noise)


def raw(eta, g, noise, lr, lam, prior):  # noqa: ANN001, ANN201
    return clip((eta - lr * g + lr * lam * prior) / (1 + lr * lam), noise)


def unclipped(eta, g, noise, lr, lam, prior):  # noqa: ANN001, ANN201
    return (eta - lr * g + lr * lam * noise.icdf(prior)) / (1 + lr * lam)


def in_p(eta, g, noise, lr, lam, prior):  # noqa: ANN001, ANN201
    """The mean taken of probabilities."""
    a = lr * lam / (1 + lr * lam)
    return noise.icdf((1 - a) * noise.cdf(clip(eta - lr * g, noise)) + a * prior)


def test_the_checker_accepts_what_is_right(space: dict, capsys: pytest.CaptureFixture) -> None:
    assert space["ok"] is True and space["check"](right) is True
    assert "right" in capsys.readouterr().out
    assert space["check"](lambda *v: right(*v).numpy()) is True


WRONG = {
    "pulled to one half": (fair, "the prior has to enter"),
    "explicit": (explicit, "explicit step"),
    "a probability as latent weight": (raw, "latent weight"),
    "no projection": (unclipped, "project"),
    "averaged in p": (in_p, "are off"),
    "no pull": (lambda e, g, n, lr, lam, q: clip(e - lr * g, n), "plain mirror step"),
    "summed": (lambda *v: right(*v).sum(), "shape ()"),
    "nan": (lambda *v: right(*v) * torch.nan, "are off"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_checker_names_what_is_wrong(
    space: dict, name: str, capsys: pytest.CaptureFixture
) -> None:
    answer, hint = WRONG[name]
    capsys.readouterr()
    assert space["check"](answer) is False
    assert hint in capsys.readouterr().out


# ------------------------------------------------------------------- what the figures draw


@pytest.mark.parametrize(("p1", "lr"), [(0.22, 0.1), (0.52, 1.4)])
def test_fig_race(p1: float, lr: float) -> None:
    left, right = curves(PATH, "race", p1=p1, lr=lr)
    steps = round(14 / lr)
    keep = np.unique(np.linspace(0, steps, 29).astype(int))
    for k, name in enumerate(("Logistic", "Cauchy", "Uniform")):
        walk = descend(name, [p1, 0.05], lr, steps)
        assert np.allclose(left[2 * k].T, walk[keep], atol=1e-9)
        assert np.allclose(left[2 * k + 1][:, 0], walk[-1], atol=1e-9)
        losses = [mean_loss(p) for p in walk[keep]]
        assert np.allclose(right[k], [lr * keep, losses], atol=1e-9)


@pytest.mark.parametrize(("m", "scale"), [(30, 1.0), (50, 0.5)])
def test_fig_inertia(m: int, scale: float) -> None:
    left, right = curves(PATH, "inertia", m=m, scale=scale)
    for k, lazy in enumerate((True, False)):
        eta, path = np.zeros(2), [np.full(2, 0.5)]
        for t in range(m + 10):
            eta = eta - 0.1 * np.array([1.0, 0.4]) * (1 if t < m else -1)
            eta = eta if lazy else np.clip(eta, -scale, scale)
            path.append(np.clip((1 + eta / scale) / 2, 0, 1))
        assert np.allclose(left[2 * k].T, path, atol=1e-9)
        assert np.allclose(left[2 * k + 1][:, 0], path[-1], atol=1e-9)
        assert np.allclose(right[k][1], np.array(path)[:, 0], atol=1e-9)


@pytest.mark.parametrize("k", [0.3, 1.0])
def test_fig_proxies(k: float) -> None:
    (fisher, speed), (path, dots, _) = curves(PATH, "proxies", k=k)
    eta, start = special.logit(fisher[0]), special.logit(np.array([0.22, 0.05]))
    f = LAWS["Logistic"].pdf(eta)
    assert np.allclose(fisher[1], 4 * f, atol=1e-12)  # F(1 - F) = f, for logistic noise
    assert np.allclose(speed[1], 4 * f * proxy(k)(eta), atol=1e-12)
    for j in (10, 25, 50):
        at = special.expit(flow(proxy(k), start, 24 * j / 50))
        assert np.allclose(path[:, 6 * j], at, atol=1e-4)
    eta = start
    for dot in dots.T:
        assert np.allclose(dot, special.expit(eta), atol=1e-9)
        eta = eta - 0.3 * proxy(k)(eta) * gradient(special.expit(eta))


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0])
def test_the_dots_of_the_proxies_lie_close_to_the_flow_on_the_outside_of_its_bend(k: float) -> None:
    _, (path, dots, _) = curves(PATH, "proxies", k=k)
    steps = np.diff(path)
    angle = np.unwrap(np.arctan2(steps[1], steps[0]))
    length = np.hypot(*steps)
    sag = np.minimum(length[1:], length[:-1]) * np.abs(np.diff(angle)) / 8
    assert sag.max() < 1e-3  # no corner of the line can be seen
    off = dots[:, :, None] - path[:, None]
    near = np.hypot(*off).argmin(1)
    off = off[:, np.arange(len(near)), near]
    assert np.hypot(*off).max() < 0.03
    along = np.gradient(path, axis=1)[:, near]
    side = (along[0] * off[1] - along[1] * off[0]) / np.hypot(*along)
    assert (side * np.sign(angle[-1] - angle[0]) < 1e-4).all()
    assert np.abs(side).max() > 0.005
    assert "on the outside of its bend" in under(containing(PATH, "def proxies"))["answer"]


def test_fig_steps_is_what_its_caption_says() -> None:
    """Steps of length 1 in eta, and how much each adds to p."""
    shown = {}
    pairs = zip(("Logistic", "Uniform"), (1, 2), curves(PATH, "steps"), strict=True)
    for name, scale, lines in pairs:
        law = ref.RefNoise(name, scale).scipy()
        grid, curve = lines[0]
        assert np.allclose(curve, law.cdf(grid), atol=1e-9)
        shown[name] = []
        for eta, p in lines[1:]:
            assert eta[1] == eta[2] and p[0] == p[1]
            assert eta[1] - eta[0] == min(1, law.support()[1] - eta[0])
            assert np.allclose(p[::2], law.cdf(eta[::2]), atol=1e-9)
            shown[name].append(p[2] - p[0])
    assert shown["Logistic"] == pytest.approx([0.245, 0.107, 0.018], abs=5e-4)
    assert shown["Uniform"] == pytest.approx([0.25, 0.125], abs=1e-9)


def test_fig_tangent_is_what_its_caption_says() -> None:
    ((phi_curve, line, bar, point, *_),) = curves(PATH, "tangent")
    assert np.allclose(phi_curve[1], [phi("Logistic", v) for v in phi_curve[0]], atol=1e-7)
    tangent = phi("Logistic", 0.25) + float(icdf("Logistic", 0.25)) * (line[0] - 0.25)
    assert np.allclose(line[1], tangent, atol=1e-7)
    assert point[:, 0] == pytest.approx([0.25, phi("Logistic", 0.25)], abs=1e-7)
    assert (bar[0] == 0.9).all() and np.ptp(bar[1]) == pytest.approx(0.951, abs=5e-4)
    assert stats.entropy([0.9, 0.1], [0.25, 0.75]) == pytest.approx(0.951, abs=5e-4)


def tukey(nu: float) -> stats.rv_continuous:
    """Tukey's noise with f(0) = 1/4: scipy's has 2^(nu - 2)."""
    return stats.tukeylambda(nu, scale=2.0**nu)


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.05, 0.4, 0.75])
@pytest.mark.parametrize("nu", [-1.0, -0.4, 0.0, 0.6, 1.0])
def test_fig_bregman(p: float, nu: float) -> None:
    law, q = tukey(nu), p + 0.2
    assert law.pdf(0.0) == pytest.approx(0.25, abs=1e-6)
    (curve, line, bar, point), (bowl, parabola, dot) = curves(PATH, "bregman", p=p, nu=nu)
    slope = float(law.ppf(p))
    keep = slice(2, -2, 10)
    area = [integrate.quad(law.ppf, 0.5, v)[0] for v in curve[0, keep]]
    at = integrate.quad(law.ppf, 0.5, p)[0]
    assert np.allclose(curve[1, keep], area, atol=1e-6)
    assert np.allclose(line[1], at + slope * (line[0] - p), atol=1e-6)
    gap = integrate.quad(lambda v: law.ppf(v) - slope, p, q)[0]
    assert np.ptp(bar[1]) == pytest.approx(gap, abs=1e-6) and (bar[0] == q).all()
    assert dot[:, 0] == pytest.approx([q, gap], abs=1e-6)
    assert np.allclose(bowl[1, keep], np.array(area) - at - slope * (bowl[0, keep] - p), atol=1e-6)
    assert np.allclose(parabola[1], 2 * (parabola[0] - p) ** 2, atol=1e-12)
    said = {(0.4, 0.0): 0.081, (0.75, 0.0): 0.144, (0.75, -1.0): 0.420}
    if (p, nu) in said or nu == 1:
        assert gap == pytest.approx(said.get((p, nu), 0.080), abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.05, 0.75])
@pytest.mark.parametrize("nu", [-1.0, 1.0])
def test_fig_bregman_shows_its_gap_twice_and_its_legends_clear_of_the_curves(
    p: float, nu: float
) -> None:
    left, right = axes(PATH, "bregman", p=p, nu=nu)
    for ax, line in ((left, left.lines[2]), (right, right.lines[2])):
        (low, high), y = ax.get_ylim(), line.get_ydata()
        assert low < min(y) and max(y) < high
    left.figure.draw_without_rendering()
    for ax in (left, right):
        assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1


def test_the_tails_of_the_figure_s_noises() -> None:
    """nu = 0 logistic, nu = 1 uniform; at nu = -1 the tail falls like 1/eta, as Cauchy's."""
    p = np.array([0.1, 0.3, 0.8])
    assert np.allclose(tukey(0.0).ppf(p), special.logit(p), atol=1e-9)
    assert np.allclose(tukey(1.0).ppf(p), 4 * p - 2, atol=1e-9)
    far = 1 - np.array([1e-4, 1e-6])
    for law in (tukey(-1.0), stats.cauchy()):
        assert law.ppf(far[1]) / law.ppf(far[0]) == pytest.approx(100, rel=1e-3)


def test_natural_steps_of_decided_weights_against_those_of_mirror_descent() -> None:
    """F(1 - F)/f, the length of a natural step in steps of mirror descent, against that at 0."""
    for law, ratio in ((stats.norm, 0.49), (stats.cauchy, 3.7)):
        at = [law.cdf(e) * law.sf(e) / law.pdf(e) for e in (0.0, 3.0)]
        assert float(f"{at[1] / at[0]:.2g}") == ratio
    assert "the natural step at $\\eta=3$ is 0.49 times as long as the latent one" in prose(PATH)
    assert "and 3.7 times as long with Cauchy noise" in prose(PATH)
