"""Changes of the images and of the table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from tests.reliability.resume_changes.worlds import Change, World, draw_picture


def _swap(one: Path, other: Path) -> None:
    kept = one.with_suffix(".kept")
    one.rename(kept)
    other.rename(one)
    kept.rename(other)


def _again(path: Path, change: Callable[[Image.Image], Image.Image] = lambda image: image, **options: object) -> None:
    with Image.open(path) as image:
        made = change(image.convert("RGB"))
    made.save(path, **options)


def _pixel(image: Image.Image) -> Image.Image:
    image.putpixel((3, 4), (1, 2, 3))
    return image


def _rewritten(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def _linked(path: Path) -> None:
    path.rename(path.parent.parent.parent / "moved.png")
    path.symlink_to(path.parent.parent.parent / "moved.png")


def _moved_with_link(data: Path) -> None:
    data.rename(data.parent / "elsewhere")
    data.symlink_to(data.parent / "elsewhere")


FOLDER: dict[str, Callable[[Path], object]] = {
    "an image of other pixels": lambda d: draw_picture(d / "red" / "03.png", tint=1, seed=9),
    "one pixel": lambda d: _again(d / "red" / "03.png", _pixel),
    "the same pixels, packed otherwise": lambda d: _again(d / "red" / "03.png", compress_level=1),
    "one byte more at the end": lambda d: (d / "red" / "03.png").open("ab").write(b"x"),
    "an image cut short": lambda d: os.truncate(d / "red" / "03.png", 900),
    "an image emptied": lambda d: os.truncate(d / "red" / "03.png", 0),
    "an image that is text": lambda d: (d / "red" / "03.png").write_text("hello"),
    "an image as GIF under its old name": lambda d: _again(d / "red" / "03.png", format="GIF"),
    "an image renamed": lambda d: (d / "red" / "03.png").rename(d / "red" / "3.png"),
    "an image renamed to another ending": lambda d: (d / "red" / "03.png").rename(d / "red" / "03.PNG"),
    "an image removed": lambda d: (d / "red" / "03.png").unlink(),
    "an image added": lambda d: draw_picture(d / "red" / "99.png", tint=2, seed=9),
    "a copy of an image added": lambda d: shutil.copy(d / "red" / "03.png", d / "red" / "98.png"),
    "an image put in another class": lambda d: (d / "red" / "03.png").rename(d / "blue" / "33.png"),
    "two images of one class swapped": lambda d: _swap(d / "red" / "03.png", d / "red" / "04.png"),
    "two images of two classes swapped": lambda d: _swap(d / "red" / "03.png", d / "blue" / "03.png"),
    "two classes swapped": lambda d: _swap(d / "red", d / "blue"),
    "a class renamed": lambda d: (d / "red").rename(d / "scarlet"),
    "a class renamed, the order kept": lambda d: (d / "red").rename(d / "rouge"),
    "a class removed": lambda d: shutil.rmtree(d / "red"),
    "a class added": lambda d: draw_picture(d / "pink" / "01.png", tint=2, seed=9),
    "an empty class added": lambda d: (d / "pink").mkdir(),
    "an image in a folder of its own": lambda d: (d / "red" / "03.png").rename(_made(d / "red" / "deep") / "03.png"),
    "a hidden file added": lambda d: (d / "red" / ".DS_Store").write_bytes(b"x"),
    "a text file added": lambda d: (d / "red" / "notes.txt").write_text("x"),
    "an image touched": lambda d: os.utime(d / "red" / "03.png", (1, 1)),
    "an image written again, the same": lambda d: _rewritten(d / "red" / "03.png"),
    "an image that is a link now": lambda d: _linked(d / "red" / "03.png"),
    "the data moved, a link in their place": _moved_with_link,
    "the data gone": shutil.rmtree,
}  # fmt: skip


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def folder_changes() -> Iterator[Change]:
    """Of a folder of class folders."""
    for name, change in FOLDER.items():
        yield Change(name, lambda world, _, change=change: _done(change, world.data))


def _done(change: Callable[[Path], object], path: Path) -> None:
    change(path)


Rows = list[list[str]]


def _cell(row: int, column: int, value: str) -> Callable[[Rows], Rows]:
    return lambda rows: [
        [value if (i, j) == (row, column) else cell for j, cell in enumerate(line)] for i, line in enumerate(rows)
    ]


def _swapped(rows: Rows, i: int, j: int) -> Rows:
    made = list(rows)
    made[i], made[j] = made[j], made[i]
    return made


TABLE: dict[str, Callable[[Rows], Rows]] = {
    "a number": _cell(3, 1, "0.5"),
    "a number in its last digit": lambda rows: _cell(3, 1, f"{float(rows[3][1]) + 1e-4:.4f}")(rows),
    "a number written otherwise": lambda rows: _cell(3, 1, f"{float(rows[3][1]):.6e}")(rows),
    "a number emptied": _cell(3, 1, ""),
    "a number that is none": _cell(3, 1, "nan"),
    "two numbers swapped": lambda rows: _cell(3, 1, rows[3][2])(_cell(3, 2, rows[3][1])(rows)),
    "a patient": _cell(3, 3, "p7"),
    "a patient called otherwise": lambda rows: [[c.replace("p0", "q0") for c in row] for row in rows],
    "a note": _cell(3, 4, "see there"),
    "a path": lambda rows: _cell(3, 0, "./" + rows[3][0])(rows),
    "a path to another image": lambda rows: _cell(3, 0, rows[9][0])(rows),
    "a row removed": lambda rows: rows[:3] + rows[4:],
    "a row twice": lambda rows: [*rows, rows[3]],
    "a row of another order": lambda rows: _swapped(rows, 3, 12),
    "all rows backwards": lambda rows: rows[:1] + rows[:0:-1],
    "a column removed": lambda rows: [row[:4] for row in rows],
    "a column added": lambda rows: [[*row, "7"] if i else [*row, "more"] for i, row in enumerate(rows)],
    "a column that says the split": lambda rows: [
        [*row, "train" if i % 4 else "val"] if i else [*row, "split"] for i, row in enumerate(rows)
    ],
    "two columns swapped": lambda rows: [[row[0], row[2], row[1], *row[3:]] for row in rows],
    "two headings swapped": lambda rows: [[rows[0][0], rows[0][2], rows[0][1], *rows[0][3:]], *rows[1:]],
    "a target's heading": _cell(0, 1, "breadth"),
    "the patients' heading": _cell(0, 3, "person"),
    "a heading in capitals": _cell(0, 1, "WIDTH"),
}


def table_changes() -> Iterator[Change]:
    """Of a table's cells, rows, columns and headings, and of the images that it names."""
    for name, change in TABLE.items():
        yield Change(name, lambda world, _, change=change: _rewrite(world, change))
    for name in ("an image of other pixels", "one pixel", "an image removed", "two images of two classes swapped"):
        yield Change(name, lambda world, _, name=name: _done(FOLDER[name], world.data))


def _rewrite(world: World, change: Callable[[Rows], Rows]) -> None:
    path = world.data / "table.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join(",".join(row) for row in change(rows)) + "\n")
