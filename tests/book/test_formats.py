"""The tools of `make formats`, on small pages: what they write, refuse and publish."""

import io
import re
import shutil
import sys

import nbformat
import pytest
from bs4 import BeautifulSoup
from places import ROOT

sys.path.insert(0, str(ROOT / "book" / "tools"))

from formats import (  # noqa: E402
    browser,
    checks,
    command,
    copies,
    epub,
    markdown,
    notebooks,
    packing,
    pages,
    pdf,
    publish,
)
from formats.pages import FormatError  # noqa: E402

PAGE = (
    '<html><article class="bd-article"><section id="{id}"><h1>{title}</h1>{body}</section>'
    "</article></html>"
)
TOC = """root: book/index
parts:
  - caption: Part
    chapters:
      - file: book/01-one
      - file: book/back
"""
CITATION = 'title: "A Book: about bits"\nversion: 1.2.3\nauthors: [{name: the authors}]\n'
BODY = """<p>See <a href="01-one.html#thm-a">Theorem 1.1</a>, \\(x<1\\).</p>
<div class="proof theorem admonition" id="thm-a"><p class="admonition-title">Theorem 1.1 (Bits)</p>
<section><p>If <span class="math">\\(a_i\\)</span> then</p>
<div class="math" id="equation-eq-a"><span class="eqno">(1.1)<a class="headerlink" href="#">#</a>
</span>\\[b\\]</div>
</section></div>"""
EXERCISE = """<div class="exercise admonition" id="ex-a">
<p class="admonition-title">Exercise 1.1</p>
<section><p>Do it.</p></section></div>
<div class="solution dropdown admonition" id="s-a">
<p class="admonition-title">Solution to<a href="#ex-a"> Exercise 1.1</a></p><p>Done.</p></div>"""


@pytest.fixture
def root(tmp_path):
    """A repository of three pages, built."""
    (tmp_path / "_toc.yml").write_text(TOC, "utf-8")
    (tmp_path / "CITATION.cff").write_text(CITATION, "utf-8")
    site = tmp_path / "_build" / "html"
    (site / "book").mkdir(parents=True)
    (site / "index.html").write_text("to the front page", "utf-8")
    names = f"<p>{publish.NAME.format('stochastic-binary-networks.pdf')}</p>"
    write(tmp_path, "index", "A Book", names)
    write(tmp_path, "01-one", '<span class="section-number">1. </span>One', BODY + EXERCISE)
    write(tmp_path, "back", "Back", "<p>End.</p>")
    return tmp_path


def write(root, name, title, body):
    path = root / "_build" / "html" / "book" / f"{name}.html"
    path.write_text(PAGE.format(id=name, title=title, body=body), "utf-8")


def book_of(root):
    return pages.read(root / "_build" / "html", root)


@pytest.fixture
def make(root, monkeypatch):
    """make(): all formats but what needs pip or a browser, and what it said."""
    archive = epub.zipped({"a": b""})
    monkeypatch.setattr(
        notebooks, "archives", lambda *_: {"with.zip": archive, "without.zip": archive}
    )
    monkeypatch.setattr(checks, "notebooks", lambda *_: iter(()))
    monkeypatch.setattr(checks, "pdf", lambda *_: iter(()))
    monkeypatch.setattr(pdf, "html", lambda *_: "")
    monkeypatch.setattr(pdf, "finished", lambda *_: b"a PDF")
    cover = b"\x89PNG"

    def print_book(html, copy):
        mathml = [f"<math><mi>{k}</mi></math>" for k in range(len(copy.formulas))]
        mathml = [
            m.replace("<math>", '<math xmlns="http://www.w3.org/1998/Math/MathML">') for m in mathml
        ]
        return browser.Printed(b"", mathml, cover)

    monkeypatch.setattr(browser, "print_book", print_book)
    pygments = root / "_build" / "html" / "_static" / "pygments.css"
    pygments.parent.mkdir()
    pygments.write_text("", "utf-8")
    return lambda **given: command.make(root / "_build" / "html", root, say=lambda _: None, **given)


