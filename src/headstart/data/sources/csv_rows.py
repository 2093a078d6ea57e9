"""The rows of a text table, whoever wrote it: encoding, separator, ``sep=``, comments, and whether it has a header."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.data.decoding.decode import printable
from headstart.data.sources.existing import LIST_SUFFIXES
from headstart.data.sources.samples import IMAGE_SUFFIXES, some
from headstart.errors import DataError
from headstart.wording import option

"""Lists of files, as data sets of research have them: blanks may separate the cells, and a header is not usual."""
Row = tuple[int, tuple[str, ...]]
"""The line on which a row starts, and its stripped cells."""
_SEP_LINE = re.compile(r'"?sep=(?P<mark>\\t|.)"?[\s,;|]*', re.IGNORECASE)
_MARKS = (",", ";", "\t", "|")


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """Names of the columns and the rows below; ``notes`` say what was read otherwise than it stands there.

    ``unnamed``: the columns that the header leaves blank, which are called by their place.
    """

    header: tuple[str, ...]
    unnamed: tuple[str, ...]
    rows: tuple[Row, ...]
    delimiter: str
    notes: tuple[str, ...]


def read_text_rows(path: Path, *, header: bool | str) -> TextRows:
    """The rows of a CSV, TSV or list of files.  header: whether the first row names the columns, or auto.

    Raises:
        DataError: it is no text, no table, or its first row looks like the others.
    """
    text, notes = _decode(path)
    lines = list(io.StringIO(text, newline=""))
    first, mark = _read_sep_line(lines)
    comments = first
    while comments < len(lines) and lines[comments].lstrip().startswith("#"):
        comments += 1
    delimiter = mark or _find_delimiter(lines[comments:], path)
    body = _parse(lines[comments:], path=path, delimiter=delimiter, before=comments)
    names = _header_in_comments(lines[first:comments], body, path=path, delimiter=delimiter)
    passed_over = comments - first - bool(names)
    body = [row for row in body if any(row[1])]
    if not body and not names:
        raise DataError(f"{printable(path)}: the file is empty; its first line must name the columns")
    if not names:
        names, body = _split_off_header(body, path=path, header=header)
    rows, comments_within = _drop_comments(body, columns=len(names))
    passed_over += comments_within
    if passed_over:
        notes = (*notes, f"{passed_over} comment {'lines are' if passed_over > 1 else 'line is'} passed over")
    _check_lengths(rows := _trim(rows, columns=len(names)), names, path=path)
    called = tuple(name or made for name, made in zip(names, name_columns(len(names)), strict=True))
    unnamed = tuple(made for name, made in zip(names, called, strict=True) if not name)
    return TextRows(header=called, unnamed=unnamed, rows=tuple(rows), delimiter=delimiter, notes=notes)


def _decode(path: Path) -> tuple[str, tuple[str, ...]]:
    """The file's text, and a note where it is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    is_utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: it is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    return text, ("read as UTF-16, as its first bytes say",) if is_utf16 else ()


def _read_sep_line(lines: Sequence[str]) -> tuple[int, str]:
    """How many lines the spreadsheet's own ``sep=;`` takes, and the separator that it names."""
    said = _SEP_LINE.fullmatch(lines[0].strip("\r\n ")) if lines else None
    if said is None:
        return 0, ""
    return 1, "\t" if said["mark"] == "\\t" else said["mark"]


def _find_delimiter(lines: Sequence[str], path: Path) -> str:
    """The mark that cuts the first rows into equally many cells, the comma before others; else the first line's."""
    sample = [line for line in lines[:50] if line.strip()]
    sample = sample[:-1] if len(lines) > 50 else sample  # the last one may break off within quotes
    marks = (*_MARKS, " ") if path.suffix.lower() in LIST_SUFFIXES else _MARKS
    for mark in marks:
        try:
            counts = [len([cell for cell in row if cell or mark != " "]) for row in _reader(sample, mark)]
        except csv.Error:
            continue
        if counts and min(counts) == max(counts) >= 2:
            return mark
    header = sample[0] if sample else ""
    return next((mark for mark in marks if mark in header), ",")


def _reader(lines: Sequence[str], delimiter: str) -> Any:
    if delimiter == " ":
        lines = [line.strip() + "\n" for line in lines]
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=delimiter == " ")


