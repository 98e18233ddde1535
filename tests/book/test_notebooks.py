"""Every notebook of the book: its form, and that the tools which execute and compare it work.

The comparison itself is nbval's, on by default (pyproject.toml): each code cell is run again and
what it prints must be what is stored, once in their order and once more from the last to the first
(tests/support/again.py).
"""

import dis
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType

import execute
import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

from sbnlib.experiments import measurement

BOOK = sorted(p for p in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PHONE = 362  # px, the text on a phone of 390 px and a hair more
SIDE_BY_SIDE = ("01", "02", "03", "04", "05", "06", "07", "09")
each = pytest.mark.parametrize("path", BOOK, ids=lambda p: str(p.relative_to(ROOT)))


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [c for c in read(path).cells if c.cell_type == "code" and c.source.strip()]


def bundles(path):
    return [o.data for c in code_cells(path) for o in c.outputs if "data" in o]


# ------------------------------------------------------------------------------ every notebook


@each
def test_every_cell_was_executed_in_order(path):
    counts = [c.execution_count for c in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each
def test_no_error_and_no_warning_is_stored(path):
    for cell in code_cells(path):
        allowed = "raises-exception" in cell.metadata.get("tags", [])
        for output in cell.outputs:
            assert allowed or output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


@each
def test_code_fits_the_page(path):
    wide = [line for c in code_cells(path) for line in c.source.splitlines() if len(line) > 76]
    assert not wide


@pytest.mark.slow
@each
def test_file_is_in_its_stable_form(path):
    notebook = read(path)
    assert notebook.metadata == execute.settle(read(path)).metadata
    assert all("execution" not in c.metadata for c in notebook.cells)
    assert path.read_text(encoding="utf-8") == nbformat.writes(notebook, indent=1) + "\n"


@each
def test_every_picture_has_words(path):
    for data in bundles(path):
        html = data.get("text/html", "")
        if any(key.startswith("image/") for key in data) or "<svg" in html or "<img" in html:
            found = re.search(r'<div class="sbn-frame" role="img" aria-label="([^"]*)">', html)
            assert found, f"show it with figures.show or figures.explore: {list(data)}"
            assert len(found[1].split()) >= 4, f"not a sentence: {found[1]!r}"


@each
def test_pictures_fit_a_phone(path):
    """Words of nine pixels are the least, and they decide how narrow a picture gets."""
    if path.name[:2] in SIDE_BY_SIDE:
        pytest.skip("panels side by side, which scroll on a phone")
    html = "".join("".join(data.get("text/html", "")) for data in bundles(path))
    assert [px for px in map(int, re.findall(r"min-width:(\d+)px", html)) if px > PHONE] == []


@each
def test_live_figures_have_ten_positions_and_are_stored_as_html(path):
    for data in bundles(path):
        assert "application/vnd.jupyter.widget-view+json" not in data, "execute it with execute.py"
        sliders = r'<input type="range" min="0" max="(\d+)"'
        assert all(int(last) >= 9 for last in re.findall(sliders, data.get("text/html", "")))


@each
def test_files_are_found_wherever_a_copy_stands(path, monkeypatch):
    """Copies stand in other folders: a file is asked for by name, not by a path from here."""
    sources = "\n".join(c.source for c in code_cells(path))
    assert not re.search(r"\bpathlib\b|\bopen\(|\bglob\b|\bos\.", sources)
    for folder in (ROOT, path.parent, ROOT / "tests" / "book"):
        monkeypatch.chdir(folder)
        for name in re.findall(r"measurement\.stored\(\"([\w-]+)\"\)", sources):
            assert measurement.stored(name)["rows"]
        for name in re.findall(r"measurement\.kept\(\"([\w.-]+)\"\)", sources):
            assert measurement.kept(name).stat().st_size
    assert "measurement.read(" not in sources


# ------------------------------------------------------------------ any cell runs again alone


def inner_names(code):
    """What the functions inside a piece of code read from outside, by the function's name."""
    found = defaultdict(set)
    for inner in (c for c in code.co_consts if isinstance(c, CodeType)):
        names = {i.argval for i in dis.get_instructions(inner) if i.opname == "LOAD_GLOBAL"}
        found[inner.co_name] |= names.union(*inner_names(inner).values())
    return found


def names_of(source):
    """What a cell binds, what it takes from other cells, and what its functions read."""
    code = compile(source, "cell", "exec")
    bound, taken, inside = set(), set(), inner_names(code)
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_NAME":
            bound.add(instruction.argval)
        elif instruction.opname == "LOAD_NAME" and instruction.argval not in bound:
            taken.add(instruction.argval)
    return bound, taken.union(*(names - bound for names in inside.values())), inside


def rebound(sources):
    """Names bound twice that a cell takes from another, at once or when it calls its function."""
    cells = [names_of(source) for source in sources]
    shared = set().union(*(taken for _, taken, _ in cells))
    for bound, _, inside in cells:
        shared |= set().union(*(inside[name] for name in bound & shared & set(inside)))
    return {name for name in shared if sum(name in bound for bound, _, _ in cells) > 1}


@pytest.mark.slow
@each
def test_what_a_cell_takes_from_another_is_bound_in_one_place(path):
    assert rebound([c.source for c in code_cells(path)]) == set()


def test_a_name_bound_twice_is_found_in_the_open_and_inside_functions():
    assert rebound(["a = 1", "print(a)", "a = 2"]) == {"a"}
    assert rebound(["a = 1", "b = [a for _ in range(3)]", "for a in range(3): pass"]) == {"a"}
    late = ["k = 1\ndef f(): return (lambda: k)()", "print(f())", "k = 2"]
    assert rebound(late) == {"k"}
    assert rebound(["a = 1\nprint(a)", "a = 2\nprint(a)", "def f(a): return a"]) == set()


# ---------------------------------------------------------------------------------- the tools

IMPORTS = """\
import matplotlib.pyplot as plt
import numpy as np
import torch
from sbnlib import figures
figures.use()
x = torch.linspace(-3, 3, 40)
noise = torch.randn(40, generator=torch.Generator().manual_seed(1))
def draw(a, s=1.0):
    fig, ax = plt.subplots()
    ax.plot(x, torch.tanh(a * x) + s * noise, label="$a$")
    ax.set_ylim(-4, 4)
    ax.legend()
    return fig"""
SHOW = "figures.show(draw(1.0), alt='A noisy sigmoid curve.', caption='At $a=1$.')"
SVG = "figures.explore(draw, 'A curve with noise.', a=np.linspace(0, 2, 10), s=[0, 1])"
PNG = "figures.explore(draw, 'A curve with noise.', a=np.linspace(0, 2, 10), fmt='png')"


def notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(s, id=f"cell-{i}") for i, s in enumerate(sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def nbval(folder):
    """Compare as `pytest` does on the book, all notebooks of a folder outside it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval"]
    rules = ROOT / "tests" / "support" / "nbval.cfg"
    command += ["--nbval-current-env", "--nbval-sanitize-with", rules, "--tb=no", "-rA"]
    command += ["-c", "/dev/null", "--rootdir", folder, "-p", "again", folder]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(rules.parent), str(ROOT)])}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Torch numbers, a still picture, sliders over SVG and over PNG: executed once."""
    path = tmp_path_factory.mktemp("book") / "n.ipynb"
    notebook(path, IMPORTS, "print(round(float(noise[0]), 3))", SHOW, SVG, PNG)
    assert execute.main([str(path)]) == 0
    return path


@pytest.fixture
def copy(executed, tmp_path):
    return Path(shutil.copy(executed, tmp_path))


@pytest.mark.slow
def test_executing_writes_the_form_that_the_book_wants(executed):
    test_every_cell_was_executed_in_order(executed)
    test_no_error_and_no_warning_is_stored(executed)
    test_file_is_in_its_stable_form(executed)
    test_every_picture_has_words(executed)
    assert [c.id for c in read(executed).cells] == [f"cell-{i}" for i in range(5)]


@pytest.mark.slow
def test_executing_twice_gives_the_same_bytes(copy):
    first = sha(copy)
    assert execute.main([str(copy)]) == 0
    assert sha(copy) == first


@pytest.mark.slow
def test_nbval_passes_over_a_curve_that_moved_and_fails_on_stale_numbers_and_words(copy):
    text = copy.read_text(encoding="utf-8")
    curve = re.search(r" d=\\\"(m[^\\]*)", text)[1]
    stale = read(copy)
    stale.cells[1].outputs[0].text = "0.123\n"
    data = stale.cells[2].outputs[0].data
    data["text/html"] = data["text/html"].replace("noisy sigmoid", "smooth")
    nbformat.write(stale, copy.with_name("stale.ipynb"))
    copy.write_text(text.replace(curve, curve + " 1 1"), encoding="utf-8")
    told = nbval(copy.parent).stdout
    assert set(re.findall(r"^FAILED (\S+)", told, re.M)) == {
        "stale.ipynb::Cell",
    }, told
    assert "4 failed, 16 passed" in told  # each cell twice
    assert len(re.findall(r"^PASSED n\.ipynb::Cell", told, re.M)) == 10


@pytest.mark.slow
def test_a_cell_that_finds_what_a_later_one_left_behind_fails_the_second_time(tmp_path):
    path = notebook(tmp_path / "n.ipynb", "a = [1]", "print(a)", "a[0] = 2")
    assert execute.main([str(path)]) == 0
    told = nbval(tmp_path).stdout
    assert re.findall(r"^FAILED (n.*?)(?= - |$)", told, re.M) == ["n.ipynb::Cell 1, again"], told


def test_a_cell_that_raises_leaves_the_notebook_alone(tmp_path, capsys):
    path = notebook(tmp_path / "n.ipynb", "print(1)", "1 / 0")
    before = path.read_bytes()
    assert execute.main([str(path)]) == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    told = capsys.readouterr().err
    assert "n.ipynb, cell 1 (cell-1)" in told
    assert "ZeroDivisionError" in told


def test_an_unknown_notebook_is_named(capsys):
    with pytest.raises(SystemExit):
        execute.main(["no-such.ipynb"])
    assert "no-such.ipynb" in capsys.readouterr().err


def test_notebooks_come_in_the_order_of_the_contents(tmp_path):
    for name in ("a", "b", "c"):
        notebook(tmp_path / f"{name}.ipynb")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nparts:\n- caption: P\n  chapters:\n"
        "  - file: c\n    sections:\n    - file: a.ipynb\n  - file: words\n  - file: b\n"
    )
    assert [p.stem for p in execute.notebooks(tmp_path)] == ["c", "a", "b"]


@pytest.mark.slow
def test_in_a_running_notebook_the_slider_calls_draw(tmp_path):
    live = "panel = figures.explore(draw, 'A curve.', answer='Up.', a=np.linspace(0, 2, 10))\npanel"
    move = (
        "picture, slider, answer = panel.children\nbefore = picture.value\n"
        "folded = ' open' not in answer.value\nslider.index = 7\n"
        "print(before != picture.value, '<svg' in picture.value, slider.label)\n"
        "print(folded, '<details class=\"sbn-answer\" open>' in answer.value)"
    )
    path = notebook(tmp_path / "n.ipynb", IMPORTS, live, move)
    client = NotebookClient(read(path), kernel_name="python3")
    environment = {k: v for k, v in execute.os.environ.items() if k != "SBN_FIGURES"}
    ran = client.execute(env=environment)
    assert "application/vnd.jupyter.widget-view+json" in ran.cells[1].outputs[0].data
    assert ran.cells[2].outputs[0].text == "True True 1.56\nTrue True\n"
