"""Points to ask a slope at, and its integral over the line from what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["DECADES", "Slope", "around", "refined"]

#: The powers of ten between which a slope is asked, to both sides of a centre.
DECADES = (-10, 7)

#: Half a decade that holds this share of the one before says that the integral does not settle:
#: that of a slope which falls off as |a|^-1.05.
SETTLES = 0.945

#: A pole each of whose decades holds this share of the next one outward has an infinite integral:
#: that of a slope which grows faster than |a|^-0.95.
POLE_SETTLES = 0.89


def around(*centres: float, per_decade: int = 60, linear: int = 600) -> Tensor:
    """Sorted points: magnitudes from 1e-10 to 1e7 about each centre, and evenly spaced to 6."""
    low, high = DECADES
    size = torch.logspace(low, high, per_decade * (high - low) + 1, dtype=torch.float64)
    even = torch.linspace(6 / linear, 6 - 6 / linear, linear // 2, dtype=torch.float64)
    size = torch.cat([size, even])
    return torch.cat([c + s * size for c in centres for s in (-1, 1)]).unique()


def refined(
    a: Tensor, h: Tensor, ask: Callable[[Tensor], Tensor], rounds: int = 3, parts: int = 20
) -> tuple[Tensor, Tensor]:
    """More points where the slope jumps, so that its integral is right there too.

    A jump is one of the largest slope, or beside a pole one of the slope there.
    """
    for _ in range(rounds):
        step, gap = (h[1:] - h[:-1]).abs(), a[1:] - a[:-1]
        there = torch.maximum(h[1:].abs(), h[:-1].abs())
        felt = (step > 0.2 * there) & (step * gap > 1e-5 * (there * gap).sum())
        wide = gap > 1e-9 * (1 + a[1:].abs())
        at = (((step > 0.02 * h.abs().max()) | felt) & wide).nonzero()[:, 0]
        if not 0 < len(at) <= 400:
            break
        share = torch.arange(1, parts, dtype=a.dtype) / parts
        new = (a[at, None] + share * (a[at + 1] - a[at])[:, None]).flatten()
        a, order = torch.cat([a, new]).sort()
        h = torch.cat([h, ask(new)])[order]
    return a, h


@dataclass(frozen=True)
class Slope:
    """A slope on sorted points.

    Attributes:
        a, h: the points, and the mean slope there.
        se: standard errors of h; 0 where the slope is a function of a.
        centre: what the decades are counted from.
    """

    a: Tensor
    h: Tensor
    se: Tensor
    centre: float

    @cached_property
    def parts(self) -> Tensor:
        """The integral over each interval between neighbours; about a pole, from how it grows."""
        parts = (self.a[1:] - self.a[:-1]) * (self.h[1:] + self.h[:-1]) / 2
        if self.has_pole():
            right = int(torch.searchsorted(self.a, self.centre, right=True))
            left = int(torch.searchsorted(self.a, self.centre)) - 1
            parts[left:right] = 0
            parts[left] = sum(self._core(side, parts) for side in (-1, 1))
        return parts

    def _core(self, side: int, parts: Tensor) -> float:
        """What lies between a pole and the first point, as of a power of the distance."""
        low = DECADES[0]
        inner, outer = (float(parts[self._inside(side, k, k + 1)].sum()) for k in (low, low + 1))
        ratio = inner / outer if outer else 0.0
        if ratio > POLE_SETTLES:
            return math.copysign(math.inf, inner)
        return inner * ratio / (1 - ratio)

    @property
    def collected(self) -> Tensor:
        """The integral from minus infinity to each point; NaN if it is infinite."""
        zero = self.a.new_zeros(1)
        return self._tail(-1) + torch.cat([zero, self.parts.cumsum(0)])

    @property
    def total(self) -> float:
        """The integral over the line; inf where it does not settle within what was asked."""
        tails = self._tail(-1) + self._tail(1)
        if not math.isfinite(tails):
            return math.inf
        total = float(self.parts.sum()) + tails
        if not math.isfinite(total):
            return math.inf
        return total if abs(total) > 1e-6 * float(self.parts.abs().sum()) else 0.0

    @property
    def collected_se(self) -> Tensor:
        """Standard errors of the integral up to each point."""
        width = torch.zeros_like(self.a)
        gaps = self.a[1:] - self.a[:-1]
        width[1:] += gaps / 2
        width[:-1] += gaps / 2
        return (width * self.se).square().cumsum(0).sqrt()

    def _tail(self, side: int) -> float:
        """What lies beyond the last point, from how the last two half decades fall off.

        Points may end early, where a dtype does; halves of a decade tell a law that ends within it
        from one that falls off as a power.
        """
        end = math.log10(max(float((side * (self.a - self.centre)).max()), 1e-300))
        outer, inner = (self._between(side, end - k / 2, end - (k - 1) / 2) for k in (1, 2))
        whole = float(self.parts.abs().sum())
        if abs(outer) <= max(1e-9 * whole, 5 * self._se_between(side, end - 0.5, end)) or not whole:
            return 0.0
        ratio = outer / inner if inner else math.inf
        if not -SETTLES < ratio < SETTLES:
            return math.inf
        return outer * ratio / (1 - ratio)

    def _inside(self, side: int, low: float, high: float) -> Tensor:
        middle = side * ((self.a[1:] + self.a[:-1]) / 2 - self.centre)
        return (middle > 10.0**low) & (middle <= 10.0**high)

    def _between(self, side: int, low: float, high: float) -> float:
        """The integral between two powers of ten from the centre."""
        return float(self.parts[self._inside(side, low, high)].sum())

    def _se_between(self, side: int, low: float, high: float) -> float:
        inside = self._inside(side, low, high)
        gaps = (self.a[1:] - self.a[:-1])[inside]
        return float((gaps * self.se[1:][inside]).square().sum().sqrt())

    def mean_square(self) -> float:
        """E h(a)^2 for a standard normal a; inf at a pole that is not square integrable."""
        density = torch.exp(-self.a.square() / 2) / math.sqrt(2 * math.pi)
        square = Slope(self.a, self.h.square() * density, self.se, self.centre)
        return float(square.parts.sum())

    def has_pole(self) -> bool:
        """Whether the slope still grows in the last decade before its centre."""
        size = (self.a - self.centre).abs()
        first, second = (self.h[(size - s).abs().argmin()].abs() for s in (10**-9.9, 10**-8.9))
        return bool(first > 1.2 * second) and bool(first > 0)
