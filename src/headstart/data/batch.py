"""A batch: images and what they answer, and what a model is called with.

B batch, C channels, H, W, K classes or tags, T targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.data.transforms.on_device import DeviceAugment

Arguments = tuple[Tensor, ...]
"""What a model, or its part behind the boundary, is called with: (B, ...) each."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and what they answer.

    ``pixels`` (B, C, H, W), 0..255, uint8 (float32 after mixup). ``targets``: classify int64 (B,), or float32 (B, K)
    after mixup; multilabel float32 (B, K); regress float32 (B, T), standardised; without labels, empty.
    The first ``size`` images are real, and ``keys`` are theirs; rows beyond fill it up (``indices`` -1): zeros in
    evaluation, in training copies that weigh nothing. ``total``: images of all processes' parts (0: this is all).
    ``activations``: tensors (B, ...) at the model's boundary, in place of pixels, which then are empty.
    ``deferred``: random changes of the pixels that are still to be made, on the device.
    """

    pixels: Tensor
    targets: Tensor
    indices: Tensor
    keys: tuple[str, ...]
    mean: Tensor
    std: Tensor
    size: int
    total: int = 0
    activations: tuple[Tensor, ...] = ()
    deferred: DeviceAugment | None = None

    def arguments(self, device: torch.device, memory_format: torch.memory_format, dtype: torch.dtype) -> Arguments:
        """What is computed with, on the device: the model's input, or what the suffix behind its boundary takes."""
        if self.activations:
            return tuple(value.to(device, non_blocking=True) for value in self.activations)
        return (self.inputs(device, memory_format).to(dtype),)

    def inputs(self, device: torch.device, memory_format: torch.memory_format) -> Tensor:
        """What the model takes: ``(pixels / 255 - mean) / std`` in float32 on the device, (B, C, H, W)."""
        pixels = self.pixels.to(device, non_blocking=True)
        if self.deferred is not None:
            pixels = self.deferred(pixels)
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
