"""Decoded images kept in a file, for epochs that would decode the same photos again: a record per image, read or made.

What is kept is a function of the image and the transform alone: the finished frame where nothing is cut at random, else
the picture at a working size that holds every crop as finely as it is shown. So a record that is missing, damaged or
has no room on the disk changes no pixel: the image is decoded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Protocol

import torch
from torch import Tensor

from headstart.data.decoding.lazy_image import DecodedImage, LazyImage
from headstart.data.sources.samples import Sample
from headstart.errors import StorageError
from headstart.storage.disk_cache import DiskCache
from headstart.storage.record_file import RecordFile

_FORMAT = 1
_SHAPE_BYTES = 20  # the file's width and height, and the kept height, width and channels, before the pixels
_LIBRARIES = ("headstart", "pillow", "simplejpeg", "torch")  # that decode and resize


class CacheableTransform(Protocol):
    """A transform that knows what of a picture it needs (see ``headstart.data.transforms.transforms``)."""

    @property
    def cached_bytes(self) -> int:
        """How many bytes a usual photo's kept pixels take; larger ones have no record."""

    @property
    def cache_key(self) -> str:
        """Everything that decides the kept pixels but the image."""

    def keep(self, picture: LazyImage) -> DecodedImage:
        """The pixels of a picture that are kept."""

    def from_cached(self, kept: DecodedImage) -> Tensor:
        """The transform of kept pixels, uint8 (C, height, width)."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The pixels that are kept of each sample; without a ``file`` they are made each time."""

    transform: CacheableTransform
    file: RecordFile | None = None

    def pixels(self, position: int, opened: Callable[[], tuple[LazyImage, bool]]) -> Tensor:
        """The transform of the sample's picture, uint8 (C, height, width), by way of what is kept.

        ``opened`` gives the picture, and whether it is the one that was scanned: others are not kept.

        Raises: UnreadableImage: it gives no picture.
        """
        kept = self._read(position)
        if kept is None:
            picture, is_scanned = opened()
            kept = self.transform.keep(picture)
            if is_scanned:
                self._write(position, kept)
        return self.transform.from_cached(kept)

    def close(self) -> None:
        """Close the file; the records stay for other runs."""
        if self.file is not None:
            self.file.close()

    def _read(self, position: int) -> DecodedImage | None:
        if self.file is None:
            return None
        record = torch.empty(self.file.record_bytes, dtype=torch.uint8)
        if not self.file.read(position, record.numpy().data):
            return None
        *size, high, wide, channels = record[:_SHAPE_BYTES].view(torch.int32).tolist()
        pixels = record[_SHAPE_BYTES : _SHAPE_BYTES + high * wide * channels].view(high, wide, channels)
        return DecodedImage(pixels, size=(size[0], size[1]))

    def _write(self, position: int, kept: DecodedImage) -> None:
        pixels = kept.pixels
        if self.file is None or pixels.numel() > self.file.record_bytes - _SHAPE_BYTES:
            return
        record = torch.zeros(self.file.record_bytes, dtype=torch.uint8)
        record[:_SHAPE_BYTES].view(torch.int32).copy_(torch.tensor([*kept.size, *pixels.shape], dtype=torch.int32))
        record[_SHAPE_BYTES : _SHAPE_BYTES + pixels.numel()].view(pixels.shape).copy_(pixels)
        with suppress(StorageError):  # a full disk: it is decoded again next time
            self.file.write(position, record.numpy().data)


def open_decoded_cache(decoded: Decoded, samples: Sequence[Sample], disk_cache: DiskCache, *, about: str) -> Decoded:
    """The cache with its file, new or as an earlier run left it.  Raises: StorageError: there is no room for it."""
    size = _SHAPE_BYTES + decoded.transform.cached_bytes
    facts = {
        "format": _FORMAT, "form": decoded.transform.cache_key, "page": size,
        "images": [sample.digest for sample in samples], "libraries": {name: _version(name) for name in _LIBRARIES},
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    known = {"model": about, "boundary": ["decoded images"], "images": len(samples), "view": 0}
    return replace(decoded, file=disk_cache.open_records(key, count=len(samples), record_bytes=size, about=known))


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:  # simplejpeg has no wheel for every platform
        return ""
