"""Reference values for the tests: brute force in numpy and scipy, nothing from sbnlib.

Noises are closed forms checked against ``scipy.stats``; expectations are sums over the whole
product space of states (every path x_1, ..., x_K), so a net may have about ten units in all;
gradients follow from the product rule; estimators are chains written out by hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import numpy as np
import torch
from scipy import special, stats
from torch.nn import functional

Array = np.ndarray
T = TypeVar("T")


class Named(dict[str, T]):
    """A table whose unknown names raise an error that lists the known ones: nothing falls through.

    A reference that takes one thing for another agrees with whatever it is asked about.
    """

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> NoReturn:
        raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(self)}")


# ---------------------------------------------------------------------------------- noise


@dataclass(frozen=True)
class Law:
    """A symmetric law at scale 1, each function a closed form of its own.

    Attributes:
        cdf: F, with full relative accuracy in the lower tail.
        pdf: f, which is 0 at the ends of a bounded support.
        icdf: F^-1 on (0, 1), with full relative accuracy at small p.
        potential: the mirror function Phi of (0, 1) with Phi' = F^-1, up to a constant.
        half_width: the support is [-half_width, half_width].
        scipy: the frozen distribution of scipy at a scale, None where scipy has none.
    """

    cdf: Callable[[Array], Array]
    pdf: Callable[[Array], Array]
    icdf: Callable[[Array], Array]
    potential: Callable[[Array], Array]
    scipy: Callable[[float], object] | None
    half_width: float = math.inf


def _inside(a: Array, density: Array | float) -> Array:
    return np.where(np.abs(a) < 1, density, 0.0)


def _odd(p: Array, below: Callable[[Array], Array]) -> Array:
    """F^-1 from its values at p <= 1/2."""
    lower = below(np.minimum(p, 1 - p))
    return np.where(p > 0.5, -lower, lower)


def _from_tail(a: Array, tail: Array) -> Array:
    """F from its values at -|a|."""
    return np.where(a < 0, tail, 1 - tail)


def _rest(p: Array) -> Array:
    return np.minimum(p, 1 - p)


LAWS = Named(
    "noise",
    {
        "Logistic": Law(
            cdf=special.expit,
            pdf=lambda a: special.expit(a) * special.expit(-a),
            icdf=special.logit,
            potential=lambda p: special.xlogy(p, p) + special.xlogy(1 - p, 1 - p),
            scipy=lambda s: stats.logistic(scale=s),
        ),
        "Uniform": Law(
            cdf=lambda a: 0.5 * (1 + np.clip(a, -1, 1)),
            pdf=lambda a: _inside(a, 0.5),
            icdf=lambda p: 2 * p - 1,
            potential=lambda p: p * p - p,
            scipy=lambda s: stats.uniform(-s, 2 * s),
            half_width=1.0,
        ),
        "Triangular": Law(
            cdf=lambda a: _from_tail(a, 0.5 * (1 - np.minimum(np.abs(a), 1)) ** 2),
            pdf=lambda a: _inside(a, 1 - np.abs(a)),
            icdf=lambda p: _odd(p, lambda low: np.sqrt(2 * low) - 1),
            potential=lambda p: 2 * math.sqrt(2) / 3 * _rest(p) ** 1.5 - _rest(p),
            scipy=lambda s: stats.triang(0.5, -s, 2 * s),
            half_width=1.0,
        ),
        "Gaussian": Law(
            cdf=lambda a: 0.5 * special.erfc(-a / np.sqrt(2)),
            pdf=lambda a: np.exp(-0.5 * a * a) / np.sqrt(2 * np.pi),
            icdf=special.ndtri,
            potential=lambda p: -np.exp(-0.5 * special.ndtri(p) ** 2) / math.sqrt(2 * math.pi),
            scipy=lambda s: stats.norm(scale=s),
        ),
        "Cauchy": Law(
            cdf=lambda a: np.arctan2(1.0, -a) / np.pi,
            pdf=lambda a: 1 / (np.pi * (1 + a * a)),
            icdf=lambda p: _odd(p, lambda low: -np.cos(np.pi * low) / np.sin(np.pi * low)),
            potential=lambda p: -np.log(np.sin(np.pi * p)) / np.pi,
            scipy=lambda s: stats.cauchy(scale=s),
        ),
        "FastSigmoid": Law(
            cdf=lambda a: _from_tail(a, 0.5 / (1 + np.abs(a))),
            pdf=lambda a: 0.5 / (1 + np.abs(a)) ** 2,
            icdf=lambda p: _odd(p, lambda low: 1 - 0.5 / low),
            potential=lambda p: _rest(p) - 0.5 * np.log(_rest(p)),
            scipy=None,
        ),
    },
)
NOISES = tuple(LAWS)
BOUNDED = tuple(name for name, law in LAWS.items() if law.half_width < math.inf)


@dataclass(frozen=True)
class RefNoise:
    """Noise `name` at `scale`, in float64.

    Raises:
        ValueError: no law of that name, or a scale that is not a positive number.
    """

    name: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be a number > 0, got {self.scale!r}")
        self.law  # noqa: B018  an unknown name is refused here, not at the first use

    @property
    def law(self) -> Law:
        return LAWS[self.name]

    @property
    def half_width(self) -> float:
        return self.scale * self.law.half_width

    def cdf(self, a: Array | float) -> Array:
        return self.law.cdf(np.asarray(a, float) / self.scale)

    def pdf(self, a: Array | float) -> Array:
        return self.law.pdf(np.asarray(a, float) / self.scale) / self.scale

    def icdf(self, p: Array | float) -> Array:
        return self.scale * self.law.icdf(np.asarray(p, float))

    def prob(self, x: Array, a: Array) -> Array:
        return self.cdf(x * a)

    def divergence(self, p: Array | float, q: Array | float) -> Array:
        """Phi(p) - Phi(q) - Phi'(q) (p - q), the Bregman divergence of the mirror function."""
        p, q = np.asarray(p, float), np.asarray(q, float)
        gap = self.law.potential(p) - self.law.potential(q)
        return self.scale * gap - self.icdf(q) * (p - q)

    def scipy(self) -> object:
        """The frozen scipy distribution, or None where scipy has none (FastSigmoid)."""
        return self.law.scipy and self.law.scipy(self.scale)


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


