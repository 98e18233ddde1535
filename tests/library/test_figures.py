"""Figures: same bytes every time, words for every picture, small, and alone on no page."""

import gzip
import itertools
import json
import re
import sys

import numpy as np
import pytest
import torch

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

from sbnlib import figures  # noqa: E402
from sbnlib.figures import svg  # noqa: E402
from sbnlib.figures.explore import pack  # noqa: E402

ALT = "Two curves that cross at zero."
X = np.linspace(-4, 4, 201)
GRID = {"scale": np.linspace(0.3, 2, 10), "shift": np.linspace(-1, 1, 5)}


@pytest.fixture(autouse=True)
def house_style(monkeypatch):
    monkeypatch.setenv("SBN_FIGURES", "static")
    with matplotlib.rc_context():
        figures.use()
        yield
    assert not plt.get_fignums()


def draw(scale=1.0, shift=0.0):
    fig, ax = plt.subplots()
    ax.plot(X, np.tanh((X - shift) / scale), color="black", label="exact")
    ax.plot(X, X / 4, color="#0072B2", marker="o", markevery=20, label="pre-activation $a_1$")
    ax.set(ylim=(-1.1, 1.1), xlabel="$a$", ylabel="value & <more>")
    ax.legend()
    return fig


def small(**options):
    return figures.explore(draw, ALT, scale=[1, 2], shift=[0, 0.5, 1], **options)


def stored(picture):
    """The lines and the frames that the page holds."""
    kinds = ("text/plain", "application/json")
    found = (re.search(f'<script type="{k}">(.*?)</script>', picture.html, re.S)[1] for k in kinds)
    lines, data = found
    return lines.split("\n"), json.loads(data)


def frame(picture, index):
    """What the script in the page puts together."""
    lines, data = stored(picture)
    out, at = [], 0
    for begin, end, put in data["frames"][index]:
        out += data["base"][at:begin] + put
        at = end
    return "".join(lines[i] for i in out + data["base"][at:])


def ids(html):
    return set(re.findall(r' id="([^"]+)"', html))


# ------------------------------------------------------------------------------------ pictures


@pytest.mark.slow
def test_same_figure_gives_the_same_bytes():
    assert figures.show(draw(), ALT).html == figures.show(draw(), ALT).html
    assert figures.show(draw(), ALT, fmt="png").image == figures.show(draw(), ALT, fmt="png").image
    assert small().html == small().html


def test_two_figures_on_a_page_share_no_id_and_leave_none_dangling():
    one, two = (figures.show(draw(s), ALT).html for s in (1, 2))
    assert ids(one) and ids(two) and not ids(one) & ids(two)
    assert set(re.findall(r"#(s[0-9a-f]{10}-\d+)", one)) == ids(one)


def test_ink_is_that_of_the_page():
    html = figures.show(draw(), ALT).html
    assert "stroke:currentColor" in html and 'fill="currentColor"' in html
    assert "#000000" not in html and "#0072b2" in html
    assert "<style" not in html  # inside inline SVG it would act on the whole page


def test_paper_is_that_of_the_page():
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], marker="o", markerfacecolor=figures.PAPER)
    assert "fill:var(--pst-color-background,#fff)" in figures.show(fig, ALT).html


def test_text_is_text():
    html = figures.show(draw(), ALT).html
    assert ">value &amp; &lt;more&gt;</text>" in html
    assert ">pre-activation\xa0</tspan>" in html  # one word, not fourteen letters
    assert re.search(r'font-style:italic;font-size:11.2px;font-family:STIXGeneral,[^"]*">a<', html)


def test_private_letters_of_stix_become_unicode():
    fig, ax = plt.subplots()
    ax.set_title(r"$\mathbb{E}\,\mathcal{L}(x)$")
    html = figures.show(fig, ALT).html
    assert "\N{MATHEMATICAL DOUBLE-STRUCK CAPITAL E}" in html and "\N{SCRIPT CAPITAL L}" in html
    assert not re.search("[\ue000-\uf8ff]", html)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["svg", "png"])
