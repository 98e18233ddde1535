r"""Where the estimators point along a training, in a network too large for exact sums.

A network is trained by straight-through, as the way ``st-logistic`` of
:mod:`sbnlib.experiments.ways` is. At the start and after some epochs batch norm is given fixed
statistics, taken anew for sampled units, so that the loss of one image is a function of that image
alone. Gradients of the mean loss of a few fixed images are compared with an unbiased reference, per
layer's weights and for all of them together.

With g the expected gradient of an estimator and h the exact one,

.. math:: \text{many} = \frac{\langle g, h\rangle}{\|g\|\,\|h\|}, \qquad
          \text{one} = \mathbb{E}\,\frac{\langle\hat g, h\rangle}{\|\hat g\|\,\|h\|}

None of the means is known, only means :math:`G_1, \dots, G_R` and :math:`H_1, \dots, H_R` of
independent samples. A product of two different ones has no noise of its own in expectation, so

.. math:: \langle g, h\rangle \approx \tfrac1{R^2}\sum_{ij}\langle G_i, H_j\rangle, \qquad
          \|h\|^2 \approx \tfrac1{R(R-1)}\sum_{i\ne j}\langle H_i, H_j\rangle

and so for g: unlike the length of one mean, which noise makes too long. Standard errors are by the
jackknife, which leaves out the i-th mean of both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sbnlib import registry
from sbnlib.data import Dataset
from sbnlib.experiments.cache import Row
from sbnlib.experiments.classify import settled_for
from sbnlib.experiments.models import Classifier
from sbnlib.experiments.training import Recipe, Training, fit
from sbnlib.experiments.ways import BATCH, STATISTICS, WAYS, cut, data_of, fresh
from sbnlib.extras import extra
from sbnlib.losses import classification_loss
from sbnlib.network import SBN, network_estimator

__all__ = ["ESTIMATORS", "REFERENCE", "cosines", "folded", "looked_at", "moments"]

#: The way that is trained.
WAY = "st-logistic"
ESTIMATORS = ("straight_through", "zgr", "st_gumbel", "concrete")
#: Unbiased ones; the reference is the one with the least variance for its cost, as the rows show.
CANDIDATES = ("reinforce_loo", "arm", "disarm", "muprop", "rebar", "local_expectation")
REFERENCE = "muprop"
#: Epochs after which it is looked at; the last is the length of the training.
EPOCHS = (0, 1, 2, 5)
IMAGES, SEEDS = 20, 1
#: Means R; samples behind one of an estimator, and of the reference; single samples beside each.
GROUPS = 20
SAMPLES, REFERENCE_SAMPLES, SINGLES = 50, 400, 10
#: Means of a candidate, and the samples behind one where it is cheap.
TRIED, TRIED_SAMPLES, CHEAP = 6, 10, 10

#: Name of a layer, or "all", to a vector.
Parts = dict[str, Tensor]


# The network --------------------------------------------------------------------------------------


class Folded(nn.Module):
    r"""A linear layer and the batch norm behind it: :math:`a = s\,(Wx - m) + b` a unit."""

    scale: Tensor
    shift: Tensor

    def __init__(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.weight = nn.Parameter(linear.weight.detach().clone())
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        self.register_buffer("scale", scale[:, None].clone())
        self.register_buffer("shift", norm.bias.detach() - scale * norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return nn.functional.linear(x, self.scale * self.weight, self.shift)


def folded(net: SBN) -> SBN:
    """A copy whose batch norm is a scale and a shift of its running statistics.

    Its parameters are the weights alone. Axes in front of the batch are further draws.
    """
    pairs = [cast(Any, layer) for layer in net.layers]
    return SBN(*(Folded(linear, norm) for linear, norm in pairs), noise=net.noise)


# Gradients ----------------------------------------------------------------------------------------


class _Problem:
    """A network at one moment, and the mean loss of a few images."""

    def __init__(self, model: Classifier, data: Dataset, draw: torch.Generator) -> None:
        settled = settled_for(model.net, "sample", data.train.inputs[:STATISTICS], draw)
        assert isinstance(settled, SBN)
        self.net, self.draw = folded(settled), draw
        self.inputs = data.train.inputs[:IMAGES]
        head = copy.deepcopy(model.head).requires_grad_(False)
        self.loss = classification_loss(head, data.train.labels[:IMAGES])
        self.width = max(p.shape[0] for p in self.net.parameters())

    def gradient(self, estimator: str, samples: int = 1) -> Parts:
        """The mean of so many samples, for each layer's weights and for all."""
        inputs = self.inputs.expand(samples, *self.inputs.shape)
        apply = network_estimator(estimator)
        value = apply(self.net, inputs, self.loss, generator=self.draw).mean()
        found = torch.autograd.grad(value, list(self.net.parameters()))
        layers = {f"{k + 1}": g.flatten() for k, g in enumerate(found)}
        return layers | {"all": torch.cat(list(layers.values()))}

    def direction(self, estimator: str) -> Parts:
        """The mean of single samples' directions."""
        samples = [self.gradient(estimator) for _ in range(SINGLES)]
        return {part: torch.stack([_unit(g[part]) for g in samples]).mean(0) for part in samples[0]}


def _unit(vector: Tensor) -> Tensor:
    length = vector.norm()
    return vector / length if length > 0 else vector


def _groups(function: Callable[[], Parts], count: int) -> Parts:
    """Independent results as the rows of matrices."""
    found = [function() for _ in range(count)]
    return {part: torch.stack([each[part] for each in found]).double() for part in found[0]}


