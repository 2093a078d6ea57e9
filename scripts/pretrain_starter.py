"""Make the starter: pretrain a small timm ResNet with headstart itself, and write it into the package.

    python scripts/pretrain_starter.py PHOTOS64.tar.gz [WORK]

PHOTOS64 holds one folder per class of 64 px photos (202 classes x 150). Every tenth photo of a class is held out for
the accuracy in the model card. About an hour on 2 cores; interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import json
import platform
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save

import headstart as hs
from headstart.reports.progress import Progress
from headstart.storage.durable import json_bytes, write_file

PACKAGE = Path(hs.__file__).parent / "starter"
WIDTHS = [24, 48, 96, 192]  # 1.6 million parameters, 3.2 MB as float16
SETTINGS = {
    "model": {
        "name": "timm/resnet18d",
        "weights": "none",
        "image_size": 64,
        "options": {"channels": WIDTHS, "stem_width": 16},
    },
    "data": {"val": 0.1},
    "recipe": "full",
    "epochs": 16,
    "optimizer": {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.05, "layer_decay": 1.0},
    "schedule": {"kind": "cosine", "warmup": 0.08},
    "loss": {"kind": "cross_entropy", "label_smoothing": 0.1},
    "batch": {"size": 128, "clip_norm": 1.0},
    "augment": {"preset": "standard"},
    "precision": "bf16",
    "memory_format": "channels_last",
    "checkpoint": {"every_seconds": 0, "keep": 1},
}


def main(archive: Path, work: Path) -> None:
    photos = work / "photos64"
    if not photos.is_dir():
        with tarfile.open(archive) as file:
            file.extractall(work, filter="data")
    settings = SETTINGS | {"data": {"source": str(photos), "val": 0.1}, "out": str(work / "run")}
    with Progress() as progress:
        run = hs.train(hs.load_config(settings), resume=True, watch=progress)
    write_starter(run.model, run.metrics, classes=len(list(photos.iterdir())))


def write_starter(model: torch.nn.Module, metrics: dict[str, float], *, classes: int) -> None:
    """The backbone without its head, weights as float16 and statistics as float32, in timm's local-dir layout."""
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    halved = {name: value.half() if value.ndim > 1 else value for name, value in kept.items()}
    size = SETTINGS["model"]["image_size"]  # type: ignore[index]
    config = {
        "architecture": "resnet18d",
        "num_classes": 0,
        "num_features": WIDTHS[-1],
        "model_args": {"channels": WIDTHS, "stem_width": 16},
        "pretrained_cfg": {
            "tag": "headstart_photos64", "license": "apache-2.0", "num_classes": 0, "input_size": [3, size, size],
            "fixed_input_size": False, "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "first_conv": "conv1.0", "classifier": "fc",
        },
    }  # fmt: skip
    PACKAGE.mkdir(exist_ok=True)
    write_file(PACKAGE / "model.safetensors", save({name: value.contiguous() for name, value in halved.items()}))
    write_file(PACKAGE / "config.json", json_bytes(config))
    write_file(PACKAGE / "README.md", card(metrics, classes, sum(value.numel() for value in kept.values())).encode())


def card(metrics: dict[str, float], classes: int, parameters: int) -> str:
    """The starter's model card."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
license: apache-2.0
---
# starter

The small pretrained backbone in headstart's package: timm's `resnet18d` with channels {WIDTHS} and
`stem_width` 16, {parameters / 1e6:.2f} million values, weights stored as float16. It lets the whole product work
without a network; for accuracy on photos choose a backbone pretrained on ImageNet.

Made by `scripts/pretrain_starter.py` with headstart itself: random initialisation, {SETTINGS["epochs"]} epochs of full
training on {classes} classes of 64 px photos (135 training photos per class, 15 held out), bf16, channels_last, AdamW.
The epoch with the best held-out accuracy was kept. Nothing else was used: no other weights, no other data.

| on the held-out photos ({classes} classes; chance is {1 / classes:.3f}) | |
|---|---:|
| accuracy | {metrics["accuracy"]:.3f} |
| macro F1 | {metrics["macro_f1"]:.3f} |
| NLL | {metrics["nll"]:.3f} |

Settings: `{json.dumps(SETTINGS)}`.

Made with {versions} on {platform.machine()}, Python {platform.python_version()}.

Limits: trained at 64 px on few photos per class, so fine detail and large pictures are not its strength.
"""


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "runs/starter"))
