"""Chapter 15, optimizers: both sides of every formula, by enumeration, search and quadrature.

Expected values are written in numpy from the papers; sbnlib appears only where one of its
optimizers is a side of the equality.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from chapters import (
    as_in_the_book,
    chapter,
    containing,
    curves,
    define,
    printed,
    prose,
    run,
    tagged,
    tex,
)
from pins import pin
from scipy import integrate, stats

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
    L(w),\,-1,\,1\bigr),\\ w&=\pm1\ \text{with}\ P(w=1)=\tfrac{1+\eta}2\ \text{(stochastic)}\\
    &\text{or}\quad w=\operatorname{sign}\eta\ \text{(deterministic)}. \end{aligned}
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
    w_{t+1}=\operatorname*{arg\,min}_{q\in[-1,1]^n}\ \Bigl\langle\sum_{s\le t}\partial
    L(w_s)-\tfrac1\alpha\,\eta_1,\ q\Bigr\rangle .
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
    $L$ is convex and differentiable on $\mathbb{R}^n$, the mean gradient $u_t=\frac1t\sum_{s\le
    t}\partial L(w_s)$ is the generalized conditional gradient method with steps $a_t=1/t$ on
    $\min_uL^*(u)+\|u\|_1$, {eq-15-gcg}
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
    \begin{gathered} u_t=(1-a_t)\,u_{t-1}+a_t\,\partial L(w_t),\\
    w_t=-\operatorname{sign}u_{t-1}\ \text{ where }u_{t-1}\\ \text{has no entry }0\quad(t\ge2).
    \end{gathered}
    """,
)
def test_eq_15_gcg() -> None:
    """min_s L*(s) - <w, s> is solved by the gradient: Fenchel-Young, with L* in closed form."""
    H, b = A.T @ A / len(A), A.T @ TARGET / len(A)
    conjugate = lambda s: (s + b) @ np.linalg.solve(H, s + b) / 2  # noqa: E731 up to a constant
    eta = np.zeros(N)
    u = np.zeros(N)
    for t in range(1, 60):
        w = sign(eta)
        if t > 1:
            assert np.array_equal(w, -sign(u))
        s = slope(w)
        for _ in range(5):
            other = s + RNG.normal(size=N)
            assert conjugate(s) - w @ s < conjugate(other) - w @ other
        u = (1 - 1 / t) * u + s / t
        eta = eta - 0.3 * s
        agree(eta, -0.3 * t * u)


def test_the_deterministic_rule_jumps_between_the_worst_corners_for_ever() -> None:
    for start, trapped in (((0.33, 0.31), True), ((0.33, 0.29), False), ((0.3, -0.1), False)):
        eta = np.array(start)
        for _ in range(1001):
            eta = np.clip(eta - 0.1 * sign(eta)[::-1], -1, 1)
        assert (eta.prod() > 0) == trapped


# ----------------------------------------------------------------------------------- Bop


def bop(gamma: float, tau: float) -> tuple[Array, Array]:
    m, w, means, path = np.zeros(N), sign(START), [], []
    for _ in range(STEPS):
        m = (1 - gamma) * m + gamma * slope(w)
        w = np.where((np.abs(m) > tau) & (m * w > 0), -w, w)
        means.append(m)
        path.append(w)
    return np.array(means), np.array(path)


