"""Answers to exercises: each kind on its own, with right, wrong and impossible answers."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from sbnlib import exercises

EIGHT = exercises.Number(8, tolerance=0.5, wrong=[(2, "one layer"), (4, "two layers")])
PICK = exercises.Choice("ad", options="abcd", wrong=[("b", "b has a kink"), ("d", "d is even")])
GAP = exercises.Formula(
    "(k*v - u)/(c - b)",
    at={"k": [2, 3], "u": [0.5, 1], "v": [2, 5], "b": [0.1, 0.2], "c": [1, 3]},
    wrong=[("(v - u)/(c - b)", "the price is missing"), ("(u - k*v)/(c - b)", "the sign")],
)
SQUARE = exercises.Function(
    lambda x: x**2,
    cases=[(torch.tensor([1.0, 2.0]),), (torch.tensor([-3.0, 0.5]),)],
    tolerance=1e-6,
    wrong=[(lambda x: x.abs(), "not squared"), (lambda x: -(x**2), "the sign")],
    otherwise="no",
)
KINDS = [EIGHT, PICK, GAP, SQUARE]


def said(check, answer, capsys):
    capsys.readouterr()
    return check(answer), capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "answer",
    [8, 8.5, 7.5, np.int64(8), np.float32(8.2), np.array([8]), torch.tensor(8), torch.tensor([8.1]),
     Fraction(17, 2), "8", "08", "8.", "80e-1", " 2^3 ", "-(1 - 9.0)", "sqrt(64)", "16/2",
     "exp(0) + 7", "2**3"],
)  # fmt: skip
def test_a_number_whoever_made_it(answer, capsys):
    assert said(EIGHT, answer, capsys) == (True, "right")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (2, "one layer"),
        ("4.2", "two layers"),
        (7, "7 is not it"),
        (math.inf, "inf is not it"),
        ("1/0", "nan is not it"),
        ("(-8)^0.5", "nan is not it"),
        ("log(-1)", "nan is not it"),
        ("9^9^9^9^9", "nan is not it"),
        ("1/(1/0)", "nan is not it"),
        ("1^(1/0)", "nan is not it"),
        ("abs((-1)^0.5)", "nan is not it"),
        ("1e308*10", "nan is not it"),
        (None, "give one number; got None"),
        (True, "give one number; got True"),
        (np.bool_(True), "give one number"),
        (8j, "give one number; got 8j"),
        ([8], "give one number; got [8]"),
        (np.ones(2), "give one number"),
        (10**400, "give one number"),
        (Decimal(8), "give one number"),
        ("eight", "cannot read 'eight'"),
        ("", "cannot read ''"),
        ("8 8", "cannot read '8 8'"),
        ("8\0", "cannot read"),
        ("(" * 300, "cannot read"),
        ("-" * 5000 + "8", "cannot read"),
        ("__import__('os')", "cannot read"),
        ("exp(1, 2)", "cannot read"),
        ("True", "cannot read"),
        ("1/0 + foo", "cannot read '1/0 + foo': use numbers, + - * / ^, pi, abs, cos"),
        ("1e999", "cannot read '1e999': use numbers"),
        ("1_000", "cannot read"),
        ("0x8", "cannot read"),
        ("17//2", "cannot read"),
        ("8 # eight", "cannot read"),
        ("8j", "cannot read"),
    ],
)
def test_what_is_said_to_another_number(answer, words, capsys):
    right, told = said(EIGHT, answer, capsys)
    assert not right and told.startswith(words)


@pytest.mark.parametrize(
    "answer", ["ad", "da", "a, d", "(a) (d)", "A D", ["a", "d"], {"d", "a"}, ("d", "a", "d")]
)
def test_a_choice_in_any_order_and_form(answer, capsys):
    assert said(PICK, answer, capsys) == (True, "right")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("abd", "b has a kink"),
        ("a", "d is even"),
        ("", "d is even"),
        ([], "d is even"),
        ("acd", "not yet: think again about c"),
        ("d", "not yet: think again about a"),
        ("e", "choose among a, b, c, d; got 'e'"),
        ("a e", "choose among a, b, c, d; got 'a e'"),
        (None, "choose among a, b, c, d; got None"),
        (np.int64(1), "choose among a, b, c, d; got"),
        (torch.ones(2), "choose among"),
    ],
)
def test_what_is_said_to_another_choice(answer, words, capsys):
    right, told = said(PICK, answer, capsys)
    assert not right and told.startswith(words)


def test_a_single_choice_may_have_a_long_name(capsys):
    check = exercises.Choice("logistic", options=["logistic", "uniform"], wrong=[("uniform", "no")])
    assert said(check, "Logistic", capsys) == (True, "right")
    assert said(check, "uniform", capsys) == (False, "no")


@pytest.mark.parametrize(
    "answer", ["(k*v - u)/(c - b)", "-(u - v*k) / (c-b)", "k*v/(c - b) - u*(c - b)^-1"]
)
def test_a_formula_however_it_is_written(answer, capsys):
    assert said(GAP, answer, capsys) == (True, "right")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("(v - u)/(c - b)", "the price is missing"),
        ("(u - k*v)/(c - b)", "the sign"),
        ("k*v - u", "'k*v - u' is not it"),
        ("k/0", "'k/0' is not it"),
        ("z", "cannot read 'z': use numbers, + - * / ^, pi, k, u, v, b, c"),
        ("k v", "cannot read 'k v'"),
        (None, "give a formula in k, u, v, b, c as text; got None"),
        (3, "give a formula"),
    ],
)
def test_what_is_said_to_another_formula(answer, words, capsys):
    right, told = said(GAP, answer, capsys)
    assert not right and told.startswith(words)


def test_a_function_and_its_mistakes(capsys):
    assert said(SQUARE, lambda x: x * x, capsys) == (True, "right")
    assert said(SQUARE, lambda x: [abs(float(v)) for v in x], capsys) == (False, "not squared")
    assert said(SQUARE, lambda x: -x * x, capsys) == (False, "the sign")


def test_a_mistake_is_named_only_if_it_is_made_in_every_case(capsys):
    told = said(SQUARE, lambda x: x.abs() if x[0] < 0 else x**2, capsys)[1]
    assert told == "no; case 2 of 2: [3, 0.5], must be [9, 0.25]"


def test_of_many_numbers_the_first_wrong_one_is_told(capsys):
    right, wrong = torch.zeros(12), torch.zeros(12)
    wrong[8] = 1
    check = exercises.Function(lambda x: right, cases=[(torch.ones(2),)], otherwise="no")
    told = said(check, lambda x: wrong, capsys)[1]
    assert told == "no; case 1 of 1, number 9 of 12: 1, must be 0"


def test_numbers_given_to_a_function_are_told(capsys):
    check = exercises.Function(lambda a, b: a + b, cases=[(1, 2), (0.5, math.inf)])
    assert said(check, lambda a, b: a + b, capsys) == (True, "right")
    told = said(check, lambda a, b: min(a + b, 9), capsys)[1]
    assert told == "not right yet; case 2 of 2 at [0.5, inf]: 9, must be inf"


def test_rows_of_whole_numbers_may_come_as_a_list_of_tensors(capsys):
    check = exercises.Function(lambda v: 3 * v, tolerance=0, cases=[(torch.arange(6).view(2, 3),)])
    assert check(lambda v: list(3 * v)) and check(lambda v: tuple(3.0 * v))
    assert not check(lambda v: list(2 * v)) and not check(lambda v: [v[0], v[0, :2]])


def test_a_probe_compares_what_it_sees(capsys):
    check = exercises.Function(
        lambda x: 2 * x, cases=[(3.0,)], probe=lambda f, x: f(x) + f(-x), tolerance=1e-9
    )
    assert check(lambda x: x**3)  # odd, as 2 x is
    assert said(check, lambda x: None, capsys)[1].startswith("your function returned None")


@pytest.mark.parametrize("check", KINDS, ids=lambda c: c.kind)
def test_the_data_are_plain(check):
    data = check.data()
    assert json.loads(json.dumps(data)) == data
    assert data["kind"] == check.kind and data["tolerance"] == check.tolerance


def test_what_the_data_hold():
    assert EIGHT.data()["wrong"][0] == {"value": 2, "says": "one layer"}
    assert PICK.data()["value"] == ["a", "d"] and PICK.data()["options"] == ["a", "b", "c", "d"]
    assert GAP.data()["at"]["k"] == [2, 3]
    assert SQUARE.data()["wrong"] == [{"says": "not squared"}, {"says": "the sign"}]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: exercises.Number(8, tolerance=-1), "tolerance must be 0 or more, got -1"),
        (lambda: exercises.Number(8, tolerance=math.nan), "tolerance must be 0 or more"),
        (lambda: exercises.Number(8, wrong=[(2, " ")]), "needs a sentence"),
        (lambda: exercises.Number(8, tolerance=1, wrong=[(9, "no")]), "passes for 8"),
        (lambda: exercises.Formula("a", at={"a": [1]}, wrong=[("a^2", "no")]), "passes for 'a'"),
        (lambda: exercises.Function(abs, cases=[]), "cases is empty"),
    ],
)
def test_data_that_contradict_themselves_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_choice_that_is_no_option_is_refused():
    for value, wrong in (("e", []), ("a", [("e", "no")])):
        with pytest.raises(ValueError, match="choose among a, b; got"):
            exercises.Choice(value, options="ab", wrong=wrong)
