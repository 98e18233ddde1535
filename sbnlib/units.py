"""The binary unit ``x = sign(a - Z)``: the one place where a sign is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sbnlib.contracts import check_ends_with, check_uniforms, check_unit, looking_is_free
from sbnlib.noise import Generators, Noise, Share, by_trial, check_generator, widened

__all__ = [
    "by_words",
    "deterministic_sign",
    "draw",
    "flipped",
    "flipped_by_words",
    "mean_state",
    "sample_sign",
    "states_at",
    "uniforms",
]


def sample_sign(
    a: Tensor,
    noise: Noise | str,
    *,
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
) -> Tensor:
    r"""Draw a binary unit: +1 with probability F(a) and -1 otherwise; never 0.

    .. math:: x = \operatorname{sign}(a - Z), \qquad Z \sim F, \qquad P(x) = F(xa)

    Args:
        a: pre-activations, any shape, floating point.
        noise: the law F of Z, or its name for scale 1.
        generator: source of the uniforms when ``u`` is not given; on the device of ``a``.
        u: uniforms on [0, 1) handed in, of ``a``'s shape or with further axes in front (then so
            many independent draws); compiled and repeatable code needs it.

    Under activation checkpointing (``torch.utils.checkpoint``) a forward pass is run a second time
    and must draw the same numbers: hand in ``u``, or give no generator. Torch restores its global
    generators; one handed in goes on, and is refused there.

    Returns:
        +1 or -1, in ``a``'s dtype, without a gradient. What is drawn is the rarer of the two
        states, of probability F(-abs(a)): on the CPU it has that probability as float32 (or
        float64) knows it, rare +1 and rare -1 alike, down to 2e-26; elsewhere to within
        :math:`2^{-53}`. The same seed gives the same states on any number of threads and in any
        memory format, and a larger ``a`` never a smaller state. With ``u`` it is +1 where
        ``u < F(a)``, and a rare -1 comes to within the rounding of F(a) near 1.

    Raises:
        TypeError: ``a`` is not a floating-point tensor, ``noise`` is not a noise, or ``generator``
            is not a generator.
        ValueError: the shape of ``u`` does not end with ``a``'s, ``generator`` is on another
            device, or (looked at on eager CPU tensors only) a logit is NaN or infinite, or ``u``
            is not on [0, 1). Elsewhere a NaN logit gives NaN, an infinite one its certain sign.
        RuntimeError: ``generator`` is drawn from in a backward pass, see above.
    """
    noise = check_unit(a, noise)
    if u is None:
        return draw(a, noise, a.shape, generator)
    check_ends_with("u", u, a)
    check_uniforms(u)
    return states_at(a, noise, u)


def draw(
    a: Tensor, noise: Noise, shape: Sequence[int], generator: torch.Generator | None
) -> Tensor:
    """States of ``shape``, which ends with ``a``'s: :func:`sample_sign` after its checks."""
    wide = widened(a.detach())  # in half precision q has 8 or 11 bits, a sampled bit needs more
    return flipped(wide, noise.tail(wide), shape, generator).to(a.dtype)


def flipped(
    a: Tensor, q: Tensor, shape: Sequence[int], generator: torch.Generator | None
) -> Tensor:
    """sign(a), turned round with probability q = F(-abs(a)); a is float32 or float64."""
    if by_words(a):  # and a is finite
        return flipped_by_words(a, q, shape, generator)
    negative, u = torch.signbit(a), uniforms(shape, a, generator)
    flip = torch.where(negative, (1 - 2**-53) - u, u) < q
    return torch.where(a.isnan(), a, _signs(negative == flip, a))


def by_words(a: Tensor) -> bool:
    """Whether states of ``a`` are drawn in integers: on a CPU outside of compile and torch.func."""
    return looking_is_free(a) and torch._C._functorch.peek_interpreter_stack() is None


_MINUS_2_31 = torch.tensor(-(2.0**31), device="cpu")
_31, _SIGN, _REST, _ONE = (  # the sign bit of a float32, the other bits, and the bits of 1
    torch.tensor(k, dtype=torch.int32, device="cpu") for k in (31, -(2**31), 2**31 - 1, 0x3F800000)
)


