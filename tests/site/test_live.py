"""Live figures that a script draws: at every position what the chapter's own code draws.

The scripts run in the built pages. What they are held to is the function in the notebook that
draws the figure: its lines, in data, to 1e-9 of the range of their axes; and for the way from data
to the picture the frames that Matplotlib drew and the notebook has stored.
"""

import ast
import functools
import itertools
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import chapters
import numpy as np
import pytest
import torch
from places import ROOT, SITE
from visit import PAGES, html, note_problems, without_mathematics

pytestmark = pytest.mark.site

SCRIPTS = ["noise", "exact", "estimators", "formula", "net", "lab", "figures", "live"]
CLOSE = 1e-9  # of the range of the axes
DRAWN = 0.011  # pt: two roundings to 0.01


@dataclass(frozen=True)
class Live:
    """A live figure whose lines a script draws."""

    name: str
    draw: str
    path: Path
    cell: str

    @property
    def page(self):
        return str(self.path.relative_to(ROOT).with_suffix(""))

    @functools.cached_property
    def stored(self):
        """The lines and the data that the page has from the notebook."""
        (cell,) = (c for c in chapters.cells(self.path) if c.id == self.cell)
        text = cell.outputs[0].data["text/html"]
        kinds = ("text/plain", "application/json")
        lines, data = (
            re.search(f'<script type="{k}">(.*?)</script>', text, re.S)[1] for k in kinds
        )
        return lines.split("\n"), json.loads(data)

    @property
    def data(self):
        return self.stored[1]["live"]

    @property
    def frames(self):
        """The settings of all stored frames, in their order."""
        names, values = self.data["sliders"].keys(), self.data["sliders"].values()
        return [dict(zip(names, v, strict=True)) for v in itertools.product(*values)]

    @property
    def start(self):
        return self.frames[self.stored[1]["start"]]

    def frame(self, index):
        """The SVG of a frame."""
        lines, data = self.stored
        out, at = [], 0
        for begin, end, put in data["frames"][index]:
            out += data["base"][at:begin] + put
            at = end
        return "".join(lines[i] for i in out + data["base"][at:])

    def code(self, setting):
        """For each line of the notebook's function (its points, its width, the axes' ranges)."""
        return {
            line.get_gid(): (
                np.array(line.get_xydata(), float).T,
                line.get_linewidth(),
                [np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())],
            )
            for ax in chapters.axes(self.path, self.draw, **setting)
            for line in ax.lines
            if line.get_gid()
        }


def find(path):
    """The live figures of a notebook that a script draws."""
    for cell in chapters.cells(path):
        for call in (n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call)):
            options = {k.arg: k.value for k in call.keywords}
            if ast.unparse(call.func) == "figures.explore" and "live" in options:
                name = ast.literal_eval(options["live"])
                yield Live(name, ast.unparse(call.args[0]), path, cell.id)


LIVE = [figure for path in chapters.NOTEBOOKS for figure in find(path)]
each_figure = pytest.mark.parametrize("figure", LIVE, ids=[f.name for f in LIVE])


@pytest.fixture(scope="module")
def reader(new_reader):
    return new_reader(mathematics=False)


@pytest.fixture(scope="module", params=LIVE, ids=[f.name for f in LIVE])
def opened(request, reader):
    """A figure, the tab with its page, and the figure in it."""
    tab = reader.turn_to(request.param.page)
    return request.param, tab, tab.locator(f"[data-live={request.param.name}]")


# ------------------------------------------------------------------------------------- which


def test_there_are_figures_in_four_chapters():
    assert len({f.path for f in LIVE}) >= 4 and len({f.name for f in LIVE}) == len(LIVE)


def test_only_pages_with_such_a_figure_load_the_scripts():
    for page in PAGES:
        names = [f.name for f in LIVE if f.page == page]
        text = html(page)
        assert re.findall(r' data-live="(\w+)"', text) == names
        loaded = re.findall(r'<script defer="defer" src="[./]*_static/([\w-]+)\.js', text)
        assert (set(SCRIPTS) <= set(loaded)) == bool(names), page
        assert "live" in loaded or "figures" not in loaded
        if names:
            assert [s for s in loaded if s in SCRIPTS] == SCRIPTS, "each after what it stands on"


def test_the_scripts_know_these_figures_and_no_others(opened):
    figure, tab, _ = opened
    known = tab.evaluate("Object.keys(SBN.figures)")
    assert sorted(known) == sorted(f.name for f in LIVE)
    sliders = tab.evaluate("name => Object.keys(SBN.figures[name].sliders)", figure.name)
    assert sliders == list(figure.data["sliders"])


