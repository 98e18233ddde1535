"""Tier 1 estimators: value, factor, bias and variance against closed forms and enumeration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise, random_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

import sbnlib
from sbnlib import chain_rule, darn, identity, proxy, reinmax, straight_through, zgr
from sbnlib.estimators.proxies import PROXIES

# Name in sbnlib, the function, and (name, s) of its factor in reference.py
FAMILY: dict[str, tuple[Callable, str, float]] = {
    "straight_through": (straight_through, "straight_through", 0.0),
    "zgr": (zgr, "zgr", 0.0),
    "darn mean": (partial(darn, baseline="mean"), "darn_mean", 0.0),
    "darn midpoint": (partial(darn, baseline="midpoint"), "darn_midpoint", 0.0),
    "chain_rule s=0.3": (partial(chain_rule, s=0.3), "chain_rule", 0.3),
    "chain_rule s=-1": (partial(chain_rule, s=-1.0), "chain_rule", -1.0),
    "identity": (identity, "identity", 0.0),
}
LINEAR_EXACT = [name for name in FAMILY if name != "identity"]
EVERY = {name: entry[0] for name, entry in FAMILY.items()} | {
    name: partial(proxy, name=name) for name in PROXIES
}
noises = pytest.mark.parametrize("noise_name", ref.NOISES)
family = pytest.mark.parametrize("name", FAMILY)
every = pytest.mark.parametrize("name", EVERY)


def factor_of(tier1: Callable, a: torch.Tensor, x: torch.Tensor, noise: object) -> torch.Tensor:
    a = a.detach().requires_grad_()
    return torch.autograd.grad(tier1(a, x, noise).sum(), a)[0]


# ------------------------------------------------------------------------ value and factor


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_value_is_the_sample_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a = (12 * torch.rand(10**6, generator=generator) - 6).to(dtype).requires_grad_()
    x = (2 * torch.randint(0, 2, a.shape, generator=generator) - 1).to(dtype)
    out = EVERY[name](a, x, make_noise("Logistic"))
    assert out.dtype == dtype
    assert torch.equal(out, x)


@family
@noises
def test_the_gradient_is_the_factor(name: str, noise_name: str) -> None:
    tier1, reference_name, s = FAMILY[name]
    a = np.linspace(-1.4, 1.4, 29) + 0.003
    for scale in (1.0, 0.6, 2.0):
        noise = ref.RefNoise(noise_name, scale)
        for sign in (-1.0, 1.0):
            x = np.full_like(a, sign)
            c = factor_of(tier1, torch.tensor(a), torch.tensor(x), make_noise(noise_name, scale))
            expected = ref.factor(reference_name, noise, a, x, s)
            np.testing.assert_allclose(c.numpy(), expected, rtol=1e-11, atol=1e-15)


@family
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
def test_the_factor_in_single_and_half_precision(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    tier1, reference_name, s = FAMILY[name]
    a = torch.linspace(-3, 3, 25).to(dtype)
    for noise_name in ("Logistic", "Gaussian", "Cauchy", "FastSigmoid"):
        for sign in (-1.0, 1.0):
            x = torch.full_like(a, sign)
            c = factor_of(tier1, a, x, make_noise(noise_name)).double().numpy()
            noise = ref.RefNoise(noise_name)
            exact = ref.factor(reference_name, noise, a.double().numpy(), x.double().numpy(), s)
            np.testing.assert_allclose(c, exact, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize(("noise_name", "a"), [("Gaussian", -8.0), ("Gaussian", -12.0),
                                               ("Logistic", -80.0), ("Cauchy", -1e6),
                                               ("FastSigmoid", -1e6)])  # fmt: skip
def test_zgr_keeps_its_accuracy_at_improbable_states(noise_name: str, a: float) -> None:
    # f/P(x) with P = F(xa); with 1 - p in place of F(-a) it is 0, infinite or NaN in float32
    noise = ref.RefNoise(noise_name)
    for logit, state in ((a, 1.0), (-a, -1.0)):
        given_ = torch.tensor([logit], dtype=torch.float32)
        c = factor_of(zgr, given_, torch.tensor([state]), make_noise(noise_name))
        expected = noise.pdf(logit) / noise.cdf(a)
        np.testing.assert_allclose(c.double().numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["zgr", "darn mean", "chain_rule s=0.3"])
@pytest.mark.parametrize(("noise_name", "a", "dtype"), [
    ("Gaussian", -13.5, torch.float32), ("Gaussian", -38.0, torch.float64),
    ("Logistic", -88.0, torch.float32), ("Logistic", -12.0, torch.float16),
    ("Gaussian", -4.5, torch.float16), ("Gaussian", -13.5, torch.bfloat16),
])  # fmt: skip
def test_a_tiny_probability_does_not_overflow(
    name: str, noise_name: str, a: float, dtype: torch.dtype
) -> None:
    # 1/P overflows there, f/P is |a| at most: the ratio must come first
    given_, x = torch.tensor([a], dtype=dtype), torch.ones(1, dtype=dtype)
    noise = make_noise(noise_name)
    assert torch.equal(FAMILY[name][0](given_.requires_grad_(), x, noise), x)
    c = factor_of(FAMILY[name][0], given_, x, noise)
    assert torch.isfinite(c).all()
    assert 0 <= c.item() <= 3 * (abs(a) + 1)


@every
@noises
def test_impossible_states_give_zero_and_never_nan(name: str, noise_name: str) -> None:
    # Bounded noise at and beyond the end of its support, underflow of the others in float32
    edge = [1.0, 1.5, 40.0] if noise_name in ref.BOUNDED else [40.0, 200.0, 1e6]
    a = torch.tensor([-v for v in edge] + edge)
    for x in (-torch.ones_like(a), torch.ones_like(a)):
        out = EVERY[name](a.requires_grad_(), x, make_noise(noise_name))
        assert torch.equal(out, x)
        c = factor_of(EVERY[name], a, x, make_noise(noise_name))
        assert torch.isfinite(c).all()
        possible = make_noise(noise_name).cdf(x * a) > 0
        if name in FAMILY and name not in ("identity", "straight_through"):
            assert (c[~possible] == 0).all()


@pytest.mark.parametrize("noise_name", ref.BOUNDED)
def test_saturated_units_of_bounded_noise_give_zero(noise_name: str) -> None:
    a = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    for name in LINEAR_EXACT:
        c = factor_of(FAMILY[name][0], a, a.sign(), make_noise(noise_name))
        assert (c == 0).all()


def test_reinmax_is_zgr() -> None:
    assert reinmax is zgr


@noises
def test_darn_with_the_midpoint_is_zgr_and_with_the_mean_is_s_minus_one(noise_name: str) -> None:
    a = torch.linspace(-0.95, 0.95, 9, dtype=torch.float64)
    noise = make_noise(noise_name)
    for x in (-torch.ones_like(a), torch.ones_like(a)):
        for baseline, other in (("midpoint", zgr), ("mean", partial(chain_rule, s=-1.0))):
            mine = factor_of(partial(darn, baseline=baseline), a, x, noise)
            torch.testing.assert_close(mine, factor_of(other, a, x, noise), rtol=1e-12, atol=0)


@noises
@settings(max_examples=50, deadline=None)
@given(a=st.floats(-0.99, 0.99), s=st.floats(-3, 3), up=st.booleans())
def test_the_line_runs_through_zgr_and_straight_through(
    noise_name: str, a: float, s: float, up: bool
) -> None:
    noise, x = make_noise(noise_name), torch.tensor([1.0 if up else -1.0], dtype=torch.float64)
    logit = torch.tensor([a], dtype=torch.float64)
    line = (1 - s) * factor_of(zgr, logit, x, noise)
    line = line + s * factor_of(straight_through, logit, x, noise)
    on_it = factor_of(partial(chain_rule, s=s), logit, x, noise)
    torch.testing.assert_close(on_it, line, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------- one layer, enumerated


def exact_one_layer(noise: ref.RefNoise, a: np.ndarray, loss: ref.RefLoss) -> np.ndarray:
    """f(a_i) E Delta_i L(x), by enumeration."""
    x = ref.states(len(a))
    prob = noise.prob(x, a).prod(1)
    out = []
    for i in range(len(a)):
        up, down = x.copy(), x.copy()
        up[:, i], down[:, i] = 1, -1
        out.append(noise.pdf(a[i]) * prob @ (loss.value(up, 0) - loss.value(down, 0)))
    return np.array(out)


def estimated_one_layer(
    tier1: Callable, noise: ref.RefNoise, a: np.ndarray, loss: ref.RefLoss
) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of sbnlib's gradient in `a`, by enumeration."""
    x = ref.states(len(a))
    prob = noise.prob(x, a).prod(1)
    leaf = torch.tensor(a).expand(len(x), -1).clone().requires_grad_()
    out = tier1(leaf, torch.tensor(x), make_noise(noise.name, noise.scale))
    (g,) = torch.autograd.grad(loss.torch(out).sum(), leaf)
    mean = prob @ g.numpy()
    return mean, prob @ (g.numpy() - mean) ** 2


