"""The words of reports: each code, each number in a sentence, and advice that helps.

Numbers are from pen and paper, or counted in numpy.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from binary_models import MODELS
from probes import PROBES, hard_sign
from probes import with_slope_of as ste
from reports import report_of
from scipy import special
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from traces import strict

import sbnlib.diagnose
from sbnlib import diagnose, diagnose_unit
from sbnlib.diagnose import __main__ as command
from sbnlib.diagnose.integrals import around
from sbnlib.diagnose.report import ModelReport, UnitReport
from sbnlib.noise import Logistic

Unit = Callable[[Tensor], Tensor]


def step(a: Tensor) -> Tensor:
    return (a > 0).to(a)


def coin(p: Tensor) -> Tensor:
    return torch.where(torch.rand_like(p) < p, 1.0, -1.0).to(p)


class Given(Function):
    """States, and what the gradient that comes in becomes."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, states: Unit, backward: Callable[..., Tensor]) -> Tensor:
        x = states(a)
        ctx.save_for_backward(a, x)
        ctx.its = backward
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.its(grad, *ctx.saved_tensors), None, None


def given(states: Unit, backward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Unit:
    return lambda a: Given.apply(a, states, backward)


def with_slope(states: Unit, h: Unit) -> Unit:
    return given(states, lambda grad, a, x: grad * h(a))


def box(a: Tensor) -> Tensor:
    return (a.abs() < 1).to(a)


def on_the_line(s: float) -> Unit:
    """2f (1 + s x mu)/(2 P(x)), which for logistic noise is P(-x) (1 + s x mu)."""

    def backward(grad: Tensor, a: Tensor, x: Tensor) -> Tensor:
        return grad * torch.sigmoid(-x * a) * (1 + s * x * torch.tanh(a / 2))

    return given(lambda a: coin(torch.sigmoid(a)), backward)


def never_sure(low: float, high: float, height: float) -> Unit:
    """P from low to high, along a logistic law; the slope's integral is twice the height."""
    return lambda a: ste(coin(low + (high - low) * torch.sigmoid(a)), height * torch.tanh(a / 2))


def clipping(most: float, slope: float, states: Unit = hard_sign) -> Unit:
    return given(states, lambda grad, a, x: grad.clamp(-most, most) * slope * box(a))


class Channels(nn.Module):
    """A threshold for each of two units, which makes it one of rows of two."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("at", torch.tensor([0.0, 1.0]))

    def forward(self, a: Tensor) -> Tensor:
        b = (a - self.at).unflatten(-1, (2,))
        return ste(hard_sign(b), functional.hardtanh(b)).flatten(-1)


class Needy(nn.Module):
    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, a: Tensor) -> Tensor:
        return ste(hard_sign(a), functional.hardtanh(a / self.width))


class OtherInEval(nn.Module):
    def __init__(self, slope: float = 2.0) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, a: Tensor) -> Tensor:
        return ste(hard_sign(a), functional.hardtanh(a) * (1 if self.training else self.slope))


class Net(nn.Module):
    """A linear layer, and what a function makes of it."""

    def __init__(self, unit: Unit, units: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.unit = nn.Linear(20, units), unit

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(self.layer(x))


def of_net(unit: Unit, rows: int = 64, units: int = 32, loss: Any = None) -> Any:
    x = torch.randn(rows, 20, generator=torch.Generator().manual_seed(1))
    return diagnose(Net(unit, units), x, loss)


def hashed(a: Tensor) -> Tensor:
    """A projection and its sign in one step, so that no pre-activation is seen."""

    class Hash(Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor) -> Tensor:
            return hard_sign(a[:, :16] - a[:, 16:])

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return torch.cat([grad, -grad], 1)

    return Hash.apply(a)


def of(unit: Any, **more: Any) -> Callable[[], Any]:
    return lambda: diagnose_unit(unit, name="it", **more)


def float_only(a: Tensor) -> Tensor:
    if a.dtype is not torch.float32:
        raise RuntimeError("expected Float")
    return ste(hard_sign(a), functional.hardtanh(a))


def needs_four_axes(a: Tensor) -> Tensor:
    if a.dim() != 4 or a.shape[1] != 3:
        raise ValueError("expected three channels")
    return ste(hard_sign(a), functional.hardtanh(a))


#: Outside of (-1, 1) lie 4 of 6, and the first column.
CLOSED = torch.tensor([[2.0, 1.5, -0.3], [-4.0, 0.1, 1.5]])
#: One of two columns.
HALF = torch.tensor([[2.0, 0.5], [-4.0, 0.1]])
#: 6 of 9, but no column.
OPEN = torch.tensor([[2.0, 0.5, -3.0], [-0.4, 1.1, -1.5], [-3.0, 1.4, 0.5]])

D, S = "deterministic", "samples-in-eval"

#: By code: a report that has it, and all its codes.
CASES: dict[str, tuple[Callable[[], Any], str]] = {
    D: (of(lambda a: ste(hard_sign(a), functional.hardtanh(a))), D),
    S: (of(lambda a: ste(coin(torch.sigmoid(a)), torch.tanh(a / 2))), S),
    "factor": (of(lambda a: ste(step(a), 0.1 * functional.hardtanh(a))), f"{D} factor"),
    "third-state": (of(lambda a: ste(torch.sign(a), functional.hardtanh(a))), f"{D} third-state"),
    "not-exact": (
        of(lambda a: hard_sign(a) + functional.hardtanh(a) - functional.hardtanh(a).detach()),
        f"{D} not-exact"),
    "not-monotone": (
        of(lambda a: ste(hard_sign(1 - a.abs()), torch.tanh(a))), f"{D} not-monotone"),
    "changes-input": (
        of(lambda a: ste(hard_sign(functional.hardtanh_(a)), functional.hardtanh(a))),
        f"{D} changes-input"),
    "shared-draw": (
        of(lambda a: ste(torch.where(torch.rand(1) < torch.sigmoid(a), 1.0, -1.0).to(a),
                         torch.tanh(a / 2))), f"{S} shared-draw"),
    "channels": (of(Channels(), data=OPEN[:, :2]), f"{D} channels"),
    "levels": (
        of(lambda a: ste(torch.round(a.clamp(-1, 1)), functional.hardtanh(a))), f"{D} levels"),
    "kept": (of(never_sure(0.05, 0.9, 0.85)), f"{S} kept"),
    "no-slope": (of(hard_sign), f"{D} no-slope"),
    "gradient": (of(clipping(1.0, 1.0)), f"{D} gradient"),
    "state-slope": (of(on_the_line(0.0)), f"{S} state-slope"),
    "random-slope": (
        of(with_slope(hard_sign, lambda a: 2 * box(a) * (torch.rand_like(a) < 0.5))),
        f"{D} random-slope"),
    "pole": (
        of(with_slope(hard_sign, lambda a: a.abs() ** (-1 / 3) * box(a) * 2 / 3)), f"{D} pole"),
    "infinite": (of(lambda a: ste(hard_sign(a), a)), f"{D} infinite"),
    "negative": (
        of(with_slope(hard_sign, lambda a: 2 * box(a) - 0.5 * box(a / 2))), f"{D} negative"),
    "uneven": (
        of(with_slope(hard_sign, lambda a: ((a > -1) & (a < 0)) + 0.5 * ((a > 0) & (a < 2)))),
        f"{D} uneven"),
    "wrong-sign": (of(lambda a: ste(hard_sign(a), -functional.hardtanh(a))), f"{D} wrong-sign"),
    "shifted": (of(lambda a: ste(hard_sign(a - 0.5), functional.hardtanh(a))), f"{D} shifted"),
    "law": (of(lambda a: ste(coin(torch.sigmoid(a)), functional.hardtanh(a))), f"{S} law"),
    "eval": (of(OtherInEval), f"{D} eval"),
    "prints": (
        of(lambda a: print("here") or ste(hard_sign(a), functional.hardtanh(a))), f"{D} prints"),
    "overflow": (
        of(with_slope(hard_sign, lambda a: 4 * a.mul(2).exp() / (1 + a.mul(2).exp()) ** 2)),
        f"{D} overflow"),
    "float32": (of(float_only), f"{D} float32"),
    "clipped": (
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a)), data=OPEN), f"{D} clipped"),
    "dead": (of(lambda a: ste(hard_sign(a), functional.hardtanh(a)), data=HALF), f"{D} dead"),
    "raises": (of(needs_four_axes), "raises"),
    "no-tensor": (of(lambda a: [a]), "no-tensor"),
    "shape": (of(lambda a: torch.stack([a, a], -1)), "shape"),
    "not-finite": (of(lambda a: hard_sign(a) / 0), "not-finite"),
    "not-elementwise": (of(lambda a: ste(hard_sign(a - a.mean()), a)), "not-elementwise"),
    "not-quantized": (of(torch.tanh), "not-quantized"),
    "constant": (of(lambda a: 0 * a + 3), "constant"),
    "no-gradient": (
        lambda: of_net(lambda a: ste(hard_sign(a), functional.hardtanh(a)),
                       loss=lambda out: out.detach()), f"{D} no-gradient"),
    "no-units": (lambda: of_net(torch.tanh), "no-units"),
    "unseen": (lambda: of_net(hashed), "unseen"),
}  # fmt: skip


@cache
def case(code: str) -> Any:
    return CASES[code][0]()


def finding(report: Any, code: str) -> Any:
    (found,) = (f for f in report.findings if f.code == code)
    return found


def words(report: Any, code: str) -> str:
    return finding(report, code).words


# ------------------------------------------------------------------------------------------ codes


def codes_in_the_sources() -> set[str]:
    folder = Path(command.__file__).parent
    sources = "".join(path.read_text("utf-8") for path in folder.glob("*.py"))
    return set(re.findall(r'\b(?:Finding|RefusedError)\(\s*"([^"]+)"', sources))


def test_every_code_is_in_the_table() -> None:
    assert codes_in_the_sources() == CASES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("code", CASES)
def test_codes(code: str) -> None:
    assert case(code).codes == set(CASES[code][1].split()) and code in case(code).codes


@pytest.mark.slow
@pytest.mark.parametrize("code", CASES)
def test_what_is_wrong_comes_first(code: str) -> None:
    report = case(code)
    for part in (report, *getattr(report, "units", ())):
        wrong = [f.wrong for f in part.findings]
        assert wrong == sorted(wrong, reverse=True)
        for found in part.findings:
            mark = "✗" if found.wrong else "·"
            assert str(found) == f"{mark} {found.code}: {found.words} {found.advice}".strip()
            assert found.words[0].isupper() or found.words[0].isdigit()
            assert found.words.endswith(".")
            assert not found.advice or found.advice[-1] in ".?"


# ---------------------------------------------------------------------------- numbers in sentences


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "m", "integral", "right", "factor", "cube"),
    [
        (step, lambda a: 0.1 * functional.hardtanh(a), "0.2", "1", "0.2", "0.008"),
        (hard_sign, lambda a: 3 * torch.tanh(a), "6", "2", "3", "27"),
        (lambda a: 0.7 * hard_sign(a), functional.hardtanh, "2", "1.4", "1.43", "2.92"),
        (lambda a: -hard_sign(a), lambda a: -2.5 * functional.hardtanh(a), "−5", "−2", "2.5",
         "15.6"),
        (lambda a: coin(torch.sigmoid(a)), lambda a: 4 * torch.sigmoid(a), "4", "2", "2", "8"),
    ],
)  # fmt: skip
def test_factors(x: Unit, m: Unit, integral: str, right: str, factor: str, cube: str) -> None:
    found = finding(diagnose_unit(lambda a: ste(x(a), m(a))), "factor")
    assert found.words == (
        f"The slope's integral is {integral} where {right} is right, so that a gradient is "
        f"multiplied by {factor} ({cube} in three layers)."
    )
    assert found.advice == f"Divide the slope by {factor}."
    mended = diagnose_unit(lambda a: ste(x(a), m(a) / float(factor)))
    assert "factor" not in mended.codes and mended.mismatch == pytest.approx(1, abs=0.01)


def test_a_factor_with_the_wrong_sign() -> None:
    found = finding(diagnose_unit(lambda a: ste(hard_sign(a), -2 * functional.hardtanh(a))),
                    "factor")  # fmt: skip
    assert found.words == ("The slope's integral is 2 times as large as the right one, so that a "
                           "gradient is multiplied by 2 (8 in three layers).")  # fmt: skip
    assert found.advice == "Divide the slope by 2."


def test_a_factor_of_a_unit_that_is_never_sure() -> None:
    """2 where 1.8 is right, (10/9)^3; of 200 000 draws the error of the way is a thousandth."""
    found = words(diagnose_unit(never_sure(0.05, 0.95, 1.0)), "factor")
    numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", found)]
    assert numbers == pytest.approx([2, 1.8, 1 / 0.9, 1 / 0.9**3], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "spread", "is_told"), [(1.0, 20.0, False), (1.5, 5.0, True)])
def test_factors_of_slopes_that_are_random(height: float, spread: float, is_told: bool) -> None:
    """Of a box that is 20 times noisier than high the mean's error is 6 %: 1 is not ruled out."""
    unit = with_slope(hard_sign, lambda a: height * box(a) * (1 + spread * torch.randn_like(a)))
    report = diagnose_unit(unit)
    assert abs(report.mismatch - 1) > 0.01  # which of a slope that is not random would be told
    assert report.codes == {D, "random-slope", *(["factor"] if is_told else [])}


@pytest.mark.parametrize(
    ("unit", "passes", "right"),
    [
        (clipping(1.0, 1.0), "1", "30"),
        (clipping(1.0, 0.5, step), "0.5", "15"),
        (clipping(0.1, 4.0), "0.4", "120"),
        (given(hard_sign, lambda grad, a, x: grad.sign() * box(a)), "1", "30000"),
        (
            given(hard_sign, lambda grad, a, x: grad * (1 - 0.1 * (grad.abs() > 10)) * box(a)),
            "27",
            "30",
        ),
    ],
)
def test_what_is_clipped_of_a_gradient(unit: Unit, passes: str, right: str) -> None:
    found = finding(diagnose_unit(unit), "gradient")
    assert found.words == (f"The gradient that comes in is clipped: of 30 at most {passes} passes, "
                           f"where in proportion to 0.001 it would be {right}.")  # fmt: skip
    assert found.advice == "Clip when the backward pass is over."


@pytest.mark.parametrize("of_gradient", [lambda g: g * g.abs(), torch.abs, torch.relu])
def test_gradients_that_are_not_clipped_but_not_in_proportion(of_gradient: Unit) -> None:
    found = finding(diagnose_unit(given(hard_sign, lambda g, a, x: of_gradient(g) * box(a))),
                    "gradient")  # fmt: skip
    assert "not in proportion" in found.words and "clipped" not in found.words
    assert found.advice == "Multiply the gradient, and do nothing else to it."


@pytest.mark.parametrize(
    ("unit", "at", "given"),
    [
        (lambda a: ste(torch.sign(a), functional.hardtanh(a)), "0", "0"),
        (lambda a: ste(torch.heaviside(a, torch.tensor(0.5).to(a)), torch.sigmoid(a)), "0", "0.5"),
        (lambda a: ste(torch.sign(a - 0.5), functional.hardtanh(a - 0.5)),
         "its threshold, 0.5,", "0"),
        (lambda a: ste(torch.sign(a + 3), functional.hardtanh(a + 3)), "its threshold, −3,", "0"),
        (lambda a: ste(torch.sign(a) + 2, functional.hardtanh(a)), "0", "2"),
    ],
)  # fmt: skip
def test_third_states(unit: Unit, at: str, given: str) -> None:
    report = diagnose_unit(unit)
    assert words(report, "third-state") == f"At {at} it gives {given}, which is no state."
    assert not report.exact_pm1


def test_values_that_miss_the_states() -> None:
    """3e-6 too high for half of the points; and what float32 makes of (1 + m) - m."""
    half = diagnose_unit(lambda a: ste(hard_sign(a) + 3e-6 * (a >= 0), functional.hardtanh(a)))
    assert words(half, "not-exact") == "50 % of its values miss the states, by up to 3e-06."
    a = around(0.0).numpy()
    a = a[np.abs(a) <= 1e5].astype(np.float32)
    x, m = np.where(a >= 0, 1, -1).astype(np.float32), a.clip(-1, 1)
    off = np.abs(x + m - m - x)
    assert off.max() == 2.0**-24
    assert words(case("not-exact"), "not-exact") == (
        f"{100 * (off > 0).mean():.2g} % of its values miss the states, by up to {off.max():.1g}."
    )


@pytest.mark.parametrize(
    ("unit", "times"),
    [
        (lambda a: ste(hard_sign(1 - a.abs()), torch.tanh(a)), 2),
        (lambda a: ste(hard_sign(a.clamp(-3, 3) * (a.abs() - 2)), torch.tanh(a)), 3),
        (lambda a: ste(hard_sign((a.abs() - 2) * (a.abs() - 0.1)), torch.tanh(a)), 4),
    ],
)
def test_changes_of_state_are_counted(unit: Unit, times: int) -> None:
    sentence = f"The state changes {times} times from left to right, not once."
    assert words(diagnose_unit(unit), "not-monotone") == sentence


@pytest.mark.parametrize(
    ("unit", "count", "low", "high"),
    [
        (lambda a: ste(torch.round(a.clamp(-2, 2)), a.clamp(-2, 2)), 5, "−2", "2"),
        (lambda a: ste(torch.round(3 * a.clamp(0, 1)) / 3, a.clamp(0, 1)), 4, "0", "1"),
        (lambda a: ste(torch.round(a.clamp(-7.5, 7)) / 4, a.clamp(-8, 7) / 4), 16, "−2", "1.75"),
    ],
)
def test_levels_are_counted(unit: Unit, count: int, low: str, high: str) -> None:
    report = diagnose_unit(unit)
    assert words(report, "levels").startswith(f"It has {count} states, from {low} to {high};")
    assert report.why.startswith(f"It has {count} states")
    assert f"{count} states, whose steps have together" in report.verdict


def test_levels_of_a_model() -> None:
    def unit(a: Tensor) -> Tensor:
        return ste(torch.round(3 * a.clamp(0, 1)) / 3, a.clamp(0, 1))

    (found,) = of_net(unit).units
    assert found.codes - {"clipped"} == {D, "levels"}
    assert found.coding == "0, 0.333, 0.667, 1"


def test_what_a_model_does_in_place_before_a_unit_is_no_fault() -> None:
    def unit(a: Tensor) -> Tensor:
        m = functional.hardtanh(2 * a, inplace=True)
        return ste(hard_sign(m), m)

    def on_layer(a: Tensor) -> Tensor:
        m = functional.hardtanh_(a)
        return ste(hard_sign(m), m)

    for between in (unit, on_layer):
        (found,) = of_net(between).units
        assert found.codes == {D} and found.mismatch == pytest.approx(1, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(0.05, 0.9), (0.2, 1.0), (0.0, 0.75)])
