"""Labelled images for a model that exists already: its classes and order, whatever the folders say."""

from __future__ import annotations

from collections import Counter

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.loader import Batches, available_cores, make_evaluation_batches, worker_count
from headstart.data.scan import refuse_unreadable, scan_files
from headstart.data.sources.listing import list_source
from headstart.data.sources.samples import Listing, Sample, make_target, some
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec


def choose_labelled_batches(
    data: Data, *, task: TaskSpec, preprocess: Preprocess, batch_size: int, scanned: bool
) -> tuple[Batches, str]:
    """The source's test images, else its validation images, else all of it, and which they are.

    ``scanned``: every image was looked at before; else unreadable ones are named while batches are read.

    Raises: DataError: a class that the model does not know, other targets, or an image that cannot be read.
    """
    listing = list_source(data, kind=task.kind, known=task.names)
    _check_names(listing, task)
    found = Counter(entry.split for entry in listing.entries)
    split = "test" if found["test"] else "val" if found["val"] else None
    entries = [entry for entry in listing.entries if split is None or entry.split == split]
    contents, stamps = dict.fromkeys([entry.key for entry in entries], ""), {}
    if scanned:
        scan = scan_files([(entry.path, entry.key) for entry in entries], threads=available_cores())
        refuse_unreadable(scan, data)
        contents, stamps = dict(scan.hashes), dict(scan.stamps)
    samples = tuple(
        Sample(
            path=entry.path,
            key=entry.key,
            index=place,
            target=make_target(entry, listing.names, task),
            content=contents[entry.key],
            stamp=stamps.get(entry.key, ()),
        )
        for place, entry in enumerate(entries)
        if entry.key in contents
    )
    if not samples:
        raise DataError(f"{printable(listing.source)}: none of the {len(entries)} images can be read")
    batches = make_evaluation_batches(
        samples, task=task, preprocess=preprocess, batch_size=batch_size, workers=worker_count()
    )
    left_out = f", {len(entries) - len(samples)} unreadable left out" if len(samples) < len(entries) else ""
    return batches, f"{len(samples)} {split or 'labelled'} images of {printable(listing.source)}{left_out}"


def _check_names(listing: Listing, task: TaskSpec) -> None:
    kind, known = find_kind(task.kind), task.names
    unknown = [name for name in listing.names if name not in known]
    if unknown:
        raise DataError(
            f"{printable(listing.source)}: the model does not know {some(unknown)}; the model's {kind.nouns} are "
            f"{some(list(known))}"
        )
    missing = [name for name in known if name not in listing.names] if listing.by_column else []
    if missing:
        raise DataError(
            f"{printable(listing.source)}: column {some(missing)} is missing, and the model's {kind.nouns} are "
            f"{some(list(known))}; add it, with {kind.cell} for each image"
        )