@pin(
    "eq-15-bop",
    r"""
    \begin{gathered} m\leftarrow(1-\gamma)\,m+\gamma\,\partial L(w),\\ w\leftarrow-w\ \text{
    where }\ |m|>\tau\ \text{ and }\ m\,w>0 . \end{gathered}
    """,
)
@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5])
def test_eq_15_bop(tau: float) -> None:
    found = library("sign", Logistic(), lambda q: optim.Bop(q, 0.1, threshold=tau), sign(START))
    assert np.array_equal(found, bop(0.1, tau)[1])


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
    the decayed mirror step of {eq}`eq-14-decay`. Then for all $t$ {eq-15-inertia} With
    threshold $\tau=0$, $w_t=\operatorname{sign}\eta_t$ whenever $\eta_t\ne0$. With $\tau>0$
    there is no function or law $P(w\mid\eta)$ that gives Bop's weight.
    """,
)
def test_thm_15_bop_has_the_sign_of_the_latent_weight_without_threshold_only() -> None:
    means, path = bop(0.1, 0.0)
    assert np.array_equal(path, sign(-means))
    p = torch.tensor([1.0, -1.0], requires_grad=True)
    p.grad = torch.tensor([0.4, 0.4])
    optimizer = optim.Bop([p], 0.5, threshold=1.0)
    optimizer.step()
    assert p.tolist() == [1, -1] and len(set(optimizer.state[p]["mean"].tolist())) == 1


# ----------------------------------------------------------------------------- BayesBiNN


@pin(
    "eq-15-bayes",
    r"""
    \begin{aligned} \lambda&\leftarrow(1-\alpha)\,\lambda-\alpha\bigl[N\,s\,\partial
    L(w)-\lambda_0\bigr],\\ w&=\tanh\frac{\lambda+\delta}{\tau}, \qquad
    s=\frac{1-w^2+10^{-10}}{\tau\,(1-\mu^2+10^{-10})} , \end{aligned}
    """,
)
@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_eq_15_bayes(tau: float) -> None:
    memory: dict[str, Array] = {}

    def step(lam: Array, u: Array) -> Array:
        mu = memory.get("mu", np.tanh(lam))
        memory["mu"] = np.tanh(lam)
        w = np.tanh((lam + np.log((1 - u) / u) / 2) / tau)
        s = (1 - w * w + 1e-10) / (tau * (1 - mu * mu + 1e-10))
        return (1 - 0.002) * lam - 0.002 * (3 * s * slope(w) - 0.3)

    found = library(
        "concrete", Logistic(),
        lambda q: optim.BayesBiNN(q, 0.002, train_set_size=3.0, prior=0.3, stale_mean=True),
        tau=tau,
    )  # fmt: skip
    np.testing.assert_allclose(found, 2 * unroll(step, START / 2), rtol=1e-9, atol=1e-9)


def mean_scale(lam: float, tau: float) -> float:
    """E s over u in (0, 1), by scipy in the variable delta, without the constant."""
    density = lambda d: 0.5 / np.cosh(d) ** 2  # noqa: E731
    slope_of = lambda d: 1 / np.cosh(np.clip((lam + d) / tau, -300, 300)) ** 2 / tau  # noqa: E731
    near = [-lam - 20 * tau, -lam, -lam + 20 * tau]
    value, _ = integrate.quad(
        lambda d: density(d) * slope_of(d), near[0], near[2], points=[near[1]], limit=400
    )
    return value * np.cosh(lam) ** 2


@pin(
    "eq-15-cold",
    r"""
    \begin{aligned}
    \mathbb{E}\,s&=\frac1{1-\mu^2}\int\operatorname{sech}^2(v)\,\tfrac12\operatorname{sech}^2(\tau
    v-\lambda)\,dv\\ &\longrightarrow\ 1\qquad(\tau\to0). \end{aligned}
    """,
)
def test_eq_15_cold() -> None:
    space = define(PATH, "GRID", "exact_mean")
    for lam in (0.0, 0.7, -2.0):
        for tau in (0.3, 0.05, 1e-3):
            assert math.isclose(space["exact_mean"](lam, tau, 0.0), mean_scale(lam, tau),
                                rel_tol=1e-6)  # fmt: skip
        gaps = [abs(mean_scale(lam, tau) - 1) for tau in (0.1, 0.01, 1e-3)]
        assert gaps[2] < gaps[1] < gaps[0] < 0.1 and gaps[2] < 1e-5


@pin(
    "prop-15-cold",
    r"""
    Let $L$ be continuously differentiable, and let the constant be absent and
    $\mu=\tanh\lambda$. Then $\mathbb{E}\,s\,\partial L(w)=\nabla_\mu\,\mathbb{E}L(w)$, where
    $w$ is relaxed; and for every $\lambda$ {eq-15-cold} So with $\lambda_0=0$ the rule
    {eq}`eq-15-bayes` is mirror descent with logistic noise, $\varepsilon=\alpha N$ and decay
    $1/N$, {eq-15-natural}
    """,
)
def test_prop_15_cold_is_the_gradient_of_the_relaxed_mean_loss() -> None:
    """One weight, L = w^3/3 - w: E s L'(w) against a difference quotient of E L(w) in mu."""
    tau, mu = 0.5, 0.4
    node, weight = np.polynomial.legendre.leggauss(400)
    delta = 12 * node

    def mean(f: Callable, lam: float) -> float:
        w = np.tanh((lam + delta) / tau)
        return float(12 * weight @ (0.5 / np.cosh(delta) ** 2 * f(w)))

    left = mean(lambda w: (1 - w * w) / tau / (1 - mu * mu) * (w * w - 1), np.arctanh(mu))
    ends = [mean(lambda w: w**3 / 3 - w, np.arctanh(mu + d)) for d in (1e-5, -1e-5)]
    assert math.isclose(left, (ends[0] - ends[1]) / 2e-5, rel_tol=1e-6)


