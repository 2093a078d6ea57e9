"""``headstart describe``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from headstart.cli.output import write
from headstart.config.flags import parse_args
from headstart.config.rules import freeze_rule
from headstart.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Describe:
    """A model as a tree with shapes and parameters; its stages, its head, and what a freeze rule would freeze."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC", help_behavior_hint="")]
    """timm/NAME[.TAG], torchvision/NAME, hf-hub:ORG/NAME, a folder, or starter."""
    freeze: Annotated[str | None, tyro.conf.arg(metavar="RULE", help_behavior_hint="")] = None
    """Show what this rule freezes: backbone, conv, norm, until:NAME, stages:N, names:GLOB,..."""
    weights: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "none"
    """none, pretrained, or a local file."""
    image_size: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the weights' own)")
    ] = None
    """Pixels per side of the input."""


def run(argv: Sequence[str]) -> int:
    """Print the description."""
    args, _ = parse_args(Describe, argv, prog="headstart describe")
    try:
        rule = freeze_rule(args.freeze) if args.freeze is not None else None
    except ConfigError as error:
        raise ConfigError(f"--freeze: {error}") from error
    from headstart.models.describe import describe  # imports torch

    if args.weights == "none" and args.image_size is None:
        write(str(describe(args.spec, freeze=rule)))
        return 0
    from headstart.models.sources import open_model

    opened = open_model(args.spec, weights=args.weights, image_size=args.image_size)
    write(str(describe(opened, freeze=rule)))
    return 0
