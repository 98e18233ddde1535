"""How fast sbnlib is, as ratios to the plain way of computing the same numbers.

    python -m sbnlib.experiments.bench [--quick] [--only NAME ...] [--out FILE] [--threads N]

Both sides of a row run in turns in one process. A row gives the minimum and the median of each side
and the ratios of the minima and of the medians; the target is held against the ratio of the minima,
which other processes disturb least. The load of the machine is printed beside it. Both sides must
first give the same numbers (``checks`` of the file).

One torch thread by default, on both sides: where other processes run, a second one waits for them,
and a sum of 2 ms takes 80. The clock is then the processor time of this process, the same as the
wall clock on an idle machine. On a busy one the wall clock favours the side that is done in 2 ms:
some of its runs meet nobody, while a run of 3 s always shares the processor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from sbnlib import packed, registry
from sbnlib.accuracy import measure
from sbnlib.contracts import Loss, NetworkEstimator, check_count, linear_layers
from sbnlib.data import Split
from sbnlib.estimators import disarm, local_expectation, reinforce, straight_through, zgr
from sbnlib.exact import all_states, exact_gradient
from sbnlib.experiments import measurement
from sbnlib.experiments.command import add_option, add_out, refusing, repeat
from sbnlib.experiments.training import Classifier, Recipe, Training, fit, linear
from sbnlib.experiments.training import threads as limited
from sbnlib.extras import extra
from sbnlib.network import SBN, layerwise, network_estimator, pathwise
from sbnlib.nn import Sign
from sbnlib.noise import Logistic
from sbnlib.packed import products
from sbnlib.units import flipped_by_words

__all__ = ["ROWS", "Row", "Times", "main", "on_threads", "peak_memory", "take_turns"]

Side = Callable[[], Any]
Gradient = tuple[Tensor, dict[str, Tensor]]
TOLERANCE = 1e-10  # of values and gradients of two exact sums, relative


class Times(NamedTuple):
    """Seconds."""

    minimum: float
    median: float


@dataclass(frozen=True)
class Row:
    """One comparison. ``ratio`` is of the minima, ``ratio_of_medians`` of the medians.

    ``target`` is such as ">= 30" or "<= 1.3", or "" where there is none; ``difference`` is the
    largest relative difference between the numbers of the two sides, None where the sides are not
    two ways to the same numbers; ``details`` holds what else was measured.
    """

    row: str
    ours: str
    other: str
    ours_s: Times | None = None
    other_s: Times | None = None
    ratio: float | None = None
    ratio_of_medians: float | None = None
    target: str = ""
    difference: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    load: tuple[float, float] = (math.nan, math.nan)

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None if there is none."""
        if not self.target or self.ratio is None:
            return None
        sense, bound = self.target.split()
        return self.ratio >= float(bound) if sense == ">=" else self.ratio <= float(bound)


def take_turns(ours: Side, *others: Side, rounds: int, repeats: int = 1) -> list[Times]:
    """Times of all sides, run in turns; ``repeats`` runs of ours to one of each other.

    One run of each comes first and does not count.
    """
    seconds: list[list[float]] = [[] for _ in range(1 + len(others))]
    for side in (ours, *others):
        side()
    for _ in range(rounds):
        seconds[0] += [_seconds(ours) for _ in range(repeats)]
        for found, side in zip(seconds[1:], others, strict=True):
            found.append(_seconds(side))
    return [Times(min(found), statistics.median(found)) for found in seconds]


def _seconds(side: Side) -> float:
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_initialized()
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    side()
    return clock() - start


class Ratios(NamedTuple):
    """Of the minima and of the medians, in the order in which a row has them."""

    ratio: float
    ratio_of_medians: float


def _ratios(above: Times, below: Times) -> Ratios:
    return Ratios(above.minimum / below.minimum, above.median / below.median)


