"""Search, final runs and summary: what every comparison of the package goes through."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from scipy.integrate import quad

from sbnlib.experiments.protocol import (
    SEARCH_SEED,
    beyond,
    holm,
    mean_se,
    search_and_final,
    summary,
    welch,
)


def run(settings: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Runs whose validation depends on the trial only."""
    found = {"a": 1, "b": 3, "c": 3}
    return [{"trial": t, "seed": s, "validation": found[t], "test": 0} for t, s in settings]


def validation(row: dict[str, Any]) -> int:
    return row["validation"]


def test_the_best_trial_by_validation_is_run_again_with_fresh_seeds() -> None:
    search, final = search_and_final("abc", run, seeds=3, score=validation)
    assert [(r["trial"], r["seed"]) for r in search] == [(t, SEARCH_SEED) for t in "abc"]
    assert [(r["trial"], r["seed"]) for r in final] == [("b", s) for s in range(3)]  # first of two
    assert {r["part"] for r in search} == {"search"} and {r["part"] for r in final} == {"final"}
    assert not any("test" in r for r in search) and all("test" in r for r in final)


def test_the_search_is_asked_for_at_once_and_so_are_the_final_runs() -> None:
    asked = []
    search_and_final("abc", lambda s: asked.append(len(s)) or run(s), seeds=5, score=validation)
    assert asked == [3, 5]


def test_a_single_trial_needs_no_search() -> None:
    search, final = search_and_final(["c"], run, seeds=1, score=validation)
    assert search == [] and [r["trial"] for r in final] == ["c"]


def test_the_score_decides() -> None:
    _, final = search_and_final("abc", run, seeds=1, score=lambda row: -row["validation"])
    assert final[0]["trial"] == "a"


OWN, TWIN = [0.9, 0.8, 0.95, 0.9], [0.91, 0.83, 0.99]


def test_summary_is_the_mean_its_errors_and_welchs_test() -> None:
    # Expected: the textbook's formulas, p by quadrature of Student's density
    row = summary(OWN, TWIN, images=50)
    mean = statistics.fmean(OWN)
    parts = [statistics.variance(v) / len(v) for v in (OWN, TWIN)]
    se, gap = math.sqrt(sum(parts)), mean - statistics.fmean(TWIN)
    df = sum(parts) ** 2 / sum(v * v / (n - 1) for v, n in zip(parts, (4, 3), strict=True))
    norm = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    inside, _ = quad(lambda t: norm * (1 + t * t / df) ** (-(df + 1) / 2), 0, abs(gap) / se)
    assert row == {
        "mean": pytest.approx(mean),
        "se": pytest.approx(math.sqrt(parts[0])),
        "images": 50,
        "image_se": pytest.approx(math.sqrt(mean * (1 - mean) / 50)),
        "minus_twin": pytest.approx(gap),
        "minus_twin_se": pytest.approx(se),
        "minus_twin_df": pytest.approx(df),
        "minus_twin_p": pytest.approx(1 - 2 * inside),
    }
    assert summary(OWN, images=50) == {k: row[k] for k in ("mean", "se", "images", "image_se")}
    assert mean_se([0.5]) == (0.5, None)


@pytest.mark.parametrize("own, twin", [([0.9], TWIN), (OWN, [0.9]), ([0.5, 0.5], [0.9, 0.9])])
def test_welch_says_nothing_where_runs_tell_nothing(own: list[float], twin: list[float]) -> None:
    row = welch(own, twin)
    assert row["minus_twin"] == pytest.approx(statistics.fmean(own) - statistics.fmean(twin))
    assert row["minus_twin_df"] is row["minus_twin_p"] is None


def test_holm_adjusts_for_the_comparisons_that_are_left() -> None:
    # Holm 1979: p times 4, 3, 2, 1 in their order, and never below the one before
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


@pytest.mark.slow
def test_holm_and_welch_keep_the_rate_of_false_alarms() -> None:
    # Seven contenders equal to their twin in the mean but not in the spread, 10 runs each: some
    # p below 0.05 in at most 5 % of 1000 experiments (upper limit of a test at one in 10^6)
    draw, alarms = random.Random(0), 0
    for _ in range(1000):
        twin = [draw.gauss(0, 1) for _ in range(10)]
        p = {str(s): welch([draw.gauss(0, s) for _ in range(10)], twin)["minus_twin_p"]
             for s in (0.3, 0.5, 1, 1.5, 2, 2.5, 3)}  # fmt: skip
        alarms += min(holm(p).values()) < 0.05
    assert alarms < 90


def test_beyond_the_end_that_is_the_best() -> None:
    tried = (0.03, 0.003, 0.01)  # in any order
    assert beyond(tried, 0.01) == ()
    assert beyond(tried, 0.03) == (0.09,) and beyond(tried, 0.003) == (0.0009,)
    assert beyond((0.01, 0.03, 0.09), 0.09) == (0.27,)
