"""What exact sums ask of layers, losses and memory: found out by trying, not from names of classes.

An exact sum evaluates a layer at all states at once, and the loss at all of them for every input.
So what a row gives must depend on that row alone: not on chance, not on the other rows, not on the
place where it stands. A layer is tried on 64 rows and again on half of them in another order: what
depends on chance is another number, what depends on the other rows misses some, and what depends on
the place has moved. A loss is tried again with every second row exchanged. What they change of
themselves, or of torch's random numbers, is seen and put back.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sbnlib.contracts import Loss, evaluate, is_finite, is_traced
from sbnlib.inference import in_evaluation_mode
from sbnlib.network import SBN
from sbnlib.nn import RANDOM_WEIGHTS, Sign

__all__ = [
    "Watch",
    "check_finite",
    "check_layers",
    "check_loss",
    "check_memory",
    "every_other",
    "free_bytes",
    "same",
    "signs",
    "uniforms",
]

#: Widths above this need more memory than a laptop has (2^24 states).
MAX_WIDTH = 24

#: Rows on which a layer or a loss is tried.
ROWS = 64

#: What is wrong with something that depends on chance, or on how often it was called.
OTHER_NUMBERS = "gives other numbers when it is called again"

#: By how much the same row may differ in two calls, relative to the largest number: products of
#: matrices with 64 and with 32 rows round differently.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}

#: What an exact sum may take over its estimate.
MARGIN = 1.6

#: Bytes below which an exact sum is not compared with what is free.
SMALL = 1 << 26


# ---- layers --------------------------------------------------------------------------------------


def check_layers(net: SBN, inputs: Tensor) -> list[Tensor]:
    """Each layer must map rows to rows, each of which depends on one row alone.

    Args:
        net: its layers map (rows, n) to (rows, m).
        inputs: ``(B, n_0)``. The first layer is tried on these, the others on states.

    Returns:
        What each layer gave when it was tried: as many columns as it has units.

    Raises:
        ValueError: autocast is on, or a layer has random weights, does not map rows to rows, gives
            half precision, NaN or infinity, depends on more than the row, or has no units or
            more than 24. It names the layer.
    """
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind):
        raise ValueError("exact sums must be taken outside torch.autocast, which is on here and "
                         f"computes in {torch.get_autocast_dtype(kind)}")  # fmt: skip
    rows = inputs.detach()[(uniforms(ROWS) * len(inputs)).long()]
    states, outputs = signs(ROWS, MAX_WIDTH, like=inputs), []
    for k, layer in enumerate(net.layers):
        trial = _Trial(layer, k, rows)
        trial.check_weights()
        out, fault = trial.run()
        if fault:
            raise ValueError("exact sums need layers that treat each row by itself, "
                             f"{trial.name} {fault}{trial.cure()}")  # fmt: skip
        if not 1 <= out.shape[1] <= MAX_WIDTH:
            raise ValueError(f"exact sums take at least one and at most {MAX_WIDTH} units a layer, "
                             f"{trial.name} has {out.shape[1]}")  # fmt: skip
        outputs.append(out)
        rows = states[:, : out.shape[1]].to(out.dtype)
    return outputs


@dataclass
class _Trial:
    """Layer ``number`` of a network on 64 rows."""

    layer: torch.nn.Module
    number: int
    rows: Tensor

    @property
    def name(self) -> str:
        """Its number and its class, for a container also those of what it holds."""
        inner = [m for m in self.layer.modules() if m is not self.layer and not any(m.children())]
        of = f" of {', '.join(type(m).__name__ for m in inner)}" if inner else ""
        return f"layer {self.number} ({type(self.layer).__name__}{of})"

    def check_weights(self) -> None:
        for module in self.layer.modules():
            if isinstance(module, RANDOM_WEIGHTS):
                raise ValueError(
                    f"{self.name} holds {type(module).__name__}, whose weights are random; exact "
                    "sums are over the states of units only"
                )
            if isinstance(module, Sign) and module.mode == "sign":
                raise ValueError(
                    f"{self.name} holds a binary unit in mode 'sign', whose gradient is an "
                    "estimate; an SBN puts a unit behind each of its layers by itself"
                )
        if any(map(is_lazy, self.layer.parameters())):
            raise ValueError(f"{self.name} has no weights yet, run net(inputs) once")

    def run(self) -> tuple[Tensor, str]:
        """What the layer gives, and what is wrong with it; "" if nothing is."""
        with Watch(self.rows.device, self.layer) as watch:
            out, half = self._at(self.rows), self._at(_half(self.rows))
        fault = watch.drew or self._infinite(out)
        if not fault and not same(half, _half(out)):
            fault = self._dependence(out)
        return out, fault or watch.changed

    def cure(self) -> str:
        with in_evaluation_mode(self.layer):
            return "" if self.run()[1] else "; call net.eval() first"

    def _at(self, rows: Tensor) -> Tensor:
        """The layer at a copy of ``rows``, which it may change in place."""
        try:
            out = self.layer(rows.clone())
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
            raise self._misfit(rows, f"with {len(rows)} rows it raised {raised}") from error
        if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(rows):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise self._misfit(rows, f"from {tuple(rows.shape)} it made {got}")
        if out.dtype not in TOLERANCE:
            raise self._misfit(rows, f"it gives {out.dtype}, not float32 or float64")
        return out.detach()

    def _misfit(self, rows: Tensor, found: str) -> ValueError:
        takes = f"rows of {rows.shape[1]} {'states' if self.number else 'inputs'}"
        return ValueError(
            f"exact sums need fully connected layers, {self.name} must map {takes} to rows: {found}"
        )

    def _infinite(self, out: Tensor) -> str:
        if is_traced(out) or is_finite(out):
            return ""
        named = chain(self.layer.named_parameters(), self.layer.named_buffers())
        bad = [name for name, t in named if not is_finite(t)]
        return "gives NaN or infinity" + (f", which its {', '.join(bad)} holds" if bad else "")

    def _dependence(self, out: Tensor) -> str:
        with Watch(self.rows.device, self.layer):
            if not all(same(self._at(self.rows), out) for _ in range(2)):
                return OTHER_NUMBERS
            coupled = self._moves_others(0, out) or self._moves_others(-1, out)
        return f"depends on {'the other rows' if coupled else 'where a row stands, or how many'}"

    def _moves_others(self, row: int, out: Tensor) -> bool:
        rows = self.rows.clone()
        rows[row] *= -1
        return not same(self._at(rows)[1:-1], out[1:-1])


def _half(rows: Tensor) -> Tensor:
    """Rows 62, 60, ..., 0: the neighbour of a row is another one."""
    return rows[::2].flip(0)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, up to rounding relative to the largest number; not if NaN.

    Where nobody can look it is taken for granted.
    """
    if is_traced(a) or is_traced(b) or torch.equal(a, b):
        return True
    tolerance = TOLERANCE.get(b.dtype, 0.0) * b.abs().max()
    return bool((a - b).abs().max() <= tolerance)


