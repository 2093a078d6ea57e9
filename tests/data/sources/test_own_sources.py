"""A source of one's own, through the public door: members of a tar, pictures in memory, and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headstart as hs


@dataclass(frozen=True)
class Tar:
    """Members of a tar file, CLASS/IMAGE."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def records(self) -> Iterable[hs.Record]:
        with tarfile.open(self.path) as tar:
            files = [member.name for member in tar if member.isfile()]
        return [hs.Record(name=name, labels=(name.split("/")[0],)) for name in files]

    def read(self, record: hs.Record) -> bytes:
        with tarfile.open(self.path) as tar:
            return tar.extractfile(record.name).read()

    def where(self, record: hs.Record) -> str:
        return f"{self.name}: {record.name}"


@dataclass(frozen=True)
class Listed:
    """Records as they are given; their bytes by name."""

    listed: tuple[Any, ...]
    contents: dict[str, bytes]
    name: str = "listed"

    def records(self) -> Iterable[hs.Record]:
        return self.listed

    def read(self, record: hs.Record) -> bytes:
        if record.name not in self.contents:
            raise OSError("the server says 404")
        return self.contents[record.name]

    def where(self, record: hs.Record) -> str:
        return f"listed/{record.name}"


@pytest.fixture
def tar(colours: Path, tmp_path: Path) -> Tar:
    with tarfile.open(tmp_path / "colours.tar", "w") as made:
        made.add(colours, arcname=".", recursive=False)
        for path in sorted(colours.rglob("*.png"), reverse=True):
            made.add(path, arcname=path.relative_to(colours).as_posix())
    return Tar(tmp_path / "colours.tar")


@pytest.fixture
def config(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., hs.Config]:
    """Options of a short run without data."""

    def make(out: str, **sections: Any) -> hs.Config:
        return hs.load_config(settings(**{"data": {"source": None}, "out": str(tmp_path / out)} | sections))

    return make


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def arrays(colours: Path) -> tuple[list[np.ndarray[Any, Any]], list[str]]:
    paths = sorted(colours.rglob("*.png"))
    return [np.asarray(Image.open(path)) for path in paths], [path.parent.name for path in paths]


def png(colour: int) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (32, 32), (colour, 0, 255 - colour)).save(made, format="PNG")
    return made.getvalue()


def listed(count: int = 8, **changes: Any) -> Listed:
    rows = tuple(hs.Record(name=f"{n}.png", labels=("ab"[n % 2],)) for n in range(count))
    return replace(Listed(rows, {f"{n}.png": png(20 * n) for n in range(count)}), **changes)


@pytest.mark.parametrize("workers", [0, 2])
def test_members_of_a_tar_train_the_very_model_that_the_files_train(config, tar, colours, workers) -> None:
    files = hs.train(config("files", data={"source": str(colours)}, workers=workers))
    ours = hs.train(config("tar", workers=workers), data=tar)
    assert weights(ours.path) == weights(files.path)
    assert (ours.path / "predictions.csv").read_bytes() == (files.path / "predictions.csv").read_bytes()
    facts = json.loads((ours.path / "plan.json").read_text())["data"]
    assert (facts["source"], facts["root"]) == ("colours.tar", None)
    report = (ours.path / "report.html").read_text()
    assert "headstart evaluate" not in report
    assert "hs.evaluate(hs.open_run(" in report
    assert report.count("data:image/jpeg") == (files.path / "report.html").read_text().count("data:image/jpeg") > 0
    assert hs.evaluate(ours, tar).metrics == hs.evaluate(ours, colours).metrics


def test_a_run_is_resumed_with_the_same_source_and_refused_with_another(config, tar, colours, tmp_path) -> None:
    class Stop(Exception):
        pass

    def stop(event: hs.Event) -> None:
        if isinstance(event, hs.EpochDone):
            raise Stop

    with pytest.raises(Stop):
        hs.train(config("run"), data=tar, watch=stop)
    other = hs.label_images(*arrays(colours))
    with pytest.raises(hs.Error, match="data"):
        hs.train(config("run"), data=other, resume=True)
    with pytest.raises(hs.Error, match=r"data.source: no data given"):
        hs.train(config("run"), resume=True)
    resumed = hs.train(config("run"), data=tar, resume=True)
    assert weights(resumed.path) == weights(hs.train(config("whole"), data=tar).path)


def test_pixels_in_memory_train_as_their_files_do(config, colours) -> None:
    pictures, labels = arrays(colours)
    images = np.stack(pictures)
    found = hs.open_images(hs.label_images(images, labels), like=hs.open_model("starter"), batch_size=4)
    assert found.classes == ("blue", "green", "red")
    assert found.root is None
    run = hs.train(config("arrays"), data=hs.label_images(torch.from_numpy(images), np.array(labels)))
    kept = run.metrics
    note = "6 validation images of images, the run's own; left out: 30 that it was trained on"
    assert hs.evaluate(run, hs.label_images(pictures, labels)).note == note
    again = hs.evaluate(run, hs.label_images(pictures, labels), include_trained=True).metrics  # the files are others
    assert hs.evaluate(run, colours).metrics == pytest.approx(again, rel=1e-9)  # summed in another order
    assert set(kept) == {"accuracy", "macro_f1", "nll"}


