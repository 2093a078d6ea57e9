"""The images of a run: a source, listed, decoded once, split, and cut into batches for train, val and test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.config.schema import Augment, Config, Data
from headstart.config.schema import Batch as BatchOptions
from headstart.data.augmentation import Augmentation
from headstart.data.dataset import ImageDataset
from headstart.data.decoding.decode import printable
from headstart.data.decoding.decoded_cache import Decoded
from headstart.data.loader import Batches, available_cores, make_evaluation_batches, worker_count
from headstart.data.reading import ChangedFiles
from headstart.data.scan import OnDecoded, Scan, refuse_unreadable, scan_files
from headstart.data.sources.as_given import AnyImages, list_images
from headstart.data.sources.listing import list_files, list_source
from headstart.data.sources.names import compare_splits
from headstart.data.sources.samples import Entry, Listing, Sample, Split, make_target, some
from headstart.data.sources.sides import find_sides
from headstart.data.split import split_entries
from headstart.data.transforms.transforms import Preset, check_mixing, eval_transform, train_transform
from headstart.distributed.processes import current
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec

if TYPE_CHECKING:
    from headstart.models.sources import OpenedModel


@dataclass(frozen=True, kw_only=True)
class Images:
    """The data of a run. ``notes``: sentences on what was found and decided."""

    task: TaskSpec
    train: Batches
    val: Batches
    test: Batches | None
    scan: Scan
    source: Path
    notes: tuple[str, ...]

    @property
    def root(self) -> Path:
        """The folder from which the names of the samples start."""
        first = self.train.samples[0]
        return first.path.parents[first.key.count("/")]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes or tags, in the order of the outputs."""
        return self.task.classes


def open_images(
    source: str | Path,
    *,
    like: OpenedModel | Preprocess,
    val: float = 0.2,
    batch_size: int = 64,
    augment: Preset = "standard",
    seed: int = 42,
) -> Images:
    """Return the images of a folder or table, split into training and validation, prepared as a model wants them.

    Args:
        ``source``: A folder of class folders (``photos/cat/1.jpg``), one with ``train`` and ``val`` in it, or a CSV or
            Parquet table.
        ``like``: The opened model, or its ``preprocess``, which says size, mean and framing.
        ``val``: The share of images that is held out for validation where the source has no split of its own, 0 to 1.
        ``batch_size``: Images per batch.
        ``augment``: How much training images are changed at random: none, light, standard or strong.
        ``seed``: The number of which the split, the order and the changes are a function.

    Returns:
        The ``task`` with its ``classes``, the batches ``train``, ``val`` and ``test`` (or None), the ``scan`` of the
        files, and ``notes`` on what was found and decided.

    Raises:
        DataError: The source is missing, unclear or damaged; the message says where and what to do.

    Example:
        >>> import headstart as hs
        >>> opened = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]})
        >>> images = hs.open_images("photos", like=opened, val=0.25, batch_size=4)
        >>> images.classes, len(images.train.samples), len(images.val.samples)
        (('cat', 'dog'), 12, 4)
    """
    config = Config(
        data=Data(source=str(source), val=val),
        batch=BatchOptions(size=batch_size),
        augment=Augment(preset=augment),
        seed=seed,
    )
    return load_images(config, like if isinstance(like, Preprocess) else like.preprocess)


def load_images(config: Config, preprocess: Preprocess, *, on_decoded: OnDecoded | None = None) -> Images:
    """All that the configuration says about data, done: listed, decoded once, split, cut into batches.

    Raises:
        DataError: the source is missing, unclear or damaged; the message says where and what to do.
    """
    listing = list_source(config.data, kind=config.task.kind)
    check_mixing(listing.kind, cutmix=config.augment.cutmix)
    files = [(entry.path, entry.key) for entry in listing.entries]
    scan = scan_files(files, threads=available_cores(), on_decoded=on_decoded)
    if config.data.unreadable == "stop":
        refuse_unreadable(scan, config.data)
    readable, skipped = _without_unreadable(listing, scan)
    refuse_unreadable(scan, config.data)
    # among the readable ones: skipped files are as if they were not there
    indices = {entry.key: index for index, entry in enumerate(readable.entries)}
    entries, split_notes = _divide(readable, scan, config)
    notes = listing.notes + skipped + split_notes + _duplicate_notes(entries, scan)
    notes += compare_splits(entries, kind=listing.kind, source=printable(listing.source))
    task = _task(replace(readable, entries=entries), log=config.data.log)
    samples = {
        split: tuple(
            Sample(
                path=entry.path,
                key=entry.key,
                index=indices[entry.key],
                target=make_target(entry, listing.names, task),
                content=scan.hashes[entry.key],
                stamp=scan.stamps[entry.key],
            )
            for entry in entries
            if entry.split == split
        )
        for split in ("train", "val", "test")
    }
    return _assemble(samples, config=config, preprocess=preprocess, images=(task, scan, listing.source, notes))


