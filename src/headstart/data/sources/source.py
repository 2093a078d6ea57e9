"""What images are to the rest of headstart: records, and a source that gives the bytes of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeGuard, runtime_checkable

from headstart.data.decoding.decode import UnreadableImage
from headstart.errors import DataError

Split = Literal["train", "val", "test"]
Stamp = tuple[int, ...]
"""What changes with every write to a file; empty where it proves nothing."""
MAX_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image as its source lists it, before it is opened.

    Attributes:
        ``name``: What sets it apart from the source's others, e.g. ``cat/1.jpg``; results and reports show it.
        ``labels``: Its class, or any number of tags.
        ``numbers``: What is to be predicted, by target, in original units; the same targets for every record.
        ``split``: train, val or test, where the source says so; then it says so of every record.
        ``group``: Images of one group (patient, video) stay in one split.
        ``digest``: SHA-256 of its bytes, in hexadecimal, once they were scanned.

    Example:
        >>> import headstart as hs
        >>> hs.Record(name="cat/1.jpg", labels=("cat",)).name
        'cat/1.jpg'
    """

    name: str
    labels: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    split: Split | None = None
    group: str | None = None
    digest: str = ""


@runtime_checkable
class Source(Protocol):
    """Where images come from: files, members of a tar, rows of a table, answers over HTTP, arrays in memory.

    Any object with these four is one, for ``hs.train(config, data=source)``, ``hs.open_images``, ``hs.evaluate`` and
    ``hs.audit``. The same name always gives the same bytes. Several threads and processes read at once, each process
    from a copy that it has of the object, so ``read`` opens what it needs.

    Example:
        >>> import headstart as hs
        >>> from pathlib import Path
        >>> class Photos:
        ...     name = "photos"
        ...     def records(self):
        ...         paths = Path("photos").glob("*/*.png")
        ...         return [hs.Record(name=str(path), labels=(path.parent.name,)) for path in paths]
        ...     def read(self, record):
        ...         return Path(record.name).read_bytes()
        ...     def where(self, record):
        ...         return record.name
        >>> isinstance(Photos(), hs.Source), len(hs.audit(Photos()).hashes)
        (True, 16)
    """

    @property
    def name(self) -> str:
        """What the plan and messages call the whole, e.g. ``photos.tar``."""
        ...

    def records(self) -> Iterable[Record]:
        """Return what there is, in any order, without opening an image."""
        ...

    def read(self, record: Record) -> bytes:
        """Return the bytes of an image file: JPEG, PNG, WEBP, GIF, BMP or TIFF.

        Args:
            ``record``: One of ``records``.

        Raises:
            OSError: There are none; messages say why.
        """
        ...

    def where(self, record: Record) -> str:
        """Return how messages name the record, e.g. ``photos.tar: cat/1.jpg``.

        Args:
            ``record``: One of ``records``.
        """
        ...


class StampedSource(Source, Protocol):
    """A source that knows without reading whether an image is the one that it was."""

    @property
    def location(self) -> str:
        """Where all of it lies on this machine: what was found there once is kept under this name."""
        ...

    def stamp(self, record: Record) -> Stamp:
        """The image's stamp as it is now; empty where there is none."""
        ...

    def read_stamped(self, record: Record) -> tuple[bytes, Stamp]:
        """The content, with the stamp of exactly these bytes; empty where another write could bear the same."""
        ...


def is_stamped(source: Source) -> TypeGuard[StampedSource]:
    """Whether the source is a ``StampedSource``; ``isinstance`` takes 27 microseconds to say so, this 0.1."""
    return hasattr(source, "read_stamped") and hasattr(source, "stamp")


def read_content(source: Source, record: Record) -> tuple[bytes, Stamp]:
    """The bytes of the record's image, and their stamp where the source has one.

    Raises: UnreadableImage: there are none, or too many. DataError: the source gives something else than bytes.
    """
    try:
        if is_stamped(source):
            content, stamp = source.read_stamped(record)
        else:
            content, stamp = source.read(record), ()
    except OSError as error:
        where = source.where(record)
        raise UnreadableImage(where, f"the file cannot be read: {error.strerror or error}") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise DataError(
            f"{source.where(record)}: read() of {type(source).__name__} gives type {type(content).__name__}; give the "
            "bytes of an image file, e.g. Path(...).read_bytes()"
        )
    if not content:
        raise UnreadableImage(source.where(record), "the file is empty")
    if len(content) > MAX_BYTES:
        raise UnreadableImage(source.where(record), f"the file is larger than {MAX_BYTES >> 20} MiB")
    return bytes(content), stamp
