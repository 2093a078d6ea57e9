"""CSV and Parquet tables as rows of text, with the place of each row for error messages."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.data.decoding.decode import printable
from headstart.data.sources.samples import some
from headstart.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as stripped text; ``lines`` says where each row stands, counted in ``unit``."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    unit: str

    def column(self, name: str) -> tuple[str, ...]:
        """The cells of one column, top to bottom."""
        place = self.columns.index(name)
        return tuple(row[place] for row in self.rows)

    def where(self, row: int) -> str:
        """How errors name a row, counted from 0: ``houses.csv line 5``."""
        return f"{printable(self.path.name)} {self.unit} {self.lines[row]}"


def read_table(path: Path, *, tags_separator: str) -> Table:
    """The table; lists in Parquet cells become text joined by ``tags_separator``.

    Raises:
        DataError: it is not a table of that format, has no rows, or needs the parquet extra.
    """
    table = _read_csv(path) if path.suffix.lower() in (".csv", ".tsv") else _read_parquet(path, tags_separator)
    if not table.rows:
        raise DataError(f"{printable(path)}: the table has no rows; give one row per image")
    repeated = sorted({name for name in table.columns if table.columns.count(name) > 1})
    if repeated:
        raise DataError(f"{printable(path)}: column {some(repeated)} occurs more than once; rename one")
    return table


def _read_csv(path: Path) -> Table:
    rows = _csv_rows(path)
    if not rows:
        raise DataError(f"{printable(path)}: the file is empty; its first line must name the columns")
    (_, header), *body = rows
    for line, cells in body:
        if len(cells) != len(header):
            raise DataError(
                f"{printable(path.name)} line {line}: it has {len(cells)} cells and the header names {len(header)} "
                f"columns ({some(header)}); put cells that contain the separator in double quotes"
            )
    cells_by_row, lines = tuple(cells for _, cells in body), tuple(line for line, _ in body)
    return Table(path=path, columns=header, rows=cells_by_row, lines=lines, unit="line")


def _csv_rows(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """(line on which it starts, stripped cells) of every row that is not blank."""
    rows: list[tuple[int, tuple[str, ...]]] = []
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                rows.append((line, tuple(cell.strip() for cell in cells)))
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: it is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{printable(path)} line {line}: not readable as CSV ({error}); mend the line") from error
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    return [(line, cells) for line, cells in rows if any(cells)]


def _delimiter(header: str) -> str:
    """The comma, unless the header has none and has another."""
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _read_parquet(path: Path, tags_separator: str) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{printable(path)}: reading Parquet needs pyarrow; install it with pip install 'headstart[parquet]', "
            f"or give a CSV"
        ) from error
    try:
        content = pyarrow.parquet.read_table(str(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{printable(path)}: not readable as Parquet ({str(error).splitlines()[0]})") from error
    columns = [
        [_text(cell, column=name, path=path, tags_separator=tags_separator) for cell in content[name].to_pylist()]
        for name in content.column_names
    ]
    rows = tuple(zip(*columns, strict=True))
    lines = tuple(range(1, len(rows) + 1))
    return Table(path=path, columns=tuple(content.column_names), rows=rows, lines=lines, unit="row")


def _join_tags(cell: list[Any], *, column: str, path: Path, tags_separator: str) -> str:
    """A list of tags as one text, from which they are read again."""
    tags = [str(part) for part in cell if part is not None]
    for tag in tags:
        if tags_separator in tag:
            raise DataError(
                f"{printable(path)}: tag {tag!r} in column {column!r} holds the separator {tags_separator!r}, so that "
                f"it would count as several; give a text that no tag holds, e.g. --data.tags_separator '|'"
            )
    return tags_separator.join(tags)


def _text(cell: Any, *, column: str, path: Path, tags_separator: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, list):
        return _join_tags(cell, column=column, path=path, tags_separator=tags_separator)
    if isinstance(cell, (bytes, dict)):
        raise DataError(
            f"{printable(path)}: column {column!r} holds {type(cell).__name__}, not text or numbers; images are read "
            f"from files: give a table with a column of paths"
        )
    return str(cell).strip()
