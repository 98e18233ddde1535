"""The examination of a unit: questions that are asked by running it, one after another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbnlib.diagnose.integrals import Slope, around, refined
from sbnlib.diagnose.laws import Law, fitted, interpolated, quantile, recognised, rounded
from sbnlib.diagnose.subject import RefusedError, Subject
from sbnlib.noise import Noise

__all__ = ["DRAWS", "MOST_Z", "POINTS", "Examination", "examine"]

#: Draws at each of the points where the forward pass is held against the slope.
DRAWS, POINTS = 20_000, 21

#: More standard errors than this, at one of the points, are another law.
MOST_Z = 5.0

#: The most states that a unit is taken to have.
LEVELS = 16

#: Gradients that are sent in: what comes back must be in proportion.
FLOWS = (1e-3, 1.0, 30.0, -1.0)

#: The same as powers of 2, of which products are exact in any precision.
EXACT = (2.0**-10, 1.0, 32.0, -1.0)


@dataclass
class Examination:
    """What was found out. None, or an empty value, where a question could not be asked.

    Attributes:
        subject: the unit.
        refused: why nothing more could be asked.
        sampled: whether the forward pass draws.
        shared: what one draw serves: "all entries", "all units of a row", "all rows", or "".
        states: the values that it gives, sorted.
        at_zero: its values at 0 and -0.
        stray: values at single points, which are no states.
        off: by how much values miss the states, at most, and the share of them that do.
        threshold: where the state changes; for a drawn one the median.
        ends: the state far to the left and far to the right; of a drawn one the usual ones.
        reach: of a drawn one, the mean state there, as shares of the way between the two: 0 and 1,
            but for a unit that keeps some probability for the other state.
        jumps: how often the state changes from left to right, if nothing is drawn.
        kind: of what the slope is a function.
        flow: the gradient that it was measured with.
        answers: for each of FLOWS the largest gradient that comes out, relative to it.
        slope: on many points.
        even, nonnegative, one_sign: of the slope; None where it is not told.
        frequencies: points, share of the way from the left state to the right, its error.
        draws: at each of these points.
        tails: the same as frequencies, beyond these points.
        line: the member of the line that a slope with two values a point is.
        overflow: the dtype, the point nearest to 0 from 1 on, and which of "state" and "slope" is
            not finite there; None if both are, up to 1e4.
        channels: whether its channels are different functions, of which the first was asked.
        eval_sampled, eval_slope: whether it draws in evaluation mode, and how far, relative to its
            largest value, the slope there is from that in training mode.
    """

    subject: Subject
    refused: RefusedError | None = None
    sampled: bool | None = None
    shared: str = ""
    states: tuple[float, ...] = ()
    at_zero: tuple[float, ...] = ()
    stray: tuple[float, ...] = ()
    off: tuple[float, float] = (0.0, 0.0)
    threshold: float = 0.0
    ends: tuple[float, float] | None = None
    reach: tuple[float, float] = (0.0, 1.0)
    jumps: int = 0
    kind: str | None = None
    flow: float = 1.0
    answers: tuple[float, ...] = ()
    slope: Slope | None = None
    even: bool | None = None
    nonnegative: bool | None = None
    one_sign: bool | None = None
    frequencies: tuple[Tensor, Tensor, Tensor] | None = None
    draws: int = DRAWS
    tails: tuple[Tensor, Tensor, Tensor] | None = None
    forward_law: Law | None = None
    slope_law: Law | None = None
    z: float | None = None
    line: float | None = None
    eval_sampled: bool | None = None
    eval_slope: float | None = None
    overflow: tuple[str, float, str] | None = None
    channels: bool = False
    forward_centre: float | None = field(default=None)

    @property
    def jump(self) -> float | None:
        """The state far to the right less that far to the left."""
        return None if self.ends is None else self.ends[1] - self.ends[0]

    @property
    def integral(self) -> float | None:
        return None if self.slope is None else self.slope.total

    @property
    def has_levels(self) -> bool:
        """Whether there are more states than two."""
        return len(self.states) > 2

    @property
    def way(self) -> float:
        """From the mean state far to the left to that far to the right; the right integral."""
        return (self.jump or 0.0) * (self.reach[1] - self.reach[0])

    @property
    def mismatch(self) -> float | None:
        """The integral over the way of the mean state: straight-through's is 1."""
        return self.integral / self.way if self.integral is not None and self.way else None

    @property
    def mismatch_se(self) -> float:
        """Its standard error; 0 where the slope is a function of a."""
        if self.slope is None or not self.way:
            return 0.0
        return float(self.slope.collected_se[-1]) / abs(self.way)

    @property
    def quartile(self) -> float | None:
        """Half of the distance between the quartiles of the forward pass, or else of the slope."""
        if self.forward_law is not None:
            return float(self.forward_law.noise.icdf(torch.tensor(0.75, dtype=torch.float64)))
        if self.frequencies is not None:
            return _half(*_rising(self.frequencies[1], self.frequencies[0]))
        slope = self.slope
        if slope is None or not self.one_sign or not slope.total or math.isinf(slope.total):
            return None
        return _half(slope.collected / slope.total, slope.a)

    @property
    def noise(self) -> Noise | None:
        """The law from which the forward pass draws and of which the slope is the density."""
        fits = self.z is not None and self.z <= MOST_Z and self.reach == (0.0, 1.0)
        fits = fits and (self.mismatch or 0.0) > 0 and not self.has_levels
        return self.slope_law.noise if fits and self.slope_law else None


