"""Turn a Matplotlib figure into a short, repeatable list of SVG lines that may stand in a page.

What Matplotlib writes is a document of its own: it has ids that repeat from figure to figure, a
style sheet that would leak into the page, black ink, and six decimals. Here ids that nothing refers
to are dropped and the others renamed, black becomes the ink of the page (``currentColor``), and
paths are written as differences, rounded to 0.01 pt: 0.5 % of the thinnest line.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import unicodedata
import xml.etree.ElementTree as ET
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#000000"
PAPER = "#fefefe"
"""Use it where something must hide what is behind it: it becomes the background of the page."""

PREFIX = "\x00"  # stands for the hash of the content until the content is known
MARK = "data-line:"  # an id that begins so becomes an attribute, for scripts
SCALE = 100  # units per pt
READABLE = 9  # px, the smallest words
FONTS = "DejaVu Sans,Bitstream Vera Sans,Verdana,Geneva,sans-serif"  # all of the same width
MATHS = "STIXGeneral,STIX Two Text,Times New Roman,Liberation Serif,Times,serif"
MATHS_SIZE = 1.12  # its small letters are lower than those of FONTS; wider, they still do not touch
COLOURS = {INK: "currentColor", PAPER: "var(--pst-color-background,#fff)"}
RC: dict[Any, Any] = {  # Any as in style
    "svg.fonttype": "none",
    "svg.hashsalt": "sbnlib",
    "svg.image_inline": True,
}
DROPPED = {"metadata", "style"}


def _unicode() -> dict[int, str]:
    """Matplotlib's private codes of the letters of mathbb and mathcal that its STIX fonts hold."""
    table = {
        0xE154 + i: f"MATHEMATICAL DOUBLE-STRUCK CAPITAL {c}"
        for i, c in enumerate("ABEFGIJKLMOSTUVWXY")
    }
    for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        kind = "SCRIPT" if c in "BEFHILMR" else "MATHEMATICAL SCRIPT"
        table[0xE22D + i] = f"{kind} CAPITAL {c}"
    return {code: unicodedata.lookup(name) for code, name in table.items()}


UNICODE = _unicode()


def svg_lines(fig: Figure, names: dict[str, str] | None = None) -> list[str]:
    """The figure as SVG, one element a line. ``names`` maps old ids to new; frames share it."""
    root = ET.fromstring(_savefig(fig))
    text = ET.tostring(root, encoding="unicode")
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    names = {} if names is None else names
    body: list[str] = []
    for child in root:
        _write(child, used, names, body)
    return [_root_tag(root, fitting(fig)), *body, "</svg>"]


def fitting(fig: Figure) -> str:
    """The style of a picture that shrinks with the page as long as its words can be read.

    That is 9 px for the smallest of them (an index within a word is smaller than the word). Where
    the page is narrower the picture scrolls in its frame.
    """
    words = (part for part in fig.findobj(Text) if isinstance(part, Text))  # as with Axes
    sizes = [w.get_fontsize() for w in words if w.get_visible() and w.get_text().strip()]
    points = fig.get_size_inches()[0] * 72
    least = READABLE * points / min(sizes, default=math.inf)
    return f"max-width:100%;min-width:{least:.0f}px;height:auto"


