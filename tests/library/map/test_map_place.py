"""The numbers of the map: exact ones by enumeration, sampled ones with errors that cover, costs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from problems_by_hand import exact_row

import sbnlib
from sbnlib import map as sbn_map
from sbnlib import straight_through
from sbnlib.map import placing, problem_set
from sbnlib.map.given import given

STATE_ONLY = {"straight_through": "straight_through", "zgr": "zgr", "darn": "darn_mean",
              "identity": "identity"}  # fmt: skip
SMALL = ["digits-1x5-logistic-1", "digits-2x3-logistic-1", "digits-2x5-uniform-2",
         "xor-2x5-logistic-0.5", "xor-2x5-gaussian-1.6", "smooth-2x3-logistic-1",
         "smooth-2x5-logistic-2"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("problem", SMALL)
@pytest.mark.parametrize("name", STATE_ONLY)
def test_exact_columns_are_those_of_an_enumeration_of_paths(name: str, problem: str) -> None:
    report = sbn_map.place(getattr(sbnlib, name), problems=[problem])
    assert report.sampled == "" and report.samples == 0
    for layers in ("first", "all"):
        row, wanted = report.row(problem)[layers], exact_row(problem, STATE_ONLY[name], layers)
        for key, value in wanted.items():
            assert row[key][0] == pytest.approx(value, rel=6e-4, abs=1e-12), (layers, key)
            assert row[key][1] == 0


def test_three_layers_too() -> None:
    row = sbn_map.place("zgr", problems=["xor-3x5-logistic-1"]).row("xor-3x5-logistic-1")
    wanted = exact_row("xor-3x5-logistic-1", "zgr", "first")
    assert [v for v, _ in row["first"].values()] == pytest.approx(list(wanted.values()), rel=6e-4)


def test_what_is_rounding_is_0() -> None:
    row = sbn_map.place("darn", problems=["xor-1x5-logistic-1"]).rows[0]
    assert row["all"]["bias2"] == [0.0, 0.0]  # in one layer it is exact for this loss
    assert row["first"] == row["all"]


def drawn(a, x, noise, *, generator=None):
    """Straight-through as one that takes a generator, so that it is measured by samples."""
    return straight_through(a, x, noise)


def sampled_rows(monkeypatch, estimator, problem: str, samples: int, count: int) -> list[dict]:
    """Rows by many seeds."""
    monkeypatch.setattr(placing, "SAMPLES", samples)
    p, its, rows = sbn_map.problems()[problem], given(estimator), []
    for seed in range(count):
        generator = torch.Generator().manual_seed(1000 + seed)
        monkeypatch.setattr(placing, "_generator", lambda _, g=generator: g)
        rows.append(placing._row(p, its))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["smooth-2x3-logistic-1", "xor-2x3-logistic-1"])
def test_standard_errors_of_sampled_columns_cover_what_is_exact(problem, monkeypatch) -> None:
    """Of 60 runs two errors cover at least 49 (97.5 % of them would with 0.95: 2e-4), and are not
    far too long: one error misses at least 6 of them (with 0.32: 1e-4)."""
    rows = sampled_rows(monkeypatch, drawn, problem, 512, 60)
    for layers in ("first", "all"):
        wanted = exact_row(problem, "straight_through", layers)
        for key, value in wanted.items():
            found = np.array([row[layers][key] for row in rows])
            z = np.abs(found[:, 0] - value) / found[:, 1]
            assert (z < 2).sum() >= 49, (layers, key)
            assert (z > 1).sum() >= 6, (layers, key)


@pytest.mark.slow
def test_no_bias_is_seen_where_there_is_none(monkeypatch) -> None:
    """The error of a squared bias of 0 is too long rather than short; the mean is not above 0."""
    rows = sampled_rows(monkeypatch, sbnlib.disarm, "xor-2x3-logistic-1", 512, 60)
    found = np.array([row["all"]["bias2"] for row in rows])
    assert (np.abs(found[:, 0]) < 2 * found[:, 1]).sum() >= 54
    assert abs(found[:, 0].mean()) < 4 * found[:, 0].std() / np.sqrt(60)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zgr", "reinforce_loo", "st_gumbel", "psa"])
def test_stored_results_are_measured_again(name: str) -> None:
    """A state may fall otherwise on another processor: samples agree to a part of their error."""
    problems = ["digits-2x3-logistic-1", "xor-2x5-uniform-2"]
    report = sbn_map.place(name, problems=problems)
    stored = {row["problem"]: row for row in sbn_map.results()[name]}
    for problem in problems:
        row, old = report.row(problem), stored[problem]
        assert row.keys() == old.keys()
        assert row["loss_evaluations"] == old["loss_evaluations"]
        for layers in ("first", "all"):
            for key, (value, se) in row[layers].items():
                assert abs(value - old[layers][key][0]) <= 2e-4 * abs(value) + 0.1 * se


def test_a_problem_does_not_depend_on_what_else_is_measured() -> None:
    one = sbn_map.place("arm", problems=["xor-1x5-logistic-1"])
    two = sbn_map.place("arm", problems=["digits-1x5-logistic-1", "xor-1x5-logistic-1"])
    assert one.rows[0] == two.row("xor-1x5-logistic-1")


def test_the_surroundings_do_not_matter_and_stay() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    seen = set()

    def arm(loss, a, noise, *, num_samples=1, generator=None):
        seen.add(torch.get_num_threads())
        return sbnlib.arm(loss, a, noise, num_samples=num_samples, generator=generator)

    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            one = sbn_map.place(arm, problems=["xor-1x5-logistic-1"])
        assert torch.get_num_threads() == 2 and seen == {1}  # sums are taken in one order
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.rows == sbn_map.place("arm", problems=["xor-1x5-logistic-1"]).rows


def test_seeds_are_those_of_the_names() -> None:
    for p in problem_set.problems().values():
        digest = int.from_bytes(hashlib.sha256(p.name.encode()).digest()[:8], "big") // 2
        assert placing._generator(p).initial_seed() == digest


# ---- the cost ------------------------------------------------------------------------------------


def wasteful(a, x, noise):
    return straight_through(a, x, noise)


def asks_thrice(net, inputs, loss, *, generator=None):
    x = net(inputs, generator=generator)
    y = net(inputs, generator=generator)
    return loss(x) + 0 * loss(y) + 0 * loss(torch.stack([x, y])).sum(dim=0)


# xor-2x5: two inputs, so weights of 10 and 25; the second layer is 25/35 of a pass.
TOP = 25 / 35


@pytest.mark.parametrize(
    ("estimator", "evaluations", "passes"),
    [
        ("straight_through", 1, 1),
        ("st_gumbel", 1, 1),
        ("concrete", 1, 1),
        ("reinforce", 2, 1 + TOP),  # at each layer: the rest is run for the lower one
        ("reinforce_loo", 4, 1 + 2 * TOP),
        ("disarm", 4, 1 + 2 * TOP),
        ("local_expectation", 12, 1 + 6 * TOP),
        ("muprop", 4, 1 + 2 * TOP),
        ("rebar", 6, 1 + 3 * TOP),
        ("psa", 6, 1),
        (wasteful, 1, 1),
        (asks_thrice, 4, 2),
    ],
)
def test_the_cost_is_counted(estimator, evaluations, passes) -> None:
    p = sbn_map.problems()["xor-2x5-logistic-1"]
    cost = placing._cost(p, p.net(), given(estimator))
    assert cost["loss_evaluations"] == evaluations
    assert cost["forward_passes"] == pytest.approx(passes, rel=5e-4)
