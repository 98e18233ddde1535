"""Layers with Bernoulli weights: what they draw, what their gradient is, what they save."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise, z_limit
from torch import Tensor, nn

import sbnlib
from sbnlib import (
    SBN,
    Gaussian,
    Logistic,
    Uniform,
    exact_expectation,
    exact_gradient,
    exact_moments,
    pathwise,
)
from sbnlib.nn import WEIGHT_MODES, BernoulliConv2d, BernoulliLinear

Array = np.ndarray
noises = pytest.mark.parametrize("noise_name", ref.NOISES)
layers = pytest.mark.parametrize("kind", ["linear", "conv"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_layer(kind: str, noise_name: str = "Logistic", seed: int = 0, **options: object):
    """A float64 layer with 6 or 8 weights, biases, and the one input it is tried at."""
    noise = make_noise(noise_name)
    if kind == "linear":
        layer, x = BernoulliLinear(3, 2, noise=noise, **options), random((1, 3), seed + 7)
    else:
        layer = BernoulliConv2d(1, 2, 2, noise=noise, **options)
        x = random((1, 1, 2, 2), seed + 7)
    layer = layer.double()
    with torch.no_grad():
        layer.eta.copy_(0.9 * torch.tensor(random(layer.eta.shape, seed)))
        layer.bias.copy_(torch.tensor(random((2,), seed + 1)))
    return layer, x


def random(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, size=shape)


# The loss is the product of the two outputs, (w_1 x + b_1)(w_2 x + b_2): no weight meets itself,
# so it is multilinear in the weights.


def product(out: Tensor) -> Tensor:
    return out.flatten().prod()


def loss_value(weights: Array, x: Array, bias: Array) -> float:
    return float(np.prod(weights.reshape(2, -1) @ x.ravel() + bias))


def loss_slope(weights: Array, x: Array, bias: Array) -> Array:
    outputs = weights.reshape(2, -1) @ x.ravel() + bias
    return (outputs[::-1, None] * x.ravel()).reshape(weights.shape)


def flip_expectation(p: Array, loss: Callable[[Array], float]) -> Array:
    """d E L/dp_i = E[L(w_i = 1) - L(w_i = -1)], over all configurations of the other weights."""
    configurations = ref.states(p.size)
    values = np.array([loss(w.reshape(p.shape)) for w in configurations])
    chance = np.where(configurations > 0, p.ravel(), 1 - p.ravel())
    others = ref._others(chance)
    return (configurations * others * values[:, None]).sum(0).reshape(p.shape)


def exact_flip(layer: nn.Module, noise_name: str, x: Array) -> Array:
    p = ref.RefNoise(noise_name).cdf(layer.eta.detach().numpy())
    bias = layer.bias.detach().numpy()
    return flip_expectation(p, lambda w: loss_value(w, x, bias))


def gradient(layer: nn.Module, x: Array, **options: object) -> Array:
    layer.zero_grad()
    product(layer(torch.tensor(x), **options)).backward()
    return layer.eta.grad.numpy().copy()


# ------------------------------------------------------------------------------- gradients


@pytest.mark.slow
@noises
@layers
def test_the_gradient_is_the_derivative_in_p_in_exact_expectation(
    kind: str, noise_name: str
) -> None:
    layer, x = make_layer(kind, noise_name)
    p = ref.RefNoise(noise_name).cdf(layer.eta.detach().numpy())
    total = np.zeros_like(p)
    for w in ref.states(p.size):
        w = w.reshape(p.shape)
        u = torch.tensor(np.where(w > 0, 0.0, 1 - 2.0**-53))  # u < p gives +1
        total += np.where(w > 0, p, 1 - p).prod() * gradient(layer, x, u=u)
    np.testing.assert_allclose(total, exact_flip(layer, noise_name, x), rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@layers
def test_the_gradient_is_the_derivative_in_p_on_average(kind: str) -> None:
    """False-alarm rate 1e-6 for each layer."""
    layer, x = make_layer(kind, "Gaussian")
    generator, draws = seeded(3), 2000
    samples = np.array([gradient(layer, x, generator=generator) for _ in range(draws)])
    z = (samples.mean(0) - exact_flip(layer, "Gaussian", x)) / samples.std(0) * math.sqrt(draws)
    assert np.abs(z).max() < z_limit(z.size)


@noises
@layers
def test_in_mean_mode_a_multilinear_loss_has_the_exact_derivative(
    kind: str, noise_name: str
) -> None:
    layer, x = make_layer(kind, noise_name, forward="mean")
    np.testing.assert_allclose(gradient(layer, x), exact_flip(layer, noise_name, x), rtol=1e-12)


@noises
@layers
@pytest.mark.parametrize("mode", WEIGHT_MODES)
def test_the_gradient_is_the_stated_factor_times_that_of_the_weight_used(
    kind: str, noise_name: str, mode: str
) -> None:
    """2; for a relaxed weight its own slope over the density, both with the constant."""
    tau, eps, law = 0.4, 1e-3, ref.RefNoise(noise_name)
    layer, x = make_layer(kind, noise_name, tau=tau, eps=eps)
    eta, u = layer.eta.detach().numpy(), np.random.default_rng(5).uniform(size=layer.eta.shape)
    p = law.cdf(eta)
    w = {
        "sample": np.where(u < p, 1.0, -1.0),
        "mean": 2 * p - 1,
        "sign": np.where(eta >= 0, 1.0, -1.0),
        "concrete": np.tanh((eta - ref.RefNoise(noise_name).icdf(u)) / 0.8),
    }[mode]
    given = {"u": torch.tensor(u)} if mode in ("sample", "concrete") else {}
    np.testing.assert_allclose(layer.weight(mode, **given).detach().numpy(), w, rtol=1e-12)
    factor = 2.0
    if mode == "concrete":
        factor = (1 - w**2 + eps) / (2 * tau * (law.pdf(eta) + eps / 4))
    expected = factor * loss_slope(w, x, layer.bias.detach().numpy())
    np.testing.assert_allclose(gradient(layer, x, mode=mode, **given), expected, rtol=1e-11)


@noises
@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("tau", [0.5, 0.1])
def test_a_relaxed_weights_gradient_is_that_of_the_relaxed_loss_in_p(
    noise_name: str, scale: float, tau: float
) -> None:
    """Without the constant, of L = w^3/3 - w, which is not multilinear.

    Both means over u by Gauss-Legendre, in panels that are cut where the weight turns.
    """
    law, eta = ref.RefNoise(noise_name, scale), 0.3 * scale
    cuts = np.unique(law.cdf(eta + tau * np.array([-np.inf, -8, -3, -1, 0, 1, 3, 8, np.inf])))
    node, weight = np.polynomial.legendre.leggauss(300)
    half = np.diff(cuts)[:, None] / 2
    u, measure = (
        (half * node + (cuts[:-1] + cuts[1:])[:, None] / 2).ravel(),
        (half * weight).ravel(),
    )

    def relaxed_loss(p: float) -> float:
        w = np.tanh((law.icdf(p) - law.icdf(u)) / (2 * tau))
        return float(measure @ (w**3 / 3 - w))

    noise = make_noise(noise_name, scale)
    layer = BernoulliLinear(1, 1, False, noise=noise, forward="concrete", tau=tau, eps=0).double()
    nn.init.constant_(layer.eta, eta)
    w = layer.weight(u=torch.tensor(u)[:, None, None])
    (torch.tensor(measure)[:, None, None] * (w**3 / 3 - w)).sum().backward()
    p, h = float(law.cdf(eta)), 1e-4
    difference = (relaxed_loss(p + h) - relaxed_loss(p - h)) / (2 * h)
    assert math.isclose(layer.eta.grad.item(), difference, rel_tol=2e-6)


def test_at_the_end_of_a_bounded_support_the_density_is_that_inside() -> None:
    layer = BernoulliLinear(3, 1, False, noise=Uniform(0.5), forward="concrete", eps=0).double()
    with torch.no_grad():
        layer.eta.copy_(torch.tensor([[-0.5, 0.5, 0.4]]))
    w = layer.weight(u=torch.tensor([[0.3, 0.6, 0.2]]))
    w.sum().backward()
    torch.testing.assert_close(layer.eta.grad, (1 - w.detach() ** 2) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_factor_that_is_not_finite_leaves_the_relaxed_weight_as_it_is(dtype: torch.dtype) -> None:
    """0/0 at a certain weight gives 0; what overflows gives a gradient that optimizers refuse."""
    certain = BernoulliLinear(1, 1, False, dtype=dtype, forward="concrete", tau=1e-3, eps=0)
    nn.init.constant_(certain.eta, 80.0)
    w = certain.weight()
    w.sum().backward()
    assert w.item() == 1 and certain.eta.grad.item() == 0
    cold = BernoulliLinear(1, 1, False, dtype=dtype, forward="concrete", tau=1e-37, eps=1e-3)
    w = cold.weight()
    (w * (torch.finfo(dtype).max / 2)).sum().backward()
    assert w.item() in (-1, 1) and cold.eta.grad.isinf()


@noises
def test_the_gradient_is_not_the_derivative_in_eta(noise_name: str) -> None:
    """d/d eta would be f(eta) times as much: the layer's gradient lives in p."""
    layer, x = make_layer("linear", noise_name, forward="mean")
    noise, bias = ref.RefNoise(noise_name), layer.bias.detach().numpy()
    eta = layer.eta.detach().numpy()
    mean_loss = lambda e: loss_value(2 * noise.cdf(e) - 1, x, bias)  # noqa: E731
    in_eta = ref.finite_difference(mean_loss, eta.copy())
    grad = gradient(layer, x)
    np.testing.assert_allclose(noise.pdf(eta) * grad, in_eta, rtol=1e-6, atol=1e-9)
    assert np.abs(grad - in_eta).max() > 0.1 * np.abs(grad).max()


