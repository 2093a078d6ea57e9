"""``headstart models``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from headstart.cli.output import to_json, wrap_lines, write
from headstart.config.flags import parse_args
from headstart.errors import ConfigError
from headstart.reports.cells import cell

if TYPE_CHECKING:
    from headstart.models.catalog import ModelRow
    from headstart.models.latency import Machine, Measured, Verdict
    from headstart.models.preprocess import Preprocess

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_NORMALISATIONS = {  # by the names that the table shows
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
}
_NUMBERS = {  # an example, and whether it is whole
    "max_image_size": ("224", True),
    "min_top1": ("80", False),
    "min_cpu_speed": ("100", False),
    "min_gpu_speed": ("1000", False),
    "limit": ("20", True),
    "max_latency_ms": ("20", False),
    "batch_size": ("1", True),
    "threads": ("2", True),
}
_LONGEST_LICENCE = 18
_hint = tyro.conf.arg(metavar="NUMBER", help_behavior_hint="")
_text = tyro.conf.arg(metavar="TEXT", help_behavior_hint="")
_switch = tyro.conf.arg(help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class Models:
    """Models that headstart can open: parameters, input, normalisation, ImageNet top-1, published speed, licence."""

    pattern: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN", help_behavior_hint="(default: all)")
    ] = "*"
    """Part of a name, or a glob: 'resnet*', 'torchvision/*'."""
    max_params: Annotated[str | None, _hint] = None
    """Largest number of parameters, e.g. 5M."""
    min_params: Annotated[str | None, _hint] = None
    """Smallest number of parameters, e.g. 300k."""
    max_image_size: Annotated[str | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Largest input, e.g. 224."""
    family: Annotated[str | None, _text] = None
    """The library's module that defines it, e.g. resnet, convnext, vision_transformer."""
    tag: Annotated[str | None, _text] = None
    """Part of the weights' tag: how they were trained, e.g. in21k, clip, dino."""
    licence: Annotated[str | None, _text] = None
    """Part of the weights' licence, e.g. apache, mit; 'unknown' for those without one."""
    pretrained_only: Annotated[bool, _switch] = False
    """Leave out architectures without weights."""
    min_top1: Annotated[str | None, tyro.conf.arg(metavar="PERCENT", help_behavior_hint="")] = None
    """Lowest published ImageNet top-1, e.g. 80."""
    min_cpu_speed: Annotated[str | None, _hint] = None
    """Lowest published speed on a CPU, in images per second."""
    min_gpu_speed: Annotated[str | None, _hint] = None
    """Lowest published speed on a GPU, in images per second."""
    sort: Annotated[
        Literal["name", "params", "top1", "cpu-speed", "gpu-speed"], tyro.conf.arg(help_behavior_hint="(default: name)")
    ] = "name"
    """What comes first: the fewest parameters, the highest top-1, the highest speed."""
    limit: Annotated[str | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Only the first N."""
    measure: Annotated[bool, _switch] = False
    """Time each of them on this machine (random weights, nothing is fetched) and show those that no other one beats."""
    max_latency_ms: Annotated[str | None, _hint] = None
    """With --measure: longest median time of one forward pass, in milliseconds."""
    batch_size: Annotated[str | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """With --measure: images per forward pass."""
    threads: Annotated[str | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: torch's own)")] = None
    """With --measure: processor threads."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE", help_behavior_hint="(default: auto)")] = "auto"
    """With --measure: cpu, cuda, ...; auto: the accelerator if there is one."""
    all: Annotated[bool, _switch] = False
    """With --measure: show those that are beaten or too slow, too."""
    json: Annotated[bool, _switch] = False
    """Print one JSON list."""


def run(argv: Sequence[str]) -> int:
    """Print the models, or with ``--measure`` the times and which ones no other beats."""
    args, _ = parse_args(Models, argv, prog="headstart models")
    numbers = _numbers(args)
    _check_measure_options(args)
    from headstart.models.catalog import list_models  # imports torch
    from headstart.models.filters import Filters, apply_filters, order_rows

    filters = Filters(
        pretrained_only=args.pretrained_only, family=args.family, tag=args.tag, licence=args.licence,
        max_image_size=numbers["max_image_size"], min_top1=numbers["min_top1"],
        min_cpu_speed=numbers["min_cpu_speed"], min_gpu_speed=numbers["min_gpu_speed"],
        min_params=numbers["min_params"], max_params=numbers["max_params"],
    )  # fmt: skip
    found = apply_filters(list_models(args.pattern), filters)
    if args.sort != "name":
        found = order_rows(found, args.sort)
    rows = found[: numbers["limit"]]
    if args.measure:
        return _measure(args, numbers, rows)
    if args.json:
        write(to_json([facts(row) for row in rows]))
        return 0
    write(listing(rows))
    write("\n" + wrap_lines(_notes(rows, of=len(found))))
    return 0


