"""Columns of flags and of shares: one per tag, or one per class with exactly one of them at 1 in every row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from headstart.data.sources.numerals import read_plain_number
from headstart.data.sources.samples import some
from headstart.data.sources.tables import Table
from headstart.errors import DataError
from headstart.tasks.multilabel import MULTILABEL
from headstart.tasks.regress import REGRESS
from headstart.wording import option

_ZERO_ONE = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_YES_NO = {"no": False, "yes": True, "n": False, "y": True, "f": False, "t": True, "off": False, "on": True}
_SIGNED = {"-1": False, "1": True, "-1.0": False, "1.0": True}
_TICKS = ("x", "✓", "✔", "☑", "*", "+")
_TOLERANCE = 0.011  # shares with two digits, of which three are rounded


def _alphabet(table: Table, columns: Sequence[str]) -> dict[str, bool] | None:
    """What the cells of these columns mean as flags: 0/1, -1/1, yes/no; None where some that are not empty differ."""
    cells = {cell.lower() for name in columns for cell in table.column(name) if cell}
    return next((words for words in (_ZERO_ONE, _SIGNED, _YES_NO) if cells and cells <= set(words)), None)


def fill_ticks(table: Table, columns: Sequence[str]) -> Table:
    """The table with 1 for a tick and 0 for nothing, and a note, where several columns hold one tick or nothing."""
    places = [table.columns.index(name) for name in columns]
    cells = {row[place].lower() for row in table.rows for place in places}
    ticks = sorted(cells - {""})
    if len(columns) < 2 or "" not in cells or len(ticks) != 1 or ticks[0] not in _TICKS:
        return table
    rows = tuple(
        tuple(str(int(bool(cell))) if place in places else cell for place, cell in enumerate(row)) for row in table.rows
    )
    note = f"columns {some(columns)}: {ticks[0]!r} is 1, an empty cell is 0"
    return replace(table, rows=rows, notes=(*table.notes, note))


def are_flags(table: Table, columns: Sequence[str]) -> bool:
    """Whether every cell that is not empty says yes or no: 0/1, true/false, words, or -1/1 where no 0 is among them."""
    return _alphabet(table, columns) is not None


def describe_flags(table: Table, columns: Sequence[str]) -> str:
    """How columns of flags are read, as a phrase: -1 is not 0 to everybody (some mean that nobody looked)."""
    if _alphabet(table, columns) is _SIGNED:
        skip = option("data.missing", "skip")
        return f"-1/1 columns: -1 is off; if it means unknown, empty those cells and add {skip}"
    return "yes/no columns" if _alphabet(table, columns) is _YES_NO else "0/1 columns"


def measure_flags(table: Table, columns: Sequence[str]) -> float:
    """The share of the columns' cells that say yes or no, or are empty."""
    cells = [cell.lower() for name in columns for cell in table.column(name)]
    return sum(cell in _ZERO_ONE or cell in _SIGNED or cell in _YES_NO or not cell for cell in cells) / len(cells)


def read_flags(table: Table, columns: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The columns that each row marks, sorted by name.

    Raises:
        DataError: a cell is neither yes nor no.
    """
    words = _alphabet(table, columns) or _ZERO_ONE
    labels: list[list[str]] = [[] for _ in table.rows]
    for name in sorted(columns):
        for row, cell in enumerate(table.column(name)):
            if cell.lower() not in words:
                raise DataError(_refuse(table, row, name, cell))
            if words[cell.lower()]:
                labels[row].append(name)
    return tuple(tuple(row) for row in labels)


def _refuse(table: Table, row: int, name: str, cell: str) -> str:
    if not cell:
        return (
            f"{table.where(row)}: target column {name!r} is empty; give 0 or 1, or leave such rows out: "
            f"{option('data.missing', 'skip')}"
        )
    return (
        f"{table.where(row)}: {cell!r} in target column {name!r} is neither 0 nor 1; several columns are 0/1 tags in "
        f"multilabel, numbers in regress: {option('task.kind', REGRESS.name)}"
    )


def marks_one_each(table: Table, columns: Sequence[str]) -> bool:
    """Whether the columns are flags, of which every row has exactly one."""
    return len(columns) > 1 and are_flags(table, columns) and all(len(row) == 1 for row in read_flags(table, columns))


def are_shares(table: Table, columns: Sequence[str]) -> bool:
    """Whether the columns hold numbers from 0 to 1 that sum to 1 in every row, and are no flags."""
    if len(columns) < 2 or are_flags(table, columns):
        return False
    for cells in zip(*(table.column(name) for name in columns), strict=True):
        numbers = [read_plain_number(cell) for cell in cells]
        if not all(number is not None and 0 <= number <= 1 for number in numbers):
            return False
        if abs(math.fsum(number for number in numbers if number is not None) - 1) > _TOLERANCE:
            return False
    return True


def pick_marked(table: Table, columns: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The class of each row: the one column at 1, or the one with the largest share.

    Raises:
        DataError: a row marks none or several, or two shares are the largest.
    """
    if are_shares(table, columns):
        return tuple((_pick_largest(table, row, columns),) for row in range(len(table.rows)))
    labels = read_flags(table, columns)
    for row, marked in enumerate(labels):
        if len(marked) != 1:
            what = f"marks {some(marked)}" if marked else "marks no column"
            raise DataError(
                f"{table.where(row)}: the row {what}, and classify takes exactly one class per image; mend it, or "
                f"say {option('task.kind', MULTILABEL.name)} for any number of tags"
            )
    return labels


def _pick_largest(table: Table, row: int, columns: Sequence[str]) -> str:
    shares = [read_plain_number(table.rows[row][table.columns.index(name)]) or 0.0 for name in columns]
    largest = [name for name, share in zip(columns, shares, strict=True) if share == max(shares)]
    if len(largest) > 1:
        raise DataError(
            f"{table.where(row)}: the shares of {some(largest)} are the largest alike, so that the image has no "
            f"class; leave the row out, or learn the shares as numbers: {option('task.kind', REGRESS.name)}"
        )
    return largest[0]
