"""The benchmark at tiny sizes: both sides give the same numbers, the file says what is printed.

No test here looks at how long anything took.
"""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from sbnlib import exact_gradient
from sbnlib.experiments import bench, measurement
from sbnlib.registry import ESTIMATORS

TINY = (2, 3, 2)
CHANGES = {
    "exact": {"widths": TINY, "batch": 3, "rounds": 2, "repeats": 3},
    "exact-tables": {"widths": TINY, "batch": 3, "rounds": 2, "repeats": 3},
    "exact-12": {"widths": (2, 4, 4, 3), "batch": 1, "rounds": 2, "repeats": 2},
    "exact-16": {"widths": (2, 4, 4)},
    "statistics-1": {"widths": TINY, "num_samples": 40, "loop_samples": 4, "rounds": 2},
    "statistics-200": {"widths": TINY, "batch": 5, "num_samples": 40, "loop_samples": 4}
    | {"rounds": 2},
    "statistics-memory": {"widths": TINY, "sizes": (40,)},
    "step": {"widths": (6, 4, 4, 3), "batch": 5, "rounds": 3},
    "cost-units": {"units": (2, 3), "batch": 3, "rounds": 2},
    "cost-samples": {"samples": (1, 2), "batch": 3, "rounds": 2},
    **{
        f"packed-{b}": {"inputs": 70, "outputs": 9, "batch": 5, "rounds": 2}
        for b in ("numba", "int8", "numpy")
    },
    "peer-reinmax": {"rounds": 2},
    "peer-storchastic": {"rounds": 2},
    **{
        f"search-{d}": {"trainings": 3, "widths": (6, 5, 3), "batch": 4, "steps": 2, "rounds": 2}
        for d in ("float32", "float64", "cuda")
    },
    **{f"step-{name}": {"widths": (6, 4, 4, 3), "batch": 5, "rounds": 2} for name in ESTIMATORS},
}
SUBPROCESS = ("exact-16", "statistics-memory")  # a new process imports torch: seconds


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    rows = {name: (f, kwargs, CHANGES[name]) for name, (f, kwargs, _) in bench.ROWS.items()}
    monkeypatch.setattr(bench, "ROWS", rows)


@pytest.fixture
def problem():
    return bench._problem((2, 3, 4, 2), 7)


# Both sides give the same numbers ----------------------------------------------------------------


@pytest.mark.parametrize("widths", [(2, 3), (2, 3, 2), (3, 2, 4, 3)])
@pytest.mark.parametrize(
    "other", [bench.enumerate_states, bench.enumerate_tables, bench.full_tables]
)
def test_the_other_ways_are_exact(other, widths):
    problem = bench._problem(widths, 6)
    (value, grads), (value_o, grads_o) = exact_gradient(*problem), other(*problem)
    assert grads.keys() == grads_o.keys()
    torch.testing.assert_close(value_o, value, rtol=1e-12, atol=0)
    for name in grads:
        torch.testing.assert_close(grads_o[name], grads[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("block", [1, 5, 10**6])
def test_the_size_of_a_block_changes_nothing(problem, block):
    value, grads = exact_gradient(*problem)
    for other in (bench.enumerate_states, bench.enumerate_tables):
        found, found_grads = other(*problem, block=block)
        assert bench._difference([found, *found_grads.values()], [value, *grads.values()]) < 1e-12


def test_both_loops_draw_the_same_samples(problem):
    loops = bench.backward_loop, bench.loop_by_hand
    rows = [loop(*problem, 20, torch.Generator().manual_seed(3)) for loop in loops]
    torch.testing.assert_close(*rows, rtol=1e-10, atol=1e-14)
    assert rows[0].std(dim=0).max() > 0


def test_the_loops_measure_what_measure_does(problem):
    for loop in (bench.backward_loop, bench.loop_by_hand):
        assert bench._difference_of_statistics(problem, loop) < 1e-12


def test_a_wrong_loop_is_found_out(problem):
    def wrong(*args):
        return 1.001 * bench.loop_by_hand(*args)

    assert bench._difference_of_statistics(problem, wrong) > bench.TOLERANCE


def test_the_problem_is_always_the_same_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    (net, inputs, _), (net2, inputs2, _) = bench._problem(TINY, 4), bench._problem(TINY, 4)
    assert torch.equal(inputs, inputs2)
    assert all(map(torch.equal, net.parameters(), net2.parameters()))
    assert torch.equal(state, torch.get_rng_state())


# Rows --------------------------------------------------------------------------------------------


def test_take_turns_runs_the_sides_in_turns():
    order = []
    sides = [lambda: order.append("a"), lambda: order.append("b"), lambda: order.append("c")]
    times = bench.take_turns(*sides, rounds=2, repeats=3)
    assert "".join(order) == "abc" + "aaabc" * 2
    assert all(0 <= t.minimum <= t.median for t in times)


@pytest.mark.parametrize(
    ("ratio", "target", "met"),
    [(1001.0, ">= 1000", True), (999.0, ">= 1000", False), (1.3, "<= 1.3", True)]
    + [(1.31, "<= 1.3", False), (5.0, "", None), (None, ">= 8", None)],
)
def test_a_target_is_met_or_not(ratio, target, met):
    assert bench.Row("r", "ours", "other", ratio=ratio, target=target).met is met


COSTS = [n for n in CHANGES if n.startswith(("cost-", "peer-", "search-cuda"))]


@pytest.mark.parametrize("name", COSTS)
def test_a_table_of_costs_names_what_it_measured(name):
    row = bench.make(name, quick=True)
    words = bench.report(row)
    assert row.ours in words
    for key, value in row.details.items():
        if isinstance(value, list):
            assert key in words
            assert len(value) == 2
            assert all(v > 0 for v in value)
    if name == "cost-units":
        assert set(ESTIMATORS) < set(row.details)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CHANGES if n not in (*SUBPROCESS, *COSTS)])
