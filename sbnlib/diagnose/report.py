"""The reports: of a unit, and of a model with its units."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from sbnlib.diagnose.drawing import chart as drawn
from sbnlib.diagnose.examination import Examination
from sbnlib.diagnose.findings import Finding, number
from sbnlib.noise import Noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ModelReport", "UnitReport", "chart"]


@dataclass(frozen=True)
class UnitReport:
    r"""What was found of a binary unit. None stands where a question could not be asked.

    With h the slope, the derivative that the unit claims to have:

    Attributes:
        name: of the unit.
        where: the line where it was seen, in a model; else "".
        verdict: the whole in a sentence.
        findings: what is wrong, then what one should know, each a :class:`sbnlib.diagnose.Finding`.
        noise: the law that forward and backward together imply: the states are drawn from it and
            the slope is its density, up to a factor. None if there is none.
        why: why there is none, else "".
        forward: ``"sampled"`` or ``"deterministic"``.
        forward_noise: the law from which the states are drawn, if it is one of the six.
        slope_noise: the law of which h is the density up to a factor, if it is one of the six.
        scale: of the slope's law.
        threshold: where the state changes; the median, where it is drawn, to about 3 % of the
            distance between the quartiles. None where one draw serves many.
        integral: :math:`\int h`; inf where it still grows at 1e7, as that of a slope which falls
            off slower than :math:`|a|^{-1.05}`, and where it does not exist.
        mismatch: :math:`c = \int h` over the distance of the outer states, the factor against
            straight-through for the slope's own noise; 1 is right, below 0 is the wrong sign. Of
            more than two states it is that of all steps together, and so is ``slope_noise``.
        even: whether h is even about its centre.
        nonnegative: whether h has one sign.
        sign_of_zero: the values at 0 and -0.
        coding: the states: ``"±1"``, ``"0/1"``, or their values.
        exact_pm1: whether all values are the states to the last bit.
        slope: of what h is a function: ``"of a"``, ``"of a and x"``, or ``"random"`` beyond these.
        line: the member s of the line (chapter 10), of a slope that depends on the state.
        depends_on_gradient: whether what is passed on is not in proportion to what comes in.
        samples_in_eval: whether it draws in evaluation mode.
        clipped: the share of the data with a slope below a thousandth of its largest.
        dead: the share of the units that are clipped on all rows of the data; None for weights.
        gain: :math:`\mathbb{E}h^2` for states of distance 2, over the data, or over a standard
            normal :math:`a`. The unit multiplies the mean square of a gradient by it, for states 0
            and 1 by a quarter of it; the weights below multiply once more, by the width of the
            layer times the variance of a weight. The right logistic unit has 0.18.
        compounding: the factor of c after 1, 3 and 10 layers; in a model the product of c along the
            longest chain of units from this one to the loss.
        cosine: of the unit's mean gradient in all weights and biases to the exact one, in the three
            base networks of sbn-map-1, by the name of the loss; None for weights. The noise of the
            networks is that of the forward pass, of a deterministic unit that of the slope, or else
            the problems' own; it is stretched to the quartiles of the latter. Straight-through for
            logistic noise itself has 0.93 (digits), 0.95 (xor) and 0.98 (smooth): its bias,
            chapters 6 and 7. A wrong unit may have a larger one than a right unit.
        passed: in a model, what the unit multiplies the mean square of the loss's gradient by.
        examination: what the above was read from, with the points, draws and slopes; not in JSON.
    """

    name: str
    where: str = ""
    verdict: str = ""
    findings: tuple[Finding, ...] = ()
    noise: Noise | None = None
    why: str = ""
    forward: str | None = None
    forward_noise: Noise | None = None
    slope_noise: Noise | None = None
    scale: float | None = None
    threshold: float | None = None
    integral: float | None = None
    mismatch: float | None = None
    even: bool | None = None
    nonnegative: bool | None = None
    sign_of_zero: tuple[float, ...] | None = None
    coding: str | None = None
    exact_pm1: bool | None = None
    slope: str | None = None
    line: float | None = None
    depends_on_gradient: bool | None = None
    samples_in_eval: bool | None = None
    clipped: float | None = None
    dead: float | None = None
    gain: float | None = None
    compounding: dict[int, float] | float | None = None
    cosine: dict[str, float] | None = None
    passed: float | None = None
    examination: Examination | None = field(default=None, repr=False, compare=False)

    @property
    def codes(self) -> frozenset[str]:
        """The codes of all findings."""
        return frozenset(f.code for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The report as numbers, texts and lists; inf and NaN as texts."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "examination"}
        own["findings"] = [vars(f) for f in self.findings]
        return {key: _plain(value) for key, value in own.items()}

    def json(self) -> str:
        """The report as JSON, the same text whenever it is made again."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"

    def chart(self) -> Figure:
        """The slope, and the forward pass beside what the slope collects; ``sbnlib[figures]``."""
        return chart([self])

    def __str__(self) -> str:
        lines = textwrap.wrap(f"{self._head}: {self.verdict}", 76, subsequent_indent="  ",
                              break_on_hyphens=False)  # fmt: skip
        for finding in self.findings:
            lines += _wrapped(finding, "  ")
        return "\n".join([*lines, *_table(self._numbers())])

    @property
    def _head(self) -> str:
        return f"{self.name} ({self.where})" if self.where else self.name

    def as_said_of(self, first: str) -> str:
        """The report of a unit whose verdict and findings are those of another."""
        return "\n".join([f"{self._head}: as {first}", *_table(self._numbers())])

    def _numbers(self) -> list[tuple[str, str]]:
        cosine = self.cosine and ", ".join(f"{k} {number(v)}" for k, v in self.cosine.items())
        compounding = self.compounding
        if isinstance(compounding, dict):
            words = ", ".join(f"{number(v)} after {k}" for k, v in compounding.items())
        else:
            words = "" if compounding is None else f"{number(compounding)} to the loss"
        coding = self.coding and self.coding.replace("-", "−")
        states = coding and f"{coding}, {self.forward}"
        found = self.examination
        laws = () if found is None else ((found.slope_law, "of the slope"),
                                         (found.forward_law, "of the forward pass"))  # fmt: skip
        implied = "; ".join(f"{law} {what}" for law, what in laws if law is not None)
        clipped = None
        if self.clipped is not None:
            what = "weights" if self.dead is None else "pre-activations"
            clipped = f"{100 * self.clipped:.3g} % of the {what}"
        if clipped and self.dead is not None:
            clipped += f", {100 * self.dead:.3g} % of the units on all rows"
        rows = [
            ("states", states),
            ("noise", str(laws[0][0]) if self.noise and laws else implied or None),
            ("integral", _told(self.integral)), ("factor", _told(self.mismatch)),
            ("compounding", words), ("gain", _told(self.gain)), ("passed", _told(self.passed)),
            ("clipped", clipped), ("cosine", cosine),
        ]  # fmt: skip
        return [(name, text) for name, text in rows if text]


