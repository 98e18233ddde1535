"""The symbols that a page uses in its formulas, and those that the notation page gives meanings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from formulas import list_table

GREEK = re.findall(
    r"\w+",
    """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi pi rho
    varrho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi
    Omega ell
    """,
)
MATH = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\$])\$([^$]+?)\$|```\{math\}\n(?::label:[^\n]*\n)?(.*?)```", re.DOTALL
)
#: Words inside formulas; a letter under an accent or in a script of its own; a command; letters.
TOKEN = re.compile(
    r"\\(?:mathrm|operatorname\*?|text|begin|end)\s*\{[\w*. ]*\}"
    r"|\\(?P<accent>mathcal|mathbb|mathbf|hat|bar|tilde)(?![A-Za-z])\s*\{?\s*"
    r"(?P<under>[A-Za-z]|\\(?:" + "|".join(GREEK) + r")(?![A-Za-z]))"
    r"|\\(?P<command>[A-Za-z]+)|(?P<letters>[A-Za-z]+)"
)
#: What a first reader may leave folded, or has of its own: proofs, exercises, solutions.
APART = re.compile(r"\s*([:`]{3,})\{(prf:proof|exercise|solution(?:-start)?|dropdown)[\s}]")


def outside(text: str) -> str:
    """The words of a page without its proofs, exercises and solutions."""
    kept, until = [], None
    for line in text.split("\n"):
        opens = APART.match(line)
        if until is None and opens:
            until = "{solution-end}" if opens[2] == "solution-start" else opens[1]
        elif until is None:
            kept.append(line)
        elif line.strip() == until or (until == "{solution-end}" and until in line):
            until = None
    return "\n".join(kept)


def symbols(text: str) -> set[str]:
    """The symbols in the formulas of a text: letters, Greek ones by name, ``hat g``."""
    return set(_symbols(text))


def _symbols(text: str) -> Iterator[str]:
    for formula in MATH.finditer(text):
        for token in TOKEN.finditer("".join(filter(None, formula.groups()))):
            if token["accent"]:
                yield f"{token['accent']} {token['under'].lstrip(chr(92))}"
            elif token["command"] in GREEK:
                yield token["command"]
            elif token["letters"]:
                yield from token["letters"]


def free(text: str) -> set[str]:
    """The letters that the page leaves to each paragraph."""
    (line,) = re.findall(r"^\*\*Free letters\.\*\*[^\n]*", text, re.M)
    return symbols(line)


def everywhere(text: str) -> set[str]:
    """The symbols of the whole book: those of the table, in any of its cells, and the sizes."""
    rows = list_table(text, "tab-symbols")[1:]
    (sizes,) = re.findall(r"^\*\*Sizes\.\*\*[^\n]*", text, re.M)
    return symbols(" ".join([sizes, *(cell for row in rows for cell in row)]))


def local(text: str) -> list[tuple[set[str], set[str]]]:
    """Of each row of the table of single chapters, the chapters' numbers and the symbols."""
    rows = list_table(text, "tab-local")[1:]
    return [({f"{int(k):02d}" for k in row[0].split(",")}, symbols(row[1])) for row in rows]
