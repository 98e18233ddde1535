r"""How deep a stochastic binary network can be: accuracy over depth and scale of the noise.

    python -m sbnlib.experiments.how_deep --part predictions         what the law says, before a run
    python -m sbnlib.experiments.how_deep --part grid --workers 2    and so on, one file a part

Networks as in ``sbnlib.experiments.deep``: at the start, pre-activations are N(0, 1) over the
units, and a noise is told by its scale relative to that at which straight-through's gain is 1. Each
is trained by Adam with a cosine schedule at every learning rate, from several seeds; the rate is
chosen by mean validation accuracy, and the test accuracies are those of that rate.

The parts: ``grid`` (four noises, straight-through and ZGR, with and without batch norm), ``widths``
(32, 128, and residual networks, at depth 16), ``noises`` (seven noises at gain 1 over depths),
``rescaled`` (slopes multiplied so that the gain is 1), ``cures`` (ZGR and what may mend it),
``held-out`` (Laplace noise, and width 96), ``fashion`` (width 256 on 4 000 images of Fashion-MNIST
instead of the digits). The law is fitted to ``grid`` and ``widths`` alone and
then asked for what was held out.
"""

from __future__ import annotations

import argparse
import functools
import math
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbnlib import data as datasets
from sbnlib.data import Dataset
from sbnlib.experiments import measurement
from sbnlib.experiments.cache import Key, Row, folder_of, make_key
from sbnlib.experiments.classify import evaluate
from sbnlib.experiments.command import add_option, add_out, add_resume_dir, refusing
from sbnlib.experiments.deep import Deep, centred
from sbnlib.experiments.jobs import ScaleOut, add_scale_out
from sbnlib.experiments.protocol import mean_se
from sbnlib.experiments.training import Recipe, Training, fit, generator, threads
from sbnlib.extras import extra

__all__ = ["PARTS", "fitted", "law", "main", "predictions", "trained"]

#: Length of a training and size of a step.
EPOCHS, BATCH = 25, 50
#: Learning rates, of which each network gets the best by validation.
RATES = (0.003, 0.01, 0.03)
#: Scales of the noise, relative to that at which straight-through's gain is 1.
SCALES = (4.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.25)
DEPTHS = (2, 4, 8, 16)
NOISES = ("Logistic", "Gaussian", "Triangular", "Uniform")
HEAVY = ("Cauchy", "FastSigmoid")
DIGITS = "digits"

Settings = dict[str, Any]


# What is trained --------------------------------------------------------------------------------


def _each(seeds: int, **axes: Sequence[Any]) -> Iterator[Settings]:
    """Every combination of the values of the axes."""
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True)) | {"seeds": seeds}


def _grid() -> Iterator[Settings]:
    yield from _each(
        5, estimator=("straight_through", "zgr"), norm=("batch", "none"), noise=NOISES,
        depth=DEPTHS, relative_scale=SCALES,
    )  # fmt: skip


def _widths() -> Iterator[Settings]:
    at_16: dict[str, Sequence[Any]] = {"depth": (16,), "relative_scale": SCALES}
    at_16 |= {"noise": ("Logistic", "Uniform")}
    yield from _each(5, width=(32, 128), **at_16)
    yield from _each(5, residual=(True,), **at_16)


def _noises() -> Iterator[Settings]:
    every = (*NOISES, *HEAVY, "Laplace")
    yield from _each(10, noise=every, depth=(2, 3, 4, 6, 8, 12, 16, 24))


def _rescaled() -> Iterator[Settings]:
    yield from _each(
        10, estimator=("straight_through", "straight_through_rescaled"), noise=("Logistic",),
        depth=(12,), relative_scale=(4.0, 2.0, 0.5, 0.25),
    )  # fmt: skip


def _cures() -> Iterator[Settings]:
    every = ("straight_through", "zgr", "zgr_clipped_2", "zgr_clipped_4", "zgr_capped_2",
             "zgr_capped_4", "line_tau_1", "line_tau_5")  # fmt: skip
    yield from _each(
        10, estimator=every, noise=("Uniform", "Triangular", "Logistic"), depth=(8,),
    )  # fmt: skip


