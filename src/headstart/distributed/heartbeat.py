"""A sign of life of each rank in the group's store, so that one that is lost can be named by the others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping

from torch.distributed.distributed_c10d import Store

_EVERY_SECONDS = 0.5
_STILL_SECONDS = 2.5  # a rank whose beat has not moved for so long, while it is watched, is named
_LINGER_SECONDS = 3.0
_GRACE_SECONDS = 5.0  # to leave by itself, once another rank has failed


class Heartbeat:
    """Tells the others every half second that this process lives and how many messages it has taken part in.

    ``report_failure`` is called before an error leaves; a rank that is then stuck in a message (NCCL cannot be
    interrupted) is ended after five seconds; all end, saving, when the launcher that started them is gone. One thread
    alone talks to the store: its answers may never come, if the process that holds it stands still.
    """

    def __init__(self, store: Store, *, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._store, self._messages, self._failure = store, 0, ""
        self._every = max(_EVERY_SECONDS, world_size / 64)
        self._ended, self._told, self._woken = threading.Event(), threading.Event(), threading.Event()
        self._beats: dict[int, tuple[str, float]] = {}  # rank: its last beat, and when it came
        self._failed: tuple[int, ...] = ()
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="headstart pulse", daemon=True)
        for name, value in (
            ("where", f"{socket.gethostname()}, process {os.getpid()}"),
            ("beat", "0 0"),
            ("failed", ""),
        ):
            store.set(f"{rank}/{name}", value)

    def start(self) -> None:
        """Begin, when every rank has made its pulse."""
        self._places = dict(enumerate(self._read("where")))
        self._thread.start()

    def count(self) -> None:
        """One more message that this rank takes part in."""
        self._messages += 1

    def stop(self) -> None:
        """No more beats. The thread is waited for: if it is within torch while Python ends, C++ aborts the process."""
        self._ended.set()
        self._woken.set()
        self._thread.join(_STILL_SECONDS)

    def report_failure(self, why: str) -> None:
        """Say why this rank ends; the others then stay silent."""
        self._failure = why[:500] or "failed"
        self._woken.set()
        self._told.wait(_STILL_SECONDS)

    def linger(self) -> None:
        """Where the first process holds the store it must not take it along before the others have read who failed."""
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(_LINGER_SECONDS)

    @property
    def others_failed(self) -> bool:
        """Whether another rank has said that it failed."""
        return any(rank != self.rank for rank in self._failed)

    def find_lost(self) -> Mapping[int, str]:
        """Ranks whose beat stands still, with their places; else those that are behind in messages.

        Looked at for some seconds; empty once another rank has said that it failed.
        """
        end = time.monotonic() + _STILL_SECONDS + 2 * self._every
        while time.monotonic() < end:
            if self.others_failed:
                return {}
            time.sleep(0.1)
        now = time.monotonic()
        if now - self._answered > _STILL_SECONDS:  # the process that holds the store: rank 0, if no launcher does
            return {0: self._places[0]}
        others = {rank: beat for rank, beat in self._beats.items() if rank != self.rank}
        still = [rank for rank, (_, came) in others.items() if now - came > _STILL_SECONDS]
        behind = [rank for rank, (beat, _) in others.items() if int(beat.split()[1]) < self._messages]
        return {rank: self._places[rank] for rank in still or behind}

    def end(self, ranks: Mapping[int, str]) -> None:
        """Kill those of the lost ranks that are on this machine: standing still they hold up the end of the job."""
        for where in ranks.values():
            host, _, process = where.rpartition(", process ")
            if host == socket.gethostname():
                with contextlib.suppress(OSError):
                    os.kill(int(process), signal.SIGKILL)

    def _read(self, name: str) -> list[str]:
        keys = [f"{rank}/{name}" for rank in range(self.world_size)]
        return [value.decode() for value in self._store.multi_get(keys)]

    def _run(self) -> None:
        number, stuck_since, parent = 0, 0.0, os.getppid()
        while not self._ended.is_set():
            number += 1
            if os.getppid() != parent:  # the launcher was killed: save and end
                os.kill(os.getpid(), signal.SIGTERM)
                return
            with contextlib.suppress(RuntimeError):  # the store has gone with the process that held it
                self._tell(number)
            stuck_since = (stuck_since or time.monotonic()) if self.others_failed else 0.0
            if stuck_since and time.monotonic() - stuck_since > _GRACE_SECONDS:
                os._exit(1)  # another rank has failed and said why, and this one cannot notice
            self._woken.wait(self._every)
            self._woken.clear()

    def _tell(self, number: int) -> None:
        self._store.set(f"{self.rank}/beat", f"{number} {self._messages}")
        if self._failure and not self._told.is_set():
            self._store.set(f"{self.rank}/failed", self._failure)
            self._told.set()
        self._look()

    def _look(self) -> None:
        beats, failed = self._read("beat"), self._read("failed")
        self._answered = time.monotonic()
        for rank, beat in enumerate(beats):
            if self._beats.get(rank, ("", 0.0))[0] != beat:
                self._beats[rank] = (beat, self._answered)
        self._failed = tuple(rank for rank, why in enumerate(failed) if why)
