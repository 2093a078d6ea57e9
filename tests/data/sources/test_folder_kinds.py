"""Folders as data sets are published: splits under other names, copies of the whole, levels above the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from headstart.config.schema import Data
from headstart.data.sources.listing import list_source
from headstart.data.sources.samples import Listing
from headstart.data.sources.split_names import read_split
from headstart.errors import DataError

Make = Callable[[str], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes folders with two files each, which nothing opens ("train/a train/b"); one that ends in a dot has none."""

    def run(folders: str) -> Path:
        for name in folders.split():
            folder = tmp_path / "pets" / name.rstrip(".")
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(0 if name.endswith(".") else 2):
                (folder / f"{number}.png").write_bytes(b"")
        return tmp_path / "pets"

    return run


def read(source: Path, **options: object) -> Listing:
    return list_source(Data(source=str(source), **options), kind="auto")


def ask(source: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **options)
    return str(caught.value)


def sides(listing: Listing) -> dict[str, set[str]]:
    """The classes of each split."""
    found: dict[str, set[str]] = {}
    for record in listing.records:
        found.setdefault(str(record.split), set()).update(record.labels)
    return found


AB = {"a", "b"}
SPLITS: Mapping[str, dict[str, set[str]]] = {
    "train/a train/b dev/a dev/b": {"train": AB, "val": AB},
    "train/a train/b eval/a eval/b": {"train": AB, "val": AB},
    "training_set/a training_set/b test_set/a test_set/b": {"train": AB, "test": AB},
    "Training/a Training/b Testing/a Testing/b": {"train": AB, "test": AB},
    "seg_train/a seg_train/b seg_test/a seg_test/b": {"train": AB, "test": AB},
    "seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a seg_test/seg_test/b seg_pred/seg_pred": {
        "train": AB,
        "test": AB,
    },
    "train_data/a train_data/b val_data/a val_data/b test_data/a": {"train": AB, "val": AB, "test": {"a"}},
    "train2017/a train2017/b val2017/a val2017/b": {"train": AB, "val": AB},
    "trainset/a trainset/b valset/a valset/b": {"train": AB, "val": AB},
    "images_train/a images_train/b images_val/a images_val/b": {"train": AB, "val": AB},
    "trainval/a trainval/b test/a test/b": {"train": AB, "test": AB},
    "train/train/a train/train/b val/val/a val/val/b": {"train": AB, "val": AB},
    "train/a train/b test1": {"train": AB},
    "train/a train/b unlabeled": {"train": AB},
    "train/a train/b val/a val/b notes.": {"train": AB, "val": AB},
    "a/train a/val b/train b/val": {"train": AB, "val": AB},
    "cats/Train cats/Test dogs/Train dogs/Test": {"train": {"cats", "dogs"}, "test": {"cats", "dogs"}},
}


@pytest.mark.parametrize("folders", SPLITS)
def test_splits_are_taken_as_they_are_meant_and_other_spellings_are_said(make: Make, folders: str) -> None:
    listing = read(make(folders))
    assert sides(listing) == SPLITS[folders]
    classes = set().union(*SPLITS[folders].values())
    odd = {name.split("/")[0].rstrip(".") for name in folders.split()} - classes
    odd -= {"train", "val", "test", "Training", "Testing"}
    said = (*listing.notes, *(caution.text for caution in listing.cautions))
    assert [name for name in odd if not any(name in text for text in said)] == []


CLASSES: Mapping[str, set[str]] = {
    "train bus car": {"train", "bus", "car"},
    "train train/inside train/outside bus": {"train", "bus"},
    "a/img b/img c/img": {"a", "b", "c"},
    "bullet_train night_train": {"bullet_train", "night_train"},
    "test_tube flask": {"test_tube", "flask"},
    "plants plants/rose plants/daisy stones": {"plants", "stones"},
    "rosa/canina rosa/rugosa bellis/perennis bellis/annua": {"rosa", "bellis"},
    "dogs/dogs cats/cats": {"dogs", "cats"},
}


@pytest.mark.parametrize("folders", CLASSES)
def test_classes_stay_classes(make: Make, folders: str) -> None:
    listing = read(make(folders))
    assert sides(listing) == {"None": CLASSES[folders]}


def test_images_below_a_class_folder_are_of_that_class_and_it_is_said(make: Make) -> None:
    listing = read(make("plants plants/rose plants/daisy stones"))
    assert sum(record.labels == ("plants",) for record in listing.records) == 6
    assert any("plants/daisy is 'plants'" in note for note in listing.notes)


LEVELS = (
    "fold1/a fold1/b fold2/a fold2/b",
    "camera_left/a camera_left/b camera_right/a camera_right/b",
    "berlin/a berlin/b paris/a paris/b rome/a",
    "train/a train/b holdback/a holdback/b",
    "alpha/a alpha/b beta/a beta/b",
)


