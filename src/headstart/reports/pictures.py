"""Which images a report shows, and their thumbnails as data URIs."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from headstart.data.decoding.arrays import ORDERS
from headstart.data.decoding.decode import UnreadableImage, decode_bands, decode_image
from headstart.data.sources.files import read_file
from headstart.reports.run_record import RunRecord
from headstart.tasks.rows import Row, cell

SIDE = 160  # pixels of a thumbnail's longer side
MOST = 12  # pictures in each of the two galleries
_UNKNOWN = ""  # in the place of a SHA-256: runs of earlier versions have none
_MOST_BYTES = 300_000  # of data URIs in each of the two

ReadImage = Callable[[str], bytes | None]
"""Gives the bytes of an image by its name, or None where there is none.  Raises: UnreadableImage."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image: ``uri`` is None when there is a ``problem``; ``right`` is None for numbers."""

    key: str
    truth: str
    prediction: str
    note: str
    right: bool | None
    uri: str | None = None
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Gallery:
    """The worst mistakes first, and images spread evenly over the others."""

    worst: tuple[Picture, ...]
    samples: tuple[Picture, ...]


def gallery(record: RunRecord, rows: Sequence[Row], *, read: ReadImage | None = None) -> Gallery:
    """At most 12 of the worst mistakes of these predictions and 12 others, with thumbnails where the images can still
    be read: by ``read``, else as files of the folders that the run names.
    """
    readers: list[ReadImage] = [
        *([] if read is None else [read]),
        *(partial(_read_file_below, root) for root in _roots(record)),
    ]
    badness = [record.kind.rate_mistake(row, record.plan["task"]) for row in rows]
    wrong = [place for place in range(len(rows)) if badness[place] > 0]
    worst = sorted(wrong, key=lambda place: (-badness[place], place))[:MOST]
    rest = [place for place in range(len(rows)) if place not in set(worst)]
    chosen = [rest[i * len(rest) // MOST] for i in range(MOST)] if len(rest) > MOST else rest
    return Gallery(
        _pictures(record, [rows[i] for i in worst], readers), _pictures(record, [rows[i] for i in chosen], readers)
    )


def _pictures(
    record: RunRecord, rows: Sequence[Mapping[str, str]], readers: Sequence[ReadImage]
) -> tuple[Picture, ...]:
    bytes_left = _MOST_BYTES
    pictures = []
    for row in rows:
        picture = _picture(record, row, readers)
        if picture.uri and len(picture.uri) > bytes_left:
            picture = _caption_picture(record, row, problem="left out to keep this file small")
        bytes_left -= len(picture.uri or "")
        pictures.append(picture)
    return tuple(pictures)


def _picture(record: RunRecord, row: Mapping[str, str], readers: Sequence[ReadImage]) -> Picture:
    name, problem = cell(row, "id"), "no longer where it was"
    for read in readers:
        try:
            content = read(name)
            if content is None:
                continue
            if row.get("sha256", _UNKNOWN) in (_UNKNOWN, hashlib.sha256(content).hexdigest()):
                return _make_picture(record, row, _decode(content, name, record))
            problem = "another picture than it was"
        except UnreadableImage as error:
            problem = error.reason
    return _caption_picture(record, row, problem=problem)


def _decode(content: bytes, name: str, record: RunRecord) -> Image.Image:
    """The picture as the model saw it; of many bands the first three."""
    form, levels = record.plan.get("preprocess", {}), _read_levels(record)
    means, axes = form.get("mean", ()), next((each for each in ORDERS if each == form.get("axes")), None)
    if not isinstance(means, list) or len(means) in (1, 3):
        return decode_image(content, where=name, levels=levels, axes=axes)
    bands = decode_bands(content, where=name, channels=len(means), levels=levels, axes=axes)
    return Image.fromarray(np.ascontiguousarray(bands[:, :, :3] if len(means) > 3 else bands[:, :, 0]))


def _read_levels(record: RunRecord) -> tuple[float, float] | None:
    """The stored values that became black and white, as plan.json has them."""
    match record.plan.get("preprocess", {}):
        case {"levels": [float() | int() as low, float() | int() as high]} if low < high:
            return float(low), float(high)
    return None


def _read_file_below(root: Path, name: str) -> bytes | None:
    """The file of this name.  Raises: UnreadableImage: it cannot be read, or its name leads out of the folder."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UnreadableImage(name, "its name leads out of the data folder")
    path = root / name
    return read_file(path)[0] if path.is_file() else None


def _make_picture(record: RunRecord, row: Mapping[str, str], image: Image.Image) -> Picture:
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return _caption_picture(record, row, uri=uri, size=image.size)


def _caption_picture(
    record: RunRecord,
    row: Mapping[str, str],
    *,
    uri: str | None = None,
    size: tuple[int, int] = (0, 0),
    problem: str = "",
) -> Picture:
    truth, prediction, note, right = record.kind.describe_row(row, record.names)
    return Picture(
        key=cell(row, "id"),
        truth=truth,
        prediction=prediction,
        note=note,
        right=right,
        uri=uri,
        width=size[0],
        height=size[1],
        problem=problem,
    )


def _roots(record: RunRecord) -> list[Path]:
    """Folders that ids may start from: the one of the run's images, then where runs of earlier versions had them. None
    where the run says that its images were no files of one folder.
    """
    root = record.plan.get("data", {}).get("root", "")
    if root is None:
        return []
    source = Path(str(record.plan.get("data", {}).get("source", "")))
    options = record.config.get("data")
    images = options.get("images") if isinstance(options, dict) else None
    asked = [Path(images)] if isinstance(images, str) and images not in ("", "null", "~") else []
    recorded = [Path(root)] if isinstance(root, str) and root else []
    return [*dict.fromkeys([*recorded, *asked, source, source.parent, source.parent / "images"])]
