"""Chain-rule estimators: value, factor, bias, variance against closed forms and enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise, random_logits
from discovered import NOISES, PROXIES
from scipy import integrate

import sbnlib
from sbnlib import chain_rule, darn, identity, proxy, reinmax, shrinkage, straight_through, zgr

# Name in sbnlib, the function, and (name, s) of its factor in reference.py
FAMILY: dict[str, tuple[Callable, str, float]] = {
    "straight_through": (straight_through, "straight_through", 0.0),
    "zgr": (zgr, "zgr", 0.0),
    "darn mean": (partial(darn, baseline="mean"), "darn_mean", 0.0),
    "darn midpoint": (partial(darn, baseline="midpoint"), "darn_midpoint", 0.0),
    "chain_rule s=0.3": (partial(chain_rule, s=0.3), "chain_rule", 0.3),
    "chain_rule s=-1": (partial(chain_rule, s=-1.0), "chain_rule", -1.0),
    "shrinkage omega=2.5": (partial(shrinkage, omega=2.5), "shrinkage", 2.5),
    "shrinkage omega=1e6": (partial(shrinkage, omega=1e6), "shrinkage", 1e6),
    "identity": (identity, "identity", 0.0),
}
LINEAR_EXACT = [name for name in FAMILY if name != "identity"]
EVERY = {name: entry[0] for name, entry in FAMILY.items()} | {
    name: partial(proxy, name=name) for name in PROXIES
}
noises = pytest.mark.parametrize("noise_name", NOISES)
#: Where the factor's formula is at stake and not the law: every law has its factors checked above.
two_noises = pytest.mark.parametrize("noise_name", ["Cauchy", "Triangular"])
family = pytest.mark.parametrize("name", FAMILY)
every = pytest.mark.parametrize("name", EVERY)


def factor_of(estimator: Callable, a: torch.Tensor, x: torch.Tensor, noise: object) -> torch.Tensor:
    a = a.detach().requires_grad_()
    return torch.autograd.grad(estimator(a, x, noise).sum(), a)[0]


# ------------------------------------------------------------------------ value and factor


@every
def test_the_value_is_the_sample_bit_for_bit(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        a = (12 * torch.rand(10**5, generator=generator) - 6).to(dtype).requires_grad_()
        x = (2 * torch.randint(0, 2, a.shape, generator=generator) - 1).to(dtype)
        out = EVERY[name](a, x, make_noise("Logistic"))
        assert out.dtype == dtype
        assert torch.equal(out, x)


@family
@noises
def test_the_gradient_is_the_factor(name: str, noise_name: str) -> None:
    estimator, reference_name, s = FAMILY[name]
    a, noise = np.linspace(-1.4, 1.4, 29) + 0.003, ref.RefNoise(noise_name, 0.6)
    for x in (-np.ones_like(a), np.ones_like(a)):
        c = factor_of(estimator, torch.tensor(a), torch.tensor(x), make_noise(noise_name, 0.6))
        expected = ref.factor(reference_name, noise, a, x, s)
        np.testing.assert_allclose(c.numpy(), expected, rtol=1e-11, atol=1e-15)


@family
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
def test_the_factor_in_single_and_half_precision(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    estimator, reference_name, s = FAMILY[name]
    a = torch.linspace(-3, 3, 25).to(dtype)
    for noise_name in ("Logistic", "Gaussian", "Cauchy", "FastSigmoid"):
        for sign in (-1.0, 1.0):
            x = torch.full_like(a, sign)
            c = factor_of(estimator, a, x, make_noise(noise_name)).double().numpy()
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
def test_a_tiny_probability_does_not_overflow(name: str) -> None:
    # 1/P overflows there, f/P is |a| at most: the ratio must come first
    for noise_name, a, dtype in (
        ("Gaussian", -13.5, torch.float32), ("Gaussian", -38.0, torch.float64),
        ("Logistic", -88.0, torch.float32), ("Logistic", -12.0, torch.float16),
        ("Gaussian", -4.5, torch.float16), ("Gaussian", -13.5, torch.bfloat16),
    ):  # fmt: skip
        given_, x = torch.tensor([a], dtype=dtype), torch.ones(1, dtype=dtype)
        noise = make_noise(noise_name)
        assert torch.equal(FAMILY[name][0](given_.requires_grad_(), x, noise), x)
        c = factor_of(FAMILY[name][0], given_, x, noise)
        assert torch.isfinite(c).all()
        assert 0 <= c.item() <= 3 * (abs(a) + 1)


@family
@noises
def test_impossible_states_give_zero_and_never_nan(name: str, noise_name: str) -> None:
    # Bounded noise at and beyond the end of its support, underflow of the others in float32
    noise, far = make_noise(noise_name), torch.tensor([1.0, 1.5, 40.0, 200.0, 1e6])
    a = torch.cat([-far, far])
    for x in (-torch.ones_like(a), torch.ones_like(a)):
        assert torch.equal(FAMILY[name][0](a, x, noise), x)
        c = factor_of(FAMILY[name][0], a, x, noise)
        assert torch.isfinite(c).all()
        if name not in ("identity", "straight_through"):
            assert (c[noise.cdf(x * a) == 0] == 0).all()


def test_a_proxys_slope_is_finite_at_far_logits_whatever_the_noise() -> None:
    a = torch.tensor([-1e6, -200.0, 200.0, 1e6])
    for name, noise_name in itertools.product(PROXIES, ("Logistic", "Uniform")):
        x = torch.ones_like(a)
        c = factor_of(partial(proxy, name=name), a, x, make_noise(noise_name))
        assert torch.isfinite(c).all(), name


@pytest.mark.parametrize("noise_name", ref.BOUNDED)
def test_saturated_units_of_bounded_noise_give_zero(noise_name: str) -> None:
    a = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    for name in LINEAR_EXACT:
        c = factor_of(FAMILY[name][0], a, a.sign(), make_noise(noise_name))
        assert (c == 0).all()


def test_reinmax_is_zgr() -> None:
    assert reinmax is zgr


def test_darn_with_the_midpoint_is_zgr_and_with_the_mean_is_s_minus_one() -> None:
    a = torch.linspace(-0.95, 0.95, 9, dtype=torch.float64)
    noise = make_noise("Cauchy")
    for x in (-torch.ones_like(a), torch.ones_like(a)):
        for baseline, other in (("midpoint", zgr), ("mean", partial(chain_rule, s=-1.0))):
            mine = factor_of(partial(darn, baseline=baseline), a, x, noise)
            torch.testing.assert_close(mine, factor_of(other, a, x, noise), rtol=1e-12, atol=0)


@pytest.mark.parametrize("s", [-3.0, 0.4, 2.5])
def test_the_line_runs_through_zgr_and_straight_through(s: float) -> None:
    noise, a = make_noise("Gaussian"), torch.linspace(-2, 2, 9, dtype=torch.float64)
    for x in (-torch.ones_like(a), torch.ones_like(a)):
        ends = [factor_of(f, a, x, noise) for f in (zgr, straight_through)]
        on_it = factor_of(partial(chain_rule, s=s), a, x, noise)
        torch.testing.assert_close(on_it, (1 - s) * ends[0] + s * ends[1], rtol=1e-10, atol=1e-12)


@noises
def test_shrinkage_has_the_mean_the_second_moment_and_the_bounds_that_it_states(
    noise_name: str,
) -> None:
    # E c = 2f; E c^2 <= (4 + omega mu^2) f^2; c <= 2f (1 + 2 omega), though ZGR's has no bound
    noise, law = ref.RefNoise(noise_name), make_noise(noise_name)
    a = np.linspace(-0.999, 0.999, 41)
    f, mu = noise.pdf(a), noise.cdf(a) - noise.cdf(-a)
    p, q = noise.cdf(a), noise.cdf(-a)
    for omega in (0.0, 0.7, 30.0):
        c = [
            factor_of(partial(shrinkage, omega=omega), torch.tensor(a), x, law).numpy()
            for x in (torch.ones(41).double(), -torch.ones(41).double())
        ]
        np.testing.assert_allclose(p * c[0] + q * c[1], 2 * f, rtol=1e-13, atol=1e-15)
        second = p * c[0] ** 2 + q * c[1] ** 2
        assert (second <= (4 + omega * mu**2) * f**2 * (1 + 1e-12)).all()
        assert (np.maximum(*c) <= 2 * f * (1 + 2 * omega) * (1 + 1e-12)).all()


def test_shrinkage_keeps_its_digits_at_rare_states_in_single_precision() -> None:
    # s = 1/(1 + omega (1 - mu^2)) rounds to 1 there, and the member of the line to 2f
    noise, law = ref.RefNoise("Logistic"), make_noise("Logistic")
    a = torch.tensor([-25.0, -40.0])
    c = factor_of(partial(shrinkage, omega=50.0), a, torch.ones(2), law)
    expected = 2 * noise.pdf(a.double().numpy()) * 101  # 1 + 2 omega
    np.testing.assert_allclose(c.double().numpy(), expected, rtol=1e-5)
    none, straight = (
        factor_of(each, a, torch.ones(2), law)
        for each in (partial(shrinkage, omega=0.0), straight_through)
    )
    assert torch.equal(none, straight)


@two_noises
@pytest.mark.parametrize("omega", [0.0, 0.8, 20.0])
def test_bias_of_shrinkage_on_quadratics(noise_name: str, omega: float) -> None:
    rng = np.random.default_rng(4)
    square, c = rng.normal(size=(3, 3)), rng.normal(size=3)
    square = square + square.T
    loss = ref.RefLoss(
        "quadratic",
        lambda x, b: 0.5 * np.einsum("si,ij,sj->s", x, square, x) + x @ c,
        lambda x, b: x @ square + c,
        lambda x: 0.5 * (x @ torch.tensor(square) * x).sum(-1) + x @ torch.tensor(c),
    )
    noise = ref.RefNoise(noise_name, 0.8)
    a = random_logits(noise, 3, 5)
    mu = 2 * noise.cdf(a) - 1
    mean, _ = estimated_one_layer(partial(shrinkage, omega=omega), noise, a, loss)
    bias = mean - exact_one_layer(noise, a, loss)
    expected = 2 * noise.pdf(a) * np.diag(square) * mu / (1 + omega * (1 - mu**2))
    np.testing.assert_allclose(bias, expected, atol=1e-13)


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
    estimator: Callable, noise: ref.RefNoise, a: np.ndarray, loss: ref.RefLoss
) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of sbnlib's gradient in `a`, by enumeration."""
    x = ref.states(len(a))
    prob = noise.prob(x, a).prod(1)
    leaf = torch.tensor(a).expand(len(x), -1).clone().requires_grad_()
    out = estimator(leaf, torch.tensor(x), make_noise(noise.name, noise.scale))
    (g,) = torch.autograd.grad(loss.torch(out).sum(), leaf)
    mean = prob @ g.numpy()
    return mean, prob @ (g.numpy() - mean) ** 2


