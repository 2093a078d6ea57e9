"""The bytes of an image that was scanned, held against what the scan found.

A file that was rewritten since would be trained on, or kept for later runs, under the old picture's name. Whatever is
to be kept is held against the scan's SHA-256 (0.5 microseconds per kB). What is only trained on is held against the
file's stamp, read from the open file in 2 microseconds: every write changes it; where it differs, the SHA-256 decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.data.decoding.decode import FileRead, UnreadableImage, printable, read_file
from headstart.data.decoding.lazy_image import LazyImage, stack_images
from headstart.data.sources.samples import Sample
from headstart.errors import RunError

_SHOWN = 16  # hexadecimal digits of a SHA-256, in messages


class ChangedImage(RunError):
    """A file is not what it was when it was scanned; ``problem`` is a phrase."""

    def __init__(self, path: Path | str, problem: str) -> None:
        self.path = Path(path)
        self.problem = problem
        super().__init__(
            f"{printable(path)}: {problem}; put the file back as it was and go on with --resume (resume=True), or "
            "start a new run on the files as they are now with another --out"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.problem)


class ChangedFiles:
    """The files that were used as they are now, not as they were scanned; each is told once."""

    def __init__(self) -> None:
        self._untold: list[str] = []
        self._paths: set[Path] = set()

    def __contains__(self, path: Path) -> bool:
        return path in self._paths

    def __bool__(self) -> bool:
        return bool(self._paths)

    def add(self, sample: Sample, digest: str) -> None:
        """This sample's file now has this SHA-256."""
        if sample.path not in self._paths:
            self._paths.add(sample.path)
            change = describe_change(sample, digest)
            self._untold.append(f"data: {printable(sample.path)}: {change}; used as it is now, and kept in no cache")

    def news(self) -> list[str]:
        """Sentences on the files that were found since this was last asked."""
        found, self._untold = self._untold, []
        return found


def describe_change(sample: Sample, digest: str) -> str:
    """How a message says that the file has changed."""
    was, now = sample.content[:_SHOWN], digest[:_SHOWN]
    return f"the file has changed since it was read first (its SHA-256 was {was}..., now it is {now}...)"


def read_sample(sample: Sample) -> FileRead:
    """The bytes of the sample's image, from its file or from memory.  Raises: UnreadableImage: there are none."""
    return read_file(sample.path) if sample.encode is None else FileRead(sample.encode(), ())


def open_image_as_scanned(sample: Sample, *, channels: int, stored: bool, stops: bool) -> tuple[LazyImage, str]:
    """The sample's picture, and the SHA-256 of its file where that is not the scanned one, else "".

    ``stored``: what is made of it is to be kept, so that the SHA-256 is compared whatever the stamp says. ``stops``:
    another file than the scanned one is an error. A sample that was not scanned is only read.

    Raises: UnreadableImage: it gives no picture. ChangedImage: see ``stops``.
    """
    read, digest = read_sample(sample), ""
    if sample.content and (stored or not read.stamp or read.stamp != sample.stamp):
        found = hashlib.sha256(read.content).hexdigest()
        digest = found if found != sample.content else ""
    if digest and stops:
        raise ChangedImage(sample.path, describe_change(sample, digest))
    return LazyImage(read.content, path=sample.path, channels=channels), digest


def sendable(error: UnreadableImage | ChangedImage, sample: Sample) -> UnreadableImage | ChangedImage:
    """The error without its traceback, which does not cross processes. A file that was scanned could be read then."""
    if isinstance(error, ChangedImage):
        return ChangedImage(error.path, error.problem)
    if sample.content:
        return ChangedImage(error.path, f"{error.reason}, and it could be read when the run began")
    return UnreadableImage(error.path, error.reason)


ImageRead = tuple[Tensor, Tensor, str] | UnreadableImage | ChangedImage
"""Pixels (C, H, W), the numbers (N,) of changes that are left to the device, and the file's SHA-256 where it has
changed; or why there are none.
"""
_Digests = tuple[tuple[int, str], ...]  # (row, SHA-256) of files that have changed


def stack_read(read: Sequence[ImageRead]) -> tuple[*tuple[Tensor, ...], _Digests] | UnreadableImage | ChangedImage:
    """Pixels (B, C, H, W), where there are some, numbers (B, N), and what has changed; or the first image's error.

    Stacked in the worker: each tensor that crosses processes holds a file descriptor, of which there may be 1,024.
    """
    failed = next((one for one in read if isinstance(one, Exception)), None)
    if failed is not None:
        return failed
    there = [one for one in read if not isinstance(one, Exception)]
    pixels, numbers = stack_images([one[0] for one in there]), torch.stack([one[1] for one in there])
    digests = tuple((row, one[2]) for row, one in enumerate(there) if one[2])
    return (pixels, numbers, digests) if numbers.numel() else (pixels, digests)
