"""The seven durable operations that all of ``storage`` is made of; injectable, so that a test can enumerate every state
that a crash can leave.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from headstart.storage.buffers import Content, as_buffers


class Disk(Protocol):
    """The seven durable operations.  Each raises OSError, whose ``filename`` is the path."""

    def write(self, path: Path, data: Content) -> None:
        """Create or overwrite a file."""

    def fsync(self, path: Path) -> None:
        """Make a file's contents survive a crash."""

    def fsync_dir(self, path: Path) -> None:
        """Make a folder's names survive a crash."""

    def rename(self, source: Path, target: Path) -> None:
        """Move within one file system, replacing a file at the target."""

    def link(self, source: Path, target: Path) -> None:
        """Give a file one more name, on the same file system."""

    def mkdir(self, path: Path) -> None:
        """Create one folder, if it is not there."""

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with all that is in it."""


class LocalDisk:
    """The operations on the real file system."""

    def write(self, path: Path, data: Content) -> None:
        """Create or overwrite a file."""
        with _add_path_to_error(path), open(path, "wb", opener=open_plainly) as file:
            file.writelines(as_buffers(data))

    def fsync(self, path: Path) -> None:
        """Make a file's contents survive a crash."""
        with _add_path_to_error(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def fsync_dir(self, path: Path) -> None:
        """Make a folder's names survive a crash."""
        self.fsync(path)

    def rename(self, source: Path, target: Path) -> None:
        """Move within one file system, replacing a file at the target."""
        with _add_path_to_error(target):
            source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file one more name, on the same file system."""
        with _add_path_to_error(target):
            os.link(source, target, follow_symlinks=False)

    def mkdir(self, path: Path) -> None:
        """Create one folder, if it is not there."""
        with _add_path_to_error(path):
            path.mkdir(exist_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with all that is in it."""
        with _add_path_to_error(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


DISK = LocalDisk()


@contextmanager
def _add_path_to_error(path: Path) -> Iterator[None]:
    """Within, an OS error gets the path: writing and syncing do not name it by themselves."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def open_plainly(path: str, flags: int) -> int:
    """A descriptor of a plain file: a link in a folder from elsewhere could lead anywhere, a pipe would wait."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, and links in a run folder are not followed", path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file", path)
    return descriptor
