"""Where everything leads: the pages, the documents of the repository, the forms of the book.

What leads to a file is held to the files, anchors included. What leads to another host is listed,
and asked there if there is a network.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from reliable import network
from reliable.record import ROOT, Found, Step

#: Tags that load what they name when the page opens; `a` only leads there.
LOADING = {
    "audio",
    "embed",
    "iframe",
    "img",
    "input",
    "link",
    "object",
    "script",
    "source",
    "video",
}
#: Kinds of `link` that load nothing.
TOLD = {"canonical", "author", "license", "index", "search", "next", "prev"}
IN_STYLE = re.compile(r"url\(\s*[\"']?([^\"')]+)")
MARKDOWN = re.compile(
    r"(?<!\\)\]\(\s*<?([^()\s<>]+(?:\([^()\s]*\))?[^()\s<>]*)>?(?:\s+\"[^\"]*\")?\s*\)"
)
WEB = re.compile(r"https?://(?!localhost\b|127\.)[^\s\"'<>`\\|)\]}]+")
#: Files that the text of a document or of the library names.
FILE = re.compile(
    r"(?<![\w./-])(?:book|sbnlib|tests)/[\w./-]+\.(?:py|md|toml|json|bib|css|js|cfg|ipynb)\b"
)
#: What stands for a name in the recipes: book/PART/NN-name.ipynb.
PLACEHOLDER = re.compile(r"PART|NN|NAME")


def steps(site: Path, root: Path = ROOT, listed: Path | None = None) -> Iterator[Step]:
    """One step each for the pages, the documents, the other forms, and other hosts."""
    yield "pages", partial(_pages, site)
    yield "documents", lambda: Found(list(of_documents(root)))
    yield "forms", partial(_forms, site, root)
    yield "other hosts", partial(_other_hosts, site, root, listed)


# ---- pages -------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The ids of one page, what it leads to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.ids |= {given[k] for k in ("id", "name") if k in given}
        named = [given[k] for k in ("href", "xlink:href", "src", "poster", "data") if k in given]
        named += [part.split()[0] for part in given.get("srcset", "").split(",") if part.split()]
        self.targets += named
        if tag in LOADING and not TOLD & set(given.get("rel", "").split()):
            self.loads += named


def read(site: Path) -> dict[Path, Page]:
    """Every page of a site."""
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def dead(site: Path, pages: Mapping[Path, Page] | None = None) -> Iterator[str]:
    """Links of the pages and their styles to a file or an anchor that is not there."""
    pages = read(site) if pages is None else pages
    for path, page in pages.items():
        for target in page.targets:
            url, fragment = urldefrag(urljoin(path.as_uri(), target))
            if urlsplit(url).scheme != "file":
                continue
            file = Path(unquote(urlsplit(url).path))
            anchors = pages[file].ids if file in pages else {unquote(fragment)}
            if not file.exists() or fragment and unquote(fragment) not in anchors:
                yield f"{path.relative_to(site).as_posix()}: {target} is not there"
    for path in sorted(site.rglob("*.css")):
        for target in IN_STYLE.findall(path.read_text("utf-8", errors="replace")):
            url = urlsplit(urldefrag(urljoin(path.as_uri(), target))[0])
            if url.scheme == "file" and not Path(unquote(url.path)).exists():
                yield f"{path.relative_to(site).as_posix()}: {target} is not there"


def loads_of_other_hosts(pages: Mapping[Path, Page], site: Path) -> Iterator[str]:
    """What a page asks of another host when it opens."""
    for path, page in pages.items():
        for target in page.loads:
            if target.startswith(("http:", "https:", "//")):
                yield f"{path.relative_to(site).as_posix()}: loads {target}"


def _pages(site: Path) -> Found:
    pages = read(site)
    if not pages:
        return Found([f"there is no built book in {site.name}: run `make book`, which makes it"])
    faults = [*dead(site, pages), *loads_of_other_hosts(pages, site)]
    count = sum(len(page.targets) for page in pages.values())
    return Found(faults, [f"{count} links of {len(pages)} pages"])


# ---- documents ---------------------------------------------------------------------------------


def of_documents(root: Path = ROOT) -> Iterator[str]:
    """Links of the repository's own documents, and names of files in them, that lead nowhere."""
    for path in sorted(root.glob("*.md")):
        text = path.read_text("utf-8")
        for target in MARKDOWN.findall(without_code(text)):
            if not re.match(r"[a-z]+:", target) and not _leads(path, unquote(target)):
                yield f"{path.name}: {target} is not there"
        yield from (f"{path.name}: {name} is not there" for name in _missing(text, root))
    for path in sorted(root.glob("sbnlib/**/*.py")):
        for name in _missing("\n".join(docstrings(path)), root):
            yield f"{path.relative_to(root).as_posix()}: {name} is not there"


