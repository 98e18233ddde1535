r"""Stochastic autoencoders: the bound by every estimator, their gradients, and retrieval by codes.

    python -m sbnlib.experiments.autoencoders --part train          64 bits, the estimators
    python -m sbnlib.experiments.autoencoders --part small          8 bits, beside exact sums
    python -m sbnlib.experiments.autoencoders --part gradients      and so on, one file a part

The models are those of ``sbnlib.experiments.coders``. In the parts ``train`` and ``small`` each
contender gets a search of five learning rates, and of further ones where the best is an end of
them, with one fixed seed and by the negative bound of the validation images; then five fresh seeds
at the chosen rate, and only these see the test images. No two contenders share a random number. The
measurement file is written anew whenever a contender is complete.

The other parts take the learning rates from the file of ``train``: ``gradients``, where estimators
point along the training (``sbnlib.experiments.code_gradients``), and ``retrieval``, pictures of the
same label among the nearest codes (``sbnlib.experiments.retrieval``).
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from sbnlib import data as datasets
from sbnlib import registry
from sbnlib.contracts import check_count
from sbnlib.experiments import code_gradients, measurement, retrieval
from sbnlib.experiments.cache import CacheError, Row, folder_of, make_key
from sbnlib.experiments.coders import ESTIMATORS, RATES, SEEDS, SETTINGS, trained
from sbnlib.experiments.command import add_option, add_out, add_resume_dir, refusing
from sbnlib.experiments.jobs import ScaleOut, add_scale_out, jobs_so_far
from sbnlib.experiments.protocol import SEARCH_SEED, beyond, mean_se
from sbnlib.experiments.training import threads
from sbnlib.experiments.ways import data_of

__all__ = ["PARTS", "best_other", "main", "summarize"]

PARTS = ("train", "small", "gradients", "retrieval")
#: Trials beyond the ends of the learning rates, at most.
BEYOND = 3
#: Who trains the codes of the part retrieval, beside the best of the others.
CODERS = ("straight_through", "zgr")
#: Evaluations of the loss that the best of the others may take.
CHEAP = 3
CHOSEN = Path("runs/autoencoders-train.json")
#: Options that belong to some parts, with what they are where they are not given.
OWN: dict[str, Row] = {
    part: {"epochs": s.epochs, "search_epochs": s.search_epochs, "only": (), "data": s.data}
    for part, s in SETTINGS.items()
} | {part: {"chosen": CHOSEN, "data": ("fashion-mnist",)} for part in ("gradients", "retrieval")}
NAMES = tuple(dict.fromkeys(name for s in SETTINGS.values() for name in s.names))


# The trainings ------------------------------------------------------------------------------------


def search_jobs(data: str, name: str, search: Sequence[Row] = ()) -> list[Row]:
    """The next trials: one for each learning rate; then one beyond the end that is the best.

    Args:
        data, name: of what is trained.
        search: the trials that are over; none are due if the best of them lies between others.
    """
    rates = RATES if not search else _beyond(search)
    if len(search) >= len(RATES) + BEYOND:
        rates = ()
    return [_job("search", data, name, lr, SEARCH_SEED) for lr in rates]


def final_jobs(data: str, name: str, search: Sequence[Row]) -> list[Row]:
    """Fresh seeds at the best rate of the search."""
    return [_job("final", data, name, _best(search)["lr"], seed) for seed in range(SEEDS)]


def _beyond(search: Sequence[Row]) -> tuple[float, ...]:
    return beyond([row["lr"] for row in search], _best(search)["lr"])


def _best(search: Sequence[Row]) -> Row:
    """By the loss of the validation images; one that is not finite is the worst."""
    return min(search, key=_validation)


def _validation(row: Row) -> float:
    return math.inf if row["validation"] is None else row["validation"]


def _job(part: str, data: str, name: str, lr: float, seed: int) -> Row:
    return {"part": part, "data": data, "name": name, "lr": lr, "seed": seed}


class _Trainings:
    """The parts ``train`` and ``small``: their contenders, and where their rows are."""

    def __init__(self, options: Mapping[str, Any], scale_out: ScaleOut, out: Path) -> None:
        self.options, self.scale_out, self.out = options, scale_out, out
        self.setting = SETTINGS[options["part"]]
        self.epochs = {"search": options["search_epochs"], "final": options["epochs"]}
        for name in ("search_epochs", "epochs"):
            check_count(name, options[name])
        names = options["only"] or self.setting.names
        self.entries = [(data, name) for data in options["data"] for name in names]
        settings = {"epochs": self.epochs, "bits": self.setting.bits, "also": options["data"][1:]}
        self.key = make_key(
            f"autoencoders-{options['part']}", settings, data_of(options["data"][0])
        )
        for data in options["data"]:
            data_of(data)  # whether it is there
        self.folder = folder_of(options["resume_dir"], self.key)

    def run(self) -> None:
        if self.scale_out.list or self.scale_out.job is not None:
            self.single()
        else:
            self.all()

    def rows(self, jobs: Sequence[Row]) -> list[Row] | None:
        compute = partial(
            trained, bits=self.setting.bits, double=self.setting.double, epochs=self.epochs
        )
        found = self.scale_out.rows(jobs, compute, key=self.key, folder=self.folder)
        return None if found is None else list(chain.from_iterable(found))

    def single(self) -> None:
        """A list of jobs, or one of them: of the search, and of the final runs once it is over."""
        self.rows(
            jobs_so_far(self.entries, search_jobs, final_jobs, key=self.key, folder=self.folder)
        )

    def all(self) -> None:
        """Contender after contender; the file is written when each is complete."""
        rows: list[Row] = []
        for entry in self.entries:
            search: list[Row] = []
            while jobs := search_jobs(*entry, search):
                search += self.rows(jobs) or []
            final = self.rows(final_jobs(*entry, search)) or []
            rows += [*search, *final]
            measurement.write(self.out, _trained(self.options, rows))
            print(_said(final), flush=True)
        if not self.options["only"]:
            shutil.rmtree(self.folder, ignore_errors=True)  # its rows are in the file
        print(f"written to {self.out}")


def _said(final: Sequence[Row]) -> str:
    mean, se = mean_se([row["test"]["loss"] for row in final if row["part"] == "final"])
    error = "" if se is None else f" +- {se:.2f}"
    return "{data:18} {name:18} lr {lr:<8g} test loss".format(**final[0]) + f" {mean:.2f}{error}"


# The measurement ----------------------------------------------------------------------------------


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Means over the seeds of each number of each contender, with standard errors.

    ``train`` and ``test`` hold the means, ``train_se`` and ``test_se`` their errors, null for a
    single seed.

    Args:
        rows: those of final runs are looked at.
    """
    final: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["part"] == "final":
            final.setdefault((row["data"], row["name"]), []).append(row)
    return [_summary(*entry, own) for entry, own in final.items()]


