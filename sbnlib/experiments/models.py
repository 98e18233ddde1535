"""What the experiments train: a net with a linear head, and its real-valued twin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sbnlib.contracts import NetworkEstimator
from sbnlib.losses import classification_loss
from sbnlib.network import takes_axes

__all__ = ["Classifier", "TanhNet", "backprop"]


class TanhNet(nn.Module):
    """The real-valued twin of an SBN: the same layers, tanh(a) in place of each binary unit."""

    takes_axes = True

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

    @property
    def takes_axes(self) -> bool:
        """Whether the estimator takes inputs with axes in front of the batch."""
        return self.estimator is backprop or takes_axes(self.estimator)

    def forward(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        loss = classification_loss(self.head, labels)
        return self.estimator(self.net, inputs, loss, generator=generator)
