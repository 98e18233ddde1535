"""Every page fits a phone, whatever fonts it has, and its sliders answer.

The pages are opened on a phone in the dark, and widened; test_desk.py opens them wide and light.
"""

import pytest
from visit import FONT_FOLDER, PAGES, WIDE_FONTS

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


@pytest.mark.parametrize("width", [PHONE, 320, 1280])
def test_page_does_not_scroll_sideways(tab, width):
    tab.set_viewport_size({"width": width, "height": 900})
    widths = {}
    for family in ("", *WIDE_FONTS):
        set_in(tab, family)
        widths[family or "as it is"] = page_width(tab)
    assert {name: found for name, found in widths.items() if found > width} == {}


def set_in(tab, family):
    """Set all text of the page, but not the mathematics, in one font; in its own for ""."""
    tab.evaluate(
        """family => ["--sbn-serif", "--sbn-sans", "--sbn-mono"].forEach(name =>
            document.documentElement.style.setProperty(name, family, "important"))""",
        family,
    )


def page_width(tab):
    """The width once the page's own script has answered to a change of the window."""
    return tab.evaluate("""async () => {
        for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
        return document.documentElement.scrollWidth;
    }""")


def test_sliders_move_the_picture(tab):
    figures = tab.locator("[data-sbn]").all()
    assert figures or not tab.url.endswith(f"{PAGES[0]}.html"), "the front page has a live figure"
    for figure in figures:
        sliders = figure.locator("input[type=range]").all()
        assert sliders
        for slider in sliders:
            assert int(slider.get_attribute("max")) >= 9, "at least ten positions"
            changed(slider)
            at_the_end = slider.input_value() == slider.get_attribute("max")
            slider.press("ArrowLeft" if at_the_end else "ArrowRight")
            assert changed(slider) == {"picture": True, "spoken value": True}
    assert tab.problems == []


def changed(slider):
    """What the figure shows and says otherwise than when last asked."""
    return slider.evaluate("""slider => {
        const picture = slider.closest("[data-sbn]").querySelector(".sbn-frame").innerHTML;
        const spoken = slider.getAttribute("aria-valuetext");
        const before = slider.before;
        slider.before = { picture, spoken };
        return { picture: picture !== before?.picture, "spoken value": spoken !== before?.spoken };
    }""")
