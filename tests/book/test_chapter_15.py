"""Chapter 15, optimizers: both sides of every formula, by enumeration, search and quadrature.

Expected values are written in numpy from the papers; sbnlib appears only where one of its
optimizers is a side of the equality.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
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
    says_to,
    still,
    tagged,
    tex,
    under,
)
from pins import pin
from scipy import integrate, optimize, stats

from sbnlib import optim
from sbnlib.experiments import measurement, weights
from sbnlib.nn import BernoulliLinear
from sbnlib.noise import Logistic, Uniform

Array = np.ndarray
PATH = chapter(15)
RNG = np.random.default_rng(8)
N, STEPS = 4, 100
A = RNG.normal(size=(7, N))
TARGET = 2 * RNG.normal(size=7)
DRAWS, START = RNG.uniform(size=(STEPS, N)), RNG.uniform(-0.8, 0.8, N)


@pytest.fixture(scope="module", autouse=True)
def _as_in_the_book() -> Iterator[None]:
    with as_in_the_book():
        yield


def slope(w: Array) -> Array:
    """Gradient of mean (Aw - target)^2 / 2, a convex loss."""
    return A.T @ (A @ w - TARGET) / len(A)


def sign(v: Array) -> Array:
    return np.where(v >= 0, 1.0, -1.0)


def unroll(step: Callable[[Array, Array], Array], start: Array = START) -> Array:
    path = []
    for u in DRAWS:
        path.append(start := step(start, u))
    return np.array(path)


def library(
    forward: str, noise: object, make: Callable, start: Array = START, **options: float
) -> Array:
    layer = BernoulliLinear(N, 1, bias=False, noise=noise, forward=forward, **options)
    layer.eta.data.copy_(torch.tensor(start))
    optimizer, path = make(layer.parameters()), []
    for u in DRAWS:
        optimizer.zero_grad()
        draw = {} if forward in ("sign", "mean") else {"u": torch.tensor(u)[None]}
        out = layer(torch.tensor(A), **draw)[:, 0]
        ((out - torch.tensor(TARGET)) ** 2).mean().div(2).backward()
        optimizer.step()
        path.append(layer.eta.detach().numpy()[0].copy())
    return np.array(path)


def agree(a: Array, b: Array) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def deterministic(clip: bool, alpha: float) -> Callable[[Array, Array], Array]:
    def step(eta: Array, _: Array) -> Array:
        eta = eta - alpha * slope(sign(eta))
        return np.clip(eta, -1, 1) if clip else eta

    return step


# ------------------------------------------------------------------------- BinaryConnect


@pin(
    "eq-15-bc",
    r"""
    \begin{aligned} \eta&\leftarrow\operatorname{clip}\bigl(\eta-\alpha\,\partial
    L(w),\,-1,\,1\bigr),\\ w&=\pm1\ \text{with}\ P(w=1)=\tfrac{1+\eta}2\ (\text{stochastic})\\
    &\text{or}\quad w=\operatorname{sign}\eta\ \ (\text{deterministic}). \end{aligned}
    """,
)
@pytest.mark.parametrize("forward", ["sample", "sign"])
def test_eq_15_bc(forward: str) -> None:
    def step(eta: Array, u: Array) -> Array:
        w = np.where(u < (1 + eta) / 2, 1.0, -1.0) if forward == "sample" else sign(eta)
        return np.clip(eta - 0.2 * slope(w), -1, 1)

    found = library(forward, Uniform(), lambda q: optim.BinaryConnect(q, 0.2))
    agree(found, unroll(step))
    assert (np.abs(found) == 1).any(), "the clip was never used"


@pin("eq-15-projected", r"\mu\leftarrow\Pi_{[-1,1]}\bigl(\mu-\alpha\,\partial L(w)\bigr),")
def test_eq_15_projected() -> None:
    """Projection by search over a grid of means, against mirror descent at half the rate."""
    found = library("sample", Uniform(), lambda q: optim.MirrorDescent(q, 0.1, noise=Uniform()))
    grid = np.linspace(-1, 1, 200_001)
    before = START
    for t, u in enumerate(DRAWS):
        target = before - 0.2 * slope(np.where(u < (1 + before) / 2, 1.0, -1.0))
        nearest = [grid[np.abs(grid - v).argmin()] for v in target]
        np.testing.assert_allclose(found[t], nearest, atol=1e-5)
        before = found[t]


@pin(
    "thm-15-stochastic",
    r"""
    Stochastic BinaryConnect is mirror descent with uniform noise on $[-1,1]$, the
    straight-through gradient of one draw, and $\varepsilon=\alpha/2$. In the mean $\mu=\eta$ it
    is projected stochastic gradient descent, {eq-15-projected} and if $L$ is multilinear in the
    weights, $\mathbb{E}\,\partial L(w)=\nabla_\mu\mathbb{E}L$.
    """,
)
def test_thm_15_stochastic_is_unbiased_for_multilinear_losses_only() -> None:
    mu = np.array([0.3, -0.5, 0.8])
    states = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    law = np.where(states > 0, (1 + mu) / 2, (1 - mu) / 2).prod(1)

    def gap(loss: Callable, gradient: Callable) -> float:
        mean = law @ np.array([gradient(w) for w in states])
        exact = []
        for i in range(3):
            sides = []
            for d in (1e-5, -1e-5):
                m = mu + d * np.eye(3)[i]
                p = np.where(states > 0, (1 + m) / 2, (1 - m) / 2).prod(1)
                sides.append(p @ np.array([loss(w) for w in states]))
            exact.append((sides[0] - sides[1]) / 2e-5)
        return float(np.abs(mean - exact).max())

    multilinear = lambda w: w[0] * w[1] * w[2] - 0.7 * w[0] * w[2] + w[1]  # noqa: E731
    by_hand = lambda w: np.array([  # noqa: E731
        w[1] * w[2] - 0.7 * w[2], w[0] * w[2] + 1, w[0] * w[1] - 0.7 * w[0],
    ])  # fmt: skip
    assert gap(multilinear, by_hand) < 1e-9
    assert gap(lambda w: (w**2).sum() / 2, lambda w: w) > 0.2


@pin(
    "eq-15-dual",
    r"""
    w_{t+1}=\operatorname*{arg\,min}_{q\in[-1,1]^n}\ \Bigl\langle\sum_{j\le t}\partial
    L(w_j)-\tfrac1\alpha\,\eta_1,\ q\Bigr\rangle .
    """,
)
@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_eq_15_dual(alpha: float) -> None:
    """The minimum over the cube is at a corner: compare with the best of all corners."""
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=N)))
    eta = unroll(deterministic(False, alpha))
    used = sign(np.vstack([START, eta[:-1]]))
    total = np.cumsum([slope(w) for w in used], axis=0) - START / alpha
    best = corners[(corners @ total.T).argmin(0)]
    assert np.array_equal(sign(eta), best)


@pin(
    "thm-15-deterministic",
    r"""
    Without the clip, deterministic BinaryConnect from $\eta_1$ is dual averaging over the cube
    without a regularizer: where no $\eta_{t+1,i}$ is 0, {eq-15-dual} If moreover $\eta_1=0$ and
    $L$ is convex and differentiable on $\mathbb{R}^n$, the mean gradient $m_t=\frac1t\sum_{j\le
    t}\partial L(w_j)$ is the generalized conditional gradient method with steps $\gamma_t=1/t$
    on $\min_mL^*(m)+\|m\|_1$, {eq-15-gcg}
    """,
)
def test_thm_15_deterministic_ends_where_the_clip_acts() -> None:
    alpha = 2.0
    eta = unroll(deterministic(True, alpha))
    used = sign(np.vstack([START, eta[:-1]]))
    total = np.cumsum([slope(w) for w in used], axis=0) - START / alpha
    assert (sign(eta) != sign(-total)).any()


@pin(
    "eq-15-gcg",
    r"""
    \begin{gathered} m_t=(1-\gamma_t)\,m_{t-1}+\gamma_t\,\partial L(w_t),\\
    w_t=-\operatorname{sign}m_{t-1}\ \text{ where }m_{t-1}\\ \text{has no entry }0\quad(t\ge2).
    \end{gathered}
    """,
)
def test_eq_15_gcg() -> None:
    """The gradient solves min_q L*(q) - <w, q>; L* by maximizing <m, w> - L(w) numerically."""
    assert "$L^*(m)=\\sup_w[\\langle m,w\\rangle-L(w)]$" in prose(PATH)

    def loss(w: Array) -> float:
        return float(((A @ w - TARGET) ** 2).mean() / 2)

    def conjugate(m: Array) -> float:
        found = optimize.minimize(
            lambda w: loss(w) - m @ w, np.zeros(N), jac=lambda w: slope(w) - m
        )
        return -float(found.fun)

    eta = np.zeros(N)
    m = np.zeros(N)
    for t in range(1, 60):
        w = sign(eta)
        if t > 1:
            assert np.array_equal(w, -sign(m))
        q = slope(w)
        if t % 10 == 1:
            for _ in range(3):
                other = q + RNG.normal(size=N)
                assert conjugate(q) - w @ q < conjugate(other) - w @ other
        m = (1 - 1 / t) * m + q / t
        eta = eta - 0.3 * q
        agree(eta, -0.3 * t * m)


def test_the_deterministic_rule_jumps_between_the_worst_corners_for_ever() -> None:
    for start, trapped in (((0.33, 0.31), True), ((0.33, 0.29), False), ((0.3, -0.1), False)):
        eta = np.array(start)
        for _ in range(1001):
            eta = np.clip(eta - 0.1 * sign(eta)[::-1], -1, 1)
        assert (eta.prod() > 0) == trapped


# ----------------------------------------------------------------------------------- Bop


def bop(gamma: float, threshold: float) -> tuple[Array, Array]:
    m, w, means, path = np.zeros(N), sign(START), [], []
    for _ in range(STEPS):
        m = (1 - gamma) * m + gamma * slope(w)
        w = np.where((np.abs(m) > threshold) & (m * w > 0), -w, w)
        means.append(m)
        path.append(w)
    return np.array(means), np.array(path)


@pin(
    "eq-15-bop",
    r"""
    \begin{gathered} m\leftarrow(1-\gamma)\,m+\gamma\,\partial L(w),\\ w\leftarrow-w\ \text{
    where }\ |m|>\vartheta\ \text{ and }\ m\,w>0 . \end{gathered}
    """,
)
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_eq_15_bop(threshold: float) -> None:
    found = library(
        "sign", Logistic(), lambda q: optim.Bop(q, 0.1, threshold=threshold), sign(START)
    )
    assert np.array_equal(found, bop(0.1, threshold)[1])
    others = [bop(0.1, v)[1] for v in (0.0, 0.1, 0.5) if v != threshold]
    assert not any(np.array_equal(found, w) for w in others), "the threshold changed nothing"


@pin("eq-15-inertia", r"m_t=-\lambda\,\eta_t .")
@pytest.mark.parametrize("lam", [0.2, 3.0])
def test_eq_15_inertia(lam: float) -> None:
    """The sum of decayed slopes, in closed form, and the library's decayed mirror step."""
    gamma = 0.1
    means, path = bop(gamma, 0.0)
    slopes = [slope(w) for w in np.vstack([sign(START), path[:-1]])]
    latent = torch.zeros(N, requires_grad=True)
    mirror = optim.MirrorDescent([latent], gamma / lam / 2, kl=2 * lam)
    for t in range(STEPS):
        latent.grad = torch.tensor(2 * slopes[t])
        mirror.step()
        eta = -sum(gamma / lam * (1 - gamma) ** (t - s) * slopes[s] for s in range(t + 1))
        agree(latent.detach().numpy(), eta)
        agree(means[t], -lam * eta)


