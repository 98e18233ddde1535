"""The report: what it says, that its page asks nothing of others, and that its chart is right."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest
from problems_by_hand import CONTENT, exact_row

import sbnlib
from sbnlib import map as sbn_map
from sbnlib import registry
from sbnlib.estimators import attach
from sbnlib.map import Report, page

BASES = [f"{about}-2x5-logistic-1" for about in ("digits", "xor", "smooth")]


def half(a, x, noise):
    """Half of straight-through, in one layer: it shortens the mean, and quarters the variance."""
    return attach(x, a, noise.pdf(a.detach()))


@pytest.fixture(scope="module")
def own() -> Report:
    return sbn_map.place(half, problems=[*BASES, "xor-1x5-logistic-1"])


@pytest.fixture(scope="module")
def sampled() -> Report:
    return sbn_map.place("foust", problems=["xor-2x3-logistic-1", "digits-2x5-uniform-2"])


def test_half_of_an_estimator_is_where_it_has_to_be(own: Report) -> None:
    row, whole = own.row("xor-1x5-logistic-1")["all"], sbn_map.results()["straight_through"]
    variance = next(r for r in whole if r["problem"] == "xor-1x5-logistic-1")["all"]["variance"][0]
    assert row["bias2"][0] == 0.25 and row["cosine"][0] == 1
    assert row["variance"][0] == pytest.approx(variance / 4, rel=1e-3)


# ---- JSON ----------------------------------------------------------------------------------------


def test_the_json_has_what_the_report_has(own: Report) -> None:
    found = json.loads(own.json())
    assert [
        {k: v for k, v in row.items() if k != "rank_by_efficiency"} for row in found["rows"]
    ] == [*own.rows]
    assert found["sha256"] == sbn_map.SHA256 and found["problems"] == "sbn-map-1"
    assert (found["estimator"], found["kind"], found["entry"]) == ("half", "chain rule", None)
    assert found["moments"] == "exact" and found["command"] == own.command
    assert list(found["versions"]) == ["sbnlib", "torch", "numpy", "python"]
    for part in ("half", sbn_map.SHA256, own.command, *own.versions.values()):
        assert part in found["cite"]


def test_the_command_of_a_call_is_the_call(own: Report, sampled: Report) -> None:
    names = [row["problem"] for row in sampled.rows]
    assert sampled.command == f"sbnlib.map.place('foust', problems={names})"
    again = eval(own.command, {"sbnlib": sbnlib, "half": half})
    assert again.json() == own.json()
    named = sbn_map.place(half, kind="chain rule", name="x y", problems=["xor-1x5-logistic-1"])
    assert named.command.endswith("kind='chain rule', name='x y', problems=['xor-1x5-logistic-1'])")


def test_numbers_are_rounded_to_four_digits_and_errors_to_two(sampled: Report) -> None:
    for row in sampled.rows:
        for layers in ("first", "all"):
            for value, se in row[layers].values():
                assert value == float(f"{value:.3e}") and se == float(f"{se:.1e}") > 0
    assert json.loads(sampled.json())["moments"] == "16384 samples"


def test_no_date_no_path_and_no_host_are_in_it(own: Report) -> None:
    import platform
    from pathlib import Path

    for text in (own.json(), own.html()):
        assert str(Path.cwd()) not in text and str(Path.home()) + "/" not in text
        assert platform.node() not in text or len(platform.node()) < 4
        assert not re.search(r"\b20\d\d-\d\d-\d\d|\d\d:\d\d", text)


def test_ranks_are_counted(own: Report) -> None:
    for row in own.rows:
        name = row["problem"]
        for by in ("mse", "bias2", "variance", "efficiency"):
            others = [next(r for r in rows if r["problem"] == name)["first"][by][0]
                      for rows in sbn_map.results().values()]  # fmt: skip
            mine = row["first"][by][0]
            best_first = sorted([*others, mine], reverse=by == "efficiency")
            place = best_first.index(mine) + 1
            assert own.rank(name, by=by, layers="first") == (place, len(registry.ESTIMATORS) + 1)


def test_an_entry_is_not_ranked_against_itself(sampled: Report) -> None:
    place, of = sampled.rank("digits-2x5-uniform-2")
    assert of == len(registry.ESTIMATORS) and 1 < place < of


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r.rank("xor-1x5-logistic-1", by="cosine"), "by must be one of 'bias2', .* 'cos"),
        (lambda r: r.rank("xor-1x5-logistic-1", layers="last"), "layers must be one of 'all', 'fi"),
        (
            lambda r: r.row("xor-9x9"),
            "problem must be one of the report's, digits.*; got 'xor-9x9'",
        ),
        (lambda r: r.chart("xor-3x5-logistic-1"), "problem must be one of the report's"),
        (lambda r: r.chart("xor-1x5-logistic-1", layers=1), "layers must be one of"),
        (lambda r: sbn_map.chart("xor"), "problems must be names of sbn-map-1"),
    ],
)
def test_what_is_asked_wrongly_is_named(call, words, own: Report) -> None:
    with pytest.raises(ValueError, match=words):
        call(own)


def test_the_text_has_a_line_a_problem(own: Report) -> None:
    lines = str(own).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [row["problem"] for row in own.rows]


# ---- the page ------------------------------------------------------------------------------------

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, which must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.cells: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.slow
def test_the_page_is_whole_and_asks_nothing_of_others(own: Report) -> None:
    text = own.html()
    assert text.startswith("<!doctype html>")
    found = Page(text)
    assert found.of("html") == [{"lang": "en"}]
    assert any(m.get("name") == "viewport" for m in found.of("meta"))
    for tag, attributes in found.elements:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "style"):
            value = attributes.get(name) or ""
            assert not re.search(r"//|url\((?!#)|@import", value) and value[:1] != "/"
    (css,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert "prefers-color-scheme:dark)" in css and "color-scheme:light dark" in css
    assert "url(" not in css and "@import" not in css
    addresses = set(re.findall(r"https?://[^\s\"<]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


@pytest.mark.slow
def test_the_tables_have_heads_and_the_numbers_of_the_report(own: Report) -> None:
    found = Page(own.html())
    heads = [name for name, _ in page.COLUMNS]
    width = 1 + len(heads)
    assert [a["scope"] for a in found.of("th")] == (["col"] * width + ["row"] * 4) * 2
    columns = [cells for cells in found.cells if cells[0] == "problem"]
    assert columns == [["problem", *heads]] * 2
    rows = [cells for cells in found.cells if cells[0] != "problem"]
    for cells, (layers, row) in zip(rows, [(n, r) for n in ("all", "first") for r in own.rows],
                                    strict=True):  # fmt: skip
        rank, of = own.rank(row["problem"], layers=layers)
        wanted = [f"{row[layers][q][0]:g}" for q in COLUMNS]
        wanted = [row["problem"], *wanted, "1", "1", f"{rank} of {of}"]
        assert [c.replace("−", "-") for c in cells] == wanted


COLUMNS = ("bias2", "variance", "mse", "efficiency", "cosine")


def test_each_column_and_each_loss_is_said_in_words(own: Report) -> None:
    words = " ".join(" ".join(Page(own.html()).words).split())
    for name, meaning in (*page.COLUMNS, *page.LOSSES):
        assert name in words and meaning in words
    assert {name for name, _ in page.LOSSES} == {row["about"] for row in CONTENT.values()}
    assert own.citation in words and own.command in words


def test_a_sampled_page_says_so_with_errors_and_marks_rows_that_few_samples_carry(
    sampled: Report,
) -> None:
    few = [row["effective_samples"] < 100 for row in sampled.rows]
    assert few == [True, False]  # one that the mark is for, and one that it is not for
    found = Page(sampled.html())
    rows = [cells for cells in found.cells if cells[0] != "problem"]
    assert [cells[0].endswith(" †") for cells in rows] == few * 2
    assert all(" ± " in cells[1] for cells in rows)
    words = " ".join(found.words)
    assert "†: fewer than 100" in words and "from 16384 estimates a problem" in words


def test_a_number_that_samples_do_not_tell_is_a_dash() -> None:
    assert page._number(None, None) == "–"
    assert page._number(-0.5, 0.25) == "−0.5 ± 0.25" and page._number(2.0, 0.0) == "2"


def test_a_name_with_markup_in_it_is_text() -> None:
    report = sbn_map.place(half, name="<b>x&y</b>", problems=["xor-1x5-logistic-1"])
    found = Page(report.html())
    assert not found.of("b") and "<b>x&y</b> on the map" in found.words


@pytest.mark.slow
def test_a_page_shows_the_base_problems_or_the_first(own: Report, sampled: Report) -> None:
    assert page._charted(own) == BASES and len(Page(own.html()).of("svg")) == 3
    assert page._charted(sampled) == ["digits-2x5-uniform-2"]
    labels = [a["aria-label"] for a in Page(own.html()).of("div") if a.get("role") == "img"]
    bias = math.sqrt(own.row(BASES[0])["all"]["bias2"][0])
    assert f"half with bias {bias:.3g}" in labels[0] and "19 other" in labels[0]


# ---- the chart -----------------------------------------------------------------------------------

FACTORS = {"straight_through": "straight_through", "zgr": "zgr", "darn": "darn_mean",
           "identity": "identity"}  # fmt: skip


@pytest.mark.parametrize("problem", ["digits-2x3-logistic-1", "smooth-2x3-logistic-1"])
@pytest.mark.parametrize("layers", ["all", "first"])
def test_the_marks_of_a_chart_are_where_an_enumeration_puts_them(problem, layers) -> None:
    (ax,) = sbn_map.chart(problem, layers=layers).axes
    lines = {line.get_gid(): line for line in ax.lines}
    assert list(lines) == list(registry.ESTIMATORS)
    for name, factor in FACTORS.items():
        wanted, (x, y) = exact_row(problem, factor, layers), lines[name].get_xydata()[0]
        assert x == pytest.approx(math.sqrt(wanted["bias2"]), rel=5e-4)
        assert y == pytest.approx(wanted["variance"], rel=5e-4)


def test_the_looks_of_a_chart_are_those_of_the_registry_and_the_ring_is_ones_own(
    own: Report,
) -> None:
    (ax,) = own.chart(BASES[1]).axes
    *lines, ring = ax.lines
    for line, entry in zip(lines, registry.ESTIMATORS.values(), strict=True):
        assert (line.get_color(), line.get_marker()) == (entry.colour, entry.marker)
        assert line.get_label().startswith(f"{entry.label} (")
    assert ring.get_label() == "half (1)" and ring.get_markerfacecolor() == "none"
    row = own.row(BASES[1])["all"]
    assert ring.get_xydata()[0] == pytest.approx([row["bias2"][0] ** 0.5, row["variance"][0]])


def test_those_without_bias_stand_in_the_strip_and_no_others() -> None:
    found = {p.name: p for p in sbn_map.points("smooth-2x3-logistic-1")}
    (ax,) = sbn_map.chart("smooth-2x3-logistic-1").axes
    strip = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    for line in ax.lines:
        x = line.get_xdata()[0]
        assert (1.05 * strip.x0 < x < strip.x1 / 1.05) == (found[line.get_gid()].bias == 0)
    for kind in ("major", "minor"):  # in the strip the place to the right has no meaning
        at = ax.xaxis.get_ticklocs(minor=kind == "minor")
        assert len(at) and (at > strip.x1).all()
    unbiased = [e.name for e in registry.ESTIMATORS.values() if e.unbiased_for == "any"
                and not e.name.startswith("psa")]  # fmt: skip
    assert (
        sum(found[name].bias == 0 for name in unbiased) >= len(unbiased) - 1
    )  # two errors of each


def test_a_sampled_variance_carries_two_errors_and_an_exact_one_none() -> None:
    found = {p.name: p for p in sbn_map.points("smooth-2x3-logistic-1")}
    (ax,) = sbn_map.chart("smooth-2x3-logistic-1").axes
    bars = {b.get_gid(): b.get_segments()[0][:, 1] for b in ax.collections}
    rows = {n: next(r for r in rows if r["problem"] == "smooth-2x3-logistic-1")["all"]["variance"]
            for n, rows in sbn_map.results().items()}  # fmt: skip
    assert list(bars) == [f"{name} errors" for name in found if rows[name][1]]
    for name in ("arm", "muprop"):
        value, se = rows[name]
        assert bars[f"{name} errors"] == pytest.approx([value - 2 * se, value + 2 * se])
    assert rows["zgr"][1] == found["zgr"].variance_se == 0


def test_a_bias_is_told_from_two_errors_on() -> None:
    from sbnlib.map.drawing import _point

    def row(bias2: float, se: float) -> dict:
        return {"all": {"bias2": [bias2, se], "variance": [1.0, 0.0]}, "loss_evaluations": 1.0}

    assert _point("n", "l", None, None, row(0.25, 0.12), "all").bias == 0.5
    assert _point("n", "l", None, None, row(0.25, 0.13), "all").bias == 0
    assert _point("n", "l", None, None, row(-0.01, 0.001), "all").bias == 0
    assert _point("n", "l", None, None, row(0.25, 0.0), "all").bias == 0.5


def test_a_report_of_an_entry_adds_no_second_mark(sampled: Report) -> None:
    names = [p.name for p in sbn_map.points("digits-2x5-uniform-2", sampled)]
    assert names == list(registry.ESTIMATORS)


def test_a_report_is_what_it_was() -> None:
    report = sbn_map.place(sbnlib.zgr, problems=["xor-1x5-logistic-1"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.name = "other"
