"""What the validation predictions of a run say, class by class, tag by tag, target by target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.errors import StorageError
from headstart.tasks.intervals import Interval, bootstrap, wilson
from headstart.tasks.tags import split_tags

Rows = Sequence[Mapping[str, str]]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: how many there are, how many were said, how many of both were right."""

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
    macro_f1_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class TagScore:
    """One tag of a multi-label task."""

    name: str
    average_precision: float
    support: int
    prevalence: float
    predicted: int


@dataclass(frozen=True, kw_only=True)
class MultilabelScores:
    """Tags in the order of the task, and the interval of their mean average precision."""

    tags: tuple[TagScore, ...]
    total: int
    map_interval: Interval | None


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


def classify_scores(rows: Rows, classes: Sequence[str]) -> ClassifyScores:
    """Confusion, per-class scores and the most frequent confusions of the predictions.

    Raises: StorageError: a row names a class that the task does not have.
    """
    place = {name: index for index, name in enumerate(classes)}
    count = len(classes)
    truth = np.array([_look_up(row, "truth", place) for row in rows], dtype=np.int64)  # (N,)
    said = np.array([_look_up(row, "prediction", place) for row in rows], dtype=np.int64)  # (N,)
    confusion = np.bincount(truth * count + said, minlength=count * count).reshape(count, count)
    support, predicted, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    scores = tuple(
        ClassScore(
            name=name,
            support=int(support[k]),
            predicted=int(predicted[k]),
            correct=int(right[k]),
            f1=2 * int(right[k]) / max(1, int(support[k] + predicted[k])),
        )
        for k, name in enumerate(classes)
    )

    def macro_f1(weights: Floats) -> float:
        hits = np.bincount(truth, weights=weights * (truth == said), minlength=count)
        both = np.bincount(truth, weights=weights, minlength=count) + np.bincount(said, weights, minlength=count)
        return float(np.mean(2 * hits[both > 0] / both[both > 0]))

    return ClassifyScores(
        classes=scores,
        confusion=tuple(tuple(int(cell) for cell in line) for line in confusion),
        confused=_find_confused(confusion, classes),
        correct=int(right.sum()),
        total=len(rows),
        macro_f1_interval=bootstrap(macro_f1, size=len(rows), cost=5),
    )


def _find_confused(confusion: NDArray[np.int64], classes: Sequence[str]) -> tuple[Confused, ...]:
    """Wrong cells, the largest first."""
    off = confusion - np.diag(confusion.diagonal())
    cells = [(int(truth), int(said)) for truth, said in np.argwhere(off > 0)]
    cells.sort(key=lambda pair: (-int(off[pair]), int(confusion[pair[0]].sum()), pair))
    return tuple(
        Confused(
            truth=classes[truth],
            prediction=classes[said],
            count=int(off[truth, said]),
            share=int(off[truth, said]) / int(confusion[truth].sum()),
        )
        for truth, said in cells
    )


def multilabel_scores(rows: Rows, tags: Sequence[str]) -> MultilabelScores:
    """Average precision and prevalence of each tag.

    Raises: StorageError: a probability is missing or no number.
    """
    given, said = ([set(split_tags(cell(row, column))) for row in rows] for column in ("truth", "prediction"))
    truth = np.array([[tag in here for tag in tags] for here in given], dtype=np.float64)  # (N, K)
    probability = np.array([[number(row, f"p:{tag}") for tag in tags] for row in rows], dtype=np.float64)  # (N, K)
    order = np.argsort(-probability, axis=0, kind="stable")
    sorted_truth = np.take_along_axis(truth, order, axis=0)
    last = _last_of_ties(np.take_along_axis(probability, order, axis=0))
    precisions = _average_precision(sorted_truth, last, np.ones_like(truth))

    def mean_precision(weights: Floats) -> float:
        each = _average_precision(sorted_truth, last, weights[order])
        return float(np.nanmean(each)) if np.isfinite(each).any() else math.nan

    return MultilabelScores(
        tags=tuple(
            TagScore(
                name=tag,
                average_precision=float(precisions[k]),
                support=int(truth[:, k].sum()),
                prevalence=float(truth[:, k].mean()),
                predicted=sum(tag in here for here in said),
            )
            for k, tag in enumerate(tags)
        ),
        total=len(rows),
        map_interval=bootstrap(mean_precision, size=len(rows), cost=12 * max(1, len(tags))),
    )


def _last_of_ties(scores: Floats) -> NDArray[np.int64]:
    """For each place of the descending scores (N, K), the last place with an equal score."""
    count = len(scores)
    ends = np.ones(scores.shape, dtype=bool)
    ends[:-1] = scores[:-1] != scores[1:]
    places = np.where(ends, np.arange(count)[:, None], count)
    return np.minimum.accumulate(places[::-1], axis=0)[::-1]


def _average_precision(truth: Floats, last: NDArray[np.int64], weights: Floats) -> Floats:
    """Area under the precision-recall steps per column, (K,); NaN for a tag without positives.

    truth and weights (N, K) are in the order of falling scores; images of equal score count as one step.
    """
    hits = np.cumsum(truth * weights, axis=0)
    seen = np.cumsum(weights, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.nan_to_num(np.take_along_axis(hits, last, 0) / np.take_along_axis(seen, last, 0))
        area: Floats = (precision * truth * weights).sum(0) / hits[-1]
    return area


def target_scores(rows: Rows, targets: Sequence[str]) -> tuple[TargetScore, ...]:
    """Errors of each target in its own unit.

    Raises: StorageError: a value is missing or no number.
    """
    return tuple(_target_score(rows, name) for name in targets)


def _target_score(rows: Rows, name: str) -> TargetScore:
    truth = np.array([number(row, f"truth:{name}") for row in rows], dtype=np.float64)  # (N,)
    said = np.array([number(row, f"prediction:{name}") for row in rows], dtype=np.float64)  # (N,)
    error = said - truth
    absolute = np.abs(error)
    spread = float(np.square(truth - truth.mean()).sum())
    return TargetScore(
        name=name,
        truths=tuple(truth.tolist()),
        predictions=tuple(said.tolist()),
        mae=float(absolute.mean()),
        mae_interval=bootstrap(lambda weights: float(weights @ absolute) / len(absolute), size=len(rows), cost=3),
        rmse=math.sqrt(float(np.square(error).mean())),
        r2=1 - float(np.square(error).sum()) / spread if spread else math.nan,
        bias=float(error.mean()),
    )


def cell(row: Mapping[str, str], column: str) -> str:
    """The text in a column of predictions.csv.

    Raises: StorageError: there is no such column.
    """
    if column not in row:
        raise StorageError(f"predictions.csv: is damaged, it has no column {column!r} (columns: {', '.join(row)})")
    return row[column]


def number(row: Mapping[str, str], column: str) -> float:
    """The number in a column of predictions.csv.

    Raises: StorageError: the column is missing or holds no number.
    """
    text = cell(row, column)
    try:
        return float(text)
    except ValueError as error:
        raise StorageError(
            f"predictions.csv: is damaged, {column} of {row.get('id')} is {text!r}, no number"
        ) from error


def _look_up(row: Mapping[str, str], column: str, place: Mapping[str, int]) -> int:
    name = cell(row, column)
    if name not in place:
        raise StorageError(
            f"predictions.csv: is damaged, {column} of {row.get('id')} is {name!r}, not a class of the plan"
        )
    return place[name]
