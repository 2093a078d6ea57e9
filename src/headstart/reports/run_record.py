"""A run folder, read once into one frozen value."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.config.yaml import parse_yaml
from headstart.errors import ConfigError, Error, StorageError
from headstart.reports.csv import plain_text
from headstart.storage.durable import read_json, read_json_lines, read_text
from headstart.tasks.kinds import KINDS, find_kind, name_metric
from headstart.tasks.task import Kind, TaskSpec, name_outputs

TEST_PREDICTIONS = "predictions_test.csv"
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d):\d\d UTC  ")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run folder says; ``result`` is None and ``predictions`` empty while the run is not finished.

    Of an epoch or step that a resumed run did again, only the last telling is kept. ``config_text`` is
    config.yaml itself.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    config_text: str
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    epochs: tuple[Mapping[str, Any], ...]
    phases: tuple[Mapping[str, Any], ...]
    predictions: tuple[Mapping[str, str], ...]
    result: Mapping[str, Any] | None
    test_predictions: tuple[Mapping[str, str], ...] = ()
    """The metrics of the test images, where the data have some; runs of 0.1 did not keep them."""
    written_at: str = ""
    """When the last line of log.txt was written, as 2026-12-01 08:31 UTC; "" where there is none."""
    unread_events: int = 0
    """Lines of events.jsonl that are no events (a line cut short when the process was killed)."""

    @property
    def is_complete(self) -> bool:
        """Whether all epochs of the run are done."""
        return self.result is not None and self.result.get("complete", True) is True

    @property
    def task(self) -> str:
        """The kind of task by name."""
        return str(self.plan["task"]["kind"])

    @property
    def kind(self) -> Kind:
        """What belongs to the kind of task."""
        return find_kind(self.task)

    @property
    def test_metrics(self) -> Mapping[str, Any]:
        """The metrics of the test images; empty where there are none, or the run is not finished."""
        found: Mapping[str, Any] = (self.result or {}).get("test_metrics") or {}
        return found

    @property
    def metric(self) -> str:
        """The name of the metric that the best epoch was chosen by."""
        asked, names = self.config.get("metric", "auto"), tuple(self.names)
        if asked in self.own_metrics:
            return str(asked)
        log = bool(self.plan["task"].get("log"))
        spec = TaskSpec(kind=self.kind.name, classes=names, targets=names, log=log)
        return name_metric(spec, asked if asked in self.kind.metrics else "auto")

    @property
    def own_metrics(self) -> Mapping[str, str | None]:
        """Which way is better of each metric of the user's own; None where it was not said."""
        found = self.plan.get("own_metrics")
        return found if isinstance(found, dict) else {}

    @property
    def names(self) -> Sequence[str]:
        """Names of the model's outputs, in order."""
        return name_outputs(self.plan["task"])


def read_record(run: Path) -> RunRecord:
    """Everything that the run folder's records say.

    Raises: Error: there is no run in this folder. StorageError: a file cannot be read or is damaged.
    """
    if not run.is_dir():
        raise Error(f"{run}: there is no such folder; give the folder of a run, e.g. runs/demo")
    missing = [name for name in ("config.yaml", "plan.json", "environment.json") if not (run / name).is_file()]
    if missing:
        raise Error(f"{run}: is not the folder of a run, {' and '.join(missing)} is missing; give the folder that "
                    "headstart train wrote (its --out)")  # fmt: skip
    config_text = read_text(run / "config.yaml")
    log = run / "events.jsonl"
    events, unread = read_json_lines(log) if log.is_file() else ([], 0)
    return RunRecord(
        name=run.resolve().name,
        path=run,
        config=_config(run / "config.yaml", config_text),
        config_text=config_text,
        plan=_plan(run / "plan.json"),
        environment=_json(run / "environment.json"),
        steps=_latest(events, kind="step", key="step"),
        epochs=_latest(events, kind="epoch", key="epoch"),
        phases=_latest(events, kind="phase", key="phase"),
        predictions=_predictions(run / "predictions.csv"),
        test_predictions=_predictions(run / TEST_PREDICTIONS),
        result=_json(run / "result.json") if (run / "result.json").is_file() else None,
        written_at=_read_time(run / "log.txt"),
        unread_events=unread,
    )


def _read_time(log: Path) -> str:
    lines = read_text(log).splitlines() if log.is_file() else []
    stamps = [found for line in lines if (found := _STAMP.match(line))]
    return f"{stamps[-1][1]} UTC" if stamps else ""


def _json(path: Path) -> Mapping[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise StorageError(f"{path}: is damaged, holds a {type(found).__name__} where an object belongs")
    return found


def _plan(path: Path) -> Mapping[str, Any]:
    plan = _json(path)
    task = plan.get("task")
    kind = task.get("kind") if isinstance(task, dict) else None
    if kind not in KINDS:
        raise StorageError(f"{path}: is damaged, task.kind is {kind!r}, not one of {', '.join(KINDS)}")
    wrong = [name for name in ("model", "data", "preprocess", "head") if not isinstance(plan.get(name, {}), dict)]
    wrong += [name for name in ("decisions", "phases", "warnings") if not isinstance(plan.get(name, []), list)]
    if wrong:
        raise StorageError(f"{path}: is damaged, {', '.join(wrong)} has the wrong shape")
    return plan


def _config(path: Path, text: str) -> Mapping[str, Any]:
    try:
        found = parse_yaml(text, where=str(path))
    except ConfigError as error:
        raise StorageError(f"{error}; the run's record is damaged") from error
    if not isinstance(found, dict):
        raise StorageError(f"{path}: is damaged, holds no options")
    return found


def _latest(events: Iterable[Mapping[str, Any]], *, kind: str, key: str) -> tuple[Mapping[str, Any], ...]:
    """Events of one kind in the order of ``key``, the last one of each value."""
    found: dict[int, Mapping[str, Any]] = {}
    for event in events:
        if event.get("event") == kind and isinstance(event.get(key), int):
            found[event[key]] = event
    return tuple(found[value] for value in sorted(found))


def _predictions(path: Path) -> tuple[Mapping[str, str], ...]:
    if not path.is_file():
        return ()
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise StorageError(
                    f"{path}: is damaged, line {reader.line_num} does not have {len(reader.fieldnames or ())} values"
                )
            rows.append({plain_text(name): plain_text(value) for name, value in row.items()})
    except csv.Error as error:
        raise StorageError(f"{path}: is damaged, not a valid CSV table ({error})") from error
    return tuple(rows)
