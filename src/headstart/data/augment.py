"""From a picture to the model's pixels: the weights' own evaluation pipeline, and random changes for training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from PIL import Image
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from headstart.data.randomness import drawing_from
from headstart.data.task import TaskKind
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess

Transform = Callable[[Image.Image], Tensor]
"""A picture to a uint8 tensor (C, H, W)."""
Preset = Literal["none", "light", "standard", "strong"]
_CROP_SCALE = {"light": (0.5, 1.0), "standard": (0.35, 1.0), "strong": (0.2, 1.0)}


def eval_transform(preprocess: Preprocess) -> Transform:
    """Shorter side to ``floor(size / crop_pct)``, centre crop: what the weights were evaluated with.

    Raises:
        DataError: the model takes neither 1 nor 3 channels.
    """
    if preprocess.channels not in (1, 3):
        raise DataError(
            f"the model takes {preprocess.channels} channels, and pictures have 1 or 3; "
            f"choose in_chans 3 in model.options, or make your own batches in Python"
        )
    return _composed(_framing(preprocess))


def train_transform(preset: Preset, *, flip: Literal["auto"] | bool, preprocess: Preprocess) -> Transform:
    """Random changes of the preset, drawn from torch's default generator; ``flip`` "auto": on, but for ``none``."""
    steps: list[Any] = []
    size = (preprocess.height, preprocess.width)
    if preset == "none":
        steps += _framing(preprocess)
    else:
        steps.append(
            v2.RandomResizedCrop(size, scale=_CROP_SCALE[preset], interpolation=_filter(preprocess), antialias=True)
        )
    if flip is True or (flip == "auto" and preset != "none"):
        steps.append(v2.RandomHorizontalFlip())
    if preset == "standard":
        steps.append(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2))
    if preset == "strong":
        steps.append(v2.TrivialAugmentWide())
    return _composed(steps)


def _composed(steps: list[Any]) -> Transform:
    transform: Transform = v2.Compose([*steps, v2.PILToTensor()])
    return transform


def _framing(preprocess: Preprocess) -> list[Any]:
    height, width = preprocess.height, preprocess.width
    # 384 / (384 / 450) is 449.99999999999994: without the margin a resize given in pixels comes out one short
    scaled = [math.floor(side / preprocess.crop_pct + 1e-6) for side in (height, width)]
    if preprocess.crop_mode == "border":
        fill = [round(255 * mean) for mean in preprocess.mean]
        shrunk = ResizeKeepRatio(scaled, longest=1.0, interpolation=_filter(preprocess).value)  # type: ignore[no-untyped-call]
        padded = CenterCropOrPad((height, width), fill=fill)  # type: ignore[arg-type]
        return [shrunk, padded]
    if preprocess.crop_mode == "squash":
        resize: Any = v2.Resize(scaled, interpolation=_filter(preprocess), antialias=True)
    elif height == width:
        resize = v2.Resize(scaled[0], interpolation=_filter(preprocess), antialias=True)
    else:
        resize = ResizeKeepRatio(scaled, interpolation=_filter(preprocess).value)  # type: ignore[no-untyped-call]
    return [resize, v2.CenterCrop((height, width))]


def _filter(preprocess: Preprocess) -> InterpolationMode:
    # timm's "random" is a training-time choice; its own evaluation default is bilinear
    return InterpolationMode("bilinear" if preprocess.interpolation == "random" else preprocess.interpolation)


def check_mixing(kind: TaskKind, *, cutmix: float) -> None:
    """Refuse what has no meaning for the task.

    Raises:
        DataError: cutmix, for numbers.
    """
    if kind == "regress" and cutmix > 0:
        raise DataError(
            "augment.cutmix: a pasted patch has no share of a number; for regression give 0, i.e. --augment.cutmix 0"
        )


def mix_batch(
    pixels: Tensor, targets: Tensor, *, num_classes: int, mixup: float, cutmix: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix (each half of the time where both are on) with one weight for the batch, drawn from ``seed``.

    pixels: (B, C, H, W) 0..255; targets: (B,) class indices or (B, K). Gives float pixels (mixup) or uint8 (CutMix)
    and float targets (B, K) whose rows keep their sum.
    """
    with drawing_from(seed):
        use_mixup = mixup > 0 and (cutmix == 0 or bool(torch.rand(()) < 0.5))
        if use_mixup:
            mixed = v2.MixUp(alpha=mixup, num_classes=num_classes)(pixels.float(), targets)
        else:
            mixed = v2.CutMix(alpha=cutmix, num_classes=num_classes)(pixels, targets)
    return mixed[0], mixed[1]
