"""Optimizers of binary weights, against the published updates written out in numpy.

Each reference is written from its paper, on a small regression whose gradient is coded by hand;
none uses sbnlib. Agreement is over 100 steps with the same uniforms handed in.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise
from scipy import integrate, optimize
from torch import nn

from sbnlib import Gaussian, Logistic, Uniform
from sbnlib.nn import BernoulliLinear
from sbnlib.optim import BayesBiNN, BinaryConnect, Bop, MirrorDescent, Proximal, parq, proxquant

Array = np.ndarray
noises = pytest.mark.parametrize("noise_name", ref.NOISES)
STEPS, WIDTH = 100, 6

# ------------------------------------------------ a regression, L(w) = mean_b (w x_b - y_b)^2

RNG = np.random.default_rng(12)
INPUTS, TARGETS = RNG.normal(size=(9, WIDTH)), 3 * RNG.normal(size=9)
UNIFORMS = RNG.uniform(size=(STEPS, WIDTH))
START = RNG.uniform(-0.9, 0.9, size=WIDTH)


def slope(w: Array) -> Array:
    """dL/dw at the weights used."""
    return 2 / len(TARGETS) * INPUTS.T @ (INPUTS @ w - TARGETS)


def make_layer(forward: str, start: Array = START, **options: object) -> BernoulliLinear:
    layer = BernoulliLinear(WIDTH, 1, bias=False, forward=forward, **options).double()
    with torch.no_grad():
        layer.eta.copy_(torch.tensor(start)[None])
    return layer


def one_step(layer: BernoulliLinear, optimizer: torch.optim.Optimizer, u: Array) -> None:
    """Zero, forward, ``loss.backward()``, step: the loop of any torch user."""
    optimizer.zero_grad()
    dtype = layer.eta.dtype
    random = {"u": torch.tensor(u)[None]} if layer.mode in ("sample", "concrete") else {}
    out = layer(torch.tensor(INPUTS, dtype=dtype), **random)[:, 0]
    (out - torch.tensor(TARGETS, dtype=dtype)).square().mean().backward()
    optimizer.step()


def train(layer: BernoulliLinear, optimizer: torch.optim.Optimizer, us: Array = UNIFORMS) -> Array:
    """Latent weights after every step, (steps, width)."""
    path = []
    for u in us:
        one_step(layer, optimizer, u)
        path.append(layer.eta.detach().double().numpy()[0].copy())
    return np.array(path)


def unroll(step: Callable[[Array, Array], Array], start: Array = START) -> Array:
    """The same for a reference update ``step(state, uniforms)``."""
    path = []
    for u in UNIFORMS:
        path.append(start := step(start, u))
    return np.array(path)


def sign(w: Array) -> Array:
    return np.where(w >= 0, 1.0, -1.0)


def agree(first: Array, second: Array) -> None:
    np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------- closed forms of each mirror map


def cdf(name: str, eta: Array) -> Array:
    return ref.RefNoise(name).cdf(eta)


def icdf(name: str, p: Array) -> Array:
    if name == "FastSigmoid":
        return np.where(p < 0.5, 1 - 0.5 / p, 0.5 / (1 - p) - 1)
    return ref.RefNoise(name).scipy().ppf(p)


def potential(name: str, p: Array) -> Array:
    """Phi with Phi' = F^-1 and p in (0, 1), integrated by hand."""
    low = np.minimum(p, 1 - p)
    return {
        "Logistic": lambda: p * np.log(p) + (1 - p) * np.log(1 - p),
        "Uniform": lambda: p * p - p,
        "Triangular": lambda: 2 * math.sqrt(2) / 3 * low**1.5 - low,
        "Gaussian": lambda: -np.exp(-0.5 * icdf(name, p) ** 2) / math.sqrt(2 * math.pi),
        "Cauchy": lambda: -np.log(np.sin(np.pi * p)) / np.pi,
        "FastSigmoid": lambda: low - 0.5 * np.log(low),
    }[name]()


def divergence(name: str, p: Array, q: Array) -> Array:
    """D_Phi(p, q)."""
    return potential(name, p) - potential(name, q) - icdf(name, q) * (p - q)


@noises
def test_the_potentials_written_here_have_the_quantile_as_derivative(noise_name: str) -> None:
    for p in (0.03, 0.3, 0.71, 0.96):
        step = 1e-6
        up, down = (potential(noise_name, np.array(p + d)) for d in (step, -step))
        assert math.isclose((up - down) / (2 * step), icdf(noise_name, np.array(p)), rel_tol=1e-7)


def test_the_divergence_is_a_kl_for_logistic_noise_and_a_square_for_uniform() -> None:
    p, q = np.array([0.1, 0.6, 0.9]), np.array([0.5, 0.2, 0.95])
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(divergence("Logistic", p, q), kl, rtol=1e-12)
    np.testing.assert_allclose(divergence("Uniform", p, q), (p - q) ** 2, rtol=1e-12)


# --------------------------------------------------------------------------- mirror descent


