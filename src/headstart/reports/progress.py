"""Progress on stderr: a live line on a terminal, plain lines elsewhere; the plan's decisions come first."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from headstart.events import (
    CacheGivenUp,
    CacheNote,
    CacheProgress,
    DataNote,
    Decided,
    EpochDone,
    Event,
    Note,
    PhaseStarted,
    Plan,
    ScanProgress,
    StepDone,
    Watch,
)
from headstart.reports.cautions import list_warnings
from headstart.reports.cells import cell, duration, select_metrics
from headstart.reports.clock import time_shares
from headstart.reports.notebook import NotebookTable, draw_below_cell, in_notebook

_PLAIN_EVERY_SECONDS = 30.0  # between two lines within an epoch, where there is no terminal


@contextmanager
def open_watch(watch: Watch | Literal["progress"] | None) -> Iterator[Watch]:
    """What is called with every event: progress on the terminal or in the notebook, the caller's own function, or
    nothing.
    """
    if watch is None:
        yield lambda _: None
    elif watch != "progress":
        assert callable(watch), watch
        yield watch
    elif in_notebook():
        table = NotebookTable(draw_below_cell())
        yield table
        table.close()
    else:
        with Progress() as shown:
            yield shown


class Progress:
    """Shows the events of a run as they come; given as ``watch`` to what runs."""

    def __init__(self, *, decisions: bool = True, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal
        self._decisions = decisions
        self._bar: Bar | None = None
        self._task: Any = None
        self._what = ""
        self._spoke_at = time.monotonic()
        self._seconds_per_step = 0.0
        self._last_step = self._phase_end = 0
        self._phase_epochs = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        """Show one event; kinds that have nothing to show pass by."""
        match event:
            case Note() | CacheNote() | DataNote() | CacheGivenUp():
                self._note(event.text)
            case Decided():
                self._show_decisions(event.plan)
            case ScanProgress():
                self._show_scan(event)
            case CacheProgress():
                self._show_cache(event)
            case PhaseStarted():
                self._show_phase(event)
            case StepDone():
                self._show_step(event)
            case EpochDone():
                self._show_epoch(event)

    def _note(self, text: str) -> None:
        self._close()
        self._say(cell(text))

    def _show_decisions(self, plan: Plan) -> None:
        self._close()
        for decision in plan.decisions if self._decisions else ():
            self._say(f"{cell(decision.name)}: {cell(decision.value)}  ({cell(decision.reason)})")
        for line in list_warnings(plan.document) if self._decisions else ():
            self._say(line)

    def _show_scan(self, event: ScanProgress) -> None:
        if self._live:
            self._move("reading images", event.done, event.total, f"{event.done:,} of {event.total:,}")
        elif event.done == event.total or self._is_time():
            self._say(f"reading images: {event.done:,} of {event.total:,}")

    def _show_cache(self, event: CacheProgress) -> None:
        if self._live:
            self._move("computing what is frozen", event.done, event.total, f"{event.done:,} of {event.total:,}")
        elif self._is_time():
            self._say(f"computing what is frozen: {event.done:,} of {event.total:,} images")

    def _show_phase(self, event: PhaseStarted) -> None:
        self._close()
        self._phase_epochs, self._phase_end = event.epochs, 0
        trained = f"{event.trainable:,} parameters train, {event.frozen:,} are frozen"
        self._say(f"phase {cell(event.name)}: {event.epochs} epoch{'s' * (event.epochs != 1)}; {trained}")
        self._what = f"phase {cell(event.name)}"

    def _show_step(self, event: StepDone) -> None:
        per_epoch = max(event.steps_in_epoch, 1)
        if not self._phase_end:  # the first step of the phase that this process does; a resumed one starts within it
            self._phase_end = event.step - 1 - (event.step - 1) % per_epoch + self._phase_epochs * per_epoch
        step_seconds = event.seconds or self._seconds_per_step
        self._seconds_per_step += (step_seconds - self._seconds_per_step) * (0.1 if self._seconds_per_step else 1.0)
        self._last_step = event.step
        rate = event.images / step_seconds if step_seconds else 0.0
        within = (event.step - 1) % per_epoch + 1
        facts = f"loss {event.loss:.4f}  {rate:,.0f} images/s  {self._format_left()} left"
        if self._live:
            self._move(f"epoch {event.epoch}", within, per_epoch, f"{within}/{per_epoch}  {facts}")
        elif self._is_time():
            self._say(f"epoch {event.epoch}: step {within} of {per_epoch}  {facts} in {self._what}")

    def _show_epoch(self, event: EpochDone) -> None:
        self._close()
        done = f"epoch {event.epoch}: loss {event.train_loss:.4f}  {_format_metrics(event.metrics)}"
        if event.average_metrics:
            done += f"  (average: {_format_metrics(event.average_metrics)})"
        shares = ""
        if event.seconds:
            shares = f" ({time_shares(event.input_seconds, event.seconds, copy_seconds=event.copy_seconds)})"
        self._say(f"{done}  {event.images_per_second:,.0f} images/s  {duration(event.seconds)}{shares}")

    def _format_left(self) -> str:
        return duration(max(self._phase_end - self._last_step, 0) * self._seconds_per_step)

    def _is_time(self) -> bool:
        return time.monotonic() - self._spoke_at >= _PLAIN_EVERY_SECONDS

    def _say(self, text: str) -> None:
        self._spoke_at = time.monotonic()
        self._console.print(text, markup=False)

    def _move(self, what: str, done: int, total: int, facts: str) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
            self._bar = Bar(
                *columns, TextColumn("{task.fields[facts]}", markup=False), console=self._console, transient=True
            )
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, facts=facts)
        self._bar.update(self._task, description=what, completed=done, total=total, facts=facts)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _format_metrics(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{cell(name)} {cell(float(value))}" for name, value in select_metrics(metrics).items())