def uniforms(*shape: int) -> Tensor:
    """Numbers in [0, 1) that look random, always the same ones.

    A generator would do, but not inside vmap.
    """
    i = torch.arange(math.prod(shape), dtype=torch.float64, device="cpu")
    return i.square_().mul_(0.6180339887).frac_().view(shape)


def signs(*shape: int, like: Tensor) -> Tensor:
    """Random signs, always the same ones, in ``like``'s dtype and on its device."""
    return (uniforms(*shape) < 0.5).to(like.device, like.dtype).mul_(2).sub_(1)


def every_other(rows: int, columns: int, *, device: torch.device) -> Tensor:
    """A board of ``rows`` by ``columns`` fields, True on the black ones."""
    i, j = (torch.arange(count, device=device) for count in (rows, columns))
    return (i[:, None] + j) % 2 > 0


class Watch:
    """Sees what running something changes, and puts it back at the end.

    Attributes:
        drew: "draws random numbers" if the state of torch's generators moved, else "".
        changed: "changes its own NAME" for a parameter or a buffer of the modules, else "".
    """

    def __init__(self, device: torch.device, *modules: torch.nn.Module) -> None:
        self.device, self.modules = device, modules
        self.drew = self.changed = ""

    def __enter__(self) -> Watch:
        self.random = self._random_states()
        self.state: list[tuple[dict[str, Any], str, Tensor, Tensor]] = [
            (own, name, t, t.detach().clone())
            for module in self.modules
            for part in module.modules()
            for own in (part._parameters, part._buffers)
            for name, t in own.items()
            if t is not None and t.layout is torch.strided and not is_traced(t)
        ]
        return self

    def __exit__(self, *error: object) -> None:
        if not all(map(torch.equal, self.random, self._random_states())):
            self.drew = "draws random numbers"
            torch.set_rng_state(self.random[0])
            if self.random[1:]:
                torch.cuda.set_rng_state(self.random[1], self.device)
        for own, name, t, old in self.state:
            if own.get(name) is not t or not _identical(t, old):
                self.changed = self.changed or f"changes its own {name}"
                own[name] = t
                t.data.copy_(old)

    def check_chance(self) -> None:
        """What draws at some states only may not be seen when it is tried on a few."""
        if self.drew:
            raise ValueError("exact sums must not depend on chance, at some states a layer, the "
                             f"loss or the estimator {self.drew}")  # fmt: skip

    def _random_states(self) -> list[Tensor]:
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *cuda]


