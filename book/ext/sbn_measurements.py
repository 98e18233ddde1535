"""The page of measurements: its tables are drawn from the measurement files at build time.

1. ``{sbn-experiments}`` lists what the book measures: for each experiment the command, and the
   runs of which there is a file, or that it is not measured yet.
2. ``{sbn-measurements} NAME`` draws the files of one experiment, the newest first.

A file that cannot be read, is of another kind than its name says, or belongs to no experiment is
named in a warning, which fails the book's build, and not drawn; the rest of the page is. How a
file becomes tables is in sbn_tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from docutils import nodes
from sbn_tables import Cell, Drawing, Table, Undrawable, draw
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

PAGE = "book/back/measurements"
logger = logging.getLogger(__name__)

# ---- what is measured --------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """Something the book measures.

    Attributes:
        name: what the directive and the label ``measure-NAME`` of its section call it.
        title: for the table of experiments.
        kind: of its files.
        pattern: of the names of its files.
        command: makes such a file.
    """

    name: str
    title: str
    kind: str
    pattern: str
    command: str


def _command(module: str, options: str, out: str) -> str:
    return " ".join(f"python -m sbnlib.{module} {options} --out book/measurements/{out}".split())


EXPERIMENTS = (
    Experiment(
        "bench",
        "Speed of the library",
        "bench",
        "bench*.json",
        _command("experiments.bench", "", "bench.json"),
    ),
    Experiment(
        "exact-cost",
        "Cost of an exact expectation",
        "exact-cost",
        "exact-cost*.json",
        _command("experiments.exact_cost", "", "exact-cost.json"),
    ),
    Experiment(
        "classify-digits",
        "Digits: an SBN beside its tanh twin",
        "classify",
        "classify-digits*.json",
        _command("experiments.classify", "--data digits", "classify-digits.json"),
    ),
    Experiment(
        "classify-fashion-mnist",
        "Fashion-MNIST: an SBN beside its tanh twin",
        "classify",
        "classify-fashion-mnist[.-][!4]*",  # not of fashion-mnist-4000, another data set
        _command(
            "experiments.classify",
            "--data fashion-mnist --hidden 512 512 --epochs 30 --batch-size 500 "
            "--lr 0.0003 0.001 0.003 0.01 --dtype float32 --accelerator auto",
            "classify-fashion-mnist.json",
        ),
    ),
    Experiment(
        "classify-cifar-10",
        "CIFAR-10: an SBN beside its tanh twin",
        "classify",
        "classify-cifar-10*.json",
        _command(
            "experiments.classify",
            "--data cifar-10 --hidden 512 512 --epochs 30 --batch-size 500 "
            "--lr 0.0003 0.001 0.003 0.01 --dtype float32 --accelerator auto",
            "classify-cifar-10.json",
        ),
    ),
    Experiment(
        "weights-digits",
        "Digits: binary weights, by optimizer",
        "binary weights",
        "weights-digits*.json",
        _command("experiments.weights", "--data digits", "weights-digits.json"),
    ),
    Experiment(
        "weights-fashion-mnist",
        "Fashion-MNIST: binary weights, by optimizer",
        "binary weights",
        "weights-fashion-mnist[.-][!4]*",
        _command("experiments.weights", "--data fashion-mnist", "weights-fashion-mnist.json"),
    ),
    Experiment(
        "width-law",
        "Bias against width and depth",
        "width law",
        "width-law*.json",
        _command("experiments.width_law", "--of bias", "width-law.json"),
    ),
    Experiment(
        "variance-law",
        "Variance against width and depth",
        "variance law",
        "variance-law*.json",
        _command("experiments.width_law", "--of variance", "variance-law.json"),
    ),
    Experiment(
        "how-deep",
        "Accuracy against depth and noise",
        "how deep",
        "how-deep-*.json",
        _command("experiments.how_deep", "--part grid", "how-deep-grid.json"),
    ),
    Experiment(
        "contenders",
        "Sixteen ways to train a deep network",
        "contenders",
        "contenders-*.json",
        _command("experiments.contenders", "--part train", "contenders-train.json"),
    ),
    Experiment(
        "packing",
        "What bits are worth: time and memory",
        "packing",
        "packing*.json",
        _command("experiments.packing", "", "packing.json"),
    ),
    Experiment(
        "autoencoders",
        "Stochastic autoencoders",
        "autoencoders",
        "autoencoders-*.json",
        _command("experiments.autoencoders", "--part train", "autoencoders-train.json"),
    ),
    Experiment(
        "improvements",
        "Improvements, and what becomes of them in training",
        "improvements",
        "improvements-*.json",
        _command("experiments.improvements", "--part widths", "improvements-widths.json"),
    ),
    Experiment(
        "characters",
        "Ternary weights in a character model",
        "characters",
        "characters*.json",
        _command("experiments.characters", "", "characters.json"),
    ),
    Experiment(
        "gpu",
        "The library on a GPU",
        "gpu",
        "gpu*.json",
        _command("experiments.gpu", "", "gpu.json"),
    ),
)


def owner(name: str) -> Experiment | None:
    """The experiment that makes files of this name."""
    return next((e for e in EXPERIMENTS if fnmatch(name, e.pattern)), None)


# ---- files -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A file: its record and what to draw of it, or the reason why it is not drawn."""

    path: Path
    record: Mapping[str, Any] | None = None
    drawing: Drawing | None = None
    fault: str = ""

    @property
    def date(self) -> datetime:
        return datetime.fromisoformat(self.record["date"])

    @property
    def day(self) -> str:
        return f"{self.date.day} {self.date:%B %Y}"


