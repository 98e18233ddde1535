"""Infinite logits where values are not looked at: the certain state, with gradient 0, never NaN.

On eager CPU tensors they are refused. Under torch.func and torch.compile, and on other devices,
they come through, and the units beside them must not notice.
"""

from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise
from discovered import PROXIES
from rows import seeded
from torch import nn
from torch.func import grad, vmap

import sbnlib
from sbnlib import SBN, network_estimator, registry
from sbnlib.nn import Sign

noises = pytest.mark.parametrize("noise_name", ref.NOISES)
INF = math.inf
LOGITS = torch.tensor([-INF, 0.4, INF], dtype=torch.float64)
CHAIN_RULE = {e.name: e.function for e in registry.ESTIMATORS.values() if e.kind == "chain rule"}
CHAIN_RULE |= {name: partial(sbnlib.proxy, name=name) for name in PROXIES}
CHAIN_RULE |= {
    "chain_rule": partial(sbnlib.chain_rule, s=0.3),
    "shrinkage": partial(sbnlib.shrinkage, omega=3.0),
    "function": partial(sbnlib.proxy, function=torch.tanh),
}
#: Uniforms of the states: the ends of [0, 1) would turn a probability of 1e-40 or 1 - 1e-17.
UNIFORMS = (0.0, 0.3, 1 - 2**-53)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager tensors that are not looked at, as on a GPU."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@noises
def test_f_and_its_density_at_the_ends_of_the_line(noise_name: str) -> None:
    for scale in (1.0, 0.7):
        noise, a = make_noise(noise_name, scale), torch.tensor([-INF, INF, math.nan]).double()
        leaf = a.clone().requires_grad_()
        (slope,) = torch.autograd.grad(noise.cdf(leaf)[:2].sum(), leaf)
        assert noise.cdf(a)[:2].tolist() == [0, 1] and noise.pdf(a)[:2].tolist() == [0, 0]
        assert slope[:2].tolist() == [0, 0]
        assert noise.cdf(a)[2].isnan() and noise.pdf(a)[2].isnan()


