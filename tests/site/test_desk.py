"""Every page is whole on a desk: in light and in dark, to the eye and to a screen reader."""

import re
from pathlib import Path

import axe_playwright_python
import pytest
from visit import MADE, PAGES

pytestmark = pytest.mark.site

RAW = re.compile(r"\$\$|\\\(|\\\[|\\begin\{|\{(?:eq|ref|cite|prf|numref)[:}]")
THIN = Path(__file__).with_name("thin.js").read_text("utf-8")
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text("utf-8")


@pytest.fixture(scope="module")
def reader(new_reader):
    return new_reader()


@pytest.fixture(scope="module", params=PAGES + MADE)
def tab(request, reader):
    return reader.turn_to(request.param)


@pytest.fixture(params=["light", "dark"])
def colors(request, tab):
    """Light or dark is what the reader's system says; the page follows, and here fades at once."""
    tab.emulate_media(color_scheme=request.param)
    tab.wait_for_function(f"document.documentElement.dataset.theme === '{request.param}'")
    tab.evaluate("""() => document.getAnimations()
        .filter(change => change instanceof CSSTransition).forEach(change => change.finish())""")
    return request.param


def test_nothing_lies_over_a_title_and_neither_formula_nor_code_is_cut(tab):
    """Also in solutions, which are opened and closed again."""
    tab.evaluate(TOGGLE)
    assert overprinted(tab) == []
    assert cut(tab) == []
    assert scrolling(tab) == []
    tab.evaluate(TOGGLE)


TOGGLE = "document.querySelectorAll('button.toggle-button').forEach(b => b.click())"


def overprinted(tab):
    """Titles that run under the button which opens and closes their box, or do not hold it."""
    return tab.evaluate("""() => [...document.querySelectorAll("button.toggle-button")]
        .filter(button => {
            const words = document.createRange();
            const { left, top, bottom } = button.getBoundingClientRect();
            words.selectNodeContents(button.parentElement);
            words.setEndBefore(button);
            return bottom > button.parentElement.getBoundingClientRect().bottom + 2
                || [...words.getClientRects()].some(
                    line => line.right > left && line.bottom > top + 2);
        })
        .map(button => button.parentElement.textContent.trim())""")


def cut(tab):
    """Displayed formulas wider than the text."""
    return tab.evaluate("""() => [...document.querySelectorAll("mjx-container[display]")]
        .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
        .map(e => e.closest("div.math").id || e.textContent)""")


def scrolling(tab):
    """The longest lines of code, or of what it prints, that are wider than the text."""
    return tab.evaluate("""async () => {
        await document.fonts.ready;
        const folded = [...document.querySelectorAll("article details:not([open])")];
        folded.forEach(e => e.open = true);
        const lines = [...document.querySelectorAll("article pre")]
            .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth)
            .map(e => e.textContent.split("\\n").reduce((a, b) => b.length > a.length ? b : a));
        folded.forEach(e => e.open = false);
        return lines;
    }""")


def test_no_link_begins_with_a_space_and_no_box_is_tight(tab):
    """A space in a link is underlined; words that end at the edge of a box look cut off."""
    tab.evaluate(TOGGLE)
    assert begins_with_a_space(tab) == []
    assert tight(tab) == []
    tab.evaluate(TOGGLE)


def begins_with_a_space(tab):
    return tab.evaluate("""() => [...document.querySelectorAll("article a.reference")]
        .map(a => a.textContent).filter(words => words !== words.trim())""")


def tight(tab):
    """Boxes whose last line lies nearer than 8 px to their lower edge."""
    return tab.evaluate("""() => {
        const bottom = e => e.getBoundingClientRect().bottom;
        return [...document.querySelectorAll("article div.admonition:not(.sbn-proof)")]
            .filter(box => box.clientHeight && !box.matches(".toggle-hidden"))
            .filter(box => bottom(box) - Math.max(...[...box.children].map(bottom)) < 8)
            .map(box => box.textContent.trim().slice(0, 60));
    }""")


