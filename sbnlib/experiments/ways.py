r"""Sixteen ways to train a deep network on one data set: the networks, their training, their tests.

Each way is an entry of :data:`WAYS`. :func:`trained` carries out one training of one of them and
returns its row; ``sbnlib.experiments.contenders`` is the command that compares them all.

Dense networks have batch norm in front of the units, convolutional ones have none and start by
:func:`sbnlib.nn.init_normal_`. Where nothing else is said the noise has the scale at which
straight-through's gain is 1.
"""

from __future__ import annotations

import copy
import functools
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from sbnlib import data as datasets
from sbnlib.contracts import Loss, NetworkEstimator, check_count
from sbnlib.data import Dataset, Split
from sbnlib.experiments.cache import Row
from sbnlib.experiments.classify import SAMPLES, layer, settled_for
from sbnlib.experiments.models import Classifier, TanhNet, backprop
from sbnlib.experiments.training import Recipe, Training, fit, linear
from sbnlib.experiments.weights import METHODS, BinaryLayer
from sbnlib.extras import extra
from sbnlib.inference import BatchNorm, set_mode, to_plain
from sbnlib.network import SBN, network_estimator
from sbnlib.nn import init_normal_
from sbnlib.noise import Noise, as_noise

__all__ = ["WAYS", "Way", "calibration_error", "cut", "data_of", "fresh", "scores", "trained"]

BATCH = 100
#: Learning rates of Adam, of which each way gets the best by validation.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
#: Those of latent binary weights: chapter 14's best on digits lie inside, 2e4 and 5e2.
MIRROR_RATES = (5e2, 2e3, 1e4, 5e4, 2e5, 1e6)
CONNECT_RATES = (5.0, 2e1, 1e2, 5e2, 2e3, 1e4)
#: The learning rate of Adam for what is not binary beside binary weights, as in chapter 14.
REST_RATE = 0.01
#: Training images of which batch norm's statistics are taken anew: their mean errs by 1 % of its
#: standard deviation.
STATISTICS = 10_000
#: Images that are looked at together, so that convolutional states stay small.
TOGETHER = 1000
#: Channels of the two convolutions.
CHANNELS = (16, 8)