@pin(
    "thm-15-bop",
    r"""
    Let $\lambda>0$ and $\varepsilon=\gamma/\lambda$, let $m_0=-\lambda\eta_0$, and feed both
    rules the same $\partial L_t$: $\eta_{t+1}=\eta_t-\varepsilon(\partial L_t+\lambda\eta_t)$,
    the decayed mirror step of {eq}`eq-14-decay` with $\partial L$ in the place of $g$. Then for
    all $t$ {eq-15-inertia} With threshold $\vartheta=0$, $w_t=\operatorname{sign}\eta_t$ for
    all $t\ge1$ with $\eta_t\ne0$. With $\vartheta>0$ no function of $\eta$ gives Bop's weight,
    and no distribution $P(w\mid\eta)$ either, if it is drawn from independently at each step.
    """,
)
def test_thm_15_bop_has_the_sign_of_the_latent_weight_without_threshold_only() -> None:
    """With a threshold and every gradient equal to m_0, both weights stay, at one latent weight."""
    means, path = bop(0.1, 0.0)
    assert np.array_equal(path, sign(-means))
    for m0, stays in ((0.4, True), (-0.4, True), (1.2, False)):
        p = torch.tensor([1.0, -1.0], requires_grad=True)
        optimizer = optim.Bop([p], 0.5, threshold=1.0)
        optimizer.state[p]["mean"] = torch.full((2,), m0)
        for _ in range(50):
            p.grad = torch.full((2,), 2 * m0)  # the library halves it
            optimizer.step()
            assert torch.allclose(optimizer.state[p]["mean"], torch.full((2,), m0))
        assert (p.tolist() == [1, -1]) == stays


@pytest.mark.parametrize("start", [0.4, -1.3])
def test_thm_15_bop_starts_from_any_latent_weight(start: float) -> None:
    """m_0 = -lambda eta_0 that is not 0, as the theorem has it."""
    lam, gamma = 0.7, 0.1
    m, eta, w = np.full(N, -lam * start), np.full(N, start), sign(START)
    for t in range(1, STEPS):
        gradient = slope(w)
        m = (1 - gamma) * m + gamma * gradient
        eta = eta - gamma / lam * (gradient + lam * eta)
        w = np.where(m * w > 0, -w, w)
        agree(m, -lam * eta)
        assert np.array_equal(w, sign(eta)), t


# ----------------------------------------------------------------------------- BayesBiNN


