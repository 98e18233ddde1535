"""What an examination says, finding by finding, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sbnlib.diagnose.examination import FLOWS, MOST_Z, Examination

__all__ = ["Finding", "coding", "findings", "number", "why_no_noise"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        code: its name, the same in every report.
        wrong: whether it is a fault, or something that one should know.
        words: what was found, in a sentence.
    """

    code: str
    wrong: bool
    words: str

    def __str__(self) -> str:
        return f"{'✗' if self.wrong else '·'} {self.words}"


def number(value: float) -> str:
    """Three digits, as in print."""
    if math.isinf(value):
        return "infinite"
    text = f"{float(f'{value:.3g}'):g}"
    return f"−{text[1:]}" if text.startswith("-") else text


def coding(found: Examination) -> str | None:
    """The states as one would name the coding."""
    known: dict[tuple[float, ...], str] = {(-1.0, 1.0): "±1", (0.0, 1.0): "0/1"}
    if not found.states:
        return None
    return known.get(found.states) or ", ".join(f"{x:.3g}" for x in found.states)


def findings(found: Examination) -> tuple[Finding, ...]:
    """Everything that is wrong, then everything that one should know."""
    every = [*_refusal(found), *_forward(found), *_backward(found), *_both(found), *_modes(found)]
    return tuple(sorted(every, key=lambda f: not f.wrong))


def _refusal(found: Examination) -> Iterator[Finding]:
    if found.refused is not None:
        yield Finding(found.refused.code, True, f"{_capital(found.refused.words)}.")
    if found.subject.changes_input:
        yield Finding("changes-input", True, "It changes its argument in place: what else uses the "
                      "pre-activation gets the states.")  # fmt: skip


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _forward(found: Examination) -> Iterator[Finding]:
    if found.stray:
        given = ", ".join(map(number, found.stray))
        at = "0" if not found.threshold else f"its threshold, {number(found.threshold)},"
        yield Finding("third-state", True, f"At {at} it gives {given}, which is no state: "
                      "torch.where(a >= 0, …) gives none such.")  # fmt: skip
    worst, share = found.off
    if worst:
        yield Finding("not-exact", True, f"{100 * share:.2g} % of its values miss the states, by "
                      f"up to {worst:.1g}; are brackets missing, as in x + (m − m.detach())?"
                      )  # fmt: skip
    if found.refused is None and found.sampled is False:
        if len(found.states) == 2 and found.jumps != 1:
            yield Finding("not-monotone", True, f"The state changes {found.jumps} times from left "
                          "to right, not once.")  # fmt: skip
        yield Finding("deterministic", False, "The forward pass draws nothing: the state is a "
                      "function of the pre-activation.")  # fmt: skip
    if found.shared:
        yield Finding("shared-draw", True, f"One draw serves {found.shared}: states that should "
                      "be independent rise and fall together.")  # fmt: skip
    if found.channels:
        yield Finding("channels", False, "Its channels are different functions; what is said here "
                      "is said of the first.")  # fmt: skip
    if len(found.states) > 2:
        yield Finding("levels", False, f"It has {len(found.states)} states, from "
                      f"{number(found.states[0])} to {number(found.states[-1])}.")  # fmt: skip


def _backward(found: Examination) -> Iterator[Finding]:
    if found.refused is not None:
        return
    if found.kind is None:
        yield Finding("no-slope", True, "No gradient passes: the slope is 0 everywhere or there is "
                      "no graph; x + (m − m.detach()) would have that of m.")  # fmt: skip
        return
    if found.answers:
        yield Finding("gradient", True, _answers(found))
    if found.kind == "of a and x":
        yield Finding("state-slope", False, f"The slope depends on the state too{_member(found)}.")
    if found.kind == "random":
        yield Finding("random-slope", False, "The slope is random beyond the state; what is said "
                      "of it is said of its mean.")  # fmt: skip
    if found.slope is not None and found.kind == "of a" and found.slope.has_pole():
        at = number(found.slope.centre)
        yield Finding("pole", False, f"The slope grows without bound towards {at}.")
    yield from _integral(found)


