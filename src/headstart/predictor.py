"""A finished run at work.

Evaluate it on labelled images, predict new ones; the bits are those of training's validation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from headstart.config.schema import Data
from headstart.data.dataset import image_batches
from headstart.data.decoding.decode import UnreadableImage, check_image, printable, read_bytes
from headstart.data.labelled import choose_labelled_batches
from headstart.data.loader import Batches
from headstart.runs.bundle import OpenedRun, open_run
from headstart.runs.finish import Run
from headstart.training.evaluate import Evaluation, Predictions, evaluate, predict
from headstart.training.precision import usable_device


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one image.

    Labels with confidences, likeliest first; or numbers; or why it cannot be read.
    """

    path: str
    labels: tuple[tuple[str, float], ...] = ()
    values: dict[str, float] | None = None
    error: str | None = None


def evaluate_run(run: str | Path, data: Data, *, device: str = "auto") -> Run:
    """Metrics of a run's model on the test images of ``data``, else its validation images, else all of them.

    A table's columns are those of training where ``data`` does not name any.

    Raises: ModelError: no finished run. DataError: classes or targets that the model does not know, unreadable images.
    """
    opened = _on_device(open_run(run), device)
    started = time.monotonic()
    columns = opened.facts.get("columns", {})
    as_trained = {"image": "auto", "target": "auto", "tags_separator": ","}  # what these say when nobody said anything
    known = {
        name: columns[name] for name, usual in as_trained.items() if getattr(data, name) == usual and name in columns
    }
    if "target" in known and isinstance(known["target"], list):
        known["target"] = tuple(known["target"])
    data = replace(data, log=opened.task.log, **known)
    try:
        found, which = _evaluated(opened, data, scanned=False)
    except UnreadableImage:  # then all of them are told, or left out
        found, which = _evaluated(opened, data, scanned=True)
    return Run(
        path=Path(run),
        task=opened.task.kind,
        seconds=time.monotonic() - started,
        metrics=found.metrics,
        note=which,
        model=opened.model,
    )


def predict_paths(
    run: str | Path, paths: Sequence[str | Path], *, batch_size: int | None = None, device: str = "auto"
) -> list[Prediction]:
    """One prediction per image of the files and folders, in their order; an unreadable image keeps its place, with
    the reason.

    With the ``batch_size`` of training (the default) an image gets the very bits that validation gave it.

    Raises: ModelError: no finished run. DataError: a path that does not exist.
    """
    opened = _on_device(open_run(run), device)
    size = batch_size or opened.evaluated.batch_size
    batches = image_batches(paths, preprocess=opened.preprocess, task=opened.task, batch_size=size)
    errors: dict[str, str] = {}
    try:
        said = _predicted(opened, batches)
    except UnreadableImage:  # once more, without those that cannot be read
        readable, errors = _readable(batches)
        said = _predicted(opened, readable) if readable.samples else {}
    return [
        said.get(key) or Prediction(path=key, error=errors[key]) for key in (sample.key for sample in batches.samples)
    ]


def _evaluated(opened: OpenedRun, data: Data, *, scanned: bool) -> tuple[Evaluation, str]:
    """Metrics, and of which images."""
    settings = opened.evaluated
    batches, which = choose_labelled_batches(
        data, task=opened.task, preprocess=opened.preprocess, batch_size=settings.batch_size, scanned=scanned
    )
    return evaluate(opened.model, batches, precision=settings.precision, memory_format=settings.memory_format), which


def _predicted(opened: OpenedRun, batches: Batches) -> dict[str, Prediction]:
    settings = opened.evaluated
    made = predict(opened.model, batches, precision=settings.precision, memory_format=settings.memory_format)
    return {key: _worded(made, place) for place, key in enumerate(made.keys)}


def _readable(batches: Batches) -> tuple[Batches, dict[str, str]]:
    """The images that can be read, and why the others cannot."""
    errors: dict[str, str] = {}
    for sample in batches.samples:
        try:
            check_image(read_bytes(sample.path), path=sample.path)
        except UnreadableImage as error:
            errors[sample.key] = printable(error.reason)
    return replace(batches, samples=tuple(sample for sample in batches.samples if sample.key not in errors)), errors


def _on_device(opened: OpenedRun, device: str) -> OpenedRun:
    opened.model.to(usable_device(device))
    return opened


def _worded(made: Predictions, place: int) -> Prediction:
    key, scores, task = made.keys[place], made.outputs[place], made.task
    if task.kind == "regress":
        return Prediction(path=key, values=dict(zip(task.targets, scores.tolist(), strict=True)))
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    return Prediction(path=key, labels=tuple((task.classes[which], float(scores[which])) for which in order))
