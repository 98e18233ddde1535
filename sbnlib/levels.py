r"""Units with more than two levels: one threshold a step, one shared noise.

.. math:: x = \sum_{k=1}^{C-1} [a - \vartheta_k \ge Z], \qquad Z \sim F, \qquad
          \vartheta_1 < \dots < \vartheta_{C-1}

The C states are 0 to C - 1. With :math:`p_k = P(x \ge k \mid a) = F(a - \vartheta_k)` and
:math:`f_k = f(a - \vartheta_k)`, where :math:`p_0 = 1` and :math:`p_C = f_0 = f_C = 0`, the mean is
:math:`\mu = \sum p_k`, its slope :math:`\mu' = \sum f_k`, and V is the variance of x. One threshold
at 0 makes the binary unit in the coding 0/1.

The estimators have the form ``(a, x, thresholds, noise) -> tensor``: the value is the state x, and
the gradient in a is multiplied by a factor c(x). They differ in that factor only:

====================  ==============================================  ============================
estimator             factor c(x)                                     exact (one layer) for losses
====================  ==============================================  ============================
``straight_through``  :math:`\mu'`                                    linear in each unit
``least_variance``    :math:`\mu' + (V'/2V)(x - \mu)`                 quadratic in each unit
``trapezoid``         :math:`(f_x + f_{x+1})/2P(x)`                   quadratic on each step, slope
                                                                      continuous
``half``              :math:`(\mu' + (x - \mu)\,P'(x)/P(x))/2`        quadratic in each unit
``darn``              :math:`(x - \mu)\,P'(x)/P(x)`                   linear in each unit
``chain_rule``        :math:`\mu' + (1 - s)(V'/2V)(x - \mu)`          linear; s = 0 quadratic
====================  ==============================================  ============================

For two levels the three that are exact for quadratics are the same, for more they are three.
Probabilities and variances are sums of products of p and 1 - p, each computed as a tail of F, so
that neither is a difference from 1; they are computed in at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

from sbnlib.contracts import (
    Loss,
    argument_names,
    attach,
    can_be_called,
    check_ends_with,
    check_uniforms,
    check_unit,
    check_weight,
    evaluate,
    is_finite,
    looking_is_free,
    name_of,
)
from sbnlib.noise import Noise, widened
from sbnlib.units import uniforms

__all__ = [
    "ESTIMATORS",
    "LevelsEstimator",
    "Thresholds",
    "chain_rule",
    "darn",
    "deterministic_levels",
    "exact_gradient",
    "exact_moments",
    "half",
    "least_variance",
    "mean",
    "probabilities",
    "sample_levels",
    "straight_through",
    "trapezoid",
    "variance",
]


def __dir__() -> list[str]:  # what completion offers
    return __all__


#: Finite, strictly increasing numbers, at least one.
Thresholds = Sequence[float] | Tensor

#: The most states over which is summed.
MAX_STATES = 1 << 20

#: Numbers in one block of states: bounds the memory of an exact sum.
BLOCK = 1 << 22


class LevelsEstimator(Protocol):
    """``(a, x, thresholds, noise) -> tensor``: the value x, the gradient in a the estimate."""

    def __call__(self, a: Tensor, x: Tensor, thresholds: Thresholds, noise: Noise, /) -> Tensor: ...


# ---- the unit ------------------------------------------------------------------------------------


def sample_levels(
    a: Tensor,
    thresholds: Thresholds,
    noise: Noise | str,
    *,
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
) -> Tensor:
    r"""Draw units with levels: one uniform number u a unit, compared with each :math:`p_k`.

    .. math:: x = \sum_{k=1}^{C-1} \big[u < F(a - \vartheta_k)\big]

    Args:
        a: pre-activations, any shape, floating point.
        thresholds: :math:`\vartheta_1 < \dots < \vartheta_{C-1}`, a sequence or a 1-d tensor of
            finite numbers, in the units of ``a``; they are constants.
        noise: the law F of Z, or its name for scale 1.
        generator: source of the uniforms, which are drawn in float64, when ``u`` is not given; on
            the device of ``a``.
        u: uniforms on [0, 1) handed in, of ``a``'s shape or with further axes in front.

    Returns:
        Levels 0 to C - 1 in ``a``'s dtype, without a gradient. A larger ``a`` never has a lower
        level, given the same uniforms. The comparison is made on the side where the probability is
        small, ``u < F`` or ``1 - u > 1 - F``: a rare highest and a rare lowest level come alike,
        each to within :math:`2^{-53}` of its probability as the dtype knows it.

    Raises:
        TypeError: ``a`` is not a floating-point tensor, ``noise`` not a noise, ``generator`` not a
            generator.
        ValueError: thresholds that are not finite, not strictly increasing or none; and as
            :func:`sbnlib.sample_sign`.
    """
    noise, t = _unit(a, thresholds, noise)
    if u is None:
        u = uniforms(a.shape, a, generator)
    else:
        check_ends_with("u", u, a)
        check_uniforms(u)
    z = _offsets(a.detach(), t)
    p, q = noise.cdf(z), noise.cdf(-z)
    v = widened(u)[..., None]
    x = torch.where(p <= 0.5, v < p, 1 - v > q).sum(-1).to(a.dtype)
    return torch.where(a.isnan(), a, x).detach()


def probabilities(a: Tensor, thresholds: Thresholds, noise: Noise | str) -> Tensor:
    r"""The probability of each level, :math:`P(k) = F(a - \vartheta_k) - F(a - \vartheta_{k+1})`.

    Args:
        a, thresholds, noise: as :func:`sample_levels`.

    Returns:
        ``(..., C)``, rows that sum to 1, with their ordinary gradients :math:`f_k - f_{k+1}`. Each
        difference is taken where both terms are small, so that the levels of either tail keep
        their relative accuracy.

    Raises:
        TypeError, ValueError: as :func:`sample_levels`.
    """
    noise, t = _unit(a, thresholds, noise)
    z = _offsets(a, t)
    return _masses(noise.cdf(z), noise.cdf(-z)).to(a.dtype)


def mean(a: Tensor, thresholds: Thresholds, noise: Noise | str) -> Tensor:
    r"""The mean level, :math:`\mu(a) = \sum_k F(a - \vartheta_k)`.

    Args:
        a, thresholds, noise: as :func:`sample_levels`.

    Returns:
        ``a``'s shape and dtype, with the ordinary gradient :math:`\mu' = \sum_k f(a-\vartheta_k)`.

    Raises:
        TypeError, ValueError: as :func:`sample_levels`.
    """
    noise, t = _unit(a, thresholds, noise)
    return noise.cdf(_offsets(a, t)).sum(-1).to(a.dtype)


def variance(a: Tensor, thresholds: Thresholds, noise: Noise | str) -> Tensor:
    r"""The variance of the level, a sum over pairs of thresholds without a negative term.

    .. math:: V(a) = \sum_{j,k} p_{\max(j,k)} \big(1 - p_{\min(j,k)}\big)

    Args:
        a, thresholds, noise: as :func:`sample_levels`.

    Returns:
        ``a``'s shape and dtype, with the ordinary gradient V'. It keeps its relative accuracy
        where the unit is all but decided.

    Raises:
        TypeError, ValueError: as :func:`sample_levels`.
    """
    noise, t = _unit(a, thresholds, noise)
    z = _offsets(a, t)
    return _spread(noise.cdf(z), noise.cdf(-z)).to(a.dtype)


def deterministic_levels(a: Tensor, thresholds: Thresholds) -> Tensor:
    r"""The unit without noise, :math:`\sum_k [a \ge \vartheta_k]`; no gradient.

    NaN gives NaN.
    """
    t = check_thresholds(thresholds)
    x = (_offsets(a.detach(), t) >= 0).sum(-1).to(a.dtype)
    return torch.where(a.isnan(), a, x).detach()


def scaled(level: Tensor, top: int, values: tuple[float, float]) -> Tensor:
    """Levels 0 to ``top``, or their mean, on the scale from low to high.

    Both ends are exact, and so are whole numbers between them.
    """
    if values == (0.0, float(top)):
        return level
    k, (low, high) = widened(level), values
    step, middle = (high - low) / top, (low * (top - k) + high * k) / top
    upper = torch.where(k >= top, high + (k - top) * step, middle)
    return torch.where(k <= 0, low + k * step, upper).to(level.dtype)


def check_thresholds(thresholds: Thresholds) -> tuple[float, ...]:
    """The thresholds as numbers.

    Raises:
        ValueError: they are not finite, strictly increasing numbers, at least one, or a tensor that
            requires a gradient, which it would not get.
    """
    wanted = "thresholds must be finite, strictly increasing numbers, at least one"
    if isinstance(thresholds, Tensor) and thresholds.requires_grad:
        raise ValueError("thresholds must be constants, got a tensor that requires a gradient: add "
                         "what is learnt to a")  # fmt: skip
    given: object = thresholds.tolist() if isinstance(thresholds, Tensor) else thresholds
    found = [_number(t) for t in given] if isinstance(given, Sequence) else []
    if not found or not _increase(found):
        raise ValueError(f"{wanted}, got {thresholds!r}")
    return tuple(found)


def _unit(a: Tensor, thresholds: Thresholds, noise: Noise | str) -> tuple[Noise, tuple[float, ...]]:
    """The checks that all functions of a unit make; returns the noise and the thresholds."""
    noise, t = check_unit(a, noise), check_thresholds(thresholds)
    if len(t) > 2 / torch.finfo(a.dtype).eps:
        raise ValueError(f"a must be of a dtype that holds the levels 0 to {len(t)}, got {a.dtype}")
    return noise, t


def _number(value: object) -> float:
    """A number, and NaN for anything else."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return float(value) if number else math.nan  # type: ignore[arg-type]


def _increase(t: Sequence[float]) -> bool:
    return all(map(math.isfinite, t)) and all(x < y for x, y in zip(t, t[1:], strict=False))


def _offsets(a: Tensor, t: tuple[float, ...]) -> Tensor:
    """a - theta_k, (..., C - 1), in at least float32."""
    wide = widened(a)
    return wide[..., None] - torch.tensor(t, dtype=wide.dtype, device=wide.device)


def _pad(values: Tensor, before: float | None = None, after: float | None = None) -> Tensor:
    """``values`` with one more entry at either end of the last axis, where a number is given."""
    parts = [values]
    if before is not None:
        parts.insert(0, torch.full_like(values[..., :1], before))
    if after is not None:
        parts.append(torch.full_like(values[..., :1], after))
    return torch.cat(parts, -1)


def _masses(p: Tensor, q: Tensor) -> Tensor:
    """P(k) = p_k - p_{k+1} = q_{k+1} - q_k with q = 1 - p, whichever has the smaller terms.

    Neighbouring thresholds that the dtype can hardly tell apart can give a difference below 0.
    """
    p0, p1, q0, q1 = _pad(p, before=1), _pad(p, after=0), _pad(q, before=0), _pad(q, after=1)
    return torch.where(p0 + p1 <= q0 + q1, p0 - p1, q1 - q0).clamp_min(0)


def _below(values: Tensor) -> Tensor:
    """The sums over j < k; the k-th term is left out of the sum, not subtracted from it."""
    return _pad(values.cumsum(-1)[..., :-1], before=0) if values.shape[-1] > 1 else 0 * values


def _spread(p: Tensor, q: Tensor) -> Tensor:
    """V = sum_jk p_max(j,k) q_min(j,k)."""
    return (p * (q + 2 * _below(q))).sum(-1)


def _spread_slope(p: Tensor, q: Tensor, f: Tensor) -> Tensor:
    """V' = sum_jk f_max q_min - p_max f_min."""
    return (f * (q - p) + 2 * (f * _below(q) - p * _below(f))).sum(-1)


def _deviation(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """x - mu = sum_k [x >= k] - p_k, each term small where it is nearly decided."""
    k = torch.arange(1, p.shape[-1] + 1, dtype=x.dtype, device=x.device)
    return torch.where(x[..., None] >= k, q, -p).sum(-1)


def _at(x: Tensor, values: Tensor) -> Tensor:
    """The entry of the last axis (..., C) that belongs to each level x."""
    k = torch.arange(values.shape[-1], dtype=x.dtype, device=x.device)
    return torch.where(x[..., None] == k, values, 0).sum(-1)


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top/bottom, and 0 where the bottom is 0."""
    return top / bottom.where(bottom != 0, torch.inf)


# ---- estimators ----------------------------------------------------------------------------------


def straight_through(a: Tensor, x: Tensor, thresholds: Thresholds, noise: Noise | str) -> Tensor:
    r"""Straight-through: replace :math:`dx/da` by the slope of the mean, :math:`c = \mu'(a)`.

    Args:
        a: pre-activations ``(..., n)``.
        x: sampled levels 0 to C - 1, shape ``a.shape`` or with further axes in front.
        thresholds, noise: as :func:`sample_levels`, those the levels were drawn with.

    Returns:
        A tensor equal to ``x`` with gradient :math:`\sum_k f(a - \vartheta_k)` in ``a``.

    Unbiased for losses that are linear in each unit, in the last layer of units; on quadratics
    with matrix A the bias is exactly :math:`-\tfrac12 A_{ii} V'(a_i)`.

    Raises:
        TypeError: as :func:`sample_levels`; ``x`` is bool or complex.
        ValueError: as :func:`sample_levels`; ``x`` of another shape or, looked at where that is
            free, with values that are not levels.

    Source: Shekhovtsov & Yanush 2021 (arXiv 2006.06880) for two states; chapter 21.
    """
    noise, t, x = _checked(a, x, thresholds, noise)
    return attach(x, a, noise.pdf(_offsets(a.detach(), t)).sum(-1))


def chain_rule(
    a: Tensor, x: Tensor, thresholds: Thresholds, noise: Noise | str, *, s: float | Tensor
) -> Tensor:
    r"""The line through straight-through (s=1) and the member of least variance (s=0).

    .. math:: c(x) = \mu' + (1 - s)\,\frac{V'}{2V}\,(x - \mu), \qquad
              \mathbb{E}\,c^2 = \mu'^2 + (1-s)^2\,\frac{V'^2}{4V}

    Every member is exact for losses that are linear in each unit, in the last layer of units; on
    quadratics with matrix A the bias is :math:`-\tfrac{s}{2} A_{ii} V'`. Where V is 0, or too
    small for the dtype, the factor is :math:`\mu'`.

    Args:
        a, x, thresholds, noise: as :func:`straight_through`.
        s: position on the line; a finite number, or a tensor broadcastable to ``x``.

    Raises:
        TypeError, ValueError: ``s`` is neither; and as :func:`straight_through`.

    Source: for two states Shekhovtsov 2023 (ZGR, ICML) and Hooper & Shekhovtsov 2026 (AISTATS);
        chapter 21.
    """
    noise, t, x = _checked(a, x, thresholds, noise)
    check_weight("s", s)
    p, q, f = _tails(a, t, noise)
    ratio = _ratio(_spread_slope(p, q, f), 2 * _spread(p, q))
    return attach(x, a, f.sum(-1) + (1 - s) * ratio * _deviation(x, p, q))


def least_variance(a: Tensor, x: Tensor, thresholds: Thresholds, noise: Noise | str) -> Tensor:
    r"""The member s=0 of the line: :math:`c(x) = \mu' + \frac{V'}{2V}(x - \mu)`.

    Exact, in the last layer of units, for losses that are at most quadratic in each unit, and of
    all factors that are, the one with the least :math:`\mathbb{E}\,c^2`: it is the combination of
    1 and x that the two conditions :math:`\mathbb{E}\,c = \mu'` and
    :math:`\mathbb{E}\,c\,x = \tfrac12 (\mathbb{E}\,x^2)'` leave, and what is added to it is
    uncorrelated with both. For two levels it is :func:`sbnlib.zgr`.

    Args:
        a, x, thresholds, noise: as :func:`straight_through`.

    Raises:
        TypeError, ValueError: as :func:`straight_through`.

    Source: the quantized straight-through of Shekhovtsov & Obdrzalek 2026, the minimum variance
        estimator of Hooper & Shekhovtsov 2026 (AISTATS); chapter 21.
    """
    return chain_rule(a, x, thresholds, noise, s=0.0)


def trapezoid(a: Tensor, x: Tensor, thresholds: Thresholds, noise: Noise | str) -> Tensor:
    r"""The trapezoidal rule on each step: :math:`c(k) = \frac{f_k + f_{k+1}}{2P(k)}`.

    The exact gradient is :math:`\sum_k f_k\,\mathbb{E}[L(k) - L(k-1)]`; the estimate has
    :math:`\tfrac12(L'(k-1) + L'(k))` in the place of each difference. So it is exact, in the last
    layer of units, where the slope is continuous and L is quadratic on each step, be it another
    quadratic on every step; a third derivative leaves the error :math:`\sum_k f_k L'''/12`. A level
    of probability 0 gets the factor 0.

    Args:
        a, x, thresholds, noise: as :func:`straight_through`.

    Raises:
        TypeError, ValueError: as :func:`straight_through`.

    Source: chapter 21; for two states it is ZGR (Shekhovtsov 2023, ICML).
    """
    noise, t, x = _checked(a, x, thresholds, noise)
    p, q, f = _tails(a, t, noise)
    both = _pad(f, before=0) + _pad(f, after=0)
    return attach(x, a, _ratio(_at(x, both), 2 * _at(x, _masses(p, q))))


def half(a: Tensor, x: Tensor, thresholds: Thresholds, noise: Noise | str) -> Tensor:
    r"""The mean of straight-through and DARN: :math:`c = \tfrac12(\mu' + (x-\mu)\,P'(x)/P(x))`.

    Exact, in the last layer of units, for losses that are at most quadratic in each unit. It is
    ReinMax at temperature 1 on the logits :math:`\log P(k)` of the levels
    (:func:`sbnlib.categories.reinmax`), carried back to a. A level of probability 0 gets the
    factor 0.

    Args:
        a, x, thresholds, noise: as :func:`straight_through`.

    Raises:
        TypeError, ValueError: as :func:`straight_through`.

    Source: Liu et al. 2023 (ReinMax, NeurIPS) for categories; chapter 21.
    """
    noise, t, x = _checked(a, x, thresholds, noise)
    p, q, f = _tails(a, t, noise)
    c = (f.sum(-1) + _score_part(x, p, q, f)) / 2
    return attach(x, a, c.where(_at(x, _masses(p, q)) > 0, 0))


def darn(a: Tensor, x: Tensor, thresholds: Thresholds, noise: Noise | str) -> Tensor:
    r"""DARN with the mean as baseline: :math:`c(x) = (x - \mu)\,\partial_a \log P(x)`.

    Exact, in the last layer of units, for losses that are linear in each unit. A level of
    probability 0 gets the factor 0.

    Args:
        a, x, thresholds, noise: as :func:`straight_through`.

    Raises:
        TypeError, ValueError: as :func:`straight_through`.

    Source: Gregor et al. 2014 (arXiv 1310.8499); chapter 21.
    """
    noise, t, x = _checked(a, x, thresholds, noise)
    return attach(x, a, _score_part(x, *_tails(a, t, noise)))


#: The estimators by name; ``chain_rule`` is not among them, it needs an s.
ESTIMATORS: dict[str, LevelsEstimator] = {
    function.__name__: function
    for function in (straight_through, least_variance, trapezoid, half, darn)
}


def as_estimator(estimator: str | LevelsEstimator) -> LevelsEstimator:
    """An estimator for levels from its name, or ``estimator`` itself.

    Raises:
        ValueError: unknown name, or a function that does not take ``(a, x, thresholds, noise)``,
            such as one for binary units.
        TypeError: neither a name nor a function.
    """
    if isinstance(estimator, str):
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {sorted(ESTIMATORS)}, got {estimator!r}")
        return ESTIMATORS[estimator]
    wanted = "a function (a, x, thresholds, noise) such as levels.straight_through"
    if not callable(estimator):
        raise TypeError(f"estimator must be {wanted}, or its name, got {estimator!r}")
    if not can_be_called(estimator, 4) or argument_names(estimator)[2:3] == ("noise",):
        names = ", ".join(argument_names(estimator))
        raise ValueError(f"estimator must be {wanted}, got {name_of(estimator)} ({names})")
    return estimator


def _checked(
    a: Tensor, x: Tensor, thresholds: Thresholds, noise: Noise | str
) -> tuple[Noise, tuple[float, ...], Tensor]:
    noise, t = _unit(a, thresholds, noise)
    check_ends_with("x", x, a)
    check_levels(x, len(t))
    return noise, t, x.detach().to(a.dtype)


def check_levels(x: Tensor, top: int) -> None:
    """Levels are real numbers and, where looking is free, whole ones from 0 to ``top``."""
    if x.dtype is torch.bool or x.is_complex():
        raise TypeError(f"x must hold levels, real numbers from 0 to {top}, got {x.dtype}")
    if looking_is_free(x):
        other = (x != x.round()) | (x < 0) | (x > top)
        if bool(other.any()):
            raise ValueError(f"x must hold levels 0 to {top}, got {x[other][0].item():g}")


def _tails(a: Tensor, t: tuple[float, ...], noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """p_k = P(x >= k), 1 - p_k and f_k, each (..., C - 1)."""
    z = _offsets(a.detach(), t)
    return noise.cdf(z), noise.cdf(-z), noise.pdf(z)


def _score_part(x: Tensor, p: Tensor, q: Tensor, f: Tensor) -> Tensor:
    """(x - mu) P'(x)/P(x)."""
    slopes = _pad(f, before=0) - _pad(f, after=0)
    return _deviation(x, p, q) * _ratio(_at(x, slopes), _at(x, _masses(p, q)))


