"""The table of the kinds of task: a further kind is a file beside these and a line here."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

from torch import Tensor

from headstart.errors import ConfigError, DataError
from headstart.tasks.classify import CLASSIFY
from headstart.tasks.metrics import is_lower_better
from headstart.tasks.multilabel import MULTILABEL
from headstart.tasks.own_metrics import Better
from headstart.tasks.regress import REGRESS
from headstart.tasks.task import Kind, TaskSpec
from headstart.wording import option

_WORST = sys.float_info.max
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (CLASSIFY, MULTILABEL, REGRESS)}


def find_kind(name: str) -> Kind:
    """The kind of that name, which must be one of :data:`KINDS`."""
    return KINDS[name]


def measure(task: TaskSpec, outputs: Tensor, truth: Tensor, *, metric: str = "auto") -> dict[str, float]:
    """Metrics by name; one that these images do not define (R2 of one image), or that is infinite, is left out.

    outputs: (N, K) probabilities or (N, T) numbers; truth: (N,), (N, K) or (N, T); numbers in original units.
    ``metric``: a word of ``--metric`` whose metric is to be among them.
    """
    kind = find_kind(task.kind)
    found = kind.compute_metrics(task, outputs, truth)
    key = name_metric(task, metric)
    if key in kind.further_metrics:
        found[key] = kind.further_metrics[key](task, outputs, truth)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def name_metric(task: TaskSpec, metric: str) -> str:
    """The name, in the metrics of this task, of what a word of ``--metric`` asks for.

    Numbers of several targets have no common unit: what they ask for is the mean of the errors' shares of a baseline's.

    Raises: ConfigError: it has no meaning for this kind of task.
    """
    kind = find_kind(task.kind)
    if metric not in kind.metrics:
        words = [word for word in kind.metrics if word != "auto"]
        raise ConfigError(
            f"metric: {metric} has no meaning for {kind.name}; accepted: {', '.join(words)}; e.g. "
            f"{option('metric', words[1])}"
        )
    key = kind.metrics[metric]
    if not kind.gives_numbers:
        return key
    key = "mae_log10" if metric == "auto" and task.log else key
    return f"relative_{key}" if len(task.targets) > 1 and key != "r2" else key


def measure_present(
    task: TaskSpec, outputs: Tensor, truth: Tensor, *, metric: str = "auto"
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Metrics as of :func:`measure`, over the classes or tags that some image has; and the names of the others."""
    kind = find_kind(task.kind)
    if kind.gives_numbers:
        return measure(task, outputs, truth, metric=metric), ()
    there = set(truth.tolist()) if kind.one_label else set((truth > 0).any(0).nonzero()[:, 0].tolist())
    absent = tuple(name for place, name in enumerate(task.names) if place not in there)
    if not absent or not there:
        return measure(task, outputs, truth, metric=metric), absent
    found = kind.compute_present(task, outputs, truth, sorted(there))
    key = name_metric(task, metric)
    if key in kind.further_metrics:  # which leave out by themselves what no image has
        found[key] = kind.further_metrics[key](task, outputs, truth)
    return {name: value for name, value in found.items() if math.isfinite(value)}, absent


def make_unnamed_task(kind: str, *, outputs: int) -> TaskSpec:
    """A task whose outputs are called by their numbers; those of ``regress`` are in the targets' own units.

    Raises: ConfigError: there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"task: {kind!r} is no kind of task; accepted: {', '.join(KINDS)}")
    names, found = tuple(map(str, range(outputs))), KINDS[kind]
    if found.gives_numbers:
        return TaskSpec(kind=found.name, targets=names, mean=(0.0,) * outputs, std=(1.0,) * outputs)
    return TaskSpec(kind=found.name, classes=names)


def guess_kind(targets: Tensor) -> str:
    """The kind that integers of shape (N,) mean: one label each.  Raises: DataError: it may be more than one."""
    if targets.ndim == 1 and not targets.is_floating_point():
        return CLASSIFY.name
    raise DataError(
        f"targets: {targets.dtype} of shape {tuple(targets.shape)} may be tags or numbers; say which they are, e.g. "
        'task="multilabel" or task="regress"'
    )


def check_truth(task: TaskSpec, targets: Tensor) -> Tensor:
    """Targets that came as a tensor, as metrics take them; see ``read_truth`` of a kind.

    Raises: DataError: they are not what the model's outputs can be held against.
    """
    kind, outputs = KINDS[task.kind], task.num_outputs
    if kind.one_label:
        if targets.ndim != 1 or targets.is_floating_point() or not bool(((targets >= 0) & (targets < outputs)).all()):
            found = f"{targets.dtype} of shape {tuple(targets.shape)}, from {targets.min()} to {targets.max()}"
            raise DataError(
                f"targets: {found}, for {outputs} classes; accepted are integers of shape (N,) from 0 to {outputs - 1}"
            )
        return targets.long()
    rows = targets.reshape(len(targets), -1)
    if rows.shape[1] != outputs:
        raise DataError(
            f"targets: {rows.shape[1]} numbers per image for {outputs} outputs of the model; accepted is one per output"
        )
    return rows.double() if kind.gives_numbers else rows.float()


def selection_key(
    task: TaskSpec, metrics: Mapping[str, float], *, metric: str = "auto", better: Better | None = None
) -> tuple[float, ...]:
    """What "better" means: the metric that was asked for, then the likelihood; compared from the left, more is better.
    ``better``: the direction of a metric of the user's own, of which ``metric`` is the name.

    One that is not there counts as the worst finite number: keys are kept as JSON, which has no infinity.
    """
    key = name_metric(task, metric) if better is None else metric
    ties = (tie for tie in find_kind(task.kind).ties if tie != key)
    is_error = is_lower_better(key) if better is None else better == "lower"
    return (
        _rate(metrics, key, is_error=is_error),
        *(_rate(metrics, tie, is_error=is_lower_better(tie)) for tie in ties),
    )


def _rate(metrics: Mapping[str, float], name: str, *, is_error: bool) -> float:
    return -metrics.get(name, _WORST) if is_error else metrics.get(name, -_WORST)
