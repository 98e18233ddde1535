"""Injected noise: a symmetric law with distribution function F and density f.

A binary unit is ``x = sign(a - Z)`` with ``Z ~ F``, so ``P(x = +1 | a) = F(a)`` and, by the
symmetry ``F(-a) = 1 - F(a)``, ``P(x | a) = F(x a)`` for both states. Everything a unit and its
estimators need of the noise is in the class that describes it.

Each class takes one argument, ``scale > 0``: ``Z = scale * Z_1`` with ``Z_1`` the law at scale 1.
``cdf`` keeps its *relative* accuracy in the lower tail (``1 + erf`` does not: in float32 it is 0
at -6 already), and its derivative by autograd is ``pdf``. Bounded laws have density 0 at the two
ends of their support, where F has a kink; this is the convention of ``hardtanh`` in torch. At
``a = +-inf`` F is 1 or 0 and f is 0; NaN gives NaN.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

__all__ = ["Cauchy", "FastSigmoid", "Gaussian", "Logistic", "Noise", "Triangular", "Uniform"]


class Noise:
    """A symmetric noise law with a scale. Subclasses give F, f and :math:`F^{-1}` at scale 1.

    Args:
        scale: the factor on the law at scale 1, in the units of ``a``; a number from 1e-37 to
            1e37, so that the density is one of float32.

    A law of your own gives ``_cdf``, ``_pdf`` and ``_icdf_lower`` (:math:`F^{-1}` up to 1/2). Where
    it enters for the first time it is tried at a few points: F(-a) = 1 - F(a), f = F' and
    F(:math:`F^{-1}(p)`) = p must hold.

    Raises:
        ValueError: ``scale`` is not a number from 1e-37 to 1e37.
    """

    #: Half-width of the support at scale 1.
    _half_width = math.inf
    #: Whether a law of the user's has been tried, see :func:`as_noise`.
    _tried = False

    def __init__(self, scale: float = 1.0) -> None:
        if not is_positive(scale):
            raise ValueError(f"scale must be a number from 1e-37 to 1e37, got {scale!r}")
        self.scale = float(scale)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self.scale:g})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.law == other.law

    def __hash__(self) -> int:
        return hash((type(self), self.scale))

    @property
    def law(self) -> str:
        """The law in words, with all its parameters, such as ``Logistic(scale=1.0)``."""
        own = (f"{n}={_in_full(v)!r}" for n, v in vars(self).items() if not self._is_derived(n))
        return f"{type(self).__name__}({', '.join(own)})"

    def _is_derived(self, name: str) -> bool:
        """Whether an attribute is no parameter: that it was tried, and what is computed once."""
        at_class = getattr(type(self), name, None)
        return name == "_tried" or isinstance(at_class, functools.cached_property)

    @property
    def support(self) -> tuple[float, float]:
        """The open interval on which f > 0, a pair of numbers."""
        return -self.scale * self._half_width, self.scale * self._half_width

    def cdf(self, a: Tensor) -> Tensor:
        """:math:`F(a) = P(Z < a)`, elementwise; any shape, floating point."""
        return self._apply(self._cdf, a)

    def tail(self, a: Tensor) -> Tensor:
        """:math:`F(-|a|)`, the probability of a unit's rarer state, elementwise."""
        return self._apply(self._tail, a)

    def pdf(self, a: Tensor) -> Tensor:
        """:math:`f(a) = F'(a)`, elementwise, in units of 1/``a``."""
        one = self.scale == 1
        return self._apply(self._pdf if one else lambda z: self._pdf(z) / self.scale, a)

    def icdf(self, p: Tensor) -> Tensor:
        """:math:`F^{-1}(p)` for 0 <= p <= 1, elementwise; NaN elsewhere."""
        _check_points("p", p)
        return (self._icdf(widened(p)) * self.scale).to(p.dtype)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        r"""Independent draws of Z. Always finite, and exactly symmetric.

        Args:
            shape: shape of the result.
            generator: source of randomness; it must live on ``device``.
            dtype, device: of the result; default torch's.

        Raises:
            TypeError: ``dtype`` is not floating point.
            TypeError, ValueError, RuntimeError: a generator that cannot be drawn from, as
                :func:`sbnlib.sample_sign`.

        The magnitude is :math:`-F^{-1}(u)` with u uniform on (0, 1/2], the sign a fair coin: a
        single uniform on [0, 1) would give :math:`F^{-1}(0) = -\infty` once in :math:`2^{24}`
        draws. What is beyond the largest number of the dtype is put at that number.
        """
        check_generator(generator, device)
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point one, got {dtype}")
        wide = torch.promote_types(dtype, torch.float32)

        def draw(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=wide, device=device)

        u = 1 - by_trial(draw, (2, *shape), generator)
        magnitude = -self.icdf(u[0] / 2).clamp_min(torch.finfo(dtype).min)
        return torch.where(u[1] <= 0.5, magnitude, -magnitude).to(dtype)

    def scaled_to(self, *, gain: float = 1.0) -> Self:
        r"""The same law at the scale at which straight-through's gain is ``gain``.

        .. math:: G = \mathbb{E}_{a\sim N(0,1)}\,(2f(a))^2

        In a wide network of random weights of variance 1/fan-in, one layer multiplies the mean
        square of the gradient by G (:func:`sbnlib.gain` has the assumptions). It says how to scale
        one law; it does not compare laws, for which see :func:`sbnlib.overlap`. To keep the noise
        and scale the weights instead there is :func:`sbnlib.nn.init_normal_`.

        Args:
            gain: a number from 1e-6 to 1e6. For 1 the six laws get the scales 0.2555 (logistic),
                0.7320 (uniform), 1.0130 (triangular), 0.4306 (Gaussian), 0.2479 (Cauchy) and 0.2603
                (fast sigmoid).

        Returns:
            A new law. Further parameters of a law of your own are kept, shared and not copied, and
            what it computes once (``functools.cached_property``) is computed anew.

        Raises:
            ValueError: ``gain`` is no such number, or is not reached at any scale from 1e-18 to
                1e18: the gain is infinite at each where the density is not square integrable.

        Warns:
            UserWarning: the law's overlap :math:`(\mathbb{E}\,2f)^2` at gain 1 is below 1/2.

        Source: for the gain, :func:`sbnlib.gain`.
        """
        return self._scaled_to(gain)

    def _scaled_to(self, gain: float) -> Self:
        """:meth:`scaled_to` for a function of ours: the warning names the line that calls it."""
        as_noise(self)
        if not is_positive(gain) or not 1e-6 <= gain <= 1e6:
            raise ValueError(f"gain must be a number from 1e-6 to 1e6, got {gain!r}")
        if slope_moment(self, 2) == math.inf:
            raise ValueError(f"gain must be finite at some scale to be set: that of {self!r} is "
                             "infinite at each, its density is not square integrable")  # fmt: skip
        at_one = self._at_gain(1.0)
        _warn_of_overlap(at_one)
        return at_one if gain == 1 else self._at_gain(float(gain))

    def _at_gain(self, gain: float) -> Self:
        """The law at the scale at which E (2f)^2 is ``gain``, found by bisection of log scale.

        With a = scale * z the gain is 4/scale * int f_1(z)^2 phi(scale * z) dz, where f_1 is the
        density at scale 1 and phi that of N(0, 1): both factors decrease as the scale grows.
        """
        low, high = math.log(1e-18), math.log(1e18)
        for _ in range(60):
            middle = (low + high) / 2
            above = slope_moment(self._at_scale(math.exp(middle)), 2) > gain
            low, high = (middle, high) if above else (low, middle)
        found = self._at_scale(math.exp(high))
        if not math.isclose(slope_moment(found, 2), gain, rel_tol=1e-6):
            raise ValueError(f"gain must be one of {self!r} at a scale from 1e-18 to 1e18, "
                             f"got {gain!r}")  # fmt: skip
        return found

    def _at_scale(self, scale: float) -> Self:
        """A copy at another scale, without what is derived from the old one."""
        other = copy.copy(self)
        kept = {n: v for n, v in vars(self).items() if not self._is_derived(n)}
        other.__dict__.clear()
        other.__dict__.update(kept, scale=scale)  # also where the class forbids assignment
        return other

    def _apply(self, at_scale_1: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        """A function of a/scale, computed in at least float32, in ``a``'s dtype."""
        _check_points("a", a)
        wide = widened(a)
        return at_scale_1(wide if self.scale == 1 else wide / self.scale).to(a.dtype)

    def _lacks(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} must define {what} at scale 1")

    def _cdf(self, a: Tensor) -> Tensor:
        raise self._lacks("_cdf, the distribution function")

    def _tail(self, a: Tensor) -> Tensor:
        return self._cdf(a.abs().neg_())

    def _pdf(self, a: Tensor) -> Tensor:
        raise self._lacks("_pdf, the density")

    def _icdf(self, p: Tensor) -> Tensor:
        """F^-1 by symmetry from its lower half, which keeps small p accurate."""
        upper = p > 0.5
        lower = torch.where(upper, 1 - p, p)
        a = self._icdf_lower(lower.where(lower >= 0, math.nan))
        return torch.where(upper, -a, a)

    def _icdf_lower(self, p: Tensor) -> Tensor:
        raise self._lacks("_icdf_lower, the quantiles up to 1/2")


class Logistic(Noise):
    r"""Logistic: :math:`F(a) = 1/(1 + e^{-a})`, :math:`f = F(1 - F)`.

    Its proxy 2f is the derivative of :math:`\tanh(a/2)`.
    """

    def _cdf(self, a: Tensor) -> Tensor:
        return torch.sigmoid(a)

    def _pdf(self, a: Tensor) -> Tensor:
        q = self._tail(a)
        return torch.addcmul(q, q, q, value=-1)  # q - q^2 in one pass

    def pdf_at_tail(self, q: Tensor) -> Tensor:
        """:math:`f(a)`, given q = :meth:`tail` of a."""
        f = torch.addcmul(q, q, q, value=-1)
        return f if self.scale == 1 else f / self.scale

    def _tail(self, a: Tensor) -> Tensor:
        return a.abs().neg_().sigmoid_()

    def _icdf(self, p: Tensor) -> Tensor:
        return torch.logit(p)


class Uniform(Noise):
    r"""Uniform on [-1, 1]: :math:`F(a) = (1 + a)/2`, :math:`f = \tfrac12` inside.

    Its proxy 2f is that of hardtanh.
    """

    _half_width = 1.0

    def _cdf(self, a: Tensor) -> Tensor:
        return (torch.nn.functional.hardtanh(a) + 1) / 2

    def _pdf(self, a: Tensor) -> Tensor:
        return (1 - a.abs()).clamp(0, 1).ceil() / 2  # 1/2 where |a| < 1; NaN stays NaN

    def _icdf(self, p: Tensor) -> Tensor:
        a = 2 * p - 1
        return a.where(a.abs() <= 1, math.nan)


class Triangular(Noise):
    r"""Triangular on [-1, 1]: :math:`f(a) = 1 - |a|`, :math:`F(a) = (1 + a)^2/2` for a <= 0.

    Its proxy :math:`2f = 2 - 2|a|` is the one of Bi-Real net's ApproxSign.
    """

    _half_width = 1.0

    def _cdf(self, a: Tensor) -> Tensor:
        tail = torch.relu(1 + _lower(a)).square() / 2
        return torch.where(a > 0, 1 - tail, tail)

    def _tail(self, a: Tensor) -> Tensor:
        return torch.relu(1 - a.abs()).square() / 2

    def _pdf(self, a: Tensor) -> Tensor:
        return torch.relu(1 - a.abs())

    def _icdf_lower(self, p: Tensor) -> Tensor:
        return torch.sqrt(2 * p) - 1


class Gaussian(Noise):
    r"""Standard normal: :math:`F(a) = \tfrac12\operatorname{erfc}(-a/\sqrt2)`.

    Its proxy 2f is the derivative of :math:`\operatorname{erf}(a/\sqrt2)`.
    """

    def _cdf(self, a: Tensor) -> Tensor:
        return torch.special.erfc(-a / math.sqrt(2)) / 2

    def _pdf(self, a: Tensor) -> Tensor:
        return torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi)

    def _icdf_lower(self, p: Tensor) -> Tensor:
        return torch.special.ndtri(p)


