"""Every page fits a phone, whatever fonts it has; its sliders answer, and it reads without them.

The pages are opened on a phone in the dark, and widened; test_desk.py opens them wide and light.
"""

import pytest
from visit import FONT_FOLDER, PAGES, WIDE_FONTS, every_page

pytestmark = pytest.mark.site

PHONE = 390


@pytest.fixture(scope="module")
def reader(new_reader):
    return new_reader(width=PHONE, dark=True)


@pytest.fixture(scope="module", params=PAGES)
def tab(request, reader):
    tab = reader.turn_to(request.param)
    offer_wide_fonts(tab)
    return tab


def offer_wide_fonts(tab):
    faces = [f"@font-face{{font-family:{f};src:url({FONT_FOLDER}{f}.ttf)}}" for f in WIDE_FONTS]
    tab.add_style_tag(content="".join(faces))
    for family in WIDE_FONTS:
        assert tab.evaluate(f"async () => (await document.fonts.load('16px {family}')).length") == 1


def test_page_opens_on_a_phone_in_the_dark(tab):
    assert tab.problems == []
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"


def test_paper_in_a_picture_is_the_page(tab):
    """In the dark the estimators' colours are made brighter, and nothing else is."""
    assert brightened(tab) - {True} == set()


def brightened(tab):
    """Whether what is brighter than drawn has a colour of its own; empty where nothing is."""
    return set(
        tab.evaluate("""() => [...document.querySelectorAll(".sbn-figure svg [style]")]
        .filter(e => getComputedStyle(e).filter !== "none")
        .map(e => /(fill|stroke): ?#/.test(e.getAttribute("style")))""")
    )


@pytest.mark.parametrize("width", [PHONE, 320, 1280])
def test_page_does_not_scroll_sideways(tab, width):
    tab.set_viewport_size({"width": width, "height": 900})
    assert {font: found for font, found in page_widths(tab).items() if found > width} == {}


def page_widths(tab):
    """How wide the page is as it is, and with all text but the mathematics in each wide font.

    Two frames after a change of the window the page's own script has answered to it.
    """
    return tab.evaluate(
        """async families => {
            const { style } = document.documentElement;
            const texts = ["--sbn-serif", "--sbn-sans", "--sbn-mono"];
            const widths = {};
            for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
            for (const family of ["", ...families]) {
                texts.forEach(text => style.setProperty(text, family, "important"));
                widths[family || "as it is"] = document.documentElement.scrollWidth;
            }
            texts.forEach(text => style.removeProperty(text));
            return widths;
        }""",
        WIDE_FONTS,
    )


def test_words_in_pictures_can_be_read(tab):
    """Nine pixels at least; an index within a word is smaller than the word."""
    tab.set_viewport_size({"width": PHONE, "height": 900})
    assert small_words(tab) == []


def small_words(tab):
    """Two frames after a change of the window, when what a page draws fits it again."""
    return tab.evaluate("""async () => {
        for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
        return [...document.querySelectorAll("article svg:has(text)")].flatMap(svg => {
            const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
            const size = e => parseFloat(getComputedStyle(e).fontSize) * scale;
            return [...svg.querySelectorAll("text")].map(text => {
                const parts = [...text.querySelectorAll("tspan")];
                return [Math.max(...(parts.length ? parts : [text]).map(size)), text.textContent];
            });
        }).filter(([size]) => size < 8.95);
    }""")


def test_colours_that_are_numbers_stay_in_the_dark(tab):
    """A map has many; brighter, they would no longer be those that its words were chosen for."""
    changed = tab.evaluate("""() => [...document.querySelectorAll("article svg")].filter(svg => {
        const fills = [...svg.querySelectorAll("path[style^='fill:#']")];
        const many = new Set(fills.map(path => path.style.fill)).size > 8;
        return many && fills.some(path => getComputedStyle(path).filter !== "none");
    }).map(svg => svg.closest("figure")?.id)""")
    assert changed == []