def _held_out() -> Iterator[Settings]:
    yield from _each(5, noise=("Laplace",), depth=DEPTHS, relative_scale=SCALES)
    yield from _each(5, width=(96,), noise=NOISES, depth=DEPTHS, relative_scale=SCALES)


def _fashion() -> Iterator[Settings]:
    yield from _each(
        3, data=("fashion-mnist-4000",), width=(256,), depth=DEPTHS,
        relative_scale=(4.0, 2.0, 1.0, 0.5, 0.25),
    )  # fmt: skip


PARTS = {
    "grid": _grid,
    "widths": _widths,
    "noises": _noises,
    "rescaled": _rescaled,
    "cures": _cures,
    "held-out": _held_out,
    "fashion": _fashion,
}


@functools.cache
def _load(name: str) -> Dataset:
    return centred(datasets.load(name))


def trained(settings: Mapping[str, Any]) -> list[Row]:
    """The row of one network: what it is, the rate that was chosen, its test accuracies.

    ``one``, ``ten`` and ``sign`` hold an accuracy a seed, of one sample (the mean over ten), of the
    class probabilities averaged over ten samples, and of every unit in its most probable state.
    Batch norm keeps the statistics of training. ``validation`` has the mean of each rate.

    Args:
        settings: the fields of a :class:`Deep`, ``seeds``, how many, and ``data``, the name of the
            data set, which is the digits where it is missing.
    """
    with extra("experiments"):
        from lightning_fabric import Fabric

    own = dict(settings)
    seeds, name = own.pop("seeds"), own.pop("data", DIGITS)
    fabric, data = Fabric(accelerator="cpu", devices=1), _load(name)
    deep, runs = Deep(**own), list(product(RATES, range(seeds)))
    trainings = [_training(deep, data, lr, seed) for lr, seed in runs]
    with threads(1):
        fit(fabric, trainings, data.train)
        found = [_accuracies(t, data) for t in trainings]
    by_rate = {
        lr: [f for f, (rate, _) in zip(found, runs, strict=True) if rate == lr] for lr in RATES
    }
    validation = {lr: statistics.fmean(v for v, _ in of) for lr, of in by_rate.items()}
    best = max(RATES, key=lambda lr: validation[lr])
    tests = {name: [test[name] for _, test in by_rate[best]] for name in ("one", "ten", "sign")}
    row = {**vars(deep), **deep.numbers, "data": name, "lr": best}
    return [row | {"validation": [validation[lr] for lr in RATES]} | tests]


def _training(deep: Deep, data: Dataset, lr: float, seed: int) -> Training:
    model = deep.build(data, seed)
    recipe = Recipe(seed, EPOCHS, BATCH, contender="deep")
    return Training(model, [torch.optim.Adam(model.parameters(), lr=lr)], recipe)


def _accuracies(training: Training, data: Dataset) -> tuple[float, dict[str, float]]:
    """Validation accuracy of ten samples, and the test accuracy of each prediction."""
    draw = generator("cpu", "deep evaluation", seed=training.recipe.seed)
    training.model.eval()
    validation, _ = evaluate(training.model, "sbn", data.validation, draw)
    test, _ = evaluate(training.model, "sbn", data.test, draw)
    return validation["ten"], test


# What is predicted ------------------------------------------------------------------------------


def predictions() -> list[Row]:
    """What the law of depth says of these trainings; nothing in it comes from one of them."""
    at_one = {noise: Deep(2, noise=noise).numbers["overlap"] for noise in (*NOISES, *HEAVY)}
    laplace = Deep(2, noise="Laplace").numbers["overlap"]
    ratio = math.log(at_one["Uniform"]) / math.log(at_one["FastSigmoid"])
    return [
        {
            "name": "order at gain 1",
            "says": "at gain 1 the accuracy in depth orders noises by overlap, the higher the "
            "better; those within .02 of each other are not told apart",
            "overlap": at_one | {"Laplace": laplace},
        },
        {
            "name": "rescaled slopes",
            "says": "multiplying every slope by one number changes nothing under Adam",
            "difference": 0.0,
        },
        {
            "name": "failure depth",
            "says": "the depth at which the accuracy at gain 1 falls to .55 goes like 1/ln(1/s) "
            "with the overlap s: that of fast sigmoid over that of uniform noise is",
            "ratio": ratio,
        },
        {
            "name": "best gain",
            "says": "at depths 8 and 16 the best gain at the start lies above 1, for each of the "
            "four noises of the grid",
            "above": 1.0,
        },
        {
            "name": "held out",
            "says": "for straight-through with batch norm, depth L, width n, overlap s and gain G, "
            "accuracy = .1 + (top - .1)/(1 + exp(-(start + wide ln(n/64) - rate L D))), "
            "D = ln(max(G/training, 1)/s); its five numbers, fitted by least squares to the parts "
            "grid and widths (no residual networks), give the accuracies of Laplace noise and of "
            "width 96 with a mean absolute error of at most",
            "error": 0.05,
        },
    ]


