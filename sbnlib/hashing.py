r"""Retrieval by binary codes: distances of bits, an index, how good it is, and random hyperplanes.

    index = HammingIndex(codes)                       signs (N, n), n up to 64
    index.within(queries, 2)                          for each query, what is at distance 2 or less
    precision_within(codes, labels, queries, query_labels, 2)

A code is a row of n signs; the Hamming distance of two is the number of coordinates in which they
differ, which is the popcount of the XOR of their bits. An item is relevant to a query where it has
the query's label. Items at one distance have no order: what depends on it is the mean over all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbnlib.contracts import check_count
from sbnlib.noise import Gaussian
from sbnlib.packed import pack, products, runtime

__all__ = [
    "HammingIndex",
    "Tally",
    "hamming",
    "lsh",
    "mean_average_precision",
    "precision_at",
    "precision_within",
    "tally",
]


def __dir__() -> list[str]:  # what completion offers
    return __all__


Array = np.ndarray[Any, Any]
#: Bits of a word, and so of the longest code that an index takes.
LONGEST = runtime.WORD
#: Distances that are looked at together.
TOGETHER = 1 << 22


# Distances ----------------------------------------------------------------------------------------


def hamming(a: Array, b: Array, *, product: runtime.Product | None = None) -> Array:
    r"""The Hamming distances of packed codes: :math:`d_{ij} = \mathrm{popcount}(a_i \oplus b_j)`.

    Args:
        a, b: words of :func:`sbnlib.packed.pack`, (Q, words) and (N, words), uint64.
        product: counts the bits in which rows differ; by default numpy's count.

    Returns:
        (Q, N), int32.

    Raises:
        ValueError: what are no rows of words, or rows of two lengths.
    """
    a, b = np.asarray(a), np.asarray(b)
    for name, words in (("a", a), ("b", b)):
        if words.dtype != np.uint64 or words.ndim != 2:
            raise ValueError(
                f"{name} must be rows of words, (N, words) of uint64, got {words.dtype} "
                f"{words.shape}"
            )
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must have rows of one length, got {a.shape} and {b.shape}")
    return (product or runtime.differing)(a, b)


def _packed(name: str, codes: Tensor) -> Array:
    """Rows of signs as rows of words."""
    if not isinstance(codes, Tensor) or codes.dim() != 2 or not codes.shape[-1]:
        got = f"shape {tuple(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
        raise ValueError(f"{name} must be signs (N, n) with n >= 1, got {got}")
    try:
        return pack(codes.detach().cpu().numpy())
    except ValueError as error:
        raise ValueError(str(error).replace("x must", f"{name} must", 1)) from None


# The index ----------------------------------------------------------------------------------------


class HammingIndex:
    r"""Codes by their bits, one word each, for queries by Hamming distance.

    Args:
        codes: signs, (N, n) with N >= 1 and n up to 64; any number type.

    Raises:
        ValueError: codes longer than the index takes; other numbers than +1 and -1, another shape,
            or no code at all.

    A table has the distinct words in order, with the items of each. A ball of radius r around a
    query holds :math:`\sum_{k\le r}\binom nk` words. Where to look all of them up, by bisection,
    takes fewer steps than there are items, that is done; else every item is compared.
    """

    def __init__(self, codes: Tensor) -> None:
        if isinstance(codes, Tensor) and codes.dim() == 2 and codes.shape[1] > LONGEST:
            raise ValueError(
                f"codes longer than the index takes: got {codes.shape[1]} bits, at most {LONGEST}, "
                "the bits of a word"
            )
        words = _packed("codes", codes)[:, 0]
        if not len(words):
            raise ValueError(f"codes must be signs (N, n) with N >= 1, got {tuple(codes.shape)}")
        self.bits, self.items = codes.shape[1], words
        self.order = np.argsort(words, kind="stable")
        self.words, self.starts = np.unique(words[self.order], return_index=True)
        self.ends = np.append(self.starts[1:], len(words))

    def __len__(self) -> int:
        return len(self.items)

    def within(self, queries: Tensor, radius: int) -> list[Tensor]:
        """For each query the items at Hamming distance ``radius`` or less.

        Args:
            queries: signs, (Q, n).
            radius: a whole number from 0.

        Returns:
            Q vectors of indices, int64, in increasing order; one may be empty.

        Raises:
            ValueError: queries that are no signs (Q, n), or a radius that is no such number.
        """
        check_count("radius", radius, least=0)
        words = self._words(queries)
        found = self._by_probes(words, radius) if self._probes(radius) else self._by_scan(
            words, radius)  # fmt: skip
        return [torch.from_numpy(np.sort(items)) for items in found]

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest items of each query, and their distances; among equals the first ones.

        Args:
            queries: signs, (Q, n).
            k: from 1 to the number of items.

        Returns:
            Indices and distances, (Q, k), int64, the nearest first.

        Raises:
            ValueError: queries that are no signs (Q, n), or another k.
        """
        check_count("k", k)
        if k > len(self):
            raise ValueError(f"k must be at most the {len(self)} items, got {k}")
        words = self._words(queries)
        step = max(1, TOGETHER // len(self))
        keys = [self._keys(words[i : i + step], k) for i in range(0, len(words), step)]
        found = torch.from_numpy(np.concatenate([np.empty((0, k), np.int64), *keys]))
        return found % len(self), found // len(self)

    def _words(self, queries: Tensor) -> Array:
        words = _packed("queries", queries)
        if queries.shape[1] != self.bits:
            raise ValueError(
                f"queries must have the {self.bits} bits of the codes, got {queries.shape[1]}"
            )
        return words[:, 0]

    def _probes(self, radius: int) -> bool:
        """Whether a bisection for every word of a ball has fewer steps than a scan."""
        ball = sum(math.comb(self.bits, k) for k in range(min(radius, self.bits) + 1))
        return ball * len(self.words).bit_length() < len(self)

    def _by_probes(self, words: Array, radius: int) -> list[Array]:
        masks = _masks(self.bits, radius)
        return [self._at(word ^ masks) for word in words]

    def _at(self, words: Array) -> Array:
        """The items of some words."""
        place = np.searchsorted(self.words, words)
        there = place < len(self.words)
        there[there] = self.words[place[there]] == words[there]
        spans = [self.order[self.starts[j] : self.ends[j]] for j in place[there]]
        return np.concatenate([np.empty(0, np.int64), *spans])

    def _by_scan(self, words: Array, radius: int) -> list[Array]:
        return [
            np.flatnonzero(np.bitwise_count(word ^ self.items) <= radius).astype(np.int64)
            for word in words
        ]

    def _keys(self, words: Array, k: int) -> Array:
        """d N + j of the k nearest items j, which are the k smallest."""
        d = hamming(words[:, None], self.items[:, None])
        keys = d.astype(np.int64) * len(self) + np.arange(len(self))
        return np.sort(np.partition(keys, k - 1, axis=1)[:, :k], axis=1)


def _masks(bits: int, radius: int) -> Array:
    """All words of so many bits with ``radius`` ones or fewer."""
    ones = [1 << i for i in range(bits)]
    return np.array(
        [sum(few) for k in range(min(radius, bits) + 1) for few in combinations(ones, k)],
        np.uint64,
    )


# How good it is -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tally:
    """How many items lie at each distance of each query, all of them and the relevant ones.

    Attributes:
        every, relevant: (Q, n + 1), int64; column d counts the items at distance d.
    """

    every: Array
    relevant: Array

    def precision_within(self, radius: int) -> tuple[float, float]:
        """As :func:`precision_within`."""
        check_count("radius", radius, least=0)
        every, relevant = (c[:, : radius + 1].sum(1) for c in (self.every, self.relevant))
        return float((relevant / np.maximum(every, 1)).mean()), float((every == 0).mean())

    def precision_at(self, k: int) -> float:
        """As :func:`precision_at`."""
        check_count("k", k)
        items = int(self.every[0].sum())
        if k > items:
            raise ValueError(f"k must be at most the {items} items, got {k}")
        before = self.every.cumsum(1) - self.every
        taken = np.clip(k - before, 0, self.every)  # of the last distance that is reached, a share
        return float((taken * self.relevant / np.maximum(self.every, 1)).sum(1).mean() / k)

    def mean_average_precision(self) -> float:
        """As :func:`mean_average_precision`."""
        n, r = self.every, self.relevant
        t, before = n.cumsum(1) - n, r.cumsum(1) - r  # what comes before: items, relevant ones
        harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, n[0].sum() + 1)))
        inverse = harmonic[t + n] - harmonic[t]  # of 1/(t + i), i = 1..n
        growth = (r - 1) / np.maximum(n - 1, 1)  # relevant ones a place, given that this one is
        each = r / np.maximum(n, 1) * ((before + 1) * inverse + growth * (n - (t + 1) * inverse))
        return float((each.sum(1) / np.maximum(r.sum(1), 1)).mean())


