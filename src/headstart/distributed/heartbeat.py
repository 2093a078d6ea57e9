"""A sign of life of each rank in the group's store, so that one that is lost can be named by the others."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping

from torch.distributed.distributed_c10d import Store

from headstart.wording import switch

_EVERY_SECONDS = 0.5
_STILL_SECONDS = 2.5  # once contact is lost, a rank whose beat has not moved for so long is named
_LINGER_SECONDS = 3.0
_GRACE_SECONDS = 5.0  # to leave by itself, once another rank has failed


class Heartbeat:
    """Tells the others every half second that this process lives and how many messages it has taken part in.

    A rank whose beat has not moved for ``timeout_seconds`` is lost: where it runs on this machine it is killed, which
    breaks its connections, so that whoever waits for it gets an error at once; where nothing comes of that (another
    machine, NCCL), this process says who is lost and ends. However long a rank works between two messages, it is left
    alone while it beats.

    ``report_failure`` is called before an error leaves; a rank that is then stuck in a message (NCCL cannot be
    interrupted) is ended after five seconds; all end, saving, when the launcher that started them is gone. One thread
    alone talks to the store: its answers may never come, if the process that holds it stands still. A second one only
    looks at what the first has read.
    """

    def __init__(self, store: Store, *, rank: int, world_size: int, timeout_seconds: float) -> None:
        self.rank, self.world_size = rank, world_size
        self._store, self._messages, self._failure = store, 0, ""
        self._timeout, self._every = timeout_seconds, max(_EVERY_SECONDS, world_size / 64)
        self._ended, self._reported, self._woken = threading.Event(), threading.Event(), threading.Event()
        self._beats: dict[int, tuple[str, float]] = {}  # rank: its last beat, and when it came
        self._failed: tuple[int, ...] = ()
        self._answered = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, name="headstart heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="headstart heartbeat watch", daemon=True),
        ]
        for name, value in (
            ("where", f"{socket.gethostname()}, process {os.getpid()}"),
            ("beat", "0 0"),
            ("failed", ""),
        ):
            store.set(f"{rank}/{name}", value)

    def start(self) -> None:
        """Begin, when every rank has made its heartbeat.  Raises: RuntimeError: one has not, within the timeout."""
        self._hosts = dict(enumerate(self._read("where")))
        for thread in self._threads:
            thread.start()

    def count(self) -> None:
        """Count one more message that this rank takes part in."""
        self._messages += 1

    def stop(self) -> None:
        """End the beats, and wait for the threads: one that is within torch while Python ends makes C++ abort."""
        self._ended.set()
        self._woken.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_STILL_SECONDS)

    def report_failure(self, why: str) -> None:
        """Say why this rank ends; the others then stay silent."""
        self._failure = why[:500] or "failed"
        self._woken.set()
        self._reported.wait(_STILL_SECONDS)

    def linger(self) -> None:
        """Wait before the first process, which may hold the store, leaves: the others have to read who failed."""
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(_LINGER_SECONDS)

    @property
    def others_failed(self) -> bool:
        """Whether another rank has reported that it failed."""
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
        ranks = self._find_still() or self._find_behind()
        return {rank: self._hosts[rank] for rank in ranks}

    def kill_still(self) -> None:
        """Kill the ranks on this machine whose beat stands still: they would hold up the end of the job."""
        self._kill(self._find_still())

    def describe_loss(self, lost: Mapping[int, str]) -> str:
        """The message of an error that names the ranks and says how to go on."""
        who = ", ".join(f"rank {rank} ({where})" for rank, where in lost.items()) or "another rank"
        return (
            f"{who} of {self.world_size} is lost: killed by a signal (often for memory: see the system's log), cut "
            "off, or standing still for longer than parallel.timeout_seconds; all others stop. Go on from the last "
            f"checkpoint with the same command and {switch('resume')}"
        )

    def _find_still(self) -> list[int]:
        now = time.monotonic()
        if now - self._answered > _STILL_SECONDS:  # the process that holds the store: rank 0, if no launcher does
            return [0]
        return [rank for rank, (_, came) in self._others().items() if now - came > _STILL_SECONDS]

    def _find_behind(self) -> list[int]:
        return [rank for rank, (beat, _) in self._others().items() if int(beat.split()[1]) < self._messages]

    def _others(self) -> dict[int, tuple[str, float]]:
        return {rank: beat for rank, beat in self._beats.copy().items() if rank != self.rank}

    def _kill(self, ranks: list[int]) -> None:
        for where in (self._hosts[rank] for rank in ranks):
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
                self._beat(number)
            stuck_since = (stuck_since or time.monotonic()) if self.others_failed else 0.0
            if stuck_since and time.monotonic() - stuck_since > _GRACE_SECONDS:
                os._exit(1)  # another rank has failed and said why, and this one cannot notice
            self._woken.wait(self._every)
            self._woken.clear()

    def _beat(self, number: int) -> None:
        self._store.set(f"{self.rank}/beat", f"{number} {self._messages}")
        if self._failure and not self._reported.is_set():
            self._store.set(f"{self.rank}/failed", self._failure)
            self._reported.set()
        beats, failed = self._read("beat"), self._read("failed")
        self._answered = time.monotonic()
        for rank, beat in enumerate(beats):
            if self._beats.get(rank, ("", 0.0))[0] != beat:
                self._beats[rank] = (beat, self._answered)
        self._failed = tuple(rank for rank, why in enumerate(failed) if why)

    def _watch(self) -> None:
        """Count for how long each rank's beat stands still, and end the wait for one that is lost.

        Only time in which this thread ran counts: after the whole job stood still (a suspended machine, SIGSTOP to
        all) nobody is lost.
        """
        still, waited, named = dict.fromkeys(range(self.world_size), 0.0), 0.0, False
        before, last = self._beats.copy(), time.monotonic()
        answered = self._answered
        while not self._ended.wait(self._every):
            now, beats = time.monotonic(), self._beats.copy()
            passed, last = min(now - last, 2 * self._every), now
            silent = self._answered == answered  # the store: it says nothing of any rank but its holder
            for rank in still:
                moved = beats.get(rank) != before.get(rank) or (silent and rank != 0)
                still[rank] = 0.0 if moved or rank == self.rank else still[rank] + passed
            before, answered = beats, self._answered
            lost = [rank for rank, seconds in still.items() if seconds > self._timeout]
            if lost and not self.others_failed:
                self._end_wait(lost)
                return
            behind = [rank for rank in self._find_behind() if still[rank] <= 2 * self._every]
            waited = waited + passed if behind else 0.0
            if behind and waited > self._timeout and not named:
                named = True
                self._note_behind(behind)

    def _note_behind(self, ranks: list[int]) -> None:
        who = ", ".join(f"rank {rank} ({self._hosts[rank]})" for rank in ranks)
        logging.getLogger("headstart").warning(
            f"{who}: at work for over {self._timeout:g} s while rank {self.rank} waits; it beats, so it is waited for"
        )

    def _end_wait(self, lost: list[int]) -> None:
        """Break the connections of ranks that are lost; where this process still waits, say who it is and end."""
        self._kill(lost)
        if self._ended.wait(_STILL_SECONDS + 2 * self._every + _GRACE_SECONDS):
            return
        if not self.others_failed and self.rank == min(set(range(self.world_size)) - set(lost)):
            loss = self.describe_loss({rank: self._hosts[rank] for rank in lost})
            sys.stderr.write(f"error: {loss}\n")
            sys.stderr.flush()
            self.report_failure(f"lost rank {lost[0]}")
        os._exit(1)
