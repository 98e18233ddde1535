"""Signs as bits: packing, products and convolutions against integers, and the file of a model."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from sbnlib.packed import products, runtime
from sbnlib.packed.runtime import Layer, Model, load, pack, unpack, xnor_conv2d, xnor_linear

G = np.random.default_rng(0)
SIZES = (1, 7, 8, 9, 63, 64, 65, 128, 200)
every_backend = pytest.mark.parametrize("backend", products.BACKENDS)


def signs(*shape: int) -> np.ndarray:
    return G.choice([-1, 1], shape)


def product(backend: str) -> Any:
    if backend == "numba":
        pytest.importorskip("numba")
    if backend == "cuda" and not torch.cuda.is_available():
        return partial(products.on_device, torch.device("cpu"))  # the same, where all fits
    return products.product(backend)


# Packing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_what_is_packed_comes_back(n: int) -> None:
    for shape in ((n,), (3, n), (2, 0, n), (2, 3, n)):
        x = signs(*shape)
        words = pack(x)
        assert words.dtype == np.uint64 and words.shape == (*shape[:-1], -(-n // 64))
        back = unpack(words, n)
        assert back.dtype == np.int8 and (back == x).all()


def test_bit_k_of_word_j_is_coordinate_64_j_plus_k() -> None:
    for k in (0, 1, 63, 64, 69):
        x = -np.ones(70)
        x[k] = 1
        words = pack(x)
        assert [int(w) for w in words] == [1 << k if k < 64 else 0, 1 << k - 64 if k >= 64 else 0]


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32, np.float64])
def test_signs_of_any_type_are_packed(dtype: Any) -> None:
    x = signs(4, 70)
    assert (pack(x.astype(dtype)) == pack(x)).all()
    assert (pack(torch.tensor(x)) == pack(x)).all()
    assert (pack(x.T) == pack(np.ascontiguousarray(x.T))).all()


@pytest.mark.parametrize("other", [0, 0.5, np.nan, np.inf, -2])
def test_what_is_no_sign_is_refused_with_its_place(other: float) -> None:
    x = signs(3, 5).astype(float)
    x[1, 2] = other
    with pytest.raises(ValueError, match=r"x must hold \+1 and -1, got .* at \(1, 2\)"):
        pack(x)


@pytest.mark.parametrize("x", [np.array(1.0), np.ones((3, 0))])
def test_what_has_no_row_is_refused(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"x must be \(\.\.\., n\) with n >= 1"):
        pack(x)


def test_words_that_do_not_fit_are_refused() -> None:
    words = pack(signs(2, 70))
    with pytest.raises(ValueError, match=r"words must be \(\.\.\., 1\) words for 64 signs"):
        unpack(words, 64)
    with pytest.raises(ValueError, match="of dtype uint64, got int64"):
        unpack(words.astype(np.int64), 70)
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        unpack(words, 0)
    with pytest.raises(ValueError, match="n must be a whole number, got 70.0"):
        unpack(words, 70.0)  # type: ignore[arg-type]


# Products ----------------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("n", SIZES)
def test_products_are_those_of_integers(n: int, backend: str) -> None:
    for rows, outputs in ((1, 1), (3, 5), (9, 2), (17, 8)):
        x, w = signs(rows, n), signs(outputs, n)
        found = xnor_linear(pack(x), pack(w), n, product=product(backend))
        assert found.dtype == np.int32 and (found == x @ w.T).all()
    x, w = signs(2, 3, n), signs(4, n)
    assert (xnor_linear(pack(x), pack(w), n, product=product(backend)) == x @ w.T).all()
    assert xnor_linear(pack(x[0, 0]), pack(w), n).shape == (4,)


def test_many_rows_are_counted_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = signs(50, 70), signs(6, 70)
    for together in (1, 13, 12 * 7):
        monkeypatch.setattr(runtime, "TOGETHER", together)
        assert (xnor_linear(pack(x), pack(w), 70) == x @ w.T).all()


CONVOLUTIONS = [
    (1, 0, (3, 3)), (2, 1, (3, 3)), ((1, 2), (2, 0), (2, 3)), (3, 2, (1, 1)), (1, (0, 2), (6, 7)),
]  # fmt: skip


@pytest.mark.slow
@every_backend
@pytest.mark.parametrize("pad", [0, 1, -1])
@pytest.mark.parametrize(("stride", "padding", "window"), CONVOLUTIONS)
@pytest.mark.parametrize("n", [1, 3, 64, 70])
def test_convolutions_are_those_of_torch(
    n: int, stride: Any, padding: Any, window: tuple[int, int], pad: int, backend: str
) -> None:
    x, w = signs(2, n, 6, 7), signs(5, n, *window)
    found = xnor_conv2d(
        pack(np.moveaxis(x, 1, -1)), pack(np.moveaxis(w, 1, -1)), n,
        stride=stride, padding=padding, pad=pad, product=product(backend),
    )  # fmt: skip
    up, left = (padding, padding) if isinstance(padding, int) else padding
    wide = np.pad(x, ((0, 0), (0, 0), (up, up), (left, left)), constant_values=pad)
    expected = conv2d(torch.tensor(wide).double(), torch.tensor(w).double(), stride=stride)
    assert found.dtype == np.int32
    assert (np.moveaxis(found, -1, 1) == expected.numpy()).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pad": 2}, "pad must be 0, 1 or -1, got 2"),
        ({"stride": 0}, "stride must be 1 or more, got 0"),
        ({"padding": -1}, "padding must be 0 or more, got -1"),
        ({"stride": (1, 2, 3)}, "expected one number or two"),
        ({"n": 65}, r"x must be \(\.\.\., 2\) words for 65 signs"),
    ],
)
def test_a_convolution_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"n": 3} | change
    with pytest.raises(ValueError, match=words):
        xnor_conv2d(pack(signs(2, 6, 6, 3)), pack(signs(5, 3, 3, 3)), **given)


def test_a_window_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="the window has 3 rows, and the padded image 2"):
        xnor_conv2d(pack(signs(1, 2, 6, 3)), pack(signs(5, 3, 3, 3)), 3)
    with pytest.raises(ValueError, match="must have 4 axes"):
        xnor_conv2d(pack(signs(6, 6, 3)), pack(signs(5, 3, 3, 3)), 3)
    with pytest.raises(ValueError, match=r"w must be \(m, 1\) words"):
        xnor_linear(pack(signs(2, 3)), pack(signs(3)), 3)


def test_matrices_on_a_device_are_of_the_sizes_that_are_taken_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than 16 rows, and a multiple of 8 of the rest."""
    seen, own = [], torch._int_mm

    def recorded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append((a.dtype, b.dtype, *a.shape, *b.shape))
        return own(a, b)

    monkeypatch.setattr(torch, "_int_mm", recorded)
    for rows, outputs in ((1, 1), (16, 10), (17, 8), (30, 33)):
        x, w = signs(rows, 70), signs(outputs, 70)
        found = products.on_device(torch.device("cpu"), pack(x), pack(w))
        assert (70 - 2 * found == x @ w.T).all() and found.dtype == np.int32
    for one, other, m, k, same, n in seen:
        assert one == other == torch.int8
        assert m > 16 and k == same == 128 and n % 8 == 0


