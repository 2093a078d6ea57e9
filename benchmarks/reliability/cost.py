"""What the promises cost: hashes, fsyncs, frozen-digest and finite checks as a share of a real run's time.

    python -m benchmarks.reliability.cost

A real run of the starter on the package's 1,797 handwritten digits gives seconds per step and per epoch, evaluation
included. Then each check is timed on that run's own state, and counted as often as a run does it: a save every 60 s
and at each epoch's end, digests and finiteness of all weights per epoch, finiteness of loss and gradient per step.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import headstart as hs
from benchmarks.reliability.results import keep
from headstart.demo import write_digits
from headstart.planning.preflight import Prepared, prepare
from headstart.runs.checkpoint import read_checkpoint, restore_checkpoint, save
from headstart.runs.resume import begin
from headstart.storage.disk import LocalDisk
from headstart.storage.durable import json_bytes
from headstart.training.phases import enter_phase, freeze_phase, frozen_digest
from headstart.training.state import TrainState

IMAGES, FEW, SIDE, EPOCHS, REPEATS = 1797, 300, 96, 3, 9


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of a real run."""

    step: float
    epoch: float
    steps: int


class Timed(LocalDisk):
    """The real disk; what the fsyncs take is summed."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def fsync(self, path: Path) -> None:
        """See ``Disk``; folders come this way too."""
        started = time.perf_counter()
        super().fsync(path)
        self.seconds += time.perf_counter() - started


def main() -> None:
    """One run, then each check on its state."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        prepared, run, pace = _real_run(Path(folder))
        costs = _costs(prepared, run, Path(folder, "again"))
    for images in (IMAGES, FEW):
        longer = images / IMAGES
        shares = _shares(costs, Pace(step=pace.step, epoch=pace.epoch * longer, steps=round(pace.steps * longer)))
        total = sum(shares.values())
        shown = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
        real = "a real run" if images == IMAGES else f"the same with epochs of {images:,} images (extrapolated)"
        keep(
            "cost", what=f"all checks, {real}: starter, {SIDE} px, CPU",
            goal="<= 1 % of the run's time", met=total <= 0.01,
            found=f"{total:.2%} ({shown}; {pace.epoch * longer:.0f} s per epoch)",
            command="python -m benchmarks.reliability.cost",
            milliseconds={name: round(1000 * seconds, 3) for name, seconds in costs.items()},
            seconds_per_step=round(pace.step, 4), seconds_per_epoch=round(pace.epoch * longer, 2),
            note="" if total <= 0.01 else "every epoch ends with a save: epochs of a few seconds pay for it",
        )  # fmt: skip


def _real_run(folder: Path) -> tuple[Prepared, Path, Pace]:
    digits = write_digits(folder / "digits")
    config = hs.load_config({
        "data": {"source": str(digits)}, "model": {"name": "starter", "image_size": SIDE},
        "recipe": "lp_ft", "epochs": EPOCHS, "batch": {"size": 32}, "workers": 0, "device": "cpu",
        "out": str(folder / "run"),
    })  # fmt: skip
    clock: list[float] = []
    run = hs.train(config, watch=lambda event: clock.append(time.perf_counter()) if _ends(event) else None)
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    steps = [event["seconds"] for event in events if event["event"] == "step"]
    per_epoch = statistics.median(after - before for before, after in pairwise(clock))
    prepared = prepare(config, module=None, loss=None, emit=lambda _: None)
    return prepared, run.path, Pace(step=statistics.median(steps), epoch=per_epoch, steps=len(steps) // EPOCHS)


def _ends(event: object) -> bool:
    return isinstance(event, hs.EpochDone)


def _costs(prepared: Prepared, run: Path, again: Path) -> dict[str, float]:
    """Seconds of each check, the median of some; frozen digests of the phase that freezes most, saves of the other."""
    state, _ = begin(run, prepared)
    found = read_checkpoint(run / "checkpoints")
    assert found is not None
    enter_phase(state, prepared.training_plan, found.counters["phase"])
    restore_checkpoint(state, found)
    disk = Timed()
    events = (run / "events.jsonl").open("a")

    def saved() -> float:
        disk.seconds = 0.0
        state.step += 1
        save(state, again, disk=disk)
        return disk.seconds

    def synced() -> None:
        events.write("{}\n")
        events.flush()
        LocalDisk().fsync(Path(events.name))

    fsyncs = statistics.median(saved() for _ in range(REPEATS)) + _seconds(synced)
    hashes = _seconds(lambda: json_bytes([hashlib.sha256(data).hexdigest() for data in found.files.values()]))
    events.close()
    frozen = freeze_phase(state.model, prepared.training_plan.phases[0])
    return {
        "hashes": hashes, "fsyncs": fsyncs, "frozen digests": _seconds(lambda: frozen_digest(state.model, frozen)),
        "finite weights": _seconds(lambda: _all_finite(state)),
        "finite steps": _seconds(lambda: bool(torch.isfinite(torch.tensor([0.5, 1.0])).all())),
    }  # fmt: skip


def _all_finite(state: TrainState) -> bool:
    """As at the end of an epoch in ``headstart.training.fit``."""
    tensors = dict(state.model.named_parameters()) | dict(state.model.named_buffers())
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())


def _seconds(action: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _shares(costs: dict[str, float], pace: Pace) -> dict[str, float]:
    """Of the time of an epoch: its saves (at its end, and every 60 s), its digests, its steps."""
    saves = 1 + pace.epoch / 60
    often = {"hashes": saves, "fsyncs": saves, "frozen digests": 1, "finite weights": 1, "finite steps": pace.steps}
    return {name: costs[name] * count / pace.epoch for name, count in often.items()}


if __name__ == "__main__":
    main()
