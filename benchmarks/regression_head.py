"""A head of numbers with and without a limit of its rate by its features: how much it swings, and how good it becomes.

    python -m benchmarks.regression_head [--seeds 4] [--optimizer adamw]

Probes of 10 epochs on frozen MobileNetV2 0.35 features (128 px, no random changes, the batch that auto takes), on
four sets under HEADSTART_DATA: prices of houses (their logarithm), areas of houses, the number of tags of a scene, and
the angle by which ants and bees were turned. A run without the limit is one with --head-lr at the rate that auto has
without it, and the same seed, which also decides the split; "rises" is the sum of what the error rose
from one epoch to the next. Rows are in benchmarks/results/regression_head.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import headstart as hs

HERE = Path(__file__).parent
ROOT = Path(os.environ.get("HEADSTART_DATA", HERE.parent / ".." / "shared")).resolve()
RESULTS = HERE / "results" / "regression_head.jsonl"
PIXELS, EPOCHS = 128, 10
RATES = {"adamw": 5e-3, "sgd": 0.15}  # of a probe at batch 64, without the limit
SCENES = 300
LARGEST_ANGLE = 45.0  # degrees


def write_sets(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Small copies of the pictures with a table each; the name and the ``data`` section of every set."""
    houses = list(csv.DictReader((ROOT / "data" / "houses" / "houses.csv").open()))
    paths = [ROOT / "data" / "houses" / row["image"] for row in houses]
    prices = write_set(folder / "price", paths, [float(row["price"]) for row in houses])
    yield "houses, log price", prices | {"log": True}
    yield "houses, area", write_set(folder / "area", paths, [float(row["area"]) for row in houses])
    scenes = list(csv.DictReader((ROOT / "data" / "scenes" / "miml_labels_1.csv").open()))
    scenes = scenes[:: len(scenes) // SCENES]
    counts = [float(sum(int(value) for name, value in row.items() if name != "Filenames")) for row in scenes]
    names = [ROOT / "data" / "scenes" / "images" / row["Filenames"] for row in scenes]
    yield "scenes, number of tags", write_set(folder / "tags", names, counts)
    photos = sorted((ROOT / "data" / "hymenoptera").glob("*/*/*.jpg"))
    angles = np.random.default_rng(0).uniform(-LARGEST_ANGLE, LARGEST_ANGLE, len(photos)).round(1).tolist()
    yield "ants and bees, angle", write_set(folder / "angle", photos, angles, turned=True)


def write_set(folder: Path, paths: Sequence[Path], values: Sequence[float], *, turned: bool = False) -> dict[str, Any]:
    """The pictures at a small size, turned by their value where that is what is to be learned, and their table."""
    folder.mkdir()
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "value"])
        for place, (path, value) in enumerate(zip(paths, values, strict=True)):
            with Image.open(path) as opened:
                opened.draft("RGB", (3 * PIXELS, 3 * PIXELS))
                picture = opened.convert("RGB")
            picture.thumbnail((2 * PIXELS, 2 * PIXELS))
            picture = picture.rotate(value, Image.Resampling.BILINEAR) if turned else picture
            picture.save(folder / f"{place}.png")
            writer.writerow([f"{place}.png", value])
    return {"source": str(folder / "table.csv"), "target": ["value"]}


def train_probe(data: dict[str, Any], seed: int, out: Path, *, optimizer: str, head_lr: float | None) -> dict[str, Any]:
    """The rate of the head (``head_lr``, else what auto takes), and each epoch's error as a share of the baseline's."""
    config: dict[str, Any] = {
        "data": data, "model": {"name": str(ROOT / "weights" / "mobilenetv2_035.keras_in1k"), "image_size": PIXELS},
        "task": {"kind": "regress"}, "recipe": "probe", "epochs": EPOCHS, "augment": {"preset": "none"}, "seed": seed,
        "workers": 0, "device": "cpu", "precision": "fp32", "memory_format": "contiguous", "out": str(out),
        "optimizer": {"kind": optimizer} | ({} if head_lr is None else {"head_lr": head_lr}),
    }  # fmt: skip
    ends: list[hs.EpochDone] = []

    def watch(event: hs.Event) -> None:
        if isinstance(event, hs.EpochDone):
            ends.append(event)

    run = hs.train(hs.load_config(config), watch=watch)
    key = "mae_log10" if data.get("log") else "mae"
    shares = [end.metrics[key] / end.metrics[f"baseline_{key}"] for end in ends]
    plan = json.loads((run.path / "plan.json").read_text())
    return {"rate": plan["phases"][0]["head_lr"], "batch": plan["batch_size"], "shares": shares}


def measure(seeds: int, optimizer: str) -> None:
    """Run what is not stored yet, and add a line for each run."""
    stored = {identify(row): row for row in read_rows()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HEADSTART_CACHE"] = str(folder / "cache")
        for what, data in write_sets(folder):
            for seed in range(seeds):
                head_lr = None
                for limited in (True, False):
                    row = {"set": what, "optimizer": optimizer, "seed": seed, "limited": limited}
                    done = stored.get(identify(row))
                    if done is None:
                        out = folder / f"{what} {seed} {limited}"
                        done = row | train_probe(data, seed, out, optimizer=optimizer, head_lr=head_lr)
                        with RESULTS.open("a") as file:
                            file.write(json.dumps(done | {"torch": torch.__version__}) + "\n")
                    head_lr = RATES[optimizer] * math.sqrt(done["batch"] / 64)


def identify(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a run one of its kind."""
    return tuple(row[name] for name in ("set", "optimizer", "seed", "limited"))


def read_rows() -> list[dict[str, Any]]:
    """The stored runs."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def make_table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds, and the paired difference of the best epoch with its standard error."""
    lines = [
        "| set | optimizer | seeds | rate without, with | first epoch | best | last | rises | best, paired |",
        "|---|---|---:|---|---|---|---|---|---|",
    ]
    groups = dict.fromkeys((row["optimizer"], row["set"]) for row in rows)
    for optimizer, what in sorted(groups, key=lambda group: group[0]):
        own = [row for row in rows if (row["optimizer"], row["set"]) == (optimizer, what)]
        by_seed = [{row["limited"]: row for row in own if row["seed"] == seed} for seed in {row["seed"] for row in own}]
        pairs = [(both[False], both[True]) for both in by_seed if len(both) == 2]
        if len(pairs) < 2:
            continue
        cells = []
        for summary in (lambda s: s[0], min, lambda s: s[-1], sum_rises):
            values = [statistics.mean(summary(pair[place]["shares"]) for pair in pairs) for place in (0, 1)]
            cells.append(f"{values[0]:.3f} -> {values[1]:.3f}")
        gains = [min(after["shares"]) - min(before["shares"]) for before, after in pairs]
        error = statistics.stdev(gains) / math.sqrt(len(gains))
        rates = f"{pairs[0][0]['rate']:.2g}, {pairs[0][1]['rate']:.2g}"
        lines.append(
            f"| {what} | {optimizer} | {len(pairs)} | {rates} | {' | '.join(cells)} | "
            f"{statistics.mean(gains):+.3f} ± {error:.3f} |"
        )
    return "\n".join(lines)


def sum_rises(shares: Sequence[float]) -> float:
    """By how much the error rose from an epoch to the next, summed."""
    return sum(max(0.0, later - earlier) for earlier, later in pairwise(shares))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--optimizer", choices=tuple(RATES), default="adamw")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(options.seeds, options.optimizer)
    print(make_table(read_rows()))


if __name__ == "__main__":
    main()
