"""How words are set on the built pages, read from their HTML: no browser."""

import re
from html.parser import HTMLParser

import pytest
from visit import every_page, html

pytestmark = pytest.mark.site

BROKEN_NUMBER = re.compile(r"(?<![\d.,])(?<!Table )\d{1,3} \d{3}(?!\d)")
VERBATIM = {"pre", "code", "script", "style", "svg", "template"}


class Prose(HTMLParser):
    """The text of a page, less what stands for itself."""

    def __init__(self, page):
        super().__init__()
        self.inside, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        verbatim = tag in VERBATIM or (dict(attrs).get("class") or "").startswith("math")
        if verbatim or (self.inside and tag == self.inside[-1]):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)


@every_page
def test_no_line_ends_in_a_number(site, page):
    assert BROKEN_NUMBER.findall("".join(Prose(html(page)).text)) == []


@every_page
def test_the_number_of_an_equation_is_not_in_two_pairs_of_brackets(site, page):
    assert re.findall(r".{20}\(\(\d+\.\d+\)", "".join(Prose(html(page)).text)) == []


CELL = re.compile(r"<t[dh]\b.*?</t[dh]>", re.S)
NAME = re.compile(r'<span class="pre">([^\s<]*(?:<wbr>[^\s<]*)*)</span>')


@pytest.mark.parametrize("page", ["ledger", "paper-map", "symbols"])
def test_a_name_in_a_table_is_broken_between_its_words(site, page):
    cells = CELL.findall(html(f"book/back/{page}"))
    names = [name for cell in cells for name in NAME.findall(cell)]
    parts = [part for name in names for part in name.split("<wbr>")]
    assert any("<wbr>" in name for name in names)
    assert max(map(len, parts)) <= 20, max(parts, key=len)
