"""A figure with sliders: Python callbacks in a running notebook, precomputed frames elsewhere."""

from __future__ import annotations

import difflib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from . import style
from .live import Moving
from .live import check as check_live
from .svg import content_hash, svg_lines, with_ids

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

Draw = Callable[..., "Figure"]
ZERO = 1e-12  # what np.linspace leaves in the middle of a symmetric grid is 0 to the reader
DPI = 110  # of PNG frames: two thirds of the bytes of a still picture


@dataclass(frozen=True)
class Slider:
    """The positions of one slider, with the name and the number format that the reader sees.

    Args:
        values: at least two positions, in the order of the slider.
        label: what stands to its left; the parameter's name if not given.
        format: for example ``"{:.2f}"``; as many decimals as the positions need if not given.
    """

    values: Sequence[Any]
    label: str | None = None
    format: str | None = None

    def texts(self) -> list[str]:
        """The positions as the reader sees them."""
        form = self.format or _number_format(self.values)
        return [_number_text(form, v) if _is_number(v) else form.format(v) for v in self.values]


def explore(
    draw: Draw,
    alt: str,
    *,
    fmt: str = "svg",
    start: Mapping[str, Any] | None = None,
    caption: str | None = None,
    answer: str | None = None,
    live: str | None = None,
    **grid: Sequence[Any] | Slider,
) -> Any:
    """A figure that follows its sliders; the last line of a cell.

    In a running notebook the sliders call ``draw``. With ``SBN_FIGURES=static`` in the environment
    (the stored outputs of the book), and outside notebooks, every frame is computed here and the
    output is plain HTML that needs no kernel, no library and no network. Without JavaScript it
    shows the start frame and says so. ``SBN_FIGURES=ends``, for tests, draws every slider's first,
    start and last position only, ``SBN_FIGURES=start`` the start frame alone.

    With ``live`` the stored picture also says which of its lines move, those with a ``gid``
    (``ax.plot(x, y, gid="mean")``), and where their axes lie. A page that has loaded the book's
    scripts and finds the name in ``SBN.figures`` gives the sliders every position and draws the
    lines itself; any other page, and print, has the frames. Whatever has no ``gid``, and the
    limits of the axes, must be the same in every frame.

    Args:
        draw: called as ``draw(**params)``, returns a Matplotlib figure. It must depend on its
            parameters only: frames are drawn once, in no promised order.
        alt: one sentence that says what the picture shows, for readers who cannot see it.
        fmt: "svg" for curves, "png" for dense pictures.
        start: the first position, a dict such as ``{"a": 0.5}``; parameters that are not named
            start in the middle of their slider.
        caption: what is drawn; ``$...$`` is mathematics.
        answer: what the sliders show, folded until the reader has moved one or opens it.
        live: the figure's name in ``book/lab/scripts/figures.js``, if that computes its lines.
        **grid: for each parameter of ``draw`` a sequence of positions, or a ``Slider``.

    Raises:
        TypeError: ``draw`` is not callable or does not return a figure; ``live`` is no string.
        ValueError: blank ``alt``, unknown ``fmt``, empty grid, a slider with fewer than two
            positions, a ``start`` that is not on the grid; with ``live``: a name or a ``gid`` of
            other signs than letters, digits and hyphens, ``fmt="png"``, positions that are not
            numbers, no line with a ``gid`` or two with the same, scales other than "linear" and
            "log", frames that differ in more than the marked lines.
    """
    style.check_alt(alt)
    style.check_format(fmt)
    if not callable(draw):
        raise TypeError(f"draw must be a function that returns a Figure, got {draw!r}")
    sliders = _sliders(grid)
    at = _start(sliders, {} if start is None else start)
    if live is not None:
        check_live(live, fmt, {n: s.values for n, s in sliders.items()})
    if _live():
        return _widgets(draw, alt, fmt, sliders, at, caption, answer)
    moving = None if live is None else Moving(live)
    return _static(draw, alt, fmt, sliders, at, caption, answer, moving)


def device() -> torch.device:
    """Where a live figure computes: a CUDA device if there is one; the CPU for stored outputs.

    The next :func:`explore` says on which device it draws, and in what time, if it is not the CPU.
    """
    import torch

    if _stored() or not torch.cuda.is_available():
        return torch.device("cpu")
    _asked.append(torch.cuda.get_device_name())
    return torch.device("cuda")


#: The devices that were given out and not yet named by a figure.
_asked: list[str] = []


# ---------------------------------------------------------------------------------- the grid


def _sliders(grid: Mapping[str, Any]) -> dict[str, Slider]:
    if not grid:
        raise ValueError("grid is empty: give a slider, for example a=np.linspace(-4, 4, 17)")
    return {name: _slider(name, values) for name, values in grid.items()}


def _slider(name: str, given: Any) -> Slider:
    slider = given if isinstance(given, Slider) else Slider(given)
    if isinstance(slider.values, str) or not hasattr(slider.values, "__len__"):
        raise TypeError(f"{name} must be a sequence of positions or a Slider, got {given!r}")
    values = [v.item() if hasattr(v, "item") else v for v in slider.values]
    if len(values) < 2:
        raise ValueError(f"{name} must have at least 2 positions, got {len(values)}: {values}")
    return Slider(values, slider.label or name, slider.format)


