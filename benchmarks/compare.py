"""This checkout beside an older one: CPU seconds of the same work, turn by turn.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.compare head /tmp/before       whole runs, those of ``benchmarks.speed head``
    python -m benchmarks.compare plan /tmp/before       planning alone, ants and bees under HEADSTART_DATA
    python -m benchmarks.compare overhead /tmp/before   a step beyond its mathematics, as ``benchmarks.overhead`` has it

Each turn is a process of its own with one thread and an empty cache, imports aside, and random weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.speed_job import Job

HERE = Path(__file__).parents[1]
PLAN = """
import json, sys, time
import torch
import torch._dynamo
torch.set_num_threads(1)
import headstart as hs
options = json.loads(sys.argv[1])
torch.manual_seed(0)
started = time.process_time()
hs.plan(hs.load_config(options))
print(time.process_time() - started)
"""
STEPS = """
import sys
import torch
torch.set_num_threads(1)
from benchmarks.overhead import STEPS, Preloaded, ours
data = Preloaded()
for _ in sys.stdin:
    print(ours(data, ready=True) / STEPS * 1e6, flush=True)
"""
Turn = Callable[[Path], float]
"""Checkout -> figure of one turn."""


def environment_of(checkout: Path, folder: Path) -> dict[str, str]:
    """The environment of a process that has the checkout's package and benchmarks, and one thread."""
    return os.environ | {
        "PYTHONPATH": f"{checkout / 'src'}:{checkout}", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        "HEADSTART_CACHE": str(folder / "cache"), "SPEED_SCRATCH": str(folder),
    }  # fmt: skip


def run_python(checkout: Path, *words: str, folder: Path) -> str:
    """Run Python with the checkout's package, and return the last line that it prints."""
    command, environment = [sys.executable, *words], environment_of(checkout, folder)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: {done.stderr.strip()}")
    return done.stdout.strip().splitlines()[-1]


def plan_seconds(checkout: Path, *, model: str, recipe: str) -> float:
    """CPU seconds of ``hs.plan``, from the call to its return."""
    data = Path(os.environ.get("HEADSTART_DATA", HERE / ".." / "shared")).resolve() / "data" / "hymenoptera"
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "data": {"source": str(data)}, "recipe": recipe, "out": f"{folder}/run", "device": "cpu",
            "model": {"name": f"timm/{model}", "weights": "none"},
        }  # fmt: skip
        return float(run_python(checkout, "-c", PLAN, json.dumps(options), folder=Path(folder)))


def head_seconds(checkout: Path, *, job: Job) -> float:
    """CPU seconds of one run of ``benchmarks.speed head``, as that counts them."""
    with tempfile.TemporaryDirectory() as folder:
        found = run_python(checkout, "-m", "benchmarks.speed_own", job.text(), folder=Path(folder))
    return float(json.loads(found)["cpu_seconds"])


@contextmanager
def step_turns(checkouts: Iterable[Path], folder: Path) -> Iterator[dict[str, Turn]]:
    """Processes that stay, one per checkout, so that turns are short: each gives the CPU time of a step of ``fit`` on a
    small network, over 1,000 of them.
    """
    with ExitStack() as stack:
        processes = {
            checkout: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", STEPS], env=environment_of(checkout, folder), cwd=folder, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                )
            )
            for checkout in checkouts
        }  # fmt: skip

        def turn(checkout: Path) -> float:
            process = processes[checkout]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        for checkout in processes:
            turn(checkout)  # warms up
        yield {"step of fit, us": turn}


def head_turns(models: list[str], images: int, work: Path) -> dict[str, Turn]:
    """Each model in fp32 and in what headstart chooses, on photos and weights that are made once."""
    work.mkdir(parents=True, exist_ok=True)
    made = (sys.executable, "-m", "benchmarks.speed_photos")
    photos = work / f"photos-{images}"
    subprocess.run([*made, "photos", str(photos), str(images), "0"], check=True)
    turns: dict[str, Turn] = {}
    for model in models:
        weights = work / f"{model}.safetensors"
        subprocess.run([*made, "weights", str(weights), model], check=True)
        job = Job(tool="headstart", work="head", model=model, data=str(photos), weights=str(weights), epochs=10)
        for one in (job, dataclasses.replace(job, auto=True)):
            turns[f"{model}, {one.arithmetic}, CPU s"] = partial(head_seconds, job=one)
    return turns


@contextmanager
def choose_turns(given: argparse.Namespace, checkouts: Iterable[Path]) -> Iterator[dict[str, Turn]]:
    """What is measured, by its name in the table."""
    if given.what == "overhead":
        with tempfile.TemporaryDirectory() as folder, step_turns(checkouts, Path(folder)) as turns:
            yield turns
    elif given.what == "head":
        yield head_turns(given.models or ["resnet18", "vit_tiny_patch16_224"], given.images, given.work)
    else:
        yield {
            f"plan, {model}, {recipe}, CPU s": partial(plan_seconds, model=model, recipe=recipe)
            for model in given.models or ["resnet18"]
            for recipe in given.recipes
        }


def compare(name: str, turn: Turn, checkouts: Mapping[str, Path], *, repeats: int) -> str:
    """Take the turns, and return the row of the table."""
    found: dict[str, list[float]] = {which: [] for which in checkouts}
    for _ in range(repeats):
        for which, checkout in checkouts.items():
            found[which].append(turn(checkout))
            print(f"{name}, {which}: {found[which][-1]:.2f}", file=sys.stderr, flush=True)
    cells = " | ".join(
        f"{statistics.median(values):.2f} | {min(values):.2f} .. {max(values):.2f}" for values in found.values()
    )
    pairs = statistics.median(now / before for before, now in zip(found["before"], found["now"], strict=True))
    return f"| {name} | {cells} | {pairs - 1:+.1%} | {min(found['now']) / min(found['before']) - 1:+.1%} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["head", "plan", "overhead"])
    parser.add_argument("before", type=Path, help="another checkout")
    parser.add_argument("--recipes", nargs="+", default=["probe", "lp_ft"], help="of plan")
    parser.add_argument("--models", nargs="+", help="timm's names, of all but overhead")
    parser.add_argument("--images", type=int, default=600, help="photos of head, a fifth of them for validation")
    parser.add_argument("--work", type=Path, default=Path("/tmp/headstart-speed"), help="where head's photos are made")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    checkouts = {"before": given.before.resolve(), "now": HERE}
    print("| what | before, median | least .. most | now, median | least .. most | median of pairs | of the least |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with choose_turns(given, checkouts.values()) as turns:
        for name, turn in turns.items():
            print(compare(name, turn, checkouts, repeats=given.repeats), flush=True)


if __name__ == "__main__":
    main()
