"""The scripts of live figures, on the pages that have one which a script can draw.

A figure of `figures.explore(…, live="name")` holds frames, and in `data-live` the name under which
`figures.js` computes its lines at every position; `live.js` moves them. Without these scripts, and
where they do not know the name, the frames do what they do on any page.
"""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.config import Config

SCRIPTS = "book/lab/scripts"
LIVE = ("noise", "exact", "estimators", "formula", "net", "lab", "figures", "live")  # in this order


def find_scripts(app: Sphinx, config: Config) -> None:
    if SCRIPTS not in config.html_static_path:
        config.html_static_path.append(SCRIPTS)


def add_scripts(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    if " data-live=" in context.get("body", ""):
        for name in LIVE:
            app.add_js_file(f"{name}.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", find_scripts)
    app.connect("html-page-context", add_scripts, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