def test_tables_pictures_and_sliders_speak(tab):
    assert unclear(tab) == []
    assert mute(tab) == []
    assert unnamed(tab) == []


def unclear(tab):
    """Tables without a name of their own, or with cells that do not say of what they are.

    The first cell of a row names it, except where a table has a row without one.
    """
    return tab.evaluate("""() => {
        const tables = [...document.querySelectorAll("article table")];
        const name = table => (table.caption?.textContent ?? table.ariaLabel ?? "").trim();
        const names = tables.map(name);
        const heads = (cells, scope) => cells.every(c => c.localName === "th" && c.scope === scope);
        const clear = (table, at) => {
            const firsts = [...table.tBodies].flatMap(b => [...b.rows]).map(r => r.cells[0]);
            const tops = [...table.tHead?.rows ?? []].flatMap(r => [...r.cells]);
            return names[at] && names.indexOf(names[at]) === at && tops.length && heads(tops, "col")
                && (heads(firsts, "row") || firsts.some(c => !c.textContent.trim()))
                && [...table.querySelectorAll("th")].every(c => c.textContent.trim());
        };
        return tables.filter((table, at) => !clear(table, at)).map(t => t.outerHTML.slice(0, 300));
    }""")


def mute(tab):
    """Pictures whose words do not say what they show: too few for that, a file, or TeX."""
    return tab.evaluate(r"""() =>
        [...document.querySelectorAll("article :is([role=img][aria-label], img)")]
            .filter(e => !e.closest("[aria-hidden=true]") && !e.parentElement.closest("[role=img]"))
            .map(e => e.ariaLabel || e.alt || e.outerHTML.slice(0, 100))
            .filter(words => words.split(/\s+/).length < 6 || /\.(png|svg)\b|[\$]/.test(words))""")


def unnamed(tab):
    """Sliders that say neither what they set nor where they stand.

    The value of a slider of the lab is the number that it sets; elsewhere it counts frames.
    """
    return tab.evaluate("""() =>
        [...document.querySelectorAll("article :is(input[type=range], [role=slider])")]
            .filter(e => !((e.ariaLabel || e.labels?.length)
                           && (e.ariaValueText || e.closest("#sbn-lab")))).map(e => e.outerHTML)""")


def test_page_is_whole(tab, colors):
    assert tab.problems == []
    assert {"Literata", "Inter"} <= loaded(tab), "the fonts of the book"
    assert pale(tab) == []
    assert tab.locator("mjx-merror").count() == 0
    assert RAW.findall(prose(tab)) == []
    assert no_name(tab) == []
    rules = [] if colors == "light" else ["color-contrast"]  # the others do not look at colours
    assert axe(tab, rules) == {}


def test_html_codesniffer_finds_no_error(tab, codesniffer, colors):
    """A second judge, which asks for more than axe in forms and in headings."""
    part = "" if colors == "light" else "Guideline1_4.1_4_3"  # contrast
    assert sniffed(tab, codesniffer, part) == []


def loaded(tab):
    """The fonts that the page has, and that are its own."""
    return set(
        tab.evaluate("""async () => [...await document.fonts.ready]
        .filter(font => font.status === "loaded").map(font => font.family)""")
    )


def pale(tab):
    """Captions in thin letters."""
    return tab.evaluate("""() => [...document.querySelectorAll("figcaption, .caption-text")]
        .filter(e => getComputedStyle(e).fontWeight < 400).map(e => e.textContent)""")


def prose(tab):
    """What the page says outside code and typeset mathematics."""
    return tab.evaluate("""() => {
        const copy = document.querySelector("article, .bd-search-container").cloneNode(true);
        copy.querySelectorAll("pre, code, script, style, mjx-container").forEach(e => e.remove());
        return copy.textContent;
    }""")


