"""Exercises that check themselves in the page.

Where the checker of an exercise asks for a number, a choice or a formula, the exercise gets a box
at its end that holds the checker's own data (``sbnlib.exercises.Answer.data``) as JSON.
``book/lab/scripts/answers.js`` puts a field for the answer into it; without scripts nothing is
shown. Functions are checked in the notebook only.

Such a checker stands on its own: its cell takes no name from other cells but ``exercises``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx_exercise.nodes import exercise_enumerable_node

IN_THE_PAGE = re.compile(r"\bexercises\.(?:Number|Choice|Formula)\(")
EXERCISE = re.compile(r"^[:`]{3,}\{exercise\}.*\n:label: (\S+)$", re.M)
BOX = '<div class="sbn-check" hidden><script type="application/json">{}</script></div>'
logger = logging.getLogger(__name__)


# ---- the data ----------------------------------------------------------------------------------


def checkers(path: Path) -> Iterator[tuple[str, str]]:
    """The exercises of a notebook that are checked in the page, each with its checker's code."""
    label = ""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            label = ([label] + EXERCISE.findall(cell.source))[-1]
        elif "checker" in cell.metadata.get("tags", []) and IN_THE_PAGE.search(cell.source):
            yield label, cell.source


def data_of(source: str) -> Mapping[str, Any]:
    """What the one checker of a cell knows.

    Raises:
        NameError: the cell takes something from another cell.
        ValueError: it does not make one checker, or one that JSON cannot hold.
    """
    from sbnlib import exercises

    space = {"exercises": exercises}
    exec(compile(source, "checker", "exec"), space)
    (answer,) = (made for made in space.values() if isinstance(made, exercises.Answer))
    return answer.data()


@cache
def answers(path: Path) -> Mapping[str, str]:
    """For each exercise of a notebook that is checked in the page its data, as JSON for HTML."""
    found = {}
    for label, source in checkers(path):
        try:
            text = json.dumps(data_of(source), allow_nan=False, ensure_ascii=False)
        except (NameError, TypeError, ValueError) as error:
            logger.warning("%s cannot be checked in the page: %s", label, error, location=str(path))
        else:
            found[label] = text.replace("<", "\\u003c")
    return found


# ---- the page ----------------------------------------------------------------------------------


def add_boxes(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put the data at the end of their exercises."""
    path = Path(app.env.doc2path(page))
    if app.builder.format != "html" or path.suffix != ".ipynb":
        return
    found = answers(path)
    for box in doctree.findall(exercise_enumerable_node):
        if box["label"] in found:
            box[-1] += nodes.raw("", BOX.format(found[box["label"]]), format="html")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", add_boxes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
