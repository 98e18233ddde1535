"""The section "Bring your own estimator": its file, its command and what it prints."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from places import BOOK

from sbnlib.map import __main__ as command

SECTION = (BOOK / "how-to.md").read_text("utf-8").partition("## Bring your own estimator")[2]
SECTION = SECTION.partition("\n## ")[0]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.S)
    return found


@pytest.mark.slow
def test_the_example_gives_what_is_printed_and_writes_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (name,) = re.findall(r"a file, here `(\w+)\.py`", SECTION)
    (tmp_path / f"{name}.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, name, raising=False)
    words = shlex.split(block("bash"))
    assert words[:3] == ["python", "-m", "sbnlib.map"]
    try:
        assert command.main(words[3:]) == 0
    finally:
        sys.modules.pop(name, None)
    assert capsys.readouterr().out.startswith(block("text"))
    ends = sorted(p.suffix for p in tmp_path.iterdir() if p.name.startswith("sbn-map-1-"))
    assert ends == [".html", ".json"]


def test_it_is_halfway_between_straight_through_and_zgr() -> None:
    import torch

    import sbnlib

    space: dict = {}
    exec(block("python"), space)
    for law in (sbnlib.Logistic(), sbnlib.Uniform(2.0)):
        a = torch.linspace(-1.9, 1.9, 12, dtype=torch.float64).requires_grad_()
        x = torch.ones(12, dtype=torch.float64)
        one, other, own = (
            torch.autograd.grad(f(a, x, law).sum(), a)[0]
            for f in (sbnlib.straight_through, sbnlib.zgr, space["my_estimator"])
        )
        torch.testing.assert_close(own, (one + other) / 2)


def test_the_arguments_it_names_are_those_of_the_kinds() -> None:
    from sbnlib.map.given import ARGUMENTS

    for kind in ("loss based", "network"):
        assert f"`({', '.join(ARGUMENTS[kind])}, *, generator)`" in SECTION
