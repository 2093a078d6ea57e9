"""A finished run at work.

Evaluate it on labelled images, predict new ones; the bits are those of training's validation.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import overload

import torch
from torch import nn

from headstart.config.metric import METRICS
from headstart.config.schema import Data
from headstart.data.batch import Batch, Pair
from headstart.data.decoding.decode import UnreadableImage
from headstart.data.labelled import Labelled, Subject, choose_labelled_batches
from headstart.data.loader import Batches
from headstart.data.sources.as_given import AnyImages
from headstart.data.sources.samples import some
from headstart.data.sources.source import Source
from headstart.data.transforms.own import GivenTransform, OwnTransform
from headstart.errors import ConfigError, DataError
from headstart.prediction.predictor import AnyRun as AnyRun
from headstart.prediction.predictor import Predictor as Predictor
from headstart.prediction.predictor import open_on as open_on
from headstart.prediction.record import Prediction as Prediction
from headstart.reports.headline import describe_evaluation
from headstart.runs.bundle import OpenedRun, read_used_images
from headstart.runs.framing import read_framing
from headstart.runs.run import Run
from headstart.tasks.kinds import find_kind, measure_present, name_metric
from headstart.tasks.own_metrics import GivenMetrics, OwnMetric, measure_own, read_own
from headstart.tasks.task import TaskKind, TaskSpec
from headstart.training.evaluate import Evaluation, Predictions, evaluate_iterable, write_rows
from headstart.training.evaluate import evaluate as evaluate_module
from headstart.training.evaluate import predict as predict_module
from headstart.training.precision import Precision

_NAMED = 3


def evaluate_run(run: AnyRun, data: Data, *, device: str = "auto", include_trained: bool = False) -> Run:
    """Metrics of a run's model on the images of ``data`` (see ``hs.evaluate``), with the time that they took.

    A table's columns are those of training where ``data`` does not name any.

    Raises: ModelError: no finished run. DataError: classes or targets that the model does not know, unreadable images.
    """
    started = time.monotonic()
    opened = open_on(run, device)
    framing = read_framing(opened, None, "hs.evaluate({run}, DATA, transform=g)")
    found = _evaluate_source(opened, data, include_trained=include_trained, framing=framing)
    rows = [{name: str(value) for name, value in row.items()} for row in write_rows(found, opened.task)]
    headline, remarks = describe_evaluation(opened.task, rows, found.metrics, metric=_read_metric(opened))
    if (chosen := opened.facts.get("metric", "auto")) not in METRICS:
        remarks += (
            f"{chosen}, by which the epoch was chosen, is a function in Python: hs.evaluate({str(run)!r}, DATA, "
            f'metrics={{"{chosen}": f}})',
        )
    return Run(
        path=opened.path if not isinstance(run, str | Path | Run) else run.path if isinstance(run, Run) else Path(run),
        task=opened.task.kind,
        seconds=time.monotonic() - started,
        metrics=found.metrics,
        note=found.note,
        model=opened.model,
        headline=headline,
        remarks=remarks,
    )


def _read_metric(opened: OpenedRun) -> str:
    """The word of ``--metric`` that the run was made with; bundles of 0.1 do not have it."""
    asked = opened.facts.get("metric", "auto")
    return asked if asked in find_kind(opened.task.kind).metrics else "auto"


def predict_paths(
    run: AnyRun, paths: AnyImages, *, batch_size: int | None = None, device: str = "auto"
) -> list[Prediction]:
    """What ``hs.predict`` gives for a run."""
    return Predictor(run, device=device, batch_size=batch_size).predict(paths)


@overload
def predict(
    model: nn.Module, batches: Batches, *, precision: Precision = ..., memory_format: str = ...
) -> Predictions: ...


@overload
def predict(
    run: AnyRun,
    images: AnyImages,
    /,
    *,
    batch_size: int | None = ...,
    device: str = ...,
    transform: GivenTransform | None = ...,
) -> list[Prediction]: ...


def predict(
    model: nn.Module | AnyRun,
    batches: Batches | AnyImages,
    *,
    precision: Precision | None = None,
    memory_format: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    transform: GivenTransform | None = None,
) -> Predictions | list[Prediction]:
    """Return what a finished run (``hs.predict(run, images)``) or a module (``hs.predict(model, batches)``) says.

    With the ``batch_size`` of training, the default, an image has the very bits that validation gave it, and that the
    command ``headstart predict`` prints. The pixels of PIL images and arrays are taken as they are; a large JPEG that
    is given as a path or as bytes is decoded as finely as it is shown, as in training.

    Args:
        ``model``: A torch module; or, as the first argument, a run: its folder or bundle, what ``hs.train`` returned,
            or what ``hs.open_run`` gave.
        ``batches``: With a run, as the second argument, an image or a list of them: paths, folders (searched at any
            depth), the bytes of image files, PIL images, and NumPy arrays or torch tensors of uint8 pixels (H, W, 3),
            or for a model of other bands of numbers (H, W, C).
            With a module, batches such as ``hs.open_images(...).val``.
        ``precision``: With a module only, its arithmetic: fp32 (the default), bf16 or fp16.
        ``memory_format``: With a module only, contiguous (the default) or channels_last.
        ``batch_size``: With a run only, how many images are computed together; None takes that of training.
        ``device``: With a run only, cpu, cuda, ...; auto takes the accelerator if there is one, and leaves a model that
            is open already where it is.
        ``transform``: With a run only: where it was validated with a transform of your own, that function again.

    Returns:
        With a run, one ``hs.Prediction`` per image, in order: its ``path`` (``images[2]`` for an image
        in memory), and ``labels``, pairs of class or tag and confidence, likeliest first; or ``values``, a number per
        target; or ``error``, why the image cannot be read. With a module, the ``outputs``: probabilities (N, K) or
        numbers in original units (N, T), float32 on the CPU, with the ``keys`` of the images and the ``task``.

    Raises:
        DataError: An item is no image, or a path does not exist; the message names the item.
        ModelError: There is no finished run.
        ConfigError: An option does not belong to what was given.
        NonFiniteError: The outputs are NaN or infinite.

    Example:
        >>> import headstart as hs, numpy as np
        >>> black = np.zeros((32, 32, 3), dtype=np.uint8)
        >>> rows = hs.predict("runs/photos", ["photos/cat", black])
        >>> len(rows), rows[-1].path
        (9, 'images[1]')
        >>> name, confidence = rows[0].labels[0]
        >>> name in ("cat", "dog"), confidence >= 0.5
        (True, True)
    """
    if isinstance(model, nn.Module):
        where = None if device == "auto" else device
        _refuse_options("hs.predict", "module", batch_size=batch_size, device=where, transform=transform)
        return predict_module(
            model,
            _check_batches(batches, "hs.predict"),
            precision=precision or "fp32",
            memory_format=memory_format or "contiguous",
        )
    _refuse_options("hs.predict", "run", precision=precision, memory_format=memory_format)
    if isinstance(batches, Batches):
        raise DataError(
            "hs.predict: Batches are for a module; give the run's model, hs.predict(hs.open_run(run).model, batches), "
            "or images"
        )
    return Predictor(model, device=device, batch_size=batch_size, transform=transform).predict(batches)


@overload
def evaluate(
    model: nn.Module,
    batches: Batches | Iterable[Batch | Pair],
    *,
    task: TaskSpec | TaskKind | None = ...,
    precision: Precision = ...,
    memory_format: str = ...,
    metrics: GivenMetrics | None = ...,
) -> Evaluation: ...


@overload
def evaluate(
    run: AnyRun,
    source: str | Path | Data | Source,
    /,
    *,
    device: str = ...,
    include_trained: bool = ...,
    transform: GivenTransform | None = ...,
    metrics: GivenMetrics | None = ...,
) -> Evaluation: ...


def evaluate(
    model: nn.Module | AnyRun,
    batches: Batches | Iterable[Batch | Pair] | str | Path | Data | Source,
    *,
    task: TaskSpec | TaskKind | None = None,
    precision: Precision | None = None,
    memory_format: str | None = None,
    device: str = "auto",
    include_trained: bool = False,
    transform: GivenTransform | None = None,
    metrics: GivenMetrics | None = None,
) -> Evaluation:
    """Return the metrics of a finished run (``hs.evaluate(run, source)``) or a module (``hs.evaluate(model,
    batches)``).

    Every image counts once, and training ones are taken without their random changes. The model, its modes and its
    buffers are as before. The last batch is padded to the others' shape, so that an image's result depends on neither
    its batch mates nor their number. Several processes share the batches, and each gets the whole result. Batches of
    another iterable, such as a torch ``DataLoader``, are computed as they are, and each process gets those of its own.

    Args:
        ``model``: A torch module; or, as the first argument, a run: its folder or bundle, what ``hs.train`` returned,
            or what ``hs.open_run`` gave.
        ``batches``: With a run, as the second argument, labelled images: a folder of class folders or a table, or the
            ``data`` section of a config (columns that it leaves open are those of training), or a source in Python,
            such as ``hs.label_images(images, labels)``. Its test images count, else its validation images, else all.
            Where the run was trained on some of these, it is the run's own test or validation images that count if more
            than half of them are there, else all but those that it was trained on.
            With a module, batches such as ``hs.open_images(...).val``, or an iterable of ``hs.Batch`` or of pairs
            (images, targets), whose images are floats that go into the model as they are.
        ``task``: With an iterable only, what the targets are: classify, multilabel, regress (in the units of the
            outputs), or the ``task`` of ``hs.open_images(...)`` or ``hs.open_run(...)`` with its names (numbers then
            are in original units); None takes integers of shape (N,) as class indices.
        ``precision``: With a module only, its arithmetic: fp32 (the default), bf16 or fp16.
        ``memory_format``: With a module only, contiguous (the default) or channels_last.
        ``device``: With a run only, cpu, cuda, ...; auto takes the accelerator if there is one, and leaves a model that
            is open already where it is.
        ``include_trained``: With a run only, whether images that it was trained on count as well; the note says how
            many. They are known by their bytes; copies that were resized or saved again are never left out, but
            named in the note, with the main metric without them.
        ``transform``: With a run only: where it was validated with a transform of your own, that function again.
        ``metrics``: Your own metrics beside the task's, as for ``hs.train``.

    Returns:
        The ``metrics`` by name, the ``predictions``, the ``truth`` beside them ((N,) labels, (N, K) tags or (N, T)
        numbers), and with a run a ``note`` on which images these are.

    Raises:
        DataError: The source has classes or targets that the model does not know, images that cannot be read, or none
            but images that the run was trained on.
        ModelError: There is no finished run.
        ConfigError: An option does not belong to what was given.
        NonFiniteError: The outputs are NaN or infinite.

    Example:
        >>> import headstart as hs
        >>> found = hs.evaluate("runs/photos", "photos")
        >>> sorted(found.metrics), len(found.truth)
        (['accuracy', 'macro_f1', 'nll'], 4)
        >>> found.note
        "4 validation images of photos, the run's own; left out: 12 that it was trained on"
    """
    own = read_own(metrics)
    if isinstance(model, nn.Module):
        _refuse_options(
            "hs.evaluate",
            "module",
            device=None if device == "auto" else device,
            include_trained=include_trained or None,
            transform=transform,
        )
        how, layout = precision or "fp32", memory_format or "contiguous"
        if isinstance(batches, Iterable) and not isinstance(batches, Batches | str | bytes):
            found = evaluate_iterable(model, batches, task=task, precision=how, memory_format=layout)
            return _add_own(found, own)
        if task is not None:
            raise ConfigError("hs.evaluate: task: these batches have their own; leave it out")
        checked = _check_batches(batches, "hs.evaluate")
        return _add_own(evaluate_module(model, checked, precision=how, memory_format=layout), own)
    _refuse_options("hs.evaluate", "run", task=task, precision=precision, memory_format=memory_format)
    if isinstance(batches, str | Path):
        batches = Data(source=str(batches))
    if not isinstance(batches, Data | Source):
        raise DataError(
            f"hs.evaluate: type {type(batches).__name__} holds no labelled images for a run; accepted are a folder of "
            'class folders or a table, as a path, hs.load_config({"data": {...}}).data, and hs.label_images(...)'
        )
    opened = open_on(model, device)
    framing = read_framing(opened, transform, "hs.evaluate({run}, DATA, transform=g)")
    return _add_own(_evaluate_source(opened, batches, include_trained=include_trained, framing=framing), own)


def _add_own(found: Evaluation, own: Mapping[str, OwnMetric]) -> Evaluation:
    """The evaluation with the user's own metrics among the others.  Raises: ConfigError: one gave no number."""
    measured = measure_own(own, found.predictions.outputs, found.truth)
    return replace(found, metrics=found.metrics | measured, own=own)


