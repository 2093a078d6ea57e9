"""Which lines could be wrong without a test noticing: a file is changed in one place at a time, and its tests are run.

    python -m benchmarks.mutation training/step.py optim/groups.py     paths below src/headstart
    python -m benchmarks.mutation training/step.py --tests tests/training/test_step.py --lines 100-160 --only survived

What is changed stands in ``benchmarks.mutants``. A first run notes which test runs which line, so that a mutant meets
only the tests that can notice it: those that caught another one of the same function first, then the quick ones. Each
mutant is a forked process in which everything is imported already: a changed function gets its new code in place, what
is outside of functions is imported anew. A test that fails, or that takes far longer, has caught it.

Survivors that are right to survive are listed with the reason in ``benchmarks/mutation_accepted.txt``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.mutants import Mutant, mutants
from benchmarks.mutation_runs import PACKAGE, ROOT, Baseline, measure_baselines
from benchmarks.mutation_verdicts import judge_all

ACCEPTED = Path(__file__).with_name("mutation_accepted.txt")
KEPT = Path("/tmp/headstart-mutation/verdicts.jsonl")  # of all runs on this machine, the last one of a mutant counts
LEFT = ("survived", "not run", "undecided")
HEAVY = ("torch", "timm", "torchvision", "hypothesis", "numpy", "PIL.Image", "safetensors.torch", "torchmetrics")
_STEP = (
    "training/test_step_exact.py training/test_step.py training/test_state.py training/test_companions.py "
    "training/test_finite.py training/test_activation_checkpointing.py training/test_retries.py "
    "training/test_module_index.py training/test_step_files.py"
)
TESTS = {
    "training/step.py": _STEP,
    "training/state.py": (
        "training/test_state.py training/test_step.py training/test_companions.py training/test_isolation.py"
    ),
    "training/companions.py": "training/test_companions.py",
    "training/average.py": "training/test_companions.py training/test_step.py",
    "training/finite.py": "training/test_finite.py training/test_step.py training/test_fit.py",
    "training/fit.py": "training/test_fit.py training/test_finite.py training/test_isolation.py",
    "training/evaluate.py": "training/test_evaluate.py training/test_isolation.py training/test_threads.py",
    "training/activation_cache.py": (
        "training/test_activations.py training/test_boundary_tensors.py training/test_own_functions.py"
    ),
    "training/phase_data.py": "training/test_activation_cache.py training/test_phases.py training/test_decoded.py",
    "training/phases.py": "training/test_phases.py training/test_activation_cache.py",
    "optim/groups.py": "optim/test_groups.py",
    "optim/penalties.py": "optim/test_penalties.py training/test_companions.py",
    "optim/schedules.py": "optim/test_schedules.py",
    "tasks/losses.py": "tasks/test_losses.py training/test_step.py",
    "surgery/boundary.py": "surgery/test_fixed_nodes.py surgery/test_boundary.py",
    "surgery/fixed_nodes.py": "surgery/test_fixed_nodes.py surgery/test_boundary.py",
    "surgery/own_state.py": "surgery/test_own_state.py runs/test_own_module_state.py",
    "surgery/freeze.py": "models/test_freeze_rules.py",
    "surgery/head.py": "surgery/test_head.py",
    "runs/checkpoint.py": (
        "runs/test_checkpoint.py runs/test_checkpoint_files.py runs/test_shared_checkpoint.py runs/test_restore.py "
        "training/test_state.py"
    ),
    "runs/resume.py": "runs/test_begin.py",
    "runs/frozen_file.py": "runs/test_frozen_file.py runs/test_checkpoint.py runs/test_checkpoint_files.py",
    "runs/optimizer_state.py": (
        "runs/test_restore_groups.py runs/test_restore.py runs/test_checkpoint.py runs/test_shared_checkpoint.py"
    ),
    "isolation.py": "training/test_isolation.py training/test_threads.py",
    "training/around_step.py": _STEP,
}


def named(path: str, found: list[Mutant]) -> dict[int, str]:
    """The key of each mutant, by its ``id``: those that look alike are numbered."""
    keys, seen = dict[int, str](), Counter[str]()
    for mutant in found:
        key = mutant.key(path, 0)
        keys[id(mutant)], seen[key] = mutant.key(path, seen[key]), seen[key] + 1
    return keys


def kept_verdicts() -> dict[str, str]:
    """What the last run said of each mutant, by its key."""
    return dict(map(json.loads, KEPT.read_text().splitlines())) if KEPT.exists() else {}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be judged of a file, and with which tests; accepted mutants are not run."""

    path: str
    tests: list[str]
    wanted: list[Mutant]
    keys: dict[int, str]

    @property
    def run(self) -> list[Mutant]:
        """Those that are not accepted."""
        accepted = accepted_keys()
        return [mutant for mutant in self.wanted if self.keys[id(mutant)] not in accepted]


