"""``headstart predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from headstart.cli.output import cell, table, to_csv, to_json, write
from headstart.config.flags import parse_args
from headstart.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classes, tags or numbers for images, by a finished run's model."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """Run folder, or the bundle in it."""
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...", help_behavior_hint="")]
    """Images, and folders that are searched for images."""
    format: Literal["table", "csv", "json", "jsonl"] = "table"
    """How the predictions are printed."""
    device: str = "auto"
    """cpu, cuda, mps, xpu, ...; auto: the accelerator if there is one."""
    top: int = 5
    """Classes per image, the likeliest first."""
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
    from headstart.lazy_imports import load_libraries

    load_libraries()
    from headstart.predictor import predict_paths  # imports torch

    found = predict_paths(
        Path(args.run), [Path(path) for path in args.paths], batch_size=args.batch_size, device=args.device
    )
    unreadable = [prediction for prediction in found if prediction.error is not None]
    for prediction in unreadable:
        sys.stderr.write(f"headstart: {cell(prediction.path)}: {cell(prediction.error)}\n")
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
        header, rows = _numbers(predictions)
    else:
        header, rows = _labels(predictions, top)
    return to_csv(rows, header=header) if form == "csv" else table(rows, header=header)


def _as_dict(prediction: Any, top: int) -> dict[str, object]:
    facts: dict[str, object] = {"path": str(prediction.path)}
    if prediction.error is not None:
        return {**facts, "error": prediction.error}
    if prediction.values:
        return {**facts, "values": dict(prediction.values)}
    return {**facts, "labels": [{"name": n, "confidence": c} for n, c in (prediction.labels or ())[:top]]}


def _numbers(predictions: Sequence[Any]) -> tuple[list[str], list[list[object]]]:
    targets = list(dict.fromkeys(name for prediction in predictions for name in prediction.values or ()))
    rows = [[str(p.path), *((p.values or {}).get(t) for t in targets), p.error or ""] for p in predictions]
    return ["path", *(f"value:{name}" if name in ("path", "error") else name for name in targets), "error"], rows


def _labels(predictions: Sequence[Any], top: int) -> tuple[list[str], list[list[object]]]:
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
