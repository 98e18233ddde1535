r"""Where the estimators point along the training of an autoencoder.

Two trainings with codes of 8 bits, where the exact gradient is a sum over all codes, and two with
64, where the reference is the mean of many samples of local expectation, which is unbiased. What is
compared is the gradient of the misfit of some training pictures in the encoder's weights; that of
the divergence is exact in all. ``many`` and ``one`` are the cosines of
:mod:`sbnlib.experiments.directions`, with its standard errors, and ``deviation`` is the standard
deviation of one sample, one draw a picture, relative to the length of the gradient.

Source: the question is that of Shekhovtsov and Yanush 2021 (DAGM GCPR, arXiv 2006.06880), whose
reference was ARM with 1 000 samples.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sbnlib.data import Dataset
from sbnlib.experiments.cache import Row
from sbnlib.experiments.coders import (
    ESTIMATORS,
    EXACT_BITS,
    SETTINGS,
    Autoencoder,
    fresh,
    law_of,
    misfits_of,
    pictures,
    recipe_of,
)
from sbnlib.experiments.directions import cosines, moments
from sbnlib.losses import autoencoding_loss
from sbnlib.network import SBN, network_estimator

__all__ = ["REFERENCE", "RUNS", "looked_at"]

#: Length of the code, and who trains; with 64 bits, ZGR stands in for the exact gradient.
RUNS = ((8, "straight_through"), (8, "exact"), (64, "straight_through"), (64, "zgr"))
REFERENCE = "local_expectation"
#: Epochs after which it is looked at; the last is the length of the training.
EPOCHS = (0, 1, 3, SETTINGS["train"].epochs)
IMAGES = 50
#: Means, and samples behind one of an estimator; of the reference as many are drawn.
GROUPS, SAMPLES = 20, 50
#: Samples of the reference that are drawn together.
TOGETHER = 10


def looked_at(job: Mapping[str, Any], *, data: str, rates: Mapping[str, float]) -> list[Row]:
    """The rows of one training.

    Rows of ``part`` "gradients": ``epoch``, ``estimator``, ``deviation``, and what
    :func:`sbnlib.experiments.directions.cosines` finds. Of "reference": ``length`` of the gradient,
    the samples behind it, 0 where it is exact, and the standard error of their mean relative to it.

    Args:
        job: ``bits``, ``trained`` (who trains) and ``seed``.
        data: the name of the data set.
        rates: the learning rate of the first epoch, by who trains.
    """
    images = pictures(data, torch.float32)
    bits, name = job["bits"], job["trained"]
    recipe = recipe_of(name, bits, job["seed"], EPOCHS[-1])
    training = fresh(name, bits, images, rates[name], recipe)
    rows: list[Row] = []
    for epoch, model in moments(training, images, EPOCHS).items():
        draw = recipe.generator("cpu", "gradients", epoch=epoch)
        found = _rows(_Problem(cast(Autoencoder, model), images, draw))
        rows += [dict(job) | {"epoch": epoch} | row for row in found]
    return rows


class _Problem:
    """A model at one moment, and the mean misfit of a few pictures."""

    def __init__(self, model: Autoencoder, data: Dataset, draw: torch.Generator) -> None:
        self.inputs, self.pictures = data.train.inputs[:IMAGES], data.train.labels[:IMAGES]
        self.decoder, self.draw = copy.deepcopy(model.head).requires_grad_(False), draw
        self.a = model.activations(self.inputs).detach()
        self.loss = autoencoding_loss(self.decoder, self.pictures)
        self.units = SBN(nn.Identity(), noise=model.noise)
        self.exact = self.a.shape[-1] <= EXACT_BITS

    def samples(self, estimator: str, count: int) -> Tensor:
        """Independent gradients in the encoder's weights, (count, P)."""
        a = self.a.expand(count, *self.a.shape).clone().requires_grad_()
        value = network_estimator(estimator)(self.units, a, self.loss, generator=self.draw)
        return self._of_weights(torch.autograd.grad(value.sum(), a)[0])

    def reference(self) -> Tensor:
        """Independent means, (GROUPS, P), all of them the exact gradient where that is known."""
        if self.exact:
            return self._exact().double().expand(GROUPS, -1)
        parts = range(0, SAMPLES, TOGETHER)
        means = [
            torch.stack([self.samples(REFERENCE, TOGETHER).mean(0) for _ in parts]).mean(0)
            for _ in range(GROUPS)
        ]
        return torch.stack(means).double()

    def _exact(self) -> Tensor:
        a = self.a.clone().requires_grad_()
        misfits = misfits_of(self.decoder, a.shape[-1], self.pictures)
        value = (law_of(a, self.units.noise) * misfits).sum()
        return self._of_weights(torch.autograd.grad(value, a)[0][None])[0]

    def _of_weights(self, gradient: Tensor) -> Tensor:
        """Of the mean over the pictures, from that of each in the pre-activations (..., B, n)."""
        return (gradient.mT @ self.inputs).flatten(1) / len(self.inputs)


def _rows(problem: _Problem) -> list[Row]:
    reference = problem.reference()
    length = (reference[0].norm() if problem.exact else _length(reference)).item()
    spread = reference.var(0).sum().sqrt().item() / GROUPS**0.5
    row: Row = {"part": "reference", "estimator": "exact" if problem.exact else REFERENCE}
    row |= {"samples": 0 if problem.exact else GROUPS * SAMPLES, "length": length}
    row["se"] = _relative(spread, length)
    others = [e for e in ESTIMATORS if problem.exact or e != REFERENCE]
    return [row, *(_compared(problem, e, reference, length) for e in others)]


def _compared(problem: _Problem, estimator: str, reference: Tensor, length: float) -> Row:
    groups = [problem.samples(estimator, SAMPLES).double() for _ in range(GROUPS)]
    means = torch.stack([g.mean(0) for g in groups])
    directions = torch.stack([nn.functional.normalize(g, dim=-1).mean(0) for g in groups])
    variance = sum(g.var(0).sum().item() for g in groups) / GROUPS
    row: Row = {"part": "gradients", "estimator": estimator}
    return row | {"deviation": _relative(variance**0.5, length)} | cosines(
        means, directions, reference)  # fmt: skip


def _length(means: Tensor) -> Tensor:
    """Of the expectation, from products of two different means."""
    products, count = means @ means.T, len(means)
    return ((products.sum() - products.trace()) / (count * (count - 1))).clamp_min(0).sqrt()


def _relative(value: float, length: float) -> float | None:
    return value / length if length > 0 else None
