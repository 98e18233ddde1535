"""Many independent estimates from one call: every row of the batch has parameters of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from bridge import make_noise
from reference import Array, RefLoss, RefNet, RefNoise, path_probabilities, paths, states
from scipy import integrate
from torch import nn

import sbnlib


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(noise: RefNoise, n: int, seed: int = 0) -> Array:
    """Logits of both signs at which no state is rarer than about 1/50."""
    return 0.8 * noise.scale * np.random.default_rng(seed + 300).uniform(-1, 1, size=n)


# -------------------------------------------------------------------- one layer, loss based


def estimates(
    function: Callable, loss: Callable, noise: RefNoise, a: Array, rows: int, seed: int, **options
) -> tuple[Array, Array]:
    """Values (rows,) and estimates (rows, n) of a loss-based estimator at one point ``a``."""
    leaf = torch.tensor(a).expand(rows, -1).clone().requires_grad_()
    law = make_noise(noise.name, noise.scale)
    value = function(loss, leaf, law, generator=seeded(seed), **options)
    (g,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().numpy(), g.numpy()


def differences(values: Callable[[Array], Array], n: int) -> Array:
    """Delta_i L at every state, (2^n, n)."""
    out = []
    for i in range(n):
        up, down = states(n), states(n)
        up[:, i], down[:, i] = 1, -1
        out.append(values(up) - values(down))
    return np.stack(out, 1)


def exact_one_layer(values: Callable[[Array], Array], noise: RefNoise, a: Array) -> Array:
    """f(a_i) E Delta_i L by enumeration, (n,)."""
    prob = noise.prob(states(len(a)), a).prod(1)
    return noise.pdf(a) * (prob @ differences(values, len(a)))


# ----------------------------------------------------------------------- whole networks


class RowLinear(nn.Linear):
    """A linear layer with a weight and a bias for each row, all equal; remembers its inputs."""

    def __init__(self, weight: Array, bias: Array, rows: int, dtype: torch.dtype) -> None:
        super().__init__(weight.shape[1], weight.shape[0], dtype=dtype)
        self.weight.data = torch.tensor(weight, dtype=dtype)
        self.bias.data = torch.tensor(bias, dtype=dtype)
        self.each_weight = torch.zeros(rows, *weight.shape, dtype=dtype, requires_grad=True)
        self.each_bias = torch.zeros(rows, len(bias), dtype=dtype, requires_grad=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.detach()
        return super().forward(x) + (self.each_weight * x[..., None, :]).sum(-1) + self.each_bias


def row_net(net: RefNet, rows: int, dtype: torch.dtype = torch.float64) -> sbnlib.SBN:
    layers = [RowLinear(w, b, rows, dtype) for w, b in zip(net.weights, net.biases, strict=True)]
    return sbnlib.SBN(*layers, noise=make_noise(net.noise.name, net.noise.scale))


def row_gradients(model: sbnlib.SBN, values: torch.Tensor) -> dict[tuple[int, str], Array]:
    """The estimate of every row, keyed as in reference.py: (k, "weight" | "bias")."""
    leaves = [t for layer in model.layers for t in (layer.each_weight, layer.each_bias)]
    grads = torch.autograd.grad(values.sum(), leaves, materialize_grads=True)
    keys = [(k, kind) for k in range(len(model.layers)) for kind in ("weight", "bias")]
    return {key: g.numpy() for key, g in zip(keys, grads, strict=True)}


def network_estimates(
    estimator: Callable, net: RefNet, v: Array, loss: RefLoss, rows: int, seed: int
) -> tuple[Array, dict[tuple[int, str], Array]]:
    """Values (rows,) and, for each parameter, estimates (rows, ...), all at the input ``v``."""
    model = row_net(net, rows)
    inputs = torch.tensor(v).expand(rows, -1)
    values = estimator(model, inputs, loss.torch, generator=seeded(seed))
    return values.detach().numpy(), row_gradients(model, values)


def expectation_one(net: RefNet, v: Array, loss: RefLoss) -> float:
    """E L at one input by enumeration of the paths."""
    xs = paths(net.widths)
    return float(path_probabilities(net, v, xs) @ loss.value(xs[-1], 0))


# ----------------------------------------------------------------------------- z-tests


def z_scores(samples: Array, exact: Array | float) -> Array:
    """(mean - exact)/(standard error), entry by entry.

    0 where a mean of equal samples is right to rounding, inf where it is not.
    """
    exact = np.asarray(exact, float)
    gap = np.abs(samples.mean(0) - exact)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    rounding = 1e-10 * (1 + np.abs(exact))
    constant = np.where(gap < rounding, 0.0, np.inf)
    return np.where(error < rounding, constant, gap / np.maximum(error, 1e-300))


# ------------------------------------------------------------- relaxed units, by quadrature


def sech2(v: Array | float) -> Array:
    return 1 / np.cosh(np.clip(v, -300, 300)) ** 2


@cache
def slope_given_state(noise: RefNoise, a: float, x: float, tau: float, power: int = 1) -> float:
    """E[(sech^2((a - Z)/2 tau)/2 tau)^power | sign(a - Z) = x], by scipy's quadrature.

    With Z = a - x r, r > 0, it is int c(r)^power f(a - x r) dr / P(x).
    """
    kinks = {x * (a - k * noise.scale) / tau for k in (-1.0, 0.0, 1.0)}
    stops = sorted({0.0, 1.0, 4.0, 12.0, 40.0, 120.0} | {k for k in kinks if 0 < k < 120})
    total = 0.0
    for lo, hi in zip(stops[:-1], stops[1:], strict=True):
        total += integrate.quad(
            lambda r: (sech2(r / 2) / (2 * tau)) ** power * float(noise.pdf(a - x * tau * r)) * tau,
            lo, hi, epsabs=1e-14, epsrel=1e-12,
        )[0]  # fmt: skip
    return total / float(noise.prob(np.array(x), np.array(a)))


def mean_slopes(noise: RefNoise, a: Array, x: Array, tau: float, power: int = 1) -> Array:
    """:func:`slope_given_state` for arrays of the same shape."""
    a, x = np.broadcast_arrays(a, x)
    flat = [slope_given_state(noise, float(p), float(q), tau, power) for p, q in
            zip(a.ravel(), x.ravel(), strict=True)]  # fmt: skip
    return np.array(flat).reshape(a.shape)


def panels(stops: list[float], count: int = 40) -> tuple[Array, Array]:
    """Nodes and weights of Gauss-Legendre rules on neighbouring intervals."""
    node, weight = np.polynomial.legendre.leggauss(count)
    x, w = [], []
    for lo, hi in zip(stops[:-1], stops[1:], strict=True):
        x.append((hi - lo) * (node + 1) / 2 + lo)
        w.append((hi - lo) * weight / 2)
    return np.concatenate(x), np.concatenate(w)


def relaxed_gradient(noise: RefNoise, a: Array, loss: RefLoss, tau: float, count: int = 6) -> Array:
    """E d/da L(tanh((a - Z)/2 tau)) by a product of Gauss-Legendre panels, one factor a unit."""
    axes = [relaxed_axis(noise, float(v), tau, count) for v in a]
    grid = np.meshgrid(*[v for v, _ in axes], indexing="ij")
    weight = np.prod(np.meshgrid(*[w for _, w in axes], indexing="ij"), axis=0)
    v = np.stack(grid, -1).reshape(-1, len(a))
    slopes = loss.gradient(np.tanh(v), 0) * sech2(v) / (2 * tau)
    return weight.ravel() @ slopes


def relaxed_axis(noise: RefNoise, a: float, tau: float, count: int) -> tuple[Array, Array]:
    """Nodes v = (a - Z)/2 tau and weights with the law of Z; the tails are two atoms at +-20."""
    kinks = [(a - k * noise.scale) / (2 * tau) for k in (-1.0, 0.0, 1.0)]
    inner = [k for k in kinks if -20 < k < 20]
    v, w = panels(sorted({-20.0, -8.0, -3.0, -1.0, 1.0, 3.0, 8.0, 20.0, *inner}), count)
    w = w * noise.pdf(a - 2 * tau * v) * 2 * tau
    tails = noise.cdf(a - 40 * tau), noise.cdf(-a - 40 * tau)  # Z < a - 40 tau: v > 20
    return np.concatenate([v, [20.0, -20.0]]), np.concatenate([w, tails])
