"""Relaxed units: one meaning of tau, means and variances by quadrature, the limits tau -> 0.

Uniforms handed in at Gauss-Legendre nodes turn the library's own functions into exact integrals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise, z_limit
from rows import (
    exact_one_layer,
    mean_slopes,
    panels,
    relaxed_gradient,
    sech2,
    seeded,
    slope_given_state,
    z_scores,
)
from scipy import integrate
from torch.func import grad, vmap

import sbnlib
from sbnlib import Logistic, concrete, gumbel_rao, sample_sign, st_gumbel

Array = np.ndarray
noises = pytest.mark.parametrize("noise_name", ref.NOISES)
smooth_noises = pytest.mark.parametrize("noise_name", ["Logistic", "Gaussian", "Cauchy"])
CHAIN_RULE = {"st_gumbel": st_gumbel, "gumbel_rao": partial(gumbel_rao, num_inner=3)}
every_chain_rule = pytest.mark.parametrize("name", CHAIN_RULE)


def unit_grid(noise: ref.RefNoise, a: float, tau: float) -> tuple[Array, Array]:
    """Nodes and weights for u in (0, 1), fine where Z = F^-1(u) is within a few tau of ``a``."""
    near = [float(noise.cdf(a + 2 * tau * k)) for k in (-20, -8, -3, -1, 0, 1, 3, 8, 20)]
    return panels(sorted({0.0, 0.5, 1.0, *near}))


def integral(function: Callable[[Array], Array], reach: float = 40.0) -> float:
    """int function(v) dv over the line by panels, kink at 0."""
    v, w = panels([-reach, -8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0, reach])
    return float(w @ function(v))


def along_the_line(loss: ref.RefLoss) -> tuple[Callable, Callable]:
    """L and L' of a loss of one unit, on arrays."""
    slope = lambda x: loss.gradient(x[..., None], 0)[..., 0]  # noqa: E731
    return (lambda x: loss.value(x[..., None], 0)), slope


# ------------------------------------------------------------------------------ concrete


@noises
@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_the_relaxed_unit_is_tanh_of_the_difference_over_twice_tau(
    noise_name: str, tau: float
) -> None:
    noise = ref.RefNoise(noise_name, 1.3)
    u = np.linspace(0.03, 0.97, 17)[:, None]
    a = np.array([-0.8, 0.0, 0.5])
    leaf = torch.tensor(a).requires_grad_()
    grid = torch.tensor(u).expand(17, 3)
    x = concrete(leaf, make_noise(noise_name, 1.3), tau=tau, u=grid)
    v = (a - noise.icdf(u)) / (2 * tau)
    np.testing.assert_allclose(x.detach().numpy(), np.tanh(v), rtol=1e-9, atol=1e-12)
    x.sum().backward()
    np.testing.assert_allclose(leaf.grad.numpy(), (sech2(v) / (2 * tau)).sum(0), rtol=1e-8)


def test_for_logistic_noise_it_is_the_binary_concrete_at_temperature_tau() -> None:
    # Maddison et al.: sigmoid((log alpha + logit u)/tau) in {0, 1} coding, at the same tau
    a, tau = torch.linspace(-2, 2, 9).double(), 0.4
    u = torch.linspace(0.1, 0.9, 9).double()
    theirs = torch.sigmoid((a + torch.logit(1 - u)) / tau)
    torch.testing.assert_close(concrete(a, Logistic(), tau=tau, u=u), 2 * theirs - 1)


@noises
def test_the_relaxed_unit_has_the_sign_of_the_state_of_the_same_uniform(noise_name: str) -> None:
    a, noise = torch.linspace(-1, 1, 11).double(), make_noise(noise_name, 1.3)
    u = torch.rand(500, 11, generator=seeded(), dtype=torch.float64)
    relaxed = concrete(a, noise, tau=0.01, u=u)
    assert torch.equal(relaxed.sign(), sample_sign(a, noise, u=u))


