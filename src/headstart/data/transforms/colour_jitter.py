"""Random brightness, contrast and saturation: one matrix per picture, drawn once, for a picture or a whole batch.

C channels, B batch, H, W.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_JITTER = 0.2  # factors of brightness, contrast and saturation are drawn from 1 - 0.2 to 1 + 0.2
_GREY = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision has it (ITU-R 601)


def draw_jitter(channels: int) -> Tensor:
    """Two matrices (2, C, C) in float64: a pixel's colours become ``first @ colours + second @ means``, the means being
    the picture's.

    What torchvision's ``ColorJitter`` does with the same numbers, all at once: each of its steps is linear in the
    colours and in the means. It cuts off at 0 and 255 after each step, this after the last one.
    """
    order = torch.randperm(4).tolist()
    factors = [torch.empty(1).uniform_(1 - _JITTER, 1 + _JITTER).item() for _ in range(3)]
    grey = np.array(_GREY if channels == 3 else (1.0 / channels,) * channels)
    matrix, of_means = np.eye(channels), np.zeros((channels, channels))
    for which in order:
        if which == 0:  # brightness: towards black
            matrix, of_means = factors[0] * matrix, factors[0] * of_means
        elif which == 1:  # contrast: towards the mean grey of the picture so far
            middle = np.outer(np.ones(channels), grey @ (matrix + of_means))
            matrix, of_means = factors[1] * matrix, factors[1] * of_means + (1 - factors[1]) * middle
        elif which == 2 and channels == 3:  # saturation: towards the grey of the pixel; other bands are no colours
            fade = factors[2] * np.eye(channels) + (1 - factors[2]) * np.outer(np.ones(channels), grey) / grey.sum()
            matrix, of_means = fade @ matrix, fade @ of_means
    return torch.from_numpy(np.stack([matrix, of_means]))


def apply_jitter(pixels: Tensor, drawn: Tensor) -> Tensor:
    """A picture (C, H, W) uint8 with the changes of ``draw_jitter``.

    Plane by plane: of a decode and a jitter a matrix product made 0.5 ms where this makes 0.25 (224 pixels).
    """
    planes, changed = pixels.contiguous().float(), torch.empty(pixels.shape, dtype=torch.uint8)
    shifts = (drawn[1] @ planes.mean((1, 2)).double() + 0.5).tolist()  # 0.5: rounded, where the cast cuts off
    for channel, factors in enumerate(drawn[0].tolist()):
        plane = planes[0] * factors[0]
        for source, factor in enumerate(factors[1:], start=1):
            plane.add_(planes[source], alpha=factor)
        changed[channel] = plane.add_(shifts[channel]).clamp_(0, 255)
    return changed


def apply_jitter_to_batch(pixels: Tensor, drawn: Tensor) -> Tensor:
    """Pictures (B, C, H, W) uint8, each with its own changes (B, 2, C, C) in float32, on their device.

    By products of planes: a matrix product may be made in TF32 there, whose 10 bits are fewer than a colour needs.
    """
    planes = pixels.float()
    means, whole = planes.mean((2, 3)), (-1, 1, 1)  # (B, C)
    changed = torch.empty_like(planes)
    for channel in range(planes.shape[1]):
        plane = ((drawn[:, 1, channel] * means).sum(1) + 0.5).view(whole)
        for source in range(planes.shape[1]):
            plane = torch.addcmul(plane, planes[:, source], drawn[:, 0, channel, source].view(whole))
        changed[:, channel] = plane
    return changed.clamp_(0, 255).to(torch.uint8)
