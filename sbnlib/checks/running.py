"""Checks of what running a piece of a training script does, and to what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbnlib.checks.trials import (
    SEED,
    Parameters,
    changed,
    frozen,
    judged,
    listed,
    named,
    same_tensors,
)
from sbnlib.contracts import check_function, check_number, is_finite
from sbnlib.diagnose.findings import Finding
from sbnlib.diagnose.keeping import mode, seeded
from sbnlib.noise import is_positive

__all__ = ["deterministic", "finite_difference", "gradients_untouched", "parameters_reached",
           "statistics_untouched", "weights_untouched"]  # fmt: skip


def gradients_untouched(fn: Callable[[], object], params: Parameters) -> Finding:
    """Whether a call leaves the ``.grad`` of parameters alone; code ``grad-leak``.

    Control variates with parameters of their own are trained on the squared estimate. If that loss
    is sent back by ``backward()``, it writes into the gradients of the model as well, and the
    estimate that is added afterwards comes on top of it.

    Args:
        fn: the call, without arguments; each ``.grad`` holds ones when it begins.
        params: a module, tensors by name, or tensors, which require gradients.

    Returns:
        The finding. Parameters, gradients and torch's generators are left as they were.

    Raises:
        TypeError: ``fn`` is no function, or ``params`` are none.
    """
    check_function("fn", fn, "nothing, whose effect on gradients is looked at")
    own = named(params)
    with frozen(_held(params, own)):
        for t in own.values():
            t.grad = torch.ones_like(t)
        fn()
        touched = [n for n, t in own.items() if t.grad is None or bool((t.grad != 1).any())]
    return judged(
        "grad-leak", touched,
        f"The call changes the gradient of {listed(touched)}.",
        "The call leaves all gradients as they were.",
        "Take gradients by torch.autograd.grad(loss, parameters), for these parameters alone.",
    )  # fmt: skip


def parameters_reached(loss: Callable[[], Tensor], params: Parameters) -> Finding:
    """Whether the loss sends a gradient to each parameter; code ``unreached``.

    An estimator that evaluates the loss under ``no_grad`` leaves what comes above the units, such
    as a decoder, without a gradient, and nothing fails.

    Args:
        loss: without arguments; returns what ``backward`` would be called on, or its batch.
        params: a module, tensors by name, or tensors.

    Returns:
        The finding; a gradient of zeros alone counts as none.

    Raises:
        TypeError: ``loss`` is no function, or returns no tensor; ``params`` are none.
    """
    own = named(params)
    with frozen(_held(params, own)):
        missing = _without_gradient(_tensor(loss), own)
    return judged(
        "unreached", missing,
        f"No gradient, or zeros only, comes to {listed(missing)}.",
        f"Each of the {len(own)} parameters gets a gradient.",
        "Evaluate the loss with its graph, outside of no_grad, once more if need be.",
    )  # fmt: skip


def _held(params: Parameters, own: dict[str, Tensor]) -> torch.nn.Module | dict[str, Tensor]:
    """What is put back: of a module its buffers and modes too."""
    return params if isinstance(params, torch.nn.Module) else own


def _tensor(loss: Callable[[], Tensor]) -> Tensor:
    check_function("loss", loss, "nothing, which returns the loss")
    value: object = loss()
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"loss must return a floating-point tensor, got {type(value).__name__}")
    return value


def _without_gradient(value: Tensor, own: dict[str, Tensor]) -> list[str]:
    """The names of those at which no gradient arrives, or zeros only."""
    asked = [t for t in own.values() if t.requires_grad]
    if not value.requires_grad or not asked:
        return list(own)
    grads = torch.autograd.grad(value.mean(), asked, allow_unused=True)
    reached = {id(t) for t, g in zip(asked, grads, strict=True) if g is not None and bool(g.any())}
    return [name for name, t in own.items() if id(t) not in reached]


def finite_difference(
    loss: Callable[[], Tensor], params: Parameters, *, step: float = 0.1, draws: int = 16
) -> Finding:
    """Whether a parameter moves the loss and yet gets no gradient; code ``silent-zero``.

    A sign, a rounding or an argmax inside of a loss has slope 0 almost everywhere, so that what
    lies below it never learns, without a warning. Each parameter is moved by ``step`` times its
    root mean square (by ``step`` where that is 0) in directions of random signs, under the same
    random numbers. A loss that does not depend on it stays the same to the last bit, so that a
    right script is never flagged.

    Args:
        loss: without arguments; draws from torch's global generators, or nothing.
        params: a module, tensors by name, or tensors.
        step: relative length of the move, > 0.
        draws: how many seeds and directions are tried.

    Raises:
        ValueError: the loss differs from call to call under one seed, or a wrong ``step``.
        TypeError: ``loss`` is no function, or returns no tensor; ``params`` are none.
    """
    own = named(params)
    check_number("step", step, "a number > 0", is_positive)
    with frozen(_held(params, own)):
        if _at(loss, SEED) != _at(loss, SEED):
            raise ValueError("loss must be a function of the parameters and of torch's global "
                             "generators, got another value under the same seed")  # fmt: skip
        still = set(own)
        for seed in range(draws):
            with seeded(seed, torch.device("cpu")):
                still &= set(_without_gradient(_tensor(loss), own))
        silent = [n for n in own if n in still and _moves(loss, own[n], step, draws)]
    return judged(
        "silent-zero", silent,
        f"The loss moves with {listed(silent)}, whose gradient is 0.",
        "What moves the loss gets a gradient.",
        "Put a unit with an estimator in the place of the sign, the rounding or the choice.",
    )  # fmt: skip


def _at(loss: Callable[[], Tensor], seed: int) -> float:
    with seeded(seed, torch.device("cpu")), torch.no_grad():
        return float(_tensor(loss).mean())


def _moves(loss: Callable[[], Tensor], t: Tensor, step: float, draws: int) -> bool:
    """Whether the loss is another one where the tensor is, in place, for the time of the call."""
    was = t.detach().clone()
    size = step * (float(was.square().mean().sqrt()) or 1.0)
    source = torch.Generator().manual_seed(SEED)
    for seed in range(draws):
        before = _at(loss, seed)
        signs = 2.0 * torch.randint(2, was.shape, generator=source) - 1
        with torch.no_grad():
            t.copy_(was + size * signs.to(was))
            after = _at(loss, seed)
            t.copy_(was)
        if before != after:
            return True
    return False


def statistics_untouched(net: torch.nn.Module, fn: Callable[[], object]) -> Finding:
    """Whether a measurement leaves batch norm's running statistics alone; code ``statistics``.

    Many forward passes in training mode, to measure a variance or to average a prediction, move
    the running mean and variance each time: the network that is measured is not the one trained.

    Args:
        net: the network; its buffers are looked at.
        fn: the measurement, without arguments.

    Returns:
        The finding. The network is left as it was before the call.

    Raises:
        TypeError: ``net`` is no module, or ``fn`` no function.
    """
    moved = _moved(net, fn, "named_buffers")
    return judged(
        "statistics", moved,
        f"The call changes {listed(moved)}.",
        "The call leaves the running statistics as they were.",
        "Measure in net.eval(), which does not stop the units from sampling.",
    )  # fmt: skip


def weights_untouched(net: torch.nn.Module, fn: Callable[[], object]) -> Finding:
    """Whether a forward pass leaves the weights alone; code ``weights``.

    Some layers centre, clamp or binarize their weights in place while they run: what the optimizer
    moves is then another tensor than what it moved last time.

    Args:
        net: the network; its parameters are looked at.
        fn: the pass, without arguments.

    Returns:
        The finding. The network is left as it was before the call.

    Raises:
        TypeError: ``net`` is no module, or ``fn`` no function.
    """
    moved = _moved(net, fn, "named_parameters")
    return judged(
        "weights", moved,
        f"The call writes into {listed(moved)}.",
        "The call leaves the weights as they were.",
        "Work on a copy in the forward pass, and clamp after the optimizer's step.",
    )  # fmt: skip


def _moved(net: torch.nn.Module, fn: Callable[[], object], which: str) -> list[str]:
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"net must be a module, got {type(net).__name__}")
    check_function("fn", fn, "nothing, which runs the network")
    own: dict[str, Tensor] = dict(getattr(net, which)())
    with frozen(net):
        return changed(own, fn)


def deterministic(net: torch.nn.Module, inputs: Tensor | tuple[Any, ...]) -> Finding:
    """Whether a network in evaluation mode gives one answer; code ``samples-at-test``.

    ``net.eval()`` does not stop a binary unit of this library from sampling, nor most others.

    Args:
        net: the network, set up as it is used.
        inputs: what it is called with: a tensor, or a tuple of arguments.

    Raises:
        TypeError: ``net`` is no module.
        ValueError: ``net`` gives NaN.
    """
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"net must be a module, got {type(net).__name__}")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with frozen(net), mode(net, training=False), torch.no_grad():
        first, *others = [net(*arguments) for _ in range(4)]
    if isinstance(first, Tensor) and first.is_floating_point() and not is_finite(first):
        raise ValueError("net must give finite numbers on the inputs, got NaN or infinity")
    return judged(
        "samples-at-test", not all(same_tensors(first, other) for other in others),
        "In evaluation mode it gives other numbers when it is called again.",
        "In evaluation mode it gives the same numbers again.",
        'Call sbnlib.set_mode(net, "sign"), then sbnlib.reestimate_batch_norm; or average several '
        "passes, and say how many.",
    )  # fmt: skip
