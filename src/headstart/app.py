"""``train``: prepare, go through the phases, save, finish.

Each line is a public function that you can call yourself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

from torch import nn

from headstart.allocator import keep_freed_memory, keep_no_memory, release_memory, return_freed_memory
from headstart.config.load import check
from headstart.config.schema import Config
from headstart.data.workers import explain_deaths
from headstart.distributed.collectives import broadcast_object, collective_errors
from headstart.distributed.process_group import check_devices, join_group, was_restarted
from headstart.distributed.processes import current
from headstart.events import Event, Note, Plan, Watch
from headstart.isolation import only_run, own_arithmetic, own_turn
from headstart.planning.disk_space import refuse_small_disk
from headstart.planning.preflight import Prepared, prepare
from headstart.runs.finish import Run, finish, read_finished_run
from headstart.runs.folder import check_free, default_out, read_choices, record_start
from headstart.runs.log import RunLog
from headstart.runs.resume import begin
from headstart.runs.saving import Saver, interruptible
from headstart.storage.durable import lock_folder
from headstart.surgery.generators import keep_generators
from headstart.surgery.module_copy import InPlace
from headstart.tasks.losses import LossFunction
from headstart.training.phases import train_phases
from headstart.training.precision import keep_kernels, usable_device


def train(
    config: Config,
    *,
    model: nn.Module | InPlace | None = None,
    loss: LossFunction | None = None,
    resume: bool = False,
    allow_inexact: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Fine-tune as ``config`` says and leave a run folder with model, records and report.

    ``model``: your own module instead of ``config.model.name``; a copy of it is trained, and it stays as it is, with
    what its hooks and closures keep (globals that its code changes are one for both). ``InPlace(module)``: it is itself
    trained, which takes less memory and can be done once. ``loss``: your own function (outputs, targets) -> one loss
    per sample (B,), or (losses, weights); ``resume``: go on from the last good
    checkpoint; ``allow_inexact``: even where something that decides the bits (versions, threads, device, ...) has
    changed; ``watch`` is called with every event. Of several processes (torchrun, SLURM) each calls this; the first one
    writes and tells. The global generators of torch, Python and NumPy are afterwards as they were before.

    Raises: Error: see ``headstart.errors``; a ConfigError, ModelError or DataError, or a StorageError about too little
    space, comes before anything is written.
    """
    config = check(config)
    run, resume = default_out(config), resume or was_restarted()
    seconds = config.parallel.timeout_seconds
    with _isolate_call("hs.train"), join_group(usable_device(config.device), timeout_seconds=seconds) as ours:
        emit = watch if watch is not None and ours.is_first else _silent
        if _is_finished(run, config, resume=resume):
            emit(Note(f"{run} is finished already; choose another folder with --out for a new run"))
            return read_finished_run(run, model=model)
        started = time.monotonic()
        with collective_errors():
            recorded = broadcast_object(read_choices(run) if resume and ours.is_first else None)
            with own_turn():  # what it draws, no step of another thread draws
                prepared = prepare(config, module=model, loss=loss, emit=emit, recorded=recorded)
            if ours.is_first:
                refuse_small_disk(run, prepared)
        release_memory()  # the trial steps'
        if not prepared.can_retain_memory:
            keep_no_memory()
        with lock_folder(run) if ours.is_first else nullcontext():
            if _is_finished(run, config, resume=resume):  # again: another process may have had it until now
                return read_finished_run(run, model=model)
            changed = _record_start(run, prepared, allow_inexact=allow_inexact)
            return _train_to_report(run, prepared, changed, emit=emit, started=started)


def _train_to_report(run: Path, prepared: Prepared, changed: tuple[str, ...], *, emit: Watch, started: float) -> Run:
    """From the first step, or the last good checkpoint, to the report."""
    with explain_deaths(), interruptible() as interrupted:
        state, notes = begin(run, prepared, changed)
        with closing(RunLog(run, state)) if current().is_first else nullcontext() as log:
            saver = Saver(run, prepared.config.checkpoint, log=log, interrupted=interrupted, watch=emit)
            for note in notes:
                saver.note(note)
            for event in train_phases(state, prepared.course, prepared.images.train, prepared.images.val):
                saver.after(event, state)
            return finish(run, state, prepared, log=log, started=started)


def _is_finished(run: Path, config: Config, *, resume: bool) -> bool:
    """Whether there is nothing left to do; every process learns it from the first one."""
    with collective_errors():
        check_devices(config.devices)
        found = current().is_first and check_free(run, config, resume=resume)
    return bool(broadcast_object(found))


def _record_start(run: Path, prepared: Prepared, *, allow_inexact: bool) -> tuple[str, ...]:
    """What has changed since the run began, once the first process has recorded its start."""
    with collective_errors():
        if not current().is_first:
            return ()
        return record_start(run, prepared.config, prepared.document, prepared.device, allow_inexact=allow_inexact)


@contextmanager
def _isolate_call(what: str) -> Iterator[None]:
    """Within, none of the caller's arithmetic, and no run or plan of another thread; afterwards the caller's
    generators and choice of kernels, and free memory given back.
    """
    with (
        only_run(what),
        own_arithmetic(),
        keep_kernels(),
        keep_generators(),
        return_freed_memory(),
        keep_freed_memory(),
    ):
        yield


def _silent(_: Event) -> None:
    """What is said where nobody listens, and by all but the first of several processes."""


def plan(
    config: Config, *, model: nn.Module | None = None, loss: LossFunction | None = None, watch: Watch | None = None
) -> Plan:
    """Decide everything that ``train`` would; nothing is written, and ``model`` and the global generators stay as they
    are.  Raises: as ``train``.
    """
    with _isolate_call("hs.plan"), own_turn():
        return prepare(check(config), module=model, loss=loss, emit=watch or _silent).plan
