"""Reference values for the tests: brute force in numpy and scipy, nothing from sbnlib.

Noises are closed forms checked against ``scipy.stats``; expectations are sums over the whole
product space of states (every path x_1, ..., x_K), so a net may have about ten units in all;
gradients follow from the product rule; estimators are chains written out by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special, stats
from torch.nn import functional

Array = np.ndarray

NOISES = ("Logistic", "Uniform", "Triangular", "Gaussian", "Cauchy", "FastSigmoid")
BOUNDED = ("Uniform", "Triangular")


# ---------------------------------------------------------------------------------- noise


def _standard_cdf(name: str, a: Array) -> Array:
    """The distribution function at scale 1, with full relative accuracy in the lower tail."""
    if name == "Logistic":
        return special.expit(a)
    if name == "Gaussian":
        return 0.5 * special.erfc(-a / np.sqrt(2))
    if name == "Cauchy":
        return np.arctan2(1.0, -a) / np.pi
    if name == "FastSigmoid":
        tail = 0.5 / (1 + np.abs(a))
        return np.where(a < 0, tail, 1 - tail)
    a = np.clip(a, -1, 1)
    if name == "Uniform":
        return 0.5 * (1 + a)
    tail = 0.5 * (1 - np.abs(a)) ** 2
    return np.where(a < 0, tail, 1 - tail)


def _standard_pdf(name: str, a: Array) -> Array:
    """The density at scale 1; 0 at the ends of a bounded support."""
    if name == "Logistic":
        return special.expit(a) * special.expit(-a)
    if name == "Gaussian":
        return np.exp(-0.5 * a * a) / np.sqrt(2 * np.pi)
    if name == "Cauchy":
        return 1 / (np.pi * (1 + a * a))
    if name == "FastSigmoid":
        return 0.5 / (1 + np.abs(a)) ** 2
    if name == "Uniform":
        return np.where(np.abs(a) < 1, 0.5, 0.0)
    return np.where(np.abs(a) < 1, 1 - np.abs(a), 0.0)


@dataclass(frozen=True)
class RefNoise:
    """Noise `name` at `scale`: F, f and the probability of a state, in float64."""

    name: str
    scale: float = 1.0

    def cdf(self, a: Array | float) -> Array:
        return _standard_cdf(self.name, np.asarray(a, float) / self.scale)

    def pdf(self, a: Array | float) -> Array:
        return _standard_pdf(self.name, np.asarray(a, float) / self.scale) / self.scale

    def prob(self, x: Array, a: Array) -> Array:
        return self.cdf(x * a)

    def scipy(self) -> object:
        """The frozen scipy distribution, or None where scipy has none (FastSigmoid)."""
        s = self.scale
        return {
            "Logistic": stats.logistic(scale=s),
            "Uniform": stats.uniform(-s, 2 * s),
            "Triangular": stats.triang(0.5, -s, 2 * s),
            "Gaussian": stats.norm(scale=s),
            "Cauchy": stats.cauchy(scale=s),
        }.get(self.name)


# ---------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class RefLoss:
    """A loss written three times: value and gradient in numpy, value in torch.

    `value(x, b)` and `gradient(x, b)` take states `(..., n)` and the index `b` of the input;
    `torch(x)` takes `(..., B, n)` and returns `(..., B)`.
    """

    name: str
    value: Callable[[Array, int], Array]
    gradient: Callable[[Array, int], Array]
    torch: Callable[[torch.Tensor], torch.Tensor]


def _coefficients(n: int, seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    square = rng.normal(size=(n, n))
    return rng.normal(size=n), rng.normal(size=n), square + square.T


def constant_loss(n: int, seed: int = 0) -> RefLoss:
    c = float(_coefficients(n, seed)[0][0])
    return RefLoss(
        "constant",
        lambda x, b: np.full(x.shape[:-1], c),
        lambda x, b: np.zeros_like(x),
        lambda x: 0 * x.sum(-1) + c,
    )


def linear_loss(n: int, seed: int = 0) -> RefLoss:
    c = _coefficients(n, seed)[0]
    return RefLoss(
        "linear",
        lambda x, b: x @ c + 0.7,
        lambda x, b: np.broadcast_to(c, x.shape),
        lambda x: x @ torch.tensor(c, dtype=x.dtype) + 0.7,
    )


def multilinear_loss(n: int, seed: int = 0) -> RefLoss:
    """prod_i (x_i + c_i): every product of distinct coordinates."""
    c = _coefficients(n, seed)[0]

    def gradient(x: Array, b: int) -> Array:
        terms = x + c
        rest = [np.prod(np.delete(terms, i, -1), -1) for i in range(n)]
        return np.stack(rest, -1)

    return RefLoss(
        "multilinear",
        lambda x, b: np.prod(x + c, -1),
        gradient,
        lambda x: (x + torch.tensor(c, dtype=x.dtype)).prod(-1),
    )


def quadratic_loss(n: int, seed: int = 0) -> RefLoss:
    """x'Ax/2 + c'x with a full symmetric A."""
    c, _, square = _coefficients(n, seed)
    return RefLoss(
        "quadratic",
        lambda x, b: 0.5 * np.einsum("...i,ij,...j->...", x, square, x) + x @ c,
        lambda x, b: x @ square + c,
        lambda x: (
            0.5 * (x @ torch.tensor(square, dtype=x.dtype) * x).sum(-1)
            + x @ torch.tensor(c, dtype=x.dtype)
        ),
    )


def coordinatewise_quadratic_loss(n: int, seed: int = 0) -> RefLoss:
    """prod_i (1 + c_i x_i + d_i x_i^2): at most quadratic in each coordinate, not quadratic."""
    c, d, _ = _coefficients(n, seed)

    def gradient(x: Array, b: int) -> Array:
        terms, slope = 1 + c * x + d * x * x, c + 2 * d * x
        rest = [slope[..., i] * np.prod(np.delete(terms, i, -1), -1) for i in range(n)]
        return np.stack(rest, -1)

    def in_torch(x: torch.Tensor) -> torch.Tensor:
        ct, dt = torch.tensor(c, dtype=x.dtype), torch.tensor(d, dtype=x.dtype)
        return (1 + ct * x + dt * x * x).prod(-1)

    return RefLoss(
        "coordinatewise quadratic",
        lambda x, b: np.prod(1 + c * x + d * x * x, -1),
        gradient,
        in_torch,
    )


def smooth_loss(n: int, seed: int = 0) -> RefLoss:
    """softplus(c'x) + exp(d'x/2)/2: no finite degree in any coordinate."""
    c, d, _ = _coefficients(n, seed)

    def gradient(x: Array, b: int) -> Array:
        logistic, growth = special.expit(x @ c), np.exp(0.5 * (x @ d))
        return logistic[..., None] * c + 0.25 * growth[..., None] * d

    def in_torch(x: torch.Tensor) -> torch.Tensor:
        ct, dt = torch.tensor(c, dtype=x.dtype), torch.tensor(d, dtype=x.dtype)
        return functional.softplus(x @ ct) + 0.5 * torch.exp(0.5 * (x @ dt))

    return RefLoss(
        "smooth",
        lambda x, b: np.logaddexp(0, x @ c) + 0.5 * np.exp(0.5 * (x @ d)),
        gradient,
        in_torch,
    )


def target_loss(n: int, batch: int, seed: int = 0) -> RefLoss:
    """sum_i (x_i - t_bi)^4 / 4 with one target row per input."""
    t = np.random.default_rng(seed).normal(size=(batch, n))
    return RefLoss(
        "targets",
        lambda x, b: 0.25 * ((x - t[b]) ** 4).sum(-1),
        lambda x, b: (x - t[b]) ** 3,
        lambda x: 0.25 * ((x - torch.tensor(t, dtype=x.dtype)) ** 4).sum(-1),
    )


LOSSES = {
    "constant": constant_loss,
    "linear": linear_loss,
    "multilinear": multilinear_loss,
    "quadratic": quadratic_loss,
    "coordinatewise quadratic": coordinatewise_quadratic_loss,
    "smooth": smooth_loss,
}


# --------------------------------------------------------------- estimators' factors c(a, x)


def factor(name: str, noise: RefNoise, a: Array, x: Array, s: float = 0.0) -> Array:
    """dx/da of a chain-rule estimator, from the definition of each, 0 where P(x) = 0."""
    f, prob = noise.pdf(a), noise.prob(x, a)
    possible = prob > 0
    safe = np.where(possible, prob, 1.0)
    mu = noise.cdf(a) - noise.cdf(-a)
    if name == "straight_through":
        return 2 * f + 0 * x
    if name == "identity":
        return np.ones_like(f * x)
    if name == "chain_rule":
        return np.where(possible, f * ((1 - s) / safe + 2 * s), 0.0)
    # DARN: REINFORCE, d log P/da (L(x) - b), with the baseline b = L(x) + L'(x)(anchor - x)
    anchor = mu if name == "darn_mean" else 0.0
    if name not in ("darn_mean", "darn_midpoint", "zgr"):
        raise ValueError(name)
    score = np.where(possible, x * f / safe, 0.0)
    return score * (x - anchor)


# --------------------------------------------------------------------------- networks


@dataclass(frozen=True)
class RefNet:
    """Layers (W, b) with a binary unit after each."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    noise: RefNoise

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(w.shape[0] for w in self.weights)


