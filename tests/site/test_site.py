"""The built site in a real browser, as a reader meets it.

Skipped where there is no built book or no Chromium; with SBN_REQUIRE_BROWSER=1 (as in .ci/run)
that is a failure. One browser and one small server serve all tests; every request to another host
is refused, and counted as an error.
"""

import base64
import functools
import gzip
import http.server
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import matplotlib
import pytest
import yaml
from places import ROOT, SITE

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
MEGABYTE = 1_000_000

#: A wide serif, a wide sans and a monospace font, which Matplotlib carries: whatever fonts a
#: reader's machine has, few are wider.
WIDE_FONTS = ("DejaVuSerif", "DejaVuSans", "DejaVuSansMono")

pytestmark = pytest.mark.site

# What the theme itself logs and violates (pydata-sphinx-theme 0.16, sphinx-book-theme 1.2).
KNOWN_ERRORS = ("THEBE_JS_URL", "Got invalid theme mode", "classList")
KNOWN_VIOLATIONS = {"label-content-name-mismatch", "region"}
KNOWN_ON_BIBLIOGRAPHY = {"aria-required-children", "aria-allowed-role", "aria-deprecated-role"}


def toc_pages():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    return [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]


PAGES = toc_pages()
FIGURES = [p for p in PAGES if (ROOT / f"{p}.ipynb").exists()]
every_page = pytest.mark.parametrize("page", PAGES)


def missing(what):
    if os.environ.get("SBN_REQUIRE_BROWSER") == "1":
        pytest.fail(what)
    pytest.skip(what)


# ----------------------------------------------------------------------------- server, browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site():
    if not (SITE / "index.html").exists():
        missing("no built book: run `make book`")
    handler = functools.partial(Quiet, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        missing(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=SWITCHES)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(site, browser):
    """open_page(page, width=…, dark=…, javascript=…): a page that notes all that goes wrong."""
    contexts = []

    def open_(page, *, width=1280, dark=False, javascript=True):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=javascript,
        )
        contexts.append(context)
        tab = context.new_page()
        tab.problems = []
        context.route(
            "**/*",
            lambda route: (
                route.continue_()
                if route.request.url.startswith((site, "data:", "blob:"))
                else (tab.problems.append(f"outside: {route.request.url}"), route.abort())
            ),
        )
        tab.on("response", lambda r: r.status >= 400 and tab.problems.append(f"{r.status} {r.url}"))
        tab.on("pageerror", lambda e: tab.problems.append(f"error: {e}"))
        tab.on("console", lambda m: m.type == "error" and tab.problems.append(f"log: {m.text}"))
        tab.goto(f"{site}/{page}.html", wait_until="load")
        if javascript:
            typeset(tab)
        return tab

    yield open_
    for context in contexts:
        context.close()


def typeset(tab):
    """Wait until MathJax has done its work, if the page has any."""
    tab.wait_for_function(
        "() => !document.querySelector('script[src*=mathjax]') || window.MathJax?.startup?.promise"
    )
    tab.evaluate("async () => { await window.MathJax?.startup?.promise; }")


def unexpected(problems):
    return [p for p in problems if not any(known in p for known in KNOWN_ERRORS)]


# ------------------------------------------------------------------------------------- pages


@every_page
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_is_whole(open_page, page, dark):
    tab = open_page(page, dark=dark)
    assert unexpected(tab.problems) == []
    assert tab.locator("mjx-merror").count() == 0
    raw = re.compile(r"\$\$|\\\(|\\\[|\\begin\{|\{(?:eq|ref|cite|prf|numref)[:}]")
    prose = tab.evaluate("""() => {
        const copy = document.querySelector("article").cloneNode(true);
        copy.querySelectorAll("pre, code, script, style, mjx-container").forEach(e => e.remove());
        return copy.textContent;
    }""")
    assert raw.findall(prose) == []
    assert no_name(tab) == []
    known = KNOWN_ON_BIBLIOGRAPHY if page.endswith("bibliography") else set()
    assert axe(tab) <= KNOWN_VIOLATIONS | known


def no_name(tab):
    """Pictures of the text that say nothing to those who cannot see them."""
    return tab.evaluate("""() => [...document.querySelectorAll("article :is(img, svg)")]
        .filter(e => !e.closest("[aria-hidden=true], button, a.headerlink, mjx-container"))
        .filter(e => !(e.getAttribute("alt") || e.getAttribute("aria-label")
                       || e.closest("[role=img][aria-label]")))
        .map(e => e.outerHTML.slice(0, 100))""")


def axe(tab):
    """The rules that the page breaks. (axe takes a table head of mathematics for an empty one.)"""
    from axe_playwright_python.sync_playwright import Axe

    broken = Axe().run(tab).response["violations"]
    mathematics = tab.locator("th:has(mjx-container)").count() > 0
    return {v["id"] for v in broken} - ({"empty-table-header"} if mathematics else set())


