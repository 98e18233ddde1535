r"""Bits in two codings: -1 and +1, in which this library computes, and 0 and 1.

With b = (1 + x)/2 the unit is the same: b = 1 where Z < a, with probability F(a). What differs is a
factor: a loss has twice the derivative in b that it has in x, and the straight-through slope, 2f(a)
in signs, is f(a) in bits. The gradient in a is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["on_signs", "to_bits", "to_signs"]


def to_bits(x: Tensor) -> Tensor:
    r"""Signs to bits: :math:`b = (1 + x)/2`, -1 to 0 and +1 to 1; differentiable.

    Args:
        x: any shape, floating point. A unit's estimator goes with it: ``to_bits(Sign()(a))`` has
            the straight-through slope f(a).

    Raises:
        TypeError: ``x`` is not a floating-point tensor; b would have no gradient.
    """
    _check("x", x)
    return (1 + x) / 2


def to_signs(b: Tensor) -> Tensor:
    r"""Bits to signs: :math:`x = 2b - 1`, 0 to -1 and 1 to +1; differentiable.

    Args:
        b: any shape, floating point; ``b.float()`` of integers or truth values.

    Raises:
        TypeError: ``b`` is not a floating-point tensor; 2b - 1 of unsigned integers wraps around.
    """
    _check("b", b)
    return 2 * b - 1


def on_signs(layer: torch.nn.Linear) -> torch.nn.Linear:
    r"""The linear layer on signs that does what ``layer`` does on bits.

    .. math:: Wb + c = \tfrac12 W x + \big(c + \tfrac12 W\mathbf 1\big), \qquad b = (1 + x)/2

    A network trained in bits becomes an :class:`sbnlib.SBN` when every layer but the first, and the
    head or the loss that reads the last bits, is brought over.

    Args:
        layer: a ``nn.Linear``; it is not changed.

    Returns:
        A new layer of the same sizes, dtype and device, always with a bias.

    Raises:
        TypeError: ``layer`` is not a ``nn.Linear``.
    """
    if not isinstance(layer, torch.nn.Linear):
        raise TypeError(f"layer must be a nn.Linear, got {type(layer).__name__}")
    weight = layer.weight.detach()
    out = torch.nn.Linear(
        layer.in_features, layer.out_features, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        out.weight.copy_(weight / 2)
        out.bias.copy_(weight.sum(dim=1) / 2 + (0 if layer.bias is None else layer.bias))
    return out


def _check(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")