@pin(
    "eq-15-bayes",
    r"""
    \begin{aligned} \eta&\leftarrow(1-\alpha)\,\eta-\alpha\bigl[2N\rho\,\partial
    L(w)-\eta^0\bigr],\\ w&=\tanh\frac{\eta-Z}{2\tau}, \qquad
    \rho=\frac{1-w^2+10^{-10}}{\tau\,(1-\mu^2+10^{-10})} , \end{aligned}
    """,
)
@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_eq_15_bayes(tau: float) -> None:
    """As printed, in eta; as released, in lambda = eta / 2 with its noise; the library."""
    alpha, size, prior = 0.002, 3.0, 0.6
    memory: dict[str, Array] = {}

    def printed_step(eta: Array, u: Array) -> Array:
        mu = memory.get("mu", np.tanh(eta / 2))
        memory["mu"] = np.tanh(eta / 2)
        z = np.log(u / (1 - u))
        w = np.tanh((eta - z) / (2 * tau))
        rho = (1 - w * w + 1e-10) / (tau * (1 - mu * mu + 1e-10))
        return (1 - alpha) * eta - alpha * (2 * size * rho * slope(w) - prior)

    old: dict[str, Array] = {}

    def released_step(lam: Array, u: Array) -> Array:  # one draw, no momentum, u for 1 - u
        mu = old.get("mu", np.tanh(lam))
        w = np.tanh((np.log((1 - u) / u) / 2 + lam) / tau)
        scale = (1 - w * w + 1e-10) / tau / (1 - mu * mu + 1e-10)
        gradient = size * scale * slope(w) + (lam - prior / 2)
        old["mu"] = np.tanh(lam)
        return lam - alpha * gradient

    found = library(
        "concrete", Logistic(),
        lambda q: optim.BayesBiNN(q, alpha, train_set_size=size, prior=prior / 2, stale_mean=True),
        tau=tau,
    )  # fmt: skip
    path = unroll(printed_step)
    np.testing.assert_allclose(found, path, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(2 * unroll(released_step, START / 2), path, rtol=1e-9, atol=1e-9)


def mean_factor(eta: float, tau: float) -> float:
    """E rho over logistic Z, by scipy in the variable Z, without the constant."""
    density = lambda z: 0.25 / np.cosh(z / 2) ** 2  # noqa: E731
    inside = lambda z: 1 / np.cosh(np.clip((eta - z) / (2 * tau), -300, 300)) ** 2  # noqa: E731
    value, _ = integrate.quad(
        lambda z: density(z) * inside(z) / tau, eta - 40 * tau, eta + 40 * tau,
        points=[eta], limit=400,
    )  # fmt: skip
    return value * np.cosh(eta / 2) ** 2


@pin(
    "eq-15-cold",
    r"""
    \begin{aligned}
    \mathbb{E}\,\rho&=\frac1{1-\mu^2}\int\operatorname{sech}^2(z)\\
    &\qquad\cdot\tfrac12\operatorname{sech}^2(\tau z-\tfrac\eta2)\,dz\\ &\longrightarrow\
    1\qquad(\tau\to0), \end{aligned}
    """,
)
def test_eq_15_cold() -> None:
    """The printed integral, the page's function, and the mean over Z."""
    space = define(PATH, "GRID", "exact_mean")
    for eta in (0.0, 1.4, -4.0):
        for tau in (0.3, 0.05, 1e-3):
            over_z = mean_factor(eta, tau)
            over = integrate.quad(
                lambda z, t=tau, e=eta: 0.5 / (np.cosh(z) * np.cosh(t * z - e / 2)) ** 2, -25, 25
            )[0]
            assert math.isclose(over / (1 - np.tanh(eta / 2) ** 2), over_z, rel_tol=1e-6)
            assert math.isclose(space["exact_mean"](eta, tau, 0.0), over_z, rel_tol=1e-6)
        gaps = [abs(mean_factor(eta, tau) - 1) for tau in (0.1, 0.01, 1e-3)]
        assert gaps[2] < gaps[1] < gaps[0] < 0.1 and gaps[2] < 1e-5


@pin(
    "prop-15-cold",
    r"""
    Let the constant be absent and $\mu=\tanh(\eta/2)$. For every $\eta$ {eq-15-cold} and if $L$
    is continuously differentiable, $\mathbb{E}\,g_{\tau,i}\to\mathbb{E}\,\Delta_iL(w)$, the
    exact gradient in $p_i$ at binary weights.
    """,
)
def test_prop_15_cold_tends_to_the_exact_gradient_and_not_to_straight_through() -> None:
    """Two weights, L = w1^3 + w1 w2 + w1 w2^2 by quadrature, g_tau = 2 rho dL/dw1."""
    eta = np.array([0.8, -0.5])
    node, weight = np.polynomial.legendre.leggauss(1500)

    def mean(tau: float) -> float:  # for each weight w = tanh(t), Z = eta - 2 tau t
        t = 12 * node
        law = [24 * tau * weight * 0.25 / np.cosh((e - 2 * tau * t) / 2) ** 2 for e in eta]
        # beyond |t| = 12 the second weight is a sign
        z_cut = [eta[1] - 24 * tau, eta[1] + 24 * tau]
        plus = 1 / (1 + np.exp(-z_cut[0]))
        minus = 1 / (1 + np.exp(z_cut[1]))
        second = lambda f: law[1] @ f(np.tanh(t)) + plus * f(1.0) + minus * f(-1.0)  # noqa: E731
        m1, m2 = second(lambda w: w), second(lambda w: w * w)
        rho = np.cosh(t) ** -2.0 / tau / (1 - np.tanh(eta[0] / 2) ** 2)
        return float(law[0] @ (2 * rho * (3 * np.tanh(t) ** 2 + m1 + m2)))

    exact = 2 + 2 * np.tanh(eta[1] / 2) + 2  # E[L(1, w2) - L(-1, w2)]
    straight_through = 2 * (3 + np.tanh(eta[1] / 2) + 1)
    gaps = [abs(mean(tau) - exact) for tau in (0.1, 0.01, 0.001)]
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2] and gaps[2] < 5e-3
    assert abs(mean(0.001) - straight_through) > 3


NATURAL = (
    r"\begin{gathered} \eta\leftarrow\eta-\alpha N\,\bigl(g_\tau+\tfrac1N\,(\eta-\eta^0)\bigr),\\ "
    r"g_\tau=2\,\rho\,\partial L(w), \end{gathered}"
)


@pin(
    "eq-15-natural",
    r"""
    \begin{gathered} \eta\leftarrow\eta-\alpha N\,\bigl(g_\tau+\tfrac1N\,(\eta-\eta^0)\bigr),\\
    g_\tau=2\,\rho\,\partial L(w), \end{gathered}
    """,
)
@pytest.mark.parametrize("size", [3.0, 50.0])
@pytest.mark.parametrize("prior", [0.0, 0.8])
def test_eq_15_natural(size: float, prior: float) -> None:
    """As it is printed: the released step, the step in g_tau, mirror descent on ``eta.grad``."""
    assert tex(PATH, "eq-15-natural") == NATURAL
    alpha, tau = 0.002, 0.5

    def scaled(lam: Array, u: Array) -> tuple[Array, Array]:
        w = np.tanh((lam + np.log(u / (1 - u)) / 2) / tau)
        return (1 - w * w) / (tau * (1 - np.tanh(lam) ** 2)), slope(w)

    def released(lam: Array, u: Array) -> Array:
        scale, dL = scaled(lam, 1 - u)
        return (1 - alpha) * lam - alpha * (size * scale * dL - prior / 2)

    def natural(eta: Array, u: Array) -> Array:
        scale, dL = scaled(eta / 2, 1 - u)
        g = 2 * scale * dL
        return eta - alpha * size * (g + (eta - prior) / size)

    agree(2 * unroll(released, START / 2), unroll(natural))
    rate, decay = alpha * size, 1 / size
    rules = [lambda q: optim.BayesBiNN(q, alpha, train_set_size=size, prior=prior / 2)]
    if prior == 0:
        rules.append(lambda q: optim.MirrorDescent(q, rate, kl=decay))
    for make in rules:
        found = library("concrete", Logistic(), make, tau=tau, eps=0.0)
        np.testing.assert_allclose(found, unroll(natural), rtol=1e-10, atol=1e-10)


@pin(
    "prop-15-bayes",
    r"""
    Leave out the constant $10^{-10}$, and let $\mu=\tanh(\eta/2)$ be that of the present step.
    Then the rule {eq}`eq-15-bayes` is mirror descent with logistic noise, $\varepsilon=\alpha
    N$ and a decay $1/N$ towards the prior, {eq-15-natural} and if $L$ is continuously
    differentiable, $g_\tau$ is an unbiased estimate of the gradient of the relaxed loss,
    $\mathbb{E}\,g_\tau=\nabla_p\,\mathbb{E}\,L(w)$.
    """,
)
def test_prop_15_bayes_estimates_the_gradient_of_the_relaxed_loss() -> None:
    """E g_tau, by hand and by the layer, against a difference quotient in p; L = w^3/3 - w."""
    tau, p = 0.5, 0.7
    node, weight = np.polynomial.legendre.leggauss(2000)
    u, measure = (1 + node) / 2, weight / 2
    z = np.log(u / (1 - u))

    def relaxed(p: float) -> Array:
        return np.tanh((np.log(p / (1 - p)) - z) / (2 * tau))

    ends = [measure @ (relaxed(q) ** 3 / 3 - relaxed(q)) for q in (p + 1e-5, p - 1e-5)]
    quotient = float(ends[0] - ends[1]) / 2e-5
    w = relaxed(p)
    rho = (1 - w * w) / (tau * (1 - (2 * p - 1) ** 2))
    assert math.isclose(measure @ (2 * rho * (w * w - 1)), quotient, rel_tol=1e-7)

    layer = BernoulliLinear(1, 1, bias=False, forward="concrete", tau=tau, eps=0)
    torch.nn.init.constant_(layer.eta, math.log(p / (1 - p)))
    w = layer.weight(u=torch.tensor(u)[:, None, None]).flatten()
    (torch.tensor(measure) * (w**3 / 3 - w)).sum().backward()
    assert math.isclose(layer.eta.grad.item(), quotient, rel_tol=1e-7)


