"""The result of a run in numbers: each metric with its interval and what guessing without an image would get."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headstart.config.metric import METRICS
from headstart.reports.run_record import RunRecord
from headstart.tasks.intervals import Interval
from headstart.tasks.kinds import find_kind, name_metric
from headstart.tasks.metrics import LABELS, is_lower_better
from headstart.tasks.own_ratings import Rating, list_ratings
from headstart.tasks.rows import Row, format_amount
from headstart.tasks.task import Kind, RowScores, TaskSpec

_OF_A_NUMBER = ("mae", "rmse", "r2", "mae_log10")  # labels that a target's name goes with


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of the result; ``better`` says which way is good.

    ``validation`` is the number on the validation images where ``value`` is that on the test images. Of a metric of
    the user's own ``better`` is "" where its direction was not said, and ``missing`` says what is not there and why.
    """

    key: str
    label: str
    value: float
    better: str
    interval: Interval | None = None
    baseline: float | None = None
    baseline_says: str = ""
    validation: float | None = None
    missing: tuple[str, ...] = ()

    @property
    def beats_baseline(self) -> bool | None:
        """Whether the number is better than the baseline's; None where one of them is missing."""
        if self.baseline is None or not self.better or math.isnan(self.value):
            return None
        return self.value < self.baseline if self.better == "lower" else self.value > self.baseline

    @property
    def clearly_beats_baseline(self) -> bool:
        """Whether the whole interval is better than the baseline; the number itself, where there is no interval."""
        if self.interval is None or self.baseline is None:
            return self.beats_baseline is not False
        low, high, guess = self.interval.low, self.interval.high, self.baseline
        return high < guess if self.better == "lower" else low > guess


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a run's records say of its result: ``metrics`` with the main one first, and what to know beside them.

    ``on`` is test or validation: the images that the metrics are of; ``rows_on`` those that the tables are of.
    """

    on: str
    rows_on: str
    scores: RowScores | None
    metrics: tuple[Metric, ...]
    validation_baseline: tuple[float | None, str]
    headline: str
    remarks: tuple[str, ...]
    mismatch: str


def describe_evaluation(
    task: TaskSpec, rows: Sequence[Row], metrics: Mapping[str, float], *, metric: str
) -> tuple[str, tuple[str, ...]]:
    """The main metric of labelled images in a line, and what to know beside it; "" where they do not define it.

    ``metric`` is the word of ``--metric``, or the name of a metric of the user's own; ``rows`` are those of
    predictions.csv.
    """
    key = name_metric(task, metric) if metric in METRICS else metric
    if key not in metrics:
        return "", ()
    kind = find_kind(task.kind)
    scores = kind.score_rows(rows, task.names)
    main = _make_metric(kind, task.names, scores, metrics, key)
    return describe_headline(_label_alone(kind, task.names, main), main, images=f"{len(rows):,} images"), _compare(main)


def summarise(record: RunRecord) -> Findings:
    """The result of a run, from its records."""
    on, rows_on = ("test" if there else "validation" for there in (record.test_metrics, record.test_predictions))
    scores = score_rows(record)
    validation = scores if rows_on == "validation" else score_rows(record, on="validation")
    numbers = list_metrics(record, scores if rows_on == on else None, on=on)
    main = numbers[0] if numbers else None
    guess = _find_validation_baseline(record, main.key, validation) if main else (None, "")
    return Findings(
        on=on, rows_on=rows_on, scores=scores, metrics=numbers, validation_baseline=guess,
        headline=describe_headline(label_main(record, main), main, images=_count_images(record, on)) if main else "",
        remarks=list_remarks(record, numbers) if record.result is not None else (),
        mismatch=find_mismatch(record, validation, main),
    )  # fmt: skip


def _find_validation_baseline(record: RunRecord, key: str, scores: RowScores | None) -> tuple[float | None, str]:
    if key in record.own_metrics:
        rated = _list_own(record, on="validation").get(key)
        return (rated.baseline, rated.baseline_says) if rated else (None, "")
    return record.kind.find_baseline(key, latest_metrics(record), scores)


def _list_own(record: RunRecord, *, on: str) -> Mapping[str, Rating]:
    """The ratings of the user's own metrics that the run computed at its end, by name."""
    written = (record.result or {}).get("own_metrics") or {}
    metrics = record.test_metrics if on == "test" else latest_metrics(record)
    return list_ratings(written.get("test" if on == "test" else "val"), metrics)