def runs(folder: Path, experiment: Experiment) -> list[Run]:
    """The files of an experiment, the newest first; those that cannot be drawn come last."""
    names = sorted(path.name for path in folder.glob("*.json") if owner(path.name) is experiment)
    found = [_run(folder / name, experiment.kind) for name in names]
    drawn = [run for run in found if not run.fault]
    return sorted(drawn, key=lambda run: run.date.isoformat(), reverse=True) + [
        run for run in found if run.fault
    ]


def _run(path: Path, kind: str) -> Run:
    from sbnlib.experiments import measurement

    try:
        record = measurement.read(path)
        if record["kind"] != kind:
            raise Undrawable(f"its kind is {record['kind']!r}, a file of this name has {kind!r}")
        datetime.fromisoformat(record["date"])  # or it says that this is no date
        return Run(path, record, draw(record))
    except (OSError, ValueError) as error:  # MeasurementError, Undrawable, a date that is none
        return Run(path, fault=str(error).removeprefix(f"{path}: "))


def strays(folder: Path) -> list[Path]:
    """Files that no experiment makes."""
    return sorted(path for path in folder.glob("*.json") if owner(path.name) is None)


# ---- nodes -------------------------------------------------------------------------------------

PACKAGES = {"python": "Python", "torch": "PyTorch", "numpy": "NumPy", "cuda": "CUDA"}
FEW = 6


def _paragraph(*parts: nodes.Node | str) -> nodes.paragraph:
    return nodes.paragraph("", "", *(nodes.Text(p) if isinstance(p, str) else p for p in parts))


def _listed(names: Iterable[str]) -> list[nodes.Node]:
    """Names in code type, with commas between them."""
    out: list[nodes.Node] = []
    for name in names:
        out += [nodes.Text(", " if out else ""), nodes.literal(text=name)]
    return out


def cell(content: str | Cell) -> nodes.paragraph:
    """A cell of a table."""
    if isinstance(content, str):
        content = Cell(text=content)
    parts: list[nodes.Node] = []
    if content.code:
        parts.append(nodes.literal(text=content.code))
    if content.text:
        made = nodes.strong if content.loud else nodes.inline
        parts.append(made(text=content.text))
    if content.small:
        parts.append(nodes.inline(text=content.small, classes=["sbn-small"]))
    spaced = [node for part in parts for node in (nodes.Text(" "), part)][1:]
    return nodes.paragraph("", "", *spaced)


