"""Symbols are found in formulas, and only there."""

from __future__ import annotations

from symbols import outside, symbols

PAGE = r"""
The unit $x=\operatorname{sign}(a-Z)$ and $\mathcal{L}(p)$; a word.

```{math}
:label: eq-1
\hat g=\varepsilon\,\mathrm{bias}
```

:::{prf:proof}
With $q$.
:::

```{exercise} A title
:label: ex-1
Take $r$.
```

:::{solution-start} ex-1
:class: dropdown
:::
It is $s$.
:::{solution-end}
:::
"""


def test_symbols_are_letters_greek_ones_by_name_and_accents_with_their_letter() -> None:
    assert symbols(PAGE) == set("xaZpqrs") | {"mathcal L", "hat g", "varepsilon"}


def test_proofs_exercises_and_solutions_are_left_out() -> None:
    assert symbols(outside(PAGE)) == set("xaZp") | {"mathcal L", "hat g", "varepsilon"}