def _start(sliders: Mapping[str, Slider], start: Mapping[str, Any]) -> dict[str, int]:
    if not isinstance(start, Mapping):
        raise TypeError(f"start must be a dict from slider to position, got {start!r}")
    unknown = set(start) - set(sliders)
    if unknown:
        raise ValueError(f"start names {sorted(unknown)}, but the sliders are {list(sliders)}")
    return {
        n: _position(n, s, start[n]) if n in start else len(s.values) // 2
        for n, s in sliders.items()
    }


def _position(name: str, slider: Slider, value: Any) -> int:
    for i, v in enumerate(slider.values):
        numbers = _is_number(v) and _is_number(value)
        if v == value or numbers and math.isclose(v, value, rel_tol=1e-9, abs_tol=1e-12):
            return i
    raise ValueError(f"start: {name} = {value!r} is not on its slider {list(slider.values)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number_text(form: str, value: float) -> str:
    value = 0 if isinstance(value, float) and abs(value) < ZERO else value
    return form.format(value).replace("-", "\N{MINUS SIGN}")


def _number_format(values: Sequence[Any]) -> str:
    """As few decimals as show every position to within 5 % of itself and of the smallest step."""
    if not all(_is_number(v) for v in values):
        return "{}"
    step = min(abs(b - a) for a, b in itertools.pairwise(values))
    sizes = [v for v in values if abs(v) >= ZERO]
    for digits in range(4):
        if all(abs(round(v, digits) - v) <= 0.05 * min(step, abs(v)) for v in sizes):
            return f"{{:.{digits}f}}"
    return "{:.3g}"


# ----------------------------------------------------------------------------- stored output


def _static(
    draw: Draw,
    alt: str,
    fmt: str,
    sliders: dict[str, Slider],
    at: dict[str, int],
    caption: str | None,
    answer: str | None,
    moving: Moving | None,
) -> style.Picture:
    first = _index(sliders, at)
    frames = _frames(draw, fmt, sliders, at, moving)
    words = (alt, caption, answer, sliders, at)
    digest = content_hash(repr(words) + "".join(map("".join, frames)))
    table, base, changes = pack(frames, first)
    data = {
        "start": first,
        "texts": [s.texts() for s in sliders.values()],
        "base": base,
        "frames": changes,
    }
    hook = f' data-sbn="{digest}"'
    if moving:
        data["live"] = {"sliders": {n: s.values for n, s in sliders.items()}, **moving.where}
        hook += f' data-live="{moving.name}"'
    picture = with_ids("".join(frames[first]), digest)
    extra = _panel(sliders, at) + _scripts(with_ids("\n".join(table), digest), data, digest)
    css = f"<style>{_asset('explore.css')}</style>" + (style.PNG_CSS if fmt == "png" else "")
    html = css + style.wrap(picture, alt, caption, answer, extra, hook)
    return style.Picture(html, alt, _image(picture, fmt))


def _index(sliders: Mapping[str, Slider], at: Mapping[str, int]) -> int:
    index = 0
    for name, slider in sliders.items():
        index = index * len(slider.values) + at[name]
    return index


def _frames(
    draw: Draw,
    fmt: str,
    sliders: Mapping[str, Slider],
    at: Mapping[str, int],
    moving: Moving | None,
) -> list[list[str]]:
    """Every frame, with the axes where the start frame has them, so that nothing jumps."""
    names: dict[str, str] = {}

    def lines(fig: Figure, params: Mapping[str, Any]) -> list[str]:
        if moving is None:
            return _lines(fig, fmt, names, places)
        moving.mark(fig)
        out = _lines(fig, fmt, names, places)
        moving.note(fig, out, params)
        return out

    params = {n: s.values[at[n]] for n, s in sliders.items()}
    fig = _drawn(draw, params)
    fig.draw_without_rendering()  # lays it out
    places = [ax.get_position() for ax in fig.axes]
    start = lines(fig, params)

    def frame(steps: tuple[int, ...]) -> list[str]:
        place = dict(zip(sliders, steps, strict=True))
        if place == at or not _due(sliders, at, place):
            return start
        params = {n: s.values[place[n]] for n, s in sliders.items()}
        return lines(_drawn(draw, params), params)

    return [frame(p) for p in itertools.product(*(range(len(s.values)) for s in sliders.values()))]


def _due(sliders: Mapping[str, Slider], at: Mapping[str, int], place: Mapping[str, int]) -> bool:
    """Whether a frame has to be drawn: each one, or at the ends and the starts of sliders only."""
    frames = os.environ.get("SBN_FIGURES")
    if frames not in ("ends", "start"):
        return True
    return frames == "ends" and all(
        place[n] in (0, at[n], len(s.values) - 1) for n, s in sliders.items()
    )


def _drawn(draw: Draw, params: Mapping[str, Any]) -> Figure:
    fig = draw(**params)
    style.check_figure(fig, "what draw returns")
    return fig


def _lines(fig: Figure, fmt: str, names: dict[str, str], places: list[Any]) -> list[str]:
    if len(fig.axes) == len(places):
        fig.set_layout_engine("none")  # solving the layout again would double the time
        for ax, place in zip(fig.axes, places, strict=True):
            ax.set_position(place)
    png = fmt == "png"
    lines = [style.png_tag(fig, style.png_bytes(fig, DPI))] if png else svg_lines(fig, names)
    style.close(fig)
    return lines


def _image(picture: str, fmt: str) -> dict[str, Any]:
    if fmt == "svg":
        return {"image/svg+xml": style.on_white(picture)}
    return {"image/png": picture.partition("base64,")[2].rstrip('">')}


def pack(frames: list[list[str]], first: int) -> tuple[list[str], list[int], list[list[Any]]]:
    """Frames share nearly all their lines: store each line once and each frame as a difference.

    Returns the table of distinct lines, the first frame as indices into it, and for each frame
    the stretches ``[from, to, indices]`` of the first frame that it replaces.
    """
    table: dict[str, int] = {}
    indices = [[table.setdefault(line, len(table)) for line in f] for f in [frames[first], *frames]]
    base = indices[0]
    return list(table), base, [_changes(base, f) for f in indices[1:]]


def _changes(base: list[int], frame: list[int]) -> list[Any]:
    steps = difflib.SequenceMatcher(None, base, frame, autojunk=False).get_opcodes()
    return [[i, j, frame[k:m]] for kind, i, j, k, m in steps if kind != "equal"]


def _panel(sliders: Mapping[str, Slider], at: Mapping[str, int]) -> str:
    rows, words = [], []
    for name, slider in sliders.items():
        label, text = escape(str(slider.label)), escape(slider.texts()[at[name]])
        words.append(f"{label} = {text}")
        rows.append(
            f'<label><span>{label}</span><input type="range" min="0" '
            f'max="{len(slider.values) - 1}" value="{at[name]}" autocomplete="off" '
            f'aria-label="{label}" aria-valuetext="{text}">'
            f'<output aria-live="polite">{text}</output></label>'
        )
    note = f"Shown: {', '.join(words)}. The sliders of this figure need JavaScript."
    return (
        f'<div class="sbn-panel" hidden>{"".join(rows)}</div>'
        f'<noscript><p class="sbn-note">{note}</p></noscript>'
    )


def _scripts(table: str, data: dict[str, Any], digest: str) -> str:
    packed = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    code = _asset("explore.js").replace("ID", digest, 1)
    return (
        f'<script type="text/plain">{table}</script>'
        f'<script type="application/json">{packed}</script>'
        f"<script>{code}</script>"
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8").strip()


# ---------------------------------------------------------------------------- running notebook


def _stored() -> bool:
    """Whether outputs are made for the book, or compared with those of the book."""
    return os.environ.get("SBN_FIGURES") in ("static", "ends", "start")


def _live() -> bool:
    """A kernel runs, it may draw, and there are widgets to draw with."""
    if _stored():
        return False
    try:
        import ipywidgets  # noqa: F401
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


def _widgets(
    draw: Draw,
    alt: str,
    fmt: str,
    sliders: dict[str, Slider],
    at: dict[str, int],
    caption: str | None,
    answer: str | None,
) -> Any:
    import ipywidgets as w

    wide = {"description_width": "initial"}
    controls = {
        n: w.SelectionSlider(
            options=list(zip(s.texts(), s.values, strict=True)),
            index=at[n],
            description=str(s.label),
            style=wide,
            layout=w.Layout(width="95%"),
        )
        for n, s in sliders.items()
    }
    picture, note = w.HTML(), w.HTML()
    name = _asked[-1] if _asked else ""
    _asked.clear()

    def update(_: object = None) -> None:
        begun = time.perf_counter()
        fig = _drawn(draw, {n: c.value for n, c in controls.items()})
        taken = 1e3 * (time.perf_counter() - begun)
        note.value = f"Drawn on {escape(name)}, in {taken:.0f} ms."
        frame, _image = style.still(fig, fmt)
        style.close(fig)
        css = style.PNG_CSS if fmt == "png" else ""
        picture.value = css + style.wrap(frame, alt, None)

    for control in controls.values():
        control.observe(update, names="value")
    update()
    words = [w.HTMLMath(style.mathematics(caption))] if caption else []
    notes = [note] if name else []
    return w.VBox([picture, *controls.values(), *notes, *words, *_answer(controls, answer)])


def _answer(controls: Mapping[str, Any], answer: str | None) -> list[Any]:
    """The answer, folded until a slider moves."""
    import ipywidgets as w

    if not answer:
        return []
    words = w.HTMLMath(style.folded(answer))

    def unfold(_: object) -> None:
        words.value = style.folded(answer, opened=True)

    for control in controls.values():
        control.observe(unfold, names="value")
    return [words]