def downloads(root):
    folder = root / "_build" / "html" / "downloads"
    return (
        {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} if folder.exists() else {}
    )


# ---- reading -----------------------------------------------------------------------------------


def test_a_page_has_its_chapter_its_part_and_no_screen_in_it(root):
    found = book_of(root)
    assert [(p.number, p.title, p.part) for p in found.pages] == [
        ("", "A Book", ""), ("1", "One", "Part"), ("", "Back", "Part")]  # fmt: skip
    assert (found.title, found.subtitle, found.version) == ("A Book", "About bits", "1.2.3")
    assert found.pages[1].body.select("a.headerlink") == []
    assert found.pages[1].body.p.select_one(".math").get_text() == "\\(x<1\\)"


def test_a_figure_keeps_the_letters_of_its_svg_and_its_words(root):
    frame = '<div role="img" aria-label="A &quot;curve&quot;" class="sbn-frame">{}</div>'
    svg = '<svg viewBox="0 0 9 9"><clipPath id="c"></clipPath></svg>'
    panel = (
        '<div class="sbn-panel">a slider</div><script>later(\'<svg viewBox="1"></svg>\')</script>'
    )
    note = '<noscript><p class="sbn-note">Shown: a = 1. The sliders need JavaScript.</p></noscript>'
    write(root, "back", "Back", f"<figure>{frame.format(svg)}{panel}{note}</figure>")
    page = book_of(root).pages[2]
    (picture,) = page.pictures
    assert "viewBox" in picture.svg and "clipPath" in picture.svg and "xmlns=" in picture.svg
    assert picture.alt == 'A "curve"'
    assert page.body.figure.get_text() == "Shown: a = 1."