class Cauchy(Noise):
    r"""Cauchy: :math:`f(a) = 1/(\pi(1 + a^2))`, :math:`F(a) = \frac12 + \frac1\pi\arctan a`.

    Its proxy 2f is the derivative of :math:`\frac2\pi\arctan a`.
    """

    def _cdf(self, a: Tensor) -> Tensor:
        return torch.atan2(torch.ones_like(a), -a) / math.pi  # no cancellation as a -> -inf

    def _pdf(self, a: Tensor) -> Tensor:
        return 1 / (math.pi * (1 + a.square()))

    def _icdf_lower(self, p: Tensor) -> Tensor:
        return -1 / torch.tan(math.pi * p)


class FastSigmoid(Noise):
    r""":math:`f(a) = \frac12(1 + |a|)^{-2}`, :math:`F(a) = 1/(2(1 + |a|))` for a <= 0.

    Its tails are as heavy as Cauchy's. Its proxy :math:`2f = (1 + |a|)^{-2}` is the SuperSpike
    slope at beta = 1.
    """

    def _cdf(self, a: Tensor) -> Tensor:
        tail = 0.5 / (1 - _lower(a))
        return torch.where(a > 0, 1 - tail, tail)

    def _tail(self, a: Tensor) -> Tensor:
        return 0.5 / (1 + a.abs())

    def _pdf(self, a: Tensor) -> Tensor:
        return 0.5 / (1 + a.abs()).square()

    def _icdf_lower(self, p: Tensor) -> Tensor:
        return 1 - 0.5 / p


