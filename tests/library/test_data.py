"""Data: fixed splits, checked content, one source and no way round it."""

import gzip
import hashlib
import http.server
import struct
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sbnlib import data

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder with a small data set in Fashion-MNIST's form, known to the loader by its hashes.

    Training image k (k = 0..11) has all pixels 10 k; the last four are held out.
    """
    folder = tmp_path / "source"
    folder.mkdir()
    train = np.repeat(np.arange(12, dtype=np.uint8) * 10, 6).reshape(12, 2, 3)
    test = np.full((5, 2, 3), 255, np.uint8)
    arrays = [train, np.arange(12, dtype=np.uint8) % 10, test, np.arange(5, dtype=np.uint8)]
    files = {}
    for name, array in zip(data.FASHION_FILES, arrays, strict=True):
        content, packed = idx(array), gzip.compress(idx(array), mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        files[name] = data._File(
            hashlib.sha256(content).hexdigest(), hashlib.md5(packed).hexdigest()
        )
    monkeypatch.setattr(data, "FASHION_FILES", files)
    monkeypatch.setattr(data, "HELD_OUT", 4)
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "no-such-folder")
    monkeypatch.setenv("SBN_DATA", str(folder))
    return folder


@pytest.fixture
def no_download(monkeypatch):
    def refuse(name):
        raise AssertionError(f"tried to download {name}")

    monkeypatch.setattr(data, "_download", refuse)


# Digits ------------------------------------------------------------------------------------------


def test_digits_splits_are_disjoint_complete_and_stratified():
    from sklearn.datasets import load_digits

    d = data.load("digits")
    parts = [d.train, d.validation, d.test]
    assert [len(p) for p in parts] == [1078, 360, 359]
    together = torch.cat([p.inputs for p in parts])
    original = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    assert sorted(together.tolist()) == sorted(original.tolist())
    for part in parts:
        counts = part.labels.bincount(minlength=10)
        assert (counts / len(part) - 0.1).abs().max() < 0.005
        assert part.inputs.dtype == torch.float32 and part.labels.dtype == torch.int64
    assert together.min() == -1 and together.max() == 1


def test_digits_split_never_moves():
    d = data.load("digits")
    assert d.test.labels[:10].tolist() == [4, 2, 0, 2, 4, 1, 3, 2, 9, 6]
    assert torch.equal(d.train.inputs, data.load("digits").train.inputs)


def test_digits_images_keep_their_labels():
    """A nearest-neighbour classifier works: images and labels were not shuffled apart."""
    d = data.load("digits")
    nearest = torch.cdist(d.test.inputs, d.train.inputs).argmin(1)
    assert (d.train.labels[nearest] == d.test.labels).float().mean() > 0.95


def test_digits_with_other_content_are_refused(monkeypatch):
    monkeypatch.setattr(data, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(data.DataError, match="digits.*expected.*0000.*found"):
        data.load("digits")


@pytest.mark.parametrize("name", ["mnist", "", "Digits", None, 3, ["digits"]])
def test_unknown_data_set_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="known data sets are digits, fashion-mnist"):
        data.load(name)


# Fashion-MNIST -----------------------------------------------------------------------------------


def test_fashion_from_folder(fashion, no_download):
    d = data.load("fashion-mnist")
    assert (len(d.train), len(d.validation), len(d.test)) == (8, 4, 5)
    assert d.train.inputs.shape == (8, 6) and d.image_shape == (28, 28)
    expected = torch.arange(8, 12).float() * 10 / 127.5 - 1
    torch.testing.assert_close(d.validation.inputs[:, 0], expected)
    assert d.validation.labels.tolist() == [8, 9, 0, 1]
    assert (d.test.inputs == 1).all()


def test_plain_files_serve_as_well(fashion, no_download):
    packed = fashion / f"{IMAGES}.gz"
    (fashion / IMAGES).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert len(data.load("fashion-mnist").train) == 8


def test_files_packed_anew_are_the_same_files(fashion, no_download):
    path = fashion / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=5))
    assert len(data.load("fashion-mnist").train) == 8


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    plain = bytearray(gzip.decompress(content))
    plain[-1] ^= 1
    return gzip.compress(bytes(plain))


@pytest.mark.parametrize("damage", [cut, flip, lambda c: b"", lambda c: b"<html>not found</html>"])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_damaged_file_is_named_and_never_used(fashion, no_download, damage, name):
    path = fashion / f"{name}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError) as error:
        data.load("fashion-mnist")
    message = str(error.value)
    assert str(path) in message and data.FASHION_FILES[name].sha256 in message
    assert "SBN_DATA" in message and ("Delete" in message)


def test_missing_in_sbn_data_is_an_error_not_a_fallback(
    fashion, no_download, monkeypatch, tmp_path
):
    other = tmp_path / "debian"
    other.mkdir()
    for path in fashion.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(data, "DEBIAN_FOLDER", other)
    (fashion / f"{LABELS}.gz").unlink()
    with pytest.raises(data.DataError, match=f"{LABELS}.gz is not there.*SBN_DATA"):
        data.load("fashion-mnist")
    monkeypatch.setenv("SBN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match="nowhere"):
        data.load("fashion-mnist")


def test_debian_folder_is_used_when_sbn_data_is_not_set(fashion, no_download, monkeypatch):
    monkeypatch.delenv("SBN_DATA")
    monkeypatch.setattr(data, "DEBIAN_FOLDER", fashion)
    assert len(data.load("fashion-mnist").test) == 5
    (fashion / f"{IMAGES}.gz").unlink()
    with pytest.raises(data.DataError, match="Debian"):
        data.load("fashion-mnist")


@pytest.fixture
def server(fashion, monkeypatch, tmp_path):
    """The same files behind a loopback HTTP server, an empty cache, nothing set or installed."""
    pooch = pytest.importorskip("pooch")
    handler = partial(QuietHandler, directory=str(fashion))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.delenv("SBN_DATA")
    monkeypatch.setattr(data, "FASHION_URL", f"http://127.0.0.1:{httpd.server_port}/")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    yield httpd
    httpd.shutdown()
    httpd.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def cached_files(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*.gz"))


def test_download_shows_progress_and_is_kept(server, tmp_path, capfd):
    first = data.load("fashion-mnist")
    assert "100%" in capfd.readouterr().err
    assert cached_files(tmp_path) == sorted(f"{n}.gz" for n in data.FASHION_FILES)
    server.shutdown()  # the second time needs no server
    assert torch.equal(data.load("fashion-mnist").train.inputs, first.train.inputs)


@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_download_is_not_kept(server, fashion, tmp_path, damage):
    path = fashion / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=f"{IMAGES}.gz: not downloaded, nothing was kept"):
        data.load("fashion-mnist")
    assert cached_files(tmp_path) == []


def test_no_network_says_what_to_do(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(data.DataError, match="not downloaded.*dataset-fashion-mnist.*SBN_DATA"):
        data.load("fashion-mnist")


@pytest.mark.skipif(not data.DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist not installed")
def test_the_real_fashion_mnist(monkeypatch):
    monkeypatch.delenv("SBN_DATA", raising=False)
    d = data.load("fashion-mnist")
    assert [len(s) for s in (d.train, d.validation, d.test)] == [50_000, 10_000, 10_000]
    assert d.test.labels.bincount().tolist() == [1000] * 10
    assert d.train.inputs.aminmax() == (-1, 1)
    assert d.test.labels[:5].tolist() == [9, 2, 1, 1, 6]
