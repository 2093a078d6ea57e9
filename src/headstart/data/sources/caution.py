"""What a person should look at in the data before trusting what a run measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Caution:
    """A warning: its ``text`` with ``count`` and ``example`` in it, both once more by themselves, and ``advice``."""

    text: str
    count: int
    example: str
    advice: str
