"""Chapter 22, a practitioner's guide: its rules by a second way, each fault of its gallery found
and cured, the rows of the porting tables from the formulas they print, every number that is said.

Expected values are quadrature, enumeration and numpy; sbnlib appears only where a function of
sbnlib, or one of the notebook, is what is tested.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from statistics import fmean
from typing import Any

import chapters
import numpy as np
import pytest
import torch
from chapters import (
    BOOK,
    as_in_the_book,
    axes,
    cells,
    chapter,
    containing,
    drawing,
    figures,
    lean,
    lines,
    lines_of,
    numbers,
    printed,
    prose,
    run,
    still,
    tagged,
    under,
)
from formulas import list_table
from pins import pin
from scipy import integrate, optimize, special, stats

import sbnlib
import sbnlib.map
from sbnlib.experiments import measurement

Array = np.ndarray
PATH = chapter(22)
says = partial(chapters.says, PATH)
QUESTIONS = (BOOK / "back" / "questions.md").read_text("utf-8")
PORTING = (BOOK / "back" / "porting.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


def wrong_codes(cell: Any) -> list[str]:
    """The codes of the faults that a cell prints."""
    return re.findall(r"^✗ ([\w-]+)", printed(cell), re.M)


# ------------------------------------------------------------------------------------- the laws

#: Distribution function and density at scale 1, by hand.
LAWS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "Triangular": (
        lambda a: np.where(a < 0, np.clip(1 + a, 0, 1) ** 2 / 2, 1 - np.clip(1 - a, 0, 1) ** 2 / 2),
        lambda a: np.clip(1 - abs(a), 0, None),
    ),
    "Gaussian": (stats.norm.cdf, stats.norm.pdf),
    "Uniform": (lambda a: np.clip((1 + a) / 2, 0, 1), lambda a: 0.5 * (abs(a) < 1)),
    "Logistic": (special.expit, lambda a: special.expit(a) * special.expit(-a)),
    "FastSigmoid": (lambda a: (1 + a / (1 + abs(a))) / 2, lambda a: 0.5 / (1 + abs(a)) ** 2),
    "Cauchy": (stats.cauchy.cdf, stats.cauchy.pdf),
}
SMOOTH = ("Gaussian", "Logistic", "Cauchy")


def over_normal(function: Callable[[Any], Any], end: float) -> float:
    """E function(a) over standard normal a, of an even function with a break at most at 0, end."""
    points = [0.0, *(v for v in (0.01, 0.1, 1.0, end) if v <= 9), 9.0]
    pieces = [
        integrate.quad(lambda a: stats.norm.pdf(a) * function(a), low, high, limit=300)[0]
        for low, high in itertools.pairwise(sorted(set(points)))
    ]
    return 2 * float(sum(pieces))


def gain(name: str, scale: float) -> float:
    return over_normal(lambda a: (2 * LAWS[name][1](a / scale) / scale) ** 2, scale)


@cache
def at_one(name: str) -> float:
    return float(optimize.brentq(lambda s: gain(name, s) - 1, 0.15, 1.5, xtol=1e-10))


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(180)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@cache
def course(name: str, scale: float, depth: int) -> tuple[list[float], list[float]]:
    """Overlaps and slopes of the map, by two-dimensional sums: at r, not by a series.

    For smooth laws the slope is a product of densities; else it is a difference quotient.
    """
    cdf = LAWS[name][0]
    z = np.linspace(-8.5, 8.5, 1001)
    w = np.exp(-(z**2) / 2)
    w = w / w.sum()

    def overlap(r: float) -> float:
        mean = lambda a: 2 * cdf(a / scale) - 1  # noqa: E731
        inner = mean(r * z[:, None] + math.sqrt(1 - r * r) * z) @ w
        return float(w @ (mean(z) * inner))

    r, slopes = [1.0], [gain(name, scale)]
    r.append(over_normal(lambda a: (2 * cdf(a / scale) - 1) ** 2, scale))
    for _ in range(depth - 1):
        at, step = r[-1], 1e-3
        slopes.append((overlap(at + step) - overlap(at - step)) / (2 * step))
        r.append(overlap(at))
    return r, slopes


def shares(name: str, scale: float, depth: int) -> list[float]:
    r, slopes = course(name, scale, depth)
    return [
        r[layer] * math.prod(s / slopes[0] for s in slopes[layer:depth]) for layer in range(depth)
    ]


# ----------------------------------------------------------------------------------- the rules


@pin("eq-22-factor", r"\int h(a)\,da=d .")
def test_eq_22_factor() -> None:
    """Straight-through collects the whole way of the mean, whatever the noise; half of it fails."""
    for cdf, pdf in LAWS.values():
        for d, low in ((2, -1), (1, 0)):
            mean = lambda a, d=d, low=low, cdf=cdf: low + d * cdf(a)  # noqa: E731
            slope = lambda a, d=d, pdf=pdf: d * pdf(a)  # noqa: E731
            for a in (-0.7, 0.3):
                step = (mean(a + 1e-6) - mean(a - 1e-6)) / 2e-6
                assert step == pytest.approx(slope(a), rel=1e-5)
            total = sum(
                integrate.quad(slope, *ends, limit=300)[0]
                for ends in ((-np.inf, -1), (-1, 0), (0, 1), (1, np.inf))
            )
            assert total == pytest.approx(d, rel=1e-7)
    half = containing(PATH, "def half_slope")
    assert wrong_codes(half) == ["factor"]
    says("With $r$ times this integral, and the shape of the right slope, the gradient of layer")


@pytest.mark.slow
@pin("eq-22-scale", r"\Gamma_{\mathrm{ST}}=\mathbb E\,[2f(a)]^2=1 .")
def test_eq_22_scale() -> None:
    for name in LAWS:
        law = getattr(sbnlib, name)().scaled_to(gain=1)
        assert law.scale == pytest.approx(at_one(name), rel=2e-6)


@pytest.mark.slow
@pin(
    "eq-22-share",
    r"q_l=r_{l-1}\prod_{k=l}^{K}\frac{\Omega'(r_{k-1})}{\Gamma_{\mathrm{ST}}},\qquad "
    r"r_k=\Omega(r_{k-1}),\quad r_0=1,",
)
@pytest.mark.parametrize(
    ("name", "relative", "depth"), [("Logistic", 1.0, 8), ("Gaussian", 0.5, 4), ("Cauchy", 2.0, 6)]
)
def test_eq_22_share(name: str, relative: float, depth: int) -> None:
    scale = relative * at_one(name)
    found = sbnlib.depth.shares(getattr(sbnlib, name)(scale), depth)
    assert found == pytest.approx(shares(name, scale, depth), rel=2e-4)


@pin("eq-22-draws", r"M=\frac{1-q_l}{q_l}")
def test_eq_22_draws() -> None:
    """The mean of M draws with the shared part q: |E g|^2 = q and Var / M = q there."""
    for q in (0.5, 0.0078):
        m = (1 - q) / q
        assert (1 - q) / m == pytest.approx(q)


@pytest.mark.slow
def test_the_table_of_noises() -> None:
    head, *said = lines_of(containing(PATH, "M at 8"))
    assert head.split()[-3:] == ["M", "at", "8"]
    assert [line.split()[0] for line in said] == list(
        ("Triangular", "Gaussian", "Uniform", "Logistic", "FastSigmoid", "Cauchy")
    )
    for line in said:
        name, scale, rate, four, eight, sixteen, m = line.split()
        assert float(scale) == pytest.approx(at_one(name), abs=6e-5)
        cdf, pdf = LAWS[name]
        s = at_one(name)
        assert float(rate) == pytest.approx(
            over_normal(lambda a, s=s, pdf=pdf: 2 * pdf(a / s) / s, s) ** 2, abs=6e-5
        )
        if name in SMOOTH:
            least = {K: min(shares(name, s, K)) for K in (4, 8)}
            assert [float(four), float(eight)] == pytest.approx(list(least.values()), abs=6e-5)
        assert float(m) == pytest.approx(1 / float(eight) - 1, rel=0.05)
        assert float(sixteen) < float(eight) < float(four)
    rates = {line.split()[0]: float(line.split()[2]) for line in said}
    best = sorted(rates, key=lambda n: -rates[n])
    assert set(best[4:]) == {"FastSigmoid", "Cauchy"} and rates[best[3]] - rates[best[4]] > 0.08
    assert max(rates.values()) < 0.5445
    says("Four noises of the six are close to each other; fast sigmoid and Cauchy lose depth")
    chapters.says(chapter(16), "are within 0.012 of each other")
    chapters.says(chapter(16), "uniform noise is ahead of logistic by 0.092 ± 0.027")
    chapters.says(chapter(16), "But with eight layers it is the best by 0.005 at most, and the "
                  "theory, whose best point is gain 1, does not explain it")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("relative", "depth"), [(1.0, 8), (2.0, 4)])
def test_fig_depth_figure(relative: float, depth: int) -> None:
    top, low = axes(PATH, "depth_figure", relative=relative, depth=depth)
    kinds = [k.__name__ for k in drawing(PATH, "depth_figure").__globals__["KINDS"]]
    for name in ("Gaussian", "Logistic", "Cauchy"):
        k, scale = kinds.index(name), relative * at_one(name)
        curve, point = lines(top)[2 * k : 2 * k + 2]
        for x, y in curve.T[:3]:
            assert y == pytest.approx(min(shares(name, scale, int(x))), rel=1e-3)
        assert point.T.tolist() == [
            [depth, pytest.approx(min(shares(name, scale, depth)), rel=1e-3)]
        ]
        assert lines(low)[k][1] == pytest.approx(shares(name, scale, depth), rel=1e-3)


@pytest.mark.slow
def test_fig_depth_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-22-depth"])["answer"])
    one = at_one("Logistic")
    for words, relative, layer in (("at gain 1", 1.0, 8), ("at twice", 2.0, 8), ("half", 0.5, 2)):
        found = shares("Logistic", relative * one, 8)
        assert f"{min(found):.2g}".replace("0.0003", "0.00030") in answer, words
        assert 1 + found.index(min(found)) == layer
    scales = (4.0, 2.8, 2.0, 1.4, 0.7, 0.5, 0.35)
    assert max(min(shares("Logistic", s * one, 8)) for s in scales) < min(
        shares("Logistic", one, 8)
    )
    assert "the worst layer is the last one" in answer and "at half of it the second" in answer


@pin(
    "eq-22-adam",
    r"\frac{\zeta}{s+\zeta}\le\tfrac1{100}\quad\Longleftrightarrow\quad s\ge99\,\zeta .",
)
def test_eq_22_adam() -> None:
    """The step of torch's Adam for a constant gradient, against that without its constant."""
    for ratio in (10.0, 98.0, 99.0, 1000.0):
        p = torch.nn.Parameter(torch.zeros(1))
        adam = torch.optim.Adam([p], lr=1.0, eps=1e-8)
        p.grad = torch.tensor([ratio * 1e-8])
        adam.step()
        lost = 1 + p.item()
        assert lost == pytest.approx(1 / (1 + ratio), rel=1e-6)
        assert (lost <= 0.01 + 1e-12) == (ratio >= 99)


