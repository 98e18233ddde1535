r"""Sixteen ways to train a deep network, each with the same search budget.

    python -m sbnlib.experiments.contenders --part train --plan         what it will cost
    python -m sbnlib.experiments.contenders --part train --workers 2    the trainings

The ways are those of ``sbnlib.experiments.ways``. Each gets a search of six learning rates with one
fixed seed, chosen by validation accuracy, then fresh seeds at the chosen rate; only these see the
test images. The schedule is a half cosine over the length of a training, in the search too.

Two trainings of one way share the images alone; two ways share no random number. The measurement
file is written anew whenever a way is complete, and holds those that are.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from sbnlib import data as datasets
from sbnlib.contracts import check_count
from sbnlib.data import Dataset
from sbnlib.experiments import measurement
from sbnlib.experiments.cache import Folder, Row, folder_of, make_key
from sbnlib.experiments.command import add_option, add_out, add_resume_dir, as_typed, refusing
from sbnlib.experiments.jobs import ScaleOut, add_scale_out, job_names
from sbnlib.experiments.protocol import SEARCH_SEED, summary
from sbnlib.experiments.training import Recipe, Training, threads
from sbnlib.experiments.ways import (
    BATCH,
    STATISTICS,
    WAYS,
    Way,
    cut,
    data_of,
    fresh,
    trained,
)
from sbnlib.inference import BatchNorm

__all__ = ["PARTS", "budget", "main", "summarize"]

#: Length of a trial of the search and of a final run, in passes through the training images.
SEARCH_EPOCHS, EPOCHS = 2, 5
PARTS = ("train",)
#: Images of the look that is timed.
LOOKED_AT = 500


# The trainings ------------------------------------------------------------------------------------


def search_jobs(way: Way) -> list[Row]:
    """One trial for each learning rate."""
    return [_job("search", way, lr, SEARCH_SEED) for lr in way.rates]


def final_jobs(way: Way, search: Sequence[Row]) -> list[Row]:
    """Fresh seeds at the best rate of the search: by validation accuracy, among equals by loss."""
    best = max(search, key=lambda row: (row["validation"], -row["validation_loss"]))
    return [_job("final", way, best["lr"], seed) for seed in range(way.seeds)]


def _job(part: str, way: Way, lr: float, seed: int) -> Row:
    return {"part": part, "name": way.name, "lr": lr, "seed": seed}


class _Train:
    """The part ``train``: its ways, and where their rows are."""

    def __init__(self, options: Mapping[str, Any], scale_out: ScaleOut) -> None:
        names = options["only"] or list(WAYS)
        self.ways = [way for name, way in WAYS.items() if name in names]
        self.options, self.scale_out = options, scale_out
        self.epochs = {"search": options["search_epochs"], "final": options["epochs"]}
        self.data = data_of(options["data"])
        self.key = make_key("contenders-train", {"epochs": self.epochs}, self.data)
        self.folder = folder_of(options["resume_dir"], self.key)

    def rows(self, jobs: Sequence[Row]) -> list[Row] | None:
        compute = partial(trained, data=self.options["data"], epochs=self.epochs)
        found = self.scale_out.rows(jobs, compute, key=self.key, folder=self.folder)
        return None if found is None else list(chain.from_iterable(found))

    def single(self) -> None:
        """A list of jobs, or one of them: of the search, and of the final runs once it is over."""
        jobs = [job for way in self.ways for job in search_jobs(way)]
        known = self._known(jobs)
        if None not in known:
            search = [row for row in known if row is not None]
            for way in self.ways:
                jobs += final_jobs(way, [row for row in search if row["name"] == way.name])
        self.rows(jobs)

    def _known(self, jobs: Sequence[Row]) -> list[Row | None]:
        files = Folder(self.key, self.folder, shared=True)
        found = [files.get(*named, "rows") for named in zip(job_names(jobs), jobs, strict=True)]
        return [None if rows is None else rows[0] for rows in found]

    def all(self, out: Path) -> None:
        """Way after way; the file is written when each is complete."""
        rows: list[Row] = []
        for way in self.ways:
            search = self.rows(search_jobs(way)) or []
            final = self.rows(final_jobs(way, search)) or []
            rows += [_described(way, self.data), *search, *final]
            measurement.write(out, _record(self.options, rows, self.data))
            print(_said(way, final), flush=True)
        if len(self.ways) == len(WAYS):
            shutil.rmtree(self.folder, ignore_errors=True)  # its rows are in the file


def _described(way: Way, data: Dataset) -> Row:
    """The way itself as a row; ``images`` is how many it is trained on, of the noise its scale."""
    own: Row = {"part": "contender"} | asdict(way) | {"images": len(cut(data, way.images).train)}
    return own | {"noise_scale": way.law.scale if way.kind == "sbn" else None}


def _said(way: Way, final: Sequence[Row]) -> str:
    own = [row["test"][way.chosen_by] for row in final]
    row = summary(own, images=1)
    error = "" if row["se"] is None else f" +- {row['se']:.4f}"
    return f"{way.name:14} lr {final[0]['lr']:g}, {way.chosen_by}: {row['mean']:.4f}{error}"


# The measurement ----------------------------------------------------------------------------------


def summarize(rows: Sequence[Row], images: int) -> list[Row]:
    """Mean test accuracy of each way and prediction, minus its twin's by Welch, with their errors.

    Args:
        rows: those of final runs are looked at.
        images: the number of test images.
    """
    final: dict[str, list[Row]] = {}
    for row in rows:
        if row["part"] == "final":
            final.setdefault(row["name"], []).append(row)
    return [
        {"part": "summary", "name": name, "prediction": prediction}
        | summary(_tests(own, prediction), _of_twin(WAYS[name], final), images=images)
        for name, own in final.items()
        for prediction in own[0]["test"]
    ]


def _tests(rows: Sequence[Row], prediction: str) -> list[float]:
    return [row["test"][prediction] for row in rows]


def _of_twin(way: Way, final: Mapping[str, Sequence[Row]]) -> list[float] | None:
    """The accuracies of the twin; None for a twin itself, and where it was not trained."""
    if way.twin == way.name or way.twin not in final:
        return None
    return _tests(final[way.twin], WAYS[way.twin].chosen_by)


def _record(options: Mapping[str, Any], rows: Sequence[Row], data: Dataset) -> Row:
    with threads(1):
        device = measurement.describe_device()
    final = [row for row in rows if row["part"] == "final"]
    return measurement.record(
        kind="contenders",
        command=_command(options),
        device=device,
        seeds=sorted({row["seed"] for row in final}),
        checks={f"{row['name']}_inside_grid": _is_inside(row) for row in final if not row["seed"]},
        rows=[*rows, *summarize(rows, len(data.test))],
    )


def _is_inside(row: Row) -> bool:
    """Whether the chosen rate is not one of the ends of the grid."""
    rates = WAYS[row["name"]].rates
    return min(rates) < row["lr"] < max(rates)


def _command(options: Mapping[str, Any]) -> str:
    """The command line that repeats the part."""
    words = f"python -m sbnlib.experiments.contenders --part {options['part']}"
    words += f" --data {options['data']}"
    for name, default in (("search_epochs", SEARCH_EPOCHS), ("epochs", EPOCHS), ("only", ())):
        if options[name] != default:
            words += f" --{name.replace('_', '-')} {as_typed(options[name])}"
    return words


# The budget ---------------------------------------------------------------------------------------


def budget(ways: Sequence[Way], data: Dataset, epochs: Mapping[str, int]) -> list[Row]:
    """What each way costs: trainings, epochs in all, training images and seconds by one thread.

    The seconds are an estimate: some steps are timed, and a look at some images; the tests take one
    look a prediction, ten for ten samples, and for each mode those of the batch norm.
    """
    with threads(1):
        return [_cost(way, cut(data, way.images), epochs) for way in ways]


def _cost(way: Way, data: Dataset, epochs: Mapping[str, int]) -> Row:
    training = fresh(way, data, way.rates[0], Recipe(0, 1, BATCH, contender="timing"))
    total = len(way.rates) * epochs["search"] + way.seeds * epochs["final"]
    step = _least(partial(_step, training, data))
    look = _least(partial(_look, training, data)) / min(LOOKED_AT, len(data.validation))
    steps = total * (len(data.train) // BATCH)
    return {
        "name": way.name,
        "trainings": len(way.rates) + way.seeds,
        "epochs": total,
        "images": len(data.train),
        "seconds": steps * step + _looks(way, training, data) * look,
    }


def _step(training: Training, data: Dataset) -> None:
    images, draw = data.train, torch.Generator().manual_seed(0)
    training.model(images.inputs[:BATCH], images.labels[:BATCH], draw).mean(-1).sum().backward()
    for optimizer in training.optimizers:
        optimizer.step()


@torch.no_grad()
def _look(training: Training, data: Dataset) -> None:
    training.model.net(data.validation.inputs[:LOOKED_AT])


def _looks(way: Way, training: Training, data: Dataset) -> int:
    """Images that all tests look at."""
    norms = sum(isinstance(m, BatchNorm) for m in training.model.modules())
    statistics = (norms + 1) * min(STATISTICS, len(data.train)) if norms else 0
    modes, draws = (3, 10) if way.kind == "sbn" else (1, 0)
    search = statistics + (draws if way.chosen_by == "ten" else 1) * len(data.validation)
    each = draws + len(way.predictions) - bool(draws) * 2
    running = bool(norms) * max(draws, 1) * len(data.test)
    final = modes * statistics + each * (len(data.validation) + len(data.test)) + running
    return len(way.rates) * search + way.seeds * final


def _least(function: Callable[[], None], times: int = 3) -> float:
    """The least time of several calls, in seconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


