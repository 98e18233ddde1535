"""Train a stochastic binary network beside its tanh twin, and measure both.

    python -m sbnlib.experiments.classify --data digits --estimator straight_through \
        --noise Logistic --hidden 100 100 --seeds 10

Both models have the same layers, the same linear head and the same number of search trials: every
learning rate with every initial gain, one fixed seed, chosen by validation accuracy. Then each is
trained with its chosen setting for N seeds and tested. The test set plays no part in the search.

Predictions of the SBN: ``sign`` (every unit in its most probable state), ``one`` (one sample; the
accuracy is the mean over ten), ``ten`` (class probabilities averaged over ten samples), ``mean``
(every unit puts out its mean). The twin has one, ``tanh``.

With ``--norm batch`` each layer is linear without biases, then batch norm, in both models. Its
running statistics are those of weights on their way and, in the SBN, of sampled units. So every
prediction, the twin's too, is made with statistics taken anew: those of all training images at the
final weights, with units that put out what they put out in that prediction.

The trials of a search, and the final runs, are trained as one (``sbnlib.experiments.stacked``);
local expectation and PSA, a run of which fills the machine, one after the other. A run that fails
does not stop those beside it: they end, and are kept, before its error is raised.

From Python: ``classify.run(Config(...))`` does it all; ``classify.train(config, model, lr, gain,
seed)`` repeats one line of it.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from sbnlib import data as datasets
from sbnlib import registry
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
from sbnlib.experiments.command import (
    add_option,
    add_out,
    add_resume_dir,
    as_typed,
    refusing,
)
from sbnlib.experiments.measurement import MeasurementError, check_writable
from sbnlib.experiments.protocol import Runs, search_and_final, summary
from sbnlib.experiments.training import (
    DRAWS,
    Classifier,
    Recipe,
    TanhNet,
    Training,
    backprop,
    fit,
    generator,
    linear,
    threads,
)
from sbnlib.extras import extra
from sbnlib.inference import BatchNorm, reestimate_batch_norm, set_mode
from sbnlib.network import SBN, network_estimator
from sbnlib.nn import MODES
from sbnlib.noise import NOISES, Noise, is_positive

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["MODELS", "CacheError", "Config", "run", "summarize", "train"]


def __dir__() -> list[str]:  # what completion offers
    return __all__


#: The two models, each with the prediction by which its setting is chosen.
MODELS = {"sbn": "ten", "tanh": "tanh"}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
NORMS = ("none", "batch")
#: Kinds of estimators that run each layer once, on the batch: batch norm is of these numbers.
ON_THE_BATCH = ("chain rule", "relaxation")
SAMPLES = 10


@dataclass(frozen=True)
class Config:
    """One experiment. Everything is checked here, before any work.

    Attributes:
        data: name of the data set.
        estimator: name in the registry.
        noise: name of the noise.
        noise_scale: its scale, a number from 1e-37 to 1e37; or "auto", the one at which
            straight-through's gain is 1 (``noise.scaled_to(gain=1)``) for pre-activations N(0, 1),
            such as batch norm makes. The twin has no noise.
        hidden: widths of the binary layers.
        norm: "none", or "batch": a layer is ``nn.Linear`` without biases, then ``nn.BatchNorm1d``
            with a scale and a shift that are trained, in both models. For estimators of the kinds
            "chain rule" and "relaxation": others look at states that are no batch. On several
            CUDA devices the statistics are those of the whole batch; several CPUs are refused.
        seeds: how many runs at the chosen setting.
        epochs, batch_size: length of a run and size of a step.
        lr: learning rates to choose from.
        init_gain: factors to choose from, on the initial weights and biases of the binary layers
            (1: torch's default, which leaves logistic units close to coin flips). Because F is
            applied to a / scale, a gain does what a smaller noise scale does, at the same learning
            rate relative to the weights. Behind batch norm a gain leaves the function as it is, and
            makes the steps smaller relative to the weights.
        schedule: "cosine" or "constant".
        dtype: "float32" or "float64".
        accelerator, devices: where to run, for Lightning Fabric.
        draws: "stream" or "example", whose random numbers a device draws; with "example" the
            numbers are the same on any number of devices, up to rounding
            (``sbnlib.experiments.training``).
        stack: the most trainings that are computed as one (``sbnlib.experiments.stacked``). On
            a CPU the numbers do not depend on it; on a GPU products round otherwise in a stack
            than alone, and 1 trains one after the other.
        threads: those torch may use: small nets are slowed by a second one, and a busy machine by
            more, fourfold and over.

    Raises:
        ValueError: a field is wrong; the message names it, what was given and what is allowed.
    """

    data: str = "digits"
    estimator: str = "straight_through"
    noise: str = "Logistic"
    noise_scale: float | str = 1.0
    hidden: tuple[int, ...] = (100, 100)
    norm: str = "none"
    seeds: int = 10
    epochs: int = 40
    batch_size: int = 50
    lr: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    init_gain: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 9.0, 27.0)
    schedule: str = "cosine"
    dtype: str = "float64"
    accelerator: str = "cpu"
    devices: int = 1
    draws: str = "stream"
    stack: int = 32
    threads: int = 1

    def __post_init__(self) -> None:
        _one_of("data", self.data, datasets.DATASETS)
        _one_of("estimator", self.estimator, registry.ESTIMATORS)
        _one_of("noise", str(self.noise).lower(), NOISES)
        object.__setattr__(self, "noise_scale", _scale(self.noise_scale))
        _one_of("norm", self.norm, NORMS)
        _one_of("schedule", self.schedule, ("cosine", "constant"))
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("draws", self.draws, DRAWS)
        _one_of("accelerator", self.accelerator, ("cpu", "cuda", "gpu", "mps", "auto"))
        for name in ("seeds", "epochs", "batch_size", "devices", "stack", "threads"):
            check_count(name, getattr(self, name))
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "hidden", _widths(self.hidden))
        for name in ("lr", "init_gain"):
            object.__setattr__(self, name, _choices(name, getattr(self, name)))
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size: got {self.batch_size}, must be a multiple of the "
                f"{self.devices} devices"
            )
        if self.norm == "batch":
            _check_batch_norm(self.estimator, self.batch_size // self.devices)
            if self.devices > 1 and self.accelerator == "cpu":
                raise ValueError(
                    f"devices: got {self.devices} CPU processes, must be 1 with norm='batch', of "
                    "which torch takes statistics over several devices on CUDA alone"
                )

    @property
    def command(self) -> str:
        """The command line that repeats this experiment."""
        always = ("data", "estimator", "noise", "hidden", "seeds")
        shown = [f for f in fields(self) if f.name in always or getattr(self, f.name) != f.default]
        words = [f"--{f.name.replace('_', '-')} {as_typed(getattr(self, f.name))}" for f in shown]
        return " ".join(["python -m sbnlib.experiments.classify", *words])


def _one_of(name: str, value: Any, known: Any) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: got {value!r}, known are {', '.join(known)}")


def _scale(value: Any) -> float | str:
    if isinstance(value, str) and value == "auto":
        return value
    if not is_positive(value):
        raise ValueError(
            f"noise_scale: got {value!r}, must be a number from 1e-37 to 1e37, or auto"
        )
    return float(value)


def _check_batch_norm(estimator: str, batch_size: int) -> None:
    kind = registry.get(estimator).kind
    if kind not in ON_THE_BATCH:
        known = [e.name for e in registry.ESTIMATORS.values() if e.kind in ON_THE_BATCH]
        raise ValueError(
            f"norm: got 'batch', must be none with the estimator {estimator} ({kind}), which looks "
            f"at states that are no batch; known with batch norm are {', '.join(known)}"
        )
    if batch_size < 2:
        raise ValueError(f"batch_size: got {batch_size} a device, must be at least 2 with "
                         "norm='batch'")  # fmt: skip


def _widths(values: Any) -> tuple[int, ...]:
    for value in _several("hidden", values):
        check_count("hidden", value)
    return tuple(map(int, values))


def _choices(name: str, values: Any) -> tuple[float, ...]:
    for value in _several(name, values):
        if isinstance(value, bool) or not is_positive(value):
            raise ValueError(f"{name}: got {value!r}, must be a number > 0, at most 1e37")
    if len(set(values)) < len(values):
        raise ValueError(f"{name}: got {values!r}, must have each number once")
    return tuple(map(float, values))


def _several(name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, (tuple, list)) or not values:
        raise ValueError(f"{name}: got {values!r}, must be a list of at least one number")
    return tuple(values)


# One training run --------------------------------------------------------------------------------


def train(
    config: Config,
    model: str,
    lr: float,
    init_gain: float,
    seed: int,
    *,
    fabric: Fabric | None = None,
    data: Dataset | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    after_epoch: Callable[[], Any] = lambda: None,
) -> Row:
    """Train ``model`` ("sbn" or "tanh") once; a row with its accuracies in [0, 1].

    The two models share no random number, so that their accuracies are independent. The row: model,
    lr, init_gain, seed, ``validation`` and ``test`` (accuracy of each prediction) and
    ``validation_loss`` (mean negative log-likelihood of the prediction in ``MODELS``).

    Args:
        config: the experiment.
        model: "sbn" or "tanh".
        lr, init_gain: the setting.
        seed: of the initial weights, the order of the images and the noise.
        fabric, data: made from ``config`` if they are not given.
        checkpoint: a file; the state is kept there after each epoch, and taken up again.
        after_epoch: called after each epoch.

    Raises:
        ValueError: unknown ``model``.
        CacheError: the checkpoint is of another run: any argument, the code or torch differs.
    """
    _one_of("model", model, MODELS)
    fabric = fabric or launch(config)
    data = data or load(config)
    which = {"model": model, "lr": float(lr), "init_gain": float(init_gain), "seed": int(seed)}
    file = as_checkpoint(checkpoint, partial(_key, config, data, run=which))
    (row,) = _train(config, fabric, data, [which], [file], after_epoch=after_epoch)
    return row


def _train(
    config: Config,
    fabric: Fabric,
    data: Dataset,
    runs: Sequence[Mapping[str, Any]],
    files: Sequence[Checkpoint | None],
    *,
    after_epoch: Callable[[], Any],
) -> Iterator[Row]:
    """The rows of runs that are trained together and then looked at one by one."""
    data = _on_device(config, fabric, data)
    trainings = [
        _training(config, data, **run, checkpoint=file, after_epoch=after_epoch)
        for run, file in zip(runs, files, strict=True)
    ]
    with threads(config.threads):
        fit(fabric, trainings, data.train)
    for run, training in zip(runs, trainings, strict=True):
        draw, anew = (
            training.recipe.generator(fabric.device, use) for use in ("evaluation", "statistics")
        )
        with threads(config.threads):
            nets = settled(training.model.net, run["model"], data.train.inputs, anew)
            validation, loss = evaluate(training.model, run["model"], data.validation, draw, nets)
            test, _ = evaluate(training.model, run["model"], data.test, draw, nets)
        yield {**run, "validation": validation, "validation_loss": loss, "test": test}


def _training(
    config: Config, data: Dataset, model: str, lr: float, init_gain: float, seed: int, **kept: Any
) -> Training:
    net = build(config, model, data, init_gain, seed)
    adam = torch.optim.Adam(net.parameters(), lr=lr)
    cosine = config.schedule == "cosine"
    recipe = Recipe(
        seed, config.epochs, config.batch_size, contender=model, cosine=cosine, draws=config.draws
    )
    return Training(net, [adam], recipe, **kept)


def _key(config: Config, data: Dataset, **run: Any) -> Key:
    settings = asdict(config)
    if config.accelerator == "cpu":  # where the numbers do not depend on it
        del settings["stack"]
    for field in fields(Config):  # newer than the keys of some that are kept
        if field.name in ("noise_scale", "norm", "draws") and settings[field.name] == field.default:
            del settings[field.name]
    return make_key("classify", settings | run, data)


def build(config: Config, model: str, data: Dataset, init_gain: float, seed: int) -> Classifier:
    """An untrained model on ``data``'s device."""
    inputs, dtype = data.train.inputs, DTYPES[config.dtype]
    draw = generator("cpu", "weights", seed=seed, contender=model)
    sizes = [inputs.shape[1], *config.hidden]
    layers = [
        layer(m, n, init_gain, draw, dtype, config.norm)
        for m, n in zip(sizes, sizes[1:], strict=False)
    ]
    head = linear(sizes[-1], data.num_classes, 1.0, draw, dtype)
    if model == "tanh":
        return Classifier(TanhNet(*layers), head, backprop).to(inputs.device)
    net = SBN(*layers, noise=_noise(config.noise.lower(), config.noise_scale))
    return Classifier(net, head, network_estimator(config.estimator)).to(inputs.device)


def layer(
    inputs: int, outputs: int, gain: float, draw: torch.Generator, dtype: torch.dtype, norm: str
) -> nn.Module:
    """What comes in front of the units: linear, and with norm="batch" batch norm behind it."""
    if norm == "none":
        return linear(inputs, outputs, gain, draw, dtype)
    first = linear(inputs, outputs, gain, draw, dtype, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(outputs, dtype=dtype))


@functools.cache
def _noise(name: str, scale: float | str) -> Noise:
    law = NOISES[name]
    return law().scaled_to(gain=1) if isinstance(scale, str) else law(scale)


def settled(
    net: nn.Module, model: str, inputs: Tensor, draw: torch.Generator
) -> dict[str, nn.Module]:
    """The net of each prediction: for a net with batch norm, copies with statistics for it.

    Args:
        net: a trained net of ``model``; it stays as it is.
        inputs: those that it was trained on, (N, n). They are one batch: the variance over several
            would leave out that of their means.
        draw: for the sampled units, of which one draw an input gives the statistics.

    Returns:
        "sample", "sign" and "mean", or "tanh", to the net that makes it.
    """
    modes = ("tanh",) if model == "tanh" else MODES
    return {mode: settled_for(net, mode, inputs, draw) for mode in modes}


def settled_for(net: nn.Module, mode: str, inputs: Tensor, draw: torch.Generator) -> nn.Module:
    """The net that makes the prediction of one mode, see :func:`settled`."""
    if not any(isinstance(m, BatchNorm) for m in net.modules()):
        return net
    own = copy.deepcopy(net)
    if mode != "tanh":
        set_mode(own, mode)
    reestimate_batch_norm(_Drawing(own, draw) if mode == "sample" else own, inputs)
    return own


class _Drawing(nn.Module):
    """A net that draws from one generator."""

    def __init__(self, net: nn.Module, draw: torch.Generator) -> None:
        super().__init__()
        self.net, self.draw = net, draw

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs, generator=self.draw)


