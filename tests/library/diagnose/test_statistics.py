"""How sure the doctor's numbers are: false alarms, power, errors of scales, integrals, cosines.

References are closed forms, quadratures and enumerations in numpy and scipy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from probes import PROBES, surrogate
from problems_by_hand import inputs, ref_loss, ref_net
from reports import report_of
from scipy import integrate, special, stats
from torch import Tensor

from sbnlib import diagnose_unit
from sbnlib.diagnose import cosines, doctor

Array = np.ndarray
Unit = Callable[[Tensor], Tensor]

#: F at scale 1, in torch; closed forms of their own, held to the reference below.
CDFS: dict[str, Unit] = {
    "Logistic": torch.sigmoid,
    "Uniform": lambda a: ((1 + a) / 2).clamp(0, 1),
    "Triangular": lambda a: torch.where(
        a < 0, (1 + a.clamp(-1, 0)).square() / 2, 1 - (1 - a.clamp(0, 1)).square() / 2
    ),
    "Gaussian": torch.special.ndtr,
    "Cauchy": lambda a: 0.5 + torch.atan(a) / math.pi,
    "FastSigmoid": lambda a: 0.5 + 0.5 * a / (1 + a.abs()),
}


def test_the_laws_of_these_units_are_the_references() -> None:
    a = torch.cat([torch.linspace(-5, 5, 301), torch.tensor([-1.0, 0.0, 1.0])]).double()
    assert CDFS.keys() == ref.LAWS.keys()
    for name, cdf in CDFS.items():
        assert np.allclose(cdf(a).numpy(), ref.RefNoise(name).cdf(a.numpy()), atol=1e-14), name


def drawn_from(p: Unit, slope_of: Unit, low: float = -1.0) -> Unit:
    """A unit with P(x = 1) = p(a), and the slope of another function of a."""

    def unit(a: Tensor) -> Tensor:
        p_up = p(a.detach())
        x = torch.where(torch.rand_like(p_up) < p_up, 1.0, low).to(a.dtype)
        m = slope_of(a)
        return x + (m - m.detach())

    return unit


def sign_with(slope_of: Unit) -> Unit:
    return lambda a: torch.where(a >= 0, 1.0, -1.0).to(a) + (slope_of(a) - slope_of(a).detach())


def with_stream(unit: Unit, k: int) -> Unit:
    """The unit with draws of its own: the examination seeds torch, this seeds it anew."""

    def seeded(a: Tensor) -> Tensor:
        torch.manual_seed((torch.initial_seed() * 1_000_003 + k) % 2**63)
        return unit(a)

    return seeded


@pytest.fixture
def no_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of an examination's time goes into the networks, which are no matter here."""
    monkeypatch.setattr(doctor, "cosines", lambda _: None)


# -------------------------------------------------------------------------------- false alarms


def centred(name: str) -> Unit:
    return lambda a: 2 * CDFS[name](a) - 1


