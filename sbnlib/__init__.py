"""Stochastic binary networks: estimators, exact gradients, measurements.

Imports point one way: noise -> units -> estimators -> nn, network -> registry -> exact, accuracy.
"""

from sbnlib import nn, registry
from sbnlib.accuracy import Accuracy, Estimate, measure
from sbnlib.estimators import (
    chain_rule,
    darn,
    identity,
    proxy,
    reinmax,
    straight_through,
    zgr,
)
from sbnlib.exact import exact_expectation, exact_gradient, exact_moments
from sbnlib.network import SBN, pathwise
from sbnlib.noise import Cauchy, FastSigmoid, Gaussian, Logistic, Noise, Triangular, Uniform
from sbnlib.units import sample_sign

__version__ = "0.1.0"

__all__ = [
    "SBN",
    "Accuracy",
    "Cauchy",
    "Estimate",
    "FastSigmoid",
    "Gaussian",
    "Logistic",
    "Noise",
    "Triangular",
    "Uniform",
    "chain_rule",
    "darn",
    "exact_expectation",
    "exact_gradient",
    "exact_moments",
    "identity",
    "measure",
    "nn",
    "pathwise",
    "proxy",
    "registry",
    "reinmax",
    "sample_sign",
    "straight_through",
    "zgr",
]
