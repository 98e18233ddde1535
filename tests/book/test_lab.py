"""Pages as plain cells, and what becomes of a reader's copies when the book is built again."""

import sys
from textwrap import dedent

import lab
import nbformat
import pytest
from nbformat.sign import NotebookNotary
from places import BOOK

sys.path.insert(0, str(BOOK / "ext"))
try:
    import sbn_cells
finally:
    sys.path.pop(0)

MARKDOWN, CODE = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


def draft(*sources, page="book/page", sections=()):
    """A draft of Markdown; what is already a cell stays one."""
    cells = [MARKDOWN(dedent(s).strip(), id=f"c{k}") if isinstance(s, str) else s
             for k, s in enumerate(sources)]  # fmt: skip
    return sbn_cells.draft(page, cells, sections)


def finished(*drafts, beside=True):
    """The last draft as it is written, with words that name the role and the target."""
    said = {
        (role, target): sbn_cells.Words(((f"{role}:{target}", target),))
        for role, target in sbn_cells.wanted(drafts)
    }
    book = sbn_cells.Book(drafts, said, beside)
    return book.finish(drafts[-1].page)


def written(*sources):
    return "\n\n".join(c.source for c in finished(draft(*sources)))


# ------------------------------------------------------------------------------------- text


def test_boxes_nest_and_code_stays_as_it_is():
    text = written("""
        ::::{admonition} Outer
        Before.

        :::{prf:proof}
        Because {eq}`eq-1`.
        :::
        ::::

        ```python
        # Not a heading
        f"{ref}`x` $a$ [b](c)"
        ```

        $$
        a
        $$ (eq-1)
        """)
    assert text.count('<div style="border-left') == text.count("</div>") == 2
    assert "**Outer**" in text and "*Proof.* Because [eq:eq-1](page.ipynb#cell-id=eq-1)." in text
    assert '```python\n# Not a heading\nf"{ref}`x` $a$ [b](c)"\n```' in text
    assert "$$\na\n\\tag{eq:eq-1}\n$$" in text


def test_formulas_and_code_keep_what_looks_like_a_link():
    text = r"Let $[a](b)$ and `[c](d)` and $$ [e](f) $$."
    assert written(text) == text


def test_a_label_is_the_id_of_its_cell_and_headings_are_numbered():
    made = draft(
        """
        # Title

        (sec-a)=
        ## One
        Text.

        (sec-b)=
        (sec-c)=
        More.

        1. Item
           $$
           a
           $$ (eq-in)
        """,
        sections=["2", "2.1"],
    )
    assert [c.id for c in made.cells] == ["c0", "sec-a", "sec-b"]
    assert made.places == {label: made.cells[k].id for label, k in
                           {"sec-a": 1, "sec-b": 2, "sec-c": 2, "eq-in": 2}.items()}  # fmt: skip
    assert made.cells[0].source == "# 2. Title"
    assert made.cells[1].source.startswith("## 2.1. One\n")


def test_a_row_of_a_table_is_an_anchor():
    notation = draft(
        """
        ```{list-table} Symbols.
        :name: tab
        :header-rows: 1

        * - A
          - B
        * - $x$
          - (nota-x)=
            The `(..., n)` state,
            in two lines.
        ```
        """,
        page="book/notation",
    )
    (cell,) = finished(draft("[x](nota-x)", page="book/1/one"), notation)
    assert cell.id == "tab"
    assert cell.source.splitlines()[2:] == [
        "| A | B |",
        "| --- | --- |",
        '| $x$ | <a id="nota-x"></a>The `(...,\xa0n)` state, in two lines. |',
    ]
    (cell,) = finished(notation, draft("The [state](nota-x).", page="book/1/one"))
    assert cell.source == "The [state](../notation.ipynb#nota-x)."


def test_links_without_a_copy_to_open_are_text():
    text = "[a](../two.ipynb) [b](back/api.md) [c](https://example.org) {ref}`d <sec>`"
    pages = draft("x", page="book/two"), draft(text, "(sec)=\nHere", page="book/1/one")
    assert finished(*pages)[0].source == (
        "[a](../two.ipynb) b [c](https://example.org) [d](one.ipynb#cell-id=sec)"
    )
    assert finished(*pages, beside=False)[0].source == (
        "a b [c](https://example.org) [d](one.ipynb#cell-id=sec)"
    )


