"""Published facts of models: exact parameter counts, ImageNet top-1, speeds; from a table in the package, with sources.

``scripts/make_published.py`` makes the table, ``published.csv``, and names its sources in the lines that begin with #.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Machine = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of one spec; ``top1`` in percent at ``top1_size`` pixels, speeds in images per second at the
    weights' own input size, ``gflops`` as torchvision publishes them (multiply-adds, in billions)."""

    parameters: int | None = None
    top1: float | None = None
    top1_size: int | None = None
    cpu_images_per_second: float | None = None
    gpu_images_per_second: float | None = None
    gflops: float | None = None

    def images_per_second(self, machine: Machine) -> float | None:
        """The published speed on that machine."""
        return self.cpu_images_per_second if machine == "cpu" else self.gpu_images_per_second


NOTHING = Published()


def look_up_published(spec: str) -> Published:
    """What the table has for ``timm/NAME.TAG`` or ``torchvision/NAME.TAG``; all None when it has nothing."""
    return _table()[1].get(spec, NOTHING)


def sources() -> Mapping[str, str]:
    """Where the facts come from, by kind: parameters, top1, cpu, gpu."""
    return _table()[0]


@cache
def _table() -> tuple[Mapping[str, str], Mapping[str, Published]]:
    lines = (files("headstart") / "models" / "published.csv").read_text(encoding="utf-8").splitlines()
    notes = [line[1:].partition(":") for line in lines if line.startswith("#")]
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    found = {
        row["model"]: Published(
            parameters=int(row["parameters"]) if row["parameters"] else None,
            top1=_number(row["top1"]),
            top1_size=int(row["top1_size"]) if row["top1_size"] else None,
            cpu_images_per_second=_number(row["cpu_images_per_second"]),
            gpu_images_per_second=_number(row["gpu_images_per_second"]),
            gflops=_number(row["gflops"]),
        )
        for row in rows
    }
    return {kind.strip(): text.strip() for kind, _, text in notes}, found


def _number(text: str) -> float | None:
    return float(text) if text else None