def _summary(data: str, name: str, own: Sequence[Row]) -> Row:
    row: Row = {"part": "summary", "data": data, "name": name, "seeds": len(own)}
    for split in ("train", "test"):
        found = {key: mean_se([r[split][key] for r in own]) for key in own[0][split]}
        row[split] = {key: mean for key, (mean, _) in found.items()}
        row[f"{split}_se"] = {key: se for key, (_, se) in found.items()}
    return row


def _trained(options: Mapping[str, Any], rows: Sequence[Row]) -> Row:
    entries = dict.fromkeys((row["data"], row["name"]) for row in rows)
    one = len({data for data, _ in entries}) == 1
    inside = {
        f"{name}_inside_grid" if one else f"{data}_{name}_inside_grid": _is_inside(rows, data, name)
        for data, name in entries
    }
    return _record(options, [*rows, *summarize(rows)], inside)


def _is_inside(rows: Sequence[Row], data: str, name: str) -> bool:
    """Whether the chosen rate lies between others that were tried."""
    own = [r for r in rows if (r["part"], r["data"], r["name"]) == ("search", data, name)]
    return not _beyond(own)


def _record(
    options: Mapping[str, Any], rows: Sequence[Row], checks: Mapping[str, bool] | None = None
) -> Row:
    with threads(1):
        device = measurement.describe_device()
    seeds = sorted({row["seed"] for row in rows if row.get("seed", SEARCH_SEED) != SEARCH_SEED})
    return measurement.record(
        kind="autoencoders", command=_command(options), device=device, seeds=seeds, checks=checks,
        rows=rows,
    )  # fmt: skip


def _command(options: Mapping[str, Any]) -> str:
    """The command line that repeats the part."""
    words = ["--part", options["part"]]
    for name, default in OWN[options["part"]].items():
        if (value := options[name]) != default:
            given = map(str, value if isinstance(value, tuple) else [value])
            words += [f"--{name.replace('_', '-')}", *given]
    return shlex.join(["python", "-m", "sbnlib.experiments.autoencoders", *words])


# The other parts ----------------------------------------------------------------------------------


class _Sweep:
    """The parts ``gradients`` and ``retrieval``, with the learning rates of ``train``."""

    def __init__(self, options: Mapping[str, Any], scale_out: ScaleOut, out: Path) -> None:
        self.options, self.scale_out, self.out = options, scale_out, out
        part, path = options["part"], options["chosen"]
        if len(options["data"]) > 1:
            raise ValueError(f"--data: --part {part} takes one data set, got {options['data']}")
        (self.data,) = options["data"]
        rates = chosen_rates(path, CODERS)
        if part == "gradients":
            rates["exact"] = rates["zgr"]  # where both are unbiased, or nearly so
            settings: Row = {"rates": rates}
            self.compute = partial(code_gradients.looked_at, data=self.data, **settings)
            self.jobs = [{"bits": n, "trained": who, "seed": 0} for n, who in code_gradients.RUNS]
        else:
            names = [*CODERS, best_other(path)]
            settings = {"rates": chosen_rates(path, [*names, "twin"]), "epochs": epochs_of(path)}
            self.compute = partial(retrieval.retrieved, data=self.data, **settings)
            self.jobs = retrieval.jobs(names)
        self.key = make_key(f"autoencoders-{part}", settings, data_of(self.data))

    def run(self) -> None:
        folder = folder_of(self.options["resume_dir"], self.key)
        found = self.scale_out.rows(self.jobs, self.compute, key=self.key, folder=folder)
        if found is not None:
            rows = list(chain.from_iterable(found))
            measurement.write(self.out, _record(self.options, rows))
            shutil.rmtree(folder, ignore_errors=True)  # its rows are in the file
            print(*map(_found_said, rows), f"written to {self.out}", sep="\n")


