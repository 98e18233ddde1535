"""What a network holds and does, against counts by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from sbnlib import SBN, Cost, set_mode, summary, to_plain
from sbnlib.nn import BernoulliConv2d, BernoulliLinear, Sign


def conv_net(pad_value: float = -1.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        Sign(),
        BernoulliConv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False, pad_value=pad_value),
        nn.BatchNorm2d(6),
        Sign(),
        nn.Flatten(),
        BernoulliLinear(6 * 4 * 4, 10),
    )


IMAGES = torch.rand(5, 1, 8, 8)

#: Of the net above, on 8 x 8 images: by hand.
BY_HAND = (
    Cost("0", "Conv2d", real=4 * 9 + 4, bytes=4 * 40, multiplications=64 * 4 * 9),
    Cost("1", "BatchNorm2d", real=4 * 4, bytes=64),  # weight, bias, running mean and variance
    Cost("2", "Sign", units=4 * 64),
    Cost("3", "BernoulliConv2d", binary=6 * 2 * 9, bytes=14, xnor=6 * 16 * 2 * 9),  # 108 bits
    Cost("4", "BatchNorm2d", real=4 * 6, bytes=96),
    Cost("5", "Sign", units=6 * 16),
    Cost("7", "BernoulliLinear", binary=960, real=10, bytes=160, xnor=960),
)


def test_every_count_of_a_conv_net() -> None:
    found = summary(conv_net(), IMAGES)
    assert found.layers == BY_HAND
    assert found.uncounted == ()
    assert found.total == Cost(
        "total", "", units=352, binary=1068, real=90, bytes=494, xnor=2688, multiplications=2304
    )


def test_the_counts_are_for_one_input() -> None:
    assert summary(conv_net(), IMAGES[:1]) == summary(conv_net(), IMAGES)


def test_the_exported_net_costs_the_same() -> None:
    plain = summary(to_plain(set_mode(conv_net(), "sign")), IMAGES)
    assert plain.total == summary(conv_net(), IMAGES).total


def test_zeros_around_an_image_are_not_signs() -> None:
    found = summary(conv_net(pad_value=0.0), IMAGES).layers[3]
    assert (found.xnor, found.additions) == (0, BY_HAND[3].xnor)


@pytest.mark.parametrize(("padding", "signs"), [("same", False), ("valid", True), ((0, 1), False)])
def test_every_way_to_pad(padding: str | tuple[int, int], signs: bool) -> None:
    net = nn.Sequential(Sign(), BernoulliConv2d(1, 1, 3, padding=padding))
    found = summary(net, IMAGES).layers[1]
    assert (found.xnor > 0) == signs
    assert (found.additions > 0) != signs


@pytest.mark.parametrize(("mode", "signs"), [("sample", True), ("sign", True), ("mean", False)])
def test_means_are_real_numbers(mode: str, signs: bool) -> None:
    net = set_mode(nn.Sequential(Sign(), BernoulliLinear(3, 2, bias=False)), mode)
    found = summary(net, torch.rand(4, 3)).layers[1]
    assert (found.binary, found.real) == ((6, 0) if signs else (0, 6))
    assert (found.xnor, found.multiplications) == ((6, 0) if signs else (0, 6))


def test_a_network_of_real_weights() -> None:
    net = SBN(nn.Linear(7, 5), nn.Linear(5, 3))
    found = {cost.name: cost for cost in summary(net, torch.rand(2, 7)).layers}
    assert found["layers.0"].multiplications == 35
    assert (found["layers.1"].additions, found["layers.1"].multiplications) == (15, 0)
    assert found["sign"].units == 5 + 3


def test_a_layer_run_twice_is_held_once() -> None:
    layer = nn.Linear(3, 3)
    found = summary(nn.Sequential(layer, layer), torch.rand(2, 3)).total
    assert (found.real, found.multiplications) == (12, 18)


def test_what_is_not_counted_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.PReLU(), nn.ConvTranspose1d(3, 3, 1))
    found = summary(net[:2], torch.rand(2, 3))
    assert found.uncounted == ("1",)
    assert "operations not counted: 1" in str(found)


def test_nothing_is_left_changed() -> None:
    net = conv_net()
    net[1].eval()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    modes, numbers = [m.training for m in net.modules()], torch.get_rng_state()
    summary(net, IMAGES)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any(m._forward_hooks for m in net.modules())


def test_the_table_shows_every_count() -> None:
    table = str(summary(conv_net(), IMAGES)).splitlines()
    assert table[0].split() == ["layer", *[f.name for f in dataclasses.fields(Cost)][2:]]
    assert table[4].split() == ["3", "BernoulliConv2d", "0", "108", "0", "14", "1,728", "0", "0"]
    assert table[-1].split() == ["total", "352", "1,068", "90", "494", "2,688", "0", "2,304"]


@pytest.mark.parametrize("inputs", [torch.rand(3), torch.rand(0, 3), [[1.0]]])
def test_inputs_must_be_a_batch(inputs: object) -> None:
    with pytest.raises(ValueError, match=r"inputs must be a batch \(B, ...\) with B >= 1, got"):
        summary(nn.Linear(3, 1), inputs)


class Residual(nn.Module):
    """Adds to its signs in place, and hands them over by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.idle = BernoulliLinear(3, 3, bias=False), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(x > 0, 1.0, -1.0)
        out = self.a(x=x)
        x += out
        return x


def test_factors_are_looked_at_when_they_are_factors() -> None:
    found = summary(Residual(), torch.rand(4, 3))
    assert (found.total.xnor, found.total.additions) == (9, 0)
    assert found.uncounted == ("idle",)


def test_tied_weights_are_held_once_and_work_twice() -> None:
    one, two = nn.Linear(8, 8), nn.Linear(8, 8)
    two.weight, two.bias = one.weight, one.bias
    found = summary(nn.Sequential(one, Sign(), two), torch.rand(2, 8)).total
    assert (found.real, found.multiplications, found.additions) == (72, 64, 64)


def test_a_mean_is_no_bit() -> None:
    assert (
        summary(nn.Sequential(nn.Linear(2, 3), Sign(mode="mean")), torch.rand(2, 2)).total.units
        == 0
    )
