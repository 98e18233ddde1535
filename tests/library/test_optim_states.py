"""The optimizers as torch's own: states, copies, groups, closures, hooks, schedules.

Each is tried in the settings of ``tests/support/updates.py``, on the regression of
``tests/support/regression.py``.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference import Array
from regression import START, UNIFORMS, loss_of, make_layer, one_step, train
from torch.optim import lr_scheduler
from updates import CASES

from sbnlib import Uniform
from sbnlib.nn import BernoulliLinear
from sbnlib.optim import MirrorDescent, Proximal, parq

#: Cases whose optimizer remembers what another case's does; the rest go through this file.
AS_ANOTHER = {
    "mirror proximal", "mirror uniform", "mirror lazy", "binary connect sign",
    "bop without threshold", "bayesbinn", "proxquant", "parq",
}  # fmt: skip
STATES = [name for name in CASES if name not in AS_ANOTHER]
states = pytest.mark.parametrize("name", STATES)


def made(name: str) -> tuple[BernoulliLinear, torch.optim.Optimizer]:
    layer = CASES[name].layer(START)
    return layer, CASES[name].make(layer.parameters())


@states
def test_a_run_continued_from_a_checkpoint_is_the_uninterrupted_run(name: str) -> None:
    layer, optimizer = made(name)
    train(layer, optimizer, UNIFORMS[:8])
    file = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = train(layer, optimizer, UNIFORMS[8:20])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other = made(name)
    again.load_state_dict(saved["layer"])
    other.load_state_dict(saved["optimizer"])
    assert np.array_equal(train(again, other, UNIFORMS[8:20]), expected)


@states
def test_an_optimizer_copied_with_its_layer_goes_on_alike(name: str) -> None:
    layer, optimizer = made(name)
    train(layer, optimizer, UNIFORMS[:4])
    twin, other = copy.deepcopy((layer, optimizer))
    expected = train(layer, optimizer, UNIFORMS[4:10])
    assert np.array_equal(train(twin, other, UNIFORMS[4:10]), expected)


@states
def test_groups_are_stepped_each_with_its_own_rate(name: str) -> None:
    case = CASES[name]
    layers, alone = ([case.layer(START), case.layer(-START)] for _ in range(2))
    together = case.make([{"params": [layers[0].eta]}, {"params": [layers[1].eta], "lr": 0.003}])
    apart = [
        case.make([{"params": [m.eta], "lr": group["lr"]}])
        for m, group in zip(alone, together.param_groups, strict=True)
    ]
    for u in UNIFORMS[:10]:
        for m, o in zip(alone, apart, strict=True):
            one_step(m, o, u)
        for m in layers:  # gradients of both, then one step
            m.zero_grad()
            loss_of(m, u).backward()
        together.step()
    for m, n in zip(layers, alone, strict=True):
        assert torch.equal(m.eta, n.eta)


@states
def test_single_precision_is_kept(name: str) -> None:
    layer = CASES[name].layer(START).float()
    optimizer = CASES[name].make(layer.parameters())
    train(layer, optimizer, UNIFORMS[:3])
    tensors = [v for v in optimizer.state[layer.eta].values() if isinstance(v, torch.Tensor)]
    assert layer.eta.dtype == torch.float32 and bool(layer.eta.isfinite().all())
    assert all(v.dtype == torch.float32 for v in tensors if v.dim())


@states
def test_parameters_without_a_gradient_are_skipped(name: str) -> None:
    layer, idle = CASES[name].layer(START), CASES[name].layer(-START)
    train(layer, CASES[name].make([idle.eta, layer.eta]), UNIFORMS[:3])
    assert np.array_equal(idle.eta.detach().numpy()[0], -START)


@states
def test_gradients_are_left_as_they_are(name: str) -> None:
    layer, optimizer = made(name)
    for u in UNIFORMS[:3]:
        one_step(layer, optimizer, u)
    kept = layer.eta.grad.clone()
    optimizer.step()
    assert torch.equal(layer.eta.grad, kept)


@states
def test_an_optimizer_saved_whole_with_its_layer_goes_on_alike(name: str) -> None:
    layer, optimizer = made(name)
    if isinstance(optimizer, Proximal):
        optimizer.strength = 1.5  # the case's own is a function inside a function
    train(layer, optimizer, UNIFORMS[:4])
    twin, other = pickle.loads(pickle.dumps((layer, optimizer)))
    expected = train(layer, optimizer, UNIFORMS[4:10])
    assert np.array_equal(train(twin, other, UNIFORMS[4:10]), expected)


@states
def test_a_group_that_is_added_later_is_stepped_like_the_first(name: str) -> None:
    case = CASES[name]
    paths = []
    for later in (False, True):
        layers = [case.layer(START), case.layer(-START)]
        groups = [{"params": [m.eta]} for m in layers]
        optimizer = case.make(groups[:1] if later else groups)
        if later:
            optimizer.add_param_group(groups[1])
        for u in UNIFORMS[:6]:
            optimizer.zero_grad()
            for m in layers:
                loss_of(m, u).backward()
            optimizer.step()
        paths.append([m.eta.detach().clone() for m in layers])
    assert all(torch.equal(a, b) for a, b in zip(*paths, strict=True))
    assert not np.array_equal(paths[0][1].numpy()[0], -START)


@states
def test_hooks_run_once_at_each_step_and_zero_grad_clears(name: str) -> None:
    layer, optimizer = made(name)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    for u in UNIFORMS[:2]:
        one_step(layer, optimizer, u)
    assert seen == ["before", "after"] * 2
    optimizer.zero_grad()
    assert layer.eta.grad is None


@states
def test_a_closure_is_run_with_gradients_and_its_loss_returned(name: str) -> None:
    """And the gradient that it leaves is the one of the step."""
    paths = []
    for closed in (False, True):
        layer, optimizer = made(name)

        def closure(layer=layer, optimizer=optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(layer, UNIFORMS[0])
            loss.backward()
            return loss

        for _ in range(3):
            loss = optimizer.step(closure) if closed else (closure(), optimizer.step())[0]
            assert loss.requires_grad
        paths.append(layer.eta.detach().clone())
    assert torch.equal(*paths) and optimizer.step() is None


# ------------------------------------------------------------------------- schedules

#: Schedules of four steps, and the factor on the learning rate at each.
SCHEDULES: dict[str, tuple[Callable, Array]] = {
    "lambda": (lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.5**t), 0.5 ** np.arange(4)),
    "cosine": (
        lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
        (1 + np.cos(np.pi * np.arange(4) / 4)) / 2,
    ),
    "one cycle": (
        lambda o: lr_scheduler.OneCycleLR(
            o, max_lr=3 * o.param_groups[0]["lr"], total_steps=4, pct_start=0.5,
            anneal_strategy="linear", cycle_momentum=False,
        ),
        np.array([0.12, 3.0, 1.500006, 0.000012]),
    ),
}  # fmt: skip


@states
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_moves_the_learning_rate(name: str, schedule: str) -> None:
    """The path is that of an optimizer whose rate is set by hand."""
    make, factors = SCHEDULES[schedule]
    (layer, optimizer), (twin, other) = made(name), made(name)
    first = optimizer.param_groups[0]["lr"]
    moving = make(optimizer)
    for u, factor in zip(UNIFORMS, factors, strict=False):
        other.param_groups[0]["lr"] = first * factor
        one_step(layer, optimizer, u)
        one_step(twin, other, u)
        moving.step()
        torch.testing.assert_close(layer.eta, twin.eta, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [
    lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=5),
    lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
])  # fmt: skip
def test_a_cycle_moves_the_momentum_of_mirror_descent_as_that_of_torchs(make: Callable) -> None:
    """``momentum`` as in SGD, also from 0, which it is then; the first of ``betas`` as in Adam."""
    ours = torch.full((3,), 0.2, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    for options, twin in (
        ({}, lambda p: torch.optim.SGD(p, 0.01)),
        ({"betas": (0.8, 0.95)}, lambda p: torch.optim.Adam(p, 0.01, betas=(0.8, 0.95))),
    ):
        pairs = (MirrorDescent([ours], 0.01, **options), ours), (twin([theirs]), theirs)
        for optimizer, p in pairs:
            schedule, random = make(optimizer), torch.Generator().manual_seed(0)
            for _ in range(4):
                p.grad = torch.randn(3, generator=random, dtype=torch.float64)
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in STATES if CASES[n].optimizer != "Proximal"])
def test_a_rate_may_be_a_tensor_of_any_dtype(name: str) -> None:
    (layer, optimizer), (twin, other) = made(name), made(name)
    optimizer.param_groups[0]["lr"] = torch.tensor(2.0**-7)  # of float32, the weights of float64
    other.param_groups[0]["lr"] = 2.0**-7
    first, second = train(layer, optimizer, UNIFORMS[:5]), train(twin, other, UNIFORMS[:5])
    assert np.array_equal(first, second)


# ------------------------------------------------------------------------- Proximal


def wrapped(lazy: bool = False) -> tuple[BernoulliLinear, Proximal]:
    layer = make_layer("mean", noise=Uniform())
    base = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.5)
    return layer, Proximal(base, parq, 1.5, lazy=lazy)


def test_groups_state_and_defaults_are_the_bases_whoever_sets_them() -> None:
    _, optimizer = wrapped()
    for name in ("param_groups", "state", "defaults"):
        assert getattr(optimizer, name) is getattr(optimizer.base, name)
        new = copy.copy(getattr(optimizer, name))
        setattr(optimizer, name, new)
        assert getattr(optimizer.base, name) is new
    new = optimizer.base.state_dict()
    optimizer.base.load_state_dict(new)  # which makes new lists
    assert optimizer.param_groups is optimizer.base.param_groups


def test_an_annealed_strength_goes_on_from_a_checkpoint() -> None:
    seen: list[float] = []
    p = torch.zeros(1, requires_grad=True)
    optimizer = Proximal(torch.optim.SGD([p], 0.1), lambda _, s: seen.append(s), float)
    p.grad = torch.zeros(1)
    optimizer.step()
    again = Proximal(torch.optim.SGD([p], 0.1), lambda _, s: seen.append(s), float)
    again.load_state_dict(optimizer.state_dict())
    again.step()
    assert sorted(set(seen)) == [1, 2]