@pytest.mark.parametrize("change", ["constant", "late"])
def test_prop_15_bayes_needs_its_conditions(change: str) -> None:
    """With the constant, or with the late mean, it is not mirror descent on that gradient."""
    alpha, size, tau = 0.05, 3.0, 0.5
    options = {"eps": 0.3} if change == "constant" else {"eps": 0.0}
    with_it = library(
        "concrete", Logistic(),
        lambda q: optim.BayesBiNN(q, alpha, train_set_size=size, stale_mean=change == "late"),
        tau=tau, **options,
    )  # fmt: skip
    without = library(
        "concrete", Logistic(), lambda q: optim.MirrorDescent(q, alpha * size, kl=1 / size),
        tau=tau, eps=0.0,
    )  # fmt: skip
    assert np.abs(with_it - without).max() > 1e-3


@pin(
    "eq-15-float",
    r"""
    \begin{gathered} \rho=\frac{10^{-10}/\tau}{1-\mu^2+10^{-10}}\\ \text{whenever }w\text{
    rounds to }\pm1 , \end{gathered}
    """,
)
@pytest.mark.parametrize("tau", [1e-10, 1e-8])
@pytest.mark.parametrize("eta", [0.0, 4.0, 20.0])
def test_eq_15_float(tau: float, eta: float) -> None:
    """The factor read off a step of the library in float32; dL/dw = 1."""
    mu = np.tanh(np.float32(eta / 2))
    factor = (1e-10 / tau) / (float(np.float32(1) - mu * mu) + 1e-10)
    if eta == 20:
        assert math.isclose(factor, 1 / tau)
    lr = min(0.25 / factor, 1.0)
    layer = BernoulliLinear(1, 1, False, dtype=torch.float32, forward="concrete", tau=tau)
    torch.nn.init.constant_(layer.eta, eta)
    w = layer.weight(u=torch.full((1, 1), 0.3))  # w = tanh((eta + 0.85) / 2 tau)
    assert (1 - w**2).item() == 0
    w.sum().backward()
    optim.BayesBiNN(layer.parameters(), lr).step()
    found = (eta * (1 - lr) - layer.eta.item()) / (2 * lr)
    assert math.isclose(found, factor, rel_tol=2e-5)


# ------------------------------------------------------- BayesBiNN in float32: all draws there are


@cache
def logits(form: str) -> Array:
    """Minus Z for each of the 2^24 uniforms, in the program's float32, by numpy.

    "program" takes numpy's float32 logarithm, whose last bit is not torch's; the others round a
    float64 one, which is right to the last bit.
    """
    u = np.arange(2**24, dtype=np.float32) / np.float32(2**24)
    one = np.float32(1)
    with np.errstate(divide="ignore"):
        if form == "program":
            return np.log(u / (one - u))
        if form == "one":
            return np.log((u / (one - u)).astype(float)).astype(np.float32)
        ends = np.log(u.astype(float)), np.log((one - u).astype(float))
        return ends[0].astype(np.float32) - ends[1].astype(np.float32)


def enumerated(eta: float, form: str, tau: float = 1e-10) -> tuple[int, float]:
    """How many draws do not round to a sign, and the mean factor, over all draws."""
    half = np.float32(eta / 2)
    at = (half + logits(form) / np.float32(2)) / np.float32(tau)
    w = np.tanh(at[np.abs(at) < 12].astype(float)).astype(np.float32)  # rounds to 1 from 9.02 on
    above = np.float32(1) - w * w
    mu = np.float32(np.tanh(float(half)))
    below = float(np.float32(1) - mu * mu) + 1e-10
    mean = (above.sum(dtype=float) / 2**24 + 1e-10) / tau / below
    return int((above > 0).sum()), mean


@pytest.mark.slow
def test_the_mean_of_the_factor_is_597_and_not_1() -> None:
    """At eta = 0, whatever the logarithm: one draw, of probability 2^-24, with the factor 1e10."""
    for form in ("program", "one", "two"):
        hits, mean = enumerated(0.0, form)
        assert hits == 1 and math.isclose(mean, 1 + 1e10 / 2**24, rel_tol=1e-6)
    assert round(1 + 1e10 / 2**24, 2) == 597.05
    words = prose(PATH)
    assert "=597.05$, where exact arithmetic has 2, or 1 without the constant" in words
    assert "on a CPU 597 at $\\eta=0$, where exact arithmetic has 2, or 1 without" in words
    # in exact arithmetic: E sech^2(v) / tau over logistic Z = 2 tau v, density at 0, is 1; and the
    # constant 1e-10 / tau, which is 1 at the program's temperature
    relaxed = integrate.quad(lambda v: 2 * np.cosh(v) ** -2.0 / 4, -20, 20)[0]
    assert math.isclose(relaxed, 1)
    thousand = (np.arange(1000) + 0.5) / 1000  # "and a thousand draws show 1"
    at = np.log(thousand / (1 - thousand)) / 2e-10
    assert math.isclose(((1 - np.tanh(at) ** 2 + 1e-10) / 1e-10 / (1 + 1e-10)).mean(), 1)


def test_the_uniforms_of_torch_on_a_cpu_are_multiples_of_2_to_the_minus_24() -> None:
    random = torch.Generator().manual_seed(0)
    whole = torch.rand(200_000, generator=random, dtype=torch.float32) * 2**24
    assert torch.equal(whole, whole.round()) and whole.max() < 2**24
    counts = torch.bincount((whole % 4).long(), minlength=4)
    assert (counts - 50_000).abs().max() < 6 * 194  # also the odd ones: 6 standard errors


@pytest.mark.slow
def test_the_table_of_the_lottery_is_an_enumeration() -> None:
    """Each row, and that torch's own logarithm differs by a hit or two at most."""
    rows = printed(containing(PATH, "def factors(")).splitlines()[2:]
    hits = []
    for line in rows:
        eta, most, *rest = map(float, line.split())
        assert math.isclose(most, np.cosh(eta / 2) ** 2, abs_tol=6e-3)
        for form, shown in (("one", rest[:2]), ("two", rest[2:])):
            found = enumerated(eta, form)
            assert found[0] == shown[0]
            assert math.isclose(found[1], shown[1], abs_tol=6e-3, rel_tol=1e-5)
            assert math.isclose(  # a hit adds 1e10 / 2^24 of 1/(1 - mu^2), no hit nothing
                found[1], (1 + found[0] * 1e10 / 2**24) * np.cosh(eta / 2) ** 2, rel_tol=1e-4
            )
            hits.append(found[0])
        assert abs(enumerated(eta, "program")[0] - hits[-2]) <= 2
    assert [r.split()[0] for r in rows] == ["0.0", "0.5", "1.0", "2.0"]
    assert hits == [1, 1, 0, 0, 1, 0, 0, 1]


@pytest.mark.slow
def test_rare_draws_add_134_on_average() -> None:
    """eta / 2 a real number in [-1, 1], rounded to float32: the mass of the cell of each draw.

    By enumeration, and by the law of Z alone: in each binade half a unit of the last place.
    """
    words = prose(PATH)
    assert "is about 135 on average: 1 from the constant and 134 from the rare draws" in words
    assert "one weight in 75 million has a hit at a given step" in words
    for form in ("program", "one", "two"):
        half = np.abs(logits(form)) / np.float32(2)
        half = half[half <= 1]
        added = 1e10 * (np.spacing(half) / 2).sum(dtype=float) / 2**24
        assert round(added) == 134
    law = sum(
        (np.tanh(2.0**-k) - np.tanh(2.0 ** -(k + 1))) * 2.0 ** -(k + 24) / 2 for k in range(30)
    )
    assert math.isclose(1e10 * law, 133.7, abs_tol=0.1)
    assert round(1 / law / 1e6) == 75
    exact = integrate.quad(lambda v: (1 - np.tanh(v) ** 2) / 2, -1, 1)[0]
    assert "has $\\tanh1=0.76$" in words and math.isclose(exact, np.tanh(1))
    assert round(np.tanh(1), 2) == 0.76


