"""The kernels, run by Triton's interpreter on the CPU, against the reference.

``test_kernels.py`` runs this file in a process of its own with ``TRITON_INTERPRET=1``, which has
to be set before Triton is imported and must not meet a CUDA launch. A program costs the interpreter
milliseconds, so blocks are large.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import reference as ref
import torch
import triton
import triton.language as tl
from bridge import make_noise
from discovered import NOISES

from sbnlib import kernels
from sbnlib.kernels import compiled, reference

COUNT, BLOCK = 20_001, 8192
SEED = torch.tensor(0x0123456789ABCDEF)
FAR = 2**32 - 1000  # so that the second word of the counter changes within a draw

names = pytest.mark.parametrize("name", NOISES)
scales = pytest.mark.parametrize("scale", [1.0, 0.7])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
#: Laws whose F takes no exponential and no quotient: their states are the same bit for bit.
EXACT = {"Uniform", "Triangular"}


def logits(dtype: torch.dtype = torch.float32, count: int = COUNT) -> torch.Tensor:
    u = np.random.default_rng(1).uniform(-1, 1, size=count)
    a = torch.tensor(2.5 * u**3, dtype=dtype)
    a[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0])[: len(a)]
    return a


def flips(name: str, scale: float, *found: torch.Tensor) -> None:
    """States may differ where rounding puts F to the other side of u: one in millions."""
    differ = int((found[0] != found[1]).sum())
    assert differ <= (0 if name in EXACT and scale == 1 else 1), f"{differ} of {found[0].numel()}"


def test_the_interpreter_runs() -> None:
    assert compiled.INTERPRETED


@names
@scales
@dtypes
@pytest.mark.parametrize("bits", [32, 64])
def test_states_are_those_of_the_reference(
    name: str, scale: float, dtype: torch.dtype, bits: int
) -> None:
    a, noise = logits(dtype), make_noise(name, scale)
    for out in (dtype, torch.int8, torch.uint8):
        size = -(-COUNT // 8) if out is torch.uint8 else COUNT
        ours, theirs = torch.full((size,), 77, dtype=out), torch.full((size,), 78, dtype=out)
        compiled.draw(ours, a, SEED, FAR, noise, bits // 32, block=BLOCK)
        reference.draw(theirs, a, SEED, FAR, noise, bits // 32)
        flips(name, scale, ours, theirs)


@pytest.mark.parametrize("out", [torch.float32, torch.int8, torch.uint8], ids=str)
def test_the_block_is_without_effect(out: torch.dtype) -> None:
    found = []
    for block in (256, 1024, 16384):
        x = torch.empty(-(-4001 // 8) if out is torch.uint8 else 4001, dtype=out)
        compiled.draw(x, logits(count=4001), SEED, 5, make_noise("Gaussian"), 2, block=block)
        found.append(x)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1023, 1025])
def test_nothing_is_written_beyond_the_end(count: int) -> None:
    a = logits(count=count)
    for dtype in (torch.float32, torch.int8, torch.uint8):
        size = -(-count // 8) if dtype is torch.uint8 else count
        whole = torch.full((size + 64,), 77, dtype=dtype)
        if count:
            compiled.draw(whole[:size], a, SEED, 0, make_noise("Logistic"), 2)
        fresh = kernels.sample(a, "logistic", seed=SEED, backend="triton",
                               out="packed" if dtype is torch.uint8 else dtype)  # fmt: skip
        assert torch.equal(whole[:size], fresh) and bool((whole[size:] == 77).all())


def test_public_calls_by_either_backend() -> None:
    a = logits(count=3000).view(50, 60)
    for options in ({}, {"bits": 32, "offset": 2**34}, {"out": torch.int8}, {"out": "packed"}):
        ours, theirs = (kernels.sample(a.T, "uniform", seed=2, backend=b, **options)
                        for b in ("triton", "reference"))  # fmt: skip
        assert torch.equal(ours, theirs)
    ours, theirs = (a.clone().requires_grad_() for _ in range(2))
    for leaf, backend in ((ours, "triton"), (theirs, "reference")):
        x = kernels.straight_through(leaf, "uniform", seed=2, backend=backend)
        (x * torch.arange(60)).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_nan_and_infinity() -> None:
    a = torch.tensor([float("nan"), float("inf"), -float("inf")]).repeat(100)
    for name in NOISES:
        for scale in (1.0, 0.7):
            noise = make_noise(name, scale)
            x, eight = torch.empty(300), torch.empty(300, dtype=torch.int8)
            packed, slope = torch.empty(38, dtype=torch.uint8), torch.empty(300)
            for out in (x, eight, packed):
                compiled.draw(out, a, SEED, 0, noise, 2)
            compiled.slope(slope, a, torch.ones(300), noise)
            expected = torch.tensor([float("nan"), 1, -1]).repeat(100)
            assert torch.equal(x.nan_to_num(7), expected.nan_to_num(7))
            assert torch.equal(eight, expected.nan_to_num(0).to(torch.int8))
            assert np.array_equal(np.unpackbits(packed.numpy())[:300], (expected == 1).numpy())
            assert torch.equal(slope.isnan(), a.isnan()) and not slope.nan_to_num(0).any()


@pytest.mark.parametrize("scale", [0.7, 3.0, 41.0, 47.0, 1e-3])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_the_ends_of_a_support_are_certain(name: str, scale: float) -> None:
    end = torch.tensor([scale, -scale], dtype=torch.float32)
    a, x = end.repeat(8000), torch.empty(16_000)
    compiled.draw(x, a, SEED, 0, make_noise(name, scale), 2, block=BLOCK)
    assert torch.equal(x, a.sign())
    compiled.slope(x, a, torch.ones(16_000), make_noise(name, scale), block=BLOCK)
    assert not x.any()


@names
@scales
@dtypes
def test_slopes_are_those_of_the_reference(name: str, scale: float, dtype: torch.dtype) -> None:
    a, noise = logits(dtype), make_noise(name, scale)
    g = torch.tensor(np.random.default_rng(2).uniform(-1, 1, COUNT), dtype=dtype)
    ours, theirs = torch.empty_like(a), torch.empty_like(a)
    compiled.slope(ours, a, g, noise, block=BLOCK)
    reference.slope(theirs, a, g, noise)
    # The interpreter rounds to half precision towards 0, a GPU to the nearest number
    eps = torch.finfo(dtype).eps
    largest = 2 / scale
    torch.testing.assert_close(ours, theirs, rtol=max(eps, 1e-6), atol=4e-7 * largest)


# --------------------------------------------------------------- F, where the kernel has its own


@triton.jit
def rare_kernel(out, u, z, LAW: tl.constexpr, BLOCK: tl.constexpr):  # noqa: ANN201
    place = tl.arange(0, BLOCK)
    rare = compiled.is_rare(tl.load(u + place), tl.load(z + place), LAW)
    tl.store(out + place, rare.to(tl.int8))


def thresholds(name: str, z: torch.Tensor) -> np.ndarray:
    """The smallest float32 u that is no rare event at z, by bisection of its bits."""
    low, high = torch.zeros(len(z), dtype=torch.int32), torch.full((len(z),), 0x3F800000).int()
    for _ in range(31):
        middle, rare = low + (high - low) // 2, torch.empty(len(z), dtype=torch.int8)
        rare_kernel[(1,)](rare, middle.view(torch.float32), z, LAW=name, BLOCK=len(z))
        low, high = torch.where(rare > 0, middle, low), torch.where(rare > 0, high, middle)
    return high.view(torch.float32).double().numpy()


@names
def test_f_is_right_to_float32_far_into_the_tail(name: str) -> None:
    p = np.geomspace(0.5, 1e-14, 256)
    z = torch.tensor(-ref.LAWS[name].icdf(p), dtype=torch.float32).abs()
    exact = ref.RefNoise(name).cdf(-z.double().numpy())
    found = thresholds(name, z)
    # The argument of an exponential is rounded: log(1/p) 2^-24 of p, twice
    allowed = 2**-21 + 2**-23 * np.log(1 / np.maximum(exact, 1e-30))
    assert (np.abs(found - exact) <= allowed * exact + 1e-30).all()


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
