"""Numbers as people write them: ``3,5``, ``1,200.50``, ``1 200``, ``12 %``; one spelling for all cells of a column."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Decimal = Literal["auto", "point", "comma"]
_SIGNS = "$ € £ ¥ ₹ ₽ ₩ US$ USD EUR GBP CHF JPY CNY INR kr R$"
_CURRENCIES = _SIGNS.split()
_NAMES = (
    "% ‰ ° °C °F px MP nm µm μm um mm cm dm m km in ft mi mm2 cm2 m2 km2 mm² cm² m² km² m³ ml cl l L mg g kg t lb lbs "
    "oz ms s sec min h hrs Hz kHz MHz V W kW A K Pa hPa ha year years day days k K M Mio Mrd bn"
)
_UNITS = _NAMES.split()
_NUMBER = re.compile(
    rf"(?P<before>{'|'.join(map(re.escape, sorted(_CURRENCIES, key=len, reverse=True)))})?\s*(?P<sign>[+\-−]?)"
    r"(?P<digits>\d[\d.,'’ \u00a0\u202f]*\d|\d|[.,]\d+|\d+[.,])\s*(?P<after>[^\d\s.,].*)?"
)
_PARENTHESES = re.compile(r"\((?P<inside>[^()]+)\)")
_DECIMAL = re.compile(r"(?P<sign>[+-]?)0*(?P<whole>\d*?)(?:\.(?P<rest>\d*?)0*)?")
_BLANKS = "\u00a0\u202f"


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """What stands between groups of three digits, and before the fraction."""

    thousands: str
    decimal: str

    @property
    def words(self) -> str:
        """What a note calls it; empty where it is the plain one."""
        group = {
            ",": "thousands commas",
            ".": "thousands points",
            " ": "thousands blanks",
            "'": "thousands apostrophes",
        }
        parts = [group[self.thousands]] if self.thousands else []
        return " and ".join([*parts, *(["decimal commas"] if self.decimal == "," else [])])


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The cells of a column as numbers; None where a cell is none in the spelling of the others.

    ``note`` says how they are written, where it is not plainly; ``doubt`` is a cell that is another number in another
    spelling which fits as well.
    """

    values: tuple[float | None, ...]
    note: str = ""
    doubt: str = ""
    unit: str = ""

    def share(self, cells: Sequence[str]) -> float:
        """How many of the cells that are not empty are numbers."""
        filled = [value for value, cell in zip(self.values, cells, strict=True) if cell]
        return sum(value is not None for value in filled) / len(filled) if filled else 0.0


_PLAIN = Spelling(thousands="", decimal=".")
_OTHERS = tuple(
    Spelling(thousands=thousands, decimal=decimal)
    for thousands, decimal in (("", ","), (",", "."), (".", ","), (" ", "."), (" ", ","), ("'", "."), ("'", ","))
)


