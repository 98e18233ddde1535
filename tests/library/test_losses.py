"""Cross-entropies of a head and of a decoder, and the divergence of a code, by hand."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sbnlib import (
    SBN,
    Cauchy,
    FastSigmoid,
    Gaussian,
    Logistic,
    Noise,
    Triangular,
    Uniform,
    autoencoding_loss,
    classification_loss,
    darn,
    exact_gradient,
    kl_bits,
    measure,
    network_estimator,
    straight_through,
    zgr,
)
from sbnlib.registry import ESTIMATORS

TARGETS = torch.tensor([2, 0, 1, 1])


def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 3, dtype=torch.float64)


def by_hand(layer: nn.Linear, x: Tensor) -> np.ndarray:
    """-log of the softmax at the target, in numpy, row by row."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    out = np.empty(tuple(x.shape[:-1]))
    for at in itertools.product(*map(range, out.shape)):
        scores = weight @ x[at].numpy() + bias
        out[at] = np.log(np.exp(scores).sum()) - scores[TARGETS[at[-1]]]
    return out


@pytest.mark.parametrize("front", [(), (5,), (2, 3), (4,)])
def test_one_value_an_input_whatever_stands_in_front(front: tuple[int, ...]) -> None:
    # (4,) in front of 4 inputs: a mix-up of the two axes has the right shape
    x = torch.rand(*front, 4, 3, dtype=torch.float64).round() * 2 - 1
    layer = head()
    values = classification_loss(layer, TARGETS)(x)
    assert values.shape == (*front, 4)
    assert np.allclose(values.detach().numpy(), by_hand(layer, x), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_any_integers_will_do(dtype: torch.dtype) -> None:
    x, layer = torch.ones(4, 3, dtype=torch.float64), head()
    values = classification_loss(layer, TARGETS.to(dtype))(x)
    assert np.allclose(values.detach().numpy(), by_hand(layer, x), rtol=1e-12)


def test_states_and_head_get_their_gradients() -> None:
    layer, x = head(), (torch.rand(4, 3, dtype=torch.float64) * 2 - 1).requires_grad_()
    loss = classification_loss(layer, TARGETS)
    assert torch.autograd.gradcheck(lambda x, w: loss(x), (x, layer.weight))
    loss(x).sum().backward()
    shares = torch.softmax(layer(x.detach()), -1) - torch.eye(3)[TARGETS]
    assert torch.allclose(layer.weight.grad, shares.T @ x.detach())


def test_it_serves_exact_sums_measurements_and_every_estimator() -> None:
    torch.manual_seed(1)
    net, inputs = SBN(nn.Linear(2, 3).double()), torch.rand(4, 2).double()
    loss = classification_loss(head(), TARGETS)
    value, _ = exact_gradient(net, inputs, loss)
    states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    a = net.layers[0](inputs).detach()
    law = torch.sigmoid(states[:, None] * a).prod(-1)  # (8, B)
    expected = (law * torch.tensor(by_hand(head(), states[:, None].expand(-1, 4, -1)))).sum(0)
    assert torch.allclose(value, expected.mean(), rtol=1e-12)
    assert measure(net, inputs, loss, "straight_through", 2)["all"].num_samples == 2
    for name in ESTIMATORS:
        assert network_estimator(name)(net, inputs, loss).shape == (4,)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (TARGETS.float(), "targets must be a tensor of integers, got torch.float32"),
        (TARGETS > 0, "targets must be a tensor of integers, got torch.bool"),
        ([2, 0, 1, 1], "targets must be a tensor of integers, got list"),
        (TARGETS[:, None], r"targets must have shape \(B,\), one class an input, got \(4, 1\)"),
    ],
)
def test_wrong_targets_are_named_before_any_work(targets: object, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        classification_loss(head(), targets)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.tensor([0, 1, 3, 0]), "targets must be classes from 0 to 2, .* got 3"),
        (torch.tensor([0, -1, 2, 0]), "targets must be classes from 0 to 2, .* got -1"),
        (TARGETS[:3], r"states must have shape .* B = 3, .* got \(4, 3\)"),
    ],
)
def test_targets_and_scores_must_fit(targets: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classification_loss(head(), targets)(torch.ones(4, 3, dtype=torch.float64))


def test_a_head_that_loses_rows_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"head must return scores .* N = 8 here.* got shape \(24,"
    ):
        classification_loss(nn.Flatten(0), TARGETS)(torch.ones(2, 4, 3))


