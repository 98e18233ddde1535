"""Exercises that check themselves in the page: its judge says what the notebook's checker says."""

import itertools
import json
import random
import re
from contextlib import redirect_stdout
from html.parser import HTMLParser
from io import StringIO

import nbformat
import pytest
from places import ROOT, SITE
from visit import CHAPTERS, html, note_problems, without_mathematics

from sbnlib import exercises

pytestmark = [pytest.mark.site, pytest.mark.usefixtures("site")]

KINDS = (exercises.Number, exercises.Choice, exercises.Formula)
EXERCISE = re.compile(r"\{exercise\}.*\n:label: (\S+)")
NONSENSE = [
    "", " ", "abc", "1/0", "1e999", "-1e999", "0/0", "1^(1/0)", "9e307*99", "log(0)",
    "exp(1000)", "2x", "2 3", "1_000", "0x10", "((", "sqrt 4", "f(2)", "1,5", "don't",
    'a "b" \'c\'', "\\", "µ", "−1", "🙂" * 9, "a" * 28, "a" * 29, "1+" * 30, "2**3", " - 1 ",
    "1e-7", "1234565", "262144.5", "1e21", "True",
]  # fmt: skip


# ---------------------------------------------------------------------------- what there is


def checkers(page):
    """The checkers of a chapter that a page can have, each by the exercise above it."""
    found, label = {}, ""
    for cell in nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells:
        label = [label, *EXERCISE.findall(cell.source)][-1]
        if "checker" in cell.metadata.get("tags", []) and "exercises.Function(" not in cell.source:
            space = {}
            exec(f"from sbnlib import exercises\n{cell.source}", space)
            (found[label],) = (v for v in space.values() if isinstance(v, exercises.Answer))
    return found


class Boxes(HTMLParser):
    """The data of each exercise in a page."""

    def __init__(self, page):
        super().__init__()
        self.data, self.label, self.inside = {}, "", False
        self.feed(html(page))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "exercise" in (given.get("class") or "").split():
            self.label = given["id"]
        self.inside = tag == "script" and given.get("type") == "application/json"

    def handle_data(self, text):
        if self.inside and self.label:
            self.data[self.label] = json.loads(text)
            self.inside = False


@pytest.mark.parametrize("page", CHAPTERS)
def test_every_chapter_has_two_and_their_data_are_the_checkers(page):
    want = checkers(page)
    assert len(want) >= 2 and all(isinstance(check, KINDS) for check in want.values())
    assert Boxes(page).data == {k: json.loads(json.dumps(c.data())) for k, c in want.items()}


def test_pages_without_such_exercises_load_no_scripts_for_them():
    loaded = {p.relative_to(SITE).with_suffix("").as_posix() for p in SITE.rglob("*.html")
              if "/answers.js" in p.read_text("utf-8")}  # fmt: skip
    assert loaded == set(CHAPTERS)


# ----------------------------------------------------------------------------- what is said


def said(check, answer):
    """The verdict and the sentence of the notebook."""
    out = StringIO()
    with redirect_stdout(out):
        right = check(answer)
    return {"right": right, "says": out.getvalue().removesuffix("\n")}


def answers(check):
    """The right answer, the named wrong ones, the ends of the tolerance, and nonsense."""
    if isinstance(check, exercises.Choice):
        every = range(len(check.options) + 1)
        return [list(s) for k in every for s in itertools.combinations(check.options, k)]
    value, t = check.value, check.tolerance
    named = [wrong for wrong, _ in check.wrong]
    if isinstance(check, exercises.Number):
        ends = [w + s * t for w in (value, *named) for s in (-1.001, -1, -0.999, 0.999, 1, 1.001)]
        return [*map(repr, [value, *named, *ends]), f"2*({value!r})/2", *NONSENSE]
    ends = [f"({value}) + {s * t:.17f}" for s in (-1.1, -0.9, 0.9, 1.1)]
    return [value, *named, *ends, f"2*({value})/2", *check.at, *NONSENSE]


JUDGE = "([data, answers]) => answers.map(answer => SBN.answers.judge(data, answer))"


@pytest.fixture(scope="module")
def reader(new_reader):
    return new_reader(mathematics=False)


@pytest.mark.parametrize("page", CHAPTERS)
def test_the_page_says_what_the_notebook_says(reader, page):
    tab = reader.turn_to(page)
    for label, check in checkers(page).items():
        tried = answers(check)
        got = tab.evaluate(JUDGE, [Boxes(page).data[label], tried])
        told = [said(check, answer) for answer in tried]
        assert [(t, g) for t, g, w in zip(tried, got, told, strict=True) if g != w] == [], label
        words = {answer["says"] for answer in told}
        assert {check.right, *(says for _, says in check.wrong)} <= words
        assert through_the_form(tab, label, check) == (check.right, "true")
    assert tab.problems == []


