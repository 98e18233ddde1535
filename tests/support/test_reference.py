"""The reference implementations themselves, each against a second way."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
from bridge import random_inputs
from scipy import integrate, stats

GRID = np.linspace(-3, 3, 41) + 0.013


@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("name", [n for n in ref.NOISES if n != "FastSigmoid"])
def test_closed_forms_equal_scipy(name: str, scale: float) -> None:
    noise = ref.RefNoise(name, scale)
    np.testing.assert_allclose(noise.cdf(GRID), noise.scipy().cdf(GRID), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(noise.pdf(GRID), noise.scipy().pdf(GRID), rtol=1e-12)


@pytest.mark.parametrize("name", ref.NOISES)
def test_density_is_the_derivative_of_the_distribution_function(name: str) -> None:
    noise = ref.RefNoise(name, 0.7)
    assert integrate.quad(noise.pdf, -0.5, 0.4, points=[0])[0] == pytest.approx(
        float(noise.cdf(0.4) - noise.cdf(-0.5)), abs=1e-12
    )


@pytest.mark.parametrize("kind", [*ref.LOSSES, "targets"])
def test_loss_gradients_equal_finite_differences_and_torch_values(kind: str) -> None:
    import torch

    loss = ref.target_loss(3, 2, 1) if kind == "targets" else ref.LOSSES[kind](3, 1)
    x = np.random.default_rng(0).normal(size=(2, 3))
    values = loss.torch(torch.tensor(x)).numpy()
    for b in range(2):
        numeric = ref.finite_difference(lambda v, b=b: float(loss.value(v, b)), x[b])
        np.testing.assert_allclose(loss.gradient(x[b], b), numeric, atol=1e-8)
        assert values[b] == pytest.approx(float(loss.value(x[b], b)), rel=1e-13)


@pytest.mark.parametrize("name", ref.NOISES)
def test_brute_force_gradient_equals_finite_differences(name: str) -> None:
    net = ref.random_net((2, 2, 3), ref.RefNoise(name, 4.0), seed=3)
    inputs, loss = random_inputs(2, 2), ref.smooth_loss(3)
    exact = ref.gradient(net, inputs, loss)
    for k, weight in enumerate(net.weights):

        def value(w: np.ndarray, k: int = k) -> float:
            weights = (*net.weights[:k], w, *net.weights[k + 1 :])
            return ref.expectation(ref.RefNet(weights, net.biases, net.noise), inputs, loss).mean()

        np.testing.assert_allclose(
            exact[k, "weight"], ref.finite_difference(value, weight), atol=1e-8
        )


def test_path_probabilities_sum_to_one() -> None:
    net = ref.random_net((2, 3, 2), ref.RefNoise("Gaussian"))
    total = ref.path_probabilities(net, np.ones(2), ref.paths(net.widths)).sum()
    assert total == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("name", ["straight_through", "zgr", "darn_mean"])
def test_variance_of_a_mean_loss_is_the_sum_over_inputs_by_batch_squared(name: str) -> None:
    net = ref.random_net((2, 2, 1), ref.RefNoise("Logistic"), seed=1)
    inputs, loss = random_inputs(2, 2), ref.target_loss(1, 2)
    formula = ref.moments(net, inputs, loss, name)
    for key, (mean, variance) in ref.joint_moments(net, inputs, loss, name).items():
        np.testing.assert_allclose(formula[key][0], mean, atol=1e-14)
        np.testing.assert_allclose(formula[key][1], variance, atol=1e-14)


def test_scipy_is_not_used_where_it_loses_the_tail() -> None:
    # The closed form 1 / (pi |a|) (1 - 1/(3 a^2)) at -1e6, to 1e-12
    tail = 1 / (np.pi * 1e6)
    assert ref.RefNoise("Cauchy").cdf(-1e6) == pytest.approx(tail, rel=1e-11)
    assert ref.RefNoise("Gaussian").cdf(-12.0) == pytest.approx(
        np.exp(stats.norm.logcdf(-12.0)), rel=1e-11
    )