def test_a_row_is_consistent(name):
    row = bench.make(name, quick=True)
    steps = name.startswith("step")
    above, below = (row.ours_s, row.other_s) if steps else (row.other_s, row.ours_s)
    assert row.row == name
    assert row.ratio == above.minimum / below.minimum
    assert row.ratio_of_medians == above.median / below.median
    assert all(math.isfinite(load) for load in row.load)
    if not steps:
        assert row.difference <= bench.TOLERANCE
    words = bench.report(row)
    assert f"{row.ratio:.4g}x" in words
    assert row.target in words
    assert {True: " met", False: "not met", None: "no target"}[row.met] in words
    assert row.ours in words


def test_the_loop_is_scaled_to_the_samples_of_measure(monkeypatch):
    times = [bench.Times(1.0, 2.0), bench.Times(3.0, 4.0), bench.Times(5.0, 6.0)]
    monkeypatch.setattr(bench, "take_turns", lambda *_, **__: times)
    row = bench.make("statistics-1", quick=True)  # 40 samples, 4 of them in the loop
    assert row.other_s == (30.0, 40.0)
    assert row.ratio == 30.0
    assert row.details["by_hand"] == {"ratio": 50.0, "ratio_of_medians": 30.0}


@pytest.mark.slow
def test_memory_is_that_of_the_child():
    row = bench.make("statistics-memory", quick=True)
    peaks = [probe["peak_mib"] for probe in row.details["probes"].values()]
    assert row.ratio == max(peaks) / min(peaks)
    assert all(20 < peak < 2000 for peak in peaks)
    assert "peak" in bench.report(row)


def test_a_probe_of_a_wide_net():
    found = bench.probe_exact((2, 4, 4))
    assert found["seconds"] > 0
    assert found["peak_mib"] <= bench.peak_memory()


@pytest.mark.slow
def test_peak_memory_sees_an_allocation():
    code = (
        "from sbnlib.experiments.bench import peak_memory as p; import torch; a = p(); "
        "x = torch.ones(1 << 25); print(p() - a)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 100 < float(done.stdout) < 200  # 128 MiB


# The command -------------------------------------------------------------------------------------


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    names, out = ["exact", "step", "statistics-200"], tmp_path / "bench.json"
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert bench.main(["--quick", "--only", *names, "--out", str(out)]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    printed, stored = capsys.readouterr().out, measurement.read(out)
    assert [row["row"] for row in stored["rows"]] == names
    assert stored["kind"] == "bench"
    assert stored["command"].endswith(f"bench --quick --only {' '.join(names)} --out {out}")
    assert "1 thread" in stored["device"]
    assert stored["checks"] == {f"{n}: same numbers": True for n in names if n != "step"}
    for row in stored["rows"]:
        assert f"{stored['ratios'][row['row']]:.4g}x" in printed
        assert row["ratio"] == stored["ratios"][row["row"]]
        assert len(row["load"]) == 2


def test_sides_that_differ_fail_the_command(monkeypatch, capsys):
    def wrong(*args):
        value, grads = bench.full_tables(*args)
        return value * (1 + 1e-9), grads

    function, kwargs, changes = bench.ROWS["exact-12"]
    monkeypatch.setitem(bench.ROWS, "exact-12", (function, kwargs, changes | {"baseline": wrong}))
    assert bench.main(["--quick", "--only", "exact-12"]) == 1


def test_quick_leaves_long_rows_out(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(
        bench, "make", lambda name, _: made.append(name) or bench.Row(name, "ours", "other")
    )
    monkeypatch.setitem(bench.ROWS, "exact-16", (bench.wide, {}, None))
    bench.main(["--quick"])
    assert made == [name for name in bench.ROWS if name != "exact-16"]


@pytest.mark.parametrize("argv", [["--threads", "0"], ["--only", "nope"]])
def test_wrong_options_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        bench.main(argv)
    assert argv[0].lstrip("-") in capsys.readouterr().err


@pytest.mark.slow
def test_numba_has_as_many_threads_as_torch_and_both_get_their_own_back():
    """In a process of its own, for when numba's threads start they set the number of torch's."""
    pytest.importorskip("numba")
    code = """if True:
        import torch
        from sbnlib.experiments import bench
        torch.set_num_threads(2)
        with bench.on_threads(1):
            import numba
            print(numba.get_num_threads(), torch.get_num_threads())
        print(numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS, torch.get_num_threads())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 1\nTrue 2\n"


def test_a_product_of_signs_that_is_wrong_fails_its_check(monkeypatch):
    monkeypatch.setattr(bench.products, "product", lambda _: lambda x, w: np.ones((5, 9), np.int32))
    row = bench.make("packed-numpy", quick=True)
    assert row.difference > bench.TOLERANCE
    assert not all(bench.as_measurement([row], "", "")["checks"].values())
