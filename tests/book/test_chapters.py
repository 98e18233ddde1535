"""What every chapter must have: labels that resolve, tests of its formulas, exercises, figures."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from chapters import (
    BOOK,
    CHAPTERS,
    DIRECTIVE,
    NOTEBOOKS,
    PAGES,
    cells,
    directives,
    equations,
    exercises,
    figures,
    labels,
    printed,
    prose,
    roles,
    statements,
    tagged,
    tags,
    under,
)
from pins import pinned, to_be_pinned

from sbnlib import registry

WORDS = {page: prose(page) for page in PAGES}
FIGURES = {page: figures(page) for page in NOTEBOOKS}
PROVED = ("prf:theorem", "prf:proposition", "prf:lemma", "prf:corollary")
KINDS, LEVELS = ("Prove", "Code", "Predict", "Break"), ("easy", "medium", "hard")
EXERCISE = re.compile(r"[:`]{3,}\{exercise\}[^\n]*\n:label: (\S+)\n(?::[^\n]*\n)*\*([^*]+)\*")
SETTING = re.compile(r"\b([Aa]t|[Ff]rom|[Ww]ith) (scale|step|\$[^$]*=)")
LINK = re.compile(r"\]\(([^)\s]+)\)")

#: What follows a citation in its sentence and says where in the work to look. A chapter is one of
#: ours, and a lecture that of another's.
PLACE = re.compile(
    r"(?i)\b(section|theorem|proposition|lemma|corollary|definition|equation|algorithm|figure|table"
    r"|appendix)s? \d|\babstract\b|\bcode\b"
)
#: Cited as a whole: a survey, the origin of a method, or a text of which we have seen no more than
#: the abstract. The page of the bibliography says so.
AS_A_WHOLE = {
    "ackley1985learning", "ajalloeian2020convergence", "ajanthan2021mirror", "alpaydin1998optical",
    "amari1998natural", "amid2020reparameterizing", "andriyash2018improved", "bai2019proxquant",
    "bauschke2017descent", "beck2003mirror", "bekas2007estimator", "bengio2013estimating",
    "boros2002pseudo", "bottou2018optimization", "chan1983algorithms", "cheng2019wasserstein",
    "choi2018pact", "darabi2018regularized", "dockhorn2021demystifying", "efron1981jackknife",
    "esser2020learned", "gregor2014deep", "gu2016muprop", "gunasekar2021mirrorless",
    "gygax2025elucidating", "hinton2012neural", "hoeffding1948class", "horowitz2014computing",
    "hutchinson1989stochastic", "ioffe2015batch", "jang2017categorical", "jin2025parq",
    "kingma2015adam", "kingma2015variational", "kivinen1997exponentiated", "kool2019buy",
    "li2016ternary", "liu2018bireal", "liu2023bridging", "lloyd1982least", "ma2025bitnet",
    "maddison2017concrete", "max1960quantizing", "mccullagh1980regression", "mcculloch1943logical",
    "mnih2014neural", "mnih2016variational", "mohamed2020monte", "naeini2015obtaining",
    "neal1992connectionist", "neftci2019surrogate", "nemirovsky1983problem", "nesterov2009primal",
    "oord2017neural", "panter1951quantization", "paulus2021rao", "pervez2020low",
    "poole2016exponential", "qin2020forward", "rabiner1989tutorial", "raiko2015techniques",
    "raskutti2015information", "salakhutdinov2009semantic", "salimans2014using",
    "salmon2011parallel", "saul1996mean", "schoenbauer2024custom", "schoenholz2017deep",
    "schuchman1964dither", "seide2014bit", "shayer2018learning", "soudry2014expectation",
    "spallanzani2022training", "tang2013learning", "titsias2015local", "tokui2017evaluating",
    "tucker2017rebar", "umuroglu2017finn", "wang2023bitnet", "wang2026beyond",
    "wannamaker2000theory", "williams1992simple", "wu2023estimator", "xiao2010dual",
    "xiao2017fashion", "yin2019arm", "yin2019blended", "yin2019understanding",
    "zenke2018superspike", "zhou2017convergence", "zhu2017trained",
}  # fmt: skip

each = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(BOOK)))


def number(path: Path) -> str:
    return path.name[:2]


def written_tests(path: Path) -> list[str]:
    """The names of the tests in the file that belongs to a chapter."""
    file = Path(__file__).with_name(f"test_chapter_{number(path)}.py")
    source = file.read_text(encoding="utf-8")
    return [n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]


# --------------------------------------------------------------------------------- labels


def test_no_label_is_given_twice() -> None:
    count = Counter(label for text in WORDS.values() for label in labels(text))
    assert [label for label, n in count.items() if n > 1] == []


@pytest.mark.slow
@every_page
@pytest.mark.parametrize(
    ("role", "kind"),
    [("eq", equations), ("prf:ref", statements), ("ref", labels), ("numref", labels)],
)
def test_every_reference_has_its_label(page: Path, role: str, kind: object) -> None:
    known = {label for text in WORDS.values() for label in kind(text)}
    known |= {"genindex"} if role == "ref" else set()  # a page that Sphinx makes
    drawn = {name for named in FIGURES.values() for name in named if name}
    assert set(roles(WORDS[page], role)) <= known | (drawn if role == "numref" else set())


@every_page
def test_every_link_inside_the_book_has_its_target(page: Path) -> None:
    known = {label for text in WORDS.values() for label in labels(text)}
    links = [t for t in LINK.findall(WORDS[page]) if not re.match(r"\w+:", t)]
    files = [t for t in links if t.lstrip("#") not in known]
    assert [t for t in files if not (page.parent / t.split("#")[0]).exists()] == []


@every_page
def test_a_row_of_a_table_has_as_many_cells_as_its_head(page: Path) -> None:
    r"""A bar in a formula ends the cell, and the rest is lost in silence: \lvert does not."""
    for table in re.findall(r"(?:^\|.*\|\n?)+", WORDS[page], re.M):
        rows = [re.split(r"(?<!\\)\|", row.strip())[1:-1] for row in table.strip().split("\n")]
        assert {len(row) for row in rows} == {len(rows[0])}, rows[0]


@every_page
def test_every_citation_is_in_the_bibliography(page: Path) -> None:
    keys = re.findall(r"^@\w+\{([^,\s]+)", (BOOK / "references.bib").read_text("utf-8"), re.M)
    assert set(roles(WORDS[page], r"cite(?::\w+)?")) <= set(keys)


def test_every_work_in_the_bibliography_is_cited() -> None:
    """On a page, or beside an estimator in the registry, whose table the library reference has."""
    keys = re.findall(r"^@\w+\{([^,\s]+)", (BOOK / "references.bib").read_text("utf-8"), re.M)
    cited = {key for text in WORDS.values() for key in roles(text, r"cite(?::\w+)?")}
    beside = {key for entry in registry.ESTIMATORS.values() for key in entry.papers}
    assert set(keys) - cited - beside == set()


def test_every_work_is_cited_with_its_place_or_as_a_whole() -> None:
    """At least once in the book. Who adds a citation says where to look, or that it cannot be."""
    cited, placed = set(), set()
    for text in WORDS.values():
        for m in re.finditer(r"\{cite(?::\w+)?\}`([^`]+)`([^\n]*?)(?=[.;:] |\{cite|\n|$)", text):
            keys = {key.strip() for key in m[1].split(",")}
            cited |= keys
            placed |= keys if PLACE.search(m[2]) else set()
    assert cited - placed == AS_A_WHOLE


@each
def test_labels_carry_the_number_of_the_chapter(path: Path) -> None:
    text = prose(path)
    for label in equations(text) + exercises(text):
        assert re.match(rf"(eq|ex)-{number(path)}-", label), label


# ------------------------------------------------------------------------------- formulas


@each
def test_there_are_four_labelled_equations(path: Path) -> None:
    assert len(equations(prose(path))) >= 4


@pytest.mark.slow
def test_every_equation_and_statement_is_in_a_test() -> None:
    """A test carries the words of each and fails when the page has others."""
    pins = {label for file in Path(__file__).parent.glob("test_*.py") for label in pinned(file)}
    assert [label for page in PAGES for label in to_be_pinned(page) if label not in pins] == []


@each
def test_every_theorem_has_a_proof(path: Path) -> None:
    text = prose(path)
    theorems = [options for name in PROVED for options in directives(text, name)]
    assert len(directives(text, "prf:proof")) >= len(theorems)


# ------------------------------------------------------------------------------- exercises


@each
def test_there_are_three_exercises_each_with_a_solution(path: Path) -> None:
    text = prose(path)
    solved = [o.split()[0] for o in directives(text, "solution") if o.split()]
    assert len(exercises(text)) >= 3
    assert sorted(solved) == sorted(exercises(text))
    assert text.count("{solution-start}") == text.count("{solution-end}")


@each
def test_solutions_are_folded(path: Path) -> None:
    folded = r"\{solution(?:-start)?\} \S+\n:class: dropdown"
    assert len(re.findall(folded, prose(path))) == len(exercises(prose(path)))


@each
def test_what_is_folded_beside_solutions_is_in_a_dropdown(path: Path) -> None:
    """The site's script stops at a proof that is to fold by itself: it has no title to click."""
    folds = [m for m in DIRECTIVE.finditer(prose(path)) if "dropdown" in m["options"]]
    assert {m["name"] for m in folds} <= {"solution", "solution-start"}


