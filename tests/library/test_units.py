"""The one place where a sign is drawn."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise, z_limit
from discovered import NOISES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch import nn
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

import sbnlib
from sbnlib import SBN, Logistic, sample_sign, units
from sbnlib.estimators import flips
from sbnlib.nn import Sign

names = pytest.mark.parametrize("name", NOISES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
LOGITS = (-2.5, -0.75, -0.1, 0.0, 0.3, 0.9, 4.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@names
def test_frequency_of_plus_one_is_the_cdf(name: str) -> None:
    # A z-test for each law and logit, together one false alarm in 10^6 (Bonferroni)
    draws, noise = 2**17, ref.RefNoise(name, 0.8)
    a = torch.tensor(LOGITS).expand(draws, -1)
    up = (sample_sign(a, make_noise(name, 0.8), generator=seeded()) == 1).sum(0).numpy()
    p = noise.cdf(a[0].double().numpy())
    certain = (p == 0) | (p == 1)
    assert np.array_equal(up[certain], draws * p[certain])
    z = (up - draws * p)[~certain] / np.sqrt(draws * p * (1 - p))[~certain]
    assert np.abs(z).max() < z_limit(len(NOISES) * len(LOGITS))


def test_units_are_independent() -> None:
    # Correlation of neighbours and of successive rows; two z-tests, together 1e-6
    draws = 2**18
    x = sample_sign(torch.full((draws, 2), 0.2), Logistic(), generator=seeded(1))
    centred = (x - x.mean(0)) / x.std(0)
    across = float((centred[:, 0] * centred[:, 1]).mean()) * np.sqrt(draws)
    along = float((centred[1:, 0] * centred[:-1, 0]).mean()) * np.sqrt(draws)
    assert max(abs(across), abs(along)) < z_limit(2)


@dtypes
def test_values_are_plus_or_minus_one_and_never_zero(dtype: torch.dtype) -> None:
    # sign(a - Z) with torch.sign gives 0 in about 4 of 2^26 draws at p = 1/2
    x = sample_sign(torch.zeros(2**22, dtype=dtype), Logistic(), generator=seeded(2))
    assert x.dtype == dtype
    assert bool((x.abs() == 1).all())
    # One z-test per dtype, three in all, together 1e-6
    assert abs(float(x.double().mean())) * 2**11 < z_limit(3)


@dtypes
def test_samples_are_detached_and_have_the_shape_of_the_logits(dtype: torch.dtype) -> None:
    a = torch.zeros(2, 1, 3, dtype=dtype, requires_grad=True)
    x = sample_sign(a, Logistic(), generator=seeded())
    assert x.shape == a.shape
    assert not x.requires_grad


# ------------------------------------------------------------------ the rare event, in integers


def decided(words: list[int], v: float, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """``sample_sign`` with these 31-bit words, and ``v`` wherever they do not decide."""
    given = torch.tensor(words, dtype=torch.int32)
    monkeypatch.setattr(units, "_words", lambda shape, generator: given.clone().view(shape))
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, v, dtype=torch.float64))
    return lambda a, noise: sample_sign(a.expand(len(words)), noise)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("magnitude", [0.0, 0.3, 0.97, 4.0])
def test_a_unit_flips_with_exactly_the_probability_of_its_tail(
    name: str, dtype: torch.dtype, magnitude: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # P(flip) = sum over words and v: floor(Q) words below, and the part Q - floor(Q) of one more,
    # read off by trying the words around floor(Q) and v around what is left. Expected: F(-|a|).
    noise = make_noise(name)
    for a in torch.tensor([magnitude, -magnitude], dtype=dtype):
        wide = a if dtype == torch.float64 else a.float()
        scaled = noise.tail(wide).double().item() * 2**31
        exact = ref.RefNoise(name).cdf(-abs(a.double().item())) * 2**31
        assert scaled == pytest.approx(exact, rel=1e-6, abs=1e-300)
        floor, left = int(scaled), scaled - int(scaled)
        words = [0, max(floor - 1, 0), floor, floor + 1, 2**31 - 1]
        for v in {0.0, left * (1 - 1e-9), left, 1 - 2**-53}:
            given = [y ^ (2**31 - 1) if torch.signbit(a) else y for y in words]
            x = decided(given, v, monkeypatch)(a, noise)
            s = -1.0 if torch.signbit(a) else 1.0
            flips = [y < floor or (y == floor and v < left) for y in words]
            assert x.dtype == dtype
            assert x.tolist() == [-s if flip else s for flip in flips]


@pytest.mark.slow
@names
@pytest.mark.parametrize("sign", [-1, 1])
def test_rare_states_are_as_frequent_as_they_should_be(name: str, sign: int) -> None:
    # p = 2e-6 over 2^24 float32 logits, +1 and -1 alike; a z-test each, in all one in 10^6.
    # F near 1 is a multiple of 2^-24 = 6e-8: a tail read from there is off by 3 %.
    p, rows = 2e-6, 2**20
    logit = float(ref.RefNoise(name).icdf(p))
    a = torch.full((rows,), sign * logit, dtype=torch.float32)
    p = float(ref.RefNoise(name).cdf(-abs(a[0].double().item())))
    generator, hits = seeded(3), 0
    for _ in range(16):
        hits += int((sample_sign(a, make_noise(name), generator=generator) == sign).sum())
    expected = 16 * rows * p
    assert stats.binomtest(hits, 16 * rows, p).pvalue > 1e-6 / 12, (hits, expected)


def test_words_that_do_not_decide_are_settled_by_one_more_draw() -> None:
    # At Q = 1/2, P = 2^-32, only a word 0 leaves the state open: half of those flip, a z-test 1e-6
    below = torch.zeros(2**16, dtype=torch.int32)
    units._settle_ties(below, torch.tensor(0.5), seeded(4))
    assert below.unique().tolist() == [-1, 0]
    assert abs(float(below.double().mean()) + 0.5) * 2 * 2**8 < z_limit(1)


def test_words_are_uniform_in_every_bit() -> None:
    # z-tests of the bits, of neighbouring bits and of successive words, together 1e-6
    words = units._words((2**18,), seeded(5)).numpy()
    bits = (words[:, None] >> np.arange(32)) & 1
    tests = [bits.mean(0), (bits[:, 1:] ^ bits[:, :-1]).mean(0), (bits[1:] ^ bits[:-1]).mean(0)]
    z = (np.concatenate(tests) - 0.5) * 2 * 2**9
    assert np.abs(z).max() < z_limit(len(z))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (5, 3)])
@dtypes
def test_any_number_of_units_is_drawn(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = sample_sign(torch.full(shape, -0.0, dtype=dtype), Logistic(), generator=seeded())
    assert x.shape == shape
    assert bool((x.abs() == 1).all())


def test_negative_zero_is_a_fair_coin() -> None:
    x = sample_sign(torch.full((2**16,), -0.0), Logistic(), generator=seeded(6))
    assert abs(float(x.mean())) * 2**8 < z_limit(1)


@pytest.mark.parametrize("scale", [1.0, 0.7])
@dtypes
def test_a_logistic_unit_is_a_draw_handed_to_straight_through(
    dtype: torch.dtype, scale: float
) -> None:
    # Bit for bit, though Sign computes the tail once for both
    a = torch.linspace(-30, 30, 4001, dtype=dtype).requires_grad_()
    noise, weights = Logistic(scale), torch.linspace(-2, 3, 4001, dtype=dtype)
    by_sign = Sign(noise)(a, generator=seeded(7))
    x = sample_sign(a, noise, generator=seeded(7))
    by_hand = sbnlib.straight_through(a, x, noise)
    assert torch.equal(by_sign, by_hand)
    (one,) = torch.autograd.grad(by_sign, a, weights)
    (other,) = torch.autograd.grad(by_hand, a, weights)
    assert torch.equal(one, other)


SETTINGS = """
import hashlib, sys, torch
import sbnlib
from sbnlib import noise
torch.set_num_threads(int(sys.argv[1]))
digest = hashlib.sha256()
for law in noise.NOISES.values():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in ((7, 11), (300, 301)):
            draws = torch.Generator().manual_seed(0)
            a = (torch.arange(shape[0] * shape[1]) % 8001 / 1000 - 4).view(shape).to(dtype)
            x = sbnlib.sample_sign(a, law(), generator=draws)
            digest.update((x > 0).numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_threads_and_instruction_sets_draw_the_same_states() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", SETTINGS, threads],
            env=os.environ | {"ATEN_CPU_CAPABILITY": capability} if capability else None,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads, capability in (("1", ""), ("2", ""), ("1", "default"))
    }
    assert len(found) == 1


