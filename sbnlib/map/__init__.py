"""The map: where a gradient estimator stands, beside all the others, on one set of problems.

>>> from sbnlib import map as sbn_map
>>> report = sbn_map.place("zgr", problems=["xor-1x5-logistic-1"])
>>> report.row("xor-1x5-logistic-1")["all"]["bias2"]      # the loss is multilinear: no bias
[0.0, 0.0]

On a command line: ``python -m sbnlib.map my_module:my_estimator``.
"""

from sbnlib.map.drawing import Point, chart, points
from sbnlib.map.placing import place
from sbnlib.map.problem_set import NAME, SHA256, Problem, problems
from sbnlib.map.report import Report
from sbnlib.map.stored import results

__all__ = [
    "NAME",
    "SHA256",
    "Point",
    "Problem",
    "Report",
    "chart",
    "place",
    "points",
    "problems",
    "results",
]


def __dir__() -> list[str]:  # what completion offers
    return __all__
