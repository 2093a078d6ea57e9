"""Where a run begins: its first step, or its last good checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import optim

from headstart.errors import StorageError
from headstart.models.head import head_parameters
from headstart.runs.checkpoint import read_checkpoint, restore_found
from headstart.runs.finish import Ready
from headstart.runs.log import Note
from headstart.train.phases import enter_phase
from headstart.train.precision import make_scaler
from headstart.train.state import TrainState, make_average


def begin(run: Path, ready: Ready, changed: Sequence[str] = ()) -> tuple[TrainState, tuple[Note, ...]]:
    """The state before the first step, or that of the run's last good checkpoint, and what to say of it.

    Raises: StorageError: there are checkpoints, and all are damaged.
    """
    state = _first_state(ready)
    found = read_checkpoint(run / "checkpoints")
    if found is None:
        return state, ()
    if not 0 <= found.counters["phase"] < len(ready.course.phases):
        raise StorageError(
            f"{found.path}: is in phase {found.counters['phase'] + 1} of a run with {len(ready.course.phases)}; remove "
            "it, or start a new run with another --out"
        )
    enter_phase(state, ready.course, found.counters["phase"])
    restore_found(state, found)
    passed_over = tuple(Note(f"passed over: {why}") for why in found.skipped)
    if changed:
        passed_over += (Note(f"this resume is not exact to the bit: {'; '.join(changed)}"),)
    return state, (*passed_over, Note(f"going on from step {state.step} ({found.path})"))


def _first_state(ready: Ready) -> TrainState:
    module, course, average = ready.opened.module, ready.course, ready.config.average
    optimizer = optim.SGD(module.parameters(), lr=0.0)  # until the first phase makes its own
    state = TrainState(module, optimizer, scaler=make_scaler(ready.device, course.rules.precision))
    if course.rules.penalties.l2_start:
        heads = set(head_parameters(module))
        state.start = {name: value.detach().clone() for name, value in module.named_parameters() if name not in heads}
    if average.kind == "ema":
        total = len(ready.images.train) * sum(phase.epochs for phase in course.phases)
        state.average = make_average(module, half_life=average.half_life, total_steps=total)
    return state