#: The laws by name, in lower case: wherever a noise is taken, its name stands for scale 1.
NOISES: dict[str, type[Noise]] = {n.lower(): globals()[n] for n in __all__ if n != "Noise"}
_OWN = frozenset(NOISES.values())
_WIDE = frozenset({torch.float32, torch.float64})
_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


def as_noise(noise: Noise | str) -> Noise:
    """``noise`` itself, or the law of that name at scale 1; capitals do not matter.

    Raises:
        ValueError: unknown name, the message lists the known ones; or a law of your own that is not
            symmetric, or whose F, f and :math:`F^{-1}` do not belong together.
        TypeError: neither a noise model nor a name.
    """
    if isinstance(noise, Noise):
        if not hasattr(noise, "scale"):
            name = type(noise).__name__
            raise TypeError(f"noise must have a scale, {name} must call super().__init__(scale)")
        if type(noise) not in _OWN and not noise._tried:
            _try(noise)
        return noise
    if not isinstance(noise, str):
        raise TypeError(f"noise must be a noise model such as Logistic(), got {noise!r}")
    if noise.lower() not in NOISES:
        known = ", ".join(law.__name__ for law in NOISES.values())
        raise ValueError(f"noise must be one of {known}, got {noise!r}")
    return NOISES[noise.lower()]()