def test_without_a_device_cuda_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="^backend cuda: torch finds no CUDA device$"):
            products.product("cuda")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(
        ValueError, match="backend must be one of numba, int8, numpy, cuda, got 'gpu'"
    ):
        products.product("gpu")
    assert products.best() in products.BACKENDS


def test_without_numba_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    products._numba.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ModuleNotFoundError, match=r"numba is not installed.*sbnlib\[packed\]"):
        products.product("numba")
    products._numba.cache_clear()


@pytest.mark.slow
def test_torch_keeps_its_number_of_threads_when_numba_first_runs_a_loop() -> None:
    pytest.importorskip("numba")
    code = (
        "import numpy, torch; from sbnlib.packed.products import product; "
        "torch.set_num_threads(1); words = numpy.ones((8, 4), numpy.uint64); "
        "product('numba')(words, words); print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


# The file ----------------------------------------------------------------------------------------


def model() -> Model:
    weight = np.where(np.arange(350) % 3, 1, -1).reshape(5, 70)
    layers = [
        Layer("sign"),
        Layer("linear", {"inputs": 70}, {"bits": pack(weight)}),
        Layer("threshold", {}, {"at": np.arange(5, dtype=np.int32), "up": np.arange(5) % 2 == 0}),
        Layer("linear", {"inputs": 5}, {"weight": np.arange(15, dtype=np.float32).reshape(3, 5)}),
        Layer("bias", {}, {"bias": np.array([1, 2, 3], np.float32)}),
    ]  # fmt: skip
    return Model(layers, {"name": "x"})


def test_a_model_comes_back(tmp_path: Path) -> None:
    own, path = model(), tmp_path / "m.npz"
    said = own.save(path)
    assert said == hashlib.sha256(path.read_bytes()).hexdigest()
    back, x = load(path), G.normal(size=(9, 70))
    assert (back(x) == own(x)).all() and back(x).dtype == np.float32
    assert back.about == {"name": "x"} and back.nbytes == own.nbytes
    again = tmp_path / "again.npz"
    assert model().save(again) == said


def test_a_model_computes_what_integers_do() -> None:
    x = G.normal(size=(40, 70))
    s = np.where(x >= 0, 1, -1) @ np.where(np.arange(350) % 3, 1, -1).reshape(5, 70).T
    up = (s >= np.arange(5)) == (np.arange(5) % 2 == 0)
    expected = np.where(up, 1, -1) @ np.arange(15).reshape(3, 5).T + [1, 2, 3]
    assert (model()(x) == expected).all()


def test_a_model_says_what_it_is() -> None:
    w = Layer("linear", {"inputs": 70}, {"bits": pack(signs(3, 70))})
    model = Model([Layer("sign"), w], backend="numpy")
    assert w.nbytes == model.nbytes == 3 * 2 * 8
    said = "Model of 48 bytes, products of signs by numpy\n  sign\n  linear (bits [3, 2] uint64)"
    assert repr(model) == said


def test_signs_meet_numbers_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "TOGETHER", 200)
    w, x = signs(7, 70), G.integers(-8, 8, (5, 70)) / 4
    found = Model([Layer("linear", {"inputs": 70}, {"bits": pack(w)})])(x)
    assert found.dtype == np.float32 and (found == x @ w.T).all()


