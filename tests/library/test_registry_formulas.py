r"""The formula of every entry, read as arithmetic.

Each is written for the LaTeX that stands in the registry: whoever changes one reads both. One unit
(two for PSA), Gaussian noise, a loss of no finite degree; the states are those the loss was shown,
the uniforms those of the library's own stream, everything else is scipy's and plain Python's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from places import BOOK
from scipy.stats import norm
from torch import Tensor, nn

from sbnlib import SBN, Gaussian, network_estimator, registry
from sbnlib.units import uniforms

TAU, SEED = 0.5, 3
F, f = norm.cdf, norm.pdf


def loss(x: float) -> float:
    return math.exp(0.7 * x) + 0.3 * x * x


def slope(x: float) -> float:
    return 0.7 * math.exp(0.7 * x) + 0.6 * x


def loss_of(x: Tensor) -> Tensor:
    return (torch.exp(0.7 * x) + 0.3 * x * x)[..., 0]


def mean(a: float) -> float:
    return F(a) - F(-a)


def score(x: float, a: float) -> float:
    return x * f(a) / F(x * a)


def sech2(v: float) -> float:
    return 1 / math.cosh(v) ** 2


def derivative(function: Callable[[float], float], a: float) -> float:
    step = 1e-5
    return (function(a + step) - function(a - step)) / (2 * step)


@dataclass
class Draw:
    """What was drawn: the states in the order the loss saw them, and the uniforms."""

    states: list[float]
    u: list[float]

    @property
    def x(self) -> float:
        return self.states[0]

    def z(self, a: float) -> float:
        """a - Z."""
        return a - norm.ppf(self.u[0])

    def z_given_x(self, a: float) -> float:
        """a - Z', with Z' drawn given the sign of a - Z."""
        return a - self.x * norm.ppf(self.u[1] * F(self.x * a))


def control(z: float) -> float:
    return loss(math.tanh(z / (2 * TAU)))


def control_and_r(z: float) -> float:
    return control(z) + 0.1 * math.tanh(z)


def rebar(c: Callable[[float], float], a: float, d: Draw) -> float:
    rest = loss(d.x) - c(d.z_given_x(a))
    at_z = derivative(lambda v: c(d.z(v)), a)
    return rest * score(d.x, a) + at_z - derivative(lambda v: c(d.z_given_x(v)), a)


#: Formula -> the estimate of the derivative in a, for one draw.
CHAIN_RULE: dict[str, Callable[[float, float], float]] = {
    r"2f(a)": lambda a, x: 2 * f(a),
    r"f(a)/P(x)": lambda a, x: f(a) / F(x * a),
    r"2f(a)\,P(-x)/P(x)": lambda a, x: 2 * f(a) * F(-x * a) / F(x * a),
    r"1": lambda a, x: 1.0,
    r"[\,|a|<1\,]": lambda a, x: float(abs(a) < 1),
}
RELAXED: dict[str, Callable[[float, list[float]], float]] = {  # Z_1, ..., Z_m given
    r"\tfrac1{2\tau}\operatorname{sech}^2\tfrac{a-Z}{2\tau},\ Z\mid x": lambda a, z: (
        sech2((a - z[0]) / (2 * TAU)) / (2 * TAU)
    ),
    r"\tfrac1m\sum_k\tfrac1{2\tau}\operatorname{sech}^2\tfrac{a-Z_k}{2\tau}": lambda a, z: (
        sum(sech2((a - v) / (2 * TAU)) / (2 * TAU) for v in z) / len(z)
    ),
}
FOUST = r"f(a)/P(x)\ \text{at}\ xv"
CONCRETE = r"\tfrac{d}{da}L\big(\tanh\tfrac{a-Z}{2\tau}\big)"
LOSS_BASED: dict[str, Callable[[float, Draw], float]] = {
    r"L(x)\,x f(a)/P(x)": lambda a, d: loss(d.x) * score(d.x, a),
    r"\tfrac12(L(x)-L(x'))\big(\tfrac{xf}{P(x)}-\tfrac{x'f}{P(x')}\big)": lambda a, d: (
        0.5 * (loss(d.x) - loss(d.states[1])) * (score(d.x, a) - score(d.states[1], a))
    ),
    r"f(a_i)\,\Delta_iL(x)": lambda a, d: f(a) * (loss(1.0) - loss(-1.0)),
    r"(L(x)-L(\tilde x))(u-\tfrac12)\,f/(F(a)F(-a))": lambda a, d: (
        (loss(d.x) - loss(d.states[1])) * (d.u[0] - 0.5) * f(a) / (F(a) * F(-a))
    ),
    r"\tfrac12(L(x)-L(\tilde x))\,x\,[x\ne\tilde x]\,f/F(-|a|)": lambda a, d: (
        0.5 * (loss(d.x) - loss(d.states[1])) * d.x * (d.x != d.states[1]) * f(a) / F(-abs(a))
    ),
    r"(L(x)-l-g^\top(x-\mu))\,xf/P(x)+2f\,g": lambda a, d: (
        (loss(d.states[1]) - loss(mean(a)) - slope(mean(a)) * (d.states[1] - mean(a)))
        * score(d.states[1], a)
        + 2 * f(a) * slope(mean(a))
    ),
    r"(L(x)-\omega c(z'))\,xf/P(x)+\omega\nabla c(z)-\omega\nabla c(z')": lambda a, d: rebar(
        control, a, d
    ),
    r"\text{as REBAR, with } c+r": lambda a, d: rebar(control_and_r, a, d),
}
PSA = {  # x_1, P(x_1) -> what the estimate is divided by
    r"f(a_i)\,x_i\sum_j\Delta_{ij}D_j": lambda p: 1.0,
    r"f(a_i)\,x_i\sum_j\Delta_{ij}D_j\big/2P(x_i)": lambda p: 2 * p,
}
BY_KIND = {
    "chain rule": {*CHAIN_RULE, *RELAXED},
    "loss based": {*LOSS_BASED},
    "relaxation": {CONCRETE, FOUST},
    "network": {*PSA},
}
ENTRIES = registry.ESTIMATORS.values()
AT = (-1.2, -0.3, 0.7)


def of(formulas: object) -> pytest.MarkDecorator:
    entries = [e for e in ENTRIES if e.formula in formulas]
    return pytest.mark.parametrize("entry", entries, ids=lambda e: e.name)


def leaf(a: float) -> Tensor:
    return torch.tensor([[a]], dtype=torch.float64, requires_grad=True)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_formula_is_read_here(entry: registry.Entry) -> None:
    assert entry.formula in BY_KIND[entry.kind]


@of(CHAIN_RULE)
@pytest.mark.parametrize("x", [-1.0, 1.0])
@pytest.mark.parametrize("a", AT)
def test_the_factor_of_a_function_of_the_state(entry: registry.Entry, a: float, x: float) -> None:
    at = leaf(a)
    entry.function(at, torch.tensor([[x]]).double(), Gaussian()).sum().backward()
    assert at.grad.item() == pytest.approx(CHAIN_RULE[entry.formula](a, x), rel=1e-12)


@of(RELAXED)
@pytest.mark.parametrize("x", [-1.0, 1.0])
@pytest.mark.parametrize("a", AT)
def test_the_factor_of_a_relaxed_slope(entry: registry.Entry, a: float, x: float) -> None:
    count = 10 if "sum" in entry.formula else 1
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 0.98
    shape = (count, 1, 1) if count > 1 else (1, 1)
    at = leaf(a)
    state = torch.tensor([[x]]).double()
    entry.function(at, state, Gaussian(), u=u.reshape(shape)).sum().backward()
    z = [x * norm.ppf(v * F(x * a)) for v in u.tolist()]
    assert at.grad.item() == pytest.approx(RELAXED[entry.formula](a, z), rel=1e-10)


@of({CONCRETE})
@pytest.mark.parametrize("a", AT)
def test_the_slope_of_the_relaxed_loss(entry: registry.Entry, a: float) -> None:
    at, u = leaf(a), 0.3
    relaxed = entry.function(at, Gaussian(), u=torch.tensor([[u]], dtype=torch.float64))
    loss_of(relaxed).sum().backward()
    expected = derivative(lambda v: loss(math.tanh((v - norm.ppf(u)) / (2 * TAU))), a)
    assert at.grad.item() == pytest.approx(expected, rel=1e-8)


@of({FOUST})
@pytest.mark.parametrize("x", [-1.0, 1.0])
@pytest.mark.parametrize("a", AT)
def test_the_slope_at_the_shrunken_state(entry: registry.Entry, a: float, x: float) -> None:
    at, v = leaf(a), 0.3
    u = torch.tensor([[[F(a) / 2 if x > 0 else (1 + F(a)) / 2]], [[v]]], dtype=torch.float64)
    loss_of(entry.function(at, Gaussian(), u=u)).sum().backward()
    assert at.grad.item() == pytest.approx(f(a) / F(x * a) * slope(x * v), rel=1e-12)


@of(LOSS_BASED)
@pytest.mark.parametrize("a", AT)
def test_the_estimate_of_one_draw(entry: registry.Entry, a: float) -> None:
    at, states = leaf(a), []

    def seen(x: Tensor) -> Tensor:
        states.extend(x.detach().flatten().tolist())
        return loss_of(x)

    entry.function(seen, at, Gaussian(), generator=seeded()).sum().backward()
    stream = seeded()
    u = [uniforms((1, 1), at, stream).item() for _ in range(2)]
    expected = LOSS_BASED[entry.formula](a, Draw(states, u))
    assert at.grad.item() == pytest.approx(expected, rel=1e-7, abs=1e-9)


@of(PSA)
@pytest.mark.parametrize("a", AT)
def test_the_estimate_along_one_path(entry: registry.Entry, a: float) -> None:
    """1-1-1: a_2 = w x_1, so Delta = F(x_2 a_2) - F(-x_2 a_2), and D = L(x_2) - L(-x_2)."""
    w, seen = 0.8, []
    net = SBN(nn.Linear(1, 1), nn.Linear(1, 1, bias=False), noise=Gaussian()).double()
    with torch.no_grad():
        net.layers[0].weight.zero_()
        net.layers[0].bias.fill_(a)
        net.layers[1].weight.fill_(w)
        net.layers[1].register_forward_hook(lambda _, given, out: seen.append(given[0].item()))

    def last(x: Tensor) -> Tensor:
        seen.append(x.flatten()[0].item())
        return loss_of(x)

    estimate = network_estimator(entry.name)
    estimate(net, torch.zeros(1, 1).double(), last, generator=seeded()).sum().backward()
    x1, x2 = seen[:2]
    change = F(x2 * w * x1) - F(-x2 * w * x1)
    expected = f(a) * x1 * change * (loss(x2) - loss(-x2)) / PSA[entry.formula](F(x1 * a))
    assert net.layers[0].bias.grad.item() == pytest.approx(expected, rel=1e-12)


# --------------------------------------------------------------------- chapters and sources

#: What the book derives where.
CHAPTERS = {
    4: {"reinforce", "reinforce_loo"},
    5: {"local_expectation", "arm", "disarm"},
    6: {"straight_through"},
    7: {"psa", "psa_symmetric"},
    8: {"identity", "hardtanh"},
    9: {"concrete", "st_gumbel", "gumbel_rao", "foust"},
    10: {"zgr", "darn"},
    11: {"muprop", "rebar", "relax"},
}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_the_chapter_is_the_one_that_derives_it(entry: registry.Entry) -> None:
    assert [k for k, names in CHAPTERS.items() if entry.name in names] == [entry.chapter]
    function = getattr(entry.function, "func", entry.function)
    assert re.search(rf"chapter {entry.chapter}\b", function.__doc__ or "")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_the_papers_are_in_the_bibliography(entry: registry.Entry) -> None:
    keys = re.findall(r"^@\w+\{([^,\s]+)", (BOOK / "references.bib").read_text("utf-8"), re.M)
    assert entry.papers and set(entry.papers) <= set(keys)