@torch.no_grad()
def evaluate(
    classifier: Classifier,
    model: str,
    split: Split,
    draw: torch.Generator,
    nets: Mapping[str, nn.Module] | None = None,
) -> tuple[dict[str, float], float]:
    """The accuracy of each prediction, and the loss of the one in ``MODELS``.

    ``nets`` are those of :func:`settled`; without batch norm the classifier's own makes them all.
    """
    head = classifier.head
    nets = dict.fromkeys((*MODES, "tanh"), classifier.net) if nets is None else nets
    if model == "tanh":
        scores = head(nets["tanh"](split.inputs)).log_softmax(-1)
        return {"tanh": _accuracy(scores, split)}, nll_loss(scores, split.labels).item()
    logits = {mode: head(nets[mode](split.inputs, mode=mode)) for mode in ("sign", "mean")}
    samples = [head(nets["sample"](split.inputs, generator=draw)) for _ in range(SAMPLES)]
    logs = torch.stack([sample.log_softmax(-1) for sample in samples])
    ten = logs.logsumexp(0) - math.log(SAMPLES)  # log of the averaged probabilities
    accuracies = {
        "sign": _accuracy(logits["sign"], split),
        "one": statistics.fmean(_accuracy(sample, split) for sample in samples),
        "ten": _accuracy(ten, split),
        "mean": _accuracy(logits["mean"], split),
    }
    return accuracies, nll_loss(ten, split.labels).item()