# ---- exact sums ----------------------------------------------------------------------------------


def exact_gradient(
    loss: Loss, a: Tensor, thresholds: Thresholds, noise: Noise | str
) -> tuple[Tensor, Tensor]:
    r"""The expected loss of one layer of units, and its gradient in a, by a sum over all states.

    .. math:: \partial_{a_i}\,\mathbb{E}\,L(x)
              = \sum_{k=1}^{C-1} f(a_i - \vartheta_k)\,
                \mathbb{E}\big[L(x_i = k) - L(x_i = k - 1)\big]

    Args:
        loss: states ``(..., n)`` to values ``(...)``, row by row; need not be differentiable.
        a: pre-activations ``(..., n)``.
        thresholds, noise: as :func:`sample_levels`.

    Returns:
        The expectation, of shape ``a.shape[:-1]``, and the gradient, of ``a``'s shape, without a
        gradient of their own.

    Raises:
        ValueError: more than :math:`2^{20}` states :math:`C^n`, a loss of another shape or that
            is not finite; and as :func:`sample_levels`.
        TypeError: as :func:`sample_levels`.
    """
    noise, t = _checked_sum(a, thresholds, noise)
    with torch.no_grad():
        p, q, f = _tails(a, t, noise)
        masses, slopes = _masses(p, q), _pad(f, before=0) - _pad(f, after=0)
        value, gradient = p.new_zeros(a.shape[:-1]), torch.zeros_like(p[..., 0])
        for x in _all_levels(a, len(t) + 1):
            losses = finite_values(loss, x)
            own, slope = _at(x, masses), _at(x, slopes)
            value += (own.prod(-1) * losses).sum(0)
            gradient += (product_of_others(own) * slope * losses[..., None]).sum(0)
    return value.to(a.dtype), gradient.to(a.dtype)


