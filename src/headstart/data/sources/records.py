"""What a source of one's own lists, checked as folders and tables are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import get_args

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.deciding import AskedKind
from headstart.data.sources.names import check_count, check_names
from headstart.data.sources.samples import Listing, some
from headstart.data.sources.source import Record, Source, Split
from headstart.errors import DataError
from headstart.tasks.classify import CLASSIFY
from headstart.tasks.kinds import find_kind
from headstart.tasks.multilabel import MULTILABEL
from headstart.tasks.regress import REGRESS
from headstart.tasks.task import Kind
from headstart.wording import option

_FOR_FILES = (
    "images", "image", "target", "tags_separator", "header", "decimal", "missing", "class_folders", "split", "group",
)  # fmt: skip
_EXAMPLE = 'Record(name="cat/1.jpg", labels=("cat",))'


def list_records(source: Source, data: Data, *, kind: AskedKind) -> Listing:
    """Every record of the source, sorted by name, checked, with the task that follows from them.

    Raises:
        DataError: it is no source, its records do not say which image has which label, or options do not belong to it.
    """
    records = list_names(source)
    _refuse_options(source, data)
    for record in records:
        _check_labels(source, record)
    _check_splits(source, records)
    found = _find_kind(source, records, kind)
    if data.log and not found.gives_numbers:
        raise DataError(f"data.log: it is for numbers, and the task is {found.name}; leave it out")
    names = tuple(records[0].numbers) or tuple(sorted({label for record in records for label in record.labels}))
    for record in records:
        _check_numbers(source, record, names=records[0].numbers, log=data.log)
    check_names(names, source=source.name, word=found.noun)
    check_count(names, source=source.name, kind=found.name)
    note = f"task: {found.name} from the records of {source.name}"
    return Listing(
        source=source, kind=found.name, names=names, records=records, notes=(note,), by_column=found.gives_numbers
    )


def _refuse_options(source: Source, data: Data) -> None:
    if data.source is not None:
        raise DataError(
            f"data.source: {data.source} and the source {source.name} were both given; leave data.source out"
        )
    usual = Data()
    for field in _FOR_FILES:
        if getattr(data, field) != getattr(usual, field):
            raise DataError(
                f"data.{field}: it is for folders and tables, and {source.name} was given in Python, whose records "
                "say it; leave it out"
            )


def list_names(source: Source) -> tuple[Record, ...]:
    """Every record of the source, sorted by name, whatever its labels.

    Raises:
        DataError: it is no source, or its records are none or have no names that set them apart.
    """
    if not isinstance(source, Source):
        raise DataError(
            f"type {type(source).__name__} is no source; give hs.label_images(images, labels), or an object with name, "
            "records, read and where; a folder or a table is given as data.source"
        )
    records = list(source.records())
    if not records:
        raise DataError(f"{source.name}: records() gives none; give one per image, e.g. {_EXAMPLE}")
    for record in records:
        if not isinstance(record, Record):
            raise DataError(
                f"{source.name}: records() gives type {type(record).__name__}; give records, e.g. {_EXAMPLE}"
            )
        name = record.name
        if not isinstance(name, str) or not name or printable(name) != name:
            raise DataError(f"{source.name}: {name!r} is no name of a record; give a text, e.g. {_EXAMPLE}")
    ordered = tuple(sorted(records, key=lambda record: record.name))
    for record, following in pairwise(ordered):
        if record.name == following.name:
            raise DataError(f"{source.where(record)}: two records of {source.name} have this name; rename one")
    return ordered


def _check_labels(source: Source, record: Record) -> None:
    labels = record.labels
    if not isinstance(labels, tuple) or not all(isinstance(label, str) and label for label in labels):
        raise DataError(f"{source.where(record)}: labels {labels!r} are no tuple of texts; give e.g. {_EXAMPLE}")


def _check_splits(source: Source, records: Sequence[Record]) -> None:
    for record in records:
        if record.split is not None and record.split not in get_args(Split):
            raise DataError(f"{source.where(record)}: {record.split!r} is no split; accepted: train, val, test, None")
    without = [record for record in records if record.split is None]
    if without and len(without) < len(records):
        raise DataError(
            f"{source.where(without[0])}: it has no split, and others of {source.name} have one; give every record its "
            "split, or none of them"
        )
    if not without and not any(record.split == "train" for record in records):
        raise DataError(f"{source.name}: no record has the split train; give it to those to learn from")


def _find_kind(source: Source, records: Sequence[Record], asked: AskedKind) -> Kind:
    counted = [record for record in records if record.numbers]
    if counted and len(counted) < len(records):
        bare = next(record for record in records if not record.numbers)
        raise DataError(f"{source.where(bare)}: it has no numbers, and other records have; give every record its own")
    both = next((record for record in counted if record.labels), None)
    if both is not None:
        raise DataError(f"{source.where(both)}: it has labels and numbers; give one of them, for they are two tasks")
    odd = next((record for record in records if len(record.labels) != 1), None)
    fitting = REGRESS if counted else CLASSIFY if odd is None else MULTILABEL
    kind = fitting if asked == "auto" else find_kind(asked)
    if kind.gives_numbers != bool(counted):
        what = "numbers" if counted else "labels"
        raise DataError(f"task.kind: {asked}, but the records of {source.name} have {what}; leave it out")
    if kind.one_label and odd is not None:
        raise DataError(
            f"{source.where(odd)}: it has {len(odd.labels)} labels ({some(odd.labels)}), and {kind.name} takes one "
            f"per image; mend it, or say {option('task.kind', MULTILABEL.name)}"
        )
    return kind


def _check_numbers(source: Source, record: Record, *, names: Mapping[str, float], log: bool) -> None:
    if list(record.numbers) != list(names):
        raise DataError(
            f"{source.where(record)}: its numbers are {some(list(record.numbers))}, and those of the first record "
            f"{some(list(names))}; give every record the same targets in the same order"
        )
    for name, value in record.numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{source.where(record)}: {name}: {value!r} is not a finite number; mend it")
        if log and value <= 0:
            raise DataError(
                f"{source.where(record)}: {name}: {value!r} has no logarithm; data.log accepts numbers above 0: mend "
                f"it, or leave out {option('data.log')}"
            )
