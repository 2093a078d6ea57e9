"""Which column of a table is the image, which the target, which the split."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.csv_rows import ask_for_header
from headstart.data.sources.groups import BY_NAME
from headstart.data.sources.image_paths import (
    FileIndex,
    Match,
    describe_matches,
    has_image_suffix,
    index_files,
    match_cell,
    match_cells,
)
from headstart.data.sources.pixel_columns import explain_pixels
from headstart.data.sources.samples import key_of, some
from headstart.data.sources.source import Split
from headstart.data.sources.split_names import is_plain_spelling, read_split
from headstart.data.sources.tables import Table
from headstart.errors import DataError
from headstart.tasks.multilabel import MULTILABEL
from headstart.wording import option


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns in use. ``others``: what is left for the target; ``notes``: what was passed over."""

    image: str
    split: str | None
    group: str | None
    others: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImagePaths:
    """One path and key per row, under ``root``; ``notes`` say which were found otherwise than they are named."""

    root: Path
    paths: tuple[Path, ...]
    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()


def find_columns(table: Table, data: Data) -> Columns:
    """The columns that the options name, or the only ones that fit.

    Raises:
        DataError: a named column is missing, or several fit.
    """
    by_name = data.group in BY_NAME and data.group not in table.columns
    group = None if by_name else data.group
    for field, name in (("image", data.image), ("split", data.split), ("group", group)):
        if name not in (None, "auto"):
            require(table, str(name), field=field)
    image = _image_column(table, data) if data.image == "auto" else data.image
    split = _split_column(table, taken=image) if data.split == "auto" else data.split
    used = {image, split, group}
    left = [name for name in table.columns if name not in used]
    others = tuple(name for name in left if not _is_passed_over(table, name))
    passed = [name for name in left if name not in others]
    notes = (f"{some(passed)} of {printable(table.path.name)} numbers the rows or is empty, and is passed over",)
    return Columns(image=image, split=split, group=group, others=others, notes=notes if passed else ())


_INDEX_NAMES = re.compile(r"unnamed: ?\d+(?:\.\d+)*|index|idx|id|no\.?|nr\.?|#|row(?:[_ ]?id)?|__index_level_\d+__")


def _is_passed_over(table: Table, name: str) -> bool:
    """Whether the column can be no target: every cell is empty, or it counts the rows and has no name of its own."""
    cells = table.column(name)
    if not any(cells):
        return True
    if name not in table.unnamed and _INDEX_NAMES.fullmatch(name.lower()) is None:
        return False
    numbers = [int(cell) for cell in cells if re.fullmatch(r"\d{1,15}", cell)]
    ascends = all(one < other for one, other in pairwise(numbers))
    return len(numbers) == len(cells) and ascends


def require(table: Table, name: str, *, field: str) -> None:
    """Refuse a column that the table does not have.

    Raises:
        DataError: names the columns there are.
    """
    if name not in table.columns:
        raise DataError(
            f"data.{field}: {printable(table.path)} has no column {name!r}; its columns are "
            f"{some(table.columns, limit=20)}: {option(f'data.{field}', fill='COLUMN')}"
        )


def _image_column(table: Table, data: Data) -> str:
    named = [name for name in table.columns if _share_of_image_names(table.column(name)) >= 0.5]
    if len(named) > 1:
        roots = possible_roots(table, data)
        named = [name for name in named if _count_found(table.column(name)[:50], roots) > 0] or named
    if not named:
        named = _columns_without_endings(table, data)
    if len(named) == 1:
        return named[0]
    pixels = explain_pixels(table.columns, table.rows)
    if pixels:
        raise DataError(f"{printable(table.path)}: {pixels}")
    what = (
        f"columns {some(named)} all hold image paths"
        if named
        else "no column holds image paths (such as a/b.jpg), or names of images there without their ending"
    )
    fetched = [name for name in table.columns if any(map(_ADDRESS.match, table.column(name)[:50]))]
    if fetched and not named:
        raise DataError(
            f"{printable(table.path)}: column {fetched[0]!r} holds addresses ({table.column(fetched[0])[0]!r}), which "
            "are not fetched; download the images, and give the table a column with the names of their files"
        )
    raise DataError(
        f"{printable(table.path)}: {what}; its columns are {some(table.columns, limit=20)}: name one with "
        f"{option('data.image', fill='COLUMN')}"
    )


_IMAGE_NAMES = re.compile(
    r"(?:image|img|file|photo|picture|pic)s?[_ -]?(?:id|name|path|file)?s?|id|name|path|filename|filepath|column 1"
)


