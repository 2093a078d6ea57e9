"""From a picture to the model's pixels: the weights' own evaluation pipeline, and random changes for training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from headstart.data.decoding.crops import Frame, central_frame, random_frame
from headstart.data.decoding.lazy_image import DecodedImage, LazyImage, render
from headstart.data.randomness import drawing_from
from headstart.data.transforms.colour_jitter import apply_jitter, apply_jitter_to_batch, draw_jitter
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskKind
from headstart.wording import option

AnyImage = LazyImage | DecodedImage | Image.Image
Transform = Callable[[AnyImage], Tensor]
"""A picture to a uint8 tensor (C, H, W)."""
Preset = Literal["none", "light", "standard", "strong"]
Colours = Literal["kept", "jittered", "changed widely"]
_COLOURS: dict[str, Colours] = {"standard": "jittered", "strong": "changed widely"}
_NAMES_IN_KEYS = {"EvalTransform": "Framing", "RandomResizedCrop": "Cropping", "TrainTransform": "Changes"}
_CROP_SCALE = {"light": (0.5, 1.0), "standard": (0.35, 1.0), "strong": (0.2, 1.0)}
# how much larger than shown a photo is decoded at least; in evaluation it changes no pixel by much (see picture.py)
_EVALUATION_GAP, _TRAINING_GAP = 2.5, 1.25
_LONGEST = 1.5  # times the shorter side: what a kept photo's record has room for


def transform_key(transform: object) -> str:
    """Return the text that stands for a transform in the key of a cache: its ``repr``.

    The three classes here stand under the names that they had in the first version, so that its caches are found.
    """
    text = repr(transform)
    for name, in_keys in _NAMES_IN_KEYS.items():
        text = text.replace(f"{name}(", f"{in_keys}(")
    return text


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """The weights' own evaluation pipeline; its ``repr`` tells two of them apart, as that of each transform does.

    ``gap``: how much larger than shown a photo is decoded at least.
    """

    preprocess: Preprocess
    gap: float = _EVALUATION_GAP

    def __call__(self, picture: AnyImage) -> Tensor:
        """Pixels (C, height, width)."""
        frame = central_frame(picture.size, self.preprocess)
        return render(picture, frame, interpolation=_filter(self.preprocess), gap=self.gap)

    @property
    def cached_bytes(self) -> int:
        """How many bytes a finished frame takes."""
        return self.preprocess.channels * self.preprocess.height * self.preprocess.width

    @property
    def cache_key(self) -> str:
        """The key of the finished frame."""
        return transform_key(self)

    def keep(self, picture: AnyImage) -> DecodedImage:
        """The finished frame."""
        return DecodedImage(self(picture).permute(1, 2, 0), size=picture.size)

    def from_cached(self, kept: DecodedImage) -> Tensor:
        """The frame as it was."""
        return kept.pixels.permute(2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A random crop of ``scale`` of the area."""

    preprocess: Preprocess
    scale: tuple[float, float]
    gap: float = _TRAINING_GAP

    def __call__(self, picture: AnyImage) -> Tensor:
        """Pixels (C, height, width)."""
        shown = (self.preprocess.width, self.preprocess.height)
        frame = random_frame(picture.size, shown=shown, scale=self.scale)
        return render(picture, frame, interpolation=_filter(self.preprocess), gap=self.gap)

    @property
    def _shorter(self) -> int:
        """Side of the smallest square in which every square crop has as many pixels as are shown."""
        return math.ceil(max(self.preprocess.width, self.preprocess.height) / math.sqrt(self.scale[0]))

    @property
    def cached_bytes(self) -> int:
        """How many bytes a photo whose sides are as 3:2 takes."""
        return self.preprocess.channels * self._shorter * math.ceil(_LONGEST * self._shorter)

    @property
    def cache_key(self) -> str:
        """The key of the whole picture."""
        return f"pictures with a shorter side of at most {self._shorter}, {_filter(self.preprocess)}, gap {self.gap}"

    def keep(self, picture: AnyImage) -> DecodedImage:
        """The whole picture: as it is, or made smaller to the working size."""
        part = min(1.0, self._shorter / min(picture.size))
        scaled = (math.ceil(part * picture.size[0]), math.ceil(part * picture.size[1]))
        frame = Frame(box=(0, 0, *picture.size), scaled=scaled, shown=scaled)
        pixels = render(picture, frame, interpolation=_filter(self.preprocess), gap=self.gap)
        return DecodedImage(pixels.permute(1, 2, 0), size=picture.size)

    def from_cached(self, kept: DecodedImage) -> Tensor:
        """A random crop of a kept picture, the one that the file would give."""
        return self(kept)


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """The random changes of training, in this order."""

    framed: EvalTransform | RandomResizedCrop
    flips: bool
    colours: Colours

    def __call__(self, picture: AnyImage) -> Tensor:
        """Pixels (C, height, width)."""
        return self._change(self.framed(picture))

    @property
    def cached_bytes(self) -> int:
        """How many bytes what frames or crops keeps of a photo."""
        return self.framed.cached_bytes

    @property
    def cache_key(self) -> str:
        """The key of what frames or crops."""
        return self.framed.cache_key

    def keep(self, picture: AnyImage) -> DecodedImage:
        """The picture as what frames or crops keeps it."""
        return self.framed.keep(picture)

    def from_cached(self, kept: DecodedImage) -> Tensor:
        """Random changes of a kept picture."""
        return self._change(self.framed.from_cached(kept))

    def _change(self, pixels: Tensor) -> Tensor:
        if self.flips and _heads():
            pixels = pixels.flip(-1)
        if self.colours == "jittered":
            return apply_jitter(pixels, draw_jitter(pixels.shape[0]))
        return _change_with_pillow(pixels) if self.colours == "changed widely" else pixels

    @property
    def batchwise(self) -> bool:
        """Whether what follows the frame can be made of a whole batch at once: nothing of it is Pillow's."""
        return self.colours != "changed widely"

    def draw(self) -> Tensor:
        """The numbers of what follows the frame, drawn as for one picture: mirrored, and its jitter's; (1 + 2 C C,)."""
        mirrored = torch.tensor([float(self.flips and _heads())])
        if self.colours != "jittered":
            return mirrored
        return torch.cat([mirrored, draw_jitter(self.framed.preprocess.channels).flatten().float()])

    def of_batch(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """What follows the frame, with numbers (B, N) that were drawn before; (B, C, H, W) uint8 on any device."""
        if self.flips:
            pixels = torch.where(drawn[:, 0].view(-1, 1, 1, 1) > 0, pixels.flip(-1), pixels)
        if self.colours != "jittered":
            return pixels
        channels = pixels.shape[1]
        return apply_jitter_to_batch(pixels, drawn[:, 1:].view(-1, 2, channels, channels))


def eval_transform(preprocess: Preprocess) -> EvalTransform:
    """Shorter side to ``floor(size / crop_pct)``, centre crop: what the weights were evaluated with."""
    return EvalTransform(preprocess=preprocess)


def train_transform(preset: Preset, *, flip: Literal["auto"] | bool, preprocess: Preprocess) -> TrainTransform:
    """Random changes of the preset, drawn from torch's default generator; ``flip`` "auto": on, but for ``none``.

    Raises:
        DataError: the preset changes colours, and the images have other bands.
    """
    if preset == "strong" and preprocess.channels not in (1, 3):
        raise DataError(
            f"augment.preset: strong changes colours, and images of {preprocess.channels} bands have none; give "
            f"{option('augment.preset', 'standard')}, light or none"
        )
    framed = EvalTransform(preprocess=preprocess)
    cropped = None if preset == "none" else RandomResizedCrop(preprocess=preprocess, scale=_CROP_SCALE[preset])
    colours = _COLOURS.get(preset, "kept")
    return TrainTransform(
        framed=cropped or framed, flips=flip is True or (flip == "auto" and preset != "none"), colours=colours
    )


def _heads() -> bool:
    return torch.rand(1).item() < 0.5


def _change_with_pillow(pixels: Tensor) -> Tensor:
    """Change a picture with Pillow, whose 0.24 ms for 224 pixels are a third of what torchvision needs for tensors."""
    values = pixels.permute(1, 2, 0).numpy()
    changed: Image.Image = v2.TrivialAugmentWide()(Image.fromarray(values if values.shape[2] == 3 else values[:, :, 0]))
    return torch.from_numpy(np.array(changed).reshape(values.shape)).permute(2, 0, 1)


def _filter(preprocess: Preprocess) -> str:
    # timm's "random" is a training-time choice; its own evaluation default is bilinear
    return "bilinear" if preprocess.interpolation == "random" else preprocess.interpolation


def check_mixing(kind: TaskKind, *, cutmix: float) -> None:
    """Refuse what has no meaning for the task.

    Raises:
        DataError: cutmix, for numbers.
    """
    if find_kind(kind).gives_numbers and cutmix > 0:
        raise DataError(
            "augment.cutmix: a pasted patch has no share of a number; for regression give 0, i.e. "
            f"{option('augment.cutmix', 0)}"
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
