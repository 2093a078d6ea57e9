"""One class per cell: equal numbers are one class, numbers may have names in a file, a list may hold exactly one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from headstart.data.decoding.decode import printable
from headstart.data.sources.class_names_file import ClassNames, find_class_names
from headstart.data.sources.numerals import normalise_number
from headstart.data.sources.samples import some
from headstart.data.sources.tables import Table
from headstart.data.sources.tag_cells import is_list_column, read_list
from headstart.errors import DataError
from headstart.tasks.multilabel import MULTILABEL
from headstart.wording import option


def read_class_cells(table: Table, column: str, *, known: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The class of each row, and notes.  known: the classes of a model that is there already.

    Raises:
        DataError: a cell is empty or holds several, or every row has a class of its own.
    """
    cells = table.column(column)
    for row, cell in enumerate(cells):
        if not cell:
            raise DataError(
                f"{table.where(row)}: target column {column!r} is empty; give the image its class, or leave such "
                f"rows out: {option('data.missing', 'skip')}"
            )
    if is_list_column(cells):
        cells = _unwrap(table, column, cells)
    cells, notes = merge_equal_numbers(cells, known=known)
    if len(set(cells)) == len(cells) > 2:
        raise DataError(
            f"data.target: column {column!r} has a different label in each of its {len(cells)} rows, so nothing can "
            f"be learned from it; choose the column with the classes: {option('data.target', fill='COLUMN')}"
        )
    names = None if known and set(cells) <= set(known) else read_names(table, cells)
    if names is None:
        return cells, notes
    return tuple(names.names[int(cell)] for cell in cells), (*notes, f"classes: named by {printable(names.path)}")


def _unwrap(table: Table, column: str, cells: Sequence[str]) -> tuple[str, ...]:
    lists = [read_list(cell) or [] for cell in cells]
    for row, items in enumerate(lists):
        if len(items) != 1:
            raise DataError(
                f"{table.where(row)}: {cells[row]!r} in target column {column!r} holds {len(items)} labels, and "
                f"classify takes exactly one; mend it, or say {option('task.kind', MULTILABEL.name)}"
            )
    return tuple(items[0] for items in lists)


def read_names(table: Table, cells: Sequence[str]) -> ClassNames | None:
    """The names that a file beside the table has for the cells; None where they are no whole numbers, or have none."""
    if not all(re.fullmatch(r"\d{1,6}", cell) for cell in cells):
        return None
    return find_class_names(table, [int(cell) for cell in cells])


def merge_equal_numbers(cells: Sequence[str], *, known: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The cells with one spelling for each number, and notes on what was merged: that of a known name, else the
    shortest.
    """
    spellings: dict[str, set[str]] = defaultdict(set)
    for name in {*cells, *known}:
        if (number := normalise_number(name)) is not None:
            spellings[number].add(name)
    chosen: dict[str, str] = {}
    notes = []
    for _, names in sorted(spellings.items()):
        there = sorted(names & set(known)) or sorted(names, key=lambda name: (len(name), name))
        chosen |= {name: there[0] for name in names if name not in known}
        used = sorted(names & set(cells))
        if len(used) > 1:
            notes.append(f"{some(used)} are one number, and one class: {there[0]!r}")
    return tuple(chosen.get(cell, cell) for cell in cells), tuple(notes)
