"""A unit as something that can be run: on any points, with any incoming gradient, repeatably."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sbnlib.diagnose.keeping import Kept, mode, seeded, settled

__all__ = ["FAULTS", "Function", "RefusedError", "Subject", "raised"]

#: What code that is tried may raise; an interrupt is the caller's.
FAULTS = (Exception, SystemExit)


class RefusedError(Exception):
    """A unit cannot be run, or does not give what a unit gives.

    Attributes:
        code, words, advice: of the finding; words without a capital and a full stop.
    """

    def __init__(self, code: str, words: str, advice: str = "") -> None:
        super().__init__(words)
        self.code, self.words, self.advice = code, words, advice


class Subject(ABC):
    """A unit under examination.

    Attributes:
        device, dtype: of the points that it is run at.
        size: how many points it takes at a time; 1 if any number.
        most: to how many points a question may be put.
        positions: the entries that are asked, of those that it takes at a time; None for all.
        changes_input: whether a run has changed its argument in place.
        prints: the pass, "forward" or "backward", in which it has printed something; else "".
        given: the dtype of the states.
        kept: what is put back before each run, so that all runs find the same.
    """

    device = torch.device("cpu")
    dtype = torch.float64
    changes_input = False
    prints = ""
    given = torch.float64
    size = 1
    most = 1 << 24
    positions: Tensor | None = None
    kept = Kept(None)

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

    def narrow(self) -> None:
        """From now on, ask fewer of its entries: those of the first channel, or a part of these."""
        raise RefusedError("not-elementwise", "what it does depends on where an entry stands")

    def _keep_first(self, index: Tensor, axis: int) -> None:
        """Asks the first channel; if that is done already, the first entry of each row; or one."""
        rows = index.flatten(axis)
        choices = (index.select(axis, 0), rows.select(axis, 0), index.flatten()[:1])
        fewer = [c.flatten() for c in choices if c.numel() < self.size]
        if not fewer:
            raise RefusedError("not-elementwise", "what it does depends on where an entry stands")
        self.positions, self.size = fewer[0].to(self.device), len(fewer[0])

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
            x = self.states(leaf)
            g = self._flowing(x, leaf, flow) if x.requires_grad else None
        return x.detach().double().cpu(), None if g is None else g.detach().double().cpu()

    def _flowing(self, x: Tensor, leaf: Tensor, flow: Tensor | float) -> Tensor | None:
        up = torch.as_tensor(flow, dtype=x.dtype, device=x.device).expand_as(x).contiguous()
        with torch.enable_grad(), self._listening("backward"):
            try:
                return torch.autograd.grad(x, leaf, up, allow_unused=True)[0]
            except FAULTS as error:
                raise raised(error, "in its backward pass it") from error

    @contextmanager
    def _listening(self, which: str) -> Iterator[None]:
        """What a pass prints is kept from the reader, who would get it thousands of times."""
        try:
            with redirect_stdout(io.StringIO()) as said:
                yield
        finally:
            self.prints = which if said.getvalue() else self.prints

    def rounded(self, a: Tensor) -> Tensor:
        """The points at which a run at ``a`` takes place."""
        return a.clamp(-self.reach, self.reach).to(self.dtype).double()

    def _handed(self, a: Tensor) -> Tensor:
        """What the unit gets: it may change this in place, or not notice that it is no leaf."""
        return a.clone()

    def _check(self, a: Tensor, handed: Tensor, x: object) -> Tensor:
        if not isinstance(x, Tensor):
            raise RefusedError("no-tensor", f"it returns {_article(type(x).__name__)}, no tensor")
        if x.layout is not torch.strided or x.is_complex() or x.is_meta or x.is_quantized:
            kinds = {"complex": x.is_complex(), "empty": x.is_meta, "quantized": x.is_quantized}
            kind = next((kind for kind, is_so in kinds.items() if is_so), "sparse")
            raise RefusedError("no-tensor", f"it returns {_article(kind)} tensor, which no unit is")
        if x.shape != handed.shape:
            raise RefusedError("shape", f"from {tuple(handed.shape)} it makes {tuple(x.shape)}")
        now = handed.detach().reshape(-1)
        if now.dtype is not a.dtype or not torch.equal(now, a.detach()):
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
        module: what has the modes, and is kept, if anything.
        shape: behind the axis of the points.
    """

    call: Callable[[Tensor], object]
    module: torch.nn.Module | None
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    kept: Kept = field(default_factory=lambda: Kept(None))
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        self.size = torch.Size(self.shape).numel()

    def states(self, a: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(a, (0, -len(a) % self.size)).reshape(-1, self.size)
        if self.positions is not None:
            whole = padded.new_zeros(len(padded), torch.Size(self.shape).numel())
            padded = whole.index_copy(1, self.positions, padded)
        handed = self._handed(padded.reshape(-1, *self.shape))
        self.kept.back()
        try:
            with settled(self.device), self.kept.at_home(), self._listening("forward"):
                x = self.call(handed)
        except FAULTS as error:
            raise raised(error) from error
        x = self._check(padded.reshape(-1), handed, x).reshape(padded.shape)
        asked = x if self.positions is None else x[:, self.positions]
        return asked.reshape(-1)[: len(a)]

    def narrow(self) -> None:
        if not self.shape:
            super().narrow()
        self._keep_first(torch.arange(torch.Size(self.shape).numel()).reshape(self.shape), 0)

    def whole(self) -> Function:
        """With all of its entries."""
        return replace(self, positions=None)

    def as_batch(self) -> tuple[Subject, int]:
        any_shape = self.positions is None and self.size == 1
        return (replace(self, shape=(32,)), 32) if any_shape else (self, 0)

    @property
    def has_mode(self) -> bool:
        return self.module is not None

    @contextmanager
    def in_eval(self) -> Iterator[None]:
        with mode(self.module, training=False):
            yield


def raised(error: BaseException, what: str = "it", most: int = 200) -> RefusedError:
    """The refusal of something that raised an error."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "an error without words"
    text = text if len(text) <= most else f"{text[:most]} ..."
    return RefusedError("raises", f"{what} raises {type(error).__name__}: {text}")
