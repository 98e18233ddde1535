"""The copies of the pages in JupyterLab: they read as the book does, and they run.

The reader here has a bare JupyterLab, without extensions, and has not trusted any notebook.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import lab
import nbformat
import pytest
from places import ROOT
from visit import note_problems

from conftest import missing

pytestmark = [pytest.mark.site]

CHAPTER = "3-weights/14-mirror-descent"
CONFIGURATION = ROOT / "book" / "tools" / "jupyter"
RAW = (":::", "```", "{ref}", "{eq}", "{cite", "{prf", "{numref}", "\\begin", "\\tag", "$$", ")=\n")


def cells(name):
    return nbformat.read(lab.MADE / f"{name}.ipynb", as_version=4).cells


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    if not (lab.MADE / "index.ipynb").exists():
        missing("no copies: run `make book`")
    return shutil.copytree(lab.MADE, tmp_path_factory.mktemp("lab") / "notebooks")


@pytest.fixture(scope="module")
def server(notebooks):
    """A JupyterLab of its own, which `make lab` would start."""
    home = notebooks.parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "SBN_FIGURES"} | {
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_PATH": str(CONFIGURATION),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.token=", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={notebooks}"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/api", process)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def wait_for(url, process):
    for _ in range(300):
        try:
            return urllib.request.urlopen(url).close()
        except OSError:
            assert process.poll() is None, "JupyterLab did not start"
            time.sleep(0.1)
    raise AssertionError("JupyterLab does not answer")


@pytest.fixture(scope="module")
def tab(server, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    note_problems(tab, server)
    yield tab
    context.close()


class Notebook:
    """A copy that is open in the tab."""

    def __init__(self, tab, server, name):
        self.tab, self.name, self.cells = tab, name, cells(name)
        tab.goto(f"{server}/lab/tree/{name}.ipynb?reset")
        self.panel = tab.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.panel.locator(".jp-Cell").nth(len(self.cells) - 1).wait_for(state="attached")
        self.texts = [c.id for c in self.cells if c.cell_type == "markdown" and c.source]
        tab.wait_for_function(
            "n => [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) "
            ".jp-MarkdownOutput')].filter(e => e.textContent.trim()).length >= n",
            arg=len(self.texts),
        )
        self.panel.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()

    def cell(self, name):
        return self.panel.locator(".jp-Cell").nth([c.id for c in self.cells].index(name))

    def run(self, name):
        """Have one cell run after those before it."""
        self.cell(name).click(position={"x": 4, "y": 4})
        self.tab.keyboard.press("Control+Enter")

    def tagged(self, tag):
        return [c.id for c in self.cells if tag in c.metadata.get("tags", [])]


@pytest.fixture(scope="module")
def chapter(tab, server, notebooks):
    return Notebook(tab, server, CHAPTER)


def test_text_reads_as_in_the_book(chapter):
    texts = [t.text_content() for t in chapter.panel.locator(".jp-MarkdownOutput").all()]
    assert len(texts) >= len(chapter.texts) > 50
    assert not [word for word in (*RAW, "Citation Not Found") if word in "\n".join(texts)]
    assert chapter.panel.locator(".jp-MarkdownOutput :is(mjx-merror, .MathJax_Error)").count() == 0
    assert chapter.tab.problems == []


def test_stored_figures_are_drawn_without_trust(chapter):
    assert not chapter.panel.locator(".jp-RenderedHTML svg").count()
    drawn = chapter.panel.locator(".jp-OutputArea figure img").evaluate_all(
        "all => all.map(e => e.complete && e.naturalWidth > 100 && e.alt.length > 20)"
    )
    assert drawn == [True] * sum("mystnb" in c.metadata for c in chapter.cells)


def test_solutions_and_checkers_are_folded(chapter):
    solutions = chapter.tagged("solution")
    assert solutions and not any(chapter.cell(name).is_visible() for name in solutions)
    for name in chapter.tagged("checker"):
        assert chapter.cell(name).locator(".jp-Cell-inputWrapper .jp-Placeholder").count() == 1
    for name in chapter.tagged("answer"):
        assert chapter.cell(name).is_visible()


def test_links_lead_to_their_cells(chapter):
    """Within the notebook, and into another one."""
    label = next(c.id for c in reversed(chapter.cells) if c.id.startswith("ex-")
                 and f"#cell-id={c.id})" in chapter.cells[0].source)  # fmt: skip
    chapter.panel.locator(f"a[href$='#cell-id={label}']").first.click()
    chapter.tab.wait_for_function(IN_VIEW, arg=chapter.cell(label).element_handle())
    other = chapter.panel.locator("a[href*='06-straight-through.ipynb']").first
    other.click()
    chapter.tab.locator(".jp-NotebookPanel:not(.lm-mod-hidden) h1", has_text="6. ").wait_for()
    chapter.tab.locator(".lm-TabBar-tab", has_text="14-mirror-descent").last.click()


IN_VIEW = """e => {
  const {top} = e.getBoundingClientRect();
  return top > 0 && top < innerHeight / 2;
}"""


def test_an_exercise_is_solved_and_checked_and_saved(chapter, notebooks):
    solved = next(c for c in chapter.cells if "check(pull)" in c.source and c.cell_type == "code")
    checker = next(c.id for c in chapter.cells if c.source.endswith("check = brute_force()"))
    names = [c.id for c in chapter.cells]
    answer = names[names.index(checker) + 1]
    assert answer in chapter.tagged("answer")
    first = next(c.id for c in chapter.cells if c.cell_type == "code")
    importing = next(c.id for c in chapter.cells if "import exercises" in c.source)
    for name in (first, importing, checker):
        chapter.run(name)
    chapter.cell(answer).locator(".cm-content").click()
    chapter.tab.keyboard.insert_text(solved.source)
    chapter.tab.keyboard.press("Escape")
    chapter.run(answer)
    told = chapter.cell(answer).locator(".jp-OutputArea-output pre")
    told.wait_for()
    assert told.inner_text().strip() == solved.outputs[0].text.strip()

    chapter.tab.keyboard.press("Control+s")
    path = notebooks / f"{CHAPTER}.ipynb"
    for _ in range(100):
        saved = {c.id: c.source for c in nbformat.read(path, as_version=4).cells}
        if saved[answer]:
            break
        time.sleep(0.1)
    assert saved == {c.id: c.source for c in chapter.cells} | {answer: solved.source}


def test_a_slider_moves_and_the_picture_with_it(tab, server):
    page = Notebook(tab, server, "index")
    figure = page.cell("live-figure")
    picture = figure.locator(".sbn-frame svg")
    for _ in range(4):  # on a busy machine a key can be lost while the page still moves
        for name in ("setup", "live-figure"):
            page.run(name)
        with contextlib.suppress(Exception):
            picture.wait_for(timeout=45_000)
            break
    picture.wait_for()
    before = picture.inner_html()
    figure.locator(".noUi-handle").first.press("ArrowRight")
    tab.wait_for_function(
        "([cell, before]) => cell.querySelector('.sbn-frame svg').innerHTML !== before",
        arg=[figure.element_handle(), before],
    )
    assert "0.5" in figure.locator(".widget-readout").first.inner_text()
