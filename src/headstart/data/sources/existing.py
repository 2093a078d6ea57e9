"""Whether there is a source at all: answered without torch, before anything is loaded."""

from __future__ import annotations

import difflib
from pathlib import Path

from headstart.config.home import expand_home
from headstart.config.schema import Data
from headstart.data.decoding.decode import printable
from headstart.errors import DataError
from headstart.wording import option

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
LIST_SUFFIXES = frozenset({".txt", ".lst"})


def existing_source(data: Data) -> Path:
    """The folder or table that ``data.source`` names.

    Raises:
        DataError: it is missing, or neither.
    """
    if data.source is None:
        raise DataError("data.source: no data given; give a folder of class folders or a table: headstart train DATA")
    source = expand_home(data.source)
    if not source.exists():
        raise DataError(
            f"data.source: there is no {printable(source.absolute())}{_near(source)}; give a folder of class folders, "
            f"or a CSV or Parquet table"
        )
    if source.is_dir() and (run := _find_run(source)) is not None:
        raise DataError(
            f"data.source: {printable(source)} is the folder of a run, not of images; give the images, and the run "
            f"as the model that is begun with: {option('model', printable(run))}"
        )
    if not source.is_dir() and not source.is_file():
        raise DataError(
            f"data.source: {printable(source)} is a pipe or a device; give a folder of class folders, or a CSV or "
            f"Parquet table"
        )
    if not source.is_dir() and source.suffix.lower() not in TABLE_SUFFIXES | LIST_SUFFIXES:
        raise DataError(
            f"data.source: {printable(source)} is neither a folder nor a table; accepted: a folder of class folders, "
            f"{', '.join(sorted(TABLE_SUFFIXES | LIST_SUFFIXES))}"
        )
    return source


def _near(source: Path) -> str:
    """The name beside it that was probably meant."""
    beside = [path.name for path in source.absolute().parent.glob("*") if not path.name.startswith(".")]
    found = difflib.get_close_matches(source.name, beside, n=1, cutoff=0.7)
    return f", did you mean {printable(source.with_name(found[0]))}?" if found else ""


def _find_run(source: Path) -> Path | None:
    """The run that the folder is, or whose bundle it is."""
    if (source / "plan.json").is_file() and (source / "config.yaml").is_file():
        return source
    return source if (source / "headstart.json").is_file() else None
