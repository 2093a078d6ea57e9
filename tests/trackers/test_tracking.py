"""Runs that log to trackers: every epoch once, over kills and resumes, and nothing of it changes the run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import headstart as hs
from headstart.cli.main import main
from headstart.config.load import write_yaml
from headstart.trackers import installed, tracking
from headstart.trackers.values import list_epoch_values, list_options
from tests.trackers.readers import READERS, Logged

Settings = Callable[..., dict[str, Any]]
CHILD = """
import json, os, signal, sys
import headstart as hs
settings, resume, steps = json.loads(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3])
def watch(event):
    if isinstance(event, hs.Saved) and event.step == steps:
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(event, hs.Note):
        print(event.text)
hs.train(hs.load_config(settings), resume=resume, watch=watch)
"""
SECRET = "a-word-that-nobody-may-read"


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, with the trackers' stores in it."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("HEADSTART_TEST_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_apart(settings: dict[str, Any], *, resume: bool = False, kill_at: int = -1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(settings), "resume" if resume else "", str(kill_at)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def epochs_of(run: Path) -> dict[int, dict[str, float]]:
    """The numbers of metrics.csv by step."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return {int(row.pop("step")): row for row in rows}


def check_logged(logged: Logged, run: Path) -> None:
    """Every number of metrics.csv stands at its step, once, and the result's beside them."""
    assert len({(step, name) for step, name, _ in logged}) == len(logged), "a step is doubled"
    found = {(step, name): value for step, name, value in logged if not name.startswith("final_")}
    known = {(step, name): value for step, row in epochs_of(run).items() for name, value in row.items()}
    assert {key: found[key] for key in known} == pytest.approx(known, rel=1e-6)
    assert {step for step, _ in found} == {step for step, _ in known}
    final = {name: value for _, name, value in logged if name.startswith("final_")}
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert final == pytest.approx({f"final_val_{name}": value for name, value in metrics.items()}, rel=1e-6)


