"""The hand-written forward passes are those of the models, and their marks are on the units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from binary_models import MODELS, Bin, ChannelScale, Spike, place
from torch import Tensor, nn


@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case.by_hand])
def test_by_hand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    net, x = MODELS[name].build()
    for function in (Bin, Spike, ChannelScale.Scaled):

        def spy(ctx: Any, a: Tensor, *rest: Tensor, forward: Any = function.forward) -> Tensor:
            seen.append(a.detach().clone())
            return forward(ctx, a, *rest)

        monkeypatch.setattr(function, "forward", staticmethod(spy))
    if name in ("detach", "steep"):
        for layer in net.modules():
            if isinstance(layer, nn.Linear) and layer.out_features != 4:
                layer.register_forward_hook(lambda module, given, a: seen.append(a.detach()))
    net(x)
    found = MODELS[name].by_hand(net, x)
    assert len(found) == len(seen) == len(MODELS[name].units)
    for a, b in zip(found, seen, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_marks() -> None:
    marks = {unit.mark for case in MODELS.values() for unit in case.units} - {""}
    assert len({place(mark) for mark in marks}) == len(marks)


@pytest.mark.parametrize("name", MODELS)
def test_models_learn(name: str) -> None:
    # Called as the tests call them, each gives a finite loss and a gradient for each parameter
    case = MODELS[name]
    net, x = case.build()
    loss = case.loss(net(x)).mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters() if p.ndim > 1)


def test_hidden_states_are_not_constant() -> None:
    for name, case in MODELS.items():
        if case.by_hand:
            net, x = case.build()
            for a in case.by_hand(net, x):
                assert 0.05 < (a > 0).float().mean() < 0.95, name