def no_name(tab):
    """Pictures of the text that say nothing to those who cannot see them."""
    return tab.evaluate("""() => [...document.querySelectorAll("article :is(img, svg)")]
        .filter(e => !e.closest("[aria-hidden=true], button, a.headerlink, mjx-container"))
        .filter(e => !(e.getAttribute("alt") || e.getAttribute("aria-label")
                       || e.closest("[role=img][aria-label]")))
        .map(e => e.outerHTML.slice(0, 100))""")


def thin(tab):
    """Take from the page what only repeats; what is asked about the whole page is asked before."""
    if not tab.evaluate("'thinned' in window"):
        tab.evaluate(THIN)
        tab.evaluate("window.thinned = true")


def axe(tab, rules):
    """Which of these rules, or of all, the page breaks, each with the first place where it does.

    All are those that axe runs by itself and those of WCAG at the levels A and AA that it leaves
    out. It does not see the mathematics that is written for screen readers alone, so a table head
    that has some is not an empty one.
    """
    thin(tab)
    if not tab.evaluate("'axe' in window"):
        tab.evaluate(AXE)
    return tab.evaluate(
        """async rules => {
        axe.configure({ rules: [{ id: "color-contrast", selector: ":not([data-again])" }] });
        const levels = ["2", "21", "22"].flatMap(v => [`wcag${v}a`, `wcag${v}aa`]);
        const all = axe.getRules(levels).map(({ ruleId }) => [ruleId, { enabled: true }]);
        const found = await axe.run({
            resultTypes: ["violations"],
            preload: { assets: ["media"] },  // it would look for style sheets in wrong folders
            ...(rules.length ? { runOnly: rules } : { rules: Object.fromEntries(all) }),
        });
        const formula = ({ target }) => document.querySelector(target[0])
            .querySelector("mjx-assistive-mml")?.textContent.trim();
        return Object.fromEntries(found.violations
            .map(({ id, nodes }) =>
                [id, nodes.filter(node => id !== "empty-table-header" || !formula(node))])
            .filter(([, nodes]) => nodes.length)
            .map(([id, nodes]) => [id, nodes[0].html.slice(0, 200)]));
    }""",
        rules,
    )


def sniffed(tab, codesniffer, part):
    """The errors that HTML_CodeSniffer finds by its rules for WCAG AA, or by a part of them."""
    thin(tab)
    if not tab.evaluate("'HTMLCS' in window"):
        tab.evaluate(codesniffer)
        tab.evaluate("window.everySniff = HTMLCS_WCAG2AA.sniffs[0].include")
    return tab.evaluate(
        """part => new Promise((done, fail) => {
        HTMLCS_WCAG2AA.sniffs[0].include = everySniff.filter(sniff => sniff.includes(part));
        const errors = () => HTMLCS.getMessages().filter(({ type }) => type === HTMLCS.ERROR)
            .map(({ code, element, msg }) => [code, msg, element.outerHTML?.slice(0, 200)]);
        HTMLCS.process("WCAG2AA", document, () => done(errors()), fail);
    })""",
        part,
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_first_paint_knows_light_from_dark(new_reader, dark):
    """The theme would find out when all of the page is read."""
    reader = new_reader(dark=dark)
    reader.context.add_init_script("""new MutationObserver((changes, observer) => {
        if (!document.body) return;
        window.firstPaint = document.documentElement.dataset.theme;
        observer.disconnect();
    }).observe(document, { childList: true, subtree: true })""")
    tab = reader.turn_to("genindex")
    assert tab.evaluate("firstPaint") == ("dark" if dark else "light")
    assert tab.problems == []


def test_margin_needs_no_list_of_contents(new_reader):
    """The index has no sections; with a box in its margin the theme looks for their list."""
    reader = new_reader()
    reader.context.add_init_script("""document.addEventListener("DOMContentLoaded", () => {
        document.querySelector("article").innerHTML += "<aside class='margin'>a box</aside>";
    })""")
    tab = reader.turn_to("genindex")
    tab.locator("aside.margin").scroll_into_view_if_needed()
    tab.wait_for_timeout(100)  # for the browser to tell the theme that the box is in view
    assert tab.problems == []