@pytest.mark.parametrize("name", LINEAR_EXACT)
@two_noises
def test_unbiased_for_multilinear_losses_of_one_layer(name: str, noise_name: str) -> None:
    noise, loss = ref.RefNoise(noise_name, 1.3), ref.LOSSES["multilinear"](3, 1)
    a = random_logits(noise, 3)
    mean, _ = estimated_one_layer(FAMILY[name][0], noise, a, loss)
    np.testing.assert_allclose(mean, exact_one_layer(noise, a, loss), atol=1e-13)


@two_noises
def test_zgr_is_unbiased_for_losses_quadratic_in_each_unit(noise_name: str) -> None:
    noise, loss = ref.RefNoise(noise_name), ref.LOSSES["coordinatewise quadratic"](3, 2)
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


@two_noises
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
    estimator = straight_through if s == 1 else partial(chain_rule, s=s)
    mean, _ = estimated_one_layer(estimator, noise, a, loss)
    bias = mean - exact_one_layer(noise, a, loss)
    np.testing.assert_allclose(bias, 2 * s * noise.pdf(a) * np.diag(square) * mu, atol=1e-13)
    if s == 1:  # and E ST is the gradient of the mean-field loss L(mu(a))
        np.testing.assert_allclose(mean, 2 * noise.pdf(a) * (square @ mu + c), atol=1e-13)


