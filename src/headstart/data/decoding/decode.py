"""An untrusted image file becomes an 8-bit picture, the right way up, or an error that says why not."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from headstart.data.decoding.arrays import Axes, is_array, measure_array, read_array
from headstart.data.decoding.complaints import hear_decoders
from headstart.data.decoding.eight_bits import (
    ORIENTATION,
    read_orientation,
    to_eight_bits,
    turn_array,
    turn_upright,
)
from headstart.data.decoding.formats import FORMATS as FORMATS
from headstart.data.decoding.formats import describe_content, list_formats
from headstart.data.decoding.interruptible import run_interruptibly
from headstart.data.decoding.limits import (
    MAX_PIXELS,
    BoundedFile,
    TooMuchWork,
    find_excess,
    find_size_excess,
    open_bounded,
)
from headstart.data.decoding.marks import Mark, mark_picture, mark_raster, mark_sides
from headstart.data.decoding.raster import (
    Levels,
    Measured,
    NoPicture,
    Raster,
    measure,
    read_deep_grey,
    read_raster,
    scale_raster,
)
from headstart.data.decoding.reduced import ReducedImage, reduce_raster
from headstart.data.decoding.tiff import has_more_pages
from headstart.errors import DataError, RunError

DARK = 31
"""The largest value of 255 of a picture that looks black: an eighth of the range."""
_T = TypeVar("_T")
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # formats of animations
_LYING = (5, 6, 7, 8)  # EXIF orientations of pictures that are stored on their side
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # TIFF takes the others, but loses a colour key


class UnreadableImage(DataError):
    """An image that gives no picture; ``where`` is how messages name it, ``reason`` a phrase."""

    def __init__(self, where: str | os.PathLike[str], reason: str) -> None:
        self.where = printable(where)
        self.reason = reason
        super().__init__(f"{self.where}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.reason)

    @property
    def path(self) -> Path:
        """``where`` as a path, for scripts that know images as files."""
        return Path(self.where)


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that can be written anywhere: bytes that are not UTF-8 appear as ``\\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def decode_image(
    content: bytes,
    *,
    where: str,
    channels: int = 3,
    reduced: int = 1,
    levels: Levels | None = None,
    axes: Axes | None = None,
) -> Image.Image:
    """8-bit RGB (L for one channel) picture of the file's bytes, the right way up; transparent parts are white.

    ``where`` is how errors name it. ``reduced`` 2, 4 or 8: a JPEG comes out at that part of its size, rounded up;
    other formats take no notice. ``levels``: stored values of more than 8 bits that become black and white; None: 0 and
    65535. ``axes``: the order of a saved array's axes (see ``arrays.py``).

    Raises:
        UnreadableImage: the bytes give no picture.
    """
    with _explaining(content, where):
        raster = _read_raster(content, where, channels=channels, axes=axes, all_deep=levels is not None)
        if raster is not None:
            values = scale_raster(raster, levels=levels, channels=channels)
            return turn_upright(Image.fromarray(values if channels == 3 else values[:, :, 0]), raster.orientation)
        finish = partial(_finish, channels=channels, levels=levels)
        return _open_with_pillow(content, where=where, reduced=reduced, finish=finish)[0]


def decode_bands(
    content: bytes, *, where: str, channels: int, levels: Levels | None = None, axes: Axes | None = None
) -> NDArray[np.uint8]:
    """Pixels (H, W, channels) with 8 bits of a picture that has as many bands, the right way up; see ``decode_image``.

    Raises:
        UnreadableImage: the bytes give no picture, or one of other bands.
    """
    with _explaining(content, where):
        raster = _read_raster(content, where, channels=channels, axes=axes)
        if raster is None:
            raster = _open_with_pillow(content, where=where, reduced=1, finish=_take_bands)[0]
        return turn_array(scale_raster(raster, levels=levels, channels=channels), raster.orientation)


def measure_image(content: bytes, *, where: str) -> Measured | None:
    """What the values of a picture are that has more than 8 bits or other bands than grey and RGB, or is dark; None of
    any other. It is refused where :func:`decode_image` would refuse it for damage.

    A JPEG is decoded to an eighth of its size: what is saved is arithmetic, the data are read and unpacked to the end,
    and damage shows there (of 7,000 damaged files the two refused the same ones, for the same reasons).

    Raises:
        UnreadableImage: the bytes give no picture.
    """
    return examine_image(content, where=where).measured


@dataclass(frozen=True)
class Examined:
    """What one look at an image gives: what its values are (see ``measure_image``), its picture, if it was asked for or
    has 8 bits, and what decoding changes in it.
    """

    measured: Measured | None
    reduced: ReducedImage | None
    marks: tuple[Mark, ...] = ()


def examine_image(content: bytes, *, where: str, least: int = 1) -> Examined:
    """What an image's values are, and its picture: of a JPEG as small as it comes with ``least`` pixels a side, down to
    an eighth of its size. Of more than 8 bits or other bands there is one (see ``reduce_raster``) if ``least`` is more.

    Raises:
        UnreadableImage: the bytes give no picture.
    """
    with _explaining(content, where):
        if is_array(content):
            values, stored, words = run_interruptibly(partial(measure_array, content), pixels=len(content))
            return Examined(values, _reduce_raster(stored, least), words)
        raster = _read_raster(content, where)
        pages: tuple[Mark, ...] = ("first",) if has_more_pages(content) else ()
        if raster is not None:
            sides = mark_sides(*raster.values.shape[:2])
            return Examined(measure(raster), _reduce_raster(raster, least), (*mark_raster(raster), *sides, *pages))
        finish = partial(_examine, least=least)
        (measured, picture, marks, orientation), size = _open_with_pillow(
            content, where=where, reduced=8, finish=finish, least=least
        )
        marks = (*marks, *mark_sides(*size), *pages)
        if picture is None or isinstance(picture, ReducedImage):
            return Examined(measured, picture, marks)
        factor = max(1, round(size[0] / picture.width))
        (width, height), upright = size[::-1] if orientation in _LYING else size, turn_upright(picture, orientation)
        return Examined(measured, ReducedImage(upright, (width / factor, height / factor), (width, height)), marks)


def _read_raster(
    content: bytes, where: str, *, channels: int = 3, axes: Axes | None = None, all_deep: bool = True
) -> Raster | None:
    """Read a raster or an array within the bounds of decoding, see ``read_raster`` and ``read_array``."""
    _refuse(find_excess(content), where)
    if is_array(content):
        return read_array(content, channels=channels, axes=axes)
    return run_interruptibly(partial(read_raster, content, all_deep=all_deep), pixels=len(content))


def _reduce_raster(raster: Raster, least: int) -> ReducedImage | None:
    if least == 1:
        return None
    picture, extent = run_interruptibly(partial(reduce_raster, raster, least=least), pixels=raster.values.size)
    height, width, _ = raster.values.shape
    size, extent = ((height, width), extent[::-1]) if raster.orientation in _LYING else ((width, height), extent)
    return ReducedImage(turn_upright(picture, raster.orientation), extent, size)


def _examine(
    image: Image.Image, *, least: int
) -> tuple[Measured | None, Image.Image | ReducedImage | None, tuple[Mark, ...], int]:
    """What a loaded picture's values are, the picture as stored where they have 8 bits, else see ``examine_image``,
    what decoding changes in it, and its EXIF orientation.
    """
    deep, orientation = read_deep_grey(image), read_orientation(image)
    if deep is not None:
        upright = Raster(deep.values, orientation, deep.alpha)
        return measure(deep), _reduce_raster(upright, least), mark_raster(deep), orientation
    picture = to_eight_bits(image, channels=3)
    extrema: Any = picture.getextrema()  # of three bands
    most = max(high for _, high in extrema)
    marks = (*mark_picture(image, extrema), *_mark_frames(image))
    return Measured(3, "uint8", 0.0, 0.0, most, most) if most <= DARK else None, picture, marks, orientation


def _mark_frames(image: Image.Image) -> tuple[Mark, ...]:
    """Whether it is an animation; the picture is not to be used any more, for that may look for its second frame."""
    try:
        return ("first",) if image.format in _ANIMATED and getattr(image, "is_animated", False) else ()
    except RunError:
        raise
    except Exception:  # Pillow's decoders raise anything on a damaged frame, which is not used
        return ()


def _take_bands(image: Image.Image) -> Raster:
    """All bands of a loaded picture, its opacity as one of them."""
    deep = read_deep_grey(image)
    if deep is not None:
        return Raster(deep.values, read_orientation(image), deep.alpha)
    values = np.asarray(image)
    return Raster(values.reshape(*values.shape[:2], -1), read_orientation(image), alpha=image.mode in ("RGBA", "LA"))


def _finish(image: Image.Image, *, channels: int, levels: Levels | None) -> Image.Image:
    """A loaded picture with 8 bits, the right way up."""
    orientation, deep = read_orientation(image), None if levels is None else read_deep_grey(image)
    if deep is not None:
        image = Image.fromarray(scale_raster(deep, levels=levels, channels=1)[:, :, 0])
    return turn_upright(to_eight_bits(image, channels=channels), orientation)


@contextmanager
def _explaining(content: bytes, where: str) -> Iterator[None]:
    """Within, whatever decoders raise becomes an UnreadableImage that says what is wrong with the bytes."""
    said = list[str]()
    try:
        with hear_decoders() as said:
            yield
    except (UnreadableImage, RunError):  # the latter by a signal's handler
        raise
    except NoPicture as error:
        raise UnreadableImage(where, str(error)) from None
    except UnidentifiedImageError:
        raise UnreadableImage(where, describe_content(content)) from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files: SyntaxError, struct.error, ...
        raise UnreadableImage(where, _why(error, said)) from error


def encode_image(image: Image.Image, *, where: str) -> bytes:
    """The picture as a file's bytes that :func:`decode_image` turns into the same pixels; errors name it ``where``.

    Raises:
        UnreadableImage: it cannot be loaded, or has a colour mode that no lossless file holds.
    """
    written, turned = io.BytesIO(), Image.Exif()
    try:
        image.load()  # which turns a TIFF, and forgets its orientation
        turned[ORIENTATION] = read_orientation(image)
        if image.mode in _PNG_MODES:
            image.save(written, format="PNG", compress_level=0, exif=turned)
        else:
            image.save(written, format="TIFF", exif=turned)
    except RunError:  # by a signal's handler
        raise
    except Exception as error:  # Pillow's decoders and encoders raise anything
        raise UnreadableImage(where, _why(error)) from error
    return written.getvalue()


def _open_with_pillow(
    content: bytes, *, where: str, reduced: int, finish: Callable[[Image.Image], _T], least: int = 1
) -> tuple[_T, tuple[int, int]]:
    """What ``finish`` makes of the loaded picture, and its whole size: no side is reduced to less than ``least``. What
    Pillow decoded is no longer in memory.
    """
    _refuse(find_excess(content), where)
    with Image.open(file := open_bounded(content), formats=list_formats()) as image:
        _refuse(find_size_excess(*image.size, kind=image.format), where)
        size, pixels = image.size, image.width * image.height

        def load() -> _T:
            if isinstance(file, BoundedFile):
                file.give_seconds(_seconds(pixels))
            if reduced > 1 and isinstance(image, JpegImagePlugin.JpegImageFile):
                _reduce(image, min(reduced, max(1, min(size) // least)))
            _load(image)
            return finish(image)

        return run_interruptibly(load, pixels=pixels), size


def _load(image: Image.Image) -> None:
    """The first frame of an animation, the first page of a TIFF."""
    if image.format != "WEBP":
        image.load()
        return

    def prepare() -> None:
        image._decoder = None  # type: ignore[attr-defined]  # Pillow 11 to 13: its two frames, 8 bytes a pixel
        type(image).load_prepare(image)  # type: ignore[attr-defined]

    vars(image)["load_prepare"] = prepare  # called when the frame has left the decoder and is to be copied
    image.load()
    del vars(image)["load_prepare"]


def _seconds(pixels: int) -> float:
    """What loading may take: five times and more of what it takes a core of 2024."""
    return 2.0 + pixels / 8e6


def _refuse(excess: str | None, where: str) -> None:
    if excess is not None:
        raise UnreadableImage(where, excess)


def check_image(content: bytes, *, where: str) -> None:
    """Refuse what :func:`decode_image` would refuse for damage, in less time: see :func:`measure_image`.

    Raises:
        UnreadableImage: the bytes give no picture.
    """
    measure_image(content, where=where)


@dataclass(frozen=True)
class Jpeg:
    """What the header of a JPEG says: (width, height) as stored, Pillow's colour mode, EXIF orientation 1 to 8."""

    size: tuple[int, int]
    mode: str
    orientation: int


