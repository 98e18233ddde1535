"""One Chromium for what only a browser can do: set formulas, measure, print.

MathJax, the site's own, sets every formula once. What it made of it is drawn for the PDF, and
handed out as MathML for the EPUB.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from formats.copies import Copy
from formats.pages import FormatError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
PATIENCE = 300_000  # milliseconds, for a busy machine
#: The width of the text on A4 with the margins of print.css, in CSS pixels: 210 - 2 * 24 mm.
TEXT_WIDTH = 612

#: Every formula as MathML with its number, and those that MathJax could not set.
MATHML = """() => [...MathJax.startup.document.math].map(item => {
    const tag = item.typesetRoot.closest("[data-formula]");
    return [Number(tag.dataset.formula), MathJax.startup.toMML(item.root),
            item.typesetRoot.querySelector("mjx-merror")?.getAttribute("data-mjx-error") ?? ""];
})"""
#: Formulas and tables that are wider than the page are made smaller, down to half their size; what
#: is too wide even then comes back with its page. A formula is a picture with its TeX as its words.
FIT = """() => {
    const wide = [], tex = new Map();
    for (const item of MathJax.startup.document.math) tex.set(item.typesetRoot, item.math);
    for (const [box, words] of tex) {
        box.setAttribute("role", "img");
        box.setAttribute("aria-label", words);
        box.removeAttribute("tabindex");
    }
    const room = tag => tag.parentElement.getBoundingClientRect().width;
    for (const tag of document.querySelectorAll("div.math > mjx-container, table")) {
        const number = tag.parentElement.querySelector(":scope > .eqno");
        const have = room(tag) - (number ? number.getBoundingClientRect().width + 12 : 0);
        const inner = tag.tagName == "TABLE" ? tag : tag.firstElementChild;
        const need = inner.getBoundingClientRect().width;
        if (need > have + 1) tag.style.zoom = Math.max(0.5, 0.99 * have / need);
    }
    for (const tag of document.querySelectorAll(
            "div.math mjx-math, table, pre, figure svg, img, span.math, p, h1, h2, h3, dt")) {
        const page = tag.closest("[data-page]");
        if (!page) continue;
        const right = tag.getBoundingClientRect().right - page.getBoundingClientRect().right;
        if (right > 3) wide.push([page.dataset.page, tag.tagName.toLowerCase(), Math.round(right),
                                  tag.textContent.trim().slice(0, 60)]);
    }
    return wide;
}"""


@dataclass
class Printed:
    """What the browser made: the PDF as it comes, the MathML of every formula, a picture of the
    title page."""

    pdf: bytes
    mathml: list[str]
    cover: bytes


def executable() -> str:
    """The browser on the path.

    Raises:
        FormatError: there is none; says how to get one.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FormatError(
            f"no browser: none of {', '.join(BROWSERS)} is on the path. On Debian and Ubuntu: "
            "`apt-get install chromium`; elsewhere install Chrome or Chromium"
        )
    return found


def print_book(html: str, copy: Copy) -> Printed:
    """Open the whole book, which is one file, and print it.

    Raises:
        FormatError: no browser; a formula that cannot be set; something that is wider than the
            page. Each with its page.
    """
    browser = executable()
    from playwright.sync_api import Error, sync_playwright

    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder, "book.html")
        path.write_text(html, "utf-8")
        chromium = playwright.chromium.launch(executable_path=browser, args=SWITCHES)
        try:
            return _print(chromium.new_page(), path, copy)
        except Error as error:
            raise FormatError(f"the browser stopped: {error.message}") from error
        finally:
            chromium.close()


def _print(tab: Any, path: Path, copy: Copy) -> Printed:
    tab.set_default_timeout(PATIENCE)
    tab.set_viewport_size({"width": TEXT_WIDTH, "height": 900})
    tab.emulate_media(media="print", color_scheme="light")
    tab.goto(path.as_uri(), wait_until="load")
    tab.wait_for_function("window.MathJax?.startup?.promise !== undefined")
    tab.evaluate("() => MathJax.startup.promise.then(() => document.fonts.ready).then(() => true)")
    mathml = _mathml(tab.evaluate(MATHML), copy)
    if wide := tab.evaluate(FIT):
        raise FormatError("\n".join(_too_wide(wide)))
    pdf = tab.pdf(prefer_css_page_size=True, print_background=True, outline=True, tagged=True)
    return Printed(pdf, mathml, tab.locator("#title-page").screenshot())


def _mathml(found: Iterable[tuple[int, str, str]], copy: Copy) -> list[str]:
    made = {}
    for k, mathml, fault in found:
        formula = copy.formulas[k]
        if fault or "<merror" in mathml:
            raise FormatError(f"{formula.page}: {fault or 'an error'} in the formula {formula.tex}")
        made[k] = mathml
    for k, formula in enumerate(copy.formulas):
        if k not in made:
            raise FormatError(f"{formula.page}: MathJax has left out the formula {formula.tex}")
    return [made[k] for k in range(len(copy.formulas))]


def _too_wide(found: Iterable[tuple[str, str, int, str]]) -> Iterable[str]:
    for page, tag, pixels, text in found:
        yield f"{page}: <{tag}> is {pixels} px wider than the page: {text}"
