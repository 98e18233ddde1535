"""The back matter: what its tables say is there, complete, and where they say it is.

The pages are looked at as the build makes them (``sbn_back.expand``); what they list is found here
a second time, by the tests' own readers of chapters, notation and tests.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from chapters import BOOK, CHAPTERS, NOTEBOOKS, PAGES, cells, exercises, labels, roles
from chapters import equations as equations_of
from chapters import figures as figures_in
from chapters import prose as prose_of
from discovered import NOISES, OPTIM_FUNCTIONS, OPTIMIZERS, PROXIES
from formulas import list_table
from pins import pinned
from places import ROOT, SITE
from symbols import outside
from symbols import symbols as symbols_in

from sbnlib import registry

pytest.importorskip("sphinx")
sys.path.insert(0, str(BOOK / "ext"))
try:
    import sbn_back
    import sbn_cite
    import sbn_measurements
    import sbn_sources
finally:
    sys.path.pop(0)

MADE = ("solutions", "symbols", "paper-map", "ledger", "errata", "subject-index")
made = pytest.mark.parametrize("name", MADE)
PAPERS = sbn_back.read(ROOT, sbn_back.PAPERS)["paper"]
LEDGER = sbn_back.read(ROOT, sbn_back.LEDGER)
ROWS = [(paper["key"], row) for paper in PAPERS for row in paper["row"]]
KEYS = set(re.findall(r"^@\w+\{([^,\s]+)", (BOOK / "references.bib").read_text("utf-8"), re.M))
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")
COURSE = (BOOK / "back" / "course.md").read_text("utf-8")


prose = cache(prose_of)  # a notebook is read once
figures_of = cache(figures_in)


@cache
def pins() -> dict[str, list[str]]:
    return sbn_sources.pins(ROOT)


@cache
def page(name: str) -> str:
    """A page as it is read by Sphinx."""
    return sbn_back.expand((BOOK / "back" / f"{name}.md").read_text("utf-8"), ROOT)


@cache
def known() -> frozenset[str]:
    """Every label of the book, those of figures and solutions too."""
    written = {label for path in PAGES for label in labels(prose(path))}
    drawn = {name for path in NOTEBOOKS for name in figures_of(path) if name}
    solved = {f"{label}-solution" for path in CHAPTERS for label in exercises(prose(path))}
    return frozenset(written | drawn | solved | {"genindex"})


@cache
def live() -> frozenset[str]:
    """The figures with sliders."""
    return frozenset(name for path in NOTEBOOKS for name, cell in figures_of(path).items()
                     if name and "figures.explore(" in cell.source)  # fmt: skip


def is_a_test(name: str) -> bool:
    """Whether FILE::NAME, from tests/book or with a folder from tests, is a test."""
    file, _, function = name.partition("::")
    path = ROOT / "tests" / (file if "/" in file else f"book/{file}")
    return path.exists() and function in _functions(path)


@cache
def _functions(path: Path) -> frozenset[str]:
    body = ast.parse(path.read_text("utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))


def numbers(path: Path) -> int:
    return int(path.name[:2])


# --------------------------------------------------------------------------------- all pages


@pytest.mark.slow
@made
def test_every_block_is_made(name: str) -> None:
    assert "```{sbn-" not in page(name) and len(page(name)) > 2000


def test_every_generator_has_its_place() -> None:
    used = re.findall(r"^```\{(sbn-[\w-]+)\}$", "\n".join(
        (BOOK / "back" / f"{name}.md").read_text("utf-8") for name in MADE), re.M)  # fmt: skip
    assert sorted(used) == sorted(sbn_back.GENERATED)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MADE, "course"])
def test_every_reference_leads_somewhere(name: str) -> None:
    text = page(name)
    for role in ("eq", "ref", "numref", r"prf:ref"):
        assert set(roles(text, role)) <= known(), role
    assert set(roles(text, r"cite:\w")) <= KEYS
    reference = sbn_sources.documented(ROOT)
    assert {n for role in ("func", "class", "data", "exc") for n in roles(text, f"py:{role}")} \
        <= set(reference)  # fmt: skip
    dead = [to for to in LINK.findall(text) if to not in known() and not to.startswith("lab-")
            and not (BOOK / "back" / to).exists()]  # fmt: skip
    assert dead == []


@pytest.mark.parametrize("name", [*MADE, "course"])
def test_every_page_is_in_the_table_of_contents(name: str) -> None:
    assert f"file: book/back/{name}\n" in (ROOT / "_toc.yml").read_text("utf-8")


def test_a_wrong_label_is_named() -> None:
    with pytest.raises(sbn_back.Unmade, match="eq-99-nothing"):
        sbn_back.refer("eq-99-nothing", sbn_sources.labels(ROOT))


def test_the_labels_of_the_chapters_are_found_with_their_roles() -> None:
    found = sbn_sources.labels(ROOT)
    for path in CHAPTERS:
        text = prose(path)
        assert all(found[label] == "eq" for label in equations_of(text))
        assert all(found[label] == "ref" for label in exercises(text))
        assert all(found[label] == "numref" for label in figures_of(path))
    assert found["thm-06-exact"] == "prf:ref"


# --------------------------------------------------------------------------------- solutions


def test_every_exercise_and_its_solution_are_listed_in_order() -> None:
    text = page("solutions")
    written = [label for path in CHAPTERS for label in exercises(prose(path))]
    listed = re.findall(r"^\* - \{ref\}`([\w-]+)` \S", text, re.M)
    solved = re.findall(r"\{ref\}`solution <([\w-]+)-solution>`", text)
    assert listed == written == solved
    assert [int(k) for k in re.findall(r"^### \[(\d+)\. ", text, re.M)] == [*map(numbers, CHAPTERS)]


def test_the_kinds_and_levels_are_those_of_the_exercises() -> None:
    for chapter in sbn_sources.chapters(ROOT):
        for exercise in chapter.exercises:
            said = f"*{exercise.kind}[,;] {exercise.level}.*"
            pattern = re.escape(said).replace(r"\[,;\]", "[,;]")
            above = rf":label: {exercise.label}\n(?::[^\n]*\n)*{pattern}"
            assert re.search(above, chapter.words), exercise.label


# ----------------------------------------------------------------------------------- symbols


def test_every_symbol_of_the_notation_page_has_its_row() -> None:
    notation = (BOOK / "notation.md").read_text("utf-8")
    text = page("symbols")
    for symbol, *_, meaning in list_table(notation, "tab-symbols")[1:]:
        label = re.search(r"\(([\w-]+)\)=", meaning)[1]
        assert f"* - {symbol}\n" in text and f"({label})" in text
    for _, symbol, _ in list_table(notation, "tab-local")[1:]:
        assert f"* - {symbol}\n" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("symbol", "name"),
    [(r"$\sigma$", "sigma"), (r"$\mu=2p-1$", "mu"), (r"$\tau$", "tau"), (r"$L$", "L"),
     (r"$h(a)$", "h"), (r"$g$, $\hat g$", "hat g"), (r"$\beta$", "beta")],
)  # fmt: skip
def test_the_first_place_is_the_first(symbol: str, name: str) -> None:
    """Against the tests' own reader of formulas."""
    row = page("symbols").partition(f"* - {symbol}\n")[2].partition("\n* - ")[0]
    first = next(p for p in CHAPTERS if name in symbols_in(outside(prose(p))))
    assert f"../{first.relative_to(BOOK).as_posix()}" in row
    equation = roles(row, "eq")[-1]
    before = []
    for path in CHAPTERS:
        before += [(label, sbn_sources.chapters(ROOT)[numbers(path) - 1].equations[label])
                   for label in equations_in_order(path)]  # fmt: skip
    at = [label for label, _ in before].index(equation)
    has = [name in symbols_in(f"$${tex}$$") for _, tex in before]
    assert has[at] and not any(has[:at])


