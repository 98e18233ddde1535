"""An estimator as it is handed in: of which kind it is, and whether it does what its kind promises.

Each kind is tried on a small case before any problem: twice with one seed, under two seeds of
torch's global generator, and once with another seed. What an estimator does wrong is said in a
sentence of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbnlib import registry
from sbnlib.contracts import (
    NetworkEstimator,
    argument_names,
    can_be_called,
    is_finite,
    named_kind,
    takes,
    with_generator,
)
from sbnlib.exact import exact_moments
from sbnlib.guards import signs, uniforms
from sbnlib.map.problem_set import linear
from sbnlib.network import SBN, of_kind
from sbnlib.noise import Logistic

__all__ = ["Given", "given"]

#: What each kind is called with.
ARGUMENTS = {
    "chain rule": ("a", "x", "noise"),
    "loss based": ("loss", "a", "noise"),
    "relaxation": ("a", "noise"),
    "network": ("net", "inputs", "loss"),
}
KINDS = ", ".join(f"{kind!r} ({', '.join(names)})" for kind, names in ARGUMENTS.items())


@dataclass(frozen=True)
class Given:
    """An estimator that passed.

    Attributes:
        name: in the report.
        kind: one of ``registry.KINDS``.
        function: what was handed in, or the registry's function.
        sampled: why its moments are sampled; "" where they are exact sums.
    """

    name: str
    kind: str
    function: Callable[..., Tensor]
    sampled: str

    @property
    def network(self) -> NetworkEstimator:
        return of_kind(self.kind, self.function)


def given(
    estimator: str | Callable[..., Tensor], kind: str | None = None, name: str | None = None
) -> Given:
    """The checks before any work.

    Raises:
        ValueError: an unknown name or kind, a kind that cannot be told, arguments that are missing,
            or a function that fails its trial.
        TypeError: neither a name nor a function, a class, or a name that is no text.
    """
    if kind is not None and kind not in registry.KINDS:
        raise ValueError(f"kind must be one of {', '.join(registry.KINDS)}, got {kind!r}")
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise TypeError(f"name must be a text of at least one letter, got {name!r}")
    if isinstance(estimator, str):
        entry = registry.get(estimator)
        if kind not in (None, entry.kind):
            raise ValueError(f"kind must be {entry.kind!r} for {estimator!r}, got {kind!r}")
        function, kind, name = entry.function, entry.kind, name or entry.name
    else:
        if not callable(estimator):
            raise TypeError(f"estimator must be a registry name or a function, got {estimator!r}")
        function, name = estimator, name or _name(estimator)
        if isinstance(function, type):
            raise TypeError(f"estimator must be a function, got the class {_name(function)}: hand "
                            "in an instance")  # fmt: skip
        kind = _kind(function, kind, name)
    function = _with_arguments(function, kind, name)
    trial = _Trial(name, kind, function)
    trial.check()
    return Given(name, kind, function, _why_sampled(kind, function))


def _name(function: object) -> str:
    base = getattr(function, "func", function)
    name = getattr(base, "__name__", None) or type(base).__name__
    return str(name)


def _kind(function: Callable[..., Tensor], kind: str | None, name: str) -> str:
    """The kind by its arguments' names, or as it was said."""
    named = named_kind(function)
    if named and kind not in (None, named):
        called = ", ".join(ARGUMENTS[named])
        raise ValueError(f"kind must be {named!r} for {name}({called}, ...), got {kind!r}")
    if found := kind or named:
        return found
    raise ValueError(
        f"kind of {name}({', '.join(argument_names(function))}) cannot be told from the names of "
        f"its arguments: give kind= (on the command line --kind), one of {KINDS}"
    )


