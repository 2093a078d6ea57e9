"""A small 8-bit picture of an image, to know its copies by: neither how large it is matters, nor, of more than 8 bits,
which values are black and white.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.data.decoding.raster import Raster

_TAILS = (0.005, 0.995)  # of a band's values, beyond which they may be broken pixels


@dataclass(frozen=True)
class ReducedImage:
    """An 8-bit RGB or grey picture, the right way up, that may be smaller than its file's, of ``size`` (width, height).
    ``extent``: how far the image goes across and down in it, for its last pixels may be padding.
    """

    picture: Image.Image
    extent: tuple[float, float]
    size: tuple[int, int]


def reduce_raster(raster: Raster, *, least: int) -> tuple[Image.Image, tuple[float, float]]:
    """The picture of bands as stored, with at least ``least`` pixels a side where it has as many, and its extent: three
    bands as colours, others as their mean in grey, each over its own range of values where it has more than 8 bits.
    """
    height, width, _ = raster.values.shape
    factor = max(1, min(height, width) // least)
    bands = [_reduce_band(raster.values[:, :, band], factor) for band in range(raster.bands)]
    stacked = np.stack(bands, axis=2) if len(bands) == 3 else np.mean(bands, axis=0)
    picture = Image.fromarray(np.rint(stacked).astype(np.uint8))
    return picture, (width / factor, height / factor)


def _reduce_band(values: NDArray[np.generic], factor: int) -> NDArray[np.float32]:
    """Means of ``factor`` x ``factor`` values (H, W), from 0 to 255; the last of a side may be of fewer."""
    numbers = np.asarray(values, dtype=np.float32)
    if values.dtype.kind == "f" and not (finite := np.isfinite(numbers)).all():
        numbers = np.where(finite, numbers, numbers[finite].min() if finite.any() else 0)  # black
    if factor > 1:
        numbers = np.asarray(Image.fromarray(numbers).reduce(factor))
    if values.dtype == np.uint8:
        return numbers
    low, high = np.quantile(numbers, _TAILS)
    scaled = (numbers - low) * (255 / (high - low)) if high > low else np.zeros_like(numbers)
    return np.asarray(scaled.clip(0, 255), dtype=np.float32)
