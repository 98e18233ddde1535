"""The binary unit as a torch module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from sbnlib.estimators import straight_through
from sbnlib.noise import Logistic, Noise
from sbnlib.units import check_unit, deterministic_sign, sample_sign

__all__ = ["MODES", "Sign", "Tier1"]

#: A Tier 1 estimator: ``(a, x, noise) -> tensor`` with value x and the estimate as gradient in a.
Tier1 = Callable[[Tensor, Tensor, Noise], Tensor]

#: What a unit can put out: a draw, its most probable state, its mean.
MODES = ("sample", "sign", "mean")


class Sign(torch.nn.Module):
    """A layer of binary units x = sign(a - Z) with a gradient estimator, for any torch network.

    Args:
        noise: the law of Z; default ``Logistic()``.
        estimator: a Tier 1 estimator; default :func:`sbnlib.straight_through`.

    ``forward(a, mode="sample")`` gives

    * ``"sample"``: a fresh draw of +-1, gradient by the estimator;
    * ``"sign"``: sign(a), the most probable state, sign(0) = +1, gradient by the estimator;
    * ``"mean"``: mu = 2 F(a) - 1, real-valued, with its ordinary gradient 2 f(a).

    The module has no parameters and no state; training and evaluation mode are the same to it.
    """

    def __init__(self, noise: Noise | None = None, estimator: Tier1 = straight_through) -> None:
        super().__init__()
        self.noise = Logistic() if noise is None else noise
        if not isinstance(self.noise, Noise):
            raise TypeError(f"noise must be a noise model such as Logistic(), got {noise!r}")
        self.estimator = check_tier1(estimator)

    def extra_repr(self) -> str:
        return f"{self.noise!r}, {getattr(self.estimator, '__name__', self.estimator)}"

    def forward(
        self,
        a: Tensor,
        *,
        mode: str = "sample",
        x: Tensor | None = None,
        estimator: Tier1 | None = None,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
    ) -> Tensor:
        """States of ``a``'s shape; ``x`` hands them in, ``u`` hands in the uniforms.

        Raises:
            ValueError: unknown ``mode``, or a shape that does not match ``a``.
            TypeError: ``a`` is not a floating-point tensor.
        """
        check_mode(mode)
        if mode == "mean":
            check_unit(a, self.noise)
            return 2 * self.noise.cdf(a) - 1
        if x is None and mode == "sample":
            x = sample_sign(a, self.noise, generator=generator, u=u)
        elif x is None:
            check_unit(a, self.noise)
            x = deterministic_sign(a)
        tier1 = estimator or self.estimator
        return tier1(a, x, self.noise, **({"generator": generator} if draws(tier1) else {}))


@functools.lru_cache(maxsize=256)
def draws(estimator: Tier1) -> bool:
    """Whether a Tier 1 estimator draws random numbers of its own: it then has a ``generator``."""
    return "generator" in inspect.signature(estimator).parameters


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")


def check_tier1(estimator: Tier1) -> Tier1:
    if not callable(estimator):
        raise TypeError(
            "estimator must be a Tier 1 function (a, x, noise) -> tensor such as "
            f"straight_through, got {estimator!r}"
        )
    return estimator