@each
def test_every_exercise_says_its_kind_and_how_hard_it_is(path: Path) -> None:
    said = dict(EXERCISE.findall(prose(path)))
    assert list(said) == exercises(prose(path))
    for label, words in said.items():
        assert words.startswith(KINDS), label
        assert any(level in words for level in LEVELS), label


@each
def test_three_to_five_objectives_each_name_an_exercise(path: Path) -> None:
    (box,) = re.findall(r":class: sbn-objectives\n(.*?)\n:::", prose(path), re.S)
    objectives = re.findall(r"^\d\. .*", box, re.M)
    assert 3 <= len(objectives) <= 5
    assert all(set(roles(o, "ref")) & set(exercises(prose(path))) for o in objectives)


@pytest.mark.slow
@each
def test_a_code_exercise_has_a_checker_and_its_solution_passes(path: Path) -> None:
    assert tagged(path, "checker")
    assert len(tagged(path, "solution")) == len(tagged(path, "checker"))
    for cell in tagged(path, "solution"):
        assert "check" in cell.source and "right" in printed(cell)
    assert any("wrong" in name for name in written_tests(path))


# ----------------------------------------------------------------------- figures and the rest


@each
def test_there_are_two_live_figures(path: Path) -> None:
    live = [c for c in cells(path) if "figures.explore(" in c.source]
    assert len(live) >= 2
    for cell in live:
        html = "".join(o.data.get("text/html", "") for o in cell.outputs if "data" in o)
        assert 'type="range"' in html


