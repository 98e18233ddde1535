"""Philox4x32-10 once more, one counter at a time in Python's integers, and what a sampler does.

After Salmon, Moraes, Dror & Shaw 2011 (SC), section 3.3: S-boxes of 32-bit products, P-box a
permutation of the words, key schedule a Weyl sequence. Nothing here is from sbnlib or torch.
"""

from __future__ import annotations

import numpy as np

WORD = 2**32
#: Known answers of the Random123 library (kat_vectors, philox4x32 with 10 rounds):
#: counter, key and result, for zeros, ones and the digits of pi.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD - 1,) * 4, (WORD - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
)  # fmt: skip


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    left0, right0, left1, right1 = counter
    for turn in range(10):
        key0 = (key[0] + turn * 0x9E3779B9) % WORD
        key1 = (key[1] + turn * 0xBB67AE85) % WORD
        high0, low0 = divmod(left0 * 0xD2511F53, WORD)
        high1, low1 = divmod(left1 * 0xCD9E8D57, WORD)
        left0, right0, left1, right1 = high1 ^ right0 ^ key0, low1, high0 ^ right1 ^ key1, low0
    return left0, right0, left1, right1


def units(seed: int, offset: int, count: int, bits: int) -> list[int]:
    """The ``bits`` random bits of units offset, offset + 1, ..., the first word the higher one."""
    found = []
    for unit in range(offset, offset + count):
        block, place = divmod(unit * bits // 32, 4)
        words = philox((block % WORD, block // WORD, 0, 0), (seed % WORD, seed // WORD))
        chosen = words[place : place + bits // 32]
        found.append(sum(w * WORD**k for k, w in enumerate(reversed(chosen))))
    return found


def states(a: np.ndarray, cdf: np.ndarray, drawn: list[int], bits: int) -> np.ndarray:
    """+1 and -1 by the integers themselves: the rarer state below its share of all of them.

    Args:
        a: pre-activations.
        cdf: F(-abs(a)) in float64.
        drawn: as :func:`units` gives them.
    """
    top = 2**bits
    out = []
    for value, q, n in zip(a.tolist(), cdf.tolist(), drawn, strict=True):
        sign, mine = (-1, top - 1 - n) if value < 0 else (1, n)
        out.append(-sign if mine < q * top else sign)
    return np.array(out)
