r"""Random layered networks on which laws of width and depth are measured, exactly or by samples.

K layers of n logistic units on a random state of n bits: weights N(0, 4/n), biases 0, loss
:math:`\log(1 + e^s)` of the score :math:`s = \tfrac2{\sqrt n}\sum_j r_j x_j` with random signs r.
The gradient is the one in the pre-activations of the first layer, so it has come through all the
layers.

:func:`exact` sums over the states of each layer, :func:`sampled` draws paths up to the layer below
the last, whose units are summed exactly: the score of independent signs has n + 1 values, and a
mean over them is a sum over n + 1 frequencies of its characteristic function.

In one picture, straight-through, ZGR and PSA differ in two ways. What arrives at a state is a slope
:math:`\partial_jL`, or what a flip of :math:`x_j` changes; and its mean over :math:`x_j` takes both
states with their probabilities, or half and half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sbnlib.exact import all_states
from sbnlib.experiments.training import generator
from sbnlib.network import SBN
from sbnlib.noise import Logistic

__all__ = [
    "BIASED", "MOST_EXACT", "VARYING", "Found", "Problem", "Ratio", "exact", "fit", "problem",
    "ratio", "sampled",
]  # fmt: skip

#: Estimators of which the bias is known here -> whether flips are carried, and both states alike.
BIASED = {
    "straight_through": (False, False),
    "zgr": (False, True),
    "psa": (True, False),
    "psa_symmetric": (True, True),
}
#: Estimators of which the variance is known here; ``reinforce_mean`` has the baseline E L.
VARYING = ("reinforce", "reinforce_mean", "local_expectation", "straight_through")
MOST_EXACT = 12  # units: 2^24 numbers a transition matrix
NUMBERS = 1 << 19  # in the largest tensor of a chunk of samples: it stays in the cache
F, f = Logistic().cdf, Logistic().pdf


@dataclass(frozen=True)
class Problem:
    """A network, its input and its loss.

    Attributes:
        weights: of the layers, K tensors ``(n, n)``.
        start: the input, a state ``(n,)``.
        signs: the signs r of the read-out, ``(n,)``.
    """

    weights: tuple[Tensor, ...]
    start: Tensor
    signs: Tensor

    @property
    def width(self) -> int:
        return len(self.start)

    @property
    def unit(self) -> float:
        """What one state adds to the score."""
        return 2 / math.sqrt(self.width)

    def net(self) -> SBN:
        """The network for the library's own functions; its input is ``start[None]``."""
        n = self.width
        layers = [nn.Linear(n, n, dtype=torch.float64) for _ in self.weights]
        with torch.no_grad():
            for layer, weight in zip(layers, self.weights, strict=True):
                layer.weight.copy_(weight)
                layer.bias.zero_()
        return SBN(*layers, noise=Logistic())

    def loss(self, x: Tensor) -> Tensor:
        return softplus(self.unit * (x @ self.signs))


def problem(layers: int, width: int, index: int) -> Problem:
    """Number ``index`` of the ensemble, always the same one."""
    draw = generator("cpu", "random nets", layers=layers, width=width, index=index)

    def signs() -> Tensor:
        return 2.0 * torch.randint(2, (width,), generator=draw, dtype=torch.float64) - 1

    normal = torch.randn(layers, width, width, generator=draw, dtype=torch.float64)
    return Problem(tuple(normal * (2 / math.sqrt(width))), signs(), signs())


class Found(NamedTuple):
    """What one network gives, summed over the units that were looked at.

    Attributes:
        gradient2: squared length of the gradient.
        values: squared bias, or variance, by estimator.
    """

    gradient2: float
    values: dict[str, float]


# ---- exactly -----------------------------------------------------------------------------------


def exact(p: Problem, quantity: str) -> Found:
    """By sums over the states of each layer, :math:`2^{2n}` terms for each pair of layers.

    Args:
        p: the network.
        quantity: ``"bias"``, squared, of the estimators of ``BIASED``; or ``"variance"``, of those
            of ``VARYING``.
    """
    tables = _Tables(p)
    g = tables.gradient()
    gradient2 = float(g.square().sum())
    if quantity == "bias":
        means = {name: tables.mean(*how) for name, how in BIASED.items()}
        return Found(gradient2, {n: float((m - g).square().sum()) for n, m in means.items()})
    straight = float(tables.mean(False, False).square().sum())
    return Found(gradient2, _about_mean(tables.second_moments(), gradient2, straight))


