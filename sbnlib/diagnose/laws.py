"""Which law a distribution function is of: one of the six, with its scale and its centre."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbnlib.noise import NOISES, Noise

__all__ = ["Law", "fitted", "interpolated", "recognised", "rounded"]


@dataclass(frozen=True)
class Law:
    """A noise about a centre, of which P(x = high) = F(a - centre)."""

    noise: Noise
    centre: float

    def cdf(self, a: Tensor) -> Tensor:
        return self.noise.cdf(a - self.centre)

    def __str__(self) -> str:
        about = f" about {self.centre:.3g}" if self.centre else ""
        return f"{self.noise!r}{about}"


def interpolated(x: Tensor, y: Tensor, at: Tensor | float) -> Tensor:
    """y at points ``at``, linear between the sorted ``x``, constant beyond."""
    at = torch.as_tensor(at, dtype=x.dtype)
    k = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x[k - 1], x[k], y[k - 1], y[k]
    share = ((at - x0) / (x1 - x0)).nan_to_num(nan=1.0).clamp(0, 1)
    return y0 + share * (y1 - y0)


def quantile(a: Tensor, law: Tensor, p: float) -> float:
    """Where the distribution function ``law`` on the sorted points ``a`` reaches p."""
    return float(interpolated(law, a, p))


def rounded(value: float, within: float, most: int = 3) -> float:
    """``value`` with as few digits as lie within ``within`` of it, ``most`` at the most."""
    if value == 0 or abs(value) <= within:
        return 0.0
    for digits in range(1, most + 1):
        short = float(f"{value:.{digits - 1}e}")
        if abs(short - value) <= within:
            return short
    return value


def recognised(
    a: Tensor, law: Tensor, centre: float, tolerance: float, within: float
) -> Noise | None:
    """The noise with this distribution function, to within ``tolerance``; None if it is another.

    Args:
        a, law: sorted points, and F there.
        centre: about which the law is symmetric.
        within: how much a scale may be rounded, relative to it.
    """
    half = (quantile(a, law, 0.75) - quantile(a, law, 0.25)) / 2
    found = []
    for kind in NOISES.values():
        at_one = float(kind().icdf(torch.tensor(0.75, dtype=torch.float64)))
        if not 1e-37 < half / at_one < 1e37:
            return None
        scale = rounded(half / at_one, within * half / at_one)
        noise = kind(scale)
        off = float((Law(noise, centre).cdf(a) - law).abs().max())
        found.append((off, noise))
    off, noise = min(found, key=lambda pair: pair[0])
    return noise if off <= tolerance else None


def fitted(
    points: Tensor, scores: Callable[[Tensor], Tensor], centre: float, half: float, most: float
) -> Noise | None:
    """The noise that fits frequencies best, if it fits them.

    Args:
        points: where there are frequencies.
        scores: of the probabilities at the points, how many standard errors they are off.
        centre: about which the law is symmetric.
        half: half of the distance between its quartiles, about.
        most: the largest score of a law that fits.
    """
    found = []
    for kind in NOISES.values():
        at_one = float(kind().icdf(torch.tensor(0.75, dtype=torch.float64)))

        def misfit(scale: float, kind: type[Noise] = kind) -> float:
            return float(scores(Law(kind(scale), centre).cdf(points)).square().sum())

        scale = _least(misfit, half / at_one)
        short = next((s for s in _short(scale) if misfit(s) < misfit(scale) + 9), scale)
        worst = float(scores(Law(kind(short), centre).cdf(points)).abs().max())
        found.append((misfit(short), worst, kind(short)))
    _, worst, noise = min(found, key=lambda row: row[0])
    return noise if worst <= most else None


def _short(scale: float) -> list[float]:
    return [float(f"{scale:.{digits}e}") for digits in range(3)]


def _least(misfit: Callable[[float], float], start: float) -> float:
    """The scale with the least misfit, by ever finer grids of its logarithm."""
    best, width = math.log(max(start, 1e-30)), 1.0
    for _ in range(6):
        grid = [best + width * k / 8 for k in range(-8, 9)]
        best = min(grid, key=lambda s: misfit(math.exp(s)))
        width /= 4
    return math.exp(best)
