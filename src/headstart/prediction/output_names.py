"""Where predictions may be written, answered before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from headstart.errors import ConfigError
from headstart.wording import option, switch

FORMATS = (".csv", ".jsonl", ".parquet")
EMBEDDING_FORMATS = (".npz", ".parquet")


def refuse_output(out: Path, *, overwrite: bool, formats: Sequence[str] = FORMATS) -> None:
    """Raises: ConfigError: the name says no known form, or the file is there already."""
    name, example = option("out"), f"found{formats[0]}"
    if out.suffix.lower() not in formats:
        raise ConfigError(
            f"{name}: {out.name}: accepted are names that end in {', '.join(formats)}, e.g. {option('out', example)}"
        )
    if out.is_dir():
        raise ConfigError(f"{name}: {out} is a folder; give a file, e.g. {option('out', out / example)}")
    if os.path.lexists(out) and not overwrite:  # a link to nothing is a name that is taken
        raise ConfigError(f"{name}: {out} is there already; give another name, or {switch('overwrite')}")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{name}: {out.absolute().parent}: there is no such folder; make it, or give another name")
