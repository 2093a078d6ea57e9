"""What the directory of a TIFF file (EXIF data are one, too) says about the work of decoding it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAGICS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
MAX_PARTS = 65_536
"""Strips or tiles, and numbers of any tag that the decoder looks at."""
MAX_TAGS = 4_096
MAX_LZMA_BYTES = 16 * 2**20
"""The slowest of the compressions by far."""
_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8"}
_LONGEST = 16  # the type of 64 bits without a sign
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS = 256, 257, 258, 259, 277, 278
_STRIPS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 273, 279, 322, 323, 324, 325
_READ = frozenset((*range(254, 285), 296, *range(317, 340), 530))  # by Pillow, each as a tuple of Python's numbers
_SUBFILE, _SMALLER = 254, 1  # a tag, and its flag of reduced pictures
_OLD_JPEG, _JPEG, _LZMA = 6, 7, 34925
_SPARE = 2**20


@dataclass(frozen=True)
class Tag:
    """Type of its numbers, how many, and where in the file the first of them is."""

    kind: int
    count: int
    offset: int


@dataclass(frozen=True)
class Directory:
    """One of a file: its tags by number, all its entries, the bytes that reading its values reads, and where the next
    one is (0: there is none).
    """

    order: str
    tags: Mapping[int, Tag]
    entries: int
    value_bytes: int
    following: int = 0


def find_tag_excess(content: bytes) -> str | None:
    """Why reading the values of its tags would take too much work, as a phrase; None where it would not."""
    return _tag_excess(content, read_directory(content))


def find_tiff_excess(content: bytes, *, max_raw: int, max_scanned: int, max_scans: int) -> str | None:
    """Why decoding it would take too much work, as a phrase; None where it would not, or there is no directory.

    ``max_raw``: bytes of its pixels; ``max_scanned``: samples that all scans of JPEG strips go over; ``max_scans``: of
    one of them.
    """
    found = read_directory(content)
    excess = _tag_excess(content, found)
    if excess is not None or found is None:
        return excess
    long = next((tag for tag, one in found.tags.items() if tag in _READ and one.count > MAX_PARTS), None)
    if long is not None:
        return f"its tag {long} has {found.tags[long].count:,} numbers; at most {MAX_PARTS:,} are accepted"
    wide, high = read_first(content, found, _WIDTH, 0), read_first(content, found, _HEIGHT, 0)
    samples = read_first(content, found, _SAMPLES, 1)
    bits = int(read_numbers(content, found, _BITS).max(initial=1))
    raw = wide * high * samples * bits // 8
    if raw > max_raw:
        return (
            f"its {wide} x {high} pixels take {raw / 1e6:,.0f} MB; at most {max_raw / 1e6:,.0f} MB are accepted, so "
            "save it with 8 bits or smaller"
        )
    part, area = _segment_area(content, found, wide, high), max(wide * high, 1)
    if part > max(4 * area, 4 * _SPARE):
        return f"its tiles have {part / 1e6:,.0f} megapixels, the picture {area / 1e6:,.1f}"
    starts, sizes = _read_segments(content, found)
    if sizes.sum() > 2 * len(content) + _SPARE:
        return "its strips are the same data again and again"
    compression = read_first(content, found, _COMPRESSION, 1)
    if compression == _LZMA and sizes.sum() > MAX_LZMA_BYTES:
        return f"its LZMA data take {sizes.sum() / 1e6:,.0f} MB; at most {MAX_LZMA_BYTES / 1e6:,.0f} MB are accepted"
    if compression == _OLD_JPEG:
        scans, part = [content.count(b"\xff\xda")], area
    elif compression == _JPEG:
        ends = starts + sizes
        scans = [content.count(b"\xff\xda", *ends_of) for ends_of in zip(starts.tolist(), ends.tolist(), strict=True)]
    else:
        return None
    if max(scans, default=0) > max_scans or sum(scans) * min(part, area) * samples > max_scanned:
        return (
            f"it has {sum(scans):,} scans of {min(part, area) / 1e6:,.1f} megapixels; at most {max_scans} are accepted "
            f"of a strip, of {max_scanned / 1e6:,.0f} million samples together"
        )
    return None


def _tag_excess(content: bytes, found: Directory | None) -> str | None:
    if found is None:
        return None
    if found.entries > MAX_TAGS:
        return f"it has {found.entries:,} tags; at most {MAX_TAGS:,} are accepted"
    if found.value_bytes > 2 * len(content) + _SPARE:
        return "its tags name the same data again and again"
    return None


def has_more_pages(content: bytes) -> bool:
    """Whether another picture follows the first one, which is no smaller copy of it."""
    found = read_directory(content)
    second = read_directory(content, at=found.following) if found is not None and found.following else None
    return second is not None and not read_first(content, second, _SUBFILE, 0) & _SMALLER


def read_directory(content: bytes, *, at: int | None = None) -> Directory | None:
    """The one at this place, by itself the first; None where there is none. Later tags of the same number are left
    out, as decoders do.
    """
    if not content.startswith(MAGICS):
        return None
    order, big = "<" if content.startswith(b"II") else ">", b"+" in content[2:4]
    form, size = (f"{order}HHQ", 20) if big else (f"{order}HHL", 12)
    offset, number = ("Q", 8) if big else ("L", 4)
    try:
        (place,) = struct.unpack_from(order + offset, content, 8 if big else 4) if at is None else (at,)
        (entries,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, place)
    except (struct.error, OverflowError):
        return None
    place += 8 if big else 2
    tags: dict[int, Tag] = {}
    total = 0
    for entry in range(place, place + size * min(entries, MAX_TAGS), size):
        if entry + size > len(content):
            break
        tag, kind, count = struct.unpack_from(form, content, entry)
        length, value = count * _UNITS.get(kind, 0), entry + size - number
        if length > number:
            (value,) = struct.unpack_from(order + offset, content, value)
            total += min(length, max(0, len(content) - value))
        tags.setdefault(tag, Tag(kind, count, value))
    end = place + size * entries
    (following,) = struct.unpack_from(order + offset, content, end) if end + number <= len(content) else (0,)
    return Directory(order, tags, entries, total, following)


def read_numbers(content: bytes, found: Directory, tag: int) -> NDArray[np.int64]:
    """Return a tag's whole numbers, those that are in the file; none where it is not there."""
    one = found.tags.get(tag)
    if one is None or one.kind not in _NUMBERS or one.offset >= len(content):
        return np.zeros(0, dtype=np.int64)
    there = min(one.count, (len(content) - one.offset) // _UNITS[one.kind])
    values = np.frombuffer(content, dtype=found.order + _NUMBERS[one.kind], count=there, offset=one.offset)
    return (np.minimum(values, 2**62) if one.kind == _LONGEST else values).astype(np.int64)


def read_first(content: bytes, found: Directory, tag: int, default: int) -> int:
    """Return a tag's first whole number."""
    values = read_numbers(content, found, tag)
    return int(values[0]) if len(values) else default


def _segment_area(content: bytes, found: Directory, wide: int, high: int) -> int:
    """Pixels of a strip, which ends with the picture, or of a tile, which may not."""
    if _TILES in found.tags:
        return read_first(content, found, _TILE_WIDTH, 0) * read_first(content, found, _TILE_HEIGHT, 0)
    return wide * min(high, read_first(content, found, _ROWS, high))


def _read_segments(content: bytes, found: Directory) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions at which the strips or tiles in the file begin, and how many bytes each has."""
    tiled = _TILES in found.tags
    starts = read_numbers(content, found, _TILES if tiled else _STRIPS)
    sizes = read_numbers(content, found, _TILE_BYTES if tiled else _STRIP_BYTES)
    count = min(len(starts), len(sizes))
    starts = np.minimum(starts[:count], len(content))
    return starts, np.minimum(sizes[:count], len(content) - starts)
