"""How contenders are compared: a search by validation, then fresh seeds, then a summary.

Every contender gets its trials with one fixed seed, the best by validation is trained anew for the
reported seeds, and only those runs are tested.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from sbnlib.experiments.cache import Cache, Checkpoint, Row
from sbnlib.extras import extra

__all__ = [
    "SEARCH_SEED",
    "Runs",
    "beyond",
    "holm",
    "mean_se",
    "search_and_final",
    "summary",
    "welch",
]

Trial = TypeVar("Trial")
SEARCH_SEED = 1_000_000  # none of the seeds 0, 1, ... that are reported


class Compute(Protocol):
    """Training runs: their rows one by one, from a file for the state of each, and a call after
    each epoch of each."""

    def __call__(
        self,
        runs: Sequence[Mapping[str, Any]],
        files: Sequence[Checkpoint | None],
        /,
        *,
        after_epoch: Callable[[], Any],
    ) -> Iterable[Row]: ...


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

    def rows(self, runs: Sequence[Mapping[str, Any]], compute: Compute, *, stack: int) -> list[Row]:
        """The rows of runs, or what is known of them from before.

        Args:
            runs: names and values of each; see :meth:`Cache.rows`. The bar shows meanwhile what
                all have in common.
            compute: some of the runs.
            stack: the most that are computed as one.
        """
        seen, common = self.bar.n, _common(runs)
        if common.get("seed") == SEARCH_SEED:
            common = {"search": f"of {len(runs)}"} | {k: common[k] for k in common if k != "seed"}
        self.bar.set_description(" ".join(f"{name} {value}" for name, value in common.items()))
        rows = self.cache.rows(runs, partial(compute, after_epoch=self.bar.update), stack=stack)
        self.bar.update(seen + len(runs) * self.epochs - self.bar.n)
        return rows


def _common(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {k: v for k, v in runs[0].items() if all(run[k] == v for run in runs)}


def search_and_final(
    trials: Sequence[Trial],
    rows: Callable[[Sequence[tuple[Trial, int]]], list[Row]],
    *,
    seeds: int,
    score: Callable[[Row], Any],
) -> tuple[list[Row], list[Row]]:
    """The rows of one contender's search, which leave out the tests, and of its final runs.

    Args:
        trials: the settings; a single one needs no search.
        rows: the rows of runs, each with a setting and a seed.
        seeds: how many final runs, with the seeds 0, 1, ...
        score: of a search row, the higher the better; among equals the first trial is chosen.
    """
    search = rows([(trial, SEARCH_SEED) for trial in trials]) if len(trials) > 1 else []
    best = max(range(len(search)), key=lambda k: score(search[k]), default=0)
    final = rows([(trials[best], seed) for seed in range(seeds)])
    blind = [{k: v for k, v in row.items() if k != "test"} for row in search]
    return [{"part": "search"} | r for r in blind], [{"part": "final"} | r for r in final]


def beyond(tried: Sequence[float], best: float) -> tuple[float, ...]:
    """The learning rate to try next where the best of those tried is an end of them; else none.

    It lies as far beyond the end as the rate next to it is within, to two digits.

    Args:
        tried: at least two rates, each once.
        best: one of them.
    """
    rates = sorted(tried)
    for end, next_to in (rates[:2], rates[:-3:-1]):
        if best == end:
            return (float(f"{end**2 / next_to:.2g}"),)
    return ()


def summary(values: Sequence[float], twin: Sequence[float] | None = None, *, images: int) -> Row:
    r"""What N runs say: ``mean``, ``se``, ``image_se``, and the difference to the twin by Welch.

    ``se`` tells how the mean varies with the seed; ``image_se`` how the accuracy of one network
    varies with the draw of the test images, :math:`\sqrt{m(1-m)/n}` at the mean m.

    Args:
        values: an accuracy a seed.
        twin: the twin's, of other seeds or independent draws; None leaves the difference out.
        images: the number n of test images.
    """
    mean, se = mean_se(values)
    row: Row = {"mean": mean, "se": se, "images": images}
    row["image_se"] = math.sqrt(mean * (1 - mean) / images)
    return row if twin is None else row | welch(values, twin)


def welch(values: Sequence[float], twin: Sequence[float]) -> Row:
    """``minus_twin``, its ``minus_twin_se``, and the degrees of freedom and two-sided p of Welch.

    The two may differ in variance and in number, and must be independent. Null where a single run,
    or runs that do not vary, leave nothing to tell by.

    Source: Welch, The generalization of 'Student's' problem, Biometrika 34 (1947).
    """
    (mean, se), (other, other_se) = mean_se(values), mean_se(twin)
    row: Row = {"minus_twin": mean - other, "minus_twin_se": None}
    row |= {"minus_twin_df": None, "minus_twin_p": None}
    if se is None or other_se is None:
        return row
    row["minus_twin_se"] = math.hypot(se, other_se)
    if row["minus_twin_se"] > 0:
        with extra("experiments"):
            from scipy.stats import ttest_ind
        test = ttest_ind(values, twin, equal_var=False)
        row |= {"minus_twin_df": float(test.df), "minus_twin_p": float(test.pvalue)}
    return row


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """The p-values of several comparisons, adjusted so that one false alarm in all of them has the
    level at which they are read.

    The k-th smallest of m is multiplied by m - k + 1, and no adjusted one is below one before it.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6
    (1979).
    """
    adjusted, least = {}, 0.0
    for k, name in enumerate(sorted(p, key=lambda name: p[name])):
        least = max(least, min(1.0, (len(p) - k) * p[name]))
        adjusted[name] = least
    return adjusted


def mean_se(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, None for a single value."""
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), se
