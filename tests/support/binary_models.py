"""Small binary models as strangers write them, and the units that must be found in each.

A unit's line carries a mark in a comment, by which its place is known. ``by_hand`` writes the
forward pass out a second time and gives the pre-activations, without hooks. What is expected is
from pen and paper, as in :mod:`probes`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from sbnlib.nn import Sign
from sbnlib.noise import Cauchy, Gaussian, Logistic, Uniform

Array = np.ndarray
Curve = Callable[[Array], Array]
Loss = Callable[[Any], Tensor]


class Bin(Function):
    """Sign forward, hardtanh's slope backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return torch.where(a >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return grad * (a.abs() < 1)


class Spike(Function):
    """A step with the slope 1/(1 + (pi a)^2)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return (a > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return grad / (1 + (math.pi * a) ** 2)


class PlainMLP(nn.Module):
    """(a) A bare function after batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(20, 32), nn.BatchNorm1d(32)
        self.fc2, self.bn2 = nn.Linear(32, 24), nn.BatchNorm1d(24)
        self.out = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = Bin.apply(self.bn1(self.fc1(x)))  # mark: mlp 1
        x = Bin.apply(self.bn2(self.fc2(x)))  # mark: mlp 2
        return self.out(x)


class DetachMLP(nn.Module):
    """(b) hardtanh, and then the sign by the detach trick with the slope 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(20, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.hardtanh(self.fc1(x))
        b = torch.where(a >= 0, 1.0, -1.0)
        return self.fc2(b.detach() + (a - a.detach()))  # mark: detach 1


class ConvNet(nn.Module):
    """(c) sign, batch norm, average pool; the sum of two binary maps has three values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = Bin.apply(self.conv1(x))  # mark: conv 1
        x = functional.avg_pool2d(self.bn(x), 2)
        x = Bin.apply(self.conv2(x))  # mark: conv 2
        x = x + Bin.apply(self.conv3(x))  # mark: conv 3
        return self.fc(x.flatten(1))


class BinaryWeights(nn.Module):
    """(d) Signs of weights, the scale of each row outside of the straight-through function."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(0.8 * torch.randn(32, 20))
        self.w2 = nn.Parameter(0.5 * torch.randn(4, 32))

    def forward(self, x: Tensor) -> Tensor:
        signs = Bin.apply(self.w1)  # mark: weights 1
        x = functional.linear(x, signs * self.w1.abs().mean(1, keepdim=True))
        signs = Bin.apply(self.w2)  # mark: weights 2
        return functional.linear(torch.tanh(x), signs * self.w2.abs().mean(1, keepdim=True))


class Spiking(nn.Module):
    """(e) Three steps of a leaky membrane with a learned threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(20, 32), nn.Linear(32, 4)
        self.threshold = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        membrane, spikes, total = torch.zeros(len(x), 32), torch.zeros(len(x), 32), 0.0
        for _ in range(3):
            membrane = 0.9 * membrane + self.fc(x) - spikes.detach() * self.threshold
            spikes = Spike.apply(membrane - self.threshold)  # mark: spiking 1
            total = total + self.out(spikes)
        return total / 3


class Code(nn.Module):
    """(f) What comes out is the code: no function of torch ever takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.code = nn.Linear(20, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return Bin.apply(self.code(torch.tanh(self.hidden(x))))  # mark: code 1


class ChannelScale(nn.Module):
    """(h) A learned scale for each channel, inside the unit: many values, two in a channel."""

    class Scaled(Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, alpha: Tensor) -> Tensor:
            x = torch.where(a >= 0, 1.0, -1.0)
            ctx.save_for_backward(a, alpha, x)
            return alpha.view(1, -1, 1, 1) * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            a, alpha, x = ctx.saved_tensors
            inside = grad * alpha.view(1, -1, 1, 1) * (a.abs() < 1)
            return inside, (grad * x).sum((0, 2, 3))

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(384, 4)
        self.alpha = nn.Parameter(torch.linspace(0.3, 1.3, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Scaled.apply(self.conv(x), self.alpha)  # mark: channels 1
        return self.fc(x.flatten(1))


class Steep(nn.Module):
    """(i) Three layers whose slope is twice that of tanh: 8, 4 and 2 times too large."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (20, 32, 28, 24)
        self.layers = nn.ModuleList(nn.Linear(m, n) for m, n in zip(sizes, sizes[1:], strict=False))
        self.out = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            a = layer(x)
            m = 2 * torch.tanh(a)
            x = torch.where(a >= 0, 1.0, -1.0) + (m - m.detach())  # mark: steep 1
        return self.out(x)


