"""Retrieval by codes: distances, the index, precision, average precision, random hyperplanes."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sbnlib import hashing
from sbnlib.hashing import (
    HammingIndex,
    hamming,
    lsh,
    mean_average_precision,
    precision_at,
    precision_within,
    tally,
)
from sbnlib.packed import pack


def signs(rows: int, n: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(2, (rows, n), generator=draw).float() * 2 - 1


def labels(rows: int, seed: int, classes: int = 3) -> Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))


def distances(queries: Tensor, codes: Tensor) -> np.ndarray:
    """Coordinate by coordinate."""
    return (queries.numpy()[:, None] != codes.numpy()[None]).sum(-1)


# Distances ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 63, 64, 65, 130])
def test_distances_are_counts_of_coordinates(n: int) -> None:
    a, b = signs(5, n, 0), signs(9, n, 1)
    found = hamming(pack(a.numpy()), pack(b.numpy()))
    assert found.dtype == np.int32 and np.array_equal(found, distances(a, b))


@pytest.mark.slow
def test_a_product_of_ones_own_counts() -> None:
    a, b = pack(signs(4, 70, 0).numpy()), pack(signs(3, 70, 1).numpy())
    for name in hashing.products.BACKENDS:
        if name == "numba":
            pytest.importorskip("numba")
        if name == "cuda" and not torch.cuda.is_available():
            continue
        assert np.array_equal(hamming(a, b, product=hashing.products.product(name)), hamming(a, b))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((2, 1)), np.zeros((2, 1), np.uint64), "a must be rows of words.*float64"),
        (np.zeros((2, 1), np.uint64), np.zeros(2, np.uint64), r"b must be rows of words.*\(2,\)"),
        (np.zeros((2, 1), np.uint64), np.zeros((2, 2), np.uint64), "a and b .* one length"),
    ],
)
def test_what_are_no_words_is_named(a: np.ndarray, b: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        hamming(a, b)


# The index ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 12, 63, 64])
@pytest.mark.parametrize("radius", [0, 1, 2, 5, 64])
@pytest.mark.parametrize("probe", [True, False, None])
def test_the_items_within_a_radius(
    n: int, radius: int, probe: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a look at every word, by a scan, and by what the index takes: the same items in order."""
    if probe and sum(math.comb(n, k) for k in range(min(radius, n) + 1)) > 10_000:
        pytest.skip("more words than a test looks up")
    codes = torch.cat([signs(200, n, 2), signs(50, n, 2)])  # some twice
    queries = torch.cat([codes[:4], signs(20, n, 3)])
    if probe is not None:
        monkeypatch.setattr(HammingIndex, "_probes", lambda *_: probe)
    found = HammingIndex(codes).within(queries, radius)
    for row, d in zip(found, distances(queries, codes), strict=True):
        assert row.dtype == torch.int64 and row.tolist() == np.flatnonzero(d <= radius).tolist()
    assert radius or n < 63 or any(len(row) == 0 for row in found)


def test_words_are_looked_up_where_that_is_cheaper_than_a_scan() -> None:
    index = HammingIndex(signs(3000, 16, 0))
    steps = len(np.unique(pack(signs(3000, 16, 0).numpy()))).bit_length()
    wanted = [sum(math.comb(16, k) for k in range(r + 1)) * steps < 3000 for r in range(5)]
    assert [index._probes(r) for r in range(5)] == wanted and True in wanted and False in wanted


@pytest.mark.parametrize("n", [1, 6, 64])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_the_nearest_items_among_equals_the_first(n: int, k: int) -> None:
    codes, queries = signs(60, n, 4), signs(11, n, 5)
    items, d = HammingIndex(codes).nearest(queries, k)
    for found, far, own in zip(items, d, distances(queries, codes), strict=True):
        wanted = np.argsort(own, kind="stable")[:k]
        assert found.tolist() == wanted.tolist() and far.tolist() == own[wanted].tolist()


@pytest.mark.slow
def test_queries_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, queries = signs(60, 9, 4), signs(11, 9, 5)
    whole = HammingIndex(codes).nearest(queries, 5)
    counts = tally(codes, labels(60, 0), queries, labels(11, 1))
    monkeypatch.setattr(hashing, "TOGETHER", 100)
    assert all(map(torch.equal, HammingIndex(codes).nearest(queries, 5), whole))
    again = tally(codes, labels(60, 0), queries, labels(11, 1))
    assert np.array_equal(again.every, counts.every)
    assert np.array_equal(again.relevant, counts.relevant)


