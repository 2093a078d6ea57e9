"""Batches, epoch by epoch: a dataset, the sampler that orders it, torch's ``DataLoader`` that reads it, and collate.

What a batch holds is a function of the seed, the epoch and the sample, whatever the workers or the first step.
B batch, C channels, H, W.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from headstart.data.augmentation import Augmentation
from headstart.data.batch import Arguments, Batch
from headstart.data.collate import collate_activations, collate_images
from headstart.data.dataset import ImageDataset, TensorDataset
from headstart.data.decoding.interruptible import iterate_interruptibly
from headstart.data.reading import Unreadable, stack_read, stack_readable
from headstart.data.sampler import BatchIndices, EpochSampler, pad_groups
from headstart.data.sources.samples import Sample
from headstart.data.sources.source import Source
from headstart.data.transforms.own import OwnTransform
from headstart.data.transforms.transforms import eval_transform
from headstart.data.workers import kill_workers_left_over, stay_with
from headstart.distributed.processes import SINGLE_PROCESS, Processes, current
from headstart.isolation import each_in_own_arithmetic
from headstart.models.preprocess import Preprocess
from headstart.tasks.task import TaskSpec

_SETTLING_SECONDS = 0.02
"""Before loading processes are forked beside other ranks: a thread of torch's that has just sent something may hold
CPython's own lock for a moment, and a process that is forked in it hangs (seen once in some thousand, Python 3.11).
"""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Batches of a dataset, epoch by epoch.

    A dataset with an ``augmentation`` is shuffled and changed at random, and a last batch of one image is merged into
    the one before. One without is gone through in order, the last batch padded, so that every image is seen at one
    batch shape. Of several processes each gets its share (see ``EpochSampler``).

    Attributes:
        ``dataset``: Images, or the tensors at a model's boundary that stand for them.
        ``batch_size``: Images per batch, over all processes in training.
        ``workers``: Processes that load images; 0: this one does.
        ``processes``: This process among those that train together.
        ``pinned``: Whether batches are in memory from which a CUDA device copies while the CPU goes on.
    """

    dataset: ImageDataset | TensorDataset
    batch_size: int
    workers: int = 0
    processes: Processes = SINGLE_PROCESS
    pinned: bool = False

    @property
    def images(self) -> ImageDataset:
        """The images of the dataset, or those that it stands for."""
        return self.dataset.images

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The images, by index."""
        return self.images.samples

    @property
    def source(self) -> Source:
        """What gives the bytes of the images."""
        return self.images.source

    @property
    def task(self) -> TaskSpec:
        """What the images answer."""
        return self.images.task

    @property
    def preprocess(self) -> Preprocess:
        """What the model expects of the images."""
        return self.images.preprocess

    @property
    def augmentation(self) -> Augmentation | None:
        """How images are changed at random; None: not at all."""
        return self.images.augmentation

    @property
    def sampler(self) -> EpochSampler:
        """Which images make up each batch."""
        augmentation = self.augmentation
        return EpochSampler(
            count=len(self.samples),
            batch_size=self.batch_size,
            seed=None if augmentation is None else augmentation.seed,
            processes=self.processes,
            mixes=augmentation is not None and augmentation.mixes,
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sampler)

    @property
    def largest_batch(self) -> int:
        """Images of the largest batch, but for one that is merged in; 1 where there are none."""
        return max(1, min(self.batch_size, len(self.samples)))

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
        return self.images.targets(range(len(self.samples)))

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number ``first`` on.

        Raises:
            UnreadableImage: names the file that gives no picture. ChangedImage: names the one that is not as scanned.
        """
        return each_in_own_arithmetic(self._load_epoch(epoch, first=first))

    def pad_batches(self, groups: Sequence[Sequence[int]], *, epoch: int) -> Iterator[Batch]:
        """Batches of pixels of the images at these indices, each padded to ``batch_size``: as in evaluation, but with
        the random changes that training makes in this epoch. They are fit to be kept: every file's SHA-256 is compared.

        Raises:
            UnreadableImage, ChangedImage: see ``epoch``.
        """
        verified = replace(self, dataset=replace(self.images, verify=True))
        return verified._load(pad_groups(groups), epoch=epoch)

    def readable_batches(self, *, first: int = 0) -> Iterator[tuple[Batch | None, Unreadable]]:
        """The batches of evaluation from number ``first`` on, in order: each with the images that can be read, padded
        to ``batch_size`` (None: none can), and those that cannot, by their row among all of the batch.
        """
        taken = self.for_evaluation().sampler.batches(0, first=first)
        return each_in_own_arithmetic(self.for_evaluation()._decode_readable(taken))

    def example_batch(self, count: int) -> Batch:
        """The first images as one batch of this size, read by this process: something to measure with."""
        indices = range(min(count, len(self.samples)))
        return next(replace(self, batch_size=count, workers=0).pad_batches([indices], epoch=0))

    def with_samples(self, samples: tuple[Sample, ...]) -> Batches:
        """The same of other images."""
        return replace(self, dataset=replace(self.images, samples=samples))

    def frame_by(self, own: OwnTransform | None) -> Batches:
        """The same, of images that are changed by the user's function where they are evaluated."""
        return replace(self, dataset=replace(self.images, own_framing=own))

    def for_evaluation(self) -> Batches:
        """The same images in order, not changed at random."""
        return self if self.augmentation is None else replace(self, dataset=self.images.for_evaluation())

    def _load_epoch(self, epoch: int, *, first: int) -> Generator[Batch]:
        """The batches of ``epoch``; nothing is drawn before it is gone through, in arithmetic of its own."""
        yield from self._load(self.sampler.batches(epoch, first=first), epoch=epoch)

    def _load(self, taken: Sequence[BatchIndices], *, epoch: int) -> Generator[Batch]:
        images, dataset, indices = self.images, self.dataset, [batch.indices for batch in taken]
        size = self.batch_size
        if isinstance(dataset, ImageDataset):
            for batch, values in zip(taken, self._decode(indices, epoch=epoch), strict=True):
                yield collate_images(batch, values, dataset=images, batch_size=size, epoch=epoch)
        else:
            for batch, values in zip(taken, dataset.read_batches(indices, epoch=epoch), strict=True):
                yield collate_activations(batch, values, dataset=images, batch_size=size)

    def _decode(self, batches: Sequence[Sequence[int]], *, epoch: int) -> Iterator[Arguments]:
        """The pixels of each batch's images, and the numbers of changes that are left to the device."""
        images = self.images
        for indices, values in zip(batches, self._read(batches, epoch=epoch, stack=stack_read), strict=True):
            if isinstance(values, Exception):
                raise values
            *tensors, changed_digests = values
            for row, digest in changed_digests:
                assert images.changed is not None, "a changed file ends the run"
                images.changed.add(images.samples[indices[row]], digest, source=images.source)
            yield tuple(tensors)

    def _decode_readable(self, taken: Sequence[BatchIndices]) -> Generator[tuple[Batch | None, Unreadable]]:
        batches = [batch.indices for batch in taken]
        for batch, values in zip(taken, self._read(batches, epoch=0, stack=stack_readable), strict=True):
            if isinstance(values, Exception):
                raise values
            tensors, unreadable = values
            gone = {row for row, _ in unreadable}
            indices = tuple(index for row, index in enumerate(batch.indices) if row not in gone)
            if not indices:
                yield None, unreadable
                continue
            there = replace(batch, indices=indices, size=len(indices))
            yield collate_images(there, tensors, dataset=self.images, batch_size=self.batch_size, epoch=0), unreadable

    def _read(self, batches: Sequence[Sequence[int]], *, epoch: int, stack: Callable[[Any], Any]) -> Iterator[Any]:
        """What ``stack`` makes of the images of each batch, where they are loaded."""
        loader = DataLoader(
            self.images,
            batch_sampler=[[(epoch, index) for index in indices] for indices in batches],
            collate_fn=stack,
            num_workers=self.workers,
            pin_memory=self.pinned,
            worker_init_fn=partial(_begin_worker, os.getpid()),
            # the loader draws its workers' base seed from here; the default generator must not notice
            generator=torch.Generator().manual_seed(0),
        )
        if self.workers and self.processes.is_distributed:
            time.sleep(_SETTLING_SECONDS)
        with kill_workers_left_over() if self.workers else nullcontext():
            yield from iterate_interruptibly(iter(loader)) if self.workers else loader


def make_evaluation_batches(
    source: Source,
    samples: tuple[Sample, ...],
    *,
    task: TaskSpec,
    preprocess: Preprocess,
    batch_size: int,
    workers: int,
) -> Batches:
    """Batches of these images in order, framed as the model's own evaluation does it."""
    transform = eval_transform(preprocess)
    images = ImageDataset(source=source, samples=samples, task=task, preprocess=preprocess, transform=transform)
    return Batches(dataset=images, batch_size=batch_size, workers=workers)


def _begin_worker(parent: int, _number: int) -> None:
    stay_with(parent)


def worker_count() -> int:
    """Decoding processes where none are asked for: 0 on up to 2 cores, else as many as cores, up to 8."""
    cores = available_cores()
    return 0 if cores <= 2 else min(8, cores)


def available_cores() -> int:
    """Cores that this process may use; several on one machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, cores // current().local_size)
