"""Whether two pictures are one that was resized or saved again: a fingerprint to find such pairs by, and a comparison.

A fingerprint is 64 bits of what a picture shows from far away: of its grey values at 16 x 16, the sign of each of the
64 slowest waves of the cosine transform. Of 2,940 photos of 64 to 1,024 pixels, resized to between half and twice the
size and saved as a PNG or a JPEG of quality 40 to 95, 99.8 % kept all but 8 of the bits or fewer; of the 459 million
pairs of 30,299 different photos one was as close. Which of the close pairs show one picture, the comparison says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.data.decoding.decode import examine_image
from headstart.data.decoding.marks import Mark
from headstart.data.decoding.raster import Measured
from headstart.data.decoding.reduced import ReducedImage

Floats = NDArray[np.float32]

FINGERPRINT_BITS = 64
_SIDE = 16  # pixels a side of what a fingerprint is of
_LEAST_SIDE = 32  # pixels: smaller images, e.g. digits of 8 x 8, look alike without being copies
_LEAST_CONTRAST = 1.0  # grey levels: the bits of a plain picture are noise

_FINE = 128  # pixels a side of what is compared
_COARSE_OF, _FINE_OF = (32, 0.5), (_FINE, 0.5)  # the most pixels a side, and the share of the picture's own
_BLOCKS = 8  # a side, in which differences are looked for
_WINDOW = 5  # pixels a side of the mean that is taken away, so that edges remain
_LEAST_LIKENESS = 0.9  # correlation of the edges; 0.94 and more in 1,000 copies, at most 0.65 in second shots
_MOST_LEVELS = 16.0  # by which the mean brightness or colour of a block may differ, of 255
_MOST_DIFFERENT, _MOST_BEYOND = 0.85, 0.15  # of a block's edges: the share that differs, and that beyond 2.5 medians


def _waves() -> Floats:
    """Rows that give the 64 slowest waves of 16 x 16 values, the constant one left out, in levels (64, 256)."""
    places, waves = np.arange(_SIDE) + 0.5, np.arange(_SIDE)
    cosines = np.cos(np.pi / _SIDE * np.outer(waves, places)) * np.sqrt(2 / _SIDE)  # (wave, place)
    cosines[0] /= np.sqrt(2)
    slowest = sorted(((u, v) for u in waves for v in waves if u + v > 0), key=lambda uv: (sum(uv), max(uv), uv))
    rows = [np.outer(cosines[u], cosines[v]).ravel() / _SIDE for u, v in slowest[:FINGERPRINT_BITS]]
    return np.asarray(rows, dtype=np.float32)


_WAVES = _waves()


def shrink_image(content: bytes, *, where: str) -> tuple[bytes, Measured | None, tuple[Mark, ...]]:
    """The 16 x 16 grey values that a fingerprint is of, none where the picture is too small to have one;
    what ``measure_image`` finds, and what decoding changes, in the same look at it.

    Raises:
        UnreadableImage: the bytes give no picture.
    """
    found = examine_image(content, where=where, least=_SIDE)
    if found.reduced is None or min(found.reduced.size) < _LEAST_SIDE:
        return b"", found.measured, found.marks
    small = _resize(found.reduced, _SIDE, Image.Resampling.BILINEAR, mode="L")
    return small.tobytes(), found.measured, found.marks


def make_fingerprints(shrunk: Sequence[bytes]) -> list[str]:
    """The fingerprint of each image of which ``shrink_image`` gave the values, as 16 hexadecimal digits; empty where
    there are none, or the picture is too plain. Of many at once: one by one they would take longer than their JPEGs.
    """
    there = [values for values in shrunk if values]
    levels = np.frombuffer(b"".join(there), dtype=np.uint8).astype(np.float32).reshape(len(there), _SIDE**2)
    waves = levels @ _WAVES.T  # (N, 64)
    plain = (waves**2).sum(axis=1) < _LEAST_CONTRAST**2
    bits = np.packbits(waves > 0, axis=1)
    texts = iter("" if flat else row.tobytes().hex() for flat, row in zip(plain, bits, strict=True))
    return [next(texts) if values else "" for values in shrunk]


def _resize(reduced: ReducedImage, side: int, how: Image.Resampling, *, mode: str) -> Image.Image:
    picture, extent = reduced.picture.convert(mode), reduced.extent
    if (*picture.size, *extent) == (side,) * 4:  # as of photos of 128 pixels: half of all time here
        return picture
    gap = 3.0 if min(extent) > 8 * side else None  # of large pictures only it spares time
    return picture.resize((side, side), how, (0, 0, *extent), reducing_gap=gap)


@dataclass(frozen=True)
class Sketch:
    """What is compared of a picture, however large it is: at most 32 x 32 pixels in YCbCr and 128 x 128 grey ones."""

    coarse: Image.Image
    fine: Image.Image


def sketch_image(content: bytes, *, where: str) -> Sketch:
    """What is compared of an image file's bytes.  Raises: UnreadableImage: they give no picture."""
    reduced = examine_image(content, where=where, least=2 * _FINE).reduced
    assert reduced is not None, f"{where} had a fingerprint"
    least = min(reduced.size)
    coarse, fine = (max(_BLOCKS, min(most, int(share * least))) for most, share in (_COARSE_OF, _FINE_OF))
    return Sketch(
        coarse=_resize(reduced, coarse, Image.Resampling.HAMMING, mode="YCbCr"),
        fine=_resize(reduced, fine, Image.Resampling.HAMMING, mode="L"),
    )


