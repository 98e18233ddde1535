"""A doctor for straight-through code: what a binarization really does.

>>> import sbnlib, torch
>>> def unit(a):
...     m = torch.tanh(a)
...     return torch.where(a >= 0, 1.0, -1.0).to(a) + 2 * (m - m.detach())
>>> report = sbnlib.diagnose_unit(unit)
>>> report.mismatch, report.slope_noise      # twice as steep as the noise of its shape allows
(2.0, Logistic(scale=0.5))

On a command line: ``python -m sbnlib.diagnose my_module:MyUnit``.
"""

from sbnlib.diagnose.doctor import diagnose, diagnose_unit
from sbnlib.diagnose.findings import Finding
from sbnlib.diagnose.report import ModelReport, UnitReport, chart

__all__ = ["Finding", "ModelReport", "UnitReport", "chart", "diagnose", "diagnose_unit"]


def __dir__() -> list[str]:  # what completion offers
    return __all__
