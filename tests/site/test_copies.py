"""The copies for JupyterLab and for download, as files: nothing raw, nothing lost, nothing dead."""

import functools
import re
from collections import Counter
from html import unescape
from pathlib import Path
from urllib.parse import urldefrag

import lab
import nbformat
import pytest
from places import ROOT, SITE
from visit import PAGES, html

pytestmark = [pytest.mark.site, pytest.mark.usefixtures("site")]

ONLY_ON_THE_SITE = {"book/back/api", "book/back/measurements", "book/lab/lab"}
COPIED = [page for page in PAGES if page not in ONLY_ON_THE_SITE]
every_copy = pytest.mark.parametrize("page", COPIED)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")
ROLE = re.compile(r"\{[\w:]+\}`[^`]+`")
BOX = r"(?:Theorem|Proposition|Corollary|Definition|Lemma|Exercise) [\d.]+\d"
#: Fences with a directive, options, labels: what is not text.
MYST = re.compile(
    r"^ *[:`]{3,}(?:\{(?:div|grid|solution|solution-\w+)\}.*|\{[\w:-]+\})?|^ *:[\w-]+:.*$"
    r"|\([\w-]+\)=|(?<=\$\$) \([\w-]+\)",
    re.M,
)
CODE = re.compile(r"^ *```.*?^ *```$|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", re.S | re.M)


@functools.cache
def read(path):
    return nbformat.read(path, as_version=4).cells


def copy(page):
    return lab.MADE / f"{page.removeprefix('book/')}.ipynb"


def source(page):
    path = ROOT / f"{page}.ipynb"
    return read(path) if path.exists() else [nbformat.v4.new_markdown_cell(words_of(page))]


def words_of(page):
    text = (ROOT / f"{page}.md").read_text("utf-8")
    return re.sub(r"^```\{bibliography\}.*?^```$", "", text, flags=re.S | re.M)


def markdown(cells):
    return "\n\n".join(c.source for c in cells if c.cell_type == "markdown")


def tagged(cells, tag):
    return [c for c in cells if tag in c.metadata.get("tags", [])]


def test_every_page_but_those_that_sphinx_draws_has_a_copy():
    found = {p.relative_to(lab.MADE).as_posix() for p in lab.MADE.rglob("*.ipynb")}
    assert found == {f"{page.removeprefix('book/')}.ipynb" for page in COPIED}


#: What a copy puts before the caption in the code of a figure, so that it stays when that runs.
NUMBER = re.compile(r'(?<=caption=")Figure \d+(?:\.\d+)?\. ')


@every_copy
def test_nothing_is_raw(page):
    text = CODE.sub("", markdown(read(copy(page))))
    assert not re.findall(r":::|^ *```\{|\{[\w:-]+\}|^\([\w-]+\)=|\$|^:\w+:|<svg", text, re.M)
    formulas = re.findall(r"\$\$.*?\$\$(?: \([\w-]+\))?", markdown(read(copy(page))), re.S)
    assert not [f for f in formulas if f.endswith(")") or "\n\n" in f]


@every_copy
def test_code_is_the_same(page):
    kept = [c for c in read(copy(page)) if c.cell_type == "code" and "answer" not in tags(c)]
    given = [c for c in source(page) if c.cell_type == "code"]
    assert [(c.id, NUMBER.sub("", c.source)) for c in kept] == [(c.id, c.source) for c in given]
    drawing = [c for c in kept if c.metadata.get("mystnb", {}).get("figure")]
    assert all(len(NUMBER.findall(c.source)) == 1 for c in drawing)
    for k, g in zip(kept, given, strict=True):
        printed = [o.text for o in g.outputs if o.output_type == "stream"]
        assert [o.text for o in k.outputs if o.output_type == "stream"] == printed


def tags(cell):
    return cell.metadata.get("tags", [])


@every_copy
def test_no_word_is_lost(page):
    """Every word of the source is in the copy as often as there; references may say more."""
    text = MYST.sub(" ", ROLE.sub(" ", markdown(source(page))))
    lost = words(text) - words(markdown(read(copy(page))))
    assert not lost