def _with_arguments(function: Callable[..., Tensor], kind: str, name: str) -> Callable[..., Tensor]:
    """Callable with the arguments of its kind; ``num_samples`` without a default becomes 1."""
    parameters = _parameters(function)
    wanted = ARGUMENTS[kind]
    rest = list(parameters.items())[len(wanted) :]
    required = [n for n, p in rest if p.default is p.empty and p.kind not in _ANY]
    if kind == "loss based" and "num_samples" in required:
        function = functools.partial(function, num_samples=1)
        required.remove("num_samples")
    missing = [n for n in required if n != "generator"]
    if missing:
        raise ValueError(
            f"estimator must need nothing beside ({', '.join(wanted)}) and a generator, {name} "
            f"needs {', '.join(missing)}: hand in functools.partial({name}, {missing[0]}=...)"
        )
    if not can_be_called(function, len(wanted)):
        raise ValueError(
            f"estimator of kind {kind!r} must take ({', '.join(wanted)}), {name} takes "
            f"({', '.join(argument_names(function))})"
        )
    return function


_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(function: Callable[..., Tensor]) -> dict[str, inspect.Parameter]:
    call = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        return dict(inspect.signature(call).parameters)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return {}


def _why_sampled(kind: str, function: Callable[..., Tensor]) -> str:
    """Exact moments are for chain-rule functions of (a, x), unit by unit."""
    if kind != "chain rule":
        return f"an estimator of kind {kind!r} is measured by samples"
    if takes(function, "generator", among_others=False):
        return "it takes a generator"
    net, inputs = _small_net(), uniforms(2, 3)
    try:
        exact_moments(net, inputs, _small_loss, function)
    except ValueError as error:
        return str(error)
    return ""


# ---- the trial -----------------------------------------------------------------------------------

COPIES, BATCH, UNITS = 8, 16, 6  # so many numbers that a usual slip of rounding shows


def _small_net() -> SBN:
    weights = 2 * uniforms(2, UNITS, UNITS) - 1
    return SBN(linear(weights[0, :, :3], weights[1, 0]), linear(weights[1], weights[0, 0]))


def _small_loss(x: Tensor) -> Tensor:
    return torch.tanh(0.7 * x.cumsum(dim=-1) - 0.4).sum(dim=-1)


