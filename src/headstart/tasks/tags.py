"""The tags of an image as one cell of predictions.csv: ``sea;sun``, and ``sun \\; moon`` where a tag holds the mark."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPECIAL = re.compile(r"[\\;]")
_TAG = re.compile(r"(?:\\[\\;]|[^;])+")


def join_tags(names: Iterable[str]) -> str:
    """One cell; ``split_tags`` gives the names back. A ``;`` or backslash within a name gets a backslash in front."""
    return ";".join(_SPECIAL.sub(r"\\\g<0>", name) for name in names)


def split_tags(cell: str) -> list[str]:
    """The names in a cell; a backslash before anything but ``;`` and a backslash is one itself."""
    return [re.sub(r"\\([\\;])", r"\1", part) for part in _TAG.findall(cell)]
