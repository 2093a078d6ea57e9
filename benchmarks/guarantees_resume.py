"""What changes between a kill and ``--resume``: each change is noticed, or the run ends in the same bits.

    python -m benchmarks.guarantees_resume            # all changes; a few minutes
    python -m benchmarks.guarantees_resume own config # those whose kind begins so

Three small runs are killed after their third checkpoint: a module and a loss of one's own, a model of timm with weights
in a file and cached features, and a table of numbers. Before each resume one thing is changed.
"""

from __future__ import annotations

import sys
from collections import Counter

from tests.reliability.changed_resumes import KINDS, Outcome, outcomes


def table(found: list[Outcome]) -> str:
    """Markdown: counts by kind, and each change."""
    kinds = list(dict.fromkeys(one.kind for one in found))
    lines = ["| kind | changes | refused by name | same bits | broken |", "|---|---:|---:|---:|---:|"]
    for kind in (*kinds, "all"):
        counts = Counter(one.verdict.partition(":")[0] for one in found if kind in (one.kind, "all"))
        refused, same = counts["refused"], counts["same bits"]
        lines.append(f"| {kind} | {counts.total()} | {refused} | {same} | {counts.total() - refused - same} |")
    lines += ["", "| kind | change | outcome | words |", "|---|---|---|---|"]
    for one in found:
        words = one.words.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {one.kind} | {one.change} | {one.verdict} | {words[:160]} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; exit code 1 where a change was neither noticed nor without effect."""
    kinds = [kind for kind in KINDS if not sys.argv[1:] or kind.startswith(tuple(sys.argv[1:]))]
    found = []
    for one in outcomes(kinds):
        found.append(one)
        print(f"{one.kind}: {one.change}: {one.verdict}", file=sys.stderr, flush=True)
    print(table(found))
    sys.exit(any(one.verdict not in ("refused", "same bits") for one in found))


if __name__ == "__main__":
    main()
