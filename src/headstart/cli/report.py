"""``headstart report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from headstart.cli.output import write
from headstart.config.flags import parse_args
from headstart.config.home import expand_home


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a run's report.html again, and print where it is."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """Run folder."""


def run(argv: Sequence[str]) -> int:
    """Write the report and print its path."""
    args, _ = parse_args(Report, argv, prog="headstart report")
    from headstart.reports.report import write_report  # imports matplotlib

    write(str(write_report(expand_home(args.run))))
    return 0