def test_numbers_tags_splits_and_groups_come_from_python_as_well(preprocess) -> None:
    bytes_of = [png(10 * n) for n in range(12)]
    sides = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    numbers = hs.label_images(bytes_of, numbers={"x": range(12), "y": [0.5, 2] * 6}, split=sides)
    images = hs.open_images(numbers, like=preprocess, batch_size=4)
    assert (images.task.kind, images.task.targets) == ("regress", ("x", "y"))
    assert [len(split.samples) for split in (images.train, images.val, images.test)] == [8, 2, 2]
    assert images.train.targets().shape == (8, 2)
    tags = [["a"], [], ["b", "a"], ["b"]] * 3
    images = hs.open_images(hs.label_images(bytes_of, tags), like=preprocess, batch_size=4)
    assert (images.task.kind, images.classes) == ("multilabel", ("a", "b"))
    grouped = hs.label_images(bytes_of, [0, 1] * 6, group=[n // 2 for n in range(12)])
    images = hs.open_images(grouped, like=preprocess, batch_size=4)
    assert images.classes == ("0", "1")
    held = {int(sample.key[7:-1]) // 2 for sample in images.val.samples}
    assert held.isdisjoint({int(sample.key[7:-1]) // 2 for sample in images.train.samples})


def test_an_image_that_a_source_does_not_give_is_named_as_the_source_names_it(preprocess) -> None:
    contents = {"0.png": b"", "1.png": b"no image", "3.png": png(60)}
    with pytest.raises(hs.Error) as caught:
        hs.open_images(listed(4, contents=contents), like=preprocess)
    for line in ("0.png: the file is empty", "1.png: it is not an image", "2.png: the file cannot be read: the server"):
        assert line in str(caught.value)
    lost = hs.audit(listed(4, contents=contents)).unreadable
    assert [image.where for image in lost] == ["listed/0.png", "listed/1.png", "listed/2.png"]


def test_an_image_that_changes_in_memory_ends_the_epoch(preprocess) -> None:
    source = listed()
    images = hs.open_images(source, like=preprocess, batch_size=4)
    source.contents[images.train.samples[0].key] = png(255)
    with pytest.raises(hs.Error, match=rf"listed/{images.train.samples[0].key}: the file has changed since"):
        list(images.train.epoch(0))


ODD = {
    "no records": (listed(0), "listed: records() gives none"),
    "a path": (listed(listed=(Path("x"),)), "records() gives type PosixPath"),
    "no name": (listed(listed=(hs.Record(name="", labels=("a",)),)), "'' is no name of a record"),
    "one name twice": (listed(listed=(hs.Record(name="0.png", labels=("a",)),) * 2), "two records of listed have this"),
    "a text as labels": (listed(listed=(hs.Record(name="0.png", labels="cat"),)), "labels 'cat' are no tuple"),
    "a split of another name": (listed(listed=(hs.Record(name="0", labels=("a",), split="dev"),)), "'dev' is no split"),
    "a split for some": (
        listed(listed=(hs.Record(name="0", labels=("a",), split="train"), hs.Record(name="1", labels=("b",)))),
        "listed/1: it has no split, and others",
    ),
    "nothing to learn from": (listed(listed=(hs.Record(name="0", labels=("a",), split="val"),)), "has the split train"),
    "numbers for some": (
        listed(listed=(hs.Record(name="0", numbers={"x": 1}), hs.Record(name="1"))), "listed/1: it has no numbers",
    ),
    "labels and numbers": (listed(listed=(hs.Record(name="0", labels=("a",), numbers={"x": 1}),)), "are two tasks"),
    "other targets": (
        listed(listed=(hs.Record(name="0", numbers={"x": 1}), hs.Record(name="1", numbers={"y": 1}))),
        "listed/1: its numbers are 'y'",
    ),
    "no finite number": (listed(listed=(hs.Record(name="0", numbers={"x": float("nan")}),)), "x: nan is not a finite"),
    "one class": (listed(listed=(hs.Record(name="0.png", labels=("a",)),)), "all images have the class 'a'"),
    "text for bytes": (listed(contents=dict.fromkeys([f"{n}.png" for n in range(8)], "text")), "gives type str"),
    "no source": (object(), "type object is no source; give hs.label_images"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ODD))
def test_what_a_source_gets_wrong_is_one_clear_error(name: str, preprocess) -> None:
    source, message = ODD[name]
    with pytest.raises(hs.Error) as caught:
        hs.open_images(source, like=preprocess)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"source": "photos"}}, "data.source: photos and the source listed were both given"),
        ({"data": {"source": None, "image": "file"}}, "data.image: it is for folders and tables"),
        ({"data": {"source": None, "log": True}}, "data.log: it is for numbers"),
        ({"task": {"kind": "regress"}}, "task.kind: regress, but the records of listed have labels"),
    ],
)
def test_options_that_do_not_belong_to_a_source_are_refused(config, sections, message: str, tmp_path: Path) -> None:
    with pytest.raises(hs.Error, match=message):
        hs.train(config("run", **sections), data=listed())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a"]}, "labels: 1 for 2 images"),
        ({}, "labels, numbers: give one of them"),
        ({"labels": ["a", "b"], "numbers": {"x": [1, 2]}}, "labels, numbers: give one of them"),
        ({"labels": ["a", 0.5]}, r"labels\[1\]: 0.5 is no label"),
        ({"labels": ["a", True]}, r"labels\[1\]: True is no label"),
        ({"numbers": {"x": [1]}}, r"numbers\['x'\]: 1 for 2 images"),
        ({"labels": ["a", "b"], "split": ["train"]}, "split: 1 for 2 images"),
    ],
)
def test_labels_that_do_not_fit_the_images_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(hs.Error, match=message):
        hs.label_images([png(0), png(1)], **options)
