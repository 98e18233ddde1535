"""The binary unit ``x = sign(a - Z)``: the one place where a sign is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbnlib.contracts import check_ends_with, check_unit, looking_is_free
from sbnlib.noise import Noise

__all__ = ["deterministic_sign", "sample_sign", "uniforms"]


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

    Returns:
        +1 where ``u < F(a)``, else -1, in ``a``'s dtype, without a gradient. Rare +1 have their
        right probability, however small; rare -1 to within the rounding of F(a) near 1,
        :math:`2^{-24}` in float32 and :math:`2^{-53}` in float64.

    Raises:
        TypeError: ``a`` is not a floating-point tensor, or ``noise`` is not a noise.
        ValueError: the shape of ``u`` does not end with ``a``'s, or (checked on eager CPU tensors
            only) a logit is NaN or infinite. Elsewhere a NaN logit gives NaN, never a sign.
    """
    noise = check_unit(a, noise)
    if u is not None:
        check_ends_with("u", u, a)
    a = a.detach()
    # A probability in half precision has 8 or 11 bits, a sampled bit needs more.
    p = noise.cdf(a.to(torch.promote_types(a.dtype, torch.float32)))
    if u is None:
        u = uniforms(p.shape, p, generator)
    x = _signs((u - p).lt_(0), a)  # u < p; a comparison that puts out floats is 2x faster
    return x if looking_is_free(a) else torch.where(a.isnan(), a, x)


def uniforms(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniforms on [0, 1), in float64 on ``like``'s device.

    float32 uniforms are multiples of 2^-24: an event of probability 1e-9 would be drawn sixty
    times too often.
    """
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=like.device)


def deterministic_sign(a: Tensor) -> Tensor:
    """sign(a) with sign(0) = +1 (``torch.sign(0)`` is 0, which is not a state); no gradient.

    NaN gives NaN.
    """
    return torch.where(a.isnan(), a, _signs(a >= 0, a)).detach()


def _signs(positive: Tensor, a: Tensor) -> Tensor:
    """+1 where ``positive`` (a fresh tensor, may be changed), else -1, in ``a``'s dtype."""
    return positive.to(a.dtype).mul_(2).sub_(1)  # torch.where on random masks is 4x slower