def test_what_is_kept_far_out(low: float, high: float) -> None:
    """Of 200 000 draws: a standard error is a tenth of a percent at the most."""
    report = diagnose_unit(never_sure(low, high, high - low))
    left, right = map(float, re.findall(r"([\d.e-]+) % ", words(report, "kept")))
    assert left == pytest.approx(100 * low, abs=0.5)
    assert right == pytest.approx(100 * (1 - high), abs=0.5)


@pytest.mark.parametrize(
    ("unit", "centre", "threshold"),
    [
        (lambda a: ste(hard_sign(a - 0.5), functional.hardtanh(a)), "0", "0.5"),
        (lambda a: ste(hard_sign(a - 0.05), functional.hardtanh(a)), "0", "0.05"),
        (lambda a: ste(step(a), a.clamp(0, 1)), "0.5", "0"),
        (lambda a: ste(hard_sign(a + 30), torch.tanh(a - 2)), "2", "−30"),
    ],
)
def test_centres_that_lie_apart(unit: Unit, centre: str, threshold: str) -> None:
    found = finding(diagnose_unit(unit), "shifted")
    assert found.words == (f"The slope is centred at {centre}, the state changes at {threshold}.")
    assert found.advice == "Shift one of the two."


def test_an_uneven_slope_is_not_called_shifted() -> None:
    """That of an exponential law about the threshold, whose median lies apart from it."""
    unit = with_slope(hard_sign, lambda a: 2 * torch.exp(-a.clamp(min=0)) * (a > 0))
    assert diagnose_unit(unit).codes == {D, "uneven"}


