"""What the proofs cost: CPU seconds of whole runs in this checkout, beside those of another checkout, turn by turn.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.guarantees_cost /tmp/before --recipe probe --model timm/resnet18 --repeats 5

Each run is a process of its own with one thread and an empty cache, on the ants and bees under HEADSTART_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[1]
RUN = """
import json, sys, time
import torch
torch.set_num_threads(1)
import headstart as hs
options = json.loads(sys.argv[1])
torch.manual_seed(0)
started = time.process_time()
hs.train(hs.load_config(options))
print(time.process_time() - started)
"""


def cpu_seconds(checkout: Path, *, recipe: str, model: str, epochs: int, data: Path) -> float:
    """Of one run, from the call of ``hs.train`` to its return."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "data": {"source": str(data), "unreadable": "skip"}, "recipe": recipe, "epochs": epochs, "workers": 0,
            "out": f"{folder}/run", "device": "cpu", "precision": "fp32", "memory_format": "contiguous",
            "model": {"name": model, "weights": "none"}, "batch": {"size": 32},
        }  # fmt: skip
        environment = {
            **os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "HEADSTART_CACHE": f"{folder}/c",
        }  # fmt: skip
        command = [sys.executable, "-c", RUN, json.dumps(options)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="another checkout")
    parser.add_argument("--recipe", default="probe")
    parser.add_argument("--model", default="timm/resnet18")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    data = Path(os.environ.get("HEADSTART_DATA", HERE / ".." / "shared")).resolve() / "data" / "hymenoptera"
    found: dict[str, list[float]] = {"before": [], "now": []}
    for _ in range(given.repeats):
        for name, checkout in (("before", given.before), ("now", HERE)):
            found[name].append(
                cpu_seconds(checkout, recipe=given.recipe, model=given.model, epochs=given.epochs, data=data)
            )
            print(f"{name}: {found[name][-1]:.2f} s", flush=True)
    middle = {name: statistics.median(seconds) for name, seconds in found.items()}
    spread = {name: f"{min(seconds):.2f} to {max(seconds):.2f}" for name, seconds in found.items()}
    print(
        f"{given.model} {given.recipe}: {middle['before']:.2f} ({spread['before']}) before, {middle['now']:.2f} "
        f"({spread['now']}) now: {middle['now'] / middle['before'] - 1:+.1%}"
    )


if __name__ == "__main__":
    main()
