"""A live table of a run in a notebook: a row per epoch, a line on what is done now; below, warnings and decisions."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

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
    ScanProgress,
    StepDone,
)
from headstart.reports.cautions import mark_up_warnings
from headstart.reports.cells import cell, duration, select_metrics

_EVERY_SECONDS = 0.5  # between two drawings within an epoch: a browser draws each of them
Draw = Callable[[str], None]
"""Puts this HTML in the place of what was drawn before."""


def in_notebook() -> bool:
    """Whether the code runs in a notebook's kernel, where IPython is loaded already."""
    shell = sys.modules.get("IPython")
    running: Any = shell.get_ipython() if shell is not None else None
    return hasattr(running, "kernel")


def draw_below_cell() -> Draw:
    """What draws below the notebook's cell, and again in the same place."""
    display = import_module("IPython.display")
    handle = display.display(display.HTML(""), display_id=True)

    def draw(text: str) -> None:
        handle.update(display.HTML(text))

    return draw


class NotebookTable:
    """Shows the events of a run as a table that grows; given as ``watch`` to what runs."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._rows: list[list[str]] = []
        self._header: list[str] = []
        self._notes: list[str] = []
        self._warnings = self._decided = ""
        self._now = ""
        self._drawn_at = 0.0

    def __call__(self, event: Event) -> None:
        """Show one event; kinds that have nothing to show pass by."""
        match event:
            case Note() | CacheNote() | DataNote() | CacheGivenUp():
                self._notes.append(event.text)
            case Decided():
                rows = [[decision.name, decision.value, decision.reason] for decision in event.plan.decisions]
                self._warnings = mark_up_warnings(event.plan.document)
                self._decided = f"<details><summary>what was decided, and why</summary>{_table(rows)}</details>"
            case ScanProgress() | CacheProgress():
                what = "reading images" if isinstance(event, ScanProgress) else "computing what is frozen"
                return self._move(f"{what}: {event.done:,} of {event.total:,}", ends=event.done == event.total)
            case PhaseStarted():
                self._now = f"phase {event.name}: {event.trainable:,} parameters train, {event.frozen:,} are frozen"
            case StepDone():
                within = (event.step - 1) % max(event.steps_in_epoch, 1) + 1
                return self._move(
                    f"epoch {event.epoch}: step {within} of {event.steps_in_epoch}, loss {event.loss:.4f}"
                )
            case EpochDone():
                self._add_row(event)
            case _:
                return None
        return self._show()

    def close(self) -> None:
        """Show the last of it: nothing is being done any more."""
        self._now = ""
        self._show()

    def _add_row(self, event: EpochDone) -> None:
        values: Mapping[str, float] = select_metrics(event.metrics)
        self._header = ["epoch", "loss", *values, "images/s", "time"]
        numbers = [cell(float(value)) for value in (event.train_loss, *values.values())]
        self._rows.append([str(event.epoch), *numbers, f"{event.images_per_second:,.0f}", duration(event.seconds)])

    def _move(self, now: str, *, ends: bool = False) -> None:
        self._now = now
        if ends or time.monotonic() - self._drawn_at >= _EVERY_SECONDS:
            self._show()

    def _show(self) -> None:
        self._drawn_at = time.monotonic()
        lines = "".join(f"<div>{html.escape(cell(text))}</div>" for text in (*self._notes, self._now) if text)
        self._draw(_table(self._rows, header=self._header) + lines + self._warnings + self._decided)


def _table(rows: list[list[str]], *, header: list[str] | None = None) -> str:
    head = "".join(f"<th>{html.escape(cell(name))}</th>" for name in header or ())
    tag = "td" if header else 'td style="text-align:left"'  # notebooks set numbers and words to the right
    body = "".join(f"<tr>{''.join(f'<{tag}>{html.escape(cell(text))}</td>' for text in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>" if rows else ""
