"""The command that holds the whole book to what a release promises, on small ones."""

import json
import re
import sys
from email.message import Message
from urllib.error import HTTPError, URLError

import execute
import nbformat
import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "book" / "tools"))

from reliable import command, execution, links, network, printing, record, times  # noqa: E402
from reliable.record import Found  # noqa: E402


def notebook(path, *cells):
    """A notebook of cells as pairs: what is run, and what it is said to have printed."""
    made = []
    for k, (source, printed) in enumerate(cells):
        told = [nbformat.v4.new_output("stream", text=printed)] if printed else []
        made.append(nbformat.v4.new_code_cell(source, id=f"c{k}", execution_count=k + 1,
                                              outputs=told))  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = nbformat.v4.new_notebook(cells=made)
    path.write_text(nbformat.writes(execute.settle(whole), indent=1) + "\n", "utf-8")
    return path


# ---- the stored outputs ------------------------------------------------------------------------

FILES = [ROOT / f"{k:02}.ipynb" for k in range(22)]


def test_an_order_is_random_and_comes_again_with_its_seed():
    first = printing.order(FILES, 5, "one thread")
    assert sorted(first) == FILES != first
    assert first == printing.order(reversed(FILES), 5, "one thread")
    others = [printing.order(FILES, 5, "two threads"), printing.order(FILES, 6, "one thread")]
    assert first not in others and others[0] != others[1]


