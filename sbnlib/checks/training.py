"""Checks of a training: noise against depth, optimizers, latent weights, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sbnlib.checks.trials import Parameters, frozen, judged, listed, named, number, real, share
from sbnlib.contracts import check_function, check_number
from sbnlib.depth import gain, overlap
from sbnlib.diagnose.findings import Finding
from sbnlib.nn import Sign
from sbnlib.noise import is_positive

__all__ = ["binary_weights", "clamped", "current", "dead_zone", "gradient_scale", "noise_level",
           "scales_once"]  # fmt: skip

#: What a layer leaves of a small overlap at gain 1, at the most (chapter 16).
BEST = 0.5445


def noise_level(net: torch.nn.Module, inputs: Tensor | tuple[Any, ...], *, least: float = 0.01
                ) -> Finding:  # fmt: skip
    r"""Whether the noise of a network's units fits its depth.

    Codes ``too-loud``, ``too-quiet``, ``infinite-gain``; ``noise-level`` where nothing is wrong.

    By chapter 16 a layer multiplies a small overlap of two inputs by
    :math:`\varrho = (\mathbb{E}\,2f)^2` and the mean square of a gradient by the gain G, so that
    :math:`\varrho/\max(G, 1)` of the signal is left; at most 0.5445. The product over the layers is
    compared with :math:`0.5445^K`, what K layers leave at their best.

    Args:
        net: a network with units of :class:`sbnlib.nn.Sign`, one behind the other; other units are
            not looked at. Their noise is measured against the root mean square of the
            pre-activations, taken as normal. In the place of a unit of your own put ``Sign`` with
            the noise that it draws; or compare the :func:`sbnlib.gain` of that noise, its scale
            divided by that root mean square, with 1.
        inputs: what it is called with: a tensor, or a tuple of arguments.
        least: the share of the best product that is no fault. Chapter 16's networks of 16 layers
            lose some ten per cent of accuracy at a hundredth.

    Raises:
        TypeError: ``net`` is no module.
        ValueError: ``net`` runs no such units on the inputs, or ``least`` is no number in (0, 1).
    """
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"net must be a module, got {type(net).__name__}")
    check_number("least", least, "a number in (0, 1)", lambda x: 0 < x < 1)
    layers = _layers(net, inputs if isinstance(inputs, tuple) else (inputs,))
    left = math.prod(rate / max(g, 1.0) / BEST for g, rate in layers)
    gains = [g for g, _ in layers]
    typical = math.exp(sum(math.log(max(g, 1e-300)) for g in gains) / len(gains))
    code = "too-loud" if typical < 1 else "too-quiet" if typical < math.inf else "infinite-gain"
    words = (f"{len(gains)} layers of gain {number(typical)} leave {share(left)} of the signal "
             "that is left at gain 1.")  # fmt: skip
    return judged(code if left < least else "noise-level", left < least, words, words,
                  "Give the units noise.scaled_to(gain=1), or the network fewer layers; with an "
                  "infinite gain, straight-through as the estimator.")  # fmt: skip


def _layers(net: torch.nn.Module, inputs: tuple[Any, ...]) -> list[tuple[float, float]]:
    """Gain and overlap of each layer of units, in the order in which they run."""
    found: list[tuple[float, float]] = []

    def look(unit: Any, args: tuple[Any, ...]) -> None:
        size = float(args[0].detach().double().square().mean().sqrt())
        if not is_positive(size):
            raise ValueError("net must have finite pre-activations that are not all 0, got a root "
                             f"mean square of {size} in layer {len(found)}")  # fmt: skip
        noise = unit.noise._at_scale(unit.noise.scale / size)
        found.append((gain(noise, unit.estimator), overlap(noise)))

    hooks = [m.register_forward_pre_hook(look) for m in net.modules() if isinstance(m, Sign)]
    try:
        with frozen(net), torch.no_grad():
            net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError("net must run units of sbnlib.nn.Sign on the inputs, got none; in the "
                         "place of a unit of your own put Sign(noise), with the noise that it "
                         "draws")  # fmt: skip
    return found


def scales_once(step: Callable[[float], object]) -> Finding:
    r"""Whether an optimizer counts the number of examples once; code ``scaled-twice``.

    Bayesian optimizers multiply the mean gradient by the number N of examples. What does so in two
    places takes steps that grow as :math:`N^2`, and is tuned for one data set.

    Args:
        step: N to the size of the first update for one and the same mean gradient.

    Returns:
        The finding: right if the size goes as :math:`N^0` or :math:`N^1` at 10, 100 and 1000, the
        exponent to within a tenth.

    Raises:
        TypeError: ``step`` is no function, or returns no number.
        ValueError: a size is not finite and > 0.
    """
    check_function("step", step, "the number of examples")
    with frozen():
        sizes = [abs(real("step", step(n))) for n in (10, 100, 1000)]
    if not all(0 < s < math.inf for s in sizes):
        raise ValueError(f"step must return finite sizes that are not 0, got {sizes}")
    powers = [math.log10(b / a) for a, b in zip(sizes, sizes[1:], strict=False)]
    worst = max(powers, key=lambda k: min(abs(k), abs(k - 1)))
    return judged(
        "scaled-twice", min(abs(worst), abs(worst - 1)) > 0.1,
        f"The update grows as the power {number(worst)} of the number of examples.",
        f"The update grows as the power {number(worst)} of the number of examples.",
        "Multiply by it in one place: the loss, or the step.",
    )  # fmt: skip


def current(read: Callable[[], Tensor], recompute: Callable[[], Tensor]) -> Finding:
    """Whether what is reported of a distribution is that of its parameters now; code ``stale``.

    An optimizer that takes the mean μ = tanh(λ) before it moves λ reports, and puts into its next
    step, the mean of the step before. A wrong formula, such as μ(1 − μ) for the variance 1 − μ² of
    a sign, is found in the same way. Call it after some steps.

    Args:
        read: without arguments; what is reported, a tensor.
        recompute: without arguments; the same from the parameters as they are.

    Returns:
        The finding: wrong if they differ by more than 64 roundings of the largest number.

    Raises:
        TypeError: one of the two is no function, or returns no tensor of floating-point numbers.
        ValueError: their shapes differ.
    """
    values = []
    with frozen(), torch.no_grad():
        for name, fn in (("read", read), ("recompute", recompute)):
            check_function(name, fn, "nothing, which returns a tensor")
            value: object = fn()
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name} must return a floating-point tensor, got {value!r}")
            values.append(value.detach().clone())
    if values[0].shape != values[1].shape:
        raise ValueError(f"read must return what recompute does, of shape "
                         f"{tuple(values[1].shape)}, got {tuple(values[0].shape)}")  # fmt: skip
    room = 64 * max(torch.finfo(v.dtype).eps for v in values) * float(values[1].abs().amax())
    off = float((values[0].double() - values[1].double()).abs().amax())
    return judged(
        "stale", not off <= room,
        f"What is reported is off by up to {number(off)} from what the parameters say now.",
        "What is reported is what the parameters say.",
        "Compute it from the parameters when it is read, or after they have moved.",
    )  # fmt: skip


def dead_zone(
    latent: Tensor, gradient: Tensor, *, threshold: float, decay: float, most: float = 0.1
) -> Finding:
    r"""Which share of ternary weights decay holds at 0 for good; code ``dead-zone``.

    A latent weight w that is rounded to 0 while :math:`|w| < \vartheta` still feels weight decay,
    an attraction to 0. Under a steady gradient g it goes to :math:`-g/\lambda`, so that it can
    leave the zone only if :math:`|g| > \lambda\vartheta`: by a penalty :math:`\lambda\vartheta|q|`
    on its mean q. Without decay every steady gradient takes it out. Noise of half-width r leaves
    a zone of :math:`\vartheta - r`, and none if it is as wide as the threshold.

    Args:
        latent: the latent weights.
        gradient: of the same shape: what decay is added to, averaged over many batches. With a
            decoupled decay (AdamW) it is the direction that the optimizer makes of it.
        threshold: ϑ > 0, below which a weight is 0; with noise, below which it always is.
        decay: λ ≥ 0.
        most: the share of all weights that may be held.

    Raises:
        TypeError, ValueError: an argument is not of its kind, or the shapes differ.

    Source: chapter 21, the proposition on the dead zone of latent weights under decay.
    """
    for name, value in (("latent", latent), ("gradient", gradient)):
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            raise TypeError(f"{name} must be a floating-point tensor with values, got {value!r}")
    if latent.shape != gradient.shape:
        raise ValueError(f"gradient must have the shape of latent, {tuple(latent.shape)}, got "
                         f"{tuple(gradient.shape)}")  # fmt: skip
    check_number("threshold", threshold, "a number > 0", is_positive)
    check_number("decay", decay, "a number >= 0", lambda x: 0 <= x < math.inf)
    check_number("most", most, "a share from 0 to 1", lambda x: 0 <= x <= 1)
    inside = latent.detach().abs() < threshold
    held = inside & (gradient.detach().abs() <= decay * threshold) if decay else inside & False
    part = float(held.double().mean())
    words = (f"{share(float(inside.double().mean()))} of the weights lie in the zone, "
             f"{share(part)} of all are held there by decay.")  # fmt: skip
    return judged("dead-zone", part > most, words, words,
                  "Take the latent weights out of the decay, or draw the states with noise as "
                  "wide as the threshold (chapter 21).")  # fmt: skip


def clamped(latent: Parameters, bound: float = 1.0) -> Finding:
    """Whether latent weights stay where their slope is not 0; code ``unclamped``.

    Beyond the bound of its slope a latent weight gets no gradient and does not come back; with a
    slope of 1 everywhere it drifts, and its sign no longer changes. Often a clamp after the step
    was there once, and was lost.

    Args:
        latent: a module, tensors by name, or tensors.
        bound: the largest absolute value that is in order, > 0.

    Raises:
        TypeError: ``latent`` are no tensors.
        ValueError: ``bound`` is no number > 0.
    """
    check_number("bound", bound, "a number > 0", is_positive)
    own = {n: t.detach().abs() for n, t in named(latent).items()}
    outside = [n for n, t in own.items() if bool((t > bound * (1 + 1e-6)).any())]  # rounding
    largest = max(float(t.max()) for t in own.values() if t.numel())
    return judged(
        "unclamped", outside,
        f"Weights of {listed(outside)} lie beyond ±{number(bound)}, up to {number(largest)}.",
        f"The largest is {number(largest)}, within ±{number(bound)}.",
        "Clamp after each step, under no_grad: weight.clamp_(-1, 1); or use sbnlib.optim.",
    )  # fmt: skip


def binary_weights(state: Mapping[str, Tensor], names: Iterable[str]) -> Finding:
    """Whether weights of a checkpoint are binary, as is said; code ``latent-checkpoint``.

    What an optimizer moves are real, latent weights, and ``state_dict()`` holds these. Whoever
    loads them into plain layers has another network.

    Args:
        state: names to tensors, as of ``state_dict()`` or ``torch.load``.
        names: of those that should be binary: two opposite values, or 0 and another, in each row
            (axis 0), so that a scale of each output is allowed.

    Raises:
        TypeError: ``state`` is no mapping.
        ValueError: a name that is not in it, or none.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be tensors by name, got {type(state).__name__}")
    names = [names] if isinstance(names, str) else list(names)
    absent = [n for n in names if not isinstance(state.get(n), Tensor)]
    if absent or not names:
        raise ValueError(f"names must be those of tensors in state, {listed(list(state), 6)}, got "
                         f"{listed(absent) or 'none'}")  # fmt: skip
    real_ones = [n for n in names if not _is_binary(state[n])]
    return judged(
        "latent-checkpoint", real_ones,
        f"{listed(real_ones)}: not two values, but real numbers.",
        f"{listed(names)}: two values in each row.",
        "Save sbnlib.to_plain(net).state_dict(), after sbnlib.set_mode, or sbnlib.packed.convert.",
    )  # fmt: skip


