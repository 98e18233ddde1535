"""How to cite a chapter: a folded box at its end, made from CITATION.cff and the chapter's title.

It holds a sentence for a list of references and an entry for BibTeX. The address is in both where
the book knows its own, as for the buttons that lead to the repository.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import yaml
from sbn_site import chapter_of
from sphinx.application import Sphinx

BOX = """<details class="sbn-cite">
<summary>Cite this chapter</summary>
<p>{sentence}</p>
<pre tabindex="0" aria-label="Entry for BibTeX">{entry}</pre>
</details>
"""


def citation(root: Path) -> Mapping[str, Any]:
    return yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))


def authors(found: Mapping[str, Any]) -> list[str]:
    """People by both names, a group by its one."""
    return [a.get("name") or f"{a['given-names']} {a['family-names']}" for a in found["authors"]]


def sentence(found: Mapping[str, Any], number: int, title: str, year: str, url: str) -> str:
    """As a list of references has it; a title that asks ends in its question mark alone."""
    who, book = " and ".join(authors(found)), found["title"]
    stop = "" if title.endswith(("?", "!", ".")) else "."
    words = f"{who[0].upper()}{who[1:]} ({year}). {title}{stop} Chapter {number} of {book}"
    at = f", {url}" if url else ""
    return f"{words}, version {found['version']}{at}."


def bibtex(found: Mapping[str, Any], number: int, title: str, year: str, url: str) -> str:
    """As BibTeX has it: a part of a book. Braces keep the capitals, and a group in one piece."""
    people = " and ".join(f"{{{a}}}" if "name" in given else a for a, given
                          in zip(authors(found), found["authors"], strict=True))  # fmt: skip
    fields = {
        "author": people,
        "title": f"{{{title}}}",
        "booktitle": f"{{{found['title']}}}",
        "chapter": str(number),
        "year": year,
        "note": f"Version {found['version']}",
    } | ({"url": url} if url else {})
    lines = [f"  {name:<9} = {{{value}}}" for name, value in fields.items()]
    return f"@incollection{{sbn{year}chapter{number},\n" + ",\n".join(lines) + "\n}"


def add_box(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    number = chapter_of(page)
    if number is None or "body" not in context:
        return
    found, title = citation(Path(app.srcdir)), app.env.titles[page].astext()
    given = (found, number, title, app.config.copyright, os.environ.get("SBN_REPOSITORY_URL", ""))
    box = BOX.format(sentence=escape(sentence(*given)), entry=escape(bibtex(*given)))
    context["body"] += box


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", add_box, priority=450)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
