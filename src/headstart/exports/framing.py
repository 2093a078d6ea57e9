"""Validation's preprocessing as plain arithmetic, which every runtime has: a picture of any size to the model's input.

B batch, H and W of the picture, h and w of the input, C channels. Each axis is resized by a matrix of weights, made of
the sizes that come, for the part that is shown alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from headstart.models.preprocess import Preprocess

_LARGEST_WEIGHT, _MOST_DIGITS = 32767.5, 22  # upsample_avx_bilinear_bicubic_uint8 of torch
WRITABLE = ("bilinear", "bicubic", "random")
"""Interpolations that ``Framing`` has; the others are Pillow's own, whose order of passes depends on its version."""


class Framing(nn.Module):
    """Pixels uint8 (B, H, W, C) to what validation shows of them, float32 (B, C, h, w) of whole numbers 0 to 255.

    The same as ``eval_transform`` gives, but for single levels where a weight that is computed in another order rounds
    to another 16th bit.
    """

    fill: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.shown = (preprocess.height, preprocess.width)
        # 384 / (384 / 450) is 449.99999999999994: as in central_frame
        self.targets = tuple(math.floor(side / preprocess.crop_pct + 1e-6) for side in self.shown)
        self.interpolation = "bicubic" if preprocess.interpolation == "bicubic" else "bilinear"
        border = preprocess.crop_mode == "border"
        fill = [float(round(255 * mean)) if border else 0.0 for mean in preprocess.mean]
        self.register_buffer("fill", torch.tensor(fill).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the framed pixels (B, C, h, w) of ``images`` (B, H, W, C)."""
        size = (_measure(images, 1), _measure(images, 2))
        scaled = self._scale(*size)
        rows, inside_rows = self._make_weights(size[0], scaled[0], axis=0, length=images.shape[1])  # (h, H), (h,)
        columns, inside_columns = self._make_weights(size[1], scaled[1], axis=1, length=images.shape[2])
        pixels = images.permute(0, 3, 1, 2).float()
        across = _round_levels(pixels @ columns.t())  # (B, C, H, w)
        framed = _round_levels(rows @ across)  # (B, C, h, w)
        inside = inside_rows[:, None] & inside_columns[None, :]
        return torch.where(inside, framed, self.fill)

    def _scale(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """The size (1,) each, int64, to which the whole picture is resized: see ``central_frame``."""
        mode = self.preprocess.crop_mode
        if mode == "squash":
            return torch.full_like(height, self.targets[0]), torch.full_like(width, self.targets[1])
        if mode == "center" and self.shown[0] == self.shown[1]:
            short = torch.minimum(height, width)
            sides = [_divide(self.targets[1] * side, short) for side in (height, width)]
        else:
            ratios = [side.double() / target for side, target in zip((height, width), self.targets, strict=True)]
            ratio = torch.maximum(*ratios) if mode == "border" else torch.minimum(*ratios)
            sides = [torch.round(side.double() / ratio).long() for side in (height, width)]
        return sides[0].clamp(min=1), sides[1].clamp(min=1)

    def _make_weights(self, size: Tensor, scaled: Tensor, *, axis: int, length: int) -> tuple[Tensor, Tensor]:
        """What each pixel of the picture gives to each that is shown, (shown, size), and which of these lie in it."""
        shown = self.shown[axis]
        surplus = scaled - shown
        cut = torch.round(surplus.double() / 2).long()  # half to even, as Python rounds
        padded = -torch.floor(-surplus.double() / 2).long()
        places = torch.arange(shown) + torch.where(surplus >= 0, cut, padded)  # (shown,)
        inside = (places >= 0) & (places < scaled)
        places = torch.cat([places, torch.zeros_like(scaled), scaled - 1])  # the edges have the largest weights
        step = size.double() / scaled.double()
        # (place + 0.5) * step as a whole number of pixels and a part: 32 bits, all that OpenVINO has, are enough
        twice = (2 * torch.minimum(places.clamp(min=0), scaled - 1) + 1) * size
        whole = _divide(twice, 2 * scaled)
        part = (twice - whole * 2 * scaled).double() / (2 * scaled).double()
        distances = (torch.arange(length)[None, :] - whole[:, None]).double() + (0.5 - part)[:, None]
        weights = _weigh(distances / step.clamp(min=1.0), self.interpolation)
        return _round_weights(weights / weights.sum(1, keepdim=True))[:shown].float(), inside


def _measure(images: Tensor, axis: int) -> Tensor:
    """The length of an axis as a tensor (1,), int64: no size becomes a constant of the graph."""
    return torch.arange(images.shape[axis])[-1:] + 1


def _divide(number: Tensor, by: Tensor) -> Tensor:
    """The whole quotient of whole numbers above 0, where 168 / 1 * 1 may be 167.99999: OpenVINO divides in 32 bits."""
    return torch.floor((number.double() + 0.5) / by.double()).long()


def _round_weights(weights: Tensor) -> Tensor:
    """Weights as torch's kernels for uint8 have them: multiples of the smallest power of two that leaves 16 bits.

    So a product with a level has at most 23 bits, and sums come out alike in whatever order they are taken.
    """
    digits = torch.floor(torch.log2(_LARGEST_WEIGHT / weights.max())).clamp(0, _MOST_DIGITS)
    unit = torch.pow(2.0, digits)
    return torch.sign(weights) * torch.floor(weights.abs() * unit + 0.5) / unit


def _round_levels(values: Tensor) -> Tensor:
    return torch.floor(values + 0.5).clamp(0, 255)


def _weigh(distances: Tensor, interpolation: str) -> Tensor:
    """The filter at these distances, in pixels of the coarser grid."""
    away = distances.abs()
    if interpolation == "bilinear":
        return (1 - away).clamp(min=0)
    near = (1.5 * away - 2.5) * away * away + 1  # Keys 1981, a = -0.5
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    return torch.where(away < 1, near, torch.where(away < 2, far, torch.zeros_like(away)))
