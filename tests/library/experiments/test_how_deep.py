"""Deep networks: how they start, the units tried in them, the law that is fitted, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from scipy import integrate, optimize

from sbnlib import data as datasets
from sbnlib.experiments import deep, how_deep, measurement
from sbnlib.experiments.deep import ESTIMATORS, Deep, Laplace, centred
from sbnlib.noise import NOISES, Noise

DIGITS = centred(datasets.load("digits"))
NAMES = [*(law.__name__ for law in NOISES.values()), "Laplace"]


def delivered(estimator: Callable[..., Any], a: float, x: int, law: Noise) -> float:
    """The factor c(a, x)."""
    at = torch.tensor([a], dtype=torch.float64, requires_grad=True)
    out = estimator(at, torch.tensor([float(x)], dtype=torch.float64), law)
    assert out.item() == x
    return torch.autograd.grad(out.sum(), at)[0].item()


def cdf(name: str, a: float, scale: float) -> float:
    if name == "Laplace":
        return 1 - math.exp(-a / scale) / 2 if a > 0 else math.exp(a / scale) / 2
    return float(ref.RefNoise(name, scale).cdf(a))


def pdf(name: str, a: float, scale: float) -> float:
    if name == "Laplace":
        return math.exp(-abs(a) / scale) / (2 * scale)
    return float(ref.RefNoise(name, scale).pdf(a))


# The scale of a noise ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_relative_scale_is_in_units_of_the_one_at_gain_1(name: str) -> None:
    """By scipy's root of scipy's quadrature."""

    def moment(scale: float, power: int) -> float:
        def term(a: float) -> float:
            return (
                (2 * pdf(name, a, scale)) ** power * math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
            )

        ends = sorted({0.0, 12.0, *(min(scale * s, 12.0) for s in (0.2, 1, 5, 25))})
        return 2 * sum(integrate.quad(term, a, b)[0] for a, b in zip(ends, ends[1:], strict=False))

    one = optimize.brentq(lambda s: moment(s, 2) - 1, 0.05, 3)
    for relative in (1.0, 0.5):
        found = Deep(2, noise=name, relative_scale=relative).numbers
        assert found["scale"] == pytest.approx(relative * one, rel=1e-5)
        assert found["gain"] == pytest.approx(moment(relative * one, 2), rel=1e-5)
        assert found["overlap"] == pytest.approx(moment(relative * one, 1) ** 2, rel=1e-5)


def test_laplace_is_a_law() -> None:
    a = torch.linspace(-4, 4, 33, dtype=torch.float64)
    law = Laplace(0.7)
    assert law.cdf(a).tolist() == pytest.approx([cdf("Laplace", v, 0.7) for v in a.tolist()])
    assert law.pdf(a).tolist() == pytest.approx([pdf("Laplace", v, 0.7) for v in a.tolist()])
    assert law.icdf(law.cdf(a)).tolist() == pytest.approx(a.tolist(), abs=1e-12)


# Units -------------------------------------------------------------------------------------------


def expected(name: str, p: float, f: float, x: int, gain: float) -> float:
    """c(a, x) from its definition, with p = F(a)."""
    P, mu = (p if x > 0 else 1 - p), 2 * p - 1
    zgr = f / P
    kind, _, number = name.rpartition("_")
    if name == "straight_through":
        return 2 * f
    if name == "straight_through_rescaled":
        return 2 * f / math.sqrt(gain)
    if name == "zgr":
        return zgr
    value = float(number)
    if kind == "zgr_clipped":
        return min(zgr, value)
    if kind == "line_tau":
        s = 1 / (1 + value * (1 - mu * mu))
    else:  # the smallest s in [0, 1] whose larger factor is at most the cap, or 1
        rare = min(p, 1 - p)

        def over(s: float) -> float:
            return f * (1 - s * abs(mu)) / rare - value

        s = 0.0 if over(0) <= 0 else 1.0 if over(1) > 0 else optimize.brentq(over, 0, 1)
    return f * (1 + s * x * mu) / P


@pytest.mark.slow
@pytest.mark.parametrize("law", ["Logistic", "Uniform", "Triangular"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_factors_are_those_of_their_definitions(name: str, law: str) -> None:
    net = Deep(2, noise=law, estimator=name, relative_scale=0.8)
    noise, scale = net.law, net.law.scale
    gain = 2 * integrate.quad(
        lambda a: 4 * pdf(law, a, scale) ** 2 * math.exp(-a * a / 2) / math.sqrt(2 * math.pi),
        0, 12, points=[scale],
    )[0]  # fmt: skip
    for a in (scale * v for v in (-0.975, -0.75, -0.05, 0.275, 0.9, 0.9875)):
        for x in (-1, 1):
            wanted = expected(name, cdf(law, a, scale), pdf(law, a, scale), x, gain)
            assert delivered(net.chain_rule, a, x, noise) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_trains_beside_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rates and seeds of a network are one stack, in which nothing may be new to it."""
    monkeypatch.setattr(how_deep, "EPOCHS", 1)
    net = {"depth": 2, "width": 8, "estimator": name, "seeds": 2}
    [row] = how_deep.trained(net)
    assert len(row["ten"]) == 2
    assert all(0 <= value <= 1 for value in row["ten"])


