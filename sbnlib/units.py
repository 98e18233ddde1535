"""The binary unit ``x = sign(a - Z)``: the one place where a sign is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbnlib.contracts import check_ends_with, check_uniforms, check_unit, looking_is_free
from sbnlib.noise import Noise, check_generator, widened

__all__ = ["deterministic_sign", "mean_state", "sample_sign", "states_at", "uniforms"]


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
        +1 where ``u < F(a)``, else -1, in ``a``'s dtype, without a gradient. Rare +1 have their
        right probability, however small; rare -1 to within the rounding of F(a) near 1,
        :math:`2^{-24}` in float32 and :math:`2^{-53}` in float64.

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
        return states_at(a, noise, uniforms(a.shape, a, generator))
    check_ends_with("u", u, a)
    check_uniforms(u)
    return states_at(a, noise, u)


def states_at(a: Tensor, noise: Noise, u: Tensor) -> Tensor:
    """+1 where ``u < F(a)``, else -1: :func:`sample_sign` after its checks."""
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
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=like.device)


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
