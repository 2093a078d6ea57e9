"""The labels or numbers that a table's target columns hold, and the task that follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.columns import require
from headstart.data.sources.samples import some
from headstart.data.sources.tables import Table
from headstart.errors import DataError
from headstart.tasks.classify import CLASSIFY
from headstart.tasks.kinds import find_kind
from headstart.tasks.multilabel import MULTILABEL
from headstart.tasks.regress import REGRESS
from headstart.tasks.task import Kind, TaskKind

AskedKind = TaskKind | Literal["auto"]
FEW = 20
"""Up to this many distinct whole numbers could as well be classes."""
_BINARY = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Per row: labels (classify: one; multilabel: any), or numbers. ``names``: classes, tags or targets, in order;
    ``by_column``: they are names of columns, of numbers or of 0/1 tags.
    """

    kind: TaskKind
    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    numbers: tuple[tuple[float, ...], ...]
    note: str
    by_column: bool = False


def read_targets(table: Table, others: Sequence[str], *, data: Data, kind: AskedKind) -> Targets:
    """What every row answers.  others: columns that are neither image nor split nor group.

    Raises:
        DataError: the columns do not say what the target is, or a cell does not fit the task.
    """
    columns = _target_columns(table, others, data=data)
    decided, reason = (find_kind(kind), "as told") if kind != "auto" else _decide(table, columns, data.tags_separator)
    note = f"task: {decided.name} from {some(columns)} of {printable(table.path.name)} ({reason})"
    if data.log and not decided.gives_numbers:
        raise DataError(f"data.log: it is for numbers, and the task is {decided.name}; leave it out")
    if decided.gives_numbers:
        numbers = _numbers(table, columns, log=data.log)
        none = ((),) * len(numbers)
        return Targets(kind=decided.name, names=columns, labels=none, numbers=numbers, note=note, by_column=True)
    by_column = not decided.one_label and (len(columns) > 1 or _all_binary(table, columns))
    if decided.one_label:
        labels = _classes(table, columns)
    elif by_column:
        labels = _flags(table, columns)
    else:
        labels = _tags(table, columns[0], data.tags_separator)
    names = tuple(sorted(columns if by_column else {label for row in labels for label in row}))
    numbers = ((),) * len(labels)
    return Targets(kind=decided.name, names=names, labels=labels, numbers=numbers, note=note, by_column=by_column)


def _target_columns(table: Table, others: Sequence[str], *, data: Data) -> tuple[str, ...]:
    if data.target != "auto":
        columns = (data.target,) if isinstance(data.target, str) else tuple(dict.fromkeys(data.target))
        for name in columns:
            require(table, name, option="target")
        taken = [name for name in columns if name not in others]
        if taken:
            raise DataError(
                f"data.target: column {some(taken)} is in use as image, split or group; left are {some(others)}"
            )
        return columns
    if len(others) == 1 or (len(others) > 1 and _all_binary(table, others)):
        return tuple(others)
    if not others:
        raise DataError(
            f"{printable(table.path)}: beside images, split and group there is no column left for the target; its "
            f"columns are {some(table.columns, limit=20)}: add one with the labels"
        )
    raise DataError(
        f"{printable(table.path)}: any of the columns {some(others, limit=20)} can be the target; choose with "
        f"--data.target COLUMN (several for several numbers or 0/1 tags)"
    )


def _decide(table: Table, columns: tuple[str, ...], separator: str) -> tuple[Kind, str]:
    if len(columns) > 1 and _all_binary(table, columns):
        return MULTILABEL, "0/1 columns"
    numeric = [name for name in columns if _mostly_numbers(table.column(name))]
    if len(columns) > 1:
        if len(numeric) == len(columns):
            return REGRESS, "columns of numbers"
        text = [name for name in columns if name not in numeric]
        raise DataError(
            f"data.target: several columns must all hold numbers, or 0/1 tags, and {some(text)} holds text; "
            f"choose one: --data.target COLUMN"
        )
    cells = table.column(columns[0])
    if not numeric:
        if any(len(_split_tags(cell, separator)) > 1 for cell in cells):
            return MULTILABEL, f"several tags separated by {separator!r}"
        return CLASSIFY, "one text label per image"
    distinct = {cell for cell in cells if cell}
    if len(distinct) <= FEW and all((_number(cell) or 0.0).is_integer() for cell in distinct):
        raise DataError(
            f"task.kind: column {columns[0]!r} of {printable(table.path.name)} holds {len(distinct)} distinct whole "
            f"numbers ({some(sorted(distinct))}), which may be classes or quantities; say which: "
            f"--task.kind classify or --task.kind regress"
        )
    return REGRESS, "numbers"


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_2 as 12; in a table it is a name
    except ValueError:
        return None


def _mostly_numbers(cells: Sequence[str]) -> bool:
    """At least half: a column of prices with a few typing errors is one of numbers, and the errors are then named."""
    given = [cell for cell in cells if cell]
    return bool(given) and 2 * sum(_number(cell) is not None for cell in given) >= len(given)


def _all_binary(table: Table, columns: Sequence[str]) -> bool:
    return all(cell.lower() in _BINARY for name in columns for cell in table.column(name))


def _numbers(table: Table, columns: Sequence[str], *, log: bool) -> tuple[tuple[float, ...], ...]:
    by_column = []
    for name in columns:
        values = []
        for row, cell in enumerate(table.column(name)):
            value = _number(cell)
            if value is None or not math.isfinite(value):
                found = repr(cell) if cell else "an empty cell"
                raise DataError(
                    f"{table.where(row)}: {found} in target column {name!r} is not a finite number; mend it, "
                    f"or say --task.kind classify if the column holds names"
                )
            if log and value <= 0:
                raise DataError(
                    f"{table.where(row)}: {cell!r} in target column {name!r} has no logarithm; data.log accepts "
                    f"numbers above 0: mend it, or leave out --data.log"
                )
            values.append(value)
        by_column.append(values)
    return tuple(zip(*by_column, strict=True))


def _classes(table: Table, columns: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    if len(columns) > 1:
        raise DataError(
            f"data.target: classify takes one column of labels, and {len(columns)} are given ({some(columns)}); "
            f"choose one, or say --task.kind multilabel for 0/1 columns"
        )
    cells = table.column(columns[0])
    for row, cell in enumerate(cells):
        if not cell:
            raise DataError(f"{table.where(row)}: target column {columns[0]!r} is empty; give the image its class")
    if len(set(cells)) == len(cells) > 2:
        raise DataError(
            f"data.target: column {columns[0]!r} has a different label in each of its {len(cells)} rows, so nothing "
            f"can be learned from it; choose the column with the classes: --data.target COLUMN"
        )
    return tuple((cell,) for cell in cells)


def _flags(table: Table, columns: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    labels: list[list[str]] = [[] for _ in table.rows]
    for name in sorted(columns):
        for row, cell in enumerate(table.column(name)):
            if cell.lower() not in _BINARY:
                raise DataError(
                    f"{table.where(row)}: {cell!r} in target column {name!r} is neither 0 nor 1; several columns are "
                    f"0/1 tags in multilabel, numbers in regress: --task.kind regress"
                )
            if _BINARY[cell.lower()]:
                labels[row].append(name)
    return tuple(tuple(row) for row in labels)


def _tags(table: Table, column: str, separator: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(sorted(set(_split_tags(cell, separator)))) for cell in table.column(column))


def _split_tags(cell: str, separator: str) -> list[str]:
    parts = cell.split(separator) if separator else [cell]
    return [part.strip() for part in parts if part.strip()]
