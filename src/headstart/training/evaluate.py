"""Evaluation and prediction: every image once, at one batch shape, in eval mode, and the model is left as it was.

B batch, K classes or tags, T targets, N images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headstart.allocator import keep_freed_memory
from headstart.data.batch import Batch, Pair, as_batch
from headstart.data.loader import Batches
from headstart.distributed.collectives import all_gather, raise_together
from headstart.distributed.fsdp import is_sharded, part_again
from headstart.errors import ConfigError, DataError, ModelError, NonFiniteError
from headstart.isolation import beside_others, eval_modes, own_arithmetic, own_turn, seeded
from headstart.surgery.boundary import EvalGraph
from headstart.surgery.fixed_values import NotReplayable
from headstart.surgery.halves import Suffix
from headstart.surgery.head import model_scores
from headstart.surgery.module_state import restore_state
from headstart.surgery.no_trace import read_before
from headstart.surgery.own_state import has_own_code
from headstart.tasks.kinds import check_truth, find_kind, guess_kind, make_unnamed_task, measure
from headstart.tasks.own_metrics import OwnMetric
from headstart.tasks.own_ratings import Rating, rate_own
from headstart.tasks.task import TaskKind, TaskSpec
from headstart.training.precision import MEMORY_FORMATS, Precision, autocast, device_of, dtype_of
from headstart.wording import option


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model says of images.

    Attributes:
        ``task``: The task with the names of the classes, tags or targets.
        ``outputs``: Probabilities (N, K), or numbers in original units (N, T), in float32 on the CPU.
        ``keys``: The names of the images (N).

    Example:
        >>> import headstart as hs
        >>> found = hs.evaluate("runs/photos", "photos").predictions
        >>> tuple(found.outputs.shape), found.task.classes, found.keys[0]
        ((4, 2), ('cat', 'dog'), 'cat/00.png')
    """

    task: TaskSpec
    outputs: Tensor
    keys: tuple[str, ...]

    def __repr__(self) -> str:
        """One line: how many images, and what they were asked."""
        names = self.task.names
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"{len(self.keys):,} images, {self.task.kind} ({shown})"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model says of images beside the truth, and the task's metrics.

    Attributes:
        ``predictions``: What the model says.
        ``truth``: Labels (N,), tags (N, K), or numbers (N, T) in float64 and original units.
        ``metrics``: The task's metrics, by name.
        ``note``: Which images of a source these are; empty for batches.
        ``own``: Your own metrics, by name.

    Example:
        >>> import headstart as hs
        >>> found = hs.evaluate("runs/photos", "photos")
        >>> found.accuracy == found.metrics["accuracy"], tuple(found.truth.shape)
        (True, (4,))
    """

    predictions: Predictions
    truth: Tensor
    metrics: dict[str, float]
    note: str = ""
    own: Mapping[str, OwnMetric] = field(default_factory=dict, repr=False)

    def rate(self, metric: str) -> Rating:
        """A metric with its 95 % interval and the best answer without looking: up to a few seconds of resampling.

        Args:
            ``metric``: Its name in ``metrics``, such as accuracy or one of your own.

        Raises: ConfigError: these images do not have a metric of this name.
        """
        if metric not in self.metrics:
            raise ConfigError(f"metric: {metric!r} is none of this evaluation's; accepted: {', '.join(self.metrics)}")
        task, value = self.predictions.task, self.metrics[metric]
        if metric in self.own:
            return rate_own(self.own[metric], task, self.predictions.outputs, self.truth, value=value)
        kind = find_kind(task.kind)
        rows = [{name: str(each) for name, each in row.items()} for row in write_rows(self, task)]
        scores = kind.score_rows(rows, task.names)
        interval, (baseline, says) = scores.find_interval(metric), kind.find_baseline(metric, self.metrics, scores)
        ends = (interval.low, interval.high) if interval else (None, None)
        return Rating(value=value, low=ends[0], high=ends[1], baseline=baseline, baseline_says=says)

    def __repr__(self) -> str:
        """Two lines: of what, and the metrics."""
        said = f"; {self.note}" if self.note else ""
        values = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"Evaluation of {self.predictions!r}{said}\n{values}"

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is right (classification)."""
        return self.metrics["accuracy"]

    @property
    def mean_average_precision(self) -> float:
        """Mean over tags of the average precision (multi-label)."""
        return self.metrics["mean_average_precision"]

    @property
    def mae(self) -> float:
        """Mean absolute error in original units (regression of one target).

        Raises: DataError: there are several targets, which have no common unit.
        """
        targets = self.predictions.task.targets
        if len(targets) > 1:
            raise DataError(
                f"mae: {len(targets)} targets have no common unit; take metrics['mae:{targets[0]}'] of one, or "
                "metrics['relative_mae'], the mean share of the error that each target's median would have"
            )
        return self.metrics["mae"]


