"""Answers to exercises: what is right, how near is near enough, which mistakes have a name.

An exercise asks for a number, a choice, a formula or a function. Each kind is a piece of data that
stands beside its exercise. Called with a reader's answer, it prints one sentence and returns
whether the answer is right. It never raises, whatever it is given.

>>> from sbnlib import exercises
>>> check = exercises.Number(8, wrong=[(2, "that is one layer: there are three")])
>>> check(2)
that is one layer: there are three
False
>>> check("2^3")
right
True

:meth:`Answer.data` is the same as plain JSON, for a page that judges without Python.
"""

from __future__ import annotations

import ast
import copy
import math
import operator
import re
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Answer", "Choice", "Formula", "Function", "Number"]

Probe = Callable[..., Any]

FEW = 6  # numbers are said in a sentence

NUMBER = re.compile(r"(?<![\w.])(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
SIGNS = re.compile(r"[\w\s.+\-*/^()]*")  # of a formula
OPERATIONS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: lambda base, power: power if math.isnan(power) else base**power,  # Python: 1^NaN = 1
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "cos": math.cos,
    "exp": math.exp,
    "log": math.log,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
}


def __dir__() -> list[str]:  # what completion offers
    return __all__


class _Refused(Exception):
    """An answer that cannot be judged; its text says what is missing."""


@dataclass(frozen=True)
class Answer:
    """What the four kinds have in common; called with an answer, it prints and returns a bool.

    Args:
        value: the right answer.
        tolerance: the largest difference, of every single number, that still is right.
        wrong: pairs of a wrong answer and the sentence that is said to it, in the order in which
            they are tried.
        right: what is said to the right one.

    Raises:
        ValueError: the tolerance is negative, a sentence is blank, or a wrong answer is right.
    """

    kind: ClassVar[str]
    value: Any
    _: KW_ONLY
    tolerance: float = 0.0
    wrong: Sequence[tuple[Any, str]] = ()
    right: str = "right"

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be 0 or more, got {self.tolerance!r}")
        for answer, says in self.wrong:
            if not says.strip():
                raise ValueError(f"the wrong answer {answer!r} needs a sentence, got {says!r}")
        try:
            self._check()
        except _Refused as refused:
            raise ValueError(str(refused)) from None

    def __call__(self, answer: object) -> bool:
        try:
            says = self._judge(answer)
        except _Refused as refused:
            says = str(refused)
        print(self.right if says is None else says)
        return says is None

    def data(self) -> dict[str, Any]:
        """Everything that JSON can hold: of functions it holds the sentences only."""
        wrong = [{"value": answer, "says": says} for answer, says in self.wrong]
        return {
            "kind": self.kind,
            "value": self.value,
            "tolerance": self.tolerance,
            "wrong": wrong,
            "right": self.right,
        }

    def _check(self) -> None:
        """No wrong answer passes for the right one."""
        for answer, _ in self.wrong:
            if self._judge(answer) is None:
                raise ValueError(f"the wrong answer {answer!r} passes for {self.value!r}")

    def _judge(self, answer: object) -> str | None:
        """What is said to an answer that is not right; raises `_Refused` where it cannot be one."""
        raise NotImplementedError


# ---------------------------------------------------------------------------- number and formula


@dataclass(frozen=True)
class Number(Answer):
    """A number: of Python, NumPy or torch, or a text such as ``"1/8"``. Takes what :class:`Answer`
    takes: ``value``, ``tolerance``, ``wrong``, ``right``.
    """

    kind: ClassVar[str] = "number"

    def _judge(self, answer: object) -> str | None:
        got = _number(answer)
        if self._near(got, self.value):
            return None
        named = (says for wrong, says in self.wrong if self._near(got, wrong))
        return next(named, f"{got:g} is not it")

    def _near(self, a: float, b: float) -> bool:
        return a == b or abs(a - b) <= self.tolerance


@dataclass(frozen=True)
class Formula(Answer):
    """A formula as text, such as ``"2*f*(1 - mu^2)"``, compared with the right one at points.

    It may hold numbers, the names of ``at``, ``pi``, ``+ - * / ^``, brackets, and ``abs``, ``cos``,
    ``exp``, ``log``, ``sin``, ``sqrt`` and ``tanh`` of one number.

    Args:
        value, tolerance, wrong, right: as :class:`Answer`; the right and the wrong ones are texts.
        at: for each name its values, one a point.
    """

    kind: ClassVar[str] = "formula"
    _: KW_ONLY
    tolerance: float = 1e-9
    at: Mapping[str, Sequence[float]]

    def data(self) -> dict[str, Any]:
        return super().data() | {"at": {name: list(values) for name, values in self.at.items()}}

    def _judge(self, answer: object) -> str | None:
        if not isinstance(answer, str):
            raise _Refused(f"give a formula in {', '.join(self.at)} as text; got {_short(answer)}")
        got = self._values(answer)
        if self._near(got, self._values(self.value)):
            return None
        named = (says for wrong, says in self.wrong if self._near(got, self._values(wrong)))
        return next(named, f"{_short(answer)} is not it")

    def _values(self, text: str) -> list[float]:
        points = zip(*self.at.values(), strict=True)
        return [_evaluate(text, dict(zip(self.at, point, strict=True))) for point in points]

    def _near(self, a: list[float], b: list[float]) -> bool:
        return all(abs(x - y) <= self.tolerance for x, y in zip(a, b, strict=True))


