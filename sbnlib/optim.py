r"""Optimizers for binary weights: small in-place maps on latent weights.

All act on ``eta`` parameters of :class:`sbnlib.nn.BernoulliLinear` and ``BernoulliConv2d``, whose
``grad`` holds an estimate :math:`g` of :math:`\partial\mathbb{E}L/\partial p`; real-valued
parameters (biases, batch norm) go to an optimizer of torch, and :func:`split` tells them apart::

    latent, real = optim.split(net)
    optimizers = [optim.MirrorDescent(latent, lr=1000), torch.optim.Adam(real)]

The learning rates of optimizers named after papers are the papers'. BinaryConnect and Bop are
written there in :math:`\partial L/\partial w = g/2` and halve ``grad``; BayesBiNN has half of eta
as its coordinate and takes it whole. Plain ``loss.backward()``, any number of parameter groups,
learning-rate schedules of torch, state dicts that round-trip.

**How large is a learning rate?** eta has the unit of its noise, so a step is small or large beside
the noise's scale. g is the gradient of a *mean* loss in one probability of thousands, and small: on
digits (:mod:`sbnlib.experiments.weights`) 0.0007 at the start. For a step of some hundredths of the
scale lr is about 100 then; the experiment took 1000, and lr = 1 hardly learns in its 20 epochs.
With ``MirrorDescent(betas=...)`` the step does not depend on the scale of g: it is about lr where g
is steady, and a fraction of it where g is mostly noise. The rates that the entries name as best
were so for one seed on 360 validation images, some of them at the end of the range: orders of
magnitude.

What is refused, with nothing changed: gradients or latent weights that are not finite; eta in half
precision, which a small step would not move; an eta of another law than the optimizer's (Bop and
Proximal ask for none); latent weights among other parameters; another optimizer's state dict.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from sbnlib.contracts import check_function, check_number, is_finite
from sbnlib.nn import TernaryLinear, _Bernoulli
from sbnlib.noise import Logistic, Noise, Uniform, as_noise

__all__ = [
    "BayesBiNN",
    "BinaryConnect",
    "Bop",
    "FlipRatio",
    "MirrorDescent",
    "Proximal",
    "SimplexDescent",
    "parq",
    "proxquant",
    "split",
]


def __dir__() -> list[str]:  # what completion offers
    return __all__


Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Group = dict[str, Any]
T = TypeVar("T")

#: What else a group may hold: what torch and its schedulers write there.
_BESIDE = {
    "params", "param_names", "differentiable", "initial_lr", "max_lr", "min_lr", "swa_lr",
    "max_momentum", "base_momentum",
}  # fmt: skip


def split(net: torch.nn.Module) -> tuple[list[Parameter], list[Parameter]]:
    """The latent weights of a network's random layers, and its real-valued parameters.

    Latent are the ``eta`` of Bernoulli layers and the ``theta`` of ternary ones.

    Args:
        net: any module.

    Returns:
        Two lists of parameters in the order of ``net.parameters()``; together they hold each
        parameter once. Frozen ones are among them: an optimizer skips what has no gradient.

    Raises:
        TypeError: ``net`` is not a module.
    """
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"net must be a module, got {type(net).__name__}")
    own = {id(m.eta) for m in net.modules() if isinstance(m, _Bernoulli)}
    own |= {id(m.theta) for m in net.modules() if isinstance(m, TernaryLinear)}
    latent = [p for p in net.parameters() if id(p) in own]
    real = [p for p in net.parameters() if id(p) not in own]
    return latent, real


# ---- what every optimizer here looks at before it moves anything ---------------------------------


def _law(p: Tensor) -> Noise | None:
    """The law that a Bernoulli layer has named on its eta; None for any other parameter."""
    return getattr(p, "noise", None)


def _named(groups: Iterable[Group]) -> Iterator[tuple[str, Tensor, Group]]:
    """Every parameter, with what to call it in messages, and its group."""
    for k, group in enumerate(groups):
        names = group.get("param_names") or range(len(group["params"]))
        for name, p in zip(names, group["params"], strict=True):
            yield f"parameter {name} of group {k}, shape {tuple(p.shape)}", p, group


def _check_parameters(groups: list[Group], *, among_others: bool = False) -> None:
    """All in single or double precision; latent weights of layers not among other parameters."""
    _check_no_simplex(groups)
    latent = any(_law(p) is not None for group in groups for p in group["params"])
    for what, p, _ in _named(groups):
        _check_precision(what, p, "eta")
        if latent and _law(p) is None and not among_others:
            raise ValueError(
                f"{what}, is no latent weight of a Bernoulli layer, as others here are: "
                "sbnlib.optim.split(net) tells them apart"
            )


def _check_precision(what: str, p: Tensor, name: str) -> None:
    if p.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{what}, must be of float32 or float64, got {p.dtype}, in which small steps are "
            f"lost: keep {name} in float32 and run the layer under torch.autocast"
        )


def _check_no_simplex(groups: list[Group]) -> None:
    for what, p, _ in _named(groups):
        if getattr(p, "simplex", False):
            raise ValueError(
                f"{what}, holds the log-probabilities of ternary weights: use SimplexDescent, and "
                "one optimizer for each kind of weights"
            )


def _check_finite(what: str, p: Tensor, g: Tensor) -> None:
    for name, values in (("the gradient of ", g), ("", p)):
        if not is_finite(values):
            raise ValueError(f"{name}{what}, holds NaN or infinite values")


def _check_groups(who: str, state_dict: dict[str, Any], groups: list[Group]) -> None:
    """A state dict is the optimizer's own if its groups hold the same options."""
    saved = state_dict.get("param_groups") or [{}]
    for group, own in zip(saved, groups, strict=False):
        ours, theirs = (sorted(set(g) - _BESIDE) for g in (own, group))
        if ours != theirs:
            raise ValueError(
                f"state_dict must be one of {who}, whose groups hold {', '.join(ours)}; the groups "
                f"given hold {', '.join(theirs) or 'nothing'}"
            )


