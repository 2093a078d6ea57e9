"""``headstart train``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from headstart.cli.configured import check_names, read_command_config
from headstart.cli.launch import check_there, launch, wants_processes
from headstart.cli.output import list_paths, result, write
from headstart.config.flags import EVERY, parse_args
from headstart.config.home import expand_home
from headstart.config.load import is_of_run
from headstart.config.metric import refuse_unknown
from headstart.config.schema import Config
from headstart.errors import ConfigError, Error, OthersFailed
from headstart.reports.progress import Progress
from headstart.trackers.installed import refuse_missing_trackers


@dataclass(frozen=True, kw_only=True)
class Train:
    """Fine-tune a model on your images, and write a run folder with the model and a report."""

    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = None
    """Folder of class folders (optionally under train/ val/ test/), or a CSV or Parquet table (else FILE's)."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """YAML file with any of the options below; flags win over it."""
    repeat: Annotated[str | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """Make the run in this folder again, to the bit, by its options and its choices; into --out, else RUN-repeat."""
    resume: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Go on from the last good checkpoint of the run folder; starts the run where there is none."""
    allow_inexact: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Resume even where versions, threads, device, weights or code have changed; log and report say what changed."""
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print the result as one JSON object."""


def run(argv: Sequence[str]) -> int:
    """Train, and print the metrics and where everything is."""
    args, flags = parse_args(Train, argv, prog="headstart train", sections=EVERY)
    first = os.environ.get("RANK", "0") == "0"
    try:
        if args.resume and args.config and "out" not in flags and is_of_run(expand_home(args.config)):
            flags["out"] = str(expand_home(args.config).parent)  # the run is where its record is
        config = _read_config(args, flags)
        refuse_missing_trackers(config)
        if not args.resume:  # a finished run is answered without its data
            check_names(config)
    except Error as error:
        raise error if first else OthersFailed(exit_code=error.exit_code) from error  # said once
    if (processes := wants_processes(config)) > 1:
        check_there(config, processes)
        return launch(argv, processes=processes)
    from headstart import app  # imports torch

    with Progress() as progress:
        if args.repeat:
            done = app.repeat(args.repeat, config=config, allow_inexact=args.allow_inexact, watch=progress)
        else:
            done = app.train(config, resume=args.resume, allow_inexact=args.allow_inexact, watch=progress)
    if not first:
        return 0
    write(result(done, as_json=args.json))
    if not args.json:
        write("\n" + list_paths(done.path))
    return 0


def _read_config(args: Train, flags: Mapping[str, object]) -> Config:
    """The options of this run, or those of the run that is made again.

    Raises: ConfigError: a value is wrong, or --repeat stands beside what it does not go with.
    """
    if args.repeat is None:
        return read_command_config(args.data, args.config, flags)
    for name, given in (("config", args.config), ("resume", args.resume)):
        if given:
            raise ConfigError(
                f"repeat: --{name} does not go with it: the options are those of {args.repeat}; leave --{name} out"
            )
    from headstart.runs.repeat import repeat_config  # imports torch

    config = repeat_config(expand_home(args.repeat), data=args.data, flags=flags)
    refuse_unknown(config.metric)
    return config