@noises
def test_drawn_and_integrated_means_of_the_relaxed_unit_agree(noise_name: str) -> None:
    # E x_tau and E dx_tau/da: z-tests, together 1e-6
    noise, tau = ref.RefNoise(noise_name, 1.3), 0.3
    a = np.array([-0.7, 0.4])
    leaf = torch.tensor(a).expand(60_000, 2).clone().requires_grad_()
    x = concrete(leaf, make_noise(noise_name, 1.3), tau=tau, generator=seeded(1))
    (g,) = torch.autograd.grad(x.sum(), leaf)
    value, slope = [], []
    for p in a:
        u, w = unit_grid(noise, p, tau)
        v = (p - noise.icdf(u)) / (2 * tau)
        value.append(w @ np.tanh(v))
        slope.append(w @ sech2(v) / (2 * tau))
    assert z_scores(x.detach().numpy(), np.array(value)).max() < z_limit(4)
    assert z_scores(g.numpy(), np.array(slope)).max() < z_limit(4)


def concrete_moments(
    noise: ref.RefNoise, a: float, tau: float, loss: ref.RefLoss
) -> tuple[float, float]:
    """Mean and second moment of dL(x_tau)/da in one unit: the library's function at the nodes."""
    u, w = unit_grid(noise, a, tau)
    leaf = torch.full((len(u), 1), a, dtype=torch.float64, requires_grad=True)
    x = concrete(leaf, make_noise(noise.name, noise.scale), tau=tau, u=torch.tensor(u)[:, None])
    (g,) = torch.autograd.grad(loss.torch(x).sum(), leaf)
    g = g[:, 0].numpy()
    return float(w @ g), float(w @ g**2)


def slope_of_density(noise: ref.RefNoise, a: float) -> float:
    """f'(a) of the smooth laws at scale 1."""
    f = float(noise.pdf(a))
    return {
        "Logistic": f * float(noise.cdf(-a) - noise.cdf(a)),
        "Gaussian": -a * f,
        "Cauchy": -2 * a / (1 + a * a) * f,
    }[noise.name]


@smooth_noises
def test_the_bias_of_one_relaxed_unit_is_of_first_order_in_tau(noise_name: str) -> None:
    # bias = 2 tau f'(a) int (L(tanh v) - L(sign v)) dv + O(tau^2): halving tau halves the rest
    noise, a, loss = ref.RefNoise(noise_name), 0.7, ref.smooth_loss(1, 2)
    at, _ = along_the_line(loss)
    line = slope_of_density(noise, a) * integral(lambda v: at(np.tanh(v)) - at(np.sign(v)))
    exact = exact_one_layer(lambda x: loss.value(x, 0), noise, np.array([a]))[0]
    rest = [(concrete_moments(noise, a, t, loss)[0] - exact) / (2 * t * line) - 1
            for t in (0.02, 0.01, 0.005)]  # fmt: skip
    assert abs(rest[2]) < 0.1
    assert rest[1] / rest[0] == pytest.approx(0.5, abs=0.12)
    assert rest[2] / rest[1] == pytest.approx(0.5, abs=0.08)


@smooth_noises
def test_for_linear_losses_and_at_zero_the_bias_is_of_second_order(noise_name: str) -> None:
    noise = ref.RefNoise(noise_name)
    for a, loss in ((0.7, ref.linear_loss(1, 1)), (0.0, ref.smooth_loss(1, 2))):
        exact = exact_one_layer(lambda x, f=loss: f.value(x, 0), noise, np.array([a]))[0]
        bias = [concrete_moments(noise, a, t, loss)[0] - exact for t in (0.02, 0.01)]
        assert bias[1] / bias[0] == pytest.approx(0.25, abs=0.03)


