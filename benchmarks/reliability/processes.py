"""P9 and P11: the same mathematics on any number of processes, and a lost process that ends all and is named.

    python -m benchmarks.reliability.processes gradients     float64, micro-batches x processes x losses x mixing
    python -m benchmarks.reliability.processes metrics       each image once, the same bits
    python -m benchmarks.reliability.processes lost --each 20

The ranks are those of tests/distributed/ranks.py: real processes with gloo on this machine.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.results import keep
from tests.reliability.processes import Ranks, pictures, ranks

HOW = ("kill", "error", "stop", "leave", "behind")


def gradients(run: Ranks, folder: str) -> None:
    """Largest relative difference of any step's gradient from that of one process in one piece."""
    worst, cases = 0.0, 0
    mixes = ({}, {"mixup": 0.5}, {"cutmix": 0.5})
    for loss, mixing in [*((loss, {}) for loss in ("plain", "weighted", "own")), *(("plain", m) for m in mixes[1:])]:
        (alone,) = run("gradients", world=1, folder=folder, loss=loss, accumulate=1, **mixing)
        for world, pieces, sharded in itertools.product((1, 2, 3, 4), (1, 2, 4, 8), (False, True)):
            if world == 1 and sharded:
                continue
            found = run(
                "gradients", world=world, folder=folder, loss=loss, accumulate=pieces, sharded=sharded, **mixing
            )
            worst = max(worst, *(difference(alone["gave"], one["gave"]) for one in found))
            cases += 1
    keep(
        "P9", what="float64 gradients, ragged batches: 1 to 4 processes x 1, 2, 4, 8 micro-batches, three losses, "
        "mixup and CutMix, whole models and shared out ones", goal="relative difference <= 1e-12",
        found=f"{worst:.1e} at most in {cases} cases", met=worst <= 1e-12,
        command="python -m benchmarks.reliability.processes gradients",
    )  # fmt: skip


def difference(alone: list[dict[str, Any]], cut: list[dict[str, Any]]) -> float:
    """Relative, of the steps' gradients, losses and weights."""
    found = [0.0]
    for one, other in zip(alone, cut, strict=True):
        for name in ("gradient", "loss", "weight"):
            first, second = (torch.tensor(value[name], dtype=torch.float64) for value in (one, other))
            found.append(float((first - second).norm() / first.norm()))
    return max(found)


def metrics(run: Ranks, folder: str) -> None:
    """Whether the predictions and metrics of so many images are the same bits on so many processes."""
    counts, worlds = [1, 2, 3, 7, 101], (1, 2, 3, 4, 8)
    (alone,) = run("metrics", world=1, folder=folder, counts=counts)
    same = 0
    for world in worlds:
        found = run("metrics", world=world, folder=folder, counts=counts)
        same += sum(all(one["gave"][place] == alone["gave"][place] for one in found) for place in range(len(counts)))
    total = len(counts) * len(worlds)
    keep(
        "P9", what="metrics and predictions of 1, 2, 3, 7 and 101 images on 1, 2, 3, 4 and 8 processes",
        goal=f"{total} of {total} identical", found=f"{same} of {total} to the bit", met=same == total,
        command="python -m benchmarks.reliability.processes metrics",
    )  # fmt: skip


def lost(run: Ranks, each: int) -> None:
    """Kill, error, stop, leave early, fall behind: all end, and the right rank is named by one of them."""
    draw, named, slowest, cases = random.Random(0), 0, dict.fromkeys(HOW, 0.0), 0
    for how in HOW:
        for _ in range(each):
            world = draw.choice((2, 3, 4))
            rank = draw.randrange(world)
            started = time.monotonic()
            found = run("failing", world=world, rank=rank, how=how, timeout=5.0)
            slowest[how] = max(slowest[how], time.monotonic() - started)
            said = [one["text"] for one in found if one["error"] in ("RunError", "Error")]
            right = said == ["it was this one"] if how == "error" else len(said) == 1 and f"rank {rank} (" in said[0]
            named += right
            cases += 1
            if not right:
                print(how, world, rank, found)
    times = ", ".join(f"{how} {seconds:.1f} s" for how, seconds in slowest.items())
    keep(
        "P11", what="a rank of 2 to 4 killed, raising, stopped, leaving early or falling behind (timeout 5 s)",
        goal="all end, the right rank named once, 100 of 100",
        found=f"{named} of {cases} ({times} at most, with the start)",
        met=named == cases >= 100, command=f"python -m benchmarks.reliability.processes lost --each {each}",
        note="one machine, gloo; NCCL was not run",
    )  # fmt: skip


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gradients", "metrics", "lost"))
    parser.add_argument("--each", type=int, default=20)
    asked = parser.parse_args()
    with ranks() as run, tempfile.TemporaryDirectory() as folder:
        match asked.what:
            case "gradients":
                gradients(run, pictures(Path(folder), 5, 5, 5))
            case "metrics":
                metrics(run, pictures(Path(folder), 45, 45, 45))
            case _:
                lost(run, asked.each)


if __name__ == "__main__":
    main()
