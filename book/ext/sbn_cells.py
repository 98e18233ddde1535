"""A page of the book as cells that any Jupyter shows: MyST becomes plain Markdown.

JupyterLab's own renderer knows neither directives nor roles nor labels. So a page is cut into cells
at its headings, boxes and labelled equations, and rewritten:

1. ``draft`` cuts and rewrites what needs no other page: boxes, tables, exercises with a cell for
   the answer, folded solutions, stored figures as pictures. A label becomes the id of its cell.
2. ``finish`` puts the book's own words for references, numbers and links in their place, once the
   drafts of all pages say where each label is.

A reference in a draft is still the role of MyST; ``{plain-ROLE}`` is the same without a link.
"""

from __future__ import annotations

import base64
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import nbformat
from nbformat import NotebookNode

#: The page of the lab on the site.
LAB = "book/lab/lab.html"
COLOURS = {"theorem": "#0072b2", "predict": "#b35900", "plain": "#808080"}
FENCE = re.compile(
    r"(?P<indent> *)(?P<fence>`{3,}|:{3,})(?:\{(?P<name>[\w:-]+)\} ?(?P<title>.*)|[\w-]*)"
)
OPTION = re.compile(r":([\w-]+):(?: (.*))?$")
TARGET = re.compile(r"\(([\w-]+)\)=\s*$")
HEADING = re.compile(r"(#{1,6}) (.*)$")
EQUATION = re.compile(r"\$\$(?:(?!\$\$).)*\$\$ \((?P<label>[\w-]+)\)", re.S)
CUT = re.compile(r"^(?=#{1,6} |\([\w-]+\)=\s*$|\$\$\n(?:(?!\$\$).)*\n\$\$ \([\w-]+\))", re.M | re.S)
ANCHOR = re.compile(r'<a id="([\w-]+)">')
ROW_TARGET = re.compile(r"\(([\w-]+)\)=\s+")
#: What is rewritten at the end; code, and formulas without a label, stay as they are.
REFERENCE = re.compile(
    r"(?P<code>^ *(?P<fence>`{3,}).*?^ *(?P=fence) *$)"
    r"|\{(?P<role>[\w:-]+)\}`(?P<given>[^`]+)`"
    r"|(?P<ticks>`+).+?(?P=ticks)"
    r"|(?P<math>\$\$.*?\$\$)(?: \((?P<label>[\w-]+)\))?"
    r"|\$[^$]+\$"
    r"|\[(?P<text>[^\[\]]*)\]\((?P<to>[^()\s]+)\)",
    re.S | re.M,
)
EXPLICIT = re.compile(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>$", re.S)


class Unknown(ValueError):
    """A page has something that no rule here rewrites; says which."""


@dataclass(frozen=True)
class Directive:
    name: str
    title: str
    options: Mapping[str, str]
    body: str
    indent: str = ""

    @property
    def label(self) -> str:
        return self.options.get("label") or self.options.get("name", "")

    @property
    def folded(self) -> bool:
        return "dropdown" in self.options.get("class", "")


@dataclass
class Draft:
    """The cells of one page, with its references still as MyST, and the cell of every label."""

    page: str
    cells: list[NotebookNode] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)


# ---- blocks ------------------------------------------------------------------------------------


def blocks(text: str) -> Iterator[str | Directive]:
    """The text between fences, and the fences: directives, and code, a directive without a name."""
    plain: list[str] = []
    lines = iter(text.split("\n"))
    for line in lines:
        found = FENCE.fullmatch(line)
        if not found:
            plain.append(line)
            continue
        if plain:
            yield "\n".join(plain)
            plain = []
        inside = list(_until(lines, found["fence"]))
        if found["name"]:
            yield _directive(found, inside)
        else:
            closing = found["indent"] + found["fence"]
            yield Directive("", "", {}, "\n".join([line, *inside, closing]))
    if plain:
        yield "\n".join(plain)


