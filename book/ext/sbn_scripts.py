"""The scripts of the lab, on the page of the lab alone.

They are classic scripts in the order in which one stands on another, each of which hangs what it
has on the one global ``SBN``; the page works from a folder without a server.
"""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.config import Config

SCRIPTS = "book/lab/scripts"
LAB = (
    "noise", "exact", "estimators", "formula", "net", "presets", "address", "lab", "losses",
    "walk", "draw", "view", "charts", "controls", "page",
)  # fmt: skip


def find_scripts(app: Sphinx, config: Config) -> None:
    if SCRIPTS not in config.html_static_path:
        config.html_static_path.append(SCRIPTS)


def add_scripts(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    if 'id="sbn-lab"' not in context.get("body", ""):
        return
    app.add_css_file("lab.css")
    for name in LAB:
        app.add_js_file(f"{name}.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", find_scripts)
    app.connect("html-page-context", add_scripts, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
