"""A finished run at work on other images: the classes are the model's own, whatever the folders say."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest

import headstart as hs
from headstart.config.schema import Data
from headstart.data import labelled
from headstart.data.scan import scan_files
from headstart.predictor import evaluate_run, predict_paths
from headstart.runs.finish import Run


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

    def scan(files, **options):
        looked.append(len(files))
        return scan_files(files, **options)

    monkeypatch.setattr(labelled, "scan_files", scan)
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
