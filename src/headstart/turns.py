"""One thread at a time where torch's global generators are seeded and drawn from: two loops in two threads have the
bits that each has alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from functools import cache
from threading import Condition, get_ident

from headstart.errors import RunError


class _Turns:
    """Who has the process's generators: one thread that draws from them, or any number that only compute."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.owner: int | None = None
        self.depth = 0  # of the owner's blocks
        self.guests: dict[int, int] = {}  # threads that compute, and the depth of their blocks
        self.waiting = 0  # threads that want to draw: no further guest comes before them
        self.runs: dict[int, str] = {}  # threads in a block of ``only_run``, and what it is

    def wait_alone(self, me: int) -> None:
        """Wait until nobody else draws or computes; the caller holds the lock."""
        assert me not in self.guests, "a step within a forward pass of evaluation would wait for itself"
        self.waiting += 1
        try:
            self.changed.wait_for(lambda: self.owner is None and not self.guests)
        finally:
            self.waiting -= 1


@cache
def _turns(_process: int) -> _Turns:
    """Those of this process: a forked one does not inherit a turn that a thread of its parent had."""
    return _Turns()


class own_turn(ContextDecorator):
    """Within, no other thread makes a step, draws a picture's random changes or evaluates; it waits. Blocks nest."""

    def __enter__(self) -> None:
        turns, me = _turns(os.getpid()), get_ident()
        with turns.changed:
            if turns.owner != me:
                if turns.owner is not None or turns.guests:
                    turns.wait_alone(me)
                turns.owner = me
            turns.depth += 1

    def __exit__(self, *_: object) -> None:
        turns = _turns(os.getpid())
        with turns.changed:
            turns.depth -= 1
            if not turns.depth:
                turns.owner = None
                turns.changed.notify_all()


@contextmanager
def beside_others() -> Iterator[None]:
    """Within, no other thread has its ``own_turn``; others may be in blocks like this one."""
    turns, me = _turns(os.getpid()), get_ident()
    with turns.changed:
        if turns.owner != me and me not in turns.guests:
            turns.changed.wait_for(lambda: turns.owner is None and not turns.waiting)
        turns.guests[me] = turns.guests.get(me, 0) + 1
    try:
        yield
    finally:
        with turns.changed:
            turns.guests[me] -= 1
            if not turns.guests[me]:
                del turns.guests[me]
                turns.changed.notify_all()


@contextmanager
def only_run(what: str) -> Iterator[None]:
    """Within, a run or a plan of another thread is refused.

    Raises: RunError: another thread is in such a block.
    """
    turns, me = _turns(os.getpid()), get_ident()
    with turns.changed:
        others = [running for thread, running in turns.runs.items() if thread != me]
        if others:
            raise RunError(
                f"{what}: {others[0]} is going on in another thread of this process, and both would draw from the same "
                f"generators; call {what} when that one has returned, or in a process of its own"
            )
        outer = turns.runs.get(me)
        turns.runs[me] = outer or what
    try:
        yield
    finally:
        with turns.changed:
            if outer is None:
                del turns.runs[me]
