"""What a source holds: a folder or a table becomes one list of images with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.columns import find_columns, find_images
from headstart.data.sources.deciding import AskedKind
from headstart.data.sources.existing import existing_source
from headstart.data.sources.files import Files, list_as_files
from headstart.data.sources.folders import list_folders
from headstart.data.sources.groups import describe_frames
from headstart.data.sources.records import list_records
from headstart.data.sources.samples import Listing, key_of, walk
from headstart.data.sources.source import Record, Source
from headstart.data.sources.table_listing import list_table
from headstart.data.sources.tables import read_table
from headstart.errors import DataError


def list_source(data: Data, *, kind: AskedKind, known: Sequence[str] = (), own_source: Source | None = None) -> Listing:
    """Every image of the ``own_source``, else of ``data.source``, with what is known of it, sorted
    by name.  known: the names of a model that is there already, which its own classes, tags or targets must have.

    Raises:
        DataError: there is no such source, or it does not say which image has which label.
    """
    if own_source is not None:
        return list_records(own_source, data, kind=kind)
    source = existing_source(data)
    if source.is_dir():
        listing = list_folders(data, source=source, kind=kind)
    else:
        listing = list_table(data, source=source, kind=kind, known=known)
    if data.group is not None or any(record.split == "val" for record in listing.records):
        return listing
    answers: list[object] = [record.labels or (*record.numbers.values(),) for record in listing.records]
    frames = describe_frames([record.name for record in listing.records], answers)
    return replace(listing, cautions=(*listing.cautions, *frames))


def list_unlabelled(data: Data) -> Files:
    """Every image of the source, whatever its labels; sorted by name.

    Raises:
        DataError: there is no such source, or no image in it.
    """
    source = existing_source(data)
    if source.is_dir():
        root = source
        found = [(Record(name=key_of(path, root=root)), path) for path in walk(root, root=root).images]
    else:
        table = read_table(source, data)
        images = find_images(table, column=find_columns(table, data).image, data=data)
        root = images.root
        found = [(Record(name=key), path) for key, path in zip(images.keys, images.paths, strict=True)]
    if not found:
        raise DataError(f"{printable(source)}: there are no images in it; give a folder or a table of images")
    return list_as_files(found, given=source, root=root)