def run_all(unit: Sign, a: torch.Tensor, u: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every unit and every estimator that is handed its numbers puts out."""
    noise = unit.noise
    x = sbnlib.sample_sign(a, noise, u=u)
    out = {"sample_sign": x, "concrete": sbnlib.concrete(a, noise, tau=0.5, u=u)}
    out |= {f"mode {mode}": unit(a, mode=mode) for mode in ("sign", "mean")}
    for name, estimator in CHAIN_RULE.items():
        inner = {"st_gumbel": {"u": u}, "gumbel_rao": {"u": u.expand(10, *u.shape)}}.get(name, {})
        out[name] = estimator(a, x, noise, **inner)
    return out


def slopes_of(out: dict[str, torch.Tensor], leaf: torch.Tensor) -> dict[str, torch.Tensor]:
    """d out/d leaf, 0 where there is no graph."""
    return {
        name: torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0]
        if value.requires_grad
        else torch.zeros(3)
        for name, value in out.items()
    }


def assert_certain(out: dict[str, torch.Tensor], slopes: dict[str, torch.Tensor], p: float) -> None:
    """At the infinite logits the value is the sign and the slope 0; 0.4 has its own."""
    for name, value in out.items():
        assert value[[0, 2]].tolist() == [-1, 1], name
        assert slopes[name][[0, 2]].tolist() == [0, 0], name
        assert value[1].isfinite() and slopes[name][1].isfinite(), name
    assert slopes["straight_through"][1].item() == pytest.approx(2 * p, rel=1e-12)


@noises
def test_eager_units_that_are_not_looked_at(noise_name: str, unseen: None) -> None:
    unit, law = Sign(make_noise(noise_name)), ref.RefNoise(noise_name)
    for p in UNIFORMS:
        leaf = LOGITS.clone().requires_grad_()
        out = run_all(unit, leaf, torch.full((3,), p, dtype=torch.float64))
        assert_certain(out, slopes_of(out, leaf), float(law.pdf(0.4)))


@pytest.mark.slow
@noises
def test_units_under_vmap(noise_name: str) -> None:
    unit, law = Sign(make_noise(noise_name)), ref.RefNoise(noise_name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of operations that vmap has no rule for
        for p in UNIFORMS:
            u = torch.full((3,), p, dtype=torch.float64)
            out = vmap(lambda a, u: run_all(unit, a, u))(LOGITS, u)
            slopes = {name: vmap(grad(lambda a, u, n=name: run_all(unit, a, u)[n]))(LOGITS, u)
                      for name in out}  # fmt: skip
            assert_certain(out, slopes, float(law.pdf(0.4)))


@pytest.mark.slow
@noises
def test_units_compiled(noise_name: str) -> None:
    unit, law = Sign(make_noise(noise_name)), ref.RefNoise(noise_name)
    torch._dynamo.reset()
    fast = torch.compile(partial(run_all, unit), fullgraph=True, backend="eager", dynamic=False)
    leaf = LOGITS.clone().requires_grad_()
    out = fast(leaf, torch.full((3,), 0.3, dtype=torch.float64))
    assert_certain(out, slopes_of(out, leaf), float(law.pdf(0.4)))


def test_units_without_values_have_their_shapes() -> None:
    a = torch.empty(3, device="meta", requires_grad=True)
    out = run_all(Sign(), a, torch.empty(3, device="meta"))
    assert all(value.shape == (3,) for value in out.values())


@noises
def test_impossible_states_at_infinite_logits_get_the_factor_0(
    noise_name: str, unseen: None
) -> None:
    a = torch.tensor([-INF, INF]).double().requires_grad_()
    for name, estimator in CHAIN_RULE.items():
        options = {"generator": seeded()} if name in ("st_gumbel", "gumbel_rao") else {}
        x = torch.tensor([1.0, -1.0]).double()
        out = estimator(a, x, make_noise(noise_name), **options)
        (c,) = torch.autograd.grad(out.sum(), a)
        assert torch.equal(out, x) and c.tolist() == [0, 0], name


LOSS_BASED = {e.name: e.function for e in registry.ESTIMATORS.values() if e.kind == "loss based"}


@noises
@pytest.mark.parametrize("name", LOSS_BASED)
def test_loss_based_estimates_that_are_not_looked_at(
    name: str, noise_name: str, unseen: None
) -> None:
    loss = ref.smooth_loss(3)
    leaf = LOGITS.expand(50, 3).clone().requires_grad_()
    value = LOSS_BASED[name](loss.torch, leaf, make_noise(noise_name), generator=seeded(1))
    (g,) = torch.autograd.grad(value.sum(), leaf)
    assert (g[:, [0, 2]] == 0).all() and g.isfinite().all() and (g[:, 1] != 0).any()
    certain = [float(loss.value(np.array([-1.0, s, 1.0]), 0)) for s in (-1.0, 1.0)]
    seen = value.detach().numpy()
    assert np.isclose(seen[:, None], certain, rtol=1e-12).any(1).all() or name == "reinforce_loo"


def test_a_network_with_an_infinite_unit_is_the_network_with_a_certain_one(unseen: None) -> None:
    net, inputs = SBN(nn.Linear(2, 3), nn.Linear(3, 2)).double(), torch.ones(4, 2).double()
    with torch.no_grad():
        net.layers[0].bias[0] = INF
    loss = ref.smooth_loss(2).torch
    for name in registry.ESTIMATORS:
        net.zero_grad()
        values = network_estimator(name)(net, inputs, loss, generator=seeded(2))
        values.sum().backward()
        for p in net.parameters():
            assert p.grad.isfinite().all(), name
        assert (net.layers[0].weight.grad[0] == 0).all(), name
        assert values.isfinite().all(), name


def test_infinite_logits_are_refused_on_the_cpu() -> None:
    for name, estimator in CHAIN_RULE.items():
        with pytest.raises(ValueError, match="a must be finite"):
            estimator(LOGITS, torch.ones(3).double(), make_noise("Logistic")), name
