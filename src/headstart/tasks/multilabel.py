"""Any number of tags per image: sigmoid, binary cross-entropy, mean average precision; and a report's rows, tag by tag.

N images, K tags.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.config.schema import AutoLoss, Bce, Focal, Loss
from headstart.tasks.intervals import Interval, bootstrap
from headstart.tasks.metrics import CLASS_METRICS, compute_average_precision, compute_f1, compute_tag_nll
from headstart.tasks.rows import Row, cell, number, read_numbers
from headstart.tasks.tags import join_tags, split_tags
from headstart.tasks.task import Kind, RowScores, RowWords, Target, TaskSpec, pair_probabilities

_USUAL_THRESHOLD = 0.5
_LEAST_IMAGES = 10  # with a tag, and without it: of fewer the best threshold is chance


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
    outcomes: Outcomes = field(repr=False, compare=False)

    def compute(self, key: str) -> float:
        """The metric of this name over these rows; NaN where they do not give it."""
        compute = _list_weighted(self.outcomes).get(key)
        return float(compute(torch.ones(1, self.total, dtype=torch.float64))) if compute and self.total else math.nan

    def find_interval(self, key: str) -> Interval | None:
        """The bootstrap's interval of the metric of this name; None where the rows do not give it."""
        compute = _list_weighted(self.outcomes).get(key)
        return bootstrap(compute, size=self.total, cost=12 * max(1, len(self.tags))) if compute else None


@dataclass(frozen=True)
class Outcomes:
    """Rows as tensors, (N, K) each: whether an image has a tag, and the tag's probability."""

    truth: Tensor
    probabilities: Tensor


def _list_weighted(outcomes: Outcomes) -> dict[str, Callable[[Tensor], Tensor]]:
    """The metrics that the rows give, as functions of how often each image is drawn, (R, N) -> (R,)."""
    truth, probabilities = outcomes.truth, outcomes.probabilities
    called = (probabilities > _USUAL_THRESHOLD).double()
    right, correct = truth * called, (1 - truth) * (1 - called)

    def compute_f1s(weights: Tensor) -> Tensor:
        return compute_f1(weights @ right, weights @ truth, weights @ called).mean(-1)

    def compute_balanced(weights: Tensor) -> Tensor:
        found = weights @ right / (weights @ truth), weights @ correct / (weights @ (1 - truth))
        return torch.stack(found).mean(0).nanmean(-1)

    def compute_nll(weights: Tensor) -> Tensor:
        sure = probabilities.clamp(1e-12, 1 - 1e-12)
        surprise = -(truth * sure.log() + (1 - truth) * (1 - sure).log()).mean(1)
        return weights @ surprise / weights.sum(-1)

    exact = (truth == called).all(1).double()
    return {
        "mean_average_precision": lambda weights: _compute_precisions(probabilities, truth, weights).nanmean(-1),
        "macro_f1": compute_f1s,
        "balanced_accuracy": compute_balanced,
        "nll": compute_nll,
        "accuracy": lambda weights: weights @ exact / weights.sum(-1),
    }


def _compute_precisions(probabilities: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """The average precision of each tag, (R, K)."""
    each = [compute_average_precision(p, t, weights) for p, t in zip(probabilities.T, truth.T, strict=True)]
    return torch.stack(each, -1)


def score_rows(rows: Sequence[Row], tags: Sequence[str]) -> MultilabelScores:
    """Average precision and prevalence of each tag.

    Raises: StorageError: a probability is missing or no number.
    """
    given, said = ([set(split_tags(cell(row, column))) for row in rows] for column in ("truth", "prediction"))
    flags = np.array([[tag in here for tag in tags] for here in given], dtype=np.float64)
    truth = torch.from_numpy(flags.reshape(len(rows), len(tags)))  # (N, K)
    probabilities = read_numbers(rows, [f"p:{tag}" for tag in tags])  # (N, K)

    precisions = _compute_precisions(probabilities, truth, truth.new_ones(1, len(rows)))[0]
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
        outcomes=Outcomes(truth, probabilities),
    )


def _choose_loss(asked: AutoLoss) -> Loss:
    return Bce(class_weights=asked.class_weights, label_smoothing=asked.label_smoothing)


