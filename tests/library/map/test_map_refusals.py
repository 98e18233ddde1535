"""What an estimator can do wrong, each thing in a sentence of its own, before any problem."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

import sbnlib
from sbnlib import SBN, registry, straight_through
from sbnlib import map as sbn_map
from sbnlib.estimators import attach
from sbnlib.map import placing
from sbnlib.map.given import given

ONE = ["xor-1x5-logistic-1"]

# Each is called with what its kind is called with, and does one thing wrong.


def without_brackets(a, x, noise):
    m = 2 * noise.cdf(a)
    return x + m - m.detach()


def without_brackets_in_a(a, x, noise):
    return x + a - a.detach()


def mean_for_x(a, x, noise):
    return 2 * noise.cdf(a) - 1


def summed(a, x, noise):
    return straight_through(a, x, noise).sum(dim=-1)


def nothing(a, x, noise):
    straight_through(a, x, noise)


def nan_value(a, x, noise):
    return straight_through(a, x, noise) * torch.nan


def nan_gradient(a, x, noise):
    m = (0 * a).sqrt()
    return x + (m - m.detach())


def infinite_gradient(a, x, noise):
    m = (a - a.detach()).sqrt()
    return x + (m - m.detach())


def single(a, x, noise):
    return straight_through(a, x, noise).float()


def no_gradient(a, x, noise):
    return x.clone()


def zero_gradient(a, x, noise):
    return x + 0 * (a - a.detach())


def clamps_a(a, x, noise):
    return straight_through(a.clamp_(-1, 1), x, noise)


def doubles_x(a, x, noise):
    return straight_through(a, x.mul_(2).div_(2), noise)


def raises(a, x, noise):
    raise KeyError("slope")


def global_noise(a, x, noise, *, generator=None):
    return attach(x, a, torch.rand(a.shape, dtype=a.dtype))


def global_noise_in_the_backward_pass(a, x, noise):
    class Sloppy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * torch.rand_like(g), None

    return Sloppy.apply(a, x)


def numpy_noise(a, x, noise, *, generator=None):
    return attach(x, a, torch.tensor(np.random.default_rng().random(a.shape)))


def numpy_noise_without_generator(a, x, noise):
    return attach(x, a, torch.tensor(np.random.default_rng().random(a.shape)))


def own_generator(a, x, noise, *, generator=None):
    own = torch.Generator().manual_seed(0)
    return attach(x, a, torch.rand(a.shape, generator=own, dtype=a.dtype))


CALLS = [0]


def counting(a, x, noise):
    CALLS[0] += 1
    return attach(x, a, torch.full_like(a, CALLS[0]))


def relaxed_scalar(a, noise, *, generator=None):
    return torch.tanh(a).sum()


def relaxed_global(a, noise, *, generator=None):
    return torch.tanh(a - noise.sample(a.shape, dtype=a.dtype))


def score_of_units(loss, a, noise, *, num_samples=1, generator=None):
    return a * loss(a.sign())[..., None]


def score_global(loss, a, noise, *, num_samples=1, generator=None):
    return sbnlib.reinforce(loss, a, noise, num_samples=num_samples)


def score_own(loss, a, noise, *, num_samples=1, generator=None):
    return sbnlib.reinforce(loss, a, noise, generator=torch.Generator().manual_seed(3))


def score_detached(loss, a, noise, *, num_samples=1, generator=None):
    return sbnlib.reinforce(loss, a, noise, generator=generator).detach()


def batch_mean(net, inputs, loss, *, generator=None):
    return loss(net(inputs, generator=generator)).mean()


def net_global(net, inputs, loss, *, generator=None):
    return loss(net(inputs))


def net_trains(net, inputs, loss, *, generator=None):
    with torch.no_grad():
        net.layers[0].weight.mul_(0.9)
    return loss(net(inputs, generator=generator))


def net_moves_inputs(net, inputs, loss, *, generator=None):
    return loss(net(inputs.add_(1), generator=generator))


def net_without_axes(net, inputs, loss, *, generator=None):
    batch, _ = inputs.shape
    return loss(net(inputs, generator=generator))


WRONG = {
    without_brackets: r"x with its value unchanged, .* changed \d+ of 768 values, by up to "
    r"[\d.]+e-1[67]: write x \+ \(m - m.detach\(\)\)",
    without_brackets_in_a: r"without_brackets_in_a changed \d+ of 768 values",
    mean_for_x: "changed 768 of 768 values",
    summed: r"return the shape of a, \(8, 16, 6\) here; summed returned shape \(8, 16\)$",
    nothing: r"return a tensor of shape \(8, 16, 6\) here; nothing returned NoneType$",
    nan_value: "return finite values; nan_value returned NaN or infinity$",
    nan_gradient: "have a finite gradient in a; nan_gradient gave NaN or infinity$",
    infinite_gradient: "have a finite gradient in a; infinite_gradient gave",
    single: "keep the dtype, torch.float64 here; single returned torch.float32$",
    no_gradient: "have a gradient in a; no_gradient has none$",
    zero_gradient: "have a gradient in a; zero_gradient has one that is 0 everywhere$",
    clamps_a: "leave its arguments as they are; clamps_a changes a in place$",
    doubles_x: "leave its arguments as they are; doubles_x changes x in place$",
    raises: r"take \(a, x, noise\) with axes of draws in front of the batch, \(8, 16, 6\) here; "
    "raises raised KeyError: 'slope'$",
    global_noise: "global_noise draws from torch's global generator$",
    global_noise_in_the_backward_pass: "backward_pass draws from torch's global generator$",
    numpy_noise: "the same numbers when it is called again .*; numpy_noise gave others: draw from "
    "the generator that is handed in, and keep nothing between calls$",
    numpy_noise_without_generator: "gave others: take generator= and draw from it",
    own_generator: "own_generator ignores it: its draws do not change with the generator's seed$",
    counting: "counting gave others: take generator= and draw from it, and keep nothing between",
    relaxed_scalar: r"the shape of a, \(8, 16, 6\) here; relaxed_scalar returned shape \(\)$",
    relaxed_global: "relaxed_global draws from torch's global generator$",
    score_of_units: r"one value an input, \(8, 16\) here; .* returned shape \(8, 16, 6\)$",
    score_global: "score_global draws from torch's global generator$",
    score_own: "score_own ignores it",
    score_detached: "have a gradient in a; score_detached has none$",
    batch_mean: r"one value an input, \(8, 16\) here; batch_mean returned shape \(\)$",
    net_global: "net_global draws from torch's global generator$",
    net_trains: "leave the network as it is; net_trains changes its parameters$",
    net_moves_inputs: "net_moves_inputs changes inputs in place$",
    net_without_axes: r"take \(net, inputs, loss\) with axes of draws .* \(8, 16, 3\) here; "
    "net_without_axes raised ValueError: too many values",
}


@pytest.mark.parametrize("function", WRONG, ids=lambda f: f.__name__)
def test_what_is_wrong_is_said_before_any_problem(function, monkeypatch) -> None:
    monkeypatch.setattr(placing, "_row", lambda *_: pytest.fail("a problem was begun"))
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"^estimator must .*{WRONG[function]}"):
        sbn_map.place(function)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("entry", registry.ESTIMATORS.values(), ids=lambda e: e.name)
def test_every_estimator_of_the_registry_passes(entry) -> None:
    its = given(entry.function, entry.kind)
    assert its.kind == entry.kind and bool(its.sampled) != entry.state_only
    assert given(entry.name).name == entry.name


# ---- the form ------------------------------------------------------------------------------------


def plain(u, v, law):
    return straight_through(u, v, law)


def with_tau(a, x, noise, *, tau, beta):
    return straight_through(a, x, noise)


def of_two(a, x):
    return x


class Learned:
    def __call__(self, a, x, noise):
        return straight_through(a, x, noise)


class Module(torch.nn.Module):
    def forward(self, a: Tensor, x: Tensor, noise: object) -> Tensor:
        return straight_through(a, x, noise)


@pytest.mark.parametrize(
    ("estimator", "options", "error", "words"),
    [
        (plain, {}, ValueError, r"kind of plain\(u, v, law\) cannot be told from the names of "
         r"its arguments: give kind= \(on the command line --kind\), one of 'chain rule' \(a, x"),
        (plain, {"kind": "chain"}, ValueError, "kind must be one of chain rule, loss based, "
         "relaxation, network, got 'chain'"),
        (straight_through, {"kind": "network"}, ValueError, "kind must be 'chain rule' for "
         r"straight_through\(a, x, noise, \.\.\.\), got 'network'"),
        ("zgr", {"kind": "network"}, ValueError, "kind must be 'chain rule' for 'zgr', got"),
        ("zgz", {}, ValueError, "estimator must be one of .*, got 'zgz'"),
        (with_tau, {}, ValueError, r"need nothing beside \(a, x, noise\) and a generator, with_tau "
         r"needs tau, beta: hand in functools.partial\(with_tau, tau=\.\.\.\)"),
        (of_two, {"kind": "chain rule"}, ValueError, r"of kind 'chain rule' must take "
         r"\(a, x, noise\), of_two takes \(a, x\)"),
        (plain, {"kind": "relaxation"}, ValueError, "plain needs law"),
        (3, {}, TypeError, "a registry name or a function, got 3"),
        (Learned, {}, TypeError, "must be a function, got the class Learned: hand in an instance"),
        (straight_through, {"name": " "}, TypeError, "name must be a text of at least one letter"),
        (straight_through, {"problems": ["xor"]}, ValueError, "problems must be names of sbn-map-1,"
         " some of digits-2x5-logistic-1, .*; got 'xor'"),
        (straight_through, {"problems": []}, ValueError, "problems must be names .*; got none"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_used_is_refused(estimator, options, error, words) -> None:
    with pytest.raises(error, match=words):
        sbn_map.place(estimator, **options)


def needs_num_samples(loss, a, noise, num_samples, generator):
    return sbnlib.disarm(loss, a, noise, num_samples=num_samples, generator=generator)


def other_names(n, i, f, *, generator=None):
    return sbnlib.pathwise("zgr")(n, i, f, generator=generator)


@pytest.mark.parametrize(
    ("estimator", "kind", "found"),
    [
        (plain, "chain rule", "chain rule"),
        (Learned(), None, "chain rule"),
        (Module(), None, "chain rule"),
        (partial(with_tau, tau=1.0, beta=2.0), None, "chain rule"),
        (needs_num_samples, None, "loss based"),
        (partial(sbnlib.concrete, tau=1.0), None, "relaxation"),
        (sbnlib.layerwise("arm"), None, "network"),
        (other_names, "network", "network"),
    ],
    ids=lambda v: getattr(v, "__name__", type(v).__name__) if callable(v) else str(v),
)
def test_the_kind_is_told_by_its_arguments_or_as_it_is_said(estimator, kind, found) -> None:
    assert given(estimator, kind).kind == found


# ---- at a problem --------------------------------------------------------------------------------


def undefined(a, x, noise):
    return attach(x, a, noise.pdf(a.detach()) * (torch.nan if noise.scale == 2 else 1.0))


def infinite_tails(net, inputs, loss, *, generator=None):
    x = net(inputs, generator=generator)
    bad = torch.where(torch.tensor(net.noise.scale == 2), torch.nan, 1.0)
    return loss(x) * bad


@pytest.mark.parametrize("function", [undefined, infinite_tails])
def test_what_goes_wrong_at_a_problem_names_the_problem(function) -> None:
    with pytest.raises(ValueError, match=rf"^estimator {function.__name__} at \w+-2x5-uniform-2: "):
        sbn_map.place(function, problems=["xor-2x5-logistic-1", "xor-2x5-uniform-2"])


def test_a_factor_that_has_no_value_at_a_state_that_never_occurs_is_no_fault() -> None:
    """ZGR by hand is 0/0 at the state that a saturated unit does not take."""

    def by_hand(a, x, noise):
        return attach(x, a, noise.pdf(a.detach()) / noise.cdf(x * a.detach()))

    problem = "digits-2x5-uniform-2"
    row, zgr = (sbn_map.place(f, problems=[problem]).rows[0] for f in (by_hand, sbnlib.zgr))
    assert row == zgr


def test_what_only_couples_units_is_sampled_and_the_report_says_why() -> None:
    def coupled(a, x, noise):
        slope = 2 * noise.pdf(a.detach())
        return attach(x, a, slope / slope.mean(dim=-1, keepdim=True))

    report = sbn_map.place(coupled, problems=ONE)
    assert report.samples == placing.SAMPLES and "each unit by itself" in report.sampled
    assert "each unit by itself" in report.html()


def test_an_estimator_that_knows_the_exact_gradient_is_without_error(monkeypatch) -> None:
    monkeypatch.setattr(placing, "SAMPLES", 64)  # it is run one sample at a time

    def exact(net: SBN, inputs, loss):
        shape = inputs.shape[:-1]
        return sbnlib.exact_expectation(net, inputs[(0,) * (len(shape) - 1)], loss).expand(shape)

    row = sbn_map.place(exact, problems=ONE).row(ONE[0])
    assert row["all"]["bias2"] == row["all"]["variance"] == [0.0, 0.0]
    assert row["all"]["cosine"][0] == 1
