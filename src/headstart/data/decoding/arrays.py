"""Pictures as NumPy saves an array (.npy): two axes are one band, of three the first or the last are the bands.

Which of the two a file does not say. Both can be meant only where both give as many bands as the model takes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection
from tokenize import TokenError
from typing import Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from headstart.data.decoding.limits import MAX_RAW_BYTES, find_size_excess
from headstart.data.decoding.marks import Mark, mark_raster, mark_sides
from headstart.data.decoding.raster import Measured, NoPicture, Raster, measure
from headstart.wording import option

Axes = Literal["hwc", "chw"]
ORDERS: tuple[Axes, ...] = ("hwc", "chw")
SPELT: dict[Axes, str] = {"hwc": "H x W x C", "chw": "C x H x W"}
_MAGIC = b"\x93NUMPY"
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_SIZES = {"u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8), "b": (1,)}  # bytes of a number


def is_array(content: bytes) -> bool:
    """Whether the bytes are an array that NumPy saved."""
    return content.startswith(_MAGIC)


def list_bands(channels: int) -> tuple[int, ...]:
    """The numbers of bands that a model of so many channels takes."""
    return (1, 3) if channels in (1, 3) else (channels,)


def read_array(content: bytes, *, channels: int, axes: Axes | None) -> Raster:
    """The picture of a saved array for a model of so many ``channels``; ``axes``: the order of three axes, None: the
    one that gives as many bands.

    Raises: NoPicture: the bytes hold no picture, or one whose bands are the first as well as the last axis.
    """
    values = _load(content)
    if values.ndim == 2:
        return Raster(values[:, :, None], 1, alpha=False)
    bands, accepted = _count_bands(values.shape), list_bands(channels)
    if axes is not None and bands[axes] not in accepted and bands[_other(axes)] in accepted:
        raise NoPicture(
            f"its shape is {_name_shape(values.shape)}, and arrays are read as {SPELT[axes]} here, as those of the "
            "run: save it in this order"
        )
    possible = [each for each in ORDERS if bands[each] in accepted] if axes is None else [axes]
    if len(possible) == 1 and bands[possible[0]]:
        return Raster(values if possible[0] == "hwc" else values.transpose(1, 2, 0), 1, alpha=False)
    raise NoPicture(_explain_shape(values.shape, possible, channels=channels))


def _other(axes: Axes) -> Axes:
    return "chw" if axes == "hwc" else "hwc"


def measure_array(content: bytes) -> tuple[Measured, Raster, tuple[Mark, ...]]:
    """What the values of a saved array are, of one with three axes how many bands it has by both orders; its picture,
    of three axes with as few bands as can be; and the words for it.

    Raises: NoPicture: the bytes hold no picture.
    """
    values = _load(content)
    if values.ndim == 2:
        grey = Raster(values[:, :, None], 1, alpha=False)
        return measure(grey), grey, (*mark_raster(grey), *mark_sides(*values.shape))
    bands = _count_bands(values.shape)
    longest = sorted(range(3), key=lambda axis: -values.shape[axis])  # which are thinned out where there are many
    raster = Raster(values.transpose(longest), 1, alpha=False)
    found = measure(raster)
    measured = Measured(bands["hwc"], found.kind, found.least, found.low, found.high, found.most, bands["chw"])
    likely = min((axes for axes in ORDERS if bands[axes]), key=lambda axes: bands[axes])
    upright = Raster(values if likely == "hwc" else values.transpose(1, 2, 0), 1, alpha=False)
    return measured, upright, mark_raster(raster)


def _load(content: bytes) -> NDArray[np.generic]:
    """The numbers as they are, which no byte of the file can have Python run."""
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        shape, is_fortran, dtype = _READERS[version](file)
    except KeyError:
        raise NoPicture("its elements are named columns, not numbers; save the numbers of one") from None
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:  # of Python's parser
        raise NoPicture("the NPY data are damaged (the header cannot be read)") from error
    if dtype.hasobject:
        raise NoPicture(
            "its elements are Python objects, which are pickled and not loaded; save numbers: "
            "numpy.save(path, numpy.stack(rows).astype('float32'))"
        )
    if dtype.itemsize not in _SIZES.get(dtype.kind, ()):
        raise NoPicture(f"its elements are of type {dtype}; whole or floating-point numbers of 8 to 64 bits are read")
    _check_shape(shape)
    size, start = math.prod(shape) * dtype.itemsize, file.tell()
    if size > MAX_RAW_BYTES:
        raise NoPicture(f"its numbers take {size / 1e6:,.0f} MB; at most {MAX_RAW_BYTES / 1e6:,.0f} MB are accepted")
    if len(content) - start < size:
        raise NoPicture(f"the file is cut short (of {size:,} bytes of numbers {len(content) - start:,} are there)")
    if len(content) - start > size:
        raise NoPicture("behind its array there is more, such as a second array; save one picture per file")
    values = np.frombuffer(content, dtype, count=math.prod(shape), offset=start)
    if dtype.kind == "b":
        values = (values.view(np.uint8) != 0).astype(np.uint8) * np.uint8(255)
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return native.reshape(shape, order="F" if is_fortran else "C")


def _check_shape(shape: tuple[int, ...]) -> None:
    """Raises: NoPicture: no picture has this shape."""
    named = _name_shape(shape)
    if len(shape) not in (2, 3):
        more = "; save one picture per file" if len(shape) == 4 else ""
        raise NoPicture(f"its shape is {named}, and a picture has 2 axes, or 3 with its bands{more}")
    if min(shape) < 1:
        raise NoPicture(f"its shape is {named}: it has no pixels")
    excess = find_size_excess(shape[1], shape[0])
    if excess is not None and (len(shape) == 2 or find_size_excess(shape[2], shape[1]) is not None):
        raise NoPicture(excess)


def _count_bands(shape: tuple[int, ...]) -> dict[Axes, int]:
    """How many bands a picture of this shape has by each order; 0 where its sides would not be accepted."""
    first, second, third = shape
    return {
        "hwc": third if find_size_excess(second, first) is None else 0,
        "chw": first if find_size_excess(third, second) is None else 0,
    }


def _explain_shape(shape: tuple[int, ...], possible: Collection[Axes], *, channels: int) -> str:
    named = _name_shape(shape)
    if len(possible) > 1:
        return (
            f"its shape {named} can be {SPELT['hwc']} or {SPELT['chw']}, and nothing says which: train, plan and "
            f"evaluate take {option('data.axes', 'hwc')} or chw; to predict, give the array as H x W x C in Python "
            "(hs.predict)"
        )
    if possible:
        return f"its shape is {named}, and as {SPELT[next(iter(possible))]} its sides are not accepted"
    return f"its shape is {named}, and {explain_ends(shape[0], shape[2], channels)}"


def explain_ends(first: int, last: int, channels: int) -> str:
    """A phrase on an array of which neither the first nor the last axis are the bands that a model takes."""
    fewer = min(end for end in (first, last) if end) if first or last else 0
    return (
        f"neither its first axis ({first}) nor its last one ({last}) has the {channels} that the model takes; train "
        f"one that takes them, with {option('model.options', {'in_chans': fewer})}"
    )


def _name_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "that of one number"