def saturated_mlp() -> nn.Module:
    """The first model, late in a training gone wrong: four units in five clipped, one dead."""
    net = PlainMLP()
    with torch.no_grad():
        net.bn2.weight.fill_(4.0)
        net.bn2.bias[0] = 50.0
    return net


def own_modules() -> nn.Module:
    """(g) The library's own units."""
    return nn.Sequential(nn.Linear(20, 32), Sign(), nn.Linear(32, 24), Sign(Gaussian(0.7)),
                         nn.Linear(24, 4))  # fmt: skip


def tanh_net() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))


def dropout_net() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))


# ------------------------------------------------------------------------------- by hand


def standardized(bn: nn.Module, a: Tensor) -> Tensor:
    """Batch norm in training: moments of the batch, variance over all rows."""
    axes = [k for k in range(a.ndim) if k != 1]
    shape = [1, -1] + [1] * (a.ndim - 2)
    mean, variance = a.mean(axes, keepdim=True), a.var(axes, correction=0, keepdim=True)
    z = (a - mean) / (variance + bn.eps).sqrt()
    return z * bn.weight.view(shape) + bn.bias.view(shape)


def affine(fc: nn.Module, x: Tensor) -> Tensor:
    return x @ fc.weight.T + fc.bias


def sign(a: Tensor) -> Tensor:
    return 2.0 * (a >= 0) - 1


def mlp_by_hand(net: Any, x: Tensor) -> list[Tensor]:
    first = standardized(net.bn1, affine(net.fc1, x))
    return [first, standardized(net.bn2, affine(net.fc2, sign(first)))]


def conv_by_hand(net: Any, x: Tensor) -> list[Tensor]:
    def conv(layer: nn.Module, x: Tensor) -> Tensor:
        patches = functional.unfold(x, 3, padding=1)  # (B, in 9, H W)
        flat = layer.weight.flatten(1) @ patches + layer.bias.view(-1, 1)
        return flat.unflatten(-1, x.shape[-2:])

    first = conv(net.conv1, x)
    z = standardized(net.bn, sign(first))
    second = conv(net.conv2, z.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3)))
    return [first, second, conv(net.conv3, sign(second))]


def spiking_by_hand(net: Any, x: Tensor) -> list[Tensor]:
    current, found = affine(net.fc, x), []
    membrane = spikes = torch.zeros_like(current)
    for _ in range(3):
        membrane = 0.9 * membrane + current - spikes * net.threshold
        found.append(membrane - net.threshold)
        spikes = 1.0 * (found[-1] > 0)
    return found


def channels_by_hand(net: Any, x: Tensor) -> list[Tensor]:
    patches = functional.unfold(x, 3, padding=1)
    flat = net.conv.weight.flatten(1) @ patches + net.conv.bias.view(-1, 1)
    return [flat.unflatten(-1, (8, 8))]


def steep_by_hand(net: Any, x: Tensor) -> list[Tensor]:
    found = []
    for layer in net.layers:
        found.append(affine(layer, x))
        x = sign(found[-1])
    return found


# ------------------------------------------------------------------------------- what to find


@dataclass(frozen=True)
class Unit:
    """A unit of a model.

    Attributes:
        codes: of its findings, without those about the data, which follow from ``slope``.
        expected: attributes of its report.
        mark: the comment on its line, "" where the line is not held.
        slope: h in numpy, or None where the share of clipped entries is not held.
        compounding: the product of the factors from it to the loss.
    """

    codes: frozenset[str]
    expected: dict[str, Any]
    mark: str = ""
    slope: Curve | None = None
    compounding: float | None = 1.0


