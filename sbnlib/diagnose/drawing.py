"""The chart of a report: the slope, and what it collects beside what the forward pass does."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sbnlib.diagnose.examination import Examination
from sbnlib.diagnose.findings import number
from sbnlib.diagnose.integrals import Slope
from sbnlib.diagnose.laws import interpolated
from sbnlib.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["chart"]

#: Of the slope, and of what it collects.
COLOUR = "#E69F00"


def chart(units: Sequence[tuple[str, Examination | None]]) -> Figure:
    """A row for each unit, with its name: the slope at the left, the two passes at the right.

    At the right, dots are the share of the upper state among drawn ones, with five standard errors,
    the line in the ink of the page that of a unit that draws nothing; in colour is the integral of
    the slope from the left, over the distance of the states, which should be the same: it begins
    at 1 if the state falls from left to right. The slope is drawn up to its height a little off a
    pole.
    """
    with extra("figures"):
        import matplotlib
        from matplotlib.figure import Figure

        from sbnlib.figures import style

    with matplotlib.rc_context(style.STYLE):
        rows = max(1, len(units))
        fig = Figure(figsize=(5.0, 0.4 + 1.65 * rows), layout="constrained")
        axes = fig.subplots(rows, 2, squeeze=False)
        for (name, found), (left, right) in zip(units, axes, strict=False):
            left.set_title("\n".join(textwrap.wrap(name, 28)), fontsize=10)
            _row(found, left, right)
        for ax in axes[-1]:
            ax.set_xlabel("pre-activation $a$")
    return fig


def _row(found: Examination | None, left: Axes, right: Axes) -> None:
    left.set_ylabel("slope")
    right.set_ylabel("share of upper")
    if found is None or found.refused is not None or not found.states:
        for ax in (left, right):
            ax.set(xticks=[], yticks=[])
        left.text(0.5, 0.5, "not examined", ha="center", transform=left.transAxes)
        return
    low, high = _span(found)
    a = torch.linspace(low, high, 401, dtype=torch.float64)
    if found.slope is not None:
        h = interpolated(found.slope.a, found.slope.h, a)
        left.fill_between(a.numpy(), 0, h.numpy(), color=COLOUR, alpha=0.3, lw=0)
        left.plot(a.numpy(), h.numpy(), color=COLOUR)
        left.set_ylim(*_limits(h[~_at_pole(found.slope, a)]))
        right.plot(a.numpy(), _collected(found, a).numpy(), color=COLOUR)
    _forward(found, right, low, high)
    c = found.mismatch
    right.set_title("no factor" if c is None else f"factor {number(c)}", fontsize=10)
    for ax in (left, right):
        ax.set_xlim(low, high)
    right.set(yticks=[0, 1])


def _span(found: Examination) -> tuple[float, float]:
    half = 4 * (found.quartile or 0.75)
    half = half if math.isfinite(half) and half > 0 else 3.0
    return found.threshold - half, found.threshold + half


def _limits(h: Tensor) -> tuple[float, float]:
    low, high = float(h.min()), float(h.max())
    room = 0.1 * max(high - min(low, 0.0), 1e-9)
    return min(0.0, low) - room * (low < 0), max(high, 0.0) + room


def _at_pole(slope: Slope, a: Tensor) -> Tensor:
    """Which points are so near to a pole that the slope there would dwarf all the rest."""
    near = (a - slope.centre).abs() < 0.02 * (a[-1] - a[0])
    return near if slope.has_pole() else near & False


def _collected(found: Examination, a: Tensor) -> Tensor:
    """The integral of the slope up to each point, in distances of the states, as a share.

    From the left edge if it is infinite.
    """
    slope, jump = found.slope, found.jump or 2.0
    assert slope is not None
    if math.isfinite(slope.total):
        begun = interpolated(slope.a, slope.collected, a)
    else:
        begun = interpolated(slope.a[1:], slope.parts.cumsum(0), a)
        begun = begun - begun[0]
    return begun / abs(jump) + (jump < 0)


def _forward(found: Examination, ax: Axes, low: float, high: float) -> None:
    for level in (0, 1):
        ax.axhline(level, color="black", lw=0.5)
    if found.frequencies is not None:
        points, share, se = (t.numpy() for t in found.frequencies)
        share = 1 - share if (found.jump or 0) < 0 else share
        ax.errorbar(points, share, 5 * se, fmt="o", ms=3, color="black", lw=0.8)
    elif not found.sampled and len(found.states) == 2 and found.jumps == 1:
        up = (found.jump or 0) > 0
        ax.plot([low, found.threshold, found.threshold, high], [1 - up, 1 - up, up, up],
                color="black", lw=1.2)  # fmt: skip
