"""The page of measurements: it draws every file, with the file's own numbers, and nothing else."""

from __future__ import annotations

import calendar
import contextlib
import copy
import functools
import hashlib
import importlib.util
import io
import json
import math
import operator
import os
import re
import statistics
import subprocess
import sys
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from places import BOOK, MEASUREMENTS, ROOT, SITE
from scipy import stats

from sbnlib import data as datasets
from sbnlib.experiments import binary_net, measurement

pytest.importorskip("sphinx")
sys.path.insert(0, str(BOOK / "ext"))
try:
    import sbn_measurements
    import sbn_tables
finally:
    sys.path.pop(0)

PAGE = BOOK / "back" / "measurements.md"
FILES = sorted(MEASUREMENTS.glob("*.json"))
EXPERIMENTS = {e.name: e for e in sbn_measurements.EXPERIMENTS}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
every_experiment = pytest.mark.parametrize("name", EXPERIMENTS)

#: Runs on a machine that cannot be asked again: their files stay as they were written.
PINNED = {
    "classify-fashion-mnist-h100-2026-11-27.json":
        "8584b6d78e79c39c188def1f10fc862e923563ea2082d7f39bcea023c9b0fbad",
    "gpu-nvidia-h100-80gb-hbm3-2026-11-27.json":
        "6661c2def88cad688cb9332f354af096f4869f81cc4a0e0a374edf9c1e1cc666",
}  # fmt: skip
H100, FASHION = sorted(PINNED, reverse=True)


def text_of(name):
    """A file, with the name that classify's of 0.1.0 have for a field replaced by today's."""
    text = (MEASUREMENTS / name).read_text("utf-8")
    return text.replace('"gain": ', '"init_gain": ') if '"kind": "classify"' in text else text


@functools.cache
def record(name):
    """A file as it is, not through the library's reader."""
    return json.loads(text_of(name))


def rows_of(name, part=None):
    return [r for r in record(name)["rows"] if part is None or r["part"] == part]


# ---------------------------------------------------------------------------------- the files


def never(constant):
    raise AssertionError(f"{constant} is not a number of JSON")


@pytest.mark.slow
@every_file
def test_a_file_has_the_form_of_the_schema(path):
    jsonschema = pytest.importorskip("jsonschema")
    content = json.loads(text_of(path.name), parse_constant=never)
    jsonschema.validate(content, measurement.SCHEMA)
    assert measurement.read(path) == content


@pytest.mark.parametrize("name", PINNED)
def test_the_files_of_the_h100_are_as_they_were_written(name):
    assert hashlib.sha256((MEASUREMENTS / name).read_bytes()).hexdigest() == PINNED[name]


# ------------------------------------------------------------------- the page, built by itself


CONF = """
import sys
sys.path[:0] = [{ext!r}, {root!r}]
extensions = ["myst_parser", "sbn_measurements"]
myst_enable_extensions = ["dollarmath"]
root_doc = "book/back/measurements"
numfig = True
"""


class Built:
    """What Sphinx made of the page: its exit status, its warnings and its HTML."""

    def __init__(self, folder, files, text=None):
        from bs4 import BeautifulSoup

        source, self.out = folder / "source", folder / "out"
        (source / "book" / "back").mkdir(parents=True)
        page = source / "book" / "back" / PAGE.name
        page.write_text(text or PAGE.read_text("utf-8"), "utf-8")
        (source / "book" / "measurements").mkdir()
        for name, content in files.items():
            (source / "book" / "measurements" / name).write_bytes(content)
        conf = CONF.format(ext=str(BOOK / "ext"), root=str(ROOT))
        (source / "conf.py").write_text(conf, "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html",
             str(source), str(self.out)],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.status, self.warnings = done.returncode, done.stderr
        path = self.out / "book" / "back" / "measurements.html"
        assert path.exists(), done.stderr
        self.soup = BeautifulSoup(path.read_text("utf-8"), "html.parser")

    def drawn(self, name):
        """The box of a file, None if there is none."""
        return self.soup.find("div", class_="sbn-measurement", id=sbn_id(Path(name).stem))

    def table(self, name, part):
        """The cells of a table, a list of texts a row."""
        found = self.soup.find("table", id=sbn_id(f"{Path(name).stem}-{part}"))
        assert found is not None, f"{name}: no table {part}"
        return [[words(cell) for cell in row.find_all("td")] for row in found.tbody.find_all("tr")]

    def tables(self, name):
        """The cells of all tables of a file, one after the other."""
        return [
            [[words(cell) for cell in row.find_all("td")] for row in table.tbody.find_all("tr")]
            for table in self.drawn(name).find_all("table")
        ]

    def facts(self, name):
        box = self.drawn(name).find("dl", class_="sbn-facts")
        return {
            dt.get_text().rstrip(":"): words(dd)
            for dt, dd in zip(box.find_all("dt"), box.find_all("dd"), strict=True)
        }


