"""Sweeps: the same rows wherever they are computed, and nothing lost whatever dies."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sweep
import torch
from filelock import FileLock

from sbnlib.experiments import cache, jobs, workers
from sbnlib.experiments.cache import CacheError
from sbnlib.experiments.jobs import JobError, WorkerError, carry_out, job_names
from sbnlib.experiments.training import threads

KEY = {"experiment": "sweep"}


def job(k: int, does: str = "works", **more: Any) -> dict[str, Any]:
    return {"k": k, "does": does, **more}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a scheduler with two workers, which gives a task up at the second death."""
    distributed = pytest.importorskip("distributed")
    import dask

    size = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(**size, silence_logs=logging.CRITICAL + 1) as local,
    ):
        yield local.scheduler_address


CORES = pytest.param("cores", marks=pytest.mark.slow)
CLUSTER = pytest.param("cluster", marks=pytest.mark.slow)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The arguments that say where to compute."""
    if request.param == "cluster":
        return {"scheduler": request.getfixturevalue("cluster")}
    return {"workers": 2} if request.param == "cores" else {}


everywhere = pytest.mark.parametrize("way", ["here", CORES, CLUSTER], indirect=True)


class Sweep:
    """Calls with a folder for results and one for marks of what was begun."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marks = folder / "results", folder / "marks"
        self.marks.mkdir()

    def __call__(self, some: list[dict], **options: Any) -> list[list[dict]]:
        options = {"key": KEY, "folder": self.folder} | options
        return carry_out(some, partial(sweep.work, str(self.marks)), **options)

    def begun(self, one: dict) -> int:
        return sweep.begun(str(self.marks), one)

    def kept(self) -> set[str]:
        return {p.stem for p in self.folder.glob("*.json")} - {"key"}


