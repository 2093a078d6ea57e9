"""What decoding changes in a picture, and pictures that show nothing: a word each, for the scan to count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from headstart.data.decoding.raster import Raster

Mark = Literal["opacity", "print", "first", "plain", "gaps", "long"]
"""Much of it is transparent; it is in colours of print; it has more frames or pages; it shows one colour; many of its
pixels are no numbers; it is far longer than wide.
"""
_CLEAR = 0.1  # of the pixels: from this share on it is told
_SAMPLED = 256  # pixels a side that are looked at for that
_LONG = 4  # times as long as wide
_PLAIN = 3  # levels between the darkest and the brightest pixel: what a JPEG makes of one colour


def mark_picture(image: Image.Image, extrema: Sequence[tuple[int, int]]) -> tuple[Mark, ...]:
    """The words for a loaded picture, but for its sides. ``extrema``: the least and the largest value of each of its
    bands in 8 bits.
    """
    marks = list[Mark]()
    if image.has_transparency_data and _measure_clear(image) >= _CLEAR:
        marks.append("opacity")
    if image.mode == "CMYK":
        marks.append("print")
    if all(high - low <= _PLAIN for low, high in extrema):
        marks.append("plain")
    return tuple(marks)


def mark_sides(width: int, height: int) -> tuple[Mark, ...]:
    """The word for a picture of this size."""
    return ("long",) if max(width, height) >= _LONG * min(width, height) else ()


def mark_raster(raster: Raster) -> tuple[Mark, ...]:
    """The words for values as stored, but for its sides."""
    values, marks = raster.values[:, :, : raster.bands], list[Mark]()
    if raster.alpha:
        opacity, kind = np.asarray(raster.values[:, :, -1], dtype=np.float64), raster.values.dtype
        full = 1.0 if kind.kind == "f" else float(np.iinfo(kind.name).max)
        if (opacity < full).mean() >= _CLEAR:
            marks.append("opacity")
    if (values == values[:1, :1]).all():
        marks.append("plain")
    if values.dtype.kind == "f" and (~np.isfinite(np.asarray(values[:, :, 0], dtype=np.float64))).mean() >= _CLEAR:
        marks.append("gaps")
    return tuple(marks)


def _measure_clear(image: Image.Image) -> float:
    """The share of pixels that are not opaque."""
    width, height = image.size
    sample = image.resize((min(width, _SAMPLED), min(height, _SAMPLED)), Image.Resampling.NEAREST)
    opacity = np.asarray(sample.convert("RGBA").getchannel("A"))
    return float((opacity < 255).mean())
