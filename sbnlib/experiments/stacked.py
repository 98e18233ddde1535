"""Trainings of networks of one architecture, computed as one, each with the numbers it has alone.

A small network's step is many small operations, whose fixed cost exceeds their work. With one more
axis in front, T networks take one operation where each took its own::

    parameters (T, m, n)     inputs, states, pre-activations (..., T, B, n)     losses (..., T, B)

What differs from training to training stays its own: start, data, order, noise, learning rates,
the state of the optimizers. Inside :func:`as_one` the tensors of each training are slices of the
stack's, so that the trainings are what is trained, and there is nothing to copy back.

**Bit for bit.** ``exact`` gives each training the rounding it has alone. Elementwise arithmetic has
it anyway. A matrix product does not: its order of summation depends on its shape, and on the
address of its factors modulo 64 bytes. So each training has products of its own, at addresses as
torch gives them. Nor has a function that torch computes for 8 or 16 elements at a time and, by
another routine, for the few that are left: :data:`UNEVEN` ones, sums over draws and batch norm
take each training's slice by itself too. Without ``exact`` all trainings share one batched product
(``torch.baddbmm``), a single launch on a GPU, with another rounding. Random numbers are each
training's own either way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from sbnlib.experiments.models import Classifier
from sbnlib.network import SBN
from sbnlib.nn import BernoulliLinear, Sign
from sbnlib.noise import Generators

__all__ = ["Forward", "Step", "alike", "as_one", "generators"]

#: Inputs (T, B, n), labels (T, B) and generators to losses (T, B); of a single classifier (B, n),
#: (B,) and a generator to (B,).
Forward = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class Step(Protocol):
    """What a training loop asks of an optimizer."""

    def zero_grad(self) -> None: ...

    def step(self) -> Any: ...


def generators(parts: Sequence[torch.Generator]) -> torch.Generator:
    """One generator for a stack, of which each training draws from its own."""
    return cast(torch.Generator, Generators(parts))  # it stands for one wherever sbnlib draws


# What can be stacked ------------------------------------------------------------------------------

#: Modules with parameters whose functions are known to a stack.
LAYERS = (nn.Linear, BernoulliLinear, nn.BatchNorm1d)
#: Modules without, that do the same with one more axis, to the last bit.
AROUND = (SBN, Sign, nn.ModuleList, nn.Sequential, nn.Identity, nn.Tanh, nn.ReLU)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
          "_post_accumulate_grad_hooks")  # fmt: skip
_OF_TORCH = set(vars(nn.Module())) - {"training"}


def alike(one: Classifier, other: Classifier) -> bool:
    """Whether two classifiers can be trained as one.

    They have the same modules with the same options, shapes, dtypes and devices, and the same
    estimator. Their modules are among :data:`LAYERS` and :data:`AROUND`, or say of themselves that
    they take further axes in front of the batch (a class attribute ``takes_axes``); and so does the
    estimator, which PSA does not. No tensor stands in two places, and nothing has hooks.
    """
    pairs = itertools.zip_longest(one.modules(), other.modules())
    return (
        one.takes_axes
        and all(map(_has_each_tensor_once, (one, other)))
        and all(
            type(m) is type(n) and _is_known(m) and _is_known(n) and _options(m) == _options(n)
            for m, n in pairs
        )
    )


def _has_each_tensor_once(module: nn.Module) -> bool:
    every = [id(t) for named in (module.named_parameters, module.named_buffers)
             for _, t in named(remove_duplicate=False)]  # fmt: skip
    return len(every) == len(set(every))


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, nn.BatchNorm1d) and module.momentum is None:
        return False  # a mean over all batches, whose number would be that of one training
    if any(isinstance(value, Tensor) for value in vars(module).values()):
        return False  # neither parameter nor buffer: nobody knows what it is
    if _has_hooks(module) or getattr(module, "sampler", "torch") != "torch":
        return False  # a fused sampler has one seed, not one of each training
    return type(module) in (*LAYERS, *AROUND) or hasattr(type(module), "takes_axes")


def _has_hooks(module: nn.Module) -> bool:
    own = [module, *module.parameters(recurse=False)]
    return any(getattr(one, name, None) for one in own for name in _HOOKS)


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _options(module: nn.Module) -> dict[str, Any]:
    """All that two modules may differ in, other than the values of their tensors."""
    plain = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return plain | {name: (t.shape, t.dtype, t.device, t.requires_grad) for name, t in _own(module)}


# The stack ----------------------------------------------------------------------------------------


@contextmanager
def as_one(
    classifiers: Sequence[Classifier],
    optimizers: Sequence[Sequence[Optimizer]],
    *,
    exact: bool,
) -> Iterator[tuple[Forward, Sequence[Step]]]:
    """T classifiers as one, and its optimizers; what is done to it is done to them.

    Args:
        classifiers: :func:`alike`, each with tensors of its own.
        optimizers: those of each classifier, equally many, in the same order.
        exact: whether each is to have the rounding it has alone.

    Yields:
        A function of inputs ``(T, B, n)``, labels ``(T, B)`` and :func:`generators` to losses
        ``(T, B)``, and optimizers whose ``step`` makes one step of each training. They take the
        learning rates from those of the trainings.
    """
    tensors = [_tensors(c) for c in classifiers]
    mode, joint = _ByTraining(len(classifiers), exact), _Joint(classifiers[0])
    steps: list[_Each] = []
    try:
        wholes = _tied([[own[name] for own in tensors] for name in tensors[0]])
        named = {f"one.{name}": whole for name, whole in zip(tensors[0], wholes, strict=True)}
        of_first = {id(t): w for t, w in zip(tensors[0].values(), wholes, strict=True)}
        for each in zip(*optimizers, strict=True):
            steps.append(_step(each, of_first))

        def forward(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            with mode:
                return torch.func.functional_call(joint, named, (inputs, labels, generator))

        yield forward, steps
    finally:
        for step in steps:
            step.untie()
        for own in tensors:
            _untie(own.values())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(itertools.chain(module.named_parameters(), module.named_buffers()))


def _tied(tensors: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """For the parts of each tensor one (T, ...) of which they are slices from now on; or for none.

    Nothing is tied before all stacks are made, which may fail.
    """
    wholes = [torch.stack([part.detach() for part in parts]) for parts in tensors]
    for parts, whole in zip(tensors, wholes, strict=True):
        for part, piece in zip(parts, whole.unbind(), strict=True):
            part.data = piece
        whole.requires_grad_(parts[0].requires_grad)
    return wholes


def _untie(parts: Any) -> None:
    """Give each its own memory again: a slice is saved to a file with all of the stack."""
    for part in parts:
        part.data = part.data.clone()


class _Joint(nn.Module):
    """The first classifier, called with the stack's tensors in place of its own."""

    def __init__(self, one: Classifier) -> None:
        super().__init__()
        self.one = one

    def forward(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        loss = partial(_cross_entropy, self.one.head, labels)
        return self.one.estimator(self.one.net, inputs, loss, generator=generator)


def _cross_entropy(head: nn.Module, labels: Tensor, x: Tensor) -> Tensor:
    """:func:`sbnlib.classification_loss` for states (..., T, B, n) and labels (T, B)."""
    classes = labels.expand(x.shape[:-1]).flatten()
    scores = head(x).flatten(0, -2)
    values = functional.cross_entropy(scores, classes, reduction="none")
    return values.view(x.shape[:-1])


# Functions of torch, by training ------------------------------------------------------------------


class _ByTraining(TorchFunctionMode):
    """Where functions of torch that do not take the axis of trainings do."""

    def __init__(self, count: int, exact: bool) -> None:
        super().__init__()
        self.functions: dict[Any, Callable[..., Any]] = {
            functional.linear: partial(_linear, EXACT if exact else BATCHED),
            functional.batch_norm: partial(_batch_norm, exact),
        }
        if exact:
            each = partial(_each, count)
            self.functions |= {f: partial(each, f) for f in UNEVEN}
            self.functions |= {f: partial(_in_place, partial(each, g)) for f, g in IN_PLACE.items()}
            self.functions[Tensor.mean] = partial(_mean, each)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.functions.get(func, func)(*args, **kwargs or {})


#: Functions that torch computes otherwise for the last elements of a tensor than for the rest.
UNEVEN = (torch.sigmoid, Tensor.sigmoid, torch.logit, Tensor.logit, torch.atan2, Tensor.atan2)
IN_PLACE = {Tensor.sigmoid_: torch.sigmoid, torch.sigmoid_: torch.sigmoid}


def _each(count: int, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function`` of each training's slice (..., B, n) of tensors (..., T, B, n)."""
    if any(t.dim() < 3 or t.shape[-3] != count for t in tensors):
        raise ValueError(f"{function} of shapes {[tuple(t.shape) for t in tensors]} in a stack")
    slices = zip(*(t.unbind(-3) for t in tensors), strict=True)
    return torch.stack([function(*(t.contiguous() for t in own)) for own in slices], dim=-3)


def _mean(each: Callable[..., Tensor], x: Tensor, dim: int = 0) -> Tensor:
    """The mean over draws, (M, T, B, n): the order of a sum depends on what follows its axis."""
    if dim == 0 and x.dim() > 3:
        return each(partial(torch.mean, dim=0), x)
    return x.mean(dim)


def _in_place(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x.copy_(function(x))


class _Multiply(NamedTuple):
    """Products of (T, R, n) and (T, n, m), and the same plus (T, m)."""

    mm: Callable[[Tensor, Tensor], Tensor]
    addmm: Callable[[Tensor, Tensor, Tensor], Tensor]


def _linear(multiply: _Multiply, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``functional.linear``: (..., T, B, n), (T, m, n), (T, m) to (..., T, B, m)."""
    rows = x.movedim(-3, 0).flatten(1, -2)  # of each training all together, as torch has them
    out: Tensor = _Products.apply(multiply, rows, weight, bias)  # type: ignore[no-untyped-call]
    return out.unflatten(1, (*x.shape[:-3], x.shape[-2])).movedim(0, -3)


class _Products(torch.autograd.Function):
    """a = x W' + b for (T, R, n), (T, m, n), (T, m)."""

    @staticmethod
    def forward(
        ctx: Any, multiply: _Multiply, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mm = multiply.mm
        return multiply.mm(x, weight.mT) if bias is None else multiply.addmm(bias, x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            None,
            ctx.mm(g, weight) if of_x else None,
            ctx.mm(g.mT, x) if of_weight else None,
            g.sum(1) if of_bias else None,
        )


def _one_by_one(product: Callable[..., Tensor], *factors: Tensor) -> Tensor:
    """The product of each training's factors, (T, R, m)."""
    out = factors[-2].new_empty(*factors[-2].shape[:-1], factors[-1].shape[-1])
    slices = list(zip(*map(_slices, factors), strict=True))
    if not _is_even(out):
        return torch.stack([product(*own) for own in slices], out=out)
    for own, piece in zip(slices, out.unbind(), strict=True):
        product(*own, out=piece)
    return out


def _slices(whole: Tensor) -> Sequence[Tensor]:
    """The slice of each training, at an address where torch would have it alone."""
    return whole.unbind() if _is_even(whole) else [part.clone() for part in whole]


def _is_even(whole: Tensor) -> bool:
    """Whether slices begin at multiples of 64 bytes as tensors do: products round by that, too."""
    return (whole.data_ptr() | whole.stride(0) * whole.element_size()) % 64 == 0


def _batched_addmm(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.baddbmm(bias[:, None], x, weight)


EXACT = _Multiply(partial(_one_by_one, torch.mm), partial(_one_by_one, torch.addmm))
BATCHED = _Multiply(torch.bmm, _batched_addmm)


#: Running mean and variance, weight and bias, (T, n) each.
Statistics = Tensor | None


def _batch_norm(
    exact: bool,
    x: Tensor,
    running_mean: Statistics,
    running_var: Statistics,
    weight: Statistics = None,
    bias: Statistics = None,
    **options: Any,
) -> Tensor:
    """``functional.batch_norm`` of (T, B, n): one training after the other, or all at once.

    At once, each unit of each training is a channel of (B, T n).
    """
    given = (running_mean, running_var, weight, bias)
    if exact:
        own = ([None] * len(x) if t is None else t.unbind() for t in given)
        parts = zip(x.unbind(), *own, strict=True)
        return torch.stack([functional.batch_norm(*part, **options) for part in parts])
    mean, var, scale, shift = (None if t is None else t.flatten() for t in given)
    flat = x.transpose(0, 1).flatten(1)
    out = functional.batch_norm(flat, mean, var, scale, shift, **options)
    return out.unflatten(1, (x.shape[0], x.shape[2])).transpose(0, 1).contiguous()


# Optimizers ---------------------------------------------------------------------------------------


def _step(optimizers: Sequence[Optimizer], of_first: dict[int, Tensor]) -> _Each:
    """One step of all, on the stack's tensors that stand for those of the first training."""
    return (_Adams if _are_plain_adams(optimizers) else _Each)(optimizers, of_first)


class _Each:
    """Optimizers of any kind, one after the other, each on its slices."""

    def __init__(self, optimizers: Sequence[Optimizer], of_first: dict[int, Tensor]) -> None:
        self.optimizers = optimizers
        self.parameters = [_parameters(o) for o in optimizers]
        self.wholes = [of_first[id(p)] for p in self.parameters[0]]

    def zero_grad(self) -> None:
        for whole in self.wholes:
            whole.grad = None

    def step(self) -> None:
        grads = [[None] * len(self.optimizers) if w.grad is None else w.grad for w in self.wholes]
        of_each = zip(*grads, strict=True)
        for optimizer, own, slices in zip(self.optimizers, self.parameters, of_each, strict=True):
            for p, grad in zip(own, slices, strict=True):
                p.grad = grad
            optimizer.step()

    def untie(self) -> None:
        for p in itertools.chain(*self.parameters):
            p.grad = None


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


#: What torch's Adam can do besides, and the stack does not.
_OFF = ("weight_decay", "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")


def _are_plain_adams(optimizers: Sequence[Optimizer]) -> bool:
    """Whether all are torch's Adam, alike but for their learning rates, and equally far."""
    if any(type(o) is not torch.optim.Adam or len(o.param_groups) > 1 for o in optimizers):
        return False
    if any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in optimizers):
        return False
    groups = [o.param_groups[0] for o in optimizers]
    if any(isinstance(n, Tensor) for g in groups for n in (g["lr"], *g["betas"], g["eps"])):
        return False
    constants = [(group["betas"], group["eps"]) for group in groups]
    plain = not any(group[name] for group in groups for name in _OFF)
    plain = plain and all(p.requires_grad for o in optimizers for p in _parameters(o))
    counts = {_count(o, p) for o in optimizers for p in _parameters(o)}
    return plain and constants.count(constants[0]) == len(constants) and len(counts) == 1


def _count(adam: Optimizer, p: Tensor) -> float:
    return float(adam.state[p]["step"]) if adam.state.get(p) else 0.0  # looking makes no entry


class _Adams(_Each):
    """Adam with a learning rate for each training: torch's operations, in its order.

    All but the last are of whole stacks; that, eta - lr_t m / sqrt(v), is of slices, in one call.
    """

    def __init__(self, optimizers: Sequence[Optimizer], of_first: dict[int, Tensor]) -> None:
        super().__init__(optimizers, of_first)
        self.count = _count(optimizers[0], self.parameters[0][0])
        every = _tied([self._parts(name, k) for name in ("exp_avg", "exp_avg_sq")
                       for k in range(len(self.wholes))])  # fmt: skip
        self.moments = every[: len(self.wholes)], every[len(self.wholes) :]

    def _parts(self, name: str, k: int) -> list[Tensor]:
        """The moment of each training for its k-th parameter; at the start of a run 0."""
        pairs = zip(self.optimizers, self.parameters, strict=True)
        return [
            adam.state[own[k]].setdefault(name, torch.zeros_like(own[k])) for adam, own in pairs
        ]

    @torch.no_grad()
    def step(self) -> None:
        self.count += 1
        group = self.optimizers[0].param_groups[0]
        beta1, beta2 = group["betas"]
        correction = (1 - beta2**self.count) ** 0.5
        rates = [-(o.param_groups[0]["lr"] / (1 - beta1**self.count)) for o in self.optimizers]
        means, squares = self.moments
        grads = [whole.grad for whole in self.wholes if whole.grad is not None]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, correction)
        torch._foreach_add_(roots, group["eps"])
        etas, up, under = (
            [part for whole in wholes for part in whole.unbind()]
            for wholes in (self.wholes, means, roots)
        )
        torch._foreach_addcdiv_(etas, up, under, rates * len(self.wholes))

    def untie(self) -> None:
        super().untie()
        for adam, own in zip(self.optimizers, self.parameters, strict=True):
            for p in own:
                state = adam.state[p]
                state["step"] = torch.tensor(self.count)
                _untie([state["exp_avg"], state["exp_avg_sq"]])
