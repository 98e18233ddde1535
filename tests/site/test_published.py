"""What the built site has because it knows its address, as in CI and where it is published."""

import mimetypes
import os
import re
from urllib.parse import unquote, urlsplit

import pytest
from places import SITE
from visit import CHAPTERS, PAGES, html, note_problems

pytestmark = [pytest.mark.site, pytest.mark.usefixtures("site")]


@pytest.fixture(scope="module")
def base():
    """The address for which the site was built."""
    if not (SITE / "sitemap.xml").exists():
        assert not os.environ.get("SBN_REPOSITORY_URL"), "built without its address"
        pytest.skip("built without an address: SBN_REPOSITORY_URL is not set")
    first = re.search("<loc>(.*?)</loc>", (SITE / "sitemap.xml").read_text("utf-8"))[1]
    return first[: first.index("book/")]


def test_sitemap_lists_the_pages_of_the_book(base):
    listed = re.findall("<loc>(.*?)</loc>", (SITE / "sitemap.xml").read_text("utf-8"))
    assert sorted(listed) == sorted(f"{base}{page}.html" for page in PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_its_address_once(base, page):
    assert re.findall(r'rel="canonical" href="(.*?)"', html(page)) == [f"{base}{page}.html"]


@pytest.mark.parametrize("page", CHAPTERS)
def test_colab_opens_the_notebook_that_is_pushed(base, page):
    """The branch and the path under which the workflow pushes the copies that installs sbnlib."""
    branch = os.environ.get("SBN_REPOSITORY_BRANCH", "main")
    (link,) = set(re.findall(r"https://colab\.research\.google\.com/github/([^\"]*)", html(page)))
    assert re.fullmatch(rf"[\w.-]+/[\w.-]+/blob/{branch}/{page}\.ipynb", link)
    assert (SITE / "_sources" / f"{page}.ipynb").exists()


def test_a_lost_reader_finds_the_way_back(base, browser):
    """As a host shows it that sends 404.html for whatever is not there, at any depth."""

    def answer(route):
        name = unquote(urlsplit(route.request.url).path).removeprefix(urlsplit(base).path)
        there = (SITE / name).is_file()
        file = SITE / (name if there else "404.html")
        kind = mimetypes.guess_type(file)[0] or "application/octet-stream"
        route.fulfill(status=200 if there else 404, content_type=kind, body=file.read_bytes())

    tab = browser.new_context().new_page()
    note_problems(tab, base)
    tab.route(f"{base}**", answer)
    lost = f"{base}book/a/b/nowhere.html"
    tab.goto(lost)
    heads = tab.locator("h1").all_text_contents()  # one for the screen, one for paper
    assert [head.rstrip("#") for head in heads] == ["No page is here"] * 2
    assert [p for p in tab.problems if p.startswith("404 ") and lost not in p] == []
    tab.get_by_role("link", name="front page").click()
    tab.wait_for_url(f"{base}{PAGES[0]}.html")
    tab.context.close()
