"""The probes do what is said of them: states, slopes, laws and integrals, without a doctor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference as ref
import torch
from probes import PROBES, Probe
from scipy import integrate
from torch import Tensor, nn

POINTS = np.array([0.037, 0.171, 0.423, 0.613, 0.778, 1.21, 1.83, 2.6, 4.1])
POINTS = np.concatenate([-POINTS[::-1], POINTS])
DRAWN = 20_000

judged = pytest.mark.parametrize("name", [p.name for p in PROBES.values() if not p.is_refused()])


def callable_of(made: object):
    if isinstance(made, type) and issubclass(made, torch.autograd.Function):
        return made.apply
    return made() if isinstance(made, type) and issubclass(made, nn.Module) else made


def run(probe: Probe, points: np.ndarray, rows: int = 2) -> tuple[Tensor, Tensor | None]:
    """States and slopes of so many rows with the same points."""
    dtype = torch.float32 if "float32" in probe.codes else torch.float64
    leaf = torch.tensor(points, dtype=dtype).expand(rows, -1).clone().requires_grad_()
    torch.manual_seed(0)
    x = callable_of(probe.make())(leaf.clone())
    h = torch.autograd.grad(x.sum(), leaf, allow_unused=True)[0] if x.requires_grad else None
    return x.detach().double(), None if h is None else h.double()


def drawn(probe: Probe) -> int:
    return DRAWN if probe.expected["forward"] == "sampled" else 2


def ends(probe: Probe) -> tuple[float, float]:
    x, _ = run(probe, np.array([-1e5, 1e5]))
    return x[0, 0].item(), x[0, 1].item()


@pytest.mark.slow
@judged
def test_states(name: str) -> None:
    probe, (low, high) = PROBES[name], ends(PROBES[name])
    x, _ = run(probe, POINTS, drawn(probe))
    zero = torch.stack([run(probe, np.array([v]), 64)[0].flatten() for v in (0.0, -0.0)])
    expected = probe.expected
    if "sign_of_zero" in expected:
        assert tuple(v for v in zero.unique().tolist()) == pytest.approx(expected["sign_of_zero"])
    states = {"±1": {-1.0, 1.0}, "0/1": {0.0, 1.0}}.get(expected.get("coding"))
    many, _ = run(probe, np.linspace(-3, 3, 402))
    seen = set(torch.cat([many.flatten(), zero.flatten()]).tolist())
    if states and "exact_pm1" in expected:
        assert (seen <= states) == expected["exact_pm1"]
    if probe.up:
        p, wide = probe.up(POINTS), high - low
        share = ((x - low) / wide).mean(0).numpy()
        assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / DRAWN) + 1e-9).all()
        assert probe.up(np.array(expected["threshold"])) == pytest.approx(0.5)
    elif "threshold" in expected and "levels" not in probe.codes:
        moved = np.where(expected["threshold"] > POINTS, low, high)
        assert np.allclose(x[0].numpy(), moved, atol=1e-6)
        assert (x[0] == x[1]).all()


@pytest.mark.slow
@judged
def test_slopes(name: str) -> None:
    probe = PROBES[name]
    _, h = run(probe, POINTS, drawn(probe))
    if "no-slope" in probe.codes:
        assert h is None or not h.any()
    elif probe.h:
        error = 6 * h.std(0).numpy() / math.sqrt(len(h))
        error += 1e-6 * (1 + probe.h(POINTS))  # parameters, and one probe, are in float32
        assert (np.abs(h.mean(0).numpy() - probe.h(POINTS)) <= error).all()
        varies = bool((h.std(0) > 1e-6).any())
        assert varies == (probe.expected["slope"] in ("random", "of a and x"))
        if probe.expected["slope"] == "of a" and "nonnegative" in probe.expected:
            far = np.concatenate([POINTS, 5 * POINTS])
            assert (probe.h(far) >= 0).all() == probe.expected["nonnegative"]


@judged
def test_integrals(name: str) -> None:
    probe, expected = PROBES[name], PROBES[name].expected
    if probe.h is None or "integral" not in expected:
        return
    if math.isinf(expected["integral"]):
        assert min(probe.h(np.array([1e4])) * 1e4) > 1  # not even logarithmic
        return
    inner = sorted({-30.0, 30.0, *probe.kinks, *(s * 10.0**k for s in (-1, 1) for k in (-1, 0))})
    edges = [-math.inf, *inner, math.inf]
    total = sum(
        integrate.quad(lambda a: float(probe.h(np.array(a))), *pair, epsabs=1e-10, limit=200)[0]
        for pair in zip(edges, edges[1:], strict=False)
    )
    assert total == pytest.approx(expected["integral"], rel=1e-5)
    if "mismatch" in expected:
        low, high = ends(probe)
        assert total / (high - low) == pytest.approx(expected["mismatch"], rel=1e-5)


def centre(probe: Probe) -> float:
    """Of the slope, half of whose integral lies below; by sums where it is not the threshold."""
    if "shifted" not in probe.codes:
        return probe.expected.get("threshold", 0.0)
    a = np.linspace(-200, 200, 4_000_001)
    below = np.cumsum(probe.h(a))
    return round(float(a[np.searchsorted(below, below[-1] / 2)]), 3)


@judged
def test_laws(name: str) -> None:
    probe, expected = PROBES[name], PROBES[name].expected
    slope, forward = expected.get("slope_noise"), expected.get("forward_noise")
    if slope is not None and probe.h is not None:
        law = ref.RefNoise(type(slope).__name__, slope.scale)
        found = probe.h(POINTS) / expected["integral"]
        assert np.allclose(found, law.pdf(POINTS - centre(probe)), rtol=1e-9, atol=1e-12)
    if forward is not None and probe.up is not None:
        law = ref.RefNoise(type(forward).__name__, forward.scale)
        assert np.allclose(probe.up(POINTS), law.cdf(POINTS - expected["threshold"]), atol=1e-12)
    if expected.get("noise") is not None:
        assert expected["noise"] == forward == slope


def test_names_of_the_brief_are_there() -> None:
    assert len(PROBES) >= 26
    assert {p for p in PROBES.values() if not p.source} == set()
