r"""Every estimator once: what it is, when it is unbiased, what it costs, where it comes from.

Everything that lists estimators (tests, tables, legends, command lines) reads this; adding an
estimator is one function and one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sbnlib.estimators import (
    arm,
    concrete,
    darn,
    disarm,
    gumbel_rao,
    identity,
    local_expectation,
    muprop,
    proxy,
    rebar,
    reinforce,
    relax,
    st_gumbel,
    straight_through,
    zgr,
)
from sbnlib.network import NetworkEstimator, layerwise, pathwise
from sbnlib.nn import Tier1
from sbnlib.noise import Noise
from sbnlib.path import psa

__all__ = ["CLASSES", "ESTIMATORS", "Entry", "get", "network_estimator", "tier1"]

#: Classes of losses in increasing order; an estimator is unbiased for its class and those before.
CLASSES = ("none", "multilinear", "coordinatewise quadratic", "any")


@dataclass(frozen=True)
class Entry:
    """One estimator.

    Attributes:
        name: the name on command lines and in measurement files.
        label: the name in legends and tables.
        function: the estimator itself.
        tier: 1 for chain-rule estimators ``(a, x, noise)``, 2 for those that evaluate the loss
            ``(loss, a, noise)``, 0 for those of a whole network.
        formula: the factor c of a Tier 1 estimator, or the estimate itself, in LaTeX.
        unbiased_for: the largest of :data:`CLASSES` for which it is unbiased with any noise, in
            one layer (in depth: in the last binary layer).
        state_only: whether it is a function of (a, x) only, so that exact moments exist.
        evaluations: cost of one sample, in loss evaluations (n: units in the layer).
        chapter: where the book derives it.
        paper: its source and equation.
        colour, marker: its look in every figure.
    """

    name: str
    label: str
    function: Callable[..., object]
    tier: int
    formula: str
    unbiased_for: str
    state_only: bool
    evaluations: str
    chapter: int
    paper: str
    colour: str
    marker: str

    @property
    def network(self) -> NetworkEstimator:
        """The estimator for a whole network."""
        wrap = {0: lambda f: f, 1: pathwise, 2: layerwise}
        return wrap[self.tier](self.function)


def _relaxed_network(tau: float) -> NetworkEstimator:
    """Every unit relaxed: the loss of the relaxed network, with its own exact gradient."""

    def unit(a: Tensor, x: Tensor, noise: Noise, generator: torch.Generator | None) -> Tensor:
        return concrete(a, noise, tau=tau, generator=generator)

    return pathwise(unit)


def _untrained(z: Tensor) -> Tensor:
    """A free function for RELAX that has learned nothing: unbiased all the same."""
    return 0.1 * torch.tanh(z).sum(dim=-1)


#: The entries by name, in the order of tables and legends.
ESTIMATORS: dict[str, Entry] = {
    e.name: e
    for e in (
        Entry(
            name="straight_through",
            label="ST",
            function=straight_through,
            tier=1,
            formula=r"2f(a)",
            unbiased_for="multilinear",
            state_only=True,
            evaluations="1",
            chapter=6,
            paper="Shekhovtsov & Yanush 2021, arXiv 2006.06880, section 3",
            colour="#0072B2",
            marker="o",
        ),
        Entry(
            name="zgr",
            label="ZGR",
            function=zgr,
            tier=1,
            formula=r"f(a)/P(x)",
            unbiased_for="coordinatewise quadratic",
            state_only=True,
            evaluations="1",
            chapter=10,
            paper="Shekhovtsov 2023 (ICML); ReinMax at temperature 1: Liu et al. 2023 (NeurIPS)",
            colour="#D55E00",
            marker="s",
        ),
        Entry(
            name="darn",
            label="DARN",
            function=darn,
            tier=1,
            formula=r"2f(a)\,P(-x)/P(x)",
            unbiased_for="multilinear",
            state_only=True,
            evaluations="1",
            chapter=10,
            paper="Gregor et al. 2014, arXiv 1310.8499",
            colour="#CC79A7",
            marker="^",
        ),
        Entry(
            name="identity",
            label="identity",
            function=identity,
            tier=1,
            formula=r"1",
            unbiased_for="none",
            state_only=True,
            evaluations="1",
            chapter=8,
            paper="Bengio, Leonard & Courville 2013, arXiv 1308.3432",
            colour="#8C8C8C",
            marker="x",
        ),
        Entry(
            name="hardtanh",
            label="hardtanh proxy",
            function=partial(proxy, name="hardtanh"),
            tier=1,
            formula=r"[\,|a|<1\,]",
            unbiased_for="none",
            state_only=True,
            evaluations="1",
            chapter=8,
            paper="Hubara et al. 2016, binarized neural networks",
            colour="#B8860B",
            marker="D",
        ),
        Entry(
            name="concrete",
            label="Concrete, τ = ½",
            function=_relaxed_network(0.5),
            tier=0,
            formula=r"\tfrac{d}{da}L\big(\tanh\tfrac{a-Z}{2\tau}\big)",
            unbiased_for="none",
            state_only=False,
            evaluations="1",
            chapter=9,
            paper="Maddison, Mnih & Teh 2017, arXiv 1611.00712",
            colour="#7F7F00",
            marker="v",
        ),
        Entry(
            name="st_gumbel",
            label="ST-Gumbel, τ = ½",
            function=partial(st_gumbel, tau=0.5),
            tier=1,
            formula=r"\tfrac1{2\tau}\operatorname{sech}^2\tfrac{a-Z}{2\tau},\ Z\mid x",
            unbiased_for="none",
            state_only=False,
            evaluations="1",
            chapter=9,
            paper="Jang, Gu & Poole 2017",
            colour="#A05195",
            marker="<",
        ),
        Entry(
            name="gumbel_rao",
            label="Gumbel-Rao, τ = ½, K = 10",
            function=partial(gumbel_rao, tau=0.5, num_inner=10),
            tier=1,
            formula=r"\tfrac1K\sum_k\tfrac1{2\tau}\operatorname{sech}^2\tfrac{a-Z_k}{2\tau}",
            unbiased_for="none",
            state_only=False,
            evaluations="1",
            chapter=9,
            paper="Paulus, Maddison & Krause 2021 (ICLR)",
            colour="#665191",
            marker=">",
        ),
        Entry(
            name="reinforce",
            label="REINFORCE",
            function=reinforce,
            tier=2,
            formula=r"L(x)\,x f(a)/P(x)",
            unbiased_for="any",
            state_only=False,
            evaluations="1",
            chapter=4,
            paper="Williams 1992",
            colour="#2E9BD6",
            marker="P",
        ),
        Entry(
            name="reinforce_loo",
            label="REINFORCE, leave-one-out, M = 2",
            function=partial(reinforce, num_samples=2, baseline="loo"),
            tier=2,
            formula=r"\tfrac12(L(x)-L(x'))\big(\tfrac{xf}{P(x)}-\tfrac{x'f}{P(x')}\big)",
            unbiased_for="any",
            state_only=False,
            evaluations="2",
            chapter=4,
            paper="Kool, van Hoof & Welling 2019",
            colour="#6A8FD8",
            marker="X",
        ),
        Entry(
            name="local_expectation",
            label="local expectation",
            function=local_expectation,
            tier=2,
            formula=r"f(a_i)\,\Delta_iL(x)",
            unbiased_for="any",
            state_only=False,
            evaluations="n + 1",
            chapter=5,
            paper="Titsias & Lazaro-Gredilla 2015; Tokui & Sato 2017",
            colour="#009E73",
            marker="*",
        ),
        Entry(
            name="arm",
            label="ARM",
            function=arm,
            tier=2,
            formula=r"(L(x)-L(\tilde x))(u-\tfrac12)\,f/(F(a)F(-a))",
            unbiased_for="any",
            state_only=False,
            evaluations="2",
            chapter=5,
            paper="Yin & Zhou 2019 (ICLR)",
            colour="#4C9F38",
            marker="p",
        ),
        Entry(
            name="disarm",
            label="DisARM",
            function=disarm,
            tier=2,
            formula=r"\tfrac12(L(x)-L(\tilde x))\,x\,[x\ne\tilde x]\,f/F(-|a|)",
            unbiased_for="any",
            state_only=False,
            evaluations="2",
            chapter=5,
            paper="Dong, Mnih & Tucker 2020 (NeurIPS)",
            colour="#789B00",
            marker="h",
        ),
        Entry(
            name="muprop",
            label="MuProp",
            function=muprop,
            tier=2,
            formula=r"(L(x)-l-g^\top(x-\mu))\,xf/P(x)+2f\,g",
            unbiased_for="any",
            state_only=False,
            evaluations="2",
            chapter=11,
            paper="Gu, Levine, Sutskever & Mnih 2016 (ICLR)",
            colour="#C44E52",
            marker="d",
        ),
        Entry(
            name="rebar",
            label="REBAR, τ = ½",
            function=rebar,
            tier=2,
            formula=r"(L(x)-\eta c(z'))\,xf/P(x)+\eta\nabla c(z)-\eta\nabla c(z')",
            unbiased_for="any",
            state_only=False,
            evaluations="3",
            chapter=11,
            paper="Tucker et al. 2017 (NeurIPS)",
            colour="#B5651D",
            marker="H",
        ),
        Entry(
            name="relax",
            label="RELAX, r untrained",
            function=partial(relax, control=_untrained),
            tier=2,
            formula=r"\text{as REBAR, with } c+r",
            unbiased_for="any",
            state_only=False,
            evaluations="3",
            chapter=11,
            paper="Grathwohl et al. 2018 (ICLR)",
            colour="#D9775A",
            marker="8",
        ),
        Entry(
            name="psa",
            label="PSA",
            function=psa,
            tier=0,
            formula=r"f(a_i)\,x_i\sum_j\Delta_{ij}D_j",
            unbiased_for="any",
            state_only=False,
            evaluations="n + 1",
            chapter=7,
            paper="Shekhovtsov, Yanush & Flach 2020 (NeurIPS), arXiv 2006.03143",
            colour="#117733",
            marker="+",
        ),
    )
}


def get(name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        ValueError: no such entry; the message lists the names there are.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {sorted(ESTIMATORS)}, got {name!r}")
    return ESTIMATORS[name]


def network_estimator(estimator: str | NetworkEstimator) -> NetworkEstimator:
    """A network estimator from a registry name, or ``estimator`` itself if it is one already."""
    return get(estimator).network if isinstance(estimator, str) else _callable(estimator)


def tier1(estimator: str | Tier1) -> Tier1:
    """A Tier 1 estimator from a registry name, a function, or a ``pathwise`` network estimator.

    Raises:
        ValueError: unknown name, or the entry is not a function of the state only.
    """
    if isinstance(estimator, str):
        entry = get(estimator)
        if not entry.state_only:
            raise ValueError(f"estimator must be a function of (a, x) only, {estimator!r} is not")
        return entry.function
    return getattr(_callable(estimator), "tier1", estimator)


def _callable(estimator: Callable) -> Callable:
    if not callable(estimator):
        raise TypeError(f"estimator must be a registry name or a function, got {estimator!r}")
    return estimator
