"""Words that stand for a missing label: nan, NULL, N/A. They are asked about, for NA may be the name of a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.numerals import read_numbers
from headstart.data.sources.samples import some
from headstart.data.sources.tables import Table
from headstart.errors import DataError
from headstart.tasks.kinds import find_kind
from headstart.wording import option

_WORDS = (
    "nan -nan +nan null n/a na <na> #n/a #na n.a. n.a nat nil (null) <null> [null] \\n ? ?? -- --- – — #value! #ref! "
    "#div/0! #name? #null! #num!"
)
_ASKED = frozenset(_WORDS.split())
_SAID = frozenset({"none", "unknown", "missing", "undefined", "unlabeled", "unlabelled", "not available"})


def is_missing_word(cell: str) -> bool:
    """Whether programs write this for what is not there: nan, NULL, N/A, Python's None."""
    return cell.lower() in _ASKED or cell == "None"


def settle_missing(table: Table, columns: Sequence[str], *, data: Data, kind: str) -> Table:
    """The table without the rows whose target is missing, where that is asked for, and with notes on it.

    columns: the target's.

    Raises:
        DataError: a word may mean "missing" or be a class's name, and nobody said which.
    """
    cells = [cell for name in columns for cell in table.column(name)]
    words = Counter(cell for cell in cells if is_missing_word(cell) or (cell == "-" and "+" not in cells))
    if data.missing == "skip":
        return _leave_out(table, columns, words)
    if words and data.missing == "ask":
        word = max(words, key=lambda each: (words[each], each))
        row = next(row for row in range(len(table.rows)) for name in columns if table.column(name)[row] == word)
        count = sum(words.values())
        others = [cell for cell in cells if cell and cell not in words]
        may_be_numbers = (kind == "auto" or find_kind(kind).gives_numbers) and read_numbers(others).share(others) >= 0.5
        what = (
            "is not a finite number" if may_be_numbers else "may mean that the label is missing, or be a class's name"
        )
        keep = "" if may_be_numbers else f", or take it for a name: {option('data.missing', 'keep')}"
        counted = f"{count} {'rows have' if count > 1 else 'row has'} {some(sorted(words))}"
        raise DataError(
            f"{table.where(row)}: {word!r} in target column {some(columns)} {what} ({counted}); leave such rows out: "
            f"{option('data.missing', 'skip')}{keep}"
        )
    return table


def _leave_out(table: Table, columns: Sequence[str], words: Counter[str]) -> Table:
    held = [table.column(name) for name in columns]
    rows = [row for row in range(len(table.rows)) if all(column[row] and column[row] not in words for column in held)]
    count = len(table.rows) - len(rows)
    if not rows:
        raise DataError(
            f"{printable(table.path)}: target column {some(columns)} is missing in all {count} rows; choose another "
            f"column: {option('data.target', fill='COLUMN')}"
        )
    shown = f"{some(sorted(words))} or " if words else ""
    counted = "rows are" if count > 1 else "row is"
    note = f"{count} {counted} left out, whose label is missing ({shown}an empty cell), as asked"
    return table.select(rows, note=note) if count else table


def describe_doubtful_words(labels: Sequence[str]) -> tuple[str, ...]:
    """Notes on labels that may mean that there is none: they are classes all the same."""
    found = Counter(label for label in labels if label.lower() in _SAID and label != "None")
    return tuple(
        f"{word!r} ({count} {'images' if count > 1 else 'image'}) is taken for the name of a class; where it means "
        f"that the label is missing, leave the cells empty and say {option('data.missing', 'skip')}"
        for word, count in sorted(found.items())
    )