def test_no_query_finds_nothing() -> None:
    index = HammingIndex(signs(10, 8, 0))
    assert (
        index.within(signs(0, 8, 0), 2) == [] and index.nearest(signs(0, 8, 0), 2)[0].numel() == 0
    )
    assert len(index) == 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: HammingIndex(signs(5, 65, 0)), "^codes longer than the index takes: got 65"),
        (lambda: HammingIndex(signs(0, 8, 0)), r"N >= 1, got \(0, 8\)"),
        (lambda: HammingIndex(signs(5, 8, 0)[0]), r"must be signs \(N, n\).*got shape \(8,\)"),
        (lambda: HammingIndex(np.ones((5, 8))), "codes must be signs .* got ndarray"),
        (lambda: HammingIndex(signs(5, 8, 0).clamp_min(0)), r"codes must hold \+1 and -1, got 0"),
        (lambda: INDEX.within(signs(5, 9, 0), 1), "queries must have the 8 bits .*, got 9"),
        (lambda: INDEX.within(signs(5, 8, 0) * 2, 1), r"queries must hold \+1 and -1, got -?2"),
        (lambda: INDEX.within(signs(5, 8, 0), -1), "radius must be an integer >= 0, got -1"),
        (lambda: INDEX.within(signs(5, 8, 0), 1.5), "radius must be an integer >= 0, got 1.5"),
        (lambda: INDEX.nearest(signs(5, 8, 0), 0), "k must be an integer >= 1, got 0"),
        (lambda: INDEX.nearest(signs(5, 8, 0), 6), "k must be at most the 5 items, got 6"),
    ],
)  # fmt: skip
def test_what_an_index_does_not_take_is_named(call: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


INDEX = HammingIndex(signs(5, 8, 0))


# How good it is ----------------------------------------------------------------------------------


def over_orders(d: np.ndarray, relevant: np.ndarray, number: Callable) -> float:
    """The mean of a number of the ranking over all orders of equal distances, one by one."""
    groups = [np.flatnonzero(d == value) for value in np.unique(d)]
    found = [
        number(relevant[np.concatenate(order)])
        for order in itertools.product(*(map(list, itertools.permutations(g)) for g in groups))
    ]
    return float(np.mean(found))


def average_precision(ranked: np.ndarray) -> float:
    places = np.flatnonzero(ranked)
    return np.mean([ranked[: i + 1].mean() for i in places]) if len(places) else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_precision_and_average_precision_are_means_over_all_orders(seed: int) -> None:
    codes, queries = signs(7, 4, seed), signs(5, 4, seed + 50)
    of_items, of_queries = labels(7, seed), labels(5, seed + 50)
    given = (codes, of_items, queries, of_queries)
    pairs = [
        (d, (of_items == own).numpy())
        for d, own in zip(distances(queries, codes), of_queries, strict=True)
    ]
    for k in (1, 3, 7):
        wanted = np.mean(
            [over_orders(d, r, lambda ranked, k=k: ranked[:k].mean()) for d, r in pairs]
        )
        assert precision_at(*given, k) == pytest.approx(wanted, rel=1e-12)
    wanted = np.mean([over_orders(d, r, average_precision) for d, r in pairs])
    assert mean_average_precision(*given) == pytest.approx(wanted, rel=1e-12)
    for radius in range(6):
        shares = [r[d <= radius].mean() if (d <= radius).any() else 0.0 for d, r in pairs]
        nothing = np.mean([not (d <= radius).any() for d, _ in pairs])
        found = precision_within(*given, radius)
        assert found == (pytest.approx(np.mean(shares), rel=1e-12), pytest.approx(nothing))


def test_a_query_that_retrieves_nothing_counts_as_zero() -> None:
    """Two queries: one finds its like alone, the other is far from all."""
    codes = torch.tensor([[1.0, 1, 1, 1]])
    queries = torch.tensor([[1.0, 1, 1, -1], [-1, -1, -1, -1]])
    given = (codes, torch.tensor([2]), queries, torch.tensor([2, 2]))
    assert precision_within(*given, 1) == (0.5, 0.5)
    assert precision_within(*given, 4) == (1.0, 0.0)
    assert mean_average_precision(*given) == 1.0
    assert mean_average_precision(codes, torch.tensor([0]), *given[2:]) == 0.0


def test_a_tally_counts_all_items_of_long_codes_too() -> None:
    codes, queries, own, asked = signs(40, 130, 0), signs(6, 130, 1), labels(40, 2), labels(6, 3)
    found = tally(codes, own, queries, asked)
    assert found.every.shape == found.relevant.shape == (6, 131)
    for k, d in enumerate(distances(queries, codes)):
        assert np.array_equal(found.every[k], np.bincount(d, minlength=131))
        same = (own == asked[k]).numpy()
        assert np.array_equal(found.relevant[k], np.bincount(d[same], minlength=131))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: signs(4, 9, 0)}, "query_codes must have the 9 bits of the codes, got 8"),
        ({1: labels(3, 0)}, r"labels must be \(4,\), one of each code, got \(3,\)"),
        ({1: [0, 1, 2, 0]}, r"labels must be \(4,\), .*got list"),
        ({3: labels(4, 0)}, r"query_labels must be \(2,\), one of each code, got \(4,\)"),
        ({2: signs(2, 8, 0) * 3}, "query_codes must hold"),
        ({2: signs(0, 8, 0), 3: labels(0, 0)}, r"query_labels must be \(0,\)"),
    ],
)
def test_what_cannot_be_tallied_is_named(change: dict, words: str) -> None:
    given = [signs(4, 8, 0), labels(4, 0), signs(2, 8, 1), labels(2, 1)]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(ValueError, match=words):
        tally(*given)