def _columns_without_endings(table: Table, data: Data) -> list[str]:
    """Columns whose cells are names of images without their ending; the one that is called so, where several are."""
    fitting: list[str] = []
    for index in map(index_files, possible_roots(table, data)):
        fitting = [name for name in table.columns if _names_files(table.column(name), index)]
        for name in fitting:
            if data.header == "auto" and match_cell(name, index) is not None:
                raise DataError(ask_for_header(table.path, line=table.lines[0] - 1, cells=table.columns))
        if fitting:
            break
    called = [name for name in fitting if _IMAGE_NAMES.fullmatch(name.lower())]
    return called[:1] if called else fitting


def _names_files(cells: Sequence[str], index: FileIndex) -> bool:
    """Whether nearly all of the first cells are files of the index, and no two cells are alike."""
    sample = [cell for cell in cells[:50] if cell]
    hits = sum(match_cell(cell, index) is not None for cell in sample)
    return bool(sample) and hits >= 0.9 * len(sample) and len(set(cells)) == len(cells)


def _share_of_image_names(cells: Sequence[str]) -> float:
    return sum(map(has_image_suffix, cells)) / len(cells)


def _split_column(table: Table, *, taken: str) -> str | None:
    fitting = []
    for name in table.columns:
        cells = table.column(name)
        splits = [read_split(cell) for cell in cells]
        named = sum(split is not None for split in splits)
        is_split = named == len(cells) and "train" in splits
        # a column of that name with typing errors is still the split; read_splits then names the errors
        is_called_so = name.lower() == "split" and 2 * named >= len(cells)
        if name != taken and (is_split or is_called_so or _marks_validation(name, cells)):
            fitting.append(name)
    if len(fitting) > 1:
        raise DataError(
            f"{printable(table.path)}: columns {some(fitting)} all name splits; choose one with "
            f"{option('data.split', fill='COLUMN')}"
        )
    return fitting[0] if fitting else None


def _marks_validation(name: str, cells: Sequence[str]) -> bool:
    """Whether the column says of each row that it is for validation, or not, as fastai's tables do."""
    return name.lower() in _FLAGGED and {cell.lower() for cell in cells} in ({"true", "false"}, {"1", "0"})


_ADDRESS = re.compile(r"(?:https?|s3|gs|ftp)://")
_FLAGGED: dict[str, Split] = {"is_valid": "val", "is_val": "val", "is_validation": "val", "is_test": "test"}


def read_splits(table: Table, column: str | None) -> tuple[Split | None, ...]:
    """The split of each row.

    Raises:
        DataError: a cell is no split's name, or nothing is for training.
    """
    if column is None:
        return (None,) * len(table.rows)
    if _marks_validation(column, table.column(column)):
        return tuple(
            _FLAGGED[column.lower()] if cell.lower() in ("true", "1") else "train" for cell in table.column(column)
        )
    splits = [read_split(cell) for cell in table.column(column)]
    for row, split in enumerate(splits):
        if split is None:
            raise DataError(
                f"{table.where(row)}: {table.column(column)[row]!r} in column {column!r} is no split; accepted: train, "
                f"val, test (also valid, validation, dev, eval, training_set, ...)"
            )
    if "train" not in splits:
        raise DataError(f"{printable(table.path)}: column {column!r} marks no row as train; mark those to learn from")
    return tuple(splits)


def describe_splits(table: Table, column: str | None) -> tuple[str, ...]:
    """A note on the split column and on spellings of its cells that are not the usual ones."""
    if column is None:
        return ()
    cells = sorted(set(table.column(column)))
    if _marks_validation(column, cells):
        return (f"split: rows that {column!r} marks are {_FLAGGED[column.lower()]}",)
    odd = [f"{cell!r} is {read_split(cell)}" for cell in cells if not is_plain_spelling(cell)]
    return (f"split: in column {column!r} {', '.join(odd[:5])}",) if odd else ()


def read_groups(table: Table, column: str | None) -> tuple[str | None, ...]:
    """The group of each row.

    Raises:
        DataError: a cell is empty.
    """
    if column is None:
        return (None,) * len(table.rows)
    cells = table.column(column)
    for row, cell in enumerate(cells):
        if not cell:
            raise DataError(f"{table.where(row)}: the group column {column!r} is empty; give every image its group")
    return cells


def possible_roots(table: Table, data: Data) -> tuple[Path, ...]:
    """Folders that the table's paths may start from.

    Raises:
        DataError: ``data.images`` is no folder.
    """
    if data.images is None:
        folder = table.path.parent
        inside = [root for root in (folder, folder / "images") if root.is_dir()]
        return (*inside, *(root for root in _folders_beside(table) if root.is_dir() and root.name != folder.name))
    root = Path(data.images)
    if not root.is_dir():
        raise DataError(
            f"data.images: there is no folder {printable(root.absolute())}; give the folder that the paths in "
            f"{printable(table.path.name)} start from: {option('data.images', fill='FOLDER')}"
        )
    return (root,)


