"""The images of a run: a source, listed, decoded once, split, and cut into batches for train, val and test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.config.schema import Augment, Cache, Config, Data
from headstart.config.schema import Batch as BatchOptions
from headstart.data.augmentation import Augmentation
from headstart.data.axes import choose_axes
from headstart.data.conversions import describe_conversions
from headstart.data.copies import describe_copies
from headstart.data.dataset import ImageDataset
from headstart.data.decoding.decode import UnreadableImage, decode_bands
from headstart.data.decoding.decoded_cache import Decoded
from headstart.data.levels import choose_levels, refuse_bands
from headstart.data.loader import Batches, available_cores, make_evaluation_batches, worker_count
from headstart.data.reading import ChangedFiles
from headstart.data.scan import OnDecoded, Scan, refuse_unreadable, scan_records
from headstart.data.sources.as_given import AnyImages, list_images
from headstart.data.sources.caution import Caution
from headstart.data.sources.files import Files
from headstart.data.sources.listing import list_source, list_unlabelled
from headstart.data.sources.names import compare_splits
from headstart.data.sources.records import list_names
from headstart.data.sources.samples import Listing, Sample, make_target, some
from headstart.data.sources.sides import find_sides
from headstart.data.sources.source import Record, Source, Split, read_content
from headstart.data.split import split_records
from headstart.data.transforms.own import GivenTransform, OwnTransform, read_transforms
from headstart.data.transforms.transforms import Preset, check_mixing, eval_transform, train_transform
from headstart.distributed.processes import current
from headstart.errors import ConfigError, DataError
from headstart.models.preprocess import Preprocess
from headstart.storage.disk_cache import DiskCache, cache_folder
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec
from headstart.wording import option

if TYPE_CHECKING:
    from headstart.models.sources import OpenedModel


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a run or of a loop of one's own, split, and cut into batches.

    Attributes:
        ``task``: What the images answer: classes, tags or numbers.
        ``train``: The batches to train on, in a new order each epoch.
        ``val``: The batches of the validation images, in a fixed order.
        ``test``: The batches of the test images, where the source has some; else None.
        ``scan``: What was found when every image was read.
        ``source``: What gives the bytes of the images.
        ``notes``: Sentences on what was found and decided.
        ``cautions``: Warnings of the data, each with how many images it is about.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}, image_size=32)
        >>> images = hs.open_images("photos", like=net, val=0.25)
        >>> images.classes, len(images.train.samples), len(images.val.samples)
        (('cat', 'dog'), 12, 4)
    """

    task: TaskSpec
    train: Batches
    val: Batches
    test: Batches | None
    scan: Scan
    source: Source
    notes: tuple[str, ...]
    cautions: tuple[Caution, ...] = ()

    @property
    def root(self) -> Path | None:
        """The folder from which the names of the samples start; None where they are no files of one folder."""
        return self.source.root if isinstance(self.source, Files) else None

    @property
    def location(self) -> str:
        """Where the images come from: the absolute path of a folder or table, else the source's name."""
        return str(self.source.given.absolute()) if isinstance(self.source, Files) else self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes or tags, in the order of the outputs."""
        return self.task.classes


def open_images(
    source: str | Path | Source,
    *,
    like: OpenedModel | Preprocess,
    val: float = 0.2,
    batch_size: int = 64,
    augment: Preset = "standard",
    seed: int = 42,
    transform: GivenTransform | None = None,
) -> Images:
    """Return the images of a folder or table, split into training and validation, prepared as a model wants them.

    Args:
        ``source``: A folder of class folders (``photos/cat/1.jpg``), one with ``train`` and ``val`` in it, or a CSV or
            Parquet table; or a source in Python, such as ``hs.label_images(...)``.
        ``like``: The opened model, or its ``preprocess``, which says size, mean and framing.
        ``val``: The share of images that is held out for validation where the source has no split of its own, 0 to 1.
        ``batch_size``: Images per batch.
        ``augment``: How much training images are changed at random: none, light, standard or strong.
        ``seed``: The number of which the split, the order and the changes are a function.
        ``transform``: Your own change of training images, as for ``hs.train``; or ``{"train": f, "val": g}``.

    Returns:
        The ``task`` with its ``classes``, the batches ``train``, ``val`` and ``test`` (or None), the ``scan`` of the
        files, and ``notes`` on what was found and decided.

    Raises:
        DataError: The source is missing, unclear or damaged; the message says where and what to do.
        ConfigError: The model is a run that was validated with a transform of your own, and none is given.

    Example:
        >>> import headstart as hs
        >>> opened = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]})
        >>> images = hs.open_images("photos", like=opened, val=0.25, batch_size=4)
        >>> images.classes, len(images.train.samples), len(images.val.samples)
        (('cat', 'dog'), 12, 4)
    """
    config = Config(
        data=Data(source=str(source) if isinstance(source, str | Path) else None, val=val),
        batch=BatchOptions(size=batch_size),
        augment=Augment(preset=augment),
        seed=seed,
    )
    own_source, given = None if isinstance(source, str | Path) else source, read_transforms(transform)
    if not isinstance(like, Preprocess) and given.val is None and _has_framing(like):
        name = getattr(like, "path", None) or like.spec
        raise ConfigError(
            f"like: {name}: the run was validated with a transform of your own, which no folder holds; give it, "
            'or another one: hs.open_images(..., transform={"val": g})'
        )
    own, framing = (None if function is None else OwnTransform(function) for function in vars(given).values())
    images = load_images(config, like if isinstance(like, Preprocess) else like.preprocess, own_source=own_source)
    return change_images(images, own=own, framing=framing)


def _has_framing(like: object) -> bool:
    """Whether an opened model, or an opened run (which is a room above), was validated with a transform of its own."""
    facts = getattr(like, "bundle", None) or getattr(like, "facts", None) or {}
    return facts.get("framing") is not None


def change_images(images: Images, *, own: OwnTransform | None, framing: OwnTransform | None) -> Images:
    """The images with the user's own changes after all others: ``own`` of training images, ``framing`` of those that
    are evaluated.
    """
    train = replace(images.train.images, own=own, own_framing=framing)
    if own is not None:
        assert train.augmentation is not None
        train = replace(train, augmentation=replace(train.augmentation, random=True, distinct=0))
    val, test = images.val.frame_by(framing), images.test and images.test.frame_by(framing)
    return replace(images, train=replace(images.train, dataset=train), val=val, test=test)


def load_images(
    config: Config,
    preprocess: Preprocess,
    *,
    own_source: Source | None = None,
    on_decoded: OnDecoded | None = None,
    join_near: bool = True,
) -> Images:
    """All that the configuration says about data, done: listed, decoded once, split, cut into batches.

    ``own_source``: the user's, instead of what the configuration names. ``join_near``: a split that is made here keeps
    resized and re-encoded copies on one side, as it does exact ones.

    Raises:
        DataError: the source is missing, unclear or damaged; the message says where and what to do.
    """
    listing = list_source(config.data, kind=config.task.kind, own_source=own_source)
    check_mixing(listing.kind, cutmix=config.augment.cutmix)
    kept = (
        None if config.cache.use == "never" else DiskCache(cache_folder(), limit_bytes=int(config.cache.limit_gb * 1e9))
    )
    scan = scan_records(
        listing.source, listing.records, threads=available_cores(), disk_cache=kept, on_decoded=on_decoded
    )
    if config.data.unreadable == "stop":
        refuse_unreadable(scan, config.data)
    readable, skipped = _without_unreadable(listing, scan)
    refuse_unreadable(scan, config.data)
    # among the readable ones: skipped files are as if they were not there
    indices = {record.name: index for index, record in enumerate(readable.records)}
    records, split_notes = _divide(readable, scan, config, join_near=join_near)
    copies, torn = describe_copies(records, scan, kind=listing.kind)
    cautions = (*listing.cautions, *skipped, *_find_shared_groups(records), *torn)
    cautions += compare_splits(records, kind=listing.kind, source=listing.source.name)
    notes = listing.notes + split_notes + copies
    axes, measured, axes_notes = choose_axes(
        scan.measured, channels=preprocess.channels, asked=config.data.axes, source=listing.source.name
    )
    refuse_bands(measured, channels=preprocess.channels, source=listing.source.name)
    if preprocess.channels not in (1, 3):
        _refuse_other_bands(readable, scan, channels=preprocess.channels)
    asked = None if config.data.range == "auto" else config.data.range
    levels, range_notes, pale = choose_levels(measured, count=len(scan.hashes), asked=asked)
    changed, lost = describe_conversions(scan.marks, count=len(scan.hashes), preprocess=preprocess)
    cautions += pale + lost
    preprocess = replace(preprocess, levels=levels, axes=axes)
    notes += axes_notes + range_notes + changed + _complaint_notes(scan)
    task = _task(replace(readable, records=records), log=config.data.log)
    samples = {
        split: tuple(
            Sample(
                record=replace(record, digest=scan.hashes[record.name]),
                index=indices[record.name],
                target=make_target(record, task),
                stamp=scan.stamps[record.name],
            )
            for record in records
            if record.split == split
        )
        for split in ("train", "val", "test")
    }
    notes += tuple(caution.text for caution in cautions)
    images = _assemble(samples, config=config, preprocess=preprocess, images=(task, scan, listing.source, notes))
    return replace(images, cautions=cautions)


def _refuse_other_bands(listing: Listing, scan: Scan, *, channels: int) -> None:
    """Decode the images of 8 bits, of which the scan keeps no number of bands.

    Raises: DataError: one does not have as many bands as the model takes.
    """
    for record in listing.records:
        if record.name not in scan.measured:
            content, where = read_content(listing.source, record)[0], listing.source.where(record)
            try:
                decode_bands(content, where=where, channels=channels)
            except UnreadableImage as error:
                raise DataError(f"{listing.source.name}: {where}: {error.reason}") from error


def _assemble(
    samples: dict[str, tuple[Sample, ...]],
    *,
    config: Config,
    preprocess: Preprocess,
    images: tuple[TaskSpec, Scan, Source, tuple[str, ...]],
) -> Images:
    task, scan, source, notes = images
    size = _batch_size(len(samples["train"])) if config.batch.size == "auto" else config.batch.size
    augment, framing = config.augment, eval_transform(preprocess)
    alternating = augment.flip == "alternating"
    sides = find_sides(task.names, are_numbers=find_kind(task.kind).gives_numbers) if augment.flip == "auto" else ()
    flip = False if augment.flip == "alternating" or sides else augment.flip
    if sides and augment.preset != "none":
        notes = (
            *notes,
            f"images are not mirrored, for {some(sides)} say a side; to mirror them: {option('augment.flip', True)}",
        )
    changes = train_transform(augment.preset, flip=flip, preprocess=preprocess)
    val = ImageDataset(
        source=source,
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


def _without_unreadable(listing: Listing, scan: Scan) -> tuple[Listing, tuple[Caution, ...]]:
    if not scan.unreadable:
        return listing, ()
    records = tuple(record for record in listing.records if record.name in scan.hashes)
    where, shown = listing.source.name, [f"{image.key} ({image.reason})" for image in scan.unreadable]
    gone = sorted({label for record in listing.records for label in record.labels})
    left = {label for record in records for label in record.labels}
    lost = [name for name in gone if name not in left]
    if not records or lost:
        what = f"no image of {some(lost)} can be read" if lost else "no image can be read"
        raise DataError(f"{where}: {what}, e.g. {shown[0]}; mend the files, or remove the class")
    emptied = {record.split for record in listing.records} - {record.split for record in records}
    if emptied:
        raise DataError(
            f"{where}: no image of {some(sorted(map(str, emptied)))} can be read, e.g. {shown[0]}; mend them"
        )
    text = f"{len(shown)} unreadable {'images are' if len(shown) > 1 else 'image is'} left out: {some(shown)}"
    advice = "mend or remove them; the run's unreadable.csv lists all"
    caution = Caution(text=text, count=len(shown), example=shown[0], advice=advice)
    return replace(listing, records=records), (caution,)


def _divide(
    listing: Listing, scan: Scan, config: Config, *, join_near: bool
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Records with their splits, and how they came about."""
    given = Counter(record.split for record in listing.records)
    if given["val"] > 0:
        notes = [f"split: as given: {given['train']} train, {given['val']} val, {given['test']} test"]
        if config.data.test > 0 and given["test"] == 0:
            notes.append("data.test is not used: the data have their own split")
        if config.data.val != Data().val:
            notes.append("data.val is not used: the data have their own split")
        return listing.records, tuple(notes)
    ours = [record for record in listing.records if record.split in (None, "train")]
    test = 0.0 if given["test"] else config.data.test
    if config.data.val + test >= 1:
        raise DataError(f"data.val, data.test: {config.data.val} and {test} leave nothing to train on; give less")
    copies = (*scan.duplicates, *scan.near_copies) if join_near else scan.duplicates
    chosen = split_records(ours, duplicates=copies, val=config.data.val, test=test, seed=config.seed)
    counts: Counter[Split] = Counter(chosen.values())
    if not counts["val"] or (test > 0 and not counts["test"]):
        raise DataError(
            f"{listing.source.name}: {len(ours)} images are too few to hold some out; give at least two of a "
            f"class (not copies of one picture, nor all of one group), or folders train and val"
        )
    by = find_kind(listing.kind).stratum
    kept = f"copies ({_name_copies(scan) if join_near else 'exact ones'})"
    kept += "" if config.data.group is None else f" and equal {config.data.group!r}"
    parts = ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test") if counts[split])
    note = f"split: made by seed {config.seed}, stratified by {by}: {parts}; {kept} stay on one side"
    records = tuple(replace(record, split=chosen.get(record.name, record.split)) for record in listing.records)
    return records, (note,)