def _until(lines: Iterator[str], fence: str) -> Iterator[str]:
    for line in lines:
        stripped = line.strip()
        if len(stripped) >= len(fence) and not stripped.strip(fence[0]):
            return
        yield line
    raise Unknown(f"{fence} is not closed")


def _directive(found: re.Match[str], lines: list[str]) -> Directive:
    body = textwrap.dedent("\n".join(lines)).split("\n")
    options = {}
    while body and (option := OPTION.match(body[0])):
        options[option[1]] = option[2] or ""
        body.pop(0)
    text = "\n".join(body).strip("\n")
    return Directive(found["name"], found["title"].strip(), options, text, found["indent"])


# ---- boxes -------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Markdown without directives."""
    parts = "\n".join(b if isinstance(b, str) else boxed(b) for b in blocks(text))
    return re.sub(r"\n{3,}", "\n\n", parts).strip("\n")


def boxed(directive: Directive) -> str:
    """One directive as Markdown; code as it is."""
    if not directive.name:
        return directive.body
    family = "prf" if directive.name.startswith("prf:") else directive.name
    if family not in FORMS:
        raise Unknown(f"the directive {{{directive.name}}} has no plain form; give it one in FORMS")
    return textwrap.indent(f"\n{FORMS[family](directive)}\n", directive.indent)


def box(title: str, body: str, colour: str) -> str:
    """A block with a coloured edge. Markdown goes on inside it, after an empty line."""
    edge = f'<div style="border-left: 4px solid {colour}; padding-left: 1em">'
    return "\n\n".join([edge, *([f"**{title}**"] if title else []), plain(body), "</div>"])


def _admonition(directive: Directive) -> str:
    title = directive.title or directive.name.capitalize()
    predict = "predict" in directive.options.get("class", "")
    return _fold(directive, title, COLOURS["predict" if predict else "plain"])


def _statement(directive: Directive) -> str:
    """A theorem and its like, or a proof."""
    if directive.name == "prf:proof":
        return box("", f"*Proof.* {directive.body}", COLOURS["plain"])
    name = f"{{plain-prf:ref}}`{directive.label}`"
    return box(f"{name} ({directive.title})" if directive.title else name, directive.body,
               COLOURS["theorem"])  # fmt: skip


def _fold(directive: Directive, title: str, colour: str) -> str:
    if not directive.folded:
        return box(title, directive.body, colour)
    inside = box("", directive.body, colour)
    return f"<details><summary><b>{title}</b></summary>\n\n{inside}\n\n</details>"


def _math(directive: Directive) -> str:
    body = directive.body.strip()
    if r"\\" in body:
        body = rf"\begin{{split}}{body}\end{{split}}"  # as Sphinx does
    return f"$$\n{body}\n$$" + (f" ({directive.label})" if directive.label else "")


def _card(directive: Directive) -> str:
    return f"**{directive.title}**\n\n{plain(directive.body)}"


def _table(directive: Directive) -> str:
    """A list of lists as a table; the label of a row becomes an anchor in it."""
    rows = []
    for row in re.split(r"^\* ", directive.body, flags=re.M)[1:]:
        cells = re.split(r"^(?:  )?- ?", row, flags=re.M)[1:]
        rows.append([_anchored(" ".join(cell.split())) for cell in cells])
    head = rows.pop(0) if directive.options.get("header-rows") else [""] * len(rows[0])
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    label = f"{{plain-numref}}`{directive.label}`. " if directive.label else ""
    return f"**{label}{directive.title}**\n\n{table}" if directive.title else table


def _anchored(text: str) -> str:
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    return ROW_TARGET.sub(r'<a id="\1"></a>', text)


#: Under an exercise with a checker: a checker takes functions from the cells above it.
RUN_ABOVE = (
    "*Answer in the empty cell below. Before the first check, click into it and choose "
    "Run › Run All Above Selected Cell.*"
)

