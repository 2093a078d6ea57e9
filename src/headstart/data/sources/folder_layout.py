"""What the folders of a source are: splits, classes, or something that only a person can say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.existing import TABLE_SUFFIXES
from headstart.data.sources.samples import (
    check_link,
    is_image,
    is_passed_over,
    some,
    subfolders,
    walk,
)
from headstart.data.sources.source import Split
from headstart.data.sources.split_names import is_plain_spelling, read_split
from headstart.errors import DataError
from headstart.wording import option

LAYOUT = "accepted: SOURCE/CLASS/IMAGE, SOURCE/train/CLASS/IMAGE with SOURCE/val/CLASS/IMAGE, or a CSV or Parquet table"
_UNLABELLED = ("pred", "predict", "prediction", "unlabeled", "unlabelled", "unsup", "submission", "sample_submission")


@dataclass(frozen=True, kw_only=True)
class ClassFolder:
    """A folder whose images, at any depth, have this label and lie in this split."""

    folder: Path
    label: str
    split: Split | None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The class folders, the folders above them, in which an image has no class, and those of images without one."""

    classes: tuple[ClassFolder, ...]
    tops: tuple[Path, ...]
    notes: tuple[str, ...]
    unlabelled: tuple[Path, ...] = ()


@dataclass
class _Splits:
    """Folders by the split that they name, those that name none, those of images without a class, and notes."""

    folders: dict[Split, list[Path]] = field(default_factory=lambda: defaultdict(list))
    others: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_layout(source: Path, data: Data) -> Layout:
    """The class folders of the source with their splits.

    Raises:
        DataError: there is none, or the folders can be read in two ways; the message has the option that says which.
    """
    splits = _Splits()
    tops, notes = _split_folders(source, data, splits), splits.notes
    classes: list[ClassFolder] = []
    for split, top in tops:
        check_link(top, root=source)
        found, more = _classes_below(top, split=split, source=source, data=data)
        classes += found
        notes += more
    return Layout(
        classes=tuple(classes),
        tops=tuple(top for _, top in tops),
        notes=tuple(notes),
        unlabelled=tuple(splits.unlabelled),
    )


def _split_folders(source: Path, data: Data, splits: _Splits) -> list[tuple[Split | None, Path]]:
    """Each split with its folder; the source itself, with no split, where its folders are classes. What else was found
    goes to ``splits``.
    """
    for folder in subfolders(source):
        split = read_split(folder.name)
        (splits.others if split is None else splits.folders[split]).append(folder)
    if not _are_splits(splits, source):
        _refuse_train_as_class(splits, source, data)
        return [(None, source)]
    _leave_out_unlabelled(splits, source)
    found, shown = splits.folders, some([same[0].name for same in splits.folders.values()])
    for split, same in found.items():
        if len(same) > 1:
            names = [folder.name for folder in same]
            raise DataError(f"{printable(source)}: {some(names)} both mean {split}; keep one of them")
    if "train" not in found:
        raise DataError(f"{printable(source)}: there is {shown} and no 'train' folder; {LAYOUT}")
    if splits.others:
        names = [folder.name for folder in splits.others]
        raise DataError(
            f"{printable(source)}: beside {shown} there is {some(names)}; "
            f"classes go under train and val: move it there, or away"
        )
    tops = [(split, found[split][0]) for split in ("train", "val", "test") if split in found]
    odd = [f"{folder.name!r} is {split}" for split, folder in tops if not is_plain_spelling(folder.name)]
    if odd:
        splits.notes.append(f"split: taken from the folders' names: {', '.join(odd)}")
    return [(split, _unwrap(folder, split, splits.notes)) for split, folder in tops]


def _refuse_train_as_class(splits: _Splits, source: Path, data: Data) -> None:
    """Refuse a folder called train that holds folders alone, beside folders that name no split.

    Raises: DataError: asks which it is.
    """
    for folder in splits.folders.get("train", []):
        inner = subfolders(folder)
        beside = [other.name for other in splits.others]
        if (
            data.class_folders == "auto"
            and len(inner) > 1
            and not _has_images(folder)
            and not _have_common(folder, splits)
        ):
            raise DataError(
                f"{printable(source)}: {folder.name!r} holds no images, but folders "
                f"({some([one.name for one in inner])}): is it a split? Then move {some(beside)} away, or call it "
                f"val; if it is a class: {option('data.class_folders', 'upper')}"
            )


