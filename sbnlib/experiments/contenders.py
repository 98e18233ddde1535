r"""Sixteen ways to train a deep network, each with the same search budget.

    python -m sbnlib.experiments.contenders --part train --plan         what it will cost
    python -m sbnlib.experiments.contenders --part train --workers 2    the trainings
    python -m sbnlib.experiments.contenders --part gradients            and so on

The ways are those of ``sbnlib.experiments.ways``. Each gets a search of six learning rates, and of
further ones where the best is an end of them, with one fixed seed and chosen by validation
accuracy; then fresh seeds at the chosen rate, and only these see the test images. The schedule is a
half cosine over the length of a training, in the search too.

Two trainings of one way share the images alone; two ways share no random number. The measurement
file is written anew whenever a way is complete, and holds those that are.

The other parts: ``gradients``, where estimators point along the training of ``st-logistic``
(``sbnlib.experiments.directions``); ``exact``, their bias and spread in a network small enough for
exact sums (``sbnlib.experiments.small_nets``); ``weights-net``, a longer training of the better of
the two kinds of binary weights, kept as packed bits (``sbnlib.experiments.binary_net``). The first
and the last take the learning rate, and the kind, from the file of ``train``.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from sbnlib import data as datasets
from sbnlib.contracts import check_count
from sbnlib.data import Dataset
from sbnlib.experiments import directions, measurement, small_nets
from sbnlib.experiments.binary_net import load_net, make_net
from sbnlib.experiments.cache import (
    CacheError,
    Checkpoint,
    Folder,
    Row,
    folder_of,
    make_key,
)
from sbnlib.experiments.command import add_option, add_out, add_resume_dir, refusing
from sbnlib.experiments.jobs import ScaleOut, add_scale_out, jobs_so_far
from sbnlib.experiments.protocol import SEARCH_SEED, beyond, summary
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

__all__ = ["PARTS", "budget", "load_net", "main", "summarize"]

#: Length of a trial of the search and of a final run, in passes through the training images.
SEARCH_EPOCHS, EPOCHS = 2, 5
#: Trials beyond the ends of the learning rates, at most.
BEYOND = 3
#: Length of the training whose weights are kept.
KEPT_EPOCHS = 15
PARTS = ("train", "gradients", "exact", "weights-net")
#: Options that belong to some parts, with what they are where they are not given.
OWN: dict[str, Row] = {
    "train": {"epochs": EPOCHS, "search_epochs": SEARCH_EPOCHS, "only": (), "plan": False},
    "gradients": {"chosen": Path("runs/contenders-train.json")},
    "exact": {},
    "weights-net": {"epochs": KEPT_EPOCHS, "chosen": Path("runs/contenders-train.json")},
}
#: Images of the look that is timed.
LOOKED_AT = 500


# The trainings ------------------------------------------------------------------------------------


def search_jobs(way: Way, search: Sequence[Row] = ()) -> list[Row]:
    """The next trials: one for each learning rate; then one beyond the end that is the best.

    Args:
        way: what is trained.
        search: the trials that are over; none are due if the best of them lies between others.
    """
    rates = way.rates if not search else _beyond(search)
    if len(search) >= len(way.rates) + BEYOND:
        rates = ()
    return [_job("search", way, lr, SEARCH_SEED) for lr in rates]


def _beyond(search: Sequence[Row]) -> tuple[float, ...]:
    return beyond([row["lr"] for row in search], _best(search)["lr"])


def final_jobs(way: Way, search: Sequence[Row]) -> list[Row]:
    """Fresh seeds at the best rate of the search."""
    return [_job("final", way, _best(search)["lr"], seed) for seed in range(way.seeds)]


def _best(search: Sequence[Row]) -> Row:
    """By validation accuracy, among equals by loss."""
    return max(search, key=lambda row: (row["validation"], -row["validation_loss"]))


def _job(part: str, way: Way, lr: float, seed: int) -> Row:
    return {"part": part, "name": way.name, "lr": lr, "seed": seed}


class _Train:
    """The part ``train``: its ways, and where their rows are."""

    def __init__(self, options: Mapping[str, Any], scale_out: ScaleOut, out: Path) -> None:
        names = options["only"] or list(WAYS)
        self.ways = [way for name, way in WAYS.items() if name in names]
        self.options, self.scale_out, self.out = options, scale_out, out
        self.epochs = {"search": options["search_epochs"], "final": options["epochs"]}
        for name in ("search_epochs", "epochs"):
            check_count(name, options[name])
        self.data = data_of(options["data"])
        self.key = make_key("contenders-train", {"epochs": self.epochs}, self.data)
        self.folder = folder_of(options["resume_dir"], self.key)

    def run(self) -> None:
        if self.scale_out.list or self.scale_out.job is not None:
            self.single()
            return
        costs = budget(self.ways, self.data, self.epochs)
        print(_budget_said(costs, self.scale_out.workers), flush=True)
        if not self.options["plan"]:
            self.all()

    def rows(self, jobs: Sequence[Row]) -> list[Row] | None:
        compute = partial(trained, data=self.options["data"], epochs=self.epochs)
        found = self.scale_out.rows(jobs, compute, key=self.key, folder=self.folder)
        return None if found is None else list(chain.from_iterable(found))

    def single(self) -> None:
        """A list of jobs, or one of them: of the search, and of the final runs once it is over."""
        self.rows(
            jobs_so_far(
                [(way,) for way in self.ways],
                search_jobs,
                final_jobs,
                key=self.key,
                folder=self.folder,
            )
        )

    def all(self) -> None:
        """Way after way; the file is written when each is complete."""
        rows: list[Row] = []
        for way in self.ways:
            search: list[Row] = []
            while jobs := search_jobs(way, search):
                search += self.rows(jobs) or []
            final = self.rows(final_jobs(way, search)) or []
            rows += [_described(way, self.data), *search, *final]
            measurement.write(self.out, _trained(self.options, rows, self.data))
            print(_said(way, final), flush=True)
        if len(self.ways) == len(WAYS):
            shutil.rmtree(self.folder, ignore_errors=True)  # its rows are in the file
        print(f"written to {self.out}")


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


def _trained(options: Mapping[str, Any], rows: Sequence[Row], data: Dataset) -> Row:
    final = [row for row in rows if row["part"] == "final"]
    names = dict.fromkeys(row["name"] for row in final)
    inside = {f"{name}_inside_grid": _is_inside(rows, name) for name in names}
    return _record(options, [*rows, *summarize(rows, len(data.test))], final, inside)


def _record(
    options: Mapping[str, Any],
    rows: Sequence[Row],
    seeded: Sequence[Row],
    checks: Mapping[str, bool] | None = None,
) -> Row:
    with threads(1):
        device = measurement.describe_device()
    seeds = sorted({row["seed"] for row in seeded})
    return measurement.record(
        kind="contenders", command=_command(options), device=device, seeds=seeds, checks=checks,
        rows=rows,
    )  # fmt: skip


def _is_inside(rows: Sequence[Row], name: str) -> bool:
    """Whether the chosen rate lies between others that were tried."""
    own = [row for row in rows if row["name"] == name and row["part"] == "search"]
    return not _beyond(own)


def _command(options: Mapping[str, Any]) -> str:
    """The command line that repeats the part."""
    part = options["part"]
    words = ["--part", part, "--data", options["data"]]
    for name, default in OWN[part].items():
        if options[name] != default:
            value = options[name]
            given = map(str, value if isinstance(value, tuple) else [value])
            words += [f"--{name.replace('_', '-')}", *given]
    return shlex.join(["python", "-m", "sbnlib.experiments.contenders", *words])


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
    more = f"a search whose best rate is an end of them goes on, by {BEYOND} trials at most"
    return "\n".join([*lines, f"estimated from a few steps of each{many}", more])


# The other parts ----------------------------------------------------------------------------------


class _Sweep:
    """A part whose jobs are seeds."""

    def __init__(self, options: Mapping[str, Any], scale_out: ScaleOut, out: Path) -> None:
        self.options, self.scale_out, self.out = options, scale_out, out
        settings: dict[str, Any] = {}
        self.compute: Callable[..., list[Row]] = small_nets.small_net
        seeds = small_nets.SEEDS
        if options["part"] == "gradients":
            settings = {"lr": chosen_rate(options["chosen"], directions.WAY)}
            self.compute, seeds = partial(directions.looked_at, **settings), directions.SEEDS
        data = data_of(options["data"])
        if options["part"] == "exact":
            small_nets.pooled(data)  # whether it can be
        self.jobs = [{"seed": seed} for seed in range(seeds)]
        self.key = make_key(f"contenders-{options['part']}", settings, data)

    def run(self) -> None:
        folder = folder_of(self.options["resume_dir"], self.key)
        compute = partial(self.compute, data=self.options["data"])
        found = self.scale_out.rows(self.jobs, compute, key=self.key, folder=folder)
        if found is not None:
            rows = list(chain.from_iterable(found))
            measurement.write(self.out, _record(self.options, rows, rows))
            shutil.rmtree(folder, ignore_errors=True)  # its rows are in the file
            print(*map(_found_said, rows), f"written to {self.out}", sep="\n")


def _found_said(row: Row) -> str:
    head = "seed {seed}, epoch {epoch:2}, {part:10}{estimator:18}layer {layer:4}".format(**row)
    numbers = {k: v for k, v in row.items() if isinstance(v, float)}
    return head + "".join(f" {name} {value:.4g}" for name, value in numbers.items())


class _Net:
    """The part ``weights-net``."""

    def __init__(self, options: Mapping[str, Any], scale_out: ScaleOut, out: Path) -> None:
        if scale_out.list or scale_out.job is not None:
            raise ValueError("--list and --job have no part in weights-net, which is one training")
        check_count("epochs", options["epochs"])
        self.way = better(options["chosen"])
        self.lr = chosen_rate(options["chosen"], self.way.name)
        self.out, self.epochs, self.data = out, options["epochs"], data_of(options["data"])
        settings = {"name": self.way.name, "lr": self.lr, "epochs": self.epochs}
        self.key = make_key("contenders-weights-net", settings, self.data)
        self.folder = folder_of(options["resume_dir"], self.key)

    def run(self) -> None:
        print(f"{self.way.name} at lr {self.lr:g}, {self.epochs} epochs", flush=True)
        with Folder(self.key, self.folder), threads(1):
            kept = Checkpoint(self.folder / "net.ckpt", self.key)
            row = make_net(self.out, self.way, self.data, self.lr, self.epochs, checkpoint=kept)
        shutil.rmtree(self.folder, ignore_errors=True)
        print("test accuracy {test:.4f}, {bytes} bytes, sha256 {sha256}".format(**row))
        print(f"written to {self.out}")


def chosen_rate(path: Path, name: str) -> float:
    """The learning rate of a way's final runs in a file of the part ``train``.

    Raises:
        ValueError: the file is not there, is no such file, or has no final run of the way.
    """
    return _final(path, name)[0]["lr"]


def better(path: Path) -> Way:
    """The kind of binary weights with the higher mean validation accuracy in a file of ``train``.

    Raises: as :func:`chosen_rate`.
    """
    names = [way.name for way in WAYS.values() if way.weights != "real"]
    found = {
        name: fmean(row["validation"][WAYS[name].chosen_by] for row in _final(path, name))
        for name in names
    }
    return WAYS[max(names, key=lambda name: found[name])]


def _final(path: Path, name: str) -> list[Row]:
    try:
        found = measurement.read(path)
    except FileNotFoundError:
        raise ValueError(f"--chosen: {path} is not there; it is what --part train writes") from None
    rows = [row for row in found["rows"] if row.get("part") == "final" and row["name"] == name]
    if found["kind"] != "contenders" or not rows:
        raise ValueError(f"--chosen: {path} holds no final run of {name}; run --part train first")
    return rows


# The command --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.contenders",
        description=(__doc__ or "").split("\n")[0],
    )
    words = (
        "what is made: trainings, directions of estimators, exact bias, or packed binary weights"
    )
    add_option(parser, "part", "train", words, choices=PARTS)
    known = sorted(datasets.DATASETS)
    add_option(parser, "data", "fashion-mnist", f"data set: {', '.join(known)}", choices=known)
    parser.add_argument(
        "--epochs", type=int, metavar="N",
        help="length of a final run, or of the one whose weights are kept, in passes through the "
        f"images (default: {EPOCHS} for train, {KEPT_EPOCHS} for weights-net)",
    )  # fmt: skip
    parser.add_argument(
        "--search-epochs", type=int, metavar="N",
        help=f"train: length of a trial of the search (default: {SEARCH_EPOCHS})",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=list(WAYS), metavar="NAME",
        help=f"train: some of the ways, {', '.join(WAYS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--plan", action="store_true", default=None,
        help="train: print what it will cost, and stop (default: no)",
    )  # fmt: skip
    parser.add_argument(
        "--chosen", type=Path, metavar="FILE",
        help="gradients, weights-net: the file of the part train, whose choices are used (default: "
        "runs/contenders-train.json)",
    )  # fmt: skip
    add_out(parser, "runs/contenders-PART.json; runs/binary-weights-512-512.npz for weights-net")
    add_resume_dir(parser)
    add_scale_out(parser)
    return parser


def _options(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Row:
    """The options, those of the part with their defaults."""
    options = vars(parser.parse_args(argv))
    own = OWN[options["part"]]
    for name in {name for each in OWN.values() for name in each}:
        if options[name] is not None and name not in own:
            parser.error(f"--{name.replace('_', '-')}: has no part in --part {options['part']}")
        options[name] = own.get(name) if options[name] is None else options[name]
    if options["only"]:
        options["only"] = tuple(name for name in WAYS if name in options["only"])
    return options


def _place(options: Row) -> Path:
    if options["out"]:
        return options["out"]
    net = options["part"] == "weights-net"
    name = "binary-weights-512-512.npz" if net else f"contenders-{options['part']}.json"
    return Path("runs") / name


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = _options(parser, argv)
    out, scale_out = _place(options), ScaleOut(parser, options, argv)
    parts: dict[str, Any] = {"train": _Train, "weights-net": _Net}
    with refusing(parser, RuntimeError, ValueError):  # DataError, MeasurementError
        measurement.check_writable(out)
        run = parts.get(options["part"], _Sweep)(options, scale_out, out).run
    with refusing(parser, CacheError):
        run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
