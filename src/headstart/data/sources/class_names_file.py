"""Names of classes in a file beside a table that numbers them: classes.txt, labels.txt, a map in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.data.decoding.decode import printable
from headstart.data.sources.image_paths import has_image_suffix
from headstart.data.sources.samples import some
from headstart.data.sources.tables import Table
from headstart.errors import DataError

_STEM = re.compile(
    r"(?:class|label|category|species|breed)[_ -]?(?:names?|map|list|index|dict)|classes|labels|names|categories|obj|"
    r"label[_ -]?(?:num|id|index)[_ -]?to[_ -]?\w+|(?:idx|index|id)[_ -]?to[_ -]?(?:class|label|name)s?|"
    r"(?:class|label)[_ -]?to[_ -]?(?:idx|index|id)"
)
_SUFFIXES = (".txt", ".names", ".json", ".list")
_NUMBERED = re.compile(r"(?P<number>\d+)\s*[:,;\t =]\s*(?P<name>\S.*)")
_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """What each number is called, and the file that says so."""

    path: Path
    names: Mapping[int, str]


def find_class_names(table: Table, numbers: Sequence[int]) -> ClassNames | None:
    """The names that a file beside the table gives these numbers; None where no file has one for each.

    Raises:
        DataError: the file's lines are not numbered, and counting from 0 and from 1 fit both.
    """
    for path in sorted(table.path.parent.iterdir()):
        is_named_so = path.suffix.lower() in _SUFFIXES and _STEM.fullmatch(path.stem.lower())
        if is_named_so and path != table.path and path.is_file() and path.stat().st_size <= _LIMIT:
            found = _read_json(path) if path.suffix.lower() == ".json" else _read_lines(path, numbers)
            if found and set(numbers) <= set(found) and len(set(found.values())) == len(found):
                return ClassNames(path=path, names=found)
    return None


def _read_json(path: Path) -> dict[int, str]:
    """A list of names, a mapping from number to name, or one from name to number."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {}
    if all(isinstance(value, int) and not isinstance(value, bool) for value in content.values()):
        content = {value: name for name, value in content.items()}
    is_map = all(str(number).isdecimal() and isinstance(name, str) for number, name in content.items())
    return {int(number): name.strip() for number, name in content.items()} if is_map else {}


def _read_lines(path: Path, numbers: Sequence[int]) -> dict[int, str]:
    """A name per line, numbered by the file or by place."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError):
        return {}
    if any(has_image_suffix(word) for line in lines for word in re.split(r"[\s,;|]+", line)):
        return {}  # a list of images
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if lines and all(numbered):
        return {int(line["number"]): line["name"].strip() for line in numbered if line}
    if len(set(numbers)) * 2 < len(lines):
        return {}  # of other classes, or of images
    starts = [first for first in (0, 1) if first <= min(numbers) and max(numbers) < first + len(lines)]
    if len(starts) == 2:
        shown = some([str(number) for number in sorted(set(numbers))])
        raise DataError(
            f"{printable(path)}: its {len(lines)} names are not numbered, and the table's labels {shown} could count "
            f"them from 0 or from 1; write the number before each name, e.g. '0 {lines[0]}'"
        )
    return dict(enumerate(lines, start=starts[0])) if starts else {}
