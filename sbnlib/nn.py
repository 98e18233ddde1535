"""Units of two and more levels, Bernoulli weights, and weights for a given gain, for torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, Literal, Self, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from sbnlib import kernels, levels
from sbnlib.contracts import (
    AROUND,
    ChainRule,
    check_ends_with,
    check_number,
    check_states,
    check_tau,
    check_uniforms,
    check_unit,
    is_finite,
    looking_is_free,
    name_of,
    refuse_graph,
    with_generator,
)
from sbnlib.estimators import attach, concrete, straight_through
from sbnlib.noise import (
    NOISES,
    Gaussian,
    Logistic,
    Noise,
    as_noise,
    check_generator,
    widened,
    without_rows,
)
from sbnlib.registry import as_chain_rule
from sbnlib.units import (
    by_words,
    deterministic_sign,
    flipped_by_words,
    mean_state,
    sample_sign,
    uniforms,
)

__all__ = [
    "MODES",
    "SAMPLERS",
    "WEIGHT_MODES",
    "BernoulliConv2d",
    "BernoulliLinear",
    "Levels",
    "Sign",
    "TernaryLinear",
    "init_normal_",
]


def __dir__() -> list[str]:  # what completion offers
    return __all__


#: What a unit can put out: a draw, its state without noise, its mean.
MODES = ("sample", "sign", "mean")

#: Where a unit's draws come from: a ``torch.Generator``, or the counters of :mod:`sbnlib.kernels`.
SAMPLERS = ("torch", "fused")

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

#: What a Bernoulli weight can stand for in a forward pass.
WEIGHT_MODES = ("sample", "mean", "sign", "concrete")

# eta carries its law: a parameter that was saved as it is can be read with weights_only=True.
torch.serialization.add_safe_globals(list(NOISES.values()))


class _Units(torch.nn.Module):
    """What units of any number of states have in common: a noise, a mode, and an estimator."""

    _estimator: Callable[..., Tensor]
    _estimate: Callable[..., Tensor]

    @staticmethod
    def _as_estimator(estimator: Any) -> Callable[..., Tensor]:
        raise NotImplementedError

    def _set_estimator(self, estimator: Any) -> None:
        function = self._as_estimator(estimator)
        self._modules.pop("_estimator", None)  # torch lets only a module replace a module
        self._estimator = function
        self.__dict__["_estimate"] = with_generator(function)  # past torch: it is filed already

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "estimator":  # torch would file a module and pass the property by
            object.__setattr__(self, name, value)
        else:
            value = as_noise(value) if name == "noise" else value
            super().__setattr__(name, value)


class Sign(_Units):
    """A layer of binary units x = sign(a - Z) with a gradient estimator, for any torch network.

    Args:
        noise: the law of Z, or its name for scale 1; default ``Logistic()``.
        estimator: a chain-rule estimator, or its name in the registry; default
            :func:`sbnlib.straight_through`. One that is a module brings its parameters along.
        mode: what it puts out where a call does not say; see :func:`sbnlib.set_mode`.
        sampler: ``"torch"``, draws of :func:`sbnlib.sample_sign`; or ``"fused"``, draws of
            :func:`sbnlib.kernels.sample`, on a CUDA device with Triton one pass over memory,
            forward and backward, and on a CPU slower. The generator, or torch's global one, then
            gives a seed to each call; uniforms ``u`` that are handed in are used as ever.

    ``forward(a)`` gives, by its mode,

    * ``"sample"``: a fresh draw of +-1, gradient by the estimator;
    * ``"sign"``: sign(a), the most probable state, sign(0) = +1, gradient by the estimator;
    * ``"mean"``: mu = 2 F(a) - 1, real-valued, with its ordinary gradient 2 f(a).

    It has no parameters of its own; training and evaluation mode are the same to it:
    ``net.eval()`` still samples.
    """

    _estimator: ChainRule
    #: Of a unit that was saved before it had one, too.
    sampler: str = "torch"

    def __init__(
        self,
        noise: Noise | str | None = None,
        estimator: ChainRule | str = straight_through,
        mode: str = "sample",
        sampler: str = "torch",
    ) -> None:
        super().__init__()
        check_mode(mode)
        self.mode = mode
        self.sampler = sampler
        self.noise = Logistic() if noise is None else as_noise(noise)
        self.estimator = as_chain_rule(estimator)

    @property
    def estimator(self) -> ChainRule:
        """The chain-rule estimator of the unit; another one, or its name, may be assigned."""
        return self._estimator

    @estimator.setter
    def estimator(self, estimator: ChainRule | str) -> None:
        self._set_estimator(estimator)

    @staticmethod
    def _as_estimator(estimator: Any) -> ChainRule:
        return as_chain_rule(estimator)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "sampler":
            check_sampler(value)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        mode = "" if self.mode == "sample" else f", mode={self.mode!r}"
        sampler = "" if self.sampler == "torch" else f", sampler={self.sampler!r}"
        return f"{self.noise!r}, {name_of(self.estimator)}{mode}{sampler}"

    def forward(
        self,
        a: Tensor,
        *,
        mode: str | None = None,
        x: Tensor | None = None,
        estimator: ChainRule | str | None = None,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
    ) -> Tensor:
        """States of ``a``'s shape and dtype; ``x`` hands them in, ``u`` hands in the uniforms.

        ``generator`` is the source of randomness; under activation checkpointing give none, or
        hand in ``u``, see :func:`sbnlib.sample_sign`.

        Raises:
            ValueError: unknown ``mode``, a shape that does not match ``a``, or an ``x`` or ``u``
                that would not be used.
            TypeError: ``a`` is not a floating-point tensor, or ``x`` no real one.
        """
        mode = self.mode if mode is None else mode
        check_mode(mode)
        _check_used(mode, x, u)
        if mode == "mean":
            return mean_state(a, check_unit(a, self.noise))
        estimate = self._estimate
        if estimator is not None:
            estimate = with_generator(as_chain_rule(estimator))
        if x is None and mode == "sample" and u is None and self.sampler == "fused":
            if estimate == _STRAIGHT_THROUGH:
                return kernels.straight_through(a, self.noise, generator=generator)
            x = kernels.sample(a, self.noise, generator=generator)
        elif x is None and mode == "sample":
            if u is None and estimate == _STRAIGHT_THROUGH and type(self.noise) is Logistic:
                check_unit(a, self.noise)
                if by_words(a):
                    return _Unit.apply(a, self.noise, generator)  # type: ignore[no-untyped-call]
            x = sample_sign(a, self.noise, generator=generator, u=u)
        elif x is None:
            check_unit(a, self.noise)
            x = deterministic_sign(a)
        else:
            check_unit(a, self.noise)
            check_ends_with("x", x, a)
            check_states("x", [x])
            x = x.to(a.dtype)
        return estimate(a, x, self.noise, generator=generator)


class Levels(_Units):
    r"""A layer of units with more than two levels, for any torch network.

    .. math:: x = \sum_{k=1}^{C-1} [a - \vartheta_k \ge Z], \qquad Z \sim F

    Args:
        thresholds: :math:`\vartheta_1 < \dots < \vartheta_{C-1}`, a sequence or a 1-d tensor of
            finite numbers, in the units of ``a``. They are constants: what is learnt is the layer
            below.
        noise: the law of Z, or its name for scale 1; default ``Logistic()``.
        estimator: a function of :mod:`sbnlib.levels`, ``(a, x, thresholds, noise)``, or its name in
            ``levels.ESTIMATORS``.
        mode: what it puts out where a call does not say; see :func:`sbnlib.set_mode`.
        values: the lowest and the highest state; the C states are equally spaced from one to the
            other. Default 0 and C - 1.

    ``forward(a)`` gives, by its mode,

    * ``"sample"``: a fresh draw, gradient by the estimator;
    * ``"sign"``: the unit without noise, :math:`\sum_k [a \ge \vartheta_k]`, gradient by the
      estimator;
    * ``"mean"``: the mean state, with its ordinary gradient.

    Each in the scale of ``values``: estimators see the levels 0 to C - 1, and what comes out, and
    the gradient that flows back, is multiplied by the distance of two states.

    It has no parameters of its own; training and evaluation mode are the same to it.

    Raises:
        ValueError: thresholds that are not finite, not strictly increasing or none; ``values`` that
            are not two finite numbers low < high; unknown mode, noise or estimator, or an estimator
            for binary units.
        TypeError: ``noise`` is not a noise model, ``estimator`` neither a name nor a function.

    Source: thresholds on one latent variable are the ordinal model of McCullagh 1980; chapter 21.
    """

    thresholds: tuple[float, ...]
    values: tuple[float, float]
    _estimator: levels.LevelsEstimator

    def __init__(
        self,
        thresholds: levels.Thresholds,
        noise: Noise | str | None = None,
        estimator: levels.LevelsEstimator | str = levels.straight_through,
        *,
        mode: str = "sample",
        values: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        check_mode(mode)
        self.mode = mode
        self.thresholds = levels.check_thresholds(thresholds)
        self.values = (0.0, float(len(self.thresholds))) if values is None else values
        self.noise = Logistic() if noise is None else as_noise(noise)
        self._set_estimator(estimator)

    @property
    def estimator(self) -> levels.LevelsEstimator:
        """The estimator of the unit; another one, or its name, may be assigned."""
        return self._estimator

    @estimator.setter
    def estimator(self, estimator: levels.LevelsEstimator | str) -> None:
        self._set_estimator(estimator)

    @staticmethod
    def _as_estimator(estimator: Any) -> levels.LevelsEstimator:
        return levels.as_estimator(estimator)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "thresholds":
            value = levels.check_thresholds(value)
        value = _check_values(value) if name == "values" else value
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        mode = "" if self.mode == "sample" else f", mode={self.mode!r}"
        values = "" if self._plain else f", values=({self.values[0]:g}, {self.values[1]:g})"
        thresholds = ", ".join(f"{t:g}" for t in self.thresholds)
        return f"({thresholds}), {self.noise!r}, {name_of(self.estimator)}{mode}{values}"

    @property
    def _plain(self) -> bool:
        """Whether the states are the levels themselves."""
        return self.values == (0.0, float(len(self.thresholds)))

    def forward(
        self,
        a: Tensor,
        *,
        mode: str | None = None,
        x: Tensor | None = None,
        estimator: levels.LevelsEstimator | str | None = None,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
    ) -> Tensor:
        """States of ``a``'s shape and dtype; ``x`` hands them in, ``u`` hands in the uniforms.

        ``x`` holds states as they come out, in the scale of ``values``. ``generator`` is the source
        of randomness; under activation checkpointing give none, or hand in ``u``.

        Raises:
            ValueError: unknown ``mode``, a shape that does not match ``a``, an ``x`` or ``u`` that
                would not be used, or (looked at on eager CPU tensors only) an ``x`` that holds
                other values than the states.
            TypeError: ``a`` is not a floating-point tensor, or ``x`` no real one.
        """
        mode = self.mode if mode is None else mode
        check_mode(mode)
        _check_used(mode, x, u)
        if mode == "mean":
            mean = levels.mean(a, self.thresholds, self.noise)
            return levels.scaled(mean, len(self.thresholds), self.values)
        function = None if estimator is None else self._as_estimator(estimator)
        estimate = self._estimate if function is None else with_generator(function)
        if x is not None:
            level = self._levels_of(x, a)
        elif mode == "sample":
            level = levels.sample_levels(a, self.thresholds, self.noise, generator=generator, u=u)
        else:
            check_unit(a, self.noise)
            level = levels.deterministic_levels(a, self.thresholds)
        level = estimate(a, level, self.thresholds, self.noise, generator=generator)
        return levels.scaled(level, len(self.thresholds), self.values)

    def _levels_of(self, x: Tensor, a: Tensor) -> Tensor:
        """The levels of states in the scale of ``values``, to the nearest."""
        check_unit(a, self.noise)
        check_ends_with("x", x, a)
        if x.dtype is torch.bool or x.is_complex():
            raise TypeError(f"x must hold states, real numbers, got {x.dtype}")
        low, high = self.values
        step = (high - low) / len(self.thresholds)
        exact = (widened(x.detach().to(a.dtype)) - low) / step
        level = exact.round()
        off = 4 * torch.finfo(a.dtype).eps * max(abs(low), abs(high)) / step
        near = ((exact - level).abs() <= off) & (level >= 0) & (level <= len(self.thresholds))
        if looking_is_free(x) and not bool(near.all()):
            raise ValueError(f"x must hold the {len(self.thresholds) + 1} states from {low:g} to "
                             f"{high:g}, got {x[~near][0].item():g}")  # fmt: skip
        return level.to(a.dtype)


def _check_values(values: object) -> tuple[float, float]:
    """The lowest and the highest state."""
    numbers = values if isinstance(values, tuple | list) and len(values) == 2 else ()
    real = [isinstance(v, Real) and not isinstance(v, bool) for v in numbers]
    if not numbers or not all(real) or not -math.inf < numbers[0] < numbers[1] < math.inf:
        raise ValueError(f"values must be two finite numbers low < high, got {values!r}")
    return float(numbers[0]), float(numbers[1])


_STRAIGHT_THROUGH = with_generator(straight_through)


class _Unit(torch.autograd.Function):
    """A logistic unit with straight-through as gradient, in which F(-abs(a)) is computed once.

    Bit for bit the same as a draw that is handed to :func:`sbnlib.straight_through`.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, noise: Logistic, generator: torch.Generator | None) -> Tensor:
        wide = widened(a)
        q = noise.tail(wide)
        ctx.noise = noise
        ctx.save_for_backward(q)
        return flipped_by_words(wide, q, a.shape, generator).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        refuse_graph(gradient)
        c = ctx.noise.pdf_at_tail(*ctx.saved_tensors).mul_(2)
        return c.mul_(gradient).to(gradient.dtype), None, None


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")


