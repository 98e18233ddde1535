"""The lab, used as a reader uses it: by mouse, by touch, by keys, on a desk and on a phone.

What it shows is held to SBN.lab.compute, which test_lab_engine.py holds to sbnlib. Chance has fixed
seeds; the rate of false alarms of a comparison is that at other seeds.
"""

import json
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from places import BOOK, SITE
from visit import PAGES, html, note_problems

sys.path.insert(0, str(BOOK / "ext"))
try:
    from sbn_scripts import LAB as SCRIPTS
    from sbn_scripts import ORDER, needed
finally:
    sys.path.pop(0)

pytestmark = pytest.mark.site

PAGE = "book/lab/lab"
FOLDER = BOOK / "lab" / "scripts"
PHONE = 390
TEXT = (BOOK / "lab" / "lab.md").read_text("utf-8")
#: Slug and name of each example, in the order of the page.
EXAMPLES = re.findall(r"^\((lab-[a-z0-9-]+)\)=\n\*\*\[(.+)\]\(\1\)\.\*\*", TEXT, re.M)
FIRST_WEIGHT = "weight from input 1 to unit 1 of layer 1"


# ------------------------------------------------------------------------- the page, and its reader


def settle(tab):
    """Two frames after a change the page has answered to it."""
    tab.evaluate(
        "async () => { for (let k = 0; k < 2; k++) await new Promise(requestAnimationFrame); }"
    )


def turn_to(tab, site, fragment=""):
    tab.goto("about:blank")
    tab.problems.clear()
    tab.goto(f"{site}/{PAGE}.html{fragment}", wait_until="load")
    tab.wait_for_function("window.SBN?.page?.found()")
    settle(tab)
    return tab


def with_context(browser, site, **given):
    """A tab with settings of its own."""
    context = browser.new_context(**given)
    context.set_default_timeout(120_000)
    tab = context.new_page()
    note_problems(tab, site)
    return tab


@pytest.fixture(scope="module")
def desk_tab(browser, site):
    tab = with_context(browser, site, viewport={"width": 1280, "height": 900})
    yield tab
    tab.context.close()


@pytest.fixture(scope="module")
def phone_tab(browser, site):
    size = {"width": PHONE, "height": 800}
    tab = with_context(browser, site, viewport=size, has_touch=True, color_scheme="dark")
    yield tab
    tab.context.close()


@pytest.fixture
def tab(desk_tab, site):
    """The page as it opens, on a desk; after the test it has logged no error."""
    turn_to(desk_tab, site)
    desk_tab.set_viewport_size({"width": 1280, "height": 900})
    yield desk_tab
    assert desk_tab.problems == []


@pytest.fixture
def phone(phone_tab, site):
    yield turn_to(phone_tab, site)
    assert phone_tab.problems == []


def model(tab):
    return tab.evaluate("JSON.parse(JSON.stringify(SBN.page.model()))")


def computed(tab, given=None):
    """What SBN.lab.compute makes of a model, or of the page's."""
    return tab.evaluate(
        """given => {
            const answer = SBN.lab.compute(given || SBN.page.model());
            return { ...answer, laws: answer.laws.map((law) => [...law]) };
        }""",
        given,
    )


def flat(layers):
    """All numbers of a gradient: of each layer the weights, then the biases."""
    return np.concatenate([np.append(np.ravel(k["weight"]), k["bias"]) for k in layers])


def readouts_of(answer):
    """The five numbers of the page, by numpy."""
    g, mean, variance = (flat(answer[what]) for what in ("gradient", "mean", "variance"))
    length, u, v = np.linalg.norm(g), g / np.linalg.norm(g), mean / np.linalg.norm(mean)
    return [
        answer["value"],
        length,
        np.linalg.norm(mean - g) / length,
        np.sqrt(variance.sum()) / length,
        np.degrees(np.arccos(min(1, u @ v))),
    ]


def number(text):
    return float(text.replace("−", "-").rstrip("°"))


def readouts(tab):
    return tab.locator(".sbn-lab-numbers dd").all_inner_texts()


def assert_shows(tab, answer=None):
    """The numbers of the page are those of its model, to the digits that are shown."""
    expected = readouts_of(answer or computed(tab))
    np.testing.assert_allclose([number(t) for t in readouts(tab)], expected, 5e-3, 5.1e-4)


def field(tab, label):
    name = re.compile(f"^{re.escape(label)}$")
    box = tab.locator(".sbn-field", has=tab.locator("label", has_text=name))
    return box.locator("select, input")


def choose(tab, label, value):
    field(tab, label).select_option(value)
    settle(tab)


def write(tab, label, value):
    field(tab, label).fill(str(value))
    settle(tab)


def press(tab, name, times=1):
    for _ in range(times):
        tab.get_by_role("button", name=name, exact=True).click()
    settle(tab)


def status(tab):
    return tab.locator(".sbn-lab-note").text_content()


def wrong(tab):
    return tab.locator(".sbn-wrong").text_content()


def slider(tab, name):
    return tab.get_by_role("slider", name=name, exact=True)


def unit(tab, k, j):
    return tab.get_by_role("button", name=re.compile(f"^unit {j} of layer {k},"))


def address(tab):
    """The address when it has followed the model: it waits for the hand to rest."""
    tab.wait_for_function("location.hash === `#${SBN.page.code()}`")
    return tab.evaluate("location.hash")


def largest(tab):
    for label in ("inputs", "layer 1", "layer 2", "layer 3"):
        choose(tab, label, "8")


# ------------------------------------------------------------------------------------- the files


