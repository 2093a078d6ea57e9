"""``headstart embed``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from headstart.cli.configured import check_model
from headstart.cli.images import RowProgress, check_paths, tell_unreadable
from headstart.cli.output import table, write
from headstart.config.flags import parse_args
from headstart.config.home import expand_home
from headstart.errors import ConfigError, DataError
from headstart.prediction.output_names import EMBEDDING_FORMATS, refuse_output


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Features of images, one row each: what the head of a run's model, or of a pretrained one, is given."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|MODEL", help_behavior_hint="")]
    """Run folder or the bundle in it, or a model such as timm/resnet18."""
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...", help_behavior_hint="")]
    """Images, and folders that are searched for images."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: features.npz)")] = "features.npz"
    """Where they are written: .npz with paths (N) and values (N, D), or .parquet with columns path and values."""
    overwrite: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Replace the file of --out where it is there already."""
    device: str = "auto"
    """cpu, cuda, mps, xpu, ...; auto: the accelerator if there is one."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="INT")] = 32
    """Images computed together."""
    workers: Annotated[int, tyro.conf.arg(metavar="INT")] = 0
    """Processes that decode images; 0: the one that computes."""
    weights: str = "pretrained"
    """Of a MODEL: pretrained, none, or a file."""


def run(argv: Sequence[str]) -> int:
    """Write the features; unreadable images are left out and named on stderr."""
    args, _ = parse_args(Embed, argv, prog="headstart embed")
    paths = check_paths(args.paths, batch_size=args.batch_size, workers=args.workers, verb="embed")
    out = expand_home(args.out)
    refuse_output(out, overwrite=args.overwrite, formats=EMBEDDING_FORMATS)
    name = _check_model(args)
    from headstart.lazy_imports import collector_paused, load_libraries

    with collector_paused():
        load_libraries()
        from headstart.prediction.embedding import embed_paths, open_embedder, write_embeddings  # imports torch

    embedder = open_embedder(name, weights=args.weights, device=args.device)
    with RowProgress() as progress:
        found = embed_paths(embedder, paths, batch_size=args.batch_size, workers=args.workers, on_rows=progress)
    tell_unreadable(list(found.errors.items()), rest="headstart predict says why, of each")
    if not found.paths:
        raise DataError(f"none of the {len(found.errors)} images could be read")
    write_embeddings(found, out)
    rows = [("images", len(found.paths)), ("features", found.values.shape[1]), ("unreadable", len(found.errors))]
    write(table([*rows, ("file", out)]))
    return 0


def _check_model(args: Embed) -> str:
    """The model's name, or the folder of a run.  Raises: ModelError, ConfigError: there can be no such model."""
    folder = expand_home(args.model)
    if not folder.is_dir():
        check_model(args.model)
        return args.model
    if args.weights != "pretrained":
        raise ConfigError(f"--weights {args.weights}: {args.model} has its own weights; leave it out")
    return str(folder.absolute())
