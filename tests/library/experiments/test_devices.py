"""Several devices: the numbers of one, whatever the estimator, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from places import ROOT
from scipy import stats
from torch import Tensor

from sbnlib import SBN, Logistic, kernels, sample_sign
from sbnlib.data import Split
from sbnlib.experiments.models import Classifier
from sbnlib.experiments.training import Recipe, Training, _check_size, fit
from sbnlib.network import network_estimator
from sbnlib.nn import BernoulliLinear
from sbnlib.noise import Generators, Share
from sbnlib.units import uniforms

SAME = ("straight_through", "zgr", "reinforce", "arm", "st_gumbel", "concrete", "weights")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share(index: int = 0, count: int = 1, seed: int = 0) -> torch.Generator:
    return cast(torch.Generator, Share(seeded(seed), index, count))


# Two processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes() -> dict[int, dict[str, Any]]:
    """What one process and two print; each case trains for three epochs, 300 digits in batches."""
    script = Path(__file__).parents[2] / "support" / "devices.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = {}
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, script, str(devices), *SAME, "norm", "stream"],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[devices] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", SAME)
def test_two_processes_train_as_one(case: str, outcomes: dict[int, dict[str, Any]]) -> None:
    one, two = outcomes[1][case], outcomes[2][case]
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-12)
    assert len(set(one["losses"])) == 3
    for p, q in zip(one["parameters"], two["parameters"], strict=True):
        assert q == pytest.approx(p, abs=1e-12)


@pytest.mark.slow
def test_streams_of_the_ranks_are_other_numbers(outcomes: dict[int, dict[str, Any]]) -> None:
    """The default, as ever: another network, which is why there is the option."""
    one, two = outcomes[1]["stream"], outcomes[2]["stream"]
    assert abs(one["losses"][-1] - two["losses"][-1]) > 1e-3
    assert one["losses"] == outcomes[1]["straight_through"]["losses"]  # of one process both are


@pytest.mark.slow
def test_batch_norm_on_several_processes_is_refused(outcomes: dict[int, dict[str, Any]]) -> None:
    assert "losses" in outcomes[1]["norm"]
    assert outcomes[2]["norm"]["error"].startswith(
        "devices: got 2 of kind cpu, must be 1 for a model with batch norm (net.layers.0.1)"
    )


# A share of the draws ----------------------------------------------------------------------------


def by_states(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return sample_sign(torch.zeros(shape), Logistic(), generator=generator)


def by_uniforms(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return uniforms(shape, torch.zeros(()), generator)


def by_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return Logistic().sample(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("draw", [by_states, by_uniforms, by_noise])
@pytest.mark.parametrize("front", [(), (3,), (2, 3)])
def test_shares_are_the_rows_of_one_draw(
    draw: Callable[..., Tensor], front: tuple[int, ...]
) -> None:
    """Two draws in a row, so that the second begins where all of the first ends."""
    alone = seeded()
    whole = [draw((*front, 12, 5), alone) for _ in range(2)]
    for count in (1, 2, 3):
        for index in range(count):
            own = share(index, count)
            for one in whole:
                rows = draw((*front, 12 // count, 5), own)
                assert torch.equal(rows, one[..., index::count, :])


def test_a_share_within_a_stack() -> None:
    """Of two trainings each has its own source; one device, since stacks have no more."""
    stack = cast(torch.Generator, Generators([Share(seeded(k)) for k in (1, 2)]))
    for draw in (by_states, by_uniforms, by_noise):
        parts = [share(seed=k) for k in (1, 2)]
        fresh = cast(torch.Generator, Generators([Share(seeded(k)) for k in (1, 2)]))
        both = draw((4, 2, 6, 3), fresh)
        for k, part in enumerate(parts):
            assert torch.equal(both[:, k], draw((4, 6, 3), part))
    layer = BernoulliLinear(3, 4)
    assert layer.weight(generator=share(1, 2)).shape == (4, 3)
    with pytest.raises(ValueError, match="2 trainings"):
        by_states((6, 3), stack)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("draw", [by_states, by_uniforms, by_noise])
def test_trainings_of_both_kinds_in_one_stack(draw: Callable[..., Tensor], first: bool) -> None:
    parts = [Share(seeded(1)), seeded(2)][:: 1 if first else -1]
    both = draw((2, 6, 3), cast(torch.Generator, Generators(parts)))
    alone = [draw((6, 3), g) for g in (share(seed=1), seeded(2))][:: 1 if first else -1]
    assert all(torch.equal(both[k], own) for k, own in enumerate(alone))


def test_weights_are_the_same_on_all_devices() -> None:
    layer = BernoulliLinear(40, 30, forward="sample")
    drawn = [layer.weight(generator=g) for g in (seeded(), share(), share(0, 2), share(1, 2))]
    assert all(torch.equal(w, drawn[0]) for w in drawn[1:])
    assert 0 < (drawn[0] > 0).double().mean() < 1


def test_what_31_bits_do_not_decide_is_settled_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unit is made a tie. Parts agree with the whole, and the states have their law."""
    from sbnlib import units

    def tied(shape: Any, generator: Any) -> Tensor:
        if isinstance(generator, Share):
            return generator.take(tied, shape)
        # floor(2^31 q) for q = 1/4, complemented as for every a < 0
        return torch.full(tuple(shape), ~(2**29), dtype=torch.int32)

    monkeypatch.setattr(units, "_words", tied)
    p = 0.25 + 0.3 * 2.0**-31  # a tie flips with probability .3
    a = torch.full((400, 50), float(np.log(p / (1 - p))), dtype=torch.float64)
    whole = sample_sign(a, Logistic(), generator=share())
    parts = [sample_sign(a[k::2], Logistic(), generator=share(k, 2)) for k in (0, 1)]
    assert all(torch.equal(part, whole[k::2]) for k, part in enumerate(parts))
    # a is known to 2^-52, so the .3 to about 1e-5; |z| < 4.5: one false alarm in 100 000
    z = ((whole > 0).double().mean() - 0.3) / (0.21 / whole.numel()) ** 0.5
    assert abs(z) < 4.5


