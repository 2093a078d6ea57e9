"""Which validation images a report shows, and their thumbnails as data URIs."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from headstart.data.decoding.decode import UnreadableImage, decode_image, read_bytes
from headstart.reports.run_record import RunRecord
from headstart.tasks.rows import cell

SIDE = 160  # pixels of a thumbnail's longer side
MOST = 12  # pictures in each of the two galleries
_UNKNOWN = ""  # in the place of a SHA-256: runs of earlier versions have none
_MOST_BYTES = 300_000  # of data URIs in each of the two


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One validation image: ``uri`` is None when there is a ``problem``; ``right`` is None for numbers."""

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


def gallery(record: RunRecord) -> Gallery:
    """At most 12 of the worst mistakes and 12 others, with thumbnails where the images can still be read."""
    rows = record.predictions
    badness = [record.kind.rate_mistake(row, record.plan["task"]) for row in rows]
    wrong = [place for place in range(len(rows)) if badness[place] > 0]
    worst = sorted(wrong, key=lambda place: (-badness[place], place))[:MOST]
    rest = [place for place in range(len(rows)) if place not in set(worst)]
    chosen = [rest[i * len(rest) // MOST] for i in range(MOST)] if len(rest) > MOST else rest
    return Gallery(_pictures(record, [rows[i] for i in worst]), _pictures(record, [rows[i] for i in chosen]))


def _pictures(record: RunRecord, rows: Sequence[Mapping[str, str]]) -> tuple[Picture, ...]:
    roots = _roots(record)
    left = _MOST_BYTES
    pictures = []
    for row in rows:
        picture = _picture(record, row, roots)
        if picture.uri and len(picture.uri) > left:
            picture = _caption_picture(record, row, problem="left out to keep this file small")
        left -= len(picture.uri or "")
        pictures.append(picture)
    return tuple(pictures)


def _picture(record: RunRecord, row: Mapping[str, str], roots: Sequence[Path]) -> Picture:
    key = PurePosixPath(cell(row, "id"))
    if key.is_absolute() or ".." in key.parts:
        return _caption_picture(record, row, problem="its name leads out of the data folder")
    problem = "no longer where it was"
    for path in (root / key for root in roots if (root / key).is_file()):
        try:
            content = read_bytes(path)
            if row.get("sha256", _UNKNOWN) in (_UNKNOWN, hashlib.sha256(content).hexdigest()):
                return _make_picture(record, row, decode_image(content, path=path))
            problem = "another picture than it was"
        except UnreadableImage as error:
            problem = error.reason
    return _caption_picture(record, row, problem=problem)


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
    """Folders that ids may start from: the one of the run's images, then where runs of earlier versions had them."""
    root = record.plan.get("data", {}).get("root")
    source = Path(str(record.plan.get("data", {}).get("source", "")))
    options = record.config.get("data")
    images = options.get("images") if isinstance(options, dict) else None
    given = [Path(images)] if isinstance(images, str) and images not in ("", "null", "~") else []
    known = [Path(root)] if isinstance(root, str) else []
    return [*dict.fromkeys([*known, *given, source, source.parent, source.parent / "images"])]
