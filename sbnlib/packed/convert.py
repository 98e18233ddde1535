"""From a trained torch network to packed bits."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sbnlib.inference import PlainSign, set_mode, to_plain
from sbnlib.nn import RANDOM_WEIGHTS, _Units
from sbnlib.packed import products, runtime
from sbnlib.packed.runtime import Layer, Model

__all__ = ["convert", "load", "steps"]

Array = np.ndarray[Any, Any]


def convert(net: nn.Module, *, backend: str | None = None) -> Model:
    r"""A network of signs as bits: the same predictions, without torch.

    Units and Bernoulli weights are taken at their more probable signs, dropout and batch norm in
    evaluation. A layer whose weights are all +1 or -1 is kept as bits; behind one whose inputs are
    signs, too, its bias, batch norm and sign become one integer threshold a unit,

    .. math:: x = +1 \iff s \ge \vartheta \quad\text{or}\quad s < \vartheta,
              \qquad s = \langle x_{\text{below}}, w\rangle

    found by applying torch's own layers to every sum that can occur, so that rounding and ties are
    theirs. Sums of real inputs are of float32, as torch's are, in another order.

    Args:
        net: a ``nn.Sequential``, nested as it may be, of ``BernoulliLinear``, ``BernoulliConv2d``,
            ``nn.Linear``, ``nn.Conv2d``, batch norm, ``Sign``, ``SBN``, ``nn.Flatten``,
            ``nn.Unflatten`` of the inputs, ``nn.Identity`` and dropout.
        backend: of the products of signs, a name in ``products.BACKENDS``; default the fastest that
            is installed.

    Raises:
        TypeError: ``net`` is not a module.
        ValueError: a layer that cannot be packed; the message names it and says why. Or an unknown
            backend.
        ModuleNotFoundError: numba is asked for and not installed.
    """
    backend = backend or products.best()
    product = products.product(backend)
    plain = to_plain(_at_signs(net))
    return Model(list(_layers(list(steps("", plain)))), product=product, backend=backend)


def load(path: str | os.PathLike[str], *, backend: str | None = None) -> Model:
    """The model that ``Model.save`` wrote.

    Args:
        path: its file.
        backend: as in :func:`convert`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, cut short, altered, no model, or of another version of its form;
            the message names the file. Or an unknown backend.
        ModuleNotFoundError: numba is asked for and not installed.
    """
    backend = backend or products.best()
    return runtime.load(path, products.product(backend), backend)


def _at_signs(net: nn.Module) -> nn.Module:
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a module, got {type(net).__name__}")
    own = copy.deepcopy(net)
    if any(isinstance(m, (_Units, *RANDOM_WEIGHTS)) for m in own.modules()):
        set_mode(own, "sign")
    return own


def steps(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Module after module in the order of use, with their names."""
    if isinstance(module, nn.Sequential):
        for key, child in module._modules.items():  # a unit may stand behind each layer
            assert child is not None
            yield from steps(f"{name}.{key}" if name else key, child)
    elif not isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d):
        yield name or "net", module


Steps = list[tuple[str, nn.Module]]
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def _layers(steps: Steps) -> Iterator[Layer]:
    """Layer after layer; a sum takes what follows it along, up to the sign."""
    signs = False
    while steps:
        name, module = steps.pop(0)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConstantPad2d):
            layer, bias = _sums(name, module, steps)
            yield layer
            after = _after(steps, bias)
            unit = bool(steps) and isinstance(steps[0][1], PlainSign)
            if unit and signs and "bits" in layer.arrays:
                steps.pop(0)
                yield _threshold(layer, after)
                continue
            yield from map(_numbers, after)
            signs = False
        elif isinstance(module, PlainSign):
            yield Layer("sign")
            signs = True
        else:
            yield _other(name, module)
            signs = signs and not isinstance(module, BatchNorm)


def _after(steps: Steps, bias: Tensor | None) -> list[Tensor | BatchNorm]:
    """The bias and the batch norms behind a sum, which leave the list."""
    found: list[Tensor | BatchNorm] = [] if bias is None else [bias]
    while steps and isinstance(steps[0][1], BatchNorm):
        found.append(_checked_norm(*steps.pop(0)))
    return found


def _other(name: str, module: nn.Module) -> Layer:
    if isinstance(module, BatchNorm):
        return _numbers(_checked_norm(name, module))
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return Layer("flatten")
    if isinstance(module, nn.Unflatten) and module.dim == 1:
        return Layer("unflatten", {"shape": list(map(int, module.unflattened_size))})
    raise ValueError(f"net: {name} ({_described(module)}) cannot be packed")


def _described(module: nn.Module) -> str:
    return str(module).split("\n", maxsplit=1)[0]


