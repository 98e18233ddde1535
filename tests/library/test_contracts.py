"""Where an estimator or a noise enters: generators passed on, names taken, wrong ones refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sbnlib
from sbnlib import SBN, Logistic, Triangular, layerwise, network_estimator, pathwise, zgr
from sbnlib.contracts import (
    check_values,
    is_finite,
    looking_is_free,
    looking_is_possible,
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
    assert looking_is_free(A) and looking_is_possible(A)
    elsewhere = torch.empty(2, device="meta")
    assert not looking_is_free(elsewhere) and looking_is_possible(elsewhere)
    seen = []
    torch.func.vmap(lambda a: seen.append((looking_is_free(a), looking_is_possible(a))) or a)(A)
    assert seen == [(False, False)]


def test_a_sum_that_overflows_does_not_make_its_terms_infinite() -> None:
    large = torch.full((4,), 3e38)
    assert large.sum().isinf() and is_finite(large)
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not is_finite(torch.tensor([1.0, bad]))
        assert not is_finite(torch.tensor([bad, -bad]))
    assert is_finite(torch.empty(0)) and is_finite(torch.tensor([True, False]))
