"""Bits 0 and 1 beside the library's signs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from sbnlib import (
    SBN,
    Logistic,
    exact_gradient,
    on_signs,
    sample_sign,
    straight_through,
    to_bits,
    to_signs,
)


def test_signs_and_bits() -> None:
    x, b = torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 1.0])
    assert torch.equal(to_bits(x), b)
    assert torch.equal(to_signs(b), x)


def test_straight_through_in_bits_has_the_density_as_slope() -> None:
    a = torch.linspace(-3, 3, 7, dtype=torch.float64).requires_grad_()
    b = to_bits(straight_through(a, sample_sign(a, Logistic()), Logistic()))
    (slope,) = torch.autograd.grad(b.sum(), a)
    f = torch.exp(-a) / (1 + torch.exp(-a)) ** 2
    assert torch.allclose(slope, f, rtol=1e-12)
    assert set(b.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_on_bits_and_on_signs_puts_out_the_same(bias: bool) -> None:
    layer = nn.Linear(4, 3, bias=bias, dtype=torch.float64)
    b = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
    before = {name: p.clone() for name, p in layer.named_parameters()}
    assert torch.allclose(on_signs(layer)(2 * b - 1), layer(b), rtol=0, atol=1e-14)
    assert on_signs(layer).weight.dtype == torch.float64
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())


def test_the_exact_value_of_a_network_in_bits() -> None:
    """Against an enumeration that knows only bits."""
    torch.manual_seed(0)
    one, two = nn.Linear(2, 2).double(), nn.Linear(2, 1).double()
    inputs = torch.rand(3, 2).double()

    def loss(b: Tensor) -> Tensor:
        return (b.sum(-1) - 0.3) ** 2

    net = SBN(one, on_signs(two))
    value, _ = exact_gradient(net, inputs, lambda x: loss(to_bits(x)))
    expected = torch.zeros(3).double()
    for first in itertools.product([0.0, 1.0], repeat=2):
        b1 = torch.tensor(first).double()
        p1 = torch.sigmoid((2 * b1 - 1) * one(inputs)).prod(-1)
        for second in (0.0, 1.0):
            p2 = torch.sigmoid((2 * second - 1) * two(b1)).squeeze(-1)
            expected += p1 * p2 * (second - 0.3) ** 2
    assert torch.allclose(value, expected.mean(), rtol=1e-12)


@pytest.mark.parametrize("function", [to_bits, to_signs])
@pytest.mark.parametrize("value", [torch.tensor([0, 1], dtype=torch.uint8), [0.0, 1.0]])
def test_integers_are_refused(function: object, value: object) -> None:
    with pytest.raises(TypeError, match="must be a floating-point tensor, got"):
        function(value)


def test_only_linear_layers_are_brought_over() -> None:
    with pytest.raises(TypeError, match="layer must be a nn.Linear, got Conv2d"):
        on_signs(nn.Conv2d(1, 1, 3))
