"""Where the site leads: its pages, their links, the map, the previews, the search."""

import gzip
import re
import sys

import pytest
from places import ROOT, SITE
from visit import CHAPTERS, MADE, PAGES, every_page, html

sys.path.insert(0, str(ROOT / "book" / "tools"))

from reliable import links  # noqa: E402

pytestmark = [pytest.mark.site, pytest.mark.usefixtures("site")]

MEGABYTE = 1_000_000
NUMBER = re.compile(r'<span class="caption-number">Figure ([\d.]+) ?</span>')
REFERENCE = re.compile(r'<a class="reference internal" href="[^"]*#fig-\d\d-[^"]+">(.*?)</a>')
FORMULA = re.compile(r'(<span class="sbn-together">)?<span class="math [^>]*>[^<]*</span>[,.;:?!)]')


# ---------------------------------------------------------------------------------- the files


def test_site_has_no_stray_page():
    found = {p.relative_to(SITE).with_suffix("").as_posix() for p in SITE.rglob("*.html")}
    lost = {"404"} if (SITE / "sitemap.xml").exists() else set()  # where the address is known
    assert found == {"index", *PAGES, *MADE, *lost}  # index.html is the way to the front page


@every_page
def test_page_is_small(page):
    assert len(gzip.compress((SITE / f"{page}.html").read_bytes())) <= MEGABYTE


def test_fonts_are_files_of_the_site_and_small():
    fonts = SITE / "_static" / "fonts"
    assert len(list(fonts.glob("*.woff2"))) == 6
    assert sum(f.stat().st_size for f in fonts.glob("*.woff2")) < 300_000
    assert all("OPEN FONT LICENSE" in f.read_text("utf-8").upper() for f in fonts.glob("*.txt"))
    assert len(list(fonts.glob("*-LICENSE.txt"))) == 3


@pytest.mark.parametrize("page", CHAPTERS)
def test_figures_are_numbered_and_their_captions_stand_once(page):
    chapter = int(re.search(r"/(\d\d)-", page)[1])
    numbers = NUMBER.findall(html(page))
    assert numbers == [f"{chapter}.{k}" for k in range(1, len(numbers) + 1)]
    figures = re.findall(r"<figure.*?</figure>", html(page), re.S)
    assert len(figures) == len(numbers) == html(page).count("<figcaption")
    links = REFERENCE.findall(html(page))
    assert all(re.search(r">Figure \d+\.\d+<", link) for link in links)


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_formula_keeps_the_punctuation_after_it(page):
    assert FORMULA.search(html(page))
    assert all(found[1] for found in FORMULA.finditer(html(page)))


def test_links_and_anchors_resolve_and_nothing_is_loaded_from_another_host():
    pages = links.read(SITE)
    assert [*links.dead(SITE, pages), *links.loads_of_other_hosts(pages, SITE)] == []


# ------------------------------------------------------------------------------ in the browser


@pytest.fixture(scope="module")
def reader(new_reader):
    return new_reader()


def test_map_links_the_written_chapters(reader):
    tab = reader.turn_to(PAGES[0])
    hrefs = [a.get_attribute("href") for a in tab.locator(".sbn-map a").all()]
    assert {f"book/{href.removesuffix('.html')}" for href in hrefs} == set(CHAPTERS)
    assert tab.locator(".sbn-paths .sbn-node").count() == 22
    circles = [a.get_attribute("href") for a in tab.locator(".sbn-paths a:has(circle)").all()]
    assert circles == hrefs


def test_hover_shows_a_typeset_equation(reader):
    for page in PAGES:
        if 'href="#equation-' not in html(page):
            continue
        tab = reader.turn_to(page)
        link = tab.locator("article p a.reference[href^='#equation-']").first
        if link.count():
            link.hover()
            tip = tab.locator("#sbn-tip[data-open]")
            tip.locator("mjx-container").first.wait_for(timeout=5000)
            assert tip.locator("[id]").count() == 0 and "\\" not in tip.inner_text()
            tab.keyboard.press("Escape")
            assert tip.count() == 0
            return
    pytest.skip("no page refers to an equation of its own yet")


def test_hover_shows_a_citation(reader):
    tab = reader.turn_to(PAGES[0])
    tab.locator("article a[href*='bibliography.html#']").first.hover()
    tab.locator("#sbn-tip[data-open]").wait_for(timeout=5000)
    assert "Shekhovtsov" in tab.locator("#sbn-tip").inner_text()


@pytest.mark.parametrize(
    ("asked", "chapter"),
    [
        ("straight-through", "06"),
        ("Mirror descent", "14"),
        ("stochastic binary networks", "02"),
        ("optimizers", "15"),
    ],
)
def test_search_finds_the_chapter_on_a_thing_first(reader, asked, chapter):
    tab = reader.turn_to("search")
    tab.goto(f"{tab.url}?q={asked}")
    tab.locator("#search-results li:first-child p.context").wait_for(timeout=10_000)
    found = tab.locator("#search-results li").first
    assert f"/{chapter}-" in found.locator("a").get_attribute("href")
    assert "\\" not in tab.locator("#search-results").inner_text()
    assert "Contents" not in found.inner_text(), "the text of the page, not the frame around it"
    assert tab.problems == []
