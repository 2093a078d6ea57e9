"""The image file that a cell means: as it stands, without its ending, or with the folders of another machine."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from headstart.data.sources.samples import IMAGE_SUFFIXES, is_image, is_passed_over

Parts = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FileIndex:
    """Images below a folder as parts of their relative paths, by file name and by name without ending, lower case;
    ``by_number``: by the number that a name without ending is, however many zeros stand before it.
    """

    root: Path
    by_name: Mapping[str, tuple[Parts, ...]]
    by_stem: Mapping[str, tuple[Parts, ...]]
    by_number: Mapping[int, tuple[Parts, ...]]


@dataclass(frozen=True, kw_only=True)
class Match:
    """A file for a cell: both lose a common tail, and these folders are left of the cell's and of the file's path."""

    cell: str
    path: Parts
    dropped: Parts
    added: Parts
    is_spelt: bool
    """The name with its ending is the cell's, letter by letter."""


def index_files(root: Path) -> FileIndex:
    """Every visible image below the folder; links are not followed."""
    by_name, by_stem = defaultdict[str, list[Parts]](list), defaultdict[str, list[Parts]](list)
    by_number = defaultdict[int, list[Parts]](list)
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_passed_over(name))
        above = Path(here).relative_to(root).parts
        for name in sorted(files):
            path = Path(here, name)
            if is_passed_over(name) or not is_image(path) or path.is_symlink():
                continue
            by_name[name.lower()].append((*above, name))
            by_stem[path.stem.lower()].append((*above, name))
            if path.stem.isdecimal():
                by_number[int(path.stem)].append((*above, name))
    return FileIndex(
        root=root,
        by_name={name: tuple(paths) for name, paths in by_name.items()},
        by_stem={name: tuple(paths) for name, paths in by_stem.items()},
        by_number={number: tuple(paths) for number, paths in by_number.items()},
    )


def match_cell(cell: str, index: FileIndex) -> Match | None:
    """The one file with the longest tail in common with the cell's path; None where none fits, or two fit as well.

    A cell that climbs (``..``) matches nothing.
    """
    parts = _split_path(cell)
    if not parts or ".." in parts:
        return None
    last = parts[-1].lower()
    found = index.by_name.get(last) or index.by_stem.get(last, ())
    if not found and last.isdecimal():
        found = index.by_number.get(int(last), ())
    tails = [(_common_tail(parts, path), path[-1] == parts[-1], path) for path in found]
    ranked = sorted(((length, spelt, length == len(path), path) for length, spelt, path in tails), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][:3] == ranked[1][:3]):
        return None  # of equal ones, that which begins in the folder itself is meant
    length, *_, path = ranked[0]
    return Match(cell=cell, path=path, dropped=parts[:-length], added=path[:-length], is_spelt=path[-1] == parts[-1])


def _split_path(cell: str) -> Parts:
    bare = re.sub(r"^(?:file://|[A-Za-z]:(?=[\\/]))", "", cell)
    if "\\" in bare:
        bare = bare.replace("\\", "/")
    return tuple(part for part in PurePosixPath(bare).parts if part not in ("/", "//", "."))


def _common_tail(parts: Parts, path: Parts) -> int:
    """How many parts from the end on are equal; the last one is, by whatever way it was found."""
    length = 1
    while length < min(len(parts), len(path)) and parts[-length - 1] == path[-length - 1]:
        length += 1
    return length


def match_cells(cells: Sequence[str], index: FileIndex, *, present: Sequence[bool]) -> dict[int, Match]:
    """The file of each cell that names none as it stands, by the cell's index, where all agree on what has moved.

    present: which cells name a file as they stand. Where others lost fewer folders, or lie where they are said to, a
    file of the same name elsewhere is another one.
    """
    found = {
        place: match for place, cell in enumerate(cells) if not present[place] and (match := match_cell(cell, index))
    }
    if any(present):
        return {place: match for place, match in found.items() if not match.dropped and not match.added}
    starts = {match.dropped for match in found.values()}
    longer = {one for one in starts for other in starts if other != one and one[: len(other)] == other}
    rooted = {match.dropped for match in found.values() if not match.added}
    return {
        place: match
        for place, match in found.items()
        if match.dropped not in longer and not (match.dropped in rooted and match.added)
    }


def has_image_suffix(cell: str) -> bool:
    """Whether the cell ends as the name of an image."""
    return os.path.splitext(cell)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (not a path yet)


def describe_matches(matches: Sequence[Match], *, total: int) -> tuple[str, ...]:
    """Notes on cells that name their files in another way: how many, and one as an example."""
    ways = {
        "without the ending of a file": [match for match in matches if not match.is_spelt and not match.dropped],
        "with folders that are not here": [match for match in matches if match.dropped],
        "without the folder": [match for match in matches if match.is_spelt and match.added and not match.dropped],
    }
    return tuple(
        f"{len(fitting)} of {total} images are named {way}, e.g. {fitting[0].cell!r} is {'/'.join(fitting[0].path)}"
        for way, fitting in ways.items()
        if fitting
    )