def _about_mean(
    second: Mapping[str, Tensor], gradient2: float, straight: float
) -> dict[str, float]:
    """Variances from second moments; straight-through alone has another mean than the gradient."""
    mean2 = dict.fromkeys(VARYING, gradient2) | {"straight_through": straight}
    return {name: float(v.sum()) - mean2[name] for name, v in second.items()}


class _Tables:
    """States, transition matrices and losses of one network."""

    def __init__(self, p: Problem) -> None:
        self.p, n = p, p.width
        self.states = all_states(n, dtype=torch.float64)
        self.first = p.weights[0] @ p.start
        self.law = _table(self.first[None], self.states)  # (1, 2^n)
        self.pre = [self.states @ w.T for w in p.weights[1:]]
        self.moves = [_table(a, self.states) for a in self.pre]
        bits = 2 ** torch.arange(n - 1, -1, -1)
        self.flipped = torch.arange(2**n)[:, None] ^ bits
        self.loss = p.loss(self.states)

    def values(self, top: Tensor) -> Tensor:
        """The mean of a function of the last state given that of the first layer."""
        for move in reversed(self.moves):
            top = move @ top
        return top

    def gradient(self) -> Tensor:
        return f(self.first) * (self.law @ self._differences(self.values(self.loss)))[0]

    def _differences(self, v: Tensor) -> Tensor:
        return self.states * (v[:, None] - v[self.flipped])

    def mean(self, flips: bool, alike: bool) -> Tensor:
        """The mean of an estimator of ``BIASED``, by a recursion from the last layer down.

        r holds at each state what arrives there: slopes, or differences as PSA carries them.
        """
        p, slope = self.p, torch.sigmoid(self.p.unit * (self.states @ self.p.signs))
        r = self._differences(self.loss) if flips else slope[:, None] * p.unit * p.signs
        for move, a, w in zip(self.moves[::-1], self.pre[::-1], p.weights[:0:-1], strict=True):
            arrived = self._averaged(move, a, r, alike)
            r = _drops(a, w, self.states, arrived) if flips else (2 * f(a) * arrived) @ w
        e = self._averaged(self.law, self.first[None], r, alike)[0]
        return (1 if flips else 2) * f(self.first) * e

    def _averaged(self, move: Tensor, a: Tensor, r: Tensor, alike: bool) -> Tensor:
        """The mean of r_j given the state below, the two states of unit j alike or as they come."""
        if not alike:
            return move @ r
        up, down = (move @ (r * (self.states == sign)) for sign in (1, -1))
        return (up / F(a) + down / F(-a)) / 2

    def second_moments(self) -> dict[str, Tensor]:
        """E of the squared estimate of each unit, for the estimators of ``VARYING``."""
        value, square = self.values(self.loss), self.values(self.loss.square())
        centre = self.law @ value
        fisher = (f(self.first) / F(self.states * self.first)).square()
        others = square[:, None] + square[self.flipped] - 2 * value[:, None] * value[self.flipped]
        about = square - 2 * centre * value + centre.square()
        return {
            "reinforce": (self.law @ (fisher * square[:, None]))[0],
            "reinforce_mean": (self.law @ (fisher * about[:, None]))[0],
            "local_expectation": f(self.first).square() * (self.law @ others)[0],
            "straight_through": self._squared_slopes(),
        }

    def _squared_slopes(self) -> Tensor:
        """Straight-through: E r r^T at each state, from the last layer down (chapter 7)."""
        p, slope = self.p, torch.sigmoid(self.p.unit * (self.states @ self.p.signs))
        n = p.width
        second = slope.square()[:, None, None] * p.unit**2 * torch.outer(p.signs, p.signs)
        for move, a, w in zip(self.moves[::-1], self.pre[::-1], p.weights[:0:-1], strict=True):
            c = 2 * f(a)
            arrived = (move @ second.flatten(1)).unflatten(1, (n, n))
            second = w.T @ (c[:, :, None] * c[:, None, :] * arrived) @ w
        return 4 * f(self.first).square() * (self.law @ second.diagonal(dim1=1, dim2=2))[0]