# ------------------------------------------------------------------------------------- truth


def drawn_by_script(tab, figure, settings):
    return tab.evaluate(
        "([name, all]) => all.map((values) => SBN.figures[name].lines(values))",
        [figure.name, settings],
    )


def compare(figure, setting, found):
    """The lines of the script with those of the notebook's code, at one setting."""
    code = figure.code(setting)
    assert set(found) == set(code) == set(figure.data["lines"])
    for name, (points, width, ranges) in code.items():
        here = np.array([found[name]["x"], found[name]["y"]])
        assert here.shape == points.shape, (name, setting)
        off = np.abs(here - points).max(axis=1) / ranges
        assert off.max() < CLOSE, (name, setting)
        assert found[name].get("width", width) == pytest.approx(width, rel=1e-9), (name, setting)


def test_at_every_frame_the_lines_are_those_of_the_chapters_code(opened):
    figure, tab, _ = opened
    assert len(figure.frames) >= 100
    for setting, found in zip(
        figure.frames, drawn_by_script(tab, figure, figure.frames), strict=True
    ):
        compare(figure, setting, found)


def test_between_the_frames_too(opened):
    """Twelve settings of the page's own sliders, drawn by lot."""
    figure, tab, _ = opened
    rng = random.Random(figure.name)
    sliders = tab.evaluate("name => SBN.figures[name].sliders", figure.name)
    kinds = {k: type(stored[0]) for k, stored in figure.data["sliders"].items()}
    settings = [{k: kinds[k](rng.choice(v)) for k, v in sliders.items()} for _ in range(12)]
    others = [s for s in settings if s not in figure.frames]
    assert len(others) >= 8
    for setting, found in zip(others, drawn_by_script(tab, figure, others), strict=True):
        make_ready(figure, setting)
        compare(figure, setting, found)


def make_ready(figure, setting):
    """The code of chapter 3 takes its numbers from a table, a row for each scale of the frames."""
    if figure.name != "crossing":
        return
    space = chapters.drawing(figure.path, figure.draw).__globals__
    with chapters.as_in_the_book():
        net = space["xor_net"](setting["scale"])
        rows = {name: space["by_enumeration"](net, name) for name in space["candidates"]}
        g = torch.cat([v.flatten() for v in space["sbnlib"].exact_gradient(
            net, space["inputs"], space["loss"])[1].values()])  # fmt: skip
        space["tables"][setting["scale"]] = {
            name: (((m - g) @ (m - g) / (g @ g)).item(), (v.sum() / (g @ g)).item())
            for name, (m, v) in rows.items()
        }


def test_the_page_draws_these_points(opened):
    """From data to the picture, by the axes that are stored; widths and marks as well."""
    figure, tab, here = opened
    rng = random.Random(figure.name)
    for setting in [figure.start, *rng.sample(figure.frames, 10)]:
        move_to(here, setting)
        for name, (points, width, _) in figure.code(setting).items():
            line = figure.data["lines"][name]
            want = in_the_picture(points, line, figure.data["axes"][line["axes"]])
            path, thick, marks = picture_of(here, name)
            if path is not None:
                np.testing.assert_allclose(path, want, atol=DRAWN)
                assert thick == pytest.approx(width, abs=1e-3)
            if "marks" in line:
                np.testing.assert_allclose(marks, want[:, line["marks"]], atol=DRAWN)
            assert path is not None or "marks" in line
    assert tab.problems == []


def in_the_picture(points, line, axes):
    """By hand: along the box as the value is along its side."""
    box, out = axes["box"], []
    for k, side in enumerate("xy"):
        low, high, scale = line.get(side, axes[side])
        assert scale == "linear"
        out.append(box[k] + (points[k] - low) / (high - low) * (box[k + 2] - box[k]))
    return np.array(out)


