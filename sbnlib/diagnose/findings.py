"""What an examination says, finding by finding, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sbnlib.diagnose.examination import FLOWS, MOST_Z, Examination

__all__ = ["ADVICE", "Finding", "coding", "findings", "is_off", "number", "why_no_noise"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        code: its name, the same in every report.
        wrong: whether it is a fault, or something that one should know.
        words: what was found, in a sentence.
        advice: what to do about it, in another; "" where there is nothing to do.
    """

    code: str
    wrong: bool
    words: str
    advice: str = ""

    def __str__(self) -> str:
        mark = "✗" if self.wrong else "·"
        return f"{mark} {self.code}: {self.words} {self.advice}".rstrip()


#: What to do about a refusal that says nothing of it.
ADVICE = {
    "changes-input": "Work on a copy.",
    "not-elementwise": "Take a scale, a norm or a choice among entries out of the unit.",
    "not-finite": "Look at what is divided by 0, or at a logarithm of 0.",
    "no-tensor": "Return the states as a tensor.",
    "shape": "Return as many states as there are pre-activations.",
}


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
    for digits in range(3, 10):  # as many as tell them apart
        texts = [f"{x:.{digits}g}" for x in found.states]
        if len(set(texts)) == len(texts):
            break
    return known.get(found.states) or ", ".join(texts)


def findings(found: Examination) -> tuple[Finding, ...]:
    """Everything that is wrong, then everything that one should know."""
    every = [*_refusal(found), *_forward(found), *_backward(found), *_both(found), *_modes(found)]
    return tuple(sorted(every, key=lambda f: not f.wrong))


def _refusal(found: Examination) -> Iterator[Finding]:
    if found.refused is not None:
        words = f"{_capital(found.refused.words)}."
        advice = found.refused.advice or ADVICE.get(found.refused.code, "")
        yield Finding(found.refused.code, True, words, advice)
    if found.subject.changes_input:
        yield Finding(
            "changes-input", True,
            "It changes its argument in place: what else uses the pre-activation gets the states.",
            "Work on a copy.",
        )  # fmt: skip
    if found.subject.prints:
        yield Finding("prints", True, f"It prints in its {found.subject.prints} pass: a GPU has to "
                      "wait there, at each step.", "Take the print out.")  # fmt: skip
    if found.overflow is not None:
        dtype, at, what = found.overflow
        yield Finding("overflow", True, f"In {dtype} its {what} is NaN or infinite at "
                      f"{number(at)}: something overflows on the way.",
                      "Write it with functions that stay finite, such as torch.sigmoid and "
                      "torch.tanh.")  # fmt: skip


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _forward(found: Examination) -> Iterator[Finding]:
    if found.stray:
        given = ", ".join(map(number, found.stray))
        at = "0" if not found.threshold else f"its threshold, {number(found.threshold)},"
        yield Finding("third-state", True, f"At {at} it gives {given}, which is no state.",
                      f"Use torch.where(a >= {number(found.threshold)}, …) in the place of "
                      "torch.sign.")  # fmt: skip
    worst, share = found.off
    if worst:
        yield Finding("not-exact", True, f"{100 * share:.2g} % of its values miss the states, by "
                      f"up to {worst:.1g}.",
                      "Are brackets missing, as in x + (m − m.detach())?")  # fmt: skip
    if found.refused is None and found.sampled is False:
        if len(found.states) == 2 and found.jumps != 1:
            yield Finding("not-monotone", True, f"The state changes {found.jumps} times from left "
                          "to right, not once.",
                          "Make two units of it, or one threshold.")  # fmt: skip
        yield Finding("deterministic", False, "The forward pass draws nothing: the state is a "
                      "function of the pre-activation, so that no noise belongs to it."
                      )  # fmt: skip
    if found.shared:
        yield Finding("shared-draw", True, f"One draw serves {found.shared}: states that should "
                      "be independent rise and fall together.",
                      "Draw for each entry, as torch.rand_like(a) does.")  # fmt: skip
    if found.channels:
        yield Finding("channels", False, "Its channels are different functions; what is said here "
                      "is said of the first.")  # fmt: skip
    if found.has_levels:
        yield Finding("levels", False, f"It has {len(found.states)} states, from "
                      f"{number(found.states[0])} to {number(found.states[-1])}; law and factor "
                      "are those of all its steps together.")  # fmt: skip
    if found.refused is None and found.reach != (0.0, 1.0) and not found.has_levels:
        low, high = found.reach
        yield Finding("kept", False, "However far out, both states keep a probability, which no "
                      f"noise leaves them: the mean state stops {number(100 * low)} % of the "
                      "distance short of the state at the left, and "
                      f"{number(100 * (1 - high))} % short of that at the right.")  # fmt: skip


def _backward(found: Examination) -> Iterator[Finding]:
    if found.refused is not None:
        return
    if found.kind is None:
        yield Finding("no-slope", True, "No gradient passes: there is no graph, or the slope is 0 "
                      "wherever it was asked.",
                      "x + (m − m.detach()) would have that of m, such as the mean state "
                      "m = torch.tanh(a / 2).")  # fmt: skip
        return
    if found.answers:
        yield _answers(found)
    if found.kind == "of a and x":
        yield Finding("state-slope", False, f"The slope depends on the state too{_member(found)}.")
    if found.kind == "random":
        yield Finding("random-slope", False, "The slope is random beyond the state; what is said "
                      "of it is said of its mean.")  # fmt: skip
    if found.slope is not None and found.kind == "of a" and found.slope.has_pole():
        at = number(found.slope.centre)
        yield Finding("pole", False, f"The slope grows without bound towards {at}.")
    yield from _integral(found)


