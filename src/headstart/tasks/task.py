"""What the model answers: one label, several tags, or numbers, and how its outputs are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from headstart.config.schema import AutoLoss, Bce, CrossEntropy, Focal, Huber, Loss, Mae, Mse
from headstart.errors import DataError
from headstart.tasks.intervals import Interval
from headstart.tasks.rows import Row

TaskKind = Literal["classify", "multilabel", "regress"]
Target = int | tuple[float, ...]
"""What one image answers: the index of its class, a 0 or 1 per tag, or its numbers in original units."""
RowWords = tuple[str, str, str, bool | None]
"""Truth, prediction, a note on their difference, and whether they agree (None for numbers)."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """The meaning of the model's K outputs, in order.

    ``kind`` is classify, multilabel or regress. ``classes`` are the names of classes or tags, ``targets`` those of the
    numbers. ``mean`` and ``std``, one each per target, scale the numbers (their base-10 logarithms where ``log``); they
    come from the training split alone. ``thresholds``, one per tag: above it the tag is on; they are chosen on the
    validation images, and none means 0.5.
    """

    kind: TaskKind
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    log: bool = False
    thresholds: tuple[float, ...] = ()

    @property
    def num_outputs(self) -> int:
        """How many numbers the model gives per image."""
        return len(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self.targets if self.kind == "regress" else self.classes

    def standardise(self, values: Tensor) -> Tensor:
        """Targets as the model learns them, float32.  values: (..., T) in original units."""
        scaled = torch.log10(values.double()) if self.log else values.double()
        mean, std = (scaled.new_tensor(numbers) for numbers in (self.mean, self.std))
        return ((scaled - mean) / std).float()

    def original(self, values: Tensor) -> Tensor:
        """Numbers in original units, from standardised ones.  values: (..., T)"""
        mean, std = (values.new_tensor(numbers) for numbers in (self.mean, self.std))
        scaled = values * std + mean
        return torch.pow(10.0, scaled) if self.log else scaled

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, for JSON."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return fields if self.thresholds else {name: value for name, value in fields.items() if name != "thresholds"}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TaskSpec:
        """The task that :meth:`to_dict` wrote.  Raises: DataError: it is another thing."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        try:
            found = cls(**values)
            names = found.names
            scales = (*found.mean, *found.std, *found.thresholds)
            good = found.kind in get_args(TaskKind) and names and len(set(names)) == len(names)
            good = good and all(isinstance(name, str) for name in names)
            good = good and all(isinstance(number, int | float) for number in scales)
            good = good and len(found.thresholds) in (0, len(names))
        except TypeError as error:
            raise DataError(f"task: {error}; not a task that headstart wrote") from error
        if not good or (found.kind == "regress" and not len(found.mean) == len(found.std) == len(names)):
            raise DataError(f"task: {str(dict(fields))[:200]} is not a task that headstart wrote")
        return found


class RowScores(Protocol):
    """What predictions.csv says when it is scored again, class by class, tag by tag or target by target."""

    def compute(self, key: str) -> float:
        """The metric of this name over these rows; NaN where they do not give it."""
        ...

    def find_interval(self, key: str) -> Interval | None:
        """The 95 % interval of the metric of this name; None where the rows do not give one."""
        ...


def _have_none(_task: TaskSpec, _outputs: Tensor, _truth: Tensor) -> tuple[float, ...]:
    return ()


def _name_none(_task: TaskSpec) -> Mapping[str, float]:
    return {}


