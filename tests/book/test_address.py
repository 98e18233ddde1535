"""What a site has once it knows its address, on a book of two pages."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from places import BOOK, ROOT

CONF = """
import sys
sys.path.insert(0, {ext!r})
project, html_theme = "A book", "sphinx_book_theme"
extensions = ["sbn_address"]
"""
PAGES = {"index": "A book\n======\n\n.. toctree::\n\n   part/one\n", "part/one": "One\n===\n"}
REPOSITORY = {"SBN_REPOSITORY_URL": "https://github.com/Someone/somewhere"}
BASE = "https://someone.github.io/somewhere/"


def module():
    spec = importlib.util.spec_from_file_location("sbn_address", BOOK / "ext" / "sbn_address.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("given", "repository", "address"),
    [
        ("", "", ""),
        ("", "https://github.com/Someone/Somewhere", "https://someone.github.io/Somewhere/"),
        ("", "https://github.com/someone/somewhere.git/", "https://someone.github.io/somewhere/"),
        ("", "https://github.com/Someone/someone.github.io", "https://someone.github.io/"),
        ("", "https://example.org/someone/somewhere", ""),
        ("", "https://github.com/someone", ""),
        ("https://example.org/book", "https://github.com/a/b", "https://example.org/book/"),
    ],
)
def test_address_of_the_site(given, repository, address):
    assert module().address(given, repository) == address


def test_what_is_no_address_is_refused():
    with pytest.raises(ValueError, match="SBN_SITE_URL has to begin with https://, not be 'book'"):
        module().address("book", "")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """build(**environment): the folder of the book, built once more where it was if need be."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "part").mkdir()
    (folder / "conf.py").write_text(CONF.format(ext=str(BOOK / "ext")), "utf-8")
    for name, text in PAGES.items():
        (folder / f"{name}.rst").write_text(text, "utf-8")

    built = []

    def build(**environment):
        if built[-1:] == [environment]:
            return folder / "out"
        built.append(environment)
        call = [sys.executable, "-m", "sphinx", "-W", "-q", str(folder), str(folder / "out")]
        subprocess.run(call, env=clean() | environment, check=True)
        return folder / "out"

    return build


def clean():
    return {name: value for name, value in os.environ.items() if not name.startswith("SBN_")}


class Targets(HTMLParser):
    """The addresses to which a page leads or from which it loads, as a browser takes them."""

    def __init__(self, text, at):
        super().__init__()
        self.base, self.found = at, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "base":
            assert not self.found, "<base> comes before the first address"
            self.base = urljoin(self.base, given["href"])
        else:
            found = (given[k] for k in ("href", "src") if given.get(k))
            self.found += [urljoin(self.base, target) for target in found]


@pytest.mark.slow
def test_the_page_for_lost_readers_leads_back_from_any_depth(build):
    out = build(**REPOSITORY)
    text = (out / "404.html").read_text("utf-8")
    page = Targets(text, f"{BASE}some/deep/place.html")
    ours = [urlsplit(t).path.removeprefix("/somewhere/") for t in page.found if t.startswith(BASE)]
    assert {"index.html", "part/one.html", "search.html"} <= set(ours)
    assert not [path for path in ours if path and not (out / unquote(path)).exists()]
    assert not [t for t in page.found if urlsplit(t).hostname == "someone.github.io"
                and not t.startswith(BASE)]  # fmt: skip
    assert 'content="noindex"' in text and 'rel="canonical"' not in text


@pytest.mark.slow
def test_sitemap_and_canonical_links_name_each_page_once(build):
    out = build(**REPOSITORY)
    pages = [f"{BASE}{name}.html" for name in PAGES]
    assert re.findall(r"<loc>(.*?)</loc>", (out / "sitemap.xml").read_text("utf-8")) == pages
    for name in PAGES:
        text = (out / f"{name}.html").read_text("utf-8")
        assert re.findall(r'rel="canonical" href="(.*?)"', text) == [f"{BASE}{name}.html"]
    assert not (out / "robots.txt").exists()  # nobody looks for it in a folder


@pytest.mark.slow
def test_another_address_leaves_nothing_of_the_first_and_none_leaves_nothing(build):
    out = build(SBN_SITE_URL="https://book.example.org")  # alone on its host
    assert (out / "robots.txt").read_text() == "Sitemap: https://book.example.org/sitemap.xml\n"
    build(**REPOSITORY)
    assert not (out / "robots.txt").exists()
    build()
    assert not [name for name in ("404.html", "sitemap.xml", "robots.txt") if (out / name).exists()]
    assert "canonical" not in (out / "index.html").read_text("utf-8")


def test_ci_takes_the_steps_of_the_pages_workflow():
    """What builds the published site is tried before: the same commands, with an address."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    job = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text("utf-8"))["jobs"]["build"]
    for name in job["env"]:
        assert re.search(rf"\b{name}=", script) or name == "SBN_SITE_URL", name
    for step in (s["run"] for s in job["steps"] if "run" in s):
        command = step.partition(" TORCH_INDEX=")[0]
        assert command in script, command
