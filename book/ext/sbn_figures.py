"""Numbers for the figures that cells draw, so that the text can refer to them.

A cell whose metadata names its figure, `"mystnb": {"figure": {"name": "fig-01-1"}}`, shows it in a
figure of Sphinx, with the number of its chapter. What sbnlib.figures wrote under the picture moves
there: the caption, which every format then has, and the answer, folded under it.
"""

import re
from collections.abc import Iterator
from html import unescape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

CAPTION = re.compile(r"<figcaption[^>]*>(.*?)(<details.*?</details>)?</figcaption>", re.S)
FORMULA = re.compile(r"\\\((.*?)\\\)", re.S)


class NumberFigures(SphinxTransform):
    """Put the words under a picture of a cell where Sphinx looks for them."""

    default_priority = 210  # when the page is read, before its labels are noted

    def apply(self) -> None:
        for figure in self.document.findall(nodes.figure):
            for html in figure.findall(nodes.raw):
                found = CAPTION.search(html.astext())
                if found and 'class="sbn-figure"' in html.astext():
                    lift(figure, html, found)


def lift(figure: nodes.figure, html: nodes.raw, found: re.Match[str]) -> None:
    text = CAPTION.sub("", html.astext())
    text = re.sub(r'<figure class="sbn-figure"(.*)</figure>', r"<div\1</div>", text, flags=re.S)
    html.children = [nodes.Text(text)]
    figure["classes"].append("sbn-figure")
    figure += nodes.caption("", "", *words(found[1]))
    if found[2]:
        figure += nodes.legend("", nodes.raw("", found[2], format="html"))


def words(html: str) -> Iterator[nodes.Node]:
    """Text and the formulas in it."""
    for i, part in enumerate(FORMULA.split(html)):
        if part:
            yield nodes.math("", unescape(part)) if i % 2 else nodes.Text(unescape(part))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(NumberFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
