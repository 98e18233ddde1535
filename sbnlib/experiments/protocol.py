"""How contenders are compared: a search by validation, then fresh seeds, then a summary.

Every contender gets its trials with one fixed seed, the best by validation is trained anew for the
reported seeds, and only those runs are tested. A finished run is kept as a row in a folder, the one
under way as a checkpoint, so that an experiment killed at any time goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from sbnlib.experiments.measurement import commit, write_whole
from sbnlib.extras import extra

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "SEARCH_SEED",
    "Row",
    "Runs",
    "cached",
    "mean_se",
    "resume_folder",
    "search_and_final",
    "summary",
]

Row = dict[str, Any]
Trial = TypeVar("Trial")
SEARCH_SEED = 1_000_000  # none of the seeds 0, 1, ... that are reported


class Compute(Protocol):
    """A training run: its row, from a file for the state and a call after each epoch."""

    def __call__(self, *, checkpoint: Path | None, after_epoch: Callable[[], Any]) -> Row: ...


class Runs:
    """The training runs of one experiment, under one progress bar that counts epochs.

    Args:
        fabric: where they run.
        folder: where rows and checkpoints are kept; None for nowhere.
        count: how many runs there will be.
        epochs: how long each is.
        progress: whether to show the bar.
    """

    def __init__(
        self, fabric: Fabric, folder: Path | None, *, count: int, epochs: int, progress: bool
    ) -> None:
        with extra("experiments"):
            from tqdm import tqdm

        self.fabric, self.folder, self.epochs = fabric, folder, epochs
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        hidden = not progress or not fabric.is_global_zero
        self.bar = tqdm(total=count * epochs, unit="epoch", disable=hidden)

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def row(self, name: str, words: str, compute: Compute) -> Row:
        """The row of one run, or what is known of it from before.

        Args:
            name: of its files in the folder.
            words: what the bar says meanwhile.
            compute: the run.
        """
        seen = self.bar.n
        self.bar.set_description(words)
        row = cached(
            self.fabric,
            self.folder,
            name,
            lambda checkpoint: compute(checkpoint=checkpoint, after_epoch=self.bar.update),
        )
        self.bar.update(seen + self.epochs - self.bar.n)
        return row


def resume_folder(parent: Path, name: str, settings: Any) -> Path:
    """A folder for this experiment only: same name, settings, commit and torch."""
    key = json.dumps([settings, commit(), torch.__version__])
    return parent / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def cached(
    fabric: Fabric, folder: Path | None, name: str, compute: Callable[[Path | None], Row]
) -> Row:
    """The row ``compute(checkpoint)`` returns, kept as ``folder/name.json`` once it is known.

    A row that is there already is read instead; one cut off by a kill is computed again. All
    devices get the row of the first.
    """
    if folder is None:
        return fabric.broadcast(compute(None))
    path = folder / f"{name}.json"
    row = fabric.broadcast(_stored(path) if fabric.is_global_zero else None)
    if row is None:
        checkpoint = folder / f"{name}.ckpt"
        row = fabric.broadcast(compute(checkpoint))
        if fabric.is_global_zero:
            write_whole(path, json.dumps(row, allow_nan=False))
            checkpoint.unlink(missing_ok=True)
    return row


def _stored(path: Path) -> Row | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not there, or cut off
        return None


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
