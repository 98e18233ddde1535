"""What a site has once it knows its own address, and only then.

The address is SBN_SITE_URL, or where GitHub shows the pages of the repository SBN_REPOSITORY_URL.

1. Each page names its one address (``<link rel="canonical">``), so that copies do not compete.
2. ``sitemap.xml`` lists the pages; ``robots.txt`` leads to it where the site is alone on its host,
   for nobody looks for that file in a folder.
3. ``404.html`` is what a host shows for an address that has no page. It is shown at any depth, so
   it says by ``<base>`` from where its links count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from sphinx.application import Sphinx
from sphinx.config import Config

GITHUB = "https://github.com/"
LOST = "404"
ROBOTS = "robots.txt"
FILES = (f"{LOST}.html", "sitemap.xml", ROBOTS)
SITEMAP = """<?xml version="1.0" encoding="utf-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
{}
</urlset>
"""
BODY = """<section id="no-page-here">
<h1>No page is here</h1>
<p>The address may be misspelt, or the page may have moved. The <a href="{front}">front page</a> has
the map of the chapters, and the <a href="{search}">search</a> looks through all of them.</p>
</section>"""


def address(given: str, repository: str) -> str:
    """The address of the site, with a slash at its end; "" if nothing tells it.

    Raises:
        ValueError: ``given`` is no address of the web.
    """
    if given:
        if urlsplit(given).scheme not in ("http", "https") or not urlsplit(given).netloc:
            raise ValueError(f"SBN_SITE_URL has to begin with https://, not be {given!r}")
        return given.rstrip("/") + "/"
    owner, _, name = repository.removeprefix(GITHUB).rstrip("/").partition("/")
    if not repository.startswith(GITHUB) or not name:
        return ""
    host = f"{owner.lower()}.github.io"
    name = name.removesuffix(".git")
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def set_address(app: Sphinx, config: Config) -> None:
    given = os.environ.get("SBN_SITE_URL", ""), os.environ.get("SBN_REPOSITORY_URL", "")
    config.html_baseurl = address(*given)


def lost_page(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    """The page for an address that has none."""
    if app.config.html_baseurl:
        uri = app.builder.get_target_uri
        body = BODY.format(front=uri(app.config.root_doc), search=uri("search"))
        yield LOST, {"title": "No page is here", "body": body}, "page.html"


def base_of_lost_page(
    app: Sphinx, page: str, template: str, context: dict, doctree: object
) -> None:
    if page == LOST:
        base = escape(app.config.html_baseurl)
        tags = f'<base href="{base}"/>\n<meta name="robots" content="noindex"/>\n'
        context["metatags"] = tags + context.get("metatags", "")
        context["pageurl"] = None  # it stands for no address of its own
        context["pagetitle"] = context["title"]  # of the printed page


def write_lists(app: Sphinx, exception: Exception | None) -> None:
    """The sitemap and the way to it; nothing of an earlier build with another address, or none."""
    if exception or app.builder.format != "html":
        return
    base, out = app.config.html_baseurl, Path(app.outdir)
    for name in FILES:
        if not base or name == ROBOTS:
            (out / name).unlink(missing_ok=True)
    if base:
        write_sitemap(app, base, out)


def write_sitemap(app: Sphinx, base: str, out: Path) -> None:
    pages = (base + app.builder.get_target_uri(name) for name in sorted(app.env.found_docs))
    lines = (f"<url><loc>{escape(page)}</loc></url>" for page in pages)
    (out / "sitemap.xml").write_text(SITEMAP.format("\n".join(lines)), "utf-8")
    if urlsplit(base).path == "/":
        (out / ROBOTS).write_text(f"Sitemap: {base}sitemap.xml\n", "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", set_address)
    app.connect("html-collect-pages", lost_page)
    app.connect("html-page-context", base_of_lost_page, priority=900)
    app.connect("build-finished", write_lists)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
