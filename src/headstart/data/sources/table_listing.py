"""A table's rows as a listing: images, labels or numbers, splits and groups."""

from __future__ import annotations

from pathlib import Path

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.columns import find_columns, find_images, read_groups, read_splits
from headstart.data.sources.names import check_count, check_names
from headstart.data.sources.samples import Entry, Listing
from headstart.data.sources.tables import read_table
from headstart.data.sources.targets import AskedKind, read_targets
from headstart.errors import DataError
from headstart.tasks.kinds import find_kind


def list_table(data: Data, *, source: Path, kind: AskedKind) -> Listing:
    """Every row as an entry, with what the columns say of it.

    Raises:
        DataError: the table does not say which image has which label.
    """
    if not data.tags_separator:
        raise DataError("data.tags_separator: it is empty; give what stands between tags, e.g. --data.tags_separator ,")
    table = read_table(source, tags_separator=data.tags_separator)
    columns = find_columns(table, data)
    targets = read_targets(table, columns.others, data=data, kind=kind)
    images = find_images(table, column=columns.image, data=data)
    check_names(targets.names, source=printable(source), word=find_kind(targets.kind).noun)
    check_count(targets.names, source=printable(source), kind=targets.kind)
    splits = read_splits(table, columns.split)
    groups = read_groups(table, columns.group)
    entries = tuple(
        Entry(
            path=images.paths[row],
            key=images.keys[row],
            where=table.where(row),
            labels=targets.labels[row],
            numbers=targets.numbers[row],
            split=splits[row],
            group=groups[row],
        )
        for row in range(len(table.rows))
    )
    kind, names, notes = targets.kind, targets.names, (targets.note,)
    return Listing(source=source, kind=kind, names=names, entries=entries, notes=notes, by_column=targets.by_column)