def read_plain_number(cell: str) -> float | None:
    """The number as programs write it, or None; ``1_2`` is a name, although Python reads 12."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def read_numbers(cells: Sequence[str], *, decimal: Decimal = "auto") -> Numbers:
    """The cells as numbers, in the one spelling that most of them have, be it with one unit or currency for all; in
    parentheses, as in accounts, they are negative where others have none.
    """
    given, cells = cells, _open_parentheses(cells)
    plain = tuple(read_plain_number(cell) for cell in cells)
    filled = [cell for cell in cells if cell]
    if decimal != "comma" and all(number is not None for number, cell in zip(plain, cells, strict=True) if cell):
        return Numbers(values=plain, note=_join_note((), cells, given))
    unit = _find_unit(filled)
    asked = [form for form in _OTHERS if decimal == "auto" or form.decimal == {"point": ".", "comma": ","}[decimal]]
    readings = [(form, tuple(_read(cell, form, unit) for cell in cells)) for form in asked]
    if decimal != "comma":
        readings.insert(0, (_PLAIN, plain if not unit else tuple(_read(cell, _PLAIN, unit) for cell in cells)))
    counts = [sum(value is not None for value in values) for _, values in readings]
    form, values = readings[counts.index(max(counts))]
    rivals = [other for (_, other), count in zip(readings, counts, strict=True) if count == max(counts)]
    torn = [cell for cell, *same in zip(given, *rivals, strict=True) if len(set(same)) > 1]
    words = [form.words] if form.words else []
    note = _join_note([*words, *([f"the sign {unit!r}, which is left out"] if unit else [])], cells, given)
    is_doubtful = bool(torn) and max(counts) * 2 >= len(filled) and decimal == "auto"
    return Numbers(values=values, note=note, doubt=torn[0] if is_doubtful else "", unit=unit)


def _open_parentheses(cells: Sequence[str]) -> Sequence[str]:
    """The cells with ``(12)`` as ``-12``, where some but not all that are not empty are so."""
    found = [_PARENTHESES.fullmatch(cell) for cell in cells]
    inner = [_NUMBER.fullmatch(match["inside"].strip()) if match else None for match in found]
    if not any(inner) or sum(map(bool, found)) == sum(map(bool, cells)):
        return cells
    return [
        f"{one['before'] or ''}-{one['digits']}{one['after'] or ''}" if one and not one["sign"] else cell
        for cell, one in zip(cells, inner, strict=True)
    ]


def _join_note(words: Sequence[str], cells: Sequence[str], given: Sequence[str]) -> str:
    return " and ".join([*words, *(["parentheses for negative ones"] if list(cells) != list(given) else [])])


def _find_unit(cells: Sequence[str]) -> str:
    """The unit or currency that every cell with a number has; empty where they differ, or have none."""
    signs = set()
    for cell in cells:
        found = _NUMBER.fullmatch(cell)
        if found is None:
            return ""
        signs.add(((found["before"] or "") + (found["after"] or "")).strip())
    (sign, *others) = signs or {""}
    return sign if not others and (sign in _CURRENCIES or sign in _UNITS) else ""


def name_signs(cells: Sequence[str]) -> tuple[str, ...]:
    """The units and currencies among the cells, sorted: more than one where they are mixed."""
    found = [_NUMBER.fullmatch(cell) for cell in cells if cell]
    signs = {((one["before"] or "") + (one["after"] or "")).strip() for one in found if one}
    known = {sign for sign in signs if sign in _CURRENCIES or sign in _UNITS}
    return tuple(sorted(known)) if all(found) and signs <= known | {""} else ()


def _read(cell: str, form: Spelling, unit: str) -> float | None:
    """The cell as a number of that spelling."""
    bare = cell
    if unit:
        bare = bare.removeprefix(unit).removesuffix(unit).strip()
    if form == _PLAIN:
        return read_plain_number(bare.replace("−", "-"))
    bare = bare.replace("−", "-").replace("’", "'").translate(dict.fromkeys(map(ord, _BLANKS), " "))
    whole = rf"\d{{1,3}}(?:{re.escape(form.thousands)}\d{{2,3}})*{re.escape(form.thousands)}\d{{3}}|\d+"
    pattern = (
        rf"[+-]?(?:{whole if form.thousands else chr(92) + 'd+'})?(?:{re.escape(form.decimal)}\d*)?(?:[eE][+-]?\d+)?"
    )
    if not any(mark.isdigit() for mark in bare) or re.fullmatch(pattern, bare) is None:
        return None
    text = bare.replace(form.thousands, "") if form.thousands else bare
    value = float(text.replace(form.decimal, "."))
    return value if math.isfinite(value) else None


def normalise_number(cell: str) -> str | None:
    """One text for all spellings of a number: ``1`` for 01, 1.0 and +1; None where the cell is no plain number."""
    found = _DECIMAL.fullmatch(cell)
    if found is None or not any(letter.isdigit() for letter in cell):
        return None
    whole, rest = found["whole"] or "0", found["rest"] or ""
    sign = "-" if found["sign"] == "-" and (whole, rest) != ("0", "") else ""
    return f"{sign}{whole}{'.' if rest else ''}{rest}"