def _assemble(
    samples: dict[str, tuple[Sample, ...]],
    *,
    config: Config,
    preprocess: Preprocess,
    images: tuple[TaskSpec, Scan, Path, tuple[str, ...]],
) -> Images:
    task, scan, source, notes = images
    size = _batch_size(len(samples["train"])) if config.batch.size == "auto" else config.batch.size
    augment, framing = config.augment, eval_transform(preprocess)
    alternating = augment.flip == "alternating"
    sides = find_sides(task.names, are_numbers=find_kind(task.kind).gives_numbers) if augment.flip == "auto" else ()
    flip = False if augment.flip == "alternating" or sides else augment.flip
    if sides and augment.preset != "none":
        notes = (*notes, f"images are not mirrored, for {some(sides)} say a side; to mirror them: --augment.flip true")
    changes = train_transform(augment.preset, flip=flip, preprocess=preprocess)
    val = ImageDataset(
        samples=samples["val"],
        task=task,
        preprocess=preprocess,
        transform=framing,
        decoded=Decoded(transform=framing) if config.cache.decoded else None,
        changed=ChangedFiles() if config.data.changed == "note" else None,
    )
    train = replace(
        val,
        samples=samples["train"],
        transform=changes,
        decoded=Decoded(transform=changes) if config.cache.decoded else None,
        augmentation=Augmentation(
            seed=config.seed,
            mixup=augment.mixup,
            cutmix=augment.cutmix,
            random=augment.preset != "none" or flip is True or alternating,
            alternating=alternating,
            distinct=2 if alternating and augment.preset == "none" else 0,
        ),
    )
    test = replace(val, samples=samples["test"], decoded=None) if samples["test"] else None
    workers = worker_count() if config.workers == "auto" else config.workers

    def cut(dataset: ImageDataset) -> Batches:
        return Batches(dataset=dataset, batch_size=size, workers=workers, processes=current())

    return Images(
        task=task,
        train=cut(train),
        val=cut(val),
        test=None if test is None else cut(test),
        scan=scan,
        source=source,
        notes=notes,
    )