def _identical(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())  # NaN is not NaN


# ---- losses --------------------------------------------------------------------------------------


def check_loss(loss: Loss, batch: int, like: Tensor, *, slopes: bool = False) -> None:
    """The value of a row must depend on that row of x alone.

    Args:
        loss: states ``(..., batch, n)`` to values ``(..., batch)``; may close over targets.
        like: a tensor of n columns, in the states' dtype and on their device.
        slopes: whether x will require a gradient.

    Raises:
        ValueError: the loss has the wrong shape, draws random numbers, gives NaN or infinity, or
            couples rows, of the batch or in front of it.
    """
    x = signs(2 + ROWS // batch, batch, like.shape[1], like=like)
    x = x.requires_grad_() if slopes else x
    odd = every_other(*x.shape[:2], device=x.device)[..., None]
    modules = [loss] if isinstance(loss, torch.nn.Module) else []
    with Watch(like.device, *modules) as watch:
        values = evaluate(loss, x).detach()
        check_finite(values)
        # Half of the rows become +1: other random signs could have the mean of those before.
        changed = evaluate(loss, x.masked_fill(odd, 1)).detach()
        coupled = not same(changed.where(~odd[..., 0], values), values)
        repeated = not coupled or same(evaluate(loss, x).detach(), values)
    if watch.drew or not repeated:
        raise ValueError(f"loss must be a function of x, it {watch.drew or OTHER_NUMBERS}")
    if coupled:
        raise ValueError(
            "loss must give each row of x a value of its own, one changed with another row of x "
            "(a mean, a softmax or batch norm over the batch?)"
        )


def check_finite(values: Tensor) -> None:
    """Values of the loss, or their expectation, must be neither NaN nor infinite."""
    if not is_traced(values) and not is_finite(values):
        found = values[~values.isfinite()][0].item()
        raise ValueError(f"loss must be finite at every state, got {found}")


# ---- memory --------------------------------------------------------------------------------------


def check_memory(need: float, device: torch.device, what: str) -> None:
    """Refuse an exact sum that may need more bytes than are free.

    Args:
        need: estimated bytes; up to 1.6 times as many were seen.
        what: the sum, for the message.

    Raises:
        ValueError: 1.6 times ``need`` is more than what is free on ``device``.
    """
    if need > SMALL and (most := MARGIN * need) > (free := free_bytes(device)):
        raise ValueError(f"{what} may take {most / 2**30:.3g} GiB, {free / 2**30:.3g} GiB are free "
                         f"on {device}; narrower neighbouring layers take less")  # fmt: skip


def free_bytes(device: torch.device) -> float:
    """Bytes that can still be had on a device; inf where nobody tells."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return math.inf
    free = 1024 * _number("/proc/meminfo", "MemAvailable:")
    group = Path("/sys/fs/cgroup")  # what a container may have
    limit = _number(group / "memory.max")
    if limit < math.inf:  # pages of files are given up when they are needed: they do not count
        limit -= _number(group / "memory.stat", "anon")
    return min(free if free < math.inf else _physical_bytes(), limit)


def _number(path: str | Path, name: str = "") -> float:
    """The number behind ``name`` in a file of the system; inf if there is none."""
    try:
        found = re.search(rf"^{name}\s*(\d+)", Path(path).read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) if found else math.inf


def _physical_bytes() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every system
        return math.inf
