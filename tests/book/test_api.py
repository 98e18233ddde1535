"""The library reference: every public name is on the page, with types and words of its own."""

from __future__ import annotations

import importlib
import inspect
import re
import sys

import pytest
from places import BOOK, ROOT, SITE

import sbnlib
from sbnlib import registry
from sbnlib.estimators import PROXIES

PAGE = BOOK / "back" / "api.md"
BUILT = SITE / "book" / "back" / "api.html"
MODULES = [
    "sbnlib",
    "sbnlib.checks",
    "sbnlib.depth",
    "sbnlib.contracts",
    "sbnlib.diagnose",
    "sbnlib.kernels",
    "sbnlib.levels",
    "sbnlib.categories",
    "sbnlib.nn",
    "sbnlib.optim",
    "sbnlib.packed",
    "sbnlib.hashing",
    "sbnlib.registry",
    "sbnlib.figures",
    "sbnlib.data",
    "sbnlib.exercises",
    "sbnlib.map",
    "sbnlib.experiments.classify",
    "sbnlib.experiments.measurement",
]
DIRECTIVE = re.compile(r"^\.\. (?:auto(?:class|data|exception|function)|py:\w+):: ([\w.]+)"
                       r"(?:\(.*\)(?: -> \w+)?)?(?:\n   :module: (\S+))?$", re.M)  # fmt: skip


def public_names() -> list[str]:
    """The names of all modules; what is there by a shorter name too has one entry."""
    modules = {m: importlib.import_module(m) for m in MODULES}
    top = [id(getattr(sbnlib, name)) for name in sbnlib.__all__]
    shorter = ("sbnlib.depth", "sbnlib.diagnose")
    return [f"{m}.{name}" for m, module in modules.items() for name in module.__all__
            if m not in shorter or id(getattr(module, name)) not in top]  # fmt: skip


def resolve(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        return importlib.import_module(name)


def on_page() -> set[str]:
    found = DIRECTIVE.findall(PAGE.read_text("utf-8"))
    return {f"{module}.{name}" if module else name for name, module in found}


CODE = [name for name in public_names() if inspect.isfunction(resolve(name))
        or inspect.isclass(resolve(name))]  # fmt: skip
code = pytest.mark.parametrize("name", CODE)


@pytest.fixture(scope="module")
def extension():
    """book/ext/sbn_api.py."""
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(BOOK / "ext"))
    try:
        return importlib.import_module("sbn_api")
    finally:
        sys.path.pop(0)


# ----------------------------------------------------------------------------------- the page


def test_every_public_name_is_on_the_page_and_nothing_else():
    modules = {m for m in MODULES if m.count(".") == 1}  # sbnlib.nn is a name of sbnlib too
    assert on_page() - modules - {"sbnlib.experiments.classify", "sbnlib.experiments.measurement"} \
        == set(public_names()) - modules  # fmt: skip
    assert modules - {"sbnlib"} <= on_page()


def test_every_name_on_the_page_is_there():
    for name in on_page():
        assert resolve(name) is not None


@pytest.mark.parametrize("name", MODULES[1:])
def test_completion_offers_the_public_names_only(name):
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)


def test_the_page_is_in_the_table_of_contents():
    assert "file: book/back/api\n" in (ROOT / "_toc.yml").read_text("utf-8")


@code
def test_a_public_name_has_words_of_its_own(name):
    thing = resolve(name)
    words = inspect.cleandoc(thing.__doc__ or "")
    assert words and not words.startswith(f"{thing.__name__}("), "no docstring"
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return
    parameters = [p for p in parameters_of(thing) if not re.search(rf"\b{p}\b", words)]
    as_another = re.search(r"^Args.*: as ", words, re.M) or re.search("as :class:", words)
    assert not parameters or as_another or ":math:" in words or ".. math::" in words, (
        f"{name}: neither a formula nor a word on {parameters}"
    )


def parameters_of(thing: object) -> list[str]:
    return [p for p in inspect.signature(thing).parameters if p not in ("args", "kwargs")]


@code
def test_a_public_name_is_fully_typed(name):
    thing = resolve(name)
    functions = [thing] if inspect.isfunction(thing) else [
        f for key, f in vars(thing).items()
        if inspect.isfunction(f) and f.__module__ != "typing"  # what Protocol adds
        and (not key.startswith("_") or key in ("__init__", "__call__"))
    ]  # fmt: skip
    for function in functions:
        signature = inspect.signature(function)
        bare = [p.name for p in signature.parameters.values()
                if p.annotation is p.empty and p.name not in ("self", "cls")]  # fmt: skip
        assert not bare, f"{function.__qualname__}: {bare} without a type"
        assert signature.return_annotation is not signature.empty, function.__qualname__