def test_the_gradients_of_the_first_layer() -> None:
    cell = containing(PATH, "def first_gradient")
    said = [line for line in lines_of(cell) if line.startswith("scale")]
    # the check's limit is ten times the constant; the prose names what is lost
    assert wrong_codes(cell) == ["gradient-scale"] * 2
    lost = [numbers(line)[-1] for line in said]
    assert lost[0] > 99.9 and lost[1] == pytest.approx(100 / 8, abs=1) and lost[2] < 0.1
    for line in said:
        s, lost = (float(v) for v in re.findall(r"s = (\S+), .*lost ([\d.]+)%", line)[0])
        assert lost == pytest.approx(100 * 1e-8 / (s + 1e-8), abs=0.2)
    # each layer multiplies the mean square by the gain: 11 layers lie above the first
    sizes = [float(re.findall(r"s = (\S+),", line)[0]) for line in said]
    for size, scale in zip(sizes[:2], (4.0, 1.0), strict=True):
        per_layer = (size / sizes[2]) ** (1 / 12)
        assert per_layer == pytest.approx(math.sqrt(gain("Logistic", scale)), rel=0.15)
    assert f"{sizes[1]:.0e}".replace("e-0", r"\cdot10^{-") + "}" in QUESTIONS
    assert lean("at four times that scale it takes all") in lean(QUESTIONS)


@pin(
    "eq-22-rate",
    r"\begin{aligned} \eta\to k\eta,\ \ \sigma\to k\sigma:\qquad\varepsilon&\to k\,\varepsilon"
    r"&&\text{latent step }\eta-\varepsilon g,\text{ or Adam with }\zeta=0,\\ "
    r"\varepsilon&\to k^2\varepsilon&&\text{gradient through }F,\ \eta-\varepsilon f g , "
    r"\end{aligned}",
)
def test_eq_22_rate() -> None:
    """Thirty steps each way, by numpy, at two k; the other power misses. So do clamp and decay."""
    target = np.array([0.9, 0.4])

    def path(k: float, rate: float, way: str, decay: float = 0, bound: float = 1e9) -> Array:
        eta, m, v = k * np.array([0.3, -0.8]), np.zeros(2), np.zeros(2)
        for t in range(1, 31):
            p = special.expit(eta / k)
            g = p - target
            if "through" in way:
                g = g * p * (1 - p) / k
            if "decoupled" in way:
                eta = eta * (1 - rate * decay)
            else:
                g = g + decay * eta
            if "adam" in way:
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                g = (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.999**t))
            eta = np.clip(eta - rate * g, -bound, bound)
        return special.expit(eta / k)

    ways = {"latent": 1, "adam": 1, "adam through": 1, "through": 2}
    for way, power in ways.items():
        base, held = path(1, 0.05, way), path(1, 0.5, way, bound=0.35)
        for k in (3.0, 10.0):
            assert path(k, 0.05 * k**power, way) == pytest.approx(base, rel=1e-9)
            assert path(k, 0.05 * k ** (3 - power), way) != pytest.approx(base, rel=1e-2)
            clamped = path(k, 0.5 * k**power, way, bound=0.35 * k)
            assert clamped == pytest.approx(held, rel=1e-9)
            assert path(k, 0.5 * k**power, way, bound=0.35) != pytest.approx(held, rel=1e-2)
    for way, power, by in (("latent", 1, 1), ("through", 2, 2), ("decoupled adam", 1, 1)):
        base = path(1, 0.05, way, decay=0.7)
        for k in (3.0, 10.0):
            assert path(k, 0.05 * k**power, way, 0.7 / k**by) == pytest.approx(base, rel=1e-9)
            assert path(k, 0.05 * k**power, way, 0.7) != pytest.approx(base, rel=1e-2)
    says(r"becomes $\lambda/k$ in the first line and $\lambda/k^2$ in the second, a decoupled one")
    said = lines_of(containing(PATH, "def trained(k, rate"))
    assert said[0].endswith("rate times k: True, times k^2: False")
    assert said[1].endswith("rate times k: False, times k^2: True")


