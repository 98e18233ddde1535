r"""Every estimator once, as data: what it is, when it is unbiased, what it costs, where it is from.

Everything that lists estimators (tests, tables, legends, command lines) reads this. A new estimator
is a function in :mod:`sbnlib.estimators`, exported there, and an entry here; what else it needs (a
reference in the tests, its place on the page of the library reference) the tests ask for by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sbnlib.contracts import ChainRule, LossBased, can_be_called, name_of, named_kind
from sbnlib.estimators import (
    arm,
    concrete,
    darn,
    disarm,
    foust,
    gumbel_rao,
    identity,
    local_expectation,
    muprop,
    proxy,
    psa,
    rebar,
    reinforce,
    relax,
    st_gumbel,
    straight_through,
    zgr,
)

__all__ = ["CLASSES", "ESTIMATORS", "KINDS", "Entry", "as_chain_rule", "as_loss_based", "get"]


def __dir__() -> list[str]:  # what completion offers
    return __all__


#: Classes of losses in increasing order; an estimator is unbiased for its class and those before.
CLASSES = ("none", "multilinear", "coordinatewise quadratic", "any")

#: The forms that an estimator's function can have, see :mod:`sbnlib.contracts`.
KINDS = ("chain rule", "loss based", "relaxation", "network")


@dataclass(frozen=True)
class Entry:
    """One estimator.

    Attributes:
        name: the name on command lines and in measurement files.
        label: the name in legends and tables.
        function: the estimator itself.
        kind: the form of ``function``, one of :data:`KINDS`: ``"chain rule"``, ``(a, x, noise)``;
            ``"loss based"``, ``(loss, a, noise)``; ``"relaxation"``, ``(a, noise)``;
            ``"network"``, ``(net, inputs, loss)``.
        formula: the factor c of a chain-rule estimator, or the estimate itself, in LaTeX.
        unbiased_for: the largest of :data:`CLASSES` for which it is unbiased with any noise, in
            one layer (in depth: in the last binary layer).
        state_only: whether it is a function of (a, x) only, so that exact moments exist.
        evaluations: cost of one sample, in loss evaluations: a number, or a function of the number
            of units n in the layer (in PSA the last one; what it computes below has no evaluation,
            :func:`sbnlib.psa` counts it).
        chapter: where the book derives it.
        papers: keys of its sources in the bibliography.
        colour, marker: its look in every figure.
    """

    name: str
    label: str
    function: Callable[..., Tensor]
    kind: str
    formula: str
    unbiased_for: str
    state_only: bool
    evaluations: int | Callable[[int], int]
    chapter: int
    papers: tuple[str, ...]
    colour: str
    marker: str

    def cost(self, n: int) -> int:
        """Loss evaluations of one sample in a layer of n units."""
        return self.evaluations if isinstance(self.evaluations, int) else self.evaluations(n)


def _all_flips(n: int) -> int:
    """The sampled state, and each of its n neighbours."""
    return n + 1


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
            kind="chain rule",
            formula=r"2f(a)",
            unbiased_for="multilinear",
            state_only=True,
            evaluations=1,
            chapter=6,
            papers=("shekhovtsov2021reintroducing",),
            colour="#0072B2",
            marker="o",
        ),
        Entry(
            name="zgr",
            label="ZGR",
            function=zgr,
            kind="chain rule",
            formula=r"f(a)/P(x)",
            unbiased_for="coordinatewise quadratic",
            state_only=True,
            evaluations=1,
            chapter=10,
            papers=("shekhovtsov2023cold", "liu2023bridging"),
            colour="#D55E00",
            marker="s",
        ),
        Entry(
            name="darn",
            label="DARN",
            function=darn,
            kind="chain rule",
            formula=r"2f(a)\,P(-x)/P(x)",
            unbiased_for="multilinear",
            state_only=True,
            evaluations=1,
            chapter=10,
            papers=("gregor2014deep",),
            colour="#CC79A7",
            marker="^",
        ),
        Entry(
            name="identity",
            label="identity",
            function=identity,
            kind="chain rule",
            formula=r"1",
            unbiased_for="none",
            state_only=True,
            evaluations=1,
            chapter=8,
            papers=("bengio2013estimating",),
            colour="#8C8C8C",
            marker="x",
        ),
        Entry(
            name="hardtanh",
            label="hardtanh proxy",
            function=partial(proxy, name="hardtanh"),
            kind="chain rule",
            formula=r"[\,|a|<1\,]",
            unbiased_for="none",
            state_only=True,
            evaluations=1,
            chapter=8,
            papers=("hubara2016binarized",),
            colour="#B8860B",
            marker="D",
        ),
        Entry(
            name="concrete",
            label="Concrete, τ = ½",
            function=partial(concrete, tau=0.5),
            kind="relaxation",
            formula=r"\tfrac{d}{da}L\big(\tanh\tfrac{a-Z}{2\tau}\big)",
            unbiased_for="none",
            state_only=False,
            evaluations=1,
            chapter=9,
            papers=("maddison2017concrete",),
            colour="#7F7F00",
            marker="v",
        ),
        Entry(
            name="st_gumbel",
            label="ST-Gumbel, τ = ½",
            function=partial(st_gumbel, tau=0.5),
            kind="chain rule",
            formula=r"\tfrac1{2\tau}\operatorname{sech}^2\tfrac{a-Z}{2\tau},\ Z\mid x",
            unbiased_for="none",
            state_only=False,
            evaluations=1,
            chapter=9,
            papers=("jang2017categorical",),
            colour="#A05195",
            marker="<",
        ),
        Entry(
            name="gumbel_rao",
            label="Gumbel-Rao, τ = ½, m = 10",
            function=partial(gumbel_rao, tau=0.5, num_inner=10),
            kind="chain rule",
            formula=r"\tfrac1m\sum_k\tfrac1{2\tau}\operatorname{sech}^2\tfrac{a-Z_k}{2\tau}",
            unbiased_for="none",
            state_only=False,
            evaluations=1,
            chapter=9,
            papers=("paulus2021rao",),
            colour="#665191",
            marker=">",
        ),
        Entry(
            name="foust",
            label="FouST, two steps",
            function=foust,
            kind="relaxation",
            formula=r"f(a)/P(x)\ \text{at}\ xv",
            unbiased_for="none",
            state_only=False,
            evaluations=1,
            chapter=9,
            papers=("pervez2020low",),
            colour="#008B8B",
            marker="1",
        ),
        Entry(
            name="reinforce",
            label="REINFORCE",
            function=reinforce,
            kind="loss based",
            formula=r"L(x)\,x f(a)/P(x)",
            unbiased_for="any",
            state_only=False,
            evaluations=1,
            chapter=4,
            papers=("williams1992simple",),
            colour="#2E9BD6",
            marker="P",
        ),
        Entry(
            name="reinforce_loo",
            label="leave-one-out",
            function=partial(reinforce, num_samples=2, baseline="loo"),
            kind="loss based",
            formula=r"\tfrac12(L(x)-L(x'))\big(\tfrac{xf}{P(x)}-\tfrac{x'f}{P(x')}\big)",
            unbiased_for="any",
            state_only=False,
            evaluations=2,
            chapter=4,
            papers=("kool2019buy",),
            colour="#6A8FD8",
            marker="X",
        ),
        Entry(
            name="local_expectation",
            label="local expectation",
            function=local_expectation,
            kind="loss based",
            formula=r"f(a_i)\,\Delta_iL(x)",
            unbiased_for="any",
            state_only=False,
            evaluations=_all_flips,
            chapter=5,
            papers=("titsias2015local", "tokui2017evaluating"),
            colour="#009E73",
            marker="*",
        ),
        Entry(
            name="arm",
            label="ARM",
            function=arm,
            kind="loss based",
            formula=r"(L(x)-L(\tilde x))(u-\tfrac12)\,f/(F(a)F(-a))",
            unbiased_for="any",
            state_only=False,
            evaluations=2,
            chapter=5,
            papers=("yin2019arm",),
            colour="#4C9F38",
            marker="p",
        ),
        Entry(
            name="disarm",
            label="DisARM",
            function=disarm,
            kind="loss based",
            formula=r"\tfrac12(L(x)-L(\tilde x))\,x\,[x\ne\tilde x]\,f/F(-|a|)",
            unbiased_for="any",
            state_only=False,
            evaluations=2,
            chapter=5,
            papers=("dong2020disarm",),
            colour="#789B00",
            marker="h",
        ),
        Entry(
            name="muprop",
            label="MuProp",
            function=muprop,
            kind="loss based",
            formula=r"(L(x)-l-g^\top(x-\mu))\,xf/P(x)+2f\,g",
            unbiased_for="any",
            state_only=False,
            evaluations=2,
            chapter=11,
            papers=("gu2016muprop",),
            colour="#C44E52",
            marker="d",
        ),
        Entry(
            name="rebar",
            label="REBAR, τ = ½",
            function=rebar,
            kind="loss based",
            formula=r"(L(x)-\omega c(z'))\,xf/P(x)+\omega\nabla c(z)-\omega\nabla c(z')",
            unbiased_for="any",
            state_only=False,
            evaluations=3,
            chapter=11,
            papers=("tucker2017rebar",),
            colour="#B5651D",
            marker="H",
        ),
        Entry(
            name="relax",
            label="RELAX, r untrained",
            function=partial(relax, control=_untrained),
            kind="loss based",
            formula=r"\text{as REBAR, with } c+r",
            unbiased_for="any",
            state_only=False,
            evaluations=3,
            chapter=11,
            papers=("grathwohl2018backpropagation",),
            colour="#D9775A",
            marker="8",
        ),
        Entry(
            name="psa",
            label="PSA",
            function=psa,
            kind="network",
            formula=r"f(a_i)\,x_i\sum_j\Delta_{ij}D_j",
            unbiased_for="any",
            state_only=False,
            evaluations=_all_flips,
            chapter=7,
            papers=("shekhovtsov2020path",),
            colour="#117733",
            marker="+",
        ),
        Entry(
            name="psa_symmetric",
            label="PSA from both sides",
            function=partial(psa, symmetric=True),
            kind="network",
            formula=r"f(a_i)\,x_i\sum_j\Delta_{ij}D_j\big/2P(x_i)",
            unbiased_for="any",
            state_only=False,
            evaluations=_all_flips,
            chapter=7,
            papers=("shekhovtsov2020path",),
            colour="#44AA99",
            marker="2",
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


def as_chain_rule(estimator: str | ChainRule, *, state_only: bool = False) -> ChainRule:
    """A chain-rule estimator from the name of an entry, or ``estimator`` itself.

    Args:
        estimator: a name, a function ``(a, x, noise)``, or what :func:`sbnlib.pathwise` made of
            either.
        state_only: whether a name must be that of a function of (a, x) only.

    Raises:
        ValueError: unknown name, an entry of another kind or its function, or one that is not state
            only.
        TypeError: neither a name nor a function.
    """
    if not isinstance(estimator, str):
        return _checked(getattr(estimator, "chain_rule", estimator), "chain rule")
    entry = _of_kind(estimator, "chain rule")
    if state_only and not entry.state_only:
        known = sorted(e.name for e in ESTIMATORS.values() if e.state_only)
        raise ValueError(f"estimator must be a function of (a, x) only, one of {known}, "
                         f"{estimator!r} is not")  # fmt: skip
    return entry.function


def as_loss_based(estimator: str | LossBased) -> LossBased:
    """A loss-based estimator from the name of an entry, or ``estimator`` itself.

    Raises:
        ValueError: unknown name, or an entry of another kind or its function.
        TypeError: neither a name nor a function.
    """
    if not isinstance(estimator, str):
        return _checked(estimator, "loss based")
    return _of_kind(estimator, "loss based").function


def _of_kind(name: str, kind: str) -> Entry:
    entry = get(name)
    if entry.kind != kind:
        known = sorted(e.name for e in ESTIMATORS.values() if e.kind == kind)
        raise ValueError(f"estimator must be {kind}, one of {known}; {name!r} is {entry.kind}")
    return entry


#: What to hand in for a kind, and where a function of that kind belongs.
_WANTED = {
    "chain rule": "a chain-rule function (a, x, noise) such as straight_through",
    "loss based": "a loss-based function (loss, a, noise) such as reinforce",
}
_PLACE = {
    "chain rule": "Sign and SBN take it, and pathwise makes a network estimator of it",
    "loss based": "layerwise makes a network estimator of it",
    "relaxation": "it stands in place of a unit, and network_estimator relaxes every unit",
    "network": "it is called with (net, inputs, loss)",
}
#: By identity: a user's function may have no hash.
_KIND_OF = {id(getattr(e.function, "func", e.function)): e.kind for e in ESTIMATORS.values()}


def _checked(function: Callable[..., Tensor], kind: str) -> Callable[..., Tensor]:
    """A function that an entry or :func:`sbnlib.pathwise` knows must be of this kind."""
    wanted, base = _WANTED[kind], getattr(function, "func", function)  # a partial's
    if not callable(function):
        raise TypeError(f"estimator must be a registry name or {wanted}, got {name_of(function)}")
    if id(base) in _KIND_OF:
        found = _KIND_OF[id(base)]
    elif isinstance(function, type):
        raise TypeError(f"estimator must be {wanted}, got the class {name_of(function)}")
    else:
        found = "network" if hasattr(function, "chain_rule") else named_kind(function) or kind
    if found != kind:
        got = f"{name_of(base)} of kind {found!r}"
        raise ValueError(f"estimator must be {wanted}, got {got}: {_PLACE[found]}")
    if id(base) not in _KIND_OF and not can_be_called(function, 3):
        got = f"{name_of(base)}, which does not take three arguments"
        raise TypeError(f"estimator must be {wanted}, got {got}")
    return function
