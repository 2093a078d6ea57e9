"""Class folders, with or without train, val and test above them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from headstart.config.schema import Data
from headstart.data.decoding.decode import FORMATS, printable
from headstart.data.sources.names import check_count, check_names
from headstart.data.sources.samples import (
    SPLITS,
    Entry,
    Listing,
    Split,
    check_link,
    is_image,
    is_passed_over,
    key_of,
    some,
    subfolders,
    walk,
)
from headstart.errors import DataError
from headstart.tasks.classify import CLASSIFY
from headstart.tasks.kinds import KINDS, find_kind

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
_LAYOUT = (
    "accepted: SOURCE/CLASS/IMAGE, SOURCE/train/CLASS/IMAGE with SOURCE/val/CLASS/IMAGE, or a CSV or Parquet table"
)


def list_folders(data: Data, *, source: Path, kind: str) -> Listing:
    """Every image under the class folders, with its class and, where given, its split.

    Raises:
        DataError: the folders do not say which image has which class.
    """
    _refuse_table_options(data, source=source, kind=kind)
    splits = _split_folders(source)
    tops: Mapping[Split | None, Path] = splits or {None: source}
    entries: list[Entry] = []
    notes: list[str] = []
    empty: dict[str, Path] = {}
    for split, top in tops.items():
        check_link(top, root=source)
        for folder in _class_folders(top):
            walked = walk(folder, root=source)
            notes += _describe_left_out(folder, source=source, count=len(walked.others))
            if not walked.images:
                empty[folder.name] = folder
            entries += [_entry(path, folder=folder, source=source, split=split) for path in walked.images]
        notes += _loose_images(top)
    names = sorted({label for entry in entries for label in entry.labels})
    where = printable(source)
    check_names({*names, *empty}, source=where, word=CLASSIFY.noun)
    _refuse_empty(empty, names=names)
    check_count(names, source=where + _hint_at_nested_folder(source, names), kind=CLASSIFY.name)
    return Listing(source=source, kind=CLASSIFY.name, names=tuple(names), entries=tuple(entries), notes=tuple(notes))


def _entry(path: Path, *, folder: Path, source: Path, split: Split | None) -> Entry:
    key = key_of(path, root=source)
    return Entry(path=path, key=key, where=key, labels=(folder.name,), split=split)


def _refuse_table_options(data: Data, *, source: Path, kind: str) -> None:
    if kind in KINDS and not find_kind(kind).one_label:
        raise DataError(
            f"task.kind: {kind}, but {printable(source)} is a folder, whose class folders give one label per image; "
            f"give a CSV or Parquet table, or --task.kind classify"
        )
    given = {
        "images": data.images is not None,
        "image": data.image != "auto",
        "target": data.target != "auto",
        "split": data.split != "auto",
        "group": data.group is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise DataError(
                f"data.{option}: it is for tables, and {printable(source)} is a folder; leave it out, or give a table"
            )
    if data.log:
        raise DataError("data.log: it is for numbers, and class folders give classes; leave it out")


def _split_folders(source: Path) -> dict[Split | None, Path]:
    """Folders of the splits; empty when the source's folders are classes."""
    folders = subfolders(source)
    found: dict[Split, list[Path]] = defaultdict(list)
    for folder in folders:
        if folder.name.lower() in SPLITS:
            found[SPLITS[folder.name.lower()]].append(folder)
    others = [folder.name for folder in folders if folder.name.lower() not in SPLITS]
    is_class_called_train = set(found) == {"train"} and (others or not subfolders(found["train"][0]))
    if not found or is_class_called_train or ("train" not in found and others):
        return {}
    for split, same in found.items():
        if len(same) > 1:
            names = [folder.name for folder in same]
            raise DataError(f"{printable(source)}: {some(names)} both mean {split}; keep one of them")
    if "train" not in found:
        raise DataError(
            f"{printable(source)}: there is {some([same[0].name for same in found.values()])} and no 'train' folder; "
            f"{_LAYOUT}"
        )
    if others:
        raise DataError(
            f"{printable(source)}: beside {some([same[0].name for same in found.values()])} there is {some(others)}; "
            f"classes go under train and val: move it there, or away"
        )
    return {split: found[split][0] for split in ("train", "val", "test") if split in found}


def _class_folders(top: Path) -> tuple[Path, ...]:
    folders = subfolders(top)
    if folders:
        return folders
    files = [child for child in top.iterdir() if not is_passed_over(child.name)]
    tables = sorted(printable(file) for file in files if file.suffix.lower() in TABLE_SUFFIXES)
    images = sum(is_image(file) for file in files)
    where = printable(top)
    if tables:
        raise DataError(f"{where}: there are no class folders, but a table; give it: {tables[0]}")
    if images:
        raise DataError(f"{where}: there are {images} images and no class folders; {_LAYOUT}")
    raise DataError(f"{where}: there are no images; {_LAYOUT}")


def _refuse_empty(empty: Mapping[str, Path], *, names: list[str]) -> None:
    if not names and empty:
        shown = some(sorted(empty))
        raise DataError(f"no images in any class folder ({shown}); accepted formats: {', '.join(FORMATS)}. {_LAYOUT}")
    missing = sorted(set(empty) - set(names))
    if missing:
        raise DataError(
            f"{printable(empty[missing[0]])}: the class folder has no images (accepted: {', '.join(FORMATS)}); "
            f"add some, or remove the folder"
        )


def _describe_left_out(folder: Path, *, source: Path, count: int) -> list[str]:
    if count == 0:
        return []
    return [f"{key_of(folder, root=source)}: {count} {'files are' if count > 1 else 'file is'} no image and left out"]


def _loose_images(top: Path) -> list[str]:
    loose = [child.name for child in top.iterdir() if child.is_file() and is_image(child)]
    if not loose:
        return []
    where = printable(top)
    return [f"{where}: {len(loose)} {'images are' if len(loose) > 1 else 'image is'} in no class folder and left out"]


def _hint_at_nested_folder(source: Path, names: list[str]) -> str:
    """For a source with one folder that holds the real class folders."""
    if len(names) != 1 or not (source / names[0]).is_dir():
        return ""
    inner = [folder.name for folder in subfolders(source / names[0])]
    tables = sorted(file for file in source.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
    if tables:
        return f" (it holds a table; did you mean {printable(tables[0])}?)"
    if len(inner) > 1:
        return f" (it holds folders {some(inner)}; did you mean {printable(source / names[0])}?)"
    return ""