RIGHT: dict[str, tuple[Unit, str]] = {
    "logistic": (drawn_from(CDFS["Logistic"], centred("Logistic")), "Logistic"),
    "uniform": (drawn_from(CDFS["Uniform"], centred("Uniform")), "Uniform"),
    "Gaussian": (drawn_from(CDFS["Gaussian"], centred("Gaussian")), "Gaussian"),
    "bit": (drawn_from(CDFS["Logistic"], CDFS["Logistic"], low=0.0), "Logistic"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_cosines")
def test_right_units_are_not_accused() -> None:
    """200 right units, no finding.

    Each has 21 scores, which are normal for 20 000 draws: P(max > 5) = 21 (5.7e-7) = 1.2e-5, which
    is the rate that the docstring states; of 200, one accusation in 400 such tests. The largest
    scores are held to the law of the largest of 21 normal ones by Kolmogorov and Smirnov, which
    fails for a right examination once in 10 000 tests. Seeds are fixed.
    """
    largest, words = [], (doctor.diagnose_unit.__doc__ or "")
    for unit, law in RIGHT.values():
        for k in range(50):
            report = diagnose_unit(with_stream(unit, k))
            assert report.codes == {"samples-in-eval"}, (law, k)
            assert type(report.noise).__name__ == law and report.noise.scale == 1.0
            assert report.threshold == 0.0
            largest.append(report.examination.z)
    of_21 = stats.kstest(largest, lambda z: (2 * special.ndtr(z) - 1) ** 21)
    assert of_21.pvalue > 1e-4, of_21
    rate = 21 * 2 * special.ndtr(-5.0)
    assert "once in :math:`10^5` reports" in words and 0.5 < rate / 1e-5 < 2


# ---------------------------------------------------------------------------------------- power


def found_wrong(p: Unit, slope_of: Unit, times: int) -> float:
    """The share of so many examinations that say that the two laws differ."""
    unit = drawn_from(p, slope_of)
    reports = [diagnose_unit(with_stream(unit, k)) for k in range(times)]
    for report in reports:
        assert ("law" in report.codes) == (report.noise is None) == bool(report.why)
    return sum("law" in report.codes for report in reports) / times


def wider(law: str, by: float) -> Unit:
    return lambda a: CDFS[law](a / by)


def power(law: str, by: float) -> float:
    """P(largest score > 5) at 21 even points from F = 0.03 to 0.97, by simulation in numpy."""
    a = np.linspace(*(ref.RefNoise(law, by).icdf(p) for p in (0.03, 0.97)), 21)
    truth, claimed = ref.RefNoise(law, by).cdf(a), ref.RefNoise(law).cdf(a)
    share = np.random.default_rng(0).binomial(20_000, truth, (4000, 21)) / 20_000
    wide = np.maximum(share * (1 - share), claimed * (1 - claimed)) / 20_000
    return float((np.abs(share - claimed) / np.sqrt(wide) > 5).any(1).mean())


@pytest.mark.slow
@pytest.mark.usefixtures("no_cosines")
@pytest.mark.parametrize(
    ("by", "least", "most"),
    # Caught in 1.00, 0.97, 0.53, 0.02 of such reports
    [(1.1, 1.0, 1.0), (1.05, 0.75, 1.0), (1.04, 0.2, 0.9), (1.02, 0.0, 0.2)],
)
def test_a_wider_logistic_noise_is_told_apart(by: float, least: float, most: float) -> None:
    """20 reports each; at these rates a right count leaves the interval once in 500 at the most."""
    rate = power("Logistic", by)
    assert stats.binom.cdf(round(20 * least) - 1, 20, rate) < 2e-3
    assert stats.binom.sf(round(20 * most), 20, rate) < 2e-3
    assert least <= found_wrong(wider("Logistic", by), centred("Logistic"), 20) <= most


def test_what_the_docstring_says_is_told_apart() -> None:
    """5 % in a logistic scale: in 29 of 30 reports, so that "told apart" may stand."""
    assert "logistic noise is told apart from one 5 % wider" in (doctor.diagnose_unit.__doc__ or "")
    assert 0.94 < power("Logistic", 1.05) < 0.99
    assert power("Logistic", 1.07) > 0.999
    assert power("Logistic", 1.03) < 0.2
    assert power("Cauchy", 1.05) < 0.05  # nor is it said of others


@pytest.mark.slow
@pytest.mark.usefixtures("no_cosines")
def test_the_gaussian_that_is_nearest_to_the_logistic_is_told_apart() -> None:
    """At scale 1.7 the two differ by 0.0095 at the most: 5.6 standard errors at one of 21 points,
    and nearly so at several. Ten reports; that one of them fails is a matter of 2 %."""
    assert found_wrong(wider("Gaussian", 1.7), centred("Logistic"), 10) == 1.0


# --------------------------------------------------------------------------------------- scales

SCALES = (0.1, 1.0, 7.0, 0.137, 23.7)


@pytest.mark.slow
@pytest.mark.usefixtures("no_cosines")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("law", CDFS)
def test_scales_of_slopes_are_recovered(law: str, scale: float) -> None:
    """To a fifth of a percent, from the slope of a unit that draws nothing."""
    report = diagnose_unit(sign_with(lambda a: centred(law)(a / scale)))
    assert type(report.slope_noise).__name__ == law
    assert report.scale == report.slope_noise.scale == pytest.approx(scale, rel=2e-3)
    assert report.codes == {"deterministic"}
    assert report.integral == pytest.approx(2.0, rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("no_cosines")
@pytest.mark.parametrize("scale", [0.5, 1.0, 7.0])
@pytest.mark.parametrize("law", CDFS)
def test_scales_of_drawn_states_are_recovered(law: str, scale: float) -> None:
    """From the states alone, where the slope is a third as steep as theirs.

    The error of a scale from 21 frequencies of 20 000 draws is 0.71 % or less (below); 4 % is five
    of these, and rounding within three.
    """
    unit = drawn_from(wider(law, scale), lambda a: centred("Logistic")(a / 3 / scale))
    report = diagnose_unit(with_stream(unit, 5))
    assert {"law", "samples-in-eval"} == report.codes
    assert type(report.forward_noise).__name__ == law
    assert report.forward_noise.scale == pytest.approx(scale, rel=0.04)
    assert report.slope_noise.scale == pytest.approx(3 * scale, rel=2e-3)


@pytest.mark.parametrize("law", CDFS)
def test_the_standard_error_of_a_scale(law: str) -> None:
    """By Fisher's information, that of log s is below 0.71 %: dF/d log s = -a f(a)."""
    its = ref.RefNoise(law)
    a = np.linspace(its.icdf(0.03), its.icdf(0.97), 21)
    p = its.cdf(a)
    information = 20_000 * np.sum((a * its.pdf(a)) ** 2 / (p * (1 - p)))
    assert 1 / math.sqrt(information) < 7.1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("no_cosines")
@pytest.mark.parametrize(("scale", "centre"), [(0.1, 0.0), (0.01, 0.0), (0.01, 0.737)])
@pytest.mark.parametrize("law", ["Logistic", "Uniform", "Gaussian"])
def test_narrow_noise_is_seen(law: str, scale: float, centre: float) -> None:
    """Whatever the stream, and wherever the noise is."""
    unit = drawn_from(
        lambda a: CDFS[law]((a - centre) / scale), lambda a: centred(law)((a - centre) / scale)
    )
    for k in range(12):
        report = diagnose_unit(with_stream(unit, k))
        assert report.codes == {"samples-in-eval"}, k
        assert type(report.noise).__name__ == law
        assert report.noise.scale == pytest.approx(scale, rel=2e-3)


# ------------------------------------------------------------------------------------ integrals


def integral(h: Callable[[float], float], kinks: tuple[float, ...]) -> float:
    inner = sorted({*kinks, *(s * 10.0**k for s in (-1, 1) for k in range(-3, 3))})
    return sum(
        integrate.quad(h, *pair, limit=300)[0]
        for pair in itertools.pairwise([-math.inf, *inner, math.inf])
    )


FINITE = [
    p.name for p in PROBES.values()
    if p.h and p.expected.get("slope") == "of a" and math.isfinite(p.expected.get("integral", 1e9))
    and p.expected.get("integral") and not p.is_refused()
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FINITE)
def test_integrals_of_probes(name: str) -> None:
    """To a thousandth; a pole that is integrable, |a|^(-2/3), keeps a third of that below 1e-10."""
    probe, report = PROBES[name], report_of(name)
    total = integral(lambda a: float(probe.h(np.array(a))), probe.kinks)
    assert report.integral == pytest.approx(total, rel=1e-3)


@pytest.mark.usefixtures("no_cosines")
@pytest.mark.parametrize("at", [0.123456, 0.5, 1.7, 40.0])
def test_integrals_over_jumps(at: float) -> None:
    """Boxes whose edges lie between the points that are asked."""
    fire = surrogate(lambda a: (a.abs() < at).to(a) + 0.3 * ((a > 2 * at) & (a < 5.1 * at)))
    assert diagnose_unit(fire).integral == pytest.approx(2.93 * at, rel=1e-4)


@pytest.mark.usefixtures("no_cosines")
@pytest.mark.parametrize("power", [-0.5, -0.9, -1.0])
@pytest.mark.parametrize("knee", [0.1, 1.0])
def test_tails_that_are_not_integrable(power: float, knee: float) -> None:
    report = diagnose_unit(surrogate(lambda a: (knee + a.abs()) ** power))
    assert report.integral == report.mismatch == math.inf
    assert report.codes == {"deterministic", "infinite"}
    assert report.slope_noise is report.noise is None


@pytest.mark.usefixtures("no_cosines")
@pytest.mark.parametrize("power", [-1.3, -1.5, -2.0])
@pytest.mark.parametrize("knee", [0.1, 1.0, 30.0])
def test_tails_that_are(power: float, knee: float) -> None:
    """2 knee^(p + 1)/(-p - 1): beyond 1e5 lie 3 to 9 % of it at p = -1.3, which are added."""
    report = diagnose_unit(surrogate(lambda a: (knee + a.abs()) ** power))
    assert report.integral == pytest.approx(2 * knee ** (power + 1) / (-power - 1), rel=3e-3)
    assert "infinite" not in report.codes


# ----------------------------------------------------------------------------------------- gain


def gain(h: Callable[[float], float], kinks: tuple[float, ...]) -> float:
    edges = sorted({-12.0, *(s * k for s in (-1, 1) for k in (0.03, 0.3, 3.0)), *kinks, 12.0})
    edges = [a for a in edges if abs(a) <= 12]
    return sum(
        integrate.quad(lambda a: h(a) ** 2 * math.exp(-a * a / 2) / math.sqrt(2 * math.pi), *pair,
                       limit=300)[0]
        for pair in itertools.pairwise(edges)
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("no_cosines")
@pytest.mark.parametrize("law", CDFS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_gain_of_the_six_laws(law: str, scale: float) -> None:
    """E (2f)^2 for -1 and 1; the same for bits, whose slope is f."""
    its = ref.RefNoise(law, scale)
    kinks = (0.0, -its.half_width, its.half_width) if its.half_width < 13 else (0.0,)
    wanted = gain(lambda a: 2 * float(its.pdf(a)), kinks)
    for unit in (
        sign_with(lambda a: centred(law)(a / scale)),
        lambda a: (a > 0).to(a) + (CDFS[law](a / scale) - CDFS[law](a / scale).detach()),
    ):
        assert diagnose_unit(unit).gain == pytest.approx(wanted, rel=3e-3)


@pytest.mark.usefixtures("no_cosines")
def test_gain_away_from_0_and_of_other_distances() -> None:
    """States 0 and 3, slope 3f of a box about 1.5, and jumps that lie between points."""

    def unit(a: Tensor) -> Tensor:
        m = 3 * ((a - 1.5) / 0.7).clamp(-1, 1) / 2
        return 3 * (a >= 1.5).to(a) + (m - m.detach())

    report = diagnose_unit(unit)
    inside = special.ndtr(2.2) - special.ndtr(0.8)
    assert report.gain == pytest.approx((2 / 3 * 3 / 2 / 0.7) ** 2 * inside, rel=1e-3)
    assert report.mismatch == pytest.approx(1.0, rel=1e-3)


@pytest.mark.usefixtures("no_cosines")
def test_gain_at_poles() -> None:
    """|a|^-0.3 is square integrable, |a|^-0.5 is not, nor |a|^(-2/3)."""

    def pole(p: float) -> Any:
        return diagnose_unit(surrogate(lambda a: a.abs() ** p * (a.abs() < 1)))

    wanted = 4 * 2 * integrate.quad(lambda a: a**-0.6 * stats.norm.pdf(a), 0, 1)[0]
    assert pole(-0.3).gain == pytest.approx(wanted, rel=3e-3)
    assert pole(-0.5).gain == math.inf
    assert report_of("reste").gain == math.inf
    assert pole(-0.3).codes == {"deterministic", "pole", "factor"}


@pytest.mark.usefixtures("no_cosines")
def test_gain_over_data() -> None:
    """Of bits the square is that of twice the slope; a mean over all entries."""
    data = torch.tensor([[0.0, 1.0], [-2.0, 0.5]], dtype=torch.float64)
    report = diagnose_unit(lambda a: (a > 0).to(a) + (torch.sigmoid(a) - torch.sigmoid(a).detach()),
                           data=data)  # fmt: skip
    p = special.expit(data.numpy())
    assert report.gain == pytest.approx(np.mean((2 * p * (1 - p)) ** 2), rel=1e-9)


# -------------------------------------------------------------------------------------- cosines


def cosine(
    about: str,
    h: Callable[[Array], Array],
    up: Callable[[Array], Array],
    noise: ref.RefNoise,
    threshold: float,
    stretch: float,
    wide: float,
) -> float:
    """Of the chain-rule gradient with h in the place of 2f to the exact one, by whole paths.

    The states are drawn by ``up`` at threshold + stretch a, of which a slope h counts
    2 stretch/wide; the exact gradient is that for ``noise``.
    """
    name = f"{about}-2x5-logistic-1"
    net, v, loss = ref_net(name), inputs(name), ref_loss(name)
    exact = ref.gradient(ref.RefNet(net.weights, net.biases, noise), v, loss)
    xs, found = ref.paths(net.widths), dict.fromkeys(exact, 0.0)
    for b, row in enumerate(v):
        points = [threshold + stretch * a for a in ref.pre_activations(net, row, xs)]
        p = np.prod([np.where(x > 0, up(t), 1 - up(t)).prod(1)
                     for x, t in zip(xs, points, strict=True)], axis=0)  # fmt: skip
        upstream = np.array(loss.gradient(xs[-1], b), float)
        below = [np.broadcast_to(row, (len(p), len(row))), xs[0]]
        for k in (1, 0):
            delta = upstream * h(points[k]) * 2 * stretch / wide
            upstream = delta @ net.weights[k]
            found[k, "weight"] = found[k, "weight"] + np.einsum("n,ni,nj", p, delta, below[k])
            found[k, "bias"] = found[k, "bias"] + p @ delta
    g, m = (np.concatenate([of[key].ravel() for key in exact]) for of in (exact, found))
    return float(g @ m / math.sqrt((g @ g) * (m @ m)))


def compare(report: Any, loose: float, **given: Any) -> None:
    assert report.cosine.keys() == {"digits", "xor", "smooth"}
    for about, found in report.cosine.items():
        assert found == pytest.approx(cosine(about, **given), abs=loose), about


def step(a: Array) -> Array:
    return (a > 0).astype(float)


LOG3 = math.log(3)  # the upper quartile of the problems' own noise


def test_noise_does_not_turn_a_mean_away() -> None:
    """16 gradients about (3, 4, 0 ...) of 200, whose mean has half of its length squared as noise.

    Its cosine to the first axis would be 0.6/sqrt(1.5) = 0.49, that of what it estimates is 0.6.
    """
    stream = torch.Generator().manual_seed(0)
    mean, axis = torch.zeros(2, 200, dtype=torch.float64)
    mean[:2], axis[0] = torch.tensor([3.0, 4.0]), 2.0
    spread = math.sqrt(0.5 * 25 * 16 / 200)
    found = []
    for _ in range(200):
        noise = spread * torch.randn(16, 200, generator=stream, dtype=torch.float64)
        found.append(cosines._angle(mean + noise, axis))
    assert np.mean(found) == pytest.approx(0.6, abs=0.02)


def test_cosines_of_a_sign_with_the_slope_of_hardtanh() -> None:
    """Its law is uniform with quartile 1/2: pre-activations are stretched by 0.455."""
    stretch = 0.5 / LOG3
    compare(report_of("hardtanh"), 2e-3, h=PROBES["hardtanh"].h, up=step, threshold=0.0,
            stretch=stretch, wide=2.0, noise=ref.RefNoise("Uniform", 1 / stretch))  # fmt: skip


def test_cosines_of_a_unit_that_falls() -> None:
    """Upper is the state to the right, -1, towards which the slope has the wrong sign."""
    stretch = 0.5 / LOG3
    compare(report_of("comparison-flipped"), 2e-3, h=PROBES["hardtanh"].h, up=step, threshold=0.0,
            stretch=stretch, wide=-2.0, noise=ref.RefNoise("Uniform", 1 / stretch))  # fmt: skip


def test_cosines_of_a_spike_about_0() -> None:
    """0 and 1, Cauchy of scale 1/pi, whose quartile is that."""
    stretch = 1 / math.pi / LOG3
    compare(report_of("arctan-2"), 2e-3, h=PROBES["arctan-2"].h, up=step, threshold=0.0,
            stretch=stretch, wide=1.0, noise=ref.RefNoise("Cauchy", LOG3))  # fmt: skip


def test_cosines_of_a_sign_about_a_half() -> None:
    stretch = 0.5 / LOG3
    compare(report_of("slope-left-at-0"), 2e-3, h=PROBES["slope-left-at-0"].h,
            up=lambda a: step(a - 0.5), threshold=0.5, stretch=stretch, wide=2.0,
            noise=ref.RefNoise("Uniform", 1 / stretch))  # fmt: skip


def test_cosines_of_a_slope_that_is_no_law_of_the_six() -> None:
    """Laplace's, with the quartile log 2; the exact gradient is that of the problems' own noise."""
    compare(report_of("exponential"), 2e-3, h=PROBES["exponential"].h, up=step, threshold=0.0,
            stretch=math.log(2) / LOG3, wide=1.0, noise=ref.RefNoise("Logistic"))  # fmt: skip


def test_cosines_of_a_slope_without_an_integral() -> None:
    """There is no quartile, and so no stretch."""
    compare(report_of("identity-function"), 2e-3, h=np.ones_like, up=step, threshold=0.0,
            stretch=1.0, wide=1.0, noise=ref.RefNoise("Logistic"))  # fmt: skip


def bit_about_a_half(slope_scale: float, law: str) -> Unit:
    return drawn_from(
        lambda a: torch.sigmoid((a - 0.5) / 0.3), lambda a: CDFS[law]((a - 0.5) / slope_scale), 0.0
    )


def test_cosines_of_a_bit_with_a_threshold_and_a_scale() -> None:
    """F((a - 0.5)/0.3) is stretched to the problems' own noise."""
    compare(diagnose_unit(bit_about_a_half(0.3, "Logistic")), 5e-3,
            h=lambda a: ref.RefNoise("Logistic", 0.3).pdf(a - 0.5),
            up=lambda a: special.expit((a - 0.5) / 0.3), threshold=0.5, stretch=0.3, wide=1.0,
            noise=ref.RefNoise("Logistic"))  # fmt: skip


def test_cosines_of_a_bit_with_another_slope() -> None:
    """The law is that of the states, 0.3 wide about 0.5, not that of the slope, a box of 0.4."""
    report = diagnose_unit(bit_about_a_half(0.4, "Uniform"))
    assert type(report.forward_noise).__name__ == "Logistic" and "law" in report.codes
    compare(report, 0.015, h=lambda a: ref.RefNoise("Uniform", 0.4).pdf(a - 0.5),
            up=lambda a: special.expit((a - 0.5) / 0.3), threshold=0.5, stretch=0.3, wide=1.0,
            noise=ref.RefNoise("Logistic"))  # fmt: skip


def test_cosines_of_drawn_states_that_are_of_no_law_of_the_six() -> None:
    """1 - exp(-exp(a)): the median is log log 2, the quartiles log log 4/3 and log log 4."""
    p = PROBES["escape-rate"]
    low, middle, high = (math.log(math.log(1 / (1 - q))) for q in (0.25, 0.5, 0.75))
    compare(report_of("escape-rate"), 0.01, h=p.h, up=p.up, threshold=middle,
            stretch=(high - low) / 2 / LOG3, wide=1.0, noise=ref.RefNoise("Logistic"))  # fmt: skip
