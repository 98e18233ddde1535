"""The checkers of the book: every mistake has its sentence, and nothing handed in raises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chapters import BOOK as PAGES
from chapters import CHAPTERS, as_in_the_book, chapter, naming, run, tagged

from sbnlib import Logistic, exercises
from sbnlib.exercises import Answer, Choice, Function


def checkers() -> list[tuple[str, Answer, Any]]:
    """The label of its cell, the checker, and the reader's solution, for the whole book."""
    found = []
    for path in CHAPTERS:
        pairs = zip(tagged(path, "checker"), tagged(path, "solution"), strict=True)
        for checker, solution in pairs:
            with as_in_the_book():
                before = run(path, checker)
                (answer,) = (v for k, v in before.items() if isinstance(v, Answer))
            found.append((checker.id, answer, solution))
    return found


BOOK = checkers()
each = pytest.mark.parametrize("check", [c for _, c, _ in BOOK], ids=[name for name, _, _ in BOOK])
FUNCTIONS = [(name, c) for name, c, _ in BOOK if isinstance(c, Function)]
function = pytest.mark.parametrize(
    "check", [c for _, c in FUNCTIONS], ids=[name for name, _ in FUNCTIONS]
)


@pytest.fixture(autouse=True)
def book():
    with as_in_the_book():
        yield


def said(check: Answer, answer: object, capsys: pytest.CaptureFixture) -> tuple[bool, str]:
    capsys.readouterr()
    right = check(answer)
    assert type(right) is bool
    return right, capsys.readouterr().out.rstrip("\n")


@each
def test_the_right_answer_is_right(check: Answer, capsys: pytest.CaptureFixture) -> None:
    assert said(check, check.value, capsys) == (True, check.right)
    assert "right" in check.right


MISTAKES = [
    pytest.param(check, k, id=f"{name}-{k}")
    for name, check, _ in BOOK
    for k in range(len(check.wrong))
]


@pytest.mark.slow
@pytest.mark.parametrize(("check", "k"), MISTAKES)
def test_every_mistake_gets_its_own_sentence(
    check: Answer, k: int, capsys: pytest.CaptureFixture
) -> None:
    wrong, says = check.wrong[k]
    answer = {*check.data()["value"]} ^ {wrong} if isinstance(check, Choice) else wrong
    assert said(check, answer, capsys) == (False, says)


@each
def test_at_least_three_mistakes_are_named(check: Answer) -> None:
    assert len(check.wrong) >= 3


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_two_checkers_a_chapter_are_for_the_page_and_stand_on_their_own(path: Path) -> None:
    """No name from another cell: the page gets their data without running the chapter."""
    found = [c.source for c in tagged(path, "checker") if "exercises.Function(" not in c.source]
    assert len(found) >= 2
    for source in found:
        space = {"exercises": exercises}
        exec(source, space)
        (check,) = (v for v in space.values() if isinstance(v, Answer))
        json.dumps(check.data(), allow_nan=False)


@each
def test_what_json_can_hold_it_holds(check: Answer) -> None:
    data = json.loads(json.dumps(check.data()))
    assert data["kind"] in ("number", "choice", "formula", "function")
    assert [wrong["says"] for wrong in data["wrong"]] == [says for _, says in check.wrong]


def test_the_example_of_the_page_on_how_to_work_is_as_printed(
    capsys: pytest.CaptureFixture,
) -> None:
    page = (PAGES / "how-to.md").read_text("utf-8")
    code, said_there = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", page, re.S).groups()
    space = run(chapter(6), naming(chapter(6), "checker")) | {"noise": Logistic()}
    exec(code, space)
    assert capsys.readouterr().out == said_there


