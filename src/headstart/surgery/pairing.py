"""Two recordings of one module at two numbers of images, call by call: which sizes follow that number.

B batch
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstart.surgery.fixed_values import IMAGES, Book, Call, Geometry, Key

_NOT: Any = object()


@dataclass(frozen=True)
class Rows:
    """So many times the number of images."""

    times: int


def fill_in_batch(template: Any, batch: int) -> Any:
    """The template filled in for a number of images."""
    if isinstance(template, Rows):
        return template.times * batch
    if isinstance(template, tuple):
        return tuple(fill_in_batch(each, batch) for each in template)
    return template


@dataclass(frozen=True)
class Pairs:
    """The calls that two books have in common. ``calls``: their templates and the contents that these make; ``ours``:
    contents of the second book by those of the first; ``rows``: contents that have a row for each image; ``mixed``:
    contents made along the images of a batch, ``picked``: parts of a content that are a choice of images.
    """

    calls: tuple[tuple[Key, tuple[int, ...]], ...]
    ours: Mapping[int, int]
    rows: frozenset[int]
    batches: tuple[int, int]
    geometries: Mapping[int, tuple[Geometry, ...]]
    mixed: frozenset[int]
    picked: frozenset[tuple[int, Geometry]]

    def names(self, batch: int) -> dict[Key, tuple[int, ...]]:
        """The contents that each call makes at a number of images."""
        return {fill_in_batch(template, batch): contents for template, contents in self.calls}

    def geometry(self, first: Geometry, second: Geometry) -> Any:
        """The template of a geometry, sizes that follow the number of images as ``Rows``; None where others differ."""
        template = _template(tuple(first), tuple(second), {}, self.batches)
        return None if template is _NOT else template

    def match_rows(self, content: int, geometry: Geometry) -> Any:
        """The template of a part of a content with a row for each image; None where there is none."""
        for other in self.geometries.get(self.ours[content], ()):
            if geometry.size[:1] + other.size[:1] == self.batches and geometry.size[1:] == other.size[1:]:
                template = self.geometry(geometry, other)
                if template is not None:
                    return template
        return None


def pair(first: Book, second: Book) -> Pairs:
    """Match the calls of two books, in order."""
    batches = (first.batch, second.batch)
    theirs: dict[int, int] = {IMAGES: IMAGES}  # the first's content by the second's
    waiting: dict[Key, list[Key]] = {}
    for key in first.names:
        waiting.setdefault(_erase_sizes(key, None), []).append(key)
    calls, mixed = list[tuple[Key, tuple[int, ...]]](), set[int]()
    for key, contents in second.names.items():
        candidates = waiting.get(_erase_sizes(key, theirs), [])
        templates = ((other, _template(other, key, theirs, batches)) for other in candidates)
        match = next((both for both in templates if both[1] is not _NOT), None)
        if match is None:
            continue
        mine, template = match
        candidates.remove(mine)
        calls.append((_rename_contents(template, first.contents.same), _same(first, mine)))
        theirs |= dict(zip(contents, first.names[mine], strict=True))
        mixed |= set(first.names[mine]) if mine in first.along and key in second.along else set()
    alone = [key for keys in waiting.values() for key in keys]  # of weights: it may have been kept since the first call
    own = [key for key in alone if not first.of_images.intersection(first.names[key])]
    calls += [(_rename_contents(key, first.contents.same), _same(first, key)) for key in own]
    ours = {mine: other for other, mine in theirs.items()}
    rows = frozenset(mine for mine, other in ours.items() if mine and _has_rows(mine, other, first, second))
    mixed |= {mine for mine, other in ours.items() if mine and not _is_in_proportion(mine, other, first, second)}
    picked = _find_image_picks(first, second, theirs)
    return Pairs(tuple(calls), ours, rows, batches, _collect_geometries(second), frozenset(mixed), picked)


def _same(book: Book, key: Key) -> tuple[int, ...]:
    return tuple(book.contents.same.get(content, content) for content in book.names[key])


def _find_image_picks(first: Book, second: Book, theirs: Mapping[int, int]) -> frozenset[tuple[int, Geometry]]:
    """The views that pick some images in both books."""
    batches, picks = (first.batch, second.batch), set[tuple[int, Geometry]]()
    others = [key for key in second.along if key not in second.names]
    for key in (key for key in first.along if key not in first.names):
        if any(_template(key, other, theirs, batches) is not _NOT for other in others):
            step = first.steps[key]
            picks |= {(_contents(key)[0][1], output.geometry) for output in step.outputs}
    return frozenset(picks)


def _collect_geometries(book: Book) -> dict[int, tuple[Geometry, ...]]:
    """Every geometry in which a content is an argument or a view, by content."""
    found: dict[int, dict[Geometry, None]] = {}
    for key, step in book.steps.items():
        views = [output.geometry for output in step.outputs] if getattr(step, "view_of", None) is not None else []
        for part in _contents(key):
            found.setdefault(part[1], {}).update(dict.fromkeys([Geometry(*part[2]), *views]))
    return {content: tuple(geometries) for content, geometries in found.items()}


def _contents(key: Any) -> list[Any]:
    if not isinstance(key, tuple) or key[:1] == ("=",):
        return []
    if key[:1] == ("#",):
        return [key]
    return [part for each in key for part in _contents(each)]


def _has_rows(mine: int, other: int, first: Book, second: Book) -> bool:
    if mine not in first.of_images or mine not in first.calls or other not in second.calls:
        return False
    ours, theirs = _size(first.calls[mine]), _size(second.calls[other])
    return ours[:1] + theirs[:1] == (first.batch, second.batch) and ours[1:] == theirs[1:]


def _is_in_proportion(mine: int, other: int, first: Book, second: Book) -> bool:
    """Whether a content grows with the number of images, as what is each image's own does."""
    if mine not in first.of_images or mine not in first.calls or other not in second.calls:
        return True
    ours, theirs = math.prod(_size(first.calls[mine])), math.prod(_size(second.calls[other]))
    return ours * second.batch == theirs * first.batch


