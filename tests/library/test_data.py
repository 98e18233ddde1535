"""Data: fixed splits, checked content, one source and no way round it."""

import bz2
import gzip
import hashlib
import http.server
import io
import struct
import sys
import tarfile
import threading
import zlib
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
    known = "digits, fashion-mnist, fashion-mnist-4000, cifar-10"
    with pytest.raises(ValueError, match=f"known data sets are {known}$"):
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


@pytest.mark.slow
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


# A part of Fashion-MNIST --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def part():
    return data.load("fashion-mnist-4000")


def test_the_part_needs_no_network_no_folder_and_no_extra(no_download, monkeypatch, tmp_path):
    monkeypatch.setenv("SBN_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "nowhere")
    for package in ("sklearn", "pooch"):
        monkeypatch.setitem(sys.modules, package, None)
    assert len(data.load("fashion-mnist-4000").train) == 2400


def test_the_part_has_as_many_images_of_each_class(part):
    assert part.name == "fashion-mnist-4000" and part.image_shape == (28, 28)
    for split, each in [(part.train, 240), (part.validation, 60), (part.test, 100)]:
        assert split.labels.bincount().tolist() == [each] * part.num_classes == [each] * 10
        assert split.inputs.shape == (10 * each, 784)
        assert split.inputs.dtype == torch.float32 and split.labels.dtype == torch.int64
        assert split.inputs.aminmax() == (-1, 1)


def test_no_image_of_the_part_is_there_twice(part):
    images = torch.cat([s.inputs for s in (part.train, part.validation, part.test)])
    assert len({image.numpy().tobytes() for image in images}) == 4000


def test_the_part_never_moves(part):
    assert part.train.labels[:10].tolist() == [2, 6, 5, 1, 4, 6, 9, 5, 7, 8]
    assert part.test.labels[:10].tolist() == [4, 6, 1, 6, 8, 9, 1, 2, 8, 4]


def test_the_images_of_the_part_keep_their_labels(part):
    """By nearest neighbour; guesses would be right on a tenth."""
    nearest = torch.cdist(part.test.inputs, part.train.inputs).argmin(1)
    assert (part.train.labels[nearest] == part.test.labels).float().mean() > 0.7


def test_the_images_of_the_part_stand_upright(part):
    """A pair of trousers (class 1) is taller than it is wide, a sandal (5) wider than tall."""
    lit = (part.train.inputs.reshape(-1, 28, 28) > -0.5).float()
    height, width = (lit.amax(axis).sum(1) for axis in (2, 1))
    taller = [(height - width)[part.train.labels == c].mean().item() for c in (1, 5)]
    assert taller[0] > 5 and taller[1] < -5


@pytest.mark.parametrize("damage", [cut, lambda c: b"", lambda c: b"PK" + c[2:], None])
def test_a_damaged_part_is_named_and_never_used(monkeypatch, tmp_path, damage):
    path = tmp_path / "part.bz2"
    if damage:
        path.write_bytes(damage(data.SUBSET_FILE.read_bytes()))
    monkeypatch.setattr(data, "SUBSET_FILE", path)
    with pytest.raises(data.DataError) as error:
        data.load("fashion-mnist-4000")
    assert str(path) in str(error.value) and "install sbnlib anew" in str(error.value)


def test_a_part_with_other_content_is_refused(monkeypatch, tmp_path):
    content = bytearray(bz2.decompress(data.SUBSET_FILE.read_bytes()))
    content[785] ^= 1  # a label
    path = tmp_path / "part.bz2"
    path.write_bytes(bz2.compress(content))
    monkeypatch.setattr(data, "SUBSET_FILE", path)
    with pytest.raises(data.DataError, match=rf"part.bz2: expected.*{data.SUBSET_SHA256}.*found"):
        data.load("fashion-mnist-4000")


# CIFAR-10 ----------------------------------------------------------------------------------------


def batch(first: int, count: int) -> bytes:
    """Records of image k = first, first + 1, ...: label k % 10; 50 k in channel 0, k, 255 - k."""
    numbers = range(first, first + count)
    return b"".join(
        bytes([k % 10]) + bytes([k * 5] * 1024 + [k] * 1024 + [255 - k] * 1024) for k in numbers
    )


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder with the six files, of two records each; the last three of training held out."""
    folder = tmp_path / "data" / data.CIFAR_FOLDER
    folder.mkdir(parents=True)
    hashes = {}
    for k, name in enumerate(data.CIFAR_FILES):
        (folder / name).write_bytes(batch(2 * k, 2))
        hashes[name] = hashlib.sha256(batch(2 * k, 2)).hexdigest()
    monkeypatch.setattr(data, "CIFAR_FILES", hashes)
    monkeypatch.setattr(data, "CIFAR_HELD_OUT", 3)
    monkeypatch.setenv("SBN_DATA", str(folder.parent))
    return folder


def pack(folder: Path, leave_out: str = "") -> Path:
    """The archive of the files in ``folder``, in another order, in the place of the folder."""
    path = folder.parent / data.CIFAR_ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, recursive=False, arcname=folder.name)
        for file in sorted(folder.iterdir(), reverse=True):
            if file.name != leave_out:
                archive.add(file, arcname=f"{folder.name}/{file.name}")
            file.unlink()
    folder.rmdir()
    return path


def check_cifar():
    d = data.load("cifar-10")
    assert d.name == "cifar-10" and d.num_classes == 10 and d.image_shape == (3, 32, 32)
    splits = {"train": range(7), "validation": range(7, 10), "test": range(10, 12)}
    for name, numbers in splits.items():
        split = getattr(d, name)
        assert split.labels.tolist() == [k % 10 for k in numbers]
        assert split.inputs.dtype == torch.float32 and split.labels.dtype == torch.int64
        pictures = split.inputs.reshape(-1, *d.image_shape)
        values = torch.tensor([[5 * k, k, 255 - k] for k in numbers])
        expected = (values / 127.5 - 1)[:, :, None, None].expand(-1, 3, 32, 32)
        torch.testing.assert_close(pictures, expected)


def test_cifar_from_its_folder(cifar):
    check_cifar()


def test_cifar_from_its_archive(cifar):
    pack(cifar)
    check_cifar()
    assert [p.name for p in cifar.parent.iterdir()] == [data.CIFAR_ARCHIVE]  # nothing unpacked


def test_cifar_from_files_in_the_folder_itself(cifar, monkeypatch):
    monkeypatch.setenv("SBN_DATA", str(cifar))
    check_cifar()


def test_pixels_of_cifar_run_along_rows(cifar, monkeypatch):
    """As published: the first 32 bytes of a channel are its top row."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    content = b"".join(bytes([k]) + image.tobytes() for k, image in enumerate(pixels))
    (cifar / "test_batch.bin").write_bytes(content)
    monkeypatch.setitem(data.CIFAR_FILES, "test_batch.bin", hashlib.sha256(content).hexdigest())
    found = data.load("cifar-10").test.inputs.reshape(-1, 3, 32, 32)
    torch.testing.assert_close(found, torch.from_numpy(pixels) / 127.5 - 1)


def test_cifar_without_a_folder_says_where_to_get_it(monkeypatch, tmp_path):
    words = "cifar-10-binary.tar.gz .*https://www.cs.toronto.edu/~kriz/cifar.html.*SBN_DATA"
    monkeypatch.delenv("SBN_DATA", raising=False)
    with pytest.raises(data.DataError, match=f"cifar-10: SBN_DATA is not set.*{words}"):
        data.load("cifar-10")
    monkeypatch.setenv("SBN_DATA", str(tmp_path))
    missing = tmp_path / "data_batch_1.bin"
    with pytest.raises(data.DataError, match=f"{missing}: cannot be read .No such file.*{words}"):
        data.load("cifar-10")


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_a_missing_file_of_cifar_is_an_error_not_a_fallback(cifar, name):
    content = {path.name: path.read_bytes() for path in cifar.iterdir()}
    archive = pack(cifar)
    cifar.mkdir()
    for other, records in content.items():
        if other != name:
            (cifar / other).write_bytes(records)
    with pytest.raises(data.DataError, match=f"{cifar / name}: cannot be read.*SBN_DATA"):
        data.load("cifar-10")
    assert archive.exists()


def wrong_label(content: bytes) -> bytes:
    return bytes([content[0] + 1]) + content[1:]


@pytest.mark.parametrize(
    "damage", [cut, wrong_label, lambda c: c + c[:3073], lambda c: b"", lambda c: b"<html>"]
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["data_batch_2.bin", "test_batch.bin"])
def test_a_damaged_file_of_cifar_is_named_and_never_used(cifar, damage, packed, name):
    path = cifar / name
    path.write_bytes(damage(path.read_bytes()))
    named = f"{pack(cifar)}: {cifar.name}/{name}" if packed else str(path)
    with pytest.raises(data.DataError) as error:
        data.load("cifar-10")
    assert str(error.value).startswith(f"{named}: expected content with sha256")
    assert data.CIFAR_FILES[name] in str(error.value) and "Delete" in str(error.value)


def broken(content: bytes) -> bytes:
    """Half of it, then a block of a kind that deflate has not."""
    plain, packer = gzip.decompress(content), zlib.compressobj(wbits=31)
    return packer.compress(plain[: len(plain) // 2]) + packer.flush(zlib.Z_FULL_FLUSH) + b"\x06"


@pytest.mark.parametrize("damage", [cut, broken, lambda c: b"", lambda c: b"<html>"])
def test_a_damaged_archive_of_cifar_is_named_and_never_used(cifar, damage):
    path = pack(cifar)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=f"{path}: damaged or cut off.*Delete.*SBN_DATA"):
        data.load("cifar-10")


def test_an_archive_of_cifar_without_one_of_the_files_names_it(cifar):
    path = pack(cifar, leave_out="data_batch_4.bin")
    with pytest.raises(data.DataError, match=f"{path}: has no {cifar.name}/data_batch_4.bin"):
        data.load("cifar-10")


def test_members_of_another_name_or_kind_are_not_read(cifar):
    """A link that leads out of the archive, and a file of the right name in another folder."""
    path = pack(cifar, leave_out="test_batch.bin")
    with tarfile.open(path) as archive:
        kept = [(m, archive.extractfile(m)) for m in archive if m.isfile()]
        content = [(m, stream.read()) for m, stream in kept]
    link, elsewhere = (tarfile.TarInfo(f"{f}/test_batch.bin") for f in (cifar.name, "other"))
    link.type, link.linkname, elsewhere.size = tarfile.SYMTYPE, "/etc/hostname", 4
    with tarfile.open(path, "w:gz") as archive:
        for member, records in [*content, (link, b""), (elsewhere, b"none")]:
            archive.addfile(member, io.BytesIO(records))
    with pytest.raises(data.DataError, match=f"{path}: has no {cifar.name}/test_batch.bin"):
        data.load("cifar-10")


def test_a_folder_in_the_place_of_a_file_of_cifar_is_named(cifar):
    (cifar / "test_batch.bin").unlink()
    (cifar / "test_batch.bin").mkdir()
    with pytest.raises(data.DataError, match=f"{cifar / 'test_batch.bin'}: cannot be read"):
        data.load("cifar-10")


def test_the_published_hashes_are_of_six_files_in_their_order():
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    assert list(data.CIFAR_FILES) == names
    assert len(set(data.CIFAR_FILES.values())) == 6
    assert all(len(bytes.fromhex(value)) == 32 for value in data.CIFAR_FILES.values())


# The book's prose --------------------------------------------------------------------------------


def test_the_prose_needs_no_network_and_is_what_its_docstring_says(no_download):
    parts = data.prose()
    sizes = {"train": 449_303, "validation": 54_732, "test": 52_690}
    assert {name: len(text) for name, text in parts.items()} == sizes
    assert all(c == "\n" or " " <= c <= "~" for text in parts.values() for c in text)
    assert all(text.endswith("\n") for text in parts.values())


def test_no_paragraph_of_the_prose_is_in_two_parts():
    parts = {
        n: {line for line in t.split("\n") if len(line) > 120} for n, t in data.prose().items()
    }
    assert all(len(lines) > 50 for lines in parts.values())
    assert not parts["train"] & parts["test"] and not parts["train"] & parts["validation"]


@pytest.mark.parametrize("damage", [cut, lambda c: b"", lambda c: b"PK" + c[2:], None])
def test_damaged_prose_is_named_and_never_used(monkeypatch, tmp_path, damage):
    path = tmp_path / "prose.bz2"
    if damage:
        path.write_bytes(damage(data.PROSE_FILE.read_bytes()))
    monkeypatch.setattr(data, "PROSE_FILE", path)
    with pytest.raises(data.DataError) as error:
        data.prose()
    assert str(path) in str(error.value) and "install sbnlib anew" in str(error.value)


def test_prose_with_other_content_is_refused(monkeypatch, tmp_path):
    content = bytearray(bz2.decompress(data.PROSE_FILE.read_bytes()))
    content[99] ^= 1
    path = tmp_path / "prose.bz2"
    path.write_bytes(bz2.compress(bytes(content)))
    monkeypatch.setattr(data, "PROSE_FILE", path)
    with pytest.raises(data.DataError, match=rf"prose.bz2: expected.*{data.PROSE_SHA256}.*found"):
        data.prose()