@dataclass(frozen=True)
class Case:
    """A model, how it is called, and its units in the order of the forward pass.

    ``counts``: the numbers of reports that are accepted; by default one for each unit.
    """

    name: str
    make: Callable[[], nn.Module]
    units: tuple[Unit, ...]
    shape: tuple[int, ...] = (64, 20)
    by_hand: Callable[[Any, Tensor], list[Tensor]] | None = None
    loss: Loss | None = None
    counts: frozenset[int] = field(default_factory=frozenset)

    def build(self) -> tuple[nn.Module, Tensor]:
        """The model and its input, the same each time."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return self.make(), torch.randn(self.shape)


def to_classes(logits: Tensor) -> Tensor:
    """One loss for each input."""
    return functional.cross_entropy(logits, torch.arange(len(logits)) % 4, reduction="none")


def box(a: Array) -> Array:
    return 1.0 * (np.abs(a) < 1)


def arctan(a: Array) -> Array:
    return 1 / (1 + (np.pi * a) ** 2)


def steep(a: Array) -> Array:
    return 2 / np.cosh(np.clip(a, -300, 300)) ** 2


FIXED = frozenset({"deterministic"})
SIGN = {"forward": "deterministic", "coding": "±1", "noise": None, "mismatch": 1.0,
        "slope": "of a", "slope_noise": Uniform(), "even": True, "nonnegative": True,
        "depends_on_gradient": False, "exact_pm1": True}  # fmt: skip
SPIKE = SIGN | {"coding": "0/1", "slope_noise": Cauchy(1 / math.pi)}
STEEP = SIGN | {"mismatch": 2.0, "slope_noise": Logistic(0.5)}
CHANNEL = {k: v for k, v in SIGN.items() if k not in ("coding", "exact_pm1")} | {"gain": None}
DRAWN = SIGN | {"forward": "sampled", "samples_in_eval": True}


def signs(mark: str, count: int) -> tuple[Unit, ...]:
    return tuple(Unit(FIXED, SIGN, f"{mark} {k + 1}", box) for k in range(count))


def own(law: Any) -> Unit:
    its = {"forward_noise": law, "slope_noise": law, "noise": law}
    return Unit(frozenset({"samples-in-eval"}), DRAWN | its)


MODELS = {
    case.name: case
    for case in (
        Case("mlp", PlainMLP, signs("mlp", 2), by_hand=mlp_by_hand, loss=to_classes),
        Case("saturated", saturated_mlp, signs("mlp", 2), by_hand=mlp_by_hand, loss=to_classes),
        Case("detach", DetachMLP, signs("detach", 1), loss=to_classes,
             by_hand=lambda net, x: [affine(net.fc1, x)]),
        Case("conv", ConvNet, signs("conv", 3), (16, 1, 8, 8), conv_by_hand, to_classes),
        Case("weights", BinaryWeights, signs("weights", 2), loss=to_classes,
             by_hand=lambda net, x: [net.w1, net.w2]),
        # The same line three times: three reports in the order of time, or one
        Case("spiking", Spiking,
             (Unit(FIXED, SPIKE, "spiking 1", arctan, compounding=None),) * 3,
             by_hand=spiking_by_hand, loss=to_classes, counts=frozenset({1, 3})),
        Case("code", Code, signs("code", 1), loss=lambda code: code.mean(0).square().sum(),
             by_hand=lambda net, x: [affine(net.code, torch.tanh(affine(net.hidden, x)))]),
        Case("own", own_modules, (own(Logistic()), own(Gaussian(0.7))), loss=to_classes),
        Case("channels", ChannelScale,
             (Unit(FIXED | {"channels"}, CHANNEL, "channels 1", box),),
             (16, 1, 8, 8), channels_by_hand, to_classes),
        # One line, but three layers
        Case("steep", Steep,
             tuple(Unit(FIXED | {"factor"}, STEEP, "steep 1", steep, c) for c in (8.0, 4.0, 2.0)),
             by_hand=steep_by_hand, loss=to_classes),
        Case("tanh", tanh_net, (), loss=to_classes),
        Case("dropout", dropout_net, (), loss=to_classes),
    )
}  # fmt: skip


def place(mark: str) -> str:
    """The line with this mark, as "file.py:12"."""
    path = Path(inspect.getfile(PlainMLP))
    lines = path.read_text(encoding="utf-8").splitlines()
    (number,) = [k for k, line in enumerate(lines, 1) if line.endswith(f"# mark: {mark}")]
    return f"{path.name}:{number}"