def sbn_id(text):
    """As docutils makes an id: what is no letter or digit becomes a hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def words(tag):
    """The text of a tag, its parts apart; a narrow or fixed space is a space."""
    return re.sub(r"[\s\u00a0\u202f]+", " ", tag.get_text(" ", strip=True))


def contents(paths):
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return Built(tmp_path_factory.mktemp("page"), contents(FILES))


@pytest.mark.slow
def test_the_page_builds_without_a_warning(built):
    assert (built.status, built.warnings) == (0, "")


def test_the_page_is_in_the_table_of_contents():
    toc = (ROOT / "_toc.yml").read_text("utf-8")
    order = [toc.index(f"file: book/back/{name}\n") for name in ("api", "measurements")]
    assert order == sorted(order) and order[1] < toc.index("file: book/back/bibliography\n")


@pytest.mark.slow
def test_every_file_is_drawn_and_nothing_else(built):
    boxes = built.soup.find_all("div", class_="sbn-measurement")
    assert sorted(box["id"] for box in boxes) == sorted(sbn_id(path.stem) for path in FILES)
    assert all(box.find("table") for box in boxes)
    assert "cannot be drawn" not in built.soup.get_text()


@pytest.mark.slow
@every_file
def test_a_drawn_file_can_be_had(built, path):
    (link,) = built.drawn(path.name).find_all("a", class_="download")
    target = (built.out / "book" / "back" / link["href"]).resolve()
    assert words(link) == path.name and target.read_bytes() == path.read_bytes()


@pytest.mark.slow
@every_file
def test_the_page_says_where_a_file_comes_from(built, path):
    found, box, facts = record(path.name), built.drawn(path.name), built.facts(path.name)
    year, month, day = found["date"][:10].split("-")
    heading = f"{found['device']}, {int(day)} {calendar.month_name[int(month)]} {year}"
    assert words(box.find("p", class_="rubric")) == heading
    assert facts["Code"] == f"commit {found['commit'][:7]}"
    named = {"python": "Python", "torch": "PyTorch", "numpy": "NumPy", "cuda": "CUDA"}
    for package, version in found["versions"].items():
        shown = f"{named.get(package, package)} {version}"
        assert (shown in facts["Versions"].split(", ")) == (version != "not installed")
    (command,) = box.find_all("div", class_="sbn-command")
    assert command.pre.get_text() == found["command"]
    held, count = sum(found["checks"].values()), len(found["checks"])
    whole_ = {0: "none", 1: "held: "}.get(count, f"all {count} held")
    assert facts["Checks"].startswith(whole_ if held == count else f"{count - held} of {count} fai")
    first, last = (found["seeds"] or [""])[0], (found["seeds"] or [""])[-1]
    known = (", ".join(map(str, found["seeds"])), f"{first} to {last}")
    assert facts.get("Seeds", "") in known


# ---------------------------------------------------------------------- numbers drawn and kept


UNITS = {"s": 1, "ms": 1e-3, "µs": 1e-6, "TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "%": 0.01}
DIGITS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
RAISED = str.maketrans(DIGITS, "-0123456789")
NUMBER = re.compile(
    r"(?P<number>[−+]?\d[\d ]*(?:\.\d+)?)"
    rf"(?: · 10(?P<power>[{DIGITS}]+)|(?P<raised>[{DIGITS}]+))?"
    r" ?(?P<unit>s|ms|µs|[TGMk]B|%)?(?![\w])"
)


def value(text):
    """The first number of a text, in its unit."""
    found = NUMBER.search(re.sub(r"[\s\u00a0\u202f]", " ", text))
    assert found, text
    number = float(found["number"].replace(" ", "").replace("−", "-"))
    if found["raised"]:
        number = number ** int(found["raised"].translate(RAISED))
    if found["power"]:
        number *= 10.0 ** int(found["power"].translate(RAISED))
    return number * UNITS.get(found["unit"], 1)


def close(text, kept, digits=3):
    """The text shows ``kept`` rounded to so many significant digits."""
    if kept == 0:
        return value(text) == 0
    unit = 10.0 ** (math.floor(math.log10(abs(kept))) - digits + 1)
    return abs(value(text) - kept) <= 0.5001 * unit


def fixed(text, kept, places):
    """The text shows ``kept`` rounded to so many decimals."""
    return abs(float(text.replace("−", "-")) - kept) <= 0.5001 * 10.0**-places


def with_error(text, mean, se):
    """The text shows 100 mean ± 100 se, two decimals each."""
    left, _, right = text.partition(" ± ")
    return fixed(left, 100 * mean, 2) and fixed(right, 100 * se, 2)


def one(rows, start):
    """The row whose first cell starts with this name."""
    (found,) = [row for row in rows if row[0].split(" ")[0] == start]
    return found


# bench


BENCH = [path.name for path in FILES if record(path.name)["kind"] == "bench"]
every_bench = pytest.mark.parametrize("file", BENCH)


def bench_line(built, file, row):
    """(text of the times and the ratio, of the verdict, of the load) of a row of the benchmark."""
    name, series = row["row"], built.soup.find("table", id=sbn_id(f"{Path(file).stem}-step"))
    if row["target"]:
        what, *times, verdict = one(built.table(file, "targets"), name)
        return times, verdict, what.partition("; load ")[2]
    own = name.removeprefix("step-")
    if name.startswith("step-") and series:
        _, ours, other, ratio, medians, load = one(built.table(file, "step"), own)
        return [ours, other, f"{ratio} medians {medians}"], "", load
    rows = [r for r in built.table(file, "others") if "by hand" not in r[0]]
    what, *times = one(rows, name)
    return times, "", what.partition("; load ")[2]


COMPARED = [(name, r) for name in BENCH for r in rows_of(name) if r["ratio"] is not None]


@pytest.mark.slow
@pytest.mark.parametrize("file, row", COMPARED, ids=[f"{name}-{r['row']}" for name, r in COMPARED])
def test_bench_rows_are_drawn_with_their_ratio_and_verdict(built, file, row):
    (ours, other, ratio), verdict, load = bench_line(built, file, row)
    shortest, _, medians = ratio.partition(" medians ")
    assert close(shortest, row["ratio"])
    if row["ours_s"]:
        assert close(ours, row["ours_s"][0]) and close(other, row["other_s"][0])
        assert close(medians, row["ratio_of_medians"])
        faster = shortest.endswith("as fast")
        assert faster != shortest.endswith("the time")
        sides = row["other_s"][0], row["ours_s"][0]
        assert (sides[0] / sides[1] if faster else sides[1] / sides[0]) == row["ratio"]
    if row["target"]:
        sign, bound = row["target"].split()
        met = {">=": operator.ge, "<=": operator.le}[sign](row["ratio"], float(bound))
        shown = {">=": "≥", "<=": "≤"}[sign]
        assert verdict == f"{'met' if met else 'not met'} {shown} {bound}×"
    assert [float(v) for v in load.split(" to ")] in (
        [round(v, 1) for v in row["load"]], [round(row["load"][0], 1)])  # fmt: skip


@pytest.mark.slow
@every_bench
def test_all_rows_of_bench_are_drawn_and_no_target_is_hidden(built, file):
    text = words(built.drawn(file))
    for row in rows_of(file):
        name = row["row"].removeprefix("step-") if row["details"].get("evaluations") else row["row"]
        assert name in text
    verdicts = [row[-1] for row in built.table(file, "targets")]
    assert len(verdicts) == sum(bool(row["target"]) for row in rows_of(file))


@pytest.mark.slow
@every_bench
def test_bench_rows_without_a_ratio_say_what_they_have(built, file):
    probed = any("probes" in row["details"] for row in rows_of(file))
    probes = built.table(file, "probes") if probed else []
    loops = [r for r in built.table(file, "others") if "by hand" in r[0]]
    for row in rows_of(file):
        details = row["details"]
        if "not installed" in details:
            (line,) = [r for r in built.table(file, "others") if row["row"] in r[0]]
            assert line[1:] == ["–", "–", "not run not installed"]
        for name, found in details.get("probes", {}).items():
            (line,) = [r for r in probes if r[0].startswith(row["row"]) and (
                r[1] == name or name.isdigit() and value(r[1]) == int(name))]  # fmt: skip
            assert close(line[2], found["seconds"])
            assert line[3].endswith(" MiB") and close(line[3], found["peak_mib"])
        if "by_hand" in details:
            line = one(loops, row["row"])
            assert close(line[2], details["by_hand_s"][0])
            assert close(line[3], details["by_hand"]["ratio"])


AXES = [
    (file, row["row"], axis)
    for file in BENCH
    for row in rows_of(file)
    for axis in ("units", "samples")
    if row["row"] == f"cost-{axis}"
]


def test_the_whole_benchmark_has_costs_along_both_axes():
    assert {axis for file, _, axis in AXES if file == "bench.json"} == {"units", "samples"}


@pytest.mark.slow
@pytest.mark.parametrize(("file", "name", "axis"), AXES)
def test_costs_along_an_axis_are_those_of_the_file(built, file, name, axis):
    (row,) = [r for r in rows_of(file) if r["row"] == name]
    found = {line[0]: line[1:] for line in built.table(file, name)}
    heads = built.soup.find("table", id=sbn_id(f"{Path(file).stem}-{name}")).thead.find_all("th")
    assert [words(h) for h in heads][1:] == [str(v) for v in row["details"][axis]]
    assert set(found) == set(row["details"]) - {axis}
    for estimator, cells in found.items():
        assert all(c.endswith("×") for c in cells)
        assert [float(c[:-1]) for c in cells] == row["details"][estimator]


# exact-cost


EXACT = [path.name for path in FILES if record(path.name)["kind"] == "exact-cost"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_exact_costs_are_those_of_the_file(built, name):
    kept = {(r["layers"], r["width"], r["way"]): r for r in rows_of(name)}
    lines = built.table(name, "widest")
    for net, *cells, ratio in lines:
        layers, width = map(int, re.fullmatch(r"(\d+) layers? of (\d+)", net).groups())
        for cell, way in zip(cells, ("enumeration", "layers", "library"), strict=True):
            row = kept.get((layers, width, way))
            assert (cell == "not run") == (row is None)
            if row:
                seconds, _, terms = re.fullmatch(r"(\S+ (s|ms|µs)) (.+) terms", cell).groups()
                assert close(seconds, row["seconds"]) and value(terms) == row["terms"]
        known = record(name)["ratios"].get(f"{layers} layers of {width}")
        assert (ratio == "–") == (known is None) and (known is None or close(ratio, known))
    drawn = {line[0].replace("layers", "layer") for line in lines}
    for layers in {k for k, _, _ in kept}:
        widest = max(n for k, n, _ in kept if k == layers)
        shared = max(n for k, n, way in kept if k == layers and way == "library"
                     and (k, n, "enumeration") in kept)  # fmt: skip
        assert {f"{layers} layer of {widest}", f"{layers} layer of {shared}"} <= drawn


# laws of width and depth


LAWS = [path.name for path in FILES if record(path.name)["kind"] in ("width law", "variance law")]


def beside_error(text, value, se):
    """The text shows value ± se, both to the second digit of the error."""
    left, _, right = text.partition(" ± ")
    places = len(right.partition(".")[2])
    assert places == 0 or 9.5 <= se * 10**places < 100
    return fixed(left, value, places) and fixed(right, se, places)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_the_laws_are_those_of_the_file(built, name):
    field = {"width law": "relative_bias"}.get(record(name)["kind"], "relative_variance")
    points = [r for r in rows_of(name) if r["part"] == "width"]
    for layers in {r["layers"] for r in points}:
        own = [r for r in points if r["layers"] == layers]
        names = list(dict.fromkeys(r["estimator"] for r in own))
        lines = built.table(name, f"layers-{layers}")
        assert len(lines) == len(own) / len(names)
        for label, *cells in lines:
            width, how = re.fullmatch(r"(\d+) (all states|by samples)", label).groups()
            method = {"all states": "exact", "by samples": "samples"}[how]
            for estimator, cell in zip(names, cells, strict=True):
                (row,) = [r for r in own if (r["width"], r["method"], r["estimator"])
                          == (int(width), method, estimator)]  # fmt: skip
                if row["se"] == 0:
                    assert cell == "0" and row[field] == 0
                else:
                    assert beside_error(cell, row[field], row["se"])


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_the_fitted_powers_are_those_of_the_points(built, name):
    """By a fit of logarithms here: where chi2 is fair the two ways agree within their errors."""
    field = {"width law": "relative_bias"}.get(record(name)["kind"], "relative_variance")
    fits = [r for r in rows_of(name) if r["part"] == "fit"]
    for line, row in zip(built.table(name, "fits"), fits, strict=True):
        assert line[:3] == [row["estimator"], str(row["layers"]),
                            f"{row['least']} to {row['most']}"]  # fmt: skip
        left, _, right = line[3].partition(" ± ")
        assert fixed(left, row["exponent"], 3) and fixed(right, row["se"], 3)
        chi2, dof = line[4].split(" on ")
        assert fixed(chi2, row["chi2"], 1) and int(dof) == row["dof"]
        at = {}
        for r in rows_of(name):
            if r["part"] == "width" and (r["estimator"], r["layers"]) == line_key(row):
                at.setdefault(r["width"], r) if r["width"] >= row["least"] else None
        good = [r for r in at.values() if r[field] > 3 * r["se"]]
        if len(good) == len(at):
            n, y, se = (np.array([r[key] for r in good]) for key in ("width", field, "se"))
            slope = np.polyfit(np.log(n), np.log(y), 1, w=y / se)[0]
            assert abs(slope - row["exponent"]) < 2 * row["se"] + 0.02


def line_key(row):
    return row["estimator"], row["layers"]


# accuracies, from the single runs and not from the summary of the file


def mean_se(values):
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def check_accuracy(cells, values, twin, *, welch):
    """Mean, difference to the twin and p, by Welch or, in files from before 0.2.0, by seed."""
    accuracy, gap, p = cells
    assert with_error(accuracy, *mean_se(values))
    if twin is None:
        assert gap == p == "–"
    elif welch:
        (mean, se), (other, other_se) = mean_se(values), mean_se(twin)
        assert with_error(gap, mean - other, math.hypot(se, other_se))
        expected = stats.ttest_ind(values, twin, equal_var=False).pvalue
        assert p == ("< 0.001" if expected < 0.0005 else f"{expected:.3f}")
    else:
        assert with_error(gap, *mean_se([a - b for a, b in zip(values, twin, strict=True)]))
        assert p == "–"


HOW_DEEP = [path.name for path in FILES if record(path.name)["kind"] == "how deep"]


@pytest.mark.slow
@pytest.mark.parametrize("name", HOW_DEEP)
def test_accuracies_in_depth_are_those_of_the_runs(built, name):
    """Every network is in one cell, which holds the mean of its seeds."""
    rows = [r for r in rows_of(name) if r["part"] != "predictions"]
    if not rows:
        said = built.table(name, "predictions")
        assert [line[0] for line in said] == [r["name"] for r in rows_of(name)]
        return
    tables = built.tables(name)
    shown = sorted(float(c) for t in tables for line in t for c in line[1:] if c != "–")
    assert shown == sorted(round(100 * statistics.fmean(r["ten"]), 1) for r in rows)
    if name == "how-deep-cures.json":
        expected = [r for r in rows if r["estimator"] == "zgr"]
        assert [r["noise"] for r in expected] == ["Uniform", "Triangular", "Logistic"]
        means = [f"{100 * statistics.fmean(r['ten']):.1f}" for r in expected]
        assert one(tables[0], "zgr")[1:] == means


# characters: the file of the book

CHARACTERS = [path.name for path in FILES if record(path.name)["kind"] == "characters"]


@pytest.mark.parametrize("name", CHARACTERS)
def test_the_character_models_are_drawn_with_their_numbers(name):
    """The means and errors anew from the final rows, not from the summary."""
    tables = {table.name: table for table in sbn_tables.draw(record(name)).tables}
    for bits, weights in zip(tables["bits"].rows, tables["weights"].rows, strict=True):
        own = [r for r in rows_of(name, "final") if r["name"] == bits[0].code == weights[0].code]
        mean, se = mean_se([r["test"] for r in own])
        shown, error = (float(part) for part in bits[2].split(" ± "))
        assert abs(shown - mean) < 1e-3 and abs(error - se) < 1e-3
        zeros = [r["zeros"] for r in own]
        if None not in zeros:
            assert abs(float(weights[3]) - 100 * statistics.fmean(zeros)) < 0.06
    assert all(held for held in record(name)["checks"].values())


# improvements: the files of the book


IMPROVEMENTS = [path.name for path in FILES if record(path.name)["kind"] == "improvements"]


@pytest.mark.parametrize("name", IMPROVEMENTS)
def test_the_improvements_are_drawn_with_their_numbers(name):
    """From the rows: every training, every weight, every moment, every grid."""
    tables, rows = drawn_tables(record(name)), rows_of(name)
    part = rows[0]["part"]
    if part == "widths":
        for depth in {r["depth"] for r in rows}:
            own = [r for r in rows if r["depth"] == depth]
            columns = list(dict.fromkeys(r["width"] for r in own))
            for number, unit in (("loss", 1), ("test_loss", 1), ("ten", 100)):
                table = tables[f"{number}-{depth}".replace("_", "-")]
                assert [line[0] for line in table] == list(dict.fromkeys(
                    r["estimator"] for r in own))  # fmt: skip
                for r in own:
                    cell = one(table, r["estimator"])[1 + columns.index(r["width"])]
                    assert told(cell, *mean_se([unit * v for v in r[number]]))
    elif part == "optimal-s":
        for r in rows:
            table = tables[f"weight-{r['depth']}-{r['inputs']}"]
            columns = list(dict.fromkeys(q["samples"] for q in rows))
            cell = one(table, r["estimator"])[1 + columns.index(r["samples"])]
            assert told(cell, r["error"], r["se"])
    elif part == "gauge":
        epochs = list(dict.fromkeys(r["epoch"] for r in rows))
        for number in ("bias2", "variance"):
            for name in dict.fromkeys(r["estimator"] for r in rows):
                shown = one(tables[f"gauge-{number}"], name)[1:]
                for cell, epoch in zip(shown, epochs, strict=True):
                    values = [r[number] for r in rows
                              if (r["estimator"], r["epoch"]) == (name, epoch)]  # fmt: skip
                    assert value(cell) == pytest.approx(
                        statistics.median(values), rel=0.006, abs=1e-24
                    )
    else:
        for line, r in zip(tables["latent"], rows, strict=True):
            assert line[:2] == [r["rounding"], str(r["bits"])] and value(line[2]) == r["lr"]
            assert told(line[3], *mean_se([100 * v for v in r["sign"]]))
            assert close(line[4], 100 * r["at_ends"])


# contenders: files of the book, and small ones as the command writes them


CONTENDERS = [path.name for path in FILES if record(path.name)["kind"] == "contenders"]
SMALL = ("train", "gradients", "exact")


@pytest.fixture(scope="module")
def small_contenders(tmp_path_factory):
    """part -> a record of few, narrow trainings."""
    from dataclasses import replace

    from sbnlib.experiments import contenders, directions, small_nets
    from sbnlib.experiments.ways import WAYS

    folder = tmp_path_factory.mktemp("contenders")
    common = ["--data", "digits", "--resume-dir", str(folder)]
    names = ["twin", "st-logistic", "sign-hardtanh", "weights-bc", "conv-tanh", "conv-st"]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            hidden = (8, 6) if WAYS[name].hidden else ()
            patch.setitem(WAYS, name, replace(WAYS[name], hidden=hidden, seeds=3, images=300))
        for module in (directions, small_nets):
            patch.setattr(module, "EPOCHS", (0, 1))
            patch.setattr(module, "IMAGES", 4)
            patch.setattr(module, "SAMPLES", 40)
        patch.setattr(directions, "GROUPS", 4)
        patch.setattr(directions, "REFERENCE_SAMPLES", 30)
        patch.setattr(small_nets, "SEEDS", 2)
        lengths = ["--epochs", "2", "--search-epochs", "1"]
        own = {"train": ["--only", *names, *lengths], "exact": []}
        own["gradients"] = ["--chosen", str(folder / "train.json")]
        for part in SMALL:
            out = ["--out", str(folder / f"{part}.json")]
            assert contenders.main(["--part", part, *own[part], *common, *out]) == 0
    return {part: json.loads((folder / f"{part}.json").read_text()) for part in SMALL}


def drawn_tables(content):
    """name of a table -> its rows, each a list of texts: code, words and small words of a cell."""

    def text(cell):
        return cell if isinstance(cell, str) else " ".join(
            part for part in (cell.code, cell.text, cell.small) if part)  # fmt: skip

    drawing = sbn_tables.draw(content)
    return {t.name: [[text(c) for c in row] for row in t.rows] for t in drawing.tables}


def told(text, value, se):
    """The text shows value ± se to the second digit of the error."""
    left, _, right = text.replace("−", "-").partition(" ± ")
    places = len(right.partition(".")[2])
    assert len(right.replace(".", "").lstrip("0")) in (2, 3) or places == 0
    return (abs(float(left) - value) <= 0.5001 * 10.0**-places
            and abs(float(right) - se) <= 0.5001 * 10.0**-places)  # fmt: skip


def check_ways(content):
    """From the single runs: every way, every prediction, accuracies, likelihood, calibration."""
    tables = drawn_tables(content)
    rows = content["rows"]
    ways = {r["name"]: r for r in rows if r["part"] == "contender"}
    final = {n: [r for r in rows if r["part"] == "final" and r["name"] == n] for n in ways}
    assert [line[0].split()[0] for line in tables["accuracy"]] == list(ways)
    for name, way in ways.items():
        used = {"tanh": "tanh", "sign": "sign"}.get(way["kind"], "ten")
        used = "sign" if name.startswith("weights") else used
        what, rate, prediction, *cells, nll, ece = one(tables["accuracy"], name)
        assert way["label"] in what and f"{len(final[name])} seeds" in what
        assert value(rate) == pytest.approx(final[name][0]["lr"]) and prediction == used
        values = [r["test"][used] for r in final[name]]
        twin = [r["test"]["tanh"] for r in final[way["twin"]]] if way["twin"] != name else None
        check_accuracy(cells, values, twin, welch=True)
        assert told(nll, *mean_se([r["nll"][used] for r in final[name]]))
        assert told(ece, *mean_se([100 * r["ece"][used] for r in final[name]]))
        for table, number, unit in (("predictions", "test", 100), ("likelihood", "nll", 1),
                                    ("calibration", "ece", 100)):  # fmt: skip
            shown = [c for c in one(tables[table], name)[1:] if c != "–"]
            # in the order of the columns: sign, one, ten, mean, tanh, and those with "running"
            order = ["sign", "one", "ten", "mean", "tanh"]
            there = sorted(final[name][0][number], key=lambda p: ("running" in p, order.index(
                p.split()[0])))  # fmt: skip
            for cell, p in zip(shown, there, strict=True):
                assert told(cell, *mean_se([unit * r[number][p] for r in final[name]]))


def check_moments(content):
    tables, rows = drawn_tables(content), content["rows"]
    epochs = sorted({r["epoch"] for r in rows})

    def lines(part):
        found = {}
        for r in (r for r in rows if r["part"] == part):
            found.setdefault((r["seed"], r["estimator"], r["layer"]), {})[r["epoch"]] = r
        return found.values()

    for table, part in (("one", "gradients"), ("many", "gradients")):
        for line, of in zip(tables[table], lines(part), strict=True):
            for cell, epoch in zip(line[1:], epochs, strict=True):
                number, se = of[epoch][table], of[epoch][f"{table}_se"]
                assert cell == "–" if number is None else se is None or told(cell, number, se)
    for line, of in zip(tables["reference"], lines("reference"), strict=True):
        for cell, epoch in zip(line[1:], epochs, strict=True):
            length, se = cell.rstrip(")").split(" (")
            assert close(length, of[epoch]["length"])
            assert se == "–" if of[epoch]["se"] is None else close(se, of[epoch]["se"])
    for line, of in zip(tables["candidates"], lines("candidate"), strict=True):
        assert f"{of[0]['evaluations']} evaluations" in line[0]
        for cell, epoch in zip(line[1:], epochs, strict=True):
            found = of[epoch]["deviation"]
            assert cell == "–" if found is None else close(cell, found)


def check_small_net(content):
    tables, rows = drawn_tables(content), content["rows"]
    epochs = sorted({r["epoch"] for r in rows})
    names = list(dict.fromkeys((r["estimator"], r["layer"]) for r in rows))
    for table, number in (("bias", "bias2"), ("deviation", "variance"), ("cosine", "cosine")):
        for line, (estimator, layer) in zip(tables[table], names, strict=True):
            assert line[0].split() == [estimator, *(["all", "layers"] if layer == "all" else [
                "layer", layer])]  # fmt: skip
            for cell, epoch in zip(line[1:], epochs, strict=True):
                own = [
                    r[number]
                    for r in rows
                    if (r["estimator"], r["layer"], r["epoch"]) == (estimator, layer, epoch)
                ]
                if None in own:
                    assert cell == "–"
                elif table == "cosine":
                    assert fixed(cell, np.mean(own), 3)
                else:
                    mean = max(np.mean(own), 0)
                    assert cell == "0" if mean == 0 else close(cell, math.sqrt(mean))


def check_contenders(content):
    parts = {r["part"] for r in content["rows"]}
    for part, check in (("contender", check_ways), ("gradients", check_moments),
                        ("exact", check_small_net)):  # fmt: skip
        if part in parts:
            check(content)


@pytest.mark.parametrize("name", CONTENDERS)
def test_the_ways_of_a_file_are_drawn_with_its_numbers(name):
    check_contenders(record(name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Precision loss occurred")  # of Welch's test of equal numbers
@pytest.mark.parametrize("part", SMALL)
def test_what_the_contenders_write_is_drawn_with_its_numbers(small_contenders, part):
    check_contenders(small_contenders[part])


@pytest.mark.slow
@pytest.mark.parametrize("part", SMALL)
def test_a_row_of_the_contenders_that_lacks_a_field_is_refused(small_contenders, part):
    check_lacking(small_contenders[part])


@pytest.mark.slow
def test_rows_of_the_contenders_that_contradict_each_other_are_refused(small_contenders):
    refused = functools.partial(check_refused, small_contenders)
    refused("gradients", lambda rows: rows.append(rows[-1]), "two rows of .* at one moment")
    refused("exact", lambda rows: rows.pop(), "does not have one row a seed and moment")
    refused("train", lambda rows: rows.remove(next(r for r in rows if r["part"] == "contender")),
            "KeyError: 'twin'")  # fmt: skip


# ---------------------------------------------------------------------------------------- packing


PACKING = [path.name for path in FILES if record(path.name)["kind"] == "packing"]


def least_time(cell):
    """Seconds, and the ratio in small type if there is one."""
    number, unit, *ratio = cell.replace("\u00a0", " ").split()
    seconds = float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6}[unit]
    return seconds, float(ratio[0].rstrip("×")) if ratio else None


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKING)
def test_times_of_packing_are_those_of_the_file(built, name):
    tables = {
        f"product-{n}-{m}": [
            r for r in rows_of(name, "product") if (r["inputs"], r["outputs"]) == (n, m)
        ]
        for n, m in {(r["inputs"], r["outputs"]) for r in rows_of(name, "product")}
    }
    for table, rows in (tables | {"network": rows_of(name, "network")}).items():  # fmt: skip
        lines = built.table(name, table)
        assert [int(line[0]) for line in lines] == [row["batch"] for row in rows]
        for line, row in zip(lines, rows, strict=True):
            floats = min(row["seconds"]["float32"])
            for cell, (side, both) in zip(line[1:], row["seconds"].items(), strict=True):
                seconds, ratio = least_time(cell)
                assert seconds == pytest.approx(min(both), rel=0.006)
                if side != "float32":
                    assert ratio == pytest.approx(floats / min(both), rel=0.006)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKING)
def test_layers_and_memory_of_packing_are_those_of_the_file(built, name):
    rows = rows_of(name, "profile")
    for side in {row["side"] for row in rows}:
        own = {(r["layer"], r["batch"]): min(r["seconds"]) for r in rows if r["side"] == side}
        batches = sorted({batch for _, batch in own})
        for line in built.table(name, f"profile-{side}"):
            layer = int(line[0].split()[0])
            for cell, batch in zip(line[1:], batches, strict=True):
                assert least_time(cell)[0] == pytest.approx(own[layer, batch], rel=0.006)
    for row in (r for r in rows_of(name, "memory") if "arrays" in r):
        cells = one(built.table(name, "memory"), row["form"])[1:]
        peak = row["peak_mib"] and row["peak_mib"] * 2**20
        for cell, number in zip(cells, (row["arrays"], row["file"], peak), strict=True):
            if number is not None:
                digits, unit = cell.replace("\u00a0", " ").split()
                of = {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
                assert float(digits) * of == pytest.approx(number, rel=0.006)
    (bandwidth,), (own,) = rows_of(name, "bandwidth"), rows_of(name, "prediction")
    facts = built.facts(name)
    number, unit = re.search(r"a sum reads ([\d.]+)\s([MG]B) a second", facts["Memory"]).groups()
    rate = bandwidth["bytes"] / bandwidth["seconds"][0]
    assert float(number) * {"MB": 1e6, "GB": 1e9}[unit] == pytest.approx(rate, rel=0.006)
    said = f"{own['images']} images of {own['data']}, {own['right']} right"
    assert facts["Predictions"].startswith(said)
    assert facts["Predictions"].endswith(f"float32 {own['same']}, with bytes {own['same_int8']}")


# autoencoders: files of the book, and small ones as the command writes them


AUTOENCODERS = [path.name for path in FILES if record(path.name)["kind"] == "autoencoders"]
CODED = ("train", "small", "gradients", "retrieval")


@pytest.fixture(scope="module")
def small_autoencoders(tmp_path_factory):
    """part -> a record of few, short trainings."""
    from dataclasses import replace

    from sbnlib.experiments import autoencoders, code_gradients, retrieval
    from sbnlib.experiments.coders import SETTINGS

    folder = tmp_path_factory.mktemp("autoencoders")
    common = ["--data", "digits", "--resume-dir", str(folder)]
    lengths = ["--epochs", "2", "--search-epochs", "1"]
    chosen = ["--chosen", str(folder / "train.json")]
    own = {"train": ["--only", "zgr", "straight_through", "arm", "twin", *lengths]}
    own |= {"small": ["--only", "exact", "zgr", *lengths], "gradients": chosen, "retrieval": chosen}
    with pytest.MonkeyPatch.context() as patch:
        for part in SETTINGS:
            patch.setitem(SETTINGS, part, replace(SETTINGS[part], bits=3))
        for module in (autoencoders, retrieval):
            patch.setattr(module, "SEEDS", 3)
        patch.setattr(retrieval, "BITS", (3, 9))
        for name, number in {"EPOCHS": (0, 1), "IMAGES": 4, "GROUPS": 4, "SAMPLES": 10}.items():
            patch.setattr(code_gradients, name, number)
        patch.setattr(code_gradients, "RUNS", ((3, "exact"), (3, "zgr"), (9, "zgr")))
        for part in CODED:
            out = ["--out", str(folder / f"{part}.json")]
            assert autoencoders.main(["--part", part, *own[part], *common, *out]) == 0
    return {part: json.loads((folder / f"{part}.json").read_text()) for part in CODED}


def check_bounds(content):
    tables, rows = drawn_tables(content), content["rows"]
    summaries = [r for r in rows if r["part"] == "summary"]
    for data in dict.fromkeys(r["data"] for r in summaries):
        lines = tables[f"bound-{data}"]
        names = [r["name"] for r in summaries if r["data"] == data]
        assert [line[0].split()[0] for line in lines] == names
        for line, name in zip(lines, names, strict=True):
            final = [r for r in rows
                     if (r["part"], r["data"], r["name"]) == ("final", data, name)]  # fmt: skip
            assert f"{len(final)} seeds" in line[0] and value(line[1]) == final[0]["lr"]
            keys = ["loss", "misfit", "kl", "sign", "undecided"]
            keys += (
                ["nll"] if all("nll" in r["test"] for r in summaries if r["data"] == data) else []
            )
            wanted = [("train", "loss"), *(("test", key) for key in keys)]
            for cell, (split, key) in zip(line[2:], wanted, strict=True):
                mean, se = mean_se([r[split][key] for r in final])
                assert told(cell, mean, se) if se else close(cell, mean) or mean == 0


def check_looks(content):
    tables, rows = drawn_tables(content), content["rows"]
    epochs = sorted({r["epoch"] for r in rows})
    for bits in {r["bits"] for r in rows}:
        for table in ("one", "many", "deviation", "reference"):
            part = "reference" if table == "reference" else "gradients"
            lines = {}
            for r in rows:
                if (r["part"], r["bits"]) == (part, bits):
                    lines.setdefault((r["estimator"], r["trained"]), {})[r["epoch"]] = r
            shown = tables[f"{table}-{bits}"]
            for line, ((estimator, trained), of) in zip(shown, lines.items(), strict=True):
                assert line[0] == f"{estimator} trained by {trained}"
                for cell, epoch in zip(line[1:], epochs, strict=True):
                    row = of[epoch]
                    if table == "reference":
                        length, se = cell.rstrip(")").split(" (")
                        assert close(length, row["length"]) and close(se, row["se"])
                    elif row[table] is None:
                        assert cell == "–"
                    elif table == "deviation":
                        assert close(cell, row[table])
                    else:
                        se = row[f"{table}_se"]
                        assert se is None or se == 0 or told(cell, row[table], se)


def check_retrieval(content):
    tables, rows = drawn_tables(content), content["rows"]
    for bits in {r["bits"] for r in rows}:
        codes = {}
        for r in (r for r in rows if r["bits"] == bits):
            codes.setdefault((r["name"], r["code"]), []).append(r)
        lines = tables[f"retrieval-{bits}"]
        for line, ((name, code), own) in zip(lines, codes.items(), strict=True):
            assert line[0].split()[0] == name and ("real code" in line[0]) == (code == "real")
            *within, nearest, ap = line[1:]
            check_percent(nearest, [r["nearest"] for r in own])
            if code == "real":
                assert {*within, ap} == {"–"}
                continue
            check_percent(ap, [r["map"] for r in own])
            for k, cell in enumerate(within):
                precision, empty = cell.rstrip(")").rsplit(" (", 1)
                check_percent(precision, [r["within"][k] for r in own])
                assert fixed(empty, 100 * np.mean([r["empty"][k] for r in own]), 1)


def check_percent(cell, shares):
    """In percent, with the error over the seeds where they tell one."""
    values = [100 * share for share in shares]
    if len(set(values)) > 1:
        assert told(cell, *mean_se(values))
    else:
        assert close(cell.split()[0], values[0])


def check_autoencoders(content):
    parts = {r["part"] for r in content["rows"]}
    for part, check in (("summary", check_bounds), ("gradients", check_looks),
                        ("retrieval", check_retrieval)):  # fmt: skip
        if part in parts:
            check(content)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_the_autoencoders_of_a_file_are_drawn_with_its_numbers(name):
    check_autoencoders(record(name))


@pytest.mark.slow
@pytest.mark.parametrize("part", CODED)
def test_what_the_autoencoders_write_is_drawn_with_its_numbers(small_autoencoders, part):
    check_autoencoders(small_autoencoders[part])


@pytest.mark.slow
@pytest.mark.parametrize("part", CODED)
def test_a_row_of_the_autoencoders_that_lacks_a_field_is_refused(small_autoencoders, part):
    check_lacking(small_autoencoders[part])


@pytest.mark.slow
def test_rows_of_the_autoencoders_that_contradict_each_other_are_refused(small_autoencoders):
    refused = functools.partial(check_refused, small_autoencoders)
    refused("gradients", lambda rows: rows.append(rows[-1]), "two rows of .* at one moment")
    refused("train", lambda rows: rows.remove(next(r for r in rows if r["part"] == "final")),
            "has 2 final runs, its summary 3")  # fmt: skip


def by_welch(name):
    return any("minus_twin_p" in row for row in rows_of(name, "summary"))


CLASSIFIED = [path.name for path in FILES if record(path.name)["kind"] == "classify"]
WEIGHTS = [path.name for path in FILES if record(path.name)["kind"] == "binary weights"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIED)
def test_accuracies_are_those_of_the_runs(built, name):
    final, lines = rows_of(name, "final"), built.table(name, "accuracy")
    twin = [r["test"]["tanh"] for r in final if r["model"] == "tanh"]
    predictions = [p for r in (final[0], final[-1]) for p in r["test"]]
    assert [line[0].split()[0] for line in lines] == predictions
    for prediction in predictions:
        values = [r["test"][prediction] for r in final if prediction in r["test"]]
        gap = None if prediction == "tanh" else twin
        check_accuracy(one(lines, prediction)[1:], values, gap, welch=by_welch(name))
    settings = built.facts(name)["Settings"].split("; ")
    for words_, model in zip(settings, ("sbn", "tanh"), strict=True):
        chosen = next(r for r in final if r["model"] == model)
        tried = len([r for r in rows_of(name, "search") if r["model"] == model]) or 1
        assert words_ == (f"{model}: {tried} tried, chosen learning rate {chosen['lr']}, "
                          f"initial gain {chosen['init_gain']:g}")  # fmt: skip
    check_test_images(built, name, 10_000 if "fashion" in name else 359)


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_accuracies_of_binary_weights_are_those_of_the_runs(built, name):
    final, lines = rows_of(name, "final"), built.table(name, "accuracy")
    methods = list(dict.fromkeys(r["method"] for r in final))
    tests = {m: [r["test"] for r in final if r["method"] == m] for m in methods}
    assert [line[0].split()[0] for line in lines] == methods
    for method in methods:
        _, setting, *cells = one(lines, method)
        twin = None if method == "real" else tests["real"]
        check_accuracy(cells, tests[method], twin, welch=True)
        chosen = next(r for r in final if r["method"] == method)
        numbers = [chosen["lr"], chosen["other"]] if chosen["other"] else [chosen["lr"]]
        assert [value(v) for v in setting.split(", ")] == pytest.approx(numbers)
    check_test_images(built, name, 10_000 if "fashion" in name else 359)


def check_test_images(built, name, images):
    """What another draw of the test images would change: the binomial error at the lowest mean."""
    if not by_welch(name):
        assert "Test images" not in built.facts(name)
        return
    rows = rows_of(name, "summary")
    worst = max(math.sqrt(r["mean"] * (1 - r["mean"]) / images) for r in rows)
    said = built.facts(name)["Test images"]
    assert said.startswith(f"{images:,}; ".replace(",", " "))
    assert f"{100 * worst:.2f} points" in said


# the packed network


NETWORK = MEASUREMENTS / "binary-weights-512-512.npz"


def test_the_packed_network_is_the_one_that_the_page_describes():
    content, words_ = NETWORK.read_bytes(), " ".join(PAGE.read_text("utf-8").split())
    assert f"sha256 {hashlib.sha256(content).hexdigest()}" in words_
    assert f"{len(content):,} bytes".replace(",", " ") in words_
    with np.load(NETWORK, allow_pickle=False) as file:
        assert [file[f"shape{k}"].tolist() for k in (1, 2)] == [[512, 784], [512, 512]]
        assert file["head_weight"].shape == (10, 512)
        about = json.loads(str(file["about"]))
        assert about["epochs"] == 15
    better = max(
        ("weights-mirror", "weights-bc"),
        key=lambda name: np.mean([
            r["validation"]["sign"] for r in rows_of("contenders-train.json", "final")
            if r["name"] == name
        ]),
    )  # fmt: skip
    assert about["name"] == better


def test_the_packed_network_classifies_the_images_of_the_package():
    """By numpy, from the bits; the thousand images are of the 10 000, or near them."""
    test = datasets.load("fashion-mnist-4000").test
    with np.load(NETWORK, allow_pickle=False) as file:
        a = test.inputs.numpy()
        for k in (1, 2):
            outputs, inputs = file[f"shape{k}"]
            bits = np.unpackbits(file[f"bits{k}"], axis=1)[:, :inputs]
            a = a @ (2.0 * bits.reshape(outputs, inputs) - 1).T
            a = (a - file[f"mean{k}"]) / np.sqrt(file[f"var{k}"] + file["eps"])
            a = np.where(a * file[f"scale{k}"] + file[f"shift{k}"] >= 0, 1.0, -1.0)
        guess = (a @ file["head_weight"].T + file["head_bias"]).argmax(1)
    right = guess == test.labels.numpy()
    assert abs(right.mean() - 0.8861) < 3 * math.sqrt(0.8861 * 0.1139 / len(right))
    found = binary_net.load_net(NETWORK)(test.inputs).argmax(-1).numpy()
    assert (found == guess).mean() > 0.998  # rounding of a sum that is near 0


# gpu


GPU = [path.name for path in FILES if record(path.name)["kind"] == "gpu"]
every_gpu = pytest.mark.parametrize("name", GPU)


@pytest.mark.slow
@every_gpu
def test_ceilings_are_those_of_the_file(built, name):
    copy_, product = built.table(name, "ceilings")
    (kept,) = rows_of(name, "copy")
    assert close(copy_[0].partition(", ")[2], kept["bytes"]) and close(copy_[1], kept["seconds"])
    assert copy_[2].endswith(" GB/s") and close(copy_[2], kept["bytes"] / kept["seconds"])
    (kept,) = rows_of(name, "bf16 product")
    assert close(product[1], kept["seconds"]) and product[2].endswith(" TFLOP/s")
    assert close(product[2], 2 * kept["n"] ** 3 / kept["seconds"] / 1e12)


@pytest.mark.slow
@every_gpu
def test_times_over_a_copy_are_those_of_the_file(built, name):
    lines = iter(built.table(name, "copy"))
    for kept in rows_of(name, "sample_sign") + rows_of(name, "straight_through"):
        what, units, seconds, copy_, ratio, spread = next(lines)
        assert all(w in what for w in (kept.get("how", ""), kept.get("direction", "sample_sign")))
        assert value(units) == kept["elements"] and close(seconds, kept["seconds"])
        assert close(copy_, kept["copy_seconds"]) and ratio.endswith("× the time")
        assert close(ratio, kept["seconds"] / kept["copy_seconds"])
        assert spread == "< 0.1 %" if kept["spread"] < 5e-4 else fixed(
            spread[:-2], 100 * kept["spread"], 1)  # fmt: skip
    assert next(lines, None) is None


def test_the_fused_sampler_is_drawn_as_it_was_measured():
    """No file that is kept has its rows yet, so these are made up."""
    timed = {"elements": 2**28, "seconds": 3e-4, "spread": 0.002, "copy_seconds": 2e-4,
             "ratio": 1.5}  # fmt: skip
    rows = [
        {"part": "fused sampler", "backend": "triton"},
        {"part": "fused parity", "noise": "Cauchy", "draws": 4096, "flips": 3, "limit": 20.4},
        {"part": "fused tails", "logit": -18.42, "draws": 2**31, "found": 20, "expected": 21.47,
         "least": 3, "most": 48},
        {"part": "fused beyond int32", "units": 2**31 + 4},
        {"part": "fused", "what": "fused forward int8", "bytes_an_element": 5} | timed,
    ]  # fmt: skip
    content = copy.deepcopy(record(H100))
    content["rows"] += rows
    drawing = sbn_tables.draw(content)
    drawn = {table.name: table for table in drawing.tables}
    (time_,) = drawn["fused"].rows
    assert time_[0] == "fused forward int8" and time_[2] == "5" and "1.5" in time_[5]
    assert drawn["fused-states"].rows[0][2:] == ["3", "20"]
    assert drawn["fused-tails"].rows[0][2:] == ["20", "21.5", "3", "48"]
    assert drawing.facts["Fused sampler"] == "triton"
    assert drawing.facts["Its longest draw"].split() == ["2", "147", "483", "652", "units"]
    for row in rows:
        for key in row.keys() - {"part"}:
            without = {k: v for k, v in row.items() if k != key}
            with pytest.raises(sbn_tables.Undrawable):
                sbn_tables.draw(content | {"rows": [*record(H100)["rows"], without]})
    left = {"part": "fused beyond int32", "units": 2**31, "left_out": "needs about 8 GiB"}
    notes = sbn_tables.draw(content | {"rows": [*rows, left]}).notes
    assert "needs about 8 GiB" in " ".join(notes)


def test_live_frames_and_memory_are_drawn_as_they_were_measured():
    """No file that is kept has these rows yet, so they are made up."""
    rows = [
        {"part": "live frame", "what": "gradients", "count": 10**7, "seconds": 0.2, "spread": 0.01},
        {"part": "measure, memory", "samples": 10**8, "peak_bytes": 3 << 30},
        {"part": "search", "trainings": 24, "net": "784-512-512-10", "seconds": 0.03,
         "one_by_one_seconds": 0.36, "ratio": 12.0},
    ]  # fmt: skip
    content = copy.deepcopy(record(H100))
    content["rows"] += rows
    drawing = sbn_tables.draw(content)
    (line,) = next(table.rows for table in drawing.tables if table.name == "frames")
    assert line[0] == "gradients" and line[1] == "10⁷"
    assert line[2].split() == ["200", "ms"]
    (line,) = next(table.rows for table in drawing.tables if table.name == "search")
    assert line[:2] == ["24", "784-512-512-10"] and "12" in line[4]
    failed = {"part": "search", "error": "No module named 'lightning_fabric'"}
    notes = sbn_tables.draw(content | {"rows": [*content["rows"], failed]}).notes
    assert "No module named" in " ".join(notes)
    assert drawing.facts["Memory of the statistics"].split()[:2] == ["3.22", "GB"]


@pytest.mark.slow
@every_gpu
def test_frequencies_are_those_of_the_file(built, name):
    lines = built.table(name, "frequencies")
    assert len(lines) == len(rows_of(name, "frequencies"))
    for kept in rows_of(name, "frequencies"):
        noise, draws, z, limit = one(lines, kept["noise"])
        assert value(draws) == kept["draws"]
        assert fixed(z, kept["largest_z"], 2) and fixed(limit, kept["limit"], 1)
    (line,), (kept,) = built.table(name, "rare"), rows_of(name, "rare events")
    assert value(line[0]) == kept["draws"] and line[1] == str(kept["found"])
    assert close(line[2], kept["expected"]) and line[3] == str(kept["limit"])
    assert kept["expected"] / kept["draws"] == pytest.approx(1e-9, rel=1e-3)  # as the caption says


@pytest.mark.slow
@every_gpu
def test_statistics_are_those_of_the_file(built, name):
    pairs = zip(built.table(name, "statistics"), rows_of(name, "measure"), strict=True)
    for (what, gpu, cpu, ratio, z, limit, memory), kept in pairs:
        estimator, _, samples = what.partition(" ")
        assert (estimator, value(samples)) == (kept["estimator"], kept["samples"])
        assert close(memory, kept["peak_bytes"])
        assert close(gpu, kept["seconds"]) and close(cpu, kept["cpu_seconds"])
        assert ratio.endswith("× as fast") and close(ratio, kept["cpu_seconds"] / kept["seconds"])
        assert fixed(z, kept["largest_z"], 2) and fixed(limit, kept["limit"], 1)


@pytest.mark.slow
@every_gpu
def test_exact_sums_are_those_of_the_file(built, name):
    pairs = zip(built.table(name, "exact"), rows_of(name, "exact_gradient"), strict=True)
    for (net, gpu, cpu, ratio, difference, memory), kept in pairs:
        assert net == f"{kept['layers']} layers of {kept['units']}"
        assert close(gpu, kept["seconds"])
        assert close(memory, kept["peak_bytes"])
        if "cpu_seconds" not in kept:
            assert (cpu, ratio, difference) == ("–", "–", "–")
        else:
            assert close(cpu, kept["cpu_seconds"]) and close(difference, kept["difference"], 2)
            assert close(ratio, kept["cpu_seconds"] / kept["seconds"])


@pytest.mark.slow
@every_gpu
def test_estimators_on_a_gpu_are_those_of_the_file(built, name):
    lines = built.table(name, "estimators")
    assert len(lines) == len(rows_of(name, "estimator"))
    for kept in rows_of(name, "estimator"):
        _, samples, seconds, z, limit = one(lines, kept["name"])
        assert value(samples) == kept["samples"] and close(seconds, kept["seconds_once"])
        assert fixed(z, kept["largest_z"], 2) and fixed(limit, kept["limit"], 1)
    (environment,) = rows_of(name, "environment")
    assert built.facts(name)["CPU beside it"] == environment["cpu"]
    assert environment["driver"] in built.facts(name)["Machine"]


# -------------------------------------------------------------------------------- the sentences


def gap_in_points(prediction):
    final = rows_of(FASHION, "final")
    twin = [r["test"]["tanh"] for r in final if r["model"] == "tanh"]
    ours = [r["test"][prediction] for r in final if r["model"] == "sbn"]
    mean, se = mean_se([a - b for a, b in zip(ours, twin, strict=True)])
    return f"{100 * abs(mean):.2f} ± {100 * se:.2f}", mean > 0


def error_over_images(accuracy, count):
    return round(100 * math.sqrt(accuracy * (1 - accuracy) / count), 1)


def ratio_on_the_h100(part, **fields):
    rows = rows_of(H100, part)
    return [r["ratio"] for r in rows if all(r[k] == v for k, v in fields.items())]


def seeds_of(name, model):
    final = [r for r in rows_of(name, "final") if r["model"] == model]
    return [100 * mean_se([r["test"][p] for r in final])[1] for p in final[0]["test"]]


def grows_once_it_is_above_one():
    ratios = record("exact-cost.json")["ratios"]
    widths = {}
    for name, ratio in ratios.items():
        layers, width = map(int, re.findall(r"\d+", name))
        widths.setdefault(layers, {})[width] = ratio
    series = [[found[n] for n in sorted(found)] for found in widths.values()]
    assert all(found[0] < 1 for found in series)
    return all(b > a for found in series for a, b in zip(found, found[1:], strict=False) if a > 1)


CLAIMS = {
    "for small nets nothing, and for larger ones a factor that grows with each unit":
        grows_once_it_is_above_one,
    "has ten thousand test images, and near 89\u00a0% the error over their choice is 0.3 points":
        lambda: error_over_images(0.89, 10_000) == 0.3,
    "a single sample of the network falls behind the twin by 0.83 ± 0.07 points":
        lambda: gap_in_points("one") == ("0.83 ± 0.07", False),
    "the average of ten is ahead of it by 0.27 ± 0.07":
        lambda: gap_in_points("ten") == ("0.27 ± 0.07", True),
    "In the run on an H100 all 44 checks held.":
        lambda: list(record(H100)["checks"].values()) == [True] * 44,
    "straight-through takes 20 times as long as the copy in its forward pass":
        lambda: [round(r) for r in ratio_on_the_h100(
            "straight_through", how="eager", direction="forward")] == [20],
    "Compiled, and with its uniform numbers handed in, it is as fast as a copy":
        lambda: all(0.95 < r < 1.05 for r in ratio_on_the_h100(
            "straight_through", how="compiled, u handed in")),
    "the statistics gain a factor of about two":
        lambda: {round(r) for r in ratio_on_the_h100("measure")} == {2},
    "an exact gradient a factor of 85 with 16 units a layer":
        lambda: [round(r) for r in ratio_on_the_h100("exact_gradient", units=16)] == [85],
    "with 8 units the CPU is ahead":
        lambda: max(ratio_on_the_h100("exact_gradient", units=8)) < 1,
    "Against 16 threads of a CPU":
        lambda: rows_of(H100, "environment")[0]["cpu"].endswith(", 16 threads"),
    "moves the accuracy of one network by 0.8 points or more, which is more than the seeds do":
        lambda: min(100 * r["image_se"] for r in rows_of("classify-digits.json", "summary"))
        > max(0.75, *seeds_of("classify-digits.json", "sbn"),
              *seeds_of("classify-digits.json", "tanh")),
    "each one gets fifteen trials":
        lambda: {len([r for r in rows_of("weights-digits.json", "search") if r["method"] == m])
                 for m in {r["method"] for r in rows_of("weights-digits.json")}} == {15},
    "it classifies 0.8861 of the 10 000 test images right": lambda: trained() == 0.8861,
}  # fmt: skip


def trained():
    """The accuracy of the packed network, as its file has it."""
    with np.load(NETWORK, allow_pickle=False) as file:
        return round(json.loads(str(file["about"]))["test"], 4)


@pytest.mark.parametrize("phrase", CLAIMS)
def test_what_the_text_says_of_a_run_holds(phrase):
    assert phrase in PAGE.read_text("utf-8")
    assert CLAIMS[phrase]()


def test_a_number_of_the_text_is_in_one_of_these_claims():
    """Decimals, and percentages: whoever writes another one adds the claim to the list."""
    text = PAGE.read_text("utf-8")
    for phrase in CLAIMS:
        text = text.replace(phrase, "")
    assert re.findall(r"\d+\.\d+|\d+\W?%", text) == []


def test_the_fields_on_the_page_are_those_of_the_schema():
    text = PAGE.read_text("utf-8").partition("(measure-file)=")[2]
    assert re.findall(r"^\* `(\w+)`: ", text, re.M) == measurement.SCHEMA["required"]
    assert "with the ten fields below" in text and len(measurement.SCHEMA["required"]) == 10


# ------------------------------------------------------------------------------ the experiments


@every_experiment
def test_an_experiment_has_a_section_and_makes_files_of_its_own(name):
    text, experiment = PAGE.read_text("utf-8"), EXPERIMENTS[name]
    assert text.count(f"(measure-{name})=\n") == 1
    assert text.count(f"```{{sbn-measurements}} {name}\n```") == 1
    out = Path(experiment.command.partition(" --out ")[2])
    assert out.parent == Path("book/measurements")
    owners = [e.name for e in EXPERIMENTS.values() if fnmatch(out.name, e.pattern)]
    assert owners == [name] and experiment.kind in sbn_tables.KINDS


def test_a_file_belongs_to_one_experiment():
    for path in FILES:
        assert len([e for e in EXPERIMENTS.values() if fnmatch(path.name, e.pattern)]) == 1


@pytest.mark.parametrize("kind", ["classify", "weights"])
def test_a_part_of_a_data_set_is_another_data_set(kind):
    whole_, part = f"{kind}-fashion-mnist", f"{kind}-fashion-mnist-4000"
    for end in (".json", "-h100-2026-11-27.json", "-a-cpu.json"):
        assert sbn_measurements.owner(f"{whole_}{end}") is EXPERIMENTS[whole_]
        assert sbn_measurements.owner(f"{part}{end}") is None


def overview(built):
    """What the table of experiments says of each: (its command, where it was measured)."""
    found = {}
    for name in EXPERIMENTS:
        what, where = built.soup.find("tr", id=f"experiment-{name}").find_all("td")
        found[name] = what.code.get_text(), words(where)
    return found


def check_overview(built, names):
    """``not measured yet`` stands where there is no file, with the command, and nowhere else."""
    missing = [
        name for name, e in EXPERIMENTS.items() if not any(fnmatch(n, e.pattern) for n in names)
    ]
    said = overview(built)
    assert [name for name, (_, where) in said.items() if where == "not measured yet"] == missing
    assert built.soup.get_text().lower().count("not measured yet") == 2 * len(missing)
    for name in missing:
        assert said[name][0] == EXPERIMENTS[name].command
        anchor = built.soup.find(id=f"measure-{name}")
        section = anchor if anchor.name == "section" else anchor.find_parent("section")
        blocks = [b.pre.get_text() for b in section.find_all("div", class_="sbn-command")]
        assert blocks == [EXPERIMENTS[name].command] and "Not measured yet." in words(section)
    return missing


@pytest.mark.slow
def test_what_has_no_file_is_not_measured_yet(built):
    check_overview(built, [path.name for path in FILES])


@pytest.mark.slow
def test_the_table_names_the_runs_each_machine_and_day_once(built):
    for name, (command, _) in overview(built).items():
        assert command == EXPERIMENTS[name].command
        _, where = built.soup.find("tr", id=f"experiment-{name}").find_all("td")
        said = [words(line) for line in where.find_all("p")]
        assert len(set(said)) == len(said)
        for path in FILES:
            if fnmatch(path.name, EXPERIMENTS[name].pattern):
                day = datetime.fromisoformat(record(path.name)["date"])
                device = record(path.name)["device"]
                assert any(line == f"{device} {day.day} {day:%B %Y}" for line in said)


COMMANDS = sorted({record(path.name)["command"] for path in FILES}
                  | {e.command for e in EXPERIMENTS.values()})  # fmt: skip


@functools.cache
def help_of(module):
    """What ``python -m module --help`` prints; of a module that starts another's, the other's."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main(["--help"])
    assert stop.value.code == 0
    return said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_the_page_can_be_given(built, command):
    blocks = [b.pre.get_text() for b in built.soup.find_all("div", class_="sbn-command")]
    assert command in blocks or command in [c for c, _ in overview(built).values()]
    module = re.fullmatch(r"python -m (sbnlib[\w.]*)(?: .*)?", command)[1]
    assert importlib.util.find_spec(module) is not None
    for option in re.findall(r"(?<= )--[\w-]+", command):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_of(module)), option


