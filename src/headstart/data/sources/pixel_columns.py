"""Tables that hold the pixels of images in place of their paths: what they are, and what to do with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LEAST = 64  # whole numbers of a row that are pixels: 8 x 8
_ASKED = 20  # rows that are looked at


def explain_pixels(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Say that a table's rows are pixels, and how to write them as files; nothing of a table of another kind.

    They are a column each (``pixel0`` to ``pixel783``), or numbers with blanks between them in one cell.
    """
    some = rows[:_ASKED]
    levels = [name for place, name in enumerate(columns) if some and all(_is_level(row[place]) for row in some)]
    if len(levels) >= _LEAST:
        count = len(levels)
        if count == len(columns) and not _shape(count) and _shape(count - 1):  # the label is a number as small
            count -= 1
        return f"{count} of its {len(columns)} columns hold {_advise(count)}"
    for place, name in enumerate(columns):
        counts = {len(row[place].split()) for row in some if all(map(_is_level, row[place].split()))}
        if len(counts) == 1 and (count := counts.pop()) >= _LEAST:
            return f"column {name!r} holds {_advise(count)}"
    return ""


def _is_level(cell: str) -> bool:
    return cell.isascii() and cell.isdecimal() and len(cell) <= 3 and int(cell) <= 255


def _shape(count: int) -> tuple[int, ...]:
    """The height and width of a square picture of so many values, with 3 where it has colours; nothing for none."""
    for bands in ((), (3,)):
        pixels, left = divmod(count, math.prod(bands))
        side = math.isqrt(pixels)
        if not left and side * side == pixels:
            return (side, side, *bands)
    return ()


def _advise(count: int) -> str:
    shape = _shape(count)
    size = f", {' x '.join(map(str, shape))}" if shape else ""
    reshaped = f"values.reshape({', '.join(map(str, shape))})" if shape else "values.reshape(HEIGHT, WIDTH)"
    return (
        f"the pixels of images{size}; images are read from files: write each row as one, in a folder named for its "
        f'class, e.g. PIL.Image.fromarray({reshaped}.astype("uint8")).save(f"digits/{{label}}/{{row}}.png")'
    )
