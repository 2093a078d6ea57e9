"""One label per image: softmax, cross-entropy, accuracy; and the rows of a report, class by class.

N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.config.schema import AutoLoss, CrossEntropy, Focal, Loss
from headstart.errors import StorageError
from headstart.tasks.intervals import Interval, bootstrap, wilson
from headstart.tasks.metrics import (
    CLASS_METRICS,
    compute_accuracy,
    compute_average_precision,
    compute_balanced_accuracy,
    compute_class_nll,
    compute_f1,
    compute_macro_f1,
    compute_macro_f1_of_present,
    count_classes,
)
from headstart.tasks.rows import Row, cell, number, read_numbers
from headstart.tasks.task import Kind, RowScores, RowWords, Target, TaskSpec, pair_probabilities


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: how many images have it, how many were called so, and how many of these were right."""

    name: str
    support: int
    predicted: int
    correct: int
    f1: float

    @property
    def recall(self) -> float:
        """Share of the class's images that were found; NaN when there are none."""
        return self.correct / self.support if self.support else math.nan

    @property
    def precision(self) -> float:
        """Share of the images called so that are so; NaN when none was called so."""
        return self.correct / self.predicted if self.predicted else math.nan

    @property
    def recall_interval(self) -> Interval | None:
        """Wilson's 95 % interval of the recall."""
        return wilson(self.correct, self.support)

    @property
    def precision_interval(self) -> Interval | None:
        """Wilson's 95 % interval of the precision."""
        return wilson(self.correct, self.predicted)


@dataclass(frozen=True, kw_only=True)
class Confused:
    """How often images of one class were called another."""

    truth: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ClassifyScores:
    """``confusion`` has a row per true class and a column per predicted one."""

    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    confused: tuple[Confused, ...]
    correct: int
    total: int
    outcomes: Outcomes = field(repr=False, compare=False)

    def compute(self, key: str) -> float:
        """The metric of this name over these rows; NaN where they do not give it."""
        compute = _list_weighted(self.outcomes).get(key)
        return float(compute(torch.ones(1, self.total, dtype=torch.float64))) if compute and self.total else math.nan

    def find_interval(self, key: str) -> Interval | None:
        """Wilson's interval of the accuracy, the bootstrap's of other metrics; None where the rows do not give it."""
        if key == "accuracy":
            return wilson(self.correct, self.total)
        compute, classes = _list_weighted(self.outcomes).get(key), len(self.classes)
        cost = 12 * classes if key == "mean_average_precision" else 5
        return bootstrap(compute, size=self.total, cost=cost) if compute else None


@dataclass(frozen=True)
class Outcomes:
    """Rows as tensors: the true and the called class (N,), and every class's probability (N, K), where it is there."""

    truth: Tensor
    called: Tensor
    classes: int
    probabilities: Tensor | None


def _list_weighted(outcomes: Outcomes) -> dict[str, Callable[[Tensor], Tensor]]:
    """The metrics that the rows give, as functions of how often each image is drawn, (R, N) -> (R,)."""
    truth, called, count, probabilities = outcomes.truth, outcomes.called, outcomes.classes, outcomes.probabilities
    hit = (called == truth).double()
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "accuracy": lambda weights: weights @ hit / weights.sum(-1),
        "macro_f1": lambda weights: compute_macro_f1(called, truth, count, weights),
        "balanced_accuracy": lambda weights: compute_balanced_accuracy(called, truth, count, weights),
    }
    if probabilities is not None:
        surprise = -probabilities[torch.arange(len(truth)), truth].clamp_min(1e-12).log()
        found["nll"] = lambda weights: weights @ surprise / weights.sum(-1)
        found["mean_average_precision"] = lambda weights: torch.stack(
            [
                compute_average_precision(probabilities[:, place], (truth == place).double(), weights)
                for place in range(count)
                if bool((truth == place).any())
            ],
            -1,
        ).nanmean(-1)
    return found