def content_hash(text: str) -> str:
    """Ten hexadecimal digits that depend on the content only."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def with_ids(text: str, digest: str) -> str:
    """Put the hash of the content in front of each id."""
    return text.replace(PREFIX, f"s{digest}-")


def _savefig(fig: Figure) -> str:
    buffer = io.StringIO()
    axes = (part for part in fig.findobj(Axes) if isinstance(part, Axes))  # findobj says Artist
    for part in [fig.patch, *(ax.patch for ax in axes)]:
        part.set_visible(False)  # the page is the background
    with matplotlib.rc_context(RC):
        # not fig.savefig: it draws everything twice
        canvas = FigureCanvasSVG(fig)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _root_tag(root: ET.Element, style: str) -> str:
    width, height = (float(v) for v in root.get("viewBox", "").split()[2:])
    # Presentation attributes, not a style sheet: a style sheet in inline SVG acts on the page.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width * 4 / 3:.0f}" height="{height * 4 / 3:.0f}" fill="currentColor" '
        f'stroke-linejoin="round" font-family="{FONTS}" style="{style}">'
    )


def _write(node: ET.Element, used: set[str], names: dict[str, str], out: list[str]) -> None:
    tag = node.tag.rpartition("}")[2]
    if tag in DROPPED or _invisible(node):
        return
    attributes = "".join(_attributes(node, used, names))
    if len(node) == 0 and not (node.text or "").strip():
        if tag not in ("g", "defs"):
            out.append(f"<{tag}{attributes}/>")
    elif tag == "text":
        out.append(f"<text{attributes}>{_text(node)}</text>")
    else:
        bare = tag == "g" and not attributes
        inner: list[str] = []
        for child in node:
            _write(child, used, names, inner)
        out.extend(inner if bare or not inner else [f"<{tag}{attributes}>", *inner, f"</{tag}>"])


def _text(node: ET.Element) -> str:
    if len(node) == 0:
        return escape(node.text or "", quote=False)
    runs: list[tuple[str, str, str, str]] = []  # x, y, style, characters
    for span in sorted(node, key=lambda s: float(s.get("x", "0").split()[0])):
        x, y, style = (_value(k, span.get(k, ""), set(), {}) for k in ("x", "y", "style"))
        text = (span.text or "").translate(UNICODE)
        if runs and runs[-1][1:3] == (y, style) and "family" not in style:
            runs[-1] = (*runs[-1][:3], runs[-1][3] + text)  # words flow as the font wants
        elif text.strip():
            runs.append((x, y, style, text))
    tag = '<tspan x="{}" y="{}" style="{}">{}</tspan>'
    return "".join(tag.format(*run[:3], escape(run[3], quote=False)) for run in runs)


def _invisible(node: ET.Element) -> bool:
    return node.tag.endswith("path") and node.get("style") == "fill: none"


def _attributes(node: ET.Element, used: set[str], names: dict[str, str]) -> list[str]:
    pairs = []
    for key, value in node.attrib.items():
        key = key.rpartition("}")[2]
        if key == "id" and value.startswith(MARK):
            key, value = "data-line", value.removeprefix(MARK)
        value = _value(key, value, used, names)
        if value:
            pairs.append(f' {key}="{escape(value)}"')
    return pairs


def _value(key: str, value: str, used: set[str], names: dict[str, str]) -> str:
    if key == "id":
        return _rename(value, names) if value in used else ""
    if key == "href" and value.startswith("#"):
        return "#" + _rename(value[1:], names)
    if key == "clip-path":
        return f"url(#{_rename(value[5:-1], names)})"
    if key == "d":
        return short_path(value)
    if key == "style":
        return _style(value)
    if key == "transform" and value.startswith(("rotate(-0 ", "rotate(0 ")):
        return ""
    return _round(value) if key in {"x", "y", "width", "height", "transform"} else value


def _rename(name: str, names: dict[str, str]) -> str:
    return names.setdefault(name, f"{PREFIX}{len(names)}")


def _style(value: str) -> str:
    maths = "'STIX" in value  # all else has the root's font
    kept = []
    for item in value.split(";"):
        key, _, val = (part.strip() for part in item.partition(":"))
        if key == "font-family":
            if not maths:
                continue
            val = MATHS
        elif key == "font-size" and maths:
            val = f"{float(val.removesuffix('px')) * MATHS_SIZE:.4g}px"
        kept.append(f"{key}:{COLOURS.get(val, val)}")
    return ";".join(kept)


def _round(value: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda m: _number(round(float(m[0]) * SCALE)), value)


def _number(units: int) -> str:
    text = f"{units / SCALE:.2f}".rstrip("0").rstrip(".")
    return re.sub(r"^(-?)0\.", r"\1.", text)


def short_path(d: str) -> str:
    """An absolute path as relative steps: the same points to 0.01 pt, about half the bytes.

    The steps are differences of rounded points, so rounding errors do not add up.
    """
    out, here, start, last = [], (0, 0), (0, 0), ""
    for letter, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", d):
        points = [round(float(v) * SCALE) for v in numbers.split()]
        steps = [_number(v - here[i % 2]) for i, v in enumerate(points)]
        # after "m", further pairs are lines; after a letter, further groups repeat it
        quiet = letter == "L" and last in ("M", "L") or letter == last in ("C", "Q")
        out.append(("" if quiet else letter.lower()) + _join(steps, quiet))
        here = (points[-2], points[-1]) if points else start
        start = here if letter == "M" else start
        last = letter
    return "".join(out)


def _join(steps: list[str], lead: bool) -> str:
    text = "".join(s if s.startswith("-") else " " + s for s in steps)
    return text if lead else text.lstrip(" ")