def check_sampler(sampler: object) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {SAMPLERS}, got {sampler!r}")


def _check_used(mode: str, x: Tensor | None, u: Tensor | None) -> None:
    """What is handed in must have a part in what comes out."""
    if x is not None and mode == "mean":
        raise ValueError("x must be None in mode='mean', which puts out no state, got one")
    if u is not None and (x is not None or mode not in ("sample", "concrete")):
        where = f"in mode={mode!r}" if x is None else "where x is handed in"
        raise ValueError(f"u must be None {where}, nothing is drawn there, got uniforms")


def _check_made(
    forward: str, modes: tuple[str, ...], bias: object, by_name: str, dtype: torch.dtype | None
) -> None:
    """What the layers of random weights ask of the options that they share."""
    if forward not in modes:
        raise ValueError(f"forward must be one of {modes}, got {forward!r}")
    if not isinstance(bias, bool):
        raise TypeError(f"bias must be True or False, got {bias!r}; {by_name}= is given by name")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point one, got {dtype}")


class _Marking(torch.nn.Module):
    """A layer that writes on its latent parameter what an optimizer must know of it.

    Torch drops what is written on a parameter when it makes a new one: on deepcopy, to_empty,
    load_state_dict(assign=True). So it is marked again wherever that can have happened.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward" and isinstance(value, str):
            raise TypeError(f"forward must stay a function, got {value!r}: set mode instead")
        super().__setattr__(name, value)
        self._mark()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._mark()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._mark()

    def _mark(self) -> None:
        raise NotImplementedError

    def _write_on(self, name: str, **facts: Any) -> None:
        """The facts, as attributes of the parameter of this name, if it is there yet."""
        parameter = vars(self).get("_parameters", {}).get(name)
        if parameter is not None:
            vars(parameter).update(facts)

    def _check_own(self, name: str) -> None:
        """The parameter is the layer's own, not one that torch computes from others."""
        if f"{name}_orig" in self._parameters or is_parametrized(self, name):
            raise RuntimeError(
                f"{name} must be a parameter of the layer, got one that prune or parametrize "
                "computes"
            )


