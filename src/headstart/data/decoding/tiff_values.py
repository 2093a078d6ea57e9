"""The pixels of a TIFF as its file holds them: any number of bands, whole or floating-point numbers of 8 to 64 bits.

Pillow reads such files wrongly or not at all, but it unpacks any strip or tile that says it holds 8-bit grey, whatever
its bytes mean: each is put behind a header that says so. What the bytes mean is worked out here (TIFF 6.0, sections 14
and 15; the predictor of floating-point numbers is Adobe's technical note 3).

H, W, S samples (bands) of a pixel.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.data.decoding.limits import find_size_excess
from headstart.data.decoding.tiff import MAGICS, Directory, read_directory, read_first, read_numbers

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL = 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANES = 273, 274, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT = 317, 322, 323, 324, 325, 338, 339
_COMPRESSIONS = frozenset((1, 5, 8, 32773, 32946, 34925, 50000))  # none, LZW, Deflate, PackBits, LZMA, Zstandard
_KINDS = {1: "u", 2: "i", 3: "f"}
_BITS_READ = {"u": (8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ALPHA = (1, 2)  # of ExtraSamples: multiplied into the colours, or not
_CHUNK_BYTES = 2**25  # that are unpacked at a time


@dataclass(frozen=True)
class TiffValues:
    """The pixels (H, W, S) as stored, their EXIF orientation, and whether the last band says how opaque they are."""

    values: NDArray[np.generic]
    orientation: int
    alpha: bool


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the directory says: size, kind of numbers, and the strips or tiles ``parts`` (start, bytes) in rows."""

    height: int
    width: int
    samples: int
    dtype: np.dtype[np.generic]
    compression: int
    predictor: int
    planes: int
    tile: tuple[int, int] | None
    rows: int
    segments: tuple[NDArray[np.int64], NDArray[np.int64]]

    @property
    def in_pixel(self) -> int:
        """Samples that stand together in a part: all, or those of one plane."""
        return 1 if self.planes == 2 else self.samples

    @property
    def across(self) -> int:
        """Parts side by side."""
        return 1 if self.tile is None else -(-self.width // self.tile[1])

    @property
    def part_width(self) -> int:
        """Pixels of a part's rows."""
        return self.width if self.tile is None else self.tile[1]


def read_tiff_values(content: bytes) -> TiffValues | None:
    """The pixels of a TIFF that Pillow does not read as they are meant; None for one that it does, or for another file.

    Raises: ValueError: it is one, and of a kind that is not read, or damaged; the text is a phrase.
    """
    if not content.startswith(MAGICS):
        return None
    found = read_directory(content)
    if found is None or not _is_ours(content, found):
        return None
    layout = _read_layout(content, found)
    planes = layout.samples if layout.planes == 2 else 1
    unpacked = [_unpack_plane(content, layout, plane, planes) for plane in range(planes)]
    values = np.concatenate(unpacked, axis=2) if planes > 1 else unpacked[0]
    photometric = read_first(content, found, _PHOTOMETRIC, _BLACK_IS_ZERO)
    if photometric == _WHITE_IS_ZERO and layout.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    extra = read_numbers(content, found, _EXTRA)
    orientation = read_first(content, found, _ORIENTATION, 1)
    return TiffValues(values, orientation, alpha=bool(len(extra)) and int(extra[-1]) in _ALPHA)


def make_tiff(values: NDArray[np.generic]) -> bytes:
    """A TIFF of these numbers (H, W, S), of which ``read_tiff_values`` gives all bands."""
    height, width, samples = values.shape
    dtype = values.dtype.newbyteorder("<")
    body = np.ascontiguousarray(values, dtype).tobytes()
    numbers = next(number for number, kind in _KINDS.items() if kind == dtype.kind)
    tags = {_WIDTH: [width], _HEIGHT: [height], _BITS: [8 * dtype.itemsize] * samples, _COMPRESSION: [1]}
    tags |= {_PHOTOMETRIC: [_BLACK_IS_ZERO], _STRIPS: [8], _SAMPLES: [samples], _ROWS: [height]}
    return _make_file(tags | {_STRIP_BYTES: [len(body)], _FORMAT: [numbers] * samples}, body)


def _is_ours(content: bytes, found: Directory) -> bool:
    """Whether it has more than 8 bits, or bands that are no colours."""
    photometric = read_first(content, found, _PHOTOMETRIC, _BLACK_IS_ZERO)
    bits, samples = int(read_numbers(content, found, _BITS).max(initial=1)), read_first(content, found, _SAMPLES, 1)
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or bits in (2, 4, 12):
        return False
    colours = 3 if photometric == _RGB else 1
    extra = read_numbers(content, found, _EXTRA)
    opacity = samples == colours + 1 and len(extra) == 1 and int(extra[0]) in _ALPHA
    return bits > 8 or (bits == 8 and samples != colours and not opacity)


def _read_layout(content: bytes, found: Directory) -> _Layout:
    """Raises: ValueError: see ``read_tiff_values``."""

    def first(tag: int, default: int) -> int:
        return read_first(content, found, tag, default)

    width, height, samples = first(_WIDTH, 0), first(_HEIGHT, 0), first(_SAMPLES, 1)
    if min(width, height, samples) < 1:
        raise ValueError("the TIFF data are damaged (it has no pixels)")
    if (excess := find_size_excess(width, height)) is not None:
        raise ValueError(excess)
    bits, formats = set(read_numbers(content, found, _BITS).tolist()), read_numbers(content, found, _FORMAT).tolist()
    kind = _KINDS.get(formats[0] if formats else 1, "")
    if len(bits) != 1 or len(set(formats)) > 1 or not kind or (size := bits.pop()) not in _BITS_READ[kind]:
        raise ValueError("its bands are not all whole or floating-point numbers of 8, 16, 32 or 64 bits")
    if first(_COMPRESSION, 1) not in _COMPRESSIONS or first(_FILL, 1) != 1:
        raise ValueError(
            "it has more than 8 bits or many bands, packed in a way that is not read; save it with Deflate"
        )
    tiled = _TILES in found.tags
    starts = read_numbers(content, found, _TILES if tiled else _STRIPS)
    sizes = read_numbers(content, found, _TILE_BYTES if tiled else _STRIP_BYTES)
    layout = _Layout(
        height=height, width=width, samples=samples, dtype=np.dtype(f"{found.order}{kind}{size // 8}"),
        compression=first(_COMPRESSION, 1), predictor=first(_PREDICTOR, 1), planes=first(_PLANES, 1),
        tile=(first(_TILE_HEIGHT, 0), first(_TILE_WIDTH, 0)) if tiled else None,
        rows=max(1, min(height, first(_TILE_HEIGHT, 1) if tiled else first(_ROWS, height))), segments=(starts, sizes),
    )  # fmt: skip
    down = -(-height // layout.rows)
    needed = down * layout.across * (samples if layout.planes == 2 else 1) if layout.part_width else 0
    if not (0 < needed == len(starts) == len(sizes)):
        raise ValueError("the TIFF data are damaged (strips or tiles are missing)")
    return layout


def _unpack_plane(content: bytes, layout: _Layout, plane: int, planes: int) -> NDArray[np.generic]:
    """The pixels (H, W, samples together) of one plane, chunk by chunk."""
    count = len(layout.segments[0]) // planes
    starts, sizes = (values[plane * count : (plane + 1) * count] for values in layout.segments)
    across, pixel = layout.across, layout.in_pixel
    row_bytes = across * layout.part_width * pixel * layout.dtype.itemsize
    values = np.empty((layout.height, layout.width, pixel), layout.dtype.newbyteorder("="))
    step = max(1, _CHUNK_BYTES // max(1, row_bytes * layout.rows))
    for first in range(0, count // across, step):
        chosen = slice(first * across, (first + step) * across)
        top = first * layout.rows
        rows = min(step * layout.rows, layout.height - top)
        unpacked = _unpack_segments(content, layout, (starts[chosen], sizes[chosen]), (rows, row_bytes))
        grouped = unpacked.reshape(rows, across, -1)
        values[top : top + rows] = _undo_predictor(grouped, layout).reshape(rows, -1, pixel)[:, : layout.width]
    return values


def _unpack_segments(
    content: bytes, layout: _Layout, places: tuple[NDArray[np.int64], NDArray[np.int64]], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """The bytes (rows, bytes of a row) of neighbouring parts, as if they were 8-bit grey."""
    chosen = zip(places[0].tolist(), places[1].tolist(), strict=True)
    parts = [content[start : start + size] for start, size in chosen]
    begins = _add_up([len(part) for part in parts])
    width = layout.part_width * layout.in_pixel * layout.dtype.itemsize
    tags = {_WIDTH: [shape[1]], _HEIGHT: [shape[0]], _BITS: [8], _COMPRESSION: [layout.compression]}
    tags |= {_PHOTOMETRIC: [_BLACK_IS_ZERO], _SAMPLES: [1]}
    lengths = [len(part) for part in parts]
    if layout.tile is None:
        tags |= {_STRIPS: begins, _ROWS: [layout.rows], _STRIP_BYTES: lengths}
    else:
        tags |= {_TILE_WIDTH: [width], _TILE_HEIGHT: [layout.rows], _TILES: begins, _TILE_BYTES: lengths}
    body = b"".join(parts)
    with Image.open(io.BytesIO(_make_file(tags, body)), formats=("TIFF",)) as image:
        return np.array(image, dtype=np.uint8)


def _add_up(lengths: Sequence[int]) -> list[int]:
    """Where each part begins, in a file whose first 8 bytes are its header."""
    places, place = [], 8
    for length in lengths:
        places.append(place)
        place += length
    return places


def _make_file(tags: dict[int, list[int]], body: bytes) -> bytes:
    """A TIFF of these tags, all of them 32-bit numbers, with ``body`` behind its header."""
    body += b"\0" * (len(body) % 2)
    place = 8 + len(body)
    beyond = place + 2 + 12 * len(tags) + 4
    entries, lists = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            lists, packed = lists + packed, struct.pack("<I", beyond + len(lists))
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    return b"II*\0" + struct.pack("<I", place) + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + lists


def _undo_predictor(parts: NDArray[np.uint8], layout: _Layout) -> NDArray[np.generic]:
    """Bytes (rows, parts side by side, bytes of a part's row) to numbers (rows, all samples of the row)."""
    rows, across, _ = parts.shape
    pixel, dtype = layout.in_pixel, layout.dtype
    if layout.predictor == 3 and dtype.kind == "f":
        summed = np.cumsum(parts.reshape(rows, across, -1, pixel), axis=2, dtype=np.uint8)
        planes = summed.reshape(rows, across, dtype.itemsize, -1)  # the highest byte of each number first
        return np.ascontiguousarray(planes.swapaxes(2, 3)).view(dtype.newbyteorder(">")).reshape(rows, -1)
    values = parts.view(dtype)
    if layout.predictor == 2:
        native = dtype.newbyteorder("=")
        values = np.cumsum(values.astype(native).reshape(rows, across, -1, pixel), axis=2, dtype=native)
    elif layout.predictor != 1:
        raise ValueError(f"its predictor {layout.predictor} is not read; save it without one")
    return values.reshape(rows, -1)