@pytest.mark.slow
def test_no_other_command_is_on_the_page(built):
    blocks = [b.pre.get_text() for b in built.soup.find_all("div", class_="sbn-command")]
    assert {*blocks, *(c for c, _ in overview(built).values())} == set(COMMANDS)


# ---------------------------------------------------------------------- what commands write now


NOW = {
    "bench": "experiments.bench --quick --only step step-zgr step-darn step-arm cost-samples "
    "peer-reinmax",
    "exact-cost": "experiments.exact_cost --most 64",
    "classify": "experiments.classify --data digits --hidden 4 --seeds 2 --epochs 1 --lr 0.01 "
    "--init-gain 1 3",
    "binary weights": "experiments.weights --data digits --seeds 2 --epochs 1 --methods bop",
    "width law": "experiments.width_law --nets 3 --layers 1 2 --widths 2 4 5 --sampled-layers 2 "
    "--sampled-widths 4 8 --samples 40",
    "variance law": "experiments.width_law --of variance --nets 3 --layers 1 2 --widths 2 4 5 "
    "--sampled-layers 2 --sampled-widths 4 8 --samples 40",
    "how deep": "experiments.how_deep --part predictions",
    "contenders": "experiments.contenders --part train --data digits --only conv-tanh conv-st "
    "--epochs 1 --search-epochs 1",
    "packing": "experiments.packing --quick --data fashion-mnist-4000",
    "autoencoders": "experiments.autoencoders --part small --data digits --only exact zgr "
    "--epochs 1 --search-epochs 1",
    "improvements": "experiments.improvements --part gauge",
    "characters": "experiments.characters --steps 5 --seeds 2 --only real uniform",
    "gpu": "experiments.gpu --device cpu --tiny",
}