@pytest.mark.parametrize("kind", ["constant", "linear", "multilinear"])
@pytest.mark.parametrize("name", LINEAR_EXACT)
@noises
def test_unbiased_for_multilinear_losses_of_one_layer(
    name: str, noise_name: str, kind: str
) -> None:
    noise, loss = ref.RefNoise(noise_name, 1.3), ref.LOSSES[kind](3, 1)
    a = random_logits(noise, 3)
    mean, _ = estimated_one_layer(FAMILY[name][0], noise, a, loss)
    np.testing.assert_allclose(mean, exact_one_layer(noise, a, loss), atol=1e-13)


@pytest.mark.parametrize("kind", ["quadratic", "coordinatewise quadratic"])
@noises
def test_zgr_is_unbiased_for_losses_quadratic_in_each_unit(noise_name: str, kind: str) -> None:
    noise, loss = ref.RefNoise(noise_name), ref.LOSSES[kind](3, 2)
    a = random_logits(noise, 3, 1)
    mean, _ = estimated_one_layer(zgr, noise, a, loss)
    np.testing.assert_allclose(mean, exact_one_layer(noise, a, loss), atol=1e-13)
    biased, _ = estimated_one_layer(straight_through, noise, a, loss)
    assert np.abs(biased - exact_one_layer(noise, a, loss)).max() > 1e-2


