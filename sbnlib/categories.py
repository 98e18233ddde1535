r"""Categorical units: C categories without an order, states that are one-hot vectors.

A unit has C logits, the last axis of ``a``, probabilities :math:`p = \operatorname{softmax}(a)`,
and the state x, a one-hot vector of C entries. The estimators have the form ``(a, x) -> tensor``:
the value is x, and the gradient that flows back is multiplied by a matrix for each unit,

====================  ================================================  ===========================
estimator             matrix                                            exact (one layer) for
====================  ================================================  ===========================
``straight_through``  :math:`J(p) = \operatorname{diag} p - pp^\top`    losses linear in each unit
``darn`` (mean)       :math:`(x - p)(x - p)^\top`                       losses linear in each unit
``zgr``, ``reinmax``  :math:`\tfrac12(J(p) + (x-p)(x-p)^\top)`          quadratic in each unit
====================  ================================================  ===========================

No entry of a matrix is a difference of numbers near 1: where a category is all but certain, what
is computed are the probabilities of the others. Matrices are in at least float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sbnlib.contracts import (
    Loss,
    check_ends_with,
    check_pre_activations,
    check_uniforms,
    differential,
    finite,
    looking_is_free,
)
from sbnlib.levels import (
    check_states_count,
    finite_values,
    product_of_others,
    state_blocks,
    state_digits,
)
from sbnlib.noise import widened
from sbnlib.units import uniforms

__all__ = ["darn", "exact_gradient", "reinmax", "sample_category", "straight_through", "zgr"]


def __dir__() -> list[str]:  # what completion offers
    return __all__


def sample_category(
    a: Tensor, *, generator: torch.Generator | None = None, u: Tensor | None = None
) -> Tensor:
    r"""Draw categories, one uniform number a unit: k where u falls among the sums of p.

    .. math:: x_k = \Big[\sum_{j<k} p_j \le u < \sum_{j\le k} p_j\Big], \qquad
              p = \operatorname{softmax}(a)

    Args:
        a: logits ``(..., C)``, floating point, C >= 2.
        generator: source of the uniforms, drawn in float64, when ``u`` is not given; on the device
            of ``a``.
        u: uniforms on [0, 1), of ``a``'s shape without the last axis, or with further axes in
            front of that.

    Returns:
        One-hot vectors ``(..., C)`` in ``a``'s dtype, without a gradient. The sums are taken in
        float64: each category comes to within :math:`2^{-52}` of its probability.

    Raises:
        TypeError: ``a`` is not a floating-point tensor, ``generator`` no generator.
        ValueError: fewer than two categories, a shape of ``u`` that does not match, or (looked at
            on eager CPU tensors only) logits that are not finite, ``u`` not on [0, 1).
    """
    _check_logits(a)
    shape = a.shape[:-1]
    if u is None:
        u = uniforms(shape, a, generator)
    else:
        _check_shape_of(u, shape)
        check_uniforms(u)
    sums = a.detach().double().softmax(-1).cumsum(-1)
    sums = sums / sums[..., -1:]  # the last is 1: a last category of probability 0 never comes
    k = (u.double()[..., None] >= sums[..., :-1]).sum(-1, keepdim=True)
    x = (k == torch.arange(a.shape[-1], device=a.device)).to(a.dtype)
    return torch.where(a.isnan().any(-1, keepdim=True), torch.nan, x)


def straight_through(a: Tensor, x: Tensor) -> Tensor:
    r"""Straight-through: the Jacobian of the mean, :math:`J(p) = \operatorname{diag} p - pp^\top`.

    Args:
        a: logits ``(..., C)``.
        x: one-hot states, shape ``a.shape`` or with further axes in front.

    Returns:
        A tensor equal to ``x`` whose gradient g becomes :math:`J(p)\,g` in ``a``.

    Unbiased for losses that are linear in each unit's vector, in the last layer of units.

    Raises:
        TypeError, ValueError: as :func:`sample_category`; ``x`` of another shape, bool or complex
            or, looked at where that is free, not one-hot.

    Source: Bengio, Leonard & Courville 2013 (arXiv 1308.3432); Shekhovtsov & Yanush 2021; chapter
        21.
    """
    x = _checked(a, x)
    return _with(x, a, _jacobian(_softmax(a), _differential(a)))


def darn(a: Tensor, x: Tensor) -> Tensor:
    r"""DARN with the mean as baseline: the matrix :math:`(x - p)(x - p)^\top`.

    It is the score :math:`\partial_a \log P(x) = x - p` times the change of the linearized loss
    from the mean to the state, :math:`(x - p)^\top g`.

    Args:
        a, x: as :func:`straight_through`.

    Unbiased for losses that are linear in each unit's vector, in the last layer of units.

    Raises:
        TypeError, ValueError: as :func:`straight_through`.

    Source: Gregor et al. 2014 (arXiv 1310.8499); chapter 21.
    """
    x = _checked(a, x)
    return _with(x, a, _outer(_score(x, _softmax(a)), _differential(a)))


def zgr(a: Tensor, x: Tensor) -> Tensor:
    r"""ZGR: the mean of straight-through and DARN.

    .. math:: \tfrac12\big(J(p) + (x-p)(x-p)^\top\big)
              = 2J\big(\tfrac{p+x}2\big) - \tfrac12 J(p)

    Unbiased, in the last layer of units, for losses that are at most quadratic in each unit's
    vector. It is the limit of Gumbel-Rao at temperature 0, and ReinMax at temperature 1, which is
    defined by the second form. For two categories it is :func:`sbnlib.zgr` of the difference of the
    logits.

    Args:
        a, x: as :func:`straight_through`.

    Raises:
        TypeError, ValueError: as :func:`straight_through`.

    Source: Shekhovtsov 2023 (ICML); Liu et al. 2023 (ReinMax, NeurIPS); chapter 21.
    """
    x = _checked(a, x)
    p, da = _softmax(a), _differential(a)
    return _with(x, a, (_jacobian(p, da) + _outer(_score(x, p), da)) / 2)


#: ReinMax at temperature 1, which is ZGR for any number of categories; so it is the same object.
reinmax = zgr


def exact_gradient(loss: Loss, a: Tensor) -> tuple[Tensor, Tensor]:
    r"""The expected loss of one layer of categories and its gradient, by a sum over all states.

    .. math:: \partial_{a_{ik}}\,\mathbb{E}\,L(x)
              = p_{ik}\,\big(\mathbb{E}[L \mid x_i = k] - \mathbb{E}\,L\big)

    Args:
        loss: one-hot states ``(..., n, C)`` to values ``(...)``, row by row; need not be
            differentiable.
        a: logits ``(..., n, C)``.

    Returns:
        The expectation, of shape ``a.shape[:-2]``, and the gradient, of ``a``'s shape, without a
        gradient of their own.

    Raises:
        ValueError: more than :math:`2^{20}` states :math:`C^n`, a loss of another shape or that
            is not finite; and as :func:`sample_category`.
        TypeError: as :func:`sample_category`.
    """
    _check_logits(a)
    if a.dim() < 2 or not a.shape[-2]:
        raise ValueError(f"a must have shape (..., n, C) with n >= 1, got {tuple(a.shape)}")
    check_states_count(a.shape[-1], a.shape[-2], "categories")
    with torch.no_grad():
        p = _softmax(a)
        value, given = p.new_zeros(a.shape[:-2]), torch.zeros_like(p)
        for x in _all_states(a):
            values = finite_values(loss, x, axes=2)
            own = (x * p).sum(-1)
            value += (own.prod(-1) * values).sum(0)
            others = product_of_others(own) * values[..., None]
            given += (others[..., None] * x).sum(0)  # E[L | x_i = k]
    return value.to(a.dtype), _jacobian(p, given).to(a.dtype)


# ---- checks --------------------------------------------------------------------------------------


def _check_logits(a: Tensor) -> None:
    check_pre_activations(a)
    if a.dim() < 1 or a.shape[-1] < 2:
        raise ValueError("a must have a last axis of C >= 2 categories, got shape "
                         f"{tuple(a.shape)}")  # fmt: skip


def _check_shape_of(u: Tensor, shape: torch.Size) -> None:
    if not isinstance(u, Tensor) or u.shape[u.dim() - len(shape) :] != shape:
        got = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
        raise ValueError(f"u must have shape (..., *{tuple(shape)}), one number a unit, got {got}")


def _checked(a: Tensor, x: Tensor) -> Tensor:
    """The states, after all checks, as constants in the dtype of ``a``."""
    _check_logits(a)
    check_ends_with("x", x, a)
    if x.dtype is torch.bool or x.is_complex():
        raise TypeError(f"x must hold one-hot vectors of real numbers, got {x.dtype}")
    if looking_is_free(x) and not bool((((x == 0) | (x == 1)).all(-1) & (x.sum(-1) == 1)).all()):
        raise ValueError("x must hold one-hot vectors on its last axis, got another")
    return x.detach().to(a.dtype)


# ---- matrices ------------------------------------------------------------------------------------


def _softmax(a: Tensor) -> Tensor:
    return finite(widened(a.detach())).softmax(-1)


def _differential(a: Tensor) -> Tensor:
    """da, the value 0: a matrix M of constants gives M da, of value 0 and derivative M."""
    return widened(differential(a))


def _with(x: Tensor, a: Tensor, change: Tensor) -> Tensor:
    """The value x, exactly, with the gradient of ``change``, whose value is 0."""
    return x + change.to(a.dtype)


def _jacobian(p: Tensor, v: Tensor) -> Tensor:
    """J(p) v = p (v - p.v), with v measured from its entry at the most probable category.

    J(p) takes constants to 0. That entry becomes 0 for good, in the derivative too, or p (1 - p)
    would be a difference of numbers near 1.
    """
    top = p.argmax(-1, keepdim=True)
    first = torch.arange(p.shape[-1], device=p.device) == top
    v = torch.where(first, 0, v - v.gather(-1, top.expand(*v.shape[:-1], 1)))
    return p * (v - (p * v).sum(-1, keepdim=True))


def _score(x: Tensor, p: Tensor) -> Tensor:
    """x - p, where 1 - p of the category that came is the sum of the others."""
    others = (p * (1 - x)).sum(-1, keepdim=True)
    return torch.where(x == 1, others, -p)


def _outer(r: Tensor, v: Tensor) -> Tensor:
    """r r^T v."""
    return r * (r * v).sum(-1, keepdim=True)


# ---- exact sums ----------------------------------------------------------------------------------


def _all_states(a: Tensor) -> Iterator[Tensor]:
    """All C^n one-hot states in blocks (S, ..., n, C), in the dtype and on the device of ``a``."""
    n, count = a.shape[-2:]
    for index in state_blocks(count**n, a.numel() * count, a.device):
        x = torch.nn.functional.one_hot(state_digits(index, count, n), count).to(a.dtype)
        yield x.view(-1, *[1] * (a.dim() - 2), n, count).expand(-1, *a.shape)