def _half(law: Tensor, a: Tensor) -> float:
    return (quantile(a, law, 0.75) - quantile(a, law, 0.25)) / 2


def examine(subject: Subject) -> Examination:
    """Ask everything that can be asked."""
    found = Examination(subject)
    try:
        _look(found)
        _ask_overflow(found)
        _ask_states(found)
        _ask_threshold(found)
        _ask_slope(found)
        _ask_law(found)
        _ask_eval(found)
    except RefusedError as refused:
        found.refused = refused
    return found


# ---- first look ----------------------------------------------------------------------------------

_FEW = 64


def _look(found: Examination) -> None:
    """Runs it, and refuses what is no elementwise function with finite values."""
    subject = found.subject
    a = torch.linspace(-2.9, 3.1, _FEW, dtype=torch.float64)
    x, g = subject.run(a)
    if not x.isfinite().all():
        raise RefusedError("not-finite", "its values are NaN or infinite")
    if g is not None and not g.isfinite().double().mean() > 0.9:
        raise RefusedError("not-finite", "its slope is NaN or infinite")
    _check_entries(subject, a, x, g)
    found.sampled = _draws(subject)
    while _places_differ(found):
        subject.narrow()
    found.channels = subject.positions is not None


def _check_entries(subject: Subject, a: Tensor, x: Tensor, g: Tensor | None) -> None:
    """Refuses what lets entries depend on others, as far as it does the same once more.

    It does not if it draws from a generator of its own.
    """
    y, h = subject.run(a)
    every = torch.ones(_FEW, dtype=torch.bool)
    again, slope_again = _same(x, y), _same_slope(g, h, every)
    for k in (0, -1):
        b = a.clone()
        b[k] = 50.0
        others = torch.arange(_FEW) != k % _FEW
        y, h = subject.run(b)
        coupled = again and not _same(x[others], y[others])
        if coupled or slope_again and not _same_slope(g, h, others):
            raise RefusedError("not-elementwise", "what it does with one entry depends on others")
    if g is not None and slope_again:
        half = (torch.arange(_FEW) % 2).double()
        _, h = subject.run(a, half)
        if h is None or not _same(h, g * half):
            raise RefusedError("not-elementwise", "the gradient of one entry reaches others")


def _draws(subject: Subject) -> bool:
    """Whether two runs differ; a unit may draw in a narrow range about a change of state only."""
    a = subject.rounded(around(0.0)).unique()
    for _ in range(9):
        x, y = (subject.run(a, seed=s)[0] for s in (1, 2))
        if not _same(x, y):
            return True
        at = (x[1:] != x[:-1]).nonzero()[:, 0]
        if not 0 < len(at) <= LEVELS:
            return False
        share = torch.linspace(0, 1, 21, dtype=torch.float64)
        a = (a[at, None] + share * (a[at + 1] - a[at])[:, None]).flatten()
    return False


def _places_differ(found: Examination) -> bool:
    """Whether it does something else with the same points when they stand elsewhere.

    Of what it draws, the slope is compared alone; and a slope only if it does not depend on chance.
    """
    subject = found.subject
    points = torch.linspace(-2.9, 3.1, 61, dtype=torch.float64)
    at = torch.arange(min(max(subject.size, 122), 1 << 20))
    x, g = subject.run(points[at % 61])
    if not _same_slope(g, subject.run(points[at % 61], seed=1)[1], at):
        g = None
    for k in (1, 29):
        y, h = subject.run(points[(at + k) % 61])
        moved = not found.sampled and not _same(x[k:], y[:-k], 1e-6)
        if moved or g is not None and h is not None and not _same(g[k:], h[:-k], 1e-6):
            return True
    return False


