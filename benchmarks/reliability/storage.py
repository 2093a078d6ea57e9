"""P2 and P3, the long forms: crash states, kills during saves, failing operations, a disk that fills up, the preflight.

    python -m benchmarks.reliability.storage                   all of them
    python -m benchmarks.reliability.storage crashes kills     some: crashes, lives, kills, failures, full, preflight

The last two need root, for a small disk of their own.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import headstart as hs
from benchmarks.reliability.results import keep
from headstart.config.load import write_yaml
from headstart.errors import StorageError
from headstart.models.weights import read_safetensors
from headstart.planning.disk_space import run_space
from headstart.planning.preflight import prepare
from headstart.runs.checkpoint import FoundCheckpoint, read_checkpoint, save
from headstart.storage.durable import lock_folder, make_folder, sweep
from headstart.training.state import TrainState
from tests.reliability import failures
from tests.reliability.full_disks import (
    NoSmallDiskError,
    facts,
    life_on_a_disk_that_fills_up,
    small_disk,
)
from tests.reliability.lives import small_sections
from tests.reliability.saves import LONG, complaints, complaints_of_second_lives, kinds, move, record, scratch

COMMAND = "python -m benchmarks.reliability.storage"
KILLS = 100
OPTIMIZERS: tuple[dict[str, Any], ...] = (
    {"kind": "adamw"}, {"kind": "sgd", "lr": 0.01}, {"kind": "rmsprop", "lr": 0.001}, {"kind": "adam"},
    {"kind": "timm", "name": "muon", "lr": 0.01}, {"kind": "timm", "name": "adafactor", "lr": 0.01},
    {"kind": "timm", "name": "lion", "lr": 0.0001}, {"kind": "timm", "name": "adan", "lr": 0.01},
    {"kind": "timm", "name": "lamb", "lr": 0.01}, {"kind": "sgd", "lr": 0.01, "momentum": 0.0},
)  # fmt: skip


def crashes() -> None:
    """Every prefix of twelve saves' operations, 30 disks each; then with one kind of sync or rename left out."""
    with scratch() as work:
        saves = record(work / "real", LONG)
        found = Counter(complaints(saves, work, disks=30, seed=0))
        harmless = []
        for kind, places in kinds(saves.done).items():
            done = [operation for place, operation in enumerate(saves.done) if place not in places]
            try:
                harmless += [] if any(complaints(saves, work, disks=30, seed=0, done=done)) else [kind]
            except OSError:
                continue
        total, count = found.total(), len(kinds(saves.done))
    keep(
        "P2", what=f"power cuts after each of {len(saves.done)} operations of {len(LONG)} saves, 30 disks each",
        goal=">= 1,000 states, 0 lost, 0 wrong", found=f"{total:,} states, {total - found['']} lost or wrong",
        met=total >= 1000 and set(found) == {""}, command=f"{COMMAND} crashes",
        note="power loss by model: an ordered journal per folder, contents independent of names; no real power cut",
    )  # fmt: skip
    keep(
        "P2", what="the same with one kind of fsync, fsync_dir or rename left out (the control)",
        goal="each loses one", found=f"{count - len(harmless)} of {count} kinds seen to lose one", met=not harmless,
        command=f"{COMMAND} crashes",
    )  # fmt: skip


def lives() -> None:
    """A kill after each operation, the next life's start and save, and a power cut after each of its operations."""
    with scratch() as work:
        saves = record(work / "real", LONG[:7])
        found = Counter(complaints_of_second_lives(saves, work, cuts=None, seed=0))
    total = found.total()
    keep(
        "P2", what=f"a kill after each of {len(saves.done)} operations, then a power cut after each of the next life's",
        goal="0 lost, 0 wrong", found=f"{total:,} states, {total - found['']} lost or wrong", met=set(found) == {""},
        command=f"{COMMAND} lives",
    )  # fmt: skip


def kills() -> None:
    """Real SIGKILLs at random instants of a process that does nothing but save."""
    draw, whole, stale, temporary, steps = random.Random(0), 0, 0, 0, 0
    with TemporaryDirectory() as folder:
        run = Path(folder, "run")
        for _ in range(KILLS):
            left, acknowledged = _killed(run, draw)
            stale += left
            temporary += sum(1 for _ in (run / "checkpoints").glob(".*"))
            found = read_checkpoint(run / "checkpoints")
            whole += found is not None and _is_whole(found, acknowledged)
            steps = max(steps, acknowledged)
    keep(
        "P2", what=f"{KILLS} SIGKILLs of a process that saves 4 MiB in a loop",
        goal=f"{KILLS} of {KILLS} readable, 0 stale temporary files after the next start",
        found=f"{whole} of {KILLS} readable, {stale} stale ({temporary} were left by the kills; {steps} saves)",
        met=whole == KILLS and not stale,
        command=f"{COMMAND} kills",
    )  # fmt: skip


def _is_whole(found: FoundCheckpoint, acknowledged: int) -> bool:
    """Not older than what was acknowledged, nothing passed over, and every weight that of its step."""
    step = found.counters["step"]
    weights = read_safetensors(found.files["model.safetensors"], where=str(found.path)).tensors
    return step >= acknowledged and not found.skipped and all(bool((one == step).all()) for one in weights.values())


