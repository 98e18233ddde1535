"""The fused sampler: its law in both tails, its streams, its forms, its gradient, its refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import philox as independent
import pytest
import reference as ref
import torch
from bridge import make_noise, z_limit
from discovered import NOISES
from torch.utils.checkpoint import checkpoint

import sbnlib
from sbnlib import SBN, Logistic, kernels
from sbnlib.kernels import reference, sampler
from sbnlib.nn import Sign

names = pytest.mark.parametrize("name", NOISES)
bits_each = pytest.mark.parametrize("bits", [32, 64])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def logits(count: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    u = np.random.default_rng(seed).uniform(-spread, spread, size=count)
    return torch.tensor(u, dtype=torch.float32)


def tail(name: str, a: torch.Tensor, scale: float = 1.0) -> np.ndarray:
    return ref.RefNoise(name, scale).cdf(-a.double().abs().numpy())


# -------------------------------------------------------------------------------- the law


@names
@bits_each
def test_the_states_are_those_of_the_integers(name: str, bits: int) -> None:
    # By a second Philox, a second F and comparisons of integers; F is float32 in one of the two
    a, seed, offset = logits(2000, spread=1.5), 0x0123456789ABCDEF, 2**34 + 8
    found = kernels.sample(a, make_noise(name, 0.8), seed=seed, offset=offset, bits=bits)
    drawn = independent.units(seed, offset, len(a), bits)
    expected = independent.states(a.numpy(), tail(name, a, 0.8), drawn, bits)
    assert (found.numpy() != expected).sum() == 0  # each could differ with probability 1e-7


@names
def test_frequencies(name: str) -> None:
    # A z-test for each law and logit, together one false alarm in 10^6
    draws, a = 2**16, torch.tensor([-2.5, -0.75, -0.1, 0.0, 0.3, 0.79, 4.0])
    x = kernels.sample(a.expand(draws, -1), make_noise(name, 0.8), seed=11)
    up, p = (x == 1).sum(0).numpy(), ref.RefNoise(name, 0.8).cdf(a.double().numpy())
    certain = (p == 0) | (p == 1)
    assert np.array_equal(up[certain], draws * p[certain])
    z = (up - draws * p)[~certain] / np.sqrt(draws * p * (1 - p))[~certain]
    assert np.abs(z).max() < z_limit(len(NOISES) * len(a))


def flipping(a: torch.Tensor, noise: sbnlib.Noise, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """How many of the 2^64 values of a unit's two words give it the rarer state, by bisection."""
    sign = torch.where(a < 0, -1.0, 1.0)
    low, high = [0] * len(a), [2**64] * len(a)  # the rarer state below low, not at high
    for _ in range(64):
        middle = [(m + n) // 2 for m, n in zip(low, high, strict=True)]
        drawn = [2**64 - 1 - m if s < 0 else m for m, s in zip(middle, sign, strict=True)]
        rows = torch.tensor([divmod(d, 2**32) for d in drawn])
        monkeypatch.setattr(reference, "words", lambda *_, rows=rows: rows)
        x = kernels.sample(a, noise, seed=0)
        rare = (x != sign).tolist()
        low = [m if r else n for m, n, r in zip(middle, low, rare, strict=True)]
        high = [n if r else m for m, n, r in zip(middle, high, rare, strict=True)]
    return np.array([float(h) for h in high]) / 2.0**64


@names
def test_both_tails_have_the_accuracy_of_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By thresholds instead of draws: exact down to events that no draw would show
    p = np.array([0.5, 0.4, 0.1, 1e-3, 1e-6, 1e-8, 1e-10, 1e-13])
    lower = torch.tensor(ref.LAWS[name].icdf(p) * 0.8, dtype=torch.float32)
    a = torch.cat([lower, -lower, torch.tensor([0.0, 1e-3, -1e-3, 30.0, -30.0])])
    found, exact = flipping(a, make_noise(name, 0.8), monkeypatch), tail(name, a, 0.8)
    # F in float32 loses what rounding its argument does: of exp that is abs(a) 2^-24; u adds 2^-24
    slack = (
        2**-22
        + 2**-23 * np.log(1 / np.clip(exact, 1e-300, None))
        + (2**-24 / 0.8)
        * (np.abs(a.numpy()) * ref.RefNoise(name, 0.8).pdf(a.double().numpy()) / exact.clip(1e-300))
    )
    assert (np.abs(found - exact) <= slack * exact + 2.0**-63).all(), (a, found, exact)
    assert found[0] == pytest.approx(0.5, abs=2**-25)


def test_states_are_certain_at_the_ends_of_a_support_and_beyond() -> None:
    for scale in (1.0, 0.7, 3.0, 41.0, 1e-3):
        a = torch.tensor([scale, -scale, 2 * scale, -9 * scale]).expand(5000, -1)
        for name in ("Uniform", "Triangular"):
            x = kernels.sample(a, make_noise(name, scale), seed=1)
            assert bool((x == torch.sign(a)).all())


@names
def test_of_one_seed_a_larger_logit_has_no_smaller_state(name: str) -> None:
    noise, columns = make_noise(name), 400
    rows = torch.linspace(-1.2, 1.2, 61)
    x = torch.stack([kernels.sample(a.expand(columns), noise, seed=3) for a in rows])
    assert bool((x[1:] >= x[:-1]).all())
    assert bool((x[0] != x[-1]).any())


def test_zero_is_a_fair_coin_whatever_its_sign() -> None:
    plus, minus = (kernels.sample(torch.full((4096,), z), "logistic", seed=5) for z in (0.0, -0.0))
    assert torch.equal(plus, minus)
    assert abs(float(plus.sum())) < 5 * 64


@bits_each
def test_units_are_independent(bits: int) -> None:
    x = kernels.sample(torch.zeros(2**17), "logistic", seed=17, bits=bits)
    for lag in (1, 2, 3, 4, 8):
        z = float((x[lag:] * x[:-lag]).mean()) * np.sqrt(len(x) - lag)
        assert abs(z) < z_limit(10)


# -------------------------------------------------------------------------------- streams


@bits_each
def test_an_offset_is_a_place_in_the_stream(bits: int) -> None:
    a = logits(1003)
    whole = kernels.sample(a, "logistic", seed=9, bits=bits)
    for k in (0, 4, 400, 1000):
        assert torch.equal(
            kernels.sample(a[k:], "logistic", seed=9, offset=k, bits=bits), whole[k:]
        )
    assert torch.equal(kernels.sample(a[:1], "logistic", seed=9, bits=bits), whole[:1])


@bits_each
def test_a_draw_in_several_runs_is_one_draw(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a draw of more than 2^30 units does, with fewer
    a, kinds = logits(70_001), (None, torch.int8, "packed")
    at_once = [kernels.sample(a, "logistic", seed=2, out=out, bits=bits) for out in kinds]
    monkeypatch.setitem(sampler.MOST, "reference", 1 << 10)
    for out, whole in zip(kinds, at_once, strict=True):
        assert torch.equal(kernels.sample(a, "logistic", seed=2, out=out, bits=bits), whole)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1 << 16, (1 << 16) + 1, (5 << 30) + 7])