@every_page
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_page_does_not_scroll_sideways(open_page, page, width):
    tab = open_page(page, width=width)
    widths = {"as it is": page_width(tab)}
    for family in WIDE_FONTS:
        set_in(tab, family)
        widths[family] = page_width(tab)
    assert {name: found for name, found in widths.items() if found > width} == {}


def page_width(tab):
    return tab.evaluate("document.documentElement.scrollWidth")


def set_in(tab, family):
    """Set all text of the page, but not the mathematics, in one of Matplotlib's own fonts."""
    font = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{family}.ttf").read_bytes()
    source = f"url(data:font/ttf;base64,{base64.b64encode(font).decode()})"
    names = ("--sbn-serif", "--sbn-sans", "--sbn-mono")
    rules = "".join(f'{name}:"{family}"!important;' for name in names)
    tab.add_style_tag(content=f'@font-face{{font-family:"{family}";src:{source}}}html{{{rules}}}')
    assert tab.evaluate(f"async () => (await document.fonts.load('16px {family}')).length") == 1


@every_page
def test_page_is_small(site, page):
    assert len(gzip.compress((SITE / f"{page}.html").read_bytes())) <= MEGABYTE


@every_page
def test_page_reads_without_javascript(open_page, page):
    tab = open_page(page, javascript=False)
    assert tab.locator("article h1").is_visible()
    for figure in tab.locator("[data-sbn]").all():
        assert figure.locator(".sbn-frame :is(svg, img)").first.is_visible()
        assert figure.locator("noscript, .sbn-note").first.is_visible()


# ----------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("page", FIGURES)
def test_sliders_move_the_picture(open_page, page):
    tab = open_page(page)
    figures = tab.locator("[data-sbn]").all()
    assert figures or page != PAGES[0], "the front page has a live figure"
    for figure in figures:
        frame = figure.locator(".sbn-frame")
        sliders = figure.locator("input[type=range]").all()
        assert sliders
        for slider in sliders:
            assert int(slider.get_attribute("max")) >= 9, "at least ten positions"
            before = frame.inner_html()
            spoken = slider.get_attribute("aria-valuetext")
            at_the_end = slider.input_value() == slider.get_attribute("max")
            slider.press("ArrowLeft" if at_the_end else "ArrowRight")
            assert frame.inner_html() != before
            assert slider.get_attribute("aria-valuetext") != spoken
    assert unexpected(tab.problems) == []


def test_map_links_the_written_chapters(open_page):
    tab = open_page(PAGES[0])
    written = {p for p in PAGES if re.search(r"/\d\d-[^/]*$", p)}
    hrefs = [a.get_attribute("href") for a in tab.locator(".sbn-map a").all()]
    assert {f"book/{href.removesuffix('.html')}" for href in hrefs} == written
    assert tab.locator(".sbn-paths .sbn-node").count() == 20
    assert tab.locator(".sbn-paths .sbn-written").count() == len(written)


# -------------------------------------------------------------------------------------- links


def test_hover_shows_a_typeset_equation(open_page):
    for page in PAGES:
        tab = open_page(page)
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


def test_hover_shows_a_citation(open_page):
    tab = open_page(PAGES[0])
    tab.locator("article a[href*='bibliography.html#']").first.hover()
    tab.locator("#sbn-tip[data-open]").wait_for(timeout=5000)
    assert "Shekhovtsov" in tab.locator("#sbn-tip").inner_text()


class Anchors(HTMLParser):
    """The ids of one page, and what it links to or loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.targets = set(), []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[k] for k in ("id", "name") if given.get(k)}
        self.targets += [given[k] for k in ("href", "src") if given.get(k)]


def test_links_and_anchors_resolve(site):
    pages = [p for p in SITE.rglob("*.html") if "_static" not in p.parts]
    parsed = {path: Anchors(path) for path in pages}
    dead = []
    for path, page in parsed.items():
        for target in page.targets:
            url, fragment = urldefrag(urljoin(path.as_uri(), target))
            if urlsplit(url).scheme != "file":
                continue
            file = Path(unquote(urlsplit(url).path))
            anchors = parsed[file].ids if file in parsed else {fragment}
            if not file.exists() or fragment and unquote(fragment) not in anchors:
                dead.append(f"{path.relative_to(SITE)}: {target}")
    assert not dead


def test_search_finds_a_page(open_page, site):
    tab = open_page("search")
    tab.goto(f"{site}/search.html?q=straight-through")
    tab.locator("#search-results li").first.wait_for(timeout=10_000)
    assert unexpected(tab.problems) == []
