"""The task's metrics, by torchmetrics, over all images at once (never a mean of batches).

N images, K classes or tags, T targets.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from headstart.tasks.functional_metrics import functional
from headstart.tasks.task import TaskSpec

_WORST = sys.float_info.max
MAIN_METRIC = {"classify": "accuracy", "multilabel": "mean_average_precision", "regress": "mae"}


def measure(task: TaskSpec, outputs: Tensor, truth: Tensor) -> dict[str, float]:
    """Metrics by name; one that these images do not define (R2 of one image), or that is infinite, is left out.

    outputs: (N, K) probabilities or (N, T) numbers; truth: (N,), (N, K) or (N, T); numbers in original units.
    """
    if task.kind == "classify":
        found = _classify(outputs, truth)
    elif task.kind == "multilabel":
        found = _multilabel(outputs, truth)
    else:
        found = _regress(task, outputs, truth)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def selection_key(task: TaskSpec, metrics: dict[str, float]) -> tuple[float, ...]:
    """What "better" means: the main metric, then the likelihood; larger is better, compared from the left.

    One that is not there counts as the worst finite number: scores are kept as JSON, which has no infinity.
    """
    if task.kind == "regress":
        name = "mae_log10" if task.log else "mae"
        if len(task.targets) == 1:
            return (-metrics.get(name, _WORST),)
        # several units: each target's error as a share of the mean predictor's
        pairs = [(metrics.get(f"{name}:{one}"), metrics.get(f"baseline_{name}:{one}", 1.0)) for one in task.targets]
        shares = [error / max(baseline, 1e-12) for error, baseline in pairs if error is not None]
        return (-sum(shares) / len(pairs) if len(shares) == len(pairs) else -_WORST,)
    return (metrics.get(MAIN_METRIC[task.kind], -_WORST), -metrics.get("nll", _WORST))


def _classify(probabilities: Tensor, truth: Tensor) -> dict[str, float]:
    by, classes = functional("classification"), probabilities.shape[1]
    picked = probabilities[torch.arange(len(truth)), truth].double()
    return {
        "accuracy": float(by.multiclass_accuracy(probabilities, truth, num_classes=classes, average="micro")),
        "macro_f1": float(by.multiclass_f1_score(probabilities, truth, num_classes=classes, average="macro")),
        "nll": float(-picked.clamp_min(1e-12).log().mean()),
    }


def _multilabel(probabilities: Tensor, truth: Tensor) -> dict[str, float]:
    by, known = functional("classification"), truth.long()
    each = list(zip(probabilities.T, known.T, strict=True))  # one at a time: torchmetrics refuses a single tag
    precisions = torch.stack([by.binary_average_precision(scores, flags) for scores, flags in each])  # (K,)
    f1 = torch.stack([by.binary_f1_score(scores, flags) for scores, flags in each])
    return {
        "mean_average_precision": float(precisions[known.any(0)].mean()),  # a tag without an example has none
        "macro_f1": float(f1.mean()),
        "nll": float(F.binary_cross_entropy(probabilities.double().clamp(1e-12, 1 - 1e-12), truth.double())),
    }


def _regress(task: TaskSpec, values: Tensor, truth: Tensor) -> dict[str, float]:
    """Plain keys are means over the targets; ``baseline_mae`` is that of always giving the training mean."""
    centre = task.original(
        torch.zeros(1, len(task.targets), dtype=torch.float64)
    )  # the mean in the space that was learnt
    columns = [
        _errors(values[:, place].double(), truth[:, place].double(), centre[0, place], log=task.log)
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


def _r2(values: Tensor, truth: Tensor) -> float:
    """Share of the variance that is explained; NaN where there is none (torchmetrics takes less than 1e-4 for none)."""
    spread = (truth - truth.mean()).square().sum()
    return float(1 - (values - truth).square().sum() / spread) if spread > 0 else math.nan


def _errors(values: Tensor, truth: Tensor, centre: Tensor, *, log: bool) -> dict[str, float]:
    by = functional("regression")
    found = {
        "mae": float(by.mean_absolute_error(values, truth)),
        "rmse": float(by.mean_squared_error(values, truth, squared=False)),
        "r2": _r2(values, truth),
        "baseline_mae": float((truth - centre).abs().mean()),
    }
    if log:
        found["mae_log10"] = float((values.log10() - truth.log10()).abs().mean())
        found["baseline_mae_log10"] = float((truth.log10() - centre.log10()).abs().mean())
    return found