def tally(codes: Tensor, labels: Tensor, query_codes: Tensor, query_labels: Tensor) -> Tally:
    """Count the items at each Hamming distance of each query; the other numbers follow from it.

    Args:
        codes: signs of the items, (N, n) with N >= 1, of any length n.
        labels: of the items, (N,), integers.
        query_codes: signs, (Q, n) with Q >= 1.
        query_labels: (Q,), integers.

    Raises:
        ValueError: codes that are no signs of these shapes, or labels that are not one a row.
    """
    words, queries = _packed("codes", codes), _packed("query_codes", query_codes)
    if codes.shape[1] != query_codes.shape[1]:
        raise ValueError(
            f"query_codes must have the {codes.shape[1]} bits of the codes, got "
            f"{query_codes.shape[1]}"
        )
    pairs = {"labels": (labels, words), "query_labels": (query_labels, queries)}
    for name, (given, rows) in pairs.items():
        if not isinstance(given, Tensor) or given.shape != (len(rows),) or not len(rows):
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{name} must be ({len(rows)},), one of each code, got {got}")
    counts = np.zeros((2, len(queries), codes.shape[1] + 1), np.int64)
    product = products.product()
    for label in query_labels.unique():
        own = np.flatnonzero((query_labels == label).numpy())
        same = (labels == label).numpy()
        for k, items in enumerate((words[~same], words[same])):
            counts[k, own] = _histograms(queries[own], items, counts.shape[2], product)
    return Tally(counts.sum(0), counts[1])


