"""Heads, layout, freezing, boundary and groups on every architecture of timm and torchvision, on the meta device.

    python -m benchmarks.zoo                      run what is missing in two processes, then write docs/measured/zoo.md
    python -m benchmarks.zoo --only 'timm/vit*'   some architectures
    python -m benchmarks.zoo --table              only write the page

Nothing is downloaded and no weights are allocated, so that models of billions of parameters are examined too. Each
architecture is one line in benchmarks/results/zoo.jsonl; what is there is not run again. `python -m
benchmarks.zoo_real` goes on where values are needed.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import warnings
from collections.abc import Iterator
from datetime import date
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from benchmarks.zoo_page import RESULTS, read_rows, running_on, write_page
from tests.reliability.architectures import examine, names, verdicts


def run(name: str) -> dict[str, Any]:
    """Examine in a process of its own pool, on one thread."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return examine(name) | {"on": running_on()}


def missing(only: str) -> Iterator[str]:
    """Architectures that match and have no line yet."""
    there = {row["name"] for row in read_rows(RESULTS)}
    return (name for name in names() if name not in there and fnmatch.fnmatchcase(name, only))


def run_missing(only: str, processes: int) -> None:
    """Examine every architecture that has no line yet, and append each as it is done."""
    todo = list(missing(only))
    RESULTS.parent.mkdir(exist_ok=True)
    # ProcessPoolExecutor's max_tasks_per_child hangs in Python 3.11 (cpython issue 115634)
    with get_context("spawn").Pool(processes, maxtasksperchild=50) as pool:
        for number, row in enumerate(pool.imap_unordered(run, todo), start=1):
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            failed = [f"{check}: {reason}" for check, reason in verdicts(row) if reason != "pass"]
            print(f"{number} of {len(todo)}: {row['name']}", *failed, sep="\n    " if failed else "", flush=True)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="glob over library/NAME")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if not arguments.table:
        run_missing(arguments.only, arguments.processes)
    write_page(today=date.today().isoformat())


if __name__ == "__main__":
    main()
