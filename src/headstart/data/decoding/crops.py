"""Which part of a picture is shown, and how large: the weights' own central frame, or one drawn at random.

Sizes are (width, height); boxes (left, top, width, height).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headstart.models.preprocess import Preprocess

Size = tuple[int, int]
Box = tuple[int, int, int, int]
_RATIO = (3 / 4, 4 / 3)  # width to height of a random crop: Szegedy et al. 2015, section 6


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The ``box`` of a picture is resized to ``scaled``; of that the window at ``offset`` of size ``shown`` is the
    result. Where the window reaches beyond, there is ``fill``.
    """

    box: Box
    scaled: Size
    shown: Size
    offset: tuple[int, int] = (0, 0)
    fill: tuple[int, ...] = (0,)


def central_frame(size: Size, preprocess: Preprocess) -> Frame:
    """The frame with the shorter side at ``floor(size / crop_pct)``, cut in the centre, or what the crop mode says: as
    timm and torchvision.
    """
    shown = (preprocess.width, preprocess.height)
    # 384 / (384 / 450) is 449.99999999999994: without the margin a resize given in pixels comes out one short
    targets = [math.floor(side / preprocess.crop_pct + 1e-6) for side in shown]
    ratios = [side / target for side, target in zip(size, targets, strict=True)]
    if preprocess.crop_mode == "squash":
        scaled = (targets[0], targets[1])
    elif preprocess.crop_mode == "border":
        scaled = (round(size[0] / max(ratios)), round(size[1] / max(ratios)))
    elif shown[0] == shown[1]:  # torchvision cuts off the longer side's fraction, timm rounds it where sides differ
        short = min(size)
        scaled = (targets[0] * size[0] // short, targets[0] * size[1] // short)
    else:
        scaled = (round(size[0] / min(ratios)), round(size[1] / min(ratios)))
    scaled = (max(1, scaled[0]), max(1, scaled[1]))
    return Frame(
        box=(0, 0, *size),
        scaled=scaled,
        shown=shown,
        offset=(_centre_window(scaled[0], shown[0]), _centre_window(scaled[1], shown[1])),
        fill=tuple(round(255 * mean) for mean in preprocess.mean) if preprocess.crop_mode == "border" else (0,),
    )


def _centre_window(scaled: int, shown: int) -> int:
    """The position at which the window begins; where it is negative, so much is filled before the picture."""
    return round((scaled - shown) / 2) if scaled >= shown else -((shown - scaled) // 2)


def random_frame(size: Size, *, shown: Size, scale: tuple[float, float]) -> Frame:
    """A crop of ``scale`` of the area, of the sides of ``shown`` made longer or shorter by up to 3:4 to 4:3, drawn from
    torch's default generator.

    The numbers are those that torchvision's ``RandomResizedCrop`` draws.
    """
    width, height = size
    aspect = shown[0] / shown[1]
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(*scale).item()
        ratio = aspect * math.exp(torch.empty(1).uniform_(math.log(_RATIO[0]), math.log(_RATIO[1])).item())
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top = int(torch.randint(0, height - high + 1, size=(1,)).item())
            left = int(torch.randint(0, width - wide + 1, size=(1,)).item())
            return Frame(box=(left, top, wide, high), scaled=shown, shown=shown)
    wide, high = min(width, round(height * aspect * _RATIO[1])), min(height, round(width / (aspect * _RATIO[0])))
    return Frame(box=((width - wide) // 2, (height - high) // 2, wide, high), scaled=shown, shown=shown)
