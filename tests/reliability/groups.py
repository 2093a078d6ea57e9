"""Lives of several processes: copies of this one in torchrun's environment, or headstart's own launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.lives import Life, forked, survivors


@dataclass
class Group:
    """The ranks of one life of a run in their order, or (``launched``) the launcher that started so many."""

    lives: list[Life]
    ranks: int
    launched: bool

    def is_over(self) -> bool:
        """Whether all have ended (they are still to be waited for)."""
        return all(life.is_over() for life in self.lives)

    def kill(self, rank: int | None) -> bool:
        """SIGKILL to one rank, or to every process at once, loading processes and launcher too; whether any was hit."""
        if rank is None:
            pids = [pid for life in self.lives for pid in (life.pid, *self._started(life))]
        elif self.launched:
            pids = [pid for pid, number in self._started(self.lives[0]).items() if number == rank]
        else:
            pids = [self.lives[rank].pid]
        hit = False
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                hit = True
        return hit

    def wait(self) -> list[int]:
        """Until all have ended, and what they started: exit codes, minus the signal where one ended it."""
        codes = [life.wait() for life in self.lives]
        deadline = time.monotonic() + 30
        while any(self._started(life) for life in self.lives):
            assert time.monotonic() < deadline, "processes outlive their run"
            time.sleep(0.02)
        for life in self.lives:
            assert not survivors(life.pid, seconds=30), "processes outlive their rank"
        return codes

    def said(self) -> str:
        """What all of them wrote."""
        return "\n".join(life.said.read_text() for life in self.lives)

    def _started(self, life: Life) -> dict[int, int]:
        """Living processes of a launcher's run, and the rank that each is or loads for."""
        if not self.launched:
            return dict.fromkeys(survivors(life.pid, seconds=0), 0)
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                ranks = [int(variable[5:]) for variable in variables if variable.startswith(b"RANK=")]
                if ranks and f"TORCHELASTIC_RUN_ID=headstart-{life.pid}".encode() in variables:
                    found[int(folder.name)] = ranks[0]
        return found


def start(words: Sequence[str], said: Path, *, ranks: int, launched: bool) -> Group:
    """A life of a headstart command in so many processes; ``launched``: ``--devices`` of the command starts them."""
    if ranks == 1 or launched:
        return Group([forked(list(words), said)], ranks, launched)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    lives = []
    for rank in range(ranks):
        there = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        lives.append(forked(list(words), said.with_suffix(f".said-{rank}"), environment=there))
    return Group(lives, ranks, launched)
