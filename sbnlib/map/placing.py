"""One estimator on every problem: bias, variance, error, direction and cost."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor

from sbnlib.accuracy import Accuracy, gradient_samples, of_samples
from sbnlib.contracts import linear_layers
from sbnlib.exact import exact_gradient, exact_moments
from sbnlib.map.found import QUANTITIES
from sbnlib.map.given import Given, given
from sbnlib.map.problem_set import Problem, select
from sbnlib.map.report import Report
from sbnlib.network import SBN

__all__ = ["SAMPLES", "place"]

#: Gradient samples a problem, where moments are not exact sums.
SAMPLES = 1 << 14

#: Draws over which the cost is counted.
COUNTED = 64

#: Significant digits of numbers, and of standard errors.
DIGITS, SE_DIGITS = 4, 2

#: What is smaller, relative to the squared gradient, is rounding.
ROUNDING = 1e-20

Row = dict[str, Any]


def place(
    estimator: str | Callable[..., Tensor],
    *,
    kind: str | None = None,
    name: str | None = None,
    problems: Sequence[str] | None = None,
    command: str | None = None,
) -> Report:
    r"""Measure an estimator on the problems of sbn-map-1 and set it beside those of the registry.

    With g the exact gradient and :math:`\hat g` one gradient sample (of the mean loss, one fresh
    draw an input), the report has for each problem, for the first layer and for all layers,

    .. math:: \frac{\|\mathbb{E}\hat g - g\|^2}{\|g\|^2}, \quad
              \frac{\mathbb{E}\|\hat g - \mathbb{E}\hat g\|^2}{\|g\|^2}, \quad
              \frac{\mathbb{E}\|\hat g - g\|^2}{\|g\|^2}, \quad \cos(\mathbb{E}\hat g, g),

    each with its standard error, and what one sample costs. A chain-rule function of (a, x) alone
    is measured by exact sums, with standard errors 0; any other by 16384 samples with fixed seeds,
    as :func:`sbnlib.measure` does. The cost is counted while it runs: evaluations of the loss, and
    forward passes, an input and sample.

    Args:
        estimator: a name in the registry, or a function of one of the four kinds of
            :mod:`sbnlib.contracts`. Tensors come in float64, with an axis of draws in front.
        kind: ``"chain rule"``, ``"loss based"``, ``"relaxation"`` or ``"network"``; only needed
            where the names of the function's arguments do not tell it.
        name: in the report; default the function's own.
        problems: names of problems; default all.
        command: the command line that repeats the report; default the call of this function.

    Returns:
        A :class:`Report`, the same to the byte whenever it is made again with the same versions.

    Raises:
        ValueError: an unknown name, kind or problem; a function whose kind cannot be told, that
            needs further arguments, or that fails its trial: it changes the value of x, an
            argument in place or the network, has no gradient, returns another shape, NaN or
            infinity, or does not draw its random numbers from the generator that it is handed.
        TypeError: neither a name nor a function.
        DataError: the problem set or the registry's results are not those of this version.
    """
    chosen = select(problems)
    with _quiet():
        its = given(estimator, kind, name)
        rows = tuple(_row(problem, its) for problem in chosen)
    first = repr(estimator) if isinstance(estimator, str) else its.name
    more = {"kind": kind, "name": name, "problems": problems and [p.name for p in chosen]}
    call = ", ".join([first, *(f"{key}={value!r}" for key, value in more.items() if value)])
    return Report(
        name=its.name,
        kind=its.kind,
        sampled=its.sampled,
        entry=estimator if isinstance(estimator, str) else None,
        samples=SAMPLES if its.sampled else 0,
        command=command or f"sbnlib.map.place({call})",
        versions=versions(),
        rows=rows,
    )


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("sbnlib")
    except PackageNotFoundError:
        own = "not installed"
    return {"sbnlib": own, "torch": torch.__version__, "numpy": numpy.__version__,
            "python": platform.python_version()}  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread, so that sums are taken in one order; and gradients on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(before)


def _row(problem: Problem, its: Given) -> Row:
    """What one problem gives."""
    try:
        net = problem.net()
        _, exact = exact_gradient(net, problem.inputs, problem.loss)
        target = _grouped(exact)
        found = (
            _sampled(problem, net, target, its)
            if its.sampled
            else _exactly(problem, net, target, its)
        )
        cost = _cost(problem, net, its)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"estimator {its.name} at {problem.name}: {error}") from error
    return {"problem": problem.name} | cost | found


def _grouped(gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients (..., *shape) of the first layer as one vector (..., P), and of the others."""
    groups: dict[str, list[Tensor]] = {}
    for name, g in gradient.items():
        axes = 2 if name.endswith("weight") else 1
        group = "first" if name.startswith("layers.0.") else "rest"
        groups.setdefault(group, []).append(g.flatten(g.dim() - axes))
    return {group: torch.cat(parts, dim=-1) for group, parts in groups.items()}


