r"""Optimizers for binary weights: small in-place maps on latent weights.

All act on ``eta`` parameters of :class:`sbnlib.nn.BernoulliLinear` and ``BernoulliConv2d``, whose
``grad`` holds :math:`g = \partial\mathbb{E}L/\partial p \approx 2\,\partial L/\partial w`.
Published updates are written in :math:`\partial L/\partial w`; the ones named after their papers
halve ``grad``, so that their learning rates are the papers'. Plain ``loss.backward()``, any number
of parameter groups, state dicts that round-trip. Real-valued parameters (biases, batch norm) go to
an optimizer of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sbnlib.estimators.relaxed import check_tau
from sbnlib.noise import Logistic, Noise

__all__ = ["BayesBiNN", "BinaryConnect", "Bop", "MirrorDescent", "Proximal", "parq", "proxquant"]

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class _Latent(Optimizer):
    """The loop that all share: ``_update(parameter, gradient, group, state)`` in place."""

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        for name in ("lr", "kl"):
            value = defaults.get(name, 0.0)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step. Parameters without a gradient are skipped, as torch does.

        Raises:
            ValueError: a gradient holds NaN; the message names the parameter by group and position.
                Nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_gradients()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group, self.state[p])
        return loss

    def _check_gradients(self) -> None:
        for k, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                if p.grad is not None and p.grad.isnan().any():
                    raise ValueError(
                        f"the gradient of parameter {i} of group {k}, shape {tuple(p.shape)}, "
                        "holds NaN"
                    )

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        raise NotImplementedError


class MirrorDescent(_Latent):
    r"""Mirror descent over the probabilities of Bernoulli weights.

    .. math:: \eta \leftarrow \Pi\big(\eta - \varepsilon\,(g + \lambda\eta)\big), \qquad
              p = F(\eta),\quad \nabla\Phi = F^{-1}

    The mirror map is the noise's: for logistic noise the divergence is the Kullback-Leibler
    divergence between Bernoulli laws, for uniform noise Euclidean distance. :math:`\Pi` projects on
    the noise's support, which matters for bounded noise only.

    Args:
        params: latent weights ``eta``.
        lr: :math:`\varepsilon \ge 0`, in the units of eta per unit of g.
        noise: the law that the layers of ``params`` use.
        kl: :math:`\lambda \ge 0`, weight of the Bregman divergence :math:`D_\Phi(p, \frac12)`; a KL
            divergence to the uniform prior for logistic noise only.
        proximal: take the divergence exactly,
            :math:`\eta \leftarrow \Pi\big((\eta - \varepsilon g)/(1 + \varepsilon\lambda)\big)`.
        lazy: do not project eta. Layers read F(eta), so this is dual averaging ("lazy" mirror
            descent), which remembers how far outside it went.
        momentum: heavy-ball factor in [0, 1) on g.
        betas: Adam's two factors: g is replaced by its preconditioned mean, which mirror descent
            with this map does not describe.
        eps: Adam's constant.

    Raises:
        ValueError: negative ``lr`` or ``kl``; ``momentum`` or ``betas`` outside [0, 1); at a step,
            a latent weight outside a bounded noise's support (unless ``lazy``), a NaN gradient.

    Source: Ajanthan et al. 2021 (AISTATS); Shekhovtsov & Yanush 2021 (arXiv 2006.06880);
    chapter 14.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        noise: Noise | None = None,
        kl: float = 0.0,
        proximal: bool = False,
        lazy: bool = False,
        momentum: float = 0.0,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("momentum", momentum), *(("betas", b) for b in betas or ())):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value!r}")
        noise = Logistic() if noise is None else noise
        if not isinstance(noise, Noise):
            raise TypeError(f"noise must be a noise model such as Logistic(), got {noise!r}")
        self.noise = noise
        defaults = {
            "lr": lr, "kl": kl, "proximal": proximal, "lazy": lazy,
            "momentum": momentum, "betas": betas, "eps": eps,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        low, high = self.noise.support
        if not group["lazy"] and math.isfinite(high) and (p.abs() > high).any():
            raise ValueError(
                f"a latent weight lies outside the support [{low:g}, {high:g}] of {self.noise!r}; "
                "start inside it, or pass lazy=True"
            )
        g, lr, kl = _direction(g, group, state), group["lr"], group["kl"]
        if group["proximal"]:
            p.sub_(g, alpha=lr).div_(1 + lr * kl)
        else:
            p.mul_(1 - lr * kl).sub_(g, alpha=lr)
        if not group["lazy"]:
            p.clamp_(low, high)


def _direction(g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """g, or g with momentum, or Adam's direction."""
    if group["momentum"]:
        state["momentum"] = g + group["momentum"] * state.get("momentum", torch.zeros_like(g))
        g = state["momentum"]
    if group["betas"] is None:
        return g
    b1, b2 = group["betas"]
    state["step"] = state.get("step", 0) + 1
    state["mean"] = state.get("mean", torch.zeros_like(g)).lerp(g, 1 - b1)
    state["square"] = state.get("square", torch.zeros_like(g)).lerp(g.square(), 1 - b2)
    mean = state["mean"] / (1 - b1 ** state["step"])
    return mean / ((state["square"] / (1 - b2 ** state["step"])).sqrt() + group["eps"])


class BinaryConnect(_Latent):
    r"""BinaryConnect: a gradient step on the latent weight, clipped to [-1, 1].

    .. math:: \eta \leftarrow \operatorname{clip}(\eta - \varepsilon\,\partial L/\partial w, -1, 1)

    Stochastic or deterministic is a matter of the layers: with ``noise=Uniform()`` and
    ``forward="sample"`` the weights are drawn with P(w = 1) = (1 + eta)/2 ("hard sigmoid") and this
    is projected gradient descent on the means; with ``forward="sign"`` the gradient is taken at the
    rounded weights, which is another method.

    Args:
        params: latent weights.
        lr: the paper's learning rate, on dL/dw = ``grad``/2.

    Source: Courbariaux, Bengio & David 2015 (NIPS); chapter 15.
    """

    def __init__(self, params: Params, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        p.sub_(g, alpha=group["lr"] / 2).clamp_(-1, 1)


class Bop(_Latent):
    r"""Bop, the binary optimizer: flip a weight when the averaged gradient insists.

    .. math:: m \leftarrow (1-\gamma)\,m + \gamma\,\partial L/\partial w, \qquad
              w \leftarrow -w \ \text{ where } |m| > \tau \text{ and } m\,w > 0

    The parameter holds the binary weight itself (it is made +-1 at the first step); use layers with
    ``forward="sign"``.

    Args:
        params: the weights.
        lr: gamma, the adaptivity rate, in [0, 1].
        threshold: tau >= 0, the hysteresis; 0 gives w = -sign(m).

    Raises:
        ValueError: ``lr`` outside [0, 1], negative ``threshold``.

    Source: Helwegen et al. 2019 (NeurIPS), algorithm 1; chapter 15.
    """

    def __init__(self, params: Params, lr: float = 1e-4, *, threshold: float = 1e-8) -> None:
        if not 0 <= lr <= 1:
            raise ValueError(f"lr (gamma) must be in [0, 1], got {lr!r}")
        if not threshold >= 0:
            raise ValueError(f"threshold must be >= 0, got {threshold!r}")
        super().__init__(params, {"lr": lr, "threshold": threshold})

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        w = torch.where(p < 0, -1.0, 1.0).to(p.dtype)
        state["mean"] = state.get("mean", torch.zeros_like(p)).lerp(g / 2, group["lr"])
        m = state["mean"]
        p.copy_(torch.where((m.abs() > group["threshold"]) & (m * w > 0), -w, w))


class BayesBiNN(_Latent):
    r"""BayesBiNN: natural-gradient variational inference with a Concrete weight.

    In the paper's :math:`\lambda = \eta/2`, with :math:`\mu = \tanh\lambda` and the relaxed weight
    :math:`w = \tanh((\lambda+\delta)/\tau)`,

    .. math:: \lambda \leftarrow (1-\alpha)\lambda
              - \alpha\big[s\circ\partial L/\partial w - \lambda_0\big],
              \qquad s = N\,\frac{1 - w^2 + \epsilon}{\tau\,(1 - \mu^2 + \epsilon)}

    Use layers with ``noise=Logistic()``, ``forward="concrete"`` and the paper's temperature as
    their ``tau``: with delta = -Z/2 the two relaxed weights are the same.

    Args:
        params: latent weights; each must have been used in a forward pass with ``"concrete"``.
        lr: alpha.
        tau: the paper's temperature.
        train_set_size: N, the factor on the mean loss.
        prior: lambda_0.
        eps: the constant of the released code; at small tau it *is* the estimator (chapter 15).
        stale_mean: take mu from before the previous step, as the released code does.

    Raises:
        ValueError: ``tau <= 0``, or a weight that no "concrete" forward pass has used.

    Source: Meng, Bachmann & Khan 2020 (ICML); chapter 15.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        *,
        tau: float = 1.0,
        train_set_size: float = 1.0,
        prior: float = 0.0,
        eps: float = 1e-10,
        stale_mean: bool = False,
    ) -> None:
        check_tau(tau)
        defaults = {
            "lr": lr, "tau": tau, "train_set_size": train_set_size,
            "prior": prior, "eps": eps, "stale_mean": stale_mean,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        if not hasattr(p, "used"):
            raise ValueError("BayesBiNN needs weights that a forward pass has used as 'concrete'")
        now = torch.tanh(p / 2)
        mean = state.get("mean", now) if group["stale_mean"] else now
        state["mean"] = now
        above = 1 - p.used.square() + group["eps"]
        below = group["tau"] * (1 - mean.square() + group["eps"])
        step = group["train_set_size"] * above / below * g / 2 - group["prior"]
        p.mul_(1 - group["lr"]).sub_(step, alpha=2 * group["lr"])  # in eta = 2 lambda


class Proximal(Optimizer):
    """A base optimizer followed by a proximal map, in the style of torchao's ``parq``.

    Args:
        base: any optimizer of torch over latent weights; its ``step`` runs first.
        prox: an in-place map ``(eta, strength) -> None`` such as :func:`proxquant` or :func:`parq`.
        strength: a number, or a function of the step count (1, 2, ...) to anneal it.

    The base optimizer's parameter groups and state are this one's.

    Source: Bai, Wang & Liberty 2019 (ICLR); Jin et al. 2025 (ICML); chapter 15.
    """

    def __init__(
        self,
        base: Optimizer,
        prox: Callable[[Tensor, float], None],
        strength: float | Callable[[int], float],
    ) -> None:
        self.base, self.prox, self.steps = base, prox, 0
        self.strength = strength if callable(strength) else lambda _: strength
        super().__init__(base.param_groups, base.defaults)
        self.state = base.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = self.base.step(closure)
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.prox(p, self.strength(self.steps))
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict() | {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state_dict = dict(state_dict)
        self.steps = state_dict.pop("steps")
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state


def proxquant(eta: Tensor, strength: float) -> None:
    r"""The proximal map of :math:`\lambda\,\||\eta|-1\|_1`, in place: move towards the nearer sign.

    .. math:: \eta \leftarrow s + \operatorname{sign}(\eta - s)\,\max(|\eta - s| - \lambda,\,0),
              \qquad s = \operatorname{sign}\eta

    Source: Bai, Wang & Liberty 2019, equation for binary weights with the W-shaped regularizer.
    """
    s = torch.where(eta < 0, -1.0, 1.0).to(eta.dtype)
    off = eta - s
    eta.copy_(s + off.sign() * (off.abs() - strength).clamp_min(0))


def parq(eta: Tensor, strength: float) -> None:
    r"""A piecewise-affine map towards the signs, in place.

    .. math:: \eta \leftarrow \operatorname{clip}(s\,\eta, -1, 1)

    The slope ``strength`` s grows from 1 (projection on [-1, 1]) to infinity (the sign).

    Source: Jin et al. 2025 (ICML), the one-bit case.
    """
    eta.mul_(strength).clamp_(-1, 1)
