"""Make every format, check it, publish it under the site.

    python book/tools/formats              after `make book`; `make formats` does both
    python book/tools/formats --link       only link what is there and is of these pages

Nothing is published if one format cannot be made: what is wrong is said, with the format and the
page, and what was published before stays. If no page has changed nothing is made again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from formats import browser, checks, copies, epub, markdown, notebooks, pages, pdf, publish
from formats.pages import Book, FormatError

NAME = notebooks.FOLDER
#: What only a site on a host has use for: also of ``book/ext/sbn_address.py``.
NOT_KEPT = ("llms.txt", "llms-full.txt", "404.html", "sitemap.xml", "robots.txt")


class Making:
    """The files that are made, and what went wrong, format by format."""

    def __init__(self, site: Path, lab: Path, root: Path, say: Callable[[str], None]) -> None:
        self.site, self.lab, self.root, self.say = site, lab, root, say
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []

    @contextmanager
    def format(self, name: str) -> Iterator[None]:
        """One format: its fault is noted, and the others go on."""
        begin = time.perf_counter()
        try:
            yield
        except FormatError as error:
            self.faults += [
                f"{name}: {line.removeprefix(f'{name}: ')}" for line in str(error).split("\n")
            ]
        else:
            self.say(f"{time.perf_counter() - begin:7.1f} s  {name}")

    def all(self) -> None:
        with self.format("pages"):
            book = pages.read(self.site, self.root)
            contents = checks.Contents.of(book)
        if self.faults:
            return
        with self.format("html"):
            self.files[f"{NAME}-html.zip"] = self.html()
        with self.format("markdown"):
            self.markdown(book, contents)
        with self.format("notebooks"):
            made = notebooks.archives(book, self.lab, self.root)
            with_them, without = made.values()
            checks.refuse("notebooks", checks.notebooks(with_them, without, contents))
            self.files |= made
        self.paper(book, contents)

    def html(self) -> bytes:
        """The site as it was built, to be read without a connection."""
        left_out = {publish.FOLDER, *NOT_KEPT}
        found = {}
        for path in sorted(p for p in self.site.rglob("*") if p.is_file()):
            name = path.relative_to(self.site).as_posix()
            if name.partition("/")[0] not in left_out:
                data = path.read_bytes()
                data = publish.unlinked(data) if name == publish.FRONT else data
                found[f"{NAME}-html/{name}"] = data
        return epub.zipped(found)

    def markdown(self, book: Book, contents: checks.Contents) -> None:
        found = markdown.pages(book)
        checks.refuse("markdown", checks.markdown(found, contents))
        for name, text in found.items():
            self.files[f"markdown/{name}"] = text.encode()
        archive = {f"{NAME}-markdown/{name}": text.encode() for name, text in found.items()}
        archive[f"{NAME}-markdown/llms.txt"] = markdown.index(book, "").encode()
        self.files[f"{NAME}-markdown.zip"] = epub.zipped(archive)
        self.files["/llms.txt"] = markdown.index(book, f"{publish.FOLDER}/markdown/").encode()
        self.files["/llms-full.txt"] = markdown.whole(book, found).encode()

    def paper(self, book: Book, contents: checks.Contents) -> None:
        """PDF and EPUB, which share the browser and the pages as a book on paper has them."""
        made: list[browser.Printed] = []
        with self.format("formulas and print, for pdf and epub"):
            copy = copies.for_paper(book)
            made.append(browser.print_book(pdf.html(copy, self.site), copy))
        for printed in made:
            self.bound(printed, copy, contents)

    def bound(self, printed: browser.Printed, copy: copies.Copy, contents: checks.Contents) -> None:
        with self.format("pdf"):
            data = pdf.finished(printed.pdf, copy)
            checks.refuse("pdf", checks.pdf(data, contents))
            self.files[f"{NAME}.pdf"] = data
        with self.format("epub"):
            data = epub.epub(copy, printed.mathml, self.site, printed.cover)
            checks.refuse("epub", checks.epub(data, contents))
            self.files[f"{NAME}.epub"] = data


def make(
    site: Path = pages.SITE,
    root: Path = pages.ROOT,
    *,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Make and publish; returns what went wrong, and then nothing was published."""
    if not (site / "index.html").exists():
        return [f"there is no built book in {site}: run `make book`, which makes it"]
    digest = pages.digest(site, root)
    if publish.made_from(site) == digest and not again:
        publish.link(site)
        say("The formats are those of these pages.")
        return []
    making = Making(site, site.parent / "lab", root, say)
    making.all()
    if making.faults:
        return making.faults
    try:
        publish.publish(making.files, site, digest)
    except FormatError as error:
        return [str(error)]
    return []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="formats", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--again", action="store_true", help="also if the pages have not changed")
    parser.add_argument("--link", action="store_true", help="make nothing; link what there is")
    given = parser.parse_args(arguments)
    if given.link:
        return link()
    faults = make(again=given.again, say=lambda line: print(line, flush=True))
    if faults:
        print("\n".join([*faults, "Nothing was published."]), file=sys.stderr)
        return 1
    print(f"The downloads: {pages.SITE / publish.FOLDER}")
    return 0


def link(site: Path = pages.SITE, root: Path = pages.ROOT) -> int:
    """After a build, which writes the front page anew: link the downloads if they are current."""
    made = publish.made_from(site)
    if made and made == pages.digest(site, root):
        publish.link(site)
    return 0
