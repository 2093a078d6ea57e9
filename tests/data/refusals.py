"""What a folder or table is refused with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.errors import DataError


def message(load: Callable[..., object], source: Path, **options: object) -> str:
    """The error of ``load`` on a source, as a user reads it."""
    with pytest.raises(DataError) as caught:
        load(source, **options)
    return str(caught.value)