def test_the_day_is_that_of_the_sources(root, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert book_of(root).date == "1970-01-02"
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert pages.date_of(root / "nowhere") == ""


@pytest.mark.parametrize("name", ["index.html", "book/back.html"])
def test_what_is_not_built_is_named(root, name):
    (root / "_build" / "html" / name).unlink()
    with pytest.raises(FormatError, match="(no built book|book/back: the built site).*make book"):
        book_of(root)


# ---- on paper ----------------------------------------------------------------------------------


def test_solutions_stand_behind_the_last_chapter_and_exercises_lead_there(root):
    copy = copies.for_paper(book_of(root))
    names = [p.name for p in copy.book.pages]
    assert names == ["book/index", "book/01-one", "solutions/01-one", "book/back"]
    chapter, solutions = copy.book.pages[1:3]
    assert not chapter.body.select(".solution") and solutions.title == "Solutions to chapter 1"
    to = chapter.body.select_one(".to-solution a")["href"][1:]
    assert copy.places[to] is solutions
    back = solutions.body.select_one(".admonition-title a")["href"][1:]
    assert copy.places[back] is chapter
    assert [f.tex for f in copy.formulas] == ["x<1", "a_i", "b"]
    assert [f.display for f in copy.formulas] == [False, False, True]


def test_code_that_is_folded_is_left_out_and_a_folded_proof_stands_open(root):
    cell = '<div class="cell"><details class="hide above-input">{}</details>{}</div>'
    body = cell.format("<pre>plot()</pre>", "") + cell.format("<pre>plot()</pre>", "<pre>out</pre>")
    body += (
        "<details class='sd-dropdown'><summary><span>Why</span></summary><p>Since.</p></details>"
    )
    write(root, "back", "Back", body)
    page = copies.for_paper(book_of(root)).book.pages[-1]
    assert page.body.get_text() == "BackoutWhySince."
    assert page.body.select("details") == [] and page.body.select_one(".fold-title").text == "Why"


def test_a_link_that_leads_nowhere_is_named_with_its_page(root):
    write(root, "back", "Back", '<p><a href="01-one.html#thm-b">there</a></p>')
    with pytest.raises(FormatError, match="book/back: no book/01-one#thm-b for the link “there”"):
        copies.for_paper(book_of(root))


def test_packing_keeps_every_object(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter()
    for k in range(3):
        writer.add_blank_page(100 + k, 200)
    writer.add_metadata({"/Title": "t"})
    out = io.BytesIO()
    writer.write(out)
    before = out.getvalue()
    objects = packing.objects(before)
    packed = packing.pack(objects, packing.root_of(before), 1)
    reader = pypdf.PdfReader(io.BytesIO(packed), strict=True)
    assert [page.mediabox.width for page in reader.pages] == [100, 101, 102]
    assert packing.pack(objects, packing.root_of(before), 1) == packed
    with pytest.raises(FormatError, match="no table of objects"):
        packing.objects(before[:-40])


@pytest.mark.parametrize(
    ("variant", "text", "shown"),
    [("double-struck", "E", "𝔼"), ("double-struck", "R", "ℝ"), ("script", "L", "ℒ"),
     ("script", "C", "𝒞"), ("bold", "1", "𝟏"), ("monospace", "last", "𝚕𝚊𝚜𝚝")],
)  # fmt: skip
def test_letters_of_other_alphabets_are_signs_of_unicode(variant, text, shown):
    """Browsers leave such a mathvariant out, so that an expectation would be a plain E."""
    mathml = f'<math data-x="1" xmlns="m"><mi mathvariant="{variant}">{text}</mi></math>'
    assert (
        epub.formula(mathml, "<x>")
        == f'<math alttext="&lt;x&gt;" xmlns="m"><mi>{shown}</mi></math>'
    )


def test_the_style_of_the_epub_is_one_that_older_readers_parse():
    """They drop a whole rule, and epubcheck an EPUB, for a selector that they do not know."""
    assert not re.findall(r":(?:is|where|has)\(", pdf.css("book") + pdf.css("epub"))


# ---- Markdown ----------------------------------------------------------------------------------


def markdown_of(root, body):
    write(root, "back", "Back", body)
    return markdown.pages(book_of(root))["book/back.md"].removeprefix("# Back\n\n").strip()


def test_theorems_exercises_and_solutions_are_in_the_markdown(root):
    text = markdown.pages(book_of(root))["book/01-one.md"]
    assert text.startswith("# 1. One\n\nSee [Theorem 1.1](#thm-a), $x<1$.")
    assert '<a id="thm-a"></a>\n\n> **Theorem 1.1 (Bits)**\n> \n> If $a_i$ then' in text
    assert "> $$\n> b\n> \\tag{1.1}\n> $$" in text
    assert '<a id="ex-a"></a>\n\n> **Exercise 1.1**\n> \n> Do it.' in text
    assert "> **Solution to [Exercise 1.1](#ex-a)**\n> \n> Done." in text


@pytest.mark.parametrize(
    ("html", "written"),
    [
        ("<p>2 * 3_4 <em>is</em> <code>a`b</code></p>", "2 \\* 3\\_4 *is* `` a`b ``"),
        ("<ul><li><p>a</p><ol start='3'><li>b</li></ol></li></ul>", "- a\n\n  3. b"),
        ("<div class='highlight-ipython3'><div class='highlight'><pre>x = 1\n</pre></div></div>",
         "```python\nx = 1\n```"),
        ("<table><thead><tr><th>a</th></tr></thead><tr><td><p>b|c</p><p>d</p></td></tr></table>",
         "| a |\n| --- |\n| b\\|c<br>d |"),
        ("<dl><dt>t</dt><dd><p>one</p><p>two</p></dd></dl>", "- **t**\n\n  one\n\n  two"),
        ("<p><a href='../_downloads/x.json'>a file</a></p>", "a file"),
        ("<p><a href='https://e.org/x'>out</a></p>", "[out](https://e.org/x)"),
    ],
)  # fmt: skip
def test_markdown(root, html, written):
    assert markdown_of(root, html) == written


def test_the_index_has_a_line_a_page(root):
    text = markdown.index(book_of(root), "there/")
    assert "## Part\n\n- [1. One](there/book/01-one.md): See Theorem 1.1, $x<1$." in text


# ---- notebooks ---------------------------------------------------------------------------------


def notebook(*sources):
    cells = [nbformat.v4.new_code_cell(s[1:]) if s[0] == ">" else nbformat.v4.new_markdown_cell(s)
             for s in sources]  # fmt: skip
    for k, cell in enumerate(cells):
        cell.id = f"c{k}"
    return nbformat.v4.new_notebook(cells=cells)


def test_a_solution_goes_and_what_follows_it_stays():
    found = notebook(
        "### Exercise 1.1\n[as above](#cell-id=c2), [here](#cell-id=c0)",
        "#### Solution to Exercise 1.1", "Because.", ">answer = 1",
        "### Exercise 1.2", "#### Solution to Exercise 1.2", "So.",
        "## 1.2. Summary", ">try:\n    1\nexcept E as e:\n    e\nimport a.b as c, d.e\nE = c, d",
    )  # fmt: skip
    made = notebooks.without_solutions({"a.ipynb": found})["a.ipynb"]
    assert [c.id for c in made.cells] == ["c0", "c4", "c7", "c8"]
    assert made.cells[0].source == "### Exercise 1.1\nas above, [here](#cell-id=c0)"
    assert len(found.cells) == 9


def test_a_name_that_only_a_solution_gives_is_named():
    found = notebook("### E", "#### Solution to E", ">answer = 1", "## Next", ">print(answer)")
    with pytest.raises(FormatError, match="without solutions: a.ipynb needs answer"):
        notebooks.without_solutions({"a.ipynb": found})


# ---- all of them, or none ----------------------------------------------------------------------


def test_everything_is_published_and_the_front_page_leads_there(root, make):
    assert make() == []
    site = root / "_build" / "html"
    assert publish.broken(site / "downloads") == []
    front = (site / "book" / "index.html").read_text("utf-8")
    assert '<a class="sbn-download" href="../downloads/stochastic-binary-networks.pdf">' in front
    assert "(5 B)" in front or "(0 kB)" in front
    assert (site / "llms.txt").exists() and (site / "llms-full.txt").exists()
    assert publish.made_from(site) == pages.digest(site, root), "links do not count as a change"
    assert make() == [] and (site / "book" / "index.html").read_text("utf-8") == front


def test_a_second_build_of_the_same_pages_needs_no_new_formats(root):
    """It knows the checksums of files that a first build makes only after the pages."""
    site = root / "_build" / "html"
    page = next(p for p in site.glob("book/**/*.html") if p.name != "index.html")
    page.write_text('<script src="tips.js"></script>' + page.read_text("utf-8"), "utf-8")
    first = pages.digest(site, root)
    text = page.read_text("utf-8")
    page.write_text(text.replace('"tips.js"', '"tips.js?v=bed3e1f5"'), "utf-8")
    assert pages.digest(site, root) == first
    page.write_text(text + "a word", "utf-8")
    assert pages.digest(site, root) != first


def test_a_build_that_changes_nothing_gets_its_links_back_and_another_does_not(root, make):
    make()
    site = root / "_build" / "html"
    front = site / "book" / "index.html"
    linked = front.read_bytes()
    front.write_bytes(publish.unlinked(linked))
    assert command.link(site, root) == 0 and front.read_bytes() == linked
    front.write_bytes(publish.unlinked(linked))
    write(root, "back", "Back", "<p>Another end.</p>")
    assert command.link(site, root) == 0 and front.read_bytes() == publish.unlinked(linked)


def test_the_archive_of_the_site_has_a_front_page_without_the_other_downloads(root, make):
    make()
    make(again=True)
    archive = checks.zipfile.ZipFile(
        io.BytesIO(downloads(root)["stochastic-binary-networks-html.zip"])
    )
    assert not any("downloads" in name for name in archive.namelist())
    front = archive.read("stochastic-binary-networks-html/book/index.html").decode()
    assert "sbn-download" not in front


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<video></video>", "markdown: book/back: no rule writes <video> as Markdown"),
        ('<p @click="x">a</p>', "epub: book/back: no XML"),
        ('<p><a href="#gone">a</a></p>', "pdf and epub: book/back: no book/back#gone"),
        ("<p>\\[ x</p>", "epub: EPUB/back.xhtml: raw TeX"),
    ],
)
def test_a_page_that_breaks_one_format_is_named_and_nothing_is_published(root, make, body, fault):
    assert make() == []
    before = downloads(root)
    write(root, "back", "Back", body)
    faults = make()
    assert any(fault in line for line in faults)
    assert downloads(root) == before


