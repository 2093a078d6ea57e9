"""P12: runs with 3 loading processes, each told to stop at a random instant of its life.

python -m benchmarks.reliability.signals [--each 50] [--seed 0]

Five ways (SIGINT, SIGINT twice, SIGTERM, SIGHUP, SIGKILL), to the process or to its whole group as a terminal does.
Every fifth life is a new interpreter (imports included), the others are copies of one whose imports are done. Every
tenth is gone on with by the very line that it printed, and must end as a run that was never stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import headstart as hs
from benchmarks.reliability.results import keep
from headstart.config.load import write_yaml
from headstart.runs.checkpoint import read_checkpoint
from tests.reliability.lives import Life, facts, forked, fresh, pictures, settings, survivors

WAYS = {
    "SIGINT": ([signal.SIGINT], 130), "SIGINT twice": ([signal.SIGINT, signal.SIGINT], 130),
    "SIGTERM": ([signal.SIGTERM], 143), "SIGHUP": ([signal.SIGHUP], 129), "SIGKILL": ([signal.SIGKILL], -9),
}  # fmt: skip


@dataclass
class Ground:
    """What all lives share: the pictures, a run that was not stopped, how long a life is, and where messages go."""

    root: Path
    expected: dict[str, object]
    seconds: dict[bool, tuple[float, float]]
    """Of a new interpreter or not: the first instant of headstart's own code, and the end."""

    def config(self, out: Path) -> Path:
        """The configuration of a run there, as a file."""
        path = self.root / f"{out.name}.yaml"
        course = {"recipe": "lp_ft", "epochs": 2, "workers": 3, "average": {"kind": "ema"}}
        path.write_text(write_yaml(hs.load_config(settings(self.root / "data", out, **course))))
        return path


def prepare(root: Path) -> Ground:
    """Draw the pictures, and time one whole life of each kind."""
    pictures(root / "data", each=24)
    ground = Ground(root, {}, {})
    for new in (True, False):
        out = root / f"whole-{new}"
        words = ["train", "--config", str(ground.config(out))]
        begun = time.monotonic()
        code = (fresh if new else forked)(words, root / "said").wait()
        assert code == 0, (root / "said").read_text()
        ground.seconds[new] = (0.0, time.monotonic() - begun)
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "headstart.cli.main", "--version"], check=True, capture_output=True)
    ground.seconds[True] = (time.monotonic() - begun, ground.seconds[True][1])
    ground.expected = facts(root / "whole-False")
    assert facts(root / "whole-True") == ground.expected
    return ground


def strike(life: Life, numbers: list[int], draw: random.Random) -> None:
    """Send the signals, to the process or to all of its group."""
    send = draw.choice([os.kill, os.killpg]) if numbers[0] != signal.SIGKILL else os.kill
    for place, number in enumerate(numbers):
        if place:
            time.sleep(draw.uniform(0, 0.2))
        if not life.is_over():
            send(life.pid, number)


def faults(ground: Ground, way: str, *, new: bool, go_on: bool, draw: random.Random, name: str) -> list[str] | None:
    """What was wrong with one life; None: it was over before its signal."""
    numbers, expected = WAYS[way]
    out = ground.root / name
    first, end = ground.seconds[new]
    life = (fresh if new else forked)(["train", "--config", str(ground.config(out))], ground.root / f"{name}.said")
    begun, instant = time.monotonic(), draw.uniform(first, end)
    while time.monotonic() - begun < instant:
        time.sleep(0.005)
        if life.is_over():
            life.wait()
            ground.seconds[new] = first, (end + time.monotonic() - begun) / 2  # the machine has become faster
            return None
    strike(life, numbers, draw)
    begun = time.monotonic()
    code = life.wait()
    seconds = time.monotonic() - begun
    said = life.said.read_text(errors="replace")
    if (out / "report.html").exists() and code in (0, -numbers[0], -numbers[-1]):  # it was leaving, all was written
        return None
    if not said and not out.exists() and code in (99, -numbers[0]) and way != "SIGKILL":  # before headstart's own code
        return None
    lines = [line for line in said.splitlines() if line.startswith("headstart: ")]
    wrong = [] if code == expected else [f"exit code {code}"]
    wrong += ["a traceback"] * ("Traceback" in said or "Exception ignored" in said)
    wrong += [f"{len(lines)} lines"] * (len(lines) != (way != "SIGKILL"))
    wrong += [f"{seconds:.1f} s"] * (seconds > 12)
    wrong += ["a process outlived it"] * bool(survivors(life.pid))
    if (out / "checkpoints").exists():
        read_checkpoint(out / "checkpoints")  # raises where all are damaged
    if go_on and not wrong:
        wrong += continued(ground, out, lines[0] if lines else "")
    return wrong if not wrong else [*wrong, said[-2000:]]


def continued(ground: Ground, out: Path, line: str) -> list[str]:
    """Run the command of the line (after SIGKILL: the same one with --resume) to the end."""
    command = line.partition("; go on with: ")[2]
    words = f"{sys.executable} -m headstart.cli.main train --config {ground.root / out.name}.yaml --resume"
    done = subprocess.run(command or words, shell=True, capture_output=True, text=True)
    if done.returncode:
        return [f"could not go on: {done.stderr[-500:]}"]
    return [] if facts(out) == ground.expected else ["other bits after going on"]


def main() -> None:
    """Draw, strike, count, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="begin no further round after so many")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    good = dict.fromkeys(WAYS, 0)
    went_on, each, bad = 0, 0, list[str]()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ground = prepare(Path(folder))
        print(f"a life: {ground.seconds}", flush=True)
        for number in range(args.each):
            if time.monotonic() - begun > 60 * args.minutes:
                break
            each += 1
            for way in WAYS:
                found = None
                while found is None:
                    name = f"{way.replace(' ', '-')}-{number}-{draw.randrange(10**6)}"
                    go_on = number % 10 == 0
                    found = faults(ground, way, new=number % 5 == 0, go_on=go_on, draw=draw, name=name)
                went_on += go_on
                good[way] += not found
                bad += [f"{way} {number}: {found}"] if found else []
                print(way, number, found or "good", flush=True)
    total, whole = sum(good.values()), each * len(WAYS)
    keep(
        "P12",
        what="SIGINT, SIGINT twice, SIGTERM, SIGHUP, SIGKILL at random instants, 3 loading processes: exit code, one "
        "line, no traceback, nothing alive after 10 s",
        goal="250 of 250", found=f"{total} of {whole}", met=total == whole == 250,
        command=f"python -m benchmarks.reliability.signals --each {each} --seed {args.seed}", ways=good, bad=bad,
        note=f"{went_on} of them went on by the printed command and ended with the bits of a run never stopped; every "
        f"fifth life is a new interpreter, from the moment at which headstart's own code runs (before it, Python "
        f"itself answers). {time.monotonic() - begun:.0f} s.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