def _number(answer: object) -> float:
    """One real number, whoever made it; truth values are none."""
    if isinstance(answer, str):
        return _evaluate(answer, {})
    try:
        inner = answer.item() if hasattr(answer, "item") else answer
        if not isinstance(inner, bool) and isinstance(inner, Real):
            return float(inner)
    except Exception:  # an item of many, an integer beyond floats: whatever it is, it is no number
        pass
    raise _Refused(f"give one number; got {_short(answer)}")


def _evaluate(text: str, values: Mapping[str, float]) -> float:
    """The value of a formula; NaN where it has none that is finite."""
    known = {"pi": math.pi, **values}
    try:
        value = _walk(_tree(text), known)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        names = ", ".join([*known, *FUNCTIONS])
        raise _Refused(f"cannot read {_short(text)}: use numbers, + - * / ^, {names}") from None
    return value if math.isfinite(value) else math.nan


def _tree(text: str) -> ast.expr:
    """A formula as Python reads it, but every number is a float and ends where its digits end."""
    if not SIGNS.fullmatch(text):
        raise SyntaxError
    floats = NUMBER.sub(lambda found: f"{float(found[0])!r} ", " ".join(text.split()))
    return ast.parse(floats.replace("^", "**"), mode="eval").body


def _walk(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=float() as number):
            return number
        case ast.Name(id=name) if name in values:
            return float(values[name])
        case ast.UnaryOp(op=sign, operand=inner) if type(sign) in OPERATIONS:
            return _real(OPERATIONS[type(sign)], _walk(inner, values))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATIONS:
            return _real(OPERATIONS[type(sign)], _walk(left, values), _walk(right, values))
        case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in FUNCTIONS:
            return _real(FUNCTIONS[name], _walk(inner, values))
    raise SyntaxError


def _real(function: Callable[..., float], *numbers: float) -> float:
    """What a function returns; NaN for nothing, as 1/0 and log(-1), and for a complex number."""
    try:
        value = function(*numbers)
    except (ArithmeticError, ValueError):
        return math.nan
    return math.nan if isinstance(value, complex) else value


# ----------------------------------------------------------------------------------------- choice


@dataclass(frozen=True)
class Choice(Answer):
    """Some of the options: a text such as ``"acd"`` or ``"a, c, d"``, or a list of them.

    ``wrong`` pairs an option with what is said to someone who has this one wrong, whether it was
    named or left out.

    Args:
        value, tolerance, wrong, right: as :class:`Answer`; there is nothing to tolerate.
        options: all there are.
    """

    kind: ClassVar[str] = "choice"
    _: KW_ONLY
    options: Sequence[str]

    def data(self) -> dict[str, Any]:
        options = [str(option) for option in self.options]
        return super().data() | {"value": sorted(self._chosen(self.value)), "options": options}

    def _check(self) -> None:
        self._chosen(self.value)
        self._chosen([option for option, _ in self.wrong])

    def _judge(self, answer: object) -> str | None:
        missed = self._chosen(answer) ^ self._chosen(self.value)
        if not missed:
            return None
        named = (says for option, says in self.wrong if option in missed)
        return next(named, f"not yet: think again about {min(missed)}")

    def _chosen(self, answer: object) -> set[str]:
        if answer is None:
            raise _Refused(f"choose among {', '.join(self.options)}; got None")
        words = _words(answer)
        if len(words) == 1 and not words <= set(self.options):
            words = set(*words)  # "acd"
        if not words <= set(self.options):
            raise _Refused(f"choose among {', '.join(self.options)}; got {_short(answer)}")
        return words


def _words(answer: object) -> set[str]:
    if isinstance(answer, str):
        return set(re.findall(r"[^\s,;()\[\]{}'\"]+", answer.lower()))
    try:
        return {str(word) for word in answer} if isinstance(answer, Iterable) else {str(answer)}
    except Exception:
        raise _Refused(f"give the options you choose; got {_short(answer)}") from None


# --------------------------------------------------------------------------------------- function


def _call(function: Callable[..., Any], *case: Any) -> Any:
    return function(*case)