FORMS: dict[str, Callable[[Directive], str]] = {
    **dict.fromkeys(("admonition", "note", "tip", "warning", "important", "margin"), _admonition),
    "div": lambda directive: plain(directive.body),
    "dropdown": lambda d: _fold(Directive("", "", {"class": "dropdown"}, d.body), d.title,
                                COLOURS["plain"]),
    "grid": lambda directive: plain(directive.body),
    "grid-item-card": _card,
    "list-table": _table,
    "math": _math,
    "prf": _statement,
}  # fmt: skip


# ---- cells -------------------------------------------------------------------------------------


def draft(page: str, cells: Iterable[NotebookNode], sections: Iterable[str]) -> Draft:
    """Cut one page into plain cells; ``sections`` are the numbers of its headings, in order."""
    return _Cutter(page, sections).cut(cells)


class _Cutter:
    """Walks through a page; knows the cell that is written, and what the last ones ask for."""

    def __init__(self, page: str, sections: Iterable[str]) -> None:
        self.made = Draft(page)
        self.sections = iter(sections)
        self.text: list[str] = []  # of the cell that is written
        self.label = ""  # and its label
        self.exercise: Directive | None = None  # has no cell for the answer yet
        self.folded = self.ended = False  # under the heading of a solution; after its end

    def cut(self, cells: Iterable[NotebookNode]) -> Draft:
        for cell in cells:
            self.ids = (f"{cell.id}-{k}" if k else cell.id for k in count())
            if cell.cell_type == "code":
                self._code(cell)
            else:
                for block in blocks(cell.source):
                    self._prose(block) if isinstance(block, str) else self._directive(block)
                self._close()
        self._answer()
        return self.made

    def _code(self, cell: NotebookNode) -> None:
        if "checker" not in cell.metadata.get("tags", []):
            self._answer()
        self._add(code_cell(cell))
        if name := figure_name(cell):
            self.made.places[name] = cell.id

    def _prose(self, text: str) -> None:
        """A heading, a label and a labelled equation each begin a cell."""
        for part in CUT.split(text):
            first, _, rest = part.partition("\n")
            if target := TARGET.match(first):
                self._begin(target[1])
                self._prose(rest)
            elif heading := HEADING.match(first):
                self._begin()
                self._unfold()
                number = next(self.sections, "")
                self._write(f"{heading[1]} {number}{'. ' if number else ''}{heading[2]}\n{rest}")
            else:
                if equation := EQUATION.match(part):
                    self._begin(equation["label"])
                self._write(part)

    def _directive(self, block: Directive) -> None:
        if block.name == "exercise":
            self._exercise(block)
        elif block.name in ("solution", "solution-start"):
            self._solution(block)
        elif block.name == "solution-end":
            self._close()
            self.ended = True
        elif block.label:
            self._begin(block.label)
            self._write(boxed(block))
            if block.name != "math":
                self._close()
        else:
            self._write(boxed(block))

    def _exercise(self, block: Directive) -> None:
        self._begin(block.label)
        self._unfold()
        title = f" ({block.title})" if block.title else ""
        self._write(f"### {{plain-ref}}`{block.label}`{title}\n\n{plain(block.body)}")
        if "check(" in block.body:
            self._write(RUN_ABOVE)
        self._close()
        self.exercise = block

    def _answer(self) -> None:
        """An empty cell for the reader, after the checker if there is one: for words or code."""
        if self.exercise is None:
            return
        words = self.exercise.body.startswith("*Prove")
        new = nbformat.v4.new_markdown_cell if words else nbformat.v4.new_code_cell
        name, self.exercise = f"{self.exercise.label}-answer", None
        self._add(new("", id=name, metadata={"tags": ["answer"]}))

    def _solution(self, block: Directive) -> None:
        """A folded heading, and with it folds all that follows up to the next heading."""
        self._begin(f"{block.title}-solution")
        self._unfold()
        self._write(f"#### Solution to {{plain-ref}}`{block.title}`")
        self._close({"jp-MarkdownHeadingCollapsed": True})
        self.folded = True
        if block.name == "solution":
            self._write(plain(block.body))
            self._close()
            self.ended = True

    def _unfold(self) -> None:
        self.folded = self.ended = False

    def _begin(self, label: str = "") -> None:
        """Go on in a new cell. Labels without text between them belong to the same cell."""
        if self.text:
            self._close()
        if self.label and label:
            self.made.places[label] = self.label
        self.label = self.label or label

    def _write(self, text: str) -> None:
        if text.strip():
            self.text.append(text.strip("\n"))

    def _close(self, metadata: dict[str, Any] | None = None) -> None:
        """Put the cell that is written behind the others."""
        if not self.text:
            return
        self._answer()
        source, own = "\n\n".join(self.text), self.label or next(self.ids)
        self._add(nbformat.v4.new_markdown_cell(source, id=own, metadata=metadata or {}))
        labels = [m["label"] for m in EQUATION.finditer(source)] + [self.label] * bool(self.label)
        self.made.places |= dict.fromkeys(labels, own)
        self.made.places |= dict.fromkeys(ANCHOR.findall(source), "")  # found by their own names
        self.text, self.label = [], ""

    def _add(self, cell: NotebookNode) -> None:
        if self.ended:
            raise Unknown(
                f"{self.made.page}, cell {cell.id}: what follows a solution must begin with a "
                "heading or an exercise, or it is folded with it"
            )
        self.made.cells.append(cell)