def test_each_page_has_the_scripts_that_it_needs_and_no_others():
    assert sorted(ORDER) == sorted(p.stem for p in FOLDER.glob("*.js"))
    seen = set()
    for page in PAGES:
        scripts = re.findall(r'<script[^>]* src="[^"]*_static/(\w+)\.js', html(page))
        ours = [name for name in scripts if name in ORDER]
        assert ours == needed(html(page)), page
        assert (ours == list(SCRIPTS)) == (page == PAGE), page
        assert ("_static/lab.css" in html(page)) == (page == PAGE), page
        seen |= set(ours)
    assert seen == set(ORDER)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_plain(name):
    """Classic, strict, narrow, and without what a page from a file forbids."""
    text = (FOLDER / f"{name}.js").read_text("utf-8")
    forbidden = (
        r"\beval\b|\bnew Function\b|\bimport\b|\bexport\b|\bfetch\b|XMLHttp|Worker|innerHTML|"
        r"localStorage|sessionStorage"
    )
    assert text.count('"use strict";') == 1
    assert re.findall(forbidden, text) == []
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("place", ["file", "server"])
def test_the_page_opens(browser, site, place):
    at = SITE.as_uri() if place == "file" else site
    tab = with_context(browser, at)
    turn_to(tab, at)
    assert_shows(tab)
    assert tab.problems == []
    tab.context.close()


def test_without_javascript_there_are_words_and_a_picture(new_reader):
    tab = new_reader(javascript=False).turn_to(PAGE)
    assert "needs JavaScript" in tab.locator("p.sbn-without").inner_text()
    picture = tab.locator("img.sbn-without")
    assert picture.is_visible() and picture.get_attribute("alt")
    assert picture.evaluate("img => img.naturalWidth") > 400
    assert tab.locator("#sbn-lab :is(select, input, button)").count() == 0


DENIED = """
    Object.defineProperty(window, "localStorage", { get() { throw new Error("denied"); } });
    Object.defineProperty(navigator, "clipboard", { value: undefined });
"""


def test_without_storage_and_clipboard_the_link_is_the_address(browser, site):
    tab = with_context(browser, site)
    tab.context.add_init_script(DENIED)
    turn_to(tab, site)
    slider(tab, FIRST_WEIGHT).press("ArrowUp")
    press(tab, "Copy the link")
    assert "copy it from there" in status(tab)
    kept = model(tab)
    turn_to(tab, site, tab.evaluate("location.hash"))
    assert model(tab) == kept
    tab.context.close()


# ----------------------------------------------------------------------------- taking hold of it


def centre(tab, name):
    box = slider(tab, name).locator("circle").last.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def by_mouse(tab):
    x, y = centre(tab, FIRST_WEIGHT)
    tab.mouse.move(x, y)
    tab.mouse.down()
    for dy in (9, 20, 18):  # also back
        tab.mouse.move(x + dy, y - dy)
    tab.mouse.up()
    tab.mouse.move(x, y - 300)  # which is no drag any more


