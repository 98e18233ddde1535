"""Estimators that relax the sign to tanh, and those that borrow the relaxation's slope.

One meaning of the temperature in the whole library: the relaxed unit is
``x_tau = tanh((a - Z) / (2 tau))``, which tends to sign(a - Z) as tau -> 0. For logistic noise it
is the binary Concrete (Gumbel-softmax) variable at temperature tau, in +-1 coding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbnlib.contracts import (
    check_count,
    check_ends_with,
    check_tau,
    check_uniforms,
    check_unit,
    finite,
)
from sbnlib.estimators.chain_rule import attach
from sbnlib.noise import Logistic, Noise, widened
from sbnlib.units import uniforms

__all__ = ["concrete", "gumbel_rao", "inside", "noise_given_state", "sech2", "st_gumbel"]


def concrete(
    a: Tensor,
    noise: Noise | str,
    *,
    tau: float,
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
) -> Tensor:
    r"""The relaxed unit :math:`x_\tau = \tanh((a - Z)/2\tau)`, differentiable in ``a``.

    The value is real, not a state: a network of such units is another network, whose gradient is
    exact and whose loss is biased by :math:`O(\tau)`.

    Args:
        a: pre-activations ``(..., n)``.
        noise: the law of Z, or its name for scale 1.
        tau: temperature > 0, in the units of ``a``.
        generator: source of randomness, on the device of ``a``.
        u: uniforms handed in, of ``a``'s shape or with further axes in front; then
            :math:`Z = F^{-1}(u)`.

    Raises:
        ValueError: ``tau <= 0``, a wrong shape.

    Source: Maddison, Mnih & Teh 2017 (arXiv 1611.00712); Jang, Gu & Poole 2017; chapter 9.
    """
    noise = check_unit(a, noise)
    check_tau(tau)
    wide = widened(a)
    if u is None:
        z = noise.sample(a.shape, generator=generator, dtype=wide.dtype, device=a.device)
    else:
        check_ends_with("u", u, a)
        check_uniforms(u)
        z = finite(noise.icdf(u.to(wide.dtype)))
    return torch.tanh((wide - z) / (2 * tau)).to(a.dtype)


def st_gumbel(
    a: Tensor,
    x: Tensor,
    noise: Noise | str,
    *,
    tau: float,
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
) -> Tensor:
    r"""Straight-through Gumbel: the sign forward, the relaxed unit's slope backward.

    .. math:: c = \frac{1}{2\tau}\operatorname{sech}^2\frac{a - Z}{2\tau}, \qquad Z \sim F \mid x

    The noise that explains the given state is drawn from its conditional law, so that (x, Z) has
    the law it has when Z is drawn first. As :math:`\tau\to0` the mean tends to the trapezoid rule
    :math:`f(a)(L'(1) + L'(-1))` and the variance grows as :math:`1/\tau`.

    Args:
        a, x, noise: as :func:`sbnlib.straight_through`.
        tau: temperature > 0.
        generator: source of randomness, on the device of ``a``.
        u: uniforms of ``x``'s shape for the draw of Z given x.

    Raises:
        ValueError: ``tau <= 0``, a wrong shape.

    Source: Jang, Gu & Poole 2017; chapter 9.
    """
    return _relaxed_slope(a, x, noise, tau, (), generator, u)


def gumbel_rao(
    a: Tensor,
    x: Tensor,
    noise: Noise | str,
    *,
    tau: float,
    num_inner: int,
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
) -> Tensor:
    r"""Gumbel-Rao: ST-Gumbel with its slope averaged over ``num_inner`` draws of Z given x.

    Its mean is ST-Gumbel's, its variance smaller: ZGR's plus :math:`O(1/m\tau)` as
    :math:`\tau\to0`. The cold limit ZGR needs the exact inner expectation.

    Args:
        a, x, noise, tau, generator: as :func:`st_gumbel`.
        num_inner: m >= 1.
        u: uniforms of shape ``(num_inner, *x.shape)``.

    Raises:
        ValueError: ``tau <= 0``, ``num_inner < 1``, a wrong shape.

    Source: Paulus, Maddison & Krause 2021 (ICLR); chapter 9.
    """
    check_count("num_inner", num_inner)
    return _relaxed_slope(a, x, noise, tau, (num_inner,), generator, u)


def _relaxed_slope(
    a: Tensor,
    x: Tensor,
    noise: Noise | str,
    tau: float,
    draws: tuple[int, ...],
    generator: torch.Generator | None,
    u: Tensor | None,
) -> Tensor:
    """The slope of the relaxed unit given x, averaged over ``draws`` if there is such an axis."""
    noise = check_unit(a, noise)
    check_ends_with("x", x, a)
    check_tau(tau)
    shape = (*draws, *x.shape)
    if u is None:
        u = uniforms(shape, a, generator)
    elif not isinstance(u, Tensor) or u.shape != shape:
        got = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
        raise ValueError(f"u must have shape {shape}, got {got}")
    else:
        check_uniforms(u)
    a0 = finite(a.detach())
    z = noise_given_state(a0, x.detach(), noise, u)
    slope = sech2((a0 - z) / (2 * tau)) / (2 * tau)
    return attach(x, a, slope.mean(dim=0) if draws else slope)


def sech2(v: Tensor) -> Tensor:
    """The derivative of tanh: 1 - tanh(v)^2, which would be 0 in float32 from v = 9.02 on."""
    return 4 * Logistic().pdf(2 * v)


def noise_given_state(a: Tensor, x: Tensor, noise: Noise, u: Tensor) -> Tensor:
    """Z given sign(a - Z) = x, from a uniform: x Z has the law of Z below x a.

    Differentiable in ``a`` at fixed ``u``, and on the right side of ``a`` whatever the rounding; in
    at least float32, whatever the dtype of ``a``.
    """
    xa = x * widened(a)
    return x * torch.minimum(noise.icdf(inside(u, xa) * noise.cdf(xa)), xa)


def inside(u: Tensor, a: Tensor) -> Tensor:
    """Uniforms in ``a``'s dtype, off 0 and 1, where F^-1 and its derivative may be infinite."""
    eps = torch.finfo(a.dtype).eps
    return u.to(a.dtype).clamp(eps / 4, 1 - eps / 2)