def _name_copies(scan: Scan) -> str:
    """Which copies were looked for: of images without a fingerprint exact ones alone."""
    plain = sum(not scan.fingerprints.get(name) for name in scan.hashes)
    if plain == len(scan.hashes):
        return "exact ones alone: all images are too small or too plain to tell resized ones by"
    few = f"; of {plain:,} images too small or too plain to tell by exact ones alone" if plain else ""
    return f"exact, resized or re-encoded{few}"


def _find_shared_groups(records: Sequence[Record]) -> tuple[Caution, ...]:
    """A warning of groups that a given split cuts through; it may be the test split alone that is given."""
    sides: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.group is not None:
            sides[record.group].add(str(record.split))
    cut = sorted(group for group, splits in sides.items() if len(splits) > 1)
    verb = "groups are" if len(cut) > 1 else "group is"
    if not cut:
        return ()
    text = f"{len(cut)} {verb} in more than one split as given: {some(cut)}"
    advice = "give all images of a group one split, or leave the split to headstart"
    return (Caution(text=text, count=len(cut), example=repr(cut[0]), advice=advice),)


def _complaint_notes(scan: Scan) -> tuple[str, ...]:
    """What decoders said about files that they read all the same."""
    if not scan.complaints:
        return ()
    name, said = min(scan.complaints.items())
    many = f"{len(scan.complaints)} images are" if len(scan.complaints) > 1 else "an image is"
    return (f"{many} read although their decoder complains, e.g. {name}: {said}",)


