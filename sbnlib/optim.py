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
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from sbnlib.contracts import check_tau
from sbnlib.noise import Logistic, Noise, as_noise

__all__ = [
    "BayesBiNN",
    "BinaryConnect",
    "Bop",
    "FlipRatio",
    "MirrorDescent",
    "Proximal",
    "parq",
    "proxquant",
]


def __dir__() -> list[str]:  # what completion offers
    return __all__


Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
T = TypeVar("T")


class _Latent(Optimizer):
    """The loop that all share: ``_update(parameter, gradient, group, state)`` in place.

    Every group's options are checked, and at a step every parameter before any is changed.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._check_options(self.defaults | param_group)
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], T]) -> T: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], T] | None = None) -> T | None:
        """One step. Parameters without a gradient are skipped, as torch does.

        Raises:
            ValueError: a gradient holds NaN, or as the class says; the message names the parameter
                (by group and position, or by name if the optimizer was given named parameters).
                Nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_all()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group, self.state[p])
        return loss

    def _check_all(self) -> None:
        for k, group in enumerate(self.param_groups):
            names = group.get("param_names") or range(len(group["params"]))
            for name, p in zip(names, group["params"], strict=True):
                if p.grad is not None:
                    what = f"parameter {name} of group {k}, shape {tuple(p.shape)}"
                    self._check(p, p.grad, group, what)

    def _check_options(self, options: dict[str, Any]) -> None:
        for name in ("lr", "kl"):
            value = options.get(name, 0.0)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")

    def _check(self, p: Tensor, g: Tensor, group: dict[str, Any], what: str) -> None:
        if g.isnan().any():
            raise ValueError(f"the gradient of {what}, holds NaN")

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
        noise: the law that the layers of ``params`` use, or its name for scale 1; default
            ``Logistic()``.
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
        noise: Noise | str | None = None,
        kl: float = 0.0,
        proximal: bool = False,
        lazy: bool = False,
        momentum: float = 0.0,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
    ) -> None:
        self.noise: Noise = Logistic() if noise is None else as_noise(noise)
        defaults = {
            "lr": lr, "kl": kl, "proximal": proximal, "lazy": lazy,
            "momentum": momentum, "betas": betas, "eps": eps,
        }  # fmt: skip
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"noise": self.noise}  # torch copies its own fields only

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        if "noise" in options:
            raise ValueError("noise is the optimizer's, not a group's: use one for each noise")
        betas = options["betas"]
        if betas is not None and len(betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        for name, values in (("momentum", [options["momentum"]]), ("betas", betas or ())):
            if not all(0 <= value < 1 for value in values):
                raise ValueError(f"{name} must be in [0, 1), got {options[name]!r}")

    def _check(self, p: Tensor, g: Tensor, group: dict[str, Any], what: str) -> None:
        super()._check(p, g, group, what)
        low, high = self.noise.support
        if not group["lazy"] and math.isfinite(high) and (p.abs() > high).any():
            raise ValueError(
                f"{what}, has a latent weight outside the support [{low:g}, {high:g}] of "
                f"{self.noise!r}; start inside it, or pass lazy=True"
            )

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        g, lr, kl = _direction(g, group, state), group["lr"], group["kl"]
        if group["proximal"]:
            p.sub_(g, alpha=lr).div_(1 + lr * kl)
        else:
            p.mul_(1 - lr * kl).sub_(g, alpha=lr)
        if not group["lazy"]:
            p.clamp_(*self.noise.support)


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
        super().__init__(params, {"lr": lr, "threshold": threshold})

    def _check_options(self, options: dict[str, Any]) -> None:
        if not 0 <= options["lr"] <= 1:
            raise ValueError(f"lr (gamma) must be in [0, 1], got {options['lr']!r}")
        if not options["threshold"] >= 0:
            raise ValueError(f"threshold must be >= 0, got {options['threshold']!r}")

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
        params: latent weights; each used once, as ``"concrete"``, in the forward pass that the
            gradient is of.
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
        defaults = {
            "lr": lr, "tau": tau, "train_set_size": train_set_size,
            "prior": prior, "eps": eps, "stale_mean": stale_mean,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_tau(options["tau"])

    def _check(self, p: Tensor, g: Tensor, group: dict[str, Any], what: str) -> None:
        super()._check(p, g, group, what)
        if _used(p) is None:
            raise ValueError(
                f"BayesBiNN needs weights that the last forward pass used as 'concrete'; {what}, "
                "has not been"
            )

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        now = torch.tanh(p / 2)
        mean = state.get("mean", now) if group["stale_mean"] else now
        state["mean"] = now
        used = _used(p)
        assert used is not None  # as _check has seen
        above = 1 - used.square() + group["eps"]
        below = group["tau"] * (1 - mean.square() + group["eps"])
        step = group["train_set_size"] * above / below * g / 2 - group["prior"]
        p.mul_(1 - group["lr"]).sub_(step, alpha=2 * group["lr"])  # in eta = 2 lambda


def _used(p: Tensor) -> Tensor | None:
    """What the weight was in the last forward pass, if relaxed: its layer notes it on ``eta``."""
    return getattr(p, "used", None)


class Proximal(Optimizer):
    r"""A base optimizer followed by a proximal map, in the style of torchao's ``parq``.

    .. math:: \eta \leftarrow \operatorname{prox}(\eta - \varepsilon g(\eta))
              \qquad\text{or, lazy,}\qquad
              u \leftarrow u - \varepsilon g(\eta),\quad \eta \leftarrow \operatorname{prox}(u)

    Args:
        base: any optimizer of torch over latent weights; its ``step`` runs first.
        prox: an in-place map ``(eta, strength) -> None`` such as :func:`proxquant` or :func:`parq`.
        strength: a number, or a function of the step count (1, 2, ...) to anneal it.
        lazy: let the steps accumulate before the map, in the state ``"latent"`` u, and the
            parameter hold the map of it. ProxQuant is eager; PARQ is lazy, and its map applied
            eagerly would multiply its slopes from step to step.

    The base optimizer's parameter groups and state are this one's.

    Source: Bai, Wang & Liberty 2019 (ICLR), eager; Jin et al. 2025 (ICML), lazy ("aggregate
    proximal"); chapter 15.
    """

    def __init__(
        self,
        base: Optimizer,
        prox: Callable[[Tensor, float], None],
        strength: float | Callable[[int], float],
        *,
        lazy: bool = False,
    ) -> None:
        self.base, self.prox, self.lazy, self.steps = base, prox, lazy, 0
        self.strength = strength if callable(strength) else lambda _: strength
        super().__init__(base.param_groups, base.defaults)
        self.state = base.state

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], T]) -> T: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], T] | None = None) -> T | None:
        loss = None
        if closure is not None:  # the gradient is due at the mapped weight, not at the latent one
            with torch.enable_grad():
                loss = closure()
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in moved:
            p.copy_(self.state[p].get("latent", p))
        self.base.step()
        self.steps += 1
        for p in moved:
            if self.lazy:
                self.state[p]["latent"] = p.clone()
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

    The slope ``strength`` s grows from 1 (projection on [-1, 1]) to infinity (the sign, +1 at 0).
    Use it with ``Proximal(..., lazy=True)``.

    Source: Jin et al. 2025 (ICML), the one-bit case.
    """
    if math.isinf(strength):
        eta.copy_(torch.where(eta < 0, -1.0, 1.0))
    else:
        eta.mul_(strength).clamp_(-1, 1)


class FlipRatio:
    r"""The share of binary weights whose sign has changed since the last look.

    .. math:: \frac1n\,\#\{i : \operatorname{sign}\eta_i \ne
              \operatorname{sign}\eta_i^{\text{before}}\}

    Early in training it is large, in the end it is small; if it stays large the learning rate is
    too high, if it is 0 from the start it is too low.

    Args:
        params: latent weights (or the weights themselves, with :class:`Bop`).

    A call returns the share, between 0 and 1, and remembers the signs; sign(0) = +1. It keeps one
    byte for each weight.

    Raises:
        ValueError: no weights.

    Source: Helwegen et al. 2019 (NeurIPS), who plot its logarithm; larq's ``FlipRatio``.

    >>> eta = torch.tensor([0.5, -0.5])
    >>> flips = FlipRatio([eta])
    >>> eta.add_(1)
    tensor([1.5000, 0.5000])
    >>> flips(), flips()
    (0.5, 0.0)
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.params = list(params)
        if not self.params:
            raise ValueError("params must hold at least one tensor of weights, got none")
        self.signs = self._signs()

    def __call__(self) -> float:
        before, self.signs = self.signs, self._signs()
        flipped = sum((a != b).sum() for a, b in zip(before, self.signs, strict=True))
        return float(flipped) / sum(p.numel() for p in self.params)

    def _signs(self) -> list[Tensor]:
        return [p.detach() >= 0 for p in self.params]
