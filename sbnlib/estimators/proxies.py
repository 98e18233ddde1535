"""Proxy derivatives found in practice: slopes h(a) put in place of the derivative of sign.

A proxy is the straight-through derivative ``2 f`` of a symmetric noise if and only if ``h >= 0``,
``h`` is even, its integral is 2 **and** the forward pass samples from that noise,
``P(x = 1) = 1/2 int_{-inf}^a h``. With another integral ``2c`` it is ``c`` times straight-through.
``noise`` names the law that makes ``h = 2 f`` an identity; where it is None there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbnlib.contracts import check_ends_with, check_pre_activations
from sbnlib.estimators.chain_rule import attach
from sbnlib.noise import Cauchy, FastSigmoid, Gaussian, Logistic, Noise, Triangular, Uniform

__all__ = ["PROXIES", "Proxy", "proxy"]


@dataclass(frozen=True)
class Proxy:
    """One proxy derivative.

    Attributes:
        name: the key in ``PROXIES``.
        h: the slope as a function of the pre-activation, elementwise.
        integral: the integral of h over the line; 2 for a correct straight-through scale.
        noise: the noise of which h is 2f, or None.
        formula: h(a) in LaTeX.
        source: where it is used.
    """

    name: str
    h: Callable[[Tensor], Tensor]
    integral: float
    noise: Noise | None
    formula: str
    source: str


def _hardtanh(a: Tensor) -> Tensor:
    return (a.abs() < 1).to(a.dtype)


def _swish_sign(a: Tensor, beta: float = 5.0) -> Tensor:
    """In terms of e = exp(-|beta a|), so that cosh does not overflow."""
    z = (beta * a).abs()
    e = torch.exp(-z)
    return beta * (2 - z * torch.tanh(z / 2)) * 2 * e / (1 + e).square()


def _ede(a: Tensor, t: float = 0.1) -> Tensor:
    return max(1 / t, 1.0) * t * (1 - torch.tanh(t * a).square())


PROXIES: dict[str, Proxy] = {
    p.name: p
    for p in (
        Proxy(
            "hardtanh",
            _hardtanh,
            2.0,
            Uniform(),
            r"[|a|<1]",
            "Hubara et al. 2016, binarized neural networks",
        ),
        Proxy(
            "tanh",
            lambda a: 1 - torch.tanh(a).square(),
            2.0,
            Logistic(0.5),
            r"1-\tanh^2 a",
            "the derivative of tanh(a)",
        ),
        Proxy(
            "half_tanh",
            lambda a: (1 - torch.tanh(a / 2).square()) / 2,
            2.0,
            Logistic(),
            r"\tfrac12(1-\tanh^2\tfrac a2)",
            "the derivative of tanh(a/2)",
        ),
        Proxy(
            "approx_sign",
            lambda a: 2 * torch.relu(1 - a.abs()),
            2.0,
            Triangular(),
            r"\max(0,\,2-2|a|)",
            "Liu et al. 2018, Bi-Real net",
        ),
        Proxy(
            "erf",
            lambda a: math.sqrt(2 / math.pi) * torch.exp(-a.square() / 2),
            2.0,
            Gaussian(),
            r"\sqrt{2/\pi}\,e^{-a^2/2}",
            "the derivative of erf(a/sqrt 2)",
        ),
        Proxy(
            "arctan",
            lambda a: 2 / (math.pi * (1 + a.square())),
            2.0,
            Cauchy(),
            r"\frac{2}{\pi(1+a^2)}",
            "the derivative of (2/pi) arctan a",
        ),
        Proxy(
            "fast_sigmoid",
            lambda a: 1 / (1 + a.abs()).square(),
            2.0,
            FastSigmoid(),
            r"(1+|a|)^{-2}",
            "the derivative of a/(1+|a|)",
        ),
        Proxy(
            "superspike",
            lambda a: 1 / (1 + 10 * a.abs()).square(),
            0.2,
            None,
            r"(1+10|a|)^{-2}",
            "Zenke & Ganguli 2018, SuperSpike, slope 10",
        ),
        Proxy(
            "ede",
            _ede,
            20.0,
            None,
            r"k t\,(1-\tanh^2(ta)),\ t=0.1,\ k=1/t",
            "Qin et al. 2020, IR-Net, at the start of training",
        ),
        Proxy(
            "swish_sign",
            _swish_sign,
            2.0,
            None,
            r"\beta\,\frac{2-\beta a\tanh(\beta a/2)}{1+\cosh(\beta a)},\ \beta=5",
            "Darabi et al. 2018, BNN+",
        ),
    )
}


def proxy(a: Tensor, x: Tensor, noise: Noise | str | None = None, *, name: str) -> Tensor:
    """The sample ``x`` with a proxy slope h(a) as its derivative.

    Args:
        a: pre-activations ``(..., n)``.
        x: states, +-1, shape ``a.shape`` or with further axes in front.
        noise: not used; the point of chapter 8 is what happens when it does not match ``h``.
        name: a key of ``sbnlib.estimators.PROXIES``, the names of the table in the reference.

    Raises:
        ValueError: unknown ``name``; the message lists the known ones.

    Source: the ``source`` of the entry; chapter 8.
    """
    if name not in PROXIES:
        raise ValueError(f"name must be one of {sorted(PROXIES)}, got {name!r}")
    check_pre_activations(a)
    check_ends_with("x", x, a)
    return attach(x, a, PROXIES[name].h(a.detach()))
