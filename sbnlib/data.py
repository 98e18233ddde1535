"""Data sets: scikit-learn's digits (embedded, the default) and Fashion-MNIST.

    load("digits")         1797 images of 8 x 8 pixels, shipped inside scikit-learn
    load("fashion-mnist")  70 000 images of 28 x 28 pixels

Fashion-MNIST is read from the first of these that applies:

1. the folder named by the environment variable SBN_DATA, if it is set;
2. the folder of Debian's package dataset-fashion-mnist, if it exists;
3. a download from the authors' address, kept in the user's cache folder.

The choice is made once, from what is set or installed. A missing or damaged file is an error; it
never makes the next source, or another data set, step in.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbnlib.extras import extra

__all__ = ["DataError", "Dataset", "Split", "load"]


def __dir__() -> list[str]:  # what completion offers
    return __all__


class DataError(RuntimeError):
    """A data file is missing, damaged or not the one expected; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """Images ``inputs`` (N, pixels), float32 in [-1, 1], and ``labels`` (N,), int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set in three fixed splits.

    Attributes:
        name: what :func:`load` was asked for.
        image_shape: ``split.inputs.reshape(-1, *image_shape)`` gives the pictures back.
        num_classes: labels are 0 to num_classes - 1.
        train, validation, test: the splits.
    """

    name: str
    image_shape: tuple[int, int]
    num_classes: int
    train: Split
    validation: Split
    test: Split


def load(name: str) -> Dataset:
    """The data set ``name``, split into train, validation and test.

    Pixels are scaled linearly to [-1, 1] (black background = -1) and flattened. The splits are
    fixed and need no seed:

    - ``"digits"``: 1078 / 360 / 359 images, stratified (see ``stratified_split``);
    - ``"fashion-mnist"``: 50 000 / 10 000 / 10 000, the published test set and the last 10 000
      training images for validation.

    Raises:
        ValueError: unknown name; the message lists the known ones.
        DataError: a file is missing or does not have the expected content.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"name: got {name!r}, known data sets are {', '.join(DATASETS)}")
    return DATASETS[name]()


# Digits ------------------------------------------------------------------------------------------

DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def _digits() -> Dataset:
    with extra("data"):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels, labels = bunch.data.astype(np.uint8), bunch.target.astype(np.uint8)
    check_hash(
        pixels.tobytes() + labels.tobytes(),
        DIGITS_SHA256,
        "scikit-learn's digits",
        "Install a released version of scikit-learn.",
    )
    target = torch.from_numpy(labels.astype(np.int64))
    inputs = torch.from_numpy(pixels).float() / 8 - 1
    parts = [Split(inputs[i], target[i]) for i in stratified_split(target, (0.2, 0.2))]
    test, validation, train = parts
    return Dataset("digits", (8, 8), 10, train, validation, test)


def stratified_split(labels: Tensor, shares: tuple[float, ...], seed: int = 0) -> list[Tensor]:
    """Index sets that hold ``shares`` of every class, and a last one with the rest.

    The order is that of ``torch.rand`` drawn in float64 with ``seed``, whose bits do not depend
    on the processor. Of a class with m members the first round(m * shares[0]) in that order go to
    the first set, those up to round(m * (shares[0] + shares[1])) to the second, and so on. Each
    set keeps that order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(labels), generator=generator, dtype=torch.float64).argsort()
    part = torch.empty_like(order)
    for c in labels.unique():
        members = (labels[order] == c).nonzero().squeeze(1)
        ends = [round(len(members) * sum(shares[: k + 1])) for k in range(len(shares))]
        for k, chunk in enumerate(members.tensor_split(ends)):
            part[chunk] = k
    return [order[part == k] for k in range(len(shares) + 1)]


# Fashion-MNIST -----------------------------------------------------------------------------------