def _try(noise: Noise) -> None:
    """Try a law of the user's at a few points, once; they are odd, so as to miss the kinks of F."""
    if torch.compiler.is_compiling():
        return
    near = torch.tensor([0.0137, 0.131, 0.377, 0.719, 1.37, 2.93, 7.1], **_EXACT)
    a, p = noise.scale * torch.cat([near, -near]), torch.tensor([0.137, 0.377, 0.719], **_EXACT)
    h = 1e-3 * noise.scale
    defects: dict[str, Callable[[], Tensor]] = {
        "symmetric, F(-a) = 1 - F(a)": lambda: noise.cdf(-a) - (1 - noise.cdf(a)),
        "given with its density, f = F'": lambda: (
            (noise.cdf(a + h) - noise.cdf(a - h)) / 2e-3 - noise.scale * noise.pdf(a)
        ),
        "given with its quantiles, F(F^-1(p)) = p": lambda: noise.cdf(noise.icdf(p)) - p,
    }
    for claim, defect in defects.items():
        with torch.no_grad(), contextlib.suppress(NotImplementedError):
            worst = float(defect().abs().max())
            if not worst < 1e-3:
                raise ValueError(f"noise must be {claim}; {noise!r} misses that by {worst:.2g}")
    noise.__dict__["_tried"] = True  # also where the class forbids assignment


