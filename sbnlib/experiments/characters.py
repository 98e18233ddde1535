r"""What ternary weights cost a small character model, by the rule that trains them.

    python -m sbnlib.experiments.characters --out FILE [--text FILE] [--only NAME ...]

The text is this book's own prose (``sbnlib.data.prose``), or a UTF-8 file of the reader's. Every
contender of :data:`sbnlib.experiments.character_nets.CONTENDERS` gets as many steps, three learning
rates for its two matrices with one seed, and further ones while the best of them is an end; the
validation part chooses. Then ``--seeds`` fresh seeds are trained at the chosen rate, and they alone
see the test part. All else that is real-valued has one rate in every contender.

Rows by ``part``: ``text``, what was read; ``search`` and ``final``, one training each, with bits
per character; ``summary``, means over the seeds, and the difference to the twin with real weights
by Welch's test; ``doctor``, the codes of what :func:`sbnlib.diagnose` finds in a trained model.

The numbers of a final row are ``test``, at the ternary weights without noise, ``drawn`` at one draw
of them and ``mean`` at their means; ``blocks``, the test bits of each block of 2000 characters;
``zeros``, the share of weights that are 0; ``moved``, the share whose ternary value changed in the
last tenth of the training; ``seconds``, the processor time of the training.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
import shlex
import shutil
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from sbnlib import data as datasets
from sbnlib.contracts import check_count
from sbnlib.data import DataError, Dataset
from sbnlib.diagnose import diagnose
from sbnlib.experiments import measurement
from sbnlib.experiments.cache import Row, folder_of, make_key
from sbnlib.experiments.character_nets import (
    BATCH,
    BLOCK,
    CONTENDERS,
    CONTEXT,
    LEAST,
    CharacterNet,
    encoded,
    losses,
    states,
    steps_of,
)
from sbnlib.experiments.command import add_option, add_out, add_resume_dir, refusing
from sbnlib.experiments.jobs import ScaleOut, add_scale_out, jobs_so_far
from sbnlib.experiments.protocol import SEARCH_SEED, beyond, mean_se, welch
from sbnlib.experiments.training import generator, threads

__all__ = ["main", "read_text", "summarize", "trained"]

STEPS, SEEDS = 1200, 8
#: Trials beyond the ends of the learning rates, at most.
BEYOND = 3
TWIN = "real"
#: Whom the doctor sees.
EXAMINED = ("absmean", "fixed", "uniform", "triangular", "simplex")


# The text -----------------------------------------------------------------------------------------


def read_text(path: str | Path | None) -> Dataset:
    """The prose, or a file in blocks of 2000 characters, of ten the fifth and the tenth held out.

    Args:
        path: of a UTF-8 file; None for the book's own prose.

    Raises:
        DataError: the file cannot be read, is not UTF-8 (the message has the offset of the byte),
            or has fewer than 40 000 characters.
    """
    if path is None or str(path) == "":
        return encoded("prose", datasets.prose())
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: must be UTF-8, the byte at offset {error.start} is "
            f"0x{content[error.start]:02x} ({error.reason})"
        ) from error
    if len(text) < LEAST:
        raise DataError(f"{path}: must have at least {LEAST} characters, has {len(text)}")
    blocks = [text[k : k + BLOCK] for k in range(0, len(text), BLOCK)]
    held = {4: "validation", 9: "test"}
    parts = {"train": "", "validation": "", "test": ""}
    for k, block in enumerate(blocks):
        parts[held.get(k % 10, "train")] += block
    return encoded(hashlib.sha256(content).hexdigest(), parts)


#: The same for all jobs of a process.
_text = functools.cache(read_text)


# Trainings ----------------------------------------------------------------------------------------


def search_jobs(name: str, options: Mapping[str, Any], search: Sequence[Row] = ()) -> list[Row]:
    """The next trials: the contender's rates; then one beyond the end that is the best."""
    first = CONTENDERS[name].rates
    rates = first if not search else beyond([row["lr"] for row in search], _best(search)["lr"])
    if len(search) >= len(first) + BEYOND:
        rates = ()
    return [_job("search", name, options, lr, SEARCH_SEED) for lr in rates]


