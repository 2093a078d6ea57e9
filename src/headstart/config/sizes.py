"""Sizes of images as people type them: pixels per side, or height and width."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headstart.errors import ConfigError
from headstart.wording import option

SMALLEST, LARGEST = 8, 4096
"""Pixels of a side."""
_PAIR = re.compile(r"(\d{1,5}) ?[xX×,] ?(\d{1,5})")


@dataclass(frozen=True)
class Form:
    """How a text option is written, for messages and lists of options."""

    text: str


def read_size(value: int | str | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return height and width in pixels; None for None and ``auto``.

    Raises: ConfigError: it is no size; the text says what is accepted.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() == "auto"):
        return None
    pair = (value, value) if isinstance(value, int) else value
    if isinstance(pair, str):
        found = _PAIR.fullmatch(pair.strip())
        pair = (int(found[1]), int(found[2])) if found else (int(pair), int(pair)) if pair.isdecimal() else (0, 0)
    if len(pair) == 2 and all(isinstance(side, int) and SMALLEST <= side <= LARGEST for side in pair):
        return pair[0], pair[1]
    side = next((each for each in pair if isinstance(each, int) and each > 0 and not SMALLEST <= each <= LARGEST), 0)
    fault = f"{side} is too {'small' if side < SMALLEST else 'large'}" if side else f"{value!r:.60} is no size"
    raise ConfigError(
        f"model.image_size: {fault}; give pixels per side, or HEIGHTxWIDTH, each at least {SMALLEST} and at most "
        f"{LARGEST}, e.g. {option('image_size', 224)} or {option('image_size', '320x192')}"
    )


def format_size(size: tuple[int, int]) -> str:
    """Return the size as ``read_size`` reads it: 224, or 320x192."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
