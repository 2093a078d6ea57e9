"""Labels are what they seem: one mapping from training to bundle and prediction, or a refusal; copies across splits."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.cli.main import main
from headstart.config.schema import Data
from headstart.data.labelled import Subject, choose_labelled_batches
from headstart.errors import DataError
from headstart.storage.durable import json_bytes
from headstart.tasks.task import TaskSpec

sys.path.insert(0, str(Path(__file__).parent))
from layouts import LAYOUTS, Layout, label_of, make

SMALL = "--model timm/test_resnet --weights none --image-size 32 --recipe full --epochs 1 --workers 0 --device cpu"
BUNDLED = ("numbers sort as text", "words of YAML", "upper and lower case", "emoji and other scripts", "decomposed everywhere",  # noqa: E501
           "no, true and numbers as words")  # fmt: skip


def by_name(name: str) -> Layout:
    return next(layout for layout in LAYOUTS if layout.name == name)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_has_one_mapping_or_is_refused(layout: Layout, tmp_path: Path, load, preprocess) -> None:
    try:
        source = make(layout, tmp_path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    if layout.told:
        with pytest.raises(DataError, match=layout.told.replace("?", r"\?")):
            load(source)
        return
    images = load(source)
    assert images.classes == layout.classes
    task = TaskSpec.from_dict(json.loads(json_bytes(images.task.to_dict())))
    assert task == images.task
    evaluated = choose_labelled_batches(
        Data(source=str(source), image="image" if layout.table else "auto"),
        own_source=None,
        subject=Subject(task=task, preprocess=preprocess, used=None),
        batch_size=4,
        scanned=True,
    )
    for sample in (*images.train.samples, *images.val.samples, *evaluated.batches.samples):
        assert images.classes[sample.target] == label_of(sample.key, layout), sample.key


@pytest.mark.parametrize("name", BUNDLED)
def test_the_mapping_is_that_of_the_bundle_and_of_predict(name: str, tmp_path: Path, capsys) -> None:
    layout = by_name(name)
    source = make(layout, tmp_path)
    assert main(["train", str(source), *SMALL.split(), "--val", "0.4", "--out", str(tmp_path / "run")]) == 0
    facts = json.loads((tmp_path / "run/model/headstart.json").read_text(encoding="utf-8"))
    assert tuple(facts["task"]["classes"]) == layout.classes
    assert tuple(json.loads((tmp_path / "run/model/config.json").read_text())["label_names"]) == layout.classes
    assert main(["evaluate", str(tmp_path / "run"), str(source)]) == 0
    capsys.readouterr()
    picture = next(source.parent.rglob("*.png"))
    assert main(["predict", str(tmp_path / "run"), str(picture), "--format", "json"]) == 0
    labels = json.loads(capsys.readouterr().out)[0]["labels"]
    assert {label["name"] for label in labels} == set(layout.classes)


def test_a_class_that_the_new_images_lack_shifts_no_other(tmp_path: Path, load, preprocess) -> None:
    layout = by_name("numbers sort as text")
    source = make(layout, tmp_path)
    task = load(source).task
    shutil.rmtree(source / "1")
    evaluated = choose_labelled_batches(
        Data(source=str(source)),
        own_source=None,
        subject=Subject(task=task, preprocess=preprocess, used=None),
        batch_size=4,
        scanned=True,
    )
    assert {(sample.key.split("/")[0], sample.target) for sample in evaluated.batches.samples} == {("10", 1), ("2", 2)}


def test_there_are_as_many_layouts_as_promised() -> None:
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS) >= 30


def test_25_planted_copies_across_a_given_split_are_found(tmp_path: Path, load) -> None:
    source = make(
        replace(by_name("two classes"), folders={"train/a": 20, "train/b": 20, "val/a": 5, "val/b": 5}), tmp_path
    )
    planted = [*sorted((source / "train/a").iterdir())[:12], *sorted((source / "train/b").iterdir())[:13]]
    for place, path in enumerate(planted):
        shutil.copy(path, source / "val" / path.parent.name / f"copy{place}.png")
    images = load(source)
    assert len(images.scan.duplicates) == 25
    assert any(note.startswith("25 images are in both train and val (exact copies") for note in images.notes)


def test_25_planted_copies_stay_on_one_side_of_a_split_of_our_own(tmp_path: Path, load) -> None:
    source = make(replace(by_name("two classes"), folders={"a": 30, "b": 30}), tmp_path)
    planted = [*sorted((source / "a").iterdir())[:12], *sorted((source / "b").iterdir())[:13]]
    for place, path in enumerate(planted):
        shutil.copy(path, path.with_name(f"copy{place}.png"))
    images = load(source)
    sides = {sample.key: "train" for sample in images.train.samples} | {s.key: "val" for s in images.val.samples}
    assert len(images.scan.duplicates) == 25
    assert [keys for keys in images.scan.duplicates if len({sides[key] for key in keys}) > 1] == []