def final_jobs(name: str, options: Mapping[str, Any], search: Sequence[Row]) -> list[Row]:
    """Fresh seeds at the best rate of the search."""
    lr = _best(search)["lr"]
    return [_job("final", name, options, lr, seed) for seed in range(options["seeds"])]


def _job(part: str, name: str, options: Mapping[str, Any], lr: float, seed: int) -> Row:
    text = str(options["text"] or "")
    own = {"part": part, "name": name, "lr": lr, "seed": seed, "steps": options["steps"]}
    return own | ({"text": text} if text else {})


def _best(search: Sequence[Row]) -> Row:
    """By the bits of the validation part; those that are not finite are the worst."""
    return min(search, key=lambda row: math.inf if row["validation"] is None else row["validation"])


def trained(settings: Mapping[str, Any]) -> list[Row]:
    """The row of one training.

    Args:
        settings: ``part``, ``name``, ``lr``, ``seed``, ``steps``, and ``text`` unless it is the
            book's.
    """
    data, name = _text(settings.get("text")), settings["name"]
    row: Row = {"part": settings["part"], "name": name, "lr": settings["lr"]}
    with threads(1):
        try:
            net, moved, seconds = _train(data, settings)
        except ValueError as error:  # an optimizer refuses what is not finite
            if settings["part"] == "final":
                raise
            return [row | {"seed": settings["seed"], "validation": None, "said": str(error)}]
        row |= {"seed": settings["seed"], "validation": _finite(_mean(net, data.validation))}
        if settings["part"] == "final":
            row |= _tested(net, data, settings["seed"]) | {"moved": moved, "seconds": seconds}
    return [row]


