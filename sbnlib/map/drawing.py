"""The chart of the map: bias against variance, every estimator of the registry, and one's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sbnlib import registry
from sbnlib.extras import extra
from sbnlib.map.found import Found, check_one_of
from sbnlib.map.problem_set import select
from sbnlib.map.stored import results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Point", "chart", "points"]

#: How wide the strip of those without bias is, as a factor on the axis of the bias.
STRIP = 4


@dataclass(frozen=True)
class Point:
    r"""An estimator on the chart of one problem.

    Attributes:
        name: in the registry, or of the report.
        label, colour, marker: its look; None for one that was brought.
        bias: :math:`\|\mathbb{E}\hat g - g\|/\|g\|`; 0 where the samples do not tell it from 0,
            that is where its square is below twice its standard error.
        variance: of one sample, relative to :math:`\|g\|^2`.
        variance_se: its standard error, 0 where it is an exact sum.
        cost: loss evaluations of one sample and input.
    """

    name: str
    label: str
    colour: str | None
    marker: str | None
    bias: float
    variance: float
    variance_se: float
    cost: float


def points(problem: str, report: Found | None = None, *, layers: str = "all") -> list[Point]:
    """The points of one problem's chart: the registry's estimators, the brought one last.

    Args:
        problem: its name, see :func:`problems`.
        report: of an estimator that is set beside the others; one of the registry is there already.
        layers: ``"all"``, or ``"first"`` for the gradient of the first layer only.

    Raises:
        ValueError: no problem of that name, in the set or in the report; another word as
            ``layers``.
    """
    check_one_of("layers", layers, ("all", "first"))
    select([problem])
    found = []
    for name, rows in results().items():
        if name in registry.ESTIMATORS:
            entry = registry.get(name)
            row = next(row for row in rows if row["problem"] == problem)
            found.append(_point(name, entry.label, entry.colour, entry.marker, row, layers))
    if report is not None and report.entry is None:
        row = report.row(problem)
        found.append(_point(report.name, report.name, None, None, row, layers))
    return found


def _point(
    name: str, label: str, colour: str | None, marker: str | None, row: dict[str, Any], layers: str
) -> Point:
    (bias2, se), (variance, of_variance) = row[layers]["bias2"], row[layers]["variance"]
    bias = math.sqrt(bias2) if bias2 > 2 * se else 0.0
    cost = row["loss_evaluations"]
    return Point(name, label, colour, marker, bias, variance, of_variance, cost)


def chart(problem: str, report: Found | None = None, *, layers: str = "all") -> Figure:
    """Bias against variance of one problem, both relative to the gradient, as a figure.

    Estimators without bias stand in a strip of their own at the left, as do those whose bias the
    samples do not tell from 0. A sampled variance carries two standard errors. Behind each name in
    the legend is its cost, in loss evaluations a sample. What was brought is a ring in the ink of
    the page. Needs ``sbnlib[figures]``.

    Args, Raises: as :func:`points`.
    """
    found = points(problem, report, layers=layers)
    with extra("figures"):
        import matplotlib
        from matplotlib.figure import Figure

        from sbnlib.figures import style

    with matplotlib.rc_context(style.STYLE):
        rows = math.ceil(len(found) / 2)
        fig = Figure(figsize=(5.3, 3.4 + 0.21 * rows), layout="constrained")
        ax = fig.subplots()
        edge, at = _strip(found)
        low = min((p.variance for p in found if p.variance > 0), default=1.0) / 3
        for p in found:
            _mark(ax, p, p.bias or at[p.name], max(p.variance, low))
        _axes(ax, edge)
        fig.legend(loc="outside lower center", ncols=2, fontsize=9.5, labelspacing=0.35,
                   columnspacing=0.7, handletextpad=0.3)  # fmt: skip
    return fig


def _strip(found: list[Point]) -> tuple[float, dict[str, float]]:
    """Where the strip of those without bias ends, and where they stand in it.

    Neighbours in variance stand side by side, so that none hides another.
    """
    edge = min((p.bias for p in found if p.bias), default=1.0) / 1.6
    inside = sorted((p for p in found if not p.bias), key=lambda p: (p.variance, p.name))
    return edge, {p.name: edge * STRIP ** ((k % 4 - 4) / 4.5) for k, p in enumerate(inside)}


def _mark(ax: Axes, p: Point, x: float, y: float) -> None:
    look: dict[str, Any] = (
        {"marker": "o", "mfc": "none", "mec": "black", "ms": 12, "mew": 2, "zorder": 4}
        if p.colour is None
        else {"marker": p.marker, "color": p.colour, "ms": 6.5, "zorder": 3}
    )
    ax.plot(x, y, ls="none", label=f"{p.label} ({p.cost:.3g})", gid=p.name, **look)
    if p.variance_se:
        ends = max(y - 2 * p.variance_se, y / 10), y + 2 * p.variance_se
        ax.vlines(x, *ends, color=p.colour or "black", lw=1.2, gid=f"{p.name} errors")


def _axes(ax: Axes, edge: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    ax.set(xscale="log", yscale="log", xlabel="bias, relative to the gradient's length",
           ylabel="variance, relative to its square")  # fmt: skip
    ax.axvspan(edge / STRIP, edge, color="#808080", alpha=0.12, lw=0)
    ax.text(edge / STRIP, 1.02, "no bias seen", transform=ax.get_xaxis_transform(), fontsize=9.5)
    ax.set_xlim(edge / STRIP, max(ax.get_xlim()[1], 2 * edge))
    for axis, least in ((ax.xaxis, edge), (ax.yaxis, 0.0)):
        low, high = axis.get_view_interval()
        subs = (1.0,) if high / max(low, least) > 100 else (1.0, 2.0, 5.0)
        for put, parts in (
            (axis.set_major_locator, subs),
            (axis.set_minor_locator, range(2, 10)),
        ):
            ticks = LogLocator(subs=parts).tick_values(low, high)
            put(FixedLocator([v for v in ticks if v > least]))  # none in the strip
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.grid(True)