@dataclass(frozen=True)
class _Trial:
    """A function on eight copies of a small case."""

    name: str
    kind: str
    function: Callable[..., Tensor]

    def check(self) -> None:
        """Raises ValueError with the first thing that is wrong."""
        one, again, other = self._run(1, 1), self._run(1, 2), self._run(2, 1)
        if not _same(one, again):
            cure = (
                "draw from the generator that is handed in, and keep nothing between calls"
                if takes(self.function, "generator")
                else "take generator= and draw from it, and keep nothing between calls"
            )
            raise self._fault("give the same numbers when it is called again with the same "
                              "generator", f"gave others: {cure}")  # fmt: skip
        if _same(one, other) and not _alike(one):
            raise self._fault("draw from the generator that is handed in", "ignores it: its draws "
                              "do not change with the generator's seed")  # fmt: skip

    def _run(self, seed: int, global_seed: int) -> list[Tensor]:
        """What it gives, and the gradients; each has a first axis of copies if it tells of them."""
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(global_seed)
            before = torch.get_rng_state()
            found = getattr(self, f"_{self.kind.replace(' ', '_')}")(generator)
            drew = not torch.equal(torch.get_rng_state(), before)
        if drew:
            raise self._fault("draw from the generator that is handed in",
                              "draws from torch's global generator")  # fmt: skip
        return found

    def _chain_rule(self, generator: torch.Generator) -> list[Tensor]:
        x = signs(BATCH, UNITS, like=_logits()).expand(COPIES, -1, -1).clone()
        with self._watched(a=_logits(), x=x) as (a, x):
            out = self._call((a, x, Logistic()), generator, a.shape)
        kept = signs(BATCH, UNITS, like=a).expand_as(out)
        changed = int((out.detach() != kept).sum())
        if changed:
            raise self._fault(
                "return the state x with its value unchanged, bit for bit",
                f"changed {changed} of {kept.numel()} values, by up to "
                f"{float((out.detach() - kept).abs().max()):.2g}: write x + (m - m.detach()), with "
                "the brackets",
            )
        return [self._gradient(out, [a], "a")[0]]

    def _relaxation(self, generator: torch.Generator) -> list[Tensor]:
        with self._watched(a=_logits()) as (a,):
            out = self._call((a, Logistic()), generator, a.shape)
        return [out.detach(), *self._gradient(out, [a], "a")]

    def _loss_based(self, generator: torch.Generator) -> list[Tensor]:
        with self._watched(a=_logits()) as (a,):
            out = self._call((_small_loss, a, Logistic()), generator, a.shape[:-1])
        return [out.detach(), *self._gradient(out, [a], "a")]

    def _network(self, generator: torch.Generator) -> list[Tensor]:
        net, inputs = _small_net(), uniforms(BATCH, 3).expand(COPIES, -1, -1).clone()
        before = [p.detach().clone() for p in net.parameters()]
        with self._watched(inputs=inputs) as (inputs,):
            out = self._call((net, inputs, _small_loss), generator, inputs.shape[:-1])
        if not all(map(torch.equal, before, net.parameters())):
            raise self._fault("leave the network as it is", "changes its parameters")
        gradient = self._gradient(out, list(net.parameters()), "the network's parameters")
        return [out.detach(), *(g[None] for g in gradient)]

    @contextmanager
    def _watched(self, **given: Tensor) -> Iterator[list[Tensor]]:
        """The tensors as they are handed in, which must not be changed in place."""
        handed = [t.clone() for t in given.values()]  # of a leaf that needs a gradient: no leaf
        yield handed
        for (name, old), new in zip(given.items(), handed, strict=True):
            if new._version or not torch.equal(old.detach(), new.detach()):
                raise self._fault("leave its arguments as they are", f"changes {name} in place")

    def _call(
        self, arguments: tuple[Any, ...], generator: torch.Generator, shape: torch.Size
    ) -> Tensor:
        wanted = ", ".join(ARGUMENTS[self.kind])
        try:
            out: object = with_generator(self.function)(*arguments, generator=generator)
        except Exception as error:
            of = next(t.shape for t in arguments if isinstance(t, Tensor))
            raise self._fault(
                f"take ({wanted}) with axes of draws in front of the batch, {tuple(of)} here",
                f"raised {type(error).__name__}: {error}",
            ) from error
        if not isinstance(out, Tensor):
            got = type(out).__name__
            raise self._fault(f"return a tensor of shape {tuple(shape)} here", f"returned {got}")
        if out.shape != shape:
            what = "the shape of a" if self.kind in _OF_UNITS else "one value an input"
            raise self._fault(f"return {what}, {tuple(shape)} here",
                              f"returned shape {tuple(out.shape)}")  # fmt: skip
        if out.dtype != torch.float64:
            raise self._fault("keep the dtype, torch.float64 here", f"returned {out.dtype}")
        if not is_finite(out):
            raise self._fault("return finite values", "returned NaN or infinity")
        return out

    def _gradient(self, out: Tensor, of: list[Tensor], what: str) -> list[Tensor]:
        weights = 1 + uniforms(BATCH, *out.shape[2:]) if out.dim() > 1 else 1.0
        grads = None
        if out.requires_grad:
            grads = torch.autograd.grad((out * weights).sum(), of, allow_unused=True)
        if grads is None or all(g is None for g in grads):
            raise self._fault(f"have a gradient in {what}", "has none")
        found = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, of, strict=True)]
        if not all(map(is_finite, found)):
            raise self._fault(f"have a finite gradient in {what}", "gave NaN or infinity")
        if not any(bool(g.any()) for g in found):
            raise self._fault(f"have a gradient in {what}", "has one that is 0 everywhere")
        return found

    def _fault(self, must: str, but: str) -> ValueError:
        return ValueError(f"estimator must {must}; {self.name} {but}")


_OF_UNITS = ("chain rule", "relaxation")


def _logits() -> Tensor:
    """Eight copies of pre-activations on both sides of 0, a leaf; other numbers than the signs'."""
    a = Logistic().icdf(0.05 + 0.9 * uniforms(2, BATCH, UNITS)[1])
    return a.expand(COPIES, -1, -1).clone().requires_grad_()


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def _alike(found: list[Tensor]) -> bool:
    """Whether all copies gave the same."""
    return all(torch.equal(t, t[:1].expand_as(t)) for t in found)