def test_the_runs_are_all_units_once(count: int) -> None:
    runs = list(sampler._parts(count, "triton"))
    assert [r.start for r in runs[1:]] == [r.stop for r in runs[:-1]]
    assert (runs[0].start, runs[-1].stop) == (0, count) if count else not runs
    assert all(0 < r.stop - r.start <= 1 << 30 and r.start % 16 == 0 for r in runs)
    long = [r for r in runs if r.stop - r.start > 1 << 16]
    assert all((r.stop - r.start) % 16 == 0 for r in long)  # what makes loads 128 bits wide


def test_places_are_counted_in_the_order_of_the_axes() -> None:
    a = logits(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    x = kernels.sample(a, "logistic", seed=1)
    for other in (a.to(memory_format=torch.channels_last), a.transpose(0, 3).contiguous()
                  .transpose(0, 3), torch.stack([a, a], -1)[..., 0]):  # fmt: skip
        assert not other.is_contiguous()
        assert torch.equal(kernels.sample(other, "logistic", seed=1), x)
    assert torch.equal(kernels.sample(a.flatten(), "logistic", seed=1), x.flatten())


def test_a_seed_may_be_a_tensor_and_without_one_it_is_drawn() -> None:
    a = logits(500)
    draws = [kernels.sample(a, "logistic", seed=s) for s in (7, torch.tensor(7), np.int64(7))]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])
    one, two = (torch.Generator().manual_seed(3) for _ in range(2))
    first, second = (kernels.sample(a, "logistic", generator=one) for _ in range(2))
    assert torch.equal(first, kernels.sample(a, "logistic", generator=two))
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    third = kernels.sample(a, "logistic")
    torch.manual_seed(1)
    assert torch.equal(third, kernels.sample(a, "logistic"))


# --------------------------------------------------------------------------------- forms


