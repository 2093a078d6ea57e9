"""CSV and Parquet tables as rows of text, with the place of each row for error messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.csv_rows import read_text_rows
from headstart.data.sources.existing import LIST_SUFFIXES
from headstart.data.sources.pixel_columns import explain_pixels
from headstart.data.sources.samples import some
from headstart.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as stripped text; ``lines`` says where each row stands, counted in ``unit``.

    ``delimiter``: what separates the cells of a text file; ``unnamed``: columns without a name of their own; ``notes``:
    what was read otherwise than it stands there.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    unit: str
    delimiter: str = ""
    unnamed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> tuple[str, ...]:
        """The cells of one column, top to bottom."""
        place = self.columns.index(name)
        return tuple(row[place] for row in self.rows)

    def where(self, row: int) -> str:
        """How errors name a row, counted from 0: ``houses.csv line 5``."""
        return f"{printable(self.path.name)} {self.unit} {self.lines[row]}"

    def select(self, rows: Iterable[int], *, note: str) -> Table:
        """The table with these rows alone, and a note that says so."""
        places = tuple(rows)
        return replace(
            self,
            rows=tuple(self.rows[row] for row in places),
            lines=tuple(self.lines[row] for row in places),
            notes=(*self.notes, note),
        )


def read_table(path: Path, data: Data) -> Table:
    """The table; a list in a Parquet cell becomes text in brackets, as JSON writes it.

    Raises:
        DataError: it is not a table of that format, has no rows, or needs the parquet extra.
    """
    is_text = path.suffix.lower() in {".csv", ".tsv", *LIST_SUFFIXES}
    table = _read_text(path, header=data.header) if is_text else _read_parquet(path)
    if not table.rows:
        raise DataError(f"{printable(path)}: the table has no rows; give one row per image")
    repeated = sorted({name for name in table.columns if table.columns.count(name) > 1})
    pixels = explain_pixels(table.columns, table.rows) if repeated else ""  # of one without a header
    if pixels:
        raise DataError(f"{printable(path)}: {pixels}")
    if repeated:
        raise DataError(f"{printable(path)}: column {some(repeated)} occurs more than once; rename one")
    return table


def _read_text(path: Path, *, header: bool | str) -> Table:
    found = read_text_rows(path, header=header)
    return Table(
        path=path,
        columns=found.header,
        rows=tuple(cells for _, cells in found.rows),
        lines=tuple(line for line, _ in found.rows),
        unit="line",
        delimiter=found.delimiter,
        unnamed=found.unnamed,
        notes=tuple(f"{printable(path.name)}: {note}" for note in found.notes),
    )


def _read_parquet(path: Path) -> Table:
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
        [_text(cell, column=name, path=path) for cell in content[name].to_pylist()] for name in content.column_names
    ]
    rows = tuple(zip(*columns, strict=True))
    lines = tuple(range(1, len(rows) + 1))
    return Table(path=path, columns=tuple(content.column_names), rows=rows, lines=lines, unit="row")


def _text(cell: Any, *, column: str, path: Path) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, list):
        return json.dumps([str(part) for part in cell if part is not None], ensure_ascii=False)
    if isinstance(cell, (bytes, dict)):
        raise DataError(
            f"{printable(path)}: column {column!r} holds {type(cell).__name__}, not text or numbers; images are read "
            f"from files: give a table with a column of paths"
        )
    return str(cell).strip()