def through_the_form(tab, label, check):
    """What stands under the field of an exercise when the right answer was handed in."""
    choice = isinstance(check, exercises.Choice)
    given = list(check.data()["value"]) if choice else str(check.value)
    says, right = tab.evaluate(
        """([label, given]) => {
            const form = document.querySelector(`#${label} .sbn-check form`);
            for (const input of form.querySelectorAll("input"))
                if (input.type === "text") input.value = given;
                else input.checked = given.includes(input.value);
            form.requestSubmit();
            return [form.querySelector(".sbn-says"), form].map(e => e.dataset.right ?? e.innerText);
        }""",
        [label, given],
    )
    return says, right


def formulas(count):
    """Texts of the pieces of formulas, some of them formulas."""
    pieces = [
        "1",
        "2",
        "0",
        "0.5",
        ".5",
        "3.",
        "1e3",
        "x",
        "y",
        "pi",
        "sqrt(",
        "exp(",
        "log(",
        "abs(",
        "(",
        ")",
        ")",
        ")",
        "+",
        "-",
        "*",
        "/",
        "^",
        "**",
        " ",
        "_",
        "e",
        "'",
    ]
    draw = random.Random(19)
    return ["".join(draw.choices(pieces, k=draw.randint(1, 9))) for _ in range(count)]


def test_any_text_is_judged_alike(reader):
    """Also where a step on the way has no value, and where nothing can be read."""
    number = exercises.Number(0.5, tolerance=0.1, wrong=[(2, "two"), (0, "nothing")])
    formula = exercises.Formula(
        "x/(1 + y)", at={"x": [2, 0.5], "y": [1, 0.25]}, wrong=[("x", "divide"), ("y^-1", "turn")]
    )
    tab, tried = reader.turn_to(CHAPTERS[0]), [*NONSENSE, *formulas(3000)]
    assert len({said(formula, text)["says"] for text in tried}) > 100, "formulas among them"
    for check in (number, formula):
        got = tab.evaluate(JUDGE, [check.data(), tried])
        assert [(t, g) for t, g in zip(tried, got, strict=True) if g != said(check, t)] == []


# ------------------------------------------------------------------------ what is remembered

PAGE = "book/2-activations/07-deep-straight-through"
PICK, NUMBER = "ex-07-exact", "ex-07-saturate"


