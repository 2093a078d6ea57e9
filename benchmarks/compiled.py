"""Training steps with and without torch.compile on a CPU: what a step takes, and what compiling takes.

    OMP_NUM_THREADS=1 python -m benchmarks.compiled --models resnet18 vit_tiny_patch16_224 mobilenetv3_small_100

fp32, channels_last, batches of 32 at 224 pixels, AdamW; CPU seconds of the process and the compilers it starts. The
first step compiles; the mean of the third and fourth counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import timm
import torch
from torch.nn import functional

from benchmarks.speed_job import SIZE, cpu_seconds

_STEPS, _COUNTED = 4, 2


def steps(name: str, *, compiled: bool, batch: int = 32) -> tuple[float, float]:
    """CPU seconds of the first step, and of a later one."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2).train().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 2
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    forward = torch.compile(model) if compiled else model
    marks = [cpu_seconds()]
    for _ in range(_STEPS):
        functional.cross_entropy(forward(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        marks.append(cpu_seconds())
    return marks[1] - marks[0], (marks[-1] - marks[-1 - _COUNTED]) / _COUNTED


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100"])
    print("| model | eager step, CPU s | compiled step, CPU s | compiling, CPU s |\n|---|---:|---:|---:|")
    for name in parser.parse_args(argv).models:
        (usual_first, usual), (first, later) = (steps(name, compiled=compiled) for compiled in (False, True))
        print(f"| {name} | {usual:.2f} | {later:.2f} | {first - usual_first:.0f} |", flush=True)


if __name__ == "__main__":
    main()
