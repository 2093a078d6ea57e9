"""docs/measured/zoo.md from the lines of ``benchmarks.zoo`` and ``benchmarks.zoo_real``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.workload import refuse_mixed

HERE = Path(__file__).parent
RESULTS, REAL_RESULTS = HERE / "results" / "zoo.jsonl", HERE / "results" / "zoo_real.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "measured" / "zoo.md"
GROUPS = ("heads", "freeze", "boundary")
ARCHITECTURES = 1451  # of timm 1.0.31 (1,371) and torchvision 0.29 (80)
EXAMINED_ON = "timm 1.0.31, torchvision 0.29"
"""What the page says; also where the rows ran that do not say it."""
ENCODER = "timm's encoder without a classifier: it gives tokens or maps, no scores; its sibling without `_enc` has one"
UNTRACEABLE = "torch.fx cannot trace it (its path depends on values): the layout comes from hooks, there is no boundary"

INTRODUCTION = """# The zoo: every architecture

`python -m benchmarks.zoo` builds every classification architecture of timm 1.0.31 and torchvision 0.29 on PyTorch's
`meta` device (shapes without values, so that none is too large) and checks, for each:

- **layout**: traced with torch.fx, or seen through hooks; **order**: hooks see the layers called in its order;
- **heads**: linear, MLP, one number, tags: scores of the right shape in training and evaluation, a gradient in every
  parameter of the head, every other tensor the same object as before, the replaced path reported;
- **freeze** at a quarter, half and three quarters of the stages: just what executes first is frozen, and every module
  that is all frozen stays in eval through `train()`;
- **boundary** at the same depths: the graph is cut behind all that is frozen, and both halves give the model's shapes;
- **groups**: each parameter once, rates that never rise from output to input, one per stage, no decay on norms,
  biases, tokens and position tables."""
WITH_VALUES = """## With values

`python -m benchmarks.zoo_real` trains the smallest member of every module for 5 steps of AdamW from random weights with
dropout, stochastic depth, a moving average (EMA) and mixup, the first half of the stages frozen: every frozen tensor is
bit for bit as before, in the average too; what crosses the boundary depends on neither batch mates nor mode; both
halves give the model's outputs bit for bit; every trainable tensor that the model uses gets a gradient."""


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def running_on() -> str:
    """The versions that a row is made with, as the page names them."""
    return f"timm {version('timm')}, torchvision {'.'.join(version('torchvision').split('.')[:2])}"


def write_page(*, today: str) -> None:
    """Totals, exceptions, then a row per architecture."""
    rows, real = sorted(read_rows(RESULTS), key=lambda row: str(row["name"])), read_rows(REAL_RESULTS)
    works = ((row["name"], {"on": row.get("on", EXAMINED_ON)}) for row in [*rows, *real])
    refuse_mixed(works, page=PAGE.name, said={"on": EXAMINED_ON})
    lines = [*introduction(rows, today), *totals(rows), *exceptions(rows, today)]
    lines += [*real_values(real, today), *table(rows)]
    PAGE.write_text("\n".join(lines) + "\n")


def introduction(rows: Sequence[dict[str, Any]], today: str) -> Iterable[str]:
    """What was examined, and how."""
    yield from INTRODUCTION.splitlines()
    yield ""
    if len(rows) < ARCHITECTURES:
        yield f"**Not complete: {len(rows):,} of {ARCHITECTURES:,} have been examined so far** ({today}), of these the"
        yield "smallest of every module; the same checks on those are in the default tests."
        yield ""


def totals(rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    """How many pass each check, by library."""
    yield "| check | timm | torchvision | all |"
    yield "|---|---:|---:|---:|"
    checks = {
        "layout traced": lambda row: row["layout"] == "fx",
        "order as called": lambda row: row["order"] == "pass",
        "all four heads": lambda row: passes(row["heads"].values()),
        "freeze at three depths": lambda row: passes(row["freeze"].values()),
        "boundary at three depths": lambda row: passes(row["boundary"].values()),
        "groups": lambda row: row["groups"] == "pass",
    }
    for name, check in checks.items():
        cells = []
        for library in ("timm/", "torchvision/", ""):
            chosen = [row for row in rows if row["name"].startswith(library)]
            cells.append(f"{sum(map(check, chosen)):,} of {len(chosen):,}")
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def passes(verdicts: Iterable[str]) -> bool:
    """Whether all of them do."""
    return all(verdict == "pass" for verdict in verdicts)


def reasons(row: dict[str, Any]) -> dict[str, str]:
    """Check -> reason, of what does not pass."""
    named = {"order": row["order"], "groups": row["groups"]}
    named |= {f"{group} {name}": verdict for group in GROUPS for name, verdict in row[group].items()}
    return {name: verdict for name, verdict in named.items() if verdict != "pass"}


def exceptions(rows: Sequence[dict[str, Any]], today: str) -> Iterable[str]:
    """A dated line with its cause for everything that does not pass, architectures with the same cause together."""
    causes: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        found = reasons(row)
        if row["name"].endswith("_enc"):
            causes[ENCODER].append(row["name"])
        elif row["layout"] != "fx" and all(name.startswith("boundary") for name in found):
            causes[UNTRACEABLE].append(row["name"])
        elif found:
            causes["; ".join(f"{name}: {reason}" for name, reason in found.items())].append(row["name"])
    yield "## Exceptions"
    yield ""
    for cause, names in causes.items():
        yield f"- {today}: {', '.join(names)}: {cause.replace('|', '/')}"
    if not causes:
        yield "None."
    yield ""


def real_values(rows: Sequence[dict[str, Any]], today: str) -> Iterable[str]:
    """What was checked with values, on real tensors."""
    if not rows:
        return
    yield from WITH_VALUES.splitlines()
    yield ""
    bad = [row for row in rows if row["verdict"] != "pass"]
    yield f"**{len(rows) - len(bad)} of {len(rows)}** ({', '.join(count_by_library(rows))}; {today})."
    yield ""
    for row in bad:
        yield f"- {today}: {row['name']}: {row['verdict'].replace('|', '/')}"
    if bad:
        yield ""


def count_by_library(rows: Sequence[dict[str, Any]]) -> list[str]:
    """E.g. 98 of timm."""
    libraries = [row["name"].partition("/")[0] for row in rows]
    return [f"{libraries.count(library)} of {library}" for library in dict.fromkeys(libraries)]


def table(rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    """A row per architecture."""
    yield "## Each architecture"
    yield ""
    yield "Heads: linear, MLP, one number, tags. Freeze and boundary: a quarter, half, three quarters of the stages."
    yield "`+` passes; `-` does not, see above."
    yield ""
    yield "| architecture | parameters | stages | head | layout | order | heads | freeze | boundary | groups |"
    yield "|---|---:|---:|---|---|---|---|---|---|---|"
    for row in rows:
        marks = [" ".join(map(mark, row[group].values())) for group in GROUPS]
        head = ", ".join(f"`{path}`" for path in row["head"]) or "-"
        cells = (row["name"], f"{row['parameters']:,}", row["stages"], head, row["layout"], mark(row["order"]),
                 *marks, mark(row["groups"]))  # fmt: skip
        yield "| " + " | ".join(map(str, cells)) + " |"


def mark(verdict: str) -> str:
    """``+`` or ``-``."""
    return "+" if verdict == "pass" else "-"
