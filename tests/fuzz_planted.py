"""Faults put into a copy of the package, one at a time: small cases, named tests or drawn modules must show each.

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
    that are tried before the others; ``tests``: named ones, by their pytest ids, that are run where these hold."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    first: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


def faults() -> list[Fault]:
    """Those of planted_faults.txt: a name (==), cases to begin with (?), tests (!), then per file (@) the text that
    goes (-) and what comes (+)."""
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
        first, tests = (re.findall(rf"^{sign} (.*)$", rest, flags=re.M) for sign in (r"\?", "!"))
        cases = tuple(one for line in first for one in line.split(", "))
        found.append(Fault(name, tuple(edits), cases, tuple(tests)))
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


def run_tests(root: Path, tests: Sequence[str]) -> str:
    """The first of these tests that fails on the package in ``root``; empty where all pass.

    Raises: ValueError: they do not run at all.
    """
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(
        command, cwd=SOURCE.parent, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if ran.returncode not in (0, 1):
        raise ValueError(f"pytest ended with {ran.returncode}: {(ran.stdout + ran.stderr).strip()[-200:]}")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, flags=re.M)
    return "" if ran.returncode == 0 else (failed or ["a test"])[0]


def search(root: Path, fault: Fault, *, skipped: Sequence[str], seeds: int) -> tuple[str, str]:
    """What shows a planted fault, and how: its small cases, its named tests, then all cases and drawn modules."""
    found = find(root, skipped=skipped, first=fault.first, seeds=-1) if fault.first else {}
    if not found and fault.tests and (failed := run_tests(root, fault.tests)):
        return "named test", failed
    if not found and seeds >= 0:
        found = find(root, skipped=skipped, seeds=seeds)
    return next((("small case", f"{name}: {what}") for name, what in found.items()), ("nothing", ""))


def hunt(chosen: str = "", *, seeds: int = 40) -> int:
    """Plant every fault and print a table of what found it; how many were not found.

    Without a fault the same cases and tests must hold. ``chosen``: words in the names of the faults that are meant;
    ``seeds``: drawn modules; -1: only the cases and tests that the faults name themselves.
    """
    missed, planted = 0, [fault for fault in faults() if chosen in fault.name]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        root = Path(folder)
        first = list(dict.fromkeys(case for fault in planted for case in fault.first))
        broken = find(root, skipped=["ALL"], first=first, seeds=min(seeds, 0))
        tests = list(dict.fromkeys(test for fault in planted for test in fault.tests))
        failed = run_tests(root, tests) if tests else ""
        print("without a fault:", ", ".join([*broken, *filter(None, [failed])]) or "all hold", flush=True)
        print("\n| fault | found by | what was seen |\n|---|---|---|", flush=True)
        for fault in planted:
            before = dict[Path, str]()
            try:
                before = plant(fault, root / "headstart")
                by, what = search(root, fault, skipped=[*broken], seeds=seeds)
            except ValueError as error:
                by, what = "nothing", f"cannot be planted: {error}"
            restore(before)
            missed += by == "nothing"
            print(f"| {fault.name} | {by} | {what[:160].replace('|', ' ')} |", flush=True)
    print(f"\n{missed} of {len(planted)} faults were not found")
    return missed + bool(failed)
