"""Real pictures: the numbers are those of the data sets themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from headstart.errors import DataError

pytestmark = pytest.mark.shared


def test_hymenoptera_is_taken_as_it_is_split(shared: Path, load) -> None:
    images = load(shared / "data/hymenoptera")
    assert images.train.class_counts() == {"ants": 124, "bees": 121}
    assert images.val.class_counts() == {"ants": 70, "bees": 83}
    assert not images.scan.unreadable
    assert sum(sample.key.endswith(".gif") for sample in images.train.samples + images.val.samples) == 1


def test_flowers_are_split_by_class_with_copies_on_one_side(shared: Path, load) -> None:
    images = load(shared / "data/flowers5")
    assert len(images.scan.duplicates) == 6
    assert any("4 images have copies with different labels" in note for note in images.notes)
    held, trained = ({sample.key for sample in part.samples} for part in (images.val, images.train))
    assert len(held) + len(trained) == 4317
    assert all(set(keys) <= held or set(keys) <= trained for keys in images.scan.duplicates)
    for name, count in images.val.class_counts().items():
        assert count / (count + images.train.class_counts()[name]) == pytest.approx(0.2, abs=0.005)


def test_both_tables_of_the_scenes_say_the_same(shared: Path, load) -> None:
    columns, tags = (load(shared / f"data/scenes/miml_labels_{number}.csv") for number in (1, 2))
    assert columns.classes == tags.classes == ("desert", "mountains", "sea", "sunset", "trees")
    assert columns.train.samples == tags.train.samples
    assert columns.val.samples == tags.val.samples
    assert len(columns.train.samples) + len(columns.val.samples) == 2000


def test_houses_are_a_regression_once_the_target_is_named(shared: Path, load) -> None:
    table = shared / "data/houses/houses.csv"
    with pytest.raises(DataError, match="'bedrooms', 'bathrooms', 'area', 'zipcode', 'price' can be the target"):
        load(table)
    images = load(table, target="price", log=True)
    assert (images.task.kind, images.task.targets, images.task.log) == ("regress", ("price",), True)
    assert 5.5 < images.task.mean[0] < 6.1
    with pytest.raises(DataError, match=r"there are no class folders, but a table; give it: .*houses\.csv"):
        load(table.parent)
