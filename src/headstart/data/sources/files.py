"""Image files, read with what tells whether one is still the file that it was."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image

from headstart.data.decoding.decode import UnreadableImage, decode_image, printable
from headstart.data.decoding.lazy_image import LazyImage
from headstart.data.sources.source import MAX_BYTES, Record, Stamp
from headstart.errors import DataError

_SETTLED_NS = 3_000_000_000  # file systems count time in steps of up to 2 s (FAT)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Image files by name. ``given``: the folder or table as the user named it; ``root``: the folder from which names
    start.
    """

    given: Path
    root: Path
    listed: tuple[Record, ...]
    paths: Mapping[str, Path]

    @property
    def name(self) -> str:
        """The folder or table, as text."""
        return printable(self.given)

    @property
    def location(self) -> str:
        """The folder from which the names start."""
        return printable(self.root.absolute())

    def records(self) -> Iterable[Record]:
        """The records as they were listed."""
        return self.listed

    def read(self, record: Record) -> bytes:
        """The file's content.  Raises: UnreadableImage: see ``read_file``."""
        return read_file(self.paths[record.name])[0]

    def where(self, record: Record) -> str:
        """The file's path."""
        return printable(self.paths[record.name])

    def stamp(self, record: Record) -> Stamp:
        """The file's size, times of change and inode; empty where there is no such file."""
        try:
            return _stamp(self.paths[record.name].stat())
        except OSError:
            return ()

    def read_stamped(self, record: Record) -> tuple[bytes, Stamp]:
        """The file's content and stamp.  Raises: UnreadableImage: see ``read_file``."""
        return read_file(self.paths[record.name])


def list_as_files(found: Iterable[tuple[Record, Path]], *, given: Path, root: Path) -> Files:
    """The files with their records, sorted by name.

    Raises:
        DataError: two files have one name, once it is written as text.
    """
    ordered = sorted(found, key=lambda pair: pair[0].name)
    for (one, _), (other, path) in pairwise(ordered):
        if one.name == other.name:
            raise DataError(f"{printable(path)}: two files have this name once it is written as text; rename one")
    listed, paths = tuple(record for record, _ in ordered), {record.name: path for record, path in ordered}
    return Files(given=given, root=root, listed=listed, paths=paths)


def read_file(path: Path | str) -> tuple[bytes, Stamp]:
    """The file's content, and its stamp: size, times of change and inode while it was read.

    The stamp is empty where it proves nothing: the file was written to meanwhile, or so shortly before that another
    write could bear the same time.

    Raises:
        UnreadableImage: it is missing, not a plain file, not permitted, empty or larger than 512 MiB.
    """
    file = Path(path)
    try:
        if not file.exists():
            raise UnreadableImage(path, "there is no such file")
        if not file.is_file():
            raise UnreadableImage(path, "it is not a file")
        with file.open("rb", buffering=0) as opened:
            before, now = os.fstat(opened.fileno()), time.time_ns()
            if before.st_size > MAX_BYTES:
                raise UnreadableImage(path, f"the file is larger than {MAX_BYTES >> 20} MiB")
            content = opened.readall()
            after = os.fstat(opened.fileno())
    except OSError as error:
        raise UnreadableImage(path, f"the file cannot be read: {error.strerror or error}") from error
    if not content:
        raise UnreadableImage(path, "the file is empty")
    settled = now - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS
    return content, _stamp(after) if settled and _stamp(before) == _stamp(after) else ()


def _stamp(facts: os.stat_result) -> Stamp:
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def read_image(path: Path | str, *, channels: int = 3) -> Image.Image:
    """8-bit RGB (L for one channel) picture of the file, the right way up; transparent parts are white.

    Raises:
        UnreadableImage: the file gives no picture; ``reason`` says why.
    """
    return decode_image(read_file(path)[0], where=str(path), channels=channels)


def open_picture(path: Path | str, *, channels: int = 3) -> LazyImage:
    """The file, to be decoded when it is shown.  Raises: UnreadableImage: it gives no picture."""
    return LazyImage(read_file(path)[0], where=str(path), channels=channels)
