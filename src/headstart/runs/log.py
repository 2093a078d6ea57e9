"""What happened, line by line: events.jsonl and metrics.csv as of one attempt, log.txt with all of them."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from headstart.events import CacheGivenUp, CacheNote, DataNote, EpochDone, PhaseStarted, StepDone, TrainingEvent
from headstart.storage.durable import explain_os_errors, open_log, read_json_lines, write_file
from headstart.training.state import TrainState

_LINE = 400  # bytes, about


class RunLog:
    """Writes a run's events.

    ``state`` says what is recorded already; anything later (of an attempt that was killed) is cut off.

    Raises: StorageError: the disk is full or read-only; so do all its functions.
    """

    def __init__(self, run: Path, state: TrainState) -> None:
        self._path, self._csv = run / "events.jsonl", run / "metrics.csv"
        self._file, self._text = -1, open_log(run / "log.txt", needed=_LINE)
        self.go_back(state)
        self.note(f"going on from step {state.step}" if state.step else "started")

    def go_back(self, state: TrainState) -> None:
        """Cut off what is later than the state."""
        events = list(takewhile(lambda event: _is_before(event, state), _read(self._path)))
        write_file(self._path, "".join(json.dumps(event) + "\n" for event in events).encode())
        self._micro_batches = 0
        self._epochs = [_row(event) for event in events if event["event"] == "epoch"]
        self._phases = {event["phase"] for event in events if event["event"] == "phase"}
        if self._epochs:
            write_file(self._csv, _csv(self._epochs))
        if self._file >= 0:
            os.close(self._file)
        self._file = open_log(self._path, needed=_LINE)

    def close(self) -> None:
        """Close the files; what must be durable was synced before."""
        os.close(self._file)
        os.close(self._text)

    def note(self, text: str) -> None:
        """Add a line to log.txt, with the time."""
        line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  {text}\n"
        _append(self._text, line.encode("utf-8", "backslashreplace"), path=self._path.with_name("log.txt"))

    def sync(self) -> None:
        """Make everything recorded so far durable; called before a checkpoint that counts on it."""
        with explain_os_errors(self._path, needed=_LINE):
            os.fsync(self._file)

    def emit(self, event: TrainingEvent, *, phase: int) -> None:
        """Record one event of the training."""
        match event:
            case StepDone():
                if event.micro_batches > self._micro_batches > 0:
                    self.note(f"step {event.step}: memory ran out; from here in {event.micro_batches} micro-batches")
                self._micro_batches = event.micro_batches
                shown = ("step", "epoch", "loss", "grad_norm", "lr", "head_lr", "images", "seconds")
                self._line("step", {"phase": phase} | {name: getattr(event, name) for name in shown})
            case EpochDone():
                fields = asdict(event) | {"average_metrics": event.average_metrics or None}
                self._line("epoch", fields)
                self._epochs.append(_row(fields))
                write_file(self._csv, _csv(self._epochs))
                metrics = "  ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
                self.note(f"epoch {event.epoch}: loss {event.train_loss:.4f}  {metrics}")
            case PhaseStarted():
                self.note(f"phase {event.name}: {event.trainable:,} parameters train, {event.frozen:,} are frozen")
                if event.index not in self._phases:  # else an earlier attempt has recorded it
                    self._line("phase", {"phase": event.index, "name": event.name, "trainable": event.trainable})

            case CacheNote() | CacheGivenUp() | DataNote():
                self.note(event.text)

    def mark(self, event: str, facts: dict[str, Any]) -> None:
        """Record something that is not an event of the training."""
        self._line(event, facts)

    def _line(self, event: str, fields: dict[str, Any]) -> None:
        _append(self._file, (json.dumps({"event": event} | fields) + "\n").encode(), path=self._path)


def _append(descriptor: int, line: bytes, *, path: Path) -> None:
    """Append a whole line at once, without a buffer: what a full disk refused must not fail again at the close."""
    with explain_os_errors(path, needed=len(line)):
        while line:
            line = line[os.write(descriptor, line) :]


def _read(path: Path) -> list[dict[str, Any]]:
    lines, _ = read_json_lines(path) if os.path.lexists(path) else ([], 0)
    return [event for event in lines if _is_event(event)]


def _is_event(value: Any) -> bool:
    """Whether a line has what ``RunLog`` uses of its kind; lines that others wrote are dropped."""
    match value:
        case {"event": "phase", "phase": int()}:
            return True
        case {"event": "epoch", "epoch": int(), "metrics": dict(), "average_metrics": dict() | None}:
            return all(name in value for name in ("step", "phase", "lr", "train_loss", "seconds"))
        case {"event": "phase" | "epoch"}:
            return False
        case {"event": str()}:
            return isinstance(value.get("step", 0), int)
    return False


def _is_before(event: dict[str, Any], state: TrainState) -> bool:
    """Whether an event happened before the state; events stand in the order in which they happened."""
    match event["event"]:
        case "phase":
            return bool(event["phase"] <= state.phase)
        case "epoch":
            return bool(event["epoch"] <= state.epochs_done)
        case _:
            return bool(event.get("step", 0) <= state.step) and event["event"] != "finished"


def _row(event: dict[str, Any]) -> dict[str, Any]:
    names = ("epoch", "step", "phase", "lr", "train_loss")
    return {name: event[name] for name in names} | {
        **{f"val_{name}": value for name, value in event["metrics"].items()},
        **{f"val_average_{name}": value for name, value in (event["average_metrics"] or {}).items()},
        "seconds": event["seconds"],
    }


def _csv(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row if name != "seconds")  # some epochs may lack a metric
    writer = csv.DictWriter(out, fieldnames=[*names, "seconds"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()
