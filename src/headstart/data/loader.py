"""Batches whose content is a function of the seed, the epoch and the sample, whatever the workers or the first step.

B batch, C channels, H, W, K classes or tags, T targets.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headstart.data.batch import Arguments, Batch
from headstart.data.decoding.decode import UnreadableImage
from headstart.data.decoding.decoded_cache import Decoded
from headstart.data.decoding.interruptible import iterate_interruptibly
from headstart.data.decoding.lazy_image import LazyImage
from headstart.data.randomness import derive_seed, drawing_from, epoch_order
from headstart.data.reading import ChangedFiles, ChangedImage, ImageRead, open_image_as_scanned, sendable, stack_read
from headstart.data.sources.samples import Sample
from headstart.data.transforms.on_device import DeviceAugment, Mix
from headstart.data.transforms.transforms import TrainTransform, Transform, mix_batch
from headstart.data.workers import kill_workers_left_over, stay_with
from headstart.distributed.processes import SINGLE_PROCESS, Processes, current
from headstart.isolation import each_in_own_arithmetic
from headstart.models.preprocess import Preprocess
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec

_SETTLING_SECONDS = 0.02
"""Before loading processes are forked beside other ranks: a thread of torch's that has just sent something may hold
CPython's own lock for a moment, and a process that is forked in it hangs (seen once in some thousand, Python 3.11).
"""


class Stored(Protocol):
    """Tensors that stand for images, computed before: those at a model's boundary."""

    def rows(self, parts: Sequence[Sequence[int]], *, epoch: int) -> Iterator[Arguments]:
        """For each part, tensors (B, ...) of the samples at these positions, as ``epoch`` changes them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """What makes batches training ones: the seed of order and changes, and mixing within the batch (alpha; 0: off).

    ``random``: images are changed at random at all. ``alternating``: each is mirrored in every other epoch; ``kinds``:
    so many forms of an image there are in all (0: no end of them). ``views``: after so many epochs, counted from
    ``first_epoch``, an image's changes come again; 0: always new ones.
    """

    seed: int
    mixup: float
    cutmix: float
    random: bool = True
    alternating: bool = False
    kinds: int = 0
    views: int = 0
    first_epoch: int = 0

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with one another."""
        return self.mixup > 0 or self.cutmix > 0

    def mirrors(self, index: int, epoch: int) -> bool:
        """Whether this image is mirrored in this epoch, whatever else happens to it."""
        return self.alternating and (derive_seed("flip", self.seed, index) + self.epoch_of_draws(epoch)) % 2 == 1

    def epoch_of_draws(self, epoch: int) -> int:
        """The epoch whose random changes are made in this one."""
        return self.first_epoch + (epoch - self.first_epoch) % self.views if self.views else epoch


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Batches of the samples, epoch by epoch.

    With ``training``: shuffled, augmented, a last batch of one image merged into the one before. Without: in order,
    the last batch padded to ``batch_size``, so that every image is seen at one batch shape. Of several processes each
    gets its part of every training batch, and every so many-th batch without training. With ``stored`` they hold
    tensors at the model's boundary; with ``decoded`` pictures are made of what is kept of them. ``pinned``: in
    memory from which a CUDA device copies while the CPU goes on. ``late``: random changes of whole batches are left to
    the device (see ``DeviceAugment``); what is left out of an image's are those that Pillow makes. ``changed``: where
    files that were rewritten since the scan are noted, and used as they are; without it they end the run.
    """

    samples: tuple[Sample, ...]
    task: TaskSpec
    batch_size: int
    preprocess: Preprocess
    transform: Transform
    training: Training | None
    workers: int
    processes: Processes = SINGLE_PROCESS
    stored: Stored | None = None
    decoded: Decoded | None = None
    pinned: bool = False
    late: bool = False
    changed: ChangedFiles | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(_cut(range(len(self.samples)), size=self.batch_size, merge=self.training is not None))

    def class_counts(self) -> dict[str, int]:
        """Images of each class or tag, in the order of the outputs; empty for numbers."""
        counts: Counter[int] = Counter()
        for sample in self.samples:
            if isinstance(sample.target, int):
                counts[sample.target] += 1
            else:
                counts.update(place for place, flag in enumerate(sample.target) if flag > 0)
        return {name: counts[place] for place, name in enumerate(self.task.classes)}

    def targets(self) -> Tensor:
        """What every image answers, in order, as batches give it."""
        return _targets(self.samples, self.task)

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number ``first`` on.

        Raises:
            UnreadableImage: names the file that gives no picture. ChangedImage: names the one that is not as scanned.
        """
        return each_in_own_arithmetic(self._from(first, epoch=epoch))

    def _from(self, first: int, *, epoch: int) -> Generator[Batch]:
        parts = [part for part in self._parts(epoch) if part.number >= first]
        made = self.stored.rows([part.rows for part in parts], epoch=epoch) if self.stored else self._read(parts, epoch)
        for part, values in zip(parts, made, strict=True):
            yield self._batch(part, values, epoch=epoch)

    def pad_batches(self, groups: Sequence[Sequence[int]], *, epoch: int) -> Iterator[Batch]:
        """Batches of the samples at these positions, each padded to ``batch_size``: as without training, but with the
        random changes that training makes in this epoch. They are fit to be kept: every file's SHA-256 is compared.

        Raises:
            UnreadableImage, ChangedImage: see ``epoch``.
        """
        parts = [_Part(number, tuple(group), len(group), padded=True) for number, group in enumerate(groups)]
        for part, values in zip(parts, self._read(parts, epoch, stored=True), strict=True):
            yield self._batch(part, values, epoch=epoch)

    def few(self, count: int) -> Batch:
        """The first images as one batch of this size, read by this process: something to measure with."""
        there = range(min(count, len(self.samples)))
        return next(replace(self, batch_size=count, workers=0).pad_batches([there], epoch=0))

    def _read(self, parts: Sequence[_Part], epoch: int, *, stored: bool = False) -> Iterator[Arguments]:
        """The pixels of each part's images, and where changes are left to the device, their numbers."""
        loader = DataLoader(
            _Decoded(self, stored=stored),
            batch_sampler=[[(epoch, position) for position in part.rows] for part in parts],
            collate_fn=stack_read,
            num_workers=self.workers,
            pin_memory=self.pinned,
            worker_init_fn=partial(_begin_worker, os.getpid()),
            # the loader draws its workers' base seed from here; the default generator must not notice
            generator=torch.Generator().manual_seed(0),
        )
        if self.workers and self.processes.is_distributed:
            time.sleep(_SETTLING_SECONDS)
        with kill_workers_left_over() if self.workers else nullcontext():
            made = iterate_interruptibly(iter(loader)) if self.workers else loader
            for part, values in zip(parts, made, strict=True):
                if isinstance(values, Exception):
                    raise values
                *found, digests = values
                for row, digest in digests:
                    assert self.changed is not None, "a changed file ends the run"
                    self.changed.add(self.samples[part.rows[row]], digest)
                yield tuple(found)

    def _parts(self, epoch: int) -> list[_Part]:
        """What this process takes of every batch of the epoch, in order."""
        count, ours = len(self.samples), self.processes
        if self.training is None:
            batches = _cut(range(count), size=self.batch_size, merge=False)[ours.rank :: ours.world_size]
            return [_Part(number, tuple(batch), len(batch), padded=True) for number, batch in enumerate(batches)]
        order = epoch_order(count, seed=self.training.seed, epoch=epoch)
        return [
            _part(number, batch, ours, mixes=self.training.mixes)
            for number, batch in enumerate(_cut(order, size=self.batch_size, merge=True))
        ]

    @property
    def deferred(self) -> TrainTransform | None:
        """The random changes of images that are left to the device."""
        made = self.transform
        random = self.late and self.training is not None
        return made if random and isinstance(made, TrainTransform) and made.batchwise else None

    def _batch(self, part: _Part, values: Arguments, *, epoch: int) -> Batch:
        samples, late = [self.samples[position] for position in part.rows], None
        targets = _targets(samples, self.task)
        if part.padded:
            values, targets = (
                tuple(_pad_rows(one, self.batch_size) for one in values),
                _pad_rows(targets, self.batch_size),
            )
        mix = None if part.padded else self._mix(part, epoch=epoch)
        if self.late and self.stored is None:
            late = DeviceAugment(changes=self.deferred, drawn=values[-1], mix=mix, targets=targets, lead=part.lead)
        if mix is not None:  # where it is done later, of the pixels only their shape counts
            mixed, targets = mix(values[0] if late is None else torch.empty_like(values[0], device="meta"), targets)
            values = (mixed,) if late is None else values
        if late is None:
            values = tuple(one[part.lead :] for one in values)
        targets, samples = targets[part.lead :], samples[part.lead :]
        filled = len(values[0]) - (0 if late is None else part.lead) - part.size
        samples = samples[: part.size]
        indices = torch.tensor([sample.index for sample in samples], dtype=torch.int64)
        return Batch(
            pixels=values[0] if self.stored is None else torch.empty(0, dtype=torch.uint8),
            targets=targets,
            indices=torch.cat([indices, indices.new_full((filled,), -1)]),
            keys=tuple(sample.key for sample in samples),
            mean=torch.tensor(self.preprocess.mean),
            std=torch.tensor(self.preprocess.std),
            size=part.size,
            total=part.total,
            stored=() if self.stored is None else values,
            late=late,
        )

    def _mix(self, part: _Part, *, epoch: int) -> Mix | None:
        """How this part's images are mixed with one another, the same way each time."""
        if self.training is None or not self.training.mixes:
            return None
        assert self.stored is None, "only pixels can be mixed"
        return partial(
            mix_batch,
            num_classes=self.task.num_outputs,
            mixup=self.training.mixup,
            cutmix=self.training.cutmix,
            seed=derive_seed("mix", self.training.seed, epoch, part.number),
        )