def test_clipping_is_biased_for_linear_losses_and_capping_is_not() -> None:
    """E c against 2f near the end of the support of uniform noise."""
    noise, a = NOISES["uniform"](1.0), 0.95
    p, f = cdf("Uniform", a, 1.0), pdf("Uniform", a, 1.0)
    for name, exact in (("zgr_clipped_2", False), ("zgr_capped_2", True), ("line_tau_5", True)):
        mean = sum(
            (p if x > 0 else 1 - p) * delivered(ESTIMATORS[name], a, x, noise) for x in (1, -1)
        )
        assert (abs(mean - 2 * f) < 1e-9) == exact
    lost = f - (1 - p) * 2.0  # of the rarer state, f - q C
    clipped = sum(
        (p if x > 0 else 1 - p) * delivered(ESTIMATORS["zgr_clipped_2"], a, x, noise)
        for x in (1, -1)
    )
    assert 2 * f - clipped == pytest.approx(lost)


# Networks ----------------------------------------------------------------------------------------


def test_the_inputs_are_centred_and_have_mean_square_1() -> None:
    whole = datasets.load("digits")
    x = DIGITS.train.inputs
    assert x.mean(0).abs().max() < 1e-6
    assert x.square().mean().item() == pytest.approx(1, abs=1e-6)
    raw = whole.train.inputs
    scale = (raw - raw.mean(0)).square().mean().sqrt()
    assert torch.allclose(DIGITS.test.inputs, (whole.test.inputs - raw.mean(0)) / scale)


@pytest.mark.parametrize("norm", deep.NORMS)
def test_the_weights_have_variance_1_over_fan_in(norm: str) -> None:
    """Uniform: within 4.5 standard errors of the mean square, 4/5 of its square over the count."""
    net = Deep(3, width=200, norm=norm).build(DIGITS, 0).net
    for layer in net.layers:
        weight, bias = layer[0].weight, layer[0].bias
        square = weight.square() * weight.shape[1]
        assert abs(square.mean().item() - 1) < 4.5 * math.sqrt(0.8 / weight.numel())
        assert weight.abs().max().item() <= math.sqrt(3 / weight.shape[1])
        assert not bias.any()


