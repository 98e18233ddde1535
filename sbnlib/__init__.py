"""Stochastic binary networks: estimators, exact gradients, measurements."""
