"""What commands on images share: the paths that were typed, progress, and images that cannot be read."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from headstart.config.home import expand_home
from headstart.errors import ConfigError, DataError
from headstart.reports.cells import cell

_SHOWN_UNREADABLE = 20  # images that are named on stderr


def check_paths(paths: Sequence[str], *, batch_size: int | None, workers: int, verb: str) -> list[Path]:
    """The paths of images and folders.  Raises: ConfigError, DataError: what was typed can be nothing."""
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch-size: {batch_size} is not positive; give at least 1, e.g. --batch-size 1")
    if workers < 0:
        raise ConfigError(f"--workers: {workers} is no number of processes; give at least 0, e.g. --workers 2")
    if not paths:
        raise ConfigError(f"PATH is missing; give images or folders, e.g. headstart {verb} runs/photos new/")
    found = [expand_home(path) for path in paths]
    missing = next((path for path in found if not path.exists()), None)
    if missing is not None:
        raise DataError(f"{cell(missing.absolute())}: there is no such file or folder")
    return found


def tell_unreadable(unreadable: Sequence[tuple[str, str]], *, rest: str = "their rows say why") -> None:
    """Name the images that cannot be read on stderr, with the reasons: the first of them, and how many more.

    ``rest``: what of the others.
    """
    for path, reason in unreadable[:_SHOWN_UNREADABLE]:
        sys.stderr.write(f"headstart: {cell(path)}: {cell(reason)}\n")
    if (more := len(unreadable) - _SHOWN_UNREADABLE) > 0:
        sys.stderr.write(f"headstart: more images that cannot be read: {more:,}; {rest}\n")


class RowProgress:
    """How many images are done, on stderr: at most one line in two seconds, rewritten where stderr is a terminal."""

    def __init__(self) -> None:
        self._started = self._told = time.monotonic()
        self._lively = sys.stderr.isatty()

    def __enter__(self) -> RowProgress:
        return self

    def __call__(self, done: int, total: int) -> None:
        """Tell that so many images of all are done."""
        now = time.monotonic()
        if now - self._told < (0.2 if self._lively else 10) and done < total:
            return
        self._told = now
        rate = done / max(now - self._started, 1e-9)
        text = f"{done:,} of {total:,} images, {rate:,.0f} a second"
        sys.stderr.write(f"\r{text}\x1b[K" if self._lively else f"headstart: {text}\n")
        sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self._lively:
            sys.stderr.write("\n")
