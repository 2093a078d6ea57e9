"""Tags from training to evaluation: those that are asked about, and names that hold any letter."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart as hs
from headstart.config.schema import Data
from headstart.errors import DataError
from headstart.predictor import evaluate_run
from headstart.reports.run_record import read_record
from headstart.tasks.multilabel import score_rows
from headstart.tasks.tags import split_tags

TAGS = ("dark", "dark;red", "red")
ROWS = {f"i/{number:02}.png": tuple(number >> place & 1 for place in range(3)) for number in range(24)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in i/, and a table of 0/1 columns; one tag is called as two others joined."""
    root = tmp_path_factory.mktemp("tags")
    (root / "i").mkdir()
    for number, name in enumerate(ROWS):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / name)
    write(root / "all.csv", columns=TAGS)
    return root


def write(path: Path, *, columns: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        writer.writerows([name, *(flags[TAGS.index(tag)] for tag in columns)] for name, flags in ROWS.items())
    return path


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    model = {"name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]}}
    return hs.train(
        hs.load_config({
            "data": {"source": str(folder / "all.csv")}, "model": model, "batch": {"size": 8}, "epochs": 1,
            "recipe": "full", "device": "cpu", "workers": 0, "out": str(tmp_path_factory.mktemp("runs") / "run"),
        })
    )  # fmt: skip


def test_a_tag_that_holds_the_separator_is_told_from_the_tags_it_is_made_of(run: hs.Run) -> None:
    record = read_record(run.path)
    truth = {row["id"]: split_tags(row["truth"]) for row in record.predictions}
    assert truth == {name: [tag for tag, flag in zip(TAGS, ROWS[name], strict=True) if flag] for name in truth}
    scores = score_rows(record.predictions, TAGS).tags
    assert [tag.support for tag in scores] == [sum(ROWS[name][place] for name in truth) for place in range(3)]
    average = np.mean([tag.average_precision for tag in scores])
    assert average == pytest.approx(run.metrics["mean_average_precision"], abs=1e-6)
    assert "one of the two files was changed" not in (run.path / "report.html").read_text()


@pytest.mark.parametrize("columns", [("dark", "red"), ("dark",)])
def test_a_table_without_the_column_of_a_tag_is_refused(run: hs.Run, folder: Path, columns) -> None:
    table = write(folder / "less.csv", columns=columns)
    missing = "'dark;red'" if "red" in columns else "'dark;red', 'red'"
    with pytest.raises(DataError, match=rf"less.csv: column {missing} is missing, .*; add it, with 0 or 1 for each"):
        evaluate_run(run.path, Data(source=str(table)))


def test_columns_in_another_order_are_the_same(run: hs.Run, folder: Path) -> None:
    whole, turned = (
        evaluate_run(run.path, Data(source=str(write(folder / f"{name}.csv", columns=columns))))
        for name, columns in (("same", TAGS), ("turned", TAGS[::-1]))
    )
    assert turned.metrics == whole.metrics


def test_a_tag_that_no_cell_of_a_list_names_is_off(run: hs.Run, folder: Path) -> None:
    """A list of tags says of each tag whether it is there; 0/1 columns say it of those that have one."""
    rows = [(name, ",".join(tag for tag in ("dark", "red") if flags[TAGS.index(tag)])) for name, flags in ROWS.items()]
    with (folder / "lists.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "tags"), *rows])
    found = evaluate_run(run.path, Data(source=str(folder / "lists.csv"), target="tags"))
    assert found.task == "multilabel"


def test_a_missing_number_is_refused_in_the_same_words(folder: Path, settings, tmp_path: Path) -> None:
    rows = [(name, number, number * 2.5) for number, name in enumerate(ROWS)]
    with (folder / "numbers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "high", "wide"), *rows])
    with (folder / "one.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "high"), *(row[:2] for row in rows)])
    data = {"source": str(folder / "numbers.csv"), "target": ["high", "wide"]}
    trained = hs.train(hs.load_config(settings(data=data, task={"kind": "regress"}, epochs=1, recipe="full")))
    with pytest.raises(DataError, match="'wide'"):
        evaluate_run(trained.path, Data(source=str(folder / "one.csv")))
    with pytest.raises(DataError, match=r"column 'wide' is missing, .*; add it, with a number for each image"):
        evaluate_run(trained.path, Data(source=str(folder / "one.csv"), target="high"))
