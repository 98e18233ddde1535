"""The registry says what is true: every claim of every entry."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_net, make_noise, random_inputs

import sbnlib
from sbnlib import (
    SBN,
    exact_moments,
    layerwise,
    network_estimator,
    pathwise,
    registry,
    straight_through,
    zgr,
)
from sbnlib.nn import Sign

entries = pytest.mark.parametrize("entry", registry.ESTIMATORS.values(), ids=lambda e: e.name)
STATE_ONLY = [e for e in registry.ESTIMATORS.values() if e.state_only]
state_only = pytest.mark.parametrize("entry", STATE_ONLY, ids=lambda e: e.name)
CLASS_OF = {  # the losses of reference.py that each class holds, in increasing order
    "multilinear": ["constant", "linear", "multilinear"],
    "coordinatewise quadratic": ["quadratic", "coordinatewise quadratic"],
    "any": ["smooth"],
}


def bias(entry: registry.Entry, noise_name: str, kind: str, seed: int) -> float:
    """Largest bias of the gradient in the logits of one layer of three units, enumerated."""
    noise, loss = ref.RefNoise(noise_name, 1.3), ref.LOSSES[kind](3, seed)
    a = 1.2 * np.random.default_rng(seed).uniform(-1, 1, size=3)
    x = ref.states(3)
    prob = noise.prob(x, a).prod(1)
    leaf = torch.tensor(a).expand(8, -1).clone().requires_grad_()
    out = entry.function(leaf, torch.tensor(x), make_noise(noise_name, 1.3))
    (g,) = torch.autograd.grad(loss.torch(out).sum(), leaf)
    exact = []
    for i in range(3):
        up, down = x.copy(), x.copy()
        up[:, i], down[:, i] = 1, -1
        exact.append(noise.pdf(a[i]) * prob @ (loss.value(up, 0) - loss.value(down, 0)))
    return float(np.abs(prob @ g.numpy() - exact).max())


def holds(claim: str, cls: str) -> bool:
    order = ["none", *CLASS_OF]
    return order.index(cls) <= order.index(claim)


@state_only
@pytest.mark.parametrize("cls", CLASS_OF)
def test_unbiased_for_what_it_says_with_every_noise_and_no_more(
    entry: registry.Entry, cls: str
) -> None:
    largest = max(
        bias(entry, noise_name, kind, seed)
        for noise_name in ref.NOISES
        for kind in CLASS_OF[cls]
        for seed in (1, 2, 3)
    )
    # "none" means: not even for multilinear losses with every noise
    if holds(entry.unbiased_for, cls):
        assert largest < 1e-12
    else:
        assert largest > 1e-2


def test_the_classes_are_those_of_the_book_in_increasing_order() -> None:
    assert list(registry.CLASSES) == ["none", *CLASS_OF]


@entries
def test_an_entry_is_complete(entry: registry.Entry) -> None:
    assert registry.get(entry.name) is entry
    assert registry.ESTIMATORS[entry.name] is entry
    assert callable(entry.function)
    assert entry.unbiased_for in registry.CLASSES
    assert isinstance(entry.state_only, bool)
    assert 1 <= int(entry.chapter) <= 22
    for text in (entry.formula, entry.label, entry.marker, *entry.papers):
        assert text and text.strip()
    assert re.fullmatch(r"#[0-9A-Fa-f]{6}", entry.colour)
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.name = "other"


@entries
def test_a_state_only_entry_has_exact_moments_and_gives_the_value_of_the_sample(
    entry: registry.Entry,
) -> None:
    net = make_net(ref.random_net((2, 2), ref.RefNoise("Logistic")))
    given = torch.tensor(random_inputs(2, 2))
    if entry.state_only:
        a, x = torch.zeros(3).requires_grad_(), torch.tensor([1.0, -1.0, 1.0])
        assert torch.equal(entry.function(a, x, sbnlib.Logistic()), x)
        assert len(exact_moments(net, given, lambda x: x.sum(-1), entry.name)) == 2
    else:
        with pytest.raises(ValueError, match="estimator"):
            exact_moments(net, given, lambda x: x.sum(-1), entry.name)


@entries
def test_a_name_is_a_network_estimator(entry: registry.Entry) -> None:
    net = make_net(ref.random_net((2, 2), ref.RefNoise("Logistic")))
    estimator = network_estimator(entry.name)
    values = estimator(net, torch.zeros(5, 2).double(), lambda x: x.sum(-1),
                       generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert values.shape == (5,)


def test_names_labels_colours_and_markers_are_unique() -> None:
    entries = list(registry.ESTIMATORS.values())
    for field in ("name", "label", "colour", "marker", "formula"):
        values = [getattr(e, field) for e in entries]  # "p" and "P" are two markers
        assert len(set(values)) == len(values), field


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.1)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@entries
def test_colours_are_readable_on_white_and_on_near_black(entry: registry.Entry) -> None:
    # Graphical objects need a contrast of 3 (WCAG 1.4.11) with both pages
    mine = luminance(entry.colour)
    on_white = 1.05 / (mine + 0.05)
    on_black = (mine + 0.05) / (luminance("#121212") + 0.05)
    assert min(on_white, on_black) > 2.5
    assert max(on_white, on_black) > 3


def test_markers_are_markers_of_matplotlib() -> None:
    markers = pytest.importorskip("matplotlib.lines").Line2D.markers
    assert all(e.marker in markers for e in registry.ESTIMATORS.values())


def test_the_core_estimators_are_there() -> None:
    assert {"straight_through", "zgr", "darn", "identity", "hardtanh"} <= set(registry.ESTIMATORS)
    assert registry.get("straight_through").function is straight_through
    assert registry.get("zgr").function is zgr


def test_an_unknown_name_lists_the_known_ones() -> None:
    a, net = torch.zeros(3), SBN(torch.nn.Linear(3, 3))
    calls = [registry.get, network_estimator, pathwise, layerwise, partial(Sign, None)]
    calls += [lambda name: Sign()(a, estimator=name), lambda name: net(a, estimator=name)]
    calls += [lambda name: exact_moments(net, a[None], lambda x: x.sum(-1), name)]
    for function in calls:
        with pytest.raises(ValueError, match="'nonsense'") as caught:
            function("nonsense")
        assert all(name in str(caught.value) for name in registry.ESTIMATORS)


def test_a_name_of_another_kind_is_refused_with_the_names_of_the_right_one() -> None:
    for function, name, known in (
        (pathwise, "reinforce", "zgr"),
        (partial(Sign, None), "psa", "zgr"),
        (layerwise, "zgr", "reinforce"),
    ):
        with pytest.raises(ValueError, match=f"'{name}' is") as caught:
            function(name)
        assert known in str(caught.value)


def test_a_function_of_another_kind_is_refused_with_its_kind_and_its_place() -> None:
    net, a = SBN(torch.nn.Linear(3, 3)), torch.zeros(3)
    chain_rule = r"must be a chain-rule function \(a, x, noise\)"
    loss_based = r"must be a loss-based function \(loss, a, noise\)"
    relaxed = partial(sbnlib.concrete, tau=0.5)
    for call, wanted, got in (
        (lambda: Sign(estimator=sbnlib.reinforce), chain_rule, "reinforce of kind 'loss based'"),
        (lambda: Sign(estimator=partial(sbnlib.reinforce, baseline="loo", num_samples=2)),
         chain_rule, "reinforce of kind 'loss based': layerwise makes"),
        (lambda: Sign(estimator=relaxed), chain_rule, "concrete of kind 'relaxation': it stands"),
        (lambda: Sign(estimator=sbnlib.concrete), chain_rule, "concrete of kind 'relaxation'"),
        (lambda: SBN(torch.nn.Linear(2, 2), estimator=sbnlib.psa), chain_rule,
         r"psa of kind 'network': it is called with \(net, inputs, loss\)"),
        (lambda: Sign()(a, estimator=sbnlib.arm), chain_rule, "arm of kind 'loss based'"),
        (lambda: net(a, estimator=sbnlib.arm), chain_rule, "arm of kind 'loss based'"),
        (lambda: setattr(net.sign, "estimator", sbnlib.rebar), chain_rule, "rebar of kind"),
        (lambda: pathwise(sbnlib.reinforce), chain_rule, "layerwise makes a network estimator"),
        (lambda: layerwise(zgr), loss_based, "zgr of kind 'chain rule': .* pathwise makes"),
        (lambda: layerwise(pathwise(zgr)), loss_based, r"pathwise\(zgr\) of kind 'network'"),
        (lambda: layerwise(relaxed), loss_based, "concrete of kind 'relaxation'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"estimator {wanted}.*{got}"):
            call()


def test_a_name_is_as_good_as_the_function() -> None:
    assert Sign(estimator="zgr").estimator is Sign(estimator=zgr).estimator is zgr
    assert pathwise("zgr").__name__ == pathwise(zgr).__name__
    assert layerwise("reinforce").__name__ == "layerwise(reinforce)"


def test_functions_pass_through_and_other_things_are_refused() -> None:
    own = pathwise(zgr)
    assert network_estimator(own) is own
    with pytest.raises(TypeError, match="estimator"):
        network_estimator(3)
