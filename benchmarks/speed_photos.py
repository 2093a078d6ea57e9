"""The photos and the weights of ``benchmarks.speed``, made once: 500 x 375 JPEG files of two classes, random weights.

    python -m benchmarks.speed_photos photos FOLDER COUNT SIDE
    python -m benchmarks.speed_photos weights FILE MODEL

Photos are those under HEADSTART_DATA, cut a little at random and resized, so that as many as wanted can be made;
without any, smooth noise. A fifth is for validation. ``SIDE``: 0, or pixels per side of tiny images.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375
_LEAST = 300  # pixels of the shorter side: smaller ones would be blown up
_QUALITY = 90


def make_photos(folder: Path, *, count: int, side: int) -> None:
    """``count`` images in train/ and val/, classes a and b; what is complete already stays."""
    done = folder / "complete"
    if done.exists():
        return
    sources = [] if side else _sources()
    draw = random.Random(0)
    for number in range(count):
        split, name = "val" if number % 10 >= 8 else "train", "ab"[number % 2]
        path = folder / split / name / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (side, side) if side else (WIDTH, HEIGHT)
        picture = _photo(sources[number % len(sources)], draw) if sources else _noise(size, number)
        picture.save(path, quality=_QUALITY)
    done.write_text(f"{count} of {len(sources) or 'noise'}\n")


def _sources() -> list[Path]:
    root = Path(os.environ.get("HEADSTART_DATA", "nowhere"), "data")
    found = sorted(path for path in root.rglob("*.jpg") if path.is_file()) if root.is_dir() else []
    random.Random(0).shuffle(found)
    kept = []
    for path in found[:6000]:
        with Image.open(path) as image:
            if min(image.size) >= _LEAST:
                kept.append(path)
        if len(kept) == 1000:
            break
    return kept


def _photo(path: Path, draw: random.Random) -> Image.Image:
    with Image.open(path) as image:
        picture = image.convert("RGB")
    part = draw.uniform(0.85, 1.0)
    shape = min(picture.width / WIDTH, picture.height / HEIGHT) * part
    width, height = WIDTH * shape, HEIGHT * shape
    left, top = draw.uniform(0, picture.width - width), draw.uniform(0, picture.height - height)
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def _noise(size: tuple[int, int], seed: int) -> Image.Image:
    """Coarse and fine noise: about the bytes of a photo."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = draw.normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))


def make_weights(file: Path, *, model: str) -> None:
    """Random weights of a timm model with its 1,000 classes, seed 0."""
    if file.exists():
        return
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = file.with_suffix(".part")
    save_file(timm.create_model(model, pretrained=False).state_dict(), whole)
    whole.rename(file)


if __name__ == "__main__":
    if sys.argv[1] == "photos":
        make_photos(Path(sys.argv[2]), count=int(sys.argv[3]), side=int(sys.argv[4]))
    else:
        make_weights(Path(sys.argv[2]), model=sys.argv[3])
