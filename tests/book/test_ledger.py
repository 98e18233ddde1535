"""The reproduction ledger: every number of ours, computed again or read from its measurement.

Where a number of theirs is what a released program computes, that is written out here from its
formula; what the ledger says and what comes out are compared to the last printed digit.
"""

from __future__ import annotations

import json
import math
import tomllib
from typing import Any

import numpy as np
import pytest
import torch
from bridge import make_noise
from places import BOOK, MEASUREMENTS
from scipy import optimize, stats

import sbnlib
from sbnlib.estimators import PROXIES

LEDGER = tomllib.loads((BOOK / "back" / "ledger.toml").read_text("utf-8"))
ENTRIES = {entry["id"]: entry for entry in LEDGER["number"] + LEDGER["other"]}


def rows(name: str, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of a measurement that the book keeps, with these values."""
    found = json.loads((MEASUREMENTS / f"{name}.json").read_text("utf-8"))["rows"]
    return [row for row in found if all(row.get(k) == v for k, v in wanted.items())]


def holds(name: str, ours: str, *, theirs: str = "", error: str = "") -> None:
    """The ledger has these numbers, as they are printed."""
    entry = ENTRIES[name]
    assert (entry["ours"], entry.get("error", "")) == (ours, error)
    assert not theirs or entry["theirs"] == theirs


# ----------------------------------------------------------------------- the subject's papers


def test_psa_bias() -> None:
    (row,) = rows("width-law", estimator="psa", layers=3, width=64)
    assert row["nets"] == 400
    holds("psa-bias", f"{row['relative_bias']:.3f}", error=f"{row['se']:.3f}")


def test_psa_terms() -> None:
    """All states of three layers of five units, against pairs of neighbouring layers."""
    theirs = 2 ** (5 + 5 + 5)
    ours = 2**5 + 2 ** (5 + 5) + 2 ** (5 + 5) + 2**5
    holds("psa-terms", str(ours), theirs=str(theirs))
    found = {r["way"]: r["terms"] for r in rows("exact-cost", layers=3, width=5)}
    assert found == {"enumeration": theirs, "layers": ours, "library": ours}


def test_psa_hardst() -> None:
    """The mean of the sampled sign is 2F - 1; its slope at 0, by differences."""
    mean = lambda a: 2 / (1 + math.exp(-a)) - 1  # noqa: E731
    exact = (mean(1e-4) - mean(-1e-4)) / 2e-4
    a = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    x = torch.ones(1, dtype=torch.float64)
    value = sbnlib.proxy(a, x, sbnlib.Logistic(), name="hardtanh")
    (slope,) = torch.autograd.grad(value.sum(), a)
    holds("psa-hardst", f"{exact:.1f}", theirs=f"{slope.item():.1f}")


def test_psa_temperature() -> None:
    """tanh((a - Z) / T) is our tanh((a - Z) / 2 tau): the tau of T = 1, from both curves."""
    a, u = torch.linspace(-3, 3, 13, dtype=torch.float64), torch.full((13,), 0.3).double()
    z = torch.log(u) - torch.log1p(-u)
    theirs, tau = torch.tanh((a - z) / 1.0), float(ENTRIES["psa-temperature"]["ours"])
    ours = sbnlib.concrete(a, sbnlib.Logistic(), tau=tau, u=u)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    holds("psa-temperature", f"{tau:g}", theirs="1")


def test_psa_pooled() -> None:
    """Their rule weighs the variances of the groups and leaves out the spread of their means."""
    groups = [np.zeros(100), np.ones(100)]
    theirs = sum(len(g) * g.var() for g in groups) / 200
    holds("psa-pooled", f"{np.concatenate(groups).var():g}", theirs=f"{theirs:g}")


def test_deep_variance() -> None:
    found = {r["estimator"]: r for r in rows("variance-law", layers=3, width=64)}
    ours, other = found["reinforce"], found["straight_through"]
    assert ours["nets"] == 400
    holds("deep-variance", f"{ours['relative_variance']:.0f}", error=f"{ours['se']:.0f}")
    assert ENTRIES["deep-variance"]["verdict"].endswith(f"{other['relative_variance']:.1f} there")


def test_bayes_mean() -> None:
    """One uniform of 2^24 gives w = 0 and the factor 1e10; every other one the constant, 1."""
    draws, tau, constant = 2**24, 1e-10, 1e-10
    one = (1 - 0 + constant) / tau
    others = (draws - 1) * constant / tau
    holds("bayes-mean", f"{(one + others) / draws:.2f}")


@pytest.mark.parametrize("a", [-2.5, -0.3, 0.0, 0.8, 3.0])
@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_zgr_bits(a: float, bit: float) -> None:
    """Their factor of a bit is half the probability of the other bit; a sign has twice that."""
    p = 1 / (1 + math.exp(-a))
    theirs = (bit * (1 - p) + (1 - bit) * p) / 2
    at = torch.tensor([a], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([2 * bit - 1], dtype=torch.float64)
    (ours,) = torch.autograd.grad(sbnlib.zgr(at, x, sbnlib.Logistic()).sum(), at)
    assert ours.item() == pytest.approx(2 * theirs, rel=1e-12)
    holds("zgr-bits", "equal to rounding", theirs="equal")


# ------------------------------------------------------------------------------- other works


def test_zgr_uniform() -> None:
    found = {r["estimator"]: r for r in rows("how-deep-cures", noise="Uniform", depth=8)
             if r["estimator"] in ("zgr", "straight_through")}  # fmt: skip
    mean = {name: np.mean(r["ten"]) for name, r in found.items()}
    error = np.std(found["zgr"]["ten"], ddof=1) / math.sqrt(len(found["zgr"]["ten"]))
    holds("zgr-uniform", f"{mean['zgr']:.3f}", error=f"{error:.3f}")
    assert f"straight-through has {mean['straight_through']:.3f}" in ENTRIES["zgr-uniform"]["what"]


def test_reinmax_two() -> None:
    """2 J((pi_tau + D) / 2) - J(pi) / 2 for two categories, averaged over D by its law."""
    a, tau = 0.7, 2.0
    p, cold = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-a / tau))

    def factor(v: float) -> float:  # of the difference of the two entries
        return 2 * (2 * v * (1 - v) - p * (1 - p) / 2)

    theirs = p * factor((cold + 1) / 2) + (1 - p) * factor(cold / 2)
    exact = 2 * make_noise("Logistic").pdf(torch.tensor(a, dtype=torch.float64)).item()
    holds("reinmax-two", f"{exact:.4f}", theirs=f"{theirs:.4f}")
    assert f"exact is {exact:.4f}" in ENTRIES["reinmax-two"]["what"]


def test_bayes_constant() -> None:
    """(1 - w^2 + 1e-10) / tau / (1 - mu^2 + 1e-10) with w rounded to 1 and mu = 0."""
    tau = 1e-8
    w = np.tanh(np.float32(0.5) / np.float32(tau))
    assert w == 1
    factor = (1 - w**2 + 1e-10) / tau / (1 + 1e-10)
    holds("bayes-constant", f"{factor:.2f}", theirs=f"{factor:.2f}")


def test_ede_start() -> None:
    """The slope k t (1 - tanh^2 t a) with k = max(1/t, 1): its integral is 2k, at t = 1e-3."""
    t = 1e-3
    k = max(1 / t, 1)
    a = np.linspace(-30 / t, 30 / t, 600_001)
    integral = np.trapezoid(k * t / np.cosh(t * a) ** 2, a)
    holds("ede-start", f"{integral / 2:.0f}", theirs="1")
    assert PROXIES["ede"].integral == 20  # the same rule at the t = 1/10 of the paper


def test_levels() -> None:
    """Share of a small overlap that N equal steps of the best size keep, from normal integrals."""
    levels = [2**k for k in range(1, 9)]
    depths = [-1 / math.log(kept(N)) for N in levels]
    exponents = np.log2(np.divide(depths[1:], depths[:-1]))
    holds("levels", f"{exponents.min():.2f} to {exponents.max():.2f}", theirs="1.82")
    assert "N from 2 to 128" in ENTRIES["levels"]["what"] and levels[-2] == 128


def kept(N: int) -> float:
    """(E x a)^2 / E x^2 for N levels and a normal number a, at the best step."""

    def share(step: float) -> float:
        ends = np.concatenate([[-np.inf], (np.arange(1, N) - N / 2) * step, [np.inf]])
        x = np.arange(N) - (N - 1) / 2
        with_a = (x * -np.diff(stats.norm.pdf(ends))).sum()
        return with_a**2 / (x**2 * np.diff(stats.norm.cdf(ends))).sum()

    found = optimize.minimize_scalar(lambda step: -share(step), bounds=(1e-3, 3), method="bounded",
                                     options={"xatol": 1e-10})  # fmt: skip
    return -found.fun


def test_xnor() -> None:
    found = [r["seconds"] for r in rows("packing", part="product", inputs=4096)]
    gains = [s["float32"][0] / s["numba"][0] for s in found]
    holds("xnor", f"{min(gains):.0f} to {max(gains):.0f}", theirs="58")


def test_every_number_of_ours_is_computed_here_or_held_elsewhere() -> None:
    """An entry names the test that computes it; this file has no other tests of entries."""
    here = {e["test"].partition("::")[2] for e in ENTRIES.values()
            if e["test"].startswith("test_ledger.py::")}  # fmt: skip
    written = {name for name in globals() if name.startswith("test_")}
    assert written - here == {"test_every_number_of_ours_is_computed_here_or_held_elsewhere"}
    assert len(ENTRIES) == len(LEDGER["number"]) + len(LEDGER["other"])
