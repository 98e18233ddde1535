"""Noise models against closed forms and scipy.stats."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

SCALES = (1.0, 0.5, 3.0)
GRID = np.concatenate([np.linspace(-6, 6, 241), [-40.0, -15.0, 15.0, 40.0]])
names = pytest.mark.parametrize("name", ref.NOISES)
scales = pytest.mark.parametrize("scale", SCALES)


@names
@scales
def test_cdf_and_pdf_equal_the_closed_forms(name: str, scale: float) -> None:
    noise, expected = make_noise(name, scale), ref.RefNoise(name, scale)
    a = torch.tensor(GRID)
    np.testing.assert_allclose(noise.cdf(a).numpy(), expected.cdf(GRID), rtol=1e-12, atol=0)
    np.testing.assert_allclose(noise.pdf(a).numpy(), expected.pdf(GRID), rtol=1e-12, atol=0)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_shape_are_those_of_the_logits(name: str, dtype: torch.dtype) -> None:
    noise, a = make_noise(name), torch.zeros(2, 1, 3, dtype=dtype)
    for value in (noise.cdf(a), noise.pdf(a), noise.icdf(a + 0.5)):
        assert value.dtype == dtype
        assert value.shape == a.shape


@names
@scales
def test_cdf_is_symmetric(name: str, scale: float) -> None:
    noise, a = make_noise(name, scale), torch.tensor(GRID)
    torch.testing.assert_close(noise.cdf(-a), 1 - noise.cdf(a), rtol=0, atol=1e-15)
    torch.testing.assert_close(noise.pdf(-a), noise.pdf(a), rtol=0, atol=0)


# DESIGN 3: relative accuracy in the lower tail, where 1 + erf gives 0 in float32
TAILS = [
    ("Gaussian", -8.0, 2e-5),  # the argument's rounding alone is |a|^2 eps = 4e-6
    ("Gaussian", -12.0, 4e-5),
    ("Logistic", -20.0, 1e-5),
    ("Logistic", -80.0, 1e-5),
    ("Cauchy", -1e6, 1e-6),
    ("Cauchy", -1e30, 1e-6),
    ("FastSigmoid", -1e6, 1e-6),
    ("FastSigmoid", -1e30, 1e-6),
    ("Uniform", -1 + 2**-24, 1e-6),
    ("Uniform", -1 + 2**-12, 1e-6),
    ("Triangular", -1 + 2**-24, 1e-6),
    ("Triangular", -1 + 2**-12, 1e-6),
]


@pytest.mark.parametrize(("name", "a", "tolerance"), TAILS)
def test_cdf_keeps_relative_accuracy_in_the_lower_tail_in_float32(
    name: str, a: float, tolerance: float
) -> None:
    given_ = torch.tensor([a], dtype=torch.float32)
    expected = ref.RefNoise(name).cdf(given_.double().numpy())
    np.testing.assert_allclose(
        make_noise(name).cdf(given_).double().numpy(), expected, rtol=tolerance
    )


@names
def test_cdf_is_exactly_zero_and_one_only_where_it_must_be(name: str) -> None:
    noise, far = make_noise(name), torch.tensor([-1.5, 1.5], dtype=torch.float64)
    low, high = noise.cdf(far).tolist()
    assert (low == 0.0) == (name in ref.BOUNDED)
    assert (high == 1.0) == (name in ref.BOUNDED)
    assert 0.0 <= low < high <= 1.0


@names
@scales
def test_icdf_inverts_the_closed_form(name: str, scale: float) -> None:
    p = np.array([1e-9, 1e-4, 0.03, 0.25, 0.5, 0.6, 0.999])
    a = make_noise(name, scale).icdf(torch.tensor(p)).numpy()
    np.testing.assert_allclose(ref.RefNoise(name, scale).cdf(a), p, rtol=1e-7)
    assert abs(a[4]) < 1e-15
    known = ref.RefNoise(name, scale).scipy()
    if known is not None:
        np.testing.assert_allclose(a[p != 0.5], known.ppf(p[p != 0.5]), rtol=1e-9)


@names
@settings(max_examples=60, deadline=None)
@given(p=st.floats(1e-12, 1 - 1e-6), scale=st.floats(1e-3, 1e3))
def test_cdf_of_icdf_is_the_identity(name: str, p: float, scale: float) -> None:
    noise = make_noise(name, scale)
    back = float(noise.cdf(noise.icdf(torch.tensor(p, dtype=torch.float64))))
    assert back == pytest.approx(p, rel=1e-6 if name == "Triangular" else 1e-8)


@names
@settings(max_examples=60, deadline=None)
@given(a=st.floats(-0.999, 0.999), scale=st.floats(1e-3, 1e3))
def test_icdf_of_cdf_is_the_identity(name: str, a: float, scale: float) -> None:
    noise, logit = make_noise(name, scale), torch.tensor(a * scale, dtype=torch.float64)
    assert float(noise.icdf(noise.cdf(logit))) == pytest.approx(a * scale, abs=1e-9 * scale)


@names
@settings(max_examples=60, deadline=None)
@given(a=st.floats(-30, 30), b=st.floats(-30, 30))
def test_cdf_is_monotone(name: str, a: float, b: float) -> None:
    low, high = make_noise(name).cdf(torch.tensor([min(a, b), max(a, b)], dtype=torch.float64))
    assert low <= high


def slope_of_cdf(noise: object, a: torch.Tensor) -> torch.Tensor:
    a = a.detach().requires_grad_()
    return torch.autograd.grad(noise.cdf(a).sum(), a)[0]


@names
@scales
def test_autograd_of_cdf_is_the_pdf(name: str, scale: float) -> None:
    noise, expected = make_noise(name, scale), ref.RefNoise(name, scale)
    slope = slope_of_cdf(noise, torch.tensor(GRID)).numpy()
    np.testing.assert_allclose(slope, expected.pdf(GRID), rtol=1e-10, atol=1e-15)


@names
def test_autograd_of_cdf_is_the_pdf_at_the_kinks(name: str) -> None:
    # 0 is the kink of triangular and fast sigmoid; at the ends of a bounded support f is 0
    noise, a = make_noise(name), torch.tensor([0.0, -0.0, -1.0, 1.0], dtype=torch.float64)
    expected = ref.RefNoise(name).pdf(a.numpy())
    np.testing.assert_allclose(noise.pdf(a).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(slope_of_cdf(noise, a).numpy(), expected, rtol=1e-12)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_logits_give_finite_slopes(name: str, dtype: torch.dtype) -> None:
    noise = make_noise(name)
    a = torch.tensor([-1e30, -1e4, -200.0, -40.0, 40.0, 200.0, 1e4, 1e30], dtype=dtype)
    for value in (noise.cdf(a), noise.pdf(a), slope_of_cdf(noise, a)):
        assert torch.isfinite(value).all()
        assert (value >= 0).all()


@names
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_samples_follow_the_distribution(name: str, scale: float) -> None:
    # Kolmogorov-Smirnov; false-alarm rate 1e-6 for each of the twelve tests
    drawn = make_noise(name, scale).sample((20_000,), generator=torch.Generator().manual_seed(3))
    test = stats.kstest(drawn.double().numpy(), ref.RefNoise(name, scale).cdf)
    assert test.pvalue > 1e-6


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_samples_are_finite_and_inside_the_support(name: str, dtype: torch.dtype) -> None:
    # 2^22 float32 uniforms hold a zero with probability 0.22, and -log(0) is infinite
    noise = make_noise(name, 2.0)
    drawn = noise.sample((2**22,), generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert drawn.dtype == dtype
    assert torch.isfinite(drawn).all()
    if name in ref.BOUNDED:
        assert drawn.abs().max() <= 2.0


@names
def test_samples_repeat_with_the_generator(name: str) -> None:
    noise = make_noise(name)
    one, two, other = (
        noise.sample((5, 4), generator=torch.Generator().manual_seed(s)) for s in (7, 7, 8)
    )
    assert one.shape == (5, 4)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@names
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_scale_and_support(name: str, scale: float) -> None:
    noise = make_noise(name, scale)
    assert noise.scale == scale
    ends = (-scale, scale) if name in ref.BOUNDED else (-np.inf, np.inf)
    assert tuple(noise.support) == ends


@names
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), "1", None])
def test_a_scale_that_is_not_a_positive_number_is_refused(name: str, scale: object) -> None:
    with pytest.raises(ValueError, match="scale"):
        make_noise(name, scale)


@names
def test_noises_compare_by_name_and_scale(name: str) -> None:
    assert "0.5" in repr(make_noise(name, 0.5))
    assert name in repr(make_noise(name))
