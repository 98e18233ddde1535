r"""Formulas as they are printed, and the arithmetic that each stands for.

The key is the TeX, character by character. A page or a docstring whose TeX is not here fails; who
changes one reads the other. Nothing is parsed: ``1-|a|^7`` is not found, it is not evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from reference import Array, Named, RefNoise
from scipy import special
from slopes import SLOPES

Function = Callable[[Array], Array]


def list_table(text: str, name: str) -> list[list[str]]:
    """The rows of the ``{list-table}`` with this ``:name:``, cell by cell, as they are printed."""
    (table,) = (
        body
        for options, body in re.findall(
            r"^```\{list-table\}[^\n]*\n((?::[^\n]*\n)*)\n(.*?)^```", text, re.M | re.S
        )
        if f":name: {name}\n" in options
    )
    rows = re.split(r"^\* - ", table, flags=re.M)[1:]
    return [[" ".join(c.split()) for c in re.split(r"^  -", row, flags=re.M)] for row in rows]


# ------------------------------------------------------------------ proxies, sbnlib's registry

PROXY_FORMULAS: Named[Function] = Named(
    "formula of a proxy",
    {
        r"[|a|<1]": lambda a: (np.abs(a) < 1).astype(float),
        r"1-\tanh^2 a": lambda a: 1 - np.tanh(a) ** 2,
        r"\tfrac12(1-\tanh^2\tfrac a2)": lambda a: (1 - np.tanh(a / 2) ** 2) / 2,
        r"\max(0,\,2-2|a|)": lambda a: np.maximum(0, 2 - 2 * np.abs(a)),
        r"\sqrt{2/\pi}\,e^{-a^2/2}": lambda a: math.sqrt(2 / math.pi) * np.exp(-(a**2) / 2),
        r"\frac{2}{\pi(1+a^2)}": lambda a: 2 / (math.pi * (1 + a**2)),
        r"(1+|a|)^{-2}": lambda a: (1 + np.abs(a)) ** -2.0,
        r"(1+10|a|)^{-2}": lambda a: (1 + 10 * np.abs(a)) ** -2.0,
        r"k t\,(1-\tanh^2(ta)),\ t=0.1,\ k=1/t": lambda a: (
            1 / 0.1 * 0.1 * (1 - np.tanh(0.1 * a) ** 2)
        ),
        r"k t\,(1-\tanh^2(ta)),\ t=10,\ k=1": lambda a: (
            10 * (1 - np.tanh(10 * a)) * (1 + np.tanh(10 * a))
        ),
        r"\tfrac13|a|^{-2/3}\ (0.1<|a|\le1.5),\ 0.1^{-2/3}\ (|a|\le0.1)": (
            lambda a: np.select(
                [np.abs(a) <= 0.1, np.abs(a) <= 1.5],
                [0.1 ** (-2 / 3), np.abs(np.where(a == 0, 1, a)) ** (-2 / 3) / 3],
            )
        ),
        r"\beta\,\frac{2-\beta a\tanh(\beta a/2)}{1+\cosh(\beta a)},\ \beta=5": lambda a: (
            5 * (2 - 5 * a * np.tanh(5 * a / 2)) / (1 + np.cosh(np.clip(5 * a, -700, 700)))
        ),
    },
)

# ---------------------------------------------------- noise models, the table of the notation page

SUPPORTS: Named[float] = Named(
    "support on the notation page", {r"$\mathbb{R}$": math.inf, r"$[-1,1]$": 1.0}
)


QUANTITIES: Named[Callable[[RefNoise, Array], Array]] = Named(
    "quantity",
    {
        "F": lambda law, a: law.cdf(a),
        "f": lambda law, a: law.pdf(a),
        "2f": lambda law, a: 2 * law.pdf(a),
        "mean": lambda law, a: law.cdf(a) - law.cdf(-a),
    },
)


@dataclass(frozen=True)
class Printed:
    """What a formula is of, and its arithmetic in ``a`` and F; printed for ``a`` up to an end."""

    of: str
    value: Callable[[Array, Function], Array]
    up_to: float = math.inf

    def check(self, law: RefNoise, a: Array) -> None:
        """Fails where the formula is not the quantity of the law."""
        a = a[a <= self.up_to]
        exact = QUANTITIES[self.of](law, a)
        np.testing.assert_allclose(self.value(a, law.cdf), exact, rtol=1e-11, atol=1e-15)


NOISE_CELLS = Named(
    "formula of the noise table",
    {
        # distribution
        r"$1/(1+e^{-a})$": Printed("F", lambda a, F: 1 / (1 + np.exp(-a))),
        r"$(1+a)/2$": Printed("F", lambda a, F: (1 + a) / 2),
        r"$(1+a)^2/2$ for $a\le0$": Printed("F", lambda a, F: (1 + a) ** 2 / 2, up_to=0),
        r"$\tfrac12\operatorname{erfc}(-a/\sqrt2)$": Printed(
            "F", lambda a, F: special.erfc(-a / math.sqrt(2)) / 2
        ),
        r"$\tfrac12+\tfrac1\pi\arctan a$": Printed("F", lambda a, F: 1 / 2 + np.arctan(a) / np.pi),
        r"$\tfrac12\bigl(1+\tfrac{a}{1+|a|}\bigr)$": Printed(
            "F", lambda a, F: (1 + a / (1 + np.abs(a))) / 2
        ),
        # density
        r"$F(a)\,F(-a)$": Printed("f", lambda a, F: F(a) * F(-a)),
        r"$1/2$": Printed("f", lambda a, F: np.full_like(a, 1 / 2)),
        r"$1-|a|$": Printed("f", lambda a, F: 1 - np.abs(a)),
        r"$e^{-a^2/2}/\sqrt{2\pi}$": Printed(
            "f", lambda a, F: np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
        ),
        r"$1/\bigl(\pi(1+a^2)\bigr)$": Printed("f", lambda a, F: 1 / (math.pi * (1 + a**2))),
        r"$\tfrac12(1+|a|)^{-2}$": Printed("f", lambda a, F: (1 + np.abs(a)) ** -2.0 / 2),
        # mean
        r"$\tanh(a/2)$": Printed("mean", lambda a, F: np.tanh(a / 2)),
        "hardtanh": Printed("mean", lambda a, F: SLOPES["hardtanh"].function(a)),
        "ApproxSign": Printed("mean", lambda a, F: SLOPES["approx_sign"].function(a)),
        r"$\operatorname{erf}(a/\sqrt2)$": Printed("mean", lambda a, F: special.erf(a / 2**0.5)),
        r"$\tfrac2\pi\arctan a$": Printed("mean", lambda a, F: 2 / math.pi * np.arctan(a)),
        r"$a/(1+|a|)$": Printed("mean", lambda a, F: a / (1 + np.abs(a))),
    },
)

#: What the table leaves out, in the words of the page: F where it prints the lower half only, and
#: what is true beyond a bounded support.
NOISE_TABLE_NOTES = (
    "Each is symmetric; the formulas are at scale 1.",
    r"The last column is the function whose derivative is the slope $2f$: the mean "
    r"$\mu(a)=2F(a)-1$ of the unit. Where it has a name, practice calls the slope by it as a "
    "proxy: the hardtanh proxy is the derivative of hardtanh.",
    "For $a>0$ the triangular $F(a)$ is $1-F(-a)$, and outside a bounded support $F$ is 0 or 1.",
)

# ------------------------------------------------------- noise models, the docstrings of sbnlib

NOISE_DOCSTRINGS = Named(
    "formula in the docstring of a noise",
    {
        r"F(a) = 1/(1 + e^{-a})": Printed("F", lambda a, F: 1 / (1 + np.exp(-a))),
        r"f = F(1 - F)": Printed("f", lambda a, F: F(a) * (1 - F(a))),
        r"\tanh(a/2)": Printed("mean", lambda a, F: np.tanh(a / 2)),
        r"F(a) = (1 + a)/2": Printed("F", lambda a, F: (1 + a) / 2),
        r"f = \tfrac12": Printed("f", lambda a, F: np.full_like(a, 1 / 2)),
        r"f(a) = 1 - |a|": Printed("f", lambda a, F: 1 - np.abs(a)),
        r"F(a) = (1 + a)^2/2": Printed("F", lambda a, F: (1 + a) ** 2 / 2, up_to=0),
        r"2f = 2 - 2|a|": Printed("2f", lambda a, F: 2 - 2 * np.abs(a)),
        r"F(a) = \tfrac12\operatorname{erfc}(-a/\sqrt2)": Printed(
            "F", lambda a, F: special.erfc(-a / math.sqrt(2)) / 2
        ),
        r"\operatorname{erf}(a/\sqrt2)": Printed("mean", lambda a, F: special.erf(a / 2**0.5)),
        r"f(a) = 1/(\pi(1 + a^2))": Printed("f", lambda a, F: 1 / (math.pi * (1 + a**2))),
        r"F(a) = \frac12 + \frac1\pi\arctan a": Printed(
            "F", lambda a, F: 1 / 2 + np.arctan(a) / math.pi
        ),
        r"\frac2\pi\arctan a": Printed("mean", lambda a, F: 2 / math.pi * np.arctan(a)),
        r"f(a) = \frac12(1 + |a|)^{-2}": Printed("f", lambda a, F: (1 + np.abs(a)) ** -2.0 / 2),
        r"F(a) = 1/(2(1 + |a|))": Printed("F", lambda a, F: 1 / (2 * (1 + np.abs(a))), up_to=0),
        r"2f = (1 + |a|)^{-2}": Printed("2f", lambda a, F: (1 + np.abs(a)) ** -2.0),
    },
)


def in_docstring(thing: object) -> list[str]:
    """The TeX of every formula in a docstring, inline and displayed."""
    words = thing.__doc__ or ""
    blocks = re.findall(r"^ *\.\. math::((?: .*\n|\n)+)", words, re.M)
    return re.findall(r":math:`([^`]+)`", words) + [" ".join(b.split()) for b in blocks]
