"""P1 for predictions: ``predict --out`` killed again and again, and called again, until its file is there.

python -m benchmarks.reliability.predict_kills [--files 20] [--seed 0]

Each file is begun anew; its command is killed at random instants, from the first batch to the last rename, one to three
times, in one of three forms, and the last call is left to end. The bytes must be those of a call that was never killed.
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
from pathlib import Path

import headstart as hs
from benchmarks.reliability.results import keep
from tests.reliability.lives import pictures, settings

ENDINGS = (".csv", ".jsonl", ".parquet")
DAMAGED = 7  # of the pictures


def prepare(root: Path) -> list[str]:
    """Draw the pictures, train a run on some of them; the words of the command but for its file."""
    pictures(root / "data", each=24)
    pictures(root / "new", each=1_000)
    for number in range(DAMAGED):
        (root / "new" / "red" / f"{100 * number + 3:03}.png").write_bytes(b"no picture")
    hs.train(hs.load_config(settings(root / "data", root / "run", epochs=1)))
    command = [sys.executable, "-m", "headstart", "predict", str(root / "run"), str(root / "new"), "--batch-size", "16"]
    return [*command, "--out"]


def kill_at_random(command: list[str], partial: Path, draw: random.Random, seconds: float) -> bool:
    """Start the command, and kill it within these seconds behind its first row; whether it was still alive."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = partial.stat().st_size if partial.exists() else 0
    while process.poll() is None and (not partial.exists() or partial.stat().st_size <= before):
        time.sleep(0.002)
    time.sleep(draw.uniform(0, seconds))
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, equal, kills, left = random.Random(args.seed), 0, 0, 0
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        command = prepare(root)
        whole = {}
        for ending in ENDINGS:
            begun = time.monotonic()
            out = root / f"whole{ending}"
            subprocess.run([*command, str(out)], check=True, capture_output=True)
            whole[ending] = out.read_bytes()
            seconds = time.monotonic() - begun
        for number in range(args.files):
            ending = ENDINGS[number % len(ENDINGS)]
            out = root / f"{number}{ending}"
            for _ in range(draw.randint(1, 3)):
                if not out.exists():
                    kills += kill_at_random([*command, str(out)], Path(f"{out}.partial"), draw, seconds / 2)
            if not out.exists():
                subprocess.run([*command, str(out)], check=True, capture_output=True)
            equal += out.read_bytes() == whole[ending]
            left += Path(f"{out}.partial").exists()
            print(number, ending, kills, equal, flush=True)
    keep(
        "P1",
        what="predict --out of 3,000 images, 7 of them damaged, killed 1 to 3 times at random instants and called "
        "again (csv, jsonl, parquet): the bytes of a call that was not killed, nothing left beside them",
        goal=f"{args.files} of {args.files}", found=f"{equal} of {args.files} ({kills} kills)",
        met=equal == args.files and not left,
        command=f"python -m benchmarks.reliability.predict_kills --files {args.files} --seed {args.seed}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
