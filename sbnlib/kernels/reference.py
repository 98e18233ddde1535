"""The fused sampler in plain torch: on any device, and what its kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbnlib.noise import Noise, widened

__all__ = ["draw", "pack", "philox4x32", "slope", "words"]

_LOW = 0xFFFFFFFF
_FACTORS = 0xD2511F53, 0xCD9E8D57
_STEPS = 0x9E3779B9, 0xBB67AE85


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    r"""Philox4x32-10: four words, as good as random, of four words of counter and two of key.

    Ten times, with (hi, lo) the 64-bit products of c0 and c2 with two constants,

    .. math:: (c_0, c_1, c_2, c_3) \leftarrow
              (\mathrm{hi}_2 \oplus c_1 \oplus k_0,\ \mathrm{lo}_2,\
               \mathrm{hi}_0 \oplus c_3 \oplus k_1,\ \mathrm{lo}_0)

    and two other constants are added to the key.

    Args:
        counter, key: four and two int64 tensors of words from 0 to 2^32 - 1.

    Returns:
        Four such tensors. A product overflows int64, which keeps all of its 64 bits.

    Source: Salmon et al. 2011 (SC); known answers in the Random123 library.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p2 = c0 * _FACTORS[0], c2 * _FACTORS[1]
        c0, c2 = (p2 >> 32) & _LOW ^ c1 ^ k0, (p0 >> 32) & _LOW ^ c3 ^ k1
        c1, c3 = p2 & _LOW, p0 & _LOW
        k0, k1 = k0 + _STEPS[0] & _LOW, k1 + _STEPS[1] & _LOW
    return c0, c1, c2, c3


def words(seed: Tensor, counter: int, count: int, each: int) -> Tensor:
    """``(count, each)``: the words of so many units, ``each`` of them 1 or 2, from a counter on.

    The 64 bits of ``seed`` are the key, those of the counter its lower half. The four words of a
    counter go to 4 or 2 units in a row.
    """
    blocks = counter + torch.arange(-(-count * each // 4), device=seed.device)
    zero = torch.zeros_like(blocks)
    found = philox4x32(
        (blocks & _LOW, (blocks >> 32) & _LOW, zero, zero), (seed & _LOW, (seed >> 32) & _LOW)
    )
    return torch.stack(found, dim=1).view(-1, each)[:count]


def draw(out: Tensor, a: Tensor, seed: Tensor, counter: int, noise: Noise, each: int) -> None:
    """Fill ``out`` with the states of ``a``, both ``(n,)``, or with their bits, ``(n/8,)`` bytes.

    With s = sign(a), s(0) = +1, a state is -s where u < F(-abs(a)) and s elsewhere. u is of the
    unit's one or two words, complemented where s = -1: so a larger ``a`` has no smaller state.
    """
    a = widened(a)
    drawn = words(seed, counter, len(a), each)
    drawn = torch.where((a < 0)[:, None], _LOW - drawn, drawn).float()
    u = drawn[:, 0] * 2.0**-32
    if each == 2:
        u = u + drawn[:, 1] * 2.0**-64
    up = (u < noise.tail(a)) ^ (a >= 0)
    if out.dtype is torch.uint8:
        out.copy_(pack(up))
    else:
        states = torch.where(up, 1.0, -1.0)
        nothing = a if out.is_floating_point() else torch.zeros_like(a)
        out.copy_(torch.where(a.isnan(), nothing, states))


def pack(up: Tensor) -> Tensor:
    """``(..., n)`` truth values to ``(..., ceil(n/8))`` bytes, the first one in the highest bit.

    As ``numpy.packbits`` along the last axis; what is left of the last byte is 0.
    """
    up = torch.nn.functional.pad(up.to(torch.uint8), (0, -up.shape[-1] % 8))
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=up.device)
    return (up.unflatten(-1, (up.shape[-1] // 8, 8)) * places).sum(-1, dtype=torch.uint8)


def slope(out: Tensor, a: Tensor, gradient: Tensor, noise: Noise) -> None:
    """Fill ``out`` with 2f(a) times ``gradient``, rounded once; all ``(n,)``."""
    out.copy_((2 * noise.pdf(widened(a))).mul_(gradient))
