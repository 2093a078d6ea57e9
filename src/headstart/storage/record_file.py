"""A file of records of one size, each known to be whole and in its place or not: for what can be computed again.

Behind each record stand a digest of key, number and record, which no record made for another place has, and a checksum.
The first time that a run reads a record it compares both, later the checksum, which sees damage in a quarter of the
time.

Not durable as ``storage`` is, and needs not be: a record that a crash, a full disk or a bad sector damaged is seen when
it is read, and made again. Read with ``pread``: a memory map of a file that is cut short kills the process (SIGBUS).
Several processes may write the same file at once, if equal numbers mean equal records.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from headstart.errors import StorageError

_MARK = b"pag2"  # what was never written is zeros
_DIGEST_BYTES = 16  # of SHA-256, the fastest here that no two records are known for: 2.0 GB/s, BLAKE2b 1.4, CRC-32 7.0
_TAIL = len(_MARK) + 4 + _DIGEST_BYTES
Buffer = bytes | bytearray | memoryview
_T = TypeVar("_T")


def file_bytes(*, count: int, record_bytes: int) -> int:
    """The size of a file with so many records."""
    return count * (record_bytes + _TAIL)


class RecordFile:
    """A file of ``count`` records of ``record_bytes``, numbered from 0; those of another ``key`` are not whole.

    A shared lock on the file says that it is in use.

    Raises: StorageError: there is no room, or the file cannot be opened or written.
    """

    def __init__(self, path: Path, *, count: int, record_bytes: int, key: str) -> None:
        self.path, self.count, self.record_bytes = path, count, record_bytes
        self._key = key.encode()
        self._step = record_bytes + _TAIL
        self._proved = mmap.mmap(-1, max(1, count))  # a byte for each record, shared with processes that are forked
        self._descriptor = _open_sized(path, size=file_bytes(count=count, record_bytes=record_bytes))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and the facts: the file is opened again in the process that it goes to."""
        return partial(type(self), count=self.count, record_bytes=self.record_bytes, key=self._key.decode()), (
            self.path,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the records stay."""
        os.close(self._descriptor)
        self._proved.close()

    def write(self, number: int, record: Buffer) -> None:
        """Write a record."""
        view = memoryview(record).cast("B")
        assert 0 <= number < self.count and len(view) == self.record_bytes, (number, self.count, len(view))
        data: list[Buffer] = [view, _MARK + self._checksum(number, view) + self._digest(number, view)]
        written = _run_explained(self.path, lambda: os.pwritev(self._descriptor, data, number * self._step))
        if written != self._step:
            raise StorageError(f"{self.path}: {written:,} of {self._step:,} bytes written; the disk is full")

    def read(self, number: int, into: bytearray | memoryview) -> bool:
        """Fill ``into`` with a record; False where it was never written, is damaged or belongs elsewhere."""
        view, tail = memoryview(into).cast("B"), bytearray(_TAIL)
        assert 0 <= number < self.count and len(view) == self.record_bytes, (number, self.count, len(view))
        try:
            found = os.preadv(self._descriptor, [view, tail], number * self._step)
        except OSError:  # a bad sector
            return False
        sum_ends = len(_MARK) + 4
        if found != self._step or tail[:sum_ends] != _MARK + self._checksum(number, view):
            return False
        if not self._proved[number]:
            self._proved[number] = tail[sum_ends:] == self._digest(number, view)
        return bool(self._proved[number])

    def missing(self) -> list[int]:
        """The numbers of the records that are not whole; all are read."""
        room = bytearray(self.record_bytes)
        return [number for number in range(self.count) if not self.read(number, room)]

    def expect(self, numbers: Iterable[int]) -> None:
        """Have the system read these records in the background, in the order of the file."""
        if not hasattr(os, "posix_fadvise"):
            return
        for number in sorted(numbers):
            os.posix_fadvise(self._descriptor, number * self._step, self._step, os.POSIX_FADV_WILLNEED)

    def sync(self) -> None:
        """Have everything written reach the disk."""
        _run_explained(self.path, lambda: os.fsync(self._descriptor))

    def _checksum(self, number: int, record: Buffer) -> bytes:
        start = zlib.crc32(b"%s %d" % (self._key, number))
        return zlib.crc32(record, start).to_bytes(4, "little")

    def _digest(self, number: int, record: Buffer) -> bytes:
        digest = hashlib.sha256(b"%s %d\0" % (self._key, number))
        digest.update(record)
        return digest.digest()[:_DIGEST_BYTES]


def _open_sized(path: Path, *, size: int) -> int:
    """A descriptor of the file at this size; its blocks are there before anything is written to them."""

    def make() -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
                _allocate(descriptor, size)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return descriptor

    return _run_explained(path, make)


def _allocate(descriptor: int, size: int) -> None:
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without it: blocks as they come
                raise


def _run_explained(path: Path, action: Callable[[], _T]) -> _T:
    try:
        return action()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