def _budget_said(costs: Sequence[Row], workers: int) -> str:
    lines = [f"{'':14}{'trainings':>10}{'epochs':>8}{'images':>8}{'minutes':>9}"]
    total = {key: sum(c[key] for c in costs) for key in ("trainings", "epochs", "seconds")}
    for cost in [*costs, {"name": "in all", "images": ""} | total]:
        minutes = cost["seconds"] / workers / 60
        words = "{name:14}{trainings:>10}{epochs:>8}{images:>8}".format(**cost)
        lines.append(f"{words}{minutes:>9.1f}")
    many = f" by {workers} workers" if workers > 1 else ""
    return "\n".join([*lines, f"estimated from a few steps of each{many}"])


# The command --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.contenders",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--part", required=True, choices=PARTS, help="which one")
    known = sorted(datasets.DATASETS)
    add_option(parser, "data", "fashion-mnist", f"data set: {', '.join(known)}", choices=known)
    add_option(parser, "epochs", EPOCHS, "length of a final run, in passes through the images")
    words = "length of a trial of the search, in passes through the images"
    add_option(parser, "search_epochs", SEARCH_EPOCHS, words)
    parser.add_argument(
        "--only", nargs="+", default=(), choices=list(WAYS), metavar="NAME",
        help=f"the ways to train: {', '.join(WAYS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--plan", action="store_true", help="print what it will cost, and stop (default: no)"
    )
    add_out(parser, "runs/contenders-PART.json")
    add_resume_dir(parser)
    add_scale_out(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = vars(parser.parse_args(argv))
    options["only"] = tuple(name for name in WAYS if name in options["only"])
    out = options["out"] or Path("runs") / f"contenders-{options['part']}.json"
    scale_out = ScaleOut(parser, options, argv)
    with refusing(parser, RuntimeError, ValueError):  # DataError, MeasurementError
        for name in ("epochs", "search_epochs"):
            check_count(name, options[name])
        measurement.check_writable(out)
        part = _Train(options, scale_out)
    if scale_out.list or scale_out.job is not None:
        part.single()
        return 0
    costs = budget(part.ways, part.data, part.epochs)
    print(_budget_said(costs, scale_out.workers), flush=True)
    if not options["plan"]:
        part.all(out)
        print(f"written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
