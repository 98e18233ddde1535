"""Where an estimator or a noise enters: generators passed on, names taken, wrong ones refused."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sbnlib
from sbnlib import SBN, Logistic, Triangular, layerwise, network_estimator, pathwise, zgr
from sbnlib.contracts import (
    check_values,
    is_finite,
    is_traced,
    looking_is_free,
    takes,
    with_generator,
)
from sbnlib.nn import BernoulliLinear, Sign
from sbnlib.noise import NOISES, as_noise
from sbnlib.optim import MirrorDescent

A = torch.linspace(-1, 1, 6).reshape(2, 3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------ generators


def noisy_slope(a: Tensor, x: Tensor, noise: Any, generator: torch.Generator | None) -> Tensor:
    """A chain-rule estimator whose factor is a fresh uniform."""
    return x + torch.rand(a.shape, generator=generator) * (a - a.detach())


def by_name(
    a: Tensor, x: Tensor, noise: Any, *, generator: torch.Generator | None = None
) -> Tensor:
    return noisy_slope(a, x, noise, generator)


def among_others(a: Tensor, x: Tensor, noise: Any, **options: Any) -> Tensor:
    return noisy_slope(a, x, noise, **options)


@dataclass(eq=True)  # without a hash
class AsObject:
    scale: float = 1.0

    def __call__(
        self, a: Tensor, x: Tensor, noise: Any, *, generator: torch.Generator | None = None
    ) -> Tensor:
        return noisy_slope(a, x, noise, generator)


DRAW = {
    "by name": by_name,
    "among others": among_others,
    "object": AsObject(),
    "partial": partial(noisy_slope, generator=None),
}


def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = A.clone().requires_grad_()
    return torch.autograd.grad(run(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("name", DRAW)
def test_an_estimator_that_draws_gets_the_generator_whatever_its_form(name: str) -> None:
    own = DRAW[name]
    net = SBN(nn.Linear(3, 3))
    nn.init.eye_(net.layers[0].weight)
    nn.init.zeros_(net.layers[0].bias)
    for run in (
        lambda a, g: Sign(estimator=own)(a, generator=g),
        lambda a, g: Sign()(a, estimator=own, generator=g),
        lambda a, g: net(a, estimator=own, generator=g),
        lambda a, g: pathwise(own)(net, a, lambda x: x.sum(-1), generator=g),
    ):
        first, again, other = (
            gradient(lambda a, run=run, s=s: run(a, seeded(s))) for s in (1, 1, 2)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)


@dataclass(eq=True)  # without a hash
class ForwardAsObject:
    layer: nn.Module

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self.layer(x) + torch.rand(3, generator=generator)


def test_a_forward_that_has_no_hash_gets_the_generator() -> None:
    layer = nn.Linear(3, 3)
    layer.forward = ForwardAsObject(nn.Linear(3, 3))
    for net in (SBN(layer), SBN(nn.Sequential(layer, nn.Tanh()))):
        first, again, other = (net(A, mode="mean", generator=seeded(s)).detach() for s in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)


@dataclass(eq=True)
class LossBasedAsObject:
    scale: float = 1.0

    def __call__(self, loss: Any, a: Tensor, noise: Any, **options: Any) -> Tensor:
        return sbnlib.reinforce(loss, a, noise, **options)


def test_objects_without_a_hash_stand_wherever_an_estimator_does() -> None:
    net, loss = SBN(nn.Linear(3, 4), nn.Linear(4, 2)).double(), lambda x: x.sum(-1)
    inputs = A.double()
    draws = [
        network_estimator(pathwise(AsObject())),
        layerwise(LossBasedAsObject()),
        layerwise(partial(LossBasedAsObject(), num_samples=2)),
        partial(AsNetwork(), scale=2.0),
        AsNetwork(),
    ]
    for estimator in draws:
        sbnlib.measure(net, inputs, loss, estimator, 4, generator=seeded())
        first, again = (
            network_estimator(estimator)(net, inputs, loss, generator=seeded(1)) for _ in range(2)
        )
        assert torch.equal(first, again) and first.shape == (2,)
    sbnlib.exact_moments(net, inputs, loss, StateOnlyAsObject())


@dataclass(eq=True)
class AsNetwork:
    scale: float = 1.0

    def __call__(self, net: SBN, inputs: Tensor, loss: Any, **options: Any) -> Tensor:
        return pathwise(zgr)(net, inputs, loss, generator=options["generator"])


@dataclass(eq=True)
class StateOnlyAsObject:
    scale: float = 1.0

    def __call__(self, a: Tensor, x: Tensor, noise: Any) -> Tensor:
        return x + self.scale * (a - a.detach())


def test_an_estimator_that_draws_nothing_is_wrapped_once() -> None:
    def own(a: Tensor, x: Tensor, noise: Any) -> Tensor:
        return x + 3 * (a - a.detach())

    wrapped = with_generator(own)
    assert with_generator(wrapped) is wrapped and with_generator(by_name) is by_name
    assert repr(wrapped) == "own" and not takes(own, "generator")
    assert torch.equal(gradient(lambda a: Sign(estimator=own)(a, generator=seeded())), 0 * A + 3)


def test_a_loss_based_or_network_estimator_without_a_generator_is_taken_too() -> None:
    def own_loss_based(loss: Any, a: Tensor, noise: Any) -> Tensor:
        return loss(a.sign()) + 2 * (a - a.detach()).sum(-1)

    def own_network(net: SBN, inputs: Tensor, loss: Any) -> Tensor:
        return loss(net.layers[0](inputs))

    net, loss = SBN(nn.Linear(3, 4), nn.Linear(4, 3)), lambda x: x.sum(-1)
    assert layerwise(own_loss_based)(net, A, loss, generator=seeded()).shape == (2,)
    assert network_estimator(own_network)(net, A, loss, generator=seeded()).shape == (2,)


def test_a_function_without_a_signature_is_not_handed_a_generator() -> None:
    assert not takes(torch.add, "generator")
    assert with_generator(torch.add)(A, A, generator=seeded()).equal(2 * A)


def test_a_layer_that_takes_any_keyword_gets_the_generator() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = BernoulliLinear(3, 3)

        def forward(self, x: Tensor, **options: Any) -> Tensor:
            return self.inner(x, **options)

    net = SBN(Mine(), nn.Sequential(BernoulliLinear(3, 3), nn.Tanh()))
    first, again, other = (net(A.expand(50, 2, 3), generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_estimator_of_a_unit_can_be_assigned_copied_and_pickled() -> None:
    unit = Sign()
    unit.estimator = "zgr"
    assert unit.estimator is zgr
    for twin in (copy.deepcopy(unit), pickle.loads(pickle.dumps(unit))):
        assert twin.estimator is zgr
        assert torch.equal(gradient(lambda a, t=twin: t(a, generator=seeded())),
                           gradient(lambda a: unit(a, generator=seeded())))  # fmt: skip
    with pytest.raises(ValueError, match="'reinforce' is loss based"):
        unit.estimator = "reinforce"


# ---------------------------------------------------------------------------- twice, in place

NUMBERS = {
    "straight_through": lambda a: sbnlib.straight_through(a, A.sign(), Logistic()),
    "zgr": lambda a: zgr(a, A.sign(), Logistic()),
    "hardtanh": lambda a: sbnlib.proxy(a, A.sign(), name="hardtanh"),
    "st_gumbel": lambda a: sbnlib.st_gumbel(a, A.sign(), Logistic(), tau=0.5),
    "reinforce": lambda a: sbnlib.reinforce(lambda x: x.sum(-1), a, Logistic()),
    "disarm": lambda a: sbnlib.disarm(lambda x: x.sum(-1), a, Logistic()),
    "Sign": lambda a: Sign()(a),
    "SBN": lambda a: SBN(nn.Linear(3, 3), nn.Linear(3, 2))(a),
    "psa": lambda a: sbnlib.psa(SBN(nn.Linear(3, 2)), a, lambda x: x.sum(-1)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_an_estimate_cannot_be_differentiated_again(name: str) -> None:
    # Its factor is a constant to torch, so that 2 f(a) L'(x) would lose 2 f'(a) L'(x)
    leaf = A.clone().requires_grad_()
    for loss in (lambda v: v.sum(), lambda v: v.square().sum()):
        with pytest.raises(RuntimeError, match="create_graph must be False through a binary unit"):
            torch.autograd.grad(loss(NUMBERS[name](leaf)), leaf, create_graph=True)
        torch.autograd.grad(loss(NUMBERS[name](leaf)), leaf)


def test_a_graph_of_other_gradients_is_no_ones_business() -> None:
    net, head = SBN(nn.Linear(3, 2)), nn.Linear(2, 1)
    value = head(net(A)).square().sum()
    (g,) = torch.autograd.grad(value, [head.weight], create_graph=True)
    g.square().sum().backward()
    assert head.weight.grad.isfinite().all()


def test_what_is_a_function_can_be_differentiated_twice() -> None:
    # x + m(a) - m(a) has the derivatives of m, the identity and the mean their own
    leaf = torch.linspace(-1, 1, 7, dtype=torch.float64).requires_grad_()
    x, noise = leaf.detach().sign(), Logistic()
    t = np.tanh(leaf.detach().numpy())
    f = 0.25 * (1 - np.tanh(leaf.detach().numpy() / 2) ** 2)
    for run, slope, second in (
        (lambda a: sbnlib.identity(a, x), np.ones(7), np.zeros(7)),
        (lambda a: sbnlib.proxy(a, x, function=torch.tanh), 1 - t**2, -2 * t * (1 - t**2)),
        (lambda a: Sign(noise)(a, mode="mean"), 2 * f,
         -2 * f * np.tanh(leaf.detach().numpy() / 2)),
    ):  # fmt: skip
        value = run(leaf)
        (g,) = torch.autograd.grad((value**3).sum() / 3, leaf, create_graph=True)
        (h,) = torch.autograd.grad(g.sum(), leaf)
        v = value.detach().numpy()
        np.testing.assert_allclose(g.detach().numpy(), v**2 * slope, rtol=1e-12, atol=1e-15)
        expected = 2 * v * slope**2 + v**2 * second
        np.testing.assert_allclose(h.numpy(), expected, rtol=1e-11, atol=1e-14)


def test_under_torch_func_a_second_derivative_holds_the_factor_constant() -> None:
    # As the docstring says: of (x^2)' = 2 c x it is 2 c^2, without 2 c' x
    a, x = torch.tensor(0.7, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    run = lambda a: sbnlib.straight_through(a, x, Logistic()).square()  # noqa: E731
    c = 0.5 / np.cosh(0.35) ** 2
    assert torch.func.grad(run)(a).item() == pytest.approx(2 * c, rel=1e-12)
    assert torch.func.grad(torch.func.grad(run))(a).item() == pytest.approx(2 * c**2, rel=1e-12)


def test_a_factor_that_would_learn_is_refused() -> None:
    # What it is made of would get the gradient 0, because the value does not depend on it
    a, x = torch.zeros(3, requires_grad=True), torch.ones(3)
    knob = torch.tensor(0.5, requires_grad=True)
    for call in (
        lambda: sbnlib.chain_rule(a, x, Logistic(), s=knob),
        lambda: sbnlib.st_gumbel(a, x, Logistic(), tau=knob),
        lambda: sbnlib.gumbel_rao(a, x, Logistic(), tau=knob, num_inner=2),
        lambda: sbnlib.proxy(a, x, h=lambda a: knob * torch.exp(-a.abs())),
    ):
        with pytest.raises(ValueError, match="c must be a constant, got a factor that requires"):
            call()
    # The relaxed unit does depend on its temperature
    value = sbnlib.concrete(a + 0.3, Logistic(), tau=knob, u=torch.full((3,), 0.4))
    (g,) = torch.autograd.grad(value.sum(), knob)
    v = (0.3 - math.log(0.4 / 0.6)) / 2
    assert g.item() == pytest.approx(-3 * v / 0.25 / math.cosh(v / 0.5) ** 2, rel=1e-5)


# ------------------------------------------------------------------------- names of noises


TAKE_A_NOISE: dict[str, Callable[[Any], Any]] = {
    "sample_sign": lambda n: sbnlib.sample_sign(A, n, generator=seeded()),
    "straight_through": lambda n: sbnlib.straight_through(A, A.sign(), n),
    "chain_rule": lambda n: sbnlib.chain_rule(A, A.sign(), n, s=0.5),
    "zgr": lambda n: sbnlib.zgr(A, A.sign(), n),
    "darn": lambda n: sbnlib.darn(A, A.sign(), n),
    "concrete": lambda n: sbnlib.concrete(A, n, tau=1.0, generator=seeded()),
    "st_gumbel": lambda n: sbnlib.st_gumbel(A, A.sign(), n, tau=1.0, generator=seeded()),
    "gumbel_rao": lambda n: sbnlib.gumbel_rao(
        A, A.sign(), n, tau=1.0, num_inner=2, generator=seeded()
    ),
    "Sign": lambda n: Sign(n)(A, mode="mean"),
    "SBN": lambda n: SBN(nn.Identity(), noise=n)(A, mode="mean"),
    "BernoulliLinear": lambda n: BernoulliLinear(2, 3, noise=n).noise.pdf(A),
    "BernoulliConv2d": lambda n: sbnlib.nn.BernoulliConv2d(2, 3, 1, noise=n).noise.pdf(A),
    "MirrorDescent": lambda n: MirrorDescent([nn.Parameter(A.clone())], 0.1, noise=n).noise.pdf(A),
}
LOSS_BASED = {
    "reinforce": sbnlib.reinforce,
    "local_expectation": sbnlib.local_expectation,
    "arm": sbnlib.arm,
    "disarm": sbnlib.disarm,
    "muprop": sbnlib.muprop,
    "rebar": sbnlib.rebar,
    "relax": partial(sbnlib.relax, control=lambda z: z.sum(-1)),
}
TAKE_A_NOISE |= {
    name: lambda n, f=f: f(lambda x: x.sum(-1), A, n, generator=seeded())
    for name, f in LOSS_BASED.items()
}


@pytest.mark.parametrize("where", TAKE_A_NOISE)
def test_the_name_of_a_noise_stands_for_it_wherever_one_is_taken(where: str) -> None:
    take = TAKE_A_NOISE[where]
    for name in ("Triangular", "triangular"):
        assert torch.equal(take(name), take(Triangular()))
    with pytest.raises(ValueError, match="noise must be one of") as caught:
        take("gauss")
    assert all(law.__name__ in str(caught.value) for law in NOISES.values())
    with pytest.raises(TypeError, match="noise must be a noise model"):
        take(Triangular)


def test_every_noise_has_a_name() -> None:
    laws = {name for name in sbnlib.noise.__all__ if name != "Noise"}
    assert {law.__name__ for law in NOISES.values()} == laws
    own = Logistic(2.0)
    assert as_noise(own) is own and as_noise("LOGISTIC") == Logistic()


# ---------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (torch.zeros(3), r"one value an input, shape \(2,\) here .* got \(3,\)"),
        (torch.tensor(0.0), r"got \(\)"),
        (0.0, "got float"),
        (None, "got NoneType"),
        (torch.zeros(2, dtype=torch.long), "floating-point values, got torch.int64"),
        (torch.zeros(2, dtype=torch.bool), "floating-point values, got torch.bool"),
    ],
)
def test_values_of_a_loss_are_one_number_an_input(values: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_values(values, (2,))


# -------------------------------------------------------------------------- looking at values


def test_looking_costs_nothing_on_a_cpu_and_is_not_possible_inside_vmap() -> None:
    assert looking_is_free(A) and not is_traced(A)
    elsewhere = torch.empty(2, device="meta")
    assert not looking_is_free(elsewhere) and not is_traced(elsewhere)
    seen = []
    torch.func.vmap(lambda a: seen.append((looking_is_free(a), is_traced(a))) or a)(A)
    assert seen == [(False, True)]


def test_a_sum_that_overflows_does_not_make_its_terms_infinite() -> None:
    large = torch.full((4,), 3e38)
    assert large.sum().isinf() and is_finite(large)
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not is_finite(torch.tensor([1.0, bad]))
        assert not is_finite(torch.tensor([bad, -bad]))
    assert is_finite(torch.empty(0)) and is_finite(torch.tensor([True, False]))
