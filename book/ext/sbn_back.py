"""The back matter that is made at build time: no table of it is typed by hand.

A page of ``book/back`` says ```` ```{sbn-NAME} ```` where one of ``GENERATED`` stands; the block is
replaced by the MyST that this makes before the page is read, on the site and in the copies for
JupyterLab alike. What is made of data has its data beside the page: ``paper-map.toml`` and
``ledger.toml``. What cannot be made (an unknown label, a field that is missing) stops the build.

A solution has a label of its own, ``LABEL-solution``, so that a page can lead to it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import sbn_sources as sources
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx_exercise.nodes import solution_node

FOLDER = "book/back/"
#: The pages with tables of sentences and references.
STYLED = {f"{FOLDER}{name}" for name in ("course", "errata", "ledger", "paper-map", "solutions",
                                         "subject-index", "symbols")}  # fmt: skip
BLOCK = re.compile(r"^```\{(sbn-[\w-]+)\}\n```$", re.M)
PAPERS, LEDGER = "paper-map.toml", "ledger.toml"
PARTS = {1: "I · The problem", 2: "II · Estimators for activations", 3: "III · Binary weights",
         4: "IV · Practice"}  # fmt: skip
NUMBERS = re.compile(r"[Cc]hapters? ((?:\d+(?: to \d+)?(?:, and |, | and |(?=\W|$)))+)")
ERRATUM = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d), (?P<page>[^(]+?) \((?P<labels>`[^)]+)\)[,.] (?P<words>.*)"
)
#: A name of the library or of a test in a page as it is built, and where it may be broken.
NAME = re.compile(r'(?<=<span class="pre">)[\w./():]{16,}(?=</span>)')
JOINT = re.compile(r"[_./](?=\w)")
#: How the entries begin that list new pages.
NEW = ("The book: ", "New chapters: ")
#: Words of a change -> the page that it is about, where that is no chapter.
ABOUT = {
    "front page": ("The front page", "../index.ipynb"),
    "notation": ("Notation", "../notation.md"),
    "The lab:": ("The lab", "../lab/lab.md"),
    "`diagnose": ("The doctor", "doctor.ipynb"),
    "glossary": ("Glossary", "glossary.md"),
    "library reference": ("Library reference", "api.md"),
    "measurements": ("Measurements", "measurements.md"),
    "bibliography": ("Bibliography", "bibliography.md"),
    "back matter": ("The back matter", "paper-map.md"),
}


class Unmade(ValueError):
    """Data of the back matter that no page can be made of; says which entry, and why."""


# ---- Markdown ----------------------------------------------------------------------------------


def table(head: Iterable[str], rows: Iterable[Iterable[str]], widths: str) -> list[str]:
    """A list-table with a head, of cells of one line each."""
    lines = ["```{list-table}", ":header-rows: 1", f":widths: {widths}", ""]
    for row in [head, *rows]:
        lines += [f"{'  ' if k else '* '}- {cell}".rstrip() for k, cell in enumerate(row)]
    return [*lines, "```", ""]


def to_chapter(chapter: sources.Chapter, words: str = "") -> str:
    return f"[{words or chapter.number}](../{chapter.file})"


def refer(label: str, known: Mapping[str, str]) -> str:
    """A reference to a label of a chapter."""
    if label not in known:
        raise Unmade(f"no chapter has the label {label!r}")
    return f"{{{known[label]}}}`{label}`"


def listed(items: Iterable[str]) -> str:
    return ", ".join(items)


# ---- solutions ---------------------------------------------------------------------------------


def solutions(root: Path) -> list[str]:
    """Every exercise, by chapter: what it asks for, how hard it is, and its solution."""
    out: list[str] = []
    for part, found in groupby(sources.chapters(root), key=lambda c: int(c.file[0])):
        out += [f"## {PARTS[part]}", ""]
        for chapter in found:
            out += [f"### {to_chapter(chapter, f'{chapter.number}. {chapter.title}')}", ""]
            out += table(["Exercise", "Kind", "Level", "Solution"],
                         map(_solution, chapter.exercises), "55 18 12 15")  # fmt: skip
    return out


def _solution(exercise: sources.Exercise) -> list[str]:
    link = f"{{ref}}`solution <{exercise.label}-solution>`"
    name = f"{{ref}}`{exercise.label}` {exercise.title}"
    return [name, exercise.kind, exercise.level, link]


# ---- symbols -----------------------------------------------------------------------------------


def symbols(root: Path) -> list[str]:
    """The symbols of the whole book: code, shape, and where each is first met."""
    text = (root / "book" / "notation.md").read_text("utf-8")
    names, rows, taken = sources.documented(root), [], set()
    for symbol, code, shape, meaning in sources.table(text, "tab-symbols"):
        label = re.match(r"\(([\w-]+)\)=", meaning)[1]
        own = [s for s in _leading(symbol) if s not in taken]
        taken |= set(own)
        where = _first(own, root)
        rows.append([symbol, _code(code, names), shape, where, f"[meaning]({label})"])
    return table(["Symbol", "Code", "Shape", "First in", "Line"], rows, "22 20 16 26 16")


def _leading(cell: str) -> list[str]:
    """The first symbol of each formula of a cell: what the line introduces."""
    formulas = re.findall(r"\$[^$]+\$", cell)
    return [found[0] for found in map(sources.symbols, formulas) if found]


def _code(cell: str, names: Mapping[str, str]) -> str:
    """Names of the library lead to their entries."""

    def link(found: re.Match[str]) -> str:
        name = f"sbnlib.{found[1]}"
        return f"{{{names[name]}}}`{name}`" if name in names else found[0]

    return re.sub(r"`(\w+)`", link, cell)


def _first(own: Iterable[str], root: Path) -> str:
    """The chapters that have symbols first, and the first numbered equations with them."""
    found = sources.chapters(root)
    pages = [next((to_chapter(c) for c in found if s in c.symbols), "") for s in own]
    numbered = [next(filter(None, (_equation(s, c) for c in found)), "") for s in own]
    where = [f"chapter {page}" for page in dict.fromkeys(pages) if page]
    return listed(dict.fromkeys([*where, *filter(None, numbered)]))


def local_symbols(root: Path) -> list[str]:
    """The symbols of single chapters, each with the first numbered equation of each chapter."""
    text = (root / "book" / "notation.md").read_text("utf-8")
    of = {c.number: c for c in sources.chapters(root)}
    rows = []
    for numbers, symbol, _ in sources.table(text, "tab-local"):
        (first, *_) = sources.symbols(symbol)
        there = [of[int(k)] for k in numbers.split(",") if int(k) in of]
        where = [listed(filter(None, [to_chapter(c), _equation(first, c)])) for c in there]
        rows.append([symbol, "; ".join(where)])
    return table(["Symbol", "Chapter, first numbered equation there"], rows, "25 75")


def _equation(symbol: str, chapter: sources.Chapter) -> str:
    found = (k for k, tex in chapter.equations.items() if symbol in sources.tokens(tex))
    return next((f"{{eq}}`{label}`" for label in found), "")


# ---- papers ------------------------------------------------------------------------------------


def read(root: Path, name: str) -> dict[str, Any]:
    return tomllib.loads((root / FOLDER / name).read_text("utf-8"))


def papers(root: Path) -> list[str]:
    """The paper map: what a paper has, where it is here, and where the two differ."""
    names, out = sources.names_of_papers(root), []
    known, documented, pins = sources.labels(root), sources.documented(root), sources.pins(root)
    for group, found in groupby(read(root, PAPERS)["paper"], key=lambda p: p["group"]):
        out += [f"## {group}", ""]
        for paper in found:
            out += [f"### {names[paper['key']]}", ""]
            out += [f"{{cite:p}}`{paper['key']}` *Seen:* {paper['seen']}.", ""]
            rows = [_paper_row(row, known, documented, pins) for row in paper["row"]]
            out += table(["There", "Here", "Where we differ"], rows, "30 40 30")
    return out


def _paper_row(
    row: Mapping[str, Any],
    known: Mapping[str, str],
    documented: Mapping[str, str],
    pins: Mapping[str, list[str]],
) -> list[str]:
    place = f"*{row['place']}.* " if row.get("place") else ""
    here = [listed(refer(label, known) for label in row["here"])]
    here += [_function(name, documented) for name in row.get("code", ())]
    here += [_test(test) for test in tests_of(row, pins)]
    return [place + row["says"], "<br>".join(here), row.get("differs", "Nowhere that we know.")]


def _function(name: str, documented: Mapping[str, str]) -> str:
    if name not in documented:
        raise Unmade(f"the library reference has no {name!r}")
    return f"{{{documented[name]}}}`{name}`"


def _test(name: str) -> str:
    """The file and the name, between which a line may break."""
    return " ".join(f"`{part}`" for part in name.split("::"))


def tests_of(row: Mapping[str, Any], pins: Mapping[str, list[str]]) -> list[str]:
    """The tests that a row names, and for each of its labels the first test that carries it."""
    carried = [pins[label][0] for label in row["here"] if label in pins]
    return list(dict.fromkeys([*row.get("tests", ()), *carried]))


def slopes(root: Path) -> list[str]:
    """Every slope of the library: source, function, and what it is."""
    from sbnlib.estimators import PROXIES

    rows = [[f"`{p.name}`, {p.source}", f"${p.formula}$", _what(p.integral, p.noise)]
            for p in PROXIES.values()]  # fmt: skip
    return table(["Slope, where from", "$h$", "What it is here"], rows, "40 30 30")


def _what(integral: float, noise: object) -> str:
    if noise is not None:
        return f"$2f$ of `{noise!r}`"
    return f"of no noise of ours; its integral is {integral:.3g}"


# ---- ledger ------------------------------------------------------------------------------------


def ledger(root: Path) -> list[str]:
    """Numbers and equalities of the four papers of the subject."""
    return _ledger(root, "number")


def ledger_of_others(root: Path) -> list[str]:
    return _ledger(root, "other")


def _ledger(root: Path, name: str) -> list[str]:
    names, known = sources.names_of_papers(root), sources.labels(root)
    rows = [_ledger_row(entry, names, known) for entry in read(root, LEDGER)[name]]
    return table(["What, where", "Theirs", "Ours", "Verdict, test"], rows, "34 20 20 26")


def _ledger_row(
    entry: Mapping[str, str], names: Mapping[str, str], known: Mapping[str, str]
) -> list[str]:
    see = f", {refer(entry['see'], known)}" if entry.get("see") else ""
    where = f"{{cite:t}}`{entry['key']}`, {entry['place']}"
    error = f" ± {entry['error']}" if entry.get("error") else ""
    return [f"{entry['what']}{see}<br>{where}", entry["theirs"], entry["ours"] + error,
            f"**{entry['verdict']}**<br>{_test(entry['test'])}"]  # fmt: skip


def unseen(root: Path) -> list[str]:
    """What is known to exist and could not be seen."""
    return [f"* {{cite:t}}`{entry['key']}`: {entry['what']}." for entry
            in read(root, LEDGER)["unseen"]] + [""]  # fmt: skip


# ---- changes -----------------------------------------------------------------------------------


def errata(root: Path) -> list[str]:
    """By version and place, the newest first."""
    known, out = sources.labels(root), []
    _, found = sources.changes(root)
    for version, entries in groupby(found, key=lambda change: change.version):
        out += [f"### In version {version}", ""]
        out += table(["Found, place", "What was wrong, and what is right"],
                     (_erratum(entry.text, known) for entry in entries), "32 68")  # fmt: skip
    return out


def _erratum(text: str, known: Mapping[str, str]) -> list[str]:
    """``date, chapters (`label`, …)[,.] words`` as a place and words."""
    found = ERRATUM.match(text)
    if not found:
        raise Unmade(f"an erratum reads 'date, chapter N (`label`), words', got {text[:60]!r}")
    at = listed(refer(label, known) for label in re.findall(r"`([^`]+)`", found["labels"]))
    words = found["words"]
    return [f"{found['day']}<br>{found['page']}: {at}", words[0].upper() + words[1:]]


def changes_by_page(root: Path) -> list[str]:
    """For each page the changes that name it, with their versions."""
    found, corrected = sources.changes(root)
    known, out = sources.labels(root), []
    for chapter in sources.chapters(root):
        own = [c for c in found if chapter.number in numbers_in(c.text)]
        fixed = [c for c in corrected if chapter.number in numbers_in(c.text)]
        if own or fixed:
            out += [f"### {to_chapter(chapter, f'{chapter.number}. {chapter.title}')}", ""]
            out += [*map(_change, own), *(_corrected(c, known) for c in fixed), ""]
    for words, (name, link) in ABOUT.items():
        if own := [c for c in found if words in c.text]:
            out += [f"### [{name}]({link})", "", *map(_change, own), ""]
    return out


def numbers_in(text: str) -> set[int]:
    """The chapters that a change names, what stands in brackets between them left out, too."""
    bare = re.sub(r" \([^)]*\)", "", text)
    return {k for form in (text, bare) for m in NUMBERS.finditer(form) for k in _ranges(m[1])}


def _ranges(words: str) -> Iterator[int]:
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", words):
        yield from range(int(first), int(last or first) + 1)


def _change(change: sources.Change) -> str:
    """An entry that lists what is new says no more than that of each."""
    words = "New." if change.text.startswith(NEW) else change.text
    return f"* *In {change.version}:* {words}"


def _corrected(change: sources.Change, known: Mapping[str, str]) -> str:
    found = ERRATUM.match(change.text)
    at = listed(refer(label, known) for label in re.findall(r"`([^`]+)`", found["labels"]))
    return f"* *Since {change.version}:* an error was corrected on {found['day']}, at {at}."


# ---- index -------------------------------------------------------------------------------------


def index_of_terms(root: Path) -> list[str]:
    """Each word of the glossary with the chapters and the statements that have it."""
    text = (root / "book" / "back" / "glossary.md").read_text("utf-8")
    found, out = sources.chapters(root), []
    terms = [(m["name"], m["label"]) for m in sources.TERM.finditer(text)]
    for letter, entries in groupby(terms, key=lambda term: term[0][0].upper()):
        out += [f"### {letter}", ""]
        out += [f"* [{name}]({label}){_places(name, label, found)}" for name, label in entries]
        out += [""]
    return out


def _places(name: str, label: str, found: Iterable[sources.Chapter]) -> str:
    """Chapters that explain the word by a link, statements that are called by it or use it."""
    word = re.compile(rf"\b{re.escape(name)}", re.I)
    pages = [to_chapter(c) for c in found if f"({label})" in c.words]
    stated = [f"{{prf:ref}}`{s.label}`" for c in found for s in c.statements
              if word.search(s.title)]  # fmt: skip
    chapters = f": chapter{'s' if len(pages) > 1 else ''} {listed(pages)}" if pages else ""
    return chapters + (f"; {listed(stated)}" if stated else "")


def index_of_statements(root: Path) -> list[str]:
    """Theorems, propositions and definitions by their names."""
    named = [s for c in sources.chapters(root) for s in c.statements if s.title]
    named.sort(key=lambda statement: statement.title.lower())
    return [f"* {s.title}: {{prf:ref}}`{s.label}`" for s in named] + [""]


def index_of_functions(root: Path) -> list[str]:
    """What the library has, with the chapters whose code takes it."""
    documented, where = sources.documented(root), _uses(root)
    rows = [[f"{{{role}}}`{name}`", listed(to_chapter(c) for c in where.get(name, ()))]
            for name, role in sorted(documented.items(), key=lambda item: item[0].lower())
            if where.get(name)]  # fmt: skip
    return table(["Name", "Chapters whose code takes it"], rows, "60 40")


def _uses(root: Path) -> dict[str, list[sources.Chapter]]:
    """By the names of the library reference; an object may be imported from where it is defined."""
    documented, found = sources.documented(root), {}
    short = {_short(name): name for name in documented if name.count(".") == 1}
    for chapter in sources.chapters(root):
        taken = sources.used("\n".join(chapter.code))
        names = {n if n in documented else short.get(_short(n), "") for n in taken}
        for name in names - {""}:
            found.setdefault(name, []).append(chapter)
    return found


def _short(name: str) -> str:
    return name.rpartition(".")[2]


# ---- pages -------------------------------------------------------------------------------------

GENERATED: dict[str, Callable[[Path], list[str]]] = {
    "sbn-changes": changes_by_page,
    "sbn-errata": errata,
    "sbn-functions": index_of_functions,
    "sbn-ledger": ledger,
    "sbn-ledger-others": ledger_of_others,
    "sbn-local-symbols": local_symbols,
    "sbn-papers": papers,
    "sbn-slopes": slopes,
    "sbn-solutions": solutions,
    "sbn-statements": index_of_statements,
    "sbn-symbols": symbols,
    "sbn-terms": index_of_terms,
    "sbn-unseen": unseen,
}


def expand(text: str, root: Path) -> str:
    """A page with what is generated in the place of its blocks; other blocks stay."""

    def made(found: re.Match[str]) -> str:
        make = GENERATED.get(found[1])
        return "\n".join(make(root)).rstrip("\n") if make else found[0]

    return BLOCK.sub(made, text)


def expand_page(app: Sphinx, page: str, source: list[str]) -> None:
    if page.startswith(FOLDER) and str(app.env.doc2path(page)).endswith(".md"):
        source[0] = expand(source[0], Path(app.srcdir))


def read_again(app: Sphinx, env: BuildEnvironment, *of: object) -> list[str]:
    """What is generated follows its sources, whatever changed."""
    return [page for page in env.found_docs if page.startswith(FOLDER)
            and BLOCK.search(Path(env.doc2path(page)).read_text("utf-8"))]  # fmt: skip


def label_solutions(app: Sphinx, doctree: nodes.document) -> None:
    """A solution is found by the label of its exercise, not by its place among all directives."""
    std = app.env.get_domain("std")
    for node in doctree.findall(solution_node):
        label = f"{node['target_label']}-solution"
        node["ids"] = [label]
        std.anonlabels[label] = app.env.docname, label
        std.labels[label] = app.env.docname, label, "solution"


def fit_page(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """The style of the tables; and their long names may go on in a new line after an underscore."""
    if page in STYLED:
        app.add_css_file("back.css")
        context["body"] = NAME.sub(lambda name: JOINT.sub(r"\g<0><wbr>", name[0]), context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", expand_page)
    app.connect("env-get-outdated", read_again)
    app.connect("doctree-read", label_solutions)
    app.connect("html-page-context", fit_page, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
