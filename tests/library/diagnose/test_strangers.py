"""Verdicts on units and models as strangers write them, each of which once was another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from binary_models import Bin
from probes import hard_sign
from strangers import Unit, mlp, rows, squares, ste, two_layers
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from traces import changes, state

from sbnlib import diagnose, diagnose_unit
from sbnlib.diagnose import watching

# -------------------------------------------------------------- verdicts: units of any kind


class Given(Function):
    """States and their slope, worked out beforehand."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (h,) = ctx.saved_tensors
        return grad * h, None, None


def given(states: Callable[[Tensor], Tensor], h: Callable[[Tensor], Tensor]) -> Any:
    return lambda a: Given.apply(a, states(a.detach()).to(a), h(a.detach()).to(a))


def drawn(p: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda a: torch.where(torch.rand_like(a) < p(a), 1.0, -1.0)


def logistic(a: Tensor) -> Tensor:
    """Twice the density."""
    p = torch.sigmoid(a)
    return 2 * p * (1 - p)


def box(a: Tensor) -> Tensor:
    return (a.abs() < 1).to(a)


def falling(a: Tensor) -> Tensor:
    return torch.sigmoid(-a)


def rare_flips(a: Tensor) -> Tensor:
    return hard_sign(a) * torch.where(torch.rand_like(a) < 0.01, -1.0, 1.0)


own_draws = torch.Generator().manual_seed(3)


def own_generator(a: Tensor) -> Tensor:
    p = torch.sigmoid(a)
    x = (torch.rand(a.shape, generator=own_draws, dtype=a.dtype) < p).to(a)
    return x + (p - p.detach())


def by_position(a: Tensor) -> Tensor:
    """Dithered with the same numbers each time."""
    noise = (torch.sin(12.9898 * torch.arange(a.numel())) * 43758.5453).frac().abs()
    return ste(a + (noise.view(a.shape).to(a) - 0.5), torch.tanh(a))


D, S = "deterministic", "samples-in-eval"
VERDICTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "right": (given(drawn(torch.sigmoid), logistic), S),
    "falls as its slope says": (given(drawn(falling), lambda a: -logistic(a)), S),
    "falls against its slope": (given(drawn(falling), logistic), f"{S} wrong-sign"),
    "other law in one tail": (
        given(drawn(lambda a: torch.where(a > 4, 1.0, torch.sigmoid(a))), logistic), f"{S} law"),
    "uniforms of eight bits": (
        given(lambda a: torch.where(torch.rand(a.shape, dtype=torch.bfloat16) < torch.sigmoid(a),
                                    1.0, -1.0), logistic), f"{S} law"),
    "flips one in a hundred": (given(rare_flips, box), f"{S} kept factor"),
    "own generator": (own_generator, S),
    "the same dither each time": (by_position, "not-elementwise"),
    "odd slope": (given(hard_sign, lambda a: a * box(a)), f"{D} factor negative uneven"),
    "open at one end": (given(hard_sign, lambda a: ((a >= -1) & (a < 1)).to(a)), D),
    "bfloat16 inside": (lambda a: ste(a.bfloat16(), a.bfloat16().clamp(-1, 1)), D),
    "half inside": (lambda a: ste(a.half(), torch.tanh(a.half())).to(a), D),
    "dropout after the state": (nn.Sequential(Unit(), nn.Dropout(0.5)), "levels state-slope"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(name: str) -> None:
    unit, codes = VERDICTS[name]
    report = diagnose_unit(unit)
    assert report.codes - {"law"} == set(codes.split()) - {"law"}
    assert "law" in report.codes or "law" not in codes.split()
    if "law" in codes.split() or "wrong-sign" in codes.split():
        assert report.noise is None


class Thresholds(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(a - at)
        return hard_sign(a - at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return grad * (a.abs() <= 1), None


class OwnThresholds(nn.Module):
    """Each channel, or each entry of a row, with a threshold of its own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        at = torch.linspace(0.25, 2, torch.Size(shape).numel()).reshape(shape)
        self.at = nn.Parameter(at)

    def forward(self, a: Tensor) -> Tensor:
        return Thresholds.apply(a, self.at)


@pytest.mark.parametrize("shape", [(5,), (4, 1, 1), (4, 3, 3)])
def test_of_channels_that_differ_the_first_is_asked(shape: tuple[int, ...]) -> None:
    data = torch.randn(50, shape[0], *([3] * (len(shape) - 1)))
    report = diagnose_unit(OwnThresholds(*shape), data=data)
    assert {"channels", "deterministic"} <= report.codes <= {"channels", "deterministic", "dead",
                                                             "clipped"}  # fmt: skip
    assert report.threshold == pytest.approx(0.25, abs=1e-5)
    below = (data - OwnThresholds(*shape).at).abs() > 1
    assert report.clipped == pytest.approx(float(below.double().mean()))


def test_parameters_do_not_fit_by_chance() -> None:
    """One of as many entries as a trial has points would make the unit one of that shape."""
    for count in (23, 24, 29):
        assert diagnose_unit(OwnThresholds(count)).codes == {"raises"}


# ------------------------------------------------------------------ verdicts: what models hold


class Overwrites(nn.Linear):
    """Of the first released code: what comes in and the weight are overwritten by their signs."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 32:
            x.data = hard_sign(x.data)
        if not hasattr(self.weight, "org"):
            self.weight.org = self.weight.data.clone()
        self.weight.data = hard_sign(self.weight.org)
        return functional.linear(x, self.weight, self.bias)


def test_signs_written_over_data_are_seen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Overwrites(32, 64), nn.BatchNorm1d(64), nn.Hardtanh(), Overwrites(64, 10))
    before = state(model)
    weight, hidden, other = diagnose(model, rows(), squares).units
    for unit in (weight, other):  # the gradient of the sign goes to the weight as it is
        assert unit.codes == {"deterministic", "changes-input", "infinite"}
    assert hidden.codes == {"deterministic"}
    assert repr(hidden.slope_noise) == "Uniform(scale=1)"
    assert changes(before, state(model)) == []
    assert not hasattr(model[0].weight, "org")


def model_codes(module: nn.Module, x: Tensor | None = None) -> list[set[str]]:
    return [set(unit.codes) for unit in diagnose(module, rows() if x is None else x).units]


@pytest.mark.parametrize("parts", [
    (nn.Dropout(0.5), Unit()),
    (Unit(), nn.Dropout(0.5)),
    (nn.Tanh(), nn.Dropout(0.5), Unit(), nn.Dropout(0.5)),
])  # fmt: skip
def test_dropout_is_no_part_of_a_unit(parts: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), *parts, nn.Linear(64, 10))
    assert model_codes(model) == [{"deterministic"}]


@pytest.mark.slow
def test_channels_of_a_model_and_entries_of_a_channel() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(16, 3, 6, 6)
    for shape in ((4, 1, 1), (4, 6, 6)):
        model = nn.Sequential(layer, OwnThresholds(*shape))
        (unit,) = diagnose(model, x).units
        assert {"channels", "deterministic"} <= unit.codes
        assert unit.threshold == pytest.approx(0.25, abs=1e-5)


class Steep(Function):
    """The same lines of code with different numbers."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, k: float) -> Tensor:
        ctx.k = k
        ctx.save_for_backward(a)
        return hard_sign(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return grad * ctx.k * (1 - torch.tanh(ctx.k * a) ** 2), None


def test_one_line_with_different_numbers_is_different_units() -> None:
    model = two_layers(lambda self, a: sum(Steep.apply(a, k) for k in (1.0, 2.0, 1.0, 4.0)))
    scales = [unit.scale for unit in diagnose(model, rows()).units]
    assert scales == pytest.approx([0.5, 0.25, 0.5, 0.125], rel=2e-3)


class Spiking(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.a, self.b = steps, nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        membrane, out = torch.zeros(len(x), 64), torch.zeros(len(x), 10)
        for _ in range(self.steps):
            membrane = 0.9 * membrane + self.a(x)
            spikes = Bin.apply(membrane - 1)
            membrane, out = membrane - spikes.detach(), out + self.b(spikes)
        return out


@pytest.mark.slow
def test_a_unit_that_comes_again_is_examined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, runs = Spiking(40), []
    plain = model.forward
    monkeypatch.setattr(model, "forward", lambda x: runs.append(1) or plain(x))
    report = diagnose(model, rows(16))
    assert len(report.units) == 40
    assert len({unit.scale for unit in report.units}) == 1
    assert len(runs) < 200  # 80 for the first, two for each other


def test_of_heavy_layers_before_a_unit_the_results_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits, kept = watching.Product.fits, []
    monkeypatch.setattr(watching.Product, "fits",
                        lambda self, *args: kept.append(fits(self, *args)) or kept[-1])  # fmt: skip
    assert model_codes(mlp()) == [{"deterministic"}] * 2
    assert len(kept) > 40 and all(kept)


def test_code_that_looks_like_a_custom_layer_is_none() -> None:
    """Of an autograd Function nothing is known: where it mixes entries, the unit begins behind."""

    class Normalized(Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor) -> Tensor:
            return a / a.std(0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    model = two_layers(lambda self, a: Bin.apply(1.0 * Normalized.apply(a)))
    assert model_codes(model) == [{"deterministic"}]


@pytest.mark.slow
def test_a_relaxed_sample_is_a_unit_of_the_logit() -> None:
    """Not of the probability, or of the logit and its noise, which lie between."""

    def between(self: nn.Module, a: Tensor) -> Tensor:
        y = torch.distributions.RelaxedBernoulli(torch.tensor(0.5), logits=a).rsample()
        return (y > 0.5).float() - y.detach() + y

    (unit,) = diagnose(two_layers(between), rows()).units
    assert {"random-slope", "law"} <= unit.codes
    assert repr(unit.forward_noise) == "Logistic(scale=1)"
    assert unit.mismatch == pytest.approx(1, rel=0.01)


def test_tensors_are_made_where_the_caller_makes_them() -> None:
    made: list[str] = []

    def unit(a: Tensor) -> Tensor:
        made.append(torch.zeros(1).device.type)
        return ste(a, torch.tanh(a))

    torch.set_default_device("meta")
    try:
        report = diagnose_unit(unit)
    finally:
        torch.set_default_device("cpu")
    assert report.codes == {"deterministic"}
    assert set(made) == {"meta"}


def test_models_without_values() -> None:
    assert diagnose(mlp().to("meta"), rows().to("meta")).codes == {"raises"}
