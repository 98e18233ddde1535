r"""What one wide layer of random weights does to a gradient, and to what two inputs have in common.

Assumptions, called M: independent weights of mean 0 and variance 1/fan-in, fan-in to infinity, no
skip connections; pre-activations a ~ N(0, 1) over the units, noise that is fresh for each unit,
input and pass, and a gradient that reaches the top independently of the weights below.

Then a layer multiplies the mean square of the gradient by its :func:`gain`, and a small overlap of
the states of two inputs by the noise's :func:`overlap`. Both are integrals over one normal a. What
two draws of a gradient have in common is :func:`shares`, of a given number of layers.
"""

from __future__ import annotations

import math
from copy import copy
from functools import lru_cache, partial, update_wrapper
from typing import Any

import torch
from torch import Tensor

from sbnlib import levels
from sbnlib.contracts import ChainRule, check_count, name_of
from sbnlib.estimators import straight_through
from sbnlib.exact import check_state_only, factor
from sbnlib.guards import uniforms
from sbnlib.levels import LevelsEstimator, Thresholds
from sbnlib.noise import Noise, as_noise, normal_mean, normal_mean_between, slope_moment
from sbnlib.registry import as_chain_rule

__all__ = ["gain", "overlap", "shares"]


def __dir__() -> list[str]:  # what completion offers
    return __all__


def gain(
    noise: Noise | str,
    estimator: str | ChainRule | LevelsEstimator = straight_through,
    thresholds: Thresholds | None = None,
) -> float:
    r"""By how much one wide layer multiplies the mean square of a gradient estimate.

    .. math:: G = \mathbb{E}_{a\sim N(0,1)}\, \mathbb{E}\big[c(a,x)^2 \,\big|\, a\big], \qquad
              P(x\mid a) = F(xa)

    Assumptions: independent weights of variance 1/fan-in, wide layers, a ~ N(0, 1) over the units,
    fresh noise; a gradient at the top that is independent of the weights below. Weights of another
    variance are a noise of another scale.

    Args:
        noise: the law of the units, or its name for scale 1.
        estimator: a chain-rule estimator whose factor c is a function of (a, x): a name of the
            registry, or a function ``(a, x, noise)`` such as ``partial(chain_rule, s=0.5)``. With
            thresholds one of :mod:`sbnlib.levels`: a name in ``levels.ESTIMATORS``, or a function
            ``(a, x, thresholds, noise)``.
        thresholds: those of units with more levels; then the states are centred at their mean and
            divided by their deviation, both over a ~ N(0, 1) and the noise, and the gain is
            :math:`\Gamma = \mathbb{E}\,c^2/\operatorname{Var} x`. One threshold at 0 makes the
            binary unit.

    Returns:
        The gain, ``inf`` where there is none. Straight-through has :math:`\mathbb{E}\,(2f)^2`, the
        least of all estimators that are exact for linear losses; the member s of the line has
        :math:`\mathbb{E}\,\big[4f^2 + (1-s)^2\mu^2f^2/(F(a)F(-a))\big]`.

    Where the support is bounded, F(-a) may vanish like the power :math:`\alpha` of the distance u
    to its end: then straight-through has a finite gain if and only if :math:`\alpha > 1/2`, every
    other fixed s if and only if :math:`\alpha > 1`. Uniform noise has :math:`\alpha = 1` and, for
    s != 1, the gain ``inf`` at every scale: the integral grows like log 1/u, so that a run of N
    draws sees a gain of order log N, multiplied by a density that is tiny at large scales.

    The value is good to 1e-10 where E[c^2 | a] is bounded, to 1e-7 where :math:`\alpha` is 1/5
    above its limit. Whether it is infinite is read off the integrals over decades of u, down to
    1e-8 of the half-width: an :math:`\alpha` less than 4e-5 above its limit counts as at it (2e-5
    for straight-through), and a power times logarithms may be decided wrongly.

    Raises:
        ValueError: an estimator of another kind (loss based, relaxation, network); one that draws
            numbers of its own or couples units; a factor that is NaN. Thresholds that are no finite
            and increasing numbers, or so far out that the states do not vary in float64.
        TypeError: ``estimator`` is neither a name nor a function.

    Source: a statement of this book, in the limit of infinite width; the mean-field argument is
    that of Schoenholz et al. 2017 for deterministic networks.
    """
    if thresholds is not None:
        return _gain_of_levels(as_noise(noise), estimator, levels.check_thresholds(thresholds))
    chain_rule, noise = as_chain_rule(estimator, state_only=True), as_noise(noise)  # type: ignore[arg-type]
    with torch.inference_mode(False):
        _check(chain_rule, noise)
        value = normal_mean(partial(_mean_square, chain_rule, noise), noise)
    return _checked_value(value, chain_rule)