def test_the_three_runs_differ_in_threads_and_instructions(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    found = {run: printing.environment(given) for run, given in printing.RUNS.items()}
    assert [e["OMP_NUM_THREADS"] for e in found.values()] == ["1", "2", "1"]
    assert [e["MKL_NUM_THREADS"] for e in found.values()] == ["1", "2", "1"]
    assert [e.get("ATEN_CPU_CAPABILITY") for e in found.values()] == [None, None, "default"]
    assert {e["SBN_FIGURES"] for e in found.values()} == {"ends"}
    asked = {run: None for run, _ in printing.steps([], 1, 1)}
    assert list(asked) == list(printing.RUNS)


PRINTS_ITS_RUN = (
    "import os\nprint(os.environ['OMP_NUM_THREADS'], os.environ.get('ATEN_CPU_CAPABILITY'))"
)


@pytest.fixture
def five(tmp_path):
    """Notebooks: in order, stale, one that shows its run, one that leans on what another leaves."""
    return {
        "good": notebook(tmp_path / "good.ipynb", ("a = 1", ""), ("print(a)", "1\n")),
        "stale": notebook(tmp_path / "stale.ipynb", ("print(0.25)", "0.26\n")),
        "run": notebook(tmp_path / "run.ipynb", (PRINTS_ITS_RUN, "1 None\n")),
        "leaves": notebook(tmp_path / "leaves.ipynb", ("open('left', 'w').close()", "")),
        "leans": notebook(
            tmp_path / "leans.ipynb", ("import os\nprint(os.path.exists('left'))", "True\n")
        ),
    }


def compared(five, names, run, jobs=1):
    root = five["good"].parent
    return printing.compare([five[n] for n in names.split()], printing.RUNS[run], jobs, root)


@pytest.mark.slow
def test_nbval_names_the_stale_cell_and_the_one_that_depends_on_threads(five):
    found = compared(five, "leaves stale leans run good", "two threads")
    assert found.faults == [
        "stale.ipynb, code cell 0 (c0): stored '0.26', now '0.25'",
        "stale.ipynb, code cell 0, again (c0): stored '0.26', now '0.25'",
        "run.ipynb, code cell 0 (c0): stored '1 None', now '2 None'",
        "run.ipynb, code cell 0, again (c0): stored '1 None', now '2 None'",
    ]
    assert found.notes == [
        "the order: leaves, stale, leans, run, good",
        "6 cells, each once more from the last",
    ]


@pytest.mark.slow
def test_nbval_finds_what_leans_on_another_file_and_on_the_instructions(five):
    found = compared(five, "leans leaves run", "plain instructions")
    assert "leans.ipynb, code cell 0 (c0): stored 'True', now 'False'" in found.faults
    assert "run.ipynb, code cell 0 (c0): stored '1 None', now '1 default'" in found.faults


def test_a_file_of_which_no_cell_ran_is_a_fault(tmp_path, monkeypatch):
    report = (
        "<testsuites><testsuite><testcase file='a.ipynb' name='Cell 0'/></testsuite></testsuites>"
    )

    def ran(call, **given):
        path = call[call.index("--junitxml") + 1]
        with open(path, "w") as file:
            file.write(report)
        return printing.subprocess.CompletedProcess(call, 0, "", "")

    monkeypatch.setattr(printing.subprocess, "run", ran)
    paths = [tmp_path / "a.ipynb", tmp_path / "b.ipynb"]
    found = printing.compare(paths, {}, 1, tmp_path)
    assert found.faults == ["b.ipynb: none of its cells has run"]


@pytest.mark.slow
def test_nbval_that_does_not_run_is_a_fault(tmp_path, capfd):
    found = printing.compare([tmp_path / "no-such.ipynb"], {}, 1, tmp_path)
    assert found.faults == ["nbval did not run: pytest ended with 4"]
    assert "no-such.ipynb" in capfd.readouterr().err


# ---- executed again ----------------------------------------------------------------------------


LOOKS_UPWARDS = (
    "from pathlib import Path\n"
    "print(any((p / 'book' / 'good.ipynb').exists() for p in Path.cwd().parents))"
)


@pytest.mark.slow
def test_an_execution_gives_the_stored_bytes_or_is_named(tmp_path):
    good = notebook(tmp_path / "book" / "good.ipynb", (LOOKS_UPWARDS, "True\n"))
    before = good.read_bytes()
    assert execution.compare(good, tmp_path).faults == []
    stale = notebook(tmp_path / "book" / "stale.ipynb", ("x = 1", ""), ("print(x)", "2\n"))
    assert execution.compare(stale, tmp_path).faults == [
        "book/stale.ipynb, cell 1 (c1): stored '\"2\\\\n\"', now '\"1\\\\n\"'"
    ]
    other = notebook(tmp_path / "other.ipynb", ("import os\nprint(os.getpid())", ""))
    execute.execute(other)
    (fault,) = execution.compare(other, tmp_path).faults
    assert fault.startswith("other.ipynb, cell 0 (c0): stored ")
    raises = notebook(tmp_path / "raises.ipynb", ("1 / 0", ""))
    (fault,) = execution.compare(raises, tmp_path).faults
    assert "cell 0 (c0)" in fault and "ZeroDivisionError" in fault
    assert good.read_bytes() == before and list((tmp_path / "_build").iterdir()) == []


def test_the_first_difference_of_two_files_is_told():
    def file(*sources, level=4, **more):
        cells = [{"id": f"c{k}", "source": [s]} for k, s in enumerate(sources)]
        return json.dumps({"cells": cells, "nbformat": level} | more, indent=1).encode()

    assert execution.difference(file("a", "b"), file("a", "b")) == ""
    measured = [file("a", f"on this machine: {speed} GB") for speed in (19, 4)]
    assert execution.difference(*measured) == ""
    code = [file("a", f'print(f"on this machine: {{{name}}} \\n")') for name in ("a", "b")]
    assert "stored" in execution.difference(*code) and execution.difference(code[0], code[0]) == ""
    long = "x" * 500
    told = execution.difference(file("a", long + "1" + long), file("a", long + "2" + long))
    assert told.startswith("cell 1 (c1): stored 'xxx") and "x1x" in told and "x2x" in told
    assert len(told) < 300
    assert execution.difference(file("a"), file("a", "b")).startswith("cell 1 (c1): stored '{}'")
    assert execution.difference(file("a", level=4), file("a", level=5)).startswith("no cell, but")
    ending = execution.difference(file("a") + b"\n", file("a"))
    assert ending == "no cell, but the file: it ends otherwise"


# ---- links -------------------------------------------------------------------------------------


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


@pytest.fixture
def site(tmp_path):
    """Two pages and a style, all of whose links lead somewhere."""
    site = tmp_path / "site"
    write(site / "book" / "a.html", '<h1 id="top">A</h1><a href="b.html#x%20y">b</a><a href="#top">'
          '<img src="../p.svg"><a href="https://example.org/p#q"><a href="http://localhost:8000">'
          '<link rel="canonical" href="https://example.org/a">')  # fmt: skip
    write(site / "book" / "b.html", '<p id="x y"><svg><a xlink:href="a.html"></svg>')
    write(site / "p.svg", "<svg/>")
    write(site / "s.css", "a { background: url('p.svg') } b { src: url(data:font/woff2,x) }")
    return site


def test_a_site_whose_links_lead_somewhere_is_in_order(site):
    assert links.steps(site) and list(links.dead(site)) == []
    assert list(links.loads_of_other_hosts(links.read(site), site)) == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("c.html", '<a href="gone.html">', "c.html: gone.html is not there"),
        ("c.html", '<a href="book/a.html#gone">', "c.html: book/a.html#gone is not there"),
        ("c.html", '<svg><use xlink:href="#gone"></svg>', "c.html: #gone is not there"),
        ("c.html", '<img src="p.svg" srcset="gone.png 2x">', "c.html: gone.png is not there"),
        ("c.css", "a { src: url(gone.woff2?v=1) }", "c.css: gone.woff2?v=1 is not there"),
    ],
)
def test_a_dead_link_of_a_page_is_named(site, name, text, told):
    write(site / name, text)
    assert list(links.dead(site)) == [told]