def _answers(found: Examination) -> str:
    small, large = found.answers[0], found.answers[FLOWS.index(30.0)]
    if large < small:
        passed = number(30 * large / small)
        return ("The gradient that comes in is clipped: where 0.001 is passed on as it is, of 30 "
                f"{passed} are; clip when the backward pass is over.")  # fmt: skip
    return "What it passes on is not in proportion to the gradient that comes in."


def _member(found: Examination) -> str:
    known = {0.0: "as ZGR's and ReinMax's does", -1.0: "as DARN's does", 0.5: "as one half's does"}
    if found.line is None:
        return ""
    words = known.get(found.line, "as a member of the line's does")
    return f", {words} (s = {number(found.line)})"


def _integral(found: Examination) -> Iterator[Finding]:
    integral, c = found.integral, found.mismatch
    assert integral is not None
    if math.isinf(integral):
        yield Finding("infinite", True, "The integral of the slope is infinite: it is a multiple "
                      "of straight-through for no noise.")  # fmt: skip
    if found.one_sign is False:
        yield Finding("negative", True, "The slope has both signs: it is the density of no noise.")
    if found.even is False:
        yield Finding("uneven", False, "The slope is not even: the noise would not be symmetric.")
    if c is None:
        return
    right = number(found.jump or math.nan)
    if c < 0:
        yield Finding("wrong-sign", True, "The slope has the wrong sign: the state "
                      f"{'rises' if (found.jump or 0) > 0 else 'falls'} with the pre-activation, "
                      "the backward pass says the opposite.")  # fmt: skip
    if 0.01 < abs(abs(c) - 1) < math.inf:
        yield Finding("factor", True, f"The gradient is {number(abs(c))} times straight-through's: "
                      f"the slope's integral is {number(integral)}, right is {right}; after "
                      f"three layers it is {number(abs(c) ** 3)} times.")  # fmt: skip
    if _is_shifted(found):
        yield Finding("shifted", True, "The slope is centred at "
                      f"{number(found.slope.centre if found.slope else 0)}, the state changes at "
                      f"{number(found.threshold)}.")  # fmt: skip


def _is_shifted(found: Examination) -> bool:
    """Whether the centre of an even slope is not where the state changes."""
    if found.slope is None or not (found.even and found.one_sign) or found.shared:
        return False
    apart = abs(found.slope.centre - found.threshold)
    if found.sampled:
        return (found.z or 0.0) > MOST_Z and apart > 0.1 * (found.quartile or math.inf)
    return found.jumps == 1 and apart > 1e-3 * max(1.0, abs(found.threshold))


def _both(found: Examination) -> Iterator[Finding]:
    if found.z is None or found.z <= MOST_Z:
        return
    forward = "another law" if found.forward_law is None else str(found.forward_law)
    slope = "a law of its own" if found.slope_law is None else str(found.slope_law)
    yield Finding("law", True, f"The forward pass draws from {forward}, the slope is that of "
                  f"{slope}: at one of the points the two are {number(found.z)} standard errors "
                  f"apart ({found.draws} draws a point).")  # fmt: skip


def _modes(found: Examination) -> Iterator[Finding]:
    if found.eval_sampled:
        where = "in evaluation mode too" if found.subject.has_mode else "and knows no modes"
        yield Finding("samples-in-eval", False, f"It draws {where}.")
    if found.eval_slope is not None and found.eval_slope > 1e-3:
        yield Finding("eval", True, "In evaluation mode the slope is another one.")


def why_no_noise(found: Examination) -> str:
    """Why forward and backward together imply no law; "" if they do."""
    if found.refused is not None:
        return f"{_capital(found.refused.words)}."
    if found.noise is not None:
        return ""
    if found.kind is None:
        return "There is no slope."
    if found.integral is not None and math.isinf(found.integral):
        return "The slope has an infinite integral."
    if not found.one_sign:
        return "The slope has both signs."
    if not found.integral:
        return "The integral of the slope is 0."
    if not found.sampled:
        return "The forward pass draws nothing."
    if found.shared:
        return f"One draw serves {found.shared}."
    if found.reach != (0.0, 1.0):
        return "However far out, both states keep a probability, which no noise leaves them."
    if found.z is not None and found.z > MOST_Z:
        return "The forward pass draws from another law than the slope's."
    return "Forward and backward agree in a law that is none of the six."
