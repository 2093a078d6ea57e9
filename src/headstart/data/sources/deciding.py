"""Which task a table's target columns are for: decided by the set of their cells, with the evidence, or asked back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.label_cells import read_names
from headstart.data.sources.numerals import Numbers, name_signs, read_numbers
from headstart.data.sources.one_hot import are_flags, are_shares, describe_flags, marks_one_each
from headstart.data.sources.samples import some
from headstart.data.sources.tables import Table
from headstart.data.sources.tag_cells import find_tags, is_list_column, is_mapping, read_list, split_cell
from headstart.errors import DataError
from headstart.tasks.classify import CLASSIFY
from headstart.tasks.multilabel import MULTILABEL
from headstart.tasks.regress import REGRESS
from headstart.tasks.task import Kind, TaskKind
from headstart.wording import option

AskedKind = TaskKind | Literal["auto"]
FEW = 20
"""Up to this many distinct whole numbers could as well be classes."""
_LABEL_NAMES = re.compile(
    r"(?:class|label|category|species|breed)(?:es|s)?(?:[_ -]?(?:id|idx|index|no|num|number|code|name|label)s?)?|"
    r"cls|diagnosis|dx|genre|digit",
    re.IGNORECASE,
)

_DATE = re.compile(r"(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4}|\d{1,2}/\d{1,2}/\d{2})(?:[ T]\d.*)?")


def decide(table: Table, columns: tuple[str, ...], *, data: Data) -> tuple[Kind, str]:
    """The kind of task, and the evidence for it.

    Raises:
        DataError: there are two readings, or none; the message has the option that says which.
    """
    if len(columns) > 1:
        return _decide_several(table, columns, data=data)
    name, cells = columns[0], table.column(columns[0])
    if any(cells) and is_list_column(cells):
        return _decide_lists(table, name, cells)
    numbers = read_decimals(table, name, data=data)
    if numbers.share(cells) < 1:
        _refuse_mixed_signs(table, name, cells)
    if numbers.share(cells) >= 0.5:
        return _decide_numbers(table, name, numbers, data=data)
    return _decide_text(table, name, cells, data=data)


def _decide_several(table: Table, columns: tuple[str, ...], *, data: Data) -> tuple[Kind, str]:
    if marks_one_each(table, columns):
        return CLASSIFY, (
            f"exactly one 1 per row: the columns are classes; if they are tags: {option('task.kind', MULTILABEL.name)}"
        )
    if are_flags(table, columns):
        return MULTILABEL, describe_flags(table, columns)
    if are_shares(table, columns):
        return CLASSIFY, (
            "shares that sum to 1 in each row: the largest is the class; to learn the shares: "
            f"{option('task.kind', REGRESS.name)}"
        )
    numeric = [
        name
        for name in columns
        if read_numbers(table.column(name), decimal=data.decimal).share(table.column(name)) >= 0.5
    ]
    if len(numeric) == len(columns):
        return REGRESS, "columns of numbers"
    text = [name for name in columns if name not in numeric]
    raise DataError(
        f"data.target: several columns must all hold numbers, or 0/1 tags, and {some(text)} holds text; choose one: "
        f"{option('data.target', fill='COLUMN')}"
    )


def read_decimals(table: Table, name: str, *, data: Data) -> Numbers:
    """The cells of a column as numbers.

    Raises:
        DataError: two spellings fit, and give other numbers.
    """
    cells = table.column(name)
    numbers = read_numbers(cells, decimal=data.decimal)
    if numbers.doubt:
        readings = [read_numbers(cells, decimal=way) for way in ("comma", "point")]
        place = cells.index(numbers.doubt)
        comma, point = (reading.values[place] for reading in readings)
        shown = [f"{value:.15g}" if value is not None else "no number" for value in (comma, point)]
        raise DataError(
            f"{table.where(place)}: {numbers.doubt!r} in target column {name!r} is {shown[0]} with a decimal comma "
            f"and {shown[1]} with a decimal point, and the other cells do not tell; say which: "
            f"{option('data.decimal', 'comma')} or {option('data.decimal', 'point')}"
        )
    return numbers


def _decide_lists(table: Table, name: str, cells: Sequence[str]) -> tuple[Kind, str]:
    lists = [read_list(cell) or [] for cell in cells if cell]
    lengths = {len(items) for items in lists}
    if lengths == {1}:
        return CLASSIFY, "lists of exactly one label"
    flat = {item for items in lists for item in items}
    if len(lengths) == 1 and flat <= {"0", "1", "0.0", "1.0", "True", "False"} and flat:
        raise DataError(
            f"data.target: column {name!r} of {printable(table.path.name)} holds lists of {min(lengths)} zeros and "
            f"ones ({cells[0]!r}), whose tags have no names; give a column of 0 and 1 per tag, called by the tag"
        )
    if len(lengths) == 1 and flat and all(re.fullmatch(r"[+-]?\d*\.\d+(?:e[+-]?\d+)?", item) for item in flat):
        raise DataError(
            f"data.target: column {name!r} of {printable(table.path.name)} holds lists of {min(lengths)} numbers "
            f"({cells[0]!r}); give each a column of its own, and name them: "
            f"{option('data.target', fill='COLUMN COLUMN')}"
        )
    return MULTILABEL, "lists in brackets"


def _decide_numbers(table: Table, name: str, numbers: Numbers, *, data: Data) -> tuple[Kind, str]:
    cells = table.column(name)
    if table.delimiter == "," and "decimal commas" in numbers.note and data.decimal == "auto" and _may_be_tags(cells):
        raise DataError(
            f"task.kind: column {name!r} of {printable(table.path.name)} holds {some(sorted(set(cells)))}, which may "
            f"be numbers with decimal commas, or tags; say which: {option('data.decimal', 'comma')} or "
            f"{option('task.kind', MULTILABEL.name)}"
        )
    distinct = sorted({value for value in numbers.values if value is not None})
    is_whole = all(value.is_integer() for value in distinct) and not numbers.unit
    filled = [cell for cell in cells if cell]
    if is_whole and distinct == [0.0, 1.0]:
        return CLASSIFY, "two labels, 0 and 1"
    if is_whole and len(distinct) * 2 <= len(filled):
        if names := read_names(table, filled):
            return CLASSIFY, f"whole numbers that {printable(names.path.name)} names"
        if _LABEL_NAMES.fullmatch(name):
            return (
                CLASSIFY,
                f"{len(distinct)} whole numbers in a column called {name!r}; for quantities: "
                f"{option('task.kind', REGRESS.name)}",
            )
    if len(distinct) <= FEW and all(value.is_integer() for value in distinct):
        shown = some(sorted({cell for cell in cells if cell}))
        say = f"{option('task.kind', CLASSIFY.name)} or {option('task.kind', REGRESS.name)}"
        raise DataError(
            f"task.kind: column {name!r} of {printable(table.path.name)} holds {len(distinct)} distinct whole "
            f"numbers ({shown}), which may be classes or quantities; say which: {say}"
        )
    return REGRESS, "numbers"


def _may_be_tags(cells: Sequence[str]) -> bool:
    """Whether parts before and after the comma are the same short numbers: 1,3 beside 3,1."""
    pairs = [split_cell(cell, ",") for cell in cells if "," in cell]
    before, after = {pair[0] for pair in pairs}, {pair[-1] for pair in pairs}
    return all(len(part) <= 2 for pair in pairs for part in pair) and not before.isdisjoint(after)


def _refuse_mixed_signs(table: Table, name: str, cells: Sequence[str]) -> None:
    signs = name_signs(cells)
    if signs:
        raise DataError(
            f"task.kind: column {name!r} of {printable(table.path.name)} holds numbers with different signs "
            f"({some(signs)}{' and some without' if len(signs) == 1 else ''}); write them in one unit, without its "
            f"sign, or take them for names: {option('task.kind', CLASSIFY.name)}"
        )


def _decide_text(table: Table, name: str, cells: Sequence[str], *, data: Data) -> tuple[Kind, str]:
    if data.tags_separator != "auto":
        if any(len(split_cell(cell, data.tags_separator)) > 1 for cell in cells):
            return MULTILABEL, f"several tags separated by {data.tags_separator!r}"
        return CLASSIFY, "one text label per image"
    filled = [cell for cell in cells if cell]
    if filled and all(map(_DATE.fullmatch, filled)):
        comes_again = len(set(filled)) < len(filled)
        as_classes = f"; to take each for a class: {option('task.kind', CLASSIFY.name)}" if comes_again else ""
        raise DataError(
            f"task.kind: column {name!r} of {printable(table.path.name)} holds what looks like dates "
            f"({some(sorted(set(filled)))}); for numbers, write the days since the first of them into a column of its "
            f"own{as_classes}"
        )
    if all(map(is_mapping, cells)):
        raise DataError(
            f"data.target: column {name!r} of {printable(table.path.name)} holds mappings ({cells[0]!r}); give each "
            f"of their names a column of its own, or take the cells for names: {option('task.kind', CLASSIFY.name)}"
        )
    lists = sum(read_list(cell) is not None for cell in cells)
    if 2 * lists >= len(cells):
        row = next(row for row, cell in enumerate(cells) if cell and read_list(cell) is None)
        raise DataError(
            f"{table.where(row)}: {cells[row]!r} in target column {name!r} is no list in brackets, as {lists} other "
            f"cells are; mend it, or take the cells for names: {option('task.kind', CLASSIFY.name)}"
        )
    found = find_tags(cells)
    if found is None:
        return CLASSIFY, "one text label per image"
    if found.is_certain:
        return (
            MULTILABEL,
            f"several tags separated by {found.mark!r}: {found.why}; if they are names: "
            f"{option('task.kind', CLASSIFY.name)}",
        )
    if found.is_possible:
        raise DataError(
            f"task.kind: in column {name!r} of {printable(table.path.name)} {found.why}: one name, or several tags? "
            f"Say which: {option('task.kind', CLASSIFY.name)} or {option('task.kind', MULTILABEL.name)}"
        )
    return CLASSIFY, f"one text label per image: {found.why}; if they are tags: {option('task.kind', MULTILABEL.name)}"
