"""The downloads of the site, opened: what they hold, and that they are of these pages.

Skipped where they have not been made; with SBN_REQUIRE_FORMATS=1 (as in .ci/run) that is a failure.
What `make formats` checks itself before it publishes is not asked again: here the files are held to
the sources, by other means.
"""

import functools
import io
import json
import os
import re
import sys
import tomllib
import xml.etree.ElementTree as ET
import zipfile

import nbformat
import pytest
from places import BOOK, ROOT, SITE
from visit import CHAPTERS, PAGES, html

sys.path.insert(0, str(ROOT / "book" / "tools"))

from formats import checks, pages, publish  # noqa: E402
from reliable import links  # noqa: E402

pytestmark = pytest.mark.site

NAME = "stochastic-binary-networks"
FOLDER = SITE / "downloads"
FILES = [
    f"{NAME}{end}"
    for end in (
        ".pdf", ".epub", "-html.zip", "-notebooks.zip", "-notebooks-without-solutions.zip",
        "-markdown.zip",
    )
]  # fmt: skip
HEADING = re.compile(r'<h1>((?:(?!<h1>).)*?)<a class="headerlink"', re.S)
LABEL = re.compile(r"^:label: ((?:thm|prop|def|cor|lem|ex)-\S+)$", re.M)
EQUATION = re.compile(r'<div class="math notranslate nohighlight" id="equation-([\w-]+)">')
NUMBER = re.compile(r'<span class="eqno">\(([\d.]+)\)')


@pytest.fixture(scope="module", autouse=True)
def made():
    if publish.made_from(SITE) != pages.digest(SITE):
        what = "no downloads of these pages: run `make formats`"
        pytest.fail(what) if os.environ.get("SBN_REQUIRE_FORMATS") == "1" else pytest.skip(what)


@functools.cache
def title(page):
    """The heading of a page as words."""
    return re.sub(r"<[^>]+>", "", HEADING.search(html(page))[1]).replace("&#39;", "’").strip()


@functools.cache
def labels(page):
    """The labels of theorems and exercises in the source of a page."""
    path = ROOT / f"{page}.ipynb"
    if not path.exists():
        return []
    cells = nbformat.read(path, as_version=4).cells
    return [label for c in cells if c.cell_type == "markdown" for label in LABEL.findall(c.source)]


@functools.cache
def archive(name):
    opened = zipfile.ZipFile(FOLDER / name)
    assert opened.testzip() is None
    return opened


# ---- the downloads -----------------------------------------------------------------------------


def test_every_download_is_there_whole_and_on_the_front_page():
    assert publish.broken(FOLDER) == []
    front = html(PAGES[0])
    for name in FILES:
        assert f'<a class="sbn-download" href="../downloads/{name}">' in front
    assert front.count('class="sbn-size"') == len(FILES) + 2
    assert not list(SITE.parent.glob("downloads.part-*"))


def test_no_download_is_listed_in_the_source_that_is_not_made():
    cells = nbformat.read(BOOK / "index.ipynb", as_version=4).cells
    named = set(re.findall(rf"`({NAME}[\w.-]+)`", "".join(c.source for c in cells)))
    assert named == set(FILES)


# ---- PDF ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pdf():
    from pypdf import PdfReader

    return PdfReader(FOLDER / f"{NAME}.pdf")


def starts(pdf):
    """The page, counted from 0, on which each entry of the outline's first level is."""
    return {
        " ".join(entry.title.split()): pdf.get_destination_page_number(entry)
        for entry in pdf.outline
        if not isinstance(entry, list)
    }


def test_every_page_of_the_book_begins_a_page_of_the_pdf(pdf):
    found = starts(pdf)
    for page in PAGES:
        heading = title(page)
        text = " ".join(pdf.pages[found[heading]].extract_text().split())
        assert heading.replace(" ", "") in text.replace(" ", ""), heading