def _problem(widths: Sequence[int], batch: int) -> tuple[SBN, Tensor, Loss]:
    """A net, inputs and a loss with a target for each input, always the same ones; float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = zip(widths, widths[1:], strict=False)
        net = SBN(*(nn.Linear(m, n, dtype=torch.float64) for m, n in sizes))
        inputs = torch.randn(batch, widths[0], dtype=torch.float64)
        w = torch.randn(widths[-1], dtype=torch.float64)
        targets = torch.randn(batch, dtype=torch.float64)
    return net, inputs, lambda x: (torch.tanh(x @ w) - targets).square()


def _names(widths: Sequence[int], batch: int) -> str:
    return f"{'-'.join(map(str, widths))}, B = {batch}, float64"


def _difference(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    """The largest difference of two lists of tensors, each relative to its largest entry."""
    pairs = zip(a, b, strict=True)
    return max(float((x - y).detach().abs().max() / y.detach().abs().max()) for x, y in pairs)


# Exact gradients ---------------------------------------------------------------------------------


def enumerate_states(net: SBN, inputs: Tensor, loss: Loss, block: int = 64) -> Gradient:
    r"""Vectorised enumeration of the product space, each term P(x_1..x_K | input) L(x_K) by itself.

    Every term evaluates all its units; all terms of a block of joint states, for all inputs, are
    done at once. Of the sizes of the block that were tried, 64 is the fastest.
    """

    def term(rows: Tensor) -> Tensor:
        below, logits = inputs, []
        for layer, x in zip(net.layers, rows.split(_widths(net), dim=1), strict=True):
            x = x[:, None].expand(-1, len(inputs), -1)
            logits.append(x * layer(below))
            below = x
        return logsigmoid(torch.cat(logits, dim=-1)).sum(dim=-1).exp() * loss(below)

    states = all_states(sum(_widths(net)), dtype=inputs.dtype)
    return _accumulated(net, (term(rows).sum() / len(inputs) for rows in states.split(block)))


def enumerate_tables(net: SBN, inputs: Tensor, loss: Loss, block: int = 4) -> Gradient:
    r"""Enumeration from tables of log P(x_k | x_{k-1}), the fastest one tried here.

    The terms are still formed, exponentiated, weighted and added one by one, but a unit is
    evaluated once for each state below it and not once a term.
    """
    states = _states_of(net, inputs)

    def term(part: Tensor, values: Tensor) -> Tensor:
        paths = _log_p(states[0], net.layers[0](part))
        for layer, below, x in zip(net.layers[1:], states, states[1:], strict=False):
            paths = paths[..., None] + _log_p(x, layer(below))
        ones = [1] * (len(states) - 1)
        return (paths.exp() * values.view(len(part), *ones, -1)).sum() / len(inputs)

    parts = zip(inputs.split(block), _losses(loss, states[-1], inputs).split(block), strict=True)
    return _accumulated(net, (term(part, values) for part, values in parts))


def full_tables(net: SBN, inputs: Tensor, loss: Loss) -> Gradient:
    """The forward algorithm with each transition as one table of 2^n x 2^m probabilities."""
    states = _states_of(net, inputs)
    law = _log_p(states[0], net.layers[0](inputs)).exp()
    for layer, below, x in zip(net.layers[1:], states, states[1:], strict=False):
        a = layer(below)
        # log sigmoid(xa) = (xa - |a|)/2 + log sigmoid(|a|): one matrix product for all pairs
        constant = (logsigmoid(a.abs()) - a.abs() / 2).sum(dim=1, keepdim=True)
        law = law @ (a @ x.T / 2 + constant).exp()
    return _accumulated(net, [(law * _losses(loss, states[-1], inputs)).sum() / len(inputs)])


def _log_p(x: Tensor, a: Tensor) -> Tensor:
    """log P(x | a) of each state for each row of pre-activations: (T, n), (S, n) -> (S, T)."""
    return logsigmoid(x * a[:, None]).sum(dim=-1)


def _losses(loss: Loss, x: Tensor, inputs: Tensor) -> Tensor:
    """The loss of each state for each input: (B, S)."""
    return loss(x[:, None].expand(-1, len(inputs), -1)).T


def _widths(net: SBN) -> list[int]:
    return [layer.out_features for layer in linear_layers(net, "enumeration")]


def _states_of(net: SBN, like: Tensor) -> list[Tensor]:
    return [all_states(n, dtype=like.dtype) for n in _widths(net)]


def _accumulated(net: SBN, terms: Iterable[Tensor]) -> Gradient:
    """The sum of the terms and its gradient, one backward pass a term."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    values, grads = [], [torch.zeros_like(p) for p in parameters]
    for term in terms:
        values.append(term.detach())
        for total, grad in zip(grads, torch.autograd.grad(term, parameters), strict=True):
            total += grad
    return torch.stack(values).sum(), dict(zip(names, grads, strict=True))