class _Bernoulli(_Marking):
    """Weights that are random signs, P(w = +1) = F(eta), with ``eta`` the parameter.

    ``eta`` is a *latent* weight: the coordinate of the probability p = F(eta) in which mirror
    descent is a plain step (chapter 14). After ``backward()`` its ``grad`` holds dE L/dp, **not**
    the derivative in eta: hand it to an optimizer of :mod:`sbnlib.optim`. (torch's SGD on it is
    identity straight-through.)

    The layer owns the law of its weights. It names it on ``eta``, for the optimizers, and in the
    state dict beside ``eta`` (and ``bias``), real numbers; :meth:`binary` gives the signs.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        bias: bool,
        noise: Noise | str | None,
        forward: str,
        tau: float,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.noise = Logistic() if noise is None else as_noise(noise)
        _check_made(forward, WEIGHT_MODES, bias, "noise", dtype)
        check_tau(tau)
        check_number("eps", eps, "a finite number >= 0", lambda v: 0 <= v < math.inf)
        self.mode, self.tau, self.eps = forward, tau, eps
        self.eta = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        real = torch.zeros(outputs, device=device, dtype=dtype) if bias else None
        self.bias = None if real is None else torch.nn.Parameter(real)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """p uniform on [1/4, 3/4]: undecided, and inside the support of every noise."""
        with torch.no_grad():
            u = torch.rand(self.eta.shape, generator=generator, device=self.eta.device)
            self.eta.copy_(self.noise.icdf(0.25 + 0.5 * u))
            if self.bias is not None:
                self.bias.zero_()

    def __setattr__(self, name: str, value: Any) -> None:
        value = as_noise(value) if name == "noise" else value
        law = getattr(value, "noise", None) if name == "eta" else None
        if law is not None and law != self.noise:
            raise ValueError(f"eta must be of the layer's {self.noise!r}, got one of {law!r}")
        super().__setattr__(name, value)

    def _mark(self) -> None:
        """Name on eta what an optimizer must know of its layer."""
        if "noise" in vars(self):
            self._write_on("eta", noise=self.noise, eps=vars(self).get("eps"))

    def get_extra_state(self) -> Tensor:
        """The law as the state dict carries it: the letters of ``Logistic(scale=1.0)``.

        A tensor, since the values of state dicts are cloned, moved and averaged.
        """
        return torch.tensor(list(self.noise.law.encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing is set: the laws were compared before anything was loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As torch, unless the state is of another law; one from before 0.2.0 names none."""
        carried = state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        law, own = _letters(carried), _letters(self.get_extra_state())
        if law == own:
            super()._load_from_state_dict(state_dict, prefix, *rest)
        else:
            errors = rest[-1]
            errors.append(f"{prefix}eta must be of the layer's {own}, the state dict's is of {law}")

    @property
    def p(self) -> Tensor:
        """P(w = +1) = F(eta), without a graph."""
        return self.noise.cdf(self.eta.detach())

    def binary(self, how: str = "sign", *, generator: torch.Generator | None = None) -> Tensor:
        """The weights as +-1: ``"sign"``, the more probable one, or ``"sample"``, a draw.

        Raises:
            ValueError: unknown ``how``.
        """
        if how not in ("sign", "sample"):
            raise ValueError(f"how must be 'sign' or 'sample', got {how!r}")
        if how == "sign":
            return deterministic_sign(self.eta)
        return sample_sign(self.eta.detach(), self.noise, generator=generator)

    def weight(
        self,
        mode: str | None = None,
        *,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
    ) -> Tensor:
        r"""The weight of one forward pass, with a gradient in ``eta`` that stands for dw/dp.

        It is 2, and in mode ``"concrete"`` the relaxed weight's own slope,
        :math:`(1 - w^2 + \epsilon)\,/\,2\tau\big(f(\eta) + \tfrac14\epsilon\big)`.

        Args:
            mode: one of :data:`WEIGHT_MODES`; default the layer's own.
            generator, u: the randomness of ``"sample"`` and ``"concrete"``.

        Raises:
            ValueError: unknown ``mode``, or ``u`` in one that draws nothing.
            RuntimeError: torch's ``prune`` or ``parametrize`` was put on ``eta``.
        """
        mode = self.mode if mode is None else mode
        if mode not in WEIGHT_MODES:
            raise ValueError(f"mode must be one of {WEIGHT_MODES}, got {mode!r}")
        _check_used(mode, None, u)
        self._check_own("eta")
        eta, generator = self.eta.detach(), without_rows(generator)
        if mode == "concrete":
            w = concrete(eta, self.noise, tau=self.tau, generator=generator, u=u)
            return attach(w, self.eta, self._relaxed_slope(eta, w))
        if mode == "sample":
            w = sample_sign(eta, self.noise, generator=generator, u=u)
        elif mode == "sign":
            w = deterministic_sign(eta)
        else:
            w = 2 * self.noise.cdf(eta) - 1
        return attach(w, self.eta, torch.full_like(w, 2))

    def _relaxed_slope(self, eta: Tensor, w: Tensor) -> Tensor:
        """dw/deta over dp/deta of the relaxed weight, with the constant of the released code."""
        wide = torch.promote_types(eta.dtype, torch.float32)
        eta, w = eta.to(wide), w.to(wide)
        if isinstance(self.noise, Logistic):  # 4 f as the released code has it: chapter 15
            four_f = (1 - torch.tanh(eta / (2 * self.noise.scale)).square()) / self.noise.scale
        else:  # at the end of a bounded support the density inside
            inside = eta.clamp(*self.noise.support) * (1 - torch.finfo(wide).eps)
            four_f = 4 * self.noise.pdf(inside)
        slope = 2 * (1 - w.square() + self.eps) / (self.tau * (four_f + self.eps))
        # A factor that is not finite would spoil the value that it is attached to; 0/0 is 0
        return slope.to(self.eta.dtype).nan_to_num(nan=0.0)

    def _law_repr(self) -> str:
        return f"noise={self.noise!r}, forward={self.mode!r}"