@pytest.mark.slow
def test_from_its_start_no_draw_is_a_hit() -> None:
    for form in ("program", "one", "two"):
        for eta in (20.0, -20.0):
            hits, mean = enumerated(eta, form)
            assert hits == 0 and math.isclose(mean, 1e10, rel_tol=1e-6)
        finite = logits(form)[1:]
        assert np.abs(finite).max() < 16.7 and logits(form)[0] == -np.inf
    assert np.float32(np.tanh(9.02)) == 1 and np.float32(np.tanh(8.99)) < 1
    words = prose(PATH)
    assert "$|Z|\\le16.7$ for all $u$ but 0" in words and "rounds to $1$ for $v\\ge9.02$" in words
    # "with the learning rate 1e-4, 54 000 examples, at dL = 1e-4, by ten million"
    assert math.isclose(2 * 1e-4 * 54_000 * 1e10 * 1e-4, 1e7, rel_tol=0.1)


def test_from_its_start_the_program_is_bop_without_threshold() -> None:
    """In float32, with the late mean, against Bop's own rule with gamma = alpha, by numpy."""
    alpha, size, tau = np.float32(1e-3), np.float32(3), np.float32(1e-10)
    tiny, one = np.float32(1e-10), np.float32(1)
    eta = (20 * sign(START)).astype(np.float32)
    late = np.tanh(eta / 2)
    m, w = -eta.astype(float) / (2 * 3 * 1e10), sign(START)
    moved = []
    for u in DRAWS.astype(np.float32):
        relaxed = np.tanh((eta / 2 - np.log(u / (one - u)) / 2) / tau)
        rho = (one - relaxed * relaxed + tiny) / tau / (one - late * late + tiny)
        late = np.tanh(eta / 2)
        step = alpha * (2 * size * rho * slope(relaxed.astype(float)).astype(np.float32) + eta)
        eta = eta - step
        moved.append(np.abs(step))
        m = (1 - 1e-3) * m + 1e-3 * slope(w)
        w = np.where(m * w > 0, -w, w)
        assert np.array_equal(np.sign(eta), w)
        assert np.abs(eta).min() > 18.04
    assert np.median(moved) > 1e6  # "mostly millions long"
    said = printed(containing(PATH, "= Bop with threshold 0:"))
    assert "= Bop with threshold 0: True" in said
    assert float(re.search(r"100 steps (\S+),", said)[1]) > 18.04
    assert int(re.search(r"changes (\d+)", said)[1]) > 100, "no weight moved"


@pytest.mark.slow
def test_exercise_float_by_enumeration() -> None:
    rows = printed(containing(PATH, "minus_z = draws(True)")).splitlines()
    v = np.arange(8.5, 9.5, 1e-4).astype(np.float32)
    first = v[np.float32(1) - np.tanh(v.astype(float)).astype(np.float32) ** 2 == 0].min()
    assert math.isclose(float(rows[0].split()[-1]), first, abs_tol=0.01)
    for line in rows[1:]:
        tau, real, share, mean = (float(re.sub("[^-+.e0-9]", "", x)) for x in
                                  re.findall(r"(?:tau|Z|draws|factor) +(\S+)", line))  # fmt: skip
        assert math.isclose(real, np.tanh(9.02 * tau), rel_tol=0.06)
        hits, found = enumerated(0.0, "one", tau)
        assert math.isclose(share, hits / 2**24, rel_tol=0.06)
        assert math.isclose(mean, found, rel_tol=6e-3)
    assert "the mean is $0.1+10^9/2^{24}=59.7$" in prose(PATH)
    assert round(enumerated(0.0, "one", 1e-9)[1], 1) == 59.7


# ---------------------------------------------------------------------- ProxQuant, PARQ, Adam


@pin(
    "eq-15-maps",
    r"""
    \begin{aligned} \text{ProxQuant}:\quad\eta&\leftarrow\operatorname{prox}_{\lambda
    R}\bigl(\eta-\alpha\,\partial L(\eta)\bigr),\\ R(\eta)&=\sum_i\bigl||\eta_i|-1\bigr|;\\
    \text{PARQ}:\quad\eta&\leftarrow\eta-\alpha\,\partial L(w),\\
    w&=\operatorname{clip}(\eta/\sigma,-1,1). \end{aligned}
    """,
)
def test_eq_15_maps() -> None:
    """The maps by search; the two rules whole, against the library's optimizer around SGD."""
    grid = np.linspace(-3, 3, 600_001)

    def prox(v: float, lam: float) -> float:
        return grid[((grid - v) ** 2 / 2 + lam * np.abs(np.abs(grid) - 1)).argmin()]

    for lam in (0.1, 0.7):
        for v in (-1.9, -0.6, 0.2, 0.95, 1.4):
            moved = torch.tensor([v])
            optim.proxquant(moved, lam)
            assert abs(moved.item() - prox(v, lam)) < 2e-5
    p = torch.tensor(START, requires_grad=True)
    wrapped = optim.Proximal(torch.optim.SGD([p], 0.2), optim.proxquant, 0.05)
    for _ in range(20):
        before = p.detach().numpy().copy()
        p.grad = torch.tensor(slope(before))
        wrapped.step()
        expected = [prox(v, 0.05) for v in before - 0.2 * slope(before)]
        np.testing.assert_allclose(p.detach().numpy(), expected, atol=2e-5)
    for sigma in (1.0, 0.25):
        moved = torch.tensor([-1.9, -0.1, 0.2, 1.4])
        optim.parq(moved, 1 / sigma)
        agree(moved.numpy(), np.clip(np.array([-1.9, -0.1, 0.2, 1.4]) / sigma, -1, 1))


@pin(
    "eq-15-parq",
    r"""
    \begin{gathered} \operatorname{clip}(\eta/\sigma,-1,1)=2F(\eta)-1=\mu,\\ F\text{ of uniform
    noise on }[-\sigma,\sigma]. \end{gathered}
    """,
)
@pytest.mark.parametrize("sigma", [1.0, 0.25])
def test_eq_15_parq(sigma: float) -> None:
    """The share of evenly spaced noise on [-sigma, sigma] below eta; the library's law."""
    eta = np.linspace(-2, 2, 9)
    noise = sigma * ((np.arange(100_000) + 0.5) / 50_000 - 1)
    share = (noise[:, None] <= eta).mean(0)
    np.testing.assert_allclose(2 * share - 1, np.clip(eta / sigma, -1, 1), atol=1e-4)
    agree(2 * Uniform(sigma).cdf(torch.tensor(eta)).numpy() - 1, np.clip(eta / sigma, -1, 1))


@pin(
    "prop-15-parq",
    r"""
    PARQ at a constant slope $1/\sigma$ is lazy mirror descent {eq}`eq-14-lazy` with uniform
    noise of scale $\sigma$, $\varepsilon=\alpha/2$, and the gradient at the mean: {eq-15-parq}
    If $L$ is multilinear, $2\,\partial L(\mu)=g$ exactly, without sampling. In the limit
    $\sigma=0$, where the map is the sign, it is deterministic BinaryConnect without the clip.
    """,
)
@pytest.mark.parametrize("sigma", [1.0, 0.25])
def test_prop_15_parq_is_lazy_mirror_descent_at_the_mean(sigma: float) -> None:
    noise = Uniform(sigma)
    lazy = library("mean", noise, lambda q: optim.MirrorDescent(q, 0.1, noise=noise, lazy=True))
    agree(lazy, unroll(lambda eta, _: eta - 0.2 * slope(np.clip(eta / sigma, -1, 1))))
    layer = BernoulliLinear(N, 1, bias=False, noise=noise, forward="mean")
    layer.eta.data.copy_(torch.tensor(np.clip(START / sigma, -1, 1)))
    base = torch.optim.SGD(layer.parameters(), 0.1)
    wrapped = optim.Proximal(base, optim.parq, 1 / sigma, lazy=True)
    wrapped.state[layer.eta]["latent"] = torch.tensor(START)[None]
    for t in range(STEPS):  # the parameter is the mapped weight: use it as it is
        layer.eta.grad = torch.tensor(2 * slope(layer.eta.detach().numpy()[0]))[None]
        wrapped.step()
        agree(wrapped.state[layer.eta]["latent"].numpy()[0], lazy[t])