def _folders_beside(table: Table) -> list[Path]:
    """Where images often lie beside a folder of tables: ``images`` beside ``annotations``."""
    above = Path(os.path.normpath(table.path.parent / os.pardir))
    return [above / name for name in ("images", "Images", "JPEGImages", "imgs", "img")]


def _count_found(cells: Sequence[str], roots: Sequence[Path]) -> int:
    return max((sum(_join_cell(root, cell).is_file() for cell in cells) for root in roots), default=0)


def _join_cell(root: Path, cell: str) -> Path:
    """The path a cell means; Windows' separators are understood where no such file exists."""
    path = root / cell
    if "\\" in cell and not path.exists():
        path = root / cell.replace("\\", "/")
    return path


def find_images(table: Table, *, column: str, data: Data) -> ImagePaths:
    """The image of each row.

    Raises:
        DataError: a cell is empty, a file is missing or outside the folder, or two rows name one image.
    """
    cells = table.column(column)
    for row, cell in enumerate(cells):
        if not cell or "\0" in cell:
            raise DataError(f"{table.where(row)}: column {column!r} has no image path; give one in every row")
    roots = possible_roots(table, data)
    root = max(roots, key=lambda folder: _count_found(cells, [folder]))  # the first of equals: the table's own folder
    paths = [_join_cell(root, cell) for cell in cells]
    matches: Mapping[int, Match] = {}
    if not all(path.exists() for path in paths):
        root, matches = _match_missing(cells, root, roots)
        paths = [_join_cell(root, cell) for cell in cells]
    for row, match in matches.items():
        paths[row] = root.joinpath(*match.path)
    inside = tuple(
        _inside(path, root=root, where=table.where(row)) if path.exists() else path for row, path in enumerate(paths)
    )
    _refuse_missing(table, inside, roots=roots)
    keys = tuple(key_of(path, root=root) for path in inside)
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        if key in first:
            raise DataError(
                f"{table.where(row)}: image {key!r} is already in {table.where(first[key])}; keep one row per image; "
                "if each row has one of its tags, join them in one cell, as in 'red|round', and say "
                f"{option('task.kind', MULTILABEL.name)}"
            )
        first[key] = row
    notes = describe_matches(tuple(matches.values()), total=len(cells))
    if root in _folders_beside(table):
        notes = (*notes, f"images are taken from {printable(root)}, beside the table's folder")
    return ImagePaths(root=root, paths=inside, keys=keys, notes=notes)


def _match_missing(cells: Sequence[str], root: Path, roots: Sequence[Path]) -> tuple[Path, Mapping[int, Match]]:
    """The root under which most cells have a file by another spelling, and these files by the cells' places.

    A root under which a cell has a file as it stands is the only one that is searched.
    """
    best: tuple[Path, Mapping[int, Match]] = (root, {})
    candidates = (root,) if _count_found(cells, [root]) else roots
    for folder in candidates:
        present = [_join_cell(folder, cell).exists() for cell in cells]
        matches = match_cells(cells, index_files(folder), present=present)
        if len(matches) > len(best[1]):
            best = folder, matches
    return best


def _inside(path: Path, *, root: Path, where: str) -> Path:
    """The path without ``.`` and ``..``, checked to lie under the root, by name and after following links."""
    plain = Path(os.path.normpath(path.absolute()))
    top = Path(os.path.normpath(root.absolute()))
    if not plain.is_relative_to(top) or not plain.resolve().is_relative_to(top.resolve()):
        raise DataError(
            f"{where}: {printable(path)} lies outside {printable(root)}; only files under the data folder are read: "
            f"copy it there, or name a folder that holds all images with {option('data.images', fill='FOLDER')}"
        )
    return root / plain.relative_to(top)


def _refuse_missing(table: Table, paths: Sequence[Path], *, roots: Sequence[Path], limit: int = 20) -> None:
    missing = [row for row, path in enumerate(paths) if not path.is_file()]
    if not missing:
        return
    looked = " and ".join(printable(root) for root in roots)
    lines = [f"  {table.where(row)}: {printable(paths[row])}" for row in missing[:limit]]
    if len(missing) > limit:
        lines.append(f"  and {len(missing) - limit} more")
    raise DataError(
        "\n".join(
            [
                f"{printable(table.path)}: {len(missing)} of {len(paths)} images do not exist (looked in {looked}):",
                *lines,
                f"Mend the paths, or say where they start: {option('data.images', fill='FOLDER')}",
            ]
        )
    )
