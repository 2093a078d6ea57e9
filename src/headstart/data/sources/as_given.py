"""Images that a caller gives one by one: paths, folders, bytes of files, Pillow's images, arrays and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from headstart.data.decoding.decode import encode_image, printable
from headstart.data.sources.samples import Sample, some, walk
from headstart.errors import DataError

AnyImage = str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Tensor
"""A path to an image or to a folder of images, a file's bytes, a picture, or uint8 pixels (H, W, 3)."""
AnyImages = AnyImage | Iterable[AnyImage]

_KINDS = (str, Path, bytes, bytearray, memoryview, Image.Image, np.ndarray, Tensor)
_ACCEPTED = (
    "accepted are a path, a folder, the bytes of an image file, a PIL image, and a NumPy array or torch tensor of "
    "uint8 pixels (H, W, 3)"
)


def list_images(images: AnyImages) -> tuple[Sample, ...]:
    """One sample per image, in the order given; a folder stands for the images in it at any depth, sorted.

    A file's key is its path as text, in which backslashes are doubled where it would be another file's. What is in
    memory has its place as its key: ``images[2]``, or ``image`` where it was given alone.

    Raises:
        DataError: an image is of no accepted kind, a path does not exist, or there is no image.
    """
    alone = isinstance(images, _KINDS) or not isinstance(images, Iterable)
    given = [images] if alone else _in_order(images)
    found: list[tuple[Path, str]] = []
    encoders: dict[int, Callable[[], bytes]] = {}  # by the place of an image that is in memory
    for number, image in enumerate(given):
        if isinstance(image, str | Path):
            found += _list_path(Path(image))
        else:
            where = "image" if alone else f"images[{number}]"
            _check_kind(image, where)
            encoders[len(found)] = partial(_encode, image, where)
            found.append((Path(where), where))
    if not found:
        shown = some([printable(image) for image in given if isinstance(image, str | Path)]) or "an empty list"
        raise DataError(f"no images in {shown}; give image files, or folders that hold some")
    return tuple(
        Sample(path=path, key=key, index=place, target=(), encode=encoders.get(place))
        for place, ((path, _), key) in enumerate(zip(found, _make_distinct_names(found), strict=True))
    )


def _in_order(images: Any) -> list[Any]:
    if isinstance(images, Mapping | set | frozenset):
        raise DataError(f"images: type {type(images).__name__} has no order of images; give a list. {_ACCEPTED}")
    return list(images)


def _list_path(path: Path) -> list[tuple[Path, str]]:
    """The file, or the images in the folder, each with its name."""
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
    kind, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
    if kind == "uint8" and len(shape) == 3 and shape[2] == 3 and min(shape) > 0:
        return
    word = "tensor" if isinstance(image, Tensor) else "array"
    raise DataError(f"{where}: {word} of {kind} {shape}; {_ACCEPTED}{_remedy(kind, shape)}")


def _remedy(kind: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return "; a batch is given as list(images)"
    if len(shape) == 3 and shape[0] == 3 != shape[2]:
        return "; channels go last: NumPy's transpose(1, 2, 0), torch's permute(1, 2, 0)"
    if len(shape) == 2:
        return "; a grey picture is given as PIL.Image.fromarray(pixels)"
    return "; values run from 0 to 255, before any normalisation" if kind != "uint8" else ""


def _encode(image: Any, where: str) -> bytes:
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    return encode_image(image, path=where) if isinstance(image, Image.Image) else bytes(image)


def _make_distinct_names(files: Sequence[tuple[Path, str]]) -> list[str]:
    """Texts for (path, name): those of different names differ, also where one holds the letters that stand for a byte
    of another.
    """
    texts = [printable(name) for _, name in files]
    if len(set(texts)) == len({name for _, name in files}):
        return texts
    return [printable(name.replace("\\", "\\\\")) for _, name in files]