def _answers(found: Examination) -> Finding:
    small, large = found.answers[0], found.answers[FLOWS.index(30.0)]
    if large < small:
        words = (f"The gradient that comes in is clipped: of 30 at most {number(30 * large)} "
                 f"passes, where in proportion to 0.001 it would be {number(30 * small)}."
                 )  # fmt: skip
        return Finding("gradient", True, words, "Clip when the backward pass is over.")
    words = "What it passes on is not in proportion to the gradient that comes in."
    return Finding("gradient", True, words, "Multiply the gradient, and do nothing else to it.")


def _member(found: Examination) -> str:
    known = {0.0: "as ZGR's and ReinMax's does", -1.0: "as DARN's does", 0.5: "as ½'s does"}
    if found.line is None:
        return ""
    words = known.get(found.line, "as a member of the line's does")
    return f", {words} (s = {'½' if found.line == 0.5 else number(found.line)})"


def is_off(found: Examination) -> bool:
    """Whether the factor is not 1: by 1 %, and by five standard errors of a random slope."""
    c = found.mismatch
    return c is not None and max(0.01, 5 * found.mismatch_se) < abs(abs(c) - 1) < math.inf


def _integral(found: Examination) -> Iterator[Finding]:
    integral, c = found.integral, found.mismatch
    assert integral is not None
    if math.isinf(integral):
        words = ("The slope's integral is infinite, so that it is no multiple of straight-through, "
                 "whatever the noise." if found.one_sign else
                 "The slope's integral does not exist: it has both signs and falls off too slowly."
                 )  # fmt: skip
        yield Finding("infinite", True, words,
                      "Let it fall off as |a|⁻² or faster, or cut it off.")  # fmt: skip
    if found.one_sign is False:
        yield Finding("negative", True, "The slope has both signs, as no noise's density has.",
                      "Take a slope of one sign.")  # fmt: skip
    if found.even is False and not found.has_levels:  # the noise of each step may be even
        yield Finding("uneven", False, "The slope is not even: the noise would not be symmetric.")
    if c is None:
        return
    if c < 0:
        yield Finding("wrong-sign", True, "The slope has the wrong sign: the state "
                      f"{'rises' if (found.jump or 0) > 0 else 'falls'} with the pre-activation, "
                      "the backward pass says the opposite.",
                      "Change the sign of the slope.")  # fmt: skip
    if is_off(found):
        size = number(abs(c))
        words = (
            f"The slope's integral is {number(integral)} where {number(found.way)} is right"
            if c > 0
            else f"The slope's integral is {size} times as large as the right one"
        )
        at = " of 0.001" if found.answers else ""
        advice = "" if found.answers else f"Divide the slope by {size}."
        yield Finding("factor", True, f"{words}, so that a gradient{at} is multiplied by {size} "
                      f"({number(abs(c) ** 3)} in three layers).", advice)  # fmt: skip
    if _is_shifted(found):
        centre = number(found.slope.centre if found.slope else 0)
        yield Finding("shifted", True, f"The slope is centred at {centre}, the state changes at "
                      f"{number(found.threshold)}.", "Shift one of the two.")  # fmt: skip


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
                  f"apart ({found.draws} draws a point). The factor compares with "
                  "straight-through for the slope's noise.",
                  "Draw from the noise of the slope, or take the slope from the noise."
                  )  # fmt: skip


def _modes(found: Examination) -> Iterator[Finding]:
    if found.eval_sampled:
        where = "It draws in evaluation mode too."
        words = where if found.subject.has_mode else "It draws, and has no evaluation mode."
        yield Finding("samples-in-eval", False, words)
    if found.eval_slope is not None and found.eval_slope > 1e-3:
        yield Finding("eval", True, "In evaluation mode the slope is another one.",
                      "Let the forward pass alone ask for the mode.")  # fmt: skip


def why_no_noise(found: Examination) -> str:
    """Why forward and backward together imply no law; "" if they do."""
    if found.refused is not None:
        return f"{_capital(found.refused.words)}."
    if found.noise is not None:
        return ""
    if found.kind is None:
        return "There is no slope."
    if not found.one_sign:
        return "The slope has both signs."
    if found.integral is not None and math.isinf(found.integral):
        return "The slope has an infinite integral."
    if found.has_levels:
        return f"It has {len(found.states)} states: the slope's law is that of all steps together."
    if not found.integral:
        return "The integral of the slope is 0."
    if (found.mismatch or 1.0) < 0:
        return "The slope has the wrong sign."
    if not found.way:
        return "The states at both ends are one."
    if not found.sampled:
        return "The forward pass draws nothing."
    if found.shared:
        return f"One draw serves {found.shared}."
    if found.reach != (0.0, 1.0):
        return "However far out, both states keep a probability, which no noise leaves them."
    if found.z is not None and found.z > MOST_Z:
        return "The forward pass draws from another law than the slope's."
    return "Forward and backward agree in a law that is none of the six."