def _letters(codes: object) -> str:
    """The law that a state dict names; whatever else stands there, as it is."""
    if not isinstance(codes, Tensor):
        return repr(codes)
    return bytes(codes.to("cpu", torch.uint8).flatten().tolist()).decode(errors="replace")


class BernoulliLinear(_Bernoulli):
    r"""A linear layer whose weights are random signs: :math:`a = Wx + b`, :math:`P(w=1)=F(\eta)`.

    One draw of W serves the whole batch of a forward pass.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``; the bias is
            real-valued.
        noise: the law F, or its name for scale 1; default ``Logistic()``.
        forward: what W is in a forward pass: ``"sample"`` a draw, ``"mean"`` 2F(eta) - 1,
            ``"sign"`` the more probable sign, ``"concrete"`` tanh((eta - Z)/2 tau).
        tau: temperature of ``"concrete"``.
        eps: the constant >= 0 in the gradient of ``"concrete"``; :meth:`weight` has it. 1e-10 is
            that of the code released with BayesBiNN, where at small tau it *is* the estimator
            (chapter 15). 0 gives the gradient itself while rounding leaves something of 1 - w^2 and
            of f: for eta within 17 scales of the noise in float32, 36 in float64.

    In every mode ``eta.grad`` stands for :math:`\partial\mathbb{E}L/\partial p`. In ``"sample"``
    and ``"mean"`` it is :math:`2\,\partial L/\partial w`, for losses multilinear in the weights
    exact, in ``"sample"`` in expectation (chapter 13). In ``"sign"`` it is the same at the rounded
    weights, which is no unbiased estimate (chapter 15). In ``"concrete"`` it is the gradient of the
    relaxed loss, for every smooth loss exact in expectation but for ``eps``. Keep eta in float32 or
    float64, the optimizers refuse less: half precision is for ``torch.autocast``, or for a network
    that is not trained any more.

    The layer owns the law: the state dict carries it, with the key ``_extra_state``, and a state
    of another law is refused, as is an optimizer for another law.

    Raises:
        ValueError: unknown ``forward``, ``tau <= 0``, ``eps < 0``.
        TypeError: ``noise`` is not a noise model, ``dtype`` not floating point.
        RuntimeError: from ``load_state_dict``, for a state of another law.

    Source: Shekhovtsov & Yanush 2021 (arXiv 2006.06880); Meng, Bachmann & Khan 2020 (ICML) for
    ``"concrete"``; chapters 13 to 15.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        noise: Noise | str | None = None,
        forward: str = "sample",
        tau: float = 1.0,
        eps: float = 1e-10,
    ) -> None:
        shape = (out_features, in_features)
        super().__init__(shape, out_features, bias, noise, forward, tau, eps, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, {self._law_repr()}"

    def forward(
        self,
        x: Tensor,
        *,
        mode: str | None = None,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
    ) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return torch.nn.functional.linear(x, self.weight(mode, generator=generator, u=u), self.bias)


class BernoulliConv2d(_Bernoulli):
    """A 2-d convolution whose weights are random signs; the rest as :class:`BernoulliLinear`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as ``torch.nn.Conv2d``, in its order.
        pad_value: what ``padding_mode="zeros"`` adds around the image. 0 is not a state; with +1
            or -1 every input of the layer stays a sign.
        noise, forward, tau, eps: as :class:`BernoulliLinear`.

    Raises:
        ValueError: as ``torch.nn.Conv2d``; ``pad_value`` is not -1, 0 or 1, or is not 0 with
            another ``padding_mode``; and as :class:`BernoulliLinear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        pad_value: float = 0.0,
        noise: Noise | str | None = None,
        forward: str = "sample",
        tau: float = 1.0,
        eps: float = 1e-10,
    ) -> None:
        # Torch's own layer checks the options and brings them into form; nothing of it is kept.
        form = torch.nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device="meta",
        )  # fmt: skip
        if pad_value not in (-1, 0, 1) or pad_value != 0 and padding_mode != "zeros":
            raise ValueError(
                "pad_value must be -1, 0 or 1, and 0 with a padding_mode other than 'zeros', got "
                f"{pad_value!r} with padding_mode={padding_mode!r}"
            )
        shape = tuple(form.weight.shape)
        super().__init__(shape, out_channels, bias, noise, forward, tau, eps, device, dtype)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = form.kernel_size, form.stride, form.padding
        self.dilation, self.groups, self.padding_mode = form.dilation, groups, padding_mode
        self.pad_value = float(pad_value)
        self._margins, self._form_repr = form._reversed_padding_repeated_twice, form.extra_repr()

    def extra_repr(self) -> str:
        words = (
            f"{self._form_repr}, pad_value={self.pad_value:g}"
            if self.pad_value
            else self._form_repr
        )
        return f"{words}, {self._law_repr()}"

    def forward(
        self,
        x: Tensor,
        *,
        mode: str | None = None,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
    ) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, H', W')``."""
        weight = self.weight(mode, generator=generator, u=u)
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros" or self.pad_value:
            how = "constant" if self.padding_mode == "zeros" else self.padding_mode
            value = self.pad_value if how == "constant" else None
            x, padding = torch.nn.functional.pad(x, self._margins, how, value), (0, 0)
        return torch.nn.functional.conv2d(
            x, weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


# ---- ternary weights -----------------------------------------------------------------------------

#: The states of a ternary weight, in the order of the last axis of ``theta``.
_STATES = (-1.0, 0.0, 1.0)


class TernaryLinear(_Marking):
    r"""A linear layer whose weights are -1, 0 or 1 at random: :math:`a = Wx + b`.

    .. math:: (p_-, p_0, p_+) = \operatorname{softmax}\theta, \qquad
              P(w=-1) = p_-,\; P(w=0) = p_0,\; P(w=1) = p_+

    ``theta`` ``(out_features, in_features, 3)`` holds the logarithms of the three probabilities up
    to a constant for each weight. One draw of W serves the whole batch of a forward pass.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``; the bias is
            real-valued.
        s: a finite number, the place on the line of estimators that ``"sample"`` takes: 1 is
            straight-through, 0 the member that is exact for quadratics.
        forward: what W is in a forward pass: ``"sample"`` a draw, ``"mean"`` the mean
            :math:`m = p_+ - p_-`, ``"sign"`` the most probable state (of equal ones 0, then 1).

    After ``backward()`` ``theta.grad`` stands for :math:`\partial\mathbb{E}L/\partial p`, up to a
    constant common to the three: hand it to :class:`sbnlib.optim.SimplexDescent`. It is **not** the
    derivative in theta. It is

    .. math:: (-c_-,\, 0,\, c_+)\,\partial_wL(w), \qquad
              c_\pm = 1 + (1-s)\,\frac{(\pm\frac12 - m)(w - m)}{v},

    with :math:`v = p_+ + p_- - m^2` the variance of the weight, and :math:`c_\pm = 1` where v is 0
    and in ``"mean"`` and ``"sign"``, where nothing is drawn. In expectation over ``"sample"`` it is
    exact at s = 0 for losses at most quadratic in each weight, at every s for multilinear ones; at
    other s a quadratic :math:`\frac12Aw^2 + bw` brings its two ends the bias
    :math:`-s A(\frac12 \mp m)`. In ``"mean"`` it is the gradient of :math:`L(m)`.
    The second moment :math:`\mathbb{E}c_\pm^2 = 1 + (1-s)^2(\frac12 \mp m)^2/v` has no bound: a
    weight that has nearly settled on 0 or on the far sign pays for exactness with rare, large
    gradients.

    A probability may be 0, theta there minus infinity: the state is never drawn. The optimizers
    refuse such a theta, which no multiplicative step leaves.

    Raises:
        ValueError: unknown ``forward``, ``s`` not finite; at a forward pass, a theta that is no
            point of the simplex: NaN, plus infinity, or minus infinity three times.
        TypeError: ``dtype`` not floating point, ``bias`` no bool.

    Source: straight-through and the member that is exact for quadratics, of a weight with three
    states: chapter 21; for general ordinal states Shekhovtsov & Obdrzalek 2026.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        s: float = 0.0,
        forward: str = "sample",
    ) -> None:
        super().__init__()
        _check_made(forward, MODES, bias, "s", dtype)
        check_number("s", s, "a finite number", math.isfinite)
        self.in_features, self.out_features = in_features, out_features
        self.mode, self.s = forward, float(s)
        shape = (out_features, in_features, len(_STATES))
        self.theta = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        real = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if real is None else torch.nn.Parameter(real)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """0 with probability 1/3, and +1 with one uniform on [1/6, 1/2]: undecided."""
        with torch.no_grad():
            shape, device = self.theta.shape[:-1], self.theta.device
            share = 0.25 + 0.5 * torch.rand(shape, generator=generator, device=device)
            p = torch.stack([2 * (1 - share), torch.ones_like(share), 2 * share], -1) / 3
            self.theta.copy_(p.log())
            if self.bias is not None:
                self.bias.zero_()

    def _mark(self) -> None:
        self._write_on("theta", simplex=True)

    @property
    def p(self) -> Tensor:
        """The probabilities of -1, 0 and 1, ``(out_features, in_features, 3)``, without a graph."""
        return _probabilities(self.theta.detach())

    def ternary(self, how: str = "sign", *, generator: torch.Generator | None = None) -> Tensor:
        """The weights as -1, 0, 1: ``"sign"``, the most probable state, or ``"sample"``, a draw.

        Raises:
            ValueError: unknown ``how``.
        """
        if how not in ("sign", "sample"):
            raise ValueError(f"how must be 'sign' or 'sample', got {how!r}")
        theta = self.theta.detach()
        if how == "sign":
            return _most_probable(theta)
        return _sampled_state(_probabilities(theta), generator, None).to(theta.dtype)

    def weight(
        self,
        mode: str | None = None,
        *,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
    ) -> Tensor:
        """The weight of one forward pass, with the gradient in ``theta`` that the class names.

        Args:
            mode: ``"sample"``, ``"sign"`` or ``"mean"``; default the layer's own.
            generator, u: the randomness of ``"sample"``; ``u`` ``(out_features, in_features)`` on
                [0, 1): +1 where ``u < p_+``, -1 where ``1 - u <= p_-``.

        Raises:
            ValueError: unknown ``mode``, ``u`` in one that draws nothing, or a theta that is no
                point of the simplex.
            RuntimeError: torch's ``prune`` or ``parametrize`` was put on ``theta``.
        """
        mode = self.mode if mode is None else mode
        check_mode(mode)
        _check_used(mode, None, u)
        self._check_own("theta")
        theta = self.theta.detach()
        p = _probabilities(theta)
        down, up, w = -torch.ones_like(p[..., 0]), torch.ones_like(p[..., 2]), p[..., 2] - p[..., 0]
        if mode == "sign":
            w = _most_probable(theta)
        elif mode == "sample":
            w = _sampled_state(p, without_rows(generator), u)
            down, up = _factors(p, w, self.s)
        return cast(Tensor, _Ternary.apply(self.theta, w, down, up))  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, s={self.s:g}, forward={self.mode!r}"

    def forward(
        self,
        x: Tensor,
        *,
        mode: str | None = None,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
    ) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return torch.nn.functional.linear(x, self.weight(mode, generator=generator, u=u), self.bias)


class _Ternary(torch.autograd.Function):
    """The value w with the gradient (-c_-, 0, c_+) in theta."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, w: Tensor, down: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(down, up)
        return w.to(theta.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_graph(gradient)
        down, up = ctx.saved_tensors
        flowing = torch.stack([down * gradient, torch.zeros_like(gradient), up * gradient], -1)
        return flowing.to(gradient.dtype), None, None, None


def _probabilities(theta: Tensor) -> Tensor:
    """softmax over the last axis, in at least float32; a theta that is no point is refused."""
    wide = widened(theta)
    p = (wide - wide.amax(-1, keepdim=True)).exp()  # torch's own is slow on an axis of three
    p = p / p.sum(-1, keepdim=True)
    if looking_is_free(p) and not is_finite(p):
        raise ValueError(
            "theta must be a point of the simplex, finite or minus infinity, not three times for "
            "one weight, got NaN or an infinite sum"
        )
    return p


def _most_probable(theta: Tensor) -> Tensor:
    minus, zero, plus = theta.unbind(-1)
    sign = torch.where(plus >= minus, 1.0, -1.0)
    return torch.where(torch.maximum(minus, plus) > zero, sign, 0.0).to(theta.dtype)


def _sampled_state(p: Tensor, generator: torch.Generator | None, u: Tensor | None) -> Tensor:
    """-1, 0 or 1. The two rare ends lie where u and 1 - u are small, where both are exact."""
    minus, _, plus = p.unbind(-1)
    if u is None:
        u = uniforms(plus.shape, plus, generator)
    else:
        check_ends_with("u", u, plus)
        check_uniforms(u)
    return (u < plus).to(p.dtype) - ((1 - u <= minus) & (u >= plus)).to(p.dtype)


def _factors(p: Tensor, w: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """-c_- and c_+. Sums of positive terms: where one state is nearly sure nothing cancels."""
    minus, zero, plus = p.unbind(-1)
    v = zero * (plus + minus) + 4 * plus * minus
    away = torch.where(w > 0, zero + 2 * minus, -(zero + 2 * plus))  # w - m
    away = torch.where(w == 0, minus - plus, away)
    ratio = torch.where(v > 0, away / v, 0.0).nan_to_num()
    m = plus - minus
    return -(1 - (1 - s) * (0.5 + m) * ratio), 1 + (1 - s) * (0.5 - m) * ratio


#: Layers whose weights are random.
RANDOM_WEIGHTS = (_Bernoulli, TernaryLinear)


# ---- weights for a given gain --------------------------------------------------------------------

Module = TypeVar("Module", bound=torch.nn.Module)
#: Layers of real weights; one with a forward of its own may do what it wants with them.
_WEIGHTED = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
#: Behind one of these the scale of a layer's weights is without effect.
_NORMS = (_NormBase, torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.RMSNorm)


def init_normal_(
    net: Module,
    gain: float = 1.0,
    *,
    inputs: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Module:
    r"""Draw new weights with which straight-through has the gain ``gain`` in each layer, in place.

    .. math:: w_{ji} \sim N(0,\, v/n), \quad b_j = 0, \qquad v = (\sigma/\tau)^2, \qquad
              \mathbb{E}_{z\sim N(0,1)} \big(2f_\tau(z)\big)^2 = \text{gain}

    Here n is the fan-in, :math:`\sigma` the scale of the noise of the units that the layer feeds
    and :math:`f_\tau` the density of the same law at the scale :math:`\tau`, which is that of
    ``noise.scaled_to(gain=gain)``. That function scales the noise to weights of variance 1/n, this
    one the weights to the noise: pre-activations are N(0, v), and

    .. math:: v\, \mathbb{E}\big(2f_\sigma(\sqrt v\,z)\big)^2 = \mathbb{E}\big(2f_\tau(z)\big)^2,
              \qquad f_\sigma(\sqrt v\,z) = f_\tau(z)/\sqrt v

    is the factor of the sum over units of the gradient's squares. A small overlap of two inputs is
    multiplied by the overlap at :math:`\tau`, ``sbnlib.overlap(noise.scaled_to(gain=gain))``.
    :func:`sbnlib.gain` has the assumptions, which speak of a net that is not trained yet, and of
    units that put out +-1. With such states below, a pre-activation is N(0, v) at any fan-in, over
    draws of normal weights; at an image's border, where a convolution pads with zeros, it is less.

    Args:
        net: an :class:`sbnlib.SBN`, or a ``nn.Sequential`` (of these, at any depth) with
            :class:`Sign` units. Drawn are the weights of the ``nn.Linear`` and ``nn.Conv1d`` to
            ``nn.Conv3d`` right below units, where ``nn.Flatten``, ``nn.Unflatten`` and
            ``nn.Identity`` may stand between. All other layers are left as they are: a read-out
            above the last units, and what comes before the first such layer.
        gain: a number from 1e-6 to 1e6, of mean squares: torch's ``gain`` is a factor on the
            standard deviation.
        inputs: examples of what comes into the first such layer, of any shape; the variance of its
            weights is divided by their mean square. Default: the mean square is 1.
        generator: source of randomness, on the device of the weights. The numbers are drawn in
            float64 and are, rounded, the same in any dtype.

    Returns:
        ``net``.

    Raises:
        ValueError: ``gain`` is no such number, or none of this law (``scaled_to``); inputs that are
            not finite, or all 0. A net without units; units that do not come right after a layer of
            real weights (behind batch norm, or weights of +-1, only the noise's scale can be set);
            such a layer, but the first, that does not come right after units, or one that is
            shared, lazy, of computed weights or with a forward of its own; units in a container
            that is neither an SBN nor a ``nn.Sequential``. Then nothing has been drawn.
        TypeError: ``net`` is not a module, ``inputs`` not floating point.

    Warns:
        UserWarning: the law's overlap at gain 1 is below 1/2, as ``scaled_to``.

    Source: for the gain, :func:`sbnlib.gain`; weights by the variance of what they feed: Glorot &
    Bengio 2010, He et al. 2015. The name is in the manner of ``torch.nn.init.kaiming_normal_``.
    """
    layers = _layers_below_units(net)
    squares = [_mean_square(inputs)] + [1.0] * (len(layers) - 1)
    scales: dict[str, float] = {}
    for _, _, noise in layers:
        if noise.law not in scales:
            scales[noise.law] = noise._scaled_to(gain).scale
    deviations = [
        _deviation(layer, noise, noise.scale / scales[noise.law], square)
        for (_, layer, noise), square in zip(layers, squares, strict=True)
    ]
    for _, layer, _ in layers:
        check_generator(generator, layer.weight.device)
    for (_, layer, _), deviation in zip(layers, deviations, strict=True):
        _draw_normal(layer, deviation, generator)
    return net


def _mean_square(inputs: Tensor | None) -> float:
    if inputs is None:
        return 1.0
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        what = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be a floating-point tensor, got {what}")
    square = float(inputs.detach().double().square().mean())
    if not 0 < square < math.inf:
        raise ValueError(f"inputs must be finite and not all 0, got a mean square of {square}")
    return square


def _deviation(layer: Any, noise: Noise, root: float, square: float) -> float:
    """The standard deviation of a layer's weights: sqrt(v) over the root of fan-in times square."""
    deviation = root / math.sqrt(layer.weight[0].numel() * square)
    ends = torch.finfo(layer.weight.dtype)
    if not ends.tiny <= deviation <= ends.max / 10:
        raise ValueError(
            f"noise must have a scale at which {layer.weight.dtype} holds weights of this gain, at "
            f"{noise!r} they are of size {deviation:.2g}"
        )
    return deviation


@torch.no_grad()
def _draw_normal(layer: Any, deviation: float, generator: torch.Generator | None) -> None:
    shape, device = layer.weight.shape, layer.weight.device
    law = Gaussian(deviation)
    layer.weight.copy_(law.sample(shape, generator=generator, dtype=torch.float64, device=device))
    if layer.bias is not None:
        layer.bias.zero_()


def _layers_below_units(net: torch.nn.Module) -> list[tuple[str, Any, Noise]]:
    """Each layer that feeds units, with their noise, from the bottom up."""
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"net must be a module, got {type(net).__name__}")
    run = [(n, m) for n, m in _in_order("", net) if not isinstance(m, AROUND)]
    found: list[tuple[str, Any, Noise]] = []
    for k, (name, module) in enumerate(run):
        if isinstance(module, Sign):
            own, layer = run[k - 1] if k else ("", None)
            _check_feeds(name, own, layer)
            if found and not isinstance(run[k - 2][1], Sign):
                below, other = run[k - 2]
                raise ValueError(f"net must have units right below {own}, whose gain it is, got "
                                 f"{below} ({type(other).__name__})")  # fmt: skip
            found.append((own, layer, module.noise))
    if not found:
        raise ValueError(f"net must hold binary units, {type(net).__name__} has none")
    owners: dict[int, str] = {}
    for name, layer, _ in found:
        owner = owners.setdefault(id(layer.weight), name)
        if owner is not name:
            raise ValueError(f"net must have weights of its own in each layer, {name} has those of "
                             f"{owner}")  # fmt: skip
    return found


def _in_order(name: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules in the order in which they run, down to what is no container of ours."""
    parts: Any = ()
    if type(module).forward is torch.nn.Sequential.forward:
        parts = module._modules.items()
    elif (of_an_sbn := getattr(module, "_in_order", None)) is not None:
        parts = of_an_sbn()
    elif any(isinstance(m, Sign) for m in module.modules() if m is not module):
        raise ValueError(
            "net must hold its units in an SBN or nn.Sequential, whose order is known, "
            f"{name or 'net'} is {type(module).__name__}"
        )
    else:
        yield name, module
    for own, part in parts:
        yield from _in_order(f"{name}.{own}" if name else own, part)


def _check_feeds(units: str, name: str, layer: Any) -> None:
    """``layer`` has real weights, which set the scale of what the units get."""
    after = f"comes after {name} ({type(layer).__name__})" if name else "comes first"
    what = f"{units or 'net'} {after}"
    if isinstance(layer, _NORMS):
        raise ValueError(
            f"net must have its units right after real weights, {what}, by which the weights' "
            "scale has no effect: there it is the noise's scale that counts, give the units "
            "noise.scaled_to(gain=...)"
        )
    if isinstance(layer, _Bernoulli):
        raise ValueError(
            f"net must have its units right after real weights, {what}, whose weights are +-1: "
            "there it is the noise's scale that counts, give the units that of "
            "noise.scaled_to(gain=...) times the root of the fan-in"
        )
    if not isinstance(layer, _WEIGHTED):
        raise ValueError(f"net must have its units right after nn.Linear or a convolution, {what}")
    if type(layer).forward not in [kind.forward for kind in _WEIGHTED]:
        raise ValueError(f"net must hold torch's own layers, {name} has a forward of its own")
    for own in ("weight", "bias"):
        if own not in layer._parameters or is_lazy(getattr(layer, own)):
            raise ValueError(f"net must have parameters to draw, {own} of {name} is lazy (run the "
                             "net once) or computed by prune or parametrize")  # fmt: skip
