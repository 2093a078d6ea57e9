"""When a run is saved, and how it ends when a signal asks: step done, state saved, the command that goes on printed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from headstart.config.schema import Checkpoint
from headstart.data.decoding.interruptible import hear_before_waiting, is_waiting
from headstart.distributed.collectives import any_of
from headstart.distributed.fsdp import is_sharded
from headstart.distributed.processes import current
from headstart.errors import Interrupted, OthersFailed
from headstart.events import CacheGivenUp, EpochDone, Note, Saved, StepDone, TrainingEvent, Watch
from headstart.runs.checkpoint import drop_later, save
from headstart.runs.folder import forget_cache
from headstart.runs.log import RunLog
from headstart.runs.plan_file import read_run_digest
from headstart.training.finite import check_before_saving
from headstart.training.state import TrainState

_REPEATED_SECONDS = 5.0


def _leave_early(number: int) -> NoReturn:
    raise Interrupted(f"stopped by {signal.Signals(number).name} before a step was done", signal_number=number)


@dataclass
class Interruption:
    """The signal that asked the run to stop, if one did, and what is done the moment it comes.

    Where ``at_once`` is None the step is finished first; ``between_steps`` is what is done while images are awaited.
    """

    signals: list[int] = field(default_factory=list)
    at_once: Callable[[int], NoReturn] | None = _leave_early
    between_steps: Callable[[int], NoReturn] | None = None
    heard: float = 0.0

    def leave_between_steps(self) -> None:
        """Leave where a signal came in the last step and the next has not begun."""
        if self.signals and self.between_steps is not None:
            self.between_steps(self.signals[0])


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within, the first Ctrl-C, SIGTERM or SIGHUP is noted, a second one acts as usual.

    What is ignored (nohup) stays so. Nothing changes outside the main thread.
    """
    noted, owner = Interruption(), os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}

    def note(number: int, _: FrameType | None) -> None:
        again = noted.signals and current().is_distributed and time.monotonic() - noted.heard < _REPEATED_SECONDS
        if os.getpid() != owner or again:  # a loading process, forked this instant; a terminal's and the launcher's
            return
        noted.signals.append(number)
        noted.heard = time.monotonic()
        if len(noted.signals) == 1 and current().is_distributed:
            return
        for other, handler in before.items():
            signal.signal(other, handler)
        if len(noted.signals) > 1:
            signal.raise_signal(number)
        if noted.at_once is not None:
            noted.at_once(number)
        if is_waiting():
            noted.leave_between_steps()

    usual = sys.unraisablehook

    def swallow(found: sys.UnraisableHookArgs) -> None:
        if found.exc_type is Interrupted:  # in a callback (of fork, of a weak reference); all is saved: again, as usual
            signal.raise_signal(noted.signals[0])
        else:
            usual(found)

    for number in before:
        signal.signal(number, note)
    sys.unraisablehook = swallow
    try:
        with hear_before_waiting(noted.leave_between_steps):
            yield noted
    finally:
        sys.unraisablehook = usual
        for number, handler in before.items():
            signal.signal(number, handler)


class Saver:
    """Gives every event to the log and the watcher, and saves the state when it is due; ``log`` is None on all but the
    first of several processes.
    """

    def __init__(
        self,
        run: Path,
        rules: Checkpoint,
        *,
        log: RunLog | None,
        interrupted: Interruption,
        watch: Watch,
    ) -> None:
        self._run, self._rules, self._log, self._interrupted, self._watch = run, rules, log, interrupted, watch
        self._saved_at = time.monotonic()
        self._unsaved: TrainState | None = None
        self._name = read_run_digest(run) if log is not None else None

    def note(self, *notes: Note) -> None:
        """Write sentences to the log, and give them to the watcher."""
        for note in notes:
            if self._log is not None:
                self._log.note(note.text)
            self._watch(note)

    def after(self, event: TrainingEvent, state: TrainState) -> None:
        """Record the event; save when it is time.

        A signal within an epoch waits for its step, but not for its images; during validation and after the last epoch
        it is obeyed at once, since nothing can be lost.

        Raises: Interrupted: a signal asked for it, and the state is saved. StorageError: it cannot be saved.
        NonFiniteError: it must not be.
        """
        self._interrupted.at_once = self._interrupted.between_steps = None
        if isinstance(event, CacheGivenUp):
            self._go_back(state)
        if self._log is not None:
            self._log.emit(event, phase=state.phase)
        self._watch(event)
        signalled = bool(self._interrupted.signals)
        stopping, due = any_of(signalled, self._is_due(event)) if isinstance(event, StepDone) else (False, False)
        saved = stopping or due or isinstance(event, EpochDone)
        if saved:
            self._save(state)
        if stopping:
            self._stop(state)
        within_epoch = isinstance(event, StepDone) and state.epoch_step < event.steps_in_epoch
        if current().is_distributed:  # the others would wait for this one
            return
        if within_epoch:
            self._unsaved = None if saved else state
            self._interrupted.between_steps = lambda _: self._stop(state)
            return
        self._unsaved = replace(state) if isinstance(event, StepDone) else None  # as it is before validation
        self._interrupted.at_once = lambda _: self._stop(state)
        if self._interrupted.signals:
            self._stop(state)

    def _go_back(self, state: TrainState) -> None:
        """Drop all that was computed from a cache that proved wrong: checkpoints, history, and the choice."""
        self._unsaved = None
        if self._log is None:
            return
        drop_later(self._run / "checkpoints", state.step)
        forget_cache(self._run)
        self._log.go_back(state)

    def _stop(self, state: TrainState) -> NoReturn:
        """Save what is not saved yet, and leave."""
        self._interrupted.at_once = self._interrupted.between_steps = None
        number = (self._interrupted.signals or [signal.SIGTERM])[0]  # of several processes one may not have heard it
        if self._log is None:
            raise OthersFailed(exit_code=128 + number)
        name, step = signal.Signals(number).name, state.step
        if self._unsaved is not None:
            self._save(self._unsaved)
        when = f"after step {step}, and saved in {self._run}" if step else f"before the first step of {self._run}"
        raise Interrupted(f"stopped by {name} {when}", signal_number=number)

    def _is_due(self, event: TrainingEvent) -> bool:
        if not isinstance(event, StepDone):
            return False
        by_steps = self._rules.every_steps > 0 and event.step % self._rules.every_steps == 0
        by_time = 0 < self._rules.every_seconds <= time.monotonic() - self._saved_at
        return by_steps or (by_time and current().is_first)  # of several clocks one counts

    def _save(self, state: TrainState) -> None:
        """Save the state, as the first process; the others have the same one."""
        check_before_saving(state)  # a watcher may have changed it
        if self._log is not None:
            self._log.mark("saved", {"step": state.step})  # before: an attempt that goes on from here finds it there
            self._log.sync()
        if self._log is not None or is_sharded(state.model):  # a sharded model is gathered from all
            save(state, self._run / "checkpoints", keep=self._rules.keep, run=self._name)
        if self._log is not None:
            self._log.note(f"saved: step {state.step}")
            self._watch(Saved(state.step))
        self._saved_at = time.monotonic()
