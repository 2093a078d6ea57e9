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
    """Text that is replaced, once in its file: file, what is there, what comes in its place; ``first``: small cases
    that are tried before the others."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    first: tuple[str, ...] = ()


def faults() -> list[Fault]:
    """Those of planted_faults.txt: a name (==), cases to begin with (?), then per file (@) the text that goes (-)
    and what comes (+)."""
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
        first = re.findall(r"^\? (.*)$", rest, flags=re.M)
        found.append(Fault(name, tuple(edits), tuple(one for line in first for one in line.split(", "))))
    return found


def plant(fault: Fault, package: Path) -> dict[Path, str]:
    """Put a fault into a copy; what was there, by file.  Raises: ValueError: the text is not there any more."""
    before: dict[Path, str] = {}
    for name, old, new in fault.edits:
        path = package / name
        text = path.read_text()
        if text.count(old) != 1:
            restore(before)
            raise ValueError(f"{name} has {text.count(old)} times {old.strip()[:60]!r}")
        before.setdefault(path, text)
        path.write_text(text.replace(old, new))
    return before


def restore(before: dict[Path, str]) -> None:
    """The files as they were."""
    for path, text in before.items():
        path.write_text(text)


def find(root: Path, *, skipped: Sequence[str], first: Sequence[str] = (), seeds: int = 0) -> dict[str, str]:
    """Laws broken by the small cases and then by drawn ones, in a process of its own; it ends at the first.

    Raises: ValueError: the package does not run at all.
    """
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    told = json.dumps([list(skipped), list(first)])
    program = str(Path(__file__).with_name("fuzz_modules.py"))
    command = [sys.executable, program, "--hunt", told, "--count", str(seeds)]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {}
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError((ran.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200])
    return dict(json.loads(lines[-1]))


def hunt(chosen: str = "", *, seeds: int = 40) -> int:
    """Plant every fault and tell what found it; how many were not found.

    ``chosen``: words in the names of those that are meant; ``seeds``: drawn modules; -1: only the cases that the faults
    name themselves.
    """
    missed, planted = 0, [fault for fault in faults() if chosen in fault.name]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        root = Path(folder)
        broken = {} if seeds < 0 else find(root, skipped=["ALL"])
        print("without a fault:", ", ".join(broken) or "all hold", flush=True)
        for fault in planted:
            found, told, before = dict[str, str](), "", dict[Path, str]()
            try:
                before = plant(fault, root / "headstart")
                found = find(root, skipped=[*broken], first=fault.first, seeds=seeds)
            except ValueError as error:
                told = f"cannot be planted: {error}"
            restore(before)
            missed += not found
            told = next((f"{name}: {what}" for name, what in found.items()), told)
            print(f"{'found ' if found else 'MISSED'}  {fault.name}  {told[:200]}", flush=True)
    print(f"{missed} of {len(planted)} faults were not found")
    return missed
