"""The reference implementations themselves, each against a second way."""

from __future__ import annotations

import dataclasses
import itertools
import math

import bridge
import formulas
import numpy as np
import pytest
import reference as ref
import slopes
import updates
from bridge import random_inputs
from scipy import integrate, stats

GRID = np.linspace(-3, 3, 41) + 0.013
P = np.array([1e-30, 1e-9, 0.03, 0.3, 0.71, 0.96])
laws = pytest.mark.parametrize("name", ref.NOISES)

# ------------------------------------------------------------------------- unknown names


def test_a_table_raises_and_lists_what_it_has() -> None:
    table = ref.Named("colour", {"red": 1, "blue": 2})
    assert table["red"] == 1
    with pytest.raises(ValueError, match="unknown colour 'green'; known: red, blue"):
        table["green"]


UNKNOWN = {
    "noise": lambda: ref.RefNoise("Laplace"),
    "noise, cased otherwise": lambda: ref.RefNoise("triangular"),
    "noise of sbnlib": lambda: bridge.make_noise("Laplace"),
    "base class of the noises": lambda: bridge.make_noise("Noise"),
    "loss": lambda: ref.LOSSES["cubic"],
    "estimator": lambda: ref.factor("darn", ref.RefNoise("Logistic"), GRID, np.sign(GRID)),
    "proxy": lambda: slopes.SLOPES["softsign"],
    "optimizer": lambda: updates.CASES["sgd"],
    "map": lambda: updates.MAPS["sign"],
    "mode": lambda: dataclasses.replace(updates.CASES["bop"], mode="half").used(GRID, GRID),
    "cell of the noise table": lambda: formulas.NOISE_CELLS["$1-|a|^7$"],
    "formula of a proxy": lambda: formulas.PROXY_FORMULAS["1-|a|^7"],
    "docstring": lambda: formulas.NOISE_DOCSTRINGS["f(a) = 1 - |a|^7"],
    "quantity": lambda: formulas.QUANTITIES["3f"],
}
LISTED = {
    "loss": "quadratic", "estimator": "darn_mean", "proxy": "hardtanh", "optimizer": "bayesbinn",
    "map": "parq", "mode": "concrete", "cell of the noise table": "hardtanh",
    "formula of a proxy": "beta", "docstring": "2f = 2", "quantity": "mean",
}  # fmt: skip


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_unknown_name_is_never_taken_for_a_known_one(what: str) -> None:
    with pytest.raises(ValueError, match=f"unknown .*known: .*{LISTED.get(what, 'Triangular')}"):
        UNKNOWN[what]()


def test_an_s_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="only chain_rule has an s.*'zgr'"):
        ref.factor("zgr", ref.RefNoise("Logistic"), GRID, np.sign(GRID), 0.3)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_is_a_positive_number(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        ref.RefNoise("Logistic", scale)


# ------------------------------------------------------------------------------- the laws


@pytest.mark.parametrize("name", [n for n, law in ref.LAWS.items() if law.scipy])
def test_closed_forms_equal_scipy(name: str) -> None:
    noise = ref.RefNoise(name, 0.5)
    np.testing.assert_allclose(noise.cdf(GRID), noise.scipy().cdf(GRID), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(noise.pdf(GRID), noise.scipy().pdf(GRID), rtol=1e-12)
    np.testing.assert_allclose(noise.icdf(P), noise.scipy().ppf(P), rtol=1e-12)


def test_only_the_fast_sigmoid_is_unknown_to_scipy() -> None:
    assert [n for n in ref.NOISES if ref.RefNoise(n).scipy() is None] == ["FastSigmoid"]


@laws
def test_density_is_the_derivative_of_the_distribution_function(name: str) -> None:
    noise = ref.RefNoise(name, 0.7)
    assert integrate.quad(noise.pdf, -0.5, 0.4, points=[0])[0] == pytest.approx(
        float(noise.cdf(0.4) - noise.cdf(-0.5)), abs=1e-12
    )


@laws
def test_quantiles_invert_the_distribution_function(name: str) -> None:
    noise = ref.RefNoise(name, 0.7)
    p = P[2:] if name in ref.BOUNDED else P  # near the end of a support a itself is rounded
    np.testing.assert_allclose(noise.cdf(noise.icdf(p)), p, rtol=1e-12)
    np.testing.assert_allclose(noise.icdf(1 - P[2:]), -noise.icdf(P[2:]), rtol=1e-12)


@laws
def test_the_mirror_function_has_the_quantile_as_derivative(name: str) -> None:
    noise = ref.RefNoise(name, 0.7)
    for p in P[2:]:
        up, down = (float(noise.divergence(p + d, 0.5)) for d in (1e-6, -1e-6))
        assert math.isclose((up - down) / 2e-6, float(noise.icdf(p)), rel_tol=1e-7)


def test_the_divergence_is_a_kl_for_logistic_noise_and_a_square_for_uniform() -> None:
    p, q = np.array([0.1, 0.6, 0.9]), np.array([0.5, 0.2, 0.95])
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(ref.RefNoise("Logistic").divergence(p, q), kl, rtol=1e-12)
    np.testing.assert_allclose(ref.RefNoise("Uniform").divergence(p, q), (p - q) ** 2, rtol=1e-12)


def test_scipy_is_not_used_where_it_loses_the_tail() -> None:
    # The closed form 1 / (pi |a|) (1 - 1/(3 a^2)) at -1e6, to 1e-12
    tail = 1 / (np.pi * 1e6)
    assert ref.RefNoise("Cauchy").cdf(-1e6) == pytest.approx(tail, rel=1e-11)
    assert ref.RefNoise("Gaussian").cdf(-12.0) == pytest.approx(
        np.exp(stats.norm.logcdf(-12.0)), rel=1e-11
    )


# ------------------------------------------------------------------------------ the factors


@pytest.mark.parametrize("name", ref.FACTORS)
def test_relabelling_the_states_changes_no_factor(name: str) -> None:
    # L~(x) = L(-x) at -a: the same factor, so the gradient changes its sign with a
    a, s = np.linspace(-0.95, 0.95, 8), 0.3 if name == "chain_rule" else 0.0
    for noise, sign in itertools.product(map(ref.RefNoise, ref.NOISES), (-1.0, 1.0)):
        x = np.full(8, sign)
        here, there = ref.factor(name, noise, a, x, s), ref.factor(name, noise, -a, -x, s)
        np.testing.assert_allclose(there, here, rtol=1e-12, atol=1e-15, err_msg=noise.name)


# -------------------------------------------------------------------------- losses, networks


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


@laws
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
