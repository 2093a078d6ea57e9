"""Pictures of more than 8 bits or other bands than grey and RGB: read as stored, measured, and scaled to 8 bits.

H, W, S samples (bands) of a pixel; levels: the stored values that become 0 and 255.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from headstart.data.decoding.limits import find_size_excess, open_bounded
from headstart.data.decoding.tiff_values import read_tiff_values
from headstart.wording import option

Levels = tuple[float, float]
_PHOTOMETRIC = 0x0106
_PNG, _DEEP_COLOURS = b"\x89PNG\r\n\x1a\n", (2, 4, 6)  # colour types: RGB, grey or RGB with opacity
_BAND_PIXELS = 2**20  # that are scaled at a time
_MEASURED = 2**20  # pixels of which quantiles are taken
_TAILS = (0.001, 0.999)


@dataclass(frozen=True)
class Raster:
    """Pixels (H, W, S) as stored, their EXIF orientation, and whether the last band says how opaque they are."""

    values: NDArray[np.generic]
    orientation: int
    alpha: bool

    @property
    def bands(self) -> int:
        """Bands but for the opacity."""
        return int(self.values.shape[2]) - self.alpha


@dataclass(frozen=True)
class Measured:
    """What the values of a picture are: how many ``bands``, NumPy's name of their ``kind``, the ``least`` and the
    ``most``, and ``low`` and ``high``, between which all but a thousandth at each end lie. ``first``: of a
    saved array of three axes, whose ``bands`` are its last one, how many it has if they are its first one; 0 of either
    where its sides would not be accepted.
    """

    bands: int
    kind: str
    least: float
    low: float
    high: float
    most: float
    first: int | None = None


class NoPicture(ValueError):
    """The values give no picture; the text is a phrase that says why."""


def read_raster(content: bytes, *, all_deep: bool) -> Raster | None:
    """The values of a picture that Pillow's 8-bit modes cannot hold; None for any other.

    With ``all_deep`` 16-bit PNG and what Pillow holds as 16-bit or floating-point grey are read as well.

    Raises: ValueError: it is of a kind that is not read, or damaged.
    """
    found = read_tiff_values(content)
    if found is not None:
        return Raster(found.values, found.orientation, found.alpha)
    if not all_deep:
        return None
    if content.startswith(_PNG) and len(content) > 33 and content[24] == 16 and content[25] in _DEEP_COLOURS:
        return _read_deep_png(content)
    return None


def read_deep_grey(image: Image.Image) -> Raster | None:
    """The values of a loaded picture of 16 or 32 bits in one band; None where it has 8."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return None
    values: NDArray[np.generic] = np.asarray(image)[:, :, None]
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0:
        values = 65535 - values
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        opaque = np.where(values == clear, 0, 65535).astype(values.dtype)
        return Raster(np.concatenate([values, opaque], axis=2), 1, alpha=True)
    return Raster(values, 1, alpha=False)


def _read_deep_png(content: bytes) -> Raster:
    """16-bit colours, which Pillow gives the higher byte of: once more as if the lower one came first, and it gives
    that.
    """
    wide, high = struct.unpack(">II", content[16:24])
    if (excess := find_size_excess(wide, high)) is not None:
        raise NoPicture(excess)
    halves = list[NDArray[np.uint16]]()
    for order in ("16B", "16L"):
        with Image.open(open_bounded(content), formats=("PNG",)) as image:
            (tile,) = image.tile
            name = str(tile.args).replace("16B", order)
            if name == "LA;16L":  # which Pillow cannot unpack: of grey with opacity the higher byte counts twice
                halves.append(halves[0])
                continue
            image.tile = [tile._replace(args=name)]
            image.load()
            halves.append(np.array(image, dtype=np.uint16))
    values = halves[0] * 256 + halves[1]
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and values.shape[2] == 3:
        opaque = np.where((values == np.array(clear, dtype=np.uint16)).all(axis=2), 0, 65535).astype(np.uint16)
        return Raster(np.dstack([values, opaque]), 1, alpha=True)
    return Raster(values, 1, alpha=values.shape[2] in (2, 4))


