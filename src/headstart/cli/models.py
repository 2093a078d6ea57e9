"""``headstart models``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from headstart.cli.output import cell, to_json, write
from headstart.config.flags import parse_args
from headstart.errors import ConfigError

if TYPE_CHECKING:
    from headstart.models.catalog import ModelRow

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


@dataclass(frozen=True, kw_only=True)
class Models:
    """Models that headstart can open: parameters, input size, mean and standard deviation of the input."""

    pattern: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN", help_behavior_hint="(default: all)")
    ] = "*"
    """Part of a name, or a glob: 'resnet*', 'torchvision/*'."""
    max_params: Annotated[str | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="")] = None
    """Largest number of parameters, e.g. 5M."""
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print one JSON list."""


def run(argv: Sequence[str]) -> int:
    """Print the models."""
    args, _ = parse_args(Models, argv, prog="headstart models")
    limit = parameters(args.max_params) if args.max_params is not None else None
    from headstart.models.catalog import list_models  # imports torch

    rows = list_models(args.pattern, max_params=limit)
    if args.json:
        write(to_json([facts(row) for row in rows]))
        return 0
    width = max(len(row.spec) for row in rows)
    write(f"{'model':<{width}}  {'parameters':>13}  {'input':>9}  mean; std")
    for row in rows:  # line by line: counting parameters takes 0.1 s each
        known = facts(row)
        size = "x".join(map(str, known["input"]))
        mean, std = (" ".join(f"{value:.3f}" for value in known[name]) for name in ("mean", "std"))
        write(f"{cell(row.spec):<{width}}  {known['parameters']:>13,}  {size:>9}  {mean}; {std}")
    return 0


def facts(row: ModelRow) -> dict[str, Any]:
    """What is shown of a model."""
    form = row.preprocess
    return {
        "model": row.spec,
        "parameters": row.parameters,
        "input": [form.height, form.width],
        "mean": list(form.mean),
        "std": list(form.std),
        "licence": row.licence,
    }


def parameters(text: str) -> int:
    """A number of parameters such as 5M, 300k or 1.5B.

    Raises: ConfigError: it is no such number.
    """
    unit = text[-1:].lower() if text[-1:].isalpha() else ""
    try:
        return int(float(text[: len(text) - len(unit)]) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError) as error:
        raise ConfigError(f"--max-params: {text!r} is no number of parameters; give e.g. 5M or 300k") from error
