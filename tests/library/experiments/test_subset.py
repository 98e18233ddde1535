"""The file of fashion-mnist-4000: chosen from the whole data set, and the same bytes each time."""

import gzip
import struct

import numpy as np
import pytest
import torch

from sbnlib import data
from sbnlib.experiments import subset

needs_whole = pytest.mark.skipif(
    not data.DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist not installed"
)


@pytest.fixture(autouse=True)
def debian(monkeypatch):
    monkeypatch.delenv("SBN_DATA", raising=False)


def published(name: str) -> np.ndarray:
    """An idx file of Debian's package, read without sbnlib."""
    content = gzip.decompress((data.DEBIAN_FOLDER / f"{name}-ubyte.gz").read_bytes())
    shape = struct.unpack_from(f">{content[3]}i", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def first_of_each_class(labels: np.ndarray, each: int) -> list[int]:
    """Counted one by one, in the order of torch.rand with seed 0."""
    torch.manual_seed(0)
    drawn, taken, chosen = torch.rand(len(labels), dtype=torch.float64).tolist(), [0] * 10, []
    for k in sorted(range(len(labels)), key=drawn.__getitem__):
        taken[labels[k]] += 1
        if taken[labels[k]] <= each:
            chosen.append(k)
    return chosen


@needs_whole
@pytest.mark.slow
def test_the_part_is_of_the_published_images():
    images, labels = published("train-images-idx3"), published("train-labels-idx1")
    sources = {
        "train": (images[:50_000], labels[:50_000], 240),
        "validation": (images[50_000:], labels[50_000:], 60),
        "test": (published("t10k-images-idx3"), published("t10k-labels-idx1"), 100),
    }
    part = data.load("fashion-mnist-4000")
    for name, (images, labels, each) in sources.items():
        chosen, split = first_of_each_class(labels, each), getattr(part, name)
        assert split.labels.tolist() == labels[chosen].tolist()
        pixels = ((split.inputs.double() + 1) * 127.5).reshape(-1, 28, 28).numpy()
        assert np.abs(pixels - images[chosen]).max() < 1e-4


@needs_whole
@pytest.mark.slow
def test_the_command_makes_the_file_again(tmp_path, capsys):
    made = tmp_path / "new" / "part.bz2"
    assert subset.main(["--out", str(made)]) == 0
    assert capsys.readouterr().out == f"written to {made}\n"
    assert made.read_bytes() == data.SUBSET_FILE.read_bytes()


def small(labels: list[int]) -> data.Split:
    """Image k, of 2 x 3 pixels, has the pixels 6 k, ..., 6 k + 5."""
    pixels = torch.arange(6 * len(labels)).reshape(-1, 6)
    return data.Split(pixels / 127.5 - 1, torch.tensor(labels))


def test_records_are_a_label_and_the_columns(monkeypatch):
    monkeypatch.setattr(data, "SUBSET_EACH", {"train": 2, "test": 1})
    splits = small([0, 0]), small([]), small([0])
    made = subset.content(data.Dataset("small", (2, 3), 1, *splits))
    columns = [0, 3, 1, 4, 2, 5]
    assert made[14:] == bytes([0, *columns])
    first, second = bytes([0, *columns]), bytes([0, *(6 + k for k in columns)])
    assert made[:14] in (first + second, second + first)


def test_each_class_is_chosen_as_often_and_the_seed_decides():
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 1, 0, 2, 0] * 20)
    chosen = subset.choose(labels, 5)
    assert labels[chosen].bincount().tolist() == [5, 5, 5]
    assert len(set(chosen.tolist())) == 15
    assert torch.equal(chosen, subset.choose(labels, 5))
    assert chosen.tolist() != subset.choose(labels, 5, seed=1).tolist()
    assert chosen.tolist() == first_of_each_class(labels.numpy(), 5)


def test_a_class_with_too_few_images_is_refused():
    with pytest.raises(ValueError, match="each: got 3, must be at most 2, the images of a class"):
        subset.choose(torch.tensor([0, 0, 0, 1, 1]), 3)


@pytest.fixture
def wrong(monkeypatch):
    """A whole data set that is not Fashion-MNIST."""
    splits = [small([k % 10 for k in range(10)]) for _ in range(3)]
    monkeypatch.setattr(data, "load", lambda name: data.Dataset(name, (2, 3), 10, *splits))
    monkeypatch.setattr(data, "SUBSET_EACH", dict.fromkeys(("train", "validation", "test"), 1))


def refused(options: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        subset.main(options)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_other_images_are_not_written(wrong, tmp_path, capsys):
    said = refused(["--out", str(tmp_path / "part.bz2")], capsys)
    assert f"expected content with sha256 {data.SUBSET_SHA256}" in said
    assert not list(tmp_path.iterdir())


def test_an_out_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda name: pytest.fail("it worked"))
    assert f"{tmp_path} cannot be written: it is no file" in refused(
        ["--out", str(tmp_path)], capsys
    )


def test_a_missing_data_set_is_said_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SBN_DATA", str(tmp_path))
    said = refused(["--out", str(tmp_path / "part.bz2")], capsys)
    assert "train-images-idx3-ubyte.gz is not there" in said
