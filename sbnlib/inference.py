"""From a trained stochastic network to the deterministic one that is used.

A network of binary units and weights samples, in evaluation mode too: what it is worth depends on
what stands for a random sign. :func:`set_mode` chooses it for the whole network,
:func:`reestimate_batch_norm` takes the statistics of batch norm anew for that choice, and
:func:`to_plain` puts torch's own layers in the place of ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sbnlib import levels
from sbnlib.contracts import is_finite
from sbnlib.network import SBN
from sbnlib.nn import (
    RANDOM_WEIGHTS,
    BernoulliConv2d,
    BernoulliLinear,
    Levels,
    Sign,
    TernaryLinear,
    _Units,
    check_mode,
)
from sbnlib.noise import Noise
from sbnlib.units import mean_state

__all__ = ["reestimate_batch_norm", "set_mode", "to_plain"]

Module = TypeVar("Module", bound=torch.nn.Module)
BatchNorm = torch.nn.modules.batchnorm._BatchNorm


def set_mode(net: Module, mode: str) -> Module:
    """Choose what every unit and every random weight of a network puts out, and return it.

    Args:
        net: any module.
        mode: ``"sample"``, a draw; ``"sign"``, the most probable state of a binary unit or of a
            weight, and of units with more levels the state without noise; ``"mean"``, the mean. It
            is what a call without ``mode=`` does from now on; training and evaluation mode have no
            part in it. Estimators of gradients sample the units whatever the mode; weights are
            what the mode says.

    Raises:
        ValueError: unknown ``mode``, or ``net`` holds neither units nor random weights.

    A layer with ``forward="concrete"`` has to be set back by hand: ``layer.mode = "concrete"``.
    """
    check_mode(mode)
    _check_module(net)
    found = [m for m in net.modules() if isinstance(m, (_Units, *RANDOM_WEIGHTS))]
    if not found:
        raise ValueError(f"net must hold units or random weights, {_name(net)} has none")
    for module in found:
        module.mode = mode
    return net


def reestimate_batch_norm(net: Module, data: Tensor | Iterable[Any]) -> Module:
    """Take the running statistics of every batch norm anew, in the network's mode, and return it.

    During training the statistics were those of sampled units; after :func:`set_mode` they are
    off. The layers are taken from the bottom up, in the order in which they run, each in a pass of
    its own through all the data: what comes into a layer must be settled before it is measured.

    Args:
        net: any module; after an error its statistics are as they were.
        data: inputs as one tensor, or as batches that can be gone through more than once: tensors,
            or tuples whose first entry is the inputs. The mean over the batches is unweighted.

    Raises:
        ValueError: no batch norm with running statistics, no data, batches that can be gone
            through only once, or statistics that are not finite.
        TypeError: data that are neither a tensor nor batches, batches that hold no tensor.

    Afterwards batch norm is in evaluation mode; all other modules are as they were.
    """
    _check_module(net)
    batches = _batches(data)
    with torch.no_grad(), in_evaluation_mode(net), _restored_after_an_error(_batch_norms(net)):
        for norm in _in_order_of_use(net, batches):
            norm.reset_running_stats()
            momentum, norm.momentum = norm.momentum, None  # None: a plain mean over the batches
            norm.train()
            try:
                for batch in batches:
                    net(_inputs(batch))
            finally:
                norm.eval()
                norm.momentum = momentum
            if not is_finite(norm.running_var):
                raise ValueError("data must give finite statistics, got NaN or infinite ones in "
                                 f"{norm}")  # fmt: skip
    for norm in _batch_norms(net):
        norm.eval()
    return net


@contextmanager
def _restored_after_an_error(norms: list[Any]) -> Iterator[None]:
    before = [{name: b.clone() for name, b in norm.named_buffers()} for norm in norms]
    try:
        yield
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
        raise


def _batches(data: Tensor | Iterable[Any]) -> list[Any] | Iterable[Any]:
    if isinstance(data, Tensor):
        data = [data]
    if isinstance(data, str | Mapping) or not isinstance(data, Iterable):
        raise TypeError(f"data must be a tensor or batches of tensors, got {type(data).__name__}")
    if isinstance(data, Iterator):
        raise ValueError("data must be a tensor or batches that can be gone through again, such "
                         f"as a list or a DataLoader, got {type(data).__name__}")  # fmt: skip
    if not any(True for _ in data):
        raise ValueError("data must hold at least one batch, got none")
    return data


def _inputs(batch: Any) -> Tensor:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            "data must hold tensors, or tuples that begin with one, got a batch of type "
            f"{type(batch).__name__}"
        )
    if inputs.numel() == 0:
        raise ValueError(f"data must hold inputs in every batch, got shape {tuple(inputs.shape)}")
    return inputs


def _batch_norms(net: torch.nn.Module) -> list[Any]:
    norms: list[Any] = [m for m in net.modules() if isinstance(m, BatchNorm)]
    if any(is_lazy(m.running_mean) for m in norms):
        raise ValueError("net must have statistics, run it once: its batch norm is lazy")
    return [m for m in norms if m.track_running_stats and m.running_mean is not None]


def _in_order_of_use(net: torch.nn.Module, batches: Iterable[Any]) -> list[Any]:
    """The batch norms in the order in which one batch runs through them."""
    norms, order = _batch_norms(net), []
    if not norms:
        raise ValueError(f"net must hold batch norm with running statistics, {_name(net)} has none")
    hooks = [m.register_forward_pre_hook(lambda m, _: order.append(m)) for m in norms]
    try:
        net(_inputs(next(iter(batches))))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


@contextmanager
def in_evaluation_mode(net: torch.nn.Module) -> Iterator[None]:
    training = {m: m.training for m in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, before in training.items():
            module.training = before


def to_plain(net: torch.nn.Module) -> torch.nn.Module:
    """A copy of torch's own layers, for export: signs as weights, units without an estimator.

    It is in evaluation mode: dropout and batch norm compute what they do when the net is used.

    ``BernoulliLinear`` and ``TernaryLinear`` become ``nn.Linear``, ``BernoulliConv2d``
    ``nn.Conv2d`` (behind a padding of its own where ``pad_value`` asks for it), a unit a comparison
    with 0, one with levels a sum of comparisons with its thresholds, an ``SBN`` a
    ``nn.Sequential``. In mode ``"mean"`` weights and units are their means.

    Args:
        net: a module whose units and random weights are in mode ``"sign"`` or ``"mean"``.

    Raises:
        TypeError: ``net`` is not a module.
        ValueError: a unit or a weight is in another mode, or a layer of ours has a forward of its
            own or a hook, which torch's layer would lose; the message names it.

    The signs agree with the network's wherever the pre-activation is not within rounding of 0.
    """
    _check_module(net)
    for name, module in net.named_modules():
        _check_replaceable(name or "net", module)
        if isinstance(module, (_Units, *RANDOM_WEIGHTS)) and module.mode not in ("sign", "mean"):
            raise ValueError(
                f"net must be deterministic, {name or 'net'} is in mode {module.mode!r}: call "
                'sbnlib.set_mode(net, "sign") first'
            )
    return _plain(copy.deepcopy(net), {}).eval()


def _check_replaceable(name: str, module: torch.nn.Module) -> None:
    """A layer that is replaced must compute what its class does: no other forward, no hook."""
    kinds = (SBN, Sign, Levels, BernoulliLinear, BernoulliConv2d, TernaryLinear)
    ours: Any = next((c for c in kinds if isinstance(module, c)), None)
    if ours is None:
        return
    if forward_of(module) is not ours.forward:
        raise ValueError(f"net must hold our own layers, {name} has a forward of its own")
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"net must hold layers without forward hooks, {name} has one")


def forward_of(module: torch.nn.Module) -> object:
    """The function that runs, of the class or put on the instance."""
    return getattr(module.forward, "__func__", module.forward)


def _check_module(net: object) -> None:
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"net must be a module, got {type(net).__name__}")


def _plain(module: torch.nn.Module, done: dict[torch.nn.Module, Any]) -> torch.nn.Module:
    """Torch's module in the place of one of ours; one that stands in two places stays one."""
    if module not in done:
        done[module] = _made_plain(module, done)
    return done[module]


