"""Runs of a few seconds on drawn pictures, and processes that live through a part of one: what the long forms share."""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"blue": (60, 60, 160), "green": (60, 160, 60), "red": (160, 60, 60)}
CLOCK = ("seconds", "images_per_second", "input_seconds")
LATE = (  # what headstart imports when it needs it
    "torch._dynamo", "peft", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "typeguard",
)  # fmt: skip


def pictures(root: Path, *, each: int, side: int = 32) -> Path:
    """Class folders of noisy coloured pictures."""
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = np.array(colour) + draw.normal(0, 50, (side, side, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{number:03}.png")
    return root


def settings(source: Path, out: Path, **sections: Any) -> dict[str, Any]:
    """Options of a short run; sections given are added."""
    small: dict[str, Any] = {
        "data": {"source": str(source)},
        "model": {
            "name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]},
        },
        "batch": {"size": 8}, "device": "cpu", "out": str(out),
    }  # fmt: skip
    for name, value in sections.items():
        both = isinstance(value, dict) and isinstance(small.get(name), dict)
        small[name] = small[name] | value if both else value
    return small


def small_sections(data: Path, out: Path, *, channels: tuple[int, ...] = (8, 8, 16, 16)) -> dict[str, Any]:
    """A small network on 36 noisy pictures."""
    draw = np.random.default_rng(0)
    for name in ("blue", "green", "red") if not data.exists() else ():
        (data / name).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / name / f"{number:02}.png")
    return {
        "data": {"source": str(data)}, "batch": {"size": 8}, "workers": 0, "device": "cpu", "out": str(out),
        "model": {
            "name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": list(channels)},
        },
    }  # fmt: skip


def facts(run: Path) -> dict[str, Any]:
    """Everything that a finished run leaves, without its clock and the times of its saves."""
    from headstart.runs.checkpoint import read_checkpoint

    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    result = json.loads((run / "result.json").read_text())
    last = read_checkpoint(run / "checkpoints")
    assert last is not None
    return {
        "weights": (run / "model" / "model.safetensors").read_bytes(),
        "last": dict(last.files) | {"state.json": {k: v for k, v in last.counters.items() if k != "run"}},
        "predictions": (run / "predictions.csv").read_text(),
        "events": [
            {name: value for name, value in event.items() if name not in CLOCK}
            for event in events
            if event["event"] != "saved"
        ],
        "rows": rows,
        "result": {name: value for name, value in result.items() if name != "seconds"},
    }


@dataclass
class Life:
    """A process in a session of its own that runs a headstart command; its messages go to a file."""

    pid: int
    said: Path

    def wait(self) -> int:
        """Until it has ended: its exit code, or minus the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def is_over(self) -> bool:
        """Whether it has ended (it is still to be waited for)."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def fresh(words: list[str], said: Path) -> Life:
    """A new interpreter: imports and all."""
    return _forked(lambda: os.execv(sys.executable, [sys.executable, "-m", "headstart.cli.main", *words]), said)


def forked(words: list[str], said: Path, *, environment: Mapping[str, str] = MappingProxyType({})) -> Life:
    """A copy of this process, whose imports are done: they were three quarters of a short life, and of its kills."""
    _import_all()

    def live() -> None:
        from headstart.cli.main import main

        os.environ.update(environment)
        sys.argv = ["headstart.py", *words]
        os._exit(main())

    return _forked(live, said)


@functools.cache
def _import_all() -> None:
    import headstart

    for module in pkgutil.walk_packages(headstart.__path__, "headstart."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)


def _forked(live: Any, said: Path) -> Life:
    pid = os.fork()
    if pid:
        return Life(pid, said)
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # a job in the background has Ctrl-C ignored, and keeps it so
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        live()
    finally:
        os._exit(99)


def survivors(session: int, *, seconds: float = 10.0) -> list[int]:
    """Living processes of a session, after they have had that long to notice."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, of, *_ = status.read_text().rpartition(")")[2].split()
                found += [int(status.parent.name)] * (int(of) == session and state != "Z")
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)
