"""A training loop on Lightning Fabric that can be killed at any time.

Every random number is drawn from a generator of its purpose, made anew from the run's seed, the
epoch and the rank. A new epoch starts new generators, so a run that starts again from the
checkpoint of epoch e draws what the uninterrupted run would have drawn: model, optimizer and epoch
number are all there is to save, on any number of devices.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sbnlib.contracts import NetworkEstimator, check_count
from sbnlib.data import Split
from sbnlib.experiments.cache import Checkpoint
from sbnlib.losses import classification_loss

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Classifier", "Recipe", "TanhNet", "backprop", "fit", "generator", "linear", "threads"]


class TanhNet(nn.Module):
    """The real-valued twin of an SBN: the same layers, tanh(a) in place of each binary unit."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def backprop(
    net: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The network estimator of a net without noise: its loss, whose gradient is exact."""
    return loss(net(inputs))


class Classifier(nn.Module):
    """A net, a linear head on its last layer, and the estimator that trains both.

    ``forward(inputs, labels, generator)`` is the cross-entropy of each of the B inputs, shape (B,),
    with the estimator's gradient.
    """

    def __init__(self, net: nn.Module, head: nn.Linear, estimator: NetworkEstimator) -> None:
        super().__init__()
        self.net, self.head, self.estimator = net, head, estimator

    def forward(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        loss = classification_loss(self.head, labels)
        return self.estimator(self.net, inputs, loss, generator=generator)


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        seed: of the order of the images and of the noise.
        epochs, batch_size: length of the run and size of a step.
        contender: whose run it is; contenders with the same seed share no random number, so that
            their results are independent.
        cosine: whether the learning rates are brought down to 0 along a half cosine.

    Raises:
        ValueError: ``epochs`` or ``batch_size`` is no whole number, or is below 1.
    """

    seed: int
    epochs: int
    batch_size: int
    contender: str = ""
    cosine: bool = True

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)

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
    inputs: int, outputs: int, gain: float, draw: torch.Generator, dtype: torch.dtype
) -> nn.Linear:
    """A linear layer, weights and biases uniform on +-gain/sqrt(inputs); gain 1 is torch's own."""
    layer = nn.Linear(inputs, outputs, dtype=dtype)
    bound = gain / math.sqrt(inputs)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_((2 * torch.rand(p.shape, generator=draw, dtype=torch.float64) - 1) * bound)
    return layer


def fit(
    fabric: Fabric,
    model: Classifier,
    data: Split,
    optimizers: Sequence[torch.optim.Optimizer],
    recipe: Recipe,
    *,
    checkpoint: Checkpoint | None = None,
    after_epoch: Callable[[], Any] = lambda: None,
) -> None:
    """Train ``model`` in place on ``data``, which lies on fabric's device.

    Each step is one of every optimizer, on the same gradient; the learning rates they come with are
    those of the first epoch. With ``checkpoint`` the state is written there after every epoch, and
    training goes on from it if it exists.

    Raises:
        ValueError: the batch is larger than ``data``.
        CacheError: the checkpoint is of another run.
    """
    if recipe.batch_size > len(data):
        raise ValueError(
            f"batch_size must be at most the {len(data)} training images, got {recipe.batch_size}"
        )
    rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
    wrapped, *moving = fabric.setup(model, *optimizers)
    state = {"model": wrapped} | {f"optimizer {k}": o for k, o in enumerate(moving)}
    start = checkpoint.restore(fabric, state) if checkpoint else 0
    for epoch in range(recipe.epochs):
        if epoch >= start:
            _set_rates(moving, rates, recipe.decay(epoch))
            _train_epoch(fabric, wrapped, moving, data, recipe, epoch)
            if checkpoint:
                checkpoint.save(fabric, state | {"epoch": epoch + 1})
        after_epoch()


def _set_rates(
    optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[Sequence[float]], decay: float
) -> None:
    for optimizer, first in zip(optimizers, rates, strict=True):
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * decay


def _train_epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    data: Split,
    recipe: Recipe,
    epoch: int,
) -> None:
    """One pass in random order. Each device takes its share of every batch; a last, smaller batch
    is left out, another one each time."""
    rank, size = fabric.global_rank, recipe.batch_size
    noise = recipe.generator(fabric.device, "noise", epoch=epoch, rank=rank)
    for batch in _order(len(data), recipe, epoch).to(fabric.device).split(size):
        if len(batch) == size:
            own = batch[rank :: fabric.world_size]
            loss = model(data.inputs[own], data.labels[own], noise).mean()
            for optimizer in optimizers:
                optimizer.zero_grad()
            fabric.backward(loss)
            for optimizer in optimizers:
                optimizer.step()


def _order(count: int, recipe: Recipe, epoch: int) -> Tensor:
    draw = recipe.generator("cpu", "order", epoch=epoch)
    return torch.rand(count, generator=draw, dtype=torch.float64).argsort()