def table(content: Table, stem: str) -> nodes.container:
    """The table in a box of its own; its id begins with the name of the file."""
    made = nodes.table(ids=[nodes.make_id(f"{stem}-{content.name}")])
    made += nodes.title(text=content.caption)
    group = nodes.tgroup(cols=len(content.head))
    group += [nodes.colspec(colwidth=1) for _ in content.head]
    group += nodes.thead("", _line(content.head))
    group += nodes.tbody("", *map(_line, content.rows))
    made += group
    return nodes.container("", made, classes=["sbn-wide-table"])


def _line(cells: Sequence[str | Cell]) -> nodes.row:
    """A row of a table: words, then numbers."""
    entries = [nodes.entry("", cell(content), classes=["sbn-number"]) for content in cells]
    entries[0]["classes"] = []
    return nodes.row("", *entries)


def command_block(command: str) -> nodes.container:
    """A command as it is typed, in words that are not broken at a hyphen where a line ends."""
    words = [nodes.inline(text=word, classes=["sbn-word"]) for word in command.split(" ")]
    spaced = [node for word in words for node in (nodes.Text(" "), word)][1:]
    block = nodes.literal_block(f"{command}\n", "", *spaced)  # other source: not highlighted
    return nodes.container("", block, classes=["sbn-command", "highlight"])


def facts(run: Run, link: str) -> nodes.field_list:
    """Where a file comes from, and whether its checks held."""
    record = run.record
    rows: dict[str, list[nodes.Node]] = {
        "File": [_download(run.path.name, link)],
        "Code": [nodes.Text("commit "), nodes.literal(text=short(record["commit"]))],
        "Versions": [nodes.Text(versions(record["versions"]))],
        "Checks": checks(record["checks"]),
    }
    if record["seeds"]:
        rows["Seeds"] = [nodes.Text(seeds(record["seeds"]))]
    rows |= {name: [nodes.Text(text)] for name, text in run.drawing.facts.items()}
    fields = [
        nodes.field("", nodes.field_name(text=name), nodes.field_body("", _paragraph(*parts)))
        for name, parts in rows.items()
    ]
    return nodes.field_list("", *fields, classes=["sbn-facts"])


def _download(name: str, link: str) -> nodes.Node:
    words = nodes.literal(text=name)
    return addnodes.download_reference("", "", words, reftarget=link, refdoc=PAGE)


def short(commit: str) -> str:
    """A commit as people write it; ``-dirty`` stays."""
    name, dash, rest = commit.partition("-")
    return f"{name[:7]}{dash}{rest}"


def versions(found: Mapping[str, str]) -> str:
    """What was installed, in the order of the file."""
    there = {name: version for name, version in found.items() if version[:1].isdigit()}
    return ", ".join(f"{PACKAGES.get(name, name)} {version}" for name, version in there.items())