def score_rows(record: RunRecord, *, on: str = "test") -> RowScores | None:
    """The predictions, scored as the task asks: of the test images, where there are some; None while there are none."""
    rows = (record.test_predictions if on == "test" else ()) or record.predictions
    return record.kind.score_rows(rows, record.names) if rows else None


def list_metrics(record: RunRecord, scores: RowScores | None, *, on: str) -> tuple[Metric, ...]:
    """The result's metrics, the main one first; the last epoch's while the run is not finished."""
    validation = latest_metrics(record)
    latest = record.test_metrics if on == "test" else validation
    main = find_main(record, validation)
    keys = [key for key in LABELS if key in latest and key != main]
    others = (key for key in latest if key not in LABELS and key != main and ":" not in key)
    keys += sorted(key for key in others if not key.startswith("baseline"))
    finished = scores if record.result is not None else None  # predictions belong to the finished run
    keys = [main] * (main in latest) + keys
    rows = [_make_metric(record.kind, record.names, finished, latest, key) for key in keys]
    rated = _list_own(record, on=on)
    rows = [replace(row, better=find_direction(record, row.key)) for row in rows]
    rows = [_add_rating(row, rated[row.key]) if row.key in rated else row for row in rows]
    if on == "test":
        rows = [replace(row, validation=_float(validation.get(row.key))) for row in rows]
    return tuple(rows)


