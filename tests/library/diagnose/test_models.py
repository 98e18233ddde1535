"""What is found in whole models: which units, where, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from binary_models import MODELS, Bin, Case, Curve, PlainMLP, Unit, place
from torch import Tensor, nn
from traces import changes, near_law, state, strict

from sbnlib import diagnose
from sbnlib.nn import Sign
from sbnlib.noise import Logistic, Noise

models = pytest.mark.parametrize("name", MODELS)
binary = pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case.units])

#: From a model's own data, or from a replay of its unit.
LOOSE = 0.03


@dataclass(frozen=True)
class Seen:
    report: Any
    changed: list[str]


@cache
def seen(name: str, seed: int = 1, with_loss: bool = True) -> Seen:
    """The report of a model and what making it has changed; gradients lie there beforehand."""
    case = MODELS[name]
    net, x = case.build()
    for p in net.parameters():
        p.grad = torch.full_like(p, 0.25)
    torch.manual_seed(seed)
    before, kept = state(net), x.clone()
    report = diagnose(net, x, case.loss if with_loss else None)
    assert torch.equal(x, kept) and x.grad is None
    return Seen(report, changes(before, state(net)))


def expected_units(case: Case, found: int) -> tuple[Unit, ...]:
    return case.units[:found] if case.counts else case.units


def clipped(slope: Curve, a: Tensor) -> tuple[float, float]:
    """The shares of entries, and of positions behind the first axis, as the contract has them."""
    h = slope(a.detach().double().numpy())
    small = (h <= 0) | (h < h.max() / 1000)
    return float(small.mean()), float(small.all(0).mean())


@pytest.mark.slow
@models
def test_units_are_found(name: str) -> None:
    case, units = MODELS[name], seen(name).report.units
    assert len(units) in (case.counts or {len(case.units)}), [unit.where for unit in units]


@pytest.mark.slow
@binary
def test_places_of_units(name: str) -> None:
    units = seen(name).report.units
    for unit, wanted in zip(units, expected_units(MODELS[name], len(units)), strict=True):
        assert unit.name
        if wanted.mark:
            assert unit.where.endswith(place(wanted.mark)), (unit.where, place(wanted.mark))


def codes_of(case: Case, index: int) -> frozenset[str]:
    """Those of the unit, and those that follow from the data by a second forward pass."""
    unit, more = case.units[index], set()
    if case.by_hand and unit.slope:
        net, x = case.build()
        share, dead = clipped(unit.slope, case.by_hand(net, x)[index])
        more = {"clipped"} if share > 0.5 else set()
        more |= {"dead"} if dead > 0 else set()
    return unit.codes | more


@pytest.mark.slow
@binary
def test_codes(name: str) -> None:
    case, units = MODELS[name], seen(name).report.units
    for index, unit in enumerate(units):
        wanted = codes_of(case, index)
        assert unit.codes == wanted, f"unit {index}: {unit.codes ^ wanted} is missing or surplus"


def off(key: str, found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Noise):
        return not near_law(found, wanted, LOOSE)
    if isinstance(wanted, float):
        return found is None or found != pytest.approx(wanted, rel=LOOSE)
    return found != wanted


@pytest.mark.slow
@binary
def test_attributes(name: str) -> None:
    units = seen(name).report.units
    wrong = [
        f"unit {index}, {key}: {getattr(unit, key)!r}, not {value!r}"
        for index, (unit, wanted) in enumerate(
            zip(units, expected_units(MODELS[name], len(units)), strict=True)
        )
        for key, value in wanted.expected.items()
        if off(key, getattr(unit, key), value)
    ]
    assert not wrong, "; ".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case.by_hand])
def test_clipped_and_dead(name: str) -> None:
    case, units = MODELS[name], seen(name).report.units
    net, x = case.build()
    pre = case.by_hand(net, x)
    if len(units) < len(pre):  # one report for all steps: over all or one of them
        return
    for index, (unit, wanted, a) in enumerate(zip(units, case.units, pre, strict=True)):
        share, dead = clipped(wanted.slope, a)
        # A pre-activation beside an edge may round to its other side
        assert unit.clipped == pytest.approx(share, abs=2 / a.numel()), index
        # The rows of a weight are no cases: it has no units that are dead
        wanted = None if isinstance(a, nn.Parameter) else pytest.approx(dead, abs=1 / a[0].numel())
        assert unit.dead == wanted, index


@pytest.mark.slow
@binary
def test_factors_compound(name: str) -> None:
    units = seen(name).report.units
    for unit, wanted in zip(units, expected_units(MODELS[name], len(units)), strict=True):
        if wanted.compounding is not None:
            assert unit.compounding == pytest.approx(wanted.compounding, rel=3 * LOOSE)


def test_a_place_is_that_of_the_innermost_line() -> None:
    """Where a function of one's own binarizes, its line is told, and not the one that calls it."""

    def binarized(a: Tensor) -> Tensor:
        return Bin.apply(a)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(20, 16)

        def forward(self, x: Tensor) -> Tensor:
            return binarized(self.layer(x))

    (unit,) = diagnose(Net(), torch.randn(16, 20)).units
    assert unit.where == f"{Path(__file__).name}:{binarized.__code__.co_firstlineno + 1}"


