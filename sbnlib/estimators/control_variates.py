"""The score function with a control variate made from the loss's derivative.

All are unbiased for every loss, whatever the quality of the control variate: what it adds in one
place it takes away, in expectation, in another. It must have no jumps, and a mean. ``surrogate`` is
the function from which it is made, differentiable off the states (for MuProp at the mean); it
defaults to the loss. A black box, which has no derivative, needs a surrogate, or in :func:`relax`
``eta=0.0``. In a deep network the loss of a lower layer is a *sampled* function of its states, and
the surrogate the mean-field one (see :func:`sbnlib.layerwise`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sbnlib.contracts import Loss, check_loss_based, check_tau, check_weight, evaluate
from sbnlib.estimators.relaxed import inside, noise_given_state
from sbnlib.estimators.score import score, with_gradient
from sbnlib.noise import Noise, widened
from sbnlib.units import draw, mean_state, states_at, uniforms

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

    Args, Returns: as :func:`sbnlib.reinforce`; ``surrogate`` is the function linearized. Where one
    is given, the loss itself may be a black box.

    Raises:
        ValueError: the surrogate is not differentiable; and as ``reinforce``.

    Source: Gu, Levine, Sutskever & Mnih 2016 (ICLR); chapter 11.
    """
    noise = check_loss_based(a, noise, num_samples)
    a0 = widened(a.detach())
    mean = as_variable(mean_state(a.detach(), noise))
    with torch.enable_grad():
        centre = evaluate(loss if surrogate is None else surrogate, mean)
        slope = widened(_derivative("loss", centre, mean))
    x = draw(a, noise, (num_samples, *a.shape), generator)
    values = evaluate(loss, x)
    linear = centre.detach() + (slope * (x - widened(mean.detach()))).sum(dim=-1)
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

    .. math:: \hat g = [L(x) - \omega\,c(z')]\,\nabla\log P(x)
              + \omega\,(\nabla c(z) - \nabla c(z'))

    Args, Returns: as :func:`sbnlib.reinforce`.
        tau: temperature > 0 of the relaxation, a number or a tensor.
        eta: weight :math:`\omega` of the control variate, a number or a tensor.
        surrogate: the function that is relaxed. Where one is given, the loss itself may be a black
            box.

    Raises:
        ValueError: ``tau <= 0``, ``eta`` not finite, the surrogate is not differentiable; and as
            ``reinforce``.

    Source: Tucker et al. 2017 (NeurIPS); chapter 11 for any noise.
    """
    parts = _parts(loss, surrogate, tau, eta, None)
    values, gradient = _coupled(loss, a, noise, num_samples, generator, parts)
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

    .. math:: c(z) = \omega\,\tilde L(\tanh(z/2\tau)) + r(z)

    Args, Returns, Raises: as :func:`rebar`.
        control: r, maps z ``(..., B, n)`` to ``(..., B)``; typically a small network, trained with
            :func:`control_variate_loss`.
        eta: the number 0 leaves the loss out: c = r, the form published for black boxes, which asks
            no derivative of the loss and does not evaluate it off the states.

    Source: Grathwohl et al. 2018 (ICLR); chapter 11.
    """
    parts = _parts(loss, surrogate, tau, eta, control)
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
        ValueError: no parameters, neither ``eta`` nor ``control``; and as :func:`relax`.
    """
    parameters = list(parameters)
    if not parameters:
        raise ValueError("parameters must hold at least one tensor to train, got none")
    parts = _parts(loss, surrogate, tau, eta, control)
    if not parts:
        raise ValueError("control must be a function where eta is the number 0, got None")
    _, gradient = _coupled(loss, a, noise, num_samples, generator, parts, create_graph=True)
    moment = gradient.square().sum(dim=-1).mean()
    slopes = torch.autograd.grad(moment, parameters, materialize_grads=True)
    pairs = zip(parameters, slopes, strict=True)
    return moment.detach() + sum((g * (p - p.detach())).sum() for p, g in pairs)


#: The summands of c(z) by the name of what was handed in. z comes in at least float32; what the
#: user's functions get is rounded to the dtype of ``a``.
Parts = dict[str, Callable[[Tensor, torch.dtype], Tensor]]


def _parts(
    loss: Loss,
    surrogate: Loss | None,
    tau: float | Tensor,
    eta: float | Tensor,
    control: Callable[[Tensor], Tensor] | None,
) -> Parts:
    """The relaxed loss times eta, unless eta is the number 0, and the free function if any."""
    check_tau(tau)
    check_weight("eta", eta)
    function = loss if surrogate is None else surrogate

    def relaxed(z: Tensor, dtype: torch.dtype) -> Tensor:
        return eta * evaluate(function, torch.tanh(z / (2 * tau)).to(dtype))

    parts: Parts = {"loss": relaxed} if isinstance(eta, Tensor) or eta != 0 else {}
    if control is not None:
        parts["control"] = lambda z, dtype: evaluate(control, z.to(dtype), name="control")
    return parts


def _coupled(
    loss: Loss,
    a: Tensor,
    noise: Noise | str,
    num_samples: int,
    generator: torch.Generator | None,
    parts: Parts,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """Losses ``(M, ...)`` and estimates ``(M, ..., n)``."""
    noise = check_loss_based(a, noise, num_samples)
    leaf = as_variable(widened(a.detach()).repeat(num_samples, *[1] * a.dim()))
    u = uniforms(leaf.shape, a, generator)
    x = states_at(leaf, noise, u)
    values = evaluate(loss, x.to(a.dtype))
    with torch.enable_grad():
        z = leaf - noise.icdf(inside(u, leaf))
        z_given_x = leaf - noise_given_state(leaf, x, noise, uniforms(leaf.shape, a, generator))
        weight, slope = values.detach(), torch.zeros_like(leaf)
        for name, c in parts.items():  # each is asked apart: one with a step would bias in silence
            at_z, at_z_given_x = c(z, a.dtype), c(z_given_x, a.dtype)
            slope = slope + _derivative(name, at_z - at_z_given_x, leaf, create_graph)
            weight = weight - (at_z_given_x if create_graph else at_z_given_x.detach())
        return values, weight[..., None] * score(leaf.detach(), x, noise) + slope


#: What must be differentiable, and what to do where it is not.
_CURES = {
    "loss": "loss, or the surrogate in its place, must be differentiable in the states: hand in a "
    "surrogate that is, leave the loss out of RELAX's control variate with eta=0.0, or take an "
    "estimator without derivatives such as disarm",
    "control": "control must be differentiable in z: its derivative is a part of the estimate",
}


def as_variable(x: Tensor) -> Tensor:
    """``x`` as the variable of a derivative that is taken on the way."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "muprop, rebar, relax and gauge_fixed take derivatives on the way and cannot be "
            "transformed by torch.func: use torch.autograd.grad on what they return"
        )
    return x.requires_grad_()


def _derivative(name: str, values: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
    """d values/dx."""
    slope = None
    if values.requires_grad:
        (slope,) = torch.autograd.grad(
            values.sum(), x, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    if slope is None:
        raise ValueError(_CURES[name])
    return slope
