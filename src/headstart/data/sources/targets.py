"""The labels or numbers that a table's target columns hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.columns import require
from headstart.data.sources.deciding import AskedKind, decide, read_decimals
from headstart.data.sources.label_cells import read_class_cells
from headstart.data.sources.missing import describe_doubtful_words
from headstart.data.sources.one_hot import are_flags, are_shares, measure_flags, pick_marked, read_flags
from headstart.data.sources.samples import some
from headstart.data.sources.tables import Table
from headstart.data.sources.tag_cells import best_mark, is_list_column, read_list, split_cell
from headstart.errors import DataError
from headstart.tasks.classify import CLASSIFY
from headstart.tasks.kinds import find_kind
from headstart.tasks.multilabel import MULTILABEL
from headstart.tasks.task import Kind, TaskKind
from headstart.wording import option


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The labels of each row (classify: one; multilabel: any), or its numbers. ``names``: classes, tags or targets, in
    order; ``by_column``: they are names of columns, of numbers or of 0/1 tags.
    """

    kind: TaskKind
    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    numbers: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...]
    by_column: bool = False


def read_targets(
    table: Table, columns: tuple[str, ...], *, data: Data, kind: AskedKind, known: Sequence[str] = ()
) -> Targets:
    """What every row answers.  columns: those of the target; known: the names of a model that is there already.

    Raises:
        DataError: the columns do not say what the target is, or a cell does not fit the task.
    """
    decided, reason = (find_kind(kind), "as told") if kind != "auto" else decide(table, columns, data=data)
    note = f"task: {decided.name} from {some(columns)} of {printable(table.path.name)} ({reason})"
    if data.log and not decided.gives_numbers:
        raise DataError(f"data.log: it is for numbers, and the task is {decided.name}; leave it out")
    if decided.gives_numbers:
        numbers, more = _read_numbers(table, columns, data=data)
        none = ((),) * len(numbers)
        notes = (note, *more)
        return Targets(kind=decided.name, names=columns, labels=none, numbers=numbers, notes=notes, by_column=True)
    labels, by_column, more = _read_labels(table, columns, decided=decided, data=data, known=known)
    names = tuple(sorted(columns if by_column else {label for row in labels for label in row}))
    numbers = ((),) * len(labels)
    notes = (note, *more)
    return Targets(kind=decided.name, names=names, labels=labels, numbers=numbers, notes=notes, by_column=by_column)


def choose_target_columns(table: Table, others: Sequence[str], *, data: Data) -> tuple[str, ...]:
    """The columns with the target.  others: those that are neither image nor split nor group.

    Raises:
        DataError: an option names a column that is not there or in use, or several may be meant.
    """
    if data.target != "auto":
        columns = (data.target,) if isinstance(data.target, str) else tuple(dict.fromkeys(data.target))
        for name in columns:
            require(table, name, field="target")
        taken = [name for name in columns if name not in others]
        if taken:
            raise DataError(
                f"data.target: column {some(taken)} is in use as image, split or group; left are {some(others)}"
            )
        return columns
    if len(others) == 1 or (len(others) > 1 and (are_flags(table, others) or are_shares(table, others))):
        return tuple(others)
    if not others:
        raise DataError(
            f"{printable(table.path)}: beside images, split and group there is no column left for the target; its "
            f"columns are {some(table.columns, limit=20)}: add one with the labels"
        )
    raise DataError(
        f"{printable(table.path)}: any of the columns {some(others, limit=20)} can be the target; choose with "
        f"{option('data.target', fill='COLUMN')} (several for several numbers or 0/1 tags)"
    )


def _read_labels(
    table: Table, columns: tuple[str, ...], *, decided: Kind, data: Data, known: Sequence[str]
) -> tuple[tuple[tuple[str, ...], ...], bool, tuple[str, ...]]:
    """Each row's labels, whether they are names of columns that all count, and notes."""
    if decided.one_label and len(columns) > 1:
        return _read_one_hot(table, columns)
    if decided.one_label:
        cells, notes = read_class_cells(table, columns[0], known=known)
        return tuple((cell,) for cell in cells), False, (*notes, *describe_doubtful_words(cells))
    if len(columns) > 1 or are_flags(table, columns):
        return read_flags(table, columns), True, ()
    cells = table.column(columns[0])
    if is_list_column(cells):
        return tuple(tuple(sorted(set(read_list(cell) or ()))) for cell in cells), False, ()
    mark = best_mark(cells, known) if data.tags_separator == "auto" else data.tags_separator
    note = f"tags: separated by {mark!r}" if mark != "," and data.tags_separator == "auto" else ""
    tags = tuple(tuple(sorted(set(split_cell(cell, mark)))) for cell in cells)
    return tags, False, (note,) if note else ()


def _read_one_hot(table: Table, columns: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], ...], bool, tuple[str, ...]]:
    if measure_flags(table, columns) < 0.5 and not are_shares(table, columns):
        raise DataError(
            f"data.target: classify takes one column of labels, and {len(columns)} are given ({some(columns)}); "
            f"choose one, or say {option('task.kind', MULTILABEL.name)} for 0/1 columns"
        )
    labels = pick_marked(table, columns)
    absent = [name for name in columns if name not in {row[0] for row in labels}]
    note = f"column {some(absent)} marks no image, and is no class"
    return labels, False, (note,) if absent else ()


def _read_numbers(
    table: Table, columns: Sequence[str], *, data: Data
) -> tuple[tuple[tuple[float, ...], ...], tuple[str, ...]]:
    """Each row's numbers, and a note for each column that is not plainly written.

    Raises:
        DataError: a cell is no number in the spelling of the others, or has no logarithm.
    """
    by_column, notes = [], []
    for name in columns:
        found = read_decimals(table, name, data=data)
        if found.note:
            notes.append(f"numbers of {name!r} are read with {found.note}, e.g. {_example(table, name, found.values)}")
        values = []
        for row, (cell, value) in enumerate(zip(table.column(name), found.values, strict=True)):
            if value is None or not math.isfinite(value):
                shown, how = (
                    repr(cell) if cell else "an empty cell",
                    f" as the others (with {found.note})" * bool(found.note),
                )
                skip = "" if cell else f", leave such rows out: {option('data.missing', 'skip')}"
                raise DataError(
                    f"{table.where(row)}: {shown} in target column {name!r} is not a finite number{how}; mend "
                    f"it{skip}, or say {option('task.kind', CLASSIFY.name)} if the column holds names"
                )
            if data.log and value <= 0:
                raise DataError(
                    f"{table.where(row)}: {cell!r} in target column {name!r} has no logarithm; data.log accepts "
                    f"numbers above 0: mend it, or leave out {option('data.log')}"
                )
            values.append(value)
        by_column.append(values)
    return tuple(zip(*by_column, strict=True)), tuple(notes)


def _example(table: Table, name: str, values: Sequence[float | None]) -> str:
    pairs = zip(table.column(name), values, strict=True)
    return next((f"{cell!r} is {value:.15g}" for cell, value in pairs if value is not None and not cell.isdigit()), "")