def _check_batches(batches: object, name: str) -> Batches:
    """The batches for a module.  Raises: DataError: they are something that only a run can take."""
    if isinstance(batches, Batches):
        return batches
    raise DataError(
        f"{name}: with a module, Batches are expected, e.g. hs.open_images(...).val, and type {type(batches).__name__} "
        f"was given; images and sources are taken with a finished run: {name}('runs/photos', ...)"
    )


def _refuse_options(name: str, subject: str, **options: object) -> None:
    """Raises: ConfigError: an option was given that this kind of subject does not have."""
    given = [option for option, value in options.items() if value is not None]
    if given:
        why = (
            "a run is computed as it was validated"
            if subject == "run"
            else "a module is computed where it is, on the batches as they are"
        )
        raise ConfigError(f"{name}: {', '.join(given)}: not accepted with a {subject}, since {why}; leave it out")


def _evaluate_source(
    opened: OpenedRun, data: Data | Source, *, include_trained: bool, framing: OwnTransform | None
) -> Evaluation:
    """Metrics on the test images of ``data``, else its validation images, else all; ``note`` says which."""
    if not isinstance(data, Data):
        plain = Data(log=opened.task.log)
        return _evaluate_readable(opened, plain, own_source=data, include_trained=include_trained, framing=framing)
    columns = opened.facts.get("columns", {})
    as_trained = {
        "image": "auto",
        "target": "auto",
        "tags_separator": "auto",
    }  # what these say when nobody said anything
    known = {
        name: columns[name] for name, usual in as_trained.items() if getattr(data, name) == usual and name in columns
    }
    if "target" in known and isinstance(known["target"], list):
        known["target"] = tuple(known["target"])
    data = replace(data, log=opened.task.log, **known)
    return _evaluate_readable(opened, data, own_source=None, include_trained=include_trained, framing=framing)