def test_nothing_is_fetched(fmt):
    html = small(fmt=fmt, caption="At $a<0$.").html
    html = re.sub(r'base64,[^"]*|xmlns="http://www.w3.org/2000/svg"', "", html)
    assert "//" not in re.sub(r"^\s*//.*$", "", html, flags=re.M)  # comments of the script


def test_bundle_and_words():
    picture = figures.show(draw(), 'A "quoted" sentence.', caption="At $a<0$ & more.")
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain", "image/svg+xml"}
    assert 'role="img" aria-label="A &quot;quoted&quot; sentence."' in bundle["text/html"]
    assert r"At \(a&lt;0\) &amp; more.</figcaption>" in bundle["text/html"]
    assert "background:#fff" in bundle["image/svg+xml"]
    assert bundle["text/plain"] == "Picture('A \"quoted\" sentence.')"


@pytest.mark.parametrize("fmt", ["svg", "png"])
@pytest.mark.parametrize(("points", "least"), [(9, 480), (12, 360)])
def test_a_picture_shrinks_until_its_smallest_words_are_nine_pixels(fmt, points, least):
    """480 pt are 640 px: words of 9 pt are 12 px there, and 9 px at three quarters of it."""
    fig, ax = plt.subplots(figsize=(480 / 72, 3))
    ax.text(0.5, 0.5, "smallest", fontsize=points)
    ax.set_title("larger", fontsize=14)
    ax.text(0.1, 0.1, "hidden", fontsize=2, visible=False)
    ax.set(xticks=[], yticks=[])
    html = figures.show(fig, ALT, fmt=fmt).html
    assert re.findall(r"min-width:(\d+)px", html) == [str(least)]


def test_a_picture_without_words_shrinks_to_nothing():
    fig, ax = plt.subplots()
    ax.set(xticks=[], yticks=[])
    assert "min-width:0px" in figures.show(fig, ALT).html


def test_png_is_small_and_quantized():
    picture = figures.show(draw(), ALT, fmt="png")
    data = picture.image["image/png"]
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) < 20_000
    assert b"tIME" not in data and b"Software" not in data
    assert 'alt=""' in picture.html and f'aria-label="{ALT}"' in picture.html


def test_short_path_keeps_the_points():
    d = "M 57.6 217.872 \nL 60.123 29.376 \nL 414.72 29.376 \nz\nM 0 0 \nC 1 2 3.5 4 5 -6 \nL 7 8"
    assert svg.short_path(d) == (
        "m57.6 217.87 2.52-188.49 354.6 0zm-57.6-217.87c1 2 3.5 4 5-6l2 14"
    )


def test_rounding_does_not_add_up():
    d = "M 0 0 " + " ".join(f"L {i / 3:.6f} {i / 7:.6f}" for i in range(1, 3001))
    steps = [float(v) for v in re.findall(r"-?[\d.]+", svg.short_path(d))]
    assert sum(steps[::2]) == pytest.approx(1000, abs=0.006)
    assert sum(steps[1::2]) == pytest.approx(3000 / 7, abs=0.006)