def test_after_a_square_the_bias_is_twice_the_curvature_times_the_mean() -> None:
    """L = (w x + b)^2/2: A_ii = x_i^2 and the estimate is off by 2 A_ii mu_i (chapter 13)."""
    layer = BernoulliLinear(3, 1).double()
    x, b = random((1, 3), 1), float(layer.bias.detach())
    eta = layer.eta.detach().numpy()
    p = ref.RefNoise("Logistic").cdf(eta)
    mean = np.zeros_like(p)
    for w in ref.states(3):
        u = torch.tensor(np.where(w > 0, 0.0, 1 - 2.0**-53))[None]
        layer.zero_grad()
        (layer(torch.tensor(x), u=u).square().sum() / 2).backward()
        mean += np.where(w > 0, p, 1 - p).prod() * layer.eta.grad.numpy()
    exact = flip_expectation(p, lambda w: float((w @ x[0] + b)[0] ** 2 / 2))
    np.testing.assert_allclose(mean - exact, 2 * x**2 * (2 * p - 1), atol=1e-13)


@layers
def test_the_bias_and_the_input_get_their_ordinary_gradients(kind: str) -> None:
    layer, x = make_layer(kind, forward="sign")
    inputs = torch.tensor(x, requires_grad=True)
    product(layer(inputs)).backward()
    w, bias = layer.binary().numpy(), layer.bias.detach().numpy()
    outputs = w.reshape(2, -1) @ x.ravel() + bias
    np.testing.assert_allclose(layer.bias.grad.numpy(), outputs[::-1])
    expected = (outputs[::-1] @ w.reshape(2, -1)).reshape(x.shape)
    np.testing.assert_allclose(inputs.grad.numpy(), expected)


