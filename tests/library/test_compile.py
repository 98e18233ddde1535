"""torch.func.vmap and torch.compile: same values, same gradients, NaN stays NaN."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import in_order, make_net, make_noise, random_inputs, z_limit
from torch.func import functional_call, grad, vmap

import sbnlib
from sbnlib import chain_rule, darn, identity, proxy, sample_sign, straight_through, zgr
from sbnlib.nn import Sign

pytestmark = pytest.mark.slow

CHAIN_RULE = {
    "straight_through": straight_through,
    "zgr": zgr,
    "darn": darn,
    "chain_rule": partial(chain_rule, s=0.3),
    "identity": identity,
    "hardtanh": partial(proxy, name="hardtanh"),
}
every_chain_rule = pytest.mark.parametrize("name", CHAIN_RULE)
noises = pytest.mark.parametrize("noise_name", ref.NOISES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------- vmap


@noises
def test_vmap_draws_independent_samples(noise_name: str) -> None:
    # Frequencies of the second unit; six z-tests, together 1e-6
    torch.manual_seed(0)
    a = torch.tensor([-0.3, 0.4])
    noise = make_noise(noise_name)
    x = vmap(lambda _: sample_sign(a, noise), randomness="different")(torch.zeros(2**16))
    assert bool((x.abs() == 1).all())
    p = float(ref.RefNoise(noise_name).cdf(0.4))
    z = ((x[:, 1] == 1).double().mean().item() - p) / np.sqrt(p * (1 - p) / 2**16)
    assert abs(z) < z_limit(6)


@noises
def test_vmap_over_uniforms_is_the_loop(noise_name: str) -> None:
    noise, a = make_noise(noise_name), torch.linspace(-1, 1, 5, dtype=torch.float64)
    u = torch.rand(20, 5, generator=seeded(), dtype=torch.float64)
    mapped = vmap(lambda u: sample_sign(a, noise, u=u))(u)
    assert torch.equal(mapped, torch.stack([sample_sign(a, noise, u=row) for row in u]))


@every_chain_rule
@noises
def test_per_sample_gradients_by_vmap_are_the_factors(name: str, noise_name: str) -> None:
    noise = make_noise(noise_name)
    a = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64)
    x = torch.tensor([1.0, -1, -1, 1, 1, -1], dtype=torch.float64)
    mapped = vmap(grad(lambda a, x: CHAIN_RULE[name](a, x, noise).sum()))(a[:, None], x[:, None])
    leaf = a.clone().requires_grad_()
    (looped,) = torch.autograd.grad(CHAIN_RULE[name](leaf, x, noise).sum(), leaf)
    torch.testing.assert_close(mapped[:, 0], looped)


@pytest.mark.parametrize("name", ["straight_through", "zgr"])
def test_per_input_gradients_of_a_network_by_vmap(name: str) -> None:
    net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=1)
    model, loss = make_net(net, CHAIN_RULE[name]), ref.smooth_loss(2)
    inputs, states = random_inputs(4, 2), [x[[0, 9, 22, 31]] for x in ref.paths((3, 2))]

    def one(params: dict, v: torch.Tensor, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        kwargs = {"states": [x1[None], x2[None]]}
        return loss.torch(functional_call(model, params, (v[None],), kwargs)).sum()

    params = {k: p.detach() for k, p in model.named_parameters()}
    mapped = vmap(grad(one), in_dims=(None, 0, 0, 0))(
        params, torch.tensor(inputs), *map(torch.tensor, states)
    )
    for b, path in enumerate((0, 9, 22, 31)):
        _, grads = ref.path_estimates(net, inputs[b], loss, 0, name)
        for g, e in zip(mapped.values(), in_order(grads), strict=True):
            np.testing.assert_allclose(g[b].numpy(), e[path], rtol=1e-10, atol=1e-14)


@noises
def test_nan_logits_under_vmap_give_nan_and_never_a_sign(noise_name: str) -> None:
    noise, nan = make_noise(noise_name), torch.tensor([[0.3], [float("nan")]])
    u = torch.full((2, 1), 0.1)
    x = vmap(lambda a, u: sample_sign(a, noise, u=u))(nan, u)
    assert x[0].item() == 1 and torch.isnan(x[1]).all()
    for mode in ("sample", "sign", "mean"):
        kwargs = {"u": u[0]} if mode == "sample" else {}
        out = vmap(lambda a, m=mode, k=kwargs: Sign(noise)(a, mode=m, **k))(nan)
        assert torch.isfinite(out[0]).all() and torch.isnan(out[1]).all()


# ----------------------------------------------------------------------------- compile


def compiled(function: object, backend: str) -> object:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, dynamic=False)


@noises
def test_compiled_units_equal_eager_ones(noise_name: str) -> None:
    # One graph for all chain-rule estimators: values equal, gradients equal, NaN in, NaN out
    noise = make_noise(noise_name)

    def run(a: torch.Tensor, u: torch.Tensor) -> list[torch.Tensor]:
        x = sample_sign(a, noise, u=u)
        return [x, *(f(a, x, noise) for f in CHAIN_RULE.values())]

    a = torch.linspace(-1.5, 1.5, 33, dtype=torch.float64)
    u = torch.rand(33, generator=seeded(), dtype=torch.float64)
    results = []
    for function in (run, compiled(run, "aot_eager")):
        leaf = a.clone().requires_grad_()
        out = function(leaf, u)
        grads = [torch.autograd.grad(o.sum(), leaf, retain_graph=True)[0] for o in out[1:]]
        results.append([o.detach() for o in out] + grads)
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager)
    with_nan = a.clone()
    with_nan[3] = float("nan")
    out = compiled(run, "aot_eager")(with_nan, u)
    assert all(torch.isnan(o[3]) and torch.isfinite(o[4:]).all() for o in out)


def test_a_network_compiles_whole_with_uniforms_handed_in() -> None:
    # Inductor, forward and backward in one graph; expected gradient by the chain written out
    net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=1)
    model, loss = make_net(net, zgr), ref.smooth_loss(2)
    v, path = np.array([[0.4, -1.2]]), 22
    states = [x[path : path + 1] for x in ref.paths((3, 2))]
    us = [torch.tensor(np.where(x > 0, 1e-9, 1 - 1e-9)) for x in states]
    fast = compiled(lambda v, us: loss.torch(model(v, u=us)), "inductor")
    value = fast(torch.tensor(v), us)
    assert value.item() == pytest.approx(float(loss.value(states[1], 0)[0]), rel=1e-12)
    value.sum().backward()
    _, grads = ref.path_estimates(net, v[0], loss, 0, "zgr")
    for p, g in zip(model.parameters(), in_order(grads), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), g[path], rtol=1e-9, atol=1e-13)


def test_nan_logits_compiled_by_inductor_give_nan() -> None:
    unit = Sign()
    fast = compiled(lambda a, u: unit(a, u=u), "inductor")
    out = fast(torch.tensor([0.0, float("nan"), 3.0]), torch.tensor([0.9, 0.1, 0.1]))
    assert out[0] == -1 and torch.isnan(out[1]) and out[2] == 1


def test_compile_prints_no_warning_of_ours() -> None:
    # Of a function with a cache, which asks each layer whether it takes a generator
    class Mine(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    torch._dynamo.reset()
    net = sbnlib.SBN(torch.nn.Linear(3, 4), torch.nn.Sequential(Mine(4, 2), torch.nn.Tanh()))
    fast = torch.compile(net, fullgraph=True, backend="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = fast(torch.zeros(5, 3))
    assert x.shape == (5, 2)
    assert [w for w in caught if "sbnlib" in str(w.message) or "network.py" in str(w.message)] == []
