r"""Binary weights and activations on one data set: every optimizer at the same search budget.

    python -m sbnlib.experiments.weights --data digits --seeds 10 --out FILE

Each network has two layers of binary units, each a matrix of +-1 weights followed by batch norm,
and a real-valued linear head; the units are trained by straight-through. Methods differ in what
the weights are in the forward pass and in what moves their latent parameters. Every method gets
fifteen trials, chosen by validation with one seed; then N fresh seeds at the chosen setting.
All are tested alike: weights and units at their signs, batch-norm statistics taken anew for that.
``real`` is the twin with real-valued weights and the same binary units.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sbnlib import data as datasets
from sbnlib import optim
from sbnlib.contracts import check_count
from sbnlib.data import Dataset, Split
from sbnlib.experiments import measurement
from sbnlib.experiments.cache import (
    Cache,
    CacheError,
    Checkpoint,
    Key,
    Row,
    as_checkpoint,
    folder_of,
    make_key,
)
from sbnlib.experiments.command import add_option, add_out, add_resume_dir, refusing
from sbnlib.experiments.measurement import MeasurementError, check_writable
from sbnlib.experiments.protocol import Runs, search_and_final, summary
from sbnlib.experiments.training import (
    Classifier,
    Recipe,
    Training,
    fit,
    generator,
    linear,
    threads,
)
from sbnlib.extras import extra
from sbnlib.network import SBN, network_estimator
from sbnlib.nn import BernoulliLinear
from sbnlib.noise import Logistic, Noise, Uniform

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["METHODS", "Method", "run", "train"]

STACK = 32  # trainings that are computed as one, at most; the numbers do not depend on it


@dataclass(frozen=True)
class Method:
    """One way to train binary weights.

    Attributes:
        label: for tables.
        forward: what a weight is in the forward pass (see :class:`sbnlib.nn.BernoulliLinear`).
        noise: the law that turns latent weights into probabilities; None for real weights.
        optimizer: makes the optimizer from the latent weights and the two numbers of a trial.
        trials: fifteen settings (lr, second number).
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


def _steps(first: float) -> list[float]:
    """Fifteen numbers, two to three times the one before: 1, 2, 5, 10, ... from ``first`` on."""
    at = [float(f"{m}e{k}") for k in range(-5, 8) for m in (1, 2, 5)]
    start = at.index(first)
    return at[start : start + 15]


def _prox(eta: Tensor, strength: float) -> None:
    """ProxQuant's map, then the clip to the cube."""
    optim.proxquant(eta, strength)
    eta.clamp_(-1, 1)


METHODS: dict[str, Method] = {
    "mirror": Method(
        "mirror descent, KL", "sample", Logistic(),
        lambda p, lr, kl: optim.MirrorDescent(p, lr, kl=kl), _grid(_steps(20)),
    ),
    "bc_stochastic": Method(
        "BinaryConnect, stochastic", "sample", Uniform(),
        lambda p, lr, _: optim.BinaryConnect(p, lr), _grid(_steps(2)),
    ),
    "bc_deterministic": Method(
        "BinaryConnect, deterministic", "sign", Uniform(),
        lambda p, lr, _: optim.BinaryConnect(p, lr), _grid(_steps(0.5)),
    ),
    "bop": Method(
        "Bop", "sign", Uniform(),
        lambda p, lr, t: optim.Bop(p, lr, threshold=t),
        _grid((3e-3, 1e-2, 3e-2, 1e-1, 3e-1), (1e-5, 1e-4, 1e-3)),
    ),
    "bayesbinn": Method(
        "BayesBiNN, τ = 1", "concrete", Logistic(),
        lambda p, lr, n: optim.BayesBiNN(p, lr, train_set_size=n),
        _grid((1e-3, 3e-3, 1e-2), (1e5, 1e6, 1e7, 1e8, 1e9)),
    ),
    "adam_prox": Method(
        "Adam, ProxQuant's map, clip", "mean", Uniform(),
        lambda p, lr, rate: optim.Proximal(torch.optim.Adam(p, lr), _prox, lambda t: rate * t),
        _grid((3e-2, 1e-1, 3e-1, 1.0, 3.0), (1e-6, 1e-5, 1e-4)),
    ),
    "adam": Method(
        "Adam on latent weights", "sign", Uniform(),
        lambda p, lr, _: optim.MirrorDescent(
            p, lr, noise=Uniform(), lazy=True, betas=(0.9, 0.999)
        ),
        _grid(_steps(1e-3)),
    ),
    "real": Method(
        "real weights (twin)", "real", None,
        lambda p, lr, _: torch.optim.Adam(p, lr), _grid(_steps(1e-4)),
    ),
}  # fmt: skip


