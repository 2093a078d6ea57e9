"""No crash, power cut or failing disk costs an acknowledged checkpoint, and every one of the syncs is needed for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart.runs import frozen_file
from tests.reliability import failures
from tests.reliability.crashes import MemoryDisk, after_power_cut
from tests.reliability.saves import (
    LONG,
    SHORT,
    Saves,
    complaints,
    complaints_of_second_lives,
    kinds,
    record,
    scratch,
)

SEED = 1


@pytest.fixture
def work() -> Iterator[Path]:
    with scratch() as folder:
        yield folder


@pytest.fixture(scope="module")
def saves() -> Iterator[Saves]:
    with scratch() as folder:
        yield record(folder / "real", SHORT)


def test_no_power_cut_costs_an_acknowledged_checkpoint_or_shows_half_a_one(saves, work) -> None:
    """Every prefix of five saves' operations, 20 disks each."""
    found = list(complaints(saves, work, disks=20, seed=SEED))
    assert [line for line in found if line] == []
    assert len(found) == 20 * (len(saves.done) + 1) > 1000


def test_no_power_cut_does_where_frozen_tensors_are_shared(work, monkeypatch) -> None:
    """Their file gets more names: what one checkpoint loses of it, its neighbour has."""
    monkeypatch.setattr(frozen_file, "_WORTH_BYTES", 1)
    saves = record(work / "real", LONG, freezes=True)
    assert sum(name == "link" for name, _ in saves.done) >= len(LONG) - 4
    assert [line for line in complaints(saves, work, disks=10, seed=SEED) if line] == []


def test_no_power_cut_after_a_kill_does(saves, work) -> None:
    """Killed anywhere, started again, swept, saved: what the first life had not synced is not durable yet."""
    found = list(complaints_of_second_lives(saves, work, cuts=2, seed=SEED))
    assert [line for line in found if line] == []
    assert len(found) > 1000


def test_a_disk_that_leaves_out_any_one_kind_of_sync_or_rename_loses_one(saves, work) -> None:
    """Else the enumeration would prove nothing."""
    found = kinds(saves.done)
    assert len(found) == 15, found
    harmless = []
    for kind, places in found.items():
        done = [operation for place, operation in enumerate(saves.done) if place not in places]
        try:
            lost = any(complaints(saves, work, disks=20, seed=SEED, done=done))
        except OSError as error:  # the disk itself: a folder cannot be renamed onto one that is not empty
            lost = kind == "rename(step-, .old-step-)" and "not empty" in str(error)
        harmless += [] if lost else [kind]
    assert harmless == []


def test_the_disk_in_memory_ends_as_the_real_one(saves) -> None:
    """With everything on it, and, as each save ends synced, with nothing that is not safe but what was removed."""
    memory = MemoryDisk(saves.root)
    for operation in saves.done:
        memory.play(operation)
    expected = {path.relative_to(saves.root): path.read_bytes() for path in saves.root.rglob("*") if path.is_file()}
    assert flat(after_power_cut(memory.root, random.Random(0), mercy=1.0)) == expected
    safe = flat(after_power_cut(memory.root, random.Random(0), mercy=0.0))
    assert {path: safe.get(path) for path in expected} == expected


def flat(tree, at: Path = Path()) -> dict[Path, bytes]:
    found: dict[Path, bytes] = {}
    for name, value in tree.items():
        found |= {at / name: value} if isinstance(value, bytes) else flat(value, at / name)
    return found


def test_a_save_that_fails_at_any_operation_harms_nothing_and_says_why(work) -> None:
    """No space, an I/O error, no permission, no quota: at each operation of five saves."""
    cases = list(failures.cases(work))
    found = {case: failures.complaint(case, work) for case in cases}
    assert {case: line for case, line in found.items() if line} == {}
    assert len(cases) >= 200
