"""What a source holds: a folder or a table becomes one list of images with their labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.columns import find_columns, find_images
from headstart.data.sources.csv_rows import LIST_SUFFIXES
from headstart.data.sources.deciding import AskedKind
from headstart.data.sources.files import Files, list_as_files
from headstart.data.sources.folder_layout import TABLE_SUFFIXES
from headstart.data.sources.folders import list_folders
from headstart.data.sources.groups import describe_frames
from headstart.data.sources.records import list_records
from headstart.data.sources.samples import Listing, key_of, walk
from headstart.data.sources.source import Record, Source
from headstart.data.sources.table_listing import list_table
from headstart.data.sources.tables import read_table
from headstart.errors import DataError


def list_source(data: Data, *, kind: AskedKind, known: Sequence[str] = (), given: Source | None = None) -> Listing:
    """Every image of the source that was ``given`` in Python, else of ``data.source``, with what is known of it, sorted
    by name.  known: the names of a model that is there already, which its own classes, tags or targets must have.

    Raises:
        DataError: there is no such source, or it does not say which image has which label.
    """
    if given is not None:
        return list_records(given, data, kind=kind)
    source = existing_source(data)
    if source.is_dir():
        listing = list_folders(data, source=source, kind=kind)
    else:
        listing = list_table(data, source=source, kind=kind, known=known)
    if data.group is not None or any(record.split == "val" for record in listing.records):
        return listing
    answers: list[object] = [record.labels or (*record.numbers.values(),) for record in listing.records]
    notes = describe_frames([record.name for record in listing.records], answers)
    return replace(listing, notes=listing.notes + notes)


def existing_source(data: Data) -> Path:
    """The folder or table that ``data.source`` names.

    Raises:
        DataError: it is missing, or neither.
    """
    if data.source is None:
        raise DataError("data.source: no data given; give a folder of class folders or a table: headstart train DATA")
    source = Path(data.source)
    if not source.exists():
        raise DataError(
            f"data.source: there is no {printable(source.absolute())}{_near(source)}; give a folder of class folders, "
            f"or a CSV or Parquet table"
        )
    if not source.is_dir() and not source.is_file():
        raise DataError(
            f"data.source: {printable(source)} is a pipe or a device; give a folder of class folders, or a CSV or "
            f"Parquet table"
        )
    if not source.is_dir() and source.suffix.lower() not in TABLE_SUFFIXES | LIST_SUFFIXES:
        raise DataError(
            f"data.source: {printable(source)} is neither a folder nor a table; accepted: a folder of class folders, "
            f"{', '.join(sorted(TABLE_SUFFIXES | LIST_SUFFIXES))}"
        )
    return source


def _near(source: Path) -> str:
    """The name beside it that was probably meant."""
    beside = [path.name for path in source.absolute().parent.glob("*") if not path.name.startswith(".")]
    found = difflib.get_close_matches(source.name, beside, n=1, cutoff=0.7)
    return f", did you mean {printable(source.with_name(found[0]))}?" if found else ""


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
