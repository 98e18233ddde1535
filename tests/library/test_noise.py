"""Every noise that sbnlib lists: what any symmetric law has, and what this one has.

The first part needs no closed form, so it holds for a law added tomorrow; the second compares with
``tests/support/reference.py``, which refuses a law that it does not have.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise
from discovered import NOISES
from rows import panels
from scipy import integrate, stats

import sbnlib
from sbnlib import Noise
from sbnlib.noise import as_noise

Array = np.ndarray
names = pytest.mark.parametrize("name", NOISES)
MAGNITUDES = np.geomspace(1e-3, 30, 60)
GRID = np.concatenate([-MAGNITUDES[::-1], [0.0], MAGNITUDES])  # beyond the bounded supports too
P = np.concatenate([np.geomspace(1e-300, 0.45, 60), 1 - np.geomspace(1e-15, 0.45, 30)])


def cdf(noise: Noise, a: Array | float) -> Array:
    return noise.cdf(torch.tensor(np.asarray(a, float))).numpy()


def pdf(noise: Noise, a: Array | float) -> Array:
    return noise.pdf(torch.tensor(np.asarray(a, float))).numpy()


def icdf(noise: Noise, p: Array | float) -> Array:
    return noise.icdf(torch.tensor(np.asarray(p, float))).numpy()


def half_width(noise: Noise) -> float:
    low, high = noise.support
    assert low == -high and high > 0
    return high


def inside(noise: Noise) -> Array:
    return GRID[np.abs(GRID) < half_width(noise)]


# ------------------------------------------------------------- any symmetric law, by itself


@names
def test_f_increases_from_0_to_1(name: str) -> None:
    noise = make_noise(name)
    ends = cdf(noise, [-np.inf, -1e300, 1e300, np.inf])
    np.testing.assert_allclose(ends, [0, 0, 1, 1], rtol=0, atol=1e-299)
    assert ends[0] == 0 and ends[3] == 1
    values = cdf(noise, GRID)
    assert (np.diff(values) >= 0).all()
    below = values[(GRID <= 0) & (np.abs(GRID) < half_width(noise))]
    assert (np.diff(below) > 0).all() and below[0] > 0


@names
def test_f_and_its_density_are_symmetric(name: str) -> None:
    noise = make_noise(name)
    np.testing.assert_allclose(cdf(noise, -GRID), 1 - cdf(noise, GRID), rtol=0, atol=1e-15)
    assert np.array_equal(pdf(noise, -GRID), pdf(noise, GRID))


@names
def test_the_density_is_positive_inside_the_support_and_zero_outside(name: str) -> None:
    noise = make_noise(name)
    end = half_width(noise)
    assert (pdf(noise, inside(noise)) > 0).all()
    if end < math.inf:
        assert (pdf(noise, [-1.5 * end, -end, end, 1.5 * end]) == 0).all()
        assert cdf(noise, [-1.5 * end, -end, end, 1.5 * end]).tolist() == [0, 0, 1, 1]
        assert (pdf(noise, [-end * (1 - 1e-9), end * (1 - 1e-9)]) > 0).all()


def mass_below(noise: Noise, a: float) -> float:
    """int f from -inf to a, by panels in theta where the point is tan(theta).

    A tail like 1/a^2 is a bounded function of theta; 0 and the ends of the support are stops.
    """
    special = [0.0, math.atan(half_width(noise)), math.atan(-half_width(noise))]
    stops = {*np.linspace(-math.pi / 2, math.pi / 2, 61), *special, math.atan(a)}
    theta, weight = panels(sorted(t for t in stops if t <= math.atan(a)))
    return float(weight @ (pdf(noise, np.tan(theta)) / np.cos(theta) ** 2))


@names
def test_the_density_has_mass_one_and_integrates_to_f(name: str) -> None:
    noise = make_noise(name)
    assert mass_below(noise, math.inf) == pytest.approx(1, abs=1e-11)
    for a in (-20.0, -3.0, -0.9, -0.2, 0.0, 0.5, 0.98, 7.0):
        assert mass_below(noise, a) == pytest.approx(float(cdf(noise, a)), abs=1e-11), a


@names
def test_the_derivative_of_f_is_the_density_down_to_the_tail(name: str) -> None:
    """Central differences of log F against f/F, so that a tail of 1e-198 counts like the middle."""
    noise = make_noise(name)
    a = inside(noise)[inside(noise) != 0]
    step = 1e-4 * np.minimum(np.abs(a), half_width(noise) - np.abs(a))
    numeric = (np.log(cdf(noise, a + step)) - np.log(cdf(noise, a - step))) / (2 * step)
    exact = pdf(noise, a) / cdf(noise, a)
    rounding = 1e-15 / step  # of F near 1, divided by the step
    assert (np.abs(numeric - exact) <= 1e-6 * exact + rounding).all()


@names
def test_the_quantile_is_where_f_crosses_p(name: str) -> None:
    """F within eight units in the last place of F^-1(p) encloses p, down to p = 1e-300."""
    noise = make_noise(name)
    a = icdf(noise, P)
    near = 8 * np.finfo(float).eps * np.abs(a)
    assert (cdf(noise, a - near) <= P * (1 + 1e-13)).all()
    assert (cdf(noise, a + near) >= P * (1 - 1e-13)).all()
    assert abs(float(icdf(noise, 0.5))) < 1e-15
    assert icdf(noise, [0.0, 1.0]).tolist() == [-half_width(noise), half_width(noise)]


@names
def test_the_quantile_of_f_is_the_point(name: str) -> None:
    noise, a = make_noise(name), inside(make_noise(name))
    low, middle = a[a <= 0], a[np.abs(a) < 1]
    np.testing.assert_allclose(icdf(noise, cdf(noise, low)), low, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(icdf(noise, cdf(noise, middle)), middle, rtol=0, atol=1e-14)


@names
def test_there_is_no_quantile_of_what_is_no_probability(name: str) -> None:
    p = [-math.inf, -0.5, -1e-12, 1 + 1e-12, 1.5, 2.5, math.inf, math.nan]
    assert np.isnan(icdf(make_noise(name, 0.7), p)).all()


@names
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_scale_stretches_the_law(name: str, scale: float) -> None:
    noise, one = make_noise(name, scale), make_noise(name)
    assert noise.scale == scale
    assert half_width(noise) == scale * half_width(one)
    np.testing.assert_allclose(cdf(noise, scale * GRID), cdf(one, GRID), rtol=1e-12)
    np.testing.assert_allclose(pdf(noise, scale * GRID), pdf(one, GRID) / scale, rtol=1e-12)
    np.testing.assert_allclose(icdf(noise, P), scale * icdf(one, P), rtol=1e-12)
    draws = [n.sample((9,), generator=torch.Generator().manual_seed(5)) for n in (noise, one)]
    torch.testing.assert_close(draws[0], scale * draws[1])


@names
def test_dtype_and_shape_are_those_of_the_argument(name: str) -> None:
    noise = make_noise(name)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        a = torch.zeros(2, 1, 3, dtype=dtype)
        for value in (noise.cdf(a), noise.pdf(a), noise.icdf(a + 0.5)):
            assert value.dtype == dtype
            assert value.shape == a.shape


def slope_of_cdf(noise: Noise, a: torch.Tensor) -> torch.Tensor:
    a = a.detach().requires_grad_()
    return torch.autograd.grad(noise.cdf(a).sum(), a)[0]


@names
def test_far_logits_give_finite_slopes(name: str) -> None:
    noise = make_noise(name)
    for dtype in (torch.float32, torch.float64):
        a = torch.tensor([-1e30, -1e4, -200.0, -40.0, 40.0, 200.0, 1e4, 1e30], dtype=dtype)
        for value in (noise.cdf(a), noise.pdf(a), slope_of_cdf(noise, a)):
            assert torch.isfinite(value).all()
            assert (value >= 0).all()


@pytest.mark.slow
@names
def test_samples_are_finite_and_inside_the_support(name: str) -> None:
    # 2^22 float32 uniforms hold a zero with probability 0.22, and -log(0) is infinite
    noise = make_noise(name, 2.0)
    for dtype, count in ((torch.float32, 2**22), (torch.float64, 99), (torch.bfloat16, 99)):
        generator = torch.Generator().manual_seed(0)
        drawn = noise.sample((count,), generator=generator, dtype=dtype)
        assert drawn.dtype == dtype
        assert torch.isfinite(drawn).all()
        assert drawn.abs().max() <= half_width(noise)


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
def test_a_scale_that_is_not_a_positive_number_is_refused(name: str) -> None:
    for scale in (0.0, -1.0, math.nan, math.inf, "1", None):
        with pytest.raises(ValueError, match="scale"):
            make_noise(name, scale)


@names
def test_noises_compare_by_law_and_scale_and_say_both(name: str) -> None:
    noise = make_noise(name, 0.5)
    assert repr(noise) == f"{name}(scale=0.5)"
    equal = [other for other in NOISES for scale in (0.5, 2.0) if noise == make_noise(other, scale)]
    assert equal == [name] and hash(noise) == hash(make_noise(name, 0.5))


# --------------------------------------------------------------- this law, by its closed form


@names
def test_cdf_pdf_and_icdf_equal_the_closed_forms(name: str) -> None:
    noise, expected = make_noise(name, 0.7), ref.RefNoise(name, 0.7)
    a = np.concatenate([GRID, [-40.0, 40.0]])
    p = P[(P > 1e-12) | (half_width(noise) == math.inf)]  # 1e-300 rounds to the end of a support
    np.testing.assert_allclose(cdf(noise, a), expected.cdf(a), rtol=1e-12, atol=0)
    np.testing.assert_allclose(pdf(noise, a), expected.pdf(a), rtol=1e-12, atol=0)
    np.testing.assert_allclose(icdf(noise, p), expected.icdf(p), rtol=1e-10, atol=0)
    assert half_width(noise) == expected.half_width


@names
def test_autograd_of_cdf_is_the_density_at_the_kinks_too(name: str) -> None:
    # 0 is the kink of triangular and fast sigmoid; at the ends of a bounded support f is 0
    for scale in (1.0, 3.0):
        a = scale * np.concatenate([GRID, [-0.0, -1.0, 1.0, -40.0, 40.0]])
        slope = slope_of_cdf(make_noise(name, scale), torch.tensor(a)).numpy()
        np.testing.assert_allclose(slope, ref.RefNoise(name, scale).pdf(a), rtol=1e-10, atol=1e-15)


@names
def test_cdf_keeps_relative_accuracy_in_the_lower_tail_in_float32(name: str) -> None:
    """Where 1 + erf is 0 at -6 already.

    Allowed is one rounding of the point (of its distance to the end of a bounded support), which
    moves log F by |a| f/F, and one of the result, twice over: 2e-5 for the Gaussian at -12.
    """
    known = ref.RefNoise(name)
    p = np.geomspace(1e-37, 0.5, 400)
    edge = -1 + np.geomspace(2.0**-24, 0.5, 50) if name in ref.BOUNDED else -np.geomspace(1, 12, 50)
    a = np.float32(np.concatenate([known.icdf(p), edge])).astype(float)
    exact = known.cdf(a)
    a, exact = a[exact > 1e-37], exact[exact > 1e-37]
    reach = np.minimum(np.abs(a), known.half_width - np.abs(a))
    allowed = 2 * 2.0**-24 * (1 + reach * known.pdf(a) / exact)
    found = make_noise(name).cdf(torch.tensor(a, dtype=torch.float32)).double().numpy()
    assert (np.abs(found / exact - 1) <= allowed).all()


@names
def test_samples_follow_the_distribution(name: str) -> None:
    # Kolmogorov-Smirnov; false-alarm rate 1e-6 for each law
    drawn = make_noise(name, 2.5).sample((20_000,), generator=torch.Generator().manual_seed(3))
    assert stats.kstest(drawn.double().numpy(), ref.RefNoise(name, 2.5).cdf).pvalue > 1e-6


# -------------------------------------------------------------------------- laws of the user's


class Laplace(Noise):
    """A right one: f = exp(-|a|)/2. It counts how often it is asked for F."""

    asked = 0

    def _cdf(self, a: torch.Tensor) -> torch.Tensor:
        Laplace.asked += 1
        tail = torch.exp(-a.abs()) / 2
        return torch.where(a > 0, 1 - tail, tail)

    def _pdf(self, a: torch.Tensor) -> torch.Tensor:
        return torch.exp(-a.abs()) / 2

    def _icdf_lower(self, p: torch.Tensor) -> torch.Tensor:
        return torch.log(2 * p)


class WithoutQuantiles(Laplace):
    """All that straight-through needs."""

    def _icdf_lower(self, p: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Gumbel(Noise):
    """Known, and not symmetric: F = exp(-exp(-a))."""

    def _cdf(self, a: torch.Tensor) -> torch.Tensor:
        return torch.exp(-torch.exp(-a))

    def _pdf(self, a: torch.Tensor) -> torch.Tensor:
        return torch.exp(-a - torch.exp(-a))


class Shifted(Laplace):
    """Symmetric about 0.01 instead of 0."""

    def _cdf(self, a: torch.Tensor) -> torch.Tensor:
        return super()._cdf(a - 0.01)


class TwiceTheDensity(Laplace):
    def _pdf(self, a: torch.Tensor) -> torch.Tensor:
        return 2 * super()._pdf(a)


class DensityOfOneSide(Laplace):
    def _pdf(self, a: torch.Tensor) -> torch.Tensor:
        return torch.where(a > 0, 2.0, 0.0) * super()._pdf(a)


class WrongQuantiles(Laplace):
    def _icdf_lower(self, p: torch.Tensor) -> torch.Tensor:
        return torch.log(p)


class OfLogistic(sbnlib.Logistic):
    """A subclass of one of ours is not one of ours."""

    def _cdf(self, a: torch.Tensor) -> torch.Tensor:
        return super()._cdf(a) ** 2


WRONG = {
    Gumbel: "symmetric",
    Shifted: "symmetric",
    OfLogistic: "symmetric",
    TwiceTheDensity: "given with its density",
    DensityOfOneSide: "given with its density",
    WrongQuantiles: "given with its quantiles",
}
A = torch.zeros(3)


@pytest.mark.parametrize("law", WRONG, ids=lambda law: law.__name__)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 20.0])
def test_a_law_that_is_none_is_refused_wherever_it_enters(law: type[Noise], scale: float) -> None:
    for enter in (
        lambda n: sbnlib.sample_sign(A, n),
        lambda n: sbnlib.straight_through(A, A, n),
        lambda n: sbnlib.reinforce(lambda x: x.sum(-1), A, n),
        lambda n: sbnlib.nn.Sign(n),
        lambda n: sbnlib.SBN(torch.nn.Linear(2, 2), noise=n),
        lambda n: sbnlib.nn.BernoulliLinear(2, 2, noise=n),
    ):
        with pytest.raises(ValueError, match=rf"noise must be {WRONG[law]}.*; {law.__name__}\("):
            enter(law(scale))


@pytest.mark.parametrize("law", [Laplace, WithoutQuantiles])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 20.0])
def test_a_law_of_the_users_is_tried_once(law: type[Noise], scale: float) -> None:
    noise, before = law(scale), torch.random.get_rng_state()
    sbnlib.straight_through(A, A.sign(), noise)
    assert torch.equal(torch.random.get_rng_state(), before)
    tried = Laplace.asked
    for _ in range(3):
        sbnlib.straight_through(A, A.sign(), noise)
    assert Laplace.asked == tried
    assert set(sbnlib.sample_sign(torch.randn(200), noise).tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("scale", [1.0, 0.3, 7.0])
def test_every_law_of_ours_passes_as_one_of_the_users(name: str, scale: float) -> None:
    mine = type(f"Mine{name}", (NOISES[name],), {})(scale)
    assert sbnlib.noise.as_noise(mine) is mine and mine._tried
    assert not make_noise(name)._tried  # ours are not tried: they have tests


def test_a_law_that_forbids_assignment_is_tried_too() -> None:
    @dataclasses.dataclass(frozen=True, eq=False)
    class Frozen(Laplace):
        scale: float = 1.0

    assert sbnlib.noise.as_noise(Frozen())._tried


def test_bad_generators_are_refused() -> None:
    noise = make_noise("Logistic")
    for bad in (3, "cpu", torch.Generator):
        with pytest.raises(TypeError, match="generator must be a torch.Generator or None, got"):
            noise.sample((2,), generator=bad)


class OnAnotherDevice(torch.Generator):
    device = torch.device("cuda")


def test_a_generator_on_another_device_is_refused() -> None:
    noise, elsewhere = make_noise("Logistic"), OnAnotherDevice()
    for draw in (
        lambda: noise.sample((2,), generator=elsewhere),
        lambda: sbnlib.sample_sign(A, noise, generator=elsewhere),
        lambda: sbnlib.concrete(A, noise, tau=0.5, generator=elsewhere),
        lambda: sbnlib.st_gumbel(A, A.sign(), noise, tau=0.5, generator=elsewhere),
        lambda: sbnlib.rebar(lambda x: x.sum(-1), A, noise, generator=elsewhere),
    ):
        with pytest.raises(ValueError, match="generator must be on cpu.* got one on cuda"):
            draw()


class Steep(sbnlib.Logistic):
    """A law with a parameter of its own."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.steepness = steepness

    def _cdf(self, a: torch.Tensor) -> torch.Tensor:
        return super()._cdf(self.steepness * a)

    def _pdf(self, a: torch.Tensor) -> torch.Tensor:
        return self.steepness * super()._pdf(self.steepness * a)

    def _icdf(self, p: torch.Tensor) -> torch.Tensor:
        return super()._icdf(p) / self.steepness


