"""Whatever sbnlib lists is on the pages, and what the pages print of it is true.

Noise models, proxies and optimizers are discovered from the library's own lists. A new one fails
here by name until the notation page and the library reference have it.
"""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch
from bridge import make_noise
from discovered import NOISES, OPTIM_FUNCTIONS, OPTIMIZERS, PROXIES
from formulas import (
    NOISE_CELLS,
    NOISE_DOCSTRINGS,
    NOISE_TABLE_NOTES,
    PROXY_FORMULAS,
    SUPPORTS,
    in_docstring,
    list_table,
)
from places import BOOK
from reference import Named, RefNoise
from updates import MAPS

from sbnlib import optim

NOTATION = (BOOK / "notation.md").read_text("utf-8")
REFERENCE = (BOOK / "back" / "api.md").read_text("utf-8")
COLUMNS = ("F", "f", "mean")
ROWS = Named(
    "row of the noise table",
    {row[0].strip("`"): row[1:] for row in list_table(NOTATION, "tab-noise")},
)
noises = pytest.mark.parametrize("name", NOISES)


def inside(name: str) -> np.ndarray:
    """Points of the support, the same on both sides of 0."""
    return min(RefNoise(name).half_width, 6.0) * np.linspace(-0.995, 0.995, 40)


# ------------------------------------------------------------------------- the notation page


def test_the_noise_table_has_the_noises_of_the_library_and_no_others() -> None:
    assert list(ROWS)[0] == "Class"
    assert set(ROWS) - {"Class"} == set(NOISES)


@noises
def test_the_support_on_the_notation_page_is_that_of_the_law(name: str) -> None:
    end = SUPPORTS[ROWS[name][0]]
    assert end == RefNoise(name).half_width
    assert make_noise(name).support == (-end, end)


@noises
def test_the_formulas_on_the_notation_page_are_the_law(name: str) -> None:
    """F, f and the mean as printed, against the reference and against the library."""
    law, a = make_noise(name), inside(name)
    at = torch.tensor(a)
    cdf = law.cdf(at).numpy()
    library = {"F": cdf, "f": law.pdf(at).numpy(), "mean": 2 * cdf - 1}
    for of, cell in zip(COLUMNS, ROWS[name][1:], strict=True):
        printed = NOISE_CELLS[cell]
        assert printed.of == of, f"{cell} stands in the column of {of}"
        printed.check(RefNoise(name), a)
        kept = a <= printed.up_to
        value = printed.value(a, RefNoise(name).cdf)[kept]
        np.testing.assert_allclose(library[of][kept], value, rtol=1e-11, atol=1e-15)


def test_what_the_table_leaves_out_is_said_below_it() -> None:
    words = " ".join(NOTATION.split())
    for note in NOISE_TABLE_NOTES:
        assert note in words
    partial = {n for n in NOISES if NOISE_CELLS[ROWS[n][1]].up_to == 0}
    assert partial == {"Triangular"}  # the one that the last note is about


# -------------------------------------------------------------------------- docstrings


@noises
def test_the_formulas_of_a_noises_docstring_are_the_law(name: str) -> None:
    found = [NOISE_DOCSTRINGS[tex] for tex in in_docstring(NOISES[name])]
    assert {p.of for p in found} & {"F", "f"}, f"{name}: no formula of F or f in its docstring"
    for printed in found:
        printed.check(RefNoise(name), inside(name))


@pytest.mark.parametrize("name", [*OPTIMIZERS, *MAPS])
def test_an_optimizer_says_its_update_and_where_it_is_from(name: str) -> None:
    words = inspect.cleandoc(getattr(optim, name).__doc__ or "")
    assert ".. math::" in words, "no update in the docstring"
    assert re.search(r"^Source: \S+.*\d{4}", words, re.M), "no source in the docstring"


# --------------------------------------------------------------- the library reference


def test_every_noise_and_every_optimizer_is_in_the_library_reference() -> None:
    wanted = {f"autoclass:: sbnlib.{name}" for name in NOISES}
    wanted |= {f"autoclass:: sbnlib.optim.{name}" for name in OPTIMIZERS}
    for name in OPTIM_FUNCTIONS:
        kind = "autoclass" if inspect.isclass(getattr(optim, name)) else "autofunction"
        wanted.add(f"{kind}:: sbnlib.optim.{name}")
    on_page = set(re.findall(r"^\.\. (auto\w+:: [\w.]+)", REFERENCE, re.M))
    assert not wanted - on_page


def test_every_proxy_has_a_row_in_the_library_reference() -> None:
    assert "```{sbn-proxies}" in REFERENCE  # the table of the registry; its formulas are pinned
    assert all(p.formula in PROXY_FORMULAS for p in PROXIES.values())
