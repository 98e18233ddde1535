r"""Every estimator once: what it is, when it is unbiased, what it costs, where it comes from.

Everything that lists estimators (tests, tables, legends, command lines) reads this; adding an
estimator is one function and one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sbnlib.estimators import darn, identity, proxy, straight_through, zgr
from sbnlib.network import NetworkEstimator, pathwise
from sbnlib.nn import Tier1

__all__ = ["CLASSES", "ESTIMATORS", "Entry", "get", "network_estimator", "tier1"]

#: Classes of losses in increasing order; an estimator is unbiased for its class and those before.
CLASSES = ("none", "multilinear", "coordinatewise quadratic", "any")


@dataclass(frozen=True)
class Entry:
    """One estimator.

    Attributes:
        name: the name on command lines and in measurement files.
        label: the name in legends and tables.
        function: the estimator itself (Tier 1).
        formula: its factor c, in LaTeX.
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
    function: Tier1
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
        return pathwise(self.function)


ESTIMATORS: dict[str, Entry] = {
    e.name: e
    for e in (
        Entry(
            name="straight_through",
            label="ST",
            function=straight_through,
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
            formula=r"[\,|a|<1\,]",
            unbiased_for="none",
            state_only=True,
            evaluations="1",
            chapter=8,
            paper="Hubara et al. 2016, binarized neural networks",
            colour="#B8860B",
            marker="D",
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