@names
@dtypes
@pytest.mark.parametrize("transformed", [False, True])
def test_the_same_seed_gives_states_that_rise_with_the_logit(
    name: str, dtype: torch.dtype, transformed: bool
) -> None:
    # Common random numbers: a rounding of a near 0 turns no state round
    noise, units_ = make_noise(name), torch.zeros(500, dtype=dtype)

    def draw(logit: float) -> torch.Tensor:
        a = units_ + logit
        sample = lambda a: sample_sign(a, noise, generator=seeded(8))  # noqa: E731
        return vmap(sample, randomness="same")(a[None])[0] if transformed else sample(a)

    states = torch.stack([draw(v) for v in (-2, -0.4, -1e-3, -0.0, 0.0, 1e-3, 0.4, 2)])
    assert bool((states.diff(dim=0) >= 0).all())
    assert int((states[4] != states[3]).sum()) == 0
    assert (states[-1] > states[0]).any()


@names
def test_the_stream_of_states_never_changes(name: str) -> None:
    # Stored outputs rest on it. Expected: the Mersenne twister of numpy, two words a pair of units
    # in the order low, high; 31 bits of each, u = y/2^31; +1 where u >= 1 - F(a)
    a = torch.linspace(-2, 2, 1001)
    twister = np.random.RandomState(1234)
    pairs = twister.randint(0, 2**32, size=(501, 2), dtype=np.uint32)
    words = pairs[:, ::-1].flatten()[:1001] & 0x7FFFFFFF
    u = words / 2**31
    expected = np.where(u >= ref.RefNoise(name).cdf(-a.double().numpy()), 1.0, -1.0)
    x = sample_sign(a, make_noise(name), generator=seeded(1234)).numpy()
    assert np.array_equal(x, expected)
    assert 300 < (x > 0).sum() < 700


