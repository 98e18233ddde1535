"""Exact expectations, gradients and moments against brute force over the product space."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import in_order, make_net, random_inputs
from scipy import stats
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, vector_to_parameters, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

import sbnlib.exact
from sbnlib import (
    SBN,
    chain_rule,
    darn,
    exact_expectation,
    exact_gradient,
    exact_moments,
    identity,
    pathwise,
    straight_through,
    zgr,
)
from sbnlib.estimators import attach
from sbnlib.exact import all_states
from sbnlib.noise import Noise

WIDTHS = [(2, 1), (3, 3), (2, 3, 3), (2, 1, 2), (2, 2, 3, 2), (1, 2, 2, 1, 2)]
noises = pytest.mark.parametrize("noise_name", ref.NOISES)
nets = pytest.mark.parametrize("widths", WIDTHS, ids=lambda w: "-".join(map(str, w)))
losses = pytest.mark.parametrize("kind", ["linear", "quadratic", "smooth", "targets"])
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def make_loss(kind: str, n: int, batch: int) -> ref.RefLoss:
    return ref.target_loss(n, batch, 1) if kind == "targets" else ref.LOSSES[kind](n, 1)


def case(
    widths: tuple[int, ...], noise_name: str, kind: str = "smooth", batch: int = 3
) -> tuple[ref.RefNet, np.ndarray, ref.RefLoss]:
    net = ref.random_net(widths, ref.RefNoise(noise_name, 1.7), seed=sum(widths))
    return net, random_inputs(batch, widths[0]), make_loss(kind, widths[-1], batch)


@pytest.fixture(params=["split", "full", "as it chooses"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces the two ways of applying a transition: split Kronecker factors, full matrix."""
    if request.param != "as it chooses":
        monkeypatch.setattr(sbnlib.exact, "BLOCK", 0 if request.param == "split" else 1 << 60)
    return request.param


# ----------------------------------------------------------- expectations and gradients


@pytest.mark.slow
@losses
@nets
@noises
def test_expectation_and_gradient_equal_brute_force(
    noise_name: str, widths: tuple[int, ...], kind: str
) -> None:
    net, inputs, loss = case(widths, noise_name, kind)
    model, given = make_net(net), torch.tensor(inputs)
    expected = ref.expectation(net, inputs, loss)
    values = exact_expectation(model, given, loss.torch)
    np.testing.assert_allclose(values.detach().numpy(), expected, **CLOSE)
    mean, grads = exact_gradient(model, given, loss.torch)
    assert mean.item() == pytest.approx(expected.mean(), rel=1e-12)
    assert list(grads) == [name for name, _ in model.named_parameters()]
    for g, e in zip(grads.values(), in_order(ref.gradient(net, inputs, loss)), strict=True):
        np.testing.assert_allclose(g.numpy(), e, **CLOSE)


@pytest.mark.parametrize("batch", [1, 2, 9])
@nets
def test_both_routes_equal_brute_force(widths: tuple[int, ...], batch: int, route: str) -> None:
    net, inputs, loss = case(widths, "Logistic", "targets", batch)
    model = make_net(net)
    mean, grads = exact_gradient(model, torch.tensor(inputs), loss.torch)
    assert mean.item() == pytest.approx(ref.expectation(net, inputs, loss).mean(), rel=1e-12)
    for g, e in zip(grads.values(), in_order(ref.gradient(net, inputs, loss)), strict=True):
        np.testing.assert_allclose(g.numpy(), e, **CLOSE)


@pytest.mark.parametrize("widths", [(2, 10, 1), (1, 1, 10), (2, 9, 2)])
def test_wide_layers_beside_narrow_ones(widths: tuple[int, ...], route: str) -> None:
    net, inputs, loss = case(widths, "Gaussian", "smooth", batch=1)
    mean, grads = exact_gradient(make_net(net), torch.tensor(inputs), loss.torch)
    assert mean.item() == pytest.approx(ref.expectation(net, inputs, loss).item(), rel=1e-12)
    for g, e in zip(grads.values(), in_order(ref.gradient(net, inputs, loss)), strict=True):
        np.testing.assert_allclose(g.numpy(), e, **CLOSE)


def test_a_wide_layer_below_one_unit_by_the_law_of_a_sum() -> None:
    # 14 equal independent bits, one unit above: P(sum) is binomial, no enumeration needed
    net = SBN(nn.Linear(1, 14), nn.Linear(14, 1)).double()
    for layer, weight, bias in zip(net.layers, (0.0, 0.2), (0.5, -0.3), strict=True):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    p = stats.logistic.cdf(0.5)
    up = np.arange(15)
    law = stats.binom.pmf(up, 14, p) @ stats.logistic.cdf(0.2 * (2 * up - 14) - 0.3)
    value = exact_expectation(net, torch.zeros(1, 1).double(), lambda x: (x[..., 0] + 1) / 2)
    assert value.item() == pytest.approx(law, rel=1e-12)