def test_inputs_that_do_not_fit_are_refused_with_the_layer() -> None:
    with pytest.raises(ValueError, match="layer 1, linear: x must be"):
        model()(np.ones((2, 60)))


def test_a_file_cut_short_or_altered_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    model().save(path)
    content = path.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="m.npz"):
            load(path)
    altered = tmp_path / "altered.npz"
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(altered, "w") as new:
        for name in old.namelist():
            inner = bytearray(old.read(name))
            if name == "2.at.npy":
                inner[-1] ^= 1
            new.writestr(name, bytes(inner))
    with pytest.raises(ValueError, match=r"altered.npz: expected content with sha256"):
        load(altered)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("form", "kind", "words"),
    [(0, "sign", "form 0, and this is made for 1"), (1, "gelu", "unknown layers gelu")],
)
def test_another_version_is_refused(
    form: int, kind: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "FORMAT", form)
    path = tmp_path / "m.npz"
    Model([Layer(kind)]).save(path)
    monkeypatch.setattr(runtime, "FORMAT", 1)
    with pytest.raises(ValueError, match=f"m.npz: no model of packed signs .*{words}"):
        load(path)


def test_the_runtime_runs_alone(tmp_path: Path) -> None:
    """Copied beside a model, with numpy and without sbnlib or torch."""
    copy = tmp_path / "runtime.py"
    copy.write_bytes(Path(runtime.__file__).read_bytes())
    own, x = model(), G.normal(size=(9, 70))
    own.save(tmp_path / "m.npz")
    np.save(tmp_path / "x.npy", x)
    guard = "import sys; sys.modules['torch'] = sys.modules['sbnlib'] = None; "
    code = f"{guard}import runpy; sys.argv = ['runtime.py', 'm.npz', 'x.npy', 'y.npy']; "
    code += "runpy.run_path('runtime.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (np.load(tmp_path / "y.npy") == own(x)).all()
    spec = importlib.util.spec_from_file_location("alone", copy)
    assert spec and spec.loader
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    assert (alone.load(tmp_path / "m.npz")(x) == own(x)).all()
    usage = subprocess.run([sys.executable, str(copy)], capture_output=True, text=True)
    assert usage.returncode == 2 and "usage: python runtime.py MODEL.npz" in usage.stderr
    call = [sys.executable, str(copy), "--help"]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout == usage.stderr