def test_a_median_that_is_nearly_0_is_told() -> None:
    """P = 0.475 at 0, which is 7 standard errors below a half."""
    report = diagnose_unit(lambda a: coin(torch.sigmoid(a - 0.1)))
    assert report.codes == {S, "no-slope"} and report.threshold == pytest.approx(0.1, abs=0.05)


def test_what_a_gradient_does_to_other_entries() -> None:
    """All of the same size pass as if each went alone."""
    unit = given(hard_sign, lambda grad, a, x: (grad + grad.mean()) / 2 * box(a))
    report = diagnose_unit(unit)
    assert words(report, "not-elementwise") == "The gradient of one entry reaches others."


def test_a_slope_that_depends_on_other_entries() -> None:
    """The states do not."""
    report = diagnose_unit(with_slope(hard_sign, lambda a: box(a) * a.abs().mean()))
    assert report.codes == {"not-elementwise"}
    assert words(report, "not-elementwise") == "What it does with one entry depends on others."


@pytest.mark.slow
@pytest.mark.parametrize("s", [-1.0, 0.5])
def test_members_of_the_line_in_bits(s: float) -> None:
    """Half of the slope, for half of the distance."""
    report = diagnose_unit(lambda a: (1 + on_the_line(s)(a)) / 2)
    assert report.line == s and report.coding == "0/1"
    assert report.mismatch == pytest.approx(1, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("s", "member"),
    [
        (0.0, "as ZGR's and ReinMax's does (s = 0)"),
        (-1.0, "as DARN's does (s = −1)"),
        (0.5, "as ½'s does (s = ½)"),
        (-0.4, "as a member of the line's does (s = −0.4)"),
        (2.0, "as a member of the line's does (s = 2)"),
    ],
)
def test_members_of_the_line(s: float, member: str) -> None:
    report = diagnose_unit(on_the_line(s))
    assert words(report, "state-slope") == f"The slope depends on the state too, {member}."
    assert report.line == s