def _is_binary(weight: Tensor) -> bool:
    """Whether each row holds two values only, opposite ones or one of them 0."""
    rows = weight.detach().double().reshape(len(weight) if weight.dim() > 1 else 1, -1)
    low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    two = bool(((rows == low) | (rows == high)).all())
    known = (low == -high) | (low == 0) | (high == 0) | (low == high)
    return two and bool(known.all())


def gradient_scale(params: Parameters, *, eps: float = 1e-8, decay: float = 0.0) -> Finding:
    """Whether an adaptive optimizer's constants still mean something; code ``gradient-scale``.

    Adam does not care for the scale of a gradient, but its eps does, and a weight decay that is
    added to the gradient (not AdamW's): of gradients multiplied by 10⁹ the decay is nothing, of
    tiny ones eps sets the step.

    Args:
        params: a module, tensors by name, or tensors, after ``backward()``.
        eps: Adam's.
        decay: the decay that is added to the gradient, 0 if there is none or it is decoupled.

    Returns:
        The finding: wrong where the root mean square of a tensor's gradients is below 10 eps, or
        its decay is below a millionth of it.

    Raises:
        TypeError: ``params`` are no tensors.
        ValueError: no ``.grad``, or a wrong ``eps`` or ``decay``.
    """
    check_number("eps", eps, "a number > 0", is_positive)
    check_number("decay", decay, "a number >= 0", lambda x: 0 <= x < math.inf)
    own = {n: t for n, t in named(params).items() if t.grad is not None}
    if not own:
        raise ValueError("params must have gradients, call backward() before; none has one")
    size = {n: _rms(t.grad) for n, t in own.items()}
    small = [n for n, s in size.items() if 0 < s < 10 * eps]
    large = [n for n, t in own.items() if decay and decay * _rms(t) < 1e-6 * size[n]]
    low, high = number(min(size.values())), number(max(size.values()))
    faults = [f"eps sets the step of {listed(small)}"] * bool(small)
    faults += [f"decay is nothing beside the gradient of {listed(large)}"] * bool(large)
    return judged(
        "gradient-scale", faults,
        f"Gradients have root mean squares from {low} to {high}: {'; '.join(faults)}.",
        f"Gradients have root mean squares from {low} to {high}.",
        "Look for a factor in the backward pass; decouple the decay, or make eps smaller.",
    )  # fmt: skip


def _rms(t: Tensor | None) -> float:
    return 0.0 if t is None else float(t.detach().double().square().mean().sqrt())
