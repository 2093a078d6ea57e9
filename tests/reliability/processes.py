"""Cases for several real processes: the server of ``tests/distributed/ranks.py``, and pictures for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SERVER = Path(__file__).parents[2] / "tests" / "distributed" / "ranks.py"
Ranks = Callable[..., list[dict[str, Any]]]


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Runs a case in several processes, as the tests do."""
    with subprocess.Popen(
        [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"},
    ) as server:  # fmt: skip
        assert server.stdin is not None and server.stdout is not None

        def run(case: str, *, world: int, **options: Any) -> list[dict[str, Any]]:
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write(json.dumps({"case": case, "world": world, "options": options}) + "\n")
            server.stdin.flush()
            found: list[dict[str, Any]] = json.loads(server.stdout.readline())
            return found

        yield run
        server.stdin.close()


def pictures(root: Path, *counts: int) -> str:
    """Three classes of so many noisy coloured pictures, 16 px."""
    draw = np.random.default_rng(0)
    colours = {"blue": (60, 60, 160), "green": (60, 160, 60), "red": (160, 60, 60)}
    for (name, colour), count in zip(colours.items(), counts, strict=True):
        (root / name).mkdir()
        for number in range(count):
            pixels = np.clip(np.array(colour) + draw.normal(0, 50, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03}.png")
    return str(root)
