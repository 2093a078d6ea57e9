"""Class folders, with or without train, val and test above them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from shlex import quote

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.decoding.formats import ACCEPTED
from headstart.data.sources.caution import Caution
from headstart.data.sources.existing import TABLE_SUFFIXES
from headstart.data.sources.files import list_as_files
from headstart.data.sources.folder_layout import LAYOUT, ClassFolder, Layout, read_layout
from headstart.data.sources.groups import group_by_name
from headstart.data.sources.names import check_count, check_names
from headstart.data.sources.samples import (
    Listing,
    is_image,
    is_passed_over,
    key_of,
    some,
    subfolders,
    walk,
)
from headstart.data.sources.source import Record
from headstart.errors import DataError
from headstart.tasks.classify import CLASSIFY
from headstart.tasks.kinds import KINDS, find_kind
from headstart.wording import option

_ENDINGS = 4  # that are named


def list_folders(data: Data, *, source: Path, kind: str) -> Listing:
    """Every image under the class folders, with its class and, where given, its split.

    Raises:
        DataError: the folders do not say which image has which class.
    """
    _refuse_table_options(data, source=source, kind=kind)
    layout = read_layout(source, data)
    found: list[tuple[Record, Path]] = []
    others: list[str] = []
    empty: dict[str, Path] = {}
    for place in layout.classes:
        walked = walk(place.folder, root=source)
        others += [key_of(path, root=source) for path in walked.others]
        if not walked.images:
            empty[place.label] = place.folder
        found += [(_record(path, place=place, source=source), path) for path in walked.images]
    groups = group_by_name([record.name for record, _ in found], data.group, source=printable(source))
    found = [(replace(record, group=group), path) for (record, path), group in zip(found, groups, strict=True)]
    loose = [key_of(path, root=source) for top in layout.tops for path in _list_loose(top)]
    names = sorted({label for record, _ in found for label in record.labels})
    where = printable(source)
    check_names({*names, *empty}, source=where, word=CLASSIFY.noun)
    _refuse_empty(empty, names=names, others=others, source=source)
    check_count(names, source=where + _hint_at_nested_folder(source, names), kind=CLASSIFY.name)
    files = list_as_files(found, given=source, root=source)
    return Listing(
        source=files,
        kind=CLASSIFY.name,
        names=tuple(names),
        records=files.listed,
        notes=layout.notes,
        cautions=(*_warn_of_others(others), *_warn_of_loose(loose), *_warn_of_unlabelled(layout, source)),
    )


def _record(path: Path, *, place: ClassFolder, source: Path) -> Record:
    return Record(name=key_of(path, root=source), labels=(place.label,), split=place.split)


def _refuse_table_options(data: Data, *, source: Path, kind: str) -> None:
    if kind in KINDS and not find_kind(kind).one_label:
        raise DataError(
            f"task.kind: {kind}, but {printable(source)} is a folder, whose class folders give one label per image; "
            f"give a CSV or Parquet table, or {option('task.kind', CLASSIFY.name)}"
        )
    given = {
        "images": data.images is not None,
        "image": data.image != "auto",
        "target": data.target != "auto",
        "split": data.split != "auto",
    }
    for field, is_given in given.items():
        if is_given:
            raise DataError(
                f"data.{field}: it is for tables, and {printable(source)} is a folder; leave it out, or give a table"
            )
    if data.log:
        raise DataError("data.log: it is for numbers, and class folders give classes; leave it out")


def _refuse_empty(empty: Mapping[str, Path], *, names: list[str], others: list[str], source: Path) -> None:
    if not names and empty:
        shown, there = some(sorted(empty)), f", but {_count_endings(others)}" if others else ""
        raise DataError(f"no images in any class folder ({shown}){there}; accepted formats: {ACCEPTED}. {LAYOUT}")
    missing = sorted(set(empty) - set(names))
    if missing:
        inside = [name for name in others if name.startswith(f"{key_of(empty[missing[0]], root=source)}/")]
        there = f", but {_count_endings(inside)}" if inside else ""
        notes = {PurePosixPath(name).suffix.lower() for name in inside} <= {".xml", ".txt", ".json"}
        advice = "such notes are not read: give a table of labels" if inside and notes else "add some"
        raise DataError(
            f"{printable(empty[missing[0]])}: the class folder has no images{there} (accepted: {ACCEPTED}); "
            f"{advice}, or remove the folder"
        )


def _warn_of_others(names: list[str]) -> tuple[Caution, ...]:
    """A warning of files in class folders that are no images, by their endings."""
    if not names:
        return ()
    kinds = _count_endings(names)
    text = f"{_count(names, 'file is', 'files are')} no image and left out ({kinds}, e.g. {names[0]!r})"
    advice = f"where they are pictures, save them in a format that is read ({ACCEPTED}); else they may stay"
    return (Caution(text=text, count=len(names), example=names[0], advice=advice),)


def _count_endings(names: list[str]) -> str:
    endings = Counter(PurePosixPath(name).suffix.lower() or "without an ending" for name in names)
    return ", ".join(f"{count} {ending}" for ending, count in endings.most_common(_ENDINGS))


def _list_loose(top: Path) -> list[Path]:
    return sorted(
        child for child in top.iterdir() if child.is_file() and is_image(child) and not is_passed_over(child.name)
    )


def _warn_of_loose(names: list[str]) -> tuple[Caution, ...]:
    """A warning of images beside the class folders."""
    if not names:
        return ()
    text = f"{_count(names, 'image is', 'images are')} in no class folder and left out, e.g. {some(names, limit=2)}"
    advice = "move them into the folders of their classes, or away"
    return (Caution(text=text, count=len(names), example=names[0], advice=advice),)


def _warn_of_unlabelled(layout: Layout, source: Path) -> tuple[Caution, ...]:
    """A warning per folder of images without a class beside the splits, as competitions have them to be predicted."""
    cautions = []
    for folder in layout.unlabelled:
        names = [key_of(path, root=source) for path in walk(folder, root=source).images]
        what = _count(names, f"image of {folder.name!r} is", f"images of {folder.name!r} are")
        text = f"{what} in no class folder and left out, e.g. {some(names, limit=2)}"
        predict = f"headstart predict RUN {quote(printable(folder))}"
        advice = f"predict them after training: {predict}; where their classes are known, move them into class folders"
        cautions.append(Caution(text=text, count=len(names), example=names[0], advice=advice))
    return tuple(cautions)


def _count(names: list[str], one: str, several: str) -> str:
    return f"{len(names)} {several if len(names) > 1 else one}"


def _hint_at_nested_folder(source: Path, names: list[str]) -> str:
    """What to give instead of a source with one folder that holds the real class folders, at any depth."""
    if len(names) != 1 or not (source / names[0]).is_dir():
        return ""
    below = source / names[0]
    while len(inner := subfolders(below)) == 1:
        below = inner[0]
    tables = sorted(file for file in source.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
    if tables:
        return f" (it holds a table; did you mean {printable(tables[0])}?)"
    if inner:
        return f" (it holds folders {some([one.name for one in inner])}; did you mean {printable(below)}?)"
    return ""