def test_prop_15_parq_has_the_exact_gradient_and_the_sign_as_its_limit() -> None:
    """2 dL(mu) = E Delta L for L = w1 w2 w3 - w1, by enumeration; sigma = 1e-9 takes signs."""
    mu = np.array([0.3, -0.5, 0.8])
    flips = np.zeros(3)
    for w in itertools.product((-1.0, 1.0), repeat=3):
        probability = np.prod((1 + np.array(w) * mu) / 2)
        for i in range(3):
            up, down = np.array(w), np.array(w)
            up[i], down[i] = 1, -1
            flips[i] += probability * (up.prod() - up[0] - down.prod() + down[0])
    agree(2 * np.array([mu[1] * mu[2] - 1, mu[0] * mu[2], mu[0] * mu[1]]), flips)
    steep = unroll(lambda eta, _: eta - 0.2 * slope(np.clip(eta / 1e-9, -1, 1)))
    agree(steep, unroll(deterministic(False, 0.2)))


@pytest.mark.parametrize("lam", [0.01, 0.05])
def test_proxquant_is_proximal_gradient_descent_on_the_mean(lam: float) -> None:
    """One step: the minimizer over the cube of the linearized mean loss and (lambda/alpha) R."""
    alpha, mu = 0.2, np.array([0.5, -0.3])
    gradient = np.array([mu[1], mu[0]])  # of E L = mu1 mu2, L = w1 w2
    grid = np.linspace(-1, 1, 200_001)
    best = [
        grid[(d * grid + (grid - v) ** 2 / (2 * alpha)
              + lam / alpha * (1 - np.abs(grid))).argmin()]
        for d, v in zip(gradient, mu, strict=True)
    ]  # fmt: skip
    moved = torch.tensor(mu - alpha * gradient)
    optim.proxquant(moved, lam)
    np.testing.assert_allclose(moved.numpy(), best, atol=2e-5)


def adam(
    gradients: list[float], betas: tuple[float, float] = (0.0, 0.9), zeta: float = 0.0
) -> float:
    """Distance that Adam goes with rate 1, by torch."""
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([p], 1.0, betas=betas, eps=zeta)
    for g in gradients:
        p.grad = torch.tensor([g])
        optimizer.step()
    return -p.item()


@pin(
    "prop-15-adam",
    r"""
    Let Adam step $\eta$, without a clip, and let $q=F(\eta)$ with $F$ strictly increasing. Let
    $\Phi$ be any strictly convex, differentiable function on an open convex set that contains
    these $q$, and let mirror descent be $\nabla\Phi(q_{t+1})=\nabla\Phi(q_t)-\varepsilon_tg_t$.
    1. If Adam's constant $\zeta$, `eps` in torch, is 0, no $\Phi$ and no step sizes
    $\varepsilon_t>0$ fixed before the gradient is seen reproduce Adam's steps for all
    gradients, whatever its factors $\beta_1,\beta_2\in[0,1)$. 2. With any $\zeta\ge0$ and any
    $\beta_1,\beta_2\in[0,1)$, no $\Phi$ with a constant $\varepsilon>0$ does.
    """,
)
@pytest.mark.parametrize("first", [0.0, 0.9])
@pytest.mark.parametrize("second", [0.0, 0.5, 0.999])
def test_prop_15_adam(first: float, second: float) -> None:
    """What the proof uses: where torch's Adam is after (g), (2g) and (g, g), for all factors."""
    for g in (0.3, -1.0):
        one, double = (adam([k * g], (first, second)) for k in (1, 2))
        assert math.isclose(one, double) and math.isclose(one, np.sign(g))  # first part
        for zeta in (0.0, 1e-8, 0.5, 3.0):  # second part
            twice = adam([g, g], (first, second), zeta)
            double = adam([2 * g], (first, second), zeta)
            assert math.isclose(twice, 2 * g / (abs(g) + zeta), rel_tol=1e-9)
            assert math.isclose(double, 2 * g / (2 * abs(g) + zeta), rel_tol=1e-9)
            assert not math.isclose(twice, double, rel_tol=1e-3)


def test_prop_15_adam_needs_an_unclipped_step_and_an_injective_law() -> None:
    """Against the wall of uniform noise both rules lead to q = 1, whatever the gradients."""
    for gradients in ([-1.0], [-2.0], [-1.0, -1.0], [-2.0, -2.0]):
        eta = np.clip(0.9 + np.array([-adam(gradients), -sum(gradients)]), -1, 1)
        assert eta.tolist() == [1, 1]  # clipped
        beyond = 1.5 + np.array([-adam(gradients), -sum(gradients)])
        q = Uniform().cdf(torch.tensor(beyond))
        assert q.tolist() == [1, 1]  # flat


def test_one_run_of_adam_is_mirror_descent_with_scales_that_know_the_gradient() -> None:
    """For the constant gradient (1, 0.01) with noise of scales 1 and 0.01: the same p."""
    g, scales = np.array([1.0, 0.01]), np.array([1.0, 0.01])
    for t in (1, 5):
        moved = np.array([adam([v] * t, (0.9, 0.999)) for v in g])
        agree(moved, np.full(2, t))  # both equally fast
        agree(t * g / scales, moved)  # eta / scale of mirror descent, which alone enters F


@pin(
    "eq-15-adam",
    r"""
    \begin{aligned} p_{t+1}=\operatorname*{arg\,min}_q\ &\langle g_t,q\rangle\\
    {}+{}&\frac1\varepsilon\sum_i\bigl(r_{t,i}+\zeta\bigr)\,D_{\Phi}(q_i,p_{t,i}),
    \end{aligned}
    """,
)
def test_eq_15_adam() -> None:
    """The weighted divergence of logistic noise, minimized by search over p; torch's Adam."""
    beta, zeta, lr = 0.9, 1e-3, 0.3
    grid = np.linspace(1e-4, 1 - 1e-4, 400_001)
    gradients, eta, square = (0.7, -1.2, 0.1), 0.2, 0.0
    for t, g in enumerate(gradients, 1):
        p = 1 / (1 + np.exp(-eta))
        square = beta * square + (1 - beta) * g * g
        weight = math.sqrt(square / (1 - beta**t)) + zeta
        kl = grid * np.log(grid / p) + (1 - grid) * np.log((1 - grid) / (1 - p))
        best = grid[(g * grid + weight * kl / lr).argmin()]
        eta = 0.2 - lr * adam(list(gradients[:t]), (0.0, beta), zeta)
        assert abs(1 / (1 + np.exp(-eta)) - best) < 5e-6


# ---------------------------------------------------------------------- the notebook's own


def test_exercise_trap_by_geometry() -> None:
    """The share of the square whose entries lie in one cell and have one sign: 1/2k."""
    for k in (2, 5):
        alpha = 1 / k
        side = (np.arange(2000) + 0.5) / 1000 - 1
        cell = np.floor(side / alpha)
        one = (cell[:, None] == cell).mean()
        assert math.isclose(one, alpha / 2, rel_tol=1e-9)


def test_exercise_trap_mistakes() -> None:
    check = checker(PATH, "check_trapped")
    for k in (2, 8):
        side = (np.arange(1600) + 0.5) / 800 - 1
        same_cell = np.floor(side * k)[:, None] == np.floor(side * k)
        assert same_cell.mean() == pytest.approx(eval(check.value))
        alike = np.sign(side)[:, None] == np.sign(side)
        assert same_cell[alike].mean() == pytest.approx(1 / k)  # of the starts with equal signs
        assert alike.mean() == 0.5
    assert check("0.5/k")
    says_to(check, {"1/k": "different signs", "1/(4*k)": "two of the four",
                    "1/(2*k*k)": "whichever", "0.5": "in one cell"})  # fmt: skip