def score_rows(rows: Sequence[Row], classes: Sequence[str]) -> ClassifyScores:
    """Confusion, per-class scores and the most frequent confusions of the predictions.

    Raises: StorageError: a row names a class that the task does not have.
    """
    truth, called = (_read_labels(rows, column, classes) for column in ("truth", "prediction"))  # both (N,)
    count = len(classes)
    cells = torch.bincount(truth * count + called, minlength=count * count)
    confusion: NDArray[np.int64] = cells.reshape(count, count).numpy()
    support, predicted, right = (
        torch.from_numpy(m.copy()) for m in (confusion.sum(1), confusion.sum(0), np.diag(confusion))
    )
    f1 = compute_f1(right.double(), support, predicted).tolist()
    numbers = zip(classes, support.tolist(), predicted.tolist(), right.tolist(), f1, strict=True)
    return ClassifyScores(
        classes=tuple(ClassScore(name=n, support=s, predicted=p, correct=c, f1=f) for n, s, p, c, f in numbers),
        confusion=tuple(tuple(line) for line in confusion.tolist()),
        confused=_list_confusions(confusion, classes),
        correct=int(right.sum()),
        total=len(rows),
        outcomes=Outcomes(truth, called, count, _read_probabilities(rows, classes)),
    )


def _read_probabilities(rows: Sequence[Row], classes: Sequence[str]) -> Tensor | None:
    """Every class's probability (N, K); None where the rows hold that of the most probable class alone."""
    columns = [f"p:{name}" for name in classes]
    return read_numbers(rows, columns) if rows and all(column in rows[0] for column in columns) else None


def _read_labels(rows: Sequence[Row], column: str, classes: Sequence[str]) -> Tensor:
    place = {name: index for index, name in enumerate(classes)}
    names = [cell(row, column) for row in rows]
    for row, name in zip(rows, names, strict=True):
        if name not in place:
            raise StorageError(
                f"predictions.csv: is damaged, {column} of {row.get('id')} is {name!r}, not a class of the plan"
            )
    return torch.from_numpy(np.array([place[name] for name in names], dtype=np.int64))


def _list_confusions(confusion: NDArray[np.int64], classes: Sequence[str]) -> tuple[Confused, ...]:
    """Wrong cells, the largest first."""
    off = confusion - np.diag(confusion.diagonal())
    cells = [(int(truth), int(predicted)) for truth, predicted in np.argwhere(off > 0)]
    cells.sort(key=lambda pair: (-int(off[pair]), int(confusion[pair[0]].sum()), pair))
    return tuple(
        Confused(
            truth=classes[truth],
            prediction=classes[predicted],
            count=int(off[truth, predicted]),
            share=int(off[truth, predicted]) / int(confusion[truth].sum()),
        )
        for truth, predicted in cells
    )


def _choose_loss(asked: AutoLoss) -> Loss:
    return CrossEntropy(class_weights=asked.class_weights, label_smoothing=asked.label_smoothing)


def _make_spec(names: Sequence[str], _numbers: Sequence[Sequence[float]], _log: bool) -> TaskSpec:
    return TaskSpec(kind="classify", classes=tuple(names))


def _make_target(task: TaskSpec, labels: Sequence[str], _numbers: Mapping[str, float]) -> Target:
    return task.classes.index(labels[0])


def _encode_targets(_task: TaskSpec, targets: Sequence[Target]) -> Tensor:
    return torch.tensor(targets, dtype=torch.int64)


def _activate(_task: TaskSpec, logits: Tensor) -> Tensor:
    return logits.softmax(1)


def _compute_metrics(_task: TaskSpec, probabilities: Tensor, truth: Tensor) -> dict[str, float]:
    predicted = probabilities.argmax(1)
    return {
        "accuracy": float(compute_accuracy(predicted, truth)),
        "macro_f1": float(compute_macro_f1(predicted, truth, probabilities.shape[1])),
        "nll": float(compute_class_nll(probabilities, truth)),
    }


def _compute_present(task: TaskSpec, probabilities: Tensor, truth: Tensor, _present: Sequence[int]) -> dict[str, float]:
    """Macro F1 of the classes that some image has: one that none has can only be called wrongly."""
    f1 = compute_macro_f1_of_present(probabilities.argmax(1), truth, probabilities.shape[1])
    return _compute_metrics(task, probabilities, truth) | {"macro_f1": float(f1)}


