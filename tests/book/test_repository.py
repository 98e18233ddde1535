"""The face of the repository: what its files promise is there, nothing else by mistake."""

import importlib.util
import math
import re
import subprocess
import sys
import tomllib
from pathlib import PurePosixPath

import nbformat
import pytest
import yaml
from chapters import chapter, prose
from places import BOOK, ROOT

import sbnlib

sys.path.insert(0, str(ROOT / "book" / "tools"))

from reliable import links  # noqa: E402

GENERATED = {
    ".git",
    ".venv",
    "_build",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".mypy_cache",
}


def text(name):
    return (ROOT / name).read_text("utf-8")


def toc_files():
    toc = yaml.safe_load(text("_toc.yml"))
    return [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]


def tracked_files():
    """What git tracks or would track; every file when this is no git checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode == 0:
        return [p for p in (ROOT / name for name in run.stdout.splitlines()) if p.is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and not GENERATED & set(p.parts)]


# ------------------------------------------------------------------------------------ the book


def test_pages_and_table_of_contents_agree():
    pages = {
        p.relative_to(ROOT).with_suffix("").as_posix()
        for suffix in ("ipynb", "md")
        for p in BOOK.rglob(f"*.{suffix}")
        if ".ipynb_checkpoints" not in p.parts
    }
    assert pages == set(toc_files())


def test_map_lists_the_chapters():
    front = nbformat.read(BOOK / "index.ipynb", as_version=4)
    source = "\n".join(c.source for c in front.cells)
    everything = [str(k) for k in range(1, 23)]
    entries = re.findall(r"^(\d+)\. ([^\[\n]+)$", source, flags=re.M)
    nodes = re.findall(r'"sbn-node"><title>(\d+) · ([^<]+)<', source)
    assert [k for k, _ in entries] == everything
    assert sorted(nodes, key=lambda node: int(node[0])) == entries
    titles = dict(entries)
    for file in toc_files():
        if m := re.search(r"/(\d\d)-[^/]*$", file):
            page = nbformat.read(ROOT / f"{file}.ipynb", as_version=4)
            assert f"# {titles[str(int(m[1]))]}" in page.cells[0].source.splitlines()


def test_an_arrow_of_the_map_goes_to_a_chapter_that_uses_the_other():
    front = nbformat.read(BOOK / "index.ipynb", as_version=4)
    (source,) = (c.source for c in front.cells if "sbn-edges" in c.source)
    nodes = re.findall(r'<title>(\d+) · [^<]*</title><circle cx="(\d+)" cy="(\d+)"', source)
    (edges,) = re.findall(r'class="sbn-edges">(.*?)</g>', source)
    paths = re.findall(r' d="([^"]+)"', edges)
    assert len(nodes) == 22 and len(paths) > 20
    for path in paths:
        x, y, *_, u, v = (float(n) for n in re.findall(r"[\d.]+", path))
        ends = [
            min(nodes, key=lambda node: math.dist((int(node[1]), int(node[2])), end))  # noqa: B023
            for end in ((x, y), (u, v))
        ]
        used, user = (chapter(int(k)) for k, _, _ in ends)
        assert used.name in prose(user), f"{user.name} does not name {used.name}"


def test_chapter_numbers_come_from_file_names():
    spec = importlib.util.spec_from_file_location("sbn_site", BOOK / "ext" / "sbn_site.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    assert site.chapter_of("book/2-activations/06-straight-through") == 6
    assert site.chapter_of("book/notation") is None
    assert site.repository_options("") == {}
    options = site.repository_options("https://github.com/someone/somewhere")
    assert set(options["launch_buttons"]) == {"notebook_interface", "binderhub_url", "colab_url"}


# ------------------------------------------------------------------------------ the repository


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)


def workflow_of(path):
    return yaml.safe_load(path.read_text("utf-8"))


@every_workflow
def test_workflows_parse(path):
    workflow = workflow_of(path)
    assert {"name", "jobs"} <= set(workflow)
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert all("uses" in step or "run" in step for step in job["steps"])


@every_workflow
def test_actions_are_pinned(path):
    """Each by the 40 digits of a commit, which nobody can move, with its version as a comment."""
    used = re.findall(r"\buses:\s*(.*)", path.read_text("utf-8"))
    steps = [step for job in workflow_of(path)["jobs"].values() for step in job["steps"]]
    assert len(used) == sum("uses" in step for step in steps) > 0
    pinned = r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    assert not [use for use in used if not re.fullmatch(pinned, use)]


def test_an_action_has_one_version():
    used = {m for p in WORKFLOWS for m in re.findall(r"\buses:\s*(\S+)@(.*)", p.read_text("utf-8"))}
    names = [name for name, _ in used]
    assert len(names) == len(set(names))


def may_write(permissions):
    return permissions == "write-all" or "write" in dict(permissions).values()


@every_workflow
def test_jobs_that_may_write_run_no_code_of_others(path):
    """No workflow may write as a whole; a job that may runs GitHub's own actions and git alone.

    So what pip installs, what make calls and what the repository itself holds run only in jobs
    that may read. An artifact is the one thing that such a job hands on.
    """
    workflow = workflow_of(path)
    assert not may_write(workflow["permissions"])
    for name, job in workflow["jobs"].items():
        if may_write(job.get("permissions", {})):
            for step in job["steps"]:
                assert step.get("uses", "actions/").startswith("actions/"), name
                commands = step.get("run", "").splitlines()
                assert not [c for c in commands if not re.match(r"git (?!.*[;&|`$])", c)], name


def test_pages_workflow_knows_its_own_address():
    jobs = workflow_of(ROOT / ".github" / "workflows" / "pages.yml")["jobs"]
    address = "${{ github.server_url }}/${{ github.repository }}"
    assert jobs["build"]["env"]["SBN_REPOSITORY_URL"] == address
    branch = jobs["build"]["env"]["SBN_REPOSITORY_BRANCH"]
    assert (
        jobs["launch"]["steps"][-1]["run"].splitlines()[-1] == f"git push --force origin {branch}"
    )
    assert {jobs[name]["needs"] for name in ("deploy", "launch")} == {"build"}


def test_library_is_tested_at_its_floors():
    """With the oldest Python and PyTorch that it supports, and with the newest of PyTorch."""
    job = workflow_of(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["library"]
    matrix = job["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.13"]
    assert matrix["torch"] == ["torch==2.11.*", "torch"]
    assert "exclude" not in matrix
    assert {"tests/library", "tests/support"} <= set(job["steps"][-1]["run"].split())


@pytest.mark.parametrize(
    "name", ["build/x", "_build/x", "notebooks/x", "sbnlib.egg-info/x", ".venv/x"]
)
def test_what_is_made_is_ignored(name):
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    assert subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT).returncode == 0


def test_launch_notebooks_are_the_copies_and_install_the_library(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("launch", BOOK / "tools" / "launch.py")
    launch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launch)
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(launch, "COPIES", tmp_path / "made")
    address = "https://github.com/someone/somewhere"
    with pytest.raises(SystemExit, match="run `make book`"):
        launch.main([address])
    for name, source in (("made/book/one.ipynb", "copy"), ("book/one.ipynb", "source")):
        (tmp_path / name).parent.mkdir(parents=True)
        cells = [nbformat.v4.new_markdown_cell(source)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / name)
    launch.main([address])
    launch.main([address])
    cells = nbformat.read(tmp_path / "book/one.ipynb", as_version=4).cells
    install = f'%pip install --quiet "sbnlib[figures,experiments] @ git+{address}"'
    assert [c.source for c in cells] == [install, "copy"]
    (tmp_path / "book/one.ipynb").unlink()
    launch.main([address, str(tmp_path / "other")])
    cells = nbformat.read(tmp_path / "other/book/one.ipynb", as_version=4).cells
    assert [c.source for c in cells] == [install, "copy"]
    assert not (tmp_path / "book/one.ipynb").exists()


def test_citation_names_the_seed_paper():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == sbnlib.__version__
    (paper,) = citation["references"]
    assert paper["conference"]["name"] == "GCPR 2021"
    assert paper["identifiers"][0]["value"] == "arXiv:2006.06880"


def test_every_file_of_the_library_is_installed():
    """What is no module is named by a package, so that a wheel has it too."""
    named = tomllib.loads(text("pyproject.toml"))["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{p}" for package in named for p in named[package]]
    tracked = [PurePosixPath(p.relative_to(ROOT).as_posix()) for p in tracked_files()]
    files = [p for p in tracked if p.parts[0] == "sbnlib" and p.suffix != ".py"]
    assert PurePosixPath("sbnlib/datasets/fashion-mnist-4000.bz2") in files
    assert not [p for p in files if not any(p.match(pattern) for pattern in patterns)]


def test_a_data_set_in_the_package_is_small_and_has_its_licence():
    folder = ROOT / "sbnlib" / "datasets"
    licence = "MIT License (MIT) Copyright © 2017 Zalando SE"
    assert (folder / "fashion-mnist-4000.bz2").stat().st_size < 2_000_000
    assert licence in (folder / "LICENSE-fashion-mnist").read_text("utf-8")
    assert (folder / "prose.bz2").stat().st_size < 200_000
    assert "CC BY 4.0" in (folder / "LICENSE-prose").read_text("utf-8")


def test_the_two_commands_are_targets():
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), flags=re.M))
    named = set(re.findall(r"make ([a-z]+)", text("README.md") + text("CONTRIBUTING.md")))
    assert {"book", "test"} <= named <= targets
    assert {"quick", "lab", "execute", "bench", "serve", "lint", "format", "clean"} <= targets


def test_requirements_are_pinned():
    lines = [line.partition("#")[0].strip() for line in text("requirements.txt").splitlines()]
    loose = [line for line in lines if line and not re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line)]
    assert loose == ["-e ."], "sbnlib itself, so that the file alone makes the environment"


@pytest.mark.slow
def test_documents_and_docstrings_name_what_is_there():
    assert {p.name for p in ROOT.glob("*.md")} >= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert list(links.of_documents(ROOT)) == []


def test_readme_picture_is_small():
    assert (BOOK / "assets" / "readme-figure.png").stat().st_size < 150_000


def test_no_two_modules_of_the_tests_have_one_name():
    # the folders of tests are no packages: of two modules with one name, pytest collects one alone
    names = [p.stem for p in tracked_files() if p.suffix == ".py"
             and p.relative_to(ROOT).parts[0] == "tests" and p.name != "conftest.py"]  # fmt: skip
    assert sorted(names) == sorted(set(names))


def test_nothing_names_the_machine_it_was_made_on():
    # written in pieces, so that this file does not find itself
    words = ["/wo" + "rk/", "/ho" + "me/", "/Us" + "ers/", "/tm" + "p/", "art" + "ifactory"]
    pattern = re.compile("|".join(map(re.escape, words)))
    found = []
    for path in tracked_files():
        if path.suffix in {".png", ".woff2", ".npz", ".gz", ".bz2"}:
            continue
        content = path.read_text("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {m[0]}" for m in pattern.finditer(content)]
    assert not found
