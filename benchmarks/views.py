"""Fixed views against new random changes in every epoch: does a probe on cached activations lose accuracy?

    python -m benchmarks.views [--seeds 8]

The starter at 96 px, probe, 12 epochs, standard augmentation: on the package's digits (400 of them train), and where
HEADSTART_DATA has them, on hymenoptera and on 120 photos of each kind of flowers5 (half of them train). 1, 2, 4 and 8
views, and new changes in every epoch; the same seeds for all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import headstart as hs
from benchmarks.workload import cpu_name, refuse_mixed
from headstart.demo import write_digits

HERE = Path(__file__).parent
ROOT = Path(os.environ.get("HEADSTART_DATA", HERE.parent / ".." / "shared")).resolve()
RESULTS = HERE / "results" / "views.jsonl"
EPOCHS, PIXELS, BATCH = 12, 96, 32
PHOTOS = 120  # of each kind of flowers5
VIEWS = (1, 2, 4, 8, 0)  # 0: new ones in every epoch


def accuracy(data: dict[str, Any], views: int, seed: int, out: Path) -> tuple[float, float]:
    """Of the last epoch (the best one would be chosen on these very images), and CPU seconds."""
    cache = {"use": "always", "views": views} if views else {"use": "never"}
    config = hs.load_config({
        "data": data, "model": {"name": "starter", "image_size": PIXELS}, "recipe": "probe", "epochs": EPOCHS,
        "batch": {"size": BATCH}, "cache": cache, "seed": seed, "workers": 0, "device": "cpu", "out": str(out),
        "precision": "fp32", "memory_format": "contiguous",
    })  # fmt: skip
    epochs: list[hs.EpochDone] = []
    started = time.process_time()
    hs.train(config, watch=lambda event: epochs.append(event) if isinstance(event, hs.EpochDone) else None)
    return epochs[-1].metrics["accuracy"], time.process_time() - started


def some_of(source: Path, target: Path, *, count: int) -> Path:
    """A folder with the first ``count`` photos of each class."""
    for kind in sorted(path for path in source.iterdir() if path.is_dir()):
        (target / kind.name).mkdir(parents=True)
        for photo in sorted(kind.iterdir())[:count]:
            shutil.copy(photo, target / kind.name)
    return target


def work() -> dict[str, Any]:
    """What a run is made of, and where: only rows in which all of it is equal are compared."""
    return {"epochs": EPOCHS, "pixels": PIXELS, "batch": BATCH, "photos": PHOTOS, "threads": 1, "cpu": cpu_name()}


UNSAID = {"epochs": 12, "pixels": 96, "batch": 32, "photos": 120, "threads": 1, "cpu": "not recorded"}
"""The work of the lines from before they said it."""


def main() -> None:
    """Every seed with every number of views; a line each, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a data set's name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEADSTART_CACHE"] = folder + "/cache"
        sources: dict[str, dict[str, Any]] = {
            "digits": {"source": str(write_digits(Path(folder, "digits"))), "val": 0.78}
        }
        if (ROOT / "data" / "hymenoptera").is_dir():
            sources["hymenoptera"] = {"source": str(ROOT / "data" / "hymenoptera")}
        if (ROOT / "data" / "flowers5").is_dir():
            some = some_of(ROOT / "data" / "flowers5", Path(folder, "flowers5"), count=PHOTOS)
            sources["flowers5"] = {"source": str(some), "val": 0.5}
        lines = []
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for name, data in ((name, data) for name, data in sources.items() if args.only in name):
                for views in VIEWS:
                    found, seconds = accuracy(data, views, seed, Path(folder, f"{name}-{views}-{seed}"))
                    lines.append({"data": name, "views": views, "seed": seed, "accuracy": found, "seconds": seconds})
                    lines[-1] |= {"work": work()}
                    print(lines[-1], flush=True)
    with RESULTS.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    show([json.loads(line) for line in RESULTS.read_text().splitlines()])


def show(lines: list[dict[str, Any]]) -> None:
    """Mean accuracy, its difference from new changes by seed (mean and standard error), and seconds."""
    print("| data | views | accuracy | against new changes | CPU s |\n|---|---:|---:|---:|---:|")
    for name in dict.fromkeys(line["data"] for line in lines):
        works = [UNSAID | line.get("work", {}) for line in lines if line["data"] == name]
        refuse_mixed(((name, each) for each in works), page="views", said=works[-1])
        by = {(line["views"], line["seed"]): line for line in lines if line["data"] == name}
        seeds = sorted({seed for _, seed in by})
        for views in VIEWS:
            found = [by[views, seed]["accuracy"] for seed in seeds]
            off = [by[views, seed]["accuracy"] - by[0, seed]["accuracy"] for seed in seeds]
            error = statistics.stdev(off) / len(off) ** 0.5 if len(off) > 1 else 0.0
            seconds = statistics.median(by[views, seed]["seconds"] for seed in seeds)
            shown = f"{statistics.mean(off):+.4f} +- {error:.4f}" if views else ""
            print(f"| {name} | {views or 'new'} | {statistics.mean(found):.4f} | {shown} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
