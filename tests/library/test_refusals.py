"""What cannot be meant is refused where it is handed in, by the name of its argument."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from rows import seeded
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import sbnlib
from sbnlib import SBN, layerwise, measure, pathwise
from sbnlib.nn import BernoulliLinear, Sign
from sbnlib.noise import Logistic, Noise, Uniform
from sbnlib.optim import FlipRatio, MirrorDescent, Proximal, proxquant

INPUTS = torch.ones(6, 3)


def net() -> SBN:
    return SBN(nn.Linear(3, 4), nn.Linear(4, 2))


def loss(x: torch.Tensor) -> torch.Tensor:
    return x.sum(-1)


def refused(call: Callable[[], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        call()


# ------------------------------------------------------------------------------ estimators


class Estimate:
    def __init__(self, a: Any, x: Any, noise: Any) -> None: ...


class Slope(nn.Module):
    def forward(self, a: torch.Tensor, x: torch.Tensor, noise: Noise) -> torch.Tensor:
        return sbnlib.zgr(a, x, noise)


TAKE_A_CHAIN_RULE = {
    "Sign": lambda f: Sign(estimator=f),
    "SBN": lambda f: SBN(nn.Linear(3, 2), estimator=f),
    "pathwise": pathwise,
    "a call": lambda f: net()(INPUTS, estimator=f),
}
NO_CHAIN_RULES = [
    (Estimate, TypeError, "got the class Estimate"),
    (Sign, TypeError, "got the class Sign"),
    (Sign(), TypeError, "does not take three arguments"),
    (lambda a: a, TypeError, "<lambda>, which does not take three arguments"),
    (lambda a, x: x, TypeError, "which does not take three arguments"),
    (layerwise("reinforce"), ValueError, r"layerwise\(reinforce\) of kind 'network'"),
    (lambda loss, a, noise: a, ValueError, "of kind 'loss based': layerwise makes"),
    (lambda net, inputs, loss: inputs, ValueError, "of kind 'network'"),
]


@pytest.mark.parametrize("where", TAKE_A_CHAIN_RULE)
@pytest.mark.parametrize("given, kind, said", NO_CHAIN_RULES)
def test_what_is_no_chain_rule_is_refused(
    where: str, given: Any, kind: type[Exception], said: str
) -> None:
    refused(lambda: TAKE_A_CHAIN_RULE[where](given), kind, f"^estimator must be .*{said}")


@pytest.mark.parametrize(
    "given",
    [lambda a, x, noise: x, lambda *given: sbnlib.zgr(*given), Slope(),
     partial(sbnlib.chain_rule, s=0.5), lambda a, x, law, **more: sbnlib.zgr(a, x, law)],
)  # fmt: skip
@pytest.mark.parametrize("where", TAKE_A_CHAIN_RULE)
def test_what_is_a_chain_rule_is_taken(where: str, given: Any) -> None:
    TAKE_A_CHAIN_RULE[where](given)


@pytest.mark.parametrize(
    "given, said",
    [(Estimate, "the class|Estimate"), (lambda a: a, "three arguments"),
     (sbnlib.zgr, "of kind 'chain rule'"), (lambda a, x, noise: x, "of kind 'chain rule'")],
)  # fmt: skip
def test_what_is_not_loss_based_is_refused(given: Any, said: str) -> None:
    refused(lambda: layerwise(given), (TypeError, ValueError), f"^estimator must be .*{said}")


@pytest.mark.parametrize(
    "given, said",
    [
        (sbnlib.zgr, r"got zgr\(a, x, noise\); use pathwise\(zgr\)"),
        (Slope(), r"use pathwise\(Slope\(\)\)"),
        (lambda a, x, noise: x, r"got <lambda>\(a, x, noise\); use pathwise\(<lambda>\)"),
        (partial(sbnlib.chain_rule, s=0.5), r"use pathwise\(partial\(chain_rule, ...\)\)"),
        (sbnlib.reinforce, r"use layerwise\(reinforce\)"),
        (Estimate, "got Estimate"),
        (lambda a: a, "got <lambda>"),
    ],
)
def test_measure_says_what_makes_a_network_estimator(given: Any, said: str) -> None:
    call = lambda: measure(net(), INPUTS, loss, given, 4)  # noqa: E731
    refused(call, ValueError, f"^estimator must be a network estimator .*{said}")


# ------------------------------------------------------------------------------ noise


def test_a_law_may_be_assigned_by_its_name_and_is_checked() -> None:
    unit, layer = Sign(), BernoulliLinear(3, 2)
    for module in (unit, layer):
        module.noise = "uniform"
        assert module.noise == Uniform()
        with pytest.raises(TypeError, match="noise must be a noise model"):
            module.noise = 3
        with pytest.raises(ValueError, match="noise must be one of"):
            module.noise = "normal"
    assert layer.eta.noise == Uniform()
    assert layer(INPUTS).shape == (6, 2)


class NoScale(Noise):
    def __init__(self) -> None:
        pass


class NoQuantiles(Noise):
    _cdf, _pdf = Logistic._cdf, Logistic._pdf


def test_a_law_without_its_parts_is_named() -> None:
    refused(lambda: SBN(nn.Linear(3, 2), noise=NoScale()), TypeError,
            r"^noise must have a scale, NoScale must call super\(\).__init__\(scale\)")  # fmt: skip
    refused(lambda: BernoulliLinear(3, 2, noise=NoQuantiles()), NotImplementedError,
            "^NoQuantiles must define _icdf_lower, the quantiles up to 1/2 at scale 1")  # fmt: skip


# ------------------------------------------------------------------------------ states and losses


@pytest.mark.parametrize("key", ["u", "states"])
@pytest.mark.parametrize("given, got", [(3, "a int"), ("ab", "a str"), (iter([]), "a list_")])
def test_states_and_uniforms_are_a_list(key: str, given: Any, got: str) -> None:
    call = lambda: net()(INPUTS, **{key: given})  # noqa: E731
    refused(call, ValueError, f"^{key} must hold 2 tensors, one a layer, got {got}")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_uniforms_are_floating_point(dtype: torch.dtype) -> None:
    a, x, u = torch.zeros(3), torch.ones(3), torch.zeros(3).to(dtype)
    for call in (
        lambda: sbnlib.sample_sign(a, "logistic", u=u),
        lambda: Sign()(a, u=u),
        lambda: sbnlib.concrete(a, "logistic", tau=0.5, u=u),
        lambda: sbnlib.st_gumbel(a, x, "logistic", tau=0.5, u=u),
    ):
        refused(call, TypeError, "^u must be floating-point uniforms")


def test_a_loss_is_a_function() -> None:
    a = torch.zeros(2, 3)
    for call in (
        lambda: sbnlib.exact_gradient(net(), INPUTS, None),
        lambda: sbnlib.exact_expectation(net(), INPUTS, None),
        lambda: pathwise("zgr")(net(), INPUTS, None),
        lambda: layerwise("reinforce")(net(), INPUTS, None),
        lambda: sbnlib.psa(net(), INPUTS, None),
        lambda: sbnlib.reinforce(None, a, "logistic"),
        lambda: sbnlib.muprop(None, a, "logistic"),
        lambda: measure(net(), INPUTS, None, "zgr", 4),
    ):
        refused(call, TypeError, "^loss must be a function of the states, got None")
    control = lambda: sbnlib.relax(loss, a, "logistic", control=3, eta=0.0)  # noqa: E731
    refused(control, TypeError, "^control must be a function of the states, got 3")


def test_other_functions_are_functions() -> None:
    a, x = torch.zeros(3, requires_grad=True), torch.ones(3)
    refused(lambda: sbnlib.proxy(a, x, h=1), TypeError, "^h must be a function of a, got 1")
    refused(lambda: sbnlib.proxy(a, x, function=1), TypeError, "^function must be a function")
    for constant in (torch.Tensor.detach, torch.zeros_like):
        call = partial(sbnlib.proxy, a, x, function=constant)
        refused(call, ValueError, "^function must be differentiable in a")
    with torch.no_grad():
        assert torch.equal(sbnlib.proxy(a, x, function=torch.tanh), x)
    refused(lambda: sbnlib.classification_loss(3, torch.tensor([0])), TypeError, "^head must be")
    base = torch.optim.SGD([torch.zeros(2, requires_grad=True)], 0.1)
    refused(lambda: Proximal(base, 3, 0.1), TypeError, "^prox must be a function of latent")
    assert Proximal(base, proxquant, 0.1)


@pytest.mark.parametrize("given", [nn.Linear(2, 2), torch.zeros(3), 3, [3], [torch.zeros(1), "a"]])
def test_the_flip_ratio_is_of_tensors(given: Any) -> None:
    refused(lambda: FlipRatio(given), TypeError, "^params must (be|hold) tensors")


# ------------------------------------------------------------------------------ torch's wrappers


def test_a_computed_eta_is_refused() -> None:
    pruned, shifted = BernoulliLinear(3, 2), BernoulliLinear(3, 2)
    prune.l1_unstructured(pruned, "eta", amount=0.5)
    parametrize.register_parametrization(shifted, "eta", nn.Softplus(), unsafe=True)
    for layer in (pruned, shifted):
        refused(lambda layer=layer: layer(INPUTS), RuntimeError, "^eta must be a parameter")


def test_the_real_weights_of_a_layer_may_be_computed() -> None:
    assert SBN(parametrizations.weight_norm(nn.Linear(3, 2)))(INPUTS).shape == (6, 2)


class Block(nn.Module):
    """A layer whose forward takes no generator."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Passing(Block):
    def forward(self, x: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.inner(x, generator=generator)


def test_a_generator_that_cannot_reach_a_draw_is_refused() -> None:
    # The layer inside would draw from torch's own generator, and the run could not be repeated
    layer = BernoulliLinear(3, 2)
    refused(lambda: SBN(Block(layer))(INPUTS, generator=seeded()), ValueError,
            "^generator must reach every module that draws: the forward of Block")  # fmt: skip
    assert SBN(Block(layer))(INPUTS).shape == (6, 2)
    assert SBN(Block(nn.Linear(3, 2)))(INPUTS, generator=seeded()).shape == (6, 2)
    runs = [SBN(Passing(layer))(INPUTS, generator=seeded(1)) for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", ["muprop", "rebar", "relax", "gauge_fixed"])
def test_estimators_with_derivatives_on_the_way_are_refused_under_torch_func(name: str) -> None:
    fixed = {"gauge_fixed": sbnlib.gauge_fixed}
    estimator = fixed[name] if name in fixed else sbnlib.registry.get(name).function
    value = lambda a: estimator(loss, a, Logistic()).sum()  # noqa: E731
    for transform in (torch.func.grad, torch.func.vmap, torch.func.jacrev):
        how = {"randomness": "different"} if transform is torch.func.vmap else {}
        refused(lambda f=transform, how=how: f(value, **how)(torch.zeros(2, 3)), RuntimeError,
                "^muprop, rebar, relax and gauge_fixed .* by torch.func")  # fmt: skip


# ------------------------------------------------------------------------------ batch norm


@pytest.mark.parametrize(
    "data, got",
    [({"x": INPUTS}, "be .*, got dict"), ("inputs", "be .*, got str"), (3, "be .*, got int"),
     ([{"x": INPUTS}], "hold .*type dict"), ([3], "hold .*type int"), ([()], "hold .*type tuple")],
)  # fmt: skip
def test_data_for_batch_norm_are_tensors(data: Any, got: str) -> None:
    layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    refused(lambda: sbnlib.reestimate_batch_norm(layer, data), TypeError, f"^data must {got}")


def test_a_pass_that_fails_leaves_the_statistics_as_they_were() -> None:
    layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    layer(torch.randn(50, 3, generator=seeded()))
    before = {name: b.clone() for name, b in layer.named_buffers()}
    with pytest.raises(RuntimeError):
        sbnlib.reestimate_batch_norm(layer, [INPUTS, torch.ones(6, 4)])
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name])
    assert layer[1].momentum == 0.1 and layer.training


def test_schedules_of_momentum_say_how_to_leave_it_out() -> None:
    # torch's own sentence names the option that does it
    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=9)
    for make in (sbnlib.optim.Bop, sbnlib.optim.BinaryConnect):
        eta = torch.zeros(2, requires_grad=True)
        refused(lambda make=make, eta=eta: schedule(make([eta], 0.1)), ValueError, "cycle_momentum")
        assert schedule(make([eta], 0.1), cycle_momentum=False)
    assert schedule(MirrorDescent([eta], 0.1))
