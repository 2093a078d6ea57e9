"""A run that will not fit on its disk is refused before anything is written, and one that fits is not."""

from __future__ import annotations

from pathlib import Path

import pytest

import headstart as hs
from headstart.errors import StorageError
from headstart.planning import disk_space as space_module
from headstart.planning.disk_space import _peak, run_space
from headstart.planning.preflight import prepare
from headstart.storage.disk import LocalDisk

CASES = {
    "adamw, average, every step": {
        "recipe": "full", "epochs": 1, "average": {"kind": "ema"}, "checkpoint": {"every_steps": 1, "keep": 2},
    },
    "sgd, one epoch, one save": {
        "recipe": "full", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}, "checkpoint": {"every_seconds": 0.0},
    },
    "muon, keep 1": {
        "recipe": "lp_ft", "epochs": 3, "optimizer": {"kind": "timm", "name": "muon", "lr": 0.01},
        "checkpoint": {"every_seconds": 0.0, "keep": 1},
    },
    "adafactor, one save": {
        "recipe": "full", "epochs": 1, "optimizer": {"kind": "timm", "name": "adafactor", "lr": 0.01},
        "checkpoint": {"every_seconds": 0.0},
    },
}  # fmt: skip
WIDE = {"options": {"channels": [16, 32, 64, 128]}}


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("case", CASES)
def test_the_most_that_a_run_will_hold_is_known_before_its_first_step(settings, monkeypatch, case) -> None:
    """At least what it held at its fullest, and little more: the checkpoint's size to 2 %, the rest to 1 MiB."""
    config = hs.load_config(settings(**CASES[case], model=WIDE))
    space = run_space(prepare(config, module=None, loss=None, emit=lambda _: None))
    held, checkpoints = [], []
    plain = LocalDisk.fsync_dir

    def measured(self: LocalDisk, path: Path) -> None:
        plain(self, path)
        held.append(folder_size(Path(config.out)))
        if path.name.startswith(".new-step-"):
            checkpoints.append(folder_size(path))

    monkeypatch.setattr(LocalDisk, "fsync_dir", measured)
    run = hs.train(config)
    held.append(folder_size(run.path))
    assert max(checkpoints) <= space.checkpoint * 1.005 + 2000
    assert space.checkpoint <= max(checkpoints) * 1.02 + 8000
    assert max(held) <= space.peak
    old_best = 0 if "one save" in case else space.checkpoint  # it might have been an old one, and was not
    assert space.peak <= max(held) * 1.02 + (1 << 20) + old_best


def test_a_run_that_will_not_fit_is_refused_before_anything_is_written(settings, monkeypatch, tmp_path) -> None:
    config = hs.load_config(settings(model=WIDE))
    peak = run_space(prepare(config, module=None, loss=None, emit=lambda _: None)).peak
    monkeypatch.setattr(space_module, "free_bytes", lambda _: peak - 1)
    said = rf"run: too little space for this run: {peak:,} bytes needed, {peak - 1:,} free; .*--checkpoint.keep 1"
    with pytest.raises(StorageError, match=said) as caught:
        hs.train(config)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(space_module, "free_bytes", lambda _: peak)
    assert hs.train(config).metrics


def test_a_file_system_that_says_nothing_is_no_reason_to_refuse(settings, monkeypatch) -> None:
    monkeypatch.setattr(space_module, "free_bytes", lambda _: None)
    assert hs.train(hs.load_config(settings(recipe="full", epochs=1))).metrics


def test_what_the_run_holds_already_will_be_replaced(settings, monkeypatch) -> None:
    """Resumed after a full disk: else a run that fitted would be refused."""
    config = hs.load_config(settings(recipe="full", epochs=2, model=WIDE))

    class Enough(Exception):
        pass

    def watch(event: object) -> None:
        if isinstance(event, hs.EpochDone):
            raise Enough

    seen = []
    with pytest.raises(Enough):
        hs.train(config, watch=lambda event: (seen.append(event), watch(event)) if seen else seen.append(event))
    peak = run_space(prepare(config, module=None, loss=None, emit=lambda _: None)).peak
    held = folder_size(Path(config.out))
    monkeypatch.setattr(space_module, "free_bytes", lambda _: peak - held - 1)
    with pytest.raises(StorageError, match=rf"{peak - held:,} bytes needed"):
        hs.train(config, resume=True)
    monkeypatch.setattr(space_module, "free_bytes", lambda _: peak - held)
    assert hs.train(config, resume=True).metrics


def test_the_most_at_one_time_counts_what_stays_the_best_and_the_one_being_written() -> None:
    assert _peak([10], keep=2, bundle=3) == 13
    assert _peak([10, 10], keep=2, bundle=3) == 23
    assert _peak([10] * 4, keep=2, bundle=3) == 40
    assert _peak([10] * 9, keep=2, bundle=3) == 40
    assert _peak([10] * 9, keep=2, bundle=13) == 43
    assert _peak([1, 1, 1, 1, 10, 10, 10], keep=1, bundle=0) == 30
    assert _peak([10, 1, 1, 1, 1], keep=2, bundle=0) == 13


def test_a_file_that_two_checkpoints_share_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 1000)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    (tmp_path / "three").write_bytes(b"x" * 10)
    assert space_module._size(tmp_path) == 1010
