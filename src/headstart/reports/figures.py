"""The figures of a report: which curves a run's events give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from headstart.reports.headline import find_main, label_metric, latest_metrics
from headstart.reports.plots import Line, Mark, curves, phase_marks, residuals, scatter
from headstart.reports.run_record import RunRecord
from headstart.tasks.regress import TargetScore

Events = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chart:
    """A figure with its caption, and the lines in it where there are several."""

    caption: str
    svg: Markup
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class TargetCharts:
    """One regression target: its scores, truth against prediction, and residuals."""

    score: TargetScore
    scatter: Markup
    residuals: Markup


def curve_figures(record: RunRecord, *, baseline: tuple[float | None, str]) -> tuple[Chart, ...]:
    """Training loss and the validation's main metric over epochs, with its baseline; none before the first epoch."""
    epochs = record.epochs
    if not epochs:
        return ()
    marks = phase_marks(epochs, at="epoch", names=phase_names(record))
    main = find_main(record, latest_metrics(record))
    losses = [_line(epochs, "training", "train_loss", "second")]
    losses += [_line(epochs, "validation", "metrics", "accent", key="nll")]
    losses = [line for line in losses if line.x]
    scored = [_line(epochs, "trained weights", "metrics", "accent", key=main)]
    scored += [_line(epochs, "average of weights", "average_metrics", "second", key=main, dashed=True)]
    scored = [line for line in scored if line.x]
    guess, says = baseline
    if scored and guess is not None and math.isfinite(guess):
        scored.append(Line(says, scored[0].x, [guess] * len(scored[0].x), "muted", dashed=True))
    charts = []
    if losses:
        caption = "Loss" if len(losses) > 1 else "Training loss"
        charts.append(_chart(caption, losses, x_label="epoch", marks=marks))
    if scored:
        caption = f"Validation {label_metric(record.kind, record.names, main)}"
        charts.append(_chart(caption, scored, x_label="epoch", marks=marks))
    return tuple(charts)


def rate_figures(record: RunRecord) -> tuple[Chart, ...]:
    """Learning rate of head and backbone over steps."""
    lines = [_line(record.steps, "head", "head_lr", "second"), _line(record.steps, "backbone", "lr", "accent")]
    lines = [  # a frozen backbone's rate is 0, which no log has: a gap
        replace(line, y=[value if value > 0 else math.nan for value in line.y])
        for line in lines
        if any(value > 0 for value in line.y)
    ]
    if not lines:
        return ()
    marks = phase_marks(record.steps, at="step", names=phase_names(record))
    return (_chart("Learning rate", lines, x_label="optimizer step", marks=marks, log=True, wide=True),)


def step_figures(record: RunRecord) -> tuple[Chart, ...]:
    """Training loss and gradient norm over steps."""
    marks = phase_marks(record.steps, at="step", names=phase_names(record))
    charts = []
    for caption, name, log in (("Loss of each step", "loss", False), ("Gradient norm of each step", "grad_norm", True)):
        line = _line(record.steps, caption, name, "accent")
        if line.x:
            charts.append(_chart(caption, [line], x_label="optimizer step", marks=marks, log=log))
    return tuple(charts)


def target_figures(scores: Sequence[TargetScore]) -> tuple[TargetCharts, ...]:
    """Scatter and residuals of each regression target."""
    return tuple(
        TargetCharts(
            score,
            scatter(score.truths, score.predictions, title=f"Truth against prediction, {len(score.truths)} images"),
            residuals(score.truths, score.predictions, title=f"Residuals, {len(score.truths)} images"),
        )
        for score in scores
    )


def phase_names(record: RunRecord) -> tuple[str, ...]:
    """Names of the planned phases."""
    phases = record.plan.get("phases", ())
    return tuple(str(phase.get("name") or f"phase {place + 1}") for place, phase in enumerate(phases))


def _line(events: Events, label: str, name: str, colour: str, *, key: str | None = None, dashed: bool = False) -> Line:
    """A field of the events over their epoch or step; events without it are left out, an infinite value is a gap."""
    x, y = [], []
    for event in events:
        value = event.get(name) if key is None else (event.get(name) or {}).get(key)
        if isinstance(value, int | float):
            x.append(float(event["epoch" if event.get("event") == "epoch" else "step"]))
            y.append(float(value) if math.isfinite(value) else math.nan)
    return Line(label, x, y, colour, dashed)


def _chart(
    caption: str, lines: Sequence[Line], *, x_label: str, marks: Sequence[Mark], log: bool = False, wide: bool = False
) -> Chart:
    ends = [[value for value in line.y if math.isfinite(value)] or [math.nan] for line in lines]
    ranges = [f"{line.label} from {y[0]:.3g} to {y[-1]:.3g}" for line, y in zip(lines, ends, strict=True)]
    title = f"{caption}: {'; '.join(ranges)}"
    svg = curves(lines, x_label=x_label, title=title, marks=marks, log=log, wide=wide)
    return Chart(caption, svg, tuple(lines) if len(lines) > 1 else ())