NATURAL = (
    r"\begin{gathered} \eta\leftarrow\eta-\alpha N\,\bigl(g_\tau+\tfrac1N\,\eta\bigr),\\ "
    r"g_\tau=2\,s\,\partial L(w),\qquad "
    r"\mathbb{E}\,g_\tau=\nabla_p\,\mathbb{E}L(w) . \end{gathered}"
)


@pin(
    "eq-15-natural",
    r"""
    \begin{gathered} \eta\leftarrow\eta-\alpha N\,\bigl(g_\tau+\tfrac1N\,\eta\bigr),\\
    g_\tau=2\,s\,\partial L(w),\qquad \mathbb{E}\,g_\tau=\nabla_p\,\mathbb{E}L(w) .
    \end{gathered}
    """,
)
@pytest.mark.parametrize("size", [3.0, 50.0])
def test_eq_15_natural(size: float) -> None:
    """As it is printed: the released step, the step in g_tau, mirror descent on ``eta.grad``."""
    assert tex(PATH, "eq-15-natural") == NATURAL
    alpha, tau = 0.002, 0.5

    def scaled(lam: Array, u: Array) -> tuple[Array, Array]:
        w = np.tanh((lam + np.log(u / (1 - u)) / 2) / tau)
        return (1 - w * w) / (tau * (1 - np.tanh(lam) ** 2)), slope(w)

    def released(lam: Array, u: Array) -> Array:
        s, dL = scaled(lam, 1 - u)
        return (1 - alpha) * lam - alpha * size * s * dL

    def natural(eta: Array, u: Array) -> Array:
        s, dL = scaled(eta / 2, 1 - u)
        g = 2 * s * dL
        return eta - alpha * size * (g + eta / size)

    agree(2 * unroll(released, START / 2), unroll(natural))
    rate, decay = alpha * size, 1 / size
    for make in (
        lambda q: optim.MirrorDescent(q, rate, kl=decay),
        lambda q: optim.BayesBiNN(q, alpha, train_set_size=size),
    ):
        found = library("concrete", Logistic(), make, tau=tau, eps=0.0)
        np.testing.assert_allclose(found, unroll(natural), rtol=1e-10, atol=1e-10)


def test_eq_15_natural_holds_on_average() -> None:
    """E g_tau of the layer against a difference quotient in p; one weight, L = w^3/3 - w."""
    tau, p = 0.5, 0.7
    node, weight = np.polynomial.legendre.leggauss(2000)
    u, measure = (1 + node) / 2, weight / 2

    def relaxed_loss(p: float) -> float:
        w = np.tanh((np.log(p / (1 - p)) + np.log(u / (1 - u))) / (2 * tau))
        return float(measure @ (w**3 / 3 - w))

    layer = BernoulliLinear(1, 1, bias=False, forward="concrete", tau=tau, eps=0)
    torch.nn.init.constant_(layer.eta, math.log(p / (1 - p)))
    w = layer.weight(u=torch.tensor(u)[:, None, None]).flatten()
    (torch.tensor(measure) * (w**3 / 3 - w)).sum().backward()
    quotient = (relaxed_loss(p + 1e-5) - relaxed_loss(p - 1e-5)) / 2e-5
    assert math.isclose(layer.eta.grad.item(), quotient, rel_tol=1e-7)