@names
def test_uniforms_handed_in_just_below_and_above_a_tiny_probability(name: str) -> None:
    p = 1e-9 if name not in ref.BOUNDED else 2**-25
    logit = float(ref.RefNoise(name).icdf(p))
    a = torch.tensor([logit, logit], dtype=torch.float64)
    u = torch.tensor([p * (1 - 1e-5), p * (1 + 1e-5)], dtype=torch.float64)
    assert sample_sign(a, make_noise(name), u=u).tolist() == [1, -1]


@pytest.mark.slow
@names
@settings(max_examples=50, deadline=None)
@given(
    a=hnp.arrays(np.float64, (3, 4), elements=st.floats(-6, 6)),
    u=hnp.arrays(np.float64, (2, 3, 4), elements=st.floats(0, 1, exclude_max=True)),
)
def test_plus_one_where_u_is_below_the_cdf_with_extra_leading_axes(
    name: str, a: np.ndarray, u: np.ndarray
) -> None:
    x = sample_sign(torch.tensor(a), make_noise(name), u=torch.tensor(u)).numpy()
    p = ref.RefNoise(name).cdf(a)
    clear = np.abs(u - p) > 1e-12
    assert x.shape == u.shape
    assert np.array_equal(x[clear], np.where(u < p, 1.0, -1.0)[clear])


def test_equality_is_not_below() -> None:
    half = torch.tensor([0.5], dtype=torch.float64)
    assert sample_sign(torch.zeros(1, dtype=torch.float64), Logistic(), u=half).item() == -1


@pytest.mark.parametrize("name", ref.BOUNDED)
def test_certain_states_outside_a_bounded_support(name: str) -> None:
    a, u = torch.tensor([-1.0, -2.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1 - 2**-24, 1 - 2**-24])
    assert sample_sign(a, make_noise(name), u=u).tolist() == [-1, -1, 1, 1]


