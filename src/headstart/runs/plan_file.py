"""plan.json: written with the SHA-256 of its contents, so that an edit is seen when it is read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.errors import StorageError
from headstart.storage.durable import json_bytes, read_json, write_json
from headstart.wording import option

_SEAL = "digest"


def write_plan(run: Path, plan: Mapping[str, Any]) -> None:
    """Write a plan, with its digest, into the run's folder.  Raises: StorageError: it cannot be written."""
    plan = {name: value for name, value in plan.items() if name != _SEAL}
    write_json(run / "plan.json", {**plan, _SEAL: hashlib.sha256(json_bytes(plan)).hexdigest()})


def read_plan(run: Path) -> dict[str, Any] | None:
    """The plan that the run there was made by; None where there is none.

    Raises: StorageError: plan.json is damaged, or was edited.
    """
    path = run / "plan.json"
    if not os.path.lexists(path):
        return None
    plan = read_json(path)
    if not isinstance(plan, dict):
        raise StorageError(f"{path}: is damaged, it is not a plan; start a new run with another {option('out')}")
    seal = plan.pop(_SEAL, None)  # plans of headstart 0.1 have none
    if seal is not None and seal != hashlib.sha256(json_bytes(plan)).hexdigest():
        raise StorageError(
            f"{path}: was edited since the run wrote it; put it back, or start a new run with another {option('out')}"
        )
    return plan


def read_run_digest(run: Path) -> str | None:
    """The digest by which the run's checkpoints are known; None where the run is older than that.

    Raises: StorageError: plan.json is damaged, or was edited.
    """
    digest = (read_plan(run) or {}).get("run")
    return digest if isinstance(digest, str) else None
