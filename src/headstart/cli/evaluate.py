"""``headstart evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from headstart.cli.configured import check_data, check_run, read_command_config
from headstart.cli.output import result, write
from headstart.config.flags import parse_args
from headstart.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Metrics of a finished run's model on labelled images: those of a test split, else of a val split, else all.

    Where the run was trained on some of them, its own test or validation images are taken if most of these are there,
    else all but those that it was trained on; what was left out is said.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """Run folder, or the bundle in it."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help_behavior_hint="")]
    """Folder of class folders, or a table."""
    device: str = "auto"
    """cpu, cuda, mps, xpu, ...; auto: the accelerator if there is one."""
    include_trained: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Evaluate images that the run was trained on as well (exact copies count as the same image)."""
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print the result as one JSON object."""


def run(argv: Sequence[str]) -> int:
    """Print the metrics."""
    args, flags = parse_args(Evaluate, argv, prog="headstart evaluate", sections=("data",))
    idle = [name for name in ("data.val", "data.test", "data.group", "data.log") if name in flags]
    if idle:
        raise ConfigError(f"{', '.join(idle)}: has no meaning for evaluate, which splits nothing; leave it out")
    config = read_command_config(args.data, None, flags)
    run = check_run(args.run)
    check_data(config.data)
    from headstart.predictor import evaluate_run  # imports torch

    done = evaluate_run(run, config.data, device=args.device, include_trained=args.include_trained)
    write(result(done, as_json=args.json))
    return 0
