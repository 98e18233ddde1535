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
Types, dtypes and shapes are always checked; values only where looking at them is free. Factors are
computed in at least float32, whatever the dtype of ``a``; the product with what flows back is
rounded to it once.

An estimate is a number to torch, not a function of ``a``. To differentiate it once more
(``create_graph=True``) would hold its factor constant, and is refused where that can be seen: not
under ``torch.func`` and ``torch.compile``.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor

from sbnlib.noise import Noise, as_noise, is_positive

__all__ = ["ChainRule", "Loss", "LossBased", "Network", "NetworkEstimator"]


def __dir__() -> list[str]:  # what completion offers
    return __all__


#: Takes states ``(..., B, n)``, returns ``(..., B)``; may close over targets of the batch, and may
#: change its argument, which is a copy.
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


def takes(function: Callable[..., Any], keyword: str, *, among_others: bool = True) -> bool:
    """Whether ``function`` can be handed ``keyword=``, by name or among any others (``**kw``)."""
    parameters = (_parameters(function) or {}).values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if among_others and any(p.kind is p.VAR_KEYWORD for p in parameters):
        return True
    return any(p.name == keyword and p.kind in named for p in parameters)


def with_generator(estimator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The estimator as one that takes ``generator=``: itself, or wrapped so as to ignore it.

    A partial that has a generator of its own keeps it.
    """
    keywords = estimator.keywords if isinstance(estimator, functools.partial) else {}
    bound = keywords.get("generator") is not None
    if isinstance(estimator, _Deterministic) or takes(estimator, "generator") and not bound:
        return estimator
    return _Deterministic(estimator)


#: The first arguments by which a function is known to be of a kind.
_FIRST = {
    ("a", "x", "noise"): "chain rule",
    ("loss", "a", "noise"): "loss based",
    ("net", "inputs", "loss"): "network",
    ("a", "noise"): "relaxation",
}


def named_kind(function: Callable[..., Any]) -> str | None:
    """The kind of an estimator by the names of its arguments; None where they tell nothing."""
    names = argument_names(function)
    return next((kind for first, kind in _FIRST.items() if names[: len(first)] == first), None)


def argument_names(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(_parameters(function) or ())


def can_be_called(function: Callable[..., Any], count: int) -> bool:
    """Whether ``function`` takes ``count`` arguments by position, and its ``generator``."""
    parameters = _parameters(function)
    if parameters is None:
        return True
    options = {"generator": None} if "generator" in parameters else {}
    try:
        inspect.Signature(list(parameters.values())).bind(*[None] * count, **options)
    except TypeError:
        return False
    return True


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    call = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return None


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
    if looking_is_free(a) and not is_finite(a):
        raise ValueError("a must be finite, got NaN or infinite pre-activations")


def is_finite(a: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    # The sum is finite only if every term is; it can overflow too, hence the second look.
    return math.isfinite(a.detach().sum()) or bool(a.isfinite().all())


def check_ends_with(name: str, x: Tensor, a: Tensor) -> None:
    """``x`` must have ``a``'s shape, or that shape behind further axes."""
    if not isinstance(x, Tensor) or x.shape[x.dim() - a.dim() :] != a.shape:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must have shape (..., *{tuple(a.shape)}) to match a, got {shape}")


def check_uniforms(u: Tensor) -> None:
    """Where looking is free, uniforms are on [0, 1): one at 1 would make a certain +1 a -1."""
    if not u.is_floating_point():
        raise TypeError(f"u must be floating-point uniforms on [0, 1), got {u.dtype}")
    if not looking_is_free(u) or u.numel() == 0:
        return
    low, high = float(u.amin()), float(u.amax())
    if not 0 <= low <= high < 1:
        raise ValueError(f"u must be on [0, 1), got values from {low} to {high}")


def check_states(name: str, states: Sequence[Tensor | None]) -> None:
    """States are real numbers and, where looking is free, +-1."""
    for x in states:
        if isinstance(x, Tensor) and (x.dtype is torch.bool or x.is_complex()):
            raise TypeError(f"{name} must hold real numbers +-1, got {x.dtype}")
        if isinstance(x, Tensor) and looking_is_free(x) and bool((x.abs() != 1).any()):
            low, high = float(x.amin()), float(x.amax())
            raise ValueError(f"{name} must hold +-1 only, got values from {low} to {high}")


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
    """A temperature is > 0 and finite; a tensor is looked at only where looking is free."""
    if isinstance(tau, Tensor):
        ok = not looking_is_free(tau) or bool(((tau > 0) & tau.isfinite()).all())
    else:
        ok = is_positive(tau)
    if not ok:
        raise ValueError(f"tau must be a temperature from 1e-37 to 1e37, got {tau!r}")


def check_function(name: str, value: object, of: str) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function of {of}, got {value!r}")


def check_weight(name: str, value: object) -> None:
    """A weight is a finite number or a tensor."""
    number = isinstance(value, Real) and math.isfinite(value)
    if not number and not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a finite number or a tensor, got {value!r}")


#: What moves the numbers of one input to other places, and does nothing else.
AROUND = (torch.nn.Flatten, torch.nn.Unflatten, torch.nn.Identity)


def linear_layers(net: Network, name: str) -> list[torch.nn.Linear]:
    """The layers of ``net`` for the function ``name``, which needs them to be ``nn.Linear``."""
    layers = []
    for k, layer in enumerate(net.layers):
        if not isinstance(layer, torch.nn.Linear):
            raise ValueError(f"{name} needs nn.Linear layers, layer {k} is {type(layer).__name__}")
        layers.append(layer)
    return layers


def evaluate(
    loss: Loss, x: Tensor, *, shape: Sequence[int] | None = None, name: str = "loss"
) -> Tensor:
    """L(x) for states ``(..., B, n)``: one value an input, of ``shape``, by default ``(..., B)``.

    The loss gets a copy: it may change its argument in place, and the states are needed after it.
    """
    check_function(name, loss, "the states")
    shape = x.shape[:-1] if shape is None else shape
    try:
        values = loss(x.clone())
    except Exception as error:
        error.add_note(
            f"{name} was called with states of shape {tuple(x.shape)} and must return one value an "
            f"input, shape {tuple(shape)}; for classes sbnlib.classification_loss does"
        )
        raise
    return check_values(values, shape, name=name)


def check_values(values: object, shape: Sequence[int], *, name: str = "loss") -> Tensor:
    """A loss returns one floating-point value an input: a tensor of ``shape`` = (..., B)."""
    if not isinstance(values, Tensor) or values.shape != torch.Size(shape):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name} must return one value an input, shape {tuple(shape)} here (no mean over the "
            f"batch; for classes sbnlib.classification_loss), got {got}"
        )
    if not values.is_floating_point():
        raise ValueError(f"{name} must return floating-point values, got {values.dtype}")
    return values


