"""The picture of a report: each curve against an integral or a law of its own."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from binary_models import MODELS
from probes import PROBES
from reports import report_of
from scipy import integrate, special
from torch import Tensor

from sbnlib import diagnose, diagnose_unit

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402

Array = np.ndarray

#: Units that draw nothing, and units that draw: right and wrong, 1 and 0/1, about 0 and not.
FIXED = ("hardtanh", "arctan-2", "superspike", "shifted-both", "slope-left-at-0", "ede-early",
         "reste-chord", "scale-forgotten", "swish-sign")  # fmt: skip
DRAWN = ("logistic", "adds-gaussian", "scale-1.1", "bits-with-2f", "escape-rate",
         "sampled-bias-forgotten")  # fmt: skip

COLOUR = "#E69F00"


@dataclass(frozen=True)
class Row:
    """What a row of the chart shows.

    Attributes:
        slope, collected: the two curves in colour, as points (2, N); None where there is none.
        step: the corners of the line in ink; None where there is none.
        dots: points, shares, half of the lengths of their bars; None where there are none.
        name, factor: the two titles.
        words: inside of the axes.
        span: the ends of the two axes of a.
        heights: the ends of the axis of the slope.
    """

    slope: Array | None
    collected: Array | None
    step: Array | None
    dots: tuple[Array, Array, Array] | None
    name: str
    factor: str
    words: str
    span: tuple[tuple[float, float], tuple[float, float]]
    heights: tuple[float, float]


def rows_of(report: Any) -> list[Row]:
    figure = report.chart()
    return [row(*pair) for pair in zip(figure.axes[::2], figure.axes[1::2], strict=True)]


def row(left: Any, right: Any) -> Row:
    def in_colour(ax: Any) -> Array | None:
        found = [line.get_xydata().T for line in ax.lines if line.get_color() == COLOUR]
        assert len(found) <= 1
        return found[0] if found else None

    step = [line.get_xydata() for line in right.lines if len(line.get_xydata()) == 4]
    dots = None
    for container in right.containers:
        line, _, (bars,) = container.lines
        a, share = line.get_data()
        ends = np.array([[p[0, 1], p[1, 1]] for p in bars.get_segments()])
        assert np.allclose(ends.mean(1), share)
        dots = np.asarray(a), np.asarray(share), np.diff(ends)[:, 0] / 2
    return Row(
        in_colour(left), in_colour(right), step[0] if step else None, dots,
        left.get_title(loc="left") or left.get_title(),
        right.get_title(loc="left") or right.get_title(),
        " ".join(text.get_text() for ax in (left, right) for text in ax.texts),
        (left.get_xlim(), right.get_xlim()), left.get_ylim(),
    )  # fmt: skip


def drawn_of(name: str) -> Row:
    (found,) = rows_of(report_of(name))
    return found


# ------------------------------------------------------------------------------------- curves


def integrals(h: Callable[[Array], Array], kinks: tuple[float, ...], ends: Array) -> Array:
    """The integral of h from minus infinity to each of the ends, by quadrature."""
    inner = {s * 10.0**k for s in (-1, 1) for k in range(-2, 3)}
    edges = sorted({*kinks, *ends, *inner})
    parts = [
        integrate.quad(lambda a: float(h(np.array(a))), *pair, limit=200)[0]
        for pair in itertools.pairwise([-math.inf, *edges])
    ]
    return np.cumsum(parts)[[edges.index(a) for a in ends]]


def distance(name: str) -> float:
    """Of the two states."""
    expected = PROBES[name].expected
    return expected["integral"] / expected["mismatch"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED + DRAWN)
def test_the_slope_is_the_published_one(name: str) -> None:
    probe, (a, h) = PROBES[name], drawn_of(name).slope
    step = a[1] - a[0]
    inside = np.abs(a[:, None] - np.array(probe.kinks)).min(1) > 2 * step  # a jump is drawn aslant
    assert inside.sum() > 350
    wanted = probe.h(a)
    assert np.abs(h - wanted)[inside].max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED + DRAWN)
def test_what_is_collected_is_the_integral_of_the_slope(name: str) -> None:
    probe, (a, found) = PROBES[name], drawn_of(name).collected
    ends = a[::20]
    wanted = integrals(probe.h, probe.kinks, ends) / distance(name)
    assert np.abs(found[::20] - wanted).max() < 2e-3 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("name", ["leak", "identity-function", "square-root"])
def test_an_infinite_integral_is_collected_from_the_left_edge(name: str) -> None:
    probe, (a, found) = PROBES[name], drawn_of(name).collected
    ends = a[::20]
    wide = 1.0 if probe.expected["coding"] == "0/1" else 2.0
    wanted = [
        sum(integrate.quad(lambda v: float(probe.h(np.array(v))), *pair)[0]
            for pair in itertools.pairwise(sorted({a[0], *filter(end.__gt__, probe.kinks), end})))
        for end in ends
    ]  # fmt: skip
    assert np.abs(found[::20] - np.array(wanted) / wide).max() < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_dots_are_shares_of_the_law_with_five_standard_errors(name: str) -> None:
    """A right chart fails once in 80 000 (21 dots at 5 standard errors); its seeds are fixed."""
    probe, found = PROBES[name], drawn_of(name)
    a, share, bars = found.dots
    p = probe.up(a)
    se = np.sqrt(p * (1 - p) / 20_000)
    assert len(a) == 21 and (np.abs(share - p) <= 5 * se + 1e-3).all()
    assert np.abs((share - p) / np.maximum(se, 1e-4)).max() < 5
    middle = (p > 0.05) & (p < 0.95)
    assert middle.sum() >= 11
    assert bars[middle] == pytest.approx(5 * se[middle], rel=0.05)
    assert found.step is None
    # They cover the change: from less than one in ten to more than nine in ten
    assert p.min() < 0.1 and p.max() > 0.9
    assert found.span[0][0] <= a.min() + 1 and found.span[0][1] >= a.max() - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_the_step_is_at_the_threshold(name: str) -> None:
    found = drawn_of(name)
    assert found.dots is None
    low, left, right, high = found.step[:, 0]
    assert (low, high) == found.span[1]
    assert left == right == pytest.approx(PROBES[name].expected["threshold"], abs=1e-6)
    assert found.step[:, 1].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["window", "ternary"])
def test_there_is_no_step_where_there_is_not_one(name: str) -> None:
    found = drawn_of(name)
    assert found.step is None and found.dots is None and found.slope is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["hardtanh", "arctan-2", "ede-early", "shifted-both", "adds-gaussian", "own-module"]
)
def test_both_axes_span_the_law_about_the_threshold(name: str) -> None:
    """Four times the upper quartile to each side: 0.97 to 1 of each of the six laws."""
    expected, found = PROBES[name].expected, drawn_of(name)
    law = expected.get("forward_noise") or expected["slope_noise"]
    half = 4 * float(ref.RefNoise(type(law).__name__, law.scale).icdf(0.75))
    wanted = expected["threshold"] - half, expected["threshold"] + half
    assert found.span[0] == found.span[1]
    assert found.span[0] == pytest.approx(wanted, rel=0.03)


# ------------------------------------------------------------------------ the state falls


def falling(slope: float, drawn: bool) -> Callable[[Tensor], Tensor]:
    """1 far to the left, -1 far to the right, with the slope of tanh(a/2) times ``slope``."""

    def unit(a: Tensor) -> Tensor:
        x = torch.where(torch.rand_like(a) < torch.sigmoid(-a), 1.0, -1.0) if drawn else -a.sign()
        x = torch.where(x == 0, 1.0, x).to(a.dtype)
        m = slope * torch.tanh(a / 2)
        return x.detach() + (m - m.detach())

    return unit


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("slope", [-1.0, 1.0])
def test_of_a_state_that_falls_the_share_of_the_upper_one_falls(slope: float, drawn: bool) -> None:
    """With the right sign, -1, the curve and the state are one, as for those that rise."""
    (found,) = rows_of(diagnose_unit(falling(slope, drawn)))
    a, collected = found.collected
    assert np.abs(collected - (1 + slope * special.expit(a))).max() < 2e-3
    assert found.factor == ("factor 1" if slope < 0 else "factor −1")
    if drawn:
        a, share, _ = found.dots
        p = special.expit(-a)
        assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / 20_000)).all()
    else:
        assert found.step[:, 1].tolist() == [1, 1, 0, 0]


# -------------------------------------------------------------------------------------- titles


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FIXED, *DRAWN, "sign-flipped", "leak", "two-bits"])
def test_titles_are_the_name_and_the_factor(name: str) -> None:
    found = drawn_of(name)
    assert found.name == name
    word, number = found.factor.split()
    assert word == "factor"
    value = float(number.replace("−", "-").replace("infinite", "inf"))
    assert value == pytest.approx(PROBES[name].expected["mismatch"], rel=6e-3)


@pytest.mark.parametrize("name", ["torch-sign", "no-graph", "window"])
def test_there_is_no_factor_where_there_is_none(name: str) -> None:
    found = drawn_of(name)
    assert found.factor == "no factor"
    assert (found.slope is None) == (name != "window")


@pytest.mark.parametrize("name", [p.name for p in PROBES.values() if p.is_refused()])
def test_what_is_refused_is_not_drawn(name: str) -> None:
    found = drawn_of(name)
    assert (found.name, found.factor, found.words) == (name, "", "not examined")
    assert found.slope is found.collected is found.step is found.dots is None


def test_what_is_examined_is_not_called_unexamined() -> None:
    assert {drawn_of(name).words for name in ("hardtanh", "logistic", "no-graph")} == {""}


def test_beside_a_pole_the_slope_can_be_seen() -> None:
    """(1/3) |a|^(-2/3) reaches 1.5e6 in what is asked; at a quarter of the way it is below 2."""
    for name in ("reste", "square-root"):
        found = drawn_of(name)
        a, h = found.slope
        quarter = float(PROBES[name].h(np.array(found.span[0][1] / 4)))
        assert found.heights[0] == 0 and quarter > 0.1 * found.heights[1]
        assert h.max() > found.heights[1]  # and it is seen to leave the axes


# -------------------------------------------------------------------------------------- models


@pytest.mark.slow
def test_a_model_has_a_row_for_each_unit_in_its_order() -> None:
    case = MODELS["own"]
    net, x = case.build()
    report = diagnose(net, x, case.loss)
    found = rows_of(report)
    assert [r.name for r in found] == [unit.name for unit in report.units]
    for one, law in zip(found, (ref.RefNoise("Logistic"), ref.RefNoise("Gaussian", 0.7)),
                        strict=True):  # fmt: skip
        a, h = one.slope
        assert np.abs(h - 2 * law.pdf(a)).max() < 2e-3 * 2 * law.pdf(0.0)
        points, share, _ = one.dots
        p = law.cdf(points)
        assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-4).all()
        assert one.factor == "factor 1"


def test_three_layers_are_three_rows() -> None:
    case = MODELS["steep"]
    net, x = case.build()
    found = rows_of(diagnose(net, x, case.loss))
    assert [r.factor for r in found] == ["factor 2"] * 3
    assert len({r.name for r in found}) == 3
    for one in found:
        a, collected = one.collected
        assert np.abs(collected - 2 * special.expit(2 * a)).max() < 4e-3
        assert one.step[1, 0] == pytest.approx(0, abs=1e-6)


def test_a_model_without_units_is_an_empty_row() -> None:
    net, x = MODELS["tanh"].build()
    (found,) = rows_of(diagnose(net, x))
    assert found.name == found.factor == "" and found.slope is None


# ---------------------------------------------------------------------------- what can be read


def words(figure: Any) -> Iterator[Any]:
    """The texts that are seen."""
    canvas = FigureCanvasAgg(figure)  # the plain canvas of a figure draws nothing
    canvas.draw()
    renderer = canvas.get_renderer()
    for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")):
        its = text.get_window_extent(renderer)
        if text.get_visible() and text.get_text().strip() and its.width:
            yield text


def overlap(figure: Any) -> list[tuple[str, str]]:
    """Pairs of titles and labels that lie on each other, and what leaves the figure."""
    renderer = figure.canvas.get_renderer()
    shown = [t for ax in figure.axes for t in
             (ax._left_title, ax.title, ax.yaxis.label, ax.xaxis.label, ax.yaxis.offsetText,
              ax.xaxis.offsetText) if t.get_text()]  # fmt: skip
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in shown]
    on = [(s, t) for (s, a), (t, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]
    whole = figure.bbox.padded(1)
    return on + [(s, "the edge") for s, b in boxes
                 if b.x0 < whole.x0 or b.x1 > whole.x1 or b.y1 > whole.y1]  # fmt: skip


@pytest.mark.slow
def test_a_third_of_the_probes_can_be_drawn_and_read() -> None:
    """Words of 9 px at the natural size, where a point is 4/3 px."""
    for name in list(PROBES)[::3]:
        figure = report_of(name).chart()
        sizes = {t.get_text(): t.get_fontsize() * 4 / 3 for t in words(figure)}
        assert sizes and min(sizes.values()) >= 9, (name, sizes)
        assert overlap(figure) == [], name


@pytest.mark.parametrize("long", ["7. QuantizedActivation features.3.block.1.activation",
                                  "12. StochasticBinaryActivationFunction"])  # fmt: skip
def test_long_names_do_not_run_into_the_factor(long: str) -> None:
    figure = diagnose_unit(PROBES["factor-2"].make(), name=long).chart()
    list(words(figure))
    assert overlap(figure) == []
    (title,) = (t for t in (figure.axes[0].get_title(loc="left"),) if t)
    assert re.sub(r"\s", "", title) == re.sub(r"\s", "", long)  # no letter is lost
