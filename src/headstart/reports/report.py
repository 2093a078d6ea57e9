"""report.html: one self-contained page about a run, the result first."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from headstart.config.home import expand_home
from headstart.errors import StorageError
from headstart.reports.clock import time_shares
from headstart.reports.environment import format_facts, inexact_text, was_inexact
from headstart.reports.figures import curve_figures, rate_figures, step_figures, target_figures
from headstart.reports.headline import Findings, format_interval, format_metric, format_share, label_main, summarise
from headstart.reports.matrix import draw_matrix
from headstart.reports.model_card import loads_in_timm
from headstart.reports.pictures import ReadImage, gallery
from headstart.reports.run_record import RunRecord, read_record
from headstart.storage.durable import write_file
from headstart.tasks.classify import ClassifyScores
from headstart.tasks.intervals import Interval
from headstart.tasks.multilabel import MultilabelScores
from headstart.tasks.regress import RegressScores
from headstart.tasks.rows import format_amount

_TABLE = 12  # classes up to which the confusion matrix is a table
_MATRIX = 200  # classes up to which it is a picture; beyond, a cell would be less than 5 pixels
_MANY = 30  # classes or tags beyond which the weakest go first
_PAIRS = 20  # most confused pairs shown beside a picture, or in its place
_TEMPLATES = Path(__file__).parent / "templates"
# what reading a text where a mapping belongs raises: a foreign record is not checked field by field
_SHAPES = (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, TemplateError)
_GO_ON, _FINISH = "Continue this run", "Take its best epoch so far as the model"
_PREDICT, _EVALUATE = "Predict new images", "Measure it on other labelled images"
_REPEAT = "Make this run again, to the bit"


def report(run: str | Path) -> Path:
    """Write ``report.html`` of a finished or running run.

    Args:
        ``run``: The run's folder.

    Returns:
        The path of the page.

    Raises:
        Error: There is no run in this folder.
        StorageError: A record is damaged, or the page cannot be written.

    Example:
        >>> import headstart as hs
        >>> hs.report("runs/photos").name
        'report.html'
    """
    return write_report(expand_home(run))


def write_report(run: Path, *, read: ReadImage | None = None) -> Path:
    """Read the run folder, render the page and write it as ``run/report.html``; ``read`` gives images by name.

    Raises: Error: there is no run in this folder. StorageError: a record is damaged, or the page cannot be written.
    """
    write_page(run, read=read)
    return run / "report.html"


def write_page(run: Path, *, read: ReadImage | None = None) -> Findings:
    """Write the page as ``write_report`` does, and give what the page says of the result."""
    path, record = run / "report.html", read_record(run)
    try:
        findings = summarise(record)
        page = render(record, findings=findings, read=read)
    except _SHAPES as error:
        raise StorageError(
            f"{run}: a record does not have the shape that headstart writes ({type(error).__name__}: {error}); was "
            "plan.json, result.json, predictions.csv or events.jsonl changed?"
        ) from error
    # backslashreplace: a file name that is not UTF-8 is shown as \udcff
    write_file(path, page.encode("utf-8", "backslashreplace"))
    return findings


def render(record: RunRecord, *, findings: Findings | None = None, read: ReadImage | None = None) -> str:
    """The page as text: no remote resource, no script, everything of the user's escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        amount=format_amount,
        share=format_share,
        count=count,
        several=several,
        plain=plain,
        duration=duration,
        rate=rate,
        metric=format_metric,
        span=format_interval,
    )
    findings = findings or summarise(record)
    scores = findings.scores
    return environment.get_template("report.html.j2").render(
        record=record,
        plan=record.plan,
        kind=record.kind,
        outputs=record.names,
        config_text=_tidy(record.config_text),
        source=_tidy(str(record.plan.get("data", {}).get("source", ""))),
        result=record.result,
        findings=findings,
        main_label=label_main(record, findings.metrics[0]) if findings.metrics else "",
        metrics=findings.metrics,
        inexact=inexact_text(record.environment),
        environment=format_facts(record.environment),
        classify=_classify(scores) if isinstance(scores, ClassifyScores) else None,
        tags=_tags(scores, record) if isinstance(scores, MultilabelScores) else None,
        targets=target_figures(scores.targets) if isinstance(scores, RegressScores) else (),
        gallery=gallery(record, record.test_predictions or record.predictions, read=read),
        figures=curve_figures(record, baseline=findings.validation_baseline),
        rates=rate_figures(record),
        steps=step_figures(record),
        commands=_commands(record),
        training_time=_training_time(record),
        bar=bar,
    )