@pytest.mark.parametrize("mode", WEIGHT_MODES)
def test_linear_and_convolution_are_torchs_with_the_weight_used(mode: str) -> None:
    linear = BernoulliLinear(4, 3)
    x = torch.rand(5, 2, 4, generator=seeded())
    w = linear.weight(mode, generator=seeded(1))
    expected = nn.functional.linear(x, w, linear.bias)
    assert torch.equal(linear(x, mode=mode, generator=seeded(1)), expected)
    conv = BernoulliConv2d(2, 3, 3, stride=2, padding=1)
    image = torch.rand(4, 2, 7, 7, generator=seeded())
    w = conv.weight(mode, generator=seeded(1))
    expected = nn.functional.conv2d(image, w, conv.bias, 2, 1)
    assert torch.equal(conv(image, mode=mode, generator=seeded(1)), expected)
    assert expected.shape == (4, 3, 4, 4)


def test_without_a_bias_there_is_none() -> None:
    assert list(dict(BernoulliLinear(2, 2, False).named_parameters())) == ["eta"]
    assert BernoulliConv2d(1, 1, 2, bias=False)(torch.ones(1, 1, 2, 2)).shape == (1, 1, 1, 1)


# ---------------------------------------------------------------------------------- draws


@layers
def test_binary_signs_are_plus_or_minus_one_and_plus_at_zero(kind: str) -> None:
    layer, _ = make_layer(kind)
    with torch.no_grad():
        layer.eta.view(-1)[:4] = torch.tensor([0.0, -0.0, 1e-300, -1e-300], dtype=torch.float64)
    signs = layer.binary()
    assert signs.flatten()[:4].tolist() == [1, 1, 1, -1]
    assert set(signs.unique().tolist()) == {-1, 1}
    assert signs.shape == layer.eta.shape and signs.dtype == layer.eta.dtype
    assert not signs.requires_grad and not layer.binary("sample").requires_grad


