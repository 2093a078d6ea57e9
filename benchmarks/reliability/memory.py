"""How much memory the plan expects of training on the CPU, against what a step really takes.

python -m benchmarks.reliability.memory [--batch 32] [--size 224]

Each model in a process of its own: the need is measured as the plan does, then three steps are made, and the growth of
the resident set (its highest, from before the first step) is read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.reliability.results import keep
from tests.reliability.lives import pictures, settings

MODELS = ("resnet18", "mobilenetv3_large_100", "vit_tiny_patch16_224", "convnext_atto")


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def one(name: str, *, batch: int, size: int, optimizer: str) -> dict[str, float]:
    """Expected and measured bytes of one model."""
    import torch

    import headstart as hs
    from headstart.planning.memory import measure
    from headstart.planning.preflight import prepare
    from headstart.training.phases import enter_phase
    from headstart.training.state import TrainState
    from headstart.training.step import train_step

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sections = {"batch": {"size": batch}, "optimizer": {"kind": optimizer}, "recipe": "full", "workers": 0}
        tree = settings(pictures(Path(folder) / "data", each=batch), Path(folder) / "run", **sections)
        tree["model"] = {"name": f"timm/{name}", "weights": "none", "image_size": size}
        config = hs.load_config(tree)
        ready = prepare(config, module=None, loss=None, emit=lambda _: None)
        need = measure(config, ready.opened.module, ready.training_plan, ready.opened.preprocess)
        state = TrainState(ready.opened.module, torch.optim.SGD(ready.opened.module.parameters(), lr=0.0))
        enter_phase(state, ready.training_plan, 0)
        images = next(iter(ready.images.train.epoch(0)))
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set counts from now on
    before = resident("VmRSS")
    for _ in range(3):
        train_step(state, images, rules=ready.training_plan.rules)
    return {"least": need.at_least(batch), "about": need.about(batch), "real": resident("VmHWM") - before}


def main() -> None:
    """Every model, each in its own process; the ratios are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--one", help="used by itself")
    args = parser.parse_args()
    given = {"batch": args.batch, "size": args.size, "optimizer": args.optimizer}
    if args.one:
        print(json.dumps(one(args.one, **given)))
        return
    found = {}
    for name in MODELS:
        words = [sys.executable, "-m", "benchmarks.reliability.memory", "--one", name]
        words += [word for key, value in given.items() for word in (f"--{key}", str(value))]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout)
        print(name, {key: f"{value / 2**20:,.0f} MiB" for key, value in found[name].items()}, flush=True)
    least = {name: sizes["least"] / sizes["real"] for name, sizes in found.items()}
    about = {name: sizes["about"] / sizes["real"] for name, sizes in found.items()}
    shown = ", ".join(f"{name} {least[name]:.2f} and {about[name]:.2f}" for name in found)
    keep(
        "cost", what=f"memory that the plan expects on the CPU over what {args.batch} images of {args.size} px took: "
        "the bound that refuses (at most 1), and the estimate that warns",
        goal="every bound at most 1, every estimate 0.9 to 1.5", found=shown,
        met=max(least.values()) <= 1 and min(about.values()) >= 0.9 and max(about.values()) <= 1.5,
        command="python -m benchmarks.reliability.memory", sizes=found,
    )  # fmt: skip


if __name__ == "__main__":
    main()
