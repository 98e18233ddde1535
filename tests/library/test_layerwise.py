"""A loss-based estimator at every layer: unbiased in depth, value, shapes, what the loss sees."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import in_order, make_net, random_inputs, z_limit
from rows import expectation_one, network_estimates, row_net, seeded, z_scores
from torch import nn

import sbnlib
from sbnlib import (
    layerwise,
    measure,
    network_estimator,
    pathwise,
    registry,
    reinforce,
    relax,
    straight_through,
)
from sbnlib.contracts import name_of
from sbnlib.nn import BernoulliConv2d

Array = np.ndarray
LOSS_BASED = [e for e in registry.ESTIMATORS.values() if e.kind == "loss based"]
TAKES_SURROGATE = ("muprop", "rebar", "relax")
entries = pytest.mark.parametrize("entry", LOSS_BASED, ids=lambda e: e.name)
V = np.array([0.4, -0.9])


def step_loss(n: int) -> ref.RefLoss:
    """[x_1 + ... + x_n > 0] - x_1/2: a step."""
    return ref.RefLoss(
        "step",
        lambda x, b: (x.sum(-1) > 0) - 0.5 * x[..., 0],
        lambda x, b: 0 * x,
        lambda x: (x.sum(-1) > 0).to(x.dtype) - 0.5 * x.detach()[..., 0],
    )


# ---------------------------------------------------------------------------- unbiased


@pytest.mark.slow
@entries
@pytest.mark.parametrize("widths", [(2, 2, 2), (2, 2, 2, 2), (2, 1, 3, 1)])
@pytest.mark.parametrize("noise_name", ["Logistic", "Gaussian", "Uniform"])
def test_unbiased_for_every_parameter_of_a_deep_network(
    entry: registry.Entry, widths: tuple[int, ...], noise_name: str
) -> None:
    # z-tests of all parameters and of the value, together 1e-6
    scale = 3.0 if noise_name == "Uniform" else 0.8
    net = ref.random_net(widths, ref.RefNoise(noise_name, scale), seed=sum(widths), gain=1.3)
    smooth = entry.name in TAKES_SURROGATE or noise_name == "Gaussian"
    loss = ref.smooth_loss(widths[-1], 2) if smooth else step_loss(widths[-1])
    values, grads = network_estimates(network_estimator(entry.name), net, V, loss, 30_000, 1)
    exact = ref.gradient_one(net, V, loss, 0)
    limit = z_limit(1 + sum(e.size for e in exact.values()))
    for key, e in exact.items():
        assert z_scores(grads[key], e).max() < limit, key
    assert z_scores(values, expectation_one(net, V, loss)) < limit


@pytest.mark.parametrize("name", ["straight_through", "zgr"])
def test_pathwise_is_not_on_the_same_problem(name: str) -> None:
    # so that the test above has something to find: |z| far beyond any limit
    net = ref.random_net((2, 2, 2), ref.RefNoise("Gaussian", 0.8), seed=6, gain=1.3)
    loss = ref.smooth_loss(2, 2)
    _, grads = network_estimates(network_estimator(name), net, V, loss, 30_000, 1)
    exact = ref.gradient_one(net, V, loss, 0)
    assert max(z_scores(grads[key], e).max() for key, e in exact.items()) > 10


@pytest.mark.slow
def test_unbiased_for_a_loss_with_targets_and_several_inputs() -> None:
    # Mean gradient over a batch of three, 400 groups of 50 draws each: z-tests, together 1e-6
    net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=2)
    model, loss, inputs = make_net(net), ref.target_loss(2, 3, seed=1), random_inputs(3, 2)
    estimator, generator = layerwise(sbnlib.disarm), seeded(3)
    samples = []
    for _ in range(400):
        values = estimator(
            model, torch.tensor(inputs).expand(50, 3, 2), loss.torch, generator=generator
        )
        assert values.shape == (50, 3)
        samples.append(torch.autograd.grad(values.mean(), list(model.parameters())))
    exact = in_order(ref.gradient(net, inputs, loss))
    limit = z_limit(sum(e.size for e in exact))
    for group, e in zip(zip(*samples, strict=True), exact, strict=True):
        assert z_scores(torch.stack(group).numpy(), e).max() < limit


@pytest.mark.parametrize("name", ["reinforce_loo", "local_expectation", "rebar", "psa"])
def test_measure_takes_them_and_finds_the_moments(name: str) -> None:
    # bias^2 of the last layer within 6 of its standard errors of 0; PSA is exact there too
    net = ref.random_net((2, 2, 2), ref.RefNoise("Logistic"), seed=2)
    loss, inputs = ref.smooth_loss(2, 1), random_inputs(2, 2)
    out = measure(make_net(net), torch.tensor(inputs), loss.torch, name, 4000, generator=seeded(1))
    exact = in_order(ref.gradient(net, inputs, loss))
    assert out["all"].reference_norm2 == pytest.approx(sum((e**2).sum() for e in exact), rel=1e-9)
    accuracy = out["layers.1.weight"]
    assert abs(accuracy.bias2.value) < 6 * accuracy.bias2.se
    assert accuracy.variance.value > 0


def test_a_black_box_in_depth_by_relaxs_control_alone() -> None:
    # z-tests of all parameters, together 1e-6
    net = ref.random_net((2, 2, 2), ref.RefNoise("Logistic", 0.8), seed=6, gain=1.3)
    loss = step_loss(2)
    estimator = layerwise(partial(relax, control=lambda z: torch.tanh(z).sum(-1), eta=0.0))
    _, grads = network_estimates(estimator, net, V, loss, 30_000, 1)
    exact = ref.gradient_one(net, V, loss, 0)
    limit = z_limit(sum(e.size for e in exact.values()))
    for key, e in exact.items():
        assert z_scores(grads[key], e).max() < limit, key


@pytest.mark.parametrize("entry", registry.ESTIMATORS.values(), ids=lambda e: e.name)
def test_a_loss_of_a_network_may_change_its_argument_in_place(entry: registry.Entry) -> None:
    net, pure = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=2), ref.smooth_loss(2)

    def changing(x: torch.Tensor) -> torch.Tensor:
        x.add_(1).mul_(0.5)
        return pure.torch(2 * x - 1)

    results = []
    for function in (pure.torch, changing):
        loss = ref.RefLoss("", pure.value, pure.gradient, function)
        results.append(network_estimates(network_estimator(entry.name), net, V, loss, 20, 3))
    (values, grads), (again, others) = results
    np.testing.assert_allclose(values, again, rtol=1e-12)
    for key, g in grads.items():
        np.testing.assert_allclose(others[key], g, rtol=1e-9, atol=1e-12)


# --------------------------------------------------------- what a layer's estimator is given


def test_one_layer_is_the_estimator_itself() -> None:
    model = sbnlib.SBN(nn.Linear(2, 3, dtype=torch.float64))
    inputs, loss = torch.tensor(random_inputs(4, 2)), ref.smooth_loss(3).torch
    ours = layerwise(reinforce)(model, inputs, loss, generator=seeded(1))
    plain = reinforce(loss, model.layers[0](inputs), model.noise, generator=seeded(1))
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    for g, e in zip(*(torch.autograd.grad(v.sum(), list(model.parameters()))
                      for v in (ours, plain)), strict=True):  # fmt: skip
        torch.testing.assert_close(g, e, rtol=0, atol=0)


@entries
def test_a_layer_gets_states_and_the_top_layer_gives_the_value(entry: registry.Entry) -> None:
    net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=1)
    model, calls = row_net(net, 4), []

    def spy(loss: object, a: torch.Tensor, noise: object, **options: object) -> torch.Tensor:
        value = entry.function(loss, a, noise, **options)
        calls.append((a, value, options))
        return value

    if entry.name in TAKES_SURROGATE:  # layerwise looks for the argument by name
        plain = spy
        spy = lambda loss, a, noise, *, generator, surrogate=None: plain(  # noqa: E731
            loss, a, noise, generator=generator, surrogate=surrogate
        )
    inputs = torch.tensor(V).expand(4, 2)
    out = layerwise(spy)(model, inputs, ref.smooth_loss(2).torch, generator=seeded())
    assert [a.shape for a, _, _ in calls] == [(4, 3), (4, 2)]  # in order, once each
    assert torch.equal(out.detach(), calls[-1][1].detach())
    assert bool((model.layers[1].seen.abs() == 1).all()) or entry.name in TAKES_SURROGATE
    hidden = calls[1][0].detach() - model.layers[1].bias
    weights = model.layers[1].weight.detach()
    candidates = torch.tensor(ref.states(3)) @ weights.T
    assert all((candidates - h).abs().sum(-1).min() < 1e-12 for h in hidden)


def test_the_surrogate_of_a_lower_layer_is_the_mean_field_rest_and_the_top_has_none() -> None:
    net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic", 1.3), seed=1)
    model, loss, got = make_net(net), ref.smooth_loss(2), []

    def spy(loss: object, a: torch.Tensor, noise: object, *, generator: object,
            surrogate: object = None) -> torch.Tensor:  # fmt: skip
        got.append(surrogate)
        return reinforce(loss, a, noise, generator=generator)

    layerwise(spy)(model, torch.zeros(4, 2).double(), loss.torch, generator=seeded())
    assert got[1] is None
    x = random_inputs(4, 3)
    a = x @ net.weights[1].T + net.biases[1]
    mean = net.noise.cdf(a) - net.noise.cdf(-a)
    ours = got[0](torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours, loss.value(mean, 0), rtol=1e-10)


def test_the_rest_of_a_lower_layer_is_sampled_afresh_at_every_evaluation() -> None:
    # Two evaluations at one state differ: their mean is E[L | x], by enumeration; z-test, 1e-6
    net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=1)
    model, loss, rest = make_net(net), ref.smooth_loss(2), []

    def spy(loss: object, a: torch.Tensor, noise: object, *, generator: object) -> torch.Tensor:
        rest.append(loss)
        return reinforce(loss, a, noise, generator=generator)

    layerwise(spy)(model, torch.zeros(1, 2).double(), loss.torch, generator=seeded(4))
    x = np.array([1.0, -1.0, -1.0])
    values = rest[0](torch.tensor(x).expand(20_000, 3))
    assert not values.requires_grad
    upper = ref.states(2)
    prob = net.noise.prob(upper, net.weights[1] @ x + net.biases[1]).prod(1)
    exact = prob @ loss.value(upper, 0)
    assert z_scores(values.numpy(), exact) < z_limit(1)


# ------------------------------------------------------------------------------ contract


@pytest.mark.slow
@entries
def test_the_gradient_in_the_head_is_that_of_the_top_layer_only(entry: registry.Entry) -> None:
    # The head's ordinary gradient: E phi(x_K) for L = head . phi(x); z-tests, together 1e-6
    net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=1)
    model, samples, generator = row_net(net, 100), [], seeded(2)
    head = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    loss = lambda x: torch.exp(0.5 * x) @ head  # noqa: E731
    for _ in range(200):
        values = network_estimator(entry.name)(
            model, torch.tensor(V).expand(100, 2), loss, generator=generator
        )
        samples.append(torch.autograd.grad(values.mean(), head)[0])
    xs = ref.paths((3, 2))
    exact = ref.path_probabilities(net, V, xs) @ np.exp(0.5 * xs[-1])
    assert z_scores(torch.stack(samples).numpy(), exact).max() < z_limit(2)


@entries
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_axes_in_front_of_the_batch(entry: registry.Entry, lead: tuple[int, ...]) -> None:
    model = make_net(ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=1))
    inputs = torch.tensor(V).expand(*lead, 5, 2)
    targets = torch.linspace(-1, 1, 5).double()
    values = network_estimator(entry.name)(
        model, inputs, lambda x: (x.sum(-1) - targets).square(), generator=seeded()
    )
    assert values.shape == (*lead, 5)
    values.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_samples_in_front_of_the_batch_are_independent() -> None:
    # Values of (S, 1) inputs against S separate rows: same mean and variance as enumerated, 1e-6
    net = ref.random_net((2, 2, 2), ref.RefNoise("Logistic"), seed=1)
    loss, xs = ref.smooth_loss(2), ref.paths((2, 2))
    values = layerwise(sbnlib.arm)(
        make_net(net), torch.tensor(V).expand(40_000, 1, 2), loss.torch, generator=seeded(1)
    )[:, 0].detach().numpy()  # fmt: skip
    prob, at = ref.path_probabilities(net, V, xs), loss.value(xs[-1], 0)
    mean = prob @ at
    assert z_scores(values, mean) < z_limit(2)
    assert z_scores((values - mean) ** 2, prob @ (at - mean) ** 2) < z_limit(2)


def test_options_are_given_by_partial() -> None:
    net = ref.random_net((2, 2, 2), ref.RefNoise("Logistic"), seed=1)
    many = layerwise(partial(reinforce, num_samples=64, baseline="loo"))
    one = layerwise(reinforce)
    loss, spread = ref.smooth_loss(2), []
    for estimator in (many, one):
        _, grads = network_estimates(estimator, net, V, loss, 2000, 1)
        spread.append(sum(g.var(0).sum() for g in grads.values()))
    assert spread[0] < spread[1] / 30
    with pytest.raises(TypeError, match="control"):
        layerwise(relax)(make_net(net), torch.zeros(1, 2).double(), loss.torch)


def test_frozen_layers_and_layers_without_bias() -> None:
    model = sbnlib.SBN(nn.Linear(2, 3, bias=False), nn.Linear(3, 2))
    model.layers[0].weight.requires_grad_(False)
    values = layerwise(sbnlib.local_expectation)(
        model, torch.ones(4, 2), lambda x: x.prod(-1), generator=seeded()
    )
    values.sum().backward()
    assert model.layers[0].weight.grad is None
    assert model.layers[1].weight.grad.abs().max() > 0


def test_its_name_says_what_it_is() -> None:
    assert layerwise(reinforce).__name__ == "layerwise(reinforce)"
    assert not hasattr(layerwise(reinforce), "chain_rule")


@pytest.mark.parametrize("name", registry.ESTIMATORS)
def test_a_network_estimator_can_be_pickled(name: str) -> None:
    estimator, net = network_estimator(name), sbnlib.SBN(nn.Linear(2, 3), nn.Linear(3, 2))
    again = pickle.loads(pickle.dumps(estimator))
    values, others = (
        e(net, torch.ones(4, 2), lambda x: (x**2 + x).sum(-1), generator=seeded(1))
        for e in (estimator, again)
    )
    assert torch.equal(values, others) and name_of(again) == name_of(estimator)


def test_it_prints_as_its_name() -> None:
    assert repr(layerwise(reinforce)) == "layerwise(reinforce)"
    assert repr(pathwise("zgr")) == "pathwise(zgr)"


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("conv", [nn.Conv2d(1, 2, 2), BernoulliConv2d(1, 2, 2)])
def test_a_convolution_is_refused_by_name(conv: nn.Module) -> None:
    with pytest.raises(ValueError, match="fully connected layers, layer 0 is .*Conv2d"):
        layerwise("reinforce")(sbnlib.SBN(conv), torch.zeros(3, 1, 2, 2), lambda x: x.sum(-1))


@pytest.mark.parametrize("bad", [None, 3])
def test_what_is_no_estimator_is_refused(bad: object) -> None:
    with pytest.raises(TypeError, match="loss-based function"):
        layerwise(bad)


@entries
@pytest.mark.parametrize("loss", [lambda x: x, lambda x: x.sum(), lambda x: 1.0],
                         ids=["states", "scalar", "float"])  # fmt: skip
def test_a_loss_of_the_wrong_shape_is_refused(entry: registry.Entry, loss: object) -> None:
    model = sbnlib.SBN(nn.Linear(2, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="loss must"):
        network_estimator(entry.name)(model, torch.zeros(4, 2), loss)


@pytest.mark.parametrize("name", TAKES_SURROGATE)
def test_a_loss_without_a_derivative_is_refused_in_depth_too(name: str) -> None:
    model = sbnlib.SBN(nn.Linear(2, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="differentiable"):
        network_estimator(name)(model, torch.zeros(4, 2), lambda x: (x.sum(-1) > 0).float())


def test_a_bad_number_of_samples_is_refused_before_the_loss_is_called() -> None:
    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the loss was called before the check")

    model = sbnlib.SBN(nn.Linear(2, 3), nn.Linear(3, 2))
    for f in (partial(reinforce, num_samples=0), partial(reinforce, baseline="loo")):
        with pytest.raises(ValueError, match="num_samples"):
            layerwise(f)(model, torch.zeros(4, 2), never)


def test_pathwise_and_layerwise_are_both_network_estimators_of_the_registry() -> None:
    assert network_estimator(pathwise(straight_through)) is not None
    own = layerwise(reinforce)
    assert network_estimator(own) is own