def test_batch_norm_in_the_head_takes_features_for_channels() -> None:
    # Three features for three inputs: the axis of the batch would pass for that of the channels
    layer, norm, y = head(), nn.BatchNorm1d(3).double().eval(), TARGETS[:3]
    norm.running_mean.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    norm.running_var.copy_(torch.tensor([0.1, 1.0, 4.0]))
    x = torch.rand(5, 3, 3, dtype=torch.float64).round() * 2 - 1
    loss = classification_loss(nn.Sequential(norm, layer), y)
    for values, row in zip(loss(x), x, strict=True):
        torch.testing.assert_close(values, loss(row))


def test_a_naive_cross_entropy_is_pointed_here() -> None:
    net, layer = SBN(nn.Linear(2, 3)), head().float()
    with pytest.raises(ValueError, match="sbnlib.classification_loss"):
        exact_gradient(
            net, torch.rand(4, 2), lambda x: nn.functional.cross_entropy(layer(x[0]), TARGETS)
        )
    with pytest.raises(ValueError, match="batch_size") as torchs_own:
        exact_gradient(
            net, torch.rand(4, 2), lambda x: nn.functional.cross_entropy(layer(x), TARGETS)
        )
    assert "sbnlib.classification_loss" in "".join(torchs_own.value.__notes__)


def test_a_loss_goes_to_another_process_and_back() -> None:
    """As a pickle: with its head and its targets, and with the same value and gradient."""
    layer, x = head(), torch.tensor([[1.0, -1, 1]], dtype=torch.float64).expand(4, 3)
    again = pickle.loads(pickle.dumps(classification_loss(layer, TARGETS)))
    assert torch.equal(again(x), classification_loss(layer, TARGETS)(x))
    with pytest.raises(ValueError, match=r"B = 4"):
        again(x[:3])


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda x: (x, 1), "tuple"),
        (lambda x: None, "NoneType"),
        (lambda x: x[:, 0], r"\(4,\)"),
        (lambda x: x[:-1], r"\(3, 3\)"),
        (lambda x: x[:, :, None], r"\(4, 3, 1\)"),
        (lambda x: x.long(), "floating-point scores, got torch.int64"),
    ],
)
def test_a_head_that_gives_no_scores_is_named(wrong: Callable, got: str) -> None:
    with pytest.raises(ValueError, match=f"head must return .*{got}"):
        classification_loss(wrong, TARGETS)(torch.ones(4, 3))


@pytest.mark.parametrize(
    ("x", "got"),
    [(torch.ones(4), r"\(4,\)"), (torch.tensor(1.0), r"\(\)"), (np.ones((4, 3)), "ndarray")],
)
def test_states_that_are_none_are_named(x: object, got: str) -> None:
    with pytest.raises(ValueError, match=rf"states must have shape \(..., B, n\) .* got {got}"):
        classification_loss(head(), TARGETS)(x)


def test_a_batch_of_no_inputs_has_no_values() -> None:
    loss = classification_loss(head(), TARGETS[:0])
    assert loss(torch.ones(5, 0, 3, dtype=torch.float64)).shape == (5, 0)


# Autoencoders ------------------------------------------------------------------------------------

PIXELS = torch.tensor([[0.0, 1, 1, 0, 1], [1, 0, 0.25, 1, 1], [0, 0, 0, 1, 0.5]]).double()
LAWS = [noise() for noise in (Logistic, Uniform, Triangular, Gaussian, Cauchy, FastSigmoid)]


def decoder() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(3, 5, dtype=torch.float64)


