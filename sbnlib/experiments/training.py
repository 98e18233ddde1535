"""A training loop on Lightning Fabric that can be killed at any time.

Every random number is drawn from a generator whose seed is (run's seed, epoch, purpose, rank).
A new epoch starts new generators, so a run that starts again from the checkpoint of epoch e draws
what the uninterrupted run would have drawn: model, optimizer and epoch number are all there is to
save, on any number of devices.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sbnlib.contracts import NetworkEstimator
from sbnlib.data import Split
from sbnlib.experiments.measurement import write_whole

__all__ = ["Classifier", "Recipe", "TanhNet", "backprop", "cached", "fit", "generator", "linear"]

ORDER, NOISE, WEIGHTS, EVALUATION = range(4)  # what random numbers are drawn for


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
        def loss(x: Tensor) -> Tensor:
            scores = self.head(x)  # (..., B, classes): estimators put axes in front
            targets = labels.expand(scores.shape[:-1])
            values = cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction="none")
            return values.reshape(targets.shape)

        return self.estimator(self.net, inputs, loss, generator=generator)


@dataclass(frozen=True)
class Recipe:
    """How to train: Adam at ``lr``, brought down to 0 along a half cosine if ``cosine``."""

    lr: float
    seed: int
    epochs: int
    batch_size: int
    cosine: bool = True

    def lr_at(self, epoch: int) -> float:
        decay = (1 + math.cos(math.pi * epoch / self.epochs)) / 2 if self.cosine else 1.0
        return self.lr * decay


def generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on ``device`` with a seed mixed from the whole numbers in ``key``."""
    (seed,) = np.random.SeedSequence(key).generate_state(1)
    return torch.Generator(device).manual_seed(int(seed))


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
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    after_epoch: Callable[[], Any] = lambda: None,
) -> None:
    """Train ``model`` in place on ``data``, which lies on fabric's device.

    With ``checkpoint`` the state is written there after every epoch, and training goes on from it
    if it exists.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    wrapped, optimizer = fabric.setup(model, optimizer)
    state = {"model": wrapped, "optimizer": optimizer}
    start = _restore(fabric, checkpoint, state)
    for epoch in range(recipe.epochs):
        if epoch >= start:
            _train_epoch(fabric, wrapped, optimizer, data, recipe, epoch)
            _save(fabric, checkpoint, state | {"epoch": epoch + 1})
        after_epoch()


def _train_epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Split,
    recipe: Recipe,
    epoch: int,
) -> None:
    """One pass in random order. Each device takes its share of every batch; a last, smaller batch
    is left out, another one each time."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(epoch)
    rank, size = fabric.global_rank, recipe.batch_size
    noise = generator(fabric.device, recipe.seed, epoch, NOISE, rank)
    for batch in _order(len(data), recipe, epoch).to(fabric.device).split(size):
        if len(batch) == size:
            own = batch[rank :: fabric.world_size]
            loss = model(data.inputs[own], data.labels[own], noise).mean()
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()


def _order(count: int, recipe: Recipe, epoch: int) -> Tensor:
    draw = generator("cpu", recipe.seed, epoch, ORDER)
    return torch.rand(count, generator=draw, dtype=torch.float64).argsort()


def _restore(fabric: Fabric, checkpoint: Path | None, state: dict[str, Any]) -> int:
    """Fill ``state`` from the checkpoint; the number of epochs it has seen, 0 without one."""
    if checkpoint is None or not fabric.broadcast(checkpoint.exists()):
        return 0
    return fabric.load(checkpoint, state)["epoch"]


def _save(fabric: Fabric, checkpoint: Path | None, state: dict[str, Any]) -> None:
    """Write beside the checkpoint, then rename: a kill leaves the old one or the new one."""
    if checkpoint is None:
        return
    part = checkpoint.with_name(f"{checkpoint.name}.part")
    fabric.save(part, state)
    if fabric.is_global_zero:
        os.replace(part, checkpoint)
    fabric.barrier()


def cached(
    fabric: Fabric, folder: Path | None, name: str, compute: Callable[[Path | None], dict[str, Any]]
) -> dict[str, Any]:
    """The row ``compute(checkpoint)`` returns, kept as ``folder/name.json`` once it is known.

    A row that is there already is read instead; one cut off by a kill is computed again. All
    devices get the row of the first.
    """
    if folder is None:
        return fabric.broadcast(compute(None))
    path = folder / f"{name}.json"
    row = fabric.broadcast(_stored(path) if fabric.is_global_zero else None)
    if row is None:
        checkpoint = folder / f"{name}.ckpt"
        row = fabric.broadcast(compute(checkpoint))
        if fabric.is_global_zero:
            write_whole(path, json.dumps(row, allow_nan=False))
            checkpoint.unlink(missing_ok=True)
    return row


def _stored(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not there, or cut off
        return None