def overlap(noise: Noise | str, thresholds: Thresholds | None = None) -> float:
    r"""By how much one wide layer multiplies a small overlap of the states of two inputs.

    .. math:: r_{l+1} = \mathbb{E}\, m(a)\, m(a') \approx \big(\mathbb{E}\, 2f(a)\big)^2\, r_l,
              \qquad m = 2F - 1,\ \operatorname{corr}(a, a') = r_l

    The overlap r is the mean over units of the product of two state vectors, under the assumptions
    of :func:`gain`. The same holds for two passes of one input, with fresh noise in each.

    Args:
        noise: the law of the units, or its name for scale 1.
        thresholds: those of units with more levels, states scaled as in :func:`gain`; then the rate
            is :math:`(\mathbb{E}\,\mu')^2/\operatorname{Var} x`. The state tells of a what a
            quantizer of C levels does, so the rate is at most :math:`1 - d_C`, with :math:`d_C` the
            least mean square error of C levels for N(0, 1): 0.6366, 0.8098, 0.8825, 0.9655, 0.9905
            for 2, 3, 4, 8, 16.

    Returns:
        :math:`(\mathbb{E}\,2f)^2`, which is at most :math:`\mathbb{E}\,m^2`, and that at most the
        gain of straight-through. It is below 2/pi for every noise, the value of units without
        noise; at gain 1 it is at most 0.5445. So an untrained layer of dense weights always loses
        overlap, and at gain 1 at least 45 % of a small one.

    Raises:
        ValueError, TypeError: as :func:`gain`.

    Source: correlation maps of deterministic networks are in Poole et al. 2016 and Schoenholz et
    al. 2017; the bound 0.5445 is a statement of this book; the errors of the best quantizers are
    those of Max 1960 and Lloyd 1982.
    """
    if thresholds is not None:
        return _overlap_of_levels(as_noise(noise), levels.check_thresholds(thresholds))
    return slope_moment(as_noise(noise), 1) ** 2


def shares(noise: Noise | str, layers: int) -> list[float]:
    r"""What two draws of a straight-through gradient have in common, layer by layer.

    .. math:: q_l = r_{l-1} \prod_{k=l}^{K} \frac{\Omega'(r_{k-1})}{\Gamma}, \qquad
              r_k = \Omega(r_{k-1}),\ r_0 = 1

    with the gain :math:`\Gamma = \mathbb{E}\,(2f)^2` and the map of overlaps
    :math:`\Omega(r) = \mathbb{E}\, \mu(a)\mu(a')`, :math:`\mu = 2F - 1`, over normal a, a' of
    correlation r. A share is the part of a gradient's mean square that the draws of the units agree
    about; the mean of :math:`(1-q)/q` draws is half signal and half noise. The assumptions are
    those of :func:`sbnlib.gain`: wide layers at their start.

    Args:
        noise: the law of the units, or its name for scale 1.
        layers: how many layers K of units there are, an integer > 0.

    Returns:
        The K shares, those of the first layer's weights first. They are good to 1e-4 of each, up
        to 24 layers; what the series leaves out is below 1e-12 of the slopes.

    Raises:
        ValueError: ``layers`` is no integer > 0; ``noise`` is unknown, or so quiet that
            :math:`\mathbb{E}\,\mu^2` is above 0.995.

    Source: a statement of this book (chapter 16); the series is that of normalized Hermite
    polynomials, :math:`\Omega(r) = \sum_k b_k^2 r^k`.
    """
    noise = as_noise(noise)
    check_count("layers", layers)
    agree, size, squares = _course(copy(noise))
    odd = 1.0 + 2.0 * torch.arange(len(squares), dtype=torch.float64)
    overlaps, slopes = [1.0, agree], [1.0]
    for _ in range(1, layers):
        powers = squares * overlaps[-1] ** (odd - 1)
        slopes.append(float((odd * powers).sum()) / size)
        overlaps.append(float(powers.sum()) * overlaps[-1])
    return [overlaps[k] * math.prod(slopes[k:]) for k in range(layers)]


#: The mean of mu^2 above which the series would be longer than 6000 terms.
_MOST_AGREEMENT = 0.995


@lru_cache(maxsize=128)  # of a copy, which nobody changes
@torch.no_grad()
def _course(noise: Noise) -> tuple[float, float, Tensor]:
    """E mu^2, the gain, and b_1^2, b_3^2, ... of mu = sum b_k H_k; even k have b_k = 0."""
    agree = normal_mean(lambda a: (2 * noise.cdf(a) - 1).square(), noise)
    if not agree <= _MOST_AGREEMENT:
        raise ValueError(f"noise must leave the mean of mu^2 over a ~ N(0, 1) at {_MOST_AGREEMENT} "
                         f"or less, got {agree:.4f} for {noise!r}")  # fmt: skip
    return agree, gain(noise), _odd_squares(noise, 1 - agree)