@two_noises
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


@two_noises
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


@two_noises
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


# -------------------------------------------------------------------------------- shapes


@every
def test_samples_may_have_axes_in_front(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 2, generator=generator, dtype=torch.float64) - 0.5
    x = 2.0 * torch.randint(0, 2, (2, 5, 3, 2), generator=generator).double() - 1
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
def test_bad_logits_and_samples_are_refused(name: str) -> None:
    estimator, noise = EVERY[name], make_noise("Logistic")
    for shape in ((2,), (3, 2), (2, 3, 1), ()):
        with pytest.raises(ValueError, match="x"):
            estimator(torch.zeros(2, 3), torch.ones(shape), noise)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="a"):
            estimator(torch.tensor([bad]), torch.ones(1), noise)
    with pytest.raises(TypeError, match="a"):
        estimator(torch.tensor([1, 2]), torch.ones(2), noise)


@pytest.mark.parametrize("name", LINEAR_EXACT)
def test_a_noise_that_is_no_noise_is_refused(name: str) -> None:
    for wrong in (sbnlib.Logistic, 1.0, None):
        with pytest.raises(TypeError, match="noise"):
            FAMILY[name][0](torch.zeros(2), torch.ones(2), wrong)


def test_unknown_options_are_refused_and_the_known_ones_listed() -> None:
    a, x, noise = torch.zeros(1), torch.ones(1), make_noise("Logistic")
    with pytest.raises(ValueError, match="baseline.*mean.*midpoint"):
        darn(a, x, noise, baseline="median")


