r"""Small character models whose wide layers have real or ternary weights.

The probability of the next character is read from the :data:`CONTEXT` before it: an embedding, two
layers of :data:`WIDTH` units, each a matrix without bias, layer normalization and a ReLU, and a
linear head. Embedding, normalization and head are real-valued in every model. The two matrices are
what the contenders of :data:`CONTENDERS` differ in. Behind a normalization the scale of a matrix
has no effect, so that a ternary one needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sbnlib import levels
from sbnlib.contracts import attach
from sbnlib.data import Dataset, Split
from sbnlib.experiments.training import generator, linear
from sbnlib.nn import TernaryLinear
from sbnlib.noise import Noise, Triangular, Uniform
from sbnlib.optim import SimplexDescent
from sbnlib.units import uniforms

__all__ = [
    "CONTENDERS", "LEAST", "CharacterNet", "Contender", "Latent", "encoded", "losses", "states",
    "steps_of",
]  # fmt: skip

CONTEXT, EMBEDDING, WIDTH, LAYERS = 16, 16, 192, 2
#: Characters of a block of the text, and the fewest that a text must have.
BLOCK, LEAST = 2000, 40_000
#: The most characters that are told apart; the rarer ones are one.
MOST = 255
#: Two thresholds around 0, at equal distances from the three states.
THRESHOLDS = (-0.5, 0.5)
BATCH, REAL_RATE = 256, 0.01


# Weights ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """How the two matrices come about.

    Attributes:
        label: in words.
        rates: learning rates of the matrices that are tried first.
        noise: of a latent weight with two thresholds; None: it is compared with them as it is.
        s: the estimator of the simplex.
    """

    label: str
    rates: tuple[float, ...]
    noise: Noise | None = None
    s: float | None = None


CONTENDERS: dict[str, Contender] = {
    "real": Contender("real weights", (0.003, 0.01, 0.03)),
    "absmean": Contender("rounded at half the mean size", (0.003, 0.01, 0.03)),
    "fixed": Contender("rounded at one half", (0.01, 0.03, 0.1)),
    "uniform": Contender("drawn, uniform noise", (0.01, 0.03, 0.1), noise=Uniform(0.5)),
    "triangular": Contender("drawn, triangular noise", (0.01, 0.03, 0.1), noise=Triangular(1.0)),
    "simplex": Contender("drawn, three probabilities, s = 0", (1e4, 3e4, 1e5), s=0.0),
    "simplex_st": Contender("drawn, three probabilities, s = 1", (3e3, 1e4, 3e4), s=1.0),
}


class Latent(nn.Module):
    r"""A matrix made of latent weights: as they are, rounded, or drawn.

    ``real``: the weight is :math:`\eta`. ``absmean``: :math:`\gamma\,q` with
    :math:`\gamma = \operatorname{mean}|\eta|` and q = clip(round(eta/gamma), -1, 1), the derivative
    1 everywhere and none through gamma, as in the code that was released with BitNet b1.58. The
    others compare eta with the thresholds -1/2 and 1/2, with noise or without, and keep eta on
    [-end, end], beyond which no noise would move the weight; the derivative is that of the mean
    where there is noise, else 1.

    Args:
        inputs, outputs: sizes.
        name: of ``CONTENDERS``, not of a simplex.
        draw: source of the start.
    """

    def __init__(self, inputs: int, outputs: int, name: str, draw: torch.Generator) -> None:
        super().__init__()
        self.name, self.noise = name, CONTENDERS[name].noise
        start = 2 * torch.rand(outputs, inputs, generator=draw) - 1
        self.bounded = name not in ("real", "absmean")
        self.eta = nn.Parameter(start if self.bounded else start * math.sqrt(3 / inputs))
        self.rounded = False

    @property
    def end(self) -> float:
        """Where the noise leaves nothing to chance."""
        return THRESHOLDS[-1] + (self.noise.support[1] if self.noise else THRESHOLDS[-1])

    def weight(self, generator: torch.Generator | None = None) -> Tensor:
        eta = self.eta.detach()
        if self.name == "real":
            return self.eta
        if self.noise is None or self.rounded:
            return attach(self.state() * self.scale(), self.eta, torch.ones_like(eta))
        x = levels.sample_levels(eta, THRESHOLDS, self.noise, generator=generator)
        return levels.straight_through(self.eta, x, THRESHOLDS, self.noise) - 1

    def scale(self) -> Tensor | float:
        return 1.0 if self.bounded else self.eta.detach().abs().mean().clamp_min(1e-5)

    def state(self) -> Tensor:
        """The ternary weight without noise: -1, 0 or 1."""
        return (self.eta.detach() / self.scale()).round().clamp(-1, 1)

    def mean(self) -> Tensor:
        if self.noise is None:
            return self.weight().detach()
        return levels.mean(self.eta.detach(), THRESHOLDS, self.noise) - 1

    @torch.no_grad()
    def keep(self) -> None:
        """Back to the support, after a step."""
        if self.bounded:
            self.eta.clamp_(-self.end, self.end)


class _Simplex(nn.Module):
    """A matrix whose weights have three probabilities each."""

    bounded = False

    def __init__(self, inputs: int, outputs: int, name: str, draw: torch.Generator) -> None:
        super().__init__()
        self.name, s = name, CONTENDERS[name].s
        assert s is not None
        self.ternary = TernaryLinear(inputs, outputs, bias=False, s=s)
        self.ternary.reset_parameters(draw)
        self.rounded = False

    def weight(self, generator: torch.Generator | None = None) -> Tensor:
        return self.ternary.weight("sign" if self.rounded else None, generator=generator)

    def state(self) -> Tensor:
        return self.ternary.ternary()

    def mean(self) -> Tensor:
        return self.ternary.weight("mean").detach()

    def keep(self) -> None:
        """Probabilities are always inside."""


# The network --------------------------------------------------------------------------------------


class CharacterNet(nn.Module):
    """Scores of the next character from the ones before, ``(B, CONTEXT)`` to ``(B, characters)``.

    Args:
        characters: how many are told apart.
        name: of ``CONTENDERS``.
        draw: source of the start.

    ``how`` says what the matrices are: ``"sample"`` as in training, ``"state"`` the ternary weights
    without noise, ``"mean"`` their means.
    """

    how = "sample"

    def __init__(self, characters: int, name: str, draw: torch.Generator) -> None:
        super().__init__()
        self.name = name
        self.embedding = nn.Parameter(
            math.sqrt(3) * (2 * torch.rand(characters, EMBEDDING, generator=draw) - 1)
        )
        kind: Any = _Simplex if CONTENDERS[name].s is not None else Latent
        sizes = [CONTEXT * EMBEDDING] + [WIDTH] * LAYERS
        self.matrices = nn.ModuleList(
            kind(m, n, name, draw) for m, n in zip(sizes, sizes[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(n) for n in sizes[1:])
        self.head = linear(WIDTH, characters, 1.0, draw, torch.float32)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        h = self.embedding[x].flatten(1)
        for matrix, norm in zip(self.matrices, self.norms, strict=True):
            h = norm(functional.linear(h, self._weight(matrix, generator))).relu()
        scores: Tensor = self.head(h)
        return scores

    def _weight(self, matrix: Any, generator: torch.Generator | None) -> Tensor:
        matrix.rounded = self.how == "state"
        weight: Tensor = matrix.mean() if self.how == "mean" else matrix.weight(generator)
        return weight

    def latents(self) -> list[nn.Parameter]:
        """The parameters of the matrices."""
        return [p for matrix in self.matrices for p in matrix.parameters()]

    def others(self) -> list[nn.Parameter]:
        """All that is real-valued in every model."""
        own = {id(p) for p in self.latents()}
        return [p for p in self.parameters() if id(p) not in own]


def states(net: CharacterNet) -> Tensor | None:
    """The ternary weights of all matrices in one row; None of a network of real ones."""
    if net.name == "real":
        return None
    matrices: Any = net.matrices
    return torch.cat([matrix.state().flatten() for matrix in matrices])


# Training -----------------------------------------------------------------------------------------


def optimizers(net: CharacterNet, lr: float) -> list[torch.optim.Optimizer]:
    """Adam, and exponentiated gradient for probabilities."""
    own = CONTENDERS[net.name]
    matrices: torch.optim.Optimizer
    if own.s is not None:
        matrices = SimplexDescent(net.latents(), lr)
    else:
        matrices = torch.optim.Adam(net.latents(), lr=lr)
    return [matrices, torch.optim.Adam(net.others(), lr=REAL_RATE)]


def steps_of(
    name: str, data: Dataset, lr: float, seed: int, steps: int
) -> Iterator[tuple[int, CharacterNet]]:
    """Train a model; the number of steps that are done, and the model, after each.

    Rates fall linearly to 0. Contenders share no random number.

    Args:
        name: of ``CONTENDERS``.
        data: what :func:`encoded` gives.
        lr: of the matrices.
        seed: of the run.
        steps: how many batches of ``BATCH``.
    """
    key: dict[str, Any] = {"contender": name, "seed": seed}
    net = CharacterNet(data.num_classes, name, generator("cpu", "start", **key))
    order, noise = (generator("cpu", purpose, **key) for purpose in ("order", "noise"))
    moved, labels = optimizers(net, lr), data.train.labels
    windows = labels.unfold(0, CONTEXT, 1)
    rates = [float(group["lr"]) for o in moved for group in o.param_groups]
    for t in range(steps):
        for group, rate in zip((g for o in moved for g in o.param_groups), rates, strict=True):
            group["lr"] = rate * (1 - t / steps)
        at = (uniforms((BATCH,), net.embedding, order) * (len(labels) - CONTEXT)).long()
        loss = functional.cross_entropy(net(windows[at], generator=noise), labels[at + CONTEXT])
        for optimizer in moved:
            optimizer.zero_grad()
        loss.backward()
        _step(net, moved)
        yield t + 1, net


def _step(net: CharacterNet, moved: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in moved:
        optimizer.step()
    matrices: Any = net.matrices
    for matrix in matrices:
        matrix.keep()


@torch.no_grad()
def losses(
    net: CharacterNet, split: Split, how: str, draw: torch.Generator | None = None
) -> Tensor:
    """Bits of each character after the first ``CONTEXT``; a matrix is drawn once for all of them.

    Args:
        net: the model.
        split: a part of the text.
        how: what the matrices are, see :class:`CharacterNet`.
        draw: source of randomness of ``"sample"``.
    """
    fixed = copy_with(net, how, draw)
    windows = split.labels.unfold(0, CONTEXT, 1)[:-1]
    targets = split.labels[CONTEXT:]
    found = [
        functional.cross_entropy(fixed(x), y, reduction="none")
        for x, y in zip(windows.split(2048), targets.split(2048), strict=True)
    ]
    return torch.cat(found).double() / math.log(2)


def copy_with(
    net: CharacterNet, how: str, draw: torch.Generator | None
) -> Callable[[Tensor], Tensor]:
    """The network with its matrices fixed to what ``how`` says."""
    net.how = how
    weights = [net._weight(matrix, draw).detach() for matrix in net.matrices]
    net.how = "sample"

    def scores(x: Tensor) -> Tensor:
        h = net.embedding[x].flatten(1)
        for weight, norm in zip(weights, net.norms, strict=True):
            h = norm(functional.linear(h, weight)).relu()
        out: Tensor = net.head(h)
        return out

    return scores


# Text ---------------------------------------------------------------------------------------------


def encoded(name: str, parts: dict[str, str]) -> Dataset:
    """A text in three parts as numbers of characters, which stand in ``labels``.

    Told apart are the ``MOST`` most frequent characters of the training part; all others are the
    last number.
    """
    count: dict[str, int] = {}
    for c in parts["train"]:
        count[c] = count.get(c, 0) + 1
    known = sorted(sorted(count), key=lambda c: -count[c])[:MOST]
    number = {c: k for k, c in enumerate(known)}

    def split(text: str) -> Split:
        labels = torch.tensor([number.get(c, len(known)) for c in text])
        return Split(labels[:, None].float(), labels)

    texts = (split(parts[part]) for part in ("train", "validation", "test"))
    return Dataset(name, (1,), len(known) + 1, *texts)
