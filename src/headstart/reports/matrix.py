"""A confusion matrix of many classes as one picture that fits the page, whatever its width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup, escape

CELL = 20.0  # of the picture's own units; the page scales them
_LARGEST = 44.0  # pixels of a cell on a wide page
_MOST_NAMED = 80  # classes whose names stand beside the rows and columns
_MOST_COUNTED = 50  # classes whose cells hold their number
_LONGEST = 22  # letters of a name
_LETTER = 5.6  # width of one at the size that names have


def draw_matrix(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Rows are true classes, columns are what they were called; the shade is the share of the row. Each cell with an
    image in it says its classes and its number when it is pointed at.
    """
    count = len(names)
    margin = 6 + _LETTER * max(len(_shorten(name)) for name in names) if count <= _MOST_NAMED else 4.0
    side = margin + CELL * count + 2
    right = sum(line[place] for place, line in enumerate(confusion))
    title = f"Confusion matrix of {count} classes: {right:,} of {sum(map(sum, confusion)):,} images on the diagonal"
    width = f"max-width:{round(side * _LARGEST / CELL)}px"
    parts = [
        f'<svg role="img" class="heat" aria-label="{escape(title)}" viewBox="0 0 {side:g} {side:g}" style="{width}">',
        f'<rect x="{margin:g}" y="{margin:g}" width="{CELL * count:g}" height="{CELL * count:g}" fill="var(--wash)"/>',
        *(_draw_names(names, margin) if count <= _MOST_NAMED else ()),
        *_draw_cells(confusion, names, margin),
        "</svg>",
    ]
    return Markup("".join(parts))


def _draw_names(names: Sequence[str], margin: float) -> Iterator[str]:
    for place, name in enumerate(names):
        middle, edge, short = margin + CELL * (place + 0.5), margin - 4, escape(_shorten(name))
        yield f'<text x="{edge:g}" y="{middle + 3.5:g}" text-anchor="end">{short}</text>'
        yield f'<text transform="translate({middle + 3.5:g} {edge:g}) rotate(-90)">{short}</text>'


def _draw_cells(confusion: Sequence[Sequence[int]], names: Sequence[str], margin: float) -> Iterator[str]:
    counted = len(names) <= _MOST_COUNTED
    for row, line in enumerate(confusion):
        total = sum(line)
        for column, number in enumerate(line):
            if not number:
                continue
            x, y = margin + CELL * column, margin + CELL * row
            colour, shade = "accent" if row == column else "second", 0.12 + 0.55 * number / total
            says = escape(f"{names[row]} called {names[column]}: {number:,} of {total:,}")
            yield (
                f'<g><title>{says}</title><rect x="{x + 0.5:g}" y="{y + 0.5:g}" width="{CELL - 1:g}" '
                f'height="{CELL - 1:g}" fill="var(--{colour})" fill-opacity="{shade:.2f}"/>'
            )
            if counted:
                yield f'<text x="{x + CELL / 2:g}" y="{y + CELL / 2 + 3:g}" class="count">{number}</text>'
            yield "</g>"


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