def test_what_a_page_loads_from_another_host_is_named(site):
    write(site / "c.html", '<script src="//cdn.example.org/x.js"></script><a href="https://a.org">')
    pages = links.read(site)
    told = ["c.html: loads //cdn.example.org/x.js"]
    assert list(links.loads_of_other_hosts(pages, site)) == told


def test_no_built_book_is_a_fault(tmp_path):
    assert "run `make book`" in dict(links.steps(tmp_path))["pages"]().faults[0]


README = """# One `two`, three!
See [a](CHANGES.md#v-10), [b](#one-two-three), [c](https://example.org/c), [twice](#again-1).
## Again
## Again
```
[code](gone.md)
```
`[code](gone.md)` and `sbnlib/a.py`; `book/PART/NN-name.ipynb` is any.
"""


@pytest.fixture
def repository(tmp_path):
    """A README, its changes and a module."""
    write(tmp_path / "README.md", README)
    write(tmp_path / "CHANGES.md", "## v 1.0\n")
    write(
        tmp_path / "sbnlib" / "a.py", '"""See <https://example.org/doc>.\n"""\nX = "https://no"\n'
    )
    return tmp_path


def test_documents_in_order_have_nothing_to_say(repository):
    assert list(links.of_documents(repository)) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[d](gone.md)", "README.md: gone.md is not there"),
        ("![d](gone.png \"title\")", "README.md: gone.png is not there"),
        ("[d](CHANGES.md#v-11)", "README.md: CHANGES.md#v-11 is not there"),
        ("[d](#again-2)", "README.md: #again-2 is not there"),
        ("`tests/book/gone.py`", "README.md: tests/book/gone.py is not there"),
    ],
)  # fmt: skip
def test_a_dead_link_of_a_document_is_named(repository, line, told):
    write(repository / "README.md", README + line)
    assert list(links.of_documents(repository)) == [told]


def test_a_file_that_a_docstring_names_is_there(repository):
    write(repository / "sbnlib" / "b.py", 'def f():\n    """As in sbnlib/gone.py."""\n')
    assert list(links.of_documents(repository)) == ["sbnlib/b.py: sbnlib/gone.py is not there"]


# ---- other hosts -------------------------------------------------------------------------------


def test_addresses_on_other_hosts_are_listed_with_their_places(site, repository, monkeypatch):
    assert links.external(site, repository) == {
        "https://example.org/a": ["book/a.html"],
        "https://example.org/c": ["README.md"],
        "https://example.org/doc": ["sbnlib/a.py"],
        "https://example.org/p": ["book/a.html"],
    }
    monkeypatch.setattr(network, "ask", lambda urls: None)
    listed = repository / "made" / "hosts.txt"
    found = dict(links.steps(site, repository, listed))["other hosts"]()
    assert found.faults == []
    assert found.notes == [
        "4 addresses on 1 hosts, listed in hosts.txt",
        "not tried: no network",
    ]
    assert "https://example.org/c\n    README.md\n" in listed.read_text()


def test_a_page_that_is_gone_is_a_fault_and_one_that_refuses_is_told(monkeypatch):
    def answer(request, timeout):
        host = request.host
        if host == "no.org":
            raise URLError(network.socket.gaierror(network.socket.EAI_NONAME, "no such host"))
        if host == "slow.org":
            raise TimeoutError("timed out")
        if host != "there.org" and (host != "get.org" or request.get_method() == "HEAD"):
            code = {"gone.org": 404, "refuses.org": 403, "get.org": 405}[host]
            raise HTTPError(request.full_url, code, "said", Message(), None)
        return Reply()

    monkeypatch.setattr(network, "urlopen", answer)
    names = ("gone", "refuses", "there", "no", "slow", "get")
    answers = network.ask([f"https://{name}.org/x" for name in names])
    states = {url.split("//")[1].split(".")[0]: state for url, (state, _) in answers.items()}
    assert states == {"gone": "gone", "refuses": "unknown", "there": "there", "no": "gone",
                      "slow": "unknown", "get": "there"}  # fmt: skip