# ---- gradients -----------------------------------------------------------------------------------


def attach(x: Tensor, a: Tensor, c: Tensor) -> Tensor:
    """The value ``x``, exactly, with the gradient ``c`` in ``a``.

    Args:
        x: the value; shape ``(..., *a.shape)``.
        a: pre-activations, the tensor that receives the gradient.
        c: the factor that stands for dx/da, broadcastable to ``x``, finite, a constant. It may be
            wider than ``a``: then the product with what flows back is rounded, and not c.

    The difference is 0 before anything is added to it, so no rounding touches ``x``. The common
    ``x + c*a - (c*a).detach()``, read from left to right, misses +-1 in one value out of fourteen.

    Raises:
        ValueError: ``c`` requires a gradient, which would always be 0.
        RuntimeError: in a backward pass with ``create_graph=True``: a second derivative would hold
            c constant. Under ``torch.func`` and ``torch.compile`` this is not seen.
    """
    if c.requires_grad:
        raise ValueError("c must be a constant, got a factor that requires a gradient: detach what "
                         "it is made of (tau, s, parameters of h), which would get 0")  # fmt: skip
    da = differential(a)
    return torch.addcmul(x, c, da) if c.dtype == a.dtype else x + (c * da).to(a.dtype)


def differential(a: Tensor, *, twice: bool = False) -> Tensor:
    """da, the value 0 with the derivative 1 in ``a``: c da has the value 0 and the derivative c.

    Where ``a`` is infinite its derivative is 0 too. To build a graph of the gradient that flows
    through it (``create_graph=True``) is refused, unless c is the same everywhere (``twice``).
    """
    a, traced = finite(a), is_traced(a)
    da = a - a.detach()
    if da.requires_grad and not (twice or traced):
        da._backward_hooks = _HOOKS  # register_hook at a fifth of its cost: no handle
        da.grad_fn._register_hook_dict(da)  # type: ignore[union-attr]
    return da


def finite(a: Tensor) -> Tensor:
    """``a`` with +-inf moved to the ends of its dtype's range, without a gradient there.

    Where looking is free, infinite pre-activations have been refused; elsewhere inf - inf is NaN.
    """
    if looking_is_free(a):
        return a
    ends = torch.finfo(a.dtype)
    return a.clamp(ends.min, ends.max)


def refuse_graph(gradient: Tensor) -> None:
    """In a backward pass that builds a graph of itself: a second derivative would be wrong."""
    if torch.is_grad_enabled():  # in a backward pass: with create_graph=True
        raise RuntimeError(
            "create_graph must be False through a binary unit, got True: its gradient is an "
            "estimate whose factor is a constant to torch; only identity and proxy(function=...) "
            "can be differentiated twice"
        )


_HOOKS: dict[int, Callable[[Tensor], Tensor | None]] = OrderedDict({0: refuse_graph})


def looking_is_free(a: Tensor) -> bool:
    """Whether looking at values costs no sync and does not break compile or vmap."""
    return a.device.type == "cpu" and not is_traced(a)


def is_traced(a: Tensor) -> bool:
    """Whether torch.compile or a transform of torch.func is at work, so that ``a`` has no value."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.is_functorch_wrapped_tensor(a)