@pin(
    "eq-15-float",
    r"""
    \begin{gathered} s=\frac{10^{-10}/\tau}{1-\mu^2+10^{-10}}\\ \text{whenever }w\text{ rounds
    to }\pm1 . \end{gathered}
    """,
)
@pytest.mark.parametrize("tau", [1e-10, 1e-8])
@pytest.mark.parametrize("lam", [0.0, 2.0, 10.0])
def test_eq_15_float(tau: float, lam: float) -> None:
    """The factor read off a step of the library in float32; dL/dw = 1."""
    mu = np.tanh(np.float32(lam))
    factor = (1e-10 / tau) / (float(np.float32(1) - mu * mu) + 1e-10)
    if lam == 10:
        assert math.isclose(factor, 1 / tau)
    lr = min(0.25 / factor, 1.0)
    layer = BernoulliLinear(1, 1, False, dtype=torch.float32, forward="concrete", tau=tau)
    torch.nn.init.constant_(layer.eta, 2 * lam)
    w = layer.weight(u=torch.full((1, 1), 0.3))  # w = tanh((lam + 0.42)/tau)
    assert (1 - w**2).item() == 0
    w.sum().backward()
    optim.BayesBiNN(layer.parameters(), lr).step()
    found = (2 * lam * (1 - lr) - layer.eta.item()) / (2 * lr)
    assert math.isclose(found, factor, rel_tol=2e-5)


# ---------------------------------------------------------------------- ProxQuant, PARQ, Adam


@pin(
    "eq-15-maps",
    r"""
    \begin{aligned} \text{ProxQuant:}\quad\eta&\leftarrow\operatorname{prox}_{\kappa
    R}\bigl(\eta-\alpha\,\partial L(\eta)\bigr),\\ R(\eta)&=\sum_i\bigl||\eta_i|-1\bigr|;\\
    \text{PARQ:}\quad\eta&\leftarrow\eta-\alpha\,\partial L(w),\\
    w&=\operatorname{clip}(s\,\eta,-1,1). \end{aligned}
    """,
)
def test_eq_15_maps() -> None:
    grid = np.linspace(-3, 3, 600_001)
    for kappa in (0.1, 0.7):
        for v in (-1.9, -0.6, 0.2, 0.95, 1.4):
            best = grid[((grid - v) ** 2 / 2 + kappa * np.abs(np.abs(grid) - 1)).argmin()]
            moved = torch.tensor([v])
            optim.proxquant(moved, kappa)
            assert abs(moved.item() - best) < 2e-5
    for s in (1.0, 4.0):
        moved = torch.tensor([-1.9, -0.1, 0.2, 1.4])
        optim.parq(moved, s)
        agree(moved.numpy(), np.clip(s * np.array([-1.9, -0.1, 0.2, 1.4]), -1, 1))


@pin(
    "eq-15-parq",
    r"""
    \begin{gathered} \operatorname{clip}(s\,\eta,-1,1)=2F(\eta)-1=\mu,\\ F\text{ of uniform
    noise on }[-\tfrac1s,\tfrac1s]. \end{gathered}
    """,
)
@pytest.mark.parametrize("s", [1.0, 4.0])
def test_eq_15_parq(s: float) -> None:
    eta = np.linspace(-2, 2, 9)
    agree(2 * Uniform(1 / s).cdf(torch.tensor(eta)).numpy() - 1, np.clip(s * eta, -1, 1))


@pin(
    "prop-15-parq",
    r"""
    PARQ at a constant slope $s$ is lazy mirror descent {eq}`eq-14-lazy` with uniform noise of
    scale $1/s$, $\varepsilon=\alpha/2$, and the gradient at the mean: {eq-15-parq} If $L$ is
    multilinear, $2\,\partial L(\mu)=g$ exactly, without sampling. At $s=\infty$ it is
    deterministic BinaryConnect without the clip.
    """,
)
@pytest.mark.parametrize("s", [1.0, 4.0])
def test_prop_15_parq_is_lazy_mirror_descent_at_the_mean(s: float) -> None:
    noise = Uniform(1 / s)
    lazy = library("mean", noise, lambda q: optim.MirrorDescent(q, 0.1, noise=noise, lazy=True))
    agree(lazy, unroll(lambda eta, _: eta - 0.2 * slope(np.clip(s * eta, -1, 1))))
    layer = BernoulliLinear(N, 1, bias=False, noise=noise, forward="mean")
    layer.eta.data.copy_(torch.tensor(np.clip(s * START, -1, 1)))
    base = torch.optim.SGD(layer.parameters(), 0.1)
    wrapped = optim.Proximal(base, optim.parq, s, lazy=True)
    wrapped.state[layer.eta]["latent"] = torch.tensor(START)[None]
    for t in range(STEPS):  # the parameter is the mapped weight: use it as it is
        layer.eta.grad = torch.tensor(2 * slope(layer.eta.detach().numpy()[0]))[None]
        wrapped.step()
        agree(wrapped.state[layer.eta]["latent"].numpy()[0], lazy[t])


