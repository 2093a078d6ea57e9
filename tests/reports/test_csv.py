"""CSV for spreadsheets: no cell is a formula, every text comes back, numbers stay numbers."""

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from headstart.reports.csv import csv_text, plain_text

RUN = ("=", "+", "-", "@", "\t", "\r")


@given(st.lists(st.lists(st.text(alphabet="=+-@\t\r\n'\";,a|", max_size=6), min_size=2, max_size=2), max_size=4))
def test_no_text_is_a_formula_and_each_comes_back(rows: list[list[str]]) -> None:
    text = csv_text(rows, header=["=id", "b"])
    (head, *body) = csv.reader(io.StringIO(text, newline=""))
    assert [plain_text(name) for name in head] == ["=id", "b"]
    assert [[plain_text(cell) for cell in row] for row in body] == rows
    assert not [cell for row in (head, *body) for cell in row if cell.startswith(RUN)]


def test_numbers_stay_numbers_also_below_zero_and_nothing_is_empty() -> None:
    assert csv_text([["-1.5", -1.5, 3, None]], header=["a", "b", "c", "d"]) == '"a","b","c","d"\n"\'-1.5",-1.5,3,""\n'


def test_a_cell_holds_together_where_the_separator_is_a_semicolon() -> None:
    text = csv_text([["a;=cmd|' /C calc'!A0", 1.0]], header=["x", "y"])
    (_, row) = csv.reader(io.StringIO(text), delimiter=";")
    assert not [cell for cell in row if cell.startswith(RUN)]
