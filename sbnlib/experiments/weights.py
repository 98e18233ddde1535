r"""Binary weights and activations on one data set: every optimizer at the same search budget.

    python -m sbnlib.experiments.weights --data digits --seeds 5 --out FILE

Each network has two layers of binary units, each a matrix of +-1 weights followed by batch norm,
and a real-valued linear head; the units are trained by straight-through. Methods differ in what
the weights are in the forward pass and in what moves their latent parameters. Every method gets
six trials, chosen by validation accuracy with one seed; then N fresh seeds at the chosen setting.
All are tested alike: weights and units at their signs, batch-norm statistics taken anew for that.
``real`` is the twin with real-valued weights and the same binary units.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sbnlib import data as datasets
from sbnlib import optim
from sbnlib.data import Dataset, Split
from sbnlib.experiments import measurement
from sbnlib.experiments.training import generator
from sbnlib.network import SBN
from sbnlib.nn import BernoulliLinear
from sbnlib.noise import Logistic, Noise, Uniform

__all__ = ["METHODS", "Method", "run", "train"]

Row = dict[str, Any]
SEARCH_SEED = 1_000_000  # none of the seeds that are reported
ORDER, DRAWS, WEIGHTS = range(3)  # what random numbers are drawn for


@dataclass(frozen=True)
class Method:
    """One way to train binary weights.

    Attributes:
        label: for tables.
        forward: what a weight is in the forward pass (see :class:`sbnlib.nn.BernoulliLinear`).
        noise: the law that turns latent weights into probabilities; None for real weights.
        optimizer: makes the optimizer from the latent weights and the two numbers of a trial.
        trials: six settings (lr, second number).
    """

    label: str
    forward: str
    noise: Noise | None
    optimizer: Callable[[list[Tensor], float, float], torch.optim.Optimizer]
    trials: tuple[tuple[float, float], ...]


def _grid(
    lrs: Sequence[float], others: Sequence[float] = (0.0,)
) -> tuple[tuple[float, float], ...]:
    return tuple((lr, other) for other in others for lr in lrs)


METHODS: dict[str, Method] = {
    "mirror": Method(
        "mirror descent, KL", "sample", Logistic(),
        lambda p, lr, kl: optim.MirrorDescent(p, lr, kl=kl),
        _grid((30, 100, 300, 1000, 3000, 10000)),
    ),
    "bc_stochastic": Method(
        "BinaryConnect, stochastic", "sample", Uniform(),
        lambda p, lr, _: optim.BinaryConnect(p, lr), _grid((10, 30, 100, 300, 1000, 3000)),
    ),
    "bc_deterministic": Method(
        "BinaryConnect, deterministic", "sign", Uniform(),
        lambda p, lr, _: optim.BinaryConnect(p, lr), _grid((1, 3, 10, 30, 100, 300)),
    ),
    "bop": Method(
        "Bop", "sign", Uniform(),
        lambda p, lr, t: optim.Bop(p, lr, threshold=t), _grid((1e-2, 3e-2, 1e-1), (1e-5, 1e-4)),
    ),
    "bayesbinn": Method(
        "BayesBiNN, τ = 1", "concrete", Logistic(),
        lambda p, lr, n: optim.BayesBiNN(p, lr, train_set_size=n),
        _grid((3e-3, 1e-2, 3e-2), (1e4, 1e5)),
    ),
    "proxquant": Method(
        "ProxQuant", "mean", Uniform(),
        lambda p, lr, rate: optim.Proximal(
            torch.optim.Adam(p, lr), optim.proxquant, lambda t: rate * t
        ),
        _grid((3e-3, 1e-2, 3e-2), (1e-6, 1e-5)),
    ),
    "adam": Method(
        "Adam on latent weights", "sign", Uniform(),
        lambda p, lr, _: optim.MirrorDescent(
            p, lr, noise=Uniform(), lazy=True, betas=(0.9, 0.999)
        ),
        _grid((3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    ),
    "real": Method(
        "real weights (twin)", "real", None,
        lambda p, lr, _: torch.optim.Adam(p, lr), _grid((3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    ),
}  # fmt: skip


class _Layer(torch.nn.Module):
    """A matrix of weights and batch norm, one layer of the SBN."""

    def __init__(self, inputs: int, outputs: int, method: Method, draw: torch.Generator) -> None:
        super().__init__()
        if method.noise is None:
            self.matrix: torch.nn.Module = torch.nn.Linear(inputs, outputs, bias=False)
            latent = self.matrix.weight
        else:
            self.matrix = BernoulliLinear(
                inputs, outputs, bias=False, noise=method.noise, forward=method.forward
            )
            latent = self.matrix.eta
        with torch.no_grad():  # p uniform on [1/4, 3/4]; real weights of torch's own size
            u = torch.rand(latent.shape, generator=draw, dtype=torch.float32)
            start = (2 * u - 1) / math.sqrt(inputs)
            latent.copy_(start if method.noise is None else method.noise.icdf(0.25 + 0.5 * u))
        self.latent = [latent]  # in a list: the matrix registers it, this only names it
        self.norm = torch.nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        if isinstance(self.matrix, BernoulliLinear):
            return self.norm(self.matrix(x, generator=generator))
        return self.norm(self.matrix(x))


def train(
    method: str, setting: tuple[float, float], seed: int, data: Dataset, *,
    hidden: Sequence[int] = (100, 100), epochs: int = 20, batch_size: int = 50,
) -> Row:  # fmt: skip
    """Train once; a row with method, lr, other, seed, validation and test accuracy in [0, 1].

    Raises:
        ValueError: unknown ``method``; the message lists the known ones.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, got {method!r}")
    chosen = METHODS[method]
    draw = generator("cpu", seed, WEIGHTS)
    sizes = [data.train.inputs.shape[1], *hidden]
    layers = [_Layer(m, n, chosen, draw) for m, n in zip(sizes, sizes[1:], strict=False)]
    net = SBN(*layers).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = torch.nn.Linear(sizes[-1], data.num_classes, dtype=torch.float32).double()
    latent = [layer.latent[0] for layer in layers]
    rest = [p for p in net.parameters() if all(p is not q for q in latent)]
    others = torch.optim.Adam([*rest, *head.parameters()], 0.01)
    moving = [chosen.optimizer(latent, *setting), others]
    _fit(net, head, moving, data.train, seed, epochs, batch_size)
    _settle(net, data.train)
    return {
        "method": method, "lr": setting[0], "other": setting[1], "seed": seed,
        "validation": _accuracy(net, head, data.validation),
        "test": _accuracy(net, head, data.test),
    }  # fmt: skip