class _Latent(Optimizer):
    """The loop that all share: ``_update(parameter, gradient, group, state)`` in place.

    Options and parameters are checked when a group is added; at a step they are checked again,
    with the gradients, before any parameter is changed.
    """

    #: The law that the update is for; None: any.
    noise: Noise | None = None
    #: Whether other parameters may stand beside latent weights of layers.
    _among_others = False

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        try:
            self._check_options(self.param_groups[-1])
            self._check_laws()
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], T]) -> T: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], T] | None = None) -> T | None:
        """One step. Parameters without a gradient are skipped, as torch does.

        Raises:
            ValueError: a gradient or a latent weight is not finite, an option is out of its range
                by now, or as the class says; the message names the parameter (by group and
                position, or by name if the optimizer was given named parameters). Nothing has been
                changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_all()
        for group in self.param_groups:
            numbers = group | {"lr": float(group["lr"])}  # torch takes a tensor there, too
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, numbers, self.state[p])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch, if the groups hold the options that this optimizer's own groups hold.

        Raises:
            ValueError: they do not, so the state is another optimizer's.
        """
        _check_groups(type(self).__name__, state_dict, self.param_groups)
        super().load_state_dict(state_dict)

    def _check_all(self) -> None:
        for group in self.param_groups:
            self._check_options(group)
        self._check_laws()
        for what, p, group in _named(self.param_groups):
            if p.grad is not None:
                self._check(p, p.grad, group, what)

    def _check_laws(self) -> None:
        _check_parameters(self.param_groups, among_others=self._among_others)
        for what, p, _ in _named(self.param_groups):
            law = _law(p)
            if self.noise is not None and law is not None and law != self.noise:
                raise ValueError(
                    f"{what}, is of {law!r}, this {type(self).__name__} is for {self.noise!r}: "
                    "make the layer with that noise, or use one optimizer for each noise"
                )

    def _check_options(self, options: Group) -> None:
        check_number("lr", options["lr"], "a finite number >= 0", lambda v: 0 <= v < math.inf)

    def _check(self, p: Tensor, g: Tensor, group: Group, what: str) -> None:
        _check_finite(what, p, g)
        rate = self._rate(group)
        if not is_finite(g * rate):
            raise ValueError(f"a step of {rate:g} times the gradient of {what}, is infinite")

    def _rate(self, group: Group) -> float:
        """What multiplies the gradient in a step."""
        return float(group["lr"])

    def _update(self, p: Tensor, g: Tensor, group: Group, state: dict[str, Any]) -> None:
        raise NotImplementedError


