"""What copies of one picture mean for the splits and labels of a run, as sentences."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.data.scan import Scan
from headstart.data.sources.caution import Caution
from headstart.data.sources.samples import some
from headstart.data.sources.source import Record
from headstart.data.split import join_names
from headstart.tasks.kinds import find_kind

_SPLITS = (("train", "val"), ("train", "test"), ("val", "test"))


def describe_copies(records: Sequence[Record], scan: Scan, *, kind: str) -> tuple[tuple[str, ...], tuple[Caution, ...]]:
    """Sentences on exact copies and on resized or re-encoded ones; and warnings of those that splits share, or that
    have different labels, tags or numbers by the ``kind`` of task.
    """
    by_name = {record.name: record for record in records}
    exact = [[by_name[name] for name in names] for names in scan.duplicates]
    pairs = [[by_name[name] for name in names] for names in scan.near_copies]
    shared = (*_describe_shared(exact, "exact copies"), *_describe_shared(pairs, "resized or re-encoded copies"))
    kept = () if shared else (*_count(exact, "exact copies"), *_count(pairs, "resized or re-encoded copies"))
    every = [[by_name[name] for name in names] for names in join_names((*scan.duplicates, *scan.near_copies))]
    return kept, (*shared, *_describe_torn(every, kind))


def _describe_shared(groups: Sequence[Sequence[Record]], what: str) -> tuple[Caution, ...]:
    cautions = []
    for one, other in _SPLITS:
        pairs = [pair for group in groups if (pair := _across(group, one, other))]
        if pairs:
            verb, example = "images are" if len(pairs) > 1 else "image is", _show(pairs[0])
            cautions.append(
                Caution(
                    text=f"{len(pairs)} {verb} in both {one} and {other} ({what}, e.g. {example})",
                    count=len(pairs),
                    example=example,
                    advice=f"metrics of {other} are too good by them; remove them from {other}, or leave the split to "
                    "headstart, which keeps copies on one side",
                )
            )
    return tuple(cautions)


def _across(group: Sequence[Record], one: str, other: str) -> tuple[Record, Record] | None:
    """The first record of each of two splits, where both have one."""
    there = [next((record for record in group if record.split == split), None) for split in (one, other)]
    return (there[0], there[1]) if there[0] is not None and there[1] is not None else None


def _count(groups: Sequence[Sequence[Record]], what: str) -> tuple[str, ...]:
    if not groups:
        return ()
    verb = "images have" if len(groups) > 1 else "image has"
    return (f"{len(groups)} {verb} {what}, e.g. {_show(groups[0][:2])}",)


def _describe_torn(groups: Sequence[Sequence[Record]], kind: str) -> tuple[Caution, ...]:
    """A warning of pictures whose copies have different labels, with two of the first that differ."""
    torn = [group for group in groups if len({_answer(record) for record in group}) > 1]
    if not torn:
        return ()
    first = torn[0][0]
    other = next(record for record in torn[0] if _answer(record) != _answer(first))
    verb = "images have" if len(torn) > 1 else "image has"
    task = find_kind(kind)
    examples = " and ".join(f"{record.name!r} is {_show_answer(record)}" for record in (first, other))
    return (
        Caution(
            text=f"{len(torn)} {verb} copies with different {task.answers}, e.g. {examples}",
            count=len(torn),
            example=examples,
            advice=task.torn_copies,
        ),
    )


def _answer(record: Record) -> tuple[tuple[str, ...], tuple[float, ...]]:
    return tuple(sorted(record.labels)), tuple(record.numbers.values())


def _show_answer(record: Record) -> str:
    numbers = ", ".join(f"{name} {value:.12g}" for name, value in record.numbers.items())
    return numbers or (some(sorted(record.labels)) if record.labels else "without a label")


def _show(pair: Sequence[Record]) -> str:
    return " and ".join(repr(record.name) for record in pair)
