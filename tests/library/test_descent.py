"""Every optimizer that sbnlib lists goes downhill, and ends where the minimum is known to be.

Two problems with exact gradients, whatever the layer makes of its weight: a loss linear in the
weights, whose minimum over the states is -sign(c), for all; and a convex function of the means,
whose minimum is found by scipy, for those that take the gradient at the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from bridge import make_noise
from discovered import NOISES
from reference import Array, RefNoise
from scipy import optimize
from updates import CASES, MAPS, sign

from sbnlib import optim
from sbnlib.nn import BernoulliLinear

C = np.array([0.5, -0.6, 0.8, -1.0, 1.2, -1.5])
STEPS = 400
cases = pytest.mark.parametrize("name", CASES)
maps = pytest.mark.parametrize("name", MAPS)


def falls(values: list[float], slack: float = 1e-12) -> bool:
    """No step up, and a smaller value at the end."""
    return bool((np.diff(values) <= slack).all()) and values[-1] < values[0]


# -------------------------------------------------------- a loss linear in the weights, c'w


def run(name: str, steps: int) -> Iterator[Array]:
    """Latent weights before every step and at the end, from a start with every sign wrong."""
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    layer = case.layer(0.02 * sign(C))
    optimizer = case.make(layer.parameters())
    yield layer.eta.detach().numpy()[0].copy()
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.tensor(C), generator=generator).sum().backward()
        optimizer.step()
        yield layer.eta.detach().numpy()[0].copy()


@pytest.mark.slow
@cases
def test_a_linear_loss_falls_to_its_minimum_over_the_states(name: str) -> None:
    """Without a step up, and where the ends hold, the latent weight comes to rest on it.

    The mean falls too where the gradient alone moves it: ProxQuant pulls weights back to +-1 from
    outside, BayesBiNN's step has a random length and a prior.
    """
    law, path = RefNoise(CASES[name].noise), list(run(name, STEPS))
    assert falls([float(C @ sign(eta)) for eta in path])
    if CASES[name].optimizer in ("MirrorDescent", "BinaryConnect", "Bop"):
        assert falls([float(C @ (law.cdf(eta) - law.cdf(-eta))) for eta in path])
    assert C @ sign(path[-1]) == pytest.approx(-np.abs(C).sum(), rel=1e-12)
    if CASES[name].ends:
        np.testing.assert_allclose(path[-1], -sign(C), rtol=0, atol=1e-15)


# -------------------------------- convex in the means: sum_i d_i (mu_i - t_i)^2 / 2, and a decay

D, T = np.array([0.5, 1.0, 1.5]), np.array([0.5, -0.3, 0.0])


def minimum(law: RefNoise, decay: float) -> Array:
    """The latent weight where 2 d (mu - t) + decay eta = 0, by bisection."""
    end = min(law.half_width, 50.0)

    def slope(eta: float, d: float, t: float) -> float:
        return 2 * d * (2 * float(law.cdf(eta)) - 1 - t) + decay * eta

    both = zip(D, T, strict=True)
    return np.array([optimize.brentq(slope, -end, end, pair, xtol=1e-14) for pair in both])


def descend(layer: BernoulliLinear, optimizer: torch.optim.Optimizer, steps: int) -> list[Array]:
    path = []
    for _ in range(steps):
        path.append(layer.eta.detach().numpy()[0].copy())
        optimizer.zero_grad()
        gap = layer.weight("mean")[0] - torch.tensor(T)
        (torch.tensor(D) * gap.square()).sum().div(2).backward()
        optimizer.step()
    return path


def layer_with(noise_name: str) -> BernoulliLinear:
    layer = BernoulliLinear(3, 1, False, noise=make_noise(noise_name), forward="mean").double()
    with torch.no_grad():
        layer.eta.copy_(torch.tensor([[-0.7, 0.8, 0.9]]))
    return layer


def objective(law: RefNoise, eta: Array, decay: float) -> float:
    """And ``decay`` times the divergence of p from 1/2."""
    p = law.cdf(eta)
    return float(D @ (2 * p - 1 - T) ** 2 / 2 + decay * law.divergence(p, 0.5).sum())


@pytest.mark.slow
@pytest.mark.parametrize("noise_name", NOISES)
@pytest.mark.parametrize(("kl", "proximal"), [(0.0, False), (0.4, False), (0.4, True)])
def test_mirror_descent_reaches_the_minimum_of_a_convex_function_of_the_means(
    noise_name: str, kl: float, proximal: bool
) -> None:
    law, layer, noise = RefNoise(noise_name), layer_with(noise_name), make_noise(noise_name)
    options = {"noise": noise, "kl": kl, "proximal": proximal}
    path = descend(layer, optim.MirrorDescent(layer.parameters(), 0.3, **options), 250)
    assert falls([objective(law, eta, kl) for eta in path])
    np.testing.assert_allclose(path[-1], minimum(law, kl), atol=1e-7)


def test_binary_connect_reaches_the_minimum_of_a_convex_function_of_the_means() -> None:
    law, layer = RefNoise("Uniform"), layer_with("Uniform")
    path = descend(layer, optim.BinaryConnect(layer.parameters(), 0.3), 250)
    assert falls([objective(law, eta, 0.0) for eta in path])
    np.testing.assert_allclose(path[-1], T, atol=1e-12)  # mu = eta


@maps
def test_a_map_without_strength_leaves_the_base_optimizer_where_it_goes(name: str) -> None:
    """proxquant at 0 is the identity; parq at slope 1 is the projection on [-1, 1]."""
    law, layer = RefNoise("Uniform"), layer_with("Uniform")
    base = torch.optim.SGD(layer.parameters(), 0.15)
    weakest = MAPS[name].strengths[0]
    path = descend(layer, optim.Proximal(base, getattr(optim, name), weakest), 250)
    assert falls([objective(law, eta, 0.0) for eta in path])
    np.testing.assert_allclose(path[-1], T, atol=1e-12)


# ---------------------------------------------------------------------------- proximal maps


@maps
def test_a_map_moves_towards_the_nearer_sign_the_more_the_stronger_it_is(name: str) -> None:
    at = np.array([-1.7, -1.0, -0.8, -0.2, -1e-3, 1e-3, 0.3, 0.9, 1.0, 2.5])
    previous = np.abs(at - sign(at)) + 1e-15
    for strength in MAPS[name].strengths:
        eta = torch.tensor(at)
        getattr(optim, name)(eta, strength)
        moved = eta.numpy()
        assert np.array_equal(sign(moved), sign(at)), "a weight changed its sign"
        assert np.array_equal(moved[np.abs(at) == 1], at[np.abs(at) == 1]), "a sign was moved"
        assert (np.abs(moved - sign(at)) <= previous).all()
        assert (np.diff(moved) >= 0).all(), "the order was changed"
        previous = np.abs(moved - sign(at)) + 1e-15
    assert math.isclose(previous.max(), 1e-15), "the strongest map is not the sign"