class MirrorDescent(_Latent):
    r"""Mirror descent over the probabilities of Bernoulli weights.

    .. math:: \eta \leftarrow \Pi\big(\eta - \varepsilon\,(g + \lambda\eta)\big), \qquad
              p = F(\eta),\quad \nabla\Phi = F^{-1}

    The mirror map is the noise's: for logistic noise the divergence is the Kullback-Leibler
    divergence between Bernoulli laws, for uniform noise the squared Euclidean distance between the
    p, each times the noise's scale. :math:`\Pi` projects on
    the noise's support, which matters for bounded noise only.

    Args:
        params: latent weights ``eta``.
        lr: :math:`\varepsilon \ge 0`, in the units of eta per unit of g. On digits 20000
            was best of 20 to 1e+06, and from 200 on all were alike within 1.5 points; with
            ``betas`` 0.1 of 0.001 to 50 (uniform noise, ``lazy``, at rounded weights), all alike
            from 0.005 on.
        noise: the law that the layers of ``params`` use, or its name for scale 1; default the law
            that they name on their ``eta``, ``Logistic()`` for parameters without one. Parameters
            of any other origin may stand beside those of layers only if the law is given.
        kl: :math:`\lambda \ge 0`, weight of the Bregman divergence :math:`D_\Phi(p, \frac12)`; a KL
            divergence to the uniform prior for logistic noise only.
        proximal: take the divergence exactly,
            :math:`\eta \leftarrow \Pi\big((\eta - \varepsilon g)/(1 + \varepsilon\lambda)\big)`.
        lazy: do not project eta. Layers read F(eta), so this is dual averaging ("lazy" mirror
            descent), which remembers how far outside it went.
        momentum: heavy-ball factor in [0, 1) on g; not beside ``betas``.
        betas: Adam's two factors: g is replaced by its preconditioned mean, which mirror descent
            with this map does not describe. lr is then in the units of eta: the direction has
            size 1 at the first step, less where the gradient is mostly noise.
        eps: Adam's constant > 0.

    Raises:
        ValueError: an option out of its range; :math:`\varepsilon\lambda \ge 2` in an explicit
            step; latent weights of another law; at a step, a latent weight outside a bounded
            noise's support (unless ``lazy``), a gradient or a latent weight that is not finite.
        TypeError: latent weights in half precision.

    ``OneCycleLR`` and ``CyclicLR`` move ``momentum`` as well, as in torch's SGD also from 0, or the
    first of ``betas``; pass them ``cycle_momentum=False`` if that is not meant.

    Source: Nemirovsky & Yudin 1983, Beck & Teboulle 2003 for mirror descent; Ajanthan et al. 2021
    (AISTATS); Shekhovtsov & Yanush 2021 (arXiv 2006.06880); chapter 14.
    """

    noise: Noise

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
        if noise is not None:
            self.noise, self._among_others = as_noise(noise), True
        defaults = {
            "lr": lr, "kl": kl, "proximal": proximal, "lazy": lazy, "momentum": momentum,
            "eps": eps,
        }  # fmt: skip
        # Among the defaults only if given: torch's schedules of momentum look for it there
        super().__init__(params, defaults if betas is None else defaults | {"betas": betas})
        if noise is None:
            laws = [_law(p) for group in self.param_groups for p in group["params"]]
            self.noise = next(iter(laws), None) or Logistic()
            self._check_laws()

    def add_param_group(self, param_group: Group) -> None:
        if isinstance(param_group, dict):
            param_group.setdefault("betas", self.defaults.get("betas"))
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        own = {"noise": self.noise, "_among_others": self._among_others}
        return super().__getstate__() | own  # torch copies its own fields only

    def _check_options(self, options: Group) -> None:
        super()._check_options(options)
        if "noise" in options:
            raise ValueError("noise is the optimizer's, not a group's: use one for each noise")
        lr, kl, betas = options["lr"], options["kl"], options["betas"]
        check_number("kl", kl, "a finite number >= 0", lambda v: 0 <= v < math.inf)
        check_number("momentum", options["momentum"], "in [0, 1)", lambda v: 0 <= v < 1)
        check_number("eps", options["eps"], "a finite number > 0", lambda v: 0 < v < math.inf)
        if not options["proximal"] and lr * kl >= 2:
            raise ValueError(
                f"lr * kl must be below 2, got {float(lr):g} * {float(kl):g}: the explicit step "
                "diverges; pass proximal=True or take a smaller lr"
            )
        if betas is not None:
            _check_betas(betas)
            if options["momentum"]:
                raise ValueError(
                    f"momentum must be 0 where betas are given, got {options['momentum']!r}: the "
                    "first of betas is Adam's momentum"
                )

    def _check(self, p: Tensor, g: Tensor, group: Group, what: str) -> None:
        super()._check(p, g, group, what)
        low, high = self.noise.support
        if not group["lazy"] and math.isfinite(high) and (p.abs() > high).any():
            raise ValueError(
                f"{what}, has a latent weight outside the support [{low:g}, {high:g}] of "
                f"{self.noise!r}; start inside it, or pass lazy=True"
            )

    def _update(self, p: Tensor, g: Tensor, group: Group, state: dict[str, Any]) -> None:
        g, lr, kl = _direction(g, group, state), group["lr"], group["kl"]
        if group["proximal"]:
            p.sub_(g, alpha=lr).div_(1 + lr * kl)
        else:
            p.mul_(1 - lr * kl).sub_(g, alpha=lr)
        if not group["lazy"]:
            p.clamp_(*self.noise.support)