def _make_spec(names: Sequence[str], _numbers: Sequence[Sequence[float]], _log: bool) -> TaskSpec:
    return TaskSpec(kind="multilabel", classes=tuple(names))


def _make_target(task: TaskSpec, labels: Sequence[str], _numbers: Mapping[str, float]) -> Target:
    return tuple(float(name in labels) for name in task.classes)


def _encode_targets(_task: TaskSpec, targets: Sequence[Target]) -> Tensor:
    return torch.tensor(targets, dtype=torch.float32)


def _activate(_task: TaskSpec, logits: Tensor) -> Tensor:
    return logits.sigmoid()


def _compute_metrics(_task: TaskSpec, probabilities: Tensor, truth: Tensor) -> dict[str, float]:
    known = truth > 0
    predicted = probabilities > _USUAL_THRESHOLD
    each = [compute_average_precision(p, t) for p, t in zip(probabilities.T, known.T, strict=True)]
    precisions = torch.stack(each)  # (K,)
    return {
        "mean_average_precision": float(precisions[known.any(0)].mean()),  # a tag without an example has none
        "macro_f1": float(compute_f1((predicted & known).sum(0), known.sum(0), predicted.sum(0)).mean()),
        "nll": float(compute_tag_nll(probabilities, truth)),
    }


def _compute_present(task: TaskSpec, probabilities: Tensor, truth: Tensor, present: Sequence[int]) -> dict[str, float]:
    places = list(present)
    thresholds = tuple(task.thresholds[place] for place in places) if task.thresholds else ()
    asked = replace(task, classes=tuple(task.classes[place] for place in places), thresholds=thresholds)
    return _compute_metrics(asked, probabilities[:, places], truth[:, places])


def _compute_exact(_task: TaskSpec, probabilities: Tensor, truth: Tensor) -> float:
    """Share of the images whose tags are all right."""
    return float(((probabilities > _USUAL_THRESHOLD) == (truth > 0)).all(1).double().mean())


def _compute_balanced(_task: TaskSpec, probabilities: Tensor, truth: Tensor) -> float:
    """Mean over the tags that some images have and others have not of the mean of both recalls."""
    every = torch.ones(1, len(truth), dtype=torch.float64)
    outcomes = Outcomes((truth > 0).double(), probabilities.double())
    return float(_list_weighted(outcomes)["balanced_accuracy"](every))


def _list_thresholds(task: TaskSpec) -> dict[str, float]:
    return dict(zip(task.classes, task.thresholds or (_USUAL_THRESHOLD,) * len(task.classes), strict=True))


def _choose_thresholds(_task: TaskSpec, probabilities: Tensor, truth: Tensor) -> tuple[float, ...]:
    """The threshold of each tag with the largest F1, in the middle between two images; 0.5 where images are few."""
    pairs = zip(probabilities.double().T, (truth > 0).T, strict=True)
    return tuple(_choose_threshold(each, known) for each, known in pairs)


def _choose_threshold(probabilities: Tensor, known: Tensor) -> float:
    """The threshold of one tag, from probabilities (N,) and whether the images have it (N,)."""
    if min(int(known.sum()), int((~known).sum())) < _LEAST_IMAGES:
        return _USUAL_THRESHOLD
    values, order = probabilities.sort(descending=True, stable=True)
    hits, size = known[order].cumsum(0).double(), torch.arange(1, len(values) + 1)
    scores = 2 * hits / (size + known.sum())  # F1, if the first ``size`` images are given the tag
    bounds = torch.cat([(values[:-1] + values[1:]) / 2, values[-1:] / 2])
    scores = torch.where(torch.cat([values[:-1] > values[1:], values[-1:] > 0]), scores, -1.0)  # equal ones go together
    best = bounds[scores == scores.max()]
    return float(best[(best - _USUAL_THRESHOLD).abs().argmin()])


def _list_tags(task: TaskSpec, probabilities: Tensor) -> tuple[str, ...]:
    thresholds = _list_thresholds(task)
    return tuple(name for name, value in pair_probabilities(task, probabilities) if value > thresholds[name])


