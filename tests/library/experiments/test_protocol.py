"""Search, final runs and summary: what every comparison of the package goes through."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from sbnlib.experiments.protocol import SEARCH_SEED, mean_se, search_and_final, summary


def run(trial: str, seed: int) -> dict[str, Any]:
    """A run whose validation depends on the trial only."""
    return {"trial": trial, "seed": seed, "validation": {"a": 1, "b": 3, "c": 3}[trial], "test": 0}


def validation(row: dict[str, Any]) -> int:
    return row["validation"]


def test_the_best_trial_by_validation_is_run_again_with_fresh_seeds() -> None:
    search, final = search_and_final("abc", run, seeds=3, score=validation)
    assert [(r["trial"], r["seed"]) for r in search] == [(t, SEARCH_SEED) for t in "abc"]
    assert [(r["trial"], r["seed"]) for r in final] == [("b", s) for s in range(3)]  # first of two
    assert {r["part"] for r in search} == {"search"} and {r["part"] for r in final} == {"final"}
    assert not any("test" in r for r in search) and all("test" in r for r in final)


def test_a_single_trial_needs_no_search() -> None:
    search, final = search_and_final(["c"], run, seeds=1, score=validation)
    assert search == [] and [r["trial"] for r in final] == ["c"]


def test_the_score_decides() -> None:
    _, final = search_and_final("abc", run, seeds=1, score=lambda row: -row["validation"])
    assert final[0]["trial"] == "a"


def test_summary_is_the_mean_and_the_paired_difference() -> None:
    own, twin = [0.9, 0.8, 0.95], [0.91, 0.83, 0.95]
    gaps = [-0.01, -0.03, 0.0]
    row = summary(own, twin, gap="less")
    assert row == {
        "mean": pytest.approx(statistics.fmean(own)),
        "se": pytest.approx(statistics.stdev(own) / math.sqrt(3)),
        "less": pytest.approx(statistics.fmean(gaps)),
        "minus_twin_se": pytest.approx(statistics.stdev(gaps) / math.sqrt(3)),
    }
    assert summary(own) == {k: row[k] for k in ("mean", "se")}
    assert mean_se([0.5]) == (0.5, None)
    with pytest.raises(ValueError):
        summary(own, twin[:2])