@each
def test_every_figure_has_a_name_and_a_caption(path: Path) -> None:
    drawing = [c for c in cells(path) if re.search(r"\bfigures\.(show|explore)\(", c.source)]
    assert len(FIGURES[path]) == len(drawing), "one name each"
    for name, cell in FIGURES[path].items():
        assert re.fullmatch(rf"fig-{number(path)}-[a-z-]+", str(name)), cell.source
        assert under(cell).get("caption"), name


@each
def test_what_a_live_figure_answers_is_folded(path: Path) -> None:
    """Its caption says what is drawn, at any setting; what to see at some is the answer."""
    for name, cell in FIGURES[path].items():
        if "figures.explore(" in cell.source:
            assert under(cell).get("answer"), name
            assert not SETTING.search(under(cell)["caption"]), name


@pytest.mark.slow
@each
def test_the_curves_of_every_live_figure_have_a_test(path: Path) -> None:
    live = [m[1] for c in cells(path) for m in re.finditer(r"figures\.explore\(\s*(\w+)", c.source)]
    names = written_tests(path)
    assert live and [name for name in live if f"test_fig_{name}" not in names] == []


#: Drawings of a network, without data.
DRAWINGS = {"fig-01-network", "fig-02-network"}


@pytest.mark.slow
@each
def test_what_every_other_figure_draws_has_a_test(path: Path) -> None:
    """It is compared under the figure's name, or under that of the function that draws it."""
    file = Path(__file__).with_name(f"test_chapter_{number(path)}.py")
    source, names = file.read_text("utf-8"), written_tests(path)
    untested = []
    for name, cell in FIGURES[path].items():
        drawn = re.search(r"figures\.show\(\s*(\w+)\(", cell.source)
        known = name in source or (drawn and any(f"test_fig_{drawn[1]}" in n for n in names))
        if "figures.show(" in cell.source and name not in DRAWINGS and not known:
            untested.append(name)
    assert untested == []


@each
def test_code_that_draws_stays_out_of_the_way(path: Path) -> None:
    drawing = [c for c in cells(path) if re.search(r"figures\.(show|explore)\(", c.source)]
    assert all("hide-input" in tags(c) for c in drawing)


@each
def test_there_are_two_citations(path: Path) -> None:
    assert len(set(roles(prose(path), r"cite(?::\w+)?"))) >= 2


@each
def test_the_chapter_closes_with_what_to_remember(path: Path) -> None:
    sections = re.findall(r"^## (.+)$", prose(path), re.M)
    assert sections[-2:] == ["Exercises", "Summary"]
    assert "**Where it fails.**" in prose(path) and "**Further reading.**" in prose(path)


@each
def test_the_reader_predicts_before_a_figure_moves(path: Path) -> None:
    assert ":class: sbn-predict" in prose(path)