def test_exercise_float_mistakes() -> None:
    """One draw of 2^24 has the factor 10^9, the others 0.1."""
    check, one = checker(PATH, "check_rho"), 1e9 / 2**24
    assert check(one + 0.1 * (1 - 2**-24)) and check(59.7)
    real = 1e9 * math.tanh(9.02e-9) + 0.1
    says_to(check, {0.1: "all draws but one", one: "the other draws", 1: "real-valued Z",
                    real: "one in 2^24 is inside"})  # fmt: skip


def test_the_checker_refuses_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    check = checker(PATH)
    right = define(PATH, "steps_to_flip")["steps_to_flip"]
    assert check(right) and check(lambda *v: np.float64(right(*v)))
    assert check(lambda *v: np.int64(k) if (k := right(*v)) < math.inf else k)
    wrong = {
        "forgets": lambda c, g, t: math.inf if c <= t else max(1, math.ceil(t / (g * c))),
        "positive slopes": lambda c, g, t: right(abs(c), g, t),
        "tends to d": lambda c, g, t: max(1, math.ceil(t / (g * c))) if c <= t else right(c, g, t),
        "off by one": lambda c, g, t: right(c, g, t) - 1,
        "where m meets the threshold exactly": lambda c, g, t: (
            math.inf if c <= t else math.ceil(math.log(1 - t / c) / math.log(1 - g))
        ),
    }
    for hint, answer in wrong.items():
        capsys.readouterr()
        assert not check(answer)
        assert hint in capsys.readouterr().out, hint


@pytest.fixture(scope="module")
def summaries() -> dict[str, dict]:
    """Means, errors, differences and p-values from the final rows alone, by numpy and scipy."""
    rows = measurement.read(PATH.parents[1] / "measurements" / "weights-digits.json")["rows"]
    final = [r for r in rows if r["part"] == "final"]
    tests = {m: np.array([r["test"] for r in final if r["method"] == m]) for m in weights.METHODS}
    se = {m: v.std(ddof=1) / len(v) ** 0.5 for m, v in tests.items()}
    return {
        m: {
            "mean": v.mean(),
            "se": se[m],
            "gap": v.mean() - tests["real"].mean(),
            "gap_se": np.hypot(se[m], se["real"]),
            "p": stats.ttest_ind(v, tests["real"], equal_var=False).pvalue,
        }
        for m, v in tests.items()
    }


def holm(p: dict[str, float]) -> dict[str, float]:
    """By the definition: the largest of (m - k + 1) p over the smaller ones and itself."""
    order = sorted(p.values())
    raised = [min(1.0, (len(p) - k) * v) for k, v in enumerate(order)]
    return {m: max(raised[: order.index(v) + 1]) for m, v in p.items()}


def test_the_table_is_the_stored_measurement(summaries: dict[str, dict]) -> None:
    said = "".join(printed(c) for c in tagged(PATH, "hide-input"))
    adjusted = holm({m: r["p"] for m, r in summaries.items() if m != "real"})
    for m, row in summaries.items():
        label = weights.METHODS[m].label
        line = next(x for x in said.splitlines() if x.startswith(label + " "))
        expected = [row["mean"], row["se"]]
        if m != "real":
            expected += [row["gap"], row["gap_se"], adjusted[m]]
        numbers = re.findall(r"[+-]?\d\.\d{3,4}", line[40:])
        assert [float(v) for v in numbers] == pytest.approx(expected, abs=5.1e-4)


def test_the_table_s_heads_stand_over_their_columns() -> None:
    table = printed(containing(PATH, "protocol.holm")).splitlines()
    (head,) = (i for i, x in enumerate(table) if x.lstrip().startswith("chosen"))
    columns = table[head + 1 : head + len(weights.METHODS)]  # without the twin
    for name in ("chosen", "test accuracy", "minus twin"):
        at = table[head].index(name)
        assert all(row[at - 1] == " " and row[at] != " " for row in columns)
        if name != "chosen":
            assert all(re.match(r"[+-]?\d\.\d{3} \+- ", row[at:]) for row in columns)
    assert {len(row) for row in columns} == {len(table[head])}  # "p, Holm" ends over its column
    assert len(table[head]) <= 76


def test_what_the_words_say_of_the_table(summaries: dict[str, dict]) -> None:
    words, s = prose(PATH), summaries
    adjusted = holm({m: r["p"] for m, r in s.items() if m != "real"})
    assert [m for m, p in adjusted.items() if p < 0.05] == ["bc_stochastic"]

    def shown(value: float, se: float) -> str:
        return f"${value:.3f}\\pm{se:.3f}$"

    bc, prox = s["bc_stochastic"], s["adam_prox"]
    assert f"below the twin, by {shown(-bc['gap'], bc['gap_se'])}" in words
    assert f"map is at {shown(prox['gap'], prox['gap_se'])}" in words
    assert f"$p={prox['p']:.2f}$ and among seven has ${adjusted['adam_prox']:.3f}$" in words
    rest = s.keys() - {"bc_stochastic", "adam_prox"}
    assert all(abs(s[m]["gap"]) < 0.005 for m in rest)  # "within half a percent"
    gap, se = s["mirror"]["mean"] - bc["mean"], np.hypot(s["mirror"]["se"], bc["se"])
    assert f"is worse by {shown(gap, se)}" in words
    errors = [np.sqrt(r["mean"] * (1 - r["mean"]) / 359) for r in s.values()]
    assert {round(e, 2) for e in errors} == {0.01}


def test_four_of_five_methods_were_level_over_a_factor_of_a_hundred() -> None:
    rows = measurement.read(PATH.parents[1] / "measurements" / "weights-digits.json")["rows"]
    level = {}
    for m in weights.METHODS:
        search = [r for r in rows if r["part"] == "search" and r["method"] == m]
        best = max(r["validation"] for r in search)
        near = [r["lr"] for r in search if r["validation"] >= best - 5.5 / 360]
        if len({r["other"] for r in search}) == 1:
            level[m] = max(near) / min(near) > 100
    assert len(level) == 5 and sum(level.values()) == 4


def test_the_repeated_run_is_the_stored_one() -> None:
    words = printed(containing(PATH, "again = weights.train")).split()
    assert words[1].rstrip(",") == words[3]


# ------------------------------------------------------------------- what the figures draw


@pytest.mark.parametrize(("gamma", "threshold"), [(0.1, 0.2), (0.01, 0.0), (0.01, 0.4), (0.5, 0.0)])
def test_fig_inertia(gamma: float, threshold: float) -> None:
    given = {"gamma": gamma, "threshold": threshold}
    (average, *_), (latent, weight, *_) = curves(PATH, "inertia", **given)
    u = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
    g = 3.4 * u - 1.7 + np.repeat([0.1, -0.1], 100)
    m = [sum(gamma * (1 - gamma) ** (t - j) * g[j] for j in range(t + 1)) for t in range(200)]
    assert np.allclose(average[1], m, atol=1e-12)
    assert np.allclose(3 * latent[1], np.where(np.array(m) > 0, -1, 1))
    w, flips = 1.0, []
    for value, drawn in zip(m, 3 * (weight[1] + 1), strict=True):
        flips.append(w := -np.sign(value) if abs(value) > threshold else w)
        assert math.isclose(drawn, w, abs_tol=1e-9)
    (cell,) = (c for c in tagged(PATH, "hide-input") if "def inertia(" in c.source)
    assert (np.abs(m).max() > 0.8) == (gamma == 0.5)  # what the caption says is cut off
    assert "averages beyond $\\pm0.8$ are cut off" in under(cell)["caption"]
    if threshold == 0.4:  # the answer: "Bop's weight never moves"
        assert set(flips) == {1.0}
    if gamma == 0.01 and threshold == 0:  # "the two rules are one ... steady and late"
        assert np.array_equal(flips, np.where(np.array(m) > 0, -1, 1))