def _table(a: Tensor, states: Tensor) -> Tensor:
    """P of every state given each row of a: log F(xa) = xa/2 - log 2cosh(a/2)."""
    log = a.abs() / 2 + torch.log1p(torch.exp(-a.abs()))
    return torch.exp(a @ states.T / 2 - log.sum(dim=-1, keepdim=True))


def _drops(a: Tensor, w: Tensor, x: Tensor, arrived: Tensor) -> Tensor:
    """PSA's step down, x_i q_i: what a flip of x_i does to each unit above, times what that costs.

    a: (..., n) above, w: (n, n), x: (..., n) below, arrived: (..., n) above.
    """
    moved = a[..., :, None] - 2 * w * x[..., None, :]  # (..., j, i)
    change = F(a)[..., :, None] - F(moved)
    return x * (arrived[..., None, :] @ change)[..., 0, :]


# ---- by samples --------------------------------------------------------------------------------


def sampled(p: Problem, quantity: str, samples: int, units: int, draw: torch.Generator) -> Found:
    """By samples of the states below the last layer; squared lengths without the samples' noise.

    Args:
        p: the network; n must be even.
        quantity: as for :func:`exact`.
        samples: M >= 2.
        units: how many units of the first layer are looked at, the first ones.
        draw: source of randomness.
    """
    chunk = max(1, NUMBERS // ((units + 1) * p.width**2))
    parts = [
        _Run(p, min(chunk, samples - start), units, draw).samples(quantity)
        for start in range(0, samples, chunk)
    ]
    of = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    gradient2 = _length2(of["exact"])
    if quantity == "bias":
        return Found(gradient2, {name: _length2(of[name] - of["exact"]) for name in BIASED})
    second = {name: of[name].mean(dim=0) for name in VARYING}
    return Found(gradient2, _about_mean(second, gradient2, _length2(of["mean"])))


def _length2(samples: Tensor) -> float:
    """||E v||^2 without bias from M samples (M, n): the mean product of two different samples."""
    count = len(samples)
    total = samples.sum(dim=0).square().sum() - samples.square().sum()
    return float(total) / (count * (count - 1))


class _Run:
    """Paths in rows: the first as drawn, row i + 1 with unit i of the first layer flipped.

    The rows of a path share the noise above the first layer.
    """

    def __init__(self, p: Problem, samples: int, units: int, draw: torch.Generator) -> None:
        self.p, self.units, self.draw = p, units, draw
        self.first = p.weights[0] @ p.start
        x = _states(self.first, torch.rand(samples, p.width, generator=draw, dtype=torch.float64))
        flip = 1 - 2 * torch.eye(p.width, dtype=torch.float64)[:units]
        self.rows = torch.cat([x[:, None], x[:, None] * flip], dim=1)  # (M, 1 + units, n)
        self.x, self.first = x[:, :units], self.first[:units]
        self.states, self.pre = self._upwards(1)
        self.score = _Score(p, self.pre[-1])
        self.value = self.score.mean(softplus)  # (M, 1 + units)

    def _upwards(self, noises: int) -> tuple[list[Tensor], list[Tensor]]:
        """States of layers 2 to K - 1 and pre-activations of 2 to K, (M, 1 + units, n) each."""
        x, states, pre = self.rows, [], []
        for w in self.p.weights[1:-1]:
            pre.append(x @ w.T)
            shape = (len(x), noises, self.p.width)
            x = _states(pre[-1], torch.rand(shape, generator=self.draw, dtype=torch.float64))
            states.append(x)
        return states, [*pre, x @ self.p.weights[-1].T]

    def samples(self, quantity: str) -> dict[str, Tensor]:
        """Samples (M, units) of the gradient, and of estimates or of their squares."""
        change = self.value[:, :1] - self.value[:, 1:]
        if len(self.states) == 1:
            change = change - self._first_order()
        exact = {"exact": f(self.first) * self.x * change}
        if quantity == "bias":
            return exact | {name: self._estimate(*how) for name, how in BIASED.items()}
        return exact | self._squares()

    def _first_order(self) -> Tensor:
        """A control variate of mean 0 for three layers, (M, units).

        Flipping a unit of the first layer turns some units of the second. What turning each alone
        costs is known; this is its sum over those that turn, less its mean over each unit's noise.
        """
        x, y, w = self.states[0][:, :1], self.states[0][:, 1:], self.p.weights[2]
        alone = _Score(self.p, self.pre[1][:, :1] - 2 * x.mT * w.T)  # (M, n, n): unit j turned
        cost = self.value[:, :1] - alone.mean(softplus)  # (M, n)
        drop = F(self.pre[0][:, :1]) - F(self.pre[0][:, 1:])  # of P(+1), (M, units, n)
        return (((x != y).to(cost.dtype) - x * drop) @ cost[..., None])[..., 0]

    def _estimate(self, flips: bool, alike: bool) -> Tensor:
        """An estimator of ``BIASED``, averaged over the last layer and over the unit's own state.

        Flipping unit i takes the pre-activations above from the first row to row i + 1, or back.
        """
        e = self.score.arriving(flips, alike)
        for k in range(len(self.states) - 1, -1, -1):  # the states of layer k + 2
            a, w, x = self.pre[k + 1], self.p.weights[k + 2], self.states[k]
            r = _drops(a, w, x, e) if flips else (2 * f(a) * e) @ w
            e = r / (2 * F(x * self.pre[k])) if alike else r
        a, w = self.pre[0], self.p.weights[1].T[: self.units]  # (units, n)
        if flips:
            change = self.x[..., None] * (F(a[:, :1]) - F(a[:, 1:]))  # F at x_i = 1 minus at -1
            drawn, other = change * e[:, :1], change * e[:, 1:]
        else:
            drawn, other = (2 * w * f(v) * arrived for v, arrived in (
                (a[:, :1], e[:, :1]), (a[:, 1:], e[:, 1:])))  # fmt: skip
        share = 0.5 if alike else F(self.x * self.first)
        mean = share * drawn.sum(dim=-1) + (1 - share) * other.sum(dim=-1)
        return (1 if flips else 2) * f(self.first) * mean

    def _squares(self) -> dict[str, Tensor]:
        square = self.score.mean(lambda s: softplus(s).square())
        fisher = (f(self.first) / F(self.x * self.first)).square()
        value, centre = self.value[:, :1], self.value[:, 0].mean()
        about = square[:, :1] - 2 * centre * value + centre.square()
        fresh = _Score(self.p, self._upwards(1 + self.units)[1][-1])
        other, other2 = fresh.mean(softplus), fresh.mean(lambda s: softplus(s).square())
        apart = square[:, :1] + other2[:, 1:] - 2 * value * other[:, 1:]
        slopes = self._slopes()  # the estimate is this times the sigmoid of the score
        slope = self.score.mean(torch.sigmoid)[:, :1]
        slope2 = self.score.mean(lambda s: torch.sigmoid(s).square())[:, :1]
        return {
            "reinforce": fisher * square[:, :1],
            "reinforce_mean": fisher * about,
            "local_expectation": f(self.first).square() * apart,
            "straight_through": slopes.square() * slope2,
            "mean": slopes * slope,
        }

    def _slopes(self) -> Tensor:
        """What straight-through makes along a path of the slopes of the score, (M, units)."""
        r = self.p.unit * self.p.signs
        for a, w in zip(self.pre[::-1], self.p.weights[:0:-1], strict=True):
            r = (2 * f(a[:, 0]) * r) @ w
        return 2 * f(self.first) * r[:, : self.units]


def _states(a: Tensor, u: Tensor) -> Tensor:
    return torch.where(u < F(a), 1.0, -1.0).to(a.dtype)


class _Score:
    r"""The score given the pre-activations of the last layer (..., n): n + 1 values, by frequency.

    With c of the n signs :math:`r_jx_j` at +1,
    :math:`P(c) = \tfrac1{n+1}\sum_k\varphi_k e^{-i\theta_kc}` at
    :math:`\theta_k = 2\pi k/(n+1)`; n is even, so no factor of :math:`\varphi_k` vanishes.
    """

    def __init__(self, p: Problem, a: Tensor) -> None:
        self.p, n = p, p.width
        self.probability = F(p.signs * a)
        self.angles = torch.arange(n // 2 + 1, dtype=torch.float64) * (2 * math.pi / (n + 1))
        self.turn = torch.polar(torch.ones_like(self.angles), self.angles)
        phi = torch.ones(*a.shape[:-1], n // 2 + 1, dtype=torch.complex128)
        for j in range(n):
            phi *= self._factor(self.probability[..., j, None])
        self.phi = phi

    def _factor(self, p: Tensor) -> Tensor:
        return 1 + p * (self.turn - 1)

    def _frequencies(self, values: Tensor) -> Tensor:
        """Weights w with E values[c] = Re sum_k w_k phi_k, for values at c = 0, 1, ..."""
        n, c = self.p.width, torch.arange(len(values))
        w = torch.polar(torch.ones(len(c), n // 2 + 1).double(), -c[:, None] * self.angles)
        return (values.to(w.dtype) @ w) * torch.tensor([1.0] + [2.0] * (n // 2)) / (n + 1)

    def _at_counts(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        n = self.p.width
        return function(self.p.unit * (2 * torch.arange(n + 1, dtype=torch.float64) - n))

    def mean(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """E function(s)."""
        return (self.phi @ self._frequencies(self._at_counts(function))).real

    def arriving(self, flips: bool, alike: bool) -> Tensor:
        """What arrives at the last layer's units, averaged: of the shape of a."""
        signs = self.p.signs
        if flips:
            return signs * self._without_one(softplus, -1)
        if alike:
            return signs * self.p.unit / 2 * self._without_one(torch.sigmoid, 1)
        return signs * self.p.unit * self.mean(torch.sigmoid)[..., None]

    def _without_one(self, function: Callable[[Tensor], Tensor], sign: int) -> Tensor:
        """E function(s) with r_j x_j = 1, plus ``sign`` times that with -1, the others as drawn."""
        at = self._at_counts(function)
        w = self._frequencies(at[1:] + sign * at[:-1])
        rest = self.phi[..., None, :] / self._factor(self.probability[..., None])
        return (rest @ w).real


# ---- many networks -----------------------------------------------------------------------------


class Ratio(NamedTuple):
    """A ratio of sums over networks, with its jackknife standard error."""

    value: float
    se: float


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """sum(above) / sum(below) over networks, its standard error by leaving out one at a time."""
    up, down = (torch.tensor(v, dtype=torch.float64) for v in (above, below))
    value = float(up.sum() / down.sum())
    left = (up.sum() - up) / (down.sum() - down)
    n = len(left)
    return Ratio(value, float(((n - 1) / n * (left - left.mean()).square().sum()).sqrt()))


def fit(
    points: Iterable[tuple[float, float, float]], power: float = 1.0
) -> dict[str, float] | None:
    """The exponent b of y = A n^b by weighted least squares on y^(1/power).

    A squared bias estimated from samples can be negative: with power 1/2 it counts as it is.

    Args:
        points: n, y^(1/power) and its standard error, independent of one another.
        power: see above.

    Returns:
        ``exponent``, ``se`` (from the points' errors), ``chi2``, ``dof``; None for fewer than two
        points or none that is positive.
    """
    n, y, se = torch.tensor(list(points), dtype=torch.float64).reshape(-1, 3).T
    sure = y > 2 * se
    if len(n) < 2 or sure.sum() < 2:
        return None
    x = torch.stack([torch.ones_like(n), n.log()], dim=1)
    start = x[sure] * (y / se)[sure, None]
    theta = torch.linalg.lstsq(start, (y.log() * y / se)[sure]).solution
    for _ in range(50):  # Gauss-Newton on (y - exp(x theta))/se
        model = (x @ theta).exp()
        slopes = x * (model / se)[:, None]
        theta = theta + torch.linalg.lstsq(slopes, (y - model) / se).solution
    model = (x @ theta).exp()
    covariance = torch.linalg.inv((x * (model / se)[:, None]).T @ (x * (model / se)[:, None]))
    return {
        "exponent": power * float(theta[1]), "se": power * float(covariance[1, 1].sqrt()),
        "chi2": float(((y - model) / se).square().sum()), "dof": len(n) - 2,
    }  # fmt: skip
