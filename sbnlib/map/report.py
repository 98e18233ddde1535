"""The report of :func:`sbnlib.map.place`, as JSON, as a page and as a chart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sbnlib.map.drawing import chart
from sbnlib.map.found import Found
from sbnlib.map.page import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]


@dataclass(frozen=True)
class Report(Found):
    """An estimator's place on the map.

    Attributes:
        name, kind: of the estimator.
        entry: its name in the registry, None for one that was brought.
        sampled: why it was measured by samples; "" where the numbers are exact sums.
        samples: how many a problem; 0 for exact sums.
        command: what makes the report again.
        versions: of sbnlib, torch, numpy and Python.
        rows: one dict a problem: ``problem``, ``loss_evaluations`` and ``forward_passes`` of one
            sample and input, for samples ``effective_samples`` (about how many carry the
            variance), and ``first`` and ``all``, for the first layer and all layers: ``bias2``,
            ``variance``, ``mse`` relative to the squared length of the gradient, ``efficiency``,
            ``cosine`` (of the mean) and ``along``, the component of the mean along the gradient in
            units of the gradient's length. Each is a pair of number and standard error; None where
            samples do not tell.
    """

    def html(self) -> str:
        """The report as one page that asks nothing of other hosts. Needs ``sbnlib[figures]``."""
        return page(self)

    def chart(self, problem: str, *, layers: str = "all") -> Figure:
        """The chart of this problem with the registry's estimators, see :func:`chart`."""
        return chart(problem, self, layers=layers)
