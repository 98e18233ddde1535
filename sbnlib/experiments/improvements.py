r"""What becomes of the estimators' improvements when networks are trained with them.

    python -m sbnlib.experiments.improvements --part widths --workers 2     and so on

Each part answers a question of chapter 20 and writes a file of its own.

``widths``
    Is a better gradient a better training? Networks with two layers of 4 to 64 units, and with four
    layers, digits, every contender at the best of its learning rates by the loss that it minimizes,
    that on the training images. The estimators are those of :data:`CONTENDERS`; those whose name
    ends with a number average as many draws of the network at each step.
``optimal-s``
    Is the weight of the best member right below the last layer? Random networks of four units a
    layer, exact squared bias and variance of the whole gradient.
``gauge``
    Does the diagonal pay that Hutchinson's probes estimate? The last layer of a network of five
    units, along its training.
``latent``
    How many bits must a latent weight have? Networks of binary weights whose latent weights are
    kept on a grid, rounded at each step to the nearest point or at random without bias.

A search is extended while its best learning rate is at an end of those that were tried. What is
reported is of fresh seeds; test images are seen by them only, and two contenders share no random
number.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sbnlib import data as datasets
from sbnlib.contracts import Loss, NetworkEstimator
from sbnlib.data import Dataset, Split
from sbnlib.estimators import gauge_fixed, shrinkage
from sbnlib.exact import exact_expectation, exact_gradient, exact_moments
from sbnlib.experiments import measurement, random_nets
from sbnlib.experiments.cache import Key, Row, folder_of, make_key
from sbnlib.experiments.command import add_option, add_out, add_resume_dir, refusing
from sbnlib.experiments.deep import Deep, centred
from sbnlib.experiments.directions import moments
from sbnlib.experiments.jobs import ScaleOut, add_scale_out
from sbnlib.experiments.models import Classifier
from sbnlib.experiments.protocol import mean_se
from sbnlib.experiments.training import Recipe, Training, fit, generator, linear, threads
from sbnlib.experiments.weights import METHODS, BinaryLayer
from sbnlib.extras import extra
from sbnlib.inference import reestimate_batch_norm, set_mode
from sbnlib.losses import classification_loss
from sbnlib.network import SBN, layerwise, network_estimator, pathwise
from sbnlib.units import sample_sign, uniforms

__all__ = [
    "CONTENDERS", "PARTS", "OnGrid", "curvature_share", "main", "with_exact_diagonal",
]  # fmt: skip

T = TypeVar("T")
EPOCHS, BATCH = 25, 50
#: Final seeds of a contender, those of its search, and how often a search may be extended.
SEEDS, SEARCHED, BEYOND = 10, 2, 3
SEARCH_FROM = 1_000_000  # no seed of a search is one of the final ones
#: Draws of the network for the expected loss of a trained network.
PASSES = 30


# Estimators ---------------------------------------------------------------------------------------


def averaged(estimator: NetworkEstimator, count: int) -> NetworkEstimator:
    """The mean of ``count`` independent samples of a network estimator."""

    def mean(
        net: Any, inputs: Tensor, loss: Loss, *, generator: torch.Generator | None = None
    ) -> Tensor:
        many = inputs.expand(count, *inputs.shape)
        return estimator(net, many, loss, generator=generator).mean(0)

    return mean


def by_sums(
    net: SBN, inputs: Tensor, loss: Loss, *, generator: torch.Generator | None = None
) -> Tensor:
    """The expected loss by sums over all states, with its own gradient: nothing is sampled."""
    return exact_expectation(net, inputs, loss)


def with_exact_diagonal(head: nn.Linear, labels: Tensor) -> Loss:
    r"""The cross-entropy of a linear head in the gauge of the exact diagonal of its Hessian.

    .. math:: \tilde L(x) = L(x) + \tfrac12\sum_i d_i(1 - x_i^2), \qquad
              d_i = \sum_c q_cV_{ci}^2 - \Big(\sum_c q_cV_{ci}\Big)^2

    with the head's weights V and its probabilities q at x, held constant. On states the values are
    those of L, and the gradient in the head is too.
    """
    plain = classification_loss(head, labels)

    def loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            q, weight = head(x).softmax(-1), head.weight
            diagonal = q @ weight.square() - (q @ weight).square()
        return plain(x) + (diagonal * (1 - x.square())).sum(-1) / 2

    return loss


class _OfHead(Classifier):
    """A classifier whose loss has the exact diagonal taken out."""

    def forward(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        loss = with_exact_diagonal(self.head, labels)
        return self.estimator(self.net, inputs, loss, generator=generator)


def _alone(estimator: NetworkEstimator) -> NetworkEstimator:
    """The same, not to be stacked: it takes second derivatives, which a stack has not."""
    return averaged(estimator, 1)


#: Names of what trains a network -> its network estimator.
CONTENDERS: dict[str, NetworkEstimator] = {
    "straight_through": network_estimator("straight_through"),
    "zgr": network_estimator("zgr"),
    "shrinkage": pathwise(partial(shrinkage, omega=1.0)),
    "straight_through_10": averaged(network_estimator("straight_through"), 10),
    "zgr_10": averaged(network_estimator("zgr"), 10),
    "shrinkage_10": averaged(pathwise(partial(shrinkage, omega=2.0)), 10),
    "gauge_head": network_estimator("straight_through"),
    "gauge_fixed": _alone(layerwise(gauge_fixed)),
    "psa": network_estimator("psa"),
    "psa_symmetric": network_estimator("psa_symmetric"),
    "disarm": network_estimator("disarm"),
    "local_expectation": network_estimator("local_expectation"),
    "exact": by_sums,
}
#: How often the loss is evaluated for an image, of a network of K layers of n units.
EVALUATIONS: dict[str, Callable[[int, int], int]] = {
    "straight_through": lambda layers, n: 1,
    "zgr": lambda layers, n: 1,
    "shrinkage": lambda layers, n: 1,
    "gauge_head": lambda layers, n: 1,
    "straight_through_10": lambda layers, n: 10,
    "zgr_10": lambda layers, n: 10,
    "shrinkage_10": lambda layers, n: 10,
    "gauge_fixed": lambda layers, n: 2 * layers - 1,
    "psa": lambda layers, n: n + 1,
    "psa_symmetric": lambda layers, n: n + 1,
    "disarm": lambda layers, n: 2 * layers,
    "local_expectation": lambda layers, n: layers * (n + 1),
    "exact": lambda layers, n: 2**n,
}


# Searching a learning rate ------------------------------------------------------------------------


def searched(
    rates: Sequence[float], trial: Callable[[float], float]
) -> tuple[float, dict[float, float]]:
    """The rate of the least loss, and the losses of all: further ones while the best is an end.

    Args:
        rates: those to begin with, at least two.
        trial: gives the loss of a rate; one that is not finite counts as the worst.
    """
    found = {rate: trial(rate) for rate in rates}
    for _ in range(BEYOND):
        best, tried = _least(found), sorted(found)
        ends = {tried[0]: tried[1], tried[-1]: tried[-2]}
        if best not in ends:
            break
        further = float(f"{best**2 / ends[best]:.2g}")
        found[further] = trial(further)
    return _least(found), found


def _least(found: Mapping[float, float]) -> float:
    return min(found, key=lambda rate: (not math.isfinite(found[rate]), found[rate]))


@functools.cache
def _digits() -> Dataset:
    return centred(datasets.load("digits"))


def _fit(trainings: Sequence[Training], data: Split) -> None:
    with extra("experiments"):
        from lightning_fabric import Fabric
    fit(Fabric(accelerator="cpu", devices=1), trainings, data)


# Part widths --------------------------------------------------------------------------------------

WIDTHS = (4, 8, 16, 32, 64)
#: The widest network whose gradient is summed.
SUMMED = 8
RATES = (0.01, 0.03, 0.1)


#: Those that are tried with four layers too, and the widths there.
DEEPER = ("straight_through", "zgr", "shrinkage", "psa", "psa_symmetric", "disarm",
          "local_expectation")  # fmt: skip
DEEPER_WIDTHS = (8, 32)


def _widths() -> Iterator[Row]:
    for width in WIDTHS:
        for name in CONTENDERS:
            if name != "exact" or width <= SUMMED:
                yield {"part": "widths", "estimator": name, "depth": 2, "width": width}
    for width in DEEPER_WIDTHS:
        for name in DEEPER:
            yield {"part": "widths", "estimator": name, "depth": 4, "width": width}


def widths(settings: Mapping[str, Any]) -> list[Row]:
    """The row of one contender: its rate, and by seed the numbers of the trained network.

    ``loss`` is the expected loss on the training images, which is what is minimized, ``test_loss``
    that on the test images, ``ten`` the test accuracy of ten averaged samples.

    Args:
        settings: ``estimator``, one of ``CONTENDERS``, ``depth`` and ``width``.
    """
    data = _digits()

    def trial(lr: float) -> float:
        seeds = range(SEARCH_FROM, SEARCH_FROM + SEARCHED)
        return fmean(_loss(t, data.train) for t in _trained(settings, lr, seeds))

    lr, tried = searched(RATES, trial)
    finals = _trained(settings, lr, range(SEEDS))
    name, depth, width = (settings[k] for k in ("estimator", "depth", "width"))
    return [
        {"estimator": name, "depth": depth, "width": width}
        | {"evaluations": EVALUATIONS[name](depth, width), "lr": lr}
        | {"searched": [[rate, value] for rate, value in sorted(tried.items())]}
        | {"loss": [_loss(t, data.train) for t in finals]}
        | {"test_loss": [_loss(t, data.test) for t in finals]}
        | {"ten": [_ten(t, data.test) for t in finals]}
    ]


def _trained(settings: Mapping[str, Any], lr: float, seeds: Sequence[int]) -> list[Training]:
    trainings = [_training(lr=lr, seed=seed, **settings) for seed in seeds]
    _fit(trainings, _digits().train)
    return trainings


def _training(
    *, part: str, estimator: str, depth: int, width: int, lr: float, seed: int
) -> Training:
    contender = f"{part} {estimator} {depth} {width}"
    start = generator("cpu", "start", contender=contender, seed=seed)  # no two begin alike
    plain = Deep(depth, width=width, norm="none").build(_digits(), start.initial_seed())
    parts = plain.net, plain.head, CONTENDERS[estimator]
    model = _OfHead(*parts) if estimator == "gauge_head" else Classifier(*parts)
    recipe = Recipe(seed, EPOCHS, BATCH, contender=contender)
    return Training(model, [torch.optim.Adam(model.parameters(), lr=lr)], recipe)


@torch.no_grad()
def _losses(training: Training, split: Split, passes: int) -> Tensor:
    """Log-probabilities of each class in so many passes, (passes, B, classes)."""
    draw = training.recipe.generator("cpu", f"evaluation {len(split)}")
    many = split.inputs.expand(passes, *split.inputs.shape)
    states = training.model.net(many, generator=draw)
    return training.model.head(states).log_softmax(-1)


def _loss(training: Training, split: Split) -> float:
    """The expected loss of one sample."""
    logs = _losses(training, split, PASSES)
    return -logs[:, torch.arange(len(split)), split.labels].double().mean().item()


def _ten(training: Training, split: Split) -> float:
    """The accuracy of the probabilities averaged over ten samples."""
    scores = _losses(training, split, 10).logsumexp(0)
    return (scores.argmax(-1) == split.labels).double().mean().item()


# Part optimal-s -----------------------------------------------------------------------------------

NETS, UNITS = 100, 4
SAMPLES = (1, 10, 100, 1000)
#: Weights tried; 0 is straight-through, and infinity, ZGR, is tried too.
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
#: Draws of each network for an estimate of the share.
DRAWS = 2048


def _optimal_s() -> Iterator[Row]:
    for depth in (1, 2, 3):
        for inputs in (1, 16):
            yield {"part": "optimal-s", "depth": depth, "inputs": inputs}


def optimal_s(settings: Mapping[str, Any]) -> list[Row]:
    r"""Relative mean squared errors of the mean of M samples, a row for each M and contender.

    ``error`` is :math:`\sum(\mathrm{bias}^2 + \mathrm{variance}/M)\big/\sum\|g\|^2` over the
    networks with its jackknife error ``se``. The contenders: ``straight_through``; ``zgr``;
    ``estimated``, shrinkage with :math:`\omega = (M-1)` times the share of the curvature that pairs
    of draws give in each network; ``batch``, with :math:`\omega = (NM-1)` times it for N inputs;
    ``best``, the weight of ``WEIGHTS`` that has the least error over all networks. ``omega`` is the
    mean weight, infinite for ZGR and so left out there.

    Args:
        settings: ``depth``, and ``inputs``, how many of them the loss is a mean over.
    """
    depth, inputs = settings["depth"], settings["inputs"]
    cases = [_Case(depth, inputs, index) for index in range(NETS)]
    every = {weight: [case.error(weight) for case in cases] for weight in (*WEIGHTS, math.inf)}
    rows = []
    for m in SAMPLES:
        chosen = {"straight_through": every[0.0], "zgr": every[math.inf]}
        for name, factor in (("estimated", m - 1), ("batch", m * inputs - 1)):
            chosen[name] = [case.error(factor * case.share) for case in cases]
        best = min(every, key=lambda weight: _relative(cases, every[weight], m)[0])
        chosen["best"] = every[best]
        factors = {"straight_through": 0.0, "estimated": m - 1.0, "batch": m * inputs - 1.0}
        share = fmean(case.share for case in cases)
        for name, errors in chosen.items():
            value, se = _relative(cases, errors, m)
            omega = best if name == "best" else factors.get(name, math.inf) * share
            rows.append(
                {"depth": depth, "inputs": inputs, "samples": m, "estimator": name}
                | {"error": value, "se": se, "omega": omega if omega < math.inf else None}
            )
    return rows


def _relative(
    cases: Sequence[_Case], errors: Sequence[tuple[float, float]], samples: int
) -> tuple[float, float]:
    above = [bias2 + variance / samples for bias2, variance in errors]
    found = random_nets.ratio(above, [case.length2 for case in cases])
    return found.value, found.se


class _Case:
    """One random network with its inputs and its loss, and the exact gradient."""

    def __init__(self, depth: int, inputs: int, index: int) -> None:
        problem = random_nets.problem(depth, UNITS, index)
        self.net, self.problem = problem.net(), problem
        draw = generator("cpu", "improvements inputs", depth=depth, inputs=inputs, index=index)
        order = torch.rand(2**UNITS, generator=draw).argsort()[:inputs]
        bits = order[:, None] >> torch.arange(UNITS)
        self.inputs = 2.0 * (bits & 1).double() - 1
        self.targets = 2.0 * torch.randint(2, (inputs,), generator=draw).double() - 1
        _, exact = exact_gradient(self.net, self.inputs, self.loss)
        self.exact = exact
        self.length2 = float(sum(g.square().sum() for g in exact.values()))
        self.share = curvature_share(self.net, self.inputs, self.loss, DRAWS, draw)

    def loss(self, x: Tensor) -> Tensor:
        return softplus(self.targets * self.problem.unit * (x @ self.problem.signs))

    def error(self, omega: float) -> tuple[float, float]:
        """Squared bias and variance of shrinkage with this weight, or of ZGR."""
        rule: Any = "zgr" if omega == math.inf else partial(shrinkage, omega=max(omega, 0.0))
        found = exact_moments(self.net, self.inputs, self.loss, rule)
        bias2 = sum((mean - self.exact[name]).square().sum() for name, (mean, _) in found.items())
        return float(bias2), float(sum(variance.sum() for _, variance in found.values()))


def curvature_share(
    net: SBN, inputs: Tensor, loss: Loss, draws: int, generator: torch.Generator
) -> float:
    r"""The share of the units' own curvature in the mean square of the slopes, from pairs.

    In each layer four independent draws x of the units at one state below, with the slopes that
    straight-through delivers from above; with :math:`e = \tfrac12(\partial_iL(x) -
    \partial_iL(x'))(x_i - x_i')` of two pairs,

    .. math:: \frac{\sum e_1e_2}{\sum(1-\mu_i^2)^2(\partial_iL)^2}

    over units, layers, inputs and draws.

    Args:
        net: a network of ``nn.Linear`` layers.
        inputs: ``(B, n_0)``.
        loss: as for :func:`sbnlib.exact_gradient`.
        draws: of the network below, of each input.
        generator: source of randomness.

    Source: chapter 10.
    """
    above = below = 0.0
    state = inputs.expand(draws, *inputs.shape)
    for k, layer in enumerate(net.layers):
        with torch.no_grad():
            a = layer(state)
        x = torch.stack([sample_sign(a, net.noise, generator=generator) for _ in range(4)])
        slope = _slope(net, k, loss, x, generator)
        e = (slope[::2] - slope[1::2]) * (x[::2] - x[1::2]) / 2
        h = 4 * net.noise.cdf(a) * net.noise.cdf(-a)
        above += float((e[0] * e[1]).sum())
        below += float((h.square() * slope.square().mean(0)).sum())
        state = x[0]
    return max(above / below, 0.0)


def _slope(net: SBN, k: int, loss: Loss, x: Tensor, draw: torch.Generator) -> Tensor:
    """What straight-through delivers at the states of layer k."""
    leaf = x.clone().requires_grad_()
    top = leaf
    for layer in net.layers[k + 1 :]:
        top = net.sign(layer(top), generator=draw)
    return torch.autograd.grad(loss(top).sum(), leaf)[0]


# Part gauge ---------------------------------------------------------------------------------------

LOOKED_AT = (0, 10, 25)
IMAGES, GAUGED, GAUGE_UNITS, GAUGE_SEEDS = 50, 4096, 5, 5


def _gauge() -> Iterator[Row]:
    for seed in range(GAUGE_SEEDS):
        yield {"part": "gauge", "seed": seed}


def gauge(settings: Mapping[str, Any]) -> list[Row]:
    r"""Squared bias and variance of one sample in the last layer, relative to :math:`\|g\|^2`.

    The gradient is that in the pre-activations of the last layer, of a network that
    straight-through trains, at states of the layer below that are drawn once; all is summed over
    the states of the layer, and the probes too. ``epoch`` says after how many.

    Args:
        settings: ``seed``.
    """
    own: Row = {"part": "gauge", "estimator": "straight_through", "depth": 2, "width": GAUGE_UNITS}
    training = _training(**own, lr=0.03, seed=settings["seed"])
    rows = []
    for epoch, model in moments(training, _digits(), LOOKED_AT).items():
        draw = training.recipe.generator("cpu", "gauge", epoch=epoch)
        for name, numbers in _last_layer(model.double(), draw).items():
            rows.append({"seed": settings["seed"], "epoch": epoch, "estimator": name} | numbers)
    return rows


@torch.no_grad()
def _last_layer(model: Classifier, draw: torch.Generator) -> dict[str, Row]:
    net, images = model.net, _digits().train
    assert isinstance(net, SBN)
    below = sample_sign(net.layers[0](images.inputs[:IMAGES].double()), net.noise, generator=draw)
    a = net.layers[1](below)
    table = _Table(a, net.noise, model.head, images.labels[:IMAGES])
    return table.rows()


class _Table:
    """The last layer of units for each image and each of its states: (B, S, n)."""

    def __init__(self, a: Tensor, noise: Any, head: nn.Linear, labels: Tensor) -> None:
        n = a.shape[-1]
        bits = torch.arange(2**n)[:, None] >> torch.arange(n)
        self.x = 2.0 * (bits & 1).double() - 1
        self.a, self.noise, self.f = a, noise, noise.pdf(a)[:, None]
        self.mu = 2 * noise.cdf(a)[:, None] - 1
        self.law = noise.cdf(self.x * a[:, None]).prod(-1)
        logits = head(self.x)
        self.loss = torch.logsumexp(logits, -1) - logits[:, labels].T  # (B, S)
        q, weight = logits.softmax(-1), head.weight
        self.slope = (q @ weight) - weight[labels][:, None]  # (B, S, n)
        self.hessian = torch.einsum("sc,ci,cj->sij", q, weight, weight)
        mean = q @ weight
        self.hessian -= mean[:, :, None] * mean[:, None, :]
        flipped = torch.arange(2**n)[:, None] ^ 2 ** torch.arange(n)
        self.difference = self.x * (self.loss[..., None] - self.loss[:, flipped])
        self.exact = (self.law[..., None] * self.f * self.difference).sum(1)

    def rows(self) -> dict[str, Row]:
        diagonal = self.hessian.diagonal(dim1=1, dim2=2)
        off = self.hessian.square().sum(-1) - diagonal.square()  # variance of one probe
        twice, zgr = 2 * self.f, self.f / self.noise.cdf(self.x * self.a[:, None])
        fixed = self.slope - diagonal * self.x
        meant = self.slope - diagonal * self.mu
        found = {
            "straight_through": (twice * self.slope, 0.0),
            "zgr": (zgr * self.slope, 0.0),
            "gauge_exact": (twice * fixed, 0.0),
            "gauge_1_sample": (twice * fixed, twice.square() * off),
            "gauge_1_mean": (twice * meant, (twice * self.mu).square() * off),
            "gauge_10_mean": (twice * meant, (twice * self.mu).square() * off / 10),
            "local_expectation": (self.f * self.difference, 0.0),
        }
        return {name: self._numbers(*values) for name, values in found.items()}

    def _numbers(self, estimate: Tensor, probes: Tensor | float) -> Row:
        """``probes``: the variance that probes add at a state."""
        law, length2 = self.law[..., None], self.exact.square().sum()
        mean = (law * estimate).sum(1)
        second = (law * (estimate.square() + probes)).sum(1)
        return {
            "bias2": float((mean - self.exact).square().sum() / length2),
            "variance": float((second - mean.square()).sum() / length2),
        }


# Part latent --------------------------------------------------------------------------------------

BITS = (1, 2, 4, 8)
LATENT_RATES = (10.0, 30.0, 100.0, 300.0)
HIDDEN, LATENT_EPOCHS = (100, 100), 20


def _latent() -> Iterator[Row]:
    yield {"part": "latent", "rounding": "none", "bits": 0}
    for rounding in ("random", "nearest"):
        for bits in BITS:
            yield {"part": "latent", "rounding": rounding, "bits": bits}


class OnGrid(torch.optim.Optimizer):
    r"""Projected gradient steps on latent weights that are kept on a grid of [-1, 1].

    .. math:: \eta \leftarrow Q\big(\operatorname{clip}(\eta - \tfrac\varepsilon2 g,\,-1,\,1)\big)

    Q rounds to one of the :math:`2^b` points that divide [-1, 1] equally: to the nearest, or to one
    of the two neighbours at random such that the mean is kept. One bit is the weight itself.

    Args:
        params: latent weights.
        lr: the step, halved as in :class:`sbnlib.optim.BinaryConnect`.
        bits: b; 0 for no rounding.
        rounding: "random" or "nearest".
        generator: of the random rounding.
    """

    def __init__(
        self, params: Any, lr: float, *, bits: int, rounding: str, generator: torch.Generator
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.bits, self.rounding, self.draw = bits, rounding, generator
        for group in self.param_groups:
            for p in group["params"]:
                p.data.copy_(self._rounded(p.data))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    moved = (p - group["lr"] / 2 * p.grad).clamp(-1, 1)
                    p.copy_(self._rounded(moved))

    def _rounded(self, eta: Tensor) -> Tensor:
        if self.bits == 0:
            return eta
        half = (2**self.bits - 1) / 2
        place = (eta + 1) * half
        if self.rounding == "nearest":
            return torch.round(place) / half - 1
        return torch.floor(place + uniforms(eta.shape, eta, self.draw).to(eta)).clamp(
            max=2 * half
        ) / half - 1  # fmt: skip


def latent(settings: Mapping[str, Any]) -> list[Row]:
    """The row of one grid: its rate, and by seed the test accuracy ``sign``.

    Weights and units are at their signs, with batch norm's statistics taken anew; ``at_ends`` is
    the mean share of latent weights at -1 or 1.

    Args:
        settings: ``rounding`` and ``bits``.
    """
    data = _digits()

    def trial(lr: float) -> float:
        seeds = range(SEARCH_FROM, SEARCH_FROM + SEARCHED)
        return -fmean(_at_signs(m, data, data.validation) for m in _binary(settings, lr, seeds))

    lr, tried = searched(LATENT_RATES, trial)
    finals = _binary(settings, lr, range(SEEDS))
    ends = [torch.cat([v.abs().flatten() for v in _latents(m)]) >= 1 for m in finals]
    return [
        {"rounding": settings["rounding"], "bits": settings["bits"], "lr": lr}
        | {"searched": [[rate, -value] for rate, value in sorted(tried.items())]}
        | {"sign": [_at_signs(m, data, data.test) for m in finals]}
        | {"at_ends": fmean(v.double().mean().item() for v in ends)}
    ]


def _latents(model: nn.Module) -> list[Tensor]:
    return [m.latent for m in model.modules() if isinstance(m, BinaryLayer)]


def _binary(settings: Mapping[str, Any], lr: float, seeds: Sequence[int]) -> list[Classifier]:
    models = []
    for seed in seeds:
        contender = f"latent {settings['rounding']} {settings['bits']}"
        recipe = Recipe(seed, LATENT_EPOCHS, BATCH, contender=contender)
        model = _binary_net(recipe.generator("cpu", "start"))
        latents = _latents(model)
        rest = [p for p in model.parameters() if all(p is not q for q in latents)]
        moved = OnGrid(
            latents, lr, bits=settings["bits"], rounding=settings["rounding"],
            generator=recipe.generator("cpu", "rounding"),
        )  # fmt: skip
        training = Training(model, [moved, torch.optim.Adam(rest, 0.01)], recipe)
        _fit([training], _digits().train)
        models.append(model.eval())
    return models


def _binary_net(draw: torch.Generator) -> Classifier:
    sizes = [_digits().train.inputs.shape[1], *HIDDEN]
    method = METHODS["bc_stochastic"]
    layers = [BinaryLayer(m, n, method, draw) for m, n in zip(sizes, sizes[1:], strict=False)]
    head = linear(sizes[-1], _digits().num_classes, 1.0, draw, torch.float32)
    return Classifier(SBN(*layers), head, network_estimator("straight_through"))


@torch.no_grad()
def _at_signs(model: Classifier, data: Dataset, split: Split) -> float:
    """The accuracy of weights and units at their signs, batch norm's statistics taken anew."""
    own = copy.deepcopy(model)
    set_mode(own.net, "sign")
    reestimate_batch_norm(own.net, data.train.inputs)
    scores = own.head(own.net.eval()(split.inputs))
    return (scores.argmax(-1) == split.labels).double().mean().item()


