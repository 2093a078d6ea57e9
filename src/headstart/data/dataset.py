"""A map-style dataset of decoded pixels: (epoch, index) -> uint8 tensor.

It knows samples and how one is read, never which batch an image is in. C channels, H, W, N random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from headstart.data.augmentation import Augmentation
from headstart.data.decoding.decode import UnreadableImage
from headstart.data.decoding.decoded_cache import Decoded
from headstart.data.decoding.lazy_image import LazyImage
from headstart.data.randomness import derive_seed, drawing_from
from headstart.data.reading import ChangedFiles, ChangedImage, ImageRead, open_image_as_scanned, sendable
from headstart.data.sources.samples import Sample
from headstart.data.sources.source import Source
from headstart.data.transforms.own import OwnTransform
from headstart.data.transforms.transforms import TrainTransform, Transform, eval_transform
from headstart.models.preprocess import Preprocess
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec

_FRAMING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ImageDataset(Dataset[ImageRead]):
    """Images of a split: ``dataset[epoch, index]`` is the image as this epoch changes it.

    Attributes:
        ``source``: Gives their bytes.
        ``samples``: The images, by index.
        ``task``: What they answer.
        ``preprocess``: What the model expects of them.
        ``transform``: Makes pixels of a picture.
        ``augmentation``: How they are changed at random; None: not at all (evaluation).
        ``decoded``: Decoded pictures kept on the disk, of which pixels are made; None: each file is decoded.
        ``changed``: Where files that were rewritten since the scan are noted, and used as they are; without it they
            end the run.
        ``augment_on_device``: Whether random changes that can be made of a whole batch are left to the device (see
            ``DeviceAugment``).
        ``own``: The user's own change of training images, after all others.
        ``own_framing``: The user's own change of images that are evaluated, after they were framed.
        ``verify``: Whether every file's SHA-256 is compared with the scan's, for what is made of it is kept.
    """

    source: Source
    samples: tuple[Sample, ...]
    task: TaskSpec
    preprocess: Preprocess
    transform: Transform
    augmentation: Augmentation | None = None
    decoded: Decoded | None = None
    changed: ChangedFiles | None = None
    augment_on_device: bool = False
    verify: bool = False
    own: OwnTransform | None = None
    own_framing: OwnTransform | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> ImageRead:
        """Pixels (C, H, W) uint8, numbers (N,) of changes left to the device, and the SHA-256 of a changed file.

        An unreadable image is a value: what a loading process raises would lose its file's name.
        """
        epoch, index = key
        sample, augmentation, numbers = self.samples[index], self.augmentation, torch.empty(0)
        try:
            if augmentation is None:
                pixels, digest = self._decode(index)
                return self._frame(pixels), numbers, digest
            drawn = augmentation.epoch_of_draws(epoch)
            with drawing_from(derive_seed("augment", augmentation.seed, drawn, sample.index)):
                pixels, digest = self._decode(index)
                if self.deferred is not None:
                    numbers = self.deferred.draw()
                pixels = pixels.flip(-1) if augmentation.mirrors(sample.index, epoch) else pixels
                if self.own is not None:
                    pixels = self.own(pixels, seed=derive_seed("own", augmentation.seed, drawn, sample.index))
            return pixels, numbers, digest
        except (UnreadableImage, ChangedImage) as error:
            return sendable(error, sample)

    @property
    def images(self) -> ImageDataset:
        """This dataset itself, as other datasets name the images that they stand for."""
        return self

    @cached_property
    def deferred(self) -> TrainTransform | None:
        """The random changes that are left to the device."""
        transform = self.transform
        random = self.augment_on_device and self.augmentation is not None and self.own is None
        return transform if random and isinstance(transform, TrainTransform) and transform.batchwise else None

    def targets(self, indices: Sequence[int]) -> Tensor:
        """What these images answer, as a loss takes it: (B,) or (B, K); empty where they have no labels."""
        kind, samples = find_kind(self.task.kind), [self.samples[index] for index in indices]
        if samples[0].target == ():
            return torch.empty(0, dtype=torch.int64 if kind.one_label else torch.float32)
        return kind.encode_targets(self.task, [sample.target for sample in samples])

    def for_evaluation(self) -> ImageDataset:
        """The same images as they are, not changed at random."""
        if self.augmentation is None:
            return self
        return replace(self, augmentation=None, transform=eval_transform(self.preprocess), decoded=None, own=None)

    @cached_property
    def _transform(self) -> Transform:
        """The transform but for what is left to the device."""
        return self.transform if self.deferred is None else self.deferred.framed

    @cached_property
    def _decoded(self) -> Decoded | None:
        if self.decoded is None or self.deferred is None:
            return self.decoded
        return replace(self.decoded, transform=self.deferred.framed)

    def _frame(self, pixels: Tensor) -> Tensor:
        """The pixels of an image that is evaluated, as the user's own function changes them."""
        if self.own_framing is None:
            return pixels
        with drawing_from(_FRAMING_SEED):  # the same for any image: its mates and its place change nothing
            return self.own_framing(pixels, seed=_FRAMING_SEED)

    def _decode(self, index: int) -> tuple[Tensor, str]:
        """The image's pixels, and its file's SHA-256 where it has changed."""
        changed_digest, decoded = "", self._decoded

        def open_image() -> tuple[LazyImage, bool]:
            nonlocal changed_digest
            picture, changed_digest = open_image_as_scanned(
                self.source,
                self.samples[index],
                preprocess=self.preprocess,
                stored=self.verify or (decoded is not None and decoded.file is not None),
                stops=self.changed is None,
            )
            return picture, not changed_digest

        pixels = self._transform(open_image()[0]) if decoded is None else decoded.pixels(index, open_image)
        return pixels, changed_digest


class TensorDataset(Protocol):
    """Tensors that stand for images, computed before: those at a model's boundary."""

    @property
    def images(self) -> ImageDataset:
        """The images that they stand for."""

    def read_batches(self, batches: Sequence[Sequence[int]], *, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """The tensors of each batch of indices, (B, ...) each, as ``epoch`` changes the images."""