# Cosines ------------------------------------------------------------------------------------------


def cosines(means: Tensor, directions: Tensor, reference: Tensor) -> Row:
    """``many`` and ``one`` with their standard errors ``many_se`` and ``one_se``.

    Null where the products do not tell a length from 0.

    Args:
        means: independent means of samples of an estimator, (R, P) with R >= 3.
        directions: means of single samples at length 1, (R, P).
        reference: independent means of an unbiased estimator, (R, P).
    """
    products = [means @ reference.T, directions @ reference.T, means @ means.T]
    products.append(reference @ reference.T)
    every = torch.arange(len(means))
    left_out = [_cosines(products, every[every != j]) for j in every]
    row: Row = {}
    for name, value in _cosines(products, every).items():
        others = [each[name] for each in left_out]
        row |= {name: value, f"{name}_se": None if value is None else _jackknife(others)}
    return row


def _cosines(products: list[Tensor], keep: Tensor) -> dict[str, float | None]:
    gh, uh, gg, hh = (p[keep][:, keep] for p in products)
    h, g = _length(hh), _length(gg)
    return {
        "many": gh.mean().item() / (g * h) if g > 0 and h > 0 else None,
        "one": uh.mean().item() / h if h > 0 else None,
    }


def _length(products: Tensor) -> float:
    """Of the mean, from products of two different ones; 0 where they do not tell it from 0."""
    count = len(products)
    square = (products.sum() - products.trace()).item() / (count * (count - 1))
    return max(square, 0.0) ** 0.5


def _jackknife(values: list[float | None]) -> float | None:
    if None in values:
        return None
    of = torch.tensor(values, dtype=torch.float64)
    return ((of - of.mean()).square().sum() * (len(of) - 1) / len(of)).sqrt().item()


# The part -----------------------------------------------------------------------------------------


def looked_at(job: Mapping[str, Any], *, data: str, lr: float) -> list[Row]:
    """The rows of one training, the way's final run of this seed.

    Rows of ``part`` "gradients": ``epoch``, ``estimator``, ``layer`` ("1", "2", "all"), and what
    :func:`cosines` finds. Of "reference": ``length`` of the exact gradient and the standard error
    of the reference's mean relative to it. Of "candidate": the standard deviation of one sample
    relative to that length, and what it costs in evaluations of the loss.

    Args:
        job: ``seed``.
        data: the name of the data set.
        lr: the learning rate of the first epoch.
    """
    images = cut(data_of(data), WAYS[WAY].images)
    recipe = Recipe(job["seed"], EPOCHS[-1], BATCH, contender=WAY)
    rows: list[Row] = []
    for epoch, model in moments(fresh(WAYS[WAY], images, lr, recipe), images, EPOCHS).items():
        draw = recipe.generator("cpu", "gradients", epoch=epoch)
        found = _rows(_Problem(model, images, draw))
        rows += [{"seed": job["seed"], "epoch": epoch} | row for row in found]
    return rows


def moments(training: Training, data: Dataset, epochs: Sequence[int]) -> dict[int, Classifier]:
    """Carry out a training; the classifier after each of these epochs, 0 for the start."""
    with extra("experiments"):
        from lightning_fabric import Fabric

    seen = [copy.deepcopy(training.model)]
    keep = replace(training, after_epoch=lambda: seen.append(copy.deepcopy(training.model)))
    fit(Fabric(accelerator="cpu", devices=1), [keep], data.train)
    return {epoch: seen[epoch] for epoch in epochs}


def _rows(problem: _Problem) -> list[Row]:
    reference = _groups(lambda: problem.gradient(REFERENCE, REFERENCE_SAMPLES), GROUPS)
    lengths = {part: _length(h @ h.T) for part, h in reference.items()}
    rows: list[Row] = [
        {"part": "reference", "estimator": REFERENCE, "layer": part, "length": lengths[part]}
        | {"samples": GROUPS * REFERENCE_SAMPLES, "se": _relative(h, lengths[part], GROUPS**-0.5)}
        for part, h in reference.items()
    ]
    for estimator in ESTIMATORS:
        rows += _compared(problem, estimator, reference)
    for estimator in CANDIDATES:
        rows += _tried(problem, estimator, lengths)
    return rows


def _compared(problem: _Problem, estimator: str, reference: Parts) -> list[Row]:
    means = _groups(lambda: problem.gradient(estimator, SAMPLES), GROUPS)
    directions = _groups(lambda: problem.direction(estimator), GROUPS)
    return [
        {"part": "gradients", "estimator": estimator, "layer": part}
        | cosines(means[part], directions[part], reference[part])
        for part in means
    ]


def _tried(problem: _Problem, estimator: str, lengths: Mapping[str, float]) -> list[Row]:
    cost = registry.get(estimator).cost(problem.width)
    samples = TRIED_SAMPLES if cost <= CHEAP else 1
    found = _groups(lambda: problem.gradient(estimator, samples), TRIED)
    return [
        {"part": "candidate", "estimator": estimator, "layer": part, "evaluations": cost}
        | {"deviation": _relative(g, lengths[part], samples**0.5)}
        for part, g in found.items()
    ]


def _relative(rows: Tensor, length: float, factor: float) -> float | None:
    """The standard deviation of a row, a vector, times a factor and relative to a length."""
    spread = rows.var(0).sum().sqrt().item()
    return factor * spread / length if length > 0 else None
