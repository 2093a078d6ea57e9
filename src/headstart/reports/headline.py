"""The result of a run in numbers: each metric with its interval and what guessing without an image would get."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstart.reports.run_record import RunRecord
from headstart.tasks.intervals import Interval
from headstart.tasks.metrics import LABELS, is_lower_better
from headstart.tasks.task import RowScores


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of the result; ``better`` says which way is good."""

    key: str
    label: str
    value: float
    better: str
    interval: Interval | None = None
    baseline: float | None = None
    baseline_says: str = ""


def task_scores(record: RunRecord) -> RowScores | None:
    """The predictions, scored as the task asks; None while there are none."""
    return record.kind.score_rows(record.predictions, record.names) if record.predictions else None


def metrics(record: RunRecord, scores: RowScores | None) -> tuple[Metric, ...]:
    """The result's metrics, the main one first; the last epoch's while the run is not finished."""
    latest = latest_metrics(record)
    main = record.kind.main_metric
    keys = [key for key in LABELS if key in latest and key != main]
    keys += sorted(key for key in latest if key not in LABELS and not key.startswith("baseline") and ":" not in key)
    return tuple(_metric(record, scores, latest, key) for key in [main] * (main in latest) + keys)


def mismatch(record: RunRecord, scores: RowScores | None) -> str:
    """A sentence when predictions.csv and result.json disagree about the main metric by more than rounding, else ""."""
    key = record.kind.main_metric
    written = latest_metrics(record).get(key) if record.result is not None else None
    counted = scores.main if scores is not None else math.nan
    if math.isnan(counted):
        return ""
    if not isinstance(written, int | float) or abs(written - counted) <= 2e-3 * max(abs(written), 1e-9):
        return ""
    return f"result.json says {written:.6g}, but predictions.csv gives {counted:.6g}: one of the two files was changed."


def metric_label(key: str) -> str:
    """What a metric is called in text."""
    return LABELS.get(key, key.replace("_", " "))


def latest_metrics(record: RunRecord) -> Mapping[str, Any]:
    """The finished run's metrics, or those of its last epoch so far."""
    if record.result is not None:
        return record.result.get("metrics") or {}
    return (record.epochs[-1].get("metrics") or {}) if record.epochs else {}


def _metric(record: RunRecord, scores: RowScores | None, latest: Mapping[str, Any], key: str) -> Metric:
    finished = record.result is not None and scores is not None  # predictions belong to the finished run
    interval = scores.intervals.get(key) if scores is not None and finished else None
    trained = (record.plan.get("data", {}).get("class_counts") or {}).get("train") or {}
    baseline, says = record.kind.find_baseline(key, latest, scores, trained)
    return Metric(
        key=key,
        label=metric_label(key),
        value=_float(latest[key]),
        better="lower" if is_lower_better(key) else "higher",
        interval=interval,
        baseline=baseline,
        baseline_says=says,
    )


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