def _check_betas(betas: object) -> None:
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
    for beta in betas:
        check_number("betas", beta, "two numbers in [0, 1)", lambda v: 0 <= v < 1)


def _direction(g: Tensor, group: Group, state: dict[str, Any]) -> Tensor:
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


class SimplexDescent(_Latent):
    r"""Mirror descent over probabilities that add up to 1: exponentiated gradient.

    .. math:: \theta \leftarrow \log\operatorname{softmax}
              \big(\theta - \varepsilon\,(g + \lambda\theta)\big), \qquad
              p = \operatorname{softmax}\theta

    Over the last axis of a parameter, of any number of states. In the probabilities it is
    :math:`p_k \leftarrow p_k^{1-\varepsilon\lambda}\,e^{-\varepsilon g_k}` up to the factor that
    makes their sum 1: a step of mirror descent whose divergence is the Kullback-Leibler divergence,
    on :math:`\mathbb{E}L + \lambda\sum_k p_k\log p_k`, which pulls to the uniform law. A constant
    added to the three numbers of g changes nothing, nor does one added to theta.

    Args:
        params: the ``theta`` of :class:`sbnlib.nn.TernaryLinear`, or other tensors whose last axis
            holds log-probabilities up to a constant.
        lr: :math:`\varepsilon \ge 0`, in units of log-probability per unit of g.
        kl: :math:`\lambda \ge 0`.

    Raises:
        ValueError: an option out of its range; :math:`\varepsilon\lambda \ge 2`, where the step
            diverges; a parameter without a last axis of at least two states; latent weights of a
            Bernoulli layer; at a step, a gradient or a theta that is not finite. A probability of
            exactly 0 is such a theta: no step could lead away from it.
        TypeError: a parameter in half precision.

    With straight-through's gradient :math:`(-1, 0, 1)\,\partial_wL` and :math:`\lambda = 0` each
    step leaves :math:`p_+p_-/p_0^2` as it was (chapter 21).

    Source: Kivinen & Warmuth 1997, exponentiated gradient; chapter 21.
    """

    def __init__(self, params: Params, lr: float, *, kl: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "kl": kl})

    def _check_options(self, options: Group) -> None:
        super()._check_options(options)
        lr, kl = options["lr"], options["kl"]
        check_number("kl", kl, "a finite number >= 0", lambda v: 0 <= v < math.inf)
        if lr * kl >= 2:
            raise ValueError(f"lr * kl must be below 2, got {float(lr):g} * {float(kl):g}: the "
                             "step diverges")  # fmt: skip

    def _check_laws(self) -> None:
        for what, p, _ in _named(self.param_groups):
            _check_precision(what, p, "theta")
            if _law(p) is not None:
                raise ValueError(f"{what}, holds latent weights of a Bernoulli layer: use "
                                 "MirrorDescent, and one optimizer for each kind")  # fmt: skip
            if p.dim() == 0 or p.shape[-1] < 2:
                raise ValueError(f"{what}, must have a last axis of at least two log-probabilities")

    def _update(self, p: Tensor, g: Tensor, group: Group, state: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["kl"]).sub_(g, alpha=group["lr"])
        p.sub_(p.amax(-1, keepdim=True))  # twice as fast as log_softmax on an axis of three
        p.sub_(p.exp().sum(-1, keepdim=True).log_())