@pytest.mark.parametrize("name", READERS)
def test_a_run_that_is_killed_and_goes_on_logs_every_epoch_once(name: str, settings: Settings, apart: Path) -> None:
    """Killed the moment that an epoch is saved, before the tracker has it; then a checkpoint back."""
    if not installed._is_installed(name):
        pytest.skip(f"{name} is not installed")
    asked = settings(epochs=4, recipe="full", trackers=[name])
    run = Path(asked["out"])
    first = run_apart(asked, kill_at=8)
    assert first.returncode == -signal.SIGKILL, first.stderr
    known = json.loads((run / tracking.RECORD).read_text())[name]
    second = run_apart(asked, resume=True, kill_at=16)
    assert second.returncode == -signal.SIGKILL, second.stderr
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / "state.json").write_text("{")  # goes on from the one before
    last = run_apart(asked, resume=True)
    assert last.returncode == 0, last.stderr
    assert "warning" not in last.stdout
    after = json.loads((run / tracking.RECORD).read_text())[name]
    assert after == {"id": known["id"], "step": max(epochs_of(run))}
    check_logged(READERS[name](run, after["id"]), run)
    stores = [path for path in apart.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    assert [path for path in stores if SECRET.encode() in path.read_bytes()] == []
    assert not last.stdout.startswith("*")


def test_a_tracker_changes_nothing_of_the_run(settings: Settings, apart: Path) -> None:
    pytest.importorskip("tensorboard")
    plain = hs.train(hs.load_config(settings()), watch=None)
    told: list[hs.Event] = []
    tracked = hs.train(hs.load_config(settings(trackers="tensorboard", out=str(apart / "t"))), watch=told.append)
    for name in ("model/model.safetensors", "predictions.csv"):
        assert (plain.path / name).read_bytes() == (tracked.path / name).read_bytes()
    check_logged(READERS["tensorboard"](tracked.path, ""), tracked.path)
    assert {path.name for path in tracked.path.iterdir()} - {path.name for path in plain.path.iterdir()} == {
        "tensorboard", tracking.RECORD,
    }  # fmt: skip
    last = told[-1]
    assert isinstance(last, hs.Finished)
    assert (last.path, last.metrics, last.headline) == (tracked.path, tracked.metrics, tracked.headline)
    assert last.step == max(epochs_of(tracked.path))


def test_a_tracker_that_is_asked_for_later_gets_the_epochs_before(settings: Settings, apart: Path) -> None:
    pytest.importorskip("tensorboard")
    hs.train(hs.load_config(settings(recipe="full")), watch=None)
    run = hs.train(hs.load_config(settings(recipe="full", epochs=3, trackers="tensorboard")), resume=True, watch=None)
    assert len(epochs_of(run.path)) == 3
    check_logged(READERS["tensorboard"](run.path, ""), run.path)


def test_an_adapter_is_a_watcher_of_its_own(settings: Settings, apart: Path) -> None:
    pytest.importorskip("tensorboard")
    from headstart.trackers.tensorboard import TensorBoard

    run = hs.train(hs.load_config(settings()), watch=TensorBoard(apart / "run" / "tensorboard"))
    check_logged(READERS["tensorboard"](run.path, ""), run.path)


class Failing:
    """A tracker whose network fails in the second epoch."""

    is_durable, run_id, last_step = True, "7", None

    def __init__(self) -> None:
        self.epochs = 0

    def __call__(self, event: hs.Event) -> None:
        self.epochs += isinstance(event, hs.EpochDone)
        if self.epochs == 2:
            raise ConnectionError("no\nroute")

    def close(self) -> None:
        raise AssertionError("it has failed before")


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    settings: Settings, apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    plain = hs.train(hs.load_config(settings(epochs=4)), watch=None)
    monkeypatch.setattr(tracking, "open_tracker", lambda *_: Failing())
    told: list[str] = []
    asked = hs.load_config(settings(epochs=4, trackers="tensorboard", out=str(apart / "failing")))
    run = hs.train(asked, watch=lambda event: told.append(event.text) if isinstance(event, hs.Note) else None)
    said = "warning: tracker tensorboard failed, and the run goes on without it: ConnectionError: no route"
    assert told[-1] == said
    assert sum(text.startswith("warning") for text in told) == 1
    assert (run.path / "log.txt").read_text().count(said) == 1
    model = "model/model.safetensors"
    assert (run.path / model).read_bytes() == (plain.path / model).read_bytes()
    assert json.loads((run.path / tracking.RECORD).read_text()) == {
        "tensorboard": {"id": "7", "step": min(epochs_of(run.path))}
    }


@pytest.mark.parametrize("what", ["folder", "record"])
def test_a_disk_that_refuses_ends_the_tracker_alone(what: str, settings: Settings, apart: Path) -> None:
    pytest.importorskip("tensorboard")
    run = Path(settings()["out"])
    told: list[str] = []

    def watch(event: hs.Event) -> None:
        if isinstance(event, hs.Note):
            told.append(event.text)
        if isinstance(event, hs.StepDone) and event.step == 1 and what == "folder":
            (run / "tensorboard").write_text("")
        elif isinstance(event, hs.StepDone) and event.step == 1:
            (run / tracking.RECORD).unlink()
            (run / tracking.RECORD).mkdir()

    done = hs.train(hs.load_config(settings(trackers="tensorboard")), watch=watch)
    assert done.metrics
    (text,) = [text for text in told if text.startswith("warning")]
    assert text.startswith("warning: tracker tensorboard failed, and the run goes on without it: ")


def test_a_library_that_is_missing_is_said_before_anything_is_loaded(colours: Path) -> None:
    code = (
        "import sys, headstart.trackers.installed as i; i.find_spec = lambda name: None;"
        "from headstart.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    )
    words = ["train", str(colours), "--trackers", "MLflow", "wandb", "--out", "nowhere"]
    for verb in ("train", "plan"):
        done = subprocess.run(
            [sys.executable, "-c", code, verb, *words[1:]], capture_output=True, text=True, check=False
        )
        assert done.stdout == "2 False\n", done.stderr
        assert done.stderr == (
            "headstart: trackers: mlflow and wandb cannot be logged to, not being installed; install with: pip install "
            "'headstart[mlflow,wandb]', or leave them out\n"
        )
    assert not Path("nowhere").exists()


def test_a_folder_of_logs_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs_of_a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("logs_of_a_tracker") is not None
    assert not installed._is_installed("logs_of_a_tracker")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trackers", "comet"], "give tensorboard, wandb, mlflow or trackio"),
        (["--report-to", "wandb"], "did you mean --trackers?"),
        (["--tensorboard"], "write --trackers tensorboard"),
        (["--wandb-project", "x"], "WANDB_PROJECT"),
    ],
)
def test_other_words_lead_to_the_option(
    words: list[str], said: str, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(colours), *words]) == 2
    assert said in capsys.readouterr().err


def test_the_option_is_one_line_of_the_record_and_may_differ_when_a_run_goes_on() -> None:
    assert write_yaml(hs.Config()).endswith("\ntrackers: []\n")
    assert hs.load_config({"trackers": "MLflow"}).trackers == "mlflow"
    assert hs.load_config({"trackers": ["MLflow", "wandb"]}).trackers == ("mlflow", "wandb")


def test_what_is_logged_is_plain_and_finite() -> None:
    options = list_options(hs.load_config({"data": {"source": "~x/photos"}, "model": {"options": {"a": [1]}}}))
    assert (options["data.source"], options["model.options"], options["data.images"]) == ("~x/photos", '{"a": [1]}', "")
    assert all(isinstance(value, str | int | float) for value in options.values())
    done = hs.EpochDone(
        epoch=1, step=2, train_loss=0.5, seconds=1.0, images_per_second=2.0, metrics={"ap": float("nan"), "nll": 1.0}
    )
    assert "val_ap" not in list_epoch_values(done)
    assert list_epoch_values(done)["val_nll"] == 1.0


def test_of_two_processes_the_first_one_logs(colours: Path, apart: Path) -> None:
    pytest.importorskip("tensorboard")
    words = ["--model", "timm/test_resnet.r160_in1k", "--weights", "none", "--epochs", "2", "--batch.size", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "train", str(colours), *words, "--device", "cpu", "--devices", "2",
         "--image-size", "32", "--workers", "0", "--out", "run", "--trackers", "tensorboard"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((apart / "run" / "tensorboard").iterdir())) == 1
    check_logged(READERS["tensorboard"](apart / "run", ""), apart / "run")
