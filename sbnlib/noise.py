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
import functools
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

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
        u = 1 - torch.rand((2, *shape), generator=generator, dtype=wide, device=device)
        magnitude = -self.icdf(u[0] / 2).clamp_min(torch.finfo(dtype).min)
        return torch.where(u[1] <= 0.5, magnitude, -magnitude).to(dtype)

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


def _lower(a: Tensor) -> Tensor:
    """-|a|, with derivative 1 at 0 (that of ``-a.abs()`` is 0 there, and so would be F'(0))."""
    return torch.where(a > 0, -a, a)