@pytest.mark.slow
def test_a_slope_that_is_no_member_of_the_line() -> None:
    """One that passes gradients in the upper state alone."""
    unit = given(lambda a: coin(torch.sigmoid(a)),
                 lambda grad, a, x: grad * 0.5 / (a.square() + 1) * (x > 0))  # fmt: skip
    report = diagnose_unit(unit)
    assert words(report, "state-slope") == "The slope depends on the state too."
    assert report.line is None


def plain(report: UnitReport) -> str:
    return " ".join(str(report).split())


def test_shares_of_the_data() -> None:
    assert case(D).clipped is None and "clipped" not in str(case(D))
    report = diagnose_unit(lambda a: ste(hard_sign(a), functional.hardtanh(a)), data=CLOSED)
    assert words(report, "clipped") == ("66.7 % of the pre-activations lie where the slope is below"
                                        " a thousandth of its largest.")  # fmt: skip
    assert words(report, "dead") == "33.3 % of the units lie there on all 2 rows."
    assert "66.7 % of the pre-activations, 33.3 % of the units on all rows" in plain(report)
    assert words(case("dead"), "dead") == "50 % of the units lie there on all 2 rows."
    assert "66.7 % of the pre-activations, 0 % of the units on all rows" in plain(case("clipped"))


def test_a_thousandth_of_the_largest_slope_is_not_below_it() -> None:
    unit = with_slope(hard_sign, lambda a: 1000 * box(a) + (1 - box(a)) * (a < 3))
    report = diagnose_unit(unit, data=torch.tensor([[0.5], [2.0], [-2.0], [4.0]]))
    assert (report.clipped, report.dead) == (0.25, 0.0)