def test_darn_takes_the_mean_as_its_default_baseline() -> None:
    a, x = torch.tensor([0.7]), torch.ones(1)
    noise = make_noise("Logistic")
    assert factor_of(darn, a, x, noise) == factor_of(partial(darn, baseline="mean"), a, x, noise)


def test_omega_may_be_a_tensor_with_one_value_per_unit() -> None:
    a, x = torch.tensor([0.3, -0.4]).double(), torch.ones(2).double()
    both = factor_of(partial(shrinkage, omega=torch.tensor([0.0, 3.0])), a, x, "logistic")
    for k, omega in enumerate((0.0, 3.0)):
        assert both[k] == factor_of(partial(shrinkage, omega=omega), a, x, "logistic")[k]


@pytest.mark.parametrize(
    "omega",
    [-0.1, math.nan, math.inf, "1", None, torch.tensor([1.0, -1.0]), torch.tensor(math.nan)],
)
def test_a_weight_that_is_no_weight_is_refused(omega: object) -> None:
    with pytest.raises(ValueError, match="omega must be a"):
        shrinkage(torch.zeros(2), torch.ones(2), "logistic", omega=omega)


@pytest.mark.parametrize("s", [math.nan, math.inf, "0", None])
def test_a_position_that_is_no_number_is_refused(s: object) -> None:
    with pytest.raises(ValueError, match=f"s must be a finite number or a tensor, got {s!r}"):
        chain_rule(torch.zeros(2), torch.ones(2), "logistic", s=s)
