"""The doctor's page: its snippets, its table of findings, its figures and its words."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from chapters import BOOK, axes, containing, define, drawing, printed, prose, run, still, under
from formulas import list_table
from scipy import special

import sbnlib
from sbnlib.map.problem_set import problems

PATH = BOOK / "back" / "doctor.ipynb"
DOCTOR = Path(sbnlib.__file__).parent / "diagnose"
UNITS = ("Box", "coin", "boxed_coin", "Spike", "Clipped")
CODE = r'(?:Finding|RefusedError)\(\s*"([a-z0-9-]+)"(?:,\s*(True|False))?'

# ---------------------------------------------------------------------------- the five snippets

#: unit: drawn from, slope of, integral, factor, states, and what is wrong; from pen and paper
FIVE = {
    "Box": ("-", "Uniform 1", "2", "1", "±1", ["nothing"]),
    "coin": ("Logistic 1", "Logistic 1", "2", "1", "±1", ["nothing"]),
    "boxed_coin": ("Logistic 1", "Uniform 1", "2", "1", "±1", ["law"]),
    # the integral of (1 + 10|a|)^-2 is 2/10, right for 0 and 1 is 1
    "Spike": ("-", "FastSigmoid 0.1", "0.2", "0.2", "0/1", ["factor"]),
    "Clipped": ("-", "-", "inf", "inf", "±1", ["third-state", "gradient", "infinite"]),
}


def test_the_five_reports() -> None:
    lines = printed(containing(PATH, "snippets = (Box")).splitlines()[1:]
    table: dict[str, list[list[str]]] = {}
    for line in lines:
        if not line.startswith(" "):
            name = line.split()[0]
            table[name] = [re.split(r" {2,}|(?<=n) (?=Log|Uni)", line[11:].strip()), []]
            table[name][1].append(table[name][0].pop())
        else:
            table[name][1].append(line.strip())
    assert tuple(table) == UNITS
    for name, (drawn, slope, integral, factor, states, wrong) in FIVE.items():
        assert table[name][0] == [drawn, slope, integral, factor, states], name
        assert sorted(table[name][1]) == sorted(wrong), name


@pytest.mark.parametrize("name", UNITS)
def test_a_snippet_is_what_the_report_says(name: str) -> None:
    # the slopes at some points, by hand, and the share of the upper state
    unit = define(PATH, *UNITS)[name]
    call = getattr(unit, "apply", unit)
    a = torch.tensor([-1.3, -0.2, 0.4, 2.0], dtype=torch.float64).repeat(4000, 1).requires_grad_()
    torch.manual_seed(5)
    x = call(a)
    x.sum().backward()
    at = a.detach()[0].numpy()
    box = 1.0 * (np.abs(at) < 1)
    slopes = {"Box": box, "coin": 2 * special.expit(at) * special.expit(-at), "boxed_coin": box,
              "Spike": 1 / (1 + 10 * np.abs(at)) ** 2, "Clipped": np.ones(4)}  # fmt: skip
    assert a.grad is not None
    assert a.grad[0].numpy() == pytest.approx(slopes[name])
    p = special.expit(at) if "coin" in name else 1.0 * (at > 0)
    share = (x.detach() > 0).double().mean(0).numpy()
    assert np.abs(share - p).max() <= 5 * np.sqrt(0.25 / 4000) * ("coin" in name)


@pytest.mark.slow
def test_what_the_words_say_of_the_five() -> None:
    words = prose(PATH)
    assert "*Spike* passes on a fifth of what it should" in words
    assert "in three layers that is less than a hundredth" in words and 0.2**3 < 0.01
    # the hardtanh slope over the logistic one, where the box is open
    ratio = 1 / (2 * special.expit(np.array([0, 1])) * special.expit(-np.array([0, 1])))
    assert ratio == pytest.approx([2, 2.54], abs=0.005)
    assert "is 2 to 2.54 times the exact one where $|a|<1$, and 0 elsewhere" in words
    cosine = list(report_of("boxed_coin").cosine.values())
    assert cosine == pytest.approx([-0.20, 0.20, 0.95], abs=0.005)
    assert "and *boxed_coin* −0.20, 0.20 and 0.95" in words
    assert "*Clipped* has three faults" in words and len(FIVE["Clipped"][-1]) == 3
    assert "One of the five is straight-through as it was derived" in words
    assert "at a few thousand points and with several hundred thousand draws" in words
    from sbnlib.diagnose.examination import DRAWS, FLOWS, MOST_Z, POINTS

    assert (DRAWS, POINTS, MOST_Z) == (20_000, 21, 5.0)
    assert "20 000 times at each of 21 points across the change of state and of four in" in words
    assert len(report_of("coin").examination.tails[0]) == 4
    assert "by more than five standard errors" in words
    # 25 points, two sides, a normal law: about one report in 10^5
    assert 0.5e-5 < 25 * 2 * special.ndtr(-5) < 2e-5 and "one in $10^5$ choices" in words
    assert "Gradients of 0.001, 1 and 30 are sent in" in words
    assert {abs(flow) for flow in FLOWS} == {0.001, 1, 30}


@functools.cache
def report_of(name: str) -> sbnlib.UnitReport:
    return sbnlib.diagnose_unit(define(PATH, *UNITS)[name])


def test_the_cosines_that_the_words_give() -> None:
    cosine = report_of("coin").cosine
    assert list(cosine.values()) == pytest.approx([0.93, 0.95, 0.98], abs=0.005)
    assert "*coin*, with nothing wrong, has 0.93, 0.95 and 0.98" in prose(PATH)
    said = " ".join((sbnlib.UnitReport.__doc__ or "").split())
    assert "logistic noise itself has 0.93 (digits), 0.95 (xor) and 0.98 (smooth)" in said


def test_the_gain_that_the_words_give() -> None:
    # E (2f)^2 over a standard normal law, by Gauss-Hermite
    a, weight = np.polynomial.hermite_e.hermegauss(80)
    slope = 2 * special.expit(a) * special.expit(-a)
    gain = (weight * slope**2).sum() / weight.sum()
    assert gain == pytest.approx(report_of("coin").gain, rel=1e-4)
    assert f"*coin* has {gain:.2f}" in prose(PATH) and f"{gain:.2f}" == "0.18"


def test_a_step_against_a_gradient_whose_cosine_is_negative_leads_uphill() -> None:
    assert "Below 0, a small step against the mean gradient makes the loss larger" in prose(PATH)
    unit = define(PATH, *UNITS)["boxed_coin"]
    base = next(p for p in problems().values() if p.is_base and p.about == "digits")
    assert (base.law, base.scale) == ("Logistic", 1.0)  # the law that the unit draws from
    net = base.net()
    before, exact = sbnlib.exact_gradient(net, base.inputs, base.loss)
    torch.manual_seed(1)
    x = base.inputs.expand(4000, *base.inputs.shape)
    for layer in net.layers:
        x = unit(layer(x))
    g = torch.autograd.grad(base.loss(x).mean(), list(net.parameters()))
    flat, right = (torch.cat([t.flatten() for t in own]) for own in (g, exact.values()))
    cosine = float(flat @ right / flat.norm() / right.norm())
    assert (
        cosine == pytest.approx(report_of("boxed_coin").cosine["digits"], abs=0.03) and cosine < 0
    )
    with torch.no_grad():
        for p, step in zip(net.parameters(), g, strict=True):
            p -= 1e-3 * step / flat.norm()
    after, _ = sbnlib.exact_gradient(net, base.inputs, base.loss)
    assert after > before


def test_how_sure_it_says_it_is() -> None:
    """The thresholds of the words, each from just inside and just outside."""
    words = prose(PATH)
    assert "the integral is right to a few $10^{-4}$, poles at its centre included" in words
    assert "A factor is a fault from 1 % on" in words

    def sloped(h):  # noqa: ANN001, ANN202
        def unit(a: torch.Tensor) -> torch.Tensor:
            return torch.where(a >= 0, 1.0, -1.0) + h(a.detach()) * (a - a.detach())

        return sbnlib.diagnose_unit(unit)

    def logistic(a: torch.Tensor) -> torch.Tensor:
        return 2 * torch.sigmoid(a) * torch.sigmoid(-a)

    for scale, integral in [(1.0, 2.0), (1.008, 2.016), (1.012, 2.024)]:
        report = sloped(lambda a, k=scale: k * logistic(a))
        assert report.integral == pytest.approx(integral, rel=2e-4)
        assert ("factor" in report.codes) == (scale > 1.01)
    # |a|^-p on [-1, 1], whose integral is 2/(1 - p)
    assert "one that grows there faster than $|a|^{-0.95}$ or falls off slower" in words
    for power in (0.5, 2 / 3, 0.9):
        report = sloped(lambda a, p=power: a.abs().clamp_min(1e-300) ** -p * (a.abs() < 1))
        assert report.integral == pytest.approx(2 / (1 - power), rel=4e-4)
    for power in (0.96, 1.0):
        report = sloped(lambda a, p=power: a.abs().clamp_min(1e-300) ** -p * (a.abs() < 1))
        assert "infinite" in report.codes
    # a box with a wave on its right side alone, of mean 0: the sides differ by k/pi of the whole
    assert "may differ by half a percent of the whole before it is called uneven" in words
    for part in (0.004, 0.006):
        wave = np.pi * part
        report = sloped(
            lambda a, k=wave: (a.abs() < 1) + k * ((a > 0) & (a < 1)) * (6.2832 * a).sin()
        )
        assert ("uneven" in report.codes) == (part > 0.005)


@pytest.mark.slow
def test_fig_doctor_five() -> None:
    shown = still(PATH, "fig-doctor-five")
    assert [ax.get_title(loc="left") for ax in shown[::2]] == list(UNITS)
    titles = [ax.get_title(loc="left") for ax in shown[1::2]]
    assert titles == ["factor 1", "factor 1", "factor 1", "factor 0.2", "factor infinite"]
    for name, ax in zip(UNITS, shown[::2], strict=True):
        a, h = ax.lines[0].get_xydata().T
        box = 1.0 * (np.abs(a) < 1)
        bell = 2 * special.expit(a) * special.expit(-a)
        slope = {"Box": box, "coin": bell, "boxed_coin": box, "Clipped": np.ones_like(a),
                 "Spike": 1 / (1 + 10 * np.abs(a)) ** 2}[name]  # fmt: skip
        off = np.abs(h - slope) > 0.01 * slope.max()
        assert off.sum() <= 2, name  # a point beside a jump lies between the two
    words = under(containing(PATH, "chart(reports)"))["caption"]
    assert "among 20 000 draws" in words


# --------------------------------------------------------------------------------- the findings


def codes() -> dict[str, bool | None]:
    """Every code in the sources of the doctor, and whether it is wrong."""
    found: dict[str, bool | None] = {}
    for path in sorted(DOCTOR.glob("*.py")):
        for code, wrong in re.findall(CODE, path.read_text("utf-8")):
            found[code] = found.get(code) or (None if not wrong else wrong == "True")
    return found


def test_every_finding_is_in_the_table_and_on_its_side() -> None:
    rows = [
        re.findall(r"`([a-z0-9-]+)`", row[0])
        for row in list_table(prose(PATH), "tab-doctor-codes")[1:]
    ]
    listed = [code for row in rows for code in row]
    known = codes()
    assert sorted(listed) == sorted(known)
    wrong = set(listed[: listed.index("no-gradient") + 1])
    # A refusal is wrong wherever it is raised
    assert wrong == {code for code, its in known.items() if its is not False}


# ------------------------------------------------------------------------------------- how sure


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "title"), [(1.0, "one law"), (1.03, "one law"),
                                              (1.04, "two laws"), (1.2, "two laws")])  # fmt: skip
def test_fig_doctor_power(scale: float, title: str) -> None:
    top, bottom = axes(PATH, "power", scale=scale)
    assert top.get_title(loc="left") == title
    points, share = top.lines[1].get_xydata().T
    p = special.expit(points / scale)
    assert np.abs(share - p).max() < 5 * np.sqrt(0.25 / 20_000)
    assert top.lines[0].get_xydata()[:, 1] == pytest.approx(special.expit(points))
    z = bottom.lines[-1].get_xydata()[:, 1]
    wanted = (share - special.expit(points)) / np.sqrt(p * (1 - p) / 20_000)
    assert z == pytest.approx(wanted, rel=0.2, abs=0.2)
    assert (np.abs(z).max() > 5) == (title == "two laws")


def test_what_the_answer_says_of_the_power() -> None:
    assert drawing(PATH, "power") is not None
    words = under(containing(PATH, "def power("))["answer"]
    assert "two laws from 1.04 on" in words and "less than 0.009 everywhere" in words
    a = np.linspace(-9, 9, 2001)
    assert np.abs(special.expit(a) - special.expit(a / 1.04)).max() < 0.009
    assert "1.04 is noticed in every second report, 1.05 in 96 of 100" in words
    found = sbnlib.diagnose_unit(define(PATH, "noisy")["noisy"](1.0)).examination
    at = torch.cat([found.frequencies[0], found.tails[0]]).numpy()
    draws, p = np.random.default_rng(0), special.expit(at)
    for scale, share in ((1.04, 0.5), (1.05, 0.96)):
        x = draws.binomial(20_000, special.expit(at / scale), (4000, len(at))) / 20_000
        se = np.sqrt(np.maximum(x * (1 - x), p * (1 - p)).clip(1 / 20_000) / 20_000)
        noticed = (np.abs((x - p) / se).max(1) > 5).mean()
        assert noticed == pytest.approx(share, abs=0.04), (
            scale
        )  # the points are those of one report


@pytest.mark.slow
def test_where_the_state_changes_is_known_to_a_few_percent() -> None:
    """Of the distance between the quartiles, 2 log 3 for logistic noise of scale 1."""
    assert "is known to about 3 % of the distance between the quartiles" in prose(PATH)
    for shift in (0.1, 0.2, 0.5, 1.0, 3.0):

        def unit(a: torch.Tensor, b: float = shift) -> torch.Tensor:
            m = torch.tanh(a / 2)
            return 2 * torch.bernoulli(torch.sigmoid(a - b)) - 1 + (m - m.detach())

        assert abs(sbnlib.diagnose_unit(unit).threshold - shift) < 0.03 * 2 * np.log(3)


@pytest.mark.slow
def test_errors_of_a_random_slope_count() -> None:
    assert "If the slope is random, the errors of its mean count as well." in prose(PATH)

    def unit(a: torch.Tensor, twice: torch.Tensor | float) -> torch.Tensor:
        m = torch.tanh(a / 2) * twice
        return 2 * torch.bernoulli(torch.sigmoid(a)) - 1 + (m - m.detach())

    chance = sbnlib.diagnose_unit(lambda a: unit(a, 2.0 * (torch.rand_like(a) < 0.5))).examination
    plain = sbnlib.diagnose_unit(lambda a: unit(a, 1.0)).examination
    assert float(chance.slope.collected_se[-1]) > 0 == float(plain.slope.collected_se[-1])
    assert chance.mismatch_se > 0 == plain.mismatch_se


@pytest.mark.slow
def test_probabilities_that_stay_are_told_from_one_in_a_thousand_on() -> None:
    assert "both states keep a probability, of more than one in a thousand" in prose(PATH)

    def kept(share: float) -> set[str]:
        def unit(a: torch.Tensor) -> torch.Tensor:
            p = share + (1 - 2 * share) * torch.sigmoid(a)
            m = 2 * p - 1
            return 2 * torch.bernoulli(p) - 1 + (m - m.detach())

        return sbnlib.diagnose_unit(unit).codes

    assert "kept" in kept(0.002) and "kept" not in kept(0.0005)


def test_what_is_not_found_and_felt_all_the_same() -> None:
    words = prose(PATH)

    def density(a: np.ndarray, scale: float) -> np.ndarray:
        return special.expit(a / scale) * special.expit(-a / scale) / scale

    a = np.array([3.0, 6.0, 12.0])
    ratio = density(a, 1.0) / density(a, 1.04)
    assert ratio == pytest.approx([0.94, 0.83, 0.66], abs=0.005)
    assert "is 0.94 at $a=3$, 0.83 at 6 and 0.66 at 12" in words

    def seven_bits(a: torch.Tensor) -> torch.Tensor:
        p = (128 * torch.sigmoid(a)).round() / 128
        m = torch.tanh(a / 2)
        return torch.where(torch.rand_like(a) < p, 1.0, -1.0) + (m - m.detach())

    assert "law" not in sbnlib.diagnose_unit(seven_bits).codes
    assert "Probabilities that are rounded to seven bits pass" in words


# ------------------------------------------------------------------------------------ the model


def test_the_report_of_the_model() -> None:
    text = printed(containing(PATH, "print(sbnlib.diagnose(net"))
    assert text.startswith("3 binary units found.")
    # 2 tanh(a) rises by 4, so the slope is twice that of logistic noise of scale 1/2
    assert "the slope is 2 times straight-through for Logistic(scale=0.5)." in " ".join(
        text.split()
    )
    assert re.findall(r"compounding +(\d+) to the loss", text) == ["8", "4", "2"]
    assert text.count("which is no state") == 1 and text.count(": as 1.") == 2
    words = prose(PATH)
    assert "so 8 in the lowest (*compounding*), and `torch.sign` has a third state" in words
    assert "With the slope divided by 2 it would be a quarter of that" in words
    assert re.findall(r"\d\. (\w+) \(line (\d+) of the cell\)", text) == [("binarize", "3")] * 3


def test_the_gains_of_the_model() -> None:
    """The gain by its definition, from pre-activations computed here."""
    space = define(PATH, "binarize", "Net", "net", "inputs", "labels", "loss")
    torch.manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = space["Net"]()
        x = torch.randn(64, 20)
    gains = []
    for layer, norm in zip(net.layers, net.norms, strict=True):
        a = x @ layer.weight.T + layer.bias
        a = (a - a.mean(0)) / (a.var(0, correction=0) + norm.eps).sqrt()
        gains.append(float((2 / torch.cosh(a.detach()) ** 2).square().mean()))
        x = torch.sign(a)
    text = printed(containing(PATH, "print(sbnlib.diagnose(net"))
    found = [float(v) for v in re.findall(r"gain +([\d.]+)", text)]
    assert found == pytest.approx(gains, rel=0.1)  # the dtype of the page is another


# ------------------------------------------------------------------------------------- mend one


@pytest.mark.slow
def test_the_checker(capsys: pytest.CaptureFixture[str]) -> None:
    space = run(PATH, containing(PATH, "def check("))
    check, hardtanh = space["check"], torch.nn.functional.hardtanh

    def unit(slope, draw=lambda a: 2 * torch.rand_like(a) - 1):  # noqa: ANN001, ANN202
        def run_it(a: torch.Tensor) -> torch.Tensor:
            m = slope(a)
            return torch.where(a >= draw(a), 1.0, -1.0).to(a.dtype) + (m - m.detach())

        return run_it

    assert check(unit(hardtanh))
    assert not check(unit(torch.tanh))
    assert not check(unit(lambda a: 2 * hardtanh(a)))
    assert not check(unit(hardtanh, torch.zeros_like))
    assert not check(unit(hardtanh, torch.rand_like))
    assert not check(lambda a: None)
    said = capsys.readouterr().out
    assert "right: straight-through" in said
    assert "a gradient is multiplied by 2" in said and "no tensor" in said

    def bits(a: torch.Tensor) -> torch.Tensor:
        m = hardtanh(a) / 2
        return (torch.rand_like(a) < (1 + hardtanh(a)) / 2).to(a.dtype) + (m - m.detach())

    def wide(a: torch.Tensor) -> torch.Tensor:
        m = hardtanh(a / 2)
        x = torch.where(a / 2 >= 2 * torch.rand_like(a) - 1, 1.0, -1.0)
        return x.to(a.dtype) + (m - m.detach())

    for wrong, sentence in [(bits, "The states are 0/1, not −1 and 1."),
                            (wide, "The noise is Uniform(scale=2), which is not uniform on"),
                            (lambda a: torch.bernoulli(a), "raises RuntimeError"),
                            (lambda a: a, "many values")]:  # fmt: skip
        assert not check(wrong)
        said = capsys.readouterr().out
        assert sentence in said and len(set(said.splitlines())) == len(said.splitlines()), said
