"""Labelled images for a model that exists already: its classes and order, whatever the folders say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headstart.config.schema import Cache, Data
from headstart.data.axes import choose_axes
from headstart.data.levels import refuse_bands
from headstart.data.loader import Batches, available_cores, make_evaluation_batches, worker_count
from headstart.data.scan import Scan, identify_records, refuse_unreadable, scan_records
from headstart.data.sources.listing import list_source
from headstart.data.sources.samples import Listing, Sample, make_target, some
from headstart.data.sources.source import Record, Source
from headstart.data.used_images import Unseen, UsedImages, choose_unseen, find_lookalikes
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess
from headstart.storage.disk_cache import DiskCache, cache_folder
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is evaluated. ``used``: the images of its run. Those that it was trained on are left out (see
    ``choose_unseen``) unless ``include_trained``; None: which these are is not known, and that is said.
    """

    task: TaskSpec
    preprocess: Preprocess
    used: UsedImages | None
    include_trained: bool = False


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled images to evaluate. ``which``: what they are, a phrase; ``lookalikes``: names of those that look as
    images that the model was trained on do.
    """

    batches: Batches
    which: str
    lookalikes: tuple[str, ...] = ()


def choose_labelled_batches(
    data: Data, *, own_source: Source | None, subject: Subject, batch_size: int, scanned: bool
) -> Labelled:
    """The source's test images, else its validation images, else all of it, without those that the model was trained
    on, and which they are.

    ``scanned``: every image was looked at before; else unreadable ones are named while batches are read.

    Raises: DataError: a class that the model does not know, other targets, an image that cannot be read, or none that
    the model was not trained on. UnreadableImage: not ``scanned``, and an image has no bytes.
    """
    task = subject.task
    listing = list_source(data, kind=task.kind, known=task.names, own_source=own_source)
    _check_names(listing, task)
    found = Counter(record.split for record in listing.records)
    split = "test" if found["test"] else "val" if found["val"] else None
    records = [record for record in listing.records if split is None or record.split == split]
    scan = scan_records(listing.source, records, threads=available_cores()) if scanned else None
    if scan is not None:
        refuse_unreadable(scan, data)
    readable = [record for record in records if scan is None or record.name in scan.hashes]
    if not readable:
        raise DataError(f"{listing.source.name}: none of the {len(records)} images can be read")
    preprocess = _choose_axes(subject.preprocess, data, scan, source=listing.source.name)
    unseen, lookalikes = _leave_out_trained(listing.source, readable, subject, scan)
    samples = tuple(
        Sample(
            record=record if scan is None else replace(record, digest=scan.hashes[record.name]),
            index=place,
            target=make_target(record, task),
            stamp=() if scan is None else scan.stamps.get(record.name, ()),
        )
        for place, record in enumerate(unseen.records)
    )
    batches = make_evaluation_batches(
        listing.source,
        samples,
        task=task,
        preprocess=preprocess,
        batch_size=batch_size,
        workers=worker_count(),
    )
    which = f"{len(samples)} {unseen.noun or split or 'labelled'} images of {listing.source.name}{unseen.note}"
    unreadable = len(records) - len(readable)
    which += f", {unreadable} unreadable left out" if unreadable else ""
    return Labelled(batches=batches, which=which, lookalikes=lookalikes)


def _choose_axes(preprocess: Preprocess, data: Data, scan: Scan | None, *, source: str) -> Preprocess:
    """The preprocessing with the order of axes of these arrays: as asked, else as all of them say, or of the run's."""
    if scan is None:
        return preprocess if data.axes == "auto" else replace(preprocess, axes=data.axes)
    axes, measured, _ = choose_axes(
        scan.measured, channels=preprocess.channels, asked=data.axes, source=source, usual=preprocess.axes
    )
    refuse_bands(measured, channels=preprocess.channels, source=source)
    return replace(preprocess, axes=axes)


def _leave_out_trained(
    source: Source, records: Sequence[Record], subject: Subject, scan: Scan | None
) -> tuple[Unseen, tuple[str, ...]]:
    """The records that the model was not trained on, and the names of those that look as if it was."""
    used = subject.used
    if used is None:
        note = "; which images the run was trained on is not in its bundle, so these may be among them"
        return Unseen(records=tuple(records), noun=None, note=note), ()
    if scan is None:
        scans = DiskCache(cache_folder(), limit_bytes=int(Cache().limit_gb * 1e9))
        known = identify_records(source, records, threads=available_cores(), disk_cache=scans)
    else:
        known = {name: (digest, scan.fingerprints[name]) for name, digest in scan.hashes.items()}
    digests, prints = ({name: pair[place] for name, pair in known.items()} for place in (0, 1))
    unseen = choose_unseen(records, digests, used, include_trained=subject.include_trained, source=source.name)
    return unseen, find_lookalikes(unseen.records, prints, digests, used)


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
