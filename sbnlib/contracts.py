"""What the parts of the library agree on: the kinds of estimators, and the checks of their shapes.

An estimator is of one of four kinds, told apart by what it is called with:

==============  ====================================================  ============================
kind            called as                                             returns
==============  ====================================================  ============================
chain rule      ``(a, x, noise)``                                     x, with the estimate as the
                                                                      gradient in a
loss based      ``(loss, a, noise, *, num_samples, generator)``       the mean loss, with the
                                                                      estimate as gradient in a
relaxation      ``(a, noise, *, generator)``                          a real value for the state
network         ``(net, inputs, loss, *, generator)``                 the loss of each input, with
                                                                      the estimate as gradient of
                                                                      the parameters
==============  ====================================================  ============================

A ``generator`` is always passed on. An estimator that takes none is wrapped once, where it enters.
Types, dtypes and shapes are always checked; values only where looking at them is free.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor

from sbnlib.noise import Noise, as_noise, is_positive

__all__ = ["ChainRule", "Loss", "LossBased", "Network", "NetworkEstimator"]

#: Takes states ``(..., B, n)``, returns ``(..., B)``; may close over targets of the batch.
Loss = Callable[[Tensor], Tensor]


class ChainRule(Protocol):
    """``(a, x, noise) -> tensor``: the value is the state x, the gradient in a the estimate.

    One that draws numbers of its own takes ``generator`` as well.
    """

    def __call__(self, a: Tensor, x: Tensor, noise: Noise, /) -> Tensor: ...


class LossBased(Protocol):
    """``(loss, a, noise, *, num_samples, generator) -> (...,)`` for ``a`` of shape ``(..., n)``.

    The value is the mean loss of the drawn states, its gradient in ``a`` the estimate. One whose
    signature names ``surrogate`` is given a differentiable loss there wherever ``loss`` itself is
    a sampled one (:func:`sbnlib.layerwise`).
    """

    def __call__(
        self, loss: Loss, a: Tensor, noise: Noise, /, *, generator: torch.Generator | None = None
    ) -> Tensor: ...


class Network(Protocol):
    """What an estimator of a whole network may ask of it."""

    @property
    def layers(self) -> torch.nn.ModuleList: ...

    @property
    def noise(self) -> Noise: ...


class NetworkEstimator(Protocol):
    """``(net, inputs, loss, *, generator) -> (..., B)``: the loss at a draw, for each input.

    Its gradient in the parameters of the network is the estimate.
    """

    def __call__(
        self, net: Any, inputs: Tensor, loss: Loss, *, generator: torch.Generator | None = None
    ) -> Tensor: ...


# ---- generators ----------------------------------------------------------------------------------


def takes(function: Callable[..., Any], keyword: str) -> bool:
    """Whether ``function`` can be handed ``keyword=``, by name or among any others (``**kw``)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(p.kind is p.VAR_KEYWORD or p.name == keyword and p.kind in named for p in parameters)


def with_generator(estimator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The estimator as one that takes ``generator=``: itself, or wrapped so as to ignore it."""
    if isinstance(estimator, _Deterministic) or takes(estimator, "generator"):
        return estimator
    return _Deterministic(estimator)


@dataclass(frozen=True)
class _Deterministic:
    """A function of its arguments only; a generator handed to it is not used."""

    function: Callable[..., Tensor]

    def __call__(
        self, *args: Any, generator: torch.Generator | None = None, **options: Any
    ) -> Tensor:
        return self.function(*args, **options)

    def __repr__(self) -> str:
        return name_of(self.function)


def name_of(function: object) -> str:
    """What to call a function in messages."""
    return getattr(function, "__name__", None) or repr(function)


# ---- checks --------------------------------------------------------------------------------------


def check_unit(a: Tensor, noise: Noise | str) -> Noise:
    """The checks every unit and every estimator makes of its pre-activations and its noise.

    Returns:
        The noise; a law at scale 1 can be given by its name.
    """
    noise = as_noise(noise)
    check_pre_activations(a)
    return noise


def check_pre_activations(a: Tensor) -> None:
    """``a`` must be floating point and, where looking is free, finite."""
    if not isinstance(a, Tensor) or not a.is_floating_point():
        what = a.dtype if isinstance(a, Tensor) else type(a).__name__
        raise TypeError(f"a must be a floating-point tensor of pre-activations, got {what}")
    # The sum is finite only if every term is; it can overflow too, hence the second look.
    if looking_is_free(a) and not math.isfinite(a.detach().sum()) and not a.isfinite().all():
        raise ValueError("a must be finite, got NaN or infinite pre-activations")


def check_ends_with(name: str, x: Tensor, a: Tensor) -> None:
    """``x`` must have ``a``'s shape, or that shape behind further axes."""
    if not isinstance(x, Tensor) or x.shape[x.dim() - a.dim() :] != a.shape:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must have shape (..., *{tuple(a.shape)}) to match a, got {shape}")


def check_loss_based(a: Tensor, noise: Noise | str, num_samples: int) -> Noise:
    """The checks that every loss-based estimator makes before any work; returns the noise."""
    noise = check_unit(a, noise)
    if a.dim() < 1:
        raise ValueError("a must have at least the axis of the units, got a scalar")
    check_count("num_samples", num_samples)
    return noise


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """A number of samples is an integer, not a bool, and at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def check_number(name: str, value: object, allowed: str, ok: Callable[[float], bool]) -> None:
    """An option is a number for which ``ok`` holds, or a tensor of one; a bool is none.

    ``allowed`` says in words what ``ok`` asks for.
    """
    number = value.item() if isinstance(value, Tensor) and value.dim() == 0 else value
    if isinstance(number, bool) or not isinstance(number, Real) or not ok(float(number)):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_tau(tau: float | Tensor) -> None:
    """A temperature is > 0; of a tensor this is looked at only where looking is free."""
    if isinstance(tau, Tensor):
        ok = not looking_is_free(tau) or bool(((tau > 0) & tau.isfinite()).all())
    else:
        ok = is_positive(tau)
    if not ok:
        raise ValueError(f"tau must be a finite temperature > 0, got {tau!r}")


def linear_layers(net: Network, name: str) -> list[torch.nn.Linear]:
    """The layers of ``net`` for the function ``name``, which needs them to be ``nn.Linear``."""
    layers = []
    for k, layer in enumerate(net.layers):
        if not isinstance(layer, torch.nn.Linear):
            raise ValueError(f"{name} needs nn.Linear layers, layer {k} is {type(layer).__name__}")
        layers.append(layer)
    return layers


def evaluate(loss: Loss, x: Tensor, *, name: str = "loss") -> Tensor:
    """L(x) for states ``(..., B, n)``: one value an input, ``(..., B)``."""
    return check_values(loss(x), x.shape[:-1], name=name)


def check_values(values: object, shape: Sequence[int], *, name: str = "loss") -> Tensor:
    """A loss returns one floating-point value an input: a tensor of ``shape`` = (..., B)."""
    if not isinstance(values, Tensor) or values.shape != torch.Size(shape):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name} must return one value an input, shape {tuple(shape)} here (no mean over the "
            f"batch), got {got}"
        )
    if not values.is_floating_point():
        raise ValueError(f"{name} must return floating-point values, got {values.dtype}")
    return values


def looking_is_free(a: Tensor) -> bool:
    """Whether looking at values costs no sync and does not break compile or vmap."""
    if torch.compiler.is_compiling() or a.device.type != "cpu":
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(a)
