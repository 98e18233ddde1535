"""Gradient estimators for binary units, one small file an idea."""

from sbnlib.estimators.chain_rule import (
    attach,
    chain_rule,
    darn,
    identity,
    reinmax,
    shrinkage,
    straight_through,
    zgr,
)
from sbnlib.estimators.control_variates import control_variate_loss, muprop, rebar, relax
from sbnlib.estimators.flips import arm, disarm, local_expectation
from sbnlib.estimators.foust import foust
from sbnlib.estimators.gauge import gauge_fixed
from sbnlib.estimators.proxies import PROXIES, Proxy, proxy
from sbnlib.estimators.psa import psa
from sbnlib.estimators.relaxed import concrete, gumbel_rao, st_gumbel
from sbnlib.estimators.score import reinforce

__all__ = [
    "PROXIES",
    "Proxy",
    "arm",
    "attach",
    "chain_rule",
    "concrete",
    "control_variate_loss",
    "darn",
    "disarm",
    "foust",
    "gauge_fixed",
    "gumbel_rao",
    "identity",
    "local_expectation",
    "muprop",
    "proxy",
    "psa",
    "rebar",
    "reinforce",
    "reinmax",
    "relax",
    "shrinkage",
    "st_gumbel",
    "straight_through",
    "zgr",
]
