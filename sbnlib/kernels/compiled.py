"""The fused sampler in Triton: what :mod:`sbnlib.kernels.reference` computes, in one pass.

One source serves the GPU, the interpreter (``TRITON_INTERPRET=1``, on the CPU) and a compilation
without a GPU. The words of one counter go to neighbours: nothing of a counter is thrown away, and
loads and stores stay 128 bits wide. F is multiplied out where it divides, and what Triton has no
function for is written out.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from sbnlib.extras import extra
from sbnlib.noise import Noise

with extra("gpu"):
    import triton
    import triton.language as tl

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

__all__ = ["INTERPRETED", "draw", "slope"]


def draw(
    out: Tensor,
    a: Tensor,
    seed: Tensor,
    counter: int,
    noise: Noise,
    each: int,
    *,
    block: int | None = None,
) -> None:
    """:func:`sbnlib.kernels.reference.draw`, in blocks of ``block`` units, a power of 2."""
    packed = out.dtype is torch.uint8
    block = block or (4096 if packed else 2048 if out.element_size() == 1 else 1024)
    with _on(a.device):
        draw_kernel[(triton.cdiv(len(a), block),)](
            out, a, seed, counter, len(a), 1 / noise.scale, noise.scale,
            LAW=_law(noise), UNIT=noise.scale == 1, EACH=each, PACKED=packed, BLOCK=block,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def slope(out: Tensor, a: Tensor, gradient: Tensor, noise: Noise, *, block: int = 1024) -> None:
    """:func:`sbnlib.kernels.reference.slope`, in blocks of ``block`` units, a power of 2."""
    with _on(a.device):
        slope_kernel[(triton.cdiv(len(a), block),)](
            out, a, gradient, len(a), 1 / noise.scale, noise.scale,
            LAW=_law(noise), UNIT=noise.scale == 1, BLOCK=block,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def _law(noise: Noise) -> str:
    return type(noise).__name__


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@triton.jit(do_not_specialize=["counter"])
def draw_kernel(
    out_pointer, a_pointer, seed_pointer, counter, count, inverse, scale,
    LAW: tl.constexpr, UNIT: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_pointer + unit, mask=unit < count).to(tl.float32)
    size: tl.constexpr = BLOCK * EACH // 4
    counters = tl.cast(counter, tl.int64) + tl.program_id(0) * size + tl.arange(0, size)
    u = uniforms(tl.load(seed_pointer), counters, (a < 0).to(tl.uint32), EACH, BLOCK)
    z = tl.abs(a)
    if not UNIT:
        z = at_scale_1(z, inverse, scale)
    up = is_rare(u, z, LAW) ^ (a >= 0)
    if PACKED:
        up = up & (a == a) & (unit < count)
        bits = tl.reshape(up.to(tl.int32), [BLOCK // 8, 8])
        byte = tl.sum(bits << (7 - tl.arange(0, 8))[None, :], axis=1)
        place = tl.program_id(0) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        tl.store(out_pointer + place, byte.to(tl.uint8), mask=place * 8 < count)
    else:
        state = tl.where(up, 1.0, -1.0)
        if out_pointer.dtype.element_ty == tl.int8:
            state = tl.where(a == a, state, 0.0)
        else:
            state = tl.where(a == a, state, a)
        tl.store(out_pointer + unit, state.to(out_pointer.dtype.element_ty), mask=unit < count)


@triton.jit
def uniforms(seed, counters, complemented, EACH: tl.constexpr, BLOCK: tl.constexpr):
    """u of so many units in a row from 32 bits of each, or 64; 1 - u where that is asked for."""
    w0, w1, w2, w3 = tl.randint4x(seed, counters)
    mask = 0 - complemented
    if EACH == 1:
        high = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK])
        u = (high.to(tl.uint32, bitcast=True) ^ mask).to(tl.float32) * 2**-32
    else:
        high = tl.reshape(tl.join(w0, w2), [BLOCK]).to(tl.uint32, bitcast=True)
        low = tl.reshape(tl.join(w1, w3), [BLOCK]).to(tl.uint32, bitcast=True)
        u = (high ^ mask).to(tl.float32) * 2**-32 + (low ^ mask).to(tl.float32) * 2**-64
    return u


@triton.jit
def at_scale_1(z, inverse, scale):
    """z/scale for z >= 0; the product alone could bring the end of a support into it."""
    product = z * inverse
    return tl.where(z >= scale, tl.maximum(product, 1), product)


@triton.jit
def is_rare(u, z, LAW: tl.constexpr):
    """u < F(-z), for z >= 0."""
    if LAW == "Logistic":
        rare = u + u * tl.exp(z) < 1
    elif LAW == "Uniform":
        rare = 2 * u < 1 - z
    elif LAW == "Triangular":
        rest = tl.maximum(1 - z, 0)
        rare = 2 * u < rest * rest
    elif LAW == "Gaussian":
        rare = 2 * u < twice_the_gaussian_tail(z)
    elif LAW == "Cauchy":
        rare = u < arctan_of_inverse(z) * 0.3183098861837907
    else:
        tl.static_assert(LAW == "FastSigmoid")
        rare = 2 * u * (1 + z) < 1
    return rare


@triton.jit
def twice_the_gaussian_tail(z):
    """erfc(z/sqrt(2)), z >= 0, to a relative 1.2e-7 before rounding: Press et al. 1992, sec. 6.2.

    z is squared as it is: a rounding before would be multiplied by the square.
    """
    t = 1 / (1 + z * 0.3535533905932738)
    p = -0.82215223 + t * 0.17087277
    p = 1.48851587 + t * p
    p = -1.13520398 + t * p
    p = 0.27886807 + t * p
    p = -0.18628806 + t * p
    p = 0.09678418 + t * p
    p = 0.37409196 + t * p
    p = 1.00002368 + t * p
    return t * tl.exp(-1.26551223 + t * p - 0.5 * z * z)


@triton.jit
def arctan_of_inverse(z):
    """arctan(1/z) for z >= 0 to a relative 2e-8: Abramowitz & Stegun 1964, 4.4.49."""
    r = tl.minimum(z, 1) / tl.maximum(z, 1)
    s = r * r
    p = -0.0161657367 + s * 0.0028662257
    p = 0.0429096138 + s * p
    p = -0.0752896400 + s * p
    p = 0.1065626393 + s * p
    p = -0.1420889944 + s * p
    p = 0.1999355085 + s * p
    p = -0.3333314528 + s * p
    p = r + r * s * p
    return tl.where(z > 1, p, 1.5707963267948966 - p)


@triton.jit
def slope_kernel(
    out_pointer, a_pointer, gradient_pointer, count, inverse, scale,
    LAW: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_pointer + unit, mask=unit < count).to(tl.float32)
    gradient = tl.load(gradient_pointer + unit, mask=unit < count).to(tl.float32)
    z = tl.abs(a)
    c = proxy(z if UNIT else at_scale_1(z, inverse, scale), LAW) * (1 if UNIT else inverse)
    tl.store(out_pointer + unit, (c * gradient).to(out_pointer.dtype.element_ty), mask=unit < count)


@triton.jit
def proxy(z, LAW: tl.constexpr):
    """2f(z) at scale 1, for z >= 0; NaN for NaN."""
    if LAW == "Logistic":
        q = 1 / (1 + tl.exp(z))
        c = 2 * (q - q * q)
    elif LAW == "Uniform":
        c = tl.where(z < 1, 1.0, tl.where(z == z, 0.0, z))
    elif LAW == "Triangular":
        c = 2 * tl.maximum(1 - z, 0, propagate_nan=tl.PropagateNan.ALL)
    elif LAW == "Gaussian":
        c = tl.exp(-0.5 * z * z) * 0.7978845608028654
    elif LAW == "Cauchy":
        c = 0.6366197723675814 / (1 + z * z)
    else:
        tl.static_assert(LAW == "FastSigmoid")
        c = 1 / ((1 + z) * (1 + z))
    return c


#: Whether Triton's interpreter runs the kernels, on the CPU.
INTERPRETED = not isinstance(draw_kernel, triton.JITFunction)