@pytest.mark.slow
def test_save_writes_a_page(tmp_path):
    picture = small()
    picture.save(tmp_path / "p.html")
    assert picture.html in (tmp_path / "p.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------- sliders


@pytest.mark.slow
def test_fifty_frames_are_small():
    picture = figures.explore(draw, ALT, **GRID)
    whole = sum(len(frame(picture, i)) for i in range(50))
    html = picture.html.encode()
    assert len(html) < whole / 5
    assert len(gzip.compress(html)) < 40_000


def test_each_position_of_the_sliders_has_its_own_frame():
    def titled(a, b):
        fig, ax = plt.subplots()
        ax.set_title(f"a is {a}, b is {b}")
        return fig

    grid = {"a": [1, 2], "b": ["x", "y", "z"]}
    picture = figures.explore(titled, ALT, **grid, start={"a": 1})
    assert "a is 1, b is y</text>" in picture.html.partition("<script")[0]
    for i, (a, b) in enumerate(itertools.product(*grid.values())):
        assert f"a is {a}, b is {b}</text>" in frame(picture, i)


@pytest.mark.slow
def test_the_answer_is_folded_under_the_caption():
    words = small(caption="Drawn.", answer="At $a<0$ it falls.").html.partition("<figcaption")[2]
    bare = small(caption="Drawn.").html.partition("<figcaption")[2]
    assert re.search(
        r">Drawn\.<details class=\"sbn-answer\"><summary>[^<]+</summary>"
        r"<p>At \\\(a&lt;0\\\) it falls\.</p></details></figcaption></figure>$",
        words,
    )
    assert small(answer="Up.").html != small(answer="Down.").html.replace("Down.", "Up."), "its ids"
    assert bare.endswith(">Drawn.</figcaption></figure>")


@pytest.mark.slow
def test_for_the_tests_a_slider_draws_its_ends_and_its_start_only_or_the_start_alone(monkeypatch):
    drawn, grid = [], {"scale": [1, 2, 3, 4], "shift": [0, 1]}

    def noted(**params):
        drawn.append(tuple(params.values()))
        return draw(**params)

    whole = figures.explore(noted, ALT, **grid)
    assert len(drawn) == 8
    monkeypatch.setenv("SBN_FIGURES", "ends")
    picture = figures.explore(noted, ALT, **grid)
    assert sorted(drawn[8:]) == list(itertools.product((1, 3, 4), (0, 1)))
    monkeypatch.setenv("SBN_FIGURES", "start")
    still = figures.explore(noted, ALT, **grid)
    assert drawn[14:] == [(3, 1)]
    seen = [p.html.replace(re.search(r'data-sbn="(\w+)"', p.html)[1], "").partition("<script")[0]
            for p in (whole, picture, still)]  # fmt: skip
    assert seen[0] == seen[1] == seen[2], "what is there before a slider moves is compared"


def test_pack_restores_every_frame():
    frames = [list("abcde"), list("abxyde"), list("cde"), list("aabcdez"), []]
    for first in range(len(frames)):
        table, base, changes = pack(frames, first)
        assert len(table) == len(set(table)) and [table[i] for i in base] == frames[first]
        for want, change in zip(frames, changes, strict=True):
            got, at = [], 0
            for begin, end, put in change:
                got += base[at:begin] + put
                at = end
            assert [table[i] for i in got + base[at:]] == want


@pytest.mark.slow
def test_first_frame_note_and_labels_stand_without_a_script():
    s = figures.Slider(np.linspace(-1, 1, 5), label="pre-activation a", format="{:.2f}")
    picture = figures.explore(draw, ALT, scale=[1, 2], shift=s, start={"shift": -0.5})
    page = re.sub(r"<script.*?</script>", "", picture.html, flags=re.S)
    assert frame(picture, 6) in page  # scale = 2 is the middle of two, shift = -0.5 the second
    assert "Shown: scale = 2, pre-activation a = −0.50." in page
    assert '<div class="sbn-panel" hidden>' in page
    assert re.search(r'aria-label="pre-activation a" aria-valuetext="−0.50"', page)
    assert page.count('<output aria-live="polite">') == 2


def test_axes_do_not_jump_between_frames():
    def widening(a):
        fig, ax = plt.subplots()
        ax.plot([0, 10**a], [0, 10**a])
        return fig

    picture = figures.explore(widening, ALT, a=[0, 5], start={"a": 5})
    clips = {re.search(r"<clipPath[^>]*>(<rect[^>]*>)", frame(picture, i))[1] for i in (0, 1)}
    assert len(clips) == 1


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, 2, 3], ["1", "2", "3"]),
        (np.linspace(-1, 1, 5), ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        ([0.25, 0.5, 1], ["0.25", "0.50", "1.00"]),
        ([1e-4, 1e-2, 1], ["0.0001", "0.01", "1"]),
        (["logistic", "fast-sigmoid"], ["logistic", "fast-sigmoid"]),
        ([False, True], ["False", "True"]),
        (range(-1, 1), ["−1", "0"]),
        ([-0.1, -1e-17, 0.1], ["−0.1", "0.0", "0.1"]),
    ],
)
def test_numbers_as_the_reader_sees_them(values, texts):
    assert figures.Slider(values).texts() == texts


