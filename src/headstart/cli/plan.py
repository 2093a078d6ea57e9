"""``headstart plan``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from headstart.cli.configured import check_names, read_command_config
from headstart.cli.output import table, to_json, wrap_lines, write
from headstart.config.flags import EVERY, parse_args
from headstart.reports.cautions import list_warnings
from headstart.reports.cells import cell
from headstart.reports.progress import Progress
from headstart.trackers.installed import refuse_missing_trackers


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Decide everything as ``headstart train`` would, and print it with the reasons; trains and writes nothing."""

    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = None
    """Folder of class folders (optionally under train/ val/ test/), or a CSV or Parquet table (else FILE's)."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """YAML file with any of the options below; flags win over it."""
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print the plan as one JSON object."""


def run(argv: Sequence[str]) -> int:
    """Print the plan: decisions, phases, groups of parameters and their rates."""
    args, flags = parse_args(Plan, argv, prog="headstart plan", sections=EVERY)
    config = read_command_config(args.data, args.config, flags)
    refuse_missing_trackers(config)
    check_names(config)
    from headstart import app  # imports torch

    with Progress(decisions=False) as progress:
        plan: Any = app.plan(config, watch=progress)
    facts = plan.to_dict() if hasattr(plan, "to_dict") else asdict(plan)
    write(to_json(facts) if args.json else format_plan(facts))
    return 0


def format_plan(plan: dict[str, Any]) -> str:
    """A plan (the content of plan.json) as text."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = (f"{cell(d['name'])}: {cell(d['value'])}  ({cell(d['reason'])})" for d in plan["decisions"])
    parts = [wrap_lines(lines, width=width)]
    warnings = list_warnings(plan)
    parts += [wrap_lines(warnings, width=width)] if warnings else []
    for index, phase in enumerate(plan["phases"], start=1):
        trained, frozen = phase["trainable_parameters"], phase["frozen_parameters"]
        head = f"phase {index} {phase['name']}: {phase['epochs']} epochs, {phase['steps']:,} steps"
        text = f"{head}; frozen: {phase['freeze']}; {trained:,} parameters train, {frozen:,} are frozen"
        parts.append(wrap_lines([text], width=width))
        rows = [(g["name"], g["lr"], g["weight_decay"], g["parameters"]) for g in phase["groups"]]
        parts.append(table(rows, header=("group", "lr", "weight decay", "parameters")))
    return "\n\n".join(parts)