# ---- code and pictures -------------------------------------------------------------------------


def figure_name(cell: NotebookNode) -> str:
    """The label of the figure that a cell draws."""
    return cell.metadata.get("mystnb", {}).get("figure", {}).get("name", "")


def code_cell(cell: NotebookNode) -> NotebookNode:
    """The cell, not run yet, with its pictures as images; what the site hides is folded."""
    cell = nbformat.from_dict(cell)
    cell.execution_count = None
    tags = set(cell.metadata.get("tags", []))
    hidden = {}
    if tags & {"hide-input", "remove-input", "hide-cell", "remove-cell"}:
        hidden["source_hidden"] = True
    if tags & {"hide-output", "hide-cell"}:
        hidden["outputs_hidden"] = True
    if hidden:
        cell.metadata["jupyter"] = hidden
    for output in cell.outputs:
        if "execution_count" in output:
            output.execution_count = None
        if 'class="sbn-figure"' in output.get("data", {}).get("text/html", ""):
            output.data = _picture(output.data, figure_name(cell))
    return cell


def _picture(data: Mapping[str, Any], name: str) -> dict[str, str]:
    """A stored figure as one image, which is shown in a notebook that is not trusted, too."""
    html = data["text/html"]
    alt = re.search(r'role="img" aria-label="([^"]*)"', html)[1]
    caption = re.search(r"<figcaption[^>]*>(.*?)</figcaption>", html, re.S)
    number = f"<b>{{plain-numref}}`{name}`.</b> " if name else ""
    shown = re.search(r'class="sbn-note">(Shown: .*?)\. The sliders', html)
    note = f"<p><i>{shown[1]}. Run the cell to move the sliders.</i></p>" if shown else ""
    words = number + (caption[1] if caption else "")
    image = f'<img alt="{alt}" src="{_address(data)}" style="max-width: 100%">'
    below = f"<figcaption>{words}</figcaption>" if words else ""
    return {
        "text/html": f'<figure style="margin: 0">{image}{note}{below}</figure>',
        "text/plain": data["text/plain"],
    }


def _address(data: Mapping[str, Any]) -> str:
    if "image/png" in data:
        return f"data:image/png;base64,{data['image/png'].strip()}"
    return svg_address(data["image/svg+xml"])