def _found_said(row: Row) -> str:
    words = [str(v) for v in row.values() if isinstance(v, (str, int))]
    numbers = [f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float)]
    return " ".join([*words, *numbers])


def chosen_rates(path: Path, names: Sequence[str]) -> dict[str, float]:
    """The learning rate of the final runs of some contenders in a file of the part ``train``.

    Raises:
        ValueError: the file is not there, is no such file, or lacks a contender.
    """
    found = {row["name"]: row["lr"] for row in _rows_of(path) if row["part"] == "final"}
    for name in names:
        if name not in found:
            raise ValueError(f"--chosen: {path} holds no final run of {name}; run --part train")
    return {name: found[name] for name in names}


def best_other(path: Path) -> str:
    """The estimator of least validation loss in a file of ``train``, beside those of ``CODERS``.

    Of those that take at most three evaluations of the loss.

    Raises:
        ValueError: as :func:`chosen_rates`.
    """
    cheap = [e for e in ESTIMATORS if e not in CODERS and registry.get(e).cost(64) <= CHEAP]
    search = [r for r in _rows_of(path) if r["part"] == "search" and r["name"] in cheap]
    if not search:
        raise ValueError(f"--chosen: {path} holds no estimator beside {CODERS}; run --part train")
    return _best(search)["name"]


def epochs_of(path: Path) -> int:
    """The length of a final run in a file of ``train``.

    Raises:
        ValueError: as :func:`chosen_rates`.
    """
    return max(row["epoch"] for row in _rows_of(path) if row["part"] == "curve")


def _rows_of(path: Path) -> list[Row]:
    try:
        found = measurement.read(path)
    except FileNotFoundError:
        raise ValueError(f"--chosen: {path} is not there; it is what --part train writes") from None
    if found["kind"] != "autoencoders":
        raise ValueError(f"--chosen: {path} is of kind {found['kind']!r}, must be autoencoders")
    return found["rows"]


# The command --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.autoencoders",
        description=(__doc__ or "").split("\n")[0],
    )
    words = "what is made: trainings, small ones beside exact sums, directions, or retrieval"
    add_option(parser, "part", "train", words, choices=PARTS)
    known = sorted(datasets.DATASETS)
    parser.add_argument(
        "--data", nargs="+", choices=known, metavar="NAME",
        help=f"data sets, several for small: {', '.join(known)} (default: fashion-mnist; digits "
        "and fashion-mnist-4000 for small)",
    )  # fmt: skip
    lengths = {name: [str(s.__dict__[name]) for s in SETTINGS.values()]
               for name in ("epochs", "search_epochs")}  # fmt: skip
    parser.add_argument(
        "--epochs", type=int, metavar="N",
        help="train, small: length of a final run, in passes through the training images "
        f"(default: {' and '.join(lengths['epochs'])})",
    )  # fmt: skip
    parser.add_argument(
        "--search-epochs", type=int, metavar="N",
        help="train, small: length of a trial of the search (default: "
        f"{' and '.join(lengths['search_epochs'])})",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME",
        help=f"train, small: some of the contenders, {', '.join(NAMES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--chosen", type=Path, metavar="FILE",
        help="gradients, retrieval: the file of the part train, whose learning rates are used "
        f"(default: {CHOSEN})",
    )  # fmt: skip
    add_out(parser, "runs/autoencoders-PART.json")
    add_resume_dir(parser)
    add_scale_out(parser)
    return parser


def _options(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Row:
    """The options, those of the part with their defaults."""
    options = vars(parser.parse_args(argv))
    part, own = options["part"], OWN[options["part"]]
    for name in {name for each in OWN.values() for name in each}:
        if options[name] is not None and name not in own:
            parser.error(f"--{name.replace('_', '-')}: has no part in --part {part}")
        options[name] = own.get(name) if options[name] is None else options[name]
    options["data"] = tuple(options["data"])
    if options["only"]:
        names = SETTINGS[part].names
        if strange := [name for name in options["only"] if name not in names]:
            parser.error(f"--only: {', '.join(strange)} has no part in --part {part}")
        options["only"] = tuple(name for name in names if name in options["only"])
    return options


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = _options(parser, argv)
    out = options["out"] or Path("runs") / f"autoencoders-{options['part']}.json"
    scale_out = ScaleOut(parser, options, argv)
    with refusing(parser, RuntimeError, ValueError):  # DataError, MeasurementError
        measurement.check_writable(out)
        part = _Trainings if options["part"] in SETTINGS else _Sweep
        run = part(options, scale_out, out).run
    with refusing(parser, CacheError):
        run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
