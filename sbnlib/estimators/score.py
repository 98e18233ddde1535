"""Estimators that evaluate the loss: their common form, and the score function.

All have the form ``(loss, a, noise, *, num_samples, generator) -> value`` of shape
``a.shape[:-1]``: the mean of L over ``num_samples`` draws of the states. Its gradient in ``a`` is
the estimate, its gradient in the loss's own parameters the ordinary one. ``loss`` gets states
``(..., B, n)`` with any axes in front and returns ``(..., B)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbnlib.contracts import Loss, check_loss_based, differential, evaluate
from sbnlib.noise import Noise, widened
from sbnlib.units import draw

__all__ = ["BASELINES", "reinforce", "score", "with_gradient"]

#: Baselines of :func:`reinforce` that have a name.
BASELINES = ("loo", "running")


def reinforce(
    loss: Loss,
    a: Tensor,
    noise: Noise | str,
    *,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    baseline: str | Tensor | None = None,
) -> Tensor:
    r"""The score-function estimator (REINFORCE), unbiased for every loss.

    .. math:: \hat g_i = \frac1M\sum_m (L(x_m) - b_m)\,\frac{x_{mi}\, f(a_i)}{P(x_{mi})}

    Args:
        loss: any function of the states; it need not be differentiable.
        a: pre-activations ``(..., n)``.
        noise: the law of the injected noise, or its name for scale 1.
        num_samples: M >= 1; at least 2 for the named baselines.
        generator: source of randomness, on the device of ``a``.
        baseline: what is subtracted. None for 0; a tensor that broadcasts to ``a.shape[:-1]`` and
            does not depend on the samples; ``"loo"``, the mean of the *other* samples' losses, with
            which the estimate is the pairwise U-statistic and ignores a constant in L;
            ``"running"``, the mean of the losses of the samples drawn *before* (0 for the first).

    Returns:
        The mean loss of the samples, shape ``a.shape[:-1]``, with the estimate as gradient.

    Raises:
        ValueError: ``num_samples`` too small, unknown baseline, a loss of the wrong shape.

    Source: Williams 1992; leave-one-out: Salimans & Knowles 2014, Kool, van Hoof & Welling 2019;
    chapter 4.
    """
    noise = check_loss_based(a, noise, num_samples)
    _check_baseline(baseline, a, num_samples)
    x = draw(a, noise, (num_samples, *a.shape), generator)
    values = evaluate(loss, x)
    weight = values.detach() - _baseline(values.detach(), baseline)
    return with_gradient(values.mean(dim=0), a, (weight[..., None] * score(a, x, noise)).mean(0))


def _check_baseline(baseline: str | Tensor | None, a: Tensor, num_samples: int) -> None:
    rows = a.shape[:-1]
    if isinstance(baseline, Tensor):
        shape = (1,) * (len(rows) - baseline.dim()) + tuple(baseline.shape)
        if len(shape) > len(rows) or any(b not in (1, r) for b, r in zip(shape, rows, strict=True)):
            raise ValueError(f"baseline must broadcast to {tuple(rows)}, got shape "
                             f"{tuple(baseline.shape)}")  # fmt: skip
    elif baseline is not None and baseline not in BASELINES:
        raise ValueError(f"baseline must be one of {BASELINES}, a tensor or None, got {baseline!r}")
    elif baseline is not None and num_samples < 2:
        raise ValueError(f"baseline={baseline!r} needs num_samples >= 2, got {num_samples}")


def _baseline(values: Tensor, baseline: str | Tensor | None) -> Tensor | float:
    if baseline is None or isinstance(baseline, Tensor):
        return 0.0 if baseline is None else baseline.detach()
    m = values.shape[0]
    if baseline == "loo":
        return (values.sum(dim=0) - values) / (m - 1)
    before = values.cumsum(dim=0) - values
    counts = torch.arange(m, dtype=values.dtype, device=values.device).clamp_min(1)
    return before / counts.reshape(-1, *[1] * (values.dim() - 1))


def score(a: Tensor, x: Tensor, noise: Noise) -> Tensor:
    r"""The derivative of log P(x) in ``a``: :math:`x f(a)/P(x)`; 0 where P(x) = 0."""
    a = widened(a)
    p = noise.cdf(x * a)
    return x * noise.pdf(a) / p.where(p != 0, torch.inf)


def with_gradient(value: Tensor, a: Tensor, gradient: Tensor) -> Tensor:
    """``value`` with a further gradient in ``a``, for each row: (...,) and (..., n) -> (...,)."""
    change = (gradient.detach() * differential(a)).sum(dim=-1)
    return value + change.to(torch.promote_types(value.dtype, a.dtype))
