"""``train``: prepare, go through the phases, save, finish.

Each line is a public function that you can call yourself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from torch import nn

from headstart.config.load import check
from headstart.config.schema import Config
from headstart.optim.losses import LossFunction
from headstart.plan.preflight import Plan, prepare
from headstart.plan.space import refuse_small_disk
from headstart.runs.finish import Run, finish, finished_run
from headstart.runs.folder import check_free, default_out, record_start
from headstart.runs.log import Note, RunLog
from headstart.runs.resume import begin
from headstart.runs.saving import Saver, interruptible
from headstart.storage import locked
from headstart.train.phases import train_phases

Watch = Callable[[object], None]


def train(
    config: Config,
    *,
    model: nn.Module | None = None,
    loss: LossFunction | None = None,
    resume: bool = False,
    watch: Watch = lambda _: None,
) -> Run:
    """Fine-tune as ``config`` says and leave a run folder with model, records and report.

    ``model``: your own module instead of ``config.model.name``; ``loss``: your own function (outputs, targets) -> one
    loss per sample (B,), or (losses, weights); ``resume``: go on from the last good checkpoint; ``watch`` is called
    with every event.

    Raises: Error: see ``headstart.errors``; a ConfigError, ModelError or DataError, or a StorageError about too little
    space, comes before anything is written.
    """
    config = check(config)
    run = default_out(config)
    if check_free(run, config, resume=resume):
        watch(Note(f"{run} is finished already; choose another folder with --out for a new run"))
        return finished_run(run, model=model)
    started = time.monotonic()
    prepared = prepare(config, module=model, loss=loss, tell=watch)
    refuse_small_disk(run, prepared)
    with locked(run), interruptible() as interrupted:
        if check_free(run, config, resume=resume):  # again: another process may have had it until now
            return finished_run(run, model=model)
        changed = record_start(run, config, prepared.document, prepared.device)
        state, notes = begin(run, prepared, changed)
        with closing(RunLog(run, state)) as log:
            for note in notes:
                log.note(note.text)
                watch(note)
            saver = Saver(run, config.checkpoint, log=log, interrupted=interrupted, watch=watch)
            for event in train_phases(state, prepared.course, prepared.images.train, prepared.images.val):
                saver.after(event, state)
            return finish(run, state, prepared, log=log, started=started)


def plan(
    config: Config, *, model: nn.Module | None = None, loss: LossFunction | None = None, watch: Watch = lambda _: None
) -> Plan:
    """Decide everything that ``train`` would, and write nothing.  Raises: as ``train``."""
    return prepare(check(config), module=model, loss=loss, tell=watch).plan
