"""``train``: prepare, go through the phases, save, finish.

Each line is a public function that you can call yourself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from torch import nn, optim

from headstart.config.load import check
from headstart.config.schema import Config
from headstart.optim.losses import LossFunction
from headstart.plan.preflight import Plan, Prepared, prepare
from headstart.runs.checkpoint import read_checkpoint, restore
from headstart.runs.finish import Run, finish, finished_run
from headstart.runs.folder import check_free, default_out, record_start
from headstart.runs.log import Note, RunLog
from headstart.runs.saving import Saver, interruptible
from headstart.storage import locked
from headstart.train.phases import enter_phase, train_phases
from headstart.train.precision import make_scaler
from headstart.train.state import TrainState, make_average

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
    loss per
    sample (B,), or (losses, weights); ``resume``: go on from the last good checkpoint; ``watch`` is called with every
    event.

    Raises: Error: see ``headstart.errors``; a ConfigError, ModelError or DataError comes before anything is written.
    """
    config = check(config)
    run = default_out(config)
    if check_free(run, config, resume=resume):
        watch(Note(f"{run} is finished already; choose another folder with --out for a new run"))
        return finished_run(run, model=model)
    started = time.monotonic()
    prepared = prepare(config, module=model, loss=loss, tell=watch)
    with locked(run), interruptible() as interrupted:
        record_start(run, config, prepared.plan.to_dict(), prepared.device)
        state = begin(prepared, run, watch=watch)
        log = RunLog(run, state)
        saver = Saver(run, config.checkpoint, log=log, interrupted=interrupted, watch=watch)
        for event in train_phases(state, prepared.course, prepared.images.train, prepared.images.val):
            saver.after(event, state)
        return finish(run, state, prepared, log=log, started=started)


def begin(prepared: Prepared, run: Path, *, watch: Watch) -> TrainState:
    """The state before the first step, or that of the run's last good checkpoint."""
    module, course, average = prepared.opened.module, prepared.course, prepared.config.average
    state = TrainState(
        module, optim.SGD(module.parameters(), lr=0.0), scaler=make_scaler(prepared.device, course.rules.precision)
    )
    if course.rules.penalties.l2_start:
        heads = set(prepared.head_names)
        state.start = {name: value.detach().clone() for name, value in module.named_parameters() if name not in heads}
    if average.kind == "ema":
        total = len(prepared.images.train) * sum(phase.epochs for phase in course.phases)
        state.average = make_average(module, half_life=average.half_life, total_steps=total)
    found = read_checkpoint(run / "checkpoints")
    if found is not None:
        enter_phase(state, course, found.counters["phase"])
        skipped = restore(state, found.path)
        watch(
            Note(
                f"going on from step {state.step} ({found.path})"
                + "".join(f"; passed over: {why}" for why in (*found.skipped, *skipped))
            )
        )
    return state


def plan(
    config: Config, *, model: nn.Module | None = None, loss: LossFunction | None = None, watch: Watch = lambda _: None
) -> Plan:
    """Decide everything that ``train`` would, and write nothing.  Raises: as ``train``."""
    return prepare(check(config), module=model, loss=loss, tell=watch).plan