def equations_in_order(path: Path) -> list[str]:
    text = prose(path)
    place = {label: re.search(rf"\({label}\)|:label: {label}\n", text).start()
             for label in equations_of(text) if not label.startswith(("def", "cor"))}  # fmt: skip
    return sorted(place, key=place.get)


def test_names_of_the_library_lead_to_their_entries() -> None:
    assert "{py:func}`sbnlib.sample_sign`" in page("symbols")
    assert "{py:func}`sbnlib.exact_expectation`" in page("symbols")


# ------------------------------------------------------------------------------------ papers

#: The numbers of papers that were seen, and where (research notes): nothing else may stand there.
SEEN = {
    "shekhovtsov2021reintroducing": {"Section 1", "Section 3", "equations 12–14", "Proposition 1",
                                     "Figure 1", "Figures C6 and C7"},
    "shekhovtsov2020path": {"Section 4"},
    "shekhovtsov2021bias": {"Section 1"},
    "hubara2016binarized": {"Section 1.3"},
    "courbariaux2015binaryconnect": {"Algorithm 1"},
    "helwegen2019latent": {"Algorithm 1"},
    "meng2020training": {"Section 3", "table 1"},
}  # fmt: skip
NUMBER = re.compile(
    r"(?i)(?:sections?|equations?|figures?|propositions?|theorems?|algorithms?|tables?|lemmas?) "
    r"[A-C]?\d[\d.–]*(?: and [A-C]?\d[\d.]*)?"
)
row = pytest.mark.parametrize(("key", "entry"), ROWS, ids=[f"{k}-{i}" for i, (k, _) in
                                                           enumerate(ROWS)])  # fmt: skip


