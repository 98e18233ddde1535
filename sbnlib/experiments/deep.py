r"""Deep networks as the law of depth assumes them at the start, and the units tried in them.

Weights are independent with mean 0 and variance 1/fan-in, biases 0; the inputs are centred and have
mean square 1. So a pre-activation is close to N(0, 1) over the units, and a noise is told by its
scale *relative* to the one at which straight-through's gain is 1
(:meth:`sbnlib.Noise.scaled_to`): all noises then have the same axis.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sbnlib.contracts import ChainRule, check_count
from sbnlib.data import Dataset, Split
from sbnlib.depth import gain, overlap
from sbnlib.estimators import attach, chain_rule, straight_through, zgr
from sbnlib.experiments.models import Classifier
from sbnlib.experiments.training import generator, linear
from sbnlib.network import SBN, pathwise
from sbnlib.nn import Sign
from sbnlib.noise import NOISES, Noise, as_noise, is_positive, widened

__all__ = ["ESTIMATORS", "NORMS", "Deep", "Laplace", "Residual", "centred"]


class Laplace(Noise):
    r"""Laplace: :math:`f(a) = \tfrac12e^{-|a|}`, a law that the library does not have.

    It is held out: no prediction of this book was made with it at hand.
    """

    def _cdf(self, a: Tensor) -> Tensor:
        tail = torch.exp(-a.abs()) / 2
        return torch.where(a > 0, 1 - tail, tail)

    def _pdf(self, a: Tensor) -> Tensor:
        return torch.exp(-a.abs()) / 2

    def _icdf_lower(self, p: Tensor) -> Tensor:
        return torch.log(2 * p)


LAWS: dict[str, type[Noise]] = {"Laplace": Laplace}
NORMS = ("batch", "none")


# Units ------------------------------------------------------------------------------------------


def clipped(a: Tensor, x: Tensor, noise: Noise | str, *, most: float) -> Tensor:
    """ZGR whose factor f/P(x) is cut off at ``most``: bounded, and biased for linear losses too."""
    noise = as_noise(noise)
    return attach(x, a, _zgr_factor(a, x, noise).clamp(max=most))


def capped(a: Tensor, x: Tensor, noise: Noise | str, *, most: float) -> Tensor:
    r"""The member of the line nearest to ZGR whose factors are at most ``most``.

    .. math:: s = \min\Big(1,\ \max\Big(0,\ \frac{1 - q\,C/f}{|\mu|}\Big)\Big)

    with C = ``most`` and q the probability of the rarer state: exact for linear losses. Where
    2f > C it is straight-through.
    """
    noise = as_noise(noise)
    a0 = widened(a.detach())
    f, q = noise.pdf(a0), noise.tail(a0)
    s = ((1 - q * most / f.where(f > 0, math.inf)) / (1 - 2 * q).clamp_min(1e-12)).clamp(0, 1)
    return chain_rule(a, x, noise, s=s)


def towards_straight_through(a: Tensor, x: Tensor, noise: Noise | str, *, tau: float) -> Tensor:
    r"""The member :math:`s = 1/(1 + \tau(1-\mu^2))`: ZGR for undecided units at large tau,
    straight-through for decided ones."""
    noise = as_noise(noise)
    q = noise.tail(widened(a.detach()))
    return chain_rule(a, x, noise, s=1 / (1 + tau * 4 * q * (1 - q)))


def _zgr_factor(a: Tensor, x: Tensor, noise: Noise) -> Tensor:
    a0 = widened(a.detach())
    p = noise.cdf(x.detach() * a0)
    return noise.pdf(a0) / p.where(p != 0, math.inf)


def rescaled(a: Tensor, x: Tensor, noise: Noise | str, *, by: float) -> Tensor:
    r"""Straight-through with every slope multiplied by one number."""
    return attach(x, a, 2 * by * as_noise(noise).pdf(widened(a.detach())))


#: What trains a deep network here; the first two are the library's. The last one wants ``by``,
#: the number that makes its gain 1.
ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "straight_through": straight_through,
    "zgr": zgr,
    "zgr_clipped_2": partial(clipped, most=2.0),
    "zgr_clipped_4": partial(clipped, most=4.0),
    "zgr_capped_2": partial(capped, most=2.0),
    "zgr_capped_4": partial(capped, most=4.0),
    "line_tau_1": partial(towards_straight_through, tau=1.0),
    "line_tau_5": partial(towards_straight_through, tau=5.0),
    "straight_through_rescaled": rescaled,
}


# Networks ---------------------------------------------------------------------------------------


class Residual(nn.Module):
    r"""Binary units on a real-valued stream that every layer adds to.

    .. math:: h_0 = W_0v, \qquad x_k = \operatorname{sign}(\mathrm{norm}(h_{k-1}) - Z_k), \qquad
              h_k = h_{k-1} + W_kx_k

    for k = 1 to K; the last states are :math:`x_K`, so :math:`W_K` does not exist. It is called
    like an :class:`sbnlib.SBN`.
    """

    takes_axes = True

    def __init__(self, linears: list[nn.Module], norms: list[nn.Module], noise: Noise) -> None:
        super().__init__()
        self.layers, self.norms = nn.ModuleList(linears), nn.ModuleList(norms)
        self.sign = Sign(noise)

    def forward(self, inputs: Tensor, **how: Any) -> Tensor:
        """The states of the last layer; the options are those of a binary unit."""
        h: Tensor | float = 0.0
        x = inputs
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = h + layer(x)
            x = self.sign(norm(h), **how)
        return x


@dataclass(frozen=True)
class Deep:
    """A deep network and the way it is trained.

    Attributes:
        depth: number of binary layers.
        width: units of each.
        noise: name of their noise, one of the library's or "Laplace".
        relative_scale: of the noise, in units of the scale at which straight-through's gain is 1.
        estimator: one of ``ESTIMATORS``.
        norm: "batch" or "none".
        residual: whether each layer adds to what it gets.

    Raises:
        ValueError: a field is wrong; the message names it, what was given and what is allowed.
    """

    depth: int
    width: int = 64
    noise: str = "Logistic"
    relative_scale: float = 1.0
    estimator: str = "straight_through"
    norm: str = "batch"
    residual: bool = False

    def __post_init__(self) -> None:
        check_count("depth", self.depth)
        check_count("width", self.width)
        known = [*(law.__name__ for law in NOISES.values()), *LAWS]
        for name, value, allowed in (
            ("noise", self.noise, known),
            ("estimator", self.estimator, ESTIMATORS),
            ("norm", self.norm, NORMS),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: got {value!r}, known are {', '.join(allowed)}")
        if not is_positive(self.relative_scale):
            raise ValueError(f"relative_scale: got {self.relative_scale!r}, must be a number > 0")

    @property
    def law(self) -> Noise:
        """The noise at its scale."""
        law = LAWS[self.noise]() if self.noise in LAWS else as_noise(self.noise)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a low overlap, which is what is measured here
            one = law.scaled_to(gain=1)
        return type(law)(self.relative_scale * one.scale)

    @property
    def numbers(self) -> dict[str, float]:
        """Scale, straight-through's gain and the overlap of the noise."""
        law = self.law
        return {"scale": law.scale, "gain": gain(law), "overlap": overlap(law)}

    @property
    def chain_rule(self) -> ChainRule:
        """What the estimator of this name delivers; rescaled slopes have the gain 1."""
        rule = ESTIMATORS[self.estimator]
        return partial(rescaled, by=gain(self.law) ** -0.5) if rule is rescaled else rule

    def build(self, data: Dataset, seed: int) -> Classifier:
        """The network before training, float32, on the CPU."""
        draw = generator("cpu", "deep weights", seed=seed)
        sizes = [data.train.inputs.shape[1], *[self.width] * self.depth]
        linears = [_dense(m, n, draw) for m, n in zip(sizes, sizes[1:], strict=False)]
        norms = [self._norm() for _ in linears]
        net: nn.Module
        if self.residual:
            net = Residual(list(linears), norms, self.law)
        else:
            pairs = zip(linears, norms, strict=True)
            net = SBN(*(nn.Sequential(*pair) for pair in pairs), noise=self.law)
        head = linear(self.width, data.num_classes, 1.0, draw, torch.float32)
        return Classifier(net, head, pathwise(self.chain_rule))

    def _norm(self) -> nn.Module:
        return nn.BatchNorm1d(self.width) if self.norm == "batch" else nn.Identity()


def _dense(inputs: int, outputs: int, draw: torch.Generator) -> nn.Linear:
    """Weights uniform with variance 1/inputs, biases 0."""
    layer = linear(inputs, outputs, math.sqrt(3), draw, torch.float32)
    nn.init.zeros_(layer.bias)
    return layer


def centred(data: Dataset) -> Dataset:
    """The data set with the training images' mean taken off each pixel, and mean square 1."""
    mean = data.train.inputs.mean(0)
    scale = (data.train.inputs - mean).square().mean().sqrt()

    def moved(split: Split) -> Split:
        return Split((split.inputs - mean) / scale, split.labels)

    return Dataset(
        data.name, data.image_shape, data.num_classes,
        moved(data.train), moved(data.validation), moved(data.test),
    )  # fmt: skip
