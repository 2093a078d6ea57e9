"""events.jsonl, metrics.csv and log.txt: after a life that was killed they are as if nothing had interrupted."""

from __future__ import annotations

import copy
import csv
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headstart.errors import StorageError
from headstart.events import EpochDone, PhaseStarted, StepDone
from headstart.runs.log import RunLog
from headstart.training.state import TrainState

STEPS = 3  # per epoch; epochs 1 and 2 are phase 0, epochs 3 and 4 phase 1


def told(run: Path, state: TrainState, *, every_step: bool) -> list[tuple[TrainState, str]]:
    """A whole course on a log: the states that were saved, and what events.jsonl said at that moment."""
    log, saved = RunLog(run, state), []

    def save() -> None:
        log.mark("saved", {"step": state.step})
        log.sync()
        saved.append((copy.copy(state), (run / "events.jsonl").read_text()))

    for epoch in range(state.epochs_done + 1, 5):
        phase = (epoch - 1) // 2
        if state.phase != phase or not saved:
            state.phase = phase
            log.emit(PhaseStarted(index=phase, name="ab"[phase], epochs=2, trainable=1, frozen=2), phase=phase)
        for _ in range(STEPS - state.epoch_step):
            state.step, state.epoch_step = state.step + 1, state.epoch_step + 1
            facts = {"loss": 0.5, "weight": 8.0, "grad_norm": 1.0, "lr": 0.1, "head_lr": 0.2, "images": 8}
            log.emit(StepDone(step=state.step, epoch=epoch, seconds=0.25, **facts), phase=phase)
            if every_step:
                save()
        state.epochs_done, state.epoch_step = epoch, 0
        metrics = {"accuracy": 0.1 * epoch} | ({"r2": 0.5} if epoch > 2 else {})
        done = EpochDone(
            epoch=epoch, step=state.step, train_loss=0.5, seconds=1.0, images_per_second=8.0, phase=phase, lr=0.1,
            metrics=metrics,
        )  # fmt: skip
        log.emit(done, phase=phase)
        save()
    log.mark("finished", {"step": state.step, "seconds": 9.0})
    log.close()
    return saved


def fresh() -> TrainState:
    state: Any = TrainState(model=None, optimizer=None)  # type: ignore[arg-type]  # the log looks at counters only
    return state


@pytest.mark.parametrize("every_step", [True, False])
def test_whatever_a_killed_life_told_after_its_checkpoint_is_cut_off_and_told_again(tmp_path, every_step) -> None:
    """Every checkpoint, and every line (the last one cut) at which the life after it may have ended."""
    whole = tmp_path / "whole"
    whole.mkdir()
    saved = told(whole, fresh(), every_step=every_step)
    lines = (whole / "events.jsonl").read_text().splitlines(keepends=True)
    for number, (state, before) in enumerate(saved):
        after = saved[number + 1][1] if number + 1 < len(saved) else "".join(lines)
        for end in (len(before), len(before) + 7, len(after), len("".join(lines))):
            run = tmp_path / "run"
            run.mkdir(exist_ok=True)
            (run / "events.jsonl").write_text("".join(lines)[:end])
            RunLog(run, state).close()
            assert (run / "events.jsonl").read_text() == before
        told(run, copy.copy(state), every_step=every_step)
        assert (run / "events.jsonl").read_text() == "".join(lines)
        assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_before_the_first_checkpoint_everything_is_told_anew(tmp_path) -> None:
    told(tmp_path, fresh(), every_step=True)
    first = (tmp_path / "events.jsonl").read_text()
    told(tmp_path, fresh(), every_step=True)
    assert (tmp_path / "events.jsonl").read_text() == first


def test_events_are_there_as_soon_as_they_are_told(tmp_path) -> None:
    log = RunLog(tmp_path, fresh())
    log.mark("saved", {"step": 0})
    assert json.loads((tmp_path / "events.jsonl").read_text()) == {"event": "saved", "step": 0}
    log.close()


@contextmanager
def no_room() -> Iterator[None]:
    """Within, every byte that this process writes to a file is refused, as by a quota; pytest writes to one, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_that_is_refused_is_said_with_the_file_and_the_bytes(tmp_path) -> None:
    said = r"log\.txt: cannot be written: File too large \(\d+ bytes needed, [\d,]+ free\)"
    with no_room(), pytest.raises(StorageError, match=said) as caught:
        RunLog(tmp_path, fresh())
    assert caught.value.exit_code == 4


def test_a_table_has_a_row_per_epoch_and_room_for_metrics_that_came_later(tmp_path) -> None:
    told(tmp_path, fresh(), every_step=False)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "phase", "lr", "train_loss", "val_accuracy", "val_r2", "seconds"]
    assert [(row["epoch"], row["step"], row["phase"]) for row in rows] == [
        ("1", "3", "0"), ("2", "6", "0"), ("3", "9", "1"), ("4", "12", "1"),
    ]  # fmt: skip
    assert [row["val_r2"] for row in rows] == ["", "", "0.5", "0.5"]


def test_the_text_tells_of_every_life(tmp_path) -> None:
    told(tmp_path, fresh(), every_step=False)
    state = fresh()
    state.step = 6
    log = RunLog(tmp_path, state)
    log.note("a name that is not UTF-8: \udcff")
    log.close()
    text = (tmp_path / "log.txt").read_text()
    lines = [line.partition(" UTC  ")[2] for line in text.splitlines()]
    assert lines[:3] == [
        "started",
        "phase a: 1 parameters train, 2 are frozen",
        "epoch 1: loss 0.5000  accuracy 0.1000",
    ]
    assert lines[-2:] == ["going on from step 6", "a name that is not UTF-8: \\udcff"]