def test_stored_figures_compute_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("SBN_FIGURES", "static")
    assert figures.device().type == "cpu"


@pytest.fixture
def live(monkeypatch):
    """A running notebook with a GPU, as far as a figure can tell."""
    monkeypatch.delenv("SBN_FIGURES", raising=False)
    monkeypatch.setattr(sys.modules["sbnlib.figures.explore"], "_live", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA <H200>")


def test_a_live_figure_says_on_which_device_it_draws(live):
    assert figures.device().type == "cuda"
    box = figures.explore(draw, ALT, shift=[0, 1])
    (note,) = [c for c in box.children if "Drawn on" in str(getattr(c, "value", ""))]
    assert re.fullmatch(r"Drawn on NVIDIA &lt;H200&gt;, in \d+ ms\.", note.value)
    note.value = ""
    box.children[1].index = 0  # a frame later it says so again
    assert note.value.startswith("Drawn on")
    # the next figure asked for none, and has nothing to say
    other = figures.explore(draw, ALT, shift=[0, 1])
    assert not any("Drawn" in str(getattr(c, "value", "")) for c in other.children)


# ------------------------------------------------------------------- lines that a script moves


def swing(height=1.0, shift=1.0):
    """A curve, marks on every second of its points, and an upright line, on two kinds of axes."""
    fig, (left, right) = plt.subplots(1, 2)
    x = np.linspace(0, 4, 9)
    left.plot(x, np.sin(x), color="black")
    left.plot(x, height * np.sin(x + shift), "o-", markevery=(1, 2), gid="wave")
    left.axvline(shift, gid="shift")
    left.set(xlim=(-1, 5), ylim=(-3, 3))
    right.loglog([1, 10, 100], [height, 2, height], gid="log-1")
    right.axhline(height, gid="level")
    right.set(xlim=(1, 100), ylim=(0.1, 10))
    return fig


SWING = {"height": [0.5, 1.0, 2.0], "shift": [0, 1]}


def given_to_scripts(**options):
    picture = figures.explore(swing, ALT, **SWING, live="swing", **options)
    return picture, stored(picture)[1]["live"]


@pytest.mark.slow
def test_marked_lines_have_their_names_in_every_frame_and_nothing_else_changes():
    picture, _ = given_to_scripts()
    plain = figures.explore(swing, ALT, **SWING)
    assert re.search(r'<figure [^>]* data-sbn="\w+" data-live="swing">', picture.html)
    assert "data-live" not in plain.html and "live" not in stored(plain)[1]
    for i in range(6):
        with_marks = frame(picture, i)
        names = re.findall(r'<g data-line="([\w-]+)">', with_marks)
        assert names == ["wave", "shift", "log-1", "level"]
        assert "wave" not in frame(plain, i), "a gid without live stays out"
        bare = [re.sub("</?g[^>]*>|s[0-9a-f]{10}-", "", f) for f in (with_marks, frame(plain, i))]
        assert bare[0] == bare[1]


@pytest.mark.slow
def test_scripts_get_the_axes_the_sides_and_the_points_with_marks():
    picture, live = given_to_scripts()
    assert live["sliders"] == {"height": [0.5, 1.0, 2.0], "shift": [0, 1]}
    left, right = live["axes"]
    assert (left["x"], left["y"]) == ([-1, 5, "linear"], [-3, 3, "linear"])
    assert (right["x"], right["y"]) == ([1, 100, "log"], [0.1, 10, "log"])
    assert live["lines"] == {
        "wave": {"axes": 0, "marks": [1, 3, 5, 7]},
        "shift": {"axes": 0, "y": [0, 1, "linear"]},
        "log-1": {"axes": 1},
        "level": {"axes": 1, "x": [0, 1, "linear"]},
    }
    clips = re.findall(r'<clipPath[^>]*><rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"',
                       frame(picture, 0).replace("\n", ""))  # fmt: skip
    boxes = [(a["box"][0], a["box"][3], a["box"][2], a["box"][1]) for a in live["axes"]]
    for (x, y, w, h), (x0, y0, x1, y1) in zip(np.array(clips, float), boxes, strict=True):
        assert (x, y, x + w, y + h) == pytest.approx((x0, y0, x1, y1), abs=0.02)


@pytest.mark.slow
def test_the_points_of_a_frame_are_where_the_axes_say():
    """By hand: along the box as the value is along its side."""
    picture, live = given_to_scripts()
    box, x = live["axes"][0]["box"], np.linspace(0, 4, 9)
    for i, (height, shift) in enumerate(itertools.product(*SWING.values())):
        group = frame(picture, i).partition('data-line="wave">')[2].partition("</g>")[0]
        marks = np.array(re.findall(r'<use [^>]*x="(.*?)" y="(.*?)"', group), float)
        points = [(x - -1) / 6, (height * np.sin(x + shift) - -3) / 6]
        want = [box[k] + points[k][1::2] * (box[k + 2] - box[k]) for k in (0, 1)]
        np.testing.assert_allclose(marks.T, want, atol=0.011)


@pytest.mark.parametrize(
    ("every", "marks"),
    [(None, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), ((1, 3), [1, 4]), ([0, 3], [0, 3]),
     (slice(3), [0, 1, 2])],
)  # fmt: skip
def test_the_points_that_carry_a_marker(every, marks):
    def dots(a):
        fig, ax = plt.subplots()
        ax.plot(np.arange(5), a + np.arange(5), "o", markevery=every, gid="dots")
        ax.set(ylim=(-1, 6))
        return fig

    picture = figures.explore(dots, ALT, a=[0, 1], live="dots")
    assert stored(picture)[1]["live"]["lines"]["dots"]["marks"] == marks
    assert frame(picture, 0).count("<use", frame(picture, 0).index("data-line")) >= len(marks)


def with_line(**options):
    def drawn(a):
        fig, ax = plt.subplots()
        ax.plot([0, 1], [0, a], **{"gid": "line"} | options)
        ax.set(ylim=(-3, 3))
        return fig

    return drawn


def in_the_figure(a):
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, a], gid="line", transform=ax.transAxes)
    return fig