def seeds(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    whole = len(numbers) > 2 and list(numbers) == list(range(first, last + 1))
    return f"{first} to {last}" if whole else ", ".join(map(str, numbers))


def checks(found: Mapping[str, bool]) -> list[nodes.Node]:
    """How many checks held; those that failed by name, and all of them if they are few."""
    failed = [name for name, held in found.items() if not held]
    if not found:
        return [nodes.Text("none")]
    if failed:
        words = f"{len(failed)} of {len(found)} failed: "
        return [nodes.strong(text=words), *_listed(failed)]
    words = f"all {len(found)} held" if len(found) > 1 else "held"
    return [nodes.Text(f"{words}: "), *_listed(found)] if len(found) <= FEW else [nodes.Text(words)]


def picture(run: Run, link: str) -> nodes.container:
    """All that the page shows of a file."""
    box = nodes.container(ids=[nodes.make_id(run.path.stem)], classes=["sbn-measurement"])
    box += nodes.rubric(text=f"{run.record['device']}, {run.day}")
    box += facts(run, link)
    box += _paragraph("The command that made it, and repeats it:")
    box += command_block(run.record["command"])
    box += [_paragraph(note) for note in run.drawing.notes]
    box += [table(content, run.path.stem) for content in run.drawing.tables]
    return box


# ---- directives --------------------------------------------------------------------------------


class _Directive(SphinxDirective):
    @property
    def folder(self) -> Path:
        self.env.note_reread()  # a file may come, go or change
        return Path(self.env.srcdir, self.config.sbn_measurements)

    def warn(self, path: Path, fault: str) -> None:
        logger.warning("%s is not drawn: %s", path.name, fault, location=self.get_location())


class Experiments(_Directive):
    """The table of all experiments."""

    def run(self) -> list[nodes.Node]:
        folder = self.folder
        for path in strays(folder):
            self.warn(path, "no experiment of the page makes a file of this name")
        made = nodes.table(ids=["tab-experiments"], classes=["sbn-experiments"])
        made += nodes.title(text="The experiments, and the runs of which there is a file.")
        group = nodes.tgroup(cols=2)
        group += [nodes.colspec(colwidth=1) for _ in range(2)]
        heads = [nodes.entry("", cell(words)) for words in ("Experiment, command", "Measured on")]
        group += nodes.thead("", nodes.row("", *heads))
        lines = (self.line(experiment, runs(folder, experiment)) for experiment in EXPERIMENTS)
        group += nodes.tbody("", *lines)
        made += group
        return [made]

    def line(self, experiment: Experiment, found: Sequence[Run]) -> nodes.row:
        what = _paragraph(_reference(experiment), " ", nodes.literal(text=experiment.command))
        entries = [nodes.entry("", what), nodes.entry("", *_status(found))]
        return nodes.row("", *entries, ids=[f"experiment-{experiment.name}"])


def _reference(experiment: Experiment) -> nodes.Node:
    """A link to the section of the experiment."""
    return addnodes.pending_xref(
        "",
        nodes.inline(text=experiment.title),
        refdomain="std",
        reftype="ref",
        reftarget=f"measure-{experiment.name}",
        refexplicit=True,
        refwarn=True,
    )


def _status(found: Sequence[Run]) -> Iterator[nodes.paragraph]:
    if not found:
        yield cell("not measured yet")
    drawn = [run for run in found if not run.fault]
    for device, day in dict.fromkeys((run.record["device"], run.day) for run in drawn):
        yield cell(Cell(text=device, small=day))
    for run in found[len(drawn) :]:
        yield cell(f"{run.path.name} cannot be drawn")


class Measurements(_Directive):
    """The files of one experiment."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        experiment = next((e for e in EXPERIMENTS if e.name == name), None)
        if experiment is None:
            known = ", ".join(e.name for e in EXPERIMENTS)
            raise self.error(f"unknown experiment {name!r}, known are {known}")
        found = runs(self.folder, experiment)
        if not found:
            words = _paragraph("Not measured yet. The command that measures it:")
            return [words, command_block(experiment.command)]
        return [self.shown(run) for run in found]

    def shown(self, run: Run) -> nodes.Node:
        if run.fault:
            self.warn(run.path, run.fault)
            return _paragraph(nodes.literal(text=run.path.name), " cannot be drawn.")
        return picture(run, f"/{self.config.sbn_measurements}/{run.path.name}")


def add_style(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    if page == PAGE:
        app.add_css_file("measurements.css")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("sbn_measurements", "book/measurements", "env")
    app.add_directive("sbn-experiments", Experiments)
    app.add_directive("sbn-measurements", Measurements)
    app.connect("html-page-context", add_style, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
