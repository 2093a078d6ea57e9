"""Numbers with a unit: outputs standardised while they are learnt, Huber, absolute errors; and a report's rows.

N images, T targets.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.config.schema import AutoLoss, Huber, Loss, Mae, Mse
from headstart.errors import ConfigError, DataError
from headstart.tasks.intervals import Interval, bootstrap
from headstart.tasks.metrics import compute_mae, compute_r2, compute_rmse, resample_r2
from headstart.tasks.rows import Row, format_amount, number, read_numbers
from headstart.tasks.task import Kind, RowScores, RowWords, Target, TaskSpec
from headstart.wording import option

_ERRORS = ("mae", "rmse", "mae_log10")
"""Errors with a baseline: that of the one number, the same for all images, with which it is least."""


@dataclass(frozen=True, kw_only=True)
class TargetScore:
    """One number that the model predicts, in its own unit; ``truths`` and ``predictions`` are (N,)."""

    name: str
    truths: tuple[float, ...]
    predictions: tuple[float, ...]
    mae: float
    mae_interval: Interval | None
    rmse: float
    r2: float
    bias: float
    median: float
    mean: float
    baseline_mae: float
    baseline_rmse: float


@dataclass(frozen=True, kw_only=True)
class RegressScores:
    """Targets in the order of the task."""

    targets: tuple[TargetScore, ...]

    def compute(self, key: str) -> float:
        """The metric of this name over these rows; NaN where they do not give it."""
        count = len(self.targets[0].truths) if self.targets else 0
        return float(self._resample(key, torch.ones(1, count, dtype=torch.float64))) if count else math.nan

    def find_interval(self, key: str) -> Interval | None:
        """The bootstrap's interval of the metric of this name; None where the rows do not give one."""
        if len(self.targets) == 1 and key == "mae":
            return self.targets[0].mae_interval
        if not self.targets or math.isnan(self.compute(key)):
            return None
        size = len(self.targets[0].truths)
        return bootstrap(lambda weights: self._resample(key, weights), size=size, cost=4 * len(self.targets))

    def _resample(self, key: str, weights: Tensor) -> Tensor:
        """A metric of each resample, (R,): of one target by itself, of several their mean; NaN where there is none."""
        name = key.removeprefix("relative_")
        if (name not in _ERRORS and key != "r2") or (name == key != "r2" and len(self.targets) > 1):
            return weights.new_full((len(weights),), math.nan)
        each = []
        for target in self.targets:
            values, truth = (torch.tensor(numbers).double() for numbers in (target.predictions, target.truths))
            if key == "r2":
                each.append(resample_r2(values, truth, weights))
                continue
            if name == "mae_log10":
                values, truth = values.log10(), truth.log10()
            compute = compute_rmse if name == "rmse" else compute_mae
            error = compute(values, truth, weights)
            guess = compute(_find_constant(name, truth), truth, weights)
            each.append(error if name == key else torch.where(guess > 0, error / guess, torch.nan))
        stacked = torch.stack(each, -1)
        return stacked.mean(-1) if key == "r2" else stacked.nanmean(-1)


def score_rows(rows: Sequence[Row], targets: Sequence[str]) -> RegressScores:
    """Errors of each target in its own unit.

    Raises: StorageError: a value is missing or no number.
    """
    return RegressScores(targets=tuple(_score_target(rows, name) for name in targets))


def _score_target(rows: Sequence[Row], name: str) -> TargetScore:
    truth, values = read_numbers(rows, [f"truth:{name}", f"prediction:{name}"]).T
    median, mean = _find_constant("mae", truth), _find_constant("rmse", truth)
    return TargetScore(
        name=name,
        truths=tuple(truth.tolist()),
        predictions=tuple(values.tolist()),
        mae=float(compute_mae(values, truth)),
        mae_interval=bootstrap(lambda weights: compute_mae(values, truth, weights), size=len(rows), cost=3),
        rmse=float(compute_rmse(values, truth)),
        r2=compute_r2(values, truth),
        bias=float((values - truth).mean()),
        median=float(median),
        mean=float(mean),
        baseline_mae=float(compute_mae(median, truth)),
        baseline_rmse=float(compute_rmse(mean, truth)),
    )