def misfit_by_hand(layer: nn.Linear, x: Tensor, likelihood: str) -> np.ndarray:
    """-log p(y | x) pixel by pixel, in numpy."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    out = np.empty(tuple(x.shape[:-1]))
    for at in itertools.product(*map(range, out.shape)):
        z, y = weight @ x[at].numpy() + bias, PIXELS[at[-1]].numpy()
        p = 1 / (1 + np.exp(-z))
        bernoulli = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum()
        out[at] = bernoulli if likelihood == "bernoulli" else ((y - z) ** 2).sum() / 2
    return out


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("front", [(), (5,), (2, 3), (3,)])
def test_the_misfit_is_the_sum_over_pixels(likelihood: str, front: tuple[int, ...]) -> None:
    # (3,) in front of 3 inputs: a mix-up of the two axes has the right shape
    x, layer = torch.rand(*front, 3, 3, dtype=torch.float64).round() * 2 - 1, decoder()
    values = autoencoding_loss(layer, PIXELS, likelihood=likelihood)(x)
    assert values.shape == (*front, 3)
    assert np.allclose(values.detach().numpy(), misfit_by_hand(layer, x, likelihood), rtol=1e-12)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_misfit_is_differentiable_and_goes_to_another_process(likelihood: str) -> None:
    x = (torch.rand(3, 3, dtype=torch.float64) * 2 - 1).requires_grad_()
    layer = decoder()
    loss = autoencoding_loss(layer, PIXELS, likelihood=likelihood)
    assert torch.autograd.gradcheck(lambda x, w: loss(x), (x, layer.weight))
    assert torch.equal(pickle.loads(pickle.dumps(loss))(x), loss(x))


def test_a_sure_pixel_costs_nothing_and_a_wrong_one_its_logit() -> None:
    """Where the probability is 1 in float32, its complement 0, and -log of that infinite."""

    def logits(x: Tensor) -> Tensor:
        return 200 * x

    loss = autoencoding_loss(logits, torch.tensor([[1.0, 0.0]]))
    assert loss(torch.tensor([[1.0, -1.0]])).item() == 0
    assert loss(torch.tensor([[-1.0, -1.0]])).item() == 200


def test_a_misfit_serves_every_estimator_and_exact_sums() -> None:
    torch.manual_seed(3)
    net, inputs = SBN(nn.Linear(2, 3).double()), torch.rand(3, 2).double()
    value, _ = exact_gradient(net, inputs, autoencoding_loss(decoder(), PIXELS))
    states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    law = torch.sigmoid(states[:, None] * net.layers[0](inputs).detach()).prod(-1)
    each = misfit_by_hand(decoder(), states[:, None].expand(-1, 3, -1), "bernoulli")
    assert value.item() == pytest.approx((law.numpy() * each).sum(0).mean(), rel=1e-12)
    for name in ESTIMATORS:
        found = network_estimator(name)(net, inputs, autoencoding_loss(decoder(), PIXELS))
        assert found.shape == (3,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": PIXELS.long()}, "targets must be a floating-point tensor, got torch.int64"),
        ({"targets": [[0.0]]}, "targets must be a floating-point tensor, got list"),
        ({"targets": PIXELS[0]}, r"targets must have shape \(B, m\), one picture .*got \(5,\)"),
        ({"targets": PIXELS - 0.5}, r"targets must be on \[0, 1\] .*got -0.5"),
        ({"targets": PIXELS * math.nan}, r"targets must be on \[0, 1\] .*got nan"),
        ({"likelihood": "poisson"}, "likelihood must be one of .*'gaussian'.*, got 'poisson'"),
        ({"decoder": 3}, "decoder must be a function of states"),
    ],
)
def test_what_is_no_picture_is_named_before_any_work(change: dict, words: str) -> None:
    given = {"decoder": decoder(), "targets": PIXELS} | change
    with pytest.raises((TypeError, ValueError), match=words):
        autoencoding_loss(given.pop("decoder"), given.pop("targets"), **given)


def test_a_gaussian_picture_may_hold_any_number() -> None:
    loss = autoencoding_loss(decoder(), PIXELS - 7, likelihood="gaussian")
    assert loss(torch.ones(3, 3).double()).shape == (3,)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda x: x, r"torch.float64 \(6, 3\)"),
        (lambda x: x[:-1].repeat(1, 2)[:, :5], r"torch.float64 \(5, 5\)"),
        (lambda x: x.repeat(1, 2)[:, :5].long(), r"torch.int64 \(6, 5\)"),
        (lambda x: (x, 1), "tuple"),
    ],
)
def test_a_decoder_that_gives_no_pictures_is_named(wrong: Callable, got: str) -> None:
    words = f"decoder must return .* N = 6 here.* m = 5 .*got {got}"
    with pytest.raises(ValueError, match=words):
        autoencoding_loss(wrong, PIXELS)(torch.ones(2, 3, 3).double())
    with pytest.raises(ValueError, match=r"states must have shape .* B = 3, .* got \(2, 3\)"):
        autoencoding_loss(wrong, PIXELS)(torch.ones(2, 3).double())


# The divergence ----------------------------------------------------------------------------------


def cdf(noise: Noise, a: mpmath.mpf) -> mpmath.mpf:
    """F at scale 1, to as many digits as are asked for."""
    t = abs(a)
    tail = {
        "Logistic": lambda: 1 / (1 + mpmath.exp(t)),
        "Uniform": lambda: max(mpmath.mpf(0), (1 - t) / 2),
        "Triangular": lambda: max(mpmath.mpf(0), 1 - t) ** 2 / 2,
        "Gaussian": lambda: mpmath.erfc(t / mpmath.sqrt(2)) / 2,
        "Cauchy": lambda: mpmath.atan2(1, t) / mpmath.pi,
        "FastSigmoid": lambda: 1 / (2 * (1 + t)),
    }[type(noise).__name__]()
    return tail if a < 0 else 1 - tail


def divergence(noise: Noise, a: float) -> tuple[float, float]:
    """Of one unit, and its derivative, by 800 digits and a difference of them."""
    with mpmath.workdps(800):

        def kl(a: mpmath.mpf) -> mpmath.mpf:
            q, p = sorted((cdf(noise, -a), cdf(noise, a)))
            return (q * mpmath.log(2 * q) if q > 0 else 0) + p * mpmath.log(2 * p)

        h = mpmath.mpf(10) ** -200
        return float(kl(mpmath.mpf(a))), float((kl(a + h) - kl(a - h)) / (2 * h))


@pytest.mark.slow
@pytest.mark.parametrize("noise", LAWS, ids=repr)
@pytest.mark.parametrize("a", [1e-6, 0.003, -0.3, 0.7, 0.999, -2.5, 9.0, 35.0])
def test_the_divergence_and_its_derivative_in_the_middle_and_in_the_tails(
    noise: Noise, a: float
) -> None:
    """Near 0, where the terms cancel, and in the tails, where f ln(p/q) is tiny."""
    point = torch.tensor([a], dtype=torch.float64, requires_grad=True)
    value = kl_bits(point, noise)
    (slope,) = torch.autograd.grad(value, point)
    expected, derivative = divergence(noise, a)
    rel = 1e-12 if abs(a) > 0.1 else 1e-15 / abs(a)  # of the mean 1 - 2q a part eps/a is rounding
    assert value.item() == pytest.approx(expected, rel=rel)
    assert slope.item() == pytest.approx(derivative, rel=max(10 * rel, 1e-9), abs=1e-300)


@pytest.mark.parametrize("noise", LAWS, ids=repr)
def test_the_divergence_is_even_bounded_and_zero_for_fair_coins(noise: Noise) -> None:
    a = torch.tensor([0.0, 0.4, -0.4, 1e4, math.inf, -math.inf]).double().requires_grad_()
    each = kl_bits(a[:, None], noise)
    (slope,) = torch.autograd.grad(each.sum(), a)
    assert each[0] == 0 and slope[0] == 0 and each[1] == each[2]
    assert each[4].item() == each[5].item() == pytest.approx(math.log(2), rel=1e-15)
    assert (each <= math.log(2)).all() and slope[4:].eq(0).all() and slope.isfinite().all()
    assert kl_bits(a.detach()[:4].reshape(2, 2), noise).shape == (2,)
    assert kl_bits(torch.tensor([math.nan, 0.0]), noise).isnan()


def test_the_scale_of_the_noise_and_its_name_count() -> None:
    a = torch.tensor([0.3, -2.0, 5.0]).double()
    torch.testing.assert_close(kl_bits(2 * a, Gaussian(2.0)), kl_bits(a, "gaussian"))
    one = kl_bits(a.half(), "gaussian")
    assert one.dtype == torch.float16
    assert one.item() == pytest.approx(kl_bits(a, "gaussian").item(), rel=1e-3)


@pytest.mark.parametrize(
    ("a", "noise", "words"),
    [
        (torch.tensor([1]), "logistic", "a must be a floating-point tensor, got torch.int64"),
        ([0.5], "logistic", "a must be a floating-point tensor, got list"),
        (torch.tensor(0.5), "logistic", r"a must have shape \(..., n\), got \(\)"),
        (torch.tensor([0.5]), "laplace", "noise must be one of"),
    ],
)
def test_what_has_no_divergence_is_named(a: object, noise: str, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        kl_bits(a, noise)


# What straight-through makes of them -------------------------------------------------------------


def expected_gradient(estimator: Callable, loss: Callable, a: Tensor, noise: Noise) -> Tensor:
    """The mean over all states of what comes back to the pre-activations."""
    total = torch.zeros_like(a)
    for state in itertools.product([-1.0, 1.0], repeat=a.shape[-1]):
        x = torch.tensor(state, dtype=a.dtype).expand_as(a)
        point = a.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(estimator(point, x, noise)).sum(), point)
        total += noise.cdf(x * a).prod(-1, keepdim=True) * found
    return total


@pytest.mark.parametrize("noise", LAWS, ids=repr)
def test_straight_through_trains_a_gaussian_autoencoder_as_if_its_code_were_real(
    noise: Noise,
) -> None:
    r"""E L = 1/2 |y - W mu - b|^2 + 1/2 sum_i |W_i|^2 (1 - mu_i^2), and straight-through has the
    gradient of the first term: of E L + 1/2 sum_i |W_i|^2 mu_i^2. ZGR and the midpoint baseline of
    DARN have that of E L."""
    layer, a = decoder(), (torch.rand(3, 3, dtype=torch.float64) * 1.6 - 0.8)
    loss = autoencoding_loss(layer, PIXELS, likelihood="gaussian")
    W, b, point = layer.weight.detach(), layer.bias.detach(), a.clone().requires_grad_()
    mu = noise.cdf(point) - noise.cdf(-point)
    real = ((PIXELS - mu @ W.T - b) ** 2).sum(-1) / 2
    spread = ((W**2).sum(0) * (1 - mu**2)).sum(-1) / 2
    states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    law = noise.cdf(states[:, None] * a).prod(-1)
    mean = (law * loss(states[:, None].expand(-1, 3, -1))).sum(0)
    torch.testing.assert_close((real + spread).detach(), mean.detach(), rtol=1e-12, atol=0)
    of_real, of_all = (
        torch.autograd.grad(value.sum(), point, retain_graph=True)[0]
        for value in (real, real + spread)
    )
    near = {"rtol": 1e-9, "atol": 1e-12}
    found = expected_gradient(straight_through, loss, a, noise)
    torch.testing.assert_close(found, of_real, **near)
    assert not torch.allclose(found, of_all, rtol=1e-2)
    for exact in (zgr, partial(darn, baseline="midpoint")):
        torch.testing.assert_close(expected_gradient(exact, loss, a, noise), of_all, **near)


@pytest.mark.parametrize("noise", LAWS, ids=repr)
def test_what_straight_through_makes_of_a_sampled_divergence(noise: Noise) -> None:
    """log q extended linearly in each unit gives the exact gradient; log F(x a) gives 4 a f^2,
    which is 1 - mu^2 of it for logistic noise."""
    a = torch.rand(3, 3, dtype=torch.float64) * 1.6 - 0.8
    point = a.clone().requires_grad_()
    (exact,) = torch.autograd.grad(kl_bits(point, noise).sum(), point)
    up, down = torch.log(noise.cdf(a)), torch.log(noise.cdf(-a))
    linear = expected_gradient(
        straight_through, lambda x: ((1 + x) / 2 * up + (1 - x) / 2 * down).sum(-1), a, noise
    )
    torch.testing.assert_close(linear, exact, rtol=1e-9, atol=1e-12)
    bent = expected_gradient(
        straight_through, lambda x: torch.log(noise.cdf(x * a)).sum(-1), a, noise
    )
    torch.testing.assert_close(bent, 4 * a * noise.pdf(a) ** 2, rtol=1e-9, atol=1e-12)
    if isinstance(noise, Logistic):
        mu = torch.tanh(a / 2)
        torch.testing.assert_close(bent / exact, 1 - mu**2, rtol=1e-9, atol=0)
