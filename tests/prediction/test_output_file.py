"""Predictions in a file: the same rows as in memory, in any form, and the same bytes after any kill."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import headstart as hs
from headstart.cli.main import main
from headstart.prediction import output_file
from headstart.prediction.output_file import write_predictions
from headstart.runs.run import Run


@pytest.fixture(scope="module")
def run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An epoch on the coloured pictures."""
    settings = {
        "data": {"source": str(colours)},
        "model": {
            "name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]},
        },
        "batch": {"size": 8}, "epochs": 1, "device": "cpu", "out": str(tmp_path_factory.mktemp("prediction") / "run"),
    }  # fmt: skip
    return hs.train(hs.load_config(settings))


@pytest.fixture(scope="module")
def pictures(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures, two of them torn, one with a name that a spreadsheet would run."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, path in enumerate(sorted(colours.rglob("*.png"))[:20]):
        shutil.copy(path, folder / f"{number:02}.png")
    (folder / "=1+1.png").write_bytes((folder / "03.png").read_bytes())
    for torn in ("05.png", "11.png"):
        (folder / torn).write_bytes(b"no picture")
    return folder


def written(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_file_holds_what_predict_returns(run, pictures, tmp_path, ending) -> None:
    out = tmp_path / f"found.{ending}"
    assert main(["predict", str(run.path), str(pictures), "--out", str(out), "--top", "2"]) == 0
    expected = hs.predict(run, pictures)
    if ending == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        found = [
            (row["path"], tuple((label["name"], label["confidence"]) for label in row.get("labels", [])))
            for row in rows
        ]
        assert [row.get("error") for row in rows] == [one.error for one in expected]
    else:
        if ending == "parquet":
            pq = pytest.importorskip("pyarrow.parquet")
            rows = pq.read_table(out).to_pylist()
        else:
            rows = written(out)
        found = [
            (
                row["path"].removeprefix("'"),
                tuple((row[f"label {n}"], float(row[f"confidence {n}"])) for n in (1, 2) if row["label 1"]),
            )
            for row in rows
        ]
        assert [row["error"] or None for row in rows] == [one.error for one in expected]
    assert found == [(one.path, one.labels[:2]) for one in expected]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("cut", ["within a row", "behind a row", "at once", "behind all"])
def test_a_killed_call_goes_on_to_the_same_bytes(run, pictures, tmp_path, cut, monkeypatch) -> None:
    predictor = hs.Predictor(run)
    whole, again = tmp_path / "whole.csv", tmp_path / "again.csv"
    write_predictions(predictor.views_of(pictures), whole, top=3, on_rows=lambda *_: None)
    partial = again.with_name("again.csv.partial")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output_file, "write_chunks", stop)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(predictor.views_of(pictures), again, top=3, on_rows=lambda *_: None)
    monkeypatch.undo()
    lines = partial.read_bytes().splitlines(keepends=True)
    kept = {"within a row": b"".join(lines[:14])[:-9], "behind a row": b"".join(lines[:12]), "at once": lines[0][:5]}
    partial.write_bytes(kept.get(cut, b"".join(lines)))
    done = write_predictions(predictor.views_of(pictures), again, top=3, on_rows=lambda *_: None)
    assert again.read_bytes() == whole.read_bytes()
    assert done.resumed == {"within a row": 8, "behind a row": 8, "at once": 0, "behind all": 21}[cut]
    assert [Path(path).name for path, _ in done.unreadable] == ["05.png", "11.png"]


def test_rows_of_other_images_or_another_model_are_refused_and_stay(run, pictures, tmp_path, capsys) -> None:
    out = tmp_path / "found.csv"
    partial = out.with_name("found.csv.partial")
    partial.write_text('{"images": "others"}\n{"path": "a"}\n')
    before = partial.read_bytes()
    assert main(["predict", str(run.path), str(pictures), "--out", str(out)]) == 2
    assert "the rows of an earlier call are of other" in capsys.readouterr().err
    assert partial.read_bytes() == before
    assert not out.exists()


def test_two_processes_do_not_write_one_file(run, pictures, tmp_path) -> None:
    import fcntl

    out = tmp_path / "found.csv"
    holder = os.open(out.with_name("found.csv.partial"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(hs.Error, match="another process is writing it"):
            write_predictions(hs.Predictor(run).views_of(pictures), out, top=3, on_rows=lambda *_: None)
    finally:
        os.close(holder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "found.txt"], "accepted are names that end in .csv, .jsonl, .parquet"),
        (["--out", "here.csv"], "is there already; give another name, or --overwrite"),
        (["--out", "new.csv", "--format", "json"], "the ending of --out says the form"),
        (["--overwrite"], "no file is written"),
        (["--views", "mirrored", "--workers", "-1"], "--workers: -1 is no number of processes"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(
    run, pictures, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    Path("here.csv").write_text("mine")
    assert main(["predict", str(run.path), str(pictures), *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.csv"]
    assert Path("here.csv").read_text() == "mine"


def interrupted(predictor: hs.Predictor, images: object, out: Path) -> Path:
    """The partial file of a call that was stopped after its first batch."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predictor.write(images, out, on_rows=stop)
    return out.with_name(f"{out.name}.partial")


@pytest.mark.parametrize(
    "damage",
    [
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b'{"path": "others.png", "labels": []}\n',
        b"\0" * 50 + b"\n",
        b"\xff\n",
        "repeat",
    ],
    ids=["no row", "nested", "another image", "zeros", "no text", "repeated"],
)
def test_rows_that_are_not_the_next_images_are_computed_again(run, pictures, tmp_path, damage) -> None:
    predictor = hs.Predictor(run)
    predictor.write(pictures, tmp_path / "whole.csv")
    partial = interrupted(predictor, pictures, tmp_path / "found.csv")
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join([*lines[:6], lines[1] if damage == "repeat" else damage, *lines[6:] * 4]))
    assert predictor.write(pictures, tmp_path / "found.csv").resumed == 0
    assert (tmp_path / "found.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_rows_of_images_that_have_changed_since_are_refused(run, pictures, tmp_path) -> None:
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    partial = interrupted(hs.Predictor(run), folder, tmp_path / "found.csv")
    before = partial.read_bytes()
    shutil.copyfile(folder / "19.png", folder / "00.png")
    with pytest.raises(hs.Error, match=r"of other images \(names, sizes, times or their order\) than this one's; give"):
        hs.Predictor(run).write(folder, tmp_path / "found.csv")
    assert partial.read_bytes() == before


def test_rows_of_other_arrays_are_refused_and_of_equal_ones_used(run, tmp_path) -> None:
    black, white = [[np.full((40, 40, 3), value, dtype=np.uint8)] * 12 for value in (0, 255)]
    interrupted(hs.Predictor(run), black, tmp_path / "found.csv")
    with pytest.raises(hs.Error, match="of other images"):
        hs.Predictor(run).write(white, tmp_path / "found.csv")
    assert hs.Predictor(run).write([image.copy() for image in black], tmp_path / "found.csv").resumed == 8


def test_the_file_is_held_until_it_is_whole(run, pictures, tmp_path, monkeypatch) -> None:
    write = output_file.write_chunks

    def attempt(out: Path, chunks: Iterable[bytes]) -> None:
        with pytest.raises(hs.Error, match="another process is writing it"):
            hs.Predictor(run).write(pictures, out)
        write(out, chunks)

    monkeypatch.setattr(output_file, "write_chunks", attempt)
    assert hs.Predictor(run).write(pictures, tmp_path / "found.csv").rows == 21