@pytest.fixture
def fresh(browser, site):
    """fresh(…): a tab of a new reader, who keeps what pages store; the same one at each call."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    without_mathematics(context)

    def turn_to(page, address=site):
        tab = context.new_page()
        note_problems(tab, address)
        tab.goto(f"{address}/{page}.html")
        return tab

    turn_to.context = context
    yield turn_to
    context.close()


def solve(tab, label, answer):
    tab.locator(f"#{label} input[type=text]").fill(answer)
    tab.locator(f"#{label} input[type=text]").press("Enter")
    return tab.locator(f"#{label} .sbn-says").inner_text()


def ticks(tab):
    """The solved exercises, and what stands in the list of contents."""
    boxes = tab.locator(".exercise:has(.admonition-title .sbn-tick)").all()
    entry = tab.locator(".page-toc a[href='#exercises'] .sbn-tick").all_text_contents()
    return [box.get_attribute("id") for box in boxes], entry


KEPT = "() => Object.keys(localStorage).filter(key => key.startsWith('sbn.')).sort()"


def test_what_is_solved_is_kept_until_it_is_forgotten(fresh):
    tab = fresh(PAGE)
    assert ticks(tab) == ([], [])
    assert solve(tab, NUMBER, "1/3").startswith("the sign")
    assert ticks(tab) == ([], []) and tab.evaluate(KEPT) == []
    assert solve(tab, NUMBER, "-1/3").startswith("right")
    assert ticks(tab) == ([NUMBER], ["✓ 1 of 2 solved"])
    assert solve(tab, NUMBER, "7") == "7 is not it"
    assert ticks(tab)[0] == [NUMBER], "solved once is solved"

    again = fresh(PAGE)
    assert ticks(again) == ([NUMBER], ["✓ 1 of 2 solved"])
    other = fresh("book/4-practice/16-how-deep")
    assert ticks(other) == ([], [])
    solve(other, "ex-16-scale", "3.913")
    assert other.evaluate(KEPT) == [f"sbn.solved.{label}" for label in (NUMBER, "ex-16-scale")]
    other.evaluate("localStorage.setItem('someone else', 'is left alone')")
    button = other.get_by_role("button", name="Forget what I have solved")
    button.click()
    assert ticks(other) == ([], []) and other.evaluate(KEPT) == []
    assert other.locator(".sbn-forget [role=status]").inner_text() == "Forgotten, in all chapters."
    assert other.evaluate("localStorage.getItem('someone else')") == "is left alone"
    assert ticks(fresh(PAGE)) == ([], [])
    assert [p for page in fresh.context.pages for p in page.problems] == []


@pytest.mark.parametrize(
    "broken",
    [
        "Storage.prototype.setItem = () => { throw new Error('full'); }",
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('none'); } })",
    ],
    ids=["full", "missing"],
)
def test_a_browser_that_keeps_nothing_hinders_nobody(fresh, broken):
    fresh.context.add_init_script(broken)
    tab = fresh(PAGE)
    tab.problems.clear()  # the theme's own scripts may miss it
    assert solve(tab, NUMBER, "-1/3").startswith("right")
    assert ticks(tab) == ([NUMBER], ["✓ 1 of 2 solved"])
    tab.get_by_role("button", name="Forget what I have solved").click()
    assert ticks(tab) == ([], [])
    assert tab.problems == []


def test_nothing_is_sent(fresh):
    tab, requests = fresh(PAGE), []
    tab.wait_for_load_state("networkidle")
    tab.on("request", lambda r: r.url.endswith("favicon.svg") or requests.append(r.url))
    solve(tab, NUMBER, "-1/3")
    tab.locator(f"#{PICK} input").first.check()
    tab.locator(f"#{PICK} button[type=submit]").click()
    tab.get_by_role("button", name="Forget what I have solved").click()
    tab.wait_for_timeout(200)
    assert requests == [] and tab.problems == []


# ---------------------------------------------------------------------------- ways to read


def test_from_a_folder_without_a_server(fresh):
    tab = fresh(PAGE, address=SITE.as_uri())
    assert solve(tab, NUMBER, "-1/3").startswith("right")
    assert ticks(fresh(PAGE, address=SITE.as_uri()))[0] == [NUMBER]
    assert tab.problems == []


def test_with_the_keyboard_alone(fresh):
    """Tab leads to the field and on; Enter checks, and the focus stays where it was."""
    tab = fresh(PAGE)
    focus = "() => document.activeElement.value"
    keys = tab.keyboard
    tab.locator("#ex-07-skip ~ .solution button").first.focus()
    while tab.evaluate("document.activeElement.name") != PICK:
        keys.press("Tab")
    for letter in "abcdef":
        assert tab.evaluate(focus) == letter
        if letter in "acdf":
            keys.press("Space")
        if letter == "d":
            keys.press("Enter")
            assert tab.locator(f"#{PICK} .sbn-says").inner_text().startswith("f: ")
            assert tab.evaluate(focus) == letter
        if letter != "f":
            keys.press("Tab")
    keys.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Check"
    keys.press("Enter")
    assert tab.locator(f"#{PICK} .sbn-says").inner_text() == "right: b and e are biased"
    assert tab.evaluate("document.activeElement.textContent") == "Check"
    assert ticks(tab)[0] == [PICK]

    while tab.evaluate("document.activeElement.id") != f"{NUMBER}-field":
        keys.press("Tab")
    keys.type("-1/3")
    keys.press("Enter")
    assert tab.locator(f"#{NUMBER} .sbn-says").inner_text().startswith("right")
    assert tab.evaluate(focus) == "-1/3"
    while tab.evaluate("document.activeElement.textContent") != "Forget what I have solved":
        keys.press("Tab")
    keys.press("Enter")
    assert ticks(tab) == ([], [])
    assert tab.problems == []


def test_a_single_choice_is_moved_by_arrows(fresh):
    tab = fresh("book/2-activations/12-map")
    first = tab.locator("#ex-12-unbiased input").first
    first.focus()
    tab.keyboard.press("Space")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    assert tab.locator("#ex-12-unbiased .sbn-says").inner_text().startswith("right")
    assert tab.evaluate("document.activeElement.value") == "b"


def test_who_cannot_see_is_told_what_and_how(fresh):
    """Names of the fields, what they describe, and sentences that are read out as they come."""
    tab = fresh(PAGE)
    field = tab.locator(f"#{NUMBER}").get_by_role("textbox", name="Your answer")
    assert tab.locator(f"#{field.get_attribute('aria-describedby')}").inner_text().startswith("A n")
    group = tab.locator(f"#{PICK}").get_by_role("group", name="Which of them?")
    assert group.get_by_role("checkbox", name="c", exact=True).count() == 1
    assert tab.locator(".sbn-says[role=status][aria-live=polite]").count() == 2
    formula = fresh("book/1-problem/03-how-good-is-an-estimator").locator("#ex-03-budget")
    assert formula.locator(".sbn-hint").inner_text().startswith("A formula in k, V1, V2, b1, b2")


def test_without_scripts_nothing_is_shown(new_reader):
    tab = new_reader(javascript=False).turn_to(PAGE)
    assert tab.locator(".sbn-check").count() == 2
    assert not any(box.is_visible() for box in tab.locator(".sbn-check").all())


def test_a_preview_of_an_exercise_has_no_field(fresh):
    tab = fresh(PAGE)
    link = tab.locator(f"article .sbn-objectives a[href='#{NUMBER}']").first
    link.hover()
    tab.locator("#sbn-tip[data-open]").wait_for()
    assert "Saturate one unit" in tab.locator("#sbn-tip").inner_text()
    assert tab.locator("#sbn-tip :is(.sbn-check, input)").count() == 0
