"""``ranks``: runs a case of ranks.py in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Ranks = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """``ranks("gradients", world=2, ...)``: what each rank gave or raised."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ranks.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"},
    ) as server:  # fmt: skip

        def run(case: str, *, world: int, **options: Any) -> list[dict[str, Any]]:
            server.stdin.write(json.dumps({"case": case, "world": world, "options": options}) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def few(tmp_path_factory) -> str:
    """14 pictures in three classes: 11 to train on, in batches of 8 and 3."""
    return coloured(tmp_path_factory.mktemp("few"), counts=(5, 5, 4))


@pytest.fixture(scope="session")
def many(tmp_path_factory) -> str:
    """Pictures enough for 101 to be looked at."""
    return coloured(tmp_path_factory.mktemp("many"), counts=(43, 42, 42))


def coloured(root: Path, *, counts: tuple[int, ...]) -> str:
    draw = np.random.default_rng(0)
    colours = {"blue": (60, 60, 160), "green": (60, 160, 60), "red": (160, 60, 60)}
    for (name, colour), count in zip(colours.items(), counts, strict=True):
        (root / name).mkdir()
        for number in range(count):
            pixels = np.array(colour) + draw.normal(0, 50, (16, 16, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{number:02}.png")
    return str(root)
