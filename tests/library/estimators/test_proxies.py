"""Every proxy that sbnlib lists: its slope, its integral, its noise, its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bridge import reference_of
from discovered import PROXIES
from formulas import PROXY_FORMULAS
from reference import Array
from rows import panels
from slopes import SLOPES

import sbnlib
from sbnlib import proxy, straight_through

proxies = pytest.mark.parametrize("name", PROXIES)
MAGNITUDES = np.geomspace(1e-3, 300, 60)
GRID = np.concatenate([-MAGNITUDES[::-1], [-1.0, 0.0, 1.0], MAGNITUDES])


def slope(name: str, a: Array) -> Array:
    return PROXIES[name].h(torch.tensor(a)).numpy()


def whole_integral(name: str) -> float:
    """int h over the line in theta where the point is 5 tan(theta); 0 and +-1 are stops."""
    kinks = [math.atan(k / 5) for k in (-1, 0, 1)]
    theta, weight = panels(sorted({*np.linspace(-math.pi / 2, math.pi / 2, 61), *kinks}))
    return float(weight @ (5 * slope(name, 5 * np.tan(theta)) / np.cos(theta) ** 2))


@proxies
def test_the_slope_is_the_published_one(name: str) -> None:
    assert PROXIES[name].name == name
    np.testing.assert_allclose(slope(name, GRID), SLOPES[name].slope(GRID), rtol=1e-11, atol=1e-15)


@proxies
def test_a_proxy_is_even_and_its_gradient_is_the_slope(name: str) -> None:
    assert np.array_equal(slope(name, GRID), slope(name, -GRID))
    a = torch.tensor(GRID, requires_grad=True)
    proxy(a, torch.ones_like(a), None, name=name).sum().backward()
    np.testing.assert_allclose(a.grad, SLOPES[name].slope(GRID), rtol=1e-11, atol=1e-15)


@proxies
def test_the_integral_is_the_one_that_it_states(name: str) -> None:
    stated = PROXIES[name].integral
    assert whole_integral(name) == pytest.approx(stated, rel=1e-10)
    assert stated == pytest.approx(SLOPES[name].rise, rel=1e-12)


@proxies
def test_the_noise_is_the_law_of_which_the_slope_is_twice_the_density(name: str) -> None:
    noise = PROXIES[name].noise
    if noise is None:  # and none is left out: no density is negative, or integrates to another mass
        assert whole_integral(name) != pytest.approx(2, rel=1e-10) or slope(name, GRID).min() < 0
        return
    law = reference_of(noise)
    assert (law.name, law.scale) == SLOPES[name].noise
    np.testing.assert_allclose(slope(name, GRID), 2 * law.pdf(GRID), rtol=1e-11, atol=1e-15)


@proxies
def test_the_formula_is_the_slope(name: str) -> None:
    """The LaTeX of the table in the reference, looked up as it is printed."""
    printed = PROXY_FORMULAS[PROXIES[name].formula](GRID)
    np.testing.assert_allclose(printed, SLOPES[name].slope(GRID), rtol=1e-10, atol=1e-12)
    assert PROXIES[name].source.strip()


def test_no_two_proxies_have_one_formula() -> None:
    assert len({p.formula for p in PROXIES.values()}) == len(PROXIES)


def test_swish_sign_is_negative_beyond_2_40() -> None:
    # The sign of beta (2 - z tanh(z/2)) / (1 + cosh z), z = beta a and h(0) = beta
    z = np.array([0.0, 1.0, 2.39, 2.41, 4.0, 30.0])
    h = slope("swish_sign", z / slope("swish_sign", np.zeros(1)))
    assert np.array_equal(h > 0, z < 2.4)


def test_mismatched_noise_and_proxy_are_twice_the_exact_gradient() -> None:
    # Logistic sampling, hardtanh slope at a = 0: 1 where 2 f(0) = 0.5 is exact
    a, x = torch.zeros(1, requires_grad=True), torch.ones(1)
    proxy(a, x, sbnlib.Logistic(), name="hardtanh").backward()
    assert a.grad.item() == 1.0
    a.grad = None
    straight_through(a, x, sbnlib.Logistic()).backward()
    assert a.grad.item() == 0.5


def test_an_unknown_proxy_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(ValueError, match="softsign") as caught:
        proxy(torch.zeros(1), torch.ones(1), name="softsign")
    assert all(name in str(caught.value) for name in PROXIES)
