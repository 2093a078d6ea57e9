"""``headstart predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from headstart.cli.configured import check_run
from headstart.cli.images import RowProgress, check_paths, tell_unreadable
from headstart.cli.output import table, to_csv, to_json, write
from headstart.config.flags import parse_args
from headstart.config.home import expand_home
from headstart.errors import ConfigError, DataError
from headstart.prediction.rows import as_dict, list_labels
from headstart.reports.cells import cell
from headstart.tasks.tags import join_tags

if TYPE_CHECKING:
    from headstart.prediction.predictor import Predictor

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
    views: Literal["one", "mirrored"] = "one"
    """mirrored: each image and its mirror image are looked at, and the answers averaged."""
    ensemble: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN...", help_behavior_hint="")] = ()
    """Further runs of the same task, whose answers are averaged with the first one's."""
    workers: Annotated[int, tyro.conf.arg(metavar="INT")] = 0
    """Processes that decode images; 0: the one that computes."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: printed)")] = None
    """Where the predictions are written: .csv, .jsonl or .parquet. The same command goes on after a kill."""
    overwrite: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Replace the file of --out where it is there already."""


def run(argv: Sequence[str]) -> int:
    """Print or write one prediction per image; unreadable ones stay with their reason, and are named on stderr."""
    args, _ = parse_args(Predict, argv, prog="headstart predict")
    paths = _check(args)
    runs = [check_run(run) for run in (args.run, *args.ensemble)]
    out = None if args.out is None else expand_home(args.out)
    if out is not None:
        from headstart.prediction.output_names import refuse_output

        refuse_output(out, overwrite=args.overwrite)
    from headstart.lazy_imports import collector_paused, load_libraries

    with collector_paused():
        load_libraries()
        from headstart.prediction.predictor import Predictor  # imports torch

    predictor = Predictor(runs, device=args.device, batch_size=args.batch_size, workers=args.workers, views=args.views)
    if about := describe_thresholds(predictor.task):
        sys.stderr.write(f"headstart: {cell(about)}\n")
    if out is not None:
        return _write(predictor, paths, out, top=args.top)
    found = predictor.predict(paths)
    unreadable = [(prediction.path, prediction.error) for prediction in found if prediction.error is not None]
    tell_unreadable(unreadable)
    write(render(found, form=args.format, top=args.top))
    if len(unreadable) == len(found):
        raise DataError(f"none of the {len(found)} images could be read")
    return 0


def _check(args: Predict) -> list[Path]:
    """The images' paths.  Raises: ConfigError, DataError: what was typed can be nothing."""
    if args.top < 1:
        raise ConfigError(f"--top: {args.top} is not positive; give at least 1, e.g. --top 5")
    if args.out is not None and args.format != "table":
        raise ConfigError(f"--format {args.format}: the ending of --out says the form; leave --format out")
    if args.overwrite and args.out is None:
        raise ConfigError("--overwrite: no file is written; give one, e.g. --out found.csv --overwrite")
    return check_paths(args.paths, batch_size=args.batch_size, workers=args.workers, verb="predict")


def _write(predictor: Predictor, paths: list[Path], out: Path, *, top: int) -> int:
    with RowProgress() as progress:
        written = predictor.write(paths, out, top=top, overwrite=True, on_rows=progress)  # asked before
    tell_unreadable(written.unreadable)
    if written.resumed:
        sys.stderr.write(f"headstart: went on after {written.resumed:,} images of an earlier call\n")
    write(table([("images", written.rows), ("unreadable", len(written.unreadable)), ("file", out)]))
    if len(written.unreadable) == written.rows:
        raise DataError(f"none of the {written.rows} images could be read")
    return 0


def render(predictions: Sequence[Any], *, form: str, top: int) -> str:
    """Predictions as a table, CSV, one JSON list, or a JSON object per line."""
    if form in ("json", "jsonl"):
        items = [as_dict(prediction, top=top) for prediction in predictions]
        return to_json(items) if form == "json" else "\n".join(map(to_json, items))
    if any(prediction.values for prediction in predictions):
        header, rows = _list_numbers(predictions)
    elif any(prediction.tags is not None for prediction in predictions):
        header, rows = _list_tags(predictions, all_confidences=form == "csv")
    else:
        header, rows = list_labels(predictions, top)
    return to_csv(rows, header=header) if form == "csv" else table(rows, header=header)


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
