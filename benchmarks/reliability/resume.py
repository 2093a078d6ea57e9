"""P1: runs killed by SIGKILL at random instants and gone on with must end with the bits of one that was never stopped.

    python -m benchmarks.reliability.resume [--runs 25] [--seed 0]      --runs 0: the twelve cases alone
    python -m benchmarks.reliability.resume --ranks 2 [--runs 25]       the same in several processes (gloo)

Each run draws its recipe, its precision and how often it saves; each life its number of loading processes (0, 2, 3) and
its end, uniform over the length of a whole life: in the scan, a step, a save, validation, a new phase, the report.
Afterwards the twelve cases in which other trainers were measured: 30 steps, 10 an epoch, saved every 5, killed after
step 7, 17, 20 and 23, with and without random augmentation, with 0 and 2 loading processes.

Of several processes, one that is drawn or all of them are killed at the instant; half of the runs share the model out
(FSDP2), and every fifth goes through ``--devices`` and its launcher, whose processes import everything anew; the ranks
of the others are copies of this process in torchrun's environment. Where one was killed, the others must have ended by
themselves, without a traceback, before the next life starts.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import headstart as hs
from benchmarks.reliability.results import keep
from headstart.config.load import write_yaml
from tests.reliability.groups import Group, start
from tests.reliability.lives import facts, pictures, settings

EVERYTHING: dict[str, Any] = {
    "epochs": 4, "head": {"kind": "mlp", "hidden": [8], "dropout": 0.5},
    "augment": {"preset": "strong", "mixup": 0.4, "cutmix": 0.4}, "average": {"kind": "ema", "half_life": 0.2},
    "batch": {"size": 8, "accumulate": 3, "clip_norm": 1.0}, "schedule": {"kind": "cosine"},
}  # fmt: skip
EACH, KILLS = 66, (7, 17, 20, 23)  # of the twelve cases: pictures of a class, of which 159 are trained on; steps
RECIPES = ("lp_ft", "gradual", "lora", "full")


@dataclass(frozen=True)
class End:
    """When a life ends, and which rank is killed (None: every process)."""

    seconds: float
    rank: int | None = None


@dataclass
class Tally:
    """What happened in all runs."""

    kills: int = 0
    of_one: int = 0
    in_saves: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def drawn(draw: random.Random, number: int, *, ranks: int = 1) -> dict[str, Any]:
    """The options of one run."""
    recipe = RECIPES[number % len(RECIPES)]
    options = EVERYTHING | {
        "recipe": recipe,
        "precision": draw.choice(("fp32", "fp32", "fp32", "bf16")),
        "checkpoint": {"every_steps": draw.choice((1, 2, 5)), "every_seconds": 0.0, "keep": draw.choice((1, 2))},
        "seed": draw.randrange(1000),
    }
    if recipe == "lora":
        options["model"] = {"name": "starter", "weights": "pretrained", "options": {}}  # pretrained ones are needed
    else:
        options["penalties"] = {"l1": 1e-4, "l2_start": 0.01}
    if ranks > 1:
        kind = ("ddp", "fsdp")[number // len(RECIPES) % 2]  # each recipe meets both
        options |= {"devices": ranks, "parallel": {"kind": kind, "timeout_seconds": 20.0}}
        options |= {"average": {"kind": "none"}} if kind == "fsdp" else {}  # not offered there
    return options


def begun(root: Path, name: str, options: dict[str, Any], *, workers: int) -> Group:
    """A life of this run that starts it or goes on with it."""
    path, ranks = root / f"{name}.yaml", options.get("devices", 1)
    path.write_text(write_yaml(hs.load_config(settings(root / "data", root / name, **options, workers=workers))))
    words = ["train", "--config", str(path), "--resume"]
    return start(words, root / f"{name}.said", ranks=ranks, launched=ranks > 1 and "launched" in name)


def whole(root: Path, name: str, options: dict[str, Any], *, workers: int) -> float:
    """Live to the end; the seconds that it took."""
    started = time.monotonic()
    life = begun(root, name, options, workers=workers)
    assert not any(life.wait()), life.said()
    return time.monotonic() - started


def killed(root: Path, name: str, options: dict[str, Any], end: End, *, workers: int, tally: Tally) -> None:
    """A life that ends by SIGKILL after so many seconds, if it has not ended by then."""
    life = begun(root, name, options, workers=workers)
    deadline = time.monotonic() + end.seconds
    while time.monotonic() < deadline and not life.is_over():
        time.sleep(0.002)
    hit = not life.is_over() and life.kill(end.rank)
    tally.kills += hit
    tally.of_one += hit and end.rank is not None
    codes = life.wait()
    assert set(codes) <= {0, -signal.SIGKILL, *((1,) if end.rank is not None else ())}, (codes, life.said())
    assert "Traceback" not in life.said(), life.said()
    tally.in_saves += any((root / name / "checkpoints").glob(".new-*"))


def run(root: Path, number: int, draw: random.Random, tally: Tally, *, ranks: int = 1) -> None:
    """One run, whole and killed up to three times, compared."""
    options = drawn(draw, number, ranks=ranks)
    one, other = (f"{kind}-{number}{'-launched' * (ranks > 1 and number % 5 == 0)}" for kind in ("whole", "killed"))
    seconds = whole(root, one, options, workers=draw.choice((0, 2, 3)))
    kills, before = draw.randint(1, 3), tally.kills
    while tally.kills == before:
        for _ in range(kills):
            workers = draw.choice((0, 2, 3))
            end = End(draw.uniform(0, seconds), draw.choice((None, draw.randrange(ranks))) if ranks > 1 else None)
            killed(root, other, options, end, workers=workers, tally=tally)
    whole(root, other, options, workers=draw.choice((0, 2, 3)))
    expected, found = facts(root / one), facts(root / other)
    different = [name for name, value in expected.items() if found[name] != value]
    way = " ".join((options["recipe"], options["precision"], *([options["parallel"]["kind"]] if ranks > 1 else [])))
    tally.ways[way] += not different
    tally.bad += [f"{number} {options}: {different}"] if different else []
    print(number, way, f"{tally.kills - before} kills", different or "equal", flush=True)


def peers_cases(root: Path) -> tuple[int, int]:
    """(equal, all) of the twelve cases."""
    pictures(root / "data", each=EACH)
    equal = cases = 0
    for augment, workers in (("none", 0), ("standard", 0), ("standard", 2)):
        options = {
            "recipe": "full", "epochs": 3, "batch": {"size": 16}, "augment": {"preset": augment},
            "head": {"kind": "linear", "dropout": 0.2}, "checkpoint": {"every_steps": 5, "every_seconds": 0.0},
        }  # fmt: skip
        name = f"{augment}-{workers}"
        whole(root, name, options, workers=workers)
        for step in KILLS:
            other = f"{name}-{step}"
            life, events = begun(root, other, options, workers=workers), root / other / "events.jsonl"
            while not events.exists() or events.read_text().count('"event": "step"') < step:
                time.sleep(0.002)
            life.kill(None)
            life.wait()
            whole(root, other, options, workers=workers)
            cases += 1
            equal += facts(root / other) == facts(root / name)
            print(name, step, equal, flush=True)
    return equal, cases


def drawn_runs(args: argparse.Namespace) -> None:
    """As many runs as asked or as fit, kept."""
    draw, tally, started, runs = random.Random(args.seed), Tally(), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pictures(root / "data", each=20)
        for number in range(args.runs):
            if time.monotonic() - started > 60 * args.minutes:
                break
            runs += 1
            run(root, number, draw, tally, ranks=args.ranks)
    equal, goal = sum(tally.ways.values()), 200 if args.ranks == 1 else 25
    several = f"{args.ranks} processes (gloo; whole models and shared out ones), a rank or all "
    what = (
        f"{several if args.ranks > 1 else ''}killed 1 to 3 times at random instants, workers drawn per life, everything"
    )
    of_one = f", {tally.of_one} of them of one rank" if args.ranks > 1 else ""
    keep(
        "P1", what=f"{what} random switched on: "
        "weights, optimizer, average, predictions, metrics and history equal those of the whole run",
        goal=f"{goal} of {goal}", met=equal == runs >= goal, ways=dict(tally.ways), bad=tally.bad,
        found=f"{equal} of {runs} ({tally.kills} kills{of_one}, {tally.in_saves} inside a save)",
        command=f"python -m benchmarks.reliability.resume --runs {runs} --seed {args.seed}"
        + (f" --ranks {args.ranks}" if args.ranks > 1 else ""),
        note=f"{time.monotonic() - started:.0f} s{' (fewer runs for want of time)' if runs < goal else ''}.",
    )  # fmt: skip


def main() -> None:
    """Draw, kill, go on, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, help="processes of each run")
    parser.add_argument("--minutes", type=float, default=60, help="begin no further run after so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.runs:
        drawn_runs(args)
    if args.ranks > 1:
        return
    with tempfile.TemporaryDirectory() as folder:
        equal, cases = peers_cases(Path(folder))
    keep(
        "P1", what="30 steps, 10 an epoch, saved every 5, killed after step 7, 17, 20, 23; no augmentation, and "
        "random with 0 and with 2 workers",
        goal="12 of 12", found=f"{equal} of {cases}", met=equal == cases == 12,
        command="python -m benchmarks.reliability.resume --runs 0",
    )  # fmt: skip


if __name__ == "__main__":
    main()