@pytest.mark.slow
@noises
def test_binary_samples_and_forward_draws_have_their_probabilities(noise_name: str) -> None:
    """False-alarm rate 2e-6 for each noise."""
    layer = BernoulliLinear(2, 3, noise=make_noise(noise_name)).double()
    p = ref.RefNoise(noise_name).cdf(layer.eta.detach().numpy())
    generator, count = seeded(4), 1500
    drawn = [
        [layer.binary("sample", generator=generator) for _ in range(count)],
        [layer.weight("sample", generator=generator).detach() for _ in range(count)],
    ]
    for draws in drawn:
        stacked = torch.stack(draws).numpy()
        assert set(np.unique(stacked)) == {-1, 1}
        z = ((stacked > 0).mean(0) - p) / np.sqrt(p * (1 - p) / count)
        assert np.abs(z).max() < z_limit(z.size)


def test_one_draw_of_the_weights_serves_the_whole_batch() -> None:
    layer = BernoulliLinear(5, 4)
    out = layer(torch.ones(50, 5), generator=seeded())
    assert torch.equal(out, out[:1].expand_as(out))


@layers
@pytest.mark.parametrize("mode", ["sample", "concrete"])
def test_a_generator_makes_draws_repeatable_and_leaves_the_global_one(kind: str, mode: str) -> None:
    layer, x = make_layer(kind, forward=mode)
    before = torch.get_rng_state()
    first, again = (gradient(layer, x, generator=seeded(2)) for _ in range(2))
    assert np.array_equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    other = [gradient(layer, x, generator=seeded(s)) for s in range(5)]
    assert any(not np.array_equal(first, o) for o in other)


@noises
def test_fresh_weights_are_undecided_and_inside_the_support(noise_name: str) -> None:
    layer = BernoulliLinear(40, 50, noise=make_noise(noise_name))
    p = ref.RefNoise(noise_name).cdf(layer.eta.detach().double().numpy())
    assert 0.2499 < p.min() < 0.26 and 0.74 < p.max() < 0.7501
    np.testing.assert_allclose(layer.p.numpy(), p, rtol=1e-5)
    assert not layer.p.requires_grad
    layer.reset_parameters(seeded(9))
    first = layer.eta.detach().clone()
    layer.reset_parameters(seeded(9))
    assert torch.equal(first, layer.eta)


@layers
@pytest.mark.parametrize("mode", WEIGHT_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_are_kept(kind: str, mode: str, dtype: torch.dtype) -> None:
    layer, x = make_layer(kind, forward=mode)
    layer = layer.to(dtype)
    out = layer(torch.tensor(x, dtype=dtype), generator=seeded())
    product(out).backward()
    assert out.dtype == layer.eta.grad.dtype == layer.binary().dtype == dtype


# ---------------------------------------------------------------------------- checkpoints


@layers
def test_a_checkpoint_holds_latent_weights_and_gives_the_same_signs(kind: str) -> None:
    layer, _ = make_layer(kind)
    state = layer.state_dict()
    assert list(state) == ["eta", "bias", "_extra_state"]
    assert bool((state["eta"].abs() != 1).all()), "the checkpoint is latent, not binary"
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    fresh, _ = make_layer(kind, seed=50)
    assert not torch.equal(fresh.binary(), layer.binary())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.eta, layer.eta) and torch.equal(fresh.binary(), layer.binary())
    draws = (m.binary("sample", generator=seeded(1)) for m in (fresh, layer))
    assert torch.equal(*draws)


