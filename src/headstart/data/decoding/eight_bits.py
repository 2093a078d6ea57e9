"""A picture that Pillow has loaded becomes one of 8 bits and one or three bands, the right way up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from headstart.data.decoding.raster import NoPicture, Raster, scale_raster

ORIENTATION = 0x0112
"""The tag of EXIF that says how a picture is turned."""
_PHOTOMETRIC = 0x0106  # a tag of TIFF
_BAND_PIXELS = 2**20  # that are converted at a time where copies of the whole would take gigabytes
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_eight_bits(image: Image.Image, *, channels: int) -> Image.Image:
    """The picture with 8 bits, grey for one channel and else RGB, as stored (not turned); transparent parts are white.

    Raises:
        NoPicture: its values or its colour mode have no such picture.
    """
    grey = _scale_grey(image, white_is_zero=_white_is_zero(image)) if _is_integer(image) else image
    return _to_mode(grey, "L" if channels == 1 else "RGB")


def turn_array(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels (H, W, C) the right way up, of an EXIF orientation 1 to 8."""
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture the right way up, of an EXIF orientation 1 to 8."""
    turn = _TRANSPOSE.get(orientation)
    return image if turn is None else image.transpose(turn)


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation of the picture, 1 to 8; 1 where it has none."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything; the pixels are whole, and viewers then show them as stored
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        scale_raster(Raster(np.asarray(image)[:, :, None], 1, alpha=False), levels=None, channels=1)  # says its range
    if image.has_transparency_data:
        return _on_white(image, mode)
    if image.mode in ("CMYK", "YCbCr", "P", "HSV"):
        colours = image.convert("RGB")
        return colours if mode == "RGB" else colours.convert(mode)
    if image.mode in ("1", "L", "RGB"):
        return image.convert(mode)
    raise NoPicture(f"its colour mode {image.mode} is not accepted; save it as RGB")


def _is_integer(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;")


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF counts from white to black, which Pillow minds at 8 bits only."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0


def _scale_grey(image: Image.Image, *, white_is_zero: bool) -> Image.Image:
    """16-bit grey as 8-bit grey: 65535 becomes 255 (Pillow's own convert clips 99.6 % of a ramp to white)."""
    clear, lows, highs = image.info.get("transparency"), [], []
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    for box in _bands(image):
        values = np.asarray(image.crop(box)).astype(np.int64)  # (rows, W)
        lows.append(values.min())
        highs.append(values.max())
        band = grey[box[1] : box[3]]
        band[:] = (values + 128) // 257  # 65535 = 255 * 257: exact rounding
        if isinstance(clear, int):
            band[values == clear] = 255
        if white_is_zero:
            np.subtract(255, band, out=band)
    if min(lows) < 0 or max(highs) > 65535:
        raise NoPicture(
            f"its whole-number pixels run from {min(lows)} to {max(highs)}; 0 to 65535 is accepted where the model "
            "was trained without another range"
        )
    return Image.fromarray(grey)


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """Transparent parts become white."""
    flat = Image.new(mode, image.size)
    for box in _bands(image):
        picture = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        flat.paste(Image.alpha_composite(white, picture).convert("RGB").convert(mode), box)
    return flat


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows, a million pixels each, from the top."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)
