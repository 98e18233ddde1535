"""Gradient estimators for binary units, one small file an idea."""

from sbnlib.estimators.chain_rule import (
    attach,
    chain_rule,
    darn,
    identity,
    reinmax,
    straight_through,
    zgr,
)
from sbnlib.estimators.proxies import PROXIES, Proxy, proxy

__all__ = [
    "PROXIES",
    "Proxy",
    "attach",
    "chain_rule",
    "darn",
    "identity",
    "proxy",
    "reinmax",
    "straight_through",
    "zgr",
]