def by_touch(tab):
    x, y = centre(tab, FIRST_WEIGHT)
    touch = tab.context.new_cdp_session(tab)
    send = "Input.dispatchTouchEvent"
    touch.send(send, {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for dy in (9, 20, 18):
        touch.send(send, {"type": "touchMove", "touchPoints": [{"x": x, "y": y - dy}]})
    touch.send(send, {"type": "touchEnd", "touchPoints": []})


def by_keys(tab):
    handle = slider(tab, FIRST_WEIGHT)
    for key in ("0", "PageUp", "PageUp", "ArrowUp", "ArrowRight", "ArrowUp", "ArrowRight",
                "ArrowUp", "Shift+ArrowDown"):  # fmt: skip
        handle.press(key)
    for key in ("ArrowLeft", "PageDown", "PageUp", "ArrowUp", "Shift+ArrowUp"):
        handle.press(key)


@pytest.mark.parametrize("hand", [by_mouse, by_touch, by_keys])
def test_a_weight_is_dragged(request, site, hand):
    """From 2 by 18 pixels, which are a half; keys go to the same place."""
    tab = request.getfixturevalue("phone" if hand is by_touch else "tab")
    tab.locator(".sbn-lab-net").evaluate(
        "box => box.scrollIntoView({ behavior: 'instant', block: 'center' })"
    )
    top, line = tab.evaluate("scrollY"), tab.locator(".sbn-edges line").first
    before, width = readouts(tab), line.get_attribute("stroke-width")
    hand(tab)
    settle(tab)
    assert tab.evaluate("scrollY") == top, "the page stays where it is"
    now = model(tab)
    assert now["layers"][0]["weight"][0] == [2.5, 2]
    handle = slider(tab, FIRST_WEIGHT)
    assert handle.get_attribute("aria-valuenow") == "2.5"
    assert handle.get_attribute("aria-valuetext") == "2.50"
    assert "2.50" in tab.locator(".sbn-net text.sbn-value").all_text_contents()
    assert line.get_attribute("stroke-width") > width
    assert readouts(tab) != before
    assert_shows(tab)
    assert field(tab, "example").input_value() == "", "it is the reader's own now"
    turn_to(tab, site, address(tab))
    assert model(tab) == now
    assert_shows(tab)


def test_an_input_is_dragged_and_keys_of_the_browser_are_its_own(tab):
    handle = slider(tab, "input 1")
    handle.press("ArrowDown")
    assert model(tab)["input"] == [0.9, 1]
    for key in ("Control+0", "Alt+ArrowLeft", "a", "Escape"):
        handle.press(key)
    tab.wait_for_timeout(100)
    assert model(tab)["input"] == [0.9, 1]
    handle.press("Home")
    assert model(tab)["input"] == [0, 1]


def test_a_number_stops_at_twenty_or_where_it_was(tab, site):
    handle = slider(tab, FIRST_WEIGHT)
    for _ in range(25):
        handle.press("PageUp")
    assert model(tab)["layers"][0]["weight"][0][0] == 20
    far = model(tab)
    far["layers"][0]["weight"][0][0] = 35
    turn_to(tab, site, "#" + tab.evaluate("given => SBN.net.encode(given)", far))
    handle = slider(tab, FIRST_WEIGHT)
    assert handle.get_attribute("aria-valuemax") == "35"
    handle.press("ArrowDown")
    assert model(tab)["layers"][0]["weight"][0][0] == 34.9


STOP = """() => {
    const at = document.activeElement, style = (e) => getComputedStyle(e);
    const shape = at.querySelector?.(":scope > :is(circle, rect):not(.sbn-reach)");
    const ring = at.closest("svg") ? parseFloat(style(at.querySelector(
        ":scope > .sbn-rim") || shape).strokeWidth) === 3 : style(at).outlineStyle !== "none";
    return { inside: Boolean(at.closest("#sbn-lab")), ring, tag: at.localName,
             name: at.getAttribute("aria-label") || at.labels?.[0]?.textContent ||
                   at.textContent };
}"""


def next_stop(tab):
    tab.keyboard.press("Tab")
    return tab.evaluate(STOP)


def tab_to(tab, name):
    """On with the tabulator to what has this name; each stop on the way is seen and named."""
    for _ in range(80):
        stop = next_stop(tab)
        if stop["inside"]:
            assert stop["ring"] and stop["name"], stop
        if stop["inside"] and stop["name"] == name:
            return
    raise AssertionError(f"no stop at {name}")


def test_by_the_keyboard_alone(tab):
    """From the first Tab of the page: a weight, another unit, another estimator."""
    assert "Skip" in next_stop(tab)["name"]
    tab.keyboard.press("Enter")
    tab_to(tab, FIRST_WEIGHT)
    tab.keyboard.press("ArrowUp")
    settle(tab)
    assert model(tab)["layers"][0]["weight"][0][0] == 2.1
    for _ in range(80):
        if next_stop(tab)["name"].startswith("unit 2 of layer 2"):
            break
    tab.keyboard.press("Enter")
    settle(tab)
    assert tab.evaluate(STOP)["name"].startswith("unit 2 of layer 2"), "the focus stays"
    assert unit(tab, 2, 2).get_attribute("aria-pressed") == "true"
    assert next_stop(tab)["name"] == "weight from unit 1 to unit 2 of layer 2"
    tab.keyboard.press("PageDown")
    settle(tab)
    assert model(tab)["layers"][1]["weight"][1] == [1, 2, 0]
    tab_to(tab, "estimator")
    tab.keyboard.press("ArrowDown")
    settle(tab)
    assert model(tab)["estimator"] == "zgr"
    assert_shows(tab)
    tab_to(tab, "One step")
    tab.keyboard.press("Enter")
    assert walked(tab) == [1, 1]


def test_every_field_changes_the_model(tab):
    for label, value, path in (
        ("noise", "gaussian", "noise"), ("states", "bits", "coding"),
        ("estimator", "darn", "estimator"), ("scale of the noise", 0.5, "scale"),
    ):  # fmt: skip
        control = field(tab, label)
        choose(tab, label, value) if isinstance(value, str) else write(tab, label, value)
        assert model(tab)[path] == value and control.input_value() == str(value)
        assert_shows(tab)
    choose(tab, "loss", "exponential")
    assert field(tab, "L =").input_value() == "exp((x1 + x2)/2)"
    assert field(tab, "loss").input_value() == "exponential"
    write(tab, "L =", "x1")
    assert field(tab, "loss").input_value() == "", "as typed"
    for name, parameter, ends in (
        ("chain_rule", "s", (-1, 2)), ("shrinkage", "omega", (0, 20)),
        ("reinforce", "baseline", (-5, 15)),
    ):  # fmt: skip
        choose(tab, "estimator", name)
        for end in ends:
            write(tab, parameter, end)
            assert model(tab)["estimator"] == {"name": name, parameter: end}
            assert_shows(tab)
    choose(tab, "estimator", "reinforce, mean")
    assert model(tab)["estimator"] == {"name": "reinforce", "baseline": "mean"}
    assert not field(tab, "baseline").is_visible()


def test_sizes_from_one_unit_to_three_layers_of_eight(tab):
    first = model(tab)["layers"][0]
    largest(tab)
    now = model(tab)
    assert [len(layer["bias"]) for layer in now["layers"]] == [8, 8, 8]
    assert [row[:2] for row in now["layers"][0]["weight"][:3]] == first["weight"], "what was, stays"
    assert tab.locator(".sbn-edges line").count() == 3 * 64
    assert_shows(tab)
    choose(tab, "layer 2", "0")  # and with it the third
    for label in ("inputs", "layer 1"):
        choose(tab, label, "1")
    assert [len(layer["bias"]) for layer in model(tab)["layers"]] == [1]
    assert field(tab, "layer 3").is_disabled()
    assert_shows(tab)


def test_a_drawing_that_is_made_anew_keeps_the_focus_and_fits(tab):
    slider(tab, FIRST_WEIGHT).focus()
    for width in (700, 1280):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.wait_for_function("""width => innerWidth === width
            && [...document.querySelectorAll(".sbn-lab svg")].every((svg) =>
                Math.abs(svg.getAttribute("width") - svg.parentElement.clientWidth) <= 2)""",
                              arg=width)  # fmt: skip
        assert tab.evaluate(STOP)["name"] == FIRST_WEIGHT


# ----------------------------------------------------------------------------------- the address


def test_examples_have_sections_and_their_chapters_lead_to_them(tab):
    presets = tab.evaluate("SBN.net.PRESETS")
    assert [name for _, name in EXAMPLES] == [preset["name"] for preset in presets]
    for (slug, name), preset in zip(EXAMPLES, presets, strict=True):
        assert slug == "lab-" + re.sub(r"[^a-z0-9]+", "-", name.lower())
        (chapter,) = BOOK.glob(f"*/{preset['chapter']:02d}-*.ipynb")
        assert f"]({slug})" in chapter.read_text("utf-8"), f"{chapter.name} does not lead to {slug}"
        assert f'id="{slug}"' in html(PAGE)


def as_formula(tab, k):
    """A preset as the page holds it: its loss is a formula."""
    return tab.evaluate(
        """k => {
            const own = SBN.net.fresh(k), n = own.layers.at(-1).bias.length;
            return { ...own, loss: { kind: "formula", text: SBN.losses.textOf(own.loss, n) } };
        }""",
        k,
    )


@pytest.mark.parametrize("k", range(len(EXAMPLES)), ids=[slug for slug, _ in EXAMPLES])
def test_an_example_opens(tab, site, k):
    """By its address, with the lab in view; then by its link once more, and from the list."""
    turn_to(tab, site, f"#{EXAMPLES[k][0]}")
    opened = as_formula(tab, k)
    assert_is_example(tab, k, opened)
    tab.wait_for_function(
        "Math.abs(document.getElementById('sbn-lab').getBoundingClientRect().y) < 200"
    )
    press(tab, "Begin anew")
    tab.locator("article a", has_text=re.compile(f"^{re.escape(EXAMPLES[k][1])}$")).click()
    settle(tab)
    assert_is_example(tab, k, opened)
    choose(tab, "example", "1")
    choose(tab, "example", str(k))
    assert_is_example(tab, k, opened)
    if k != 1:
        assert address(tab) == f"#{EXAMPLES[k][0]}", "which is how it opens again"


def assert_is_example(tab, k, opened):
    tab.wait_for_function("k => SBN.page.model() && document.querySelector"
                          "('.sbn-lab-top select').value === String(k)", arg=k)  # fmt: skip
    settle(tab)
    assert model(tab) == opened
    assert computed(tab)["value"] == pytest.approx(
        tab.evaluate("k => SBN.lab.compute(SBN.net.fresh(k)).value", k), rel=1e-12
    )
    preset = tab.evaluate("k => SBN.net.PRESETS[k]", k)
    assert tab.locator(".sbn-lab-says").inner_text().startswith(preset["says"])
    assert status(tab) == "" or "aturated" in preset["name"]
    assert_fields_are(tab, opened)
    assert number(readouts(tab)[0]) == pytest.approx(computed(tab)["value"], 5e-3, 5.1e-4)


def assert_fields_are(tab, given):
    estimator = given["estimator"]
    expected = {
        "inputs": len(given["input"]), "layer 1": len(given["layers"][0]["bias"]),
        "noise": given["noise"], "scale of the noise": given["scale"], "states": given["coding"],
        "L =": given["loss"]["text"],
        "estimator": estimator if isinstance(estimator, str) else estimator["name"],
    }  # fmt: skip
    if estimator == {"name": "reinforce", "baseline": "mean"}:
        expected["estimator"] = "reinforce, mean"
    shown = {label: field(tab, label).input_value() for label in expected}
    assert shown == {label: str(value) for label, value in expected.items()}


def test_a_cut_or_altered_address_is_a_fresh_start_with_a_note(tab, site):
    code = tab.evaluate("SBN.net.encode(SBN.net.fresh(3))")
    altered = code[:20] + ("B" if code[20] == "A" else "A") + code[21:]
    for broken in (code[:-3], code[:10], altered, "1", "7" + code[1:], "1%E4", "lab-nothing"):
        turn_to(tab, site, f"#{broken}")
        assert "this is the network of chapter 2" in status(tab), broken
        assert model(tab) == as_formula(tab, 0)
        assert_shows(tab)
    slider(tab, FIRST_WEIGHT).press("ArrowUp")
    settle(tab)
    assert status(tab) == ""
    turn_to(tab, site, address(tab))
    assert status(tab) == "" and model(tab)["layers"][0]["weight"][0][0] == 2.1


def test_back_and_forward_go_between_networks(tab, site):
    turn_to(tab, site, f"#{EXAMPLES[3][0]}")
    slider(tab, FIRST_WEIGHT).press("ArrowUp")
    own = model(tab)
    address(tab)
    tab.evaluate("slug => { location.hash = slug; }", EXAMPLES[7][0])
    tab.wait_for_function("SBN.page.model().layers[0].bias.length === 2")
    tab.go_back()
    tab.wait_for_function("SBN.page.model().layers[0].bias.length === 3")
    assert model(tab) == own
    tab.go_forward()
    tab.wait_for_function("SBN.page.model().layers[0].bias.length === 2")
    assert field(tab, "example").input_value() == "7"
    tab.reload()
    tab.wait_for_function("window.SBN?.page?.found()")
    assert field(tab, "example").input_value() == "7"


# -------------------------------------------------------------------------- what cannot be computed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x1 + *x2", "At character 6: expected a number, x1, x2, or '('; got '*'"),
        ("x3", "At character 1: 'x3' is not known here: use x1, x2, pi, "),
        ("", "At character 1: expected a number"),
        ("log(x1)", "loss must be finite at every state, got NaN at (-1, -1)"),
        ("sqrt(-1)", "loss must be finite at every state, got NaN at (-1, -1)"),
        ("sqrt(1 + x1)", "loss must have a finite slope in x1 for ST at every state"),
    ],
)
def test_a_wrong_formula_is_told_and_the_drawing_stays(tab, text, says):
    before = tab.locator(".sbn-net .sbn-level").evaluate_all("all => all.map(e => e.outerHTML)")
    write(tab, "L =", text)
    assert wrong(tab).startswith(says)
    assert field(tab, "L =").get_attribute("aria-invalid") == "true"
    assert readouts(tab) == 5 * ["–"]
    now = tab.locator(".sbn-net .sbn-level").evaluate_all("all => all.map(e => e.outerHTML)")
    assert now == before
    for name in ("One step", "Walk", "Copy the link"):
        press(tab, name)
        assert "mend the formula first" in status(tab)
    press(tab, "Draw a path")
    slider(tab, FIRST_WEIGHT).press("ArrowUp")  # which can be done without a loss
    settle(tab)
    assert slider(tab, FIRST_WEIGHT).get_attribute("aria-valuetext") == "2.10"
    write(tab, "L =", "x1 - 2*x2")
    assert wrong(tab) == status(tab) == ""
    assert field(tab, "L =").get_attribute("aria-invalid") is None
    assert_shows(tab)