def _task(listing: Listing, *, log: bool) -> TaskSpec:
    train = [tuple(record.numbers.values()) for record in listing.records if record.split == "train"]
    return find_kind(listing.kind).make_spec(listing.names, train, log)


def image_batches(
    images: AnyImages, *, preprocess: Preprocess, task: TaskSpec, batch_size: int, workers: int = 0
) -> Batches:
    """Batches of images as they are given (see ``list_images``), in their order, without targets.

    Raises:
        DataError: an image is of no accepted kind, a path does not exist, or there is no image. Unreadable ones are
            named while batches are read.
    """
    source = list_images(images)
    samples = tuple(Sample(record=record, index=place, target=()) for place, record in enumerate(source.listed))
    return make_evaluation_batches(
        source, samples, task=task, preprocess=preprocess, batch_size=batch_size, workers=workers
    )


def audit(source: str | Path | Source, *, on_decoded: OnDecoded | None = None) -> Scan:
    """Decode every image of a folder, a table or a source once, and return what was found.

    All of them are read, whatever earlier scans found; what is found now is kept for later runs (in HEADSTART_CACHE).

    Args:
        ``source``: A folder of class folders, a table or a source in Python, as for ``hs.open_images``.
        ``on_decoded``: A function that is called with (images done, images in all).

    Returns:
        The ``hashes`` (SHA-256) and ``stamps`` of the readable files, by name, the ``unreadable`` ones with reasons,
        the ``duplicates``: names of files that are equal to the byte, and the ``near_copies``: names of two that show
        one picture, resized or saved again.

    Raises:
        DataError: There is no such source, or no image in it.

    Example:
        >>> import headstart as hs
        >>> found = hs.audit("photos")
        >>> len(found.hashes), found.unreadable, found.duplicates
        (16, (), ())
    """
    if isinstance(source, str | Path):
        source = list_unlabelled(Data(source=str(source)))
    records = list_names(source)
    kept = DiskCache(cache_folder(), limit_bytes=int(Cache().limit_gb * 1e9))
    return scan_records(source, records, threads=available_cores(), disk_cache=kept, fresh=True, on_decoded=on_decoded)
