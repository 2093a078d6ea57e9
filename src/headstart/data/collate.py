"""What was read for a batch's indices becomes a ``Batch``: padded in evaluation, mixed in training.

B batch, C channels, H, W, K classes or tags.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from headstart.data.batch import Arguments, Batch
from headstart.data.dataset import ImageDataset
from headstart.data.randomness import derive_seed
from headstart.data.sampler import BatchIndices
from headstart.data.transforms.on_device import DeviceAugment, Mix
from headstart.data.transforms.transforms import mix_batch


def collate_images(
    taken: BatchIndices, values: Arguments, *, dataset: ImageDataset, batch_size: int, epoch: int
) -> Batch:
    """A batch of pixels (B, C, H, W), and where random changes are left to the device, how they are made there.

    ``values``: the pixels of the indices, and the numbers (B, N) of what is left to the device.
    """
    targets = dataset.targets(taken.indices)
    if taken.is_padded:
        values, targets = tuple(pad_rows(value, batch_size) for value in values), pad_rows(targets, batch_size)
    pixels, own = values[0], slice(taken.borrowed, None)
    mix = None if taken.is_padded else _mix(taken, dataset, epoch=epoch)
    if not dataset.augment_on_device or dataset.augmentation is None:
        if mix is not None:
            pixels, targets = mix(pixels, targets)
        return _batch(taken, dataset, targets[own], pixels=pixels[own])
    deferred = DeviceAugment(
        transform=dataset.deferred, numbers=values[-1], mix=mix, targets=targets, borrowed=taken.borrowed
    )
    if mix is not None:  # of the pixels, which are mixed later, only the shape counts
        targets = mix(torch.empty_like(pixels, device="meta"), targets)[1]
    return _batch(taken, dataset, targets[own], pixels=pixels, deferred=deferred)


def collate_activations(taken: BatchIndices, values: Arguments, *, dataset: ImageDataset, batch_size: int) -> Batch:
    """A batch of tensors (B, ...) at a model's boundary, in place of the pixels of ``dataset``."""
    assert dataset.augmentation is None or not dataset.augmentation.mixes, "only pixels can be mixed"
    targets = dataset.targets(taken.indices)
    if taken.is_padded:
        values, targets = tuple(pad_rows(value, batch_size) for value in values), pad_rows(targets, batch_size)
    return _batch(taken, dataset, targets, pixels=torch.empty(0, dtype=torch.uint8), activations=values)


def pad_rows(values: Tensor, size: int) -> Tensor:
    """The rows, and rows of zeros up to ``size``, in the same order in memory; nothing stays nothing."""
    if len(values) == size or values.numel() == 0:
        return values
    strides = values.stride()
    order = sorted(range(values.ndim), key=lambda place: -strides[place])  # a layer's last bits depend on it
    rows = torch.empty_permuted((size, *values.shape[1:]), order, dtype=values.dtype, device=values.device)
    rows[: len(values)] = values
    rows[len(values) :] = 0
    return rows


def _batch(
    taken: BatchIndices,
    dataset: ImageDataset,
    targets: Tensor,
    *,
    pixels: Tensor,
    activations: Arguments = (),
    deferred: DeviceAugment | None = None,
) -> Batch:
    samples = [dataset.samples[index] for index in taken.indices[taken.borrowed :][: taken.size]]
    rows = len((activations or (pixels,))[0]) - (0 if deferred is None else taken.borrowed)
    indices = torch.tensor([sample.index for sample in samples], dtype=torch.int64)
    return Batch(
        pixels=pixels,
        targets=targets,
        indices=torch.cat([indices, indices.new_full((rows - taken.size,), -1)]),
        keys=tuple(sample.key for sample in samples),
        mean=torch.tensor(dataset.preprocess.mean),
        std=torch.tensor(dataset.preprocess.std),
        size=taken.size,
        total=taken.total,
        activations=activations,
        deferred=deferred,
    )


def _mix(taken: BatchIndices, dataset: ImageDataset, *, epoch: int) -> Mix | None:
    """How this batch's images are mixed with one another, the same way each time."""
    augmentation = dataset.augmentation
    if augmentation is None or not augmentation.mixes:
        return None
    return partial(
        mix_batch,
        num_classes=dataset.task.num_outputs,
        mixup=augmentation.mixup,
        cutmix=augmentation.cutmix,
        seed=derive_seed("mix", augmentation.seed, epoch, taken.number),
    )
