"""The reference slopes against the functions of which they are the derivatives."""

from __future__ import annotations

import numpy as np
import pytest
from reference import RefNoise
from slopes import SLOPES

A = np.concatenate([np.linspace(-4, 4, 40), [-30.0, 30.0]]) + 0.003  # no kink within a step
proxies = pytest.mark.parametrize("name", SLOPES)


@proxies
def test_a_slope_is_the_derivative_and_its_integral_the_rise(name: str) -> None:
    known, step = SLOPES[name], 1e-6
    numeric = (known.function(A + step) - known.function(A - step)) / (2 * step)
    np.testing.assert_allclose(known.slope(A), numeric, rtol=1e-7, atol=1e-8)
    far = np.array([1e12])
    assert known.function(far) - known.function(-far) == pytest.approx(known.rise, rel=1e-11)


@proxies
def test_a_noise_is_named_exactly_where_the_function_is_its_mean(name: str) -> None:
    known = SLOPES[name]
    if known.noise is None:
        assert known.rise != 2 or (known.slope(A) < 0).any()
        return
    np.testing.assert_allclose(known.function(A), 2 * RefNoise(*known.noise).cdf(A) - 1, atol=1e-15)
