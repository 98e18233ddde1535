"""Losses in the form that estimators and exact sums ask for: one value an input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sbnlib.contracts import Loss, check_function, looking_is_free

__all__ = ["classification_loss"]

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def classification_loss(head: Callable[[Tensor], Tensor], targets: Tensor) -> Loss:
    r"""The cross-entropy of a real-valued head on the last layer's states, for each input.

    .. math:: L_b(x) = -\log\operatorname{softmax}(\text{head}(x))_{t_b}

    Args:
        head: states ``(N, n)`` to scores ``(N, classes)``, such as ``nn.Linear``.
        targets: the classes t, ``(B,)``, integers from 0.

    Returns:
        A loss, states ``(..., B, n)`` to values ``(..., B)``, differentiable in the states and in
        the head's parameters. Axes in front are further draws for the same inputs: estimators and
        exact sums add some, which ``torch.nn.functional.cross_entropy`` would take for classes,
        and batch norm for channels. The head sees them as one, rows of a larger batch.

    Raises:
        TypeError: ``targets`` is not a tensor of integers.
        ValueError: ``targets`` is not ``(B,)``; when the loss is called, states that are not
            ``(..., B, n)``, scores that are not ``(N, classes)``, or a target that is not one of
            the classes (looked at on eager CPU tensors only).

    >>> loss = classification_loss(torch.nn.Linear(5, 3), torch.tensor([0, 2]))
    >>> loss(torch.ones(7, 2, 5)).shape
    torch.Size([7, 2])
    """
    check_function("head", head, "states (N, n)")
    kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
    if kind not in INTEGERS:
        raise TypeError(f"targets must be a tensor of integers, got {kind}")
    if targets.dim() != 1:
        raise ValueError(
            f"targets must have shape (B,), one class an input, got {tuple(targets.shape)}"
        )
    return partial(_cross_entropy, head, targets.long())  # of a module's function: it pickles


def _cross_entropy(head: Callable[[Tensor], Tensor], targets: Tensor, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[-2] != len(targets):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"states must have shape (..., B, n) with B = {len(targets)}, one row for each of "
            f"the targets, got {got}"
        )
    classes = targets.expand(x.shape[:-1])
    scores = head(x.flatten(0, -2))
    _check_scores(scores, classes.numel(), targets)
    values = torch.nn.functional.cross_entropy(scores, classes.flatten(), reduction="none")
    return values.reshape(classes.shape)


def _check_scores(scores: Tensor, rows: int, targets: Tensor) -> None:
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != rows:
        got = (
            f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        )
        raise ValueError(
            f"head must return scores (N, classes) with N = {rows} here, one row for each row of "
            f"states, got {got}"
        )
    if not scores.is_floating_point():
        raise ValueError(f"head must return floating-point scores, got {scores.dtype}")
    if looking_is_free(targets) and len(targets):
        low, high = targets.aminmax()
        if low < 0 or high >= scores.shape[-1]:
            raise ValueError(
                f"targets must be classes from 0 to {scores.shape[-1] - 1}, as many as head has "
                f"scores, got {int(low if low < 0 else high)}"
            )
