"""Random changes made on the device, of a whole batch at once, with the numbers that were drawn for each image.

The numbers are those with which its loading process would have made them: every image gets the same changes, and a
pixel differs by a level at most, where the device rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from headstart.data.transforms.transforms import TrainTransform

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Pixels (B, C, H, W) and targets, mixed within the batch; the same way each time."""


@dataclass(frozen=True, kw_only=True)
class DeviceAugment:
    """What is still to be done to a batch's pixels.

    Attributes:
        ``transform``: Whose random changes are made; None: they are there already.
        ``numbers``: Those that were drawn for each image's changes, (borrowed + B, N).
        ``mix``: Mixes the images with one another; None: they stay apart.
        ``targets``: What the images answer, which ``mix`` needs.
        ``borrowed``: How many images, the first ones, are there to be mixed in only.
    """

    transform: TrainTransform | None
    numbers: Tensor
    mix: Mix | None
    targets: Tensor
    borrowed: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """(borrowed + B, C, H, W) uint8 on the device -> (B, C, H, W), uint8 or, after mixup, float32."""
        if self.transform is not None:
            pixels = self.transform.of_batch(pixels, self.numbers.to(pixels.device, non_blocking=True))
        if self.mix is not None:
            pixels = self.mix(pixels, self.targets)[0]
        return pixels[self.borrowed :]