def _leads(document: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = document.parent / name if name else document
    return file.exists() and (not anchor or file.suffix != ".md" or anchor in anchors(file))


def _missing(text: str, root: Path) -> Iterator[str]:
    for name in FILE.findall(text):
        if not PLACEHOLDER.search(name) and not (root / name).exists():
            yield name


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them, and those that it sets itself."""
    text = document.read_text("utf-8")
    found = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    counts: dict[str, int] = defaultdict(int)
    for heading in re.findall(r"^#{1,6} +(.*?)(?: +#+)? *$", _without_blocks(text), re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
        counts[slug] += 1
    return found


def without_code(text: str) -> str:
    """A document without what only looks like a link."""
    return re.sub(r"(`+).+?\1", "", _without_blocks(text), flags=re.S)


def _without_blocks(text: str) -> str:
    return re.sub(r"^[> ]*(`{3,}|~{3,}).*?^[> ]*\1", "", text, flags=re.S | re.M)


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module and of all that is in it."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, kinds) and (words := ast.get_docstring(node)):
            yield words


# ---- the other forms ---------------------------------------------------------------------------


def _forms(site: Path, root: Path) -> Found:
    """The links inside PDF, EPUB and Markdown, by the checks with which they were published."""
    from formats import checks, pages, publish

    folder = site / publish.FOLDER
    if not (folder / publish.LIST).exists():
        return Found(notes=["not tried: there are no other forms; `make formats` makes them"])
    if publish.made_from(site) != pages.digest(site, root):
        return Found([f"{publish.FOLDER}: not of these pages, or not whole; run `make formats`"])
    contents = checks.Contents.of(pages.read(site, root))
    faults = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".pdf":
            faults += [f"{path.name}: {told}" for told in checks.pdf(path.read_bytes(), contents)]
        elif path.suffix == ".epub":
            faults += [f"{path.name}: {told}" for told in checks.epub(path.read_bytes(), contents)]
        elif path.name.endswith("-markdown.zip"):
            faults += [f"{path.name}: {told}" for told in checks.markdown(texts(path), contents)]
    return Found(faults)


def texts(archive: Path) -> dict[str, str]:
    """The Markdown of an archive, by the names that it has inside the archive's one folder."""
    opened = zipfile.ZipFile(archive)
    names = [name for name in opened.namelist() if name.endswith(".md")]
    return {name.partition("/")[2]: opened.read(name).decode("utf-8") for name in names}


# ---- other hosts -------------------------------------------------------------------------------


def external(site: Path, root: Path = ROOT) -> dict[str, list[str]]:
    """Every address on another host, and the pages, documents and modules that name it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, page in read(site).items():
        for target in dict.fromkeys(page.targets):
            if re.match(r"https?://(?!localhost\b|127\.)", target):
                found[urldefrag(target)[0]].append(path.relative_to(site).as_posix())
    texts = {path: path.read_text("utf-8") for path in root.glob("*.md")}
    texts |= {path: "\n".join(docstrings(path)) for path in root.glob("sbnlib/**/*.py")}
    for path, text in sorted(texts.items()):
        for target in dict.fromkeys(WEB.findall(text)):
            found[urldefrag(target.rstrip(".,;:"))[0]].append(path.relative_to(root).as_posix())
    return dict(sorted(found.items()))


def _other_hosts(site: Path, root: Path, listed: Path | None) -> Found:
    found = external(site, root)
    if listed:
        listed.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{url}\n" + "".join(f"    {place}\n" for place in found[url]) for url in found]
        listed.write_text("".join(lines), "utf-8")
    hosts = len({urlsplit(url).netloc for url in found})
    notes = [f"{len(found)} addresses on {hosts} hosts"
             + (f", listed in {listed.name}" if listed else "")]  # fmt: skip
    answers = network.ask(list(found))
    if answers is None:
        return Found(notes=[*notes, "not tried: no network"])
    gone = [url for url, (state, _) in answers.items() if state == "gone"]
    open_ = [f"{url}: {why}" for url, (state, why) in answers.items() if state == "unknown"]
    faults = [f"{found[url][0]}: {url}: {answers[url][1]}" for url in gone]
    notes.append(f"{len(found) - len(gone) - len(open_)} answer")
    return Found(faults, [*notes, *(f"not decided: {told}" for told in open_)])
