"""What activation checkpointing costs and spares: peak memory and CPU time of training steps, with and without it.

    python -m benchmarks.recompute --models resnet50 vit_tiny_patch16_224 convnext_atto

Every run is a process of its own with one compute thread: three steps of batch 32 at 224 pixels, AdamW, fp32; the last
two count. Memory is the process's largest resident size less what it was before the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_STEPS = 3


def measure(model: str, *, recompute: bool, batch: int) -> dict[str, float]:
    """In this process: MiB and CPU seconds per step."""
    import timm
    import torch

    from benchmarks.speed_job import MEAN, SIZE, STD, cpu_seconds, peak_mib
    from headstart.data.batch import Batch
    from headstart.training.rules import StepRules
    from headstart.training.state import TrainState
    from headstart.training.step import train_step

    torch.manual_seed(0)
    net = timm.create_model(model, num_classes=2)
    state = TrainState(net, torch.optim.AdamW(net.parameters(), fused=True))
    made = Batch(
        pixels=torch.randint(0, 256, (batch, 3, SIZE, SIZE), dtype=torch.uint8), targets=torch.arange(batch) % 2,
        indices=torch.arange(batch), keys=("",) * batch, mean=torch.tensor(MEAN), std=torch.tensor(STD), size=batch,
    )  # fmt: skip
    before, marks = peak_mib(), []
    for _ in range(_STEPS):
        train_step(state, made, rules=StepRules(recompute=recompute))
        marks.append(cpu_seconds())
    return {"mib": peak_mib() - before, "seconds": (marks[-1] - marks[0]) / (_STEPS - 1)}


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_tiny_patch16_224", "convnext_atto"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return
    print("| model | MiB | MiB recomputed | CPU s per step (min .. max) | recomputed |\n|---|---:|---:|---:|---:|")
    for model in arguments.models:
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(arguments.repeats):
            for recompute, rows in found.items():
                rows.append(_run({"model": model, "recompute": recompute, "batch": arguments.batch}))
        cells = [f"{statistics.median(row['mib'] for row in rows):,.0f}" for rows in found.values()]
        cells += [_spread([row["seconds"] for row in rows]) for rows in found.values()]
        print(f"| {model} | {' | '.join(cells)} |", flush=True)


def _run(job: dict[str, Any]) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.recompute", "--one", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


if __name__ == "__main__":
    main()