@pytest.mark.parametrize(("at", "told"), [(0.0, "0"), (0.5, "0.5"), (-2.0, "−2")])
def test_poles(at: float, told: str) -> None:
    unit = with_slope(lambda a: hard_sign(a - at),
                      lambda a: (a - at).abs() ** (-1 / 3) * box(a - at) * 2 / 3)  # fmt: skip
    report = diagnose_unit(unit)
    assert report.codes == {D, "pole"}
    assert words(report, "pole") == f"The slope grows without bound towards {told}."


def standard_errors(report: Any, up: Unit, claimed: Unit, draws: int) -> float:
    """How far P is from what is claimed, at the worst of the points that were asked."""
    found = report.examination
    a = np.concatenate([found.frequencies[0].numpy(), found.tails[0].numpy()])
    p, q = up(a), claimed(a)
    spread = np.maximum(np.maximum(p * (1 - p), q * (1 - q)), 1 / draws)
    return float((np.abs(p - q) / np.sqrt(spread / draws)).max())


def test_how_far_laws_are_apart() -> None:
    """What is drawn moves the score by 5 at the most."""
    report = case("law")
    z = standard_errors(report, special.expit, lambda a: np.clip((1 + a) / 2, 0, 1), 20_000)
    said = re.search(r"the two are ([\d.]+) standard errors apart \(20000 draws a point\)",
                     words(report, "law"))  # fmt: skip
    assert z > 50 and float(said[1]) == pytest.approx(z, abs=5)
    assert words(report, "law").startswith(
        "The forward pass draws from Logistic(scale=1), the slope is that of Uniform(scale=1): at "
    )


def test_how_far_laws_are_apart_where_nothing_varies() -> None:
    """A box draws one state alone beyond 1, where the logistic law has both: by its own spread."""
    report = diagnose_unit(lambda a: ste(coin(((1 + a) / 2).clamp(0, 1)), torch.tanh(a / 2)))
    z = standard_errors(report, lambda a: np.clip((1 + a) / 2, 0, 1), special.expit, 20_000)
    assert z > 50 and report.examination.z == pytest.approx(z, abs=5)


@pytest.mark.slow
def test_how_far_laws_are_apart_in_a_small_layer() -> None:
    """256 runs of 8 times 12 entries at 21 points: 1170 draws a point."""
    report = of_net(lambda a: ste(coin(torch.sigmoid(a)), functional.hardtanh(a)), 8, 12)
    (unit,) = report.units
    draws = 256 * 8 * 12 // 21
    z = standard_errors(unit, special.expit, lambda a: np.clip((1 + a) / 2, 0, 1), draws)
    said = re.search(rf"([\d.]+) standard errors apart \({draws} draws a point\)",
                     words(unit, "law"))  # fmt: skip
    assert z > 10 and float(said[1]) == pytest.approx(z, abs=5)


def test_a_law_that_fits_but_for_its_tail_has_no_name() -> None:
    """Logistic up to 4, and sure beyond, where at 5.2 one of 180 draws would be the other state."""
    up = with_slope(lambda a: coin(torch.where(a > 4, 1.0, torch.sigmoid(a))), box)
    report = diagnose_unit(up)
    assert report.codes == {S, "law"} and report.forward_noise is None
    assert report.verdict.startswith("The states are drawn from another law, the slope is ")