class BinaryLayer(torch.nn.Module):
    """A matrix of weights and batch norm, one layer of the SBN."""

    takes_axes = True

    def __init__(self, inputs: int, outputs: int, method: Method, draw: torch.Generator) -> None:
        super().__init__()
        self.matrix = (
            torch.nn.Linear(inputs, outputs, bias=False)
            if method.noise is None
            else BernoulliLinear(
                inputs, outputs, bias=False, noise=method.noise, forward=method.forward
            )
        )
        latent = self.latent
        with torch.no_grad():  # p uniform on [1/4, 3/4]; real weights of torch's own size
            u = torch.rand(latent.shape, generator=draw, dtype=torch.float64)
            start = (2 * u - 1) / math.sqrt(inputs)
            latent.copy_(start if method.noise is None else method.noise.icdf(0.25 + 0.5 * u))
        self.norm = torch.nn.BatchNorm1d(outputs)

    @property
    def latent(self) -> Tensor:
        """The latent weights, or the real ones."""
        matrix = self.matrix
        return matrix.eta if isinstance(matrix, BernoulliLinear) else matrix.weight

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        if isinstance(self.matrix, BernoulliLinear):
            return self.norm(self.matrix(x, generator=generator))
        return self.norm(self.matrix(x))


def train(
    method: str,
    setting: tuple[float, float],
    seed: int,
    data: Dataset,
    *,
    hidden: Sequence[int] = (100, 100),
    epochs: int = 20,
    batch_size: int = 50,
    fabric: Fabric | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    after_epoch: Callable[[], Any] = lambda: None,
) -> Row:
    """Train once; a row: method, lr, other, seed, validation and test accuracy, validation_loss.

    Args:
        method: one of :data:`METHODS`.
        setting: the learning rate and the second number of a trial.
        seed: of the initial weights, the order of the images and all draws.
        data: see :func:`sbnlib.data.load`.
        hidden: widths of the binary layers.
        epochs, batch_size: length of the run and size of a step.
        fabric: on a CPU; made here if it is not given.
        checkpoint: a file; the state is kept there after each epoch, and taken up again.
        after_epoch: called after each epoch.

    Raises:
        ValueError: unknown ``method``; the message lists the known ones. ``epochs`` or
            ``batch_size`` below 1, or a batch larger than the training data.
        CacheError: the checkpoint is of another run: any argument, the code or torch differs.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, got {method!r}")
    which = _named(method, setting, seed)
    size: dict[str, Any] = {"hidden": list(hidden), "epochs": epochs, "batch_size": batch_size}
    file = as_checkpoint(checkpoint, lambda: make_key("weights", size | {"run": which}, data))
    fabric = fabric or launch()
    (row,) = _train(data, fabric, [which], [file], after_epoch=after_epoch, **size)
    return row


def _train(
    data: Dataset,
    fabric: Fabric,
    runs: Sequence[Mapping[str, Any]],
    files: Sequence[Checkpoint | None],
    *,
    after_epoch: Callable[[], Any],
    hidden: Sequence[int] = (100, 100),
    epochs: int = 20,
    batch_size: int = 50,
) -> Iterator[Row]:
    """The rows of runs that are trained together and then looked at one by one."""
    trainings = []
    for run, file in zip(runs, files, strict=True):
        recipe = Recipe(run["seed"], epochs, batch_size, contender=run["method"])
        trainings.append(Training(*_moved(data, hidden, **run), recipe, file, after_epoch))
    split = Split(data.train.inputs.double(), data.train.labels)
    fit(fabric, trainings, split)
    for run, model in zip(runs, (training.model for training in trainings), strict=True):
        _settle(model.net, split)
        validation, loss = _evaluate(model, data.validation)
        test, _ = _evaluate(model, data.test)
        yield {**run, "validation": validation, "validation_loss": loss, "test": test}


def _named(method: str, setting: tuple[float, float], seed: int) -> Row:
    return {"method": method, "lr": setting[0], "other": setting[1], "seed": int(seed)}


def _moved(
    data: Dataset, hidden: Sequence[int], method: str, lr: float, other: float, seed: int
) -> tuple[Classifier, list[torch.optim.Optimizer]]:
    """The untrained classifier and the optimizers of its latent weights and of the rest."""
    model = _build(method, seed, data, hidden)
    latent = [m.latent for m in model.modules() if isinstance(m, BinaryLayer)]
    rest = [p for p in model.parameters() if all(p is not q for q in latent)]
    return model, [METHODS[method].optimizer(latent, lr, other), torch.optim.Adam(rest, 0.01)]


def _build(method: str, seed: int, data: Dataset, hidden: Sequence[int]) -> Classifier:
    """The untrained classifier."""
    draw = generator("cpu", "weights", seed=seed, contender=method)
    sizes = [data.train.inputs.shape[1], *hidden]
    layers = [
        BinaryLayer(m, n, METHODS[method], draw) for m, n in zip(sizes, sizes[1:], strict=False)
    ]
    net = SBN(*layers).double()
    head = linear(sizes[-1], data.num_classes, 1.0, draw, torch.float64)
    return Classifier(net, head, network_estimator("straight_through"))


def launch() -> Fabric:
    """One CPU: these networks are too small for more."""
    with extra("experiments"):
        from lightning_fabric import Fabric
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    return fabric


@torch.no_grad()
def _settle(net: torch.nn.Module, split: Split) -> None:
    """Weights at their signs from now on; batch-norm statistics of that network."""
    for m in net.modules():
        if isinstance(m, BernoulliLinear):
            m.mode = "sign"
    layers = [m for m in net.modules() if isinstance(m, BinaryLayer)]
    for layer in layers:  # from the bottom up: a layer's inputs must be settled first
        layer.norm.reset_running_stats()
        layer.norm.momentum = None
        net.eval()
        layer.norm.train()
        net(split.inputs, mode="sign")
    net.eval()


@torch.no_grad()
def _evaluate(model: Classifier, split: Split) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    scores = model.head(model.net(split.inputs.double(), mode="sign"))
    accuracy = (scores.argmax(-1) == split.labels).double().mean().item()
    return accuracy, cross_entropy(scores, split.labels).item()


def run(
    data: str = "digits",
    seeds: int = 10,
    *,
    methods: Sequence[str] = tuple(METHODS),
    epochs: int = 20,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Row:
    """Search, train, test every method, on one thread: a measurement.

    Args:
        data: name of the data set.
        seeds: how many runs at the chosen setting.
        methods: among :data:`METHODS`, each once.
        epochs: length of a run.
        folder: every finished run is kept there, and those under way; called again, the
            experiment goes on where it was.
        progress: whether to show a progress bar.

    Raises:
        ValueError: ``seeds`` or ``epochs`` no whole number or below 1, unknown or repeated method,
            unknown data set; before any work.
        CacheError: the folder is in use, or belongs to other arguments, data, code or torch;
            before any work.
        MeasurementError: the folder cannot be written to.
    """
    settings = _checked(data, seeds, methods, epochs)
    loaded, fabric = datasets.load(data), launch()
    with Cache(fabric, make_key("weights", settings, loaded), folder) as cache, threads(1):
        return _run(settings, loaded, cache, progress)


def _run(settings: Key, data: Dataset, cache: Cache, progress: bool) -> Row:
    methods, seeds, epochs = (settings[name] for name in ("methods", "seeds", "epochs"))
    count = sum(len(METHODS[m].trials) + seeds for m in methods)
    rows: list[Row] = []
    with Runs(cache, count=count, epochs=epochs, progress=progress) as runs:
        for method in methods:
            own = partial(_rows, runs, method, data, epochs)
            search, final = search_and_final(METHODS[method].trials, own, seeds=seeds, score=_score)
            rows += search + final
    return measurement.record(
        kind="binary weights",
        command=_command(**settings),
        device=measurement.describe_device(),
        seeds=range(seeds),
        checks={"same_number_of_trials": len({len(METHODS[m].trials) for m in methods}) == 1}
        | {f"{method}_inside_grid": _is_inside(method, rows) for method in methods},
        rows=rows + summarize(rows, methods, len(data.test)),
    )


def _score(row: Row) -> tuple[float, float]:
    """Validation accuracy; among equals, minus validation loss."""
    return row["validation"], -row["validation_loss"]


def _is_inside(method: str, rows: Sequence[Row]) -> bool:
    """Whether neither number of the chosen setting ends the ones that were tried."""
    chosen = next(r for r in rows if r["part"] == "final" and r["method"] == method)
    tried = zip(*METHODS[method].trials, strict=True)
    pairs = zip((chosen["lr"], chosen["other"]), tried, strict=True)
    return all(min(v) < c < max(v) or len(set(v)) == 1 for c, v in pairs)


def _checked(data: str, seeds: int, methods: Iterable[str], epochs: int) -> Key:
    """The settings of an experiment, in plain numbers and lists."""
    check_count("seeds", seeds)
    check_count("epochs", epochs)
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise ValueError(f"methods must be a list of names, got {methods!r}")
    names = list(methods)
    if unknown := [m for m in names if m not in list(METHODS)]:
        raise ValueError(f"methods must be among {sorted(METHODS)}, got {unknown}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods must name each method once, got {names}")
    return {"data": data, "seeds": int(seeds), "methods": names, "epochs": int(epochs)}


def _rows(
    runs: Runs,
    method: str,
    data: Dataset,
    epochs: int,
    settings: Sequence[tuple[tuple[float, float], int]],
) -> list[Row]:
    """Training runs, or their rows if they are known from before."""
    named = [_named(method, setting, seed) for setting, seed in settings]
    compute = partial(_train, data, runs.cache.fabric, epochs=epochs)
    return runs.rows(named, compute, stack=STACK)


def _command(data: str, seeds: int, methods: Sequence[str], epochs: int) -> str:
    """The command line that repeats the experiment."""
    words = f"python -m sbnlib.experiments.weights --data {data} --seeds {seeds}"
    words += f" --epochs {epochs}" if epochs != 20 else ""
    return words + (f" --methods {' '.join(methods)}" if list(methods) != list(METHODS) else "")


def summarize(rows: Sequence[Row], methods: Sequence[str], images: int) -> list[Row]:
    """Mean test accuracy and, where the twin was run, the difference to it, with their errors."""
    tests = {
        m: [r["test"] for r in rows if r["part"] == "final" and r["method"] == m] for m in methods
    }
    return [
        {"part": "summary", "method": method}
        | summary(values, None if method == "real" else tests.get("real"), images=images)
        for method, values in tests.items()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.weights",
        description=(__doc__ or "").split("\n")[0],
    )
    known = ", ".join(datasets.DATASETS)
    add_option(parser, "data", "digits", f"data set: {known}", choices=sorted(datasets.DATASETS))
    add_option(
        parser, "seeds", 10, "number of runs at a method's chosen setting, with the seeds 0, 1, ..."
    )
    add_option(parser, "epochs", 20, "length of a run, in passes through the training images")
    words = "optimizers to compare, each once; real is the twin with real-valued weights"
    add_option(parser, "methods", tuple(METHODS), words, choices=list(METHODS))
    add_out(parser)
    add_resume_dir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = vars(parser.parse_args(argv))
    out, parent = options.pop("out"), options.pop("resume_dir")
    with refusing(parser, ValueError, RuntimeError):  # DataError
        settings = _checked(**options)
        if out:
            check_writable(out)
        data, fabric = datasets.load(settings["data"]), launch()
    key = make_key("weights", settings, data)
    with (
        refusing(parser, CacheError, MeasurementError),
        Cache(fabric, key, folder_of(parent, key)) as cache,
        threads(1),
    ):
        result = _run(settings, data, cache, progress=True)
        print(report(result))
        if out:
            measurement.write(out, result)
        cache.clear()  # what is worth keeping is in the measurement file
    return 0


def report(result: Row) -> str:
    """The summary as a table."""
    lines = []
    for row in (r for r in result["rows"] if r["part"] == "summary"):
        se = "" if row["se"] is None else f" +- {row['se']:.3f}"
        lines.append(f"{METHODS[row['method']].label:30s}{row['mean']:.3f}{se}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