def _training_time(record: RunRecord) -> str:
    """Where the time of all epochs went; "" where no epoch is done, or a version that did not measure it trained."""
    rows = [
        (epoch.get("input_seconds"), epoch.get("copy_seconds", 0.0), epoch.get("seconds")) for epoch in record.epochs
    ]
    numbers = [row for row in rows if all(isinstance(value, int | float) for value in row)]
    waited, copied, seconds = (sum(values) for values in zip(*numbers, strict=True)) if numbers else (0.0, 0.0, 0.0)
    return f"{time_shares(waited, seconds, copy_seconds=copied)} of {duration(seconds)}" if seconds > 0 else ""


def _classify(scores: ClassifyScores) -> Mapping[str, Any]:
    """The confusion matrix or the most confused pairs, and the classes, the weakest first when there are many."""
    rows = list(scores.classes)
    if len(rows) > _MANY:
        rows.sort(key=lambda row: (row.f1, row.name))
    names = [row.name for row in scores.classes]
    return {
        "matrix": scores.confusion if len(names) <= _TABLE else None,
        "picture": draw_matrix(scores.confusion, names) if _TABLE < len(names) <= _MATRIX else None,
        "pairs": scores.confused[:_PAIRS],
        "all_pairs": len(scores.confused),
        "rows": rows,
        "sorted": len(names) > _MANY,
    }


def _tags(scores: MultilabelScores, record: RunRecord) -> Mapping[str, Any]:
    rows = list(scores.tags)
    many = len(rows) > _MANY
    if many:
        rows.sort(key=lambda row: (math.isnan(row.average_precision), row.average_precision, row.name))
    return {"rows": rows, "sorted": many, "thresholds": (record.result or {}).get("thresholds") or {}}


def _commands(record: RunRecord) -> Sequence[Mapping[str, str]]:
    """What to type next, with what it does: only what works on the run as it is now."""
    objects = _list_objects(record)
    go_on, finish, use = _python_commands(record, objects) if objects else _shell_commands(record)
    framed = (record.plan.get("began") or {}).get("framing")
    if not framed and not objects.keys() & {"model=net", "data=images"}:  # the model is used as any other
        use = _shell_commands(record)[2]
    again = [] if was_inexact(record.environment) else [_repeat_command(record, objects)]  # else it is refused
    if record.result is None:
        return [go_on, *([finish] if record.epochs else []), *again]
    return [*use, *again] if record.is_complete else [go_on, *use, *again]


def find_prediction(record: RunRecord) -> str:
    """The line that predicts with the model of a finished run."""
    commands = (command["line"] for command in _commands(record))
    return next(line for line in commands if line.startswith(("headstart predict ", "hs.predict(")))


def _repeat_command(record: RunRecord, objects: Mapping[str, str]) -> Mapping[str, str]:
    """The line that makes the run again."""
    if not objects:
        return {"says": _REPEAT, "line": f"headstart train --repeat {_quote(record.path)}"}
    given = ", ".join([repr(str(_shorten_path(record.path))), *objects])
    return {"says": f"{_REPEAT}; {'; '.join(objects.values())}", "line": f"hs.repeat({given})"}


def _list_objects(record: RunRecord) -> Mapping[str, str]:
    """What the run was given in Python, which no command has: its argument, and what that stands for."""
    own_module = bool((record.plan.get("began") or {}).get("module"))
    data, began = record.config.get("data"), record.plan.get("began") or {}
    own_data = not (isinstance(data, dict) and data.get("source"))
    objects = {"model=net": "net: the module as it was given to hs.train"} if own_module else {}
    objects |= {"data=images": "images: as they were given to hs.train"} if own_data else {}
    for name in ("loss", "transform"):
        there = began.get(name) or (name == "transform" and began.get("framing"))
        objects |= {f"{name}={name}": f"{name}: as it was given to hs.train"} if there else {}
    own = "metrics: as they were given to hs.train"
    return objects | ({"metrics=metrics": own} if record.metric in record.own_metrics else {})


Command = Mapping[str, str]


