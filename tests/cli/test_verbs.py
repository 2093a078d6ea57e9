"""The verbs on a small real folder: what goes to stdout and to stderr, and the exit codes."""

import csv
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from headstart.cli.main import main

SMALL = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", "32", "--recipe", "full", "--epochs", "1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    draw = random.Random(0)
    for name, colour in (("red", (200, 30, 30)), ("=blue", (30, 30, 200))):
        (root / name).mkdir(parents=True)
        for index in range(20):
            shade = tuple(channel + draw.randint(-25, 25) for channel in colour)
            Image.new("RGB", (40, 40), shade).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "photos"
    assert main(["train", str(photos), *SMALL, "--out", str(out)]) == 0
    return out


def test_plan_prints_one_object_and_writes_nothing(photos: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(photos), *SMALL, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["task"]["classes"] == ["=blue", "red"]
    assert [phase["epochs"] for phase in plan["phases"]] == [1]
    assert list(tmp_path.iterdir()) == []


def test_plan_prints_decisions_and_groups(photos: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(photos), *SMALL]) == 0
    text = capsys.readouterr().out
    assert "phase 1 full: 1 epochs" in text
    assert "head (no decay)" in text


def test_train_prints_one_object_and_tells_its_decisions_on_stderr(
    photos: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "c.yaml"
    config.write_text("model: {name: timm/test_resnet, weights: none, image_size: 32}\nrecipe: full\nepochs: 3\n")
    assert main(["train", str(photos), "--config", str(config), "--epochs", "1", "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert set(result) == {"run", "task", "seconds", "metrics", "note", "headline", "remarks"}
    assert result["note"] == "epoch 1 (trained weights)"
    assert {"accuracy", "macro_f1", "nll"} <= set(result["metrics"])
    assert Path(result["run"]) == Path("runs/photos")
    assert Path("runs/photos/config.yaml").is_file()
    assert said.err.index("loss: cross_entropy  (") < said.err.index("epoch 1: loss ")
    assert "epoch 2" not in said.err


def test_a_finished_run_is_not_trained_again(photos: Path, run: Path, capsys) -> None:
    assert main(["train", str(photos), *SMALL, "--out", str(run)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", str(photos), *SMALL, "--out", str(run), "--resume"]) == 0
    assert "finished already" in capsys.readouterr().err


def test_the_users_mistake_leaves_nothing_behind(photos: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", str(photos), *SMALL, "--loss.kind", "cross_entropy", "--loss.class-weights", "{green: 2}"]) == 2
    )
    assert "green" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_report_prints_its_path(run: Path, capsys) -> None:
    assert main(["report", str(run)]) == 0
    assert Path(capsys.readouterr().out.strip()) == run / "report.html"


def test_evaluate_gives_the_metrics_of_labelled_images(run: Path, photos: Path, capsys) -> None:
    assert main(["evaluate", str(run), str(photos), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    own = json.loads((run / "result.json").read_text())
    assert (result["task"], result["metrics"]) == ("classify", own["metrics"])
    share = f"accuracy: {100 * own['metrics']['accuracy']:.1f} % on "
    assert result["headline"].startswith(share) and "; always " in result["headline"]
    no_better = [remark for remark in result["remarks"] if remark.startswith(("No better than ", "Not clearly better"))]
    assert result["remarks"] == no_better
    note = r"validation images of .*, the run's own; left out: (\d+) that it was trained on$"
    trained = re.search(note, result["note"])
    assert trained is not None, result["note"]
    assert main(["evaluate", str(run), str(photos), "--include-trained", "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert f"; the run was trained on {trained[1]} of them" in everything["note"]


def test_images_that_the_run_was_trained_on_are_no_test_of_it(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    with (run / "predictions.csv").open(newline="") as file:
        held = {row["id"].lstrip("'") for row in csv.DictReader(file)}
    for path in photos.glob("*/*.png"):
        if path.relative_to(photos).as_posix() not in held:
            (tmp_path / path.parent.name).mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / path.parent.name / path.name)
    assert main(["evaluate", str(run), str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "the run was trained on all" in said.err and "--include-trained" in said.err
    assert main(["evaluate", str(run), str(tmp_path), "--include-trained"]) == 0


def test_predict_keeps_unreadable_images_with_their_reason(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = photos / "red" / "0.png"
    assert main(["predict", str(run), str(good), str(bad), "--format", "json", "--top", "1"]) == 0
    said = capsys.readouterr()
    known, unknown = json.loads(said.out)
    assert known["path"] == str(good)
    assert [set(label) for label in known["labels"]] == [{"name", "confidence"}]
    assert unknown["path"] == str(bad)
    assert unknown["error"]
    assert str(bad) in said.err
    assert main(["predict", str(run), str(bad), "--format", "csv"]) == 2


def test_describe_and_models_print_what_they_know(capsys) -> None:
    assert main(["describe", "timm/test_resnet", "--freeze", "backbone"]) == 0
    assert "fc (linear" in capsys.readouterr().out
    assert main(["models", "timm/test_resnet*", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["input"] == [160, 160]
    assert main(["models", "no-such-model"]) == 2
