"""Data sets: scikit-learn's digits (the default), Fashion-MNIST, CIFAR-10, the book's prose.

    load("digits")              1797 images of 8 x 8 pixels, shipped inside scikit-learn
    load("fashion-mnist")       70 000 images of 28 x 28 pixels
    load("fashion-mnist-4000")  4000 of them, shipped inside sbnlib
    load("cifar-10")            60 000 colour images of 32 x 32 pixels, from a folder of yours
    prose()                     this book's own prose, 557 000 characters, shipped inside sbnlib

Fashion-MNIST is read from the first of these that applies:

1. the folder named by the environment variable SBN_DATA, if it is set;
2. the folder of Debian's package dataset-fashion-mnist, if it exists;
3. a download from the authors' address, kept in the user's cache folder.

CIFAR-10 has one source, the folder in SBN_DATA, and there the first of these that is there: the
folder cifar-10-batches-bin, the archive cifar-10-binary.tar.gz, the six files themselves. It is not
downloaded. One folder may hold it and Fashion-MNIST.

The choice is made once, from what is set or installed. A missing or damaged file is an error; it
never makes the next source, or another data set, step in.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import math
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbnlib.extras import extra

__all__ = ["DataError", "Dataset", "Split", "load", "prose"]


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
        image_shape: ``split.inputs.reshape(-1, *image_shape)`` gives the pictures back; (height,
            width) where they are grey, (channels, height, width) where they have colours.
        num_classes: labels are 0 to num_classes - 1.
        train, validation, test: the splits.
    """

    name: str
    image_shape: tuple[int, ...]
    num_classes: int
    train: Split
    validation: Split
    test: Split


def load(name: str) -> Dataset:
    """The data set ``name``, split into train, validation and test.

    Pixels are scaled linearly to [-1, 1] (black = -1) and flattened, colours as (channels, height,
    width). The splits are fixed and need no seed:

    - ``"digits"``: 1078 / 360 / 359 images, stratified (see ``stratified_split``);
    - ``"fashion-mnist"``: 50 000 / 10 000 / 10 000, the published test set and the last 10 000
      training images for validation (Xiao, Rasul and Vollgraf 2017);
    - ``"fashion-mnist-4000"``: 2400 / 600 / 1000, as many of each class, each split from the one of
      ``"fashion-mnist"`` with its name (see ``sbnlib.experiments.subset``);
    - ``"cifar-10"``: 45 000 / 5000 / 10 000, the published test set and the last 5000 training
      images for validation (Krizhevsky 2009).

    The content of every file is compared with its sha256, which is the whole of the check: with it
    the number of images, their labels and the number in each class are those published.

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
    order = drawn_order(len(labels), seed)
    part = torch.empty_like(order)
    for c in labels.unique():
        members = (labels[order] == c).nonzero().squeeze(1)
        ends = [round(len(members) * sum(shares[: k + 1])) for k in range(len(shares))]
        for k, chunk in enumerate(members.tensor_split(ends)):
            part[chunk] = k
    return [order[part == k] for k in range(len(shares) + 1)]


def drawn_order(count: int, seed: int) -> Tensor:
    """The numbers below ``count`` in the order of ``torch.rand``, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64).argsort()


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


# A part of Fashion-MNIST --------------------------------------------------------------------------

#: The one file in which 4000 images are kept: bzip2 of records of a label and 784 pixels, column by
#: column, which packs 5 % smaller than row by row. ``sbnlib.experiments.subset`` makes it.
SUBSET_FILE = Path(__file__).parent / "datasets" / "fashion-mnist-4000.bz2"
SUBSET_SHA256 = "65fa86d9337c4f98e28936f418ce5ce6fe45dfdb0c34db1d317967df99223eb2"
SUBSET_EACH = {"train": 240, "validation": 60, "test": 100}  # images of a class


def _fashion_mnist_4000() -> Dataset:
    content = _shipped(SUBSET_FILE, SUBSET_SHA256)
    columns, labels = _records(content, (28, 28))
    whole = _split(columns.swapaxes(1, 2), labels)
    sizes = [10 * each for each in SUBSET_EACH.values()]
    parts = map(Split, whole.inputs.split(sizes), whole.labels.split(sizes))
    return Dataset("fashion-mnist-4000", (28, 28), 10, *parts)


