"""The score function with a control variate made from the loss's derivative.

All are unbiased for every loss that is differentiable off the states, whatever the quality of the
control variate: what it adds in one place it takes away, in expectation, in another. ``surrogate``
is the differentiable function from which it is made; it defaults to the loss. In a deep network the
loss of a lower layer is a *sampled* function of its states, and the surrogate the mean-field one
(see :func:`sbnlib.layerwise`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sbnlib.contracts import Loss, check_loss_based, check_tau, evaluate
from sbnlib.estimators.relaxed import inside, noise_given_state
from sbnlib.estimators.score import draw, score, with_gradient
from sbnlib.noise import Noise
from sbnlib.units import sample_sign, uniforms

__all__ = ["control_variate_loss", "muprop", "rebar", "relax"]


def muprop(
    loss: Loss,
    a: Tensor,
    noise: Noise | str,
    *,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    surrogate: Loss | None = None,
) -> Tensor:
    r"""MuProp: the score function of what a linearization at the mean leaves over.

    With :math:`l = \tilde L(\mu)` and :math:`g = \nabla\tilde L(\mu)` at the mean
    :math:`\mu = 2F(a) - 1`,

    .. math:: \hat g_i = [L(x) - l - g^\top(x - \mu)]\,\partial_i\log P(x) + 2f(a_i)\,g_i

    One evaluation a sample, and one forward and backward pass at the mean.

    Args, Returns: as :func:`sbnlib.reinforce`; ``surrogate`` is the function linearized.

    Raises:
        ValueError: the surrogate is not differentiable; and as ``reinforce``.

    Source: Gu, Levine, Sutskever & Mnih 2016 (ICLR); chapter 11.
    """
    noise = check_loss_based(a, noise, num_samples)
    a0 = a.detach()
    mean = (2 * noise.cdf(a0) - 1).requires_grad_()
    with torch.enable_grad():
        centre = evaluate(surrogate or loss, mean)
        slope = _derivative("loss", centre, mean)
    x = draw(a0, noise, num_samples, generator)
    values = evaluate(loss, x)
    linear = centre.detach() + (slope * (x - mean.detach())).sum(dim=-1)
    rest = (values.detach() - linear)[..., None] * score(a0, x, noise)
    gradient = rest.mean(dim=0) + 2 * noise.pdf(a0) * slope
    return with_gradient(values.mean(dim=0), a, gradient)


def rebar(
    loss: Loss,
    a: Tensor,
    noise: Noise | str,
    *,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    tau: float | Tensor = 0.5,
    eta: float | Tensor = 1.0,
    surrogate: Loss | None = None,
) -> Tensor:
    r"""REBAR: the relaxed loss as control variate, coupled to the sample.

    With :math:`z = a - Z`, :math:`x = \operatorname{sign} z`, :math:`z'` drawn from the law of z
    given x, and :math:`c(z) = \tilde L(\tanh(z/2\tau))`,

    .. math:: \hat g = [L(x) - \eta\,c(z')]\,\nabla\log P(x) + \eta\nabla c(z) - \eta\nabla c(z')

    Args, Returns: as :func:`sbnlib.reinforce`.
        tau: temperature > 0 of the relaxation, a number or a tensor.
        eta: weight of the control variate, a number or a tensor.
        surrogate: the function that is relaxed.

    Raises:
        ValueError: ``tau <= 0``, the surrogate is not differentiable; and as ``reinforce``.

    Source: Tucker et al. 2017 (NeurIPS); chapter 11 for any noise.
    """
    check_tau(tau)
    relaxed = _relaxation(surrogate or loss, tau, eta)
    values, gradient = _coupled(loss, a, noise, num_samples, generator, {"loss": relaxed})
    return with_gradient(values.mean(dim=0), a, gradient.mean(dim=0))


def relax(
    loss: Loss,
    a: Tensor,
    noise: Noise | str,
    *,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    control: Callable[[Tensor], Tensor],
    tau: float | Tensor = 0.5,
    eta: float | Tensor = 1.0,
    surrogate: Loss | None = None,
) -> Tensor:
    r"""RELAX: REBAR with a free function added to the control variate.

    .. math:: c(z) = \eta\,\tilde L(\tanh(z/2\tau)) + r(z)

    Args, Returns, Raises: as :func:`rebar`.
        control: r, maps z ``(..., B, n)`` to ``(..., B)``; typically a small network, trained with
            :func:`control_variate_loss`.

    Source: Grathwohl et al. 2018 (ICLR); chapter 11.
    """
    check_tau(tau)
    parts = {"loss": _relaxation(surrogate or loss, tau, eta), "control": control}
    values, gradient = _coupled(loss, a, noise, num_samples, generator, parts)
    return with_gradient(values.mean(dim=0), a, gradient.mean(dim=0))


def control_variate_loss(
    loss: Loss,
    a: Tensor,
    noise: Noise | str,
    parameters: Iterable[Tensor],
    *,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    tau: float | Tensor = 0.5,
    eta: float | Tensor = 1.0,
    control: Callable[[Tensor], Tensor] | None = None,
    surrogate: Loss | None = None,
) -> Tensor:
    r"""The second moment of the REBAR or RELAX estimate, to be minimized over the control variate.

    .. math:: \frac1M\sum_m \|\hat g_m\|^2 \quad\text{averaged over the rows of } a

    The mean of the estimate does not depend on the control variate, so its variance and its second
    moment have the same gradient there. ``backward()`` on the result reaches ``parameters`` only:
    neither ``a`` nor the loss's own parameters receive anything.

    Args:
        parameters: what to train: ``tau``, ``eta``, parameters of ``control``.
        others: as :func:`relax`; ``control=None`` is REBAR.

    Raises:
        ValueError: no parameters; and as :func:`relax`.
    """
    parameters = list(parameters)
    if not parameters:
        raise ValueError("parameters must hold at least one tensor to train, got none")
    check_tau(tau)
    parts = {"loss": _relaxation(surrogate or loss, tau, eta)}
    parts |= {} if control is None else {"control": control}
    _, gradient = _coupled(loss, a, noise, num_samples, generator, parts, create_graph=True)
    moment = gradient.square().sum(dim=-1).mean()
    slopes = torch.autograd.grad(moment, parameters, materialize_grads=True)
    pairs = zip(parameters, slopes, strict=True)
    return moment.detach() + sum((g * (p - p.detach())).sum() for p, g in pairs)


def _relaxation(surrogate: Loss, tau: float | Tensor, eta: float | Tensor) -> Loss:
    return lambda z: eta * evaluate(surrogate, torch.tanh(z / (2 * tau)))


def _coupled(
    loss: Loss,
    a: Tensor,
    noise: Noise | str,
    num_samples: int,
    generator: torch.Generator | None,
    parts: dict[str, Loss],
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """Losses ``(M, ...)`` and estimates ``(M, ..., n)``; the control variate is a sum of parts."""
    noise = check_loss_based(a, noise, num_samples)
    leaf = a.detach().repeat(num_samples, *[1] * a.dim()).requires_grad_()  # a slope a sample
    u = uniforms(leaf.shape, a, generator)
    x = sample_sign(leaf, noise, u=u)
    values = evaluate(loss, x)
    with torch.enable_grad():
        z = leaf - noise.icdf(inside(u, a))
        z_given_x = leaf - noise_given_state(leaf, x, noise, uniforms(leaf.shape, a, generator))
        weight, slope = values.detach(), torch.zeros_like(leaf)
        for name, c in parts.items():
            at_z, at_z_given_x = (evaluate(c, v, name=name) for v in (z, z_given_x))
            slope = slope + _derivative(name, at_z - at_z_given_x, leaf, create_graph)
            weight = weight - (at_z_given_x if create_graph else at_z_given_x.detach())
        return values, weight[..., None] * score(leaf.detach(), x, noise) + slope


def _derivative(name: str, values: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
    """d values/dx. Each part is asked apart: a part with a step would bias in silence."""
    slope = None
    if values.requires_grad:
        (slope,) = torch.autograd.grad(
            values.sum(), x, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    if slope is None:
        raise ValueError(f"{name} must be differentiable in the states for this estimator")
    return slope
