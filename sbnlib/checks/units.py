"""Checks of a unit that ask more than the doctor does, or ask it against what is expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sbnlib.checks.trials import frozen, judged, number, share
from sbnlib.contracts import check_function, check_number, check_tau
from sbnlib.diagnose.findings import Finding
from sbnlib.noise import Noise, as_noise

__all__ = ["coding", "heavy_factor", "hidden_clamp", "temperature", "ties"]

#: Standard errors beyond which a number is another one: once in 1.7 million by chance.
MOST_Z = 5.0

Unit = Callable[[Tensor], Tensor]


def coding(unit: Unit, states: Sequence[float] = (-1, 1), *, at_zero: float | None = None
           ) -> Finding:  # fmt: skip
    """Whether a unit gives the states that the code around it expects; code ``coding``.

    A unit in 0/1 has half the slope of one in ±1, and a layer behind it other means: what is right
    for one coding is off by a factor 2 for the other.

    Args:
        unit: a function of a tensor of pre-activations, or a module.
        states: all that it should give, in any order.
        at_zero: what it should give at 0, if it draws nothing and that matters.

    Raises:
        TypeError: ``unit`` is no function.
        ValueError: ``states`` are fewer than two, or ``at_zero`` is none of them.
    """
    check_function("unit", unit, "a tensor of pre-activations")
    known = sorted({float(x) for x in states})
    if len(known) < 2:
        raise ValueError(f"states must be at least two numbers, got {states!r}")
    if at_zero is not None and at_zero not in known:
        raise ValueError(f"at_zero must be one of the states {known}, got {at_zero!r}")
    a = 0.006 * torch.arange(-2000, 2001)  # of which the middle one is 0
    with _asked(unit), torch.no_grad():
        x = unit(a.clone())
    given = sorted(set((x.double() + 0.0).tolist()))
    middle = float(x[2000])
    wrong = given != known or at_zero is not None and middle != at_zero
    zero = "" if at_zero is None else f", and {number(middle)} at 0"
    return judged(
        "coding", wrong,
        f"It gives {_told(given)}{zero}, where {_told(known)} is expected"
        + ("." if at_zero is None else f", and {number(at_zero)} at 0."),
        f"It gives {_told(given)}{zero}.",
        "Convert with sbnlib.to_bits or sbnlib.to_signs, and the slope with it.",
    )  # fmt: skip


def _told(values: Sequence[float], most: int = 4) -> str:
    texts = [number(x) for x in values[:most]]
    return ", ".join(texts) + (f" and {len(values) - most} more" if len(values) > most else "")


def _asked(unit: object) -> Any:
    """The unit as it is asked: with what it holds put back afterwards."""
    return frozen(*([unit] if isinstance(unit, torch.nn.Module) else []))


class _Middle(TorchFunctionMode):
    """Every uniform is 1/2 and every normal number 0: noise meets the pre-activation 0 exactly."""

    AT = {
        **dict.fromkeys((torch.rand, torch.rand_like, Tensor.uniform_), 0.5),
        **dict.fromkeys((torch.randn, torch.randn_like, Tensor.normal_), 0.0),
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.fill_(self.AT[func]) if func in self.AT else out


def ties(unit: Unit) -> Finding:
    """Whether a drawn unit has two states where the noise meets the pre-activation; code ``ties``.

    ``torch.sign(p - torch.rand_like(p))`` is 0 where the two are equal, once in some ten million
    draws: too rare for the doctor, and often enough in a training. Here torch's own uniforms are
    1/2 and its normal numbers 0 for one call, at pre-activations 0.

    Args:
        unit: a function of a tensor of pre-activations, or a module, that draws by ``torch.rand``,
            ``rand_like``, ``randn``, ``randn_like``, ``uniform_`` or ``normal_``, from noise with
            the median 0. Of what draws in another way nothing is found.

    Raises:
        TypeError: ``unit`` is no function.
    """
    check_function("unit", unit, "a tensor of pre-activations")
    with _asked(unit), torch.no_grad():
        usual = unit(torch.cat([torch.full((64,), -9.0), torch.full((64,), 9.0)]))
        with _Middle():
            tied = unit(torch.zeros(64))
    stray = sorted(set((tied + 0.0).tolist()) - set((usual + 0.0).tolist()))
    return judged(
        "ties", stray,
        f"Where the noise is equal to the pre-activation it gives {_told(stray)}, which is no "
        "state.",
        "Where the noise is equal to the pre-activation it gives a state.",
        "Use torch.where(noise < p, …) in the place of torch.sign.",
    )  # fmt: skip


def hidden_clamp(unit: Unit, noise: Noise | str) -> Finding:
    """Whether the slope ends where the noise does not; code ``clamp``.

    A clamp of pre-activations, probabilities or slopes, often by a default of the layer, stops
    gradients and keeps a probability for the rarer state.

    Args:
        unit: a function of a tensor of pre-activations, or a module.
        noise: the law that it is meant to have, or its name for scale 1.

    Returns:
        The finding. It asks where the density is above a millionth of its largest, in float64, on
        2000 points to either side, up to 10⁴ scales; there a slope of exactly 0 is a fault.

    Raises:
        TypeError: ``unit`` is no function, or passes no gradient.
        ValueError: ``noise`` is unknown.
    """
    check_function("unit", unit, "a tensor of pre-activations")
    noise = as_noise(noise)
    size = noise.scale * torch.logspace(-3, 4, 2000, dtype=torch.float64)
    size = size[noise.pdf(size) > 1e-6 * noise.pdf(torch.zeros(1).double())]
    with _asked(unit):
        slope = _slopes(unit, torch.cat([-size, size]))
    # drawn slopes may be 0 by chance: what counts is the last point at which one is not
    last = float(size[(slope.view(2, -1) != 0).any(dim=0)].max()) if slope.any() else 0.0
    end = float(size.max())
    return judged(
        "clamp", last < 0.98 * end,
        f"Beyond ±{number(last)} the slope is 0, where that of {noise!r} goes on.",
        f"The slope goes on up to ±{number(end)}, where the density is a millionth of its largest "
        "or ends.",
        "Look for clamp, hardtanh, clip_value, eps; keep one on purpose only, and then say so.",
    )  # fmt: skip


def _slopes(unit: Unit, a: Tensor) -> Tensor:
    a = a.clone().requires_grad_()
    x = unit(a)
    if not isinstance(x, Tensor) or not x.requires_grad:
        raise TypeError("unit must pass gradients on, got a result without a graph")
    return torch.autograd.grad(x, a, torch.ones_like(x))[0]


def temperature(unit: Unit, noise: Noise | str, tau: float) -> Finding:
    r"""Whether a relaxed unit has the temperature that it is said to have; code ``temperature``.

    .. math:: x_\tau = \tanh\frac{a - Z}{2\tau} = 2\sigma\big((a - Z)/\tau\big) - 1

    With :math:`\tanh((a-Z)/\tau)` it is half as large. Of a unit at 0, :math:`|Z|` is below its
    median in half of the draws: a sign test, whatever the noise.

    Args:
        unit: a function of pre-activations to relaxed values in (−1, 1) or (0, 1).
        noise: the law of Z, or its name for scale 1.
        tau: the temperature that is claimed.

    Returns:
        The finding, from 65 536 draws; 5 standard errors are a fault, by chance once in a million.
        For logistic noise a temperature 3 % off is seen.

    Raises:
        TypeError: ``unit`` is no function.
        ValueError: ``tau`` is none, ``noise`` is unknown, or values outside of [−1, 1].
    """
    check_function("unit", unit, "a tensor of pre-activations")
    noise = as_noise(noise)
    check_tau(tau)
    with _asked(unit), torch.no_grad():
        y = unit(torch.zeros(65_536, dtype=torch.float64)).double()
    low, high = float(y.min()), float(y.max())
    if not -1 <= low <= high <= 1:
        raise ValueError(f"unit must give values in [-1, 1], got some from {low} to {high}")
    size = torch.logit(y if low >= 0 else (1 + y) / 2).abs()
    median = float(noise.icdf(torch.tensor(0.75, dtype=torch.float64)))
    z = 2 * (float((size < median / tau).sum()) - len(y) / 2) / math.sqrt(len(y))
    found = number(median / float(size.median()))
    return judged(
        "temperature", not abs(z) <= MOST_Z,
        f"The temperature is {found}, not {number(tau)} ({number(abs(z))} standard errors apart).",
        f"The temperature is {number(tau)}: {found} was found.",
        "Is it tanh(z / τ) where tanh(z / 2τ) is due?",
    )  # fmt: skip


#: Draws of a block, and blocks, of which a share is found; the part of the draws that counts.
BLOCK, BLOCKS, RAREST = 16_384, 64, 0.01


def heavy_factor(unit: Unit, data: Tensor | None = None, *, most: float = 0.25) -> Finding:
    r"""Whether the variance of a unit's gradients hangs on rare draws; code ``heavy-factor``.

    With c and c' the factors of two draws at one pre-activation, :math:`(c - c')^2/2` has the mean
    Var(c | a), and :math:`(c^2 + c'^2)/2` the mean square. Of 16 384 such pairs, which share of the
    second sum do the largest hundredth of the first make up? That of straight-through is 0. A
    factor without a second moment, such as ZGR's or ReinMax's for uniform noise (chapter 10), has
    about a half, and more the more draws there are. Straight-through Gumbel-softmax, whose second
    moment grows as :math:`1/\tau` (chapter 9), goes from 0.01 at :math:`\tau = 1` by 0.09 at 0.1
    to 0.73 at 0.01 and is called wrong below 0.035.

    Args:
        unit: a function of a tensor of pre-activations, or a module.
        data: pre-activations that occur, from which is drawn; default standard normal ones.
        most: the largest share that is no fault.

    Returns:
        The finding: wrong if the mean share of 64 blocks is more than 5 of its standard errors
        above ``most``, which by chance happens less than once in a hundred thousand checks. A
        share is at most 2, so that its mean has a variance even where the factor has none.

    Raises:
        TypeError: ``unit`` is no function, passes no gradient, or ``data`` is no tensor.
        ValueError: ``most`` is no number in (0, 1).
    """
    check_function("unit", unit, "a tensor of pre-activations")
    check_number("most", most, "a number in (0, 1)", lambda x: 0 < x < 1)
    if data is not None and not (isinstance(data, Tensor) and data.is_floating_point()
                                 and data.numel()):  # fmt: skip
        raise TypeError(f"data must be a floating-point tensor with values, got {data!r}")
    with _asked(unit):
        shares = torch.stack([_rare_share(unit, _points(data)) for _ in range(BLOCKS)])
    mean, se = float(shares.mean()), float(shares.std()) / math.sqrt(BLOCKS)
    words = f"Chance in one draw out of a hundred is {share(mean)} of the gradients' mean square."
    return judged("heavy-factor", not mean - MOST_Z * se <= most, words, words,
                  "Take straight-through, sbnlib.shrinkage, or a higher temperature.")  # fmt: skip


def _rare_share(unit: Unit, a: Tensor) -> Tensor:
    """The part of a block's mean square that is chance in its rarest draws."""
    c, other = (_slopes(unit, a).double() for _ in range(2))
    chance, whole = (c - other).square() / 2, (c.square() + other.square()) / 2
    return chance.topk(int(RAREST * len(a))).values.sum() / whole.sum().clamp_min(1e-300)


def _points(data: Tensor | None) -> Tensor:
    """A block of pre-activations, from torch's global generator."""
    if data is None:
        return torch.randn(BLOCK)
    flat = data.detach().reshape(-1)
    return flat[torch.randint(len(flat), (BLOCK,))]
