"""P4, the long form: 3,000 damaged checkpoints and bundles, each refused by name or read as the very bytes written.

python -m benchmarks.reliability.damage
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import torch

import headstart as hs
from benchmarks.reliability.results import keep
from tests.reliability.damaged_files import bundles, checkpoints, judged, read_as_checkpoint, read_as_model, read_as_run
from tests.reliability.lives import small_sections
from tests.reliability.saves import scratch

CHECKPOINTS, BUNDLES = 2400, 300  # a bundle is read through two doors
MUTANTS = CHECKPOINTS + 2 * BUNDLES


def main() -> None:
    """The mutants of checkpoints, and those of bundles through both doors."""
    torch.set_num_threads(1)
    draw, found = random.Random(0), Counter[str]()
    with scratch() as work:
        pairs = [(*checkpoints(work / "checkpoints"), read_as_checkpoint, CHECKPOINTS)]
        one, two = bundles(_small_run(work), work / "bundles")
        pairs += [(one, two, read_as_run, BUNDLES), (one, two, read_as_model, BUNDLES)]
        for one, two, read, count in pairs:
            whole = read(one), read(two)
            found.update(judged(one, two, read, whole, draw) for _ in range(count))
    wrong = {line: count for line, count in found.items() if line not in ("refused", "same")}
    for line in sorted(wrong)[:20]:
        print(line)
    keep(
        "P4", what="2,400 damaged checkpoints, 600 bundles and model folders (bits, cuts, insertions, deletions, files "
        "of another generation, exchanged, renamed, removed)",
        goal="all refused by file name, or read as the bytes written", met=not wrong and found.total() == MUTANTS,
        found=f"{found['refused']:,} refused, {found['same']:,} byte-identical, {sum(wrong.values())} other",
        command="python -m benchmarks.reliability.damage",
        note="byte-identical: white space in a manifest, a file swapped for an equal one. The hash proves integrity, "
        "not origin; the records of a run that hold no weights (events, result, plan) carry none",
    )  # fmt: skip


def _small_run(work: Path) -> Path:
    sections = small_sections(work / "data", work / "run") | {"epochs": 1, "recipe": "full"}
    return hs.train(hs.load_config(sections)).path


if __name__ == "__main__":
    main()
