"""What a stored row was measured on: a page compares rows of equal work, and tells others apart or refuses them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class MixedWorkError(Exception):
    """Rows of different work would stand in one table."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work of one timed run. Its arithmetic is no part of it: tables compare that, and name it in each row."""

    train_images: int
    val_images: int
    epochs: int
    batch: int
    threads: int
    cpu: str
    cores: int

    @property
    def conditions(self) -> tuple[object, ...]:
        """What must be equal even where images and epochs are scaled."""
        return self.batch, self.threads, self.cpu, self.cores

    @property
    def photos(self) -> str:
        """Training and validation images in words."""
        return f"{self.train_images:,} + {self.val_images:,}"

    def as_row(self) -> Row:
        """The form in which a result keeps it."""
        return asdict(self)


def cpu_name() -> str:
    """The processor, as Linux names it where that runs."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_workload(row: Row) -> Workload:
    """The work of a row; one from before rows carried it has the same facts as columns, and ran on one thread.

    Raises: KeyError: the row says too little to be compared with any other.
    """
    stored = row.get("workload")
    known = {"threads": 1, **row, **row["machine"]} if stored is None else stored
    return Workload(**{field.name: known[field.name] for field in fields(Workload)})


def refuse_mixed(found: Iterable[tuple[str, Mapping[str, Any]]], *, page: str, said: Mapping[str, Any]) -> None:
    """Refuse to write a page from rows whose work is not the one that the page describes.

    ``found``: the name of each row and its work; ``said``: what the page says of all of them.

    Raises: MixedWorkError: with the first fact that differs, and what to do.
    """
    for name, work in found:
        for fact, value in said.items():
            if work[fact] != value:
                raise MixedWorkError(
                    f"{page}: {name} was measured with {fact} {work[fact]!r}, the page says {value!r}; "
                    "take such lines out of benchmarks/results and measure them again"
                )