def _list_none(_task: TaskSpec, _outputs: Tensor) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Everything that differs between the kinds of task, as values and plain functions; one is made per file of this
    folder, and :func:`headstart.tasks.kinds.find_kind` gives it by name.

    Shapes: N images, K classes or tags, T targets; outputs and truth are (N, K), (N, T), or (N,) for class indices.
    """

    name: TaskKind
    title: str
    """The kind at the head of a report."""
    noun: str
    nouns: str
    """What one output is called, and several."""
    answers: str
    """What an image's answer consists of, in the plural."""
    torn_copies: str
    """What to do about copies of one picture with different answers."""
    one_label: bool = False
    """Each image has exactly one label."""
    gives_numbers: bool = False
    """Targets and outputs are numbers with a unit; else outputs are probabilities."""
    stratum: str
    """What a random split is stratified by."""
    cell: str
    """What a table's cell holds per image and output."""
    summary: str
    """What a model does, after "This model"; {n} is the number of outputs, {s} its plural."""
    limit: str
    """What a model is not to be trusted with, a sentence."""
    mistakes: str
    """What the gallery of the worst mistakes shows, a sentence."""
    interval_method: str
    """How the report's intervals were made, a sentence."""
    hub_tags: tuple[str, ...] = ()
    """Further tags of a model card."""
    metrics: Mapping[str, str]
    """What ``--metric`` takes for this kind: the word and the metric's name; ``auto`` is what it means by itself."""
    ties: tuple[str, ...] = ()
    """Metrics that decide between epochs that are equal in the one that was asked for."""

    losses: tuple[type[CrossEntropy | Focal | Bce | Mse | Huber | Mae], ...]
    """The losses of the schema that fit."""
    choose_loss: Callable[[AutoLoss], Loss]
    """The loss that ``auto`` means.  Raises: ConfigError: an option of it has no meaning here."""

    make_spec: Callable[[Sequence[str], Sequence[Sequence[float]], bool], TaskSpec]
    """(names, numbers of the training images, log) -> the task."""
    make_target: Callable[[TaskSpec, Sequence[str], Mapping[str, float]], Target]
    """(task, labels of an image, numbers of an image by name) -> what it answers."""
    encode_targets: Callable[[TaskSpec, Sequence[Target]], Tensor]
    """Targets as the loss takes them: int64 (N,), float32 (N, K), or standardised float32 (N, T)."""
    read_truth: Callable[[TaskSpec, Sequence[Target]], Tensor]
    """Targets as metrics take them: as encoded, but numbers as given, in float64 and original units."""
    activate: Callable[[TaskSpec, Tensor], Tensor]
    """The model's logits as probabilities, or as numbers in original units; float32."""

    compute_metrics: Callable[[TaskSpec, Tensor, Tensor], dict[str, float]]
    """(task, activated outputs, truth) -> metrics by name; not finite where the images do not define one."""
    compute_present: Callable[[TaskSpec, Tensor, Tensor, Sequence[int]], dict[str, float]]
    """The same over the classes or tags at these places alone: those that some image has."""
    further_metrics: Mapping[str, Callable[[TaskSpec, Tensor, Tensor], float]] = field(default_factory=dict)
    """The metrics that are computed only where they are asked for, by name."""

    choose_thresholds: Callable[[TaskSpec, Tensor, Tensor], tuple[float, ...]] = _have_none
    """(task, activated outputs, truth) of the validation images -> above what each tag is on; () for other kinds."""
    list_thresholds: Callable[[TaskSpec], Mapping[str, float]] = _name_none
    """Above what each tag is on, by name; empty for other kinds."""
    list_tags: Callable[[TaskSpec, Tensor], tuple[str, ...] | None] = _list_none
    """One image's activated outputs -> the tags that are on, the most probable first; None for other kinds."""
    pair_outputs: Callable[[TaskSpec, Tensor], tuple[tuple[str, float], ...]]
    """One image's activated outputs with their names: the most probable first, or numbers in order."""
    write_row: Callable[[TaskSpec, Any, Sequence[float]], dict[str, Any]]
    """(task, truth, activated outputs of one image) -> the columns of its row in predictions.csv."""

    score_rows: Callable[[Sequence[Row], Sequence[str]], RowScores]
    """Rows of predictions.csv and the outputs' names, scored.  Raises: StorageError: they do not fit together."""
    find_baseline: Callable[[str, Mapping[str, Any], RowScores | None], tuple[float | None, str]]
    """(metric, all metrics, scored rows) -> what the best answer without looking gets on these images, and which."""
    list_constants: Callable[[TaskSpec, Tensor], Mapping[str, Tensor]]
    """(task, truth) -> the best answers without looking on these images, (K,) or (T,) each, by what they are called."""
    rate_mistake: Callable[[Row, Mapping[str, Any]], float]
    """How wrong a row is, above 0 where it is wrong; the mapping is the plan's task."""
    describe_row: Callable[[Row, Sequence[str]], RowWords]
    """A row in words, for the caption of its image."""


def pair_probabilities(task: TaskSpec, probabilities: Tensor) -> tuple[tuple[str, float], ...]:
    """The names of the outputs with one image's probabilities (K,), the most probable first."""
    values, order = torch.sort(probabilities, descending=True, stable=True)
    return tuple((task.names[place], value) for place, value in zip(order.tolist(), values.tolist(), strict=True))


def name_outputs(task: Mapping[str, Any]) -> Sequence[str]:
    """Names of a written task's outputs, in order; none where it is damaged."""
    names: Sequence[str] = task.get("targets" if task["kind"] == "regress" else "classes", ())
    return names
