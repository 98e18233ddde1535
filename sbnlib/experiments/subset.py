"""Make the file of the data set fashion-mnist-4000 from the whole of Fashion-MNIST.

    python -m sbnlib.experiments.subset --out FILE

Each split is chosen from the split of ``load("fashion-mnist")`` with the same name: of every class
the first 240 (train), 60 (validation) or 100 (test) images in an order drawn with seed 0. So no
image trained on here is one that is held out there. The file is sbnlib's own, byte for byte:
nothing but the images, their labels and their order goes into it.
"""

from __future__ import annotations

import argparse
import bz2
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sbnlib import data as datasets
from sbnlib.command import refusing
from sbnlib.data import Dataset, Split, check_hash
from sbnlib.files import check_writable, write_whole

__all__ = ["choose", "content"]


def choose(labels: Tensor, each: int, seed: int = 0) -> Tensor:
    """The indices of ``each`` images of every class, in the order drawn with ``seed``.

    The order is that of :func:`sbnlib.data.stratified_split`.

    Raises:
        ValueError: a class has fewer images.
    """
    order = datasets.drawn_order(len(labels), seed)
    of_class = torch.nn.functional.one_hot(labels[order])  # (N, classes)
    if (fewest := int(of_class.sum(0).min())) < each:
        raise ValueError(f"each: got {each}, must be at most {fewest}, the images of a class")
    place = (of_class.cumsum(0) * of_class).sum(1)  # k for the k-th image of its class
    return order[place <= each]


def content(data: Dataset) -> bytes:
    """What the file holds, unpacked: records of a label and the pixels, column by column."""
    return b"".join(
        _records(split, choose(split.labels, each), data.image_shape)
        for name, each in datasets.SUBSET_EACH.items()
        for split in [getattr(data, name)]
    )


def _records(split: Split, chosen: Tensor, shape: tuple[int, ...]) -> bytes:
    pixels = split.inputs[chosen].add(1).mul(127.5).round().to(torch.uint8)
    columns = pixels.reshape(-1, *shape).mT.flatten(1)
    labels = split.labels[chosen].to(torch.uint8).unsqueeze(1)
    return torch.cat([labels, columns], dim=1).numpy().tobytes()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.subset", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=datasets.SUBSET_FILE,
        help="the file to write (default: the one that sbnlib reads)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    out = parser.parse_args(argv).out
    with refusing(parser, ValueError, datasets.DataError):
        check_writable(out)
        made = content(datasets.load("fashion-mnist"))
        check_hash(made, datasets.SUBSET_SHA256, "the images chosen", "Use a released torch.")
    write_whole(out, bz2.compress(made))
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
