"""A measurement of ``benchmarks.speed``: what one tool is to do, and the clock that every tool runs with.

Torch is not imported here: the process that starts the tools stays small.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, CROP = 224, 0.875
FROZEN = {"resnet18": "layer3", "resnet50": "layer3", "vit_tiny_patch16_224": "blocks.7"}
"""The last frozen layer of the suffix table."""
TRAINED = {
    "resnet18": ("layer4", "fc"), "resnet50": ("layer4", "fc"),
    "vit_tiny_patch16_224": ("blocks.8", "blocks.9", "blocks.10", "blocks.11", "norm", "fc_norm", "head"),
}  # fmt: skip
"""What the same freezing leaves to train, for the peers."""
LIBRARIES = ("torch", "torchvision", "timm", "pillow", "fastai", "transformers", "accelerate", "lightning")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one tool. ``work``: head, suffix, full, evaluate, growth, or head_same_bits and suffix_same_bits."""

    tool: str
    work: str
    model: str
    data: str
    weights: str
    epochs: int
    batch: int = 32
    bf16: bool = False
    channels_last: bool = False
    auto: bool = False
    """Headstart chooses the arithmetic itself."""
    views: int = 1
    """Headstart only: with more than one, random changes."""
    workers: int = 0
    limit: bool = False
    """Headstart's head and evaluation only: measure the limit of the same work, too."""
    tcmalloc: bool = False
    """Headstart only: with tcmalloc, where that is installed."""

    def text(self) -> str:
        """As one argument of a command."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def arithmetic(self) -> str:
        """In words."""
        if self.auto:
            return "auto"
        return f"{'bf16' if self.bf16 else 'fp32'}{' channels_last' if self.channels_last else ''}"

    def images(self, split: str) -> int:
        """Files of a split."""
        return sum(1 for _ in Path(self.data, split).glob("*/*"))


def read_job() -> Job:
    """From the command line of a tool's own process."""
    return Job(**json.loads(sys.argv[1]))


def cpu_seconds() -> float:
    """User and system time of this process and of those that it started and that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def peak_mib() -> int:
    """Largest resident memory of this process since its start (its ru_maxrss would begin with its parent's)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) >> 10


class Laps:
    """CPU seconds by part; a part that comes again gets another entry."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self.first = self.last = cpu_seconds()

    def lap(self, name: str) -> None:
        """What has passed since the last lap (or the start) was ``name``."""
        now = cpu_seconds()
        self.parts.setdefault(name, []).append(round(now - self.last, 4))
        self.last = now

    @property
    def total(self) -> float:
        """From the start to the last lap."""
        return self.last - self.first


def report(job: Job, laps: Laps, *, accuracy: float | None, **more: Any) -> None:
    """Print the result as the last line of the process."""
    found = {
        **dataclasses.asdict(job), "arithmetic": job.arithmetic, "cpu_seconds": round(laps.total, 3),
        "parts": laps.parts, "peak_mib": peak_mib(), "accuracy": accuracy,
        "train_images": job.images("train"), "val_images": job.images("val"), "versions": _versions(), **more,
    }  # fmt: skip
    print(json.dumps(found), flush=True)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        if name in sys.modules or name in ("pillow",):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found