def _train(data: Dataset, settings: Mapping[str, Any]) -> tuple[CharacterNet, float | None, float]:
    """The model, the share of weights that still moved in the end, and processor seconds."""
    steps, before, net = settings["steps"], None, None
    start = time.process_time()
    for done, net in steps_of(settings["name"], data, settings["lr"], settings["seed"], steps):
        if done == steps - max(steps // 10, 1):
            before = states(net)
    seconds = time.process_time() - start
    assert net is not None
    after = states(net)
    if before is None or after is None:
        return net, None, seconds
    return net, (before != after).double().mean().item(), seconds


def _mean(net: CharacterNet, split: datasets.Split) -> float:
    return losses(net, split, "state").mean().item()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _tested(net: CharacterNet, data: Dataset, seed: int) -> Row:
    each = losses(net, data.test, "state")
    random = CONTENDERS[net.name].noise is not None or CONTENDERS[net.name].s is not None
    draw = generator("cpu", "test", contender=net.name, seed=seed)
    ternary = states(net)
    return {
        "test": each.mean().item(),
        "drawn": losses(net, data.test, "sample", draw).mean().item() if random else None,
        "mean": losses(net, data.test, "mean").mean().item() if random else None,
        "blocks": [block.mean().item() for block in _blocks(each)],
        "zeros": None if ternary is None else (ternary == 0).double().mean().item(),
    }


def _blocks(each: Tensor) -> Iterator[Tensor]:
    """The bits by blocks of the text; what is left over at the end belongs to the last one."""
    count = max(len(each) // BLOCK, 1)
    for k in range(count):
        yield each[k * BLOCK : (k + 1) * BLOCK if k < count - 1 else len(each)]


# The doctor ---------------------------------------------------------------------------------------


def examined(net: CharacterNet, data: Dataset) -> Row:
    """What the doctor says of a trained model, by the codes of its findings."""
    windows = data.train.labels.unfold(0, CONTEXT, 1)[: BATCH // 4]
    targets = data.train.labels[CONTEXT : CONTEXT + len(windows)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = diagnose(net, windows, lambda scores: functional.cross_entropy(
            scores, targets, reduction="none"))  # fmt: skip
    own = {"part": "doctor", "name": net.name, "units": len(report.units)}
    return own | {"codes": sorted(report.codes)}


# The measurement ----------------------------------------------------------------------------------


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Means over the seeds, a row a contender.

    ``se`` is over the seeds; ``text_se`` tells how the mean varies with the text, from its test
    blocks. Where the twin was trained, ``minus_twin`` and what belongs to it are Welch's, over the
    seeds, and ``minus_twin_text_se`` is the error of the same difference over the blocks, which
    both saw. ``time`` is the ratio of the median processor times to the twin's, ``bytes`` what the
    matrices take with 32 bits a real weight, with five ternary ones in a byte.
    """
    names = dict.fromkeys(row["name"] for row in rows if row["part"] == "final")
    own = {n: [r for r in rows if r["part"] == "final" and r["name"] == n] for n in names}
    return [_summary(name, own[name], own.get(TWIN)) for name in names]


def _summary(name: str, finals: Sequence[Row], twin: Sequence[Row] | None) -> Row:
    values = [row["test"] for row in finals]
    mean, se = mean_se(values)
    blocks = _over_seeds(finals)
    row: Row = {"part": "summary", "name": name, "lr": finals[0]["lr"], "mean": mean, "se": se}
    row |= {"text_se": _se(blocks)}
    row |= {key: _average(finals, key) for key in ("drawn", "mean_weights", "zeros", "moved")}
    row |= {"seconds": statistics.median(r["seconds"] for r in finals), "bytes": _bytes(name)}
    if twin and name != TWIN:
        differences = [a - b for a, b in zip(blocks, _over_seeds(twin), strict=True)]
        row |= welch(values, [r["test"] for r in twin])
        row |= {"minus_twin_text_se": _se(differences)}
        row |= {"time": row["seconds"] / statistics.median(r["seconds"] for r in twin)}
    return row


def _over_seeds(finals: Sequence[Row]) -> list[float]:
    """The bits of each block, averaged over the seeds."""
    return [statistics.fmean(column) for column in zip(*(r["blocks"] for r in finals), strict=True)]


def _se(values: Sequence[float]) -> float | None:
    return mean_se(values)[1]


def _average(finals: Sequence[Row], key: str) -> float | None:
    values = [row["mean" if key == "mean_weights" else key] for row in finals]
    return None if None in values else statistics.fmean(values)


def _bytes(name: str) -> int:
    """Of the two matrices: four a real weight; 3^5 = 243 states of five ternary ones in a byte."""
    net = CharacterNet(2, TWIN, generator("cpu", "sizes"))
    sizes = [p.numel() for p in net.latents()]
    return sum(4 * n if name == TWIN else math.ceil(n / 5) for n in sizes)


def _text_row(data: Dataset) -> Row:
    sizes = {part: len(getattr(data, part)) for part in ("train", "validation", "test")}
    return {"part": "text", "name": data.name, "characters": sizes, "different": data.num_classes}


def _checks(rows: Sequence[Row]) -> dict[str, bool]:
    """Whether every search ended inside the rates that it tried."""
    searches = [row for row in rows if row["part"] == "search"]
    found = {}
    for name in dict.fromkeys(row["name"] for row in searches):
        own = [row for row in searches if row["name"] == name]
        found[f"{name}: best rate inside"] = not beyond(
            [row["lr"] for row in own], _best(own)["lr"]
        )
    return found


def _record(options: Mapping[str, Any], data: Dataset, rows: Sequence[Row]) -> Row:
    with threads(1):
        device = measurement.describe_device()
    return measurement.record(
        kind="characters", command=_command(options), device=device,
        seeds=range(options["seeds"]), checks=_checks(rows),
        rows=[_text_row(data), *rows],
    )  # fmt: skip


def _command(options: Mapping[str, Any]) -> str:
    """The command line that repeats the measurement."""
    words = ["python", "-m", "sbnlib.experiments.characters"]
    for name, default in DEFAULTS.items():
        if (value := options[name]) != default:
            given = map(str, value if isinstance(value, tuple) else [value])
            words += [f"--{name}", *given]
    return shlex.join(words)


# The command --------------------------------------------------------------------------------------

DEFAULTS: dict[str, Any] = {"text": "", "only": (), "steps": STEPS, "seeds": SEEDS}


class _Run:
    """All contenders of a command; the file is written when each is complete."""

    def __init__(self, options: Mapping[str, Any], data: Dataset, scale_out: ScaleOut) -> None:
        self.options, self.data, self.scale_out = options, data, scale_out
        settings = {"steps": options["steps"], "text": data.name}
        self.key = make_key("characters", settings, data)
        self.folder = folder_of(options["resume_dir"], self.key)
        self.names = [n for n in CONTENDERS if not options["only"] or n in options["only"]]

    def rows(self, jobs: Sequence[Row]) -> list[Row] | None:
        found = self.scale_out.rows(jobs, trained, key=self.key, folder=self.folder)
        return None if found is None else list(chain.from_iterable(found))

    def named(self) -> None:
        """A list, or a single job."""
        entries = [(name, self.options) for name in self.names]
        self.rows(jobs_so_far(entries, search_jobs, final_jobs, key=self.key, folder=self.folder))

    def all(self, out: Path) -> None:
        rows: list[Row] = []
        for name in self.names:
            search: list[Row] = []
            while jobs := search_jobs(name, self.options, search):
                search += self.rows(jobs) or []
            rows += [*search, *(self.rows(final_jobs(name, self.options, search)) or [])]
            print(_said(summarize(rows)[-1]), flush=True)
        rows += [*summarize(rows), *self.doctor(rows)]
        measurement.write(out, _record(self.options, self.data, rows))
        shutil.rmtree(self.folder, ignore_errors=True)  # its rows are in the file
        print(f"written to {out}")

    def doctor(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Of a model that is trained once more, at the chosen rate, for a tenth of the steps."""
        for name in (n for n in EXAMINED if n in self.names):
            lr = next(r["lr"] for r in rows if (r["part"], r["name"]) == ("final", name))
            steps = max(self.options["steps"] // 10, 1)
            with threads(1):
                *_, (_, net) = steps_of(name, self.data, lr, SEARCH_SEED, steps)
                yield examined(net, self.data)


def _said(row: Mapping[str, Any]) -> str:
    error = "" if row["se"] is None else f" +- {row['se']:.4f}"
    zeros = "" if row["zeros"] is None else f", zeros {row['zeros']:.3f}"
    return f"{row['name']:16} lr {row['lr']:<8g} {row['mean']:.4f}{error} bits{zeros}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.characters",
        description=(__doc__ or "").split("\n")[0],
    )
    add_option(parser, "text", "", "a UTF-8 file in place of the book's prose", metavar="FILE")
    parser.add_argument(
        "--only", nargs="+", choices=[*CONTENDERS], metavar="NAME",
        help=f"which contenders are trained, of {', '.join(CONTENDERS)} (default: all)",
    )  # fmt: skip
    add_option(parser, "steps", STEPS, f"number of steps of a training, {BATCH} characters each")
    add_option(parser, "seeds", SEEDS, "number of runs of each contender at its chosen rate")
    add_out(parser, "runs/characters.json")
    add_resume_dir(parser)
    add_scale_out(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = vars(parser.parse_args(argv))
    options["only"] = tuple(options["only"] or ())
    out = options["out"] or Path("runs") / "characters.json"
    scale_out = ScaleOut(parser, options, argv)
    with refusing(parser, RuntimeError, ValueError):
        check_count("--steps", options["steps"])
        check_count("--seeds", options["seeds"])
        measurement.check_writable(out)
        data = read_text(options["text"])
        run = _Run(options, data, scale_out)
    if scale_out.list or scale_out.job is not None:
        run.named()
    else:
        run.all(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
