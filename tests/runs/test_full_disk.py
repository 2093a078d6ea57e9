"""``headstart train`` on a real disk that fills up: exit code 4, one sentence, and the same bits once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import headstart as hs
from headstart.config.load import write_yaml
from headstart.errors import StorageError
from headstart.events import StepDone
from headstart.runs.log import RunLog
from headstart.training.state import TrainState
from tests.reliability.full_disks import NoSmallDiskError, facts, fill, life_on_a_disk_that_fills_up
from tests.reliability.full_disks import small_disk as mounted

MANY = {"epochs": 8, "checkpoint": {"every_steps": 1, "every_seconds": 0.0}}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with mounted(tmp_path / "disk", size=8 << 20) as folder:
            yield folder
    except NoSmallDiskError as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")


def test_a_run_whose_disk_fills_up_says_so_and_ends_as_one_whose_did_not(small_disk, settings, tmp_path) -> None:
    config, run = tmp_path / "c.yaml", small_disk / "run"
    config.write_text(write_yaml(hs.load_config(settings(**MANY, out=str(run)))))
    assert life_on_a_disk_that_fills_up(config, run, but=200_000) >= 4  # room for half a checkpoint
    hs.train(hs.load_config(str(config)), resume=True)
    whole = hs.train(hs.load_config(settings(**MANY, out=str(small_disk / "whole"))))
    expected, found = facts(whole.path), facts(run)
    for name, value in expected.items():
        assert found[name] == value, name
    assert found["left over"] == []


def test_a_run_that_will_not_fit_is_refused_by_the_disk_itself(small_disk, settings) -> None:
    fill(small_disk, but=1_000_000)
    with pytest.raises(StorageError, match=r"run: too little space for this run: [\d,]+ bytes needed, [\d,]+ free; "):
        hs.train(hs.load_config(settings(out=str(small_disk / "run"))))
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_log_on_a_full_disk_says_so_at_once_and_closes_in_peace(small_disk) -> None:
    state: Any = TrainState(model=None, optimizer=None)  # type: ignore[arg-type]  # the log looks at counters only
    log = RunLog(small_disk, state)
    fill(small_disk, but=0)
    step = StepDone(step=1, epoch=1, loss=0.5, weight=8.0, grad_norm=1.0, lr=0.1, head_lr=0.2, images=8)
    for emit, name in (
        (lambda: log.emit(step, phase=0), "events.jsonl"),
        (lambda: log.note("a" * 100), "log.txt"),
    ):
        with pytest.raises(StorageError, match=rf"{name}: cannot be written: .*\([\d,]+ bytes needed, 0 free\)"):
            for _ in range(100):  # the last page of a file has room for some
                emit()
    log.close()