def test_the_kinds_are_those_of_the_commands():
    assert set(NOW) == set(sbn_tables.KINDS) == {e.kind for e in EXPERIMENTS.values()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOW)
def test_what_a_command_writes_today_can_be_drawn(kind, tmp_path, monkeypatch):
    module, *options = NOW[kind].split()
    out = tmp_path / "new.json"
    resumes = kind in ("classify", "binary weights", "contenders", "autoencoders", "improvements",
                       "characters")  # fmt: skip
    resume = ["--resume-dir", str(tmp_path / "runs")] if resumes else []
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # it takes its time
    command = importlib.import_module(f"sbnlib.{module}")
    assert command.main([*options, *resume, "--out", str(out)]) == 0
    found = measurement.read(out)
    assert found["kind"] == kind
    drawing = sbn_tables.draw(found)
    assert drawing.tables and all(table.rows for table in drawing.tables)
    assert {len(row) - len(t.head) for t in drawing.tables for row in t.rows} == {0}


# ------------------------------------------------------------------------------------ bad input


def changed(name, change):
    content = copy.deepcopy(record(name))
    change(content)
    return json.dumps(content).encode()


def drop(part, key):
    """Take a field out of the first row of a part."""

    def change(content):
        row = next(r for r in content["rows"] if part in (None, r.get("part")))
        del row[key]

    return change