def _made_plain(module: torch.nn.Module, done: dict[torch.nn.Module, Any]) -> torch.nn.Module:
    if isinstance(module, BernoulliLinear | TernaryLinear):
        out: torch.nn.Module = torch.nn.Linear(
            module.in_features, module.out_features, module.bias is not None
        )
        return _filled(out, module)
    if isinstance(module, BernoulliConv2d):
        return _plain_conv(module)
    if isinstance(module, Sign):
        return PlainSign() if module.mode == "sign" else PlainMean(module.noise)
    if isinstance(module, Levels):
        kind = PlainLevels if module.mode == "sign" else PlainLevelsMean
        return kind(module)
    if isinstance(module, SBN):
        layers = [(_plain(layer, done), _plain(module.sign, done)) for layer in module.layers]
        return torch.nn.Sequential(*(part for pair in layers for part in pair))
    for name, child in module._modules.items():
        if child is not None:
            setattr(module, name, _plain(child, done))
    return module


def _plain_conv(module: BernoulliConv2d) -> torch.nn.Module:
    options: dict[str, Any] = {
        name: getattr(module, name)
        for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    }
    own = module.pad_value != 0
    options |= {"padding": 0} if own else {}
    channels = (module.in_channels, module.out_channels)
    conv = _filled(torch.nn.Conv2d(*channels, bias=module.bias is not None, **options), module)
    left, right, top, bottom = module._margins
    pad = torch.nn.ConstantPad2d((left, right, top, bottom), module.pad_value)
    return torch.nn.Sequential(pad, conv) if own else conv


