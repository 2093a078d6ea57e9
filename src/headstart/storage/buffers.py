"""``Buffers``: parts of a file that are written without being put together first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator


class Buffers:
    """Bytes that follow one another; ``len`` is of all, ``bytes`` puts them together."""

    def __init__(self, *parts: bytes | memoryview) -> None:
        self._views = tuple(memoryview(part) for part in parts)
        assert all(part.nbytes == len(part) for part in self._views), "bytes are counted, not numbers"

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._views)

    def __len__(self) -> int:
        return sum(map(len, self._views))

    def __bytes__(self) -> bytes:
        return b"".join(self._views)


Content = bytes | Buffers
"""What a file contains."""


def as_buffers(content: Content) -> Buffers:
    """The content as buffers, be it one piece or several."""
    return content if isinstance(content, Buffers) else Buffers(content)


def sha256(content: Content) -> str:
    """The SHA-256 of a content in hexadecimal digits."""
    digest = hashlib.sha256()
    for part in as_buffers(content):
        digest.update(part)
    return digest.hexdigest()
