"""The result of a run in numbers: each metric with its interval and what a guess without looking would get."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstart.reports.run_record import RunRecord
from headstart.tasks.intervals import Interval, wilson
from headstart.tasks.per_class import (
    ClassifyScores,
    MultilabelScores,
    TargetScore,
    classify_scores,
    multilabel_scores,
    target_scores,
)

Scores = ClassifyScores | MultilabelScores | tuple[TargetScore, ...]
MAIN = {"classify": "accuracy", "multilabel": "mean_average_precision", "regress": "mae"}
_LABELS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "nll": "negative log-likelihood",
    "mean_average_precision": "mean average precision",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
    "mae_log10": "mean absolute error, log10",
}
_BASELINE_OF = {"mae": "baseline_mae", "mae_log10": "baseline_mae_log10"}


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


def task_scores(record: RunRecord) -> Scores | None:
    """The predictions, scored as the task asks; None while there are none."""
    if not record.predictions:
        return None
    task = record.plan["task"]
    if record.task == "classify":
        return classify_scores(record.predictions, task.get("classes", ()))
    if record.task == "multilabel":
        return multilabel_scores(record.predictions, task.get("classes", ()))
    return target_scores(record.predictions, task.get("targets", ()))


def metrics(record: RunRecord, scores: Scores | None) -> tuple[Metric, ...]:
    """The result's metrics, the main one first; the last epoch's while the run is not finished."""
    found = latest_metrics(record)
    main = MAIN[record.task]
    keys = [key for key in _LABELS if key in found and key != main]
    keys += sorted(key for key in found if key not in _LABELS and not key.startswith("baseline") and ":" not in key)
    return tuple(_metric(record, scores, found, key) for key in [main] * (main in found) + keys)


def mismatch(record: RunRecord, scores: Scores | None) -> str:
    """A sentence when predictions.csv and result.json disagree about the main metric by more than rounding, else ""."""
    key = MAIN[record.task]
    told = latest_metrics(record).get(key) if record.result is not None else None
    match scores:
        case ClassifyScores():
            counted = scores.correct / max(1, scores.total)
        case MultilabelScores():
            defined = [tag.average_precision for tag in scores.tags if tag.support]
            counted = sum(defined) / len(defined) if defined else math.nan
        case (TargetScore(), *_):
            counted = sum(one.mae for one in scores) / len(scores)
        case _:
            return ""
    if not isinstance(told, int | float) or abs(told - counted) <= 2e-3 * max(abs(told), 1e-9):
        return ""
    return f"result.json says {told:.6g}, but predictions.csv gives {counted:.6g}: one of the two files was changed."


def metric_label(key: str) -> str:
    """What a metric is called in text."""
    return _LABELS.get(key, key.replace("_", " "))


def latest_metrics(record: RunRecord) -> Mapping[str, Any]:
    """The finished run's metrics, or those of its last epoch so far."""
    if record.result is not None:
        return record.result.get("metrics") or {}
    return (record.epochs[-1].get("metrics") or {}) if record.epochs else {}


def _metric(record: RunRecord, scores: Scores | None, found: Mapping[str, Any], key: str) -> Metric:
    lower = key == "nll" or key.startswith(("mae", "rmse"))
    finished = record.result is not None
    interval = _interval(scores, key) if finished else None  # predictions belong to the finished run
    baseline, says = _baseline(record, scores, found, key)
    return Metric(
        key=key,
        label=metric_label(key),
        value=_float(found[key]),
        better="lower" if lower else "higher",
        interval=interval,
        baseline=baseline,
        baseline_says=says,
    )


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _interval(scores: Scores | None, key: str) -> Interval | None:
    match scores, key:
        case ClassifyScores(), "accuracy":
            return wilson(scores.correct, scores.total)
        case ClassifyScores(), "macro_f1":
            return scores.macro_f1_interval
        case MultilabelScores(), "mean_average_precision":
            return scores.map_interval
        case (TargetScore() as only,), "mae":
            return only.mae_interval
    return None


def _baseline(record: RunRecord, scores: Scores | None, found: Mapping[str, Any], key: str) -> tuple[float | None, str]:
    """What the metric is without looking at an image, and in words who gets it."""
    if key in _BASELINE_OF and _BASELINE_OF[key] in found:
        return _float(found[_BASELINE_OF[key]]), "always the training mean"
    if key == "r2":
        return 0.0, "always the mean"
    if key == "mean_average_precision" and isinstance(scores, MultilabelScores):
        present = [tag.prevalence for tag in scores.tags if tag.support]
        return (sum(present) / len(present) if present else None), "random order: the tags' mean prevalence"
    if key != "accuracy" or not isinstance(scores, ClassifyScores) or not scores.total:
        return None, ""
    support = {one.name: one.support for one in scores.classes}
    trained = (record.plan.get("data", {}).get("class_counts") or {}).get("train") or support
    majority = max(support, key=lambda name: (trained.get(name, 0), support[name]))
    return support[majority] / scores.total, f"always {majority}"
