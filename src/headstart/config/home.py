"""``~`` in paths that people type or write into a file, where no shell has seen them."""

from __future__ import annotations

import os
from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """The path with the home folder for ``~`` and ``~USER``; as it is for a user that there is not."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for an unknown user
