"""PSA, the path sample-analytic estimator: one sampled path, every flip carried up by formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sbnlib.contracts import AROUND, Loss, Network, evaluate
from sbnlib.estimators.flips import flip_costs
from sbnlib.estimators.score import with_gradient
from sbnlib.noise import Noise, widened
from sbnlib.units import sample_sign

__all__ = ["psa"]


def psa(
    net: Network,
    inputs: Tensor,
    loss: Loss,
    *,
    symmetric: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Path sample-analytic (PSA) estimate, a network estimator.

    Along one sampled path let :math:`D_i` estimate what flipping unit i costs, "loss as it is minus
    loss with i flipped". In the last layer it is evaluated,
    :math:`D_i = L(x) - L(x_{\downarrow i})`. Below, the flip changes the probability of each
    sampled state above, and these changes are added up one unit at a time:

    .. math:: D_i = \sum_j \Delta_{ij} D_j, \qquad
              \Delta_{ij} = F(x_j a_j) - F\big(x_j(a_j - 2 w_{ji} x_i)\big), \qquad
              \hat g_i = f(a_i)\, x_i\, D_i

    The sum is over all units above; through a convolution only those count that see unit i, each by
    the one weight :math:`w_{ji}` of its kernel that falls on i.

    Exact (in expectation) in the last layer; in lower ones when every layer above has one unit, and
    in the next-to-last for losses that are a sum over units. With every difference linearized, the
    last one too, it is straight-through.

    Below the last layer :math:`D_i` carries the flip up from the sampled state only. With
    ``symmetric=True`` it is divided by :math:`2P(x_i)`, which puts both states of a unit at equal
    weight: the mean is that of the flips from either side. Then it is exact in a layer if every
    layer above has at most two units, or if the loss as each of them sees it holds products of at
    most two bits; elsewhere the bias is smaller as a rule. Rare states give large estimates.

    Args:
        net: an :class:`sbnlib.SBN` whose layers are ``nn.Linear``, or ``nn.Conv2d`` of any stride,
            dilation and groups, padded with zeros; each by itself, or in a ``nn.Sequential`` with
            ``nn.Flatten``, ``nn.Unflatten`` and ``nn.Identity`` around it.
        inputs: ``(..., B, n_0)``, or ``(B, C, H, W)`` if a convolution comes first.
        loss: states ``(..., B, n_K)`` to ``(..., B)``, or ``(..., B, C, H, W)`` if the last layer
            puts out images; need not be differentiable.
        symmetric: whether to divide by 2P(x) below the last layer.
        generator: source of randomness, on the device of ``inputs``.

    Returns:
        The loss of the sampled path ``(..., B)``, the estimates as gradient of the parameters.

    Cost: :math:`n_K + 1` evaluations of the loss an input, and one value of F for each weight and
    place where it is used: :math:`n_k n_{k+1}` from layer k to a linear layer, k h w for each of
    the :math:`n_{k+1}` units of a convolution with kernels (h, w) on k channels of a group. The
    values of a linear layer are in memory together, those of a convolution a few output channels at
    a time: :math:`2^{22}` at most, or as many as its unfolded inputs have, :math:`B\,C\,h\,w` for
    each of its output positions.

    Raises:
        ValueError: a layer is none of these, layers are at odds on what a batch is, or the loss has
            a wrong shape.

    Source: Shekhovtsov, Yanush & Flach 2020 (NeurIPS, arXiv 2006.03143); the symmetric form is this
    book's; chapter 7.
    """
    path: list[_Passed] = []
    x = inputs
    for parts in _layers(net):
        path.append(_pass(parts, x, net.noise, generator))
        x = path[-1].x
    batch = _batch(path)
    value = evaluate(loss, x, shape=batch)
    with torch.no_grad():
        gradients = _gradients(path, net.noise, loss, value, symmetric)
    for passed, g in zip(path, gradients, strict=True):
        value = with_gradient(value, passed.a.flatten(len(batch)), g)
    return value


# ---- the layers of a network, and one path through them ------------------------------------------


def _layers(net: Network) -> list[list[nn.Module]]:
    """The parts of each layer, one of which has weights."""
    layers = []
    for k, layer in enumerate(net.layers):
        parts = list(_parts(layer))
        weighted = [part for part in parts if _has_weights(part)]
        if len(weighted) != 1 or not all(_has_weights(p) or type(p) in AROUND for p in parts):
            raise ValueError(
                "psa needs layers of one nn.Linear or nn.Conv2d, with nn.Flatten, nn.Unflatten and "
                f"nn.Identity around it, layer {k} is {_words(layer, parts)}"
            )
        mode = getattr(weighted[0], "padding_mode", "zeros")
        if mode != "zeros":
            raise ValueError(f"psa needs convolutions padded with zeros, layer {k} has "
                             f"padding_mode={mode!r}")  # fmt: skip
        layers.append(parts)
    return layers


def _parts(layer: nn.Module) -> Iterator[nn.Module]:
    if type(layer) is nn.Sequential:
        for part in layer:
            yield from _parts(part)
    else:
        yield layer