def _odd_squares(noise: Noise, loose: float) -> Tensor:
    """By the trapezoid rule over a >= 0, on which the integrand is 0 at both ends."""
    a = torch.arange(0.0, 10.0, min(0.0025, loose / 50), dtype=torch.float64)
    weighted = torch.exp(-a.square() / 2) * (2 * noise.cdf(a) - 1)
    weighted *= 2 * float(a[1]) / math.sqrt(2 * math.pi)
    below, now, found = torch.zeros_like(a), torch.ones_like(a), []
    for k in range(_terms(loose)):
        if k % 2:
            found.append(torch.dot(weighted, now).square())
        below, now = now, (a * now - math.sqrt(k) * below) / math.sqrt(k + 1)
    return torch.stack(found)


def _terms(loose: float) -> int:
    """How many powers of 1 - loose are above 1e-13; a slope has the factor k besides."""
    return max(20, math.ceil(30 / -math.log1p(-loose)) + 1)


def _check(chain_rule: ChainRule, noise: Noise) -> None:
    """The factor is a function of a unit's own (a, x), tried inside the support."""
    reach = 0.9 * min(noise.scale, noise.support[1])
    points = reach * (2 * uniforms(2, 8, 4) - 1)
    check_state_only(chain_rule, noise, points, "its gain is not an integral over a")


def _mean_square(chain_rule: ChainRule, noise: Noise, a: Tensor) -> Tensor:
    """E[c(a, x)^2 | a] for a vector a. A state that never occurs is not asked for its factor."""
    a = a[:, None]  # inputs of one unit
    total = torch.zeros_like(a)
    for x in (torch.ones_like(a), -torch.ones_like(a)):
        p = noise.cdf(x * a)
        total += p * factor(chain_rule, a, x, noise).where(p > 0, 0).square()
    return total[:, 0].detach()


def _checked_value(value: float, estimator: object) -> float:
    if math.isnan(value):
        raise ValueError(f"estimator must have a factor at every a, {name_of(estimator)} gives "
                         "NaN at some")  # fmt: skip
    return value


# ---- more levels ---------------------------------------------------------------------------------


def _gain_of_levels(noise: Noise, estimator: Any, t: tuple[float, ...]) -> float:
    """E c^2 / Var x."""
    binary = estimator is straight_through  # the default
    function = levels.as_estimator(levels.straight_through if binary else estimator)
    with torch.inference_mode(False):
        _check_levels(function, noise, t)
        value = normal_mean_between(partial(_mean_square_of_levels, function, noise, t), noise, t)
    return _checked_value(value, function) / _spread(noise, t)


def _overlap_of_levels(noise: Noise, t: tuple[float, ...]) -> float:
    """(E mu')^2 / Var x."""

    def slope(a: Tensor) -> Tensor:
        return torch.stack([noise.pdf(a - threshold) for threshold in t]).sum(0)

    with torch.no_grad():
        return normal_mean_between(slope, noise, t) ** 2 / _spread(noise, t)


@torch.no_grad()
def _spread(noise: Noise, t: tuple[float, ...]) -> float:
    """Var x over a ~ N(0, 1) and the noise: the mean of V, and the variance of mu."""
    middle = normal_mean_between(lambda a: levels.mean(a, t, noise), noise, t)

    def about_it(a: Tensor) -> Tensor:
        return levels.variance(a, t, noise) + (levels.mean(a, t, noise) - middle).square()

    spread = normal_mean_between(about_it, noise, t)
    if not spread > 1e-12:  # the mean is known to 1e-11 only
        raise ValueError(f"thresholds must let the states vary over a ~ N(0, 1), got {t}")
    return spread


def _check_levels(function: LevelsEstimator, noise: Noise, t: tuple[float, ...]) -> None:
    """The factor is a function of a unit's own (a, x), tried about all the thresholds."""

    def at_ends(a: Tensor, x: Tensor, noise: Noise) -> Tensor:
        return function(a, len(t) * (x + 1) / 2, t, noise)

    reach = 0.9 * min(noise.scale, noise.support[1])
    share = uniforms(2, 8, 4)
    points = (t[0] - reach) + share * (t[-1] - t[0] + 2 * reach)
    named: ChainRule = update_wrapper(at_ends, function)
    check_state_only(named, noise, points, "its gain is not an integral over a")


def _mean_square_of_levels(
    function: LevelsEstimator, noise: Noise, t: tuple[float, ...], a: Tensor
) -> Tensor:
    """E[c(a, x)^2 | a] for a vector a. A level that never occurs is not asked for its factor."""

    def at(a: Tensor, x: Tensor, noise: Noise) -> Tensor:
        return function(a, x, t, noise)

    a = a[:, None]
    law = levels.probabilities(a, t, noise)
    total = torch.zeros_like(a)
    for k in range(len(t) + 1):
        c = factor(at, a, torch.full_like(a, k), noise)
        total += law[..., k] * c.where(law[..., k] > 0, 0).square()
    return total[:, 0].detach()
