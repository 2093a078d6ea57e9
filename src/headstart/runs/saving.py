"""When a run is saved, and how it ends when it is told to: step done, state saved, the command that goes on printed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from headstart.config.schema import Checkpoint
from headstart.errors import Interrupted, OthersFailed
from headstart.parallel.messages import any_of
from headstart.parallel.processes import current
from headstart.parallel.shards import is_sharded
from headstart.runs.checkpoint import save
from headstart.runs.log import RunLog
from headstart.train.fit import EpochDone
from headstart.train.state import TrainState
from headstart.train.step import StepDone


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on disk."""

    step: int


@dataclass
class Interruption:
    """The signal that asked the run to stop, if one did."""

    signals: list[int] = field(default_factory=list)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within, the first Ctrl-C or SIGTERM is only noted, a second one acts as usual.

    Nothing changes outside the main thread.
    """
    noted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        noted.signals.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Saver:
    """Tells the log and the watcher of every event, and saves the state when it is due; ``log`` is None on all but the
    first of several processes.
    """

    def __init__(
        self,
        run: Path,
        rules: Checkpoint,
        *,
        log: RunLog | None,
        interrupted: Interruption,
        watch: Callable[[object], None],
    ) -> None:
        self._run, self._rules, self._log, self._interrupted, self._watch = run, rules, log, interrupted, watch
        self._saved_at = time.monotonic()

    def after(self, event: object, state: TrainState) -> None:
        """Record the event; save when it is time.

        Raises: Interrupted: a signal asked for it, and the state is saved. StorageError: it cannot be saved.
        """
        if self._log is not None:
            self._log.tell(event, phase=state.phase)
        self._watch(event)
        signalled = bool(self._interrupted.signals)
        stopping, due = any_of(signalled, self._is_due(event)) if isinstance(event, StepDone) else (False, False)
        if stopping or due or isinstance(event, EpochDone):
            self._save(state)
        if stopping:
            number = (self._interrupted.signals or [signal.SIGTERM])[0]
            if self._log is None:
                raise OthersFailed(exit_code=128 + number)
            raise Interrupted(
                f"stopped by {signal.Signals(number).name} after step {state.step}, and saved; "
                f"go on with the same command and --resume (run folder {self._run})",
                signal_number=number,
            )

    def _is_due(self, event: StepDone | object) -> bool:
        if not isinstance(event, StepDone):
            return False
        by_steps = self._rules.every_steps > 0 and event.step % self._rules.every_steps == 0
        by_time = 0 < self._rules.every_seconds <= time.monotonic() - self._saved_at
        return by_steps or (by_time and current().is_first)  # of several clocks one counts

    def _save(self, state: TrainState) -> None:
        """By the first process; the others have the same state."""
        if self._log is not None:
            self._log.mark("saved", {"step": state.step})  # before: a life that goes on from here finds it told
            self._log.sync()
        if self._log is not None or is_sharded(state.model):  # a model that is shared out is gathered from all
            save(state, self._run / "checkpoints", keep=self._rules.keep)
        if self._log is not None:
            self._log.note(f"saved: step {state.step}")
            self._watch(Saved(state.step))
        self._saved_at = time.monotonic()
