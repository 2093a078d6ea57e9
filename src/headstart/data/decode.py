"""An untrusted image file becomes an 8-bit picture, the right way up, or an error that says why not."""

from __future__ import annotations

import io
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from headstart.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
MAX_BYTES = 512 * 2**20
MAX_RATIO = 100  # resizing the shorter side of a 1 x 20000 strip to 256 would allocate 1.3 billion pixels
_SETTLED_NS = 3_000_000_000  # file systems count time in steps of up to 2 s (FAT)
_ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106  # tags of EXIF and TIFF
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BRANDS = {"avif": "AVIF", "avis": "AVIF", "heic": "HEIC", "heix": "HEIC", "mif1": "HEIF", "msf1": "HEIF"}
_MAGIC = {b"%PDF": "PDF", b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip", b"\xff\x0a": "JPEG XL", b"8BPS": "Photoshop"}
_DAMAGED = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WEBP", b"II*": "TIFF", b"MM\0*": "TIFF"}


class UnreadableImage(DataError):
    """A file that gives no picture; ``reason`` is a phrase."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{printable(path)}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


def printable(path: Path | str) -> str:
    """The path as text that can be written anywhere: bytes that are not UTF-8 appear as ``\\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_image(path: Path | str, *, channels: int = 3) -> Image.Image:
    """8-bit RGB (L for one channel) picture of the file, the right way up; transparent parts are white.

    Raises:
        UnreadableImage: the file gives no picture; ``reason`` says why.
    """
    return decode_image(read_bytes(path), path=path, channels=channels)


def read_bytes(path: Path | str) -> bytes:
    """The file's content.  Raises: UnreadableImage: see :func:`read_file`."""
    return read_file(path).content


@dataclass(frozen=True)
class FileRead:
    """A file's content, and its stamp: size, times of change and inode while it was read.

    ``stamp`` is empty where it proves nothing: the file was written to meanwhile, or so shortly before that another
    write could bear the same time.
    """

    content: bytes
    stamp: tuple[int, ...]


def read_file(path: Path | str) -> FileRead:
    """The file's content and stamp.

    Raises:
        UnreadableImage: it is missing, not a plain file, not permitted, empty or larger than 512 MiB.
    """
    file = Path(path)
    try:
        if not file.exists():
            raise UnreadableImage(path, "there is no such file")
        if not file.is_file():
            raise UnreadableImage(path, "it is not a file")
        with file.open("rb", buffering=0) as opened:
            before, now = os.fstat(opened.fileno()), time.time_ns()
            if before.st_size > MAX_BYTES:
                raise UnreadableImage(path, f"the file is larger than {MAX_BYTES >> 20} MiB")
            content = opened.readall()
            after = os.fstat(opened.fileno())
    except OSError as error:
        raise UnreadableImage(path, f"the file cannot be read: {error.strerror or error}") from error
    if not content:
        raise UnreadableImage(path, "the file is empty")
    settled = now - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS
    return FileRead(content, _stamp(after) if settled and _stamp(before) == _stamp(after) else ())


def _stamp(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def decode_image(content: bytes, *, path: Path | str, channels: int = 3, reduced: int = 1) -> Image.Image:
    """As :func:`read_image`, of bytes in memory; ``path`` is what errors name.

    ``reduced`` 2, 4 or 8: a JPEG comes out at that part of its size, rounded up; other formats take no notice.

    Raises:
        UnreadableImage: the bytes give no picture.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image, path)
            if reduced > 1 and isinstance(image, JpegImagePlugin.JpegImageFile):
                _reduce(image, reduced)
            image.load()  # the first frame of an animation, the first page of a TIFF
            upright = _upright(image)
            whole = _scaled(upright, path, white_is_zero=_white_is_zero(image)) if _is_integer(image) else upright
            return _eight_bit(whole, channels=channels, path=path)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(path, _what_it_is(content)) from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files: SyntaxError, struct.error, ...
        raise UnreadableImage(path, _why(error)) from error


def check_image(content: bytes, *, path: Path | str) -> None:
    """Refuse what :func:`decode_image` would refuse, in less time.

    A JPEG is decoded to an eighth of its size: what is saved is arithmetic, the data are read and unpacked to the end,
    and damage shows there (of 7,000 damaged files the two refused the same ones, for the same reasons).

    Raises:
        UnreadableImage: the bytes give no picture.
    """
    decode_image(content, path=path, reduced=8)


@dataclass(frozen=True)
class Jpeg:
    """What the header of a JPEG says: (width, height) as stored, Pillow's colour mode, EXIF orientation 1 to 8."""

    size: tuple[int, int]
    mode: str
    orientation: int


def open_jpeg(content: bytes, *, path: Path | str) -> Jpeg | None:
    """The header; None where it is none or damaged: then :func:`decode_image` decodes it, or says why it cannot.

    Raises:
        UnreadableImage: it has too many pixels, or is a strip.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            _check_size(image, path)
            return Jpeg(image.size, image.mode, _orientation(image))
    except UnreadableImage:
        raise
    except Exception:  # Pillow's parsers raise anything on damaged files
        return None


def reduced_jpeg(content: bytes, factor: int, *, channels: int) -> Image.Image | None:
    """The JPEG at ``1 / factor`` of its size, as stored (not turned); None where its data are damaged."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            _reduce(image, factor)
            image.load()
            return _eight_bit(image, channels=channels, path="")
    except Exception:  # Pillow's decoders raise anything on damaged files; decode_image says what
        return None


def _reduce(image: Image.Image, factor: int) -> None:
    width, height = image.size
    image.draft(image.mode, (max(1, width // factor), max(1, height // factor)))


def _check_size(image: Image.Image, path: Path | str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImage(
            path, f"it has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are accepted"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UnreadableImage(path, f"it is a strip of {width} x {height} pixels; at most {MAX_RATIO} to 1 is accepted")


def _upright(image: Image.Image) -> Image.Image:
    turn = _TRANSPOSE.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything; the pixels are whole, and viewers then show them as stored
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _eight_bit(image: Image.Image, *, channels: int, path: Path | str) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise UnreadableImage(path, "its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB").convert(mode)
    if image.mode in ("CMYK", "YCbCr", "P", "HSV"):
        return image.convert("RGB").convert(mode)
    if image.mode in ("1", "L", "RGB"):
        return image.convert(mode)
    raise UnreadableImage(path, f"its colour mode {image.mode} is not accepted; save it as RGB")


def _is_integer(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;")


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF counts from white to black, which Pillow minds at 8 bits only."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0


def _scaled(image: Image.Image, path: Path | str, *, white_is_zero: bool) -> Image.Image:
    """16-bit grey as 8-bit grey: 65535 becomes 255 (Pillow's own convert clips 99.6 % of a ramp to white)."""
    values = np.asarray(image).astype(np.int64)  # (H, W)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(
            path, f"its whole-number pixels run from {values.min()} to {values.max()}; 0 to 65535 is accepted"
        )
    grey = ((values + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257: exact rounding
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(255 - grey if white_is_zero else grey)


def _what_it_is(content: bytes) -> str:
    accepted = "accepted are " + ", ".join(FORMATS)
    head = content[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in head:
        return f"it is a web page (HTML), not an image; {accepted}"
    if content[4:8] == b"ftyp":
        brand = content[8:12].decode("ascii", "replace").strip()
        return f"its format is {_BRANDS.get(brand, brand)}; {accepted}"
    for magic, name in _MAGIC.items():
        if content.startswith(magic):
            return f"its format is {name}; {accepted}"
    if b"<svg" in head:
        return f"its format is SVG; {accepted}"
    for magic, name in _DAMAGED.items():
        if content.startswith(magic):
            return f"the {name} data are damaged"
    return f"it is not an image of a known format; {accepted}"


def _why(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the file is cut short ({text})"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has too many pixels; at most {MAX_PIXELS // 10**6} million are accepted"
    return f"the image data are damaged ({text})"
