"""What makes a build quick, and leaves its bytes as they are.

1. Sphinx reads a page's whole tree from its file for every number that refers to it; once is
   enough, after all pages are read.
2. pybtex looks through all installed packages for its style at every citation; once is enough.
"""

from functools import cache

import pybtex.plugin
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


def setup(app: Sphinx) -> dict[str, bool]:
    pybtex.plugin._load_entry_point = cache(pybtex.plugin._load_entry_point)
    app.connect("env-check-consistency", keep_trees)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
