"""``headstart predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from headstart.cli.configured import check_run
from headstart.cli.output import table, to_csv, to_json, write
from headstart.config.flags import parse_args
from headstart.config.home import expand_home
from headstart.errors import ConfigError, DataError
from headstart.reports.cells import cell
from headstart.tasks.tags import join_tags

_SHOWN = 12  # thresholds that are printed


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classes, tags or numbers for images, by a finished run's model; exit code 0 where any image could be read."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """Run folder, or the bundle in it."""
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...", help_behavior_hint="")]
    """Images, and folders that are searched for images."""
    format: Literal["table", "csv", "json", "jsonl"] = "table"
    """How the predictions are printed."""
    device: str = "auto"
    """cpu, cuda, mps, xpu, ...; auto: the accelerator if there is one."""
    top: int = 5
    """Classes per image, the likeliest first. Of tags all that are on are given, in CSV and JSON each confidence."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as in training)")] = (
        None
    )
    """Images computed together."""


def run(argv: Sequence[str]) -> int:
    """Print one prediction per image; unreadable ones stay with their reason, and are listed on stderr."""
    args, _ = parse_args(Predict, argv, prog="headstart predict")
    for name in ("top", "batch_size"):
        number = getattr(args, name)
        if number is not None and number < 1:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag}: {number} is not positive; give at least 1, e.g. {flag} 5")
    if not args.paths:
        raise ConfigError("PATH is missing; give images or folders, e.g. headstart predict runs/photos new/")
    run = check_run(args.run)
    paths = [expand_home(path) for path in args.paths]
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise DataError(f"{cell(missing.absolute())}: there is no such file or folder")
    from headstart.lazy_imports import collector_paused, load_libraries

    with collector_paused():
        load_libraries()
        from headstart.predictor import open_on, predict_paths  # imports torch

    opened = open_on(run, args.device)
    found = predict_paths(opened, paths, batch_size=args.batch_size)
    unreadable = [prediction for prediction in found if prediction.error is not None]
    for prediction in unreadable:
        sys.stderr.write(f"headstart: {cell(prediction.path)}: {cell(prediction.error)}\n")
    if about := describe_thresholds(opened.task):
        sys.stderr.write(f"headstart: {cell(about)}\n")
    write(render(found, form=args.format, top=args.top))
    if len(unreadable) == len(found):
        raise DataError(f"none of the {len(found)} images could be read")
    return 0


def render(predictions: Sequence[Any], *, form: str, top: int) -> str:
    """Predictions as a table, CSV, one JSON list, or a JSON object per line."""
    if form in ("json", "jsonl"):
        items = [_as_dict(prediction, top) for prediction in predictions]
        return to_json(items) if form == "json" else "\n".join(map(to_json, items))
    if any(prediction.values for prediction in predictions):
        header, rows = _list_numbers(predictions)
    elif any(prediction.tags is not None for prediction in predictions):
        header, rows = _list_tags(predictions, all_confidences=form == "csv")
    else:
        header, rows = _list_labels(predictions, top)
    return to_csv(rows, header=header) if form == "csv" else table(rows, header=header)


def _as_dict(prediction: Any, top: int) -> dict[str, object]:
    facts: dict[str, object] = {"path": str(prediction.path)}
    if prediction.error is not None:
        return {**facts, "error": prediction.error}
    if prediction.values:
        return {**facts, "values": dict(prediction.values)}
    labels = [{"name": name, "confidence": confidence} for name, confidence in prediction.labels or ()]
    if prediction.tags is not None:
        return {**facts, "tags": list(prediction.tags), "labels": labels}
    return {**facts, "labels": labels[:top]}


def _list_numbers(predictions: Sequence[Any]) -> tuple[list[str], list[list[object]]]:
    targets = list(dict.fromkeys(name for prediction in predictions for name in prediction.values or ()))
    rows = [[str(p.path), *((p.values or {}).get(t) for t in targets), p.error or ""] for p in predictions]
    return ["path", *(f"value:{name}" if name in ("path", "error") else name for name in targets), "error"], rows


def _list_tags(predictions: Sequence[Any], *, all_confidences: bool) -> tuple[list[str], list[list[object]]]:
    """One row per image: the tags that are on, with their confidences beside them, or all confidences in columns."""
    if not all_confidences:
        rows: list[list[object]] = []
        for prediction in predictions:
            confidences = dict(prediction.labels)
            tags = ", ".join(f"{name} {confidences[name]:.3f}" for name in prediction.tags or ())
            none = "none" if prediction.error is None else ""
            rows.append([str(prediction.path), tags or none, prediction.error or ""])
        return ["path", "tags", "error"], rows
    names = sorted({name for prediction in predictions for name, _ in prediction.labels})
    rows = [
        [str(one.path), join_tags(one.tags or ()), *(dict(one.labels).get(name) for name in names), one.error or ""]
        for one in predictions
    ]
    return ["path", "tags", *(f"p:{name}" for name in names), "error"], rows


def _list_labels(predictions: Sequence[Any], top: int) -> tuple[list[str], list[list[object]]]:
    """One row per image: its labels side by side, as many as the image with the most has."""
    count = min(top, max((len(p.labels or ()) for p in predictions), default=0))
    header = ["path"]
    for rank in range(1, count + 1):
        header += [f"label {rank}", f"confidence {rank}"] if count > 1 else ["label", "confidence"]
    rows = []
    for prediction in predictions:
        row: list[object] = [str(prediction.path)]
        for rank in range(count):
            row += (prediction.labels or ())[rank] if rank < len(prediction.labels or ()) else (None, None)
        rows.append([*row, prediction.error or ""])
    return [*header, "error"], rows


def describe_thresholds(task: Any) -> str:
    """Above what a tag is on, in a line; "" where the outputs are no tags."""
    from headstart.tasks.kinds import find_kind  # imports torch

    if not (thresholds := find_kind(task.kind).list_thresholds(task)):
        return ""
    if set(thresholds.values()) == {0.5}:
        return "tags above 0.5 are on"
    shown = ", ".join(f"{name} {value:.3g}" for name, value in list(thresholds.items())[:_SHOWN])
    more = f" and {len(thresholds) - _SHOWN} more (model/headstart.json)" if len(thresholds) > _SHOWN else ""
    return f"tags are on above the thresholds that were chosen on the validation images: {shown}{more}"
