"""Above what a tag is on: the threshold with the largest F1 of the validation images, held against scikit-learn."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score

import headstart as hs
from headstart.cli.main import main
from headstart.cli.predict import render
from headstart.errors import DataError
from headstart.predictor import Prediction
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec

TAGS = TaskSpec(kind="multilabel", classes=("red", "blue"))
KIND = find_kind("multilabel")


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), images=st.integers(30, 90), values=st.sampled_from([3, 10, 10**6]))
def test_no_threshold_has_a_larger_f1_and_of_equal_ones_the_nearest_to_a_half_is_taken(seed, images, values) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(0, values + 1, (images, 2)).astype(np.float32) / values
    truth = rng.random((images, 2)) < 0.5
    truth[:10], truth[10:20] = True, False
    chosen = KIND.choose_thresholds(TAGS, torch.tensor(probabilities), torch.tensor(truth).float())
    for tag in range(2):
        scores = probabilities[:, tag].astype(np.float64)
        cuts = [0.0, *sorted(set(scores))]  # a probability of 0 is never on
        each = [f1_score(truth[:, tag], scores > cut, zero_division=0.0) for cut in cuts]
        assert f1_score(truth[:, tag], scores > chosen[tag]) == pytest.approx(max(each), abs=1e-12)


def test_a_tag_of_few_images_keeps_a_half() -> None:
    probabilities, truth = torch.rand(40, 2), torch.zeros(40, 2)
    truth[:9, 0], truth[9:, 1] = 1, 1
    probabilities[:, 1] = truth[:, 1] * 0.2
    assert KIND.choose_thresholds(TAGS, probabilities, truth) == (0.5, 0.5)
    truth[9, 0], truth[9, 1] = 1, 0
    probabilities[:, 1] = truth[:, 1] * 0.2
    assert KIND.choose_thresholds(TAGS, probabilities, truth)[1] == pytest.approx(0.1)


def test_a_written_task_keeps_them_and_damaged_ones_are_refused() -> None:
    task = TaskSpec(kind="multilabel", classes=("red", "blue"), thresholds=(0.25, 0.5))
    assert TaskSpec.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert "thresholds" not in TAGS.to_dict()
    for wrong in ([0.5], ["a", "b"]):
        with pytest.raises(DataError, match="is not a task that headstart wrote"):
            TaskSpec.from_dict(TAGS.to_dict() | {"thresholds": wrong})


def test_all_tags_that_are_on_are_given_whatever_top_says() -> None:
    labels = tuple((f"t{place}", 0.9 - place / 100) for place in range(8))
    found = [
        Prediction(path="a.png", labels=labels, tags=tuple(name for name, _ in labels[:7])),
        Prediction(path="b.png", labels=labels, tags=()),
        Prediction(path="c.png", error="cut short"),
    ]
    rows = list(csv.DictReader(io.StringIO(render(found, form="csv", top=5))))
    assert [row["tags"] for row in rows] == ["t0;t1;t2;t3;t4;t5;t6", "", ""]
    assert [float(rows[0][f"p:{name}"]) for name, _ in labels] == [value for _, value in labels]
    assert rows[2]["error"] == "cut short"
    items = json.loads(render(found, form="json", top=1))
    assert [len(item.get("tags", ())) for item in items] == [7, 0, 0]
    assert len(items[0]["labels"]) == 8
    shown = render(found, form="table", top=1)
    assert "t0 0.900, t1 0.890, t2 0.880, t3 0.870, t4 0.860, t5 0.850, t6 0.840" in shown
    assert "b.png  none" in shown


def test_predict_and_the_report_say_above_what_a_tag_is_on(settings, tmp_path: Path, capsys) -> None:
    rng, rows = np.random.default_rng(0), [("image", "bright", "red")]
    for number in range(60):
        flags = (number % 2, number // 2 % 2)
        pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8) + 120 * flags[0]
        pixels[..., 0] = pixels[..., 0] // 2 + 120 * flags[1]
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", *flags))
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = {"source": str(tmp_path / "table.csv"), "val": 0.5}
    run = hs.train(hs.load_config(settings(data=data, epochs=4, recipe="full", optimizer={"lr": 0.01})))
    task = hs.open_run(run.path).task
    assert json.loads((run.path / "result.json").read_text())["thresholds"] == dict(
        zip(task.classes, task.thresholds, strict=True)
    )
    capsys.readouterr()
    assert main(["predict", str(run.path), str(tmp_path / "0.png"), "--format", "json"]) == 0
    printed = capsys.readouterr()
    shown = ", ".join(f"{name} {value:.3g}" for name, value in zip(task.classes, task.thresholds, strict=True))
    assert f"tags are on above the thresholds that were chosen on the validation images: {shown}" in printed.err
    (item,) = json.loads(printed.out)
    thresholds = dict(zip(task.classes, task.thresholds, strict=True))
    assert item["tags"] == [one["name"] for one in item["labels"] if one["confidence"] > thresholds[one["name"]]]
    predicted = {row["id"]: row["prediction"] for row in csv.DictReader((run.path / "predictions.csv").open())}
    for key, tags in predicted.items():
        (again,) = hs.predict(run.path, tmp_path / key)
        assert set(again.tags or ()) == set(tags.split(";")) - {""}
    page = (run.path / "report.html").read_text()
    assert "the one with the largest F1 on the validation images" in page
