"""Units as they are written in training code, right and wrong, and what a report must say of each.

Each is written anew after a published layer or a habit met in code. What is expected is from pen
and paper: the slope ``h`` and the probability ``up`` of the higher state are numpy functions, and
``test_probes.py`` in this folder holds the units to them, so that neither can be wrong alone.
Nothing here is from the code that is tested, but for the names of the six laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from sbnlib.nn import Sign
from sbnlib.noise import Cauchy, FastSigmoid, Gaussian, Logistic, Triangular, Uniform

Array = np.ndarray
Curve = Callable[[Array], Array]

#: Codes that make everything else unjudged.
REFUSALS = frozenset(
    {"raises", "no-tensor", "shape", "not-finite", "not-elementwise", "not-quantized", "constant"}
)
NOTES = frozenset(
    {"uneven", "deterministic", "levels", "pole", "float32", "state-slope", "random-slope",
     "samples-in-eval", "clipped", "dead"}
)  # fmt: skip
#: What a plain function that draws is told: it has no mode, so it draws in evaluation too.
DRAWS = "samples-in-eval"
FIXED = "deterministic"


@dataclass(frozen=True)
class Probe:
    """A unit and what must be said of it.

    Attributes:
        name: of the test.
        make: gives what is handed to the doctor, afresh.
        codes: the codes of the findings, all of them.
        expected: attributes of the report and their values; what is missing is not held.
        source: the paper, or that it was met in code.
        h: the slope, or its mean over states and draws, as published; for the unit's own coding.
        up: the probability of the higher state where the forward pass draws.
        kinks: where h or up is not smooth.
        loose: relative tolerance of scale and integral; 1 %, and 3 % where the slope is random.
        open: codes that the contract leaves open here.
    """

    name: str
    make: Callable[[], Any]
    codes: frozenset[str]
    expected: dict[str, Any]
    source: str
    h: Curve | None = None
    up: Curve | None = None
    kinks: tuple[float, ...] = (0.0,)
    loose: float = 0.01
    open: frozenset[str] = field(default_factory=frozenset)

    def is_refused(self) -> bool:
        return bool(self.codes & REFUSALS)


PROBES: dict[str, Probe] = {}


def probe(
    name: str,
    make: Callable[[], Any],
    codes: str,
    expected: dict[str, Any],
    source: str,
    **more: Any,
) -> None:
    """File a probe; codes are given as one string of words."""
    assert name not in PROBES
    opened = frozenset(more.pop("open", "").split())
    PROBES[name] = Probe(
        name, make, frozenset(codes.split()), expected, source, open=opened, **more
    )


def signs(**its: Any) -> dict[str, Any]:
    """A sign with values -1 and 1 that draws nothing, as far as ``its`` does not say otherwise."""
    return {
        "forward": "deterministic", "forward_noise": None, "noise": None, "coding": "±1",
        "exact_pm1": True, "sign_of_zero": (1.0,), "threshold": 0.0, "even": True,
        "nonnegative": True, "slope": "of a", "line": None, "depends_on_gradient": False,
        "samples_in_eval": False, "integral": 2.0, "mismatch": 1.0,
    } | its  # fmt: skip


def spikes(**its: Any) -> dict[str, Any]:
    """A step from 0 to 1 that draws nothing and is 0 at 0."""
    return signs(coding="0/1", sign_of_zero=(0.0,), integral=1.0) | its


def drawn(**its: Any) -> dict[str, Any]:
    """A logistic unit of -1 and 1 with its own slope."""
    own: dict[str, Any] = {
        "forward": "sampled", "sign_of_zero": (-1.0, 1.0), "samples_in_eval": True,
        "forward_noise": Logistic(), "slope_noise": Logistic(), "noise": Logistic(),
    }  # fmt: skip
    return signs(**own) | its


def bits(**its: Any) -> dict[str, Any]:
    """The same for 0 and 1."""
    return drawn(coding="0/1", sign_of_zero=(0.0, 1.0), integral=1.0) | its


NO_SLOPE = {"slope_noise": None, "slope": None}


def no_slope(expected: dict[str, Any]) -> dict[str, Any]:
    """What remains to be said where nothing comes back: the forward pass."""
    about_slope = ("even", "nonnegative", "line", "depends_on_gradient", "integral", "mismatch")
    return {k: v for k, v in expected.items() if k not in about_slope} | NO_SLOPE


# --------------------------------------------------------------------------- slopes in numpy


def box(a: Array) -> Array:
    return np.where(np.abs(a) < 1, 1.0, 0.0)


def sech2(a: Array) -> Array:
    """1 - tanh^2 a, by e = exp(-2|a|): no overflow."""
    e = np.exp(-2 * np.abs(a))
    return 4 * e / (1 + e) ** 2


def two_f(a: Array) -> Array:
    """Twice the logistic density."""
    return sech2(a / 2) / 2


def fast(beta: float) -> Curve:
    return lambda a: (1 + beta * np.abs(a)) ** -2.0


def swish(a: Array) -> Array:
    """BNN+: b (2 - z tanh(z/2))/(1 + cosh z), z = b a, b = 5; 1/(1 + cosh z) = sech2(z/2)/2."""
    z = 5 * a
    return 2.5 * (2 - z * np.tanh(z / 2)) * sech2(z / 2)


def root(a: Array) -> Array:
    """The derivative of sign(a)|a|^(1/3), cut at 1.5."""
    return np.where(np.abs(a) < 1.5, np.maximum(np.abs(a), 1e-300) ** (-2 / 3) / 3, 0.0)


def chord(a: Array) -> Array:
    size = np.maximum(np.abs(a), 0.1)
    slope = np.where(np.abs(a) < 0.1, 0.1 ** (-2 / 3), size ** (-2 / 3) / 3)
    return np.where(np.abs(a) < 1.5, slope, 0.0)


def bell(a: Array, at: float = 0.0, width: float = 0.5) -> Array:
    return np.exp(-0.5 * ((a - at) / width) ** 2) / width / math.sqrt(2 * math.pi)


def three_bells(a: Array) -> Array:
    return 0.5 * (1.15 * bell(a) - 0.15 * bell(a, 0.5, 3.0) - 0.15 * bell(a, -0.5, 3.0))


def two_logistic(a: Array) -> Array:
    """Density of the sum of two standard logistic variables, (a coth(a/2) - 2)/(4 sinh(a/2)^2).

    Where a is small, where it cancels, its series 1/6 - a^2/60.
    """
    small = np.abs(a) < 1e-2
    z = np.where(small, 1.0, np.clip(np.abs(a), 0, 600))
    far = (z / np.tanh(z / 2) - 2) / (4 * np.sinh(z / 2) ** 2)
    return np.where(small, 1 / 6 - a**2 / 60, far)


def triangle_tail(a: Array) -> Array:
    return np.maximum(0.0, 1 - np.abs(a))


# ------------------------------------------------------------------- pieces that strangers share


def hard_sign(a: Tensor) -> Tensor:
    return torch.where(a >= 0, 1.0, -1.0).to(a.dtype)


def with_slope_of(x: Tensor, m: Tensor) -> Tensor:
    """The detach trick with the brackets where they belong."""
    return x.detach() + (m - m.detach())


def surrogate(slope: Callable[[Tensor], Tensor], fire: Callable[[Tensor], Tensor] | None = None):
    """A spiking layer's function: a step forward, a surrogate backward."""
    step = fire or (lambda a: (a > 0).to(a.dtype))

    class Spike(Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor) -> Tensor:
            ctx.save_for_backward(a)
            return step(a)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (a,) = ctx.saved_tensors
            return grad * slope(a)

    return Spike