class Reply:
    status = 200

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        pass


def test_without_a_network_nothing_is_said_of_any_address(monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append(request.host)
        raise URLError(OSError("unreachable"))

    monkeypatch.setattr(network, "urlopen", refuse)
    assert network.ask([f"https://{k}.org/" for k in range(30)]) is None
    assert len(asked) <= 2 * network.FIRST


# ---- times, record, report ---------------------------------------------------------------------


def test_times_stand_beside_their_targets():
    executed = {
        "a": Found(seconds=5.0, computing=4.0, load=1.0),
        "b": Found(seconds=61.0, load=2.0),
    }
    told = list(times.table(executed, Found(seconds=61.0, computing=50.0, load=0.5)))
    assert re.search(r"61\.0 +50\.0 +60 +0\.5  the book from its stored outputs  over$", told[1])
    assert re.search(r"66\.0 +4\.0 +720 +2 notebooks executed$", told[2])
    assert [line.split()[-1] for line in told[3:5]] == ["over", "a"]
    assert list(times.table({}, None)) == [told[0], times.ELSEWHERE]


def test_the_largest_page_is_told_and_one_over_a_megabyte_is_a_fault(site, monkeypatch):
    assert times.size(site).faults == []
    monkeypatch.setattr(times, "PAGE", 100)
    assert [fault.split(":")[0] for fault in times.size(site).faults] == ["a"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The command over two steps of its own; returns its status and how often each was done."""
    done, found = [], {"one": Found(), "two": Found(["book/a.ipynb, cell 1: other"])}

    def steps(part, seed, jobs, chosen):
        for name in found:
            yield f"{name} {seed}", lambda name=name: done.append(name) or found[name]

    monkeypatch.setattr(command, "steps", steps)
    monkeypatch.setattr(command, "RECORD", tmp_path / "made" / "reliable.json")
    monkeypatch.setattr(command, "digest", lambda chosen: "0" * 64)
    monkeypatch.setenv("PYTHONPATH", "")
    return done, found


def test_a_fault_is_in_the_report_and_in_the_exit_status(small, capsys):
    done, found = small
    assert command.main(["--part", "execution", "--seed", "3"]) == 1
    told = capsys.readouterr().out
    assert "seed 3" in told and "execution: one 3: in order" in told
    report = told.partition("The report")[2]
    assert "execution: 2 steps, 1 faults\n    book/a.ipynb, cell 1: other" in report
    found["two"] = Found(notes=["not tried: no network"])
    assert command.main(["--part", "links", "--seed", "3"]) == 0
    report = capsys.readouterr().out.partition("The report")[2]
    assert "links: 2 steps, 0 faults\n    two 3, not tried: no network" in report


def test_a_run_goes_on_where_it_stopped_with_its_own_seed(small, capsys, monkeypatch):
    done, found = small
    command.main(["--part", "execution", "--seed", "3"])
    assert command.main(["--part", "execution", "--part", "links", "--resume"]) == 1
    assert done == ["one", "two"] * 2
    assert "links: two 3: 1 at fault" in capsys.readouterr().out
    monkeypatch.setattr(command, "digest", lambda chosen: "1" * 64)
    command.main(["--part", "execution", "--resume"])
    assert done == ["one", "two"] * 3


def test_what_was_found_holds_for_these_sources_and_no_others(tmp_path):
    write(tmp_path / "book" / "a.py", "1")
    write(tmp_path / "book" / "__pycache__" / "a.pyc", "1")
    first = record.digest([], tmp_path)
    write(tmp_path / "book" / "__pycache__" / "a.pyc", "2")
    assert record.digest([], tmp_path) == first != record.digest([tmp_path], tmp_path)
    write(tmp_path / "book" / "a.py", "2")
    assert record.digest([], tmp_path) != first


def test_an_unknown_notebook_is_refused(small, capsys):
    with pytest.raises(SystemExit):
        command.main(["no-such.ipynb"])
    assert "no-such.ipynb" in capsys.readouterr().err