# ---- expectations over a standard normal pre-activation ------------------------------------------

#: N(0, 1) has 1e-57 of its mass beyond.
_FAR = 16.0
#: How near, relative to its half-width, the end of a support is approached: a point there still
#: knows its distance to eight digits in float64.
_NEAR = 1e-8


def normal_mean(g: Callable[[Tensor], Tensor], noise: Noise) -> float:
    """E g(a) for a ~ N(0, 1) and a g >= 0 that belongs to ``noise``; ``inf`` where it diverges.

    Args:
        g: a function of a float64 vector, entry by entry: smooth on pieces, growing less than
            exp(a^2/3), and perhaps unbounded at 0 and at the ends of the support, there like a
            power of the distance.

    Gauss-Lobatto on decades of the distance to 0 and to the ends of the support, halved until
    they are settled; what is nearer than the last decade is the rest of a geometric series. The
    relative error is 1e-11 for a bounded g, and 1e-7 for one of the power -4/5.
    """

    def both(a: Tensor) -> Tensor:
        return g(a) + g(-a)

    def weighted(a: Tensor) -> Tensor:
        return both(a) * torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi)

    end = _end_of_support(noise)
    middle = min(end / 2, _FAR)
    to_zero = _decades(middle, max(1.0, middle / noise.scale) / _NEAR)
    to_end = _decades(end / 2, 1 / _NEAR)
    if _diverges(both, to_zero) or end < math.inf and _diverges(lambda u: both(end - u), to_end):
        return math.inf
    total = _with_rest(_integrals(weighted, to_zero))
    if middle < _FAR:
        beyond = _decades(max(_FAR, end), max(_FAR / end, 1.0)).clamp_min(end * (1 + 1e-15))
        total += _with_rest(_integrals(lambda u: weighted(end - u), to_end))
        total += float(_integrals(weighted, beyond).sum())
    return total


def normal_mean_between(
    g: Callable[[Tensor], Tensor], noise: Noise, thresholds: Sequence[float]
) -> float:
    """:func:`normal_mean` of a g that belongs to ``noise`` at each of several thresholds.

    It may be unbounded, like a power of the distance, at each threshold and at the two ends of the
    support about each. What is less than 1e-7 of the scale from another such point counts as that
    point. The ends of the supports are approached to 1e-8 of the scale, or to where a float64 knows
    the distance to five digits.
    """
    total, points = 0.0, _singular_points(noise, thresholds)
    for low, high in zip(points[:-1], points[1:], strict=True):
        reach = (high - low) / 2
        for end, way in ((low, 1.0), (high, -1.0)):
            nearest = max(_NEAR * min(reach, noise.scale), 2e-11 * abs(end))
            distances = _decades(reach, max(reach / nearest, 1e3))
            part = _normal_part(g, end, way, distances)
            if part == math.inf:
                return math.inf
            total += part
    return total


