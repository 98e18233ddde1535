r"""Stochastic autoencoders of one binary layer: pictures, models, a training, and its numbers.

The encoder is linear, from the centred grey picture to n pre-activations; the code is n bits under
logistic noise; the decoder is linear, to the logits of the picture binarized at half its range. So
the loss, per picture and in nats,

.. math:: \mathbb{E}_{x\sim q}\,L(x) + \mathrm{KL}(q\,\|\,\text{fair coins}),\qquad
          L(x) = -\ln p(y\mid x)

is the negative of a lower bound of the log-likelihood of the binary picture. An estimator gives the
gradient of the first term in the encoder; that of the second is exact in all of them
(:func:`sbnlib.kl_bits`). Beside the estimators that a single layer takes stand ``exact``, the sum
over all codes, and ``twin``, the real code :math:`\mu = 2F(a) - 1` without noise and divergence.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sbnlib import registry
from sbnlib.contracts import Loss, NetworkEstimator
from sbnlib.data import Dataset, Split
from sbnlib.experiments.cache import Row
from sbnlib.experiments.deep import centred
from sbnlib.experiments.models import Classifier
from sbnlib.experiments.training import Recipe, Training, fit, linear
from sbnlib.experiments.ways import data_of
from sbnlib.extras import extra
from sbnlib.losses import autoencoding_loss, kl_bits
from sbnlib.network import SBN, network_estimator
from sbnlib.noise import Noise
from sbnlib.units import sample_sign

__all__ = [
    "ESTIMATORS",
    "SETTINGS",
    "Autoencoder",
    "Setting",
    "coded",
    "fresh",
    "numbers",
    "pictures",
    "trained",
]

BATCH = 100
#: Learning rates of Adam, of which each contender gets the best by validation.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
#: Codes up to this length are summed over, all of them.
EXACT_BITS = 8
#: Draws of the code behind the numbers of a longer one.
SAMPLES = 10
#: Training images whose loss is told beside the test images'.
SHOWN = 5_000
#: Images that are looked at together.
TOGETHER = 500
SEEDS = 5

#: Those of the registry that differ in a single layer: there PSA is local expectation.
ESTIMATORS = tuple(e.name for e in registry.ESTIMATORS.values() if e.kind != "network")


@dataclass(frozen=True)
class Setting:
    """What the trainings of a part have in common.

    Attributes:
        bits: the length n of a code.
        names: the contenders.
        data: names of data sets.
        epochs, search_epochs: length of a final run and of a trial of the search.
        double: whether all is computed in float64.
    """

    bits: int
    names: tuple[str, ...]
    data: tuple[str, ...]
    epochs: int
    search_epochs: int
    double: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32


SETTINGS = {
    "train": Setting(64, (*ESTIMATORS, "twin"), ("fashion-mnist",), 6, 2),
    "small": Setting(
        8, ("exact", *ESTIMATORS), ("digits", "fashion-mnist-4000"), 40, 20, double=True
    ),
}


# Pictures -----------------------------------------------------------------------------------------


@functools.cache
def pictures(name: str, dtype: torch.dtype) -> Dataset:
    """A data set for autoencoders: centred inputs, and in place of labels the pictures in bits.

    A pixel is 1 where it is above half of its range.
    """
    data = data_of(name)
    inputs = centred(data)

    def both(split: str) -> Split:
        grey = getattr(data, split).inputs
        return Split(getattr(inputs, split).inputs.to(dtype), (grey > 0).to(dtype))

    return replace(data, train=both("train"), validation=both("validation"), test=both("test"))


# Models -------------------------------------------------------------------------------------------


class Autoencoder(Classifier):
    """A net of one binary layer as encoder, a linear decoder as its head, and an estimator.

    ``forward(inputs, labels, generator)`` is the negative lower bound for each of the B pictures,
    which stand in place of labels, with the estimator's gradient.
    """

    def forward(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        loss = autoencoding_loss(self.head, labels)
        misfit = self.estimator(self.net, inputs, loss, generator=generator)
        return misfit + kl_bits(self.activations(inputs), self.noise)

    @property
    def noise(self) -> Noise:
        return cast(SBN, self.net).noise

    def activations(self, inputs: Tensor) -> Tensor:
        """The pre-activations of the code, (..., n)."""
        return cast(SBN, self.net).layers[0](inputs)


class Enumerated(Autoencoder):
    """As :class:`Autoencoder`, by the sum over all codes."""

    def forward(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        a = self.activations(inputs)
        law, misfits = law_of(a, self.noise), misfits_of(self.head, a.shape[-1], labels)
        return (law * misfits).sum(0) + kl_bits(a, self.noise)


class Twin(Autoencoder):
    """The real code in place of bits: no noise, and no divergence."""

    def forward(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return mean_field(self.net, inputs, autoencoding_loss(self.head, labels))


def mean_field(
    net: nn.Module, inputs: Tensor, loss: Loss, *, generator: torch.Generator | None = None
) -> Tensor:
    """The loss with every unit at its mean."""
    return loss(net(inputs, mode="mean"))


@functools.cache
def all_codes(n: int, dtype: torch.dtype) -> Tensor:
    """All rows of n signs, (2^n, n)."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=dtype)


