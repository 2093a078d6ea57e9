"""Where predictions may be written, answered before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headstart.errors import ConfigError

FORMATS = (".csv", ".jsonl", ".parquet")
EMBEDDING_FORMATS = (".npz", ".parquet")


def refuse_output(out: Path, *, overwrite: bool, formats: Sequence[str] = FORMATS) -> None:
    """Raises: ConfigError: the name says no known form, or the file is there already."""
    if out.suffix.lower() not in formats:
        raise ConfigError(
            f"--out: {out.name}: accepted are names that end in {', '.join(formats)}, e.g. --out found{formats[0]}"
        )
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; give a file, e.g. --out {out / f'found{formats[0]}'}")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out: {out} is there already; give another name, or --overwrite")
