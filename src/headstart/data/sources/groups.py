"""Groups that file names give away: frames of one film, views of one object, which one side of a split must keep."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath

from headstart.data.sources.caution import Caution
from headstart.errors import DataError
from headstart.wording import option

BY_NAME = ("prefix", "folder")
"""Groups without a column: the name up to its last number, or the folder that holds the image."""
_NUMBERED = re.compile(
    r"(?P<prefix>.*?\w.*?)(?:[ _.-]*(?:frame|frm|view|shot|img|image|f|v|t))?[ _.-]*(?<!\d)(?P<number>\d+)"
)
_LEAST_GROUPS, _LEAST_FRAMES = 4, 3


def read_group(key: str, how: str) -> str:
    """The group of an image by its name.  how: one of :data:`BY_NAME`."""
    path = PurePosixPath(key)
    if how == "folder":
        return str(path.parent)
    found = _NUMBERED.fullmatch(path.stem)
    return str(path.with_name(found["prefix"])) if found else key


def group_by_name(keys: Sequence[str], how: str | None, *, source: str) -> tuple[str | None, ...]:
    """The group of each image of a folder, or None for each where no groups are asked for.

    Raises:
        DataError: it is no way to find groups in names.
    """
    if how is None:
        return (None,) * len(keys)
    if how not in BY_NAME:
        raise DataError(
            f"data.group: {how!r} would be a column, and {source} is a folder; accepted there: prefix (the name up "
            f"to its last number), folder (that holds the image), e.g. {option('data.group', 'prefix')}"
        )
    return tuple(read_group(key, how) for key in keys)


def describe_frames(keys: Sequence[str], labels: Sequence[object]) -> tuple[Caution, ...]:
    """A warning where names look like frames of films or views of objects: numbered evenly, several runs per label.

    labels: of each image, whatever it is.
    """
    groups: dict[str, list[tuple[int, object]]] = defaultdict(list)
    for key, label in zip(keys, labels, strict=True):
        found = _NUMBERED.fullmatch(PurePosixPath(key).stem)
        if found is not None:
            groups[read_group(key, "prefix")].append((int(found["number"]), label))
    runs = {name: frames for name, frames in groups.items() if len(frames) >= _LEAST_FRAMES and _is_even(frames)}
    count = sum(map(len, runs.values()))
    homes = Counter(label for frames in runs.values() for label in {label for _, label in frames})
    if len(runs) < _LEAST_GROUPS or 2 * count < len(keys) or max(homes.values()) < 2:
        return ()
    example, frames = max(runs.items(), key=lambda run: (len(run[1]), run[0]))
    text = (
        f"the names look like {len(runs)} objects or films with {count / len(runs):.0f} frames each ({example}... has "
        f"{len(frames)}): where they are, a split by image has frames of one on both sides, and its metrics are too "
        "good"
    )
    advice = f"keep them together: {option('data.group', 'prefix')}"
    return (Caution(text=text, count=len(runs), example=f"{example}... has {len(frames)}", advice=advice),)


def _is_even(frames: Sequence[tuple[int, object]]) -> bool:
    """Whether the numbers mostly go up by the same step."""
    numbers = sorted({number for number, _ in frames})
    steps = Counter(other - one for one, other in pairwise(numbers))
    return bool(steps) and 2 * max(steps.values()) >= len(numbers) - 1
