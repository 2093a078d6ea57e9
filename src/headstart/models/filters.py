"""Which of the listed models are shown, and in which order."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from headstart.errors import ModelError
from headstart.models.catalog import ModelRow

Order = Literal["name", "params", "top1", "cpu-speed", "gpu-speed"]
_MOST_NAMES = 8  # that an error lists


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a model must be; None lets everything pass, and what is not known of a model fails a filter about it.

    ``max_image_size`` in pixels, ``min_top1`` in percent, speeds in published images per second; ``licence`` and
    ``tag`` are parts of the text, in any case; the licence ``unknown`` stands for those without one.
    """

    pretrained_only: bool = False
    family: str | None = None
    tag: str | None = None
    licence: str | None = None
    max_image_size: int | None = None
    min_top1: float | None = None
    min_cpu_speed: float | None = None
    min_gpu_speed: float | None = None
    min_params: int | None = None
    max_params: int | None = None


@dataclass(frozen=True)
class _Filter:
    """One filter as it is typed, what passes it, and what an error says is there instead."""

    typed: str
    passes: Callable[[ModelRow], bool]
    there: Callable[[Sequence[ModelRow]], str]


def apply_filters(rows: Sequence[ModelRow], filters: Filters) -> tuple[ModelRow, ...]:
    """The rows that pass every filter.  Raises: ModelError: none do; it names the first filter that leaves nothing."""
    left = tuple(rows)
    for each in _select_filters(filters):
        passed = tuple(row for row in left if each.passes(row))
        if not passed:
            models = "leaves out the only model" if len(left) == 1 else f"leaves none of {len(left):,} models"
            raise ModelError(f"{each.typed} {models}; {each.there(left)}")
        left = passed
    return left


def order_rows(rows: Iterable[ModelRow], order: Order) -> tuple[ModelRow, ...]:
    """The rows by name, fewest parameters, highest top-1 or highest published speed first; what is not known comes
    last.
    """

    def key(row: ModelRow) -> tuple[bool, float, str]:
        facts = row.published
        match order:
            case "name":
                return False, 0.0, ""
            case "params":
                return False, row.parameters, row.spec
            case "top1":
                value = facts.top1
            case "cpu-speed":
                value = facts.cpu_images_per_second
            case "gpu-speed":
                value = facts.gpu_images_per_second
        return value is None, -(value or 0.0), row.spec

    return tuple(sorted(rows, key=key))


def _select_filters(filters: Filters) -> list[_Filter]:
    """The filters that are asked for; parameters last, since what the table lacks has to be counted."""
    selected: list[_Filter] = []
    if filters.pretrained_only:
        selected.append(_Filter("--pretrained-only", lambda row: row.pretrained, lambda _: "none has weights"))
    if (family := filters.family) is not None:
        selected.append(_match_text("--family", family, lambda row: row.family, exact=True))
    if (tag := filters.tag) is not None:
        selected.append(_match_text("--tag", tag, lambda row: row.tag, exact=False))
    if (licence := filters.licence) is not None:
        selected.append(_match_text("--licence", licence, lambda row: row.licence or "unknown", exact=False))
    at_most = (
        ("--max-image-size", filters.max_image_size, lambda row: row.image_size),
        ("--max-params", filters.max_params, lambda row: row.parameters),
    )
    at_least = (
        ("--min-top1", filters.min_top1, lambda row: row.published.top1),
        ("--min-cpu-speed", filters.min_cpu_speed, lambda row: row.published.cpu_images_per_second),
        ("--min-gpu-speed", filters.min_gpu_speed, lambda row: row.published.gpu_images_per_second),
        ("--min-params", filters.min_params, lambda row: row.parameters),
    )
    selected += [_limit_number(flag, limit, value, sign=-1) for flag, limit, value in at_most if limit is not None]
    selected += [_limit_number(flag, limit, value, sign=1) for flag, limit, value in at_least if limit is not None]
    return sorted(selected, key=lambda each: "-params" in each.typed)


def _match_text(flag: str, wanted: str, text: Callable[[ModelRow], str], *, exact: bool) -> _Filter:
    low = wanted.lower()

    def passes(row: ModelRow) -> bool:
        return text(row).lower() == low if exact else low in text(row).lower()

    def there(rows: Sequence[ModelRow]) -> str:
        names = sorted({text(row) for row in rows} - {""})
        near = difflib.get_close_matches(low, names, n=4, cutoff=0.5)
        shown = near or names[:_MOST_NAMES]
        more = f" and {len(names) - len(shown)} others" if len(names) > len(shown) else ""
        return f"there is {', '.join(shown)}{more}" if shown else "they have none"

    return _Filter(f"{flag} {wanted}", passes, there)


def _limit_number(flag: str, limit: float, value: Callable[[ModelRow], float | None], *, sign: int) -> _Filter:
    """At least (``sign`` 1) or at most (-1) ``limit``; what is not known does not pass."""

    def passes(row: ModelRow) -> bool:
        found = value(row)
        return found is not None and sign * found >= sign * limit

    def there(rows: Sequence[ModelRow]) -> str:
        known = [found for row in rows if (found := value(row)) is not None]
        if not known:
            return "it is published for none of them"
        nearest = max(known, key=lambda found: sign * found)
        return f"the {'highest' if sign > 0 else 'lowest'} there is {_plain(nearest)}"

    return _Filter(f"{flag} {_plain(limit)}", passes, there)


def _plain(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:,}"
