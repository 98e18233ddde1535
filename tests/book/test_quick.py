"""What makes a build quick leaves what it makes as it is."""

import sys
from types import SimpleNamespace

import pytest
from places import BOOK

pytest.importorskip("sphinx_tippy")
sys.path.insert(0, str(BOOK / "ext"))
try:
    import sbn_quick
finally:
    sys.path.pop(0)

PIECE = (
    '<section id="one"><h2>One</h2><div class="highlight"><pre><span>a</span> &lt; b</pre></div>'
    '<p>text<a href="x.html">x</a><svg viewBox="0 0 1 1"><path d="m0 0"/></svg></p></section>'
)


def test_code_and_pictures_stay_out_of_the_way_and_come_back_whole():
    page = sbn_quick.Page(PIECE, "html.parser")
    assert page.find(["span", "path", "pre", "svg"]) is None and page.find("a")["href"] == "x.html"
    assert str(page) == PIECE


def test_a_preview_has_its_code_and_its_picture(monkeypatch):
    monkeypatch.setattr(sbn_quick, "cut", lambda _, page: {"one": page.find("section").decode()})
    page = sbn_quick.Page(PIECE, "html.parser")
    assert sbn_quick.previews(None, page) == {"one": PIECE}


def test_a_link_is_rewritten_and_the_rest_is_left(monkeypatch):
    import sphinx_tippy

    monkeypatch.setattr(sphinx_tippy, "BeautifulSoup", sbn_quick.Page)
    found = sphinx_tippy.rewrite_local_attrs(PIECE, "../above")
    assert found == PIECE.replace("x.html", "../above/x.html")


def test_a_tree_is_read_once_for_all_numbers():
    asked = []
    env = SimpleNamespace(get_doctree=lambda page: asked.append(page) or page, config="its own")
    std = SimpleNamespace(
        _resolve_numref_xref=lambda env, page: (env.get_doctree(page), env.config)
    )
    env.get_domain = lambda name: std
    sbn_quick.keep_trees(None, env)
    given = [std._resolve_numref_xref(env, page) for page in ("a", "b", "a")]
    assert given == [("a", "its own"), ("b", "its own"), ("a", "its own")] and asked == ["a", "b"]
