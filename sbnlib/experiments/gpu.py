"""What sbnlib computes on a GPU, checked against the CPU and timed, in one run of bounded length.

    python -m sbnlib.experiments.gpu --budget 560 [--out FILE] [--device cuda] [--commit HASH]

Sections run in order: environment, measured ceilings, the sampler, straight-through, the fused
sampler, statistics, live frames, a search of many trainings, packed products, exact sums, every
estimator of the registry, compiled straight-through. The measurement file is rewritten after each,
so that a kill loses one section at most. A section that does not fit into what is left of the
budget is left out with all after it, and the file says so.

A time is the median of several runs, taken twice: the smaller one is reported, with the relative
difference as ``spread``. Ratios are to a copy of the same bytes in the same run. Frequencies and
statistics are compared by z-tests; the limits stand in the rows.

Exit status: 0 if every check held, 1 if one failed, 2 without the device (before any work). Only
torch and numpy are needed.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sbnlib import kernels, packed, registry
from sbnlib import noise as noises
from sbnlib.accuracy import CUDA_SHARE, Accuracy, gradient_samples, measure
from sbnlib.contracts import Loss
from sbnlib.estimators import straight_through
from sbnlib.exact import exact_expectation, exact_gradient
from sbnlib.experiments import measurement
from sbnlib.experiments.command import add_option, add_out, refusing, repeat
from sbnlib.kernels import sampler as fused_sampler
from sbnlib.network import SBN
from sbnlib.noise import Logistic, Noise
from sbnlib.packed import runtime
from sbnlib.packed.products import on_device
from sbnlib.units import sample_sign

__all__ = ["FULL", "TINY", "Notes", "Sizes", "Timing", "main", "run", "seconds"]

#: Probability that one of the frequency tests fails though nothing is wrong.
FALSE_ALARM = 1e-6

#: Limit of z for statistics. Standard errors come from 32 groups, so z has Student's tails: 8 is
#: passed with probability 5e-9 at 31 degrees of freedom.
Z_STATISTICS = 8.0

#: Relative difference allowed between exact sums (float64) on two devices.
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    copy_bytes: int = 4 << 30
    gemm: int = 8192
    elements: tuple[int, ...] = (1 << 26, 1 << 28)
    samples: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    many: int = 100_000_000  # samples for which memory must be that of fewer
    frame: int = 10_000_000  # samples behind one position of a slider
    trainings: int = 24
    trained: tuple[int, ...] = (784, 512, 512, 10)
    estimator_samples: int = 2000
    compared: tuple[int, ...] = (8, 12)
    timed: tuple[int, ...] = (14, 16, 18)
    patience: float = 0.4  # seconds of runs behind one median
    parity: int = 1 << 21  # units drawn here and by the reference on the CPU
    rare: int = 1 << 31  # draws of an event of probability 1e-8
    beyond: int = (1 << 31) + (1 << 20)  # units of one draw that an int32 cannot count


FULL = Sizes()
#: For the tests, on any machine.
TINY = Sizes(1 << 20, 64, (1 << 12, 1 << 14), (128, 256), 512, 1000, 3, (8, 6, 4), 64,
             (3, 4), (5,), 0.001, 1 << 12, 1 << 14, 1 << 14)  # fmt: skip


@dataclass
class Notes:
    """What a run has found so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    def row(self, part: str, **values: Any) -> None:
        self.rows.append({"part": part, **values})
        print(f"{part}: " + ", ".join(f"{k} {_brief(v)}" for k, v in values.items()), flush=True)

    def check(self, name: str, held: bool) -> None:
        self.checks[name] = bool(held)
        if not held:
            print(f"FAILED: {name}", flush=True)


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# Time --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds, and the relative difference of two measurements of them."""

    seconds: float
    spread: float

    def row(self) -> dict[str, float]:
        return {"seconds": self.seconds, "spread": self.spread}


def seconds(
    work: Callable[[], object], device: torch.device, *, patience: float = 0.4, most: int = 50
) -> Timing:
    """The time of ``work`` on ``device``: a median, measured twice after one run to warm up.

    Args:
        work: what is timed.
        device: where it runs; waited for.
        patience: seconds of runs behind each median, at least one run and at most ``most``.
    """
    work()
    first = _durations(work, device, 1)[0]
    count = min(max(1, int(patience / max(first, 1e-9))), most)
    medians = [statistics.median(_durations(work, device, count)) for _ in range(2)]
    return Timing(min(medians), max(medians) / min(medians) - 1)