def test_with_all_units_relaxed_the_others_add_a_bias_of_the_same_order() -> None:
    # + sum_j 2 tau f_i f_j E Delta_i int (L(x_j = tanh v) - L(x_j = sign v)) dv, for the loss
    # 1.3 x_1^3 x_2 + x_1 x_2^2. With one unit relaxed the bias is f'(a_1) int(...) instead.
    noise, a = ref.RefNoise("Logistic"), np.array([0.6, -0.9])
    loss = ref.RefLoss(
        "cubic",
        lambda x, b: 1.3 * x[..., 0] ** 3 * x[..., 1] + x[..., 0] * x[..., 1] ** 2,
        lambda x, b: np.stack([3.9 * x[..., 0] ** 2 * x[..., 1] + x[..., 1] ** 2,
                               1.3 * x[..., 0] ** 3 + 2 * x[..., 0] * x[..., 1]], -1),
        lambda x: 1.3 * x[..., 0] ** 3 * x[..., 1] + x[..., 0] * x[..., 1] ** 2,
    )  # fmt: skip
    exact = exact_one_layer(lambda x: loss.value(x, 0), noise, a)
    f, mu = noise.pdf(a), noise.cdf(a) - noise.cdf(-a)
    # In x_1: odd, so its own first-order term is 0. In x_2: x_1 (tanh^2 - 1), Delta_1 = 2(...)
    gap = integral(lambda v: np.tanh(v) ** 2 - 1)
    assert gap == pytest.approx(-2, abs=1e-9)
    expected = [2 * f[0] * f[1] * 2 * gap, 2 * slope_of_density(noise, a[1]) * mu[0] * gap]
    # d/da_2: its own term is f'(a_2) E x_1 gap; from x_1 relaxed nothing (odd in x_1)
    for tau, tolerance in ((0.02, 0.1), (0.005, 0.025)):
        bias = (relaxed_gradient(noise, a, loss, tau, 40) - exact) / tau
        np.testing.assert_allclose(bias, expected, rtol=tolerance)
    leaf = torch.tensor(a).expand(100_000, 2).clone().requires_grad_()
    x = concrete(leaf, Logistic(), tau=0.3, generator=seeded(5))
    (g,) = torch.autograd.grad(loss.torch(x).sum(), leaf)  # the library: z-tests, 1e-6
    assert z_scores(g.numpy(), relaxed_gradient(noise, a, loss, 0.3, 40)).max() < z_limit(2)


