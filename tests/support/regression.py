"""A small regression on which optimizers run beside their published updates.

Its gradient is coded by hand; the uniforms of every forward pass are handed in, to both sides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from reference import Array

from sbnlib.nn import BernoulliLinear

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


def loss_of(layer: BernoulliLinear, u: Array) -> torch.Tensor:
    """The loss at the weight that the layer makes of the uniforms, if its mode draws one."""
    dtype = layer.eta.dtype
    random = {"u": torch.tensor(u)[None]} if layer.mode in ("sample", "concrete") else {}
    out = layer(torch.tensor(INPUTS, dtype=dtype), **random)[:, 0]
    return (out - torch.tensor(TARGETS, dtype=dtype)).square().mean()


def one_step(layer: BernoulliLinear, optimizer: torch.optim.Optimizer, u: Array) -> None:
    """Zero, forward, ``loss.backward()``, step: the loop of any torch user."""
    optimizer.zero_grad()
    loss_of(layer, u).backward()
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


def agree(first: Array, second: Array) -> None:
    np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-12)
