r"""The problem set sbn-map-1: small networks whose gradients are known exactly.

The problems are one file of numbers, ``sbn-map-1.json``, so that no random generator and no
training decides what they are. Its hash is checked when it is read. :func:`build` is how the file
was made.

Each of three losses has one base problem, two layers of five logistic units at scale 1, and eight
that change one thing of it: one or three layers, three or eight units a layer, the scale ½ or 2, or
another law of the noise with the same density at 0 (uniform at scale 2, Gaussian at 1.6). Where
only the noise is another, the weights are those of the base problem.

==========  ======================================================================================
loss        what it is, for states x of the last layer and input number b
==========  ======================================================================================
digits      cross-entropy of a trained linear head on four images of digits, 4 x 4 pixels
xor         the share of wrong answers where each unit and its neighbour are the inputs of an XOR
            gate: :math:`\tfrac1{2(n-1)}\sum_j (1 - t_b x_j x_{j+1})`, on the four pairs of signs
smooth      :math:`\sum_k c_k\tanh(v_k^\top x + d_k)`, random c, v and d, on four random inputs
==========  ======================================================================================

The networks of ``digits`` and ``xor`` are trained, those of ``smooth`` are random.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from sbnlib import noise
from sbnlib.data import check_hash, load
from sbnlib.exact import exact_expectation
from sbnlib.losses import classification_loss
from sbnlib.network import SBN

__all__ = ["NAME", "SHA256", "Problem", "build", "problems", "select"]

#: The name of the problem set. Another set of problems gets another name.
NAME = "sbn-map-1"

#: The hash of its file.
SHA256 = "9c0a4a74e97fbf6419da37b1d856c4249f2231e9846fd4a8abde082b4d95fb57"

FILE = f"{NAME}.json"
LOSSES = ("digits", "xor", "smooth")
#: (layers, units a layer, law, scale), the base problem first.
BASE = (2, 5, "Logistic", 1.0)
SHAPES = (BASE, (1, 5, *BASE[2:]), (3, 5, *BASE[2:]), (2, 3, *BASE[2:]), (2, 8, *BASE[2:]))
NOISES = (("Logistic", 0.5), ("Logistic", 2.0), ("Uniform", 2.0), ("Gaussian", 1.6))
GRID = (*SHAPES, *((*BASE[:2], *law) for law in NOISES))


@dataclass(frozen=True)
class Problem:
    """One problem: a network, its inputs, its loss.

    Attributes:
        name: such as ``digits-2x5-logistic-1``: the loss, layers x units, law and scale.
        about: the loss, ``"digits"``, ``"xor"`` or ``"smooth"``.
        layers, width: the number of layers, and of units in each.
        law, scale: the injected noise.
        inputs: ``(B, n_0)``, float64.
        weights, biases: of each layer, ``(n, m)`` and ``(n,)``.
        numbers: what the loss is made of.
    """

    name: str
    about: str
    layers: int
    width: int
    law: str
    scale: float
    inputs: Tensor
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    numbers: dict[str, Tensor]

    def net(self) -> SBN:
        """The network, a new one at each call."""
        layers = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            layers.append(linear(weight, bias))
        return SBN(*layers, noise=getattr(noise, self.law)(self.scale))

    def loss(self, x: Tensor) -> Tensor:
        """The loss of states x ``(..., B, n)``, one value an input ``(..., B)``."""
        return self._loss(x)

    @functools.cached_property
    def _loss(self) -> Callable[[Tensor], Tensor]:
        return _LOSS[self.about](self.numbers)

    @property
    def is_base(self) -> bool:
        """Whether the other problems of its loss are changes of this one."""
        return (self.layers, self.width, self.law, self.scale) == BASE

    @property
    def words(self) -> str:
        """The problem in words: depth, width, noise."""
        layers = f"{self.layers} layer{'s'[: self.layers > 1]}"
        return f"{self.about}, {layers} of {self.width}, {self.law.lower()} at {self.scale:g}"


def linear(weight: Tensor, bias: Tensor) -> torch.nn.Linear:
    """A layer of these numbers, made without a random one."""
    sizes = weight.shape[1], weight.shape[0]
    layer = torch.nn.utils.skip_init(torch.nn.Linear, *sizes, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def problems() -> dict[str, Problem]:
    """The problems of sbn-map-1 by name, in their order.

    Raises:
        DataError: the file is not the one whose hash is :data:`SHA256`.
    """
    content = files("sbnlib.map").joinpath(FILE).read_bytes()
    return dict(_problems(content))


@functools.lru_cache(maxsize=1)
def _problems(content: bytes) -> dict[str, Problem]:
    check_hash(content, SHA256, FILE, "Install sbnlib anew.")
    return {row["name"]: _read(row) for row in json.loads(content)["problems"]}


def select(names: Sequence[str] | None) -> list[Problem]:
    """The problems of these names, all by default, in the order of the set.

    Raises:
        ValueError: an unknown name, or none.
    """
    known = problems()
    if names is None:
        return list(known.values())
    wanted = [names] if isinstance(names, str) else list(names)  # a text is a sequence too
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"problems must be names of {NAME}, some of {', '.join(known)}; got {got}")
    return [p for name, p in known.items() if name in wanted]


# ---- losses --------------------------------------------------------------------------------------


def _digits_loss(numbers: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    weight, bias = numbers["head"], numbers["head_bias"]
    return classification_loss(lambda x: x @ weight.T + bias, numbers["targets"].long())


def _xor_loss(numbers: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    targets = numbers["targets"]
    return lambda x: (1 - targets * (x[..., :-1] * x[..., 1:]).mean(dim=-1)) / 2


def _smooth_loss(numbers: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    v, d, c = numbers["v"], numbers["d"], numbers["c"]
    return lambda x: torch.tanh(x @ v.T + d) @ c


_LOSS = {"digits": _digits_loss, "xor": _xor_loss, "smooth": _smooth_loss}


# ---- the file ------------------------------------------------------------------------------------

DIGITS = 4  # decimals of the stored numbers


def _read(row: dict[str, Any]) -> Problem:
    def tensor(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return Problem(
        **{key: row[key] for key in ("name", "about", "layers", "width", "law", "scale")},
        inputs=tensor(row["inputs"]),
        weights=tuple(map(tensor, row["weights"])),
        biases=tuple(map(tensor, row["biases"])),
        numbers={key: tensor(values) for key, values in row["numbers"].items()},
    )


def build() -> str:
    """The text of the file, made anew: draws, trains, rounds. Needs ``sbnlib[data]``, a minute.

    The networks of ``digits`` and ``xor`` are trained by Adam on the exact gradient, so that no
    sampled state decides anything.
    """
    rows = []
    for about in LOSSES:
        made = {shape[:2]: _MAKERS[about](*shape[:2]) for shape in SHAPES}
        for layers, width, law, scale in GRID:
            head = {
                "name": f"{about}-{layers}x{width}-{law.lower()}-{scale:g}",
                "about": about,
                "layers": layers,
                "width": width,
                "law": law,
                "scale": scale,
            }
            rows.append(json.dumps(head | made[layers, width]))
    lines = ",\n".join(rows)
    return f'{{"name": "{NAME}", "problems": [\n{lines}\n]}}\n'


class _Draw:
    """Uniform numbers of one purpose; torch's uniforms have the same bits on every processor."""

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256(" ".join(map(str, (NAME, *key))).encode()).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def __call__(self, *shape: int, width: float = 1.0) -> Tensor:
        u = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (2 * u - 1) * width


