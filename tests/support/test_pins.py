"""A pin lets the page's words pass and no others."""

from __future__ import annotations

import pytest
from chapters import PAGES
from pins import pin, pinned, printed, to_be_pinned

WORDS = r"P(x\mid a)=F(xa),\qquad x\in\{-1,+1\}."


def test_the_words_of_the_page_pass_and_the_test_runs() -> None:
    ran = []

    @pin("eq-01-law", "\n    ".join(WORDS.split(" ")))
    def test(given: int) -> None:
        ran.append(given)

    test(given=3)
    assert ran == [3]


@pytest.mark.parametrize("other", [WORDS.replace("xa", "-xa"), WORDS[:-1], WORDS + " always"])
def test_other_words_fail_before_the_test_runs(other: str) -> None:
    @pin("eq-01-law", other)
    def test() -> None:
        raise NotImplementedError

    with pytest.raises(AssertionError, match="eq-01-law"):
        test()


def test_a_statement_names_its_equations() -> None:
    words = printed("prop-01-tight")
    assert "{eq-01-round}" in words and "{eq-01-tight}" in words and r"\phi(p{=}1)" not in words


@pytest.mark.slow
def test_every_label_has_words() -> None:
    assert all(printed(label) for page in PAGES for label in to_be_pinned(page))


def test_pins_of_a_file_are_found_without_running_it(tmp_path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text('@pin("eq-1", "a")\n@mark\ndef test_it():\n    pass\n', "utf-8")
    assert pinned(file) == ["eq-1"]