def exact_moments(
    loss: Loss,
    a: Tensor,
    thresholds: Thresholds,
    noise: Noise | str,
    estimator: str | LevelsEstimator,
) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of the estimate :math:`c(x_i)\,\partial_i L(x)`, by a sum over all states.

    Args:
        loss: as :func:`exact_gradient`, and differentiable.
        a, thresholds, noise: as :func:`exact_gradient`.
        estimator: a name in ``ESTIMATORS``, or a function ``(a, x, thresholds, noise)``.

    Returns:
        Mean and variance, both of ``a``'s shape.

    Raises:
        ValueError: the loss has no gradient in x; ``estimator`` is an unknown name or a function
            that is not for levels; and as :func:`exact_gradient`.
        TypeError: ``estimator`` is neither a name nor a function; and as :func:`exact_gradient`.
    """
    estimate = as_estimator(estimator)
    noise, t = _checked_sum(a, thresholds, noise)
    p, q, _ = _tails(a, t, noise)
    masses, mean, variance = _masses(p, q), torch.zeros_like(a), torch.zeros_like(a)
    for x in _all_levels(a, len(t) + 1):
        law = _at(x, masses).prod(-1, keepdim=True)
        mean += (law * _estimates(loss, a, x, t, noise, estimate)).sum(0)
    for x in _all_levels(a, len(t) + 1):  # E (g - mean)^2, since E g^2 - mean^2 would cancel
        law = _at(x, masses).prod(-1, keepdim=True)
        variance += (law * (_estimates(loss, a, x, t, noise, estimate) - mean).square()).sum(0)
    return mean, variance


def _checked_sum(
    a: Tensor, thresholds: Thresholds, noise: Noise | str
) -> tuple[Noise, tuple[float, ...]]:
    noise, t = _unit(a, thresholds, noise)
    if a.dim() < 1 or not a.shape[-1]:
        raise ValueError(f"a must have a last axis of n >= 1 units, got shape {tuple(a.shape)}")
    check_states_count(len(t) + 1, a.shape[-1], "levels")
    return noise, t


def check_states_count(count: int, n: int, of: str) -> None:
    """A sum over C^n states is taken up to 2^20 of them."""
    if n * math.log2(count) > math.log2(MAX_STATES) + 1e-9:
        raise ValueError(f"a must have at most 2^20 states C^n for an exact sum, got {n} units of "
                         f"{count} {of}")  # fmt: skip


def _all_levels(a: Tensor, count: int) -> Iterator[Tensor]:
    """All C^n states in blocks (S, ..., n), in the dtype and on the device of ``a``."""
    n = a.shape[-1]
    for index in state_blocks(count**n, a.numel() * count, a.device):
        x = state_digits(index, count, n).to(a.dtype)
        yield x.view(-1, *[1] * (a.dim() - 1), n).expand(-1, *a.shape)


def state_blocks(states: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """The numbers of the states in blocks; a state takes ``size`` numbers."""
    yield from torch.arange(states, device=device).split(max(1, BLOCK // max(1, size)))


def state_digits(index: Tensor, count: int, n: int) -> Tensor:
    """The n digits of numbers in base ``count``, the first unit's the most significant: (S, n)."""
    places = torch.tensor([count**i for i in range(n - 1, -1, -1)], device=index.device)
    return index[:, None] // places % count


def product_of_others(factors: Tensor) -> Tensor:
    """Of each entry of the last axis the product of all others, without a division by it."""
    before = _pad(factors, before=1)[..., :-1].cumprod(-1)
    after = _pad(factors, after=1)[..., 1:].flip(-1).cumprod(-1).flip(-1)
    return before * after


def finite_values(loss: Loss, x: Tensor, *, axes: int = 1) -> Tensor:
    """L(x), a value a state; the last ``axes`` of x are those of one state."""
    values = evaluate(loss, x, shape=x.shape[:-axes])
    if not is_finite(values):
        raise ValueError("loss must be finite at every state, got NaN or infinity")
    return values


def _estimates(
    loss: Loss,
    a: Tensor,
    x: Tensor,
    t: tuple[float, ...],
    noise: Noise,
    estimate: Callable[..., Tensor],
) -> Tensor:
    """One estimate a state: (S, *a.shape)."""
    with torch.enable_grad():
        leaf = a.detach().expand_as(x).clone().requires_grad_()
        values = finite_values(loss, estimate(leaf, x, t, noise))
        if not values.requires_grad:
            raise ValueError("loss must have a gradient in x for the moments of an estimator")
        return torch.autograd.grad(values.sum(), leaf)[0]
