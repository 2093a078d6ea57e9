"""The formulas of all metrics, each over all images at once (never a mean of batches), for runs and for their reports.

Counts of images are whole numbers and shares of them float32; a report gives ``weights``, how often a resample drew
each image, (R, N) in float64, and gets one value per resample. torchmetrics and scikit-learn give the same (tests).

N images, K classes or tags, R resamples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LABELS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "nll": "negative log-likelihood",
    "mean_average_precision": "mean average precision",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
    "mae_log10": "mean absolute error, log10",
    "relative_mae": "mean absolute error, as a share of the baseline's",
    "relative_rmse": "root mean squared error, as a share of the baseline's",
    "relative_mae_log10": "mean absolute error, log10, as a share of the baseline's",
}

CLASS_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro_f1",
    "balanced_accuracy": "balanced_accuracy",
    "nll": "nll",
    "ap": "mean_average_precision",
}
"""What ``--metric`` chooses among for classes and for tags, and the metric's own name."""


def is_lower_better(key: str) -> bool:
    """Whether a metric is an error or a loss: ``nll``, ``mae`` and ``rmse`` of any target, shares of a baseline's."""
    return key == "nll" or key.startswith(("mae", "rmse", "relative_"))


def compute_accuracy(predicted: Tensor, truth: Tensor) -> Tensor:
    """Share of the images whose class is right, a scalar.  predicted, truth: (N,) class indices."""
    return (predicted == truth).sum().float() / truth.new_tensor(len(truth)).float()


def count_classes(labels: Tensor, classes: int, weights: Tensor | None = None) -> Tensor:
    """Images of each class, (K,), or their weights, (R, K).  labels: (N,) class indices; weights: (R, N)."""
    if weights is None:
        return torch.bincount(labels, minlength=classes)
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels.expand(weights.shape), weights)


def compute_f1(right: Tensor, true: Tensor, predicted: Tensor) -> Tensor:
    """F1 of each class or tag, the harmonic mean of precision and recall; 0 where nothing is true or predicted.

    Each argument counts images, (..., K): those right, those that are of the class, those that were called so.
    """
    both = true + predicted
    return torch.where(both > 0, 2.0 * right / both, 0.0)


def compute_macro_f1_of_present(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Mean F1 of the classes that some image has, a scalar.  predicted, truth: (N,)"""
    true, called = count_classes(truth, classes), count_classes(predicted, classes)
    return compute_f1(count_classes(truth[predicted == truth], classes), true, called)[true > 0].mean()


def compute_macro_f1(predicted: Tensor, truth: Tensor, classes: int, weights: Tensor | None = None) -> Tensor:
    """Mean F1 of the classes that are true or predicted at all, a scalar or (R,).  predicted, truth: (N,)"""
    hit = predicted == truth
    right = count_classes(truth[hit], classes, None if weights is None else weights[:, hit])
    true, called = (count_classes(labels, classes, weights) for labels in (truth, predicted))
    f1 = compute_f1(right, true, called)
    there = ((true + called) > 0).to(f1.dtype)
    return (f1 * there / there.sum(-1, keepdim=True)).sum(-1)


def compute_balanced_accuracy(predicted: Tensor, truth: Tensor, classes: int, weights: Tensor | None = None) -> Tensor:
    """Mean recall of the classes that some image has, a scalar or (R,).  predicted, truth: (N,)"""
    hit = predicted == truth
    right = count_classes(truth[hit], classes, None if weights is None else weights[:, hit])
    true = count_classes(truth, classes, weights)
    there = true > 0
    return torch.where(there, right / true.clamp_min(1e-9), 0.0).sum(-1) / there.sum(-1)


def compute_average_precision(scores: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Area under the steps of precision over recall, a scalar or (R,); NaN without a positive.

    Images of equal score are one step. scores: (N,), of any scale; truth: (N,), 0 or 1.
    """
    order = torch.argsort(scores, descending=True)
    ranked = scores[order]
    ends = F.pad((ranked[1:] != ranked[:-1]).nonzero()[:, 0], (0, 1), value=len(ranked) - 1)  # of each run of ties
    if weights is None:
        hits, seen = truth[order].long().cumsum(0)[ends], ends + 1
    else:
        drawn = weights[:, order]
        hits, seen = (drawn * truth[order]).cumsum(-1)[:, ends], drawn.cumsum(-1)[:, ends]
    precision = torch.where(seen > 0, hits / seen, 0.0)
    recall = hits / hits[..., -1:]
    gained = recall.diff(dim=-1, prepend=torch.zeros_like(recall[..., :1]))
    return (gained * precision).flip(-1).sum(-1)  # from the last step on, as torchmetrics adds: the same last bit


def compute_class_nll(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Mean negative log-likelihood of the true classes, a float64 scalar.  probabilities: (N, K); truth: (N,)"""
    picked = probabilities[torch.arange(len(truth)), truth].double()
    return -picked.clamp_min(1e-12).log().mean()


def compute_tag_nll(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Mean negative log-likelihood over all images and tags, a float64 scalar.  Both (N, K)."""
    return F.binary_cross_entropy(probabilities.double().clamp(1e-12, 1 - 1e-12), truth.double())


def compute_mae(values: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean absolute error, a scalar or (R,).  values: (N,), or one number for all; truth: (N,)"""
    errors = (values - truth).abs()
    return errors.sum(0) / len(truth) if weights is None else weights @ errors / weights.sum(-1)


def compute_rmse(values: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Root of the mean squared error, a scalar or (R,).  values: (N,), or one number for all; truth: (N,)"""
    errors = (values - truth).square()
    return (errors.mean() if weights is None else weights @ errors / weights.sum(-1)).sqrt()


def compute_r2(values: Tensor, truth: Tensor) -> float:
    """Share of the variance that is explained; NaN where there is none.  Both (N,).

    torchmetrics takes a variance below 1e-4 for none, whatever the target's unit.
    """
    spread = (truth - truth.mean()).square().sum()
    return float(1 - (values - truth).square().sum() / spread) if spread > 0 else math.nan


def resample_r2(values: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """R² of each resample, (R,); NaN where its truth does not vary.  values, truth: (N,)"""
    drawn = weights.sum(-1)
    mean = weights @ truth / drawn
    spread = (weights @ (truth - truth.mean()).square()) - drawn * (mean - truth.mean()).square()
    left = weights @ (values - truth).square()
    return torch.where(spread > 1e-12 * (truth - truth.mean()).square().sum(), 1 - left / spread, torch.nan)