def _same(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    """Equal up to rounding that a run in another order may bring, relative to the largest."""
    return a.shape == b.shape and _off(a, b) <= tolerance * float(b.nan_to_num().abs().max())


def _off(a: Tensor, b: Tensor) -> float:
    return float((a.nan_to_num() - b.nan_to_num()).abs().max()) if a.numel() else 0.0


def _same_slope(g: Tensor | None, h: Tensor | None, at: Tensor) -> bool:
    if g is None or h is None:
        return g is h
    return _same(g[at], h[at])


def _ask_overflow(found: Examination) -> None:
    """Whether state and slope stay finite as far out as pre-activations go, in float32 too."""
    subject, own = found.subject, found.subject.dtype
    size = torch.logspace(0, 4, 101, dtype=torch.float64)
    a = torch.stack([size, -size], dim=1).flatten()  # from the middle outwards
    for dtype in (torch.float32, torch.float64):
        try:
            subject.dtype = dtype
            x, g = subject.run(a[a.abs() <= subject.reach])
        except Exception:  # it takes another dtype alone, which is no fault
            continue
        finally:
            subject.dtype = own
        for what, values in (("state", x), ("slope", x if g is None else g)):
            if not values.isfinite().all():
                at = float(a[int((~values.isfinite()).long().argmax())])
                found.overflow = str(dtype).removeprefix("torch."), at, what
                return


# ---- forward -------------------------------------------------------------------------------------


def _ask_states(found: Examination) -> None:
    """Which values it gives, at 0 too, and whether bit for bit."""
    # In float32 x + (m - m) rounds to multiples of 1e-7 a
    most = 1e3 if found.subject.dtype is torch.float32 else found.subject.reach
    grid = around(0.0)
    grid = grid[grid.abs() <= most]
    runs = range(5 if found.sampled else 1)
    values = torch.cat([found.subject.run(grid, seed=s)[0] for s in runs])
    groups = _grouped(values, max(1e-4, found.subject.rounding))
    if len(groups) > LEVELS:
        raise RefusedError("not-quantized", "it gives many values, like a function that is not "
                           "quantized")  # fmt: skip
    single = [g for g in groups if len(g) == 1 and not found.sampled]
    groups = [g for g in groups if len(g) > 1 or found.sampled]
    if len(groups) < 2:
        raise RefusedError("constant", f"it gives {_number(groups[0]):.3g} wherever it is asked")
    found.states = tuple(_number(g) for g in groups)
    zeros = torch.cat([torch.zeros(32), -torch.zeros(32)]).double()
    at_zero = _grouped(torch.cat([found.subject.run(zeros, seed=s)[0] for s in (0, 1)]) + 0.0)
    found.at_zero = tuple(_nearest(_number(g), found.states) for g in at_zero)
    stray = {_number(g) for g in single} | {x for x in found.at_zero if x not in found.states}
    found.stray = tuple(sorted(stray))
    found.off = max(_misses(groups, found.states), _in_float32(found, grid))


def _grouped(values: Tensor, within: float = 1e-4) -> list[Tensor]:
    """The values, sorted and split where they lie apart."""
    values = values.sort().values
    apart = (values[1:] - values[:-1]) > within * values.abs().max()
    sizes = (apart.nonzero()[:, 0] + 1).tolist()
    return list(values.tensor_split(sizes))


def _number(group: Tensor) -> float:
    """What a group of nearly equal values stands for."""
    middle = float(group.median())
    return rounded(middle, 1e-5 * abs(middle) or 1e-6) + 0.0


def _nearest(value: float, states: tuple[float, ...]) -> float:
    close = [s for s in states if abs(s - value) <= 1e-4 * max(1e-30, *map(abs, states))]
    return close[0] if close else value


def _misses(groups: list[Tensor], states: tuple[float, ...]) -> tuple[float, float]:
    """The largest distance from a state, and the share of values that are at a distance."""
    plain = set(states) <= {-1.0, 0.0, 1.0}
    off = torch.cat([(g - (s if plain else g.mode().values)).abs()
                     for g, s in zip(groups, states, strict=True)])  # fmt: skip
    return float(off.max()), float((off > 0).double().mean())


def _in_float32(found: Examination, grid: Tensor) -> tuple[float, float]:
    """The same in float32, in which networks are trained and rounding is seen more often."""
    subject = found.subject
    if subject.dtype is torch.float32:
        return 0.0, 0.0
    before, subject.dtype = subject.dtype, torch.float32
    try:
        groups = _grouped(subject.run(grid[grid.abs() <= 1e5])[0])
    except Exception:  # it takes float64 alone, which is no fault
        return 0.0, 0.0
    finally:
        subject.dtype = before
    groups = [g for g in groups if _nearest(_number(g), found.states) in found.states]
    states = tuple(_nearest(_number(g), found.states) for g in groups)
    return _misses(groups, states) if groups else (0.0, 0.0)


#: States that are asked far out at each end.
_FAR = 256

#: A probability of the other state, far out, beyond that of a law with a heavy tail; the same where
#: half precision does not reach far.
_KEPT, _KEPT_NEAR = 1e-3, 0.03


def _ask_threshold(found: Examination) -> None:
    """Where the state changes, and which states are far out."""
    reach = found.subject.reach
    far = torch.tensor([-reach, reach], dtype=torch.float64).repeat_interleave(_FAR)
    left, right = _snapped(found, found.subject.run(far)[0]).split(_FAR)
    found.ends = float(left.mode().values), float(right.mode().values)
    if not found.sampled:
        _ask_jumps(found)
        return
    usual = min(float((x == x.mode().values).double().mean()) for x in (left, right))
    if usual < 1 - _KEPT_NEAR and left.mean() != right.mean():  # no state is that of an end
        outer = found.states[0], found.states[-1]
        found.ends = outer if left.mean() < right.mean() else outer[::-1]
    _ask_frequencies(found)
    if found.shared:  # the draws at all points are one
        found.threshold, found.forward_centre = 0.0, None


def _snapped(found: Examination, x: Tensor) -> Tensor:
    states = torch.tensor(found.states, dtype=torch.float64)
    return states[(x[..., None] - states).abs().argmin(dim=-1)]


def _ask_jumps(found: Examination) -> None:
    grid = around(0.0)
    x = _snapped(found, found.subject.run(grid)[0])
    at = (x[1:] != x[:-1]).nonzero()[:, 0]
    found.jumps = len(at)
    if not 0 < len(at) <= 40:
        return
    left, right, low = grid[at], grid[at + 1], x[at]
    share = torch.linspace(0, 1, 21, dtype=torch.float64)
    for _ in range(10):
        a = left[:, None] + share * (right - left)[:, None]
        same = _snapped(found, found.subject.run(a.flatten())[0]).view(a.shape) == low[:, None]
        k = same.long().cumprod(dim=1).sum(dim=1).clamp(1, 20)
        left, right = (a.gather(1, (k - 1)[:, None])[:, 0], a.gather(1, k[:, None])[:, 0])
    places = (left + right) / 2
    middle = float(places.min() + places.max()) / 2
    found.threshold = rounded(middle, max(1e-9, 2e-7 * abs(middle)), 6)
    if found.threshold and found.jumps == 1:
        there = found.subject.run(torch.full((64,), found.threshold, dtype=torch.float64))[0]
        given = {_nearest(float(x), found.states) for x in there}
        found.stray = tuple(sorted({*found.stray, *given.difference(found.states)}))


def _ask_frequencies(found: Examination) -> None:
    """How often it gives which state, at points across the change."""
    coarse = around(0.0, per_decade=12, linear=120)
    found.shared = "all entries" if _is_shared(found, coarse) else ""
    _ask_reach(found)
    draws, share = 200, _shares(found, coarse, 200)[0]
    for _ in range(9):
        low, high = _range(found, coarse, share, draws)
        narrower = (high - low) < 0.5 * float(coarse[-1] - coarse[0])
        coarse = torch.linspace(low, high, POINTS, dtype=torch.float64)
        draws, share = 2000, _shares(found, coarse, 2000)[0]
        if not narrower:
            break
    share = _stretched(found, share)
    found.threshold = found.forward_centre = float(interpolated(*_rising(share, coarse), 0.5))
    found.shared = found.shared or _shared_along(found, coarse)
    if not found.shared:
        points = found.subject.rounded(coarse)
        found.draws = _affordable(found.subject, points, DRAWS)
        found.frequencies = points, *_shares(found, points, DRAWS)
        ends = torch.stack([points[0], points[-1]]) - found.threshold
        beyond = found.subject.rounded(found.threshold + torch.cat([1.5 * ends, 3 * ends]))
        found.tails = beyond, *_shares(found, beyond, found.draws)
        _ask_centre(found)


def _ask_reach(found: Examination) -> None:
    """How often it gives the usual state far to the left, and far to the right."""
    far = torch.tensor([-1.0, 1.0], dtype=torch.float64) * found.subject.reach
    share, _ = _shares(found, far, DRAWS)
    most = _KEPT if found.subject.reach > 1e6 else _KEPT_NEAR
    if found.jump and bool(((share - torch.tensor([0.0, 1.0])).abs() > most).any()):
        share, _ = _shares(found, far, 10 * DRAWS)
        found.reach = float(share[0]), float(share[1])


def _stretched(found: Examination, share: Tensor) -> Tensor:
    """Shares of the way of the mean state."""
    low, high = found.reach
    return (share - low) / (high - low) if high > low else share


def _is_shared(found: Examination, a: Tensor) -> bool:
    """Whether all entries at one point have the same state in a run, and not in all runs."""
    runs = [_snapped(found, found.subject.run(a.repeat(16), seed=s)[0]).view(16, -1)
            for s in range(3)]  # fmt: skip
    varies = any(bool((x != runs[0]).any()) for x in runs)
    return varies and all(bool((x == x[0]).all()) for x in runs)


def _shared_along(found: Examination, points: Tensor) -> str:
    """The same along one axis of a batch, where the unit is tried at the point that varies most."""
    subject, rows = found.subject.as_batch()
    if rows < 8:
        return ""
    columns = 32 if subject is not found.subject else subject.size // rows
    varied = _shares(found, points, 400)[1]
    a = points[varied.argmax()].expand(rows * columns)
    try:
        x = torch.stack([subject.run(a, seed=s)[0].view(rows, columns) for s in range(3)])
    except RefusedError:
        return ""
    if bool((x == x[:1, :1, :1]).all()):
        return ""
    if bool((x == x[:, :1, :1]).all()):
        return "all entries"
    if columns >= 8 and bool((x == x[:, :, :1]).all()):
        return "all units of a row"
    return "all rows" if bool((x == x[:, :1]).all()) else ""


def _ask_centre(found: Examination) -> None:
    """Where half are on, by a line through the shares about there, as exactly as they tell.

    0 where they do not tell it from 0.
    """
    assert found.frequencies is not None
    half = _half(*_rising(_stretched(found, found.frequencies[1]), found.frequencies[0]))
    if half > 0:
        a = found.threshold + half * torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)
        a = found.subject.rounded(a)
        share, se = _shares(found, a, DRAWS)
        share, off = _stretched(found, share) - 0.5, a - a.mean()
        steep = float((off * share).sum() / off.square().sum())
        if steep > 0:
            centre = float(a.mean()) - float(share.mean()) / steep
            within = 2 * float(se.square().sum().sqrt()) / len(a) / steep
            found.threshold = found.forward_centre = rounded(centre, within)
    zero = found.subject.rounded(torch.zeros(1, dtype=torch.float64))
    share, se = _shares(found, zero, DRAWS)
    if abs(float(_stretched(found, share)) - 0.5) < 4 * float(se):
        found.threshold = found.forward_centre = 0.0