def test_laws_are_one_law_with_all_their_parameters_only() -> None:
    as_noise(Steep(2.0))  # tried, which is no parameter
    assert Steep(2.0) == as_noise(Steep(2.0)) != Steep(3.0)
    assert Steep(1.0) != sbnlib.Logistic() and hash(Steep(2.0)) == hash(Steep(2.0))
    layers = [sbnlib.nn.BernoulliLinear(2, 2, noise=Steep(s)) for s in (2.0, 3.0)]
    with pytest.raises(RuntimeError, match="steepness=3.0.*steepness=2.0"):
        layers[1].load_state_dict(layers[0].state_dict())
    with pytest.raises(ValueError, match="one optimizer for each|one for each|law"):
        sbnlib.optim.MirrorDescent([layer.eta for layer in layers], 1.0)


def test_what_a_law_of_the_users_lacks_is_named() -> None:
    class Bare(Noise):
        def _cdf(self, a: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(a)

    with pytest.raises(NotImplementedError, match="Bare must define _pdf, the density"):
        Bare().pdf(torch.zeros(1))
    with pytest.raises(NotImplementedError, match="Bare must define _icdf_lower, the quantiles"):
        Bare().icdf(torch.full((1,), 0.3))


def test_two_laws_of_one_name_are_two_laws() -> None:
    other = type("Logistic", (sbnlib.Gaussian,), {})()
    assert other.law == sbnlib.Logistic().law and other != sbnlib.Logistic()
    assert sbnlib.Logistic() != "Logistic(scale=1.0)"


class Tabled(sbnlib.Logistic):
    """A law with a table for parameter, and with something computed from it once."""

    def __init__(self, table: object) -> None:
        super().__init__()
        self.table = table

    @functools.cached_property
    def total(self) -> float:
        return float(self.table.sum())


@pytest.mark.parametrize("of", [torch.from_numpy, np.asarray], ids=["tensor", "array"])
def test_tables_are_compared_to_the_last_digit_and_entry(of: Callable) -> None:
    numbers = np.linspace(0, 1, 2000)
    for at, change in ((0, 1e-9), (1000, 1.0)):  # a repr rounds the one and leaves the other out
        others = numbers.copy()
        others[at] += change
        assert Tabled(of(numbers)) == Tabled(of(numbers.copy())) != Tabled(of(others))


def test_what_a_law_computes_once_is_no_parameter() -> None:
    fresh, used = Tabled(np.ones(2)), Tabled(np.ones(2))
    assert used.total == 2 and "total" in vars(used) and used == fresh
    layers = [sbnlib.nn.BernoulliLinear(2, 2, noise=law) for law in (fresh, used)]
    layers[0].load_state_dict(layers[1].state_dict())


# ---------------------------------------------------------------------- the scale of a given gain


def gain_by_scipy(noise: ref.RefNoise) -> float:
    """E (2f(a))^2, a ~ N(0, 1)."""
    inner = noise.scale * 4.0 ** np.arange(-4, 6)
    stops = sorted(s for s in {0.0, *inner, *range(1, 13), noise.half_width} if s <= 12)
    return 2 * sum(
        integrate.quad(lambda a: 4 * float(noise.pdf(a)) ** 2 * stats.norm.pdf(a), lo, hi,
                       epsabs=1e-16, epsrel=1e-12)[0]
        for lo, hi in zip(stops[:-1], stops[1:], strict=True)
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:noise .* has the overlap:UserWarning")
@pytest.mark.parametrize("gain", [0.02, 1.0, 40.0])
@names
def test_a_law_is_scaled_to_the_gain_asked_for(name: str, gain: float) -> None:
    noise = make_noise(name, 7.0)
    found = noise.scaled_to(gain=gain)
    assert type(found) is type(noise) and noise.scale == 7.0
    assert gain_by_scipy(ref.RefNoise(name, found.scale)) == pytest.approx(gain, rel=1e-10)
    assert found.scale == pytest.approx(
        make_noise(name, 1e-3).scaled_to(gain=gain).scale, rel=1e-12
    )
    if gain == 1:
        assert noise.scaled_to() == found


#: (E 2f)^2 at gain 1.
OVERLAPS = ref.Named(
    "noise",
    {"Logistic": 0.528, "Uniform": 0.536, "Triangular": 0.542, "Gaussian": 0.537, "Cauchy": 0.438,
     "FastSigmoid": 0.394},
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1.0, 3.0])
@names
def test_a_law_that_keeps_little_overlap_is_scaled_with_a_warning(name: str, gain: float) -> None:
    """The number is that at gain 1, whatever gain is asked for; the caller's line is named."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_noise(name).scaled_to(gain=gain)
    messages = [str(w.message) for w in caught]
    assert len(messages) == (OVERLAPS[name] < 0.5)
    for w in caught:
        assert w.category is UserWarning and w.filename == __file__
        assert f"noise {name} has the overlap (E 2f)^2 = {OVERLAPS[name]} at gain 1" in messages[0]
        assert "no law keeps more than 0.5445" in messages[0]
        keep = messages[0].partition("sooner. ")[2].partition(" keep 0.53 to 0.54")[0]
        assert set(keep.replace(" and ", ", ").split(", ")) == {
            law for law, kept in OVERLAPS.items() if 0.525 <= kept <= 0.545
        }


@names
def test_a_gain_that_no_network_has_is_refused(name: str) -> None:
    for gain in (0, -1.0, math.nan, math.inf, True, "1", None, 1e-7, 1e7, torch.tensor(1.0)):
        with pytest.raises(ValueError, match="gain must be a number from 1e-6 to 1e6, got"):
            make_noise(name).scaled_to(gain=gain)


class Steeper(Tabled):
    """A law with two parameters of its own, and something computed from its scale once."""

    @functools.cached_property
    def double(self) -> float:
        return 2 * self.scale


def test_the_parameters_of_a_law_of_the_users_are_kept() -> None:
    noise = Steeper(np.ones(2))
    assert (noise.double, noise.total, as_noise(noise)._tried) == (2.0, 2.0, True)
    found = noise.scaled_to()
    assert type(found) is Steeper and found.table is noise.table
    assert vars(found) == {"table": noise.table, "scale": found.scale}
    assert found.double == 2 * found.scale and found.scale == pytest.approx(0.2555, abs=5e-5)
    assert (noise.double, noise.scale) == (2.0, 1.0)


@pytest.mark.slow
def test_a_law_steeper_in_itself_gets_the_wider_scale() -> None:
    scale = sbnlib.Logistic().scaled_to().scale
    assert Steep(40.0).scaled_to().scale == pytest.approx(40 * scale, rel=1e-11)
    assert Laplace(3.0).scaled_to() == Laplace().scaled_to()


def test_a_law_that_forbids_assignment_is_scaled_too() -> None:
    @dataclasses.dataclass(frozen=True, eq=False)
    class Frozen(Laplace):
        scale: float = 1.0

    assert Frozen(2.0).scaled_to().scale == pytest.approx(Laplace().scaled_to().scale, rel=1e-12)


class Spiked(Noise):
    """f = 0.2 (1 - |a|)^(-0.6) on (-1, 1): not square integrable."""

    def _cdf(self, a: torch.Tensor) -> torch.Tensor:
        tail = torch.relu(1 - a.abs()) ** 0.4 / 2
        return torch.where(a > 0, 1 - tail, tail)

    def _pdf(self, a: torch.Tensor) -> torch.Tensor:
        rest = torch.relu(1 - a.abs())
        return 0.2 * rest.where(rest > 0, math.inf) ** -0.6


def test_a_law_with_an_infinite_gain_is_refused_and_so_is_what_is_no_law() -> None:
    for scale in (1e-3, 1.0, 1e3):
        with pytest.raises(ValueError, match=r"gain must be finite .*Spiked.*square integrable"):
            Spiked(scale).scaled_to()
    with pytest.raises(ValueError, match="noise must be symmetric"):
        Shifted().scaled_to()


def test_a_law_whose_scale_is_not_its_own_is_refused() -> None:
    class Fixed(Laplace):
        scale = property(lambda self: 1.0, lambda self, value: None)

    with pytest.raises(ValueError, match=r"gain must be one of Fixed\(scale=1\) at a scale from"):
        Fixed().scaled_to(gain=3.0)


@names
def test_points_that_would_be_rounded_are_refused(name: str) -> None:
    noise = NOISES[name]()
    for points, got in ((torch.tensor([0, 1]), "torch.int64"), (0.5, "float"), (None, "NoneType")):
        for function in ("cdf", "tail", "pdf", "icdf"):
            letter = "p" if function == "icdf" else "a"
            words = f"{letter} must be a floating-point tensor, got {got}"
            with pytest.raises(TypeError, match=words):
                getattr(noise, function)(points)
    with pytest.raises(TypeError, match="dtype must be a floating-point one, got torch.int64"):
        noise.sample((3,), dtype=torch.int64)
    with pytest.raises(ValueError, match="scale must be a number .* got True"):
        NOISES[name](True)


@pytest.mark.parametrize(("scale", "dtype"), [(1e37, torch.float32), (1e6, torch.float16)])
@names
def test_samples_are_finite_in_every_dtype(name: str, scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = NOISES[name](scale).sample((20_000,), generator=generator, dtype=dtype)
    assert draws.dtype == dtype and draws.isfinite().all()