def test_a_loss_without_a_value_in_the_address_still_has_a_network(tab, site):
    bad = model(tab) | {"loss": {"kind": "formula", "text": "log(x1)"}}
    turn_to(tab, site, "#" + tab.evaluate("given => SBN.net.encode(given)", bad))
    assert tab.locator(".sbn-unit").count() == 5
    assert wrong(tab).startswith("loss must be finite")


def test_bits_have_other_states_where_a_loss_may_have_no_value(tab):
    write(tab, "L =", "1/x1")
    assert wrong(tab) == ""
    choose(tab, "states", "bits")
    assert "at (0, 0)" in wrong(tab)
    assert re.search(r"chance of 1 [\d.]+$", unit(tab, 1, 1).get_attribute("aria-label"))
    assert "000" in tab.locator(".sbn-chart").nth(1).text_content()


def test_saturated_units_are_named(tab, site):
    turn_to(tab, site, "#lab-uniform-noise-nothing-saturated")
    assert status(tab) == ""
    write(tab, "scale of the noise", 0.9)
    assert status(tab).startswith("Saturated: unit 1 of layer 1. ")
    assert "no gradient passes" in status(tab)
    assert "after some of the states below: unit 1 of layer 2, " in status(tab)
    choose(tab, "noise", "gaussian")
    assert status(tab) == ""
    turn_to(tab, site, "#lab-one-saturated-state")
    assert "after some of the states below: unit 1 of layer 2. " in status(tab)