class BinaryConnect(_Latent):
    r"""BinaryConnect: a gradient step on the latent weight, clipped to [-1, 1].

    .. math:: \eta \leftarrow \operatorname{clip}(\eta - \varepsilon\,\partial L/\partial w, -1, 1)

    Use layers with ``noise=Uniform()``. Stochastic or deterministic is a matter of theirs: with
    ``forward="sample"`` the weights are drawn with P(w = 1) = (1 + eta)/2 ("hard sigmoid") and this
    is projected gradient descent on the means; with ``forward="sign"`` the gradient is taken at the
    rounded weights, which is another method.

    Args:
        params: latent weights.
        lr: the paper's learning rate, on dL/dw = ``grad``/2. On digits 500 was best of 2 to
            100000 with ``"sample"``, 500 of 0.5 to 20000 with ``"sign"``.

    Raises:
        ValueError: an option out of its range; latent weights of a law that is not ``Uniform()``;
            at a step, a gradient or a latent weight that is not finite.
        TypeError: latent weights in half precision.

    Source: Courbariaux, Bengio & David 2015 (NIPS); chapter 15.
    """

    noise = Uniform()

    def __init__(self, params: Params, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def _update(self, p: Tensor, g: Tensor, group: Group, state: dict[str, Any]) -> None:
        p.sub_(g, alpha=group["lr"] / 2).clamp_(-1, 1)


class Bop(_Latent):
    r"""Bop, the binary optimizer: flip a weight when the averaged gradient insists.

    .. math:: m \leftarrow (1-\gamma)\,m + \gamma\,\partial L/\partial w, \qquad
              w \leftarrow -w \ \text{ where } |m| > \tau \text{ and } m\,w > 0

    The parameter holds the binary weight itself (it is made +-1 at the first step); use layers with
    ``forward="sign"``, of any law.

    Args:
        params: the weights.
        lr: gamma, the adaptivity rate, in [0, 1]. On digits 0.1 was best of 0.003 to 0.3, with the
            threshold 0.0001.
        threshold: tau >= 0, the hysteresis, in the units of dL/dw; 0 gives w = -sign(m).

    Raises:
        ValueError: an option out of its range; at a step, a gradient or a weight that is not
            finite.
        TypeError: weights in half precision.

    Source: Helwegen et al. 2019 (NeurIPS), algorithm 1; chapter 15.
    """

    def __init__(self, params: Params, lr: float = 1e-4, *, threshold: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "threshold": threshold})

    def _check_options(self, options: Group) -> None:
        check_number("lr", options["lr"], "gamma in [0, 1]", lambda v: 0 <= v <= 1)
        threshold, words = options["threshold"], "a finite number >= 0"
        check_number("threshold", threshold, words, lambda v: 0 <= v < math.inf)

    def _update(self, p: Tensor, g: Tensor, group: Group, state: dict[str, Any]) -> None:
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

    Use layers with ``noise=Logistic()``, ``forward="concrete"``, the paper's temperature as their
    ``tau`` and its constant as their ``eps``: with delta = -Z/2 the two relaxed weights are the
    same, and the layer's gradient is :math:`g = (2/N)\,s\circ\partial L/\partial w`. So this is

    .. math:: \eta \leftarrow \eta - \alpha N\,\big(g + \eta/N\big) + 2\alpha\lambda_0,

    :class:`MirrorDescent` with ``lr`` :math:`\alpha N` and ``kl`` :math:`1/N`, where lambda_0 is 0
    and the mean not stale.
    The step takes the gradient as it is: accumulated, averaged over machines, or clipped.

    Args:
        params: latent weights.
        lr: alpha, in [0, 2). On digits (tau = 1) 0.003 was best of 0.001 to 0.01, with
            N = 1e+08.
        train_set_size: N > 0, the factor on the mean loss.
        prior: lambda_0.
        stale_mean: take mu from before the previous step, as the released code does.

    Raises:
        ValueError: an option out of its range; latent weights of a law that is not ``Logistic()``;
            at a step, a gradient or a latent weight that is not finite.
        TypeError: latent weights in half precision.

    Source: Meng, Bachmann & Khan 2020 (ICML); chapter 15.
    """

    noise = Logistic()

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        *,
        train_set_size: float = 1.0,
        prior: float = 0.0,
        stale_mean: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "train_set_size": train_set_size, "prior": prior, "stale_mean": stale_mean,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_options(self, options: Group) -> None:
        check_number("lr", options["lr"], "alpha in [0, 2), beyond which the step diverges",
                     lambda v: 0 <= v < 2)  # fmt: skip
        size = options["train_set_size"]
        check_number("train_set_size", size, "a finite number > 0", lambda v: 0 < v < math.inf)
        check_number("prior", options["prior"], "a finite number", math.isfinite)

    def _rate(self, group: Group) -> float:
        return super()._rate(group) * group["train_set_size"]

    def _update(self, p: Tensor, g: Tensor, group: Group, state: dict[str, Any]) -> None:
        if group["stale_mean"]:  # which the draw has no part in: late only in g's denominator
            now, eps = torch.tanh(p / 2), getattr(p, "eps", 1e-10)
            late = state.get("mean", now)
            state["mean"] = now
            g = g * (1 - now.square() + eps) / (1 - late.square() + eps)
        step = group["train_set_size"] * g - 2 * group["prior"]
        p.mul_(1 - group["lr"]).sub_(step, alpha=group["lr"])


def _of_base(name: str) -> Any:
    """The attribute is that of the base optimizer, to read and to write."""
    return property(
        lambda self: getattr(self.base, name), lambda self, new: setattr(self.base, name, new)
    )


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

    Groups, state and defaults are the base's, for all who read or write them, and so is the
    learning rate. With Adam as base and :func:`proxquant`, whose strength grew by 1e-5 a step, and
    the clip to the cube after it, 1 was best of 0.03 to 3 on digits.

    Raises:
        TypeError: ``base`` is no optimizer; latent weights in half precision.
        ValueError: a ``strength`` that the map refuses; latent weights among other parameters; at a
            step, a gradient or a weight that is not finite, and what the base refuses. Nothing has
            been changed then.

    Source: Bai, Wang & Liberty 2019 (ICLR), eager; Jin et al. 2025 (ICML), lazy ("aggregate
    proximal"); chapter 15.
    """

    param_groups, state, defaults = map(_of_base, ("param_groups", "state", "defaults"))

    def __init__(
        self,
        base: Optimizer,
        prox: Callable[[Tensor, float], None],
        strength: float | Callable[[int], float],
        *,
        lazy: bool = False,
    ) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"base must be an optimizer of torch, got {base!r}")
        check_function("prox", prox, "latent weights and a strength")
        self.base, self.prox, self.strength, self.lazy, self.steps = base, prox, strength, lazy, 0
        # Hooks as after torch's constructor, which would make groups and a state of its own, too
        self.__setstate__({})
        _check_parameters(self.param_groups)
        if not callable(strength):
            self._try(strength)

    def __getstate__(self) -> dict[str, Any]:
        return {k: vars(self)[k] for k in ("base", "prox", "strength", "lazy", "steps")}

    def add_param_group(self, param_group: Group) -> None:
        self.base.add_param_group(param_group)

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
        strength = self.strength(self.steps + 1) if callable(self.strength) else self.strength
        self._check_all()
        self._try(strength)
        self._step_of_base()
        self.steps += 1
        for p in self._moved():
            if self.lazy:
                self.state[p]["latent"] = p.clone()
            self.prox(p, strength)
        return loss

    def _moved(self) -> list[Tensor]:
        return [p for _, p, _ in _named(self.param_groups) if p.grad is not None]

    def _check_all(self) -> None:
        _check_parameters(self.param_groups)
        for group in self.param_groups:  # of a base that has a rate: not all do
            check_number("lr", group.get("lr", 0), "a finite number", math.isfinite)
        for what, p, _ in _named(self.param_groups):
            if p.grad is not None:
                _check_finite(what, p, p.grad)

    def _try(self, strength: float) -> None:
        """Map one weight, for the map to refuse a strength before any is moved."""
        for _, p, _ in itertools.islice(_named(self.param_groups), 1):
            self.prox(torch.zeros(1, dtype=p.dtype, device=p.device), strength)

    def _step_of_base(self) -> None:
        """From the latent weights; back to the mapped ones if the base refuses."""
        mapped = {p: p.clone() for p in self._moved() if "latent" in self.state.get(p, ())}
        for p in mapped:
            p.copy_(self.state[p]["latent"])
        try:
            self.base.step()
        except Exception:
            for p, before in mapped.items():
                p.copy_(before)
            raise

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict() | {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "steps" not in state_dict:
            raise ValueError(
                "state_dict must be one of Proximal, which counts its steps, got one that holds "
                f"{', '.join(state_dict)}"
            )
        base = f"Proximal over {type(self.base).__name__}"
        _check_groups(base, state_dict, self.param_groups)
        if not self.lazy and any("latent" in s for s in state_dict["state"].values()):
            raise ValueError("state_dict must be one of an eager Proximal, got one of a lazy one")
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "steps"})
        self.steps = state_dict["steps"]