def test_an_example_of_the_lab_is_named_by_its_address():
    (cell,) = finished(draft("[Open it in the lab](lab-a-bowl)."))
    assert cell.source == "Open it in the lab (on the site, `book/lab/lab.html#lab-a-bowl`)."


# -------------------------------------------------------------------------------- exercises

EXERCISE = ":::{exercise} Title\n:label: ex\n*Code.* Do it.\n:::"
SOLUTION = ":::{solution-start} ex\n:class: dropdown\n:::\n\nSo."
END = ":::{solution-end}\n:::"


def test_an_exercise_its_answer_and_its_solution_have_cells_of_their_own():
    checker = CODE("check", id="checker", metadata={"tags": ["hide-input", "checker"]})
    made = draft(EXERCISE, checker, SOLUTION, CODE("solved", id="solved"), f"{END}\n\n## Next")
    assert [c.id for c in made.cells] == [
        "ex", "checker", "ex-answer", "ex-solution", "c2", "solved", "c4",
    ]  # fmt: skip
    assert made.cells[1].metadata.jupyter == {"source_hidden": True}
    assert made.cells[2].cell_type == "code" and made.cells[2].source == ""
    assert made.cells[3].metadata == {"jp-MarkdownHeadingCollapsed": True}


def test_an_exercise_with_a_checker_says_to_run_the_cells_above():
    checked = draft(EXERCISE.replace("Do it.", "Then run `check(f)`."), f"{SOLUTION}\n{END}")
    assert "Run All Above Selected Cell" in checked.cells[0].source
    assert "Run All Above" not in draft(EXERCISE, f"{SOLUTION}\n{END}").cells[0].source


def test_a_proof_is_answered_in_words():
    made = draft(EXERCISE.replace("Code", "Prove, easy"), f"{SOLUTION}\n{END}")
    assert made.cells[1].cell_type == "markdown"


def test_text_after_a_solution_would_be_folded_with_it():
    for after in ("Text.", CODE("1", id="c9")):
        with pytest.raises(sbn_cells.Unknown, match="book/page, cell c.*heading or an exercise"):
            draft(EXERCISE, SOLUTION, END, after)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (":::{tabs}\nx\n:::", r"the directive \{tabs\} has no plain form"),
        (":::{note}\nx", "::: is not closed"),
        ("```python\nx", "``` is not closed"),
    ],
)
def test_what_has_no_plain_form_is_named(text, told):
    with pytest.raises(sbn_cells.Unknown, match=told):
        draft(text)


# ------------------------------------------------------------------------------------ copies


def put(folder, **sources):
    for name, source in sources.items():
        path = folder / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[CODE(source, id="a")]), path)


def sources(folder):
    found = {p.stem: nbformat.read(p, as_version=4) for p in folder.glob("*.ipynb")}
    return {name: notebook.cells[0].source for name, notebook in found.items()}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """What the book makes, what the reader has, with a memory of trust that is nobody else's."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    made, copies = tmp_path / "made", tmp_path / "copies"
    put(made, read="1", written="1", gone="1", left="1")
    assert list(lab.refresh(made, copies)) == []
    return made, copies


def test_copies_are_trusted(folders):
    made, copies = folders
    assert sources(copies) == sources(made)
    for path in copies.glob("*.ipynb"):
        assert NotebookNotary().check_signature(nbformat.read(path, as_version=4))


def test_what_the_reader_wrote_stays_and_the_rest_follows_the_book(folders):
    made, copies = folders
    put(copies, written="mine", own="mine", left="mine")
    assert list(lab.refresh(made, copies)) == []  # the book has nothing newer
    put(made, read="2", written="2")
    (made / "gone.ipynb").unlink()
    (made / "left.ipynb").unlink()
    for _ in range(2):
        assert [p.stem for p in lab.refresh(made, copies)] == ["written"]
        assert sources(copies) == {
            "read": "2", "written": "mine", "own": "mine", "left": "mine",
        }  # fmt: skip


def test_a_broken_list_loses_nothing(folders):
    made, copies = folders
    put(copies, written="mine")
    put(made, read="2")
    (copies / lab.LIST).write_text("{")
    assert {p.stem for p in lab.refresh(made, copies)} == {"read", "written"}
    assert sources(copies) == {"read": "1", "written": "mine", "gone": "1", "left": "1"}


def test_without_a_build_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lab, "MADE", tmp_path)
    assert lab.main() == 1
    assert "run `make book`" in capsys.readouterr().err