def library_step(name: str, eta: float, g: float, **options: object) -> float:
    """One step of MirrorDescent on one weight; the new eta."""
    p = torch.tensor([eta], dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([g], dtype=torch.float64)
    MirrorDescent([p], noise=make_noise(name), **options).step()
    return p.item()


def numeric_argmin(objective: Callable[[float], float]) -> float:
    options = {"xatol": 1e-12}
    tiny = 1e-13
    found = optimize.minimize_scalar(
        objective, bounds=(tiny, 1 - tiny), method="bounded", options=options
    )
    return float(found.x)


CASES = [(-0.6, 1.3), (0.2, -0.8), (0.85, 0.4), (-0.9, 3.0)]  # the last leaves a bounded support


@noises
@pytest.mark.parametrize("eta, g", CASES)
def test_a_step_is_the_argmin_of_the_linear_model_plus_the_divergence(
    noise_name: str, eta: float, g: float
) -> None:
    lr, now = 0.3, float(cdf(noise_name, np.array(eta)))
    best = numeric_argmin(lambda p: g * p + divergence(noise_name, p, now) / lr)
    new = library_step(noise_name, eta, g, lr=lr)
    assert abs(cdf(noise_name, np.array(new)) - best) < 1e-6


@noises
@pytest.mark.parametrize("eta, g", CASES)
@pytest.mark.parametrize("proximal", [False, True])
def test_decay_is_the_pull_of_the_divergence_from_one_half(
    noise_name: str, eta: float, g: float, proximal: bool
) -> None:
    """Proximal: the divergence stands in the argmin whole. Explicit: its linear model does."""
    lr, kl, now = 0.3, 0.7, float(cdf(noise_name, np.array(eta)))
    up, down = (divergence(noise_name, now + step, 0.5) for step in (1e-6, -1e-6))
    pull = (up - down) / 2e-6

    def objective(p: float) -> float:
        regularizer = divergence(noise_name, p, 0.5) if proximal else pull * p
        return g * p + kl * regularizer + divergence(noise_name, p, now) / lr

    new = library_step(noise_name, eta, g, lr=lr, kl=kl, proximal=proximal)
    assert abs(cdf(noise_name, np.array(new)) - numeric_argmin(objective)) < 1e-6


def mirror_reference(
    name: str, lr: float, kl: float = 0.0, proximal: bool = False, lazy: bool = False
) -> Callable[[Array, Array], Array]:
    """The update in eta, with g = 2 dL/dw at a sampled weight."""
    high = 1.0 if name in ref.BOUNDED and not lazy else np.inf

    def step(eta: Array, u: Array) -> Array:
        g = 2 * slope(np.where(u < cdf(name, eta), 1.0, -1.0))
        new = (eta - lr * g) / (1 + lr * kl) if proximal else eta - lr * (g + kl * eta)
        return np.clip(new, -high, high)

    return step


@noises
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("proximal", [False, True])
def test_mirror_descent_over_a_hundred_steps(noise_name: str, proximal: bool, lazy: bool) -> None:
    options = {"kl": 0.3, "proximal": proximal, "lazy": lazy}
    noise = make_noise(noise_name)
    layer = make_layer("sample", noise=noise)
    found = train(layer, MirrorDescent(layer.parameters(), 0.01, noise=noise, **options))
    agree(found, unroll(mirror_reference(noise_name, 0.01, **options)))
    assert np.abs(np.diff(sign(found), axis=0)).sum() > 0, "no weight ever changed its sign"


def test_mirror_descent_is_identity_straight_through_at_half_the_rate() -> None:
    """SGD with lr on dL/dw (the weight's own gradient) is MirrorDescent with lr/2 on ``grad``."""
    layer = make_layer("sample")
    found = train(layer, MirrorDescent(layer.parameters(), 0.01))

    def identity(eta: Array, u: Array) -> Array:
        return eta - 0.02 * slope(np.where(u < cdf("Logistic", eta), 1.0, -1.0))

    agree(found, unroll(identity))
    twin = make_layer("sample")
    agree(train(twin, torch.optim.SGD(twin.parameters(), 0.01)), found)


def test_uniform_noise_is_projected_gradient_descent_on_probabilities() -> None:
    """p <- clip(p - (lr/2) g, 0, 1), with the half."""
    noise, lr = Uniform(), 0.02
    layer = make_layer("sample", noise=noise)
    found = train(layer, MirrorDescent(layer.parameters(), lr, noise=noise))

    def projected(p: Array, u: Array) -> Array:
        return np.clip(p - lr / 2 * 2 * slope(np.where(u < p, 1.0, -1.0)), 0, 1)

    agree((1 + found) / 2, unroll(projected, (1 + START) / 2))
    assert (np.abs(found) == 1).any(), "the projection was never used"


@pytest.mark.parametrize("noise_name", ref.BOUNDED)
def test_eager_and_lazy_differ_by_a_half_after_thirty_steps_out_and_ten_back(
    noise_name: str,
) -> None:
    noise, p = make_noise(noise_name), {}
    for lazy in (False, True):
        layer = BernoulliLinear(1, 1, False, noise=noise).double()
        nn.init.zeros_(layer.eta)
        optimizer = MirrorDescent(layer.parameters(), 0.1, noise=noise, lazy=lazy)
        for t in range(40):
            layer.eta.grad = torch.full_like(layer.eta, 1.0 if t < 30 else -1.0)
            optimizer.step()
        p[lazy] = layer.p.item()
    assert math.isclose(p[False], 0.5, abs_tol=1e-12) and p[True] == 0
    for name in set(ref.NOISES) - set(ref.BOUNDED):  # a whole line has nothing to project on
        steps = [library_step(name, 0.3, 50.0, lr=1.0, lazy=lazy) for lazy in (False, True)]
        assert steps[0] == steps[1]


def test_the_projection_is_on_the_scaled_support() -> None:
    p = torch.tensor([0.05, -0.05], requires_grad=True)
    optimizer = MirrorDescent([p], 1.0, noise=Uniform(0.1))
    for _ in range(3):  # float32(0.1) > 0.1: the end itself must still count as inside
        p.grad = torch.tensor([-1.0, 1.0])
        optimizer.step()
    assert torch.equal(p.detach(), torch.tensor([0.1, -0.1]))


def test_explicit_and_proximal_decay_differ_in_second_order_and_share_their_fixed_point() -> None:
    eta, g, kl = 0.8, 0.3, 0.6
    gaps = []
    for lr in (0.02, 0.01, 0.005):
        explicit, exact = (
            library_step("Logistic", eta, g, lr=lr, kl=kl, proximal=p) for p in (False, True)
        )
        gaps.append(abs(explicit - exact))
    assert all(3.8 < a / b < 4.2 for a, b in zip(gaps, gaps[1:], strict=False))
    for proximal in (False, True):
        still = library_step("Logistic", -g / kl, g, lr=0.5, kl=kl, proximal=proximal)
        assert math.isclose(still, -g / kl, rel_tol=1e-12)


@noises
def test_without_a_gradient_decay_pulls_to_one_half(noise_name: str) -> None:
    eta, distance = 0.9, []
    for _ in range(60):
        eta = library_step(noise_name, eta, 0.0, lr=0.5, kl=0.2)
        distance.append(float(divergence(noise_name, cdf(noise_name, np.array(eta)), 0.5)))
    assert math.isclose(eta, 0.9 * 0.9**60, rel_tol=1e-9)
    assert all(a > b > 0 for a, b in zip(distance, distance[1:], strict=False))


@noises
def test_mirror_descent_is_the_fisher_natural_gradient_for_logistic_noise_only(
    noise_name: str,
) -> None:
    """Natural gradient in p: dp = -lr g / I(p), with I = 1/(p(1 - p)) for a Bernoulli law."""
    ratios, lr = [], 1e-7
    for eta in (-0.9, -0.4, 0.1, 0.7):
        p = cdf(noise_name, np.array(eta))
        new = cdf(noise_name, np.array(library_step(noise_name, eta, 1.0, lr=lr)))
        ratios.append((p - new) / lr / (p * (1 - p)))
    spread = max(ratios) / min(ratios) - 1
    assert (spread < 1e-6) == (noise_name == "Logistic")
    if noise_name != "Logistic":
        assert spread > 0.02


# ---------------------------------------------------------------- the geometry theorem


def proxy(name: str, noise: ref.RefNoise) -> Callable[[Array], Array]:
    f, F = noise.pdf, noise.cdf
    return {
        "identity": lambda a: np.ones_like(a),
        "through F": f,
        "Fisher": lambda a: F(a) * (1 - F(a)) / f(a),
        "tanh": lambda a: 1 / np.cosh(a) ** 2,
    }[name]


def simulate(noise_name: str, h: Callable[[Array], Array], lr: float, time: float) -> Array:
    """Probabilities after identity-ST steps damped by h, with the library's exact gradients."""
    noise = make_noise(noise_name)
    layer = BernoulliLinear(2, 1, False, noise=noise, forward="mean").double()
    with torch.no_grad():
        layer.eta.copy_(torch.tensor([[0.3, -0.4]]))
    optimizer = MirrorDescent(layer.parameters(), lr, noise=noise)
    for _ in range(round(time / lr)):
        optimizer.zero_grad()
        w = layer.weight()[0]
        (w[0] * w[1] + 0.7 * w[0] - 0.2 * w[1]).backward()
        layer.eta.grad.mul_(torch.tensor(h(layer.eta.detach().numpy())))
        optimizer.step()
    return layer.p.numpy()[0]


def mirror_flow(noise_name: str, h: Callable[[Array], Array], time: float) -> Array:
    """dp/dt = -g(p)/Phi''(p) with Phi'' = 1/(f h) at F^-1(p), integrated in p by scipy."""
    noise = ref.RefNoise(noise_name)

    def velocity(_: float, p: Array) -> Array:
        mu, eta = 2 * p - 1, icdf(noise_name, p)
        g = 2 * np.array([mu[1] + 0.7, mu[0] - 0.2])
        return -noise.pdf(eta) * h(eta) * g

    start = noise.cdf(np.array([0.3, -0.4]))
    return integrate.solve_ivp(velocity, (0, time), start, rtol=1e-9, atol=1e-10).y[:, -1]


@pytest.mark.parametrize("h_name", ["identity", "through F", "Fisher", "tanh"])
@pytest.mark.parametrize("noise_name", ["Logistic", "Cauchy", "Triangular"])
def test_small_steps_follow_the_mirror_flow_of_the_geometry_theorem(
    noise_name: str, h_name: str
) -> None:
    """The gap to the flow with Phi'' = 1/(f h) is proportional to the step."""
    h = proxy(h_name, ref.RefNoise(noise_name))
    flow = mirror_flow(noise_name, h, 0.3)
    gaps = [np.abs(simulate(noise_name, h, lr, 0.3) - flow).max() for lr in (1e-2, 2e-3)]
    assert gaps[1] < 2e-3 and 4 < gaps[0] / gaps[1] < 6


def test_sgd_through_f_is_identity_straight_through_on_another_latent_weight() -> None:
    """Logistic, h = f: Phi'' = 1/f^2, the latent weight u = 2 eta + 2 sinh eta."""
    gaps = []
    for lr in (1e-2, 1e-3):
        eta = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([eta], lr)
        for _ in range(round(0.5 / lr)):
            optimizer.zero_grad()
            torch.sigmoid(eta).sum().backward()  # g = dL/dp = 1
            optimizer.step()
        u = lambda e: 2 * e + 2 * math.sinh(e)  # noqa: E731
        gaps.append(abs(u(eta.item()) - (u(0.4) - 0.5)))
    assert gaps[1] < 1e-3 and 8 < gaps[0] / gaps[1] < 12


@noises
def test_the_flow_is_fishers_iff_f_times_h_is_the_variance(noise_name: str) -> None:
    noise, eta = ref.RefNoise(noise_name), np.array([-0.9, -0.4, 0.1, 0.7])
    variance = noise.cdf(eta) * (1 - noise.cdf(eta))
    ratio = noise.pdf(eta) * proxy("Fisher", noise)(eta) / variance
    np.testing.assert_allclose(ratio, 1, rtol=1e-12)
    other = noise.pdf(eta) / variance  # h = 1
    assert (np.ptp(other) < 1e-12) == (noise_name == "Logistic")


# ----------------------------------------------------------------- momentum and Adam's step


def test_momentum_is_heavy_ball_on_the_gradient() -> None:
    layer = make_layer("sample")
    found = train(layer, MirrorDescent(layer.parameters(), 0.003, momentum=0.8, kl=0.1))
    memory = {"m": np.zeros(WIDTH)}

    def step(eta: Array, u: Array) -> Array:
        g = 2 * slope(np.where(u < cdf("Logistic", eta), 1.0, -1.0))
        memory["m"] = g + 0.8 * memory["m"]
        return eta - 0.003 * (memory["m"] + 0.1 * eta)

    agree(found, unroll(step))


def test_betas_give_adams_direction() -> None:
    layer = make_layer("sample")
    options = {"betas": (0.8, 0.95), "eps": 1e-6}
    found = train(layer, MirrorDescent(layer.parameters(), 0.05, kl=0.1, **options))
    memory = {"t": 0, "m": np.zeros(WIDTH), "v": np.zeros(WIDTH)}

    def step(eta: Array, u: Array) -> Array:
        g = 2 * slope(np.where(u < cdf("Logistic", eta), 1.0, -1.0))
        memory["t"] += 1
        memory["m"] = 0.8 * memory["m"] + (1 - 0.8) * g
        memory["v"] = 0.95 * memory["v"] + (1 - 0.95) * g * g
        mean = memory["m"] / (1 - 0.8 ** memory["t"])
        square = memory["v"] / (1 - 0.95 ** memory["t"])
        return eta - 0.05 * (mean / (np.sqrt(square) + 1e-6) + 0.1 * eta)

    agree(found, unroll(step))


# ------------------------------------------------ BinaryConnect: Courbariaux et al. 2015


def binary_connect(stochastic: bool, lr: float) -> Callable[[Array, Array], Array]:
    """Algorithm 1: w_b = binarize(w), w <- clip(w - lr dC/dw_b), with the hard sigmoid."""

    def step(w: Array, u: Array) -> Array:
        hard_sigmoid = np.clip((w + 1) / 2, 0, 1)
        binary = np.where(u < hard_sigmoid, 1.0, -1.0) if stochastic else sign(w)
        return np.clip(w - lr * slope(binary), -1, 1)

    return step


@pytest.mark.parametrize("forward", ["sample", "sign"])
def test_binary_connect_is_the_papers_algorithm(forward: str) -> None:
    layer = make_layer(forward, noise=Uniform())
    found = train(layer, BinaryConnect(layer.parameters(), 0.03))
    agree(found, unroll(binary_connect(forward == "sample", 0.03)))
    assert (np.abs(found) == 1).any(), "the clip was never used"


def test_stochastic_binary_connect_is_mirror_descent_with_uniform_noise_at_half_the_rate() -> None:
    layer = make_layer("sample", noise=Uniform())
    found = train(layer, MirrorDescent(layer.parameters(), 0.015, noise=Uniform()))
    agree(found, unroll(binary_connect(True, 0.03)))


def test_deterministic_binary_connect_is_lazy_parq_with_infinite_slope() -> None:
    """The gradient at the rounded point and steps that accumulate: dual averaging."""
    twin = make_layer("mean", noise=Uniform())
    with torch.no_grad():
        twin.eta.copy_(torch.tensor(sign(START)))
    base = BinaryConnect(twin.parameters(), 0.03)
    optimizer = Proximal(base, parq, math.inf, lazy=True)
    optimizer.state[twin.eta]["latent"] = torch.tensor(START)[None]
    found = []
    for u in UNIFORMS:
        one_step(twin, optimizer, u)
        found.append(optimizer.state[twin.eta]["latent"].numpy()[0].copy())
    agree(np.array(found), unroll(binary_connect(False, 0.03)))
    assert torch.equal(twin.eta.detach(), torch.tensor(sign(found[-1]))[None])


def test_the_deterministic_gradient_is_not_that_of_the_expected_loss() -> None:
    layer = make_layer("sign", noise=Uniform())
    one_step(layer, torch.optim.SGD(layer.parameters(), 0.0), UNIFORMS[0])
    mean_gradient = 2 * (slope(START) - 2 * (INPUTS**2).mean(0) * START)  # dE L/dp, by hand
    assert np.abs(layer.eta.grad.numpy()[0] - mean_gradient).max() > 1


# ----------------------------------------------------------------- Bop: Helwegen et al. 2019


def bop(gamma: float, threshold: float, w: Array) -> tuple[Array, Array]:
    """Algorithm 1: weights and moving averages after each step."""
    m, weights, means = np.zeros(WIDTH), [], []
    for _ in range(STEPS):
        m = (1 - gamma) * m + gamma * slope(w)
        w = np.where((np.abs(m) > threshold) & (sign(m) == w), -w, w)
        weights.append(w)
        means.append(m)
    return np.array(weights), np.array(means)


@pytest.mark.parametrize("gamma, threshold", [(0.1, 0.05), (0.3, 1e-8), (0.5, 1.0), (0.02, 0.0)])
def test_bop_is_the_papers_algorithm(gamma: float, threshold: float) -> None:
    layer = make_layer("sign", sign(START))
    optimizer = Bop(layer.parameters(), gamma, threshold=threshold)
    weights, means = bop(gamma, threshold, sign(START))
    for t in range(STEPS):
        one_step(layer, optimizer, UNIFORMS[t])
        assert np.array_equal(layer.eta.detach().numpy()[0], weights[t])
        agree(optimizer.state[layer.eta]["mean"].numpy()[0], means[t])
    assert np.abs(np.diff(weights, axis=0)).sum() > 0, "no weight ever flipped"


@pytest.mark.parametrize("gamma", [0.02, 0.3])
def test_bop_without_threshold_is_the_sign_of_a_decayed_mirror_step(gamma: float) -> None:
    """gamma = eps lambda and m_t = -lambda eta_t, for eta <- eta - eps (dL/dw + lambda eta).

    On ``grad`` = 2 dL/dw that is MirrorDescent with lr = eps/2 and kl = 2 lambda.
    """
    decay = 0.5
    eps = gamma / decay
    w = sign(START)
    latent = torch.zeros(1, WIDTH, dtype=torch.float64, requires_grad=True)
    mirror = MirrorDescent([latent], eps / 2, kl=2 * decay)
    layer = make_layer("sign", w)
    optimizer = Bop(layer.parameters(), gamma, threshold=0.0)
    weights, means = bop(gamma, 0.0, w)
    for t in range(STEPS):
        latent.grad = torch.tensor(2 * slope(w))[None]
        mirror.step()
        one_step(layer, optimizer, UNIFORMS[t])
        w = layer.eta.detach().numpy()[0].copy()
        eta = latent.detach().numpy()[0]
        assert np.array_equal(w, sign(eta)) and np.array_equal(w, weights[t])
        agree(means[t], -decay * eta)
        agree(optimizer.state[layer.eta]["mean"].numpy()[0], -decay * eta)


def test_bops_hysteresis_is_extra() -> None:
    """With a threshold the weight is not a function of the average: both signs at one m."""
    p = torch.tensor([1.0, -1.0], requires_grad=True)
    optimizer = Bop([p], 0.5, threshold=1.0)
    p.grad = torch.tensor([0.2, 0.2])
    optimizer.step()
    assert p.tolist() == [1, -1]
    assert optimizer.state[p]["mean"].tolist() == pytest.approx([0.05, 0.05])


def test_bop_makes_weights_binary_at_its_first_step() -> None:
    p = torch.tensor([0.3, -0.2, 0.0, -0.0], requires_grad=True)
    p.grad = torch.zeros(4)
    Bop([p], 0.1).step()
    assert p.tolist() == [1, -1, 1, 1]


# ----------------------------------------------------------- BayesBiNN: Meng et al. 2020


def bayes_bi_nn(
    lr: float, tau: float, size: float, prior: float, eps: float, stale: bool
) -> Callable[[Array, Array], Array]:
    """The released update (one sample, no momentum) in lambda, or with a fresh mean.

    delta = log(u/(1 - u))/2 there is -Z/2 here, hence 1 - u.
    """
    memory: dict[str, Array] = {}

    def step(lam: Array, u: Array) -> Array:
        mean = memory.get("mu", np.tanh(lam)) if stale else np.tanh(lam)
        delta = 0.5 * np.log((1 - u) / u)
        w = np.tanh((lam + delta) / tau)
        scale = (1 - w * w + eps) / tau / (1 - mean * mean + eps)
        memory["mu"] = np.tanh(lam)
        return lam - lr * (size * scale * slope(w) + (lam - prior))

    return step


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("tau", [1.0, 0.3])
@pytest.mark.parametrize("prior", [0.0, 0.4])
def test_bayesbinn_is_the_released_update(tau: float, prior: float, stale: bool) -> None:
    given = {"tau": tau, "prior": prior, "eps": 1e-10}
    # At larger rates mu rounds to 1 and 1/(1 - mu^2) makes rounding errors visible.
    layer = make_layer("concrete", tau=tau)
    optimizer = BayesBiNN(layer.parameters(), 0.002, train_set_size=3.0, stale_mean=stale, **given)
    expected = unroll(bayes_bi_nn(0.002, size=3.0, stale=stale, **given), START / 2)
    agree(train(layer, optimizer), 2 * expected)
    assert 0.5 < np.abs(expected[-1] - START / 2).max() < 4


def test_the_stale_mean_matters() -> None:
    fresh, stale = (
        unroll(bayes_bi_nn(0.002, 0.3, 3.0, 0.0, 1e-10, late), START / 2) for late in (False, True)
    )
    assert np.abs(fresh - stale).max() > 1e-3


@pytest.mark.parametrize("tau", [1e-10, 1e-8])
def test_in_float32_bayesbinns_scale_is_its_added_constant(tau: float) -> None:
    """(1e-10/tau)/(1 - mu^2 + 1e-10) times identity-ST on sign(lambda + delta), mu one step late.

    1 - w^2 rounds to 0. Learning rates are small, so that mu stays away from 1.
    """
    layer = make_layer("concrete", tau=tau).float()
    lr = 1e-3 * tau / 1e-10
    optimizer = BayesBiNN(layer.parameters(), lr, tau=tau, stale_mean=True)
    memory: dict[str, Array] = {}

    def step(lam: Array, u: Array) -> Array:
        mean = memory.get("mu", np.tanh(lam))
        memory["mu"] = np.tanh(lam)
        factor = (1e-10 / tau) / (1 - mean**2 + 1e-10)
        return lam - lr * (factor * slope(sign(lam + 0.5 * np.log((1 - u) / u))) + lam)

    found = train(layer, optimizer)
    np.testing.assert_allclose(found, 2 * unroll(step, START / 2), rtol=2e-5, atol=2e-5)
    assert set(np.unique(layer.eta.used.numpy())) == {-1, 1}


def test_at_a_certain_weight_the_released_factor_is_ten_to_the_ten() -> None:
    """lambda_0 = 10 in float32: mu = 1, and the step is 1e10 times identity-ST."""
    p = torch.full((1,), 20.0, requires_grad=True)
    p.used, p.grad = torch.ones(1), torch.full((1,), 2.0)  # dL/dw = 1
    BayesBiNN([p], 1e-12, tau=1e-10).step()
    assert math.isclose(20 - p.item(), 2 * 1e-12 * 1e10, rel_tol=1e-4)


def test_bayesbinn_needs_the_last_forward_to_be_concrete() -> None:
    for modes in ([], ["sample"], ["concrete", "sample"], ["concrete", "sign"]):
        layer = make_layer("concrete", tau=0.5)
        optimizer = BayesBiNN(layer.parameters(), 0.1, tau=0.5)
        layer.eta.grad = torch.ones_like(layer.eta)
        for mode in modes:
            layer.weight(mode)
        before = layer.eta.detach().clone()
        with pytest.raises(ValueError, match="concrete.*parameter 0 of group 0"):
            optimizer.step()
        assert torch.equal(before, layer.eta)


def test_an_evaluation_before_the_step_does_not_disturb_bayesbinn() -> None:
    paths = []
    for evaluate in (False, True):
        layer = make_layer("concrete", tau=0.5)
        optimizer = BayesBiNN(layer.parameters(), 0.02, tau=0.5)
        for u in UNIFORMS[:5]:
            optimizer.zero_grad()
            out = layer(torch.tensor(INPUTS), u=torch.tensor(u)[None])
            out.square().mean().backward()
            if evaluate:
                with torch.no_grad():
                    layer(torch.tensor(INPUTS)), layer(torch.tensor(INPUTS), mode="sign")
            optimizer.step()
        paths.append(layer.eta.detach().clone())
    assert torch.equal(*paths)


# -------------------------------------------- ProxQuant: Bai et al. 2019; PARQ: Jin et al. 2025


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.9, 3.0])
def test_proxquant_is_the_proximal_map_of_the_w_shaped_regularizer(strength: float) -> None:
    at = np.array([-2.3, -1.05, -1.0, -0.7, -0.1, 0.02, 0.6, 1.0, 1.4, 3.0])
    eta = torch.tensor(at)
    proxquant(eta, strength)
    grid = np.linspace(-5, 5, 10**6 + 1)
    for start, found in zip(at, eta.tolist(), strict=True):
        energy = 0.5 * (grid - start) ** 2 + strength * np.minimum(abs(grid - 1), abs(grid + 1))
        assert abs(grid[energy.argmin()] - found) < 2e-5