def test_a_format_whose_program_is_missing_names_it(root, make, monkeypatch):
    monkeypatch.setattr(browser, "print_book", lambda *_: browser.executable())
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (fault,) = make()
    assert "pdf and epub: no browser" in fault and "apt-get install chromium" in fault
    assert downloads(root) == {}


@pytest.mark.parametrize("end", [OSError("no space left"), KeyboardInterrupt()])
def test_what_is_half_written_is_never_published(root, make, monkeypatch, end):
    make()
    before, whole = downloads(root), publish._write

    def half(files, part, digest):
        whole(dict(list(files.items())[:2]), part, digest)
        raise end

    monkeypatch.setattr(publish, "_write", half)
    if isinstance(end, OSError):
        assert "no space left" in make(again=True)[0]
    else:
        with pytest.raises(KeyboardInterrupt):
            make(again=True)
    assert downloads(root) == before
    assert list((root / "_build").glob("downloads.part-*")) == []


def test_a_file_that_lost_its_end_is_never_published(root, make, monkeypatch):
    make()
    before, whole = downloads(root), publish._write

    def short(files, part, digest):
        whole(files, part, digest)
        (part / "downloads" / "stochastic-binary-networks.pdf").write_bytes(b"a P")

    monkeypatch.setattr(publish, "_write", short)
    assert make(again=True) == [
        "the downloads were not written whole: stochastic-binary-networks.pdf"]  # fmt: skip
    assert downloads(root) == before