class Silent:
    """Nothing can be asked of it, not even its name."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __array__(self, *given: object) -> np.ndarray:
        raise RuntimeError("no")


NOT_ANSWERS = {
    "None": None,
    "a word": "a word",
    "an empty text": "",
    "a list": [1, [2, "three"]],
    "a dict": {"a": 1},
    "nan": float("nan"),
    "numpy": np.int64(-7),
    "a tensor": torch.ones(7, 7),
    "truth": True,
    "complex": 1j,
    "an exception": ValueError("no"),
    "silent": Silent(),
}


@pytest.mark.slow
@each
@pytest.mark.parametrize("given", NOT_ANSWERS)
def test_what_is_no_answer_is_told_so(
    check: Answer, given: str, capsys: pytest.CaptureFixture
) -> None:
    right, words = said(check, NOT_ANSWERS[given], capsys)
    assert not right and len(words.split()) >= 3
    if isinstance(check, Function):
        assert words.startswith("hand in the function itself; got ")


def raising(error: BaseException) -> Callable[..., object]:
    def answer(*given: object) -> object:
        raise error

    return answer


def spoiling(value: Callable[..., Any]) -> Callable[..., Any]:
    """The right function, but it overwrites what it was given."""

    def answer(*given: Any) -> Any:
        out = value(*given)
        for x in given:
            if isinstance(x, torch.Tensor):
                x.fill_(7)
        return out

    return answer


BAD_FUNCTIONS = {
    "returns nothing": (lambda *given: None, "is its return missing?"),
    "raises": (raising(ValueError("too\nlong")), "raised ValueError: too"),
    "raises without words": (raising(KeyError()), "raised KeyError"),
    "never ends": (lambda *given: BAD_FUNCTIONS["never ends"][0](*given), "raised RecursionError"),
    "takes nothing": (lambda: 1.0, "raised TypeError"),
    "a word": (lambda *given: "four numbers", "must return numbers, got 'four numbers'"),
    "silent": (lambda *given: Silent(), "must return numbers"),
    "a truth value": (lambda *given: torch.ones(4) > 0, "real numbers"),
    "complex": (lambda *given: torch.ones(4) * 1j, "real numbers"),
    "wrong shape": (lambda *given: torch.ones(7, 7), "returned shape (7, 7), must be"),
    "an empty list": (lambda *given: [], "returned shape (0,), must be"),
    "a ragged list": (lambda *given: [[1.0], [1.0, 2.0]], "must return numbers"),
    "itself": (lambda *given: print, "must return numbers"),
}


@pytest.mark.slow
@function
@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_a_function_that_fails_is_told_how(
    check: Function, name: str, capsys: pytest.CaptureFixture
) -> None:
    answer, hint = BAD_FUNCTIONS[name]
    right, words = said(check, answer, capsys)
    assert not right and hint in words and "\n" not in words


@pytest.mark.slow
@function
def test_numbers_that_are_not_right_are_told_where(
    check: Function, capsys: pytest.CaptureFixture
) -> None:
    for number in (torch.nan, 0.123):
        right, words = said(check, lambda *v, x=number: x + 0 * scaled(check, v), capsys)
        assert not right and words.startswith(check.otherwise) and ", must be " in words


def scaled(check: Function, given: tuple[Any, ...]) -> torch.Tensor:
    return torch.as_tensor(check.value(*given)).clamp(-1e3, 1e3)


FORMS = {
    "a tensor": torch.as_tensor,
    "an array": lambda v: np.asarray(torch.as_tensor(v)),
    "a list": lambda v: torch.as_tensor(v).tolist(),
    "tensors in a list": lambda v: list(t) if (t := torch.as_tensor(v)).dim() else t,
    "float32": lambda v: torch.as_tensor(v).float(),
    "numpy float32": lambda v: np.float32(v),
    "numbers with a history": lambda v: torch.as_tensor(v).double().requires_grad_() * 1,
}


@pytest.mark.slow
@function
@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_right_numbers_does_not_matter(
    check: Function, form: str, capsys: pytest.CaptureFixture
) -> None:
    convert = FORMS[form]
    assert said(check, lambda *v: convert(check.value(*v)), capsys) == (True, check.right)


@function
def test_the_arguments_are_the_reader_s_own(check: Function, capsys: pytest.CaptureFixture) -> None:
    assert said(check, spoiling(check.value), capsys) == (True, check.right)
    assert said(check, check.value, capsys) == (True, check.right)