def test_proxquant_keeps_plus_and_minus_one_and_takes_zero_to_the_plus_side() -> None:
    eta = torch.tensor([1.0, -1.0, 0.0, -0.0])
    proxquant(eta, 0.3)
    torch.testing.assert_close(eta, torch.tensor([1.0, -1.0, 0.3, 0.3]))


def test_proxquant_over_a_hundred_annealed_steps() -> None:
    """theta <- prox_{lambda_t}(theta - lr grad L(theta)), lambda_t = t/2000; the map is eager."""
    p = torch.tensor(START, requires_grad=True)
    optimizer = Proximal(torch.optim.SGD([p], 0.005), proxquant, lambda t: t / 2000)
    theta = START
    for t in range(1, STEPS + 1):
        p.grad = torch.tensor(2 * slope(p.detach().numpy()))
        optimizer.step()
        moved = theta - 0.01 * slope(theta)
        size = np.abs(moved)
        theta = sign(moved) * (1 + np.sign(size - 1) * np.maximum(np.abs(size - 1) - t / 2000, 0))
        agree(p.detach().numpy(), theta)


def parq_map(u: Array, inverse_slope: float) -> Array:
    """The paper's piecewise-affine map for the levels Q = {-1, 1}, interval by interval."""
    levels = np.array([-1.0, 1.0])
    index = np.searchsorted(levels, u)
    low, high = levels[np.maximum(index - 1, 0)], levels[np.minimum(index, 1)]
    centre = (low + high) / 2
    return np.clip(centre + (u - centre) / inverse_slope, low, high)