@pytest.mark.parametrize("name", [n for n in CODE if inspect.isfunction(resolve(n))])
def test_a_generator_says_where_it_must_live(name):
    function = resolve(name)
    words = function.__doc__ or ""
    if "generator" in inspect.signature(function).parameters and "generator:" in words:
        assert "device" in words.split("generator:")[1].split(".")[0] or "as :func:" in words


# --------------------------------------------------------------------------------- the tables


def test_every_estimator_is_in_the_table(extension):
    lines = extension.estimator_table({6: "../chapter-6.ipynb"})
    text = "\n".join(lines)
    assert text.count("* - <span") == len(registry.ESTIMATORS)
    for entry in registry.ESTIMATORS.values():
        (row,) = [k for k, line in enumerate(lines) if f"`{entry.name}`<br>" in line]
        assert f"background:{entry.colour}" in lines[row]
        assert f"`{entry.label} <" in lines[row]
        papers = f"<small>{{cite:t}}`{','.join(entry.papers)}`</small>"
        assert f"<br>${entry.formula}$<br>{papers}" in lines[row]
        chapter = "[6](../chapter-6.ipynb)" if entry.chapter == 6 else str(entry.chapter)
        assert [line[4:] for line in lines[row + 1 : row + 5]] == [
            entry.unbiased_for, "yes" if entry.state_only else "no",
            "$n + 1$" if callable(entry.evaluations) else f"${entry.evaluations}$",
            chapter,
        ]  # fmt: skip
        assert extension.target_of(entry) in on_page()


def test_every_proxy_is_in_the_table(extension):
    text = "\n".join(extension.proxy_table())
    for p in PROXIES.values():
        assert f"`{p.name}`<br><small>{p.source}</small>" in text and f"${p.formula}$" in text


def test_both_tables_are_on_the_page():
    text = PAGE.read_text("utf-8")
    assert "```{sbn-estimators}" in text and "```{sbn-proxies}" in text


# ----------------------------------------------------------------------------- the docstrings


@pytest.mark.parametrize("before, after", [
    ("Words.\n\nMore: words.", "Words.\n\nMore: words."),
    ("Source: Us 2021;\nchapter 6.", "\n:Source:\n    Us 2021; chapter 6.\n\n"),
    ("Args:\n    a, x: these.\n    *rest: more\n        of it.\n\nEnd.",
     "\n:Arguments:\n\n    ``a``, ``x``\n        these.\n\n    ``*rest``\n        more\n"
     "        of it.\n\n\nEnd."),
    ("Args, Returns: as ``f``.\n    tau: hot.",
     "\n:Arguments, returns:\n    as ``f``.\n\n\n    ``tau``\n        hot.\n"),
    ("Returns:\n    ``(B,)``: a tensor.", "\n:Returns:\n    ``(B,)``: a tensor.\n"),
    ("Raises:\n    TypeError, ValueError: as there.",
     "\n:Raises:\n\n    ``TypeError``, ``ValueError``\n        as there.\n"),
])  # fmt: skip
def test_sections_become_field_lists(extension, before, after):
    out = extension.sections_to_fields(before.split("\n"))
    squeeze = "\n".join(line.rstrip() for line in out)
    assert re.sub(r"\n{2,}", "\n\n", squeeze).strip() == re.sub(r"\n{2,}", "\n\n", after).strip()


# ----------------------------------------------------------------------------- the built page


@pytest.mark.site
def test_the_built_page_has_every_name_and_no_markup_left():
    if not BUILT.exists():
        pytest.skip("no built book: run `make book`")
    html = BUILT.read_text("utf-8")
    missing = [n for n in public_names() if inspect.isfunction(resolve(n)) or inspect.isclass(
        resolve(n)) if f'id="{n}"' not in html]  # fmt: skip
    assert not missing
    text = re.sub(r"<[^>]+>", "", html)
    assert ":math:" not in text and ":func:" not in text and "``" not in text
    table = html[html.index('id="tab-registry"') :].partition("</table>")[0]
    words = " ".join(re.sub(r"<[^>]+>", "", table).split())
    assert [e.label for e in registry.ESTIMATORS.values() if e.label not in words] == []
