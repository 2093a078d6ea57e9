"""A run that was stopped gives the model of its best epoch so far, says so, and can go on to the same bits."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import headstart as hs
from headstart.cli.main import main
from headstart.errors import ConfigError, ModelError
from headstart.reports.run_record import read_record


class Stop(Exception):
    pass


def stop_after(epochs: int) -> Callable[[object], None]:
    """A watcher that breaks a run off at the first step after so many epochs."""
    done = 0

    def watch(event: object) -> None:
        nonlocal done
        done += isinstance(event, hs.EpochDone)
        if isinstance(event, hs.StepDone) and done == epochs:
            raise Stop

    return watch


@pytest.fixture
def options(settings, draw_colours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., hs.Config]:
    monkeypatch.chdir(tmp_path)
    draw_colours(Path("photos"), each=8)

    def make(out: str, **sections: Any) -> hs.Config:
        given = {"data": {"source": "photos", "test": 0.2}, "out": out, "recipe": "full", "epochs": 3}
        return hs.load_config(settings(**(given | sections)))

    return make


def stop(config: hs.Config, *, epochs: int, **given: Any) -> Path:
    with pytest.raises(Stop):
        hs.train(config, watch=stop_after(epochs), **given)
    return Path(str(config.out))


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_the_best_epoch_so_far_is_the_model_until_the_run_goes_on(options, capsys) -> None:
    whole = hs.train(options("whole")).path
    run = stop(options("run"), epochs=2)
    best = max(read_record(run).epochs, key=lambda epoch: epoch["metrics"]["accuracy"])
    with pytest.raises(ModelError, match=r"go on with --resume; or take the best epoch so far: headstart finish run$"):
        hs.open_run(run)

    assert main(["finish", "run"]) == 0

    printed = capsys.readouterr().out
    assert "the run was stopped after 2 of 3 epochs" in printed
    assert "run/report.html" in printed
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["accuracy"] == best["metrics"]["accuracy"]
    assert (result["complete"], result["epochs_done"], result["epochs"]) == (False, 2, 3)
    assert result["test_metrics"]
    assert hs.finish(run).metrics == result["metrics"]  # once more
    assert len(hs.predict(run, "photos/red")) == 8
    page = (run / "report.html").read_text()
    assert "stopped after 2 of 3 epochs" in page
    assert "Continue this run" in page
    assert "headstart predict run" in page

    done = hs.train(options("run"), resume=True)

    assert weights(run) == weights(whole)
    assert "stopped" not in done.note
    assert (run / "result.json").read_text().count("complete") == 0
    capsys.readouterr()
    assert hs.finish(run).metrics == done.metrics  # a finished run is given as it is
    assert main(["finish", "run"]) == 0
    epoch = json.loads((run / "result.json").read_text())["epoch"]
    said = f"run is complete, its best epoch is {epoch}: nothing is left to finish; to predict: "
    assert capsys.readouterr().err.count(f"{said}headstart predict run IMAGE_OR_FOLDER") == 2  # in Python as well
    assert "Continue this run" not in (run / "report.html").read_text()


def test_while_it_goes_on_again_it_has_no_result(options) -> None:
    run = stop(options("run"), epochs=1)
    hs.finish(run)
    with pytest.raises(Stop):
        hs.train(options("run"), watch=stop_after(1), resume=True)
    assert not (run / "result.json").exists()
    hs.report(run)
    page = (run / "report.html").read_text()
    assert "headstart finish run" in page
    assert "headstart predict" not in page


def test_nothing_is_made_where_there_is_nothing_to_make_it_of(options, capsys) -> None:
    run = stop(options("run"), epochs=0)
    before = sorted(path.name for path in run.iterdir())
    assert main(["finish", "run"]) == 2
    answer = capsys.readouterr().err
    command = "headstart train --config run/config.yaml --resume"
    assert answer.strip().endswith(f"no epoch of the run has been validated, so that it has no best weights; "
                                   f"go on with: {command}")  # fmt: skip
    assert sorted(path.name for path in run.iterdir()) == before
    assert main(command.split()[1:]) == 0  # as it says
    assert main(["finish", "photos"]) == 2
    assert "photos: no run is there; give the folder that headstart train wrote" in capsys.readouterr().err
    assert not Path("photos", ".lock").exists()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).relu().mean((2, 3)))


def test_a_module_of_ones_own_is_finished_with_itself(options) -> None:
    net = Net()
    run = stop(options("run", model={"name": "auto", "options": {}, "image_size": 32}), epochs=2, model=net)
    with pytest.raises(ConfigError, match=r"hs\.finish\('run', model=net\)$"):
        hs.finish("run")
    done = hs.finish("run", model=net)
    assert done.note.endswith("; the run was stopped after 2 of 3 epochs")
    assert [one.labels for one in hs.predict(hs.open_run(run, model=net), "photos")]
    page = (run / "report.html").read_text().replace("&#39;", "'")
    assert "hs.train(hs.load_config('run/config.yaml'), model=net, resume=True)" in page
    assert "hs.predict(hs.open_run('run', model=net), IMAGES)" in page
    assert "headstart predict" not in page


def test_changed_data_are_refused(options, draw_colours) -> None:
    run = stop(options("run"), epochs=1)
    next(Path("photos").rglob("*.png")).unlink()
    with pytest.raises(ConfigError, match="the data have changed since the run began"):
        hs.finish(run)
    assert not (run / "result.json").exists()


def test_a_test_split_is_the_headline_with_a_table_of_its_own(options, capsys) -> None:
    config = options("run", metric="balanced_accuracy", epochs=2)
    run = hs.train(config)
    with (run.path / "predictions_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows}.isdisjoint(row["id"] for row in read_record(run.path).predictions)
    assert [f"p:{name}" for name in ("blue", "green", "red")] == [name for name in rows[0] if name.startswith("p:")]
    right = {
        name: [row["prediction"] == name for row in rows if row["truth"] == name] for name in ("blue", "green", "red")
    }
    recall = statistics.mean(statistics.mean(each) for each in right.values())
    assert run.test_metrics is not None and run.test_metrics["balanced_accuracy"] == pytest.approx(recall)
    assert run.headline.startswith(f"balanced accuracy: {100 * recall:.1f} % on the {len(rows)} test images")
    page = (run.path / "report.html").read_text()
    assert "balanced accuracy, on the test images" in page
    assert all(row["id"] in page for row in rows[:3])
    assert main(["train", "--config", "run/config.yaml", "--resume"]) == 0  # it is finished: the same is told again
    told = capsys.readouterr().out
    assert told.startswith(run.headline)
    assert [line.split() for line in told.splitlines() if "validation" in line] == [["test", "validation"]]
    assert all(remark in told for remark in run.remarks)
    assert "On the test images" in (run.path / "model" / "README.md").read_text()