def tensor_sech2(a: Tensor) -> Tensor:
    return 1 - torch.tanh(a) ** 2


# ------------------------------------------------------------------------- right, without noise


class BinarizeF(Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        out = inputs.new_ones(inputs.shape)
        out[inputs < 0] = -1
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        grad = grad.clone()
        grad[inputs.abs() > 1] = 0
        return grad


HUBARA = "Hubara et al. 2016, binarized neural networks; Courbariaux et al. 2016"
probe("hardtanh", lambda: BinarizeF, FIXED, signs(slope_noise=Uniform()), HUBARA,
      h=box, kinks=(-1, 0, 1))  # fmt: skip


def tanh_trick(a: Tensor) -> Tensor:
    soft = torch.tanh(a)
    return with_slope_of(hard_sign(a), soft)


probe("tanh-detach", lambda: tanh_trick, FIXED, signs(slope_noise=Logistic(0.5)), "met in code",
      h=sech2)  # fmt: skip


class PiecewiseSign(nn.Module):
    """A parabola to each side, as a sum of masked pieces."""

    def quadratic(self, a: Tensor) -> Tensor:
        left, right = (a >= -1) & (a < 0), (a >= 0) & (a < 1)
        out = (a >= 1).to(a.dtype) - (a < -1).to(a.dtype)
        return out + left * (a * a + 2 * a) + right * (2 * a - a * a)

    def forward(self, a: Tensor) -> Tensor:
        return with_slope_of(hard_sign(a), self.quadratic(a))


class PiecewiseSignAsReleased(PiecewiseSign):
    """Without brackets, which here rounds to the same: sign and m are on one side."""

    def forward(self, a: Tensor) -> Tensor:
        m = self.quadratic(a)
        return torch.sign(a).detach() - m.detach() + m


# 2 - 2|a| inside: twice the triangular density
BIREAL = "Liu et al. 2018, Bi-Real net, ApproxSign"
probe("approx-sign", PiecewiseSign, FIXED, signs(slope_noise=Triangular()), BIREAL,
      h=lambda a: 2 * triangle_tail(a), kinks=(-1, 0, 1))  # fmt: skip
probe("approx-sign-as-released", lambda: PiecewiseSignAsReleased, f"{FIXED} third-state",
      signs(slope_noise=Triangular(), sign_of_zero=(0.0,), exact_pm1=False), BIREAL,
      h=lambda a: 2 * triangle_tail(a), kinks=(-1, 0, 1))  # fmt: skip


def error_function(a: Tensor) -> Tensor:
    return with_slope_of(hard_sign(a), torch.erf(a / 2**0.5))


probe("erf", lambda: error_function, FIXED, signs(slope_noise=Gaussian()), "met in code",
      h=lambda a: 2 * bell(a, 0, 1))  # fmt: skip


class AnnealedSign(nn.Module):
    """Error decay: k tanh(t a) with k = max(1/t, 1), t set by the training script."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.register_buffer("t", torch.tensor(t))
        self.register_buffer("k", torch.tensor(max(1 / t, 1.0)))

    def forward(self, a: Tensor) -> Tensor:
        return with_slope_of(hard_sign(a), self.k * torch.tanh(self.t * a))


# The rise of k tanh(t a) is 2k: 2 at t = 10; 20 at t = 0.1. tanh(t a) is logistic of scale 1/2t.
EDE = "Qin et al. 2020, IR-Net, error decay estimator"
probe("ede-late", lambda: AnnealedSign(10.0), FIXED, signs(slope_noise=Logistic(0.05)), EDE,
      h=lambda a: 10 * sech2(10 * a))  # fmt: skip
probe("ede-early", lambda: AnnealedSign(0.1), f"{FIXED} factor",
      signs(slope_noise=Logistic(5.0), integral=20.0, mismatch=10.0), EDE,
      h=lambda a: sech2(a / 10))  # fmt: skip

probe("fast-sigmoid", lambda: surrogate(lambda a: 1 / (1 + a.abs()) ** 2, hard_sign).apply, FIXED,
      signs(slope_noise=FastSigmoid()), "met in code", h=fast(1.0))  # fmt: skip


class ArcTan(nn.Module):
    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        alpha = float(alpha)
        self.fire = surrogate(lambda a: alpha / 2 / (1 + (math.pi / 2 * alpha * a) ** 2))

    def forward(self, a: Tensor) -> Tensor:
        return self.fire.apply(a)


# (1/pi) arctan(pi alpha a/2) rises by 1; Cauchy of scale 2/(pi alpha)
ATAN = "Fang et al. 2021; the form of spikingjelly and snntorch"
probe("arctan-2", lambda: ArcTan, FIXED, spikes(slope_noise=Cauchy(1 / math.pi)), ATAN,
      h=lambda a: 1 / (1 + (math.pi * a) ** 2))  # fmt: skip
probe("arctan-5", lambda: ArcTan(5.0), FIXED, spikes(slope_noise=Cauchy(0.4 / math.pi)), ATAN,
      h=lambda a: 2.5 / (1 + (2.5 * math.pi * a) ** 2))  # fmt: skip


def sigmoid_slope(a: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(alpha * a)
    return alpha * s * (1 - s)


# The derivative of sigmoid(4a), which rises by 1
probe("sigmoid-surrogate", lambda: surrogate(partial(sigmoid_slope, alpha=4.0)).apply, FIXED,
      spikes(slope_noise=Logistic(0.25)), "the form of spikingjelly, alpha = 4",
      h=lambda a: sech2(2 * a))  # fmt: skip
# Laplace: none of the six
probe("exponential", lambda: surrogate(lambda a: torch.exp(-a.abs()) / 2).apply, FIXED,
      spikes(slope_noise=None), "Shrestha & Orchard 2018, SLAYER, with the right height",
      h=lambda a: np.exp(-np.abs(a)) / 2)  # fmt: skip


def annealed_step(a: Tensor, slope: float = 2.0) -> Tensor:
    p = ((slope * a + 1) / 2).clamp(0, 1)
    return with_slope_of((p > 0.5).to(a.dtype), p)


# slope/2 where |a| < 1/slope: rises by 1, uniform of scale 1/slope
probe("slope-annealing", lambda: partial(annealed_step, slope=4.0), FIXED,
      spikes(slope_noise=Uniform(0.25)), "Chung et al. 2017, hierarchical recurrent networks",
      h=lambda a: np.where(np.abs(a) < 0.25, 2.0, 0.0), kinks=(-0.25, 0, 0.25))  # fmt: skip


def moved(a: Tensor, slope_at: float) -> Tensor:
    return with_slope_of(hard_sign(a - 0.5), functional.hardtanh(a - slope_at))


probe("shifted-both", lambda: partial(moved, slope_at=0.5), FIXED,
      signs(slope_noise=Uniform(), threshold=0.5, sign_of_zero=(-1.0,)), "met in code",
      h=lambda a: box(a - 0.5), kinks=(-0.5, 0.5, 1.5))  # fmt: skip


class OneBitClip(nn.Module):
    """A learned ceiling; all that is between 0 and it has slope 1."""

    def __init__(self) -> None:
        super().__init__()
        self.ceiling = nn.Parameter(torch.tensor(2.0))

    def forward(self, a: Tensor) -> Tensor:
        y = (a.abs() - (a - self.ceiling).abs() + self.ceiling) / 2
        code = torch.round(y.detach() / self.ceiling.detach())
        return code * self.ceiling.detach() + (y - y.detach())


# c = 2/2: uniform of scale 1 about 1, where round(y/2) changes (1/2 is rounded to 0)
probe("clip-1-bit", lambda: OneBitClip, FIXED,
      spikes(slope_noise=Uniform(), integral=2.0, coding="0, 2", threshold=1.0),
      "Choi et al. 2018, PACT, with one bit", h=lambda a: box(a - 1), kinks=(0, 1, 2))  # fmt: skip


class LearnedScale(nn.Module):
    """The sign times a learned number, the slope too."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.7))

    def forward(self, a: Tensor) -> Tensor:
        return self.alpha * BinarizeF.apply(a)


# 0.7 in float32 is no 0.7: whether it is "exact" is left open. c = 2(0.7)/1.4
SCALED = {k: v for k, v in signs().items() if k != "exact_pm1"} | {"coding": "-0.7, 0.7"}
probe("learned-scale", LearnedScale, FIXED,
      SCALED | {"slope_noise": Uniform(), "sign_of_zero": (0.7,), "integral": 1.4},
      "met in code", h=lambda a: 0.7 * box(a), kinks=(-1, 0, 1))  # fmt: skip


class ScaleForgotten(LearnedScale):
    """The sign times a learned number, which the backward pass has forgotten."""

    def forward(self, a: Tensor) -> Tensor:
        return with_slope_of(self.alpha * hard_sign(a), functional.hardtanh(a))


# 2/1.4
probe("scale-forgotten", ScaleForgotten, f"{FIXED} factor",
      SCALED | {"slope_noise": Uniform(), "sign_of_zero": (0.7,), "mismatch": 2 / 1.4},
      "met in code", h=box, kinks=(-1, 0, 1))  # fmt: skip


def by_sign_bit(a: Tensor) -> Tensor:
    return with_slope_of(torch.copysign(torch.ones_like(a), a), torch.tanh(a))


# The sign bit of -0 is set: both states are seen at 0, and nothing is drawn
probe("copysign", lambda: by_sign_bit, FIXED,
      signs(slope_noise=Logistic(0.5), sign_of_zero=(-1.0, 1.0)), "met in code",
      h=sech2)  # fmt: skip


# ------------------------------------------------------------------------ wrong, without noise


def identity(a: Tensor) -> Tensor:
    return a + (hard_sign(a) - a).detach()


class IdentityF(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return (a > 0).type_as(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Binarizer(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return IdentityF.apply(a)


NO_INTEGRAL = {"integral": math.inf, "mismatch": math.inf, "slope_noise": None}
BENGIO = "Bengio et al. 2013, straight-through"
# a + (sign(a) - a) is exact: a and its sign have one sign, so the difference is, or rounds to 1
probe("identity-detach", lambda: identity, f"{FIXED} infinite", signs(**NO_INTEGRAL), BENGIO,
      h=np.ones_like)  # fmt: skip
probe("identity-function", lambda: Binarizer, f"{FIXED} infinite", spikes(**NO_INTEGRAL), BENGIO,
      h=np.ones_like)  # fmt: skip


def leaky(a: Tensor) -> Tensor:
    return with_slope_of(hard_sign(a), torch.tanh(a) + 0.001 * a)


probe("leak", lambda: leaky, f"{FIXED} infinite", signs(**NO_INTEGRAL), "OneBit, issue 10",
      h=lambda a: 0.001 + sech2(a))  # fmt: skip


def steep(a: Tensor) -> Tensor:
    return with_slope_of(hard_sign(a), 2 * torch.tanh(a))


probe("factor-2", lambda: steep, f"{FIXED} factor",
      signs(slope_noise=Logistic(0.5), integral=4.0, mismatch=2.0), "met in code",
      h=lambda a: 2 * sech2(a))  # fmt: skip

# int (1 + b|a|)^-2 = 2/b; the law is fast-sigmoid of scale 1/b
probe("superspike", lambda: surrogate(lambda a: 1 / (1 + 10 * a.abs()) ** 2).apply,
      f"{FIXED} factor", spikes(slope_noise=FastSigmoid(0.1), integral=0.2, mismatch=0.2),
      "Zenke & Ganguli 2018, SuperSpike", h=fast(10.0))  # fmt: skip
probe("fast-sigmoid-25", lambda: surrogate(lambda a: 1 / (1 + 25 * a.abs()) ** 2),
      f"{FIXED} factor", spikes(slope_noise=FastSigmoid(0.04), integral=0.08, mismatch=0.08),
      "snntorch, fast_sigmoid", h=fast(25.0))  # fmt: skip
probe("triangle-0.3", lambda: surrogate(lambda a: 0.3 * (1 - a.abs()).clamp(min=0)).apply,
      f"{FIXED} factor", spikes(slope_noise=Triangular(), integral=0.3, mismatch=0.3),
      "Bellec et al. 2018, LSNN", h=lambda a: 0.3 * triangle_tail(a), kinks=(-1, 0, 1))  # fmt: skip


class Power(nn.Module):
    """sign(a) |a|^(1/3) up to 1.5; near 0 the power itself, or its chord."""

    def __init__(self, with_chord: bool) -> None:
        super().__init__()
        slope = self.near if with_chord else self.unbounded
        self.binarize = surrogate(slope, hard_sign)

    @staticmethod
    def unbounded(a: Tensor) -> Tensor:
        return a.abs() ** (1 / 3 - 1) / 3 * (a.abs() < 1.5)

    @staticmethod
    def near(a: Tensor) -> Tensor:
        far = a.abs().clamp(min=0.1) ** (1 / 3 - 1) / 3
        return torch.where(a.abs() < 0.1, 0.1 ** (1 / 3 - 1), far) * (a.abs() < 1.5)

    def forward(self, a: Tensor) -> Tensor:
        return self.binarize.apply(a)


# The function rises to 1.5^(1/3) on each side, with the chord too
RESTE = "Wu et al. 2023, ReSTE, o = 3, t = 1.5"
RISE = 1.5 ** (1 / 3)
probe("reste", lambda: Power(False), f"{FIXED} factor pole",
      signs(slope_noise=None, integral=2 * RISE, mismatch=RISE), RESTE,
      h=root, kinks=(-1.5, 0, 1.5))  # fmt: skip
probe("reste-chord", lambda: Power(True), f"{FIXED} factor",
      signs(slope_noise=None, integral=2 * RISE, mismatch=RISE), RESTE,
      h=chord, kinks=(-1.5, -0.1, 0, 0.1, 1.5))  # fmt: skip


def square_root(a: Tensor) -> Tensor:
    return with_slope_of(hard_sign(a), a.sign() * a.abs().sqrt())


# 1/(2 sqrt|a|): sqrt grows without bound; at 0 autograd's slope is 0 * inf = NaN
probe("square-root", lambda: square_root, f"{FIXED} infinite pole", signs(**NO_INTEGRAL),
      "Wu et al. 2023, ReSTE, o = 2, without t; by autograd",
      h=lambda a: 0.5 / np.sqrt(np.maximum(np.abs(a), 1e-300)))  # fmt: skip


def swish_sign(a: Tensor, beta: float = 5.0) -> Tensor:
    s = torch.sigmoid(beta * a)
    return with_slope_of(hard_sign(a), 2 * s * (1 + beta * a * (1 - s)) - 1)


probe("swish-sign", lambda: partial(swish_sign, beta=5.0), f"{FIXED} negative",
      signs(slope_noise=None, nonnegative=False), "Darabi et al. 2018, BNN+", h=swish)  # fmt: skip


def tensor_three_bells(a: Tensor) -> Tensor:
    def normal(at: float, width: float) -> Tensor:
        return torch.exp(-(((a - at) / width) ** 2) / 2) / width / math.sqrt(2 * math.pi)

    return 0.5 * (1.15 * normal(0, 0.5) - 0.15 * normal(0.5, 3.0) - 0.15 * normal(-0.5, 3.0))


# 0.5 (1.15 - 2(0.15))
probe("three-gaussians", lambda: surrogate(tensor_three_bells).apply, f"{FIXED} factor negative",
      spikes(slope_noise=None, nonnegative=False, integral=0.425, mismatch=0.425),
      "Yin et al. 2021, multi-Gaussian surrogate, h = 0.15, s = 6, gamma = 0.5",
      h=three_bells)  # fmt: skip
# -1 from 0 on: the slope belongs to no unit, and its integral does not exist
probe("two-constants", lambda: surrogate(lambda a: torch.where(a < 0, 1.0, -1.0).to(a.dtype)).apply,
      f"{FIXED} negative uneven",
      {k: v for k, v in spikes(slope_noise=None, nonnegative=False, even=False).items()
       if k not in ("integral", "mismatch")},
      "snntorch, triangular (as read in 2026)", h=lambda a: np.where(a < 0, 1.0, -1.0),
      open="infinite factor shifted wrong-sign")  # fmt: skip


class SignFlipped(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return hard_sign(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return -grad * (a.abs() < 1)


def wrong_way(a: Tensor) -> Tensor:
    return with_slope_of(torch.where(a < 0, 1.0, -1.0).to(a.dtype), functional.hardtanh(a))


probe("sign-flipped", lambda: SignFlipped.apply, f"{FIXED} wrong-sign",
      signs(slope_noise=Uniform(), nonnegative=False, integral=-2.0, mismatch=-1.0), "met in code",
      h=lambda a: -box(a), kinks=(-1, 0, 1))  # fmt: skip
# The integral is 2, the highest state comes first: c = 2/(-1 - 1)
probe("comparison-flipped", lambda: wrong_way, f"{FIXED} wrong-sign",
      signs(slope_noise=Uniform(), mismatch=-1.0, sign_of_zero=(-1.0,)), "met in code",
      h=box, kinks=(-1, 0, 1))  # fmt: skip


def no_brackets(a: Tensor) -> Tensor:
    m = torch.tanh(a)
    return hard_sign(a) + m - m.detach()


# 1 + m is rounded to a multiple of 2^-52 (2^-23), so that m does not come off again
probe("no-brackets", lambda: no_brackets, f"{FIXED} not-exact",
      signs(slope_noise=Logistic(0.5), exact_pm1=False), "met in code", h=sech2)  # fmt: skip


def torch_sign(a: Tensor) -> Tensor:
    return with_slope_of(torch.sign(a), functional.hardtanh(a))


probe("sign-of-zero", lambda: torch_sign, f"{FIXED} third-state",
      signs(slope_noise=Uniform(), sign_of_zero=(0.0,), exact_pm1=False), "met in code",
      h=box, kinks=(-1, 0, 1))  # fmt: skip
probe("torch-sign", lambda: torch.sign, f"{FIXED} no-slope third-state",
      no_slope(signs(sign_of_zero=(0.0,), exact_pm1=False)), "met in code")  # fmt: skip
probe("no-graph", lambda: hard_sign, f"{FIXED} no-slope", no_slope(signs()), "met in code")


class Frozen(nn.Module):
    @torch.no_grad()
    def forward(self, a: Tensor) -> Tensor:
        return identity(a)


def by_data(a: Tensor) -> Tensor:
    """A slope of 1 that is cut off from what comes in."""
    inner = a.data.clone().requires_grad_()
    return with_slope_of(hard_sign(inner), inner)


probe("no-grad", lambda: Frozen, f"{FIXED} no-slope", no_slope(signs()), "met in code")
probe("by-data", lambda: by_data, f"{FIXED} no-slope", no_slope(signs()), "met in code")
probe("boolean", lambda: lambda a: a > 0, f"{FIXED} no-slope", no_slope(spikes()), "met in code")
probe("integer", lambda: lambda a: (a > 0).long(), f"{FIXED} no-slope", no_slope(spikes()),
      "met in code")  # fmt: skip


class ClippedIdentity(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return hard_sign(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return functional.hardtanh(grad)


class ClippedBox(SignFlipped):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return grad.clamp(-1, 1) * (a.abs() < 1)


# hardtanh is the identity up to gradients of 1
probe("hardtanh-of-gradient", lambda: ClippedIdentity.apply, f"{FIXED} gradient infinite",
      signs(depends_on_gradient=True, **NO_INTEGRAL), "met in code", h=np.ones_like)  # fmt: skip
probe("box-and-clipped-gradient", lambda: ClippedBox, f"{FIXED} gradient",
      signs(depends_on_gradient=True, slope_noise=Uniform()), "met in code",
      h=box, kinks=(-1, 0, 1))  # fmt: skip

probe("slope-left-at-0", lambda: partial(moved, slope_at=0.0), f"{FIXED} shifted",
      signs(slope_noise=Uniform(), threshold=0.5, sign_of_zero=(-1.0,)), "met in code",
      h=box, kinks=(-1, 0.5, 1))  # fmt: skip


def one_sided(a: Tensor) -> Tensor:
    return with_slope_of((a > 0).to(a.dtype), a.clamp(0, 1))


# Uniform of scale 1/2 about 1/2, while the state changes at 0
probe("clip-0-1", lambda: one_sided, f"{FIXED} shifted", spikes(slope_noise=Uniform(0.5)),
      "met in code", h=lambda a: box(2 * a - 1), kinks=(0, 1))  # fmt: skip


def window(a: Tensor) -> Tensor:
    return with_slope_of(torch.where(a.abs() < 1, 1.0, -1.0).to(a.dtype), torch.tanh(a))


# Down on both sides: from -inf to +inf the state does not change, and nothing has a factor
probe("window", lambda: window, f"{FIXED} not-monotone",
      {"forward": "deterministic", "coding": "±1", "noise": None, "exact_pm1": True,
       "sign_of_zero": (1.0,), "integral": 2.0, "slope": "of a", "nonnegative": True},
      "met in code", h=sech2)  # fmt: skip


class ClampsItsInput(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        a.clamp_(-1, 1)
        ctx.save_for_backward(a)
        return hard_sign(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return grad * (a.abs() < 1)


class InPlaceHardtanh(nn.Module):
    """Works in any network, where pre-activations are no leaves; on a leaf torch raises."""

    def forward(self, a: Tensor) -> Tensor:
        a = functional.hardtanh(a, inplace=True)
        return with_slope_of(hard_sign(a), a)


for name, unit in (("clamps-its-input", ClampsItsInput), ("hardtanh-in-place", InPlaceHardtanh)):
    probe(name, lambda unit=unit: unit, f"{FIXED} changes-input", signs(slope_noise=Uniform()),
          "met in code; nn.Hardtanh(inplace=True) is in released code of binarized networks",
          h=box, kinks=(-1, 0, 1))  # fmt: skip


def kernel_for_float(a: Tensor) -> Tensor:
    if a.dtype is not torch.float32:
        raise RuntimeError(f"expected scalar type Float but found {a.dtype}")
    return tanh_trick(a)


probe("float32-only", lambda: kernel_for_float, f"{FIXED} float32",
      signs(slope_noise=Logistic(0.5)), "met in code", h=sech2)  # fmt: skip


def ternary(a: Tensor) -> Tensor:
    return with_slope_of(torch.sign(a) * (a.abs() > 0.5), functional.hardtanh(a))


def two_bits(a: Tensor) -> Tensor:
    inside = a.clamp(0, 1)
    return with_slope_of(torch.round(3 * inside) / 3, inside)


# c = 2/(1 + 1) and 1/(1 - 0)
OF_LEVELS = {"forward": "deterministic", "noise": None, "slope": "of a", "nonnegative": True,
             "even": True, "mismatch": 1.0, "sign_of_zero": (0.0,)}  # fmt: skip
probe("ternary", lambda: ternary, f"{FIXED} levels",
      OF_LEVELS | {"integral": 2.0, "coding": "-1, 0, 1"}, "Li et al. 2016, ternary weights",
      h=box, kinks=(-1, 1))  # fmt: skip
probe("two-bits", lambda: two_bits, f"{FIXED} levels", OF_LEVELS | {"integral": 1.0},
      "Zhou et al. 2016, DoReFa-Net, k = 2", h=lambda a: box(2 * a - 1), kinks=(0, 1))  # fmt: skip


class OtherSlopeInEval(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return with_slope_of(hard_sign(a), torch.tanh(a if self.training else 5 * a))


probe("other-slope-in-eval", OtherSlopeInEval, f"{FIXED} eval", signs(slope_noise=Logistic(0.5)),
      "met in code", h=sech2)  # fmt: skip


# ---------------------------------------------------------------------------------- refused


def raising(a: Tensor) -> Tensor:
    raise ValueError("expected a 4D tensor")


class NoBackward(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return hard_sign(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise NotImplementedError("to do")


class NanSlope(SignFlipped):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (grad - grad) / (grad - grad)


def of_square_root(a: Tensor) -> Tensor:
    return with_slope_of(hard_sign(a) * a.sqrt() / a.sqrt(), a)


def xnor(a: Tensor) -> Tensor:
    return with_slope_of(a.abs().mean() * hard_sign(a), functional.hardtanh(a))


def about_the_mean(a: Tensor) -> Tensor:
    return BinarizeF.apply(a - a.mean())


REFUSED: dict[str, tuple[str, Callable[[], Any], str]] = {
    "raises": ("raises", lambda: raising, "met in code"),
    "raises-backward": ("raises", lambda: NoBackward.apply, "met in code"),
    "tuple": ("no-tensor", lambda: lambda a: (identity(a), a), "met in code"),
    "nothing": ("no-tensor", lambda: lambda a: None, "met in code"),
    "two-for-one": (
        "shape", lambda: lambda a: torch.stack([identity(a), identity(-a)], -1), "met in code"),
    "mean-of-all": ("shape", lambda: lambda a: identity(a).mean(), "met in code"),
    "nan": ("not-finite", lambda: of_square_root, "met in code"),
    "nan-slope": ("not-finite", lambda: NanSlope.apply, "met in code"),
    "xnor": ("not-elementwise", lambda: xnor, "Rastegari et al. 2016, XNOR-Net"),
    "centred": ("not-elementwise", lambda: about_the_mean, "Qin et al. 2020, IR-Net, weights"),
    "softmax": ("not-elementwise", lambda: partial(torch.softmax, dim=-1), "met in code"),
    "sigmoid": ("not-quantized", lambda: nn.Sigmoid, "met in code"),
    "hardtanh-alone": ("not-quantized", nn.Hardtanh, "met in code"),
    "constant": ("constant", lambda: lambda a: torch.ones_like(a) + 0 * a, "met in code"),
}  # fmt: skip
for name, (code, make, source) in REFUSED.items():
    probe(name, make, code, {}, source)


# ---------------------------------------------------------------------------------- sampled


class SampledSign(Function):
    """P(x = 1) = sigmoid(a/forward); the slope is of tanh(a/2)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, forward: float = 1.0) -> Tensor:
        ctx.save_for_backward(a)
        return torch.bernoulli(torch.sigmoid(a / forward)) * 2 - 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return grad * tensor_sech2(a / 2) / 2, None


probe("logistic", lambda: SampledSign.apply, DRAWS, drawn(), "chapter 6", h=two_f,
      up=special.expit)  # fmt: skip
probe("scale-1.1", lambda: lambda a: SampledSign.apply(a, 1.1), f"{DRAWS} law",
      drawn(forward_noise=Logistic(1.1), noise=None), "met in code",
      h=two_f, up=lambda a: special.expit(a / 1.1))  # fmt: skip


def bernoulli(a: Tensor) -> Tensor:
    p = torch.sigmoid(a)
    return torch.bernoulli(p.detach()) + (p - p.detach())


def usual_bernoulli(a: Tensor) -> Tensor:
    p = torch.sigmoid(a)
    return p + (torch.bernoulli(p) - p).detach()


# p + (1 - p) rounds to 1: 1 - p is exact from 1/2 on, and below its error is a half of the last bit
for name, function in (("bernoulli", bernoulli), ("bernoulli-usual", usual_bernoulli)):
    probe(name, lambda function=function: function, DRAWS, bits(),
          "Bengio et al. 2013; Raiko et al. 2015", h=lambda a: two_f(a) / 2,
          up=special.expit)  # fmt: skip


def usual_sign(a: Tensor) -> Tensor:
    m = torch.tanh(a / 2)
    x = 2 * torch.bernoulli((1 + m) / 2) - 1
    return m + (x - m).detach()


# x - m is rounded where the state is the rarer one: 1 + |m| has one bit less than m
probe("usual-sign", lambda: usual_sign, f"{DRAWS} not-exact", drawn(exact_pm1=False),
      "met in code", h=two_f, up=special.expit)  # fmt: skip


class AddsUniform(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        noise = torch.rand_like(a) * 2 - 1
        return with_slope_of(hard_sign(a + noise), a.clamp(-1, 1))


UNIFORM = {"forward_noise": Uniform(), "slope_noise": Uniform(), "noise": Uniform()}
probe("adds-uniform", lambda: AddsUniform, DRAWS, drawn(**UNIFORM), "Courbariaux et al. 2015",
      h=box, up=lambda a: np.clip((1 + a) / 2, 0, 1), kinks=(-1, 0, 1))  # fmt: skip


class AddsGaussian(nn.Module):
    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, a: Tensor) -> Tensor:
        noisy = a + self.sigma * torch.randn_like(a)
        return with_slope_of(hard_sign(noisy), self.mean(a))

    def mean(self, a: Tensor) -> Tensor:
        return torch.erf(a / (self.sigma * 2**0.5))


class LogisticSlope(AddsGaussian):
    def mean(self, a: Tensor) -> Tensor:
        return torch.tanh(a / 2)


class BoxSlope(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        x = torch.where(torch.rand_like(a) < torch.sigmoid(a), 1.0, -1.0)
        return with_slope_of(x.to(a.dtype), functional.hardtanh(a))


class TanhSlope(nn.Module):
    """The slope of tanh(a) for the noise of tanh(a/2): a factor 2 in the temperature."""

    def forward(self, a: Tensor) -> Tensor:
        x = torch.where(torch.rand_like(a) < torch.sigmoid(a), 1.0, -1.0)
        return with_slope_of(x.to(a.dtype), torch.tanh(a))


GAUSS = {"forward_noise": Gaussian(0.8), "slope_noise": Gaussian(0.8), "noise": Gaussian(0.8)}
probe("adds-gaussian", lambda: AddsGaussian(0.8), DRAWS, drawn(**GAUSS), "met in code",
      h=lambda a: 2 * bell(a, 0, 0.8), up=lambda a: special.ndtr(a / 0.8))  # fmt: skip
probe("gaussian-for-logistic", lambda: LogisticSlope(1.7), f"{DRAWS} law",
      drawn(forward_noise=Gaussian(1.7), noise=None), "met in code",
      h=two_f, up=lambda a: special.ndtr(a / 1.7))  # fmt: skip
probe("box-for-logistic", lambda: BoxSlope, f"{DRAWS} law",
      drawn(slope_noise=Uniform(), noise=None), "met in code", h=box, up=special.expit,
      kinks=(-1, 0, 1))  # fmt: skip
probe("tanh-for-logistic", lambda: TanhSlope, f"{DRAWS} law",
      drawn(slope_noise=Logistic(0.5), noise=None), "met in code", h=sech2,
      up=special.expit)  # fmt: skip


class SampledBit(Function):
    """The slope of signs, 2f, for bits."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        p = torch.sigmoid(a)
        ctx.save_for_backward(p)
        return (torch.rand_like(p) < p).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return grad * 2 * p * (1 - p)


class HalfSlope(SampledBit):
    """The slope of bits, f, for signs."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return 2 * SampledBit.forward(ctx, a) - 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return SampledBit.backward(ctx, grad) / 2


# The laws agree, the height does not: 2/1 and 1/2
probe("bits-with-2f", lambda: SampledBit, f"{DRAWS} factor", bits(integral=2.0, mismatch=2.0),
      "met in code", h=two_f, up=special.expit)  # fmt: skip
probe("signs-with-f", lambda: HalfSlope, f"{DRAWS} factor", drawn(integral=1.0, mismatch=0.5),
      "met in code", h=lambda a: two_f(a) / 2, up=special.expit)  # fmt: skip


class BinaryConnect(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        p = torch.clamp((a + 1) / 2, 0, 1)
        return torch.where(torch.rand_like(p) < p, 1.0, -1.0).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


probe("sampled-identity", lambda: BinaryConnect, f"{DRAWS} infinite",
      drawn(**NO_INTEGRAL, forward_noise=Uniform(), noise=None),
      "Courbariaux et al. 2015, BinaryConnect", h=np.ones_like,
      up=lambda a: np.clip((1 + a) / 2, 0, 1), kinks=(-1, 0, 1))  # fmt: skip


def one_draw_for_all(a: Tensor) -> Tensor:
    x = torch.where(torch.rand(1, device=a.device) < torch.sigmoid(a), 1.0, -1.0)
    return with_slope_of(x.to(a.dtype), torch.tanh(a / 2))


probe("shared-draw", lambda: one_draw_for_all, f"{DRAWS} shared-draw",
      {k: v for k, v in drawn().items()
       if k not in ("forward_noise", "noise", "threshold", "sign_of_zero")},
      "met in code", h=two_f)  # fmt: skip


class SpikingPoisson(Function):
    """At least one spike at the rate e^a: 1 - exp(-e^a), a noise that is not symmetric."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return (torch.rand_like(a) < -torch.expm1(-torch.exp(a))).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return grad * torch.exp(a - torch.exp(a))


# Half of the slope and of the probability lie below ln ln 2
probe("escape-rate", lambda: SpikingPoisson, f"{DRAWS} uneven",
      bits(forward_noise=None, slope_noise=None, noise=None, even=False,
           threshold=math.log(math.log(2))),
      "Gygax & Zenke 2025; Jang et al. 2019, exponential escape noise",
      h=lambda a: np.exp(a - np.exp(np.minimum(a, 700))),
      up=lambda a: -np.expm1(-np.exp(np.minimum(a, 700))))  # fmt: skip


def bias_forgotten(a: Tensor) -> Tensor:
    x = torch.bernoulli(torch.sigmoid(a.detach() - 1)) * 2 - 1
    return with_slope_of(x, torch.tanh(a / 2))


probe("sampled-bias-forgotten", lambda: bias_forgotten, f"{DRAWS} shifted",
      drawn(threshold=1.0) | {"noise": None}, "met in code", h=two_f,
      up=lambda a: special.expit(a - 1), open="law")  # fmt: skip


class TrainsWithNoise(nn.Module):
    """Draws in training, decides in evaluation; one slope."""

    def forward(self, a: Tensor) -> Tensor:
        p = torch.sigmoid(a)
        cut = torch.rand_like(p) if self.training else torch.full_like(p, 0.5)
        return with_slope_of(torch.where(p > cut, 1.0, -1.0).to(a.dtype), 2 * p)


probe("only-in-training", lambda: TrainsWithNoise, "", drawn(samples_in_eval=False),
      "met in code", h=two_f, up=special.expit)  # fmt: skip
probe("own-module", Sign, DRAWS, drawn(), "this library", h=two_f, up=special.expit)


# ---------------------------------------------------------------------- slopes that are random


def gumbel_pair(a: Tensor, tau: float) -> Tensor:
    logits = torch.stack([a, torch.zeros_like(a)], -1)
    return functional.gumbel_softmax(logits, tau=tau, hard=True)[..., 0]


def binary_concrete(a: Tensor, tau: float) -> Tensor:
    u = torch.rand_like(a)
    noisy = a + torch.log(u) - torch.log1p(-u)
    soft = 2 * torch.sigmoid(noisy / tau) - 1
    return with_slope_of(hard_sign(noisy), soft)


# The mean slope is the density of two logistic variables of scales 1 and tau, times the jump. At
# tau = 1 it is another law; at 0.1 its variance is that of the forward pass but for 1 %.
GUMBEL = "Jang et al. 2017, straight-through Gumbel-softmax"
probe("gumbel-pair", lambda: partial(gumbel_pair, tau=1.0), f"{DRAWS} random-slope law",
      {k: v for k, v in bits(slope="random", noise=None).items() if k != "slope_noise"}, GUMBEL,
      h=two_logistic, up=special.expit, loose=0.03)  # fmt: skip
probe("gumbel-cold", lambda: partial(binary_concrete, tau=0.1), f"{DRAWS} random-slope",
      drawn(slope="random"), GUMBEL, up=special.expit, loose=0.03)  # fmt: skip


class StateSlope(Function):
    """x, and a slope 2f (1 + s x mu)/(2 P(x)) that looks at x; for logistic f/P(x) = 1 - P(x)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, s: float) -> Tensor:
        x = torch.where(torch.rand_like(a) < torch.sigmoid(a), 1.0, -1.0).to(a.dtype)
        ctx.save_for_backward(a, x)
        ctx.s = s
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        a, x = ctx.saved_tensors
        mu = torch.tanh(a / 2)
        return grad * torch.sigmoid(-x * a) * (1 + ctx.s * x * mu), None


def reinmax(a: Tensor) -> Tensor:
    """The three lines of the paper for the pair (a, 0), at temperature 1."""
    logits = torch.stack([a, torch.zeros_like(a)], -1)
    p0 = logits.softmax(-1)
    bit = torch.bernoulli(p0[..., :1].detach())
    d = torch.cat([bit, 1 - bit], -1)
    target = torch.log((d + p0) / 2)
    p1 = ((target - logits).detach() + logits).softmax(-1)
    p2 = 2 * p1 - p0 / 2
    return (d + (p2 - p2.detach()))[..., 0]


OF_BOTH = {"slope": "of a and x"}
for name, s, source in (
    ("zgr", 0.0, "Shekhovtsov 2023, ZGR"),
    ("half-way", 0.5, "chapter 10, the member one half"),
    ("darn", -1.0, "Gregor et al. 2014, DARN with the mean as baseline; Gu et al. 2016"),
):
    probe(name, lambda s=s: lambda a: StateSlope.apply(a, s), f"{DRAWS} state-slope",
          drawn(**OF_BOTH, line=s), source, h=two_f, up=special.expit, loose=0.03)  # fmt: skip
probe("reinmax", lambda: reinmax, f"{DRAWS} state-slope", bits(**OF_BOTH, line=0.0),
      "Liu et al. 2023, ReinMax", h=lambda a: two_f(a) / 2, up=special.expit,
      loose=0.03)  # fmt: skip