def _filled(out: Any, module: BernoulliLinear | BernoulliConv2d | TernaryLinear) -> torch.nn.Module:
    with torch.no_grad():
        out.weight = torch.nn.Parameter(module.weight().detach().clone())
        if module.bias is not None:
            out.bias = torch.nn.Parameter(module.bias.detach().clone())
    return out


class PlainSign(torch.nn.Module):
    """+1 where a >= 0, else -1, in ``a``'s dtype: three operations in an exported graph."""

    def forward(self, a: Tensor) -> Tensor:
        return torch.where(a >= 0, 1.0, -1.0).to(a.dtype)


class PlainMean(torch.nn.Module):
    """The mean 2F(a) - 1 of a unit."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, a: Tensor) -> Tensor:
        return mean_state(a, self.noise)


class PlainLevels(torch.nn.Module):
    """How many thresholds a reaches, on the scale of the unit's values."""

    def __init__(self, unit: Levels) -> None:
        super().__init__()
        self.thresholds, self.values = unit.thresholds, unit.values

    def extra_repr(self) -> str:
        return f"{self.thresholds}, values={self.values}"

    def forward(self, a: Tensor) -> Tensor:
        level = levels.deterministic_levels(a, self.thresholds)
        return levels.scaled(level, len(self.thresholds), self.values)


class PlainLevelsMean(PlainLevels):
    """The mean of a unit with levels, on the scale of its values."""

    def __init__(self, unit: Levels) -> None:
        super().__init__(unit)
        self.noise = unit.noise

    def forward(self, a: Tensor) -> Tensor:
        mean = levels.mean(a, self.thresholds, self.noise)
        return levels.scaled(mean, len(self.thresholds), self.values)


def _name(module: torch.nn.Module) -> str:
    return type(module).__name__