def test_parq_over_a_hundred_annealed_steps() -> None:
    """u <- u - lr grad L(w), w <- map(u): the steps accumulate, in the paper and with ``lazy``."""
    p = torch.tensor(parq_map(START, 1.0), requires_grad=True)
    optimizer = Proximal(
        torch.optim.SGD([p], 0.005), parq, lambda t: 1 / (1 - (t - 1) / STEPS), lazy=True
    )
    u, w = START, START
    for t in range(1, STEPS + 1):
        p.grad = torch.tensor(2 * slope(p.detach().numpy()))
        optimizer.step()
        u = u - 0.01 * slope(w)
        w = parq_map(u, 1 - (t - 1) / STEPS)
        agree(optimizer.state[p]["latent"].numpy(), u)
        agree(p.detach().numpy(), w)
    assert np.abs(u).max() > 1 and (np.abs(w) == 1).any()


def test_an_eager_parq_map_multiplies_its_slopes() -> None:
    """Why PARQ is lazy: with no gradient at all, ten maps of slope 1.2 are one of 1.2^10."""
    for lazy, expected in ((True, 0.12), (False, 0.1 * 1.2**10)):
        p = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
        optimizer = Proximal(torch.optim.SGD([p], 0.1), parq, 1.2, lazy=lazy)
        for _ in range(10):
            p.grad = torch.zeros_like(p)
            optimizer.step()
        assert math.isclose(p.item(), expected, rel_tol=1e-12)