@smooth_noises
def test_the_variance_of_the_relaxed_estimate_grows_as_one_over_tau(noise_name: str) -> None:
    # second moment = f(a)/(2 tau) int (L'(tanh v) sech^2 v)^2 dv (1 + O(tau))
    noise, a, loss = ref.RefNoise(noise_name), 0.7, ref.smooth_loss(1, 2)
    _, slope = along_the_line(loss)
    line = float(noise.pdf(a)) * integral(lambda v: (slope(np.tanh(v)) * sech2(v)) ** 2) / 2
    ratios = [concrete_moments(noise, a, t, loss)[1] * t / line for t in (0.1, 0.02, 0.004)]
    assert abs(ratios[2] - 1) < 0.005
    assert abs(ratios[2] - 1) < 0.4 * abs(ratios[1] - 1) < 0.2 * abs(ratios[0] - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@noises
def test_uniforms_at_the_ends_give_no_nan(noise_name: str, dtype: torch.dtype) -> None:
    u = torch.tensor([0.0, 1 - 2**-24, 1 - 2**-53], dtype=torch.float64)
    a = torch.linspace(-30, 30, 7, dtype=dtype)[:, None].expand(7, 3).clone().requires_grad_()
    noise = make_noise(noise_name)
    x = concrete(a, noise, tau=0.1, u=u.expand(7, 3))
    x.sum().backward()
    assert x.dtype == dtype and bool((x.abs() <= 1).all()) and bool(a.grad.isfinite().all())
    for state in (1.0, -1.0):
        a.grad = None
        given = torch.full_like(a, state)
        st_gumbel(a, given, noise, tau=0.1, u=u.expand(7, 3)).sum().backward()
        assert bool(a.grad.isfinite().all()) and bool((a.grad >= 0).all())


# ------------------------------------------------------------- ST-Gumbel and Gumbel-Rao


def inner_grid(noise: ref.RefNoise, a: float, x: float, tau: float) -> tuple[Array, Array]:
    """Nodes for the uniform that makes Z given x: x Z = F^-1(u F(xa)); fine near u = 1."""
    p = float(noise.cdf(x * a))
    near = [float(noise.cdf(x * a - 2 * tau * k)) / p for k in (0.5, 1, 2, 4, 8, 20)]
    kinks = [float(noise.cdf(k)) / p for k in (-noise.scale, 0.0)]
    return panels(sorted({0.0, 1.0, *near, *[k for k in kinks if k < 1]}))


def factor_moments(noise: ref.RefNoise, a: float, x: float, tau: float) -> tuple[float, float]:
    """E[c | x] and E[c^2 | x] of the library's ST-Gumbel, at the nodes."""
    u, w = inner_grid(noise, a, x, tau)
    leaf = torch.full((len(u),), a, dtype=torch.float64, requires_grad=True)
    given = torch.full_like(leaf, x)
    out = st_gumbel(leaf, given, make_noise(noise.name, noise.scale), tau=tau, u=torch.tensor(u))
    (c,) = torch.autograd.grad(out.sum(), leaf)
    return float(w @ c.numpy()), float(w @ c.numpy() ** 2)


@pytest.mark.slow
@noises
@pytest.mark.parametrize("tau", [0.05, 0.5, 3.0])
def test_mean_and_second_moment_of_the_factor_given_the_state(noise_name: str, tau: float) -> None:
    noise = ref.RefNoise(noise_name, 1.3)
    for a in (-0.9, 0.2, 1.0):
        for x in (1.0, -1.0):
            first, second = factor_moments(noise, a, x, tau)
            assert first == pytest.approx(slope_given_state(noise, a, x, tau), rel=1e-6)
            assert second == pytest.approx(slope_given_state(noise, a, x, tau, 2), rel=1e-6)


def test_a_closed_form_of_the_mean_factor_at_temperature_one() -> None:
    # Logistic noise, tau = 1: c = 2 f(a - Z), so E c is twice the density of the sum of two
    # logistic variables, 2 e^a ((a - 2) e^a + a + 2)/(e^a - 1)^3: 0.308 at 0.9, where ST has 0.411
    noise, a = ref.RefNoise("Logistic"), 0.9
    sides = np.array([1.0, -1.0])
    mean = sum(noise.prob(x, np.array(a)) * factor_moments(noise, a, x, 1.0)[0] for x in sides)
    e = np.exp(a)
    assert mean == pytest.approx(2 * e * ((a - 2) * e + a + 2) / (e - 1) ** 3, rel=1e-9)
    assert mean == pytest.approx(0.308, abs=5e-4)


@noises
def test_the_mean_tends_to_the_trapezoid_rule(noise_name: str) -> None:
    # E[c | x] -> f(a)/P(x), so E = f(a)(L'(1) + L'(-1)); the rest halves with tau
    noise, a = ref.RefNoise(noise_name, 1.3), 0.7
    _, slope = along_the_line(ref.smooth_loss(1, 2))
    sides = np.array([1.0, -1.0])
    limit = float(noise.pdf(a)) * slope(sides).sum()
    prob = noise.prob(sides, np.array(a))
    rest = []
    for tau in (0.02, 0.01, 0.005):
        means = np.array([factor_moments(noise, a, x, tau)[0] for x in sides])
        rest.append(prob * means @ slope(sides) / limit - 1)
    assert abs(rest[2]) < 0.02
    if abs(rest[0]) > 1e-6:
        assert rest[2] / rest[1] == pytest.approx(0.5, abs=0.05)


@noises
def test_the_variance_grows_as_one_over_tau(noise_name: str) -> None:
    # E[c^2 | x] P(x) tau -> f(a)/3, from int_0^inf sech^4 = 2/3
    noise, a = ref.RefNoise(noise_name, 1.3), 0.7
    for x in (1.0, -1.0):
        p = float(noise.prob(np.array(x), np.array(a)))
        ratio = [3 * factor_moments(noise, a, x, t)[1] * p * t / float(noise.pdf(a))
                 for t in (0.02, 0.005)]  # fmt: skip
        assert abs(ratio[1] - 1) < 0.01 and abs(ratio[1] - 1) <= 0.5 * abs(ratio[0] - 1) + 1e-9


def total_variance(noise: ref.RefNoise, a: float, tau: float, inner: int, slope: Array) -> float:
    """Var of c(x) L'(x) with ``inner`` draws of Z: the mean factor's, plus 1/K of the inner one."""
    sides = np.array([1.0, -1.0])
    prob = noise.prob(sides, np.array(a))
    first = np.array([slope_given_state(noise, a, x, tau) for x in sides])
    second = np.array([slope_given_state(noise, a, x, tau, 2) for x in sides])
    moment = prob @ ((first**2 + (second - first**2) / inner) * slope**2)
    return float(moment - (prob @ (first * slope)) ** 2)


@noises
def test_gumbel_rao_lies_between_zgr_and_st_gumbel_in_the_cold(noise_name: str) -> None:
    noise, a, tau = ref.RefNoise(noise_name, 1.3), 0.7, 0.01
    sides = np.array([1.0, -1.0])
    _, along = along_the_line(ref.smooth_loss(1, 2))
    slope, f, prob = along(sides), float(noise.pdf(a)), noise.prob(sides, np.array(a))
    zgr = prob @ (f / prob * slope) ** 2 - (f * slope.sum()) ** 2
    variances = [total_variance(noise, a, tau, k, slope) for k in (1, 10, 100, 1000)]
    assert all(np.diff(variances) < 0)
    assert variances[2] > zgr
    # ZGR's variance + [f (L'(1)^2 + L'(-1)^2)/(3 tau) - f^2 sum L'^2/P]/K + O(tau)
    for k, variance in zip((1, 10, 100), variances, strict=False):
        inner = f * (slope**2).sum() / (3 * tau) - prob @ (f / prob * slope) ** 2
        expected = zgr + inner / k
        assert variance == pytest.approx(expected, rel=0.06)
    # the cold limit needs the exact inner mean: with K fixed the variance runs away
    assert total_variance(noise, a, 1e-4, 100, slope) > 5 * variances[2]
    assert total_variance(noise, a, 1e-4, 10**9, slope) == pytest.approx(zgr, rel=0.01)


@noises
@pytest.mark.parametrize("num_inner", [1, 4])
def test_drawn_means_and_variances_are_the_integrated_ones(noise_name: str, num_inner: int) -> None:
    # z-tests of mean and second central moment of 60 000 estimates, together 1e-6
    noise, a, tau = ref.RefNoise(noise_name, 1.3), 0.7, 0.3
    loss = ref.smooth_loss(1, 2)
    leaf = torch.full((60_000, 1), a, dtype=torch.float64, requires_grad=True)
    law, generator = make_noise(noise_name, 1.3), seeded(3)
    x = sample_sign(leaf, law, generator=generator)
    out = gumbel_rao(leaf, x, law, tau=tau, num_inner=num_inner, generator=generator)
    (g,) = torch.autograd.grad(loss.torch(out).sum(), leaf)
    g = g[:, 0].numpy()
    sides = np.array([1.0, -1.0])
    slope = loss.gradient(sides[:, None], 0)[:, 0]
    prob = noise.prob(sides, np.array(a))
    mean = float(prob @ (mean_slopes(noise, np.array([a, a]), sides, tau) * slope))
    assert z_scores(g, mean) < z_limit(2)
    variance = total_variance(noise, a, tau, num_inner, slope)
    assert z_scores((g - mean) ** 2, variance) < z_limit(2)


def test_the_numbers_of_the_book_for_a_finite_number_of_inner_samples() -> None:
    # Standard deviation of c, logistic noise, a = 0.9, tau = 0.01: K = 1, 10, 100, then ZGR
    noise, ones = ref.RefNoise("Logistic"), np.ones(2)
    found = [np.sqrt(total_variance(noise, 0.9, 0.01, k, ones)) for k in (1, 10, 100, 10**9)]
    np.testing.assert_allclose(found, [3.7, 1.2, 0.41, 0.19], atol=0.03)


# ------------------------------------------------------------------------------ contract


@every_chain_rule
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_value_is_the_sample_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    a = torch.linspace(-3, 3, 101, dtype=dtype).requires_grad_()
    x = sample_sign(a, Logistic(), generator=seeded())
    out = CHAIN_RULE[name](a, x, Logistic(), tau=0.3, generator=seeded())
    assert torch.equal(out, x) and out.dtype == dtype
    out.sum().backward()
    assert a.grad.dtype == dtype and bool(a.grad.isfinite().all()) and bool((a.grad >= 0).all())


@every_chain_rule
@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_samples_may_have_axes_in_front(name: str, lead: tuple[int, ...]) -> None:
    a = torch.linspace(-1, 1, 6).reshape(2, 3).double().requires_grad_()
    x = sample_sign(a, Logistic(), u=torch.rand(*lead, 2, 3, generator=seeded()).double())
    inner = (3,) if name == "gumbel_rao" else ()
    u = torch.rand(*inner, *lead, 2, 3, generator=seeded(1), dtype=torch.float64)
    out = CHAIN_RULE[name](a, x, Logistic(), tau=0.4, u=u)
    assert torch.equal(out, x)
    out.sum().backward()
    noise, total = ref.RefNoise("Logistic"), np.zeros((2, 3))
    at, given, us = a.detach().numpy(), x.numpy(), u.numpy()
    z = given * noise.icdf(us * noise.cdf(given * at))
    c = sech2((at - z) / 0.8) / 0.8
    c = c.mean(0) if inner else c
    total = c.reshape(-1, 2, 3).sum(0)
    np.testing.assert_allclose(a.grad.numpy(), total, rtol=1e-9)


@every_chain_rule
def test_generators_and_uniforms_repeat_the_draw(name: str) -> None:
    a, x = torch.zeros(50).double().requires_grad_(), torch.ones(50).double()

    def factor(**options: object) -> torch.Tensor:
        return torch.autograd.grad(CHAIN_RULE[name](a, x, Logistic(), tau=0.3, **options).sum(), a)[
            0
        ]

    first, again, other = (factor(generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    u = torch.rand((3, 50) if name == "gumbel_rao" else (50,), generator=seeded(1)).double()
    assert torch.equal(factor(u=u), factor(u=u))


def test_one_inner_sample_is_st_gumbel() -> None:
    a, x = torch.linspace(-1, 1, 9).double().requires_grad_(), torch.ones(9).double()
    u = torch.rand(9, generator=seeded(), dtype=torch.float64)
    one = st_gumbel(a, x, Logistic(), tau=0.3, u=u)
    rao = gumbel_rao(a, x, Logistic(), tau=0.3, num_inner=1, u=u[None])
    (g,), (h,) = (torch.autograd.grad(v.sum(), a) for v in (one, rao))
    assert torch.equal(g, h)


@every_chain_rule
def test_units_and_networks_hand_on_their_generator(name: str) -> None:
    estimator = partial(CHAIN_RULE[name], tau=0.3)
    net = sbnlib.SBN(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2), estimator=estimator)
    grads = []
    for seed in (1, 1, 2):
        net.zero_grad()
        net(torch.ones(8, 2), generator=seeded(seed)).sum().backward()
        grads.append(net.layers[0].weight.grad.clone())
    assert torch.equal(grads[0], grads[1]) and not torch.equal(grads[0], grads[2])
    grads = []
    for _ in range(2):  # states handed in: the Z still come from the generator
        net.zero_grad()
        states = [torch.ones(8, 3), torch.ones(8, 2)]
        net(torch.ones(8, 2), states=states, generator=seeded(1)).sum().backward()
        grads.append(net.layers[0].weight.grad.clone())
    assert torch.equal(*grads)


# -------------------------------------------------------------------------- vmap, compile


@noises
@every_chain_rule
def test_vmap_with_different_randomness_draws_independently(name: str, noise_name: str) -> None:
    # Mean factor at two logits over 20 000 mapped draws, and their correlation: z, together 1e-6
    noise, a, x, tau = ref.RefNoise(noise_name, 1.3), [-0.5, 0.8], [1.0, -1.0], 0.4
    law, at, given = make_noise(noise_name, 1.3), torch.tensor(a).double(), torch.tensor(x).double()
    torch.manual_seed(5)
    one = grad(lambda a: CHAIN_RULE[name](a, given, law, tau=tau).sum())
    c = vmap(lambda _: one(at), randomness="different")(torch.zeros(20_000)).numpy()
    expected = mean_slopes(noise, np.array(a), np.array(x), tau)
    assert z_scores(c, expected).max() < z_limit(3)
    assert abs(np.corrcoef(c.T)[0, 1]) * np.sqrt(20_000) < z_limit(3)


@noises
def test_vmap_of_the_relaxed_unit(noise_name: str) -> None:
    noise, a = make_noise(noise_name, 1.3), torch.tensor([-0.5, 0.8]).double()
    torch.manual_seed(5)
    x = vmap(lambda _: concrete(a, noise, tau=0.4), randomness="different")(torch.zeros(20_000))
    reference, expected = ref.RefNoise(noise_name, 1.3), []
    for p in a.tolist():
        u, w = unit_grid(reference, p, 0.4)
        expected.append(w @ np.tanh((p - reference.icdf(u)) / 0.8))
    assert z_scores(x.numpy(), np.array(expected)).max() < z_limit(2)  # false alarm 1e-6


@noises
def test_vmap_over_uniforms_is_the_loop(noise_name: str) -> None:
    noise, a = make_noise(noise_name), torch.linspace(-0.9, 0.9, 5, dtype=torch.float64)
    u = torch.rand(20, 5, generator=seeded(), dtype=torch.float64)
    x = sample_sign(a, noise, u=u)
    slope = grad(lambda a, x, u: st_gumbel(a, x, noise, tau=0.3, u=u).sum())
    mapped = vmap(slope, in_dims=(None, 0, 0))(a, x, u)
    looped = torch.stack([slope(a, p, q) for p, q in zip(x, u, strict=True)])
    torch.testing.assert_close(mapped, looped)
    mapped = vmap(lambda u: concrete(a, noise, tau=0.3, u=u))(u)
    torch.testing.assert_close(mapped, concrete(a, noise, tau=0.3, u=u))


@pytest.mark.slow
def test_compiled_whole_with_uniforms_handed_in() -> None:
    # Inductor, one graph, three units: values and gradients are those of the formulas
    noise, tau = ref.RefNoise("Logistic"), 0.3

    def run(a: torch.Tensor, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        law = Logistic()
        return (
            concrete(a, law, tau=tau, u=u),
            st_gumbel(a, x, law, tau=tau, u=u),
            gumbel_rao(a, x, law, tau=tau, num_inner=2, u=torch.stack([u, 1 - u])),
        )

    torch._dynamo.reset()
    fast = torch.compile(run, fullgraph=True, dynamic=False)
    a = np.linspace(-1.5, 1.5, 33)
    u = np.random.default_rng(0).uniform(0.01, 0.99, size=33)
    x = np.where(np.arange(33) % 2, 1.0, -1.0)

    def slope(u: Array) -> Array:
        z = x * noise.icdf(u * noise.cdf(x * a))
        return sech2((a - z) / (2 * tau)) / (2 * tau)

    v = (a - noise.icdf(u)) / (2 * tau)
    values = [np.tanh(v), x, x]
    slopes = [sech2(v) / (2 * tau), slope(u), (slope(u) + slope(1 - u)) / 2]
    leaf = torch.tensor(a).requires_grad_()
    out = fast(leaf, torch.tensor(x), torch.tensor(u))
    for value, y in zip(values, out, strict=True):
        np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-9)
    weights = torch.tensor([1.0, 10.0, 100.0]).double()
    sum(w * y.sum() for w, y in zip(weights, out, strict=True)).backward()
    expected = sum(w * s for w, s in zip((1, 10, 100), slopes, strict=True))
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-8)


# ---------------------------------------------------------------------------- bad input

BAD_TAU = [0, 0.0, -0.1, float("nan"), float("inf"), "1", None, torch.tensor(-1.0)]


@pytest.mark.parametrize("tau", BAD_TAU, ids=str)
def test_a_bad_temperature_is_refused(tau: object) -> None:
    a = torch.zeros(3)
    with pytest.raises(ValueError, match="tau"):
        concrete(a, Logistic(), tau=tau)
    with pytest.raises(ValueError, match="tau"):
        st_gumbel(a, torch.ones(3), Logistic(), tau=tau)
    with pytest.raises(ValueError, match="tau"):
        gumbel_rao(a, torch.ones(3), Logistic(), tau=tau, num_inner=2)


@pytest.mark.parametrize("num_inner", [0, -1, 2.0, True, None, "3"])
def test_a_bad_number_of_inner_samples_is_refused(num_inner: object) -> None:
    with pytest.raises(ValueError, match="num_inner"):
        gumbel_rao(torch.zeros(3), torch.ones(3), Logistic(), tau=0.5, num_inner=num_inner)


@pytest.mark.parametrize("shape", [(4,), (3, 2), (2,), ()])
def test_uniforms_and_states_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    a, x, wrong = torch.zeros(3), torch.ones(3), torch.full(shape, 0.5)
    with pytest.raises(ValueError, match="u must"):
        concrete(a, Logistic(), tau=0.5, u=wrong)
    with pytest.raises(ValueError, match="u must"):
        st_gumbel(a, x, Logistic(), tau=0.5, u=wrong)
    with pytest.raises(ValueError, match="u must"):
        gumbel_rao(a, x, Logistic(), tau=0.5, num_inner=2, u=wrong)
    for f in CHAIN_RULE.values():
        with pytest.raises(ValueError, match="x must"):
            f(a, wrong, Logistic(), tau=0.5)


def test_the_shape_asked_for_is_the_one_to_hand_in() -> None:
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        st_gumbel(torch.zeros(3), torch.ones(3), Logistic(), tau=0.5, u=torch.rand(4))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3,\)"):
        gumbel_rao(torch.zeros(3), torch.ones(3), Logistic(), tau=0.5, num_inner=2, u=torch.rand(3))


def test_bad_logits_and_noises_are_refused() -> None:
    calls = [
        concrete,
        *(lambda a, n, *, tau, f=f: f(a, a, n, tau=tau) for f in CHAIN_RULE.values()),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="a must"):
            call(torch.zeros(3, dtype=torch.long), Logistic(), tau=0.5)
        with pytest.raises(TypeError, match="noise"):
            call(torch.zeros(3), Logistic, tau=0.5)
        with pytest.raises(ValueError, match="finite"):
            call(torch.full((3,), float("nan")), Logistic(), tau=0.5)


def test_scipy_agrees_with_the_panels() -> None:
    value = integrate.quad(lambda v: np.tanh(v) ** 2 - 1, -40, 40, points=[0])[0]
    assert integral(lambda v: np.tanh(v) ** 2 - 1) == pytest.approx(value, rel=1e-9)
