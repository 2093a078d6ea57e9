"""Images that a caller gives one by one: paths, folders, bytes of files, Pillow's images, arrays and tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from headstart.config.home import expand_home
from headstart.data.decoding.decode import encode_image, printable
from headstart.data.decoding.tiff_values import make_tiff
from headstart.data.sources.files import read_file
from headstart.data.sources.samples import some, walk
from headstart.data.sources.source import Record
from headstart.errors import DataError

AnyImage = str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Tensor
"""A path to an image or to a folder of images, a file's bytes, a picture, uint8 pixels (H, W, 3), or numbers (H, W, C)
of other bands."""
AnyImages = AnyImage | Iterable[AnyImage]

_KINDS = (str, Path, bytes, bytearray, memoryview, Image.Image, np.ndarray, Tensor)
_NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_ACCEPTED = (
    "accepted are a path, a folder, the bytes of an image file, a PIL image, and a NumPy array or torch tensor of "
    "uint8 pixels (H, W, 3); for a model of other bands, numbers (H, W, C)"
)


@dataclass(frozen=True, kw_only=True)
class GivenImages:
    """Images that were given one by one: ``listed`` in that order, the ``paths`` of files and the ``encoders`` of those
    in memory, both by name; ``name``: how messages call all of it.
    """

    listed: tuple[Record, ...]
    paths: Mapping[str, Path]
    encoders: Mapping[str, Callable[[], bytes]]
    name: str = "images"

    def records(self) -> Iterable[Record]:
        """The records in the order in which the images were given."""
        return self.listed

    def read(self, record: Record) -> bytes:
        """The file's content, or a file of what is in memory.  Raises: UnreadableImage."""
        path = self.paths.get(record.name)
        return self.encoders[record.name]() if path is None else read_file(path)[0]

    def digest(self) -> str:
        """The SHA-256 of what was given, in order: names, with size and time of each file and the bytes of what is in
        memory, so that it is another one once an image has changed.
        """
        found = hashlib.sha256()
        for record in self.listed:
            path, state = self.paths.get(record.name), b"gone"
            if path is None:
                state = hashlib.sha256(self.encoders[record.name]()).digest()
            else:
                with suppress(OSError):  # it vanished since it was listed
                    stat = path.stat()
                    state = f"{stat.st_size} {stat.st_mtime_ns}".encode()
            found.update(record.name.encode("utf-8", "surrogateescape") + b"\0" + state + b"\0")
        return found.hexdigest()

    def where(self, record: Record) -> str:
        """The path, or the place among what was given, such as ``images[2]``."""
        return printable(self.paths.get(record.name, record.name))


def list_images(images: AnyImages) -> GivenImages:
    """One record per image, in the order given; a folder stands for the images in it at any depth, sorted.

    A file's name is its path as text, in which backslashes are doubled where it would be another file's. What is in
    memory has its place as its name: ``images[2]``, or ``image`` where it was given alone.

    Raises:
        DataError: an image is of no accepted kind, a path does not exist, or there is no image.
    """
    alone = isinstance(images, _KINDS) or not isinstance(images, Iterable)
    given = [images] if alone else _in_order(images)
    found: list[tuple[Path | None, str]] = []
    encoders: dict[str, Callable[[], bytes]] = {}
    for number, image in enumerate(given):
        if isinstance(image, str | Path):
            found += _list_path(Path(image))
        else:
            where = "image" if alone else f"images[{number}]"
            _check_kind(image, where)
            encoders[where] = partial(_encode, image, where)
            found.append((None, where))
    if not found:
        shown = some([printable(image) for image in given if isinstance(image, str | Path)]) or "an empty list"
        raise DataError(f"no images in {shown}; give image files, or folders that hold some")
    # a file may be called images[2]
    named = [(path, f"./{name}" if path is not None and name in encoders else name) for path, name in found]
    names = _make_distinct_names([name for _, name in named])
    return GivenImages(
        listed=tuple(Record(name=name) for name in names),
        paths={name: path for name, (path, _) in zip(names, named, strict=True) if path is not None},
        encoders=encoders,
    )


def _in_order(images: Any) -> list[Any]:
    if isinstance(images, Mapping | set | frozenset):
        raise DataError(f"images: type {type(images).__name__} has no order of images; give a list. {_ACCEPTED}")
    return list(images)


def _list_path(path: Path) -> list[tuple[Path | None, str]]:
    """The file, or the images in the folder, each with its name."""
    path = expand_home(path)
    if path.is_dir():
        return [(image, f"{path}/{image.relative_to(path).as_posix()}") for image in walk(path, root=path).images]
    if path.exists():
        return [(path, str(path))]
    raise DataError(f"{printable(path.absolute())}: there is no such file or folder")


def _check_kind(image: object, where: str) -> None:
    """Raises: DataError: this is no image, or an array of another shape or type than pixels have."""
    if isinstance(image, bytes | bytearray | memoryview | Image.Image):
        return
    if not isinstance(image, np.ndarray | Tensor):
        raise DataError(f"{where}: type {type(image).__name__} is not an image; {_ACCEPTED}")
    kind, shape = getattr(image.dtype, "name", str(image.dtype)).removeprefix("torch."), tuple(image.shape)
    if len(shape) == 3 and min(shape) > 0 and (kind == "uint8" if shape[2] == 3 else _has_bands(kind, shape)):
        return
    word = "tensor" if isinstance(image, Tensor) else "array"
    raise DataError(f"{where}: {word} of {kind} {shape}; {_ACCEPTED}{_remedy(kind, shape)}")


def _has_bands(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether these are numbers (H, W, C); a picture of one or three pixels in height has its channels first."""
    return kind in _NUMBERS and shape[0] not in (1, 3)


def _remedy(kind: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return "; a batch is given as list(images)"
    if len(shape) == 3 and shape[0] in (1, 3) and shape[2] != 3:
        return "; channels go last: NumPy's transpose(1, 2, 0), torch's permute(1, 2, 0)"
    if len(shape) == 2:
        return "; a grey picture is given as PIL.Image.fromarray(pixels)"
    return "; values run from 0 to 255, before any normalisation" if kind != "uint8" else ""


def _encode(image: Any, where: str) -> bytes:
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray) and image.shape[2] != 3:
        return make_tiff(image)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    return encode_image(image, where=where) if isinstance(image, Image.Image) else bytes(image)


def _make_distinct_names(names: Sequence[str]) -> list[str]:
    """The names as texts: those of different names differ, also where one holds the letters that stand for a byte of
    another.
    """
    texts = [printable(name) for name in names]
    if len(set(texts)) == len(set(names)):
        return texts
    return [printable(name.replace("\\", "\\\\")) for name in names]