def _has_weights(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or type(part).forward is nn.Conv2d.forward


def _words(layer: nn.Module, parts: Sequence[nn.Module]) -> str:
    names = ", ".join(type(part).__name__ for part in parts)
    return f"Sequential({names})" if type(layer) is nn.Sequential else names


@dataclass(frozen=True)
class _Passed:
    """A layer on the sampled path."""

    weights: nn.Linear | nn.Conv2d
    #: Shapes of what the weights take and give; around them the numbers may be in another.
    taken: torch.Size
    given: torch.Size
    #: Pre-activations and states, (..., B, *) each, in the order of what the weights give.
    a: Tensor
    x: Tensor

    @property
    def batch(self) -> torch.Size:
        """The axes in front of one input's."""
        return self.given[: -1 if isinstance(self.weights, nn.Linear) else -3]


def _pass(
    parts: Sequence[nn.Module], x: Tensor, noise: Noise, generator: torch.Generator | None
) -> _Passed:
    for part in parts:
        before, x = x, part(x)
        if isinstance(part, nn.Linear | nn.Conv2d):
            weights, taken, given = part, before.shape, x.shape
    return _Passed(weights, taken, given, x, sample_sign(x, noise, generator=generator))


def _batch(path: Sequence[_Passed]) -> torch.Size:
    """The axes of the batch, (..., B), which are those of every layer."""
    batch = path[-1].batch
    for k, passed in enumerate(path):
        if not batch == passed.batch == passed.x.shape[: len(batch)]:
            raise ValueError(
                f"psa needs one batch in all layers, of shape {tuple(batch)} in the last; layer "
                f"{k} has pre-activations {tuple(passed.given)} and states {tuple(passed.x.shape)}"
            )
    return batch


# ---- costs of flips, from the last layer down ----------------------------------------------------


def _gradients(
    path: Sequence[_Passed], noise: Noise, loss: Loss, value: Tensor, symmetric: bool
) -> list[Tensor]:
    """f(a) x D for each layer, (..., B, n), from the first to the last."""
    axes = value.dim()
    d = widened(_flips(loss, path[-1].x, value))
    gradients = []
    for k in reversed(range(len(path))):
        a, x = widened(path[k].a).flatten(axes), path[k].x.flatten(axes)
        gradients.append(noise.pdf(a) * x * d)
        if k > 0:
            below = path[k - 1]
            d = _carried(path[k], below.x, d, noise).reshape(*value.shape, -1)
            if symmetric:
                d = d / (2 * noise.cdf(below.x * widened(below.a)).flatten(axes))
    return gradients[::-1]


def _flips(loss: Loss, x: Tensor, value: Tensor) -> Tensor:
    """What the flip of each unit of the last layer costs; the loss gets states of their shape."""
    own = x.shape[value.dim() :]
    return flip_costs(lambda flat: loss(flat.unflatten(-1, own)), x.flatten(value.dim()), value)


def _carried(passed: _Passed, below: Tensor, d: Tensor, noise: Noise) -> Tensor:
    """The costs of flips in the layer below, where ``d`` has those in this layer."""
    a, x, d = (t.reshape(passed.given) for t in (widened(passed.a), passed.x, d))
    below = below.reshape(passed.taken)
    if isinstance(passed.weights, nn.Conv2d):
        return _through_convolution(passed.weights, noise, a, x, d, below)
    moved = a[..., :, None] - 2 * passed.weights.weight * below[..., None, :]
    change = noise.cdf(x * a)[..., :, None] - noise.cdf(x[..., :, None] * moved)
    return (d[..., None, :] @ change)[..., 0, :]


#: So many values of F through a convolution are in memory together, or those of one output channel.
NUMBERS = 1 << 22


def _through_convolution(
    conv: nn.Conv2d, noise: Noise, a: Tensor, x: Tensor, d: Tensor, below: Tensor
) -> Tensor:
    """D through (..., C', H', W') to (..., C, H, W).

    Each output position has a patch of inputs, k of them in each of g groups; P positions in all.
    The costs of the flips in the patches, (B, g, k, P), are folded: an input has those of all
    patches that it is in. Zeros around the image are not moved by a flip, and are cut off.
    """
    margins = conv._reversed_padding_repeated_twice
    form = {"kernel_size": conv.kernel_size, "dilation": conv.dilation, "stride": conv.stride}
    image = functional.pad(below.reshape(-1, *below.shape[-3:]), margins)
    patches = functional.unfold(image, **form).unflatten(1, (conv.groups, 1, -1))
    weight = conv.weight.flatten(1)[..., None].unflatten(0, (conv.groups, -1))  # (g, C'/g, k, 1)
    a, x, d = (t.reshape(len(image), conv.groups, -1, 1, patches.shape[-1]) for t in (a, x, d))
    cost = torch.zeros_like(patches[:, :, 0], dtype=d.dtype)
    many = max(1, NUMBERS // max(1, cost.numel()))
    for first in range(0, a.shape[2], many):
        o = slice(first, first + many)
        moved = a[:, :, o] - 2 * weight[:, o] * patches
        change = noise.cdf(x[:, :, o] * a[:, :, o]) - noise.cdf(x[:, :, o] * moved)
        cost += change.mul_(d[:, :, o]).sum(2)
    folded = functional.fold(cost.flatten(1, 2), output_size=image.shape[-2:], **form)
    return functional.pad(folded, [-m for m in margins])