def _normal_part(g: Callable[[Tensor], Tensor], end: float, way: float, distances: Tensor) -> float:
    """The integral of g times the normal density over the points ``end + way * distance``."""

    def weighted(u: Tensor) -> Tensor:
        a = end + way * u
        return g(a) * torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi)

    if _diverges(lambda u: g(end + way * u), distances):
        return math.inf
    parts = _integrals(weighted, distances)
    return _with_rest(parts) if bool(parts.sum() > 0) else 0.0


def _singular_points(noise: Noise, thresholds: Sequence[float]) -> list[float]:
    """Where g may be singular, and a few points of the normal law, which are not to be missed."""
    half = _end_of_support(noise)
    ways = (-half, 0.0, half) if half < math.inf else (0.0,)  # 0 * inf is no number
    found = {t + way for t in thresholds for way in ways}
    points: list[float] = []
    for point in sorted(found | {-_FAR, -4.0, -1.0, 0.0, 1.0, 4.0, _FAR}):
        if not points or point - points[-1] > 1e-7 * noise.scale + 1e-14 * abs(point):
            points.append(point)
    return points


def slope_moment(noise: Noise, power: int) -> float:
    """E (2 f(a))^power for a ~ N(0, 1)."""
    with torch.no_grad():
        return normal_mean(lambda a: (2 * noise.pdf(a)) ** power, noise)


def _decades(reach: float, ratio: float) -> Tensor:
    """``reach``, a tenth of it, ... down to ``reach / ratio`` or just below."""
    count = math.ceil(math.log10(ratio) - 1e-9) + 1
    return reach * 10.0 ** -torch.arange(count, **_EXACT)


def _diverges(h: Callable[[Tensor], Tensor], distances: Tensor) -> bool:
    """Whether the integral of h down to the distance 0 is infinite, h like a power there.

    The integrals over decades have the ratio 10^-(power + 1) in the end: above 1, and 1 where the
    power is -1. Powers up to 4e-5 above are taken for -1; where h is a power -1 times logarithms,
    the answer may be wrong.
    """
    parts = _rule(h, distances[-9:])
    if not parts[-1] > 1e-10 * parts.sum():  # nothing there but, perhaps, rounding
        return False
    return bool(parts[-1] > (1 - 1e-4) * parts[-2])


def _with_rest(parts: Tensor) -> float:
    """The sum of the integrals over decades, and of those that would follow."""
    ratio = float(parts[-1] / parts[-2]) if parts[-2] > 0 else 0.0
    rest = ratio / (1 - ratio) if ratio < 1 else 0.0
    return float(parts.sum() + parts[-1] * rest)


def _integrals(h: Callable[[Tensor], Tensor], stops: Tensor) -> Tensor:
    """The integrals of h between neighbours of a falling sequence, each to 1e-12 of their sum."""
    done, owner = torch.zeros(len(stops) - 1, **_EXACT), torch.arange(len(stops) - 1)
    high, low, whole = stops[:-1], stops[1:], _rule(h, stops)
    enough = 1e-12 * float(whole.sum())
    while len(high):
        ends = torch.stack([high, (high + low) / 2, low])
        halves = _rule(h, ends)
        rough = (halves.sum(0) - whole).abs() > enough  # one that is inf or NaN stays so
        rough &= len(high) < 1 << 12  # more of them is not a jump, and not worth the time
        done.index_add_(0, owner, halves.sum(0).where(~rough, 0.0))
        high, low = ends[:-1, rough].flatten(), ends[1:, rough].flatten()
        owner, whole = owner[rough].repeat(2), halves[:, rough].flatten()
    return done


def _rule(h: Callable[[Tensor], Tensor], stops: Tensor) -> Tensor:
    """Gauss-Lobatto with 20 points between neighbours along the first axis, which fall.

    The ends are among the points: a jump of h between an end and its neighbour would else be seen
    neither by an interval nor by its halves.
    """
    points, weights = _gauss_lobatto()
    half = (stops[:-1] - stops[1:]) / 2
    at = stops[1:] + half * points.view(-1, *[1] * stops.dim())
    return half * torch.tensordot(weights, h(at.flatten()).view_as(at), 1)