def test_what_a_killed_run_left_is_swept_away(root, make):
    rest = root / "_build" / "downloads.part-1"
    rest.mkdir()
    (rest / "half.pdf").write_bytes(b"%PDF")
    assert make() == [] and not rest.exists()


# ---- the checks find what they are for ---------------------------------------------------------


def contents_of(root):
    return checks.Contents.of(book_of(root))


def test_checks_of_markdown_find_a_label_and_a_link_that_are_not_there(root):
    contents, found = contents_of(root), markdown.pages(book_of(root))
    assert list(checks.markdown(found, contents)) == []
    broken = {**found, "book/01-one.md": found["book/01-one.md"].replace('<a id="ex-a"></a>', "")}
    assert list(checks.markdown(broken, contents)) == [
        "book/01-one: no ex-a",
        "book/01-one.md: a link leads to #ex-a, which is not there",
    ]


def test_checks_of_notebooks_find_a_solution_and_a_missing_exercise(root):
    def archive(*sources):
        return epub.zipped({"n.ipynb": nbformat.writes(notebook(*sources)).encode()})

    both = archive("### Exercise 1.1", "#### Solution to Exercise 1.1")
    contents = contents_of(root)
    assert list(checks.notebooks(both, archive("### Exercise 1.1"), contents)) == []
    assert list(checks.notebooks(both, both, contents)) == [
        "1 solutions in the notebooks without solutions"]  # fmt: skip
    assert list(checks.notebooks(both, archive("nothing"), contents)) == [
        "0 exercises without solutions, the book has 1"]  # fmt: skip


def test_beautiful_soup_closes_what_xml_wants_closed():
    assert str(BeautifulSoup("<p>a<br>b", "html.parser")) == "<p>a<br/>b</p>"
