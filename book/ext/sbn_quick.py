"""What makes a build quick, and leaves its bytes as they are.

1. Sphinx reads a page's whole tree from its file for every number that refers to it; once is
   enough, after all pages are read.
2. pybtex looks through all installed packages for its style at every citation; once is enough.
3. sphinx-tippy takes each page apart for its previews, every word of code and every stroke of a
   picture. Code and pictures stay out of it, and come back whole into the previews.
"""

import re
from functools import cache

import pybtex.plugin
import sphinx_tippy
from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


class Kept:
    """An environment whose trees stay in memory: they are asked for numbers, and not changed."""

    def __init__(self, env: BuildEnvironment) -> None:
        self._env = env
        self.get_doctree = cache(env.get_doctree)

    def __getattr__(self, name: str) -> object:
        return getattr(self._env, name)


def keep_trees(app: Sphinx, env: BuildEnvironment) -> None:
    std, kept = env.get_domain("std"), Kept(env)
    resolve = std._resolve_numref_xref

    def resolved(_: BuildEnvironment, *asked: object) -> nodes.Element | None:
        return resolve(kept, *asked)

    std._resolve_numref_xref = resolved


WHOLE = re.compile(r"<(svg|pre)\b.*?</\1>", re.S)
PLACE = re.compile(r"<!--whole (\d+)-->")


class Page(BeautifulSoup):
    """A page or a piece of one, less its code and pictures, each of which leaves a comment."""

    def __init__(self, text: str, *given: object, **options: object) -> None:
        kept: list[str] = []

        def aside(found: re.Match[str]) -> str:
            kept.append(found[0])
            return f"<!--whole {len(kept) - 1}-->"

        super().__init__(WHOLE.sub(aside, text), *given, **options)
        self.kept = kept

    def complete(self, html: str) -> str:
        return PLACE.sub(lambda found: self.kept[int(found[1])], html)

    def __str__(self) -> str:
        return self.complete(super().__str__())


cut = sphinx_tippy.create_id_to_tip_html


def previews(config: object, page: Page) -> dict[str | None, str]:
    """What sphinx-tippy cuts out of the page, with code and pictures."""
    return {name: page.complete(html) for name, html in cut(config, page).items()}


def setup(app: Sphinx) -> dict[str, bool]:
    pybtex.plugin._load_entry_point = cache(pybtex.plugin._load_entry_point)
    sphinx_tippy.BeautifulSoup, sphinx_tippy.create_id_to_tip_html = Page, previews
    app.connect("env-check-consistency", keep_trees)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