@pytest.mark.slow
@pin("eq-22-seeds", r"m\ \ge\ 2\,(z_{0.975}+z_{0.8})^2\,\frac{s^2}{t^2}=15.7\,\frac{s^2}{t^2}")
def test_eq_22_seeds() -> None:
    z = stats.norm.ppf([0.975, 0.8])
    says(f"where $z_{{0.975}}={z[0]:.3f}$ and $z_{{0.8}}={z[1]:.3f}$")
    assert f"{2 * z.sum() ** 2:.1f}" == "15.7"
    for ratio in (0.2, 0.05):  # with many seeds it is found four times in five
        m = 2 * z.sum() ** 2 / ratio**2
        found = stats.norm.sf(z[0] - ratio * math.sqrt(m / 2))
        assert found == pytest.approx(0.8, abs=1e-6)
    for ratio in (0.7, 1.0, 1.5):  # and Student's test asks for one or two more, rounded up
        m = next(m for m in range(2, 400) if power(m, ratio) >= 0.8)
        assert 0 < m - 2 * z.sum() ** 2 / ratio**2 <= 3


def power(m: int, ratio: float) -> float:
    """By quadrature over the law of the estimated deviation."""
    df, centre = 2 * m - 2, ratio * math.sqrt(m / 2)
    edge = stats.t.ppf(0.975, df)

    def beyond(s: float) -> float:
        tails = stats.norm.sf(edge * s - centre) + stats.norm.cdf(-edge * s - centre)
        return float(stats.chi2.pdf(s * s * df, df) * 2 * s * df * tails)

    return float(
        sum(integrate.quad(beyond, a, b, limit=200)[0] for a, b in ((0, 1), (1, 2), (2, 6)))
    )


def test_power_is_that_of_drawn_experiments() -> None:
    """20 000 drawn pairs, a z-test at five errors. Welch's test finds less at few seeds."""
    g, error = np.random.default_rng(0), math.sqrt(0.25 / 20_000)
    for m, ratio, lost in ((10, 1.0, 0.0), (5, 2.0, 0.01), (3, 3.0, 0.06)):
        one, two = g.normal(size=(2, 20_000, m))
        found = {}
        for equal in (True, False):
            p = stats.ttest_ind(one + ratio, two, axis=1, equal_var=equal).pvalue
            found[equal] = (p < 0.05).mean()
        assert abs(found[True] - power(m, ratio)) < 5 * error
        assert lost < found[True] - found[False] + 1e-9
    says("finds a little less with five seeds or fewer")


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "seeds"), [(1.0, 5), (0.5, 50), (3.0, 100)])
def test_fig_seeds_figure(ratio: float, seeds: int) -> None:
    top, low = axes(PATH, "seeds_figure", ratio=ratio, seeds=seeds)
    curve, point, level = lines(top)
    for m, y in curve.T:
        assert y == pytest.approx(power(int(m), ratio), abs=1e-3)
    assert point.T.tolist() == [[seeds, pytest.approx(power(seeds, ratio), abs=1e-3)]]
    assert set(level[1]) == {0.8}
    none, some, left, right = lines(low)
    for line, mean in ((none, 0), (some, ratio)):
        assert line[1] == pytest.approx(stats.norm.pdf(line[0], mean, math.sqrt(2 / seeds)))
    edge = math.sqrt(2 / seeds) * stats.t.ppf(0.975, 2 * seeds - 2)
    assert [left[0][0], right[0][0]] == pytest.approx([-edge, edge])


@pytest.mark.slow
def test_fig_seeds_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-22-seeds"])["answer"])
    assert 0.7 < power(10, 1.25) < 0.8 < 0.87 < power(10, 1.5) < 0.9
    assert "1.25 deviations is found three times in four and one of 1.5 nearly nine" in answer
    needed = optimize.brentq(lambda r: power(10, r) - 0.8, 1, 2)
    assert f"about {needed:.1f} are needed" in answer
    assert f"in {100 * power(10, 0.5):.0f} cases of 100" in answer
    first = next(m for m in range(2, 200) if power(m, 0.5) >= 0.8)
    assert f"asks for {first} seeds; with 50 it is {100 * power(50, 0.5):.0f} in 100" in answer


# ---------------------------------------------------------------------------------- the chart


def test_chart_figure_of_fig_22_chart_and_its_list_are_one() -> None:
    (ax,) = still(PATH, "fig-22-chart")
    texts = [lean(t.get_text()) for t in ax.texts]
    for words, label in (
        (
            "sums over all $2^n$ states of a layer, in every step?",
            "Can the $2^n$ states of a layer be summed in every step?",
        ),
        ("one binary layer and a multilinear loss?", "One binary layer and a [multilinear]"),
        ("must it be unbiased?", "Must it be unbiased"),
        ("no slope of the loss?", "only values of the loss, and no slopes?"),
        (
            "layers of up to 8 units, no batch norm?",
            "Layers of up to eight units, and no batch norm?",
        ),
        (
            "a mean of 100 draws, not a training?",
            "A gradient to be averaged over a hundred draws or more, and not a training?",
        ),
        ("otherwise", "Otherwise"),
    ):
        assert any(words in t for t in texts), words
        says(label)
    assert texts.count("no") == 6 and texts.count("yes") == 6


def test_the_evidence_of_the_chart() -> None:
    said = lines_of(containing(PATH, "def best_at("))
    results, shared = sbnlib.map.results(), {"reinforce": 1, "reinforce_loo": 2}
    labels = {"ST": "straight_through", "FouST": "foust", "ZGR": "zgr", "Gumbel-Rao": "gumbel_rao",
              "PSA": "psa", "PSA, both sides": "psa_symmetric",
              "local expectation": "local_expectation"}  # fmt: skip
    firsts: dict[int, list[str]] = {}
    for budget in (1, 10, 100, 1000):
        firsts[budget] = []
        for k in range(27):
            errors = {}
            for name, rows in results.items():
                cost = shared.get(name, rows[k]["loss_evaluations"])
                of = rows[k]["all"]
                if cost <= budget:
                    errors[name] = of["bias2"][0] + cost / budget * of["variance"][0]
            firsts[budget].append(min(errors, key=lambda n: errors[n]))
    for line in said[1:8]:
        name = labels[line[:22].strip()]
        assert numbers(line[22:]) == [f.count(name) for f in firsts.values()]
    rest = [27 - sum(f.count(n) for n in labels.values()) for f in firsts.values()]
    assert said[8].startswith("others") and numbers(said[8]) == rest
    for budget, leaders in ((100, ["gumbel_rao", "straight_through", "zgr"]),
                            (1000, ["psa_symmetric", "psa", "zgr"])):  # fmt: skip
        order = sorted(set(firsts[budget]), key=lambda n: -firsts[budget].count(n))
        assert order[:3] == leaders
    says("Gumbel-Rao ([chapter 9](../2-activations/09-relaxations.ipynb)), "
         "[ZGR](../2-activations/10-chain-rule-family.ipynb) and straight-through lead on the map "
         "at 100 evaluations, PSA, from one side or both, and ZGR at 1000")  # fmt: skip
    rows = measurement.stored("improvements-widths")["rows"]
    for line, name in zip(said[10:], ("psa", "zgr", "straight_through_10"), strict=True):
        for value, width in zip(numbers(line[22:]), (4, 8, 16, 64), strict=True):
            one, st = (
                fmean(r["loss"])
                for n in (name, "straight_through")
                for r in rows
                if (r["estimator"], r["depth"], r["width"]) == (n, 2, width)
            )
            assert value == pytest.approx(one / st, abs=6e-3)
            assert name != "zgr" or value > 1
            assert name != "psa" or width > 8 or value == pytest.approx(0.5, abs=0.06)
            if name == "straight_through_10" and width > 8:
                assert value == pytest.approx({16: 0.5, 64: 0.25}[width], abs=0.04)

    def of(name: str, width: int, what: str) -> list[float]:
        (row,) = (r for r in rows if (r["estimator"], r["depth"], r["width"]) == (name, 2, width))
        return list(row[what])

    says("it halved the training loss of straight-through")
    says("lowered the training loss to a half with 16 units and to a quarter with 64, and there "
         "the test loss by a fifth (p = 0.02)")  # fmt: skip
    one, ten = (of(f"straight_through{k}", 64, "test_loss") for k in ("", "_10"))
    assert fmean(ten) / fmean(one) == pytest.approx(0.8, abs=0.02)
    assert round(stats.ttest_ind(one, ten, equal_var=False).pvalue, 2) == 0.02
    for width in (16, 32, 64):  # "was not seen to test better"
        one, psa = (of(n, width, "test_loss") for n in ("straight_through", "psa"))
        better = stats.ttest_ind(psa, one, equal_var=False, alternative="less").pvalue
        assert better > 0.05
        assert fmean(of("zgr_10", width, "loss")) > fmean(of("straight_through_10", width, "loss"))
    widths = {r["width"] for r in rows}
    deepest = max(r["depth"] for r in measurement.stored("how-deep-grid")["rows"])
    others = ("how-deep-noises", "how-deep-held-out", "how-deep-predictions")
    deepest = max(
        deepest, *(r.get("depth", 0) for n in others for r in measurement.stored(n)["rows"])
    )
    assert min(widths) == 4 and deepest == 24
    says("with layers of 4 to 512 units and up to 24 layers")


