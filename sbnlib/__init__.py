"""Stochastic binary networks: estimators, exact gradients, measurements.

Imports point one way: noise, contracts -> units -> estimators -> registry -> nn, network ->
inference, exact, accuracy -> figures, data -> optim -> experiments. A test holds the arrows.
"""

from sbnlib import nn, optim, registry
from sbnlib.accuracy import Accuracy, Estimate, measure
from sbnlib.estimators import (
    arm,
    chain_rule,
    concrete,
    control_variate_loss,
    darn,
    disarm,
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
    st_gumbel,
    straight_through,
    zgr,
)
from sbnlib.exact import exact_expectation, exact_gradient, exact_moments
from sbnlib.inference import reestimate_batch_norm, set_mode, to_plain
from sbnlib.network import SBN, layerwise, network_estimator, pathwise
from sbnlib.noise import Cauchy, FastSigmoid, Gaussian, Logistic, Noise, Triangular, Uniform
from sbnlib.units import sample_sign

__version__ = "0.2.0"

__all__ = [
    "Accuracy",
    "Cauchy",
    "Estimate",
    "FastSigmoid",
    "Gaussian",
    "Logistic",
    "Noise",
    "SBN",
    "Triangular",
    "Uniform",
    "arm",
    "chain_rule",
    "concrete",
    "control_variate_loss",
    "darn",
    "disarm",
    "exact_expectation",
    "exact_gradient",
    "exact_moments",
    "gumbel_rao",
    "identity",
    "layerwise",
    "local_expectation",
    "measure",
    "muprop",
    "network_estimator",
    "nn",
    "optim",
    "pathwise",
    "proxy",
    "psa",
    "rebar",
    "reestimate_batch_norm",
    "registry",
    "reinforce",
    "reinmax",
    "relax",
    "sample_sign",
    "set_mode",
    "st_gumbel",
    "straight_through",
    "to_plain",
    "zgr",
]