def _compute_balanced(_task: TaskSpec, probabilities: Tensor, truth: Tensor) -> float:
    return float(compute_balanced_accuracy(probabilities.argmax(1), truth, probabilities.shape[1]))


def _compute_precision(_task: TaskSpec, probabilities: Tensor, truth: Tensor) -> float:
    """Mean over the classes that some image has of their average precision, each against all others."""
    each = [compute_average_precision(probabilities[:, place], truth == place) for place in sorted(set(truth.tolist()))]
    return float(torch.stack(each).mean()) if each else math.nan


def _write_row(task: TaskSpec, truth: int, probabilities: Sequence[float]) -> dict[str, Any]:
    top = max(range(len(probabilities)), key=probabilities.__getitem__)
    row = {"truth": task.classes[truth], "prediction": task.classes[top], "confidence": probabilities[top]}
    each = zip(task.classes, probabilities, strict=True)
    return row | {f"p:{name}": float(f"{probability:.6g}") for name, probability in each}


def _find_baseline(metric: str, _metrics: Mapping[str, Any], scores: RowScores | None) -> tuple[float | None, str]:
    """What always giving these images' most frequent class gets: no other single class gets more."""
    if not isinstance(scores, ClassifyScores) or not scores.total:
        return None, ""
    present = sum(one.support > 0 for one in scores.classes)
    majority = max(scores.classes, key=lambda one: one.support)
    share = majority.support / scores.total
    values = {
        "accuracy": share,
        "balanced_accuracy": 1 / present,
        "macro_f1": 2 * share / (1 + share) / present,
        "mean_average_precision": 1 / present,
    }
    if metric not in values:
        return None, ""
    ordered = "random order: the classes' mean share"
    return values[metric], ordered if metric == "mean_average_precision" else f"always {majority.name}"


def _list_constants(task: TaskSpec, truth: Tensor) -> dict[str, Tensor]:
    """The classes' shares as probabilities: the most frequent class is the answer."""
    return {"always the classes' shares": count_classes(truth, len(task.classes)).double() / len(truth)}


def _rate_mistake(row: Row, _task: Mapping[str, Any]) -> float:
    wrong = cell(row, "truth") != cell(row, "prediction")
    return max(number(row, "confidence"), 1e-9) if wrong else 0.0


def _describe_row(row: Row, _names: Sequence[str]) -> RowWords:
    truth, predicted = cell(row, "truth"), cell(row, "prediction")
    return truth, predicted, f"{100 * number(row, 'confidence'):.0f} % sure", truth == predicted


CLASSIFY = Kind(
    name="classify",
    title="Classification",
    noun="class",
    nouns="classes",
    answers="labels",
    torn_copies="one of the labels is wrong, or both hold: correct it, remove a copy, or use tags",
    one_label=True,
    stratum="class",
    cell="0 or 1",
    summary="says which one of {n} classes an image shows",
    limit="It always names one of its classes, also for an image that shows none of them.",
    mistakes="Wrong, and the most sure of it.",
    interval_method="Intervals: Wilson for accuracy, BCa bootstrap over images for the others.",
    metrics={"auto": "accuracy", **CLASS_METRICS},
    ties=("nll",),
    further_metrics={"balanced_accuracy": _compute_balanced, "mean_average_precision": _compute_precision},
    losses=(CrossEntropy, Focal),
    choose_loss=_choose_loss,
    make_spec=_make_spec,
    make_target=_make_target,
    encode_targets=_encode_targets,
    read_truth=_encode_targets,
    activate=_activate,
    compute_metrics=_compute_metrics,
    compute_present=_compute_present,
    pair_outputs=pair_probabilities,
    write_row=_write_row,
    score_rows=score_rows,
    find_baseline=_find_baseline,
    list_constants=_list_constants,
    rate_mistake=_rate_mistake,
    describe_row=_describe_row,
)
