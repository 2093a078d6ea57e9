"""TIFFs of any bands and numbers, written by hand."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIGH, WIDE = 21, 18
FORMATS = {"u": 1, "i": 2, "f": 3}


def noise(kind: str, samples: int) -> NDArray[Any]:
    drawn = np.random.default_rng(0).random((HIGH, WIDE, samples))
    return (drawn * (250 if kind.endswith("1") else 3000)).astype(kind)


def tiff(
    values: NDArray[Any], *, planes: bool = False, tile: int = 0, packed: bool = False, predictor: int = 1,
    photometric: int = 1, extra: int | None = None, rows: int = 5,
) -> bytes:  # fmt: skip
    """A TIFF written by hand from (H, W, S), in the byte order of the values."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    high, wide, samples = values.shape
    pieces = []
    for plane in [values[:, :, [place]] for place in range(samples)] if planes else [values]:
        step = (tile, tile) if tile else (rows, wide)
        for top in range(0, high, step[0]):
            for left in range(0, wide, step[1]):
                part = plane[top : top + step[0], left : left + step[1]]
                if tile:
                    part = np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)))
                if predictor == 2:
                    part = np.diff(part, axis=1, prepend=part[:, :1] * 0)
                elif predictor == 3:
                    planar = np.ascontiguousarray(part.astype(part.dtype.newbyteorder(">"))).view(np.uint8)
                    by_byte = planar.reshape(part.shape[0], -1, part.itemsize).swapaxes(1, 2)
                    flat = by_byte.reshape(part.shape[0], -1, part.shape[2])
                    part = np.diff(flat, axis=1, prepend=flat[:, :1] * 0)
                data = part.astype(part.dtype.newbyteorder(order)).tobytes()
                pieces.append(zlib.compress(data) if packed else data)
    tags: dict[int, list[int]] = {
        256: [wide], 257: [high], 258: [8 * values.itemsize] * samples, 259: [8 if packed else 1], 262: [photometric],
        277: [samples], 284: [2 if planes else 1], 317: [predictor], 339: [FORMATS[values.dtype.kind]] * samples,
    }  # fmt: skip
    if extra is not None:
        tags[338] = [extra]
    starts = list(np.cumsum([8, *map(len, pieces[:-1])]).tolist())
    sizes = [len(piece) for piece in pieces]
    tags |= {322: [tile], 323: [tile], 324: starts, 325: sizes} if tile else {273: starts, 278: [rows], 279: sizes}
    body = b"".join(pieces)
    place = 8 + len(body)
    behind, lists, entries = place + 2 + 12 * len(tags) + 4, b"", b""
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            lists, data = lists + data, struct.pack(f"{order}I", behind + len(lists))
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + data
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", place)
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + lists