def law_of(a: Tensor, noise: Noise) -> Tensor:
    """The probability of each code for each row of pre-activations (B, n), (2^n, B)."""
    return noise.cdf(all_codes(a.shape[-1], a.dtype)[:, None] * a).prod(-1)


def misfits_of(decoder: nn.Module, n: int, bits: Tensor) -> Tensor:
    """The negative log-likelihood of pictures of bits (B, m) at each code, (2^n, B).

    It is linear in the picture: the sum over pixels is a product of matrices.
    """
    z = decoder(all_codes(n, bits.dtype))
    return softplus(z).sum(-1, keepdim=True) - z @ bits.T


def fresh(name: str, bits: int, data: Dataset, lr: float, recipe: Recipe) -> Training:
    """A training that has not begun: on the CPU, all drawn from the recipe's generators.

    Args:
        name: a name in the registry, "exact" or "twin".
        bits: the length of a code.
        data: of :func:`pictures`; the models have its dtype.
        lr: the learning rate of the first epoch.
        recipe: how.
    """
    draw, pixels = recipe.generator("cpu", "weights"), data.train.inputs.shape[1]
    dtype = data.train.inputs.dtype
    net = SBN(linear(pixels, bits, 1.0, draw, dtype))
    decoder = linear(bits, pixels, 1.0, draw, dtype)
    kinds: dict[str, Callable[..., Autoencoder]] = {"exact": Enumerated, "twin": Twin}
    model = kinds.get(name, Autoencoder)(net, decoder, _estimator(name))
    return Training(model, [torch.optim.Adam(model.parameters(), lr)], recipe)


def _estimator(name: str) -> NetworkEstimator:
    """Of the sum over all codes none is asked."""
    return mean_field if name in ("exact", "twin") else network_estimator(name)


def recipe_of(name: str, bits: int, seed: int, epochs: int) -> Recipe:
    """Two contenders, or codes of two lengths, share no random number."""
    return Recipe(seed, epochs, BATCH, contender=f"{name}, {bits} bits")


# Numbers ------------------------------------------------------------------------------------------


@torch.no_grad()
def numbers(
    model: Autoencoder, split: Split, draw: torch.Generator, samples: int = SAMPLES
) -> dict[str, float]:
    r"""What a model makes of pictures, in nats a picture.

    ``loss``, its standard error over the pictures ``loss_se``, and its terms ``misfit`` and ``kl``;
    ``sign``, the misfit of the code at the signs of the pre-activations; ``undecided``, the mean of
    :math:`1 - \mu^2` over units and pictures. For codes of up to 8 bits these are exact, and so is
    ``nll`` :math:`= -\ln 2^{-n}\sum_x p(y\mid x)`; for longer ones ``misfit`` is a mean over
    ``samples`` draws. Of the twin, ``misfit`` and ``loss`` are those of the real code, ``kl`` is 0.
    """
    found = [
        _each(model, *part, draw, samples)
        for part in zip(
            split.inputs.split(TOGETHER), split.labels.split(TOGETHER), strict=True
        )
    ]  # fmt: skip
    each = {name: torch.cat([part[name] for part in found]).double() for name in found[0]}
    mean = {name: values.mean().item() for name, values in each.items()}
    return mean | {"loss_se": each["loss"].std().item() / math.sqrt(len(split))}


