"""Where the jobs of a sweep are computed: in this process, in others on this machine, on a cluster.

Each way takes tasks and yields each with what came of it, in the order in which they end. A worker
that dies loses what it was at, no more: that is begun anew. A job that ends its worker again and
again is told from those that were beside it by being tried alone.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pickle
import platform
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn
from uuid import uuid4

import torch

from sbnlib.experiments.cache import Row, code_hash
from sbnlib.experiments.training import threads
from sbnlib.extras import extra

__all__ = ["Compute", "Failure", "Found", "JobError", "Task", "WorkerError", "importable", "run"]

Compute = Callable[[Mapping[str, Any]], Sequence[Row]]
#: Seconds in which a scheduler must answer.
ANSWER = 5
#: A job that was under way at so many deaths of a worker is tried alone.
DEATHS = 2
#: What lets numerical libraries start more threads than the one that torch is given.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_ALONE = threading.RLock()  # torch's settings are the process's: one job in it at a time


class WorkerError(RuntimeError):
    """No scheduler answers, or a worker cannot be used; the message names it."""


class JobError(RuntimeError):
    """A job ended its worker each time it was tried; the message names it."""


@dataclass(frozen=True)
class Failure:
    """Stands for the rows of a job that raised an error."""

    error: Exception


@dataclass(frozen=True)
class Task:
    """A job as it is sent to a worker.

    Attributes:
        name: of the job.
        compute: gives its rows.
        settings: what ``compute`` is given.
    """

    name: str
    compute: Compute
    settings: Mapping[str, Any]

    def rows(self) -> list[Row]:
        """The rows, by one thread of torch, in the form in which a file gives them back.

        Raises:
            TypeError: they are no rows, or hold what JSON has not.
            ValueError: they hold NaN or an infinity.
        """
        with _ALONE, threads(1):
            rows = self.compute(self.settings)
        if not isinstance(rows, Sequence) or not all(isinstance(row, dict) for row in rows):
            raise TypeError(f"compute must return a list of rows, each a dict, got {rows!r:.200}")
        return json.loads(json.dumps(list(rows), allow_nan=False))

    def found(self) -> Found:
        """The rows, or the error with a note which job it was in."""
        try:
            return self.rows()
        except Exception as error:
            error.add_note(f"in the job {self.name}")
            return Failure(error)


Found = list[Row] | Failure
Outcomes = Generator[tuple[Task, Found], None, None]
#: Outcomes, and after the last those tasks that a scheduler gave up.
GivenUp = Generator[tuple[Task, Found], None, list[Task]]


def run(tasks: Sequence[Task], *, workers: int = 1, scheduler: str | None = None) -> Outcomes:
    """What comes of the tasks, as they end.

    Raises:
        ModuleNotFoundError: what the way needs is not installed; at the first outcome, as are all.
        WorkerError: no scheduler answers, a worker cannot be used, or the scheduler went away.
    """
    if tasks and scheduler is not None:
        return _on_cluster(tasks, scheduler)
    if tasks and workers > 1:
        return _on_cores(tasks, workers)
    return ((task, task.found()) for task in tasks)


def importable(compute: Compute) -> Compute:
    """The function under its module's name, where that is the program that runs (``__main__``)."""
    if isinstance(compute, functools.partial):
        return functools.partial(importable(compute.func), *compute.args, **compute.keywords)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or getattr(compute, "__module__", None) != "__main__":
        return compute
    return getattr(importlib.import_module(spec.name), compute.__qualname__)


# On a worker --------------------------------------------------------------------------------------


@functools.cache
def _sources() -> str:
    """A hash of sbnlib's sources at the first job, when they had just been read."""
    return code_hash()[:12]


def versions() -> dict[str, str]:
    """What must be the same on a worker as here, so that the numbers are."""
    return {"sbnlib": _sources(), "torch": str(torch.__version__)}


