"""A training loop on Lightning Fabric that can be killed at any time.

Every random number is drawn from a generator of its purpose, made anew from the run's seed and the
epoch. A new epoch starts new generators, so a run that starts again from the checkpoint of epoch e
draws what the uninterrupted run would have drawn: model, optimizer and epoch number are all there
is to save, on any number of devices.

On several devices each has its share of every batch, and draws for it from a generator of its own
rank; or, with ``draws="example"``, what a single device would have drawn for the same examples, so
that the losses agree up to rounding. Batch norm takes its statistics over all devices, for which
torch has a layer on CUDA alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sbnlib.contracts import check_count
from sbnlib.data import Split
from sbnlib.experiments.cache import Checkpoint
from sbnlib.experiments.models import Classifier, TanhNet, backprop
from sbnlib.experiments.stacked import Forward, Step, alike, as_one, generators
from sbnlib.inference import BatchNorm
from sbnlib.network import CONVOLUTIONS
from sbnlib.noise import Share

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "Classifier",
    "Recipe",
    "TanhNet",
    "Training",
    "backprop",
    "fit",
    "generator",
    "linear",
    "threads",
]


#: Whose random numbers a device draws, see :class:`Recipe`.
DRAWS = ("stream", "example")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        seed: of the order of the images and of the noise.
        epochs, batch_size: length of the run and size of a step.
        contender: whose run it is; contenders with the same seed share no random number, so that
            their results are independent.
        cosine: whether the learning rates are brought down to 0 along a half cosine.
        draws: whose random numbers a device draws on several of them: "stream", those of its rank;
            "example", those that its examples have on any number of devices. Each then draws the
            numbers of the whole batch and keeps its own.

    Raises:
        ValueError: ``epochs`` or ``batch_size`` is no whole number, or is below 1; unknown
            ``draws``.
    """

    seed: int
    epochs: int
    batch_size: int
    contender: str = ""
    cosine: bool = True
    draws: str = "stream"

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        if self.draws not in DRAWS:
            raise ValueError(f"draws must be one of {DRAWS}, got {self.draws!r}")

    def generator(
        self, device: torch.device | str, purpose: str, **key: int | str
    ) -> torch.Generator:
        """The generator of one use of random numbers in this run."""
        return generator(device, purpose, seed=self.seed, contender=self.contender, **key)

    def decay(self, epoch: int) -> float:
        """The factor on every learning rate in this epoch."""
        return (1 + math.cos(math.pi * epoch / self.epochs)) / 2 if self.cosine else 1.0


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads, and put back what was set before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def generator(device: torch.device | str, purpose: str, **key: int | str) -> torch.Generator:
    """A generator on ``device`` for one use of random numbers, such as "order", seed=0, epoch=3.

    Its seed is a hash of the purpose and of the names and values in ``key``, so that no two uses
    share their numbers.
    """
    plain = {name: v if isinstance(v, str) else int(v) for name, v in key.items()}  # not numpy's
    words = json.dumps([purpose, *sorted(plain.items())])
    seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")
    return torch.Generator(device).manual_seed(seed)


def linear(
    inputs: int,
    outputs: int,
    gain: float,
    draw: torch.Generator,
    dtype: torch.dtype,
    *,
    bias: bool = True,
) -> nn.Linear:
    """A linear layer, weights and biases uniform on +-gain/sqrt(inputs); gain 1 is torch's own."""
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    bound = gain / math.sqrt(inputs)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_((2 * torch.rand(p.shape, generator=draw, dtype=torch.float64) - 1) * bound)
    return layer


