"""The lines of a figure that a script of the page moves: their marks, and where they are drawn.

A script draws at every position of the sliders what frames hold at some. For that it needs to know
which lines move, and from data to the picture the way that Matplotlib went. What does not move
must be the same in every frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .svg import MARK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

POINTS = 72  # an inch of SVG
NAME = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")
SCALES = ("linear", "log")


def check(name: object, fmt: str, values: Mapping[str, Sequence[Any]]) -> None:
    """Before anything is drawn."""
    if not isinstance(name, str):
        raise TypeError(f"live must be the name of a figure in the scripts, got {name!r}")
    if not NAME.fullmatch(name):
        raise ValueError(f"live must be letters, digits and hyphens, got {name!r}")
    if fmt != "svg":
        raise ValueError(f"live moves the lines of an SVG picture, got fmt={fmt!r}")
    for slider, positions in values.items():
        if not all(type(v) in (int, float) for v in positions):
            raise ValueError(f"live needs numbers on every slider, got {slider} = {positions}")


class Moving:
    """The lines with a gid, as the start frame has them; every other frame is held to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.where: dict[str, Any] = {}
        self.still: list[str] = []

    def mark(self, fig: Figure) -> None:
        """Let the SVG have the gids of lines as attributes ``data-line``."""
        for line in (line for ax in fig.axes for line in ax.lines if line.get_gid()):
            line.set_gid(f"{MARK}{line.get_gid()}")

    def note(self, fig: Figure, lines: list[str], params: Mapping[str, Any]) -> None:
        """Keep what the start frame says, which comes first, or compare another one with it."""
        found = self._lines(fig)
        where = {
            "axes": [_axes(ax, self.name) for ax in fig.axes],
            "lines": {name: self._line(fig, *at) for name, at in found.items()},
        }
        if not self.where:
            self.where, self.still = where, still(lines)
            self._check_marks(lines)
        elif where != self.where:
            raise ValueError(
                f"live={self.name!r}: at {_at(params)} lines or limits are not those of the "
                f"start: {_difference(self.where, where)}"
            )
        elif still(lines) != self.still:
            raise ValueError(
                f"live={self.name!r}: at {_at(params)} something without a gid has moved: "
                f"{_first(still(lines), self.still)}"
            )

    def _lines(self, fig: Figure) -> dict[str, tuple[int, Line2D]]:
        found: dict[str, tuple[int, Line2D]] = {}
        for k, ax in enumerate(fig.axes):
            for line in ax.lines:
                name = (line.get_gid() or "").removeprefix(MARK)
                if name in found:
                    raise ValueError(f"live={self.name!r}: two lines have the gid {name!r}")
                if name and not NAME.fullmatch(name):
                    raise ValueError(f"gid must be letters, digits and hyphens, got {name!r}")
                if name:
                    found[name] = k, line
        if not found:
            raise ValueError(
                f"live={self.name!r} needs lines with a gid, as in ax.plot(x, y, gid='mean'); "
                "draw makes none"
            )
        return found

    def _line(self, fig: Figure, k: int, line: Line2D) -> dict[str, Any]:
        ax, transform = fig.axes[k], line.get_transform()
        out: dict[str, Any] = {"axes": k}
        if transform == ax.get_xaxis_transform():  # axvline: y from the lower edge to the upper
            out["y"] = [0, 1, "linear"]
        elif transform == ax.get_yaxis_transform():
            out["x"] = [0, 1, "linear"]
        elif transform != ax.transData:
            gid = str(line.get_gid()).removeprefix(MARK)
            raise ValueError(f"live={self.name!r}: {gid!r} is not drawn in data")
        if line.get_marker() not in ("", " ", "None", "none", None):
            out["marks"] = _marks(line)
        return out

    def _check_marks(self, lines: list[str]) -> None:
        """A script copies the marks that it finds in the start frame."""
        for name, line in self.where["lines"].items():
            if "marks" in line and not any(v.startswith("<use") for v in group(lines, name)):
                raise ValueError(f"live={self.name!r}: {name!r} shows no mark at the start")


def group(lines: list[str], name: str) -> list[str]:
    """The lines of SVG of one marked line."""
    begin = lines.index(f'<g data-line="{name}">')
    return lines[begin : begin + _length(lines[begin:])]


def still(lines: list[str]) -> list[str]:
    """The lines of SVG without those of marked lines."""
    out, at = [], 0
    while at < len(lines):
        if lines[at].startswith("<g data-line="):
            at += _length(lines[at:])
        else:
            out.append(lines[at])
            at += 1
    return out


def _length(lines: list[str]) -> int:
    """Of the group that begins in the first line."""
    depth = 0
    for count, line in enumerate(lines, 1):
        depth += line.startswith("<g") - line.startswith("</g")
        if depth == 0:
            return count
    raise ValueError("a group of SVG has no end")


def _axes(ax: Axes, name: str) -> dict[str, Any]:
    """The box in SVG, from the lower left corner to the upper right, and what its sides stand for.

    The sides are ``[from, to, scale]``.
    """
    scales = ax.get_xscale(), ax.get_yscale()
    if not set(scales) <= set(SCALES):
        raise ValueError(f"live={name!r} knows the scales {SCALES}, got {scales}")
    figure = ax.get_figure(root=True)
    assert figure is not None
    width, height = (float(v) * POINTS for v in figure.get_size_inches())
    (x0, y0), (x1, y1) = ax.get_position().get_points().tolist()
    corners = [x0 * width, (1 - y0) * height, x1 * width, (1 - y1) * height]
    sides = [
        [*map(float, limits), scale]
        for limits, scale in zip((ax.get_xlim(), ax.get_ylim()), scales, strict=True)
    ]
    return {"box": [round(v, 4) for v in corners], "x": sides[0], "y": sides[1]}


def _marks(line: Line2D) -> list[int]:
    """The points of a line that carry its marker."""
    points = list(range(len(np.asarray(line.get_xydata()))))
    match line.get_markevery():
        case None:
            return points
        case int(step):
            return points[::step]
        case slice() as some:
            return points[some]
        case list(chosen) if all(type(v) is int for v in chosen):
            return [points[v] for v in chosen]
        case tuple((int(first), int(step))):
            return points[first::step]
        case every:
            raise ValueError(f"live needs markevery as a count, (first, step) or list, got {every}")


def _at(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in params.items())


def _difference(start: dict[str, Any], here: dict[str, Any]) -> str:
    """The first thing that two frames say differently."""
    for kind in ("axes", "lines"):
        one, other = (dict(v) if kind == "lines" else dict(enumerate(v))
                      for v in (start[kind], here[kind]))  # fmt: skip
        for key in [*one, *other]:
            if one.get(key) != other.get(key):
                return f"{kind} {key!r} {other.get(key)}, at the start {one.get(key)}"
    raise AssertionError("they are the same")


def _first(here: list[str], start: list[str]) -> str:
    """The first line that the start has not."""
    return next((v for v in here if v not in start), "a part of the start is missing")