def test_zgr_is_unbiased_for_the_cubic_of_the_book() -> None:
    # L = x1^2 x2^2 x3
    loss = ref.RefLoss(
        "x1^2 x2^2 x3",
        lambda x, b: x[..., 0] ** 2 * x[..., 1] ** 2 * x[..., 2],
        lambda x, b: x,
        lambda x: x[..., 0] ** 2 * x[..., 1] ** 2 * x[..., 2],
    )
    noise, a = ref.RefNoise("Logistic"), np.array([0.4, -1.1, 0.7])
    mean, _ = estimated_one_layer(zgr, noise, a, loss)
    np.testing.assert_allclose(mean, [0, 0, 2 * noise.pdf(0.7)], atol=1e-14)


@noises
@pytest.mark.parametrize("s", [-1.0, 0.3, 1.0])
def test_bias_on_quadratics_is_2_s_f_a_mu(noise_name: str, s: float) -> None:
    rng = np.random.default_rng(2)
    square = rng.normal(size=(3, 3))
    square, c = square + square.T, rng.normal(size=3)

    def in_torch(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x @ torch.tensor(square) * x).sum(-1) + x @ torch.tensor(c)

    loss = ref.RefLoss(
        "quadratic",
        lambda x, b: 0.5 * np.einsum("si,ij,sj->s", x, square, x) + x @ c,
        lambda x, b: x @ square + c,
        in_torch,
    )
    noise = ref.RefNoise(noise_name, 0.8)
    a = random_logits(noise, 3, 5)
    mu = 2 * noise.cdf(a) - 1
    tier1 = straight_through if s == 1 else partial(chain_rule, s=s)
    mean, _ = estimated_one_layer(tier1, noise, a, loss)
    bias = mean - exact_one_layer(noise, a, loss)
    np.testing.assert_allclose(bias, 2 * s * noise.pdf(a) * np.diag(square) * mu, atol=1e-13)
    if s == 1:  # and E ST is the gradient of the mean-field loss L(mu(a))
        np.testing.assert_allclose(mean, 2 * noise.pdf(a) * (square @ mu + c), atol=1e-13)