# The measurement ----------------------------------------------------------------------------------

#: Each part: its jobs, and what gives the rows of one.
PARTS: dict[str, tuple[Callable[[], Iterator[Row]], Callable[[Mapping[str, Any]], list[Row]]]] = {
    "widths": (_widths, widths),
    "optimal-s": (_optimal_s, optimal_s),
    "gauge": (_gauge, gauge),
    "latent": (_latent, latent),
}


def found(settings: Mapping[str, Any]) -> list[Row]:
    """The rows of a job of any part."""
    with threads(1):
        return PARTS[settings["part"]][1](settings)


def _rows(part: str, scale_out: ScaleOut, key: Key, folder: Path) -> list[Row] | None:
    """The rows of a part; None where no more than a list or a single job was asked for."""
    rows = scale_out.rows(list(PARTS[part][0]()), found, key=key, folder=folder)
    return None if rows is None else list(chain.from_iterable(rows))


def _record(part: str, rows: Sequence[Row]) -> Row:
    with threads(1):
        device = measurement.describe_device()
    seeds = {"widths": SEEDS, "latent": SEEDS, "gauge": GAUGE_SEEDS, "optimal-s": NETS}[part]
    return measurement.record(
        kind="improvements", command=f"python -m sbnlib.experiments.improvements --part {part}",
        device=device, seeds=range(seeds), rows=[{"part": part} | dict(row) for row in rows],
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.improvements",
        description=(__doc__ or "").split("\n")[0],
    )
    add_option(parser, "part", "optimal-s", "which question is asked", choices=[*PARTS])
    add_out(parser, "runs/improvements-PART.json")
    add_resume_dir(parser)
    add_scale_out(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = vars(parser.parse_args(argv))
    part = options["part"]
    out = options["out"] or Path("runs") / f"improvements-{part}.json"
    scale_out = ScaleOut(parser, options, argv)
    with refusing(parser, RuntimeError, ValueError):
        measurement.check_writable(out)
        key = make_key(f"improvements-{part}", {}, _digits())
    folder = folder_of(options["resume_dir"], key)
    rows = _rows(part, scale_out, key, folder)
    if rows is not None:
        measurement.write(out, _record(part, rows))
        shutil.rmtree(folder, ignore_errors=True)  # its rows are in the file
        print(*map(_said, rows), f"written to {out}", sep="\n")
    return 0


def _said(row: Mapping[str, Any]) -> str:
    words = []
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], float):
            mean, se = mean_se(value)
            words.append(f"{name} {mean:.4f}" + ("" if se is None else f" +- {se:.4f}"))
        elif not isinstance(value, list):
            words.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(words)


if __name__ == "__main__":
    raise SystemExit(main())