def also(change):
    """A moving line, and beside it something else that moves."""

    def drawn(a):
        fig = with_line()(a)
        change(fig.axes[0], a)
        return fig

    return drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "message", "drawn", "options"),
    [
        (TypeError, "live must be the name of a figure in the scripts, got 3", None, {"live": 3}),
        (TypeError, "live must be the name .* got True", None, {"live": True}),
        (ValueError, "live must be letters, digits and hyphens, got ''", None, {"live": ""}),
        (ValueError, "live must be letters.* got 'a b'", None, {"live": "a b"}),
        (ValueError, "live moves the lines of an SVG picture, got fmt='png'", None, {"fmt": "png"}),
        (ValueError, "needs numbers on every slider, got b = .'x', 'y'", None, {"b": ["x", "y"]}),
        (ValueError, "live='test' needs lines with a gid", with_line(gid=None), {}),
        (ValueError, "gid must be letters.* got 'a\"b'", with_line(gid='a"b'), {}),
        (ValueError, "two lines have the gid 'line'",
         also(lambda ax, a: ax.plot([0, 1], [0, 1], gid="line")), {}),
        (ValueError, "'line' is not drawn in data", in_the_figure, {}),
        (ValueError, "needs markevery as a count", with_line(marker="o", markevery=0.1), {}),
        (ValueError, "needs markevery as a count", with_line(marker="o", markevery=(0.1, 0.5)), {}),
        (ValueError, "'line' shows no mark at the start",
         with_line(marker="o", markevery=[]), {}),
        (ValueError, "knows the scales .*, got .'linear', 'symlog'",
         also(lambda ax, a: ax.set_yscale("symlog")), {}),
        (ValueError, r"at a = 0 lines or limits .* axes 0 .*0.0, 3.0.*, at the start .*-1.0, 3.0",
         also(lambda ax, a: ax.set(ylim=(-a, 3))), {}),
        (ValueError, "at a = 0 lines or limits .* lines 'more' None, at the start .'axes': 0.",
         also(lambda ax, a: a and ax.plot([0, 1], [1, 1], gid="more")), {}),
        (ValueError, "at a = 0 something without a gid has moved: <text.*>0 it is</text>",
         also(lambda ax, a: ax.set_title(f"{a} it is")), {}),
        (ValueError, "at a = 0 something without a gid has moved: <path",
         also(lambda ax, a: ax.plot([0, 1], [a, a])), {}),
        (ValueError, "a part of the start is missing",
         also(lambda ax, a: a and ax.axhline(0)), {}),
    ],
)  # fmt: skip
def test_what_a_script_could_not_draw_is_refused(error, message, drawn, options):
    def never(**_):
        raise AssertionError("drawn")

    with pytest.raises(error, match=message):
        figures.explore(drawn or never, ALT, **{"a": [0, 1], "live": "test"} | options)