def test_laws_without_a_name() -> None:
    """1 - exp(-e^a), and the slope of Laplace's law."""
    unit = with_slope(lambda a: coin(-torch.expm1(-torch.exp(a))), lambda a: torch.exp(-a.abs()))
    report = diagnose_unit(unit)
    assert words(report, "law").startswith(
        "The forward pass draws from another law, the slope is that of a law of its own: at one "
    )
    assert report.verdict == (
        "The states are drawn from another law, the slope is straight-through for a law of its own."
    )


@pytest.mark.parametrize(("share", "kind"), [(0.1, Logistic), (0.5, type(None))])
def test_laws_are_named_within_three_thousandths(share: float, kind: type) -> None:
    """A share of Gaussian 1.7, which is 0.0095 from the logistic law: 0.001 and 0.005 off."""

    def m(a: Tensor) -> Tensor:
        return 2 * share * torch.special.ndtr(a / 1.7) + 2 * (1 - share) * torch.sigmoid(a)

    report = diagnose_unit(lambda a: ste(hard_sign(a), m(a)))
    assert type(report.slope_noise) is kind
    assert ("a law of its own" in report.verdict) == (share == 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (D, "The forward pass draws nothing: the state is a function of the pre-activation, so "
         "that no noise belongs to it."),
        (S, "It draws, and has no evaluation mode."),
        ("wrong-sign", "The slope has the wrong sign: the state rises with the pre-activation, "
         "the backward pass says the opposite."),
        ("shared-draw", "One draw serves all entries: states that should be independent rise and "
         "fall together."),
        ("shape", "From (23,) it makes (23, 2)."),
        ("no-tensor", "It returns a list, no tensor."),
        ("not-finite", "Its values are NaN or infinite."),
        ("not-elementwise", "What it does with one entry depends on others."),
        ("constant", "It gives 3 wherever it is asked."),
        ("raises", "It raises ValueError: expected three channels."),
        ("no-gradient", "The loss has no graph."),
        ("no-units", "No tensor with a graph has few values: no unit was seen."),
        ("infinite", "The slope's integral is infinite, so that it is no multiple of "
         "straight-through, whatever the noise."),
        ("negative", "The slope has both signs, as no noise's density has."),
        ("random-slope", "The slope is random beyond the state; what is said of it is said of its "
         "mean."),
        ("eval", "In evaluation mode the slope is another one."),
    ],
)  # fmt: skip
def test_sentences(code: str, sentence: str) -> None:
    assert words(case(code), code) == sentence


def test_sentences_of_what_is_asked_in_two_ways() -> None:
    falls = diagnose_unit(lambda a: ste(-hard_sign(a), functional.hardtanh(a)))
    assert "the state falls with the pre-activation" in words(falls, "wrong-sign")
    module = diagnose_unit(sbnlib.nn.Sign())
    assert words(module, S) == "It draws in evaluation mode too."
    both = diagnose_unit(with_slope(step, lambda a: -hard_sign(a)))
    assert words(both, "infinite").startswith("The slope's integral does not exist:")


# ----------------------------------------------------------------------------------------- advice

#: By code: what the advice says, and the unit of the table with the advice taken.
ADVICE: dict[str, tuple[str, Callable[[], Any]]] = {
    "factor": (
        "Divide the slope by 0.2.",
        of(lambda a: ste(step(a), 0.1 * functional.hardtanh(a) / 0.2))),
    "third-state": (
        "Use torch.where(a >= 0, …) in the place of torch.sign.",
        of(lambda a: ste(torch.where(a >= 0, 1.0, -1.0).to(a), functional.hardtanh(a)))),
    "not-exact": (
        "Are brackets missing, as in x + (m − m.detach())?",
        of(lambda a: hard_sign(a) + (functional.hardtanh(a) - functional.hardtanh(a).detach()))),
    "changes-input": (
        "Work on a copy.",
        of(lambda a: ste(hard_sign(functional.hardtanh_(a.clone())), functional.hardtanh(a)))),
    "shared-draw": (
        "Draw for each entry, as torch.rand_like(a) does.",
        of(lambda a: ste(torch.where(torch.rand_like(a) < torch.sigmoid(a), 1.0, -1.0).to(a),
                         torch.tanh(a / 2)))),
    "no-slope": (
        "x + (m − m.detach()) would have that of m, such as the mean state m = torch.tanh(a / 2).",
        of(lambda a: hard_sign(a) + (functional.hardtanh(a) - functional.hardtanh(a).detach()))),
    "negative": (
        "Take a slope of one sign.",
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a)))),
    "not-monotone": (
        "Make two units of it, or one threshold.",
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a)))),
    "not-elementwise": (
        "Take a scale, a norm or a choice among entries out of the unit.",
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a)))),
    "no-tensor": (
        "Return the states as a tensor.",
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a)))),
    "not-finite": (
        "Look at what is divided by 0, or at a logarithm of 0.",
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a)))),
    "gradient": (
        "Clip when the backward pass is over.",
        of(given(hard_sign, lambda grad, a, x: grad * box(a)))),
    "infinite": (
        "Let it fall off as |a|⁻² or faster, or cut it off.",
        of(with_slope(hard_sign, lambda a: (1 + a.abs()) ** -2))),
    "wrong-sign": (
        "Change the sign of the slope.",
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a)))),
    "shifted": (
        "Shift one of the two.",
        of(lambda a: ste(hard_sign(a - 0.5), functional.hardtanh(a - 0.5)))),
    "law": (
        "Draw from the noise of the slope, or take the slope from the noise.",
        of(lambda a: ste(coin(((1 + a) / 2).clamp(0, 1)), functional.hardtanh(a)))),
    "eval": ("Let the forward pass alone ask for the mode.", of(OtherInEval(1.0))),
    "float32": (
        "Let it make its numbers in the dtype of its argument.",
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a)))),
    "clipped": (
        "Scale the pre-activations, or widen the slope.",
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a / 4)), data=OPEN)),
    "raises": (
        "Where it needs a certain shape, data= tells of what.",
        of(needs_four_axes, data=torch.linspace(-0.9, 0.9, 24).view(2, 3, 2, 2))),
    "prints": (
        "Take the print out.", of(lambda a: ste(hard_sign(a), functional.hardtanh(a)))),
    "overflow": (
        "Write it with functions that stay finite, such as torch.sigmoid and torch.tanh.",
        of(with_slope(hard_sign, lambda a: 4 * torch.sigmoid(2 * a) * torch.sigmoid(-2 * a)))),
    "shape": (
        "Where it needs a certain shape, data= tells of what.",
        of(lambda a: ste(hard_sign(a), functional.hardtanh(a)))),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("code", ADVICE)
