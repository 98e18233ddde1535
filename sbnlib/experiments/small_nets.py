r"""Bias and spread of estimators in a network small enough for exact sums, along its training.

The protocol of Shekhovtsov, Yanush and Flach (NeurIPS 2020, arXiv 2006.03143): a network with 16
inputs and two layers of five binary units is trained by straight-through, and at the start, in the
middle and at the end every estimator is compared with the exact gradient of the mean loss of some
training images. The images are averaged over blocks, 4 x 4 of them.

Of estimators that are functions of the state (straight-through, ZGR) mean and variance are exact
too; of the others they are those of samples, with standard errors (:func:`sbnlib.measure`).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sbnlib import registry
from sbnlib.accuracy import Accuracy, measure
from sbnlib.contracts import Loss
from sbnlib.data import Dataset, Split
from sbnlib.exact import exact_gradient, exact_moments
from sbnlib.experiments.cache import Row
from sbnlib.experiments.deep import centred
from sbnlib.experiments.directions import moments
from sbnlib.experiments.models import Classifier
from sbnlib.experiments.training import Recipe, Training, linear
from sbnlib.experiments.ways import data_of
from sbnlib.losses import classification_loss
from sbnlib.network import SBN, network_estimator
from sbnlib.nn import init_normal_

__all__ = ["ESTIMATORS", "pooled", "small_net"]

ESTIMATORS = ("straight_through", "zgr", "st_gumbel", "concrete", "psa", "arm", "reinforce_loo")
HIDDEN = (5, 5)
SIDE = 4
#: Epochs after which it is looked at; the last is the length of the training.
EPOCHS = (0, 20, 40)
BATCH, RATE, SEEDS = 50, 0.03, 3
#: Images whose mean loss it is, and samples of an estimator.
IMAGES, SAMPLES = 100, 4096


def pooled(data: Dataset) -> Dataset:
    """The images as means over 4 x 4 blocks (and colours), centred, in float64.

    Raises:
        ValueError: the sides of the images are no multiples of 4.
    """
    height, width = data.image_shape[-2:]
    if height % SIDE or width % SIDE:
        raise ValueError(
            f"data: got images of {height} x {width}, sides must be multiples of {SIDE}"
        )

    def blocks(split: Split) -> Split:
        images = split.inputs.double().reshape(len(split), -1, height, width).mean(1)
        return Split(avg_pool2d(images, (height // SIDE, width // SIDE)).flatten(1), split.labels)

    return centred(
        Dataset(
            data.name, (SIDE, SIDE), data.num_classes,
            blocks(data.train), blocks(data.validation), blocks(data.test),
        )
    )  # fmt: skip


def small_net(job: Mapping[str, Any], *, data: str) -> list[Row]:
    r"""The rows of one training: ``epoch``, ``estimator``, ``layer`` ("1", "2", "all").

    Each has ``bias2`` :math:`= \|\mathbb{E}\hat g - g\|^2 / \|g\|^2`, ``variance``
    :math:`= \mathbb{E}\|\hat g - \mathbb{E}\hat g\|^2 / \|g\|^2` of a sample, one draw an image,
    and ``cosine`` of :math:`\mathbb{E}\hat g` and g, with their standard errors (``_se``, 0 where
    the number is exact); ``length`` :math:`\|g\|`, and ``samples``, 0 where all is exact. A layer
    stands for its weights, "all" for biases too.

    Args:
        job: ``seed``.
        data: the name of the data set.
    """
    images = pooled(data_of(data))
    recipe = Recipe(job["seed"], EPOCHS[-1], BATCH, contender="small net")
    rows: list[Row] = []
    for epoch, model in moments(_fresh(images, recipe), images, EPOCHS).items():
        draw = recipe.generator("cpu", "gradients", epoch=epoch)
        for row in _compared(model, images, draw):
            rows.append({"part": "exact", "seed": job["seed"], "epoch": epoch} | row)
    return rows


def _fresh(data: Dataset, recipe: Recipe) -> Training:
    draw = recipe.generator("cpu", "weights")
    sizes = [SIDE * SIDE, *HIDDEN]
    layers = [
        linear(m, n, 1.0, draw, torch.float64) for m, n in zip(sizes, sizes[1:], strict=False)
    ]
    net = init_normal_(SBN(*layers), inputs=data.train.inputs, generator=draw)
    head = linear(sizes[-1], data.num_classes, 1.0, draw, torch.float64)
    model = Classifier(net, head, network_estimator("straight_through"))
    return Training(model, [torch.optim.Adam(model.parameters(), RATE)], recipe)


def _compared(model: Classifier, data: Dataset, draw: torch.Generator) -> list[Row]:
    net, inputs = model.net, data.train.inputs[:IMAGES]
    assert isinstance(net, SBN)
    head = copy.deepcopy(model.head).requires_grad_(False)
    loss = classification_loss(head, data.train.labels[:IMAGES])
    _, exact = exact_gradient(net, inputs, loss)
    rows = []
    for name in ESTIMATORS:
        if registry.get(name).state_only:
            found = _by_sums(net, inputs, loss, name, exact)
        else:
            found = _by_samples(net, inputs, loss, name, exact, draw)
        rows += [{"estimator": name, "layer": layer} | row for layer, row in found.items()]
    return rows


#: Layer -> the parameter that stands for it.
LAYERS = {f"{k + 1}": f"layers.{k}.weight" for k in range(len(HIDDEN))}


def _by_sums(
    net: SBN, inputs: Tensor, loss: Loss, name: str, exact: Mapping[str, Tensor]
) -> dict[str, Row]:
    found = exact_moments(net, inputs, loss, name)
    names = {layer: [own] for layer, own in LAYERS.items()} | {"all": list(exact)}
    rows: dict[str, Row] = {}
    for layer, own in names.items():
        mean, variance = (torch.cat([found[n][k].flatten() for n in own]) for k in (0, 1))
        g = torch.cat([exact[n].flatten() for n in own])
        numbers = {
            "bias2": ((mean - g).square().sum() / g.square().sum()).item(),
            "variance": (variance.sum() / g.square().sum()).item(),
            "cosine": (mean @ g / (mean.norm() * g.norm())).item(),
        }
        zero = {f"{number}_se": 0.0 for number in numbers}
        rows[layer] = numbers | zero | {"length": g.norm().item(), "samples": 0}
    return rows


def _by_samples(
    net: SBN,
    inputs: Tensor,
    loss: Loss,
    name: str,
    exact: Mapping[str, Tensor],
    draw: torch.Generator,
) -> dict[str, Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few effective samples: the errors say so
        found = measure(net, inputs, loss, name, SAMPLES, generator=draw, reference=exact)
    return {layer: _row(found[own]) for layer, own in (LAYERS | {"all": "all"}).items()}


def _row(found: Accuracy) -> Row:
    norm2 = found.reference_norm2
    row: Row = {"length": norm2**0.5, "samples": found.num_samples}
    for name, estimate, unit in (
        ("bias2", found.bias2, norm2),
        ("variance", found.variance, norm2),
        ("cosine", found.cosine_of_mean, 1.0),
    ):
        for key, value in ((name, estimate.value), (f"{name}_se", estimate.se)):
            row[key] = value / unit if math.isfinite(value) else None
    return row
