"""What a source holds: a folder or a table becomes one list of images with their labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.columns import find_columns, find_images
from headstart.data.sources.csv_rows import LIST_SUFFIXES
from headstart.data.sources.deciding import AskedKind
from headstart.data.sources.folder_layout import TABLE_SUFFIXES
from headstart.data.sources.folders import list_folders
from headstart.data.sources.groups import describe_frames
from headstart.data.sources.samples import Listing, key_of, walk
from headstart.data.sources.table_listing import list_table
from headstart.data.sources.tables import read_table
from headstart.errors import DataError


def list_source(data: Data, *, kind: AskedKind, known: Sequence[str] = ()) -> Listing:
    """Every image of ``data.source`` with what is known of it, sorted by key.  known: the names of a model that is
    there already, which its own classes, tags or targets must have.

    Raises:
        DataError: there is no such source, or it does not say which image has which label.
    """
    source = existing_source(data)
    if source.is_dir():
        listing = list_folders(data, source=source, kind=kind)
    else:
        listing = list_table(data, source=source, kind=kind, known=known)
    ordered = tuple(sorted(listing.entries, key=lambda entry: entry.key))
    _refuse_alike([(entry.key, entry.where) for entry in ordered])
    notes = listing.notes
    if data.group is None and not any(entry.split == "val" for entry in ordered):
        notes += describe_frames([entry.key for entry in ordered], [entry.labels or entry.numbers for entry in ordered])
    return replace(listing, entries=ordered, notes=notes)


def _refuse_alike(files: Sequence[tuple[str, str]]) -> None:
    """Refuse names that are one once they are written as text: each (key, how errors name it), sorted."""
    for (one, where), (other, _) in pairwise(files):
        if one == other:
            raise DataError(f"{where}: two files have this name once it is written as text; rename one")


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


def list_files(data: Data) -> tuple[tuple[Path, str], ...]:
    """(path, key) of every image of the source, whatever its labels; sorted by key.

    Raises:
        DataError: there is no such source, or no image in it.
    """
    source = existing_source(data)
    if source.is_dir():
        files = [(path, key_of(path, root=source)) for path in walk(source, root=source).images]
    else:
        table = read_table(source, data)
        images = find_images(table, column=find_columns(table, data).image, data=data)
        files = list(zip(images.paths, images.keys, strict=True))
    if not files:
        raise DataError(f"{printable(source)}: there are no images in it; give a folder or a table of images")
    ordered = tuple(sorted(files, key=lambda file: file[1]))
    _refuse_alike([(key, key) for _, key in ordered])
    return ordered
