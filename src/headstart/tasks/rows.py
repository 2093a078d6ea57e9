"""Rows of predictions.csv, read back: cells, numbers, and how a number is written in text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from headstart.errors import StorageError

Row = Mapping[str, str]


def cell(row: Row, column: str) -> str:
    """The text in a column of predictions.csv.

    Raises: StorageError: there is no such column.
    """
    if column not in row:
        raise StorageError(f"predictions.csv: is damaged, it has no column {column!r} (columns: {', '.join(row)})")
    return row[column]


def number(row: Row, column: str) -> float:
    """The number in a column of predictions.csv.

    Raises: StorageError: the column is missing or holds no number.
    """
    text = cell(row, column)
    try:
        return float(text)
    except ValueError as error:
        raise StorageError(
            f"predictions.csv: is damaged, {column} of {row.get('id')} is {text!r}, no number"
        ) from error


def read_numbers(rows: Sequence[Row], columns: Sequence[str]) -> Tensor:
    """Columns of numbers, (N, number of columns) in float64.

    Raises: StorageError: a column is missing or a cell holds no number.
    """
    table = [[number(row, column) for column in columns] for row in rows]
    return torch.from_numpy(np.array(table, dtype=np.float64).reshape(len(rows), len(columns)))


def format_amount(value: float, *, sign: bool = False) -> str:
    """A number in the target's unit: 869,500 or 0.0312, with a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    plus = "+" if sign else ""
    text = f"{value:{plus},.0f}" if abs(value) >= 1000 else f"{value:{plus}.4g}"
    return text.replace("-", "−")
