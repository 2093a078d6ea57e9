"""A table's rows as a listing: images, labels or numbers, splits and groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.columns import describe_splits, find_columns, find_images, read_groups, read_splits
from headstart.data.sources.deciding import AskedKind
from headstart.data.sources.files import list_as_files
from headstart.data.sources.groups import group_by_name
from headstart.data.sources.missing import settle_missing
from headstart.data.sources.names import check_count, check_names
from headstart.data.sources.one_hot import fill_ticks
from headstart.data.sources.samples import Listing
from headstart.data.sources.source import Record
from headstart.data.sources.tables import read_table
from headstart.data.sources.targets import choose_target_columns, read_targets
from headstart.errors import DataError
from headstart.tasks.kinds import find_kind
from headstart.wording import option


def list_table(data: Data, *, source: Path, kind: AskedKind, known: Sequence[str] = ()) -> Listing:
    """Every row as a record, with what the columns say of it.  known: the names of a model that is there already.

    Raises:
        DataError: the table does not say which image has which label.
    """
    if not data.tags_separator:
        raise DataError(
            "data.tags_separator: it is empty; give what stands between tags, e.g. "
            f"{option('data.tags_separator', ',')}"
        )
    table = read_table(source, data)
    columns = find_columns(table, data)
    asked = columns.others if data.target == "auto" else () if isinstance(data.target, str) else data.target
    table = fill_ticks(table, [name for name in columns.others if name in asked])
    target = choose_target_columns(table, columns.others, data=data)
    table = settle_missing(table, target, data=data, kind=kind)
    targets = read_targets(table, target, data=data, kind=kind, known=known)
    images = find_images(table, column=columns.image, data=data)
    check_names(targets.names, source=printable(source), word=find_kind(targets.kind).noun)
    check_count(targets.names, source=printable(source), kind=targets.kind)
    splits = read_splits(table, columns.split)
    if columns.group is None:
        groups = group_by_name(images.keys, data.group, source=printable(source))
    else:
        groups = read_groups(table, columns.group)
    found = [
        Record(
            name=images.keys[row],
            labels=targets.labels[row],
            numbers=dict(zip(targets.names, targets.numbers[row], strict=False)),  # where there are labels, none
            split=splits[row],
            group=groups[row],
        )
        for row in range(len(table.rows))
    ]
    files = list_as_files(zip(found, images.paths, strict=True), given=source, root=images.root)
    return Listing(
        source=files,
        kind=targets.kind,
        names=targets.names,
        records=files.listed,
        notes=(*table.notes, *columns.notes, *targets.notes, *images.notes, *describe_splits(table, columns.split)),
        by_column=targets.by_column,
    )
