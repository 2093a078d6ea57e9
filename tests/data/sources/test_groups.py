from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from headstart.data.sources.groups import describe_frames, read_group
from headstart.errors import DataError

FRAMES = {
    "tracks": [f"{sign}/{track:05}_{frame:05}.ppm" for sign in "ab" for track in range(5) for frame in range(30)],
    "views": [f"obj{number}__{angle}.png" for number in range(8) for angle in range(0, 360, 5)],
    "films": [f"{name}/video{film}_frame{frame:04}.png" for name in "ab" for film in range(4) for frame in range(12)],
    "clips": [f"{name}/clip{film}-{frame}.jpg" for name in "ab" for film in range(4) for frame in range(1, 9)],
}
PHOTOS = {
    "classes": [f"{name}/{name}.{number}.jpg" for name in ("cat", "dog") for number in range(50)],
    "cameras": [f"{name}/IMG_{number:04}.jpg" for name in "abcdef" for number in range(50)],
    "times": [f"a/IMG_2019{month:02}01_{number * number * 37:06}.jpg" for month in range(1, 9) for number in range(9)],
    "numbers": [f"{name}/{number:04}.png" for name in "ab" for number in range(50)],
    "words": [f"a/{word}.png" for word in ("one", "two", "three", "four")],
}


def first(keys: Sequence[str]) -> list[str]:
    """A label for each image: its folder, or every second object."""
    return [key.split("/")[0] if "/" in key else str(int(key.removeprefix("obj").split("_")[0]) % 2) for key in keys]


@pytest.mark.parametrize("name", FRAMES)
def test_names_of_frames_and_views_are_said_with_the_option(name: str) -> None:
    (found,) = describe_frames(FRAMES[name], first(FRAMES[name]))
    note = f"{found.text}; to {found.advice}"
    assert note.startswith(f"the names look like {10 if name == 'tracks' else 8} objects or films")
    assert "--data.group prefix" in note


@pytest.mark.parametrize("name", PHOTOS)
def test_names_of_photos_are_not_taken_for_frames(name: str) -> None:
    assert describe_frames(PHOTOS[name], first(PHOTOS[name])) == ()


def test_breeds_in_one_folder_are_classes_and_no_films() -> None:
    keys = [f"{breed}_{number}.jpg" for breed in ("pug", "beagle", "Manx", "Birman") for number in range(1, 40)]
    assert describe_frames(keys, [key.split("_")[0] for key in keys]) == ()


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("a/video1_frame0003.png", "a/video1"),
        ("a/00012_00025.ppm", "a/00012"),
        ("a/clip 3.jpg", "a/clip"),
        ("a/0001.png", "a/0001.png"),
        ("a/x.png", "a/x.png"),
    ],
)
def test_the_group_is_the_name_up_to_its_last_number(key: str, group: str) -> None:
    assert read_group(key, "prefix") == group
    assert read_group(key, "folder") == "a"


@pytest.mark.parametrize("how", ["prefix", "folder"])
def test_groups_by_name_stay_on_one_side_of_a_split_of_folders(load, draw, tmp_path: Path, how: str) -> None:
    for place, name in enumerate(
        f"{label}/s{n}/clip{n}_{frame}" for label in "xy" for n in range(5) for frame in range(3)
    ):
        draw(tmp_path / "set" / f"{name}.png", seed=place)
    images = load(tmp_path / "set", group=how, **{"class_folders": "upper"})
    sides = [{sample.key.rpartition("_")[0] for sample in part.samples} for part in (images.train, images.val)]
    assert sides[0].isdisjoint(sides[1]) and sides[1]
    assert any(f"equal {how!r} stay on one side" in note for note in images.notes)
    assert not any("look like" in note for note in images.notes)
    assert any("look like 10 objects" in note for note in load(tmp_path / "set", class_folders="upper").notes)


def test_a_column_as_group_of_a_folder_is_refused_with_what_is_accepted(folders, load) -> None:
    with pytest.raises(DataError, match=r"data.group: 'patient' would be a column, and .* is a folder; accepted there"):
        load(folders({"a": 3, "b": 3}), group="patient")


def test_a_table_has_groups_by_name_unless_a_column_is_called_so(table, load) -> None:
    rows = "".join(f"i{place}.png,{'ab'[place % 2]},{place // 2}\n" for place in range(20))
    images = load(table("f,label,prefix\n" + rows, pictures=20), group="prefix")
    sides = [{int(sample.key[1:-4]) // 2 for sample in part.samples} for part in (images.train, images.val)]
    assert sides[0].isdisjoint(sides[1])


def test_a_table_without_groups_of_its_own_has_them_by_name(load, draw, tmp_path: Path) -> None:
    names = [f"clip{film}_{frame}.png" for film in range(8) for frame in range(4)]
    for place, name in enumerate(names):
        draw(tmp_path / name, seed=place)
    rows = [f"{name},{'ab'[place // 4 % 2]}" for place, name in enumerate(names)]
    (tmp_path / "rows.csv").write_text("\n".join(["f,label", *rows]))
    (warned,) = [caution for caution in load(tmp_path / "rows.csv").cautions if "look like 8 objects" in caution.text]
    assert warned.count == 8
    assert warned.advice == "keep them together: --data.group prefix"
    images = load(tmp_path / "rows.csv", group="prefix")
    sides = [{sample.key.partition("_")[0] for sample in part.samples} for part in (images.train, images.val)]
    assert sides[0].isdisjoint(sides[1]) and sides[1]
    assert images.cautions == ()
