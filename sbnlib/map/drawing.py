"""The chart of the map: bias against variance, every estimator of the registry, and one's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sbnlib import registry
from sbnlib.extras import extra
from sbnlib.map.problem_set import select
from sbnlib.map.report import Report, check_one_of
from sbnlib.map.stored import results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Point", "chart", "points"]


@dataclass(frozen=True)
class Point:
    r"""An estimator on the chart of one problem.

    Attributes:
        name: in the registry, or of the report.
        label, colour, marker: its look; None for one that was brought.
        bias: :math:`\|\mathbb{E}\hat g - g\|/\|g\|`; 0 where the samples do not tell it from 0,
            that is where its square is below twice its standard error.
        variance: of one sample, relative to :math:`\|g\|^2`.
        cost: loss evaluations of one sample and input.
    """

    name: str
    label: str
    colour: str | None
    marker: str | None
    bias: float
    variance: float
    cost: float


def points(problem: str, report: Report | None = None, *, layers: str = "all") -> list[Point]:
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
    (bias2, se), (variance, _) = row[layers]["bias2"], row[layers]["variance"]
    bias = math.sqrt(bias2) if bias2 > 2 * se else 0.0
    return Point(name, label, colour, marker, bias, variance, row["loss_evaluations"])


def chart(problem: str, report: Report | None = None, *, layers: str = "all") -> Figure:
    """Bias against variance of one problem, both relative to the gradient, as a figure.

    Estimators without bias stand in a strip of their own at the left, as do those whose bias the
    samples do not tell from 0. Behind each name in the legend is its cost, in loss evaluations a
    sample. What was brought is a ring in the ink of the page. Needs ``sbnlib[figures]``.

    Args, Raises: as :func:`points`.
    """
    found = points(problem, report, layers=layers)
    with extra("figures"):
        import matplotlib
        from matplotlib.figure import Figure

        from sbnlib.figures import style

    with matplotlib.rc_context(style.STYLE):
        rows = math.ceil(len(found) / 2)
        fig = Figure(figsize=(5.5, 3.4 + 0.21 * rows), layout="constrained")
        ax = fig.subplots()
        left, low = _ends(found)
        for p in found:
            _mark(ax, p, left, low)
        _axes(ax, left)
        fig.legend(loc="outside lower center", ncols=2, fontsize=9.5, labelspacing=0.35,
                   columnspacing=1.2, handletextpad=0.3)  # fmt: skip
    return fig


def _ends(found: list[Point]) -> tuple[float, float]:
    """Where bias 0 and variance 0 are drawn: a factor below the smallest of the others."""
    biases = [p.bias for p in found if p.bias] or [1.0]
    variances = [p.variance for p in found if p.variance > 0] or [1.0]
    return min(biases) / 3, min(variances) / 3


def _mark(ax: Any, p: Point, left: float, low: float) -> None:
    own = p.colour is None
    look = (
        {"marker": "o", "mfc": "none", "mec": "black", "ms": 12, "mew": 2, "zorder": 4}
        if own
        else {"marker": p.marker, "color": p.colour, "ms": 6.5, "zorder": 3}
    )
    cost = f"{p.cost:.3g}"
    ax.plot(
        p.bias or left,
        max(p.variance, low),
        ls="none",
        label=f"{p.label} · {cost}",
        gid=p.name,
        **look,
    )


def _axes(ax: Any, left: float) -> None:
    ax.set(xscale="log", yscale="log", xlabel="bias, relative to the gradient's length",
           ylabel="variance, relative to its square")  # fmt: skip
    ax.axvspan(left / 1.6, left * 1.6, color="#808080", alpha=0.12, lw=0)
    ax.text(left, 1.01, "none seen", transform=ax.get_xaxis_transform(), ha="center", fontsize=9.5)
    ax.set_xlim(left=left / 1.6)
    ax.grid(True)