def test_parq_with_infinite_slope_is_the_sign() -> None:
    eta = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 5.0])
    parq(eta, math.inf)
    assert eta.tolist() == [1, 1, 1, -1, 1]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_proximal_closure_gives_the_gradient_at_the_mapped_weight(lazy: bool) -> None:
    paths = []
    for closed in (False, True):
        layer = make_layer("mean")
        optimizer = Proximal(torch.optim.SGD(layer.parameters(), 0.01), parq, 1.5, lazy=lazy)

        def closure(layer: nn.Module = layer, optimizer: Proximal = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = layer(torch.tensor(INPUTS)).square().mean()
            loss.backward()
            return loss

        for _ in range(5):
            loss = optimizer.step(closure) if closed else (closure(), optimizer.step())[0]
            assert loss.requires_grad
        paths.append(layer.eta.detach().clone())
    assert torch.equal(*paths)


def test_a_schedule_of_the_proximal_optimizer_reaches_its_base() -> None:
    p = torch.zeros(2, requires_grad=True)
    optimizer = Proximal(torch.optim.SGD([p], 1.0), proxquant, 0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    for _ in range(3):
        p.grad = -torch.ones(2)
        optimizer.step()
        schedule.step()
    assert p.tolist() == [1.75, 1.75]


# ----------------------------------------------------------------------- states and groups

MAKERS: dict[str, tuple[str, Callable]] = {
    "mirror": ("sample", lambda p: MirrorDescent(p, 0.01, kl=0.1)),
    "mirror uniform": ("sample", lambda p: MirrorDescent(p, 0.01, noise=Uniform(), lazy=True)),
    "mirror momentum": ("sample", lambda p: MirrorDescent(p, 0.01, momentum=0.9, proximal=True)),
    "mirror adam": ("sample", lambda p: MirrorDescent(p, 0.01, betas=(0.9, 0.99))),
    "mirror both": ("sample", lambda p: MirrorDescent(p, 0.01, betas=(0.9, 0.99), momentum=0.5)),
    "binary connect": ("sample", lambda p: BinaryConnect(p, 0.01)),
    "bop": ("sign", lambda p: Bop(p, 0.1, threshold=0.05)),
    "bayesbinn": ("concrete", lambda p: BayesBiNN(p, 0.01)),
    "bayesbinn stale": ("concrete", lambda p: BayesBiNN(p, 0.01, stale_mean=True)),
    "proxquant": (
        "mean",
        lambda p: Proximal(torch.optim.SGD(p, 0.01, momentum=0.9), proxquant, lambda t: t / 500),
    ),
    "parq adam": (
        "mean",
        lambda p: Proximal(torch.optim.Adam(p, 0.01), parq, lambda t: 1 + t / 20, lazy=True),
    ),
    "parq mirror": (
        "mean",
        lambda p: Proximal(MirrorDescent(p, 0.01, momentum=0.9), parq, 1.5, lazy=True),
    ),
}
optimizers = pytest.mark.parametrize("name", MAKERS)


def made(name: str) -> tuple[BernoulliLinear, torch.optim.Optimizer]:
    forward, make = MAKERS[name]
    layer = make_layer(forward)
    return layer, make(layer.parameters())


@optimizers
def test_a_run_continued_from_a_checkpoint_is_the_uninterrupted_run(name: str) -> None:
    layer, optimizer = made(name)
    train(layer, optimizer, UNIFORMS[:8])
    file = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = train(layer, optimizer, UNIFORMS[8:20])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other = made(name)
    again.load_state_dict(saved["layer"])
    other.load_state_dict(saved["optimizer"])
    assert np.array_equal(train(again, other, UNIFORMS[8:20]), expected)


@pytest.mark.parametrize("name", [n for n in MAKERS if not n.startswith(("prox", "parq"))])
def test_an_optimizer_copied_with_its_layer_goes_on_alike(name: str) -> None:
    layer, optimizer = made(name)
    train(layer, optimizer, UNIFORMS[:4])
    twin, other = copy.deepcopy((layer, optimizer))
    expected = train(layer, optimizer, UNIFORMS[4:10])
    assert np.array_equal(train(twin, other, UNIFORMS[4:10]), expected)


@optimizers
def test_groups_are_stepped_each_with_its_own_rate(name: str) -> None:
    forward, make = MAKERS[name]
    start = make_layer(forward, -START)
    layers = [make_layer(forward), start]
    together = make([{"params": [layers[0].eta]}, {"params": [layers[1].eta], "lr": 0.003}])
    alone = [make_layer(forward), copy.deepcopy(start)]
    apart = [make([{"params": [m.eta], "lr": together.param_groups[k]["lr"]}])
             for k, m in enumerate(alone)]  # fmt: skip
    for u in UNIFORMS[:10]:
        for m, o in zip(alone, apart, strict=True):
            one_step(m, o, u)
        for m in layers:  # gradients of both, then one step
            random = {"u": torch.tensor(u)[None]} if m.mode in ("sample", "concrete") else {}
            m.zero_grad()
            out = m(torch.tensor(INPUTS), **random)[:, 0]
            (out - torch.tensor(TARGETS)).square().mean().backward()
        together.step()
    for m, n in zip(layers, alone, strict=True):
        assert torch.equal(m.eta, n.eta)


@optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept(name: str, dtype: torch.dtype) -> None:
    forward, make = MAKERS[name]
    layer = make_layer(forward).to(dtype)
    optimizer = make(layer.parameters())
    train(layer, optimizer, UNIFORMS[:3])
    tensors = [v for v in optimizer.state[layer.eta].values() if isinstance(v, torch.Tensor)]
    assert layer.eta.dtype == dtype and bool(layer.eta.isfinite().all())
    assert all(v.dtype == dtype for v in tensors if v.dim())


@optimizers
def test_parameters_without_a_gradient_are_skipped(name: str) -> None:
    forward, make = MAKERS[name]
    layer, idle = make_layer(forward), torch.full((2,), 0.3, requires_grad=True)
    train(layer, make([idle, layer.eta]), UNIFORMS[:3])
    assert idle.tolist() == torch.full((2,), 0.3).tolist()


@optimizers
def test_gradients_are_left_as_they_are(name: str) -> None:
    layer, optimizer = made(name)
    for u in UNIFORMS[:3]:
        one_step(layer, optimizer, u)
    kept = layer.eta.grad.clone()
    optimizer.step()
    assert torch.equal(layer.eta.grad, kept)


@pytest.mark.parametrize("make", [lambda p: MirrorDescent(p, 0.1), lambda p: Bop(p, 0.1)])
def test_a_closure_is_run_with_gradients_and_its_loss_returned(make: Callable) -> None:
    p = torch.tensor([0.5], requires_grad=True)
    optimizer = make([p])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 3 * p.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.5
    assert p.item() != 0.5 and optimizer.step() is None


# ------------------------------------------------------------------------------- bad input


@pytest.fixture
def p() -> torch.Tensor:
    return torch.tensor([0.5, -0.5], requires_grad=True)


@pytest.mark.parametrize("make", [MirrorDescent, BinaryConnect, BayesBiNN, Bop])
@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf])
def test_bad_rates_are_refused(p: torch.Tensor, make: Callable, lr: float) -> None:
    with pytest.raises(ValueError, match=f"lr.*{lr}"):
        make([p], lr)
    with pytest.raises(ValueError, match=f"lr.*{lr}"):
        make([{"params": [p], "lr": lr}], 0.1)
    optimizer = make([p], 0.1)
    with pytest.raises(ValueError, match=f"lr.*{lr}"):
        optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "lr": lr})