def flipped_by_words(
    a: Tensor, q: Tensor, shape: Sequence[int], generator: torch.Generator | None
) -> Tensor:
    """:func:`flipped` by 31 random bits y a unit, in integers, so that q is not rounded.

    With Q = 2^31 q a unit flips where y < floor(Q), and where y = floor(Q) with the probability
    Q - floor(Q) that is left. y - floor(Q) is negative where it flips: its sign bit is the flip.
    For a < 0 the bits are complemented, so that the same seed gives states that only rise with a.
    """
    check_generator(generator, a.device)
    bits = a.float().view(torch.int32)
    minus_floor = (q * _MINUS_2_31).int()  # rounds towards 0
    y = _words(shape, generator).bitwise_xor_(bits >> _31).bitwise_and_(_REST)
    below = minus_floor + y  # in this order it keeps the strides of a
    if torch.count_nonzero(below) != below.numel():
        _settle_ties(below, q * 2.0**31 + minus_floor, generator)
    signs = below.bitwise_xor_(bits).bitwise_and_(_SIGN).bitwise_or_(_ONE)
    return signs.view(torch.float32).to(a.dtype)


def _words(shape: Sequence[int], generator: torch.Generator | Generators | Share | None) -> Tensor:
    """32 random bits for each unit, int32."""
    if isinstance(generator, Share):
        return generator.take(_words, shape)
    if isinstance(generator, Generators):
        return _words_by_trial(shape, generator)
    count = math.prod(shape)
    pairs = torch.empty((count + 1) // 2, dtype=torch.int64, device="cpu")  # the fastest way
    return pairs.random_(-(2**63), None, generator=generator).view(torch.int32)[:count].view(shape)


def _words_by_trial(shape: Sequence[int], generators: Generators) -> Tensor:
    """Each training's words drawn in their place."""
    own = generators.own(shape)
    if any(isinstance(part, Share) for part in generators.parts):
        return torch.stack([_words(own, part) for part in generators.parts], dim=-3)
    count = math.prod(own)
    pairs = torch.empty(len(generators.parts), (count + 1) // 2, dtype=torch.int64, device="cpu")
    for row, part in zip(pairs, generators.parts, strict=True):
        row.random_(-(2**63), None, generator=part)
    return pairs.view(torch.int32)[:, :count].unflatten(1, own).movedim(0, -3)


def _settle_ties(
    below: Tensor, rest: Tensor, generator: torch.Generator | Generators | Share | None
) -> None:
    """One more draw for the units, one in 2^31, whose 31 bits do not decide."""
    if isinstance(generator, Generators):
        for t, part in enumerate(generator.parts):
            _settle_ties(below.select(-3, t), rest.select(-3, t), part)
        return
    ties = below == 0
    left = rest.double().expand(below.shape)[ties]
    if isinstance(generator, Share):
        v = generator.aside(ties)
    else:
        v = torch.rand(left.shape, generator=generator, dtype=torch.float64, device="cpu")
    below[ties] = -(v < left).int()


def states_at(a: Tensor, noise: Noise, u: Tensor) -> Tensor:
    """+1 where ``u < F(a)``, else -1: :func:`sample_sign` with uniforms, after its checks."""
    a = a.detach()
    p = noise.cdf(widened(a))  # in half precision it has 8 or 11 bits, a sampled bit needs more
    below = p - u  # p first: the states keep the strides of a, whatever those of u
    if looking_is_free(below):  # and a is finite
        return _signs(below.gt_(0), a)  # floats 0 and 1: 2x faster, but vmap has no rule for it
    return torch.where(a.isnan(), a, _signs(below > 0, a))


def uniforms(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniforms on [0, 1), in float64 on ``like``'s device.

    float32 uniforms are multiples of 2^-24: an event of probability 1e-9 would be drawn sixty
    times too often.
    """
    check_generator(generator, like.device)

    def draw(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64, device=like.device)

    return by_trial(draw, shape, generator)


def mean_state(a: Tensor, noise: Noise) -> Tensor:
    """mu = 2F(a) - 1 in ``a``'s dtype, with its ordinary gradient 2f(a)."""
    return (2 * noise.cdf(widened(a)) - 1).to(a.dtype)  # in half precision F(0.001) is 1/2


def deterministic_sign(a: Tensor) -> Tensor:
    """sign(a) with sign(0) = +1 (``torch.sign(0)`` is 0, which is not a state); no gradient.

    NaN gives NaN.
    """
    return torch.where(a.isnan(), a, _signs(a >= 0, a)).detach()


def _signs(positive: Tensor, a: Tensor) -> Tensor:
    """+1 where ``positive`` (a fresh tensor, may be changed), else -1, in ``a``'s dtype."""
    return positive.to(a.dtype).mul_(2).sub_(1)  # torch.where on random masks is 4x slower