def adam(gradients: list[float], beta: float = 0.9, c: float = 0.0) -> float:
    """Distance that Adam without momentum goes with rate 1, by torch."""
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([p], 1.0, betas=(0.0, beta), eps=c)
    for g in gradients:
        p.grad = torch.tensor([g])
        optimizer.step()
    return -p.item()


@pin(
    "prop-15-adam",
    r"""
    Let $\Phi$ be any strictly convex, differentiable function on an open convex set, and let
    $\nabla\Phi(q_{t+1})=\nabla\Phi(q_t)-\varepsilon_tg_t$. 1. If Adam's constant $c$ is 0, no
    $\Phi$ and no step sizes $\varepsilon_t>0$ fixed before the gradient is seen reproduce
    Adam's steps for all gradients, whatever its factors $\beta_1,\beta_2\in[0,1)$. 2. With any
    $c\ge0$ and any $\beta_1,\beta_2\in[0,1)$, no $\Phi$ with a constant $\varepsilon>0$ does.
    """,
)
def test_prop_15_adam() -> None:
    assert math.isclose(adam([1.0]), adam([2.0])), "first step"
    for c in (1e-8, 0.5, 3.0):
        for beta in (0.0, 0.5, 0.999):
            assert math.isclose(adam([1.0, 1.0], beta, c), 2 / (1 + c), rel_tol=1e-9)
            assert math.isclose(adam([2.0, 0.0], beta, c), 2 / (2 + c), rel_tol=1e-9)


@pin(
    "eq-15-adam",
    r"""
    \begin{aligned} p_{t+1}=\operatorname*{arg\,min}_q\ &\langle g_t,q\rangle\\
    {}+{}&\frac1\varepsilon\sum_i\bigl(\sqrt{v_{t,i}}+c\bigr)\,D_{\Phi}(q_i,p_{t,i}),
    \end{aligned}
    """,
)
def test_eq_15_adam() -> None:
    """The weighted divergence of logistic noise, minimized by search over p."""
    beta, c, lr = 0.9, 1e-3, 0.3
    grid = np.linspace(1e-4, 1 - 1e-4, 400_001)
    eta, v = 0.2, 0.0
    for t, g in enumerate((0.7, -1.2, 0.1), 1):
        p = 1 / (1 + np.exp(-eta))
        v = beta * v + (1 - beta) * g * g
        weight = math.sqrt(v / (1 - beta**t)) + c
        kl = grid * np.log(grid / p) + (1 - grid) * np.log((1 - grid) / (1 - p))
        best = grid[(g * grid + weight * kl / lr).argmin()]
        eta -= lr * g / weight
        assert abs(1 / (1 + np.exp(-eta)) - best) < 5e-6


# ---------------------------------------------------------------------- the notebook's own


def test_exercise_trap_by_geometry() -> None:
    """The share of the square whose entries lie in one cell and have one sign."""
    for k in (2, 5):
        alpha = 1 / k
        side = (np.arange(2000) + 0.5) / 1000 - 1
        cell = np.floor(side / alpha)
        one = (cell[:, None] == cell).mean()
        assert math.isclose(one, alpha / 2, rel_tol=1e-9)