def test_fig_paths() -> None:
    """The latent weight and the weight of each rule, written again from the equations."""
    panels = curves(PATH, "paths")
    random = torch.Generator().manual_seed(3)
    d = 1.6 * torch.rand(120, generator=random, dtype=torch.float64).numpy() - 0.8
    d = d + np.repeat([-0.3, 0.3], [40, 80])
    u = torch.rand(120, generator=random, dtype=torch.float64).numpy()
    eta = dict.fromkeys(("bc", "bop", "bayes", "prox", "parq"), 0.0)
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([p], 0.04, eps=0.0)
    grid, bop_w, rows = np.linspace(-3, 3, 600_001), 1.0, []
    z = np.log((1 - u) / u)
    for t in range(120):
        eta["bc"] = np.clip(eta["bc"] - 0.1 * d[t], -1, 1)
        eta["bop"] = eta["bop"] - 0.1 * (d[t] + 0.5 * eta["bop"])
        bop_w = np.sign(eta["bop"]) if abs(eta["bop"]) > 0.3 else bop_w
        w = np.tanh(eta["bayes"] - z[t])  # 2 tau = 1
        rho = (1 - w * w) / (0.5 * (1 - np.tanh(eta["bayes"] / 2) ** 2))
        eta["bayes"] = eta["bayes"] - 5e-4 * 100 * (2 * rho * d[t] + eta["bayes"] / 100)
        to = eta["prox"] - 0.1 * d[t]
        eta["prox"] = grid[((grid - to) ** 2 / 2 + 0.02 * np.abs(np.abs(grid) - 1)).argmin()]
        eta["parq"] = -0.1 * d[: t + 1].sum()
        p.grad = torch.tensor([d[t]])
        optimizer.step()
        rows.append([
            (eta["bc"], 1.0 if u[t] < (1 + eta["bc"]) / 2 else -1.0),
            (eta["bop"], bop_w),
            (eta["bayes"], np.tanh(eta["bayes"] - z[t])),
            (eta["prox"], eta["prox"]),
            (eta["parq"], np.clip(eta["parq"] / 0.5, -1, 1)),
            (p.item(), 1.0 if p.item() >= 0 else -1.0),
        ])  # fmt: skip
    for panel, walk in zip(panels, np.array(rows).transpose(1, 0, 2), strict=True):
        total, latent, used, *_ = panel
        np.testing.assert_allclose(total[1], -0.1 * d.cumsum(), atol=1e-12)
        np.testing.assert_allclose(latent[1], walk[:, 0], atol=1e-3)
        np.testing.assert_allclose(used[1], walk[:, 1], atol=1e-3)


@pytest.mark.slow
def test_what_the_words_say_of_the_paths() -> None:
    """PARQ's latent weight is the sum, BinaryConnect's has walls, Bop's weight holds on."""
    bc, bop, bayes, _, parq, _ = curves(PATH, "paths")
    assert np.allclose(parq[0][1], parq[1][1]) and not np.allclose(parq[2][1], parq[1][1])
    assert bc[1][1].max() == 1 and bc[0][1].max() > 1.2
    change = np.flatnonzero(np.diff(bop[2][1]))
    assert (np.abs(bop[1][1][change + 1]) > 0.3).all() and len(change) >= 1
    moved = np.abs(np.diff(bayes[1][1]))
    assert np.median(moved) < moved.mean() / 1.3, "small most of the time"
    above = [panel[1][1][-1] > 0 for panel in curves(PATH, "paths")]
    assert above == [False, False, False, True, False, True]  # ProxQuant and Adam


@pytest.mark.parametrize("k", range(4))
def test_fig_maps(k: int) -> None:
    prox, parq = curves(PATH, "maps")
    grid = np.linspace(-3, 3, 60_001)
    for at in range(0, 401, 25):
        v, moved = prox[k][:, at]
        if not np.isnan(moved) and v != 0:
            lam = (0, 0.3, 0.6, 1)[k]
            best = grid[((grid - v) ** 2 / 2 + lam * np.abs(np.abs(grid) - 1)).argmin()]
            assert math.isclose(moved, best, abs_tol=2e-4)
        v, mapped = parq[k][:, at]
        if abs(v) > 1e-9:
            sigma = (1, 0.5, 0.2, 1e-12)[k]
            assert math.isclose(mapped, np.clip(v / sigma, -1, 1), abs_tol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("power", "eta"), [(-1, 2), (-8, 12), (-10, 0)])
def test_fig_factor(power: int, eta: float) -> None:
    (plain, constant, rounds, means, disc), (right, seen, _) = curves(
        PATH, "factor", power=power, eta=eta
    )
    tau = 10.0**power
    for k in range(0, 49, 6):
        at = plain[0][k] / 2
        inner = integrate.quad(
            lambda z, at=at: (1 / np.cosh(tau * z - at) / np.cosh(z)) ** 2 / 2, -25, 25,
            epsabs=0, epsrel=1e-9, limit=200,
        )[0]  # fmt: skip
        assert math.isclose(plain[1][k], inner * np.cosh(at) ** 2, rel_tol=1e-6)
        with_constant = (inner + 1e-10 / tau) / (np.cosh(at) ** -2 + 1e-10)
        assert math.isclose(constant[1][k], with_constant, rel_tol=1e-6)
        mu = np.float32(np.tanh(at))
        one_draw = 1e-10 / tau / (float(np.float32(1) - mu * mu) + 1e-10)
        assert math.isclose(rounds[1][k], one_draw, rel_tol=1e-5)
    for at, mean in [*means.T[:: 3 if power > -4 else 1], disc[:, 0]]:
        assert math.isclose(mean, enumerated(at, "one", tau)[1], rel_tol=1e-5)
    for t, p in right.T[::16]:  # the mass of the logistic law where |eta - Z| < 18.04 tau
        mass = integrate.quad(lambda v: 0.5 / np.cosh(v - eta / 2) ** 2, -9.02 * t, 9.02 * t,
                              epsabs=0, epsrel=1e-9)[0]  # fmt: skip
        assert math.isclose(p, mass, rel_tol=1e-6)
    for t, share in seen.T[::3]:
        assert math.isclose(share, enumerated(eta, "one", t)[0] / 2**24, rel_tol=1e-3)


def test_the_answer_under_the_factor_figure() -> None:
    """The mean at eta = 0 is right at 1e-7 and no more at 1e-8; the spacing of Z at u = 1/2."""
    (cell,) = (c for c in tagged(PATH, "hide-input") if "def factor(" in c.source)
    answer = under(cell)["answer"]
    assert "the mean is 1.01, and at" in answer and "it is 5.97" in answer
    assert round(enumerated(0.0, "one", 1e-7)[1], 2) == 1.01
    assert round(enumerated(0.0, "one", 1e-8)[1], 2) == 5.97
    assert math.isclose(logits("one")[2**23 + 1], 2.4e-7, rel_tol=0.02)


def test_fig_compare_shows_the_stored_runs() -> None:
    """Each dot is a run minus the twin's mean, each diamond their mean with Welch's error."""
    (axis,) = still(PATH, "fig-15-seeds")
    stored = json.loads((PATH.parents[1] / "measurements/weights-digits.json").read_text("utf-8"))
    final = [r for r in stored["rows"] if r["part"] == "final"]
    tests = {m: np.array([r["test"] for r in final if r["method"] == m])
             for m in {r["method"] for r in final}}  # fmt: skip
    twin = tests.pop("real")
    dots = sorted(tuple(line[0]) for line in lines(axis) if line.shape == (2, 10))
    assert np.allclose(dots, sorted(tuple(100 * (t - twin.mean())) for t in tests.values()))
    middles = sorted(line[0, 0] for line in lines(axis) if line.shape == (2, 1) and line[0, 0])
    ours = sorted(100 * (t.mean() - twin.mean()) for t in tests.values())
    assert all(any(math.isclose(m, o, abs_tol=1e-9) for m in middles) for o in ours)
    bars = sorted(np.ptp(c.get_paths()[0].vertices[:, 0]) / 2 for c in axis.collections)
    errors = [100 * np.sqrt(t.var(ddof=1) / 10 + twin.var(ddof=1) / 10) for t in tests.values()]
    assert np.allclose(bars, sorted(errors))


def test_how_long_the_decay_takes_to_leave_the_program_s_start() -> None:
    steps = math.log(20 / 18.04) / 1e-4
    assert 950 < steps < 1050
    assert r"in $\ln(20/18.04)/\alpha$ steps, a thousand at $\alpha=10^{-4}$" in prose(PATH)
