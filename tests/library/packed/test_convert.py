"""From trained networks to bits: the same predictions, thresholds unit by unit, what is refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sbnlib import SBN, packed, set_mode
from sbnlib.nn import BernoulliConv2d, BernoulliLinear, Sign

HERE = Path(__file__).resolve()
NETWORK = HERE.parents[3] / "book" / "measurements" / "binary-weights-512-512.npz"


def settled(net: nn.Module, inputs: Tensor, seed: int = 0) -> nn.Module:
    """Batch norm with statistics, scales of both signs, some of them 0, and shifts."""
    torch.manual_seed(seed)
    set_mode(net, "sign")
    for _ in range(30):
        net(inputs)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            module.weight.data = torch.randn_like(module.weight)
            module.weight.data[:2] = 0
            module.bias.data = torch.randn_like(module.bias)
    return net.eval()


def dense(inputs: int = 20, hidden: int = 33, **own: Any) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        Sign(),
        BernoulliLinear(inputs, hidden, **own), nn.BatchNorm1d(hidden), Sign(),
        BernoulliLinear(hidden, 65, **own), nn.BatchNorm1d(65), Sign(),
        nn.Linear(65, 4),
    )  # fmt: skip


@torch.no_grad()
def compared(net: nn.Module, inputs: Tensor, backend: str | None = None) -> None:
    """The states of the last unit are equal bit for bit, so scores differ by rounding alone."""
    expected = net(inputs).double().numpy()
    found = packed.convert(net, backend=backend)(inputs.numpy())
    assert found.shape == expected.shape and found.dtype == np.float32
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


# Whole networks ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["int8", "numpy", None])
@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_network_predicts_the_same(bias: bool, backend: str | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 20)
    net = settled(dense(bias=bias), x)
    compared(net, x, backend)
    kinds = [layer.kind for layer in packed.convert(net).layers]
    assert kinds == ["sign", *["linear", "threshold"] * 2, "linear", "bias"]


@pytest.mark.slow
@pytest.mark.parametrize("pad_value", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolutional_network_predicts_the_same(stride: int, pad_value: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 2, 7, 6)
    rows, columns = (7, 6) if stride == 1 else (4, 3)
    net = nn.Sequential(
        BernoulliConv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16), Sign(),
        BernoulliConv2d(16, 70, 3, stride=stride, padding=1, pad_value=pad_value),
        nn.BatchNorm2d(70), Sign(),
        nn.Flatten(), nn.Dropout(0.5),
        BernoulliLinear(70 * rows * columns, 9), nn.BatchNorm1d(9), Sign(),
        nn.Linear(9, 4),
    )  # fmt: skip
    compared(settled(net, x), x)


def test_images_stay_images() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 6, 6)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), Sign(),
        BernoulliConv2d(4, 5, 2), nn.BatchNorm2d(5),
    )  # fmt: skip
    compared(settled(net, x), x)


def test_rows_are_unflattened() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 36)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)), BernoulliConv2d(1, 4, 3), nn.BatchNorm2d(4), Sign(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    compared(settled(net, x), x)


def test_an_sbn_is_converted_whose_one_unit_stands_behind_each_layer() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 12)
    layers = [nn.Sequential(BernoulliLinear(m, n, bias=False), nn.BatchNorm1d(n))
              for m, n in ((12, 20), (20, 30))]  # fmt: skip
    net = nn.Sequential(SBN(*layers), nn.Linear(30, 5))
    settled(net, x)
    compared(net, x)
    kinds = [layer.kind for layer in packed.convert(net).layers]
    assert kinds == ["linear", "norm", "sign", "linear", "threshold", "linear", "bias"]


def test_weights_of_torch_that_are_signs_are_bits_and_others_are_not() -> None:
    torch.manual_seed(0)
    signs, numbers = nn.Linear(9, 9, bias=False), nn.Linear(9, 9, bias=False)
    signs.weight.data = signs.weight.data.sign()
    net = nn.Sequential(Sign(), signs, Sign(), numbers, Sign(), nn.Linear(9, 2))
    first, second, _ = (m for m in packed.convert(net).layers if m.kind == "linear")
    assert set(first.arrays) == {"bits"} and set(second.arrays) == {"weight"}
    compared(set_mode(net, "sign"), torch.randn(100, 9))


def test_the_network_of_the_book_predicts_the_same_on_every_image_of_the_package() -> None:
    from sbnlib import data
    from sbnlib.experiments.binary_net import load_net

    net, images = load_net(NETWORK), data.load("fashion-mnist-4000").test.inputs
    model = packed.convert(net)
    with torch.no_grad():
        expected = net(images)
    assert (model(images.numpy()).argmax(1) == expected.argmax(1).numpy()).all()
    weights = sum(a.nbytes for m in model.layers for name, a in m.arrays.items() if name == "bits")
    assert weights == 512 * (13 + 8) * 8 and model.nbytes < 120_000


def test_the_choice_of_products_is_said(tmp_path: Path) -> None:
    for backend in (None, "int8", "numpy"):
        model = packed.convert(dense(), backend=backend)
        assert model.backend == (backend or packed.best())
        assert f"products of signs by {model.backend}\n" in repr(model)
        model.save(tmp_path / "net.npz")
        again = packed.load(tmp_path / "net.npz", backend=backend)
        assert repr(again) == repr(model)


def test_the_network_that_is_converted_stays_as_it_was() -> None:
    net = dense().train()
    before = {name: value.clone() for name, value in net.state_dict().items()
              if isinstance(value, Tensor)}  # fmt: skip
    packed.convert(net)
    assert net.training and net[0].mode == "sample"
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_saved_model_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 20)
    model = packed.convert(settled(dense(), x))
    model.save(tmp_path / "m.npz")
    for backend in ("int8", "numpy", None):
        found = packed.load(tmp_path / "m.npz", backend=backend)(x.numpy())
        assert (found == model(x.numpy())).all()


# Thresholds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_threshold_is_where_torch_changes_its_mind(dtype: torch.dtype) -> None:
    """Every unit at every sum; scales of both signs and 0, ties at 0 among them."""
    torch.manual_seed(0)
    n, units = 21, 400
    linear, norm = BernoulliLinear(n, units, bias=False), nn.BatchNorm1d(units)
    norm.running_mean = torch.randint(-6, 7, (units,)).float()  # ties: a sum that is the mean
    norm.running_var = torch.rand(units) * 9
    norm.weight.data = torch.randn(units)
    norm.weight.data[:40] = 0
    norm.bias.data = torch.where(torch.arange(units) % 3 == 0, 0.0, 1.0) * torch.randn(units) * 2
    net = set_mode(nn.Sequential(Sign(), linear, norm, Sign()), "sign").eval().to(dtype)
    _, _, threshold = packed.convert(net).layers
    at, up = threshold.arrays["at"], threshold.arrays["up"]
    sums = np.arange(-n, n + 1)
    with torch.no_grad():
        own = norm(torch.tensor(sums, dtype=dtype)[:, None].repeat(1, units)).numpy() >= 0
    assert (((sums[:, None] >= at) == up) == own).all()
    ties = (torch.tensor(sums)[:, None] == norm.running_mean) & (norm.bias == 0)
    assert ties.any(0).sum() > 20
    assert (~up).sum() > 50 and ((at == -n) & up).any() and ((at == -n) & ~up).any()


def test_a_bias_and_two_norms_go_into_one_threshold() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 20)
    net = nn.Sequential(
        Sign(), BernoulliLinear(20, 30), nn.BatchNorm1d(30), nn.BatchNorm1d(30, affine=False),
        Sign(), nn.Linear(30, 3),
    )  # fmt: skip
    net[1].bias.data = 5 * torch.randn(30)  # of the size of the sums
    compared(settled(net, x), x)
    assert [m.kind for m in packed.convert(net).layers][1:3] == ["linear", "threshold"]


def test_a_norm_of_signs_makes_real_inputs_of_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 20)
    net = nn.Sequential(
        Sign(), nn.BatchNorm1d(20), BernoulliLinear(20, 30), nn.BatchNorm1d(30), Sign(),
        nn.Linear(30, 3),
    )  # fmt: skip
    compared(settled(net, x), x)
    assert "threshold" not in [m.kind for m in packed.convert(net).layers]


def test_sums_of_real_inputs_have_no_threshold() -> None:
    net = nn.Sequential(BernoulliLinear(20, 30), nn.BatchNorm1d(30), Sign(), nn.Linear(30, 3))
    assert [m.kind for m in packed.convert(net).layers] == [
        "linear", "bias", "norm", "sign", "linear", "bias"
    ]  # fmt: skip


# What is refused ---------------------------------------------------------------------------------


def named(module: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(a=Sign(), odd=module))


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(0), nn.Unflatten(2, (2, 2)), nn.LayerNorm(4),
        nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.ConstantPad2d(1, 0.5), nn.ConstantPad2d((1, 0, 1, 1), 1.0), nn.ConstantPad2d(1, 1.0),
        nn.BatchNorm1d(4, track_running_stats=False),
    ],
    ids=lambda module: str(module)[:30],
)  # fmt: skip
def test_what_cannot_be_packed_is_refused_by_its_name(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"net: odd \({type(module).__name__}"):
        packed.convert(named(module))


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(TypeError, match="net must be a module, got int"):
        packed.convert(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend must be one of"):
        packed.convert(dense(), backend="gpu")


def test_a_padding_before_a_padding_is_refused() -> None:
    net = nn.Sequential(Sign(), nn.ConstantPad2d(1, 1.0), nn.Conv2d(2, 2, 3, padding=1))
    with pytest.raises(ValueError, match=r"net: 2 \(Conv2d"):
        packed.convert(net)
