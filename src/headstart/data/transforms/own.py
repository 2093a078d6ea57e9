"""A random change of training images that is the user's own: a plain function of pixels."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headstart.errors import DataError

PixelFunction = Callable[[Tensor], Tensor]
"""Pixels uint8 (C, H, W) of one training image to pixels of the same shape."""


@dataclass(frozen=True)
class OwnTransform:
    """The user's function, called after headstart's own changes of an image. ``digest``: SHA-256 of its code."""

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