def _wrapped(finding: Finding, indent: str = "") -> list[str]:
    return textwrap.wrap(str(finding), 76, initial_indent=indent,
                         subsequent_indent=f"{indent}  ", break_on_hyphens=False)  # fmt: skip


def _told(value: float | None) -> str | None:
    return None if value is None else number(value)


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return [line for name, text in rows
            for line in textwrap.wrap(text, 76, initial_indent=f"    {name:13}",
                                      subsequent_indent=17 * " ")]  # fmt: skip


def _plain(value: Any) -> Any:
    """What JSON holds."""
    if isinstance(value, Noise):
        return value.law
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value


def chart(reports: Sequence[UnitReport]) -> Figure:
    """The charts of several units, a row each. Needs ``sbnlib[figures]``.

    Left, the slope. Right, the share of the upper state: as dots where it is drawn, with five
    standard errors, as a line in the ink of the page where it is not; and in colour the integral of
    the slope from the left over the distance of the states, which should be the same.

    Args:
        reports: as :func:`sbnlib.diagnose_unit` gives them.
    """
    return drawn([(report.name, report.examination) for report in reports])


@dataclass(frozen=True)
class ModelReport:
    """What was found of a model.

    Attributes:
        units: a :class:`UnitReport` for each unit, in the order of the forward pass.
        findings: of the model itself.
        limits: what the doctor could not have seen.
    """

    units: tuple[UnitReport, ...]
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]

    @property
    def codes(self) -> frozenset[str]:
        """The codes of all findings, those of the model itself and those of its units."""
        return frozenset(f.code for f in self.findings).union(*(u.codes for u in self.units))

    def json(self) -> str:
        """The report as JSON, the same text whenever it is made again."""
        own = {
            "units": [unit.as_dict() for unit in self.units],
            "findings": [vars(f) for f in self.findings],
            "limits": list(self.limits),
        }
        return json.dumps(own, indent=1, ensure_ascii=False) + "\n"

    def chart(self) -> Figure:
        """The chart of each unit, one below the other; ``sbnlib[figures]``."""
        return chart(self.units)

    def __str__(self) -> str:
        count = len(self.units)
        head = f"{count or 'No'} binary unit{'s'[: count != 1]} found."
        limits = textwrap.wrap("Not seen: " + " ".join(self.limits), 76)
        own = ["\n".join(_wrapped(finding)) for finding in self.findings]
        parts = [head, *own, *self._each(), "\n".join(limits)]
        return "\n\n".join(parts)

    def _each(self) -> list[str]:
        """The units in words; of one of which all was said, the numbers alone."""
        said: dict[tuple[str, tuple[Finding, ...]], str] = {}
        texts = []
        for unit in self.units:
            key = unit.verdict, unit.findings
            first = said.setdefault(key, unit.name.partition(" ")[0])
            texts.append(str(unit) if unit.name.startswith(first) else unit.as_said_of(first))
        return texts
