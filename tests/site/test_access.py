"""What a page says of its tables, its pictures and its sliders to those who do not see them.

These are questions about the files; what two judges say of the pages in a browser is in
test_desk.py.
"""

import functools
import re

import pytest
from bs4 import BeautifulSoup
from visit import MADE, html, toc_pages

pytestmark = [pytest.mark.site, pytest.mark.usefixtures("site")]

SHORTEST = 6  # words: fewer name a picture, and do not say what it shows


@functools.cache
def read(page):
    return BeautifulSoup(html(page), "html.parser").select_one("article, .bd-search-container")


@pytest.fixture(params=toc_pages() + MADE)
def article(request):
    return read(request.param)


def test_table_says_what_it_is_and_what_its_cells_belong_to(article):
    tables = article.find_all("table")
    names = [t.caption.get_text() if t.caption else t.get("aria-label", "") for t in tables]
    assert all(names) and len(set(names)) == len(names)
    for table, name in zip(tables, names, strict=True):
        heads = table.thead.find_all("th")
        assert all(cell.get("scope") == "col" for cell in heads), name
        rows = [row.find_all(["th", "td"]) for row in table.tbody.find_all("tr")]
        firsts = [row[0] for row in rows]
        if all(cell.get_text().strip() for cell in firsts):  # else nothing names the row
            assert {(cell.name, cell.get("scope")) for cell in firsts} == {("th", "row")}, name
        assert all(cell.get_text().strip() for cell in table.find_all("th")), name


def test_picture_says_in_a_sentence_what_it_shows(article):
    pictures = article.select("[role=img][aria-label], img:not([role=img] img)")
    said = [p.get("aria-label") or p.get("alt") or "" for p in pictures]
    assert [words for words in said if len(words.split()) < SHORTEST] == []
    assert [words for words in said if re.search(r"\.(png|svg)\b|[\\$_]", words)] == []


def test_slider_has_a_name_and_its_value_words(article):
    sliders = article.select("input[type=range]")
    assert [s for s in sliders if not (s.get("aria-label") and s.get("aria-valuetext"))] == []
