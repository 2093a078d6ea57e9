"""``headstart export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from headstart.cli.configured import check_run
from headstart.cli.output import table, to_json, write
from headstart.config.flags import parse_args
from headstart.config.home import expand_home
from headstart.errors import ConfigError
from headstart.exports.formats import Exactness, FormatName, Placement, check_format
from headstart.reports.cells import cell


@dataclass(frozen=True, kw_only=True)
class Export:
    """A finished run's model for other runtimes, compared with PyTorch on real images before it is there."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """Run folder, or the bundle in it."""
    to: FormatName | None = None
    """onnx; openvino; pt2: torch.export's; timm: a folder that timm opens; hub-folder: that with a model card."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: RUN/exports/FORMAT)")] = (
        None
    )
    """The folder to write."""
    preprocess: Placement = "auto"
    """inside: the file takes uint8 pictures of any size; outside: what the model takes; auto: inside where it can."""
    precision: Exactness = "fp32"
    """The arithmetic of the export."""
    images: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="PATH...", help_behavior_hint="(default: the run's validation images)")
    ] = ()
    """Images to compare on, or folders of them."""
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print the result as one JSON object."""


def run(argv: Sequence[str]) -> int:
    """Export the run, and print what the comparison with PyTorch showed."""
    args, _ = parse_args(Export, argv, prog="headstart export")
    if args.to is None:
        raise ConfigError(f"--to is missing; give a format, e.g. headstart export {args.run} --to onnx")
    check_format(args.to, preprocess=args.preprocess, precision=args.precision)
    folder = check_run(args.run)
    from headstart.exports.export import export  # imports torch

    made = export(
        folder,
        to=args.to,
        out=None if args.out is None else expand_home(args.out),
        preprocess=args.preprocess,
        precision=args.precision,
        images=[expand_home(path) for path in args.images] or None,
    )
    write(to_json(asdict(made)) if args.json else describe(made))
    return 0


def describe(made: Any) -> str:
    """The result as a table and its notes below it."""
    rows: list[Sequence[object]] = [
        ("format", f"{made.to}, {made.precision}, preprocessing {made.preprocess}"),
        ("file", made.file),
        ("size", f"{made.size / 1e6:,.1f} MB"),
        ("largest difference from PyTorch", f"{made.difference:.2g}, on {made.worst}"),
        ("from the run's own predictions", f"{made.own_difference:.2g}"),
        ("images per second in PyTorch", f"{made.torch_speed:,.0f}"),
        ("images per second of the export", f"{made.speed:,.0f}"),
        ("without headstart", f"python {made.path / 'predict.py'} IMAGE..."),
    ]
    return "\n\n".join([table(rows), *map(cell, made.notes)])
