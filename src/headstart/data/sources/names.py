"""Checks of class and tag names, and of the class sets of the splits."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from headstart.data.sources.caution import Caution
from headstart.data.sources.numerals import normalise_number
from headstart.data.sources.samples import some
from headstart.data.sources.source import Record, Split
from headstart.errors import DataError
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskKind


def check_names(names: Iterable[str], *, source: str, word: str) -> None:
    """Refuse names that a person would take for one and the same.

    Raises:
        DataError: two names differ only in case, spaces, Unicode form or letters that are not seen, or one cannot be
            written as text.
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"{source}: the {word} name {name!a} is not UTF-8; rename it")
        plain = " ".join(_visible(unicodedata.normalize("NFC", name)).casefold().split())
        number = normalise_number(name) or ""
        other = seen.setdefault(f"{number}." if number.isdecimal() else plain, name)
        if other != name:
            raise DataError(
                f"{source}: the {word} names {_spelt(other, name)} and {_spelt(name, other)} differ only in "
                f"{_difference(other, name)}; are they one {word}? Give them one name, or two that differ clearly"
            )


def _visible(name: str) -> str:
    """Without letters that leave no mark: joiners, marks of direction, control characters that are no space."""
    return "".join(letter for letter in name if letter.isspace() or unicodedata.category(letter) not in ("Cf", "Cc"))


def _spelt(name: str, other: str) -> str:
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    return ascii(name) if same or _visible(name) != name or _visible(other) != other else repr(name)


def _difference(one: str, other: str) -> str:
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "Unicode form (NFC, NFD)"
    if one.casefold() == other.casefold():
        return "case"
    if normalise_number(one) is not None and normalise_number(one) == normalise_number(other):
        return "how a number is written"
    if _visible(one) == _visible(other):
        return "letters that are not seen"
    return "case, spaces, Unicode form or letters that are not seen"


def check_count(names: Sequence[str], *, source: str, kind: TaskKind) -> None:
    """Refuse a task with nothing to tell apart.

    Raises:
        DataError: one class only, or no tag at all.
    """
    if find_kind(kind).one_label and len(names) == 1:
        raise DataError(
            f"{source}: all images have the class {names[0]!r}; at least two classes are needed: add images of another"
        )
    if not names:
        noun = find_kind(kind).noun
        raise DataError(f"{source}: no {noun} found; give at least one image a {noun}")


def compare_splits(records: Sequence[Record], *, kind: TaskKind, source: str) -> tuple[Caution, ...]:
    """Warnings of classes that validation or test lack.

    Raises:
        DataError: a class of validation or test has no training image.
    """
    counts: dict[Split, Counter[str]] = {"train": Counter(), "val": Counter(), "test": Counter()}
    for record in records:
        if record.split is not None:
            counts[record.split].update(record.labels)
    word, cautions = find_kind(kind).noun, []
    for split in ("val", "test"):
        held_out = counts[split]
        if not any(record.split == split for record in records):
            continue
        strange = sorted(set(held_out) - set(counts["train"]))
        if strange:
            raise DataError(
                f"{source}: {word} {some(strange)} is in {split} and not in train, so it cannot be learned; "
                f"train has {some(sorted(counts['train']), limit=10)}. Rename it, add "
                f"images of it to train, or move images that are to be predicted away"
            )
        absent = sorted(set(counts["train"]) - set(held_out))
        if absent:
            text = f"{split} has no image of {word} {some(absent)}; metrics there say nothing about it"
            advice = f"add images of it to {split}; two images of a {word}, not copies or of one group, are enough"
            cautions.append(Caution(text=text, count=len(absent), example=repr(absent[0]), advice=advice))
    return tuple(cautions)
