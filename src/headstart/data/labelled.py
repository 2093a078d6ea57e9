"""Labelled images for a model that exists already: its classes and order, whatever the folders say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from headstart.config.schema import Data
from headstart.data.loader import Batches, available_cores, make_evaluation_batches, worker_count
from headstart.data.scan import refuse_unreadable, scan_records
from headstart.data.sources.listing import list_source
from headstart.data.sources.samples import Listing, Sample, make_target, some
from headstart.data.sources.source import Source
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec


def choose_labelled_batches(
    data: Data,
    *,
    given: Source | None,
    task: TaskSpec,
    preprocess: Preprocess,
    batch_size: int,
    scanned: bool,
) -> tuple[Batches, str]:
    """The source's test images, else its validation images, else all of it, and which they are.

    ``scanned``: every image was looked at before; else unreadable ones are named while batches are read.

    Raises: DataError: a class that the model does not know, other targets, or an image that cannot be read.
    """
    listing = list_source(data, kind=task.kind, known=task.names, given=given)
    _check_names(listing, task)
    found = Counter(record.split for record in listing.records)
    split = "test" if found["test"] else "val" if found["val"] else None
    records = [record for record in listing.records if split is None or record.split == split]
    digests, stamps = dict.fromkeys([record.name for record in records], ""), {}
    if scanned:
        scan = scan_records(listing.source, records, threads=available_cores())
        refuse_unreadable(scan, data)
        digests, stamps = dict(scan.hashes), dict(scan.stamps)
    samples = tuple(
        Sample(
            record=replace(record, digest=digests[record.name]),
            index=place,
            target=make_target(record, task),
            stamp=stamps.get(record.name, ()),
        )
        for place, record in enumerate(records)
        if record.name in digests
    )
    if not samples:
        raise DataError(f"{listing.source.name}: none of the {len(records)} images can be read")
    batches = make_evaluation_batches(
        listing.source,
        samples,
        task=task,
        preprocess=preprocess,
        batch_size=batch_size,
        workers=worker_count(),
    )
    left_out = f", {len(records) - len(samples)} unreadable left out" if len(samples) < len(records) else ""
    return batches, f"{len(samples)} {split or 'labelled'} images of {listing.source.name}{left_out}"


def _check_names(listing: Listing, task: TaskSpec) -> None:
    kind, known = find_kind(task.kind), task.names
    unknown = [name for name in listing.names if name not in known]
    if unknown:
        raise DataError(
            f"{listing.source.name}: the model does not know {some(unknown)}; the model's {kind.nouns} are "
            f"{some(list(known))}"
        )
    missing = [name for name in known if name not in listing.names] if listing.by_column else []
    if missing:
        raise DataError(
            f"{listing.source.name}: column {some(missing)} is missing, and the model's {kind.nouns} are "
            f"{some(list(known))}; add it, with {kind.cell} for each image"
        )