def _find_constant(error: str, truth: Tensor) -> Tensor:
    """The one number with the least error of this kind, a scalar: the mean for squares, else the median."""
    return truth.mean() if error == "rmse" else truth.new_tensor(float(np.median(truth.numpy())))


def make_spec(names: Sequence[str], rows: Sequence[Sequence[float]], log: bool) -> TaskSpec:
    """Regression whose scaling is that of ``rows``, the training split's targets (N, T).

    Raises:
        DataError: a target has the same value in every row.
    """
    mean, std = [], []
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        values = [math.log10(value) for value in column] if log else list(column)
        spread = statistics.pstdev(values)
        if min(column) == max(column) or spread == 0:
            raise DataError(
                f"data.target: {name!r} is {column[0]:g} in each of the {len(column)} training images, so there is "
                f"nothing to learn; give a column that varies, e.g. {option('data.target', fill='NAME')}"
            )
        mean.append(statistics.fmean(values))
        std.append(spread)
    return TaskSpec(kind="regress", targets=tuple(names), mean=tuple(mean), std=tuple(std), log=log)


def _choose_loss(asked: AutoLoss) -> Loss:
    if asked != AutoLoss():
        raise ConfigError("loss: class_weights and label_smoothing have no meaning for numbers; leave them out")
    return Huber()


def _make_target(task: TaskSpec, _labels: Sequence[str], numbers: Mapping[str, float]) -> Target:
    return tuple(numbers[name] for name in task.targets)


def _read_truth(_task: TaskSpec, targets: Sequence[Target]) -> Tensor:
    """The targets as given: there and back through the scaling they would be rounded."""
    return torch.tensor(targets, dtype=torch.float64)


def _encode_targets(task: TaskSpec, targets: Sequence[Target]) -> Tensor:
    return task.standardise(torch.tensor(targets, dtype=torch.float64))


def _activate(task: TaskSpec, outputs: Tensor) -> Tensor:
    return task.original(outputs.double()).float()


def _compute_metrics(task: TaskSpec, values: Tensor, truth: Tensor) -> dict[str, float]:
    """Metrics of one target as they are; of several each one's own after a colon, and means of what has no unit: R² and
    errors as shares of their baselines'.
    """
    columns = [
        _compute_errors(values[:, place].double(), truth[:, place].double(), log=task.log)
        for place in range(len(task.targets))
    ]
    if len(columns) == 1:
        return columns[0]
    found = {f"relative_{name}": _average_shares(columns, name) for name in _ERRORS if name in columns[0]}
    found["r2"] = math.fsum(column["r2"] for column in columns) / len(columns)
    for target, column in zip(task.targets, columns, strict=True):
        found |= {f"{name}:{target}": value for name, value in column.items()}
    return found


def _average_shares(columns: Sequence[Mapping[str, float]], name: str) -> float:
    """Mean over the targets of the error as a share of the baseline's; one that does not vary has none."""
    pairs = [(column[name], column[f"baseline_{name}"]) for column in columns]
    shares = [error / baseline for error, baseline in pairs if baseline > 0]
    return math.fsum(shares) / len(shares) if shares and all(map(math.isfinite, shares)) else math.nan


def _compute_errors(values: Tensor, truth: Tensor, *, log: bool) -> dict[str, float]:
    """Errors in the target's own unit, each with that of the one number with which it is least on these images."""
    found = {
        "mae": float(compute_mae(values, truth)),
        "rmse": float(compute_rmse(values, truth)),
        "r2": compute_r2(values, truth),
        "baseline_mae": float(compute_mae(_find_constant("mae", truth), truth)),
        "baseline_rmse": float(compute_rmse(_find_constant("rmse", truth), truth)),
    }
    if log:
        scaled = truth.log10()
        found["mae_log10"] = float(compute_mae(values.log10(), scaled))
        found["baseline_mae_log10"] = float(compute_mae(_find_constant("mae_log10", scaled), scaled))
    return found


def _compute_present(task: TaskSpec, values: Tensor, truth: Tensor, _present: Sequence[int]) -> dict[str, float]:
    return _compute_metrics(task, values, truth)


