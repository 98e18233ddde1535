"""What a network is made of and what one input costs: bits, bytes and operations."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sbnlib.inference import (
    PlainLevels,
    PlainLevelsMean,
    PlainSign,
    _check_module,
    in_evaluation_mode,
)
from sbnlib.nn import Levels, Sign, _Bernoulli

__all__ = ["Cost", "Summary", "summary"]


@dataclass(frozen=True)
class Cost:
    r"""What one layer holds, and what it does for one input.

    Attributes:
        name: where it is in the network; ``"total"`` for all of them.
        kind: the name of its class.
        units: bits of state, one a binary unit, :math:`\log_2 C` rounded up a unit of C levels.
        binary: weights that are -1 or +1, one bit each.
        real: other parameters and running statistics.
        bytes: for both: the bits packed, the others in their own dtype.
        xnor: products of a sign with a sign, which XNOR and a count of bits can do 64 at a time.
        additions: products of which one factor is a sign, so that only its sign is changed.
        multiplications: products of two real numbers.
    """

    name: str
    kind: str
    units: int = 0
    binary: int = 0
    real: int = 0
    bytes: int = 0
    xnor: int = 0
    additions: int = 0
    multiplications: int = 0


#: Layers whose operations are known, and those that have none once a threshold has absorbed them.
LAYERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, _Bernoulli)
NORMS = (torch.nn.modules.batchnorm._BatchNorm,)
UNITS = (Sign, Levels, PlainSign, PlainLevels)

COUNTS = [field.name for field in fields(Cost) if field.name not in ("name", "kind")]


@dataclass(frozen=True)
class Summary:
    """The costs of a network; printed, it is a table.

    Attributes:
        layers: one :class:`Cost` a layer, in the order in which they run.
        uncounted: layers with parameters of their own whose operations are not known here, or that
            did not run.
    """

    layers: tuple[Cost, ...]
    uncounted: tuple[str, ...]

    @property
    def total(self) -> Cost:
        """The sum over the layers."""
        sums = {name: sum(getattr(layer, name) for layer in self.layers) for name in COUNTS}
        return Cost("total", "", **sums)

    def __str__(self) -> str:
        rows = [("layer", "", *COUNTS)]
        for cost in (*self.layers, self.total):
            rows.append((cost.name, cost.kind, *(f"{getattr(cost, n):,}" for n in COUNTS)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_line(row, widths) for row in rows]
        if self.uncounted:
            lines.append(f"operations not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Words to the left, numbers to the right."""
    words = [text.ljust(w) for text, w in zip(row[:2], widths[:2], strict=True)]
    numbers = [text.rjust(w) for text, w in zip(row[2:], widths[2:], strict=True)]
    return "  ".join([*words, *numbers]).rstrip()


def summary(net: torch.nn.Module, inputs: Tensor) -> Summary:
    """Count what a network holds and does, layer by layer, by running it once.

    Whether a factor is a sign is looked at, not assumed. A weight counts as binary where all its
    values are -1 or +1, which is so after :func:`sbnlib.to_plain` too, and a Bernoulli weight in
    mode ``"sample"`` or ``"sign"``. What comes into a layer counts as binary where all of it is -1
    or +1 while ``inputs`` pass through, unless a convolution adds zeros around it.

    Args:
        net: any module.
        inputs: ``(B, ...)``, typical ones. Counts are for one of them.

    Returns:
        A :class:`Summary`. Operations are the products of fully connected layers and convolutions;
        products at the margin that a convolution adds are among them; batch norm (which a
        threshold absorbs) and elementwise work are left out, and other layers
        with parameters are named in ``uncounted``.

    Raises:
        TypeError: ``net`` is not a module.
        ValueError: ``inputs`` has no axis of the batch, or none in it.

    Training mode, running statistics and the global random numbers are left as they were.
    """
    _check_module(net)
    if not isinstance(inputs, Tensor) or inputs.dim() < 2 or not len(inputs):
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs must be a batch (B, ...) with B >= 1, got {got}")
    names = {module: name or "net" for name, module in net.named_modules()}
    runs: dict[torch.nn.Module, list[tuple[bool, int]]] = {}

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
        if isinstance(out, Tensor) and x is not None:
            signs = _are_signs(x) and not _adds_zeros(module)
            runs.setdefault(module, []).append((signs, out.numel() // len(inputs)))

    kept = [m for m in net.modules() if isinstance(m, UNITS) or _own(m)]
    handles = [m.register_forward_hook(note, with_kwargs=True) for m in kept]
    devices = [inputs.device] if inputs.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), in_evaluation_mode(net):
            net(inputs)
    finally:
        for handle in handles:
            handle.remove()
    ordered = [*runs, *(m for m in kept if m not in runs)]
    seen: set[int] = set()
    layers = [_cost(names[m], m, runs.get(m, []), seen) for m in ordered]
    counted = [m for m in runs if isinstance(m, (*LAYERS, *NORMS, *UNITS))]
    unknown = [names[m] for m in ordered if _own(m) and m not in counted]
    return Summary(tuple(layers), tuple(unknown))


def _own(module: torch.nn.Module) -> list[Tensor]:
    """The parameters and running statistics that a module holds itself."""
    held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [tensor for tensor in held if tensor.is_floating_point()]


def _cost(name: str, module: torch.nn.Module, runs: list[tuple[bool, int]], seen: set[int]) -> Cost:
    """The costs of a layer; a tensor that an earlier one holds, in ``seen``, is held there."""
    kind = type(module).__name__
    if isinstance(module, UNITS):
        return Cost(name, kind, units=_bits(module) * sum(size for _, size in runs))
    signs = _binary_weight(module)
    new = [tensor for tensor in _own(module) if id(tensor) not in seen]
    seen.update(map(id, new))
    binary = sum(tensor.numel() for tensor in new if tensor is signs)
    real = [tensor for tensor in new if tensor is not signs]
    size = math.ceil(binary / 8) + sum(t.numel() * t.element_size() for t in real)
    held = {"binary": binary, "real": sum(t.numel() for t in real), "bytes": size}
    return Cost(name, kind, **held, **_products(module, runs, signs is not None))


def _bits(module: Any) -> int:
    """The bits of one unit's state; a mean is none."""
    if getattr(module, "mode", "sign") == "mean" or isinstance(module, PlainLevelsMean):
        return 0
    return math.ceil(math.log2(len(getattr(module, "thresholds", (0,))) + 1))


def _binary_weight(module: torch.nn.Module) -> Tensor | None:
    """The parameter that stands for signs, if there is one."""
    if isinstance(module, _Bernoulli):
        return module.eta if module.mode in ("sample", "sign") else None
    if not isinstance(module, LAYERS):
        return None
    weight: Any = module.weight
    return weight if _are_signs(weight) else None


def _products(
    module: torch.nn.Module, runs: list[tuple[bool, int]], binary: bool
) -> dict[str, int]:
    """The products of one input, by how many of their two factors are signs."""
    counts = {"multiplications": 0, "additions": 0, "xnor": 0}
    if isinstance(module, LAYERS):
        terms = (module.eta if isinstance(module, _Bernoulli) else module.weight)[0].numel()
        for signs, size in runs:
            counts[list(counts)[binary + signs]] += size * terms
    return counts


def _are_signs(values: Tensor) -> bool:
    return bool((values.abs() == 1).all())


def _adds_zeros(module: Any) -> bool:
    """Whether a convolution pads its input with zeros, which are not signs."""
    padding = getattr(module, "padding", ())
    pads = padding == "same" or not isinstance(padding, str) and any(padding)
    return pads and module.padding_mode == "zeros" and not getattr(module, "pad_value", 0)