@noises
@pytest.mark.parametrize("s", [-1.0, 0.0, 0.4, 1.0])
def test_bias_on_any_smooth_loss_is_the_peano_integral(noise_name: str, s: float) -> None:
    # One unit, L = exp(0.8 x) + sin 2x: bias = f int_{-1}^1 (s mu + t) L''(t) dt
    noise = ref.RefNoise(noise_name)
    a = 0.37
    f, mu = float(noise.pdf(a)), float(2 * noise.cdf(a) - 1)

    def curvature(t: float) -> float:
        return 0.64 * np.exp(0.8 * t) - 4 * np.sin(2 * t)

    expected = f * integrate.quad(lambda t: (s * mu + t) * curvature(t), -1, 1)[0]
    loss = ref.RefLoss(
        "smooth",
        lambda x, b: (np.exp(0.8 * x) + np.sin(2 * x))[..., 0],
        lambda x, b: x,
        lambda x: (torch.exp(0.8 * x) + torch.sin(2 * x))[..., 0],
    )
    mean, _ = estimated_one_layer(partial(chain_rule, s=s), noise, np.array([a]), loss)
    bias = mean - exact_one_layer(noise, np.array([a]), loss)
    np.testing.assert_allclose(bias, [expected], atol=1e-12)
    bound = f * (1 + s**2 * mu**2) * max(abs(curvature(t)) for t in np.linspace(-1, 1, 999))
    assert abs(expected) <= bound


@noises
@pytest.mark.parametrize("s", [-1.0, 0.0, 0.6, 1.0])
def test_variance_at_constant_slope(noise_name: str, s: float) -> None:
    # (1 - s)^2 mu^2 f^2 / (p (1 - p)), so straight-through has none
    noise = ref.RefNoise(noise_name, 1.5)
    a = random_logits(noise, 1, 7)
    loss = ref.RefLoss("x", lambda x, b: x[..., 0], lambda x, b: x, lambda x: x[..., 0])
    _, variance = estimated_one_layer(partial(chain_rule, s=s), noise, a, loss)
    p = noise.cdf(a)
    expected = (1 - s) ** 2 * (2 * p - 1) ** 2 * noise.pdf(a) ** 2 / (p * (1 - p))
    np.testing.assert_allclose(variance, expected, atol=1e-14, rtol=1e-11)


@noises
def test_darn_is_the_score_function_with_the_linearized_loss_as_baseline(noise_name: str) -> None:
    # Gregor et al. 2014, Gu et al. 2016: (L(x) - [L(x) + L'(x)(b - x)]) d log P(x)/da, with the
    # score by finite differences of log P; b = mu ("mean") or 0 ("midpoint"). L = x^3 + x/2 at x.
    noise, a = ref.RefNoise(noise_name), np.array([0.45])
    mu = float(2 * noise.cdf(0.45) - 1)
    for sign in (-1.0, 1.0):
        up, down = (float(noise.prob(sign, 0.45 + h)) for h in (1e-6, -1e-6))
        score = (np.log(up) - np.log(down)) / 2e-6
        slope = 3 * sign**2 + 0.5
        for baseline, b in (("mean", mu), ("midpoint", 0.0)):
            leaf = torch.tensor(a, requires_grad=True)
            x = darn(leaf, torch.tensor([sign]).double(), make_noise(noise_name), baseline=baseline)
            (x**3 + x / 2).sum().backward()
            assert leaf.grad.item() == pytest.approx(slope * (sign - b) * score, rel=1e-7)


# ---------------------------------------------------------------------------- invariance