def _killed(run: Path, draw: random.Random) -> tuple[int, int]:
    """(temporary files seen after the start's sweep, the last acknowledged step)."""
    reading, writing = os.pipe()
    child = os.fork()  # its imports take longer than its life
    if child == 0:
        os.close(reading)
        try:
            _save_for_ever(run, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as said:
        left = int(said.readline())
        steps = [int(said.readline()) for _ in range(draw.randrange(1, 4))]
        time.sleep(draw.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        steps += map(int, said.read().split())
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    return left, steps[-1]


def _save_for_ever(run: Path, writing: int) -> None:
    model = torch.nn.Linear(1024, 512)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    folder = run / "checkpoints"
    with lock_folder(run):
        make_folder(folder)
        sweep(folder)
        os.write(writing, b"%d\n" % sum(1 for _ in folder.glob(".*")))
        found = read_checkpoint(folder)
        state.step = found.counters["step"] if found else 0
        while True:
            move(state, state.step + 1, 0, is_best=state.step % 3 == 0)
            save(state, folder)
            os.write(writing, b"%d\n" % state.step)


def failing() -> None:
    """Each of four errors at each operation of five saves."""
    with scratch() as work:
        cases = list(failures.cases(work))
        wrong = [line for case in cases if (line := failures.complaint(case, work))]
    total = len(cases)
    keep(
        "P3", what="ENOSPC, EIO, EACCES, EDQUOT at every operation of five saves",
        goal=">= 200 cases: the previous checkpoint loads, path and bytes are said, exit code 4",
        found=f"{total - len(wrong)} of {total}", met=total >= 200 and not wrong, command=f"{COMMAND} failures",
        note="the bytes needed are those of the whole save, the bytes free those after its half-done part was removed; "
        "statvfs does not see a quota, and the message of EDQUOT says so",
    )  # fmt: skip


def full() -> None:
    """``headstart train`` on a disk of 8 MiB that fills up twice, and a run on one that does not."""
    with TemporaryDirectory() as folder, small_disk(Path(folder, "disk"), size=8 << 20) as disk:
        config, run = Path(folder, "c.yaml"), disk / "run"
        sections = small_sections(Path(folder, "data"), run) | {"epochs": 12, "checkpoint": {"every_steps": 1}}
        config.write_text(write_yaml(hs.load_config(sections)))
        steps = [life_on_a_disk_that_fills_up(config, run, but=room) for room in (200_000, 0)]
        hs.train(hs.load_config(str(config)), resume=True)
        whole = hs.train(hs.load_config(sections | {"out": str(disk / "whole")}))
        same = facts(whole.path) == facts(run)
    keep(
        "P3", what="headstart train on an 8 MiB disk that fills up twice, in a checkpoint and in a line of the log",
        goal="exit code 4, one sentence, the checkpoint loads, resumed to the same bits",
        found=f"2 of 2 (left at steps {steps[0]} and {steps[1]}), {'equal' if same else 'other'} bits", met=same,
        command=f"{COMMAND} full",
    )  # fmt: skip


def preflight() -> None:
    """Twenty runs on disks a little too small: refused at once, and without the refusal they do run out of space.

    The same ones on disks that are large enough are done.
    """
    import importlib

    app = importlib.import_module("headstart.app")
    short = ran_out = enough = 0
    with TemporaryDirectory() as folder:
        for number in range(20):
            sections = _case(Path(folder, "data"), number)
            space = run_space(prepare(hs.load_config(sections), module=None, loss=None, emit=lambda _: None))
            least = space.peak - space.rest
            short += _outcome(Path(folder), sections, int(0.97 * least)) == "refused"
            refuse, app.refuse_small_disk = app.refuse_small_disk, lambda *_: None  # type: ignore[attr-defined]
            ran_out += _outcome(Path(folder), sections, int(0.97 * least)) == "ran out"
            app.refuse_small_disk = refuse  # type: ignore[attr-defined]
            enough += _outcome(Path(folder), sections, space.peak + 8192) == "done"
    keep(
        "P3", what="20 runs (ten optimizers, with and without averaging) on real disks too small by 3 %",
        goal="20 of 20 refused before the first step",
        found=f"{short} of 20 refused; without the refusal {ran_out} ran out of space; "
        f"on disks of the size that is asked for {enough} of 20 finish", met=short == enough == 20,
        command=f"{COMMAND} preflight",
        note="it counts the worst case (the best checkpoint is an old one, every save that may come does come), sees "
        "no quota, and does not know what other programs will write",
    )  # fmt: skip


def _case(data: Path, number: int) -> dict[str, Any]:
    """A run whose fullest moment is certain: each has one save, or two and keeps both."""
    sections = small_sections(data, Path("run"), channels=(16, 32, 64, 128))
    return sections | {
        "epochs": 1 + number % 2, "recipe": "full", "optimizer": OPTIMIZERS[number // 2],
        "average": {"kind": "ema"} if number % 3 == 0 else {"kind": "none"},
        "checkpoint": {"every_seconds": 0.0, "keep": 2}, "batch": {"size": 24},
    }  # fmt: skip


def _outcome(folder: Path, sections: dict[str, Any], size: int) -> str:
    with TemporaryDirectory(dir=folder) as place, small_disk(Path(place, "disk"), size=-(-size // 4096) * 4096) as disk:
        try:
            hs.train(hs.load_config(sections | {"out": str(disk / "run")}))
        except StorageError as error:
            return "refused" if "too little space" in str(error) and not (disk / "run").exists() else "ran out"
    return "done"


FORMS = {
    "crashes": crashes, "lives": lives, "kills": kills, "failures": failing, "full": full, "preflight": preflight,
}  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or FORMS:
        try:
            FORMS[chosen]()
        except NoSmallDiskError as error:
            print(f"{chosen}: left out, a small disk cannot be mounted here: {error}")