@functools.cache
def _gauss_lobatto() -> tuple[Tensor, Tensor]:
    """Points on [0, 2], the ends and the extrema of P_19, and their weights 1/(190 P_19^2)."""
    legendre = np.polynomial.Legendre.basis(19)
    points = np.concatenate([[-1.0], np.sort(legendre.deriv().roots()), [1.0]])
    weights = 1 / (190 * legendre(points) ** 2)
    return torch.as_tensor(points + 1, **_EXACT), torch.as_tensor(weights, **_EXACT)


def _end_of_support(noise: Noise) -> float:
    """Where f becomes 0 for good: a law of the user's need not say that its support is bounded.

    A density below the smallest number of float64 is 0 too; that end does no harm.
    """
    end = noise.support[1]
    if end < math.inf or bool(noise.pdf(torch.tensor(1e6 * noise.scale, **_EXACT)) > 0):
        return end
    low, high = torch.tensor([1e-6, 1e6], **_EXACT) * noise.scale
    for _ in range(12):
        points = low * (high / low) ** torch.linspace(0, 1, 65, **_EXACT)
        last = int((noise.pdf(points[:-1]) > 0).nonzero().amax())
        low, high = points[last], points[last + 1]
    return float(high)


def _warn_of_overlap(noise: Noise) -> None:
    """Says how much of an overlap a law at gain 1 keeps, where others keep more."""
    kept = slope_moment(noise, 1) ** 2
    if kept < 0.5:
        warnings.warn(
            f"noise {type(noise).__name__} has the overlap (E 2f)^2 = {kept:.3f} at gain 1: by it "
            "a wide layer of random weights multiplies a small overlap of the states of two "
            "inputs, so that a deep network loses its input sooner. Triangular, Gaussian, Uniform "
            "and Logistic keep 0.53 to 0.54 at gain 1, and no law keeps more than 0.5445",
            stacklevel=4,
        )


def widened(a: Tensor) -> Tensor:
    """``a`` in at least float32: in half precision F and f lose more than their last digits."""
    return a if a.dtype in _WIDE else a.float()


def _check_points(name: str, points: Tensor) -> None:
    """F, f and their inverse are asked for at real points; of integers they would be rounded."""
    if not isinstance(points, Tensor) or not points.is_floating_point():
        got = points.dtype if isinstance(points, Tensor) else type(points).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")


def _in_full(value: Any) -> Any:
    """A parameter in a form whose ``repr`` leaves nothing out: that of a tensor is rounded."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_positive(value: object) -> bool:
    """Whether ``value`` is a number > 0 that float32 holds, and its inverse too; a bool is none."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and 1e-37 <= float(value) <= 1e37  # type: ignore[arg-type]


def check_generator(generator: object, device: torch.device | str | None) -> None:
    """A generator is on the device of what is drawn, and not drawn from inside a backward pass.

    There, activation checkpointing runs a forward pass for the second time. It restores torch's
    global generators and no other, so the second pass would have other states than the first.
    """
    if generator is None or torch.compiler.is_compiling():
        return
    if isinstance(generator, Generators):
        generator = generator.parts[0]
    if isinstance(generator, Share):
        generator = generator.source
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}")
    there = torch.get_default_device() if device is None else torch.device(device)
    if generator.device.type != there.type and there.type != "meta":
        raise ValueError(f"generator must be on {there}, like what is drawn, got one on "
                         f"{generator.device}")  # fmt: skip
    if torch._C._current_graph_task_id() != -1:  # -1: no backward pass runs in this thread
        raise RuntimeError(
            "generator must not be drawn from in a backward pass, where a checkpointed forward is "
            "run again and would draw other numbers: hand in u, or use torch's global generator"
        )