# The ways ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to train a network.

    Attributes:
        name: on the command line and in measurement files.
        label: for tables.
        kind: what a unit is in training: "sbn", a draw; "sign", its pre-activation's sign, with the
            derivative of hardtanh; "tanh".
        estimator: of an SBN, a name in the registry.
        noise: the name of its noise.
        noise_scale: its scale; None is the one at which straight-through's gain is 1.
        weights: "real", or a method of ``sbnlib.experiments.weights`` for binary ones.
        hidden: widths of the binary layers; empty for the convolutional network.
        rates: learning rates of the search.
        seeds: how many final runs.
        images: the first so many training images are used; None for all.
        twin: the name of the way that it is compared with.
    """

    name: str
    label: str
    kind: str = "sbn"
    estimator: str = "straight_through"
    noise: str = "Logistic"
    noise_scale: float | None = None
    weights: str = "real"
    hidden: tuple[int, ...] = (512, 512)
    rates: tuple[float, ...] = RATES
    seeds: int = 10
    images: int | None = None
    twin: str = "twin"

    @property
    def convolutional(self) -> bool:
        return not self.hidden

    @property
    def predictions(self) -> tuple[str, ...]:
        """The predictions that exist, without those with the statistics of training."""
        return ("sign", "one", "ten", "mean") if self.kind == "sbn" else (self.kind,)

    @property
    def chosen_by(self) -> str:
        """The prediction whose validation accuracy chooses the learning rate."""
        if self.kind != "sbn":
            return self.kind
        return "ten" if self.weights == "real" else "sign"

    @property
    def law(self) -> Noise:
        """The noise at its scale."""
        return _law(self.noise, self.noise_scale)


@functools.cache
def _law(name: str, scale: float | None) -> Noise:
    law = as_noise(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a low overlap
        return law.scaled_to(gain=1) if scale is None else type(law)(scale)


def _six() -> list[Way]:
    """Two estimators with three noises."""
    return [
        Way(f"{short}-{noise.lower()}", f"{label}, {noise.lower()}", estimator=name, noise=noise)
        for short, label, name in (("st", "ST", "straight_through"), ("zgr", "ZGR", "zgr"))
        for noise in ("Logistic", "Gaussian", "Uniform")
    ]


def _deep(name: str, label: str, **own: Any) -> Way:
    return Way(name, f"eight layers, {label}", hidden=(256,) * 8, seeds=5, **own)


def _conv(name: str, label: str, **own: Any) -> Way:
    return Way(
        name, f"convolutions, {label}", hidden=(), seeds=5, images=8_000, twin="conv-tanh", **own
    )


WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        Way("twin", "tanh", kind="tanh"),
        *_six(),
        Way("sign-hardtanh", "sign, hardtanh's derivative", kind="sign"),
        Way("weights-mirror", "binary weights, mirror descent",
            weights="mirror", rates=MIRROR_RATES),
        Way("weights-bc", "binary weights, BinaryConnect",
            weights="bc_deterministic", rates=CONNECT_RATES),
        _deep("deep-gain-1", "ST at gain 1"),
        _deep("deep-scale-1", "ST at scale 1", noise_scale=1.0),
        _deep("deep-zgr", "ZGR at gain 1", estimator="zgr"),
        _conv("conv-tanh", "tanh", kind="tanh"),
        _conv("conv-st", "ST"),
        _conv("conv-psa", "PSA", estimator="psa"),
    )
}  # fmt: skip


# Networks ---------------------------------------------------------------------------------------


def fresh(way: Way, data: Dataset, lr: float, recipe: Recipe) -> Training:
    """A training that has not begun: float32, on the CPU, all drawn from the recipe's generators.

    Args:
        way: what is trained.
        data: what it will be trained on.
        lr: the learning rate of the first epoch; beside binary weights the rest has its own.
        recipe: how.
    """
    draw = recipe.generator("cpu", "weights")
    net = _convolutional(way, data, draw) if way.convolutional else _dense(way, data, draw)
    head = linear(_features(net, data), data.num_classes, 1.0, draw, torch.float32)
    model = Classifier(net, head, _estimator(way))
    return Training(model, _optimizers(way, model, lr), recipe)


@torch.no_grad()
def _features(net: nn.Module, data: Dataset) -> int:
    """The number of the last layer's units; nothing is drawn, and no statistics are moved."""
    net.eval()
    features = net(data.train.inputs[:1], **({"mode": "sign"} if isinstance(net, SBN) else {}))
    net.train()
    return features.shape[-1]


def _dense(way: Way, data: Dataset, draw: torch.Generator) -> nn.Module:
    sizes = [data.train.inputs.shape[1], *way.hidden]
    layers = [_layer(way, m, n, draw) for m, n in zip(sizes, sizes[1:], strict=False)]
    return _net(way, layers)


def _layer(way: Way, inputs: int, outputs: int, draw: torch.Generator) -> nn.Module:
    if way.weights == "real":
        return layer(inputs, outputs, 1.0, draw, torch.float32, "batch")
    return BinaryLayer(inputs, outputs, METHODS[way.weights], draw)


def _net(way: Way, layers: Sequence[nn.Module]) -> nn.Module:
    return TanhNet(*layers) if way.kind == "tanh" else SBN(*layers, noise=way.law)


def _convolutional(way: Way, data: Dataset, draw: torch.Generator) -> nn.Module:
    """Two convolutions of 3 x 3 with stride 2; at the start pre-activations have variance 1.

    The tanh twin has the same weights, which are drawn for an SBN.
    """
    shape = data.image_shape if len(data.image_shape) == 3 else (1, *data.image_shape)
    first, second = CHANNELS
    conv = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
    layers = [
        nn.Sequential(nn.Unflatten(1, shape), conv(shape[0], first)),
        nn.Sequential(conv(first, second), nn.Flatten()),
    ]
    init_normal_(SBN(*layers, noise=way.law), inputs=data.train.inputs, generator=draw)
    return _net(way, layers)


def _estimator(way: Way) -> NetworkEstimator:
    if way.kind == "tanh":
        return backprop
    return deterministic if way.kind == "sign" else network_estimator(way.estimator)