@pytest.mark.slow
@row
def test_a_row_of_the_paper_map_is_true(key: str, entry: dict[str, Any]) -> None:
    assert key in KEYS
    assert entry["here"] and set(entry["here"]) <= known()
    for name in entry.get("code", ()):
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))
    tests = sbn_back.tests_of(entry, pins())
    assert tests and all(map(is_a_test, tests)), tests
    assert entry["says"].endswith(".") and entry.get("differs", ".").endswith(".")


@row
def test_only_numbers_that_were_seen_stand_in_it(key: str, entry: dict[str, Any]) -> None:
    assert set(NUMBER.findall(entry.get("place", ""))) <= SEEN.get(key, set())
    assert not NUMBER.findall(entry["says"])


def test_a_number_is_found_in_whatever_form() -> None:
    assert NUMBER.findall("Section 3, equations 12–14, Figures C6 and C7, table 1") == [
        "Section 3", "equations 12–14", "Figures C6 and C7", "table 1",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_page_says_what_its_numbers_are_worth() -> None:
    assert "has its number here only if we have seen it" in page("paper-map")
    assert all(paper["seen"] for paper in PAPERS)


@pytest.mark.parametrize("entry", registry.ESTIMATORS.values(), ids=lambda e: e.name)
def test_every_estimator_is_on_the_paper_map(entry: registry.Entry) -> None:
    """Under each of its papers, with the function that it is."""
    base = inspect.unwrap(getattr(entry.function, "func", entry.function))
    for paper in entry.papers:
        code = {name for key, row_ in ROWS if key == paper for name in row_.get("code", ())}
        functions = {getattr(importlib.import_module("sbnlib"), name.rpartition(".")[2], None)
                     for name in code}  # fmt: skip
        assert base in functions, f"{entry.name} under {paper}"


def test_every_noise_and_every_optimizer_is_on_the_paper_map() -> None:
    code = {name.rpartition(".")[2] for _, entry in ROWS for name in entry.get("code", ())}
    updates = set(OPTIM_FUNCTIONS) - {"split", "FlipRatio"}  # the other two move nothing
    assert (set(NOISES) | set(OPTIMIZERS) | updates) - code == set()


@pytest.mark.slow
def test_every_slope_is_on_the_paper_map() -> None:
    text = page("paper-map")
    for proxy in PROXIES.values():
        what = f"$2f$ of `{proxy.noise!r}`" if proxy.noise else f"integral is {proxy.integral:.3g}"
        found = text.partition(f"`{proxy.name}`, {proxy.source}\n")[2].split("\n")
        assert found[0].strip() == f"- ${proxy.formula}$" and found[1].endswith(what)


@pytest.mark.slow
def test_the_test_of_a_label_is_the_first_that_carries_it() -> None:
    found = pins()
    files = sorted((ROOT / "tests" / "book").glob("test_*.py"))
    assert set(found) == {label for file in files for label in pinned(file)}
    for label, tests in found.items():
        assert all(map(is_a_test, tests)), label


# ------------------------------------------------------------------------------------ ledger

ENTRIES = LEDGER["number"] + LEDGER["other"]


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e["id"])
def test_an_entry_of_the_ledger_is_whole(entry: dict[str, str]) -> None:
    """That its number is right is for the test that it names, in test_ledger.py or elsewhere."""
    fields = {"id", "key", "place", "what", "see", "theirs", "ours", "verdict", "test"}
    assert set(entry) - {"error"} == fields and all(entry.values())
    assert entry["key"] in KEYS and entry["see"] in known()
    assert is_a_test(entry["test"])
    assert entry["ours"] in page("ledger") and entry["what"] in page("ledger")