def exact(
    name: str,
    baseline: Callable[[SBN, Tensor, Loss], Gradient],
    target: str,
    *,
    widths: Sequence[int],
    batch: int,
    rounds: int,
    repeats: int,
) -> Row:
    """``exact_gradient`` against another way to the same numbers."""
    problem = _problem(widths, batch)
    (a, grads_a), (b, grads_b) = exact_gradient(*problem), baseline(*problem)
    ours, other = take_turns(
        lambda: exact_gradient(*problem),
        lambda: baseline(*problem),
        rounds=rounds,
        repeats=repeats,
    )
    return Row(
        name,
        f"exact_gradient, {_names(widths, batch)}",
        _first_line(baseline),
        ours,
        other,
        *_ratios(other, ours),
        target=target,
        difference=_difference([a, *grads_a.values()], [b, *grads_b.values()]),
        details={"rounds": rounds, "repeats": repeats},
    )


def _first_line(function: Callable[..., Any]) -> str:
    """What the function is, from its docstring, to be read after "against"."""
    line = (function.__doc__ or "").split("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def wide(name: str, *, widths: Sequence[int]) -> Row:
    """Seconds and peak memory of one cold ``exact_gradient``, in a process of its own."""
    found = _probe("probe_exact", list(widths))
    return Row(
        name,
        f"exact_gradient, {_names(widths, 1)}, one cold run",
        "",
        details={"probes": {"one run": found}},
    )


def probe_exact(widths: Sequence[int]) -> dict[str, float]:
    problem = _problem(widths, 1)
    return {"seconds": _seconds(lambda: exact_gradient(*problem)), "peak_mib": peak_memory()}


# Statistics of an estimator ----------------------------------------------------------------------


def backward_loop(
    net: SBN, inputs: Tensor, loss: Loss, num_samples: int, generator: torch.Generator
) -> Tensor:
    """One call of the estimator and one of backward a gradient sample: (M, parameters)."""
    estimator, rows = pathwise(straight_through), []
    for _ in range(num_samples):
        net.zero_grad()
        estimator(net, inputs, loss, generator=generator).mean().backward()
        grads = (p.grad for p in net.parameters())
        rows.append(torch.cat([g.flatten() for g in grads if g is not None]))
    return torch.stack(rows)


def loop_by_hand(
    net: SBN, inputs: Tensor, loss: Loss, num_samples: int, generator: torch.Generator
) -> Tensor:
    """The same samples without sbnlib's modules and checks; the fastest loop tried here."""
    parameters, rows = list(net.parameters()), []
    for _ in range(num_samples):
        x = inputs
        for layer in net.layers:
            a = layer(x)
            p, q = torch.sigmoid(a), torch.sigmoid(-a.detach().abs())
            x = flipped_by_words(a.detach(), q, a.shape, generator) + 2 * (p - p.detach())
        grads = torch.autograd.grad(loss(x).mean(), parameters)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def statistics_of_st(
    name: str,
    target: str,
    *,
    widths: Sequence[int],
    batch: int,
    num_samples: int,
    loop_samples: int,
    rounds: int,
) -> Row:
    """``measure`` against loops of backward calls, timed on fewer samples and scaled up."""
    problem, draws = _problem(widths, batch), torch.Generator().manual_seed(0)
    ours, *loops = take_turns(
        lambda: measure(*problem, "straight_through", num_samples, generator=draws),
        lambda: _moments(backward_loop(*problem, loop_samples, draws)),
        lambda: _moments(loop_by_hand(*problem, loop_samples, draws)),
        rounds=rounds,
    )
    scale = num_samples / loop_samples
    other, by_hand = (Times(*(seconds * scale for seconds in loop)) for loop in loops)
    sizes = {"rounds": rounds, "samples": num_samples, "loop_samples": loop_samples}
    return Row(
        name,
        f"measure, straight-through, {_names(widths, batch)}, {num_samples} samples",
        f"a loop of backward calls, {loop_samples} timed and scaled linearly",
        ours,
        other,
        *_ratios(other, ours),
        target=target,
        difference=max(
            _difference_of_statistics(problem, f) for f in (backward_loop, loop_by_hand)
        ),
        details=sizes | {"by_hand_s": by_hand, "by_hand": _ratios(by_hand, ours)._asdict()},
    )


def _moments(rows: Tensor) -> Tensor:
    """Mean of the samples, and the trace of their covariance at the end."""
    return torch.cat([rows.mean(dim=0), rows.var(dim=0).sum()[None]])


def _difference_of_statistics(
    problem: tuple[SBN, Tensor, Loss], loop: Callable[..., Tensor]
) -> float:
    """Variance and MSE of sixteen samples by both; ``measure`` draws so few one by one too."""
    m = 16
    found = measure(*problem, "straight_through", m, generator=_seeded())["all"]
    moments = _moments(loop(*problem, m, _seeded()))
    exact_mean = torch.cat([g.flatten() for g in exact_gradient(*problem)[1].values()])
    mse = (moments[:-1] - exact_mean).square().sum() + moments[-1] * (1 - 1 / m)
    given = torch.tensor([found.variance.value, found.mse.value], dtype=torch.float64)
    return _difference(given, torch.stack([moments[-1], mse]))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def memory_of_statistics(
    name: str, target: str, *, widths: Sequence[int], sizes: Sequence[int]
) -> Row:
    """Peak memory of ``measure`` at each number of samples, each in a process of its own."""
    found = {str(m): _probe("probe_measure", list(widths), m) for m in sizes}
    peaks = [probe["peak_mib"] for probe in found.values()]
    return Row(
        name,
        f"peak memory of measure, {_names(widths, 1)}, {sizes[-1]:.0e} samples",
        f"the least at {', '.join(f'{m:.0e}' for m in sizes)} samples",
        ratio=max(peaks) / min(peaks),
        target=target,
        details={"probes": found},
    )


def probe_measure(widths: Sequence[int], num_samples: int) -> dict[str, float]:
    problem, draws = _problem(widths, 1), torch.Generator().manual_seed(0)
    seconds = _seconds(lambda: measure(*problem, "straight_through", num_samples, generator=draws))
    return {"seconds": seconds, "peak_mib": peak_memory()}


def _probe(function: str, *arguments: Any) -> dict[str, float]:
    """The result of a function of this module in a new process with as many threads."""
    code = (
        "import json, torch; from sbnlib.experiments import bench; "
        f"torch.set_num_threads({torch.get_num_threads()}); "
        f"print(json.dumps(bench.{function}(*{arguments!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def peak_memory() -> float:
    """The most memory this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage would count what the parent held when it forked
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


# A training step ---------------------------------------------------------------------------------


def training_step(name: str, target: str, *, widths: Sequence[int], batch: int, rounds: int) -> Row:
    """A step of plain SGD on cross-entropy, float32: binary units against tanh."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs, labels = torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))
        layers, twins = _layers(widths), _layers(widths)
        binary = nn.Sequential(SBN(*layers[:-1]), layers[-1])
        smooth = nn.Sequential(*(m for layer in twins[:-1] for m in (layer, nn.Tanh())), twins[-1])
        sides = [_step(net, inputs, labels) for net in (binary, smooth)]
        ours, other = take_turns(*sides, rounds=rounds)
    return Row(
        name,
        f"step of an SBN {'-'.join(map(str, widths))}, batch {batch}, straight-through, float32",
        "the same net with tanh",
        ours,
        other,
        *_ratios(ours, other),
        target=target,
        details={"rounds": rounds},
    )


def _layers(widths: Sequence[int]) -> list[nn.Linear]:
    return [nn.Linear(m, n) for m, n in zip(widths, widths[1:], strict=False)]


def _step(net: nn.Module, inputs: Tensor, labels: Tensor) -> Side:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(net(inputs), labels).backward()
        optimizer.step()

    return step


# Every estimator ---------------------------------------------------------------------------------


def estimator_step(
    name: str, *, estimator: str, widths: Sequence[int], batch: int, rounds: int
) -> Row:
    """A step of plain SGD on cross-entropy with a registry's estimator against the tanh twin."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs, labels = torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))
        layers, twins = _layers(widths), _layers(widths)
        binary = Classifier(SBN(*layers[:-1]), layers[-1], network_estimator(estimator))
        smooth = nn.Sequential(*(m for layer in twins[:-1] for m in (layer, nn.Tanh())), twins[-1])
        ours, other = take_turns(
            _classifier_step(binary, inputs, labels), _step(smooth, inputs, labels), rounds=rounds
        )
    return Row(
        name,
        f"step of an SBN {'-'.join(map(str, widths))}, batch {batch}, {estimator}, float32",
        "the same net with tanh",
        ours,
        other,
        *_ratios(ours, other),
        details={"evaluations": registry.get(estimator).cost(widths[-2]), "rounds": rounds},
    )


def _classifier_step(model: Classifier, inputs: Tensor, labels: Tensor) -> Side:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs, labels, generator).mean().backward()
        optimizer.step()

    return step


def cost_of_units(name: str, *, units: Sequence[int], batch: int, rounds: int) -> Row:
    """One layer of n units under a linear head: each estimator's step relative to ST's."""
    details: dict[str, Any] = {"units": list(units)}
    for estimator in registry.ESTIMATORS:
        ratios = []
        for n in units:
            pair = [estimator, "straight_through"]
            ours, st = take_turns(*(_one_layer(e, 64, n, batch) for e in pair), rounds=rounds)
            ratios.append(round(ours.minimum / st.minimum, 2))
        details[estimator] = ratios
    return Row(name, f"step of an SBN 64-n-10, batch {batch}", "straight-through", details=details)


def cost_of_samples(name: str, *, samples: Sequence[int], batch: int, rounds: int) -> Row:
    """REINFORCE, local expectation and DisARM with M samples, relative to one sample."""
    details: dict[str, Any] = {"samples": list(samples)}
    for loss_based in (reinforce, local_expectation, disarm):
        ratios = []
        for m in samples:
            pair = [layerwise(partial(loss_based, num_samples=k)) for k in (m, 1)]
            ours, one = take_turns(*(_one_layer(e, 64, 50, batch) for e in pair), rounds=rounds)
            ratios.append(round(ours.minimum / one.minimum, 2))
        details[loss_based.__name__] = ratios
    return Row(name, f"step of an SBN 64-50-10, batch {batch}", "one sample", details=details)


def _one_layer(estimator: str | NetworkEstimator, inputs: int, n: int, batch: int) -> Side:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, head = SBN(nn.Linear(inputs, n)), nn.Linear(n, 10)
        model = Classifier(net, head, network_estimator(estimator))
        return _classifier_step(model, torch.randn(batch, inputs), torch.randint(10, (batch,)))


# Products of signs --------------------------------------------------------------------------------


def packed_product(
    name: str, target: str, *, backend: str, inputs: int, outputs: int, batch: int, rounds: int
) -> Row:
    """``xnor_linear`` of words that are ready against a float32 product of the same signs."""
    ours = f"xnor_linear by {backend}, {outputs} x {inputs} signs, batch {batch}"
    other = "float32 product"
    if backend == "numba" and find_spec("numba") is None:
        return Row(name, ours, other, details={"not installed": "pip install 'sbnlib[packed]'"})
    draw = torch.Generator().manual_seed(0)
    x, w = (2.0 * torch.randint(2, (m, inputs), generator=draw) - 1 for m in (batch, outputs))
    words, weights = packed.pack(x.numpy()), packed.pack(w.numpy())
    product, transposed = products.product(backend), w.T.contiguous()

    def mine() -> Any:
        return packed.xnor_linear(words, weights, inputs, product=product)

    ours_s, other_s = take_turns(mine, lambda: x @ transposed, rounds=rounds)
    return Row(name, ours, other, ours_s, other_s, *_ratios(other_s, ours_s), target=target,
               difference=_difference([torch.from_numpy(mine()).float()], [x @ transposed]),
               details={"rounds": rounds})  # fmt: skip


def _counts_bits_by_word() -> str:
    """What a product by numba should reach: on processors that count the bits of eight words at
    once 10, on others 5."""
    info = Path("/proc/cpuinfo")
    return ">= 10" if info.exists() and "avx512_vpopcntdq" in info.read_text() else ">= 5"


# A search of many trainings -----------------------------------------------------------------------


def search(
    name: str, target: str, *, trainings: int, widths: Sequence[int], batch: int, steps: int,
    dtype: str, device: str, rounds: int,
) -> Row:  # fmt: skip
    """An epoch of trainings with different learning rates, as one and one by one; straight-through.

    On a CPU both sides end with the same weights, bit for bit.
    """
    net = f"SBN {'-'.join(map(str, widths))}, batch {batch}, {dtype}"
    ours, other = f"search of {trainings}, {steps} steps, {net}, {device}", "one by one"
    if device == "cuda" and not torch.cuda.is_available():
        return Row(name, ours, other, details={"not run": "there is no CUDA device"})
    with extra("experiments"):
        from lightning_fabric import Fabric

    fabric = Fabric(accelerator=device, devices=1)
    data, together, alone = _search(trainings, widths, batch, steps, dtype, fabric.device)

    def one_by_one() -> None:
        for training in alone:
            fit(fabric, [training], data)

    sides = [lambda: fit(fabric, together, data), one_by_one]
    for side in sides:
        side()
    pairs = [[p for t in ts for p in t.model.parameters()] for ts in (together, alone)]
    difference = _difference(*pairs) if device == "cpu" else None
    ours_s, other_s = take_turns(*map(_finished, sides), rounds=rounds)
    return Row(name, ours, other, ours_s, other_s, *_ratios(other_s, ours_s), target=target,
               difference=difference, details={"rounds": rounds})  # fmt: skip


def _search(
    count: int, widths: Sequence[int], batch: int, steps: int, dtype: str, device: torch.device
) -> tuple[Split, list[Training], list[Training]]:
    """Data for so many steps, and the same trainings twice."""
    kind = {"float32": torch.float32, "float64": torch.float64}[dtype]
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(steps * batch, widths[0], generator=draw, dtype=torch.float64)
    labels = torch.randint(widths[-1], (steps * batch,), generator=draw)

    def training(seed: int) -> Training:
        start = torch.Generator().manual_seed(seed)
        *layers, head = (
            linear(m, n, 1.0, start, kind) for m, n in zip(widths, widths[1:], strict=False)
        )
        model = Classifier(SBN(*layers), head, network_estimator("straight_through")).to(device)
        adam = torch.optim.Adam(model.parameters(), lr=1e-4 * (1 + seed))
        return Training(model, [adam], Recipe(seed, epochs=1, batch_size=batch))

    data = Split(inputs.to(device, kind), labels.to(device))
    return data, [training(k) for k in range(count)], [training(k) for k in range(count)]


def _finished(side: Side) -> Side:
    """The side and what it has left to a GPU to do."""

    def run() -> None:
        side()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    return run


# Peers, where they are installed (the extra "peers") ----------------------------------------------


def peer_reinmax(name: str, *, rounds: int) -> Row:
    """A unit forward and backward: zgr against the released ReinMax at temperature 1, K = 2."""
    ours, other = "zgr: sample and slope, 100 x 200 units, float32", "reinmax, two classes"
    if find_spec("reinmax") is None:
        return Row(name, ours, other, details={"not installed": "pip install 'sbnlib[peers]'"})
    from reinmax import reinmax

    a = torch.randn(100, 200, generator=torch.Generator().manual_seed(0)).requires_grad_()
    unit = Sign(estimator=zgr)

    def theirs() -> Tensor:  # softmax of (a/2, -a/2) gives the probabilities F(a), F(-a)
        y, _ = reinmax(torch.stack([a / 2, -a / 2], dim=-1), 1.0)
        return y[..., 0] - y[..., 1]

    x = theirs()
    (slope,) = torch.autograd.grad(x.sum(), a)
    (mine,) = torch.autograd.grad(zgr(a, x.detach(), Logistic()).sum(), a)
    sides = (lambda: unit(a).sum().backward(), lambda: theirs().sum().backward())
    ours_s, other_s = take_turns(*sides, rounds=rounds)
    return Row(name, ours, other, ours_s, other_s, *_ratios(other_s, ours_s),
               details={"slopes differ by": float((slope - mine).abs().max())})  # fmt: skip


def peer_storchastic(name: str, *, rounds: int) -> Row:
    """A REINFORCE step of one layer against storchastic's score function, no baseline."""
    ours, other = "REINFORCE step of an SBN 784-200-10, batch 100", "storchastic, ScoreFunction"
    if find_spec("storch") is None:
        return Row(name, ours, other, details={"not installed": "pip install 'sbnlib[peers]'"})
    import storch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, head = nn.Linear(784, 200), nn.Linear(200, 10)
        own_layer, own_head = nn.Linear(784, 200), nn.Linear(200, 10)
        inputs, labels = torch.randn(100, 784), torch.randint(10, (100,))
    optimizer = torch.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.01)
    method = storch.method.ScoreFunction("x", n_samples=1, baseline_factory=None)

    def theirs() -> None:
        optimizer.zero_grad()
        images = storch.denote_independent(inputs, 0, "batch")
        bits = method(torch.distributions.Bernoulli(logits=layer(images)))
        scores = head(2 * bits - 1)
        storch.add_cost(cross_entropy(scores, labels, reduction="none"), "loss")
        storch.backward()
        optimizer.step()
        storch.reset()

    model = Classifier(SBN(own_layer), own_head, network_estimator("reinforce"))
    step = _classifier_step(model, inputs, labels)
    ours_s, other_s = take_turns(step, theirs, rounds=rounds)
    return Row(name, ours, other, ours_s, other_s, *_ratios(other_s, ours_s))


# The command -------------------------------------------------------------------------------------

NET, WIDE = (2, 5, 5, 5), (2, 12, 12, 12)
ST = {"widths": NET, "num_samples": 100_000}
SEARCH = {"trainings": 24, "steps": 10}

#: name -> the function that makes the row, its arguments, and those that --quick changes (None:
#: --quick leaves the row out).
ROWS: dict[str, tuple[Callable[..., Row], dict[str, Any], dict[str, Any] | None]] = {
    "exact": (
        exact,
        {"baseline": enumerate_states, "target": ">= 1000", "widths": NET, "batch": 200}
        | {"rounds": 6, "repeats": 40},
        {"rounds": 2},
    ),
    "exact-tables": (
        exact,
        {"baseline": enumerate_tables, "target": "", "widths": NET, "batch": 200}
        | {"rounds": 20, "repeats": 20},
        {"rounds": 5},
    ),
    "exact-12": (
        exact,
        {"baseline": full_tables, "target": ">= 30", "widths": WIDE, "batch": 1}
        | {"rounds": 6, "repeats": 10},
        {"rounds": 2},
    ),
    "exact-16": (wide, {"widths": (2, 16, 16, 16)}, None),
    "statistics-1": (
        statistics_of_st,
        ST | {"target": ">= 300", "batch": 1, "loop_samples": 1000, "rounds": 12},
        {"rounds": 3},
    ),
    "statistics-200": (
        statistics_of_st,
        ST | {"target": ">= 8", "batch": 200, "loop_samples": 1000, "rounds": 5},
        {"num_samples": 10_000, "rounds": 2},
    ),
    "statistics-memory": (
        memory_of_statistics,
        {"target": "<= 1.05", "widths": NET, "sizes": (10**5, 10**6, 10**7)},
        {"sizes": (10**5, 10**6)},
    ),
    "step": (
        training_step,
        {"target": "<= 1.15", "widths": (784, 200, 200, 10), "batch": 100, "rounds": 1500},
        {"rounds": 200},
    ),
    **{
        f"step-{estimator}": (
            estimator_step,
            {"estimator": estimator, "widths": (784, 200, 200, 10), "batch": 100, "rounds": 40},
            {"rounds": 5},
        )
        for estimator in registry.ESTIMATORS
    },
    "cost-units": (
        cost_of_units,
        {"units": (25, 50, 100, 200), "batch": 50, "rounds": 20},
        {"units": (25, 50), "rounds": 3},
    ),
    "cost-samples": (
        cost_of_samples,
        {"samples": (1, 4, 16, 64), "batch": 50, "rounds": 20},
        {"samples": (1, 4), "rounds": 3},
    ),
    **{
        f"packed-{backend}": (
            packed_product,
            {"backend": backend, "target": target, "inputs": 4096, "outputs": 1024, "batch": 1024}
            | {"rounds": 15},
            {"rounds": 3},
        )
        for backend, target in (("numba", _counts_bits_by_word()), ("int8", ">= 4"), ("numpy", ""))
    },
    "peer-reinmax": (peer_reinmax, {"rounds": 300}, {"rounds": 20}),
    "peer-storchastic": (peer_storchastic, {"rounds": 100}, {"rounds": 10}),
    **{
        f"search-{dtype}": (
            search,
            SEARCH
            | {"target": target, "widths": (64, 100, 100, 10), "batch": 100}
            | {"dtype": dtype, "device": "cpu", "rounds": 30},
            {"rounds": 3},
        )
        for dtype, target in (("float32", ">= 2"), ("float64", ">= 1.4"))
    },
    "search-cuda": (
        search,
        SEARCH
        | {"target": ">= 10", "widths": (784, 512, 512, 10), "batch": 500}
        | {"dtype": "float32", "device": "cuda", "rounds": 10},
        {"rounds": 2},
    ),
}


def make(name: str, quick: bool = False) -> Row:
    """The row of this name, with the load of the machine before and after."""
    function, arguments, changes = ROWS[name]
    before = os.getloadavg()[0]
    row = function(name, **arguments | (changes or {} if quick else {}))
    return replace(row, load=(before, os.getloadavg()[0]))


def report(row: Row) -> str:
    """The row in words, a line of numbers and what they are."""
    verdict = {True: "met", False: "not met", None: "no target"}[row.met]
    ratio = "" if row.ratio is None else f"{row.ratio:.4g}x"
    if row.ratio_of_medians is not None:
        ratio += f" ({row.ratio_of_medians:.4g}x)"
    cells = [_show(row.ours_s), _show(row.other_s), ratio, row.target, verdict]
    line = " ".join(f"{c:>{w}}" for c, w in zip(cells, (20, 20, 18, 8, 9), strict=True))
    load = f"load {row.load[0]:.1f} to {row.load[1]:.1f}"
    words = [row.ours, f"against {row.other}" if row.other else "", *_more(row.details)]
    return "\n".join([f"{row.row:17}{line}  {load}", *(f"{'':17} {w}" for w in words if w)])


def _more(details: Mapping[str, Any]) -> Iterator[str]:
    """Lines on what a row holds beside its two sides."""
    if "by_hand" in details:
        found = details["by_hand"]
        yield (
            f"against the same loop by hand, {_show(details['by_hand_s'])}: "
            f"{found['ratio']:.4g}x ({found['ratio_of_medians']:.4g}x)"
        )
    shown = ("by_hand", "by_hand_s", "probes", "rounds")
    for name, value in details.items():
        if name not in shown and isinstance(value, (list, str, float)):
            numbers = "  ".join(f"{v:>8}" for v in value) if isinstance(value, list) else value
            yield f"{name:20} {numbers}"
    for samples, found in details.get("probes", {}).items():
        yield f"{samples:>9}: {_unit(found['seconds'])}, peak {found['peak_mib']:.0f} MiB"


def _show(times: Times | None) -> str:
    return "" if times is None else " ".join([_unit(times.minimum), f"({_unit(times.median)})"])


def _unit(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def as_measurement(rows: Sequence[Row], command: str, device: str) -> dict[str, Any]:
    """What the file holds; a check says that the two sides of a row gave the same numbers."""
    compared = {row.row: row.difference for row in rows if row.difference is not None}
    return measurement.record(
        kind="bench",
        command=command,
        device=device,
        seeds=[0],
        checks={f"{name}: same numbers": d <= TOLERANCE for name, d in compared.items()},
        ratios={row.row: row.ratio for row in rows if row.ratio is not None},
        rows=[asdict(row) | {"met": row.met} for row in rows],
    )


def run(names: Sequence[str], quick: bool, threads: int) -> tuple[list[Row], str]:
    """Make and print the rows, with ``threads`` torch threads; the rows and the device."""
    rows = []
    with on_threads(threads):
        device = measurement.describe_device()
        clock = "Processor" if threads == 1 else "Wall clock"
        print(f"{device}. {clock} time: ours, the other's: minimum (median).")
        print("Ratio: of the minima (of the medians); the target is for the first.")
        for name in names:
            rows.append(make(name, quick))
            print(report(rows[-1]), flush=True)
    return rows, device


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Torch, and numba where it is installed, on so many threads."""
    with limited(count):
        if find_spec("numba") is None:
            yield
            return
        import numba

        before = numba.get_num_threads()
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        torch.set_num_threads(count)  # which numba's threads change when they start
        try:
            yield
        finally:
            numba.set_num_threads(before)


def main(argv: Sequence[str] | None = None) -> int:
    """1 if the two sides of a row differ; a missed target is printed and no more."""
    parser = _parser()
    options = parser.parse_args(argv)
    with refusing(parser, ValueError):
        check_count("threads", options.threads)
        if options.out:
            measurement.check_writable(options.out)
    asked = dict.fromkeys(options.only or ROWS)
    names = [name for name in asked if not (options.quick and ROWS[name][2] is None)]
    rows, device = run(names, options.quick, options.threads)
    result = as_measurement(rows, repeat("bench", argv), device)
    if options.out:
        measurement.write(options.out, result)
        print(f"written to {options.out}")
    return 0 if all(result["checks"].values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.bench", description="The speed of sbnlib, as ratios."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer repetitions, without the rows that take long (default: off)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=ROWS,
        metavar="NAME",
        help=f"rows to measure (default: all of {', '.join(ROWS)})",
    )
    add_option(parser, "threads", 1, "number of CPU threads torch may use, on both sides")
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
