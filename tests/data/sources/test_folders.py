from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from tests.data.refusals import message


def test_classes_are_the_folders_sorted_by_name(folders, load) -> None:
    images = load(folders({"10": 3, "2": 3, "b": 3, "B2": 3}))
    assert images.classes == ("10", "2", "B2", "b")
    assert images.task.kind == "classify"
    everything = images.train.samples + images.val.samples
    assert all(images.classes[sample.target] == sample.key.split("/")[0] for sample in everything)


def test_indices_are_places_among_the_sorted_keys_of_all_readable_images(folders, load) -> None:
    images = load(folders({"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2}))
    everything = sorted(images.train.samples + images.val.samples, key=lambda sample: sample.key)
    assert [sample.index for sample in everything] == list(range(10))


def test_an_unreadable_image_that_is_skipped_has_no_index(folders, load) -> None:
    """Random changes follow the index: the run is the one on the data without it."""
    root = folders({"a": 4, "b": 4})
    (root / "a/000.png").write_bytes(b"")
    skipped = load(root, unreadable="skip", unreadable_share=0.2)
    (root / "a/000.png").unlink()
    cleaned = load(root)
    for one, other in ((skipped.train, cleaned.train), (skipped.val, cleaned.val)):
        assert one.samples == other.samples


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_splits_are_taken_as_given(folders, load, val: str) -> None:
    images = load(folders({"train/a": 3, "train/b": 3, f"{val}/a": 1, f"{val}/b": 2, "test/a": 1, "test/b": 1}))
    assert (len(images.train.samples), len(images.val.samples), len(images.test.samples)) == (6, 3, 2)
    assert "split: as given: 6 train, 3 val, 2 test" in images.notes


def test_validation_is_made_from_train_when_only_test_is_given(folders, load) -> None:
    images = load(folders({"train/a": 10, "train/b": 10, "test/a": 2, "test/b": 2}))
    assert (len(images.train.samples), len(images.val.samples), len(images.test.samples)) == (16, 4, 4)


def test_images_at_any_depth_belong_to_their_class(folders, load) -> None:
    images = load(folders({"a/x/y": 3, "a": 1, "b/z": 4}))
    assert sum(images.train.class_counts().values()) + sum(images.val.class_counts().values()) == 8
    assert images.classes == ("a", "b")


def test_hidden_and_system_folders_are_no_classes(folders, load, draw) -> None:
    root = folders({"a": 3, "b": 3, ".cache": 2, "__MACOSX/a": 2})
    draw(root / "a/._000.png")
    images = load(root)
    assert images.classes == ("a", "b")
    assert len(images.scan.hashes) == 6


def test_a_class_may_be_called_train(folders, load) -> None:
    assert load(folders({"train": 3, "bus": 3, "car": 3})).classes == ("bus", "car", "train")


def test_other_files_are_left_out_and_said(folders, load) -> None:
    root = folders({"a": 3, "b": 3})
    (root / "a/readme.txt").write_text("x")
    assert "1 file is no image and left out (1 .txt, e.g. " in "; ".join(load(root).notes)


@pytest.mark.parametrize("name", ["test", "my_unlabeled", "Test"])
def test_images_to_be_predicted_beside_the_splits_are_warned_of(name: str, folders, load) -> None:
    """As competitions have them: there is no class folder to read a label from."""
    root = folders({"train/a": 4, "train/b": 4, name: 3, "pred": 0})
    images = load(root)
    (caution,) = images.cautions
    assert caution.text == (
        f"3 images of {name!r} are in no class folder and left out, e.g. '{name}/000.png', '{name}/001.png' and 1 more"
    )
    assert (caution.count, caution.example) == (3, f"{name}/000.png")
    assert f"predict them after training: headstart predict RUN {root / name}; where" in caution.advice
    assert images.test is None and "pred: it holds no image, and is left out" in "; ".join(images.notes)


def test_a_class_that_train_lacks_is_an_error(folders, load) -> None:
    text = message(load, folders({"train/a": 2, "train/b": 2, "val/a": 1, "val/c": 1}))
    assert "class 'c' is in val and not in train" in text
    assert "train has 'a', 'b'" in text


def test_a_class_that_validation_lacks_is_a_note(folders, load) -> None:
    images = load(folders({"train/a": 2, "train/b": 2, "val/a": 1}))
    assert any("val has no image of class 'b'" in note for note in images.notes)
    assert images.classes == ("a", "b")


def test_one_class_is_an_error(folders, load) -> None:
    assert "all images have the class 'a'; at least two classes are needed" in message(load, folders({"a": 3}))


def test_one_folder_around_the_class_folders_is_pointed_at(folders, load) -> None:
    root = folders({"inner/a": 3, "inner/b": 3})
    assert f"did you mean {root / 'inner'}?" in message(load, root)


def test_an_empty_class_folder_is_an_error(folders, load) -> None:
    root = folders({"a": 3, "b": 3, "c": 0})
    text = message(load, root)
    assert f"{root / 'c'}: the class folder has no images (accepted: JPEG, PNG" in text
    assert "remove the folder" in text


def test_no_images_is_an_error(tmp_path: Path, folders, load) -> None:
    assert "there are no images; accepted: SOURCE/CLASS/IMAGE" in message(load, tmp_path)
    assert "no images in any class folder ('a', 'b')" in message(load, folders({"a": 0, "b": 0}))


def test_images_without_class_folders_are_an_error(tmp_path: Path, draw, load) -> None:
    draw(tmp_path / "a.png")
    assert "there are 1 images and no class folders" in message(load, tmp_path)
    (tmp_path / "rows.csv").write_text("x")
    assert f"there are no class folders, but a table; give it: {tmp_path / 'rows.csv'}" in message(load, tmp_path)


def test_a_missing_source_and_a_file_that_is_no_table_are_errors(tmp_path: Path, draw, load) -> None:
    assert "data.source: there is no " in message(load, tmp_path / "none")
    assert "is neither a folder nor a table; accepted" in message(load, draw(tmp_path / "a.png"))


def test_val_without_train_is_an_error(folders, load) -> None:
    assert "no 'train' folder" in message(load, folders({"val/a": 2, "val/b": 2}))


def test_two_folders_for_one_split_are_an_error(folders, load) -> None:
    text = message(load, folders({"train/a": 2, "val/a": 2, "valid/a": 2}))
    assert "'val', 'valid' both mean val" in text


def test_classes_beside_train_and_val_are_an_error(folders, load) -> None:
    assert "there is 'cats'" in message(load, folders({"train/a": 2, "val/a": 2, "cats": 2}))


def test_unicode_twins_are_an_error_that_shows_the_difference(folders, load) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    text = message(load, folders({composed: 2, decomposed: 2}))
    assert r"'cafe\u0301'" in text
    assert r"'caf\xe9'" in text
    assert "Unicode form (NFC, NFD)" in text


@pytest.mark.parametrize("letter", ["\u200b", "\u200e", "\u00ad", "\u2060", "\x07"])
def test_names_that_differ_in_letters_that_are_not_seen_are_an_error(folders, load, letter: str) -> None:
    odd = f"ca{letter}t"
    text = message(load, folders({"cat": 2, odd: 2}))
    assert "differ only in letters that are not seen" in text
    assert f"{odd!a}" in text


def test_names_that_differ_in_case_only_are_an_error(folders, load) -> None:
    root = folders({"train/Cat": 2, "train/dog": 2, "val/cat": 2, "val/dog": 2})
    assert "'Cat' and 'cat' differ only in case" in message(load, root)


def test_a_class_name_that_is_not_utf8_is_an_error(folders, load) -> None:
    try:
        root = folders({"a\udcff": 2, "b": 2})
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert r"'a\udcff' is not UTF-8; rename it" in message(load, root)


def test_file_names_that_are_not_utf8_are_trained_on(folders, load, draw) -> None:
    root = folders({"a": 4, "b": 4})
    try:
        draw(root / "a/\udcff.png", seed=77)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images = load(root)
    keys = [sample.key for sample in images.train.samples + images.val.samples]
    assert r"a/\xff.png" in keys
    assert sum(batch.size for batch in images.train.epoch(0)) == len(images.train.samples)


def test_links_out_of_the_folder_are_refused(folders, load, draw, tmp_path: Path) -> None:
    root = folders({"a": 2, "b": 2})
    outside = draw(tmp_path / "secret/x.png")
    (root / "a/link.png").symlink_to(outside)
    assert "is a link out of" in message(load, root)
    (root / "a/link.png").unlink()
    (root / "c").symlink_to(outside.parent)
    assert "is a link out of" in message(load, root)


def test_a_split_folder_that_is_a_link_out_is_refused(folders, load, tmp_path: Path) -> None:
    root = folders({"train/a": 2, "train/b": 2})
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    assert "is a link out of" in message(load, root)


def test_a_link_to_a_folder_inside_is_refused(folders, load) -> None:
    root = folders({"a": 2, "b": 2})
    (root / "a/again").symlink_to(root / "b")
    assert "is a link to a folder" in message(load, root)


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_an_error(folders, load) -> None:
    root = folders({"a": 2, "b": 2})
    (root / "a").chmod(0)
    try:
        assert "cannot be read" in message(load, root)
    finally:
        (root / "a").chmod(0o755)


def test_options_of_tables_are_refused_for_folders(folders, load) -> None:
    root = folders({"a": 2, "b": 2})
    assert "data.target: it is for tables" in message(load, root, target="x")
    assert "data.group: 'x' would be a column" in message(load, root, group="x")
    assert "data.log: it is for numbers" in message(load, root, log=True)
    assert "task.kind: regress, but" in message(load, root, kind="regress")


def test_unreadable_images_stop_the_run_with_names_reasons_and_the_way_on(folders, load) -> None:
    root = folders({"a": 30, "b": 3})
    for place in range(23):
        (root / f"a/{place:03}.png").write_bytes(b"")
    text = message(load, root)
    assert "23 of 33 images cannot be read:" in text
    assert "  a/000.png: the file is empty" in text
    assert "a/019.png" in text
    assert "a/020.png" not in text
    assert "and 3 more" in text
    assert "--data.unreadable skip" in text


def test_unreadable_images_are_left_out_and_recorded_when_told(folders, load) -> None:
    root = folders({"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})
    (root / "train/a/000.png").write_bytes(b"<html>")
    images = load(root, unreadable="skip", unreadable_share=0.2)
    assert len(images.train.samples) == 7
    (lost,) = images.scan.unreadable
    assert (lost.key, lost.path) == ("train/a/000.png", root / "train/a/000.png")
    assert "HTML" in lost.reason
    assert any("1 unreadable image is left out: 'train/a/000.png (it is a web page" in note for note in images.notes)


def test_more_unreadable_images_than_their_share_are_an_error_that_says_what_would_do(folders, load) -> None:
    root = folders({"a": 60, "b": 40})
    (root / "a/000.png").write_bytes(b"")
    assert len(load(root, unreadable="skip").scan.unreadable) == 1  # 1 % may be
    (root / "b/000.png").write_bytes(b"")
    text = message(load, root, unreadable="skip")
    assert "2 of 100 images cannot be read, 2.0%, more than data.unreadable_share 0.01:" in text
    assert "a/000.png: the file is empty" in text and text.endswith("--data.unreadable-share 0.02")
    assert len(load(root, unreadable="skip", unreadable_share=0.02).scan.unreadable) == 2


def test_a_class_of_unreadable_images_only_is_an_error_even_when_skipping(folders, load) -> None:
    root = folders({"a": 3, "b": 1})
    (root / "b/000.png").write_bytes(b"")
    text = message(load, root, unreadable="skip")
    assert "no image of 'b' can be read, e.g. b/000.png (the file is empty)" in text


def test_a_given_split_of_unreadable_images_only_is_an_error_even_when_skipping(folders, load) -> None:
    root = folders({"train/a": 3, "train/b": 3, "val/a": 1})
    (root / "val/a/000.png").write_bytes(b"")
    assert "no image of 'val' can be read" in message(load, root, unreadable="skip")


def test_copies_across_given_splits_are_counted(folders, load) -> None:
    root = folders({"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2})
    (root / "val/a/000.png").write_bytes((root / "train/a/000.png").read_bytes())
    (root / "val/a/001.png").write_bytes((root / "train/a/001.png").read_bytes())
    assert any("2 images are in both train and val" in note for note in load(root).notes)


def test_copies_with_different_labels_are_said(folders, load) -> None:
    root = folders({"a": 4, "b": 4})
    (root / "b/000.png").write_bytes((root / "a/000.png").read_bytes())
    images = load(root)
    assert images.scan.duplicates == (("a/000.png", "b/000.png"),)
    assert any("1 image has copies with different labels" in note for note in images.notes)


def test_too_few_images_to_hold_some_out_is_an_error(folders, load) -> None:
    assert "2 images are too few to hold some out" in message(load, folders({"a": 1, "b": 1}))


def test_progress_counts_every_image(folders, preprocess) -> None:
    from headstart.config.schema import Config, Data
    from headstart.data.images import load_images

    seen: list[tuple[int, int]] = []
    config = Config(data=Data(source=str(folders({"a": 3, "b": 3}))))
    load_images(config, preprocess, on_decoded=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