def _accuracy(scores: Tensor, split: Split) -> float:
    return (scores.argmax(-1) == split.labels).double().mean().item()


def load(config: Config) -> Dataset:
    """The data set, large enough for one batch. Raises ValueError, or DataError (sbnlib.data)."""
    data = datasets.load(config.data)
    if config.batch_size > len(data.train):
        raise ValueError(
            f"batch_size: got {config.batch_size}, must be at most the "
            f"{len(data.train)} training images of {config.data}"
        )
    return data


def _on_device(config: Config, fabric: Fabric, data: Dataset) -> Dataset:
    def move(split: Split) -> Split:
        inputs = split.inputs.to(fabric.device, DTYPES[config.dtype])
        return Split(inputs, split.labels.to(fabric.device))

    return Dataset(
        data.name,
        data.image_shape,
        data.num_classes,
        move(data.train),
        move(data.validation),
        move(data.test),
    )


def launch(config: Config) -> Fabric:
    """Fabric on the devices asked for; with several, starts the other processes."""
    with extra("experiments"):
        from lightning_fabric import Fabric
    fabric = Fabric(accelerator=config.accelerator, devices=config.devices)
    fabric.launch()
    return fabric


# The experiment ----------------------------------------------------------------------------------


def run(
    config: Config,
    *,
    fabric: Fabric | None = None,
    data: Dataset | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Row:
    """Search, train ``config.seeds`` seeds of both models, test: a measurement.

    Args:
        config: the experiment.
        fabric, data: made from ``config`` if they are not given.
        folder: every finished run is kept there and those under way are checkpointed after each
            epoch; called again, the experiment goes on where it was and ends with the same numbers
            (bit for bit on a CPU).
        progress: whether to show a progress bar.

    Raises:
        CacheError: the folder is in use, or belongs to another configuration, data set, code or
            torch; before any work.
        MeasurementError: the folder cannot be written to.
    """
    data = data or load(config)
    fabric = fabric or launch(config)
    with Cache(fabric, _key(config, data), folder) as cache:
        return _run(config, data, cache, progress)


def _run(config: Config, data: Dataset, cache: Cache, progress: bool) -> Row:
    data = _on_device(config, cache.fabric, data)
    trials = [(lr, gain) for gain in config.init_gain for lr in config.lr]
    count = len(MODELS) * (len(trials) * (len(trials) > 1) + config.seeds)
    with Runs(cache, count=count, epochs=config.epochs, progress=progress) as runs:
        found = {
            model: search_and_final(
                trials, partial(_rows, config, data, runs, model), seeds=config.seeds, score=_score
            )
            for model in MODELS
        }
    search, final = ({model: rows[k] for model, rows in found.items()} for k in (0, 1))
    return _measurement(config, cache.fabric, search, final, len(data.test))


def _rows(
    config: Config,
    data: Dataset,
    runs: Runs,
    model: str,
    settings: Sequence[tuple[tuple[float, float], int]],
) -> list[Row]:
    """Training runs, or their rows if they are known from before."""
    named = [
        {"model": model, "lr": lr, "init_gain": gain, "seed": seed} for (lr, gain), seed in settings
    ]
    compute = partial(_train, config, runs.cache.fabric, data)
    return runs.rows(named, compute, stack=stack_size(config, model))


#: Numbers in the states of one layer of all trainings: more in a stack gain nothing on a CPU.
NUMBERS = 1 << 20


def stack_size(config: Config, model: str = "sbn") -> int:
    """How many trainings are computed as one: ``stack`` of them, fewer of large ones.

    An estimator that evaluates the loss c times, or averages its slope over c draws, has tensors c
    times as large. Where c is of the number of units (local expectation, PSA) a training fills the
    machine by itself; PSA, which reads the weights of a single network, is not stacked at any size.
    """
    width = max(config.hidden)
    cost = 1 if model == "tanh" else _draws(config.estimator, width)
    most = config.stack // cost
    if config.accelerator == "cpu":
        most = min(most, NUMBERS // (cost * config.batch_size * width))
    return max(1, most)


def _draws(estimator: str, width: int) -> int:
    """How many times as large as the states an estimator's tensors are."""
    entry = registry.get(estimator)
    inner: int = getattr(entry.function, "keywords", {}).get("num_inner", 1)
    return entry.cost(width) * inner


def _score(row: Row) -> tuple[float, float]:
    """Validation accuracy; among equals, minus validation loss."""
    return row["validation"][MODELS[row["model"]]], -row["validation_loss"]


def summarize(final: dict[str, list[Row]], images: int) -> list[Row]:
    """Mean test accuracy over the seeds and the difference to the twin, with their errors.

    Args:
        final: model name -> the rows of its runs, as :func:`train` returns them.
        images: the number of test images.
    """
    (twin,) = (column["values"] for column in _columns(final["tanh"]))
    rows = []
    for column in [*_columns(final["sbn"]), *_columns(final["tanh"])]:
        values = column.pop("values")
        other = None if column["model"] == "tanh" else twin
        rows.append({"part": "summary", **column, **summary(values, other, images=images)})
    return rows


def _columns(rows: list[Row]) -> list[Row]:
    return [
        {
            "model": rows[0]["model"],
            "prediction": name,
            "values": [row["test"][name] for row in rows],
        }
        for name in rows[0]["test"]
    ]


def _measurement(
    config: Config,
    fabric: Fabric,
    search: dict[str, list[Row]],
    final: dict[str, list[Row]],
    images: int,
) -> Row:
    inside = {
        f"{model}_{name}_inside_grid": min(tried) < rows[0][name] < max(tried)
        for model, rows in final.items()
        for name, tried in (("lr", config.lr), ("init_gain", config.init_gain))
    }
    checks = {"same_number_of_trials": len(search["sbn"]) == len(search["tanh"]), **inside}
    rows = [
        *search["sbn"],
        *search["tanh"],
        *final["sbn"],
        *final["tanh"],
        *summarize(final, images),
    ]
    with threads(config.threads):
        device = measurement.describe_device(fabric.device)
    return measurement.record(
        kind="classify",
        command=config.command,
        checks=checks,
        rows=rows,
        device=device if config.devices == 1 else f"{config.devices} x {device}",
        seeds=range(config.seeds),
    )


# The command -------------------------------------------------------------------------------------


#: What each option does, for ``--help``.
HELP = {
    "data": f"data set: {', '.join(datasets.DATASETS)}",
    "estimator": f"estimator that trains the network: {', '.join(registry.ESTIMATORS)}",
    "noise": f"noise of the binary units: {', '.join(NOISES)}",
    "noise_scale": "scale of the noise, in units of the pre-activations; or auto: where "
    "straight-through's gain is 1 for pre-activations of variance 1",
    "hidden": "number of units of each binary layer, from the input up",
    "norm": "none, or batch: batch norm in front of the units, of the tanh twin too",
    "seeds": "number of runs at the chosen setting, with the seeds 0, 1, ...; these are tested",
    "epochs": "length of a run, in passes through the training images",
    "batch_size": "training images a step, over all devices together",
    "lr": "learning rates of Adam in the first epoch, among which the search chooses",
    "init_gain": "factors on torch's initial weights and biases of the binary layers, among which "
    "the search chooses",
    "schedule": "learning rate over the epochs: cosine (half a cosine, down to 0) or constant",
    "dtype": "floating-point type of weights and images: float32 or float64",
    "accelerator": "kind of device: cpu, cuda, gpu, mps or auto",
    "devices": "number of devices; a batch is shared out evenly",
    "draws": "random numbers of a device: stream, of its rank, or example, those that its images "
    "have on any number of devices",
    "stack": "number of trainings that are computed as one, at most, fewer of large ones; 1: one "
    "after the other",
    "threads": "number of CPU threads torch may use",
}


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.classify",
        usage="%(prog)s --data NAME --estimator NAME --noise NAME [options]",
        description="Train a stochastic binary network beside its tanh twin, and measure both.",
    )
    for field in fields(Config):
        more = {"type": _number_or_word} if field.name == "noise_scale" else {}
        add_option(parser, field.name, field.default, HELP[field.name], **more)
    add_out(parser, "runs/classify-DATA.json")
    add_resume_dir(parser)
    return parser


def report(result: Row) -> str:
    """The summary as a table, in percent."""
    rows = [row for row in result["rows"] if row["part"] == "summary"]
    lines = [f"{'':14}{'test %':>8}{'se':>6}{'minus twin':>12}{'se':>6}"]
    for row in rows:
        cells = [row.get(key) for key in ("mean", "se", "minus_twin", "minus_twin_se")]
        shown = ["-" if cell is None else f"{100 * cell:.2f}" for cell in cells]
        name = f"{row['model']} {row['prediction']}"
        lines.append(f"{name:14}{shown[0]:>8}{shown[1]:>6}{shown[2]:>12}{shown[3]:>6}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = vars(parser.parse_args(argv))
    out, parent = options.pop("out"), options.pop("resume_dir")
    with refusing(parser, ValueError, RuntimeError):  # DataError, and Fabric's "no such device"
        config = Config(**options)
        out = out or Path("runs") / f"classify-{config.data}.json"
        check_writable(out)
        data, fabric = load(config), launch(config)
    key = _key(config, data)
    with (
        refusing(parser, CacheError, MeasurementError),
        Cache(fabric, key, folder_of(parent, key)) as cache,
    ):
        result = _run(config, data, cache, progress=True)
        if fabric.is_global_zero:
            measurement.write(out, result)
            cache.clear()
            print(report(result), f"written to {out}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