# --------------------------------------------------------------------------------------- chance


def told_paths(tab):
    """The count in the caption over the probabilities."""
    words = tab.locator("figcaption").nth(1).text_content()
    if "one drawn path" in words:
        return 1
    found = re.search(r"shares in (\d+) drawn paths", words)
    return int(found[1]) if found else 0


def test_drawn_paths_are_counted_and_shown(tab):
    assert told_paths(tab) == 0
    press(tab, "Draw a path")
    assert told_paths(tab) == 1
    label = unit(tab, 1, 1).get_attribute("aria-label")
    assert re.search(r"state (minus )?1$", label)
    press(tab, "Draw a path", 2)
    assert told_paths(tab) == 3
    press(tab, "Keep drawing")
    keep = tab.get_by_role("button", name="Keep drawing")
    assert keep.get_attribute("aria-pressed") == "true"
    tab.wait_for_function(
        "parseInt(document.querySelectorAll('figcaption')[1].textContent.match(/\\d+ dr/)) > 500"
    )
    press(tab, "Keep drawing")
    assert keep.get_attribute("aria-pressed") == "false"
    rest = told_paths(tab)
    settle(tab)
    assert told_paths(tab) == rest > 500
    press(tab, "Forget the paths")
    assert told_paths(tab) == 0
    assert "chance" in unit(tab, 1, 1).get_attribute("aria-label")


def test_a_change_stops_what_goes_on(tab):
    for name in ("Keep drawing", "Walk"):
        press(tab, name)
        slider(tab, FIRST_WEIGHT).press("ArrowUp")
        settle(tab)
        button = tab.get_by_role("button", name=name, exact=True)
        assert button.get_attribute("aria-pressed") == "false"
        assert told_paths(tab) == 0 and walked(tab) is None


def test_shares_of_paths_are_near_the_probabilities(tab):
    """Within 5 standard errors at each of 44 states: a false alarm in 4e4 for normal counts."""
    paths = 100_000
    for coding, noise in (("signs", "logistic"), ("bits", "uniform")):
        given = tab.evaluate("SBN.net.fresh(9)") | {"coding": coding, "noise": noise}
        given["layers"] = given["layers"][:2] + [{"weight": [[1, -1, 0.5]], "bias": [0.2]}]
        given["loss"] = {"kind": "formula", "text": "x1"}
        counts = tab.evaluate(
            """([given, paths]) => {
                const sampler = SBN.walk.sampler(5);
                sampler.draw(given, paths);
                return given.layers.map((_, k) => [...sampler.counts(k)]);
            }""",
            [given, paths],
        )
        for count, law in zip(counts, computed(tab, given)["laws"], strict=True):
            p = np.array(law)
            assert sum(count) == paths
            error = np.sqrt(paths * p * (1 - p))
            assert (np.abs(np.array(count) - paths * p) <= 5 * error + 1e-6).all()


CHANCE = [
    *("straight_through", "zgr", "darn", "identity"),
    {"name": "chain_rule", "s": 0.5},
    {"name": "reinforce", "baseline": 0.7},
    {"name": "reinforce", "baseline": "mean"},
]


@pytest.mark.parametrize("coding", ["signs", "bits"])
@pytest.mark.parametrize("estimator", CHANCE, ids=json.dumps)
def test_estimates_have_the_mean_and_the_variance(tab, estimator, coding):
    """5 standard errors, for 17 parameters: a false alarm in 5e4 for each, if sums are normal."""
    layers = [
        {"weight": [[0.7, -0.4], [0.3, 0.9], [-0.5, 0.2]], "bias": [0.1, -0.3, 0.2]},
        {"weight": [[0.6, -0.7, 0.4], [-0.3, 0.5, 0.8]], "bias": [-0.2, 0.3]},
    ]
    given = {
        "layers": layers, "input": [1, -0.5], "noise": "logistic", "scale": 1, "coding": coding,
        "loss": {"kind": "formula", "text": "x1^2 + x1*x2 - exp(x2/2)"}, "estimator": estimator,
    }  # fmt: skip
    draws = 40_000
    mean, *powers = tab.evaluate(
        """([given, draws]) => {
            const exact = SBN.lab.compute(given), uniform = SBN.walk.random(3);
            const mean = SBN.view.all(exact.mean), sums = [1, 2, 3, 4].map(() => mean.map(() => 0));
            for (let t = 0; t < draws; t += 1) {
                SBN.view.all(SBN.walk.estimate(given, uniform, exact.value)).forEach((g, i) =>
                    sums.forEach((sum, k) => { sum[i] += (g - mean[i]) ** (k + 1) / draws; }));
            }
            return [mean, ...sums];
        }""",
        [given, draws],
    )
    answer = computed(tab, given)
    first, second, _, fourth = np.array(powers)
    variance = flat(answer["variance"])
    np.testing.assert_allclose(mean, flat(answer["mean"]))
    rounding = 1e-12
    assert (np.abs(first) <= 5 * np.sqrt(variance / draws) + rounding).all()
    error = np.sqrt(np.maximum(fourth - second**2, 0) / draws)
    assert (np.abs(second - variance) <= 5 * error + rounding).all()