def _fit(
    net: SBN, head: torch.nn.Module, moving: list[torch.optim.Optimizer], split: Split, seed: int,
    epochs: int, batch_size: int,
) -> None:  # fmt: skip
    starts = [[group["lr"] for group in o.param_groups] for o in moving]
    for epoch in range(epochs):
        decay = (1 + math.cos(math.pi * epoch / epochs)) / 2
        for o, lrs in zip(moving, starts, strict=True):
            for group, lr in zip(o.param_groups, lrs, strict=True):
                group["lr"] = lr * decay
        draw = generator("cpu", seed, epoch, DRAWS)
        keys = generator("cpu", seed, epoch, ORDER)  # float32: whatever torch's default is
        order = torch.rand(len(split), generator=keys, dtype=torch.float32).argsort()
        for batch in order.split(batch_size)[: len(split) // batch_size]:
            x = net(split.inputs[batch].double(), generator=draw)
            loss = cross_entropy(head(x), split.labels[batch])
            for o in moving:
                o.zero_grad()
            loss.backward()
            for o in moving:
                o.step()


@torch.no_grad()
def _settle(net: SBN, split: Split) -> None:
    """Weights at their signs from now on; batch-norm statistics of that network."""
    for m in net.modules():
        if isinstance(m, BernoulliLinear):
            m.mode = "sign"
    for layer in net.layers:  # from the bottom up: a layer's inputs must be settled first
        layer.norm.reset_running_stats()
        layer.norm.momentum = None
        net.eval()
        layer.norm.train()
        net(split.inputs.double(), mode="sign")
    net.eval()


@torch.no_grad()
def _accuracy(net: SBN, head: torch.nn.Module, split: Split) -> float:
    scores = head(net(split.inputs.double(), mode="sign"))
    return (scores.argmax(-1) == split.labels).double().mean().item()


def run(
    data: str = "digits", seeds: int = 5, *, methods: Sequence[str] = tuple(METHODS),
    epochs: int = 20, progress: bool = False,
) -> Row:  # fmt: skip
    """Search, train, test every method: a measurement.

    Raises:
        ValueError: ``seeds < 1``, unknown method or data set, before any work.
    """
    from tqdm import tqdm

    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds!r}")
    unknown = [m for m in methods if m not in METHODS]
    if unknown:
        raise ValueError(f"methods must be among {sorted(METHODS)}, got {unknown}")
    loaded, rows = datasets.load(data), []
    total = sum(len(METHODS[m].trials) + seeds for m in methods)
    with tqdm(total=total, unit="run", disable=not progress) as bar:

        def one(part: str, method: str, setting: tuple[float, float], seed: int) -> Row:
            bar.set_description(f"{method} {setting}")
            row = {"part": part} | train(method, setting, seed, loaded, epochs=epochs)
            bar.update()
            return row

        for method in methods:
            search = [one("search", method, s, SEARCH_SEED) for s in METHODS[method].trials]
            best = max(search, key=lambda r: r["validation"])
            final = [one("final", method, (best["lr"], best["other"]), s) for s in range(seeds)]
            rows += [{k: v for k, v in r.items() if k != "test"} for r in search] + final
    return measurement.record(
        kind="binary weights",
        command=f"python -m sbnlib.experiments.weights --data {data} --seeds {seeds}"
        + (f" --epochs {epochs}" if epochs != 20 else ""),
        device=measurement.describe_device(),
        seeds=range(seeds),
        checks={"same_number_of_trials": len({len(METHODS[m].trials) for m in methods}) == 1},
        rows=rows + summarize(rows, methods),
    )


def summarize(rows: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """Mean test accuracy and, where the twin was run, the paired difference to it, with errors."""
    tests = {
        m: [r["test"] for r in rows if r["part"] == "final" and r["method"] == m] for m in methods
    }
    out = []
    for method, values in tests.items():
        row = {"part": "summary", "method": method} | _mean_se("", values)
        if "real" in tests and method != "real":
            gaps = [a - b for a, b in zip(values, tests["real"], strict=True)]
            row |= _mean_se("minus_twin_", gaps)
        out.append(row)
    return out


def _mean_se(prefix: str, values: Sequence[float]) -> Row:
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {f"{prefix}mean": statistics.fmean(values), f"{prefix}se": se}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", choices=sorted(datasets.DATASETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, help="measurement file to write")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = run(
        options.data, options.seeds, methods=options.methods, epochs=options.epochs, progress=True
    )
    for row in (r for r in result["rows"] if r["part"] == "summary"):
        se = "" if row["se"] is None else f" +- {row['se']:.3f}"
        print(f"{METHODS[row['method']].label:30s}{row['mean']:.3f}{se}")
    if options.out:
        measurement.write(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