def test_the_residual_network_is_its_recursion() -> None:
    classifier = Deep(4, width=6, residual=True).build(DIGITS, 1)
    net = classifier.net.double().eval()
    inputs = DIGITS.test.inputs[:5].double()
    g = np.random.default_rng(0)
    states = [torch.tensor(g.choice([-1.0, 1.0], (5, 6))) for _ in range(4)]
    h, x, drawn = torch.zeros(5, 6, dtype=torch.float64), inputs, []
    for layer, state in zip(net.layers, states, strict=True):
        h = h + x @ layer.weight.T + layer.bias
        drawn.append((h / math.sqrt(1 + 1e-5)).detach())  # batch norm at its start
        x = state
    seen: list[torch.Tensor] = []

    def give(a: torch.Tensor, **_: Any) -> torch.Tensor:
        seen.append(a.detach())
        return states[len(seen) - 1]

    net.sign.forward = give
    assert net(inputs) is states[-1]
    for a, b in zip(seen, drawn, strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("depth", 0, "depth must be"),
        ("width", 1.5, "width must be"),
        ("noise", "Student", "noise: got 'Student', known are Cauchy, Fast.*, Laplace"),
        ("estimator", "st", "estimator: got 'st', known are straight_through, zgr"),
        ("norm", "layer", "norm: got 'layer', known are batch, none"),
        ("relative_scale", 0.0, "relative_scale: got 0.0, must be a number > 0"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(field: str, value: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        Deep(**{"depth": 2} | {field: value})


# The law -----------------------------------------------------------------------------------------


def networks() -> list[dict[str, Any]]:
    return [
        dict(depth=d, width=n, gain=G, overlap=s)
        for d in (2, 4, 8, 16)
        for n in (32, 64, 128)
        for G, s in ((0.3, 0.25), (1.0, 0.53), (2.5, 0.6), (5.0, 0.62))
    ]


def by_hand(of: Any, row: dict[str, Any]) -> float:
    top, start, wide, rate, training = of
    D = math.log(max(row["gain"] / training, 1) / row["overlap"])
    inside = start + wide * math.log(row["width"] / 64) - rate * row["depth"] * D
    return 0.1 + (top - 0.1) / (1 + math.exp(-inside))


@pytest.mark.slow
def test_the_law_is_the_formula_of_its_prediction() -> None:
    of = (0.97, 4.0, 0.7, 0.8, 1.6)
    assert how_deep.law(of, networks()) == pytest.approx([by_hand(of, r) for r in networks()])
    (said,) = [r["says"] for r in how_deep.predictions() if r["name"] == "held out"]
    assert "accuracy = .1 + (top - .1)/(1 + exp(-(start + wide ln(n/64) - rate L D)))" in said
    assert "D = ln(max(G/training, 1)/s)" in said


def test_the_fit_finds_the_numbers_that_made_the_accuracies() -> None:
    of = (0.97, 4.0, 0.7, 0.8, 1.6)
    rows = [r | {"ten": [by_hand(of, r)] * 2} for r in networks()]
    assert how_deep.fitted(rows) == pytest.approx(of, rel=1e-4)


@pytest.mark.slow
def test_the_predictions_are_functions_of_the_integrals_alone() -> None:
    found = {row["name"]: row for row in how_deep.predictions()}
    rate = found["order at gain 1"]["overlap"]
    assert rate["FastSigmoid"] < rate["Cauchy"] < rate["Laplace"] < rate["Logistic"]
    ratio = math.log(rate["Uniform"]) / math.log(rate["FastSigmoid"])
    assert found["failure depth"]["ratio"] == pytest.approx(ratio)
    assert ratio == pytest.approx(0.67, abs=0.005)


# The command -------------------------------------------------------------------------------------


def test_the_parts_are_those_that_the_docstring_names() -> None:
    words = how_deep.__doc__ or ""
    assert all(f"``{part}``" in words for part in how_deep.PARTS)
    counts = {part: len(list(make())) for part, make in how_deep.PARTS.items()}
    assert counts == {
        "grid": 448, "widths": 42, "noises": 56, "rescaled": 8, "cures": 24, "held-out": 140,
        "fashion": 20,
    }  # fmt: skip
    for make in how_deep.PARTS.values():
        for settings in make():
            Deep(**{k: v for k, v in settings.items() if k not in ("seeds", "data")})


@pytest.mark.slow
def test_a_part_names_its_data(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fashion-MNIST's images have 784 pixels and the digits 64: a net of the one has no other."""
    seen: list[int] = []
    build = Deep.build

    def watched(self: Deep, data: Any, seed: int) -> Any:
        seen.append(data.train.inputs.shape[1])
        return build(self, data, seed)

    monkeypatch.setattr(Deep, "build", watched)
    for part, pixels in (("grid", 64), ("fashion", 784)):
        first = next(how_deep.PARTS[part]()) | {"width": 8, "seeds": 1}
        monkeypatch.setitem(how_deep.PARTS, "cures", lambda first=first: iter([first]))
        assert how_deep.main(["--part", "cures", "--out", str(short)]) == 0
        assert set(seen) == {pixels}
        [row] = measurement.read(short)["rows"]
        assert row["data"] == ("digits" if part == "grid" else "fashion-mnist-4000")
        seen.clear()


def tiny() -> Any:
    yield {"depth": 2, "width": 8, "noise": "Uniform", "seeds": 2}
    yield {"depth": 3, "width": 8, "noise": "Laplace", "norm": "none", "seeds": 2}


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One part of two tiny networks, trained for two epochs; where it writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(how_deep, "EPOCHS", 2)
    monkeypatch.setitem(how_deep.PARTS, "cures", tiny)
    return tmp_path / "x.json"


@pytest.mark.slow
def test_the_command_writes_the_rows_of_a_part(short: Path, capsys: Any) -> None:
    assert how_deep.main(["--part", "cures", "--out", str(short)]) == 0
    found = measurement.read(short)
    assert found["kind"] == "how deep" and found["seeds"] == [0, 1]
    assert found["command"] == "python -m sbnlib.experiments.how_deep --part cures"
    first, second = found["rows"]
    assert (first["depth"], first["noise"], second["noise"]) == (2, "Uniform", "Laplace")
    for row in found["rows"]:
        assert len(row["one"]) == len(row["ten"]) == len(row["sign"]) == 2
        assert row["lr"] == how_deep.RATES[int(np.argmax(row["validation"]))]
        assert 0.05 < np.mean(row["ten"]) < 1
    assert not list(Path("runs").glob("how-deep-*"))
    assert "gain  1.000: 0." in capsys.readouterr().out


@pytest.mark.slow
def test_jobs_may_be_done_one_by_one(short: Path, capsys: Any) -> None:
    """--list prints a command for each; what they keep is what the whole finds."""
    assert how_deep.main(["--part", "cures", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and not short.exists()
    for line in lines:
        module, *options = line.split()[2:]
        assert module == "sbnlib.experiments.how_deep"
        assert how_deep.main(options) == 0
    assert how_deep.main(["--part", "cures", "--list"]) == 0
    assert "--job" not in capsys.readouterr().out
    assert how_deep.main(["--part", "cures", "--out", str(short)]) == 0
    again = short.with_name("again.json")
    assert how_deep.main(["--part", "cures", "--out", str(again)]) == 0
    assert measurement.read(short)["rows"] == measurement.read(again)["rows"]


@pytest.mark.slow
def test_the_predictions_are_written_without_a_training(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(how_deep, "trained", lambda *_: pytest.fail("it trained"))
    assert how_deep.main(["--part", "predictions", "--out", str(short)]) == 0
    rows = json.loads(short.read_text())["rows"]
    assert [r["name"] for r in rows] == [r["name"] for r in how_deep.predictions()]