def put(**fields):
    return lambda content: content.update(fields)


def in_row(which, change):
    """Change the first row of which this is true."""

    def change_it(content):
        change(next(row for row in content["rows"] if which(row)))

    return change_it


def ratio_as(text):
    """The benchmark with this in place of its first number called ratio."""
    return re.sub(rb'"ratio": [\d.]+', b'"ratio": ' + text.encode(), whole("bench.json"), count=1)


def whole(name):
    return (MEASUREMENTS / name).read_bytes()


#: name of a file that must not be drawn -> (its content, what the warning says).
BAD = {
    "bench-cut.json": (whole("bench.json")[:5000], "cut off"),
    "bench-empty.json": (b"", "cut off"),
    "bench-list.json": (b"[]", "expected object"),
    "bench-schema.json": (b'{"results": [1, 2], "name": "x"}', "'kind' is missing"),
    "bench-nan.json": (ratio_as("NaN"), "holds NaN"),
    "bench-infinity.json": (ratio_as("-Infinity"), "holds -Infinity"),
    "bench-huge.json": (ratio_as("1e999"), "holds 1e999"),
    "bench-kind.json": (changed("bench.json", put(kind="surprise")), "'surprise'"),
    "bench-date.json": (changed("bench.json", put(date="last week")), "last week"),
    "bench-field.json": (changed("bench.json", drop(None, "ratio")), "row 0: 'ratio' is missing"),
    "bench-null.json": (
        changed("bench.json", in_row(lambda r: True, lambda r: r.update(ours=None))),
        "'ours' is not a text"),
    "bench-nothing.json": (
        changed("bench.json", in_row(lambda r: r["ratio"] is None, lambda r: r["details"].clear())),
        "nothing to draw in "),
    "bench-met.json": (
        changed("bench.json", in_row(
            lambda r: r["met"] is not None, lambda r: r.update(met=not r["met"]))),
        "'met' does not follow"),
    "bench-ratio.json": (
        changed("bench.json", in_row(
            lambda r: r["ours_s"] and not r["target"], lambda r: r.update(ratio=2 * r["ratio"]))),
        "the ratio is not that of its times"),
    "bench-no-rows.json": (changed("bench.json", put(rows=[])), "no row that could be drawn"),
    "exact-cost-way.json": (
        changed("exact-cost.json", lambda c: c["rows"][0].update(way="magic")), "magic"),
    "classify-digits-field.json": (
        changed("classify-digits.json", drop("summary", "se")), "'se' is missing"),
    "classify-digits-weights.json": (whole("weights-digits.json"), "'binary weights'"),
    "weights-digits-field.json": (
        changed("weights-digits.json", drop("final", "lr")), "'lr' is missing"),
    "gpu-field.json": (changed(H100, drop("copy", "seconds")), "'seconds' is missing"),
    "width-law-method.json": (
        changed("width-law.json", lambda c: c["rows"][0].update(method="guess")), "guess"),
    "width-law-nets.json": (
        changed("width-law.json", lambda c: c["rows"][0].update(nets=7)), "networks"),
    "variance-law-field.json": (
        changed("variance-law.json", drop("fit", "chi2")), "'chi2' is missing"),
    "gpu-part.json": (
        changed(H100, lambda c: c["rows"].append({"part": "miracle"})), "'miracle'"),
    "surprise.json": (changed("bench.json", put(kind="surprise")), "no experiment of the page"),
}  # fmt: skip
GONE = "weights-digits.json"


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """The page with all the bad files beside the good ones, but for one that is gone."""
    good = contents(path for path in FILES if path.name != GONE)
    bad = {name: content for name, (content, _) in BAD.items()}
    return Built(tmp_path_factory.mktemp("spoilt"), good | bad)


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_not_drawn(spoilt, name):
    assert spoilt.status != 0
    said = [line for line in spoilt.warnings.splitlines() if f" {name} is not drawn: " in line]
    assert len(said) == 1 and BAD[name][1] in said[0], said or spoilt.warnings
    assert spoilt.drawn(name) is None
    assert not spoilt.soup.find_all("a", string=name)