def _have_common(folder: Path, splits: _Splits) -> bool:
    """Whether another folder holds the same folders: then it is asked which level the classes are."""
    return bool(_find_common_names({one: subfolders(one) for one in (folder, *splits.others)}))


def _are_splits(splits: _Splits, source: Path) -> bool:
    """Whether the folders that name splits are some, and no classes called so (a class may be called train)."""
    found = splits.folders
    if not found or ("train" not in found and splits.others):
        return False
    if "train" not in found:
        return True
    train = found["train"][0]
    if set(found) == {"train"}:
        labelled = [one for one in splits.others if not _is_unlabelled(one) and walk(one, root=source).images]
        return not labelled and bool(subfolders(train)) and not _has_images(train)
    odd = [folder for same in found.values() for folder in same if not is_plain_spelling(folder.name)]
    return not odd or bool(subfolders(train))


def _leave_out_unlabelled(splits: _Splits, source: Path) -> None:
    """Take away folders that can hold no class: without an image, or images to be labelled, as competitions have."""
    test = splits.folders.get("test", [])
    unlabelled = [folder for folder in test if not _inner_folders(folder) and "train" in splits.folders]
    unlabelled += [folder for folder in splits.others if _is_unlabelled(folder)]
    empty = [folder for folder in splits.others if folder not in unlabelled and not walk(folder, root=source).images]
    full = [folder for folder in unlabelled if walk(folder, root=source).images]
    splits.unlabelled += full
    for folder in (*(folder for folder in unlabelled if folder not in full), *empty):
        splits.notes.append(f"{folder.name}: it holds no image, and is left out")
    splits.others = [folder for folder in splits.others if folder not in (*unlabelled, *empty)]
    if test and all(folder in unlabelled for folder in test):
        del splits.folders["test"]


def _is_unlabelled(folder: Path) -> bool:
    return folder.name.lower().split("_")[-1] in _UNLABELLED


def _inner_folders(folder: Path) -> tuple[Path, ...]:
    """Its folders, or those of the only one that it holds and that is called so as well."""
    inner = subfolders(folder)
    return subfolders(inner[0]) if len(inner) == 1 and inner[0].name == folder.name else inner


def _unwrap(folder: Path, split: Split, notes: list[str]) -> Path:
    """The folder with the classes, where it is the only one in a folder of the same name (``seg_train/seg_train``)."""
    inner = subfolders(folder)
    if len(inner) != 1 or _has_images(folder) or not subfolders(inner[0]):
        return folder
    if inner[0].name != folder.name and read_split(inner[0].name) != split:
        return folder
    notes.append(f"{folder.name}: its classes are in {folder.name}/{inner[0].name}")
    return inner[0]


def _has_images(folder: Path) -> bool:
    return any(is_image(child) and child.is_file() and not is_passed_over(child.name) for child in folder.iterdir())


def _classes_below(top: Path, *, split: Split | None, source: Path, data: Data) -> tuple[list[ClassFolder], list[str]]:
    """The class folders under the source or a split, and notes."""
    folders = _class_folders(top)
    if data.class_folders == "auto":
        _refuse_copies(folders)
    inner = {folder: subfolders(folder) for folder in folders}
    shared = _find_common_names(inner)
    if data.class_folders == "lower":
        return _take_lower(top, inner, split=split), []
    if shared and data.class_folders == "auto":
        if split is None and all(read_split(name) for name in shared):
            return _take_splits_below(inner, source=source)
        raise DataError(_ask_for_level(top, folders, shared))
    classes = [ClassFolder(folder=folder, label=folder.name, split=split) for folder in folders]
    deep = [folder for folder in folders if any(walk(child, root=source).images for child in inner[folder])]
    examples = [f"{folder.name}/{inner[folder][0].name} is {folder.name!r}" for folder in deep[:3]]
    note = f"{printable(top)}: images in folders within a class folder are of that class ({', '.join(examples)})"
    return classes, [note] if deep else []


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
    if beside := _find_table_beside(top) if images else None:
        raise DataError(
            f"{where}: there are {images} images and no class folders, but a table beside it; if it has their labels: "
            f"headstart train {quote(printable(beside))} --data.images {quote(where)}"
        )
    if images:
        raise DataError(f"{where}: there are {images} images and no class folders; {LAYOUT}")
    raise DataError(f"{where}: there are no images; {LAYOUT}")


