"""What every check does: look at something while it runs, put all of it back, say what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real

import torch
from torch import Tensor

from sbnlib.diagnose.findings import Finding, number
from sbnlib.diagnose.keeping import Kept, seeded, settled
from sbnlib.diagnose.watching import tensors

__all__ = ["Parameters", "changed", "frozen", "judged", "listed", "named", "number", "real",
           "same_tensors", "share"]  # fmt: skip

#: What a check takes for parameters: a module, tensors by name, or tensors.
Parameters = torch.nn.Module | Mapping[str, Tensor] | Iterable[Tensor]

#: The seed of every run of a check: the same answer each time.
SEED = 0


def judged(code: str, wrong: object, fault: str, right: str, advice: str) -> Finding:
    """The finding: the words of the fault with its advice, or the words of what is right."""
    return Finding(code, True, fault, advice) if wrong else Finding(code, False, right)


@contextmanager
def frozen(*held: torch.nn.Module | Mapping[str, Tensor]) -> Iterator[None]:
    """What is run in this finds torch's generators at a seed; afterwards all is as it was.

    Args:
        held: what may be changed: parameters, buffers, gradients and modes are put back.
    """
    parts = torch.nn.Module()
    for k, one in enumerate(held):
        if isinstance(one, torch.nn.Module):
            parts.add_module(f"_{k}", one)
        else:
            # past torch, which would make parameters of plain tensors
            parts.__dict__.update({f"_{k}_{j}": t for j, t in enumerate(one.values())})
    first = next(iter(named(parts).values()), None)
    device = torch.device("cpu") if first is None else first.device
    with Kept(parts), settled(device), seeded(SEED, device):
        yield


def named(params: object) -> dict[str, Tensor]:
    """The tensors by name: a module's own names, or the place where each stands."""
    if isinstance(params, torch.nn.Module):
        loose = {n: t for n, t in vars(params).items() if isinstance(t, Tensor)}
        return dict(params.named_parameters()) | loose
    if isinstance(params, Mapping):
        found = dict(params)
    elif isinstance(params, Iterable) and not isinstance(params, Tensor):
        found = {f"parameter {k}": t for k, t in enumerate(params)}
    else:
        found = {}
    if not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise TypeError("params must be a module, or tensors in a list or by name, at least one, "
                        f"got {params if isinstance(params, Tensor) else type(params).__name__}"
                        )  # fmt: skip
    return found


def changed(tensors: Mapping[str, Tensor], fn: Callable[[], object]) -> list[str]:
    """The names of the tensors whose values are others after ``fn()``."""
    before = {name: t.detach().clone() for name, t in tensors.items()}
    fn()
    return [name for name, t in tensors.items() if not _equal(t.detach(), before[name])]


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def same_tensors(one: object, other: object) -> bool:
    """Whether two results hold equal tensors."""
    pairs = list(tensors(one)), list(tensors(other))
    return len(pairs[0]) == len(pairs[1]) and all(map(_equal, *pairs))


def listed(names: list[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def share(value: float) -> str:
    """A share in percent."""
    return f"{number(100 * value)} %"


def real(name: str, value: object) -> float:
    """What a function under test returned, as a number.

    Raises:
        TypeError: it is none.
    """
    one = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(one, Real):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must return a number, got {got}")
    return float(one)
