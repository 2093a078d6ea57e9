"""Which validation images a report shows, and their thumbnails as data URIs."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from headstart.data.decoding.decode import UnreadableImage, decode_image, read_bytes
from headstart.reports.run_record import RunRecord
from headstart.tasks.per_class import cell, number
from headstart.tasks.tags import split_tags

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
    badness = [_badness(record, row) for row in rows]
    wrong = [place for place in range(len(rows)) if badness[place] > 0]
    worst = sorted(wrong, key=lambda place: (-badness[place], place))[:MOST]
    rest = [place for place in range(len(rows)) if place not in set(worst)]
    chosen = [rest[i * len(rest) // MOST] for i in range(MOST)] if len(rest) > MOST else rest
    return Gallery(_pictures(record, [rows[i] for i in worst]), _pictures(record, [rows[i] for i in chosen]))


def _badness(record: RunRecord, row: Mapping[str, str]) -> float:
    """How wrong a prediction is: above 0 only where something is wrong."""
    task = record.plan["task"]
    if record.task == "classify":
        wrong = cell(row, "truth") != cell(row, "prediction")
        return max(number(row, "confidence"), 1e-9) if wrong else 0.0
    if record.task == "multilabel":
        if set(split_tags(cell(row, "truth"))) == set(split_tags(cell(row, "prediction"))):
            return 0.0
        return sum(_surprise(row, tag) for tag in task.get("classes", ()))
    scales = list(task.get("std") or ()) if not task.get("log") else []
    total = 0.0
    for place, target in enumerate(task.get("targets", ())):
        scale = scales[place] if place < len(scales) and scales[place] else 1.0
        total += abs(_error(row, target, log=bool(task.get("log")))) / scale
    return total


def _surprise(row: Mapping[str, str], tag: str) -> float:
    probability = number(row, f"p:{tag}")
    given = probability if tag in split_tags(cell(row, "truth")) else 1 - probability
    return -math.log(max(given, 1e-12))


def _error(row: Mapping[str, str], target: str, *, log: bool) -> float:
    truth, said = number(row, f"truth:{target}"), number(row, f"prediction:{target}")
    if log and truth > 0 and said > 0:
        return math.log10(said / truth)
    return said - truth


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
    truth, prediction, note, right = _words(record, row)
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


def _words(record: RunRecord, row: Mapping[str, str]) -> tuple[str, str, str, bool | None]:
    """Truth, prediction, a note, and whether they agree (None for numbers)."""
    if record.task == "classify":
        truth, said = cell(row, "truth"), cell(row, "prediction")
        return truth, said, f"{100 * number(row, 'confidence'):.0f} % sure", truth == said
    if record.task == "multilabel":
        return _tag_words(cell(row, "truth"), cell(row, "prediction"))
    targets = record.plan["task"].get("targets", ())
    shown = [(name, number(row, f"truth:{name}"), number(row, f"prediction:{name}")) for name in targets]
    if len(shown) == 1:
        _, true, guess = shown[0]
        return amount(true), amount(guess), f"off by {amount(guess - true, sign=True)}", None
    return (
        ", ".join(f"{name} {amount(true)}" for name, true, _ in shown),
        ", ".join(f"{name} {amount(guess)}" for name, _, guess in shown),
        "",
        None,
    )


def _tag_words(truth: str, said: str) -> tuple[str, str, str, bool]:
    true_tags, said_tags = split_tags(truth), split_tags(said)
    missed = [tag for tag in true_tags if tag not in said_tags]
    extra = [tag for tag in said_tags if tag not in true_tags]
    note = [f"missed {', '.join(missed)}"] * bool(missed) + [f"extra {', '.join(extra)}"] * bool(extra)
    return ", ".join(true_tags) or "none", ", ".join(said_tags) or "none", "; ".join(note), not note


def amount(value: float, *, sign: bool = False) -> str:
    """A number in the target's unit: 869,500 or 0.0312, with a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    plus = "+" if sign else ""
    text = f"{value:{plus},.0f}" if abs(value) >= 1000 else f"{value:{plus}.4g}"
    return text.replace("-", "−")


def _roots(record: RunRecord) -> list[Path]:
    """Folders that ids may start from: the one of the run's images, then where runs of earlier versions had them."""
    root = record.plan.get("data", {}).get("root")
    source = Path(str(record.plan.get("data", {}).get("source", "")))
    options = record.config.get("data")
    images = options.get("images") if isinstance(options, dict) else None
    given = [Path(images)] if isinstance(images, str) and images not in ("", "null", "~") else []
    known = [Path(root)] if isinstance(root, str) else []
    return [*dict.fromkeys([*known, *given, source, source.parent, source.parent / "images"])]
