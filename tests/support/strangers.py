"""Pieces of code as strangers write it, and models made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from binary_models import Bin
from probes import hard_sign
from torch import Tensor, nn


def ste(a: Tensor, m: Tensor) -> Tensor:
    """A sign with the slope of m."""
    return hard_sign(a) + (m - m.detach())


class Unit(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return Bin.apply(a)


class Model(nn.Module):
    """A model whose forward pass is a function of itself and of what comes in."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


def two_layers(run: Callable[[nn.Module, Tensor], Tensor]) -> Model:
    """A linear layer, what ``run`` makes of it, and a linear layer."""
    torch.manual_seed(0)
    return Model(lambda self, x: self.b(run(self, self.a(x))), a=nn.Linear(32, 64),
                 b=nn.Linear(64, 10))  # fmt: skip


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), Unit(), nn.Linear(64, 64), Unit(), nn.Linear(64, 10))


def rows(count: int = 64) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(5))


def squares(out: Tensor) -> Tensor:
    return out.square().mean()