def test_the_numbers_beside_the_stream_are_uniform_and_of_draw_and_seed() -> None:
    """Kolmogorov's test at one in 100 000; no number occurs twice."""
    every, found = torch.ones(20, 50, dtype=torch.bool), []
    for seed in (0, 1):
        own = Share(seeded(seed))
        for _ in range(2):
            own.take(lambda shape, g: torch.rand(shape, generator=g), (20, 50))
            found.append(own.aside(every))
    values = torch.cat(found)
    assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-5
    assert len(values.unique()) == len(values) == 4000


# Refusals ----------------------------------------------------------------------------------------


def test_a_draw_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must draw \(\.\.\., B, n\), got \(5,\)"):
        sample_sign(torch.zeros(5), Logistic(), generator=share())


@pytest.mark.parametrize("generator", [share(), Generators([seeded(), seeded()])])
def test_the_fused_sampler_has_one_seed_for_all_rows(generator: Any) -> None:
    with pytest.raises(TypeError, match="fused sampler, which has one seed for all rows, got"):
        kernels.sample(torch.zeros(2, 3, 4), Logistic(), generator=generator)


@pytest.mark.parametrize("images", [True, False])
def test_states_of_another_form_are_refused_for_draws_by_example(images: bool) -> None:
    """A convolution's states, and inputs that are images: before any work."""
    layer = torch.nn.Conv2d(1, 2, 3) if images else torch.nn.Linear(8, 4)
    head = torch.nn.Linear(4, 10)
    model = Classifier(SBN(layer), head, network_estimator("straight_through"))
    training = Training(model, [], Recipe(0, 1, 2, draws="example"))
    data = Split(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    got = r"Conv2d\(1, 2" if images else r"inputs of shape \(4, 1, 8, 8\)"
    with pytest.raises(ValueError, match=f"draws must be 'stream' .* got 'example' and {got}"):
        fit(Fabric(accelerator="cpu", devices=1), [training], data)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 devices, got 5"):
        _check_size(5, 100, 2)
    with pytest.raises(ValueError, match="batch_size must be at most the 4 training images, got 6"):
        _check_size(6, 4, 2)


def test_unknown_draws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"draws must be one of \('stream', 'example'\), got 'x'"):
        Recipe(0, 1, 1, draws="x")
