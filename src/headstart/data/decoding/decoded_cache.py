"""Decoded images kept in a file, for epochs that would decode the same photos again: a page per image, read or made.

What is kept is a function of the image and the transform alone: the finished frame where nothing is cut at random, else
the picture at a working size that holds every crop as finely as it is shown. So a page that is missing, damaged or has
no room on the disk changes no pixel: it is decoded again.
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
        """Of a usual photo's pixels; larger ones have no page."""

    @property
    def cache_key(self) -> str:
        """Everything that decides the kept pixels but the image."""

    def keep(self, picture: LazyImage) -> DecodedImage:
        """What to keep of it."""

    def from_cached(self, kept: DecodedImage) -> Tensor:
        """What the transform makes of them, uint8 (C, height, width)."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The kept pixels of each sample; without a ``file`` they are made each time."""

    transform: CacheableTransform
    file: RecordFile | None = None

    def pixels(self, position: int, opened: Callable[[], tuple[LazyImage, bool]]) -> Tensor:
        """The transform of the sample's picture, uint8 (C, height, width), by way of what is kept.

        ``opened`` gives the picture, and whether it is the one that was scanned: others are not kept.

        Raises: UnreadableImage: it gives no picture.
        """
        found = self._read(position)
        if found is None:
            picture, is_scanned = opened()
            found = self.transform.keep(picture)
            if is_scanned:
                self._write(position, found)
        return self.transform.from_cached(found)

    def close(self) -> None:
        """Close the file; the pages stay for other runs."""
        if self.file is not None:
            self.file.close()

    def _read(self, position: int) -> DecodedImage | None:
        if self.file is None:
            return None
        page = torch.empty(self.file.record_bytes, dtype=torch.uint8)
        if not self.file.read(position, page.numpy().data):
            return None
        *size, high, wide, channels = page[:_SHAPE_BYTES].view(torch.int32).tolist()
        pixels = page[_SHAPE_BYTES : _SHAPE_BYTES + high * wide * channels].view(high, wide, channels)
        return DecodedImage(pixels, size=(size[0], size[1]))

    def _write(self, position: int, kept: DecodedImage) -> None:
        pixels = kept.pixels
        if self.file is None or pixels.numel() > self.file.record_bytes - _SHAPE_BYTES:
            return
        page = torch.zeros(self.file.record_bytes, dtype=torch.uint8)
        page[:_SHAPE_BYTES].view(torch.int32).copy_(torch.tensor([*kept.size, *pixels.shape], dtype=torch.int32))
        page[_SHAPE_BYTES : _SHAPE_BYTES + pixels.numel()].view(pixels.shape).copy_(pixels)
        with suppress(StorageError):  # a full disk: it is decoded again next time
            self.file.write(position, page.numpy().data)


def open_decoded_cache(decoded: Decoded, samples: Sequence[Sample], disk_cache: DiskCache, *, about: str) -> Decoded:
    """With its file, new or as an earlier run left it.  Raises: StorageError: there is no room for it."""
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
