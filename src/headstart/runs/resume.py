"""Where a run begins: its first step, or its last good checkpoint."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from timm.layers.norm_act import convert_sync_batchnorm
from torch import optim

from headstart.distributed.collectives import broadcast_files, collective_errors
from headstart.distributed.fsdp import shard
from headstart.distributed.processes import current
from headstart.errors import StorageError
from headstart.events import Note
from headstart.runs.checkpoint import FoundCheckpoint, read_checkpoint, restore_checkpoint
from headstart.runs.finish import Ready
from headstart.runs.plan_file import read_run_digest
from headstart.surgery.head import head_parameters
from headstart.training.boundary_proof import forget_boundary
from headstart.training.phases import enter_phase
from headstart.training.precision import make_scaler
from headstart.training.state import TrainState, make_average
from headstart.wording import option


def begin(run: Path, ready: Ready, changed: Sequence[str] = ()) -> tuple[TrainState, tuple[Note, ...]]:
    """The state before the first step, or that of the run's last good checkpoint, and notes on it.

    Raises: StorageError: there are checkpoints, and all are damaged, or the newest is another run's.
    """
    state = _make_first_state(ready)
    found = _find_checkpoint(run)
    if found is None:
        return state, ()
    phases = len(ready.training_plan.phases)
    if not 0 <= found.counters["phase"] < phases:
        raise StorageError(
            f"{found.path}: is in phase {found.counters['phase'] + 1} of a run with {phases}; remove it, or start a "
            f"new run with another {option('out')}"
        )
    enter_phase(state, ready.training_plan, found.counters["phase"])
    restore_checkpoint(state, found)
    forget_boundary(state.model)
    passed_over = tuple(Note(f"passed over: {why}") for why in found.skipped)
    if changed:
        passed_over += (Note(f"this resume is not exact to the bit: {'; '.join(changed)}"),)
    return state, (*passed_over, Note(f"going on from step {state.step} ({found.path})"))


def _find_checkpoint(run: Path) -> FoundCheckpoint | None:
    """The checkpoint to go on from: the first process reads it and sends it to others, which may not see the disk."""
    ours, folder = current(), run / "checkpoints"
    with collective_errors():
        found = read_checkpoint(folder) if ours.is_first else None
        if found is not None and found.counters.get("run") not in (None, read_run_digest(run)):
            raise StorageError(
                f"{found.path}: is a checkpoint of another run; remove it, or start a new run with another "
                f"{option('out')}"
            )
    files = broadcast_files(found.files if found else None)
    if ours.is_first or files is None:
        return found
    return FoundCheckpoint(folder, files, json.loads(files["state.json"]), ())


def _make_first_state(ready: Ready) -> TrainState:
    module, training_plan, average = ready.opened.module, ready.training_plan, ready.config.average
    plain = None
    if ready.config.parallel.sync_norm and current().is_distributed:
        convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    if ready.sharded:
        plain = copy.deepcopy(module).cpu()  # for the end: a sharded model is not put together again
        shard(module, ready.device)
    optimizer = optim.SGD(module.parameters(), lr=0.0)  # until the first phase makes its own
    state = TrainState(
        module, optimizer, scaler=make_scaler(ready.device, training_plan.rules.precision), unsharded=plain
    )
    if training_plan.rules.penalties.l2_start:
        heads = set(head_parameters(module))
        state.start = {name: value.detach().clone() for name, value in module.named_parameters() if name not in heads}
    if average.kind == "ema":
        epochs = sum(phase.epochs for phase in training_plan.phases if not phase.extends)
        total = len(ready.images.train) * epochs
        state.average = make_average(module, half_life=average.half_life, total_steps=total)
    return state