class Generators:
    """A generator for each of T trainings that are computed as one (see experiments.stacked).

    It stands for a ``torch.Generator`` wherever sbnlib draws numbers for a tensor whose third axis
    from the end counts the trainings, ``(..., T, B, n)``. Each of them gets the numbers that it
    would get alone, ``(..., B, n)`` from its own generator.

    Args:
        parts: the generators, all on one device, or one's :class:`Share` of them.
    """

    def __init__(self, parts: Sequence[torch.Generator | Share]) -> None:
        self.parts = tuple(parts)

    def own(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (..., B, n) of each training's part of (..., T, B, n)."""
        count = len(self.parts)
        if len(shape) < 3 or shape[-3] != count:
            raise ValueError(
                f"generator of {count} trainings must draw a shape (..., {count}, B, n), got "
                f"{tuple(shape)}"
            )
        return *shape[:-3], *shape[-2:]


class Share:
    """What one of K processes draws for its part of a batch, if all have the same generator.

    It stands for a ``torch.Generator`` wherever sbnlib draws numbers for a tensor ``(..., B, n)``
    with a row for each example. Process k has the rows k, k + K, ... of the whole batch. The
    numbers of the whole are drawn, and its rows are kept: so an example gets the same numbers on
    any number of processes, and they are those that ``source`` gives to one process.

    The exception is a draw that 31 random bits do not decide, one in 2^31: the number that settles
    it is a function of the seed and of its place, since not all processes know of it.

    Args:
        source: a generator with the same seed in all processes.
        index: which process, 0 to count - 1.
        count: how many there are.
    """

    def __init__(self, source: torch.Generator, index: int = 0, count: int = 1) -> None:
        self.source, self.index, self.count = source, index, count
        self.draws = 0

    def take(
        self, draw: Callable[[Sequence[int], torch.Generator | None], Tensor], shape: Sequence[int]
    ) -> Tensor:
        """The rows of this process, of ``shape`` (..., B, n), from a draw of the whole batch."""
        if len(shape) < 2:
            raise ValueError(f"generator shared by processes must draw (..., B, n), got "
                             f"{tuple(shape)}")  # fmt: skip
        self.draws += 1
        whole = draw((*shape[:-2], shape[-2] * self.count, shape[-1]), self.source)
        return whole[..., self.index :: self.count, :]

    def aside(self, chosen: Tensor) -> Tensor:
        """A uniform number of float64 for each true entry of the last draw's (..., B, n)."""
        places = chosen.nonzero()
        places[:, -2] = places[:, -2] * self.count + self.index
        names = [f"{self.source.initial_seed()} {self.draws} {p}" for p in places.tolist()]
        seeds = [int.from_bytes(hashlib.sha256(n.encode()).digest()[:7], "big") for n in names]
        numbers = [seed * 2.0**-56 for seed in seeds]
        return torch.tensor(numbers, dtype=torch.float64, device=chosen.device)


def without_rows(generator: torch.Generator | None) -> torch.Generator | None:
    """The generator of draws that belong to no example, such as those of weights."""
    stands: object = generator
    if isinstance(stands, Generators):
        parts = [part.source if isinstance(part, Share) else part for part in stands.parts]
        return cast(torch.Generator, Generators(parts))
    return stands.source if isinstance(stands, Share) else generator


def by_trial(
    draw: Callable[[Sequence[int], torch.Generator | None], Tensor],
    shape: Sequence[int],
    generator: torch.Generator | Generators | Share | None,
) -> Tensor:
    """``draw(shape, generator)``; of :class:`Generators` each draws its slice ``(..., B, n)``."""
    if isinstance(generator, Share):
        return generator.take(draw, shape)
    if not isinstance(generator, Generators):
        return draw(shape, generator)
    own = generator.own(shape)
    return torch.stack([by_trial(draw, own, part) for part in generator.parts], dim=-3)


def _lower(a: Tensor) -> Tensor:
    """-|a|, with derivative 1 at 0 (that of ``-a.abs()`` is 0 there, and so would be F'(0))."""
    return torch.where(a > 0, -a, a)