def _shares(found: Examination, a: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """The mean state at each point, as a share of the way from left to right, and its error."""
    draws = _affordable(found.subject, a, draws)
    x = _snapped(found, found.subject.run(a.repeat(draws), seed=3)[0]).view(draws, -1)
    low, high = found.ends or (0.0, 1.0)
    share = (x - low) / ((high - low) or 1.0)
    mean = share.mean(dim=0)
    spread = share.var(dim=0).clamp_min(1 / draws)
    return mean, (spread / draws).sqrt()


def _affordable(subject: Subject, a: Tensor, draws: int) -> int:
    return min(draws, max(16, subject.most // len(a)))


def _range(found: Examination, a: Tensor, share: Tensor, draws: int) -> tuple[float, float]:
    """From just before the share leaves 0 to just after it has reached 1.

    It has left where two neighbours say so: a single one may by chance.
    """
    low, high = found.reach
    chance = max(low * (1 - low), high * (1 - high)) / _affordable(found.subject, a, draws)
    share = _stretched(found, share)
    room = 0.03 + 4 * math.sqrt(chance) / ((high - low) or 1.0)
    begun, left = share > room, share < 1 - room
    begun, left = ((side[1:] & side[:-1]).nonzero()[:, 0] for side in (begun, left))
    first = int(begun[0]) if len(begun) else 0
    last = int(left[-1]) + 1 if len(left) else len(a) - 1
    first, last = min(first, last), max(first, last)
    return float(a[max(first - 1, 0)]), float(a[min(last + 1, len(a) - 1)])


def _rising(share: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    return share.cummax(dim=0).values, a


# ---- backward ------------------------------------------------------------------------------------

REPLICATES = 24


def _ask_slope(found: Examination) -> None:
    subject = found.subject
    centre = found.threshold
    a = subject.rounded(around(*sorted({0.0, centre}))).unique()
    sent = [subject.run(a, flow, seed=5)[1] for flow in EXACT]
    flows = [g.nan_to_num() for g in sent if g is not None]
    if len(flows) < len(EXACT) or not any(bool(g.any()) for g in flows):
        return
    if not all(_proportional(g / flow, flows[1]) for g, flow in zip(flows, EXACT, strict=True)):
        _ask_answers(found, a)
    some = torch.cat(
        [
            centre + torch.linspace(-4, 4, 81, dtype=torch.float64),
            around(centre, per_decade=4, linear=2),
            a[flows[1].abs().argsort()[-40:]],
        ]
    )
    _ask_kind(found, subject.rounded(some))
    if found.kind is None:
        return
    centres = sorted({0.0, centre})
    if found.kind == "of a":
        grid = subject.rounded(around(*centres)).unique()
        h = _single(found, grid)
        keep = h.isfinite()
        grid, h = refined(grid[keep], h[keep], lambda a: _single(found, a).nan_to_num())
        found.slope = Slope(grid, h, torch.zeros_like(h), centre)
    else:
        grid = around(*centres, per_decade=24, linear=120)
        if found.frequencies is not None:
            grid = torch.cat([grid, found.frequencies[0]])
        grid = subject.rounded(grid).unique()
        h, se = _mean_slope_across(found, grid)
        found.slope = Slope(*_refined_mean(found, grid, h, se), centre)
    _ask_shape(found)


def _proportional(g: Tensor, h: Tensor) -> bool:
    """Whether slopes at two sizes of the incoming gradient are one, but for rounding.

    In half precision, which a unit may use inside, small ones keep few digits.
    """
    some = h[h != 0].abs()
    typical = float(some.median()) if len(some) else 0.0
    room = 0.02 * torch.maximum(g.abs(), h.abs()) + 1e-3 * typical
    return bool(((g - h).abs() <= room).all())


def _ask_answers(found: Examination, a: Tensor) -> None:
    sent = [(flow, found.subject.run(a, flow, seed=5)[1]) for flow in FLOWS]
    shapes = [None if g is None else g.nan_to_num() / flow for flow, g in sent]
    known = [g for g in shapes if g is not None]
    if len(known) == len(FLOWS) and all(_proportional(g, known[1]) for g in known):
        return
    found.answers = tuple(0.0 if g is None else float((g / flow).nan_to_num().abs().max())
                          for flow, g in sent)  # fmt: skip
    found.flow = FLOWS[0]


def _single(found: Examination, a: Tensor) -> Tensor:
    g = found.subject.run(a, found.flow, seed=7)[1]
    return torch.zeros_like(a) if g is None else g / found.flow


def _ask_kind(found: Examination, a: Tensor) -> None:
    """Whether the slope depends on a alone, on the state too, or on chance besides."""
    copies = a.repeat(REPLICATES)
    x, g = found.subject.run(copies, found.flow, seed=11)
    if g is None:
        return
    g, x = (g / found.flow).view(REPLICATES, -1), _snapped(found, x).view(REPLICATES, -1)
    within = found.subject.rounding
    scale = float(g.nan_to_num().abs().max())
    if _spread(g) <= within * scale:
        found.kind = "of a"
        return
    inside = max(_spread(g.where(x == s, math.nan)) for s in found.states)
    found.kind = "of a and x" if inside <= within * scale else "random"


def _spread(g: Tensor) -> float:
    """How far copies of one point differ at most; NaN are left out."""
    high = g.nan_to_num(nan=-math.inf).amax(dim=0)
    low = g.nan_to_num(nan=math.inf).amin(dim=0)
    known = high.isfinite() & low.isfinite()
    return float((high - low)[known].max()) if known.any() else 0.0


def _mean_slope_across(found: Examination, a: Tensor) -> tuple[Tensor, Tensor]:
    """The mean slope; as exactly as the frequencies are known, where they were asked."""
    h, se = _mean_slope(found, a)
    if found.frequencies is not None:
        asked = found.frequencies[0]
        inside = (a >= asked[0]) & (a <= asked[-1])
        h[inside], se[inside] = _mean_slope(found, a[inside], DRAWS)
    return h, se


def _mean_slope(found: Examination, a: Tensor, draws: int = 1600) -> tuple[Tensor, Tensor]:
    """The mean slope at each point, and its standard error."""
    draws = _affordable(found.subject, a, draws)
    _, g = found.subject.run(a.repeat(draws), found.flow, seed=13)
    if g is None:
        return torch.zeros_like(a), torch.zeros_like(a)
    g = (g / found.flow).view(draws, -1).nan_to_num()
    return g.mean(dim=0), g.std(dim=0) / math.sqrt(draws)


def _refined_mean(
    found: Examination, a: Tensor, h: Tensor, se: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """More points, two times, where the mean slope jumps by more than its noise."""
    for _ in range(2):
        step = (h[1:] - h[:-1]).abs() - 6 * (se[1:] + se[:-1])
        at = ((step > 0.1 * h.abs().max()) & (a[1:] - a[:-1] > 1e-3)).nonzero()[:, 0]
        if not 0 < len(at) <= 40:
            break
        share = torch.arange(1, 10, dtype=a.dtype) / 10
        new = found.subject.rounded((a[at, None] + share * (a[at + 1] - a[at])[:, None]).flatten())
        parts = zip((a, h, se), (new, *_mean_slope(found, new)), strict=True)
        a, h, se = (torch.cat(pair) for pair in parts)
        a, order = a.sort()
        h, se = h[order], se[order]
    return a, h, se


def _ask_shape(found: Examination) -> None:
    """Signs, evenness, and the law of which the slope is the density."""
    slope = found.slope
    assert slope is not None
    total = slope.total
    room = 5 * slope.se + 1e-9 * slope.h.abs().max()
    found.nonnegative = not bool((slope.h < -room).any())
    found.one_sign = found.nonnegative or not bool((slope.h > room).any())
    centre = found.threshold
    if found.one_sign and math.isfinite(total) and total:
        law = slope.collected / total
        half = _half(law, slope.a)
        centre = rounded(quantile(slope.a, law, 0.5), 2e-3 * half)
        near = found.threshold if not found.sampled else found.forward_centre
        if near is not None and abs(centre - near) < (2e-3 if found.kind == "of a" else 0.1) * half:
            centre = near
        worst = float((slope.collected_se / abs(total)).max())
        within = 2e-3 if found.kind == "of a" else 0.02
        noise = recognised(slope.a, law, centre, 3e-3 + 4 * worst, within)
        found.slope_law = None if noise is None else Law(noise, centre)
    found.even = _is_even(found, centre)
    found.slope = Slope(slope.a, slope.h, slope.se, centre)


def _is_even(found: Examination, centre: float) -> bool:
    """Whether slopes at fresh points on both sides are equal, up to half a percent of the whole."""
    # Not at round numbers, where boxes end: of [-1, 1) one end is open
    size = torch.cat([torch.linspace(0.0137, 5.9, 173), 1.0137 * torch.logspace(-5, 3, 97)])
    size = size.double().sort().values
    sides, noise = [], torch.zeros_like(size)
    for s in (1, -1):
        a = found.subject.rounded(centre + s * size)
        h, se = (_single(found, a), 0 * a) if found.kind == "of a" else _mean_slope(found, a, 400)
        sides.append(h.nan_to_num())
        noise = noise + 4 * se
    gaps = torch.diff(size, prepend=size.new_zeros(1))
    apart = (gaps * ((sides[0] - sides[1]).abs() - noise).clamp_min(0)).sum()
    whole = (gaps * (sides[0].abs() + sides[1].abs())).sum()
    return bool(apart <= 0.005 * whole)


# ---- both together -------------------------------------------------------------------------------


def _ask_law(found: Examination) -> None:
    """The forward pass held against half the integral of the slope."""
    if found.frequencies is None:
        return
    slope, law = found.slope, None
    if slope is not None and found.one_sign and slope.total and math.isfinite(slope.total):
        found.z = _worst(found, *_implied(found, slope))
        if found.z <= MOST_Z:
            if found.reach != (0.0, 1.0):  # the mean state follows the slope, but as no noise does
                found.slope_law = None
            if found.kind == "of a":
                law = found.forward_law = found.slope_law
                found.threshold = slope.centre
    if law is None and found.reach == (0.0, 1.0):
        _fit_forward(found)
        if found.z is not None and found.z <= MOST_Z:
            _trust_forward(found)
    if found.kind == "of a and x" and found.forward_law is not None and len(found.states) == 2:
        _ask_line(found, found.forward_law)


Curve = Callable[[Tensor], Tensor]


def _implied(found: Examination, slope: Slope) -> tuple[Curve, Curve]:
    """The shares that the slope implies, and their standard errors."""
    low, high = found.reach
    law, noise = slope.collected / slope.total, slope.collected_se / abs(slope.total)
    return (lambda a: low + (high - low) * interpolated(slope.a, law, a),
            lambda a: interpolated(slope.a, noise, a))  # fmt: skip


def _worst(found: Examination, share: Curve, se: Curve = torch.zeros_like) -> float:
    """By how many standard errors the shares are off at one of the points, or in the tails."""
    assert found.frequencies is not None and found.tails is not None
    return max(
        float(_score(those, share(those[0]), found.draws, se(those[0])).abs().max())
        for those in (found.frequencies, found.tails)
    )


def _score(those: tuple[Tensor, Tensor, Tensor], p: Tensor, draws: int, more: Tensor) -> Tensor:
    _, share, se = those
    expected = (p * (1 - p)).clamp_min(1 / draws) / draws
    return (share - p) / (torch.maximum(se, expected.sqrt()).square() + more.square()).sqrt()


def _fit_forward(found: Examination) -> None:
    """The law that fits the points best, if it fits them and the tails."""
    assert found.frequencies is not None
    those, zero = found.frequencies, torch.zeros(())
    half = _half(*_rising(those[1], those[0]))
    if half <= 0:
        return
    noise = fitted(those[0], lambda p: _score(those, p, found.draws, zero), found.threshold, half,
                   MOST_Z)  # fmt: skip
    law = None if noise is None else Law(noise, found.threshold)
    found.forward_law = law if law is not None and _worst(found, law.cdf) <= MOST_Z else None


def _trust_forward(found: Examination) -> None:
    """The forward pass names the law of a random slope, which is known less well, if it can be."""
    law, slope = found.forward_law, found.slope
    if law is not None and slope is not None and found.kind != "of a":
        share, se = _implied(found, slope)
        off = (law.cdf(slope.a) - share(slope.a)).abs() - 4 * se(slope.a)
        found.slope_law = law if float(off.max()) <= 3e-3 else found.slope_law


def _ask_line(found: Examination, law: Law) -> None:
    """Which member of the line the two slopes at a point are, if one and the same everywhere."""
    assert found.frequencies is not None and found.jump is not None
    a = found.frequencies[0]
    copies = a.repeat(REPLICATES * 8)
    x, g = found.subject.run(copies, found.flow, seed=17)
    if g is None:
        return
    x, g = (_snapped(found, x).view(-1, len(a)), (g / found.flow).view(-1, len(a)))
    low, high = (g.where(x == s, math.nan).nanmean(dim=0) * 2 / found.jump for s in found.states)
    p, f = law.cdf(a), law.noise.pdf(a - law.centre)
    d, unit = (p * high - (1 - p) * low) / 2, f * (2 * p - 1)
    known = d.isfinite()
    d, unit = d[known], unit[known]
    s = float((d * unit).sum() / unit.square().sum())
    if float((d - s * unit).abs().max()) < 0.05 * float(f.max()):
        found.line = rounded(s, 0.05, 2)


# ---- evaluation mode -----------------------------------------------------------------------------


def _ask_eval(found: Examination) -> None:
    """Whether it draws in evaluation mode, and whether the slope is the same."""
    subject = found.subject
    if not subject.has_mode:
        found.eval_sampled = found.sampled
        return
    a = subject.rounded(found.threshold + torch.linspace(-3.9, 4.1, 200, dtype=torch.float64))
    try:
        with subject.in_eval():
            first, second = subject.run(a, seed=1), subject.run(a, seed=2)
            found.eval_sampled = not _same(first[0], second[0])
            if found.kind == "of a":
                here, there = _single(found, a), first[1]
                there = subject.run(a, found.flow, seed=7)[1]
    except RefusedError:
        return
    if found.kind == "of a":
        here = _single(found, a)
        there = torch.zeros_like(here) if there is None else there / found.flow
        found.eval_slope = _off(here, there) / max(float(here.abs().max()), 1e-300)