@dataclass(frozen=True)
class _Part:
    """This process's part of batch ``number``: positions of ``lead`` images that are only mixed in, ``size`` of its
    own, and copies that fill it up; of ``total`` images in all. ``padded``: with zeros to the whole batch's size.
    """

    number: int
    rows: tuple[int, ...]
    size: int
    lead: int = 0
    total: int = 0
    padded: bool = False


def _part(number: int, batch: Sequence[int], ours: Processes, *, mixes: bool) -> _Part:
    """At least two rows (BatchNorm cannot take one), and before them the image that mixing takes from its neighbour."""
    places = ours.slice(len(batch))
    mine = [batch[place] for place in places]
    fill = batch[: max(0, min(2, len(batch)) - len(mine))]
    lead = [batch[places.start - 1]] if mixes and ours.is_distributed else []  # mixup rolls the batch by one row
    return _Part(number, (*lead, *mine, *fill), size=len(mine), lead=len(lead), total=len(batch))


def _begin_worker(parent: int, _number: int) -> None:
    stay_with(parent)


class _Decoded(Dataset[ImageRead]):
    """Pixels of (epoch, position). An unreadable image is a value: a worker's exception would lose its file's name.
    ``stored``: what is made of the pixels is to be kept.
    """

    def __init__(self, batches: Batches, *, stored: bool) -> None:
        self.batches, self.deferred = batches, batches.deferred
        self.transform = batches.transform if self.deferred is None else self.deferred.framed
        self.decoded = batches.decoded
        self.stored = stored or (self.decoded is not None and self.decoded.file is not None)
        if self.decoded is not None and self.deferred is not None:
            self.decoded = replace(self.decoded, transform=self.deferred.framed)

    def __getitem__(self, place: tuple[int, int]) -> ImageRead:
        epoch, position = place
        sample, training, numbers = self.batches.samples[position], self.batches.training, torch.empty(0)
        try:
            if training is None:
                pixels, digest = self._pixels(position)
                return pixels, numbers, digest
            with drawing_from(derive_seed("augment", training.seed, training.epoch_of_draws(epoch), sample.index)):
                pixels, digest = self._pixels(position)
                if self.deferred is not None:
                    numbers = self.deferred.draw()
            return pixels.flip(-1) if training.mirrors(sample.index, epoch) else pixels, numbers, digest
        except (UnreadableImage, ChangedImage) as error:
            return sendable(error, sample)

    def _pixels(self, position: int) -> tuple[Tensor, str]:
        """The image's pixels, and its file's SHA-256 where it has changed."""
        batches, found = self.batches, ""

        def open_image() -> tuple[LazyImage, bool]:
            nonlocal found
            channels, stops = batches.preprocess.channels, batches.changed is None
            picture, found = open_image_as_scanned(
                batches.samples[position], channels=channels, stored=self.stored, stops=stops
            )
            return picture, not found

        pixels = self.transform(open_image()[0]) if self.decoded is None else self.decoded.pixels(position, open_image)
        return pixels, found


def _cut(order: Sequence[int], *, size: int, merge: bool) -> list[list[int]]:
    """Batches of ``size`` and a remainder; ``merge`` puts a remainder of one image into the batch before."""
    batches = [list(order[start : start + size]) for start in range(0, len(order), size)]
    if merge and len(batches) > 1 and len(batches[-1]) == 1 < size:
        last = batches.pop()
        batches[-1] += last
    return batches


def _targets(samples: Sequence[Sample], task: TaskSpec) -> Tensor:
    kind = find_kind(task.kind)
    if samples[0].target == ():
        return torch.empty(0, dtype=torch.int64 if kind.one_label else torch.float32)
    return kind.encode_targets(task, [sample.target for sample in samples])


def _pad_rows(values: Tensor, size: int) -> Tensor:
    missing = size - len(values)
    if missing == 0 or values.numel() == 0:
        return values
    return torch.cat([values, values.new_zeros((missing, *values.shape[1:]))])


def worker_count() -> int:
    """Decoding processes where none are asked for: 0 on up to 2 cores, else as many as cores, up to 8."""
    cores = available_cores()
    return 0 if cores <= 2 else min(8, cores)


def available_cores() -> int:
    """Cores that this process may use; several on one machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, cores // current().local_size)