def test_what_goes_on_at_the_side_shows_it(tab):
    """A box that scrolls sideways has a shadow where it goes on."""
    tab.set_viewport_size({"width": PHONE, "height": 900})
    assert without_edge(tab) == []


def without_edge(tab):
    """Boxes wider inside than outside that scroll, or are cut off, and do not show it.

    A line that is typed in follows its caret; a box of one pixel is for screen readers.
    """
    return tab.evaluate("""() => [...document.querySelectorAll("article *")]
        .filter(e => e.clientWidth > 1 && e.scrollWidth > e.clientWidth + 1)
        .filter(e => !e.closest("svg") && !e.matches("mjx-container *, input"))
        .filter(e => getComputedStyle(e).overflowX !== "visible")
        .filter(e => !getComputedStyle(e).backgroundAttachment.includes("local"))
        .map(e => e.outerHTML.slice(0, 100))""")


def test_sliders_move_the_picture(tab):
    figures = tab.query_selector_all("[data-sbn]")
    assert figures or not tab.url.endswith(f"{PAGES[0]}.html"), "the front page has a live figure"
    for figure in figures:
        sliders = figure.query_selector_all("input[type=range]")
        assert sliders
        assert opened(figure) is False, "the answer comes after the guess"
        for slider in sliders:
            before = state(slider)
            assert before["max"] >= 9, "at least ten positions"
            slider.press("ArrowLeft" if before["value"] == before["max"] else "ArrowRight")
            after = state(slider)
            assert after["other picture"]
            assert after["spoken"] != before["spoken"]
            assert opened(figure)
    assert tab.problems == []


def opened(figure):
    """Whether the answer under a figure is open."""
    return figure.evaluate("f => f.closest('figure').querySelector('.sbn-answer').open")


def state(slider):
    """What a slider says, and whether its figure shows something else than when last asked."""
    return slider.evaluate("""slider => {
        const last = slider.last;
        slider.last = slider.closest("[data-sbn]").querySelector(".sbn-frame").innerHTML;
        return {
            value: +slider.value,
            max: +slider.max,
            spoken: slider.getAttribute("aria-valuetext"),
            "other picture": slider.last !== last,
        };
    }""")


def test_exercises_hold_their_fields_and_what_is_said(tab):
    """The longest answers, too, and what one presses is large enough."""
    tab.set_viewport_size({"width": PHONE, "height": 900})
    for field in tab.locator(".sbn-ask input[type=text]").all():
        field.fill("W" * 200)
        field.press("Enter")
    for button in tab.locator(".sbn-ask:has(input:not([type=text])) button").all():
        button.click()
    assert tab.locator(".sbn-says:empty").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") == PHONE
    assert beside_the_box_or_small(tab) == []
    assert tab.problems == []


def beside_the_box_or_small(tab):
    """Parts of the fields that leave their exercise, or that a finger hardly meets."""
    return tab.evaluate("""() => [...document.querySelectorAll(".sbn-ask *, .sbn-forget button")]
        .filter(e => {
            const { left, right, height } = e.getBoundingClientRect();
            const box = (e.closest(".exercise") ?? e.closest("section")).getBoundingClientRect();
            const low = e.matches("input[type=text], button, label:has(input)") && height < 28;
            return left < box.left || right > box.right + 0.5 || low;
        }).map(e => e.outerHTML)""")


@pytest.fixture(scope="module")
def reader_without_scripts(new_reader):
    return new_reader(width=PHONE, javascript=False)


@every_page
def test_page_reads_without_javascript(reader_without_scripts, page):
    tab = reader_without_scripts.turn_to(page)
    assert tab.locator("article h1").is_visible()
    for figure in tab.locator("[data-sbn]").all():
        assert figure.locator(".sbn-frame :is(svg, img)").first.is_visible()
        assert figure.locator("noscript, .sbn-note").first.is_visible()
    ink = "getComputedStyle(document.documentElement).getPropertyValue('--sbn-ink')"
    assert tab.evaluate(ink), "the colours of the book, not the theme's"
    tab.set_viewport_size({"width": 320, "height": 900})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320
    assert without_edge(tab) == []
    assert tab.problems == []