def test_every_state_of_three_units_has_its_probability() -> None:
    # Chi-square over the eight joint states, false-alarm rate 1e-6
    a = np.array([0.4, -0.9, 0.1])
    x = sample_sign(torch.tensor(a).expand(2**17, 3), Logistic(), generator=seeded(5)).numpy()
    all_states = ref.states(3)
    counts = [(x == s).all(1).sum() for s in all_states]
    expected = ref.RefNoise("Logistic").prob(all_states, a).prod(1) * len(x)
    assert stats.chisquare(counts, expected).pvalue > 1e-6


def test_the_generator_repeats_the_sample() -> None:
    a = torch.linspace(-2, 2, 999)
    one, two, other = (sample_sign(a, Logistic(), generator=seeded(s)) for s in (7, 7, 8))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_single_and_double_precision_share_the_stream_of_uniforms() -> None:
    a = torch.linspace(-2, 2, 999)
    single = sample_sign(a, Logistic(), generator=seeded(7))
    double = sample_sign(a.double(), Logistic(), generator=seeded(7))
    assert torch.equal(single.double(), double)


def test_handing_in_uniforms_leaves_the_generator_alone() -> None:
    generator = seeded(1)
    before = generator.get_state()
    sample_sign(torch.zeros(3), Logistic(), generator=generator, u=torch.rand(3))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="a"):
        sample_sign(torch.tensor([0.0, bad]), Logistic())


@pytest.mark.parametrize("a", [torch.tensor([1, 2]), torch.tensor([True]), [0.5], 0.5, None])
def test_logits_that_are_no_floating_point_tensor_are_refused(a: object) -> None:
    with pytest.raises(TypeError, match="a"):
        sample_sign(a, Logistic())


@pytest.mark.parametrize("noise", [Logistic, None, 1.0])
def test_a_noise_that_is_no_noise_is_refused(noise: object) -> None:
    with pytest.raises(TypeError, match="noise"):
        sample_sign(torch.zeros(2), noise)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3), (3, 2, 1), ()])
def test_uniforms_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="u"):
        sample_sign(torch.zeros(3, 2), Logistic(), u=torch.rand(shape))


def test_uniforms_that_are_no_tensor_are_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="u"):
        sample_sign(torch.zeros(2), Logistic(), u=[0.1, 0.2])


NO_UNIFORMS = [math.nan, -1e-9, 1.0, 2.0, math.inf]


@pytest.mark.parametrize("bad", NO_UNIFORMS)
def test_uniforms_off_the_unit_interval_are_refused(bad: float) -> None:
    # At u = 1 a unit with F(a) = 1 would be -1
    a, x, u = torch.zeros(3), torch.ones(3), torch.tensor([0.2, bad, 0.9])
    for call in (
        lambda: sample_sign(a, Logistic(), u=u),
        lambda: Sign()(a, u=u),
        lambda: SBN(nn.Linear(3, 3))(torch.zeros(3), u=[u]),
        lambda: sbnlib.concrete(a, Logistic(), tau=0.5, u=u),
        lambda: sbnlib.st_gumbel(a, x, Logistic(), tau=0.5, u=u),
        lambda: sbnlib.gumbel_rao(a, x, Logistic(), tau=0.5, num_inner=2, u=u.expand(2, 3)),
    ):
        with pytest.raises(ValueError, match=r"u must be on \[0, 1\), got values from"):
            call()


def test_no_uniforms_at_all_are_right_for_no_units() -> None:
    assert sample_sign(torch.zeros(0), Logistic(), u=torch.zeros(0)).shape == (0,)