def facts(row: ModelRow) -> dict[str, Any]:
    """What is known of a model, for ``--json``."""
    form, known = row.preprocess, row.published
    return {
        "model": row.spec,
        "family": row.family,
        "pretrained": row.pretrained,
        "parameters": row.parameters,
        "input": [form.height, form.width],
        "mean": list(form.mean),
        "std": list(form.std),
        "licence": row.licence,
        "top1": known.top1,
        "top1_size": known.top1_size,
        "cpu_images_per_second": known.cpu_images_per_second,
        "gpu_images_per_second": known.gpu_images_per_second,
    }


def listing(rows: Sequence[ModelRow]) -> str:
    """The table: one line per model, each column as wide as it needs."""
    lines = [("model", "params", "input", "top-1 %", "cpu/s", "gpu/s", "licence", "mean/std")]
    for row in rows:
        form, known = row.preprocess, row.published
        speeds = (_speed(known.cpu_images_per_second), _speed(known.gpu_images_per_second))
        sizes = (_millions(row.parameters), _size(form), _top1(row), *speeds)
        lines.append((cell(row.spec), *sizes, _licence(row), _normalisation(form)))
    return _align_columns(lines, words=(0, 6, 7))


def _align_columns(lines: Sequence[Sequence[str]], *, words: Sequence[int]) -> str:
    """Columns as wide as they need; ``words``: those to the left, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if place in words else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def parameters(text: str | None, *, flag: str) -> int | None:
    """A number of parameters such as 5M, 300k or 1.5B.  Raises: ConfigError: it is no such number."""
    if text is None:
        return None
    unit = text[-1:].lower() if text[-1:].isalpha() else ""
    try:
        return int(float(text[: len(text) - len(unit)]) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError) as error:
        raise ConfigError(f"{flag}: {text!r} is no number of parameters; give e.g. 5M or 300k") from error


def number(text: str, *, flag: str, example: str, whole: bool) -> Any:
    """A positive number, ``whole`` or not.  Raises: ConfigError: it is none."""
    try:
        value = int(text) if whole else float(text)
    except ValueError as error:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{flag}: {text!r} is not {kind}; give e.g. {flag} {example}") from error
    if not 0 < value < float("inf"):
        raise ConfigError(f"{flag}: {text} is not positive; give e.g. {flag} {example}")
    return value


def _numbers(args: Models) -> dict[str, Any]:
    """Every number that was typed, by its option.  Raises: ConfigError: one is no number, or out of range."""
    found: dict[str, Any] = {}
    for name, (example, whole) in _NUMBERS.items():
        text, flag = getattr(args, name), "--" + name.replace("_", "-")
        found[name] = None if text is None else number(text, flag=flag, example=example, whole=whole)
    for name in ("min_params", "max_params"):
        found[name] = parameters(getattr(args, name), flag="--" + name.replace("_", "-"))
    if found["min_top1"] is not None and found["min_top1"] > 100:
        raise ConfigError(f"--min-top1: {args.min_top1} is no percentage; give at most 100, e.g. --min-top1 80")
    return found


def _check_measure_options(args: Models) -> None:
    """Raises: ConfigError: an option of ``--measure`` stands without it."""
    given = {
        "--max-latency-ms": args.max_latency_ms is not None,
        "--batch-size": args.batch_size is not None,
        "--threads": args.threads is not None,
        "--device": args.device != "auto",
        "--all": args.all,
    }
    for flag in (flag for flag, is_given in given.items() if is_given and not args.measure):
        raise ConfigError(f"{flag} is about times measured on this machine; add --measure")


def _measure(args: Models, numbers: Mapping[str, Any], rows: Sequence[ModelRow]) -> int:
    from headstart.models.latency import candidates, measure, this_machine, verdicts
    from headstart.training.precision import usable_device

    chosen = candidates(rows)
    machine = this_machine(
        usable_device(args.device), batch_size=numbers["batch_size"] or 1, threads=numbers["threads"]
    )
    timed = measure(chosen, machine, emit=_make_emitter(len(chosen)))
    found = verdicts(timed, max_latency_ms=numbers["max_latency_ms"])
    if args.json:
        write(to_json([_json_of_verdict(verdict, machine) for verdict in found]))
        return 0
    write("\n\n".join(part for part in _format_verdicts(found, machine, show_all=args.all) if part))
    return 0


def _make_emitter(total: int) -> Callable[[int, Measured], None]:
    def emit(number: int, measured: Measured) -> None:
        time = f"{measured.latency.median_ms:.2f} ms" if measured.latency else "not timed"
        sys.stderr.write(f"timed {number} of {total}: {cell(measured.row.spec)}  {time}\n")

    return emit


def _json_of_verdict(verdict: Verdict, machine: Machine) -> dict[str, Any]:
    times = verdict.measured.latency
    return facts(verdict.measured.row) | {
        "latency_ms": times and {"median": times.median_ms, "p10": times.p10_ms, "p90": times.p90_ms},
        "repeats": times and times.repeats,
        "best": verdict.best,
        "why_not": verdict.why,
        "machine": str(machine),
    }


def _format_verdicts(found: Sequence[Verdict], machine: Machine, *, show_all: bool) -> list[str]:
    """The table, the models that were not timed with the reason, and notes on what the numbers are of."""
    shown = [verdict for verdict in found if verdict.measured.latency and (verdict.best or show_all)]
    untimed = [verdict for verdict in found if verdict.measured.latency is None]
    header = ("model", "params", "input", "top-1 %", "median ms", "p10 .. p90") + (("",) if show_all else ())
    lines: list[tuple[str, ...]] = [header]
    for verdict in shown:
        row, times = verdict.measured.row, verdict.measured.latency
        assert times is not None
        spread = f"{times.p10_ms:.2f} .. {times.p90_ms:.2f}"
        values = (row.spec, _millions(row.parameters), _size(row.preprocess), _top1(row), f"{times.median_ms:.2f}")
        lines.append((*values, spread, *((verdict.why or "best",) if show_all else ())))
    notes = [_outcome(found, hidden=len(found) - len(shown) - len(untimed))]
    others = sum(verdict.measured.others for verdict in shown)
    if others:
        notes.append(f"{others} other weights of these architectures and sizes take the same time")
    notes.append(f"timed on {machine}; random weights; median of at least 10 passes and 1 s")
    notes += _top1_notes([verdict.measured.row for verdict in shown])
    missing = "\n".join(f"not timed: {cell(verdict.measured.row.spec)}: {cell(verdict.why)}" for verdict in untimed)
    return [_align_columns(lines, words=(0, 5, 6)) if shown else "", missing, wrap_lines(notes)]


def _outcome(found: Sequence[Verdict], *, hidden: int) -> str:
    """How many are best, or how far the fastest is from the limit; what is hidden."""
    timed = [(verdict.measured.latency.median_ms, verdict) for verdict in found if verdict.measured.latency]
    best = sum(verdict.best for verdict in found)
    sentence = f"{best} of {len(found)} are best: no other one here is as fast and as accurate"
    if not best and timed:
        milliseconds, verdict = timed[0]
        name = cell(verdict.measured.row.spec)
        sentence = f"none of {len(found)} is shown: the fastest, {name}, takes {milliseconds:.2f} ms"
    return sentence + (
        f"; {hidden} beaten, too slow or without a top-1 are left out (--all shows them)" if hidden else ""
    )


def _notes(rows: Sequence[ModelRow], *, of: int) -> list[str]:
    """Lines under the list: how many, what the short words mean, and where the facts come from."""
    from headstart.models.published import sources

    notes = [f"{len(rows):,} of {of:,} models" if len(rows) < of else f"{of:,} model{'s' * (of != 1)}"]
    used = {_normalisation(row.preprocess) for row in rows}
    meant = [f"{name} {_pair(*_NORMALISATIONS[name])}" for name in _NORMALISATIONS if name in used]
    if meant:
        notes.append("mean/std: " + "; ".join(meant))
    notes += _top1_notes(rows)
    facts = sources()
    known = {
        "cpu": any(row.published.cpu_images_per_second for row in rows),
        "gpu": any(row.published.gpu_images_per_second for row in rows),
    }
    return notes + [f"{kind}/s: {facts[kind]}" for kind, is_known in known.items() if is_known]


def _top1_notes(rows: Sequence[ModelRow]) -> list[str]:
    from headstart.models.published import sources

    notes = [f"top-1: {sources()['top1']}"] if any(row.published.top1 is not None for row in rows) else []
    if any("@" in _top1(row) for row in rows):
        notes.append("top-1 @N: at N pixels, not at the input size shown")
    return notes


def _normalisation(form: Preprocess) -> str:
    """A short word for mean and std, or the numbers."""
    rounded = tuple(tuple(round(value, 3) for value in values) for values in (form.mean, form.std))
    named = [name for name, values in _NORMALISATIONS.items() if rounded == values]
    return named[0] if named else _pair(form.mean, form.std)


def _pair(mean: Sequence[float], std: Sequence[float]) -> str:
    """``0.5/0.5``, or all channels where they differ: ``0.485,0.456,0.406/0.229,0.224,0.225``."""
    shown = [",".join(dict.fromkeys(f"{value:.3g}" for value in values)) for values in (mean, std)]
    return "/".join(shown)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def _size(form: Preprocess) -> str:
    return str(form.height) if form.height == form.width else f"{form.height}x{form.width}"


def _top1(row: ModelRow) -> str:
    known, size = row.published, row.image_size
    if known.top1 is None:
        return "-"
    return f"{known.top1:.2f}" + (f" @{known.top1_size}" if known.top1_size not in (None, size) else "")


def _speed(images_per_second: float | None) -> str:
    if images_per_second is None:
        return "-"
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.1f}"


def _licence(row: ModelRow) -> str:
    text = cell(row.licence or ("unknown" if row.pretrained else "-"))
    return text if len(text) <= _LONGEST_LICENCE else text[: _LONGEST_LICENCE - 1] + "…"
