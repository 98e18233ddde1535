"""Losses in the form that estimators and exact sums ask for: one value an input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sbnlib.contracts import Loss, check_function, looking_is_free
from sbnlib.noise import Noise, as_noise, widened

__all__ = ["autoencoding_loss", "classification_loss", "kl_bits"]

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
    _check_rows(x, targets)
    classes = targets.expand(x.shape[:-1])
    scores = head(x.flatten(0, -2))
    _check_scores(scores, classes.numel(), targets)
    values = torch.nn.functional.cross_entropy(scores, classes.flatten(), reduction="none")
    return values.reshape(classes.shape)


def _check_rows(x: Tensor, targets: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[-2] != len(targets):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"states must have shape (..., B, n) with B = {len(targets)}, one row for each of "
            f"the targets, got {got}"
        )


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


# Autoencoders -------------------------------------------------------------------------------------


def autoencoding_loss(
    decoder: Callable[[Tensor], Tensor], targets: Tensor, *, likelihood: str = "bernoulli"
) -> Loss:
    r"""The negative log-likelihood of pictures given their codes, in nats, for each input.

    The pixels are independent given the code x. With z = decoder(x),

    .. math:: L_b(x) &= -\sum_j \big(y_{bj}\log\sigma(z_j) + (1 - y_{bj})\log\sigma(-z_j)\big) \\
              \text{or}\quad L_b(x) &= \tfrac12 \sum_j (y_{bj} - z_j)^2

    The first is that of bits, ``"bernoulli"``, and z are their logits; targets between 0 and 1 make
    it a cross-entropy, which is no log-likelihood. The second, ``"gaussian"``, is that of variance
    1 without its constant, :math:`\tfrac m2\log 2\pi` for m pixels. With :func:`kl_bits` it is the
    negative of the evidence lower bound: :math:`\mathbb{E}\,L_b(x) + \mathrm{KL}`.

    Args:
        decoder: states ``(N, n)`` to ``(N, m)``, such as ``nn.Linear``.
        targets: the pictures y, ``(B, m)``, floating point; on [0, 1] for ``"bernoulli"``.
        likelihood: ``"bernoulli"`` or ``"gaussian"``.

    Returns:
        A loss, states ``(..., B, n)`` to values ``(..., B)``, differentiable in the states and in
        the decoder's parameters. Axes in front are further draws for the same inputs; the decoder
        sees them as one, rows of a larger batch.

    Raises:
        TypeError: ``targets`` is not a floating-point tensor.
        ValueError: unknown likelihood; ``targets`` is not ``(B, m)``, or holds what is not on
            [0, 1] (looked at on eager CPU tensors only); when the loss is called, states that are
            not ``(..., B, n)``, or an output that is not ``(N, m)``.

    Source: Kingma & Welling 2014 (ICLR, arXiv 1312.6114), appendix C.

    >>> loss = autoencoding_loss(torch.nn.Linear(5, 16), torch.ones(2, 16))
    >>> loss(torch.ones(7, 2, 5)).shape
    torch.Size([7, 2])
    """
    check_function("decoder", decoder, "states (N, n)")
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {tuple(LIKELIHOODS)}, got {likelihood!r}")
    _check_pictures(targets, likelihood)
    return partial(_misfit, decoder, targets, likelihood)


def _check_pictures(targets: Tensor, likelihood: str) -> None:
    kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
    if not isinstance(targets, Tensor) or not targets.is_floating_point():
        raise TypeError(f"targets must be a floating-point tensor, got {kind}")
    if targets.dim() != 2:
        raise ValueError(
            f"targets must have shape (B, m), one picture an input, got {tuple(targets.shape)}"
        )
    if likelihood == "bernoulli" and looking_is_free(targets) and targets.numel():
        outside = ~((targets >= 0) & (targets <= 1))
        if outside.any():
            raise ValueError(
                "targets must be on [0, 1] for the likelihood 'bernoulli', got "
                f"{targets[outside][0].item():g}"
            )


def _misfit(
    decoder: Callable[[Tensor], Tensor], targets: Tensor, likelihood: str, x: Tensor
) -> Tensor:
    _check_rows(x, targets)
    rows, pixels = x.shape[:-1].numel(), targets.shape[-1]
    z = decoder(x.flatten(0, -2))
    if not isinstance(z, Tensor) or z.shape != (rows, pixels) or not z.is_floating_point():
        got = f"{z.dtype} {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"decoder must return floating-point numbers (N, m) with N = {rows} here, one row for "
            f"each row of states, and m = {pixels} as in the targets, got {got}"
        )
    z = z.reshape(*x.shape[:-1], pixels)
    return LIKELIHOODS[likelihood](z, targets.to(z.dtype).expand_as(z)).sum(-1)


def _bits(z: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")


def _square(z: Tensor, y: Tensor) -> Tensor:
    return (y - z).square() / 2


#: Name -> the negative log-likelihood of a pixel, of the decoder's output and the target.
LIKELIHOODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bernoulli": _bits,
    "gaussian": _square,
}


def kl_bits(a: Tensor, noise: Noise | str) -> Tensor:
    r"""The divergence of a code's law from that of fair coins, in nats, for each input.

    .. math:: \mathrm{KL} = \sum_i \big(p_i\ln 2p_i + q_i\ln 2q_i\big),
              \qquad p_i = F(a_i),\quad q_i = F(-a_i)

    It is between 0 and n ln 2, and its derivative in :math:`a_i` is :math:`f(a_i)\ln(p_i/q_i)`, by
    autograd and without a sample; for logistic noise at scale 1 that is :math:`a_i f(a_i)`. Both
    keep their accuracy where p or q is tiny, and where q is 0 the derivative is 0.

    Args:
        a: pre-activations ``(..., n)`` of the last layer, floating point.
        noise: the law of the injected noise, or its name for scale 1.

    Returns:
        ``(...)``, in the dtype of ``a``.

    Raises:
        TypeError: ``a`` is not floating point, or ``noise`` is neither a law nor a name.
        ValueError: ``a`` has no axis, or an unknown name.

    Source: the second term of Kingma & Welling 2014 (ICLR, arXiv 1312.6114), equation 3.
    """
    noise = as_noise(noise)
    if not isinstance(a, Tensor) or not a.is_floating_point():
        kind = a.dtype if isinstance(a, Tensor) else type(a).__name__
        raise TypeError(f"a must be a floating-point tensor, got {kind}")
    if a.dim() == 0:
        raise ValueError("a must have shape (..., n), got ()")
    q = noise.tail(widened(a))
    some = q.where(q > 0, 0.5)  # q ln 2q is 0 there, and its derivative in a too
    each = some * torch.log(2 * some) + (1 - q) * torch.log1p(1 - 2 * q)
    return each.sum(-1).to(a.dtype)
