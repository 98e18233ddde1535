"""PSA, the path sample-analytic estimator: one sampled path, every flip carried up by formula."""

from __future__ import annotations

import torch
from torch import Tensor

from sbnlib.contracts import Loss, Network, evaluate, linear_layers
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
    r"""Path sample-analytic (PSA) estimate of a fully connected network, a network estimator.

    Along one sampled path let :math:`D_i` estimate what flipping unit i costs, "loss as it is minus
    loss with i flipped". In the last layer it is evaluated,
    :math:`D_i = L(x) - L(x_{\downarrow i})`. Below, the flip changes the probability of each
    sampled state above, and these changes are added up one unit at a time:

    .. math:: D_i = \sum_j \Delta_{ij} D_j, \qquad
              \Delta_{ij} = F(x_j a_j) - F\big(x_j(a_j - 2 w_{ji} x_i)\big), \qquad
              \hat g_i = f(a_i)\, x_i\, D_i

    Exact (in expectation) in the last layer; in lower ones when every layer above has one unit, and
    in the next-to-last for losses that are a sum over units. With every difference linearized, the
    last one too, it is straight-through.

    Below the last layer :math:`D_i` carries the flip up from the sampled state only. With
    ``symmetric=True`` it is divided by :math:`2P(x_i)`, which puts both states of a unit at equal
    weight: the mean is that of the flips from either side. Then it is exact in a layer if every
    layer above has at most two units, or if the loss as each of them sees it holds products of at
    most two bits; elsewhere the bias is smaller as a rule. Rare states give large estimates.

    Args:
        net: an :class:`sbnlib.SBN` whose layers are ``nn.Linear``.
        inputs: ``(..., B, n_0)``.
        loss: states ``(..., B, n_K)`` to ``(..., B)``; need not be differentiable.
        symmetric: whether to divide by 2P(x) below the last layer.
        generator: source of randomness, on the device of ``inputs``.

    Returns:
        The loss of the sampled path ``(..., B)``, the estimates as gradient of the parameters.

    Cost: :math:`n_K + 1` evaluations of the loss and :math:`\sum_k n_k n_{k+1}` of F an input.

    Raises:
        ValueError: a layer is not ``nn.Linear``, or the loss has a wrong shape.

    Source: Shekhovtsov, Yanush & Flach 2020 (NeurIPS, arXiv 2006.03143); the symmetric form is this
    book's; chapter 7.
    """
    layers = linear_layers(net, "psa")
    pre, states = [], []
    x = inputs
    for layer in layers:
        pre.append(layer(x))
        x = sample_sign(pre[-1], net.noise, generator=generator)
        states.append(x)
    value = evaluate(loss, x)
    with torch.no_grad():
        gradients = _gradients(layers, net.noise, pre, states, loss, value, symmetric)
    for a, g in zip(pre, gradients, strict=True):
        value = with_gradient(value, a, g)
    return value


def _gradients(
    layers: list[torch.nn.Linear],
    noise: Noise,
    pre: list[Tensor],
    states: list[Tensor],
    loss: Loss,
    value: Tensor,
    symmetric: bool,
) -> list[Tensor]:
    """f(a) x D for each layer, from the last to the first."""
    d = widened(flip_costs(loss, states[-1], value))
    gradients = []
    for k in reversed(range(len(pre))):
        a, x = widened(pre[k]), states[k]
        gradients.append(noise.pdf(a) * x * d)
        if k > 0:
            moved = a[..., :, None] - 2 * layers[k].weight * states[k - 1][..., None, :]
            change = noise.cdf(x * a)[..., :, None] - noise.cdf(x[..., :, None] * moved)
            d = (d[..., None, :] @ change)[..., 0, :]
            if symmetric:
                d = d / (2 * noise.cdf(states[k - 1] * widened(pre[k - 1])))
    return gradients[::-1]