def proxquant(eta: Tensor, strength: float) -> None:
    r"""The proximal map of :math:`\lambda\,\||\eta|-1\|_1`, in place: move towards the nearer sign.

    .. math:: \eta \leftarrow s + \operatorname{sign}(\eta - s)\,\max(|\eta - s| - \lambda,\,0),
              \qquad s = \operatorname{sign}\eta

    Args:
        eta: latent weights.
        strength: lambda, a finite number >= 0.

    Raises:
        ValueError: ``strength`` out of its range.

    Source: Bai, Wang & Liberty 2019 (ICLR), the W-shaped regularizer of binary weights.
    """
    check_number("strength", strength, "a finite number >= 0", lambda v: 0 <= v < math.inf)
    s = torch.where(eta < 0, -1.0, 1.0).to(eta.dtype)
    off = eta - s
    eta.copy_(s + off.sign() * (off.abs() - strength).clamp_min(0))


def parq(eta: Tensor, strength: float) -> None:
    r"""A piecewise-affine map towards the signs, in place.

    .. math:: \eta \leftarrow \operatorname{clip}(s\,\eta, -1, 1)

    The slope grows from 1 (projection on [-1, 1]) to infinity (the sign, +1 at 0). Use it with
    ``Proximal(..., lazy=True)``.

    Args:
        eta: latent weights.
        strength: s >= 1; ``math.inf`` is allowed.

    Raises:
        ValueError: ``strength`` out of its range.

    Source: Jin et al. 2025 (ICML), the one-bit case.
    """
    check_number("strength", strength, "a slope >= 1", lambda v: v >= 1)
    if math.isinf(strength):
        eta.copy_(torch.where(eta < 0, -1.0, 1.0))
    else:
        eta.mul_(strength).clamp_(-1, 1)


