"""A small run, its pictures, and the service of it in this process."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headstart as hs

SMALL = {"name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]}}


def train_small(source: Path, out: Path, **data: Any) -> Path:
    """The folder of a run of one epoch; ``data``: options of its section."""
    settings = {
        "data": {"source": str(source), **data}, "model": SMALL, "batch": {"size": 8}, "epochs": 1, "device": "cpu",
        "out": str(out), "workers": 0,
    }  # fmt: skip
    return Path(hs.train(hs.load_config(settings)).path)


@pytest.fixture(scope="session")
def train_on() -> Callable[..., Path]:
    """Trains a run of one epoch: ``train_on(source, out, target="price")`` gives its folder."""
    return train_small


@pytest.fixture(scope="session")
def served_run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on three colours."""
    return train_small(colours, tmp_path_factory.mktemp("served") / "run")


@pytest.fixture(scope="session")
def pictures() -> dict[str, bytes]:
    """Photos of other sizes and formats, as files: by name."""
    draw, found = np.random.default_rng(3), dict[str, bytes]()
    for number in range(12):
        height, width = (int(value) for value in draw.integers(20, 90, 2))
        small = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        kind = ("JPEG", "PNG", "WEBP")[number % 3]
        small.resize((width, height), Image.Resampling.BICUBIC).save(written := io.BytesIO(), format=kind)
        found[f"{number:02}.{kind.lower()}"] = written.getvalue()
    return found


@pytest.fixture
def open_client(served_run: Path) -> Iterator[Callable[..., Any]]:
    """Opens the service: ``open_client(token=None, max_images=4)`` gives a client that asks it in this process."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from headstart.serve.service import open_service
    from headstart.serve.settings import Settings

    opened = []

    def make(*, token: str | None = None, run: Path | None = None, **limits: Any) -> TestClient:
        service = open_service(hs.Predictor(run or served_run), settings=Settings(**limits), token=token)
        opened.append(service)
        client = TestClient(service.gate)
        client.service = service
        return client

    yield make
    for service in opened:
        service.close()
