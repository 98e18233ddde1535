"""A reader of the built site: what was opened, and what went wrong there."""

import functools
import re
from pathlib import Path

import matplotlib
import pytest
import yaml
from places import ROOT, SITE

#: A wide serif, a wide sans and a monospace font, which Matplotlib carries: whatever fonts a
#: reader's machine has, few are wider.
WIDE_FONTS = ("DejaVuSerif", "DejaVuSans", "DejaVuSansMono")
FONT_FILES = Path(matplotlib.get_data_path(), "fonts", "ttf")
FONT_FOLDER = "/fonts-of-matplotlib/"  # where the test's server, not the site, offers them


def toc_pages():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    return [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]


PAGES = toc_pages()
MADE = ["genindex", "py-modindex", "search"]  # by Sphinx
CHAPTERS = [p for p in PAGES if re.search(r"/\d\d-[^/]*$", p)]
every_page = pytest.mark.parametrize("page", PAGES)


@functools.cache
def html(page):
    return (SITE / f"{page}.html").read_text("utf-8")


class Reader:
    """One who reads in a single tab, and of whose settings no page finds anything stored.

    Staying in one tab halves the time that a page takes: the scripts are compiled already. Leaving
    its formulas as TeX, where none is looked at, halves it once more.
    """

    def __init__(self, browser, site, *, width=1280, dark=False, javascript=True, mathematics=True):
        self.site, self.mathematics = site, mathematics and javascript
        self.window = {"width": width, "height": 900}
        self.colors = "dark" if dark else "light"
        self.context = browser.new_context(java_script_enabled=javascript)
        self.context.set_default_timeout(120_000)  # a busy machine is slow, not broken
        self.context.add_init_script("localStorage.clear()")
        if javascript and not mathematics:
            without_mathematics(self.context)
        self.tab = self.context.new_page()
        note_problems(self.tab, site)

    def turn_to(self, page):
        """Open one page, with the reader's own window and colours."""
        self.tab.goto("about:blank")  # or the page before would be laid out once more
        self.tab.set_viewport_size(self.window)
        self.tab.emulate_media(color_scheme=self.colors)
        self.tab.problems.clear()
        self.tab.goto(f"{self.site}/{page}.html", wait_until="load")
        if self.mathematics:
            typeset(self.tab)
        return self.tab


def without_mathematics(context):
    """In the tabs of a context formulas stay as they are written."""
    nothing = {"body": "", "content_type": "text/javascript"}
    context.route("**/_static/mathjax/**", lambda route: route.fulfill(**nothing))


def note_problems(tab, site):
    """Keep in `tab.problems` every request to another host, every failure, every error logged."""
    problems = tab.problems = []
    ours = (site, "data:", "blob:")
    tab.on("request", lambda r: r.url.startswith(ours) or problems.append(f"outside: {r.url}"))
    tab.on("response", lambda r: r.status >= 400 and problems.append(f"{r.status} {r.url}"))
    tab.on("pageerror", lambda e: problems.append(f"error: {e}"))
    tab.on("console", lambda m: m.type == "error" and problems.append(f"log: {m.text}"))


def typeset(tab):
    """Wait until MathJax has done its work, if the page has any."""
    tab.wait_for_function(
        "() => !document.querySelector('script[src*=mathjax]') || window.MathJax?.startup?.promise"
    )
    tab.evaluate("async () => { await window.MathJax?.startup?.promise; }")