@dtypes
def test_forms_of_one_draw(dtype: torch.dtype) -> None:
    a = logits(7 * 24).view(7, 24).to(dtype)
    x = kernels.sample(a, "gaussian", seed=4)
    assert x.dtype == dtype and x.shape == a.shape and bool((x.abs() == 1).all())
    assert torch.equal(kernels.sample(a.float(), "gaussian", seed=4), x.float())
    eight = kernels.sample(a, "gaussian", seed=4, out=torch.int8)
    assert eight.dtype == torch.int8 and torch.equal(eight.to(dtype), x)


@pytest.mark.parametrize("shape", [(24,), (33,), (1,), (3, 16), (3, 17), (2, 3, 5), (4, 0), (0, 9)])
def test_packed_bits_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    a = logits(int(np.prod(shape))).view(shape)
    packed = kernels.sample(a, "logistic", seed=6, out="packed")
    up = kernels.sample(a, "logistic", seed=6).numpy() > 0
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], -(-shape[-1] // 8))
    if packed.numel():
        assert np.array_equal(packed.numpy(), np.packbits(up, axis=-1))


@pytest.mark.parametrize("kind", [None, torch.int8, "packed"])
def test_a_tensor_can_be_filled(kind: object) -> None:
    a = logits(6 * 20).view(6, 20)
    fresh = kernels.sample(a, "logistic", seed=8, out=kind)
    poisoned = torch.full_like(fresh, 77)
    assert kernels.sample(a, "logistic", seed=8, out=poisoned) is poisoned
    assert torch.equal(poisoned, fresh)
    strided = torch.full_like(fresh, 77).repeat_interleave(2, -1)[..., ::2]
    kernels.sample(a, "logistic", seed=8, out=strided)
    assert torch.equal(strided, fresh)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_few_units_and_none(count: int) -> None:
    a = logits(count)
    x = kernels.sample(a, "logistic", seed=1)
    assert x.shape == a.shape
    assert kernels.sample(torch.zeros(()), "logistic", seed=1).shape == ()
    leaf = a.clone().requires_grad_()
    kernels.straight_through(leaf, "logistic", seed=1).sum().backward()
    assert leaf.grad is not None and leaf.grad.shape == a.shape


def test_where_looking_is_not_free_nan_gives_no_state() -> None:
    a = torch.tensor([0.3, float("nan"), -0.2, float("inf"), -float("inf")]).repeat(40)
    nan, certain = a.isnan(), a.isinf()
    key, settings = torch.tensor(1), (0, "logistic", 1.0, 64, "reference")
    x = sampler.draw(a, key, *settings, torch.float32)
    assert torch.equal(x.isnan(), nan) and bool((x[~nan].abs() == 1).all())
    assert torch.equal(x[certain], a[certain].sign())
    assert torch.equal(sampler.draw(a, key, *settings, torch.int8) == 0, nan)
    bits = np.unpackbits(sampler.draw(a, key, *settings, torch.uint8).numpy())[: len(a)]
    assert not bits[nan.numpy()].any()
    assert torch.equal(
        sampler.slope(a, torch.ones_like(a), "logistic", 1.0, "reference").isnan(), nan
    )


# ------------------------------------------------------------------------------ the gradient


@names
@dtypes
def test_the_gradient_is_that_of_straight_through(name: str, dtype: torch.dtype) -> None:
    noise, a = make_noise(name, 0.8), logits(500, spread=1.5).to(dtype)
    g = logits(500, seed=1).to(dtype)
    ours, theirs = (a.clone().requires_grad_() for _ in range(2))
    x = kernels.straight_through(ours, noise, seed=3)
    assert torch.equal(x, kernels.sample(a, noise, seed=3)) and bool((x.abs() == 1).all())
    x.backward(g)
    sbnlib.straight_through(theirs, x.detach(), noise).backward(g)
    assert torch.equal(ours.grad, theirs.grad)
    exact = 2 * ref.RefNoise(name, 0.8).pdf(a.double().numpy()) * g.double().numpy()
    np.testing.assert_allclose(
        ours.grad.double(), exact, rtol=torch.finfo(dtype).eps + 1e-5, atol=1e-6
    )


def test_a_second_derivative_is_refused_by_name() -> None:
    a = logits(5).requires_grad_()
    value = kernels.straight_through(a, "logistic", seed=1).pow(3).sum()
    with pytest.raises(RuntimeError, match="create_graph must be False through a binary unit"):
        torch.autograd.grad(value, a, create_graph=True)


def test_a_batch_of_gradients_goes_through_at_once() -> None:
    a, g = logits(6).requires_grad_(), torch.eye(6)
    x = kernels.straight_through(a, "logistic", seed=1)
    (found,) = torch.autograd.grad(x, a, g, is_grads_batched=True)
    assert torch.allclose(found, torch.diag(2 * Logistic().pdf(a.detach())))


# --------------------------------------------------------------------- units and networks


def test_a_unit_takes_it_by_name() -> None:
    a = logits(300).requires_grad_()
    torch.manual_seed(4)
    x = Sign("gaussian", sampler="fused")(a)
    torch.manual_seed(4)
    assert torch.equal(x, kernels.straight_through(a, "gaussian"))
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    zgr = Sign("gaussian", "zgr", sampler="fused")
    x = zgr(a, generator=one)
    assert torch.equal(x, kernels.sample(a, "gaussian", generator=two))
    (found,) = torch.autograd.grad(x.sum(), a)
    (exact,) = torch.autograd.grad(sbnlib.zgr(a, x.detach(), "gaussian").sum(), a)
    assert torch.equal(found, exact)
    u = torch.rand(300, dtype=torch.float64)
    assert torch.equal(zgr(a, u=u), sbnlib.sample_sign(a, "gaussian", u=u))
    for mode in ("sign", "mean"):
        assert torch.equal(zgr(a, mode=mode), Sign("gaussian", "zgr")(a, mode=mode))


def test_nothing_takes_it_by_itself() -> None:
    a = logits(300)
    assert Sign().sampler == SBN(torch.nn.Linear(2, 2)).sampler == "torch"
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    assert torch.equal(Sign()(a, generator=one), sbnlib.sample_sign(a, "logistic", generator=two))
    assert "sampler" not in repr(Sign()) and "sampler='fused'" in repr(Sign(sampler="fused"))


def test_a_unit_that_was_saved_before_there_was_a_choice_draws_as_ever() -> None:
    unit, a = Sign(), logits(50)
    del vars(unit)["sampler"]
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    assert torch.equal(unit(a, generator=one), sbnlib.sample_sign(a, "logistic", generator=two))


def test_a_network_takes_it_and_a_step_of_training_runs() -> None:
    torch.manual_seed(0)
    net = SBN(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3), sampler="fused")
    assert net.sampler == net.sign.sampler == "fused"
    x = net(torch.randn(16, 4))
    assert x.shape == (16, 3) and bool((x.abs() == 1).all())
    x.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.sampler = "torch"
    assert net.sign.sampler == "torch"