def words(text):
    """Without tags; a sign of comparison in a formula opens none."""
    text = re.sub(r"<svg.*?</svg>", " ", text, flags=re.S)
    text = re.sub(r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>", " ", LINK.sub(r"\1", text))
    return Counter(re.findall(r"\w+", text))


@every_copy
def test_links_lead_to_cells_and_anchors(page):
    dead = []
    for _, target in LINK.findall(CODE.sub("", markdown(read(copy(page))))):
        if "://" in target:
            continue
        name, fragment = urldefrag(target)
        path = copy(page).parent / name
        ids = anchors(path) if path.exists() else set()
        if not path.exists() or fragment and fragment not in ids:
            dead.append(target)
    assert not dead


def anchors(path):
    cells = read(path)
    named = re.findall(r'<a id="([\w-]+)"></a>', markdown(cells))
    return {f"cell-id={c.id}" for c in cells} | set(named)


@every_copy
def test_numbers_are_those_of_the_site(page):
    """Of equations, boxes and exercises, sections and figures: the site's HTML says them."""
    text, site = markdown(read(copy(page))), html(page)
    tags = re.findall(r"\\tag\{([\d.]+)\}", text)
    assert tags == re.findall(r'<span class="eqno">\(([\d.]+)\)', site)
    boxes = re.findall(
        r'<span class="caption-number">((?!Figure|Table)[A-Z]\w+ [\d.]+) ?</span>', site
    )
    named = r"^(?:### |\*\*)((?:Theorem|Proposition|Corollary|Definition|Lemma|Exercise) [\d.]*\d)"
    assert re.findall(named, text, re.M) == boxes
    sections = re.findall(r'<h[12]><span class="section-number">([\d.]+\.) ?</span>', site)
    assert re.findall(r"^##? (\d[\d.]*\.) ", text, re.M) == sections
    figures = re.findall(r'<span class="caption-number">(Figure [\d.]*\d) ?</span>', site)
    assert re.findall(r"<b>(Figure [\d.]*\d)\.</b>", str(read(copy(page)))) == figures


@every_copy
def test_figures_are_pictures(page):
    given = [o for c in source(page) for o in c.get("outputs", []) if "data" in o]
    kept = [o for c in read(copy(page)) for o in c.get("outputs", []) if "data" in o]
    assert len(kept) == len(given)
    for output in kept:
        shown = output.data["text/html"]
        assert re.match(r'<figure style="[^"]*"><img alt="[^"]{20,}" src="data:image/', shown)
        assert not re.search(r"<script|<svg|<style|image/svg\+xml\"", shown)


@every_copy
def test_exercises_have_an_answer_cell_and_a_folded_solution(page):
    cells = read(copy(page))
    ids = [c.id for c in cells]
    exercises = re.findall(r":::\{exercise\}.*\n:label: (\S+)", markdown(source(page)))
    for label in exercises:
        inside = cells[ids.index(label) + 1 : ids.index(f"{label}-solution")]
        assert inside[-1].id == f"{label}-answer" and inside[-1].source == ""
        assert all("checker" in tags(c) for c in inside[:-1])
        heading, *rest = cells[ids.index(f"{label}-solution") :]
        assert heading.metadata == {"jp-MarkdownHeadingCollapsed": True}
        assert heading.source.startswith("#### Solution to Exercise ")
        assert rest[0].cell_type == "markdown" and not rest[0].source.startswith("#")


@every_copy
def test_what_the_site_hides_is_folded(page):
    cells = read(copy(page))
    for tag in ("hide-input", "remove-input", "checker"):
        assert all(c.metadata["jupyter"]["source_hidden"] for c in tagged(cells, tag))
    for cell in tagged(cells, "hide-output"):
        assert cell.metadata["jupyter"]["outputs_hidden"]


@every_copy
def test_download_is_the_copy_without_links_to_other_files(page):
    path = SITE / "_sources" / f"{page}.ipynb"
    if not (ROOT / f"{page}.ipynb").exists():
        assert not path.exists()
        return
    alone, beside = read(path), read(copy(page))
    assert [c.id for c in alone] == [c.id for c in beside]
    targets = {urldefrag(t)[0] for _, t in LINK.findall(CODE.sub("", markdown(alone)))}
    assert {t for t in targets if "://" not in t} <= {Path(page).name + ".ipynb"}
    assert words(markdown(alone)) == words(markdown(beside))
    assert f'href="{"../" * page.count("/")}_sources/{page}.ipynb"' in unescape(html(page))