def test_the_estimators_own_uniforms_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    # ARM compares 1 - u, which is 1 where u is 0
    ends = lambda shape, like, generator: torch.zeros(shape, dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr(flips, "uniforms", ends)
    for estimator in (sbnlib.arm, sbnlib.disarm):
        assert estimator(lambda x: x.sum(-1), torch.zeros(2, 3), Logistic()).tolist() == [-3, -3]


# --------------------------------------------------------------------- layout, vmap, generators


@names
def test_states_keep_the_memory_format_and_their_numbers(name: str) -> None:
    image = torch.rand(2, 3, 4, 5, generator=seeded(1)) - 0.5
    last = image.to(memory_format=torch.channels_last).requires_grad_()
    noise = make_noise(name)
    x = sample_sign(last, noise, generator=seeded(2))
    assert torch.equal(x, sample_sign(image, noise, generator=seeded(2)))
    outputs = [x, Sign(noise)(last, generator=seeded(2))]
    outputs += [Sign(noise)(last, mode=mode) for mode in ("sign", "mean")]
    outputs += [Sign(noise, estimator=f)(last, generator=seeded(2))
                for f in ("zgr", "st_gumbel", "hardtanh", "identity")]  # fmt: skip
    outputs += [sbnlib.concrete(last, noise, tau=0.5, generator=seeded(2))]
    for out in outputs:
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_transposed_layer_of_units_keeps_its_strides() -> None:
    a = torch.rand(7, 5, generator=seeded(1)).T
    assert sample_sign(a, Logistic(), generator=seeded(2)).stride() == a.stride()
    assert torch.equal(
        sample_sign(a, Logistic(), generator=seeded(2)),
        sample_sign(a.contiguous(), Logistic(), generator=seeded(2)),
    )


def test_vmap_gives_no_warning() -> None:
    # Of an operation without a batching rule; it is printed once a process, so this asks for all
    a, u = torch.zeros(4, 3), torch.rand(4, 3, generator=seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vmap(lambda a: Sign()(a), randomness="different")(a)
        vmap(lambda a, u: Sign()(a, u=u))(a, u)
        vmap(lambda u: sample_sign(a[0], Logistic(), u=u))(u)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("how", ["global", "uniforms", "generator"])
def test_activation_checkpointing(how: str, reentrant: bool) -> None:
    # The second forward pass must draw the numbers of the first: the gradient of c(x) x, with
    # c random too. A generator handed in has gone on, so it is refused.
    a = torch.linspace(-2, 2, 50).requires_grad_()
    u = torch.rand(2, 50, generator=seeded(3))
    generator = seeded(4)

    def run(a: torch.Tensor) -> torch.Tensor:
        if how == "uniforms":
            x = sample_sign(a, Logistic(), u=u[0])
            out = sbnlib.st_gumbel(a, x, Logistic(), tau=0.5, u=u[1])
        else:
            given = generator if how == "generator" else None
            out = Sign(estimator="st_gumbel")(a, generator=given)
        return (out + 2).square()

    def gradient(forward: Callable) -> torch.Tensor:
        torch.manual_seed(7)
        out = forward(a).sum()
        torch.rand(5)  # the global generator goes on too
        return torch.autograd.grad(out, a)[0] if not reentrant else backward(out)

    def backward(out: torch.Tensor) -> torch.Tensor:
        a.grad = None
        out.backward()
        return a.grad

    checkpointed = partial(checkpoint, run, use_reentrant=reentrant)
    if how == "generator":
        with pytest.raises(RuntimeError, match="generator must not be drawn from in a backward"):
            gradient(checkpointed)
    else:
        assert torch.equal(gradient(checkpointed), gradient(run))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_network_with_a_generator_is_refused(reentrant: bool) -> None:
    net, inputs = SBN(nn.Linear(3, 4), nn.Linear(4, 2)), torch.ones(5, 3, requires_grad=True)
    for unit in (net, SBN(sbnlib.nn.BernoulliLinear(3, 2))):
        run = partial(unit, generator=seeded(1))
        out = checkpoint(lambda v, run=run: run(v), inputs, use_reentrant=reentrant)
        with pytest.raises(RuntimeError, match="hand in u, or use torch's global generator"):
            out.sum().backward()
    generator = seeded(1)
    out = checkpoint(
        lambda v: sbnlib.concrete(v, Logistic(), tau=0.5, generator=generator),
        inputs,
        use_reentrant=reentrant,
    )
    with pytest.raises(RuntimeError, match="generator must not"):
        out.sum().backward()