def test_the_ledger_is_about_the_papers_of_the_subject_and_says_what_is_missing() -> None:
    subject = {p["key"] for p in PAPERS if p["group"] == "The papers of the subject"}
    assert {e["key"] for e in LEDGER["number"]} == subject
    assert {e["key"] for e in LEDGER["other"]}.isdisjoint(subject)
    assert subject <= {e["key"] for e in LEDGER["unseen"]} <= KEYS


# ------------------------------------------------------------------------- errata and changes


def test_every_erratum_is_on_the_page_with_its_version_and_places() -> None:
    _, found = sbn_sources.changes(ROOT)
    errata = (ROOT / "CHANGELOG.md").read_text("utf-8").partition("# Errata")[2]
    assert len(found) == len(re.findall(r"^- ", errata, re.M)) >= 7
    text = page("errata")
    for change in found:
        assert change.version and f"### In version {change.version}\n" in text
        assert " ".join(change.text.split()[-6:]) in text
        assert set(re.findall(r"`([a-z]+-\d\d-[\w-]+)`", change.text)) <= known()


def test_an_erratum_without_a_place_is_refused() -> None:
    with pytest.raises(sbn_back.Unmade, match="an erratum reads"):
        sbn_back._erratum("2026-11-28, chapter 6, a sign.", {})


def test_every_chapter_says_since_when_it_is_there() -> None:
    """Who adds a chapter adds it to the changes."""
    text = page("errata").partition("## Changes by page")[2]
    for chapter in sbn_sources.chapters(ROOT):
        own = text.partition(f"### [{chapter.number}. ")[2].partition("\n### ")[0]
        assert "New." in own, chapter.number


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("as it says (chapter 16).", {16}),
        ("chapters 1 to 3 (the problem), 6 (derived), 13 to 15 (weights), reference",
         {1, 2, 3, 6, 13, 14, 15}),
        ("New chapters: chapters 4, 5, 7 to 12 and 16 to 20.", {4, 5, *range(7, 13),
                                                                *range(16, 21)}),
        ("Chapter 14 has pictures; chapter 15 proves", {14, 15}),
        ("2026-11-28, chapters 6 and 15 (`fig-06-accuracy`). Five seeds", {6, 15}),
        ("the seven chapters teach 3 things", set()),
    ],
)  # fmt: skip
def test_the_chapters_that_a_change_names(words: str, found: set[int]) -> None:
    assert sbn_back.numbers_in(words) == found


def test_the_form_asks_for_what_the_page_says() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/erratum.yml").read_text("utf-8"))
    assert form["name"] == "Erratum" and "form *Erratum*" in page("errata")
    asked = {part["id"]: part for part in form["body"] if "id" in part}
    needed = {k for k, part in asked.items() if part.get("validations", {}).get("required")}
    assert needed == {"version", "page", "place", "printed", "right", "reason"}
    kinds = {"markdown", "input", "textarea", "checkboxes"}
    assert {part["type"] for part in form["body"]} == kinds


# ------------------------------------------------------------------------------------- index


@pytest.mark.slow
def test_every_word_of_the_glossary_is_in_the_index_with_its_chapters() -> None:
    glossary = (BOOK / "back" / "glossary.md").read_text("utf-8")
    text = page("subject-index")
    terms = re.findall(r"^\((gloss-[\w-]+)\)=\n\*\*([^*]+)\.\*\*", glossary, re.M)
    for label, name in terms:
        (line,) = re.findall(rf"^\* \[{re.escape(name)}\]\({label}\)(.*)$", text, re.M)
        leading = [numbers(p) for p in CHAPTERS if f"({label})" in prose(p)]
        assert [int(k) for k in re.findall(r"\[(\d+)\]", line)] == leading
    assert len(re.findall(r"\]\(gloss-", text)) == len(terms)


