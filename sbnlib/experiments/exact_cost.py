"""What an exact expectation costs: terms and seconds of three ways to the same number.

    python -m sbnlib.experiments.exact_cost [--most 4194304] [--out FILE]

The ways are ``enumeration``, the sum over the states of all layers together; ``layers``, the law
of one layer after the other with full transition tables; and ``library``, ``exact_expectation``.
Nets have 1 to 6 layers of equal widths, one input, float64; no gradient. A way is run as long as
it has at most ``--most`` terms. Times are the smallest of five runs on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbnlib.contracts import Loss, check_count, linear_layers
from sbnlib.exact import all_states, exact_expectation
from sbnlib.experiments import measurement
from sbnlib.experiments.command import add_option, add_out, refusing
from sbnlib.experiments.training import threads
from sbnlib.network import SBN

__all__ = ["enumeration", "layers", "main", "problem", "run", "terms"]

Way = Callable[[SBN, Tensor, Loss], Tensor]
TOLERANCE = 1e-10  # of the numbers of two ways, relative


def terms(widths: Sequence[int]) -> dict[str, int]:
    """Summands of an expectation: 2^(sum n_k), and 2^n_1 + sum 2^(n_k + n_{k+1}) + 2^n_K."""
    pairs = zip(widths, widths[1:], strict=False)
    layered = 2 ** widths[0] + sum(2 ** (m + n) for m, n in pairs) + 2 ** widths[-1]
    return {"enumeration": 2 ** sum(widths), "layers": layered, "library": layered}


def enumeration(net: SBN, inputs: Tensor, loss: Loss, block: int = 1 << 14) -> Tensor:
    """E L by its definition, every term with its own pre-activations; ``block`` terms at once."""
    widths = [layer.out_features for layer in linear_layers(net, "enumeration")]
    count = 2 ** sum(widths)
    total = inputs.new_zeros(len(inputs))
    for start in range(0, count, block):
        rows = _bits(start, min(start + block, count), sum(widths), inputs)
        below, p = inputs[:, None], inputs.new_ones(())
        for layer, x in zip(net.layers, rows.split(widths, dim=1), strict=True):
            p = p * net.noise.cdf(x * layer(below)).prod(dim=-1)
            below = x
        total += (p * loss(below[:, None]).T).sum(dim=1)
    return total


def _bits(start: int, stop: int, n: int, like: Tensor) -> Tensor:
    """Rows start..stop of the table of all states of n bits."""
    digits = torch.arange(start, stop)[:, None] >> torch.arange(n - 1, -1, -1) & 1
    return (2 * digits - 1).to(like.dtype)


def layers(net: SBN, inputs: Tensor, loss: Loss) -> Tensor:
    """E L by the forward algorithm: the law of a layer times its table, layer by layer."""
    first, *others = linear_layers(net, "layers")
    law, states = _table(net, first(inputs)), all_states(first.out_features, dtype=inputs.dtype)
    for layer in others:
        law = law @ _table(net, layer(states))
        states = all_states(layer.out_features, dtype=inputs.dtype)
    return (law * loss(states[:, None]).T).sum(dim=1)


def _table(net: SBN, a: Tensor) -> Tensor:
    """The law of all states of a layer given each row of a; pairs of units combine first."""
    table = a.new_ones(*a.shape[:-1], 1)
    for pair in net.noise.cdf(torch.stack([-a, a], dim=-1)).unbind(dim=-2):
        table = (table[..., :, None] * pair[..., None, :]).flatten(-2)
    return table


WAYS: dict[str, Way] = {
    "enumeration": enumeration,
    "layers": layers,
    "library": exact_expectation,
}


def problem(widths: Sequence[int]) -> tuple[SBN, Tensor, Loss]:
    """A net on two inputs, one input, a loss; always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = zip([2, *widths], widths, strict=False)
        net = SBN(*(nn.Linear(m, n, dtype=torch.float64) for m, n in sizes))
        w = torch.rand(widths[-1], dtype=torch.float64)
    return net, torch.ones(1, 2, dtype=torch.float64), lambda x: torch.tanh(x @ w)


def grid(most: int) -> Iterator[tuple[int, int]]:
    """(K, n) for which the cheapest way has at most ``most`` terms and enumeration has 16."""
    for count in range(1, 7):
        for n in range(1, 12):
            both = terms([n] * count).values()
            if min(both) <= most and max(both) >= 16:
                yield count, n


@torch.no_grad()
def run(most: int) -> dict[str, Any]:
    """All rows, as a measurement file holds them, without its command."""
    rows, same = [], True
    for count, n in grid(most):
        widths, values = [n] * count, []
        for way, number in terms(widths).items():
            if number <= most:
                value, seconds = _timed(WAYS[way], problem(widths))
                values.append(value)
                rows.append({"layers": count, "width": n, "way": way})
                rows[-1] |= {"terms": number, "seconds": seconds}
        same &= max(values) - min(values) <= TOLERANCE * abs(values[0])
    return {"rows": rows, "checks": {"same numbers": same}, "ratios": _ratios(rows)}


def _timed(way: Way, given: tuple[SBN, Tensor, Loss], rounds: int = 5) -> tuple[float, float]:
    """The expectation, and the seconds of the fastest of five runs."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        value = way(*given)
        seconds.append(time.perf_counter() - start)
    return value.item(), min(seconds)


def _ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many times faster than enumeration the library was, where both were run."""
    at = {(r["way"], r["layers"], r["width"]): r["seconds"] for r in rows}
    found = [(k, n) for way, k, n in at if way == "enumeration"]
    return {
        f"{k} layers of {n}": at["enumeration", k, n] / at["library", k, n]
        for k, n in found
        if ("library", k, n) in at
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.exact_cost", description=(__doc__ or "").split("\n")[0]
    )
    add_option(parser, "most", 1 << 22, "largest number of terms a way may have, at least 16")
    add_out(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if two ways differ."""
    parser = _parser()
    options = parser.parse_args(argv)
    with refusing(parser, ValueError):
        check_count("most", options.most, least=16)
        if options.out:
            measurement.check_writable(options.out)
    with threads(1):
        found, device = run(options.most), measurement.describe_device()
    for row in found["rows"]:
        print("{layers} x {width:2d}  {way:12}{terms:9d} terms {seconds:10.6f} s".format(**row))
    command = f"python -m sbnlib.experiments.exact_cost --most {options.most}"
    result = measurement.record(
        kind="exact-cost", command=command, device=device, seeds=[0], **found
    )
    if options.out:
        measurement.write(options.out, result)
    return 0 if all(result["checks"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
