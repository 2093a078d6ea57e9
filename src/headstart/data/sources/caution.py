"""What a person should look at in the data before trusting what a run measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Caution:
    """A warning: a sentence with how many there are and an example, both once more by themselves, and what to do."""

    text: str
    count: int
    example: str
    advice: str
