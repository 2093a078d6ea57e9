"""Faults put into a copy of the package, one at a time: the small cases, then drawn ones, must show each of them.

python -m tests.fuzz_modules --planted
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
FAULTS = Path(__file__).with_name("planted_faults.txt")
SECONDS = 900  # for one fault


@dataclass(frozen=True)
class Fault:
    """Text that is replaced, once in its file: file, what is there, what comes in its place."""

    name: str
    edits: tuple[tuple[str, str, str], ...]


def faults() -> list[Fault]:
    """Those of planted_faults.txt: a name (==), then per file (@) the text that goes (-) and what comes (+)."""
    found: list[Fault] = []
    for block in re.split(r"^== ", FAULTS.read_text(), flags=re.M)[1:]:
        name, _, rest = block.partition("\n")
        edits = []
        for part in re.split(r"^@ ", rest, flags=re.M)[1:]:
            path, _, lines = part.partition("\n")
            old, new = (
                "\n".join(line[1:] for line in lines.splitlines() if line.startswith(sign)) for sign in ("-", "+")
            )
            edits.append((path.strip(), old, new))
        found.append(Fault(name, tuple(edits)))
    return found


def plant(fault: Fault, package: Path) -> dict[Path, str]:
    """Put a fault into a copy; what was there, by file.  Raises: ValueError: the lines are not there any more."""
    before: dict[Path, str] = {}
    for name, old, new in fault.edits:
        path = package / name
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{name} has {text.count(old)} times {old.strip()[:60]!r}")
        before.setdefault(path, text)
        path.write_text(text.replace(old, new))
    return before


def find(root: Path, *, names: Sequence[str], seeds: int) -> dict[str, str]:
    """Laws broken by the small cases and then by drawn ones, in a process of its own; it ends at the first."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("fuzz_modules.py")), "--hunt", ",".join(names)]
    command += ["--count", str(seeds)]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {}
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"the package": (ran.stderr.strip().splitlines() or ["nothing"])[-1][:200]}
    return dict(json.loads(lines[-1]))


def hunt(chosen: str = "") -> int:
    """Plant every fault and tell what found it; how many were not found."""
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        root = Path(folder)
        broken = find(root, names=["ALL"], seeds=0)
        print(
            f"without a fault: {', '.join(f'{name}: {what}' for name, what in broken.items()) or 'all hold'}",
            flush=True,
        )
        for fault in (planted := faults()):
            if chosen not in fault.name:
                continue
            try:
                before = plant(fault, root / "headstart")
            except ValueError as error:
                missed += 1
                print(f"CANNOT BE PLANTED  {fault.name}: {error}", flush=True)
                continue
            found = find(root, names=[*broken] or ["-"], seeds=40)
            for path, text in before.items():
                path.write_text(text)
            missed += not found
            told = next((f"{name}: {what}" for name, what in found.items()), "")
            print(f"{'found ' if found else 'MISSED'}  {fault.name}  {told[:200]}", flush=True)
    print(f"{missed} of {len(planted)} faults were not found")
    return missed
