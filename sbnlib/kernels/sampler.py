"""What a user calls: checks, the choice of a backend, torch.func, torch.compile, the gradient."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from numbers import Integral
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sbnlib.contracts import attach, check_unit, is_traced, refuse_graph
from sbnlib.kernels import reference
from sbnlib.noise import NOISES, Noise, check_generator, widened

__all__ = ["sample", "straight_through"]

BACKENDS = ("triton", "reference")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = (32, 64)
_HAS_TRITON = importlib.util.find_spec("triton") is not None
#: Units drawn at a time: by a kernel, whose index is an int32, and by the reference, for memory.
MOST = {"triton": 1 << 30, "reference": 1 << 20}


def sample(
    a: Tensor,
    noise: Noise | str,
    *,
    seed: int | Tensor | None = None,
    offset: int = 0,
    generator: torch.Generator | None = None,
    out: torch.dtype | str | Tensor | None = None,
    bits: int = 64,
    backend: str | None = None,
) -> Tensor:
    r"""Draw binary units by counters: +1 with probability F(a) and -1 otherwise, never 0.

    .. math:: x = s\,(1 - 2\,[u < F(-|a|)]), \qquad s = \operatorname{sign}(a),
              \qquad u = 2^{-32}\,\mathrm{hi} + 2^{-64}\,\mathrm{lo}

    What is drawn is the rarer state, so rare +1 and rare -1 alike have their probability as float32
    knows F: to a relative 1e-7 near 1/2 and some 1e-6 at 1e-8. hi and lo are two words that
    Philox4x32-10 makes of the seed and of the unit's place in its stream. Where s = -1 their
    complements are taken: so of one seed a larger ``a`` has no smaller state.

    Args:
        a: pre-activations, any shape; float32, bfloat16 or float16. Places are counted in the order
            of its axes, whatever its memory format.
        noise: one of the six laws of this library, or its name for scale 1.
        seed: the key, from 0 to :math:`2^{63} - 1`: a number, or an int64 tensor of one on
            ``a``'s device, which is not looked at. Without it one is drawn.
        offset: the place of the first unit in the stream of the seed, a multiple of 4: n units with
            ``offset=k`` are units k to k + n - 1 of any longer draw.
        generator: source of a seed, on the device of ``a``; default torch's global one.
        out: what to put out: a dtype, ``a``'s own (the default) or ``torch.int8``; or ``"packed"``,
            uint8 with 8 units of the last axis in a byte, +1 as 1 and the first unit in the highest
            bit, as ``numpy.packbits`` has it; or a tensor of such a dtype to be filled.
        bits: random bits a unit. With 32 instead of 64 a kernel that moves little memory is faster,
            and a rare state has its probability to within :math:`2^{-32}`.
        backend: ``"triton"`` or ``"reference"``; default Triton on a CUDA device where it is
            installed. The two differ where rounding puts F on the two sides of u.

    Returns:
        The states, contiguous and without a gradient; ``(..., ceil(n/8))`` bytes for ``"packed"``.
        Where looking is not free a NaN logit gives NaN, 0 in int8 and a 0 bit.

    Under ``torch.func.vmap`` with ``randomness="different"`` the rows are one draw; otherwise it is
    refused, also for a seed that is given: each row would have the same noise. Each chunk of
    ``chunk_size`` is a draw of its own, so give no seed there; nor one of each row, which is
    refused, but not told under ``torch.compile``. Under
    ``torch.compile`` it is one opaque operation.

    Raises:
        TypeError: ``a`` is of another dtype, ``noise`` is not a noise, ``seed`` or ``out`` is of a
            wrong kind.
        ValueError: a law of your own; a seed, an offset or a number of bits that is not as above;
            both a seed and a generator; an ``out`` of another shape, dtype or device than is
            drawn; no CUDA device for ``backend="triton"``; NaN or infinite logits, looked at on
            eager CPU tensors only.
        ModuleNotFoundError: ``backend="triton"`` and Triton is not installed.

    Source: Salmon et al. 2011 (SC) for Philox.
    """
    noise, settings = _settings(a, noise, offset, bits, backend)
    key = _key(seed, generator, a)
    if isinstance(out, Tensor):
        _check_tensor(out, a)
        if out.untyped_storage().data_ptr() == a.untyped_storage().data_ptr():
            return out.copy_(draw(a.detach(), key, *settings, out.dtype))
        _fill(out, a.detach(), key, *settings)
        torch.autograd.graph.increment_version(out)  # a kernel writes without torch's knowing
        return out
    return draw(a.detach(), key, *settings, _dtype(out, a))


def straight_through(
    a: Tensor,
    noise: Noise | str,
    *,
    seed: int | Tensor | None = None,
    offset: int = 0,
    generator: torch.Generator | None = None,
    bits: int = 64,
    backend: str | None = None,
) -> Tensor:
    r"""The states of :func:`sample` with the gradient of straight-through, 2f(a).

    .. math:: \widehat{\partial_{a_i} \mathbb{E} L} = 2 f(a_i)\, \partial_i L(x)

    Only ``a`` is kept for the backward pass, which reads it with what flows back and writes their
    product, in one kernel. Under torch.func the factor is attached as
    :func:`sbnlib.straight_through` does it.

    Args:
        a, noise, seed, offset, generator, bits, backend: as :func:`sample`.

    Raises:
        TypeError, ValueError, ModuleNotFoundError: as :func:`sample`.
        RuntimeError: in a backward pass with ``create_graph=True``: the factor is a constant.

    Source: Shekhovtsov & Yanush 2021 (arXiv 2006.06880); chapter 6.
    """
    noise, settings = _settings(a, noise, offset, bits, backend)
    key = _key(seed, generator, a)
    if _transformed():
        a0 = a.detach()
        x = draw(a0, key, *settings, a.dtype)
        return attach(x, a, 2 * noise.pdf(widened(a0)))
    return _Unit.apply(a, key, settings)  # type: ignore[no-untyped-call]


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, key: Tensor, settings: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(a)
        ctx.settings = settings
        return draw(a, key, *settings, a.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if not torch.compiler.is_compiling():
            refuse_graph(gradient)
        (a,) = ctx.saved_tensors
        _, law, scale, _, backend = ctx.settings
        return slope(a, gradient, law, scale, backend), None, None


# ---- the two operations --------------------------------------------------------------------------


@torch.library.custom_op("sbnlib::draw", mutates_args=())
def draw(
    a: Tensor,
    key: Tensor,
    offset: int,
    law: str,
    scale: float,
    bits: int,
    backend: str,
    dtype: torch.dtype,
) -> Tensor:
    """States of a law at a scale, as ``dtype``; uint8 stands for packed bits."""
    return _fill(_empty(a, dtype), a, key, offset, law, scale, bits, backend)


@draw.register_fake
def _(a: Tensor, *settings: Any) -> Tensor:
    return _empty(a, settings[-1])


@draw.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], a: Tensor, key: Tensor, *settings: Any) -> Any:
    """One draw of all rows: with one key each, they would have the same noise."""
    if info.randomness != "different":
        raise RuntimeError("randomness must be 'different' in a vmap over binary units that are "
                           f"drawn, got {info.randomness!r}")  # fmt: skip
    a_dim, key_dim = in_dims[:2]
    one = key if key_dim is None else key.select(key_dim, 0) if len(key) else key.new_zeros(())
    return draw(_rows(info, a, a_dim), one, *settings), 0


@torch.library.custom_op("sbnlib::slope", mutates_args=())
def slope(a: Tensor, gradient: Tensor, law: str, scale: float, backend: str) -> Tensor:
    """2f(a) times ``gradient``."""
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    flat = out.view(-1), a.contiguous().view(-1), gradient.contiguous().view(-1)
    module = _module(backend, a.device)
    for part in _parts(a.numel(), backend):
        module.slope(*(t[part] for t in flat), NOISES[law](scale))
    return out


@slope.register_fake
def _(a: Tensor, *_: Any) -> Tensor:
    return torch.empty(a.shape, dtype=a.dtype, device=a.device)


@slope.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], a: Tensor, gradient: Tensor, *law: Any) -> Any:
    rows = (_rows(info, t, dim) for t, dim in zip((a, gradient), in_dims, strict=False))
    return slope(*rows, *law), 0


def _rows(info: Any, values: Tensor, dim: int | None) -> Tensor:
    """The axis of a vmap in front, also where all rows are the same."""
    return values.expand(info.batch_size, *values.shape) if dim is None else values.movedim(dim, 0)


def _empty(a: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(_shape(a, dtype), dtype=dtype, device=a.device)


def _shape(a: Tensor, dtype: torch.dtype) -> tuple[int, ...]:
    return (*a.shape[:-1], (a.shape[-1] + 7) // 8) if dtype is torch.uint8 else tuple(a.shape)


def _fill(
    out: Tensor,
    a: Tensor,
    key: Tensor,
    offset: int,
    law: str,
    scale: float,
    bits: int,
    backend: str,
) -> Tensor:
    """Fill ``out`` with the states of ``a`` and return it."""
    packed = out.dtype is torch.uint8
    if packed and a.shape[-1] % 8 and a.shape[-1] != a.numel():  # bytes that end within a row
        x = _fill(_empty(a, torch.int8), a, key, offset, law, scale, bits, backend)
        return out.copy_(reference.pack(x > 0))
    if not out.is_contiguous() or out.is_neg():
        return out.copy_(_fill(torch.empty_like(out, memory_format=torch.contiguous_format),
                               a, key, offset, law, scale, bits, backend))  # fmt: skip
    rows, flat, module = (
        a.resolve_neg().contiguous().view(-1),
        out.view(-1),
        _module(backend, a.device),
    )
    for part in _parts(len(rows), backend):
        place = slice(part.start // 8, -(-part.stop // 8)) if packed else part
        counter = (offset + part.start) * bits // 128
        module.draw(flat[place], rows[part], key, counter, NOISES[law](scale), bits // 32)
    return out


def _parts(count: int, backend: str) -> Iterator[slice]:
    """The units in runs; of a long one the last few apart: loads are wide where 16 divides it."""
    most = MOST[backend]
    for start in range(0, count, most):
        stop = min(start + most, count)
        even = stop - (stop - start) % 16
        if start < even < stop and stop - start > 1 << 16:
            yield slice(start, even)
            start = even
        yield slice(start, stop)


def _module(backend: str, device: torch.device) -> ModuleType:
    if backend == "reference":
        return reference
    from sbnlib.kernels import compiled

    if device.type != "cuda" and not compiled.INTERPRETED:
        raise ValueError(f"backend must be 'reference' for a on {device}, got 'triton', which "
                         "needs a CUDA device")  # fmt: skip
    return compiled


# ---- checks --------------------------------------------------------------------------------------


def _settings(
    a: Tensor, noise: Noise | str, offset: int, bits: int, backend: str | None
) -> tuple[Noise, tuple[int, str, float, int, str]]:
    """The noise, and what the operations are told in numbers and words."""
    noise = check_unit(a, noise)
    if a.dtype not in DTYPES:
        raise TypeError(f"a must be float32, bfloat16 or float16 for the fused sampler, got "
                        f"{a.dtype}; sampler='torch' takes it, and sample_sign")  # fmt: skip
    law = type(noise).__name__
    if NOISES.get(law.lower()) is not type(noise):
        known = ", ".join(n.__name__ for n in NOISES.values())
        raise ValueError(f"noise must be one of {known} for the fused sampler, got {noise!r}; "
                         "sampler='torch' takes any law, and sample_sign")  # fmt: skip
    if not _is_whole(bits) or bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, got {bits!r}")
    if not _is_whole(offset) or not 0 <= offset < 2**62 or offset % 4:
        raise ValueError(f"offset must be a multiple of 4 from 0 to 2**62 - 4, got {offset!r}")
    places = int(offset), int(bits)  # those of NumPy would wrap
    return noise, (places[0], law.lower(), noise.scale, places[1], _backend(backend, a.device))


def _backend(backend: str | None, device: torch.device) -> str:
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend must be one of {BACKENDS} or None, got {backend!r}")
    return backend or backend_for(device)


def backend_for(device: torch.device) -> str:
    """The backend where none is asked for."""
    return "triton" if device.type == "cuda" and _HAS_TRITON else "reference"


def _key(seed: int | Tensor | None, generator: torch.Generator | None, a: Tensor) -> Tensor:
    """The seed as an int64 tensor on ``a``'s device, so that no kernel waits for the CPU.

    In a transform of torch.func it is marked as drawn there. Then vmap's own question, whether rows
    may differ, is asked also where ``a`` and the seed are the same for all of them.
    """
    options: dict[str, Any] = {"dtype": torch.int64, "device": a.device}
    if seed is None:
        check_generator(generator, a.device)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                "generator must be a torch.Generator for the fused sampler, which has one seed for "
                f"all rows, got {type(generator).__name__}"
            )
        return torch.randint(0, 2**63 - 1, (), generator=generator, **options)
    if generator is not None:
        raise ValueError("generator must be None where seed is given, got both")
    if isinstance(seed, Tensor):
        _check_key(seed, a)
        key = seed
    else:
        if not _is_whole(seed):
            raise TypeError(f"seed must be an integer or an int64 tensor of one, got {seed!r}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {seed!r}")
        key = torch.full((), seed, **options)
    return key + torch.randint(0, 1, (), **options) if _transformed() else key


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_key(seed: Tensor, a: Tensor) -> None:
    if seed.dtype is not torch.int64 or seed.dim() != 0:
        raise TypeError("seed must be an integer or an int64 tensor of shape (), got "
                        f"{seed.dtype} of shape {tuple(seed.shape)}")  # fmt: skip
    if seed.device != a.device:
        raise ValueError(f"seed must be on {a.device}, like a, got a tensor on {seed.device}")
    if not torch.compiler.is_compiling() and _is_batched(seed):
        raise ValueError("seed must be one for all rows of a vmap, which are one draw, got a "
                         "batched tensor")  # fmt: skip


def _is_batched(seed: Tensor) -> bool:
    """Whether a vmap has rows of it, at any level of nested transforms."""
    of = torch._C._functorch
    while of.is_functorch_wrapped_tensor(seed):
        if of.is_batchedtensor(seed):
            return True
        seed = of.get_unwrapped(seed)
    return False


def _transformed() -> bool:
    """Whether a transform of torch.func is at work, also while torch.compile traces one.

    There, what stands for None is not None, but has no attribute either.
    """
    return hasattr(torch._C._functorch.peek_interpreter_stack(), "key")


def _dtype(out: object, a: Tensor) -> torch.dtype:
    """The dtype that is asked for; uint8 stands for packed bits."""
    if out is None:
        return a.dtype
    if isinstance(out, str) and out == "packed":
        return _packed(a)
    if isinstance(out, torch.dtype) and out in (a.dtype, torch.int8):
        return out
    raise TypeError(f"out must be {a.dtype}, torch.int8, 'packed' or a tensor, got {out!r}")


def _check_tensor(out: Tensor, a: Tensor) -> None:
    """A tensor to be filled has the shape, the device and one of the dtypes of a draw."""
    if is_traced(a) or _transformed():
        raise ValueError("out must not be a tensor under torch.func and torch.compile, got one")
    if out.dtype not in (a.dtype, torch.int8, torch.uint8):
        raise TypeError(f"out must be of {a.dtype}, torch.int8 or, packed, torch.uint8, got "
                        f"{out.dtype}")  # fmt: skip
    if out.device != a.device:
        raise ValueError(f"out must be on {a.device}, like a, got a tensor on {out.device}")
    shape = _shape(a, _packed(a) if out.dtype is torch.uint8 else out.dtype)
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}, got {tuple(out.shape)}")
    if out.requires_grad:
        raise ValueError("out must not require a gradient, got a tensor that does")


def _packed(a: Tensor) -> torch.dtype:
    if a.dim() == 0:
        raise ValueError("a must have at least one axis to be packed, got a scalar")
    return torch.uint8