def test_a_radius_or_a_number_of_items_that_is_none_is_named() -> None:
    given = (signs(4, 8, 0), labels(4, 0), signs(2, 8, 1), labels(2, 1))
    with pytest.raises(ValueError, match="radius must be an integer >= 0, got -1"):
        precision_within(*given, -1)
    with pytest.raises(ValueError, match="k must be at most the 4 items, got 5"):
        precision_at(*given, 5)
    with pytest.raises(ValueError, match="k must be an integer >= 1, got 0"):
        precision_at(*given, 0)


# Random hyperplanes ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("angle", [0.1, 1.0, math.pi / 2, 2.8])
def test_bits_differ_with_the_share_of_the_angle(angle: float) -> None:
    """A million hyperplanes in the plane of two inputs and out of it: the number of bits that
    differ is binomial with the share angle/pi; four tests of level 1e-4."""
    hashed = lsh(3, 1_000_000, torch.Generator().manual_seed(0))
    one = torch.tensor([0.0, 2.0, 0.0]).double()
    other = 0.3 * torch.tensor([0.0, math.cos(angle), math.sin(angle)]).double()
    differ = int((hashed(one) != hashed(other)).sum())
    assert stats.binomtest(differ, 1_000_000, angle / math.pi).pvalue > 1e-4


def test_hyperplanes_are_drawn_once_and_give_signs() -> None:
    hashed = lsh(5, 7, torch.Generator().manual_seed(1))
    y = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(2))
    code = hashed(y)
    assert code.shape == (4, 3, 7) and set(code.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(hashed(y), code) and torch.equal(hashed(-y), -code)
    assert torch.equal(hashed(torch.zeros(5)), torch.ones(7))  # never 0
    assert torch.equal(lsh(5, 7, torch.Generator().manual_seed(1))(y), code)
    assert not torch.equal(lsh(5, 7, torch.Generator().manual_seed(3))(y), code)
    assert torch.equal(pickle.loads(pickle.dumps(hashed))(y), code)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lsh(0, 3), "n_inputs must be an integer >= 1, got 0"),
        (lambda: lsh(3, 2.0), "n_bits must be an integer >= 1, got 2.0"),
        (lambda: lsh(3, 2)(torch.ones(4)), r"inputs must be \(..., 3\), got \(4,\)"),
        (lambda: lsh(3, 2)(torch.ones(3).long()), "inputs must be a floating-point .*torch.int64"),
        (lambda: lsh(3, 2)([1.0, 2, 3]), "inputs must be a floating-point tensor, got list"),
    ],
)
def test_what_cannot_be_hashed_is_named(call: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