@family
@noises
@settings(max_examples=30, deadline=None)
@given(a=st.floats(-0.98, 0.98), up=st.booleans())
def test_relabelling_the_states_changes_nothing(
    name: str, noise_name: str, a: float, up: bool
) -> None:
    # L~(x) = L(-x) at -a: the same factor, so the gradient changes its sign with a
    noise, x = make_noise(noise_name), torch.tensor([1.0 if up else -1.0], dtype=torch.float64)
    logit = torch.tensor([a], dtype=torch.float64)
    tier1 = FAMILY[name][0]
    same = factor_of(tier1, -logit, -x, noise)
    torch.testing.assert_close(same, factor_of(tier1, logit, x, noise), rtol=1e-12, atol=1e-15)


@family
@noises
def test_coding_the_states_as_zero_and_one_changes_nothing(name: str, noise_name: str) -> None:
    # With y = (x + 1)/2 and G(y) = L(2y - 1) the rule dy/da = c/2 gives the same gradient
    noise, a = make_noise(noise_name), torch.tensor([0.2, -0.6], dtype=torch.float64)
    x = torch.tensor([1.0, 1.0], dtype=torch.float64)
    grads = []
    for recoded in (False, True):
        leaf = a.clone().requires_grad_()
        out = FAMILY[name][0](leaf, x, noise)
        out = 2 * ((out + 1) / 2) - 1 if recoded else out
        torch.sin(out @ torch.tensor([0.3, 1.2], dtype=torch.float64)).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-13, atol=0)


# -------------------------------------------------------------------------------- shapes


@every
@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_samples_may_have_axes_in_front(name: str, lead: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 2, generator=generator, dtype=torch.float64) - 0.5
    x = 2.0 * torch.randint(0, 2, (*lead, 3, 2), generator=generator).double() - 1
    noise, leaf = make_noise("Gaussian"), a.clone().requires_grad_()
    out = EVERY[name](leaf, x, noise)
    assert torch.equal(out, x)
    out.sum().backward()
    flat = x.reshape(-1, 3, 2)
    one_by_one = sum(factor_of(EVERY[name], a, row, noise) for row in flat)
    torch.testing.assert_close(leaf.grad, one_by_one)


def test_s_may_be_a_tensor_with_one_value_per_unit() -> None:
    a = torch.tensor([0.3, -0.4], dtype=torch.float64)
    x, noise = torch.ones(2, dtype=torch.float64), make_noise("Logistic")
    both = factor_of(partial(chain_rule, s=torch.tensor([0.0, 1.0], dtype=torch.float64)),
                     a, x, noise)  # fmt: skip
    assert both[0] == factor_of(zgr, a, x, noise)[0]
    torch.testing.assert_close(both[1], factor_of(straight_through, a, x, noise)[1])


@every
@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 3, 1), ()])
def test_a_sample_of_the_wrong_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="x"):
        EVERY[name](torch.zeros(2, 3), torch.ones(shape), make_noise("Logistic"))


@every
def test_integer_logits_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="a"):
        EVERY[name](torch.tensor([1, 2]), torch.ones(2), make_noise("Logistic"))


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match="a"):
        EVERY[name](torch.tensor([bad]), torch.ones(1), make_noise("Logistic"))


@pytest.mark.parametrize("name", LINEAR_EXACT)
def test_a_noise_that_is_no_noise_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="noise"):
        FAMILY[name][0](torch.zeros(2), torch.ones(2), "Logistic")


def test_unknown_options_are_refused_and_the_known_ones_listed() -> None:
    a, x, noise = torch.zeros(1), torch.ones(1), make_noise("Logistic")
    with pytest.raises(ValueError, match="baseline.*mean.*midpoint"):
        darn(a, x, noise, baseline="median")
    with pytest.raises(ValueError, match="name.*hardtanh"):
        proxy(a, x, noise, name="softsign")


def test_darn_takes_the_mean_as_its_default_baseline() -> None:
    a, x = torch.tensor([0.7]), torch.ones(1)
    noise = make_noise("Logistic")
    assert factor_of(darn, a, x, noise) == factor_of(partial(darn, baseline="mean"), a, x, noise)


# -------------------------------------------------------------------------------- proxies

proxies = pytest.mark.parametrize("name", PROXIES)


def slope(name: str, a: np.ndarray | float) -> np.ndarray:
    return PROXIES[name].h(torch.tensor(np.asarray(a, float))).numpy()