def test_in_a_notebook_the_sliders_call_draw_whatever_the_page_could_do(live):
    box = figures.explore(swing, ALT, **SWING, live="swing")
    assert "data-live" not in box.children[0].value and "data-line" not in box.children[0].value
    with pytest.raises(TypeError, match="live must be the name"):
        figures.explore(swing, ALT, **SWING, live=1)


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("alt", ["", "  ", None, 3])
def test_no_picture_without_words(alt):
    fig = draw()
    with pytest.raises(ValueError, match="alt must be a sentence"):
        figures.show(fig, alt)
    plt.close(fig)
    with pytest.raises(ValueError, match="alt must be a sentence"):
        figures.explore(draw, alt, shift=[0, 1])


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "grid is empty", {}),
        (ValueError, "shift must have at least 2 positions, got 1", {"shift": [0]}),
        (TypeError, "shift must be a sequence", {"shift": 3}),
        (TypeError, "shift must be a sequence", {"shift": "abc"}),
        (ValueError, "fmt must be one of 'svg', 'png'; got 'gif'", {"shift": [0, 1], "fmt": "gif"}),
        (TypeError, "start must be a dict", {"shift": [0, 1], "start": 0}),
        (ValueError, "start: shift = 0.3 is not on", {"shift": [0, 1], "start": {"shift": 0.3}}),
        (ValueError, "start names .'s'.*are .'shift'", {"shift": [0, 1], "start": {"s": 0}}),
    ],
)
def test_errors_name_the_argument_before_anything_is_drawn(error, message, arguments):
    def never(**_):
        raise AssertionError("drawn")

    with pytest.raises(error, match=message):
        figures.explore(never, ALT, **arguments)


def test_draw_must_give_a_figure():
    with pytest.raises(TypeError, match="what draw returns must be a matplotlib Figure, got NoneT"):
        figures.explore(lambda a: None, ALT, a=[0, 1])
    with pytest.raises(TypeError, match="draw must be a function"):
        figures.explore(draw(), ALT, a=[0, 1])
    with pytest.raises(TypeError, match="fig must be a matplotlib Figure, got list"):
        figures.show([], ALT)
    plt.close("all")