def _parse(lines: Sequence[str], *, path: Path, delimiter: str, before: int) -> list[Row]:
    rows: list[Row] = []
    line = before + 1
    try:
        reader = _reader(lines, delimiter)
        for cells in reader:
            rows.append((line, tuple(cell.strip() for cell in cells)))
            line = before + reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{printable(path)} line {line}: not readable as CSV ({error}); mend the line") from error
    return rows


def _header_in_comments(comments: Sequence[str], body: Sequence[Row], *, path: Path, delimiter: str) -> tuple[str, ...]:
    """Names of the columns that stand in a comment, as NumPy writes them: above rows of images, with as many cells."""
    if not comments or not body or not _names_image(body[0][1]):
        return ()
    bare = [line.lstrip().lstrip("#").strip() + "\n" for line in comments]
    for _, cells in reversed(_parse(bare, path=path, delimiter=delimiter, before=0)):
        if len(cells) == len(body[0][1]) >= 2 and all(cells):
            return cells
    return ()


def _names_image(cells: Sequence[str]) -> bool:
    return any(os.path.splitext(cell)[1].lower() in IMAGE_SUFFIXES for cell in cells)  # noqa: PTH122 (not a path yet)


def _split_off_header(body: list[Row], *, path: Path, header: bool | str) -> tuple[tuple[str, ...], list[Row]]:
    """Names of the columns, and the rows below them; names are made where the rows begin at once.

    Raises: DataError: the first row looks like the others, and nobody said what it is.
    """
    line, first = body[0]
    is_list = path.suffix.lower() in LIST_SUFFIXES
    begins_at_once = _names_image(first) or (is_list and _looks_like(first, [cells for _, cells in body[1:50]]))
    if header is False or (header == "auto" and begins_at_once and is_list):
        return name_columns(len(first)), body
    if header == "auto" and begins_at_once:
        raise DataError(ask_for_header(path, line=line, cells=first))
    return first, body[1:]


def ask_for_header(path: Path, *, line: int, cells: Sequence[str]) -> str:
    """The question what the first row is, where it looks like the others."""
    names = ["image", *(f"label{place}" if place > 1 else "label" for place in range(1, min(len(cells), 12)))]
    above = ",".join(names) + (f" and so on, {len(cells):,} names" if len(names) < len(cells) else "")
    return (
        f"{printable(path.name)} line {line}: the first row must name the columns, and ({some(cells)}) looks like an "
        f"image with its label: put a line above it, e.g. {above}, or say that there is no header: "
        f"{option('data.header', False)} (the columns are then called {some(name_columns(len(cells)))}); if it is "
        f"one: {option('data.header', True)}"
    )


def name_columns(count: int) -> tuple[str, ...]:
    """Names for the columns of a table without a header: ``column 1``, ``column 2``."""
    return tuple(f"column {place}" for place in range(1, count + 1))


def _looks_like(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row has a number wherever all others have one, in at least one column."""
    numeric = [place for place in range(len(first)) if rows and all(_is_number(row[place : place + 1]) for row in rows)]
    return all(_is_number(first[place : place + 1]) for place in numeric) and (bool(numeric) or len(first) == 1)


def _is_number(cells: Sequence[str]) -> bool:
    return bool(cells) and re.fullmatch(r"[+-]?\d+([.,]\d*)?", cells[0]) is not None


def _drop_comments(body: Sequence[Row], *, columns: int) -> tuple[list[Row], int]:
    """Rows without the comments among them: lines that begin with # and are no row of the table."""
    kept = [row for row in body if not row[1][0].startswith("#") or (len(row[1]) == columns and _names_image(row[1]))]
    return kept, len(body) - len(kept)


def _trim(rows: Sequence[Row], *, columns: int) -> list[Row]:
    """Rows without the empty cells behind the last column, which a separator at the end of each line makes."""
    return [(line, cells[:columns] if not any(cells[columns:]) else cells) for line, cells in rows]


def _check_lengths(rows: Sequence[Row], header: Sequence[str], *, path: Path) -> None:
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{printable(path.name)} line {line}: it has {len(cells)} cells and the header names {len(header)} "
                f"columns ({some(header)}); put cells that contain the separator in double quotes"
            )