# -------------------------------------------------------------------------------------- descent


def walked(tab):
    """How many steps the two lines of the chart have; None while there is none."""
    lines = tab.locator(".sbn-chart .sbn-walk")
    return [d.get_attribute("d").count("L") for d in lines.all()] or None


DESCENT = """([given, rate, samples, steps]) => {
    const walk = SBN.walk.descent(given, { rate, samples });
    for (let t = 0; t < steps; t += 1) walk.step();
    return walk;
}"""


def test_the_exact_walk_goes_down_the_expected_loss(tab):
    for k, samples in ((0, 1), (8, 10), (3, 0)):
        given = as_formula(tab, k)
        walk = tab.evaluate(DESCENT, [given, 0.1, samples, 30])
        losses = np.array(walk["losses"]["exact"])
        assert len(losses) == len(walk["losses"]["estimated"]) == 31
        assert (np.diff(losses) < 0).all()
        assert losses[0] == walk["losses"]["estimated"][0] == computed(tab, given)["value"]
        for which in ("exact", "estimated"):
            assert walk["losses"][which][-1] == computed(tab, walk["at"][which])["value"]


def test_a_step_goes_against_the_gradient_and_against_the_mean(tab):
    given = as_formula(tab, 7)
    walk, answer = tab.evaluate(DESCENT, [given, 0.5, 0, 1]), computed(tab, given)
    for which, direction in (("exact", "gradient"), ("estimated", "mean")):
        expected = flat(given["layers"]) - 0.5 * flat(answer[direction])
        np.testing.assert_allclose(flat(walk["at"][which]["layers"]), expected, 1e-13)


def test_each_press_is_a_step_and_the_end_can_be_taken(tab):
    start = model(tab)
    press(tab, "Take the end of the estimator's walk")
    assert "no walk yet" in status(tab) and model(tab) == start
    for presses in (1, 2, 3):
        press(tab, "One step")
        assert walked(tab) == [presses, presses]
    assert model(tab) == start
    end = tab.evaluate(DESCENT, [start, 0.3, 1, 3])["at"]["estimated"]
    press(tab, "Take the end of the estimator's walk")
    np.testing.assert_allclose(flat(model(tab)["layers"]), flat(end["layers"]), 0, 5.1e-4)
    assert model(tab) != start and walked(tab) is None
    assert_shows(tab)
    write(tab, "step size", 2)
    press(tab, "One step", 2)
    write(tab, "step size", 1)
    assert walked(tab) is None, "another kind of walk begins at the start"


# --------------------------------------------------------------------------- tables and pictures