@dataclass(frozen=True, eq=False)
class Training:
    """One run.

    Attributes:
        model: what is trained, in place.
        optimizers: what moves it, each in every step, on the same gradient; the learning rates
            they come with are those of the first epoch.
        recipe: how.
        checkpoint: where the state is kept after every epoch, and taken up again.
        after_epoch: called after every epoch, also one that was seen before.
    """

    model: Classifier
    optimizers: Sequence[torch.optim.Optimizer]
    recipe: Recipe
    checkpoint: Checkpoint | None = None
    after_epoch: Callable[[], Any] = lambda: None

    def moved(self) -> list[list[list[str]]] | None:
        """The names of what each group of each optimizer moves; None if one is not the model's."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        groups = [[group["params"] for group in o.param_groups] for o in self.optimizers]
        if any(id(p) not in names for each in groups for group in each for p in group):
            return None
        return [[[names[id(p)] for p in group] for group in each] for each in groups]


def fit(
    fabric: Fabric, trainings: Sequence[Training], data: Split, *, exact: bool | None = None
) -> None:
    """Carry out the trainings on ``data``, which lies on fabric's device.

    Those that are alike are computed as one (``sbnlib.experiments.stacked``), those that are at
    different epochs, or of different lengths, where both have an epoch to do; on several devices
    each is trained by itself.

    Args:
        exact: whether each training has the rounding, so the numbers, that it has alone; default:
            on a CPU.

    Raises:
        ValueError: a batch is larger than ``data``, or no multiple of the devices; several devices,
            none of them CUDA's, and a model with batch norm; ``draws="example"`` for states that
            are not (..., B, n).
        CacheError: a checkpoint is of another run.
    """
    for training in trainings:
        _check_size(training.recipe.batch_size, len(data), fabric.world_size)
        if training.recipe.draws == "example":
            _check_axes(training.model, data)
    exact = fabric.device.type == "cpu" if exact is None else exact
    for stack in _stacks([_Run(fabric, training) for training in trainings]):
        for epoch in range(max(run.recipe.epochs for run in stack)):
            own = [run for run in stack if epoch < run.recipe.epochs]
            due = [run for run in own if run.start <= epoch]
            if due:
                _train_epoch(fabric, due, data, epoch, exact)
            for run in due:
                run.save(epoch + 1)
            for run in own:
                run.after_epoch()


def _check_size(size: int, images: int, devices: int) -> None:
    if size > images:
        raise ValueError(f"batch_size must be at most the {images} training images, got {size}")
    if size % devices:
        raise ValueError(f"batch_size must be a multiple of the {devices} devices, got {size}")


def _check_axes(model: nn.Module, data: Split) -> None:
    """The rows that belong to examples are those of the second axis from the end."""
    wrong = next((m for m in model.modules() if isinstance(m, CONVOLUTIONS)), None)
    if wrong is not None or data.inputs.dim() != 2:
        got = f"inputs of shape {tuple(data.inputs.shape)}" if wrong is None else f"{wrong}"
        raise ValueError(
            "draws must be 'stream' where not all states are (..., B, n), examples times units, "
            f"got 'example' and {got}"
        )


class _Run:
    """A training under way."""

    def __init__(self, fabric: Fabric, training: Training) -> None:
        self.fabric, self.training, self.recipe = fabric, training, training.recipe
        self.after_epoch = training.after_epoch
        self.rates = [[group["lr"] for group in o.param_groups] for o in training.optimizers]
        model = _in_step(fabric, training.model)
        self.model, *self.optimizers = fabric.setup(model, *training.optimizers)
        optimizers = {f"optimizer {k}": o for k, o in enumerate(self.optimizers)}
        self.state: dict[str, Any] = {"model": self.model} | optimizers
        file = training.checkpoint
        self.start = file.restore(fabric, self.state) if file else 0

    def is_like(self, other: _Run) -> bool:
        one, two = self.training, other.training
        return (
            self.fabric.world_size == 1
            and one.recipe.batch_size == two.recipe.batch_size
            and (moved := one.moved()) is not None
            and moved == two.moved()
            and alike(one.model, two.model)
        )

    def shares(self, other: _Run) -> bool:
        """Whether a tensor is moved by both."""
        one, two = ({id(p) for p in r.training.model.parameters()} for r in (self, other))
        return not one.isdisjoint(two)

    def set_rates(self, epoch: int) -> None:
        decay = self.recipe.decay(epoch)
        for optimizer, first in zip(self.training.optimizers, self.rates, strict=True):
            for group, lr in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = lr * decay

    def save(self, epoch: int) -> None:
        if file := self.training.checkpoint:
            file.save(self.fabric, self.state | {"epoch": epoch})


def _in_step(fabric: Fabric, model: nn.Module) -> nn.Module:
    """The model with batch norm whose statistics are those of the whole batch."""
    norms = [name for name, m in model.named_modules() if isinstance(m, BatchNorm)]
    if fabric.world_size == 1 or not norms:
        return model
    if fabric.device.type != "cuda":
        raise ValueError(
            f"devices: got {fabric.world_size} of kind {fabric.device.type}, must be 1 for a model "
            f"with batch norm ({norms[0]}): torch takes its statistics over several on CUDA alone"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # never run: no machine here has two


def _stacks(runs: Sequence[_Run]) -> list[list[_Run]]:
    """The runs that are alike, in the order of the first of each kind."""
    stacks: list[list[_Run]] = []
    for run in runs:
        fits = (s for s in stacks if run.is_like(s[0]) and not any(map(run.shares, s)))
        own = next(fits, None)
        if own is None:
            stacks.append([run])
        else:
            own.append(run)
    return stacks


def _train_epoch(
    fabric: Fabric, runs: Sequence[_Run], data: Split, epoch: int, exact: bool
) -> None:
    """One pass in random order. Each device takes its share of every batch; a last, smaller batch
    is left out, another one each time. A stack has one more axis, in front of the batch."""
    for run in runs:
        run.set_rates(epoch)
    size = runs[0].recipe.batch_size
    order, noise = _draws(fabric, [run.recipe for run in runs], len(data), epoch)
    with _together(runs, exact) as (model, optimizers):
        for batch in order.to(fabric.device).split(size, dim=-1):
            if batch.shape[-1] == size:
                own = batch[..., fabric.global_rank :: fabric.world_size]
                loss = model(data.inputs[own], data.labels[own], noise).mean(-1).sum()
                for optimizer in optimizers:
                    optimizer.zero_grad()
                fabric.backward(loss)
                for optimizer in optimizers:
                    optimizer.step()


@contextmanager
def _together(runs: Sequence[_Run], exact: bool) -> Iterator[tuple[Forward, Sequence[Step]]]:
    """A single run as it is, several as one."""
    if len(runs) == 1:
        yield runs[0].model, runs[0].optimizers
    else:
        models = [run.training.model for run in runs]
        optimizers = [run.training.optimizers for run in runs]
        with as_one(models, optimizers, exact=exact) as stack:
            yield stack


def _draws(
    fabric: Fabric, recipes: Sequence[Recipe], count: int, epoch: int
) -> tuple[Tensor, torch.Generator]:
    """The order of the examples and the source of the noise in this epoch."""
    orders = [_order(count, recipe, epoch) for recipe in recipes]
    noises = [_noise(fabric, recipe, epoch) for recipe in recipes]
    if len(recipes) == 1:
        return orders[0], noises[0]
    return torch.stack(orders), generators(noises)


def _noise(fabric: Fabric, recipe: Recipe, epoch: int) -> torch.Generator:
    """Of this rank, or this rank's share of the one that rank 0 has alone."""
    if recipe.draws == "stream":
        return recipe.generator(fabric.device, "noise", epoch=epoch, rank=fabric.global_rank)
    whole = recipe.generator(fabric.device, "noise", epoch=epoch, rank=0)
    share = Share(whole, fabric.global_rank, fabric.world_size)
    return cast(torch.Generator, share)  # it stands for one wherever sbnlib draws


def _order(count: int, recipe: Recipe, epoch: int) -> Tensor:
    draw = recipe.generator("cpu", "order", epoch=epoch)
    return torch.rand(count, generator=draw, dtype=torch.float64).argsort()
