"""A run's trackers at work: each gets every epoch once, over resumes too, and none of them can end the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from headstart.config.schema import Config
from headstart.errors import Interrupted
from headstart.events import EpochDone, Event, Finished, Note, Watch
from headstart.storage.durable import read_json, read_json_lines, write_json
from headstart.trackers.installed import list_trackers
from headstart.trackers.values import list_options

RECORD = "trackers.json"


class Tracker(Protocol):
    """Takes the events of a run to a tracker.

    ``run_id`` is by what the tracker knows the run, ``last_step`` the last step that it has of a run that goes on; None
    where it cannot be asked. ``is_durable``: what it was given outlives the process, before it is closed too.
    """

    is_durable: bool
    run_id: str
    last_step: int | None

    def __call__(self, event: Event) -> None:
        """Log one event; kinds that have nothing to log pass by."""
        ...

    def close(self) -> None:
        """Send what is left; a run that has not finished is marked as stopped."""
        ...


def open_tracker(name: str, run: Path, config: Config, run_id: str | None) -> Tracker:
    """The tracker of this name, for the run in this folder; ``run_id``: of the tracker's run that goes on."""
    options = list_options(config)
    match name:
        case "tensorboard":
            from headstart.trackers.tensorboard import TensorBoard

            return TensorBoard(run / "tensorboard", options=options)
        case "wandb":
            from headstart.trackers.wandb import Wandb

            return Wandb(run, options=options, run_id=run_id)
        case "mlflow":
            from headstart.trackers.mlflow import MLflow

            return MLflow(run.resolve().name, options=options, run_id=run_id)
        case "trackio":
            from headstart.trackers.trackio import Trackio

            return Trackio(run.resolve().name, options=options, run_id=run_id)
    raise AssertionError(name)


@contextmanager
def log_to_trackers(run: Path, config: Config, *, say: Callable[[Note], None]) -> Iterator[Watch]:
    """Within, what takes each event of a run to the trackers that ``config`` names, and says where one of them fails.

    Epochs of the run's record that a tracker does not have, since it failed or was not asked for, come first.
    """
    names = list_trackers(config)
    tracking = _Tracking(run, config, say=say)
    for name in names:
        tracking.start(name)
    try:
        yield tracking.follow
    finally:
        tracking.close()


class _Tracking:
    """The trackers of a run that have not failed, and how far each has come."""

    def __init__(self, run: Path, config: Config, *, say: Callable[[Note], None]) -> None:
        self._run, self._config, self._say = run, config, say
        self._open: dict[str, Tracker] = {}
        self._record: dict[str, dict[str, Any]] = {}
        self._steps: dict[str, int] = {}

    def start(self, name: str) -> None:
        """Open a tracker, and give it the epochs of the run's record that it does not have."""
        with self._surviving(name):
            if not self._record and (self._run / RECORD).is_file():
                self._record = read_json(self._run / RECORD)
            known = self._record.setdefault(name, {"id": None, "step": 0})
            self._open[name] = tracker = open_tracker(name, self._run, self._config, known["id"])
            step = known["step"] if tracker.last_step is None else tracker.last_step
            self._steps[name] = step
            self._write(name, id=tracker.run_id, step=step)
        for event in _read_epochs(self._run):
            self._give(name, event)

    def follow(self, event: Event) -> None:
        """Give an event to each tracker."""
        for name in list(self._open):
            self._give(name, event)

    def close(self) -> None:
        """Close each tracker."""
        for name, tracker in list(self._open.items()):
            with self._surviving(name):
                tracker.close()
                self._write(name, step=self._steps[name])

    def _give(self, name: str, event: Event) -> None:
        if name not in self._open or (isinstance(event, EpochDone) and event.step <= self._steps[name]):
            return
        with self._surviving(name):
            tracker = self._open[name]
            tracker(event)
            if isinstance(event, EpochDone | Finished):
                self._steps[name] = event.step
                if tracker.is_durable:
                    self._write(name, step=event.step)

    def _write(self, name: str, **facts: Any) -> None:
        self._record[name] |= facts
        write_json(self._run / RECORD, self._record)

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        """Within, whatever fails ends the tracker, not the run."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:  # of the tracker's library, its network and its disk
            self._open.pop(name, None)
            what = " ".join(f"{type(error).__name__}: {error}".split())
            self._say(Note(f"warning: tracker {name} failed, and the run goes on without it: {what}"))


def _read_epochs(run: Path) -> Iterator[EpochDone]:
    """The epochs of the run's record; none where there is no record yet."""
    known = {item.name for item in fields(EpochDone)}
    lines, _ = read_json_lines(run / "events.jsonl") if (run / "events.jsonl").is_file() else ([], 0)
    for line in lines:
        if line.get("event") == "epoch":
            values = {name: value for name, value in line.items() if name in known and value is not None}
            yield EpochDone(**values)
