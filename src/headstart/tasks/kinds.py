"""The table of the kinds of task: a further kind is a file beside these and a line here."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from headstart.tasks.classify import CLASSIFY
from headstart.tasks.multilabel import MULTILABEL
from headstart.tasks.regress import REGRESS
from headstart.tasks.task import Kind, TaskSpec

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (CLASSIFY, MULTILABEL, REGRESS)}


def find_kind(name: str) -> Kind:
    """The kind of that name, which must be one of :data:`KINDS`."""
    return KINDS[name]


def measure(task: TaskSpec, outputs: Tensor, truth: Tensor) -> dict[str, float]:
    """Metrics by name; one that these images do not define (R2 of one image), or that is infinite, is left out.

    outputs: (N, K) probabilities or (N, T) numbers; truth: (N,), (N, K) or (N, T); numbers in original units.
    """
    found = find_kind(task.kind).compute_metrics(task, outputs, truth)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def measure_present(task: TaskSpec, outputs: Tensor, truth: Tensor) -> tuple[dict[str, float], tuple[str, ...]]:
    """As :func:`measure`, but over the classes or tags that some image has; and the names of those that none has."""
    kind = find_kind(task.kind)
    if kind.gives_numbers:
        return measure(task, outputs, truth), ()
    there = set(truth.tolist()) if kind.one_label else set((truth > 0).any(0).nonzero()[:, 0].tolist())
    absent = tuple(name for place, name in enumerate(task.names) if place not in there)
    if not absent or not there:
        return measure(task, outputs, truth), absent
    found = kind.compute_present(task, outputs, truth, sorted(there))
    return {name: value for name, value in found.items() if math.isfinite(value)}, absent


def selection_key(task: TaskSpec, metrics: Mapping[str, float]) -> tuple[float, ...]:
    """What "better" means: the main metric, then the likelihood; larger is better, compared from the left.

    One that is not there counts as the worst finite number: keys are kept as JSON, which has no infinity.
    """
    return find_kind(task.kind).selection_key(task, metrics)
