"""Estimators that keep the chain rule and invent the derivative dx/da.

All have the form ``(a, x, noise) -> tensor``: the value is the sample ``x``, bit for bit; the
gradient that flows back through it into ``a`` is multiplied by a factor ``c(a, x)``. They differ in
that factor only:

====================  ======================================  ===============================
estimator             factor c(a, x)                          exact (one layer) for losses
====================  ======================================  ===============================
``straight_through``  2 f(a)                                  multilinear
``zgr``               f(a) / P(x)                             at most quadratic in each unit
``darn`` (mean)       2 f(a) P(-x) / P(x)                     multilinear
``chain_rule``        f(a) [(1 - s)/P(x) + 2s]                multilinear; s=0 as ``zgr``
``shrinkage``         ``chain_rule``, s = 1/(1 + w (1-mu^2))  multilinear
``identity``          1                                       none
====================  ======================================  ===============================

P(x) stands for P(x | a) = F(x a), never for 1 - p, which would lose the tail.

The factor is a constant to torch: the gradient is an estimate of dE L/da and not the derivative of
anything, so it is not differentiated again (:func:`attach`). Where ``a`` is infinite, which is
refused on the CPU and possible under torch.func, torch.compile and on other devices, it is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbnlib.contracts import (
    attach,
    check_ends_with,
    check_pre_activations,
    check_unit,
    check_weight,
    differential,
    looking_is_free,
)
from sbnlib.noise import Noise, widened

__all__ = [
    "attach",
    "chain_rule",
    "darn",
    "identity",
    "reinmax",
    "shrinkage",
    "straight_through",
    "zgr",
]


def straight_through(a: Tensor, x: Tensor, noise: Noise | str) -> Tensor:
    r"""Straight-through: replace :math:`dx/da` by :math:`2f(a)`.

    .. math:: \widehat{\partial_{a_i} \mathbb{E} L} = 2 f(a_i)\, \partial_i L(x)

    Args:
        a: pre-activations ``(..., n)``.
        x: sampled states, +-1, shape ``a.shape`` or with further axes in front.
        noise: the law the states were drawn with, or its name for scale 1.

    Returns:
        A tensor equal to ``x`` with gradient :math:`2f(a)` in ``a``.

    Unbiased for losses that are multilinear in the bits, in the last binary layer; for quadratics
    with matrix A the bias is exactly :math:`2 f(a_i) A_{ii}\,\mu_i`.

    Raises:
        TypeError, ValueError: as :func:`sbnlib.sample_sign`.

    Source: Shekhovtsov & Yanush 2021 (arXiv 2006.06880); this book, chapter 6.
    """
    noise = check_unit(a, noise)
    check_ends_with("x", x, a)
    return attach(x, a, 2 * noise.pdf(widened(a.detach())))


def chain_rule(a: Tensor, x: Tensor, noise: Noise | str, *, s: float | Tensor) -> Tensor:
    r"""The line of chain-rule estimators through straight-through (s=1) and ZGR (s=0).

    .. math:: c(x) = f(a)\Big[\frac{1-s}{P(x)} + 2s\Big]
                   = \frac{f(a)\,(1 + s\,x\,\mu)}{P(x)}, \qquad \mu = 2F(a) - 1

    Every member is exact for linear losses in the last binary layer; the bias is
    :math:`f\int_{-1}^{1}(s\mu + t)L''(t)\,dt` along the coordinate. ``s=-1`` is DARN with the mean
    as baseline. A state of probability 0 gets the factor 0.

    Args:
        a, x, noise: as :func:`straight_through`.
        s: position on the line; a finite number, or a tensor broadcastable to ``x``.

    Raises:
        ValueError: ``s`` is neither; and as :func:`straight_through`.

    Source: Shekhovtsov 2023 (ZGR, ICML), Hooper & Shekhovtsov 2026 (AISTATS); chapter 10.
    """
    noise = check_unit(a, noise)
    check_ends_with("x", x, a)
    check_weight("s", s)
    a0 = widened(a.detach())
    f, xa = noise.pdf(a0), x.detach() * a0
    p, q = noise.cdf(xa), noise.cdf(-xa)  # P(x) and P(-x)
    # With 1 = P(x) + P(-x) the bracket of the formula times P(x) has no cancellation for |s| <= 1;
    # f/P(x) stays moderate where 1/P(x) alone would overflow.
    return attach(x, a, (1 + s) * f + (1 - s) * (f / p.where(p != 0, torch.inf)) * q)


def shrinkage(a: Tensor, x: Tensor, noise: Noise | str, *, omega: float | Tensor) -> Tensor:
    r"""ZGR shrunk towards straight-through, the more the more decided a unit is.

    .. math:: c(x) = 2f(a)\,\frac{1 + 2\omega P(-x)}{1 + 4\omega P(x)P(-x)},
              \qquad\text{the member}\quad s = \frac1{1 + \omega(1-\mu^2)}

    of the line (:func:`chain_rule`). On quadratics, with M samples averaged, it has the least mean
    squared error for :math:`\omega = (M-1)` times the share of the units' own curvature in the
    mean square of their slopes, if slope and curvature are uncorrelated. Nothing is divided by a
    small number: :math:`c \le 2f(a)(1+2\omega)`, and the gain is at most
    :math:`1 + \omega/4` times that of straight-through, for every noise.

    Args:
        a, x, noise: as :func:`straight_through`.
        omega: the weight, a finite number >= 0, or a tensor of such numbers that broadcasts to
            ``x``. 0 is straight-through; as it grows, :func:`zgr`.

    Exact for linear losses in the last binary layer; on quadratics with matrix A the bias is
    :math:`2 f(a_i) A_{ii}\,\mu_i / (1 + \omega(1-\mu_i^2))`.

    Raises:
        ValueError: ``omega`` is neither (a tensor is looked at where looking is free); and as
            :func:`straight_through`.

    Source: the best s, chapter 10; Hooper & Shekhovtsov 2026 (AISTATS) have this form for two
    categories, with a temperature for omega; gain and bounds: chapter 20.
    """
    noise = check_unit(a, noise)
    check_ends_with("x", x, a)
    _check_omega(omega)
    a0 = widened(a.detach())
    f, xa = noise.pdf(a0), x.detach() * a0
    p, q = noise.cdf(xa), noise.cdf(-xa)  # P(x) and P(-x)
    return attach(x, a, 2 * f * (1 + 2 * omega * q) / (1 + 4 * omega * p * q))


def _check_omega(omega: float | Tensor) -> None:
    check_weight("omega", omega)
    if isinstance(omega, Tensor):
        ok = not looking_is_free(omega) or bool(((omega >= 0) & omega.isfinite()).all())
    else:
        ok = omega >= 0
    if not ok:
        raise ValueError(f"omega must be a weight >= 0, finite, got {omega!r}")


def zgr(a: Tensor, x: Tensor, noise: Noise | str) -> Tensor:
    r"""ZGR, the zero-temperature limit of Gumbel-Rao: :math:`c(x) = f(a)/P(x)`.

    Unbiased, in the last binary layer, for losses that are at most quadratic in each unit
    separately. It is also ReinMax at temperature 1 and DARN with the midpoint as baseline.

    Args:
        a, x, noise: as :func:`straight_through`.

    Source: Shekhovtsov 2023 (ICML); Liu et al. 2023 (ReinMax, NeurIPS); chapter 10.
    """
    return chain_rule(a, x, noise, s=0.0)


#: ReinMax at temperature 1. For two states it is ZGR, algebraically; so it is the same object.
reinmax = zgr


def darn(a: Tensor, x: Tensor, noise: Noise | str, *, baseline: str = "mean") -> Tensor:
    r"""DARN: the score function with the loss's own linearization as control variate.

    With the linearization taken at the sample and evaluated at a baseline point b,
    :math:`c(x) = \partial_a \log P(x)\,(x - b)`:

    * ``baseline="mean"``, b = mu: :math:`c = 2f\,P(-x)/P(x)`, the point s=-1 of the line;
    * ``baseline="midpoint"``, b = 0: :math:`c = f/P(x)`, which is :func:`zgr`.

    Args:
        a, x, noise: as :func:`straight_through`.
        baseline: ``"mean"`` or ``"midpoint"``. The literature calls either one DARN.

    Raises:
        ValueError: unknown ``baseline``.

    Source: Gregor et al. 2014 (arXiv 1310.8499); Shekhovtsov 2021 (arXiv 2110.03549); chapter 10.
    """
    positions = {"mean": -1.0, "midpoint": 0.0}
    if baseline not in positions:
        raise ValueError(f"baseline must be one of {sorted(positions)}, got {baseline!r}")
    return chain_rule(a, x, noise, s=positions[baseline])


def identity(a: Tensor, x: Tensor, noise: Noise | str | None = None) -> Tensor:
    """The identity as derivative: c = 1, whatever the noise.

    It is M times straight-through for uniform noise on [-M, M], wherever abs(a) < M; with any other
    forward noise it is not an unbiased estimator even of a linear loss.

    Args:
        a, x: as :func:`straight_through`.
        noise: not used; accepted so that every estimator is called alike.

    Source: Bengio, Leonard & Courville 2013 (arXiv 1308.3432); chapter 8.
    """
    check_pre_activations(a)
    check_ends_with("x", x, a)
    return x + differential(a, twice=True)