@pytest.mark.parametrize("bits", [False, True])
def test_what_is_passed(bits: bool) -> None:
    """Of a gradient u, which is the loss's weight of a state, h u: mean (h u)^2 over mean u^2."""
    torch.manual_seed(0)
    layer, x, u = nn.Linear(20, 16), torch.randn(64, 20), torch.linspace(-1, 3, 16)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            a = self.layer(x)
            m = torch.tanh(a) / (2 if bits else 1)
            return torch.where(a >= 0, 1.0, 0.0 if bits else -1.0) + (m - m.detach())

    (unit,) = diagnose(Net(), x, lambda states: (states * u).sum(1)).units
    h = np.cosh(layer(x).detach().double().numpy()) ** -2 / (2 if bits else 1)
    weights = u.double().numpy()
    assert unit.passed == pytest.approx(((h * weights) ** 2).mean() / (weights**2).mean(), rel=1e-4)
    assert unit.gain == pytest.approx((h**2).mean() * (4 if bits else 1), rel=1e-4)
    (without,) = diagnose(Net(), x).units
    assert without.passed is None


@pytest.mark.parametrize("name", ["tanh", "dropout"])
def test_nets_without_units(name: str) -> None:
    report = seen(name).report
    assert report.units == ()
    assert [finding.code for finding in report.findings] == ["no-units"]
    assert all(isinstance(sentence, str) and sentence for sentence in report.limits)


@models
def test_looking_leaves_no_trace(name: str) -> None:
    assert seen(name).changed == []


@pytest.mark.slow
@models
def test_reports_are_the_same_again(name: str) -> None:
    first = seen(name).report.json()
    assert isinstance(strict(first), dict)
    assert first == diagnosed_again(name)


def diagnosed_again(name: str) -> str:
    """In the same state of torch's generator: dropout and units of the model draw from it."""
    case = MODELS[name]
    net, x = case.build()
    torch.manual_seed(1)
    return diagnose(net, x, case.loss).json()


@pytest.mark.slow
@models
def test_units_are_found_without_a_loss(name: str) -> None:
    with_loss, without = seen(name).report, seen(name, with_loss=False).report
    assert [u.where for u in without.units] == [u.where for u in with_loss.units]
    assert seen(name, with_loss=False).changed == []


@models
def test_reports_can_be_read(name: str) -> None:
    report = seen(name).report
    assert str(report).strip()
    for unit in report.units:
        assert unit.verdict.strip() and str(unit).strip() and strict(unit.json())


@pytest.mark.parametrize("name", ["steep", "own", "tanh"])
def test_charts(name: str) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure = seen(name).report.chart()
    figure.canvas.draw()
    pyplot.close(figure)


# --------------------------------------------------------------------------- how models are called


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


class Frozen(PlainMLP):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(20, 32), nn.Linear(8, 32)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"code": Bin.apply(self.left(x) + self.right(y))}


def test_a_model_that_raises_is_a_finding() -> None:
    report = diagnose(Failing(), torch.ones(4, 3))
    assert "raises" in {finding.code for finding in report.findings}
    assert "mat1 and mat2" in str(report)


def test_a_loss_that_raises_is_a_finding() -> None:
    net, x = MODELS["mlp"].build()
    report = diagnose(net, x, lambda logits: logits @ logits)
    assert "raises" in {finding.code for finding in report.findings}


def test_a_model_without_a_graph() -> None:
    report = diagnose(Frozen(), torch.randn(64, 20), lambda logits: logits.square().mean())
    assert "no-gradient" in {finding.code for finding in report.findings}


def test_several_inputs_and_an_output_that_is_no_tensor() -> None:
    inputs = (torch.randn(64, 20), torch.randn(64, 8))
    report = diagnose(TwoInputs(), inputs, lambda out: out["code"].mean(1).square())
    assert [unit.codes for unit in report.units] == [{"deterministic"}]


def test_flags_stay_where_they_are_mixed() -> None:
    net, x = MODELS["mlp"].build()
    net.bn1.eval()
    net.fc1.weight.requires_grad_(False)
    before = state(net)
    report = diagnose(net, x, MODELS["mlp"].loss)
    assert changes(before, state(net)) == []
    assert len(report.units) == 2
    assert all(p.grad is None for p in net.parameters())


def test_evaluation_is_a_way_to_call_a_model_too() -> None:
    net, x = MODELS["mlp"].build()
    report = diagnose(net.eval(), x, MODELS["mlp"].loss)
    a = (x @ net.fc1.weight.T + net.fc1.bias) / np.sqrt(1 + net.bn1.eps)  # moments 0 and 1
    share, _ = clipped(MODELS["mlp"].units[0].slope, a)
    assert report.units[0].clipped == pytest.approx(share, abs=2 / a.numel())
    assert not net.training


def test_the_callers_grad_mode_is_no_matter() -> None:
    net, x = MODELS["mlp"].build()
    with torch.no_grad():
        report = diagnose(net, x, MODELS["mlp"].loss)
        assert not torch.is_grad_enabled()
    assert len(report.units) == 2


@pytest.mark.parametrize("module", [3, "net", None])
def test_what_is_no_model_is_refused(module: object) -> None:
    with pytest.raises(TypeError, match="module"):
        diagnose(module, torch.ones(2, 3))


@pytest.mark.slow
def test_a_fused_unit_has_the_name_of_its_kind() -> None:
    unit = Sign(sampler="fused")
    net = nn.Sequential(nn.Linear(8, 16), unit, nn.Linear(16, 2))
    (report,) = diagnose(net, torch.randn(32, 8)).units
    assert report.name == "1. Sign" and report.noise == Logistic()