@proxies
def test_a_proxy_integrates_to_what_it_says(name: str) -> None:
    entry = PROXIES[name]
    assert entry.name == name
    half = sum(
        integrate.quad(lambda a: float(slope(name, a)), low, high, limit=400)[0]
        for low, high in ((0, 1), (1, 30), (30, np.inf))
    )
    assert 2 * half == pytest.approx(entry.integral, rel=1e-7)


@proxies
def test_a_proxy_is_even_and_its_gradient_is_the_slope(name: str) -> None:
    a = np.linspace(0, 4, 33)
    np.testing.assert_allclose(slope(name, a), slope(name, -a), atol=1e-14)
    c = factor_of(partial(proxy, name=name), torch.tensor(a), torch.ones(33).double(), None)
    np.testing.assert_allclose(c.numpy(), slope(name, a), rtol=1e-13)


@proxies
def test_a_proxy_with_a_noise_is_twice_its_density(name: str) -> None:
    entry = PROXIES[name]
    if entry.noise is None:
        # Either its integral is not 2 or it is negative somewhere: no noise can match
        assert entry.integral != 2 or slope(name, np.linspace(-3, 3, 999)).min() < 0
        return
    a = np.linspace(-3, 3, 61) + 0.001
    noise = ref.RefNoise(type(entry.noise).__name__, entry.noise.scale)
    np.testing.assert_allclose(slope(name, a), 2 * noise.pdf(a), rtol=1e-10, atol=1e-15)
    assert entry.integral == 2


@pytest.mark.parametrize(("name", "noise_name", "scale"), [
    ("hardtanh", "Uniform", 1.0), ("approx_sign", "Triangular", 1.0), ("tanh", "Logistic", 0.5),
    ("half_tanh", "Logistic", 1.0), ("erf", "Gaussian", 1.0), ("arctan", "Cauchy", 1.0),
])  # fmt: skip
def test_the_pairs_of_the_book(name: str, noise_name: str, scale: float) -> None:
    noise = PROXIES[name].noise
    assert (type(noise).__name__, noise.scale) == (noise_name, scale)


def test_swish_sign_is_negative_beyond_2_40() -> None:
    # beta (2 - z tanh(z/2)) / (1 + cosh z), z = beta a: the sign is that of 2 - z tanh(z/2)
    beta = float(slope("swish_sign", 0.0))  # h(0) = beta
    z = np.array([0.0, 1.0, 2.39, 2.41, 4.0, 30.0])
    h = slope("swish_sign", z / beta)
    expected = beta * (2 - z * np.tanh(z / 2)) / (1 + np.cosh(z))
    np.testing.assert_allclose(h, expected, rtol=1e-10)
    assert np.array_equal(h > 0, z < 2.4)


def test_ede_is_ten_times_too_large_at_the_start() -> None:
    # Integral 2 max(1/t, 1) at t = 0.1: k t (1 - tanh^2(t a)), k = max(1/t, 1)
    a = np.linspace(-20, 20, 41)
    np.testing.assert_allclose(slope("ede", a), 1 - np.tanh(0.1 * a) ** 2, rtol=1e-12)
    assert PROXIES["ede"].integral == 20


def test_super_spike_integrates_to_two_over_beta() -> None:
    a = np.linspace(0, 3, 7)
    ratio = slope("superspike", a) ** -0.5
    beta = (ratio[1] - ratio[0]) / (a[1] - a[0])
    np.testing.assert_allclose(slope("superspike", a), (1 + beta * a) ** -2, rtol=1e-12)
    assert PROXIES["superspike"].integral == pytest.approx(2 / beta)


def test_mismatched_noise_and_proxy_are_twice_the_exact_gradient() -> None:
    # Logistic sampling, hardtanh slope at a = 0: 1 where 2 f(0) = 0.5 is exact
    a, x = torch.zeros(1), torch.ones(1)
    noise = sbnlib.Logistic()
    assert factor_of(partial(proxy, name="hardtanh"), a, x, noise).item() == 1.0
    assert factor_of(straight_through, a, x, noise).item() == 0.5
