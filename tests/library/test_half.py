"""Half precision: a factor is right to one rounding of its dtype, a value bit for bit.

Expected values are the closed forms in float64 at the same logits, states and uniforms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise
from discovered import PROXIES
from reference import Array, RefNoise
from rows import sech2, seeded
from slopes import SLOPES
from torch import nn

import sbnlib
from sbnlib import SBN, Logistic, registry
from sbnlib.estimators import control_variates, flips, score
from sbnlib.inference import PlainMean
from sbnlib.nn import Sign
from sbnlib.noise import Noise
from sbnlib.units import states_at

MAGNITUDES = (0.001, 0.3, 0.9, 2.0, 5.0, 7.0, 9.0, 12.0)
LOGITS = (*(-m for m in MAGNITUDES), 0.0, *MAGNITUDES)
TAU = 0.5
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
noises = pytest.mark.parametrize("noise_name", ref.NOISES)


def assert_rounded(found: torch.Tensor, exact: Array, slack: float | Array = 0.0) -> None:
    """Off by one rounding to the dtype, and 1e-4 (or ``slack``) for what came before it."""
    info = torch.finfo(found.dtype)
    allowed = (info.eps / 2 + 1e-4) * np.abs(exact) + info.tiny * info.eps + slack
    gap = np.abs(found.detach().double().numpy() - exact)
    assert (gap <= allowed).all(), np.stack([found.double().numpy(), exact])[:, gap > allowed]


def both_states(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Array, Array]:
    """Every logit with both states, as a leaf and states in ``dtype``, and as arrays."""
    leaf = torch.tensor(LOGITS, dtype=dtype).repeat(2).requires_grad_()
    x = torch.ones_like(leaf).detach()
    x[len(LOGITS) :] = -1
    return leaf, x, leaf.detach().double().numpy(), x.double().numpy()


# ------------------------------------------------------------------------------ chain rule


def slope_of_relaxed(noise: RefNoise, a: Array, x: Array, u: Array) -> Array:
    """sech^2((a - Z)/2 tau)/2 tau with Z = x F^-1(u F(xa))."""
    q = u * noise.cdf(x * a)
    z = x * noise.scale * ref.LAWS[noise.name].icdf(np.where(q > 0, q, 0.5))
    return np.where(q > 0, sech2((a - z) / (2 * TAU)) / (2 * TAU), np.nan)


#: The factor of each chain-rule entry; those of :func:`reference.factor` by their name there.
FACTORS = ref.Named[str | Callable](
    "factor of a chain-rule estimator",
    {
        "straight_through": "straight_through",
        "zgr": "zgr",
        "darn": lambda noise, a, x, u: 2 * noise.pdf(a) * noise.prob(-x, a) / noise.prob(x, a),
        "identity": "identity",
        "hardtanh": lambda noise, a, x, u: SLOPES["hardtanh"].slope(a),
        "st_gumbel": slope_of_relaxed,
        "gumbel_rao": slope_of_relaxed,
    },
)
ENTRIES = [e for e in registry.ESTIMATORS.values() if e.kind == "chain rule"]


@halves
@noises
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_a_factor_is_right_to_one_rounding(
    entry: registry.Entry, noise_name: str, dtype: torch.dtype
) -> None:
    noise, law = RefNoise(noise_name, 1.3), make_noise(noise_name, 1.3)
    leaf, x, a, given = both_states(dtype)
    u, exact = np.full_like(a, 0.37), FACTORS[entry.name]
    options = {}
    if not entry.state_only:
        options["u"] = torch.tensor(u).expand(*(10,) * (entry.name == "gumbel_rao"), *leaf.shape)
    out = entry.function(leaf, x, law, **options)
    assert torch.equal(out, x) and out.dtype == dtype
    (c,) = torch.autograd.grad(out.sum(), leaf)
    if isinstance(exact, str):
        expected = ref.factor(exact, noise, a, given)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):  # impossible states are left out
            expected = exact(noise, a, given, u)
    possible = (noise.cdf(a * given) > 0) & ~np.isnan(expected)
    assert possible.sum() >= len(LOGITS)
    assert_rounded(c[torch.tensor(possible)], expected[possible])
    assert c.isfinite().all()


@halves
@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_is_right_to_one_rounding(name: str, dtype: torch.dtype) -> None:
    leaf, x, a, _ = both_states(dtype)
    (c,) = torch.autograd.grad(sbnlib.proxy(leaf, x, name=name).sum(), leaf)
    assert_rounded(c, SLOPES[name].slope(a))


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_keeps_its_tail_in_single_precision(name: str) -> None:
    # 1 - tanh^2 is 0 from 9 on, and 90 for a slope of 1/10. One rounding of the point moves log h
    # by at most a^2 2^-24 (erf, up to 12) or 5 |a| 2^-24 (swish)
    a = torch.linspace(-110, 110, 441).requires_grad_()
    (c,) = torch.autograd.grad(sbnlib.proxy(a, torch.ones(441), name=name).sum(), a)
    exact = SLOPES[name].slope(a.detach().double().numpy())
    np.testing.assert_allclose(c.double().numpy(), exact, rtol=1e-4, atol=1e-30)


@noises
def test_the_relaxed_slope_keeps_its_tail_in_single_precision(noise_name: str) -> None:
    a = torch.linspace(-20, 20, 41).requires_grad_()
    for sign in (1.0, -1.0):
        x, u = torch.full((41,), sign), torch.full((41,), 0.37, dtype=torch.float64)
        noise = RefNoise(noise_name)
        out = sbnlib.st_gumbel(a, x, make_noise(noise_name), tau=TAU, u=u)
        (c,) = torch.autograd.grad(out.sum(), a)
        at = a.detach().double().numpy()
        exact = slope_of_relaxed(noise, at, x.double().numpy(), u.numpy())
        known = ~np.isnan(exact) & (noise.cdf(sign * at) > 1e-30)
        np.testing.assert_allclose(c.double().numpy()[known], exact[known], rtol=2e-4, atol=1e-30)


@halves
@noises
def test_the_relaxed_unit_is_right_to_one_rounding(noise_name: str, dtype: torch.dtype) -> None:
    # torch's own derivative of tanh, 1 - y^2, is off by 2^-23 in float32
    noise, law = RefNoise(noise_name, 1.3), make_noise(noise_name, 1.3)
    leaf, _, a, _ = both_states(dtype)
    u = np.linspace(0.05, 0.95, len(a))
    out = sbnlib.concrete(leaf, law, tau=TAU, u=torch.tensor(u))
    (c,) = torch.autograd.grad(out.sum(), leaf)
    v = (a - 1.3 * ref.LAWS[noise_name].icdf(u)) / (2 * TAU)
    assert out.dtype == dtype and noise.scale == 1.3
    assert_rounded(out, np.tanh(v))
    assert_rounded(c, sech2(v) / (2 * TAU), slack=2.0**-23 / TAU)


@halves
@noises
def test_the_mean_is_right_to_one_rounding(noise_name: str, dtype: torch.dtype) -> None:
    # F(0.001) rounds to 1/2 in half precision; float32 itself leaves 2^-23
    noise, law = RefNoise(noise_name, 1.3), make_noise(noise_name, 1.3)
    leaf, _, a, _ = both_states(dtype)
    for out in (Sign(law)(leaf, mode="mean"), PlainMean(law)(leaf)):
        (c,) = torch.autograd.grad(out.sum(), leaf)
        assert out.dtype == dtype
        assert_rounded(out, noise.cdf(a) - noise.cdf(-a), slack=2.0**-23)
        assert_rounded(c, 2 * noise.pdf(a))


# -------------------------------------------------------------------- beyond the dtype's range


@pytest.mark.parametrize("name", ["straight_through", "zgr", "darn"])
def test_a_factor_beyond_the_range_of_half_precision_leaves_the_value_alone(name: str) -> None:
    # 2 f(0) = 5e5 at scale 1e-6, and 65504 is the largest number: inf * 0 is NaN
    leaf, x = torch.zeros(4, dtype=torch.float16).requires_grad_(), torch.ones(4).half()
    out = registry.get(name).function(leaf, x, Logistic(1e-6))
    assert torch.equal(out, x)
    (c,) = torch.autograd.grad((1e-3 * out).sum(), leaf, retain_graph=True)
    assert c.tolist() == pytest.approx([500] * 4, rel=1e-3)
    (c,) = torch.autograd.grad(out.sum(), leaf)
    assert (c == torch.inf).all()


@pytest.mark.parametrize("size", [1e-38, 1e38])
def test_scales_whose_density_is_no_number_of_single_precision_are_refused(size: float) -> None:
    with pytest.raises(ValueError, match="scale must be a number from 1e-37 to 1e37, got"):
        Logistic(size)
    for size_ in (1e-37, 1e37):
        a = torch.zeros(1, requires_grad=True)
        out = sbnlib.straight_through(a, torch.ones(1), Logistic(size_))
        assert out.item() == 1 and torch.autograd.grad(out, a)[0].item() == pytest.approx(
            0.5 / size_, rel=1e-6
        )
    with pytest.raises(ValueError, match="tau must be a temperature from 1e-37 to 1e37, got"):
        sbnlib.concrete(torch.zeros(1), Logistic(), tau=1e-38)


# ------------------------------------------------------------------------------ loss based

#: Uniforms of the states: the first makes a +1 of probability 1e-9 or more.
UNIFORMS = (1e-9, 0.001, 0.7, 0.999)


def loss(x: torch.Tensor) -> torch.Tensor:
    """2 x for one unit, exact in every dtype."""
    return 2 * x[..., 0]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[Array]:
    """Uniforms that the estimators draw, in order; each logit meets each of UNIFORMS."""
    drawn: list[Array] = []

    def uniforms(shape: tuple[int, ...], like: torch.Tensor, generator: object) -> torch.Tensor:
        first = torch.tensor(UNIFORMS, dtype=torch.float64)[:, None, None].expand(4, len(LOGITS), 1)
        later = torch.rand(first.shape, generator=seeded(len(drawn)), dtype=torch.float64)
        drawn.append((later if drawn else first).numpy())
        return torch.tensor(drawn[-1]).reshape(shape)

    def draw(a: torch.Tensor, noise: Noise, shape: Sequence[int], _: object) -> torch.Tensor:
        return states_at(a, noise, uniforms(shape, a, None))

    for module in (score, flips, control_variates):
        monkeypatch.setattr(module, "draw", draw)
    for module in (flips, control_variates):
        monkeypatch.setattr(module, "uniforms", uniforms)
    return drawn


def state(noise: RefNoise, a: Array, u: Array) -> Array:
    return np.where(u < noise.cdf(a), 1.0, -1.0)


def by_score(noise: RefNoise, a: Array, us: list[Array]) -> tuple[Array, Array]:
    x = state(noise, a, us[0])
    term = 2 * x * x * noise.pdf(a) / noise.prob(x, a)
    return term, np.abs(term)


def by_arm(noise: RefNoise, a: Array, us: list[Array]) -> tuple[Array, Array]:
    x, partner = state(noise, a, 1 - us[0]), state(noise, a, us[0])
    spread = np.maximum(noise.cdf(a) * noise.cdf(-a), 1e-300)
    term = 2 * (x - partner) * (us[0] - 0.5) * noise.pdf(a) / spread
    return term, np.abs(term)


def by_disarm(noise: RefNoise, a: Array, us: list[Array]) -> tuple[Array, Array]:
    x, partner = state(noise, a, 1 - us[0]), state(noise, a, us[0])
    tail = np.maximum(noise.cdf(-np.abs(a)), 1e-300)
    term = (x - partner) * x * (x != partner) * noise.pdf(a) / tail
    return term, np.abs(term)


def by_coupling(
    noise: RefNoise, a: Array, us: list[Array], c: Callable, slope: Callable
) -> tuple[Array, Array]:
    """REBAR's formula with c(z), and the sizes of its terms."""
    icdf = ref.LAWS[noise.name].icdf
    x = state(noise, a, us[0])
    z = a - noise.scale * icdf(us[0])
    explained = x * noise.scale * icdf(us[1] * noise.prob(x, a))
    z_given_x = a - explained
    moves = 1 - us[1] * noise.pdf(a) / noise.pdf(explained)  # dz'/da
    s = x * noise.pdf(a) / noise.prob(x, a)
    terms = [2 * x * s, -c(z_given_x) * s, slope(z), -slope(z_given_x) * moves]
    return sum(terms), sum(np.abs(t) for t in terms)


