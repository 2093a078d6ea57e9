"""A batch: images and what they answer, and what a model is called with.

B batch, C channels, H, W, K classes or tags, T targets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from headstart.data.transforms.on_device import DeviceAugment
from headstart.distributed.collectives import all_reduce_sum
from headstart.distributed.processes import current
from headstart.errors import DataError

Arguments = tuple[Tensor, ...]
"""What a model, or its part behind the boundary, is called with: (B, ...) each."""


Pair = tuple[Tensor, Tensor] | list[Tensor]
"""Images as the model takes them, float (B, C, H, W), and their targets: what a torch ``DataLoader`` gives."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and what they answer; the first two fields are enough.

    ``hs.fit``, ``hs.train_step`` and ``hs.evaluate`` take a pair ``(images, targets)`` as well, such as a torch
    ``DataLoader`` gives: float images, which go into the model as they are.

    Attributes:
        ``pixels``: The images (B, C, H, W): uint8 from 0 to 255, or float32 on that scale, with ``mean`` and ``std``;
            without these floats that are normalised as the model takes them.
        ``targets``: For classes int64 (B,), or float32 (B, K) where labels are mixed; for tags float32 (B, K); for
            numbers float32 (B, T), standardised; empty where there are none.
        ``indices``: The place of each image in its data set, int64 (B,), -1 for rows that fill the batch up.
        ``keys``: The names of the images, for messages.
        ``mean``: The mean per channel (C,) that is taken from ``pixels / 255``; None: nothing is.
        ``std``: The deviation per channel (C,) by which the difference is divided.
        ``size``: How many images are real, from the first on; rows beyond fill the batch up: zeros in evaluation, in
            training copies that weigh nothing.
        ``total``: Images of the parts of all processes; 0: this is all.
        ``activations``: Tensors (B, ...) at the model's boundary, in place of pixels, which then are empty.
        ``deferred``: Random changes of the pixels that are still to be made, on the device.

    Raises:
        DataError: Pixels are integers and there is no ``mean`` and ``std`` to normalise them with.

    Example:
        >>> import headstart as hs, torch
        >>> pixels, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 1, 0])
        >>> batch = hs.Batch(pixels=pixels, targets=labels, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25))
        >>> batch.size, batch.inputs(torch.device("cpu"), torch.contiguous_format)[0, 0, 0, 0].item()
        (4, -2.0)
    """

    pixels: Tensor
    targets: Tensor
    indices: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    keys: tuple[str, ...] = ()
    mean: Tensor | None = None
    std: Tensor | None = None
    size: int = -1
    total: int = 0
    activations: tuple[Tensor, ...] = ()
    deferred: DeviceAugment | None = None

    def __post_init__(self) -> None:
        if (self.mean is None or self.std is None) and not self.activations and not self.pixels.is_floating_point():
            raise DataError(
                f"batch: images of {self.pixels.dtype} are not normalised, and there is no mean and std to do it with; "
                "give floats as the model takes them, or hs.Batch(pixels=images, targets=targets, mean=mean, std=std)"
            )
        rows = len(self.pixels) if not self.activations else len(self.activations[0])
        if self.size < 0:
            object.__setattr__(self, "size", rows)
        if len(self.indices) == 0:  # none were given; borrowed rows of pixels have none
            object.__setattr__(self, "indices", torch.arange(rows))
        if not self.keys:
            object.__setattr__(self, "keys", tuple(f"images[{place}]" for place in range(self.size)))

    def arguments(self, device: torch.device, memory_format: torch.memory_format, dtype: torch.dtype) -> Arguments:
        """Return what is computed with: the model's input, or what the part behind its boundary takes.

        Args:
            ``device``: Where it is computed.
            ``memory_format``: The order of the images' dimensions in memory.
            ``dtype``: The images' kind of numbers.
        """
        if self.activations:
            return tuple(value.to(device, non_blocking=True) for value in self.activations)
        return (self.inputs(device, memory_format).to(dtype),)

    def inputs(self, device: torch.device, memory_format: torch.memory_format) -> Tensor:
        """Return what the model takes: ``(pixels / 255 - mean) / std`` in float32, (B, C, H, W).

        Args:
            ``device``: Where it is computed, and the result is.
            ``memory_format``: The order of its dimensions in memory.
        """
        pixels = self.pixels.to(device, non_blocking=True)
        if self.deferred is not None:
            pixels = self.deferred(pixels)
        if self.mean is None or self.std is None:
            return pixels.to(torch.float32, memory_format=memory_format)
        return normalise(pixels, mean=self.mean.to(device), std=self.std.to(device), memory_format=memory_format)


def normalise(pixels: Tensor, *, mean: Tensor, std: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``(pixels / 255 - mean) / std`` in float32, a new tensor, the same bits in either memory format; (B, C, H, W).

    Channels last it goes along whole rows: a step of three values is not vectorised.
    """
    values = pixels.to(torch.float32, copy=True, memory_format=memory_format)
    if values.is_contiguous() or not (rows := values.permute(0, 2, 3, 1)).is_contiguous():
        return values.div_(255).sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
    flat, wide = rows.view(*rows.shape[:2], -1), rows.shape[2]  # (B, H, W * C)
    flat.div_(255).sub_(mean.repeat(wide)).div_(std.repeat(wide))
    return values


def as_batch(value: object) -> Batch:
    """The batch, or one of a pair (images, targets); of several processes, each gives its part.

    Raises: DataError: it is another thing, or not as many targets as images.
    """
    if isinstance(value, Batch):
        return value
    if not isinstance(value, tuple | list) or [isinstance(part, Tensor) for part in value] != [True, True]:
        inside = f" of {', '.join(type(part).__name__ for part in value)}" if isinstance(value, tuple | list) else ""
        raise DataError(
            f"batch: type {type(value).__name__}{inside[:80]} was given; accepted are a pair of tensors, (images, "
            "targets), as a torch DataLoader gives it, and hs.Batch(pixels=images, targets=targets)"
        )
    images, targets = value
    if images.ndim != 4 or targets.ndim == 0 or len(images) != len(targets):
        raise DataError(
            f"batch: images {tuple(images.shape)} and targets {tuple(targets.shape)} were given; accepted are images "
            "(B, C, H, W) and as many targets, (B,) or (B, K)"
        )
    if targets.dtype == torch.bool:
        targets = targets.float()
    elif not targets.is_floating_point():
        targets = targets.long()
    total = 0
    if current().is_distributed:
        total = int(all_reduce_sum(torch.tensor([len(images)], dtype=torch.float64)).item())
    return Batch(pixels=images, targets=targets, total=total)