@pytest.mark.slow
def test_bad_files_are_all_that_the_build_warns_of(spoilt):
    warned = re.findall(r"WARNING: (\S+) ", spoilt.warnings)
    assert sorted(warned) == sorted(BAD)


@pytest.mark.slow
@every_file
def test_the_rest_of_the_page_is_drawn_beside_bad_files(spoilt, built, path):
    if path.name != GONE:

        def numbers(page):
            return re.sub(r"Table \d+ ", "", words(page.drawn(path.name)))

        assert numbers(spoilt) == numbers(built)


@pytest.mark.slow
def test_a_bad_file_is_no_measurement_and_no_lack_of_one(spoilt):
    names = [path.name for path in FILES if path.name != GONE] + list(BAD)
    check_overview(spoilt, names)
    assert "weights-digits-field.json cannot be drawn" in overview(spoilt)["weights-digits"][1]


@pytest.mark.slow
def test_an_experiment_without_a_file_says_so(tmp_path):
    """As on the day before the first run; then one file appears, and is drawn."""
    empty = Built(tmp_path / "before", {})
    assert (empty.status, check_overview(empty, [])) == (0, list(EXPERIMENTS))
    name = "weights-fashion-mnist.json"
    after = Built(tmp_path / "after", {name: whole("weights-digits.json")})
    assert after.status == 0 and after.drawn(name) is not None
    assert "weights-fashion-mnist" not in check_overview(after, [name])