def test_the_contents_name_the_page_of_everything(pdf):
    found = starts(pdf)
    end = found[title(PAGES[0])]
    given = []
    for page in pdf.pages[1:end]:
        numbers = [int(n) for n in re.findall(r"^(\d+)$", page.extract_text(), re.M)]
        given += [n for n in numbers if n > pdf.get_page_number(page) + 1]
    assert given == sorted(k + 1 for name, k in found.items() if name != "Contents")[-len(given) :]
    assert len(given) >= len(PAGES) + len(CHAPTERS)


def test_the_pdf_is_a_book(pdf):
    first = pdf.pages[0].extract_text()
    version = json.dumps(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])
    assert re.search(r"Version ([\d.]+)", first)[1] in version
    assert len(pdf.pages) > 15 * len(CHAPTERS)
    assert {tuple(map(round, page.mediabox[2:])) for page in pdf.pages} == {(595, 842)}
    assert pdf.trailer["/Root"]["/MarkInfo"]["/Marked"], "tags for screen readers"
    day = pages.date_of().replace("-", "")
    assert pdf.metadata["/CreationDate"] == f"D:{day}000000Z"
    assert "Chrome" not in str(pdf.metadata)


def test_links_lead_from_chapter_to_chapter(pdf):
    places = checks.places(pdf)
    found = starts(pdf)
    begin, end = found[title(CHAPTERS[1])], found[title(CHAPTERS[2])]
    leads = {
        places[str(link.get_object()["/Dest"]).lstrip("/")]
        for page in pdf.pages[begin:end]
        for link in page.get("/Annots", ())
        if "/Dest" in link.get_object()
    }
    assert any(k <= begin for k in leads) and any(k > end for k in leads)


def test_no_half_of_a_page_is_white_without_a_cause(pdf):
    """A page with little text ends a chapter, or holds a figure or makes room for one.

    Of every fourth page: to take the text of all of them takes half a minute.
    """
    begins, last = set(starts(pdf).values()), len(pdf.pages) - 1
    seen = [k for k in range(4, last, 4) if k + 1 not in begins]
    texts = {k: pdf.pages[k].extract_text() for k in seen}
    little = [k for k in seen if len(texts[k]) < 350 and "Figure" not in texts[k]]
    bare = [k for k in little if "Figure" not in pdf.pages[k + 1].extract_text()]
    assert len(bare) <= len(seen) // 50, bare


# ---- EPUB --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def epub():
    return archive(f"{NAME}.epub")


def test_the_epub_says_what_it_offers_to_those_who_do_not_see(epub):
    package = epub.read("EPUB/book.opf").decode()
    for word in ("accessMode", "accessModeSufficient", "accessibilityHazard", "MathML"):
        assert f'<meta property="schema:{word}">' in package or f">{word}</meta>" in package
    assert pages.date_of() in package


def test_every_formula_of_the_site_is_mathml_with_its_tex(epub):
    inside = "".join(epub.read(n).decode() for n in epub.namelist() if n.endswith(".xhtml"))
    of_site = sum(len(re.findall(r'class="math notranslate', html(page))) for page in PAGES)
    assert inside.count("<math ") == inside.count("</math>") >= of_site
    assert inside.count(" alttext=") == inside.count("<math ")
    assert "<merror" not in inside


@pytest.mark.parametrize("page", CHAPTERS)
def test_every_figure_of_a_chapter_has_its_caption_and_its_words(epub, page):
    key = "p-" + page.removeprefix("book/").replace("/", "-")
    tree = ET.fromstring(epub.read(f"EPUB/{key}.xhtml"))
    figures = list(tree.iter(f"{checks.XHTML}figure"))
    assert len(figures) == html(page).count("<figure")
    for figure in figures:
        (image,) = figure.iter(f"{checks.XHTML}img")
        assert len(image.get("alt")) > 20
        caption = " ".join(
            "".join(next(figure.iter(f"{checks.XHTML}figcaption")).itertext()).split()
        )
        assert re.match(r"Figure \d+\.\d+ \S", caption)
        ET.fromstring(epub.read(f"EPUB/{image.get('src')}")) if image.get("src").endswith(
            "svg"
        ) else 0


# ---- Markdown ----------------------------------------------------------------------------------


