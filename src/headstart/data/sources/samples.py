"""What a source lists, and what of it is trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.data.decoding.decode import printable
from headstart.data.sources.caution import Caution
from headstart.data.sources.source import Record, Source, Split, Stamp
from headstart.errors import DataError
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import Target, TaskKind, TaskSpec

SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits, in lower case, as folders and tables spell them."""

_DECODED = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"}
_DECODED |= {".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".heic", ".heif", ".npy"}
_OTHER = {".jxl", ".tga", ".psd", ".dds", ".exr", ".hdr", ".svg", ".ico"}
IMAGE_SUFFIXES = frozenset(_DECODED | _OTHER)
"""Files that count as images; the ones that cannot be decoded are then named with their reason, not passed over."""
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"\x93NUMPY")
_PASSED_OVER = frozenset({"__macosx", "@eadir", "__pycache__", "lost+found", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a split. ``index`` is its place among the sorted names of all readable images, whatever the split.

    ``target``: the class's number, 0/1 per tag, numbers in original units, or () when there is none; ``stamp``: what
    the source said of the image when it was scanned (see ``headstart.data.reading``).
    """

    record: Record
    index: int
    target: Target
    stamp: Stamp = ()

    @property
    def key(self) -> str:
        """The record's name."""
        return self.record.name

    @property
    def digest(self) -> str:
        """SHA-256 of the image's bytes, where they were scanned."""
        return self.record.digest


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source says, before an image is opened: its records sorted by name. ``names``: classes, tags or targets,
    in output order; ``by_column``: a table has a column for each of them, so that one without a column was not asked
    about; ``cautions``: warnings.
    """

    source: Source
    kind: TaskKind
    names: tuple[str, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...]
    by_column: bool = False
    cautions: tuple[Caution, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Walked:
    """Files under a folder: those that count as images, and the rest, each sorted."""

    images: tuple[Path, ...]
    others: tuple[Path, ...]


def make_target(record: Record, task: TaskSpec) -> Target:
    """What the image answers, as the task's outputs have it."""
    return find_kind(task.kind).make_target(task, record.labels, dict(record.numbers))


def key_of(path: Path, *, root: Path) -> str:
    """The path relative to the root, with "/", as text that can be written anywhere."""
    return printable(path.relative_to(root)).replace(os.sep, "/")


def is_image(path: Path) -> bool:
    """Whether the name says that it is an image or, where it has no suffix, its first bytes."""
    return path.suffix.lower() in IMAGE_SUFFIXES or (not path.suffix and path.is_file() and _begins_as_image(path))


def _begins_as_image(path: Path) -> bool:
    try:
        with path.open("rb") as opened:
            head = opened.read(12)
    except OSError:  # named as unreadable where it is an image by its name
        return False
    return head.startswith(_BEGINNINGS) or (head.startswith(b"RIFF") and head.endswith(b"WEBP"))


def is_passed_over(name: str) -> bool:
    """Whether it is hidden or an operating system's litter."""
    return name.startswith(".") or name.lower() in _PASSED_OVER


def subfolders(folder: Path) -> tuple[Path, ...]:
    """Visible folders directly in it, sorted."""
    return tuple(sorted(child for child in folder.iterdir() if child.is_dir() and not is_passed_over(child.name)))


def walk(folder: Path, *, root: Path) -> Walked:
    """Visible files at any depth.

    Raises:
        DataError: a folder cannot be read, or a link leads to a folder or out of ``root``.
    """
    images: list[Path] = []
    others: list[Path] = []
    check_link(folder, root=root)
    for here, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not is_passed_over(name))
        for name in folders:
            check_link(Path(here, name), root=root)
        for name in sorted(files):
            path = Path(here, name)
            if is_passed_over(name):
                continue
            check_link(path, root=root)
            (images if is_image(path) else others).append(path)
    beside = _find_arrays_beside_pictures(images)
    others, images = others + beside, [path for path in images if path not in set(beside)] if beside else images
    return Walked(images=tuple(sorted(images)), others=tuple(sorted(others)))


def _find_arrays_beside_pictures(images: Sequence[Path]) -> list[Path]:
    """Arrays that are called like a picture beside them: they say something about it, such as landmarks or a mask."""
    arrays = [path for path in images if path.suffix.lower() == ".npy"]
    pictures = {path.with_suffix("") for path in images if path.suffix.lower() != ".npy"} if arrays else set()
    return [path for path in arrays if path.with_suffix("") in pictures]


def check_link(path: Path, *, root: Path) -> None:
    """Refuse a link to a folder or out of the root.

    Raises:
        DataError: it is one.
    """
    if not path.is_symlink() or path == root:
        return
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise DataError(f"{printable(path)} is a link that leads nowhere ({error}); remove it") from error
    if not real.is_relative_to(root.resolve()):
        raise DataError(
            f"{printable(path)} is a link out of {printable(root)}, to {printable(real)}; only files under the data "
            f"folder are read: copy them there, e.g. with cp -rL"
        )
    if real.is_dir():
        raise DataError(
            f"{printable(path)} is a link to a folder, {printable(real)}, whose images would count twice; "
            f"remove the link or copy the folder"
        )


def _refuse(error: OSError) -> None:
    raise DataError(f"{printable(error.filename)} cannot be read: {error.strerror}; give yourself the right to read it")


def some(names: Sequence[str], *, limit: int = 5) -> str:
    """The first few, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