def test_advice_helps(code: str) -> None:
    """The finding goes away, and no fault comes in its place."""
    words, mended = ADVICE[code]
    assert finding(case(code), code).advice == words
    assert mended().codes in ({D}, {S})


@pytest.mark.slow
def test_there_is_advice_for_what_can_be_mended() -> None:
    advised = {f.code for code in CASES for f in case(code).findings if f.advice}
    assert advised == ADVICE.keys()


def test_a_module_that_needs_arguments() -> None:
    report = diagnose_unit(Needy)
    assert report.codes == {"raises"} and report.verdict == "It could not be examined."
    found = finding(report, "raises")
    assert found.words.startswith("Made without arguments it raises TypeError: ")
    assert "missing 1 required positional argument: 'width'" in found.words
    assert found.advice == "Hand over a module that is made." and report.why == found.words
    assert diagnose_unit(Needy(1.0)).codes == {D}


def test_data_say_of_what_shape_a_unit_is() -> None:
    """4 of 24 lie outside of (-1, 1)."""
    data = torch.linspace(-0.9, 0.9, 24).view(2, 3, 2, 2)
    data[0, 0] = 5.0
    report = diagnose_unit(needs_four_axes, data=data)
    assert report.codes == {D} and report.clipped == pytest.approx(4 / 24)
    refused = diagnose_unit(needs_four_axes, data=torch.ones(2, 2, 2, 2))
    assert refused.codes == {"raises"} and finding(refused, "raises").advice == ""


def test_a_file_in_the_place_of_a_module(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "my_units.py").write_text("def temp(a):\n    return a\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        command.main(["my_units.py:temp"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: my_units.py is a file: give the module's name, my_units\n"
    )


# ------------------------------------------------------------------------------- verdicts and whys