class FlipRatio:
    r"""The share of binary weights whose sign has changed since the last look.

    .. math:: \frac1n\,\#\{i : \operatorname{sign}\eta_i \ne
              \operatorname{sign}\eta_i^{\text{before}}\}

    As a rule it is large early in training and small in the end; one that stays large hints at a
    learning rate that is too high, one that is 0 from the start at one that is too low.

    Args:
        params: latent weights (or the weights themselves, with :class:`Bop`).

    A call returns the share, between 0 and 1, and remembers the signs; sign(0) = +1. It keeps one
    byte for each weight.

    Raises:
        ValueError: no weights.
        TypeError: ``params`` is a tensor or a module, or holds something other than tensors.

    Source: Helwegen et al. 2019 (NeurIPS), who plot its logarithm; larq's ``FlipRatio``.

    >>> eta = torch.tensor([0.5, -0.5])
    >>> flips = FlipRatio([eta])
    >>> eta.add_(1)
    tensor([1.5000, 0.5000])
    >>> flips(), flips()
    (0.5, 0.0)
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        if isinstance(params, Tensor | torch.nn.Module) or not isinstance(params, Iterable):
            got = type(params).__name__
            raise TypeError(f"params must be tensors of weights, such as a list of them, got {got}")
        self.params = list(params)
        for p in self.params:
            if not isinstance(p, Tensor):
                raise TypeError(f"params must hold tensors only, got {p!r}")
        if not sum(p.numel() for p in self.params):
            raise ValueError("params must hold at least one tensor of weights, got none")
        self.signs = self._signs()

    def __call__(self) -> float:
        before, self.signs = self.signs, self._signs()
        flipped = sum((a != b).sum() for a, b in zip(before, self.signs, strict=True))
        return float(flipped) / sum(p.numel() for p in self.params)

    def _signs(self) -> list[Tensor]:
        return [p.detach() >= 0 for p in self.params]