ESTIMATES = {
    "reinforce": (sbnlib.reinforce, by_score),
    "local_expectation": (
        sbnlib.local_expectation,
        lambda noise, a, us: (4 * noise.pdf(a), 4 * noise.pdf(a)),
    ),
    "arm": (sbnlib.arm, by_arm),
    "disarm": (sbnlib.disarm, by_disarm),
    "muprop": (sbnlib.muprop, lambda noise, a, us: (4 * noise.pdf(a), 4 * noise.pdf(a))),
    "rebar": (
        partial(sbnlib.rebar, tau=TAU),
        partial(
            by_coupling,
            c=lambda z: 2 * np.tanh(z / (2 * TAU)),
            slope=lambda z: sech2(z / (2 * TAU)) / TAU,
        ),
    ),
    "relax": (
        partial(sbnlib.relax, eta=0.0, control=lambda z: 2 * z[..., 0]),
        partial(by_coupling, c=lambda z: 2 * z, slope=lambda z: 2 + 0 * z),
    ),
}


@halves
@pytest.mark.parametrize("noise_name", ["Logistic", "Gaussian", "Cauchy", "FastSigmoid"])
@pytest.mark.parametrize("name", ESTIMATES)
def test_an_estimate_is_right_to_one_rounding(
    name: str, noise_name: str, dtype: torch.dtype, known: list[Array]
) -> None:
    # Of every term, where the loss is evaluated at a point that is rounded itself
    function, expected = ESTIMATES[name]
    noise, law = RefNoise(noise_name, 1.3), make_noise(noise_name, 1.3)
    leaf = torch.tensor(LOGITS, dtype=dtype)[:, None].expand(4, -1, 1).clone().requires_grad_()
    value = function(loss, leaf, law)
    assert value.dtype == dtype
    (g,) = torch.autograd.grad(value.sum(), leaf)
    a = leaf.detach().double().numpy()
    exact, size = expected(noise, a, known)
    assert g.dtype == dtype
    if name not in ("rebar", "relax"):
        assert_rounded(g, exact)
    else:  # which keep their uniforms off 0 by 2^-25; torch's derivative of tanh is off by 2^-23
        assert_rounded(g[1:], exact[1:], slack=torch.finfo(dtype).eps * size[1:] + 2.0**-21)