VERDICTS: dict[str, tuple[str, str]] = {
    D: ("No noise in the forward pass; the slope is straight-through for Uniform(scale=1).",
        "The forward pass draws nothing."),
    S: ("Straight-through for Logistic(scale=1).", ""),
    "factor": ("No noise in the forward pass; the slope is 0.2 times straight-through for "
               "Uniform(scale=1).", "The forward pass draws nothing."),
    "not-monotone": ("Not straight-through for any noise. The states at both ends are one.",
                     "The states at both ends are one."),
    "shared-draw": ("One draw serves all entries, so that the two passes were not compared; the "
                    "slope is straight-through for Logistic(scale=1).",
                    "One draw serves all entries."),
    "levels": ("No noise in the forward pass; the slope is straight-through for 3 states, whose "
               "steps have together Uniform(scale=1).",
               "It has 3 states: the slope's law is that of all steps together."),
    "kept": ("Straight-through for the mean state, which is that of no noise.",
             "However far out, both states keep a probability, which no noise leaves them."),
    "no-slope": ("No gradient passes.", "There is no slope."),
    "state-slope": ("Straight-through on average for Logistic(scale=1).", ""),
    "pole": ("No noise in the forward pass; the slope is straight-through for a law of its own.",
             "The forward pass draws nothing."),
    "infinite": ("Not straight-through for any noise. The slope has an infinite integral.",
                 "The slope has an infinite integral."),
    "negative": ("Not straight-through for any noise. The slope has both signs.",
                 "The slope has both signs."),
    "wrong-sign": ("The slope has the wrong sign: it is −1 times straight-through for "
                   "Uniform(scale=1).", "The slope has the wrong sign."),
    "shifted": ("No noise in the forward pass; the slope is straight-through for Uniform(scale=1).",
                "The forward pass draws nothing."),
    "law": ("The states are drawn from Logistic(scale=1), the slope is straight-through for "
            "Uniform(scale=1).", "The forward pass draws from another law than the slope's."),
    "raises": ("It could not be examined.", "It raises ValueError: expected three channels."),
    "constant": ("It could not be examined as a binary unit.",
                 "It gives 3 wherever it is asked."),
    "not-elementwise": ("It could not be examined as a binary unit.",
                        "What it does with one entry depends on others."),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("code", VERDICTS)
def test_verdicts(code: str) -> None:
    assert (case(code).verdict, case(code).why) == VERDICTS[code]


@pytest.mark.slow
def test_verdicts_of_probes() -> None:
    assert report_of("bits-with-2f").verdict == "2 times straight-through for Logistic(scale=1)."
    assert report_of("escape-rate").verdict == "Straight-through for a law of its own."
    assert report_of("escape-rate").why == (
        "Forward and backward agree in a law that is none of the six."
    )
    assert report_of("shifted-both").verdict == (
        "No noise in the forward pass; the slope is straight-through for Uniform(scale=1) about "
        "0.5."
    )


# ------------------------------------------------------------------------------------ what is read


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def failing(a: Tensor) -> Tensor:
    raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied {'(7 x 8) ' * 30}")


@pytest.mark.slow
def test_no_line_is_wider_than_a_terminal() -> None:
    assert max(widest(str(report_of(name))) for name in PROBES) <= 80
    assert max(widest(str(case(code))) for code in CASES) <= 80
    net, x = MODELS["saturated"].build()
    assert widest(str(diagnose(net, x, MODELS["saturated"].loss))) <= 80
    assert widest(str(diagnose_unit(failing))) <= 80
    assert widest(str(of_net(failing))) <= 80


def test_a_unit_is_as_another_only_if_all_is_the_same() -> None:
    def three(a: Tensor) -> Tensor:
        b, c, d = a.split(16, 1)
        plain = [ste(hard_sign(x), functional.hardtanh(x)) for x in (b, c)]
        return torch.cat([*plain, ste(torch.sign(d), functional.hardtanh(d))], 1)

    report = of_net(three, units=48)
    first, second, third = report.units
    assert first.verdict == second.verdict == third.verdict
    said = str(report).split("\n\n")
    assert said[1] == str(first) and said[3] == str(third)
    assert said[2].splitlines()[0] == f"{second.name} ({second.where}): as 1."
    assert said[2].splitlines()[1:] == str(second).splitlines()[-len(said[2].splitlines()) + 1 :]


def test_what_is_not_asked_is_not_told() -> None:
    """The rows of a weight are no cases, so that none of its units can be dead."""
    net, x = MODELS["weights"].build()
    (first, _) = diagnose(net, x).units
    assert first.dead is None and " % of the units" not in str(first)
    (row,) = (line for line in str(first).splitlines() if line.startswith("    clipped"))
    assert row.split()[1:] == [f"{100 * first.clipped:.3g}", "%", "of", "the", "weights"]


def test_rows_of_a_report() -> None:
    """A factor of 3: 27 after three layers, 59 049 after ten; E (3 box)^2 = 9 (2 Phi(1) - 1)."""
    report = diagnose_unit(lambda a: ste(hard_sign(a), 3 * functional.hardtanh(a)), name="it")
    lines = str(report).splitlines()
    table = lines[next(k for k, line in enumerate(lines) if line.startswith("    states")) :]
    rows = dict(line.split(maxsplit=1) for line in table)
    assert rows.pop("cosine").startswith("digits ")
    assert rows == {
        "states": "±1, deterministic", "noise": "Uniform(scale=1) of the slope", "integral": "6",
        "factor": "3", "compounding": "3 after 1, 27 after 3, 59000 after 10",
        "gain": f"{9 * (2 * special.ndtr(1) - 1):.3g}",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- JSON


def documented(kind: type) -> list[str]:
    text = inspect.getdoc(kind).partition("Attributes:")[2]
    return re.findall(r"^    (\w+): ", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("code", [c for c in CASES if c not in ("no-units", "unseen",
                                                               "no-gradient")])  # fmt: skip
def test_json_has_what_is_documented(code: str) -> None:
    report = case(code)
    found = strict(report.json())
    assert [*found, "examination"] == documented(UnitReport)
    assert report.json().endswith("}\n")
    assert {f["code"] for f in found["findings"]} == report.codes
    assert all(f.keys() == {"code", "wrong", "words", "advice"} for f in found["findings"])
    for key, value in found.items():
        plain = getattr(report, key)
        if isinstance(plain, (bool, str)) or plain is None:
            assert value == plain
        elif isinstance(plain, float):
            assert value == (plain if math.isfinite(plain) else str(plain))


def test_json_of_laws_and_of_what_is_infinite() -> None:
    found = strict(case("infinite").json())
    assert found["integral"] == found["mismatch"] == "inf"
    assert found["compounding"] == {"1": "inf", "3": "inf", "10": "inf"}
    found = strict(case("law").json())
    assert found["forward_noise"] == "Logistic(scale=1.0)" and found["noise"] is None
    assert found["slope_noise"] == "Uniform(scale=1.0)"
    assert found["sign_of_zero"] == [-1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("code", [S, "law", "state-slope", "factor", "no-gradient", "unseen"])
def test_json_is_the_same_text_again(code: str) -> None:
    torch.manual_seed(11)
    assert CASES[code][0]().json() == case(code).json()


@pytest.mark.parametrize("code", ["no-gradient", "no-units", "unseen"])
def test_json_of_models(code: str) -> None:
    report = case(code)
    found = strict(report.json())
    assert list(found) == documented(ModelReport) == ["units", "findings", "limits"]
    assert [strict(unit.json()) for unit in report.units] == found["units"]
    assert found["limits"] == list(report.limits)
    own = {f["code"] for f in found["findings"]}
    assert report.codes == own.union(*(unit.codes for unit in report.units))


def test_codes_of_a_model_are_those_of_all_its_units() -> None:
    def two(a: Tensor) -> Tensor:
        b, c = a.split(16, 1)
        twice = ste(hard_sign(b), 2 * torch.tanh(b))
        return torch.cat([twice, ste(torch.sign(c), functional.hardtanh(c))], 1)

    report = of_net(two, loss=lambda out: out.detach())
    assert sorted(map(sorted, (u.codes for u in report.units))) == [
        [D, "factor"], [D, "third-state"]
    ]  # fmt: skip
    assert report.codes == {D, "factor", "third-state", "no-gradient"}
