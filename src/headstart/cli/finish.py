"""``headstart finish``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from headstart.cli.output import list_paths, result, write
from headstart.config.flags import parse_args
from headstart.config.home import expand_home
from headstart.reports.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Make model, predictions and report of a run that was stopped, at its best epoch so far; it can go on later."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """Run folder."""
    device: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: the run's)")] = None
    """Where it is evaluated: cpu, cuda, mps, xpu, ..."""
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print the result as one JSON object."""


def run(argv: Sequence[str]) -> int:
    """Finish the run, and print the metrics and where everything is."""
    args, _ = parse_args(Finish, argv, prog="headstart finish")
    from headstart import app  # imports torch

    with Progress() as progress:
        done = app.finish(expand_home(args.run), device=args.device, watch=progress)
    write(result(done, as_json=args.json))
    if not args.json:
        write("\n" + list_paths(done.path))
    return 0