def _checked_norm(name: str, norm: Any) -> BatchNorm:
    if norm.running_mean is None:
        raise ValueError(f"net: {name} ({_described(norm)}) has no statistics that could be packed")
    return norm


# Sums ---------------------------------------------------------------------------------------------


def _sums(name: str, module: nn.Module, steps: Steps) -> tuple[Layer, Tensor | None]:
    """The layer of a linear map and its bias; a padding takes its convolution along."""
    if isinstance(module, nn.Linear):
        return _with_weight("linear", module.weight, {}), _of_float(module.bias)
    padding, pad = (0, 0), 0
    if isinstance(module, nn.ConstantPad2d):
        padding, pad = _padded(name, module)
        if not steps or not isinstance(steps[0][1], nn.Conv2d):
            raise ValueError(f"net: {name} ({_described(module)}) must stand before a convolution")
        name, module = steps.pop(0)
    assert isinstance(module, nn.Conv2d)
    padding = _padding(name, module, padding)
    options = {"stride": list(module.stride), "padding": list(padding), "pad": pad}
    weight = module.weight.permute(0, 2, 3, 1)  # channels last
    return _with_weight("conv2d", weight, options), _of_float(module.bias)


def _padded(name: str, module: nn.ConstantPad2d) -> tuple[tuple[int, int], int]:
    left, right, top, bottom = module.padding
    if (left, top) != (right, bottom) or module.value not in (-1, 0, 1):
        raise ValueError(
            f"net: {name} ({_described(module)}) must add as much at both sides, and 0, 1 or -1"
        )
    return (top, left), int(module.value)


def _padding(name: str, conv: nn.Conv2d, before: tuple[int, int]) -> tuple[int, int]:
    """That of the convolution, or of the padding before it; both at once are refused."""
    own, simple = conv.padding, conv.groups == 1 and tuple(conv.dilation) == (1, 1)
    simple = simple and not isinstance(own, str) and conv.padding_mode == "zeros"
    if not simple or any(own) and before != (0, 0):
        raise ValueError(
            f"net: {name} ({_described(conv)}) has groups, a dilation or a padding that cannot be "
            "packed"
        )
    return before if not any(own) else (int(own[0]), int(own[1]))


def _with_weight(kind: str, weight: Tensor, options: dict[str, Any]) -> Layer:
    """As bits, if all weights are signs."""
    own = {"inputs": weight.shape[-1]} | options
    values = weight.detach().cpu().numpy()
    if np.all(np.abs(values) == 1):
        return Layer(kind, own, {"bits": runtime.pack(values)})
    return Layer(kind, own, {"weight": np.ascontiguousarray(values, np.float32)})


def _of_float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _numbers(step: Tensor | BatchNorm) -> Layer:
    """A bias or a batch norm as it acts on numbers, in the order of torch's operations."""
    if isinstance(step, Tensor):
        return Layer("bias", arrays={"bias": _array(step)})
    assert step.running_mean is not None and step.running_var is not None
    scale = 1 / torch.sqrt(step.running_var + step.eps)
    if step.affine:
        scale = scale * step.weight.detach()
    shift = -step.running_mean * scale
    if step.affine:
        shift = step.bias.detach() + shift
    return Layer("norm", arrays={"scale": _array(scale), "shift": _array(shift)})


def _array(values: Tensor) -> Array:
    return np.ascontiguousarray(values.detach().cpu().numpy(), np.float32)


# Thresholds ---------------------------------------------------------------------------------------


def _threshold(layer: Layer, after: list[Tensor | BatchNorm]) -> Layer:
    """Where the sign behind a sum changes, for each unit, by trying every sum that can occur."""
    bits = layer.arrays["bits"]
    most = layer.options["inputs"] * int(np.prod(bits.shape[1:-1]))
    plus = _signs_of_sums(most, len(bits), after)
    up = plus[-1]
    at = (plus == up).argmax(0) - most  # the first sum of the last ones; -most of a constant unit
    return Layer("threshold", arrays={"at": at.astype(np.int32), "up": up})


@torch.no_grad()
def _signs_of_sums(most: int, units: int, after: list[Tensor | BatchNorm]) -> Array:
    """Whether the unit is +1 at each sum from -most to most, (2 most + 1, units)."""
    own = [s if isinstance(s, Tensor) else s.running_var for s in after]
    dtype = own[0].dtype if own and own[0] is not None else torch.float32
    a = torch.arange(-most, most + 1, dtype=dtype)[:, None].repeat(1, units)
    for step in after:
        if isinstance(step, Tensor):
            a = a + step
        else:
            a = step(a[..., None, None])[..., 0, 0] if isinstance(step, nn.BatchNorm2d) else step(a)
    plus = (a >= 0).numpy()
    assert (np.abs(np.diff(plus.astype(np.int8), axis=0)).sum(0) <= 1).all()
    return plus
