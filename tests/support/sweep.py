"""A small experiment that is a sweep; workers import it. Its jobs do what their settings say."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from sbnlib import SBN, Logistic
from sbnlib.experiments.command import add_resume_dir
from sbnlib.experiments.jobs import ScaleOut, add_scale_out
from sbnlib.experiments.training import generator, linear

Row = dict[str, Any]


class TwoArguments(Exception):
    """As many libraries have them: it can be pickled, and not read back."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def work(marks: str, job: Mapping[str, Any]) -> list[Row]:
    """Leave a mark that the job was begun, do what it says, and train a small network."""
    before = begun(marks, job)
    Path(marks, f"{job['does']}-{job['k']}-{uuid4().hex}").touch()
    while job.get("beside") and not begun(marks, {"does": "waits", "k": 1}):
        time.sleep(0.01)
    if job["does"] == "dies" or (job["does"] == "dies_once" and before == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if job["does"] == "fails":
        raise ZeroDivisionError(f"no {job['k']}")
    if job["does"] == "fails_oddly":
        raise TwoArguments("this", "that")
    while job["does"] == "waits" and begun(marks, {"does": "dies", "k": 0}) < job["deaths"]:
        time.sleep(0.01)
    square = {"k": job["k"], "square": job["k"] ** 2, "threads": torch.get_num_threads()}
    return [square, {"weights": trained(job["k"])}]


def begun(marks: str, job: Mapping[str, Any]) -> int:
    """How many times a job was begun."""
    return len(list(Path(marks).glob(f"{job['does']}-{job['k']}-*")))


def trained(seed: int) -> list[float]:
    """Weights after ten steps along the straight-through gradient of a small network.

    By hand: the first step of an optimizer of torch imports its compiler, a second in each worker.
    """
    draw = generator("cpu", "sweep", seed=seed)
    net = SBN(linear(40, 30, 3.0, draw, torch.float32), linear(30, 1, 3.0, draw, torch.float32),
              noise=Logistic())  # fmt: skip
    inputs = torch.rand(200, 40, generator=draw) - 0.5
    for _ in range(10):
        net.zero_grad()
        (net(inputs, generator=draw)[..., 0] - inputs.sum(-1)).square().mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    return net.layers[0].weight[0].tolist()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sweep")
    parser.add_argument("--ks", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--marks", required=True)
    add_resume_dir(parser)
    add_scale_out(parser)
    options = vars(parser.parse_args(argv))
    scale_out = ScaleOut(parser, options, argv)
    found = scale_out.rows(
        [{"k": k, "does": "works"} for k in options["ks"]],
        partial(work, options["marks"]),
        key={"experiment": "sweep"},
        folder=options["resume_dir"],
    )
    if found is not None:
        print([rows[0]["square"] for rows in found])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