def test_links_of_the_markdown_are_sought_in_the_files_of_its_pages():
    """The folder in which the archive has them is none of their names."""
    (name,) = (name for name in FILES if name.endswith("-markdown.zip"))
    assert set(links.texts(FOLDER / name)) == {f"{page}.md" for page in PAGES}


@pytest.mark.parametrize("page", CHAPTERS)
def test_the_markdown_has_every_theorem_exercise_equation_and_solution(page):
    text = (FOLDER / "markdown" / f"{page}.md").read_text("utf-8")
    missing = [label for label in labels(page) if f'<a id="{label}"></a>' not in text]
    assert labels(page) and not missing
    exercises = [label for label in labels(page) if label.startswith("ex-")]
    assert len(re.findall(r"> \*\*Solution to \[Exercise", text)) == len(exercises)
    assert [f"\\tag{{{n}}}" for n in NUMBER.findall(html(page))] == re.findall(
        r"\\tag\{[\d.]+\}", text
    )
    assert not re.search(r"^:::|^```\{|\{(?:eq|numref|ref|cite:\w|prf:ref)\}`", text, re.M)
    assert text.count("*Picture:* ") >= html(page).count('class="sbn-figure')
    assert re.search(r"^```text\n", text, re.M), "what a cell printed"


def test_the_indexes_for_language_models_lead_to_every_page():
    index = (SITE / "llms.txt").read_text("utf-8")
    leads = re.findall(r"\]\((downloads/\S+?)\): \S", index)
    assert leads == [f"downloads/markdown/{page}.md" for page in PAGES]
    assert all((SITE / lead).exists() for lead in leads)
    whole = (SITE / "llms-full.txt").read_text("utf-8")
    assert all(f"# {title(page)}" in whole for page in PAGES)
    names = archive(f"{NAME}-markdown.zip").namelist()
    assert {f"{NAME}-markdown/{page}.md" for page in PAGES} < set(names)


# ---- notebooks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_has_its_exercises_in_both_archives_and_its_solutions_in_one(page):
    name = f"{NAME}/notebooks/{page.removeprefix('book/')}.ipynb"
    both = nbformat.reads(archive(FILES[3]).read(name), as_version=4)
    course = nbformat.reads(archive(FILES[4]).read(name), as_version=4)
    answers = [label for label in labels(page) if label.startswith("ex-")]
    for notebook in (both, course):
        nbformat.validate(notebook)
        assert {f"{label}-answer" for label in answers} <= {cell.id for cell in notebook.cells}
    solved = {cell.id for cell in both.cells} - {cell.id for cell in course.cells}
    assert {f"{label}-solution" for label in answers} <= solved
    assert not any("solution" in c.metadata.get("tags", []) for c in course.cells)
    kept = [c for c in both.cells if "checker" in c.metadata.get("tags", [])]
    assert {c.id for c in kept} <= {c.id for c in course.cells}


def test_the_archives_have_what_the_notebooks_need():
    for name in FILES[3:5]:
        opened = archive(name)
        names = opened.namelist()
        (wheel,) = (n for n in names if n.endswith(".whl"))
        inside = zipfile.ZipFile(io.BytesIO(opened.read(wheel))).namelist()
        assert "sbnlib/__init__.py" in inside and "sbnlib/map/sbn-map-1-results.json" in inside
        stored = {n.rpartition("/")[2] for n in names if "/book/measurements/" in n}
        assert stored == {p.name for p in (BOOK / "measurements").iterdir()}
        assert wheel.rpartition("/")[2] in opened.read(f"{NAME}/README.md").decode()


# ---- the site ----------------------------------------------------------------------------------


def test_the_archive_of_the_site_has_every_page_and_what_they_load():
    names = set(archive(FILES[2]).namelist())
    assert {f"{NAME}-html/{page}.html" for page in PAGES} < names
    static = {p.relative_to(SITE).as_posix() for p in (SITE / "_static").rglob("*") if p.is_file()}
    assert {f"{NAME}-html/{name}" for name in static} < names
    assert not any("/downloads/" in name for name in names)
