"""A training step and a pass of evaluation with freed memory kept or given back, and attention fused or plain.

    python -m benchmarks.steps
    python -m benchmarks.steps --models timm/resnet50 --repeats 9

Random weights, 32 images of 224 px, one compute thread, on the CPU; every row is a process of its own. CPU seconds
(user and system): median, least and most of the repeats. ``faults``: pages that the kernel had to give within a step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional

from headstart.allocator import keep_freed_memory
from headstart.models.sources import open_model
from headstart.training.attention import Attention, attending, has_attention
from headstart.training.precision import MEMORY_FORMATS, autocast

MODELS = (
    "timm/resnet18", "timm/resnet50", "timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_100", "timm/efficientnet_b0",
    "timm/convnext_atto",
)  # fmt: skip
ARITHMETIC = (("fp32", "contiguous"), ("fp32", "channels_last"), ("bf16", "channels_last"))
_IMAGES = 32


def measured(spec: str, precision: Any, order: str, how: Attention, *, kept: bool, repeats: int) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = open_model(spec, weights="none").module.to(memory_format=MEMORY_FORMATS[order])
    images = torch.randn(_IMAGES, 3, 224, 224).contiguous(memory_format=MEMORY_FORMATS[order])
    labels, device = torch.arange(_IMAGES) % 2, torch.device("cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with attending(how):
            with autocast(device, precision):
                loss = functional.cross_entropy(model(images), labels)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def judged() -> None:
        with torch.inference_mode(), autocast(device, precision):
            model(images)

    with keep_freed_memory() if kept else nullcontext():
        training, faults = _timed(step, repeats)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        model.eval()
        evaluation, _ = _timed(judged, repeats)
    return {
        "model": spec.partition("/")[2], "arithmetic": f"{precision} {order}", "attention": how, "kept": kept,
        "step": training, "faults": faults, "pass": evaluation, "peak_mib": peak, "has_attention": has_attention(model),
    }  # fmt: skip


def _timed(run: Callable[[], None], repeats: int) -> tuple[list[float], int]:
    """CPU seconds of each repeat after a first one, and the pages of the last."""
    run()
    seconds, faults = [], 0
    for _ in range(repeats):
        begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        run()
        seconds.append(time.process_time() - begun)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return seconds, faults


def in_process(*row: object) -> dict[str, Any]:
    """The same in a fresh interpreter."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.steps", "--row", json.dumps(row)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--row", help="one row, as JSON; for the script itself")
    arguments = parser.parse_args()
    if arguments.row:
        spec, precision, order, how, kept, repeats = json.loads(arguments.row)
        print(json.dumps(measured(spec, precision, order, how, kept=kept, repeats=repeats)))
        return
    print("| model | arithmetic | attention | freed memory | step, CPU s | pass, CPU s | faults | peak, MiB |")
    print("|---|---|---|---|---:|---:|---:|---:|")
    for spec in arguments.models:
        for precision, order in ARITHMETIC:
            for how, kept in (("fused", False), ("fused", True), ("plain", True)):
                row = in_process(spec, precision, order, how, kept, arguments.repeats)
                print(
                    f"| {row['model']} | {row['arithmetic']} | {how if row['has_attention'] else ''} | "
                    f"{'kept' if kept else 'given back'} | {_spread(row['step'])} | {_spread(row['pass'])} | "
                    f"{row['faults']:,} | {row['peak_mib']:,} |",
                    flush=True,
                )
                if kept and not row["has_attention"]:
                    break


if __name__ == "__main__":
    main()
