"""Ten short runs whose numbers stay: every loss and the bytes of every weight, so that moving code changes no result.

    python -m tests.golden.runs --before CHECKOUT    run both trees on this machine and compare to the bit
    python -m tests.golden.runs --write              note today's numbers in tests/golden/values.json

Bits depend on the processor and on torch's version; ``values.json`` says of which they are.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUES = Path(__file__).with_name("values.json")
ROOT = Path(__file__).parents[2]
COLOURS = {"blue": (60, 60, 160), "green": (60, 160, 60), "red": (160, 60, 60)}
SMALL = {"name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]}}
VIT = {
    "name": "timm/vit_tiny_patch16_224", "weights": "vit.safetensors", "image_size": 32,
    "options": {"embed_dim": 24, "depth": 2, "num_heads": 2},
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "two phases, cached": {"recipe": "lp_ft", "cache": {"use": "always"}},
    "all layers, decay by layer": {
        "phases": [{"epochs": 2, "lr": 1e-3, "layer_decay": 0.7}], "optimizer": {"kind": "adamw", "weight_decay": 0.05},
    },
    "sgd, focal loss, class weights": {
        "recipe": "full", "optimizer": {"kind": "sgd", "momentum": 0.8},
        "loss": {"kind": "focal", "class_weights": {"red": 3.0}}, "schedule": {"kind": "one_cycle"},
    },
    "everything": {
        "recipe": "full", "head": {"kind": "mlp", "hidden": [8], "dropout": 0.5},
        "augment": {"preset": "strong", "mixup": 0.4, "cutmix": 0.4}, "average": {"kind": "ema", "half_life": 0.2},
        "batch": {"size": 8, "accumulate": 3, "clip_norm": 1.0}, "penalties": {"l1": 1e-4, "l2_start": 0.01},
        "schedule": {"kind": "cosine"},
    },
    "one stage frozen, bf16": {"recipe": "full", "freeze": "stages:2", "precision": "bf16"},
    "fp16": {"recipe": "full", "precision": "fp16"},
    "attention, adapters": {"recipe": "lora", "model": VIT},
    "tags": {"data": {"source": "tags.csv"}, "recipe": "full", "loss": {"kind": "bce", "label_smoothing": 0.1}},
    "numbers": {"data": {"source": "numbers.csv", "target": ["price", "area"]}, "recipe": "lp_ft"},
    "two processes": {"recipe": "lp_ft", "devices": 2},
}  # fmt: skip


def write_weights(path: Path) -> None:
    """Write first weights of a tiny vision transformer: adapters are refused over a backbone without any."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, **VIT["options"])
    save_file(model.state_dict(), path)


def draw_images(folder: Path) -> None:
    """Write ``photos/COLOUR/NN.png`` (36 noisy coloured pictures of 32 px) and the two tables that name them."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    tags, numbers = ["path,warm,cold"], ["path,price,area"]
    for place, (name, colour) in enumerate(COLOURS.items()):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.array(colour) + draw.normal(0, 50, (32, 32, 3))
            path = f"photos/{name}/{number:02}.png"
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / path)
            tags.append(f"{path},{int(place > 0)},{int(place < 2)}")
            numbers.append(f"{path},{100 * place + number},{3 - place + 0.1 * number:.1f}")
    (folder / "tags.csv").write_text("\n".join(tags) + "\n")
    (folder / "numbers.csv").write_text("\n".join(numbers) + "\n")


def run_one(name: str) -> dict[str, Any]:
    """Train the run of this name in the working folder, where ``draw_images`` has been, and give its numbers."""
    import headstart as hs

    settings: dict[str, Any] = {
        "data": {"source": "photos"}, "model": SMALL, "batch": {"size": 8}, "workers": 0,
        "device": "cpu", "precision": "fp32", "memory_format": "contiguous", "attention": "fused", "seed": 7,
        "cache": {"use": "never"}, "out": name.replace(" ", "_").replace(",", ""),
    } | ({} if "phases" in RUNS[name] else {"epochs": 2}) | RUNS[name]  # fmt: skip
    if "devices" not in settings:
        return read_run(hs.train(hs.load_config(settings)).path)
    Path("config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "headstart", "train", "--config", "config.yaml"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return read_run(Path(settings["out"]))


def read_run(run: Path) -> dict[str, Any]:
    """The loss and gradient norm of each step, the metrics of each epoch, and a digest of weights and predictions."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {
        "steps": [[event["loss"], event["grad_norm"]] for event in events if event["event"] == "step"],
        "epochs": [event["metrics"] for event in events if event["event"] == "epoch"],
        "weights": _digest(run / "model" / "model.safetensors"),
        "predictions": hashlib.sha256(_drop_probabilities(run / "predictions.csv").encode()).hexdigest(),
    }


def _drop_probabilities(path: Path) -> str:
    """The table without the classes' probabilities, which tables of one label did not have when values were noted."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file, quoting=csv.QUOTE_NONNUMERIC))
    kept = [place for place, name in enumerate(rows[0]) if "confidence" not in rows[0] or not name.startswith("p:")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([row[place] for place in kept] for row in rows)
    return text.getvalue()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_all(say: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """The numbers of all runs, made in a folder that goes afterwards."""
    import torch

    torch.set_num_threads(1)
    found = {}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEADSTART_CACHE"] = str(Path(folder) / "cache")
        os.chdir(folder)
        try:
            draw_images(Path(folder))
            write_weights(Path(folder) / "vit.safetensors")
            for name in RUNS:
                say(name)
                found[name] = run_one(name)
        finally:
            os.chdir(here)
    return found


def describe_machine() -> dict[str, str]:
    """What the bits of a run depend on besides headstart."""
    import torch

    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "processor": _processor()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def run_checkout(checkout: Path) -> dict[str, Any]:
    """The numbers of all runs with the package of another checkout, in a process of its own."""
    command = [sys.executable, "-c", "from tests.golden.runs import *; print(json.dumps(run_all()))"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout / "src"), str(ROOT)])}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Compare two trees, or write today's numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--write", action="store_true", help="note today's numbers in values.json")
    args = parser.parse_args()
    now = run_checkout(ROOT)
    if args.write:
        VALUES.write_text(json.dumps({"machine": describe_machine(), "runs": now}, indent=1) + "\n")
    if args.before:
        before = run_checkout(args.before.resolve())
        different = [name for name in RUNS if before[name] != now[name]]
        print(f"{len(RUNS) - len(different)} of {len(RUNS)} runs are the same to the bit; different: {different}")
        sys.exit(bool(different))


if __name__ == "__main__":
    main()