@pytest.fixture
def swept(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def right(some: list[dict]) -> list[list[dict]]:
    """What the jobs must give: squares by hand, and the weights that this process gets."""
    with threads(1):
        weights = [sweep.trained(j["k"]) for j in some]
    return [
        [{"k": j["k"], "square": j["k"] * j["k"], "threads": 1}, {"weights": w}]
        for j, w in zip(some, weights, strict=True)
    ]


# What comes of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["here", CLUSTER], indirect=True)
def test_rows_come_in_the_order_of_the_jobs_the_same_everywhere_and_once(
    way: dict, swept: Sweep
) -> None:
    """Bit for bit, by one thread of torch even where there are two. On the cores the next test
    says so."""
    some = [job(k) for k in (7, 0, 2, 11)]
    with threads(2):
        assert swept(some, **way) == right(some)
        assert torch.get_num_threads() == 2
    assert swept.kept() == {"7-works", "0-works", "2-works", "11-works"}
    assert swept(some[1:] + some[:1], **way) == right(some[1:] + some[:1])
    assert [swept.begun(j) for j in some] == [1, 1, 1, 1]


@everywhere
def test_neither_a_dead_worker_nor_an_error_loses_another_job(way: dict, swept: Sweep) -> None:
    """The job that was under way is begun again; the errors are named."""
    dies = job(2, "dies_once" if way else "works")
    some = [job(7), job(1, "fails"), dies, job(3, "fails_oddly"), job(0)]
    with pytest.raises(ZeroDivisionError, match="no 1") as caught:
        swept(some, **way)
    first, *where, last = caught.value.__notes__
    assert first == "in the job 1-fails"
    assert last == (
        f"2 of 5 jobs failed: 1-fails, 3-fails_oddly; the other 3 are kept in {swept.folder}"
    )
    assert bool(where) == bool(way) and all("sweep.py" in text for text in where)
    assert swept(some[::2]) == right(some[::2])
    assert swept.begun(dies) == 1 + bool(way)


def test_an_error_that_another_process_cannot_read_comes_as_its_words() -> None:
    class Local(Exception):
        pass

    error = Local("here")
    with pytest.raises(AttributeError):
        pickle.dumps(error)
    error.add_note("in the job 3")
    found = pickle.loads(pickle.dumps(workers._portable(error)))
    assert type(found) is RuntimeError and str(found) == "Local: here"
    assert found.__notes__[0] == "in the job 3" and "Local: here" in found.__notes__[1]


@pytest.mark.slow
def test_a_job_that_always_ends_its_process_is_named_and_the_others_are_kept(
    swept: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one that was beside it at every death: it waits for the last. What had ended before
    is not begun again. (One death less than else, to be quick.)"""
    monkeypatch.setattr(workers, "DEATHS", 1)
    some = [job(2), job(0, "dies", beside=True), job(1, "waits", deaths=2)]
    with pytest.raises(JobError, match="the job 0-dies-True ended its worker each time") as caught:
        swept(some, workers=2)
    assert caught.value.__notes__ == [
        f"1 of 3 jobs failed: 0-dies-True; the other 2 are kept in {swept.folder}"
    ]
    assert swept(some[::2]) == right(some[::2])
    assert [swept.begun(j) for j in some[:2]] == [1, 2]


@pytest.mark.slow
def test_a_job_that_always_ends_its_worker_is_named_and_the_others_are_kept(
    swept: Sweep, cluster: str
) -> None:
    some = [job(0, "dies"), job(1), job(2), job(3)]
    with pytest.raises(JobError, match="the job 0-dies ended its worker each time") as caught:
        swept(some, scheduler=cluster)
    assert caught.value.__notes__ == [
        f"1 of 4 jobs failed: 0-dies; the other 3 are kept in {swept.folder}"
    ]
    assert swept(some[1:]) == right(some[1:])


@pytest.mark.parametrize(
    ("given_up", "asked"), [("bcd", ["abcd", "b", "c", "d"]), ("c", ["abcd"]), ("", ["abcd"])]
)
def test_of_those_that_a_scheduler_gave_up_only_the_guilty_are_named(
    given_up: str, asked: list[str]
) -> None:
    """Of one that was given up there is nothing to tell apart."""
    seen: list[str] = []

    def submit(tasks: Sequence[workers.Task]) -> workers.GivenUp:
        names = "".join(task.name for task in tasks)
        seen.append(names)
        lost = given_up if len(names) > 1 else "c"
        yield from ((task, [{}]) for task in tasks if task.name not in lost)
        return [task for task in tasks if task.name in lost]

    tasks = [workers.Task(name, pytest.fail, {}) for name in "abcd"]
    found = {task.name: found for task, found in workers._told_apart(submit, tasks)}
    guilty = found.pop("c") if given_up else workers.Failure(JobError("the job c"))
    assert isinstance(guilty, workers.Failure) and "the job c" in str(guilty.error)
    assert seen == asked and [found[name] for name in "abd"] == [[{}]] * 3


@everywhere
def test_interrupted_it_goes_on(way: dict, swept: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    put, some = cache.Folder.put, [job(k) for k in range(6)]

    def interrupt(self: cache.Folder, *given: Any) -> None:
        if len(swept.kept()) == 2:
            raise KeyboardInterrupt
        put(self, *given)

    monkeypatch.setattr(cache.Folder, "put", interrupt)
    with pytest.raises(KeyboardInterrupt):
        swept(some, **way)
    kept = swept.kept()
    assert len(kept) == 2
    monkeypatch.undo()
    assert swept(some) == right(some)
    assert all(swept.begun(j) == 1 for j in some if f"{j['k']}-works" in kept)


def test_without_a_folder_nothing_is_kept_and_nothing_asked_for_is_nothing(
    swept: Sweep, tmp_path: Path
) -> None:
    assert swept([job(3)], folder=None) == right([job(3)])
    assert swept([]) == [] and swept.kept() == set()
    with pytest.raises(ZeroDivisionError) as caught:
        swept([job(0), job(1, "fails")], folder=None)
    assert caught.value.__notes__[-1] == "1 of 2 jobs failed: 1-fails; the other 1 are done"


def test_rows_are_in_the_form_of_their_file_from_the_first_call_on(tmp_path: Path) -> None:
    def compute(one: Any) -> list[dict]:
        assert one == {"hidden": [3, 4]}
        return [{"pair": (1, 2), 3: 0.1 + 0.2}]

    for _ in range(2):
        found = carry_out([{"hidden": (3, 4)}], compute, key=KEY, folder=tmp_path)
        assert found == [[{"pair": [1, 2], "3": 0.30000000000000004}]]


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([{"x": float("nan")}], ValueError, "not JSON compliant"),
        ([{"x": torch.ones(1)}], TypeError, "Tensor is not JSON"),
        ({"x": 1}, TypeError, "a list of rows, each a dict, got {'x': 1}"),
        ([[1]], TypeError, "a list of rows"),
        (None, TypeError, "got None"),
    ],
)
def test_what_is_no_rows_is_an_error_of_the_job(rows: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        carry_out([{"k": 1}], lambda _: rows, key=KEY)
    assert caught.value.__notes__[0] == "in the job 1"


def test_the_bar_counts_jobs(swept: Sweep, capsys: pytest.CaptureFixture) -> None:
    swept([job(0)])
    assert capsys.readouterr().err == ""
    swept([job(0), job(1)], progress=True)
    assert "2/2" in capsys.readouterr().err


# The folder ---------------------------------------------------------------------------------------


def test_a_broken_file_is_set_aside_and_made_again(swept: Sweep) -> None:
    swept([job(0), job(1)])
    (swept.folder / "1-works.json").write_text('{"key": ')
    with pytest.warns(UserWarning, match="1-works.json cannot be read .* 1-works.json.corrupt"):
        assert swept([job(0), job(1)]) == right([job(0), job(1)])
    assert [swept.begun(job(k)) for k in (0, 1)] == [1, 2]
    assert (swept.folder / "1-works.json.corrupt").read_text() == '{"key": '


def test_the_folder_of_another_key_or_job_is_refused(swept: Sweep) -> None:
    swept([job(0)])
    with pytest.raises(CacheError, match=r"\w.json belongs .*\(code: None there, 'new' here\)"):
        swept([job(0)], key=KEY | {"code": "new"})
    (swept.folder / "0-works.json").rename(swept.folder / "1-works.json")
    with pytest.raises(CacheError, match=r"1-works.json belongs .*\(run k: 0 there, 1 here\)"):
        swept([job(1)])


def test_a_folder_in_use_is_refused(swept: Sweep) -> None:
    swept.folder.mkdir()
    with FileLock(swept.folder / "lock"), pytest.raises(CacheError, match="is in use by"):
        swept([job(0)])
    assert swept.begun(job(0)) == 0


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"estimator": "zgr", "hidden": [100, 50], "lr": 0.03, "seed": 0}, "zgr-100_50-0.03-0"),
        ({"data": "fashion-mnist", "kl": 1e-05, "none": None}, "fashion-mnist-1e-05-None"),
        ({"lr": -0.5}, r"0\.5-[0-9a-f]{8}"),  # else `--job -0.5` is taken for an option
        ({"file": "../a b"}, r"a_b-[0-9a-f]{8}"),
        ({"x": "key"}, r"key-[0-9a-f]{8}"),  # key.json is there already
        ({}, "[0-9a-f]{8}"),
        ({"x": "ä"}, "[0-9a-f]{8}"),
        ({"x": "y" * 300}, r"y{100}-[0-9a-f]{8}"),
    ],
)
def test_a_name_shows_the_values_and_may_name_a_file(settings: dict, name: str) -> None:
    (found,) = job_names([settings])
    assert re.fullmatch(name, found)
    assert job_names([{"other": 1}, settings])[1] == found


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"a": "x-y", "b": "z"}, {"a": "x", "b": "y-z"}),
        ({"a": 1}, {"a": "1"}),
        ({"a": 1}, {"b": 1}),
        ({"a": "A"}, {"a": "a"}),  # one file on some systems
        ({"a": "x" * 300}, {"a": "x" * 301}),
        ({"a": [1, 2]}, {"a": "1_2"}),
        ({"a": {"b": 1}}, {"a": {"b": 2}}),
    ],
)
def test_other_settings_have_another_name(one: dict, two: dict) -> None:
    names = job_names([one, two])
    assert len({name.lower() for name in names}) == 2


def test_what_cannot_be_a_job_is_refused() -> None:
    two = [{"a": 0}, {"b": 1, "a": (2, 3)}, {"a": [2, 3], "b": 1}]
    with pytest.raises(ValueError, match=r"jobs\[1\] and jobs\[2\] have the same settings"):
        job_names(two)
    for wrong in ({"a": float("inf")}, {"a": {1}}, {1: 2}, [1]):
        with pytest.raises(ValueError, match=r"jobs\[1\]: got .*, must be values of JSON"):
            carry_out([{"a": 0}, wrong], pytest.fail, key=KEY)


# Workers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers must be an integer >= 1, got 0"),
        ({"workers": 2.5}, "workers must be an integer >= 1, got 2.5"),
        ({"workers": 2, "scheduler": "tcp://x:1"}, "workers: got 2, must be 1 beside a scheduler"),
    ],
)
def test_a_wrong_way_is_refused(options: dict, words: str, swept: Sweep) -> None:
    with pytest.raises(ValueError, match=words):
        swept([job(0)], **options)
    assert not swept.folder.exists()


@pytest.mark.parametrize("stalls", [1, 2])
def test_a_client_whose_thread_does_not_start_is_tried_once_more(
    stalls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """distributed gives its thread ten seconds, and says no more than AssertionError."""
    distributed, calls = pytest.importorskip("distributed"), []

    def client(address: str, **_: Any) -> str:
        calls.append(address)
        if len(calls) <= stalls:
            raise AssertionError
        return "connected"

    monkeypatch.setattr(distributed, "Client", client)
    if stalls == 1:
        assert workers._client("there") == "connected"
    else:
        with pytest.raises(WorkerError, match="too busy to start a client"):
            workers._client("there")
    assert calls == ["there", "there"]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere"])
def test_a_scheduler_that_is_not_there_is_named(
    address: str, swept: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "ANSWER", 0.3)
    with pytest.raises(WorkerError, match=f"no Dask scheduler answers at '{address}': "):
        swept([job(0)], scheduler=address)
    swept([job(0)])
    assert swept([job(0)], scheduler=address) == right([job(0)])  # all known: nobody is asked


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("package", ["sbnlib", "torch"])
def test_a_worker_of_another_version_is_refused_by_name_before_its_work(
    package: str, late: bool, swept: Sweep, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there by the address, one that comes later by its process."""
    there = workers.versions()
    here = there | {package: "0"}
    monkeypatch.setattr(workers, "_sources", lambda: here["sbnlib"])
    monkeypatch.setattr(torch, "__version__", here["torch"])
    if late:
        monkeypatch.setattr(workers, "_look_at_workers", lambda *_: None)
    who = r"process \d+ on \S+" if late else r"the worker tcp://127\S+"
    other, own = (f"{package} {re.escape(each[package])}" for each in (there, here))
    words = rf"{who} has other versions: .*{other}\b.* there, .*{own}\b.* here"
    with pytest.raises(WorkerError, match=words):
        swept([job(0)], scheduler=cluster)
    assert swept.begun(job(0)) == 0 and swept.kept() == set()


def test_the_versions_are_a_hash_of_the_sources_and_that_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert workers.versions() == {
        "sbnlib": cache.code_hash()[:12], "torch": str(torch.__version__)
    }  # fmt: skip
    with pytest.raises(WorkerError, match="torch .* there, torch 0 here"):
        workers._work(workers.Task("a", pytest.fail, {}), {"torch": "0"})


@pytest.mark.slow
def test_a_scheduler_that_goes_away_takes_nothing_that_is_kept(
    swept: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its worker of two threads, which work one at a time, is warned of."""
    distributed = pytest.importorskip("distributed")
    local = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0",
        silence_logs=logging.CRITICAL + 1,
    )  # fmt: skip
    put, some = cache.Folder.put, [job(k) for k in range(200)]

    def close(self: cache.Folder, *given: Any) -> None:
        put(self, *given)
        local.close()

    monkeypatch.setattr(cache.Folder, "put", close)
    with (
        local,
        pytest.warns(UserWarning, match="inproc.*: several threads a worker"),
        pytest.raises(WorkerError, match=f"the scheduler at {local.scheduler_address} went away"),
    ):
        swept(some, scheduler=local.scheduler_address)
    assert len(swept.kept()) == 1


def test_a_function_of_the_program_that_runs_is_known_by_its_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under ``python -m sweep`` it is ``__main__.work`` here, and ``sweep.work`` for a worker."""
    program = types.ModuleType("__main__")
    program.__spec__ = types.SimpleNamespace(name="sweep")  # type: ignore[assignment]
    own = types.FunctionType(sweep.work.__code__, {}, "work")
    own.__module__ = "__main__"
    monkeypatch.setitem(sys.modules, "__main__", program)
    assert workers.importable(own) is sweep.work
    assert workers.importable(sweep.trained) is sweep.trained
    found = workers.importable(partial(own, "folder", more=1))
    assert (found.func, found.args, found.keywords) == (sweep.work, ("folder",), {"more": 1})


# The command --------------------------------------------------------------------------------------


class Command:
    """The experiment's command in a folder."""

    def __init__(self, swept: Sweep, capsys: pytest.CaptureFixture) -> None:
        self.swept, self.capsys = swept, capsys
        self.options = ["--marks", str(swept.marks), "--resume-dir", str(swept.folder)]

    def __call__(self, *options: str) -> str:
        assert sweep.main([*self.options, *options]) == 0
        return self.capsys.readouterr().out

    def refused(self, *options: str) -> str:
        with pytest.raises(SystemExit) as stop:
            sweep.main([*self.options, *options])
        assert stop.value.code == 2
        return self.capsys.readouterr().err


@pytest.fixture
def command(swept: Sweep, capsys: pytest.CaptureFixture) -> Command:
    return Command(swept, capsys)


def test_the_list_has_a_command_for_each_job_that_is_not_known(command: Command) -> None:
    same = ["python", "-m", "sweep", *command.options, "--ks", "3", "-4", "5", "--job"]
    lines = command("--ks", "3", "-4", "5", "--workers=4", "--lis")
    assert command("--sched", "tcp://x:1", "--list", "--ks", "3", "-4", "5") == lines
    names = [shlex.split(line)[-1] for line in lines.splitlines()]
    assert [shlex.split(line) for line in lines.splitlines()] == [[*same, name] for name in names]
    assert names[0] == "3-works" and names[2] == "5-works" and names[1] != "-4-works"
    assert not command.swept.folder.exists()
    command("--ks", "3", "-4", "5", "--job", names[1])
    assert command("--ks", "3", "-4", "5", "--list") == "".join(
        line + "\n" for line in (lines.splitlines()[0], lines.splitlines()[2])
    )
    assert [command.swept.begun(job(k)) for k in (3, -4, 5)] == [0, 1, 0]


def test_a_job_alone_is_computed_once_and_gathered(command: Command) -> None:
    assert command("--job", "2-works") == f"2-works is kept in {command.swept.folder}\n"
    command("--job", "2-works")
    assert command.swept.kept() == {"2-works"} and command.swept.begun(job(2)) == 1
    assert command() == "[0, 1, 4]\n"
    assert command("--workers", "2") == "[0, 1, 4]\n" and command("--list") == ""
    assert [command.swept.begun(job(k)) for k in (0, 1, 2)] == [1, 1, 1]


def test_a_job_alone_works_in_a_folder_that_another_process_holds(command: Command) -> None:
    command.swept.folder.mkdir()
    with FileLock(command.swept.folder / "lock"):
        command("--job", "1-works")
        assert "is in use by" in command.refused()
    assert command.swept.kept() == {"1-works"}


def test_a_job_alone_looks_whose_folder_it_is(command: Command) -> None:
    command.swept([job(0)], key={"experiment": "other"})
    assert "'other' there, 'sweep' here" in command.refused("--job", "1-works")
    assert command.swept.begun(job(1)) == 0


def test_an_error_in_a_job_alone_is_raised_with_its_name(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "trained", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        command("--job", "1-works")
    assert caught.value.__notes__ == ["in the job 1-works"] and command.swept.kept() == set()


def test_unknown_jobs_and_wrong_ways_are_refused(command: Command) -> None:
    said = command.refused("--ks", *map(str, range(30)), "--job", "17-work")
    assert (
        "--job: got '17-work', there is none of this name among 30, near it are 17-works," in said
    )
    assert "such as 0-works, 1-works, 2-works" in command.refused("--job", "????")
    assert "not allowed with" in command.refused("--job", "1-works", "--list")
    assert "workers must be an integer >= 1, got 0" in command.refused("--workers", "0")
    pytest.importorskip("distributed")
    assert "no Dask scheduler answers at 'nowhere'" in command.refused("--scheduler", "nowhere")


@pytest.mark.slow
def test_lines_of_the_list_run_at_once_and_twice(command: Command) -> None:
    """As a queue runs them; the same one twice leaves one whole file."""
    (line,) = command("--list", "--ks", "5").splitlines()
    support = str(Path(sweep.__file__).parent)
    path = os.pathsep.join([support, str(Path(jobs.__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": path}
    words = [sys.executable, *shlex.split(line)[1:]]
    started = [subprocess.Popen(words, env=environment) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert {p.name for p in command.swept.folder.iterdir()} == {"5-works.json", "key.json"}
    before = command.swept.begun(job(5))
    assert command("--ks", "5") == "[25]\n" and command.swept.begun(job(5)) == before
    kept = json.loads((command.swept.folder / "5-works.json").read_text())
    assert kept == {"key": KEY | {"run": job(5)}, "rows": right([job(5)])[0]}