def _evaluate_readable(
    opened: OpenedRun, data: Data, *, own_source: Source | None, include_trained: bool, framing: OwnTransform | None
) -> Evaluation:
    choose = partial(
        choose_labelled_batches,
        data,
        own_source=own_source,
        subject=Subject(
            task=opened.task,
            preprocess=opened.preprocess,
            used=read_used_images(opened.path),
            include_trained=include_trained,
        ),
        batch_size=opened.evaluated.batch_size,
    )
    try:
        labelled = choose(scanned=False)
        return _evaluate_labelled(opened, replace(labelled, batches=labelled.batches.frame_by(framing)))
    except UnreadableImage:  # then all of them are told, or left out
        labelled = choose(scanned=True)
        return _evaluate_labelled(opened, replace(labelled, batches=labelled.batches.frame_by(framing)))


def _evaluate_labelled(opened: OpenedRun, labelled: Labelled) -> Evaluation:
    settings, batches = opened.evaluated, labelled.batches
    batches = replace(batches, batch_size=settings.size_for(len(batches.samples)))
    found = evaluate_module(opened.model, batches, precision=settings.precision, memory_format=settings.memory_format)
    outputs, metric = found.predictions.outputs, _read_metric(opened)
    metrics, absent = measure_present(opened.task, outputs, found.truth, metric=metric)
    nouns = find_kind(opened.task.kind).nouns
    left_out = f"; no image has {some(absent)}, left out of means over {nouns}" if absent else ""
    alike = _describe_lookalikes(opened.task, found, labelled.lookalikes, metric=metric)
    return replace(found, metrics=metrics, note=labelled.which + alike + left_out)


def _describe_lookalikes(task: TaskSpec, found: Evaluation, names: Sequence[str], *, metric: str) -> str:
    """What is said of images that look as those of training do: how many, and the main metric without them."""
    if not names:
        return ""
    alike = set(names)
    rows = torch.tensor([name not in alike for name in found.predictions.keys])
    key, rest = name_metric(task, metric), ""
    if rows.any():
        without, _ = measure_present(task, found.predictions.outputs[rows], found.truth[rows], metric=metric)
        rest = f"; without them {key} is {without[key]:.4g} on {int(rows.sum())}" if key in without else ""
    shown = some(list(names), limit=_NAMED)
    look = "looks" if len(names) == 1 else "look"
    return f"; {len(names)} of them {look} as images of its training do, perhaps resized or saved again ({shown}){rest}"