def _digits(layers: int, width: int) -> dict[str, Any]:
    """30 steps on 32 training images; of these four with different labels are kept."""
    split = load("digits").train
    images = split.inputs[:32].double().unflatten(1, (4, 2, 4, 2)).mean(dim=(2, 4)).flatten(1)
    images, labels = 2 * (images - images.mean(dim=0)), split.labels[:32]
    net, draw = _random_net(layers, width, 16, "digits"), _Draw("head", layers, width)
    head = linear(draw(10, width, width=width**-0.5), torch.zeros(10))
    _train(net, images, classification_loss(head, labels), head.parameters(), steps=30)
    kept = sorted(int((labels == c).nonzero()[0]) for c in labels.unique())[:4]
    numbers = {"head": head.weight, "head_bias": head.bias, "targets": labels[kept].double()}
    return _numbers(net, images[kept], numbers)


def _xor(layers: int, width: int) -> dict[str, Any]:
    """30 steps, about half of the way."""
    inputs = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    numbers = {"targets": -inputs.prod(dim=-1)}
    net = _random_net(layers, width, 2, "xor")
    _train(net, inputs, _xor_loss(numbers), (), steps=30)
    return _numbers(net, inputs, numbers)


def _smooth(layers: int, width: int) -> dict[str, Any]:
    draw = _Draw("smooth", layers, width)
    numbers = {
        "c": draw(6),
        "v": draw(6, width, width=3 / math.sqrt(width)),
        "d": draw(6),
    }
    return _numbers(_random_net(layers, width, 4, "smooth"), draw(4, 4, width=1.5), numbers)


_MAKERS = {"digits": _digits, "xor": _xor, "smooth": _smooth}


def _random_net(layers: int, width: int, inputs: int, about: str) -> SBN:
    """Weights uniform on +-2.4/sqrt(n): on states, pre-activations of variance 2."""
    draw, sizes = _Draw("net", about, layers, width), [inputs, *[width] * layers]
    made = []
    for m, n in zip(sizes[:-1], sizes[1:], strict=True):
        made.append(linear(draw(n, m, width=2.4 / math.sqrt(m)), draw(n, width=0.5)))
    return SBN(*made)


def _train(
    net: SBN,
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    more: Iterator[torch.nn.Parameter] | tuple[()],
    steps: int,
) -> None:
    """Adam on the exact gradient, of the network and of what the loss holds."""
    parameters = [*net.parameters(), *more]
    adam = torch.optim.Adam(parameters, lr=0.03)
    for _ in range(steps):
        adam.zero_grad()
        value = exact_expectation(net, inputs, loss).mean()
        value.backward()
        adam.step()


def _numbers(net: SBN, inputs: Tensor, numbers: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "inputs": _rounded(inputs),
        "weights": [_rounded(layer.weight) for layer in net.layers],
        "biases": [_rounded(layer.bias) for layer in net.layers],
        "numbers": {name: _rounded(values) for name, values in numbers.items()},
    }


def _rounded(values: Tensor | torch.nn.Module) -> Any:
    assert isinstance(values, Tensor)
    whole = (values.detach() * 10**DIGITS).round()
    return ((whole + 0.0) / 10**DIGITS).tolist()
