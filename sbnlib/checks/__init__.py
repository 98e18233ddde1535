"""Checks of a training script, by name: each looks for one fault that others have made.

>>> import torch
>>> from sbnlib import checks
>>> finding = checks.pooled_variance(lambda groups: groups.var(dim=1).mean())
>>> finding.wrong, finding.code
(True, 'pooled-variance')

Each returns a :class:`sbnlib.diagnose.Finding`: ``code``, the fault that was looked for;
``wrong``, whether it is there; ``words``, what was seen; ``advice``. In a test it stands as
``assert not finding.wrong, finding``. Modules, gradients, torch's generators and settings are left
as they were. What slope and law a unit has :func:`sbnlib.diagnose_unit` says.
"""

from sbnlib.checks.measuring import bias_metric, pooled_variance, rare_state
from sbnlib.checks.running import (
    deterministic,
    finite_difference,
    gradients_untouched,
    parameters_reached,
    statistics_untouched,
    weights_untouched,
)
from sbnlib.checks.training import (
    binary_weights,
    clamped,
    current,
    dead_zone,
    gradient_scale,
    noise_level,
    scales_once,
)
from sbnlib.checks.units import coding, heavy_factor, hidden_clamp, temperature, ties

__all__ = [
    "bias_metric",
    "binary_weights",
    "clamped",
    "coding",
    "current",
    "dead_zone",
    "deterministic",
    "finite_difference",
    "gradient_scale",
    "gradients_untouched",
    "heavy_factor",
    "hidden_clamp",
    "noise_level",
    "parameters_reached",
    "pooled_variance",
    "rare_state",
    "scales_once",
    "statistics_untouched",
    "temperature",
    "ties",
    "weights_untouched",
]


def __dir__() -> list[str]:  # what completion offers
    return __all__