def random_net(
    widths: tuple[int, ...], noise: RefNoise, seed: int = 0, gain: float = 1.0
) -> RefNet:
    """Weights N(0, gain^2 / fan-in), biases N(0, 0.3^2)."""
    rng = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(widths))
    weights = tuple(gain * rng.normal(size=(m, n)) / np.sqrt(n) for n, m in pairs)
    biases = tuple(0.3 * rng.normal(size=m) for _, m in pairs)
    return RefNet(weights, biases, noise)


def states(n: int) -> Array:
    """All 2^n states, (2^n, n)."""
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n)))


def paths(widths: tuple[int, ...]) -> list[Array]:
    """Every joint state of all layers: one array (N, n_k) per layer, N = 2^(sum n_k)."""
    joint = states(sum(widths))
    return np.split(joint, np.cumsum(widths)[:-1], axis=1)


def pre_activations(net: RefNet, inputs: Array, xs: list[Array]) -> list[Array]:
    """a_k along every path, (N, n_k)."""
    below = [np.broadcast_to(inputs, (len(xs[0]), len(inputs))), *xs[:-1]]
    return [v @ w.T + b for v, w, b in zip(below, net.weights, net.biases, strict=True)]


def path_probabilities(net: RefNet, inputs: Array, xs: list[Array]) -> Array:
    """P(x_1, ..., x_K | input), (N,)."""
    a = np.concatenate(pre_activations(net, inputs, xs), 1)
    return net.noise.prob(np.concatenate(xs, 1), a).prod(1)


