"""What each promise showed: one line of benchmarks/results/reliability.jsonl each, and the page made of them."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "reliability.jsonl"
PAGE = HERE.parent / "reliability.md"
PROMISES = {
    "P1": "killed at any instant and resumed: the same bits",
    "P2": "no acknowledged checkpoint is lost or half-seen",
    "P3": "a save that fails harms nothing and says why",
    "P4": "damage is refused by name",
    "P5": "data cannot run code",
    "P6": "the weights are the ones named",
    "P7": "damaged images cost only themselves",
    "P8": "frozen is frozen",
    "P9": "splitting the batch does not change the mathematics",
    "P10": "nothing non-finite passes",
    "P11": "ranks live and die together",
    "P12": "an interrupt is a save",
    "P13": "wrong input gets one clear sentence",
    "P14": "labels and splits are what they seem",
    "P15": "it says what it does not promise",
    "cost": "what all this costs",
}


def keep(promise: str, *, what: str, goal: str, found: str, met: bool, command: str, **details: Any) -> None:
    """Keep one result (the last one of a promise and ``what`` counts), print it, and write the page again.

    ``what``: what was done, in one sentence; ``goal`` and ``found``: figures as text, e.g. ``1,020 of 1,020``.
    """
    assert promise in PROMISES, promise
    line = {
        "promise": promise, "what": what, "goal": goal, "found": found, "met": met, "command": command,
        "date": date.today().isoformat(), "torch": version("torch"), "python": platform.python_version(),
        "cores": os.cpu_count(), **details,
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{promise} {what}: {found} (goal {goal})")
    write_page()


def write_page() -> None:
    """benchmarks/reliability.md from the results."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    found = {(row["promise"], row["what"]): row for row in map(json.loads, lines)}
    order = {promise: place for place, promise in enumerate(PROMISES)}
    rows = sorted(found.values(), key=lambda row: order[row["promise"]])
    text = [
        "# Reliability: what was promised and what was found", "",
        "Every row is one command, run from the repository's root; the quick forms are in the default tests. "
        "Figures are those of the machine that ran it (CPU; the versions stand in `results/reliability.jsonl`).", "",
        "| promise | what was done | goal | found | command |", "|---|---|---|---|---|",
        *(
            f"| {row['promise']} {PROMISES[row['promise']]} | {row['what']} | {row['goal']} | "
            f"{row['found']}{'' if row['met'] else ' **short**'} | `{row['command']}` |"
            for row in rows
        ),
        *_notes(rows),
    ]  # fmt: skip
    PAGE.write_text("\n".join(text) + "\n", encoding="utf-8")


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    notes = [f"- {row['promise']}, {row['what']}: {row['note']}" for row in rows if row.get("note")]
    return ["", "## Notes", "", *notes] if notes else []