def _pair_outputs(task: TaskSpec, values: Tensor) -> tuple[tuple[str, float], ...]:
    return tuple(zip(task.targets, values.tolist(), strict=True))


def _write_row(task: TaskSpec, truth: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, true, value in zip(task.targets, truth, values, strict=True):
        row |= {f"truth:{name}": true, f"prediction:{name}": value}
    return row


def _find_baseline(metric: str, metrics: Mapping[str, Any], scores: RowScores | None) -> tuple[float | None, str]:
    """What the best single number for these images gets: their median, or their mean where errors are squared."""
    if metric == "r2":
        return 0.0, "always the mean"
    name = metric.removeprefix("relative_")
    word = "mean" if name == "rmse" else "median"
    if name != metric:
        return 1.0, f"always each target's {word}"
    value = metrics.get(f"baseline_{metric}")
    if not isinstance(value, int | float):
        return None, ""
    if "baseline_rmse" not in metrics:  # of a run of 0.1, which took the training images' mean
        return float(value), "always the training mean"
    if not isinstance(scores, RegressScores) or len(scores.targets) != 1:
        return float(value), f"always the {word}"
    (target,) = scores.targets
    return float(value), f"always {format_amount(target.mean if word == 'mean' else target.median)}, the {word}"


def _list_constants(_task: TaskSpec, truth: Tensor) -> dict[str, Tensor]:
    """Each target's median, and its mean: which is better depends on the metric."""
    medians = torch.stack([_find_constant("mae", column) for column in truth.T])
    return {"always the median": medians, "always the mean": truth.mean(0)}


def _rate_mistake(row: Row, task: Mapping[str, Any]) -> float:
    """The errors in standard deviations of the training targets, summed; of logarithms where those were learnt."""
    log = bool(task.get("log"))
    scales = list(task.get("std") or ()) if not log else []
    total = 0.0
    for place, target in enumerate(task.get("targets", ())):
        scale = scales[place] if place < len(scales) and scales[place] else 1.0
        total += abs(_find_error(row, target, log=log)) / scale
    return total


def _find_error(row: Row, target: str, *, log: bool) -> float:
    truth, predicted = number(row, f"truth:{target}"), number(row, f"prediction:{target}")
    if log and truth > 0 and predicted > 0:
        return math.log10(predicted / truth)
    return predicted - truth


def _describe_row(row: Row, names: Sequence[str]) -> RowWords:
    shown = [(name, number(row, f"truth:{name}"), number(row, f"prediction:{name}")) for name in names]
    if len(shown) == 1:
        _, true, guess = shown[0]
        return format_amount(true), format_amount(guess), f"off by {format_amount(guess - true, sign=True)}", None
    return (
        ", ".join(f"{name} {format_amount(true)}" for name, true, _ in shown),
        ", ".join(f"{name} {format_amount(guess)}" for name, _, guess in shown),
        "",
        None,
    )


REGRESS = Kind(
    name="regress",
    title="Regression",
    noun="target",
    nouns="targets",
    answers="numbers",
    torn_copies="one of the numbers is wrong: correct it, or remove a copy",
    gives_numbers=True,
    stratum="quantile of the target",
    cell="a number",
    summary="predicts {n} number{s} from an image",
    limit="It is not to be trusted beyond the range of numbers that it was trained on.",
    mistakes="The largest errors.",
    interval_method="Intervals: BCa bootstrap over images.",
    hub_tags=("image-regression",),
    metrics={"auto": "mae", "mae": "mae", "rmse": "rmse", "r2": "r2"},
    losses=(Mse, Huber, Mae),
    choose_loss=_choose_loss,
    make_spec=make_spec,
    make_target=_make_target,
    encode_targets=_encode_targets,
    read_truth=_read_truth,
    activate=_activate,
    compute_metrics=_compute_metrics,
    compute_present=_compute_present,
    pair_outputs=_pair_outputs,
    write_row=_write_row,
    score_rows=score_rows,
    find_baseline=_find_baseline,
    list_constants=_list_constants,
    rate_mistake=_rate_mistake,
    describe_row=_describe_row,
)