# ---- exact sums ----------------------------------------------------------------------------------


def _exactly(problem: Problem, net: SBN, target: Mapping[str, Tensor], its: Given) -> Row:
    moments = exact_moments(net, problem.inputs, problem.loss, its.function)
    mean = _grouped({name: m for name, (m, _) in moments.items()})
    variance = _grouped({name: v for name, (_, v) in moments.items()})
    groups = {"first": ["first"], "all": list(target)}
    return {group: _from_moments(*(torch.cat([part[key] for key in keys])
            for part in (target, mean, variance))) for group, keys in groups.items()}  # fmt: skip


def _from_moments(g: Tensor, mean: Tensor, variance: Tensor) -> Row:
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise ValueError("its mean or its variance is NaN or infinite")
    norm2, length = float(g.square().sum()), float(mean.norm())
    bias2, var = float((mean - g).square().sum()) / norm2, float(variance.sum()) / norm2
    along = float(mean @ g) / norm2
    cosine = along * math.sqrt(norm2) / length if length else math.nan
    square = length**2 / norm2 + var  # of a sample
    efficiency = along**2 / square if square else 0.0
    values = (bias2, var, bias2 + var, efficiency, cosine, along)
    return {name: _pair(value, 0.0) for name, value in zip(QUANTITIES, values, strict=True)}


# ---- samples -------------------------------------------------------------------------------------


def _sampled(problem: Problem, net: SBN, target: dict[str, Tensor], its: Given) -> Row:
    chunks = gradient_samples(
        net, problem.inputs, problem.loss, its.network, SAMPLES, generator=_generator(problem)
    )
    found = of_samples(map(_grouped, chunks), target, SAMPLES)
    effective = min(found[group].effective_samples for group in ("first", "all"))
    rows = {group: _from_samples(found[group]) for group in ("first", "all")}
    return {"effective_samples": round(effective)} | rows


def _from_samples(a: Accuracy) -> Row:
    relative = ("bias2", "variance", "mse", "along")
    found = {
        name: _pair(e.value / a.reference_norm2, e.se / a.reference_norm2)
        for name, e in zip(relative, (a.bias2, a.variance, a.mse, a.along), strict=True)
    }
    ratios = {"efficiency": a.efficiency, "cosine": a.cosine_of_mean}
    found |= {name: _pair(e.value, e.se) for name, e in ratios.items()}
    return {name: found[name] for name in QUANTITIES}


def _generator(problem: Problem) -> torch.Generator:
    """Its seed is a hash of the problem's name: it depends on no other problem."""
    digest = hashlib.sha256(problem.name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _pair(value: float, se: float) -> list[float | None]:
    """A number and its standard error, rounded; what is rounding is 0, what is not told is None."""
    return [_significant(value, DIGITS), _significant(se, SE_DIGITS)]


def _significant(value: float, digits: int) -> float | None:
    if math.isnan(value):
        return None
    return float(f"{value:.{digits - 1}e}") if abs(value) > ROUNDING else 0.0


# ---- cost ----------------------------------------------------------------------------------------


def _cost(problem: Problem, net: SBN, its: Given) -> Row:
    """Evaluations of the loss, and forward passes, an input and sample, as they happen.

    A pass through one layer counts by its share of the network's weights. What an estimator
    computes from the weights without the layers is not seen.
    """
    rows = {"loss": 0.0, "passes": 0.0}
    one = len(problem.inputs) * COUNTED
    layers = linear_layers(net, "the map")
    total = sum(layer.weight.numel() for layer in layers)

    def loss(x: Tensor) -> Tensor:
        rows["loss"] += x.numel() / x.shape[-1] / one
        return problem.loss(x)

    def passed(layer: torch.nn.Linear, args: tuple[Tensor, ...], out: Tensor) -> None:
        share = layer.weight.numel() / total
        rows["passes"] += out.numel() / out.shape[-1] / one * share

    handles = [layer.register_forward_hook(passed) for layer in layers]
    try:
        its.network(net, problem.inputs.expand(COUNTED, -1, -1), loss,
                    generator=_generator(problem))  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    return {
        "loss_evaluations": _significant(rows["loss"], DIGITS),
        "forward_passes": _significant(rows["passes"], DIGITS),
    }
