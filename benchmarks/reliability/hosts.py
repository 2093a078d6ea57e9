"""P11 on two machines: two network namespaces joined by a cable that is pulled in the middle of a run.

    sudo python -m benchmarks.reliability.hosts          needs root and iproute2 (Linux)

Each side has its own network and host name, and one process under torchrun with the c10d rendezvous.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.reliability.processes import pictures
from benchmarks.reliability.results import keep

TIMEOUT_SECONDS = 10
SIDES = ("headstart0", "headstart1")


def ip(*words: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def cable() -> Iterator[None]:
    """Two namespaces, 10.77.0.1 and 10.77.0.2."""
    names = "127.0.0.1 localhost\n" + "".join(f"10.77.0.{number + 1} {side}\n" for number, side in enumerate(SIDES))
    for side in SIDES:
        ip("netns", "add", side)
        folder = Path("/etc/netns", side)  # ip shows its files in place of those in /etc
        folder.mkdir(parents=True)
        (folder / "hosts").write_text(names)
    try:
        ip("link", "add", "cable0", "netns", SIDES[0], "type", "veth", "peer", "name", "cable1", "netns", SIDES[1])
        for number, side in enumerate(SIDES):
            ip("-n", side, "address", "add", f"10.77.0.{number + 1}/24", "dev", f"cable{number}")
            ip("-n", side, "link", "set", f"cable{number}", "up")
            ip("-n", side, "link", "set", "lo", "up")
        yield
    finally:
        for side in SIDES:
            ip("netns", "del", side)
            shutil.rmtree(Path("/etc/netns", side))


def start(number: int, folder: Path, data: str) -> subprocess.Popen[str]:
    """One side's torchrun."""
    inside = ["ip", "netns", "exec", SIDES[number], "unshare", "--uts", "sh", "-c"]
    here = f"10.77.0.{number + 1}"
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--local-addr", here,
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "headstart", "-m", "headstart",
    ]  # fmt: skip
    train = [
        "train", data, "--model", "starter", "--epochs", "500", "--batch-size", "8", "--checkpoint.every-steps", "1",
        "--parallel.timeout-seconds", str(TIMEOUT_SECONDS), "--out", str(folder / "run"),
    ]  # fmt: skip
    words = [*inside, f'hostname {SIDES[number]}; exec "$@"', "sh", *torchrun, *train]
    return subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"cable{number}"},
    )  # fmt: skip


def first_line(side: subprocess.Popen[str]) -> str:
    """What headstart said first on one side."""
    return next((line for line in side.communicate()[1].splitlines() if "headstart: " in line), "")


def steps(run: Path) -> int:
    """Steps that the run has done."""
    events = run / "events.jsonl"
    return events.read_text().count('"event": "step"') if events.exists() else 0


def main() -> None:
    """See the module's docstring."""
    with tempfile.TemporaryDirectory() as name, cable():
        folder = Path(name)
        (folder / "data").mkdir()
        data = pictures(folder / "data", 8, 8, 8)
        sides = [start(number, folder, data) for number in (0, 1)]
        while steps(folder / "run") < 3 and all(side.poll() is None for side in sides):
            time.sleep(0.1)
        reached = steps(folder / "run")
        ip("-n", SIDES[0], "link", "set", "cable0", "down")
        pulled, ended = time.monotonic(), dict[int, float]()
        while len(ended) < 2 and time.monotonic() - pulled < 20 * TIMEOUT_SECONDS:
            ended |= {
                number: time.monotonic() - pulled
                for number, side in enumerate(sides)
                if number not in ended and side.poll() is not None
            }
            time.sleep(0.1)
        for side in sides:
            with suppress(ProcessLookupError):
                os.killpg(side.pid, signal.SIGKILL)
        said = [
            next((line for line in side.communicate()[1].splitlines() if "headstart: " in line), "") for side in sides
        ]
        saved = sorted(path.name for path in (folder / "run" / "checkpoints").glob("step-*"))
    print(*said, ended, saved, reached, sep="\n")
    named = reached >= 3 and "rank 1 (headstart1" in said[0] and "rank 0 (headstart0" in said[1] and bool(saved)
    times = ", ".join(f"{SIDES[number]} after {seconds:.0f} s" for number, seconds in sorted(ended.items())) or "none"
    keep(
        "P11", what=f"two machines (network namespaces) whose cable is pulled, timeout {TIMEOUT_SECONDS} s",
        goal="both sides end, each names the other", found=f"ended: {times}; {'both named' if named else 'not named'}",
        met=named and len(ended) == 2, command="sudo python -m benchmarks.reliability.hosts",
        note="headstart's process ends on both sides; torchrun's agent on the side without the rendezvous store waits "
        "for the store and outlives it",
    )  # fmt: skip


if __name__ == "__main__":
    main()