def _write_row(task: TaskSpec, truth: Sequence[float], probabilities: Sequence[float]) -> dict[str, Any]:
    scored = list(zip(task.classes, probabilities, strict=True))
    thresholds = _list_thresholds(task)
    return {
        "truth": join_tags(name for name, flag in zip(task.classes, truth, strict=True) if flag > 0),
        "prediction": join_tags(name for name, probability in scored if probability > thresholds[name]),
    } | {f"p:{name}": probability for name, probability in scored}


def _find_baseline(metric: str, _metrics: Mapping[str, Any], scores: RowScores | None) -> tuple[float | None, str]:
    if not isinstance(scores, MultilabelScores) or not scores.total:
        return None, ""
    present = [tag.prevalence for tag in scores.tags if tag.support]
    if metric == "mean_average_precision":
        return (sum(present) / len(present) if present else None), "random order: the tags' mean prevalence"
    if metric == "macro_f1":
        return sum(2 * share / (1 + share) for share in present) / len(scores.tags), "always every tag"
    if metric == "balanced_accuracy":
        return 0.5, "always the same tags"
    if metric == "accuracy":
        tags, images = torch.unique(scores.outcomes.truth, dim=0, return_counts=True)
        names = [tag.name for tag, on in zip(scores.tags, tags[images.argmax()].tolist(), strict=True) if on]
        return int(images.max()) / scores.total, f"always {', '.join(names) or 'no tag'}"
    return None, ""


def _list_constants(_task: TaskSpec, truth: Tensor) -> dict[str, Tensor]:
    """The tags' shares as probabilities: the tags that most images have are on."""
    return {"always the tags' shares": (truth > 0).double().mean(0)}


def _rate_mistake(row: Row, task: Mapping[str, Any]) -> float:
    """The surprise at the true tags, summed: minus the logarithm of their probabilities."""
    true, predicted = (set(split_tags(cell(row, column))) for column in ("truth", "prediction"))
    if true == predicted:
        return 0.0
    probabilities = {tag: number(row, f"p:{tag}") for tag in task.get("classes", ())}
    return sum(-math.log(max(p if tag in true else 1 - p, 1e-12)) for tag, p in probabilities.items())


def _describe_row(row: Row, _names: Sequence[str]) -> RowWords:
    true, predicted = (split_tags(cell(row, column)) for column in ("truth", "prediction"))
    missed = [tag for tag in true if tag not in predicted]
    extra = [tag for tag in predicted if tag not in true]
    note = [f"missed {', '.join(missed)}"] * bool(missed) + [f"extra {', '.join(extra)}"] * bool(extra)
    return ", ".join(true) or "none", ", ".join(predicted) or "none", "; ".join(note), not note


MULTILABEL = Kind(
    name="multilabel",
    title="Multi-label classification",
    noun="tag",
    nouns="tags",
    answers="tags",
    torn_copies="some of the tags are wrong or missing: correct them, or remove a copy",
    stratum="rarest tag",
    cell="0 or 1",
    summary="says which of {n} tags apply to an image",
    limit="It knows its tags only.",
    mistakes="Wrong, with the least probable truth.",
    interval_method="Intervals: BCa bootstrap over images.",
    hub_tags=("multi-label",),
    metrics={"auto": "mean_average_precision", **CLASS_METRICS},
    ties=("nll",),
    further_metrics={"accuracy": _compute_exact, "balanced_accuracy": _compute_balanced},
    losses=(Bce, Focal),
    choose_loss=_choose_loss,
    make_spec=_make_spec,
    make_target=_make_target,
    encode_targets=_encode_targets,
    read_truth=_encode_targets,
    activate=_activate,
    compute_metrics=_compute_metrics,
    compute_present=_compute_present,
    choose_thresholds=_choose_thresholds,
    list_thresholds=_list_thresholds,
    list_tags=_list_tags,
    pair_outputs=pair_probabilities,
    write_row=_write_row,
    score_rows=score_rows,
    find_baseline=_find_baseline,
    list_constants=_list_constants,
    rate_mistake=_rate_mistake,
    describe_row=_describe_row,
)
