"""The old name of ``headstart.data.decoding.decode``, for scripts that import it; images are files here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from headstart.data.decoding import decode
from headstart.data.decoding.decode import UnreadableImage as UnreadableImage
from headstart.data.sources import files
from headstart.data.sources.files import read_image as read_image


@dataclass(frozen=True)
class FileRead:
    """A file's content and stamp."""

    content: bytes
    stamp: tuple[int, ...]


def read_file(path: Path | str) -> FileRead:
    """Read a file as ``headstart.data.sources.files.read_file`` does."""
    return FileRead(*files.read_file(path))


def read_bytes(path: Path | str) -> bytes:
    """The file's content."""
    return files.read_file(path)[0]


def check_image(content: bytes, *, path: Path | str) -> None:
    """Check an image as ``headstart.data.decoding.decode.check_image`` does."""
    decode.check_image(content, where=str(path))


def decode_image(content: bytes, *, path: Path | str, channels: int = 3, reduced: int = 1) -> Image.Image:
    """Decode an image as ``headstart.data.decoding.decode.decode_image`` does."""
    return decode.decode_image(content, where=str(path), channels=channels, reduced=reduced)
