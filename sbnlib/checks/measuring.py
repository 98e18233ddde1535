"""Checks of a measurement: does a bias come out as a bias, a variance as a variance?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sbnlib.checks.trials import SEED, frozen, judged, number, real
from sbnlib.contracts import check_count, check_function
from sbnlib.diagnose.findings import Finding

__all__ = ["bias_metric", "pooled_variance", "rare_state"]

#: Standard errors beyond which a number is another one: once in 1.7 million by chance.
MOST_Z = 5.0


def bias_metric(fn: Callable[[Tensor, Tensor], object], *, repeats: int = 400) -> Finding:
    r"""Whether an estimate of a squared bias is one; code ``bias-metric``.

    Of M samples :math:`g_i` of an estimator, :math:`\|\bar g - g\|^2` has the mean bias² + Var/M
    and never reaches 0. What is right subtracts Var/M, by the samples' own variance, and may be
    negative. It is tried on samples with the bias 0 and with the squared bias 4.

    Args:
        fn: samples ``(M, d)`` and the exact gradient ``(d,)`` to an estimate of the squared bias.
        repeats: sets of 8 samples of 4 standard normal coordinates that it is tried on.

    Returns:
        The finding; a right one is called wrong once in a million calls, by a mean 5 standard
        errors off.

    Raises:
        TypeError: ``fn`` is no function, or returns no number.
        ValueError: ``repeats`` is no integer > 1.
    """
    check_function("fn", fn, "samples (M, d) and the exact gradient (d,)")
    check_count("repeats", repeats, least=2)
    source = torch.Generator().manual_seed(SEED)
    samples = torch.randn(repeats, 8, 4, generator=source, dtype=torch.float64)
    exact = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    off = {}
    for bias in (0.0, 1.0):  # of each coordinate
        with frozen():
            values = torch.tensor([real("fn", fn(s + exact + bias, exact.clone()))
                                   for s in samples], dtype=torch.float64)  # fmt: skip
        mean, se = float(values.mean()), float(values.std()) / math.sqrt(repeats)
        off[4 * bias] = mean, not abs(mean - 4 * bias) <= MOST_Z * se
    wrong = [(true, mean) for true, (mean, far) in off.items() if far]
    true, mean = (wrong or [(0.0, off[0.0][0])])[0]
    return judged(
        "bias-metric", wrong,
        f"Where the squared bias is {number(true)} it is {number(mean)} on average, of 8 samples "
        "of variance 4.",
        "Its mean is the squared bias.",
        "Subtract the variance of the mean, ((g − ḡ)²).sum() / (M (M − 1)), do not clip at 0, and "
        "give a standard error.",
    )  # fmt: skip


def pooled_variance(fn: Callable[[Tensor], object]) -> Finding:
    r"""Whether a variance over groups has the part between the groups; code ``pooled-variance``.

    The mean of the groups' variances is the variance within them alone. Of 100 zeros in one group
    and 100 ones in the other it is 0, and the variance of all 200 is 0.25.

    Args:
        fn: numbers ``(groups, members)`` to the variance of all of them, divided by N or N − 1.

    Raises:
        TypeError: ``fn`` is no function, or returns no number.
    """
    check_function("fn", fn, "numbers (groups, members)")
    groups = torch.stack([torch.zeros(100), torch.ones(100)]).double()
    with frozen():
        value = real("fn", fn(groups))
    wrong = not 0.25 - 1e-6 <= value <= 0.25 * 200 / 199 + 1e-6  # single precision rounds
    return judged(
        "pooled-variance", wrong,
        f"Of 100 zeros and 100 ones in two groups it gives {number(value)}, where 0.25 is right.",
        "It has the variance between the groups.",
        "Add the variance of the groups' means to the mean of their variances.",
    )  # fmt: skip


def rare_state(
    sampler: Callable[[float, int, torch.Generator], Tensor],
    *,
    p: float = 1e-12,
    count: int = 2**27,
) -> Finding:
    r"""Whether a state of a tiny probability is as rare as it should be; code ``rare-state``.

    Uniforms in float32 are multiples of :math:`2^{-24}`, and 0 is one of them: ``rand < p`` comes
    out true with probability :math:`2^{-24}` or more for any p > 0.

    Args:
        sampler: of ``(p, count, generator)``: so many draws, nonzero with probability p.
        p: the probability, at most 1e-11.
        count: how many draws, in parts of 2²²; it ends at the first hit.

    Returns:
        The finding. A right sampler hits with probability p·count, by default once in 7000
        checks; one with float32 uniforms is missed once in 2900.

    Raises:
        TypeError: ``sampler`` is no function, or returns no tensor of ``count`` entries.
        ValueError: ``p`` or ``count`` out of range, or not even p = 1/2 is met.
    """
    check_function("sampler", sampler, "a probability, a count and a generator")
    if not isinstance(p, float) or not 0 < p <= 1e-11:
        raise ValueError(f"p must be a probability > 0 and at most 1e-11, got {p!r}")
    check_count("count", count)
    source, part, done, hits = torch.Generator().manual_seed(SEED), 2**22, 0, 0
    with frozen(), torch.no_grad():
        half = _hits(sampler, 0.5, part, source) / part
        if not abs(half - 0.5) <= MOST_Z * 0.5 / math.sqrt(part):
            raise ValueError(f"sampler must draw with probability p, got {half:.4f} for p = 0.5")
        while done < count and not hits:
            size = min(part, count - done)
            hits, done = _hits(sampler, p, size, source), done + size
    return judged(
        "rare-state", hits,
        f"A state of probability {p:g} came up in {done} draws, of which {number(p * done)} should "
        "be.",
        f"A state of probability {p:g} did not come up in {done} draws.",
        "Draw the uniforms in float64, or twice where the first is below 2⁻²⁴, as "
        "sbnlib.sample_sign does.",
    )  # fmt: skip


def _hits(
    sampler: Callable[[float, int, torch.Generator], Tensor], p: float, count: int,
    source: torch.Generator,
) -> int:  # fmt: skip
    draws: object = sampler(p, count, source)
    if not isinstance(draws, Tensor) or draws.numel() != count:
        got = tuple(draws.shape) if isinstance(draws, Tensor) else type(draws).__name__
        raise TypeError(f"sampler must return {count} draws, got {got}")
    return int(torch.count_nonzero(draws))