@dataclass(frozen=True)
class Function(Answer):
    """A function, compared with the right one on cases: ``value`` and each of ``wrong`` is one too.

    A mistake is named if the reader's function makes it in every case. The reader's function gets
    copies of the arguments, and has to return numbers in the shape in which ``value`` does: a
    tensor, an array, a list or, for a single one, a number.

    Args:
        value, tolerance, wrong, right: as :class:`Answer`.
        cases: the arguments, a tuple for each case.
        probe: what is compared, ``probe(function, *case)``; by default what the function returns.
        otherwise: what is said to a wrong answer without a name, before the case that shows it.
    """

    kind: ClassVar[str] = "function"
    _: KW_ONLY
    cases: Sequence[tuple[Any, ...]]
    probe: Probe = _call
    otherwise: str = "not right yet"

    def data(self) -> dict[str, Any]:
        return super().data() | {"value": None, "wrong": [{"says": says} for _, says in self.wrong]}

    def _check(self) -> None:
        if not self.cases:
            raise ValueError("cases is empty: a function is judged by what it does in some case")

    def _judge(self, answer: object) -> str | None:
        if not callable(answer):
            raise _Refused(f"hand in the function itself; got {_short(answer)}")
        got, want = self._seen(self._guarded(answer)), self._seen(self.value)
        if self._near(got, want):
            return None
        named = (says for wrong, says in self.wrong if self._near(got, self._seen(wrong)))
        return next(named, None) or self._first_miss(got, want)

    def _seen(self, function: Callable[..., Any]) -> list[Tensor]:
        return [_tensor(self.probe(function, *case)) for case in self.cases]

    def _guarded(self, answer: Callable[..., Any]) -> Callable[..., Tensor]:
        def call(*given: Any) -> Tensor:
            like = _tensor(self.value(*given))
            try:
                result = answer(*copy.deepcopy(given))
            except Exception as error:
                said = traceback.format_exception_only(error)[-1].splitlines()[0]
                raise _Refused(f"your function raised {said}") from None
            return _result(result, like)

        return call

    def _near(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
        return all(self._close(x, y) for x, y in zip(a, b, strict=True))

    def _close(self, a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=0, atol=self.tolerance)

    def _first_miss(self, got: Sequence[Tensor], want: Sequence[Tensor]) -> str:
        pairs = enumerate(zip(got, want, strict=True))
        k, (a, b) = next((k, pair) for k, pair in pairs if not self._close(*pair))
        case = self.cases[k]
        given = f" at {_told(_tensor(case))}" if all(isinstance(x, Real) for x in case) else ""
        where = f"case {k + 1} of {len(self.cases)}{given}"
        if a.numel() > FEW:  # the first of them may all be right
            flat = zip(a.flatten(), b.flatten(), strict=True)
            at = next(i for i, pair in enumerate(flat) if not self._close(*pair))
            where += f", number {at + 1} of {a.numel()}"
            a, b = a.flatten()[at], b.flatten()[at]
        return f"{self.otherwise}; {where}: {_told(a)}, must be {_told(b)}"


def _tensor(value: Any) -> Tensor:
    return _as_one(value).detach().to("cpu", torch.float64)


def _as_one(value: Any) -> Tensor:
    """As a tensor; torch itself makes one of a list of tensors only if their numbers are real."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        return torch.stack(list(value))
    return torch.as_tensor(value)


def _result(given: object, like: Tensor) -> Tensor:
    """What a reader's function returned, in the shape in which the right one returns it."""
    if given is None:
        raise _Refused("your function returned None: is its return missing?")
    try:
        raw = _as_one(given)
        numbers = _tensor(torch.view_as_real(raw) if raw.is_complex() else raw).flatten()
    except Exception:
        raise _Refused(f"your function must return numbers, got {_short(given)}") from None
    if raw.dtype == torch.bool or raw.is_complex():
        raise _Refused(f"your function must return real numbers, got {raw.dtype}")
    if raw.shape != like.shape and not raw.numel() == like.numel() == 1:
        form = f"shape {tuple(like.shape)}" if like.dim() else "one number"
        raise _Refused(f"your function returned shape {tuple(raw.shape)}, must be {form}")
    return numbers.reshape(like.shape)


def _told(numbers: Tensor) -> str:
    """A few numbers, as words."""
    flat = [f"{v:.4g}" for v in numbers.flatten()[:FEW].tolist()]
    dots = ["..."] * (numbers.numel() > FEW)
    return flat[0] if numbers.dim() == 0 else f"[{', '.join(flat + dots)}]"


def _short(given: object) -> str:
    """What was given, in a few characters; also where its own repr fails."""
    return reprlib.repr(given).replace("\n", " ")
