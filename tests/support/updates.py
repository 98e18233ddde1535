"""The optimizers in numpy, each update written from its paper, and how sbnlib's is made.

A reference update maps (latent weight, dL/dw, weight used) to the next latent weight and keeps its
own memory. A ``Case`` puts one beside an optimizer of sbnlib with the same settings; an optimizer
that has no case fails by name in ``test_discovery.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bridge import make_noise
from reference import Array, Named, RefNoise
from torch.optim import Optimizer

from sbnlib import optim
from sbnlib.nn import BernoulliLinear

Update = Callable[[Array, Array, Array], Array]
Prox = Callable[[Array, float], Array]


def sign(w: Array) -> Array:
    return np.where(w >= 0, 1.0, -1.0)


# ------------------------------------------------------------------------ the published updates


def mirror_descent(
    lr: float,
    noise: str = "Logistic",
    *,
    kl: float = 0.0,
    proximal: bool = False,
    lazy: bool = False,
    direction: Callable[[Array], Array] = lambda g: g,
) -> Update:
    """eta <- proj(eta - lr (g + kl eta)) with g = dL/dp = 2 dL/dw; the decay exact if proximal."""
    end = math.inf if lazy else RefNoise(noise).half_width

    def step(eta: Array, slope: Array, used: Array) -> Array:
        g = direction(2 * slope)
        new = (eta - lr * g) / (1 + lr * kl) if proximal else eta - lr * (g + kl * eta)
        return np.clip(new, -end, end)

    return step


def heavy_ball(factor: float) -> Callable[[Array], Array]:
    """m <- factor m + g."""
    memory = {"m": 0.0}

    def direction(g: Array) -> Array:
        memory["m"] = factor * memory["m"] + g
        return memory["m"]

    return direction


def adam(first: float, second: float, eps: float) -> Callable[[Array], Array]:
    """Kingma & Ba 2015, algorithm 1, without the step size."""
    memory = {"t": 0, "m": 0.0, "v": 0.0}

    def direction(g: Array) -> Array:
        memory["t"] += 1
        memory["m"] = first * memory["m"] + (1 - first) * g
        memory["v"] = second * memory["v"] + (1 - second) * g * g
        mean = memory["m"] / (1 - first ** memory["t"])
        return mean / (np.sqrt(memory["v"] / (1 - second ** memory["t"])) + eps)

    return direction


def binary_connect(lr: float) -> Update:
    """Courbariaux et al. 2015, algorithm 1: w <- clip(w - lr dC/dw_b)."""
    return lambda w, slope, used: np.clip(w - lr * slope, -1, 1)


def bop(gamma: float, threshold: float) -> Update:
    """Helwegen et al. 2019, algorithm 1."""
    memory = {"m": 0.0}

    def step(w: Array, slope: Array, used: Array) -> Array:
        memory["m"] = m = (1 - gamma) * memory["m"] + gamma * slope
        return np.where((np.abs(m) > threshold) & (sign(m) == sign(w)), -sign(w), sign(w))

    return step


def bayes_bi_nn(
    lr: float, tau: float, *, size: float, prior: float = 0.0, eps: float = 1e-10, stale: bool
) -> Update:
    """The released code of Meng et al. 2020 (one draw, no momentum), in eta = 2 lambda."""
    memory: dict[str, Array] = {}

    def step(eta: Array, slope: Array, used: Array) -> Array:
        lam = eta / 2
        mean = memory.get("mu", np.tanh(lam)) if stale else np.tanh(lam)
        memory["mu"] = np.tanh(lam)
        scale = (1 - used * used + eps) / tau / (1 - mean * mean + eps)
        return 2 * (lam - lr * (size * scale * slope + (lam - prior)))

    return step


def proximal(
    prox: Prox,
    lr: float,
    strength: Callable[[int], float],
    *,
    lazy: bool = False,
    direction: Callable[[Array], Array] = lambda g: g,
) -> Update:
    """prox(eta - lr g); lazy: u <- u - lr g and eta = prox(u), so the steps add up before the map.

    Bai et al. 2019 and Jin et al. 2025, over gradient descent or what ``direction`` makes of it.
    """
    memory: dict[str, Any] = {"t": 0}

    def step(eta: Array, slope: Array, used: Array) -> Array:
        memory["t"] += 1
        start = memory.get("u", eta) if lazy else eta
        memory["u"] = start - lr * direction(2 * slope)
        return prox(memory["u"], strength(memory["t"]))

    return step


def proxquant(at: Array, strength: float) -> Array:
    """Bai et al. 2019: towards the nearer of +-1 by ``strength``, no further than to it."""
    size = np.abs(at)
    return sign(at) * (1 + np.sign(size - 1) * np.maximum(np.abs(size - 1) - strength, 0))


def parq(at: Array, slope: float) -> Array:
    """Jin et al. 2025: the piecewise-affine map for the levels -1 and 1, interval by interval."""
    levels = np.array([-1.0, 1.0])
    index = np.searchsorted(levels, at)
    low, high = levels[np.maximum(index - 1, 0)], levels[np.minimum(index, 1)]
    centre = (low + high) / 2
    steep = sign(at) if math.isinf(slope) else centre + (at - centre) * slope
    return np.clip(steep, low, high)


def exponentiated_gradient(p: Array, g: Array, lr: float, kl: float = 0.0) -> Array:
    """Kivinen & Warmuth 1997, in the probabilities: p_k exp(-lr (g_k + kl log p_k)), divided."""
    new = p * np.exp(-lr * (g + kl * np.log(p)))
    return new / new.sum(-1, keepdims=True)


#: Optimizers of probabilities with more than two states -> their published update of p.
ON_SIMPLEX: Named[Callable[..., Array]] = Named(
    "optimizer on the simplex", {"SimplexDescent": exponentiated_gradient}
)


@dataclass(frozen=True)
class RefMap:
    """A proximal map and the strengths that it is made for, the weakest first."""

    value: Prox
    strengths: tuple[float, ...]


MAPS: Named[RefMap] = Named(
    "proximal map",
    {
        "proxquant": RefMap(proxquant, (0.0, 0.2, 0.9, 3.0)),
        "parq": RefMap(parq, (1.0, 1.2, 5.0, math.inf)),
    },
)

#: Names of ``sbnlib.optim`` that are neither an optimizer nor a proximal map.
NO_UPDATE = frozenset({"FlipRatio", "split"})

# -------------------------------------------------------------------- how sbnlib's are made


@dataclass(frozen=True)
class Case:
    """An optimizer of sbnlib, made with settings, and the published update with the same.

    Attributes:
        optimizer: its name in ``sbnlib.optim``.
        make: from parameters or groups to the optimizer.
        update: a fresh reference update.
        mode: what the layer's weight is in a forward pass.
        noise: the law of the layer.
        tau: the temperature of a ``"concrete"`` weight.
        ends: whether the latent weight comes to rest at +-1 when all gradients push it outwards.
    """

    optimizer: str
    make: Callable[[Any], Optimizer]
    update: Callable[[], Update]
    mode: str = "sample"
    noise: str = "Logistic"
    tau: float = 1.0
    ends: bool = False

    def layer(self, start: Array) -> BernoulliLinear:
        """A layer with one output and the latent weights ``start``, in float64."""
        options = {"noise": make_noise(self.noise), "forward": self.mode, "tau": self.tau}
        layer = BernoulliLinear(len(start), 1, bias=False, **options).double()
        with torch.no_grad():
            layer.eta.copy_(torch.tensor(start)[None])
        return layer

    def used(self, eta: Array, u: Array) -> Array:
        """The weight of a forward pass with the uniforms ``u``."""
        law = RefNoise(self.noise)
        modes = {
            "sample": lambda: np.where(u < law.cdf(eta), 1.0, -1.0),
            "sign": lambda: sign(eta),
            "mean": lambda: law.cdf(eta) - law.cdf(-eta),
            "concrete": lambda: np.tanh((eta - law.icdf(u)) / (2 * self.tau)),
        }
        return Named("mode of a weight", modes)[self.mode]()


def mirror_case(noise: str, lr: float, ends: bool = False, **options: Any) -> Case:
    """Mirror descent with the same settings on both sides."""
    momentum, betas = options.get("momentum"), options.get("betas")
    shared = {k: v for k, v in options.items() if k in ("kl", "proximal", "lazy")}

    def update() -> Update:
        ways = {"direction": heavy_ball(momentum)} if momentum else {}
        ways |= {"direction": adam(*betas, options["eps"])} if betas else {}
        return mirror_descent(lr, noise, **shared, **ways)

    def make(p: Any) -> Optimizer:
        return optim.MirrorDescent(p, lr, noise=make_noise(noise), **options)

    return Case("MirrorDescent", make, update, noise=noise, ends=ends)


def _binary_connect(mode: str) -> Case:
    return Case(
        "BinaryConnect",
        lambda p: optim.BinaryConnect(p, 0.03),
        lambda: binary_connect(0.03),
        mode=mode,
        noise="Uniform",
        ends=True,
    )


def _bop(gamma: float, threshold: float) -> Case:
    return Case(
        "Bop",
        lambda p: optim.Bop(p, gamma, threshold=threshold),
        lambda: bop(gamma, threshold),
        mode="sign",
        ends=True,
    )


def _bayes(tau: float, prior: float, stale: bool) -> Case:
    # At larger rates mu rounds to 1 and 1/(1 - mu^2) makes rounding errors visible.
    lr, options = 0.002, {"prior": prior}
    return Case(
        "BayesBiNN",
        lambda p: optim.BayesBiNN(p, lr, train_set_size=3.0, stale_mean=stale, **options),
        lambda: bayes_bi_nn(lr, tau, size=3.0, stale=stale, **options),
        mode="concrete",
        tau=tau,
    )


def _proxquant(momentum: float) -> Case:
    def strength(t: int) -> float:
        return t / 2000

    def make(p: Any) -> Optimizer:
        base = torch.optim.SGD(p, 0.01, momentum=momentum)
        return optim.Proximal(base, optim.proxquant, strength)

    def update() -> Update:
        return proximal(proxquant, 0.01, strength, direction=heavy_ball(momentum))

    return Case("Proximal", make, update, mode="mean", ends=True)


def _parq(base: Callable[[Any], Optimizer], lr: float, way: Callable[[], Any]) -> Case:
    def strength(t: int) -> float:
        return 1 / (1 - (t - 1) / 100) if t <= 100 else math.inf

    return Case(
        "Proximal",
        lambda p: optim.Proximal(base(p), optim.parq, strength, lazy=True),
        lambda: proximal(parq, lr, strength, lazy=True, direction=way()),
        mode="mean",
        ends=True,
    )


CASES: Named[Case] = Named(
    "case of an optimizer",
    {
        "mirror": mirror_case("Logistic", 0.01, kl=0.3),
        "mirror proximal": mirror_case("Logistic", 0.01, kl=0.3, proximal=True),
        "mirror momentum": mirror_case("Logistic", 0.003, kl=0.1, momentum=0.8),
        "mirror adam": mirror_case("Logistic", 0.05, kl=0.1, betas=(0.8, 0.95), eps=1e-6),
        "mirror uniform": mirror_case("Uniform", 0.02, ends=True),
        "mirror lazy": mirror_case("Uniform", 0.02, kl=0.3, lazy=True),
        "binary connect": _binary_connect("sample"),
        "binary connect sign": _binary_connect("sign"),
        "bop": _bop(0.1, 0.05),
        "bop without threshold": _bop(0.02, 0.0),
        "bayesbinn": _bayes(1.0, 0.4, stale=False),
        "bayesbinn stale": _bayes(0.3, 0.0, stale=True),
        "proxquant": _proxquant(0.0),
        "proxquant momentum": _proxquant(0.5),
        "parq": _parq(lambda p: torch.optim.SGD(p, 0.01), 0.01, lambda: heavy_ball(0.0)),
        "parq adam": _parq(
            lambda p: torch.optim.Adam(p, 0.02, betas=(0.8, 0.95)),
            0.02,
            lambda: adam(0.8, 0.95, 1e-8),
        ),
        "parq mirror": _parq(
            lambda p: optim.MirrorDescent(p, 0.01, momentum=0.8), 0.01, lambda: heavy_ball(0.8)
        ),
    },
)