def svg_address(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


# ---- references --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """What a reference says, in pieces, each with the label that it leads to or none."""

    pieces: tuple[tuple[str, str], ...]


def wanted(drafts: Iterable[Draft]) -> set[tuple[str, str]]:
    """Every (role, target) whose words the drafts need."""
    found = set()
    for cell in (c for d in drafts for c in d.cells):
        for text in texts(cell):
            for match in REFERENCE.finditer(text):
                if match["role"]:
                    found.add((match["role"].removeprefix("plain-"), target_of(match["given"])[1]))
                elif match["label"]:
                    found.add(("eq", match["label"]))
    return found


def texts(cell: NotebookNode) -> list[str]:
    """What may hold references: Markdown, or the words under the figures of a code cell."""
    if cell.cell_type == "markdown":
        return [cell.source]
    return [o.data["text/html"] for o in cell.outputs if _is_picture(o)]


def _is_picture(output: NotebookNode) -> bool:
    return output.get("data", {}).get("text/html", "").startswith("<figure")


def target_of(given: str) -> tuple[str, str]:
    """The words, if any, and the target of a role."""
    found = EXPLICIT.match(given)
    return (found["text"], found["target"]) if found else ("", given)


class Book:
    """The copies of all pages, which lie beside each other.

    Args:
        drafts: of the pages that have a copy.
        words: what each (role, target) of ``wanted`` says.
        beside: whether a copy has the others beside it; if not, their links are text.
    """

    def __init__(
        self,
        drafts: Iterable[Draft],
        words: Mapping[tuple[str, str], Words],
        beside: bool = True,
    ) -> None:
        self.drafts = {d.page: d for d in drafts}
        self.words = words
        self.beside = beside
        self.places = {label: (d.page, cell) for d in self.drafts.values()
                       for label, cell in d.places.items()}  # fmt: skip

    def finish(self, page: str) -> list[NotebookNode]:
        """The cells of one copy."""
        return [self._cell(page, cell) for cell in self.drafts[page].cells]

    def _cell(self, page: str, cell: NotebookNode) -> NotebookNode:
        cell = nbformat.from_dict(cell)
        if cell.cell_type == "markdown":
            cell.source = self.text(page, cell.source)
        for output in filter(_is_picture, cell.get("outputs", [])):
            output.data["text/html"] = self.text(page, output.data["text/html"])
        if name := figure_name(cell):  # when the cell runs again its caption has the number, too
            number = f'caption="{self._plain("numref", name)}. '
            cell.source = cell.source.replace('caption="', number, 1)
        return cell

    def text(self, page: str, source: str) -> str:
        """A draft's text with the words and the links of its references."""
        return REFERENCE.sub(lambda m: self._reference(page, m), source)

    def _reference(self, page: str, m: re.Match[str]) -> str:
        if m["role"]:
            return self._role(page, m["role"], m["given"])
        if m["label"]:
            number = self._plain("eq", m["label"]).strip("()")
            return f"{m['math'][:-2].rstrip()}\n\\tag{{{number}}}\n$$"
        if m["to"]:
            return self._link(page, m["text"], m["to"])
        return m[0]

    def _role(self, page: str, role: str, given: str) -> str:
        text, target = target_of(given)
        if role.startswith("plain-"):
            return self._plain(role.removeprefix("plain-"), target)
        if text:
            return self._link(page, text, target)
        return "".join(self._link(page, words, label) if label else words
                       for words, label in self.words[role, target].pieces)  # fmt: skip

    def _plain(self, role: str, target: str) -> str:
        return "".join(words for words, _ in self.words[role, target].pieces)

    def _link(self, page: str, text: str, to: str) -> str:
        """A link into a copy; elsewhere in the book there is nothing to open, so only the text.

        An example of the lab, which runs in a browser, is named by its address on the site.
        """
        if re.match(r"[a-z]+:", to):
            return f"[{text}]({to})"
        if to.startswith("lab-"):
            return f"{text} (on the site, `{LAB}#{to}`)"
        other, cell = self.places.get(to, ("", ""))
        fragment = f"#cell-id={cell}" if cell else f"#{to}"
        if not other:
            other = os.path.normpath(os.path.join(os.path.dirname(page), os.path.splitext(to)[0]))
            fragment = ""
        if other not in self.drafts or not (self.beside or other == page):
            return text
        path = os.path.relpath(other, os.path.dirname(page) or ".")
        return f"[{text}]({path}.ipynb{fragment})"
