"""nn.Sign, SBN and pathwise: the law of the samples and the chain of gradients."""

from __future__ import annotations

import copy
import functools
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from bridge import in_order, make_net, make_noise, random_inputs
from scipy import stats
from torch import nn

import sbnlib
from sbnlib import (
    SBN,
    Logistic,
    chain_rule,
    darn,
    identity,
    measure,
    pathwise,
    straight_through,
    zgr,
)
from sbnlib.nn import BernoulliConv2d, BernoulliLinear, Sign

noises = pytest.mark.parametrize("noise_name", ref.NOISES)
ESTIMATORS = {
    "straight_through": (straight_through, "straight_through", 0.0),
    "zgr": (zgr, "zgr", 0.0),
    "darn": (darn, "darn_mean", 0.0),
    "chain_rule": (partial(chain_rule, s=0.4), "chain_rule", 0.4),
    "identity": (identity, "identity", 0.0),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(noise_name: str = "Logistic", seed: int = 0) -> tuple[ref.RefNet, SBN]:
    net = ref.random_net((2, 3, 2), ref.RefNoise(noise_name, 1.5), seed)
    return net, make_net(net)


# ---------------------------------------------------------------------------------- Sign


@noises
def test_sign_samples_signs_and_means(noise_name: str) -> None:
    unit, noise = Sign(make_noise(noise_name)), ref.RefNoise(noise_name)
    a = torch.tensor([-0.8, -0.0, 0.0, 0.3], dtype=torch.float64)
    u = torch.tensor([0.7, 0.2, 0.7, 0.2], dtype=torch.float64)
    assert unit(a, u=u).tolist() == [-1, 1, -1, 1]
    assert unit(a, mode="sign").tolist() == [-1, 1, 1, 1]
    mean = unit(a, mode="mean")
    np.testing.assert_allclose(mean.numpy(), 2 * noise.cdf(a.numpy()) - 1, atol=1e-15)


@noises
def test_sign_in_mean_mode_has_the_ordinary_derivative(noise_name: str) -> None:
    a = torch.tensor([-0.7, 0.2, 0.9], dtype=torch.float64, requires_grad=True)
    Sign(make_noise(noise_name))(a, mode="mean").sum().backward()
    expected = 2 * ref.RefNoise(noise_name).pdf(a.detach().numpy())
    np.testing.assert_allclose(a.grad.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("mode", ["sample", "sign"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_sign_takes_its_derivative_from_the_estimator(name: str, mode: str) -> None:
    estimator, reference_name, s = ESTIMATORS[name]
    for given in ({"estimator": estimator}, {}):
        unit = Sign(Logistic()) if given else Sign(Logistic(), estimator)
        a = torch.tensor([-0.7, 0.2, 0.9], dtype=torch.float64, requires_grad=True)
        x = unit(a, mode=mode, generator=seeded(), **given)
        x.sum().backward()
        state = x.detach().numpy()
        c = ref.factor(reference_name, ref.RefNoise("Logistic"), a.detach().numpy(), state, s)
        np.testing.assert_allclose(a.grad.numpy(), c, rtol=1e-12)


def test_sign_takes_states_handed_in() -> None:
    a, x = torch.full((2,), 30.0, requires_grad=True), torch.tensor([-1.0, 1.0])
    out = Sign()(a, x=x)
    assert torch.equal(out, x)
    assert out.requires_grad


def test_sign_defaults_to_logistic_straight_through_and_has_no_state() -> None:
    unit = Sign()
    assert (unit.noise, unit.estimator) == (Logistic(), straight_through)
    assert not list(unit.parameters()) and not unit.state_dict()


def test_sign_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="mode.*sample.*sign.*mean"):
        Sign()(torch.zeros(2), mode="median")
    with pytest.raises(TypeError, match="noise"):
        Sign(Logistic)
    with pytest.raises(TypeError, match="estimator"):
        Sign(Logistic(), 3)
    for mode in ("sample", "sign", "mean"):
        with pytest.raises(TypeError, match="a"):
            Sign()(torch.tensor([1, 2]), mode=mode)
        with pytest.raises(ValueError, match="a"):
            Sign()(torch.tensor([0.0, float("nan")]), mode=mode)


# ---------------------------------------------------------------------------- SBN: values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_samples_are_signs_of_the_last_layer(dtype: torch.dtype) -> None:
    net = make_net(small()[0], dtype=dtype)
    x = net(torch.ones(500, 2, dtype=dtype), generator=seeded())
    assert (x.shape, x.dtype) == ((500, 2), dtype)
    assert bool((x.abs() == 1).all())


def test_axes_in_front_of_the_batch_are_independent_samples() -> None:
    _, net = small()
    x = net(torch.zeros(3, 2, dtype=torch.float64).expand(64, 5, 3, 2), generator=seeded())
    assert x.shape == (64, 5, 3, 2)
    assert len(torch.unique(x.flatten(0, 2), dim=0)) == 4


@noises
def test_the_joint_law_of_both_layers(noise_name: str) -> None:
    # Chi-square over the 32 joint states, cells of probability 0 never hit;
    # false-alarm rate 1e-6 for each of the six noises
    reference, net = small(noise_name, seed=4)
    seen = []
    net.layers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    v = np.array([0.3, -0.7])
    last = net(torch.tensor(v).expand(2**16, 2), generator=seeded(1))
    joint = torch.cat([seen[0], last], 1).detach().numpy()
    xs = ref.paths((3, 2))
    expected = ref.path_probabilities(reference, v, xs) * len(joint)
    codes = ((joint > 0) @ (2 ** np.arange(4, -1, -1))).astype(int)
    counts = np.bincount(codes, minlength=32)
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    assert stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-6


@noises
def test_uniforms_handed_in_decide_every_layer(noise_name: str) -> None:
    reference, net = small(noise_name)
    v, rng = random_inputs(7, 2), np.random.default_rng(0)
    us = [rng.uniform(size=(7, 3)), rng.uniform(size=(7, 2))]
    x = v
    for w, b, u in zip(reference.weights, reference.biases, us, strict=True):
        x = np.where(u < reference.noise.cdf(x @ w.T + b), 1.0, -1.0)
    out = net(torch.tensor(v), u=[torch.tensor(u) for u in us])
    assert np.array_equal(out.detach().numpy(), x)


def test_states_handed_in_are_the_values() -> None:
    _, net = small()
    states = [torch.tensor([[1.0, -1.0, 1.0]]).double(), torch.tensor([[-1.0, 1.0]]).double()]
    seen = []
    net.layers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = net(torch.zeros(1, 2, dtype=torch.float64), states=states)
    assert torch.equal(out, states[1])
    assert torch.equal(seen[0], states[0])


@noises
def test_sign_and_mean_modes_propagate_states_and_means(noise_name: str) -> None:
    reference, net = small(noise_name)
    v = random_inputs(6, 2)
    sign, mean = v, v
    for w, b in zip(reference.weights, reference.biases, strict=True):
        sign = np.where(sign @ w.T + b >= 0, 1.0, -1.0)
        mean = 2 * reference.noise.cdf(mean @ w.T + b) - 1
    inputs = torch.tensor(v)
    assert np.array_equal(net(inputs, mode="sign").detach().numpy(), sign)
    np.testing.assert_allclose(net(inputs, mode="mean").detach().numpy(), mean, atol=1e-14)


def test_sign_of_zero_is_plus_one_in_a_network() -> None:
    layer = nn.Linear(2, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    assert SBN(layer)(torch.ones(4, 2), mode="sign").tolist() == [[1.0] * 3] * 4


def test_the_generator_repeats_the_sample() -> None:
    _, net = small()
    inputs = torch.zeros(99, 2, dtype=torch.float64)
    one, two, other = (net(inputs, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_network_is_an_ordinary_module() -> None:
    _, net = small()
    names = [name for name, _ in net.named_parameters()]
    assert names == list(net.state_dict()) and len(names) == 4
    again = copy.deepcopy(net)
    again.load_state_dict(net.state_dict())
    inputs = torch.ones(9, 2, dtype=torch.float64)
    assert torch.equal(net(inputs, generator=seeded()), again(inputs, generator=seeded()))
    assert isinstance(repr(net), str)


def test_convolutions_are_layers_too() -> None:
    tail = nn.Sequential(nn.Flatten(-3), nn.Linear(2 * 4 * 4, 3))
    net = SBN(nn.Conv2d(1, 2, 3), tail)
    images = torch.rand(5, 1, 6, 6, generator=seeded())
    assert net(images, generator=seeded()).shape == (5, 3)
    values = pathwise(straight_through)(net, images, lambda x: x.sum(-1), generator=seeded())
    assert values.shape == (5,)
    values.mean().backward()
    assert net.layers[0].weight.grad.abs().sum() > 0


class GatedConv(nn.Module):
    """A convolution with its channels scaled by a layer on their means (squeeze, excitation)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(1, 2, 3), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.conv(x)
        return a * torch.sigmoid(self.gate(a.mean((-1, -2))))[..., None, None]


TAIL = nn.Sequential(nn.Flatten(-3), nn.Linear(2 * 4 * 4, 3))
IMAGE_NETS = {
    "batch norm first": (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)), TAIL),
    "flatten first": (nn.Sequential(nn.Flatten(-3), nn.Linear(36, 3)),),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), TAIL),
    "in containers": (nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3))), TAIL),
    "a gate behind it": (GatedConv(),),
    "a convolution last": (nn.AvgPool2d(2), nn.Conv2d(1, 1, 3, padding=1)),
    "norm behind it": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),),
    "weight norm last": (nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)),),
    "flat behind it": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()),),
    "Bernoulli weights": (BernoulliConv2d(1, 2, 3),),
    "flat Bernoulli": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(1), BernoulliLinear(32, 3)),),
}


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_a_right_loss_of_an_image_network_is_taken_whatever_its_first_layer(name: str) -> None:
    net, images = SBN(*IMAGE_NETS[name]).eval(), torch.rand(5, 1, 6, 6, generator=seeded())

    def loss(x: torch.Tensor) -> torch.Tensor:
        return x.sum((-1, -2, -3)) if x.dim() == 4 else x.sum(-1)

    assert pathwise("zgr")(net, images, loss, generator=seeded()).shape == (5,)
    reference = {key: torch.zeros_like(p) for key, p in net.named_parameters()}
    assert measure(net, images, loss, "zgr", 4, reference=reference)["all"].num_samples == 4
    with pytest.raises(ValueError, match=r"loss must return one value an input, shape \(5,\)"):
        pathwise("zgr")(net, images, lambda x: x.sum(), generator=seeded())


# ------------------------------------------------------------------------- SBN: gradients


@noises
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_gradient_in_depth_is_the_chain_written_out(name: str, noise_name: str) -> None:
    estimator, reference_name, s = ESTIMATORS[name]
    reference = ref.random_net((2, 3, 2, 2), ref.RefNoise(noise_name, 2.0), seed=2)
    loss, v = ref.smooth_loss(2), np.array([0.4, -1.2])
    xs = ref.paths(reference.widths)
    _, grads = ref.path_estimates(reference, v, loss, 0, reference_name, s)
    for path in (0, 17, 63, 100, 127):
        net = make_net(reference, estimator)
        states = [torch.tensor(x[path : path + 1]) for x in xs]
        loss.torch(net(torch.tensor(v[None]), states=states)).sum().backward()
        for p, g in zip(net.parameters(), in_order(grads), strict=True):
            np.testing.assert_allclose(p.grad.numpy(), g[path], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_estimator_of_a_call_overrides_that_of_the_network(name: str) -> None:
    reference, _ = small()
    estimator = ESTIMATORS[name][0]
    grads = []
    for net, given in ((make_net(reference, estimator), {}),
                       (make_net(reference), {"estimator": estimator})):  # fmt: skip
        inputs = torch.ones(4, 2, dtype=torch.float64)
        (net(inputs, generator=seeded(), **given) ** 3).sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(g, h) for g, h in zip(*grads, strict=True))


def test_mean_mode_is_differentiable_with_the_gradient_of_the_mean_field_loss() -> None:
    reference, net = small("Gaussian")
    v = random_inputs(3, 2)

    def value(w: np.ndarray) -> float:
        mean = v
        for k, b in enumerate(reference.biases):
            mean = 2 * reference.noise.cdf(mean @ (w if k == 0 else reference.weights[k]).T + b) - 1
        return float((mean**3).sum())

    (net(torch.tensor(v), mode="mean") ** 3).sum().backward()
    numeric = ref.finite_difference(value, reference.weights[0])
    np.testing.assert_allclose(net.layers[0].weight.grad.numpy(), numeric, atol=1e-8)


def test_samples_in_front_of_the_batch_add_their_gradients() -> None:
    reference, net = small()
    v, us = torch.tensor(random_inputs(3, 2)), [torch.rand(4, 3, n).double() for n in (3, 2)]
    (net(v.expand(4, 3, 2), u=us) ** 3).sum().backward()
    together = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for i in range(4):
        (net(v, u=[u[i] for u in us]) ** 3).sum().backward()
    for p, g in zip(net.parameters(), together, strict=True):
        torch.testing.assert_close(p.grad, g)


# ------------------------------------------------------------------------------ pathwise


def test_pathwise_is_the_loss_of_one_sample_per_input() -> None:
    reference, net = small()
    loss, inputs = ref.target_loss(2, 5), torch.tensor(random_inputs(5, 2))
    values = pathwise(zgr)(net, inputs, loss.torch, generator=seeded(9))
    assert values.shape == (5,)
    torch.testing.assert_close(values, loss.torch(net(inputs, generator=seeded(9))))
    many = pathwise(zgr)(net, inputs.expand(7, 5, 2), loss.torch, generator=seeded(9))
    assert many.shape == (7, 5)


def test_pathwise_uses_its_own_estimator_not_the_network_s() -> None:
    reference, net = small()
    inputs = torch.ones(3, 2, dtype=torch.float64)
    grads = []
    for build in (net, make_net(reference, zgr)):
        build.zero_grad()
        pathwise(zgr)(build, inputs, lambda x: (x**3).sum(-1), generator=seeded()).sum().backward()
        grads.append(build.layers[0].weight.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("loss", [
    lambda x: x.sum(), lambda x: x, lambda x: x.sum(-1, keepdim=True), lambda x: 1.0,
])  # fmt: skip
def test_a_loss_that_is_not_one_value_per_input_is_refused(loss: object) -> None:
    _, net = small()
    with pytest.raises(ValueError, match="loss"):
        pathwise(zgr)(net, torch.ones(3, 2, dtype=torch.float64), loss)


# -------------------------------------------------------------------------------- errors


def test_networks_of_nothing_or_of_no_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="layers"):
        SBN()
    with pytest.raises(TypeError, match="layers"):
        SBN(nn.Linear(2, 3), 7)
    with pytest.raises(TypeError, match="noise"):
        SBN(nn.Linear(2, 3), noise=1.0)
    with pytest.raises(TypeError, match="estimator"):
        SBN(nn.Linear(2, 3), estimator=0)
    with pytest.raises(TypeError, match="estimator"):
        pathwise(0)


@pytest.mark.parametrize("key", ["states", "u"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_states_or_uniforms_is_refused(key: str, count: int) -> None:
    _, net = small()
    with pytest.raises(ValueError, match=key):
        net(torch.zeros(1, 2).double(), **{key: [torch.ones(1, 3).double()] * count})


@pytest.mark.parametrize("key", ["states", "u"])
def test_states_or_uniforms_of_a_wrong_width_are_refused(key: str) -> None:
    _, net = small()
    wrong = [torch.ones(1, 2).double(), torch.ones(1, 2).double()]
    with pytest.raises(ValueError, match=f"{key[0] if key == 'u' else 'x|states'}"):
        net(torch.zeros(1, 2).double(), **{key: wrong})


def test_bad_inputs_modes_and_loose_tensors_are_refused() -> None:
    _, net = small()
    good = torch.zeros(1, 2).double()
    with pytest.raises(TypeError, match="inputs"):
        net(torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="inputs"):
        net(np.ones((1, 2)))
    with pytest.raises(ValueError, match="mode.*sample.*sign.*mean"):
        net(good, mode="soft")
    with pytest.raises(ValueError, match="states"):
        net(good, states=torch.ones(2, 3).double())
    with pytest.raises((ValueError, RuntimeError)):
        net(torch.zeros(1, 3).double())
    with pytest.raises(ValueError):
        net(torch.full((1, 2), float("nan")).double())


@pytest.mark.parametrize("bad", [7.0, 0.0, 0.5, float("nan"), float("inf")])
def test_states_that_are_none_are_refused_before_any_work(bad: float) -> None:
    def never(*args: object) -> None:
        raise AssertionError("a layer was run before the check")

    net = SBN(nn.Linear(2, 3), nn.Linear(3, 2))
    net.layers[0].register_forward_pre_hook(never)
    states = [torch.ones(4, 3), torch.ones(4, 2)]
    states[1][2, 1] = bad
    with pytest.raises(ValueError, match=r"states must hold \+-1 only, got values from"):
        net(torch.zeros(4, 2), states=states)


@pytest.mark.slow
def test_a_wrapper_that_takes_anything_is_not_handed_a_generator() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **options: Any) -> torch.Tensor:
            return self.inner(*args, **options)

    x = torch.rand(5, 3)
    assert SBN(Wrapper(nn.Linear(3, 4)))(x).shape == (5, 4)
    assert SBN(torch.compile(nn.Linear(3, 4), backend="eager"))(x).shape == (5, 4)


def test_states_handed_to_a_unit_are_signs() -> None:
    for bad in (7.0, float("nan"), 0.0):
        with pytest.raises(ValueError, match="x must hold .*1 only, got"):
            Sign()(torch.zeros(2), x=torch.full((2,), bad))


def test_a_partial_keeps_the_generator_it_was_made_with() -> None:
    def slope() -> torch.Tensor:
        own = torch.Generator().manual_seed(3)
        unit = Sign(estimator=functools.partial(sbnlib.st_gumbel, tau=0.5, generator=own))
        a = torch.zeros(6, requires_grad=True)
        unit(a, mode="sign").sum().backward()
        return a.grad

    assert torch.equal(slope(), slope())


def test_states_handed_in_come_out_in_the_dtype_of_the_unit() -> None:
    for dtype in (torch.int64, torch.float16, torch.float64):
        a = torch.tensor([0.3, -0.4], requires_grad=True)
        x = Sign()(a, x=torch.tensor([-1, 1], dtype=dtype))
        x.sum().backward()
        assert x.dtype == torch.float32 and x.tolist() == [-1, 1]
        slopes = ref.RefNoise("Logistic", 1.0).pdf(a.detach().double().numpy())
        np.testing.assert_allclose(a.grad, 2 * slopes, rtol=1e-6)
        states = [torch.ones(1, 3, dtype=dtype), torch.ones(1, 2, dtype=dtype)]
        net = SBN(nn.Linear(2, 3), nn.Linear(3, 2))
        assert net(torch.zeros(1, 2), states=states).dtype == torch.float32
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=rf"x must hold real numbers \+-1, got {dtype}"):
            Sign()(torch.zeros(2), x=torch.ones(2, dtype=dtype))


def test_what_a_unit_would_not_use_is_refused() -> None:
    a, x, u = torch.zeros(1, 2), torch.ones(1, 2), torch.rand(1, 2)
    with pytest.raises(ValueError, match="x must be None in mode='mean'"):
        Sign()(a, mode="mean", x=x)
    for mode in ("mean", "sign"):
        with pytest.raises(ValueError, match=f"u must be None in mode='{mode}'"):
            Sign()(a, mode=mode, u=u)
    with pytest.raises(ValueError, match="u must be None where x is handed in"):
        Sign()(a, x=x, u=u)
    with pytest.raises(ValueError, match="u must be None where x is handed in"):
        SBN(nn.Linear(2, 2))(a, states=[x], u=[u])


def test_pre_activations_are_looked_at_whatever_the_estimator() -> None:
    def blind(a: torch.Tensor, x: torch.Tensor, noise: sbnlib.Noise) -> torch.Tensor:
        return x

    for options in ({"mode": "sample"}, {"mode": "sign"}, {"x": torch.ones(2)}):
        with pytest.raises(ValueError, match="a must be finite"):
            Sign(estimator=blind)(torch.full((2,), float("nan")), **options)


def test_what_is_the_units_can_be_set_at_the_network() -> None:
    net, inputs = SBN(nn.Linear(2, 3)), torch.rand(4, 2)
    net.noise, net.mode, net.estimator = "uniform", "mean", "zgr"
    assert (net.noise, net.mode, net.estimator) == (sbnlib.Uniform(), "mean", zgr)
    assert (net.sign.noise, net.sign.mode, net.sign.estimator) == (sbnlib.Uniform(), "mean", zgr)
    expected = net.layers[0](inputs).clamp(-1, 1)  # 2F - 1 of the uniform law
    torch.testing.assert_close(net(inputs), expected)
    with pytest.raises(ValueError, match="noise must be one of"):
        net.noise = "normal"
    module = nn.PReLU()
    module.forward = lambda a, x, noise: x
    net.estimator = module
    assert net.sign.estimator is module and "estimator" not in net._modules


class Passing(nn.Module):
    """A wrapper that hands whatever it gets to what it holds."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **options: Any) -> torch.Tensor:
        return self.inner(*args, **options)


@pytest.mark.slow
def test_a_generator_goes_through_wrappers_to_what_draws() -> None:
    net, x = SBN(Passing(Passing(BernoulliLinear(3, 40)))), torch.rand(1, 3)
    before = torch.get_rng_state()
    assert torch.equal(net(x, generator=seeded()), net(x, generator=seeded()))
    assert torch.equal(torch.get_rng_state(), before)
    # A nn.Sequential takes none, so neither does what only passes on to it
    held = SBN(Passing(nn.Sequential(BernoulliLinear(3, 4), nn.BatchNorm1d(4))))
    assert held(torch.rand(5, 3)).shape == (5, 4)
    with pytest.raises(ValueError, match="generator must reach every module that draws.*Passing"):
        held(torch.rand(5, 3), generator=seeded())
    compiled = torch.compile(nn.Sequential(BernoulliLinear(3, 4)), backend="eager")
    assert SBN(compiled)(torch.rand(5, 3)).shape == (5, 4)


class Unhashable:
    """A forward that is neither a function nor a key."""

    __hash__ = None

    def __call__(self, x: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        return x + torch.rand(x.shape, generator=generator)


def test_a_forward_can_be_any_object_that_is_called() -> None:
    layer = nn.Identity()
    layer.forward = Unhashable()
    net, x = SBN(layer), torch.zeros(1, 3)
    assert torch.equal(net(x, generator=seeded()), net(x, generator=seeded()))


def test_how_a_layer_is_called_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Layer(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    def never(*args: object, **options: object) -> bool:
        raise AssertionError("signatures are slow to read")

    net = SBN(Layer(2, 2))
    net(torch.zeros(1, 2))
    monkeypatch.setattr(sbnlib.network, "takes", never)
    net(torch.zeros(1, 2))