def move_to(here, setting):
    """Put the sliders where they say these numbers."""
    here.evaluate(
        """(root, setting) => {
            const { sliders } = SBN.figures[root.dataset.live];
            const stored = JSON.parse(
                root.querySelector("script[type='application/json']").textContent).live.sliders;
            [...root.querySelectorAll("input")].forEach((input, k) => {
                const [name, value] = Object.entries(setting)[k];
                const all = SBN.live.positions(sliders[name], stored[name]);
                input.value = all.indexOf(value);
            });
            root.querySelector("input").dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        setting,
    )


def picture_of(here, name):
    """The points of a line's path, its width, and the places of its marks."""
    group = here.locator(f".sbn-frame [data-line='{name}']")
    return parse(group.evaluate("g => g.outerHTML"))


def parse(group):
    """(points of the path, its width, places of the marks) in a group of SVG."""
    group = re.sub(r"<defs>.*?</defs>|<path id=[^>]*/?>(?:</path>)?", "", group)
    path = re.search(r'<path[^>]* d="(.*?)"', group)
    width = re.search(r"stroke-width:\s*([\d.]+)", group)
    marks = [
        [float(re.search(rf' {k}="(.*?)"', use)[1]) for k in "xy"]
        for use in re.findall(r"<use.*?>", group)
    ]
    thick = float(width[1]) if width else 1.0  # the value that SVG takes where none is given
    return path and points_of(path[1]), thick, np.array(marks).reshape(-1, 2).T


def points_of(d):
    """A path of steps, as stored, or of places, as the script writes it."""
    numbers = [float(v) for v in re.findall(r"-?\d*\.?\d+", d)]
    points = np.array(numbers).reshape(-1, 2)
    return (points if "M" in d else points.cumsum(axis=0)).T


def test_the_picture_is_matplotlibs(opened):
    """At the start and at the ends of the sliders it has the points of the stored frame."""
    figure, _, here = opened
    last = len(figure.frames) - 1
    short = len(list(figure.data["sliders"].values())[1])
    for index in (figure.stored[1]["start"], 0, short - 1, last - short + 1, last):
        move_to(here, figure.frames[index])
        stored = figure.frame(index)
        for name in figure.data["lines"]:
            begin = stored.index(f'<g data-line="{name}">')
            want, got = parse(stored[begin : ends(stored, begin)]), picture_of(here, name)
            if want[0] is None:
                assert got[0] is None
            elif want[0].shape == got[0].shape:  # the rest is cut off at the picture's edge
                np.testing.assert_allclose(got[0], want[0], atol=DRAWN)
            inside = want[2]
            assert inside.size <= got[2].size
            if inside.shape == got[2].shape:
                np.testing.assert_allclose(got[2], inside, atol=DRAWN)
        if index == figure.stored[1]["start"]:
            assert without_marked(here.locator(".sbn-frame svg").evaluate("s => s.outerHTML")) == (
                without_marked(as_the_browser_writes(here, stored))
            )


def ends(text, begin):
    """Where the group that begins there ends."""
    depth = 0
    for tag in re.finditer(r"<g[ >]|</g>", text[begin:]):
        depth += 1 if tag[0] != "</g>" else -1
        if depth == 0:
            return begin + tag.end()
    raise AssertionError("a group without an end")


def without_marked(text):
    while (begin := text.find("<g data-line=")) >= 0:
        text = text[:begin] + text[ends(text, begin) :]
    return text


def as_the_browser_writes(here, svg):
    return here.evaluate(
        """(_, svg) => {
            const box = document.createElement("div");
            box.innerHTML = svg;
            return box.firstChild.outerHTML;
        }""",
        svg,
    )


# ------------------------------------------------------------------------------------ sliders


def numbers(here):
    """What the sliders say."""
    said = here.locator("output").all_inner_texts()
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in said]


def picture(here):
    return here.locator(".sbn-frame").inner_html()


def test_the_keyboard_reaches_every_position(reader):
    """What a slider says is where it is, and at each step lines move and nothing else."""
    for figure in LIVE:
        tab = reader.turn_to(figure.page)
        here = tab.locator(f"[data-live={figure.name}]")
        answer = here.locator("xpath=ancestor::figure").locator(".sbn-answer")
        assert numbers(here) == pytest.approx(list(figure.start.values()))
        assert answer.get_attribute("open") is None
        for k, (name, stored) in enumerate(figure.data["sliders"].items()):
            slider = here.locator("input").nth(k)
            slider.focus()
            tab.keyboard.press("Home")
            assert numbers(here)[k] == pytest.approx(min(stored))
            seen, last = [], picture(here)
            for _ in range(6):
                seen.append(numbers(here)[k])
                tab.keyboard.press("ArrowRight")
                now = picture(here)
                assert now != last and without_marked(now) == without_marked(last)
                last = now
            assert seen == sorted(set(seen)), name
            tab.keyboard.press("End")
            assert numbers(here)[k] == pytest.approx(max(stored))
            tab.keyboard.press("PageDown")
            assert numbers(here)[k] < max(stored)
            spoken = slider.get_attribute("aria-valuetext")
            assert spoken == here.locator("output").nth(k).inner_text()
            assert int(slider.get_attribute("max")) >= 5 * (len(stored) - 1)
        assert answer.get_attribute("open") is not None
        assert tab.problems == []