def test_a_checkpointed_unit_draws_the_same_states_again() -> None:
    seen, a = [], logits(100).requires_grad_()
    unit = Sign(sampler="fused")

    def run(a: torch.Tensor) -> torch.Tensor:
        seen.append(unit(a))
        return seen[-1].square()  # the backward pass needs the states themselves

    checkpoint(run, a, use_reentrant=False).sum().backward()
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])
    with pytest.raises(RuntimeError, match="generator must not be drawn from in a backward pass"):
        g = torch.Generator()
        checkpoint(lambda a: unit(a, generator=g).square(), a, use_reentrant=False).sum().backward()


# -------------------------------------------------------------------------------- refusals


class Own(sbnlib.Noise):
    _cdf, _pdf = Logistic._cdf, Logistic._pdf


THREE = torch.zeros(3)


def sample(a: torch.Tensor = THREE, noise: object = "logistic", **options: object) -> None:
    kernels.sample(a, noise, **{"seed": 1, **options})


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda: sample(torch.zeros(3).double()), TypeError, "a must be float32, bfloat16 or float16"),
    (lambda: Sign(sampler="fused")(torch.zeros(3).double()), TypeError, "sampler='torch' takes it"),
    (lambda: Sign(Own(), sampler="fused")(THREE), ValueError, "sampler='torch' takes any law"),
    (lambda: sample(torch.zeros(3).long()), TypeError, "a must be a floating-point tensor"),
    (lambda: sample(torch.tensor([float("nan")])), ValueError, "a must be finite"),
    (lambda: sample(noise="levy"), ValueError, "noise must be one of"),
    (lambda: sample(noise=Own()), ValueError, "noise must be one of Cauchy, .*got Own"),
    (lambda: sample(noise=0.3), TypeError, "noise must be a noise model"),
    (lambda: sample(seed=-1), ValueError, r"seed must be from 0 to 2\*\*63 - 1, got -1"),
    (lambda: sample(seed=2**63), ValueError, "seed must be from 0 to"),
    (lambda: sample(seed=0.5), TypeError, "seed must be an integer or an int64 tensor"),
    (lambda: sample(seed=True), TypeError, "seed must be an integer"),
    (lambda: sample(seed=torch.tensor([1])), TypeError, r"seed must be .* shape \(\), got"),
    (lambda: sample(seed=torch.tensor(1.0)), TypeError, "seed must be .*, got torch.float32"),
    (lambda: sample(seed=torch.tensor(1, device="meta")), ValueError, "seed must be on cpu"),
    (lambda: sample(generator=torch.Generator()), ValueError, "generator must be None where seed"),
    (lambda: sample(seed=None, generator=3), TypeError, "generator must be a torch.Generator"),
    (lambda: sample(offset=-4), ValueError, "offset must be a multiple of 4 from 0 to"),
    (lambda: sample(offset=6), ValueError, "offset must be a multiple of 4"),
    (lambda: sample(offset=2**62), ValueError, "offset must be a multiple of 4"),
    (lambda: sample(offset=4.0), ValueError, "offset must be a multiple of 4"),
    (lambda: sample(bits=16), ValueError, r"bits must be one of \(32, 64\), got 16"),
    (lambda: sample(backend="cuda"), ValueError, "backend must be one of .* or None, got 'cuda'"),
    (lambda: sample(out=torch.float64), TypeError, "out must be .*, torch.int8, 'packed'"),
    (lambda: sample(out=torch.uint8), TypeError, "out must be torch.float32"),
    (lambda: sample(out="bits"), TypeError, "out must be .*got 'bits'"),
    (lambda: sample(out=torch.zeros(4)), ValueError, r"out must have shape \(3,\), got \(4,\)"),
    (lambda: sample(out=torch.zeros(3).byte()), ValueError, r"shape \(1,\), got \(3,\)"),
    (lambda: sample(out=torch.zeros(3).double()), TypeError, "out must be of torch.float32"),
    (lambda: sample(out=torch.zeros(3, device="meta")), ValueError, "out must be on cpu"),
    (lambda: sample(out=torch.zeros(3, requires_grad=True)), ValueError, "out must not require"),
    (lambda: sample(torch.zeros(()), out="packed"), ValueError, "a must have at least one axis"),
    (lambda: Sign(sampler="triton"), ValueError, "sampler must be one of .*got 'triton'"),
    (lambda: setattr(SBN(torch.nn.Linear(2, 2)), "sampler", 1), ValueError, "sampler must be one"),
])  # fmt: skip
def test_refusals(call: Callable[[], None], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_triton_needs_a_device_and_a_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for a in (torch.zeros(3), torch.zeros(0)):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "sbnlib.kernels.compiled", raising=False)
            patch.delattr(kernels, "compiled", raising=False)
            patch.setitem(sys.modules, "triton", None)
            said = r"triton is not installed; .* pip install 'sbnlib\[gpu\]'"
            with pytest.raises(ModuleNotFoundError, match=said):
                sample(a, backend="triton")
    pytest.importorskip("triton", reason="triton is not installed: pip install 'sbnlib[gpu]'")
    with pytest.raises(ValueError, match="backend must be 'reference' for a on cpu, got 'triton'"):
        sample(backend="triton")


