"""After the last cell of a notebook all its cells run once more, one by one, the last one first.

A reader goes back to a cell, changes a number and runs it again. It must not find there what a
later cell left behind: another tensor under the same name, a generator that has moved on, a trained
net.
"""

from __future__ import annotations

import copy
from itertools import groupby

import pytest
from nbval.plugin import IPyNbCell

#: The second time a figure draws the frame of its start alone: what it prints is the same.
PREFIX = '__import__("os").environ["SBN_FIGURES"] = "start"\n'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    grouped = [list(group) for _, group in groupby(items, lambda item: item.parent)]
    items[:] = [item for group in grouped for item in (*group, *again(group))]


def again(items: list[pytest.Item]) -> list[pytest.Item]:
    """A second run of cells that came in the order of their notebook; nothing for other tests."""
    return [_second(item) for item in reversed(items) if isinstance(item, IPyNbCell)]


def _second(item: IPyNbCell) -> IPyNbCell:
    cell = copy.deepcopy(item.cell)
    cell.source = PREFIX + cell.source
    return type(item).from_parent(
        item.parent,
        name=f"{item.name}, again",
        cell_num=item.cell_num,
        cell=cell,
        options=item.options,
    )