def test_every_stored_position_is_one_of_the_page(opened):
    figure, tab, here = opened
    for k, (name, stored) in enumerate(figure.data["sliders"].items()):
        all_of_them = tab.evaluate(
            """([figure, name, stored]) =>
                SBN.live.positions(SBN.figures[figure].sliders[name], stored)""",
            [figure.name, name, stored],
        )
        assert set(stored) <= set(all_of_them) and all_of_them == sorted(all_of_them)
        assert np.diff(all_of_them).min() > 1e-6, "none twice"
        assert (all_of_them[0], all_of_them[-1]) == (min(stored), max(stored))
        assert int(here.locator("input").nth(k).get_attribute("max")) == len(all_of_them) - 1


def test_numbers_as_the_reader_sees_them(opened):
    _, tab, _ = opened
    for given, shown in [
        ([1, 2, 1024], ["1", "2", "1024"]),
        ([-0.5, 0, 0.05], ["\N{MINUS SIGN}0.50", "0.00", "0.05"]),
        ([0.1 + 0.2, 1], ["0.3", "1.0"]),
        ([0.123456, 1], ["0.1235", "1.0000"]),
    ]:
        assert tab.evaluate("given => SBN.live.texts(given)", given) == shown


# ------------------------------------------------------------------- without the scripts, and else


def framed(tab, figure):
    """Whether a figure has its frames: their number of positions, another picture at each step."""
    here = tab.locator(f"[data-live={figure.name}]")
    for k, stored in enumerate(figure.data["sliders"].values()):
        slider = here.locator("input").nth(k)
        assert int(slider.get_attribute("max")) == len(stored) - 1
        slider.focus()
        tab.keyboard.press("Home")
        tab.keyboard.press("ArrowRight")
        assert numbers(here)[k] == pytest.approx(stored[1])
    counts = [len(stored) for stored in figure.data["sliders"].values()]
    at = np.ravel_multi_index([1] * len(counts), counts)
    shown = here.locator(".sbn-frame svg").evaluate("s => s.outerHTML")
    return shown == as_the_browser_writes(here, figure.frame(int(at)))


SABOTAGE = {
    "no script": {name: "" for name in SCRIPTS},
    "no figures": {"figures": ""},
    "another figure": {"figures": "SBN.figures = { other: {} };"},
}


@pytest.mark.parametrize("missing", SABOTAGE)
def test_without_the_scripts_the_frames_work(new_reader, missing):
    reader = new_reader(mathematics=False)
    for name, text in SABOTAGE[missing].items():
        reader.context.route(f"**/_static/{name}.js*", answering(text))
    for figure in LIVE:
        tab = reader.turn_to(figure.page)
        assert framed(tab, figure)
        assert tab.problems == []


def answering(text):
    return lambda route: route.fulfill(body=text, content_type="text/javascript")


@each_figure
def test_a_script_that_has_another_line_leaves_the_frames(new_reader, figure):
    reader = new_reader(mathematics=False)
    source = (SITE / "_static" / "figures.js").read_text("utf-8")
    more = f"""(() => {{
        const figure = SBN.figures[{figure.name!r}], {{ lines }} = figure;
        figure.lines = (values) => ({{ ...lines(values), more: {{ x: [0], y: [0] }} }});
    }})();"""
    reader.context.route("**/_static/figures.js*", answering(source + more))
    assert framed(reader.turn_to(figure.page), figure)


def test_other_live_figures_of_the_page_keep_their_frames(opened):
    figure, tab, _ = opened
    others = tab.locator("[data-sbn]:not([data-live]) input[type=range]").all()
    assert others
    assert all(int(slider.get_attribute("max")) <= 12 for slider in others)


@each_figure
def test_from_a_folder(browser, figure):
    """No server, no request to anything but files."""
    if not (SITE / "index.html").exists():
        pytest.skip("no built book: run `make book`")
    context = browser.new_context()
    context.set_default_timeout(120_000)
    without_mathematics(context)
    tab = context.new_page()
    note_problems(tab, "file://")
    tab.goto((SITE / f"{figure.page}.html").as_uri(), wait_until="load")
    here = tab.locator(f"[data-live={figure.name}]")
    setting = figure.frames[-1]
    move_to(here, setting)
    assert numbers(here) == pytest.approx(list(setting.values()))
    for name, (points, *_) in figure.code(setting).items():
        line = figure.data["lines"][name]
        want = in_the_picture(points, line, figure.data["axes"][line["axes"]])
        path, _, marks = picture_of(here, name)
        found = marks if path is None else path
        shown = want[:, line["marks"]] if path is None else want
        np.testing.assert_allclose(found, shown, atol=DRAWN)
    assert tab.problems == []
    context.close()
