"""The house style, and the one way to show a figure: with words for those who cannot see it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from .svg import INK, PAPER, content_hash, fitting, svg_lines, with_ids

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["INK", "PAPER", "Picture", "show", "use"]

FORMATS = ("svg", "png")
DPI = 144
SPACE = "margin:.5rem 0 1rem;color:inherit"
WORDS = "font-size:.875em;margin-top:.4rem"
# A PNG cannot take the ink of the page. White is made to vanish into the page by blending, and a
# dark page turns the picture's lightness over: book, JupyterLab, Colab.
PNG_CSS = (
    "<style>.sbn-png{mix-blend-mode:multiply}"
    'html[data-theme="dark"] .sbn-png,body[data-jp-theme-light="false"] .sbn-png,'
    'html[theme="dark"] .sbn-png'
    "{filter:invert(1) hue-rotate(180deg);mix-blend-mode:screen}</style>"
)
STYLE: dict[Any, Any] = {  # Any: Matplotlib's stubs want its own literals as keys
    "figure.figsize": (5.5, 3.1),  # whole on a phone, with text that can be read there
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "stix",
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "grid.color": "#808080",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "image.cmap": "cividis",
    "savefig.dpi": DPI,
    **dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor"], INK),
    **dict.fromkeys(["xtick.color", "ytick.color"], INK),
}


def use() -> None:
    """Set the house style of Matplotlib. Call it once, in the first cell of a notebook.

    Black is the ink of the page: whatever is drawn in ``INK`` ("#000000", Matplotlib's "black")
    follows the page from light to dark, and ``PAPER`` is the background of the page.
    """
    matplotlib.rcParams.update(STYLE)


@dataclass(frozen=True)
class Picture:
    """What a cell shows: HTML for the page and a plain image for viewers that refuse HTML.

    Attributes:
        html: the figure element.
        alt: what the picture shows, in words.
        image: the plain image, by its MIME type.
    """

    html: str
    alt: str
    image: dict[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"Picture({self.alt!r})"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {"text/html": self.html, "text/plain": repr(self), **self.image}

    def save(self, path: str | Path) -> None:
        """Write the HTML as a page of its own."""
        Path(path).write_text(f'<!doctype html><meta charset="utf-8">\n{self.html}\n')


def show(fig: Figure, alt: str, *, caption: str | None = None, fmt: str = "svg") -> Picture:
    """Show a figure; the last line of a cell. The figure is closed.

    Args:
        fig: a Matplotlib figure.
        alt: one sentence that says what the picture shows, for readers who cannot see it.
        caption: text under the figure; ``$...$`` is mathematics.
        fmt: "svg" for curves, "png" (64 colours, 144 dpi) for dense pictures.

    Raises:
        TypeError: ``fig`` is not a figure.
        ValueError: ``alt`` is missing or blank, or ``fmt`` is unknown.
    """
    check_alt(alt)
    check_format(fmt)
    check_figure(fig, "fig")
    frame, image = still(fig, fmt)
    close(fig)
    css = PNG_CSS if fmt == "png" else ""
    return Picture(f"{css}{wrap(frame, alt, caption)}", alt, image)


def still(fig: Figure, fmt: str) -> tuple[str, dict[str, Any]]:
    """One picture: its HTML, and the image entry of the bundle."""
    if fmt == "png":
        data = png_bytes(fig)
        return png_tag(fig, data), {"image/png": data}
    text = "".join(svg_lines(fig))
    text = with_ids(text, content_hash(text))
    return text, {"image/svg+xml": on_white(text)}


def on_white(svg: str) -> str:
    """The image that viewers such as GitHub show on a page of unknown colour: black on white."""
    return svg.replace('style="', 'style="background:#fff;color:#000;', 1)


def wrap(
    frame: str,
    alt: str,
    caption: str | None,
    answer: str | None = None,
    extra: str = "",
    hook: str = "",
) -> str:
    """The figure element: the picture, what stands under it, the caption, the folded answer."""
    words = mathematics(caption or "") + (folded(answer) if answer else "")
    below = f'<figcaption style="{WORDS}">{words}</figcaption>' if words else ""
    return (
        f'<figure class="sbn-figure" style="{SPACE}"{hook}>'
        f'<div class="sbn-frame" role="img" aria-label="{escape(alt)}">{frame}</div>'
        f"{extra}{below}</figure>"
    )


def folded(answer: str, opened: bool = False) -> str:
    """What the sliders show, for those who have made their guess."""
    return (
        f'<details class="sbn-answer"{" open" if opened else ""}><summary>What the sliders show'
        f"</summary><p>{mathematics(answer)}</p></details>"
    )


def mathematics(text: str) -> str:
    r"""Escape for HTML; ``$x$`` becomes ``\(x\)``, which MathJax reads in a page and in Jupyter."""
    return re.sub(r"\$([^$]+)\$", r"\\(\1\\)", escape(text, quote=False))


def png_bytes(fig: Figure, dpi: int = DPI) -> bytes:
    """A PNG of 64 colours without dates: about a third of the bytes."""
    from PIL import Image

    buffer, small = io.BytesIO(), io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    picture = Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture.save(small, format="PNG", optimize=True)
    return small.getvalue()


def png_tag(fig: Figure, data: bytes) -> str:
    """An image element that holds its own data. (`dark-light` keeps the theme's filter away.)"""
    width, height = fig.get_size_inches() * 96
    return (
        '<img class="sbn-png dark-light" alt="" decoding="sync" '
        f'width="{width:.0f}" height="{height:.0f}" '
        f'style="{fitting(fig)};padding:0;background:none" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    )


def close(fig: Figure) -> None:
    """Forget the figure, so that neither memory nor the notebook keeps a second copy."""
    import matplotlib.pyplot as plt

    plt.close(fig)


def check_alt(alt: object) -> None:
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            f"alt must be a sentence that says what the picture shows, for readers who cannot "
            f"see it; got {alt!r}"
        )


def check_format(fmt: object) -> None:
    if fmt not in FORMATS:
        raise ValueError(f"fmt must be one of {', '.join(map(repr, FORMATS))}; got {fmt!r}")


def check_figure(fig: object, name: str) -> None:
    from matplotlib.figure import Figure

    if not isinstance(fig, Figure):
        raise TypeError(f"{name} must be a matplotlib Figure, got {type(fig).__name__}")
