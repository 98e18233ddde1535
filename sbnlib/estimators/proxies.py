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

from sbnlib.contracts import (
    check_ends_with,
    check_function,
    check_pre_activations,
    looking_is_free,
)
from sbnlib.estimators.chain_rule import attach
from sbnlib.estimators.relaxed import sech2
from sbnlib.noise import (
    Cauchy,
    FastSigmoid,
    Gaussian,
    Logistic,
    Noise,
    Triangular,
    Uniform,
    widened,
)

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
    """In terms of e = exp(-|beta a|), so that cosh does not overflow; e is 0 from 800 on."""
    z = (beta * a).abs().clamp(max=800)
    e = torch.exp(-z)
    return beta * (2 - z * torch.tanh(z / 2)) * 2 * e / (1 + e).square()


def _ede(a: Tensor, t: float = 0.1) -> Tensor:
    return max(1 / t, 1.0) * t * sech2(t * a)


def _reste(a: Tensor, o: float = 3.0, t: float = 1.5, chord: float = 0.1) -> Tensor:
    """The slope of sign(a)|a|^(1/o) up to t; near 0, where it grows without bound, a chord's."""
    size = a.abs()
    power = size.clamp(min=chord) ** (1 / o - 1) / o
    return torch.where(size <= chord, chord ** (1 / o - 1), power) * (size <= t)


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
            sech2,
            2.0,
            Logistic(0.5),
            r"1-\tanh^2 a",
            "the derivative of tanh(a)",
        ),
        Proxy(
            "half_tanh",
            lambda a: sech2(a / 2) / 2,
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
            "ede_late",
            lambda a: _ede(a, 10.0),
            2.0,
            Logistic(0.05),
            r"k t\,(1-\tanh^2(ta)),\ t=10,\ k=1",
            "Qin et al. 2020, IR-Net, at the end of training",
        ),
        Proxy(
            "reste",
            _reste,
            2 * 1.5 ** (1 / 3),
            None,
            r"\tfrac13|a|^{-2/3}\ (0.1<|a|\le1.5),\ 0.1^{-2/3}\ (|a|\le0.1)",
            "Wu et al. 2023, ReSTE, at the end of training",
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


def proxy(
    a: Tensor,
    x: Tensor,
    noise: Noise | str | None = None,
    *,
    name: str | None = None,
    h: Callable[[Tensor], Tensor] | None = None,
    function: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""The sample ``x`` with a proxy slope h(a) as its derivative.

    One of three says which slope:

    Args:
        a: pre-activations ``(..., n)``.
        x: states, +-1, shape ``a.shape`` or with further axes in front.
        noise: not used; the point of chapter 8 is what happens when it does not match ``h``.
        name: a key of ``sbnlib.estimators.PROXIES``, the names of the table in the reference.
        h: a slope of your own, an elementwise function of ``a``, finite; a constant to torch.
        function: the function m whose derivative is the slope, elementwise and differentiable. The
            result is :math:`x + m(a) - m(a)`, the second m without a gradient: all that m depends
            on, parameters too, gets the derivative of the loss as if the state moved with m.

    ``h`` and ``function`` are given ``a`` in at least float32.

    A learned m: where the states are drawn with :math:`P(x=1\mid a) = (1 + m(a))/2`, m is their
    mean and the result is straight-through, in ``a`` and in the parameters of m, unbiased in the
    last binary layer for losses multilinear in the states. Where they are drawn otherwise, or are
    signs, the loss does not depend on these parameters, and what they get is no estimate of a
    derivative.

    Raises:
        ValueError: unknown ``name``, the message lists the known ones; not one of the three; a
            ``function`` that is constant in ``a``; a slope that requires a gradient or (looked at
            on the CPU only) is not finite; a result of ``h`` or ``function`` that has not the shape
            of ``a``.
        TypeError: an ``h`` or a ``function`` that cannot be called.

    Source: the ``source`` of the entry; chapter 8.
    """
    given = [k for k, v in {"name": name, "h": h, "function": function}.items() if v is not None]
    if len(given) != 1:
        raise ValueError(f"one of name, h and function must be given, got {given or 'none'}")
    if name is not None and name not in PROXIES:
        raise ValueError(f"name must be one of {sorted(PROXIES)}, got {name!r}")
    for key, value in (("h", h), ("function", function)):
        if value is not None:
            check_function(key, value, "a")
    check_pre_activations(a)
    check_ends_with("x", x, a)
    if function is not None:
        m = _elementwise("function", function, widened(a))
        if a.requires_grad and torch.is_grad_enabled() and not m.requires_grad:
            raise ValueError("function must be differentiable in a, got a result without a graph")
        return x + (m - m.detach()).to(a.dtype)
    a0 = widened(a.detach())
    return attach(x, a, _elementwise("h", h, a0) if h is not None else PROXIES[str(name)].h(a0))


def _elementwise(name: str, function: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
    """The user's function of ``a``: a tensor of its shape and, where looking is free, finite."""
    value = function(a)
    if not isinstance(value, Tensor) or value.shape != a.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a tensor of a's shape {tuple(a.shape)}, got {got}")
    if looking_is_free(value) and not value.isfinite().all():
        raise ValueError(f"{name} must be finite at every a, got NaN or an infinite value")
    return value
