"""``headstart demo``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from headstart.cli.output import result, table, write
from headstart.config.flags import parse_args
from headstart.reports.progress import Progress

COMPARISON = (
    "This shows the way, not what pretrained weights gain: digits are so far from photos that random weights reach\n"
    "0.993 here (recipe full, three seeds). On photos they gain: the same starter on flowers 0.68 against 0.60."
)
"""What the demo's figure is to be held against, as docs/measured/results.md has it."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The whole path, offline: fine-tune the starter on handwritten digits (UCI, CC BY 4.0) and write a report."""

    out: Annotated[str, tyro.conf.arg(metavar="RUN")] = "runs/demo"
    """Run folder."""
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print the result as one JSON object."""


def run(argv: Sequence[str]) -> int:
    """Train the demo, and print its metrics and where the report is."""
    args, _ = parse_args(Demo, argv, prog="headstart demo")
    from headstart.demo import run as train_demo  # imports torch

    with Progress() as progress:
        done = train_demo(Path(args.out), progress)
    write(result(done, as_json=args.json))
    if not args.json:
        write(f"\n{COMPARISON}")
        write("\n" + table([("run", done.path), ("report", done.path / "report.html")]))
    return 0