def test_the_checker_refuses_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    check = run(PATH, *tagged(PATH, "checker"))["check"]
    right = define(PATH, "steps_to_flip")["steps_to_flip"]
    assert check(right) and check(lambda *v: np.float64(right(*v)))
    assert check(lambda *v: np.int64(k) if (k := right(*v)) < math.inf else k)
    wrong = {
        "forgets": lambda c, g, t: math.inf if c <= t else max(1, math.ceil(t / (g * c))),
        "positive slopes": lambda c, g, t: right(abs(c), g, t),
        "tends to c": lambda c, g, t: max(1, math.ceil(t / (g * c))) if c <= t else right(c, g, t),
        "off by one": lambda c, g, t: right(c, g, t) - 1,
        "where m meets tau exactly": lambda c, g, t: (
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
        numbers = re.findall(r"[+-]?\d\.\d{3,4}", line[42:])
        assert [float(v) for v in numbers] == pytest.approx(expected, abs=5.1e-4)


def test_what_the_words_say_of_the_table(summaries: dict[str, dict]) -> None:
    words, s = prose(PATH), summaries
    adjusted = holm({m: r["p"] for m, r in s.items() if m != "real"})
    assert [m for m, p in adjusted.items() if p < 0.05] == ["bc_stochastic"]

    def shown(value: float, se: float) -> str:
        return f"${value:.3f}\\pm{se:.3f}$"

    bc, prox = s["bc_stochastic"], s["adam_prox"]
    assert f"below the twin, by {shown(-bc['gap'], bc['gap_se'])}" in words
    assert f"map is at {shown(prox['gap'], prox['gap_se'])}" in words
    assert f"$p={prox['p']:.2f}$ and among seven has ${adjusted['adam_prox']:.2f}$" in words
    rest = s.keys() - {"bc_stochastic", "adam_prox"}
    assert all(abs(s[m]["gap"]) < 0.005 for m in rest)  # "within a half per cent"
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


@pytest.mark.parametrize(("gamma", "tau"), [(0.1, 0.2), (0.01, 0.0)])
def test_fig_inertia(gamma: float, tau: float) -> None:
    (average, *_), (latent, weight, *_) = curves(PATH, "inertia", gamma=gamma, tau=tau)
    u = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
    g = 3.4 * u - 1.7 + np.repeat([0.1, -0.1], 100)
    m = [sum(gamma * (1 - gamma) ** (t - s) * g[s] for s in range(t + 1)) for t in range(200)]
    assert np.allclose(average[1], m, atol=1e-12)
    assert np.allclose(3 * latent[1], np.where(np.array(m) > 0, -1, 1))
    w = 1.0
    for value, drawn in zip(m, 3 * (weight[1] + 1), strict=True):
        w = -np.sign(value) if abs(value) > tau else w
        assert math.isclose(drawn, w, abs_tol=1e-9)


@pytest.mark.parametrize(("power", "lam"), [(-1, 2), (-8, 12)])
def test_fig_factor(power: int, lam: float) -> None:
    (plain, constant, single, _), (right, dot) = curves(PATH, "factor", power=power, lam=lam)
    tau = 10.0**power
    for k in range(0, 49, 6):
        at = plain[0][k]
        mean = integrate.quad(
            lambda v, at=at: (np.cosh(at) / np.cosh(tau * v - at) / np.cosh(v)) ** 2 / 2, -25, 25
        )[0]
        assert math.isclose(plain[1][k], mean, rel_tol=1e-6)
        inner = mean / np.cosh(at) ** 2
        with_constant = (inner + 1e-10 / tau) / (np.cosh(at) ** -2 + 1e-10)
        assert math.isclose(constant[1][k], with_constant, rel_tol=1e-6)
        u = (np.arange(1000, dtype=np.float32) + np.float32(0.5)) / np.float32(1000)
        w = np.tanh((np.float32(at) + np.log(u / (1 - u)) / 2) / np.float32(tau))
        mu = np.tanh(np.float32(at))
        s = (1 - w * w + np.float32(1e-10)) / np.float32(tau) / (1 - mu * mu + np.float32(1e-10))
        assert math.isclose(single[1][k], s.mean(dtype=float), rel_tol=2e-2)
    for t, p in (*right.T[::16], dot[:, 0]):  # the mass of 1/(2 cosh^2) where |lam + d| < 9.02 t
        mass = integrate.quad(lambda v: 0.5 / np.cosh(v - lam) ** 2, -9.02 * t, 9.02 * t,
                              epsabs=0, epsrel=1e-9)[0]  # fmt: skip
        assert math.isclose(p, mass, rel_tol=1e-6)
