"""What decoding an untrusted image may cost: read off its header before a decoder sees it, and held while it is read.

The bounds are such that what they accept takes at most about 2 s of one core of 2024 and four times the memory of the
decoded picture. Ordinary files are far below: a progressive JPEG of 64 megapixels usually has 10 scans and 30 MB.
"""

from __future__ import annotations

import io
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from headstart.data.decoding.tiff import MAGICS, find_tag_excess, find_tiff_excess

MAX_PIXELS = 64_000_000
MAX_SLOW_PIXELS = 24_000_000
"""The most pixels of formats whose decoders take four times as long: 0.04 s of a core for a million pixels."""
_SLOW_KINDS = ("AVIF", "JPEG2000")
MAX_RATIO = 100  # resizing the shorter side of a 1 x 20000 strip to 256 would allocate 1.3 billion pixels
MAX_SCANS = 100
MAX_SCANNED = 2_048_000_000
"""Samples of a JPEG that all its scans may go over: 64 megapixels with 3 channels in 10 scans of everything."""
MAX_RAW_BYTES = 256 * 2**20
"""The most bytes of the pixels of a PNG or TIFF, as they are stored before compression."""
MAX_DEEP_BYTES = 160 * 2**20
"""The most bytes of a PNG of 16 bits, whose bytes compress least and so take longest."""
MAX_READS = 1_000_000
"""Pieces (chunks, segments, runs) that Python code may read of one file."""
_LARGE, _SOME = 2**14, 64  # bytes of a read, and reads, after which the bounds are looked at
_SMALL = 2**16  # bytes of a file of which no loop can be long
_MIB = 2**20
_CODED_BYTES = {"sequential": 192 * _MIB, "progressive": 64 * _MIB, "arithmetic": 16 * _MIB}
_WEBP_BYTES = {b"VP8 ": 32 * _MIB, b"VP8L": 96 * _MIB, b"VP8X": 96 * _MIB}
_ANIMATED = 0x02  # a flag of VP8X
_MAX_FRAMES = 10_000
_MAX_SEGMENTS = 10_000
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type of a PNG
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # but escaped bytes, restarts and padding
_NO_LENGTH = frozenset((0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def find_excess(content: bytes) -> str | None:
    """Why decoding these bytes would take more work than is accepted, as a phrase; None where their header says that
    it does not, or says nothing. It takes microseconds, whatever the bytes are."""
    if content.startswith(b"\xff\xd8"):
        return None if _is_usual_jpeg(content) else _jpeg_excess(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_excess(content)
    if content.startswith(MAGICS):
        return find_tiff_excess(content, max_raw=MAX_RAW_BYTES, max_scanned=MAX_SCANNED, max_scans=MAX_SCANS)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _webp_excess(content)
    return None


def find_size_excess(wide: int, high: int, *, kind: str | None = None) -> str | None:
    """Why a picture of this size is not accepted, as a phrase; None where it is. ``kind``: Pillow's name of the format,
    where it takes longer than others.
    """
    most = MAX_SLOW_PIXELS if kind in _SLOW_KINDS else MAX_PIXELS
    if wide * high > most:
        return f"it has {wide} x {high} pixels; at most {most // 10**6} million are accepted"
    if max(wide, high) > MAX_RATIO * min(wide, high):
        return f"it is a strip of {wide} x {high} pixels; at most {MAX_RATIO} to 1 is accepted"
    return None


def open_bounded(content: bytes) -> io.BytesIO:
    """A file in memory for Pillow: its reads are bounded where :func:`find_excess` cannot see all of the work."""
    small = len(content) <= _SMALL or content.startswith(b"\xff\xd8")
    return io.BytesIO(content) if small else BoundedFile(content)


class BoundedFile(io.BytesIO):
    """A file in memory for Pillow, whose Python loops all come by ``read``: their number, bytes and time are bounded.

    Pillow's decoders of PNG, GIF and BMP come back for every 64 KiB, so that they end here as well.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads, self._left = MAX_READS, 2 * len(content) + 16 * _MIB
        self.give_seconds(2.0)

    def give_seconds(self, seconds: float) -> None:
        """Have reading end after so much time of this thread on a core from now on."""
        self._seconds, self._ends = seconds, time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as from any file.  Raises: TooMuchWork: a bound is reached."""
        data = super().read(size)
        self._reads -= 1
        self._left -= len(data)
        if len(data) > _LARGE or self._reads % _SOME == 0:  # the clock takes a microsecond or more
            self._check()
        return data

    def _check(self) -> None:
        if self._reads < 0:
            raise TooMuchWork(f"its data are in more than {MAX_READS:,} pieces")
        if self._left < 0:
            raise TooMuchWork("its header names the same data again and again")
        if time.thread_time() > self._ends:
            raise TooMuchWork(f"decoding it takes longer than {self._seconds:.0f} s")


class TooMuchWork(Exception):
    """A file in memory was read more often or longer than is accepted; its text is a phrase."""


@dataclass(frozen=True)
class _JpegHeader:
    """What stands before the first scan: its frame's marker, pixels and components, and where the scan begins."""

    frame: int
    pixels: int
    components: int
    scan: int


def _is_usual_jpeg(content: bytes) -> bool:
    """Whether it has a short header and one baseline scan: a third of the time of looking closely."""
    place, components, end = 2, 0, min(len(content) - 10, _SMALL)
    while place < end and content[place] == 0xFF:
        code = content[place + 1]
        if code == 0xDA:
            return content[place + 4] == components and len(content) <= _CODED_BYTES["sequential"]
        if code == 0xC0:
            components = content[place + 9]
        elif code < 0xC4 or code in _NO_LENGTH or code in _SOF:
            return False
        place += 2 + (content[place + 2] << 8 | content[place + 3])
    return False


def _jpeg_excess(content: bytes) -> str | None:
    header = _jpeg_header(content)
    if isinstance(header, str) or header is None:
        return header
    coding = "arithmetic" if header.frame > 0xC8 else "progressive" if header.frame & 3 == 2 else "sequential"
    several = coding != "sequential" or content[header.scan + 4 : header.scan + 5] != bytes((header.components,))
    found = _scans_excess(content, header) if several else None
    if found is not None or len(content) - header.scan <= _CODED_BYTES[coding]:
        return found
    end = content.find(b"\xff\xd9", header.scan)
    size = (len(content) if end < 0 else end) - header.scan
    if size <= _CODED_BYTES[coding]:
        return None
    return f"its {coding} data take {size / 1e6:,.0f} MB; at most {_CODED_BYTES[coding] / 1e6:,.0f} MB are accepted"


def _jpeg_header(content: bytes) -> _JpegHeader | str | None:
    """The header; None where there is none, which Pillow says better; a phrase where Pillow would read it for long."""
    frame = pixels = components = resources = between = 0
    end, exif = 2, list[bytes]()
    for number, (code, place) in enumerate(_segments(content, 2)):
        between, size = between + place - end, _size(content, code, place)
        end = place + size
        if number == _MAX_SEGMENTS or between > _MIB or resources > 4 * _MIB or place > 16 * _MIB:
            return "the segments before its pixels are too many or too large"
        body = content[place + 4 : place + 10]
        if code in _SOF and len(body) == 6:
            frame, components = code, body[5]
            high, wide = struct.unpack(">HH", body[1:5])
            pixels = high * wide
        elif code == 0xED:
            resources += size
        elif code == 0xE1 and body == b"Exif\0\0":
            exif.append(content[place + 10 : end])
        elif code == 0xDA and frame:
            found = find_tag_excess(b"".join(exif)) if len(exif) > 1 else None  # one is short enough
            return _JpegHeader(frame, pixels, components, place) if found is None else f"in its EXIF data {found}"
    return None if len(content) - end < _MIB else "the segments before its pixels are too many or too large"


def _scans_excess(content: bytes, header: _JpegHeader) -> str | None:
    """The scans one by one, each by the components that it is about."""
    scans = scanned = 0
    for number, (code, place) in enumerate(_segments(content, header.scan)):
        if number == _MAX_SEGMENTS:
            return f"it has more than {_MAX_SEGMENTS:,} segments"
        if code == 0xD9:
            return None
        if code == 0xDA and place + 4 < len(content):
            scans, scanned = scans + 1, scanned + header.pixels * content[place + 4]
        if scans > MAX_SCANS or scanned > MAX_SCANNED:
            return (
                f"it has {scans} or more scans of {header.pixels / 1e6:,.1f} megapixels; at most {MAX_SCANS} are "
                f"accepted, of {MAX_SCANNED / 1e6:,.0f} million samples together"
            )
    return None


def _segments(content: bytes, place: int) -> Iterator[tuple[int, int]]:
    """(code, place) of each marker from ``place`` on, by what JPEG decoders skip in between."""
    while (found := _MARKER.search(content, place)) is not None:
        place = found.start()
        code = content[place + 1]
        yield code, place
        place += _size(content, code, place)


def _size(content: bytes, code: int, place: int) -> int:
    return 2 if code in _NO_LENGTH else 2 + max(2, int.from_bytes(content[place + 2 : place + 4], "big"))


def _png_excess(content: bytes) -> str | None:
    if content[12:16] != b"IHDR" or len(content) < 33:
        return "the PNG data are damaged (they do not begin with a header)"
    wide, high, depth, colour = struct.unpack(">IIBB", content[16:26])
    raw = high * (1 + wide * _SAMPLES.get(colour, 4) * depth // 8)
    if wide * high > MAX_PIXELS:
        return None
    most = MAX_DEEP_BYTES if depth == 16 else MAX_RAW_BYTES
    if raw > most:
        return (
            f"its {wide} x {high} pixels take {raw / 1e6:,.0f} MB; at most {most / 1e6:,.0f} MB are accepted, "
            "so save it with 8 bits or smaller"
        )
    if len(content) < raw + raw // 8 + _MIB:
        return None
    coded, place, begun = 0, 33, False
    for _ in range(MAX_READS // 4):
        size, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        if kind == b"IDAT":
            coded, begun = coded + size, True
        elif begun or len(kind) < 4:
            break
        place += 12 + size
    if coded > raw + raw // 8 + _MIB:
        return f"its compressed data take {coded / 1e6:,.0f} MB, its pixels {raw / 1e6:,.0f} MB"
    return None


def _webp_excess(content: bytes) -> str | None:
    kind, size = content[12:16], len(content)
    if kind == b"VP8X" and len(content) > 20 and content[20] & _ANIMATED:
        many = size > _MIB and content.count(b"ANMF") > _MAX_FRAMES
        return f"it has more than {_MAX_FRAMES:,} frames" if many else None
    most = _WEBP_BYTES.get(kind, size)
    if size <= most:
        return None
    return f"its data take {size / 1e6:,.0f} MB; at most {most / 1e6:,.0f} MB are accepted of a WEBP of this kind"