def _histograms(queries: Array, items: Array, columns: int, product: runtime.Product) -> Array:
    """How many items lie at each distance of each query, (Q, columns)."""
    found = np.zeros((len(queries), columns), np.int64)
    step = max(1, TOGETHER // max(1, len(items)))
    for k in range(0, len(queries), step):
        d = hamming(queries[k : k + step], items, product=product)
        d += columns * np.arange(len(d), dtype=np.int32)[:, None]
        found[k : k + step] = np.bincount(d.ravel(), minlength=len(d) * columns).reshape(len(d), -1)
    return found


def precision_within(
    codes: Tensor, labels: Tensor, query_codes: Tensor, query_labels: Tensor, radius: int
) -> tuple[float, float]:
    r"""The precision within a Hamming radius, and the share of queries that retrieve nothing.

    .. math:: \frac1Q\sum_{j}\frac{\#\{i : d_{ij}\le r,\ \text{label}_i = \text{label}_j\}}
              {\#\{i : d_{ij}\le r\}}

    A query j that retrieves nothing counts as 0.

    Args:
        codes, labels, query_codes, query_labels: as :func:`tally`.
        radius: r, a whole number from 0.

    Raises:
        ValueError: as :func:`tally`, and a radius that is no such number.

    Source: Salakhutdinov & Hinton 2009 (International Journal of Approximate Reasoning
    50).
    """
    check_count("radius", radius, least=0)
    return tally(codes, labels, query_codes, query_labels).precision_within(radius)


def precision_at(
    codes: Tensor, labels: Tensor, query_codes: Tensor, query_labels: Tensor, k: int
) -> float:
    """The share of relevant items among the k nearest ones, in the mean over the queries.

    Of the items at the distance where the k-th lies, the mean over all choices is taken.

    Args:
        codes, labels, query_codes, query_labels: as :func:`tally`.
        k: from 1 to the number of items.

    Raises:
        ValueError: as :func:`tally`, and another k.
    """
    check_count("k", k)
    return tally(codes, labels, query_codes, query_labels).precision_at(k)


def mean_average_precision(
    codes: Tensor, labels: Tensor, query_codes: Tensor, query_labels: Tensor
) -> float:
    r"""The mean over the queries of the average precision of the ranking by distance.

    .. math:: \frac1Q\sum_j\frac1{R_j}\sum_{i\ \text{relevant}} \text{precision at the place of } i

    with :math:`R_j` relevant items; the mean over all orders of items at one distance. A query
    without a relevant item counts as 0.

    Args:
        codes, labels, query_codes, query_labels: as :func:`tally`.

    Raises:
        ValueError: as :func:`tally`.

    Source: for the mean over orders, McSherry & Najork 2008 (ECIR).
    """
    return tally(codes, labels, query_codes, query_labels).mean_average_precision()


# Random hyperplanes -------------------------------------------------------------------------------


def lsh(
    n_inputs: int, n_bits: int, generator: torch.Generator | None = None
) -> Callable[[Tensor], Tensor]:
    r"""Locality-sensitive hashing by random hyperplanes: the code :math:`\operatorname{sign}(Ry)`.

    The rows of R are standard normal. Two inputs at the angle :math:`\theta` differ in each bit
    with probability :math:`\theta/\pi`; the hyperplanes go through 0, so the inputs should be
    centred.

    Args:
        n_inputs, n_bits: sizes of the input and of the code, at least 1.
        generator: source of randomness, on the CPU, where R is drawn; which device the inputs are
            on is their own affair.

    Returns:
        A function of inputs ``(..., n_inputs)``, floating point, that gives signs
        ``(..., n_bits)``, +1 where :math:`Ry = 0`.

    Raises:
        ValueError: a size that is no whole number from 1; when the function is called, inputs that
            are not ``(..., n_inputs)``.

    Source: Charikar 2002 (STOC), section 3.
    """
    check_count("n_inputs", n_inputs)
    check_count("n_bits", n_bits)
    planes = Gaussian().sample((n_bits, n_inputs), generator=generator, dtype=torch.float64)
    return partial(_sides, planes)


def _sides(planes: Tensor, inputs: Tensor) -> Tensor:
    """On which side of each hyperplane the inputs lie."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        got = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs must be a floating-point tensor, got {got}")
    if inputs.shape[-1:] != planes.shape[1:]:
        raise ValueError(f"inputs must be (..., {planes.shape[1]}), got {tuple(inputs.shape)}")
    found = inputs @ planes.to(inputs).mT
    return torch.where(found >= 0, 1.0, -1.0).to(inputs.dtype)