def test_every_loss_based_entry_is_tried() -> None:
    tried = {getattr(f, "func", f) for f, _ in ESTIMATES.values()}
    entries = [e for e in registry.ESTIMATORS.values() if e.kind == "loss based"]
    assert tried == {getattr(e.function, "func", e.function) for e in entries}


@halves
@pytest.mark.parametrize("noise_name", ["Logistic", "Gaussian", "Cauchy"])
def test_psa_is_right_to_one_rounding(noise_name: str, dtype: torch.dtype) -> None:
    # 1-1-1 units, weights 1 and 2: g_1 = f(a_1) x_1 [F(x_2 a_2) - F(x_2 (a_2 - 4 x_1))] D_2
    noise, seen = RefNoise(noise_name, 1.3), []
    net = SBN(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False),
              noise=make_noise(noise_name, 1.3)).to(dtype)  # fmt: skip
    for layer, weight in zip(net.layers, (1.0, 2.0), strict=True):
        nn.init.constant_(layer.weight, weight)
        layer.register_forward_hook(lambda _, args, out: seen.append((args[0].detach(), out)))
    inputs = torch.tensor(LOGITS, dtype=dtype)[:, None].requires_grad_()
    value = sbnlib.psa(net, inputs, loss, generator=seeded(1))
    (g,) = torch.autograd.grad(value.sum(), inputs)
    (_, a1), (x1, a2) = [(x.double().numpy(), a.detach().double().numpy()) for x, a in seen]
    x2 = value.detach().double().numpy()[:, None] / 2
    d2 = 4 * x2
    change = noise.cdf(x2 * a2) - noise.cdf(x2 * (a2 - 4 * x1))
    size = noise.pdf(a1) * 4 * 1e-6  # float32 rounding of a difference of two F
    assert_rounded(g, noise.pdf(a1) * x1 * change * d2, slack=size)