@pytest.mark.slow
def test_every_named_statement_is_in_the_index() -> None:
    text = page("subject-index").partition("## Statements")[2].partition("\n## ")[0]
    titles = [(m[1].strip(), m[2]) for path in CHAPTERS for m in re.finditer(
        r"\{prf:(?!proof)\w+\} ?([^\n]*)\n:label: (\S+)", prose(path))]  # fmt: skip
    names = {title for title, _ in titles if title}
    assert len(re.findall(r"^\* ", text, re.M)) == len([t for t, _ in titles if t]) >= len(names)
    for title, label in titles:
        assert not title or f"* {title}: {{prf:ref}}`{label}`\n" in text


def test_the_code_of_a_chapter_has_what_the_index_says() -> None:
    text = page("subject-index").partition("## The library in the chapters")[2]
    rows = re.findall(r"^\* - \{py:\w+\}`([\w.]+)`\n  - (.*)$", text, re.M)
    code = {numbers(p): "\n".join(c.source for c in cells(p)) for p in CHAPTERS}
    assert len(rows) > 60
    for name, where in rows:
        for number in map(int, re.findall(r"\[(\d+)\]", where)):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", code[number]), (name, number)
    listed = {name: re.findall(r"\[(\d+)\]", where) for name, where in rows}
    for number, source in code.items():
        for names in re.findall(r"^from sbnlib import (.+)$", source, re.M):
            for name in re.findall(r"\w+", names):
                if f"sbnlib.{name}" in sbn_sources.documented(ROOT):
                    assert str(number) in listed[f"sbnlib.{name}"]


# ------------------------------------------------------------------------------------ course

WEEKS = re.findall(r"^### Week (\d+) · .+?$(.*?)(?=^#)", COURSE, re.M | re.S)


def test_the_course_has_thirteen_weeks_and_five_days() -> None:
    assert [int(k) for k, _ in WEEKS] == list(range(1, 14))
    days = COURSE.partition("(course-days)=")[2].partition("(course-exams)=")[0]
    assert re.findall(r"^\| (\d) · ", days, re.M) == list("12345")


@pytest.mark.parametrize(("number", "text"), WEEKS)
def test_a_week_has_what_a_lecturer_needs(number: str, text: str) -> None:
    parts = dict(re.findall(r"^\* \*\*(Read|In class|Homework|Assess)\*\* (.*)$", text, re.M))
    assert list(parts) == ["Read", "In class", "Homework", "Assess"]
    assert set(roles(parts["In class"], "numref")) <= live()
    assert len([e for e in roles(parts["Homework"], "ref") if e.startswith("ex-")]) >= 3
    read = {int(k) for k in re.findall(r"/(\d\d)-[\w-]+\.ipynb", parts["Read"])}
    set_ = {int(e[3:5]) for e in roles(parts["Homework"], "ref")}
    assert set_ == read, "exercises of the chapters that are read"


def test_the_course_reads_every_chapter() -> None:
    read = {int(k) for _, text in WEEKS for k in re.findall(r"/(\d\d)-[\w-]+\.ipynb", text)}
    assert {*map(numbers, CHAPTERS)} - read <= {21, 22}  # named without a link


def test_sections_that_are_to_be_read_are_there() -> None:
    reading = [line for line in COURSE.splitlines() if line.startswith(("* **Read**", "| "))]
    for line in reading:
        for link, words in re.findall(r"\(\.\./([\w/-]+\.ipynb)\)((?:(?!\(\.\./).)*)", line):
            headings = re.findall(r"^###? (.+)$", prose(BOOK / link), re.M)
            for name in re.findall(r'"([^"]+)"', words):
                assert name in headings, (link, name)


def test_examples_of_the_lab_are_there() -> None:
    lab = (BOOK / "lab" / "lab.md").read_text("utf-8")
    named = {to for to in LINK.findall(COURSE) if to.startswith("lab-")}
    assert len(named) >= 8 and all(f"({name})=\n" in lab for name in named)


def test_what_moves_in_five_days_is_live() -> None:
    days = COURSE.partition("(course-days)=")[2].partition("(course-exams)=")[0]
    assert roles(days, "numref") and set(roles(days, "numref")) <= live()


def test_the_commands_of_the_projects_are_those_of_the_book() -> None:
    commands = re.findall(r"^python -m .+$", COURSE.replace(" \\\n    ", " "), re.M)
    howto = (BOOK / "how-to.md").read_text("utf-8")
    ours = {e.command for e in sbn_measurements.EXPERIMENTS}
    assert len(commands) == 3
    assert all(c in ours or f"\n{c}\n" in howto for c in commands)