#: Fields of rows that may be missing: they are not drawn, or stand for what was not measured.
SINCE_0_2 = {"images", "image_se", "minus_twin_p"}
NOT_NEEDED = {
    "bench": {"difference"},
    "exact-cost": set(),
    "classify": {"validation_loss", "minus_twin_df"} | SINCE_0_2,
    "width law": set(),
    "variance law": set(),
    "binary weights": {"validation", "validation_loss", "minus_twin", "minus_twin_df"} | SINCE_0_2,
    "how deep": {"scale", "overlap", "validation", "one", "sign", "data"}
    | {"difference", "ratio", "above", "error"},
    "contenders": {"minus_twin_df", "minus_twin_p"},
    "packing": set(),
    "autoencoders": set(),
    "improvements": set(),
    "characters": {"said"},
    "gpu": {"capability", "memory_bytes", "multiprocessors", "driver"},
}


def check_refused(files, part, change, said):
    """A file whose rows were changed is not drawn, and it is said why."""
    content = copy.deepcopy(files[part])
    change(content["rows"])
    with pytest.raises(sbn_tables.Undrawable, match=said):
        sbn_tables.draw(content)


def check_lacking(content):
    """Each field of each part of a file in turn."""
    lacking, seen = set(), set()
    for k, row in enumerate(content["rows"]):
        for key in row:
            part = (row.get("part"), row.get("model") == "tanh", tuple(row), key)
            if key == "part" or part in seen:
                continue
            seen.add(part)
            without = {name: v for name, v in row.items() if name != key}
            rows = [*content["rows"][:k], without, *content["rows"][k + 1 :]]
            try:
                sbn_tables.draw(content | {"rows": rows})
            except sbn_tables.Undrawable:
                continue
            lacking.add(key)
    there = {key for row in content["rows"] for key in row}
    assert lacking == NOT_NEEDED[content["kind"]] & there