def open_jpeg(content: bytes, *, where: str) -> Jpeg | None:
    """The header; None where it is none or damaged: then :func:`decode_image` decodes it, or says why it cannot.

    Raises:
        UnreadableImage: it has too many pixels or scans, or is a strip.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    _refuse(find_excess(content), where)
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            _refuse(find_size_excess(*image.size), where)
            return Jpeg(image.size, image.mode, read_orientation(image))
    except (UnreadableImage, RunError):  # the latter by a signal's handler
        raise
    except Exception:  # Pillow's parsers raise anything on damaged files
        return None


def open_reduced_jpeg(content: bytes, factor: int, *, channels: int) -> Image.Image | None:
    """The JPEG, which :func:`open_jpeg` accepts, at ``1 / factor`` of its size, as stored (not turned); None where its
    data are damaged.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            _reduce(image, factor)
            image.load()
            return to_eight_bits(image, channels=channels)
    except RunError:
        raise
    except Exception:  # Pillow's decoders raise anything on damaged files; decode_image says what
        return None


def _reduce(image: Image.Image, factor: int) -> None:
    width, height = image.size
    image.draft(image.mode, (max(1, width // factor), max(1, height // factor)))


def _why(error: Exception, said: Sequence[str] = ()) -> str:
    """A phrase on what a decoder raised, and ``said`` before."""
    text = "; ".join([" ".join(str(error).split()) or type(error).__name__, *said[:1]])
    if isinstance(error, TooMuchWork):
        return text
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the file is cut short ({text})"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has too many pixels; at most {MAX_PIXELS // 10**6} million are accepted"
    return f"the image data are damaged ({text})"
