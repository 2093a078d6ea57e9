"""The whole path, offline and in about a minute: the starter on real handwritten digits, ending with a report."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image

from headstart.app import train
from headstart.config.load import load_config
from headstart.events import Watch
from headstart.runs.run import Run

_SIDE, _PER_ROW = 8, 60  # of the sheet in headstart/digits
SETTINGS = {
    "model": {"name": "starter", "image_size": 32},
    "recipe": "lp_ft",
    "epochs": 8,
    "batch": {"size": 64, "evaluation": 64},
    "optimizer": {"kind": "adamw", "lr": 5e-3, "head_lr": 5e-3, "layer_decay": 1.0},  # digits are far from photos
    "augment": {"preset": "none"},
    "precision": "fp32",  # not measured: everyone's demo is the same
    "memory_format": "contiguous",
}


def run(out: Path, watch: Watch) -> Run:
    """Write the digits as class folders beside the run, and train on them; a run that was interrupted goes on.

    Raises: Error: see ``train``.
    """
    folder = write_digits(out.with_name(out.name + "-data"))
    config = load_config(SETTINGS | {"data": {"source": str(folder)}, "out": str(out)})
    return train(config, resume=True, allow_inexact=True, watch=watch)  # a demo's last bits matter to nobody


def write_digits(folder: Path) -> Path:
    """The 1,797 digits (UCI, CC BY 4.0) as PNG files in ten class folders."""
    with as_file(files("headstart") / "digits") as source:
        labels = (source / "labels.txt").read_text().strip()
        with Image.open(source / "digits.png", formats=("PNG",)) as sheet:
            sheet.load()
    for place, label in enumerate(labels):
        target = folder / label / f"{place:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        top, left = (_SIDE * number for number in divmod(place, _PER_ROW))
        sheet.crop((left, top, left + _SIDE, top + _SIDE)).save(target)
    return folder