def _records(content: bytes, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, *shape) and labels (N,) from N records: a byte for the label, one for a pixel."""
    table = np.frombuffer(bytearray(content), np.uint8).reshape(-1, 1 + math.prod(shape))
    return table[:, 1:].reshape(-1, *shape), table[:, 0]


def _shipped(path: Path, sha256: str) -> bytes:
    """What is in a file of the package, checked."""
    advice = "It is a part of sbnlib: install sbnlib anew."
    try:
        content = bz2.decompress(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: missing, damaged or cut off ({error}). {advice}") from error
    check_hash(content, sha256, str(path), advice)
    return content


# The book's prose ---------------------------------------------------------------------------------

#: bzip2 of a JSON object; the repository's book/tools/prose.py made it.
PROSE_FILE = Path(__file__).parent / "datasets" / "prose.bz2"
PROSE_SHA256 = "1c6462424a7dc991ddf463532787323fc567e35c75c936d497f71787396a1ebd"


def prose() -> dict[str, str]:
    """The prose of chapters 1 to 20 of this book, as it was when chapter 21 was written.

    Returns:
        ``"train"`` (449 303 characters), ``"validation"`` (54 732) and ``"test"`` (52 690): in the
        order of the book, blocks of whole paragraphs of at least 2000 characters, of ten the fifth
        for validation and the tenth for test. A paragraph is a line. The characters are printable
        ASCII; an inline formula is an X, inline code a Y, the number of an equation or a figure an
        N; code, tables and displayed formulas are left out.

    Raises:
        DataError: the file is missing or does not have the expected content.

    The text is under CC BY 4.0.
    """
    parts: dict[str, str] = json.loads(_shipped(PROSE_FILE, PROSE_SHA256))
    return parts


# CIFAR-10 ----------------------------------------------------------------------------------------


# The files of the binary version, which holds no pickles. Their hashes are those that torchvision
# for Ruby checks before it reads what the authors publish; they were not tried on the files here.
CIFAR_FILES = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_HELD_OUT = 5_000
_CIFAR_ADVICE = (
    f"Get the binary version of CIFAR-10, {CIFAR_ARCHIVE} (not the Python version), from "
    "https://www.cs.toronto.edu/~kriz/cifar.html, put it or what is in it into a folder and name "
    "that folder in the environment variable SBN_DATA."
)


def _cifar_10() -> Dataset:
    folder = os.environ.get("SBN_DATA")
    if not folder:
        raise DataError(f"cifar-10: SBN_DATA is not set, and there is no download. {_CIFAR_ADVICE}")
    contents = _cifar_contents(Path(folder))
    images, labels = zip(*(_records(contents[n], (3, 32, 32)) for n in CIFAR_FILES), strict=True)
    whole = _split(np.concatenate(images[:-1]), np.concatenate(labels[:-1]))
    train = Split(whole.inputs[:-CIFAR_HELD_OUT], whole.labels[:-CIFAR_HELD_OUT])
    validation = Split(whole.inputs[-CIFAR_HELD_OUT:], whole.labels[-CIFAR_HELD_OUT:])
    return Dataset("cifar-10", (3, 32, 32), 10, train, validation, _split(images[-1], labels[-1]))


def _cifar_contents(folder: Path) -> dict[str, bytes]:
    """What is in the six files, from the one place in ``folder`` that is in use, checked."""
    archive = folder / CIFAR_ARCHIVE
    if (folder / CIFAR_FOLDER).is_dir():
        folder = folder / CIFAR_FOLDER
    elif archive.is_file():
        return _cifar_archive(archive)
    return {name: _cifar_file(folder / name) for name in CIFAR_FILES}


def _cifar_file(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {_CIFAR_ADVICE}") from error
    return _as_published(content, path.name, str(path))


def _cifar_archive(path: Path) -> dict[str, bytes]:
    """The members are taken by name, in one pass, and nothing is unpacked to the disk."""
    known = {f"{CIFAR_FOLDER}/{name}": name for name in CIFAR_FILES}
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = known.get(member.name) if member.isfile() else None
                if name and (stream := archive.extractfile(member)):
                    found[name] = _as_published(stream.read(), name, f"{path}: {member.name}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged or cut off ({error}). Delete it and fetch it anew. {_CIFAR_ADVICE}"
        ) from error
    if missing := [member for member, name in known.items() if name not in found]:
        raise DataError(f"{path}: has no {missing[0]}. {_CIFAR_ADVICE}")
    return found


def _as_published(content: bytes, name: str, what: str) -> bytes:
    advice = f"Delete the file and fetch it anew. {_CIFAR_ADVICE}"
    check_hash(content, CIFAR_FILES[name], what, advice)
    return content


# All of them -------------------------------------------------------------------------------------


def check_hash(content: bytes, expected: str, what: str, advice: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"{what}: expected content with sha256 {expected}, found {found} "
            f"({len(content)} bytes); it was not used. {advice}"
        )


DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "fashion-mnist-4000": _fashion_mnist_4000,
    "cifar-10": _cifar_10,
}
