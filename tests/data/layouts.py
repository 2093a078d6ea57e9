"""Thirty ways in which labels lie in folders and tables, with the classes that they mean, or why they are refused."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Folders with so many pictures each, or a table as bytes; ``classes`` in output order, or what is ``told``."""

    name: str
    folders: Mapping[str, int] = field(default_factory=dict)
    table: bytes | None = None
    classes: tuple[str, ...] = ()
    told: str = ""


def _folders(name: str, folders: Mapping[str, int], *classes: str, told: str = "") -> Layout:
    return Layout(name=name, folders=folders, classes=classes, told=told)


def _table(
    name: str, lines: Sequence[str], *classes: str, told: str = "", mark: str = "", coding: str = "utf-8"
) -> Layout:
    return Layout(
        name=name, table=(mark + "".join(f"{line}\n" for line in lines)).encode(coding), classes=classes, told=told
    )


def _rows(*labels: str) -> list[str]:
    return ["image,label", *(f"{place}.png,{label}" for place, label in enumerate(labels))]


LAYOUTS = (
    _folders("two classes", {"b": 3, "a": 3}, "a", "b"),
    _folders("numbers sort as text", {"1": 3, "2": 3, "10": 3}, "1", "10", "2"),
    _folders(
        "words of YAML", {"no": 3, "true": 3, "null": 3, "1e3": 3, "0x1F": 3}, "0x1F", "1e3", "no", "null", "true"
    ),
    _folders("a class folder is empty", {"a": 3, "b": 3, "c": 0}, told="the class folder has no images"),
    _folders(
        "validation lacks a class", {"train/a": 2, "train/b": 2, "train/c": 2, "val/a": 1, "val/c": 1}, "a", "b", "c"
    ),
    _folders("validation's folder of a class is empty", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 0}, "a", "b"),
    _folders(
        "a class of validation only",
        {"train/a": 2, "train/b": 2, "val/a": 1, "val/c": 1},
        told="is in val and not in train",
    ),
    _folders(
        "a class renamed between the splits",
        {"train/cat": 2, "train/dog": 2, "val/cats": 1, "val/dog": 1},
        told="'cats' is in val",
    ),
    _folders(
        "a class of test only",
        {"train/a": 2, "train/b": 2, "val/a": 1, "test/z": 1},
        told="is in test and not in train",
    ),
    _folders(
        "case differs between the splits", {"train/Cat": 2, "train/dog": 2, "val/cat": 1}, told="differ only in case"
    ),
    _folders("upper and lower case", {"Bee": 3, "ant": 3, "Cow": 3}, "Bee", "Cow", "ant"),
    _folders("twins by case", {"a": 3, "A": 3, "b": 3}, told="differ only in case"),
    _folders("twins by Unicode form", {NFC: 3, NFD: 3}, told="Unicode form"),
    _folders(
        "Unicode form differs between the splits",
        {f"train/{NFC}": 2, "train/b": 2, f"val/{NFD}": 1},
        told="Unicode form",
    ),
    _folders("decomposed everywhere", {f"train/{NFD}": 2, "train/b": 2, f"val/{NFD}": 1}, "b", NFD),
    _folders("twins by spaces", {"a  b": 3, "a b": 3}, told="spaces"),
    _folders("spaces within", {"red fox": 3, "grey wolf": 3}, "grey wolf", "red fox"),
    _folders("emoji and other scripts", {"🐱": 3, "собака": 3, "猫": 3}, "собака", "猫", "🐱"),
    _folders("hidden and litter", {"a": 3, "b": 3, ".cache": 3, "__MACOSX": 3, "@eaDir": 3}, "a", "b"),
    _folders("nested pictures", {"a/x/y": 3, "a/z": 1, "b": 3}, "a", "b"),
    _folders("one folder around all", {"data/a": 3, "data/b": 3}, told="did you mean"),
    _folders("two folders around all", {"data/all/a": 3, "data/all/b": 3}, told="data/all?"),
    _folders("a name that is not UTF-8", {"a\udcff": 3, "b": 3}, told="is not UTF-8"),
    _folders(
        "classes beside the splits",
        {"train/a": 2, "train/b": 2, "val/a": 1, "c": 2},
        told="classes go under train and val",
    ),
    _folders("a class called train", {"train": 3, "bus": 3}, "bus", "train"),
    _folders("marks of markup", {"<b>": 3, "=1+1": 3, "'q'": 3}, "'q'", "<b>", "=1+1"),
    _table("byte order mark", _rows(*"abab"), "a", "b", mark="\ufeff"),
    _table("semicolons", [row.replace(",", ";") for row in _rows(*"abab")], "a", "b"),
    _table("quoted cells", _rows('"a ""x"" y"', "b", '"a ""x"" y"', "b"), 'a "x" y', "b"),
    _table("no, true and numbers as words", _rows("no", "true", "no", "true"), "no", "true"),
    _table("leading zeros", ["image,label", "0.png,x007", "1.png,x07", "2.png,x007", "3.png,x07"], "x007", "x07"),
    _table("twins in a table", _rows("Cat", "cat", "Cat", "cat"), told="differ only in case"),
    _table("a label is missing", _rows("a", "", "a", "b"), told="line 3"),
    _table("the column is missing", ["image", "0.png", "1.png"], told="add one with the labels"),
    _table("not UTF-8", _rows("café", "b", "café", "b"), told="not UTF-8", coding="latin-1"),
    _table(
        "a class of validation only, in a table",
        ["image,label,split", "0.png,a,train", "1.png,b,train", "2.png,a,train", "3.png,c,val"],
        told="is in val and not in train",
    ),
)


def make(layout: Layout, root: Path) -> Path:
    """The layout on disk; gives what is passed as DATA."""
    if layout.table is not None:
        for number in range(4):
            _picture(root / f"{number}.png", seed=number)
        (root / "rows.csv").write_bytes(layout.table)
        return root / "rows.csv"
    for place, (name, count) in enumerate(layout.folders.items()):
        (root / "d" / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            _picture(root / "d" / name / f"{number}.png", seed=100 * place + number)
    return root / "d"


def _picture(path: Path, *, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)


def label_of(key: str, layout: Layout) -> str:
    """The class of a picture, read off its place by other means than headstart's."""
    if layout.table is not None:
        rows = csv.reader(layout.table.decode("utf-8-sig").replace(";", ",").splitlines())
        return {row[0]: row[1] for row in rows}[key]
    parts = key.split("/")
    return parts[1] if parts[0] in ("train", "val", "test") and len(parts) > 2 else parts[0]
