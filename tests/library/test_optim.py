"""Every optimizer that sbnlib lists, against its published update and against its neighbours.

The updates are written from the papers in ``tests/support/updates.py``, which does not use
sbnlib's; here they run beside it on a small regression whose gradient is coded by hand, with the
same uniforms handed in.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise
from discovered import NOISES
from reference import Array, RefNoise
from regression import (
    INPUTS,
    START,
    STEPS,
    UNIFORMS,
    WIDTH,
    agree,
    loss_of,
    make_layer,
    one_step,
    slope,
    train,
    unroll,
)
from scipy import integrate, optimize
from torch import distributed, multiprocessing, nn
from updates import CASES, MAPS, Case, bayes_bi_nn, mirror_case, sign

from sbnlib import Uniform, optim
from sbnlib.nn import BernoulliLinear
from sbnlib.optim import BayesBiNN, BinaryConnect, Bop, MirrorDescent, Proximal, parq, proxquant

noises = pytest.mark.parametrize("noise_name", NOISES)
cases = pytest.mark.parametrize("name", CASES)

# ------------------------------------------------------------------- the published updates


def check_path(case: Case) -> Array:
    """A hundred steps of the layer and the optimizer are a hundred of the published update."""
    layer, update = case.layer(START), case.update()

    def published(eta: Array, u: Array) -> Array:
        used = case.used(eta, u)
        return update(eta, slope(used), used)

    expected = unroll(published)
    agree(train(layer, case.make(layer.parameters())), expected)
    return expected


@pytest.mark.slow
@cases
def test_a_run_is_the_published_update(name: str) -> None:
    path = check_path(CASES[name])
    assert np.abs(np.diff(sign(path), axis=0)).sum() > 0, "no weight ever changed its sign"
    assert (np.abs(path) == 1).any() == CASES[name].ends, "the ends at +-1 were not as they should"


@noises
def test_mirror_descent_with_every_noise_is_the_published_update(noise_name: str) -> None:
    check_path(mirror_case(noise_name, 0.01, kl=0.3, proximal=True))


@pytest.mark.parametrize("name", MAPS)
def test_a_map_works_in_place_and_is_the_published_one(name: str) -> None:
    at = np.array([-2.3, -1.05, -1.0, -0.7, -0.1, 0.0, 0.02, 0.6, 1.0, 1.4, 3.0])
    for strength in MAPS[name].strengths:
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
            eta = torch.tensor(at, dtype=dtype)
            assert getattr(optim, name)(eta, strength) is None
            np.testing.assert_allclose(eta, MAPS[name].value(at, strength), rtol=0, atol=tolerance)


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


@noises
@pytest.mark.parametrize(("kl", "proximal"), [(0.0, False), (0.7, False), (0.7, True)])
def test_a_step_is_the_argmin_of_the_linear_model_plus_the_divergence(
    noise_name: str, kl: float, proximal: bool
) -> None:
    """And ``kl`` times the divergence from 1/2: whole where proximal, else its linear model."""
    law, lr = RefNoise(noise_name), 0.3
    for eta, g in ((0.2, -0.8), (-0.9, 3.0)):  # the second leaves a bounded support
        now = float(law.cdf(eta))
        up, down = (law.divergence(now + step, 0.5) for step in (1e-6, -1e-6))
        pull = (up - down) / 2e-6

        def objective(p: float, g: float = g, now: float = now, pull: float = pull) -> float:
            regularizer = law.divergence(p, 0.5) if proximal else pull * p
            return g * p + kl * regularizer + law.divergence(p, now) / lr

        new = library_step(noise_name, eta, g, lr=lr, kl=kl, proximal=proximal)
        assert abs(law.cdf(new) - numeric_argmin(objective)) < 1e-6


def test_mirror_descent_is_identity_straight_through_at_half_the_rate() -> None:
    """SGD with lr on dL/dw (the weight's own gradient) is MirrorDescent with lr/2 on ``grad``."""
    layer = make_layer("sample")
    found = train(layer, MirrorDescent(layer.parameters(), 0.01))

    def identity(eta: Array, u: Array) -> Array:
        return eta - 0.02 * slope(np.where(u < RefNoise("Logistic").cdf(eta), 1.0, -1.0))

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
    for name in set(NOISES) - set(ref.BOUNDED):  # a whole line has nothing to project on
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
    law, eta, distance = RefNoise(noise_name), 0.9, []
    for _ in range(60):
        eta = library_step(noise_name, eta, 0.0, lr=0.5, kl=0.2)
        distance.append(float(law.divergence(law.cdf(eta), 0.5)))
    assert math.isclose(eta, 0.9 * 0.9**60, rel_tol=1e-9)
    assert all(a > b > 0 for a, b in zip(distance, distance[1:], strict=False))


@noises
def test_mirror_descent_is_the_fisher_natural_gradient_for_logistic_noise_only(
    noise_name: str,
) -> None:
    """Natural gradient in p: dp = -lr g / I(p), with I = 1/(p(1 - p)) for a Bernoulli law."""
    law, ratios, lr = RefNoise(noise_name), [], 1e-7
    for eta in (-0.9, -0.4, 0.1, 0.7):
        p, new = law.cdf(eta), law.cdf(library_step(noise_name, eta, 1.0, lr=lr))
        ratios.append((p - new) / lr / (p * (1 - p)))
    spread = max(ratios) / min(ratios) - 1
    assert (spread < 1e-6) == (noise_name == "Logistic")
    if noise_name != "Logistic":
        assert spread > 0.02


# ---------------------------------------------------------------- the geometry theorem


#: Damping of the gradient by h: its name, its function of the law.
DAMPING: dict[str, Callable[[RefNoise, Array], Array]] = {
    "identity": lambda law, a: np.ones_like(a),
    "through F": lambda law, a: law.pdf(a),
    "Fisher": lambda law, a: law.cdf(a) * law.cdf(-a) / law.pdf(a),
    "tanh": lambda law, a: 1 / np.cosh(a) ** 2,
}


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
    law = RefNoise(noise_name)

    def velocity(_: float, p: Array) -> Array:
        mu, eta = 2 * p - 1, law.icdf(p)
        g = 2 * np.array([mu[1] + 0.7, mu[0] - 0.2])
        return -law.pdf(eta) * h(eta) * g

    start = law.cdf(np.array([0.3, -0.4]))
    return integrate.solve_ivp(velocity, (0, time), start, rtol=1e-9, atol=1e-10).y[:, -1]


@pytest.mark.parametrize(("noise_name", "h_name"), [
    ("Logistic", "identity"), ("Logistic", "tanh"), ("Cauchy", "Fisher"),
    ("Triangular", "through F"), ("Triangular", "identity"),
])  # fmt: skip
def test_small_steps_follow_the_mirror_flow_of_the_geometry_theorem(
    noise_name: str, h_name: str
) -> None:
    """The gap to the flow with Phi'' = 1/(f h) is proportional to the step."""
    law = RefNoise(noise_name)

    def h(a: Array) -> Array:
        return DAMPING[h_name](law, a)

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


# ------------------------------------------------ BinaryConnect: Courbariaux et al. 2015


def test_stochastic_binary_connect_is_mirror_descent_with_uniform_noise_at_half_the_rate() -> None:
    layer = make_layer("sample", noise=Uniform())
    found = train(layer, MirrorDescent(layer.parameters(), 0.015, noise=Uniform()))
    twin = make_layer("sample", noise=Uniform())
    agree(found, train(twin, BinaryConnect(twin.parameters(), 0.03)))


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
    layer = make_layer("sign", noise=Uniform())
    agree(np.array(found), train(layer, BinaryConnect(layer.parameters(), 0.03)))
    assert torch.equal(twin.eta.detach(), torch.tensor(sign(found[-1]))[None])


def test_the_deterministic_gradient_is_not_that_of_the_expected_loss() -> None:
    layer = make_layer("sign", noise=Uniform())
    one_step(layer, torch.optim.SGD(layer.parameters(), 0.0), UNIFORMS[0])
    mean_gradient = 2 * (slope(START) - 2 * (INPUTS**2).mean(0) * START)  # dE L/dp, by hand
    assert np.abs(layer.eta.grad.numpy()[0] - mean_gradient).max() > 1


# ----------------------------------------------------------------- Bop: Helwegen et al. 2019


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
    for t in range(STEPS):
        latent.grad = torch.tensor(2 * slope(w))[None]
        mirror.step()
        one_step(layer, optimizer, UNIFORMS[t])
        w = layer.eta.detach().numpy()[0].copy()
        eta = latent.detach().numpy()[0]
        assert np.array_equal(w, sign(eta))
        agree(optimizer.state[layer.eta]["mean"].numpy()[0], -decay * eta)


def test_bops_hysteresis_is_extra() -> None:
    """With a threshold the weight is not a function of the average: both signs at one m."""
    p = torch.tensor([1.0, -1.0], requires_grad=True)
    optimizer = Bop([p], 0.5, threshold=1.0)
    p.grad = torch.tensor([0.2, 0.2])
    optimizer.step()
    assert p.tolist() == [1, -1]
    assert optimizer.state[p]["mean"].tolist() == pytest.approx([0.05, 0.05])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_with_their_rounding_error_fed_back_are_lazy_mirror_descent(
    momentum: float,
) -> None:
    # Chapter 20: w and e = y - w are the latent weight in two parts, for random signs too, and
    # with momentum if the error before and the one after are folded into it
    lr, g = 0.05, np.random.default_rng(0)
    maze = g.normal(size=(12, 12))

    def rounded(y: Array, u: Array) -> Array:
        return np.where(u < (1 + y.clip(-1, 1)) / 2, 1.0, -1.0)

    def gradient(w: Array) -> Array:  # one that a flip changes altogether
        return np.sin(30 * maze @ w)

    y, keep = 0.4 * g.normal(size=12), np.zeros(12)
    eta = torch.tensor(y).requires_grad_()
    latent = MirrorDescent([eta], lr, noise=Uniform(), lazy=True, momentum=momentum)
    draws, fed_back, wanted = g.uniform(size=(200, 12)), [], []
    w = rounded(y, draws[0])
    e = y - w
    if momentum:
        keep = -e / (lr * momentum)
    for u in draws[1:]:
        wanted.append(rounded(eta.detach().numpy(), draws[len(wanted)]))
        fed_back.append(w)
        eta.grad = torch.tensor(gradient(wanted[-1]))
        latent.step()
        keep = momentum * keep + gradient(w)
        y = w - lr * keep if momentum else w + e - lr * keep
        before, w = e, rounded(y, u)
        e = y - w
        if momentum:
            keep = keep + before / lr - e / (lr * momentum)
    assert np.array_equal(fed_back, wanted)
    assert len(np.unique(fed_back, axis=0)) > 30


def test_bop_makes_weights_binary_at_its_first_step() -> None:
    p = torch.tensor([0.3, -0.2, 0.0, -0.0], requires_grad=True)
    p.grad = torch.zeros(4)
    Bop([p], 0.1).step()
    assert p.tolist() == [1, -1, 1, 1]


# ----------------------------------------------------------- BayesBiNN: Meng et al. 2020


def test_the_stale_mean_matters() -> None:
    last = []
    for stale in (False, True):
        update = bayes_bi_nn(0.002, 0.3, size=3.0, stale=stale)
        used = CASES["bayesbinn stale"].used
        last.append(
            unroll(lambda eta, u, f=update, w=used: f(eta, slope(w(eta, u)), w(eta, u)))[-1]
        )
    assert np.abs(last[0] - last[1]).max() > 1e-3


@pytest.mark.parametrize("size", [3.0, 1000.0])
def test_bayesbinn_is_mirror_descent_at_alpha_n_with_decay_one_over_n(size: float) -> None:
    """On the layer's gradient, which is that of the relaxed loss; each step from the same eta."""
    alpha, layer, twin = 0.02, make_layer("concrete", tau=0.3), make_layer("concrete", tau=0.3)
    bayes = BayesBiNN(layer.parameters(), alpha, train_set_size=size)
    mirror = MirrorDescent(twin.parameters(), alpha * size, kl=1 / size)
    for u in UNIFORMS:
        twin.load_state_dict(layer.state_dict())
        one_step(layer, bayes, u)
        one_step(twin, mirror, u)
        torch.testing.assert_close(twin.eta, layer.eta, rtol=2e-14, atol=1e-14)


def _late_and_now(memory: dict[str, Array], eta: Array, stale: bool) -> Array:
    late = memory.get("mu", np.tanh(eta / 2)) if stale else np.tanh(eta / 2)
    memory["mu"] = np.tanh(eta / 2)
    return late


TAU, ALPHA, SIZE = 0.3, 0.01, 5.0


def paper(eta: Array, draws: Array, memory: dict[str, Array], stale: bool) -> Array:
    """Meng et al. 2020 with several draws: their steps s dL/dw are averaged."""
    mean = _late_and_now(memory, eta, stale)
    total = np.zeros_like(eta)
    for u in draws:
        w = np.tanh((eta + np.log((1 - u) / u)) / (2 * TAU))
        total += (1 - w * w + 1e-10) / (TAU * (1 - mean * mean + 1e-10)) * slope(w)
    lam = eta / 2
    return 2 * ((1 - ALPHA) * lam - ALPHA * SIZE * total / len(draws))


def two_backwards(layers: list[BernoulliLinear], draws: Array) -> None:
    for u in draws:
        (loss_of(layers[0], u) / 2).backward()


def two_forwards(layers: list[BernoulliLinear], draws: Array) -> None:
    sum(loss_of(layers[0], u) / 2 for u in draws).backward()


def two_ranks(layers: list[BernoulliLinear], draws: Array) -> None:
    """What data-parallel training does: every rank its own draw, then the mean of the gradients."""
    for layer, u in zip(layers, draws, strict=True):
        loss_of(layer, u).backward()
    mean = sum(layer.eta.grad for layer in layers) / 2
    for layer in layers:
        layer.eta.grad.copy_(mean)


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("way", [two_backwards, two_forwards, two_ranks])
def test_bayesbinn_is_right_when_a_step_has_more_than_one_draw(way: Callable, stale: bool) -> None:
    """Every step against the paper from the same eta; the ranks stay equal to the last bit."""
    layers = [make_layer("concrete", tau=TAU) for _ in range(2)]
    options = {"train_set_size": SIZE, "stale_mean": stale}
    optimizers = [BayesBiNN(layer.parameters(), ALPHA, **options) for layer in layers]
    memory: dict[str, Array] = {}
    for draws in UNIFORMS[:40].reshape(20, 2, WIDTH):
        expected = paper(layers[0].eta.detach().numpy()[0].copy(), draws, memory, stale)
        for optimizer in optimizers:
            optimizer.zero_grad()
        way(layers, draws)
        for optimizer in optimizers:
            optimizer.step()
        np.testing.assert_allclose(layers[0].eta.detach()[0], expected, rtol=1e-11, atol=1e-12)
        assert way is not two_ranks or torch.equal(layers[0].eta, layers[1].eta)


def _rank(rank: int, folder: str) -> None:
    """One process of two: ten steps under DistributedDataParallel, then the latent weights."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    layer = make_layer("concrete", tau=TAU)
    parallel = nn.parallel.DistributedDataParallel(layer)
    optimizer = BayesBiNN(layer.parameters(), ALPHA, train_set_size=SIZE)
    for draws in UNIFORMS[:20].reshape(10, 2, WIDTH):
        optimizer.zero_grad()
        out = parallel(torch.tensor(INPUTS), u=torch.tensor(draws[rank])[None])
        out.square().mean().backward()
        optimizer.step()
    torch.save(layer.state_dict(), f"{folder}/{rank}.pt")
    distributed.barrier()
    os._exit(0)  # taking the group down waits for threads, once for ever in a forked process


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has threads")
def test_bayesbinn_keeps_two_processes_together_and_equal_to_accumulation(tmp_path: Path) -> None:
    multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt")["eta"] for rank in range(2))
    layer = make_layer("concrete", tau=TAU)
    optimizer = BayesBiNN(layer.parameters(), ALPHA, train_set_size=SIZE)
    for draws in UNIFORMS[:20].reshape(10, 2, WIDTH):
        optimizer.zero_grad()
        for u in draws:
            out = layer(torch.tensor(INPUTS), u=torch.tensor(u)[None])
            (out.square().mean() / 2).backward()
        optimizer.step()
    assert torch.equal(first, second)
    torch.testing.assert_close(first, layer.eta.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tau", [1e-10, 1e-8])
def test_in_float32_bayesbinns_scale_is_its_added_constant(tau: float) -> None:
    """(1e-10/tau)/(1 - mu^2 + 1e-10) times identity-ST on sign(lambda + delta), mu one step late.

    1 - w^2 rounds to 0. Learning rates are small, so that mu stays away from 1.
    """
    layer = make_layer("concrete", tau=tau).float()
    lr = 1e-3 * tau / 1e-10
    optimizer = BayesBiNN(layer.parameters(), lr, stale_mean=True)
    memory: dict[str, Array] = {}

    def step(lam: Array, u: Array) -> Array:
        mean = memory.get("mu", np.tanh(lam))
        memory["mu"] = np.tanh(lam)
        factor = (1e-10 / tau) / (1 - mean**2 + 1e-10)
        return lam - lr * (factor * slope(sign(lam + 0.5 * np.log((1 - u) / u))) + lam)

    found = train(layer, optimizer)
    np.testing.assert_allclose(found, 2 * unroll(step, START / 2), rtol=2e-5, atol=2e-5)
    for u in UNIFORMS:
        assert set(layer.weight(u=torch.tensor(u)[None]).unique().tolist()) <= {-1, 1}


@pytest.mark.parametrize("eps", [1e-10, 1e-6])
def test_at_a_certain_weight_the_released_factor_is_ten_to_the_ten(eps: float) -> None:
    """lambda_0 = 10 in float32: mu = 1, and the step is 1/tau = 1e10 times identity-ST."""
    layer = BernoulliLinear(1, 1, False, forward="concrete", tau=1e-10, eps=eps)
    nn.init.constant_(layer.eta, 20)
    layer.weight().sum().backward()  # dL/dw = 1
    BayesBiNN(layer.parameters(), 1e-12).step()
    assert math.isclose(20 - layer.eta.item(), 2 * 1e-12 * 1e10, rel_tol=1e-4)


def test_a_late_mean_is_late_with_the_layers_own_constant() -> None:
    """(1 - mu^2 + eps)/(1 - mu_before^2 + eps), where eps is the larger part of it."""
    layer = BernoulliLinear(1, 1, False, forward="concrete", eps=1e-2).double()
    optimizer = BayesBiNN(layer.parameters(), 0.5, stale_mean=True)
    for before, eta in ((8.0, 8.0), (8.0, 4.0)):
        nn.init.constant_(layer.eta, eta)
        layer.eta.grad = torch.ones_like(layer.eta)
        optimizer.step()
        now, late = (1 - math.tanh(v / 2) ** 2 + 1e-2 for v in (eta, before))
        assert math.isclose(layer.eta.item(), 0.5 * eta - 0.5 * now / late, rel_tol=1e-12)


def test_an_evaluation_before_the_step_does_not_disturb_bayesbinn() -> None:
    paths = []
    for evaluate in (False, True):
        layer = make_layer("concrete", tau=0.5)
        optimizer = BayesBiNN(layer.parameters(), 0.02)
        for u in UNIFORMS[:5]:
            optimizer.zero_grad()
            loss_of(layer, u).backward()
            if evaluate:
                layer(torch.tensor(INPUTS), mode="sign")
            optimizer.step()
        paths.append(layer.eta.detach().clone())
    assert torch.equal(*paths)


# -------------------------------------------- ProxQuant: Bai et al. 2019; PARQ: Jin et al. 2025


@pytest.mark.parametrize("strength", [0.2, 3.0])
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


# ------------------------------------------------------------------------------- the flip ratio


def test_the_flip_ratio_counts_signs_that_changed_since_the_last_look() -> None:
    eta, other = torch.tensor([0.5, -0.5, 0.0]), torch.tensor([[2.0]])
    flips = optim.FlipRatio(iter([eta, other]))
    assert flips() == 0
    eta.copy_(torch.tensor([-0.1, -9.0, -0.1]))  # 0 counts as +1
    assert flips() == 2 / 4
    other.neg_()
    eta.neg_()
    assert flips() == 1
    assert flips() == 0


def test_the_flip_ratio_follows_a_training_step() -> None:
    layer = BernoulliLinear(4, 3, bias=False)
    flips, before = optim.FlipRatio([layer.eta]), layer.binary()
    layer.eta.grad = 8 * layer.eta.detach() * (torch.arange(4) % 2)
    optim.MirrorDescent([layer.eta], lr=1.0).step()
    assert flips() == 0.5 == float((layer.binary() != before).float().mean())


def test_the_flip_ratio_needs_weights() -> None:
    for none in ([], [torch.empty(0, 3)]):
        with pytest.raises(ValueError, match="params must hold at least one tensor of weights"):
            optim.FlipRatio(none)
