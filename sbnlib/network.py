"""The layered stochastic binary network, and estimators that act on a whole network.

    x_0 = inputs,   a_k = layer_k(x_{k-1}),   x_k = sign(a_k - Z_k),   k = 1..K.

The real-valued head belongs to the loss: a 784-200-200-10 classifier is
``SBN(Linear(784, 200), Linear(200, 200))`` with ``loss = lambda x: cross_entropy(head(x), y)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from sbnlib import registry
from sbnlib.contracts import (
    ChainRule,
    Loss,
    LossBased,
    NetworkEstimator,
    argument_names,
    can_be_called,
    check_function,
    check_states,
    check_values,
    evaluate,
    name_of,
    named_kind,
    takes,
    with_generator,
)
from sbnlib.estimators import straight_through
from sbnlib.nn import BernoulliConv2d, Levels, Sign, check_mode
from sbnlib.noise import Noise
from sbnlib.registry import as_chain_rule, as_loss_based
from sbnlib.units import sample_sign

__all__ = ["SBN", "layerwise", "network_estimator", "pathwise"]


class SBN(torch.nn.Module):
    """A stochastic binary network: after each layer, a layer of binary units.

    Args:
        *layers: modules that map states to pre-activations, ``nn.Linear``-like or convolutions.
            A ``nn.Sequential(Linear, BatchNorm1d)`` is one layer too.
        noise: the injected noise of every unit, or its name for scale 1; default ``Logistic()``.
        estimator: the chain-rule estimator of every unit, or its name in the registry; default
            straight-through.
        sampler: where the draws of a forward pass come from, ``"torch"`` or ``"fused"``; see
            :class:`sbnlib.nn.Sign`. Estimators that draw by themselves draw as ever.

    ``forward(inputs)`` maps ``(..., B, n_0)`` to the last layer's states ``(..., B, n_K)``.

    Raises:
        ValueError: no layer given, a layer with :class:`sbnlib.nn.Levels` in it, or an unknown name
            of a noise, an estimator or a sampler.
        TypeError: a layer is not a module, noise is not a noise model.
    """

    def __init__(
        self,
        *layers: torch.nn.Module,
        noise: Noise | str | None = None,
        estimator: ChainRule | str = straight_through,
        sampler: str = "torch",
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("layers must be at least one module such as nn.Linear(2, 5), got none")
        for layer in layers:
            if not isinstance(layer, torch.nn.Module):
                raise TypeError(f"layers must be torch modules, got {layer!r}")
            if any(isinstance(module, Levels) for module in layer.modules()):
                raise ValueError("layers must hold no nn.Levels, an SBN puts binary units behind "
                                 f"each layer: use nn.Sequential, got {layer!r}")  # fmt: skip
        self.layers = torch.nn.ModuleList(layers)
        self.sign = Sign(noise, estimator, sampler=sampler)

    # What is the units' can be asked for, and set, at the network

    @property
    def noise(self) -> Noise:
        return self.sign.noise

    @property
    def estimator(self) -> ChainRule:
        return self.sign.estimator

    @property
    def mode(self) -> str:
        return self.sign.mode

    @property
    def sampler(self) -> str:
        return self.sign.sampler

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("noise", "estimator", "mode", "sampler"):
            setattr(self.sign, name, value)
        else:
            super().__setattr__(name, value)

    def forward(
        self,
        inputs: Tensor,
        *,
        mode: str | None = None,
        estimator: ChainRule | str | None = None,
        states: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        u: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Run the network.

        Args:
            inputs: ``(..., B, n_0)``, floating point; axes in front of the batch are independent
                draws: ``inputs.expand(1000, B, n_0)`` samples a thousand times.
            mode: ``"sample"``, ``"sign"`` (most probable state) or ``"mean"`` (mean-field: every
                unit puts out its mean, which is *not* the mean of the sampled network in depth);
                default ``"sample"``, or what :func:`sbnlib.set_mode` said.
            estimator: overrides the network's chain-rule estimator in this call.
            states: one tensor of +-1 a layer; the states are these, and gradients are as if
                sampled.
            generator: source of randomness, on the device of ``inputs``. Under activation
                checkpointing give none, or hand in ``u``; see :func:`sbnlib.sample_sign`.
            u: one tensor of uniforms a layer; handed to ``sample_sign``.

        Raises:
            TypeError: ``inputs`` is not floating point.
            ValueError: unknown mode, a wrong number or shape of ``states`` or ``u``, or (looked at
                on eager CPU tensors only) states that are not +-1, uniforms not on [0, 1).
        """
        mode = self.sign.mode if mode is None else mode
        check_mode(mode)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            what = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(f"inputs must be a floating-point tensor, got {what}")
        if mode != "sample" and (states is not None or u is not None):
            raise ValueError(f"states and u belong to mode='sample', got mode={mode!r}")
        if estimator is not None:
            estimator = with_generator(as_chain_rule(estimator))
        given_states = self._per_layer("states", states)
        check_states("states", given_states)
        x = inputs
        given = zip(given_states, self._per_layer("u", u), strict=True)
        for layer, (state, uniforms) in zip(self.layers, given, strict=True):
            a = run_layer(layer, x, generator)
            x = self.sign(
                a, mode=mode, x=state, estimator=estimator, generator=generator, u=uniforms
            )
        return x

    def _in_order(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """The modules by name as a forward pass runs them; the units come after each layer."""
        if type(self).forward is not SBN.forward:
            raise ValueError(f"net must run its layers in order, {type(self).__name__} has a "
                             "forward of its own")  # fmt: skip
        for k, layer in enumerate(self.layers):
            yield f"layers.{k}", layer
            yield "sign", self.sign

    def _per_layer(
        self, name: str, values: Sequence[Tensor] | Tensor | None
    ) -> Sequence[Tensor | None]:
        """One value a layer, or an error that says how many there should be."""
        if values is None:
            return [None] * len(self.layers)
        if isinstance(values, Tensor | str) or not isinstance(values, Sequence):
            got = f"a {type(values).__name__}"
        elif len(values) != len(self.layers):
            got = f"{len(values)}"
        else:
            return values
        raise ValueError(f"{name} must hold {len(self.layers)} tensors, one a layer, got {got}")


def run_layer(layer: torch.nn.Module, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Pre-activations; a layer whose ``forward`` takes a generator gets the network's.

    So does one inside a ``nn.Sequential``, whose own forward takes no generator.
    """
    if draws(layer):
        return layer(x, generator=generator)
    if type(layer) is torch.nn.Sequential and any(draws(m) for m in layer.modules()):
        for part in layer:
            x = run_layer(part, x, generator)
        return x
    if generator is not None and any(draws(m) for m in layer.modules() if m is not layer):
        raise ValueError(
            "generator must reach every module that draws: the forward of "
            f"{type(layer).__name__} must take generator= and pass it on"
        )
    return layer(x)


def draws(layer: torch.nn.Module) -> bool:
    """Whether a layer's forward takes a generator. Torch's own layers cannot be handed one.

    One that takes any others (``**kw``) is a wrapper, which hands them to what it holds.
    """
    forward = getattr(layer.forward, "__func__", layer.forward)
    if torch.compiler.is_compiling() or not isinstance(forward, FunctionType):
        named, any_other = _takes_generator.__wrapped__(forward)  # compile warns of a cache
    else:
        named, any_other = _takes_generator(forward)
    return named or any_other and any(map(draws, layer.children()))


@functools.lru_cache(maxsize=256)  # by the function, so that the cache keeps no module alive
def _takes_generator(forward: Callable[..., Tensor]) -> tuple[bool, bool]:
    """By name, and by name or among any others."""
    return takes(forward, "generator", among_others=False), takes(forward, "generator")


# ---- network estimators --------------------------------------------------------------------------


def network_estimator(estimator: str | NetworkEstimator) -> NetworkEstimator:
    """The network estimator of a name in the registry, or ``estimator`` itself.

    An entry of kind ``"chain rule"`` goes through :func:`pathwise`, one of kind ``"loss based"``
    through :func:`layerwise`; with one of kind ``"relaxation"`` every unit is relaxed.

    Raises:
        ValueError: unknown name, the message lists the known ones; or a function of another kind,
            the message says what makes a network estimator of it.
        TypeError: neither a name nor a function.
    """
    if isinstance(estimator, str):
        entry = registry.get(estimator)
        return _TO_NETWORK[entry.kind](entry.function)
    if not callable(estimator):
        raise TypeError(f"estimator must be a registry name or a function, got {estimator!r}")
    _check_arguments(estimator)
    return with_generator(estimator)


#: What makes a network estimator of a function of another kind.
_CURES = {
    "chain rule": "; use pathwise({})",
    "loss based": "; use layerwise({})",
    "relaxation": "; give a relaxation by its name in the registry",
}


def _check_arguments(estimator: Callable[..., Tensor]) -> None:
    """A network estimator is called with (net, inputs, loss); other kinds name other arguments."""
    kind = named_kind(estimator)
    cure = _CURES.get(kind or "", "")
    if isinstance(estimator, type) or cure or not can_be_called(estimator, 3):
        is_partial = isinstance(estimator, functools.partial)
        base = name_of(getattr(estimator, "func", estimator))
        name = f"partial({base}, ...)" if is_partial else base
        raise ValueError(
            "estimator must be a network estimator (net, inputs, loss, *, generator), got "
            f"{base}({', '.join(argument_names(estimator))}){cure.format(name)}"
        )


def pathwise(estimator: ChainRule | str) -> NetworkEstimator:
    """The network estimator that samples once and applies a chain-rule estimator at every unit.

    Args:
        estimator: a function ``(a, x, noise)`` or its name in the registry.

    Returns:
        A function ``(net, inputs, loss, *, generator) -> (..., B)``: the loss of one sampled
        forward pass per input, whose gradient by the chain rule is the estimate.

    Raises:
        ValueError: unknown name, or the name of an estimator of another kind.
        TypeError: neither a name nor a function.
    """
    return _Pathwise(with_generator(as_chain_rule(estimator)))


@dataclass(frozen=True, repr=False)
class _Pathwise:
    """What :func:`pathwise` returns; the estimator it is made of can be asked for.

    Two of the same estimator are equal.
    """

    chain_rule: Callable[..., Tensor]

    @property
    def __name__(self) -> str:
        return f"pathwise({name_of(self.chain_rule)})"

    def __repr__(self) -> str:
        return self.__name__

    def __call__(
        self, net: SBN, inputs: Tensor, loss: Loss, *, generator: torch.Generator | None = None
    ) -> Tensor:
        x = net(inputs, mode="sample", estimator=self.chain_rule, generator=generator)
        return evaluate(loss, x, shape=batch_shape(net, x))


def layerwise(estimator: LossBased | str) -> NetworkEstimator:
    r"""The network estimator that applies a loss-based estimator at every layer.

    Layer k sees the loss :math:`L_k(x)` = "run the sampled rest of the network from x". Its
    estimate attaches at its pre-activations, taken at a sampled state of the layer below, and is
    unbiased if ``estimator`` is. Where it names ``surrogate``, it gets the mean-field rest.

    The cost is that of ``estimator`` at every layer, each evaluation a run through the layers
    above.

    Args:
        estimator: a function ``(loss, a, noise)`` or its name in the registry.

    Raises:
        ValueError: unknown name, or the name of an estimator of another kind.
        TypeError: neither a name nor a function.
    """
    given = as_loss_based(estimator)
    takes_surrogate = takes(given, "surrogate", among_others=False)
    return _Layerwise(with_generator(given), takes_surrogate)


@dataclass(frozen=True, repr=False)
class _Layerwise:
    """What :func:`layerwise` returns; two of the same estimator are equal."""

    loss_based: Callable[..., Tensor]
    takes_surrogate: bool

    @property
    def __name__(self) -> str:
        return f"layerwise({name_of(self.loss_based)})"

    def __repr__(self) -> str:
        return self.__name__

    def __call__(
        self, net: SBN, inputs: Tensor, loss: Loss, *, generator: torch.Generator | None = None
    ) -> Tensor:
        check_function("loss", loss, "the states")
        for k, layer in enumerate(net.layers):
            if any(isinstance(m, CONVOLUTIONS) for m in layer.modules()):
                raise ValueError(f"layerwise needs fully connected layers, layer {k} is {layer}")
        x = inputs
        total: Tensor | float = 0.0
        for k, layer in enumerate(net.layers):
            a = run_layer(layer, x, generator)
            top = k == len(net.layers) - 1
            rest = loss if top else torch.no_grad()(_rest(net, loss, k, "sample", generator))
            options: dict[str, Any] = {"generator": generator}
            if self.takes_surrogate and not top:
                options["surrogate"] = _rest(net, loss, k, "mean", generator)
            value = self.loss_based(rest, a, net.noise, **options)
            total = total + (value if top else value - value.detach())
            if not top:
                x = sample_sign(a, net.noise, generator=generator)
        return check_values(total, a.shape[:-1])


@dataclass(frozen=True)
class _Relaxed:
    """A relaxed unit in the form of a chain-rule estimator; the state is not looked at."""

    relaxation: Callable[..., Tensor]

    @property
    def __name__(self) -> str:
        return "unit"

    def __call__(
        self, a: Tensor, x: Tensor, noise: Noise, *, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.relaxation(a, noise, generator=generator)


def _relaxed(relaxation: Callable[..., Tensor]) -> NetworkEstimator:
    """Every unit relaxed: the loss of the relaxed network, with its own exact gradient."""
    return pathwise(_Relaxed(relaxation))


_TO_NETWORK: dict[str, Callable[..., NetworkEstimator]] = {
    "chain rule": pathwise,
    "loss based": layerwise,
    "relaxation": _relaxed,
    "network": with_generator,
}


def takes_axes(estimator: NetworkEstimator) -> bool:
    """Whether it takes inputs ``(..., B, n)`` wherever the layers do, and returns ``(..., B)``.

    So do those that :func:`pathwise` and :func:`layerwise` make, which call the layers. PSA reads
    their weights, and of a function of the user's nobody knows.
    """
    return isinstance(estimator, (_Pathwise, _Layerwise))


def of_kind(kind: str, function: Callable[..., Tensor]) -> NetworkEstimator:
    """The network estimator that a function of this kind becomes, one of ``registry.KINDS``."""
    return _TO_NETWORK[kind](function)


def _rest(net: SBN, loss: Loss, k: int, mode: str, generator: torch.Generator | None) -> Loss:
    """The loss as a function of layer k's states: run the layers above it."""

    def rest(x: Tensor) -> Tensor:
        for layer in net.layers[k + 1 :]:
            x = net.sign(run_layer(layer, x, generator), mode=mode, generator=generator)
        return loss(x)

    return rest


#: Layers whose states may have more than one axis.
CONVOLUTIONS = (_ConvNd, BernoulliConv2d)


def batch_shape(net: SBN, x: Tensor) -> torch.Size:
    """The shape (..., B) of the last layer's states, without the axes of one state.

    That is one axis; behind a Conv2d three, unless they were flattened.
    """
    inside = net.layers[-1].modules()
    axes = [1 + len(m.kernel_size) for m in inside if isinstance(m, CONVOLUTIONS)]
    return x.shape[: -axes[0] if axes and axes[0] <= x.dim() else -1]