# -------------------------------------------------------------------------------- the gallery

#: Of each item, a piece of its cell, and the codes it prints as wrong.
GALLERY = {
    "clip": ("class ClipsGradient", ["gradient", "infinite"]),
    "zero": ("def three_valued", ["third-state"]),
    "half": ("def half_slope", ["factor"]),
    "other": ("def mixed", ["law"]),
    "leak": ("def leaky(", ["infinite"]),
    "overflow": ("class Overflows", ["overflow"]),
    "brackets": ("def no_brackets", ["not-exact"]),
    "draw": ("def one_draw", ["shared-draw"]),
    "mode": ("class OnlyWhenTraining", ["eval"]),
    "silent": ("def silent", ["silent-zero"]),
    "loud": ("def deep(", ["too-loud"]),
    "zgr": ("narrow = Uniform()", ["infinite-gain", "heavy-factor"]),
    "cold": ("def gumbel(tau)", ["heavy-factor"]),
    "zone": ("def rounded(decay", ["dead-zone"]),
    "statistics": ("def measure15", ["statistics"]),
    "touched": ("def leaking", ["grad-leak"]),
    "head": ("def without_graph", ["unreached"]),
    "measure": ("(g.mean(0) - exact).square().sum()))", ["bias-metric", "pooled-variance",
                                                          "rare-state"]),
    "bookkeeping": ("def relaxed(a", ["temperature", "stale", "scaled-twice"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GALLERY)
def test_an_item_of_the_gallery_is_found_by_its_check(name: str) -> None:
    piece, codes = GALLERY[name]
    assert f"(sec-22-{name})=" in prose(PATH)
    assert wrong_codes(containing(PATH, piece)) == codes


def test_the_gallery_has_one_form() -> None:
    items = re.split(r"^### ", prose(PATH).split("## Reading someone")[0], flags=re.M)[1:]
    assert [item.split(" · ")[0] for item in items] == [str(k + 1) for k in range(len(GALLERY))]
    for item in items:
        assert all(f"*{word}:*" in item for word in ("Seen", "Why", "Cure")), item[:60]
        assert "](" in item or "{" in item, item[:60]
    says("a gallery of nineteen faults")
    for piece, _ in GALLERY.values():
        cell = containing(PATH, piece)
        assert len(cell.source.splitlines()) <= 24


def ends(piece: str, words: str) -> float:
    """The last number of the line that begins with these words."""
    (line,) = (v for v in lines_of(containing(PATH, piece)) if v.startswith(words))
    return numbers(line)[-1]


def test_the_cures_of_units() -> None:
    clip = lines_of(containing(PATH, "class ClipsGradient"))
    assert "tensor([1., 1., 1.])" in clip[-2] and "tensor([1., 1., 0.])" in clip[-1]
    zero = math.comb(16, 8) / 2**16
    says(f"those of 16 fair ones with the probability {zero:.3f}")
    before = ends("def three_valued", "before")
    assert abs(before - zero) < 5 * math.sqrt(zero * (1 - zero) / 10_000)
    assert ends("def three_valued", "after") == 0
    assert ends("def half_slope", "before") == pytest.approx(0.5**8, abs=5e-5)
    assert ends("def half_slope", "after") == 1
    mixed = lines_of(containing(PATH, "def mixed"))
    law = LAWS["Logistic"][1]
    box = [1 / (2 * law(0.0)), 1 / (2 * law(0.9)), 0, 0]
    assert numbers(mixed[-2]) == pytest.approx(box, abs=6e-3)
    assert numbers(mixed[-1]) == [1, 1, 1, 1]
    assert "inf" in lines_of(containing(PATH, "def leaky("))[-2]
    assert ends("def leaky(", "after") == 2
    over = lines_of(containing(PATH, "class Overflows"))
    assert over[-2].endswith("nan") and over[-1].endswith(": 0.0")
    limit = -math.log(float(np.finfo(np.float32).max)) / 25
    says(f"is infinite in float32 from $a={limit:.2f}$ down")
    says_back = lean(QUESTIONS)
    assert f"from $ka={25 * limit:.1f}$ on" in says_back
    assert lines_of(containing(PATH, "def no_brackets"))[-2:] == [
        "before: some states are not -1 or 1: True",
        "after: some states are not -1 or 1: False",
    ]
    assert ends("def one_draw", "before") == pytest.approx(1, abs=0.05)
    eighth = 1 / math.sqrt(64)
    assert abs(ends("def one_draw", "after") - eighth) < 5 * eighth / math.sqrt(1000) + 5e-3
    mode = lines_of(containing(PATH, "class OnlyWhenTraining"))
    assert (
        mode[-2] == "before codes: deterministic, eval" and mode[-1] == "after codes: deterministic"
    )


def test_the_cures_of_scripts() -> None:
    assert ends("def silent", "before") > 0.4 and ends("def silent", "after") < 0.05
    grid = measurement.stored("how-deep-grid")["rows"]
    for words, relative in (("before", 4.0), ("after", 1.0)):
        (row,) = (
            r for r in grid
            if (r["depth"], r["relative_scale"], r["noise"], r["estimator"], r["norm"])
            == (8, relative, "Logistic", "straight_through", "batch") and not r["residual"]
        )  # fmt: skip
        assert ends("def deep(", words) == pytest.approx(fmean(row["ten"]), abs=6e-4)
    loud = printed(containing(PATH, "def deep("))
    share = gain("Logistic", 1.0)
    assert f"gain {share:.2g}"[:8] in loud
    assert f"{share:.2f}"[1:] in QUESTIONS
    relative = 1 / at_one("Logistic")
    says(f"the default scale, {relative:.1f} times that of gain 1, and the trainings 4.0 times it")
    zgr = lines_of(containing(PATH, "narrow = Uniform()"))
    assert zgr[-3].startswith("before gain inf") and numbers(zgr[-1])[0] == 1
    scale = at_one("Uniform")
    assert numbers(zgr[-1])[-1] == pytest.approx(1 / scale, abs=6e-3)
    # shrinkage: at most 2f(1 + 2w) with w = 4, and gain as in chapter 20
    assert numbers(zgr[-2])[-1] < (1 + 2 * 4) / scale < float(zgr[-3].split()[-1])

    def second(a: float) -> float:
        mu, f = a / scale, 0.5 / scale
        r = 4 * (1 - mu**2)
        return (4 * f**2 + 4 * 4 * mu**2 * f**2 * r / (1 + r) ** 2) * (abs(a) < scale)

    assert numbers(zgr[-2])[0] == pytest.approx(over_normal(second, scale), abs=6e-4)


def hard_moment(tau: float, k: int) -> float:
    """E c^k of the hard sample's factor at one half, over logistic Z."""

    def term(z: float) -> float:
        c = 1 / (2 * tau) / math.cosh(min(abs(0.5 - z) / (2 * tau), 300)) ** 2
        return float(special.expit(z) * special.expit(-z) * c**k)

    points = [0.5 + tau * v for v in (-40, -4, 0, 4, 40)]
    pieces = (integrate.quad(term, *ends, limit=300)[0] for ends in itertools.pairwise(points))
    return float(sum(pieces))


def test_the_factors_of_gumbel() -> None:
    """Mean and variance of the hard sample's factor at one half, by quadrature over Z."""
    said = lines_of(containing(PATH, "def gumbel(tau)"))[-3:]
    for line, tau in zip(said[:2], (0.01, 1.0), strict=True):
        mean, second, fourth = (hard_moment(tau, k) for k in (1, 2, 4))
        shown = re.findall(r"mean ([\d.]+), variance ([\d.]+)", line)[0]
        spread = math.sqrt((fourth - second**2) / 200_000)
        assert abs(float(shown[0]) - mean) < 5 * math.sqrt(second / 200_000) + 5e-3
        assert abs(float(shown[1]) - (second - mean**2)) < 5 * spread + 5e-3
    p = special.expit(0.5)
    f = p * (1 - p)
    mean, variance = 2 * f, f**2 / p + f**2 / (1 - p) - 4 * f**2
    assert numbers(said[2])[-2:] == pytest.approx([mean, variance], abs=8e-3)
    says("the mean is {} where {} is right for a linear loss".format(
        *(re.findall(r"mean (0\.\d+)", line)[0] for line in said[1:])
    ))  # fmt: skip


def test_the_variance_between_the_two_temperatures() -> None:
    mean, second = (hard_moment(0.1, k) for k in (1, 2))
    assert (
        f"the factor of item 13 has the variance {second - mean**2:.2f}, against 0.01" in QUESTIONS
    )


def test_the_dead_zone_is_that_of_the_fixed_point() -> None:
    """w goes to -g with decay 1, and stays below one half if |g| does: half of the gradients."""
    assert ends("def rounded(decay", "before") == pytest.approx(0.5, abs=0.002)
    g = np.linspace(-1, 1, 1001)
    free = np.roll(np.linspace(-1, 1, 1001), 300) - 20 * g
    assert ends("def rounded(decay", "after") == pytest.approx((abs(free) < 0.5).mean(), abs=6e-4)
    says(r"with a gradient $|g|<\lambda\vartheta$, where $\vartheta$ is the threshold")
    # the mean of a drawn state at w = -g: by the two boxes it is w itself within one half
    box = lambda z: np.clip((1 + z / 0.5) / 2, 0, 1)  # noqa: E731
    mean = box(-g - 0.5) + box(-g + 0.5) - 1
    assert mean[abs(g) <= 0.5] == pytest.approx(-g[abs(g) <= 0.5])
    assert ends("def rounded(decay", "or drawn") == pytest.approx((mean == 0).mean(), abs=6e-4)


def test_what_is_moved_and_what_leaks() -> None:
    assert ends("def measure15", "before") > 0.1 and ends("def measure15", "after") == 0
    a, kappa = np.array([0.3, -0.8, 0.1]), 0.5
    p = special.expit(a)
    slope = 2 * kappa**2 * p**2 * (1 - p)  # of sum (kappa p)^2
    curve = 2 * kappa**2 * (2 * p**2 * (1 - p) ** 2 - p**2 * p * (1 - p))
    leak = np.linalg.norm(2 * slope * curve) / np.linalg.norm(slope)
    (before,) = (v for v in lines_of(containing(PATH, "def leaking")) if v.startswith("before"))
    assert numbers(before)[-1] == pytest.approx(100 * leak, abs=0.06)
    says("$\\|\\bar g-g\\|^2$ has the variance over $M$ in it")
    right = [c for c in cells(PATH) if "g.var(0).sum() / len(g)" in c.source]
    assert printed(right[0]).split("\n") == ["nothing is wrong"] * 3 + [""]
    # the wrong sampler and the right one are asked for as many draws, of which it needs fewer
    counts = [
        re.findall(r"count=(2\*\*\d+)\)", c.source)
        for c in cells(PATH) if c.cell_type == "code" and "checks.rare_state" in c.source
    ]  # fmt: skip
    assert counts == [["2**26"], ["2**26"]]
    (hit,) = re.findall(r"came up in (\d+) draws", printed(containing(PATH, GALLERY["measure"][0])))
    assert int(hit) < 2**26 and math.exp(-4) < 0.02


# ------------------------------------------------------------------------------ the checklist

#: The traps of method that a survey of programs found, by its numbers: what the page asks, and
#: the code or the check that finds it.
TRAPS = {
    1: ("Is the slope that of the noise that is drawn?", "law"),
    2: ("Is its integral the distance of the states", "factor"),
    3: ("Are the states those that the name promises, at 0 too, and does nothing print?", "coding"),
    4: ("and not 1 for every logit", "infinite"),
    5: ("that is called temperature", "temperature"),
    6: ("Are there two states, at ties too?", "third-state"),
    7: ("Is nothing clamped that nobody mentions", "hidden_clamp"),
    8: ("Are means and variances those of the parameters as they are now?", "current"),
    9: ("Is the number of examples multiplied in once?", "scales_once"),
    11: (
        "Does the control variate's loss leave the model's gradients alone?",
        "gradients_untouched",
    ),
    12: ("Does every parameter get a gradient, the head's too?", "parameters_reached"),
    14: ("Is the variance over $M$ subtracted from the squared bias?", "bias_metric"),
    15: ("Has the variance the part between the groups?", "pooled_variance"),
    20: ("Is a state of probability", "rare_state"),
    21: ("Do batch norm's statistics stand still?", "statistics_untouched"),
}


def checklist() -> list[list[str]]:
    return list_table(prose(PATH), "tab-22-checklist")


@pytest.mark.parametrize("trap", TRAPS)
def test_each_trap_has_a_line_in_the_checklist(trap: int) -> None:
    asked, by = TRAPS[trap]
    (row,) = (r for r in checklist() if asked in r[0])
    assert f"`{by}`" in row[1]


def test_the_names_of_the_checklist_are_the_library_s() -> None:
    codes = re.findall(
        r"^\* - ((?:`[\w-]+`(?:, )?)+)$", prose(BOOK / "back" / "doctor.ipynb"), re.M
    )
    of_doctor = {c for line in codes for c in re.findall(r"`([\w-]+)`", line)}
    named: set[str] = set()
    for row in checklist()[1:]:
        for part in row[1].split(";"):
            names = re.findall(r"`([\w-]+)`", part)
            if "doctor" in part:
                assert set(names) <= of_doctor, names
            else:
                assert all(hasattr(sbnlib.checks, n) for n in names), names
                named |= set(names)
    assert set(sbnlib.checks.__all__) == named


def test_the_items_of_the_checklist_are_those_of_the_gallery() -> None:
    items = list(GALLERY)
    linked: set[str] = set()
    for row in checklist()[1:]:
        found = set(re.findall(r"`([\w-]+)`", row[1]))
        for k, item in re.findall(r"\[(\d+)\]\(sec-22-(\w+)\)", row[2]):
            assert items[int(k) - 1] == item
            cell = containing(PATH, GALLERY[item][0])
            used = set(re.findall(r"checks\.(\w+)", cell.source)) | set(wrong_codes(cell))
            assert found & used, (row, used)
            linked |= set(wrong_codes(cell)) & found | {item}
    assert set(items) <= linked  # each item of the gallery is in a row


def test_the_checklist_is_typed_for_a_script_in_order() -> None:
    cell = containing(PATH, "findings = (")
    first, *marks = lines_of(cell)
    assert first == "nothing is wrong"
    calls = re.findall(r"checks\.(\w+)\(", cell.source)
    assert len(calls) == 10 and " ".join(marks).count("✓") == 10 and "✗" not in printed(cell)
    for name in calls:
        assert any(f"`{name}`" in row[1] for row in checklist()), name


def test_the_index_of_symptoms_leads_to_each_item() -> None:
    index = prose(PATH).split("By symptom:")[1].split("Each item has the same form")[0]
    found = re.findall(r"\[(\d+)\]\(sec-22-(\w+)\)", index)
    assert sorted(set(found), key=lambda v: int(v[0])) == [
        (str(k + 1), name) for k, name in enumerate(GALLERY)
    ]


def test_the_lines_below_the_recipe() -> None:
    cell = containing(PATH, "def ten_samples")
    assert "has the gain 1.0000" in printed(cell) and "(64, 10)" in printed(cell)
    page = run(PATH, cell)
    p = page["ten_samples"](page["net"], page["images"])
    assert torch.allclose(p.sum(1), torch.ones(64)) and not page["net"].training
    parts = [type(m).__name__ for m in page["net"]]
    assert parts == ["Linear", "BatchNorm1d", "Sign"] * 2 + ["Linear"]
    assert page["net"][0].bias is None and page["net"][-1].bias is not None


# ------------------------------------------------------------------------ other people's loops


def test_the_loop_of_binarynet_is_rebuilt() -> None:
    cell = containing(PATH, "def by_hand(task")
    said = lines_of(cell)
    assert said[0].endswith("True") and wrong_codes(cell) == ["unclamped"]
    shown = re.findall(r"right ([\d.]+) ± ([\d.]+)", printed(cell))
    (held, held_error), (free, free_error) = ([float(v) for v in pair] for pair in shown)
    assert held - free > 10 * math.hypot(held_error, free_error)
    words = (f"150 steps after the change {free:.2f} of the second is right, where with the clamp "
             f"it is {held:.2f}, as a mean over five seeds")  # fmt: skip
    says(words)


def test_the_slopes_of_reactnet() -> None:
    cell = containing(PATH, "def scaled_weight")
    assert lines_of(cell)[0].endswith("True") and wrong_codes(cell) == ["factor"]
    assert "multiplied by 2000" in lean(printed(cell)) and "nothing is wrong" in printed(cell)
    mean = np.mean(np.linspace(0, 0.001, 10_001))
    assert 2 / (2 * mean) == pytest.approx(2000)
    says("all positive, where that is a factor of two thousand")


def test_bop_of_larq_is_bop() -> None:
    """Written out from the sentences of the page, against the page's function, ties included."""
    page = chapters.define(PATH, "larq_bop")["larq_bop"]
    g = np.random.default_rng(0)
    w, m = np.sign(g.normal(size=50)), np.zeros(50)
    for _ in range(200):
        grad = g.normal(size=50)
        before = torch.tensor(w), torch.tensor(m)
        m = 0.9 * m + 0.1 * grad
        w = np.where(w * m > 0.05, -w, w)
        found, mean = page(*before, torch.tensor(grad), 0.1, 0.05)
        assert (found.numpy() == w).all() and mean.numpy() == pytest.approx(m)
    said = lines_of(containing(PATH, "def larq_bop"))
    assert said[0].endswith("True") and said[1].endswith("1.0")
    says("makes $+1$ of either weight")


# --------------------------------------------------------------------------- the porting tables


def column(label: str) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in list_table(PORTING, label)[1:]}


def whole(h: Callable[[float], float], ends: tuple[float, ...]) -> float:
    """The integral over the line, in pieces."""
    points = (-np.inf, *ends, np.inf)
    return float(sum(integrate.quad(h, a, b, limit=400)[0] for a, b in itertools.pairwise(points)))


def page_slope(unit: Callable[[torch.Tensor], torch.Tensor], a: Array) -> Array:
    leaf = torch.tensor(a, requires_grad=True)
    return torch.autograd.grad(unit(leaf).sum(), leaf)[0].numpy()


POINTS = np.array([-2.3, -0.97, -0.4, -0.03, 0.02, 0.3, 0.8, 1.01, 3.1])
K = 1.7


def sign(noise: Any) -> Any:
    return sbnlib.nn.Sign(noise, mode="sign")


LARQ: dict[str, tuple[Any, float, str, Any]] = {
    "`ste_sign`": (lambda a: 1.0 * (abs(a) <= 1), 2, "1", lambda a: sign(sbnlib.Uniform())(a)),
    "`ste_sign(clip_value=k)`": (
        lambda a: 1.0 * (abs(a) <= K), 2, "$k$", lambda a: K * sign(sbnlib.Uniform(K))(a)),
    "`approx_sign`": (
        lambda a: max(2 - 2 * abs(a), 0.0), 2, "1", lambda a: sign(sbnlib.Triangular())(a)),
    "`swish_sign(beta=k)`": (
        lambda a: 5 * (2 - 5 * a * math.tanh(2.5 * a)) / (1 + math.cosh(min(5 * abs(a), 700))),
        2, "1",
        lambda a: sbnlib.proxy(a, torch.where(a >= 0, 1.0, -1.0), name="swish_sign")),
    "`magnitude_aware_sign`": (
        lambda a: K * (abs(a) <= 1), 2 * K, "1", lambda a: K * sign(sbnlib.Uniform())(a)),
    "`ste_heaviside`": (
        lambda a: 1.0 * (abs(a) <= 1), 1, "2",
        lambda a: 2 * sbnlib.to_bits(sign(sbnlib.Uniform())(a))),
}  # fmt: skip


@pytest.mark.parametrize("name", LARQ)
def test_a_row_of_larq(name: str) -> None:
    h, distance, factor, ours = LARQ[name]
    row = column("tab-porting-larq")[name]
    assert row[1] == factor
    found = whole(h, (-K, -1, 0, 1, K)) / distance
    assert found == pytest.approx({"$k$": K, "1": 1, "2": 2}[factor], rel=1e-6)
    assert page_slope(ours, POINTS) == pytest.approx([h(a) for a in POINTS], abs=1e-9)


def test_the_rows_of_larq_with_more_than_two_states() -> None:
    row = column("tab-porting-larq")["`ste_tern`"]
    assert row[1] == "1" and whole(lambda a: 1.0 * (abs(a) <= 1), (-1, 1)) / 2 == 1
    near = lambda a: 0.5 * ((abs(a - 0.05) < 1) + (abs(a + 0.05) < 1))  # noqa: E731
    for a in (0.0, 0.94, 0.96, 1.04, 1.06, -0.99):
        assert (near(a) == 1.0 * (abs(a) <= 1)) == (not 0.95 < abs(a) < 1.05)
    row = column("tab-porting-larq")["`dorefa_quantizer(k_bit=2)`"]
    for a in (-0.2, 0.1, 1 / 6 + 1e-9, 0.4, 0.9, 1.1):  # slope of the sum of three boxes
        boxes = sum(3.0 * (abs(a - t) < 1 / 6) for t in (1 / 6, 1 / 2, 5 / 6)) / 3
        assert boxes == 1.0 * (0 <= a <= 1)
        state = sum(a >= t for t in (1 / 6, 1 / 2, 5 / 6)) / 3
        assert state == round(min(max(a, 0), 1) * 3) / 3
    rows = column("tab-porting-larq")
    assert set(rows) == {
        *LARQ, "`ste_tern`", "`dorefa_quantizer(k_bit=2)`", "`ste_sign(clip_value=None)`",
    }  # fmt: skip
    assert rows["`ste_sign(clip_value=None)`"][1] == "infinite"


def test_the_rows_of_quantizers_with_levels() -> None:
    """torch's own, at three levels and at four, and BitNet's rounding; sums of boxes by hand."""
    rows = column("tab-porting-levels")
    fake, bitnet = rows.values()
    assert fake[1] == r"$\frac C{C-1}$" and bitnet[1] == "infinite" and len(rows) == 2
    rounding = 2 * 2.0**-24  # torch keeps the step in single precision, of at most two
    for k, m, q in ((0.4, -1, 1), (0.25, -2, 1)):
        a = torch.linspace(1.3 * k * (m - 1), 1.3 * k * (q + 1), 173, requires_grad=True)
        y = torch.fake_quantize_per_tensor_affine(a, k, 0, m, q)
        (slope,) = torch.autograd.grad(y.sum(), a)
        at = a.detach().numpy()
        assert y.detach().numpy() == pytest.approx(
            k * np.clip(np.round(at / k), m, q), abs=rounding
        )
        assert slope.numpy() == pytest.approx(1.0 * ((at >= (m - 0.5) * k) & (at <= (q + 0.5) * k)))
        assert (q - m + 1) * k / ((q - m) * k) == pytest.approx((q - m + 1) / (q - m))
        thresholds = tuple((v + 0.5) * k for v in range(m, q))
        ours = sbnlib.nn.Levels(
            thresholds, sbnlib.Uniform(k / 2), values=(m * k, q * k), mode="sign"
        )
        found = ours(b := a.detach().clone().requires_grad_())
        (mine,) = torch.autograd.grad(found.sum(), b)
        assert found.detach().numpy() == pytest.approx(y.detach().numpy(), abs=rounding)
        assert mine.numpy() == pytest.approx(1.0 * ((at > m * k) & (at < q * k)))
    eta = torch.tensor([-2.3, -0.9, -0.6, -0.2, 0.4, 0.7, 0.95, 1.4])
    k = float(eta.abs().mean())
    unit = sbnlib.nn.Levels((-k / 2, k / 2), sbnlib.Uniform(k / 2), values=(-k, k), mode="sign")
    inside = np.abs(eta.numpy()) <= k
    assert unit(eta).numpy() == pytest.approx(k * np.clip(np.round(eta.numpy() / k), -1, 1))
    assert page_slope(unit, eta.numpy()) == pytest.approx(1.0 * inside)
    assert page_slope(lambda v: sbnlib.identity(v, torch.ones_like(v), sbnlib.Uniform()),
                      POINTS) == pytest.approx(np.ones(len(POINTS)))  # fmt: skip
    assert sbnlib.categories.reinmax is sbnlib.categories.zgr


SNN: dict[str, tuple[Any, tuple[float, ...], float, Any]] = {
    "`atan(alpha=k)`": (
        lambda a: K / 2 / (1 + (math.pi / 2 * K * a) ** 2), (0.0,), 1.0,
        lambda a: sbnlib.Cauchy(2 / (math.pi * K)).pdf(a)),
    "`sigmoid(slope=k)`": (
        lambda a: K * math.exp(-K * abs(a)) / (1 + math.exp(-K * abs(a))) ** 2, (0.0,), 1.0,
        lambda a: sbnlib.Logistic(1 / K).pdf(a)),
    "`fast_sigmoid(slope=k)`": (
        lambda a: 1 / (1 + K * abs(a)) ** 2, (0.0,), 2 / K,
        lambda a: 2 / K * sbnlib.FastSigmoid(1 / K).pdf(a)),
    "`spike_rate_escape(beta=k, slope=m)`": (
        lambda a: 3.0 * math.exp(-K * abs(a - 1)), (1.0,), 2 * 3.0 / K, None),
    "`SFS(slope=k, B=m)`": (
        lambda a: (a > 3.0) / (1 + K * abs(a)) ** 2, (0.0, 3.0), 1 / (K * (1 + K * 3.0)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", SNN)
def test_a_row_of_snntorch(name: str) -> None:
    h, ends, factor, ours = SNN[name]
    printed_factor = column("tab-porting-snntorch")[name][1]
    known = {"1": 1.0, "$2/k$": 2 / K, "$2m/k$": 6 / K, r"$\frac1{k(1+km)}$": 1 / (K * (1 + 3 * K))}
    assert known[printed_factor] == pytest.approx(factor)
    assert whole(h, ends) == pytest.approx(factor, rel=1e-6)
    if ours is not None:
        assert ours(torch.tensor(POINTS)).numpy() == pytest.approx([h(a) for a in POINTS], rel=1e-9)


def test_the_rows_of_snntorch_without_a_noise() -> None:
    rows = column("tab-porting-snntorch")
    assert set(rows) - set(SNN) == {
        "`straight_through_estimator`", "`triangular(threshold=k)`", "`heaviside`",
    }  # fmt: skip
    assert rows["`straight_through_estimator`"][1] == rows["`heaviside`"][1] == "infinite"
    assert rows["`triangular(threshold=k)`"][1] == "does not exist"
    ours = page_slope(lambda a: sbnlib.identity(a, torch.ones_like(a), sbnlib.Logistic()), POINTS)
    assert ours == pytest.approx(np.ones(len(POINTS)))
    assert 2 / 25 == 0.08 and 2 * 25 / 1 == 50
    assert "`fast_sigmoid` has the factor 0.08, and `spike_rate_escape` 50" in PORTING


def test_the_rows_of_gumbel_softmax() -> None:
    """torch's own function at the Gumbel numbers that are handed to it, against tanh and sech."""
    a, tau = torch.tensor(POINTS, requires_grad=True), 0.6
    torch.manual_seed(0)
    gumbel = -torch.empty(len(POINTS), 2).exponential_().log()
    z = gumbel[:, 1] - gumbel[:, 0]
    for hard in (False, True):
        torch.manual_seed(0)
        pair = torch.stack([a, torch.zeros_like(a)], -1)
        y = torch.nn.functional.gumbel_softmax(pair, tau=tau, hard=hard)[:, 0]
        found = 2 * y - 1
        slope = torch.autograd.grad(found.sum(), a)[0]
        inside = (a.detach() - z) / (2 * tau)
        value = torch.sign(inside) if hard else torch.tanh(inside)
        assert torch.allclose(found.detach(), value)
        assert torch.allclose(slope, 1 / (2 * tau) / torch.cosh(inside) ** 2)
    torch.manual_seed(0)
    logits = torch.tensor(0.4)
    relaxed = torch.distributions.RelaxedBernoulli(torch.tensor(tau), logits=logits)
    y = relaxed.rsample((200_000,))
    noise = 0.4 - tau * torch.logit(y)  # is logistic, whatever the temperature
    assert stats.kstest(noise.numpy(), "logistic").pvalue > 1e-6
    at = torch.tensor([0.4], requires_grad=True)
    probs = torch.stack([torch.sigmoid(at), torch.sigmoid(-at)], -1)
    one_hot = torch.distributions.OneHotCategoricalStraightThrough(probs=probs).rsample()
    (slope,) = torch.autograd.grad(2 * one_hot[..., 0].sum(), at)
    p = special.expit(0.4)
    assert slope.item() == pytest.approx(2 * p * (1 - p))
    z1 = np.array([-0.3, 0.9])
    assert np.tanh((0.4 - z1) / tau) == pytest.approx(np.tanh((0.4 - z1) / (2 * (tau / 2))))
    for x in (1.0, -1.0):
        ours = page_slope(lambda v, x=x: sbnlib.zgr(v, torch.full_like(v, x), sbnlib.Logistic()),
                          np.array([0.4]))  # fmt: skip
        assert ours[0] == pytest.approx(p * (1 - p) / special.expit(x * 0.4))
    assert sbnlib.reinmax is sbnlib.zgr
    assert len(column("tab-porting-gumbel")) == 6


def test_concrete_has_the_temperature_of_the_table() -> None:
    """Its law: tanh((a - Z)/2 tau) <= t exactly if Z >= a - 2 tau atanh t."""
    a, tau = torch.full((200_000,), 0.4), 0.6
    y = sbnlib.concrete(a, sbnlib.Logistic(), tau=tau, generator=torch.Generator().manual_seed(3))
    noise = 0.4 - 2 * tau * np.arctanh(y.numpy())
    assert stats.kstest(noise, "logistic").pvalue > 1e-6


# ------------------------------------------------------------------------- questions and the rest


def test_twenty_questions_of_five_lines_each_with_a_link() -> None:
    parts = re.split(r"^\(ask-[\w-]+\)=\n## ", QUESTIONS, flags=re.M)[1:]
    assert [part.split(" · ")[0] for part in parts] == [str(k + 1) for k in range(20)]
    for part in parts:
        lines_ = [line for line in part.strip().split("\n")[1:] if line]
        assert len(lines_) == 5, part.split("\n")[0]
    linked = [p for p in parts if re.search(r"\]\(|\{(prf:ref|eq|ref)\}", p)]
    assert linked == parts


def test_the_pages_link_each_other() -> None:
    text = prose(PATH)
    assert text.count("../back/questions.md") >= 1 and text.count("../back/porting.md") >= 2
    for page in (QUESTIONS, PORTING):
        assert "../4-practice/22-practitioners-guide.ipynb" in page
    known = set(chapters.labels(text)) | {f"ask-{k}" for k in ()}
    for target in re.findall(r"\]\((sec-22-[\w-]+)\)", text + QUESTIONS):
        assert target in known, target


def test_the_recipe_has_ten_steps_each_with_a_link() -> None:
    section = prose(PATH).split("## The recipe")[1].split("## Which estimator")[0]
    steps = re.findall(r"^(\d+)\. \*\*.*", section, re.M)
    assert steps == [str(k + 1) for k in range(10)]
    for line in re.findall(r"^\d+\. .*", section, re.M):
        if not line.startswith("9."):
            assert "](" in line or "{eq}" in line, line


def test_the_folder_to_begin_with() -> None:
    said = printed(containing(PATH, "new.write("))
    for name in ("train.py", "test_train.py", "README.md"):
        assert re.search(rf"^{re.escape(name)}, \d+ lines", said, re.M), name
    assert int(re.findall(r"^train.py, (\d+) lines", said, re.M)[0]) <= 80


# ------------------------------------------------------------------------------- the exercises


def checker(name: str) -> Any:
    return chapters.checker(PATH, name)


def named(name: str, answer: Any, capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert not checker(name)(answer)
    return lean(capsys.readouterr().out)


def test_ex_22_script_and_its_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    assert checker("check_script")("moe")
    assert "line m" in named("check_script", "eo", capsys)
    assert "line d is right" in named("check_script", "demo", capsys)
    assert "integral 1" in named("check_script", "mo", capsys)
    (text,) = re.findall(r"```text\n(a  class Unit.*?)```", prose(PATH), re.S)
    assert [line[0] for line in text.strip().split("\n")] == list("abcdefghijklmno")
    space: dict[str, Any] = {"torch": torch, "nn": torch.nn}
    unit = "\n".join(line[3:] for line in text.split("\n")[:5])
    exec(unit, space)
    codes = {f.code for f in sbnlib.diagnose_unit(space["Unit"]()).findings if f.wrong}
    assert codes == {"factor"}


def test_ex_22_report_and_its_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    (text,) = re.findall(r"```text\n(def unit.*?)```", prose(PATH), re.S)
    space: dict[str, Any] = {"torch": torch}
    exec(text, space)
    report = sbnlib.diagnose_unit(space["unit"])
    letters = dict(zip("abcdef", ("factor", "law", "infinite", "third-state", "deterministic",
                                  "not-exact"), strict=True))  # fmt: skip
    right = "".join(k for k, code in letters.items() if code in report.codes)
    assert right == "ae" and checker("check_report")(right)
    assert report.mismatch == pytest.approx(0.5, rel=1e-3)
    assert "no law is contradicted" in named("check_report", "abe", capsys)
    assert "from -1/2 to 1/2" in named("check_report", "e", capsys)


def test_ex_22_port_and_its_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    height = optimize.brentq(
        lambda c: whole(lambda a: c / (1 + 25 * abs(a)) ** 2, (0.0,)) - 2, 1, 100
    )
    assert height == pytest.approx(25)
    assert checker("check_port")("25/(1+25*abs(a))^2")
    assert "2/25" in named("check_port", "1/(1+25*abs(a))^2", capsys)
    assert "twice as far" in named("check_port", "12.5/(1+25*abs(a))^2", capsys)


def test_ex_22_seeds_and_its_wrong_answers(capsys: pytest.CaptureFixture) -> None:
    z = stats.norm.ppf([0.975, 0.8])
    s2 = 0.0007**2 * 5
    right = 2 * z.sum() ** 2 * s2 / 0.0004**2
    assert checker("check_seeds")(right)
    assert f"{right:.0f}" in printed(containing(PATH, "quantiles22"))
    assert "not the deviation of a run" in named("check_seeds", right / 5, capsys)
    assert "both means" in named("check_seeds", 2 * right, capsys)
    assert "every second time" in named("check_seeds", 2 * z[0] ** 2 * s2 / 0.0004**2, capsys)
    chapters.says(chapter(17), "Ten samples are 0.0004 ± 0.0007 above the twin")


def test_solutions_print_that_they_are_right() -> None:
    for cell in tagged(PATH, "solution"):
        assert "right" in printed(cell)
    assert run(PATH, containing(PATH, "def onto"))["onto"](
        torch.tensor(3.0), torch.tensor(0.1)
    ) == 3.0  # fmt: skip
