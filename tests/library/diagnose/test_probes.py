"""What is said of each probe: codes, attributes, and that looking leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from binary_models import own_modules
from probes import NOTES, PROBES, BinarizeF, LearnedScale, OtherSlopeInEval, Probe, identity
from problems_by_hand import exact_row
from scipy import integrate, stats
from torch import nn
from traces import changes, near_law, state, strict

from sbnlib import diagnose_unit
from sbnlib.noise import Noise

pytestmark = pytest.mark.slow  # ninety reports, which the tests share

every = pytest.mark.parametrize("name", PROBES)
judged = pytest.mark.parametrize("name", [p.name for p in PROBES.values() if not p.is_refused()])
refused = pytest.mark.parametrize("name", [p.name for p in PROBES.values() if p.is_refused()])

#: Of scales and integrals that are found by draws.
BY_DRAWS = 0.03


@dataclass(frozen=True)
class Seen:
    report: Any
    changed: list[str]


@cache
def seen(name: str, seed: int = 1) -> Seen:
    """The report of a probe and what making it has changed; gradients lie there beforehand."""
    unit = PROBES[name].make()
    if isinstance(unit, nn.Module):
        for p in unit.parameters():
            p.grad = torch.full_like(p, 0.25)
    torch.manual_seed(seed)
    before = state(unit)
    report = diagnose_unit(unit, name=name)
    return Seen(report, changes(before, state(unit)))


# ----------------------------------------------------------------------------------- attributes


def agrees(key: str, found: Any, wanted: Any, probe: Probe) -> bool:
    """Whether an attribute is what it has to be, within the tolerance of its kind."""
    sampled = probe.expected.get("forward") == "sampled"
    if isinstance(wanted, Noise):
        by_draws = key == "forward_noise" or (key == "noise" and sampled)
        return near_law(found, wanted, BY_DRAWS if by_draws else probe.loose)
    if wanted is None or isinstance(wanted, (bool, str)):
        return found is wanted or found == wanted
    if key in ("integral", "mismatch"):
        return found is not None and found == pytest.approx(wanted, rel=probe.loose)
    if key == "threshold":
        return found is not None and abs(found - wanted) < (0.1 if sampled else 1e-3)
    return found == pytest.approx(wanted, rel=1e-6)


@every
def test_codes(name: str) -> None:
    report, probe = seen(name).report, PROBES[name]
    missing, surplus = probe.codes - report.codes, report.codes - probe.codes - probe.open
    assert not missing and not surplus, f"missing {set(missing)}, surplus {set(surplus)}"


@every
def test_attributes(name: str) -> None:
    report, probe = seen(name).report, PROBES[name]
    off = [
        f"{key}: {getattr(report, key)!r}, not {wanted!r}"
        for key, wanted in probe.expected.items()
        if not agrees(key, getattr(report, key), wanted, probe)
    ]
    assert not off, "; ".join(off)


@every
def test_findings(name: str) -> None:
    report = seen(name).report
    assert report.codes == {finding.code for finding in report.findings}
    assert len(report.codes) == len(report.findings)  # each is said once
    for finding in report.findings:
        assert finding.wrong == (finding.code not in NOTES), finding.code
        assert finding.words.strip()
    assert report.verdict.strip()
    assert report.name == name


@judged
def test_attributes_go_together(name: str) -> None:
    report = seen(name).report
    assert ("deterministic" in report.codes) == (report.forward == "deterministic")
    assert ("samples-in-eval" in report.codes) == report.samples_in_eval
    assert ("gradient" in report.codes) == bool(report.depends_on_gradient)
    assert (report.noise is None) == bool(report.why)
    law = report.slope_noise
    assert report.scale == (None if law is None else law.scale)
    assert report.clipped is None and report.dead is None  # there are no data
    if report.mismatch is not None and math.isfinite(report.mismatch):
        wanted = {1: report.mismatch, 3: report.mismatch**3, 10: report.mismatch**10}
        assert report.compounding == pytest.approx(wanted)


@refused
def test_nothing_more_is_judged(name: str) -> None:
    report = seen(name).report
    for key in ("forward", "forward_noise", "slope_noise", "noise", "scale", "threshold",
                "integral", "mismatch", "coding", "slope", "line", "gain"):  # fmt: skip
        assert getattr(report, key) is None, key


@every
def test_looking_leaves_no_trace(name: str) -> None:
    assert seen(name).changed == []


@pytest.mark.parametrize("name", list(PROBES)[::6])  # each is examined a second time
def test_reports_are_the_same_again(name: str) -> None:
    # Another state of torch's generator, too: a report does not depend on what was drawn before
    one, other = (seen(name, seed).report for seed in (1, 2))
    assert one.json() == other.json()


@every
def test_reports_can_be_read(name: str) -> None:
    report = seen(name).report
    assert isinstance(strict(report.json()), dict)
    assert str(report).strip()


@pytest.mark.parametrize("name", ["hardtanh", "darn", "gumbel-pair", "no-graph", "raises", "leak",
                                  "superspike", "reste", "two-bits"])  # fmt: skip
def test_charts(name: str) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure = seen(name).report.chart()
    figure.canvas.draw()
    pyplot.close(figure)


# ----------------------------------------------------------------------------------------- gain

#: What h^2 is over a standard normal is not asked where h is no function of a, not of two states,
#: or not square-integrable (|a|^-4/3, 1/|a|).
NO_GAIN = {"no-slope", "levels", "pole", "random-slope", "not-monotone"}


def second_moment(probe: Probe) -> Callable[[float], float]:
    """E h^2 at a: over the states, 4f^2 + (1 - s)^2 mu^2 f^2/(pq) on the line, f = pq here."""
    wide = 2.0 if probe.expected.get("coding") != "0/1" else 1.0
    if math.isfinite(probe.expected.get("mismatch", math.inf)):
        wide = probe.expected["integral"] / probe.expected["mismatch"]
    s = probe.expected.get("line")

    def at(a: float) -> float:
        h = float(probe.h(np.array(a))) * 2 / wide
        return h**2 if s is None else h**2 + (1 - s) ** 2 * math.tanh(a / 2) ** 2 * h / 2

    return at


@pytest.mark.parametrize("name", [
    p.name for p in PROBES.values() if p.h and not p.is_refused() and not p.codes & NO_GAIN
])  # fmt: skip
def test_gain(name: str) -> None:
    probe = PROBES[name]
    square = second_moment(probe)
    edges = sorted({-12.0, -0.3, 0.3, 12.0, *probe.kinks})
    normal = stats.norm.pdf
    wanted = sum(
        integrate.quad(lambda a: square(a) * normal(a), *pair)[0]
        for pair in zip(edges, edges[1:], strict=False)
    )
    assert seen(name).report.gain == pytest.approx(wanted, rel=0.03)


# ----------------------------------------------------------------------------------------- data


def test_clipped_and_dead_units() -> None:
    # |a| > 1 in 6 of 12; the third unit in all rows
    data = torch.tensor([[0.5, 2.0, -3.0], [-0.2, 0.3, 4.0], [0.1, 1.5, 5.0], [0.9, -0.5, -6.0]])
    kept = data.clone()
    report = diagnose_unit(BinarizeF, data=data)
    assert report.clipped == pytest.approx(0.5)
    assert report.dead == pytest.approx(1 / 3)
    assert report.gain == pytest.approx(0.5)
    assert report.codes == {"deterministic", "dead"}  # no more than half is clipped
    assert torch.equal(data, kept)


def test_more_than_half_is_clipped() -> None:
    # Positions behind the first axis are units, whatever their shape
    data = torch.tensor([[[3.0, 0.2], [2.0, 4.0]], [[7.0, 5.0], [0.3, -0.9]]])
    report = diagnose_unit(BinarizeF, data=data)
    assert report.clipped == pytest.approx(5 / 8)  # 3, 2, 4, 7, 5
    assert report.dead == pytest.approx(1 / 4)  # the first: 3 and 7
    assert report.codes == {"deterministic", "clipped", "dead"}


def test_a_thousandth_of_the_largest_is_clipped() -> None:
    # (1 + 10|a|)^-2 < 1/1000 where |a| > 3.0623
    data = torch.tensor([[0.0], [3.05], [3.08], [-3.2]])
    report = diagnose_unit(PROBES["superspike"].make(), data=data)
    assert (report.clipped, report.dead) == (0.5, 0.0)


def test_nothing_is_clipped_where_the_slope_is_1() -> None:
    report = diagnose_unit(identity, data=torch.linspace(-50, 50, 64).reshape(16, 4))
    assert (report.clipped, report.dead) == (0.0, 0.0)
    assert report.gain == pytest.approx(1.0)


def test_data_in_half_precision_and_of_one_axis() -> None:
    report = diagnose_unit(BinarizeF, data=torch.tensor([0.5, 2.0, 3.0], dtype=torch.bfloat16))
    assert report.clipped == pytest.approx(2 / 3)


# ----------------------------------------------------------------------- the three base networks

BASES = {key: f"{key}-2x5-logistic-1" for key in ("digits", "xor", "smooth")}


@pytest.mark.parametrize(
    ("name", "estimator", "loose"),
    [
        ("logistic", "straight_through", 0.005),
        ("bernoulli", "straight_through", 0.005),
        ("zgr", "zgr", 0.02),
        ("reinmax", "zgr", 0.02),
        ("darn", "darn_mean", 0.02),
    ],
)
def test_cosines_are_those_of_an_enumeration(name: str, estimator: str, loose: float) -> None:
    found = seen(name).report.cosine
    assert found.keys() == BASES.keys()
    for key, problem in BASES.items():
        wanted = exact_row(problem, estimator, "all")["cosine"]
        assert found[key] == pytest.approx(wanted, abs=loose), key


@judged
def test_cosines_are_cosines(name: str) -> None:
    cosine = seen(name).report.cosine
    if cosine is not None:
        assert cosine.keys() == BASES.keys()
        assert all(value is None or -1 <= value <= 1 for value in cosine.values())


# ------------------------------------------------------------------------- modules and arguments


def test_flags_stay_where_they_are_mixed() -> None:
    module = nn.Sequential(LearnedScale(), nn.Identity())
    module[1].eval()
    module[0].alpha.requires_grad_(False)
    before = state(module)
    report = diagnose_unit(module)
    assert report.codes == {"deterministic"}
    assert changes(before, state(module)) == []


def test_modules_in_evaluation_stay_there() -> None:
    module = OtherSlopeInEval().eval()
    diagnose_unit(module)
    assert not module.training


def test_grad_mode_of_the_caller_is_no_matter() -> None:
    with torch.no_grad():
        report = diagnose_unit(BinarizeF)
        assert not torch.is_grad_enabled()
    assert report.codes == {"deterministic"}


def test_default_dtype_of_the_caller_is_no_matter() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        report = diagnose_unit(PROBES["tanh-detach"].make(), name="tanh-detach")
    finally:
        torch.set_default_dtype(torch.float32)
    assert report.codes == {"deterministic"}


def test_names_are_those_of_the_code() -> None:
    for unit in (identity, BinarizeF, BinarizeF.apply, LearnedScale, LearnedScale(), torch.sign):
        assert diagnose_unit(unit).name


@pytest.mark.parametrize("unit", [3, "sign", None, torch.ones(3)])
def test_what_cannot_be_called_is_refused(unit: object) -> None:
    with pytest.raises(TypeError, match="unit"):
        diagnose_unit(unit)


@pytest.mark.parametrize("data", [3.0, [0.5], torch.ones(3, dtype=torch.long), np.ones(3)])
def test_data_that_are_no_floats_are_refused(data: object) -> None:
    with pytest.raises(TypeError, match="data"):
        diagnose_unit(BinarizeF, data=data)


def test_a_network_is_no_unit_but_does_not_raise() -> None:
    assert diagnose_unit(own_modules()).findings
