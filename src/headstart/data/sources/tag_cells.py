"""Several tags in a cell: lists in brackets, and separators that the set of all cells gives away."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

STRONG_MARKS = (",", ";", "|")
"""Marks that rarely stand within a name: parts that recombine are tags."""
WEAK_MARKS = (" ", "/", "+", "&", "_", "-")
"""Marks that names hold as well: it takes one set of parts in two orders, or very many combinations."""
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_ARRAY = re.compile(
    r"(?:np\.|numpy\.)?(?:array|list|set|frozenset|tuple|Index)\((?P<inside>.*?)(?:,\s*dtype=[^)]*)?\)", re.DOTALL
)
_ITEM = re.compile(
    r"""\s*(?:(?:np\.)?str_\()?(?:'(?P<single>(?:[^'\\]|\\.)*)'|"(?P<double>(?:[^"\\]|\\.)*)"|(?P<bare>[^,'"\s][^,'"]*))\)?\s*"""
)
_NUMBERS = re.compile(r"[-+.\deE]+(?:\s+[-+.\deE]+)+")


@dataclass(frozen=True, kw_only=True)
class TagReading:
    """What the cells say of one separator. ``is_certain``: they are tags; ``is_possible``: they may be, and a person
    has to say; ``why``: the evidence, a phrase.
    """

    mark: str
    is_certain: bool
    is_possible: bool
    why: str


def read_list(cell: str) -> list[str] | None:
    """The items of a cell that is a list in brackets, as Python, JSON, NumPy or PostgreSQL write it, or None."""
    text = cell.strip()
    if array := _ARRAY.fullmatch(text):
        text = array["inside"].strip()
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        return None
    if text[0] == "[":
        try:
            items = json.loads(text)
        except ValueError:
            items = None
        if isinstance(items, list) and not any(isinstance(item, list | dict) for item in items):
            return [str(item) for item in items if item is not None]
    if text[0] == "(" and not re.search(r"[,'\"]", text) and text != "()":
        return None  # a name in parentheses
    return _read_items(text[1:-1])


def _read_items(inside: str) -> list[str] | None:
    """Items between brackets: quoted ones with or without commas between them, bare ones with commas."""
    items: list[str] = []
    place, text = 0, inside.strip()
    while place < len(text):
        found = _ITEM.match(text, place)
        if found is None or (found["bare"] or "").startswith(":"):  # a mapping is no list
            return None
        quoted = found["single"] if found["single"] is not None else found["double"]
        items += _bare_items(found["bare"].strip()) if quoted is None else [re.sub(r"\\(.)", r"\1", quoted)]
        place = found.end()
        if place < len(text) and text[place] == ",":
            place += 1
        elif place < len(text) and quoted is None:
            return None
    return [item for item in items if item]


def is_mapping(cell: str) -> bool:
    """Whether the cell is a mapping in braces, as JSON and Python write it: names with values, no list."""
    return re.match(r"\{\s*['\"]?[^{}'\",:]+['\"]?\s*:", cell) is not None


def _bare_items(text: str) -> list[str]:
    """One name, or the numbers that NumPy writes with blanks between them."""
    return text.split() if _NUMBERS.fullmatch(text) else [text] * (text != "None")


def is_list_column(cells: Sequence[str]) -> bool:
    """Whether every cell that is not empty is a list in brackets."""
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(cell[0] in "[({naslfI" and read_list(cell) is not None for cell in filled)


def split_cell(cell: str, mark: str) -> list[str]:
    """The tags of a cell, in its order."""
    parts = cell.split(mark) if mark else [cell]
    return [part.strip() for part in parts if part.strip()]


def judge_mark(cells: Sequence[str], mark: str) -> TagReading | None:
    """What the set of cells says of this separator; None where no cell holds two parts."""
    spelt = {tuple(split_cell(cell, mark)): cell for cell in cells if cell}
    values = sorted(spelt)
    several = [parts for parts in values if len(parts) > 1]
    if not several:
        return None
    sets = {frozenset(parts) for parts in values}
    homes = Counter(part for members in sets for part in members)
    orders = Counter(frozenset(parts) for parts in several)
    turned = [parts for parts in several if orders[frozenset(parts)] > 1]
    explained = [parts for parts in several if all(homes[part] > 1 for part in parts)]
    touched = [parts for parts in several if any(homes[part] > 1 for part in parts)]
    names = {part for parts in several for part in parts}
    alone = {parts[0] for parts in values if len(parts) == 1}
    evidence = _Evidence(
        several=len(several),
        names=len(names),
        explained=len({*explained, *turned}) / len(several),
        touched=len(touched) / len(several),
        is_turned=bool(turned),
        is_alone=not alone.isdisjoint(names),
        varies=len({len(parts) for parts in values}) > 1,
    )
    certain, possible = (_judge_strong if mark in STRONG_MARKS else _judge_weak)(evidence, mark)
    shown = next(iter([*turned, *explained, *touched]), several[0])
    why = f"parts between {mark!r} {'recombine' if touched or turned else 'never recombine'}, e.g. {spelt[shown]!r}"
    return TagReading(mark=mark, is_certain=certain, is_possible=possible, why=why + " in either order" * bool(turned))


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """The distinct cells with several parts: how many they are, and how many parts; the share whose parts all stand
    in other cells too, and the share of which one does; whether a set stands in two orders, a part alone, and whether
    the number of parts varies.
    """

    several: int
    names: int
    explained: float
    touched: float
    is_turned: bool
    is_alone: bool
    varies: bool


def _judge_strong(seen: _Evidence, mark: str) -> tuple[bool, bool]:
    """Whether the parts are tags for certain, and whether they may be."""
    certain = seen.explained >= 0.5 or (mark != "," and seen.touched > 0)  # Portland, OR and Salem, OR are two names
    return certain, seen.touched > 0.1


def _judge_weak(seen: _Evidence, mark: str) -> tuple[bool, bool]:
    """Judge as for strong marks, where class names of several words (``red car``, ``blue car``) recombine as well."""
    is_turned = seen.is_turned and seen.explained >= 0.5
    is_everywhere = seen.explained >= 0.9 and seen.varies  # six colours of six things are 36 names of two words
    certain = (is_turned and seen.is_alone) or (is_everywhere and seen.several >= 8 and seen.names * 3 <= seen.several)
    possible = is_turned or (is_everywhere and seen.is_alone and seen.several >= 2)
    return certain and mark not in ("_", "-"), certain or possible  # en-de and de-en may be two classes


def find_tags(cells: Sequence[str]) -> TagReading | None:
    """The reading of the cells as tags that is certain, else one that is possible, else that of a strong mark which
    never recombines; None where no cell holds several parts.
    """
    readings = [reading for mark in (*STRONG_MARKS, *WEAK_MARKS) if (reading := judge_mark(cells, mark))]
    for wanted in ("is_certain", "is_possible"):
        fitting = [reading for reading in readings if getattr(reading, wanted)]
        if fitting:
            return fitting[0]
    strong = [reading for reading in readings if reading.mark in STRONG_MARKS]
    return strong[0] if strong else None


def best_mark(cells: Sequence[str], known: Sequence[str]) -> str:
    """The separator for cells that are tags: the one that gives known names, else the one with the most evidence."""
    names = set(known)
    if names:
        for mark in (*STRONG_MARKS, *WEAK_MARKS):
            if all(part in names for cell in cells for part in split_cell(cell, mark)):
                return mark
    found = find_tags(cells)
    return found.mark if found else ","