BAD_OPTIONS = [
    (MirrorDescent, {"kl": -0.1}, "kl"),
    (MirrorDescent, {"kl": math.inf}, "kl"),
    (MirrorDescent, {"momentum": 1.0}, "momentum"),
    (MirrorDescent, {"momentum": -0.1}, "momentum"),
    (MirrorDescent, {"betas": (0.9, 1.0)}, "betas"),
    (MirrorDescent, {"betas": (-0.1, 0.9)}, "betas"),
    (MirrorDescent, {"betas": (0.9,)}, "betas"),
    (Bop, {"lr": 1.5}, "lr.*gamma"),
    (Bop, {"threshold": -1e-9}, "threshold"),
    (Bop, {"threshold": math.nan}, "threshold"),
    (BayesBiNN, {"tau": 0.0}, "tau"),
    (BayesBiNN, {"tau": -1.0}, "tau"),
    (BayesBiNN, {"tau": math.nan}, "tau"),
]


@pytest.mark.parametrize("make, options, match", BAD_OPTIONS)
def test_bad_options_are_refused_for_all_and_for_one_group(
    p: torch.Tensor, make: Callable, options: dict, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make([p], **({"lr": 0.1} | options))
    with pytest.raises(ValueError, match=match):
        make([{"params": [p], **options}], lr=0.1)


def test_noise_is_a_noise_model_and_one_for_all_groups(p: torch.Tensor) -> None:
    for wrong in ("Logistic", Logistic, 1.0):
        with pytest.raises(TypeError, match="noise"):
            MirrorDescent([p], 0.1, noise=wrong)
    with pytest.raises(ValueError, match="noise"):
        MirrorDescent([{"params": [p], "noise": Uniform()}], 0.1)


@pytest.mark.parametrize("name", [n for n in MAKERS if not n.startswith(("prox", "parq"))])
def test_nan_gradients_are_refused_by_name_before_anything_changes(name: str) -> None:
    forward, make = MAKERS[name]
    layer, other = make_layer(forward), make_layer(forward)
    optimizer = make([{"params": [layer.eta]}, {"params": [torch.ones(1), other.eta]}])
    for m in (layer, other):
        m(torch.tensor(INPUTS)).sum().backward()
    optimizer.step()
    before = [layer.eta.detach().clone(), other.eta.detach().clone()]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    other.eta.grad[0, 2] = math.nan
    with pytest.raises(ValueError, match=r"gradient of parameter 1 of group 1, shape \(1, 6\)"):
        optimizer.step()
    assert torch.equal(layer.eta, before[0]) and torch.equal(other.eta, before[1])
    after = optimizer.state_dict()["state"]
    for k, values in state.items():
        assert all(np.array_equal(v, after[k][n]) for n, v in values.items())


def test_named_parameters_are_named_in_errors() -> None:
    layer = make_layer("sample")
    optimizer = MirrorDescent(layer.named_parameters(), 0.1)
    layer.eta.grad = torch.full_like(layer.eta, math.nan)
    with pytest.raises(ValueError, match="parameter eta of group 0"):
        optimizer.step()


@pytest.mark.parametrize("noise_name", ref.BOUNDED)
def test_latent_weights_outside_a_bounded_support_are_refused_unless_lazy(noise_name: str) -> None:
    inside = torch.tensor([0.5], requires_grad=True)
    outside = torch.tensor([0.2, -1.01], requires_grad=True)

    def step(noise: object, **options: object) -> None:
        inside.grad, outside.grad = torch.ones(1), torch.ones(2)
        MirrorDescent([inside, outside], 0.1, noise=noise, **options).step()

    with pytest.raises(ValueError, match=r"parameter 1.*support \[-1, 1\] of .*lazy"):
        step(make_noise(noise_name))
    assert inside.item() == 0.5, "an earlier parameter was changed"
    step(make_noise(noise_name, 2.0))
    step(make_noise(noise_name), lazy=True)
    step(Gaussian())
    assert outside[1].item() < -1.2
