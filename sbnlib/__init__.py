"""Stochastic binary networks: estimators, exact gradients, measurements.

Imports point one way: noise, contracts -> kernels -> units -> estimators, levels -> categories,
registry -> nn, network -> inference, exact, accuracy -> figures, data -> depth, map -> diagnose ->
checks -> optim -> experiments. A test holds the arrows.
"""

from sbnlib import categories as categories
from sbnlib import checks as checks
from sbnlib import levels as levels
from sbnlib import nn as nn
from sbnlib import optim as optim
from sbnlib import registry as registry
from sbnlib.accuracy import Accuracy, Estimate, measure
from sbnlib.coding import on_signs, to_bits, to_signs
from sbnlib.costs import Cost, Summary, summary
from sbnlib.depth import gain, overlap
from sbnlib.diagnose import ModelReport, UnitReport, diagnose, diagnose_unit
from sbnlib.estimators import (
    arm,
    chain_rule,
    concrete,
    control_variate_loss,
    darn,
    disarm,
    foust,
    gauge_fixed,
    gumbel_rao,
    identity,
    local_expectation,
    muprop,
    proxy,
    psa,
    rebar,
    reinforce,
    reinmax,
    relax,
    shrinkage,
    st_gumbel,
    straight_through,
    zgr,
)
from sbnlib.exact import exact_expectation, exact_gradient, exact_moments
from sbnlib.inference import reestimate_batch_norm, set_mode, to_plain
from sbnlib.losses import autoencoding_loss, classification_loss, kl_bits
from sbnlib.network import SBN, layerwise, network_estimator, pathwise
from sbnlib.noise import Cauchy, FastSigmoid, Gaussian, Logistic, Noise, Triangular, Uniform
from sbnlib.units import sample_sign

__version__ = "0.2.0"

__all__ = [
    "Accuracy",
    "Cauchy",
    "Cost",
    "Estimate",
    "FastSigmoid",
    "Gaussian",
    "Logistic",
    "ModelReport",
    "Noise",
    "SBN",
    "Summary",
    "Triangular",
    "Uniform",
    "UnitReport",
    "arm",
    "autoencoding_loss",
    "chain_rule",
    "classification_loss",
    "concrete",
    "control_variate_loss",
    "darn",
    "diagnose",
    "diagnose_unit",
    "disarm",
    "foust",
    "exact_expectation",
    "exact_gradient",
    "exact_moments",
    "gain",
    "gauge_fixed",
    "gumbel_rao",
    "identity",
    "kl_bits",
    "layerwise",
    "local_expectation",
    "measure",
    "muprop",
    "network_estimator",
    "on_signs",
    "overlap",
    "pathwise",
    "proxy",
    "psa",
    "rebar",
    "reestimate_batch_norm",
    "reinforce",
    "reinmax",
    "relax",
    "sample_sign",
    "set_mode",
    "shrinkage",
    "st_gumbel",
    "straight_through",
    "summary",
    "to_bits",
    "to_plain",
    "to_signs",
    "zgr",
]


def __dir__() -> list[str]:
    """What completion offers: the public names, and the modules that come with them.

    ``from sbnlib import *`` leaves the modules out, or they would replace torch's ``nn`` and
    ``optim``.
    """
    modules = ["categories", "checks", "levels", "nn", "optim", "registry"]
    return [*__all__, *modules, "__version__"]