@pytest.mark.parametrize("noise_name", ["Logistic", "Gaussian", "Cauchy"])
def test_gradient_equals_central_finite_differences(noise_name: str) -> None:
    net, inputs, loss = case((2, 3, 2), noise_name)
    model, given = make_net(net), torch.tensor(inputs)
    _, grads = exact_gradient(model, given, loss.torch)
    for name, p in model.named_parameters():

        def value(at: np.ndarray, p: nn.Parameter = p) -> float:
            old, p.data = p.data, torch.tensor(at)
            out = exact_expectation(model, given, loss.torch).mean().item()
            p.data = old
            return out

        numeric = ref.finite_difference(value, p.detach().numpy().copy())
        np.testing.assert_allclose(grads[name].numpy(), numeric, atol=1e-8)


@noises
def test_gradient_of_one_layer_is_f_times_the_expected_flip(noise_name: str) -> None:
    net, inputs, loss = case((3, 3), noise_name, "smooth", batch=1)
    _, grads = exact_gradient(make_net(net), torch.tensor(inputs), loss.torch)
    a = inputs[0] @ net.weights[0].T + net.biases[0]
    x = ref.states(3)
    prob = net.noise.prob(x, a).prod(1)
    for i in range(3):
        up, down = x.copy(), x.copy()
        up[:, i], down[:, i] = 1, -1
        flip = prob @ (loss.value(up, 0) - loss.value(down, 0))
        assert grads["layers.0.bias"][i].item() == pytest.approx(net.noise.pdf(a[i]) * flip)


def test_the_expectation_is_differentiable_in_the_loss_s_own_parameters() -> None:
    # L = (h'x - t)^2: dE/dh = 2 E (h'x - t) x
    net, inputs, _ = case((2, 2, 3), "Logistic", batch=2)
    h = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.2, -0.4], dtype=torch.float64)
    value = exact_expectation(make_net(net), torch.tensor(inputs), lambda x: (x @ h - t) ** 2)
    value.sum().backward()
    xs = ref.paths(net.widths)
    expected = 0.0
    for b, v in enumerate(inputs):
        prob = ref.path_probabilities(net, v, xs)
        gap = xs[-1] @ h.detach().numpy() - t[b].item()
        expected = expected + 2 * (prob * gap) @ xs[-1]
    np.testing.assert_allclose(h.grad.numpy(), expected, **CLOSE)


@pytest.mark.parametrize("noise_name", ["Logistic", "Uniform"])
def test_losses_that_are_not_differentiable_are_allowed(noise_name: str, route: str) -> None:
    net, inputs, _ = case((2, 3, 3), noise_name)
    loss = ref.RefLoss(
        "majority",
        lambda x, b: (x.sum(-1) > 0).astype(float),
        lambda x, b: np.zeros_like(x),
        lambda x: (x.sum(-1) > 0).double(),
    )
    mean, grads = exact_gradient(make_net(net), torch.tensor(inputs), loss.torch)
    assert mean.item() == pytest.approx(ref.expectation(net, inputs, loss).mean(), rel=1e-12)
    for g, e in zip(grads.values(), in_order(ref.gradient(net, inputs, loss)), strict=True):
        np.testing.assert_allclose(g.numpy(), e, **CLOSE)


def test_saturated_units_give_a_finite_gradient(route: str) -> None:
    net = ref.random_net((2, 3, 2), ref.RefNoise("Uniform", 0.2), seed=1)
    inputs, loss = random_inputs(2, 2), ref.smooth_loss(2)
    _, grads = exact_gradient(make_net(net), torch.tensor(inputs), loss.torch)
    for g, e in zip(grads.values(), in_order(ref.gradient(net, inputs, loss)), strict=True):
        np.testing.assert_allclose(g.numpy(), e, **CLOSE)


def test_the_gradient_leaves_no_trace_on_the_network() -> None:
    net, inputs, loss = case((2, 2, 2), "Logistic")
    model = make_net(net)
    mean, grads = exact_gradient(model, torch.tensor(inputs), loss.torch)
    exact_moments(model, torch.tensor(inputs), loss.torch, "zgr")
    assert all(p.grad is None for p in model.parameters())
    assert mean.shape == () and not mean.requires_grad
    assert not any(g.requires_grad for g in grads.values())


