"""A finished run at work on other images: the classes are the model's own, whatever the folders say."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import headstart as hs
from headstart.config.schema import Data
from headstart.data import labelled
from headstart.data.scan import scan_records
from headstart.data.used_images import USED_IMAGES
from headstart.predictor import evaluate_run, predict_paths
from headstart.runs.run import Run
from headstart.storage.durable import read_folder, write_folder


@pytest.fixture(scope="module")
def run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs on the coloured pictures."""
    settings = {
        "data": {"source": str(colours)},
        "model": {
            "name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]},
        },
        "batch": {"size": 8}, "epochs": 2, "device": "cpu", "out": str(tmp_path_factory.mktemp("inference") / "run"),
    }  # fmt: skip
    return hs.train(hs.load_config(settings))


def validation_pictures(run: Run) -> list[dict[str, str]]:
    with (run.path / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def copied(run: Run, colours: Path, folder: Path, *, names: dict[str, str]) -> Path:
    """The validation pictures again as class folders, classes renamed by ``names``; others are left out."""
    for row in validation_pictures(run):
        label, name = row["id"].split("/")
        if label in names:
            (folder / names[label]).mkdir(parents=True, exist_ok=True)
            shutil.copy(colours / row["id"], folder / names[label] / name)
    return folder


def test_evaluating_the_validation_pictures_again_gives_the_runs_own_metrics(run, colours, tmp_path) -> None:
    folder = copied(run, colours, tmp_path / "again", names={name: name for name in ("blue", "green", "red")})
    assert evaluate_run(run.path, Data(source=str(folder))).metrics == run.metrics


def test_images_are_read_once_and_looked_at_in_advance_only_where_one_is_damaged(
    run, colours, tmp_path, monkeypatch
) -> None:
    folder = copied(run, colours, tmp_path / "again", names={name: name for name in ("blue", "green", "red")})
    looked = []

    def scan(source, records, **options):
        looked.append(len(records))
        return scan_records(source, records, **options)

    monkeypatch.setattr(labelled, "scan_records", scan)
    assert evaluate_run(run.path, Data(source=str(folder))).metrics == run.metrics
    assert looked == []
    (folder / "red" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(hs.Error, match=r"(?s)1 of \d+ images cannot be read:.*red/broken.png"):
        evaluate_run(run.path, Data(source=str(folder)))
    skipped = evaluate_run(run.path, Data(source=str(folder), unreadable="skip", unreadable_share=0.5))
    assert skipped.metrics == run.metrics
    assert skipped.note.endswith(", 1 unreadable left out")


def test_a_class_folder_that_is_missing_does_not_shift_the_labels(run, colours, tmp_path) -> None:
    folder = copied(run, colours, tmp_path / "two", names={"green": "green", "red": "red"})
    rows = [row for row in validation_pictures(run) if row["truth"] != "blue"]
    right = sum(row["truth"] == row["prediction"] for row in rows) / len(rows)
    assert evaluate_run(run.path, Data(source=str(folder))).metrics["accuracy"] == pytest.approx(right)


def test_a_class_that_the_model_does_not_know_is_refused_by_name(run, colours, tmp_path) -> None:
    folder = copied(run, colours, tmp_path / "odd", names={"green": "green", "red": "purple"})
    with pytest.raises(hs.Error, match=r"the model does not know 'purple'; the model's classes are 'blue', 'green'"):
        evaluate_run(run.path, Data(source=str(folder)))


def test_predictions_of_single_files_are_validations_bit_for_bit(run, colours) -> None:
    rows = validation_pictures(run)
    made = predict_paths(run.path, [colours / row["id"] for row in rows])
    for row, prediction in zip(rows, made, strict=True):
        assert prediction.labels[0] == (row["prediction"], float(row["confidence"]))


def test_an_unreadable_image_keeps_its_place_and_its_reason(run, colours, tmp_path) -> None:
    (tmp_path / "torn.png").write_bytes((colours / "red" / "00.png").read_bytes()[:100])
    good = colours / "red" / "00.png"
    made = predict_paths(run.path, [good, tmp_path / "torn.png", good])
    assert [prediction.error is None for prediction in made] == [True, False, True]
    assert made[0].labels == made[2].labels
    assert made[1].error


def test_a_folder_without_a_run_is_named(tmp_path) -> None:
    with pytest.raises(hs.Error, match="no finished run is there"):
        predict_paths(tmp_path, [tmp_path])


def test_files_whose_names_print_alike_get_their_own_predictions(run, colours, tmp_path) -> None:
    """A byte that is not UTF-8 is shown as four letters, which another file's name may hold."""
    folder = tmp_path / "alike"
    folder.mkdir()
    names = [b"\xff.png", b"\\xff.png", b"x.png"]
    for name, picture in zip(names, ("red/00.png", "blue/00.png", "green/00.png"), strict=True):
        (folder / os.fsdecode(name)).write_bytes((colours / picture).read_bytes())
    one_by_one = {name: predict_paths(run.path, [folder / os.fsdecode(name)])[0].labels for name in names}
    assert len(set(one_by_one.values())) == 3
    for paths in ([folder], [folder / os.fsdecode(name) for name in names]):
        made = predict_paths(run.path, paths)
        assert {prediction.labels for prediction in made} == set(one_by_one.values())
        assert len({prediction.path for prediction in made}) == 3
    for prediction in predict_paths(run.path, [folder / os.fsdecode(name) for name in names[:2]]):
        assert prediction.labels == one_by_one[names[1] if r"\\xff" in prediction.path else names[0]]
    (folder / "x.png").write_bytes(b"no picture")
    (torn,) = [prediction for prediction in predict_paths(run.path, [folder]) if prediction.error]
    assert torn.path.endswith("x.png")


def test_names_that_print_alike_are_refused_where_a_scan_would_share_its_findings(colours, tmp_path) -> None:
    for name in (b"\xff.png", b"\\xff.png"):
        (tmp_path / os.fsdecode(name)).write_bytes((colours / "red/00.png").read_bytes())
    with pytest.raises(hs.Error, match="two files have this name once it is written as text; rename one"):
        hs.audit(tmp_path)


def in_memory(path: Path) -> list[object]:
    """The file's picture in each form that is not a path."""
    picture = Image.open(path)
    pixels = np.asarray(picture.convert("RGB"))
    return [path.read_bytes(), bytearray(path.read_bytes()), picture, pixels, torch.from_numpy(pixels.copy())]


def test_images_in_memory_are_predicted_with_the_bits_of_their_files(run, colours) -> None:
    for path in (colours / "red" / "00.png", colours / "blue" / "03.png"):
        (expected,) = predict_paths(run.path, [path])
        assert {row.labels for row in hs.predict(run, in_memory(path))} == {expected.labels}
        for image in in_memory(path):
            (row,) = hs.predict(run, image)
            assert (row.path, row.labels) == ("image", expected.labels)


def test_a_run_may_be_a_path_what_train_returned_or_what_open_run_gives(run, colours) -> None:
    image = colours / "green" / "01.png"
    rows = [hs.predict(given, image) for given in (run.path, str(run.path / "model"), run, hs.open_run(run.path))]
    assert rows == [predict_paths(run.path, [image])] * 4


def test_paths_folders_and_pictures_keep_their_order(run, colours) -> None:
    folder, picture = colours / "red", Image.open(colours / "blue" / "00.png")
    rows = hs.predict(run, [picture, folder, b"no picture", colours / "green" / "00.png", np.asarray(picture)])
    assert [row.path for row in rows] == [
        "images[0]",
        *(str(path) for path in sorted(folder.iterdir())),
        "images[2]",
        str(colours / "green" / "00.png"),
        "images[4]",
    ]
    assert [row.path for row in rows if row.error] == ["images[2]"]
    assert rows[0].labels == rows[-1].labels != ()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_picture_of_any_colour_mode_is_seen_as_its_file_is(run, tmp_path, mode) -> None:
    levels = Image.radial_gradient("L").resize((48, 40))
    alpha = Image.linear_gradient("L").resize((48, 40))
    picture = Image.merge("RGBA", (levels, alpha, levels, alpha))
    made = Image.fromarray(np.asarray(levels).astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    made.getexif()[0x0112] = 1 if mode == "CMYK" else 6  # Pillow forgets to turn a TIFF that it maps from its file
    file = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    made.save(file, exif=made.getexif())
    rows = hs.predict(run, [file, made, Image.open(file)])
    assert rows[0].labels
    assert [row.labels for row in rows[1:]] == [rows[0].labels] * 2


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (7, r"images\[1\]: type int is not an image"),
        ([], r"images\[1\]: type list is not an image"),
        (np.zeros((3, 8, 8), np.uint8), r"images\[1\]: array of uint8 \(3, 8, 8\).*transpose\(1, 2, 0\)"),
        (torch.zeros(8, 8, 3), r"images\[1\]: tensor of float32 \(8, 8, 3\).*0 to 255"),
        (np.zeros((8, 8), np.uint8), r"images\[1\]: array of uint8 \(8, 8\).*fromarray"),
        (np.zeros((0, 8, 3), np.uint8), r"images\[1\]: array of uint8 \(0, 8, 3\)"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place(run, colours, image, found) -> None:
    with pytest.raises(hs.Error, match=found + ".*|accepted are a path") as caught:
        hs.predict(run, [colours / "red" / "00.png", image])
    assert "accepted are a path, a folder, the bytes of an image file, a PIL image" in str(caught.value)


def test_a_batch_as_one_array_is_told_to_be_a_list(run) -> None:
    batch = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(hs.Error, match=r"^image: array of uint8 \(2, 8, 8, 3\).*list\(images\)"):
        hs.predict(run, batch)
    assert len(hs.predict(run, list(batch))) == 2
    with pytest.raises(hs.Error, match="no images in an empty list"):
        hs.predict(run, [])
    with pytest.raises(hs.Error, match="type dict has no order"):
        hs.predict(run, {"a": batch[0]})


def test_a_picture_that_cannot_be_loaded_keeps_its_place_and_its_reason(run, colours, tmp_path) -> None:
    (tmp_path / "torn.png").write_bytes((colours / "red" / "00.png").read_bytes()[:500])
    whole = Image.open(colours / "red" / "00.png")
    rows = hs.predict(run, [whole, Image.open(tmp_path / "torn.png"), Image.new("F", (8, 8))])
    assert [bool(row.error) for row in rows] == [False, True, True]
    assert "floating-point" in str(rows[2].error)


def test_evaluate_on_a_run_gives_its_metrics_again_and_says_of_which_images(run, colours, tmp_path) -> None:
    folder = copied(run, colours, tmp_path / "again", names={name: name for name in ("blue", "green", "red")})
    made = [hs.evaluate(given, source) for given in (run, run.path) for source in (folder, Data(source=str(folder)))]
    assert [one.metrics for one in made] == [run.metrics] * 4
    assert made[0].note == evaluate_run(run.path, Data(source=str(folder))).note != ""
    assert made[0].accuracy == run.metrics["accuracy"]


def test_the_calls_on_a_module_stay_and_what_belongs_to_the_other_form_is_refused(run, colours) -> None:
    opened = hs.open_run(run.path)
    images = hs.open_images(colours, like=opened.preprocess)
    assert hs.evaluate(model=opened.model, batches=images.val).predictions.outputs.equal(
        hs.predict(opened.model, images.val).outputs
    )
    for call, message in (
        (lambda: hs.predict(opened.model, colours), "with a module, Batches are expected.*PosixPath was given"),
        (lambda: hs.evaluate(opened.model, colours), "with a module, Batches are expected"),
        (lambda: hs.predict(run, images.val), "Batches are for a module"),
        (lambda: hs.evaluate(run, images.val), "type Batches holds no labelled images for a run"),
        (lambda: hs.predict(run, colours, precision="bf16"), "precision: not accepted with a run"),
        (lambda: hs.predict(opened.model, images.val, device="cpu"), "device: not accepted with a module"),
        (lambda: hs.evaluate(opened.model, images.val, include_trained=True), "include_trained: not accepted with a m"),
        (lambda: hs.predict(run, colours, batch_size=0), "batch_size: 0 is not positive"),
        (lambda: hs.predict(3, colours), "type int is no run"),
    ):
        with pytest.raises(hs.Error, match=message):
            call()


def test_on_the_source_of_its_training_a_run_gets_its_own_validation_metrics(run, colours) -> None:
    again = hs.evaluate(run, colours)
    assert again.metrics == run.metrics
    rows = validation_pictures(run)
    assert sorted(again.predictions.keys) == sorted(row["id"] for row in rows)
    assert again.note == (
        f"{len(rows)} validation images of {colours}, the run's own; left out: {36 - len(rows)} that it was trained on"
    )


def test_images_that_a_run_was_trained_on_are_left_out_among_others_and_named(run, colours, tmp_path) -> None:
    held = {row["id"] for row in validation_pictures(run)}
    free = {name: sorted({f"{name}/{index:02}.png" for index in range(12)} - held) for name in ("blue", "red")}
    seen = free["blue"][:3] + free["red"][:2]
    for key in seen:
        (tmp_path / Path(key).parent).mkdir(exist_ok=True)
        shutil.copy(colours / key, tmp_path / key)
    with pytest.raises(hs.Error, match=r"was trained on all 5 images.*take these all the same: --include-trained"):
        hs.evaluate(run, tmp_path)
    everything = hs.evaluate(run, tmp_path, include_trained=True)
    shown = ", ".join(map(repr, seen[:3]))
    assert f"{tmp_path}; the run was trained on 5 of them ({shown} and 2 more); no image has " in everything.note
    Image.new("RGB", (40, 40), (250, 10, 20)).save(tmp_path / Path(seen[-1]).parent / "new.png")
    others = hs.evaluate(run, tmp_path)
    assert others.predictions.keys == (f"{Path(seen[-1]).parent}/new.png",)
    left_out = f"left out: 5 that the run was trained on ({shown} and 2 more); no image has "
    assert others.note.startswith(f"1 labelled images of {tmp_path}; {left_out}")


def test_images_that_a_run_was_trained_on_are_left_out_of_a_scanned_source_too(run, colours, tmp_path) -> None:
    source = shutil.copytree(colours, tmp_path / "again")
    (source / "red" / "broken.png").write_bytes(b"no picture")
    (source / "red" / "torn.png").write_bytes(b"")  # no bytes: then everything is looked at in advance
    skipped = hs.evaluate(run, Data(source=str(source), unreadable="skip", unreadable_share=0.5))
    assert skipped.metrics == run.metrics
    assert skipped.note.endswith("that it was trained on, 2 unreadable left out")


def test_a_run_with_test_images_of_its_own_is_evaluated_on_these(settings, colours) -> None:
    data = {"source": str(colours), "val": 0.25, "test": 0.25}
    done = hs.train(hs.load_config(settings(data=data, recipe="probe", epochs=1)))
    again = hs.evaluate(done, colours)
    assert again.metrics == done.test_metrics
    left_out = "18 that it was trained on, 9 of its validation"
    assert again.note == f"9 test images of {colours}, the run's own; left out: {left_out}"


def test_a_bundle_that_does_not_say_what_it_was_trained_on_is_used_and_that_is_said(run, colours, tmp_path) -> None:
    files = read_folder(run.path / "model")
    del files[USED_IMAGES]
    write_folder(tmp_path / "model", files)
    found = hs.evaluate(tmp_path / "model", colours)
    assert len(found.truth) == 36
    assert found.note.endswith("; which images the run was trained on is not in its bundle, so these may be among them")
    (tmp_path / "model" / USED_IMAGES).touch()  # what the manifest does not list is no part of it
    assert hs.evaluate(tmp_path / "model", colours).note == found.note
    write_folder(tmp_path / "model", files | {USED_IMAGES: b"something else"})
    with pytest.raises(hs.Error, match=rf"{USED_IMAGES}: .*; not a bundle that this headstart wrote"):
        hs.evaluate(tmp_path / "model", colours)
