"""What starting costs: CPU seconds (user and system) of whole processes, medians of repeats taken in turns.

python -m benchmarks.startup          imports, help, and predict on one photo by a model of each library
python -m benchmarks.startup --keep DIR   keep the runs that it predicts with
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

REPEATS = 5
CLI = ("-m", "headstart.cli.main")


def seconds(words: tuple[str, ...]) -> float:
    """CPU seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def pictures(root: Path) -> Path:
    draw = random.Random(0)
    for name, colour in (("blue", (60, 60, 160)), ("red", (160, 60, 60))):
        (root / name).mkdir(parents=True)
        for number in range(8):
            shade = tuple(channel + draw.randint(-25, 25) for channel in colour)
            Image.new("RGB", (500, 375), shade).save(root / name / f"{number}.jpg")
    return root


def trained(model: str, photos: Path, out: Path) -> Path:
    if not out.exists():
        words = ("train", str(photos), "--model", model, "--weights", "none", "--epochs", "1", "--device", "cpu")
        seconds((*CLI, *words, "--batch-size", "8", "--out", str(out)))
    return out


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    photos = folder / "photos"
    photo = str((photos if photos.exists() else pictures(photos)) / "red" / "0.jpg")
    timm, torchvision = (trained(f"{kind}/resnet18", photos, folder / kind) for kind in ("timm", "torchvision"))
    lean = "from headstart.lazy_imports import load_libraries as load; load()"
    opened = (
        f"{lean}; import headstart.predictor; from headstart.runs.bundle import open_run; run = open_run({str(timm)!r})"
    )
    decoded = (
        f"{opened}; from headstart.predictor import image_batches; batches = image_batches([{photo!r}], "
        "preprocess=run.preprocess, task=run.task, batch_size=8); batch = next(batches.epoch(0))"
    )
    return {
        "python": ("-c", "pass"),
        "import headstart": ("-c", "import headstart"),
        "headstart --help": (*CLI, "--help"),
        "headstart predict --help": (*CLI, "predict", "--help"),
        "import torch": ("-c", "import torch"),
        "import torch, torchvision, timm": ("-c", "import torch, torchvision, timm"),
        "the same, as headstart does it": ("-c", lean),
        "import headstart.predictor": ("-c", f"{lean}; import headstart.predictor"),
        "and open the bundle": ("-c", opened),
        "and decode one photo": ("-c", decoded),
        "headstart predict, timm/resnet18": (*CLI, "predict", str(timm), photo),
        "headstart predict, torchvision/resnet18": (*CLI, "predict", str(torchvision), photo),
        "import headstart.app (train)": ("-c", "import headstart.app"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder of the runs")
    kept = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as folder:
        wanted = commands(kept or Path(folder))
        found: dict[str, list[float]] = {name: [] for name in wanted}
        for _ in range(REPEATS):
            for name, words in wanted.items():
                found[name].append(seconds(words))
    print("| process | CPU seconds, median | least .. most |\n|---|---:|---:|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} .. {max(values):.2f} |")


if __name__ == "__main__":
    main()
