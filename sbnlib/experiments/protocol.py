"""How contenders are compared: a search by validation, then fresh seeds, then a summary.

Every contender gets its trials with one fixed seed, the best by validation is trained anew for the
reported seeds, and only those runs are tested.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sbnlib.experiments.cache import Cache, Checkpoint, Row
from sbnlib.extras import extra

__all__ = ["SEARCH_SEED", "Runs", "mean_se", "search_and_final", "summary"]

Trial = TypeVar("Trial")
SEARCH_SEED = 1_000_000  # none of the seeds 0, 1, ... that are reported


class Compute(Protocol):
    """A training run: its row, from a file for the state and a call after each epoch."""

    def __call__(self, *, checkpoint: Checkpoint | None, after_epoch: Callable[[], Any]) -> Row: ...


class Runs:
    """The training runs of one experiment, under one progress bar that counts epochs.

    Args:
        cache: what is known of them.
        count: how many there will be.
        epochs: how long each is.
        progress: whether to show the bar.
    """

    def __init__(self, cache: Cache, *, count: int, epochs: int, progress: bool) -> None:
        with extra("experiments"):
            from tqdm import tqdm

        self.cache, self.epochs = cache, epochs
        hidden = not progress or not cache.fabric.is_global_zero
        self.bar = tqdm(total=count * epochs, unit="epoch", disable=hidden)

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def row(self, run: Mapping[str, Any], compute: Compute) -> Row:
        """The row of one run, or what is known of it from before.

        Args:
            run: its names and values, which the bar shows meanwhile; see :meth:`Cache.row`.
            compute: the run.
        """
        seen = self.bar.n
        self.bar.set_description(" ".join(f"{name} {value}" for name, value in run.items()))
        row = self.cache.row(
            run, lambda file: compute(checkpoint=file, after_epoch=self.bar.update)
        )
        self.bar.update(seen + self.epochs - self.bar.n)
        return row


def search_and_final(
    trials: Sequence[Trial],
    one: Callable[[Trial, int], Row],
    *,
    seeds: int,
    score: Callable[[Row], Any],
) -> tuple[list[Row], list[Row]]:
    """The rows of one contender's search, which leave out the tests, and of its final runs.

    Args:
        trials: the settings; a single one needs no search.
        one: the row of a run with a setting and a seed.
        seeds: how many final runs, with the seeds 0, 1, ...
        score: of a search row, the higher the better; among equals the first trial is chosen.
    """
    search = [one(trial, SEARCH_SEED) for trial in trials] if len(trials) > 1 else []
    best = max(range(len(search)), key=lambda k: score(search[k]), default=0)
    final = [one(trials[best], seed) for seed in range(seeds)]
    blind = [{k: v for k, v in row.items() if k != "test"} for row in search]
    return [{"part": "search"} | r for r in blind], [{"part": "final"} | r for r in final]


def summary(
    values: Sequence[float], twin: Sequence[float] | None = None, *, gap: str = "minus_twin"
) -> Row:
    """Mean over the seeds and the paired difference to the twin, each with its standard error.

    The errors tell how the result varies with the seed, not with the choice of the test images.

    Args:
        values: one number a seed.
        twin: the twin's, seed by seed; None leaves the difference out.
        gap: the name of the difference.
    """
    mean, se = mean_se(values)
    row: Row = {"mean": mean, "se": se}
    if twin is not None:
        mean, se = mean_se([a - b for a, b in zip(values, twin, strict=True)])
        row |= {gap: mean, "minus_twin_se": se}
    return row


def mean_se(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, None for a single value."""
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), se