def _each(
    model: Autoencoder, inputs: Tensor, bits: Tensor, draw: torch.Generator, samples: int
) -> dict[str, Tensor]:
    a, loss = model.activations(inputs), autoencoding_loss(model.head, bits)
    kl, mu = kl_bits(a, model.noise), 1 - 2 * model.noise.cdf(-a)
    found = {"sign": loss(signs(a)), "undecided": (1 - mu.square()).mean(-1)}
    if isinstance(model, Twin):
        found["misfit"], kl = loss(mu), torch.zeros_like(kl)
    elif a.shape[-1] <= EXACT_BITS:
        misfits = misfits_of(model.head, a.shape[-1], bits)
        found["misfit"] = (law_of(a, model.noise) * misfits).sum(0)
        found["nll"] = a.shape[-1] * math.log(2) - torch.logsumexp(-misfits, 0)
    else:
        found["misfit"] = _sampled(model, a, loss, draw, samples)
    return found | {"kl": kl, "loss": found["misfit"] + kl}


def _sampled(
    model: Autoencoder, a: Tensor, loss: Loss, draw: torch.Generator, samples: int
) -> Tensor:
    draws = (loss(sample_sign(a, model.noise, generator=draw)) for _ in range(samples))
    return torch.stack(list(draws)).mean(0)


def signs(a: Tensor) -> Tensor:
    """Pre-activations to the more probable states, +1 at 0."""
    return torch.where(a >= 0, 1.0, -1.0).to(a.dtype)


@torch.no_grad()
def coded(model: Autoencoder, inputs: Tensor) -> tuple[Tensor, Tensor]:
    r"""The code of some inputs at its signs, and the real one :math:`\mu`; (N, n) each."""
    a = model.activations(inputs)
    return signs(a), 1 - 2 * model.noise.cdf(-a)


# One training -------------------------------------------------------------------------------------


def carried_out(
    training: Training, data: Dataset, after_epoch: Callable[[], Any] = lambda: None
) -> Autoencoder:
    """The model when the training is over."""
    with extra("experiments"):
        from lightning_fabric import Fabric

    training = replace(training, after_epoch=after_epoch)
    fit(Fabric(accelerator="cpu", devices=1), [training], data.train)
    return cast(Autoencoder, training.model)


def trained(
    job: Mapping[str, Any], *, bits: int, double: bool, epochs: Mapping[str, int]
) -> list[Row]:
    """The rows of one training.

    A trial of the search has ``validation``, the mean loss of the validation images, null where it
    is not finite, and nothing of the test images. A final run has :func:`numbers` of the first
    ``SHOWN`` training images and of the test images; rows of part "curve" the mean loss of both,
    from one draw a picture, after each of the first eight epochs and then after every eighth.

    Args:
        job: ``part`` ("search" or "final"), ``data``, ``name``, ``lr`` and ``seed``.
        bits: the length of a code.
        double: whether to compute in float64.
        epochs: the length of a training of each part.
    """
    data = pictures(job["data"], torch.float64 if double else torch.float32)
    recipe = recipe_of(job["name"], bits, job["seed"], epochs[job["part"]])
    training = fresh(job["name"], bits, data, job["lr"], recipe)
    draw = recipe.generator("cpu", "evaluation")
    if job["part"] == "search":
        return [dict(job) | {"validation": _searched(training, data, draw)}]
    curve = _Curve(training, _shown(data))
    model = carried_out(training, data, curve.look)
    found = {k: numbers(model, split, draw) for k, split in curve.splits.items()}
    return [dict(job) | found, *(dict(job) | {"part": "curve"} | row for row in curve.rows)]


def _searched(training: Training, data: Dataset, draw: torch.Generator) -> float | None:
    """The mean loss of the validation images after a training; None where that broke up."""
    try:
        loss = numbers(carried_out(training, data), data.validation, draw)["loss"]
    except ValueError as error:
        if "must be finite" in str(error):  # a unit refuses such pre-activations
            return None
        raise
    return loss if math.isfinite(loss) else None


def _shown(data: Dataset) -> dict[str, Split]:
    first = Split(data.train.inputs[:SHOWN], data.train.labels[:SHOWN])
    return {"train": first, "test": data.test}


class _Curve:
    """The loss of some splits along a training, from its start."""

    def __init__(self, training: Training, splits: Mapping[str, Split]) -> None:
        self.training, self.splits, self.rows = training, splits, list[Row]()
        self.epoch = -1
        self.look()

    def look(self) -> None:
        self.epoch += 1
        if self.epoch > 8 and self.epoch % 8:
            return
        draw = self.training.recipe.generator("cpu", "curve", epoch=self.epoch)
        model = cast(Autoencoder, self.training.model)
        loss = {k: numbers(model, split, draw, 1)["loss"] for k, split in self.splits.items()}
        self.rows.append({"epoch": self.epoch} | loss)