def _refuse(worker: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    if there != here:
        other, own = (", ".join(f"{k} {v}" for k, v in each.items()) for each in (there, here))
        raise WorkerError(
            f"{worker} has other versions: {other} there, {own} here (of sbnlib, a hash of its "
            "sources); give it these, and start it again"
        )


def _work(task: Task, here: Mapping[str, str]) -> Found:
    """What a worker does."""
    _refuse(f"process {os.getpid()} on {platform.node()}", versions(), here)
    found = task.found()
    return Failure(_portable(found.error)) if isinstance(found, Failure) else found


def _portable(error: Exception) -> Exception:
    """The error in a form that another process can read, with a note where it was raised."""
    place = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        notes = error.__notes__
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.__notes__ = notes
    error.add_note(f"on a worker:\n{place}")
    return error


# On this machine ----------------------------------------------------------------------------------


def _on_cores(tasks: Sequence[Task], workers: int) -> Outcomes:
    """In processes on this machine. Those under way at several deaths come last, each alone."""
    left, deaths = {task.name: task for task in tasks}, Counter[str]()
    while ready := [task for name, task in left.items() if deaths[name] < DEATHS]:
        for task, found in _pool(ready, min(workers, len(ready)), deaths):
            yield left.pop(task.name), found
    for task in left.values():
        yield from _pool([task], 1, deaths)
        if deaths[task.name] > DEATHS:
            yield task, Failure(_fatal(task))


def _fatal(task: Task) -> JobError:
    return JobError(
        f"the job {task.name} ended its worker each time it was tried: it needs more memory than "
        "there is, was killed, or crashed"
    )


def _pool(tasks: Sequence[Task], workers: int, deaths: Counter[str]) -> Outcomes:
    """In fresh processes, as many under way as there are, until one dies: counted for each."""
    with extra("experiments"):
        from joblib.externals.loky import ProcessPoolExecutor
        from joblib.externals.loky.process_executor import TerminatedWorkerError

    pool, here = ProcessPoolExecutor(workers, env=ONE_THREAD), versions()
    waiting, under_way, died = iter(tasks), dict[Any, Task](), False
    try:
        while not died:
            with suppress(TerminatedWorkerError):  # what is under way ends with it
                for task in islice(waiting, workers - len(under_way)):
                    under_way[pool.submit(_work, task, here)] = task
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                if isinstance(error := future.exception(), TerminatedWorkerError):
                    died = True
                elif error is not None:
                    _raise(error, under_way[future])
                else:
                    yield under_way.pop(future), future.result()
    finally:
        pool.shutdown(kill_workers=True)
    deaths.update(task.name for task in under_way.values())


def _raise(error: BaseException, task: Task) -> NoReturn:
    """An error that is not of the job's own making."""
    if isinstance(error, WorkerError) or not isinstance(error, Exception):
        raise error
    raise WorkerError(
        f"the job {task.name} could not be brought to a worker, or its rows back "
        f"({type(error).__name__}: {error}); can the worker import the module of its function?"
    ) from error


# On a cluster -------------------------------------------------------------------------------------


def _on_cluster(tasks: Sequence[Task], address: str) -> Outcomes:
    """By the workers of a Dask scheduler, which tries those of a dead worker again.

    It blames a death on all tasks that the worker had been given, so that several it gives up are
    tried again, each alone.
    """
    with _client(address) as client:
        _look_at_workers(client, address)
        yield from _told_apart(functools.partial(_submitted, client, address), tasks)


def _client(address: str, *, again: bool = True) -> Any:
    """Connected; tried again where its thread did not start in time, on a machine that stalls."""
    with extra("cluster"):
        from distributed import Client
    try:
        return Client(address, timeout=ANSWER, set_as_default=False)
    except AssertionError as error:  # distributed's own, after 10 s
        if again:
            return _client(address, again=False)
        raise WorkerError("this machine is too busy to start a client of Dask") from error
    except (OSError, TypeError, ValueError) as error:
        raise WorkerError(f"no Dask scheduler answers at {address!r}: {error}") from error


def _told_apart(submit: Callable[[Sequence[Task]], GivenUp], tasks: Sequence[Task]) -> Outcomes:
    """Of several that were given up, the guilty ones are those that are given up alone too."""
    given_up = yield from submit(tasks)
    for task in given_up:
        if len(given_up) == 1 or (yield from submit([task])):
            yield task, Failure(_fatal(task))


def _look_at_workers(client: Any, address: str) -> None:
    """Refuse one of another version, before any work; those that come later look themselves."""
    here = versions()
    for worker, there in client.run(versions, on_error="return").items():
        if isinstance(there, Exception):
            raise WorkerError(
                f"the worker {worker} cannot import this sbnlib ({type(there).__name__}: {there})"
            ) from there
        _refuse(f"the worker {worker}", there, here)
    crowded = [worker for worker, count in client.nthreads().items() if count > 1]
    if crowded:
        warnings.warn(
            f"{', '.join(crowded)}: several threads a worker, of which one works at a time; start "
            "workers with --nthreads 1 and as many --nworkers as there are cores",
            stacklevel=2,
        )
    elif not client.nthreads():
        warnings.warn(f"{address} has no worker yet; waiting for one", stacklevel=2)


def _submitted(client: Any, address: str, tasks: Sequence[Task]) -> GivenUp:
    """What comes of the tasks; returns those that the scheduler gave up."""
    from distributed import CancelledError, KilledWorker, as_completed

    here, given_up = versions(), []
    futures = {
        client.submit(_work, task, here, key=f"{task.name}-{uuid4().hex}", pure=False): task
        for task in tasks
    }
    try:
        for future in as_completed(list(futures), loop=client.loop):
            task, error = futures.pop(future), future.exception()
            if isinstance(error, KilledWorker):
                given_up.append(task)
            elif error is not None:
                _raise(error, task)
            else:
                yield task, future.result()
    except CancelledError as error:
        raise WorkerError(f"the scheduler at {address} went away; what was kept stays") from error
    return given_up
