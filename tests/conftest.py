"""What all tests share: where the real pictures and weights are, and one thread (its bits are the ones compared)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real pictures and weights, or a skip that says why."""
    folder = Path(os.environ.get("HEADSTART_DATA", Path(__file__).parents[1] / ".." / "shared")).resolve()
    if not (folder / "data").is_dir() or not (folder / "weights").is_dir():
        pytest.skip(f"HEADSTART_DATA: {folder} has no data/ and weights/")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
