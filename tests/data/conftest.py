from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.config.schema import Config, Data, Task
from headstart.data.images import Images, load_images
from headstart.models.preprocess import Preprocess

Draw = Callable[..., Path]


@pytest.fixture
def preprocess() -> Preprocess:
    return Preprocess(
        height=32,
        width=32,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        interpolation="bilinear",
        crop_pct=0.875,
        source="t",
    )


@pytest.fixture
def draw() -> Draw:
    """Writes a picture of noise that depends on the seed alone; gives its path."""

    def write(path: Path, *, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        return path

    return write


@pytest.fixture
def folders(tmp_path: Path, draw: Draw) -> Callable[[Mapping[str, int]], Path]:
    """Makes folders with so many distinct pictures each, e.g. {"train/cats": 3}; gives the root."""

    def make(counts: Mapping[str, int]) -> Path:
        root = tmp_path / "pets"
        for number, (name, count) in enumerate(sorted(counts.items())):
            (root / name).mkdir(parents=True, exist_ok=True)
            for place in range(count):
                draw(root / name / f"{place:03}.png", seed=1000 * number + place)
        return root

    return make


@pytest.fixture
def table(tmp_path: Path, draw: Draw) -> Callable[..., Path]:
    """Writes a CSV and the pictures i0.png, i1.png, ... that its rows may name; gives its path."""

    def make(text: str, *, pictures: int = 6) -> Path:
        for place in range(pictures):
            draw(tmp_path / f"i{place}.png", seed=place)
        path = tmp_path / "rows.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture
def load(preprocess: Preprocess) -> Callable[..., Images]:
    """Loads a source with options of the data section."""

    def run(source: Path, *, kind: str = "auto", **options: object) -> Images:
        config = Config(data=Data(source=str(source), **options), task=Task(kind=kind), workers=0)
        return load_images(config, preprocess)

    return run