# ---- what was once done in silence ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_an_offset_of_numpy_is_a_place_too(kind: type) -> None:
    a, offset = torch.zeros(100), 2**26
    right = kernels.sample(a, Logistic(), seed=3, offset=offset)
    out = torch.empty(100)
    assert torch.equal(kernels.sample(a, Logistic(), seed=3, offset=kind(offset), out=out), right)
    with pytest.raises(ValueError, match="bits must be one of"):
        kernels.sample(a, Logistic(), seed=3, bits=64.0)


def test_a_tensor_that_overlaps_the_logits_is_filled_right() -> None:
    b = torch.randn(3_000_008, generator=torch.Generator().manual_seed(0))
    right = kernels.sample(b[:-8].clone(), Logistic(), seed=5)
    assert torch.equal(kernels.sample(b[:-8], Logistic(), seed=5, out=b[8:]), right)


def test_what_is_filled_is_known_to_autograd() -> None:
    out, w = torch.zeros(5, 7), torch.ones(5, 7, requires_grad=True)
    y = (w * out).sum()
    before = out._version
    kernels.sample(torch.zeros(5, 7), Logistic(), seed=3, out=out)
    assert out._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_negated_views_are_read_and_filled_as_they_look() -> None:
    a = torch.linspace(-3, 3, 64)
    right = kernels.sample(-a, Logistic(), seed=3)
    found = kernels.sample(torch._neg_view(a), Logistic(), seed=3, out=torch.empty(64))
    assert torch.equal(found, right)
    out = torch._neg_view(torch.empty(64))
    assert torch.equal(kernels.sample(-a, Logistic(), seed=3, out=out), right)