def measure(raster: Raster) -> Measured:
    """What a picture's values are.  Raises: NoPicture: none of them is a number."""
    values = raster.values[:, :, : raster.bands]
    step = max(1, int(np.sqrt(values.shape[0] * values.shape[1] / _MEASURED)))
    some = values[::step, ::step].ravel()
    if values.dtype.kind == "f":
        some = some[np.isfinite(some)]
        if not some.size:
            raise NoPicture("none of its pixels is a number")
        least, most = float(np.nanmin(some)), float(np.nanmax(some))
    else:
        least, most = float(values.min()), float(values.max())
    low, high = np.quantile(some.astype(np.float64), _TAILS, method="nearest")
    return Measured(raster.bands, values.dtype.name, least, float(low), float(high), most)


def scale_raster(raster: Raster, *, levels: Levels | None, channels: int) -> NDArray[np.uint8]:
    """The picture with 8 bits, (H, W, channels): on white where it has opacity and that is no channel.

    Raises: NoPicture: its bands are not the channels, or the range of its values is not known.
    """
    taken, alpha = raster.bands, raster.alpha
    if alpha and channels == raster.values.shape[2] and channels not in (1, 3):
        taken, alpha = channels, False  # a band like the others
    if taken not in (1, 3, channels) or (channels not in (1, 3) and taken != channels):
        raise NoPicture(explain_bands(taken, channels))
    if levels is None or raster.values.dtype == np.uint8:
        levels = _find_full_range(raster)  # a range is of pictures of more than 8 bits
    height, width, _ = raster.values.shape
    scaled = np.empty((height, width, channels), dtype=np.uint8)
    for rows in _iterate_bands(height, width * max(1, taken // 3)):
        part = _scale(raster.values[rows, :, :taken], levels)
        if alpha:
            opacity = raster.values[rows, :, -1:].astype(np.float32) / _full(raster.values.dtype)
            part = np.rint(part * opacity + 255 * (1 - opacity)).astype(np.uint8)
        if part.shape[2] != channels:
            part = np.repeat(part, channels, axis=2) if part.shape[2] == 1 else _make_grey(part)
        scaled[rows] = part
    return scaled


def explain_bands(bands: int, channels: int) -> str:
    """A phrase on a picture whose bands the model does not take."""
    remedy = option("model.options", {"in_chans": bands})
    return f"it has {bands} bands, and the model takes {channels}; train one that takes them, with {remedy}"


def _find_full_range(raster: Raster) -> Levels:
    """The range of values that have all their bits in use.  Raises: NoPicture: it is not known."""
    dtype = raster.values.dtype
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return (0.0, _full(dtype))
    found = measure(raster)
    if dtype.kind != "f" and found.least >= 0 and found.most <= 65535:
        return (0.0, 65535.0)
    kind = "floating-point" if dtype.kind == "f" else "whole"
    raise NoPicture(
        f"its pixels are {kind} numbers from {found.least:g} to {found.most:g}, and which are black and white is not "
        "known (a run finds that among its training images); save it with 8 or 16 bits"
    )


def _full(dtype: np.dtype[Any]) -> float:
    """The value of full opacity, and of white where all bits are in use."""
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def _scale(values: NDArray[np.generic], levels: Levels) -> NDArray[np.uint8]:
    low, high = levels
    if values.dtype == np.uint8 and levels == (0.0, 255.0):
        return values.astype(np.uint8)
    if values.dtype == np.uint16 and levels == (0.0, 65535.0):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257: exact rounding
    shares = (values.astype(np.float64) - low) / (high - low)
    shares = np.nan_to_num(shares, nan=0.0, posinf=1.0, neginf=0.0)
    scaled: NDArray[np.uint8] = np.rint(255 * shares.clip(0, 1)).astype(np.uint8)
    return scaled


def _make_grey(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(colours).convert("L"))[:, :, None]


def _iterate_bands(height: int, width: int) -> Iterator[slice]:
    """Rows from the top, a million pixels at a time."""
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(height, top + rows))