LOSSES = Named(
    "loss",
    {
        "constant": constant_loss,
        "linear": linear_loss,
        "multilinear": multilinear_loss,
        "quadratic": quadratic_loss,
        "coordinatewise quadratic": coordinatewise_quadratic_loss,
        "smooth": smooth_loss,
    },
)


# --------------------------------------------------------------- estimators' factors c(a, x)


@dataclass(frozen=True)
class Unit:
    """A unit in a state x: f(a), mu(a), whether P(x) > 0, and f/P(x), 0 where it is not."""

    x: Array
    f: Array
    mu: Array
    possible: Array
    ratio: Array

    def line(self, s: float) -> Array:
        return (1 - s) * self.ratio + np.where(self.possible, 2 * s * self.f, 0.0)

    def score_with_baseline(self, anchor: Array | float) -> Array:
        """dx/da of d log P/da (L(x) - b), with b = L(x) + L'(x)(anchor - x)."""
        return self.x * self.ratio * (self.x - anchor)


FACTORS: Named[Callable[[Unit, float], Array]] = Named(
    "chain-rule estimator",
    {
        "straight_through": lambda unit, _: 2 * unit.f + 0 * unit.x,
        "identity": lambda unit, _: np.ones_like(unit.f * unit.x),
        "zgr": lambda unit, _: unit.ratio,
        "chain_rule": lambda unit, s: unit.line(s),
        "darn_mean": lambda unit, _: unit.score_with_baseline(unit.mu),
        "darn_midpoint": lambda unit, _: unit.score_with_baseline(0.0),
        "shrinkage": lambda unit, omega: unit.line(1 / (1 + omega * (1 - unit.mu**2))),
    },
)


def factor(name: str, noise: RefNoise, a: Array, x: Array, s: float = 0.0) -> Array:
    """dx/da of a chain-rule estimator, from the definition of each, 0 where P(x) = 0.

    Raises:
        ValueError: no estimator of that name, or an ``s`` that it does not have.
    """
    if s != 0 and name not in ("chain_rule", "shrinkage"):
        raise ValueError(f"only chain_rule has an s, and shrinkage an omega; {name!r} got {s!r}")
    f, prob = noise.pdf(a), noise.prob(x, a)
    possible = prob > 0
    ratio = np.where(possible, f / np.where(possible, prob, 1.0), 0.0)
    mu = noise.cdf(a) - noise.cdf(-a)
    return FACTORS[name](Unit(np.asarray(x, float), f, mu, possible, ratio), s)


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


def slopes_given(net: RefNet, loss: RefLoss, name: str, k: int, start: Array) -> dict:
    """state of layer k -> E r_k, E r_k r_k^T given it: sums over whole paths."""
    xs = paths(net.widths)
    a, prob = pre_activations(net, start, xs), path_probabilities(net, start, xs)
    r = np.array(loss.gradient(xs[-1], 0), float)
    for j in reversed(range(k + 1, len(xs))):
        r = (factor(name, net.noise, a[j], xs[j]) * r) @ net.weights[j]
    out = {}
    for s in states(net.widths[k]):
        here = (xs[k] == s).all(1)
        w = prob[here] / prob[here].sum()
        out[tuple(s)] = (w @ r[here], np.einsum("p,pi,pj->ij", w, r[here], r[here]))
    return out