def test_two_exams_of_questions_with_their_exercises() -> None:
    exams = COURSE.partition("(course-exams)=")[2].partition("(course-projects)=")[0]
    first, last = exams.partition("**At the end**")[::2]
    for sheet in (first, last):
        questions = re.findall(r"^\d+\. .*$", sheet, re.M)
        assert len(questions) >= 7
        assert all(set(roles(q, "ref")) & known() for q in questions)
    asked = {int(label[3:5]) for label in roles(first, "ref")}
    taught = {int(e[3:5]) for _, text in WEEKS[:7] for e in roles(text, "ref")}
    assert asked <= taught, "the first exam asks for what has been taught"


# ---------------------------------------------------------------------------------- citation


def test_a_chapter_s_citation_is_that_of_the_repository() -> None:
    database = pytest.importorskip("pybtex.database")
    found = sbn_cite.citation(ROOT)
    entry = sbn_cite.bibtex(found, 6, "Straight-through, derived", "2026", "https://example.org/x")
    (read,) = database.parse_string(entry, "bibtex").entries.values()
    assert read.type == "incollection"
    fields = {k: v.strip("{}") for k, v in read.fields.items()}
    assert fields == {
        "title": "Straight-through, derived", "booktitle": found["title"], "chapter": "6",
        "year": "2026", "note": f"Version {found['version']}", "url": "https://example.org/x",
    }  # fmt: skip
    people = read.persons["author"]
    assert [str(p).strip("{}") for p in people] == [a["name"] for a in found["authors"]]
    words = sbn_cite.sentence(found, 6, "Straight-through, derived", "2026", "")
    assert words == ("The authors of sbnlib (2026). Straight-through, derived. Chapter 6 of "
                     f"{found['title']}, version {found['version']}.")  # fmt: skip


def test_a_title_that_asks_is_cited_without_a_full_stop() -> None:
    found = sbn_cite.citation(ROOT)
    titles = {numbers(p): prose(p).partition("\n")[0].removeprefix("# ") for p in CHAPTERS}
    asking = {number: title for number, title in titles.items() if title.endswith("?")}
    assert asking.keys() == {3, 16}
    for number, title in asking.items():
        words = sbn_cite.sentence(found, number, title, "2026", "https://example.org/x")
        assert f"(2026). {title} Chapter {number} of " in words
        assert not re.search(r"[?!.][?!.]|[?!.] [?!.,]", words) and words.endswith("/x.")
        assert f"{{{{{title}}}}}" in sbn_cite.bibtex(found, number, title, "2026", "")


def test_people_are_cited_by_both_names() -> None:
    found = {"title": "T", "version": "1", "authors": [
        {"family-names": "Doe", "given-names": "Ann"}, {"name": "a group"}]}  # fmt: skip
    entry = sbn_cite.bibtex(found, 1, "A", "2026", "")
    assert "author    = {Ann Doe and {a group}}" in entry and "url" not in entry


def test_the_archive_s_record_is_that_of_the_repository() -> None:
    record = json.loads((ROOT / ".zenodo.json").read_text("utf-8"))
    found = sbn_cite.citation(ROOT)
    for field in ("title", "version", "keywords"):
        assert record[field] == found[field]
    assert record["creators"] == [{"name": a["name"]} for a in found["authors"]]
    assert record["license"] in found["license"] and "CC BY 4.0" in record["notes"]
    identifiers = {r["identifier"] for r in record["related_identifiers"]}
    (paper,) = found["references"]
    assert identifiers == {paper["doi"], paper["identifiers"][0]["value"]}
    assert record["upload_type"] == found["type"]


# ---------------------------------------------------------------------------------- the site


@pytest.mark.site
def test_every_chapter_of_the_site_says_how_to_cite_it() -> None:
    if not SITE.exists():
        pytest.skip("no built book: run `make book`")
    for path in CHAPTERS:
        built = SITE / path.relative_to(ROOT).with_suffix(".html")
        html = built.read_text("utf-8")
        assert html.count('<details class="sbn-cite">') == 1
        assert f"chapter   = {{{numbers(path)}}}" in html
        solved = set(re.findall(r'class="solution[^"]*" id="([\w-]+)-solution"', html))
        assert solved == set(exercises(prose(path)))