def report(job: Job, baseline: Baseline, *, seconds: float) -> str:
    """Print the survivors; the counts in one line."""

    def told(mutant: Mutant, verdict: str) -> None:
        key = job.keys[id(mutant)]
        if verdict != "cold":
            KEPT.parent.mkdir(exist_ok=True)
            with KEPT.open("a") as out:
                out.write(json.dumps([key, verdict]) + "\n")
        if verdict in LEFT:
            print(f"{verdict:9} {job.path}:{mutant.line} {key.removeprefix(job.path + ' ')}", flush=True)

    counts = Counter(judge_all(PACKAGE / job.path, job.tests, job.run, told, baseline=baseline, seconds=seconds))
    counts["accepted"] = len(job.wanted) - len(job.run)
    return f"{job.path}: {len(job.wanted)} mutants, {_in_words(counts)}"


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common() if count)


def summary(path: str) -> str:
    """What is known of all mutants of a file, from every run on this machine."""
    keys, known, accepted = named(path, list(mutants((PACKAGE / path).read_text()))), kept_verdicts(), accepted_keys()
    counts = Counter("accepted" if key in accepted else known.get(key, "not judged") for key in keys.values())
    return f"{path}: {len(keys)} mutants, {_in_words(counts)}"


def main() -> None:
    """Judge the mutants of the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="below src/headstart, e.g. training/step.py")
    parser.add_argument("--tests", nargs="*", help="files or folders of tests, in place of those known for the file")
    parser.add_argument("--lines", default="0-1000000", help="only these lines, e.g. 100-160")
    parser.add_argument("--every", type=int, default=1, help="only each so many-th mutant: a sample")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of the processor, that each mutant gets")
    parser.add_argument("--only", choices=["survived"], help="those that no test noticed when they were last judged")
    parser.add_argument("--known", action="store_true", help="run nothing: counts of what was judged so far")
    chosen = parser.parse_args()
    if chosen.known:
        print("\n".join(map(summary, chosen.files)))
        return
    for name in HEAVY:
        importlib.import_module(name)
    jobs = [find_job(path, chosen) for path in chosen.files]
    for _, alike in groupby((job for job in jobs if job.wanted), key=lambda job: job.tests):
        group = list(alike)
        baselines = measure_baselines([PACKAGE / job.path for job in group], group[0].tests)
        for job, baseline in zip(group, baselines, strict=True):
            print(report(job, baseline, seconds=chosen.seconds), flush=True)


def find_job(path: str, chosen: argparse.Namespace) -> Job:
    """Of one file, as the options say."""
    tests = chosen.tests or [f"tests/{name}" for name in TESTS[path].split() if (ROOT / "tests" / name).exists()]
    every = list(mutants((PACKAGE / path).read_text()))
    keys, known = named(path, every), kept_verdicts() if chosen.only else {}
    first, last = map(int, chosen.lines.split("-"))
    found = [mutant for mutant in every if first <= mutant.line <= last]
    if chosen.only:
        found = [mutant for mutant in found if known.get(keys[id(mutant)], "survived") in LEFT]
    return Job(path=path, tests=tests, wanted=found[:: chosen.every], keys=keys)


def accepted_keys() -> set[str]:
    """Mutants that may survive; the reason stands after the last ``|``."""
    lines = ACCEPTED.read_text().splitlines() if ACCEPTED.exists() else []
    return {line.rpartition(" | ")[0] for line in lines if " | " in line and not line.startswith("#")}


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
