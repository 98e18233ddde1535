"""A unit as something that can be run: on any points, with any incoming gradient, repeatably."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor

__all__ = ["Function", "RefusedError", "Subject", "seeded"]


class RefusedError(Exception):
    """A unit cannot be run, or does not give what a unit gives; ``code`` is that of the finding."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code, self.words = code, words


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The random generators that units draw from, at a seed, and put back afterwards."""
    devices = [device] if device.type == "cuda" else []
    python, numbers = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed)
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numbers)


class Subject(ABC):
    """A unit under examination.

    Attributes:
        device, dtype: of the points that it is run at.
        size: how many points it takes at a time; 1 if any number.
        most: to how many points a question may be put.
        changes_input: whether a run has changed its argument in place.
        given: the dtype of the states.
    """

    device = torch.device("cpu")
    dtype = torch.float64
    changes_input = False
    given = torch.float64
    size = 1
    most = 1 << 24

    @property
    def rounding(self) -> float:
        """By how much slopes that should be equal may differ, relative to the largest."""
        known = {torch.float64: 1e-9, torch.float32: 1e-4}
        return max(known.get(self.dtype, 0.03), known.get(self.given, 0.03))

    @abstractmethod
    def states(self, a: Tensor) -> Tensor:
        """The states at points (N,), with their graph.

        Raises:
            RefusedError: the unit does not return states.
        """

    @abstractmethod
    @contextmanager
    def in_eval(self) -> Iterator[None]:
        """In evaluation mode, where there is one."""
        yield

    @property
    def has_mode(self) -> bool:
        """Whether there is an evaluation mode."""
        return False

    def as_batch(self) -> tuple[Subject, int]:
        """The unit as one that takes a batch of rows, and how many; 0 if it takes none."""
        return self, 0

    def only_first_channel(self) -> None:
        """From now on, run the first channel alone."""
        raise RefusedError("not-elementwise", "what it does depends on where an entry stands")

    @property
    def reach(self) -> float:
        """The largest point that it is asked at: in half precision x + (m - m) is lost beyond."""
        eps = torch.finfo(self.dtype).eps
        return 1e7 if eps < 1e-6 else 1 / (4 * eps)

    def run(
        self, a: Tensor, flow: Tensor | float = 1.0, *, seed: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """The states at points (N,), and what a gradient ``flow`` that comes in is turned into.

        Returns:
            Two float64 tensors (N,); None for the second where there is no graph.
        """
        with seeded(seed, self.device), torch.enable_grad():
            asked = a.detach().clamp(-self.reach, self.reach)
            leaf = asked.to(self.device, self.dtype, copy=True).requires_grad_()
            try:
                x = self.states(leaf)
            except RefusedError:
                raise
            except Exception as error:  # whatever its result is
                raise _raised(error) from error
            if not x.requires_grad:
                return x.detach().double().cpu(), None
            flowing = torch.as_tensor(flow, dtype=x.dtype, device=x.device).expand_as(x)
            try:
                (g,) = torch.autograd.grad(x, leaf, flowing.contiguous(), allow_unused=True)
            except Exception as error:
                raise _raised(error, "in its backward pass ") from error
        found = None if g is None else g.detach().double().cpu()
        return x.detach().double().cpu(), found

    def rounded(self, a: Tensor) -> Tensor:
        """The points at which a run at ``a`` takes place."""
        return a.clamp(-self.reach, self.reach).to(self.dtype).double()

    def _handed(self, a: Tensor) -> Tensor:
        """What the unit gets: it may change this in place, or not notice that it is no leaf."""
        return a.clone()

    def _check(self, a: Tensor, handed: Tensor, x: object) -> Tensor:
        if not isinstance(x, Tensor):
            raise RefusedError("no-tensor", f"it returns {_article(type(x).__name__)}, no tensor")
        if x.layout is not torch.strided or x.is_complex():
            kind = "complex" if x.is_complex() else "sparse"
            raise RefusedError("no-tensor", f"it returns a {kind} tensor, no real numbers for each "
                               "entry")  # fmt: skip
        if x.shape != handed.shape:
            raise RefusedError("shape", f"from {tuple(handed.shape)} it makes {tuple(x.shape)}")
        if not torch.equal(handed.detach().reshape(-1), a.detach()):
            self.changes_input = True
        if not x.is_floating_point():
            return x.to(a.dtype)
        self.given = x.dtype
        return x


def _article(name: str) -> str:
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


@dataclass
class Function(Subject):
    """A function of a tensor.

    Attributes:
        call: the function.
        module: what has the modes, if anything.
        shape: behind the axis of the points.
    """

    call: Callable[[Tensor], object]
    module: torch.nn.Module | None
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.size = torch.Size(self.shape).numel()

    def states(self, a: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(a, (0, -len(a) % self.size))
        handed = self._handed(padded.reshape(-1, *self.shape))
        try:
            x = self.call(handed)
        except Exception as error:
            raise _raised(error) from error
        return self._check(padded, handed, x).reshape(-1)[: len(a)]

    def as_batch(self) -> tuple[Subject, int]:
        return replace(self, shape=(32,)), 32

    @property
    def has_mode(self) -> bool:
        return self.module is not None

    @contextmanager
    def in_eval(self) -> Iterator[None]:
        with mode(self.module, training=False):
            yield


@contextmanager
def mode(module: torch.nn.Module | None, *, training: bool) -> Iterator[None]:
    """The module in training or in evaluation mode; afterwards each part in the mode it had."""
    before = [] if module is None else [(part, part.training) for part in module.modules()]
    try:
        if module is not None:
            module.train(training)
        yield
    finally:
        for part, was in before:
            part.training = was


def _raised(error: Exception, where: str = "", most: int = 200) -> RefusedError:
    text = " ".join(str(error).split())
    text = text if len(text) <= most else f"{text[:most]} ..."
    return RefusedError("raises", f"{where}it raises {type(error).__name__}: {text}")