def law(of: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The accuracies that the law gives: the fifth prediction's formula.

    Args:
        of: its five numbers: top, start, wide, rate, training.
        rows: networks, of which depth, width, overlap and gain are read.
    """
    top, start, wide, rate, training = of
    depth, width, s, g = (
        np.array([row[name] for row in rows]) for name in ("depth", "width", "overlap", "gain")
    )
    distance = np.log(np.maximum(g / training, 1) / s)
    inside = start + wide * np.log(width / 64) - rate * depth * distance
    return 0.1 + (top - 0.1) / (1 + np.exp(-inside))


def fitted(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The law's five numbers, by least squares to the mean ten-sample accuracies of the rows."""
    with extra("experiments"):
        from scipy.optimize import least_squares

    found = np.array([statistics.fmean(row["ten"]) for row in rows])
    start = [0.98, 5.0, 1.0, 0.7, 1.5]
    bounds = ([0.5, -20, -10, 0, 0.1], [1, 50, 10, 10, 10])
    return least_squares(lambda of: law(of, rows) - found, start, bounds=bounds).x


# The measurement --------------------------------------------------------------------------------


def _rows(part: str, scale_out: ScaleOut, key: Key, folder: Path) -> list[Row] | None:
    """The rows of a part; None where no more than a list or a single one was asked for."""
    found = scale_out.rows(list(PARTS[part]()), trained, key=key, folder=folder)
    return None if found is None else list(chain.from_iterable(found))


def _data(part: str) -> str:
    """The name of the data set of a part."""
    first: Settings = next(PARTS[part](), {}) if part in PARTS else {}
    return str(first.get("data", DIGITS))


def _record(part: str, rows: Sequence[Row]) -> Row:
    with threads(1):
        device = measurement.describe_device()
    most = max((len(row.get("ten", ())) for row in rows), default=0)
    return measurement.record(
        kind="how deep", command=f"python -m sbnlib.experiments.how_deep --part {part}",
        device=device, seeds=range(most), rows=[{"part": part} | dict(row) for row in rows],
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.how_deep", description=(__doc__ or "").split("\n")[0]
    )
    words = "what is trained, or what the law says of it before a run"
    add_option(parser, "part", "predictions", words, choices=["predictions", *PARTS])
    add_out(parser, "runs/how-deep-PART.json")
    add_resume_dir(parser)
    add_scale_out(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = vars(parser.parse_args(argv))
    part = options["part"]
    out = options["out"] or Path("runs") / f"how-deep-{part}.json"
    scale_out = ScaleOut(parser, options, argv)
    with refusing(parser, RuntimeError, ValueError):
        measurement.check_writable(out)
        key = make_key(f"how-deep-{part}", {}, _load(_data(part)))
    folder = folder_of(options["resume_dir"], key)
    rows = predictions() if part == "predictions" else _rows(part, scale_out, key, folder)
    if rows is not None:
        measurement.write(out, _record(part, rows))
        shutil.rmtree(folder, ignore_errors=True)  # its rows are in the file
        print(*map(_said, rows), f"written to {out}", sep="\n")
    return 0


def _said(row: Mapping[str, Any]) -> str:
    if "says" in row:
        return f"{row['name']}: {row['says']}"
    mean, se = mean_se(row["ten"])
    error = "" if se is None else f" +- {se:.3f}"
    net = "{noise:12}{estimator:26}{norm:6}{width:4} x {depth:2}".format(**row)
    return f"{net} scale {row['relative_scale']:<4g} gain {row['gain']:6.3f}: {mean:.3f}{error}"


if __name__ == "__main__":
    raise SystemExit(main())