def show_one_picture(one: Sketch, other: Sketch) -> bool:
    """Whether both are of one picture that was resized or saved again: brightness, colours and edges agree everywhere,
    but for what saving changes, and that is spread over the picture.
    """
    coarse = _same_size(one.coarse, other.coarse)  # (side, side, 3) each
    grey, colour = _block_means(coarse[0] - coarse[1]), _block_means(coarse[0] - coarse[1], blocks=_BLOCKS // 2)
    if max(np.abs(grey[:, :, 0]).max(), np.abs(colour).max()) > _MOST_LEVELS:  # JPEG has half as many pixels of colour
        return False
    edges, others = (_edges(values[:, :, 0]) for values in coarse)
    scale = np.sqrt((edges**2).sum() * (others**2).sum())
    if scale < _LEAST_CONTRAST or (edges * others).sum() < _LEAST_LIKENESS * scale:
        return False
    edges, others = (_edges(values[:, :, 0]) for values in _same_size(one.fine, other.fine))
    strength = np.maximum(_block_means(edges[:, :, None] ** 2), _block_means(others[:, :, None] ** 2))
    gone = _block_means((edges - others)[:, :, None] ** 2)
    share = np.sqrt(gone) / (np.sqrt(strength) + 0.3 * np.sqrt(strength.mean()) + 1)  # so that plain blocks say little
    beyond = _MOST_BEYOND + 0.3 * max(0.0, 1 - len(edges) / (_FINE / 2))  # of a small picture, blocks are a few pixels
    return bool(share.max() <= min(_MOST_DIFFERENT, 2.5 * np.median(share) + beyond))


def _same_size(one: Image.Image, other: Image.Image) -> list[Floats]:
    """Both with as many pixels as the smaller one, (side, side, C)."""
    size = min(one.size, other.size)
    pictures = [part if part.size == size else part.resize(size, Image.Resampling.HAMMING) for part in (one, other)]
    return [np.asarray(part, dtype=np.float32).reshape(*size, -1) for part in pictures]


def _block_means(values: Floats, *, blocks: int = _BLOCKS) -> Floats:
    """Means of the values (side, side, C) in so many blocks a side."""
    cuts = np.linspace(0, len(values), blocks + 1).round().astype(int)
    sums = np.add.reduceat(np.add.reduceat(values, cuts[:-1], axis=0), cuts[:-1], axis=1)
    counts = np.outer(np.diff(cuts), np.diff(cuts))
    return np.asarray(sums / counts[:, :, None], dtype=np.float32)


def _edges(values: Floats) -> Floats:
    """The values (side, side) less the mean of 5 x 5 around each."""
    around = np.pad(values, _WINDOW // 2, mode="edge")
    for axis in (0, 1):
        sums = np.cumsum(around, axis=axis, dtype=np.float64)
        ends = np.take(sums, range(_WINDOW - 1, sums.shape[axis]), axis=axis)
        starts = np.take(sums, range(sums.shape[axis] - _WINDOW), axis=axis)
        around = ends - np.concatenate([np.zeros_like(np.take(ends, [0], axis=axis)), starts], axis=axis)
    return np.asarray(values - around / _WINDOW**2, dtype=np.float32)
