"""Changes of images that are the user's own, plain functions of pixels: of training images, and of all others."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headstart.errors import ConfigError, DataError

PixelFunction = Callable[[Tensor], Tensor]
"""Pixels uint8 (C, H, W) of one image to pixels of the same shape."""
GivenTransform = PixelFunction | Mapping[str, PixelFunction]
"""A function of training images, or functions by split: ``{"train": f, "val": g}``."""


@dataclass(frozen=True, kw_only=True)
class OwnTransforms:
    """The user's functions. ``train``: of training images; ``val``: of all others, new ones included."""

    train: PixelFunction | None = None
    val: PixelFunction | None = None


def read_transforms(given: GivenTransform | None) -> OwnTransforms:
    """The functions as they were given.  Raises: ConfigError: they are something else."""
    by_split = given if isinstance(given, Mapping) else {"train": given} if given is not None else {}
    strange = [name for name in by_split if name not in ("train", "val")]
    if strange:
        raise ConfigError(
            f'transform: {strange[0]!r} is no split of it; accepted: "train", and "val" for images of validation, test '
            'and prediction, e.g. transform={"train": f, "val": g}'
        )
    for name, function in by_split.items():
        if not callable(function):
            raise ConfigError(
                f"transform: {name} is of type {type(function).__name__}; give a function of pixels, uint8 (C, H, W), "
                'or two, {"train": f, "val": g}'
            )
    return OwnTransforms(**by_split)


@dataclass(frozen=True)
class OwnTransform:
    """The user's function, called after headstart's own changes or framing of an image. ``digest``: SHA-256 of its
    code.
    """

    function: PixelFunction = field(repr=False)
    digest: str = ""

    def __call__(self, pixels: Tensor, *, seed: int) -> Tensor:
        """The changed pixels. What the function draws from the generators of Python, NumPy and torch is a function of
        ``seed``, and they go on as before; those of torch are the caller's to put back.

        Raises: DataError: it gave something else than pixels of this shape.
        """
        python, numpy = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            changed = self.function(pixels)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
        if isinstance(changed, Tensor) and changed.dtype == torch.uint8 and changed.shape == pixels.shape:
            return changed.contiguous()
        gave = f"{changed.dtype} {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise DataError(
            f"transform: it gave {gave}; accepted is what it was given, changed: torch.uint8 {tuple(pixels.shape)}, "
            "pixels from 0 to 255; normalising comes afterwards"
        )
