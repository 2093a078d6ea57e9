"""Numbers with a unit: outputs standardised while they are learnt, Huber, absolute errors; and a report's rows.

N images, T targets.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.config.schema import AutoLoss, Huber, Loss, Mae, Mse
from headstart.errors import ConfigError, DataError
from headstart.tasks.intervals import Interval, bootstrap
from headstart.tasks.metrics import compute_mae, compute_r2, compute_rmse
from headstart.tasks.rows import Row, format_amount, number, read_numbers
from headstart.tasks.task import Kind, RowScores, RowWords, Target, TaskSpec

_WORST = sys.float_info.max
_BASELINE_OF = {"mae": "baseline_mae", "mae_log10": "baseline_mae_log10"}


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


@dataclass(frozen=True, kw_only=True)
class RegressScores:
    """Targets in the order of the task."""

    targets: tuple[TargetScore, ...]

    @property
    def main(self) -> float:
        """Mean over the targets of the mean absolute error."""
        return sum(target.mae for target in self.targets) / len(self.targets) if self.targets else math.nan

    @property
    def intervals(self) -> Mapping[str, Interval | None]:
        """The bootstrap's interval of the mean absolute error, where there is one target."""
        return {"mae": self.targets[0].mae_interval} if len(self.targets) == 1 else {}


def score_rows(rows: Sequence[Row], targets: Sequence[str]) -> RegressScores:
    """Errors of each target in its own unit.

    Raises: StorageError: a value is missing or no number.
    """
    return RegressScores(targets=tuple(_score_target(rows, name) for name in targets))


def _score_target(rows: Sequence[Row], name: str) -> TargetScore:
    truth, values = read_numbers(rows, [f"truth:{name}", f"prediction:{name}"]).T
    return TargetScore(
        name=name,
        truths=tuple(truth.tolist()),
        predictions=tuple(values.tolist()),
        mae=float(compute_mae(values, truth)),
        mae_interval=bootstrap(lambda weights: compute_mae(values, truth, weights), size=len(rows), cost=3),
        rmse=float(compute_rmse(values, truth)),
        r2=compute_r2(values, truth),
        bias=float((values - truth).mean()),
    )


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
                f"nothing to learn; give a column that varies, e.g. --data.target NAME"
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
    """Plain keys are means over the targets; ``baseline_mae`` is that of always giving the training mean."""
    middle = torch.zeros(1, len(task.targets), dtype=torch.float64)
    centre = task.original(middle)  # the mean in the space that was learnt
    columns = [
        _compute_errors(values[:, place].double(), truth[:, place].double(), centre[0, place], log=task.log)
        for place in range(len(task.targets))
    ]
    means = {name: math.fsum(column[name] for column in columns) / len(columns) for name in columns[0]}
    if len(columns) == 1:
        return means
    each = {
        f"{name}:{target}": value
        for target, column in zip(task.targets, columns, strict=True)
        for name, value in column.items()
    }
    return means | each


def _compute_errors(values: Tensor, truth: Tensor, centre: Tensor, *, log: bool) -> dict[str, float]:
    found = {
        "mae": float(compute_mae(values, truth)),
        "rmse": float(compute_rmse(values, truth)),
        "r2": compute_r2(values, truth),
        "baseline_mae": float(compute_mae(centre, truth)),
    }
    if log:
        found["mae_log10"] = float(compute_mae(values.log10(), truth.log10()))
        found["baseline_mae_log10"] = float(compute_mae(centre.log10(), truth.log10()))
    return found


def _compute_present(task: TaskSpec, values: Tensor, truth: Tensor, _present: Sequence[int]) -> dict[str, float]:
    return _compute_metrics(task, values, truth)


def _selection_key(task: TaskSpec, metrics: Mapping[str, float]) -> tuple[float, ...]:
    name = "mae_log10" if task.log else "mae"
    if len(task.targets) == 1:
        return (-metrics.get(name, _WORST),)
    # several units: each target's error as a share of the mean predictor's
    pairs = [(metrics.get(f"{name}:{one}"), metrics.get(f"baseline_{name}:{one}", 1.0)) for one in task.targets]
    shares = [error / max(baseline, 1e-12) for error, baseline in pairs if error is not None]
    return (-sum(shares) / len(pairs) if len(shares) == len(pairs) else -_WORST,)


def _pair_outputs(task: TaskSpec, values: Tensor) -> tuple[tuple[str, float], ...]:
    return tuple(zip(task.targets, values.tolist(), strict=True))


def _write_row(task: TaskSpec, truth: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, true, value in zip(task.targets, truth, values, strict=True):
        row |= {f"truth:{name}": true, f"prediction:{name}": value}
    return row


def _find_baseline(
    metric: str, metrics: Mapping[str, Any], _scores: RowScores | None, _trained: Mapping[str, int]
) -> tuple[float | None, str]:
    if metric == "r2":
        return 0.0, "always the mean"
    if metric not in _BASELINE_OF or _BASELINE_OF[metric] not in metrics:
        return None, ""
    value = metrics[_BASELINE_OF[metric]]
    return float(value) if isinstance(value, int | float) else math.nan, "always the training mean"


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
    gives_numbers=True,
    stratum="quantile of the target",
    cell="a number",
    summary="predicts {n} number{s} from an image",
    limit="It is not to be trusted beyond the range of numbers that it was trained on.",
    mistakes="The largest errors.",
    interval_method="Intervals: bootstrap over images.",
    hub_tags=("image-regression",),
    main_metric="mae",
    losses=(Mse, Huber, Mae),
    choose_loss=_choose_loss,
    make_spec=make_spec,
    make_target=_make_target,
    encode_targets=_encode_targets,
    read_truth=_read_truth,
    activate=_activate,
    compute_metrics=_compute_metrics,
    compute_present=_compute_present,
    selection_key=_selection_key,
    pair_outputs=_pair_outputs,
    write_row=_write_row,
    score_rows=score_rows,
    find_baseline=_find_baseline,
    rate_mistake=_rate_mistake,
    describe_row=_describe_row,
)
