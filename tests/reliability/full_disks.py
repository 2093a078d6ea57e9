"""A real small disk that fills up under ``headstart train``."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.runs.checkpoint import read_checkpoint

CLOCK = ("seconds", "images_per_second", "input_seconds")


class NoSmallDiskError(Exception):
    """A file system cannot be mounted here; why."""


@contextmanager
def small_disk(folder: Path, *, size: int) -> Iterator[Path]:
    """A file system of so many bytes in memory.  Raises: NoSmallDiskError: only root may."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "headstart-test", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        raise NoSmallDiskError(done.stderr.strip() if done else "there is no mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, *, but: int) -> Path:
    """Take all space but some bytes; gives the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - but)
    return ballast


def start(config: Path) -> subprocess.Popen[str]:
    """``headstart train --resume`` in a process of its own."""
    words = [sys.executable, "-m", "headstart.cli.main", "train", "--config", str(config), "--resume"]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def life_on_a_disk_that_fills_up(config: Path, run: Path, *, but: int) -> int:
    """Fill the run's disk after five more saves; the step of the checkpoint that is left once there is room again.

    Raises: AssertionError: it did not end with exit code 4 and one sentence.
    """
    before = _saves_told(run)
    child, deadline = start(config), time.monotonic() + 300
    while _saves_told(run) < before + 5:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[1]
        time.sleep(0.01)
    ballast = fill(run.parent, but=but)
    _, said = child.communicate(timeout=300)
    ballast.unlink()
    assert child.returncode == 4, said
    assert "Traceback" not in said, said
    last = said.splitlines()[-1]
    assert re.match(rf"headstart: {run}/\S+: cannot be written: No space left on device \(", last), last
    assert re.search(r"[\d,]+ bytes needed, [\d,]+ free\); earlier checkpoints are intact; free some space", last), last
    found = read_checkpoint(run / "checkpoints")
    assert found is not None and found.skipped == ()
    return int(found.counters["step"])


def _saves_told(run: Path) -> int:
    path = run / "events.jsonl"
    return path.read_text().count('"event": "saved"') if path.exists() else 0


def facts(run: Path) -> dict[str, Any]:
    """Everything of a finished run that must be equal, without its clock and its name."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row | {"seconds": ""} for row in csv.DictReader(file)]
    found = read_checkpoint(run / "checkpoints")
    assert found is not None
    return {
        "weights": (run / "model" / "model.safetensors").read_bytes(),
        "last": dict(found.files) | {"state.json": {k: v for k, v in found.counters.items() if k != "run"}},
        "predictions": (run / "predictions.csv").read_text(),
        "events": [{name: value for name, value in event.items() if name not in CLOCK} for event in events],
        "rows": rows,
        "left over": [path for path in run.rglob(".*") if path.name != ".lock"],
    }
