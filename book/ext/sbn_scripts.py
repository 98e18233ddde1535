"""Our own scripts, on the pages that need them: the lab, live figures, answers to exercises.

They are classic scripts, each of which hangs what it has on the one global ``SBN``; the pages work
from a folder without a server. A page has each script once, in an order in which none comes before
one that it stands on.
"""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.config import Config

FOLDER = "book/lab/scripts"
ENGINE = ("noise", "exact", "estimators", "formula", "net", "presets", "address", "lab")
#: What stands in a page -> the scripts that it needs.
NEEDED = {
    'id="sbn-lab"': (*ENGINE, "losses", "walk", "draw", "view", "charts", "controls", "page"),
    " data-live=": ("noise", "exact", "estimators", "formula", "net", "lab", "figures", "live"),
    'class="sbn-check"': ("formula", "answers"),
}
LAB = NEEDED['id="sbn-lab"']
ORDER = (*LAB, "figures", "live", "answers")


def needed(body: str) -> list[str]:
    """The scripts of a page, in their order."""
    names = {name for mark, own in NEEDED.items() if mark in body for name in own}
    return [name for name in ORDER if name in names]


def find_scripts(app: Sphinx, config: Config) -> None:
    config.html_static_path.append(FOLDER)


def add_scripts(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    body = context.get("body", "")
    for name in needed(body):
        app.add_js_file(f"{name}.js", loading_method="defer")
    if 'id="sbn-lab"' in body:
        app.add_css_file("lab.css")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", find_scripts)
    app.connect("html-page-context", add_scripts, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