def test_single_precision_networks_stay_in_single_precision() -> None:
    net, inputs, loss = case((2, 3, 3), "Gaussian")
    model = make_net(net, dtype=torch.float32)
    mean, grads = exact_gradient(model, torch.tensor(inputs, dtype=torch.float32), loss.torch)
    assert mean.dtype == torch.float32
    for g, e in zip(grads.values(), in_order(ref.gradient(net, inputs, loss)), strict=True):
        assert g.dtype == torch.float32
        np.testing.assert_allclose(g.numpy(), e, rtol=1e-4, atol=1e-5)


def test_layers_without_bias() -> None:
    net, inputs, loss = case((2, 3, 2), "Logistic")
    net = ref.RefNet(net.weights, tuple(0 * b for b in net.biases), net.noise)
    model = SBN(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    for layer, w in zip(model.layers, net.weights, strict=True):
        layer.weight.data = torch.tensor(w)
    model.sign.noise = make_net(net).noise
    _, grads = exact_gradient(model, torch.tensor(inputs), loss.torch)
    moments = exact_moments(model, torch.tensor(inputs), loss.torch, "zgr")
    exact, estimate = ref.gradient(net, inputs, loss), ref.moments(net, inputs, loss, "zgr")
    for k in range(2):
        np.testing.assert_allclose(grads[f"layers.{k}.weight"], exact[k, "weight"], **CLOSE)
        for mine, theirs in zip(moments[f"layers.{k}.weight"], estimate[k, "weight"], strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs, **CLOSE)


def test_a_layer_used_twice_has_one_gradient_and_no_moments() -> None:
    net, inputs, loss = case((2, 2, 2), "Logistic")
    net = ref.RefNet((net.weights[0],) * 2, (net.biases[0],) * 2, net.noise)
    layer = make_net(net).layers[0]
    model = SBN(layer, layer, noise=make_net(net).noise)
    _, grads = exact_gradient(model, torch.tensor(inputs), loss.torch)
    exact = ref.gradient(net, inputs, loss)
    assert list(grads) == ["layers.0.weight", "layers.0.bias"]
    for name, g in grads.items():
        kind = name.split(".")[-1]
        np.testing.assert_allclose(g.numpy(), exact[0, kind] + exact[1, kind], **CLOSE)
    with pytest.raises(ValueError, match="layer"):
        exact_moments(model, torch.tensor(inputs), loss.torch, "zgr")


def test_a_bias_of_two_layers_has_one_gradient_the_sum_over_both() -> None:
    net, inputs, loss = case((2, 3, 3, 2), "Logistic")
    net = ref.RefNet(net.weights, (net.biases[0], net.biases[0], net.biases[2]), net.noise)
    model = make_net(net)
    model.layers[1].bias = model.layers[0].bias
    _, grads = exact_gradient(model, torch.tensor(inputs), loss.torch)
    exact = ref.gradient(net, inputs, loss)
    both = exact[0, "bias"] + exact[1, "bias"]
    np.testing.assert_allclose(grads.pop("layers.0.bias").numpy(), both, **CLOSE)
    assert list(grads) == [f"layers.{k}.{n}" for k in range(3) for n in ("weight", "bias")
                           if (k, n) not in ((0, "bias"), (1, "bias"))]  # fmt: skip
    for name, g in grads.items():
        _, k, kind = name.split(".")
        np.testing.assert_allclose(g.numpy(), exact[int(k), kind], **CLOSE)


def test_a_weight_that_is_another_s_transpose_has_one_gradient_too() -> None:
    net, inputs, loss = case((2, 3, 3, 3), "Gaussian")
    weights = (net.weights[0], net.weights[1], net.weights[1].T.copy())
    net = ref.RefNet(weights, net.biases, net.noise)

    class Transposed(nn.Module):
        def __init__(self, other: nn.Linear, bias: nn.Parameter) -> None:
            super().__init__()
            self.other, self.bias = other, bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.other.weight + self.bias

    plain = make_net(net)
    tied = Transposed(plain.layers[1], plain.layers[2].bias)
    model = SBN(plain.layers[0], plain.layers[1], tied, noise=plain.noise)
    _, grads = exact_gradient(model, torch.tensor(inputs), loss.torch)
    exact = ref.gradient(net, inputs, loss)
    both = exact[1, "weight"] + exact[2, "weight"].T
    np.testing.assert_allclose(grads["layers.1.weight"].numpy(), both, **CLOSE)


def test_a_loss_that_uses_a_weight_of_the_network_has_both_parts_of_the_gradient() -> None:
    net, inputs, _ = case((2, 3, 2), "Logistic", batch=1)
    model, given = make_net(net), torch.tensor(inputs)
    weight = model.layers[0].weight
    value, grads = exact_gradient(model, given, lambda x: (x @ weight[:2]).sum(-1))
    loss = ref.RefLoss("fixed", lambda x, b: (x @ net.weights[0][:2]).sum(-1),
                       lambda x, b: np.zeros_like(x), smooth)  # fmt: skip
    assert value.item() == pytest.approx(ref.expectation(net, inputs, loss).item(), rel=1e-12)
    xs = ref.paths(net.widths)
    mean = ref.path_probabilities(net, inputs[0], xs) @ xs[-1]
    expected = ref.gradient(net, inputs, loss)[0, "weight"].copy()
    expected[:2] += mean[:, None]
    np.testing.assert_allclose(grads["layers.0.weight"].numpy(), expected, **CLOSE)
    with pytest.raises(ValueError, match="loss must not use the network's own layers.0.weight"):
        exact_moments(model, given, lambda x: (x @ weight[:2]).sum(-1), "zgr")


def smooth(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(x.sum(-1) / 2)


def test_the_gradient_is_there_under_no_grad_and_of_no_parameters() -> None:
    net, inputs, loss = case((2, 3, 2), "Logistic")
    model, given = make_net(net), torch.tensor(inputs)
    with torch.no_grad():
        mean, grads = exact_gradient(model, given, loss.torch)
    for g, e in zip(grads.values(), in_order(ref.gradient(net, inputs, loss)), strict=True):
        np.testing.assert_allclose(g.numpy(), e, **CLOSE)
    assert not mean.requires_grad
    model.requires_grad_(False)
    frozen, none = exact_gradient(model, given, loss.torch)
    assert torch.equal(frozen, mean) and none == {}
    assert exact_moments(model, given, loss.torch, "zgr") == {}


def test_inference_mode_gives_expectations_and_no_gradients() -> None:
    net, inputs, loss = case((2, 3, 2), "Logistic")
    model = make_net(net)
    with torch.inference_mode():
        given = torch.tensor(inputs)
        values = exact_expectation(model, given, loss.torch)
        for function in (exact_gradient, partial(exact_moments, estimator="zgr")):
            with pytest.raises(ValueError, match="exact_.* outside torch.inference_mode"):
                function(model, given, loss.torch)
    np.testing.assert_allclose(values.numpy(), ref.expectation(net, inputs, loss), **CLOSE)
    _, grads = exact_gradient(model, given, loss.torch)  # with inputs that were made there
    for g, e in zip(grads.values(), in_order(ref.gradient(net, inputs, loss)), strict=True):
        np.testing.assert_allclose(g.numpy(), e, **CLOSE)


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1)])
def test_frozen_layers_do_not_disturb_the_others(frozen: tuple[int, ...]) -> None:
    net, inputs, loss = case((2, 3, 2, 2), "Logistic")
    model = make_net(net)
    for k in frozen:
        model.layers[k].requires_grad_(False)
    _, grads = exact_gradient(model, torch.tensor(inputs), loss.torch)
    exact = ref.gradient(net, inputs, loss)
    for k in set(range(3)) - set(frozen):
        for kind in ("weight", "bias"):
            np.testing.assert_allclose(grads[f"layers.{k}.{kind}"], exact[k, kind], **CLOSE)