def _durations(work: Callable[[], object], device: torch.device, count: int) -> list[float]:
    if device.type != "cuda":
        return [_wall(work) for _ in range(count)]
    with torch.cuda.device(device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        torch.cuda.synchronize()
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:], strict=False)]


def _wall(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)


def _copy(traffic: int, device: torch.device, patience: float) -> Timing:
    """A copy on the device that reads and writes ``traffic`` bytes in all."""
    source = torch.zeros(traffic // 8, device=device)
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source), device, patience=patience)


def _peak(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that ``work`` takes on the device beyond what was there; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


# Sections ----------------------------------------------------------------------------------------


def environment(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    values: dict[str, Any] = {"name": measurement.describe_device(device)}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        values |= {
            "capability": f"{found.major}.{found.minor}",
            "memory_bytes": found.total_memory,
            "multiprocessors": found.multi_processor_count,
            "driver": _driver(),
        }
    values |= {"cuda": torch.version.cuda or "none", "torch": torch.__version__}
    notes.row("environment", **values, cpu=measurement.describe_device("cpu"))


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.split("\n")[0].strip() or "unknown"


def ceilings(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """What the device can do at most: memory traffic and bf16 products, measured."""
    copy = _copy(sizes.copy_bytes, device, sizes.patience)
    notes.row("copy", bytes=sizes.copy_bytes, **copy.row(),
              gigabytes_per_second=sizes.copy_bytes / copy.seconds / 1e9)  # fmt: skip
    n = sizes.gemm
    a, b = (torch.rand(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    gemm = seconds(lambda: a @ b, device, patience=sizes.patience)
    notes.row("bf16 product", n=n, **gemm.row(), teraflops=2 * n**3 / gemm.seconds / 1e12)


def sampler(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """sample_sign: its law, its edge cases, its time relative to a copy."""
    for name in LAWS:
        _frequencies(name, device, sizes, notes)
    _rare_events(device, sizes, notes)
    a = torch.linspace(-3, 3, 1001, device=device)
    draws = [sample_sign(a, Logistic(), generator=_generator(device, 7)) for _ in range(2)]
    notes.check("sampler: the same seed gives the same states", torch.equal(*draws))
    notes.check("sampler: NaN logits give NaN, or an error on a CPU", _nan_is_kept(device))
    for n in sizes.elements:
        _sampler_time(n, device, sizes, notes)


def _logistic(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def _triangular(a: float) -> float:
    tail = max(0.0, 1 - abs(a)) ** 2 / 2
    return tail if a <= 0 else 1 - tail


#: The distribution functions once more, in plain Python, so that the check is of two sources.
LAWS: dict[str, Callable[[float], float]] = {
    "Logistic": _logistic,
    "Uniform": lambda a: min(max((1 + a) / 2, 0.0), 1.0),
    "Triangular": _triangular,
    "Gaussian": lambda a: math.erfc(-a / math.sqrt(2)) / 2,
    "Cauchy": lambda a: 0.5 + math.atan(a) / math.pi,
    "FastSigmoid": lambda a: (1 + a / (1 + abs(a))) / 2,
}


def _frequencies(name: str, device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """Share of +1 at eight logits; a certain event must happen every time."""
    noise: Noise = getattr(noises, name)()
    logits = torch.linspace(-1.25, 1.25, 8, device=device)
    draws = sizes.elements[0] // len(logits)
    x = sample_sign(logits[:, None].expand(-1, draws), noise, generator=_generator(device, 1))
    counts, largest = (x > 0).sum(dim=1).tolist(), 0.0
    certain = bool((x.abs() == 1).all())
    for a, count in zip(logits.double().tolist(), counts, strict=True):
        p = LAWS[name](a)
        if p in (0.0, 1.0):
            certain &= count == p * draws
        else:
            largest = max(largest, abs(count - draws * p) / math.sqrt(draws * p * (1 - p)))
    limit = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * len(logits) * len(LAWS)))
    notes.row("frequencies", noise=name, draws=draws, largest_z=largest, limit=limit)
    notes.check(f"sampler: frequencies, {name}", largest < limit)
    notes.check(f"sampler: states are +-1 and certain events certain, {name}", certain)


def _rare_events(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """An event of probability 1e-9: float32 uniforms would show it sixty times too often."""
    a = torch.full((sizes.elements[-1],), -20.723266, device=device)
    count = int((sample_sign(a, Logistic(), generator=_generator(device, 2)) > 0).sum())
    expected = len(a) * _logistic(-20.723266)
    notes.row("rare events", draws=len(a), found=count, expected=expected, limit=6)
    notes.check("sampler: rare events are rare", count <= 6)  # Poisson(0.27): chance 2e-8


def _nan_is_kept(device: torch.device) -> bool:
    a = torch.zeros(1000, device=device)
    a[::7] = torch.nan
    try:
        x = sample_sign(a, Logistic())
    except ValueError:
        return device.type == "cpu"
    return torch.equal(x.isnan(), a.isnan()) and bool((x[~a.isnan()].abs() == 1).all())


def _sampler_time(n: int, device: torch.device, sizes: Sizes, notes: Notes) -> None:
    a, draws = _logits(n, device), _generator(device, 3)
    copy = _copy(8 * n, device, sizes.patience)  # reads a, writes x: 4 bytes each
    time_ = seconds(lambda: sample_sign(a, Logistic(), generator=draws), device,
                    patience=sizes.patience)  # fmt: skip
    ratio = time_.seconds / copy.seconds
    notes.row("sample_sign", elements=n, **time_.row(), copy_seconds=copy.seconds, ratio=ratio)
    notes.ratios[f"sample_sign, {n} float32 logits, over a copy"] = ratio


def straight(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """Sampling with straight-through, forward and backward, as it is called without a compiler."""
    n, draws = sizes.elements[-1], _generator(device, 4)
    a = _logits(n, device).requires_grad_()
    _step_times("eager", lambda: _unit(a, draws), a, sizes, notes)


def compiled(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """The same under torch.compile, uniforms handed in (one more tensor to read)."""
    n = sizes.elements[-1]
    a = _logits(n, device).requires_grad_()
    u = torch.rand(n, generator=_generator(device, 5), device=device)
    plain = _unit(a, u=u)
    try:
        unit = torch.compile(_unit, fullgraph=True)
        x = unit(a, u=u)
    except Exception as error:  # a compiler that does not work here is a finding, not a failure
        notes.row("straight_through", how="compiled", error=_first_line(error))
        return
    p = torch.sigmoid(a.detach())
    clear = (u - p).abs() > 1e-6  # a compiler may round F(a) otherwise
    notes.check("straight-through: compiled states are those of eager code",
                torch.equal(x[clear], plain[clear]))  # fmt: skip
    del plain, p, clear, x
    _step_times("compiled, u handed in", lambda: unit(a, u=u), a, sizes, notes, reads=8)


def _unit(a: Tensor, generator: torch.Generator | None = None, u: Tensor | None = None) -> Tensor:
    x = sample_sign(a, Logistic(), generator=generator, u=u)
    return straight_through(a, x, Logistic())


def _step_times(
    how: str,
    forward: Callable[[], Tensor],
    a: Tensor,
    sizes: Sizes,
    notes: Notes,
    reads: int = 4,
) -> None:
    """Forward reads ``reads`` bytes an element and writes 4; backward reads 8 and writes 4."""
    n, device = a.numel(), a.device
    out = forward()
    g = torch.empty_like(out).uniform_(-1, 1, generator=_generator(device, 6))

    def backward() -> Tensor:
        return torch.autograd.grad(out, a, g, retain_graph=True)[0]

    notes.check(f"straight-through: slope 2f(a), {how}", _slope_is_right(a, g, backward()))
    notes.check(f"straight-through: values +-1, {how}", bool((out.detach().abs() == 1).all()))
    for part, work, traffic in (("forward", forward, reads + 4), ("backward", backward, 12)):
        copy = _copy(traffic * n, device, sizes.patience)
        time_ = seconds(work, device, patience=sizes.patience)
        ratio = time_.seconds / copy.seconds
        notes.row("straight_through", how=how, direction=part, elements=n, **time_.row(),
                  copy_seconds=copy.seconds, bytes_an_element=traffic, ratio=ratio)  # fmt: skip
        notes.ratios[f"straight-through {part}, {how}, over a copy of the same bytes"] = ratio


def _slope_is_right(a: Tensor, g: Tensor, found: Tensor) -> bool:
    part = slice(0, 1 << 20)
    b = a.detach()[part].double()
    slope = 2 / (2 + b.exp() + (-b).exp()) * g[part].double()
    return torch.allclose(found[part].double(), slope, rtol=2e-6, atol=1e-12)


def fused(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """The fused sampler: its states against the reference's, its tails, its place over copies."""
    backend = fused_sampler.backend_for(device)
    notes.row("fused sampler", backend=backend)
    for name in LAWS:
        _parity(name, device, sizes, notes)
    _cut_otherwise(backend, device, sizes, notes)
    _both_tails(device, sizes, notes)
    _beyond_int32(device, sizes, notes)
    for what, dtype, out, traffic in FORMS:
        for bits in (64, 32):
            _fused_forward(what, bits, _logits(sizes.elements[-1], device).to(dtype),
                           out or dtype, traffic, sizes, notes)  # fmt: skip
    _fused_backward(device, sizes, notes)


#: Name of the ratio, dtype of the logits and of the states if it is another, bytes moved a unit.
FORMS = (
    ("fused forward fp32", torch.float32, None, 8),
    ("fused forward int8", torch.float32, torch.int8, 5),
    ("fused forward bf16", torch.bfloat16, None, 4),
)
#: Laws of which every operation is exact or rounded alike on every device.
SAME_EVERYWHERE = ("Uniform", "Triangular")


def _parity(name: str, device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """States and gradients here and of the reference on the CPU, far out in the stream."""
    noise, n = getattr(noises, name)(), sizes.parity
    a, g = _logits(n, CPU) / 2, torch.rand(n, generator=_generator(CPU, 9))
    flips = 0
    for bits in (64, 32):
        options: dict[str, Any] = {"seed": 2**62 + 3, "offset": 2**34 - n // 2, "bits": bits}
        here = kernels.sample(a.to(device), noise, **options)
        there = kernels.sample(a, noise, backend="reference", **options)
        flips += int((here.cpu() != there).sum())
    ours, theirs = (_gradient(a.to(where), noise, g.to(where)).cpu() for where in (device, CPU))
    limit = 0 if name in SAME_EVERYWHERE else 4 + 4e-6 * n
    notes.row("fused parity", noise=name, draws=2 * n, flips=flips, limit=limit)
    notes.check(f"fused: states of the reference, {name}", flips <= limit)
    near = torch.allclose(ours, theirs, rtol=4e-6, atol=4e-7)
    notes.check(f"fused: gradients of the reference, {name}", near)


def _gradient(a: Tensor, noise: Noise, g: Tensor) -> Tensor:
    a.requires_grad_()
    return torch.autograd.grad(kernels.straight_through(a, noise, seed=1), a, g)[0]


def _cut_otherwise(backend: str, device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """One draw, in pieces of its stream and in blocks of other sizes."""
    a, key = _logits(sizes.parity, device), torch.tensor(5, device=device)
    whole = kernels.sample(a, Logistic(), seed=key)
    size = 4 * (len(a) // 12) + 4
    pieces = [
        kernels.sample(part, Logistic(), seed=key, offset=k * size)
        for k, part in enumerate(a.split(size))
    ]
    found = [torch.cat(pieces)]
    if backend == "triton":
        from sbnlib.kernels import compiled

        for block in (256, 512, 2048):
            found.append(torch.full_like(a, math.nan))
            compiled.draw(found[-1], a, key, 0, Logistic(), 2, block=block)
    notes.check("fused: the same states however a draw is cut",
                all(torch.equal(x, whole) for x in found))  # fmt: skip


def _both_tails(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """An event of probability 1e-8, rare +1 and rare -1, each within the range of its law."""
    size = min(sizes.rare, sizes.elements[-1])
    low, high = poisson_range(1e-8 * sizes.rare, FALSE_ALARM / 4)
    for logit in (-18.420681, 18.420681):
        a, found = torch.full((size,), logit, device=device), 0
        for offset in range(0, sizes.rare, size):
            x = kernels.sample(a, Logistic(), seed=13, offset=offset, out=torch.int8)
            found += int((x != int(math.copysign(1, logit))).sum())
        notes.row("fused tails", logit=logit, draws=sizes.rare, found=found,
                  expected=1e-8 * sizes.rare, least=low, most=high)  # fmt: skip
        notes.check(f"fused: rare events in the tail at {logit:.1f}", low <= found <= high)


def poisson_range(mean: float, outside: float) -> tuple[int, int]:
    """What a Poisson count is below with probability ``outside`` at most, and above."""
    low, high, term, below = 0, None, math.exp(-mean), 0.0
    for k in range(int(mean + 20 * math.sqrt(mean) + 40)):
        if below + term <= outside:
            low = k + 1
        below += term
        if high is None and 1 - below <= outside:
            high = k
        term *= mean / (k + 1)
    return low, high if high is not None else k


def _beyond_int32(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """The end of a draw of more than 2^31 units is that of its place in the stream."""
    n = sizes.beyond
    if device.type == "cuda" and 4 * n > torch.cuda.mem_get_info(device)[0]:
        notes.row("fused beyond int32", units=n, left_out=f"needs about {4 * n / 2**30:.0f} GiB")
        return
    a, key = torch.zeros(n, dtype=torch.bfloat16, device=device), torch.tensor(3, device=device)
    x = kernels.sample(a, Logistic(), seed=key, out=torch.full_like(a, 77, dtype=torch.int8))
    part = 4 * (n // 2048)
    end = kernels.sample(a[-part:], Logistic(), seed=key, offset=n - part, out=torch.int8)
    certain = bool(((x == 1) | (x == -1)).all())
    notes.row("fused beyond int32", units=n)
    notes.check("fused: a draw of more than 2^31 units", certain and torch.equal(x[-part:], end))


def _fused_forward(
    what: str, bits: int, a: Tensor, out: torch.dtype, traffic: int, sizes: Sizes, notes: Notes
) -> None:
    """The time of a draw into memory that held something else, over a copy of the same bytes."""
    key, n = torch.tensor(17, device=a.device), a.numel()
    x = torch.full_like(a, 77, dtype=out)

    def forward() -> Tensor:
        return kernels.sample(a, Logistic(), seed=key, bits=bits, out=x)

    forward()
    name = what if bits == 64 else f"{what}, 32 bits"
    notes.check(f"{name}: values +-1", bool((x.abs() == 1).all()))
    _over_a_copy(name, forward, n, traffic, a.device, sizes, notes)


def _fused_backward(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    a = _logits(sizes.elements[-1], device).requires_grad_()
    x = kernels.straight_through(a, Logistic(), seed=torch.tensor(19, device=device))
    g = torch.empty_like(x).uniform_(-1, 1, generator=_generator(device, 6))
    torch.full_like(a, math.nan)  # what is allocated next held NaN

    def backward() -> Tensor:
        return torch.autograd.grad(x, a, g, retain_graph=True)[0]

    notes.check("fused backward fp32: slope 2f(a)", _slope_is_right(a, g, backward()))
    _over_a_copy("fused backward fp32", backward, a.numel(), 12, device, sizes, notes)


def _over_a_copy(
    name: str,
    work: Callable[[], object],
    n: int,
    traffic: int,
    device: torch.device,
    sizes: Sizes,
    notes: Notes,
) -> None:
    copy = _copy(traffic * n, device, sizes.patience)
    time_ = seconds(work, device, patience=sizes.patience)
    ratio = time_.seconds / copy.seconds
    notes.row("fused", what=name, elements=n, **time_.row(), copy_seconds=copy.seconds,
              bytes_an_element=traffic, ratio=ratio)  # fmt: skip
    notes.ratios[name] = ratio


def statistics_of_st(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """``measure`` here and on the CPU, with other random numbers."""
    here, there = _problem((2, 6, 6, 6), 1, device), _problem((2, 6, 6, 6), 1, CPU)
    peaks: list[int] = []
    for m in sizes.samples:
        ours, theirs = _measured(here, m, 11), _measured(there, m, 12)
        z = largest_z(ours(), theirs())
        peak = _peak(ours, device)
        if peak is not None:
            peaks.append(peak)
        time_, cpu = (seconds(w, d, patience=0) for w, d in ((ours, device), (theirs, CPU)))
        ratio = cpu.seconds / time_.seconds
        notes.row("measure", estimator="straight_through", samples=m, **time_.row(),
                  cpu_seconds=cpu.seconds, ratio=ratio, largest_z=z, limit=Z_STATISTICS,
                  peak_bytes=peak)  # fmt: skip
        name = f"measure 2-6-6-6 {_power(m)}"
        notes.ratios[f"{name}, Msamples/s"] = 1e-6 * m / time_.seconds
        notes.ratios[f"{name}, {_over_the_cpu()}"] = ratio
        notes.check(f"statistics agree with the CPU, {m} samples", z < Z_STATISTICS)
    many = _peak(_measured(here, sizes.many, 13), device)
    if many is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        notes.row("measure, memory", samples=sizes.many, peak_bytes=many)
        notes.check("statistics: memory stays within the share of the device that a chunk may take",
                    max(*peaks, many) <= CUDA_SHARE * total)  # fmt: skip
        notes.check(f"statistics: {_power(sizes.many)} samples take the memory of a tenth of them",
                    many <= 1.05 * peaks[-1])  # fmt: skip


def _power(count: int) -> str:
    """A power of ten as 1e7."""
    digits = round(math.log10(count))
    return f"1e{digits}" if 10**digits == count else str(count)


def _over_the_cpu() -> str:
    return f"over {torch.get_num_threads()} threads"


def _measured(
    problem: Problem, samples: int, seed: int, estimator: str = "straight_through"
) -> Callable[[], dict[str, Accuracy]]:
    draws = _generator(problem[1].device, seed)
    return lambda: measure(*problem, estimator, samples, generator=draws)


def largest_z(a: Mapping[str, Accuracy], b: Mapping[str, Accuracy]) -> float:
    """The largest difference of two measurements, in its standard errors.

    cosine_of_mean is left out: near 1 its error is no longer normal.
    """
    pairs = [
        (getattr(a[name], what), getattr(b[name], what))
        for name in a
        for what in ("bias2", "variance", "mse", "cosine")
    ]
    return max(_z(x.value - y.value, math.hypot(x.se, y.se)) for x, y in pairs)


def _z(difference: float, se: float) -> float:
    if not math.isfinite(difference) or not math.isfinite(se):
        return 1e9  # JSON has no infinity
    return abs(difference) / max(se, 1e-12)


def exact_sums(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """exact_gradient here and on the CPU; then wider nets as far as memory goes."""
    for n in (*sizes.compared, *sizes.timed):
        need = 170 * 2 ** (n + n // 2 + n % 2)  # what exact_gradient wants to be free
        if device.type == "cuda" and need > torch.cuda.mem_get_info(device)[0]:
            notes.row("exact_gradient", units=n, left_out=f"needs about {need / 2**30:.0f} GiB")
        else:
            _exact_sum(n, device, sizes, notes)


def _exact_sum(n: int, device: torch.device, sizes: Sizes, notes: Notes) -> None:
    here = _problem((5, n, n, n), 1, device)
    time_ = seconds(lambda: exact_gradient(*here), device, patience=sizes.patience)
    values: dict[str, Any] = time_.row()
    values["peak_bytes"] = _peak(lambda: exact_gradient(*here), device)
    if n <= 16:  # wider ones take a CPU minutes
        there = _problem((5, n, n, n), 1, CPU)
        values["difference"] = _difference(exact_gradient(*here), exact_gradient(*there))
        cpu = seconds(lambda: exact_gradient(*there), CPU, patience=0)
        values |= {"cpu_seconds": cpu.seconds, "ratio": cpu.seconds / time_.seconds}
        notes.check(f"exact sums agree with the CPU, n = {n}", values["difference"] < TOLERANCE)
        notes.ratios[f"exact 5-{n}-{n}-{n}, {_over_the_cpu()}"] = values["ratio"]
    notes.row("exact_gradient", units=n, layers=3, **values)


def _difference(a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]]) -> float:
    """Largest difference of the value and the gradients, relative to the largest entry of each."""
    pairs = zip((a[0], *a[1].values()), (b[0], *b[1].values()), strict=True)
    return max(float((x.cpu() - y).abs().max() / y.abs().max()) for x, y in pairs)


def live_frames(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """What one position of a slider costs: as the live figures of chapters 2 and 3, not drawn."""
    net, inputs, loss = _problem((2, 3, 2), 41, device)
    draws, count = _generator(device, 31), sizes.frame
    exact = exact_expectation(net, inputs, loss).detach()

    def states() -> Tensor:
        """The mean loss of each of 41 inputs and its error, by so many networks in all."""
        with torch.no_grad():
            values = loss(net(inputs.expand(-(-count // 41), 41, 2), generator=draws))
            return torch.stack([values.mean(0), values.std(0) / math.sqrt(len(values))])

    def gradients() -> Tensor:
        """Sums of the powers of gradients of straight-through, for four inputs."""
        total = torch.zeros((), device=device)
        four = net, inputs[:4], _problem((2, 3, 2), 4, device)[2]
        for chunk in gradient_samples(*four, "straight_through", count, generator=draws):
            g = torch.cat([v.flatten(1) for v in chunk.values()], dim=1)
            total = total + torch.stack([(g**p).sum(dim=0) for p in (1, 2, 4)])
        return total

    mean, se = states()
    z = float(((mean - exact) / se).abs().max())
    notes.check("live frame: the mean is the exact one", z < Z_STATISTICS)
    for what, work in (("samples", states), ("gradients", gradients)):
        time_ = seconds(work, device, patience=sizes.patience)
        notes.row("live frame", what=what, count=count, **time_.row())
        notes.ratios[f"live frame, {_power(count)} {what}, ms"] = 1e3 * time_.seconds


def a_search(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """Trainings with many learning rates, computed as one and one by one."""
    from sbnlib.experiments import bench

    try:
        row = bench.search("search", "", **bench.SEARCH | {"trainings": sizes.trainings},
                           widths=sizes.trained, batch=500 if sizes is FULL else 10,
                           dtype="float32", device=device.type, rounds=10 if sizes is FULL else 1
                           )  # fmt: skip
    except ModuleNotFoundError as error:  # the machine has torch alone
        notes.row("search", error=_first_line(error))
        return
    assert row.ours_s is not None and row.other_s is not None and row.ratio is not None
    notes.row("search", trainings=sizes.trainings, net="-".join(map(str, sizes.trained)),
              seconds=row.ours_s.minimum, one_by_one_seconds=row.other_s.minimum,
              ratio=row.ratio)  # fmt: skip
    notes.ratios[f"search of {sizes.trainings}, over one by one"] = row.ratio


def products_of_signs(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """Packed signs multiplied as bytes: the CPU's integers, and the time of products of bytes."""
    draw = np.random.default_rng(0)
    for rows, outputs, n in ((1, 3, 70), (40, 33, 200)):
        x, w = (packed.pack(draw.choice([-1, 1], (m, n))) for m in (rows, outputs))
        same = (on_device(device, x, w) == runtime.differing(x, w)).all()
        notes.check(f"packed products agree with the CPU, {rows} x {n} x {outputs}", bool(same))
    n = sizes.gemm
    a, b = (torch.randint(2, (n, n), device=device, dtype=torch.int8) * 2 - 1 for _ in range(2))
    c, d = a.bfloat16(), b.bfloat16()
    eight = seconds(lambda: torch._int_mm(a, b.T), device, patience=sizes.patience)
    half = seconds(lambda: c @ d.T, device, patience=sizes.patience)
    ratio = half.seconds / eight.seconds
    notes.row("int8 product", n=n, **eight.row(), bf16_seconds=half.seconds, ratio=ratio)
    notes.ratios["int8 product of signs, over bf16"] = ratio


def estimators(device: torch.device, sizes: Sizes, notes: Notes) -> None:
    """Every estimator of the registry: its statistics here and on the CPU."""
    here, there = _problem((2, 3, 3), 2, device), _problem((2, 3, 3), 2, CPU)
    for name in registry.ESTIMATORS:
        m = sizes.estimator_samples
        ours, theirs = _measured(here, m, 21, name), _measured(there, m, 22, name)
        start = time.perf_counter()
        found = ours()
        taken = time.perf_counter() - start
        z = largest_z(found, theirs())
        notes.row("estimator", name=name, samples=m, seconds_once=taken, largest_z=z,
                  limit=Z_STATISTICS)  # fmt: skip
        notes.check(f"estimator agrees with the CPU, {name}", z < Z_STATISTICS)


@dataclass(frozen=True)
class Section:
    """One part of the run, with the seconds it is taken to need."""

    name: str
    work: Callable[[torch.device, Sizes, Notes], None]
    seconds: float


SECTIONS = (
    Section("environment", environment, 1),
    Section("ceilings", ceilings, 20),
    Section("sampler", sampler, 40),
    Section("straight-through", straight, 20),
    Section("fused sampler", fused, 50),
    Section("statistics", statistics_of_st, 90),
    Section("live frames", live_frames, 10),
    Section("search", a_search, 40),
    Section("products of signs", products_of_signs, 20),
    Section("exact sums", exact_sums, 70),
    Section("estimators", estimators, 90),
    Section("compiled straight-through", compiled, 90),
)

# Problems ----------------------------------------------------------------------------------------

CPU = torch.device("cpu")
Problem = tuple[SBN, Tensor, Loss]


def _problem(widths: Sequence[int], batch: int, device: torch.device) -> Problem:
    """A net, inputs and a smooth loss, the same numbers on every device; float64."""
    draws = _generator(CPU, 0)

    def numbers(*shape: int) -> Tensor:
        u = torch.rand(shape, generator=draws, dtype=torch.float64)
        return (2 * u - 1).to(device)

    pairs = zip(widths, widths[1:], strict=False)
    net = SBN(*(nn.Linear(m, n, dtype=torch.float64, device=device) for m, n in pairs))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(1.5 * numbers(*p.shape))
    inputs, w, targets = numbers(batch, widths[0]), numbers(widths[-1]), numbers(batch)
    return net, inputs, lambda x: (torch.tanh(x @ w) - targets).square()


def _logits(n: int, device: torch.device) -> Tensor:
    return torch.empty(n, device=device).uniform_(-4, 4, generator=_generator(device, 8))


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


# The run -----------------------------------------------------------------------------------------


class OutOfTime(BaseException):
    """The budget ran out inside a section. Not an Exception, so that no section swallows it."""


def run(
    device: torch.device, budget: float, sizes: Sizes, out: Path, *, command: str, commit: str = ""
) -> dict[str, Any]:
    """Run the sections that fit into ``budget`` seconds; the measurement, as written to ``out``.

    Args:
        device: a CUDA device, or the CPU (for the tests).
        budget: seconds for all of it.
        sizes: how much of everything.
        out: the file, rewritten whole after each section.
        command: what the file says it was made by.
        commit: the commit of the code, where git cannot tell.
    """
    start, notes = time.monotonic(), Notes()
    head = measurement.record(kind="gpu", command=command, device=measurement.describe_device(
        device), seeds=[], rows=[])  # fmt: skip
    head |= {"commit": commit} if commit else {}
    head["versions"]["cuda"] = torch.version.cuda or "none"
    for k, section in enumerate(SECTIONS):
        left = budget - (time.monotonic() - start)
        needed = section.seconds if sizes is FULL else 0.0
        if left <= needed or not _ran_in_time(section, left, device, sizes, notes):
            notes.row("left out", sections=[s.name for s in SECTIONS[k:]], budget=budget)
            break
        measurement.write(out, head | vars(notes))
    measurement.write(out, head | vars(notes))
    return head | vars(notes)


def _ran_in_time(
    section: Section, left: float, device: torch.device, sizes: Sizes, notes: Notes
) -> bool:
    """Run one section; False if time ran out. A section that breaks is a failed check."""
    start = time.monotonic()
    try:
        with _alarm(left):
            section.work(device, sizes, notes)
    except OutOfTime:
        return False
    except Exception as error:
        notes.row("error", section=section.name, error=_first_line(error))
        notes.check(f"{section.name}: ran to its end", False)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    notes.row("section", name=section.name, seconds=time.monotonic() - start)
    return True


@contextmanager
def _alarm(after: float) -> Iterator[None]:
    """Raise OutOfTime in here after so many seconds, where the system has alarms."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "SIGALRM") or not main_thread:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def default_out(device: torch.device) -> Path:
    """``gpu-<device>-<date>.json``, in the folder $OUT if that is set."""
    name = re.sub(r"[^a-z0-9]+", "-", measurement.describe_device(device).lower()).strip("-")
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return Path(os.environ.get("OUT") or ".") / f"gpu-{name}-{date}.json"


def _device(text: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be cuda or cuda:N, got {text!r}")
    return torch.device(text)


def _missing(device: torch.device) -> str:
    """Why ``device`` cannot be used; nothing if it can."""
    if device.type == "cpu":
        return ""
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    count = torch.cuda.device_count()
    return f"{device} asked for, {count} there" if (device.index or 0) >= count else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.gpu",
        description="Check and time sbnlib on a GPU; write a measurement file.",
    )
    add_option(parser, "budget", 560.0, "time for all sections, in seconds")
    add_out(parser, "gpu-DEVICE-DATE.json, in the folder $OUT if that is set")
    add_option(parser, "device", "cuda", "device to measure, such as cuda or cuda:1", type=_device)
    add_option(parser, "commit", "", "commit of the code, to be recorded where git cannot tell it")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    device = options.device
    if not 0 < options.budget < math.inf:
        parser.error(f"--budget must be a number of seconds > 0, got {options.budget}")
    if missing := _missing(device):
        print(f"gpu: no CUDA device: {missing}; nothing was run", file=sys.stderr)
        return 2
    out = options.out or default_out(device)
    with refusing(parser, ValueError):
        measurement.check_writable(out)
    sizes, command = TINY if options.tiny else FULL, repeat("gpu", argv)
    found = run(device, options.budget, sizes, out, command=command, commit=options.commit)
    return report(found, out)


def report(found: Mapping[str, Any], out: Path) -> int:
    """Say what failed and what was left out; the exit status."""
    failed = [name for name, held in found["checks"].items() if not held]
    for row in found["rows"]:
        if row["part"] == "left out":
            print(f"gpu: left out: {', '.join(row['sections'])}", file=sys.stderr)
    for name in failed:
        print(f"gpu: failed: {name}", file=sys.stderr)
    print(f"{len(found['checks']) - len(failed)} of {len(found['checks'])} checks held; {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