def find_main(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """The metric that the best epoch was chosen by; of a run of an earlier version, what its records have."""
    asked = record.metric
    candidates = (asked, asked.removeprefix("relative_"), record.kind.metrics["auto"])
    return next((key for key in candidates if key in metrics), asked)


def find_direction(record: RunRecord, key: str) -> str:
    """Which way of a metric is good, higher or lower; "" where nobody said it of one of the user's own."""
    if key in record.own_metrics:
        return record.own_metrics[key] or ""
    return "lower" if is_lower_better(key) else "higher"


def find_mismatch(record: RunRecord, scores: RowScores | None, main: Metric | None) -> str:
    """A sentence when predictions.csv and result.json disagree about the main metric by more than rounding, else ""."""
    if scores is None or main is None or record.result is None:
        return ""
    written, counted = latest_metrics(record).get(main.key), scores.compute(main.key)
    if math.isnan(counted):
        return ""
    if not isinstance(written, int | float) or abs(written - counted) <= 2e-3 * max(abs(written), 1e-9):
        return ""
    return f"result.json says {written:.6g}, but predictions.csv gives {counted:.6g}: one of the two files was changed."


def label_metric(kind: Kind, names: Sequence[str], key: str) -> str:
    """What a metric is called in text, with the name of the one target that it is of."""
    label = LABELS.get(key, key)
    if not kind.gives_numbers:
        return label
    if len(names) > 1:
        return label
    if key == "mae_log10":
        return f"mean absolute error of the logarithm (base 10) of {names[0]}"
    return f"{label} of {names[0]}" if names and key in _OF_A_NUMBER else label


def latest_metrics(record: RunRecord) -> Mapping[str, Any]:
    """The finished run's metrics on the validation images, or those of its last epoch so far."""
    if record.result is not None:
        return record.result.get("metrics") or {}
    return (record.epochs[-1].get("metrics") or {}) if record.epochs else {}


def label_main(record: RunRecord, main: Metric) -> str:
    """What the main metric is called where it stands alone."""
    return _label_alone(record.kind, record.names, main)


def _label_alone(kind: Kind, names: Sequence[str], main: Metric) -> str:
    return f"{main.label}, mean over {len(names)} targets" if kind.gives_numbers and len(names) > 1 else main.label


def _count_images(record: RunRecord, on: str) -> str:
    count = record.plan.get("data", {}).get("test" if on == "test" else "val")
    return f"the {count:,} {on} images" if isinstance(count, int) and count else f"the {on} images"


def describe_headline(label: str, main: Metric, *, images: str) -> str:
    """The main metric in a line: its value, its images, its interval and the baseline."""
    facts = [f"95 % interval {format_interval(main.interval, main.key)}"] if main.interval else []
    if main.baseline is not None:
        facts.append(f"{main.baseline_says}: {format_metric(main.baseline, main.key)}")
    facts += main.missing
    told = f" ({'; '.join(facts)})" if facts else ""
    return f"{label}: {format_metric(main.value, main.key)} on {images}{told}"


def list_remarks(record: RunRecord, numbers: tuple[Metric, ...]) -> tuple[str, ...]:
    """What to know before the result is used: that it is no better than a guess, or than the probe it began with."""
    return (*(_compare(numbers[0]) if numbers else ()), *_compare_with_probe(record))


def _compare(main: Metric) -> tuple[str, ...]:
    """A sentence where the metric is not, or not clearly, better than the baseline."""
    if main.beats_baseline is None:
        return ()
    value, guess = (format_metric(number, main.key) for number in (main.value, main.baseline or 0.0))
    if not main.beats_baseline:
        return (f"No better than {main.baseline_says}: {main.label} {value}, against {guess}.",)
    if not main.clearly_beats_baseline:
        return (f"Not clearly better than {main.baseline_says}: the 95 % interval holds its {guess}.",)
    return ()


def _compare_with_probe(record: RunRecord) -> tuple[str, ...]:
    """Whether no epoch that trained more than the head was better than those of a first phase that trained it alone."""
    heads = [phase.get("freeze") == "backbone" for phase in record.plan.get("phases") or ()]
    if not heads or not heads[0]:
        return ()
    key = find_main(record, latest_metrics(record))
    probe, after = list[float](), list[float]()
    for epoch in record.epochs:
        values = [(epoch.get(name) or {}).get(key) for name in ("metrics", "average_metrics")]
        of_head = epoch.get("phase") in [place for place, alone in enumerate(heads) if alone]
        (probe if of_head else after).extend(value for value in values if isinstance(value, int | float))
    if not probe or not after:
        return ()
    pick = min if find_direction(record, key) == "lower" else max
    first, last = pick(probe), pick(after)
    if last != first and pick(first, last) == last:
        return ()
    name = LABELS.get(key, key)
    return (
        f"Fine-tuning did not beat the probe: validation {name} {format_metric(first, key)} with the head alone, "
        f"{format_metric(last, key)} at best afterwards.",
    )


def _make_metric(
    kind: Kind, names: Sequence[str], scores: RowScores | None, latest: Mapping[str, Any], key: str
) -> Metric:
    baseline, says = kind.find_baseline(key, latest, scores) if key in LABELS else (None, "")
    return Metric(
        key=key,
        label=label_metric(kind, names, key),
        value=_float(latest[key]),
        better="lower" if is_lower_better(key) else "higher",
        interval=scores.find_interval(key) if scores is not None and key in LABELS else None,
        baseline=baseline,
        baseline_says=says,
    )


def _add_rating(row: Metric, rating: Rating) -> Metric:
    """The metric of the user's own, with what its function gave on resamples and on the same answer for every image."""
    return replace(
        row, interval=rating.interval, baseline=rating.baseline, baseline_says=rating.baseline_says,
        missing=rating.remarks,
    )  # fmt: skip


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def format_metric(value: float, key: str) -> str:
    """A metric's value as text: shares in per cent, scores with three digits, errors in the target's unit."""
    if not math.isfinite(value):
        return "–"
    if key.partition(":")[0] not in LABELS:  # of the user's own: of any size
        return format_amount(value)
    if is_share(key):
        return format_share(value)
    if key.startswith(("mae", "rmse")) and not key.endswith("log10"):
        return format_amount(value)
    return f"{value:.3f}".replace("-", "−")


def format_interval(interval: Interval | None, key: str) -> str:
    """An interval as text in the metric's unit, "" where there is none."""
    if interval is None:
        return ""
    low, high = format_metric(interval.low, key), format_metric(interval.high, key)
    return f"{low.removesuffix(' %') if is_share(key) else low} to {high}"


def format_share(value: float) -> str:
    """A share as per cent with one digit."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


def is_share(key: str) -> bool:
    """Whether a metric reads best in per cent."""
    return key in ("accuracy", "balanced_accuracy") or key.startswith("relative_")
