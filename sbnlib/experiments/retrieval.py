"""Semantic hashing: pictures of the same label among the nearest codes.

The items are the training images of a data set and the queries its test images; an item is relevant
where it has the query's label, which no code has seen. Codes are the signs of an autoencoder's
pre-activations, of the real-valued twin's code, of the first principal components, and of random
hyperplanes; beside them stands the twin's real code itself, ranked by Euclidean distance.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sbnlib import hashing
from sbnlib.data import Dataset
from sbnlib.experiments.cache import Row
from sbnlib.experiments.coders import (
    SEEDS,
    carried_out,
    coded,
    fresh,
    pictures,
    recipe_of,
    signs,
)
from sbnlib.experiments.training import generator
from sbnlib.experiments.ways import data_of

__all__ = ["BITS", "RADII", "jobs", "retrieved"]

BITS = (16, 32, 64)
RADII = (0, 1, 2, 3)
#: How many of the nearest are looked at.
NEAREST = 100
#: Queries whose distances to all items are in memory at once.
TOGETHER = 500


def jobs(trained: list[str]) -> list[Row]:
    """Every code, length and seed; principal components have no seed.

    Args:
        trained: autoencoders, by who trains them.
    """
    random = [*trained, "twin", "lsh"]
    rows: list[Row] = [{"name": "pca", "bits": bits, "seed": 0} for bits in BITS]
    return rows + [
        {"name": name, "bits": bits, "seed": seed}
        for name in random for bits in BITS for seed in range(SEEDS)
    ]  # fmt: skip


def retrieved(
    job: Mapping[str, Any], *, data: str, rates: Mapping[str, float], epochs: int
) -> list[Row]:
    """The rows of one code: one, or two of the twin, whose ``code`` is "sign" or "real".

    ``within`` and ``empty``: the precision within each radius of ``RADII`` and the share of queries
    that retrieve nothing there; ``nearest``: the precision of the first 100; ``map``: the mean
    average precision. Of a real code only ``nearest`` is told, the others are null.

    Args:
        job: ``name``, ``bits`` and ``seed``.
        data: the name of the data set.
        rates: the learning rate of the first epoch, by the name of an autoencoder.
        epochs: the length of a training.
    """
    labels = data_of(data)
    own = {"part": "retrieval"} | dict(job)
    return [
        own
        | {"code": kind}
        | (_by_bits if kind == "sign" else _by_distance)(items, queries, labels)
        for kind, items, queries in _codes(job, pictures(data, torch.float32), rates, epochs)
    ]


def _codes(
    job: Mapping[str, Any], data: Dataset, rates: Mapping[str, float], epochs: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The kind of a code, those of the items and those of the queries."""
    name, bits, seed = job["name"], job["bits"], job["seed"]
    items, queries = data.train.inputs, data.test.inputs
    if name == "lsh":
        hashed = hashing.lsh(items.shape[1], bits, generator("cpu", "lsh", seed=seed, bits=bits))
        yield "sign", hashed(items), hashed(queries)
        return
    if name == "pca":
        axes = principal_axes(items, bits)
        yield "sign", signs(items @ axes), signs(queries @ axes)
        return
    training = fresh(name, bits, data, rates[name], recipe_of(name, bits, seed, epochs))
    code = functools.partial(coded, carried_out(training, data))
    pairs = zip(("sign", "real"), code(items), code(queries), strict=True)
    yield from list(pairs)[: 2 if name == "twin" else 1]


def principal_axes(inputs: Tensor, count: int) -> Tensor:
    """The axes of largest variance of inputs (N, m) about their mean, (m, count)."""
    centred = inputs.double() - inputs.double().mean(0)
    return torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :count].to(inputs.dtype)


def _by_bits(items: Tensor, queries: Tensor, data: Dataset) -> Row:
    found = hashing.tally(items, data.train.labels, queries, data.test.labels)
    within = [found.precision_within(radius) for radius in RADII]
    row: Row = {"within": [p for p, _ in within], "empty": [e for _, e in within]}
    nearest = found.precision_at(min(NEAREST, len(items)))
    return row | {"nearest": nearest, "map": found.mean_average_precision()}


def _by_distance(items: Tensor, queries: Tensor, data: Dataset) -> Row:
    """By Euclidean distance, of which the length of the query is left out."""
    squares, right = items.square().sum(-1), 0
    k = min(NEAREST, len(items))
    for some, labels in zip(queries.split(TOGETHER), data.test.labels.split(TOGETHER), strict=True):
        nearest = (squares - 2 * some @ items.T).topk(k, largest=False)[1]
        right += int((data.train.labels[nearest] == labels[:, None]).sum())
    return {"within": None, "empty": None, "nearest": right / (k * len(queries)), "map": None}
