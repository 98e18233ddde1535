"""The count of bits in which rows differ, by the fastest means at hand.

``numba``: a compiled loop of XOR and popcount, over four rows at a time (extra ``sbnlib[packed]``).
``int8``: signs of one byte, multiplied by ``torch._int_mm``. ``numpy``: word by word, as
``sbnlib/packed/runtime.py`` does it alone. ``cuda``: the bits are brought to the first CUDA device,
and there become bytes for ``torch._int_mm``. All give the same integers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from sbnlib.extras import extra
from sbnlib.packed import runtime

__all__ = ["BACKENDS", "best", "on_device", "product"]

Array = np.ndarray[Any, Any]
#: Two matrices of words, (B, words) and (m, words), to the count of differing bits, (B, m) int32.
Product = Callable[[Array, Array], Array]


@functools.cache
def _numba() -> Product:
    with extra("packed"):
        import numba
        from llvmlite import ir
        from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def ones(_: Any, word: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            count = builder.module.declare_intrinsic("llvm.ctpop", [ir.IntType(runtime.WORD)])
            return builder.call(count, given)

        return numba.types.uint64(numba.types.uint64), generate

    @numba.njit(parallel=True)  # type: ignore[untyped-decorator]
    def differing(x: Array, w: Array) -> Array:
        rows, words = x.shape
        found = np.empty((rows, len(w)), np.int32)
        for block in numba.prange((rows + 3) // 4):
            # a short block begins again at the last row, which is written more than once
            i0, i1 = 4 * block, min(4 * block + 1, rows - 1)
            i2, i3 = min(4 * block + 2, rows - 1), min(4 * block + 3, rows - 1)
            for j in range(len(w)):
                c0 = c1 = c2 = c3 = np.uint64(0)
                for k in range(words):
                    word = w[j, k]
                    c0 += ones(x[i0, k] ^ word)
                    c1 += ones(x[i1, k] ^ word)
                    c2 += ones(x[i2, k] ^ word)
                    c3 += ones(x[i3, k] ^ word)
                found[i0, j], found[i1, j] = c0, c1
                found[i2, j], found[i3, j] = c2, c3
        return found

    return _on_own_threads(differing)


def _on_own_threads(product: Product) -> Product:
    """The product by numba, whose OpenMP is torch's: after a loop, torch would have its threads."""

    def differing(x: Array, w: Array) -> Array:
        before = torch.get_num_threads()
        try:
            return product(x, w)
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)

    return differing


def _int8() -> Product:
    def differing(x: Array, w: Array) -> Array:
        n = x.shape[-1] * runtime.WORD  # the bits that are left over agree
        a, b = (torch.from_numpy(runtime.unpack(v, n)) for v in (x, w))
        return ((n - torch._int_mm(a, b.T.contiguous())) // 2).numpy()

    return differing


def _cuda() -> Product:
    if not torch.cuda.is_available():
        raise ValueError("backend cuda: torch finds no CUDA device")
    return functools.partial(on_device, torch.device("cuda"))


#: What ``_int_mm`` asks of matrices on a CUDA device: rows, at least, and a multiple of the rest.
LEAST_ROWS, MULTIPLE = 17, 8


def on_device(device: torch.device, x: Array, w: Array) -> Array:
    """The count of differing bits, (B, words) and (m, words) to (B, m), by a torch device.

    Rows of zeros, which add nothing, fill the matrices up to the sizes that are taken there.
    """
    a, b = (_bytes(v, device) for v in (x, w))
    a = pad(a, (0, 0, 0, max(0, LEAST_ROWS - len(a))))
    b = pad(b, (0, 0, 0, -len(b) % MULTIPLE))
    sums = torch._int_mm(a, b.T)[: len(x), : len(w)]
    return ((a.shape[1] - sums) // 2).cpu().numpy()


def _bytes(words: Array, device: torch.device) -> torch.Tensor:
    """Words (rows, words) to signs of one byte (rows, 64 words), unpacked on the device."""
    own = torch.from_numpy(words.view(np.int64)).to(device)
    bits = (own[..., None] >> torch.arange(runtime.WORD, device=device)) & 1
    return (2 * bits - 1).to(torch.int8).flatten(1)


def _numpy() -> Product:
    return runtime.differing


#: Name -> what makes it.
BACKENDS: dict[str, Callable[[], Product]] = {
    "numba": _numba, "int8": _int8, "numpy": _numpy, "cuda": _cuda,
}  # fmt: skip


def best() -> str:
    """The name of the fastest that is installed, on the CPU."""
    return "numba" if find_spec("numba") else "int8"


def product(name: str | None = None) -> Product:
    """The product of this name, by default the best.

    Raises:
        ValueError: there is none of this name, or no CUDA device for "cuda".
        ModuleNotFoundError: numba is asked for and not installed.
    """
    name = best() if name is None else name
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    return BACKENDS[name]()
