"""More epochs than a run began with: it goes on in a further phase, and its earlier epochs stay as they are."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import headstart as hs
from headstart.cli.main import main
from headstart.config.load import write_yaml
from headstart.errors import ConfigError


class Stop(Exception):
    pass


SMALL = {
    "recipe": "full", "epochs": 1, "checkpoint": {"every_steps": 1}, "average": {"kind": "ema", "half_life": 0.3},
}  # fmt: skip


def bits(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in ("model/model.safetensors", "predictions.csv")]


def epochs(run: Path) -> list[str]:
    with (run / "metrics.csv").open(newline="") as file:
        return [row["epoch"] for row in csv.DictReader(file)]


def decisions(run: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((run / "plan.json").read_text())["decisions"]}


@pytest.fixture
def finished(settings) -> Path:
    """A run of one epoch."""
    return hs.train(hs.load_config(settings(**SMALL))).path


def test_a_finished_run_goes_on_and_says_what_becomes_of_the_schedule(finished: Path, settings, capsys) -> None:
    first = (finished / "metrics.csv").read_text().splitlines()
    file = finished.with_suffix(".yaml")
    file.write_text(write_yaml(hs.load_config(settings(**SMALL))))
    assert main(["train", "--config", str(file), "--epochs", "3", "--resume"]) == 0
    said = capsys.readouterr().err
    assert "extended: 1 -> 3 epochs (extension 2 epochs)  (freeze none, the head's rate up to" in said
    assert "again: the schedule (linear) begins anew; earlier epochs stay as they are)" in said
    assert "going on from step 4" in said
    assert (finished / "metrics.csv").read_text().splitlines()[: len(first)] == first
    assert epochs(finished) == ["1", "2", "3"]
    record = (finished / "config.yaml").read_text()
    assert "\nepochs: 3\n" in record and "#   epochs: 1, extended to 3\n" in record
    plan = json.loads((finished / "plan.json").read_text())
    assert [(phase["name"], phase["epochs"]) for phase in plan["phases"]] == [("full", 1), ("extension", 2)]
    assert plan["phases"][0]["lr"] == plan["phases"][1]["lr"]
    assert "extended" in (finished / "report.html").read_text()


def test_it_is_the_same_to_the_bit_interrupted_extended_early_and_repeated(finished: Path, settings) -> None:
    def interrupted(event: object) -> None:
        if isinstance(event, hs.StepDone) and event.step == 5:
            raise Stop

    def begun(event: object) -> None:
        if isinstance(event, hs.StepDone) and event.step == 2:
            raise Stop

    copy, early = (finished.with_name(name) for name in ("copy", "early"))
    shutil.copytree(finished, copy)
    more = SMALL | {"epochs": 2}
    wanted = bits(hs.train(hs.load_config(settings(**more)), resume=True).path)
    with pytest.raises(Stop):
        hs.train(hs.load_config(settings(**more, out=str(copy))), resume=True, watch=interrupted)
    assert bits(hs.train(hs.load_config(settings(**more, out=str(copy))), resume=True).path) == wanted
    with pytest.raises(Stop):
        hs.train(hs.load_config(settings(**SMALL, out=str(early))), watch=begun)
    assert bits(hs.train(hs.load_config(settings(**more, out=str(early))), resume=True).path) == wanted
    assert bits(hs.repeat(finished).path) == wanted
    assert bits(hs.train(hs.load_config(settings(**more, out=str(copy) + "-plain"))).path) != wanted


def test_a_second_extension_is_one_more_phase_and_fewer_epochs_are_refused(finished: Path, settings) -> None:
    for count in (2, 3):
        hs.train(hs.load_config(settings(**SMALL | {"epochs": count})), resume=True)
    assert decisions(finished)["extended"]["value"] == "1 -> 2 -> 3 epochs (extension 1 epoch, extension 2 1 epoch)"
    with pytest.raises(ConfigError, match="other options \\(epochs: the run has 3, now 2\\)"):
        hs.train(hs.load_config(settings(**SMALL | {"epochs": 2})), resume=True)


def test_phases_by_hand_are_extended_by_further_ones(settings) -> None:
    probe, full = {"epochs": 1, "freeze": "backbone"}, {"epochs": 1, "freeze": "none", "lr": 1e-4}
    options = {name: value for name, value in settings(phases=[probe]).items() if name not in ("recipe", "epochs")}
    run = hs.train(hs.load_config(options)).path
    hs.train(hs.load_config(options | {"phases": [probe, full]}), resume=True)
    assert epochs(run) == ["1", "2"]
    assert decisions(run)["extended"]["value"] == "1 -> 2 epochs (none 1 epoch)"
    with pytest.raises(ConfigError, match="other options \\(phases: "):
        hs.train(hs.load_config(options | {"phases": [full, probe, full]}), resume=True)


def test_a_run_that_patience_ended_goes_on(settings) -> None:
    stopping = SMALL | {"epochs": 4, "stop": {"patience": 1}, "optimizer": {"lr": 1e-12, "head_lr": 1e-12}}
    run = hs.train(hs.load_config(settings(**stopping))).path
    ended = len(epochs(run))
    assert ended < 4
    hs.train(hs.load_config(settings(**stopping | {"epochs": 5})), resume=True)
    assert len(epochs(run)) > ended


def test_a_run_without_checkpoints_is_refused_with_what_to_type(finished: Path, settings) -> None:
    shutil.rmtree(finished / "checkpoints")
    with pytest.raises(ConfigError, match="no checkpoint is left to go on from; train its model further in another"):
        hs.train(hs.load_config(settings(**SMALL | {"epochs": 2})), resume=True)
