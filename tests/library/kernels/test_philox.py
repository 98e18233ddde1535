"""Philox4x32-10: known answers, and a counter of 64 bits that no tensor has to be large for."""

from __future__ import annotations

import numpy as np
import philox as independent
import pytest
import torch

from sbnlib.kernels import reference

WORD = 2**32


@pytest.mark.parametrize(("counter", "key", "answer"), independent.KNOWN)
def test_known_answers(counter: tuple, key: tuple, answer: tuple) -> None:
    found = reference.philox4x32([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert tuple(int(word) for word in found) == answer
    assert independent.philox(counter, key) == answer


def test_any_counter_and_key_is_that_of_the_second_implementation() -> None:
    draws = np.random.default_rng(0).integers(0, WORD, size=(50, 6))
    found = reference.philox4x32(torch.tensor(draws.T)[:4], torch.tensor(draws.T)[4:])
    expected = [independent.philox(tuple(d[:4]), tuple(d[4:])) for d in draws.tolist()]
    assert np.array_equal(torch.stack(found, 1).numpy(), expected)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("first", [0, 3, WORD - 2, 2**61 - 4, 2**62 - 8])
def test_a_counter_goes_on_beyond_32_bits(first: int, each: int) -> None:
    # The last counters of all streams, and the first whose second word is not 0
    seed = 2**63 - 12345
    found = reference.words(torch.tensor(seed), first, 11, each)
    drawn = independent.units(seed, first * 4 // each, 11, 32 * each)
    values = [int(row[0]) if each == 1 else int(row[0]) * WORD + int(row[1]) for row in found]
    assert values == drawn
    assert found.shape == (11, each) and found.dtype == torch.int64


def test_a_seed_is_all_of_its_64_bits() -> None:
    seeds = [0, 1, 2**31, 2**32, 2**62, 2**63 - 1]
    drawn = {tuple(reference.words(torch.tensor(s), 0, 4, 1).flatten().tolist()) for s in seeds}
    assert len(drawn) == len(seeds)
    for seed in seeds:
        found = reference.words(torch.tensor(seed), 5, 4, 1).flatten().tolist()
        assert found == independent.units(seed, 20, 4, 32)