@layers
@pytest.mark.parametrize("mode", WEIGHT_MODES)
def test_layers_can_be_copied_after_use(kind: str, mode: str) -> None:
    layer, x = make_layer(kind, forward=mode, tau=0.3)
    gradient(layer, x, generator=seeded())
    twin = copy.deepcopy(layer)
    assert (twin.noise, twin.mode, twin.tau) == (layer.noise, mode, 0.3)
    same = [gradient(m, x, generator=seeded(1)) for m in (layer, twin)]
    assert np.array_equal(*same)
    with torch.no_grad():
        twin.eta.add_(1)
    assert not torch.equal(twin.eta, layer.eta)


# ---------------------------------------------------------------------- the law on eta

LAW = Gaussian(0.3)


def loaded(layer: nn.Module, **options: object) -> nn.Module:
    fresh = BernoulliLinear(3, 2, noise=LAW, eps=1e-4)
    fresh.load_state_dict(layer.state_dict(), **options)
    return fresh


def with_swaps(change: Callable[[], nn.Module]) -> nn.Module:
    """The way in which torch may change parameters instead of making new ones."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return change()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def through_a_file(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def with_another_eta(layer: nn.Module) -> nn.Module:
    layer.eta = nn.Parameter(torch.zeros(2, 3))
    return layer


def parameterless(layer: nn.Module) -> nn.Module:
    replica = layer._replicate_for_data_parallel()  # what DataParallel makes of a module
    replica.eta = layer.eta * 1
    replica.bias = layer.bias
    replica(torch.ones(1, 3)).sum().backward()
    return layer


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as made": lambda m: m,
    "deepcopy": copy.deepcopy,
    "deepcopy of a net": lambda m: copy.deepcopy(nn.Sequential(m, nn.Tanh()))[0],
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "file": through_a_file,
    "load": loaded,
    "assign": lambda m: loaded(m, assign=True),
    "swap": lambda m: with_swaps(lambda: loaded(m)),
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "from meta": lambda m: m.to("meta").to_empty(device="cpu"),
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "bfloat16 by swap": lambda m: with_swaps(lambda: m.to(torch.bfloat16)),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "another eta": with_another_eta,
    "a replica": parameterless,
    "average": lambda m: torch.optim.swa_utils.AveragedModel(m).module,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_law_stays_on_eta_whatever_torch_does(way: str) -> None:
    layer = WAYS[way](BernoulliLinear(3, 2, noise=LAW, eps=1e-4))
    assert layer.noise == LAW and isinstance(layer.eta, nn.Parameter)
    assert layer.eta.noise == LAW and layer.eta.eps == 1e-4
    layer.noise, layer.eps = Uniform(), 1e-3
    assert layer.eta.noise == Uniform() and layer.eta.eps == 1e-3


def test_a_saved_eta_can_be_read_back_as_weights_only() -> None:
    file = io.BytesIO()
    torch.save(list(BernoulliLinear(3, 2, noise=LAW).parameters()), file)
    file.seek(0)
    eta, _ = torch.load(file, weights_only=True)
    assert eta.noise == LAW


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize(
    "other, words",
    [(Uniform(), r"Uniform\(scale=1.0\)"), (Gaussian(0.30000001), r"Gaussian\(scale=0.30000001\)")],
)
def test_a_state_of_another_law_is_refused(
    other: object, words: str, assign: bool, strict: bool
) -> None:
    net = nn.Sequential(nn.Linear(3, 3), BernoulliLinear(3, 2, noise=LAW))
    before = copy.deepcopy(net[1].state_dict())
    state = nn.Sequential(nn.Linear(3, 3), BernoulliLinear(3, 2, noise=other)).state_dict()
    match = rf"1.eta must be of the layer's Gaussian\(scale=0.3\), the state dict's is of {words}"
    with pytest.raises(RuntimeError, match=match):
        net.load_state_dict(state, strict=strict, assign=assign)
    assert all(torch.equal(v, before[k]) for k, v in net[1].state_dict().items())
    assert net[1].eta.noise == LAW


@layers
def test_a_state_from_before_states_named_the_law_is_taken(kind: str) -> None:
    layer, _ = make_layer(kind)
    fresh, _ = make_layer(kind, seed=50)
    old = {k: layer.state_dict()[k] for k in ("eta", "bias")}
    found = fresh.load_state_dict(old, strict=True)
    assert not found.missing_keys and not found.unexpected_keys
    assert torch.equal(fresh.eta, layer.eta) and list(old) == ["eta", "bias"]
    net = nn.Sequential(fresh)
    net.load_state_dict({f"0.{k}": v for k, v in old.items()}, strict=True)
    with pytest.raises(RuntimeError, match="Missing key.*0.bias"):
        net.load_state_dict({"0.eta": old["eta"]})


def test_what_people_do_with_the_values_of_a_state_dict_leaves_the_law() -> None:
    layer = BernoulliLinear(3, 2, noise=LAW)
    first, second = layer.state_dict(), BernoulliLinear(3, 2, noise=LAW).state_dict()
    layer.load_state_dict({k: v.clone().cpu() for k, v in first.items()})
    layer.load_state_dict({k: v.half() for k, v in first.items()})
    layer.load_state_dict({k: (v + second[k]) / 2 for k, v in first.items()})


def test_one_eta_cannot_be_of_two_laws() -> None:
    first, second = BernoulliLinear(3, 2, noise=LAW), BernoulliLinear(3, 2, noise="uniform")
    before = second.eta
    with pytest.raises(ValueError, match=r"eta must be of the layer's Uniform.*, got one of Gauss"):
        second.eta = first.eta
    assert second.eta is before and first.eta.noise == LAW
    third = BernoulliLinear(3, 2, noise=LAW)
    third.eta = first.eta


def test_nothing_is_kept_on_eta_by_a_forward_pass() -> None:
    layer = BernoulliLinear(3, 2, forward="concrete")
    layer(torch.ones(1, 3)).sum().backward()
    assert set(vars(layer.eta)) == {"noise", "eps"} and layer.eta.noise == Logistic()


def test_a_layer_says_what_it_is() -> None:
    text = repr(BernoulliLinear(3, 2, noise=Uniform(), forward="sign"))
    assert (
        "BernoulliLinear(in_features=3, out_features=2" in text
        and "Uniform" in text
        and "'sign'" in text
    )


# ------------------------------------------------------- binary weights and activations


def both_binary(**options: object) -> SBN:
    return SBN(BernoulliLinear(3, 4, **options), BernoulliLinear(4, 2, **options)).double()


def test_binary_weights_and_activations_go_together() -> None:
    net = both_binary()
    x = net(torch.ones(6, 3).double(), generator=seeded())
    assert x.shape == (6, 2) and set(x.unique().tolist()) <= {-1.0, 1.0}
    x.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def with_batch_norm() -> SBN:
    first = nn.Sequential(BernoulliLinear(3, 4), nn.BatchNorm1d(4))
    return SBN(first, nn.Sequential(nn.Sequential(BernoulliLinear(4, 2)))).double()


def convolutional() -> SBN:
    conv = nn.Sequential(BernoulliConv2d(1, 2, 2), nn.BatchNorm2d(2))
    return SBN(conv, nn.Sequential(nn.Flatten(), BernoulliLinear(8, 3))).double()


@pytest.mark.parametrize(
    "make, shape",
    [(both_binary, (6, 3)), (with_batch_norm, (6, 3)), (convolutional, (6, 1, 3, 3))],
)
def test_a_networks_generator_reaches_weights_and_units(make: Callable, shape: tuple) -> None:
    net, inputs = make(), torch.tensor(random(shape, 1))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = net(inputs, generator=seeded(3))
    torch.rand(7)
    assert torch.equal(first, net(inputs, generator=seeded(3)))
    torch.set_rng_state(before)
    net(inputs, generator=seeded(3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_network_estimators_take_networks_with_binary_weights(kind: str) -> None:
    net = both_binary() if kind == "linear" else convolutional()
    inputs = torch.tensor(random((5, 3) if kind == "linear" else (5, 1, 3, 3), 1))
    values = pathwise(net.sign.estimator)(net, inputs, lambda x: x.sum(-1), generator=seeded())
    assert values.shape == (5,)
    values.mean().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.slow
def test_the_mean_estimate_over_weights_and_units_is_the_chain_of_both() -> None:
    """One layer, linear loss c'x: E[2 x_in f_j(a_j) 2 c_j] over all W, by enumeration.

    A z-test with false-alarm rate 1e-6.
    """
    net = SBN(BernoulliLinear(2, 2)).double()
    layer, x, c = net.layers[0], np.array([0.8, -0.5]), np.array([1.0, -2.0])
    noise, bias = ref.RefNoise("Logistic"), layer.bias.detach().numpy()
    p = noise.cdf(layer.eta.detach().numpy())
    expected = np.zeros((2, 2))
    for w in ref.states(4):
        chance = np.where(w.reshape(2, 2) > 0, p, 1 - p).prod()
        upstream = 2 * noise.pdf(w.reshape(2, 2) @ x + bias) * c
        expected += chance * 2 * upstream[:, None] * x
    generator, samples = seeded(8), []
    for _ in range(2000):
        layer.zero_grad()
        out = net(torch.tensor(x)[None], generator=generator)
        (out @ torch.tensor(c)).sum().backward()
        samples.append(layer.eta.grad.numpy().copy())
    samples = np.array(samples)
    z = (samples.mean(0) - expected) / samples.std(0) * math.sqrt(len(samples))
    assert np.abs(z).max() < z_limit(4)


@pytest.mark.parametrize("function", [exact_gradient, exact_expectation, exact_moments])
@pytest.mark.parametrize(
    "layer, name",
    [
        (BernoulliLinear(3, 2), "BernoulliLinear"),
        (nn.Sequential(BernoulliLinear(3, 2)), "BernoulliLinear"),
        (BernoulliConv2d(1, 2, 2), "BernoulliConv2d"),
    ],
)
def test_exact_sums_refuse_random_weights_by_name(
    function: Callable, layer: nn.Module, name: str
) -> None:
    extra = ("straight_through",) if function is exact_moments else ()
    with pytest.raises(ValueError, match=f"layer 0 .*{name}"):
        function(SBN(layer), torch.ones(2, 3), lambda x: x.sum(-1), *extra)


@pytest.mark.slow
def test_a_network_that_was_run_is_not_kept_alive() -> None:
    net = both_binary()
    net(torch.ones(1, 3).double(), generator=seeded())
    alive = weakref.ref(net.layers[0])
    del net
    gc.collect()
    assert alive() is None


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("make", [BernoulliLinear, lambda *a, **k: BernoulliConv2d(*a, 2, **k)])
def test_bad_options_are_refused(make: Callable) -> None:
    with pytest.raises(ValueError, match="forward.*sample.*mean.*sign.*concrete.*'median'"):
        make(2, 2, forward="median")
    with pytest.raises(TypeError, match="noise.*Logistic"):
        make(2, 2, noise=sbnlib.Logistic)
    for tau in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tau"):
            make(2, 2, tau=tau)
    for eps in (-1e-10, float("nan"), float("inf"), None, True):
        with pytest.raises(ValueError, match=f"eps must be a finite number >= 0, got {eps}"):
            make(2, 2, eps=eps)


@layers
def test_bad_calls_are_refused(kind: str) -> None:
    layer, x = make_layer(kind)
    inputs = torch.tensor(x)
    with pytest.raises(ValueError, match="mode.*sample.*'median'"):
        layer(inputs, mode="median")
    with pytest.raises(ValueError, match="mode"):
        layer.weight("draw")
    with pytest.raises(ValueError, match="how.*sign.*sample.*'mean'"):
        layer.binary("mean")
    with pytest.raises(ValueError, match="u must have shape"):
        layer(inputs, u=torch.rand(2))
    with torch.no_grad():
        layer.eta.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        layer(inputs)


# --------------------------------------------------------------- torch's options, in its order

CONVOLUTIONS = {
    "stride": (4, 6, 3, 2),
    "padding": (4, 6, 3, 1, 1),
    "dilation": (4, 6, 3, 1, 2, 2),
    "groups": (4, 6, 3, 1, 1, 1, 2),
    "pairs": (4, 6, (3, 2), (2, 1), (1, 0), (1, 2)),
    "same": (4, 6, (3, 5), 1, "same"),
    "valid": (4, 6, 3, 2, "valid"),
    "no bias": (4, 6, 3, 1, 0, 1, 1, False),
    "reflect": (4, 6, 3, 1, 2, 1, 1, True, "reflect"),
    "replicate": (4, 6, 3, 2, (1, 2), 1, 2, True, "replicate"),
    "circular": (4, 6, 3, 1, "same", 1, 1, True, "circular"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_takes_what_torch_takes_in_the_same_order(name: str) -> None:
    given, x = CONVOLUTIONS[name], torch.rand(2, 4, 7, 8)
    ours, theirs = BernoulliConv2d(*given, forward="sign"), nn.Conv2d(*given)
    assert ours.eta.shape == theirs.weight.shape
    with torch.no_grad():
        theirs.weight.copy_(ours.binary())
        if theirs.bias is not None:
            ours.bias.normal_()
            theirs.bias.copy_(ours.bias)
    torch.testing.assert_close(ours(x), theirs(x))
    assert repr(ours).startswith(repr(theirs).replace("Conv2d(", "BernoulliConv2d(")[:-1])


@pytest.mark.parametrize("value", [-1, 1])
def test_what_surrounds_the_image_can_be_a_state(value: int) -> None:
    x = torch.rand(2, 1, 4, 5).sub(0.5).sign()
    layer = BernoulliConv2d(1, 3, 3, 1, (1, 2), pad_value=value, forward="sign")
    around = nn.functional.pad(x, (2, 2, 1, 1), value=value)
    expected = nn.functional.conv2d(around, layer.binary(), layer.bias)
    assert torch.equal(layer(x), expected) and f"pad_value={value}" in repr(layer)


def test_pad_values_that_are_no_state_or_have_no_place_are_refused() -> None:
    for options in ({"pad_value": 0.5}, {"pad_value": 1, "padding_mode": "reflect"}):
        with pytest.raises(ValueError, match="pad_value must be -1, 0 or 1"):
            BernoulliConv2d(1, 1, 3, padding=1, **options)
    with pytest.raises(ValueError, match="groups"):
        BernoulliConv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="padding_mode"):
        BernoulliConv2d(3, 4, 3, padding_mode="mirror")


@pytest.mark.parametrize("make", [BernoulliLinear, lambda *a, **k: BernoulliConv2d(*a, 2, **k)])
def test_device_and_dtype_are_those_asked_for(make: Callable) -> None:
    for options in ({"device": "meta"}, {"dtype": torch.float64}, {"dtype": torch.bfloat16}):
        layer = make(2, 3, **options)
        for p in layer.parameters():
            assert p.device.type == options.get("device", "cpu")
            assert p.dtype == options.get("dtype", torch.float32)


def test_a_linear_layer_reads_like_torchs() -> None:
    words = "BernoulliLinear(in_features=2, out_features=3, bias=False, noise=Logistic(scale=1)"
    assert repr(BernoulliLinear(2, 3, False)).startswith(words)


@pytest.mark.parametrize("bias", ["uniform", Logistic(), 2, None])
def test_a_law_in_the_place_of_the_bias_is_refused(bias: object) -> None:
    for make in (lambda: BernoulliLinear(3, 4, bias), lambda: BernoulliConv2d(1, 1, 3, bias=bias)):
        with pytest.raises(TypeError, match="bias must be True or False, got .*noise="):
            make()


def test_options_that_would_have_no_effect_or_another_are_refused() -> None:
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(TypeError, match=f"dtype must be a floating-point .* got {dtype}"):
            BernoulliLinear(3, 4, dtype=dtype)
        with pytest.raises(TypeError, match=f"dtype must be a floating-point .* got {dtype}"):
            BernoulliConv2d(1, 1, 3, dtype=dtype)
    layer = BernoulliLinear(3, 4)
    with pytest.raises(TypeError, match="forward must stay a function, got 'sign': set mode"):
        layer.forward = "sign"
    for mode in ("sign", "mean"):
        with pytest.raises(ValueError, match=f"u must be None in mode='{mode}'"):
            layer(torch.ones(1, 3), mode=mode, u=torch.rand(4, 3))
    for mode in ("sample", "concrete"):
        assert layer(torch.ones(1, 3), mode=mode, u=torch.rand(4, 3)).shape == (1, 4)


@pytest.mark.parametrize(
    "law", [None, "Logistic(scale=1.0)", torch.tensor([255], dtype=torch.uint8)]
)
def test_a_state_that_names_no_law_is_refused_in_words(law: object) -> None:
    layer = BernoulliLinear(3, 4)
    with pytest.raises(RuntimeError, match="eta must be of the layer's Logistic"):
        layer.load_state_dict(layer.state_dict() | {"_extra_state": law})
