"""Every use of random numbers in an experiment has a stream of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sbnlib import data
from sbnlib.experiments import classify, training, weights
from sbnlib.experiments.protocol import SEARCH_SEED
from sbnlib.experiments.training import Recipe, generator

Uses = list[tuple[tuple[object, ...], tuple[float, ...]]]


def head(draw: torch.Generator) -> tuple[float, ...]:
    """The next numbers of a generator, which stays where it is."""
    copy = torch.Generator().set_state(draw.get_state())
    return tuple(torch.rand(4, generator=copy, dtype=torch.float64).tolist())


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> Uses:
    """What generators were made for, and how their numbers begin."""
    seen: Uses = []

    def watched(device: str, purpose: str, **key: int | str) -> torch.Generator:
        draw = generator(device, purpose, **key)
        seen.append(((purpose, *sorted(key.items())), head(draw)))
        return draw

    for module in (training, classify, weights):
        monkeypatch.setattr(module, "generator", watched)
    return seen


def by_classify(contender: str, seed: int) -> None:
    classify.train(classify.Config(hidden=(4,), epochs=3), contender, 0.1, 1.0, seed)


def by_weights(contender: str, seed: int) -> None:
    digits = data.load("digits")
    weights.train(contender, (0.1, 1e-4), seed, digits, hidden=(4,), epochs=3, batch_size=500)


@pytest.mark.slow
@pytest.mark.parametrize(
    "train, contenders", [(by_classify, classify.MODELS), (by_weights, ["bop", "mirror"])]
)
def test_no_two_streams_of_a_run_and_of_two_seeds_begin_alike(
    train: Callable[[str, int], None], contenders: list[str], uses: Uses
) -> None:
    # Zero-padded keys gave the initial weights of a seed and the order of its epoch 2 one stream
    for contender in contenders:
        for seed in (0, 1, 2, SEARCH_SEED):
            train(contender, seed)
    purposes = {key[0] for key, _ in uses}
    assert {"weights", "order", "noise"} <= purposes
    assert len({key for key, _ in uses}) == len(uses)
    split = head(torch.Generator().manual_seed(0))
    assert len({numbers for _, numbers in uses} | {split}) == len(uses) + 1


def test_a_key_is_not_taken_for_another() -> None:
    keys = [
        {}, {"seed": 0}, {"seed": 1}, {"seed": "1"}, {"seed": 11}, {"seed": 1, "epoch": 1},
        {"seed": 0, "epoch": 0}, {"seed": 0, "epoch": 0, "rank": 0}, {"epoch": 1}, {"seed": -1},
        {"seed": 2**70},
    ]  # fmt: skip
    draws = [generator("cpu", purpose, **key) for purpose in ("a", "b") for key in keys]
    assert len({head(draw) for draw in draws}) == 2 * len(keys)


def test_the_order_in_which_a_key_is_written_does_not_matter() -> None:
    one, two = (
        generator("cpu", "a", seed=1, epoch=2),
        generator("cpu", "a", epoch=np.int64(2), seed=1),
    )
    assert head(one) == head(two)


def test_streams_never_change() -> None:
    # Stored measurements rest on them. The seed: the first 8 bytes of sha256 of
    # ["order", ["contender", "bop"], ["epoch", 3], ["seed", 7]]
    draw = Recipe(7, 5, 50, contender="bop").generator("cpu", "order", epoch=3)
    assert draw.initial_seed() == 0x386284EB228188E5


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": -1}, {"epochs": 1.5}])
def test_a_recipe_without_a_step_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be an integer >= 1"):
        Recipe(**{"seed": 0, "epochs": 1, "batch_size": 1} | wrong)
