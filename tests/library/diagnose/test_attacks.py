"""Units and models that were made to mislead the doctor, each of which once did.

What is expected is from pen and paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from binary_models import Bin
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sbnlib import diagnose, diagnose_unit
from sbnlib.noise import Logistic, Uniform

Slope = Callable[[Tensor], Tensor]


def decided(h: Slope, at: float = 0.0, low: float = -1.0, high: float = 1.0) -> Slope:
    """A state that changes at a point, with a slope."""

    def unit(a: Tensor) -> Tensor:
        return torch.where(a >= at, high, low).to(a.dtype) + h(a.detach()) * (a - a.detach())

    return unit


def drawn(up: Slope, h: Slope) -> Slope:
    """A coin with a probability of +1, and a slope."""

    def unit(a: Tensor) -> Tensor:
        x = torch.where(torch.rand_like(a) < up(a.detach()), 1.0, -1.0).to(a.dtype)
        return x + h(a.detach()) * (a - a.detach())

    return unit


def bell(scale: float, at: float = 0.0) -> Slope:
    return lambda a: 2 * torch.sigmoid((a - at) / scale) * torch.sigmoid((at - a) / scale) / scale


def share(scale: float, at: float = 0.0) -> Slope:
    return lambda a: torch.sigmoid((a - at) / scale)


# ------------------------------------------------------------------------------------ narrow, far

PLACES = [(1e-6, 0.0), (1e-3, 0.0), (0.01, 1e-4), (30.0, 0.0), (1e4, 0.0), (1.0, 50.0),
          (0.01, 50.0), (1.0, -50.0), (0.01, 3.0)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "at"), PLACES)
def test_a_noise_is_found_however_narrow_or_far(scale: float, at: float) -> None:
    report = diagnose_unit(drawn(share(scale, at), bell(scale, at)))
    assert report.codes == {"samples-in-eval"}
    assert isinstance(report.noise, Logistic) and report.noise.scale == pytest.approx(scale, 0.01)
    assert report.threshold == pytest.approx(at, abs=0.03 * scale)
    assert report.integral == pytest.approx(2, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "at"), PLACES)
def test_a_slope_is_integrated_however_narrow_or_far(scale: float, at: float) -> None:
    report = diagnose_unit(decided(bell(scale, at), at))
    assert report.codes == {"deterministic"}
    assert report.mismatch == pytest.approx(1, rel=1e-3)
    assert report.slope_noise is not None and report.scale == pytest.approx(scale, rel=0.01)


def test_a_slope_that_lies_apart_is_shifted() -> None:
    report = diagnose_unit(decided(lambda a: 2.0 * ((a > 5) & (a < 6))))
    assert report.codes == {"deterministic", "shifted"}
    assert report.integral == pytest.approx(2, rel=1e-3) and report.slope_noise == Uniform(0.5)


@pytest.mark.parametrize(("power", "integral"), [(0.9, math.inf), (1.0, math.inf), (1.03, math.inf),
                                                 (1.07, 2 / 0.07), (1.2, 10.0), (1.5, 4.0),
                                                 (3.0, 1.0)])  # fmt: skip
def test_heavy_tails(power: float, integral: float) -> None:
    # the integral of (1 + |a|)^-k is 2/(k - 1) for k > 1; up to 1.05 it counts as infinite
    report = diagnose_unit(decided(lambda a: (1 + a.abs()) ** -power))
    assert report.integral == pytest.approx(integral, rel=2e-3)


def test_two_tails_that_differ() -> None:
    """(1 + a)^-1.2 to the right, which is 5 in all, and a box of 1 to the left."""
    report = diagnose_unit(decided(lambda a: torch.where(a > 0, (1 + a.abs()) ** -1.2, a > -1)))
    assert report.integral == pytest.approx(6, rel=2e-3)
    assert report.codes == {"deterministic", "factor", "uneven"}


# -------------------------------------------------------------------------------- odd probabilities


@pytest.mark.slow
def test_a_coin_that_is_never_sure() -> None:
    # P from 0.05 to 0.95: the mean goes from -0.9 to 0.9, so the whole slope is 2/1.8 too large
    report = diagnose_unit(drawn(lambda a: 0.05 + 0.9 * torch.sigmoid(a), bell(1.0)))
    assert report.mismatch == pytest.approx(1 / 0.9, rel=0.01)
    assert report.noise is None and "keep a probability" in report.why
    fitting = drawn(lambda a: 0.05 + 0.9 * torch.sigmoid(a), lambda a: 0.9 * bell(1.0)(a))
    assert diagnose_unit(fitting).mismatch == pytest.approx(1, rel=0.01)


def test_a_right_unit_that_decreases_is_right() -> None:
    report = diagnose_unit(drawn(lambda a: torch.sigmoid(-a), lambda a: -bell(1.0)(a)))
    assert report.codes == {"samples-in-eval"}
    assert (report.noise, report.nonnegative) == (Logistic(), False)
    assert report.mismatch == pytest.approx(1, rel=1e-3)


def test_a_drawn_unit_of_three_states() -> None:
    # round(a + z), z uniform on a step: the mean is a, so the slope 1 is right between the ends
    def unit(a: Tensor) -> Tensor:
        x = torch.round((a + torch.rand_like(a) - 0.5).clamp(-1, 1))
        m = functional.hardtanh(a)
        return x + (m - m.detach())

    report = diagnose_unit(unit)
    assert report.codes == {"levels", "samples-in-eval"}
    assert report.coding == "-1, 0, 1" and report.mismatch == pytest.approx(1, rel=1e-3)
    assert report.noise is None and report.why.startswith("It has 3 states")


@pytest.mark.parametrize("what", ["all entries", "all units of a row", "all rows"])
def test_one_draw_for_many(what: str) -> None:
    def unit(a: Tensor) -> Tensor:
        table = a if a.dim() > 1 else a[:, None]
        rows, columns = table.shape[0], table.shape[-1]
        size = {"all entries": (1, 1), "all units of a row": (rows, 1), "all rows": (1, columns)}
        u = torch.rand(size[what] if a.dim() > 1 or what == "all entries" else (rows, 1))
        x = torch.where(u.to(a.dtype) < torch.sigmoid(table.detach()), 1.0, -1.0).to(a.dtype)
        m = torch.tanh(a / 2)
        return x.reshape(a.shape) + (m - m.detach())

    report = diagnose_unit(unit)
    assert report.codes == {"samples-in-eval", "shared-draw"}
    assert what in str(report)


# ------------------------------------------------------------------------------- what nobody wants


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return torch.sign(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad[:2]


def needs_more(a: Tensor, *, k: float) -> Tensor:
    return k * a


@pytest.mark.parametrize(
    ("unit", "code"),
    [
        (lambda a: a.to_sparse(), "no-tensor"),
        (lambda a: torch.complex(a, a), "no-tensor"),
        (lambda a: "x", "no-tensor"),
        (lambda a: torch.sign(a[:1]).expand_as(a), "not-elementwise"),
        (lambda a: torch.tensor([1.0 if v.item() >= 0 else -1.0 for v in a.flatten()]).view_as(a),
         "no-slope"),
        (needs_more, "raises"),
        (BadBackward, "raises"),
        (nn.Sequential(nn.BatchNorm1d(1), nn.Hardtanh()), "not-elementwise"),
    ],
)  # fmt: skip
def test_what_is_no_unit_is_a_finding(unit: Any, code: str) -> None:
    report = diagnose_unit(unit)
    assert code in report.codes and str(report) and report.json()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it does not fail")
def test_what_needs_a_graphics_card_is_a_finding() -> None:
    report = diagnose_unit(lambda a: torch.sign(a.cuda()))
    assert report.codes == {"raises"} and "CUDA" in str(report)


def test_states_in_half_precision_are_linear_in_the_gradient() -> None:
    def unit(a: Tensor) -> Tensor:
        m = functional.hardtanh(a)
        return torch.where(a >= 0, 1.0, -1.0).half() + (m - m.detach()).half()

    assert "gradient" not in diagnose_unit(unit).codes


# ------------------------------------------------------------------------------------------ models


class Net(nn.Module):
    """Two linear layers and whatever comes between."""

    def __init__(self, between: Slope, units: int = 64, out: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.between = nn.Linear(20, units), nn.Linear(units, out), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def inputs(rows: int = 32) -> Tensor:
    return torch.randn(rows, 20, generator=torch.Generator().manual_seed(1))


def chosen(a: Tensor) -> Tensor:
    p = a.softmax(-1)
    return functional.one_hot(p.argmax(-1), a.shape[-1]).to(p.dtype) + (p - p.detach())


@pytest.mark.parametrize(
    "between",
    [
        torch.relu,
        functional.gelu,
        lambda a: functional.dropout(torch.relu(a), 0.5),
        lambda a: functional.hardtanh(1e6 * a),  # saturated on these inputs
        lambda a: torch.relu(a - 100),  # dead on these inputs
        lambda a: torch.relu(a) * (torch.rand(a.shape) < 0.5),
        lambda a: functional.gumbel_softmax(a, hard=True),
        chosen,
        lambda a: a.softmax(-1),
        lambda a: a.clamp(0, 1),
    ],
)
def test_what_is_not_binary_is_not_found(between: Slope) -> None:
    assert diagnose(Net(between), inputs()).codes == {"no-units"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpoints_do_not_mislead(reentrant: bool) -> None:
    def between(a: Tensor) -> Tensor:
        return checkpoint(Bin.apply, a, use_reentrant=reentrant)

    (unit,) = diagnose(Net(between), inputs()).units
    assert unit.codes == {"deterministic"} and unit.slope_noise == Uniform()
    # and the function of torch is there again
    a = torch.randn(3, requires_grad=True)
    checkpoint(torch.sin, a, use_reentrant=reentrant).sum().backward()
    assert torch.allclose(a.grad, a.detach().cos())


def test_two_units_on_one_pre_activation_are_two() -> None:
    def between(a: Tensor) -> Tensor:
        m = 3 * torch.tanh(a)
        return Bin.apply(a) + (torch.where(a >= 0, 1.0, -1.0) + (m - m.detach()))

    units = diagnose(Net(between), inputs()).units
    assert sorted(round(unit.mismatch, 2) for unit in units) == [1, 3]


def test_a_unit_used_twice_is_one() -> None:
    def between(a: Tensor) -> Tensor:
        x = Bin.apply(a)
        return functional.dropout(x, 0.2) + 0.5 * x

    assert len(diagnose(Net(between), inputs()).units) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "units"), [(1, 64), (4, 3), (2, 5)])
def test_small_layers_are_seen(rows: int, units: int) -> None:
    (unit,) = diagnose(Net(Bin.apply, units), inputs(rows)).units
    assert unit.codes - {"dead"} == {"deterministic"} and unit.mismatch == pytest.approx(1, 1e-3)


def in_its_dtype(a: Tensor) -> Tensor:
    m = functional.hardtanh(a)
    return torch.where(a >= 0, 1.0, -1.0).to(a.dtype) + (m - m.detach())


def test_other_precisions() -> None:
    (half,) = diagnose(Net(in_its_dtype).bfloat16(), inputs().bfloat16()).units
    (double,) = diagnose(Net(in_its_dtype).double(), inputs().double()).units
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (cast,) = diagnose(Net(in_its_dtype), inputs()).units
    for unit in (half, double, cast):
        assert unit.codes == {"deterministic"} and unit.mismatch == pytest.approx(1, 0.01)


def test_a_temperature_belongs_to_the_unit() -> None:
    (unit,) = diagnose(Net(lambda a: Bin.apply(a / 0.1)), inputs()).units
    assert unit.slope_noise == Uniform(0.1) and unit.mismatch == pytest.approx(1, 1e-3)


def test_a_model_that_fails_when_it_is_run_again() -> None:
    runs: list[int] = []  # what a module holds would be put back between runs

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(Bin.apply)

        def forward(self, x: Tensor) -> Tensor:
            runs.append(1)
            if len(runs) > 1:
                raise RuntimeError("no more")
            return self.net(x)

    (unit,) = diagnose(Once(), inputs()).units
    assert unit.codes == {"raises"}


def test_a_model_without_parameters() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Bin.apply(x)

    torch.manual_seed(0)
    x = torch.randn(16, 20)
    report = diagnose(Bare(), x)
    assert [unit.codes for unit in report.units] == [{"deterministic"}]
    assert report.codes == {"deterministic"} and not report.findings and not x.requires_grad


def test_a_quantized_tensor_is_no_state() -> None:
    def unit(a: Tensor) -> Tensor:
        return torch.quantize_per_tensor(a.float(), 0.1, 0, torch.qint8)

    assert diagnose_unit(unit).codes == {"no-tensor"}
