"""FouST: a uniform number on (-1, 1), split into a state and its distance from 0."""

from __future__ import annotations

from torch import Generator, Tensor

from sbnlib.contracts import check_ends_with, check_uniforms, check_unit
from sbnlib.estimators.chain_rule import attach
from sbnlib.noise import Noise, widened
from sbnlib.units import draw, states_at, uniforms

__all__ = ["foust"]


def foust(
    a: Tensor,
    noise: Noise | str,
    *,
    generator: Generator | None = None,
    u: Tensor | None = None,
) -> Tensor:
    r"""The state shrunk at random, with ZGR's factor: two steps of FouST.

    .. math:: y = x\,v, \quad v \sim U(0, 1), \qquad \partial y/\partial a := f(a)/P(x)

    Divided by 2P(x), both states have equal weight and y is uniform on (-1, 1); the mean of the
    slope over it is the flip difference:
    :math:`\mathbb{E}\,\tfrac{f}{P(x)} L'(xv) = f\int_{-1}^1 L' = f\,\Delta L`. So it is exact for
    every differentiable loss of one unit, and for sums of such losses. Of several units that act
    together each sees the others shrunk: on :math:`x_1 x_2` it gives half the gradient.

    The value is real, not a state.

    Args:
        a: pre-activations ``(..., n)``.
        noise: the law of Z, or its name for scale 1.
        generator: source of randomness, on the device of ``a``.
        u: uniforms handed in, ``(2, ..., n)`` ending with ``a``'s shape: the first give the state,
            the second v.

    Raises:
        ValueError: a wrong shape.

    Source: after Pervez, Cohen & Gavves 2020 (ICML), of which only the abstract could be read: the
    importance weights and the split are reconstructed, the rescaling of the representation, which
    changes the network, is left out; chapter 9.
    """
    noise = check_unit(a, noise)
    if u is None:
        x = draw(a, noise, a.shape, generator)
        v = uniforms(a.shape, a, generator)
    else:
        check_ends_with("u", u, a)
        if u.dim() == a.dim() or u.shape[0] != 2:
            raise ValueError(f"u must have a first axis of 2, got {tuple(u.shape)}")
        check_uniforms(u)
        x, v = states_at(a, noise, u[0]), u[1]
    a0 = widened(a.detach())
    return attach(x * v.to(x.dtype), a, noise.pdf(a0) / noise.cdf(x * a0))