def _shell_commands(record: RunRecord) -> tuple[Command, Command, Sequence[Command]]:
    """The command that continues the run, the one that ends it at its best epoch, and those that use its model."""
    run, source = _quote(record.path), _quote(Path(str(record.plan.get("data", {}).get("source", "DATA"))))
    config = _quote(record.path / "config.yaml")
    go_on = {"says": _GO_ON, "line": f"headstart train {source} --config {config} --out {run} --resume"}
    finish = {"says": _FINISH, "line": f"headstart finish {run}"}
    use = [
        {"says": _PREDICT, "line": f"headstart predict {run} IMAGE_OR_FOLDER"},
        {"says": _EVALUATE, "line": f"headstart evaluate {run} DATA"},
    ]
    section = record.config.get("head")
    head = {"at": section.get("at", "auto") if isinstance(section, dict) else "auto", **record.plan.get("head", {})}
    if loads_in_timm(record.plan.get("model", {}), head):
        bundle = _tidy(str(_shorten_path(record.path) / "model"))
        line = f"timm.create_model({'local-dir:' + bundle!r}, pretrained=True)"
        use.append({"says": "Load it in plain timm, in Python", "line": line})
    return go_on, finish, use


def _python_commands(record: RunRecord, objects: Mapping[str, str]) -> tuple[Command, Command, Sequence[Command]]:
    """The commands of ``_shell_commands`` for a run that was given objects of Python, which no command can make."""
    run = str(_shorten_path(record.path))
    config = f"hs.load_config({str(_shorten_path(record.path) / 'config.yaml')!r})"
    given, meaning = ", ".join(objects), "; ".join(objects.values())
    module = ", model=net" if "model=net" in objects else ""
    framed = ", transform=transform" if (record.plan.get("began") or {}).get("framing") else ""
    opened = f"hs.open_run({run!r}{module})"
    net = f"; {objects['model=net']}" if module else ""
    go_on = {"says": f"{_GO_ON}; {meaning}", "line": f"hs.train({config}, {given}, resume=True)"}
    finish = {"says": f"{_FINISH}; {meaning}", "line": f"hs.finish({run!r}, {given})"}
    use = [
        {"says": f"{_PREDICT}{net}", "line": f"hs.predict({opened}, IMAGES{framed})"},
        {"says": _EVALUATE, "line": f"hs.evaluate({opened}, DATA{framed})"},
    ]
    return go_on, finish, use


def _quote(path: Path) -> str:
    text = _tidy(str(_shorten_path(path)))
    return "~/" + shlex.quote(text[2:]) if text.startswith("~/") else shlex.quote(text)


def _shorten_path(path: Path) -> Path:
    """The path as one would type it here."""
    whole = path.absolute()
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole


def _tidy(text: str) -> str:
    """Text without the home folder's name: a report is passed on."""
    home = str(Path.home())
    return text.replace(home + "/", "~/") if len(home) > 1 else text


def bar(value: float, *, interval: Interval | None, baseline: float | None, whole: float | None) -> Mapping[str, float]:
    """Places in per cent on the scale of the headline: 0 to ``whole``, or to a little beyond the largest number."""
    high = interval.high if interval else value
    largest = max(value, high, baseline or 0.0)
    top = whole if whole and largest <= whole else max(largest, 0.0) * 1.15 or 1.0
    places = {"value": value, "low": interval.low if interval else value, "high": high, "baseline": baseline or 0.0}
    return {name: round(100 * min(max(number / top, 0.0), 1.0), 2) for name, number in places.items()}


def count(value: object) -> str:
    """A whole number with thousands separated; a list's length; "–" for nothing."""
    if isinstance(value, list | tuple | dict):
        return f"{len(value):,}"
    return f"{value:,}" if isinstance(value, int) else "–"


def several(value: object, word: str) -> str:
    """A number and its noun: 1 epoch, 2 epochs."""
    text = count(value)
    return f"{text} {word}" if text == "1" else f"{text} {word}s"


def plain(value: object) -> str:
    """A value of the plan as one would write it: until: layer3, and none, and 32, 64."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {plain(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(inner) for inner in value)
    return "none" if value is None else str(value)


def rate(value: object) -> str:
    """A learning rate, short; "–" where there is none."""
    return f"{value:.3g}" if isinstance(value, int | float) and value else "–"


def duration(seconds: object) -> str:
    """Seconds as 1 h 02 min, 3 min 20 s or 4.2 s."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.1f} s"
