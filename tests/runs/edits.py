"""Records of runs and checkpoints, changed by somebody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.storage.durable import read_folder, write_folder


def edit_state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint's state.json, and make its manifest anew."""
    files = read_folder(folder)
    counters = json.loads(files["state.json"])
    change(counters)
    write_folder(folder, files | {"state.json": json.dumps(counters).encode()})


def edit_json(path: Path, **values: object) -> dict[str, Any]:
    """Change a JSON file in place; what it held."""
    before: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(before | values))
    return before