def expectation(net: RefNet, inputs: Array, loss: RefLoss) -> Array:
    """E L for every row of `inputs`, (B,)."""
    xs = paths(net.widths)
    rows = [path_probabilities(net, v, xs) @ loss.value(xs[-1], b) for b, v in enumerate(inputs)]
    return np.array(rows)


def _others(factors: Array) -> Array:
    """Along axis 1, the product of all entries but this one (no division)."""
    columns = range(factors.shape[1])
    return np.stack([np.delete(factors, i, 1).prod(1) for i in columns], 1)


def _to_parameters(net: RefNet, deltas: list[Array], below: list[Array]) -> dict[str, Array]:
    """Per path: gradients in the pre-activations to gradients in (W_k, b_k), keyed (k, "W")."""
    out = {}
    for k, (d, v) in enumerate(zip(deltas, below, strict=True)):
        out[k, "weight"] = d[:, :, None] * v[:, None, :]
        out[k, "bias"] = d
    return out


def gradient_one(net: RefNet, inputs: Array, loss: RefLoss, b: int) -> dict:
    """d E L / d parameters for one input, by the product rule over every path."""
    xs = paths(net.widths)
    a = np.concatenate(pre_activations(net, inputs, xs), 1)
    joint = np.concatenate(xs, 1)
    slopes = joint * net.noise.pdf(a) * _others(net.noise.prob(joint, a))
    deltas = slopes * loss.value(xs[-1], b)[:, None]
    below = [np.broadcast_to(inputs, (len(joint), len(inputs))), *xs[:-1]]
    split = np.split(deltas, np.cumsum(net.widths)[:-1], axis=1)
    return {key: g.sum(0) for key, g in _to_parameters(net, split, below).items()}


def gradient(net: RefNet, inputs: Array, loss: RefLoss) -> dict:
    """d mean_b E L_b / d parameters."""
    rows = [gradient_one(net, v, loss, b) for b, v in enumerate(inputs)]
    return {key: sum(r[key] for r in rows) / len(rows) for key in rows[0]}


def path_estimates(
    net: RefNet, inputs: Array, loss: RefLoss, b: int, name: str, s: float = 0.0
) -> tuple[Array, dict]:
    """Probability and estimated gradient of L_b on every path, by the chain written out."""
    xs = paths(net.widths)
    a = pre_activations(net, inputs, xs)
    upstream = np.array(loss.gradient(xs[-1], b), float)
    deltas: list[Array] = []
    for k in reversed(range(len(xs))):
        deltas.insert(0, factor(name, net.noise, a[k], xs[k], s) * upstream)
        upstream = deltas[0] @ net.weights[k]
    below = [np.broadcast_to(inputs, (len(xs[0]), len(inputs))), *xs[:-1]]
    return path_probabilities(net, inputs, xs), _to_parameters(net, deltas, below)


def moments(
    net: RefNet, inputs: Array, loss: RefLoss, name: str, s: float = 0.0
) -> dict[tuple[int, str], tuple[Array, Array]]:
    """Mean and variance of the gradient of the mean loss, one fresh draw per input."""
    batch, out = len(inputs), {}
    for b, v in enumerate(inputs):
        prob, grads = path_estimates(net, v, loss, b, name, s)
        for key, g in grads.items():
            mean = np.tensordot(prob, g, 1)
            variance = np.tensordot(prob, (g - mean) ** 2, 1)
            old = out.get(key, (0.0, 0.0))
            out[key] = (old[0] + mean / batch, old[1] + variance / batch**2)
    return out


def joint_moments(
    net: RefNet, inputs: Array, loss: RefLoss, name: str, s: float = 0.0
) -> dict[tuple[int, str], tuple[Array, Array]]:
    """The same for two inputs by enumerating pairs of paths: no formula for the variance."""
    (p0, g0), (p1, g1) = (path_estimates(net, inputs[b], loss, b, name, s) for b in (0, 1))
    prob = (p0[:, None] * p1).ravel()
    out = {}
    for key in g0:
        pairs = 0.5 * (g0[key][:, None] + g1[key][None])
        pairs = pairs.reshape(len(prob), *g0[key].shape[1:])
        mean = np.tensordot(prob, pairs, 1)
        out[key] = (mean, np.tensordot(prob, (pairs - mean) ** 2, 1))
    return out


def finite_difference(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences, entry by entry."""
    out = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        out[index] = (function(up) - function(down)) / (2 * step)
    return out