def test_all_states_are_all_the_states_once() -> None:
    for n in (1, 2, 5):
        x = all_states(n, dtype=torch.float64)
        assert x.shape == (2**n, n) and x.dtype == torch.float64
        assert sorted(map(tuple, x.tolist())) == sorted(map(tuple, ref.states(n)))
    for n in (0, -1, 60):
        with pytest.raises(ValueError, match="n "):
            all_states(n)


class Largest(TorchDispatchMode):
    """Records the size in bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("n", [11, 12, 13, 16, 17])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64])
def test_the_table_of_states_is_made_without_a_larger_one(n: int, dtype: torch.dtype) -> None:
    with Largest() as largest:
        x = all_states(n, dtype=dtype)
    assert largest.bytes <= max(x.nbytes, 8 * 12 * 2**12)  # small ones may be made of integers
    rows, units = np.arange(2**n)[:, None], np.arange(n - 1, -1, -1)
    assert np.array_equal(x.double().numpy(), 2 * (rows >> units & 1) - 1)
    assert x.dtype == dtype and x.is_contiguous()


# ------------------------------------------------------------------------------- moments

MOMENTS: dict[str, tuple[str | Callable, str, float]] = {
    "straight_through": ("straight_through", "straight_through", 0.0),
    "zgr": ("zgr", "zgr", 0.0),
    "darn": ("darn", "darn_mean", 0.0),
    "darn midpoint": (partial(darn, baseline="midpoint"), "darn_midpoint", 0.0),
    "chain_rule": (partial(chain_rule, s=0.4), "chain_rule", 0.4),
    "identity": (identity, "identity", 0.0),
}


@pytest.mark.slow
@nets
@pytest.mark.parametrize("name", MOMENTS)
@noises
def test_mean_and_variance_equal_enumeration_of_all_paths(
    noise_name: str, name: str, widths: tuple[int, ...]
) -> None:
    estimator, reference_name, s = MOMENTS[name]
    net, inputs, loss = case(widths, noise_name, "targets")
    model = make_net(net)
    result = exact_moments(model, torch.tensor(inputs), loss.torch, estimator)
    assert list(result) == [key for key, _ in model.named_parameters()]
    expected = in_order(ref.moments(net, inputs, loss, reference_name, s))
    for (mean, variance), (mean0, variance0) in zip(result.values(), expected, strict=True):
        scale = 1 + np.abs(variance0).max()
        np.testing.assert_allclose(mean.numpy(), mean0, **CLOSE)
        np.testing.assert_allclose(variance.numpy(), variance0, rtol=1e-11, atol=1e-12 * scale)


@pytest.mark.parametrize("name", ["straight_through", "zgr", "darn"])
def test_variance_of_two_inputs_equals_enumeration_of_pairs_of_paths(name: str) -> None:
    # One fresh draw for each input: no formula for the variance of the mean is used here
    net, inputs, loss = case((2, 2, 1), "Logistic", "targets", batch=2)
    result = exact_moments(make_net(net), torch.tensor(inputs), loss.torch, name)
    expected = in_order(ref.joint_moments(net, inputs, loss, MOMENTS[name][1]))
    for (mean, variance), (mean0, variance0) in zip(result.values(), expected, strict=True):
        np.testing.assert_allclose(mean.numpy(), mean0, **CLOSE)
        np.testing.assert_allclose(variance.numpy(), variance0, **CLOSE)


def test_moments_by_both_routes(route: str) -> None:
    net, inputs, loss = case((2, 3, 3, 2), "Gaussian")
    result = exact_moments(make_net(net), torch.tensor(inputs), loss.torch, zgr)
    expected = in_order(ref.moments(net, inputs, loss, "zgr"))
    for (mean, variance), (mean0, variance0) in zip(result.values(), expected, strict=True):
        np.testing.assert_allclose(mean.numpy(), mean0, **CLOSE)
        np.testing.assert_allclose(variance.numpy(), variance0, rtol=1e-11, atol=1e-12)


def test_a_pathwise_estimator_is_taken_as_its_chain_rule_function() -> None:
    net, inputs, loss = case((2, 2, 2), "Logistic")
    model, given = make_net(net), torch.tensor(inputs)
    one = exact_moments(model, given, loss.torch, straight_through)
    two = exact_moments(model, given, loss.torch, pathwise(straight_through))
    assert all(torch.equal(a, b) for k in one for a, b in zip(one[k], two[k], strict=True))


def test_moments_with_probability_tiny_and_zero_stay_finite() -> None:
    for noise_name, scale in (("Gaussian", 0.05), ("Uniform", 0.3), ("Logistic", 0.01)):
        net = ref.random_net((2, 3, 2), ref.RefNoise(noise_name, scale), seed=3)
        inputs, loss = random_inputs(2, 2), ref.smooth_loss(2)
        for name in ("zgr", "darn"):
            result = exact_moments(make_net(net), torch.tensor(inputs), loss.torch, name)
            assert all(torch.isfinite(t).all() for pair in result.values() for t in pair)


def test_a_state_of_probability_zero_is_not_asked_for_its_factor() -> None:
    net = ref.random_net((2, 3, 2), ref.RefNoise("Uniform", 0.3), seed=3)
    model, v, loss = make_net(net), torch.tensor(random_inputs(2, 2)), ref.smooth_loss(2)
    assert (model.noise.cdf(model.layers[0](v)) % 1 == 0).any()  # a unit is saturated

    def by_hand(a: torch.Tensor, x: torch.Tensor, noise: Noise) -> torch.Tensor:
        return attach(x, a, noise.pdf(a.detach()) / noise.cdf(x * a.detach()))

    found = exact_moments(model, v, loss.torch, by_hand)
    for key, moments in exact_moments(model, v, loss.torch, "zgr").items():
        for mine, theirs in zip(found[key], moments, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_deep_zgr_with_uniform_noise_is_unbiased_for_quadratic_losses() -> None:
    # CURRICULUM 7: no saturated unit, any depth, quadratic loss; straight-through is biased
    net = ref.random_net((2, 3, 2, 2), ref.RefNoise("Uniform", 6.0), seed=5)
    inputs, loss = 0.5 * random_inputs(2, 2), ref.quadratic_loss(2)
    xs = ref.paths(net.widths)
    reach = [np.abs(a).max() for v in inputs for a in ref.pre_activations(net, v, xs)]
    assert max(reach) < 6.0
    exact = in_order(ref.gradient(net, inputs, loss))
    model, given = make_net(net), torch.tensor(inputs)
    for (mean, _), g in zip(exact_moments(model, given, loss.torch, "zgr").values(), exact,
                            strict=True):  # fmt: skip
        np.testing.assert_allclose(mean.numpy(), g, atol=1e-13)
    st = exact_moments(model, given, loss.torch, "straight_through").values()
    assert max(np.abs(m.numpy() - g).max() for (m, _), g in zip(st, exact, strict=True)) > 1e-3


# -------------------------------------------------------------------------------- errors


def noisy_estimator(a: torch.Tensor, x: torch.Tensor, noise: object) -> torch.Tensor:
    return x + torch.rand_like(a) * noise.pdf(a.detach()) * (a - a.detach())


@pytest.mark.parametrize("scale", [1.0, 0.01, 100.0])
@pytest.mark.parametrize("noise_name", ["Logistic", "Uniform"])
def test_estimators_that_draw_noise_have_no_exact_moments(noise_name: str, scale: float) -> None:
    net = ref.random_net((2, 2), ref.RefNoise(noise_name, scale))
    with pytest.raises(ValueError, match="estimator"):
        exact_moments(make_net(net), torch.ones(1, 2).double(), lambda x: x.sum(-1),
                      noisy_estimator)  # fmt: skip


def test_an_estimator_that_moves_the_global_generator_has_no_exact_moments() -> None:
    net, inputs, loss = case((2, 2), "Logistic")

    def rarely(a: torch.Tensor, x: torch.Tensor, noise: object) -> torch.Tensor:
        return straight_through(nn.functional.dropout(a, 1e-6), x, noise)

    model, before = make_net(net), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"estimator must be .*, rarely draws random numbers"):
        exact_moments(model, torch.tensor(inputs), loss.torch, rarely)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_estimator_with_a_generator_of_its_own_has_no_exact_moments() -> None:
    net, inputs, loss = case((2, 2), "Logistic")
    draws = torch.Generator()

    def noisy(a: torch.Tensor, x: torch.Tensor, noise: object) -> torch.Tensor:
        return through(a, x, torch.rand(a.shape, generator=draws) + 0 * a)

    with pytest.raises(ValueError, match="noisy gives other numbers when it is called again"):
        exact_moments(make_net(net), torch.tensor(inputs), loss.torch, noisy)


def through(a: torch.Tensor, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return x + slope.detach() * (a - a.detach())


COUPLED = {
    "a slope of the neighbour": lambda a, x, noise: through(a, x, noise.pdf(a).roll(1, -1)),
    "a slope of the layer's mean": lambda a, x, noise: through(a, x, noise.pdf(a.mean(-1, True))),
    "a slope of the other states": lambda a, x, noise: through(a, x, 1 + x.sum(-1, True) + 0 * a),
    "a scale of the layer": lambda a, x, noise: through(a, x, a.abs().mean(-1, True) + 0 * a),
    "a value of the layer": lambda a, x, noise: (
        x + a.mean(-1, True) - a.mean(-1, True).detach() + 0 * a
    ),
    "the rows together": lambda a, x, noise: through(a, x, noise.pdf(a - a.mean(0))),
    "the row before": lambda a, x, noise: through(a, x, noise.pdf(a).roll(1, 0)),
}


@pytest.mark.parametrize("widths", [(2, 3), (2, 2, 3), (2, 5, 5)])
@pytest.mark.parametrize("name", COUPLED)
def test_an_estimator_that_couples_units_or_rows_has_no_exact_moments(
    name: str, widths: tuple[int, ...]
) -> None:
    net, inputs, loss = case(widths, "Logistic")
    with pytest.raises(ValueError, match="estimator must treat each unit by itself"):
        exact_moments(make_net(net), torch.tensor(inputs), loss.torch, COUPLED[name])


def test_an_estimator_with_a_slope_of_its_own_for_each_unit_has_exact_moments() -> None:
    # Last layer, linear loss c'x: the mean of s_i x' is s_i c_i times the inputs
    net, inputs, loss = case((2, 3), "Logistic", "linear")
    slopes = torch.tensor([0.5, 1.0, 2.0]).double()
    result = exact_moments(make_net(net), torch.tensor(inputs), loss.torch,
                           lambda a, x, noise: through(a, x, slopes + 0 * a))  # fmt: skip
    mean, variance = result["layers.0.bias"]
    expected = slopes.numpy() * loss.gradient(np.ones(3), 0)
    np.testing.assert_allclose(mean.numpy(), expected, **CLOSE)
    np.testing.assert_allclose(variance.numpy(), 0, atol=1e-15)


def test_an_estimator_without_a_gradient_is_refused() -> None:
    net, inputs, loss = case((2, 2), "Logistic")

    def nothing(a: torch.Tensor, x: torch.Tensor, noise: object) -> torch.Tensor:
        return x

    with pytest.raises(ValueError, match="estimator must have a gradient in a, nothing has none"):
        exact_moments(make_net(net), torch.tensor(inputs), loss.torch, nothing)


def tied(change: Callable[[nn.ModuleList], None], widths: tuple[int, ...] = (3, 3, 3)) -> SBN:
    model = make_net(ref.random_net(widths, ref.RefNoise("Logistic")))
    change(model.layers)
    return model


def share_bias(layers: nn.ModuleList) -> None:
    layers[1].bias = layers[0].bias


def share_storage(layers: nn.ModuleList) -> None:
    layers[1].bias = nn.Parameter(layers[0].bias.data)  # another parameter, the same memory


def share_transposed(layers: nn.ModuleList) -> None:
    layers[1].weight = nn.Parameter(layers[0].weight.data.T)


def share_a_row(layers: nn.ModuleList) -> None:
    layers[1].bias = nn.Parameter(layers[0].weight.data[2])


def share_a_buffer(layers: nn.ModuleList) -> None:
    layers[1].register_buffer("copy", layers[0].bias.data[1:])


SHARED = {
    share_bias: ("bias", "bias"),
    share_storage: ("bias", "bias"),
    share_transposed: ("weight", "weight"),
    share_a_row: ("weight", "bias"),
    share_a_buffer: ("bias", "copy"),
}


@pytest.mark.parametrize("change", SHARED, ids=lambda f: f.__name__)
def test_shared_parameters_have_no_exact_moments_and_are_named(change: Callable) -> None:
    first, second = SHARED[change]
    names = f"layers.0.{first} and layers.1.{second}|layers.1.{second} and layers.0.{first}"
    with pytest.raises(ValueError, match=f"not shared, ({names}) are on the same memory"):
        exact_moments(tied(change), torch.ones(1, 3).double(), smooth, "zgr")


def test_parameters_side_by_side_in_one_vector_are_not_shared() -> None:
    net, inputs, loss = case((2, 3, 2), "Logistic")
    model = make_net(net)
    vector_to_parameters(parameters_to_vector(model.parameters()), model.parameters())
    model.first = model.layers[0]  # another name for a layer is no second layer either
    result = exact_moments(model, torch.tensor(inputs), loss.torch, "zgr")
    expected = in_order(ref.moments(net, inputs, loss, "zgr"))
    for pair, theirs in zip(result.values(), expected, strict=True):
        for mine, e in zip(pair, theirs, strict=True):
            np.testing.assert_allclose(mine.numpy(), e, rtol=1e-11, atol=1e-12)


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


NOT_PLAIN = {
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 2)), "original0"),
    "old weight_norm": (lambda: weight_norm(nn.Linear(3, 2)), "weight_g"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 2)).eval(), "original"),
    "another forward": (lambda: Scaled(3, 2), "Scaled of .'bias', 'weight'"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", NOT_PLAIN)
def test_a_layer_with_another_weight_than_its_parameter_has_no_exact_moments(name: str) -> None:
    make, match = NOT_PLAIN[name]
    model = SBN(nn.Linear(2, 3), make()).double()
    with pytest.raises(ValueError, match=f"exact_moments needs layers W x . b .*layer 1 .*{match}"):
        exact_moments(model, torch.ones(1, 2).double(), smooth, "zgr")


def test_a_hook_that_changes_a_layer_leaves_it_no_exact_moments() -> None:
    model = SBN(nn.Linear(2, 3)).double()
    model.layers[0].register_forward_hook(lambda module, args, out: out + 1)
    with pytest.raises(ValueError, match="exact_moments needs layers W x . b"):
        exact_moments(model, torch.ones(1, 2).double(), smooth, "zgr")


def test_a_parameter_of_no_layer_has_moments_zero() -> None:
    net, inputs, loss = case((2, 2), "Logistic")
    model = make_net(net)
    model.extra = nn.Parameter(torch.ones(3).double())
    mean, variance = exact_moments(model, torch.tensor(inputs), loss.torch, "zgr")["extra"]
    assert not mean.any() and not variance.any() and mean.shape == variance.shape == (3,)


def test_exact_moments_leave_the_global_generator_alone() -> None:
    net, inputs, loss = case((2, 2), "Logistic")
    model = make_net(net)
    before = torch.get_rng_state()
    exact_moments(model, torch.tensor(inputs), loss.torch, "zgr")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_estimator_lists_the_known_ones() -> None:
    net, inputs, loss = case((2, 2), "Logistic")
    with pytest.raises(ValueError, match="straight_through.*zgr"):
        exact_moments(make_net(net), torch.tensor(inputs), loss.torch, "nonsense")


FUNCTIONS = [
    exact_expectation,
    exact_gradient,
    partial(exact_moments, estimator="zgr"),
]
functions = pytest.mark.parametrize(
    "function", FUNCTIONS, ids=["expectation", "gradient", "moments"]
)


@functions
@pytest.mark.parametrize("loss", [lambda x: x.sum(), lambda x: x, lambda x: 1.0])
def test_a_loss_of_the_wrong_shape_is_refused(function: Callable, loss: Callable) -> None:
    net, inputs, _ = case((2, 2), "Logistic")
    with pytest.raises(ValueError, match="loss"):
        function(make_net(net), torch.tensor(inputs), loss)


@functions
def test_layers_that_are_not_fully_connected_are_refused_by_name(function: Callable) -> None:
    net = SBN(nn.Conv2d(1, 2, 3)).double()
    with pytest.raises(ValueError, match="Conv2d"):
        function(net, torch.ones(1, 1, 5, 5).double(), lambda x: x.sum((-1, -2, -3)))


@functions
def test_batch_norm_in_training_mode_is_refused(function: Callable) -> None:
    net = SBN(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2)).double()
    before = net.layers[0][1].running_mean.clone()
    with pytest.raises(ValueError, match="BatchNorm1d|Linear"):
        function(net, torch.ones(4, 2).double(), lambda x: x.sum(-1))
    assert torch.equal(net.layers[0][1].running_mean, before)


def test_batch_norm_in_evaluation_mode_is_an_affine_layer() -> None:
    net, inputs, loss = case((2, 3, 2), "Logistic")
    model = make_net(net)
    norm = nn.BatchNorm1d(3).double().eval()
    norm.running_mean += 0.3
    norm.running_var *= 2.0
    with_norm = SBN(nn.Sequential(model.layers[0], norm), model.layers[1], noise=model.noise)
    root = np.sqrt(2 + norm.eps)
    folded = ref.RefNet(
        (net.weights[0] / root, net.weights[1]),
        ((net.biases[0] - 0.3) / root, net.biases[1]),
        net.noise,
    )
    values = exact_expectation(with_norm.eval(), torch.tensor(inputs), loss.torch)
    expected = ref.expectation(folded, inputs, loss)
    np.testing.assert_allclose(values.detach().numpy(), expected, **CLOSE)


@functions
@pytest.mark.parametrize("shape", [(2,), (0, 2), (3, 5), (2, 3, 2)])
def test_inputs_of_the_wrong_shape_are_refused(function: Callable, shape: tuple[int, ...]) -> None:
    net, _, loss = case((2, 2), "Logistic")
    with pytest.raises(ValueError, match="inputs"):
        function(make_net(net), torch.ones(shape).double(), loss.torch)


@functions
def test_integer_inputs_and_other_modules_are_refused(function: Callable) -> None:
    net, _, loss = case((2, 2), "Logistic")
    with pytest.raises((TypeError, ValueError), match="inputs"):
        function(make_net(net), torch.ones(1, 2, dtype=torch.int64), loss.torch)
    with pytest.raises(TypeError, match="net"):
        function(nn.Linear(2, 2).double(), torch.ones(1, 2).double(), loss.torch)


@functions
def test_a_layer_too_wide_to_enumerate_is_refused_before_any_work(function: Callable) -> None:
    for width, layers in ((60, [nn.Linear(2, 60)]), (25, [nn.Linear(2, 25), nn.Linear(25, 1)])):
        match = rf"at most 24 units a layer, layer 0 \(Linear\) has {width}"
        with pytest.raises(ValueError, match=match):
            function(SBN(*layers), torch.ones(1, 2), lambda x: x.sum(-1))


def test_exact_moments_need_a_differentiable_loss() -> None:
    net, inputs, _ = case((2, 2), "Logistic")
    head = torch.ones((), dtype=torch.float64, requires_grad=True)
    for loss in (lambda x: (x.sum(-1) > 0).double(), lambda x: (x.sum(-1) > 0) * head):
        with pytest.raises(ValueError, match="loss must be differentiable in the states"):
            exact_moments(make_net(net), torch.tensor(inputs), loss, "zgr")


def test_an_estimator_with_parameters_has_no_exact_moments() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.ones(1))

        def forward(self, a: torch.Tensor, x: torch.Tensor, noise: object) -> torch.Tensor:
            m = torch.tanh(self.slope * a)
            return x + (m - m.detach())

    net = SBN(nn.Linear(2, 3), estimator=Learned())
    with pytest.raises(ValueError, match="an estimator without parameters, those of Learned"):
        exact_moments(net, torch.rand(2, 2), lambda x: x.sum(-1), net.sign.estimator)