# The hash of the unpacked content, so that one value serves every source: Debian packs the files
# anew, which changes the .gz but not what is in it. The md5 is the one the authors publish for
# their .gz; it checks a download before it is kept. The two agree: giving Debian's files back the
# time stamp and name of the original gzip header yields the published md5 for all four.
@dataclass(frozen=True)
class _File:
    sha256: str
    gz_md5: str


FASHION_FILES = {
    "train-images-idx3-ubyte": _File(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    ),
    "train-labels-idx1-ubyte": _File(
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "25c81989df183df01b3e8a0aad5dffbe",
    ),
    "t10k-images-idx3-ubyte": _File(
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "bef4ecab320f06d8554ea6380940ec79",
    ),
    "t10k-labels-idx1-ubyte": _File(
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
}
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HELD_OUT = 10_000
_ADVICE = (
    "Install Debian's package dataset-fashion-mnist, or put the four .gz files of "
    "https://github.com/zalandoresearch/fashion-mnist into a folder and name that folder "
    "in the environment variable SBN_DATA."
)


def _fashion_mnist() -> Dataset:
    locate = _source()
    arrays = {name: _read_idx(locate(name), file.sha256) for name, file in FASHION_FILES.items()}
    whole = _split(arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"])
    test = _split(arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"])
    train = Split(whole.inputs[:-HELD_OUT], whole.labels[:-HELD_OUT])
    validation = Split(whole.inputs[-HELD_OUT:], whole.labels[-HELD_OUT:])
    return Dataset("fashion-mnist", (28, 28), 10, train, validation, test)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    inputs = torch.from_numpy(images).flatten(1).float().div_(127.5).sub_(1)
    return Split(inputs, torch.from_numpy(labels.astype(np.int64)))


def _source() -> Callable[[str], Path]:
    """The one source in force, as a function from a file's name to its path."""
    folder = os.environ.get("SBN_DATA")
    if folder:
        return lambda name: _in_folder(Path(folder), name, "the folder in SBN_DATA")
    if DEBIAN_FOLDER.is_dir():
        return lambda name: _in_folder(DEBIAN_FOLDER, name, "Debian's dataset-fashion-mnist")
    return _download


def _in_folder(folder: Path, name: str, what: str) -> Path:
    """``name.gz`` or ``name`` in ``folder``; missing is an error, never a reason to look on."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{folder}: {name}.gz is not there ({what} is in use). {_ADVICE}")


def _download(name: str) -> Path:
    """``name.gz`` in the cache folder: fetched with a progress bar, kept only if its md5 fits."""
    with extra("data"):
        import pooch

    url = f"{FASHION_URL}{name}.gz"
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=f"md5:{FASHION_FILES[name].gz_md5}",
                fname=f"{name}.gz",
                path=pooch.os_cache("sbnlib") / "fashion-mnist",
                downloader=pooch.HTTPDownloader(progressbar=True),
            )
        )
    except (OSError, ValueError) as error:  # pooch: no network, bad status; or a wrong hash
        raise DataError(
            f"{url}: not downloaded, nothing was kept: {error}. Try again. {_ADVICE}"
        ) from error


def _read_idx(path: Path, sha256: str) -> np.ndarray:
    """The uint8 array in an idx file (plain or gzip), after its content passed the hash check."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged or cut off ({error}); expected a gzip file whose content "
            f"has sha256 {sha256}. Delete it and fetch it anew. {_ADVICE}"
        ) from error
    check_hash(content, sha256, str(path), f"Delete the file and fetch it anew. {_ADVICE}")
    # idx: two zero bytes, 8 = uint8, the number of axes, each axis as a big-endian int32
    axes = content[3]
    shape = np.frombuffer(content, ">i4", count=axes, offset=4)
    return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * axes).reshape(shape)


def check_hash(content: bytes, expected: str, what: str, advice: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"{what}: expected content with sha256 {expected}, found {found} "
            f"({len(content)} bytes); it was not used. {advice}"
        )


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": _digits, "fashion-mnist": _fashion_mnist}
