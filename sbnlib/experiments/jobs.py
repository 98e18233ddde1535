"""A sweep: jobs that do not depend on each other, here, on all cores, on a cluster or in any queue.

    rows = carry_out(jobs, compute, key=key, folder=folder, workers=4)

Every finished job is kept in the folder as it ends, so that the same call goes on after a kill, and
whoever shares the folder may take a part. The command of an experiment takes the options of
:func:`add_scale_out`:

    python -m sbnlib.experiments.X --workers 4                      all cores of a machine
    python -m sbnlib.experiments.X --scheduler tcp://HOST:8786      the workers of a Dask scheduler
    python -m sbnlib.experiments.X --list                           one command a job, for any queue

A row is the same wherever it is computed, bit for bit on processors of one kind.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sbnlib.contracts import check_count
from sbnlib.experiments.cache import CacheError, Folder, Key, Row
from sbnlib.experiments.command import refusing
from sbnlib.experiments.measurement import MeasurementError
from sbnlib.experiments.workers import (
    Compute,
    Failure,
    JobError,
    Task,
    WorkerError,
    importable,
    run,
)
from sbnlib.extras import extra

__all__ = [
    "JobError",
    "ScaleOut",
    "WorkerError",
    "add_scale_out",
    "carry_out",
    "job_names",
    "jobs_so_far",
]

Job = Mapping[str, Any]
LONGEST = 100  # letters of a name, before the hash


# Names --------------------------------------------------------------------------------------------


def job_names(jobs: Sequence[Job]) -> list[str]:
    """The name of each job, also of its file: its settings' values, as ``zgr-100_100-0.03-0``.

    A hash follows where the values alone would not do: they hold other letters than those of a file
    name, are too many, or are the same as another job's.

    Raises:
        ValueError: a job is no JSON object, or one is there twice; the message says which.
    """
    texts = [_text(k, job) for k, job in enumerate(jobs)]
    first = {text: k for k, text in reversed(list(enumerate(texts)))}
    for k, text in enumerate(texts):
        if first[text] != k:
            raise ValueError(f"jobs[{first[text]}] and jobs[{k}] have the same settings, {text}")
    plain = [_plain(job) for job in jobs]
    count = Counter(name.casefold() for name in plain)
    return [
        name if _is_faithful(name, job) and count[name.casefold()] == 1 else _hashed(name, text)
        for name, job, text in zip(plain, jobs, texts, strict=True)
    ]


def _text(k: int, job: Job) -> str:
    try:
        if not isinstance(job, Mapping) or not all(isinstance(name, str) for name in job):
            raise TypeError("names with values are")
        return json.dumps(dict(job), allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"jobs[{k}]: got {job!r}, must be values of JSON: {error}") from error


def _plain(job: Job) -> str:
    words = "-".join(_word(value) for value in job.values())
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", words)[:LONGEST].strip("-._+")


def _word(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "_".join(map(_word, value))
    return str(value)


def _is_faithful(name: str, job: Job) -> bool:
    """Whether the name shows all values as they are, and may be a file beside ``key.json``."""
    return name == "-".join(map(_word, job.values())) and name not in ("", "key")


def _hashed(name: str, text: str) -> str:
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".strip("-")


# A search, then final runs ------------------------------------------------------------------------


def jobs_so_far(
    entries: Sequence[tuple[Any, ...]],
    search_jobs: Callable[..., Sequence[Row]],
    final_jobs: Callable[..., Sequence[Row]],
    *,
    key: Key,
    folder: str | os.PathLike[str],
) -> list[Row]:
    """The jobs that can be named now: those of the search, and of final runs once it is over.

    Args:
        entries: of each contender, the arguments of the two functions.
        search_jobs: its next trials, from the rows of those that are over; none when it is over.
        final_jobs: its final runs, from the rows of its search.
        key, folder: where finished jobs are kept, as in :func:`carry_out`.
    """
    files, jobs = Folder(key, folder, shared=True), []
    search: list[list[Row]] = [[] for _ in entries]
    while due := [
        (own, job)
        for entry, own in zip(entries, search, strict=True)
        for job in search_jobs(*entry, own)
    ]:
        jobs += [job for _, job in due]
        named = zip(job_names([job for _, job in due]), due, strict=True)
        known = [(own, files.get(name, job, "rows")) for name, (own, job) in named]
        for own, rows in known:
            own += rows[:1] if rows else []
        if any(rows is None for _, rows in known):
            return jobs
    return jobs + [
        job for entry, own in zip(entries, search, strict=True) for job in final_jobs(*entry, own)
    ]


# The sweep ----------------------------------------------------------------------------------------


def carry_out(
    jobs: Sequence[Job],
    compute: Compute,
    *,
    key: Key,
    folder: str | os.PathLike[str] | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    progress: bool = False,
) -> list[list[Row]]:
    """The rows of each job, in the order of jobs: those that are known, the others computed.

    Args:
        jobs: the settings of each, values of JSON; they name it and its file.
        compute: gives the rows of a job from its settings, values of JSON too. It is called with
            one thread of torch, and on workers it must be importable: a function of a module.
        key: what decides the numbers beside the settings (``cache.make_key``).
        folder: where finished jobs are kept, each in a JSON file; None for nowhere.
        workers: processes on this machine; 1 computes in this one.
        scheduler: address of a Dask scheduler, as tcp://HOST:8786, whose workers compute.
        progress: whether to show a bar that counts jobs.

    Raises:
        ValueError: an argument is wrong; before any work, as are the next three.
        CacheError: the folder is in use, or a file in it belongs to another key or job.
        MeasurementError: the folder cannot be written to.
        WorkerError: no scheduler answers, or a worker has another sbnlib or torch than this
            process; in the middle, where such a worker comes late or the scheduler goes away.
        JobError: a job ended its worker each time it was tried; its name.
        Exception: what ``compute`` raises, with a note which job it was. All other jobs are done
            and kept before this or a JobError; of several errors it is that of the first job.
    """
    named = _named(jobs)
    _check_way(workers, scheduler)
    with Folder(key, folder) as files:
        known = {name: files.get(name, job, "rows") for name, job in named.items()}
        missing = [name for name in named if known[name] is None]
        away = workers > 1 or scheduler is not None
        function = importable(compute) if away else compute
        tasks = [Task(name, function, named[name]) for name in missing]
        failed: dict[str, Exception] = {}
        with (
            _bar(len(named), len(named) - len(tasks), progress) as bar,
            closing(run(tasks, workers=workers, scheduler=scheduler)) as outcomes,
        ):
            for task, found in outcomes:
                if isinstance(found, Failure):
                    failed[task.name] = found.error
                else:
                    files.put(task.name, task.settings, found, "rows")
                    known[task.name] = found
                bar.update()
    if failed:
        raise _first(failed, list(named), folder)
    return list(known.values())


def _named(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """The settings of each job, in the form in which a file gives them back, by its name."""
    names = job_names(jobs)
    settings = [json.loads(json.dumps(dict(job))) for job in jobs]
    return dict(zip(names, settings, strict=True))


def _check_way(workers: int, scheduler: str | None) -> None:
    check_count("workers", workers)
    if workers > 1 and scheduler is not None:
        raise ValueError(f"workers: got {workers}, must be 1 beside a scheduler, which has its own")


def _bar(total: int, known: int, progress: bool) -> Any:
    with extra("experiments"):
        from tqdm import tqdm

    return tqdm(total=total, initial=known, unit="job", disable=not progress)


def _first(
    failed: Mapping[str, Exception], names: Sequence[str], folder: str | os.PathLike[str] | None
) -> Exception:
    """The error of the first job that failed, with a note of all that did."""
    those = [name for name in names if name in failed]
    error, rest = failed[those[0]], len(names) - len(those)
    shown = ", ".join(those[:10]) + ", ..." * (len(those) > 10)
    kept = "are done" if folder is None else f"are kept in {os.fspath(folder)}"
    error.add_note(f"{len(those)} of {len(names)} jobs failed: {shown}; the other {rest} {kept}")
    return error


# The command --------------------------------------------------------------------------------------


def add_scale_out(parser: argparse.ArgumentParser) -> None:
    """The options with which a command carries out its sweep; :class:`ScaleOut` obeys them."""
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="number of processes on this machine that compute jobs (default: 1)",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="a Dask scheduler whose workers compute jobs, as tcp://HOST:8786 (default: none)",
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--list",
        action="store_true",
        help="print one command line a job that is not yet known, for any queue; compute nothing "
        "(default: no)",
    )
    one.add_argument(
        "--job",
        metavar="NAME",
        help="compute this one alone and keep its rows for the command without --job, which "
        "gathers; several may run at once (default: all)",
    )


class ScaleOut:
    """A command's options of :func:`add_scale_out`.

    Args:
        parser: of the command; its ``prog`` begins the lines of ``--list``, and it refuses.
        options: what it has parsed; these four are taken out.
        argv: what it was given, as in ``main``; None for the command line.

    Raises:
        SystemExit: ``--workers`` is below 1, or above beside ``--scheduler``.
    """

    def __init__(
        self,
        parser: argparse.ArgumentParser,
        options: dict[str, Any],
        argv: Sequence[str] | None = None,
    ) -> None:
        self.parser = parser
        self.argv = sys.argv[1:] if argv is None else list(argv)
        self.workers: int = options.pop("workers")
        self.scheduler: str | None = options.pop("scheduler")
        self.list: bool = options.pop("list")
        self.job: str | None = options.pop("job")
        with refusing(parser, ValueError):
            _check_way(self.workers, self.scheduler)

    def rows(
        self, jobs: Sequence[Job], compute: Compute, *, key: Key, folder: Path
    ) -> list[list[Row]] | None:
        """The rows of all jobs, or None where one was asked for or a list: the command ends.

        Args:
            jobs, compute, key, folder: as in :func:`carry_out`.

        Raises:
            SystemExit: ``--job`` names none of them, or what :func:`carry_out` refuses.
            JobError, Exception: as :func:`carry_out`.
        """
        with refusing(self.parser, CacheError, MeasurementError, WorkerError):
            if self.list or self.job is not None:
                files = Folder(key, folder, shared=True)
                self._print(jobs, files) if self.list else self._one(jobs, compute, files)
                return None
            return carry_out(
                jobs, compute, key=key, folder=folder, workers=self.workers,
                scheduler=self.scheduler, progress=True,
            )  # fmt: skip

    def _print(self, jobs: Sequence[Job], files: Folder) -> None:
        for name, job in _named(jobs).items():
            if files.get(name, job, "rows") is None:
                print(self._line(name))

    def _line(self, name: str) -> str:
        """The command without our own options, and ``--job``."""
        own = argparse.ArgumentParser(add_help=False)
        add_scale_out(own)
        _, others = own.parse_known_args(self.argv)
        return shlex.join([*shlex.split(self.parser.prog), *others, "--job", name])

    def _one(self, jobs: Sequence[Job], compute: Compute, files: Folder) -> None:
        named, name = _named(jobs), str(self.job)
        if name not in named:
            self.parser.error(_unknown(name, list(named)))
        task = Task(name, compute, named[name])
        with files:
            if files.get(task.name, task.settings, "rows") is None:
                found = task.found()
                if isinstance(found, Failure):
                    raise found.error
                files.put(task.name, task.settings, found, "rows")
        print(f"{task.name} is kept in {files.path}")


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    words = f"near it are {', '.join(near)}" if near else f"such as {', '.join(known[:3])}"
    return f"--job: got {name!r}, there is none of this name among {len(known)}, {words}"