def _find_table_beside(folder: Path) -> Path | None:
    """The first table next to a folder, one that has its name in it before others (``train_labels.csv``)."""
    around = [file for file in folder.absolute().parent.iterdir() if file.suffix.lower() in TABLE_SUFFIXES]
    tables = sorted((folder.name.lower() not in file.name.lower(), file.name) for file in around)
    return folder.parent / tables[0][1] if tables else None


def _refuse_copies(folders: Sequence[Path]) -> None:
    """Refuse a folder that holds what lies beside it: a copy of the whole, taken for a class.

    Raises: DataError: names it, and what to type.
    """
    names = {folder.name for folder in folders}
    for folder in folders:
        inner = {child.name for child in subfolders(folder)}
        both = sorted(inner & names - {folder.name})
        if len(both) > 1 or (both and set(both) == inner):
            beside = f"headstart train {quote(printable(folder))}" if len(inner) > 1 else "move one of them"
            raise DataError(
                f"{printable(folder)}: it lies beside folders called {some(both)} and holds folders of these names: "
                f"is it a copy of them? Give the inner ones ({beside}) or move {folder.name!r} away; if it is a "
                f"class of its own: {option('data.class_folders', 'upper')}"
            )


def _find_common_names(inner: dict[Path, tuple[Path, ...]]) -> list[str]:
    """Names of folders that most class folders have in common, where all hold folders alone; else none."""
    if len(inner) < 2 or any(not children or _has_images(folder) for folder, children in inner.items()):
        return []
    counts = Counter(child.name for children in inner.values() for child in children)
    shared = sorted(name for name, count in counts.items() if count > 1)
    return shared if 2 * len(shared) >= len(counts) > 1 else []  # a single one is no set of classes


def _take_lower(top: Path, inner: dict[Path, tuple[Path, ...]], *, split: Split | None) -> list[ClassFolder]:
    """The folders within the folders as classes.  Raises: DataError: there are none."""
    classes = [
        ClassFolder(folder=child, label=child.name, split=split) for children in inner.values() for child in children
    ]
    if not classes:
        raise DataError(
            f"data.class_folders: lower, and the folders in {printable(top)} hold no folders; leave it out, for "
            f"{printable(top)}/CLASS/IMAGE"
        )
    return classes


def _take_splits_below(inner: dict[Path, tuple[Path, ...]], *, source: Path) -> tuple[list[ClassFolder], list[str]]:
    """Classes that hold splits (``cat/train``, ``cat/val``).

    Raises: DataError: a folder is no split, or the splits hold classes again.
    """
    classes = []
    for folder, children in inner.items():
        for child in children:
            split = read_split(child.name)
            if split is None or (subfolders(child) and not _has_images(child)):
                raise DataError(
                    f"{printable(child)}: the folders in {printable(source)} hold splits, and this one is "
                    f"{'no split' if split is None else 'one with folders in it'}; give one set of splits at a time, "
                    f"e.g. headstart train {quote(printable(folder))}"
                )
            classes.append(ClassFolder(folder=child, label=folder.name, split=split))
    first = next(iter(inner))
    names = [f"{first.name}/{child.name} is {read_split(child.name)}" for child in inner[first]]
    return classes, [f"split: taken from the folders within the class folders ({', '.join(names)})"]


def _ask_for_level(top: Path, folders: Sequence[Path], shared: Sequence[str]) -> str:
    names = [folder.name for folder in folders]
    return (
        f"{printable(top)}: the folders {some(names)} hold no images, but the same folders each ({some(shared)}): "
        f"which are the classes? The upper ones: {option('data.class_folders', 'upper')}; the lower ones, with a "
        f"split made by headstart: {option('data.class_folders', 'lower')}; if the upper ones are splits, call them "
        "train, val and test"
    )
