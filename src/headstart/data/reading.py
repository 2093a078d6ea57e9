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

from headstart.data.decoding.decode import UnreadableImage
from headstart.data.decoding.lazy_image import LazyImage, stack_images
from headstart.data.sources.samples import Sample
from headstart.data.sources.source import Source, read_content
from headstart.errors import RunError
from headstart.models.preprocess import Preprocess
from headstart.wording import option, switch

_SHOWN = 16  # hexadecimal digits of a SHA-256, in messages


class ChangedImage(RunError):
    """An image is not what it was when it was scanned; ``where`` is how messages name it, ``problem`` a phrase."""

    def __init__(self, where: str, problem: str) -> None:
        self.where = where
        self.problem = problem
        super().__init__(
            f"{where}: {problem}; put the file back as it was and go on with {switch('resume')}, or start a new run "
            f"on the files as they are now with another {option('out')}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.problem)

    @property
    def path(self) -> Path:
        """``where`` as a path, for scripts that know images as files."""
        return Path(self.where)


class ChangedFiles:
    """The images that were used as they are now, not as they were scanned; each is told once."""

    def __init__(self) -> None:
        self._untold: list[str] = []
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, sample: Sample, digest: str, *, source: Source) -> None:
        """This sample's image now has this SHA-256."""
        if sample.key not in self._names:
            self._names.add(sample.key)
            change = describe_change(sample, digest)
            self._untold.append(
                f"data: {source.where(sample.record)}: {change}; used as it is now, and kept in no cache"
            )

    def news(self) -> list[str]:
        """Sentences on the images that were found since this was last asked."""
        found, self._untold = self._untold, []
        return found


def describe_change(sample: Sample, digest: str) -> str:
    """How a message says that the file has changed."""
    was, now = sample.digest[:_SHOWN], digest[:_SHOWN]
    return f"the file has changed since it was read first (its SHA-256 was {was}..., now it is {now}...)"


def open_image_as_scanned(
    source: Source, sample: Sample, *, preprocess: Preprocess, stored: bool, stops: bool
) -> tuple[LazyImage, str]:
    """The sample's picture, and the SHA-256 of its bytes where that is not the scanned one, else "".

    ``stored``: what is made of it is to be kept, so that the SHA-256 is compared whatever the stamp says. ``stops``:
    another image than the scanned one is an error. A sample that was not scanned is only read.

    Raises: UnreadableImage: it gives no picture. ChangedImage: see ``stops``.
    """
    (content, stamp), digest = read_content(source, sample.record), ""
    if sample.digest and (stored or not stamp or stamp != sample.stamp):
        found = hashlib.sha256(content).hexdigest()
        digest = found if found != sample.digest else ""
    if digest and stops:
        raise ChangedImage(source.where(sample.record), describe_change(sample, digest))
    where = source.where(sample.record)
    return LazyImage(
        content, where=where, channels=preprocess.channels, levels=preprocess.levels, axes=preprocess.axes
    ), digest


def sendable(error: UnreadableImage | ChangedImage, sample: Sample) -> UnreadableImage | ChangedImage:
    """The error without its traceback, which does not cross processes. An image that was scanned could be read then."""
    if isinstance(error, ChangedImage):
        return ChangedImage(error.where, error.problem)
    if sample.digest:
        return ChangedImage(error.where, f"{error.reason}, and it could be read when the run began")
    return UnreadableImage(error.where, error.reason)


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


Unreadable = tuple[tuple[int, UnreadableImage], ...]
"""Images of a batch that give no picture: the row that each would have had, and why there is none."""


def stack_readable(read: Sequence[ImageRead]) -> tuple[tuple[Tensor, ...], Unreadable] | ChangedImage:
    """What ``stack_read`` gives of the images that can be read, without digests; and those that cannot.

    There are no tensors where none can be read.
    """
    changed = next((one for one in read if isinstance(one, ChangedImage)), None)
    if changed is not None:
        return changed
    damaged = tuple((row, one) for row, one in enumerate(read) if isinstance(one, UnreadableImage))
    there = [one for one in read if not isinstance(one, Exception)]
    if not there:
        return (), damaged
    pixels, numbers = stack_images([one[0] for one in there]), torch.stack([one[1] for one in there])
    return ((pixels, numbers) if numbers.numel() else (pixels,)), damaged