def rows(tab, k):
    body = tab.locator(".sbn-lab-table tbody").nth(k)
    return body.evaluate(
        "body => [...body.rows].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )


def test_the_tables_have_the_numbers(tab):
    tab.get_by_text("All numbers as tables").click()
    settle(tab)
    answer, now = computed(tab), model(tab)
    parameters, states = rows(tab, 0), rows(tab, 1)
    assert parameters[0][0] == FIRST_WEIGHT and parameters[2][0] == "bias of unit 1 of layer 1"
    wanted = np.column_stack(
        [by_unit(now["layers"]), *(by_unit(answer[key]) for key in ("gradient", "mean")),
         np.sqrt(by_unit(answer["variance"]))])  # fmt: skip
    shown = [[number(cell) for cell in row[1:]] for row in parameters]
    np.testing.assert_allclose(shown, wanted, 5e-4, 5.1e-5)
    assert [row[1] for row in states[:8]] == [
        "−−−", "−−+", "−+−", "−++", "+−−", "+−+", "++−", "+++"]  # fmt: skip
    shares = [number(row[2]) for row in states]
    np.testing.assert_allclose(shares, np.concatenate(answer["laws"]), 0.06, 5.1e-5)
    assert {row[3] for row in states} == {"–"}
    press(tab, "Draw a path")
    assert sum(number(row[3]) for row in rows(tab, 1)) == 2, "one state a layer"


def by_unit(layers):
    """As the table goes: of each unit its weights, then its bias."""
    return np.concatenate(
        [np.append(row, b) for k in layers for row, b in zip(k["weight"], k["bias"], strict=True)]
    )


SVG = "{http://www.w3.org/2000/svg}"


def parts(svg):
    """What is drawn in a picture: the elements in their order, with their words."""
    return [(e.tag.removeprefix(SVG), (e.text or "").strip()) for e in ET.fromstring(svg).iter()]


def test_the_saved_picture_needs_no_page(tab):
    text = tab.evaluate("SBN.page.file()")
    picture = ET.fromstring(text)
    assert picture.tag == SVG + "svg"
    attributes = {name for e in picture.iter() for name in e.attrib}
    assert not {a for a in attributes if re.match("class|tabindex|role|aria-|data-", a)}
    assert "var(" not in text and {"svg", "path", "circle", "text"} <= {t for t, _ in parts(text)}
    with tab.expect_download() as offered:
        press(tab, "Save the pictures")
    assert offered.value.suggested_filename == "lab.svg"
    assert offered.value.path().read_text("utf-8") == text


def test_the_picture_for_those_without_scripts_is_the_drawing(tab):
    """To renew it: SBN.page.file() of the page as it opens, 1280 pixels wide, in light."""
    kept = (BOOK / "assets" / "lab.svg").read_text("utf-8")
    assert parts(kept) == parts(tab.evaluate("SBN.page.file()"))


# ------------------------------------------------------------------------------ phones, colours


@pytest.mark.parametrize("width", [PHONE, 320])
def test_the_largest_network_fits_a_phone(phone, width):
    phone.set_viewport_size({"width": width, "height": 800})
    largest(phone)
    write(phone, "L =", "x1" * 60)
    phone.get_by_text("All numbers as tables").click()
    press(phone, "Draw a path")
    settle(phone)
    assert phone.evaluate("document.documentElement.scrollWidth") <= width
    phone.set_viewport_size({"width": PHONE, "height": 800})


def test_what_is_touched_is_large_enough(phone):
    """24 pixels at least, which in the drawing hold for what is taken hold of."""
    largest(phone)
    choose(phone, "estimator", "chain_rule")
    small = phone.evaluate("""() => [...document.querySelectorAll(
            "#sbn-lab :is(select, input, button, summary, [role=slider], [role=button])")]
        .map((e) => [e.getAttribute("aria-label") || e.textContent || e.id,
                     e.getBoundingClientRect()])
        .filter(([, { width, height }]) => height && (height < 24 || width < 24))
        .map(([name]) => name)""")
    assert small == []


CONTRAST = """() => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (e) => {
        const rect = e.parentElement.querySelector(":scope > rect");  // of an input
        if (e.localName === "text" && rect) return getComputedStyle(rect).fill;
        for (; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if (colour !== "rgba(0, 0, 0, 0)") return colour;
        }
    };
    const words = "text, label, select, input[type=text], button, dt, dd, p, output, th, td";
    return [...document.querySelectorAll(`#sbn-lab :is(${words})`)]
        .filter((e) => e.getBoundingClientRect().height)
        .map((e) => {
            const style = getComputedStyle(e);
            const pair = [e.localName === "text" ? style.fill : style.color, ground(e)];
            const [low, high] = pair.map(luminance).sort((a, b) => a - b);
            return [(high + 0.05) / (low + 0.05), e.textContent, ...pair];
        });
}"""


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_words_stand_out(tab, site, colors):
    tab.emulate_media(color_scheme=colors)
    turn_to(tab, site, "#lab-one-saturated-state")  # which has a note
    write(tab, "L =", "x1 +")  # and what is wrong
    press(tab, "Draw a path")
    tab.get_by_text("All numbers as tables").click()
    tab.wait_for_function("!document.getAnimations().some(a => a instanceof CSSTransition)")
    assert tab.evaluate("document.documentElement.dataset.theme") == colors
    found = tab.evaluate(CONTRAST)
    assert len(found) > 60
    assert [pair for pair in found if pair[0] < 4.5] == []
    tab.emulate_media(color_scheme="light")


# --------------------------------------------------------------------------------- the formulas


def at_states(tab, n, loss):
    """A loss at every state, as the value of units that are as good as decided."""
    found = []
    for r in range(2**n):
        bias = [50.0 if r >> (n - 1 - i) & 1 else -50.0 for i in range(n)]
        given = {
            "layers": [{"weight": [[0.0]] * n, "bias": bias}], "input": [0], "noise": "logistic",
            "loss": loss, "estimator": {"name": "reinforce", "baseline": 0},
        }  # fmt: skip
        found.append(computed(tab, given)["value"])
    return found


def test_a_loss_as_a_formula_is_the_loss(tab):
    rng = np.random.default_rng(2)
    for n in (1, 2, 3, 4):
        A, c = rng.normal(size=(n, n)).round(2), rng.normal(size=n).round(2)
        A[0, -1], c[0] = 0, 1
        heads = [(rng.normal(size=(k, n)).round(2), rng.normal(size=k).round(2)) for k in (2, 4)]
        heads.append((np.vstack([np.zeros(n), np.ones(n)]), np.zeros(2)))
        losses = [{"kind": "quadratic", "A": A.tolist(), "c": c.tolist()}]
        losses += [
            {"kind": "cross_entropy", "weight": W.tolist(), "bias": b.tolist(), "target": target}
            for W, b in heads
            for target in (0, len(b) - 1)
        ]
        for loss in losses:
            text = tab.evaluate("([loss, n]) => SBN.losses.textOf(loss, n)", [loss, n])
            typed = at_states(tab, n, {"kind": "formula", "text": text})
            np.testing.assert_allclose(typed, at_states(tab, n, loss), 1e-12, 1e-12, err_msg=text)


LISTED = {
    "distance": lambda x: ((x - (-1.0) ** np.arange(len(x))) ** 2).sum() / 2,
    "coupled": lambda x: (x**2).sum() / 2 + (x[1:] * x[:-1]).sum(),
    "product": lambda x: x.prod(),
    "exponential": lambda x: np.exp(x.mean()),
    "classes": lambda x: np.log1p(np.exp(-2 * x.sum())),
}


def test_losses_of_the_list(tab):
    assert set(tab.evaluate("Object.keys(SBN.losses.KINDS)")) == set(LISTED)
    for n in (1, 2, 3):
        states = [np.array([1.0 if r >> (n - 1 - i) & 1 else -1.0 for i in range(n)])
                  for r in range(2**n)]  # fmt: skip
        for kind, expected in LISTED.items():
            text = tab.evaluate("([kind, n]) => SBN.losses.formulaOf(kind, n)", [kind, n])
            found = at_states(tab, n, {"kind": "formula", "text": text})
            np.testing.assert_allclose(found, [expected(x) for x in states], 1e-12, 1e-12)


# ------------------------------------------------------------------- what is said of the examples


def example(tab, slug, **change):
    """An example with parts of its model changed, computed: the five numbers, and the answer."""
    k = [s for s, _ in EXAMPLES].index(f"lab-{slug}")
    given = as_formula(tab, k) | change
    if isinstance(given["loss"], str):
        given["loss"] = {"kind": "formula", "text": given["loss"]}
    answer = computed(tab, given)
    with np.errstate(all="ignore"):  # a gradient may be zero
        return readouts_of(answer), answer


def bias(answer):
    return np.linalg.norm(flat(answer["mean"]) - flat(answer["gradient"]))


def test_what_the_examples_say_is_so(tab):
    """The sentences on the page, in its order."""
    (_, signs), (_, bits) = example(tab, "xor-by-two-votes"), example(tab, "the-same-in-bits")
    first, upper = zip(signs["gradient"], bits["gradient"], strict=True)
    np.testing.assert_allclose(flat(first[:1]), flat(first[1:]))
    np.testing.assert_allclose(upper[0]["bias"], upper[1]["bias"])
    half = (np.array(upper[0]["weight"]) + np.array(upper[0]["bias"])[:, None]) / 2
    np.testing.assert_allclose(upper[1]["weight"], half)

    same = "1.7 + 0.8*x1 - 0.5*x2 + 0.4*x1*x2"
    for text, biased in (
        (same.replace("0.8*x1", "0.8*x1^3"), {"straight_through", "zgr"}),
        (same + " + x1^2 - 1", {"straight_through"}),
    ):
        _, answer = example(tab, "four-losses-two-units")
        for name in ("straight_through", "zgr", {"name": "reinforce", "baseline": "mean"}):
            _, other = example(tab, "four-losses-two-units", loss=text, estimator=name)
            np.testing.assert_allclose(flat(other["gradient"]), flat(answer["gradient"]))
            assert (bias(other) > 0.1) == (isinstance(name, str) and name in biased)

    constant, _ = example(tab, "a-constant-in-the-loss")
    for change in ({"loss": "x1 - x2 + 0.5*x3"},
                   {"estimator": {"name": "reinforce", "baseline": "mean"}}):  # fmt: skip
        without, _ = example(tab, "a-constant-in-the-loss", **change)
        assert without[1] == pytest.approx(constant[1]) and without[3] < constant[3] / 5

    wide, _ = example(tab, "a-product-of-eight")
    slopes, _ = example(tab, "a-product-of-eight", estimator="straight_through")
    assert 0.9 < slopes[3] / wide[3] < 1, "which is no help"

    assert bias(example(tab, "a-product-of-bits")[1]) < 1e-15
    _, square = example(tab, "a-square-is-a-constant")
    assert np.abs(flat(square["gradient"])).max() == 0 and (flat(square["mean"]) > 0.1).all()
    bowl = example(tab, "a-bowl-over-two-units")
    _, answer = example(tab, "a-bowl-over-two-units", loss="0.5*x1*x2 + 0.3*x1 - 0.5*x2")
    assert bias(bowl[1]) > 0.1 and bias(answer) < 1e-15
    assert bowl[1]["value"] - answer["value"] == pytest.approx(1)

    deep, answer = example(tab, "three-layers-a-linear-loss")
    per_layer = [
        np.abs(flat([m]) - flat([g])).max()
        for m, g in zip(answer["mean"], answer["gradient"], strict=True)
    ]
    assert per_layer[2] < 1e-15 and min(per_layer[:2]) > 1e-3
    assert example(tab, "three-layers-a-linear-loss", scale=2)[0][4] < deep[4] / 5
    uniform = "uniform-noise-nothing-saturated"
    for scale in (1.2, 1.05):
        assert bias(example(tab, uniform, scale=scale)[1]) < 1e-12
    assert bias(example(tab, uniform, scale=0.95)[1]) > 0.1

    slope, _ = example(tab, "the-wrong-slope")
    assert slope[4] > 5 and bias(example(tab, "the-wrong-slope",
                                         estimator="straight_through")[1]) < 1e-15  # fmt: skip
    calm, _ = example(tab, "a-decided-unit", estimator="straight_through")
    assert example(tab, "a-decided-unit")[0][3] > 3 * calm[3]
    line = {s: example(tab, "along-the-line", estimator={"name": "chain_rule", "s": s})
            for s in (-1, -0.5, 0, 0.5, 1)}  # fmt: skip
    assert [s for s in line if bias(line[s][1]) < 1e-12] == [0]
    assert (np.diff([line[s][0][3] for s in line]) < 0).all(), "towards straight-through"
    for s in (-1, 0, 1):
        _, cube = example(tab, "a-cube-as-good-as-linear", estimator={"name": "chain_rule", "s": s})
        np.testing.assert_allclose(flat(cube["mean"]), 3 * flat(cube["gradient"]))
    mean, _ = example(tab, "the-mean-as-a-baseline")
    zero, _ = example(tab, "the-mean-as-a-baseline", estimator={"name": "reinforce", "baseline": 0})
    assert mean[3] < 0.7 * zero[3]


def test_a_layer_below_a_product_makes_straight_through_biased(tab, site):
    """In the first layer; the example asks to build it."""
    turn_to(tab, site, "#lab-a-product-of-bits")
    choose(tab, "layer 2", "3")
    assert model(tab)["loss"]["text"] == "x1*x2*x3"
    answer = computed(tab)
    lower, upper = (np.abs(flat([m]) - flat([g])).max()
                    for m, g in zip(answer["mean"], answer["gradient"], strict=True))  # fmt: skip
    assert upper < 1e-15 and lower > 1e-4
    assert_shows(tab)


# ---------------------------------------------------------------------------------------- times


def test_time_of_a_drag(tab):
    """Printed, not asserted: a key on a weight of the largest network, and all that follows."""
    largest(tab)
    times, alone = tab.evaluate("""() => {
        const timed = (work) => {
            const start = performance.now();
            work();
            return performance.now() - start;
        };
        const handle = document.querySelector("[role=slider][aria-label^='weight']");
        const key = () => handle.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp" }));
        const frame = window.requestAnimationFrame;
        window.requestAnimationFrame = (then) => { then(); };
        const drags = Array.from({ length: 40 }, () => timed(key));
        window.requestAnimationFrame = frame;
        const model = SBN.page.model();
        return [drags, Array.from({ length: 40 }, () => timed(() => SBN.lab.compute(model)))];
    }""")
    print(f"8-8-8-8: a drag {np.median(times[5:]):.1f} ms, compute {np.median(alone[5:]):.1f} ms")