@pytest.mark.parametrize("folders", LEVELS)
def test_folders_that_hold_the_same_folders_are_never_silently_the_classes(make: Make, folders: str) -> None:
    source = make(folders)
    text = ask(source)
    assert "hold no images, but the same folders each ('a', 'b'): which are the classes?" in text
    assert "--data.class-folders upper" in text and "--data.class-folders lower" in text
    upper = {name.split("/")[0] for name in folders.split()}
    assert sides(read(source, class_folders="upper")) == {"None": upper}
    assert sides(read(source, class_folders="lower")) == {"None": AB}


def test_a_folder_called_train_that_holds_folders_alone_is_asked_about(make: Make) -> None:
    source = make("train/a train/b spare")
    assert "'train' holds no images, but folders ('a', 'b'): is it a split? Then move 'spare' away" in ask(source)
    assert sides(read(source, class_folders="upper")) == {"None": {"train", "spare"}}


def test_the_level_is_asked_about_within_splits_too(make: Make) -> None:
    source = make("train/s1/a train/s1/b train/s2/a train/s2/b val/s1/a val/s1/b val/s2/a val/s2/b")
    assert f"{source / 'train'}: the folders 's1', 's2' hold no images" in ask(source)
    assert sides(read(source, class_folders="lower")) == {"train": AB, "val": AB}


def test_splits_within_sites_are_asked_about_with_a_command_that_works(make: Make) -> None:
    source = make("s1/train/a s1/train/b s1/val/a s1/val/b s2/train/a s2/train/b s2/val/a s2/val/b")
    assert f"e.g. headstart train {source / 's1'}" in ask(source)
    assert sides(read(source / "s1")) == {"train": AB, "val": AB}


@pytest.mark.parametrize(
    "folders", ["yes no data/yes data/no", "yes no copy/yes copy/no copy/other", "a b c all/a all/b all/c"]
)
def test_a_folder_beside_its_own_copy_is_no_class(make: Make, folders: str) -> None:
    source = make(folders)
    inner = source / folders.split()[-1].split("/")[0]
    text = ask(source)
    assert "is it a copy of them?" in text and f"headstart train {inner}" in text
    assert len(read(inner).records) >= 4
    assert inner.name in read(source, class_folders="upper").names


def test_a_set_of_splits_beside_its_own_copy_is_refused(make: Make) -> None:
    assert "beside 'train', 'val' there is 'set'" in ask(make("train/a train/b val/a val/b set/train/a set/train/b"))


def test_lower_without_folders_says_what_to_do(make: Make) -> None:
    assert "data.class_folders: lower, and the folders in" in ask(make("a b"), class_folders="lower")


def test_folders_that_differ_in_how_a_number_is_written_are_asked_about(make: Make) -> None:
    assert "'01' and '1' differ only in how a number is written" in ask(make("1 01 2"))
    assert read(make("x/1.1 x/1.10") / "x").names == ("1.1", "1.10")  # versions


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training_Set", "train"), ("seg_train", "train"), ("trainData", "train"),
        ("TRAIN", "train"), ("train-images", "train"), ("dev", "val"), ("validation_set", "val"), ("Valid", "val"),
        ("eval2", "val"),
        ("holdout", "val"), ("test1", "test"), ("testset", "test"), ("test_images", "test"),
        ("bullet train", None), ("contest", None), ("value", None), ("device", None), ("evaluate me", None),
        ("images", None), ("train_test", None), ("1", None),
    ],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None) -> None:
    assert read_split(name) == split


def test_a_table_beside_a_folder_without_classes_is_named_with_what_to_type(make: Make) -> None:
    source = make("train test")
    for name in ("sample_submission.csv", "train_labels.csv"):
        (source / name).write_text("id,label\n0,a\n1,b\n")
    text = ask(source)
    assert f"no class folders, but a table beside it; if it has their labels: headstart train {source}/train" in text
    assert text.endswith(f"train_labels.csv --data.images {source}/train")
    listing = list_source(Data(source=f"{source}/train_labels.csv", images=f"{source}/train"), kind="auto")
    assert [(record.name, record.labels) for record in listing.records] == [("0.png", ("a",)), ("1.png", ("b",))]


@pytest.mark.parametrize(("file", "advice"), [("0.xml", "give a table of labels"), ("0.gz", "add some")])
def test_a_folder_of_notes_beside_the_images_is_said_to_hold_no_images(make: Make, file: str, advice: str) -> None:
    source = make("images annotations.")
    (source / "annotations" / file).write_text("<a/>")
    text = ask(source)
    assert f"annotations: the class folder has no images, but 1 {Path(file).suffix} (accepted" in text
    assert f"{advice}, or remove the folder" in text