def deterministic(
    net: nn.Module, inputs: Tensor, loss: Loss, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""The loss with every unit at sign(a), and :math:`[\,|a|<1\,]` in place of its derivative.

    The rule of binarized networks, source: Hubara et al. 2016 (NeurIPS, arXiv 1602.02830).
    """
    return loss(net(inputs, mode="sign", estimator="hardtanh"))


def _optimizers(way: Way, model: Classifier, lr: float) -> list[torch.optim.Optimizer]:
    latent = [m.latent for m in model.modules() if isinstance(m, BinaryLayer)]
    if not latent:
        return [torch.optim.Adam(model.parameters(), lr)]
    rest = [p for p in model.parameters() if all(p is not q for q in latent)]
    return [METHODS[way.weights].optimizer(latent, lr, 0.0), torch.optim.Adam(rest, REST_RATE)]


# Tests ------------------------------------------------------------------------------------------


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    r"""Expected calibration error of the predicted class, in [0, 1].

    .. math:: \mathrm{ECE} = \sum_{m=1}^M \frac{|B_m|}{N}\,
              \big|\operatorname{acc}(B_m) - \operatorname{conf}(B_m)\big|

    The bin :math:`B_m` holds the inputs whose largest probability is in :math:`((m-1)/M,\, m/M]`;
    acc is the share of them that is classified right, conf the mean of that probability.

    Args:
        probabilities: (N, classes), rows that sum to 1.
        labels: (N,), whole numbers.
        bins: their number M.

    Raises:
        ValueError: ``bins`` is below 1; probabilities that are not (N, classes) with N >= 1, or
            labels that are not (N,).

    Source: Naeini, Cooper and Hauskrecht 2015 (AAAI); Guo, Pleiss, Sun and Weinberger 2017 (ICML,
    arXiv 1706.04599).
    """
    check_count("bins", bins)
    if probabilities.dim() != 2 or not len(probabilities):
        raise ValueError(
            f"probabilities must be (N, classes) with N >= 1, got {tuple(probabilities.shape)}"
        )
    if labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"labels must be ({len(probabilities)},), one a row, got {tuple(labels.shape)}"
        )
    confidence, guess = probabilities.double().max(-1)
    at = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = confidence.new_zeros(bins).index_add(0, at, (guess == labels).double() - confidence)
    return gap.abs().sum().item() / len(labels)


def scores(
    way: Way,
    model: Classifier,
    data: Dataset,
    recipe: Recipe,
    splits: Sequence[str] = ("validation", "test"),
    only: Sequence[str] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy, mean negative log-likelihood and calibration error: split -> number -> prediction.

    Each prediction is made with batch-norm statistics taken anew for it, of the first
    ``STATISTICS`` training images (``classify.settled_for``); the way's own one (``ten`` where
    units are drawn) of the test images with those of training too, as ``ten running``. Binary
    weights are at their signs in each. ``one`` has the means over ten single samples.

    Args:
        way, model, data, recipe: what was trained, on what and how.
        splits: of the data set.
        only: predictions; default all.
    """
    wanted = [p for p in way.predictions if only is None or p in only]
    net = as_used(model.net)
    nets = _settled(net, data, recipe, wanted)
    draw = recipe.generator("cpu", "evaluation")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in splits:
        split: Split = getattr(data, name)
        logs = _predicted(model.head, nets, split.inputs, draw)
        kept = {prediction: logs[prediction] for prediction in wanted}
        if name == "test" and any(isinstance(m, BatchNorm) for m in net.modules()):
            own = "ten" if way.kind == "sbn" else way.kind
            running = _predicted(model.head, {MODE[own]: net}, split.inputs, draw)
            kept[f"{own} running"] = running[own]
        found[name] = _numbers(kept, split.labels)
    return found


#: The mode of the units in a prediction.
MODE = {"one": "sample", "ten": "sample", "sign": "sign", "mean": "mean", "tanh": "tanh"}


def _settled(
    net: nn.Module, data: Dataset, recipe: Recipe, wanted: Sequence[str]
) -> dict[str, nn.Module]:
    """Mode -> the net with statistics for it, of the modes of some predictions."""
    inputs, anew = data.train.inputs[:STATISTICS], recipe.generator("cpu", "statistics")
    modes = dict.fromkeys(MODE[prediction] for prediction in wanted)
    return {mode: settled_for(net, mode, inputs, anew) for mode in modes}


def as_used(net: nn.Module) -> nn.Module:
    """A copy in evaluation mode; binary weights are at their signs, in layers of torch's own."""
    net = copy.deepcopy(net).eval()
    if isinstance(net, SBN) and any(isinstance(m, BinaryLayer) for m in net.layers):
        layers = [to_plain(set_mode(own, "sign")) for own in net.layers]
        return SBN(*layers, noise=net.noise).eval()
    return net


@torch.no_grad()
def _predicted(
    head: nn.Module, nets: Mapping[str, nn.Module], inputs: Tensor, draw: torch.Generator
) -> dict[str, list[Tensor]]:
    """Log-probabilities (N, classes) of each prediction; of ``one``, those of ten samples."""
    found: dict[str, list[Tensor]] = {}
    for mode, net in nets.items():
        if mode == "sample":
            found["one"] = [_logs(head, net, inputs, generator=draw) for _ in range(SAMPLES)]
            averaged = torch.stack(found["one"]).logsumexp(0) - math.log(SAMPLES)
            found["ten"] = [averaged]
        else:
            found[mode] = [_logs(head, net, inputs, **({} if mode == "tanh" else {"mode": mode}))]
    return found


def _logs(head: nn.Module, net: nn.Module, inputs: Tensor, **how: Any) -> Tensor:
    chunks = inputs.split(TOGETHER)
    return torch.cat([head(net(chunk, **how)).log_softmax(-1) for chunk in chunks])


def _numbers(
    predicted: Mapping[str, Sequence[Tensor]], labels: Tensor
) -> dict[str, dict[str, float]]:
    """Number -> prediction -> its mean over the samples."""

    def mean(number: Any) -> dict[str, float]:
        return {
            name: statistics.fmean(number(logs) for logs in each)
            for name, each in predicted.items()
        }

    return {
        "accuracy": mean(lambda logs: (logs.argmax(-1) == labels).double().mean().item()),
        "nll": mean(lambda logs: nll_loss(logs.double(), labels).item()),
        "ece": mean(lambda logs: calibration_error(logs.double().exp(), labels)),
    }


# One training -----------------------------------------------------------------------------------


@functools.cache
def data_of(name: str) -> Dataset:
    """The data set, read once in a process."""
    return datasets.load(name)


def cut(data: Dataset, images: int | None) -> Dataset:
    """The data set with its first so many training images."""
    train = Split(data.train.inputs[:images], data.train.labels[:images])
    return Dataset(data.name, data.image_shape, data.num_classes, train, data.validation, data.test)


def trained(job: Mapping[str, Any], *, data: str, epochs: Mapping[str, int]) -> list[Row]:
    """The row of one training.

    A trial of the search has ``validation`` and ``validation_loss``, the accuracy and the mean
    negative log-likelihood of the prediction that chooses, and nothing of the test images. A final
    run has ``validation`` and ``test``, accuracies, and ``nll`` and ``ece`` of the test images, by
    prediction (see :func:`scores`).

    Args:
        job: ``part`` ("search" or "final"), ``name`` of the way, ``lr`` and ``seed``.
        data: the name of the data set.
        epochs: the length of a training of each part.
    """
    with extra("experiments"):
        from lightning_fabric import Fabric

    way = WAYS[job["name"]]
    images = cut(data_of(data), way.images)
    recipe = Recipe(job["seed"], epochs[job["part"]], BATCH, contender=way.name)
    training = fresh(way, images, job["lr"], recipe)
    fit(Fabric(accelerator="cpu", devices=1), [training], images.train)
    row = dict(job)
    if job["part"] == "search":
        return [row | _of_validation(way, training, images)]
    found = scores(way, training.model, images, recipe)
    row |= {split: numbers["accuracy"] for split, numbers in found.items()}
    return [row | {name: found["test"][name] for name in ("nll", "ece")}]


def _of_validation(way: Way, training: Training, data: Dataset) -> Row:
    own, recipe = way.chosen_by, training.recipe
    numbers = scores(way, training.model, data, recipe, ["validation"], [own])["validation"]
    return {"validation": numbers["accuracy"][own], "validation_loss": numbers["nll"][own]}