def write_rows(evaluation: Evaluation, task: TaskSpec) -> list[dict[str, Any]]:
    """The rows of predictions.csv, without the images' digests."""
    outputs = evaluation.predictions.outputs.tolist()
    write_row = find_kind(task.kind).write_row
    each = zip(evaluation.predictions.keys, evaluation.truth.tolist(), outputs, strict=True)
    return [{"id": key} | write_row(task, true, values) for key, true, values in each]


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Within, eval mode, no autograd and none of the caller's arithmetic; every module's own mode is put back
    afterwards, by its ``train`` where that is what it was called with before.
    """
    root = model.module if isinstance(model, EvalGraph | Suffix) else model
    with own_arithmetic(), torch.no_grad(), eval_modes(model, root=root):
        yield


def compute_logits(
    model: nn.Module, batch: Batch, *, precision: Precision = "fp32", memory_format: str = "contiguous"
) -> Tensor:
    """The logits (B, K) of the real images of a padded batch, float32 on the CPU.

    Call it within ``in_eval``.
    """
    device = device_of(model)
    with autocast(device, precision):
        outputs = model(*batch.arguments(device, MEMORY_FORMATS[memory_format], dtype_of(model)))
    parts = model_scores(model, outputs)
    main = parts[0][1] if parts[0][0] == 1.0 else torch.stack([part for _, part in parts]).mean(0)
    return main[: batch.size].float().cpu()


def predict(
    model: nn.Module, batches: Batches, *, precision: Precision = "fp32", memory_format: str = "contiguous"
) -> Predictions:
    """Probabilities (N, K), or numbers in original units (N, T), for every image of ``batches``."""
    return _run(model, batches, precision=precision, memory_format=memory_format)


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    precision: Precision = "fp32",
    memory_format: str = "contiguous",
    metric: str = "auto",
) -> Evaluation:
    """Metrics over every image of ``batches`` exactly once, training ones without their random changes.

    ``metric``: a word of ``--metric`` whose metric is to be among them.

    The model, its modes and its buffers are as before. The last batch is padded to the others' shape, so that an
    image's result depends on neither its batch mates nor their number. Several processes share the batches, and each
    gets the whole result.
    """
    with own_arithmetic():
        predictions = _run(model, batches, precision=precision, memory_format=memory_format)
        targets = [sample.target for sample in batches.samples]
        truth = find_kind(batches.task.kind).read_truth(batches.task, targets)
        metrics = measure(batches.task, predictions.outputs, truth, metric=metric)
    return Evaluation(predictions=predictions, truth=truth, metrics=metrics)


def evaluate_iterable(
    model: nn.Module,
    batches: Iterable[Batch | Pair],
    *,
    task: TaskSpec | TaskKind | None,
    precision: Precision = "fp32",
    memory_format: str = "contiguous",
) -> Evaluation:
    """Metrics over the batches of any iterable, each as it is; of several processes each evaluates its own.

    ``task`` None: integers are class indices. Raises: DataError: no batches, or targets that do not fit.
    """
    outputs, targets, keys = list[Tensor](), list[Tensor](), list[str]()
    own = _has_own_code(model)
    with in_eval(model), keep_freed_memory():
        for number, value in enumerate(batches):
            batch = as_batch(value)
            with _drawing(number, device_of(model)) if own else beside_others():
                outputs.append(compute_logits(model, batch, precision=precision, memory_format=memory_format))
            targets.append(batch.targets[: batch.size].cpu())
            named = isinstance(value, Batch)
            keys += batch.keys if named else [f"images[{len(keys) + place}]" for place in range(batch.size)]
        if not outputs:
            raise DataError(
                "evaluate: there is no batch; give an iterable that begins anew each time it is gone through"
            )
        joined, answers = torch.cat(outputs), torch.cat(targets)
        joined = joined if joined.ndim > 1 else joined.unsqueeze(1)
        if not isinstance(task, TaskSpec):
            task = make_unnamed_task(task or guess_kind(answers), outputs=joined.shape[1])
        truth = check_truth(task, answers)
        predictions = _make_predictions(task, joined, tuple(keys))
        metrics = measure(task, predictions.outputs, truth)
    return Evaluation(predictions=predictions, truth=truth, metrics=metrics)


def _run(model: nn.Module, batches: Batches, *, precision: Precision, memory_format: str) -> Predictions:
    batches = batches.for_evaluation()
    keys = tuple(sample.key for sample in batches.samples)
    with in_eval(model), keep_freed_memory():
        with raise_together(NotReplayable) if isinstance(model, Suffix) else nullcontext():
            outputs = _compute_own_logits(model, batches, precision=precision, memory_format=memory_format)
        part_again(model)
        joined = _join_outputs(outputs, batches) if batches.processes.is_distributed else torch.cat(outputs)
        return _make_predictions(batches.task, joined, keys)


def _turn(model: nn.Module, number: int) -> AbstractContextManager[None]:
    """A context for one forward pass of evaluation beside other threads; ``number``: which batch it is."""
    return _drawing(number, device_of(model)) if _has_own_code(model) else beside_others()


def predict_batch(
    model: nn.Module,
    batch: Batch,
    *,
    task: TaskSpec,
    number: int,
    precision: Precision = "fp32",
    memory_format: str = "contiguous",
) -> Tensor:
    """What ``predict`` gives of the real images of this batch, (B, K) or (B, T); ``number``: which batch it is.

    The model, its modes and its buffers are as before.
    """
    with in_eval(model), keep_freed_memory(), _turn(model, number):
        logits = compute_logits(model, batch, precision=precision, memory_format=memory_format)
        return _make_predictions(task, logits, batch.keys).outputs


def compute_features(
    model: nn.Module,
    batch: Batch,
    *,
    head: str,
    number: int,
    precision: Precision = "fp32",
    memory_format: str = "contiguous",
) -> Tensor:
    """What the module at ``head`` is given of the real images of this batch, (B, ...) float32 on the CPU.

    ``number``: which batch it is. The model, its modes and its buffers are as before.

    Raises: ModelError: the module is not called.
    """
    caught: list[Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        with in_eval(model), keep_freed_memory(), _turn(model, number):
            compute_logits(model, batch, precision=precision, memory_format=memory_format)
    finally:
        handle.remove()
    if not caught:
        raise ModelError(f"the model never calls {head}, its head; what goes into it cannot be read there")
    return caught[-1][: batch.size].detach().float().cpu()


def _make_predictions(task: TaskSpec, logits: Tensor, keys: tuple[str, ...]) -> Predictions:
    """What the model says, from its logits (N, K).  Raises: NonFiniteError."""
    finite = torch.isfinite(logits).flatten(1).all(1).tolist()
    damaged = [key for key, fine in zip(keys, finite, strict=True) if not fine]
    if damaged:
        raise NonFiniteError(
            f"the model's outputs are not finite for {len(damaged)} of {len(keys)} images, e.g. {damaged[0]}; try a "
            f"lower rate ({option('lr')}) or {option('precision', 'fp32')}"
        )
    return Predictions(task=task, outputs=find_kind(task.kind).activate(task, logits).clone(), keys=keys)


def _has_own_code(model: nn.Module) -> bool:
    return has_own_code(model) or isinstance(model, EvalGraph | Suffix)


def _compute_own_logits(
    model: nn.Module, batches: Batches, *, precision: Precision, memory_format: str
) -> list[Tensor]:
    """The logits of this process's batches."""
    outputs, ours, own = [], batches.processes, _has_own_code(model)
    for number, batch in enumerate(_even_out(batches.epoch(0), batches, everywhere=is_sharded(model))):
        with _drawing(number * ours.world_size + ours.rank, device_of(model)) if own else beside_others():
            outputs.append(compute_logits(model, batch, precision=precision, memory_format=memory_format))
    return outputs


@contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Within, code of the user's own, which may draw in evaluation, draws the same numbers each time."""
    with own_turn(), seeded(seed, device=device, everywhere=True):
        yield


@contextmanager
def keep_own_state(model: nn.Module) -> Iterator[None]:
    """Within, what the user's own code counts, writes or collects is put back afterwards: so the next evaluation of a
    run, and the bundle, give the same. A call of ``evaluate`` by the user leaves it: hooks may collect there.
    """
    before = read_before(model) if has_own_code(model) else None
    try:
        yield
    finally:
        if before is not None:
            restore_state(model, before)


def _even_out(own: Iterator[Batch], batches: Batches, *, everywhere: bool) -> Iterator[Batch]:
    """The batches; with ``everywhere`` then empty ones, until every process has had as many: a sharded model is put
    together for each forward pass by all of them.
    """
    count = 0
    for count, batch in enumerate(own, start=1):  # noqa: B007
        yield batch
    missing = -(-len(batches) // batches.processes.world_size) - count if everywhere else 0
    preprocess, rows = batches.preprocess, batches.batch_size
    for _ in range(missing):
        yield Batch(
            pixels=torch.zeros(rows, preprocess.channels, preprocess.height, preprocess.width, dtype=torch.uint8),
            targets=torch.empty(0), indices=torch.full((rows,), -1), keys=(), size=0,
            mean=torch.tensor(preprocess.mean), std=torch.tensor(preprocess.std),
        )  # fmt: skip


def _join_outputs(outputs: list[Tensor], batches: Batches) -> Tensor:
    """All images' outputs (N, K) from each process's batches: number i is with rank i modulo their number."""
    size, each = batches.batch_size, -(-len(batches) // batches.processes.world_size)
    room = torch.zeros(each, size, batches.task.num_outputs)
    for place, output in enumerate(outputs):
        room[place, : len(output)] = output
    return torch.stack(all_gather(room), dim=1).flatten(0, 2)[: len(batches.samples)]
