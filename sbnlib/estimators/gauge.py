"""Straight-through on the same loss, written so that the second derivatives are taken out."""

from __future__ import annotations

import torch
from torch import Tensor

from sbnlib.contracts import Loss, check_count, check_loss_based, evaluate
from sbnlib.estimators.control_variates import as_variable
from sbnlib.estimators.score import with_gradient
from sbnlib.noise import Noise, widened
from sbnlib.units import draw, mean_state, uniforms

__all__ = ["SELF_TERMS", "gauge_fixed"]

#: At which point the slope of the gauge is taken.
SELF_TERMS = ("sample", "mean")


def gauge_fixed(
    loss: Loss,
    a: Tensor,
    noise: Noise | str,
    *,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    num_probes: int = 1,
    self_term: str = "sample",
    surrogate: Loss | None = None,
) -> Tensor:
    r"""Straight-through in the gauge that the diagonal of the Hessian fixes.

    The loss :math:`L + \tfrac12\sum_i d_i(1 - x_i^2)` has the values of L on all states. With d an
    estimate of the diagonal of :math:`\nabla^2L` at the sampled state, by Hutchinson's method,

    .. math:: \hat g_i = 2f(a_i)\,[\partial_iL(x) - d_i\,x_i], \qquad
              d = \frac1R\sum_r z_r \odot \nabla^2L(x)\,z_r, \quad z_r \in \{-1, 1\}^n
              \text{ fair signs}

    It is the second-order Taylor polynomial of :func:`sbnlib.local_expectation`, whose flips it
    does not evaluate: unbiased for losses that are at most quadratic in each unit separately, as
    :func:`sbnlib.zgr`, without a division by :math:`P(x)`. Elsewhere the bias is at most
    :math:`\tfrac43 f(a_i)\sup|\partial_{iii}L|`.

    The probes cost variance. In units of :math:`4f(a_i)^2`, on a quadratic with matrix A, one
    sample has beside straight-through's :math:`-A_{ii}^2(1-\mu_i^2) + v_i`, with
    :math:`v_i = \tfrac1R\sum_{j\ne i}A_{ij}^2`; with ``self_term="mean"``, where
    :math:`d_i\,\mu_i` is subtracted, it has :math:`\mu_i^2v_i`, and the same mean. So one probe is
    worth it where the diagonal is large beside its row.

    One evaluation a sample, its derivative, and a Hessian-vector product for each probe.

    Args, Returns: as :func:`sbnlib.reinforce`.
        num_probes: R >= 1.
        self_term: ``"sample"``, the gauge; or ``"mean"``.
        surrogate: the function whose derivatives are taken. Where one is given, the loss itself may
            be a black box.

    Raises:
        ValueError: ``num_probes < 1``, unknown ``self_term``, a loss, or surrogate, that is not
            differentiable; and as ``reinforce``.
        RuntimeError: a loss that cannot be differentiated twice, such as one with estimators of
            this library in it.

    Source: the gauge is chapter 6's, the probes and their price chapter 20's; Hutchinson 1989
    and Bekas, Kokiopoulou & Saad 2007 for the diagonal.
    """
    noise = check_loss_based(a, noise, num_samples)
    check_count("num_probes", num_probes)
    if self_term not in SELF_TERMS:
        raise ValueError(f"self_term must be one of {SELF_TERMS}, got {self_term!r}")
    x = draw(a, noise, (num_samples, *a.shape), generator)
    at = as_variable(x.clone())
    with torch.enable_grad():
        differentiated = evaluate(surrogate or loss, at)
        slope, diagonal = _derivatives(differentiated, at, num_probes, generator)
    subtracted = diagonal * (x if self_term == "sample" else mean_state(a.detach(), noise))
    gradient = 2 * noise.pdf(widened(a.detach())) * (slope - subtracted).mean(dim=0)
    values = evaluate(loss, x) if surrogate else differentiated
    values = values if torch.is_grad_enabled() else values.detach()
    return with_gradient(values.mean(dim=0), a, gradient)


def _derivatives(
    values: Tensor, at: Tensor, num_probes: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The gradient at the states (M, ..., n), and an estimate of the diagonal of the Hessian."""
    slope = None
    if values.requires_grad:
        (slope,) = torch.autograd.grad(values.sum(), at, create_graph=True, allow_unused=True)
    if slope is None:
        raise ValueError(
            "loss, or the surrogate in its place, must be differentiable in the states: hand in a "
            "surrogate that is, or take an estimator without derivatives such as disarm"
        )
    diagonal = torch.zeros_like(widened(at.detach()))
    for _ in range(num_probes if slope.requires_grad else 0):  # a linear loss has no curvature
        z = _fair_signs(at, generator)
        (product,) = torch.autograd.grad(slope, at, z, retain_graph=True, materialize_grads=True)
        diagonal += widened(z * product) / num_probes
    return widened(slope.detach()), diagonal


def _fair_signs(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.where(uniforms(x.shape, x, generator) < 0.5, 1.0, -1.0).to(x.dtype)
