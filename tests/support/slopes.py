"""The proxies in numpy: each a function known from the literature, and its derivative by hand.

A proxy slope h is the derivative of the function that is put in place of the sign in the backward
pass; its integral over the line is the rise of that function. ``test_slopes.py`` holds the two
against each other, so neither can be wrong alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from reference import Array, Named
from scipy import special


@dataclass(frozen=True)
class RefProxy:
    """A proxy.

    Attributes:
        slope: h.
        function: H with H' = h, odd.
        rise: H(inf) - H(-inf), the integral of h.
        noise: the name and scale of the law of which h is 2f, None if there is none.
    """

    slope: Callable[[Array], Array]
    function: Callable[[Array], Array]
    rise: float = 2.0
    noise: tuple[str, float] | None = None


def _sech2(a: Array) -> Array:
    """1 - tanh^2, in terms of e = exp(-2|a|), which does not overflow."""
    e = np.exp(-2 * np.abs(a))
    return 4 * e / (1 + e) ** 2


def _approx_sign(a: Array) -> Array:
    """Liu et al. 2018: 2a + a^2 below 0, 2a - a^2 above, the sign beyond 1."""
    a = np.clip(a, -1, 1)
    return 2 * a - a * np.abs(a)


def _power(a: Array) -> Array:
    """Wu et al. 2023, the released code: the cube root, its chord up to 0.1, constant from 1.5."""
    size = np.minimum(np.abs(a), 1.5)
    return np.sign(a) * np.where(size <= 0.1, size / 0.1 * np.cbrt(0.1), np.cbrt(size))


def _power_slope(a: Array) -> Array:
    size = np.abs(a)
    root = np.cbrt(np.maximum(size, 0.1))
    return np.where(size <= 0.1, np.cbrt(0.1) / 0.1, 1 / (3 * root**2)) * (size <= 1.5)


def _sign_swish(a: Array) -> Array:
    """Darabi et al. 2018: 2 s(z)(1 + z (1 - s(z))) - 1 with z = 5a and s the logistic function."""
    z = 5 * a
    return 2 * special.expit(z) * (1 + z * special.expit(-z)) - 1


def _sign_swish_slope(a: Array) -> Array:
    """5 (2 - z tanh(z/2))/(1 + cosh z) with z = 5a."""
    z = 5 * a
    return 2.5 * (2 - z * np.tanh(z / 2)) * _sech2(z / 2)


SLOPES = Named(
    "proxy",
    {
        "hardtanh": RefProxy(
            slope=lambda a: np.where(np.abs(a) < 1, 1.0, 0.0),
            function=lambda a: np.clip(a, -1, 1),
            noise=("Uniform", 1.0),
        ),
        "tanh": RefProxy(slope=_sech2, function=np.tanh, noise=("Logistic", 0.5)),
        "half_tanh": RefProxy(
            slope=lambda a: 0.5 * _sech2(a / 2),
            function=lambda a: np.tanh(a / 2),
            noise=("Logistic", 1.0),
        ),
        "approx_sign": RefProxy(
            slope=lambda a: np.maximum(0.0, 2 - 2 * np.abs(a)),
            function=_approx_sign,
            noise=("Triangular", 1.0),
        ),
        "erf": RefProxy(
            slope=lambda a: np.sqrt(2 / np.pi) * np.exp(-0.5 * a * a),
            function=lambda a: special.erf(a / np.sqrt(2)),
            noise=("Gaussian", 1.0),
        ),
        "arctan": RefProxy(
            slope=lambda a: 2 / np.pi / (1 + a * a),
            function=lambda a: 2 / np.pi * np.arctan(a),
            noise=("Cauchy", 1.0),
        ),
        "fast_sigmoid": RefProxy(
            slope=lambda a: (1 + np.abs(a)) ** -2.0,
            function=lambda a: a / (1 + np.abs(a)),
            noise=("FastSigmoid", 1.0),
        ),
        "superspike": RefProxy(
            slope=lambda a: (1 + 10 * np.abs(a)) ** -2.0,
            function=lambda a: a / (1 + 10 * np.abs(a)),
            rise=0.2,
        ),
        "ede": RefProxy(
            slope=lambda a: _sech2(0.1 * a), function=lambda a: 10 * np.tanh(0.1 * a), rise=20.0
        ),
        "ede_late": RefProxy(
            slope=lambda a: 10 * _sech2(10 * a),
            function=lambda a: np.tanh(10 * a),
            noise=("Logistic", 0.05),
        ),
        "reste": RefProxy(slope=_power_slope, function=_power, rise=2 * np.cbrt(1.5)),
        "swish_sign": RefProxy(slope=_sign_swish_slope, function=_sign_swish),
    },
)