def _size(call: Call) -> tuple[int, ...]:
    return call.base.geometry.size


def _erase_sizes(key: Any, contents: Mapping[int, int] | None) -> Any:
    """The key of a call without its sizes, its contents renamed by ``contents``."""
    if isinstance(key, tuple):
        if key[:1] == ("#",):
            return ("#", key[1] if contents is None else contents.get(key[1], key[1]))
        return key if key[:1] == ("=",) else tuple(_erase_sizes(each, contents) for each in key)
    return None if type(key) is int else key


def _rename_contents(key: Any, same: Mapping[int, int]) -> Any:
    """The key of a call in which contents that are the same have one name."""
    if not isinstance(key, tuple) or key[:1] == ("=",) or not same:
        return key
    if key[:1] == ("#",):
        return ("#", same.get(key[1], key[1]), *key[2:])
    return tuple(_rename_contents(each, same) for each in key)


def _template(first: Any, second: Any, contents: Mapping[int, int], batches: tuple[int, int]) -> Any:
    """What two calls have in common, sizes that follow the number of images as ``Rows``; ``_NOT`` where they differ."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        if first[:1] == ("=",) or len(first) != len(second):
            return first if first == second else _NOT
        if first[:1] == ("#",):
            where = _template(tuple(first[2]), tuple(second[2]), contents, batches)
            same = first[1] == contents.get(second[1], second[1])
            return ("#", first[1], where) if same and where is not _NOT else _NOT
        parts = tuple(_template(*both, contents, batches) for both in zip(first, second, strict=True))
        return _NOT if any(part is _NOT for part in parts) else parts
    if first == second:
        return first
    whole = type(first) is int and type(second) is int
    if whole and first * batches[1] == second * batches[0] and first % batches[0] == 0:
        return Rows(first // batches[0])
    return _NOT