def _batch_size(count: int) -> int:
    """64, or the power of two that leaves at least 8 steps per epoch; not below 8."""
    return max(8, min(64, 1 << max(0, (count // 8).bit_length() - 1)))


def _without_unreadable(listing: Listing, scan: Scan) -> tuple[Listing, tuple[str, ...]]:
    if not scan.unreadable:
        return listing, ()
    entries = tuple(entry for entry in listing.entries if entry.key in scan.hashes)
    where, shown = printable(listing.source), [f"{image.key} ({image.reason})" for image in scan.unreadable]
    gone = sorted({label for entry in listing.entries for label in entry.labels})
    left = {label for entry in entries for label in entry.labels}
    lost = [name for name in gone if name not in left]
    if not entries or lost:
        what = f"no image of {some(lost)} can be read" if lost else "no image can be read"
        raise DataError(f"{where}: {what}, e.g. {shown[0]}; mend the files, or remove the class")
    emptied = {entry.split for entry in listing.entries} - {entry.split for entry in entries}
    if emptied:
        raise DataError(
            f"{where}: no image of {some(sorted(map(str, emptied)))} can be read, e.g. {shown[0]}; mend them"
        )
    note = f"{len(shown)} unreadable {'images are' if len(shown) > 1 else 'image is'} left out: {some(shown)}"
    return replace(listing, entries=entries), (note,)


def _divide(listing: Listing, scan: Scan, config: Config) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Entries with their splits, and how they came about."""
    given = Counter(entry.split for entry in listing.entries)
    if given["val"] > 0:
        notes = [f"split: as given: {given['train']} train, {given['val']} val, {given['test']} test"]
        if config.data.test > 0 and given["test"] == 0:
            notes.append("data.test is not used: the data have their own split")
        if config.data.val != Data().val:
            notes.append("data.val is not used: the data have their own split")
        return listing.entries, (*notes, *_find_shared_groups(listing.entries))
    ours = [entry for entry in listing.entries if entry.split in (None, "train")]
    test = 0.0 if given["test"] else config.data.test
    if config.data.val + test >= 1:
        raise DataError(f"data.val, data.test: {config.data.val} and {test} leave nothing to train on; give less")
    chosen = split_entries(ours, duplicates=scan.duplicates, val=config.data.val, test=test, seed=config.seed)
    counts: Counter[Split] = Counter(chosen.values())
    if not counts["val"] or (test > 0 and not counts["test"]):
        raise DataError(
            f"{printable(listing.source)}: {len(ours)} images are too few to hold some out; give at least two of a "
            f"class (not copies of one picture, nor all of one group), or folders train and val"
        )
    by = find_kind(listing.kind).stratum
    kept = "duplicates" if config.data.group is None else f"duplicates and equal {config.data.group!r}"
    parts = ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test") if counts[split])
    note = f"split: made by seed {config.seed}, stratified by {by}: {parts}; {kept} stay on one side"
    entries = tuple(replace(entry, split=chosen.get(entry.key, entry.split)) for entry in listing.entries)
    return entries, (note, *_find_shared_groups(entries))  # a given test split may cut one


def _find_shared_groups(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Groups that a given split cuts through."""
    sides: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.group is not None:
            sides[entry.group].add(str(entry.split))
    cut = sorted(group for group, splits in sides.items() if len(splits) > 1)
    verb = "groups are" if len(cut) > 1 else "group is"
    return (f"{len(cut)} {verb} in more than one split as given: {some(cut)}",) if cut else ()


def _duplicate_notes(entries: Sequence[Entry], scan: Scan) -> tuple[str, ...]:
    """What exact copies mean for these splits and labels."""
    by_key = {entry.key: entry for entry in entries}
    groups = [[by_key[key] for key in keys] for keys in scan.duplicates]
    notes = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = [group for group in groups if {one, other} <= {str(entry.split) for entry in group}]
        if shared:
            shown = some([group[0].key for group in shared], limit=3)
            verb = "images are" if len(shared) > 1 else "image is"
            notes.append(f"{len(shared)} {verb} in both {one} and {other} (exact copies, e.g. {shown})")
    torn = [group for group in groups if len({(entry.labels, entry.numbers) for entry in group}) > 1]
    if torn:
        examples = [f"{entry.key} = {entry.labels or entry.numbers}" for entry in torn[0][:2]]
        verb = "images have" if len(torn) > 1 else "image has"
        notes.append(f"{len(torn)} {verb} copies with different labels, e.g. {some(examples)}")
    if groups and not notes:
        notes.append(f"{len(groups)} {'images have' if len(groups) > 1 else 'image has'} exact copies")
    return tuple(notes)


def _task(listing: Listing, *, log: bool) -> TaskSpec:
    train = [entry.numbers for entry in listing.entries if entry.split == "train"]
    return find_kind(listing.kind).make_spec(listing.names, train, log)


def image_batches(
    images: AnyImages, *, preprocess: Preprocess, task: TaskSpec, batch_size: int, workers: int = 0
) -> Batches:
    """Batches of images as they are given (see ``list_images``), in their order, without targets.

    Raises:
        DataError: an image is of no accepted kind, a path does not exist, or there is no image. Unreadable ones are
            named while batches are read.
    """
    samples = list_images(images)
    return make_evaluation_batches(samples, task=task, preprocess=preprocess, batch_size=batch_size, workers=workers)


def audit(source: str | Path, *, on_decoded: OnDecoded | None = None) -> Scan:
    """Decode every image of a folder or table once, and return what was found.

    Args:
        ``source``: A folder of class folders, or a table, as for ``hs.open_images``.
        ``on_decoded``: A function that is called with (images done, images in all).

    Returns:
        The ``hashes`` (SHA-256) and ``stamps`` of the readable files, by name, the ``unreadable`` ones with reasons,
        and the ``duplicates``: names of files that are equal to the byte.

    Raises:
        DataError: There is no such source, or no image in it.

    Example:
        >>> import headstart as hs
        >>> found = hs.audit("photos")
        >>> len(found.hashes), found.unreadable, found.duplicates
        (16, (), ())
    """
    return scan_files(list_files(Data(source=str(source))), threads=available_cores(), on_decoded=on_decoded)