@every_file
def test_a_row_that_lacks_a_field_is_refused(path):
    check_lacking(record(path.name))


@every_file
def test_a_field_of_another_type_is_refused(path):
    content, parts = record(path.name), set()
    for k, row in enumerate(content["rows"]):
        for key in row.keys() - NOT_NEEDED[content["kind"]] - {"part"}:
            if (row.get("part"), key) in parts:
                continue
            parts.add((row.get("part"), key))
            rows = [*content["rows"][:k], row | {key: {"a": [True]}}, *content["rows"][k + 1 :]]
            if key != "details":
                with pytest.raises(sbn_tables.Undrawable):
                    sbn_tables.draw(content | {"rows": rows})


@pytest.mark.slow
def test_an_unknown_experiment_is_refused_by_name(tmp_path):
    text = PAGE.read_text("utf-8").replace("{sbn-measurements} gpu", "{sbn-measurements} cpu")
    refused, known = Built(tmp_path, {}, text), ", ".join(EXPERIMENTS)
    assert refused.status != 0
    assert f"unknown experiment 'cpu', known are {known}" in refused.warnings


# ------------------------------------------------------------------------- files of other runs


def test_what_a_run_on_a_gpu_left_out_is_said():
    content = copy.deepcopy(record(H100))
    content["rows"] += [
        {"part": "left out", "sections": ["estimators", "compiled"], "budget": 60.0},
        {"part": "error", "section": "sampler", "error": "RuntimeError: no"},
        {"part": "straight_through", "how": "compiled", "error": "no compiler"},
        {"part": "exact_gradient", "units": 20, "left_out": "needs about 80 GiB"},
    ]
    notes = " ".join(sbn_tables.draw(content).notes)
    for text in ("estimators, compiled", "RuntimeError: no", "no compiler", "needs about 80 GiB"):
        assert text in notes


def test_failed_checks_are_named():
    text = "".join(n.astext() for n in sbn_measurements.checks({"a": True, "b c": False}))
    assert text == "1 of 2 failed: b c"
    assert sbn_measurements.checks({})[0].astext() == "none"


def test_a_single_seed_has_no_error():
    content = copy.deepcopy(record("classify-digits.json"))
    for row in content["rows"]:
        errors = ("se", "minus_twin_se", "minus_twin_df", "minus_twin_p")
        row |= {key: None for key in errors if key in row}
    (table,) = sbn_tables.draw(content).tables
    assert list(table.rows[0][1:]) == ["96.82", "−0.72", "–"]
    assert list(table.rows[-1][2:]) == ["–", "–"]


def test_the_newest_run_comes_first(tmp_path):
    for name, date in (("a", "2026-01-02T00:00:00+00:00"), ("b", "2026-11-02T00:00:00+00:00")):
        path = tmp_path / f"bench-{name}.json"
        path.write_bytes(changed("bench.json", put(date=date)))
    (tmp_path / "bench-c.json").write_bytes(b"")
    found = sbn_measurements.runs(tmp_path, EXPERIMENTS["bench"])
    assert [run.path.stem for run in found] == ["bench-b", "bench-a", "bench-c"]
    assert [bool(run.fault) for run in found] == [False, False, True]


@pytest.mark.parametrize(
    "given, shown",
    [
        ("127ddc656a465a1d1bd60367003f808388747e79", "127ddc6"),
        ("127ddc656a465a1d1bd60367003f808388747e79-dirty", "127ddc6-dirty"),
        ("unknown", "unknown"),
    ],
)
def test_a_commit_is_short(given, shown):
    assert sbn_measurements.short(given) == shown


@pytest.mark.parametrize(
    "given, shown", [([0], "0"), ([0, 1], "0, 1"), ([0, 1, 2], "0 to 2"), ([0, 2, 4], "0, 2, 4")]
)
def test_seeds_in_a_row_are_a_range(given, shown):
    assert sbn_measurements.seeds(given) == shown


# ---------------------------------------------------------------------------- how numbers look


@pytest.mark.parametrize(
    "name, given, shown",
    [
        ("rounded", 12.420541986516902, "12.4"),
        ("rounded", 0.6024483398926584, "0.602"),
        ("rounded", 2113.703515128755, "2110"),
        ("rounded", 9.996, "10.0"),
        ("rounded", 0.9996, "1.00"),
        ("rounded", -1.5, "−1.50"),
        ("rounded", 0, "0"),
        ("duration", 0.0018200459999988539, "1.82\u00a0ms"),
        ("duration", 0.00018132799863815308, "181\u00a0µs"),
        ("duration", 0.0009996, "1.00\u00a0ms"),
        ("duration", 91.04, "91.0\u00a0s"),
        ("duration", 2e-9, "0.00200\u00a0µs"),
        ("size", 9426715136, "9.43\u00a0GB"),
        ("size", 436736, "437\u00a0kB"),
        ("times", 1261.056841421287, "1260×"),
        ("count", 268435456, "2²⁸"),
        ("count", 1_000_000, "10⁶"),
        ("count", 2_099_200, "2\u202f099\u202f200"),
        ("count", 2048, "2048"),
        ("count", 65536, "2¹⁶"),
        ("count", 32768, "32\u202f768"),
        ("count", 1000, "1000"),
        ("count", 10_000, "10\u202f000"),
        ("count", 0, "0"),
        ("tiny", 8.937195843393541e-14, "8.9\u00a0·\u00a010⁻¹⁴"),
        ("tiny", 0.0, "0"),
        ("setting", 1e-05, "10⁻⁵"),
        ("setting", 3e-05, "3\u00a0·\u00a010⁻⁵"),
        ("setting", 0.003, "0.003"),
        ("setting", 100000.0, "10⁵"),
        ("setting", 30, "30"),
    ],
)
def test_numbers_look_like_this(name, given, shown):
    assert getattr(sbn_tables, name)(given) == shown


@pytest.mark.parametrize(
    "share, se, shown",
    [
        (0.00268, 0.0007364781055808849, "+0.27 ± 0.07"),
        (-0.004456824512534796, 0.002428355957404282, "−0.45 ± 0.24"),
        (0.0, 0.0044915, "+0.00 ± 0.45"),
        (0.0123, None, "+1.23"),
    ],
)
def test_differences_have_a_sign(share, se, shown):
    assert sbn_tables.difference(share, se) == shown


@given(st.floats(1e-9, 1e6))
def test_three_digits_are_right_whatever_the_number(number):
    for name in ("rounded", "duration", "times"):
        shown = getattr(sbn_tables, name)(number).replace("\u00a0", " ")
        assert close(shown, number)
        if name == "duration" and number > 2e-6:
            assert 1 <= float(shown.split()[0]) < 1000 or number >= 999


# ------------------------------------------------------------------------------- the built book


@pytest.mark.site
def test_the_built_book_draws_the_files_too():
    path = SITE / "book" / "back" / "measurements.html"
    if not path.exists():
        pytest.skip("no built book: run `make book`")
    html = path.read_text("utf-8")
    assert html.count('class="sbn-measurement') == len(FILES)
    assert [p.stem for p in FILES if f'id="{sbn_id(p.stem)}"' not in html] == []
    assert "measurements.css" in html
