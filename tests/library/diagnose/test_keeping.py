"""Code as strangers write it: nothing that it does raises, disturbs, or is taken for another."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from binary_models import Bin
from strangers import Model, Unit, mlp, rows, squares, ste, two_layers
from torch import Tensor, nn
from traces import changes, state

from sbnlib import diagnose, diagnose_unit


def tanh_ste(a: Tensor) -> Tensor:
    return ste(a, torch.tanh(a))


# ------------------------------------------------------------------------ nothing raises


def exits(a: Tensor) -> Tensor:
    raise SystemExit(1)


def speechless(a: Tensor) -> Tensor:
    class WithoutWordsError(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    raise WithoutWordsError


REFUSED = {
    "sparse": (lambda a: tanh_ste(a).to_sparse(), "no-tensor"),
    "complex": (lambda a: tanh_ste(a).to(torch.complex64), "no-tensor"),
    "without values": (lambda a: tanh_ste(a).to("meta"), "no-tensor"),
    "exit": (exits, "raises"),
    "error without words": (speechless, "raises"),
    "lazy": (nn.Sequential(nn.LazyLinear(4), Unit()), "raises"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_unit_is_refused(name: str) -> None:
    unit, code = REFUSED[name]
    report = diagnose_unit(unit)
    assert report.codes == {code} and str(report)


def test_interrupts_are_the_callers() -> None:
    def interrupted(a: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose_unit(interrupted)


def script() -> nn.Module:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(32, 64)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            m = torch.tanh(a)
            x = torch.where(a >= 0, torch.ones_like(a), -torch.ones_like(a))
            return x + (m - m.detach())

    return torch.jit.trace(Plain(), rows())


def exits_later(self: nn.Module, a: Tensor) -> Tensor:
    raise SystemExit(2)


HARD_MODELS: dict[str, Callable[[], nn.Module]] = {
    "traced": script,
    "lazy": lambda: nn.Sequential(nn.LazyLinear(64), Unit(), nn.Linear(64, 10)),
    "exits": lambda: two_layers(exits_later),
    "gradient inside": lambda: two_layers(
        lambda self, a: torch.autograd.grad(tanh_ste(a).sum(), a, create_graph=True)[0]),
    "torch.func": lambda: two_layers(
        lambda self, a: torch.func.grad(lambda v: tanh_ste(v).sum())(a)),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD_MODELS)
def test_no_model_raises(name: str) -> None:
    report = diagnose(HARD_MODELS[name](), rows(), squares)
    assert str(report) and report.json()


# ----------------------------------------------------------------- nothing is left behind


def set_everything(a: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    torch.autograd.set_detect_anomaly(True)
    torch.set_grad_enabled(False)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    with torch.enable_grad():
        return tanh_ste(a)


def settings() -> dict[str, Any]:
    return state(None) | {
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def test_what_a_unit_sets_for_all_of_torch_is_put_back() -> None:
    before = settings()
    report = diagnose_unit(set_everything)
    assert changes(before, settings()) == []
    assert report.codes == {"deterministic"}


def test_what_a_model_sets_for_all_of_torch_is_put_back() -> None:
    def entered(self: nn.Module, a: Tensor) -> Tensor:
        torch.autocast("cpu", torch.bfloat16).__enter__()  # and never left
        random.random(), np.random.rand()
        return set_everything(a)

    before = settings()
    report = diagnose(two_layers(entered), rows())
    assert changes(before, settings()) == []
    assert len(report.units) == 1


def trained(self: nn.Module, a: Tensor) -> Tensor:
    """A step of the optimizer within the forward pass."""
    squares(a).backward(retain_graph=True)
    torch.optim.SGD([self.a.weight], 0.1).step()
    self.b.bias.data.mul_(2)
    self.a.bias.requires_grad_(False)
    self.steps = getattr(self, "steps", 0) + 1
    self.eval()
    return Bin.apply(a)


def test_what_a_model_changes_of_itself_is_put_back() -> None:
    model = two_layers(trained)
    model.a.weight.grad = torch.full_like(model.a.weight, 0.25)
    before = state(model)
    diagnose(model, rows())
    assert changes(before, state(model)) == []
    assert not hasattr(model, "steps")


def test_batch_statistics_of_a_unit_are_put_back() -> None:
    unit = nn.Sequential(nn.BatchNorm1d(1), Unit())
    before = state(unit)
    report = diagnose_unit(unit)
    assert "not-elementwise" in report.codes
    assert changes(before, state(unit)) == []


def test_generators_of_a_module_are_put_back() -> None:
    model = two_layers(lambda self, a: Bin.apply(a + torch.rand(1, generator=self.draws)))
    model.draws = torch.Generator().manual_seed(4)
    before = model.draws.get_state()
    diagnose(model, rows())
    assert torch.equal(model.draws.get_state(), before)


# ------------------------------------------------------------------ models with a memory


class Neurons(nn.Module):
    """A layer that keeps its membrane, and a list of it, from one call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 10)
        self.membrane: Tensor | None = None
        self.spikes: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        self.membrane = a if self.membrane is None else 0.9 * self.membrane.detach() + a
        self.spikes.append(Bin.apply(self.membrane))
        return self.b(self.spikes[-1])


def test_a_membrane_is_the_same_in_each_run() -> None:
    model = Neurons()
    model(rows())
    kept = model.membrane
    report = diagnose(model, rows(), squares)
    assert [unit.codes for unit in report.units] == [{"deterministic"}]
    assert model.membrane is kept and len(model.spikes) == 1


def test_a_model_that_counts_its_calls_goes_the_same_way() -> None:
    def every_other(self: nn.Module, a: Tensor) -> Tensor:
        self.calls += 1
        return Bin.apply(a if self.calls % 2 else 2 * a + 1)

    model = two_layers(every_other)
    model.calls = 0
    report = diagnose(model, rows())
    assert [unit.codes for unit in report.units] == [{"deterministic"}]
    assert model.calls == 0


def test_a_model_that_catches_everything_is_cut_off_all_the_same() -> None:
    def careful(self: nn.Module, a: Tensor) -> Tensor:
        try:
            return self.b(Bin.apply(a))
        except BaseException:
            return self.b(torch.relu(a))

    model = Model(lambda self, x: careful(self, self.a(x)), a=nn.Linear(32, 64),
                  b=nn.Linear(64, 10))  # fmt: skip
    report = diagnose(model, rows(), squares)
    assert [unit.codes for unit in report.units] == [{"deterministic"}]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_runs_as_it_was_written(backend: str) -> None:
    report = diagnose(torch.compile(mlp(), backend=backend), rows(), squares)
    assert [unit.codes for unit in report.units] == [{"deterministic"}] * 2
    unit = torch.compile(tanh_ste, backend=backend)
    assert diagnose_unit(unit).codes == {"deterministic"}
