"""What looking at code must leave as it is: a module's own, random generators, torch's settings."""

from __future__ import annotations

import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

__all__ = ["Kept", "mode", "seeded", "settled", "uncompiled"]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The random generators that units draw from, at a seed, and put back afterwards."""
    python, numbers = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":  # torch.manual_seed would note it down for each other kind
                torch.cuda.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed)
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numbers)


@contextmanager
def settled(device: torch.device) -> Iterator[None]:
    """Gradients are on, and what is set for all of torch is put back.

    Code may change this and leave it so, above all where it fails or is cut off.
    """
    kinds = {"cpu", device.type} - {"meta"}
    settings: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (_anomaly, lambda was: torch.autograd.set_detect_anomaly(*was)),
        (_strictness, lambda was: torch.use_deterministic_algorithms(was[0], warn_only=was[1])),
        *((partial(torch.is_autocast_enabled, k), partial(torch.set_autocast_enabled, k))
          for k in kinds),
        *((partial(torch.get_autocast_dtype, k), partial(torch.set_autocast_dtype, k))
          for k in kinds),
    ]  # fmt: skip
    before = [get() for get, _ in settings]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for (get, put), was in zip(settings, before, strict=True):
            if get() != was:
                put(was)


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _strictness() -> tuple[bool, bool]:
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warns


def uncompiled() -> Any:
    """What torch.compile has compiled runs as it was written, where it can be watched."""
    compiles = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


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


#: What each module has; hooks are rarely changed by a forward pass, and there are many.
_HOOKS = vars(torch.nn.Module()).keys() - {"_parameters", "_buffers", "_modules"}


class Kept:
    """What a module holds: tensors, gradients, modes, and attributes of its own.

    Lists, dicts and sets among the attributes are put back with what they held, other objects as
    they are: what is changed inside of them stays so, but for generators of random numbers.

    Args:
        module: what is kept.
        home: where the caller's code makes tensors of which it does not say where.
    """

    def __init__(self, module: torch.nn.Module | None, home: torch.device | None = None) -> None:
        self.home = home or torch.device("cpu")
        parts = [] if module is None else list(module.modules())
        held = [vars(part) for part in parts]
        own = [*parts, *(t for part in parts for t in _tensors(part))]
        self.modes = [(part, part.training) for part in parts]
        self.attributes = [(vars(one), dict(vars(one))) for one in own]
        contents = [_content(value) for own in held for name, value in own.items()
                    if name not in _HOOKS]  # fmt: skip
        self.contents = [put for put in contents if put is not _nothing]
        self.draws = [_state(value) for attributes in held for value in attributes.values()]
        self.tensors = {id(t): _Copy(t) for part in parts for t in _tensors(part)}.values()

    def at_home(self) -> Any:
        """What is run in this makes tensors where the caller's code does."""
        return nullcontext() if self.home.type == "cpu" else torch.device(self.home)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        self.back()
        for part, was in self.modes:
            part.training = was
        for copy in self.tensors:
            copy.whole()
        for put in self.draws:
            put()

    def back(self) -> None:
        """Put attributes and tensors back as another run should find them, but not the modes."""
        for now, before in self.attributes:
            if "training" in now:
                before["training"] = now["training"]
            if not _identical(now, before):
                now.clear()
                now.update(before)
        for put in self.contents:
            put()
        for copy in self.tensors:
            copy.back()


def _tensors(part: torch.nn.Module) -> list[Tensor]:
    """The parameters and buffers of one module, and tensors that it holds without a name."""
    own = [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]
    return [t for t in own if isinstance(t, Tensor) and t.layout is torch.strided
            and not t.is_inference()]  # fmt: skip


class _Copy:
    """A tensor and what it held."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.data = tensor, tensor.data
        self.values, self.version = self.data.clone(), tensor._version
        self.needs = tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.slope = None if self.grad is None else self.grad.clone()

    def back(self) -> None:
        """The values, if they were changed so that one can see it at once."""
        moved = self.tensor.data_ptr() != self.data.data_ptr()
        if moved or self.tensor._version != self.version:
            self._put()

    def _put(self) -> None:
        self.tensor.data = self.data.copy_(self.values)
        self.version = self.tensor._version

    def whole(self) -> None:
        """The values, changed in whatever way, the gradient, and whether it needs one."""
        if not torch.equal(self.data, self.values):
            self._put()
        if not self.tensor.is_leaf:
            return
        self.tensor.requires_grad_(self.needs)
        self.tensor.grad = self.grad
        if self.grad is not None and self.slope is not None:
            self.grad.data.copy_(self.slope)


def _identical(one: Any, other: Any) -> bool:
    """Whether two lists, dicts or sets hold the same objects in the same order."""
    items = (v.values() if isinstance(v, dict) else v for v in (one, other))
    return len(one) == len(other) and all(map(operator.is_, *items))


def _content(value: Any) -> Callable[[], None]:
    """What puts the items of a list, dict or set back."""
    if not isinstance(value, list | dict | set | deque):
        return _nothing
    items = value.copy()

    def put() -> None:
        if _identical(value, items):
            return
        value.clear()
        (value.extend if isinstance(value, list | deque) else value.update)(items)

    return put


def _state(value: Any) -> Callable[[], Any]:
    """What puts the state of a random generator back."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, random.Random):
        inner = value.getstate()
        return lambda: value.setstate(inner)
    if isinstance(value, numpy.random.Generator):
        bits = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", bits)
    return _nothing


def _nothing() -> None:
    pass
