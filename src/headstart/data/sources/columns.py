"""Which column of a table is the image, which the target, which the split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.data.sources.samples import IMAGE_SUFFIXES, SPLITS, Split, key_of, some
from headstart.data.sources.tables import Table
from headstart.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns in use. ``others``: what is left for the target."""

    image: str
    split: str | None
    group: str | None
    others: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ImagePaths:
    """One path and key per row, under ``root``."""

    root: Path
    paths: tuple[Path, ...]
    keys: tuple[str, ...]


def find_columns(table: Table, data: Data) -> Columns:
    """The columns that the options name, or the only ones that fit.

    Raises:
        DataError: a named column is missing, or several fit.
    """
    for option, name in (("image", data.image), ("split", data.split), ("group", data.group)):
        if name not in (None, "auto"):
            require(table, str(name), option=option)
    image = _image_column(table, data) if data.image == "auto" else data.image
    split = _split_column(table, taken=image) if data.split == "auto" else data.split
    used = {image, split, data.group}
    others = tuple(name for name in table.columns if name not in used)
    return Columns(image=image, split=split, group=data.group, others=others)


def require(table: Table, name: str, *, option: str) -> None:
    """Refuse a column that the table does not have.

    Raises:
        DataError: names the columns there are.
    """
    if name not in table.columns:
        raise DataError(
            f"data.{option}: {printable(table.path)} has no column {name!r}; its columns are "
            f"{some(table.columns, limit=20)}: --data.{option} COLUMN"
        )


def _image_column(table: Table, data: Data) -> str:
    named = [name for name in table.columns if _share_of_image_names(table.column(name)) >= 0.5]
    if len(named) > 1:
        roots = possible_roots(table, data)
        named = [name for name in named if _count_found(table.column(name)[:50], roots) > 0] or named
    if len(named) == 1:
        return named[0]
    what = f"columns {some(named)} all hold image paths" if named else "no column holds image paths (such as a/b.jpg)"
    raise DataError(
        f"{printable(table.path)}: {what}; its columns are {some(table.columns, limit=20)}: name one with "
        f"--data.image COLUMN"
    )


def _share_of_image_names(cells: Sequence[str]) -> float:
    hits = sum(os.path.splitext(cell)[1].lower() in IMAGE_SUFFIXES for cell in cells)  # noqa: PTH122 (not a path yet)
    return hits / len(cells)


def _split_column(table: Table, *, taken: str) -> str | None:
    fitting = []
    for name in table.columns:
        cells = [cell.lower() for cell in table.column(name)]
        named = sum(cell in SPLITS for cell in cells)
        is_split = named == len(cells) and "train" in {SPLITS[cell] for cell in cells}
        # a column of that name with typing errors is still the split; read_splits then names the errors
        is_called_so = name.lower() == "split" and 2 * named >= len(cells)
        if name != taken and (is_split or is_called_so):
            fitting.append(name)
    if len(fitting) > 1:
        raise DataError(
            f"{printable(table.path)}: columns {some(fitting)} all name splits; choose one with --data.split COLUMN"
        )
    return fitting[0] if fitting else None


def read_splits(table: Table, column: str | None) -> tuple[Split | None, ...]:
    """The split of each row.

    Raises:
        DataError: a cell is no split's name, or nothing is for training.
    """
    if column is None:
        return (None,) * len(table.rows)
    for row, cell in enumerate(table.column(column)):
        if cell.lower() not in SPLITS:
            raise DataError(
                f"{table.where(row)}: {cell!r} in column {column!r} is no split; accepted: train, val, test "
                f"(also valid, validation)"
            )
    splits = tuple(SPLITS[cell.lower()] for cell in table.column(column))
    if "train" not in splits:
        raise DataError(f"{printable(table.path)}: column {column!r} marks no row as train; mark those to learn from")
    return splits


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
        return tuple(root for root in (folder, folder / "images") if root.is_dir())
    root = Path(data.images)
    if not root.is_dir():
        raise DataError(
            f"data.images: there is no folder {printable(root.absolute())}; give the folder that the paths in "
            f"{printable(table.path.name)} start from: --data.images FOLDER"
        )
    return (root,)


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
    paths = tuple(_inside(_join_cell(root, cell), root=root, where=table.where(row)) for row, cell in enumerate(cells))
    _refuse_missing(table, paths, roots=roots)
    keys = tuple(key_of(path, root=root) for path in paths)
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        if key in first:
            raise DataError(
                f"{table.where(row)}: image {key!r} is already in {table.where(first[key])}; keep one row per image"
            )
        first[key] = row
    return ImagePaths(root=root, paths=paths, keys=keys)


def _inside(path: Path, *, root: Path, where: str) -> Path:
    """The path without ``.`` and ``..``, checked to lie under the root, by name and after following links."""
    plain = Path(os.path.normpath(path.absolute()))
    top = Path(os.path.normpath(root.absolute()))
    if not plain.is_relative_to(top) or not plain.resolve().is_relative_to(top.resolve()):
        raise DataError(
            f"{where}: {printable(path)} lies outside {printable(root)}; only files under the data folder are read: "
            f"copy it there, or name a folder that holds all images with --data.images FOLDER"
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
                "Mend the paths, or say where they start: --data.images FOLDER",
            ]
        )
    )
